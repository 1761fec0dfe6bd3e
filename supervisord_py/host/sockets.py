"""What a unit listens on in terms of ``bind``, and who is connected to it: the manager's part of ``keeper.sockets``.

Users, groups and whether there is IPv6 are looked up here, where that may fail in words. Source: systemd.socket(5);
proc_pid_net(5).
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supervisord_py.core.actions import OpenSockets
from supervisord_py.core.events import SocketsOpened
from supervisord_py.host.accounts import Accounts, NoAccount
from supervisord_py.model.sockets import AddressFamily, Listen, ListenKind, Socket, SocketAddress

_TYPES = {
    ListenKind.STREAM: socket.SOCK_STREAM,
    ListenKind.DATAGRAM: socket.SOCK_DGRAM,
    ListenKind.SEQUENTIAL_PACKET: socket.SOCK_SEQPACKET,
    ListenKind.FIFO: socket.SOCK_STREAM,
}
_VSOCK_ANY = 2**32 - 1
_ESTABLISHED, _CLOSE_WAIT, _UNIX_CONNECTED = "01", "08", "03"


def listen_request(action: OpenSockets, accounts: Accounts) -> dict[str, Any] | SocketsOpened:
    """Return the keeper's request for ``action``, or why nothing can be listened on."""
    specs = []
    for each in action.sockets:
        try:
            owner = None if each.user is None else accounts.find(each.user, None)
            group = None if each.group is None else accounts.find(None, each.group)
        except NoAccount as error:
            return SocketsOpened(action.listen_id, action.unit, f"{each.name}: {error.detail}")
        uid, gid = None if owner is None else owner.uid, None if owner is None else owner.gid
        specs += [_spec(each, listen, uid, gid if group is None else group.gid) for listen in each.listens]
    return {"do": "listen", "unit": action.unit, "id": action.listen_id, "sockets": specs}


def _spec(own: Socket, listen: Listen, uid: int | None, gid: int | None) -> dict[str, Any]:
    family, address = _bindable(listen.address)
    is_path = listen.address.family is AddressFamily.UNIX and listen.address.host.startswith("/")
    return {
        "name": own.name,
        "text": str(listen.address),
        "family": int(family),
        "type": int(_TYPES[listen.kind]),
        "address": address,
        "path": listen.address.host if is_path else None,
        "fifo": listen.kind is ListenKind.FIFO,
        "mode": own.mode,
        "uid": uid,
        "gid": gid,
        "backlog": min(own.backlog, 2**31 - 1),
        "reuse_port": own.reuse_port and listen.address.family in (AddressFamily.INET, AddressFamily.INET6),
        "accept": own.accept,
    }


def _bindable(address: SocketAddress) -> tuple[int, str | list[Any]]:
    """Return the family and what ``bind`` takes."""
    match address.family:
        case AddressFamily.UNIX:
            name = address.host
            return socket.AF_UNIX, f"\0{name[1:]}" if name.startswith("@") else name
        case AddressFamily.INET:
            return socket.AF_INET, [address.host, address.port]
        case AddressFamily.INET6 if address.host == "::" and not _has_ipv6():
            return socket.AF_INET, ["0.0.0.0", address.port]
        case AddressFamily.INET6:
            return socket.AF_INET6, [address.host, address.port]
        case AddressFamily.VSOCK:
            return socket.AF_VSOCK, [int(address.host) if address.host else _VSOCK_ANY, address.port]


def _has_ipv6() -> bool:
    return os.path.exists("/proc/net/if_inet6")


def count_connections(sockets: Iterable[Socket]) -> int:
    """Return how many connections to these addresses are open on this machine; datagrams and FIFOs have none."""
    ports: set[int] = set()
    names: set[str] = set()
    for each in sockets:
        for listen in each.listens:
            if listen.kind in (ListenKind.STREAM, ListenKind.SEQUENTIAL_PACKET):
                if listen.address.family is AddressFamily.UNIX:
                    names.add(listen.address.host)
                elif listen.address.family is not AddressFamily.VSOCK:
                    ports.add(listen.address.port)
    found = 0
    for table in ("tcp", "tcp6") if ports else ():
        for line in _lines(f"/proc/net/{table}"):
            local, state = line[1], line[3]
            found += state in (_ESTABLISHED, _CLOSE_WAIT) and int(local.rpartition(":")[2], 16) in ports
    for line in _lines("/proc/net/unix") if names else ():
        found += line[5] == _UNIX_CONNECTED and line[7:8] != [] and line[7] in names
    return found


def _lines(path: str) -> list[list[str]]:
    """Return the words of each line of a table but for its head; one that is not there is empty."""
    try:
        return [line.split(maxsplit=7) for line in Path(path).read_text(errors="replace").splitlines()[1:]]
    except FileNotFoundError:
        return []

"""``[[socket]]``: what a unit listens on, and the addresses that sockets are bound to, as text and back.

An address names no host: what a name means may change, and looking it up may hang. Source: systemd.socket(5),
src/shared/socket-label.c, src/basic/socket-util.c (socket_address_parse); its vectors are in ``tests/data``.
"""

import ipaddress
import re
from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from supervisord_py.model.digits import parse_digits
from supervisord_py.model.problems import BadValue

SECOND_NS = 1_000_000_000
PATH_MAX = 107
"""Bytes of a socket's path that the kernel allows."""
_PORT_MAX = 65535
_U32_MAX = 2**32 - 1
BURST = 20
BURST_OF_ACCEPT = 200
_HINT = 'write a path such as "/run/web.sock", a port, or an address with its port such as "127.0.0.1:8080"'


class ListenKind(Enum):
    STREAM = "stream"
    DATAGRAM = "datagram"
    SEQUENTIAL_PACKET = "sequential-packet"
    FIFO = "fifo"


class AddressFamily(Enum):
    UNIX = "unix"
    INET = "inet"
    INET6 = "inet6"
    VSOCK = "vsock"


class Activation(Enum):
    """When the process of a unit with sockets is made."""

    START = "start"
    DEMAND = "demand"
    """At the first connection."""


class SocketAddress(Struct, frozen=True):
    """``host`` is a path (``@NAME``: abstract), an address, or a vsock's CID (empty: any); ``port`` 0 for a path."""

    family: AddressFamily
    host: str
    port: int = 0

    def __str__(self) -> str:
        match self.family:
            case AddressFamily.UNIX:
                return self.host
            case AddressFamily.INET:
                return f"{self.host}:{self.port}"
            case AddressFamily.INET6:
                return f"[{self.host}]:{self.port}"
            case AddressFamily.VSOCK:
                return f"vsock:{self.host}:{self.port}"


class Listen(Struct, frozen=True):
    """One thing that is listened on; a FIFO has a path as its address."""

    kind: ListenKind
    address: SocketAddress


class Socket(Struct, frozen=True):
    """One ``[[socket]]``, with all its addresses in the order of descriptors."""

    name: str
    listens: tuple[Listen, ...] = ()
    backlog: int = 2**31 - 1
    mode: int = 0o666
    user: str | None = None
    group: str | None = None
    accept: bool = False
    max_connections: int = 64
    reuse_port: bool = False
    trigger_interval_ns: int | None = 2 * SECOND_NS
    trigger_burst: int = BURST


class Sockets(Struct, frozen=True):
    """All ``[[socket]]`` of a unit, and what follows from a connection."""

    sockets: tuple[Socket, ...] = ()
    activation: Activation = Activation.DEMAND
    idle_exit_ns: int | None = None
    """A unit that nothing has come to for so long is ended, and listens on; None: never."""

    @property
    def is_on_demand(self) -> bool:
        return self.activation is Activation.DEMAND

    @property
    def accepts(self) -> bool:
        """Whether each connection has an instance of its own."""
        return any(each.accept for each in self.sockets)

    @property
    def connections_max(self) -> int:
        return min((each.max_connections for each in self.sockets), default=0)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(listen.address) for each in self.sockets for listen in each.listens)


def parse_socket_address(value: object) -> SocketAddress:
    """Read an address: ``/PATH``, ``@NAME``, ``PORT``, ``ADDRESS:PORT``, ``[ADDRESS]:PORT``, ``vsock:CID:PORT``.

    Raises:
        BadValue: it is none.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str):
        raise BadValue(f"{value!r} is not an address", _HINT)
    if text.startswith(("/", "@")):
        return SocketAddress(AddressFamily.UNIX, _path(text))
    if re.fullmatch(r"-?[0-9]+", text):
        return SocketAddress(AddressFamily.INET6, "::", _port(text, text))
    if (match := re.fullmatch(r"vsock:([0-9]*):([0-9]+)", text)) is not None:
        cid, port = parse_digits(match[1] or "0"), parse_digits(match[2])
        if cid is None or port is None or max(cid, port) > _U32_MAX:
            raise BadValue(f"{text[:60]!r} is not an address", "the numbers of a vsock have 32 bits")
        return SocketAddress(AddressFamily.VSOCK, match[1], port)
    match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]+)", text)
    if match is None:
        raise BadValue(f"{text!r} is not an address", _HINT)
    try:
        if match["six"] is not None:
            host = str(ipaddress.IPv6Address(match["six"]))
            return SocketAddress(AddressFamily.INET6, host, _port(match["port"], text))
        return SocketAddress(AddressFamily.INET, str(ipaddress.IPv4Address(match["four"])), _port(match["port"], text))
    except ipaddress.AddressValueError:
        raise BadValue(f"{text!r} is not an address", _HINT) from None


def _port(digits: str, text: str) -> int:
    port = parse_digits(digits)
    if port is None or not 1 <= port <= _PORT_MAX:
        raise BadValue(f"there is no port {digits[:20]} ({text[:60]})", f"ports are 1 to {_PORT_MAX}")
    return port


def _path(text: str) -> str:
    if len(text) < 2 or not text.isprintable() or text.endswith("/"):
        raise BadValue(f"{text!r} is not the path of a socket", "write an absolute path, or @NAME of an abstract one")
    if len(text.encode()) > PATH_MAX:
        raise BadValue(f"{text!r} is too long for a socket", f"the kernel allows {PATH_MAX} bytes")
    return text


def connection_name(unit: str, number: int, peer: str) -> str:
    """Return the name of the instance for connection ``number`` of a unit; ``peer`` says who is there."""
    label = re.sub(r"[^A-Za-z0-9:_.-]", "", peer) or "local"
    return f"{unit}{'-' if '@' in unit else '@'}{number}-{label}"


def is_connection_name(name: str) -> bool:
    """Tell whether a name is such a one: nobody chose it, and it is not used again."""
    return re.fullmatch(r".+@(.+-)?[0-9]+-([0-9A-Fa-f:.]+:[0-9]+|[0-9]+-[0-9]+|local)(-[0-9]+)?", name) is not None


def shared_addresses(units: Iterable[tuple[str, Sockets | None]]) -> list[tuple[str, str, str]]:
    """Return (unit, other unit, address) for each address that two units listen on, unless both share the port."""
    seen: dict[tuple[ListenKind, str], tuple[str, bool]] = {}
    found = []
    for name, sockets in units:
        for each in () if sockets is None else sockets.sockets:
            for listen in each.listens:
                key = (listen.kind, str(listen.address))
                other, shares = seen.setdefault(key, (name, each.reuse_port))
                if other != name and not (shares and each.reuse_port):
                    found.append((name, other, key[1]))
    return found

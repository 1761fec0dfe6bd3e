"""Who is at the other end of a control connection: the kernel's credentials, and the keeper's word for whose process
it is.

Theory of operation
-------------------
SO_PEERCRED tells uid, gid and pid of whoever connected, as they were then. The pid is a number that may be reused as
soon as that process is gone, and a process of a unit that could make us look at another process would be judged by
its uid: as admin, often. So the pid is believed only while the process that connected is still there, before and
after the keeper was asked about it: by SO_PEERPIDFD, which the kernel took at the connection (Linux 6.5), else by a
start time that is before the connection was accepted. A peer whose process is gone is treated as a stray, whatever
its uid: it may ping, and connect again.

A unit is believed of descendants of the keeper only. Elsewhere a unit is what a process says of itself (the tag and the
environment are its own to set), which must not lend it the unit's rights, nor may it keep its uid's: it is a stray, as
is a descendant without a unit.

A process whose parents are gone is the keeper's child and as such tells of no descent but from the keeper. Its cgroup
says whose it is where processes cannot choose that (as root); elsewhere its tag does, which it may have made its own
to be taken for another unit: its unit is *claimed*, and no rule about that unit speaks of it.

A pid of 0 is a process outside our pid namespace, which cannot descend from the keeper; its uid is judged.

Source: unix(7), socket(7); Linux 6.5, net/core/sock.c, sk_getsockopt.
"""

import asyncio
import errno
import os
import pwd
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from supervisord_py.host.facade import Peer
from supervisord_py.model.names import base_unit

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
COMMAND_MAX = 256
"""Characters of the peer's command line that are kept for records."""

NAMES_MAX = 256
"""User names that are remembered, until the manager is restarted."""

_names: dict[int, str] = {}
_UNSET_UID = 0xFFFF_FFFF
_GETSOCKOPT_MAX = 1024
"""The largest buffer that Python's getsockopt offers: 256 groups; who has more is looked up in the group database."""


class Ownership(Protocol):
    """The keeper's answer: the unit that a pid is a process of, or that it descends from the keeper without one."""

    @property
    def unit(self) -> str | None: ...

    @property
    def stray(self) -> bool: ...

    @property
    def descendant(self) -> bool: ...

    @property
    def claimed(self) -> bool: ...


Whose = Callable[[int], Awaitable[Ownership]]


class Credentials(Struct, frozen=True):
    """What the kernel knows of a peer without a look at any process; taken at accept. ``boot_ns`` is the time of
    that."""

    uid: int
    gid: int
    pid: int
    boot_ns: int


def read_credentials(connection: socket.socket) -> Credentials:
    """Read SO_PEERCRED of a Unix stream connection."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Credentials(uid & 0xFFFF_FFFF, gid & 0xFFFF_FFFF, pid, now_ns)


async def identify(connection: socket.socket, credentials: Credentials, whose: Whose) -> Peer:
    """Return who the peer is.

    Args:
        connection: The accepted socket; it is asked for more than ``credentials``, and neither read nor written.
        credentials: What was read when it was accepted.
        whose: Asks the keeper.
    """
    user = _names.get(credentials.uid)
    if user is None:
        # A look-up may wait for a directory server; the manager does not.
        user = await asyncio.to_thread(user_name, credentials.uid)
        if len(_names) < NAMES_MAX:
            _names[credentials.uid] = user
    groups = _peer_groups(connection)
    if groups is None:
        groups = tuple(await asyncio.to_thread(os.getgrouplist, user, credentials.gid)) if user else ()
    peer = Peer(uid=credentials.uid, gid=credentials.gid, pid=credentials.pid, groups=groups, user=user)
    if credentials.pid <= 0:
        return peer
    witness = _Witness.open(connection, credentials)
    if witness is None:
        return _gone(peer)
    try:
        owner = await whose(credentials.pid)
        login_uid, command = read_login_uid(credentials.pid), read_command(credentials.pid)
        started_ns = read_start_ns(credentials.pid)
        if not witness.is_there():
            return _gone(peer)
    finally:
        witness.close()
    # A process beside a unit's life is that unit; a hook about no unit is nobody.
    unit = None if owner.unit is None else base_unit(owner.unit)
    return Peer(
        uid=peer.uid,
        gid=peer.gid,
        pid=peer.pid,
        groups=peer.groups,
        user=peer.user,
        login_uid=login_uid,
        command=command,
        unit=(unit or None) if owner.descendant else None,
        stray=owner.stray or owner.descendant is not (owner.unit is not None) or unit == "",
        claimed=owner.claimed,
        started_ns=started_ns,
    )


def is_there(connection: socket.socket, credentials: Credentials) -> bool:
    """Say whether the process that connected is still the one that has its pid."""
    witness = _Witness.open(connection, credentials)
    if witness is None:
        return False
    witness.close()
    return True


class _Witness:
    """Holds on to the process that connected: a pidfd, and on old kernels the start time beside it."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    @classmethod
    def open(cls, connection: socket.socket, credentials: Credentials) -> "_Witness | None":
        """Return the witness, or None when the process that connected is gone."""
        try:
            return cls(connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                return None
        try:
            witness = cls(os.pidfd_open(credentials.pid))
        except OSError:
            return None
        started_ns = read_start_ns(credentials.pid)
        if started_ns is None or started_ns > credentials.boot_ns or not witness.is_there():
            witness.close()
            return None
        return witness

    def is_there(self) -> bool:
        """Whether the process has not ended: a pidfd becomes readable when it does."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        os.close(self._pidfd)


def user_name(uid: int) -> str:
    """Return the name of a uid, empty when there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


def read_login_uid(pid: int) -> int | None:
    """Return the uid that the session of ``pid`` logged in with, None when it has none or it cannot be known."""
    try:
        login_uid = int(Path(f"/proc/{pid}/loginuid").read_text())
    except (OSError, ValueError):
        return None
    return None if login_uid == _UNSET_UID else login_uid


def read_command(pid: int) -> str:
    """Return the command line of ``pid``, cut to ``COMMAND_MAX`` characters; empty when it cannot be known."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4 * COMMAND_MAX)
    except OSError:
        return ""
    return words.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")[:COMMAND_MAX]


def read_start_ns(pid: int) -> int | None:
    """Return when ``pid`` was started, in ns on the boot clock (the kernel counts in ticks), None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _peer_groups(connection: socket.socket) -> tuple[int, ...] | None:
    """Return the supplementary groups as they were at the connection; None when the kernel will not say."""
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GETSOCKOPT_MAX)
    except OSError:
        return None
    return tuple(gid for (gid,) in struct.iter_unpack("I", packed))


def _gone(peer: Peer) -> Peer:
    return Peer(uid=peer.uid, gid=peer.gid, pid=peer.pid, groups=peer.groups, user=peer.user, stray=True, gone=True)

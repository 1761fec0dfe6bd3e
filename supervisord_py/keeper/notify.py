"""A notify socket for each unit: who may speak is the kernel's word for the sender, and a full queue makes it wait."""

import array
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from supervisord_py.keeper.child import close_elsewhere
from supervisord_py.keeper.follow import Follower
from supervisord_py.keeper.inventory import Inventory, Unit, read, read_stat
from supervisord_py.keeper.loop import NOTIFY, Loop
from supervisord_py.keeper.protocol import NOTIFY_QUEUE_MAX
from supervisord_py.keeper.sockets import Sockets

DATAGRAM_MAX = 4096
"""Bytes; longer datagrams are dropped (systemd, NOTIFY_BUFFER_MAX)."""
SPENT_MAX = 64
_ROOM = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 253)


def make_folder(folder: str) -> None:
    """Make the folder of all sockets if it is gone: a logout may have taken it with everything in it."""
    os.makedirs(os.path.dirname(folder), 0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
    os.makedirs(folder, 0o711, exist_ok=True)


class Mailbox:
    """A bound socket; with ``fd`` the one that an image of the keeper before this one has bound."""

    def __init__(self, path: str, fd: int | None = None, *, mode: int = 0o666) -> None:
        self.path = path
        if fd is not None:
            self.socket = socket.socket(fileno=fd)
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.socket.bind(path)
            os.chmod(path, mode)
        self.access = "none"
        self.depth = int(read("/proc/sys/net/unix/max_dgram_qlen") or 1000) + 2
        """No more datagrams can wait in it: reading as many reads all that was sent before, whoever goes on sending."""
        self.unacknowledged = 0

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(OSError):  # gone already: a cleaner of old files, a logout
            os.unlink(self.path)


class Notify:
    """Reads the mailboxes: ``put`` queues facts, ``before_put`` tells who runs before that."""

    def __init__(
        self, folder: str, loop: Loop, inventory: Inventory,
        put: Callable[..., bool], before_put: Callable[[Unit], None], follower: Follower, sockets: Sockets,
    ) -> None:  # fmt: skip
        self._folder, self._loop, self._inventory = folder, loop, inventory
        self._put, self._before_put, self._follower, self._sockets = put, before_put, follower, sockets
        self._foreign: list[int] = []
        """Descriptors that came with a notification."""
        self._spent: list[int] = []
        """Those that are to be closed elsewhere: many by one process, or a flood of them would have us fork all day."""

    def open(self, unit: Unit, access: str) -> str:
        """Return the path of the unit's mailbox, made when it has none or when its file is gone."""
        if unit.notify is not None and unit.main is None and not os.path.exists(unit.notify.path):
            self.drain(unit)
            self.close(unit)
        if unit.notify is None:
            make_folder(self._folder)
            # 96 random bits: who does not know the name cannot send. No more, because a socket's path has 107 bytes.
            unit.notify = Mailbox(f"{self._folder}/{os.urandom(12).hex()}")
            self.resume(unit)
        unit.notify.access = access
        return unit.notify.path  # type: ignore[no-any-return]

    def unpack(self, unit: Unit, packed: Sequence[Any]) -> None:
        """Take over the mailbox that the image before had for the unit."""
        path, fd, access, unacknowledged = packed
        unit.notify = Mailbox(path, fd)
        unit.notify.access, unit.notify.unacknowledged = access, unacknowledged
        self.resume(unit)

    def close(self, unit: Unit) -> None:
        box, unit.notify = unit.notify, None
        if box is not None:
            self._loop.unwatch(box.socket.fileno())
            box.close()

    def resume(self, unit: Unit) -> None:
        if unit.notify is not None and unit.notify.unacknowledged < NOTIFY_QUEUE_MAX:
            self._loop.watch(unit.notify.socket.fileno(), NOTIFY, lambda: self.drain(unit, full=False))

    def acknowledged(self, unit: Unit) -> None:
        """The manager is done with a notification of the unit: there is room for another."""
        if unit.notify is not None:
            unit.notify.unacknowledged = max(0, unit.notify.unacknowledged - 1)
            self.resume(unit)

    def drain(self, unit: Unit, *, full: bool = True) -> None:
        """Read what is in the unit's mailbox: all of it when ``full``, else while its queue has room."""
        box: Mailbox | None = unit.notify
        for _ in range(box.depth if box is not None else 0):
            assert box is not None
            if not full and box.unacknowledged >= NOTIFY_QUEUE_MAX:
                self._loop.unwatch(box.socket.fileno())
                break
            try:
                data, ancillary, flags, _ = box.socket.recvmsg(DATAGRAM_MAX, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                break
            sender = (0, 0, 0)
            for _, kind, content in ancillary:
                if kind == socket.SCM_RIGHTS:
                    self._foreign += array.array("i", content[: len(content) & ~3])
                elif kind == socket.SCM_CREDENTIALS:
                    sender = struct.unpack("=iII", content[:12])
            if not flags & socket.MSG_TRUNC:
                # What goes wrong with one costs that one: those after it are still read before the exit is told.
                self._loop.guard(partial(self._receive, unit, data.removesuffix(b"\0"), *sender[:2]), of_unit=True)
            self._loop.guard(self._close_foreign, of_unit=True)
            if len(self._spent) >= SPENT_MAX:
                self._loop.guard(self._close_spent, of_unit=True)
        if self._spent:
            self._loop.guard(self._close_spent, of_unit=True)

    def _close_foreign(self) -> None:
        """Keep nothing else. The closing is the answer to BARRIER=1: what came before it is in the stream."""
        while self._foreign:
            fd = self._foreign.pop()
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.close(fd)  # the one that cannot keep us waiting, and the one that a barrier is
            else:
                self._spent.append(fd)

    def _close_spent(self) -> None:
        self._inventory.managers.add(close_elsewhere(self._spent))
        self._spent = []

    def _may_send(self, unit: Unit, access: str, pid: int, uid: int) -> bool:
        spawn = self._inventory.spawns.get(pid)
        if pid <= 0 or access == "none":
            return False
        if access == "main":
            return spawn is not None and spawn.unit is unit and spawn.role == "main" and pid == spawn.main_pid
        if spawn is not None or access == "exec":
            return spawn is not None and spawn.unit is unit
        owner = self._inventory.whose(pid)[0] if read_stat(pid) is not None else None
        # Who is gone by now, before or while we looked, is told by the mailbox that it knew and by its user.
        return owner is unit or (owner is None and read_stat(pid) is None and uid == unit.uid)

    def _receive(self, unit: Unit, data: bytes, pid: int, uid: int) -> None:
        self._before_put(unit)
        if not self._may_send(unit, unit.notify.access, pid, uid):
            return
        lines = (line.partition("=") for line in data.decode("utf-8", "replace").split("\n"))
        fields = {name: value for name, separator, value in lines if separator and name}
        if b"\0" in data or not fields or fields.keys() == {"BARRIER"}:
            return
        if fields.get("FDSTORE") == "1":
            self._foreign = self._sockets.store(unit.name, unit.stores, self._foreign, fields)
        if fields.get("FDSTOREREMOVE") == "1":
            self._sockets.remove(unit.name, fields.get("FDNAME", ""))
        spawn = self._inventory.spawns.get(pid)
        fact: dict[str, Any] = {"fact": "notify", "unit": unit.name, "id": spawn.id if spawn else None, "pid": pid}
        fact |= {"fields": fields, "main_pid": None, "refused": None}
        if (named := fields.get("MAINPID")) is not None:
            fact["refused"] = self._follow(unit, named, uid)
            fact["main_pid"] = int(named) if fact["refused"] is None else None
        if self._put(fact, unit.name):
            unit.notify.unacknowledged += 1

    def _follow(self, unit: Unit, named: str, uid: int) -> str | None:
        """Let the unit's main process be the one that ``MAINPID=`` named; return why not."""
        if not (named.isascii() and named.isdigit() and len(named) < 10):
            return f"MAINPID={named[:20]} is not a process that can be a main process"
        if unit.main is None:
            return f"MAINPID={named} replaces no running main process"
        return self._follower.move(unit.main, int(named), is_trusted=uid == 0)

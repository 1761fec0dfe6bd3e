"""Main processes that we did not make: found, checked, held by pidfd, and their end learned.

A process that is our child is reaped as any other. Another one is held by a pidfd, which tells that it has ended. How,
says /proc as long as its parent has not reaped it, to those who may look into it; and from Linux 6.15 on the pidfd once
it is reaped.
"""

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from supervisord_py.keeper.inventory import ME, Inventory, Spawn, Stat, Unit, read, read_stat
from supervisord_py.keeper.loop import PIDFD, Loop

PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=Q52xi")
"""``struct pidfd_info`` (linux/pidfd.h): mask first, the wait status last."""
UNREAPED_NS = 500_000_000
"""How long a process that we may not look into may wait for its parent before its status counts as unknown."""
CAP_SYS_PTRACE = 19
_TICKS = os.sysconf("SC_CLK_TCK")


def read_status(pidfd: int) -> int | None:
    """Return the wait status of a process that was reaped; None where the kernel does not tell."""
    info = bytearray(_INFO.size)
    _INFO.pack_into(info, 0, PIDFD_INFO_EXIT, 0)
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
        mask, status = _INFO.unpack(info)
        return status if mask & PIDFD_INFO_EXIT else None
    return None


def read_unreaped(pid: int) -> int | None:
    """Return the wait status of a zombie (proc_pid_stat(5), ``exit_code``); None where we are shown 0 for a secret.

    We may look into what runs wholly as we do, or into all (ptrace(2), access mode checking).
    """
    status, own = read(f"/proc/{pid}/status"), read("/proc/self/status")
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) < 50 or fields[0] != b"Z":
        return None
    ids = [set(status.partition(name)[2].split()[:4]) for name in (b"Uid:", b"Gid:")]
    is_ours = ids == [{b"%d" % os.geteuid()}, {b"%d" % os.getegid()}]
    may_all = int(own.partition(b"CapEff:")[2].split()[0], 16) >> CAP_SYS_PTRACE & 1
    return int(fields[49]) if is_ours or may_all else None


def start_ns(stat: Stat) -> int:
    """Return when a process was started, on the monotonic clock."""
    age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - stat.start * 1_000_000_000 // _TICKS
    return time.monotonic_ns() - max(0, age_ns)


class Follower:
    """Lets spawns mean other processes, and holds those of adopted units; ``ended`` takes the unit, the pid and the
    status of one that has ended, ``moved`` a spawn that means another process now."""

    def __init__(
        self, loop: Loop, inventory: Inventory,
        ended: Callable[[Unit, int, int | None], None], moved: Callable[[Spawn], None],
    ) -> None:  # fmt: skip
        self._loop, self._inventory, self._ended, self._moved = loop, inventory, ended, moved

    def request(self, do: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out ``follow``; return the fact that answers it, None when that was told and has ended since."""
        fact = {"fact": "followed", "unit": do["unit"], "id": do["id"], "pid": None, "refused": None}
        known = next((spawn for spawn in self._inventory.spawns.values() if spawn.id == do["id"]), None)
        if known is not None:
            return {**fact, "pid": known.main_pid}
        if self._inventory.has_seen(do["id"]):
            return None
        unit = self._inventory.units.get(do["unit"])
        if unit is None:
            return {**fact, "refused": f"{do['unit']} has no process"}
        self._inventory.scan()
        pid = do.get("pid")
        if pid is None:
            # A child keeps its pid and what it is until we reap it.
            found = [at for at in unit.children if at not in self._inventory.spawns and _lives(at)]
            if len(found) != 1:
                return {**fact, "refused": f"{len(found) or 'no'} processes of {unit.name} could be the main process"}
            (pid,) = found
        spawn = Spawn(do["id"], unit, "main", pid, 0)
        spawn.invocation = unit.invocations[-1] if unit.invocations else None
        refused = self.move(spawn, pid, is_trusted=bool(do.get("trusted")))
        if refused is not None:
            return {**fact, "refused": refused}
        self._inventory.is_known(spawn.id)
        unit.main, unit.told_empty = spawn, False
        return {**fact, "pid": pid}

    def move(self, main: Spawn, pid: int, *, is_trusted: bool) -> str | None:
        """Let ``main`` be the process ``pid`` from now on; return why not.

        It must belong to the unit; ``is_trusted``: or to no unit and not to us at all.
        """
        unit, seen = main.unit, read_stat(pid) if pid > 1 else None
        if pid <= 1 or pid == ME or pid in self._inventory.managers:
            return f"process {pid} cannot be a main process"
        if seen is None or seen.state in "ZX":
            return f"process {pid} is not alive"
        owner, stray, *_ = self._inventory.whose(pid)
        if owner is not unit and (not is_trusted or owner is not None or stray):
            return f"process {pid} belongs to {f'unit {owner.name}' if owner else 'no unit'}, not to {unit.name}"
        if self._inventory.spawns.get(pid, main) is not main:
            return f"process {pid} is another command of the unit"
        if not (pid in self._inventory.children or pid in unit.followed or self._hold(unit, pid, seen)):
            return f"process {pid} is not alive"
        self._inventory.spawns[pid] = main
        main.main_pid, main.main_start = pid, seen.start
        main.started_ns = main.started_ns or start_ns(seen)
        self._moved(main)
        return None

    def gather(self, units: Iterable[Unit]) -> None:
        """Find and hold every process of the adopted ones among ``units``. Raises OSError when nobody can look now."""
        wanted = {id(unit) for unit in units if unit.is_adopted}
        found = bool(wanted)
        while found:  # what forks and ends while we look has a child that the next look finds
            found = False
            held = {pid for unit in self._inventory.units.values() for pid in unit.followed}
            held |= self._inventory.children.keys() | self._inventory.managers | {ME}
            for pid in set(map(int, filter(str.isdigit, os.listdir("/proc")))) - held:
                owner = self._inventory.marked(pid)
                if owner is not None and id(owner) in wanted and (seen := read_stat(pid)) and seen.state not in "ZX":
                    found |= self._hold(owner, pid, seen)

    def _hold(self, unit: Unit, pid: int, seen: Stat) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return False
        if (again := read_stat(pid)) is None or again.start != seen.start:
            os.close(pidfd)
            return False
        self.watch(unit, pid, pidfd)
        return True

    def watch(self, unit: Unit, pid: int, pidfd: int) -> None:
        unit.followed[pid] = pidfd
        self._loop.watch(pidfd, PIDFD, partial(self._look, unit, pid, pidfd))

    def let_go(self, unit: Unit, pid: int) -> None:
        """The process is over with: close what held it, if anything did."""
        if (pidfd := unit.followed.pop(pid, None)) is not None:
            self._loop.set_timer(f"unreaped {pid}", None, _nothing)
            self._loop.unwatch(pidfd)
            os.close(pidfd)

    def _look(self, unit: Unit, pid: int, pidfd: int) -> None:
        """It has ended. A child is reaped; another's status is told by /proc before its parent reaps it, by its pidfd
        after that."""
        status = read_unreaped(pid)
        if status is None:
            status = read_status(pidfd)
        if status is None and pid not in self._inventory.children and read_stat(pid) is not None:
            if not self._loop.has_timer(f"unreaped {pid}"):
                self._loop.watch(pidfd, PIDFD, partial(self._look, unit, pid, pidfd), hang_up=True)
                end = partial(self._ended, unit, pid, None)
                self._loop.set_timer(f"unreaped {pid}", time.monotonic_ns() + UNREAPED_NS, end)
            return
        self._ended(unit, pid, status)


def _lives(pid: int) -> bool:
    return (stat := read_stat(pid)) is not None and stat.state not in "ZX"


def _nothing() -> None:
    pass

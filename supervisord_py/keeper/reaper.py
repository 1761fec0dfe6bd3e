"""Carries out requests on processes, and reaps: every exit is told once.

Laws: nothing raises between the making of a process and its booking, nor keeps an exit from being reaped and told; what
goes wrong with one unit stays with it. A unit's mailbox is read to its end before an exit of it is queued; orphans are
looked for once after all exits of a wake-up, and then it is decided which trees are empty; a unit being killed is swept
again at each exit in it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from resource import struct_rusage
from typing import Any

from supervisord_py.keeper.book import Book
from supervisord_py.keeper.child import EXIT_CODES, Spawner, SpawnError, read_report
from supervisord_py.keeper.follow import Follower
from supervisord_py.keeper.inventory import Inventory, Spawn, Unit, read_stat, walk
from supervisord_py.keeper.loop import SPAWN, Loop
from supervisord_py.keeper.notify import Notify
from supervisord_py.keeper.sockets import Sockets

REAPED_A_TURN = 500


class Reaper:
    def __init__(
        self, loop: Loop, inventory: Inventory, spawner: Spawner, put: Callable[..., bool], folder: str,
        send_outputs: Callable[[list[tuple[str, int]]], None], manager_ended: Callable[[int, int], None],
        book: Book,
    ) -> None:  # fmt: skip
        self._loop, self._inventory, self._spawner, self._put = loop, inventory, spawner, put
        self._send_outputs, self._manager_ended = send_outputs, manager_ended
        self._book = book
        self.follower = Follower(loop, inventory, self._followed_ended, book.spawn)
        self.sockets = Sockets(loop, spawner, put, inventory.managers)
        self.notify = Notify(folder, loop, inventory, put, self._resolve_all, self.follower, self.sockets)
        self._ended: list[tuple[Unit, dict[str, Any]]] = []
        self._next_look_ns = 0
        """When units that a dead keeper left may be looked for again."""
        self.is_behind = False
        """More exits wait than one turn takes."""

    def pack(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the exits that are reaped and not told yet."""
        return [(unit.name, fact) for unit, fact in self._ended]

    def unpack(self, packed: dict[str, Any], ended: list[tuple[str, dict[str, Any]]]) -> None:
        """Go on with the inventory that an image before this one ``packed``."""
        units = self._inventory.units
        for given in packed["units"]:
            if given["notify"] is not None:
                box = partial(self.notify.unpack, units[given["name"]], given["notify"])
                self._loop.guard(box, of_unit=True)
            for pid, pidfd in list(units[given["name"]].followed.items()):
                self.follower.watch(units[given["name"]], pid, pidfd)
        for spawn in [spawn for unit in units.values() for spawn in unit.starting]:
            self._watch_report(spawn)
        self._ended = [(units.get(name) or Unit(name), fact) for name, fact in ended]
        self.is_behind = True

    def request(self, do: dict[str, Any]) -> None:
        unit = self._inventory.units.get(do["unit"])
        match do["do"]:
            case "spawn":
                if not self._inventory.is_known(do["id"]):
                    self._spawn(do)
            case "listen" | "await" | "close":
                self.sockets.request(do)
            case "follow":
                if (fact := self.follower.request(do)) is not None:
                    self._put(fact, do["unit"])
            case "signal" if unit is not None:
                self._signal(unit, do)
            case "kill" if unit is not None:
                self.kill(unit, do["signal"])
            case "release" if unit is not None:
                self.look([unit])
                if unit.is_empty:
                    self._release(unit)
                elif unit.output is not None:
                    self._send_outputs([(unit.name, unit.output[0])])

    def _spawn(self, do: dict[str, Any]) -> None:
        started_ns = time.monotonic_ns()
        name = str(do["unit"])
        try:
            unit = self._inventory.units.setdefault(name, Unit(name))
            spawn = Spawn(do["id"], unit, do["role"], 0, started_ns)
            spawn.degraded = list(do.get("degraded") or ())
            spawn.cgroups, invocation = list(do.get("cgroups") or ()), do["env"].get("INVOCATION_ID")
            made = self._spawner.spawn(spawn.id, do, *self._prepare(unit, do))
        except SpawnError as error:
            self._failed(do["id"], error, name)
            return
        except OSError as error:
            self._failed(do["id"], SpawnError("fds", error.errno or 0, str(error)), name)
            return
        except Exception as error:  # noqa: BLE001  nothing runs yet, and a request unanswered is a unit that hangs
            self._failed(do["id"], SpawnError("request", 0, f"{type(error).__name__}: {error}"), name)
            return
        # The process is there: from here to its booking nothing may raise.
        spawn.pid = spawn.main_pid = made.pid
        spawn.tagged, spawn.report = made.tagged, made.report
        self._inventory.add(spawn, invocation)
        self._book.spawn(spawn)
        if spawn.role == "main":
            unit.main = spawn
        if spawn.report is None:
            self._running(spawn)
            return
        unit.starting.append(spawn)
        self._watch_report(spawn)

    def _watch_report(self, spawn: Spawn) -> None:
        assert spawn.report is not None
        watch = partial(self._loop.watch, spawn.report, SPAWN, lambda: self._resolve(spawn))
        if not self._loop.guard(watch, of_unit=True):
            os.kill(spawn.pid, signal.SIGKILL)  # it could start without our knowing: its end is known

    def _prepare(self, unit: Unit, do: dict[str, Any]) -> tuple[int, dict[str, str], list[int]]:
        """Return the unit's output for its processes, what is added to the environment, and what is handed over."""
        fds, env = self.sockets.handed(do)
        unit.stores = do.get("store") or 0
        unit.cgroups.update({folder: False for folder in do.get("cgroups") or () if folder not in unit.cgroups})
        unit.killing = None
        is_own = not do.get("inherit") and not do.get("discard")
        if unit.output is None and is_own:
            unit.output = self._open_output(unit.name)
        if not do.get("privileged"):
            unit.uid = os.geteuid() if do.get("uid") is None else do["uid"]
            if os.geteuid() == 0 and unit.output is not None:
                os.fchown(unit.output[1], unit.uid, -1)
        out = unit.output[1] if unit.output is not None and is_own else self._spawner.null if do.get("discard") else -1
        access = do.get("notify", "none")
        if access != "none":
            env["NOTIFY_SOCKET"] = self.notify.open(unit, access)
        return out, env, fds

    def _open_output(self, name: str) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        fds = [reader, writer]
        try:
            # Opened again for both directions: the keeper holds a reader, so no death of ours is a SIGPIPE.
            both = os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_CLOEXEC)
            fds.append(both)
            self._spawner.check_room(both)
            self._send_outputs([(name, reader)])
        except BaseException:  # whatever it is, nothing of it may stay open
            for fd in fds:
                os.close(fd)
            raise
        os.close(writer)
        return reader, both

    def _failed(self, spawn_id: int, error: SpawnError, unit: str) -> None:
        fact = {"fact": "spawn-failed", "id": spawn_id, "step": error.step, "code": EXIT_CODES[error.step]}
        self._put({**fact, "errno": error.errno, "detail": error.detail}, unit)

    def _running(self, spawn: Spawn) -> None:
        spawn.unit.told_empty, spawn.is_told = False, True
        fact = {"fact": "spawned", "id": spawn.id, "pid": spawn.pid, "tagged": spawn.tagged}
        if spawn.degraded:
            fact["degraded"] = spawn.degraded
        self._put(fact, spawn.unit.name)
        if spawn.cgroups:
            self._inventory.learn_groups(spawn)

    def _resolve_all(self, unit: Unit) -> None:
        """Exec closes the report before the program can say a word: that it runs is told before what it says."""
        for spawn in list(unit.starting):
            self._resolve(spawn)

    def _resolve(self, spawn: Spawn) -> None:
        """Read what a forked child said: nothing, then it runs its program; a failed step is told when it is reaped."""
        if spawn.report is None:
            return
        while spawn.failure is None:
            try:
                report = os.read(spawn.report, 65536)
            except BlockingIOError:
                return
            if not report:
                break
            degraded, spawn.failure = read_report(report)
            spawn.degraded += degraded
        self._loop.unwatch(spawn.report)
        os.close(spawn.report)
        spawn.report = None
        spawn.unit.starting.remove(spawn)
        if spawn.failure is None:
            self._running(spawn)

    def _signal(self, unit: Unit, do: dict[str, Any]) -> None:
        if do["whom"] == "all":
            self.look([unit])
            found = walk(self._inventory.roots(unit))
        else:
            found = {s.main_pid: 0 for s in self._inventory.spawns.values() if s.id == do["id"] and s.unit is unit}
        for number in [do["signal"], *[signal.SIGCONT] * bool(do.get("cont"))]:
            for pid, start in found.items():
                self._send_signal(unit, pid, start, number)

    def _send_signal(self, unit: Unit, pid: int, start: int, number: int) -> None:
        """Signal exactly the process that was seen: our child keeps its pid, another is held and looked at again."""
        with contextlib.suppress(OSError):  # gone already, or another user's: then the manager sees it in the tree
            if pid in unit.children:
                os.kill(pid, number)
            elif pid in unit.followed:
                signal.pidfd_send_signal(unit.followed[pid], number)
            elif pid not in self._inventory.children and pid not in self._inventory.managers:
                pidfd = os.pidfd_open(pid)
                try:
                    if (stat := read_stat(pid)) is not None and stat.start == start:
                        signal.pidfd_send_signal(pidfd, number)
                finally:
                    os.close(pidfd)

    def kill(self, unit: Unit, number: int) -> None:
        """Begin to signal all of a unit: a round now, another at the end of the turn and at each exit in it."""
        unit.killing, unit.signalled = number, set()
        self._book.killing(unit)
        self._inventory.touched[unit.name] = unit
        self._inventory.scan()
        self._sweep(unit, number)

    def _sweep(self, unit: Unit, number: int) -> None:
        for pid, start in walk(self._inventory.roots(unit)).items():
            if number == signal.SIGKILL or (pid, start) not in unit.signalled:
                unit.signalled.add((pid, start))
                self._send_signal(unit, pid, start, number)
        for folder, is_ours in unit.cgroups.items():
            if number == signal.SIGKILL and is_ours:
                # A v1 hierarchy and an old kernel have none: the walk is what kills.
                with contextlib.suppress(OSError), open(f"{folder}/cgroup.kill", "wb", buffering=0) as file:
                    file.write(b"1")

    def look(self, units: Iterable[Unit], *, again: bool = False) -> None:
        """Find the processes that came to the units without our making them.

        Those of adopted units are looked for in all of /proc: for all units at once, and a third of the time at most,
        or a hundred exits would be a hundred passes.
        """
        self._inventory.scan(again=again)
        began_ns = time.monotonic_ns()
        if began_ns >= self._next_look_ns and any(unit.is_adopted for unit in units):
            self.follower.gather(self._inventory.units.values())
            self._next_look_ns = 3 * time.monotonic_ns() - 2 * began_ns

    def _release(self, unit: Unit) -> None:
        self.notify.close(unit)
        output, unit.output = unit.output or (), None
        for fd in output:
            os.close(fd)
        for folder in unit.cgroups:
            for below, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # still in use by somebody else: theirs to remove
                    os.rmdir(below)
        self._inventory.forget(unit)

    def reap(self) -> None:
        """Take the exits there are; ``settle`` tells them."""
        self.is_behind = False
        for _ in range(REAPED_A_TURN):
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            pid = info.si_pid
            # Whatever goes wrong with what it said: who is not reaped is the first of all for ever, and hides the rest.
            self._loop.guard(partial(self._hear_out, pid), of_unit=True)
            _, status, usage = os.wait4(pid, 0)
            if pid in self._inventory.managers:
                self._loop.guard(partial(self._manager_ended, pid, status))
                continue
            unit = self._inventory.children.get(pid, self._inventory.strays)
            self._loop.guard(partial(self._end, pid, unit, status, usage), of_unit=True)
        self.is_behind = True

    def _hear_out(self, pid: int) -> None:
        """Take what a child that has ended said before: whether it started, and its notifications."""
        self._inventory.adopt(pid)
        if pid not in self._inventory.managers:
            spawn = self._inventory.spawns.get(pid)
            if spawn is not None:
                self._resolve(spawn)
            # Of others no exit is told that a notification could come too late for; their unit's queue has its bound.
            self.notify.drain(self._inventory.children[pid], full=spawn is not None)

    def _followed_ended(self, unit: Unit, pid: int, status: int | None) -> None:
        """A process that we follow has ended: it is reaped if it became our child, else its status is as good as
        the kernel tells."""
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._loop.guard(partial(self.notify.drain, unit), of_unit=True)
            self._end(pid, unit, status, None)
        else:
            self.reap()

    def _end(self, pid: int, unit: Unit, status: int | None, usage: struct_rusage | None) -> None:
        spawn = self._inventory.remove(pid, unit)
        if spawn is not None and unit.main is spawn and pid == spawn.main_pid:
            unit.main = None
        exit_code = None if status is None else os.waitstatus_to_exitcode(status)
        fact: dict[str, Any] = {
            "pid": pid, "code": exit_code if exit_code is not None and exit_code >= 0 else None,
            "signal": -exit_code if exit_code is not None and exit_code < 0 else None,
            "core": status is not None and os.WCOREDUMP(status),
        }  # fmt: skip
        if unit is self._inventory.strays and pid in self._inventory.untold:
            self._inventory.untold.discard(pid)
        elif unit is self._inventory.strays:
            self._put({"fact": "stray-exited", **fact})
        elif spawn is not None and spawn.failure is not None:
            self._failed(spawn.id, spawn.failure, unit.name)
        elif spawn is not None:
            fact |= {"fact": "exited", "id": spawn.id, "main": pid == spawn.main_pid}
            fact["runtime_ms"] = (time.monotonic_ns() - spawn.started_ns) // 1_000_000
            fact["rusage"] = _rusage(usage) if usage is not None else {}
            self._ended.append((unit, fact))
            self._book.ended(unit, fact)
        self.follower.let_go(unit, pid)

    def settle(self) -> None:
        """Find the new orphans, tell the exits with whether their tree is empty, and go on killing.

        What could not be done stays in ``touched``, to be done at the next call.
        """
        if not self._inventory.touched:
            return
        waits = time.monotonic_ns() < self._next_look_ns
        later = {name: unit for name, unit in self._inventory.touched.items() if unit.is_adopted and waits}
        # Raises when nobody can look now: then nothing is said yet of whose tree is empty, and it is tried again.
        self.look(list(self._inventory.touched.values()), again=True)
        touched, self._inventory.touched = self._inventory.touched, later
        touched = {name: unit for name, unit in touched.items() if name not in later}
        ended = [(unit, fact) for unit, fact in self._ended if unit.name not in later]
        self._ended = [(unit, fact) for unit, fact in self._ended if unit.name in later]
        last = {unit.name: fact for unit, fact in ended}
        for unit, fact in ended:
            fact["tree_empty"] = unit.told_empty = unit.is_empty and fact is last[unit.name]
            self._put(fact, unit.name)
        for unit in touched.values():
            if unit.is_empty:
                unit.killing, unit.is_adopted = None, False
                self._inventory.forget_lives(unit)
                if not unit.told_empty and unit is not self._inventory.strays:
                    unit.told_empty = True
                    self._put({"fact": "tree-empty", "unit": unit.name}, unit.name)
            elif unit.killing is not None and not self._loop.guard(
                partial(self._sweep, unit, unit.killing), of_unit=True
            ):
                self._inventory.touched[unit.name] = unit


def _rusage(usage: struct_rusage) -> dict[str, int]:
    return {
        "user_us": round(usage.ru_utime * 1e6), "system_us": round(usage.ru_stime * 1e6), "max_rss_kb": usage.ru_maxrss,
        "minor_faults": usage.ru_minflt, "major_faults": usage.ru_majflt, "in_blocks": usage.ru_inblock,
        "out_blocks": usage.ru_oublock, "voluntary_switches": usage.ru_nvcsw, "involuntary_switches": usage.ru_nivcsw,
    }  # fmt: skip

"""Units that stand still: frozen and thawed for ``FreezeUnit`` and ``ThawUnit``, and looked at for ``LookAtProcesses``.

Theory of operation
-------------------
Where the unit has a group with a freezer (cgroup v2) the kernel stops all of it at once. Whatever is not in that group,
and everything where there is none, gets SIGSTOP, in rounds: a process that forks while it is being stopped leaves one
that runs, so the tree is asked for again until two looks in a row find nothing that moves. What cannot be stopped in
``FREEZE_S`` (another user's process, where we are not root) makes the order fail, and everything goes on.

A process that sleeps in the kernel (state D) with a SIGSTOP pending counts as stopped: it does nothing of its own
before it has stopped (the parent of a vfork whose child was stopped would otherwise be waited for in vain).

Each unit has one order at a time: a later one takes the place of an earlier one, which is not answered any more. Both
are safe to do again.

Before a look is answered the keeper has answered twice. It may have been stopped, or busy, with the signs of life of a
unit unread: with the first answer it has read what was there, and that is in the stream before the second.

Source: Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze; proc_pid_stat(5), state; proc_pid_status(5), ShdPnd.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from supervisord_py.core.actions import FreezeUnit, LookAtProcesses, ThawUnit
from supervisord_py.core.events import Event, ProcessesSeen, UnitFrozen
from supervisord_py.host.cgroups import UnitGroups

FREEZE_S = 10.0
"""How long a unit may take to stand still, or to go on."""

ROUND_S = 0.01
ROUND_MAX_S = 0.2
"""The pause between two looks: it begins short and doubles."""

_STOPPED = frozenset({"T", "t"})
_GONE = frozenset({"Z", "X", "x"})
_SIGSTOP_BIT = 1 << (signal.SIGSTOP - 1)

Trees = Callable[[Sequence[str]], Awaitable[dict[str, list[int]]]]


class StandStill:
    """Freezes, thaws and looks.

    Args:
        groups: Where the units' control groups are; None for none.
        trees: Asks the keeper for all processes of units.
        ask: Sends the keeper a request with the next commit.
        submit: Queues an event for the core.
        pid_of: The main process of a unit, None when there is none.
    """

    def __init__(
        self,
        *,
        groups: UnitGroups | None,
        trees: Trees,
        ask: Callable[[dict[str, Any]], None],
        submit: Callable[[Event], None],
        pid_of: Callable[[str], int | None],
    ) -> None:
        self._groups = groups
        self._trees = trees
        self._ask = ask
        self._submit = submit
        self._pid_of = pid_of
        self._orders: dict[str, asyncio.Task[None]] = {}
        self._looks: set[asyncio.Task[None]] = set()

    def freeze(self, action: FreezeUnit) -> None:
        """Let every process of a unit stand still: ``UnitFrozen`` tells."""
        self._begin(action.unit, self._freeze)

    def thaw(self, action: ThawUnit) -> None:
        """Let every process of a unit go on: ``UnitFrozen`` tells."""
        self._begin(action.unit, self._thaw)

    def look(self, action: LookAtProcesses) -> None:
        """Say whether the main process of a unit, or its whole group, is stopped, when everything that the unit has
        said before is told; one that is gone is not."""
        task = asyncio.get_running_loop().create_task(self._look(action))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def close(self) -> None:
        """End what waits: whoever comes next asks again."""
        tasks = [*self._orders.values(), *self._looks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, action: LookAtProcesses) -> None:
        stopped = self._is_stopped(action.unit)
        # The keeper is gone: so are we, in a moment.
        with contextlib.suppress(ConnectionError):
            for _ in range(2):
                await self._trees([])
            stopped = stopped or self._is_stopped(action.unit)
            self._submit(ProcessesSeen(action.look_id, action.unit, stopped))

    def _is_stopped(self, unit: str) -> bool:
        pid = self._pid_of(unit)
        return self._is_frozen(unit) or (pid is not None and read_state(pid) in _STOPPED)

    def _begin(self, unit: str, work: Callable[[str], Awaitable[UnitFrozen]]) -> None:
        if (before := self._orders.pop(unit, None)) is not None:
            before.cancel()

        async def run() -> None:
            # The keeper is gone: so are we, in a moment.
            with contextlib.suppress(ConnectionError):
                self._submit(await work(unit))

        task = asyncio.get_running_loop().create_task(run())
        self._orders[unit] = task
        task.add_done_callback(lambda done: self._orders.pop(unit, None) if self._orders.get(unit) is done else None)

    async def _freeze(self, unit: str) -> UnitFrozen:
        left = await self._repeat(self._freeze_round, unit)
        if not left:
            return UnitFrozen(unit, frozen=True)
        detail = "no process of it is left" if left == [0] else f"process {left[0]} cannot be stopped"
        await self._thaw(unit)
        return UnitFrozen(unit, frozen=False, detail=detail)

    async def _thaw(self, unit: str) -> UnitFrozen:
        left = await self._repeat(self._thaw_round, unit)
        return UnitFrozen(unit, frozen=bool(left), detail=f"process {left[0]} does not go on" if left else "")

    async def _repeat(self, work: Callable[[str], Awaitable[list[int]]], unit: str) -> list[int]:
        """Do rounds until two in a row leave nothing to be done; return what is left when the time is over."""
        loop = asyncio.get_running_loop()
        until_s, pause_s, quiet = loop.time() + FREEZE_S, ROUND_S, 0
        while True:
            left = await work(unit)
            quiet = 0 if left else quiet + 1
            if quiet == 2 or left == [0] or (left and loop.time() > until_s):
                return left
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, ROUND_MAX_S)

    async def _freeze_round(self, unit: str) -> list[int]:
        """Stop what moves; return it, or [0] where there is nothing at all."""
        self._write_freeze(unit, "1")
        pids = (await self._trees([unit])).get(unit, [])
        living = [pid for pid in pids if read_state(pid) not in {None, *_GONE}]
        if not living:
            return [0]
        members = self._members(unit)
        if not self._is_frozen(unit) and (own := members.intersection(living)):
            return sorted(own)
        moving = [pid for pid in living if pid not in members and not stands_still(pid)]
        if moving:
            self._ask({"do": "signal", "unit": unit, "id": None, "whom": "all", "signal": int(signal.SIGSTOP)})
        return moving

    async def _thaw_round(self, unit: str) -> list[int]:
        """Let go on what does not; return it."""
        self._write_freeze(unit, "0")
        pids = (await self._trees([unit])).get(unit, [])
        if pids and self._is_frozen(unit):
            return pids
        # What was in the freezer was not stopped by us, and what a debugger holds (t) is not ours to let go.
        members = self._members(unit)
        still = [pid for pid in pids if pid not in members and (read_state(pid) == "T" or _is_stop_pending(pid))]
        if still:
            self._ask({"do": "signal", "unit": unit, "id": None, "whom": "all", "signal": int(signal.SIGCONT)})
        return still

    # The freezer

    def _file(self, unit: str, name: str) -> Path | None:
        folder = None if self._groups is None else self._groups.folder(unit)
        return None if folder is None else Path(folder, name)

    def _members(self, unit: str) -> set[int]:
        """Return the processes that the freezer of the unit's group holds, or would hold."""
        path = self._file(unit, "cgroup.freeze")
        return (
            set(self._groups.members(unit))
            if self._groups is not None and path is not None and path.exists()
            else set()
        )

    def _write_freeze(self, unit: str, word: str) -> None:
        path = self._file(unit, "cgroup.freeze")
        if path is not None:
            # No such group, an old kernel, or not ours to write: then SIGSTOP does it.
            with contextlib.suppress(OSError), open(path, "r+b", buffering=0) as file:
                file.write(word.encode())

    def _is_frozen(self, unit: str) -> bool:
        path = self._file(unit, "cgroup.events")
        if path is None:
            return False
        try:
            return "frozen 1" in path.read_text().splitlines()
        except OSError:
            return False


def read_state(pid: int) -> str | None:
    """Return the state of a process as ``/proc/PID/stat`` has it, None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None


def stands_still(pid: int) -> bool:
    """Whether a process does nothing of its own any more: all its threads are stopped, or about to be, or it has
    ended."""
    return all(
        state in _STOPPED or state in _GONE or (state == "D" and _is_stop_pending(pid)) for state in _thread_states(pid)
    )


def _thread_states(pid: int) -> Iterable[str]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    states = []
    for task in tasks:
        with contextlib.suppress(OSError, IndexError):
            states.append((task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0])
    return states


def _is_stop_pending(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(("ShdPnd:", "SigPnd:")) and int(line.split()[1], 16) & _SIGSTOP_BIT for line in lines)

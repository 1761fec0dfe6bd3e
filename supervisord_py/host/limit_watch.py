"""Watches what nobody tells: trees of units that no mechanism of the kernel bounds, and processes that it has killed.

Once a second the whole tree of a unit is counted where its bounds are sampled, of those units alone. Where the kernel
bounds the memory of a unit it kills in silence: of a main process that is seen at its end; any other process, which
may be missed by nobody, is seen here in what the kernel counts. A kill is told at the second look: the first may have
come before the end of the main process was told, which is what it was then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from supervisord_py.core.events import Breach, Event, LimitExceeded
from supervisord_py.host.memory_kills import MemoryKills
from supervisord_py.host.resources import Mechanism
from supervisord_py.host.usage import sample

INTERVAL_S = 1.0
Trees = Callable[[list[str]], Awaitable[Mapping[str, list[int]]]]


class Watched(NamedTuple):
    invocation: str
    bounds: Mapping[str, int]
    by_kernel: bool


class LimitWatch:
    """Watches the lives that it is told of, until they are over.

    Args:
        trees: Asks the keeper for all processes of units.
        kills: Whom the kernel has killed.
        submit: Queues an event for the core.
    """

    def __init__(self, trees: Trees, kills: MemoryKills, submit: Callable[[Event], None]) -> None:
        self._trees = trees
        self._kills = kills
        self._submit = submit
        self._watched: dict[str, Watched] = {}
        self._noticed: dict[str, str] = {}
        """Units that a process was killed of, as the last look found, and their lives."""
        self._task: asyncio.Task[None] | None = None

    def watch(self, unit: str, invocation: str, bounds: Mapping[str, int], *, by_kernel: bool) -> None:
        """Hold a life to these bounds, in place of those that it had; ``by_kernel``: its memory is bounded already."""
        self.forget(unit)
        if bounds or by_kernel:
            self._watched[unit] = Watched(invocation, bounds, by_kernel)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())

    def forget(self, unit: str) -> None:
        self._watched.pop(unit, None)
        self._noticed.pop(unit, None)

    async def _run(self) -> None:
        try:
            while self._watched:
                await asyncio.sleep(INTERVAL_S)
                self._look_at_kills()
                await self._look_at_trees()
        finally:
            self._task = None

    def _look_at_kills(self) -> None:
        if not (self._kills.may_have_killed() or self._noticed):
            return
        before, self._noticed = self._noticed, {}
        units = [unit for unit, watched in self._watched.items() if watched.by_kernel]
        for unit in self._kills.kills_of(units, settle=False):
            invocation = self._watched[unit].invocation
            if before.get(unit) != invocation:
                self._noticed[unit] = invocation
            else:
                for breach in self._kills.kills_of([unit], settle=True).values():
                    self._submit(LimitExceeded(unit, invocation, breach, by_kernel=True))

    async def _look_at_trees(self) -> None:
        watched = {unit: each for unit, each in self._watched.items() if each.bounds}
        used = sample(await self._trees(list(watched))) if watched else {}
        for unit, each in watched.items():
            found = used.get(unit)
            if found is None:
                continue
            has = {"memory-max": found.memory_bytes or 0, "tasks-max": found.tasks or 0}
            for key, most in each.bounds.items():
                if has[key] > most and self._watched.get(unit) == each:
                    breach = Breach(key, has[key], most, Mechanism.SAMPLING.value)
                    self._submit(LimitExceeded(unit, each.invocation, breach))
                    self.forget(unit)
                    break

    async def close(self) -> None:
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

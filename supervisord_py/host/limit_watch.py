"""Counts what the trees of units have where no mechanism of the kernel bounds it: once a second, of those alone."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from supervisord_py.core.events import Breach, Event, LimitExceeded
from supervisord_py.host.resources import Mechanism
from supervisord_py.host.usage import sample

INTERVAL_S = 1.0
Trees = Callable[[list[str]], Awaitable[Mapping[str, list[int]]]]


class Watched(NamedTuple):
    invocation: str
    bounds: Mapping[str, int]


class LimitWatch:
    """Watches the lives that it is told of, until they are over.

    Args:
        trees: Asks the keeper for all processes of units.
        submit: Queues an event for the core.
    """

    def __init__(self, trees: Trees, submit: Callable[[Event], None]) -> None:
        self._trees = trees
        self._submit = submit
        self._watched: dict[str, Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self, unit: str, invocation: str, bounds: Mapping[str, int]) -> None:
        """Hold a life to these bounds, in place of those that it had."""
        self._watched.pop(unit, None)
        if bounds:
            self._watched[unit] = Watched(invocation, bounds)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())

    def forget(self, unit: str) -> None:
        self._watched.pop(unit, None)

    async def _run(self) -> None:
        try:
            while self._watched:
                await asyncio.sleep(INTERVAL_S)
                await self._look()
        finally:
            self._task = None

    async def _look(self) -> None:
        watched = dict(self._watched)
        used = sample(await self._trees(list(watched)))
        for unit, (invocation, bounds) in watched.items():
            found = used.get(unit)
            if found is None:
                continue
            has = {"memory-max": found.memory_bytes or 0, "tasks-max": found.tasks or 0}
            for key, most in bounds.items():
                if has[key] > most and self._watched.get(unit) == Watched(invocation, bounds):
                    breach = Breach(key, has[key], most, Mechanism.SAMPLING.value)
                    self._submit(LimitExceeded(unit, invocation, breach))
                    self.forget(unit)
                    break

    async def close(self) -> None:
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

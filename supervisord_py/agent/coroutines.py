"""The cycles of an agent of which at least one method is a coroutine: all in one event loop, in one thread.

The law is that of ``agent.cycles``: signs of life come from between the cycles, so a cycle that awaits for ever is
silent. A cycle that takes too long is cancelled; one that swallows that, or never awaits, is ended with the process.
"""

import asyncio
import faulthandler
import inspect
import signal
import time
from collections import deque

from supervisord_py.agent.cycles import MESSAGES_S, Streak, end_by, is_fatal, next_due_s
from supervisord_py.agent.errors import CycleTimeout
from supervisord_py.agent.leaving import bound_the_end
from supervisord_py.agent.limited import GRACE_MIN_S, STDERR
from supervisord_py.agent.reports import report_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from supervisord_py.agent.agent import Agent, Plugin
    from supervisord_py.agent.link import Link
    from supervisord_py.agent.message import Message, Missed
    from supervisord_py.agent.runner import Plan


class LoopWaiter:
    """Wakes the pause between two cycles."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> None:
        raise RuntimeError("wait() would hold the event loop; in a coroutine: await asyncio.sleep(seconds)")

    async def nap(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            pass
        else:
            self._event.clear()


async def call(work: "Callable[..., Any]", *arguments: object) -> None:
    """Call a method that may be a coroutine."""
    result = work(*arguments)
    if inspect.isawaitable(result):
        await result


class LoopCycles:
    """Runs one agent from ``setup`` to ``teardown`` in an event loop."""

    def __init__(self, agent: "Agent", plan: "Plan", link: "Link") -> None:
        self._agent = agent
        self._plan = plan
        self._link = link
        self._has_failed = False
        self._streak = Streak()
        self._inbox: deque[Message | Missed] = deque()
        self._set_up: list[Plugin] = []
        self._waiter: LoopWaiter

    def run(self) -> int:
        """Return the exit code of the process."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self._waiter = self._agent._waiter = LoopWaiter()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._agent.stop)
        code = 0
        try:
            await self.begin()
            await self._repeat()
        except BaseException as problem:  # noqa: BLE001  whatever it is, what was set up is cleaned up
            code = end_by(self._link, problem)
        code = await self.end() or code or (1 if self._plan.is_once and self._has_failed else 0)
        # Here and not behind the loop, whose end waits for the threads of its executor.
        bound_the_end(code)
        return code

    async def begin(self) -> None:
        """Set up the plugins and the agent; an exception is for the caller."""
        for plugin in self._agent.plugins.values():
            await call(plugin.setup)
            self._set_up.append(plugin)
        await call(self._agent.setup)
        self._link.tell(READY="1")

    async def end(self) -> int:
        """Clean up what was set up; return the exit code, of the last exception in it."""
        code = 0
        self._link.tell(STOPPING="1")
        for clean_up in (self._agent.teardown, *(plugin.finalize for plugin in reversed(self._set_up))):
            try:
                await call(clean_up)
            except BaseException as problem:  # noqa: BLE001  the others are cleaned up too
                code = end_by(self._link, problem) or code
        return code

    async def cycle(self) -> None:
        """Make one cycle; a fatal exception is for the caller."""
        self._link.tell(WATCHDOG="1")
        await self._guarded("cycle", self._agent.run_cycle)

    async def take(self, message: "Message | Missed") -> None:
        """Hand a message to the agent; a fatal exception is for the caller."""
        await self._guarded("message", message.handler(self._agent), message)

    async def _repeat(self) -> None:
        due_s = time.monotonic()
        while not self._agent.is_stopping:
            await self.cycle()
            if self._plan.is_once:
                return
            # A cycle that never awaits, without a pause behind it, would keep the loop from hearing of a signal.
            await asyncio.sleep(0)
            due_s = next_due_s(due_s, self._plan.every_s, time.monotonic())
            await self._idle(due_s)

    async def _guarded(self, kind: str, work: "Callable[..., Any]", *arguments: object) -> None:
        self._agent._has_erred = False
        try:
            await self._limited(self._plan.cycle_timeout_s, work, *arguments)
        except BaseException as problem:  # a fatal one is raised on
            if is_fatal(self._agent, problem) and not _is_of_another_task(problem):
                raise
            self._has_failed = True
            if told := self._streak.failed(kind):
                self._link.tell(**told)
            report_error(self._link, problem)
        else:
            self._link.tell(**self._streak.went_well(self._agent, kind))

    async def _limited(self, limit_s: "float | None", work: "Callable[..., Any]", *arguments: object) -> None:
        if limit_s is None:
            await call(work, *arguments)
            return
        faulthandler.dump_traceback_later(limit_s + max(limit_s, GRACE_MIN_S), exit=True, file=STDERR)
        over = CycleTimeout(f"the cycle has taken longer than {limit_s:g} s (cycle-timeout)")
        try:
            async with asyncio.timeout(limit_s) as scope:
                await call(work, *arguments)
        except TimeoutError as problem:
            if not scope.expired():
                raise
            raise over from problem
        finally:
            faulthandler.cancel_dump_traceback_later()
        if scope.expired():
            raise over  # it has swallowed its cancellation, and ended after all

    async def _idle(self, due_s: float) -> None:
        beat_s = self._plan.beat_s
        patient_s = time.monotonic() + MESSAGES_S
        while not self._agent.is_stopping:
            self._inbox.extend(self._link.waiting())
            if self._inbox:
                await self.take(self._inbox.popleft())
                await asyncio.sleep(0)
                if time.monotonic() >= max(due_s, patient_s):
                    return
                continue
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                return
            self._link.on_readable(asyncio.get_running_loop(), self._waiter.wake)
            await self._waiter.nap(left_s if beat_s is None else min(left_s, beat_s))
            if beat_s is not None:
                self._link.tell(WATCHDOG="1")


def _is_of_another_task(problem: BaseException) -> bool:
    """Tell whether this is the end of a task that was awaited, and not that of the agent's own."""
    task = asyncio.current_task()
    return isinstance(problem, asyncio.CancelledError) and task is not None and not task.cancelling()

"""The cycles of an agent whose methods are plain functions: one thread, no event loop.

A cycle that takes too long is ended by an exception that a timer's signal raises in the middle of it
(``CycleTimeout``). Code in C that never returns to Python cannot be ended that way: after as long again faulthandler,
which needs no interpreter lock, writes where the cycle hangs and ends the process.
"""

import time

TYPE_CHECKING = False
if not TYPE_CHECKING:
    # What `signal` wraps: that imports enum, which takes as long as a quarter of the start.
    import _signal as signal
    import _socket as socket
else:
    import signal
    import socket
    from collections.abc import Callable

    from supervisord_py.agent.agent import Agent, Plugin
    from supervisord_py.agent.link import Link
    from supervisord_py.agent.message import Message, Missed
    from supervisord_py.agent.runner import Plan

MESSAGES_S = 0.05
"""So long messages are taken although the next cycle is due: with ``every = 0`` it always is."""

NAP_MAX_S = 1e8
_ENDS = (signal.SIGTERM, signal.SIGINT)


class Waiter:
    """Sleeps until somebody wakes it: by a pair of sockets, so that a signal's handler can."""

    def __init__(self) -> None:
        self._end, self._other_end = socket.socketpair()
        self._other_end.setblocking(False)

    @property
    def fd(self) -> int:
        """Can be read once it was woken."""
        return self._end.fileno()

    def wake(self) -> None:
        try:
            self._other_end.send(b"!")
        except BlockingIOError:  # it is awake anyway
            pass

    def wait(self, seconds: float) -> None:
        if seconds <= 0:
            return
        self._end.settimeout(min(seconds, NAP_MAX_S))
        try:
            self._end.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            pass

    def close(self) -> None:
        self._end.close()
        self._other_end.close()


class Streak:
    """Which work of an agent fails now, its cycles or the messages it takes: that the one goes well does not end the
    streak of the other, or an agent that is sent messages would never be restarted for its cycles."""

    def __init__(self) -> None:
        self._failing: set[str] = set()

    def failed(self, kind: str) -> "dict[str, str]":
        """Return what is told before an error of a kind: it begins a streak, also where another kind failed long ago
        and was not tried again."""
        begins = bool(self._failing) and kind not in self._failing
        self._failing.add(kind)
        return {"X_OK": "1"} if begins else {}

    def went_well(self, agent: "Agent", kind: str) -> "dict[str, str]":
        """Return what is told of work that has returned; it may have reported errors itself."""
        told = {"X_PROGRESS": "1", "WATCHDOG": "1"}
        if agent._has_erred:
            self._failing.add(kind)
        else:
            self._failing.discard(kind)
        return told if self._failing else told | {"X_OK": "1"}


class Cycles:
    """Runs one agent from ``setup`` to ``teardown``."""

    def __init__(self, agent: "Agent", plan: "Plan", link: "Link", waiter: Waiter) -> None:
        self._agent = agent
        self._plan = plan
        self._link = link
        self._waiter = waiter
        self._has_failed = False
        self._streak = Streak()
        self._set_up: list[Plugin] = []

    def run(self) -> int:
        """Return the exit code of the process."""
        code = 0
        try:
            self.begin()
            self._repeat()
        except BaseException as problem:  # noqa: BLE001  whatever it is, what was set up is cleaned up
            code = end_by(self._link, problem)
        return self.end() or code or (1 if self._plan.is_once and self._has_failed else 0)

    def begin(self) -> None:
        """Set up the plugins and the agent; an exception is for the caller."""
        for plugin in self._agent.plugins.values():
            call(plugin.setup)
            self._set_up.append(plugin)
        call(self._agent.setup)
        self._link.tell(READY="1")

    def end(self) -> int:
        """Clean up what was set up; return the exit code, of the last exception in it."""
        code = 0
        self._link.tell(STOPPING="1")
        for clean_up in (self._agent.teardown, *(plugin.finalize for plugin in reversed(self._set_up))):
            try:
                call(clean_up)
            except BaseException as problem:  # noqa: BLE001  the others are cleaned up too
                code = end_by(self._link, problem) or code
        return code

    def _repeat(self) -> None:
        due_s = time.monotonic()
        while not self._agent.is_stopping:
            self.cycle()
            if self._plan.is_once:
                return
            due_s = next_due_s(due_s, self._plan.every_s, time.monotonic())
            self._idle(due_s)

    def cycle(self) -> None:
        """Make one cycle; a fatal exception is for the caller."""
        self._link.tell(WATCHDOG="1")
        self._guarded("cycle", self._agent.run_cycle)

    def take(self, message: "Message | Missed") -> None:
        """Hand a message to the agent; a fatal exception is for the caller."""
        self._guarded("message", message.handler(self._agent), message)

    def _guarded(self, kind: str, work: "Callable[..., object]", *arguments: object) -> None:
        """Run a cycle, or the handler of a message: its exception is an error, its return work done."""
        limit_s = self._plan.cycle_timeout_s
        self._agent._has_erred = False
        try:
            if limit_s is None:
                call(work, *arguments)
            else:
                # Imported where there is a limit: all that is in this module, every agent's start waits for.
                from supervisord_py.agent.limited import limited

                limited(limit_s, call, work, *arguments)
        except BaseException as problem:  # a fatal one is raised on
            if is_fatal(self._agent, problem):
                raise
            self._has_failed = True
            if told := self._streak.failed(kind):
                self._link.tell(**told)
            report(self._link, problem)
        else:
            self._link.tell(**self._streak.went_well(self._agent, kind))

    def _idle(self, due_s: float) -> None:
        """Wait for the next cycle, beat meanwhile, and take messages; some, too, when the cycle is due already."""
        agent, beat_s = self._agent, self._plan.beat_s
        patient_s = time.monotonic() + MESSAGES_S
        while not agent.is_stopping:
            left_s = max(0.0, due_s - time.monotonic())
            nap_s = left_s if beat_s is None else min(left_s, beat_s)
            message = None
            if self._link.has_bus:
                message = self._link.receive(nap_s, self._waiter.fd)
                if message is not None:
                    self.take(message)
            else:
                self._waiter.wait(nap_s)
            if beat_s is not None and nap_s > 0:
                self._link.tell(WATCHDOG="1")
            now_s = time.monotonic()
            if now_s >= due_s and (message is None or now_s >= patient_s):
                return


def call(work: "Callable[..., object]", *arguments: object) -> None:
    """Call a method that is a plain function, as far as it could be told."""
    result = work(*arguments)
    if hasattr(result, "__await__"):
        if hasattr(result, "close"):
            result.close()
        name = getattr(work, "__qualname__", work)
        raise TypeError(f"{name} is no coroutine and returned one, which nothing awaits: make it async def")


def stop_on_signals(agent: "Agent") -> None:
    """Have SIGTERM and SIGINT end the agent after its present cycle."""
    for number in _ENDS:
        signal.signal(number, lambda *_: agent.stop())


def next_due_s(due_s: float, every_s: float, now_s: float) -> float:
    """Return when the cycle after the one of ``due_s`` begins: on the same beat, without those that were missed."""
    if every_s <= 0:
        return now_s
    missed = max(0, int((now_s - due_s) // every_s))
    return due_s + (missed + 1) * every_s


def end_by(link: "Link", problem: BaseException) -> int:
    """Return the exit code that an exception outside of a cycle, or a fatal one, stands for, and tell it."""
    if isinstance(problem, SystemExit):
        return exit_code(problem)
    report(link, problem)

    from supervisord_py.agent.errors import Fatal

    # Others may have a ``code``, too, which is none of a process: an HTTPError of urllib has.
    code = problem.code if isinstance(problem, Fatal) else 1
    return code if 0 < code < 256 else 1


def is_fatal(agent: "Agent", problem: BaseException) -> bool:
    """Tell whether an exception in a cycle ends the agent."""
    from supervisord_py.agent.errors import CycleTimeout, Fatal

    return isinstance(problem, (Fatal, *agent.fatal)) or not isinstance(problem, (Exception, CycleTimeout))


def report(link: "Link", problem: BaseException) -> None:
    """Tell an error; what that takes is imported when there is one."""
    from supervisord_py.agent.reports import report_error

    report_error(link, problem)


def exit_code(problem: SystemExit) -> int:
    """Return the code of a SystemExit, as Python itself would."""
    if problem.code is None:
        return 0
    if isinstance(problem.code, int):
        return problem.code

    from supervisord_py.agent.reports import print_error

    print_error(f"{problem.code}\n")
    return 1

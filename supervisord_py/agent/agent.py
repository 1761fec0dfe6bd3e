"""What people write: an agent, and its plugins.

Theory of operation
-------------------
An agent is a class; the runner (``agent.runner``) makes one object of it in a process of its own and calls, always from
the same thread: ``setup`` once, then ``run_cycle`` again and again, ``every`` apart, then ``teardown`` once, whatever
happened before. All three may be plain functions or coroutines; one coroutine makes all of them run in an event loop.

What the supervisor is told comes from that thread alone: a heartbeat between two cycles and whenever ``beat`` or
``progress`` is called, never from a thread beside it, which would beat on while the work hangs. A cycle that returns is
progress, and if it has reported none itself it ends a streak of errors; one that raises is an error, told with its
traceback, and the next one follows. Messages are taken likewise, and the two say nothing about each other.
``error-threshold`` errors in a row make the supervisor restart the agent.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path
    from typing import Any, ClassVar

    from supervisord_py.agent.life import LastLife
    from supervisord_py.agent.link import Link
    from supervisord_py.agent.message import Message, Missed


class Agent:
    """An agent. Subclass it and write ``run_cycle``; everything else has a default.

    Class attributes, where the unit file does not say otherwise:
        every: Seconds between the begin of one cycle and the begin of the next; 0: at once.
        cycle_timeout: Seconds that a cycle may take, None for no limit.
        fatal: Exceptions that end the process, besides ``Fatal``.
        Config: What ``[agent] config`` has to look like: a dataclass, a TypedDict or a ``msgspec.Struct``.

    Attributes:
        name: The name of the unit.
        config: ``[agent] config``: an object of ``Config``, or a dict where the class has none.
        plugins: The plugins by name, in the order of ``[agent] plugins``.
    """

    every: "ClassVar[float]" = 1.0
    cycle_timeout: "ClassVar[float | None]" = None
    fatal: "ClassVar[tuple[type[BaseException], ...]]" = ()
    Config: "ClassVar[Any]" = None

    name: str
    config: "Any"
    plugins: "Mapping[str, Plugin]"

    _link: "Link"
    _environment: "Mapping[str, str]"
    _is_stopping = False
    _has_erred = False
    _waiter: "Any" = None

    # What people write

    def setup(self) -> "Coroutine[Any, Any, None] | None":
        """Get ready: when it returns the unit is ready. An exception is fatal."""

    def run_cycle(self) -> "Coroutine[Any, Any, None] | None":
        """Do one piece of work. Call ``wait`` rather than ``time.sleep``, and ``progress`` in a long one."""
        raise TypeError(f"{type(self).__name__} has no run_cycle")

    def on_message(self, message: "Message") -> "Coroutine[Any, Any, None] | None":
        """Take a message, between two cycles; an exception is an error like that of a cycle."""

    def on_missed(self, missed: "Missed") -> "Coroutine[Any, Any, None] | None":
        """Hear that messages are gone which nobody has any more, between two others; unless you say otherwise it is a
        line in the log."""
        import sys

        text = f"messages to {missed.to} may be missing: the journal has nothing left behind {missed.after} up to"
        sys.stderr.write(f"{text} {missed.until}\n")
        return None

    def teardown(self) -> "Coroutine[Any, Any, None] | None":
        """Clean up; called once, also after an exception in ``setup`` or a fatal one."""

    # What they call

    @property
    def is_stopping(self) -> bool:
        """Whether the supervisor has asked for the end: no cycle follows the present one."""
        return self._is_stopping

    def stop(self) -> None:
        """End after the present cycle, with success."""
        self._is_stopping = True
        if self._waiter is not None:
            self._waiter.wake()

    def wait(self, seconds: float) -> bool:
        """Sleep in a cycle that is a plain function; returns at once, with True, when the agent is to stop.

        It is no sign of life: the watchdog goes on counting. In a coroutine: ``await asyncio.sleep(...)``.
        """
        if not self._is_stopping and self._waiter is not None:
            self._waiter.wait(seconds)
        return self._is_stopping

    def beat(self) -> None:
        """Say that this agent lives: for a cycle that is longer than ``watchdog-sec``."""
        self._link.tell(WATCHDOG="1")

    def progress(self, done: object = 1) -> None:
        """Say that work was done: for a cycle that is longer than ``progress-sec``. A sign of life, too."""
        self._link.tell(X_PROGRESS=one_line(str(done)), WATCHDOG="1")

    def status(self, text: str) -> None:
        """Say in a line what this agent is doing; ``supctl status`` shows it."""
        self._link.tell(STATUS=one_line(text))

    def error(self, problem: "str | BaseException") -> None:
        """Report an error and go on: one more of a streak, which a cycle without an error ends."""
        from supervisord_py.agent.reports import report_error

        self._has_erred = True
        report_error(self._link, problem)

    def send(self, event: str, to: "str | None" = None, timeout: "float | None" = 30.0, **payload: "Any") -> int:
        """Send a message, and return its number in the journal when it is written there.

        It waits for that, and is for the thread that runs the cycles alone. A child by fork connects for itself.

        An event to nobody (``to`` None) that ``[journal] keep-last`` names has none: 0 is returned, and the last few of
        this unit are kept.

        Args:
            event: What it is about.
            to: A unit, ``topic:NAME``, or None: for whoever asks the journal.
            timeout: Seconds; None waits for as long as it takes.
            payload: What JSON can hold, under any name that a delivery does not have for itself (``id``, ``seq``, ...).

        Raises:
            NotSentError: It was refused, or not acknowledged in time.
        """
        envelope = {**payload, "event": event}
        if to is not None:
            envelope["to"] = to
        return self._link.send(envelope, timeout)

    def subscribe(self, topic: str = "", after: "int | None" = None) -> None:
        """Have messages handed to ``on_message``: those of a topic, or with ``""`` those to this unit.

        Args:
            topic: The name behind ``topic:``.
            after: The number of the last message that you have seen; None: from now on.
        """
        self._link.subscribe(topic, after)

    @property
    def state_dir(self) -> "Path":
        """A folder of this agent's own, which stays when it is restarted or replaced.

        Raises:
            RuntimeError: There is none: the agent does not run under a supervisor.
        """
        from pathlib import Path

        folder = self._environment.get("STATE_DIRECTORY", "").split(":")[0]
        if not folder:
            raise RuntimeError("there is no state folder: STATE_DIRECTORY is not set")
        return Path(folder)

    @property
    def last_life(self) -> "LastLife | None":
        """How the life before this one ended; None in the first one."""
        from supervisord_py.agent.life import parse_last_life

        return parse_last_life(self._environment.get("SUPERVISORD_PY_LAST_LIFE"))

    @property
    def restarts(self) -> int:
        """How often the agent was restarted."""
        return int(self._environment.get("SUPERVISORD_PY_RESTARTS", "0"))

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} {getattr(self, 'name', '(not set up)')}>"


class Plugin:
    """Something that an agent brings along: a connection, a cache, a meter. Named by ``[agent] plugins``.

    Plugins are set up in order, before the agent, and finalized in reverse, after it, also after an exception; one
    whose ``setup`` has failed is not finalized, and the agent does not start without it.

    Attributes:
        name: What the agent finds it under in ``plugins``; the class's name where it is not set.
        agent: Its agent.
    """

    name: str = ""
    agent: Agent

    def setup(self) -> "Coroutine[Any, Any, None] | None":
        """Get ready, before the agent does."""

    def finalize(self) -> "Coroutine[Any, Any, None] | None":
        """Clean up, after the agent has."""


def one_line(text: str) -> str:
    """Return text as one line of a datagram."""
    return " ".join(text.split("\n"))


def bind(
    agent: Agent,
    *,
    name: str,
    config: "Any",
    link: "Link",
    environment: "Mapping[str, str] | None" = None,
    waiter: "Any" = None,
) -> None:
    """Make an object of an agent's class the agent of a unit."""
    agent.name = name
    agent.config = config
    agent.plugins = {}
    agent._link = link
    agent._environment = os.environ if environment is None else environment
    agent._waiter = waiter

"""Test an agent without a supervisor: the same cycles, one at a time, and everything that it tells is written down.

with AgentRig(Ping, {"greeting": "hi"}) as rig:
    rig.cycle()
    assert rig.status == "said hi"
    assert rig.errors == []
"""

import asyncio
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from supervisord_py.agent.agent import Agent, Plugin, bind
from supervisord_py.agent.config import convert_config
from supervisord_py.agent.coroutines import LoopCycles, LoopWaiter
from supervisord_py.agent.cycles import Cycles, Waiter
from supervisord_py.agent.message import Message, Missed
from supervisord_py.agent.runner import Plan, has_coroutine

AnyAgent = TypeVar("AnyAgent", bound=Agent)


class RecordingLink:
    """A line to a supervisor that is not there.

    Attributes:
        told: Every datagram, as a dict.
        sent: Every message: the envelope.
        subscribed: What was subscribed to: topic and number.
    """

    def __init__(self) -> None:
        self.has_bus = False
        self.told: list[dict[str, str]] = []
        self.sent: list[dict[str, Any]] = []
        self.subscribed: list[tuple[str, int | None]] = []
        self.inbox: deque[Message] = deque()

    def tell(self, **fields: str) -> None:
        self.told.append(fields)

    def send(self, envelope: dict[str, Any], timeout_s: float | None) -> int:
        self.sent.append(envelope)
        return len(self.sent)

    def subscribe(self, topic: str, after: int | None) -> None:
        self.subscribed.append((topic, after))

    def receive(self, timeout_s: float, wake_fd: int) -> Message | Missed | None:
        return self.inbox.popleft() if self.inbox else None

    def waiting(self) -> list[Message | Missed]:
        return [self.inbox.popleft() for _ in range(len(self.inbox))]

    def on_readable(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class AgentRig(Generic[AnyAgent]):
    """One agent in this process. As a context it is set up at the begin and torn down at the end.

    An exception of a cycle is an error, as it is under a supervisor, and stands in ``errors``; those of ``setup`` and
    fatal ones are raised here; one in ``teardown`` is an error and makes the ``exit_code`` 1. A signal ends the cycle
    of a plain function that takes longer than ``cycle_timeout``, so a rig belongs into the main thread.

    Attributes:
        agent: The agent.
        link: What it has told and sent.
        exit_code: What its process would have ended with, after the end.
    """

    def __init__(
        self,
        cls: type[AnyAgent],
        config: Mapping[str, Any] | None = None,
        *,
        name: str = "agent",
        plugins: Sequence[Plugin] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Make the agent.

        Args:
            cls: Its class.
            config: ``[agent] config``.
            name: The name of the unit.
            plugins: In the order in which they are set up.
            environment: What it finds in place of the environment of a unit; its state folder is a temporary one.

        Raises:
            ConfigError: ``config`` is not what its ``Config`` says.
        """
        self.link = RecordingLink()
        self.exit_code: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="agent-")
        self.agent = cls()
        known = {"SUPERVISORD_PY_UNIT": name, "STATE_DIRECTORY": self._folder.name, **(environment or {})}
        bind(self.agent, name=name, config=convert_config(cls, dict(config or {})), link=self.link, environment=known)
        for plugin in plugins:
            plugin.name, plugin.agent = plugin.name or type(plugin).__name__, self.agent
        self.agent.plugins = {plugin.name: plugin for plugin in plugins}
        plan = Plan()
        plan.complete(cls, known)
        self._runner: asyncio.Runner | None = None
        self._waiter: Waiter | None = None
        self._cycles: Cycles | LoopCycles
        if has_coroutine(self.agent):
            self._runner = asyncio.Runner()
            self._cycles = LoopCycles(self.agent, plan, self.link)
        else:
            self._waiter = self.agent._waiter = Waiter()
            self._cycles = Cycles(self.agent, plan, self.link, self._waiter)

    def __enter__(self) -> "AgentRig[AnyAgent]":
        try:
            self._do(self._cycles.begin)
        except BaseException:  # raised on
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, at: TracebackType | None
    ) -> None:
        self.end()

    def cycle(self, count: int = 1) -> None:
        """Make so many cycles, without a pause between them."""
        for _ in range(count):
            self._do(self._cycles.cycle)

    def deliver(self, event: str, *, sender: str = "other", to: str = "", seq: int = 1, **payload: Any) -> None:
        """Hand the agent a message."""
        self._do(self._cycles.take, Message(seq, sender, event, to or self.agent.name, payload))

    def miss(self, until: int, *, after: int = 0, to: str = "") -> None:
        """Tell the agent that messages are gone, behind ``after`` up to ``until``."""
        self._do(self._cycles.take, Missed(to or self.agent.name, after, until))

    def end(self) -> None:
        """Tear down; the second time nothing happens."""
        if self.exit_code is not None:
            return
        self.exit_code = self._do(self._cycles.end)
        if self._runner is not None:
            self._runner.close()
        if self._waiter is not None:
            self._waiter.close()
        self._folder.cleanup()

    @property
    def errors(self) -> list[str]:
        """The errors that it has told, in their order."""
        return [each["X_ERROR"] for each in self.link.told if "X_ERROR" in each]

    @property
    def status(self) -> str | None:
        """The status that it has told last."""
        return next((each["STATUS"] for each in reversed(self.link.told) if "STATUS" in each), None)

    @property
    def is_ready(self) -> bool:
        """Whether it has told that it is ready."""
        return any("READY" in each for each in self.link.told)

    @property
    def sent(self) -> list[dict[str, Any]]:
        """The messages that it has sent, in their order."""
        return self.link.sent

    @property
    def state_dir(self) -> Path:
        """Its state folder, which goes with the rig."""
        return Path(self._folder.name)

    def _do(self, work: Callable[..., Any], *arguments: object) -> Any:
        if self._runner is None:
            return work(*arguments)

        async def inside() -> Any:
            if self.agent._waiter is None:
                self.agent._waiter = LoopWaiter()
            return await work(*arguments)

        return self._runner.run(inside())

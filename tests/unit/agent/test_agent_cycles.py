"""What a cycle does to an agent, by the rig that people test their agents with."""

import asyncio
import select
from collections.abc import Callable
from typing import Any

import pytest

from supervisord_py.agent import Agent, CycleTimeout, Fatal, Plugin, Recoverable
from supervisord_py.agent.cycles import next_due_s
from supervisord_py.testing import AgentRig


class Counter(Agent):
    """Counts its cycles, and does in each what ``act`` says."""

    act: Callable[["Counter"], object] = staticmethod(lambda agent: None)

    def setup(self) -> None:
        self.cycles = 0
        self.history = ["setup"]

    def run_cycle(self) -> None:
        self.cycles += 1
        self.history.append("cycle")
        type(self).act(self)

    def on_message(self, message: Any) -> None:
        self.history.append(f"{message.event} from {message.sender}: {message.payload}")

    def teardown(self) -> None:
        self.history.append("teardown")


class AsyncCounter(Counter):
    async def run_cycle(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().run_cycle()


KINDS = pytest.mark.parametrize("base", [Counter, AsyncCounter])


def acting(base: type[Counter], act: Callable[[Counter], object], **attributes: Any) -> type[Counter]:
    return type("Acting", (base,), {"act": staticmethod(act), **attributes})


def fail(problem: BaseException) -> object:
    raise problem


@KINDS
def test_a_cycle_is_a_sign_of_life_before_and_progress_after(base: type[Counter]) -> None:
    with AgentRig(base) as rig:
        assert rig.is_ready
        begun = len(rig.link.told)
        rig.cycle()
        assert rig.link.told[begun:] == [{"WATCHDOG": "1"}, {"X_PROGRESS": "1", "X_OK": "1", "WATCHDOG": "1"}]
    assert rig.agent.history == ["setup", "cycle", "teardown"]
    assert rig.link.told[-1] == {"STOPPING": "1"}
    assert rig.exit_code == 0


@KINDS
def test_an_exception_is_an_error_with_its_traceback_and_the_next_cycle_follows(base: type[Counter]) -> None:
    with AgentRig(acting(base, lambda agent: fail(ValueError("one\ntwo")))) as rig:
        rig.cycle(2)
        assert rig.errors == ["ValueError: one two"] * 2
        assert "ValueError: one\\ntwo" in rig.link.told[-1]["X_TRACEBACK"]
        assert "\n" not in "".join(rig.link.told[-1].values())
        assert not any("X_OK" in each for each in rig.link.told)
        assert rig.agent.cycles == 2


@KINDS
def test_errors_of_cycles_in_a_row_are_a_streak_though_messages_are_taken_between_them(base: type[Counter]) -> None:
    """And errors of messages, though cycles return between them: each goes well by itself before the streak ends."""
    fails = {"cycle"}

    class Half(acting(base, lambda agent: fail(ValueError("no")) if "cycle" in fails else None)):  # type: ignore[misc]
        def on_message(self, message: Any) -> None:
            if "message" in fails:
                raise ValueError("no")

    def is_well() -> bool:
        return "X_OK" in rig.link.told[-1]

    with AgentRig(Half) as rig:
        rig.cycle()
        rig.deliver("hello")
        assert not is_well()
        fails.symmetric_difference_update({"cycle", "message"})
        rig.deliver("hello")
        rig.cycle()
        assert not is_well() and len(rig.errors) == 2
        fails.clear()
        rig.deliver("hello")
        assert is_well()


@KINDS
def test_one_message_that_failed_long_ago_made_a_streak_of_every_later_error(base: type[Counter]) -> None:
    """Cycles that go well lie between the errors of cycles, whatever became of the last message."""
    fails = {"message"}

    class Half(acting(base, lambda agent: fail(ValueError("no")) if "cycle" in fails else None)):  # type: ignore[misc]
        def on_message(self, message: Any) -> None:
            if "message" in fails:
                raise ValueError("no")

    with AgentRig(Half) as rig:
        rig.deliver("hello")
        longest = count = 1
        for outcome in ("well", "cycle", "well", "cycle", "well", "cycle"):
            fails.clear()
            fails.add(outcome)
            begun = len(rig.link.told)
            rig.cycle()
            for told in rig.link.told[begun:]:
                count = 0 if "X_OK" in told else count
                count += "X_ERROR" in told
                longest = max(longest, count)
        assert len(rig.errors) == 4 and longest == 1


@KINDS
def test_an_error_that_a_cycle_reports_itself_is_not_ended_by_its_return(base: type[Counter]) -> None:
    errors = ["half of it failed", "again", None]

    def act(agent: Counter) -> None:
        if (problem := errors.pop(0)) is not None:
            agent.error(problem)

    with AgentRig(acting(base, act)) as rig:
        rig.cycle(2)
        assert rig.errors == ["half of it failed", "again"]
        assert not any("X_OK" in each for each in rig.link.told)
        rig.cycle()
        assert "X_OK" in rig.link.told[-1]


def test_a_recoverable_error_has_no_traceback() -> None:
    """It is understood: nobody has to read where it was raised."""
    with AgentRig(acting(Counter, lambda agent: fail(Recoverable("the feed is closed")))) as rig:
        rig.cycle()
        assert rig.errors == ["the feed is closed"]
        assert "X_TRACEBACK" not in rig.link.told[-1]


@KINDS
@pytest.mark.parametrize("problem", [Fatal("no disk", code=3), KeyError("mine")])
def test_what_is_fatal_ends_the_agent_and_cleans_up(base: type[Counter], problem: Exception) -> None:
    rig = AgentRig(acting(base, lambda agent: fail(problem), fatal=(KeyError,)))
    with pytest.raises(type(problem)), rig:
        rig.cycle()
    assert rig.agent.history[-1] == "teardown"


@KINDS
def test_messages_are_handled_like_cycles(base: type[Counter]) -> None:
    with AgentRig(base, name="web") as rig:
        rig.deliver("news", sender="feed", text="hello")
        assert rig.agent.history[-1] == "news from feed: {'text': 'hello'}"
        assert rig.link.told[-1]["X_OK"] == "1"


class Sleepy(Counter):
    cycle_timeout = 0.05

    def run_cycle(self) -> None:
        try:
            select.select([], [], [], 60)
        except Exception:  # noqa: BLE001  what people write
            self.history.append("swallowed")


class AsyncSleepy(Counter):
    cycle_timeout = 0.05

    async def run_cycle(self) -> None:  # type: ignore[override]
        await asyncio.Event().wait()


@pytest.mark.parametrize("cls", [Sleepy, AsyncSleepy])
def test_a_cycle_that_takes_too_long_is_ended_as_an_error(cls: type[Counter]) -> None:
    """Also inside of ``except Exception``; the next cycle has its whole time."""
    with AgentRig(cls) as rig:
        rig.cycle(2)
        assert rig.errors == ["the cycle has taken longer than 0.05 s (cycle-timeout)"] * 2
        assert rig.agent.history == ["setup"]


def test_a_time_out_of_the_agents_own_is_not_that_of_the_cycle() -> None:
    class Impatient(Agent):
        cycle_timeout = 60

        async def run_cycle(self) -> None:  # type: ignore[override]
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()

    with AgentRig(Impatient) as rig:
        rig.cycle()
        assert rig.errors == ["TimeoutError"]


def test_what_an_agent_tells() -> None:
    def act(agent: Counter) -> None:
        agent.status("two\nlines")
        agent.progress("7 of 9")
        agent.beat()
        agent.error("half of it failed")
        assert agent.send("done", to="topic:results", value=7) == 1
        agent.subscribe("jobs", after=3)

    with AgentRig(acting(Counter, act)) as rig:
        rig.cycle()
        assert rig.status == "two lines"
        assert {"X_PROGRESS": "7 of 9", "WATCHDOG": "1"} in rig.link.told
        assert rig.errors == ["half of it failed"]
        assert rig.sent == [{"event": "done", "to": "topic:results", "value": 7}]
        assert rig.link.subscribed == [("jobs", 3)]


def test_what_an_agent_knows_of_itself() -> None:
    story = '{"result": "watchdog", "exit": {"signal": "SIGABRT"}, "runtime_ms": 12, "last_words": "oh"}'
    environment = {"SUPERVISORD_PY_LAST_LIFE": story, "SUPERVISORD_PY_RESTARTS": "4"}
    with AgentRig(Counter, name="web", environment=environment) as rig:
        agent, life = rig.agent, rig.agent.last_life
        assert (agent.name, agent.restarts, agent.state_dir) == ("web", 4, rig.state_dir)
        assert life is not None
        assert (life.result, life.exit, life.runtime_ms, life.last_words) == (
            "watchdog",
            {"signal": "SIGABRT"},
            12,
            "oh",
        )
        agent.stop()
        assert agent.is_stopping
        assert agent.wait(60)
    with AgentRig(Counter) as first:
        assert first.agent.last_life is None
        assert first.agent.restarts == 0


class Noted(Plugin):
    """Writes down what happens to it; fails where its name says so."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def setup(self) -> None:
        self.notes.append(f"{self.name} up for {self.agent.name}")
        if self.name == "bad":
            raise OSError("no")

    def finalize(self) -> None:
        self.notes.append(f"{self.name} down")
        if self.name == "clumsy":
            raise OSError("oops")


def test_plugins_are_set_up_in_order_and_finalized_in_reverse() -> None:
    """Also when one of them fails at the end."""
    notes: list[str] = []
    plugins = [Noted("one", notes), Noted("clumsy", notes), Noted("three", notes)]
    with AgentRig(Counter, plugins=plugins) as rig:
        assert list(rig.agent.plugins) == ["one", "clumsy", "three"]
    assert notes == [
        "one up for agent", "clumsy up for agent", "three up for agent", "three down", "clumsy down", "one down",
    ]  # fmt: skip
    assert rig.exit_code == 1
    assert rig.errors == ["OSError: oops"]


def test_plugins_before_one_that_fails_are_finalized() -> None:
    notes: list[str] = []
    rig = AgentRig(Counter, plugins=[Noted("one", notes), Noted("bad", notes), Noted("three", notes)])
    with pytest.raises(OSError, match="no"), rig:
        pass
    assert notes == ["one up for agent", "bad up for agent", "one down"]
    assert not rig.is_ready


@pytest.mark.parametrize(
    ("due", "every", "now", "expected"),
    [
        (10.0, 5.0, 11.0, 15.0),
        (10.0, 5.0, 15.0, 20.0),
        (10.0, 5.0, 27.0, 30.0),
        (10.0, 0.0, 27.0, 27.0),
    ],
    ids=["in time", "just too long", "two left out", "without a pause"],
)
def test_cycles_keep_their_beat(due: float, every: float, now: float, expected: float) -> None:
    """One that takes long moves no other: those that it has missed are left out."""
    assert next_due_s(due, every, now) == expected


def test_a_time_out_is_no_exception() -> None:
    assert not issubclass(CycleTimeout, Exception)

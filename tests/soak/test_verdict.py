"""The verdict of the soak is itself tested: each thing that it is made to notice is planted, and noticed."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.soak.deeds import Deeds
from tests.soak.units import Population
from tests.soak.verdict import Ledger, Sample, growth, judge

PEOPLE = Population(victims=["web"], steady=["calm"], workers=["worker@"], timers=["clock"], triggered=["night"])
BEGAN_S = 1_700_000_000
SECOND_NS = 1_000_000_000


class Story:
    """A soak in which nothing was wrong, until a test changes it; seconds count from its beginning."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.ledgers: dict[str, Ledger] = {}
        self.deeds = Deeds()

    def record(self, event: str, unit: str | None, at_s: float, **fields: Any) -> None:
        ts = datetime.fromtimestamp(BEGAN_S + at_s, UTC).isoformat()
        numbers = {"seq": len(self.records) + 1, "mono_ns": int(at_s * SECOND_NS)}
        self.records.append({"event": event, "unit": unit, "invocation": "", "ts": ts, **numbers, **fields})

    def life(self, unit: str, pid: int, at_s: float, end_s: float, *, own: bool = False) -> None:
        lines = self.ledgers.setdefault(unit, [])
        lines.append(["start", str(pid), str(int(at_s * SECOND_NS))])
        if own:
            lines.append(["exit", str(pid), str(int(end_s * SECOND_NS))])
        self.record("unit.exited", unit, end_s, role="main", pid=pid)

    def run_of_timer(self, pid: int, due_s: float, late_s: float = 0.1) -> None:
        due = datetime.fromtimestamp(BEGAN_S + due_s, UTC).isoformat()
        self.record("timer.elapsed", "clock", due_s + late_s, due=due, late_ms=late_s * 1000)
        self.life("clock", pid, due_s + late_s, due_s + late_s + 0.2, own=True)

    def wrong(self) -> list[str]:
        return judge(self.records, self.ledgers, self.deeds, PEOPLE)


@pytest.fixture
def story() -> Story:
    story = Story()
    for number in range(4):
        story.run_of_timer(100 + number, 5.0 * number)
    story.deeds.killed["web", 10] = 0
    story.life("web", 10, 0, 7)
    story.life("worker@2", 20, 0, 7, own=True)
    story.deeds.orders.append(("worker@", 8 * SECOND_NS, 9 * SECOND_NS))
    story.life("worker@1", 21, 0, 8.5)
    story.record("daemon.stopping", None, 100)
    story.life("calm", 30, 0, 101)
    story.life("web", 11, 7, 101)
    return story


def test_nothing_is_wrong_with_what_is_explained(story: Story) -> None:
    """The soak's own deeds, the programs' own ends, orders and the shutdown explain an end."""
    assert story.wrong() == []


def test_a_false_restart_is_noticed(story: Story) -> None:
    story.life("calm", 31, 0, 50)
    assert [line.split(",")[0] for line in story.wrong()] == ["FALSE END of calm"]


def test_a_deed_to_one_unit_does_not_explain_the_end_of_another(story: Story) -> None:
    story.life("calm", 10, 0, 50)
    assert [line.split(",")[0] for line in story.wrong()] == ["FALSE END of calm"]


def test_a_pid_that_came_round_explains_both_of_its_ends(story: Story) -> None:
    """A soak of an hour killed two processes with one pid, and took the first for a false end."""
    story.life("calm", 10, 0, 50)
    story.deeds.killed["calm", 10] = 0
    assert story.wrong() == []


def test_silence_that_nobody_noticed_is_noticed(story: Story) -> None:
    story.deeds.hung["web", 12] = 0
    assert story.wrong() == ["web: pid 12 was hung, and never ended"]


def test_lives_without_an_end_and_second_copies_are_noticed(story: Story) -> None:
    story.ledgers["calm"] += [["double", "31", "0"], ["start", "31", "0"]]
    assert len(story.wrong()) == 2


def test_a_run_that_is_missing_and_a_run_twice_are_noticed(story: Story) -> None:
    story.run_of_timer(110, 25)
    assert len(story.wrong()) == 1, "20 is missing"
    story.ledgers["clock"].append(["start", "111", "0"])
    story.record("unit.exited", "clock", 30, role="main", pid=111)
    story.ledgers["clock"].append(["exit", "111", "0"])
    assert len(story.wrong()) == 2
    story.deeds.triggers["night"] += 1
    assert len(story.wrong()) == 3, "a trigger without a run"


def test_times_that_fall_into_a_stop_of_the_supervisor_are_made_up_for_once(story: Story) -> None:
    story.run_of_timer(110, 20, late_s=12)
    story.run_of_timer(111, 35)
    assert story.wrong() == []


def test_what_grows_is_noticed() -> None:
    steady = [Sample("keeper", 1, at_s, 10_000, 60) for at_s in range(100)]
    growing = [Sample("manager", 2, at_s, 10_000 + 100 * at_s, 40 + at_s // 10) for at_s in range(100)]
    told, wrong = growth([*steady, *growing])
    assert len(told) == 2
    assert [line.split(" grow")[0] for line in wrong] == ["the memory of the manager", "the descriptors of the manager"]

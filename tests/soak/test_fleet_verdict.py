"""The verdict of the fleet's soak is itself tested: each thing that it is made to notice is planted, and noticed."""

from typing import Any

import pytest

from tests.soak.deeds import Deeds
from tests.soak.fleet_verdict import OWN_ENDS, Answer, Left, judge

SECOND_NS = 1_000_000_000


class Story:
    """A soak of the fleet in which nothing was wrong, until a test changes it."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.deeds = Deeds()
        self.book: list[dict[str, Any]] = []
        self.orders = 0
        self.answers: list[Answer] = []
        self.lives = 0
        for unit, own in OWN_ENDS.items():
            for result, evidence in own.items():
                self.life(unit.replace("@", "@1"), result, evidence)
        self.record("unit.quarantined", "printer", "")
        self.record("unit.stub-started", "printer", "")
        self.record("timer.elapsed", "bell", "")
        self.record("unit.ready", "gauge", "")
        self.life("auditor", "success", stop="replaced")
        for _ in range(3):
            self.order()
        self.deeds.killed["gauge", 77] = 0
        self.life("gauge", "signal", pid=77, signal="SIGKILL")
        self.record("daemon.stopping", None, "")
        self.life("monitor", "success", stop="the supervisor is shutting down")

    def record(self, event: str, unit: str | None, invocation: str, **fields: Any) -> dict[str, Any]:
        number = len(self.records) + 1
        record = {"event": event, "unit": unit, "invocation": invocation, "seq": number, "ts": f"second {number}"}
        record |= {"mono_ns": number * SECOND_NS, **fields}
        self.records.append(record)
        return record

    def life(
        self,
        unit: str,
        result: str,
        evidence: tuple[str, str] | None = None,
        *,
        stop: str = "",
        pid: int = 0,
        **how: Any,
    ) -> None:
        self.lives += 1
        pid, mine = pid or 1000 + self.lives, f"life {self.lives}"
        self.record("unit.started", unit, mine, pid=pid)
        if evidence is not None:
            self.record(evidence[0], unit, mine, message=evidence[1])
        if stop:
            self.record("unit.stopping", unit, mine, reason=stop)
        self.record("unit.exited", unit, mine, role="main", pid=pid, **(how or {"code": 0}))
        over = self.record("unit.stopped" if stop else "unit.restart-scheduled", unit, mine, result=result)
        text = f"the life before ended ({result}: exit code 1, or killed by SIGKILL)"
        self.answers.append(Answer(over["seq"], unit, text, over["mono_ns"] + 1))

    def message(self, sender: str, to: str, name: str, number: int) -> dict[str, Any]:
        fields = {"id": f"id-{len(self.records)}", "to": to, "name": name, "payload": {"number": number}}
        return self.record("unit.message", sender, f"of {sender}", **fields)

    def order(self) -> None:
        self.orders += 1
        self.message("feed", "scheduler", "order", self.orders)
        self.result(self.orders)

    def result(self, number: int) -> None:
        record = self.message("worker@1", "topic:results", "result", number)
        self.book.append({"n": len(self.book) + 1, "seq": record["seq"], "number": number})

    def wrong(self, seconds: float = 100) -> list[str]:
        exits = [record for record in self.records if record["event"] == "unit.exited" and record["role"] == "main"]
        ends: dict[str, int] = {}
        for record in exits:
            ends[record["unit"]] = ends.get(record["unit"], 0) + 1
        left = Left(self.book, self.orders, {"done": self.orders}, {"seq": len(self.records), "ends": ends})
        return judge(self.records, self.deeds, left, self.answers, seconds)[1]


@pytest.fixture
def story() -> Story:
    return Story()


def only(story: Story, begins: str) -> None:
    """One thing is wrong, and this is how it is told."""
    wrong = story.wrong()
    assert len(wrong) == 1 and wrong[0].startswith(begins), wrong


def test_nothing_is_wrong_with_what_is_explained(story: Story) -> None:
    story.result(2)  # an order that was handed out twice, after a death, has two results, and both are in the book
    assert story.wrong() == []


@pytest.mark.parametrize(
    ("unit", "result", "evidence", "how"),
    [
        ("scheduler", "signal", None, {"signal": "SIGKILL"}),
        ("gauge", "signal", None, {"signal": "SIGSEGV", "pid": 77}),
        ("feed", "exit-code", ("unit.error", "the source has hung up"), {"code": 1}),
        ("cache", "exit-code", ("unit.error", "KeyError: 7"), {"code": 1}),
        ("courier", "progress", None, {"signal": "SIGABRT"}),
        ("worker@1", "success", None, {"code": 3}),
        ("monitor", "success", None, {"code": 0}),
        ("collector", "success", None, {"stop": "because"}),
    ],
)
def test_an_end_without_a_cause_is_noticed(
    story: Story, unit: str, result: str, evidence: tuple[str, str] | None, how: dict[str, Any]
) -> None:
    stopping = [each for each in story.records if each["event"] == "daemon.stopping"]
    for record in stopping:
        record["mono_ns"] = 10**6 * SECOND_NS
    story.deeds.killed[unit, story.lives + 999] = 0
    story.life(unit, result, evidence, **how)
    assert [line for line in story.wrong() if line.startswith(f"UNEXPLAINED end of {unit}")]


def test_what_somebody_ordered_is_explained_in_its_time_only(story: Story) -> None:
    stopping = next(each for each in story.records if each["event"] == "daemon.stopping")
    stopping["mono_ns"] = 10**6 * SECOND_NS
    now_ns = len(story.records) * SECOND_NS
    story.deeds.orders.append(("collector", now_ns, now_ns + 3 * SECOND_NS))
    story.life("collector", "success", stop="restarted by somebody")
    assert not any("collector" in line for line in story.wrong())
    story.deeds.orders[-1] = ("scheduler", now_ns, now_ns + 3 * SECOND_NS)
    assert any(line.startswith("UNEXPLAINED end of collector") for line in story.wrong())


def test_a_stop_in_a_cycle_with_a_time_out_explains_the_end_of_that_process_only(story: Story) -> None:
    story.deeds.stopped.add(("archive", 78))
    story.life("archive", "exit-code", pid=78, code=1)
    assert story.wrong() == []
    story.life("archive", "exit-code", pid=79, code=1)
    only(story, "UNEXPLAINED end of archive, pid 79")


def test_a_life_that_has_no_end_is_noticed(story: Story) -> None:
    story.record("unit.started", "gauge", "the last one", pid=5)
    only(story, "gauge: a life with 0 ends")


def test_what_did_not_happen_is_noticed(story: Story) -> None:
    assert story.wrong(seconds=700)
    story.records = [each for each in story.records if each["event"] != "unit.quarantined"]
    only(story, "printer unit.quarantined: 0 times")


def test_a_lost_message_is_noticed(story: Story) -> None:
    del story.book[1]
    assert [line.split(":")[0] for line in story.wrong()] == [
        "the book is not the journal",
        "the book has a hole in its numbers",
    ]


def test_a_message_that_was_taken_twice_is_noticed(story: Story) -> None:
    story.book.append(story.book[-1] | {"n": 4})
    only(story, "the book is not the journal")


def test_messages_out_of_their_order_are_noticed(story: Story) -> None:
    first, second = story.book[:2]
    first["seq"], second["seq"] = second["seq"], first["seq"]
    only(story, "the book is not the journal")


def test_a_message_that_was_written_twice_is_noticed(story: Story) -> None:
    again = next(each for each in story.records if each["event"] == "unit.message" and each["to"] == "scheduler")
    story.record("unit.message", "feed", "of feed", **{key: again[key] for key in ("id", "to", "name", "payload")})
    assert any(line.startswith("message ") for line in story.wrong())


def test_an_order_that_nobody_has_done_is_noticed(story: Story) -> None:
    story.orders += 1
    story.message("feed", "scheduler", "order", story.orders)
    only(story, "orders [4] have no result")


def test_an_order_that_never_came_is_noticed(story: Story) -> None:
    story.orders += 1
    assert "orders [4] are not in the journal" in story.wrong()


def test_a_wrong_result_is_noticed(story: Story) -> None:
    story.record("unit.error", "auditor", "of auditor", message="6 is not 2 * 2")
    only(story, "the auditor says: 6 is not")


@pytest.mark.parametrize("count", [1, 20])
def test_a_why_that_does_not_say_it_is_noticed_unless_it_came_too_late(story: Story, count: int) -> None:
    number = next(n for n, each in enumerate(story.answers) if each.unit == "courier")
    story.answers[number] = story.answers[number]._replace(text="it is running")
    only(story, "why courier, after progress")
    story.answers[number] = story.answers[number]._replace(at_ns=10**6 * SECOND_NS)
    only(story, "why courier, after progress")
    story.life("courier", *next(iter(OWN_ENDS["courier"].items())))
    assert story.wrong() == []
    late = [story.answers[number]] * count
    story.answers = [*story.answers, *late]
    assert bool(story.wrong()) == (count > 1)

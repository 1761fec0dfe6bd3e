"""What the agents of the example fleet promise each other, each by itself: no supervisor is needed for that."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.testing import AgentRig

FLEET = Path(__file__).parents[2] / "units" / "fleet"


@pytest.fixture(autouse=True)
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules are found as the unit files have it, and forgotten afterwards."""
    for folder in (FLEET, FLEET / "auditor"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("agents", "fleet_auditor")]:
        del sys.modules[name]


def rig(where: str, home: Path, config: dict[str, Any] | None = None, name: str = "it") -> AgentRig[Any]:
    """One life of an agent, which finds what the lives before have left."""
    module, _, cls = where.partition(":")
    environment = {"STATE_DIRECTORY": str(home)}
    return AgentRig(getattr(importlib.import_module(module), cls), config, name=name, environment=environment)


def handed(scheduler: AgentRig[Any]) -> list[tuple[str, int]]:
    scheduler.cycle()
    return [(each["to"], each["number"]) for each in scheduler.sent if each["event"] == "task"]


def test_a_number_goes_to_one_worker_and_to_another_life_of_it_once_more(tmp_path: Path) -> None:
    """Also over a death of the scheduler; an order that comes twice is one order."""
    with rig("agents.scheduler:Scheduler", tmp_path, name="scheduler") as scheduler:
        for seq, number in enumerate((1, 1, 2, 3), 1):
            scheduler.deliver("order", sender="feed", seq=seq, number=number, value=number * 10)
        for seq, worker in enumerate(("w@1", "w@1", "w@2"), 5):
            scheduler.deliver("ask", sender=worker, seq=seq)
        assert handed(scheduler) == [("w@1", 1), ("w@2", 2)]
        assert handed(scheduler) == [("w@1", 1), ("w@2", 2)], "both have one"
    with rig("agents.scheduler:Scheduler", tmp_path, name="scheduler") as scheduler:
        assert scheduler.link.subscribed == [("", 7), ("results", 0)]
        scheduler.deliver("ask", sender="w@1", seq=8)
        assert handed(scheduler) == [("w@1", 1)]


def test_a_result_ends_what_its_sender_had_and_nothing_else(tmp_path: Path) -> None:
    """A worker that leaves is given no other number, until it asks."""
    with rig("agents.scheduler:Scheduler", tmp_path, name="scheduler") as scheduler:
        for number in (1, 2, 3):
            scheduler.deliver("order", sender="feed", seq=number, number=number, value=7)
        scheduler.deliver("ask", sender="w@1", seq=4)
        assert handed(scheduler) == [("w@1", 1)]
        for sender, number in (("w@2", 1), ("w@1", 3)):
            scheduler.deliver("result", to="topic:results", sender=sender, number=number, leaves=False)
        assert handed(scheduler) == [("w@1", 1)]
        scheduler.deliver("result", to="topic:results", sender="w@1", number=1, leaves=False)
        assert handed(scheduler)[1:] == [("w@1", 2)]
        scheduler.deliver("result", to="topic:results", sender="w@1", number=2, leaves=True)
        assert handed(scheduler)[2:] == []
        scheduler.deliver("ask", sender="w@1")
        assert handed(scheduler)[2:] == [("w@1", 3)]


def test_what_a_worker_keeps_too_long_is_given_to_another(tmp_path: Path) -> None:
    with rig("agents.scheduler:Scheduler", tmp_path, {"patience_s": 0.0}, name="scheduler") as scheduler:
        scheduler.deliver("order", sender="feed", number=1, value=7)
        for worker in ("w@1", "w@2"):
            scheduler.deliver("ask", sender=worker)
        assert handed(scheduler) == [("w@1", 1)]
        assert handed(scheduler) == [("w@1", 1), ("w@2", 1)]


def test_a_worker_that_was_scaled_away_stopped_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the first of the idle ones for ever, and every cycle an error."""
    from supervisord_py.agent import NotSentError

    with rig("agents.scheduler:Scheduler", tmp_path, name="scheduler") as scheduler:
        send = scheduler.link.send

        def refuse(envelope: dict[str, Any], timeout_s: float | None) -> int:
            if envelope["to"] == "w@4":
                raise NotSentError("refused: there is no unit w@4", "no-such-unit")
            return send(envelope, timeout_s)

        monkeypatch.setattr(scheduler.link, "send", refuse)
        scheduler.deliver("order", sender="feed", number=1, value=7)
        for worker in ("w@4", "w@1"):
            scheduler.deliver("ask", sender=worker)
        assert handed(scheduler) == [("w@1", 1)] and not scheduler.errors


def test_a_worker_leaves_after_its_turn(tmp_path: Path) -> None:
    with rig("agents.worker:Worker", tmp_path, {"turn": 2}) as worker:
        assert worker.link.subscribed == [("", None)] and worker.sent[0] == {"event": "ask", "to": "scheduler"}
        worker.deliver("task", number=1, value=360)
        assert not worker.agent.is_stopping
        worker.deliver("task", number=2, value=1)
        assert worker.agent.is_stopping
    results = [each for each in worker.sent if each["event"] == "result"]
    assert [(each["factors"], each["leaves"]) for each in results] == [([2, 2, 2, 3, 3, 5], False), ([], True)]


def test_the_book_goes_on_where_a_torn_line_begins(tmp_path: Path) -> None:
    """The last whole line tells what was seen, whoever was killed in the middle of the next one."""
    book = tmp_path / "book.ndjson"
    for seqs, life in (((3, 8), 1), ((9,), 2)):
        with rig("agents.collector:Collector", tmp_path) as collector:
            assert collector.link.subscribed[0] == ("results", 0 if life == 1 else 8)
            for seq in seqs:
                collector.deliver("result", to="topic:results", sender="w@1", seq=seq, number=seq)
            assert not collector.errors
        with book.open("a") as torn:
            torn.write('{"n": 99, "se')
    with rig("agents.collector:Collector", tmp_path, {"page": 1}) as collector:
        assert not collector.agent.is_stopping
        collector.deliver("result", to="topic:results", sender="w@1", seq=10, number=10)
        collector.deliver("bell")
        assert collector.agent.is_stopping and collector.sent[0]["new"] == 1
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    assert [(line["n"], line["seq"]) for line in lines] == [(1, 3), (2, 8), (3, 9), (4, 10)]


def test_the_auditor_tells_a_wrong_result(tmp_path: Path) -> None:
    with rig("fleet_auditor:Auditor", tmp_path, {"version": "1.0"}) as auditor:
        auditor.deliver("result", to="topic:results", seq=5, value=12, factors=[2, 2, 3])
        auditor.deliver("result", to="topic:results", sender="w@1", seq=6, value=12, factors=[2, 2])
        auditor.cycle()
        assert auditor.errors == ["12 is not 2 * 2, as w@1 says"]
    with rig("fleet_auditor:Auditor", tmp_path) as auditor:
        assert auditor.link.subscribed == [("results", 6)]


def test_the_printer_has_paper_in_every_fifth_life(tmp_path: Path) -> None:
    from supervisord_py.agent import Fatal

    outcomes = []
    for _ in range(10):
        try:
            with rig("agents.printer:Printer", tmp_path):
                outcomes.append("paper")
        except Fatal as problem:
            outcomes.append(str(problem))
    assert [number for number, outcome in enumerate(outcomes, 1) if outcome == "paper"] == [5, 10]


def test_the_monitor_tells_an_end_with_its_cause(tmp_path: Path) -> None:
    with rig("agents.monitor:Monitor", tmp_path) as monitor:
        life = {"unit": "feed", "invocation": "a", "ts": "noon"}
        monitor.agent.learn({**life, "seq": 1, "event": "unit.error", "message": "the source has hung up"})
        monitor.agent.learn({**life, "seq": 2, "event": "unit.exited", "role": "main", "code": 0})
        monitor.agent.learn({**life, "seq": 3, "event": "unit.quarantined"})
        assert monitor.agent.known == {"seq": 3, "ends": {"feed": 1}, "causes": {}}
        assert monitor.sent == [{"event": "alarm", "to": "topic:alarms", "unit": "feed"}]

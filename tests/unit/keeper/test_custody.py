"""Facts, state and lines in custody: numbers without holes, nothing lost by coalescing, commits whole or not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.keeper.custody import Custody


def notify(pid: int, **fields: str) -> dict[str, Any]:
    return {"fact": "notify", "pid": pid, "fields": fields}


def commit(**more: Any) -> dict[str, Any]:
    return {"ack": 0, "state": {}, "lines": [], "journalled": 0, "do": [], **more}


def test_beats_coalesce_until_they_are_sent() -> None:
    """An unsent beat takes up the next one of the same sender; a sent one does not."""
    custody = Custody()
    assert custody.put(notify(7, WATCHDOG="1"), "a")
    assert not custody.put(notify(7, STATUS="x"), "a")
    assert custody.take_unsent(0) == [(1, notify(7, WATCHDOG="1", STATUS="x"))]
    assert custody.put(notify(7, STATUS="y"), "a")
    assert custody.take_unsent(0) == [(2, notify(7, STATUS="y"))]


@pytest.mark.parametrize(
    "between",
    [
        notify(7, READY="1"),
        notify(8, STATUS="other sender"),
        notify(7, WATCHDOG="trigger"),
        {"fact": "exited", "pid": 7},
    ],
)
def test_nothing_is_moved_over_another_fact_of_the_unit(between: dict[str, Any]) -> None:
    """A beat after something else is a fact of its own, so that order stays."""
    custody = Custody()
    custody.put(notify(7, STATUS="before"), "a")
    assert custody.put(between, "a")
    assert custody.put(notify(7, STATUS="after"), "a")
    told = [fact for _, fact in custody.take_unsent(0)]
    assert told == [notify(7, STATUS="before"), between, notify(7, STATUS="after")]


def test_facts_of_other_units_do_not_disturb() -> None:
    """Coalescing is by unit."""
    custody = Custody()
    custody.put(notify(7, STATUS="1"), "a")
    custody.put(notify(8, STATUS="2"), "b")
    custody.put({"fact": "exited", "pid": 9}, "c")
    assert not custody.put(notify(7, STATUS="3"), "a")
    assert [fact["pid"] for _, fact in custody.take_unsent(0)] == [7, 8, 9]


def test_a_new_manager_is_told_what_was_not_acknowledged() -> None:
    """Rewinding sends the same numbers again, without those acknowledged."""
    custody = Custody()
    for pid in range(5):
        custody.put({"fact": "stray", "pid": pid})
    first = custody.take_unsent(0)
    custody.acknowledge(2)
    custody.rewind()
    assert custody.sent_at == []
    assert custody.take_unsent(0) == first[2:]


def test_the_oldest_unacknowledged_packet_is_known() -> None:
    """What decides about a hung manager: the time of the oldest packet that has an unacknowledged fact."""
    custody = Custody()
    for now_ns in (10, 20, 30):
        custody.put({"fact": "stray", "pid": now_ns})
        custody.take_unsent(now_ns)
    custody.acknowledge(1)
    assert custody.sent_at[0][1] == 20
    custody.restamp(99)
    assert {at_ns for _, at_ns in custody.sent_at} == {99}
    custody.acknowledge(3)
    assert custody.sent_at == []


@pytest.mark.parametrize(
    "broken",
    [
        {"ack": 2},
        {"ack": -1},
        {"ack": "1"},
        {"state": {"a": 1}},
        {"state": None},
        {"lines": [[1]]},
        {"lines": [["1", "x"]]},
        {"journalled": "1"},
        {"do": [{}]},
        {"do": 3},
    ],
)
def test_a_broken_commit_is_found_before_any_of_it_is_applied(broken: dict[str, Any]) -> None:
    """``check`` refuses it, whatever part is wrong."""
    custody = Custody()
    custody.put({"fact": "stray", "pid": 1})
    custody.take_unsent(0)
    custody.check(commit(ack=1))
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
        custody.check(commit(**broken))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=30))
def test_lines_are_kept_until_they_are_covered(steps: list[tuple[int, int]]) -> None:
    """After any commits: exactly the lines above the highest ``journalled`` are left, in order, each once."""
    custody = Custody()
    last = covered = 0
    for new, behind in steps:
        lines = [[last + i + 1, f"line {last + i + 1}"] for i in range(new)]
        last += new
        covered = max(covered, last - behind)
        custody.apply(commit(lines=lines, journalled=max(0, last - behind)))
        assert list(custody.lines) == [(seq, f"line {seq}") for seq in range(covered + 1, last + 1)]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["beat", "ready", "exit", "send", "ack"])), max_size=40)
)
def test_no_field_is_lost_and_numbers_have_no_hole(steps: list[tuple[str, str]]) -> None:
    """Whatever comes in whatever order: facts number 1, 2, 3..., and everything but beats is told exactly once."""
    custody = Custody()
    told: list[tuple[int, dict[str, Any]]] = []
    kept: list[dict[str, Any]] = []
    last_status: dict[str, str] = {}
    for i, (unit, what) in enumerate(steps):
        match what:
            case "beat":
                last_status[unit] = str(i)
                custody.put(notify(ord(unit), STATUS=str(i)), unit)
            case "ready" | "exit":
                fact = notify(ord(unit), READY=str(i)) if what == "ready" else {"fact": "exited", "pid": i}
                kept.append(fact)
                assert custody.put(fact, unit)
            case "send":
                told += custody.take_unsent(i)
            case "ack" if told:
                custody.acknowledge(told[-1][0])
    while batch := custody.take_unsent(0):
        told += batch
    assert [number for number, _ in told] == list(range(1, len(told) + 1))
    assert [fact for _, fact in told if fact["fact"] == "exited" or "READY" in fact["fields"]] == kept
    for unit, status in last_status.items():
        statuses = [f["fields"]["STATUS"] for _, f in told if f["pid"] == ord(unit) and "STATUS" in f.get("fields", {})]
        assert statuses[-1] == status

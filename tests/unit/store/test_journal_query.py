"""Filters: each condition, needles that never change the answer, and expressions that cannot run away."""

import time
from typing import Any

import pytest

from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.store.query import BadFilterError, Query, check_pattern
from supervisord_py.store.record import Chain, Stamp, pack
from supervisord_py.store.ring import Ring, merge

SECOND_NS = 1_000_000_000

RECORDS = [
    Record("daemon.started"),
    Record("unit.starting", unit="web", invocation="a" * 32),
    Record("unit.exited", Severity.WARNING, "web", "a" * 32, 2, {"code": 1, "note": "größer"}),
    Record("unit.failed", Severity.ERROR, "worker@1", "b" * 32),
    Record("command", fields={"verb": "stop", "units": ["web", "db"]}),
    Record("unit.message", unit="other", fields={"text": 'says "web" and {"seq":9}'}),
]


def make_block() -> bytes:
    chain, lines = Chain(), b""
    for number, record in enumerate(RECORDS):
        line, chain = pack(record, Stamp(number * SECOND_NS, number, "boot"), chain, payload_max=999)
        lines += line
    return lines


BLOCK = make_block()


def seqs(**conditions: Any) -> list[int]:
    """Return the numbers that match; reading backwards must give the same in reverse."""
    query = Query(**conditions)
    found = [record["seq"] for record in query.select(BLOCK)]
    assert [record["seq"] for record in query.select(BLOCK, newest_first=True)] == found[::-1]
    query.needle = b""
    assert [record["seq"] for record in query.select(BLOCK)] == found, "the needle changes the answer"
    return found


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"units": ("web",)}, [2, 3, 5]),
        ({"units": ("w*",)}, [2, 3, 4, 5]),
        ({"units": ("db", "worker@*")}, [4, 5]),
        ({"events": ("unit.exited",)}, [3]),
        ({"events": ("unit.*",)}, [2, 3, 4, 6]),
        ({"events": ("command", "daemon.started")}, [1, 5]),
        ({"severity": "warning"}, [3, 4]),
        ({"severity": "error"}, [4]),
        ({"severity": "info"}, [1, 2, 3, 4, 5, 6]),
        ({"since": "1970-01-01T00:00:02Z"}, [3, 4, 5, 6]),
        ({"until": "1970-01-01T00:00:02Z"}, [1, 2, 3]),
        ({"since": "1970-01-01T00:00:01Z", "until": "1970-01-01T01:00:03+01:00"}, [2, 3, 4]),
        ({"after": 4}, [5, 6]),
        ({"invocation": "a" * 32}, [2, 3]),
        ({"grep": "gr.ßer"}, [3]),
        ({"grep": '"verb":"stop"'}, [5]),
        ({"units": ("web",), "events": ("unit.*",), "severity": "warning"}, [3]),
        ({"units": ("nobody",)}, []),
    ],
)
def test_conditions(conditions: dict[str, Any], expected: list[int]) -> None:
    """Every condition alone and together, forwards, backwards, with and without the search for bytes."""
    assert seqs(**conditions) == expected


def test_the_hash_is_not_searched() -> None:
    """A search for a few letters does not find them by accident in a hash."""
    assert seqs(grep='"hash"') == []


def test_damaged_lines_are_passed_over_and_their_neighbours_stay() -> None:
    """A destroyed line costs its own record only; two lines that grew together cost none."""
    lines = BLOCK.split(b"\n")
    lines[2] = lines[2][:40] + b"\xff" + lines[2][41:]
    query = Query()
    assert [record["seq"] for record in query.select(b"\n".join(lines))] == [1, 2, 4, 5, 6]
    joined = BLOCK.replace(b"\n", b"\x0b", 1)
    assert [record["seq"] for record in query.select(joined)] == [1, 2, 3, 4, 5, 6]
    assert [record["seq"] for record in query.select(joined, newest_first=True)] == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "conditions",
    [
        {"since": "soon"},
        {"until": "12"},
        {"severity": "fatal"},
        {"grep": "("},
        {"grep": "x" * 1000},
        {"grep": "a{2000}{2000}"},
    ],
)
def test_unusable_conditions_are_refused_in_words(conditions: dict[str, Any]) -> None:
    """What cannot be used says why; nothing is silently ignored."""
    with pytest.raises(BadFilterError):
        Query(**conditions)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a*)*", "((a|b)c)*d", "(a|a)*b", "(?:x+){2,}", "([a-z]+)*=", r"(a)\1", "(?P<n>a)(?P=n)", ".*.*.*x",
     "(a?){900}", "a{1,5000}", "(a{2,3}){4}", "a?" * 30 + "a" * 30, "(a|a)" * 30 + "b", "a{0,900}" * 3 + "b",
     "(a|aa)?" * 12 + ".*b"],
)  # fmt: skip
def test_patterns_that_can_run_away_are_refused(pattern: str) -> None:
    """A client cannot stop the supervisor with an expression that backtracks for ever."""
    with pytest.raises(BadFilterError, match="for ever"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["timeout", "exit.code", "a+b*", "(foo|bar) failed", "^x.*y$", r"[(*]+\(\*", "colou?r", r"\d{1,3}\.", "(?i)error",
     "[]]x", "{", "a{b}", "(ab)+", r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", "|".join(map(str, range(100))),
     "user.*failed.*root"],
)  # fmt: skip
def test_ordinary_patterns_are_accepted(pattern: str) -> None:
    """What people type when they look for something works."""
    check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["a+a+$", ".*a.*$", "(ab)*c$", r"\w+\d+x", "[ab]*[ab]*c", "a?" * 9 + "a*c"])
def test_the_worst_accepted_pattern_ends_soon(pattern: str) -> None:
    """What is accepted takes a bounded time on the worst line there can be."""
    record = {"seq": 1, "text": "ab" * 100_000 + "a" * 100_000}
    for text in (str(record), "a" * 10_000):
        begun = time.process_time()
        Query(grep=pattern).matches(record, text.encode())
        assert time.process_time() - begun < 5


def test_beats_stand_where_they_came() -> None:
    """Beats are shown after the record that preceded them, the last ones of each unit only."""
    ring = Ring({"unit.heartbeat": 2})
    for mono, (unit, after_seq) in enumerate([("a", 1), ("a", 1), ("a", 2), ("b", 3), ("b", 9)]):
        ring.add({"seq": None, "event": "unit.heartbeat", "unit": unit, "mono_ns": mono, "ts": "t"}, after_seq)
    shown = merge([{"seq": 2}, {"seq": 3}, {"seq": 4}], ring.matching(Query()))
    assert [record["seq"] or record["mono_ns"] for record in shown] == [1, 2, 2, 3, 3, 4, 4]
    assert [record["seq"] for record in shown] == [None, 2, None, 3, None, 4, None]


def test_events_of_agents_are_kept_by_their_names() -> None:
    """Each as often as it is asked for, a unit; what they are called is asked for as an event is."""
    ring = Ring({"metrics": 2, "trace": 0})
    event = {"seq": None, "event": "unit.message", "severity": "info", "ts": "t"}
    for mono, (unit, name) in enumerate([("a", "metrics"), ("a", "metrics"), ("b", "metrics"), ("a", "metrics")]):
        ring.add({**event, "unit": unit, "name": name, "mono_ns": mono}, 1)
    ring.add({**event, "unit": "a", "name": "trace", "mono_ns": 9}, 1)
    assert [record["mono_ns"] for _, record in ring.matching(Query(events=("metrics",), units=("a",)))] == [1, 3]
    assert [record["mono_ns"] for _, record in ring.matching(Query(events=("met*",)))] == [1, 2, 3]
    assert [record["mono_ns"] for _, record in ring.matching(Query(events=("unit.message",)))] == [1, 2, 3]


def test_an_event_is_found_by_the_name_that_its_agent_gave_it() -> None:
    """Unless that is one of ours: whoever asks for unit.failed does not get what an agent calls so."""
    chain, block = Chain(), b""
    for name in ("paid", "unit.failed", None):
        record = Record("unit.message", unit="shop", fields={"id": 1, "to": None, "name": name, "payload": {}})
        line, chain = pack(record, Stamp(0, 0, "boot"), chain, payload_max=999)
        block += line
    failed, _ = pack(Record("unit.failed", unit="paid"), Stamp(0, 0, "boot"), chain, payload_max=999)

    def found(*events: str) -> list[int]:
        return [record["seq"] for record in Query(events=events).select(block + failed)]

    assert (found("paid"), found("p*"), found("unit.failed"), found("unit.f*")) == ([1], [1], [4], [4])
    assert (found("unit.message"), found("paid", "unit.failed"), found("*")) == ([1, 2, 3], [1, 4], [1, 2, 3, 4])


def test_beats_obey_the_filter_and_keep_last() -> None:
    """A filter on units holds for beats too, and keep-last 0 keeps none."""
    ring = Ring({"unit.heartbeat": 1})
    beat = {"seq": None, "event": "unit.heartbeat", "severity": "info", "mono_ns": 1, "ts": "t"}
    ring.add({**beat, "unit": "a"}, 5)
    ring.add({**beat, "unit": "b"}, 5)
    assert [record["unit"] for _, record in ring.matching(Query(units=("b",)))] == ["b"]
    assert ring.matching(Query(after=6)) == []
    ring.keep_last = {"unit.heartbeat": 0}
    ring.add({**beat, "unit": "a"}, 6)
    assert [record["unit"] for _, record in ring.matching(Query())] == ["b"]

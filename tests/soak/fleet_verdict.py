"""Hold what the journal of the fleet says against what was done to it and what its agents wrote: pure functions."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.soak.deeds import Deeds

Record = dict[str, Any]

ENDINGS = ("unit.restart-scheduled", "unit.failed", "unit.stopped")
"""What becomes of a unit when a life of it is over."""

ORDER_SLACK_NS = 1_000_000_000
EXPECTED_EVERY_S = 300
"""In so many seconds each agent does what it is there for once at least; in a short run once altogether."""

ERROR, STALLED = "unit.error", "unit.progress-stalled"
OWN_ENDS = {
    "feed": {"errors": (ERROR, "the source has hung up")},
    "archive": {"errors": (ERROR, "the cycle has taken longer than 2 s (cycle-timeout)")},
    "cache": {"exit-code": (ERROR, "MemoryError")},
    "courier": {"progress": (STALLED, "it has done no work for 5s (progress-sec)")},
    "printer": {"exit-code": (ERROR, "Fatal: the")},
    "worker@": {"success": None},
    "collector": {"success": None},
    "bell": {"success": None},
}
"""Agent -> results that it brings about itself -> the record of that life which tells why, and how that begins."""

LATE_SHARE = 5
"""One question in so many may come when the unit has ended once more: whoever is asked is killed now and then."""

OWN_WORD = "it said STOPPING=1"

TIMED = ("archive",)
"""With ``cycle-timeout``: the thread that ends a cycle which never returns to Python does not know of SIGSTOP."""

WORDS = {"errors": "errors", "exit-code": "exit", "progress": "progress", "signal": "SIGKILL"}
"""What ``why`` has to say of an end with this result."""


class Answer(NamedTuple):
    """What ``why`` said of a unit after the record ``seq``, and when (of the monotonic clock [ns])."""

    seq: int
    unit: str
    text: str
    at_ns: int


class Left(NamedTuple):
    """What the agents have left: the book of the collector, the last order, and notes."""

    book: Sequence[Mapping[str, Any]]
    orders: int
    scheduler: Mapping[str, Any]
    monitor: Mapping[str, Any]


def judge(
    records: Sequence[Record], deeds: Deeds, left: Left, answers: Sequence[Answer], seconds: float
) -> tuple[list[str], list[str]]:
    """Return what there is to tell, and everything that is wrong, in words."""
    lives = _lives(records)
    ends = Counter[str]()
    wrong: list[str] = []
    for life in lives.values():
        wrong += _judge_life(life, deeds, _stopping_ns(records), ends)
    wrong += _missing(records, ends, seconds)
    wrong += _messages(records, left)
    wrong += _story(records, left)
    told_of_why, of_why = _answers(lives, answers)
    wrong += of_why
    told = ["ends: " + ", ".join(f"{count} {how}" for how, count in sorted(ends.items()))]
    told.append(f"{len(left.book)} results of {left.orders} orders in the book")
    return [*told, *told_of_why], wrong + deeds.troubles


def _lives(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each life of a main process, of all units."""
    lives: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.get("invocation") and record["event"].startswith("unit."):
            lives[record["invocation"]].append(record)
    return {
        invocation: life for invocation, life in lives.items() if any(each["event"] == "unit.started" for each in life)
    }


def _stopping_ns(records: Sequence[Record]) -> int | None:
    return next((record["mono_ns"] for record in records if record["event"] == "daemon.stopping"), None)


def base(unit: str) -> str:
    """Return the template of an instance, or the unit itself."""
    return f"{unit.partition('@')[0]}@" if "@" in unit else unit


def _judge_life(life: list[Record], deeds: Deeds, stopping_ns: int | None, ends: Counter[str]) -> Iterator[str]:
    """A life has one end, and that has a cause: the agent's own, somebody's order, or a deed."""
    unit = life[0]["unit"]
    exits = [record for record in life if record["event"] == "unit.exited" and record["role"] == "main"]
    results = [record["result"] for record in life if record["event"] in ENDINGS and record.get("result")]
    if len(exits) != 1 or not results:
        yield f"{unit}: a life with {len(exits)} ends and the results {results}: {_told(life)}"
        return
    # A restart that is called off, because the unit is stopped first, adds the same result once more.
    exit, result = exits[0], results[0]
    cause = _cause(unit, exit, result, life, deeds, stopping_ns)
    if cause is None:
        yield f"UNEXPLAINED end of {unit}, pid {exit['pid']}, {result}, at {exit['ts']}: {_told(life)}"
    else:
        ends[f"{base(unit)} {cause}"] += 1


def _cause(
    unit: str, exit: Record, result: str, life: list[Record], deeds: Deeds, stopping_ns: int | None
) -> str | None:
    evidence = OWN_ENDS.get(base(unit), {}).get(result, "none")
    stopped = [each for each in life if each["event"] == "unit.stopping" and each.get("reason") != OWN_WORD]
    if evidence is None and not stopped:
        return "by itself" if exit.get("code") == 0 else None
    if isinstance(evidence, tuple):
        event, words = evidence
        if any(record["event"] == event and record["message"].startswith(words) for record in life):
            return result
    if exit.get("code") == 1 and unit in TIMED and (unit, exit["pid"]) in deeds.stopped:
        return "stopped in a cycle"
    if exit.get("signal") == "SIGKILL" and (unit, exit["pid"]) in deeds.killed and result == "signal":
        return "killed"
    if not any(record.get("reason") for record in stopped):
        return None
    if stopping_ns is not None and exit["mono_ns"] >= stopping_ns:
        return "shut down"
    wanted = {unit, base(unit)}
    at_ns = stopped[-1]["mono_ns"]
    if any(who in wanted and from_ns <= at_ns <= to_ns + ORDER_SLACK_NS for who, from_ns, to_ns in deeds.orders):
        return "ordered"
    return "of a new version" if unit == "auditor" else "the soak is over" if unit == "feed" else None


def _told(life: list[Record]) -> list[tuple[str, Any]]:
    return [(each["event"], each.get("message") or each.get("reason") or each.get("result")) for each in life][-5:]


def _missing(records: Sequence[Record], ends: Counter[str], seconds: float) -> Iterator[str]:
    """Each agent has done what it is there for."""
    counts = Counter({f"{base(record['unit'] or '-')} {record['event']}": 0 for record in records})
    counts.update(f"{base(record['unit'] or '-')} {record['event']}" for record in records)
    counts.update(ends)
    least = max(1, int(seconds // EXPECTED_EVERY_S))
    wanted = dict.fromkeys(
        (f"{unit} {'by itself' if evidence is None else result}" for unit, own in OWN_ENDS.items()
         for result, evidence in own.items()), least,
    )  # fmt: skip
    wanted |= {"printer unit.quarantined": least, "printer unit.stub-started": least, "bell timer.elapsed": least}
    wanted |= {"auditor of a new version": 1, "gauge unit.ready": 1}
    for what, count in wanted.items():
        if counts[what] < count:
            yield f"{what}: {counts[what]} times, and {count} are expected at least"


def _messages(records: Sequence[Record], left: Left) -> Iterator[str]:
    """No message is lost, and none is doubled."""
    messages = [record for record in records if record["event"] == "unit.message"]
    ids = Counter((record["invocation"], str(record["id"])) for record in messages)
    yield from (f"message {id} was written {count} times" for id, count in ids.items() if count > 1)
    results = [record for record in messages if record["to"] == "topic:results"]
    written, booked = [record["seq"] for record in results], [line["seq"] for line in left.book]
    if written != booked:
        lost, more = sorted(set(written) - set(booked)), sorted(set(booked) - set(written))
        twice = [seq for seq, count in Counter(booked).items() if count > 1]
        yield f"the book is not the journal: lost {lost[:9]}, of nobody {more[:9]}, twice {twice[:9]}"
    if [line["n"] for line in left.book] != list(range(1, len(left.book) + 1)):
        yield "the book has a hole in its numbers"
    orders: dict[int, list[str]] = defaultdict(list)
    for record in messages:
        if record["to"] == "scheduler" and record["name"] == "order":
            orders[record["payload"]["number"]].append(record["invocation"])
    if missing := sorted(set(range(1, left.orders + 1)) - set(orders)):
        yield f"orders {missing[:9]} are not in the journal"
    for number, lives in orders.items():
        if len(set(lives)) != len(lives):
            yield f"order {number} was written twice in one life of the feed"
    done = {record["payload"]["number"] for record in results}
    if undone := sorted(set(orders) - done):
        yield f"orders {undone[:9]} have no result"
    if left.scheduler["done"] != len(orders):
        yield f"the scheduler counts {left.scheduler['done']} orders, of {len(orders)}"
    if errors := [record for record in records if record["event"] == ERROR and record["unit"] == "auditor"]:
        yield f"the auditor says: {errors[0]['message']}"


def _story(records: Sequence[Record], left: Left) -> Iterator[str]:
    """The monitor has read what the journal says, each end once."""
    seen = Counter(
        record["unit"]
        for record in records
        if record["event"] == "unit.exited" and record["role"] == "main" and record["seq"] <= left.monitor["seq"]
    )
    if seen != Counter(left.monitor["ends"]):
        yield f"the monitor counts {left.monitor['ends']}, and the journal {dict(seen)}"


def _answers(lives: Mapping[str, list[Record]], answers: Sequence[Answer]) -> tuple[list[str], list[str]]:
    """``why`` told the cause of each end when it was asked before the next one."""
    wrong, late = [], 0
    ends = [record for life in lives.values() for record in life if record["event"] in ENDINGS]
    by_seq = {record["seq"]: record for record in ends}
    for answer in answers:
        record = by_seq.get(answer.seq)
        if record is None or (word := WORDS.get(record["result"])) is None:
            continue
        if any(each["unit"] == answer.unit and answer.seq < each["seq"] and each["mono_ns"] <= answer.at_ns
               for each in ends):  # fmt: skip
            late += 1
        elif word not in answer.text:
            wrong.append(f"why {answer.unit}, after {record['result']} (record {answer.seq}), says: {answer.text}")
    if len(answers) < len(ends) // 2:
        wrong.append(f"why was asked of {len(answers)} ends only, of {len(ends)}")
    if late > max(1, len(answers) // LATE_SHARE):
        wrong.append(f"{late} of {len(answers)} questions came too late")
    return [f"why was asked of {len(answers)} ends, {late} times after the next one"], wrong

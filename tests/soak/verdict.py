"""Hold what the soak did against what the journal says and what the programs wrote: pure functions."""

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from tests.soak.deeds import Deeds
from tests.soak.units import Population

Record = dict[str, Any]
Ledger = list[list[str]]
"""Lines of a program: what, pid, when [ns]."""

PERIODS_S = {"tick": 3.0, "tock": 2.0}
RASTER_S = {"clock": 5.0, "long": 5.0}
SLACK_S = 0.5
ORDER_SLACK_NS = 1_000_000_000
GROWTH_MAX_KB = 4096
GROWTH_FDS_MAX = 2


class Sample(NamedTuple):
    """What keeper or manager held at one moment."""

    who: str
    pid: int
    at_s: float
    memory_kb: int
    descriptors: int


def judge(
    records: Sequence[Record],
    ledgers: Mapping[str, Ledger],
    deeds: Deeds,
    people: Population,
) -> list[str]:
    """Return everything that is wrong, in words."""
    end_ns = next((record["mono_ns"] for record in records if record["event"] == "daemon.stopping"), None)
    wrong = [
        f"{unit}: a second copy lived: {line}"
        for unit, lines in ledgers.items()
        for line in lines
        if line[0] == "double"
    ]
    wrong += _false_ends(records, ledgers, deeds, people, end_ns)
    wrong += _lives(records, ledgers)
    wrong += _unnoticed(records, deeds)
    for unit in (*people.timers, *people.triggered):
        wrong += _runs(unit, records, ledgers.get(unit, []), deeds.triggers[unit], end_ns)
    return wrong + deeds.troubles


def _ends(records: Sequence[Record]) -> Iterator[Record]:
    return (
        record
        for record in records
        if record["event"] == "unit.exited" and record["role"] == "main" and record["pid"] is not None
    )


def _false_ends(
    records: Sequence[Record], ledgers: Mapping[str, Ledger], deeds: Deeds, people: Population, end_ns: int | None
) -> Iterator[str]:
    """Every end of a life is the program's own, or the soak's doing."""
    own = {(unit, int(line[1])) for unit, lines in ledgers.items() for line in lines if line[0] == "exit"}
    for record in _ends(records):
        unit, pid, at_ns = record["unit"], record["pid"], record["mono_ns"]
        if (unit, pid) in own or (end_ns is not None and at_ns >= end_ns):
            continue
        if (unit, pid) in deeds.killed or (unit, pid) in deeds.hung:
            continue
        template = unit.partition("@")[0] + "@" if "@" in unit else unit
        if any(
            who == template and from_ns <= at_ns <= until_ns + ORDER_SLACK_NS for who, from_ns, until_ns in deeds.orders
        ):
            continue
        told = [
            (before["event"], before.get("reason") or before.get("message"))
            for before in records
            if before.get("invocation") == record["invocation"] and before["event"] in _TELLING
        ]
        yield f"FALSE END of {unit}, pid {pid}, at {record['ts']}: {told[-3:]}"


_TELLING = ("unit.stopping", "unit.watchdog", "unit.progress-stalled", "unit.health", "unit.error")


def _lives(records: Sequence[Record], ledgers: Mapping[str, Ledger]) -> Iterator[str]:
    """Every life that a program began has one end in the journal, and no end is of a life that never was."""
    ends = Counter((record["unit"], record["pid"]) for record in _ends(records))
    starts = Counter((unit, int(line[1])) for unit, lines in ledgers.items() for line in lines if line[0] == "start")
    for (unit, pid), count in (starts - ends).items():
        yield f"{unit}: pid {pid} began {count} more lives than have ended in the journal"
    for (unit, pid), count in ends.items():
        # One that was killed before its first line is not in the ledger.
        if count > max(1, starts[unit, pid]):
            yield f"{unit}: pid {pid} has {count} ends in the journal and {starts[unit, pid]} lives"


def _unnoticed(records: Sequence[Record], deeds: Deeds) -> Iterator[str]:
    """Whatever hangs or was killed has ended."""
    ended = {(record["unit"], record["pid"]) for record in _ends(records)}
    for what, victims in (("killed", deeds.killed), ("hung", deeds.hung)):
        yield from (
            f"{unit}: pid {pid} was {what}, and never ended" for unit, pid in victims if (unit, pid) not in ended
        )


def _runs(unit: str, records: Sequence[Record], ledger: Ledger, triggers: int, end_ns: int | None) -> Iterator[str]:
    """A timer runs once for each time that has come, and for nothing else."""
    mine = [record for record in records if record["unit"] == unit]
    elapsed = [record for record in mine if record["event"] == "timer.elapsed"]
    starts = sum(line[0] == "start" for line in ledger)
    # The last one may have elapsed when everything was being stopped.
    last = sum(end_ns is not None and record["mono_ns"] >= end_ns - ORDER_SLACK_NS for record in elapsed)
    if not len(elapsed) + triggers - last <= starts <= len(elapsed) + triggers:
        yield f"{unit}: {len(elapsed)} times came, {triggers} triggers, and {starts} runs"
    due_s = [_seconds(record["due"]) for record in elapsed]
    if due_s != sorted(set(due_s)):
        yield f"{unit}: a time came twice"
    over_s = [
        max(due + record["late_ms"] / 1000, _end_of_run_s(mine, record))
        for due, record in zip(due_s, elapsed, strict=True)
    ]
    if unit in PERIODS_S:
        for before_s, due, record in zip(over_s, due_s[1:], elapsed[1:], strict=False):
            if due > before_s + PERIODS_S[unit] + SLACK_S:
                yield f"{unit}: due {due - before_s:.1f} s after the run before, at {record['ts']}"
    if unit in RASTER_S and due_s:
        step_s = RASTER_S[unit]
        seen = {round(due / step_s) for due in due_s}
        for slot in range(min(seen), max(seen)):
            at_s = slot * step_s
            if slot not in seen and not any(
                due < at_s <= over + SLACK_S for due, over in zip(due_s, over_s, strict=True)
            ):
                yield f"{unit}: nothing ran at {datetime.fromtimestamp(at_s)}"


def _end_of_run_s(mine: Sequence[Record], elapsed: Record) -> float:
    after = (record for record in mine if record["seq"] > elapsed["seq"] and record["event"] == "unit.exited")
    return _seconds(next((record["ts"] for record in after), elapsed["ts"]))


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def growth(samples: Sequence[Sample], fds_max: int = GROWTH_FDS_MAX) -> tuple[list[str], list[str]]:
    """Compare what keeper, and the manager that lived longest, held in the third quarter of their time, and at the end.

    Returns:
        What there is to tell, and what is wrong.
    """
    told: list[str] = []
    wrong: list[str] = []
    for who in ("keeper", "manager"):
        own = [sample for sample in samples if sample.who == who]
        pid = Counter(sample.pid for sample in own).most_common(1)[0][0]
        own = [sample for sample in own if sample.pid == pid]
        quarter = max(1, len(own) // 4)
        early, late = own[quarter : 2 * quarter] or own, own[-quarter:]
        kb = [statistics.median(sample.memory_kb for sample in part) for part in (early, late)]
        # The fewest: each process that lives has some, and how many live is the soak's own doing.
        fds = [min(sample.descriptors for sample in part) for part in (early, late)]
        told.append(
            f"{who} {pid} over {own[-1].at_s - own[0].at_s:.0f} s: {kb[0] / 1024:.1f} MB and {fds[0]:.0f}"
            f" descriptors at least in the second quarter, {kb[1] / 1024:.1f} MB and {fds[1]:.0f} in the last"
        )
        if kb[1] - kb[0] > GROWTH_MAX_KB:
            wrong.append(f"the memory of the {who} grows: {kb[0]:.0f} KB, then {kb[1]:.0f} KB")
        if fds[1] - fds[0] > fds_max:
            wrong.append(f"the descriptors of the {who} grow: {fds[0]:.0f}, then {fds[1]:.0f}")
    return told, wrong

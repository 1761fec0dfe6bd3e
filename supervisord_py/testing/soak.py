"""Simulated worlds for hours, on all cores, until a law is broken or the time is over.

    python -m supervisord_py.testing.soak --hours 8

Before that a day of simulated time passes over watched units that are well, on a machine that stops them, stalls,
sleeps and has its clock set: nobody is ended for a silence or a check that is no fault of his.

Each soak begins above the seeds that were run before: ``--start``, or a number of the system's randomness, which is
printed, so that every run looks at other worlds and any of them can be run again.
"""

import argparse
import os
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from random import Random

from msgspec import Struct

from supervisord_py.core.manager import Manager
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.testing.clock import SECOND_NS
from supervisord_py.testing.outcome import Outcome
from supervisord_py.testing.profile import FAULTS, Profile, draw_profile
from supervisord_py.testing.world import World, run_seeds

DAY = Profile(
    units_max=5, requests=1440, gap_max_ms=120_000, relations=0.2, watchdogs=1.0, watchdog_usec=0.3, probes=0.7,
    probe_slow=0.2, probe_impossible=0.1, timers=0.5, trigger=0.1, restart=0.05, stopped=0.5, late=0.2, look_slow=0.2,
    suspend=0.1, wall_jump=0.1, death_in_batch=0.0002, death_after_commit=0.0002, death_after_replies=0.0002,
    keeper_lost=0.005, crash=0.02, main_pid=0.1, notify_reload=0.2,
)  # fmt: skip
"""What a day is made of: nobody falls silent, and nobody is unwell."""

DAY_STEPS_MAX = 2_000_000

CHUNK = 50
"""Seeds that a process runs before it is given others."""


class DayResult(Struct, frozen=True):
    """What became of one simulated day."""

    steps: int
    hours: float
    stops: int
    suspends: int
    deaths: int
    blamed: tuple[str, ...]
    """Who was ended for a silence or a check: all of that is false."""
    report: str | None


def run_day(seed: int, profile: Profile = DAY, manager_type: type[Manager] = Manager) -> DayResult:
    """Let a day pass over watched units that are well."""
    world = World(seed, profile, manager_type=manager_type)
    world.steps_max = DAY_STEPS_MAX
    outcome = world.run()
    blamed = [
        f"{record.unit}: {record.fields.get('message') or record.fields.get('reason')}"
        for seq, record in world.journal
        if (world.calm_seq is None or seq < world.calm_seq) and _is_blame(record)
    ]
    counts: Counter[str] = Counter()
    for (fault, _), count in world.strikes.items():
        counts[fault] += count
    return DayResult(
        steps=outcome.steps,
        hours=outcome.simulated_ns / SECOND_NS / 3600,
        stops=counts["stopped"],
        suspends=counts["suspend"],
        deaths=outcome.deaths,
        blamed=tuple(blamed),
        report=outcome.report() if _is_broken(outcome) else None,
    )


def _is_blame(record: Record) -> bool:
    if record.event in ("unit.watchdog", "unit.progress-stalled"):
        return record.severity is Severity.ERROR
    is_stop = record.event == "unit.stopping"
    return is_stop and re.match("its .* check ", str(record.fields.get("reason"))) is not None


def run_chunk(start: int) -> tuple[int, int, str | None]:
    """Run one chunk; returns events, deaths of the manager, and the report of the first violation."""
    steps = deaths = 0
    for outcome in run_seeds(range(start, start + CHUNK)):
        steps, deaths = steps + outcome.steps, deaths + outcome.deaths
        if _is_broken(outcome):
            return steps, deaths, outcome.report()
    return steps, deaths, None


def _is_broken(outcome: Outcome) -> bool:
    return outcome.violation is not None


def told_faults(seeds: Iterable[int]) -> str:
    """Say in how many of these worlds each class of faults was on: a soak that left one out has not looked at it."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        profile = draw_profile(Random(seed))
        counts.update(name for name in FAULTS if getattr(profile, name))
    never = [name for name in FAULTS if not counts[name]]
    if never:
        return f"{len(FAULTS) - len(never)} of {len(FAULTS)} classes of faults were on; never: {', '.join(never)}"
    rarest = min(FAULTS, key=lambda name: counts[name])
    return f"all {len(FAULTS)} classes of faults were on, the rarest of them ({rarest}) in {counts[rarest]} worlds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak; the exit status is 1 when a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m supervisord_py.testing.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--start", type=int, help="the first seed (default: drawn, and printed)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--days", type=int, default=1, help="simulated days over watched units before that (default 1)")
    options = parser.parse_args(arguments)
    start = options.start if options.start is not None else secrets.randbelow(1 << 40)
    print(f"seeds from {start}, {options.workers} processes, {options.hours:g} hours", flush=True)
    for seed in range(start, start + options.days):
        day = run_day(seed)
        print(
            f"{day.hours:.1f} simulated hours, {day.stops} times stopped, {day.suspends} times asleep, "
            f"{day.deaths} manager deaths, {day.steps} events: {len(day.blamed)} false restarts",
            flush=True,
        )
        if day.report or day.blamed:
            print(day.report or "\n".join(day.blamed), file=sys.stderr)
            return 1
    began_s = time.monotonic()
    end_s = began_s + options.hours * 3600
    seeds = steps = deaths = 0
    report: str | None = None
    with ProcessPoolExecutor(options.workers) as pool:
        running: set[Future[tuple[int, int, str | None]]] = set()
        following = start
        while report is None and (running or time.monotonic() < end_s):
            while len(running) < options.workers and time.monotonic() < end_s:
                running.add(pool.submit(run_chunk, following))
                following += CHUNK
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                more_steps, more_deaths, found = future.result()
                seeds, steps, deaths = seeds + CHUNK, steps + more_steps, deaths + more_deaths
                report = report or found
        for future in running:
            future.cancel()
    took_s = time.monotonic() - began_s
    print(f"{seeds} seeds from {start}: {steps} events, {deaths} manager deaths in {took_s:.0f} s")
    print(told_faults(range(start, start + seeds)))
    if report is not None:
        print(report, file=sys.stderr)
    return 1 if report is not None else 0


if __name__ == "__main__":
    sys.exit(main())

"""Simulated worlds for hours, on all cores, until a law is broken or the time is over.

    python -m supervisord_py.testing.soak --hours 8

Each soak begins above the seeds that were run before: ``--start``, or a number of the system's randomness, which is
printed, so that every run looks at other worlds and any of them can be run again.
"""

import argparse
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from random import Random

from supervisord_py.testing.outcome import Outcome
from supervisord_py.testing.profile import FAULTS, draw_profile
from supervisord_py.testing.world import run_seeds

CHUNK = 50
"""Seeds that a process runs before it is given others."""


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
    options = parser.parse_args(arguments)
    start = options.start if options.start is not None else secrets.randbelow(1 << 40)
    print(f"seeds from {start}, {options.workers} processes, {options.hours:g} hours", flush=True)
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

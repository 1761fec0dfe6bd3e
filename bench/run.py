"""Run us beside supervisor, circus and a C loop, in turn, and write docs/performance.md: ``make bench``."""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import report
from bus import COUNT, PLAIN, buses
from capture import LINE, PIECE, WRITERS, measure_capture
from given import CONNECTIONS, FORMATS, GIVEN, SOCKETS, measure_format, measure_given, measure_sockets
from measure import BenchError, Figures, measure
from ours import Bookless, measure_book, measure_ours
from peers import ROOT, Circus, Loop, Ours, Peer, Supervisor, build, install_peers
from restarts import KILLS, measure_restarts
from runner import KINDS, STARTS, measure_runner

PATIENCE_S = 120.0
"""The longest that one supervisor may take to start, or to stop, everything."""
CRASH_UNITS = 100
CAPTURE_BYTES = 256_000_000
LINES_BYTES = 64_000_000
KEPT_BYTES = 16_384
"""A file of a run that is larger is emptied after it."""

PARTS = ["start", "restart", "capture", "bus", "runner", "given", "ours"]
Experiment = Callable[[Path], Figures]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[100, 1000], metavar="N", help="how many units")
    parser.add_argument(
        "--repeat", type=int, nargs="+", default=[3, 2], metavar="N", help="repetitions, or those for each of --units"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these supervisors")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, metavar="PART", default=PARTS, help=f"only these: {', '.join(PARTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=740, metavar="SECONDS", help="begin no repetition after this time"
    )
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "bench", metavar="DIR", help="where peers and files go"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md", metavar="FILE")
    options = parser.parse_args()
    if len(options.repeat) == 1:
        options.repeat *= len(options.units)
    if len(options.repeat) != len(options.units):
        parser.error("give --repeat once, or once for each of --units")
    return options


class Bench:
    """Runs experiments in turn, an order that changes, and keeps what they gave and what failed."""

    def __init__(self, folder: Path, budget_s: float) -> None:
        self._folder = folder
        self._until_s = time.monotonic() + budget_s
        self._order = random.Random(1)
        self._count = 0
        self.failures: list[str] = []
        self.omissions: list[str] = []
        """What there was no time for."""

    def run(self, title: str, repetitions: int, experiments: dict[str, Experiment]) -> dict[str, list[Figures]]:
        """Do each experiment ``repetitions`` times; one that fails is not repeated, and told in ``failures``."""
        found: dict[str, list[Figures]] = {name: [] for name in experiments}
        broken: set[str] = set()
        for repetition in range(repetitions):
            if time.monotonic() > self._until_s:
                self.omissions.append(
                    f"{title}: {repetitions - repetition} of {repetitions} repetitions, for want of time"
                )
                break
            # None always runs after the same other one.
            for name in self._order.sample(list(experiments), len(experiments)):
                if name in broken:
                    continue
                self._count += 1
                # Short, for some make sockets in it, and a socket's path has 107 bytes at most.
                folder = self._folder / f"{self._count}"
                begun = time.monotonic()
                try:
                    figures = experiments[name](folder)
                except BenchError as error:
                    broken.add(name)
                    self.failures.append(f"{title}, {name}: {error}")
                else:
                    found[name].append(figures)
                took = f"{time.monotonic() - begun:.0f} s"
                told = self.failures[-1] if name in broken else {key: figures[key] for key in figures}
                print(f"{title} {repetition + 1}/{repetitions} {name} ({took}): {told}", file=sys.stderr, flush=True)
                give_space_back(folder)
        return {name: figures for name, figures in found.items() if figures}


def give_space_back(folder: Path) -> None:
    """Empty the large files of a run, and keep all names until the end.

    ext4 gives no inode away that was freed within the last minutes, but looks at each of them for every file that is
    made: with the folders of earlier runs removed, three quarters of our processor time in capturing were that.
    """
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_size > KEPT_BYTES:
            os.truncate(file, 0)


def run_all(bench: Bench, peers: Sequence[Peer], options: argparse.Namespace) -> list[report.Section]:
    """Do what was asked for, the cheap things first."""
    sleeper, writer = (build(options.build, name) for name in ("sleeper", "writer"))
    sections: list[report.Section] = []

    def add(section: report.Section, repetitions: int, experiments: dict[str, Experiment]) -> None:
        section.runs.update(bench.run(section.title, repetitions, experiments))
        sections.append(section)

    def starts(count: int) -> dict[str, Experiment]:
        return {p.name: partial(measure, p, count, sleeper=sleeper, patience_s=PATIENCE_S) for p in peers}

    def restarts(count: int, quick: bool) -> dict[str, Experiment]:
        return {
            p.name: partial(measure_restarts, p, count, sleeper=sleeper, patience_s=PATIENCE_S, quick=quick)
            for p in peers
            if not quick or p.quick_delay is not None or p.name == report.LIMIT
        }

    def captures(writers: int, piece: int, total: int) -> dict[str, Experiment]:
        how = {"writers": writers, "piece": piece, "total": total}
        return {p.name: partial(measure_capture, p, writer=writer, patience_s=PATIENCE_S, **how) for p in peers}

    counts = list(zip(options.units, options.repeat, strict=True)) if "start" in options.parts else []
    few, most = min(2, *options.repeat), max(options.repeat)
    for count, repetitions in counts[:1]:
        add(report.start_section(count), repetitions, starts(count))
    delays = {p.name: (p.default_delay, p.quick_delay) for p in peers}
    if "restart" in options.parts:
        for quick in (False, True):
            add(report.restart_section(CRASH_UNITS, KILLS, quick, delays), 1, restarts(CRASH_UNITS, quick))
    if "capture" in options.parts:
        add(report.capture_section(WRITERS, CAPTURE_BYTES, PIECE), most, captures(WRITERS, PIECE, CAPTURE_BYTES))
        add(report.capture_section(WRITERS, LINES_BYTES, LINE), most, captures(WRITERS, LINE, LINES_BYTES))
    if "bus" in options.parts:
        wanted = {peer.name for peer in peers} | {PLAIN}
        of_all = buses(options.build / "peers", PATIENCE_S)
        add(report.bus_section(COUNT), few, {name: of for name, of in of_all.items() if name in wanted})
    if "runner" in options.parts:
        add(report.runner_section(STARTS), few, {kind: partial(measure_runner, kind) for kind in KINDS})
    if "given" in options.parts:
        how = {"sleeper": sleeper, "patience_s": PATIENCE_S}
        count = min(options.units)
        add(report.given_section(count), few, {kind: partial(measure_given, kind, count, **how) for kind in GIVEN})
        how = {"writer": writer, "patience_s": PATIENCE_S, "writers": WRITERS, "piece": PIECE, "total": LINES_BYTES}
        add(
            report.format_section(WRITERS, LINES_BYTES, PIECE), few,
            {kind: partial(measure_format, kind, **how) for kind in FORMATS},
        )  # fmt: skip
        how = {"sleeper": sleeper, "program": build(options.build, "answer"), "patience_s": PATIENCE_S}
        add(report.socket_section(CONNECTIONS), few, {kind: partial(measure_sockets, kind, **how) for kind in SOCKETS})
    ours = next((peer for peer in peers if isinstance(peer, Ours)), None)
    if "ours" in options.parts and ours is not None:
        count, bookless = max(options.units), Bookless()
        add(
            report.ours_section(count), 1,
            {ours.name: partial(measure_ours, ours, count, sleeper=sleeper, patience_s=PATIENCE_S)},
        )  # fmt: skip
        add(
            report.book_section(count), few,
            {
                report.WITH_BOOK: partial(measure_book, ours, count, sleeper=sleeper, patience_s=PATIENCE_S),
                report.WITHOUT_BOOK: partial(measure_book, bookless, count, sleeper=sleeper, patience_s=PATIENCE_S),
            },
        )  # fmt: skip
    for count, repetitions in counts[1:]:
        add(report.start_section(count), repetitions, starts(count))
    for count in options.units:
        if "capture" in options.parts:
            add(report.capture_section(count, CAPTURE_BYTES, PIECE), 1, captures(count, PIECE, CAPTURE_BYTES))
        if "restart" in options.parts and count != CRASH_UNITS:
            add(report.restart_section(count, KILLS, True, delays), 1, restarts(count, True))
    return sections


def main() -> int:
    options = arguments()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sleeper, loop = build(options.build, "sleeper"), build(options.build, "loop")
    venv = options.build / "peers"
    install_peers(venv)
    peers: list[Peer] = [Ours(), Supervisor(venv), Circus(venv), Loop(loop)]
    if options.only:
        peers = [peer for peer in peers if peer.name in options.only]
    with tempfile.TemporaryDirectory(prefix="runs-", dir=options.build, ignore_cleanup_errors=True) as runs:
        return compare(options, peers, Bench(Path(runs), options.budget), sleeper)


def compare(options: argparse.Namespace, peers: list[Peer], bench: Bench, sleeper: Path) -> int:
    """Do everything and write the page; returns the exit code."""
    # Once without looking: byte code is compiled, pages are in memory.
    warm = bench.run(
        "warming up",
        1,
        {p.name: partial(measure, p, 5, sleeper=sleeper, patience_s=PATIENCE_S, calm_s=0) for p in peers},
    )
    peers = [peer for peer in peers if peer.name in warm]
    began_s = time.monotonic()
    sections = run_all(bench, peers, options)
    page = report.page(sections, {peer.name: peer.version() for peer in peers}, bench.failures + bench.omissions)
    report.write(options.output, page)
    print(f"{time.monotonic() - began_s:.0f} s", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())

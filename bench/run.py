"""Run us beside supervisor, circus and a C loop, in turn, and write docs/performance.md: ``make bench``."""

import argparse
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import report
from measure import BenchError, Figures, measure
from peers import ROOT, Circus, Loop, Ours, Peer, Supervisor, build, install_peers

PATIENCE_S = 120.0
"""The longest that one supervisor may take to start, or to stop, everything."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[100, 1000], metavar="N", help="how many units")
    parser.add_argument(
        "--repeat", type=int, nargs="+", default=[5, 3], metavar="N", help="repetitions for each of --units"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these supervisors")
    parser.add_argument(
        "--budget", type=float, default=600, metavar="SECONDS", help="begin no repetition after this time"
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


def run_all(
    peers: list[Peer], options: argparse.Namespace, sleeper: Path, failures: list[str]
) -> dict[int, dict[str, list[Figures]]]:
    """Measure every peer in every repetition, in an order that changes, so that none always runs after the same one."""
    order = random.Random(1)
    begun = time.monotonic()
    runs: dict[int, dict[str, list[Figures]]] = {}
    broken: set[tuple[str, int]] = set()
    for count, repetitions in zip(options.units, options.repeat, strict=True):
        runs[count] = {peer.name: [] for peer in peers}
        for repetition in range(repetitions):
            if time.monotonic() - begun > options.budget:
                failures.append(f"N = {count}: {repetitions - repetition} repetitions, the time was over.")
                break
            for peer in order.sample(peers, len(peers)):
                if (peer.name, count) in broken:
                    continue
                folder = options.build / "runs" / f"{peer.name.replace(' ', '-')}-{count}-{repetition}"
                try:
                    figures = measure(peer, count, folder, sleeper, PATIENCE_S)
                except BenchError as error:
                    broken.add((peer.name, count))
                    failures.append(f"{peer.name} at N = {count}: {error}")
                else:
                    runs[count][peer.name].append(figures)
                    print(
                        f"N={count} {repetition + 1}/{repetitions} {peer.name}: {figures}", file=sys.stderr, flush=True
                    )
        runs[count] = {name: figures for name, figures in runs[count].items() if figures}
    return runs


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
    shutil.rmtree(options.build / "runs", ignore_errors=True)
    failures: list[str] = []
    for peer in peers:
        # Once without looking: byte code is compiled, pages are in memory.
        try:
            measure(peer, 5, options.build / "runs" / f"{peer.name.replace(' ', '-')}-warm", sleeper, PATIENCE_S)
        except BenchError as error:
            failures.append(f"{peer.name}: {error}")
    runs = run_all(
        [peer for peer in peers if not any(text.startswith(f"{peer.name}: ") for text in failures)],
        options,
        sleeper,
        failures,
    )
    report.write(options.output, report.page(runs, {peer.name: peer.version() for peer in peers}, failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

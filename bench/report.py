"""The page docs/performance.md: what was measured, what we lose first, then everything."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measure import Figures

OURS = "supervisord-py"
LIMIT = "C loop"


class Metric(NamedTuple):
    """One figure that is compared; smaller is better."""

    field: str
    title: str
    unit: str
    scale: float


METRICS = (
    Metric("start_s", "launch to the last of N processes running", "s", 1),
    Metric("status_s", "status of all N, the command as typed", "ms", 1000),
    Metric("stop_s", "SIGTERM to everything gone", "s", 1),
    Metric("memory_mb", "memory of the supervisor itself (PSS)", "MB", 1),
    Metric("idle_wakeups_per_s", "wake-ups while idle", "/s", 1),
    Metric("idle_cpu_ms_per_s", "processor while idle", "ms/s", 1),
)

Runs = dict[int, dict[str, list[Figures]]]
"""Figures by N and name, a list of repetitions."""


def values(figures: Sequence[Figures], metric: Metric) -> list[float]:
    found = [getattr(one, metric.field) for one in figures]
    return [value * metric.scale for value in found if value is not None]


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def comparisons(runs: Runs) -> list[tuple[int, Metric, str, float, float]]:
    """Return (N, metric, peer, our median, its median) of all that can be compared."""
    found = []
    for count, by_name in runs.items():
        for metric in METRICS:
            ours = values(by_name.get(OURS, []), metric)
            for name, figures in by_name.items():
                theirs = values(figures, metric)
                if name != OURS and ours and theirs:
                    found.append((count, metric, name, statistics.median(ours), statistics.median(theirs)))
    return found


def page(runs: Runs, versions: dict[str, str], failures: Sequence[str]) -> str:
    """Write the page."""
    compared = comparisons(runs)
    lost = [row for row in compared if row[3] > row[4] and row[2] != LIMIT and number(row[3]) != number(row[4])]
    repetitions = ", ".join(
        f"N = {count}: {max(map(len, by_name.values()))}" for count, by_name in runs.items() if by_name
    )
    lines = [
        "# Performance",
        "",
        "Written by `make bench` (`bench/README.md` says how it measures); do not edit. Absolute figures belong to",
        "the machine, compare the ratios: all supervisors were run in turn within one run, and medians are shown.",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python "
        f"{platform.python_version()}, load average at the end {os.getloadavg()[0]:.1f}. Repetitions: {repetitions}.",
        f"Compared: {', '.join(f'{name} ({version})' for name, version in versions.items())}.",
        "",
        "## What we lose",
        "",
    ]
    if lost:
        lines += ["| N | what | we | | they | we take |", "|---|---|---|---|---|---|"]
        for count, metric, name, ours, theirs in sorted(lost, key=lambda row: -_times(row[3], row[4])):
            lines.append(
                f"| {count} | {metric.title} | {number(ours)} {metric.unit} | {name} | {number(theirs)} {metric.unit} "
                f"| {_ratio_text(ours, theirs)} |"
            )
    else:
        lines.append(
            "Nothing against a peer in this run. Against the C loop, which keeps no log and answers nobody, see below."
        )
    lines += ["", *[f"Not measured: {failure}" for failure in failures], *([""] if failures else [])]
    for count, by_name in runs.items():
        if not by_name:
            continue
        lines += [f"## N = {count}", "", "| what | " + " | ".join(by_name) + " |", "|---" * (len(by_name) + 1) + "|"]
        for metric in METRICS:
            lines.append(f"| {metric.title} [{metric.unit}] | " + " | ".join(_cells(by_name, metric)) + " |")
        lines.append("")
    lines += [
        "In brackets: smallest and largest repetition; then how many times our figure it is (above 1: we are better).",
        "",
    ]
    return "\n".join(lines)


def _cells(by_name: dict[str, list[Figures]], metric: Metric) -> list[str]:
    ours = values(by_name.get(OURS, []), metric)
    cells = []
    for name, figures in by_name.items():
        found = values(figures, metric)
        if not found:
            cells.append("-")
            continue
        middle = statistics.median(found)
        text = f"{number(middle)} ({number(min(found))}-{number(max(found))})"
        if name != OURS and ours:
            text += f", {_ratio_text(middle, statistics.median(ours))}"
        cells.append(text)
    return cells


def _times(one: float, other: float) -> float:
    return one / other if other > 0 else float("inf")


def _ratio_text(one: float, other: float) -> str:
    return f"{ratio(one / other)}x" if other > 0 else "-"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(text, file=sys.stderr)

"""The page docs/performance.md: what was measured, what we lose first, then everything."""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bus_client import SUBSCRIBERS
from measure import Figures
from reasons import REASONS

OURS = "supervisord-py"
LIMIT = "C loop"
WITH_BOOK, WITHOUT_BOOK = "with the book", "without"
RUNNER_TIMES, RUNNER_MB = 1.2, 8
"""What an agent may cost over bare Python."""
EXPLAINED_FROM = 4.0
"""A figure so many times that of the C loop needs a remedy or a reason."""


class Metric(NamedTuple):
    """One figure; smaller is better unless ``bigger``."""

    field: str
    title: str
    unit: str
    scale: float = 1
    bigger: bool = False


@dataclass
class Section:
    """One table: what was done, and what each name gave, a list of repetitions."""

    title: str
    about: str
    metrics: tuple[Metric, ...]
    runs: dict[str, list[Figures]] = field(default_factory=dict)
    is_compared: bool = True
    """Whether the columns are us and others."""
    conclude: Callable[["Section"], str] | None = None
    """Says in a sentence what the table shows."""


class Comparison(NamedTuple):
    section: Section
    metric: Metric
    name: str
    ours: float
    theirs: float

    @property
    def factor(self) -> float:
        """How many times worse we are."""
        one, other = (self.theirs, self.ours) if self.metric.bigger else (self.ours, self.theirs)
        return one / other if other > 0 else float("inf") if one > 0 else 1.0


def start_section(count: int) -> Section:
    return Section(
        f"{count} units: start, idle, status, stop",
        "The supervisor's own start is part of it. Idling is measured when it has rested for six seconds.",
        (
            Metric("start_s", "launch to the last of N processes running", "s"),
            Metric("start_cpu_s", "processor time of the supervisor until then", "s"),
            Metric("status_s", "status of all N, the command as typed", "ms", 1000),
            Metric("stop_s", "SIGTERM to everything gone", "s"),
            Metric("memory_mb", "memory of the supervisor itself (PSS)", "MB"),
            Metric("idle_wakeups_per_s", "wake-ups while idle", "/s"),
            Metric("idle_cpu_ms_per_s", "processor while idle", "ms/s"),
        ),
    )


def restart_section(count: int, kills: int, quick: bool, delays: Mapping[str, tuple[str, str | None]]) -> Section:
    told = "; ".join(
        f"{name}: {words}" for name, both in delays.items() if (words := both[1] if quick else both[0]) is not None
    )
    what = "with the shortest delay that can be set" if quick else "with the delay that is the default"
    return Section(
        f"A crash of one of {count} units, {what}",
        f"kill -9 until the new process says its own time, {kills} kills a repetition at moments that no tick is in"
        f" step with. {told}.",
        (
            Metric("restart_ms", "crash to the new process running", "ms"),
            Metric("restart_max_ms", "the longest of them", "ms"),
        ),
    )


def capture_section(writers: int, total: int, piece: int) -> Section:
    how = "a line a write" if piece <= 80 else f"pieces of {piece // 1000} kB"
    return Section(
        f"Output of {writers} units at once into their logs, {how}",
        f"{total // 1_000_000} MB of 80-byte lines altogether, until the last byte is in the files; a lost byte is a"
        " failure. In the C loop the units write into files themselves: nobody captures anything.",
        (
            Metric("capture_mb_per_s", "captured", "MB/s", bigger=True),
            Metric("capture_klines_per_s", "captured", "1,000 lines/s", bigger=True),
            Metric("capture_cpu_s_per_gb", "processor time of the supervisor", "s/GB"),
        ),
    )


def ours_section(count: int) -> Section:
    return Section(
        f"Manager and keeper killed and replaced, with {count} units that run on",
        "Nobody else here can be asked that: their units are lost, or started a second time. No unit may end or be"
        " started again in any of it. Silence is the longest that a client waited for an answer.",
        (
            Metric("keeper_cpu_s", "start: processor time of the keeper (with `run` before it)", "s"),
            Metric("manager_cpu_s", "start: processor time of the manager", "s"),
            Metric("manager_killed_ms", "kill -9 of the manager until the next one answers", "ms"),
            Metric("manager_replaced_s", "daemon-restart, the command as typed", "s"),
            Metric("manager_replaced_silent_ms", "silence in it", "ms"),
            Metric("keeper_replaced_s", "daemon-reexec, the command as typed", "s"),
            Metric("keeper_replaced_silent_ms", "silence in it", "ms"),
            Metric("adopted_s", "after kill -9 of the keeper: `run` until status shows all units running again", "s"),
            Metric("adopted_stop_s", "SIGTERM to everything gone, with adopted processes", "s"),
        ),
        is_compared=False,
    )


def book_section(count: int) -> Section:
    def conclude(section: Section) -> str:
        metric = section.metrics[1]
        both = [values(section.runs.get(name, []), metric) for name in (WITH_BOOK, WITHOUT_BOOK)]
        if not all(both):
            return "One of both could not be measured."
        cost_s = statistics.median(both[0]) - statistics.median(both[1])
        return (
            f"So the book takes {1e6 * cost_s / count:.0f} us of processor time a start, {REASONS['book']}"
            if cost_s > 0
            else "The book costs less than repetitions differ."
        )

    return Section(
        f"The keeper's book, {count} units",
        "What lets a killed keeper's processes be adopted: every change of custody is a line in a file (ADR 0007)."
        " Without it the keeper does all else as before.",
        (
            Metric("start_s", "launch to the last of N processes running", "s"),
            Metric("keeper_cpu_s", "processor time of the keeper until then (with `run` before it)", "s"),
            Metric("stop_s", "SIGTERM to everything gone", "s"),
        ),
        is_compared=False,
        conclude=conclude,
    )


def bus_section(count: int) -> Section:
    return Section(
        f"Messages between agents, {count} of them",
        "One sends, with at most 200 unanswered, one subscribes; each of ours is a record on the disk before it is"
        " answered, and delivered then. The plain loop is a ROUTER that numbers, answers and forwards, and keeps"
        " nothing. Circus has no such bus: its command socket is asked for the number of watchers. Under the flood,"
        " of one that sends as fast as it can and reads nothing, another asks and waits a hundred times a second; we"
        " hold the flooder to the default of 1000/s, the others cannot.",
        (
            Metric("bus_sent_per_s", "sent and answered", "/s", bigger=True),
            Metric("bus_delivered_per_s", "delivered to the subscriber", "/s", bigger=True),
            Metric("bus_fan_per_s", f"delivered to {SUBSCRIBERS} subscribers, together", "/s", bigger=True),
            Metric("bus_quiet_ms", "one message and its answer, at rest", "ms"),
            Metric("bus_flood_ms", "the same under a flood", "ms"),
            Metric("bus_flood_p99_ms", "the slowest hundredth of them", "ms"),
        ),
    )


def runner_section(starts: int) -> Section:
    return Section(
        "An agent of the Python SDK beside bare Python",
        f"Until the first line of what people write runs: a script, or `setup` of an agent; {starts} starts of both in"
        " turn, byte code compiled. Memory while it rests after its first cycle, one of each at the same time. Who"
        " writes coroutines is compared with a script that runs an event loop.",
        (
            Metric("runner_start_ms", "start", "ms"),
            Metric("runner_start_times", "start, times that of bare Python", "x"),
            Metric("runner_cpu_ms", "processor time of the start", "ms"),
            Metric("runner_cpu_times", "processor time, times that of bare Python", "x"),
            Metric("runner_pss_mb", "memory (PSS)", "MB"),
            Metric("runner_more_pss_mb", "memory over bare Python (PSS)", "MB"),
            Metric("runner_rss_mb", "memory (RSS)", "MB"),
            Metric("runner_more_rss_mb", "memory over bare Python (RSS)", "MB"),
        ),
        is_compared=False,
        conclude=_judge_runner,
    )


def given_section(count: int) -> Section:
    return Section(
        f"{count} units that are given something",
        "Limits: nofile, nice, and memory, tasks and processor by the kernel. Filters: no new privileges, no"
        " capabilities, systemd's @system-service, address families, namespaces, personality, memory. Mounts: all"
        " read-only but a /tmp and a /dev of their own. Processor time is a start's share of all of it until then.",
        (
            Metric("start_s", "launch to the last of N processes running", "s"),
            Metric("given_keeper_ms", "processor time of the keeper, with the children until exec", "ms"),
            Metric("given_manager_ms", "processor time of the manager", "ms"),
            Metric("stop_s", "SIGTERM to everything gone", "s"),
        ),
        is_compared=False,
    )


def format_section(writers: int, total: int, piece: int) -> Section:
    section = capture_section(writers, total, piece)
    section.title = f"Formats of logs: output of {writers} units at once"
    section.about = (
        f"{total // 1_000_000} MB of 80-byte lines altogether, until the last byte is in the files; each line must be"
        " there once. Compressed is a file of 1 MB at a time, so all of them are."
    )
    section.is_compared = False
    return section


def socket_section(connections: int) -> Section:
    return Section(
        "Sockets that the supervisor listens on",
        f"From connect to the answer of one byte, {connections} times, one after the other, over a Unix socket: of a"
        " server in C, which here and there has to be started first.",
        (
            Metric("answer_ms", "connect to answer", "ms"),
            Metric("answer_max_ms", "the longest of them", "ms"),
        ),
        is_compared=False,
    )


def _judge_runner(section: Section) -> str:
    """Hold the figures to what is promised."""
    worst: dict[str, float] = {}
    for name in ("runner_start_times", "runner_more_pss_mb", "runner_more_rss_mb"):
        medians = [
            statistics.median(found)
            for figures in section.runs.values()
            if (found := values(figures, Metric(name, "", "")))
        ]
        if not medians:
            return "Not all of it could be measured."
        worst[name] = max(medians)
    start = worst["runner_start_times"]
    more = max(worst["runner_more_pss_mb"], worst["runner_more_rss_mb"])
    return (
        f"Promised are at most {RUNNER_TIMES} times the start, which is {'kept' if start <= RUNNER_TIMES else 'missed'}"
        f" ({number(start)}), and {RUNNER_MB} MB over it,"
        f" which is {'kept' if more <= RUNNER_MB else 'missed'} ({number(more)})."
    )


def values(figures: Sequence[Figures], metric: Metric) -> list[float]:
    found = [one.get(metric.field) for one in figures]
    return [value * metric.scale for value in found if value is not None]


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float) -> str:
    return "-" if value == float("inf") else f"{value:.2g}x" if value < 10 else f"{value:.0f}x"


def comparisons(sections: Sequence[Section]) -> Iterator[Comparison]:
    """Yield all that can be compared, by medians."""
    for section in sections:
        for metric in section.metrics if section.is_compared else ():
            ours = values(section.runs.get(OURS, []), metric)
            for name, figures in section.runs.items():
                theirs = values(figures, metric)
                if name != OURS and ours and theirs:
                    yield Comparison(section, metric, name, statistics.median(ours), statistics.median(theirs))


def page(sections: Sequence[Section], versions: Mapping[str, str], failures: Sequence[str]) -> str:
    """Write the page."""
    compared = list(comparisons(sections))
    lines = [
        "# Performance",
        "",
        "Written by `make bench` (`bench/README.md` says how it measures); do not edit. Absolute figures belong to",
        "the machine, compare the ratios: all supervisors were run in turn within one run, and medians are shown.",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python "
        f"{platform.python_version()}, as {'root' if os.geteuid() == 0 else 'an ordinary user'}, load average at the "
        f"end {os.getloadavg()[0]:.1f}.",
        f"Compared: {', '.join(f'{name} ({version})' for name, version in versions.items())}.",
        "",
        "## What we lose",
        "",
        *_lost(compared),
        "",
        *[f"Not measured: {failure}" for failure in failures],
        *([""] if failures else []),
        f"## More than {EXPLAINED_FROM:.0f} times the C loop",
        "",
        *_explained(compared),
        "",
    ]
    for section in sections:
        if section.runs:
            lines += _table(section)
    lines += [
        "Medians; in brackets the smallest and largest repetition; then how many times better than that we are",
        "(below 1x: worse).",
        "",
    ]
    return "\n".join(lines)


def _lost(compared: Sequence[Comparison]) -> list[str]:
    lost = [c for c in compared if c.name != LIMIT and c.factor > 1 and number(c.ours) != number(c.theirs)]
    if not lost:
        return ["Nothing against a peer in this run."]
    rows = [
        f"| {c.section.title} | {c.metric.title} | {number(c.ours)} {c.metric.unit} | {c.name} "
        f"| {number(c.theirs)} {c.metric.unit} | {times(c.factor)} |"
        for c in sorted(lost, key=lambda c: -c.factor)
    ]
    return ["| | what | we | | they | we are worse by |", "|---|---|---|---|---|---|", *rows]


def _explained(compared: Sequence[Comparison]) -> list[str]:
    # What the C loop does not use at all is no measure.
    far = [c for c in compared if c.name == LIMIT and EXPLAINED_FROM < c.factor < float("inf")]
    if not far:
        return ["Nothing in this run."]
    rows = [
        f"| {c.section.title} | {c.metric.title} | {number(c.ours)} {c.metric.unit} "
        f"| {number(c.theirs)} {c.metric.unit} | {times(c.factor)} |"
        for c in sorted(far, key=lambda c: -c.factor)
    ]
    fields = dict.fromkeys(c.metric.field for c in far)
    told = [f"* **{_title(compared, name)}.** {REASONS.get(name, 'Not explained yet.')}" for name in fields]
    return ["| | what | we | C loop | |", "|---|---|---|---|---|", *rows, "", "Remedies and reasons:", "", *told]


def _title(compared: Sequence[Comparison], name: str) -> str:
    title = next(c.metric.title for c in compared if c.metric.field == name)
    return title[0].upper() + title[1:]


def _table(section: Section) -> list[str]:
    repetitions = max(map(len, section.runs.values()))
    lines = [
        f"## {section.title}",
        "",
        f"{section.about} {repetitions} {'repetition' if repetitions == 1 else 'repetitions'}.",
        "",
        "| what | " + " | ".join(section.runs) + " |",
        "|---" * (len(section.runs) + 1) + "|",
    ]
    for metric in section.metrics:
        cells = [_cell(section, metric, name) for name in section.runs]
        lines.append(f"| {metric.title} [{metric.unit}] | " + " | ".join(cells) + " |")
    if section.conclude is not None:
        lines += ["", section.conclude(section)]
    return [*lines, ""]


def _cell(section: Section, metric: Metric, name: str) -> str:
    found, ours = values(section.runs[name], metric), values(section.runs.get(OURS, []), metric)
    if not found:
        return "-"
    middle = statistics.median(found)
    text = number(middle) + (f" ({number(min(found))}-{number(max(found))})" if len(found) > 1 else "")
    if section.is_compared and name != OURS and ours:
        factor = Comparison(section, metric, name, statistics.median(ours), middle).factor
        text += f", {times(1 / factor if factor else float('inf'))}" if factor != float("inf") else ", -"
    return text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(text, file=sys.stderr)

"""A program that fails again and again, under us, supervisor, circus and pm2: writes docs/crash-loop.md.

    python bench/crashloop.py [--seconds 75]

All run at once, each in a folder of its own, with the defaults that it has: the time between two failures is theirs,
and what is compared is how many starts they make, whether they ever stop, what their status says of it, and what it
costs. Intervals of minutes are ours alone: the same core decides, on a clock that is not waited for.
"""

import argparse
import contextlib
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from measure import RECORD, cpu_s, family, launch
from peers import ROOT, Circus, Flapping, Load, Ours, Peer, Pm2, Supervisor, build, install_peers, install_pm2

sys.path.insert(0, str(ROOT))
from supervisord_py.core.events import ExitStatus
from supervisord_py.core.view import unit_status
from supervisord_py.model.unit import Command, Service, Unit, UnitKind
from supervisord_py.model.values import SECOND_NS, format_timespan
from supervisord_py.testing.scene import Scene

FAILS_MS = (0, 2000)
"""After how long the program fails: at once, and so late that supervisor and pm2 have called it running."""
UNIT = "unit0000"
STOP_S = 15.0
QUIET_PART = 3
"""Who has made no start in the last so-manieth part of the time has given up."""
DAY_S = 86_400.0
SPANS_S = (7, 60, 300, 540, 660, 1800)


@dataclass
class Seen:
    """What one supervisor did with one program."""

    starts: list[float]
    """When [s after the first]."""
    window_s: float
    cpu_s: float
    status: str
    exit_status: int

    @property
    def has_given_up(self) -> bool:
        return self.starts[-1] < self.window_s * (1 - 1 / QUIET_PART)


def observe(peer: Peer, folder: Path, sleeper: Path, fails_ms: int, window_s: float) -> Seen:
    """Run one supervisor with one program for so long.

    Raises:
        RuntimeError: It has never started the program.
    """
    folder.mkdir(parents=True)
    fifo = folder / "started"
    os.mkfifo(fifo)
    records = os.open(fifo, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    load = Load(1, (str(sleeper), str(fifo), str(fails_ms)))
    peer.prepare(folder, load)
    process = launch(peer, load, folder)
    try:
        begun_s, starts, before_s = time.monotonic(), [], 0.0
        while time.monotonic() < begun_s + window_s:
            time.sleep(0.05)
            with contextlib.suppress(BlockingIOError):
                new = [ns / 1e9 for ns, _, _ in RECORD.iter_unpack(os.read(records, RECORD.size * 512))]
                if new and not starts:
                    # Until here it was busy with its own start.
                    begun_s, before_s = new[0], _own_cpu_s(process.pid, sleeper)
                starts += new
        if not starts:
            out = (folder / "supervisor.out").read_text(errors="replace")[-500:]
            raise RuntimeError(f"{peer.name} did not start it: {out}")
        used_s = _own_cpu_s(process.pid, sleeper) - before_s
        command = peer.status_command(folder)
        assert command is not None
        done = subprocess.run(
            command, env=peer.environment(folder), capture_output=True, text=True, timeout=60, check=False
        )
        # Who takes a name says more with its exit code then.
        named = command if isinstance(peer, Pm2) else [*command, UNIT]
        code = subprocess.run(
            named, env=peer.environment(folder), capture_output=True, timeout=60, check=False
        ).returncode  # fmt: skip
        line = next((line for line in done.stdout.splitlines() if UNIT in line), done.stderr.strip()[-100:])
        return Seen([at_s - starts[0] for at_s in starts], window_s, used_s, _plain(line), code)
    finally:
        _end(process)
        os.close(records)


def _own_cpu_s(pid: int, sleeper: Path) -> float:
    total = 0.0
    for each in family(pid, set()):
        # What fails comes and goes while we look.
        with contextlib.suppress(OSError, IndexError, ValueError):
            if os.readlink(f"/proc/{each}/exe") != str(sleeper):
                total += cpu_s([each])
    return total


def _plain(line: str) -> str:
    words = [word for word in line.replace("│", " ").split() if word]
    return " ".join(words)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        pass  # killed below, with what it has made
    left = family(process.pid, set()) if process.returncode is None else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def observe_all(peers: list[Peer], folder: Path, sleeper: Path, window_s: float) -> dict[tuple[str, int], Seen | str]:
    """Run all at once; returns what each did, or why it did nothing, by name and time of the failure."""
    found: dict[tuple[str, int], Seen | str] = {}

    def run(number: int, peer: Peer, fails_ms: int) -> None:
        try:
            found[peer.name, fails_ms] = observe(peer, folder / str(number), sleeper, fails_ms, window_s)
        except Exception as error:  # noqa: BLE001  told in the page in place of figures
            found[peer.name, fails_ms] = str(error)

    pairs = [(peer, fails_ms) for fails_ms in FAILS_MS for peer in peers]
    threads = [threading.Thread(target=run, args=(number, *pair)) for number, pair in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def simulate(fails_s: float, days: float = 10) -> tuple[int, float | None]:
    """Let our core have a program that fails after so long, with the defaults of a unit file.

    Returns:
        How many starts it made, and after how long it gave up [s]; None: not within ``days``.
    """
    scene = Scene([Unit("web", UnitKind.SERVICE, Service(exec_start=(Command(("/opt/web",)),)))])
    scene.handle(scene.request("start", ["web"]))
    begun_ns, starts = scene.clock.mono_ns, 0
    while scene.clock.mono_ns - begun_ns < days * DAY_S * SECOND_NS:
        if unit_status(scene.manager, "web").active_state == "quarantined":
            return starts, (scene.clock.mono_ns - begun_ns) / 1e9
        if not scene.is_pending("web"):
            for _ in scene.pass_time(SECOND_NS):
                pass
            continue
        scene.handle(scene.spawned("web"))
        starts += 1
        for _ in scene.pass_time(round(fails_s * SECOND_NS)):
            pass
        scene.handle(scene.exited("web", ExitStatus(code=1)))
    return starts, None


RULES = """\
* **supervisord-py**: five failures of which none was followed by ten minutes of health (`[quarantine] failures`,
  `restart-reset-sec`) quarantine the unit. `restart = "always"` does not change that; `failures = 0` switches it off.
* **supervisor**: only an exit before `startsecs` (1 s) counts; after three more tries the program is FATAL. One that
  runs longer is restarted for ever, and each start that lasts a second makes it RUNNING.
* **circus**: `max_retry` counts programs that cannot be executed at all. The Flapping plugin sees the loop and orders a
  stop, and the watcher is started again.
* **pm2**: 16 restarts in a row after less than `min_uptime` (1 s) make it errored. One that runs longer is restarted
  for ever, without a pause."""


def page(
    found: dict[tuple[str, int], Seen | str], versions: dict[str, str], missing: list[str], window_s: float
) -> str:
    lines = [
        "# A program that fails again and again",
        "",
        "Written by `python bench/crashloop.py` (a part of `make bench`); do not edit. Everybody keeps its defaults.",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} CPUs, Linux {platform.release()}, all at once,"
        f" {window_s:.0f} s from the first start. Compared: "
        + ", ".join(f"{name} ({version})" for name, version in versions.items())
        + ".",
        "",
        "## What we lose",
        "",
        *_lost(found),
        "",
        *[f"Not measured: {each}" for each in missing],
        *([""] if missing else []),
    ]
    for fails_ms in FAILS_MS:
        how = "at once" if not fails_ms else f"{fails_ms / 1000:.0f} s after each start"
        lines += [
            f"## It fails {how}",
            "",
            "| | starts | the last of them | its line in the status afterwards (exit code of `status` with its name)"
            " | processor time of the supervisor |",
            "|---|---|---|---|---|",
        ]
        for (name, when), seen in found.items():
            if when != fails_ms:
                continue
            if isinstance(seen, str):
                lines.append(f"| {name} | - | - | {seen} | - |")
                continue
            last = f"after {seen.starts[-1]:.1f} s, then none" if seen.has_given_up else "it goes on"
            each_ms = 1000 * seen.cpu_s / len(seen.starts)
            lines.append(
                f"| {name} | {len(seen.starts)} | {last} | `{seen.status}` ({seen.exit_status}) "
                f"| {seen.cpu_s:.2f} s, {each_ms:.1f} ms a start |"
            )
        lines.append("")
    lines += [
        "## Slower loops",
        "",
        "Ours on a simulated clock, with the defaults of a unit file, for ten days; nobody waits for these. The others",
        "by the rules below, which the tables above show at work: what runs for a second or more is started for ever.",
        "",
        "| it fails after each | starts | quarantined after | supervisor, circus, pm2 |",
        "|---|---|---|---|",
    ]
    for span_s in SPANS_S:
        starts, end_s = simulate(span_s)
        end = "never" if end_s is None else format_timespan(round(end_s) * SECOND_NS)
        lines.append(f"| {format_timespan(span_s * SECOND_NS)} | {starts} | {end} | never |")
    lines += [
        "",
        "A unit that was healthy for ten minutes between two failures begins anew each time (`restart-reset-sec`):",
        "that is meant, for one that fails twice a day is better restarted than stopped. Its restarts are in `status`.",
        "",
        "## The rules",
        "",
        RULES,
        "",
    ]
    return "\n".join(lines)


def _lost(found: dict[tuple[str, int], Seen | str]) -> list[str]:
    rows = []
    for (name, fails_ms), theirs in found.items():
        ours = found.get((Ours.name, fails_ms))
        if name == Ours.name or isinstance(ours, str) or isinstance(theirs, str) or ours is None:
            continue
        how = "at once" if not fails_ms else f"after {fails_ms / 1000:.0f} s"
        costs = [1000 * each.cpu_s / len(each.starts) for each in (ours, theirs)]
        if costs[0] > costs[1]:
            rows.append(f"| fails {how} | processor time a start | {costs[0]:.1f} ms | {name} | {costs[1]:.1f} ms |")
        if round(ours.cpu_s, 2) > round(theirs.cpu_s, 2):
            rows.append(f"| fails {how} | processor time | {ours.cpu_s:.2f} s | {name} | {theirs.cpu_s:.2f} s |")
        if theirs.has_given_up and (not ours.has_given_up or ours.starts[-1] > theirs.starts[-1]):
            ends = f"{ours.starts[-1]:.1f} s | {name} | {theirs.starts[-1]:.1f} s"
            rows.append(f"| fails {how} | time until it gives up | {ends} |")
        if theirs.has_given_up and len(ours.starts) > len(theirs.starts):
            rows.append(f"| fails {how} | starts until then | {len(ours.starts)} | {name} | {len(theirs.starts)} |")
    if not rows:
        return ["Nothing against a peer in this run."]
    return ["| | what | we | | they |", "|---|---|---|---|---|", *rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=75, help="how long each is watched (default 75)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "crash-loop.md", metavar="FILE")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sleeper, venv, prefix = build(options.build, "sleeper").resolve(), options.build / "peers", options.build / "pm2"
    install_peers(venv)
    peers: list[Peer] = [Ours(), Supervisor(venv), Circus(venv), Flapping(venv)]
    missing = [why] if (why := install_pm2(prefix)) is not None else []
    peers += [] if missing else [Pm2(prefix)]
    folder = options.build / "loops"
    shutil.rmtree(folder, ignore_errors=True)
    found = observe_all(peers, folder, sleeper, options.seconds)
    order = {peer.name: place for place, peer in enumerate(peers)}
    found = dict(sorted(found.items(), key=lambda item: order[item[0][0]]))
    versions = {peer.name: peer.version() for peer in peers if not isinstance(peer, Flapping)}
    text = page(found, versions, missing, options.seconds)
    options.output.write_text(text)
    print(text, file=sys.stderr)
    return 1 if any(isinstance(seen, str) for seen in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

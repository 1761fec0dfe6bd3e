"""Measuring one supervisor once: from its launch to the last start, what it costs while idle, status, stop."""

import contextlib
import fcntl
import os
import select
import signal
import statistics
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peers import Peer

RECORD = struct.Struct("<QII")
LOOK_S = 0.02
"""Between two looks at how many have started; the times themselves come from the children."""
STATUS_TIMES = 5
SETTLE_S = 30.0
"""The longest that a supervisor may take to show as running what runs."""
IDLE_S = 3.0
CALM_S = 6.0
"""After the last start, before idling is measured: what a start has set going has ended."""


class BenchError(Exception):
    """A supervisor did not do what is measured; its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run; times in seconds, None where the supervisor has no such thing."""

    start_s: float
    status_s: float | None
    stop_s: float
    idle_wakeups_per_s: float
    idle_cpu_ms_per_s: float
    memory_mb: float


def measure(peer: Peer, count: int, folder: Path, sleeper: Path, patience_s: float) -> Figures:
    """Run ``peer`` with ``count`` units of ``sleeper`` in ``folder`` and return what it took.

    Raises:
        BenchError: not all units came up, were shown as running, or were gone at the end, within ``patience_s`` each.
    """
    folder.mkdir(parents=True)
    fifo = folder / "started"
    os.mkfifo(fifo)
    records = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    peer.prepare(folder, count, [str(sleeper), str(fifo)])
    log = (folder / "supervisor.out").open("wb")
    begun_ns = time.monotonic_ns()
    process = subprocess.Popen(
        peer.command(folder, count, [str(sleeper), str(fifo)]),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=peer.environment(folder),
        start_new_session=True,
    )
    pidfds: dict[int, int] = {}
    try:
        started = _wait_for_starts(records, count, process, time.monotonic() + patience_s, folder)
        pidfds = {pid: os.pidfd_open(pid) for pid in started}
        time.sleep(CALM_S)
        wakeups, cpu_ms = _idle(process.pid, set(pidfds))
        status_s = _time_status(peer, count, folder, patience_s)
        memory_mb = sum(_pss_kb(pid) for pid in _family(process.pid, set(pidfds))) / 1024
        stopping = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{peer.name} did not stop within {patience_s:.0f} s") from None
        stop_s = time.monotonic() - stopping
        alive = [pid for pid, fd in pidfds.items() if not select.select([fd], [], [], 0)[0]]
        if alive:
            raise BenchError(f"{peer.name} left {len(alive)} of {count} processes behind")
    finally:
        _end(process, pidfds)
        os.close(records)
        log.close()
    return Figures((max(started.values()) - begun_ns) / 1e9, status_s, stop_s, wakeups, cpu_ms, memory_mb)


def _wait_for_starts(
    records: int, count: int, process: "subprocess.Popen[bytes]", deadline_s: float, folder: Path
) -> dict[int, int]:
    """Return pid -> time of its start [ns, monotonic] of ``count`` children."""
    while True:
        waiting = struct.unpack("i", fcntl.ioctl(records, termios.FIONREAD, b"\0\0\0\0"))[0]
        if waiting >= count * RECORD.size:
            break
        if process.poll() is not None or time.monotonic() > deadline_s:
            tail = (folder / "supervisor.out").read_text(errors="replace")[-2000:]
            raise BenchError(f"only {waiting // RECORD.size} of {count} were started: {tail}")
        time.sleep(LOOK_S)
    return {pid: ns for ns, pid, _ in RECORD.iter_unpack(os.read(records, waiting))}


def _time_status(peer: Peer, count: int, folder: Path, patience_s: float) -> float | None:
    command = peer.status_command(folder)
    if command is None:
        return None
    times: list[float] = []
    deadline_s = time.monotonic() + SETTLE_S
    while len(times) < STATUS_TIMES:
        begun = time.monotonic()
        done = subprocess.run(
            command, env=peer.environment(folder), capture_output=True, text=True, timeout=patience_s, check=False
        )
        took = time.monotonic() - begun
        if peer.running_in(done.stdout) == count:
            times.append(took)
        elif time.monotonic() > deadline_s:
            shown = peer.running_in(done.stdout)
            raise BenchError(f"{peer.name} shows {shown} of {count} as running: {done.stderr.strip()[-300:]}")
    return statistics.median(times)


def _family(pid: int, sleepers: set[int]) -> list[int]:
    """Return the supervisor's own processes: all descendants that are no units."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        if current in sleepers:
            continue
        found.append(current)
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{current}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def _threads(pids: list[int]) -> Iterator[Path]:
    for pid in pids:
        yield from Path(f"/proc/{pid}/task").iterdir()


def _counters(pids: list[int]) -> tuple[int, int]:
    """Return (voluntary context switches, nanoseconds on a processor) of all threads."""
    switches = cpu_ns = 0
    for task in _threads(pids):
        status = (task / "status").read_text()
        switches += int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
        cpu_ns += int((task / "schedstat").read_text().split()[0])
    return switches, cpu_ns


def _idle(pid: int, sleepers: set[int]) -> tuple[float, float]:
    """Return wake-ups a second and milliseconds of processor a second while nothing happens."""
    family = _family(pid, sleepers)
    switches, cpu_ns = _counters(family)
    time.sleep(IDLE_S)
    later_switches, later_cpu_ns = _counters(family)
    return (later_switches - switches) / IDLE_S, (later_cpu_ns - cpu_ns) / 1e6 / IDLE_S


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _end(process: "subprocess.Popen[bytes]", pidfds: dict[int, int]) -> None:
    """Leave nothing behind, whatever happened: the supervisor's own processes first, or it would start units again."""
    if process.poll() is None:
        sleepers = set(pidfds)
        for pid in _family(process.pid, sleepers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    for fd in pidfds.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)

"""Running one supervisor, and measuring it once: from its launch to the last start, what it costs while idle, stop."""

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
from dataclasses import dataclass, field
from pathlib import Path

from peers import Load, Peer

RECORD = struct.Struct("<QII")
LOOK_S = 0.02
"""Between two looks at how many have started; the times themselves come from the children."""
STATUS_TIMES = 5
SETTLE_S = 30.0
"""The longest that a supervisor may take to show as running what runs."""
IDLE_S = 3.0
CALM_S = 6.0
"""After the last start, before idling is measured: what a start has set going has ended."""

Figures = dict[str, float | None]
"""What one run of one supervisor gave, by the name of the metric; None where it has no such thing."""


class BenchError(Exception):
    """A supervisor did not do what is measured; its figures would mean nothing."""


@dataclass
class Run:
    """A supervisor whose units have all started."""

    peer: Peer
    load: Load
    folder: Path
    patience_s: float
    process: "subprocess.Popen[bytes]"
    records: int
    """Our end of the FIFO into which the units write."""
    begun_ns: int
    started: dict[int, int] = field(default_factory=dict)
    """pid -> time of its start [ns, monotonic]"""
    pidfds: dict[int, int] = field(default_factory=dict)

    def family(self) -> list[int]:
        """Return the supervisor's own processes: all descendants that are no units."""
        return family(self.process.pid, set(self.started))

    def note_start(self, pid: int, at_ns: int) -> None:
        self.started[pid] = at_ns
        self.pidfds[pid] = os.pidfd_open(pid)

    def living(self) -> list[int]:
        return [pid for pid, fd in self.pidfds.items() if not select.select([fd], [], [], 0)[0]]

    def waiting(self) -> int:
        """Return how many records nobody has read yet."""
        held: int = struct.unpack("i", fcntl.ioctl(self.records, termios.FIONREAD, b"\0\0\0\0"))[0]
        return held // RECORD.size

    def next_record(self) -> tuple[int, int, int]:
        """Wait for the next thing that a unit says: (ns, pid, what)."""
        if not select.select([self.records], [], [], self.patience_s)[0]:
            raise BenchError(f"{self.peer.name}: no unit said anything for {self.patience_s:.0f} s")
        ns, pid, what = RECORD.unpack(os.read(self.records, RECORD.size))
        return ns, pid, what

    def stop(self, patience_s: float | None = None) -> float:
        """Send SIGTERM and return the seconds until everything is gone."""
        patience_s = patience_s or self.patience_s
        stopping = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.peer.name} did not stop within {patience_s:.0f} s") from None
        took_s = time.monotonic() - stopping
        if left := self.living():
            raise BenchError(f"{self.peer.name} left {len(left)} processes behind")
        return took_s


def launch(peer: Peer, load: Load, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the supervisor; what it says goes to ``supervisor.out``."""
    with (folder / "supervisor.out").open("ab") as log:
        return subprocess.Popen(
            peer.command(folder, load),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=peer.environment(folder),
            start_new_session=True,
        )


@contextlib.contextmanager
def running(peer: Peer, load: Load, folder: Path, patience_s: float) -> Iterator[Run]:
    """Run ``peer`` in ``folder`` until all its units have said that they started; nothing of it is left afterwards.

    Raises:
        BenchError: Not all came up within ``patience_s``.
    """
    folder.mkdir(parents=True)
    fifo = Path(load.program[1])
    os.mkfifo(fifo)
    records = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)
    peer.prepare(folder, load)
    begun_ns = time.monotonic_ns()
    run = Run(peer, load, folder, patience_s, launch(peer, load, folder), records, begun_ns)
    try:
        for pid, at_ns in _wait_for_starts(run).items():
            run.note_start(pid, at_ns)
        yield run
    finally:
        _end(run)
        os.close(records)


def measure(
    peer: Peer, count: int, folder: Path, sleeper: Path, patience_s: float, *, calm_s: float = CALM_S
) -> Figures:
    """Run ``peer`` with ``count`` units of ``sleeper`` in ``folder`` and return what it took.

    Raises:
        BenchError: not all units came up, were shown as running, or were gone at the end, within ``patience_s`` each.
    """
    load = Load(count, (str(sleeper), f"{folder}/started"))
    with running(peer, load, folder, patience_s) as run:
        time.sleep(calm_s)
        start_cpu_s = cpu_s(run.family())
        wakeups, cpu_ms = _idle(run.family())
        status_s = _time_status(peer, count, folder, patience_s)
        memory_mb = sum(_pss_kb(pid) for pid in run.family()) / 1024
        return {
            "start_s": (max(run.started.values()) - run.begun_ns) / 1e9,
            "start_cpu_s": start_cpu_s,
            "status_s": status_s,
            "memory_mb": memory_mb,
            "idle_wakeups_per_s": wakeups,
            "idle_cpu_ms_per_s": cpu_ms,
            "stop_s": run.stop(),
        }


def _wait_for_starts(run: Run) -> dict[int, int]:
    """Return pid -> time of its start [ns, monotonic] of all units."""
    deadline_s = time.monotonic() + run.patience_s
    count = run.load.count
    while True:
        waiting = run.waiting()
        if waiting >= count:
            break
        if run.process.poll() is not None or time.monotonic() > deadline_s:
            tail = (run.folder / "supervisor.out").read_text(errors="replace")[-2000:]
            raise BenchError(f"only {waiting} of {count} were started: {tail}")
        time.sleep(LOOK_S)
    return {pid: ns for ns, pid, _ in RECORD.iter_unpack(os.read(run.records, waiting * RECORD.size))}


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


def family(pid: int, sleepers: set[int]) -> list[int]:
    """Return ``pid`` and its descendants but for ``sleepers``."""
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


def cpu_s(pids: list[int]) -> float:
    """Return the processor time of these processes since each began.

    The kernel tells that of the threads that live to the nanosecond, that of all there were to the tick: the larger.
    """
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        total += max(ticks_s, _counters([pid])[1] / 1e9)
    return total


def _idle(pids: list[int]) -> tuple[float, float]:
    """Return wake-ups a second and milliseconds of processor a second while nothing happens."""
    switches, cpu_ns = _counters(pids)
    time.sleep(IDLE_S)
    later_switches, later_cpu_ns = _counters(pids)
    return (later_switches - switches) / IDLE_S, (later_cpu_ns - cpu_ns) / 1e6 / IDLE_S


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def _end(run: Run) -> None:
    """Leave nothing behind, whatever happened: the supervisor's own processes first, or it would start units again."""
    if run.process.poll() is None:
        for pid in run.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.wait()
    for fd in run.pidfds.values():
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        os.close(fd)

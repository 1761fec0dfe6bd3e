"""What it costs a process to be given something: starts with limits and sandboxes, formats of output, sockets."""

import contextlib
import gzip
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from capture import LINE, LOOK_S, TEXT, logs
from measure import BenchError, Figures, cpu_s, running
from peers import Load, Ours

REST_S = 2.0
"""After the last start, before processor time is read."""
QUIET_S = 0.5
"""When so long nothing has been written, all is."""
CONNECTIONS = 40
PAUSE_S = 0.05
"""Between two connections: a unit that ended after the one before listens again."""

_FILTERS = """
no-new-privileges = true
capability-bounding-set = []
system-call-filter = ["@system-service"]
restrict-address-families = ["AF_UNIX", "AF_INET"]
restrict-namespaces = true
lock-personality = true
memory-deny-write-execute = true
"""
_MOUNTS = """
protect-system = "strict"
protect-home = "read-only"
protect-kernel-tunables = true
private-tmp = true
private-devices = true
"""
_LANDLOCK = 'landlock = ["/usr:rx", "/lib:rx", "-/lib64:rx", "/etc:r", "/dev:rw", "{above}:rwx"]\n'
_NETWORK = "private-network = true\n"

PLAIN = "nothing"
GIVEN = {
    PLAIN: "",
    "limits": '[limits]\nnofile = 1024\nnice = 1\nmemory-max = "200M"\ntasks-max = 50\ncpu-quota = "100%"\n',
    "filters": f"[sandbox]{_FILTERS}",
    "Landlock": f"[sandbox]\n{_LANDLOCK}",
    "mounts": f"[sandbox]{_MOUNTS}",
    "a network": f"[sandbox]\n{_NETWORK}",
    "all of it": f"[sandbox]{_FILTERS}{_MOUNTS}{_NETWORK}{_LANDLOCK}",
}
"""What is behind ``[service]`` in the unit files; ``{above}`` is the folder of the run and of the programs."""

FORMATS = {
    "as it comes": "",
    "timestamp": '[log]\nformat = "timestamp"\n',
    "json": '[log]\nformat = "json"\n',
    "compressed": '[log]\nmax-bytes = "1M"\nbackups = 1000\ncompress = true\n',
}

ALONE, RUNS, ON_DEMAND, EACH = "no supervisor", "a unit that runs", "a unit that is started for it", "a process each"
SOCKETS = {
    ALONE: "",
    RUNS: '[service]\nexec-start = ["{program}", "each"]\nactivation = "start"\n[[socket]]\nlisten-stream = "{path}"\n',
    ON_DEMAND: (
        '[service]\nexec-start = ["{program}", "once"]\nrestart = "no"\n'
        '[[socket]]\nlisten-stream = "{path}"\ntrigger-limit-interval-sec = 0\n'
    ),
    EACH: (
        '[service]\nexec-start = ["{program}", "this"]\n'
        '[[socket]]\nlisten-stream = "{path}"\naccept = true\ntrigger-limit-interval-sec = 0\n'
    ),
}


class Given(Ours):
    """Ours, whose units have these tables too; ``beside`` is one more unit."""

    def __init__(self, tables: str = "", beside: str = "") -> None:
        super().__init__()
        self._tables, self._beside = tables, beside

    def prepare(self, folder: Path, load: Load) -> None:
        super().prepare(folder, load)
        tables = self._tables.replace("{above}", os.path.commonpath([folder, load.program[0]]))
        for file in (folder / "units").iterdir():
            file.write_text(file.read_text() + tables)
        if self._beside:
            (folder / "units" / "answer.toml").write_text(self._beside.replace("{path}", str(self.socket(folder))))

    def socket(self, folder: Path) -> Path:
        """Return where the unit beside listens: a socket's path is short."""
        return self.runtime(folder) / "answer"


def measure_given(kind: str, count: int, folder: Path, sleeper: Path, patience_s: float) -> Figures:
    """Start ``count`` units that are given what ``GIVEN`` has for ``kind``.

    Raises:
        BenchError: Not all came up within ``patience_s``.
    """
    with running(Given(GIVEN[kind]), Load(count, (str(sleeper), f"{folder}/started")), folder, patience_s) as run:
        time.sleep(REST_S)
        keeper = run.process.pid
        managers = [pid for pid in run.family() if pid != keeper]
        return {
            "start_s": (max(run.started.values()) - run.begun_ns) / 1e9,
            "given_keeper_ms": 1000 * cpu_s([keeper]) / count,
            "given_manager_ms": 1000 * cpu_s(managers) / count,
            "stop_s": run.stop(),
        }


def measure_format(
    kind: str, folder: Path, writer: Path, patience_s: float, *, writers: int, piece: int, total: int
) -> Figures:
    """Let units write ``total`` bytes of lines that ``FORMATS`` says how to keep.

    Raises:
        BenchError: A line is not in the files once.
    """
    each = total // writers
    go = folder.with_name(f"{folder.name}.go")
    load = Load(writers, (str(writer), f"{folder}/started", str(go), str(each), str(piece)), logged=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(go)
    with running(Given(FORMATS[kind]), load, folder, patience_s) as run:
        before_s = cpu_s(run.family())
        begun = time.monotonic()
        gate = os.open(go, os.O_RDWR | os.O_CLOEXEC)
        for _ in range(writers):
            run.next_record()
        last, changed = _sizes(folder), time.monotonic()
        while time.monotonic() - changed < QUIET_S:
            time.sleep(LOOK_S)
            if (sizes := _sizes(folder)) != last:
                last, changed = sizes, time.monotonic()
        used_s = cpu_s(run.family()) - before_s
        os.close(gate)
        run.stop()
        lines = sum(_text(file).count(TEXT[:-1]) for file in logs(folder))
        if lines * LINE != each * writers:
            raise BenchError(f"{kind}: {lines} of {each * writers // LINE} lines are in the logs")
        took_s = changed - begun
    return {
        "capture_mb_per_s": each * writers / 1e6 / took_s,
        "capture_klines_per_s": each * writers / LINE / 1e3 / took_s,
        "capture_cpu_s_per_gb": used_s / (each * writers / 1e9),
    }


def _sizes(folder: Path) -> dict[Path, int]:
    with contextlib.suppress(FileNotFoundError):  # one was renamed meanwhile
        return {file: file.stat().st_size for file in logs(folder)}
    return {}


def _text(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()


def measure_sockets(kind: str, folder: Path, sleeper: Path, program: Path, patience_s: float) -> Figures:
    """Connect again and again to what ``SOCKETS`` has for ``kind``, and wait for its answer of one byte.

    Raises:
        BenchError: Nobody answered within ``patience_s``.
    """
    with _listening(kind, folder, sleeper, program, patience_s) as path:
        took_ms = []
        for _ in range(CONNECTIONS + 1):
            time.sleep(PAUSE_S)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(patience_s)
                begun = time.monotonic()
                client.connect(str(path))
                if client.recv(1) != b"x":
                    raise BenchError(f"{kind}: no answer")
                took_ms.append(1000 * (time.monotonic() - begun))
    # The first one finds what has just been started.
    return {"answer_ms": statistics.median(took_ms[1:]), "answer_max_ms": max(took_ms[1:])}


@contextlib.contextmanager
def _listening(kind: str, folder: Path, sleeper: Path, program: Path, patience_s: float) -> Iterator[Path]:
    unit = SOCKETS[kind].replace("{program}", str(program))
    if unit:
        peer = Given(beside=unit)
        with running(peer, Load(1, (str(sleeper), f"{folder}/started")), folder, patience_s) as run:
            deadline_s = time.monotonic() + patience_s
            while not peer.socket(folder).exists():
                if time.monotonic() > deadline_s:
                    raise BenchError(f"{kind}: nobody listens")
                time.sleep(LOOK_S)
            yield peer.socket(folder)
            run.stop()
        return
    folder.mkdir(parents=True)
    path = folder / "answer"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = subprocess.Popen(["sh", "-c", 'exec "$0" each 3<&0', str(program)], stdin=listener.fileno())
        try:
            yield path
        finally:
            server.kill()
            server.wait()

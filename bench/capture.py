"""What a supervisor can take of its units' output: several write at once, until the last byte is in the log files."""

import os
import time
from pathlib import Path

from measure import BenchError, Figures, cpu_s, running
from peers import Load, Peer

WRITERS = 8
LINE = 80
PIECE = 800 * LINE
"""Just below the 64 KiB that a pipe holds by default, and whole lines."""
TEXT = bytes(ord("a") + place % 26 for place in range(LINE - 1)) + b"\n"
"""A line as ``writer.c`` writes it."""
LOOK_S = 0.005


def measure_capture(
    peer: Peer, folder: Path, writer: Path, patience_s: float, *, writers: int, piece: int, total: int
) -> Figures:
    """Let so many units write ``total`` bytes altogether, in pieces of ``piece`` bytes (both whole lines).

    The logs stay below the size at which they are rotated by default (50 MB).

    Raises:
        BenchError: Not every byte was in a log file within ``patience_s``.
    """
    each = total // writers
    go = folder.with_name(f"{folder.name}.go")
    load = Load(writers, (str(writer), f"{folder}/started", str(go), str(each), str(piece)), logged=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(go)
    with running(peer, load, folder, patience_s) as run:
        before_s = cpu_s(run.family())
        begun = time.monotonic()
        gate = os.open(go, os.O_RDWR | os.O_CLOEXEC)
        logged = 0
        while logged < each * writers:
            time.sleep(LOOK_S)
            logged = sum(file.stat().st_size for file in logs(folder))
            if time.monotonic() - begun > patience_s:
                raise BenchError(f"{peer.name}: {logged} of {each * writers} bytes are in the logs")
        took_s = time.monotonic() - begun
        used_s = cpu_s(run.family()) - before_s
        for _ in range(writers):
            run.next_record()
        os.close(gate)
        run.stop()
        # Some write lines of their own, too; nobody else's may be missing or be there twice.
        lines = sum(file.read_bytes().count(TEXT) for file in logs(folder))
        if lines * LINE != each * writers:
            raise BenchError(f"{peer.name}: {lines} of {each * writers // LINE} lines are in the logs")
    return {
        "capture_mb_per_s": logged / 1e6 / took_s,
        "capture_klines_per_s": logged / LINE / 1e3 / took_s,
        "capture_cpu_s_per_gb": used_s / (logged / 1e9),
    }


def logs(folder: Path) -> list[Path]:
    """Return the logs of a run, old ones too; what we keep beside them are notes of our own."""
    files = (folder / "log").rglob("*")
    return [file for file in files if file.is_file() and file.suffix not in (".staged", ".lives")]

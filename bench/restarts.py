"""How long after a crash the next process of the unit runs: one of N is killed, and the new one tells its own time."""

import contextlib
import os
import random
import signal
import statistics
import time
from pathlib import Path

from measure import BenchError, Figures, running
from peers import Load, Peer

KILLS = 8
STOP_S = 20.0
REST_S = 2.0
"""Before the first kill: supervisor calls a process running, and restarts it for ever, after a second."""


def measure_restarts(peer: Peer, count: int, folder: Path, sleeper: Path, patience_s: float, *, quick: bool) -> Figures:
    """Kill ``KILLS`` units one after the other, at moments that no tick of a supervisor is in step with.

    Raises:
        BenchError: One did not come back within ``patience_s``.
    """
    random_of_run = random.Random(f"{peer.name} {quick}")
    load = Load(count, (str(sleeper), f"{folder}/started"), quick=quick)
    took_ms: list[float] = []
    with running(peer, load, folder, patience_s) as run:
        time.sleep(REST_S)
        for pid in random_of_run.sample(sorted(run.started), min(KILLS, count)):
            time.sleep(random_of_run.uniform(0.2, 1.2))
            killed_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            started_ns, successor, _ = run.next_record()
            took_ms.append((started_ns - killed_ns) / 1e6)
            run.note_start(successor, started_ns)
        if run.waiting():
            raise BenchError(f"{peer.name} started more processes than were killed")
        with contextlib.suppress(BenchError):  # another table is about that
            run.stop(STOP_S)
    return {"restart_ms": statistics.median(took_ms), "restart_max_ms": max(took_ms)}

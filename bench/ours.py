"""What only we can be asked: how long nobody answers when the manager or the keeper is killed or replaced, with all
units running on, and what the keeper's book costs (``supervisord_py/keeper/book.py``)."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from measure import CALM_S, BenchError, Figures, Run, cpu_s, launch, running
from peers import Load, Ours

PING = b'{"method":"py.supervisord.Manager.Ping","parameters":{}}\0'
PAUSE_S = 0.002
"""Between two questions of a client that measures how long nobody answers."""
ADOPT_LOOK_S = 0.02
REST_S = 2.0
"""After the last start, before the keeper's processor time is read."""


def measure_ours(peer: Ours, count: int, folder: Path, sleeper: Path, patience_s: float) -> Figures:
    """Kill and replace manager and keeper under ``count`` units.

    Raises:
        BenchError: A unit ended or was started a second time, or somebody did not come back within ``patience_s``.
    """
    load = Load(count, (str(sleeper), f"{folder}/started"))
    figures: Figures = {}
    with running(peer, load, folder, patience_s) as run:
        time.sleep(CALM_S)
        control = peer.runtime(folder) / "control.sock"
        keeper, manager = run.process.pid, _manager(run)
        figures["keeper_cpu_s"], figures["manager_cpu_s"] = cpu_s([keeper]), cpu_s([manager])

        begun = time.monotonic()
        os.kill(manager, signal.SIGKILL)
        _ping(control, patience_s)
        figures["manager_killed_ms"] = (time.monotonic() - begun) * 1000
        _check(run)

        for verb, name in (("daemon-restart", "manager_replaced"), ("daemon-reexec", "keeper_replaced")):
            with _silence(control, patience_s) as longest_s:
                begun = time.monotonic()
                done = subprocess.run(
                    peer.control(folder, verb), env=peer.environment(folder), capture_output=True, text=True,
                    timeout=patience_s, check=False,
                )  # fmt: skip
                figures[f"{name}_s"] = time.monotonic() - begun
                if done.returncode != 0:
                    raise BenchError(f"{verb} failed: {done.stderr.strip()[-300:]}")
            figures[f"{name}_silent_ms"] = max(longest_s) * 1000
            _check(run)

        figures["adopted_s"] = _adopt(peer, run, control)
        _check(run)
        figures["adopted_stop_s"] = run.stop()
    return figures


def _adopt(peer: Ours, run: Run, control: Path) -> float:
    """Kill the keeper, run again, and return the seconds until status shows all units as running."""
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    begun = time.monotonic()
    run.process = launch(peer, run.load, run.folder)
    _ping(control, run.patience_s)
    while True:
        shown = subprocess.run(
            peer.status_command(run.folder), env=peer.environment(run.folder), capture_output=True, text=True,
            timeout=run.patience_s, check=False,
        )  # fmt: skip
        if peer.running_in(shown.stdout) == run.load.count:
            return time.monotonic() - begun
        if time.monotonic() - begun > run.patience_s:
            raise BenchError(f"after the keeper's death {peer.running_in(shown.stdout)} units are running")
        time.sleep(ADOPT_LOOK_S)


def _check(run: Run) -> None:
    """Raise BenchError unless every unit runs, and none was started again."""
    if len(run.living()) != run.load.count:
        raise BenchError(f"{run.load.count - len(run.living())} units ended with the supervisor")
    if run.waiting():
        raise BenchError("units were started a second time")


def _manager(run: Run) -> int:
    (manager,) = [pid for pid in run.family() if pid != run.process.pid]
    return manager


def _ping(control: Path, patience_s: float) -> None:
    """Ask until somebody answers."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(patience_s)
            client.connect(str(control))
            client.sendall(PING)
            if client.recv(65536):
                return
        time.sleep(PAUSE_S)
    raise BenchError(f"nobody answered for {patience_s:.0f} s")


@contextlib.contextmanager
def _silence(control: Path, patience_s: float) -> Iterator[list[float]]:
    """Ask again and again meanwhile; what is yielded holds how long each answer took."""
    took_s: list[float] = [0.0]
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            begun = time.monotonic()
            _ping(control, patience_s)
            took_s.append(time.monotonic() - begun)
            done.wait(PAUSE_S)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield took_s
    finally:
        done.set()
        client.join()


class Bookless(Ours):
    """Ours with a keeper that cannot write its book, because a folder is in its place; all else goes its way."""

    def prepare(self, folder: Path, load: Load) -> None:
        super().prepare(folder, load)
        (self.runtime(folder) / "book~").mkdir()


def measure_book(peer: Ours, count: int, folder: Path, sleeper: Path, patience_s: float) -> Figures:
    """Start ``count`` units, with or without a book (``peer``), and return what the keeper used.

    Raises:
        BenchError: The book is there, or is not, against what was meant.
    """
    with running(peer, Load(count, (str(sleeper), f"{folder}/started")), folder, patience_s) as run:
        time.sleep(REST_S)
        figures: Figures = {
            "start_s": (max(run.started.values()) - run.begun_ns) / 1e9,
            "keeper_cpu_s": cpu_s([run.process.pid]),
        }
        if (peer.runtime(folder) / "book").exists() == isinstance(peer, Bookless):
            raise BenchError("the keeper has a book that it should not have, or none")
        figures["stop_s"] = run.stop()
        return figures

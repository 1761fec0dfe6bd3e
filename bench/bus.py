"""Messages a second and latency under a flood: our bus, a plain pyzmq loop, and the command socket of circus."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from measure import BenchError, Figures
from peers import ROOT

HERE = Path(__file__).resolve().parent
COUNT = 10_000
FAN_COUNT = 2_000
PROBES = 200
PLAIN = "plain pyzmq loop"
UNITS = {
    "listener": ("listen", COUNT),
    "sender": ("send", COUNT),
    "fan": ("fan", FAN_COUNT),
    "fan-sender": ("send", FAN_COUNT),
    "quiet": ("probe", PROBES),
    "probe": ("probe", PROBES),
    "flooder": ("flood", 0),
}
NO_LIMIT = '[bus]\nrate-limit = "1000000/s"\nqueue = 100000\n'

Client = Callable[[str, int, Path], None]
"""Starts a client: what it does, how often, and where its figures go."""


def measure_ours_bus(folder: Path, patience_s: float) -> Figures:
    """Our own: clients are units. Under the flood the limits are the defaults."""
    figures: Figures = {}
    with _ours(folder / "rate", NO_LIMIT) as client:
        figures |= _rates(client, folder / "rate", patience_s, has_subscribers=True)
    with _ours(folder / "flood", "") as client:
        figures |= _flood(client, folder / "flood", patience_s)
    return figures


def measure_plain_bus(folder: Path, patience_s: float) -> Figures:
    """The least there can be."""
    with _short() as short:
        address = f"ipc://{short}/plain"
        command = [sys.executable, str(HERE / "bus_plain.py"), address]
        with _served(command, "bus", address, folder) as client:
            return _rates(client, folder, patience_s, has_subscribers=True) | _flood(client, folder, patience_s)


def measure_circus_bus(venv: Path, folder: Path, patience_s: float) -> Figures:
    """The endpoint of circusd, asked for the number of its watchers."""
    folder.mkdir(parents=True, exist_ok=True)
    with _short() as short:
        ini = folder / "circus.ini"
        ini.write_text(
            f"[circus]\nendpoint = ipc://{short}/c\npubsub_endpoint = ipc://{short}/p\ncheck_delay = 5\n"
            "[watcher:sleep]\ncmd = sleep 1000\n"
        )
        with _served([str(venv / "bin" / "circusd"), str(ini)], "circus", f"ipc://{short}/c", folder) as client:
            return _rates(client, folder, patience_s, has_subscribers=False) | _flood(client, folder, patience_s)


def _rates(client: Client, folder: Path, patience_s: float, *, has_subscribers: bool) -> Figures:
    figures: Figures = {}
    if not has_subscribers:
        client("send", COUNT, folder / "sender")
        return {"bus_sent_per_s": _read(folder / "sender", patience_s)["per_s"]}
    listener, fan = folder / "listener", folder / "fan"
    client("listen", COUNT, listener)
    _wait(Path(f"{listener}.ready"), patience_s)
    client("send", COUNT, folder / "sender")
    figures["bus_sent_per_s"] = _read(folder / "sender", patience_s)["per_s"]
    figures["bus_delivered_per_s"] = _read(listener, patience_s)["per_s"]
    # The first subscriber has ended with the last of its messages.
    client("fan", FAN_COUNT, fan)
    _wait(Path(f"{fan}.ready"), patience_s)
    client("send", FAN_COUNT, folder / "fan-sender")
    figures["bus_fan_per_s"] = _read(fan, patience_s)["per_s"]
    return figures


def _flood(client: Client, folder: Path, patience_s: float) -> Figures:
    client("probe", PROBES, folder / "quiet")
    quiet = _read(folder / "quiet", patience_s)
    client("flood", 0, folder / "flooder")
    time.sleep(1)
    client("probe", PROBES, folder / "probe")
    probe = _read(folder / "probe", patience_s)
    return {
        "bus_quiet_ms": quiet["median_s"] * 1000,
        "bus_flood_ms": probe["median_s"] * 1000,
        "bus_flood_p99_ms": probe["p99_s"] * 1000,
    }


@contextmanager
def _ours(folder: Path, settings: str) -> Iterator[Client]:
    units = folder / "units"
    units.mkdir(parents=True)
    (folder / "s.toml").write_text(settings)
    with _short() as short:
        control = ["--socket", f"{short}/control.sock"]
        for out, (kind, count) in UNITS.items():
            command = [sys.executable, str(HERE / "bus_client.py"), kind, "bus", "-", str(count), str(folder / out)]
            text = f'[unit]\nenabled = false\n[service]\nexec-start = {json.dumps(command)}\nrestart = "no"\n'
            (units / f"{out}.toml").write_text(text)
        run = [sys.executable, "-m", "supervisord_py", "run", "--config", f"{folder}/s.toml", "--runtime-dir", short]
        run += ["--state-dir", f"{folder}/state", "--log-dir", f"{folder}/log", str(units)]
        supctl = [sys.executable, "-m", "supervisord_py.ctl.cli", *control]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}

        def client(what: str, count: int, out: Path) -> None:
            begun = subprocess.run([*supctl, "start", out.name], env=environment, capture_output=True, check=False)
            if begun.returncode != 0:
                raise BenchError(f"cannot start {out.name}: {begun.stderr.decode()[-300:]}")

        with _running(run, folder, environment):
            _wait(Path(short, "control.sock"), 60)
            yield client


@contextmanager
def _served(command: list[str], dialect: str, address: str, folder: Path) -> Iterator[Client]:
    folder.mkdir(parents=True, exist_ok=True)
    clients: list[subprocess.Popen[bytes]] = []

    def client(what: str, count: int, out: Path) -> None:
        words = [sys.executable, str(HERE / "bus_client.py"), what, dialect, address, str(count), str(out)]
        clients.append(subprocess.Popen(words))

    with _running(command, folder, dict(os.environ)):
        try:
            yield client
        finally:
            for each in clients:
                each.kill()
                each.wait()


@contextmanager
def _running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    with open(folder / "out", "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(120)


@contextmanager
def _short() -> Iterator[str]:
    """A folder whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="spy-") as folder:
        yield folder


def _wait(path: Path, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while not path.exists():
        if time.monotonic() > until:
            raise BenchError(f"{path.name} never came")
        time.sleep(0.01)


def _read(path: Path, patience_s: float) -> dict[str, float]:
    _wait(path, patience_s)
    found: dict[str, float] = json.loads(path.read_text())
    return found


def buses(venv: Path, patience_s: float) -> dict[str, Callable[[Path], Figures]]:
    """Return what is compared, by name."""
    return {
        "supervisord-py": partial(measure_ours_bus, patience_s=patience_s),
        PLAIN: partial(measure_plain_bus, patience_s=patience_s),
        "circus": partial(measure_circus_bus, venv, patience_s=patience_s),
    }

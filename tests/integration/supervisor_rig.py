"""A real supervisor for tests: keeper, manager and units in folders of its own, stopped and looked after at the end."""

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from supervisord_py.ctl.client import Client
from supervisord_py.doctor.findings import Level
from supervisord_py.doctor.instance import examine

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
PATIENCE = float(os.environ.get("SUPERVISORD_PY_TEST_PATIENCE", "1"))
"""By what all that is waited for may take longer, on a machine that is emulated."""

START_S = 30.0 * PATIENCE
STOP_S = 60.0 * PATIENCE
AS_USER = [None, pytest.param(65534, marks=pytest.mark.root)] if os.geteuid() == 0 else [None]
"""Whom a supervisor of a test runs as: whoever runs the tests, and for root an ordinary user too."""

INVARIANTS_S = 20.0 * PATIENCE
"""How long what looks broken may take to settle on a loaded machine."""


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Return the first true value of ``condition``; fails with ``what`` when there is none in time."""
    deadline = time.monotonic() + timeout_s * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"never came: {what}"
        select.select([], [], [], 0.01)


def pids_in(path: Path, count: int = 1) -> list[int]:
    """The process ids that somebody wrote into a file, once there are so many."""

    def there() -> list[int]:
        found = [int(word) for word in path.read_text().split()] if path.exists() else []
        return found if len(found) >= count else []

    return list(until(there, f"{count} lines in {path}"))


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class RunningSupervisor:
    """One instance: ``folder/units`` is what it supervises."""

    def __init__(self, folder: Path, launch: Callable[[Path], "subprocess.Popen[bytes]"]) -> None:
        self.folder = folder
        self._launch = launch
        self.units = folder / "units"
        self.process = launch(self.units)
        self.socket = folder / "r" / "control.sock"
        self.journal_folder = folder / "s" / "journal"
        self.log_folder = folder / "l"

    def wait_started(self) -> None:
        """Return when the control socket answers."""
        until(
            lambda: self.process.poll() is not None or _listener(self.socket) == self.keeper_pid,
            f"the control socket: {self.output()}",
            START_S / PATIENCE,
        )
        assert self.process.poll() is None, self.output()

    def start_again(self) -> None:
        """Run it once more, after the keeper has ended, for the units in ``units`` (which may be others)."""
        assert self.process.poll() is not None
        self.process = self._launch(self.units)
        self.wait_started()

    @property
    def keeper_pid(self) -> int:
        return self.process.pid

    def manager_pid(self) -> int | None:
        """The manager that lives now, looked up without asking it."""
        pid = self.keeper_pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        for child in children:
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            # The keeper's command line names the manager's too, and a fresh child still has it.
            if b"supervisord_py.host.daemon" in command and b"--config" not in command:
                return int(child)
        return None

    def kill_manager(self) -> None:
        """Kill the manager and return when it is gone."""
        pid = until(self.manager_pid, "a manager")
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.manager_pid() != pid, "the manager's end")

    def client(self, **options: Any) -> Client:
        return Client(str(self.socket), **options)

    def supctl(self, *arguments: str, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "supervisord_py.ctl.cli", "--socket", str(self.socket), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s * PATIENCE,
            check=False,
        )

    def status(self, unit: str) -> dict[str, Any]:
        with self.client() as client:
            (found,) = client.call("Status", units=[unit], lines=0)["units"]
        return dict(found)

    def wait_state(self, unit: str, *states: str) -> dict[str, Any]:
        """Return the status of ``unit`` once its active state is one of ``states``."""

        def is_there() -> dict[str, Any] | None:
            status = self.status(unit)
            return status if status["active_state"] in states else None

        found: dict[str, Any] = until(is_there, f"{unit} {states}, it is {self.status(unit)}")
        return found

    def records(self) -> list[dict[str, Any]]:
        """All records of the journal as they stand on disk."""
        return [
            record
            for path in sorted(self.journal_folder.glob("*.ndjson"))
            for record in map(json.loads, path.read_text().splitlines())
            if "event" in record
        ]

    def output(self) -> str:
        """What keeper and manager wrote so far."""
        return (self.folder / "out").read_text(errors="replace")

    def check_invariants(self) -> None:
        """Fail when a law of a running supervisor is broken: what ``doctor --instance`` calls wrong."""
        with self.client(timeout_s=STOP_S) as client:
            findings = examine(client, settle_s=INVARIANTS_S)
        broken = [finding for finding in findings if finding.level is Level.WRONG]
        assert not broken, f"{broken}\n{self.output()}"

    def stop(self) -> int:
        """Stop everything in order; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


def _listener(path: Path) -> int | None:
    """Return who made the socket: what is left of a killed keeper may still hold the one before."""
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(str(path)) != 0:
            return None
        pid, _, _ = struct.unpack("=iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(pid)


@contextmanager
def supervisor(
    units: dict[str, str],
    *,
    settings: str = "",
    options: tuple[str, ...] = (),
    prepare: Callable[[Path], None] | None = None,
    uid: int | None = None,
    prefix: tuple[str, ...] = (),
    prefix_becomes_user: bool = False,
    invariants: bool = True,
) -> Iterator[RunningSupervisor]:
    """Run a supervisor of these unit files (name to text); everything is gone afterwards.

    With ``uid`` (as root) it runs as that ordinary user, on the system's Python, which others may enter. ``prefix``
    is a command that executes it; with ``prefix_becomes_user`` it is begun by us and becomes that user itself. At the
    end, if it still runs, the invariants of ``doctor --instance`` must hold: ``invariants`` False is for tests that
    break them on purpose.
    """
    # Not tmp_path: a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="spy-"))
    try:
        (folder / "units").mkdir()
        for name, text in units.items():
            (folder / "units" / f"{name}.toml").write_text(text)
        (folder / "supervisord.toml").write_text(settings)
        if prepare is not None:
            prepare(folder)
        python, environment = sys.executable, dict(os.environ)
        if uid is None and os.geteuid() != 0:
            # What is made for units of a user is made at home.
            environment = {name: text for name, text in environment.items() if not name.startswith("XDG_")}
            environment["HOME"] = str(folder)
        if uid is not None:
            python = SYSTEM_PYTHON
            environment |= {"PYTHONPATH": f"{ROOT}:{Path(msgspec.__file__).parents[1]}", "HOME": str(folder)}
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid)
        options_of_all = [
            *("--config", str(folder / "supervisord.toml"), "--runtime-dir", str(folder / "r")),
            *("--state-dir", str(folder / "s"), "--log-dir", str(folder / "l"), *options),
        ]

        def launch(units: Path) -> "subprocess.Popen[bytes]":
            with open(folder / "out", "ab") as out:
                return subprocess.Popen(
                    [*prefix, python, "-m", "supervisord_py", "run", str(units), *options_of_all],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env=environment,
                    user=None if prefix_becomes_user else uid,
                    group=None if prefix_becomes_user else uid,
                    extra_groups=None if uid is None or prefix_becomes_user else [],
                )

        running = RunningSupervisor(folder, launch)
        try:
            running.wait_started()
            yield running
            if invariants and running.process.poll() is None:
                running.check_invariants()
        finally:
            process = running.process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    # Forced, so that a test that fails leaves no process behind.
                    process.send_signal(signal.SIGINT)
                    process.wait(STOP_S)
                    raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)

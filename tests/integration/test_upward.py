"""Under a service manager: readiness, reloads and status are told, by the keeper alone, and its beat never fails."""

import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisord_py.host.upward import ascii_line, status_line
from supervisord_py.model.states import ActiveState
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SLEEPER = '[service]\nexec-start = ["sleep", "1000"]\n'
BEAT_US = 100_000


class Above:
    """A service manager's notify socket: what was sent, and by which process."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(self.path)
        self.said: list[str] = []
        self.senders: set[int] = set()
        self.beats = 0

    def read(self) -> list[str]:
        """Return all lines so far but the beats, which are counted."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return self.said
            self.senders.add(struct.unpack("=iII", ancillary[0][2])[0])
            lines = data.decode("ascii").split("\n")
            self.beats += lines.count("WATCHDOG=1")
            self.said += [line for line in lines if line != "WATCHDOG=1"]

    def hear(self, line: str, *, after: int = 0) -> int:
        """Wait for a line that comes after the first ``after``; returns how many there are up to it."""
        until(lambda: line in self.read()[after:], f"{line} in {self.said[after:]}")
        return self.said.index(line, after) + 1

    def beat(self) -> None:
        """Wait for two more beats."""
        self.read()
        before = self.beats
        until(lambda: self.read() is not None and self.beats >= before + 2, "two beats")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def supervised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str = "", beat_us: int | None = None, **units: str
) -> Iterator[tuple[RunningSupervisor, Above]]:
    above = Above(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", above.path)
    if beat_us is not None:
        # Only where beats are looked for: where ten datagrams fill a socket, they would keep the others out.
        monkeypatch.setenv("WATCHDOG_USEC", str(beat_us))
    try:
        with supervisor(units, settings=settings) as running:
            yield running, above
    finally:
        above.close()


def test_a_life_is_told_from_ready_to_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY when units are loaded, STATUS as they change, RELOADING around a reload, STOPPING: all by the keeper."""
    with supervised(tmp_path, monkeypatch, a=SLEEPER, b=SLEEPER) as (running, above):
        assert above.hear("READY=1") == 1
        above.hear("STATUS=2 units: 2 active")
        assert running.supctl("stop", "b").returncode == 0
        above.hear("STATUS=2 units: 1 inactive, 1 active")
        (running.units / "c.toml").write_text(SLEEPER)
        before = len(above.read())
        assert running.supctl("daemon-reload", "--plan").returncode == 0
        assert running.supctl("daemon-reload").returncode == 0
        at = above.hear("RELOADING=1", after=before)
        assert above.said[at].startswith("MONOTONIC_USEC=")
        at = above.hear("READY=1", after=at)
        assert above.said.count("RELOADING=1") == 1
        above.hear("STATUS=3 units: 1 inactive, 2 active", after=at)
        assert running.stop() == 0
        above.hear("STOPPING=1", after=at)
        assert above.said.count("STOPPING=1") == 1 and "READY=1" not in above.said[above.said.index("STOPPING=1") :]
        assert above.senders == {running.keeper_pid}


def test_a_shutdown_by_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STOPPING=1 comes once, also when it was the manager who heard of the end."""
    with supervised(tmp_path, monkeypatch, a=SLEEPER) as (running, above):
        above.hear("READY=1")
        assert running.supctl("shutdown").returncode == 0
        running.process.wait(20)
        above.hear("STOPPING=1")
        assert above.said.count("STOPPING=1") == 1


def test_the_beat_is_the_keepers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped or killed manager costs no beat; its successor says how things are; a new keeper image beats on."""
    with supervised(tmp_path, monkeypatch, beat_us=BEAT_US, a=SLEEPER) as (running, above):
        above.hear("STATUS=1 unit: 1 active")
        manager = until(running.manager_pid, "a manager")
        os.kill(manager, signal.SIGSTOP)
        above.beat()
        os.kill(manager, signal.SIGCONT)
        before = len(above.read())
        running.kill_manager()
        above.beat()
        before = above.hear("READY=1", after=before)
        assert running.supctl("daemon-reexec").returncode == 0
        above.beat()
        assert running.supctl("stop", "a").returncode == 0
        above.hear("STATUS=1 unit: 1 inactive", after=before)
        assert above.senders == {running.keeper_pid}


def test_nobody_else_speaks_for_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units do not get the relay or the watchdog of ours; what another process sends to the relay is dropped."""
    unit = '[service]\nexec-start = ["sh", "-c", "env; exec sleep 1000"]\n'
    settings = '[supervisor]\npass-environment = "all"\n'
    with supervised(tmp_path, monkeypatch, settings, BEAT_US, a=unit) as (running, above):
        above.hear("STATUS=1 unit: 1 active")
        manager = until(running.manager_pid, "a manager")
        environment = dict(
            item.split("=", 1) for item in Path(f"/proc/{manager}/environ").read_text().split("\0") if "=" in item
        )
        assert environment["NOTIFY_SOCKET"] != above.path and "WATCHDOG_USEC" not in environment
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"STATUS=all is lost\nREADY=1", environment["NOTIFY_SOCKET"])
        assert running.supctl("stop", "a").returncode == 0
        above.hear("STATUS=1 unit: 1 inactive")
        assert not [line for line in above.said if "lost" in line]
        output = (running.log_folder / "a.log").read_text()
        assert "PATH=" in output and "NOTIFY_SOCKET" not in output and "WATCHDOG" not in output


def test_a_beat_for_another_process_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHDOG_PID of somebody else: no beat."""
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with supervised(tmp_path, monkeypatch, beat_us=BEAT_US, a=SLEEPER) as (running, above):
        above.hear("STATUS=1 unit: 1 active")
        assert running.supctl("stop", "a").returncode == 0
        above.hear("STATUS=1 unit: 1 inactive")
        assert above.beats == 0


def test_status_text_is_one_line_of_ascii() -> None:
    """What the notifier could not send is written out; states that nothing is in are left out."""
    assert ascii_line("caf\xe9 \u2713\nREADY=1") == "caf\\xe9 \\u2713 READY=1"
    assert status_line([]) == "0 units"
    assert status_line([ActiveState.FAILED, ActiveState.ACTIVE]) == "2 units: 1 active, 1 failed"

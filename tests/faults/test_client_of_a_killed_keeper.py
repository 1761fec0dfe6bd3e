"""What a client of the control socket does when the whole supervisor is killed under its call."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisord_py.ctl import client as client_module
from supervisord_py.ctl.client import SupervisorReplacedError
from tests.faults.test_keeper_deaths import kill_keeper
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

GATED = """
[unit]
enabled = false
[service]
type = "oneshot"
exec-start = ["sh", "-c", "echo run >> {folder}/runs; read gate < {folder}/gate"]
"""


def write_unit(folder: Path) -> None:
    os.mkfifo(folder / "gate")
    (folder / "units" / "one.toml").write_text(GATED.format(folder=folder))


def start_and_wait(running: RunningSupervisor) -> None:
    with running.client() as client:
        client.call("Start", units=["one"], wait=True, plan=False)


def test_a_command_is_not_asked_for_again_of_another_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A oneshot that was started by hand when the keeper was killed ran a second time: the waiting client sent its
    command to the next keeper too, which does not know the token. Now it says that the outcome is not known."""
    # However slow the machine is, the client is still there when the next keeper is.
    monkeypatch.setattr(client_module, "RECONNECT_S", 60.0)
    with supervisor({}, prepare=write_unit) as running, ThreadPoolExecutor() as threads:
        client = threads.submit(start_and_wait, running)
        until(lambda: (running.folder / "runs").exists(), "the first run")
        kill_keeper(running)
        running.start_again()
        with pytest.raises(SupervisorReplacedError, match="not known") as told:
            client.result(timeout=60)
        assert told.value.exit_status == 1
        with open(running.folder / "gate", "wb", buffering=0) as gate:
            gate.write(b"go\n")
        running.wait_state("one", "inactive", "failed")
        commands = [each for each in running.records() if each["event"] == "command" and each["verb"] == "start"]
        assert len(commands) == 1
        assert (running.folder / "runs").read_text() == "run\n"

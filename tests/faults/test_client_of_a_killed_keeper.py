"""What a client of the control socket does when the whole supervisor is killed under its call."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


def start_and_wait(running: RunningSupervisor) -> dict[str, Any]:
    with running.client() as client:
        return client.call("Start", units=["one"], wait=True, plan=False)


def test_a_command_is_asked_for_again_of_a_keeper_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token outlives the keeper: the same job is waited for, and the oneshot runs once. The client gave up, for
    it had learnt that another keeper knows no tokens."""
    monkeypatch.setattr(client_module, "RECONNECT_S", 60.0)
    with supervisor({}, prepare=write_unit) as running, ThreadPoolExecutor() as threads:
        client = threads.submit(start_and_wait, running)
        until(lambda: (running.folder / "runs").exists(), "the first run")
        kill_keeper(running)
        running.start_again()
        with open(running.folder / "gate", "wb", buffering=0) as gate:
            gate.write(b"go\n")
        assert client.result(timeout=60)["outcomes"][0]["result"] == "done"
        commands = [each for each in running.records() if each["event"] == "command" and each["verb"] == "start"]
        assert len(commands) == 2
        assert (running.folder / "runs").read_text() == "run\n"


def test_a_command_is_not_asked_for_again_of_a_keeper_that_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A oneshot that was started by hand when the keeper was killed ran a second time: the waiting client sent its
    command to the next keeper too, which did not know the token. Now it says that the outcome is not known."""
    # However slow the machine is, the client is still there when the next keeper is.
    monkeypatch.setattr(client_module, "RECONNECT_S", 60.0)
    with supervisor({}, prepare=write_unit) as running, ThreadPoolExecutor() as threads:
        client = threads.submit(start_and_wait, running)
        until(lambda: (running.folder / "runs").exists(), "the first run")
        kill_keeper(running)
        (running.folder / "r" / "book").unlink()
        running.start_again()
        with pytest.raises(SupervisorReplacedError, match="not known") as told:
            client.result(timeout=60)
        assert told.value.exit_status == 1
        commands = [each for each in running.records() if each["event"] == "command" and each["verb"] == "start"]
        assert len(commands) == 1
        assert (running.folder / "runs").read_text() == "run\n"


def test_shutdown_waited_for_the_end_of_the_next_supervisor() -> None:
    """A service manager that starts it again at once let ``supctl shutdown`` wait for ever, or end the new one too."""
    with supervisor({}) as running, running.client(timeout_s=60) as client:
        client.call("Shutdown")
        running.process.wait(60)
        running.start_again()
        client.wait_until_gone()
        assert running.process.poll() is None


def test_whose_call_it_was_is_known_after_a_restart() -> None:
    """Neither ``cancel`` nor ``shutdown`` compared keepers: what was meant for one was asked of another."""
    with supervisor({}) as running, running.client(timeout_s=60) as client:
        client.call("Ping")
        assert not client.is_replaced()
        kill_keeper(running)
        running.start_again()
        assert not client.is_replaced(), "it goes on"
        running.stop()
        running.start_again()
        assert client.is_replaced()

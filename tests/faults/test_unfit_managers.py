"""New code whose manager cannot restore the state of the old one."""

import os
import shutil
import signal
from pathlib import Path

import supervisord_py
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'


def unfit_managers(running: RunningSupervisor) -> list[dict[str, object]]:
    return [record for record in running.records() if record["event"] == "manager.unfit"]


def restarts(running: RunningSupervisor) -> list[dict[str, object]]:
    return [record for record in running.records() if record["event"] == "manager.restarted"]


def test_code_that_fails_when_it_restores_the_state_took_the_supervision_away(tmp_path: Path) -> None:
    """``daemon-reexec`` and ``daemon-restart`` ended the old manager, for the new one was imported well, and each new
    one died of the state. Now the state is restored on trial: both are refused with the reason, nothing is replaced,
    and it is recorded. Managers that die all the same (the old one was killed) are counted by the one that lives."""
    package = tmp_path / "supervisord_py"
    shutil.copytree(Path(supervisord_py.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    checkout = Path(supervisord_py.__file__).parents[1]
    for data in ("docs", "packaging"):
        shutil.copytree(checkout / data, tmp_path / data)
    prefix = ("env", "-C", "/", f"PYTHONPATH={tmp_path}", "PYTHONDONTWRITEBYTECODE=1")
    with supervisor({"web": SLEEP}, prefix=prefix) as running:
        pid, manager = running.wait_state("web", "active")["pid"], running.manager_pid()
        restore = package / "core" / "snapshot.py"
        good = restore.read_text()
        restore.write_text(good.replace("def ", "def x_"))
        for verb in ("daemon-reexec", "daemon-restart"):
            done = running.supctl(verb)
            assert done.returncode == 1, done
            assert "everything is as it was: the new manager is not fit: AttributeError" in done.stderr
            assert running.manager_pid() == manager
        # SIGUSR2 skipped the trial.
        os.kill(running.keeper_pid, signal.SIGUSR2)
        until(lambda: len(unfit_managers(running)) == 3, "a refusal of the signal's")
        assert running.manager_pid() == manager
        unfit = unfit_managers(running)
        assert all("AttributeError" in str(record["reason"]) for record in unfit)
        assert running.supctl("restart", "web").returncode == 0
        restore.write_text(good)
        for verb in ("daemon-reexec", "daemon-restart"):
            done = running.supctl(verb)
            assert done.returncode == 0, done
        assert [record["failed"] for record in restarts(running)] == [0, 0]
        restore.write_text(good.replace("def ", "def x_"))
        said = running.output().count("has ended")
        running.kill_manager()
        until(lambda: running.output().count("has ended") >= said + 3, "managers that died", 60)
        restore.write_text(good)
        until(lambda: len(restarts(running)) == 3, "a manager that lives", 60)
        failed = restarts(running)[-1]["failed"]
        assert isinstance(failed, int)
        assert failed >= 2
        assert running.status("web")["pid"] not in (None, pid)

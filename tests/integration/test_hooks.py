"""Hooks under a real supervisor: run at an event, as the unit, in the way of nothing, and gone in the end."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.supervisor_rig import AS_USER, RunningSupervisor, is_gone, pids_in, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
CRASH = '[service]\nexec-start = ["/bin/sh", "-c", "exit 9"]\nrestart-sec = "10ms"\n[quarantine]\nfailures = 1\n'


def told(running: RunningSupervisor, event: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["event"] == event]


@pytest.mark.parametrize("uid", AS_USER)
def test_a_hook_is_told_what_has_happened(uid: int | None) -> None:
    """It runs with the unit's environment and user, and its words are in the log of the hooks."""

    def prepare(folder: Path) -> None:
        program = folder / "page"
        program.write_text(
            f'#!/bin/sh\nenv -0 > {folder}/told.new\nmv {folder}/told.new {folder}/told\necho paged "$@"\n'
        )
        program.chmod(0o755)
        settings = f'[[hooks]]\nevent = "unit.quarantined"\ncommand = ["{program}", "%n", "%%"]\n'
        (folder / "supervisord.toml").write_text(settings)

    unit = CRASH.replace("[quarantine]", 'environment = { MINE = "yes" }\n[quarantine]')
    with supervisor({"web": unit}, prepare=prepare, uid=uid, invariants=uid is None) as running:
        running.wait_state("web", "quarantined")
        path = running.folder / "told"
        until(path.exists, "what the hook wrote")
        environment = dict(item.split("=", 1) for item in path.read_text().split("\0") if item)
        (record,) = until(lambda: told(running, "unit.quarantined"), "the record in its file")
        assert environment["SUPERVISORD_PY_EVENT"] == "unit.quarantined"
        assert environment["SUPERVISORD_PY_SEQ"] == str(record["seq"])
        assert environment["SUPERVISORD_PY_SEVERITY"] == "error"
        assert environment["SUPERVISORD_PY_UNIT"] == "web"
        assert environment["MINE"] == "yes"
        assert "NOTIFY_SOCKET" not in environment
        assert json.loads(environment["SUPERVISORD_PY_FIELDS"])["failures"] == record["failures"]
        log = running.log_folder / "_hooks.log"
        until(lambda: log.exists() and "web: paged web %\n" in log.read_text(), "the words of the hook")
        until(lambda: [each for each in told(running, "unit.exited") if each.get("role") == "hook"], "its end")
        assert told(running, "hook.failed") == []


def test_hooks_that_fail_and_hang_hold_nothing_up() -> None:
    """One that does not exist, one that fails, one that hangs with a child: each is told, and killed as a tree; a
    hook about no unit runs as the supervisor does."""

    def prepare(folder: Path) -> None:
        script = f"sleep 1000 & echo $$ $! >> {folder}/pids; exec sleep 1000"
        settings = (
            f'[[hooks]]\nevent = "unit.started"\ncommand = ["/bin/sh", "-c", "{script}"]\ntimeout = "1s"\n'
            '[[hooks]]\nevent = "unit.started"\ncommand = ["/no/such/program"]\n'
            '[[hooks]]\nevent = "unit.stopped"\ncommand = ["/bin/false"]\n'
            f'[[hooks]]\nevent = "daemon.stopping"\ncommand = ["/bin/sh", "-c", "id -u > {folder}/who"]\n'
        )
        (folder / "supervisord.toml").write_text(settings)

    with supervisor({"web": SLEEP}, prepare=prepare) as running:
        pid = running.wait_state("web", "active")["pid"]
        mine = pids_in(running.folder / "pids", 2)
        until(lambda: all(map(is_gone, mine)), "the end of the hook and of its child")
        assert running.status("web")["pid"] == pid
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: len(told(running, "hook.failed")) == 3, "three failures")
        messages = sorted(record["message"] for record in told(running, "hook.failed"))
        assert messages[0].startswith("the hook of unit.started failed: ")
        assert "did not end within 1s" in messages[1] + messages[0]
        assert messages[2] == "the hook of unit.stopped failed: exited with code 1"
        running.check_invariants()
        assert running.stop() == 0
        assert (running.folder / "who").read_text() == f"{os.getuid()}\n", "the supervisor waits for its last hook"


def test_a_hook_goes_on_under_the_next_manager() -> None:
    """It is neither lost nor run again, and the supervisor does not end before it."""

    def prepare(folder: Path) -> None:
        script = f"echo $$ >> {folder}/pids; until test -e {folder}/go; do sleep 0.05; done; echo done >> {folder}/done"
        settings = f'[[hooks]]\nevent = "unit.started"\ncommand = ["/bin/sh", "-c", "{script}"]\ntimeout = "60s"\n'
        (folder / "supervisord.toml").write_text(settings)

    with supervisor({"web": SLEEP}, prepare=prepare) as running:
        (pid,) = pids_in(running.folder / "pids")
        running.kill_manager()
        running.wait_state("web", "active")
        running.check_invariants()
        assert psutil.pid_exists(pid)
        (running.folder / "go").touch()
        until(lambda: is_gone(pid), "the end of the hook")
        until(lambda: [each for each in told(running, "unit.exited") if each.get("role") == "hook"], "its record")
        assert pids_in(running.folder / "pids") == [pid]
        assert (running.folder / "done").read_text() == "done\n"
        assert running.stop() == 0
        assert os.path.exists(running.log_folder)

"""What users of other supervisors complain about, told to the end as they wished: enabling, applying, rolling restarts.

Each test is named after the complaint.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "{}"]\n'
WORKER = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
print("release", sys.argv[1], flush=True)
if sys.argv[1] == "broken":
    sys.exit("no such table: users")
sock.send(b"READY=1")
signal.pause()
"""


def worker(release: str, count: int = 3) -> str:
    return f"""
[service]
type = "notify"
exec-start = [{json.dumps(sys.executable)}, "-c", '''{WORKER}''', {json.dumps(release)}]
[instances]
count = {count}
"""


def pids(running: RunningSupervisor, *units: str) -> dict[str, int]:
    return {unit: running.wait_state(unit, "active")["pid"] for unit in units}


def most_down(records: list[dict[str, Any]], units: tuple[str, ...], after: int) -> int:
    """The most units that were down at a time, by the journal from record ``after`` on."""
    down: set[str] = set()
    most = 0
    for record in records:
        if record["seq"] > after and record["unit"] in units:
            if record["event"] in ("unit.stopping", "unit.exited", "unit.failed"):
                down.add(record["unit"])
            elif record["event"] == "unit.ready":
                down.discard(record["unit"])
            most = max(most, len(down))
    return most


def test_supervisor_591_disable_is_kept() -> None:
    """supervisor #591, #877, #1411: what is disabled stays so after a restart of the supervisor, without an edit of its
    file; enabling it again leaves nothing behind."""
    with supervisor({"web": SLEEP.format(1), "db": SLEEP.format(1000), "old": SLEEP.format(1000)}) as running:
        assert running.supctl("disable", "db", "--now").returncode == 0
        running.kill_manager()
        assert running.status("db")["enabled"] is False, "the next manager knows it too"
        assert running.supctl("mask", "old", "--now", "-m", "it writes to the wrong disk").returncode == 0
        assert running.stop() == 0
        running.start_again()
        running.wait_state("web", "active", "failed", "activating", "inactive")
        assert running.status("db")["active_state"] == "inactive"
        assert running.status("old")["load_state"] == "masked"
        refused = running.supctl("start", "old")
        assert (refused.returncode, "supctl unmask old" in refused.stderr) == (1, True)
        enabled = running.supctl("is-enabled", "db", "old", "web")
        assert (enabled.stdout.split(), enabled.returncode) == (["disabled", "masked", "enabled"], 1)
        assert running.supctl("start", "db").returncode == 0, "disabled is not forbidden"
        assert running.supctl("enable", "db").returncode == 0
        assert running.supctl("unmask", "old").returncode == 0
        assert running.supctl("is-enabled", "-q", "db", "old").returncode == 0
        assert list((running.folder / "s" / "control").rglob("*")) == []
        assert [record["reason"] for record in running.records() if record.get("verb") == "mask"] == [
            "it writes to the wrong disk"
        ]


def test_supervisor_456_rolling_restart() -> None:
    """supervisor #456, #53, #723: workers are restarted one after the other, each when the one before is ready."""
    units = ("w@1", "w@2", "w@3")
    with supervisor({"w@": worker("one")}) as running:
        before = pids(running, *units)
        mark = running.records()[-1]["seq"]
        done = running.supctl("restart", "--rolling", "--max-unavailable", "1", "w@")
        assert done.returncode == 0, done.stderr
        after = pids(running, *units)
        assert all(before[unit] != after[unit] for unit in units)
        assert most_down(running.records(), units, mark) == 1


def test_circus_646_graceful_one_at_a_time_and_back_when_it_fails() -> None:
    """circus #646: a release that does not come up is tried on one worker, and all run the release before again; the
    message has the process's last words, and status says that the file is not what runs."""
    units = ("w@1", "w@2", "w@3")
    with supervisor({"w@": worker("one")}) as running:
        before = pids(running, *units)
        mark = running.records()[-1]["seq"]
        (running.units / "w@.toml").write_text(worker("broken"))
        failed = running.supctl("apply", "--rolling", "-m", "release broken")
        assert failed.returncode == 1, failed.stdout
        assert "no such table: users" in failed.stderr
        after = pids(running, *units)
        assert (after["w@2"], after["w@3"]) == (before["w@2"], before["w@3"]), "they were never touched"
        assert after["w@1"] != before["w@1"]
        assert most_down(running.records(), units, mark) == 1
        assert "release one" in running.supctl("logs", "w@1").stdout.splitlines()[-1]
        status = running.supctl("status", "w@1")
        assert "refused by apply" in status.stdout
        (finished,) = (record for record in running.records() if record["event"] == "rollout.finished")
        assert (finished["result"], finished["units"]["w@3"]) == ("failed", "left-out")
        # Mended, it goes through, and the mark is gone.
        (running.units / "w@.toml").write_text(worker("two"))
        assert running.supctl("apply", "--rolling", "--max-unavailable", "2").returncode == 0
        assert "refused" not in running.supctl("status", "w@1").stdout
        assert all("release two" in running.supctl("logs", "-n", "1", unit).stdout for unit in units), (
            "all run the new release"
        )


def test_supervisor_1154_update_restarts_only_what_changed() -> None:
    """supervisor #1154, #1713: of a group only the member whose file changed is restarted, and an apply of one unit
    does not even look at the files of the others."""
    group = '[unit]\ngroups = ["web"]\n'
    with supervisor({name: group + SLEEP.format(1000) for name in ("a", "b", "c")}) as running:
        before = pids(running, "a", "b", "c")
        (running.units / "b.toml").write_text(group + SLEEP.format(1001))
        (running.units / "c.toml").write_text("[service]\nexec-strat = 1\n")
        done = running.supctl("apply", "b")
        assert done.returncode == 0, done.stderr
        after = pids(running, "a", "b", "c")
        assert [name for name in before if before[name] != after[name]] == ["b"]
        refused = running.supctl("apply")
        assert (refused.returncode, "c.toml" in refused.stderr) == (6, True), "nothing is applied with a broken file"
        assert running.status("c")["load_state"] == "loaded"
        (running.units / "c.toml").write_text(group + 'description = "words"\n' + SLEEP.format(1000))
        assert running.supctl("apply", "@web").returncode == 0
        assert pids(running, "a", "b", "c") == after, "other words need no restart"


def test_supervisor_720_nobody_understands_reread_update_reload() -> None:
    """supervisor #720, #888: one verb, whose plan says what it will do and whose run does just that."""
    with supervisor({"a": SLEEP.format(1000), "b": f'[unit]\nrequires = ["a"]\n{SLEEP.format(1000)}'}) as running:
        before = pids(running, "a", "b")
        for name in ("a", "b"):
            text = (running.units / f"{name}.toml").read_text()
            (running.units / f"{name}.toml").write_text(text.replace("1000", "1001"))
        plan = running.supctl("apply", "--plan")
        assert plan.returncode == 0
        assert [line for line in plan.stdout.splitlines() if "restart" in line] == [
            "1. would restart a",
            "2. would restart b",
        ]
        assert pids(running, "a", "b") == before
        planned = json.loads(running.supctl("apply", "--plan", "--json").stdout)
        assert planned["restarts"] == ["a", "b"]
        assert running.supctl("apply").returncode == 0
        after = pids(running, "a", "b")
        assert not set(before.values()) & set(after.values())
        again = running.supctl("apply")
        assert (again.returncode, again.stdout) == (0, "nothing needs a restart\n")
        for word in ("update", "reread"):
            wrong = running.supctl(word)
            assert (wrong.returncode, "supctl" in wrong.stderr) == (2, True)


def test_circus_965_what_the_admin_stopped_stays_stopped() -> None:
    """circus #965: neither an apply nor a rolling one starts what an operator stopped."""
    with supervisor({"a": SLEEP.format(1000), "b": SLEEP.format(1000)}) as running:
        pids(running, "a", "b")
        assert running.supctl("stop", "a").returncode == 0
        for name in ("a", "b"):
            (running.units / f"{name}.toml").write_text(SLEEP.format(1001))
        assert running.supctl("apply", "--rolling").returncode == 0
        assert running.status("a")["active_state"] == "inactive"
        running.wait_state("b", "active")


def test_the_manager_dies_in_the_middle_of_an_apply() -> None:
    """The next manager goes on with the rollout, back to the older text included, and who waits for it is answered."""
    units = ("w@1", "w@2")
    with supervisor({"w@": worker("one", 2)}) as running:
        before = pids(running, *units)
        (running.units / "w@.toml").write_text(worker("two", 2))
        waiting = subprocess.Popen(
            [
                *(sys.executable, "-m", "supervisord_py.ctl.cli", "--socket", str(running.socket)),
                *("apply", "--rolling", "--probation", "1min"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: running.status("w@1")["pid"] not in (None, before["w@1"]), "the first restart")
            running.wait_state("w@1", "active")
            running.kill_manager()
            # The new release has been ready, and now it dies.
            os.kill(running.status("w@1")["pid"], signal.SIGKILL)
            out, err = waiting.communicate(timeout=60)
        finally:
            waiting.kill()
            waiting.communicate()
        assert (waiting.returncode, "did not stay up" in err) == (1, True), out
        after = pids(running, *units)
        assert after["w@2"] == before["w@2"]
        assert "release one" in running.supctl("logs", "-n", "1", "w@1").stdout
        assert "refused by apply" in running.supctl("status", "w@1").stdout
        started = [record["event"] for record in running.records() if record["event"].startswith("rollout.")]
        assert started == ["rollout.started", "rollout.failed", "rollout.reverted", "rollout.finished"]


def test_cancel_ends_an_apply_where_it_is() -> None:
    """A rollout is among the jobs; cancelled, it restarts nothing more and goes nowhere back."""
    units = ("w@1", "w@2")
    with supervisor({"w@": worker("one", 2)}) as running:
        before = pids(running, *units)
        (running.units / "w@.toml").write_text(worker("two", 2))
        job = running.supctl("apply", "--rolling", "--probation", "1h", "--no-wait").stdout.strip()
        until(lambda: running.status("w@1")["pid"] not in (None, before["w@1"]), "the first restart")
        busy = running.supctl("apply")
        assert (busy.returncode, "cancel" in busy.stderr) == (1, True)
        assert running.supctl("cancel", job).returncode == 0
        assert json.loads(running.supctl("jobs", "--json").stdout) == {"jobs": []}
        assert running.wait_state("w@2", "active")["pid"] == before["w@2"]
        # What was not restarted still needs it.
        assert running.supctl("apply").returncode == 0
        assert running.wait_state("w@2", "active")["pid"] != before["w@2"]


@pytest.fixture
def editor(tmp_path: Path) -> Path:
    """An editor that replaces 1000 with the text in the file beside it."""
    script = tmp_path / "editor"
    script.write_text(f'#!/bin/sh\nsed -i "s/1000/$(cat {tmp_path}/word)/" "$1"\n')
    script.chmod(0o755)
    return script


def test_pebble_plans_are_edited_by_hand_and_break_the_service(editor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited file is checked before it is written: what is invalid never reaches the disk, the rest is applied."""
    monkeypatch.setenv("VISUAL", str(editor))
    with supervisor({"web": SLEEP.format(1000)}) as running:
        path = running.units / "web.toml"
        before = pids(running, "web")
        (editor.parent / "word").write_text('\\", 7, \\"')
        bad = running.supctl("edit", "web", "--yes")
        assert bad.returncode == 6, bad.stderr
        assert "web.toml:2" in bad.stderr
        assert path.read_text() == SLEEP.format(1000)
        kept = Path(bad.stderr.split("kept in ")[1].split()[0])
        assert kept.read_text() != SLEEP.format(1000)
        kept.unlink()
        (editor.parent / "word").write_text("1001")
        good = running.supctl("edit", "web", "--yes")
        assert good.returncode == 0, good.stderr
        assert '+exec-start = ["sleep", "1001"]' in good.stdout
        assert path.read_text() == SLEEP.format(1001)
        assert pids(running, "web") != before
        assert running.supctl("edit", "web").returncode == 2, "it asks, and nobody is there to answer"

"""supctl run: a command as a unit of its own, from its start to the moment when it is forgotten."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.client import ControlError, new_token
from supervisord_py.host import transients
from supervisord_py.host.spent_logs import LOGS_MAX, clear_logs
from tests.integration.supervisor_rig import AS_USER, RunningSupervisor, is_gone, pids_in, supervisor, until

WEB = '[service]\nexec-start = ["sleep", "1000"]\n'


def names(running: RunningSupervisor) -> list[str]:
    with running.client() as client:
        return [unit["name"] for unit in client.call("List", units=[], failed=False)["units"]]


def run_json(running: RunningSupervisor, *arguments: str) -> dict[str, Any]:
    done = running.supctl("run", "--json", *arguments)
    assert done.returncode == 0, done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("uid", AS_USER)
def test_a_command_is_run_and_forgotten(uid: int | None) -> None:
    """It is a unit like others, marked as what it is; when it has ended well nothing is left of it but its records."""
    with supervisor({"web": WEB}, uid=uid) as running:
        name = run_json(running, "-p", "limits.nofile=77:88", "-E", "A=b%c d", "--", "sh", "-c", "sleep 1000 & wait")[
            "unit"
        ]
        assert name.startswith("run-")
        status = running.status(name)
        assert (status["active_state"], status["transient"], status["enabled"]) == ("active", True, False)
        assert status["description"] == "sh", "arguments are not for everybody"
        pid = status["pid"]
        if uid is None:
            assert b"A=b%c d" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        child = int(until(Path(f"/proc/{pid}/task/{pid}/children").read_text, "its child"))
        words = [name, "loaded", "active", "running", "transient", "sh"]
        assert words in [line.split() for line in running.supctl("list").stdout.splitlines()]
        assert "nofile = " in running.supctl("cat", name).stdout
        assert running.supctl("is-enabled", name).stdout == "transient\n"
        assert running.supctl("daemon-reload").stdout == "nothing has changed\n"
        assert running.status(name)["pid"] == pid
        assert running.supctl("stop", name).returncode == 0
        assert is_gone(child)
        until(lambda: names(running) == ["web"], "the end of what was run")
        assert not running.status("web")["transient"]

        def events() -> list[str]:
            return [record["event"] for record in running.records() if record["unit"] == name]

        # Status is ahead of the disk.
        until(lambda: events()[-1] == "unit.removed", "its last record")
        assert (events()[0], events().count("unit.exited")) == ("unit.loaded", 1)


@pytest.mark.parametrize("uid", AS_USER)
def test_wait_passes_the_code(uid: int | None) -> None:
    """The process's own code, 128 + n for a signal, 125 for what never began; a failed unit stays until its failure is
    forgotten, and with --collect it does not."""
    with supervisor({"web": WEB}, uid=uid) as running:
        codes = {"exit 0": 0, "exit 7": 7, "kill -9 $$": 137, "kill -TERM $$": 143}
        for script, code in codes.items():
            done = running.supctl("run", "--wait", "-u", f"c{code}", "--", "sh", "-c", script)
            assert done.returncode == code, done
        never = running.supctl("run", "--wait", "-u", "never", "--", "/nonexistent")
        assert (never.returncode, "/nonexistent: no such file" in never.stderr) == (125, True)
        oneshot = running.supctl("run", "-w", "-G", "-p", "service.type=oneshot", "--", "sh", "-c", "exit 5")
        assert oneshot.returncode == 5, oneshot
        # A clean end by SIGTERM is none of a failure, as in systemd.
        until(lambda: names(running) == ["c137", "c7", "never", "web"], "only the failed ones")
        assert running.status("c7")["exit"] == {"code": 7, "signal": None}
        assert running.supctl("reset-failed", "c7", "c137", "never").returncode == 0
        until(lambda: names(running) == ["web"], "the end of the failed ones")
        assert running.supctl("run", "--wait", "--timeout", "100ms", "-u", "long", "sleep", "1000").returncode == 124
        assert running.status("long")["active_state"] == "active"
        assert running.supctl("run", "no-such-program-here").returncode == 1


def test_what_was_run_outlives_managers_and_keepers() -> None:
    """Its text is in custody: after the manager's death, daemon-restart, daemon-reexec and the keeper's death it is the
    same process and the same unit; who waited for it learns how it ended; an ordered end forgets it."""
    with supervisor({"web": WEB}) as running:
        name = run_json(running, "-u", "job", "-p", "service.umask='0077'", "sleep", "1000")["unit"]
        pid = running.status(name)["pid"]
        with running.client() as client:
            with client.stream(
                "Run", command=["/bin/sh", "-c", "sleep 1000; true"], unit="waited", save=False, properties=[],
                collect=False, until="exit", wait=True, plan=False, token="a",
            ):  # fmt: skip
                until(lambda: "waited" in names(running), "the unit")
                waited = running.wait_state("waited", "active")["pid"]
            running.kill_manager()
            again = {"command": ["/bin/true"], "unit": "waited", "save": False, "properties": [], "collect": False}
            again |= {"until": "exit", "wait": True, "plan": False, "token": "a"}
            with running.client().stream("Run", **again) as stream:
                assert running.status("waited")["pid"] == waited
                os.kill(waited, 9)
                (reply,) = list(stream)
            assert reply["ended"] == {"result": "signal", "exit": {"code": None, "signal": "SIGKILL"}}
            for verb in ("daemon-restart", "daemon-reexec", "daemon-reload"):
                done = running.supctl(verb)
                assert done.returncode == 0, done
            assert running.status(name)["pid"] == pid
        os.kill(running.keeper_pid, 9)
        running.process.wait()
        running.start_again()
        status = running.wait_state(name, "active")
        assert (status["pid"], status["transient"]) == (pid, True)
        assert "umask" in running.supctl("cat", name).stdout
        running.stop()
        assert is_gone(pid)
        running.start_again()
        assert names(running) == ["web"]


def test_the_same_request_again_is_one_unit() -> None:
    """With its token: while it runs, and when it has ended and is forgotten. Another one is refused the name."""
    with supervisor({"web": WEB}) as running, running.client() as client:
        wanted = {"save": False, "properties": [], "collect": False, "plan": False}
        token = new_token()
        first = client.call("Run", command=["/bin/sleep", "1000"], wait=True, token=token, **wanted)
        assert (
            client.call("Run", command=["/bin/sleep", "1000"], wait=True, token=token, **wanted)["unit"]
            == first["unit"]
        )
        assert names(running) == [first["unit"], "web"]
        with pytest.raises(ControlError, match="already"):
            client.call("Run", command=["/bin/true"], unit=first["unit"], wait=True, **wanted)
        token = new_token()
        ended = client.call("Run", command=["/bin/true"], until="exit", wait=True, token=token, **wanted)
        until(lambda: ended["unit"] not in names(running), "its end")
        again = client.call("Run", command=["/bin/true"], until="exit", wait=True, token=token, **wanted)
        assert again["ended"] == ended["ended"] == {"result": "success", "exit": {"code": 0, "signal": None}}
        starts = [
            each for each in running.records() if each["event"] == "unit.starting" and each["unit"] == ended["unit"]
        ]
        assert len(starts) == 1


@pytest.mark.parametrize("uid", AS_USER)
def test_save_writes_a_unit_file(uid: int | None) -> None:
    """A file that all may read, whole, and never in the place of another; it is there after a restart."""
    with supervisor({"web": WEB}, uid=uid) as running:
        plan = running.supctl("run", "--save", "job", "--plan", "-p", "limits.nofile=77", "sleep", "1000")
        path = running.units / "job.toml"
        assert f"would write {path}" in plan.stdout and not path.exists()
        assert "restart" not in plan.stdout
        saved = running.supctl("run", "--save", "job", "-p", "limits.nofile=77", "sleep", "1000")
        assert (saved.returncode, saved.stdout.splitlines()[0]) == (0, f"wrote {path}"), saved
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        status = running.status("job")
        assert (status["active_state"], status["transient"], status["enabled"], status["path"]) == (
            "active", False, True, str(path),
        )  # fmt: skip
        text = path.read_text()
        assert running.supctl("run", "--save", "job", "true").returncode == 1
        (running.units / "later.toml").write_text("[target]\n")
        refused = running.supctl("run", "--save", "later", "true")
        assert (refused.returncode, f"{running.units / 'later.toml'} is there already" in refused.stderr) == (1, True)
        assert running.supctl("run", "--save", "bad", "-p", "service.restart=so", "true").returncode == 2
        assert (path.read_text(), (running.units / "later.toml").read_text()) == (text, "[target]\n")
        assert sorted(each.name for each in running.units.iterdir()) == ["job.toml", "later.toml", "web.toml"]
        assert not running.status("job")["needs_reload"]
        running.stop()
        running.start_again()
        running.wait_state("job", "active")


def test_run_by_the_clock(tmp_path: Path) -> None:
    """A timer arms it and it stays; when no time is left it is forgotten."""
    with supervisor({"web": WEB}) as running:
        command = ("sh", "-c", f"echo $$ >> {tmp_path}/ran")
        assert running.supctl("run", "-u", "often", "--every", "10ms", "--", *command).returncode == 0
        assert len(pids_in(tmp_path / "ran", 3)) >= 3
        assert running.status("often")["transient"]
        assert running.supctl("stop", "often").returncode == 0
        (tmp_path / "ran").unlink()
        assert running.supctl("run", "-u", "soon", "--on-active", "10ms", "--", *command).returncode == 0
        assert len(pids_in(tmp_path / "ran")) == 1
        until(lambda: names(running) == ["web"], "both are forgotten")
        assert running.supctl("run", "--wait", "--every", "1s", "true").returncode == 2


def test_what_cannot_be_run_changes_nothing() -> None:
    """A wrong value, a name that is taken or none, a prefix; the first word of a command is no option of ours."""
    with supervisor({"web": WEB}) as running:
        for arguments, code, words in (
            (("-p", "service.restart=so", "true"), 2, "run: service.restart: 'so' is not possible"),
            (("-p", "nosuch=3", "true"), 2, "no table has a key 'nosuch'"),
            (("-p", "service.exec-start=", "true"), 2, "run:"),
            (("-u", "web", "true"), 1, "there is a unit web already"),
            (("-u", "a@b", "true"), 2, "cannot be the name"),
            (("-u", "..", "true"), 2, "no name of a unit"),
            (("-u", "x", "-E", "NOT_HERE_AT_ALL", "true"), 2, "NOT_HERE_AT_ALL"),
            (("--pty", "true"), 2, "--pty needs a terminal"),
            (("--pty", "--remote", "tcp://localhost:1", "true"), 2, "ssh -t HOST"),
            (("--save", "x", "-u", "y", "true"), 2, "leave out --unit"),
            (("--wait", "--no-wait", "true"), 2, "leave out --no-wait"),
            ((), 2, "COMMAND"),
        ):
            done = running.supctl("run", *arguments)
            assert (done.returncode, words in done.stderr) == (code, True), (arguments, done)
        assert names(running) == ["web"]
        with running.client() as client, pytest.raises(ControlError, match="prefix"):
            wanted = {"save": False, "properties": [], "collect": False, "plan": False, "wait": True}
            client.call("Run", command=["+/bin/sh"], **wanted)
        echoed = running.supctl("run", "-u", "echo", "-r", "echo", "-u", "%H", "$HOME", "--json")
        assert echoed.returncode == 0, echoed
        assert until(lambda: running.supctl("logs", "echo").stdout, "its words") == "-u %H $HOME --json\n"


def test_what_was_run_is_not_enabled_for_the_next_of_its_name() -> None:
    """Drop-ins and masks of a unit without a file were written into the control folder, and stayed there."""
    with supervisor({"web": WEB}) as running:
        assert running.supctl("run", "-u", "job", "sleep", "1000").returncode == 0
        for words in (("enable", "job"), ("disable", "job"), ("mask", "job"), ("set", "--persist", "job", "nice=3")):
            done = running.supctl(*words)
            assert (done.returncode, "run --save" in done.stderr) == (2, True), (words, done)
        assert not list((running.folder / "s").rglob("control/job*"))
        assert running.supctl("set", "job", "nice=3").returncode == 0


def test_what_is_forgotten_leaves_its_words_and_who_ran_it() -> None:
    """The output can be read on, the journal says what was run, without secrets; what was set for the unit goes with
    it, and it cannot be edited, for it has no file."""
    with supervisor({"web": WEB}) as running:
        script = ("sh", "-c", "echo hello; exec sleep 1000", "sh", "--password=hunter2")
        name = run_json(running, "-p", "LimitNOFILE=99", "-p", "nice=5", "--", *script)["unit"]
        assert os.getpriority(os.PRIO_PROCESS, running.status(name)["pid"]) == 5
        assert running.supctl("set", name, "RestartSec=7s").returncode == 0
        assert (running.folder / "r" / "set" / f"{name}.toml.d").exists()
        edit = running.supctl("edit", "--yes", name)
        assert (edit.returncode, "was run without a file" in edit.stderr) == (1, True)
        assert running.supctl("stop", name).returncode == 0
        until(lambda: names(running) == ["web"], "its end")
        until(lambda: not (running.folder / "r" / "set" / f"{name}.toml.d").exists(), "the end of what was set")
        assert running.supctl("logs", name).stdout == "hello\n"
        assert (running.supctl("status", name).returncode, running.supctl("logs", "run-not").returncode) == (4, 4)
        (record,) = (each for each in running.records() if each.get("verb") == "run")
        assert record["argv"][1:] == [*script[1:4], "--password=[redacted]"]
        assert record["units"] == [name]


def test_failed_units_and_their_output_are_bounded(tmp_path: Path) -> None:
    """The oldest of many that have failed goes, and so does the output of the oldest that are forgotten."""
    logs = tmp_path
    made = [transients.made_name(str(number), "7" if number % 2 else "") for number in range(LOGS_MAX + 5)]
    for age, name in enumerate([*made, "run-me", "web"]):
        for suffix in ("log", "log.1", "log.lives"):
            path = logs / f"{name}.{suffix}"
            path.write_text("x")
            os.utime(path, (age, age))
    clear_logs(logs, lambda name: transients.is_made_name(name) and name != made[0])
    left = {path.name.partition(".log")[0] for path in logs.iterdir()}
    assert left == {made[0], *made[5:], "run-me", "web"}
    assert not any(transients.is_made_name(name) for name in ("run-me", "web", "run-x-0123456789ab", "run-7", "run"))

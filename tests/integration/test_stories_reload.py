"""Stories of a reload that users of other supervisors complain about, ending as they wished.

Each is named after the complaint (``research``: the trackers of supervisor, circus, pebble, Horust, ochinchina's
supervisord). The stories of apply, enable and mask are in ``test_stories_apply``.
"""

import json
import os
import signal
import sys
from typing import Any

from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
ONCE = '[service]\ntype = "oneshot"\nexec-start = ["true"]\n'


def write(running: RunningSupervisor, name: str, text: str) -> None:
    (running.units / f"{name}.toml").write_text(text)


def pids(running: RunningSupervisor, *names: str) -> dict[str, int]:
    return {name: running.wait_state(name, "active")["pid"] for name in names}


def loads(running: RunningSupervisor, name: str) -> list[dict[str, Any]]:
    return [each for each in running.records() if each["event"] == "unit.loaded" and each["unit"] == name]


def starts(running: RunningSupervisor, name: str) -> int:
    return sum(each["event"] == "unit.starting" and each["unit"] == name for each in running.records())


def test_ochinchina_167_reload_restarts_every_program() -> None:
    """A reload restarts nothing: of three programs one takes its new restart policy over as it runs, one says that it
    needs a restart, and the third is not even mentioned.
    """
    with supervisor({"live": SLEEP, "web": SLEEP, "same": SLEEP}) as running:
        before = pids(running, "live", "web", "same")
        write(running, "live", SLEEP + 'restart = "no"\n')
        write(running, "web", SLEEP.replace("1000", "2000"))
        done = running.supctl("daemon-reload")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "changed: live (in effect)",
            "  service.restart: on-failure -> no",
            "changed: web (needs a restart)",
            '  service.exec-start: ["sleep", "1000"] -> ["sleep", "2000"]  (restart)',
            "next: supctl restart web",
        ]
        assert pids(running, "live", "web", "same") == before
        assert running.status("web")["restart_keys"] == ["service.exec-start"]
        assert running.supctl("restart", "web").returncode == 0
        assert not running.status("web")["needs_restart"]
        after = pids(running, "live", "web", "same")
        assert [name for name in before if after[name] != before[name]] == ["web"]
        os.kill(after["live"], signal.SIGKILL)
        running.wait_state("live", "failed")
        assert starts(running, "live") == 1


def test_circus_553_reloadconfig_kills_watchers_it_does_not_find() -> None:
    """A file that went and a file that broke leave their programs alone: supervised, restarted after a crash, and
    status says what is wrong with each; when the files are back they are what they were.
    """
    with supervisor({"gone": SLEEP, "broken": SLEEP}) as running:
        before = pids(running, "gone", "broken")
        (running.units / "gone.toml").unlink()
        write(running, "broken", SLEEP + "no-such-key = 1\n")
        assert running.supctl("daemon-reload").returncode == 1
        gone, broken = running.status("gone"), running.status("broken")
        assert (gone["load_state"], gone["pid"]) == ("not_found", before["gone"])
        assert (broken["load_state"], broken["pid"]) == ("bad_setting", before["broken"])
        assert running.supctl("status", "gone", "broken").returncode == 0
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        until(lambda: running.status("gone")["pid"] not in (None, before["gone"]), "a new life of gone")
        until(lambda: running.status("broken")["pid"] not in (None, before["broken"]), "a new life of broken")
        after = pids(running, "gone", "broken")
        write(running, "gone", SLEEP)
        write(running, "broken", SLEEP)
        assert running.supctl("daemon-reload").returncode == 0
        assert {running.status(name)["load_state"] for name in before} == {"loaded"}
        assert pids(running, "gone", "broken") == after


def test_circus_965_what_the_admin_stopped_is_started_again() -> None:
    """Stopped stays stopped: over reloads of the same and of another text, over a file that broke and was mended, over
    a new manager.
    """
    with supervisor({"web": SLEEP, "other": SLEEP}) as running:
        pids(running, "web", "other")
        assert running.supctl("stop", "web").returncode == 0
        broken = SLEEP + "no-such-key = 1\n"
        for text, code in ((SLEEP, 0), (SLEEP.replace("1000", "2000"), 0), (broken, 1), (SLEEP, 0)):
            write(running, "web", text)
            assert running.supctl("daemon-reload").returncode == code
        assert running.supctl("daemon-restart").returncode == 0
        assert running.supctl("daemon-reload").returncode == 0
        assert running.status("web")["active_state"] == "inactive"
        assert starts(running, "web") == 1


def test_pebble_709_spurious_restarts_after_a_daemon_restart() -> None:
    """A new manager starts nothing again, neither a finished oneshot nor a running program, and loads no file that
    was edited meanwhile: it says that there is one.
    """
    with supervisor({"once": ONCE, "web": SLEEP}) as running:
        before = pids(running, "web")
        until(lambda: running.status("once")["exit"] is not None, "the end of once")
        write(running, "web", SLEEP.replace("1000", "2000"))
        write(running, "new", SLEEP)
        for _ in range(2):
            assert running.supctl("daemon-restart").returncode == 0
            until(lambda: running.status("web")["needs_reload"], "the mark")
        assert pids(running, "web") == before
        assert starts(running, "once") == 1
        assert not running.status("web")["needs_restart"]
        status = running.supctl("status")
        assert "its file has changed since, or is gone: supctl daemon-reload" in status.stdout
        assert "not loaded: new; next: supctl daemon-reload" in status.stdout


def test_supervisor_720_nobody_understands_reread_update_reload_restart() -> None:
    """One verb reads, and says what to type next at every step; its plan changes nothing, and an edit that is taken
    back leaves no trace.
    """
    with supervisor({"web": f'[unit]\ndescription = "old"\n{SLEEP}'}) as running:
        before = pids(running, "web")
        new = f'[unit]\ndescription = "new"\n{SLEEP}[service.environment]\nTOKEN = "s3cret"\n'
        write(running, "web", new)
        until(lambda: running.status("web")["needs_reload"], "the mark")
        planned = running.supctl("daemon-reload", "--plan", "--json")
        assert planned.returncode == 0
        (change,) = json.loads(planned.stdout)["changes"]
        assert (change["unit"], change["change"], change["effect"]) == ("web", "changed", "restart")
        assert change["keys"] == [
            {"key": "unit.description", "old": "old", "new": "new", "effect": "live"},
            {"key": "service.environment.TOKEN", "old": None, "new": "s3cret", "effect": "restart"},
        ]
        assert running.status("web")["description"] == "old"
        assert running.supctl("daemon-reload").returncode == 0
        status = running.status("web")
        assert (status["description"], status["needs_reload"], status["needs_restart"]) == ("new", False, True)
        shown = running.supctl("status", "web").stdout
        assert "service.environment.TOKEN since it was started: supctl restart web" in shown
        (_, loaded) = loads(running, "web")
        assert loaded["keys"] == ["unit.description", "service.environment.TOKEN"]
        assert loaded["needs_restart"] == ["service.environment.TOKEN"]
        assert not [record for record in running.records() if "s3cret" in json.dumps(record)]
        write(running, "web", f'[unit]\ndescription = "new"\n{SLEEP}')
        assert "in effect" not in running.supctl("daemon-reload").stdout
        assert not running.status("web")["needs_restart"]
        assert pids(running, "web") == before


def test_supervisor_1713_one_bad_file_of_another_group_stops_the_update() -> None:
    """The others are loaded all the same, settings too; the exit code and every problem are told at once."""
    units = {"a": SLEEP, "b": SLEEP, "c": SLEEP}
    with supervisor(units) as running:
        before = pids(running, "a", "b", "c")
        write(running, "a", SLEEP + 'restart = "no"\n')
        write(running, "b", "[service\n")
        write(running, "c", SLEEP + "restart = 3\n")
        write(running, "new", SLEEP)
        (running.folder / "supervisord.toml").write_text("[control]\nrequire-reason = true\n")
        done = running.supctl("daemon-reload")
        assert done.returncode == 1
        assert "2 problems in the files; everything else is loaded:" in done.stderr
        assert "b.toml:1" in done.stderr
        assert "c.toml:3" in done.stderr
        assert "  control.require-reason: false -> true" in done.stdout
        running.wait_state("new", "active")
        assert pids(running, "a", "b", "c") == before
        assert running.supctl("stop", "new").returncode == 5
        rejected = {each["unit"] for each in running.records() if each["event"] == "unit.rejected"}
        assert rejected == {"b", "c"}


def test_horust_2_reload_on_a_hangup() -> None:
    """SIGHUP does what supctl daemon-reload does: a new unit starts, a running one takes over what it can."""
    with supervisor({"web": SLEEP}) as running:
        before = pids(running, "web")
        write(running, "web", f'[unit]\ndescription = "new"\n{SLEEP}')
        write(running, "new", SLEEP)
        os.kill(running.keeper_pid, signal.SIGHUP)
        until(lambda: running.supctl("status", "new").returncode == 0, "the new unit")
        assert running.status("web")["description"] == "new"
        assert pids(running, "web") == before


def test_a_hangup_in_the_ordered_stop_reloaded_all_the_same() -> None:
    """Nothing is loaded any more, and the journal says that SIGHUP came and why nothing followed from it; supctl hears
    the same.
    """
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
    slow = f'[service]\nexec-start = ["{sys.executable}", "-c", """{deaf}"""]\ntimeout-stop-sec = "100s"\n'
    with supervisor({"slow": slow}) as running:
        log = running.log_folder / "slow.log"
        until(lambda: log.exists() and log.read_text() == "deaf\n", "a process that ignores SIGTERM")
        [pid] = pids(running, "slow").values()
        os.kill(running.keeper_pid, signal.SIGTERM)
        until(lambda: running.status("slow")["active_state"] == "deactivating", "the ordered stop")
        write(running, "new", SLEEP)
        os.kill(running.keeper_pid, signal.SIGHUP)
        reload = until(
            lambda: [each for each in running.records() if each.get("verb") == "daemon-reload"], "a word about it"
        )
        assert [(each["result"], each["severity"]) for each in reload] == [("ShuttingDown", "warning")]
        refused = running.supctl("daemon-reload")
        assert refused.returncode != 0
        assert "cannot daemon-reload: the supervisor is shutting down" in refused.stderr
        assert running.supctl("daemon-reload", "--plan").returncode == 0
        assert running.supctl("status", "new").returncode == 4
        os.kill(pid, signal.SIGKILL)
        assert running.process.wait(30) == 0
        assert not [each for each in running.records() if each.get("unit") == "new"]


def test_a_unit_folder_that_was_missing_for_a_moment_unloaded_everything() -> None:
    """Its disk is not mounted when somebody reloads: everything stays as it was loaded, what an operator stopped and
    what has failed too; the reload says so and fails, and so does an apply."""
    wrong = '[service]\ntype = "oneshot"\nexec-start = ["false"]\n'
    with supervisor({"web": SLEEP, "down": SLEEP, "failing": wrong}) as running:
        before = pids(running, "web", "down")
        running.wait_state("failing", "failed")
        assert running.supctl("stop", "down").returncode == 0
        away = running.units.with_name("away")
        running.units.rename(away)
        for options in (("--plan",), ()):
            done = running.supctl("daemon-reload", *options)
            assert (done.returncode, done.stdout) == (1, "nothing has changed\n")
            assert "no such file or folder: the units in it are kept as they were" in done.stderr
        for names in ((), ("web",)):
            done = running.supctl("apply", "--plan", *names)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"{running.units} cannot be read" in done.stderr
        away.rename(running.units)
        done = running.supctl("daemon-reload")
        assert (done.returncode, done.stdout) == (0, "nothing has changed\n")
        assert running.status("web")["pid"] == before["web"]
        assert running.status("down")["active_state"] == "inactive"
        assert running.status("failing")["active_state"] == "failed"
        away.mkdir()
        running.units.rename(running.units.with_name("old"))
        away.rename(running.units)
        assert running.supctl("daemon-reload").returncode == 0
        assert running.status("web")["load_state"] == "not_found"

"""Units that are run by the clock, under a real supervisor."""

import json
from pathlib import Path

from tests.integration.supervisor_rig import supervisor, until

TICK = '[service]\ntype = "oneshot"\nexec-start = ["/bin/sh", "-c", "echo x >> {file}"]\n[timer]\nevery = "200ms"\n'
NIGHT = '[service]\ntype = "oneshot"\nexec-start = ["true"]\n[timer]\non-calendar = "daily"\npersistent = true\n'
SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'


def test_a_timer_ticks_is_shown_triggered_and_stopped() -> None:
    """It runs again and again, also after its manager died; ``list --timers``, ``why`` and ``status`` say when next;
    ``trigger`` runs what waits for midnight."""

    def prepare(folder: Path) -> None:
        (folder / "units" / "tick.toml").write_text(TICK.replace("{file}", str(folder / "ticks")))

    with supervisor({"night": NIGHT, "web": SLEEP}, prepare=prepare) as running:
        ticks = running.folder / "ticks"

        def count() -> int:
            return len(ticks.read_text().splitlines()) if ticks.exists() else 0

        until(lambda: count() >= 3, "three ticks")
        night = running.wait_state("night", "active")
        assert night["sub_state"] == "waiting"
        assert night["next_elapse"].endswith("Z")
        heading, *lines = running.supctl("list", "--timers").stdout.splitlines()
        assert heading.split() == ["NEXT", "LEFT", "LAST", "PASSED", "UNIT"]
        assert sorted(line.split()[-1] for line in lines) == ["night", "tick"]
        assert running.supctl("list-timers").stdout.splitlines()[0] == heading
        assert "it is not due until" in running.supctl("why", "night").stdout
        assert "Next run:" in running.supctl("status", "night").stdout
        assert running.supctl("trigger", "night").returncode == 0
        again = running.status("night")
        assert (again["sub_state"], again["next_elapse"]) == ("waiting", night["next_elapse"])
        assert running.supctl("trigger", "web").returncode == 1
        elapsed = [record for record in running.records() if record["event"] == "timer.elapsed"]
        assert {record["unit"] for record in elapsed} == {"tick"}
        assert running.supctl("daemon-restart").returncode == 0
        before = count()
        until(lambda: count() >= before + 3, "ticks under the next manager")
        assert running.supctl("stop", "tick").returncode == 0
        stopped = running.status("tick")
        assert (stopped["active_state"], stopped["next_elapse"]) == ("inactive", None)
        state = json.loads((running.folder / "s" / "snapshot.json").read_text())["state"]
        assert json.loads(state["unit/night"])["timer"]["stamp_wall_ns"] > 0, "the stamp is on disk since it was armed"


def test_a_rolling_restart_and_an_apply_go_on_past_what_waits_for_its_time() -> None:
    """Two timers and a daemon, one at a time: none of the waiting ones holds the others up, and none is run."""
    nightly = '[service]\ntype = "oneshot"\nexec-start = ["{program}"]\n[timer]\non-calendar = "2099-01-01"\n'
    daemon = '[service]\nexec-start = ["sleep", "{span}"]\n'
    units = {"a": nightly.format(program="true"), "b": daemon.format(span="1000"), "c": nightly.format(program="true")}
    with supervisor(units) as running:
        first = running.wait_state("b", "active")["pid"]
        for name in "ac":
            running.wait_state(name, "active")
        done = running.supctl("restart", "--rolling", "--max-unavailable", "1", "a", "b", "c")
        assert done.returncode == 0, done.stderr
        second = running.status("b")["pid"]
        assert second not in (first, None)
        for name, text in (("a", nightly.format(program="false")), ("b", daemon.format(span="2000"))):
            (running.units / f"{name}.toml").write_text(text)
        done = running.supctl("apply", "--rolling", "--probation", "100ms")
        assert done.returncode == 0, done.stderr
        assert running.status("b")["pid"] not in (second, None)
        assert [running.status(name)["sub_state"] for name in "ac"] == ["waiting", "waiting"]
        ran = [each for each in running.records() if each["event"] == "unit.exited" and each["unit"] in ("a", "c")]
        assert ran == []

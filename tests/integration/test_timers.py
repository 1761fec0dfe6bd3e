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

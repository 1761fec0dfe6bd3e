"""scale and set: what runs is changed while it runs, and how that is kept."""

import json
import os
import resource
from pathlib import Path

from tests.integration.supervisor_rig import STOP_S, supervisor, until

WORKER = '[service]\nexec-start = ["sleep", "1000"]\n[instances]\ncount = 2\n'
PAIR = '[service]\nexec-start = ["sh", "-c", "sleep 1000 & wait"]\n'


def test_a_template_is_scaled_up_and_down_and_stays_so() -> None:
    """New instances start, the highest numbers go first and are forgotten, and the next supervisor knows the number."""
    with supervisor({"w@": WORKER, "web": PAIR}) as running:
        first = running.wait_state("w@1", "active")["pid"]
        running.wait_state("w@2", "active")
        assert running.supctl("scale", "w@=11", "--plan").stdout.split("\n")[-2] == "would start w@11"
        up = running.supctl("scale", "w@=11")
        assert [line.split()[1] for line in up.stdout.splitlines()] == [f"w@{number}" for number in range(3, 12)]
        assert running.status("w@11")["active_state"] == "active"
        down = running.supctl("scale", "w=1")
        assert [line.split()[1] for line in down.stdout.splitlines()] == [f"w@{number}" for number in range(11, 1, -1)]
        assert running.supctl("status", "w@2").returncode == 4
        assert running.status("w@1")["pid"] == first
        assert running.supctl("scale", "w@=1").stdout == "scaled w@: 1 instance\n"
        assert (running.supctl("scale", "web=2").returncode, running.supctl("scale", "no@=2").returncode) == (2, 4)
        assert running.supctl("scale", "w@=1001").returncode == 2
        assert running.supctl("scale", "w@=3").returncode == 0
        running.stop()
        running.start_again()
        running.wait_state("w@3", "active")


def test_a_scale_beyond_its_pool_waited_without_a_word() -> None:
    """The answer says what waits, and for which pool; what waits is started when there is room. A template without an
    instance is none that does not exist.
    """
    pooled = f'{WORKER}[pool]\nname = "gpu"\n'
    with supervisor({"w@": pooled}, settings="[pools.gpu]\nmax-workers = 3\n") as running:
        running.wait_state("w@2", "active")
        up = running.supctl("scale", "w@=5")
        assert up.returncode == 0, up.stderr
        lines = up.stdout.splitlines()
        assert lines[0].startswith("started w@3 (pid ")
        for place, line in enumerate(lines[1:], 1):
            assert line.startswith(f"queued start of w@{place + 3}, job ")
            assert line.endswith(f': it waits for a slot, number {place} of 2: pool "gpu" (max-workers = 3)')
        assert running.supctl("stop", "w@1").returncode == 0
        running.wait_state("w@4", "active")
        assert running.supctl("scale", "w@=0").returncode == 0
        for question in ("list", "status"):
            asked = running.supctl(question, "w@")
            assert (asked.returncode, asked.stderr) == (0, ""), f"{question}: {asked}"
        assert json.loads(running.supctl("list", "--json", "w@").stdout) == {"units": []}
        assert running.supctl("list", "v@").returncode == 4
        assert running.supctl("start", "w@").returncode == 4


def test_limits_and_live_keys_are_set_at_once_until_the_supervisor_ends() -> None:
    """Every process of the tree has the new limit, nothing is restarted, and it can be taken back or kept."""
    with supervisor({"web": PAIR}) as running:
        pid = running.wait_state("web", "active")["pid"]
        child = int(until(Path(f"/proc/{pid}/task/{pid}/children").read_text, "its child"))
        done = running.supctl("set", "web", "limits.nofile=77:88", "limits.nice=3", "service.restart-sec=7s")
        assert done.returncode == 0, done.stderr
        for each in (pid, child):
            assert resource.prlimit(each, resource.RLIMIT_NOFILE) == (77, 88)
            assert os.getpriority(os.PRIO_PROCESS, each) == 3
        status = running.status("web")
        assert (status["pid"], status["needs_restart"], status["needs_reload"]) == (pid, False, False)
        origin = running.supctl("cat", "--origin", "web").stdout
        assert "r/set/web.toml.d/96-set.toml" in origin
        running.kill_manager()
        assert running.supctl("daemon-reload").returncode == 0
        assert running.supctl("show", "web", "-p", "service.restart-sec", "--value").stdout == "7s\n"
        assert (
            running.supctl("set", "web", "service.restart-sec=", "service.restart-steps=4", "--persist").returncode == 0
        )
        running.stop()
        running.start_again()
        show = running.supctl("show", "web", "-p", "service.restart-steps", "--value")
        assert show.stdout == "4\n"
        assert "96-set.toml" not in running.supctl("cat", "--origin", "web").stdout
        again = running.wait_state("web", "active")["pid"]
        assert resource.prlimit(again, resource.RLIMIT_NOFILE)[0] == 1024


def test_what_is_set_for_an_instance_does_not_take_back_what_was_set_for_its_template() -> None:
    """Seen by hand: the instance's drop-in had the name of its template's, and was read in its place."""
    with supervisor({"w@": PAIR + "[instances]\ncount = 2\n"}) as running:
        running.wait_state("w@1", "active")
        assert running.supctl("set", "w@", "service.restart-steps=4").returncode == 0
        done = running.supctl("set", "w@1", "service.restart-sec=7s")
        assert done.stdout == "set w@1: service.restart-sec: 100ms -> 7s (in force at once)\n"
        assert running.supctl("set", "w@1", "service.restart-sec=8s", "--persist").returncode == 0
        assert running.supctl("set", "w@", "service.restart-steps=5", "--persist").returncode == 0
        for key, value in (("service.restart-sec", "8s"), ("service.restart-steps", "5")):
            assert running.supctl("show", "w@1", "-p", key, "--value").stdout == f"{value}\n"
        assert running.supctl("show", "w@2", "-p", "service.restart-sec", "--value").stdout == "100ms\n"


def test_what_cannot_be_set_is_refused_and_changes_nothing() -> None:
    """The loader's words for a bad value; a key that needs a restart is not set, but for good."""
    with supervisor({"web": PAIR}) as running:
        pid = running.wait_state("web", "active")["pid"]
        bad = running.supctl("set", "web", "service.restart=sometimes")
        assert (bad.returncode, "set: service.restart: 'sometimes' is not possible" in bad.stderr) == (2, True)
        late = running.supctl("set", "web", "service.umask='0077'")
        assert (late.returncode, "add --persist" in late.stderr) == (1, True)
        over = running.supctl("set", "web", "limits.nofile=99:99999999999")
        assert over.returncode == 1, over.stdout
        assert not list(running.folder.rglob("*-set.toml"))
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 1024
        assert running.supctl("set", "web", "service.umask='0077'", "--persist").returncode == 0
        assert running.status("web")["needs_restart"]
        assert running.process.poll() is None
        assert running.stop() == 0
        assert running.process.wait(STOP_S) == 0

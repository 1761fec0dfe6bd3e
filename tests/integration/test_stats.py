"""supctl stats: numbers of a supervisor that runs, each of them found again where it comes from."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import AS_USER, ROOT, RunningSupervisor, supervisor, until

BUSY = """
[service]
exec-start = ["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000 & wait"]
"""
BAD = '[service]\nexec-start = ["false"]\nrestart-sec = "1ms"\nrestart-jitter = 0\n[quarantine]\nfailures = 3\n'


def stats(running: RunningSupervisor) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(running.supctl("stats", "--json").stdout)
    return found


@pytest.mark.parametrize("uid", AS_USER)
def test_stats_tells_what_the_supervisor_and_its_units_need(uid: int | None) -> None:
    """States, processes, restarts and failures are those of status; the manager is the one that lives; what the output
    takes is on disk; a unit's numbers say by what they are counted, and one without a process has none."""
    with supervisor({"busy": BUSY, "bad": BAD}, uid=uid) as running:
        running.wait_state("bad", "quarantined")
        until(lambda: "done" in running.supctl("logs", "busy").stdout, "its words")
        told = stats(running)
        whole, units = told["supervisor"], {unit["name"]: unit for unit in told["units"]}
        assert whole["units"] == {"active": 1, "quarantined": 1}
        assert (whole["restarts"], whole["failures"], units["bad"]["failures"]) == (2, 3, 3)
        assert (whole["processes"], whole["jobs"], whole["lost"], whole["unwritten"]) == (2, 0, 0, 0)
        assert (whole["keeper"]["pid"], whole["manager"]["pid"]) == (running.keeper_pid, running.manager_pid())
        for own in (whole["keeper"], whole["manager"]):
            assert own["memory_bytes"] > 1 << 20 and own["cpu_ns"] > 0 and own["uptime_ms"] > 0
        assert whole["last_seq"] >= max(record["seq"] for record in running.records())
        segments = sum(path.stat().st_size for path in running.journal_folder.glob("*.ndjson"))
        assert segments <= whole["journal_bytes"] < segments + (1 << 20)
        assert whole["output_bytes"] == sum(path.stat().st_size for path in running.log_folder.iterdir()) > 0
        busy = units["busy"]
        assert busy["active_state"] == "active" and busy["memory_bytes"] > 0 and busy["tasks"] == 2
        assert busy["cpu_ns"] > 1_000_000
        assert set(busy["counted_by"]) >= {"memory", "cpu", "tasks"}
        assert set(busy["counted_by"].values()) <= {"cgroup v2", "cgroup v1", "processes"}
        assert (units["bad"]["memory_bytes"], units["bad"]["counted_by"]) == (None, {})
        looks = running.supctl("top", "-n", "2", "-d", "100ms", "--json").stdout.splitlines()
        assert [[unit["name"] for unit in json.loads(look)["units"]] for look in looks] == [["busy"], ["busy"]]
        lines = running.supctl("stats").stdout.splitlines()
        assert "units       2: 1 active, 1 quarantined" in lines
        before = whole["keeper"]["uptime_ms"]
        running.kill_manager()
        after = stats(running)["supervisor"]
        assert after["keeper"]["uptime_ms"] > before > 0
        assert after["manager"]["pid"] != whole["manager"]["pid"]


def test_a_process_of_a_unit_sees_no_totals(tmp_path: Path) -> None:
    """Who may see some units has the numbers of these, and none of the whole."""
    ask = "$1 stats --json > $2.new; mv $2.new $2; sleep 1000"
    rule = '[[control.allow]]\nunit = "asks"\ncommands = ["stats"]\nunits = ["busy"]\n'
    command = json.dumps(["sh", "-c", ask, "sh", f"{sys.executable} -m supervisord_py.ctl.cli", str(tmp_path / "told")])
    asks = f'[service]\nexec-start = {command}\n[service.environment]\nPYTHONPATH = "{ROOT}"\n'
    with supervisor({"busy": BUSY, "asks": asks}, settings=rule):
        told = json.loads(until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text(), "its answer"))
        assert told["supervisor"] is None
        assert [unit["name"] for unit in told["units"]] == ["busy"]

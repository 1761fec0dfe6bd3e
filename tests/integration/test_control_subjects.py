"""Against the real supervisor: who a peer is, from inside and outside its units, and what the journal says of it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.client import ControlError
from tests.integration.supervisor_rig import ROOT, RunningSupervisor, supervisor, until

PROBE = """
import json, os, sys
sys.path.insert(0, {root!r})
from supervisord_py.ctl.client import Client, ControlError

def told():
    with Client(os.environ["SUPERVISORD_PY_SOCKET"]) as client:
        for method, parameters in (
            ("Ping", {{}}),
            ("Status", {{"units": [], "lines": 5}}),
            ("Stop", {{"units": ["victim"], "wait": True, "plan": False, "reason": "because I can"}}),
            ("Shutdown", {{}}),
        ):
            try:
                reply = client.call(method, **parameters)
            except ControlError as error:
                yield error.name
            else:
                yield [unit["name"] for unit in reply["units"]] if "units" in reply else "ok"

def write():
    with open(sys.argv[1] + ".new", "w") as file:
        json.dump(list(told()), file)
    os.rename(sys.argv[1] + ".new", sys.argv[1])

if len(sys.argv) > 2:
    # A daemon of its own: another session, twice forked, nothing left in its environment but the socket's name.
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execve(sys.executable, [sys.executable, __file__, sys.argv[1]], {{"SUPERVISORD_PY_SOCKET":
    os.environ["SUPERVISORD_PY_SOCKET"]}})
write()
import signal
signal.pause()
"""


def answers(path: Path) -> list[Any]:
    until(path.exists, f"what {path.name} was told")
    found: list[Any] = json.loads(path.read_text())
    return found


def probe_unit(folder: Path, name: str, *more: str) -> str:
    command = json.dumps([sys.executable, str(folder / "probe.py"), str(folder / name), *more])
    kind = 'type = "oneshot"\nremain-after-exit = true\n' if more else ""
    return f"[service]\n{kind}exec-start = {command}\n"


def denied(running: RunningSupervisor, unit: str) -> list[dict[str, Any]]:
    return [
        record for record in running.records() if record["event"] == "command.denied" and record["peer_unit"] == unit
    ]


def test_a_process_of_a_unit_is_that_unit(tmp_path: Path) -> None:
    """A unit's process, and one that has fled into a session of its own, may ping and see itself; root outside may all.

    The supervisor runs as the user of the tests, root perhaps, and the processes have the same uid: by uid they would
    be admin.
    """
    (tmp_path / "probe.py").write_text(PROBE.format(root=str(ROOT)))
    units = {
        "planner": probe_unit(tmp_path, "planner"),
        "fled": probe_unit(tmp_path, "fled", "daemon"),
        "trusted": probe_unit(tmp_path, "trusted"),
        "victim": '[service]\nexec-start = "/bin/sleep 1000"\n',
    }
    settings = '[[control.allow]]\nunit = "trusted"\ncommands = ["stop"]\nunits = ["victim"]\n'
    with supervisor(units, settings=settings) as running:
        assert answers(tmp_path / "planner") == ["ok", ["planner"], "NotPermitted", "NotPermitted"]
        assert answers(tmp_path / "fled") == ["ok", ["fled"], "NotPermitted", "NotPermitted"]
        assert answers(tmp_path / "trusted") == ["ok", ["trusted"], "ok", "NotPermitted"]
        assert running.wait_state("victim", "inactive")
        stop, shutdown = until(lambda: len(found := denied(running, "planner")) == 2 and found, "two refusals")
        assert (stop["verb"], stop["units"], stop["reason"]) == ("stop", ["victim"], "because I can")
        assert (stop["uid"], stop["result"]) == (os.getuid(), "NotPermitted")
        assert stop["pid"] == running.status("planner")["pid"]
        assert "probe.py" in stop["peer_command"]
        assert shutdown["verb"] == "shutdown"
        [command] = [record for record in running.records() if record["event"] == "command"]
        assert (command["peer_unit"], command["verb"]) == ("trusted", "stop")
        with running.client() as client:
            assert client.call("Start", units=["victim"], wait=True, plan=False)["durable"]


def test_a_dead_manager_costs_its_clients_nothing(tmp_path: Path) -> None:
    """A connection made while there is no manager is answered by the next one, with the rules in force."""
    units = {"web": '[service]\nexec-start = "/bin/sleep 1000"\n'}
    settings = '[supervisor]\nallowed-commands = ["monitoring", "restart"]\n'
    with supervisor(units, settings=settings) as running:
        running.wait_state("web", "active")
        running.kill_manager()
        with running.client() as client:
            assert client.call("Restart", units=["web"], wait=True, plan=False)["durable"]
            with pytest.raises(ControlError) as caught:
                client.call("Stop", units=["web"], wait=True, plan=False)
            assert caught.value.name == "NotPermitted"
            assert "allowed-commands" in str(caught.value)

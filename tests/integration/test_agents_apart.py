"""Agents of one user, the supervisor's own: what one can do to another through the control socket and the bus."""

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import psutil
import pytest

from tests.integration.supervisor_rig import AS_USER, ROOT, RunningSupervisor, is_gone, supervisor, until

AGENTS = dedent(
    """
    import json, os, resource, select, sys
    from pathlib import Path
    from supervisord_py.agent import Agent
    from supervisord_py.ctl.client import Client, ControlError

    CHANGES = {
        **{verb: {"units": ["victim"], "wait": True, "plan": False} for verb in (
            "Stop", "Restart", "TryRestart", "Reload", "ReloadOrRestart", "Pause", "Release", "Trigger", "Apply")},
        **{verb: {"units": ["victim"], "now": True, "wait": True, "plan": False} for verb in ("Disable", "Mask")},
        "Kill": {"units": ["victim"], "signal": "SIGKILL", "whom": "all", "plan": False},
        "Set": {"unit": "victim", "settings": ["limits.nofile=1"], "persist": True, "plan": False},
        "DaemonReload": {"plan": False},
        "DaemonRestart": {},
        "DaemonReexec": {},
        "Shutdown": {},
    }

    def attack():
        told = {}
        for verb, parameters in CHANGES.items():
            try:
                with Client(os.environ["SUPERVISORD_PY_SOCKET"]) as client:
                    client.call(verb, **parameters)
                told[verb] = "done"
            except ControlError as refused:
                told[verb] = refused.name
        return told

    def write(path, told):
        path.with_suffix(".new").write_text(json.dumps(told))
        path.with_suffix(".new").rename(path)

    def tag_of(pid):
        limits = Path(f"/proc/{pid}/limits").read_text()
        return int(limits.partition("Max realtime timeout")[2].split()[0])

    def orphan(path, tag=None):
        '''The same from a process that has nobody above it, in a session of its own, with the mark of another unit.'''
        if os.fork():
            return
        os.setsid()
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        if tag is not None:
            resource.setrlimit(resource.RLIMIT_RTTIME, (tag, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))
        kept = {name: os.environ[name] for name in ("SUPERVISORD_PY_SOCKET", "SUPERVISORD_PY_BUS")}
        while os.getppid() == parent:
            select.select([], [], [], 0.01)
        kept["PYTHONPATH"] = ":".join(["{root}", *sys.path])
        os.execve(sys.executable, [sys.executable, __file__, str(path)], kept)

    class Hostile(Agent):
        def setup(self):
            write(self.state_dir / "itself.json", attack())
            orphan(self.state_dir / "orphan.json")
            trusted = self.state_dir.parent / "trusted" / "pid"
            while not trusted.exists() and not self.wait(0.01):
                pass
            orphan(self.state_dir / "forged.json", tag_of(int(trusted.read_text())))

        def run_cycle(self):
            if not (self.state_dir / "sent").exists():
                self.send("stop", to="victim", reason="because I say so")
                try:
                    self.send("stop", to="victim", **{"from": "trusted"})
                except Exception as refused:
                    (self.state_dir / "sent").write_text(str(refused))

    class Victim(Agent):
        every = 0.05

        def setup(self):
            self.subscribe(after=0)

        def run_cycle(self):
            pass

        def on_message(self, message):
            with open(self.state_dir / "heard", "a") as file:
                file.write(f"{message.sender} {message.event}\\n")

    class Trusted(Agent):
        def setup(self):
            (self.state_dir / "pid").write_text(str(os.getpid()))

        def run_cycle(self):
            with Client(os.environ["SUPERVISORD_PY_SOCKET"]) as client:
                names = [unit["name"] for unit in client.call("Status", units=[], lines=0)["units"]]
                stopped = client.call("Stop", units=["granted"], wait=True, plan=False)["outcomes"]
            self.send("looked", to="topic:looks", names=names)
            self.status(f"stopped granted, sees {names}")

    if __name__ == "__main__":
        from supervisord_py.agent.bus import BusClient
        told = attack()
        try:
            BusClient(os.environ["SUPERVISORD_PY_BUS"]).send({"event": "forged"}, 5)
            told["bus"] = "sent"
        except Exception as refused:
            told["bus"] = str(refused)
        write(Path(sys.argv[1]), told)
        select.select([], [], [])
    """
)

SETTINGS = '[[control.allow]]\nunit = "trusted"\ncommands = ["stop"]\nunits = ["granted"]\n'


def agent(cls: str) -> str:
    # The system's Python, which ordinary users are given, has neither the client's needs nor pyzmq.
    packages = Path(msgspec.__file__).parents[1]
    return f'[agent]\nclass = "fleet:{cls}"\npath = ["."]\n[service.environment]\nPYTHONPATH = "{packages}"\n'


def with_agents(folder: Path) -> None:
    (folder / "units" / "fleet.py").write_text(AGENTS.replace("{root}", str(ROOT)))


def read_told(running: RunningSupervisor, name: str) -> dict[str, Any]:
    path = running.folder / "s-agents" / "hostile" / name
    until(path.exists, f"{name}: {running.supctl('logs', 'hostile', '-n', '50').stdout}", 60)
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("uid", AS_USER)
def test_an_agent_can_stop_no_other_agent(uid: int | None) -> None:
    """Nothing that changes anything is permitted to it, nor to an orphan of its, nor to one that has taken the mark of
    an agent with more rights; what it sends is a message from itself. The one that is granted more may that."""
    units = {"hostile": agent("Hostile"), "victim": agent("Victim"), "trusted": agent("Trusted")}
    units["granted"] = '[service]\nexec-start = ["sleep", "1000"]\n'
    settings = SETTINGS + '[[control.allow]]\nunit = "trusted"\ncommands = "admin"\nunits = ["victim"]\n'
    # A process with the mark of another unit is what doctor calls wrong.
    with supervisor(units, settings=settings, prepare=with_agents, uid=uid, invariants=False) as running:
        pid = running.wait_state("victim", "active")["pid"]
        for name in ("itself.json", "orphan.json", "forged.json"):
            told = read_told(running, name)
            bus = told.pop("bus", "")
            assert set(told.values()) == {"NotPermitted"}, f"{name}: {told}"
            if name == "forged.json" and uid is not None:
                assert "does not let this process in" in bus
        heard = running.folder / "s-agents" / "victim" / "heard"
        until(lambda: heard.exists() and heard.read_text() == "hostile stop\n", "the message")
        sent = running.folder / "s-agents" / "hostile" / "sent"
        assert "from" in until(lambda: sent.exists() and sent.read_text(), "the refusal of what it cannot say")
        assert not [
            record
            for record in running.records()
            if record["event"] == "unit.message" and record["unit"] != "hostile" and record["name"] != "looked"
        ]
        status = running.status("victim")
        assert (status["pid"], status["restarts"], status["active_state"]) == (pid, 0, "active")
        denied = [record for record in running.records() if record["event"] == "command.denied"]
        # Who took another's mark is not called by that one's name.
        assert {record["peer_unit"] for record in denied} - {None} == {"hostile"}
        assert {record["uid"] for record in denied} == {psutil.Process(pid).uids().effective}
        until(lambda: (running.status("trusted")["status_text"] or "").startswith("stopped granted"), "what it may")
        assert running.status("granted")["active_state"] == "inactive"


def test_an_agent_that_outlived_its_keeper_is_still_its_unit() -> None:
    """It was nobody's child then: it was a stray on the control socket, and the bus let it in no more."""
    units = {"trusted": agent("Trusted"), "granted": '[service]\nexec-start = ["sleep", "1000"]\n'}
    with supervisor(units, settings=SETTINGS, prepare=with_agents) as running:
        until(lambda: looks(running), "the first look")
        pid, manager = running.status("trusted")["pid"], running.manager_pid()
        running.process.kill()
        running.process.wait()
        until(lambda: manager is None or is_gone(manager), "the end of the manager")
        last = max(record["seq"] for record in running.records() if record["seq"])
        running.start_again()
        until(lambda: looks(running, after=last), "a look after it")
        assert running.status("trusted")["pid"] == pid


def looks(running: RunningSupervisor, after: int = 0) -> list[dict[str, Any]]:
    """The messages with which an agent says whom it sees: itself alone."""
    found = [
        record for record in running.records() if record["event"] == "unit.message" and (record["seq"] or 0) > after
    ]
    assert all(record["payload"] == {"names": ["trusted"]} for record in found)
    return found

"""A supervisor inside a program: the examples of the older systems' documentation, and what may go wrong."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisord_py import Client, Supervisor
from supervisord_py.agent import Agent
from supervisord_py.ctl.client import ControlError
from supervisord_py.embedded import SupervisorError
from tests.integration.embedded_agents import Broken, Counter, Idle, Instead, Meter
from tests.integration.keeper_rig import public_folder
from tests.integration.supervisor_rig import is_gone, until

SLEEP = {"service": {"exec-start": ["sleep", "1000"]}}


def oneshot(*words: str) -> dict[str, Any]:
    return {"service": {"type": "oneshot", "exec-start": list(words)}}


@pytest.fixture
def embedded() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor
    assert not supervisor.folder.exists()


def test_run_and_join(embedded: Supervisor) -> None:
    """It ends by itself when its agents have."""
    embedded.register("one", Counter, config={"to": 2})
    embedded.register("two", Counter, config={"to": 4})
    embedded.start()
    assert embedded.join(60) == 0
    ends = {record["unit"]: record["code"] for record in embedded.events("unit.exited")}
    assert ends == {"one": 0, "two": 0}


def test_join_returns_the_code_of_the_first_unit_that_failed_for_good(embedded: Supervisor) -> None:
    embedded.register("bad", oneshot("sh", "-c", "exit 3"))
    embedded.register("good", Counter)
    embedded.start()
    assert embedded.join(60) == 3


def test_monitoring_only_command_access_with_limits() -> None:
    """Whoever asks over the control socket may look, and no more than two units run at a time."""
    with Supervisor(mode="daemon", allowed_commands="monitoring", max_workers=2) as supervisor:
        for name in ("a", "b", "c"):
            supervisor.register(name, Idle)
        supervisor.start()
        with Client(supervisor.socket_path) as client:
            units = until(
                lambda: (
                    (found := client.call("Status", units=[], lines=0)["units"])
                    and sum(unit["active_state"] == "active" for unit in found) == 2
                    and found
                ),
                "two that run",
            )
            assert sorted(unit["active_state"] for unit in units) == ["active", "active", "queued"]
            with pytest.raises(ControlError) as refused:
                client.call("Stop", units=["a"], wait=True, plan=False)
            assert refused.value.name == "NotPermitted"


def test_where_all_may_only_look_the_program_heard_nothing_and_could_add_nothing() -> None:
    """The ceiling is for those who come by the socket."""
    heard: list[str] = []
    with Supervisor(mode="daemon", allowed_commands="monitoring") as supervisor:
        supervisor.on("unit.started", lambda record: heard.append(record["unit"]))
        supervisor.register("a", SLEEP)
        supervisor.start()
        supervisor.register("b", SLEEP)
        until(lambda: heard == ["a", "b"], "both have started")
        with pytest.raises(SupervisorError, match="no-such-key"):
            supervisor.register("c", {"service": {**SLEEP["service"], "no-such-key": 1}})
    assert heard == ["a", "b"], "each once"


def test_a_callback_that_hangs_kept_a_join_beyond_its_time(embedded: Supervisor) -> None:
    go_on = threading.Event()
    embedded.on("unit.started", lambda record: go_on.wait())
    embedded.register("one", oneshot("true"))
    embedded.start()
    until(lambda: not embedded.is_running, "the end of its process")
    with pytest.raises(TimeoutError, match="a callback has not"):
        embedded.join(0.1)
    go_on.set()
    assert embedded.join(60) == 0


def test_after_an_exit_in_a_callback_no_other_was_called(embedded: Supervisor) -> None:
    heard: list[str] = []

    def leave(record: dict[str, Any]) -> None:
        heard.append(record["event"])
        sys.exit("as if this were a program of its own")

    embedded.on("unit.*", leave)
    embedded.register("one", oneshot("true"))
    embedded.start()
    assert embedded.join(60) == 0
    assert {"unit.started", "unit.exited"} <= set(heard)


def test_modules_in_the_folder_of_the_program_were_taken_for_its_own(
    embedded: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    embedded.register("one", oneshot("true"))
    embedded.start()
    assert embedded.join(60) == 0


def test_units_of_a_killed_supervisor_were_left_behind(tmp_path: Path) -> None:
    """Its folder went, so nobody could have adopted them."""
    with Supervisor(mode="daemon") as supervisor:
        supervisor.register("sleep", SLEEP)
        supervisor.register("once", oneshot("sh", "-c", f"echo >> {tmp_path}/once"))
        supervisor.start("sleep")
        until(lambda: supervisor.status("once")["result"] == "success" and (tmp_path / "once").exists(), "its run")
        pid = supervisor.status("sleep")["pid"]
        assert supervisor._process is not None
        supervisor._process.kill()
        assert supervisor.join(60) == -signal.SIGKILL
    until(lambda: is_gone(pid), "its end")
    assert (tmp_path / "once").read_text() == "\n", "nothing was started again"


def test_db_cache_and_api_in_order(embedded: Supervisor) -> None:
    """Each is ready before what needs it begins, and the last that began is the first that ends."""
    embedded.register("api", Idle)
    embedded.register("cache", Idle)
    embedded.register("db", Idle)
    embedded.add_dependency("api", "db", "cache")
    embedded.add_dependency("cache", "db")
    embedded.start("api")
    assert embedded.stop(60) == 0
    order = [(record["event"], record["unit"]) for record in embedded.events(["unit.ready", "unit.stopping"])]
    ready, stopping = "unit.ready", "unit.stopping"
    assert order == [*((ready, n) for n in ("db", "cache", "api")), *((stopping, n) for n in ("api", "cache", "db"))]


def test_custom_retention() -> None:
    """So many heartbeats of an agent are kept, and no more."""
    with Supervisor(mode="daemon", keep={"unit.heartbeat": 1}) as supervisor:
        supervisor.register("one", Counter, config={"to": 10**9}, tables={"service": {"restart": "no"}})
        supervisor.start("one")
        with supervisor.client() as client:
            wanted = {"units": ["one"], "events": ["unit.heartbeat"]}

            def beats() -> list[dict[str, Any]]:
                return list(client.call("Journal.Query", filter=wanted, last=None)["records"])

            first = until(beats, "a heartbeat")
            assert len(until(lambda: (now := beats()) != first and now, "a newer one")) == 1


def test_retention_of_what_agents_tell() -> None:
    """Of one event of an agent's own the last few are kept, of another one all; callbacks and queries know both by
    name, and a client asks with the same filters."""
    seen: list[tuple[str, int]] = []
    with Supervisor(mode="daemon", keep={"load": 3}) as supervisor:
        supervisor.on("load", lambda record: seen.append((record["unit"], record["payload"]["value"])))
        supervisor.register("meter", Meter)
        supervisor.start("meter")
        until(lambda: len(supervisor.events("earned")) >= 3, "three takings")
        with supervisor.client() as client:
            client.call("Stop", units=["meter"], wait=True, plan=False)
            earned = client.events("earned", unit="meter", severity="info")
            assert earned == supervisor.events("earned", unit="m*")
            assert [record["payload"] for record in earned[:2]] == [
                {"value": 10, "load_seq": 0}, {"value": 20, "load_seq": 0}
            ]  # fmt: skip
            loads = client.events("load", invocation=earned[0]["invocation"])
            assert len(loads) == 3 and {record["seq"] for record in loads} == {None}
            assert client.events("load", unit="other") == client.events(("load",), severity="error") == []
            assert client.events(after=earned[1]["seq"], event="earned", last=1) == earned[2:][-1:]
            assert client.events("earned", since=earned[1]["ts"], until=earned[1]["ts"]) == [earned[1]]
            assert client.events("earned", grep='"value":20') == [earned[1]]
        until(lambda: ("meter", loads[-1]["payload"]["value"]) in seen, "the last one")
        assert [value for _, value in seen] == list(range(1, len(seen) + 1))


def test_an_error_callback(embedded: Supervisor) -> None:
    """It is called with the record, in a thread of its own; one that raises hurts nobody."""
    seen: list[dict[str, Any]] = []
    told = threading.Event()

    def remember(record: dict[str, Any]) -> None:
        seen.append(record)
        told.set()

    def fail(record: dict[str, Any]) -> None:
        raise RuntimeError("a callback's own bug")

    embedded.on("unit.*", fail)
    embedded.on("unit.error", remember)
    embedded.register("broken", Broken)
    embedded.start()
    assert told.wait(30)
    assert (seen[0]["unit"], seen[0]["message"]) == ("broken", "ValueError: the upstream is gone")
    assert "traceback" in seen[0]


def test_a_history_query(embedded: Supervisor) -> None:
    """By unit, event, severity and number; also after the end."""
    embedded.register("bad", oneshot("false"))
    embedded.register("good", oneshot("true"))
    embedded.start()
    embedded.join(60)
    assert {record["unit"] for record in embedded.events("unit.*", unit="bad")} == {"bad"}
    assert {record["event"] for record in embedded.events(severity="error")} >= {"unit.failed"}
    everything = embedded.events()
    assert embedded.events(after=everything[2]["seq"]) == everything[3:]
    assert embedded.events(last=2) == everything[-2:]
    assert everything[-1]["event"] == "daemon.stopped"


def test_agents_are_added_while_it_runs(embedded: Supervisor) -> None:
    embedded.register("first", SLEEP)
    embedded.start()
    embedded.register("second", Counter)
    until(lambda: embedded.events("unit.exited", unit="second"), "the end of the second")
    with pytest.raises(SupervisorError, match="not the name of a class"):
        embedded.register("third", {"agent": {"class": "no"}})
    assert embedded.status("first")["active_state"] == "active"
    assert embedded.stop(60) == 0


def test_an_agent_takes_the_place_of_what_is_quarantined(embedded: Supervisor) -> None:
    """Of an agent as of a program, and no more when that is registered anew without it."""
    once = {"failures": 1}
    program = {"service": {"exec-start": ["false"]}, "quarantine": once}
    embedded.register("agent", Broken, stub=Instead, tables={"quarantine": once})
    embedded.register("program", program, stub=Instead)
    embedded.start()
    for unit in ("agent", "program"):
        until(lambda unit=unit: embedded.status(unit)["sub_state"] == "stub", f"the stub of {unit}")
        log = embedded.folder / "log" / f"{unit}.log"
        until(lambda log=log, unit=unit: f"instead of {unit}" in log.read_text(), "its words")
    embedded.register("program", program)
    with embedded.client() as client:
        client.call("Release", units=["program"], wait=False, plan=False)
    until(lambda: len(embedded.events("unit.quarantined", unit="program")) == 2, "the next quarantine")
    until(lambda: embedded.status("program")["sub_state"] == "failed", "its rest")
    assert len(embedded.events("unit.stub-started", unit="program")) == 1


def test_callbacks_miss_nothing_when_the_manager_is_killed(embedded: Supervisor) -> None:
    seen: list[int] = []
    embedded.on("*", lambda record: seen.append(record["seq"]) if record.get("seq") else None)
    embedded.register("one", SLEEP)
    embedded.start()
    with embedded.client() as client:
        os.kill(client.call("Version")["pid"], signal.SIGKILL)
        until(lambda: client.call("Ping") is not None, "the next manager")
    embedded.stop(60)
    assert seen == [record["seq"] for record in embedded.events()]


def test_a_slow_callback_is_told_what_the_stream_could_not_wait_with(
    embedded: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has it; what comes in both ways comes once."""
    kept = [{"seq": seq, "event": "unit.message"} for seq in range(1, 8)]
    replies = [(kept[0], None), ({"seq": None, "event": "unit.heartbeat"}, 3), (kept[3], None), (kept[6], 2)]

    class Slow(Client):
        def stream(self, method: str, **parameters: Any) -> Any:
            monkeypatch.setattr(Supervisor, "is_running", False)
            return iter([{"record": record, "dropped": dropped} for record, dropped in replies])

    monkeypatch.setattr(Supervisor, "is_running", True)
    monkeypatch.setattr(Supervisor, "client", lambda self: Slow("nowhere"))
    monkeypatch.setattr(
        Supervisor,
        "events",
        lambda self, after: [record for record in kept if record["seq"] > after][: 5 - after or None],
    )
    seen = [record["seq"] for record in embedded._records()]
    assert [seq for seq in seen if seq] == list(range(1, 8))


def test_a_folder_told_by_a_long_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is in a deep folder and says ``../../..``: the socket's path is counted without that."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with public_folder() as folder, Supervisor(mode="daemon", folder=os.path.relpath(folder / "f")) as embedded:
        embedded.register("one", SLEEP)
        embedded.start("one")
        assert embedded.status("one")["sub_state"] == "running"


def test_it_stops_when_the_program_dies(tmp_path: Path) -> None:
    """kill -9 of the program: its units and its supervisor end in order."""
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, time\nfrom supervisord_py import Supervisor\n"
        "s = Supervisor(mode='daemon', folder=sys.argv[1])\n"
        "s.register('one', {'service': {'exec-start': ['sleep', '1000']}})\ns.start('one')\n"
        "print(s.status('one')['pid'], flush=True)\ntime.sleep(1000)\n"
    )
    with public_folder() as folder:
        command = [sys.executable, str(script), str(folder / "f")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            pid = int(program.stdout.readline())
            keeper = psutil.Process(pid).parent()
            assert keeper is not None
            program.kill()
        until(lambda: is_gone(pid) and is_gone(keeper.pid), "the end of all", 60)


def test_what_cannot_be_registered(embedded: Supervisor) -> None:
    class Local(Agent):
        pass

    with pytest.raises(ValueError, match="defined in a function"):
        embedded.register("local", Local)
    with pytest.raises(ValueError, match="no subclass"):
        embedded.register("other", dict)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no/name"):
        embedded.register("no/name", SLEEP)
    with pytest.raises(SupervisorError, match="not started"):
        embedded.join()


def test_a_supervisor_that_cannot_start_says_why() -> None:
    with Supervisor(settings={"supervisor": {"mod": 1}}) as supervisor:
        supervisor.register("one", SLEEP)
        with pytest.raises(SupervisorError, match="mod"):
            supervisor.start()

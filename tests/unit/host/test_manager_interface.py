"""Every method of the two interfaces, over the real core: what is told, to whom, and what is refused."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.core.events import ExitStatus
from supervisord_py.host import manager_interface
from supervisord_py.host.facade import Followed
from supervisord_py.host.journal_reader import JournalUnavailableError as UnreadableError
from supervisord_py.host.unit_watch import SourceMarks
from supervisord_py.model.commands import COMMANDS, PRESETS
from supervisord_py.model.settings import AllowRule, ControlSettings, Settings, SupervisorSettings
from supervisord_py.model.unitset import FileMarks
from tests.integration.control_rig import UNITS, CallFailed, Owner, Rig, drive, running, until

JOURNAL = "py.supervisord.Journal"
NO_FILTER = {"units": [], "events": []}
UID = os.getuid()

Talk = Callable[[Rig], Awaitable[None]]


def with_rig(tmp_path: Path, talk: Talk, **options: Any) -> None:
    """Run a conversation with a server; this process is admin as the server's own user."""

    async def main() -> None:
        async with running(tmp_path, **{"own_uid": UID} | options) as rig:
            await talk(rig)

    drive(main())


def as_unit(unit: str, *rules: AllowRule) -> tuple[Owner, Settings]:
    """The peer is a process of ``unit``: the way to be somebody without rights, also for root."""
    return Owner(unit=unit, descendant=True), Settings(control=ControlSettings(allow=rules))


def start(*units: str, **more: Any) -> dict[str, Any]:
    return {"units": list(units), "wait": True, "plan": False, **more}


def invalid(parameter: str, reason: str) -> tuple[str, dict[str, Any]]:
    """The refusal of a value."""
    return "InvalidRequest", {"parameter": parameter, "message": f"{parameter}: {reason}"}


# What it is


def test_ping_version_and_commands(tmp_path: Path) -> None:
    """The plain questions are answered."""

    async def talk(rig: Rig) -> None:
        assert await rig.call("Ping") == {"answer": "pong"}
        assert (await rig.call("Version"))["keeper_pid"] == 100
        commands = await rig.call("Commands")
        assert set(commands["commands"]) == COMMANDS == set(commands["allowed"])

    with_rig(tmp_path, talk)


def test_the_service_describes_itself(tmp_path: Path) -> None:
    """GetInfo lists the interfaces, each can be read, and another is an error that names it."""

    async def talk(rig: Rig) -> None:
        info = await rig.call("org.varlink.service.GetInfo")
        assert info["interfaces"] == ["org.varlink.service", "py.supervisord.Manager", "py.supervisord.Journal"]
        for name in info["interfaces"]:
            text = (await rig.call("org.varlink.service.GetInterfaceDescription", interface=name))["description"]
            assert f"interface {name}" in text
        refused = await rig.refusal("org.varlink.service.GetInterfaceDescription", interface="com.example.X")
        assert refused == ("InterfaceNotFound", {"interface": "com.example.X"})

    with_rig(tmp_path, talk)


def test_calls_that_cannot_be_understood(tmp_path: Path) -> None:
    """An unknown interface, method, parameter or value is named, and each is on record."""

    async def talk(rig: Rig) -> None:
        assert await rig.refusal("com.example.X.Do") == ("InterfaceNotFound", {"interface": "com.example.X"})
        method = "py.supervisord.Manager.Dance"
        assert await rig.refusal("Dance") == ("MethodNotFound", {"method": method})
        assert await rig.refusal("Ping", loud=True) == ("InvalidParameter", {"parameter": "loud"})
        assert await rig.refusal("Why", unit=3) == ("InvalidParameter", {"parameter": "unit"})
        assert await rig.refusal("Why") == ("InvalidParameter", {"parameter": "unit"})
        assert await rig.refusal("Status", units=[], lines=-1) == invalid("lines", "0 to 1000")
        assert await rig.refusal("Wait", unit="web", until="dusk") == invalid(
            "until", "one of ready, active, inactive, exit"
        )
        client = await rig.connect()
        client.writer.write(b'{"method":"py.supervisord.Manager.Ping","upgrade":true}\0')
        client.wire.send("py.supervisord.Manager.Ping")
        reply = await client.reply()
        assert reply.error == "org.varlink.service.MethodNotImplemented"
        await client.close()
        records = rig.supervisor.events("command.invalid")
        assert len(records) == 8
        assert records[1]["method"] == method
        assert records[0]["uid"] == UID
        assert records[0]["pid"] == os.getpid()

    with_rig(tmp_path, talk)


# Units


def test_list_tells_all_or_those_that_are_wrong(tmp_path: Path) -> None:
    """Every unit is listed, bad and masked ones too, enums with _ for -; ``failed`` leaves those that need somebody."""

    async def talk(rig: Rig) -> None:
        units = {unit["name"]: unit for unit in (await rig.call("List", units=[], failed=False))["units"]}
        assert list(units) == ["bad", "crash", "db", "gone", "once", "slow", "web", "worker@1", "worker@2"]
        assert units["bad"]["load_state"] == "bad_setting"
        assert units["gone"]["load_state"] == "masked"
        assert units["web"]["groups"] == ["front"]
        await rig.call("Start", **start("crash"))
        wrong = (await rig.call("List", units=[], failed=True))["units"]
        assert [unit["name"] for unit in wrong] == ["bad", "crash"]
        assert (wrong[1]["result"], wrong[1]["exit"]) == ("exit_code", {"code": 1, "signal": None})

    with_rig(tmp_path, talk)


def test_files_that_are_not_loaded_are_told(tmp_path: Path) -> None:
    """A unit whose file changed is marked; new files and settings are told to who asks for all and may see all."""

    async def talk(rig: Rig) -> None:
        assert (await rig.call("List", units=[], failed=False))["unloaded"] is None
        rig.supervisor.marks = SourceMarks(FileMarks(frozenset({"db"}), ("new",)), settings_changed=True)
        reply = await rig.call("Status", units=[], lines=0)
        assert [unit["name"] for unit in reply["units"] if unit["needs_reload"]] == ["db"]
        assert reply["unloaded"] == {"units": ["new"], "settings": True}
        assert (await rig.call("List", units=["db"], failed=False))["unloaded"] is None
        rig.supervisor.owner = Owner(unit="web", descendant=True)
        assert (await rig.call("Status", units=[], lines=0))["unloaded"] is None

    with_rig(tmp_path, talk)


def test_more_gives_one_unit_a_reply(tmp_path: Path) -> None:
    """With more each unit is a reply of its own, and no units are one empty reply."""

    async def talk(rig: Rig) -> None:
        client = await rig.connect()
        replies = await client.stream("List", units=["worker@"], failed=False)
        assert [[unit["name"] for unit in reply["units"]] for reply in replies] == [["worker@1"], ["worker@2"]]
        assert await client.stream("List", units=["web"], failed=True) == [{"units": [], "unloaded": None}]
        await client.close()

    with_rig(tmp_path, talk)


def test_status_has_the_last_lines_and_the_usage(tmp_path: Path) -> None:
    """Status of a running unit shows what it uses, what it executes, and what it wrote last."""

    async def talk(rig: Rig) -> None:
        rig.supervisor.lines["web"] = ["one", "two", "three"]
        await rig.call("Start", **start("web"))
        [web] = (await rig.call("Status", units=["web"], lines=2))["units"]
        assert (web["active_state"], web["sub_state"], web["memory_bytes"]) == ("active", "running", 4096)
        assert (web["lines"], web["exec"]) == (["two", "three"], "serve --token hunter1")
        assert web["pid"] is not None

    with_rig(tmp_path, talk)


def test_unknown_units_are_suggested(tmp_path: Path) -> None:
    """A name, a glob, a group and a template without units are NoSuchUnit, with what was probably meant."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Start", **start("wbe"))
        assert (error, parameters["suggestions"]) == ("NoSuchUnit", ["web"])
        assert parameters["message"] == "no such unit wbe: did you mean web?"
        for name in ("zz*", "@zz", "zz@"):
            assert (await rig.refusal("Status", units=[name], lines=0))[0] == "NoSuchUnit"
        assert (await rig.refusal("Why", unit="worker"))[1]["suggestions"][0] == "worker@"
        assert not rig.supervisor.commands

    with_rig(tmp_path, talk)


def test_show_and_cat(tmp_path: Path) -> None:
    """Show has every setting with its place, cat the file as it is on disk."""

    async def talk(rig: Rig) -> None:
        shown = await rig.call("Show", unit="web")
        settings = {setting["key"]: setting for setting in shown["settings"]}
        assert settings["service.environment.KEY"]["value"] == "hunter2"
        assert settings["unit.description"]["file"].endswith("/web.toml")
        assert settings["unit.description"]["line"] == 3
        assert shown["status"]["name"] == "web"
        [file] = (await rig.call("Cat", unit="web"))["files"]
        assert file["text"] == Path(file["path"]).read_text()

    with_rig(tmp_path, talk)


def test_deps_jobs_and_why(tmp_path: Path) -> None:
    """Relations both ways, the jobs there are, and the reason why a unit is not active."""

    async def talk(rig: Rig) -> None:
        [edge] = (await rig.call("Deps", unit="web", reverse=False))["edges"]
        assert (edge["unit"], edge["kind"], edge["until"]) == ("db", "requires", "ready")
        [edge] = (await rig.call("Deps", unit="db", reverse=True))["edges"]
        assert (edge["unit"], edge["kind"]) == ("web", "required_by")
        await rig.call("Start", units=["slow"], wait=False, plan=False)
        [job] = (await rig.call("Jobs"))["jobs"]
        assert (job["unit"], job["type"], job["state"]) == ("slow", "start", "running")
        assert (await rig.call("Why", unit="slow"))["causes"][0]["kind"] == "starting"
        assert (await rig.call("Why", unit="bad"))["causes"][0]["kind"] == "bad_setting"
        assert (await rig.call("Why", unit="gone"))["causes"][0]["message"].startswith("it is masked")

    with_rig(tmp_path, talk)


def test_lives_are_told_from_the_journal(tmp_path: Path) -> None:
    """Each invocation is a life with its end, how it ended, and its last words."""

    async def talk(rig: Rig) -> None:
        assert await rig.call("Lives", unit="web", last=5) == {"lives": []}
        await rig.call("Start", **start("web"))
        await rig.call("Stop", **start("web"))
        await rig.call("Start", **start("web"))

        def lives_of(unit: str) -> list[str]:
            return [each["invocation"] for each in rig.supervisor.events("unit.starting") if each["unit"] == unit]

        began = lives_of("web")
        rig.supervisor.lines |= {f"web {began[0]}": ["hello", "bye"], f"web {began[1]}": ["still here"]}
        first, second = (await rig.call("Lives", unit="web", last=5))["lives"]
        assert (first["result"], first["exit"]) == ("success", {"code": None, "signal": "SIGTERM"})
        assert (first["runtime_ms"], first["last_words"]) == (0, "bye")
        assert first["end"] is not None
        assert (second["end"], second["result"], second["last_words"]) == (None, None, None)
        assert (await rig.call("Lives", unit="web", last=1))["lives"] == [second]
        await rig.call("Start", **start("crash"))
        await rig.call("Start", **start("crash"))
        for index, invocation in enumerate(lives_of("crash")):
            rig.supervisor.lines[f"crash {invocation}"] = [f"oops {index}"]
        lives = (await rig.call("Lives", unit="crash", last=5))["lives"]
        assert [(life["result"], life["last_words"]) for life in lives] == [
            ("exit_code", "oops 0"),
            ("exit_code", "oops 1"),
        ]
        assert all(life["exit"]["code"] == 1 for life in lives)

    with_rig(tmp_path, talk)


def test_health_names_what_is_wrong(tmp_path: Path) -> None:
    """A supervisor with nothing wrong is healthy; a failed or invalid unit and a degraded journal are named."""

    async def talk(rig: Rig) -> None:
        rig.supervisor.warnings.append("changes of unit files are not noticed")
        warned = {"healthy": True, "problems": [], "warnings": ["changes of unit files are not noticed"]}
        assert await rig.call("Health") == warned
        await rig.call("Start", **start("crash"))
        rig.supervisor.problems.append("the journal cannot be written: no space left")
        rig.supervisor.write_units({"bad": UNITS["bad"]})
        await rig.call("DaemonReload", plan=False)
        health = await rig.call("Health")
        assert not health["healthy"]
        invalid, failed, journal = health["problems"]
        assert invalid.startswith("bad has an invalid file: /")
        assert failed == "crash has failed (exit-code): see supctl why crash"
        assert journal == "the journal cannot be written: no space left"

    with_rig(tmp_path, talk, units={name: UNITS[name] for name in ("web", "db", "crash")})


# Verbs


def test_start_and_stop_reply_when_it_is_done(tmp_path: Path) -> None:
    """The reply of a verb has the job, whether it is on disk, and what became of each unit."""

    async def talk(rig: Rig) -> None:
        reply = await rig.call("Start", **start("web", reason="new release"))
        assert reply["durable"] is True
        [outcome] = reply["outcomes"]
        assert outcome == {"unit": "web", "job": reply["job"], "type": "start", "result": "done", "message": ""}
        assert rig.supervisor.commands[-1][3] == "new release"
        rig.supervisor.durable = False
        reply = await rig.call("Stop", **start("@back", "web"))
        assert {outcome["unit"]: outcome["result"] for outcome in reply["outcomes"]} == {"db": "done", "web": "done"}
        assert reply["durable"] is False
        assert rig.supervisor.commands[-1][:2] == ("stop", ("db", "web"))

    with_rig(tmp_path, talk)


@pytest.mark.parametrize(
    ("method", "verb"),
    [
        ("Start", "start"),
        ("Stop", "stop"),
        ("Restart", "restart"),
        ("TryRestart", "try-restart"),
        ("ReloadOrRestart", "reload-or-restart"),
    ],
)
def test_each_verb_is_the_cores(tmp_path: Path, method: str, verb: str) -> None:
    """Each method asks the core for the verb of its name, and nothing to do is no failure."""

    async def talk(rig: Rig) -> None:
        reply = await rig.call(method, **start("db"))
        assert rig.supervisor.commands[-1][0] == verb
        assert all(outcome["result"] in ("done", "skipped") for outcome in reply["outcomes"])

    with_rig(tmp_path, talk)


def test_a_job_that_fails_is_an_error(tmp_path: Path) -> None:
    """A verb whose job does not end well is JobFailed, with the outcomes and a sentence that says what to type next."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Reload", **start("db"))
        assert error == "JobFailed"
        assert parameters["outcomes"][0]["unit"] == "db"
        assert parameters["outcomes"][0]["result"] != "done"
        assert parameters["message"].startswith("cannot reload db: ")
        assert parameters["message"].endswith(": see supctl why db")

    with_rig(tmp_path, talk)


def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    """A plan tells what would happen, dependencies included, and nothing happens."""

    async def talk(rig: Rig) -> None:
        reply = await rig.call("Start", units=["web"], wait=True, plan=True)
        assert {outcome["unit"] for outcome in reply["outcomes"]} == {"web", "db"}
        assert reply["job"] is None
        assert not rig.supervisor.events("command")
        [web] = (await rig.call("List", units=["web"], failed=False))["units"]
        assert web["active_state"] == "inactive"

    with_rig(tmp_path, talk)


def test_not_waiting_replies_at_once(tmp_path: Path) -> None:
    """Without wait the job is queued and its number told; a oneway call does not wait either."""

    async def talk(rig: Rig) -> None:
        reply = await rig.call("Start", units=["slow"], wait=False, plan=False)
        assert [outcome["result"] for outcome in reply["outcomes"]] == ["queued"]
        client = await rig.connect()
        client.send("Restart", oneway=True, **start("slow"))
        assert await client.call("Ping") == {"answer": "pong"}
        assert rig.supervisor.commands[-1][0] == "restart"
        await client.close()

    with_rig(tmp_path, talk)


def test_a_time_limit_ends_the_waiting_not_the_job(tmp_path: Path) -> None:
    """A verb that takes too long is TimedOut, and its job goes on."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Start", **start("slow", timeout_ms=20))
        assert error == "TimedOut"
        assert parameters["message"] == "start slow is not done after 20 ms and goes on: see supctl jobs"
        assert [job["unit"] for job in (await rig.call("Jobs"))["jobs"]] == ["slow"]
        assert (await rig.refusal("Start", **start("db", timeout_ms=-1)))[0] == "InvalidRequest"

    with_rig(tmp_path, talk)


def test_the_same_token_attaches(tmp_path: Path) -> None:
    """A call made again with its token waits for the same job and starts nothing twice."""

    async def talk(rig: Rig) -> None:
        first = await rig.call("Start", **start("db", token="t1"))
        spawned = len(rig.supervisor.events("unit.starting"))
        assert (await rig.call("Start", **start("db", token="t1")))["job"] == first["job"]
        assert len(rig.supervisor.events("unit.starting")) == spawned

    with_rig(tmp_path, talk)


def test_a_bad_unit_says_its_first_problem(tmp_path: Path) -> None:
    """Starting a unit whose file is invalid is BadUnit, with file, line and what is wrong."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Start", **start("bad", "db"))
        assert (error, parameters["unit"]) == ("BadUnit", "bad")
        assert "bad.toml:3:1: service.no-such-key: unknown key" in parameters["problem"]
        assert not rig.supervisor.commands
        assert (await rig.refusal("Start", **start("gone")))[0] == "UnitMasked"

    with_rig(tmp_path, talk)


def test_refused_commands_for_what_is_not_there_are_records(tmp_path: Path) -> None:
    """A start of an unknown, a broken or a masked unit and a cancel of no job are in the journal, with the error."""

    async def talk(rig: Rig) -> None:
        for unit in ("nosuch", "bad", "gone"):
            await rig.refusal("Start", **start(unit))
        await rig.refusal("Start", **start("nosuch") | {"plan": True})
        await rig.refusal("Cancel", job=999)
        told = [(each["verb"], each["units"], each["result"]) for each in rig.supervisor.events("command")]
        assert told == [
            ("start", ["nosuch"], "NoSuchUnit"),
            ("start", ["bad"], "BadUnit"),
            ("start", ["gone"], "UnitMasked"),
            ("cancel", [], "NoSuchJob"),
        ]

    with_rig(tmp_path, talk)


def test_verb_that_had_nothing_to_do_says_so(tmp_path: Path) -> None:
    """A start of an active unit and a stop of an inactive one are done and say ``already``; others say nothing."""

    async def talk(rig: Rig) -> None:
        told = []
        for verb in ("Stop", "Start", "Start", "Restart", "Stop", "Stop"):
            [outcome] = (await rig.call(verb, **start("db")))["outcomes"]
            told.append((outcome["result"], outcome["message"]))
        done = ("done", "")
        assert told == [("done", "already inactive"), done, ("done", "already active"), done, done, told[0]]

    with_rig(tmp_path, talk)


def test_a_bad_unit_does_not_keep_a_glob_from_starting_the_others(tmp_path: Path) -> None:
    """What a glob finds is started but for invalid and masked units; the call fails all the same and says why."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Start", **start("[bdg]*"))
        assert error == "JobFailed"
        assert {outcome["unit"]: outcome["result"] for outcome in parameters["outcomes"]} == {
            "bad": "invalid",
            "db": "done",
        }
        assert (await rig.call("Status", units=["db"], lines=0))["units"][0]["active_state"] == "active"
        await rig.call("Stop", **start("[bdg]*"))

    with_rig(tmp_path, talk)


def test_verbs_need_units(tmp_path: Path) -> None:
    """A verb without a unit is an error that says so; reset-failed without one is about all."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Stop", **start())
        assert (error, parameters["message"]) == (
            "InvalidRequest",
            "stop needs a unit: name one, a @group or a glob",
        )
        await rig.call("Start", **start("crash"))
        await rig.call("ResetFailed", units=[], plan=False)
        [crash] = (await rig.call("List", units=["crash"], failed=False))["units"]
        assert crash["active_state"] == "inactive"

    with_rig(tmp_path, talk)


def test_kill(tmp_path: Path) -> None:
    """A signal goes by name or number to the main process or all; another word is refused with what it could be."""

    async def talk(rig: Rig) -> None:
        await rig.call("Start", **start("db"))
        assert (await rig.call("Kill", units=["db"], signal="SIGKILL", whom="main", plan=False))["outcomes"]
        [db] = (await rig.call("Status", units=["db"], lines=0))["units"]
        assert db["exit"] == {"code": None, "signal": "SIGKILL"}
        assert await rig.refusal("Kill", units=["db"], signal="SIGTERN", whom="main", plan=False) == invalid(
            "signal", "there is no signal 'SIGTERN', did you mean 'SIGTERM'?"
        )
        assert await rig.refusal("Kill", units=["db"], signal="9", whom="some", plan=False) == invalid(
            "whom", "main or all"
        )

    with_rig(tmp_path, talk)


def test_cancel(tmp_path: Path) -> None:
    """A job is cancelled by its number; a number of no job is NoSuchJob."""

    async def talk(rig: Rig) -> None:
        job = (await rig.call("Start", units=["slow"], wait=False, plan=False))["job"]
        assert await rig.call("Cancel", job=job) == {"job": job, "durable": True}
        error, parameters = await rig.refusal("Cancel", job=job)
        assert (error, parameters["job"]) == ("NoSuchJob", job)

    with_rig(tmp_path, talk)


def test_the_daemons_own_verbs(tmp_path: Path) -> None:
    """Reload tells what is new and wrong, a plan of it changes nothing, restart and shutdown are passed on."""

    async def talk(rig: Rig) -> None:
        rig.supervisor.write_units({"new": UNITS["db"]})
        planned = await rig.call("DaemonReload", plan=True)
        assert planned["added"] == ["new"]
        assert not rig.supervisor.orders
        reply = await rig.call("DaemonReload", plan=False, reason="a new unit")
        assert any("no-such-key" in problem for problem in reply["problems"])
        assert await rig.call("Start", **start("new"))
        assert (await rig.call("DaemonRestart"))["manager_pid"] == 101
        reply = await rig.call("DaemonReexec", reason="newer")
        assert (reply["manager_pid"], reply["refused"]) == (101, None)
        assert await rig.call("Shutdown", reason="tired") == {"job": None, "durable": True}
        orders = [("reload", "a new unit"), ("restart", ""), ("reexec", "newer"), ("shutdown", "tired")]
        assert rig.supervisor.orders == orders

    with_rig(tmp_path, talk)


# Waiting


@pytest.mark.parametrize(
    ("goal", "unit", "state"),
    [("ready", "db", "active"), ("active", "db", "active"), ("ready", "once", "inactive")],
)
def test_wait_returns_when_it_is_so(tmp_path: Path, goal: str, unit: str, state: str) -> None:
    """A wait that begins before the start ends with it; a oneshot is ready by its success."""

    async def talk(rig: Rig) -> None:
        waiting = asyncio.ensure_future(rig.call("Wait", unit=unit, until=goal))
        await until(lambda: rig.supervisor.waiters == 1)
        await rig.call("Start", **start(unit))
        assert (await waiting)["unit"]["active_state"] == state
        assert (await rig.call("Wait", unit=unit, until=goal))["unit"]["active_state"] == state

    with_rig(tmp_path, talk)


def test_wait_for_the_end_of_a_life(tmp_path: Path) -> None:
    """Exit is the end of the present life, also when the next one follows at once; a unit at rest has no life to wait
    for."""

    async def talk(rig: Rig) -> None:
        assert (await rig.call("Wait", unit="db", until="exit"))["unit"]["exit"] is None
        await rig.call("Start", **start("db"))
        waiting = asyncio.ensure_future(rig.call("Wait", unit="db", until="exit"))
        await until(lambda: rig.supervisor.waiters == 1)
        rig.supervisor.exits("db", ExitStatus(code=3))
        assert (await waiting)["unit"]["exit"] == {"code": 3, "signal": None}
        await rig.call("Start", **start("db"))
        waiting = asyncio.ensure_future(rig.call("Wait", unit="db", until="exit"))
        await until(lambda: rig.supervisor.waiters == 1)
        await rig.call("Restart", **start("db"))
        assert (await waiting)["unit"]["exit"] == {"code": None, "signal": "SIGTERM"}

    with_rig(tmp_path, talk)


def test_wait_for_a_life_that_is_about_to_begin(tmp_path: Path) -> None:
    """A unit whose start is queued has its life still to come, and that is the one that is waited for."""

    async def talk(rig: Rig) -> None:
        await rig.call("Start", units=["follower"], wait=False, plan=False)
        waiting = asyncio.ensure_future(rig.call("Wait", unit="follower", until="exit"))
        await until(lambda: rig.supervisor.waiters == 1)
        await rig.call("Stop", **start("follower"))
        assert (await waiting)["unit"]["exit"] is None

    units = {
        "slow": UNITS["slow"],
        "follower": '[unit]\nafter = ["slow"]\nwants = ["slow"]\n[service]\nexec-start = "x"\n',
    }
    with_rig(tmp_path, talk, units=units)


def test_wait_for_inactive(tmp_path: Path) -> None:
    """Inactive is any kind of rest."""

    async def talk(rig: Rig) -> None:
        await rig.call("Start", **start("db"))
        waiting = asyncio.ensure_future(rig.call("Wait", unit="db", until="inactive"))
        await until(lambda: rig.supervisor.waiters == 1)
        await rig.call("Stop", **start("db"))
        assert (await waiting)["unit"]["active_state"] == "inactive"

    with_rig(tmp_path, talk)


def test_wait_gives_up_on_a_unit_that_has_failed(tmp_path: Path) -> None:
    """What will not become ready by itself is an error at once, and what takes too long is TimedOut."""

    async def talk(rig: Rig) -> None:
        await rig.call("Start", **start("crash"))
        error, parameters = await rig.refusal("Wait", unit="crash", until="ready")
        assert (error, parameters["message"]) == ("JobFailed", "crash is failed (exit-code): see supctl why crash")
        error, parameters = await rig.refusal("Wait", unit="slow", until="ready", timeout_ms=10)
        assert error == "TimedOut"
        assert "slow is inactive (dead) after 10 ms, not ready" in parameters["message"]

    with_rig(tmp_path, talk)


def test_a_wait_ends_with_its_client(tmp_path: Path) -> None:
    """A client that goes away leaves no wait behind."""

    async def talk(rig: Rig) -> None:
        client = await rig.connect()
        client.send("Wait", unit="slow", until="ready")
        await until(lambda: rig.supervisor.waiters == 1)
        await client.close()
        await until(lambda: rig.supervisor.waiters == 0 == rig.server.connections)

    with_rig(tmp_path, talk)


# Output and journal


def test_logs(tmp_path: Path) -> None:
    """The last lines come one a reply, filtered and of the life before if asked; without more one unit's as a text."""

    async def talk(rig: Rig) -> None:
        rig.supervisor.lines |= {"web": ["GET /a", "GET /b", "PUT /a"], "db": ["ready"], "web before": ["old"]}
        client = await rig.connect()
        query = {"lines": 2, "follow": False, "previous": False}
        replies = await client.stream("Logs", units=["web", "db"], **query)
        assert [(reply["unit"], reply["text"]) for reply in replies] == [
            ("web", "GET /b"),
            ("web", "PUT /a"),
            ("db", "ready"),
        ]
        replies = await client.stream("Logs", units=["web"], grep="^GET", **query | {"lines": 1})
        assert [reply["text"] for reply in replies] == ["GET /b"]
        assert await client.stream("Logs", units=["once"], **query) == [{"unit": "", "text": ""}]
        replies = await client.stream("Logs", units=["web"], **query | {"previous": True})
        assert [reply["text"] for reply in replies] == ["old"]
        assert (await client.call("Logs", units=["web"], **query))["text"] == "GET /b\nPUT /a"
        await client.close()
        assert (await rig.refusal("Logs", units=["web", "db"], **query))[0] == "ExpectedMore"
        assert (await rig.refusal("Logs", units=["web"], **query | {"follow": True}))[0] == "ExpectedMore"
        error, parameters = await rig.refusal("Logs", units=["web"], grep="(", **query)
        assert (error, parameters["parameter"]) == ("InvalidRequest", "grep")

    with_rig(tmp_path, talk)


def test_a_costly_grep_in_logs_does_not_hang_the_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that backtracks for ever is refused, a slow one is given up; others are answered."""
    monkeypatch.setattr(manager_interface, "GREP_S", 0.5)

    async def talk(rig: Rig) -> None:
        rig.supervisor.lines["web"] = ["a" * 2000] * 1000
        query: dict[str, Any] = {"units": ["web"], "lines": 5, "follow": False, "previous": False}
        error, parameters = await rig.refusal("Logs", grep="(a+)+$", **query)
        assert (error, parameters["parameter"]) == ("InvalidRequest", "grep")
        slow = asyncio.ensure_future(rig.refusal("Logs", grep="[ab]*[ab]*c", **query))
        assert await rig.call("Ping")
        error, parameters = await slow
        assert error == "InvalidRequest"
        assert "took longer than 0.5s" in parameters["message"]

    with_rig(tmp_path, talk)


def test_logs_follow(tmp_path: Path) -> None:
    """Following gives the last lines, then each new one as it comes, until the client has enough."""

    async def talk(rig: Rig) -> None:
        rig.supervisor.lines["web"] = ["one"]
        client = await rig.connect()
        client.send("Logs", more=True, units=["web"], lines=5, follow=True, grep="o", previous=False)
        assert (await client.reply()).parameters == {"unit": "web", "text": "one"}
        rig.supervisor.writes_line("db", "other")
        rig.supervisor.writes_line("web", "three")
        rig.supervisor.writes_line("web", "two")
        reply = await client.reply()
        assert (reply.parameters["text"], reply.continues) == ("two", True)
        await client.close()
        await until(lambda: rig.supervisor.following == 0)

    with_rig(tmp_path, talk)


def test_a_disk_that_cannot_be_read(tmp_path: Path) -> None:
    """Logs and journal say what the disk said; a status goes on without its lines."""

    async def talk(rig: Rig) -> None:
        def broken(*_: object, **__: object) -> Any:
            raise OSError(errno.EIO, "Input/output error", "/var/log/web.log")

        rig.supervisor.last_lines = broken  # type: ignore[method-assign]
        rig.supervisor.journal_query = broken  # type: ignore[method-assign]
        rig.supervisor.journal_verify = broken  # type: ignore[method-assign]
        [web] = (await rig.call("Status", units=["web"], lines=5))["units"]
        assert web["lines"] is None
        error, parameters = await rig.refusal("Logs", units=["web"], lines=5, follow=False, previous=False)
        assert error == "OutputUnavailable"
        assert parameters["message"] == "the output of web cannot be read: /var/log/web.log: Input/output error"
        for method, given in (("Query", {"filter": NO_FILTER}), ("Verify", {})):
            error, parameters = await rig.refusal(f"{JOURNAL}.{method}", **given)
            assert error == "JournalUnavailable"
            assert parameters["message"] == "the journal cannot be read: /var/log/web.log: Input/output error"

    with_rig(tmp_path, talk)


def test_journal_query_and_stats(tmp_path: Path) -> None:
    """Records come in one reply or one by one, groups and templates stand for their units, removed units for
    themselves."""

    async def talk(rig: Rig) -> None:
        await rig.call("Start", **start("db", "worker@1"))
        client = await rig.connect()
        query = f"{JOURNAL}.Query"

        async def units_of(*units: str) -> set[str]:
            found = await client.call(query, filter={"units": list(units), "events": ["unit.started"]})
            return {record["unit"] for record in found["records"]}

        assert await units_of("@back") == {"db"}
        assert await units_of("worker@") == {"worker@1"}
        assert await units_of("removed-long-ago") == set()
        assert await units_of() == {"db", "worker@1"}
        replies = await client.stream(query, filter={"units": [], "events": ["unit.started"]}, last=2)
        assert [len(reply["records"]) for reply in replies] == [1, 1]
        assert await client.stream(query, filter=NO_FILTER, last=0) == [{"records": []}]
        stats = await client.call(f"{JOURNAL}.Stats")
        assert stats["by_unit"]["db"] > 0
        assert (await client.call(f"{JOURNAL}.Verify"))["ok"]
        for field, value in (("since", "yesterday"), ("severity", "fatal"), ("grep", "(")):
            with pytest.raises(CallFailed) as caught:
                await client.call(query, filter=NO_FILTER | {field: value})
            assert caught.value.parameters["parameter"] == f"filter.{field}"
        await client.close()

    with_rig(tmp_path, talk)


def test_journal_follow_tells_what_was_missed(tmp_path: Path) -> None:
    """Following goes on with new records, and the next record says how many a slow reader missed before it."""

    async def talk(rig: Rig) -> None:
        client = await rig.connect()
        client.send(f"{JOURNAL}.Follow", more=True, filter=NO_FILTER, last=1)
        assert (await client.reply()).parameters["record"] == rig.supervisor.records[-1]
        await until(lambda: rig.supervisor.following == 1)
        rig.supervisor._followers[0].put_nowait(Followed({"event": "x", "unit": "web"}, dropped=7))
        reply = await client.reply()
        assert (reply.parameters["dropped"], reply.continues) == (7, True)
        await client.close()
        assert (await rig.refusal(f"{JOURNAL}.Follow", filter=NO_FILTER))[0] == "ExpectedMore"

    with_rig(tmp_path, talk)


# Who asks


def test_a_units_process_may_ping_and_see_itself(tmp_path: Path) -> None:
    """By default a process of a unit pings and sees its own status; everything else is denied and on record, for root
    too."""
    owner, settings = as_unit("web")

    async def talk(rig: Rig) -> None:
        rig.supervisor.owner = owner
        assert await rig.call("Ping") == {"answer": "pong"}
        [web] = (await rig.call("Status", units=[], lines=5))["units"]
        assert (web["name"], web["lines"], web["exec"]) == ("web", None, None)
        assert (await rig.call("Status", units=["web"], lines=0))["units"][0]["name"] == "web"
        error, parameters = await rig.refusal("Status", units=["db"], lines=0)
        assert (error, parameters["unit"]) == ("NotPermitted", "db")
        assert (await rig.refusal("Stop", **start("web")))[0] == "NotPermitted"
        assert (await rig.refusal("Stop", **start("no-such-unit")))[0] == "NotPermitted"
        assert (await rig.refusal("Shutdown"))[0] == "NotPermitted"
        assert (await rig.refusal("org.varlink.service.GetInfo"))[0] == "PermissionDenied"
        denied = rig.supervisor.events("command.denied")
        assert [record["verb"] for record in denied] == ["status", "stop", "stop", "shutdown", "idl"]
        assert denied[1]["peer_unit"] == "web"
        assert denied[1]["units"] == ["web"]
        assert denied[1]["uid"] == UID
        assert not rig.supervisor.commands

    with_rig(tmp_path, talk, settings=settings)


def test_a_stray_may_only_ping(tmp_path: Path) -> None:
    """A descendant of no unit pings; so does a process that claims a unit without descending from the keeper."""

    async def talk(rig: Rig) -> None:
        for owner in (Owner(stray=True, descendant=True), Owner(descendant=True), Owner(unit="web")):
            rig.supervisor.owner = owner
            assert await rig.call("Ping") == {"answer": "pong"}
            assert (await rig.refusal("Status", units=[], lines=0))[0] == "NotPermitted"

    with_rig(tmp_path, talk, settings=as_unit("web", AllowRule("admin", unit="*"))[1])


def test_rules_for_a_unit_hold_it_to_their_units(tmp_path: Path) -> None:
    """An operator of some units changes those, sees the journal of those, and a glob beyond them is refused whole."""
    rule = AllowRule("operator", unit="planner", units=("@front", "worker@"))
    _, settings = as_unit("planner", rule)

    async def talk(rig: Rig) -> None:
        await rig.call("Start", **start("crash"))
        rig.supervisor.owner = Owner(unit="planner", descendant=True)
        assert await rig.call("Start", **start("worker@1"))
        error, parameters = await rig.refusal("Start", **start("w*", "db"))
        assert (error, parameters["unit"]) == ("NotPermitted", "db")
        assert (await rig.refusal("Stop", **start("db")))[0] == "NotPermitted"
        assert len((await rig.call("Jobs"))["jobs"]) == 0
        found = await rig.call(f"{JOURNAL}.Query", filter=NO_FILTER)
        assert {record["unit"] for record in found["records"]} <= {"web", "worker@1", "worker@2"}
        assert found["records"]
        found = await rig.call(f"{JOURNAL}.Query", filter={"units": ["crash"], "events": []})
        assert found["records"] == []
        assert set((await rig.call(f"{JOURNAL}.Stats"))["by_unit"]) <= {"web", "worker@1", "worker@2"}
        listed = (await rig.call("List", units=[], failed=False))["units"]
        assert [unit["name"] for unit in listed] == ["web", "worker@1", "worker@2"]
        assert (await rig.refusal("Cat", unit="db"))[0] == "NotPermitted"
        # A plan needs less than the change, and no more units.
        assert await rig.call("Stop", units=["worker@1"], wait=True, plan=True)
        assert (await rig.refusal("Stop", units=["db"], wait=True, plan=True))[0] == "NotPermitted"

    with_rig(tmp_path, talk, settings=settings)


def test_secrets_are_for_admins(tmp_path: Path) -> None:
    """Environment values and tokens are redacted in show, cat, status and journal for all but admin."""
    _, settings = as_unit("planner", AllowRule("read-only", unit="planner"), AllowRule("admin", unit="boss"))

    async def talk(rig: Rig) -> None:
        rig.supervisor.records.append({"event": "command", "unit": None, "severity": "info", "password": "hunter3"})
        rig.supervisor.owner = Owner(unit="planner", descendant=True)
        told = [
            await rig.call("Show", unit="web"),
            await rig.call("Cat", unit="web"),
            await rig.call("Status", units=["web"], lines=0),
            await rig.call(f"{JOURNAL}.Query", filter=NO_FILTER),
            await rig.call("Why", unit="web"),
        ]
        assert "hunter" not in str(told)
        assert "serve --token '[redacted]'" in str(told)
        rig.supervisor.owner = Owner(unit="boss", descendant=True)
        assert "hunter2" in str(await rig.call("Show", unit="web"))
        assert "hunter1" in str(await rig.call("Cat", unit="web"))
        assert "hunter3" in str(await rig.call(f"{JOURNAL}.Query", filter=NO_FILTER))

    with_rig(tmp_path, talk, settings=settings)


def test_monitoring_sees_states_and_no_more(tmp_path: Path) -> None:
    """Monitoring lists, waits and asks what it can; output, arguments and files are not for it."""
    _, settings = as_unit("watcher", AllowRule("monitoring", unit="watcher"))

    async def talk(rig: Rig) -> None:
        rig.supervisor.owner = Owner(unit="watcher", descendant=True)
        rig.supervisor.lines["web"] = ["private"]
        [web] = (await rig.call("Status", units=["web"], lines=5))["units"]
        assert (web["lines"], web["exec"]) == (None, None)
        assert (await rig.call("Commands"))["allowed"] == sorted(PRESETS["monitoring"])
        assert (await rig.call("Wait", unit="web", until="inactive"))["unit"]["exec"] is None
        for method, parameters in (
            ("Show", {"unit": "web"}),
            ("Cat", {"unit": "web"}),
            ("Why", {"unit": "web"}),
            ("Lives", {"unit": "web", "last": 1}),
            ("Logs", {"units": ["web"], "lines": 1, "follow": False, "previous": False}),
            (f"{JOURNAL}.Query", {"filter": NO_FILTER}),
            ("Start", {"units": ["web"], "wait": True, "plan": True}),
        ):
            assert (await rig.refusal(method, **parameters))[0] == "NotPermitted", method

    with_rig(tmp_path, talk, settings=settings)


def test_can_says_what_would_be_decided(tmp_path: Path) -> None:
    """Can answers for the caller and, to an admin, for others; nothing is recorded as denied by asking."""

    async def talk(rig: Rig) -> None:
        assert (await rig.call("Can", verb="stop", unit="web"))["allowed"]
        assert (await rig.call("Can", verb="daemon_reload"))["allowed"]
        reply = await rig.call("Can", verb="stop", unit="web", user="nobody")
        assert not reply["allowed"]
        assert reply["why"].startswith("user nobody may not stop web: ")
        assert not rig.supervisor.events("command.denied")
        assert (await rig.refusal("Can", verb="dance"))[1]["parameter"] == "verb"
        assert (await rig.refusal("Can", verb="stop", user="no-such-user"))[1]["parameter"] == "user"
        rig.supervisor.owner = Owner(unit="web", descendant=True)
        reply = await rig.call("Can", verb="stop", unit="web")
        assert reply["why"].startswith("unit web may not stop web: a unit's process may ping")
        assert (await rig.refusal("Can", verb="stop", user="root"))[0] == "NotPermitted"

    settings = as_unit("web", AllowRule(("can",), unit="web"))[1]
    with_rig(tmp_path, talk, settings=settings)


def test_the_ceiling_holds_for_admins(tmp_path: Path) -> None:
    """allowed-commands refuses root and the own user as well."""

    async def talk(rig: Rig) -> None:
        assert await rig.call("Ping")
        error, parameters = await rig.refusal("Start", **start("web"))
        assert error == "NotPermitted"
        assert "allowed-commands" in parameters["message"]

    with_rig(tmp_path, talk, settings=Settings(SupervisorSettings(allowed_commands="monitoring")))


def test_reasons_can_be_required(tmp_path: Path) -> None:
    """With require-reason a change without one is denied and says how to give it; questions and plans need none."""

    async def talk(rig: Rig) -> None:
        error, parameters = await rig.refusal("Stop", **start("web"))
        assert (error, parameters["message"]) == ("NotPermitted", "stop needs a reason here: say why with -m REASON")
        assert (await rig.refusal("Shutdown"))[0] == "NotPermitted"
        assert (await rig.refusal("Cancel", job=1))[0] == "NoSuchJob"
        assert await rig.call("Stop", **start("web", reason="because"))
        assert await rig.call("Stop", units=["web"], wait=True, plan=True)
        assert await rig.call("Status", units=[], lines=0)
        assert len(rig.supervisor.events("command.denied")) == 2

    with_rig(tmp_path, talk, settings=Settings(control=ControlSettings(require_reason=True)))


def test_rules_follow_a_reload_of_the_settings(tmp_path: Path) -> None:
    """New settings count from the next call on, on connections that are open as well."""

    async def talk(rig: Rig) -> None:
        client = await rig.connect()
        assert await client.call("Status", units=[], lines=0)
        rig.supervisor.settings = Settings(SupervisorSettings(allowed_commands=("ping",)))
        with pytest.raises(CallFailed):
            await client.call("Status", units=[], lines=0)
        await client.close()

    with_rig(tmp_path, talk)


def test_waiting_for_a_unit_with_an_invalid_file_never_ended(tmp_path: Path) -> None:
    """What no file can start is an error at once, as for ``Start``; its rest may be waited for."""

    async def talk(rig: Rig) -> None:
        for goal in ("ready", "active"):
            error, parameters = await rig.refusal("Wait", unit="bad", until=goal)
            assert (error, parameters["unit"]) == ("BadUnit", "bad")
            assert (await rig.refusal("Wait", unit="gone", until=goal))[0] == "UnitMasked"
        for goal in ("inactive", "exit"):
            assert (await rig.call("Wait", unit="bad", until=goal))["unit"]["active_state"] == "inactive"

    with_rig(tmp_path, talk)


def test_an_unusable_journal_was_an_internal_error_of_its_readers(tmp_path: Path) -> None:
    """The reader's own error is told as that of the interface, and is no bug."""

    async def talk(rig: Rig) -> None:
        async def broken(*_: Any) -> Any:
            raise UnreadableError("cannot read the journal: Not a directory")

        rig.supervisor.journal_verify = broken  # type: ignore[method-assign]
        rig.supervisor.journal_query = broken  # type: ignore[method-assign]
        rig.supervisor.journal_stats = broken  # type: ignore[method-assign]
        for method in ("Verify", "Stats"):
            error, parameters = await rig.refusal(f"{JOURNAL}.{method}")
            assert (error, parameters["message"]) == ("JournalUnavailable", "cannot read the journal: Not a directory")
        assert (await rig.refusal(f"{JOURNAL}.Query", filter={"units": [], "events": []}))[0] == "JournalUnavailable"
        assert (await rig.refusal("Lives", unit="web", last=5))[0] == "JournalUnavailable"
        assert rig.bugs == []

    with_rig(tmp_path, talk)

"""``supctl start`` and its kin against a fake supervisor: what is printed, what is sent, what it exits with."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_py.ctl import client as client_module
from tests.integration.supctl_fake import FakeSupervisor, HangUp, Later, Raise, done, not_there, outcome, unit
from tests.integration.supctl_run import Supctl


@pytest.fixture
def supctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Supctl]:
    fake = FakeSupervisor(tmp_path / "control.sock")
    yield Supctl(fake, capsys)
    fake.close()


def test_start_tells_pid_and_time(supctl: Supctl) -> None:
    """One line a unit when it is done: what was done, the pid, how long it took."""
    supctl.fake.on("Start", done(outcome("web")))
    supctl.fake.on("List", {"units": [unit("web", pid=4711)]})
    ran = supctl("start", "web")
    assert ran.code == 0
    assert ran.out.startswith("started web (pid 4711, 0.")


def test_a_verb_that_succeeded_does_not_fail_for_want_of_a_pid(supctl: Supctl) -> None:
    """Who may start but not list still gets exit 0."""
    supctl.fake.on("Start", done(outcome("web")))
    supctl.fake.on("List", Raise("NotPermitted", {"command": "list", "unit": None, "message": "no"}))
    ran = supctl("start", "web")
    assert ran.code == 0
    assert ran.out.startswith("started web (0.")


def test_what_is_sent(supctl: Supctl) -> None:
    """Units, reason, waiting and a token go over; options count before and behind the verb."""
    supctl.fake.on("Restart", done(outcome("web", "restart")))
    supctl("-m", "new release", "restart", "web", "@backend")
    supctl("restart", "web", "--no-wait", "-m", "again")
    supctl("restart", "web", "--timeout", "30s")
    first, second, third = supctl.fake.called("Restart")
    assert (first["units"], first["wait"], first["plan"]) == (["web", "@backend"], True, False)
    assert (first["reason"], second["reason"], third["reason"]) == ("new release", "again", None)
    assert second["wait"] is False
    assert 29_000 < third["timeout_ms"] <= 30_000
    assert "timeout_ms" not in first


def test_a_job_mode_goes_over_and_a_wrong_one_is_usage(supctl: Supctl) -> None:
    """Any verb that makes jobs takes one; without it the supervisor's default holds; a rolling restart has none."""
    for method in ("Start", "Stop", "Restart"):
        supctl.fake.on(method, done(outcome("web")))
        supctl(method.lower(), "web", "--job-mode", "replace-irreversibly")
        supctl(method.lower(), "web")
        first, second = supctl.fake.called(method)
        assert first["mode"] == "replace-irreversibly"
        assert second.get("mode") is None
    assert supctl("start", "web", "--job-mode", "sometimes").code == 2
    assert supctl("restart", "web", "--rolling", "--job-mode", "flush").code == 2


@pytest.mark.parametrize("option", ["--no-wait", "--no-block"])
def test_no_wait_prints_the_job_id(supctl: Supctl, option: str) -> None:
    """The job's number alone is on standard output, so that a script can give it to ``cancel``."""
    supctl.fake.on("Stop", done(outcome("web", "stop", "queued", job=12), job=12))
    assert supctl("stop", "web", option).out == "12\n"


@pytest.mark.parametrize("option", ["--plan", "--dry-run"])
def test_plan_changes_nothing_and_says_so(supctl: Supctl, option: str) -> None:
    """``--plan`` is sent as such and what would be done is printed."""
    supctl.fake.on("Start", done(outcome("db", result="queued"), outcome("web", result="queued"), job=None))
    ran = supctl("start", "web", option)
    assert supctl.fake.called("Start")[0]["plan"] is True
    assert ran.lines == ["would start db", "would start web"]
    assert supctl("start", "web", option, "--json").document["plan"] is True


def test_what_was_so_already_is_not_told_as_done(supctl: Supctl) -> None:
    """A stop of what is down and a start of what is up say so, and claim no deed."""
    supctl.fake.on("Stop", done(outcome("web", "stop", message="already inactive")))
    assert supctl("stop", "web").lines == ["web is already inactive"]
    supctl.fake.on("Start", done(outcome("web", message="already active")))
    supctl.fake.on("List", {"units": [unit("web", pid=4711)]})
    assert supctl("start", "web").lines == ["web is already active"]


def test_plan_of_a_glob_does_not_promise_to_start_a_bad_unit(supctl: Supctl) -> None:
    """A unit whose file is invalid would not be started, and the plan says so."""
    bad = outcome("bad", result="invalid", message="bad.toml:1:1: unknown key")
    supctl.fake.on("Start", done(outcome("web", result="queued"), bad, job=None))
    assert supctl("start", "*", "--plan").lines == ["would start web", "could not start bad: bad.toml:1:1: unknown key"]


def test_a_failed_job_says_why_and_what_to_do(supctl: Supctl) -> None:
    """Exit 1; the cause, the last output and the next command are on standard error, what went well on standard
    output.
    """
    outcomes = [outcome("db"), outcome("web", result="failed", message="exited with 1 before it was ready")]
    supctl.fake.on("Start", Raise("JobFailed", {"outcomes": outcomes, "message": "1 of 2 jobs failed"}))
    down = unit("web", "failed", "failed", result="exit_code", lines=["port 80 is taken"], why="it crashed")
    supctl.fake.on("Status", {"units": [down]})
    supctl.fake.on("List", {"units": [unit("db")]})
    ran = supctl("start", "web")
    assert ran.code == 1
    assert ran.out.startswith("started db")
    for part in ("cannot start web: exited with 1", "why: it crashed", "| port 80 is taken", "next: supctl why web"):
        assert part in ran.err


def test_a_failure_is_told_once(supctl: Supctl) -> None:
    """What the message says already is not said again as reason and result, and nothing is said to have been done."""
    why = "it was not ready within its start time-out"
    failed = outcome("web", result="failed", message=f"web failed (timeout): {why}")
    supctl.fake.on("Start", Raise("JobFailed", {"outcomes": [failed], "message": "m"}))
    down = unit("web", "failed", "failed", result="timeout", why=f"it failed (timeout): {why}")
    supctl.fake.on("Status", {"units": [down]})
    ran = supctl("start", "web")
    assert ran.out == ""
    assert ran.err == f"supctl: cannot start web: web failed (timeout): {why}\n  next: supctl why web\n"


def test_a_failed_job_in_json_is_one_document(supctl: Supctl) -> None:
    """With ``--json`` the failure is the error object, the outcomes in the contract's words."""
    failed = outcome("web", "reload_or_start", "failed", "no")
    supctl.fake.on("Start", Raise("JobFailed", {"outcomes": [failed], "message": "1 job failed"}))
    ran = supctl("start", "web", "--json")
    assert ran.code == 1
    assert ran.document["error"]["code"] == "job-failed"
    assert ran.document["error"]["outcomes"][0]["type"] == "reload-or-start"
    assert "1 job failed" in ran.err


@pytest.mark.parametrize(
    ("error", "parameters", "code"),
    [
        ("NoSuchUnit", {"unit": "web", "suggestions": [], "message": "m"}, 4),
        ("NotPermitted", {"command": "start", "unit": "web", "message": "m"}, 5),
        ("BadUnit", {"unit": "web", "problem": "p", "message": "m"}, 6),
        ("TimedOut", {"message": "m"}, 124),
        ("InvalidRequest", {"message": "m"}, 2),
        ("org.varlink.service.InvalidParameter", {"parameter": "mode"}, 2),
        ("org.varlink.service.PermissionDenied", {}, 5),
        ("UnitMasked", {"unit": "web", "message": "m"}, 1),
        ("TransactionConflict", {"message": "m"}, 1),
        ("DependencyCycle", {"path": ["a", "a"], "message": "m"}, 1),
        ("ShuttingDown", {"message": "m"}, 1),
        ("Busy", {"message": "m"}, 1),
    ],
)
def test_exit_codes_of_errors(supctl: Supctl, error: str, parameters: dict[str, object], code: int) -> None:
    """Each error of the interface has the exit code of the contract's table."""
    supctl.fake.on("Start", Raise(error, parameters))
    assert supctl("start", "web").code == code


def test_all_is_not_a_unit(supctl: Supctl) -> None:
    """Supervisorctl's ``restart all`` is answered with what means that here."""
    supctl.fake.on("Restart", not_there("all"))
    ran = supctl("restart", "all")
    assert ran.code == 4
    assert "every unit is '*'" in ran.err


def test_restart_survives_the_death_of_the_manager(supctl: Supctl) -> None:
    """``supctl`` waits instead of failing: the lost call is made again with its token, and the note says why it takes
    longer.
    """
    supctl.fake.on("Restart", HangUp(), done(outcome("web", "restart")))
    ran = supctl("restart", "web")
    assert ran.code == 0
    first, second = supctl.fake.called("Restart")
    assert first["token"] == second["token"]
    assert "waiting for the next one" in ran.err


def test_timeout_says_that_the_job_goes_on(supctl: Supctl, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--timeout`` exits 124, whether the supervisor says so or says nothing at all."""
    monkeypatch.setattr(client_module, "GRACE_S", 0.0)
    supctl.fake.on("Start", Raise("TimedOut", {"message": "web is not ready after 100ms; the job goes on"}))
    supctl.fake.on("Stop", lambda _: [Later(threading.Event())])
    for verb in ("start", "stop"):
        ran = supctl(verb, "web", "--timeout", "100ms", "--json")
        assert ran.code == 124
        assert ran.document["error"]["code"] == "timed-out"
        assert "goes on" in ran.err


def test_interrupted_while_waiting(supctl: Supctl) -> None:
    """Ctrl-C ends the waiting with 130 and says that the job goes on."""
    arrived = threading.Event()

    def answer(_: dict[str, object]) -> list[object]:
        arrived.set()
        return [Later(threading.Event())]

    supctl.fake.on("Start", lambda parameters: (step for step in answer(parameters)))
    process = supctl.spawn("start", "web")
    assert arrived.wait(30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the job goes on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "name", "whom"),
    [
        (["kill", "web"], "SIGTERM", "all"),
        (["kill", "-s", "hup", "web"], "SIGHUP", "all"),
        (["kill", "-9", "web"], "9", "all"),
        (["kill", "-HUP", "web", "--whom", "main"], "SIGHUP", "main"),
        (["signal", "HUP", "web"], "SIGHUP", "main"),
    ],
)
def test_ways_to_send_a_signal(supctl: Supctl, arguments: list[str], name: str, whom: str) -> None:
    """``kill`` and supervisorctl's ``signal`` name the signal as hands know it."""
    supctl.fake.on("Kill", done(outcome("web", "kill", job=0), job=None))
    ran = supctl(*arguments)
    assert ran.code == 0
    sent = supctl.fake.called("Kill")[0]
    assert (sent["signal"], sent["whom"], sent["units"]) == (name, whom, ["web"])
    assert ran.out == "signalled web\n"


def test_jobs_and_cancel(supctl: Supctl) -> None:
    """``jobs`` lists what waits for what; ``cancel`` ends one by its number."""
    job = {"job": 3, "unit": "web", "type": "verify_active", "state": "waiting", "waiting_for": ["db"]}
    supctl.fake.on("Jobs", {"jobs": [job]}, {"jobs": []})
    supctl.fake.on("Cancel", {"job": 3, "durable": True})
    assert supctl("jobs").lines[1].split() == ["3", "web", "verify-active", "waiting", "db"]
    assert supctl("list-jobs").out == "no jobs\n"
    assert supctl("cancel", "3", "-m", "wrong one").code == 0
    assert supctl.fake.called("Cancel") == [{"job": 3, "reason": "wrong one"}]


def test_cancel_that_was_lost_is_looked_up(supctl: Supctl) -> None:
    """A cancel whose reply was lost succeeded when the job is gone; it is not asked again."""
    supctl.fake.on("Cancel", HangUp())
    supctl.fake.on("Jobs", {"jobs": []})
    assert supctl("cancel", "3").code == 0
    assert len(supctl.fake.called("Cancel")) == 1


def test_not_durable_is_said(supctl: Supctl) -> None:
    """A command that is not on disk is done all the same, and the operator hears of it."""
    supctl.fake.on("ResetFailed", done(outcome("web", "reset-failed"), job=None, durable=False))
    ran = supctl("reset-failed", "web")
    assert ran.code == 0
    assert "not on disk" in ran.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["reload"], "supctl daemon-reload"),
        (["update"], "apply"),
        (["all"], "'*' is every unit"),
        (["restart"], "restart what?"),
        (["enable"], "enable what?"),
        (["top", "--delay", "1ms"], "--delay is from 100ms on"),
        (["top", "--delay", "soon"], "--delay: 'soon' is not a time span"),
        (["run", "--wait", "--no-wait", "true"], "leave out --no-wait"),
        (["restart", "--max-unavailable", "2", "web"], "--max-unavailable is for --rolling"),
        (["why", "web", "--since", "soonish"], "--since: not a moment"),
        (["--remote", "tcp://x", "status"], "--remote: 'tcp://x' is not an address"),
        (["logs", "--since", "soonish", "web"], "--since: not a moment"),
        (["logs", "-f", "--until", "today", "web"], "leave out -f or --until"),
        (["journal", "replay"], "journal replay needs --until SEQ"),
        (["journal", "replay", "--until", "today"], "is not the number of a record"),
        (["journal", "replay", "--until", "3", "--after", "1"], "--after goes with --to TOPIC"),
        (["statuss"], "did you mean status"),
        (["stauts"], "did you mean stats or status?"),
        (["status", "--plan"], "--plan means nothing to status"),
        (["show", "web", "--no-wait"], "--no-wait means nothing to show"),
        (["status", "-o", "yaml"], "no format 'yaml'"),
        (["status", "--timeout", "soon"], "--timeout 30s"),
        (["status", "--timeout", "0"], "--no-wait"),
        (["--socket", "/x", "--system", "status"], "name different supervisors"),
        (["logs", "--grep", "(", "web"], "no regular expression"),
        (["wait", "web", "--for", "godot"], "godot"),
    ],
)
def test_wrong_usage_is_2_and_names_what_is_meant(supctl: Supctl, arguments: list[str], part: str) -> None:
    """Other tools' words, verbs that come later and options that mean nothing are errors with the next step."""
    ran = supctl(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert part in ran.err
    assert ran.err.count("\n") == 1
    ran = supctl("--json", *arguments) if "-o" not in arguments else ran
    if ran.out:
        assert ran.document["error"]["code"] == "usage"
    assert supctl.fake.calls == []


def test_bare_supctl_is_wrong_usage_with_help(supctl: Supctl) -> None:
    """No verb: the overview on standard error, exit 2; asked for, it is on standard output, exit 0."""
    ran = supctl()
    assert ran.code == 2
    assert "What happened" in ran.err
    for arguments in (["--help"], ["help"], ["help", "restart"], ["restart", "-h"]):
        ran = supctl(*arguments)
        assert ran.code == 0
        assert "Usage: supctl" in ran.out


def test_reset_failed_of_all_stopped_at_one_that_was_forgotten_meanwhile(supctl: Supctl) -> None:
    """What was run goes by itself; one that is named has to be there."""
    forgotten = done(outcome("web", "reset-failed"), job=None, durable=False)
    supctl.fake.on("ResetFailed", not_there("run-1"), not_there("run-2"), forgotten)
    assert supctl("reset-failed").code == 0
    supctl.fake.on("ResetFailed", not_there("run-1"))
    assert supctl("reset-failed", "run-1").code == 4
    assert supctl("reset-failed").code == 4


def test_run_that_waits_for_a_program_that_is_not_there_exited_with_1(supctl: Supctl) -> None:
    """It never started, which is 125 for whoever waits, as it is where the supervisor finds it out."""
    codes = [
        supctl("run", *options, "no-such-program-here").code for options in ((), ("--wait",), ("--wait", "--json"))
    ]
    assert (codes, supctl.fake.calls) == ([1, 125, 125], [])

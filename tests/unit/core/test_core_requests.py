"""Requests: one reply each, tokens, cancelling, killing, refusals."""

import pytest
from core_rig import Rig, needs, notify, service, unit_set

from supervisord_py.core import view
from supervisord_py.core.actions import SignalProcesses, Whom
from supervisord_py.core.events import CommandRequested, Now, ProcessSpawned, RequesterGone
from supervisord_py.core.manager import Manager
from supervisord_py.core.requests import TOKENS_MAX
from supervisord_py.model.states import Restart
from supervisord_py.model.unit import BadUnit, RestartPolicy, UnitSet


def test_nobody_waits_without_wait() -> None:
    """The reply comes at once: queued, with the job's number."""
    rig = Rig(notify("web"))
    request = rig.ask("start", "web", wait=False)
    outcome = rig.replies[request].outcomes[0]
    assert (outcome.result, outcome.job) == ("queued", view.jobs(rig.manager)[0].job)


def test_a_request_for_several_is_answered_once_when_all_are_done() -> None:
    """One reply with an outcome for each unit, in the order in which they were named."""
    rig = Rig(notify("a"), notify("b"))
    request = rig.ask("start", "b", "a")
    rig.up("a")
    assert request not in rig.replies
    rig.up("b")
    assert list(rig.outcome(request)) == ["b", "a"]


def test_two_who_ask_for_the_same_share_the_job() -> None:
    """Both are answered when it ends."""
    rig = Rig(notify("web"))
    one, two = rig.ask("start", "web"), rig.ask("start", "web")
    assert len(view.jobs(rig.manager)) == 1
    rig.up("web")
    assert rig.outcome(one) == rig.outcome(two) == {"web": "done"}


def test_a_client_that_hangs_up_gets_no_reply_and_the_job_goes_on() -> None:
    """Nothing is called off with the connection."""
    rig = Rig(notify("web"))
    request = rig.ask("start", "web")
    rig.happen(RequesterGone(request))
    rig.up("web")
    assert request not in rig.replies
    assert rig.status("web").active_state == "active"


def test_the_same_token_attaches_to_the_same_job() -> None:
    """Asked again after a lost connection, it waits for the job of the first, and starts nothing twice."""
    rig = Rig(notify("web"))
    rig.ask("restart", "web", token="t1")
    two = rig.ask("restart", "web", token="t1")
    rig.up("web")
    assert rig.outcome(two) == {"web": "done"}
    three = rig.ask("restart", "web", token="t1")
    assert rig.outcome(three) == {"web": "done"}
    assert rig.launched() == ["web"]


def test_a_token_survives_the_manager() -> None:
    """The next manager knows the jobs of the token, and answers with how they ended."""
    rig = Rig(notify("web"))
    rig.ask("start", "web", token="t1")
    rig.manager = Manager.restore(rig.state, rig.units)
    again = rig.ask("start", "web", token="t1")
    rig.up("web")
    assert rig.outcome(again) == {"web": "done"}
    rig.manager = Manager.restore(rig.state, rig.units)
    once_more = rig.ask("start", "web", token="t1")
    assert rig.outcome(once_more) == {"web": "done"}
    assert rig.launched() == ["web"]


def test_the_table_of_tokens_is_bounded() -> None:
    """The oldest token is forgotten when the table is full, and only that."""
    manager = Manager(1)
    now = Now(1, 1, 1, 1)
    from supervisord_py.core.events import UnitsLoaded

    manager.handle(UnitsLoaded(unit_set(service("web"))), now)
    manager.handle(CommandRequested(0, "start", ("web",)), now)
    manager.handle(ProcessSpawned(1, 1), now)
    jobs = {}
    for number in range(TOKENS_MAX + 1):
        reply = manager.handle(CommandRequested(number, "start", ("web",), token=f"t{number}"), now).replies[0]
        jobs[number] = reply.outcomes[0].job
    assert sum(key.startswith("token/") for key in manager.snapshot()) == TOKENS_MAX
    kept = manager.handle(CommandRequested(9001, "start", ("web",), token="t1"), now).replies[0]
    assert kept.outcomes[0].job == jobs[1]
    forgotten = manager.handle(CommandRequested(9000, "start", ("web",), token="t0"), now).replies[0]
    assert forgotten.outcomes[0].job not in jobs.values()


def test_an_unknown_unit_is_refused_with_what_was_probably_meant() -> None:
    """NoSuchUnit with suggestions."""
    rig = Rig(service("webserver"))
    request = rig.ask("start", "websrver")
    refusal = rig.replies[request].refusal
    assert refusal is not None
    assert refusal.error == "NoSuchUnit"
    assert refusal.parameters["suggestions"] == ["webserver"]
    assert "did you mean webserver?" in refusal.message


def test_a_bad_unit_is_refused_with_its_problem() -> None:
    """BadUnit with the first problem of its file; and so is what requires it."""
    rig = Rig()
    bad = UnitSet(bad={"web": BadUnit("web", "web.toml", "web.toml:1:1: unit: unknown key")})
    rig.load(service("app", relations=needs("web")), bad=bad)
    for name in ("web", "app"):
        request = rig.ask("start", name)
        refusal = rig.replies[request].refusal
        assert refusal is not None
        assert (refusal.error, refusal.parameters["problem"]) == ("BadUnit", "web.toml:1:1: unit: unknown key")
    assert rig.status("web").load_state == "bad-setting"


def test_cancel_ends_a_job_and_answers_who_waited() -> None:
    """The canceller and the waiter are both told; the process that was started goes on."""
    rig = Rig(notify("web"))
    start = rig.ask("start", "web")
    job = view.jobs(rig.manager)[0].job
    cancel = rig.ask("cancel", arguments={"job": job})
    assert rig.outcome(start) == rig.outcome(cancel) == {"web": "canceled"}
    rig.up("web")
    assert rig.status("web").active_state == "active"


@pytest.mark.parametrize("job", [999, "1", None])
def test_cancel_of_no_job_is_refused(job: object) -> None:
    """NoSuchJob, whatever was given."""
    rig = Rig(service("web"))
    assert rig.refusal(rig.ask("cancel", arguments={"job": job})) == "NoSuchJob"


def test_kill_signals_whom_it_was_told_to() -> None:
    """All processes by default, the main one on request, nothing when there is none."""
    rig = Rig(service("web"))
    assert rig.outcome(rig.ask("kill", "web")) == {"web": "invalid"}
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.ask("kill", "web", arguments={"signal": "SIGUSR1", "whom": "main"})
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 10, Whom.MAIN, spawn_id)]
    rig.ask("kill", "web", arguments={"signal": 12, "whom": "all"})
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 12, Whom.ALL)]
    assert rig.refusal(rig.ask("kill", "web", arguments={"signal": "SIGNOPE"})) == "InvalidRequest"


def test_a_kill_is_no_stop() -> None:
    """A service that is killed by hand comes back as its policy says."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("kill", "web", arguments={"signal": 9})
    rig.exited("web", signal=9)
    rig.later(1)
    assert rig.launched() == ["web", "web"]


def test_starting_what_is_up_is_done_at_once() -> None:
    """No process, one outcome: done."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    assert rig.outcome(rig.ask("start", "web")) == {"web": "done"}
    assert rig.launched() == ["web"]


def test_every_job_that_begins_ends() -> None:
    """job.queued and job.finished come in pairs."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.ask("restart", "db")
    rig.up("db")
    rig.ask("stop", "db")
    rig.exited("db", signal=15)
    queued = [record.fields["job"] for record in rig.records if record.event == "job.queued"]
    finished = [record.fields["job"] for record in rig.records if record.event == "job.finished"]
    assert sorted(queued) == sorted(finished)


def test_a_request_for_many_is_not_written_many_times() -> None:
    """While the jobs of a token end one by one, each end is written, and the whole only at last."""
    names = [f"u{number:03}" for number in range(50)]
    rig = Rig(*(notify(name) for name in names))
    request = rig.ask("start", *names, token="t1")
    entry = len(rig.state["token/0"])
    for name in names[:-1]:
        before = dict(rig.state)
        rig.up(name)
        changed = sum(len(text) for key, text in rig.state.items() if before.get(key) != text and "unit/" not in key)
        assert changed < entry / 2
    assert request not in rig.replies
    again = rig.ask("start", *names, token="t1")
    rig.up(names[-1])
    assert rig.outcome(request) == rig.outcome(again) == dict.fromkeys(names, "done")
    assert not [key for key in rig.state if key.startswith("end/")]
    assert rig.outcome(rig.ask("start", *names, token="t1")) == dict.fromkeys(names, "done")


def test_two_tokens_on_one_job_are_both_answered() -> None:
    """The end of a shared job is kept for as long as one of them has open jobs."""
    rig = Rig(notify("a"), notify("b"))
    rig.ask("start", "a", token="t1")
    rig.ask("start", "a", "b", token="t2")
    rig.up("a")
    assert rig.outcome(rig.ask("start", "a", token="t1")) == {"a": "done"}
    rig.manager = Manager.restore(rig.state, rig.units)
    again = rig.ask("start", "a", "b", token="t2")
    rig.up("b")
    assert rig.outcome(again) == {"a": "done", "b": "done"}
    assert not [key for key in rig.state if key.startswith("end/")]


def test_a_plan_does_not_promise_what_is_so_already() -> None:
    """A start of what is up and a stop of what is down are nop in a plan; a start of what ends is a start."""
    rig = Rig(service("up"), service("down"), service("ending"))
    rig.ask("start", "up", "ending")
    rig.spawned("up")
    rig.spawned("ending")
    rig.ask("stop", "ending")

    def planned(verb: str) -> dict[str, str]:
        request = rig.ask(verb, "down", "ending", "up", plan=True)
        return {outcome.unit: outcome.job_type for outcome in rig.replies[request].outcomes}

    assert planned("start") == {"down": "start", "ending": "start", "up": "nop"}
    assert planned("stop") == {"down": "nop", "ending": "stop", "up": "stop"}
    assert planned("try-restart") == {"down": "nop", "ending": "restart", "up": "restart"}


def test_reset_failed_says_of_which_there_was_nothing_to_forget() -> None:
    """Asked for all, it claims no success with units that have never failed."""
    rig = Rig(service("good"), service("bad", restart=RestartPolicy(restart=Restart.NO)))
    rig.ask("start", "good", "bad")
    rig.spawned("good")
    rig.spawned("bad")
    rig.crash("bad")
    for plan in (True, False):
        request = rig.ask("reset-failed", "good", "bad", plan=plan)
        told = {outcome.unit: outcome.message for outcome in rig.replies[request].outcomes}
        assert told == {"good": "it has no failure to forget", "bad": ""}
        assert rig.status("bad").active_state == ("failed" if plan else "inactive")

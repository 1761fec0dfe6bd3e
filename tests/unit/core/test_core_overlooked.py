"""What no test had looked at: each was found by a slip that nobody noticed (see ``docs/mutation.md``)."""

import pytest
from core_rig import Rig, commands, needs, notify, service, target
from test_core_rollout_fates import Roll

from supervisord_py.core import view
from supervisord_py.core.actions import CheckConditions, SignalProcesses
from supervisord_py.core.events import ExitStatus, NotifyReceived, ProcessExited
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import JobMode, Restart, Severity
from supervisord_py.model.unit import SECOND_NS, Condition, Dependency, RestartPolicy, UnitSet

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


# transactions


def test_what_is_to_be_reloaded_and_is_needed_is_reloaded() -> None:
    """web is down and needs db, which is up: both are asked for at once, and db is not just found to be there. What
    is done about a unit stands where it was asked for.
    """
    reloads = commands("/bin/reload")
    rig = Rig(
        service("web", relations=needs("db")), service("db", exec_reload=reloads), service("log", exec_reload=reloads)
    )
    rig.ask("start", "db", "log")
    for name in ("db", "log"):
        rig.spawned(name)
    plan = rig.replies[rig.ask("reload-or-restart", "web", "db", "log", plan=True)]
    assert [each.unit for each in plan.outcomes] == ["web", "db", "log"]
    rig.ask("reload-or-restart", "web", "db", "log", wait=False)
    assert rig.status("db").sub_state == "reload"


def test_what_has_to_be_found_is_not_stopped_by_the_same_request() -> None:
    """web has to find db active, and app takes db down: that contradicts itself, and is refused whole."""
    rig = Rig(
        service("web", relations={"requisite": (Dependency("db"),)}),
        service("app", relations={"conflicts": ("db",)}),
        notify("db"),
    )
    rig.ask("start", "db", wait=False)
    rig.spawned("db")
    assert rig.refusal(rig.ask("start", "web", "app")) == "TransactionConflict"
    assert rig.status("db").active_state == "activating"


def test_a_cycle_in_what_has_to_go_does_not_keep_it() -> None:
    """a and b would each stop after the other; isolate does without the order of one of them, and is not refused."""
    rig = Rig(target("rescue"), *(service(name) for name in "ab"))
    rig.ask("start", "a", "b")
    rig.spawned("a")
    rig.spawned("b")
    a, b = (service(name, relations={"after": (Dependency(other),)}) for name, other in ("ab", "ba"))
    rig.load(target("rescue"), a, b)
    request = rig.ask("start", "rescue", mode=JobMode.ISOLATE)
    assert rig.outcome(request) == {"rescue": "done"}


def test_in_mode_fail_a_wish_for_what_is_on_its_way_is_waited_for() -> None:
    """web wants log and starts after it; log is starting, though its job was called off: that hurts nobody."""
    rig = Rig(service("web", relations={"wants": (Dependency("log"),)}), notify("log"))
    rig.ask("start", "log", wait=False)
    rig.spawned("log")
    rig.ask("cancel", arguments={"job": rig.manager.ledger.job_of["log"].id})
    rig.ask("start", "web", mode=JobMode.FAIL, wait=False)
    assert rig.launched() == ["log"]
    rig.says("log", READY="1")
    assert rig.launched() == ["log", "web"]


def test_a_cycle_is_broken_where_nobody_needs_it() -> None:
    """web has to find db, and only wants app, which needs db, which needs disk; disk and log stand after each other,
    and nobody but app wants log. It is log that is left out, not disk with all that needs it.
    """
    rig = Rig(
        service("web", relations={"requisite": (Dependency("db"),), "wants": (Dependency("app"), Dependency("log"))}),
        service("app", relations=needs("db")),
        service("db", relations=needs("disk")),
        service("disk", relations={"after": (Dependency("log"),)}),
        service("log", relations={"after": (Dependency("disk"),)}),
    )
    rig.ask("start", "web", wait=False)
    assert rig.launched() == ["disk"]


# jobs


def test_a_start_that_cannot_be_leaves_nothing_of_a_unit_that_there_is_not() -> None:
    """web names a handler that no file defines: that is written, and no state is kept of it."""
    rig = Rig(service("web", relations={"on_failure": ("ghost",)}, restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    assert rig.record("job.finished", "ghost").severity is Severity.ERROR
    assert "unit/ghost" not in rig.state
    assert "ghost" not in view.list_units(rig.manager)


def test_what_is_to_be_up_again_counts_as_stopped_no_more() -> None:
    """boss upholds web, whose start waits for slow. app needs web and is restarted meanwhile: it comes with web, and
    does not say that somebody stopped it.
    """
    rig = Rig(
        service("boss", relations={"upholds": (Dependency("web"),)}),
        service("web", relations={"after": (Dependency("slow"),)}),
        service("app", relations=needs("web"), restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0)),
        notify("slow"),
    )
    rig.ask("start", "app")
    rig.spawned("web")
    rig.spawned("app")
    rig.ask("start", "slow", "boss", wait=False)
    rig.spawned("slow")
    rig.spawned("boss")
    rig.ask("stop", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.exited("web", signal=15)
    rig.crash("app")
    rig.later(1)
    rig.up("slow")
    rig.spawned("web")
    assert rig.launched()[-2:] == ["web", "app"]
    assert "dependency" not in [each.fields["result"] for each in rig.records if each.event == "job.finished"]


def test_conditions_of_a_unit_that_lives_on_without_a_file_are_looked_at() -> None:
    """The start half of a restart that was asked for before it went: by the text that it has."""
    web = service("web", relations={"conditions": (Condition("path-exists", "/x"),)})
    rig = Rig(web)
    rig.ask("start", "web")
    rig.checked("web")
    rig.spawned("web")
    rig.ask("restart", "web", wait=False)
    rig.load()
    rig.exited("web", signal=15)
    assert rig.did(CheckConditions)[0].conditions == web.conditions


def test_nothing_of_a_unit_whose_file_went_with_the_manager_is_left() -> None:
    """The manager died, and the file was gone when the next one looked: the unit runs on, and is forgotten with its
    end.
    """
    rig = Rig(service("web"), service("db"))
    rig.ask("start", "web", "db")
    rig.spawned("web")
    rig.spawned("db")
    rig.units = UnitSet(units={"web": rig.units.units["web"]})
    rig.manager = Manager.restore(rig.state, rig.units)
    rig.ask("stop", "db")
    rig.exited("db", signal=15)
    assert rig.events("db")[-1] == "unit.removed"
    assert view.list_units(rig.manager) == ["web"]


def test_a_request_that_was_done_at_once_is_answered_at_once_when_it_comes_again() -> None:
    """Its answer is remembered with its token: nobody waits for a job that has ended."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    first, again = rig.ask("start", "web", token="t"), rig.ask("start", "web", token="t")
    assert rig.replies[again].outcomes == rig.replies[first].outcomes
    assert rig.outcome(again) == {"web": "done"}


def test_a_look_whose_turn_comes_when_all_is_well_is_over() -> None:
    """web has to find db active; the look waits for slow, as db would, and db is up before that."""
    rig = Rig(
        notify("slow"),
        notify("db", relations={"after": (Dependency("slow"),)}),
        service("web", relations={"requisite": (Dependency("db"),)}),
    )
    rig.ask("start", "db", mode=JobMode.IGNORE_DEPENDENCIES, wait=False)
    rig.ask("cancel", arguments={"job": rig.manager.ledger.job_of["db"].id})
    rig.spawned("db")
    rig.ask("start", "slow", wait=False)
    request = rig.ask("start", "web")
    rig.says("db", READY="1")
    rig.up("slow")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}


def test_what_is_upheld_does_not_start_what_somebody_stopped() -> None:
    """boss upholds web, which needs db; db was stopped by hand, and stays so: web waits for it."""
    rig = Rig(
        service("boss", relations={"upholds": (Dependency("web"),)}),
        service("web", relations=needs("db")),
        service("db"),
    )
    rig.ask("start", "db")
    rig.spawned("db")
    rig.ask("stop", "db")
    rig.exited("db", signal=15)
    rig.ask("start", "boss", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.spawned("boss")
    assert rig.launched() == ["db", "boss"]
    assert rig.status("web").sub_state == "dependency"


# words of processes


def test_a_process_that_reloads_for_ever_is_called_up_again() -> None:
    """It said RELOADING=1 and never READY=1: after its start time-out the reload has failed, and it goes on."""
    rig = Rig(notify("web", timeout_start_ns=7 * SECOND_NS))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", RELOADING="1")
    rig.later(6.9)
    assert rig.status("web").sub_state == "reload"
    rig.later(0.1)
    assert rig.status("web").sub_state == "running"
    assert rig.record("unit.ready").severity is Severity.WARNING


@pytest.mark.parametrize(
    ("said", "event", "seconds"),
    [
        ({"refused": "a stranger"}, "unit.error", 60),
        ({"X_ERROR": "no"}, "unit.error", 1),
        ({"WATCHDOG": "1"}, "unit.heartbeat", 1),
    ],
)
def test_what_is_repeated_is_written_once_in_its_time(said: dict[str, str], event: str, seconds: int) -> None:
    """Said four times as often, each is written at the first word and then once in that time, no less."""
    rig = Rig(notify("web", error_threshold=0))
    rig.ask("start", "web")
    rig.up("web")
    fields = {key: word for key, word in said.items() if key.isupper()}
    written = []
    for _ in range(12):
        rig.happen(NotifyReceived("web", 1, 101, fields, refused=said.get("refused")))
        written.append([record.event for record in rig.last.records])
        rig.later(seconds / 4)
    assert written == [[event], [], [], []] * 3


def test_a_process_that_handed_its_place_over_before_it_was_known_ends_without_a_word() -> None:
    """MAINPID= came before the spawn was told; the end of the first process is written and decides nothing."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    spawn_id = rig.spawn_of("web").spawn_id
    rig.happen(NotifyReceived("web", spawn_id, 101, {"READY": "1"}, main_pid=300))
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(code=0), main=False, tree_empty=False))
    assert rig.record("unit.exited").fields["handed_over"] is True
    assert rig.shown("web") == "active/running/success"


def test_what_ends_well_before_its_spawn_is_told_may_remain() -> None:
    """A program that is through at once: its end can be the first that is heard of it."""
    rig = Rig(service("web", remain_after_exit=True))
    request = rig.ask("start", "web")
    rig.exited("web", 0)
    assert rig.shown("web") == "active/exited/success"
    assert rig.outcome(request) == {"web": "done"}


# rollouts


def test_what_is_taken_down_in_its_probation_is_not_restarted_a_second_time() -> None:
    """log ends and takes a down with it: a has had its turn, and is left out."""
    log = service("log", relations={"propagates_stop_to": ("a",)}, restart=NEVER)
    roll = Roll(notify("a"), notify("b"), log)
    roll.rolling("a", "b", probation_s=5)
    roll.cycled("a")
    roll.crash("log")
    roll.exited("a", signal=15)
    assert roll.signalled() == ["b"]
    roll.cycled("b")
    roll.later(5)
    assert roll.fates == {"a": "left-out", "b": "done"}
    assert roll.launched().count("a") == 2


def test_what_failed_for_good_by_the_new_text_is_brought_back() -> None:
    """Its life is over and nothing restarts it; the older text does."""
    roll = Roll(notify("a", restart=NEVER), notify("b"))
    roll.release(2)
    roll.apply()
    roll.exited("a", signal=15)
    roll.spawned("a")
    roll.crash("a")
    assert roll.shown("a").startswith("failed")
    roll.release(1, reverts=True)
    roll.up("a")
    assert roll.fates == {"a": "reverted", "b": "left-out"}


def test_what_happens_to_others_does_not_lengthen_a_probation() -> None:
    """Somebody restarts a in its probation: that begins anew with the new life, and once only."""
    roll = Roll(notify("a"), notify("b"))
    roll.rolling("a", "b", probation_s=5)
    roll.cycled("a")
    roll.ask("restart", "a", wait=False)
    roll.cycled("a")
    roll.later(3)
    roll.says("b", STATUS="busy")
    assert roll.steps["a"] == "probation"
    roll.later(2)
    assert roll.steps == {"a": "done", "b": "restarting"}


# of the sample with seed 22


def test_every_command_after_the_stop_is_waited_for() -> None:
    """The second one of exec-stop-post runs as long as it needs: nothing is signalled meanwhile."""
    rig = Rig(service("web", exec_stop_post=commands("/bin/one", "/bin/two"), restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.spawned("web")
    rig.exited("web", 0)
    assert rig.status("web").sub_state == "stop-post"
    assert rig.did(SignalProcesses) == []
    rig.spawned("web")
    rig.exited("web", 0)
    assert rig.shown("web") == "failed/failed/exit-code"


def test_a_signal_goes_to_all_of_a_unit_whose_main_process_is_gone() -> None:
    """What is left of it can be signalled, its main process cannot."""
    rig = Rig(service("web", timeout_stop_ns=60 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    told = [rig.ask("kill", "web", arguments={"signal": 10, "whom": whom}) for whom in ("all", "main")]
    assert [rig.outcome(each)["web"] for each in told] == ["done", "invalid"]


def test_what_goes_down_with_a_unit_is_among_its_relations() -> None:
    """deps names it, as systemctl list-dependencies names what stops are propagated to."""
    rig = Rig(service("web", relations={"propagates_stop_to": ("log",)}), service("log"))
    assert view.deps(rig.manager, "web") == [("log", "propagates-stop-to", None, "inactive", 1)]


def test_a_restart_of_what_does_not_end_has_failed() -> None:
    """Its old life is stuck: the restart is over, and that is no dependency's fault."""
    rig = Rig(service("web", timeout_stop_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    request = rig.ask("restart", "web")
    rig.later(5)
    assert rig.status("web").sub_state == "stuck"
    assert rig.outcome(request) == {"web": "failed"}

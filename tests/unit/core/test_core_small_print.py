"""What is easily overlooked in the ends of lives, in signals and in what is written of them: each was found by a slip
that nobody noticed (see ``docs/mutation.md``).
"""

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service, target
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from supervisord_py.core import actions, events, rollout_state, state, steps, transaction
from supervisord_py.core.actions import CheckConditions, ExitSupervisor, KillTree, SignalProcesses
from supervisord_py.core.demand import blockers, is_met
from supervisord_py.core.events import (
    Event,
    ExitStatus,
    KeeperLost,
    KeeperReplaced,
    NotifyReceived,
    Origin,
    ProcessSpawned,
    ShutdownForced,
    SpawnFailed,
    StrayAppeared,
    StrayExited,
)
from supervisord_py.core.jobs import collapse
from supervisord_py.core.manager import Manager
from supervisord_py.core.rollout_state import RolloutPhase, RolloutStep
from supervisord_py.core.state import Ending
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import (
    ActiveState,
    JobMode,
    JobState,
    JobType,
    KillMode,
    Restart,
    Result,
    Role,
    ServiceType,
    Severity,
    SubState,
    Until,
)
from supervisord_py.model.unit import SECOND_NS, Condition, Dependency, KillPolicy, RestartPolicy

CORE = "supervisord_py.core."
MODULES = (state, rollout_state, steps, events, actions, transaction)
NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def test_a_start_of_what_starts_already_ends_as_that_does() -> None:
    """The first start was called off and went on without a job: who asks again is told of its failure, and it is not
    tried a second time.
    """
    rig = Rig(notify("web", restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("cancel", arguments={"job": rig.record("job.queued").fields["job"]})
    request = rig.ask("start", "web")
    rig.crash("web")
    assert rig.outcome(request) == {"web": "failed"}
    assert rig.launched() == ["web"]


def test_what_keeps_no_order_waits_for_nobody() -> None:
    """A start without order waits for the end of its own unit, not for what it comes after: nothing else is named."""
    rig = Rig(service("web", relations=needs("db")), notify("db"))
    rig.ask("start", "web", wait=False)
    rig.up("db")
    rig.spawned("web")
    rig.ask("stop", "web", "db", wait=False)
    rig.exited("web", signal=15, empty=False)
    rig.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES, wait=False)
    rig.ask("start", "db", wait=False)
    job = rig.manager.ledger.job_of["web"]
    assert blockers(rig.manager.ledger, job) == []


@pytest.mark.parametrize(("last", "following"), [(0, 1), (1, 2), (7, 8)])
def test_spawns_are_numbered_right_above_those_of_a_lost_keeper(last: int, following: int) -> None:
    """What a lost keeper has left carries numbers up to the last one."""
    manager = Manager(7)
    manager.skip_spawns(last)
    rig = Rig(service("web"), manager=manager)
    rig.ask("start", "web")
    assert rig.spawns[-1].spawn_id == following


def test_a_forced_stop_is_given_up_after_five_seconds() -> None:
    """What SIGKILL does not end within them is stuck, and the supervisor does not wait for it any longer."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.happen(ShutdownForced())
    rig.later(4.9)
    assert "unit.stuck" not in rig.events("web")
    rig.later(0.2)
    assert "unit.stuck" in rig.events("web")
    assert ExitSupervisor(0) in rig.actions


def test_what_a_forced_shutdown_kills_has_not_failed_by_itself() -> None:
    """The kill is an order: no failure is counted, and no success either."""
    rig = Rig(service("web"), service("log", kill=KillPolicy(final_signal=15)))
    rig.ask("start", "web", "log")
    rig.spawned("web")
    rig.spawned("log")
    rig.happen(ShutdownForced())
    rig.exited("web", signal=9)
    rig.exited("log", 0)
    assert rig.status("web").failures == 0
    assert not rig.manager.ledger.state("log").succeeded


def test_a_word_of_what_is_left_does_not_end_the_search_for_a_successor() -> None:
    """The main process of a daemon has ended and its pid file is looked at: READY=1 means nothing then, while
    RELOADING=1 comes too late for a reload.
    """
    for said, active in (("READY", True), ("RELOADING", False)):
        rig = Rig(service("web", type=ServiceType.FORKING, pid_file="/run/web.pid", restart=NEVER))
        rig.ask("start", "web")
        rig.spawned("web")
        rig.exited("web", 0, empty=False)
        rig.followed("web")
        rig.daemon_exited("web", 0, empty=False)
        rig.happen(NotifyReceived("web", None, 1, {said: "1"}))
        assert rig.status("web").active_state == ("active" if active else "deactivating")


def test_what_a_mixed_stop_cannot_kill_has_timed_out() -> None:
    """The main process ended well, and what it left does not die: the stop has failed for the time that it took."""
    rig = Rig(service("web", kill=KillPolicy(mode=KillMode.MIXED), timeout_stop_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", 0, empty=False)
    assert rig.did(KillTree) == [KillTree("web", 9)]
    rig.later(2)
    assert rig.shown("web") == "deactivating/stuck/timeout"


@pytest.mark.parametrize(("code", "sub"), [(0, "reload"), (1, "running")])
def test_a_reload_command_that_ends_leaves_the_process_its_own_reload(code: int, sub: str) -> None:
    """The process has said RELOADING=1 while the command ran: it is waited for, unless the command has failed."""
    rig = Rig(notify("web", exec_reload=commands("/bin/reload")))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("reload", "web")
    rig.spawned("web")
    rig.says("web", RELOADING="1")
    rig.exited("web", code, role=Role.RELOAD)
    assert rig.status("web").sub_state == sub


def test_a_stop_of_what_has_no_process_yet_is_told() -> None:
    """An idle unit that waits for the others is stopped: its start was told, so is its end."""
    rig = Rig(service("web", type=ServiceType.IDLE), notify("db"))
    rig.ask("start", "web", "db", wait=False)
    rig.spawned("db")
    rig.ask("stop", "web")
    assert rig.events("web")[-3:] == ["unit.stopping", "unit.stopped", "job.finished"]


def test_what_outlives_its_main_process_under_the_final_signal_gets_no_other() -> None:
    """The signal has gone to every process of the unit; another one would be a step back."""
    rig = Rig(service("web", timeout_stop_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.later(1)
    assert rig.status("web").sub_state == "stop-sigkill"
    rig.exited("web", signal=9, empty=False)
    assert rig.last.actions == []


@pytest.mark.parametrize("is_after_post", [False, True])
def test_a_stuck_unit_is_asked_again_in_the_phase_that_it_is_in(is_after_post: bool) -> None:
    """send-sigkill is false: another stop sends the first signal again, and what exec-stop-post left is no reason to
    run that once more.
    """
    rig = Rig(
        service(
            "web",
            kill=KillPolicy(send_sigkill=False),
            timeout_stop_ns=SECOND_NS,
            exec_stop_post=commands("/bin/clean") if is_after_post else (),
        )
    )
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web", wait=False)
    if is_after_post:
        rig.exited("web", signal=15)
        rig.spawned("web")
        rig.exited("web", 0, role=Role.STOP_POST, empty=False)
    rig.later(1)
    assert rig.status("web").sub_state == "stuck"
    rig.ask("stop", "web", wait=False)
    assert rig.status("web").sub_state == ("final-sigterm" if is_after_post else "stop-sigterm")
    assert [action.signal for action in rig.did(SignalProcesses)] == [15]


def test_a_wish_does_not_do_without_what_it_has_to_find() -> None:
    """web wants cache, which has to find db there, and db is down: cache is called off, web starts."""
    cache = service("cache", relations={"requisite": (Dependency("db"),)})
    rig = Rig(service("web", relations={"wants": (Dependency("cache"),)}), cache, service("db"))
    request = rig.ask("start", "web")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}
    assert "cache" not in rig.launched()


def test_what_comes_from_nowhere_is_a_warning_unless_it_was_expected() -> None:
    """A stray that somebody put there on purpose is told without alarm."""
    rig = Rig()
    severities = []
    for is_expected in (False, True):
        rig.happen(StrayAppeared(7, "sleep", is_expected))
        severities.append(rig.record("stray.appeared").severity)
    assert severities == [Severity.WARNING, Severity.INFO]


def test_what_has_to_be_found_done_is_not_found_before() -> None:
    """web has to find db with its work done; db has never run."""
    db = Dependency("db", until=Until.EXITED)
    rig = Rig(service("web", relations={"requisite": (db,)}), oneshot("db"))
    assert rig.outcome(rig.ask("start", "web")) == {"web": "dependency"}
    assert rig.launched() == []


def test_the_commands_of_a_start_are_told_whose_end_it_follows() -> None:
    """All up to the main process are; what comes later is not."""
    alert = service(
        "alert",
        exec_condition=commands("/bin/may-it"),
        exec_start_pre=commands("/bin/before"),
        exec_start_post=commands("/bin/after"),
    )
    daemon = service("daemon", type=ServiceType.FORKING)
    rig = Rig(oneshot("job", relations={"on_failure": ("alert", "daemon")}), alert, daemon)
    rig.ask("start", "job")
    rig.spawned("job")
    rig.exited("job", 1)
    for role in (Role.CONDITION, Role.START_PRE, Role.MAIN):
        rig.spawned("alert")
        if role is not Role.MAIN:
            rig.exited("alert", 0, role=role)
    told = {each.role: "MONITOR_UNIT" in dict(each.environment) for each in rig.spawns if each.unit != "job"}
    assert told == {
        Role.CONDITION: True, Role.START_PRE: True, Role.START: True, Role.MAIN: True, Role.START_POST: False,
    }  # fmt: skip


def test_a_failed_assertion_after_a_skipped_start_is_a_failed_start() -> None:
    """That an earlier start was skipped counts no longer: db is not there for what requires it."""
    one, other = Condition("path-exists", "/x"), Condition("path-exists", "/y")
    rig = Rig(service("db", relations={"conditions": (one,), "asserts": (other,)}))
    rig.ask("start", "db")
    rig.checked("db", condition='condition-path-exists = "/x"')
    assert is_met(rig.manager.ledger, "db", Until.READY)
    rig.ask("start", "db")
    rig.checked("db", assertion='assert-path-exists = "/y"')
    assert not is_met(rig.manager.ledger, "db", Until.READY)


def test_what_is_needed_and_has_failed_for_good_meanwhile_is_not_started() -> None:
    """web is to be restarted and needs db, which is just ending; its failure turns out to be its last."""
    once = RestartPolicy(failures=1, jitter=0.0)
    rig = Rig(service("web", relations=needs("db")), service("db", restart=once))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.exited("db", 1, empty=False)
    rig.crash("web")
    rig.later(1)
    rig.emptied("db")
    assert rig.shown("db") == "quarantined/failed/exit-code"
    assert "has failed 1 times" in rig.record("job.finished", "db").fields["message"]
    assert rig.status("web").sub_state == "dependency"


def test_what_contradicts_an_order_is_not_upheld_and_waits_for_nothing() -> None:
    """boss upholds web, and somebody starts old, which conflicts with it: web lacks nothing, it just is not wanted."""
    rig = Rig(
        service("boss", relations={"upholds": (Dependency("web"),)}),
        service("web"),
        notify("old", relations={"conflicts": ("web",)}),
    )
    rig.ask("start", "boss")
    rig.spawned("boss")
    rig.spawned("web")
    rig.ask("start", "old", wait=False)
    rig.exited("web", signal=15)
    assert rig.shown("web") == "inactive/dead/success"
    refused = rig.record("job.finished", "web")
    assert (refused.fields["result"], refused.fields["upheld_by"]) == ("canceled", "boss")
    assert "it is upheld by boss, but its start was refused: " in (rig.status("web").why or "")
    # old is up, and nobody's order is in the way any more: it stays up all the same.
    rig.up("old")
    assert (rig.status("old").active_state, rig.shown("web")) == ("active", "inactive/dead/success")
    rig.ask("stop", "old", wait=False)
    rig.exited("old", signal=15)
    assert rig.launched() == ["boss", "web", "old", "web"]


def test_isolate_begins_nothing_that_only_what_is_up_wants() -> None:
    """What the target needs is up already and stays so: what that would like beside it is not started anew."""
    rig = Rig(target("rescue", **needs("db")), service("db", relations={"wants": (Dependency("log"),)}), service("log"))
    rig.ask("start", "db")
    rig.spawned("log")
    rig.spawned("db")
    rig.ask("stop", "log")
    rig.exited("log", signal=15)
    rig.ask("start", "rescue", mode=JobMode.ISOLATE)
    assert rig.launched().count("log") == 1


def test_what_is_not_said_means_that_nothing_is() -> None:
    """Values are written without their defaults, older states lack what is newer, and events and goals leave out what
    does not apply: a default says no, none, never or nothing, but for what has no such value.
    """
    others = {
        "Job.state": JobState.WAITING, "UnitState.sub": SubState.DEAD, "UnitState.active": ActiveState.INACTIVE,
        "UnitState.result": Result.SUCCESS, "UnitState.ending": Ending.ITSELF, "LastLife.result": Result.SUCCESS,
        "Monitor.result": Result.SUCCESS, "Shutdown.scale_num": 1, "Shutdown.scale_den": 1, "GlobalState.format": 1,
        "GlobalState.next_job": 1, "GlobalState.next_spawn": 1, "GlobalState.shutdown_timeout_ns": 90 * SECOND_NS,
        "RolloutUnit.step": RolloutStep.WAITING, "Rollout.phase": RolloutPhase.FORWARD, "ProcessExited.main": True,
        "ProcessExited.tree_empty": True, "CommandRequested.mode": JobMode.REPLACE, "CommandRequested.wait": True,
        "GlobalState.limits": PoolLimits(), "GlobalState.next_look": 1, "UnitsLoaded.limits": PoolLimits(),
        "UnitsLoaded.shutdown_timeout_ns": 90 * SECOND_NS, "KillTree.signal": 9, "FollowMain.wait": True,
        "Goal.mode": JobMode.REPLACE, "CommandRequested.origin": Origin(), "ShutdownRequested.origin": Origin(),
    }  # fmt: skip
    seen = {}
    for kind in [kind for module in MODULES for kind in vars(module).values()]:
        if not isinstance(kind, type) or not issubclass(kind, Struct) or not kind.__module__.startswith(CORE):
            continue
        for field in fields(kind):
            if field.default is not NODEFAULT and field.default not in (None, False, 0, "", ()):
                seen[f"{kind.__name__}.{field.name}"] = field.default
            if field.default_factory is not NODEFAULT:
                assert not field.default_factory()
    assert seen == others


@pytest.mark.parametrize(("verb", "named"), [("start", True), ("restart", False)])
def test_an_order_begins_the_counters_anew(verb: str, named: bool) -> None:
    """Whoever names a unit in its back-off does, and whoever starts another one that needs it while it is down."""
    slowly = RestartPolicy(delay_ns=60 * SECOND_NS, jitter=0.0)
    rig = Rig(service("web", relations=needs("db")), service("db", restart=slowly if named else NEVER))
    rig.ask("start", "db")
    rig.spawned("db")
    rig.crash("db")
    assert rig.status("db").failures == 1
    rig.ask(verb, "db" if named else "web")
    assert rig.spawns[-1].unit == "db"
    assert rig.status("db").failures == 0


def test_nothing_is_forgotten_of_a_unit_that_there_is_not() -> None:
    """The whole request is refused, by name."""
    rig = Rig(service("web"))
    assert rig.refusal(rig.ask("reset-failed", "web", "wbe")) == "NoSuchUnit"


def test_a_refused_word_is_no_reason_for_what_follows() -> None:
    """MAINPID= of a stranger is told; the end of the process follows from the life, not from that."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    ready = rig.seq - 1
    rig.happen(NotifyReceived("web", None, 1, {}, refused="no child of this unit"))
    assert rig.events()[-1] == "unit.error"
    rig.crash("web")
    assert rig.record("unit.exited").cause is not None and rig.record("unit.exited").cause <= ready


def test_the_plan_of_what_is_so_already_says_how_it_is() -> None:
    """A start of what is up and a stop of what is down change nothing, and the plan says why."""
    rig = Rig(service("web"), service("db"))
    rig.ask("start", "web")
    rig.spawned("web")
    said = [
        rig.replies[rig.ask(verb, unit, plan=True)].outcomes[0] for verb, unit in (("start", "web"), ("stop", "db"))
    ]
    assert [(each.job_type, each.message) for each in said] == [("nop", "it is up"), ("nop", "it is down")]


def test_what_is_to_be_restarted_takes_nothing_down_that_goes_with_it() -> None:
    """db ends by itself while its restart waits for the stop of web: it is on its way up again, log stays."""
    db = notify("db", restart=NEVER, relations={"propagates_stop_to": ("log",)})
    rig = Rig(db, service("log"), service("web", relations={"after": (Dependency("db"),)}))
    rig.ask("start", "db", "log", "web", wait=False)
    rig.up("db")
    rig.spawned("log")
    rig.spawned("web")
    rig.ask("stop", "web", wait=False)
    rig.ask("restart", "db", wait=False)
    rig.crash("db")
    assert rig.shown("log") == "active/running/success"
    assert "log" not in [job.unit for job in rig.manager.ledger.jobs.values()]


def test_what_is_told_of_no_process_means_nothing() -> None:
    """A spawn that nobody asked for, or that is over already, has neither begun nor failed."""
    rig = Rig(service("web", restart=NEVER))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.crash("web")
    said = len(rig.records)
    for number in (spawn_id, 99):
        rig.happen(SpawnFailed(number, "exec", 203, 2))
        rig.happen(ProcessSpawned(number, 7))
    assert len(rig.records) == said


def test_a_stop_of_what_has_done_its_work_is_told() -> None:
    """No process is left of it, and yet it was up."""
    rig = Rig(oneshot("job", remain_after_exit=True))
    rig.ask("start", "job")
    rig.spawned("job")
    rig.exited("job", 0)
    rig.ask("stop", "job")
    assert rig.events("job")[-3:] == ["unit.stopping", "unit.stopped", "job.finished"]


def test_what_is_simply_down_is_started_with_what_recovers() -> None:
    """web needs db and cache; the start of cache was called off, and db comes up in the end."""
    cache = service("cache", relations={"after": (Dependency("db"),)})
    rig = Rig(service("web", relations=needs("db", "cache")), notify("db", restart=NEVER), cache)
    rig.ask("start", "web", wait=False)
    rig.ask("cancel", arguments={"job": rig.manager.ledger.job_of["cache"].id})
    assert rig.status("web").sub_state == "dependency"
    rig.up("db")
    assert rig.launched() == ["db", "cache"]


def test_a_failure_that_is_forgotten_leaves_no_number() -> None:
    """Failures, restarts and the level of the back-off begin at nothing again."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    for _ in range(2):
        rig.spawned("web")
        rig.crash("web")
        rig.later(5)
    rig.ask("reset-failed", "web")
    known = rig.manager.ledger.state("web")
    assert (known.failures, known.restarts, known.backoff) == (0, 0, 0)


def test_a_unit_without_a_process_has_nobody_to_signal_for_a_reload() -> None:
    """It stays as it was, and the reload is done."""
    kind = ServiceType.NOTIFY_RELOAD
    rig = Rig(service("web", type=kind, remain_after_exit=True, exec_reload=commands("/bin/reload")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.says("web", READY="1")
    rig.exited("web", 0)
    request = rig.ask("reload", "web")
    rig.spawned("web")
    rig.exited("web", 0, role=Role.RELOAD)
    assert rig.shown("web") == "active/exited/success"
    assert rig.outcome(request) == {"web": "done"}


def test_a_daemon_that_is_not_found_after_the_last_command_of_its_start_has_failed() -> None:
    """exec-start-post was its last chance to write the pid file."""
    web = service(
        "web", type=ServiceType.FORKING, pid_file="/run/web.pid", exec_start_post=commands("/bin/post"), restart=NEVER
    )
    rig = Rig(web)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    rig.followed("web", "there is no such file")
    rig.spawned("web")
    rig.exited("web", 0, role=Role.START_POST, empty=False)
    rig.followed("web", "there is no such file")
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/protocol"


def test_an_idle_unit_runs_no_longer_than_it_may() -> None:
    """runtime-max-sec holds for every type but oneshot."""
    rig = Rig(service("web", type=ServiceType.IDLE, runtime_max_ns=SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(1.1)
    assert rig.status("web").sub_state == "stop-sigterm"


def test_a_search_for_a_successor_ends_with_its_answer() -> None:
    """That no process is left is told before the answer: the unit waits for that, and ends as the process did."""
    rig = Rig(service("web", type=ServiceType.FORKING, pid_file="/run/web.pid", restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    rig.followed("web")
    rig.daemon_exited("web", 3, empty=False)
    rig.emptied("web")
    assert rig.status("web").active_state == "active"
    rig.followed("web", "nobody")
    assert rig.shown("web") == "failed/failed/exit-code"


def test_a_second_wish_for_a_start_asks_no_second_question() -> None:
    """alert was named by the end of job, and its conditions are looked at; that somebody asks for it too is no reason
    to look once more.
    """
    alert = service("alert", relations={"conditions": (Condition("path-exists", "/x"),)})
    rig = Rig(oneshot("job", relations={"on_failure": ("alert",)}), alert)
    rig.ask("start", "job")
    rig.spawned("job")
    rig.exited("job", 1)
    request = rig.ask("start", "alert")
    assert len([each for each in rig.actions if isinstance(each, CheckConditions)]) == 1
    rig.checked("alert")
    rig.spawned("alert")
    assert rig.outcome(request) == {"alert": "done"}


def test_what_is_queued_when_a_shutdown_is_forced_is_called_off() -> None:
    """Whoever waits for it is told so."""
    rig = Rig(service("web", relations=needs("db")), notify("db"))
    request = rig.ask("start", "web")
    rig.spawned("db")
    rig.happen(ShutdownForced())
    assert rig.outcome(request) == {"web": "canceled"}


@pytest.mark.parametrize("sub", list(SubState))
def test_to_reload_or_start_is_to_reload_what_is_up_and_to_start_anything_else(sub: SubState) -> None:
    """What it means is known in every state."""
    meant = JobType.RELOAD if sub in state.UP else JobType.START
    assert collapse(JobType.RELOAD_OR_START, sub) is meant


def test_in_mode_fail_a_wish_stops_nothing_that_runs() -> None:
    """web wants a, which conflicts with b: it starts without a."""
    rig = Rig(
        service("web", relations={"wants": (Dependency("a"),)}),
        service("a", relations={"conflicts": ("b",)}),
        service("b"),
    )
    rig.ask("start", "b")
    rig.spawned("b")
    rig.ask("start", "web", mode=JobMode.FAIL)
    assert rig.launched() == ["b", "web"]
    assert rig.shown("b") == "active/running/success"


def test_what_has_run_since_was_not_skipped() -> None:
    """db was skipped once, then its condition is gone from its text and it runs: at its end it is not there."""
    condition = Condition("path-exists", "/x")
    rig = Rig(service("db", restart=NEVER, relations={"conditions": (condition,)}))
    rig.ask("start", "db")
    rig.checked("db", condition='condition-path-exists = "/x"')
    rig.load(service("db", restart=NEVER))
    rig.ask("start", "db")
    rig.spawned("db")
    rig.crash("db")
    assert not is_met(rig.manager.ledger, "db", Until.READY)


def test_a_status_text_is_cut_where_it_gets_too_long() -> None:
    """16384 characters are kept of it, and no more."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    for length in (16_384, 16_385):
        rig.says("web", STATUS="x" * length)
        assert rig.status("web").status_text == "x" * 16_384


def test_an_idle_unit_waits_for_what_waits_for_something_else() -> None:
    """old is to start again when its end is over; that is a job that is not done."""
    rig = Rig(service("web", type=ServiceType.IDLE), service("old"))
    rig.ask("start", "old")
    rig.spawned("old")
    rig.ask("stop", "old", wait=False)
    rig.ask("start", "old", wait=False)
    rig.ask("start", "web", wait=False)
    assert "web" not in rig.launched()
    rig.exited("old", signal=15)
    rig.spawned("old")
    assert rig.launched() == ["old", "old", "web"]


def test_a_main_process_that_fails_while_exec_stop_runs_has_failed() -> None:
    """The command goes on, and the life ends as the process did."""
    rig = Rig(service("web", exec_stop=commands("/bin/stop"), restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", 3, role=Role.MAIN)
    assert rig.status("web").sub_state == "stop"
    rig.spawned("web")
    rig.exited("web", 0, role=Role.STOP)
    assert rig.shown("web") == "failed/failed/exit-code"


def test_three_names_are_suggested_at_most() -> None:
    """A typing error among many alike names is answered with the nearest ones."""
    rig = Rig(*(service(f"web-{letter}") for letter in "abcde"))
    refusal = rig.replies[rig.ask("start", "web-x")].refusal
    assert refusal is not None
    assert len(refusal.parameters["suggestions"]) == 3


@pytest.mark.parametrize(
    ("event", "record", "said"),
    [
        (KeeperLost({"pid": 7}), "keeper.lost", {"pid": 7}),
        (KeeperReplaced("1.0", "1.1"), "keeper.reexecuted", {"old": "1.0", "new": "1.1"}),
        (
            KeeperReplaced("1.0", "1.1", "no room"),
            "keeper.reexec-failed",
            {"version": "1.0", "reason": "no room"},
        ),
        (StrayExited(7, ExitStatus(3)), "stray.exited", {"pid": 7, "code": 3, "core": False}),
        (
            StrayExited(7, ExitStatus(signal=11, core_dumped=True)),
            "stray.exited",
            {"pid": 7, "signal": "SIGSEGV", "core": True},
        ),
    ],
)
def test_what_happens_to_no_unit_is_written_and_nothing_else(
    event: Event, record: str, said: dict[str, object]
) -> None:
    """Each has its record, with all that is known."""
    rig = Rig()
    effects = rig.happen(event)
    assert [(each.event, each.fields) for each in effects.records] == [(record, said)]
    assert effects.actions == []


def test_a_process_found_too_late_that_names_another_has_two_ends() -> None:
    """That it names itself changes nothing; one that it hands its place to is told of by the same number."""
    rig = Rig(service("web", type=ServiceType.FORKING, restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    rig.ask("stop", "web", wait=False)
    late = rig.followed("web")
    pid = rig.manager.ledger.state("web").former[-1].pid
    assert pid is not None
    for named, known in ((pid, 1), (pid + 50, 2)):
        rig.happen(NotifyReceived("web", late, pid, {}, main_pid=named))
        assert [each.spawn_id for each in rig.manager.ledger.state("web").former] == [late] * known


def test_what_is_done_without_a_job_has_no_number() -> None:
    """Signals and forgotten failures are done at once; a rollout that is only planned has none either."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    for verb, words in (("reset-failed", {}), ("kill", {"signal": 1}), ("kill", {"signal": 1, "whom": "main"})):
        outcome = rig.replies[rig.ask(verb, "web", arguments=words)].outcomes[0]
        assert (outcome.job, outcome.result) == (0, "done")
    plan = rig.replies[rig.ask("restart", "web", arguments={"max_unavailable": 1}, plan=True)]
    assert [each.job for each in plan.outcomes] == [0]

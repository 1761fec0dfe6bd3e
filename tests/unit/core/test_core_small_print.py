"""What is easily overlooked in the ends of lives, in signals and in what is written of them: each was found by a slip
that nobody noticed (see ``docs/mutation.md``).
"""

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service, target
from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from supervisord_py.core import state
from supervisord_py.core.actions import ExitSupervisor, KillTree, SignalProcesses
from supervisord_py.core.demand import blockers, is_met
from supervisord_py.core.events import NotifyReceived, ShutdownForced, StrayAppeared
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import Ending, RolloutPhase, RolloutStep
from supervisord_py.model.states import (
    ActiveState,
    JobMode,
    JobState,
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
    assert rig.shown("db") == "failed/failed/exit-code"
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
    assert rig.events("web")[-1] == "unit.stopped" or rig.record("job.finished", "web").fields["result"] == "done"


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


def test_what_was_never_written_means_that_nothing_happened() -> None:
    """Values are written without their defaults, and older states lack what is newer: a default says no, none, never
    or nothing, but for what has no such value.
    """
    others = {
        "Job.state": JobState.WAITING, "UnitState.sub": SubState.DEAD, "UnitState.active": ActiveState.INACTIVE,
        "UnitState.result": Result.SUCCESS, "UnitState.ending": Ending.ITSELF, "LastLife.result": Result.SUCCESS,
        "Monitor.result": Result.SUCCESS, "Shutdown.scale_num": 1, "Shutdown.scale_den": 1, "GlobalState.format": 1,
        "GlobalState.next_job": 1, "GlobalState.next_spawn": 1, "GlobalState.shutdown_timeout_ns": 90 * SECOND_NS,
        "RolloutUnit.step": RolloutStep.WAITING, "Rollout.phase": RolloutPhase.FORWARD,
    }  # fmt: skip
    seen = {}
    for kind in vars(state).values():
        if isinstance(kind, type) and issubclass(kind, Struct) and kind is not Struct:
            for field in fields(kind):
                if field.default is not NODEFAULT and field.default not in (None, False, 0, ""):
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

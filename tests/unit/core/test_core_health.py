"""Health checks: when they are asked, what their answers mean, and what follows."""

from typing import Any

import pytest
from core_rig import Rig, commands, notify, service

from supervisord_py.core import view
from supervisord_py.core.actions import KillTree, LookAtProcesses, ReleaseUnit, RunProbe, SpawnProcess
from supervisord_py.core.events import ExitStatus, ProbeFinished, ProcessExited, ProcessSpawned, TreeEmptied, UnitFrozen
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import ProbeAction, ProbeKind, Role, ServiceType, Until
from supervisord_py.model.unit import SECOND_NS, Command, Dependency, Probe, Unit

HOUR_NS = 3600 * SECOND_NS


def probe(name: str = "http", kind: ProbeKind = ProbeKind.LIVENESS, **keys: Any) -> Probe:
    if not {"exec", "tcp", "file", "log"} & keys.keys():
        keys["http"] = "http://localhost/"
    return Probe(name, kind, **keys)


def checked(*probes: Probe, relations: dict[str, Any] | None = None, **keys: Any) -> Unit:
    return service("web", relations={"health": probes, **(relations or {})}, **keys)


def asked(rig: Rig) -> list[str]:
    """The checks that were asked of the host since the last call."""
    found = [action.name for action in rig.actions[rig.seen :] if isinstance(action, RunProbe)]
    rig.seen = len(rig.actions)
    return found


def up(*probes: Probe, **keys: Any) -> Rig:
    rig = Rig(checked(*probes, **keys))
    rig.ask("start", "web")
    rig.spawned("web")
    return rig


def answer(
    rig: Rig, ok: bool | None, times: int = 1, check: str = "http", detail: str = "", *, stopped: bool = False
) -> None:
    """The next so many questions are answered, and the processes looked at where that is asked for."""
    for _ in range(times):
        for _ in range(200):
            if asked(rig):
                break
            rig.later(0.5)
        rig.probed("web", check, ok, detail or ("200 OK" if ok else "connection refused"))
        if isinstance(rig.actions[-1], LookAtProcesses):
            rig.looked("web", stopped=stopped)


def test_a_unit_is_ready_when_its_readiness_checks_are_good() -> None:
    """RUNNING is never said before READY, whoever has to say it."""
    rig = Rig(checked(probe("http", ProbeKind.READINESS)), service("app", relations={"requires": (Dependency("web"),)}))
    request = rig.ask("start", "app")
    rig.spawned("web")
    assert rig.shown("web") == "activating/start/success"
    answer(rig, False)
    why = view.why(rig.manager, "web")[0]
    assert (why.kind, why.message) == (
        "probe",
        "its readiness check http failed once (http http://localhost/): connection refused",
    )
    assert [spawn.unit for spawn in rig.spawns] == ["web"]
    answer(rig, True)
    assert rig.shown("web") == "active/running/success"
    rig.spawned("app")
    assert rig.outcome(request)["app"] == "done"


def test_ready_and_checks_both_have_to_hold() -> None:
    unit = notify("web", relations={"health": (probe("http", ProbeKind.READINESS),)})
    rig = Rig(unit)
    rig.ask("start", "web")
    rig.spawned("web")
    assert asked(rig) == [], "it has not said READY"
    rig.says("web", READY="1")
    rig.says("web", READY="1")
    assert rig.shown("web") == "activating/start/success"
    answer(rig, True)
    assert rig.shown("web") == "active/running/success"
    assert [record.event for record in rig.records].count("unit.ready") == 1


def test_a_start_whose_checks_never_get_good_times_out() -> None:
    rig = up(probe("http", ProbeKind.READINESS), timeout_start_ns=60 * SECOND_NS)
    answer(rig, False, 5)
    rig.later(60)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"


def test_an_exit_before_the_checks_are_good_is_a_failure() -> None:
    rig = up(probe("http", ProbeKind.READINESS))
    rig.exited("web", 0)
    assert rig.status("web").result == "protocol"
    assert "before its health checks were good" in rig.record("unit.restart-scheduled").fields["message"]


def test_thresholds_count_answers_in_a_row() -> None:
    rig = up(probe(failure_threshold=3, action=ProbeAction.NONE))
    answer(rig, True)
    for _ in range(4):
        answer(rig, False, 2)
        answer(rig, True)
    told = [record.fields["good"] for record in rig.records if record.event == "unit.health"]
    assert told == [True], "two in a row are not three"
    answer(rig, False, 5)
    answer(rig, True)
    told = [record.fields["good"] for record in rig.records if record.event == "unit.health"]
    assert told == [True, False, True], "only what turns is told"


def test_a_success_threshold() -> None:
    rig = up(probe("http", ProbeKind.READINESS, success_threshold=3))
    answer(rig, True, 2)
    assert rig.shown("web") == "activating/start/success"
    answer(rig, True)
    assert rig.shown("web") == "active/running/success"


def test_a_liveness_check_that_fails_restarts_the_unit_and_counts() -> None:
    rig = up(probe(), exec_stop=commands("/bin/bye"))
    answer(rig, True)
    answer(rig, False, 2)
    asked(rig)
    rig.later(11)
    rig.probed("web", "http", False, "connection refused")
    assert rig.shown("web") == "active/running/success", "the processes are looked at first"
    rig.looked("web")
    assert rig.spawns[-1].role is Role.STOP
    message = "its liveness check http failed 3 times in a row: connection refused"
    assert rig.record("unit.stopping").fields["reason"] == message
    rig.exited("web", 0, role=Role.STOP)
    rig.exited("web", 0, role=Role.MAIN)
    assert rig.shown("web") == "activating/auto-restart/health"
    assert rig.status("web").failures == 1
    rig.later(1)
    rig.spawned("web")
    assert rig.manager.ledger.state("web").probes["http"].good is None, "what was found belongs to the old life"


def test_a_stopped_process_is_not_blamed() -> None:
    """SIGSTOP keeps it from answering: what it did not answer then counts as nothing when it runs again, nor does an
    answer to a question that may be from before."""
    rig = up(probe())
    answer(rig, True)
    answer(rig, False, 2)
    answer(rig, False, 5, stopped=True)
    assert rig.status("web").health[0].good is True
    answer(rig, False)
    assert rig.shown("web") == "active/running/success"
    answer(rig, True)
    answer(rig, False, 2)
    assert rig.shown("web") == "active/running/success"
    answer(rig, False)
    assert rig.shown("web") == "deactivating/stop-sigterm/health"


def test_a_stop_that_is_over_when_the_last_bad_answer_comes_is_not_held_against_a_unit() -> None:
    """Found by an hour of real faults: bad answers of the time of a SIGSTOP counted with the first one after it."""
    rig = up(probe(failure_threshold=2))
    answer(rig, False, 3, stopped=True)
    answer(rig, False)
    assert rig.shown("web") == "active/running/success"
    answer(rig, True)
    rig.later(100)
    assert rig.shown("web") == "active/running/success"


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (ProbeAction.NONE, "active/running/success"),
        (ProbeAction.STOP, "failed/failed/health"),
        (ProbeAction.KILL, "activating/auto-restart/health"),
        (ProbeAction.RESTART, "activating/auto-restart/health"),
    ],
)
def test_actions(action: ProbeAction, expected: str) -> None:
    rig = up(probe(failure_threshold=1, action=action))
    answer(rig, False)
    if action is not ProbeAction.NONE:
        assert any(isinstance(each, KillTree) for each in rig.actions) is (action is ProbeAction.KILL)
        rig.exited("web", signal=9 if action is ProbeAction.KILL else 15)
    assert rig.shown("web") == expected
    if action is ProbeAction.STOP:
        rig.later(1000)
        assert len(rig.spawns) == 1


def test_startup_checks_go_first() -> None:
    """The liveness check of a slow starter is not asked before it has come up, and the startup check not after."""
    rig = up(probe("boot", ProbeKind.STARTUP, interval_ns=SECOND_NS), probe("live"))
    rig.later(0)
    assert asked(rig) == ["boot"]
    rig.probed("web", "boot", False)
    rig.looked("web")
    rig.later(1.2)
    assert asked(rig) == ["boot"]
    rig.probed("web", "boot", True)
    assert rig.shown("web") == "active/running/success"
    rig.later(0)
    assert asked(rig) == ["live"]
    rig.later(100)
    assert "boot" not in asked(rig)


def test_a_startup_check_that_fails_for_good_ends_the_start() -> None:
    rig = up(probe("boot", ProbeKind.STARTUP, failure_threshold=2))
    answer(rig, False, 2, "boot")
    assert rig.shown("web") == "deactivating/stop-sigterm/health"


def test_the_first_question_waits_for_its_delay_and_the_next_for_the_interval() -> None:
    rig = up(probe(initial_delay_ns=30 * SECOND_NS, interval_ns=10 * SECOND_NS))
    rig.later(29)
    assert asked(rig) == []
    rig.later(1)
    assert asked(rig) == ["http"]
    rig.later(60)
    assert asked(rig) == [], "never twice at a time"
    rig.probed("web", "http", True)
    rig.later(1.1)
    assert asked(rig) == ["http"], "it is late already (a tenth of the interval is jitter)"
    rig.probed("web", "http", True)
    rig.later(9.9)
    assert asked(rig) == []
    rig.later(1.2)
    assert asked(rig) == ["http"]


def test_an_answer_of_an_old_life_changes_nothing() -> None:
    rig = up(probe(failure_threshold=1))
    rig.later(0)
    old = next(action for action in rig.actions if isinstance(action, RunProbe))
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    rig.happen(ProbeFinished(old.probe_id, "web", "http", False, "connection refused"))
    assert rig.manager.ledger.state("web").probes["http"].good is None
    assert not any(isinstance(action, LookAtProcesses) for action in rig.actions)


def test_a_new_manager_asks_again() -> None:
    rig = up(probe())
    rig.later(0)
    pending = Manager.restore(rig.state, rig.units).pending_actions()
    assert [type(action) for action in pending] == [RunProbe]


def test_until_healthy_waits_for_every_check() -> None:
    app = service("app", relations={"requires": (Dependency("web", until=Until.HEALTHY),)})
    rig = Rig(checked(probe()), app)
    rig.ask("start", "app")
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.shown("app") == "queued/dependency/success"
    answer(rig, True)
    assert rig.spawns[-1].unit == "app"


def test_a_paused_unit_is_not_asked() -> None:
    rig = up(probe())
    answer(rig, True)
    rig.ask("pause", "web")
    rig.happen(UnitFrozen("web", True))
    rig.later(100)
    assert asked(rig) == []
    rig.ask("resume", "web")
    rig.happen(UnitFrozen("web", False))
    rig.later(2)
    assert asked(rig) == ["http"]


def test_a_check_of_the_output_that_was_good_is_not_asked_again() -> None:
    """What a life has said it has said, wherever rotation has put it since."""
    rig = up(probe("said", log="ready"))
    answer(rig, True, check="said")
    rig.later(1000)
    assert asked(rig) == []
    assert rig.manager.ledger.state("web").probes["said"].good is True


def test_a_check_that_could_not_be_made_says_nothing() -> None:
    """The supervisor had no means to look: that is not held against the unit, and it looks again."""
    rig = up(probe(failure_threshold=1))
    answer(rig, None, 3, detail="too many open files")
    (found,) = rig.status("web").health
    assert (found.good, found.detail, found.checked_at) == (None, "too many open files", None)
    answer(rig, True)
    answer(rig, None, 3, detail="too many open files")
    (found,) = rig.status("web").health
    assert (found.good, found.detail) == (True, "200 OK")
    assert rig.shown("web") == "active/running/success"


def test_status_has_what_each_check_has_found() -> None:
    rig = up(probe("http", ProbeKind.READINESS), probe("cmd", exec=Command(("/bin/check",)), initial_delay_ns=HOUR_NS))
    answer(rig, False, detail="503")
    answer(rig, True, detail="200")
    http, cmd = rig.status("web").health
    assert (http.name, http.kind, http.check, http.good, http.detail) == ("http", "readiness", "http", True, "200")
    assert http.checked_at is not None
    assert (cmd.name, cmd.check, cmd.good, cmd.checked_at) == ("cmd", "exec", None, None)
    rig.ask("stop", "web")
    assert [check.good for check in rig.status("web").health] == [None, None], "what was found belongs to the life"


def test_a_reload_that_has_a_check_look_at_something_else_begins_anew() -> None:
    rig = up(probe("said", log="ready"), probe("port", tcp="localhost:1"))
    answer(rig, True, check="said")
    answer(rig, True, check="port")
    rig.load(checked(probe("said", log="steady"), probe("port", tcp="localhost:1", interval_ns=SECOND_NS)))
    found = rig.manager.ledger.state("web").probes
    assert (found["said"].good, found["port"].good) == (None, True), "how often a check is made is nothing else"
    answer(rig, True, check="said")
    assert rig.manager.ledger.state("web").probes["said"].good is True


def test_a_reload_brings_checks_and_takes_them_away() -> None:
    rig = up(probe("a"))
    rig.later(0)
    asked(rig)
    rig.load(checked(probe("b")))
    rig.later(0)
    assert asked(rig) == ["b"]
    assert list(rig.manager.ledger.state("web").probes) == ["b"]
    rig.load(checked())
    rig.later(100)
    assert asked(rig) == []


# commands


def command(**keys: Any) -> Probe:
    return probe("cmd", exec=Command(("/bin/check",)), **keys)


def check_of(rig: Rig) -> SpawnProcess:
    return [spawn for spawn in rig.spawns if spawn.role is Role.PROBE][-1]


def test_a_command_is_a_process_beside_the_life() -> None:
    """It has an owner of its own, so that it is killed as a tree without anything of the unit."""
    rig = up(command(failure_threshold=1, timeout_ns=2 * SECOND_NS))
    rig.later(0)
    spawn = check_of(rig)
    assert spawn.unit == f"web!{spawn.spawn_id}"
    assert dict(spawn.environment)["SUPERVISORD_PY_UNIT"] == "web"
    rig.happen(ProcessSpawned(spawn.spawn_id, 900))
    assert rig.shown("web") == "active/running/success"
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(0)))
    assert rig.actions[-1] == ReleaseUnit(spawn.unit)
    assert rig.manager.ledger.state("web").probes["cmd"].good is True
    assert rig.manager.ledger.beside == {}


def test_b_af_5_a_command_that_hangs_is_killed_as_a_tree_and_has_failed() -> None:
    rig = up(command(failure_threshold=1, action=ProbeAction.NONE, timeout_ns=2 * SECOND_NS))
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessSpawned(spawn.spawn_id, 900))
    rig.later(2)
    assert KillTree(spawn.unit) in rig.actions
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(signal=9), tree_empty=False))
    found = rig.manager.ledger.state("web").probes["cmd"]
    assert (found.good, found.detail) == (False, "it did not end within 2s, and was killed")
    assert rig.manager.ledger.beside, "a grandchild is left"
    rig.happen(TreeEmptied(spawn.unit))
    assert rig.manager.ledger.beside == {}
    assert rig.status("web").failures == 0


def test_a_command_that_does_not_die_has_failed_all_the_same() -> None:
    """It hangs in the kernel: the unit is judged, and it is asked again when that is over."""
    rig = up(command(failure_threshold=1, action=ProbeAction.NONE, timeout_ns=2 * SECOND_NS))
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessSpawned(spawn.spawn_id, 900))
    rig.later(2)
    assert rig.manager.ledger.state("web").probes["cmd"].good is None
    rig.later(10)
    assert rig.manager.ledger.state("web").probes["cmd"].good is False
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(signal=9)))
    assert rig.manager.ledger.state("web").probes["cmd"].row == 1
    assert rig.manager.ledger.beside == {}


def test_a_command_is_not_blamed_for_a_keeper_that_was_held_up() -> None:
    """Found by an hour of real faults: a stopped keeper makes nothing and tells no end, and checks timed out for it."""
    rig = up(command(failure_threshold=1, timeout_ns=2 * SECOND_NS))
    rig.later(0)
    late = check_of(rig)
    rig.later(2)
    assert KillTree(late.unit) in rig.actions
    rig.happen(ProcessSpawned(late.spawn_id, 900))
    rig.happen(ProcessExited(late.spawn_id, 900, ExitStatus(signal=9)))
    assert rig.manager.ledger.state("web").probes["cmd"].good is None, "it was not made in time: nobody knows"
    while check_of(rig) is late:
        rig.later(0.1)
    untold = check_of(rig)
    rig.later(1)
    rig.happen(ProcessSpawned(untold.spawn_id, 901))
    rig.later(1.5)
    assert KillTree(untold.unit) not in rig.actions, "its time counts from its start"
    rig.later(1)
    assert KillTree(untold.unit) in rig.actions
    rig.happen(ProcessExited(untold.spawn_id, 901, ExitStatus(code=0)))
    assert rig.manager.ledger.state("web").probes["cmd"].good is True, "it had ended before it was killed"


def test_what_a_command_leaves_is_killed() -> None:
    rig = up(command())
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(0), tree_empty=False))
    assert rig.actions[-1] == KillTree(spawn.unit)
    assert rig.manager.ledger.state("web").probes["cmd"].ok is True


def test_the_end_of_a_unit_ends_its_checks() -> None:
    rig = up(command(timeout_ns=HOUR_NS))
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessSpawned(spawn.spawn_id, 900))
    rig.ask("stop", "web")
    assert KillTree(spawn.unit) in rig.actions
    rig.exited("web", signal=15, role=Role.MAIN)
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(signal=9)))
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.manager.ledger.beside == {}


def test_the_supervisor_does_not_exit_before_its_checks() -> None:
    rig = up(command(timeout_ns=HOUR_NS))
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessSpawned(spawn.spawn_id, 900))
    rig.shut_down(90)
    rig.exited("web", signal=15, role=Role.MAIN)
    names = [type(action).__name__ for action in rig.actions]
    assert "ExitSupervisor" not in names
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(signal=9)))
    assert [type(action).__name__ for action in rig.actions][-1] == "ExitSupervisor"


def test_a_check_whose_end_nobody_saw_says_nothing() -> None:
    """The keeper was killed meanwhile: that is not held against the unit."""
    rig = up(command(failure_threshold=1))
    rig.later(0)
    spawn = check_of(rig)
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus()))
    assert rig.manager.ledger.state("web").probes["cmd"].good is None
    rig.later(12)
    assert check_of(rig) is not spawn


def test_a_unit_that_is_bound_to_a_healthy_one_does_not_start_while_that_is_ill() -> None:
    """Bound or required: ``until = "healthy"`` means the same. One that is up already stays so."""
    bound = {"binds_to": (Dependency("web", until=Until.HEALTHY),)}
    rig = Rig(checked(probe("http", ProbeKind.READINESS, failure_threshold=1)), service("app", relations=bound))
    rig.ask("start", "web")
    rig.spawned("web")
    answer(rig, True)
    answer(rig, False)
    rig.ask("start", "app")
    assert rig.shown("app") == "inactive/dependency/dependency"
    answer(rig, True)
    rig.up("app")
    answer(rig, False)
    assert rig.shown("app") == "active/running/success"


def test_a_daemon_that_is_gone_before_it_got_ready_is_not_checked_any_more() -> None:
    """Nobody knows its main process, and none is left: its start has failed, where its checks went on for ever."""
    rig = Rig(checked(probe("http", ProbeKind.READINESS), type=ServiceType.FORKING, guess_main_pid=False))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    assert rig.status("web").active_state == "activating"
    rig.emptied("web")
    assert rig.status("web").result == "protocol"

"""pause and resume: what stands still, what ends it, and what is answered when."""

from core_rig import Rig, commands, needs, notify, service

from supervisord_py.core import view
from supervisord_py.core.actions import FreezeUnit, SignalProcesses, ThawUnit
from supervisord_py.core.events import Origin, UnitFrozen
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import Restart, Role
from supervisord_py.model.unit import SECOND_NS, RestartPolicy

ALICE = Origin(uid=1000, user="alice")


def running(**keys: object) -> Rig:
    rig = Rig(service("web", **keys))
    rig.ask("start", "web")
    rig.spawned("web")
    return rig


def frozen(rig: Rig, is_frozen: bool = True, detail: str = "") -> None:
    rig.happen(UnitFrozen("web", is_frozen, detail))


def paused(**keys: object) -> Rig:
    rig = running(**keys)
    rig.ask("pause", "web", origin=ALICE, reason="disk is full")
    frozen(rig)
    return rig


def last_actions(rig: Rig) -> list[type]:
    return [type(action) for action in rig.last.actions]


def test_b_po_19_it_is_paused_when_it_stands_still_and_not_before() -> None:
    rig = running()
    request = rig.ask("pause", "web", origin=ALICE, reason="disk is full")
    assert last_actions(rig) == [FreezeUnit]
    assert rig.shown("web") == "active/running/success"
    assert request not in rig.replies
    frozen(rig)
    assert rig.shown("web") == "active/paused/success"
    assert rig.outcome(request) == {"web": "done"}
    assert rig.record("unit.paused").fields == {"by": "alice (uid 1000)", "reason": "disk is full"}
    why = view.why(rig.manager, "web")[0]
    assert (why.message, why.advice) == ("it was paused by alice (uid 1000): disk is full", "supctl resume web")
    request = rig.ask("resume", "web")
    assert last_actions(rig) == [ThawUnit]
    assert rig.shown("web") == "active/paused/success"
    frozen(rig, False)
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "done"}


def test_what_cannot_be_frozen_is_told_and_runs_on() -> None:
    rig = running()
    request = rig.ask("pause", "web")
    frozen(rig, False, "the freezer said EBUSY")
    assert rig.shown("web") == "active/running/success"
    assert rig.outcome(request) == {"web": "failed"}
    assert "the freezer said EBUSY" in rig.record("unit.error").fields["message"]


def test_only_what_runs_can_be_paused() -> None:
    rig = Rig(notify("web"))
    request = rig.ask("pause", "web")
    assert rig.outcome(request) == {"web": "invalid"}
    rig.ask("start", "web")
    rig.spawned("web")
    assert rig.outcome(rig.ask("pause", "web")) == {"web": "invalid"}
    assert not any(isinstance(action, FreezeUnit) for action in rig.actions)


def test_times_stand_still_with_it() -> None:
    """The longest run, the time of health, and every silence."""
    policy = RestartPolicy(restart=Restart.ALWAYS, delay_ns=SECOND_NS, jitter=0.0, reset_ns=100 * SECOND_NS)
    rig = running(runtime_max_ns=60 * SECOND_NS, watchdog_ns=10 * SECOND_NS, restart=policy)
    rig.crash("web")
    rig.later(2)
    rig.spawned("web")
    rig.says("web", WATCHDOG="1")
    rig.later(5)
    rig.ask("pause", "web")
    frozen(rig)
    rig.later(3600)
    assert rig.shown("web") == "active/paused/success"
    assert rig.status("web").failures == 1, "a pause is no health"
    rig.ask("resume", "web")
    frozen(rig, False)
    for _ in range(13):
        rig.says("web", WATCHDOG="1")
        rig.later(4)
    assert rig.shown("web") == "active/running/success"
    rig.says("web", WATCHDOG="1")
    rig.later(5)
    assert rig.status("web").result == "timeout", "60 seconds of running are over"


def test_a_stop_thaws_it_first() -> None:
    """What is frozen hears no signal, and runs no stop command."""
    rig = paused(exec_stop=commands("/bin/bye"))
    rig.ask("stop", "web")
    assert last_actions(rig)[0] is ThawUnit
    assert rig.spawns[-1].role is Role.STOP
    rig.exited("web", 0, role=Role.STOP)
    assert isinstance(rig.actions[-1], SignalProcesses)
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.shown("web") == "inactive/dead/success"


def test_its_death_is_its_end() -> None:
    """The OOM killer does not ask whether a process is paused; what is left of the unit is thawed and ended."""
    rig = paused()
    rig.exited("web", signal=9, empty=False)
    assert any(isinstance(action, ThawUnit) for action in rig.last.actions)
    assert rig.shown("web") == "deactivating/stop-sigterm/signal"
    rig.emptied("web")
    assert rig.shown("web") == "activating/auto-restart/signal"


def test_a_unit_that_ended_before_it_stood_still_is_thawed() -> None:
    rig = running()
    request = rig.ask("pause", "web")
    rig.ask("stop", "web")
    frozen(rig)
    assert last_actions(rig) == [ThawUnit]
    assert rig.outcome(request) == {"web": "canceled"}


def test_b_af_8_a_paused_unit_never_runs_a_new_life() -> None:
    """In a system before this one a paused agent ran again at its next period (B-AF-8)."""
    rig = paused()
    rig.ask("start", "web")
    rig.later(100_000)
    assert len(rig.spawns) == 1
    assert rig.shown("web") == "active/paused/success"


def test_a_restart_of_a_paused_unit() -> None:
    rig = paused()
    rig.ask("restart", "web")
    assert last_actions(rig) == [ThawUnit, SignalProcesses]
    rig.exited("web", signal=15)
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"


def test_a_reload_of_a_paused_unit_is_refused() -> None:
    rig = paused(exec_reload=commands("/bin/reload"))
    request = rig.ask("reload", "web")
    assert rig.outcome(request) == {"web": "invalid"}


def test_dependents_find_it_up() -> None:
    rig = Rig(service("web"), service("app", relations=needs("web")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("pause", "web")
    frozen(rig)
    rig.ask("start", "app")
    assert rig.spawns[-1].unit == "app"


def test_pausing_twice_is_one_pause() -> None:
    rig = running()
    first, second = rig.ask("pause", "web"), rig.ask("pause", "web")
    opposite = rig.ask("resume", "web")
    assert rig.outcome(opposite) == {"web": "canceled"}
    frozen(rig)
    assert rig.outcome(first) == rig.outcome(second) == {"web": "done"}
    assert sum(isinstance(action, FreezeUnit) for action in rig.actions) == 1
    assert rig.outcome(rig.ask("pause", "web")) == {"web": "done"}


def test_a_new_manager_asks_again() -> None:
    rig = running()
    rig.ask("pause", "web")
    assert Manager.restore(rig.state, rig.units).pending_actions() == [FreezeUnit("web")]


def test_a_shutdown_ends_what_is_paused() -> None:
    rig = paused()
    rig.shut_down(90)
    assert [type(action) for action in rig.last.actions] == [ThawUnit, SignalProcesses]


def test_a_thaw_that_died_with_its_manager_is_asked_for_again() -> None:
    """What stood still heard no signal, until it was killed for not ending."""
    rig = paused()
    rig.ask("stop", "web", wait=False)
    assert ThawUnit in last_actions(rig)
    assert Manager.restore(rig.state, rig.units).pending_actions() == [ThawUnit("web")]
    frozen(rig, False)
    assert Manager.restore(rig.state, rig.units).pending_actions() == []


def test_the_plan_of_a_pause_that_is_under_way_is_answered_at_once() -> None:
    """It waited for the pause itself, like an order."""
    rig = running()
    rig.ask("pause", "web", wait=False)
    request = rig.ask("pause", "web", plan=True)
    assert rig.outcome(request) == {"web": "queued"}


def test_a_pause_of_a_unit_that_goes_away_is_answered() -> None:
    """Its file was gone and it ended before it stood still: the unit was forgotten, and who waited for it too."""
    rig = running(restart=RestartPolicy(restart=Restart.NO))
    request = rig.ask("pause", "web")
    rig.load(service("other"))
    rig.exited("web", 0)
    assert "web" in rig.manager.ledger.states
    frozen(rig, False, "no process of it is left")
    assert rig.outcome(request) == {"web": "failed"}
    assert "web" not in rig.manager.ledger.states


def test_a_pause_that_the_end_of_the_supervisor_overtakes_is_answered() -> None:
    """Nobody told who waited for it."""
    rig = running()
    request = rig.ask("pause", "web")
    rig.shut_down(90)
    rig.exited("web", signal=15)
    assert rig.outcome(request) == {"web": "canceled"}

"""Rollouts in which some units are run by the clock: one that waits for its time is up."""

from typing import Any

from core_rig import Rig, commands, notify, oneshot
from msgspec.structs import replace

from supervisord_py.core.actions import RevertUnits
from supervisord_py.model.states import Role
from supervisord_py.model.unit import SECOND_NS, Timer, Unit

HOURLY: dict[str, Any] = {"timer": Timer(on_active_ns=(3600 * SECOND_NS,), accuracy_ns=0)}


def newer(unit: Unit) -> Unit:
    assert unit.service is not None
    return replace(unit, service=replace(unit.service, exec_start=commands("/bin/new")))


def roll(rig: Rig, verb: str, *units: str, probation: int = 0) -> int:
    how = {"max_unavailable": 1, "probation_ns": probation * SECOND_NS, "reverts": verb == "apply"}
    return rig.ask(verb, *units, wait=True, arguments=how)


def up() -> Rig:
    rig = Rig(oneshot("backup", relations=HOURLY), notify("web"), oneshot("zip", relations=HOURLY))
    rig.ask("start", "backup", "web", "zip")
    rig.up("web")
    return rig


def test_a_rolling_restart_goes_on_past_a_timer() -> None:
    """Restarted it waits again, at once, and the next unit's turn has come; none is run."""
    rig = up()
    request = roll(rig, "restart", "backup", "web", "zip")
    assert rig.shown("backup") == "active/waiting/success"
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.exited("web", signal=15)
    assert request not in rig.replies
    rig.up("web")
    assert rig.outcome(request) == {"backup": "done", "web": "done", "zip": "done"}
    assert rig.launched() == ["web", "web"]
    assert rig.record("rollout.finished").fields["result"] == "done"


def test_a_timer_that_waits_is_good_through_its_probation() -> None:
    """A run that ends well in it is no failure, and no new beginning: one that is run often would never be through."""
    rig = up()
    request = roll(rig, "restart", "backup", "web", probation=60)
    rig.later(30)
    rig.ask("trigger", "backup", wait=False)
    rig.spawned("backup")
    rig.exited("backup", 0)
    assert rig.shown("backup") == "active/waiting/success"
    rig.later(20)
    rig.ask("trigger", "backup", wait=False)
    rig.spawned("backup")
    assert rig.shown("web") == "active/running/success"
    rig.later(10)
    assert rig.shown("web") == "deactivating/stop-sigterm/success", "sixty seconds after it was armed, in a run"
    rig.exited("backup", 0, role=Role.MAIN)
    rig.exited("web", signal=15)
    rig.up("web")
    rig.later(60)
    assert rig.outcome(request) == {"backup": "done", "web": "done"}


def test_a_run_that_fails_in_the_probation_ends_the_rollout() -> None:
    """The timer waits on, but what was rolled out does not work."""
    rig = up()
    request = roll(rig, "restart", "backup", "web", probation=60)
    rig.later(30)
    rig.ask("trigger", "backup", wait=False)
    rig.spawned("backup")
    rig.exited("backup", 5)
    assert rig.outcome(request) == {"backup": "failed", "web": "canceled"}
    assert rig.record("rollout.failed").fields["message"].startswith("backup did not stay up (exit-code)")
    assert rig.shown("backup") == "active/waiting/exit-code"
    assert rig.shown("web") == "active/running/success"


def test_apply_takes_a_timer_along_and_goes_back_with_it() -> None:
    """Its new text is there when it waits again; when web does not come up by its own, both go back."""
    rig = up()
    old = tuple(rig.units.units.values())
    rig.load(*(newer(unit) for unit in old))
    request = roll(rig, "apply", "backup", "web", probation=5)
    rig.later(5)
    rig.exited("web", signal=15)
    rig.spawned("web")
    rig.crash("web")
    assert rig.did(RevertUnits)
    rig.load(*old, reverts=True)
    rig.spawned("web")
    rig.says("web", READY="1")
    rig.later(30)
    assert rig.outcome(request)["web"] == "failed"
    assert rig.shown("backup") == "active/waiting/success"
    assert rig.manager.ledger.unit("backup") == old[0]

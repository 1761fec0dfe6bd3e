"""How the units of a rollout fare once they are up by the new text: on probation, good, failed, or not its matter.

Theory of operation
-------------------
From the moment when a unit is ready the life that it has is *watched*. One that ends by itself, in the probation or
after it, is the failure of the rollout; the end that a oneshot comes to is none, and no end is that somebody ordered. A
new life that somebody began is watched in the place of the one before, with a probation of its own.

Each end is judged in the event in which it comes. A unit whose file is gone is forgotten after that, and how it ended
with it: from then on there is nothing left to watch.
"""

from supervisord_py.core import timed
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.rollout_state import Rollout, RolloutPhase, RolloutStep, RolloutUnit
from supervisord_py.core.state import REST, STARTING, THERE, UP, Ending, UnitState
from supervisord_py.core.timers import DeadlineKind
from supervisord_py.model.changes import restart_keys
from supervisord_py.model.states import Result, ServiceType

WATCHED = (RolloutStep.PROBATION, RolloutStep.DONE)


def needs_restart(ledger: Ledger, name: str) -> bool:
    """Tell whether the life of a unit runs by another text than the loaded one, and only a restart brings that."""
    running, loaded = ledger.texts.get(name), ledger.set.units.get(name)
    return running is not None and loaded is not None and bool(restart_keys(running, loaded))


def deadline(ledger: Ledger, name: str) -> None:
    """The probation of a unit is over; one that is just being restarted by somebody begins anew when it is up."""
    rollout = ledger.edit_rollout()
    unit = rollout.units[name]
    unit.good_at_ns = None
    if unit.step is RolloutStep.PROBATION and is_there(ledger.state(name)):
        unit.step = RolloutStep.DONE


def watch(ledger: Ledger, rollout: Rollout, name: str, unit: RolloutUnit) -> None:
    """The unit is up again: from now on it has to stay so."""
    state = ledger.state(name)
    unit.invocation = state.invocation
    if rollout.phase is RolloutPhase.FORWARD and rollout.probation_ns and state.sub in THERE:
        put_on_probation(ledger, rollout, name, unit)
    else:
        unit.step = RolloutStep.DONE


def put_on_probation(ledger: Ledger, rollout: Rollout, name: str, unit: RolloutUnit) -> None:
    unit.step = RolloutStep.PROBATION
    unit.good_at_ns = ledger.now.mono_ns + rollout.probation_ns
    ledger.timers.arm(unit.good_at_ns, name, DeadlineKind.ROLLOUT)


def first_failure(ledger: Ledger, rollout: Rollout) -> str | None:
    """Return the first unit that failed, or that did not stay up; notes new lives that an operator began."""
    for name, unit in rollout.units.items():
        if unit.step is RolloutStep.FAILED:
            return name
        state = ledger.state(name)
        if name not in ledger.set.units and name not in ledger.texts:
            continue
        if unit.step not in WATCHED and not _is_broken_before_its_turn(ledger, rollout, name, unit):
            continue
        if state.sub in THERE and not _has_failed_a_run(state):
            if unit.invocation != state.invocation:
                ledger.edit_rollout()
                unit.invocation = state.invocation
                # A run of a unit with a timer is no new beginning of that unit.
                if unit.step is RolloutStep.PROBATION and not timed.is_armed(state):
                    put_on_probation(ledger, rollout, name, unit)
        elif _has_ended_by_itself(ledger, name, state):
            ledger.edit_rollout()
            unit.step = RolloutStep.FAILED
            ended = f"{name} did not stay up ({state.result.value})"
            unit.message = f"{ended}: {state.message}" if state.message else ended
            return name
        elif unit.step is RolloutStep.PROBATION and is_at_rest(ledger, name):
            ledger.edit_rollout()
            unit.good_at_ns = None
            if state.succeeded:
                unit.step = RolloutStep.DONE
            else:
                unit.step, unit.message = RolloutStep.LEFT_OUT, f"{name} was stopped meanwhile"
    return None


def _is_broken_before_its_turn(ledger: Ledger, rollout: Rollout, name: str, unit: RolloutUnit) -> bool:
    """Tell whether a unit that waits has begun a life by the new text all the same (with one that it requires, or by
    its own policy) and is ending by itself."""
    state = ledger.state(name)
    return (
        rollout.verb == "apply"
        and unit.step is RolloutStep.WAITING
        and state.invocation != unit.before
        and state.sub not in THERE | STARTING
        and name in ledger.texts
        and not needs_restart(ledger, name)
    )


def _has_ended_by_itself(ledger: Ledger, name: str, state: UnitState) -> bool:
    if state.sub in STARTING:
        # A life that somebody ordered; one that begins by itself is known by the end of the one before.
        return False
    if state.ending is Ending.ORDER or name in ledger.set.masked:
        return False
    if timed.is_armed(state):
        return _has_failed_a_run(state)
    own = ledger.service(name)
    return own is None or own.type is not ServiceType.ONESHOT or not state.succeeded


def is_there(state: UnitState) -> bool:
    return state.sub in THERE or timed.is_armed(state)


def _has_failed_a_run(state: UnitState) -> bool:
    """Tell whether a unit with a timer has been run since it was armed, and that failed."""
    is_good = state.result in (Result.SUCCESS, Result.EXEC_CONDITION)
    return timed.is_armed(state) and not is_good and state.sub not in UP | STARTING


def is_at_rest(ledger: Ledger, name: str) -> bool:
    return ledger.state(name).sub in REST and name not in ledger.job_of

"""Restarting many units so that few are down at a time, and going back when the first of them does not stay up.

Theory of operation
-------------------
A rollout is a list of units in the order of their dependencies. Each is restarted by an ordinary job, is *watched* from
the moment when it is ready, and lets the next one begin when it has been up for the probation. It counts as unavailable
until then, and again if it goes down later; at most ``max_unavailable`` units of the rollout are (0: all are restarted
at once). The rollout has succeeded when the last unit is through.

The first unit whose restart fails, or that ends by itself while it is watched, ends the way forward. A rollout that
goes back asks the host for the older texts of its units (``RevertUnits``) and restarts, under the same bound, those
that run by the new one or are down because of it. Going back never fails: what does not come up again is told.

An operator is stronger: a unit that is stopped meanwhile is left out, and ``cancel`` and the shutdown end the rollout
where it is. What was restarted stays so, nothing goes back.

For those who wait a unit of a rollout has a job number of its own; the jobs that restart it (one, or two) have others.
A unit with a timer is up from the moment when it is armed, in a run as between two, and fails by a run that fails.
There is one rollout at a time. All of it is state, so a new manager goes on with it.

Laws: never more than ``max_unavailable`` units are taken down by the rollout at a time, but for what their own
dependencies take with them; every number that was given out ends exactly once; nothing is restarted twice forward.

Source: Kubernetes, rolling update of a Deployment (maxUnavailable, minReadySeconds); peers.md section 5, item 17.
"""

import re
from collections.abc import Iterable, Mapping

from supervisord_py.core import probation
from supervisord_py.core.actions import Refusal, RevertUnits
from supervisord_py.core.events import CommandRequested
from supervisord_py.core.graph import Graph
from supervisord_py.core.installing import apply
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.orders import who
from supervisord_py.core.rollout_state import Rollout, RolloutPhase, RolloutStep, RolloutUnit
from supervisord_py.core.state import (
    REST,
    STARTING,
    THERE,
    Job,
    JobOrigin,
    Outcome,
)
from supervisord_py.core.transaction import Goal, RefusedError, build
from supervisord_py.model.changes import restart_keys
from supervisord_py.model.states import JobResult, JobType, Severity
from supervisord_py.model.unit import Unit, UnitSet

QUEUED = "queued"
_IN_HAND = (RolloutStep.RESTARTING, RolloutStep.PROBATION)


# asking


def is_rollout(event: CommandRequested) -> bool:
    """Tell whether a command is to be carried out as a rollout: ``apply`` always, ``restart`` when it is rolling."""
    return event.verb == "apply" or (event.verb == "restart" and "max_unavailable" in event.arguments)


def request(ledger: Ledger, event: CommandRequested) -> list[Outcome]:
    """Begin a rollout, or say what it would do.

    ``apply`` without units is for all; it leaves out what does not run, and what a restart would bring nothing new.
    ``restart`` is for exactly the units that are named, and starts those that are down.

    Raises:
        RefusedError: Another one is under way, or the supervisor is shutting down.
    """
    names = dict.fromkeys(event.units)
    if event.verb == "apply":
        names = dict.fromkeys(needing_restart(ledger.set, ledger.texts, names or None))
    ordered = in_order(ledger.graph, names)
    if event.plan:
        return [Outcome(name, 0, JobType.RESTART.value, QUEUED, _step_text(ledger, name)) for name in ordered]
    if ledger.globals.shutdown is not None:
        raise RefusedError(Refusal("ShuttingDown", f"cannot {event.verb}: the supervisor is shutting down"))
    if ledger.rollout is not None:
        numbers = sorted(each.job for each in ledger.rollout.units.values())
        message = f"a rollout is under way ({ledger.rollout.verb}): wait for it, or end it with supctl cancel"
        raise RefusedError(Refusal("Busy", f"{message} {numbers[0]}"))
    if not ordered:
        return []
    max_unavailable = int(event.arguments.get("max_unavailable") or 0)
    probation_ns = int(event.arguments.get("probation_ns") or 0)
    reverts = bool(event.arguments.get("reverts"))
    units = {name: _unit(ledger, name) for name in ordered}
    fields = {
        "verb": event.verb,
        "units": ordered,
        "max_unavailable": max_unavailable,
        "probation_ms": probation_ns // 1_000_000,
        "reverts": reverts,
    }
    cause = ledger.record("rollout.started", cause=event.cause, fields=fields)
    ledger.set_rollout(
        Rollout(
            verb=event.verb,
            units=units,
            max_unavailable=max_unavailable,
            probation_ns=probation_ns,
            reverts=reverts,
            by=who(event.origin),
            note=event.reason,
            cause=cause,
        )
    )
    return [Outcome(name, unit.job, JobType.RESTART.value) for name, unit in units.items()]


def _unit(ledger: Ledger, name: str) -> RolloutUnit:
    state = ledger.state(name)
    return RolloutUnit(job=ledger.new_job_id(), before=state.invocation, was_stopped=state.stopped)


def needing_restart(unit_set: UnitSet, lives: Mapping[str, Unit], among: Iterable[str] | None = None) -> list[str]:
    """Return the units whose life runs by another text than ``unit_set`` has, where only a restart brings the new one.

    Args:
        unit_set: What is loaded, or would be.
        lives: The text of every unit that has a life.
        among: Only of these; None for all.
    """
    names = lives if among is None else [name for name in among if name in lives]
    return sorted(name for name in names if name in unit_set.units and restart_keys(lives[name], unit_set.units[name]))


def in_order(graph: Graph, names: Iterable[str]) -> list[str]:
    """Sort units so that each stands behind those that it is ordered after, whoever stands between them."""
    wanted = sorted(names, key=_natural)
    left = dict.fromkeys(wanted)
    seen: dict[str, None] = {}
    ordered: list[str] = []
    for name in wanted:
        stack = [(name, False)]
        while stack:
            current, is_done = stack.pop()
            if is_done:
                if current in left:
                    ordered.append(current)
                continue
            if current in seen:
                continue
            seen[current] = None
            stack.append((current, True))
            before = sorted((edge.other for edge in graph[current].after), key=_natural, reverse=True)
            stack += [(other, False) for other in before if other not in seen]
    return ordered


def _natural(name: str) -> list[str | int]:
    """``worker@10`` stands behind ``worker@9``: every second part is a number."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _step_text(ledger: Ledger, name: str) -> str:
    texts = ledger.texts.get(name), ledger.set.units.get(name)
    if texts[0] is None or texts[1] is None:
        return ""
    return ", ".join(restart_keys(texts[0], texts[1]))


# going on


def advance(ledger: Ledger) -> bool:
    """Take the next steps that the present state allows; returns whether there is work for the job engine."""
    rollout = ledger.rollout
    if rollout is None:
        return False
    if ledger.globals.shutdown is not None:
        end_where_it_is(ledger, "the supervisor is shutting down")
        return False
    _take_ends(ledger, rollout)
    match rollout.phase:
        case RolloutPhase.FORWARD:
            if rollout.failed is None and (failed := probation.first_failure(ledger, rollout)) is not None:
                _turn_back(ledger, rollout, failed)
            if rollout.failed is None:
                return _go_forward(ledger, rollout)
            if rollout.phase is RolloutPhase.FORWARD:
                _end_when_told(ledger, rollout)
            return False
        case RolloutPhase.REVERTING:
            return False
        case RolloutPhase.BACK:
            return _go_back(ledger, rollout)


def reverted(ledger: Ledger) -> None:
    """The older texts are loaded: begin to restart what runs by the new ones."""
    rollout = ledger.rollout
    if rollout is None or rollout.phase is not RolloutPhase.REVERTING:
        return
    ledger.edit_rollout().phase = RolloutPhase.BACK
    ledger.record("rollout.reverted", cause=rollout.cause, fields={"units": list(rollout.units)})
    for name, unit in rollout.units.items():
        state = ledger.state(name)
        # A probation ends nothing any more: it was that of the new text.
        unit.good_at_ns = None
        # One that waits for its turn may have begun a life by the new text all the same, with one that it needs.
        is_down = unit.step is not RolloutStep.WAITING and state.sub not in THERE
        is_left = unit.step is RolloutStep.LEFT_OUT or state.stopped
        if not is_left and (is_down or probation.needs_restart(ledger, name)):
            unit.step = RolloutStep.WAITING
        else:
            unit.step = RolloutStep.LEFT_OUT


def end_where_it_is(ledger: Ledger, message: str) -> None:
    """End the rollout without another step."""
    rollout = ledger.rollout
    assert rollout is not None
    for unit in rollout.units.values():
        if unit.step is RolloutStep.WAITING:
            unit.message = message
        elif unit.step is RolloutStep.RESTARTING:
            unit.message = f"{message}; its restart goes on"
    _end(ledger, rollout, JobResult.CANCELED, message)


def pending_action(ledger: Ledger) -> RevertUnits | None:
    """Return what the host was asked for and has not answered yet."""
    rollout = ledger.rollout
    if rollout is None or rollout.phase is not RolloutPhase.REVERTING:
        return None
    assert rollout.failed is not None
    return RevertUnits(tuple(rollout.units), rollout.failed, rollout.message)


def _take_ends(ledger: Ledger, rollout: Rollout) -> None:
    """Look at the jobs that ended in this event."""
    ended = {job.id: (result, message) for job, result, message in ledger.finished}
    for name, unit in rollout.units.items():
        if unit.step is RolloutStep.RESTARTING and unit.restart_job in ended:
            result, message = ended[unit.restart_job]
            ledger.edit_rollout()
            _take_end(ledger, rollout, name, unit, JobResult(result), message)
    for job, ending, _ in ledger.finished:
        stopped = rollout.units.get(job.unit)
        if job.type is JobType.STOP and job.named and ending == JobResult.DONE.value and stopped is not None:
            # Whatever it was when the rollout began: it was stopped since.
            ledger.edit_rollout()
            stopped.was_stopped = False


def _take_end(ledger: Ledger, rollout: Rollout, name: str, unit: RolloutUnit, result: JobResult, message: str) -> None:
    if result is JobResult.DONE:
        probation.watch(ledger, rollout, name, unit)
    elif result in (JobResult.CANCELED, JobResult.SKIPPED):
        unit.step, unit.message = RolloutStep.LEFT_OUT, message
    else:
        unit.step, unit.message = RolloutStep.FAILED, message


def _go_forward(ledger: Ledger, rollout: Rollout) -> bool:
    _take_up_restarted(ledger, rollout)
    waiting = [name for name, unit in rollout.units.items() if unit.step is RolloutStep.WAITING]
    if not waiting:
        if any(unit.step in _IN_HAND for unit in rollout.units.values()):
            return False
        _end(ledger, rollout, JobResult.DONE, "")
        return False
    if not rollout.max_unavailable:
        return _restart_together(ledger, rollout, waiting)
    for name in waiting:
        unit = rollout.units[name]
        if reason := _left_out(ledger, rollout, name):
            ledger.edit_rollout()
            unit.step, unit.message = RolloutStep.LEFT_OUT, reason
            continue
        # Counted only now: what has just been left out takes up no room.
        if _unavailable(ledger, rollout) >= rollout.max_unavailable or _waits_for_another(ledger, rollout, name):
            return False
        # One at a time: what its restart takes with it is seen before the next one.
        _restart_one(ledger, rollout, name)
        return True
    return True


def _take_up_restarted(ledger: Ledger, rollout: Rollout) -> None:
    """Watch from now on what was restarted before its turn, with a unit that it requires or by somebody."""
    for name, unit in rollout.units.items():
        state = ledger.state(name)
        if unit.step is not RolloutStep.WAITING or state.invocation == unit.before or state.sub not in THERE:
            continue
        if not probation.needs_restart(ledger, name):
            ledger.edit_rollout()
            probation.watch(ledger, rollout, name, unit)


def _unavailable(ledger: Ledger, rollout: Rollout) -> int:
    """Count the units that this rollout has taken down, or has not yet found good."""
    return sum(
        unit.step in _IN_HAND
        or (unit.step is RolloutStep.WAITING and _is_taken_along(ledger, name))
        or (
            unit.step is RolloutStep.DONE
            and not probation.is_there(ledger.state(name))
            and not probation.is_at_rest(ledger, name)
        )
        for name, unit in rollout.units.items()
    )


def _is_taken_along(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit is being restarted because of another one."""
    job = ledger.job_of.get(name)
    return job is not None and job.origin is JobOrigin.COMMAND and ledger.state(name).sub not in THERE


def _is_being_stopped(ledger: Ledger, name: str) -> bool:
    job = ledger.job_of.get(name)
    return job is not None and job.type is JobType.STOP and job.origin is JobOrigin.COMMAND


def _left_out(ledger: Ledger, rollout: Rollout, name: str) -> str | None:
    """Say why a unit whose turn has come is not restarted after all."""
    is_stopped = ledger.state(name).stopped and not rollout.units[name].was_stopped
    if is_stopped or _is_being_stopped(ledger, name):
        return f"{name} was stopped meanwhile"
    if rollout.verb != "apply" or rollout.phase is RolloutPhase.BACK:
        # What is down on the way back is down because of the text that failed.
        return None
    if probation.is_at_rest(ledger, name):
        return f"{name} does not run any more"
    if name not in ledger.set.units:
        return f"no file defines {name} any more"
    return None


def _waits_for_another(ledger: Ledger, rollout: Rollout, name: str) -> bool:
    """Tell whether a unit is ordered after one that is not through yet."""
    unready = {other for other, unit in rollout.units.items() if unit.step in _IN_HAND}
    stack, seen = [name], {name: None}
    while stack:
        for edge in ledger.graph[stack.pop()].after:
            if edge.other in unready:
                return True
            if edge.other not in seen:
                seen[edge.other] = None
                stack.append(edge.other)
    return False


def _restart_one(ledger: Ledger, rollout: Rollout, name: str) -> None:
    unit = rollout.units[name]
    ledger.edit_rollout()
    try:
        transaction = build(ledger, _goal(rollout, ((name, _job_type(ledger, rollout, name)),)))
    except RefusedError as error:
        unit.step, unit.message = RolloutStep.FAILED, error.refusal.message
        return
    unit.step, unit.restart_job = RolloutStep.RESTARTING, apply(ledger, transaction)[name].id


def _restart_together(ledger: Ledger, rollout: Rollout, names: list[str]) -> bool:
    """Restart all at once, in one transaction: the job engine keeps their order."""
    ledger.edit_rollout()
    wanted = []
    for name in names:
        if reason := _left_out(ledger, rollout, name):
            rollout.units[name].step, rollout.units[name].message = RolloutStep.LEFT_OUT, reason
        else:
            wanted.append(name)
    if not wanted:
        return True
    try:
        transaction = build(ledger, _goal(rollout, tuple((name, _job_type(ledger, rollout, name)) for name in wanted)))
    except RefusedError as error:
        for name in wanted:
            if rollout.phase is RolloutPhase.BACK:
                # What has nothing to do with the one that is refused must not stay on the text that failed.
                _restart_one(ledger, rollout, name)
            else:
                rollout.units[name].step, rollout.units[name].message = RolloutStep.FAILED, error.refusal.message
        return True
    for name, job in apply(ledger, transaction).items():
        rollout.units[name].step, rollout.units[name].restart_job = RolloutStep.RESTARTING, job.id
    return True


def _goal(rollout: Rollout, anchors: tuple[tuple[str, JobType], ...]) -> Goal:
    reason = f"{rollout.verb} goes back: {rollout.message}" if rollout.phase is RolloutPhase.BACK else ""
    return Goal(
        anchors,
        JobOrigin.COMMAND,
        spares_stopped=True,
        by=rollout.by,
        note=rollout.note,
        reason=reason,
        cause=rollout.cause,
    )


def _job_type(ledger: Ledger, rollout: Rollout, name: str) -> JobType:
    """Return what brings a unit a life by the loaded text: a start is enough where such a life has begun, with a unit
    that it requires or by somebody, or where there is none."""
    state = ledger.state(name)
    if state.sub in REST:
        return JobType.START
    is_new = rollout.phase is RolloutPhase.BACK or state.invocation != rollout.units[name].before
    is_done = is_new and state.sub in THERE | STARTING and not probation.needs_restart(ledger, name)
    return JobType.START if is_done else JobType.RESTART


# the end of the way forward


def _turn_back(ledger: Ledger, rollout: Rollout, failed: str) -> None:
    ledger.edit_rollout()
    rollout.failed, rollout.message = failed, rollout.units[failed].message
    fields = {"message": rollout.message, "reverts": rollout.reverts}
    rollout.cause = ledger.record("rollout.failed", failed, severity=Severity.ERROR, fields=fields, chain=False)
    if rollout.reverts:
        rollout.phase = RolloutPhase.REVERTING
        ledger.act(RevertUnits(tuple(rollout.units), failed, rollout.message))


def _end_when_told(ledger: Ledger, rollout: Rollout) -> None:
    """Nobody goes back: what becomes of those that are being restarted is awaited, and told too."""
    if not any(unit.step is RolloutStep.RESTARTING for unit in rollout.units.values()):
        _end(ledger, rollout, JobResult.FAILED, rollout.message)


def _go_back(ledger: Ledger, rollout: Rollout) -> bool:
    waiting = [name for name, unit in rollout.units.items() if unit.step is RolloutStep.WAITING]
    in_flight = sum(unit.step is RolloutStep.RESTARTING for unit in rollout.units.values())
    waiting = [name for name in waiting if not _was_stopped(ledger, rollout, name)]
    if not waiting and not in_flight:
        _end(ledger, rollout, JobResult.FAILED, rollout.message)
        return False
    if waiting and not rollout.max_unavailable:
        return _restart_together(ledger, rollout, waiting)
    # What is down is brought up first, which takes nothing down: together, for a start that is called off ends after
    # what comes after it.
    if down := [name for name in waiting if ledger.state(name).sub not in THERE]:
        return _restart_together(ledger, rollout, down)
    if waiting and in_flight < rollout.max_unavailable:
        _restart_one(ledger, rollout, waiting[0])
        return True
    return False


def _was_stopped(ledger: Ledger, rollout: Rollout, name: str) -> bool:
    """Leave out a unit that somebody has stopped since."""
    stopped = ledger.state(name).stopped or _is_being_stopped(ledger, name)
    if stopped:
        ledger.edit_rollout().units[name].step = RolloutStep.LEFT_OUT
    return stopped


def _end(ledger: Ledger, rollout: Rollout, result: JobResult, message: str) -> None:
    """Tell how it ended, for each unit, and forget it."""
    ledger.set_rollout(None)
    fields = {"verb": rollout.verb, "result": result.value, "units": _by_fate(rollout)}
    if message:
        fields["message"] = message
    severity = Severity.INFO if result is JobResult.DONE else Severity.WARNING
    ledger.record("rollout.finished", severity=severity, cause=rollout.cause, fields=fields)
    for name, unit in rollout.units.items():
        told, words = _outcome(rollout, name, unit, result)
        job = Job(id=unit.job, unit=name, type=JobType.RESTART, origin=JobOrigin.COMMAND)
        ledger.finished.append((job, told.value, words))


def _by_fate(rollout: Rollout) -> dict[str, str]:
    back = rollout.phase is RolloutPhase.BACK
    return {
        name: "reverted" if back and unit.step is RolloutStep.DONE else unit.step.value
        for name, unit in rollout.units.items()
    }


def _outcome(rollout: Rollout, name: str, unit: RolloutUnit, result: JobResult) -> tuple[JobResult, str]:
    """Say what became of one unit for those who wait."""
    if name == rollout.failed:
        return JobResult.FAILED, rollout.message
    is_back = rollout.phase is RolloutPhase.BACK and unit.step is RolloutStep.DONE
    if result is JobResult.CANCELED and not is_back:
        return (JobResult.DONE, "") if unit.step in probation.WATCHED else (JobResult.CANCELED, unit.message)
    if unit.step is RolloutStep.LEFT_OUT and result is JobResult.DONE:
        return JobResult.SKIPPED, unit.message
    if result is JobResult.DONE:
        return JobResult.DONE, ""
    if rollout.phase is RolloutPhase.BACK:
        if unit.step is RolloutStep.FAILED:
            return JobResult.FAILED, f"{name} could not be brought back to the text before: {unit.message}"
        return JobResult.CANCELED, f"{name} runs by the text before" if is_back else _NOT_TOUCHED
    if unit.step is RolloutStep.FAILED:
        return JobResult.FAILED, unit.message
    if unit.step in probation.WATCHED:
        return JobResult.DONE, ""
    return JobResult.CANCELED, unit.message or _NOT_TOUCHED


_NOT_TOUCHED = "it was not restarted"

"""A unit that stands still: its processes are frozen, and nothing that is counted or awaited goes on.

Theory of operation
-------------------
``pause`` asks the host to freeze (``FreezeUnit``); only when that is done (``UnitFrozen``) is the unit ``paused``, and
the request answered. It counts as up. Its times stand still: the longest run and the time of health go on where they
were, a silence begins anew. What ends a life ends a paused one too; its processes are thawed first, or they could not
hear the signal.

Law: only a unit in the state ``paused`` is frozen, but for the time between an order and its answer; whatever is frozen
and is not that is thawed.

Source: systemd, core/unit.c (unit_freezer_action); that a unit without a freezer is stopped by SIGSTOP is ours; defects
B-PO-19 and B-AF-8 of the older systems.
"""

from supervisord_py.core import health, life, watchdog
from supervisord_py.core.actions import FreezeUnit, Refusal, ThawUnit
from supervisord_py.core.events import CommandRequested, UnitFrozen
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.orders import who
from supervisord_py.core.state import Freeze, Job, JobOrigin, Outcome
from supervisord_py.core.transaction import RefusedError
from supervisord_py.model.states import JobResult, JobType, Severity, SubState

_QUEUED = "queued"


def ask(ledger: Ledger, event: CommandRequested, name: str) -> Outcome:
    """Take an order to pause or resume one unit; its answer comes with ``UnitFrozen``."""
    state, pauses = ledger.state(name), event.verb == "pause"
    if ledger.globals.shutdown is not None and pauses:
        raise RefusedError(Refusal("ShuttingDown", "cannot pause: the supervisor is shutting down"))
    if state.freeze is not None:
        if state.freeze.pauses is pauses:
            if event.plan:
                return Outcome(name, 0, event.verb, _QUEUED)
            return Outcome(name, state.freeze.job, event.verb)
        message = f"{name} is being {'paused' if state.freeze.pauses else 'resumed'} at the moment; ask again"
        return Outcome(name, 0, event.verb, JobResult.CANCELED.value, message)
    is_paused = state.sub is SubState.PAUSED
    if is_paused is pauses:
        return Outcome(name, 0, event.verb, JobResult.DONE.value, "it is paused" if is_paused else "it is not paused")
    if pauses and (state.sub is not SubState.RUNNING or ledger.service(name) is None or state.following is not None):
        message = f"{name} is {state.sub.value}: only a unit that is running can be paused"
        return Outcome(name, 0, event.verb, JobResult.INVALID.value, message)
    if event.plan:
        return Outcome(name, 0, event.verb, _QUEUED)
    job = ledger.new_job_id()
    ledger.edit(name).freeze = Freeze(job, pauses, who(event.origin), event.reason, event.cause)
    ledger.act(FreezeUnit(name) if pauses else ThawUnit(name))
    return Outcome(name, job, event.verb)


def frozen(ledger: Ledger, event: UnitFrozen) -> None:
    """The unit stands still, or goes on."""
    name, state = event.unit, ledger.edit(event.unit)
    order, state.freeze, state.thawing = state.freeze, None, False
    if event.frozen and state.sub is not SubState.PAUSED and not (order and order.pauses and _may_pause(ledger, name)):
        # It has ended, or was stopped, before it stood still.
        state.thawing = True
        ledger.act(ThawUnit(name))
        _answer(ledger, name, order, JobResult.CANCELED, f"{name} is {state.sub.value}")
        return
    if order is None:
        return
    if event.frozen is not order.pauses:
        _answer(ledger, name, order, JobResult.FAILED, event.detail or "it could not be done")
        return
    if order.pauses:
        _enter(ledger, name, order)
    elif state.sub is SubState.PAUSED:
        _leave(ledger, name, order)
    _answer(ledger, name, order, JobResult.DONE)


def give_up(ledger: Ledger, message: str) -> None:
    """Nothing is frozen or thawed any more: whoever waits for that is told."""
    for name in sorted(name for name, state in ledger.states.items() if state.freeze is not None):
        edited = ledger.edit(name)
        order, edited.freeze = edited.freeze, None
        _answer(ledger, name, order, JobResult.CANCELED, message)


def pending(ledger: Ledger, name: str) -> list[FreezeUnit | ThawUnit]:
    """Return what was asked of the host and not answered: a new manager asks again."""
    state = ledger.state(name)
    order = state.freeze
    if order is None:
        return [ThawUnit(name)] if state.thawing else []
    return [FreezeUnit(name) if order.pauses else ThawUnit(name)]


def _may_pause(ledger: Ledger, name: str) -> bool:
    return ledger.state(name).sub is SubState.RUNNING and ledger.globals.shutdown is None


def _enter(ledger: Ledger, name: str, order: Freeze) -> None:
    state = ledger.set_sub(name, SubState.PAUSED)
    state.paused_ns = ledger.now.mono_ns
    state.paused_by = order
    ledger.arm_phase(name, None)
    watchdog.end(ledger, name)
    health.stand_still(ledger, name)
    healthy_at_ns = state.healthy_at_ns
    ledger.arm_healthy(name, None)
    state.healthy_left_ns = None if healthy_at_ns is None else healthy_at_ns - ledger.now.mono_ns
    ledger.record("unit.paused", name, cause=order.cause, fields=_told(order))


def _leave(ledger: Ledger, name: str, order: Freeze) -> None:
    state = ledger.state(name)
    stood_ns = 0 if state.paused_ns is None else ledger.now.mono_ns - state.paused_ns
    state = ledger.set_sub(name, SubState.RUNNING)
    if state.runtime_end_ns is not None:
        state.runtime_end_ns += stood_ns
    life.arm_running(ledger, name)
    watchdog.begin(ledger, name)
    health.go_on(ledger, name)
    ledger.arm_healthy(name, state.healthy_left_ns)
    state.paused_ns = state.healthy_left_ns = state.paused_by = None
    ledger.record("unit.resumed", name, cause=order.cause, fields=_told(order) | {"paused_ms": stood_ns // 1_000_000})


def _told(order: Freeze) -> dict[str, object]:
    return {key: text for key, text in (("by", order.by), ("reason", order.note)) if text}


def _answer(ledger: Ledger, name: str, order: Freeze | None, result: JobResult, message: str = "") -> None:
    if order is None:
        return
    if result is not JobResult.DONE:
        fields = {"message": f"it could not be {'paused' if order.pauses else 'resumed'}: {message}"}
        ledger.record("unit.error", name, severity=Severity.WARNING, fields=fields, chain=False)
    job = Job(id=order.job, unit=name, type=JobType.NOP, origin=JobOrigin.COMMAND)
    ledger.finished.append((job, result.value, message))

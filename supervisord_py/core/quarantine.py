"""A unit that has failed as often as it may: it is stopped, told loudly, and its stub takes its place.

Theory of operation
-------------------
``stopping.end`` counts failures and brings a unit here when the count reaches ``[quarantine] failures``. From then on
nothing automatic starts it (``UnitState.quarantined``). Two ways lead out: somebody releases it (``release``,
``start`` or ``restart`` by name, ``reset-failed``), or ``retry-after`` has passed. That its file allows more failures
is no release: whoever wants the unit back says so.

A retry is *half-open*: one more life with the count where it stands, so the next failure brings the unit back at once;
only ``restart-reset-sec`` of health forgets the count and writes ``unit.released``.

A *stub* is a life of its own, in the sub state ``stub``, of one process (the unit's control process, so that how the
unit itself ended stays known). Units that need the quarantined one are content with it. When it ends, by itself or
because the unit is released, it goes through the same stop sequence as any life, and then the unit is as it was.

Laws: a quarantined unit has no process but its stub's; every quarantine ends in exactly one ``unit.released``, or in
the end of the unit. A target has no process that could fail: what becomes one is released.

Source: ours; the registries of the older systems (B-AF-1, B-AF-4); the half-open state is that of a circuit breaker
(Nygard, Release It!).
"""

from supervisord_py.core import processes
from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.restart import is_limit_hit
from supervisord_py.core.state import Ending, Process, UnitState
from supervisord_py.model.states import JobState, Result, Role, Severity, SubState

NOW_A_TARGET = "it is a target now"


def is_given_up(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit has failed so often that nothing automatic starts it, but its own retry."""
    state, service = ledger.state(name), ledger.service(name)
    if state.sub is not SubState.FAILED or service is None or state.half_open:
        return False
    return state.quarantined or is_limit_hit(service.restart, state.failures)


def enter(ledger: Ledger, name: str) -> None:
    """The unit has failed once too often; it is at rest."""
    state, unit = ledger.edit(name), ledger.unit(name)
    assert unit is not None
    state.quarantined, state.half_open = True, False
    fields: dict[str, object] = {"failures": state.failures, "result": state.result.value}
    if state.message:
        fields["message"] = state.message
    ledger.record("unit.quarantined", name, severity=Severity.ERROR, fields=fields)
    ledger.intents.append(Task(Intent.QUARANTINED, name, name, state.cause))
    stand_in(ledger, name)


def stand_in(ledger: Ledger, name: str) -> None:
    """Do for a quarantined unit at rest what can be done: arm its retry, and start its stub."""
    state, unit = ledger.state(name), ledger.set.units.get(name) or ledger.unit(name)
    if unit is None or ledger.globals.shutdown is not None:
        return
    if unit.service is None:
        release(ledger, name, reason=NOW_A_TARGET)
        return
    if unit.quarantine.retry_after_ns is not None and state.retry_at_ns is None:
        ledger.arm_retry(name, unit.quarantine.retry_after_ns)
    job = ledger.job_of.get(name)
    is_wanted = job is not None and job.state is JobState.WAITING and job.named
    if is_wanted or not has_stub(ledger, name):
        return
    assert unit.quarantine.stub is not None
    ledger.keep_text(name, unit)
    edited = ledger.set_sub(name, SubState.STUB)
    edited.is_stub, edited.stopped = True, False
    edited.invocation = ledger.new_invocation()
    edited.began_ns, edited.index = ledger.now.mono_ns, 0
    # Its end is an end like any other, but for the commands that belong to the unit's own.
    edited.post_done, edited.was_up = True, False
    ledger.arm_phase(name, None)
    process = edited.control = Process(ledger.new_spawn_id(), Role.STUB)
    program = unit.quarantine.stub.words[0]
    fields = {"spawn_id": process.spawn_id, "role": Role.STUB.value, "program": program}
    ledger.record("unit.starting", name, fields=fields)
    action = SpawnProcess(
        spawn_id=process.spawn_id,
        unit=name,
        role=Role.STUB,
        command=unit.quarantine.stub,
        invocation=edited.invocation,
        environment=(*processes.environment(ledger, name, Role.STUB), ("SUPERVISORD_PY_STUB", "1")),
    )
    ledger.spawn(name, process, action)


def has_stub(ledger: Ledger, name: str) -> bool:
    """Tell whether a stub can take the place of a unit, if that is quarantined."""
    unit = ledger.set.units.get(name) or ledger.unit(name)
    if unit is None or unit.service is None or unit.quarantine.stub is None or ledger.state(name).stub_failed:
        return False
    # The failure of such a unit is the end of the supervisor: nothing takes its place.
    return unit.exit_supervisor_on is None


def stub_started(ledger: Ledger, name: str) -> None:
    """Its program runs: what needs the unit may go on."""
    state = ledger.state(name)
    assert state.control is not None
    ledger.changed[name] = None
    fields = {"spawn_id": state.control.spawn_id, "pid": state.control.pid}
    ledger.record("unit.stub-started", name, severity=Severity.WARNING, fields=fields)


def stands_in(state: UnitState) -> bool:
    """Tell whether a stub runs in the place of the unit."""
    return state.sub is SubState.STUB and state.control is not None and state.control.pid is not None


def stub_over(ledger: Ledger, name: str) -> None:
    """No process of the stub is left: the unit is what it was before, or released."""
    state = ledger.edit(name)
    state.timeout_at_ns = None
    state.ending = Ending.ITSELF
    fields: dict[str, object] = {"stub": True}
    if state.stub_failed:
        fields["message"] = "its stub has ended; it stays quarantined without it"
    severity = Severity.WARNING if state.stub_failed else Severity.INFO
    ledger.record("unit.stopped", name, severity=severity, fields=fields)
    for other in ledger.graph[name].bound_by:
        ledger.intents.append(Task(Intent.STOP_BOUND, other, name, state.cause))
    ledger.set_sub(name, SubState.FAILED if state.quarantined else SubState.DEAD)
    state.is_stub = False
    if not state.quarantined:
        state.result, state.message = Result.SUCCESS, None


def arm_retries(ledger: Ledger) -> None:
    """After a cold start: whoever was to be tried once more is, after the whole time, whether it is enabled or not."""
    for name, state in list(ledger.states.items()):
        if state.retry_at_ns is not None:
            unit = ledger.set.units.get(name)
            ledger.arm_retry(name, unit.quarantine.retry_after_ns if unit is not None else None)


def retry(ledger: Ledger, name: str) -> None:
    """``retry-after`` has passed: one more life, with the count where it stands; not if somebody has stopped it."""
    ledger.arm_retry(name, None)
    state = ledger.edit(name)
    if not state.quarantined or state.stopped or ledger.globals.shutdown is not None or name in ledger.job_of:
        return
    state.half_open, state.stub_failed = True, False
    ledger.intents.append(Task(Intent.RETRY, name, name, state.cause))


def not_retried(ledger: Ledger, name: str) -> None:
    """The retry did not come to a life of its own: it is made once more after the same time."""
    state, unit = ledger.edit(name), ledger.unit(name)
    state.half_open = False
    if state.quarantined and unit is not None and unit.quarantine.retry_after_ns is not None:
        ledger.arm_retry(name, unit.quarantine.retry_after_ns)


def begin_life(ledger: Ledger, name: str) -> None:
    """A life of the unit itself begins: it is in quarantine no more, for as long as that goes well."""
    state = ledger.edit(name)
    state.quarantined = state.stub_failed = False
    ledger.arm_retry(name, None)


def release(ledger: Ledger, name: str, *, by: str = "", reason: str = "", cause: int | None = None) -> None:
    """Somebody trusts the unit again, or it has earned it: every count begins anew."""
    state = ledger.edit(name)
    if not state.quarantined and not state.half_open:
        return
    fields: dict[str, object] = {"failures": state.failures}
    if by:
        fields["by"] = by
    if reason:
        fields["reason"] = reason
    state.quarantined = state.half_open = state.stub_failed = False
    ledger.arm_retry(name, None)
    ledger.record("unit.released", name, cause=cause, fields=fields)

"""Jobs come and go: a transaction is installed whole, and every job ends in exactly one ``job.finished``.

Law: what was asked for is never undone by what follows automatically.

Source: systemd, core/job.c (job_install, job_finish_and_invalidate).
"""

from supervisord_py.core import demand, jobs, listening, pool, quarantine, service, timed
from supervisord_py.core.actions import Refusal
from supervisord_py.core.jobs import STOP_LIKE
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.service import Input
from supervisord_py.core.state import REST, Job, JobOrigin
from supervisord_py.core.transaction import ALONE, Goal, Node, RefusedError, Transaction, build
from supervisord_py.model.states import (
    JobMode,
    JobResult,
    JobState,
    JobType,
    OnDependencyFailure,
    Result,
    Severity,
    SubState,
)

_ORIGINS = tuple(JobOrigin)
_STARTS = demand.STARTS
_CAME_TO_NOTHING = (JobResult.DEPENDENCY, JobResult.TIMEOUT)
"""What a start ends with that was queued and never began."""
_LACKING = frozenset({"NoSuchUnit", "BadUnit", "UnitMasked"})
"""Refusals that name a unit without which the other cannot start."""


def apply(ledger: Ledger, transaction: Transaction) -> dict[str, Job]:
    """Install a transaction whole; returns the jobs of its anchors by unit."""
    anchors: dict[str, Job] = {}
    if transaction.goal.mode in (JobMode.ISOLATE, JobMode.FLUSH):
        _call_off_others(ledger, transaction)
    for node in transaction.nodes:
        job = _install(ledger, transaction.goal, node)
        _look_at_queue(ledger, node.unit)
        if node.anchor:
            anchors[node.unit] = job
    for unit, refusal in transaction.dropped.items():
        refuse(ledger, transaction.goal, unit, refusal)
    return anchors


def _look_at_queue(ledger: Ledger, name: str) -> None:
    """What waits for a slot may have to wait for a new job first: then it stands in no queue."""
    for other in ledger.graph.neighbours(name) if ledger.waiting else ():
        waiting = ledger.job_of.get(other)
        if waiting is not None and waiting.pool is not None:
            ledger.runnable[waiting.id] = None


def _call_off_others(ledger: Ledger, transaction: Transaction) -> None:
    """Cancel the jobs of all units that the transaction has nothing to do with."""
    kept = {node.unit: None for node in transaction.nodes}
    mode = transaction.goal.mode.value
    for _, job in sorted(ledger.jobs.items()):
        if job.unit not in kept:
            finish(ledger, job, JobResult.CANCELED, f"a request in mode {mode} called off all other jobs", spread=False)
            _leave_queue(ledger, job.unit)


def _leave_queue(ledger: Ledger, name: str) -> None:
    """A unit whose restart consisted of a job that was called off must not wait for it for ever."""
    if ledger.state(name).sub is SubState.AUTO_RESTART_QUEUED:
        ledger.edit(name).stopped = True
        service.feed(ledger, name, Input.STOP)


def start_automatically(ledger: Ledger, name: str, cause: int | None, mode: JobMode = JobMode.REPLACE) -> str | None:
    """Queue a start that nobody asked for; returns why that is not possible, None when it is queued."""
    try:
        transaction = build(ledger, Goal(((name, JobType.START),), JobOrigin.AUTOMATIC, mode, cause=cause))
    except RefusedError as error:
        return error.refusal.message
    apply(ledger, transaction)
    return None


def _install(ledger: Ledger, goal: Goal, node: Node) -> Job:
    existing = ledger.job_of.get(node.unit)
    if existing is not None:
        merged = jobs.merge(existing.type, node.type)
        if merged is not None:
            return _merge_into(ledger, existing, jobs.collapse(merged, ledger.state(node.unit).sub), goal, node)
        finish(
            ledger, existing, JobResult.CANCELED, f"{node.type.value} {node.unit} was asked for instead", spread=False
        )
    job = Job(
        id=ledger.new_job_id(),
        unit=node.unit,
        type=jobs.collapse(node.type, ledger.state(node.unit).sub),
        origin=goal.origin,
        named=_is_named(goal, node),
        ignore_order=goal.mode is JobMode.IGNORE_DEPENDENCIES,
        ignore_needs=goal.mode in ALONE,
        irreversible=goal.mode is JobMode.REPLACE_IRREVERSIBLY,
        bound=goal.bound,
        runs=goal.runs and node.anchor,
        by=goal.by,
        note=goal.note,
        chain=goal.chain,
        reason=_reason(ledger, goal, node),
    )
    ledger.jobs[job.id] = ledger.job_of[node.unit] = ledger.edit_job(job)
    unit = ledger.set.units.get(node.unit) or ledger.unit(node.unit)
    if unit is not None and job.type is not JobType.NOP:
        ledger.arm_job(job, unit.job_timeout_ns)
    fields = {"job": job.id, "type": job.type.value, "origin": job.origin.value} | _pulled_in_by(node)
    job.cause = ledger.record("job.queued", node.unit, cause=goal.cause, fields=fields, chain=False, asked=True)
    ledger.runnable[job.id] = None
    return job


def _pulled_in_by(node: Node) -> dict[str, object]:
    puller = next((pull.by[0] for pull in node.pulls if pull.by is not None), None)
    return {} if puller is None or node.anchor else {"pulled_in_by": puller}


def _reason(ledger: Ledger, goal: Goal, node: Node) -> str:
    """Say why something is done about a unit that nobody named."""
    pull = next((pull for pull in node.pulls if pull.by is not None), None)
    if goal.mode is JobMode.ISOLATE and pull is None and not node.anchor:
        return f"{' and '.join(unit for unit, _ in goal.anchors)} alone is asked for"
    if node.anchor or pull is None or pull.by is None:
        return goal.reason
    other, kind = pull.by
    if pull.conflict:
        return f"{other}, which conflicts with it, is started"
    words = {JobType.STOP: "stopped", JobType.RESTART: "restarted", JobType.START: "restarted"}
    if node.type not in STOP_LIKE or kind not in words:
        verb = "needs" if pull.matters else "wants"
        return f"{other} {verb} it" if node.type is JobType.START else ""
    return f"{other}, which it {_follows(ledger, node.unit, other)}, is {words[kind]}"


def _follows(ledger: Ledger, name: str, other: str) -> str:
    """Say why a stop of ``other`` is one of ``name``."""
    if name in ledger.graph[other].bound_by:
        return "is bound to"
    return "needs" if name in ledger.graph[other].required_by else "is part of"


def _is_named(goal: Goal, node: Node) -> bool:
    return node.anchor and goal.origin is JobOrigin.COMMAND


def _merge_into(ledger: Ledger, job: Job, merged: JobType, goal: Goal, node: Node) -> Job:
    ledger.edit_job(job)
    origin = max(job.origin, goal.origin, key=_ORIGINS.index)
    # A stop that followed from something, and is now asked for, is ordered again: it must keep the unit down.
    if merged is not job.type or (merged is JobType.STOP and origin is not job.origin):
        if merged is not job.type:
            pool.leave(ledger, job)
            fields = {"job": job.id, "type": merged.value, "was": job.type.value, "origin": origin.value}
            job.cause = ledger.record(
                "job.changed", node.unit, cause=goal.cause, fields=fields | _pulled_in_by(node), chain=False, asked=True
            )
        job.type = merged
        job.state = JobState.WAITING
        job.checks += job.checking
        job.checking = job.checked = job.opening = job.opened = False
    is_run = goal.runs and node.anchor
    if job.type in _STARTS:
        # Whoever wants it to be armed gets that, too.
        job.arms = job.arms or job.runs is not is_run
        job.runs = job.runs or is_run
    else:
        job.runs = job.arms = False
    if goal.origin is not JobOrigin.AUTOMATIC:
        job.chain = goal.chain
    job.origin = origin
    job.named = job.named or _is_named(goal, node)
    job.bound = job.bound and goal.bound
    if job.named or not job.reason:
        job.reason = _reason(ledger, goal, node)
    if goal.by or goal.note:
        job.by, job.note = goal.by, goal.note
    # Whoever asked for the order to be kept gets it.
    job.ignore_order = job.ignore_order and goal.mode is JobMode.IGNORE_DEPENDENCIES
    job.ignore_needs = job.ignore_needs and goal.mode in ALONE
    job.irreversible = job.irreversible or goal.mode is JobMode.REPLACE_IRREVERSIBLY
    ledger.runnable[job.id] = None
    return job


def refuse(ledger: Ledger, goal: Goal, unit: str, refusal: Refusal, *, lacks: bool = False) -> None:
    """A start that nobody waits for cannot be: it is written, and the unit waits if that can help.

    ``lacks``: something that it needs is not there, whatever it was refused for.
    """
    message = refusal.message
    lacks = lacks or refusal.error in _LACKING
    # What another unit asked for is called off if it contradicts something; all else lacks something.
    result = JobResult.DEPENDENCY if lacks or goal.origin is not JobOrigin.RELATION else JobResult.CANCELED
    tell_refused(ledger, unit, result, message, goal.cause)
    # A unit whose file was gone for a while may be running: it waits for nothing.
    is_idle = unit not in ledger.job_of and ledger.state(unit).sub in REST
    if lacks and unit in ledger.set.units and is_idle:
        wait_for_dependency(ledger, unit, message)


def tell_refused(
    ledger: Ledger, unit: str, result: JobResult, message: str, cause: int | None, *, upheld_by: str = ""
) -> None:
    """Write that a start which nobody waits for cannot be; one that is upheld is tried again."""
    fields: dict[str, object] = {"job": None, "type": JobType.START.value, "result": result.value, "message": message}
    if upheld_by:
        fields["upheld_by"] = upheld_by
    severity = Severity.WARNING if upheld_by else Severity.ERROR
    ledger.record("job.finished", unit, severity=severity, cause=cause, fields=fields, chain=unit in ledger.set.units)


def finish(ledger: Ledger, job: Job, result: JobResult, message: str = "", *, spread: bool = True) -> None:
    """End a job: record it, free the unit's slot, and fail what required a start that did not happen."""
    name = job.unit
    pool.leave(ledger, job)
    del ledger.jobs[job.id]
    del ledger.job_of[name]
    ledger.note_slot(name)
    ledger.cursors.pop(job.id, None)
    ledger.edit_job(job)
    fields = {"job": job.id, "type": job.type.value, "result": result.value}
    if message:
        fields["message"] = message
    good = result in (JobResult.DONE, JobResult.SKIPPED, JobResult.CANCELED)
    cause = ledger.state(name).cause if job.state is JobState.RUNNING else job.cause
    ledger.record(
        "job.finished",
        name,
        severity=Severity.INFO if good else Severity.WARNING,
        cause=cause,
        fields=fields,
        chain=False,
    )
    ledger.finished.append((job, result.value, message))
    if ledger.state(name).half_open and ledger.state(name).quarantined:
        quarantine.not_retried(ledger, name)
    ledger.changed[name] = None
    ledger.refused_changed = True
    timed.job_ended(ledger, name)
    listening.job_ended(ledger, name)
    if result in (JobResult.TIMEOUT, JobResult.DEPENDENCY):
        unit = ledger.unit(name)
        if unit is not None and unit.on_failure:
            ledger.intents.append(Task(Intent.FAILED, name, name, cause))
    if result is JobResult.DONE or not spread or job.type not in (*_STARTS, JobType.RESTART):
        return
    if ledger.graph[name].upheld_by and job.type is JobType.START and result in _CAME_TO_NOTHING:
        ledger.intents.append(Task(Intent.UPHOLD_LATER, name, name, cause))
    if ledger.state(name).is_armed:
        # A run that does not begin takes nobody with it: the unit is there all the same.
        if ledger.state(name).sub is SubState.AUTO_RESTART_QUEUED:
            _give_up_run(ledger, name)
        return
    sub = ledger.state(name).sub
    if result is JobResult.DEPENDENCY:
        if job.type is JobType.VERIFY_ACTIVE and sub in REST:
            # To ask whether a unit is there never starts it, so there is nothing that it could wait for.
            pass
        elif sub in REST or sub is SubState.AUTO_RESTART_QUEUED:
            if job.origin is not JobOrigin.AUTOMATIC:
                # It was asked for after the stop: that it has to wait first changes nothing about that.
                ledger.edit(name).stopped = False
            wait_for_dependency(ledger, name, message)
    elif sub is SubState.AUTO_RESTART_QUEUED:
        # The job that the restart consisted of is gone: the unit must not wait for it for ever.
        if result is JobResult.CANCELED:
            ledger.edit(name).stopped = True
        elif result is JobResult.TIMEOUT:
            ledger.edit(name).message = message
        service.feed(ledger, name, Input.STOP)
    elif result is JobResult.TIMEOUT and sub in REST:
        ledger.edit(name).message = message
    for other in ledger.graph[name].required_by:
        ledger.intents.append(Task(Intent.FAIL_DEPENDENT, other, name, ledger.state(name).cause))
    for other in ledger.graph[name].bound_by:
        ledger.intents.append(Task(Intent.STOP_BOUND, other, name, ledger.state(name).cause))


def _give_up_run(ledger: Ledger, name: str) -> None:
    """The restart of a run came to nothing: the unit waits for its next time, or for whoever connects."""
    if not (timed.wait_again(ledger, name) or listening.wait_again(ledger, name)):
        service.feed(ledger, name, Input.STOP)
        return
    state = ledger.state(name)
    fields: dict[str, object] = {"result": state.result.value, "armed": True} | timed.told_next(ledger, name)
    ledger.record("unit.stopped", name, fields=fields | ({"message": state.message} if state.message else {}))


def wait_for_dependency(ledger: Ledger, name: str, message: str) -> None:
    """A unit could not start because of another: it waits for that one to recover, or fails if it is told to."""
    unit = ledger.unit(name)
    waits = unit is None or unit.on_dependency_failure is OnDependencyFailure.WAIT
    had_failed = ledger.state(name).sub is SubState.FAILED
    state = ledger.set_sub(name, SubState.DEPENDENCY if waits else SubState.FAILED)
    ledger.arm_phase(name, None)
    state.result, state.message = Result.DEPENDENCY, message
    ledger.intents.append(Task(Intent.RECOVERED, name, name, state.cause))
    if not waits and not had_failed:
        fields = {"result": state.result.value, "message": message, "failures": state.failures, "limit_hit": False}
        ledger.record("unit.failed", name, severity=Severity.ERROR, fields=fields)

"""The job engine: installs transactions, runs jobs whose turn it is, and carries every change of a unit to those who
wait for it.

Theory of operation
-------------------
Three worklists, worked off in this order until all are empty: units that *changed* (their job may be done, their
neighbours' jobs may run), *intents* (restart this, recover that), jobs that may be *runnable*. Each step may add to any
of them; nothing recurses, and a bound far above what any unit set needs turns an endless loop into an assertion. Jobs
are looked at only when a neighbour changed: no event costs a scan of all units.

Laws: every job ends in exactly one ``job.finished``; what was asked for is never undone by what follows automatically;
a unit never stays in ``auto-restart-queued`` without a job.

Source: systemd, core/job.c and unit.c (unit_notify); model-codebases 3.1 (the hole that auto-restart-queued closes);
dinit, service.cc (process_queues).
"""

from supervisord_py.core import demand, jobs, life, service
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.restart import is_limit_hit
from supervisord_py.core.service import Input
from supervisord_py.core.state import BETWEEN_LIVES, REST, STARTING, STOPPING, UP, Ending, Job, JobOrigin
from supervisord_py.core.transaction import Goal, Node, RefusedError, Transaction, build, build_stop
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

STEPS_MIN = 20_000
STEPS_PER_UNIT = 2_000
"""The bound of the worklists: far above what is needed, only there to end a loop that would never end."""

RECOVERIES_MAX = 8
"""So often a unit is started for a recovered dependency within one event: more would be two rules that disagree for
ever.
"""

_ORIGINS = tuple(JobOrigin)
_STARTS = demand.STARTS


# installing


def apply(ledger: Ledger, transaction: Transaction) -> dict[str, Job]:
    """Install a transaction whole; returns the jobs of its anchors by unit."""
    anchors: dict[str, Job] = {}
    for node in transaction.nodes:
        job = _install(ledger, transaction.goal, node)
        if node.anchor:
            anchors[node.unit] = job
    for unit, refusal in transaction.dropped.items():
        _refuse_optional(ledger, transaction.goal, unit, refusal.error, refusal.message)
    return anchors


def start_automatically(ledger: Ledger, name: str, cause: int | None) -> str | None:
    """Queue a start that nobody asked for; returns why that is not possible, None when it is queued."""
    try:
        transaction = build(ledger, Goal(((name, JobType.START),), JobOrigin.AUTOMATIC, cause=cause))
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
        type=node.type,
        origin=goal.origin,
        named=_is_named(goal, node),
        ignore_order=goal.mode is JobMode.IGNORE_DEPENDENCIES,
        bound=goal.bound,
        reason=_reason(goal, node),
    )
    ledger.jobs[job.id] = ledger.job_of[node.unit] = ledger.edit_job(job)
    fields = {"job": job.id, "type": job.type.value, "origin": job.origin.value}
    puller = next((pull.by[0] for pull in node.pulls if pull.by is not None), None)
    if puller is not None and not node.anchor:
        fields["pulled_in_by"] = puller
    job.cause = ledger.record("job.queued", node.unit, cause=goal.cause, fields=fields, chain=False, asked=True)
    ledger.runnable[job.id] = None
    return job


def _reason(goal: Goal, node: Node) -> str:
    """Say why a unit is stopped that nobody named."""
    pull = next((pull for pull in node.pulls if pull.by is not None), None)
    if goal.reason or node.anchor or pull is None or pull.by is None:
        return goal.reason
    other, kind = pull.by
    if pull.conflict:
        return f"{other}, which conflicts with it, is started"
    words = {JobType.STOP: "stopped", JobType.RESTART: "restarted"}
    return f"{other}, which it needs, is {words[kind]}" if kind in words else ""


def _is_named(goal: Goal, node: Node) -> bool:
    return node.anchor and goal.origin is JobOrigin.COMMAND


def _merge_into(ledger: Ledger, job: Job, merged: JobType, goal: Goal, node: Node) -> Job:
    ledger.edit_job(job)
    origin = max(job.origin, goal.origin, key=_ORIGINS.index)
    # A stop that followed from something, and is now asked for, is ordered again: it must keep the unit down.
    if merged is not job.type or (merged is JobType.STOP and origin is not job.origin):
        job.type = merged
        job.state = JobState.WAITING
    job.origin = origin
    job.named = job.named or _is_named(goal, node)
    job.bound = job.bound and goal.bound
    if job.named or not job.reason:
        job.reason = _reason(goal, node)
    # Whoever asked for the order to be kept gets it.
    job.ignore_order = job.ignore_order and goal.mode is JobMode.IGNORE_DEPENDENCIES
    ledger.runnable[job.id] = None
    return job


def _refuse_optional(ledger: Ledger, goal: Goal, unit: str, error: str, message: str) -> None:
    """An enabled unit cannot be started with the others: it says so, and waits if that can help."""
    ledger.record(
        "job.finished",
        unit,
        severity=Severity.ERROR,
        cause=goal.cause,
        fields={"job": None, "type": JobType.START.value, "result": JobResult.DEPENDENCY.value, "message": message},
    )
    # A unit whose file was gone for a while may be running: it waits for nothing.
    if error in ("NoSuchUnit", "BadUnit") and unit in ledger.set.units and ledger.state(unit).sub in REST:
        _wait_for_dependency(ledger, unit, message)


# the worklists


def work(ledger: Ledger) -> None:
    """Carry all changes to their end."""
    steps = STEPS_MIN + STEPS_PER_UNIT * (len(ledger.set.units) + len(ledger.jobs))
    while steps:
        steps -= 1
        if ledger.changed:
            name = next(iter(ledger.changed))
            del ledger.changed[name]
            _look_at(ledger, name)
        elif ledger.intents:
            _carry_out(ledger, ledger.intents.popleft())
        elif ledger.runnable:
            job_id = next(iter(ledger.runnable))
            del ledger.runnable[job_id]
            job = ledger.jobs.get(job_id)
            if job is not None and job.state is JobState.WAITING:
                _run(ledger, job)
        else:
            return
    raise AssertionError("internal error: the job engine does not come to rest")


def _look_at(ledger: Ledger, name: str) -> None:
    """A unit changed: end its job if that is done, and let those look who may have waited for it."""
    job = ledger.job_of.get(name)
    if job is not None and job.state is JobState.RUNNING:
        _settle(ledger, job)
    job = ledger.job_of.get(name)
    if job is not None:
        ledger.runnable[job.id] = None
    for other in ledger.graph.neighbours(name):
        waiting = ledger.job_of.get(other)
        if waiting is not None and waiting.state is JobState.WAITING:
            ledger.runnable[waiting.id] = None
    state = ledger.state(name)
    if state.sub in UP or state.sub in STARTING or state.succeeded:
        for other in ledger.graph[name].required_by:
            if ledger.state(other).sub is SubState.DEPENDENCY and other not in ledger.job_of:
                ledger.intents.append(Task(Intent.RECOVER, other, name, state.cause))


def _settle(ledger: Ledger, job: Job) -> None:
    """End a running job if its unit has got where it was to go, or cannot get there any more."""
    state = ledger.state(job.unit)
    sub = state.sub
    match job.type:
        case JobType.START | JobType.VERIFY_ACTIVE | JobType.RELOAD_OR_START:
            if sub in UP:
                finish(ledger, job, JobResult.DONE)
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, life.stuck_message(ledger, job.unit))
            elif sub in BETWEEN_LIVES or sub in REST:
                _settle_ended_start(ledger, job)
        case JobType.STOP:
            if sub in REST:
                finish(ledger, job, JobResult.DONE)
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, life.stuck_message(ledger, job.unit))
        case JobType.RESTART:
            if sub in REST:
                ledger.edit_job(job)
                job.type, job.state = JobType.START, JobState.WAITING
                ledger.cursors.pop(job.id, None)
                # What waited for the stop half may go on; the start half waits for what it needs.
                ledger.runnable[job.id] = None
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, life.stuck_message(ledger, job.unit))
        case JobType.RELOAD:
            if sub is SubState.RELOAD:
                return
            if sub not in UP:
                finish(ledger, job, JobResult.FAILED, f"{job.unit} ended while it reloaded")
            elif state.reload_failed is not None:
                finish(ledger, job, JobResult.FAILED, f"{job.unit} could not reload: {state.reload_failed}")
            else:
                finish(ledger, job, JobResult.DONE)
        case JobType.NOP:
            finish(ledger, job, JobResult.DONE)


def _settle_ended_start(ledger: Ledger, job: Job) -> None:
    """The life that a start began is over: that is the success of a oneshot, and the failure of anything else."""
    state = ledger.state(job.unit)
    if state.result is Result.SUCCESS and state.ending is Ending.ITSELF:
        finish(ledger, job, JobResult.DONE)
        return
    message = f"{job.unit} failed ({state.result.value})" if state.result is not Result.SUCCESS else f"{job.unit} ended"
    if state.message:
        message += f": {state.message}"
    if state.sub is SubState.AUTO_RESTART:
        message += "; it will be restarted"
    result = JobResult.DEPENDENCY if state.ending is Ending.BOUND else JobResult.FAILED
    finish(ledger, job, result, message)


def finish(ledger: Ledger, job: Job, result: JobResult, message: str = "", *, spread: bool = True) -> None:
    """End a job: record it, free the unit's slot, and fail what required a start that did not happen."""
    name = job.unit
    del ledger.jobs[job.id]
    del ledger.job_of[name]
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
    ledger.changed[name] = None
    if result is JobResult.DONE or not spread or job.type not in (*_STARTS, JobType.RESTART):
        return
    sub = ledger.state(name).sub
    if result is JobResult.DEPENDENCY:
        if sub in REST or sub is SubState.AUTO_RESTART_QUEUED:
            _wait_for_dependency(ledger, name, message)
    elif sub is SubState.AUTO_RESTART_QUEUED:
        # The job that the restart consisted of is gone: the unit must not wait for it for ever.
        if result is JobResult.CANCELED:
            ledger.edit(name).stopped = True
        service.feed(ledger, name, Input.STOP)
    for other in ledger.graph[name].required_by:
        ledger.intents.append(Task(Intent.FAIL_DEPENDENT, other, name, ledger.state(name).cause))
    for other in ledger.graph[name].bound_by:
        ledger.intents.append(Task(Intent.STOP_BOUND, other, name, ledger.state(name).cause))


def _wait_for_dependency(ledger: Ledger, name: str, message: str) -> None:
    """A unit could not start because of another: it waits for that one to recover, or fails if it is told to."""
    unit = ledger.unit(name)
    waits = unit is None or unit.on_dependency_failure is OnDependencyFailure.WAIT
    state = ledger.set_sub(name, SubState.DEPENDENCY if waits else SubState.FAILED)
    ledger.arm_phase(name, None)
    state.result, state.message = Result.DEPENDENCY, message
    ledger.intents.append(Task(Intent.RECOVERED, name, name, state.cause))
    if not waits:
        fields = {"result": state.result.value, "message": message, "failures": state.failures, "limit_hit": False}
        ledger.record("unit.failed", name, severity=Severity.ERROR, fields=fields)


# running jobs


def _run(ledger: Ledger, job: Job) -> None:
    """Let a job do its next step, if it is its turn."""
    state = ledger.state(job.unit)
    kind = jobs.collapse(job.type, state.sub)
    if kind is not job.type:
        ledger.edit_job(job).type = kind
    if demand.first_blocker(ledger, job) is not None:
        _tell_queued(ledger, job)
        return
    match job.type:
        case JobType.START | JobType.RELOAD_OR_START:
            _run_start(ledger, job)
        case JobType.VERIFY_ACTIVE:
            _run_verify(ledger, job)
        case JobType.STOP:
            _run_stop(ledger, job)
        case JobType.RESTART:
            _begin(ledger, job)
            service.order_stop(ledger, job.unit, Ending.ORDER, job.reason or "a restart was asked for")
            ledger.changed[job.unit] = None
        case JobType.RELOAD:
            _run_reload(ledger, job)
        case JobType.NOP:
            finish(ledger, job, JobResult.SKIPPED, f"{job.unit} is not running")


def _begin(ledger: Ledger, job: Job) -> None:
    ledger.edit_job(job).state = JobState.RUNNING
    if job.cause is not None:
        ledger.edit(job.unit).cause = job.cause


def _run_start(ledger: Ledger, job: Job) -> None:
    name = job.unit
    state = ledger.state(name)
    asked = job.origin is JobOrigin.COMMAND
    if state.sub in UP:
        finish(ledger, job, JobResult.DONE)
    elif state.sub in STARTING:
        ledger.edit_job(job).state = JobState.RUNNING
    elif state.sub is SubState.STUCK:
        finish(ledger, job, JobResult.FAILED, life.stuck_message(ledger, name))
    elif state.sub in STOPPING:
        # Its next life begins when this one is over.
        _tell_queued(ledger, job)
    elif state.sub is SubState.AUTO_RESTART and not (asked and job.named):
        _tell_queued(ledger, job)
    elif (refusal := _refuse_start(ledger, job)) is not None:
        finish(ledger, job, *refusal)
    else:
        edited = ledger.edit(name)
        if asked and (job.named or state.sub in REST):
            edited.failures = edited.backoff = edited.restarts = 0
        _begin(ledger, job)
        service.feed(ledger, name, Input.START)


def _refuse_start(ledger: Ledger, job: Job) -> tuple[JobResult, str] | None:
    """Say why a unit whose turn has come cannot be started after all."""
    name = job.unit
    state, unit = ledger.state(name), ledger.unit(name)
    if ledger.globals.shutdown is not None:
        return JobResult.CANCELED, "the supervisor is shutting down"
    if unit is None:
        return JobResult.INVALID, f"no file defines {name} any more"
    if job.origin is JobOrigin.AUTOMATIC:
        if state.stopped:
            return JobResult.CANCELED, f"{name} was stopped"
        if (
            state.sub is SubState.FAILED
            and unit.service is not None
            and is_limit_hit(unit.service.restart, state.failures)
        ):
            return JobResult.FAILED, f"{name} has failed {state.failures} times; start it when it is mended"
    if job.ignore_order:
        return None
    conflict = demand.standing_conflict(ledger, name)
    if conflict is not None:
        sub = ledger.state(conflict).sub.value
        return JobResult.CANCELED, f"{name} conflicts with {conflict}, which is {sub}; stop {conflict} first"
    missing = demand.missing(ledger, name)
    if missing is not None:
        other = ledger.state(missing)
        why = f"{missing} is {other.sub.value}" + (f" ({other.message})" if other.message else "")
        return JobResult.DEPENDENCY, f"{name} needs {missing}, and {why}"
    return None


def _run_verify(ledger: Ledger, job: Job) -> None:
    sub = ledger.state(job.unit).sub
    if sub in UP:
        finish(ledger, job, JobResult.DONE)
    elif sub in STARTING or sub in BETWEEN_LIVES:
        ledger.edit_job(job).state = JobState.RUNNING
    else:
        finish(ledger, job, JobResult.SKIPPED, f"{job.unit} is not running")


def _run_stop(ledger: Ledger, job: Job) -> None:
    _begin(ledger, job)
    if job.origin is not JobOrigin.AUTOMATIC:
        ledger.edit(job.unit).stopped = True
    ending = Ending.BOUND if job.bound else Ending.ORDER
    service.order_stop(ledger, job.unit, ending, job.reason or "a stop was asked for")
    # A unit that was down already does not change, and yet its job is done.
    ledger.changed[job.unit] = None


def _run_reload(ledger: Ledger, job: Job) -> None:
    name = job.unit
    sub = ledger.state(name).sub
    own = ledger.service(name)
    if sub is SubState.RELOAD:
        # It may have read its settings already: once more when this reload is over.
        return
    if sub not in UP:
        finish(ledger, job, JobResult.INVALID, f"{name} is not running; start it")
    elif own is None or not own.exec_reload:
        finish(ledger, job, JobResult.INVALID, f"{name} has no exec-reload; restart it")
    else:
        _begin(ledger, job)
        service.feed(ledger, name, Input.RELOAD)


def _tell_queued(ledger: Ledger, job: Job) -> None:
    """Write once why a start does not begin at once."""
    if job.told or job.type not in _STARTS:
        return
    ledger.edit_job(job).told = True
    fields = {"job": job.id, "waiting_for": demand.blockers(ledger, job)}
    ledger.record("unit.queued", job.unit, cause=job.cause, fields=fields, chain=False)


# intents


def _carry_out(ledger: Ledger, task: Task) -> None:
    if ledger.globals.shutdown is not None:
        return
    match task.intent:
        case Intent.RESTART:
            _restart(ledger, task)
        case Intent.RECOVER:
            _recover(ledger, task)
        case Intent.RECOVERED:
            # Only when all is there: what is down stays down, or a start that fails would be tried for ever.
            if demand.has_all(ledger, task.unit):
                _recover(ledger, task)
        case Intent.STOP_BOUND:
            _stop_bound(ledger, task)
        case Intent.FAIL_DEPENDENT:
            _fail_dependent(ledger, task)


def _restart(ledger: Ledger, task: Task) -> None:
    name = task.unit
    if ledger.state(name).sub is not SubState.AUTO_RESTART_QUEUED:
        return
    job = ledger.job_of.get(name)
    if job is not None and job.type is JobType.STOP:
        # The stop's turn will come, and it wins.
        return
    refusal = start_automatically(ledger, name, task.cause)
    if refusal is not None:
        _wait_for_dependency(ledger, name, refusal)


def _recover(ledger: Ledger, task: Task) -> None:
    name = task.unit
    if ledger.state(name).sub is not SubState.DEPENDENCY or name in ledger.job_of:
        return
    tries = ledger.recoveries.get(name, 0)
    if tries == RECOVERIES_MAX or not demand.can_recover(ledger, name):
        return
    ledger.recoveries[name] = tries + 1
    refusal = start_automatically(ledger, name, task.cause)
    if refusal is not None:
        ledger.edit(name).message = refusal


def _stop_bound(ledger: Ledger, task: Task) -> None:
    """Stop a unit because what it is bound to has gone; it comes back with it."""
    name = task.unit
    sub = ledger.state(name).sub
    until = next((each.until for each in ledger.graph[name].binds_to if each.unit == task.other), None)
    if until is None or sub not in UP | STARTING or demand.is_kept(ledger, task.other, until):
        return
    if ledger.state(task.other).sub in STARTING:
        return
    job = ledger.job_of.get(name)
    if job is not None:
        if job.type in jobs.STOP_LIKE:
            return
        finish(ledger, job, JobResult.DEPENDENCY, f"{name} is bound to {task.other}, which ended", spread=False)
    reason = f"{task.other}, which it is bound to, has ended"
    goal = Goal(((name, JobType.STOP),), JobOrigin.AUTOMATIC, bound=True, reason=reason, cause=task.cause)
    apply(ledger, build_stop(ledger, goal))


def _fail_dependent(ledger: Ledger, task: Task) -> None:
    name = task.unit
    job = ledger.job_of.get(name)
    if job is None or job.state is not JobState.WAITING or job.type not in _STARTS or job.ignore_order:
        return
    # A unit that is still ending looks for itself when its turn comes; one in its back-off keeps its own time.
    sub = ledger.state(name).sub
    if sub in REST or sub in BETWEEN_LIVES:
        other = ledger.state(task.other)
        why = f" ({other.message})" if other.message else ""
        finish(ledger, job, JobResult.DEPENDENCY, f"{name} needs {task.other}, which did not start{why}")

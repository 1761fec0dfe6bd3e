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

from msgspec.structs import replace

from supervisord_py.core import demand, life, pool, processes, quarantine, service, steps, stopping, timed
from supervisord_py.core.actions import CheckConditions
from supervisord_py.core.consequences import carry_out
from supervisord_py.core.events import ConditionsChecked
from supervisord_py.core.installing import finish
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.orders import stop_reason
from supervisord_py.core.service import Input
from supervisord_py.core.state import (
    ARMED,
    BETWEEN_LIVES,
    REST,
    STARTING,
    STOPPING,
    THERE,
    UP,
    Ending,
    Job,
    JobOrigin,
    Order,
    UnitState,
)
from supervisord_py.model.states import (
    JobResult,
    JobState,
    JobType,
    Result,
    SubState,
)
from supervisord_py.model.unit import UnitSet

STEPS_MIN = 20_000
STEPS_PER_UNIT = 2_000
"""The bound of the worklists: far above what is needed, only there to end a loop that would never end."""

_STARTS = demand.STARTS
_UNASKED = (JobOrigin.AUTOMATIC, JobOrigin.RELATION)
"""Starts that the start limit counts."""

_CHECK_BITS = 32
"""A question about conditions has the job's number in its lower bits."""


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
            carry_out(ledger, ledger.intents.popleft())
        elif ledger.runnable:
            job_id = next(iter(ledger.runnable))
            del ledger.runnable[job_id]
            job = ledger.jobs.get(job_id)
            if job is not None and job.state is JobState.WAITING:
                _run(ledger, job)
        elif ledger.refused_changed:
            ledger.refused_changed = False
            ledger.intents += [
                Task(Intent.UPHOLD, name, "", ledger.state(name).cause) for name in sorted(ledger.refused)
            ]
        elif ledger.waits_changed:
            pool.let_in(ledger)
        elif ledger.idling and (idle := _idle_units(ledger)):
            for name in idle:
                service.feed(ledger, name, Input.IDLE)
        else:
            return
    raise AssertionError("internal error: the job engine does not come to rest")


def _idle_units(ledger: Ledger) -> list[str]:
    """Return the idle units, once their programs may run: no job is left but theirs, and such as wait for them."""
    for name in [name for name in ledger.idling if not processes.is_idling(ledger, name)]:
        del ledger.idling[name]
    for job in ledger.jobs.values():
        if job.unit in ledger.idling:
            continue
        if job.state is JobState.RUNNING or not any(each in ledger.idling for each in demand.blockers(ledger, job)):
            return []
    return sorted(ledger.idling)


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
    if state.sub in THERE or state.sub in STARTING or state.succeeded or quarantine.stands_in(state):
        for other in ledger.graph[name].required_by:
            if ledger.state(other).sub is SubState.DEPENDENCY:
                ledger.intents.append(Task(Intent.RECOVER, other, name, state.cause))
    if state.sub in REST:
        for other in (*ledger.graph[name].conflicts, *ledger.graph[name].conflicted_by):
            if other in ledger.refused:
                ledger.intents.append(Task(Intent.UPHOLD, other, "", state.cause))
    if state.sub in THERE:
        for upheld in ledger.graph[name].upholds:
            held = ledger.state(upheld.unit)
            if held.sub in REST and not held.skipped and upheld.unit not in ledger.job_of:
                ledger.intents.append(Task(Intent.UPHOLD, upheld.unit, name, state.cause))


def _settle(ledger: Ledger, job: Job) -> None:
    """End a running job if its unit has got where it was to go, or cannot get there any more."""
    state = ledger.state(job.unit)
    sub = state.sub
    if job.checking:
        return
    match job.type:
        case JobType.START | JobType.VERIFY_ACTIVE:
            if sub in UP or quarantine.stands_in(state) or (sub is SubState.WAITING and not job.runs):
                finish(ledger, job, JobResult.DONE)
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, stopping.stuck_message(ledger, job.unit))
            elif (
                sub in REST
                or sub is SubState.WAITING
                or (sub in BETWEEN_LIVES and job.type is not JobType.VERIFY_ACTIVE)
            ):
                # Who only asks whether it is there waits for a unit that is restarted: its next life may answer.
                _settle_ended_start(ledger, job)
        case JobType.STOP:
            if sub in REST:
                finish(ledger, job, JobResult.DONE)
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, stopping.stuck_message(ledger, job.unit))
        case JobType.RESTART:
            if sub in REST:
                ledger.edit_job(job)
                job.admitted = job.unit in ledger.holders
                job.type, job.state, job.halfway = JobType.START, JobState.WAITING, True
                # What waited for the stop half may go on; the start half waits for what it needs.
                ledger.runnable[job.id] = None
            elif sub is SubState.STUCK:
                finish(ledger, job, JobResult.FAILED, stopping.stuck_message(ledger, job.unit))
        case JobType.RELOAD:
            if sub is SubState.RELOAD:
                return
            if sub not in UP:
                finish(ledger, job, JobResult.FAILED, f"{job.unit} ended while it reloaded")
            elif state.reload_failed is not None:
                finish(ledger, job, JobResult.FAILED, f"{job.unit} could not reload: {state.reload_failed}")
            else:
                finish(ledger, job, JobResult.DONE)
        case JobType.NOP | JobType.RELOAD_OR_START:
            raise AssertionError(f"internal error: a {job.type.value} never runs")


def _settle_ended_start(ledger: Ledger, job: Job) -> None:
    """The life that a start began is over: that is the success of a oneshot, and the failure of anything else."""
    state = ledger.state(job.unit)
    if state.result is Result.SUCCESS and state.ending is Ending.ITSELF:
        finish(ledger, job, JobResult.DONE)
        return
    if state.result is Result.EXEC_CONDITION and state.ending is Ending.ITSELF:
        finish(ledger, job, JobResult.SKIPPED, f"{job.unit} was skipped: {state.message}", spread=False)
        return
    message = f"{job.unit} failed ({state.result.value})" if state.result is not Result.SUCCESS else f"{job.unit} ended"
    if state.message:
        message += f": {state.message}"
    if state.sub is SubState.AUTO_RESTART:
        message += "; it will be restarted"
    finish(ledger, job, JobResult.FAILED, message)


# running jobs


def _run(ledger: Ledger, job: Job) -> None:
    """Let a job do its next step, if it is its turn."""
    if demand.first_blocker(ledger, job) is not None:
        # What was checked may have changed when its turn comes again.
        ledger.edit_job(job).checked = False
        if not job.halfway:
            pool.leave(ledger, job)
        _tell_queued(ledger, job)
        return
    match job.type:
        case JobType.START:
            _run_start(ledger, job)
        case JobType.VERIFY_ACTIVE:
            _run_verify(ledger, job)
        case JobType.STOP:
            _run_stop(ledger, job)
        case JobType.RESTART:
            _begin(ledger, job)
            ledger.edit(job.unit).order = Order("restarted", job.by, job.note, job.reason)
            service.order_stop(ledger, job.unit, Ending.ORDER, stop_reason(job, "restarted"))
            ledger.changed[job.unit] = None
        case JobType.RELOAD:
            _run_reload(ledger, job)
        case JobType.NOP:
            finish(ledger, job, JobResult.SKIPPED, f"{job.unit} is not running")
        case JobType.RELOAD_OR_START:
            raise AssertionError("internal error: what that means is decided when the job is made")


def _begin(ledger: Ledger, job: Job) -> None:
    ledger.edit_job(job).state = JobState.RUNNING
    if job.cause is not None:
        ledger.edit(job.unit).cause = job.cause
    if job.type is JobType.RELOAD:
        return
    state = ledger.state(job.unit)
    if state.chain != job.chain and (job.origin is not JobOrigin.AUTOMATIC or job.chain is not None):
        ledger.edit(job.unit).chain = job.chain
    if state.left_alone is not None:
        ledger.edit(job.unit).left_alone = None


def _run_start(ledger: Ledger, job: Job) -> None:
    name = job.unit
    state = ledger.state(name)
    asked = job.origin is JobOrigin.COMMAND
    # A run that waits for its time-out is left to that by others; once that is over it is begun by any start.
    waits_on = state.sub is SubState.AUTO_RESTART and not _may_restart(job)
    is_there = timed.is_armed(state) and not job.runs and (state.sub not in BETWEEN_LIVES or waits_on)
    if state.sub in UP or is_there:
        finish(ledger, job, JobResult.DONE)
    elif state.sub in STARTING:
        ledger.edit_job(job).state = JobState.RUNNING
    elif state.sub is SubState.STUCK:
        finish(ledger, job, JobResult.FAILED, stopping.stuck_message(ledger, name))
    elif state.sub is SubState.STUB and (_is_released(job) or state.half_open):
        _tell_queued(ledger, job)
        why = "it is released" if _is_released(job) else "the unit is tried once more"
        service.feed(ledger, name, Input.STOP, steps.Ended(Result.SUCCESS, why, 0))
    elif state.quarantined and not _is_released(job) and not state.half_open:
        _leave_quarantined(ledger, job)
    elif state.sub in STOPPING:
        # Its next life begins when this one is over.
        _tell_queued(ledger, job)
    elif state.sub is SubState.AUTO_RESTART and not (asked and job.named):
        _tell_queued(ledger, job)
    elif (refusal := _refuse_start(ledger, job)) is not None:
        finish(ledger, job, *refusal)
        if job.origin is JobOrigin.RELATION and refusal[0] is JobResult.CANCELED and ledger.graph[name].upheld_by:
            # Its record has been written; it is tried again when what is in its way has gone.
            ledger.note_refused(name, refusal[1])
    elif state.sub in REST and timed.has_timer(ledger, name) and (job.arms or not job.runs):
        _arm(ledger, job)
    elif not pool.ask(ledger, job) or (not job.checked and _ask_conditions(ledger, job)):
        return
    elif job.origin in _UNASKED and (reason := life.refuse_automatic_start(ledger, name)) is not None:
        finish(ledger, job, JobResult.FAILED, f"{name} failed (start-limit-hit): {reason}")
    else:
        edited = ledger.edit(name)
        edited.skipped = False
        _note_order(edited, job)
        if asked and not job.runs and (job.named or state.sub in REST):
            _forget(ledger, job)
        if job.origin not in _UNASKED:
            life.count_start(ledger, name)
        _begin(ledger, job)
        service.feed(ledger, name, Input.START)


def _may_restart(job: Job) -> bool:
    """Tell whether a start is what a run that has failed waits for: its time-out, or somebody who names it."""
    return job.origin is JobOrigin.AUTOMATIC or job.named


def _arm(ledger: Ledger, job: Job) -> None:
    """Arm the timer of a unit; if it is to be run at once, too, the job goes on with that."""
    name = job.unit
    edited = ledger.edit(name)
    edited.skipped = False
    _note_order(edited, job)
    if job.origin is JobOrigin.COMMAND:
        _forget(ledger, job)
    if job.runs:
        ledger.edit_job(job).arms = False
        ledger.runnable[job.id] = None
    else:
        _begin(ledger, job)
    service.feed(ledger, name, Input.ARM)


def _forget(ledger: Ledger, job: Job) -> None:
    """Somebody wants the unit: what was counted against it begins anew."""
    quarantine.release(ledger, job.unit, by=job.by, reason=job.note, cause=job.cause)
    edited = ledger.edit(job.unit)
    edited.failures = edited.backoff = edited.restarts = 0
    edited.starts_ns = []


def _is_released(job: Job) -> bool:
    """Tell whether somebody named the unit: that is what ends a quarantine."""
    return job.origin is JobOrigin.COMMAND and job.named and not job.runs


def _leave_quarantined(ledger: Ledger, job: Job) -> None:
    """A start that does not end the quarantine: the stub has to do, if there is one."""
    name = job.unit
    if ledger.state(name).sub in REST:
        if quarantine.has_stub(ledger, name) and not pool.ask(ledger, job):
            # A stub takes a slot as the unit itself does.
            return
        quarantine.stand_in(ledger, name)
    state = ledger.state(name)
    if state.sub is SubState.STUB:
        ledger.edit_job(job).state = JobState.RUNNING
        ledger.changed[name] = None
    elif state.sub in STOPPING:
        _tell_queued(ledger, job)
    else:
        message = f"{name} is quarantined: it has failed {state.failures} times; mend it, then: supctl release {name}"
        finish(ledger, job, JobResult.FAILED, message)


def _note_order(state: UnitState, job: Job) -> None:
    """Remember who or what begins the life."""
    if job.origin is not JobOrigin.AUTOMATIC:
        verb = "restarted" if job.halfway else "triggered" if job.runs else "started"
        state.order = Order(verb, job.by, job.note, job.reason)
    elif state.order is not None:
        state.order = None if state.order.verb == "stopped" else replace(state.order, past=True)
    if len(job.monitors) == 1:
        state.monitor = job.monitors[0]
    elif state.sub not in BETWEEN_LIVES:
        state.monitor = None


def _ask_conditions(ledger: Ledger, job: Job) -> bool:
    """Have the conditions of a unit looked at, if it has any; an automatic restart does not look again."""
    unit = ledger.set.units.get(job.unit) or ledger.unit(job.unit)
    if unit is None or not (unit.conditions or unit.asserts) or ledger.state(job.unit).sub not in REST | ARMED:
        return False
    ledger.edit_job(job)
    job.state, job.checking = JobState.RUNNING, True
    ledger.edit(job.unit).skipped = False
    action = pending_check(ledger, job)
    assert action is not None
    ledger.act(action)
    return True


def _check_id(job: Job) -> int:
    """Return the number of the question that a job asks now: its own, and another one each time it asks again."""
    return job.id + (job.checks << _CHECK_BITS)


def pending_check(ledger: Ledger, job: Job) -> CheckConditions | None:
    """Return what a job asks about the conditions of its unit, None when it asks nothing."""
    unit = ledger.set.units.get(job.unit) or ledger.unit(job.unit)
    if not job.checking or unit is None:
        return None
    return CheckConditions(_check_id(job), job.unit, unit.conditions, unit.asserts)


def units_loaded(ledger: Ledger, before: UnitSet) -> None:
    """After a reload: what is being looked at by an older text is looked at again, and what is upheld anew starts."""
    for job in ledger.jobs.values():
        old, new = before.units.get(job.unit), ledger.set.units.get(job.unit)
        same = old is not None and new is not None and (old.conditions, old.asserts) == (new.conditions, new.asserts)
        if job.checking and not same:
            _stop_checking(ledger, job)
            ledger.runnable[job.id] = None
    for name, unit in ledger.set.units.items():
        if unit.upholds and ledger.state(name).sub in THERE:
            ledger.changed[name] = None
        if unit.service is None and ledger.state(name).quarantined:
            _release_target(ledger, name)


def _release_target(ledger: Ledger, name: str) -> None:
    """What has failed is not there any more: its file says now that the unit is a target."""
    quarantine.release(ledger, name, reason=quarantine.NOW_A_TARGET)
    state = ledger.edit(name)
    state.failures = state.backoff = state.restarts = 0
    if state.sub is SubState.STUB:
        service.feed(ledger, name, Input.STOP, steps.Ended(Result.SUCCESS, quarantine.NOW_A_TARGET, 0))
    elif state.sub is SubState.FAILED:
        ledger.set_sub(name, SubState.DEAD)
        state.result, state.message = Result.SUCCESS, None


def _stop_checking(ledger: Ledger, job: Job) -> None:
    """Let go of a question: an answer to it means nothing any more."""
    ledger.edit_job(job)
    job.state, job.checking, job.checks = JobState.WAITING, False, job.checks + 1


def conditions_checked(ledger: Ledger, event: ConditionsChecked) -> None:
    """Go on with a start whose conditions were looked at; an answer that no job waits for means nothing."""
    job = ledger.jobs.get(event.check_id & ((1 << _CHECK_BITS) - 1))
    if job is None or not job.checking or job.unit != event.unit or _check_id(job) != event.check_id:
        return
    _stop_checking(ledger, job)
    state = ledger.edit(job.unit)
    state.checked_wall_ns = ledger.now.wall_ns
    state.unmet = event.condition or event.assertion
    if state.unmet is None:
        job.checked = True
        ledger.runnable[job.id] = None
        return
    what = "a condition" if event.condition is not None else "an assertion"
    message = f"{what} of {job.unit} does not hold: {state.unmet}"
    if state.sub is SubState.DEPENDENCY:
        # It waits no longer: it has had its turn.
        ledger.set_sub(job.unit, SubState.DEAD).result = Result.SUCCESS
    if state.sub is SubState.DEAD:
        state.message = message
    if event.condition is None:
        finish(ledger, job, JobResult.ASSERT, message)
        return
    state.skipped = True
    ledger.record("unit.skipped", job.unit, cause=job.cause, fields={"job": job.id, "condition": state.unmet})
    # What requires it may start; what has to have it active looks for itself.
    finish(ledger, job, JobResult.SKIPPED, message, spread=False)


def _refuse_start(ledger: Ledger, job: Job) -> tuple[JobResult, str] | None:
    """Say why a unit whose turn has come cannot be started after all."""
    name = job.unit
    state, unit = ledger.state(name), ledger.unit(name)
    if ledger.globals.shutdown is not None:
        return JobResult.CANCELED, "the supervisor is shutting down"
    if name in ledger.set.masked:
        return JobResult.INVALID, f"{name} is masked: nothing starts it; supctl unmask {name}"
    if unit is None:
        return JobResult.INVALID, f"no file defines {name} any more"
    if job.origin is JobOrigin.AUTOMATIC:
        if state.stopped:
            return JobResult.CANCELED, f"{name} was stopped"
        if state.sub is SubState.FAILED and state.result is Result.START_LIMIT_HIT:
            return JobResult.FAILED, f"{name} is not started automatically any more: {state.message}"
        if quarantine.is_given_up(ledger, name):
            return JobResult.FAILED, f"{name} has failed {state.failures} times; start it when it is mended"
    if job.ignore_needs:
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
    if sub in UP or timed.is_armed(ledger.state(job.unit)):
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
    ledger.edit(job.unit).order = Order("stopped", job.by, job.note, job.reason)
    service.order_stop(ledger, job.unit, ending, stop_reason(job, "stopped"))
    # A unit that was down already does not change, and yet its job is done.
    ledger.changed[job.unit] = None


def _run_reload(ledger: Ledger, job: Job) -> None:
    name = job.unit
    sub = ledger.state(name).sub
    own = ledger.service(name)
    if sub is SubState.RELOAD or processes.looks_for_successor(ledger, name):
        # It may have read its settings already: once more when this reload is over. Or nobody reads them at the moment.
        return
    if sub is SubState.PAUSED:
        finish(ledger, job, JobResult.INVALID, f"{name} is paused; resume it first")
    elif sub is SubState.WAITING:
        finish(ledger, job, JobResult.INVALID, f"{name} waits for its time: no process of it runs")
    elif sub not in UP:
        finish(ledger, job, JobResult.INVALID, f"{name} is not running; start it")
    elif own is None or not processes.can_reload(own):
        finish(ledger, job, JobResult.INVALID, f"{name} has no exec-reload; restart it")
    else:
        _begin(ledger, job)
        service.feed(ledger, name, Input.RELOAD)


def _tell_queued(ledger: Ledger, job: Job) -> None:
    """Write once why a start does not begin at once."""
    if job.told or job.type not in _STARTS:
        return
    ledger.edit_job(job).told = True
    fields: dict[str, object] = {"job": job.id}
    if blockers := demand.blockers(ledger, job):
        fields["waiting_for"] = blockers
    else:
        fields["message"] = _waits_for_itself(ledger.state(job.unit))
    ledger.record("unit.queued", job.unit, cause=job.cause, fields=fields, chain=False)


def _waits_for_itself(state: UnitState) -> str:
    """Say what of the unit itself comes before its start."""
    if state.sub is SubState.STUB or state.is_stub:
        return "its stub ends first"
    return "its back-off is not over" if state.sub in BETWEEN_LIVES else "its life before ends first"


def job_timed_out(ledger: Ledger, name: str) -> None:
    """A job took longer than ``job-timeout-sec`` from when it was queued; what it began goes on without it."""
    job = ledger.job_of[name]
    ledger.edit_job(job).timeout_at_ns = None
    finish(ledger, job, JobResult.TIMEOUT, f"the {job.type.value} of {name} was not done within its job time-out")

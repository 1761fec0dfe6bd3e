"""What a unit's change asks of other units: the worklist of intents, each carried out as a transaction of its own.

Source: systemd, core/unit.c (unit_notify, unit_start_on_failure, retroactively_stop_dependencies), core/manager.c
(manager_dispatch_start_when_upheld_queue); that a unit waits for what it needs to recover is ours, and so is that an
upheld unit is left alone once it has failed as often as its policy allows.
"""

from msgspec.structs import replace

from supervisord_py.core import demand, jobs, listening, quarantine, shutdown, timed
from supervisord_py.core.actions import Refusal
from supervisord_py.core.installing import (
    apply,
    finish,
    refuse,
    start_automatically,
    tell_refused,
    wait_for_dependency,
)
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.state import (
    ARMED,
    BETWEEN_LIVES,
    REST,
    STARTING,
    THERE,
    Chain,
    Ending,
    JobOrigin,
    Monitor,
)
from supervisord_py.core.stopping import next_delay_ns
from supervisord_py.core.transaction import Goal, Node, RefusedError, build, build_stop
from supervisord_py.model.states import (
    JobMode,
    JobResult,
    JobState,
    JobType,
    OnDependencyFailure,
    Result,
    SubState,
)
from supervisord_py.model.unit import SECOND_NS, RestartPolicy
from supervisord_py.model.values import format_timespan

RECOVERIES_MAX = 8
"""So often a unit is started for a recovered dependency within one event: more would be two rules that disagree for
ever.
"""

RELATED_BURST = 16
RELATED_INTERVAL_NS = 10 * SECOND_NS
"""So many starts of a unit because of another one (upholds, on-failure, on-success) within that time. Then an upheld
unit waits for the rest of it, and others are left alone: units that name each other would go on for ever.
"""

RELATED_PAUSE_MAX_NS = 60 * SECOND_NS
_GROWING = RestartPolicy()
"""The pauses between attempts of a unit that has no policy of its own for them."""

CHAIN_MAX = 64
CHAIN_NS = 120 * SECOND_NS
"""So many starts within that time may follow one from the end of another (on-failure, on-success, and what conflicts):
units that start each other again and again, each slowly enough for ``RELATED_BURST``, are left alone then.
"""
CHAIN_UNITS = 8
"""So many of them are named."""


def carry_out(ledger: Ledger, task: Task) -> None:
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
        case Intent.STOP_ALONG:
            _stop_along(ledger, task)
        case Intent.UPHOLD:
            _uphold(ledger, task)
        case Intent.UPHOLD_LATER:
            _uphold_later(ledger, task.unit)
        case Intent.RUN:
            _run(ledger, task)
        case Intent.RETRY:
            _retry(ledger, task)
        case Intent.FAILED | Intent.QUARANTINED:
            _trigger(ledger, task)
        case Intent.SUCCEEDED:
            if ledger.state(task.unit).result is Result.SUCCESS:
                _trigger(ledger, task)
        case Intent.EXIT_SUPERVISOR:
            shutdown.end_for_unit(ledger, task.unit, task.cause)


def _restart(ledger: Ledger, task: Task) -> None:
    name = task.unit
    if ledger.state(name).sub is not SubState.AUTO_RESTART_QUEUED:
        return
    job = ledger.job_of.get(name)
    if job is not None and job.type is JobType.STOP:
        # The stop's turn will come, and it wins.
        return
    # Who needs it or is part of it is restarted with it, as if somebody had restarted it.
    refusal = start_automatically(ledger, name, task.cause, JobMode.RESTART_DEPENDENCIES)
    if refusal is not None:
        tell_refused(ledger, name, JobResult.DEPENDENCY, refusal, task.cause)
        wait_for_dependency(ledger, name, refusal)


def _run(ledger: Ledger, task: Task) -> None:
    """The timer of a unit has elapsed, or a connection has come: run it, unless somebody has asked for that, or for its
    end, already."""
    name = task.unit
    job = ledger.job_of.get(name)
    if ledger.state(name).sub not in ARMED or (job is not None and (job.runs or job.type in jobs.STOP_LIKE)):
        return
    goal = Goal(((name, JobType.START),), JobOrigin.AUTOMATIC, runs=True, cause=task.cause)
    try:
        transaction = build(ledger, goal)
    except RefusedError as error:
        refuse(ledger, goal, name, error.refusal)
        timed.job_ended(ledger, name)
        listening.job_ended(ledger, name)
        return
    apply(ledger, transaction)


def _retry(ledger: Ledger, task: Task) -> None:
    if start_automatically(ledger, task.unit, task.cause) is not None:
        quarantine.not_retried(ledger, task.unit)


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
    if until is None or sub not in THERE | STARTING or demand.is_kept(ledger, task.other, until):
        return
    if ledger.state(task.other).sub in STARTING:
        return
    job = ledger.job_of.get(name)
    if job is not None:
        if job.type in jobs.STOP_LIKE:
            return
        finish(ledger, job, JobResult.DEPENDENCY, f"{name} is bound to {task.other}, which ended", spread=False)
    reason = f"{task.other}, which it is bound to, has ended"
    chain = ledger.state(task.other).chain
    goal = Goal(((name, JobType.STOP),), JobOrigin.AUTOMATIC, bound=True, reason=reason, cause=task.cause, chain=chain)
    apply(ledger, build_stop(ledger, goal))


def _stop_along(ledger: Ledger, task: Task) -> None:
    """Stop a unit that goes down with another one, unless that is on its way up again by an order."""
    name = task.unit
    other_job, job = ledger.job_of.get(task.other), ledger.job_of.get(name)
    if other_job is not None and other_job.type in (*demand.STARTS, JobType.RESTART):
        return
    if ledger.state(name).connection is not None:
        give_up_start(ledger, name, f"{task.other} does not listen any more")
    if ledger.state(name).sub not in THERE | STARTING or (job is not None and job.type in jobs.STOP_LIKE):
        return
    reason = f"{task.other}, which takes it down with it, has ended"
    chain = ledger.state(task.other).chain
    goal = Goal(((name, JobType.STOP),), JobOrigin.AUTOMATIC, reason=reason, cause=task.cause, chain=chain)
    apply(ledger, build_stop(ledger, goal))


def give_up_start(ledger: Ledger, name: str, why: str) -> bool:
    """Call the start of an instance off that has not begun: the connection that it was made for goes. False when there
    is none."""
    job = ledger.job_of.get(name)
    if job is None or job.type not in demand.STARTS or ledger.state(name).sub not in REST:
        return False
    finish(ledger, job, JobResult.CANCELED, why, spread=False)
    return True


def _fail_dependent(ledger: Ledger, task: Task) -> None:
    name = task.unit
    job = ledger.job_of.get(name)
    if job is None or job.state is not JobState.WAITING or job.type not in demand.STARTS or job.ignore_needs:
        return
    # A unit that is still ending looks for itself when its turn comes; one in its back-off keeps its own time.
    sub = ledger.state(name).sub
    if sub in REST or sub in BETWEEN_LIVES:
        other = ledger.state(task.other)
        why = f" ({other.message})" if other.message else ""
        if name in ledger.graph[task.other].requisite_of and other.sub in REST:
            message = f"{name} has to find {task.other} active, and it is {other.sub.value}{why}"
        else:
            message = f"{name} needs {task.other}, which did not start{why}"
        finish(ledger, job, JobResult.DEPENDENCY, message)


def _uphold(ledger: Ledger, task: Task) -> None:
    """Start a unit again that another one upholds, even if somebody stopped it; not when it has failed too often.

    One that ended by itself is started after the pause that its restart policy has for automatic restarts: a program
    that ends at once would be run without a rest. So is one whose start came to nothing.
    """
    name = task.unit
    state, own = ledger.state(name), ledger.service(name)
    other = _upholder_of(ledger, name)
    if other is None or (task.other and state.uphold_at_ns is not None):
        return
    if task.other == name and own is not None and state.ending is Ending.ITSELF:
        _uphold_later(ledger, name)
        return
    if task.other and state.sub is SubState.FAILED and state.result is Result.DEPENDENCY:
        _uphold_later(ledger, name)
        return
    if _is_too_often(ledger, name):
        ledger.arm_uphold(name, ledger.state(name).related_from_ns + RELATED_INTERVAL_NS)
        return
    goal = Goal(
        ((name, JobType.START),),
        JobOrigin.RELATION,
        # What is asked for is not replaced: a stop that is under way stays one.
        JobMode.FAIL,
        gently=True,
        reason=f"{other} upholds it",
        cause=state.cause,
        chain=state.chain,
    )
    try:
        transaction = build(ledger, goal)
    except RefusedError as error:
        _uphold_once_it_can_be(ledger, name, other, error.refusal.message)
        return
    if state.uphold_refused is not None and any(_takes_down(ledger, node) for node in transaction.nodes):
        # What has been started meanwhile, which it contradicts, stays: only what is there with it is waited for.
        return
    _count_related(ledger, name)
    # It is to be up, whatever took it down: if it has to wait for what it needs, it comes with that.
    ledger.edit(name).stopped = False
    ledger.note_refused(name, None)
    apply(ledger, transaction)


def _upholder_of(ledger: Ledger, name: str) -> str | None:
    """Return who upholds a unit that is down, if that is to be started again for it."""
    state = ledger.state(name)
    is_down = state.sub in (SubState.DEAD, SubState.FAILED)
    # One that waits for what it needs comes with that, but for one whose own start was only in the way of others.
    is_held_up = state.sub is SubState.DEPENDENCY and state.uphold_refused is not None
    if not (is_down or is_held_up) or name in ledger.job_of or name not in ledger.set.units:
        return None
    if state.result is Result.START_LIMIT_HIT or quarantine.is_given_up(ledger, name):
        return None
    return demand.upholder(ledger, name)


def _uphold_later(ledger: Ledger, name: str) -> None:
    """Try it again after a pause that grows with each time."""
    if _upholder_of(ledger, name) is None or ledger.state(name).uphold_at_ns is not None:
        return
    own = ledger.service(name)
    state = ledger.edit(name)
    state.backoff += 1
    policy = _GROWING if own is None else own.restart
    if state.result is Result.DEPENDENCY:
        # Nothing of its own is wrong, and nothing of it is counted: what its policy says of failures has no end here.
        policy = replace(_GROWING, delay_ns=policy.delay_ns, max_delay_ns=policy.delay_ns + RELATED_PAUSE_MAX_NS)
    ledger.arm_uphold(name, ledger.now.mono_ns + next_delay_ns(ledger, policy, state.backoff))


def _uphold_once_it_can_be(ledger: Ledger, name: str, other: str, message: str) -> None:
    """The start of an upheld unit is refused: say so once, and try it again when a job ends.

    One that lacks what it needs says so by its state.
    """
    state, unit = ledger.state(name), ledger.set.units[name]
    waits = unit.on_dependency_failure is OnDependencyFailure.WAIT and state.sub is not SubState.FAILED
    lacks = waits and not demand.has_all(ledger, name)
    is_new = state.uphold_refused != message
    ledger.note_refused(name, message)
    if is_new:
        result = JobResult.DEPENDENCY if lacks else JobResult.CANCELED
        tell_refused(ledger, name, result, message, state.cause, upheld_by=other)
    if lacks and state.sub is SubState.DEAD:
        ledger.edit(name).stopped = False
        wait_for_dependency(ledger, name, message)


def _takes_down(ledger: Ledger, node: Node) -> bool:
    """Tell whether a job would end what is there."""
    return node.type in jobs.STOP_LIKE and not jobs.is_redundant(JobType.STOP, ledger.state(node.unit).sub)


def _is_too_often(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit was started so often because of others that it has to wait."""
    state = ledger.state(name)
    return state.related >= RELATED_BURST and ledger.now.mono_ns - state.related_from_ns < RELATED_INTERVAL_NS


def _count_related(ledger: Ledger, name: str) -> None:
    """Count one more start of a unit because of another."""
    state, now_ns = ledger.edit(name), ledger.now.mono_ns
    if not state.related or now_ns - state.related_from_ns >= RELATED_INTERVAL_NS:
        state.related, state.related_from_ns = 0, now_ns
    state.related += 1


def _trigger(ledger: Ledger, task: Task) -> None:
    """Start what a unit names for its end, and let that know whose end it was."""
    unit = ledger.unit(task.unit)
    again = any(each.intent is task.intent and each.unit == task.unit for each in ledger.intents)
    if unit is None or again:
        return
    state = ledger.state(task.unit)
    key, end, names = {
        Intent.FAILED: ("on-failure", "has failed", unit.on_failure),
        Intent.SUCCEEDED: ("on-success", "has ended well", unit.on_success),
        Intent.QUARANTINED: ("on-quarantine", "is quarantined", unit.quarantine.on_quarantine),
    }[task.intent]
    monitor = Monitor(
        unit=task.unit,
        result=state.result,
        code=state.exit_code,
        signal=state.exit_signal,
        dumped=state.exit_dumped,
        invocation=state.invocation,
        ended=state.main_ended,
    )
    chain = _next_link(ledger, task.unit)
    for name in names:
        if name == task.unit:
            continue
        goal = Goal(
            ((name, JobType.START),),
            JobOrigin.RELATION,
            reason=f"{task.unit}, which names it in {key}, {end}",
            cause=state.cause,
            chain=chain,
        )
        if (why := _left_alone(ledger, name, chain)) is not None:
            message = f"cannot start {name} for {task.unit}: {why}"
            refuse(ledger, goal, name, Refusal("Busy", message))
            if ledger.state(name).sub in REST:
                ledger.edit(name).left_alone = message
            continue
        try:
            transaction = build(ledger, goal)
        except RefusedError as error:
            refuse(ledger, goal, name, error.refusal)
            continue
        _count_related(ledger, name)
        for job in apply(ledger, transaction).values():
            others = [each for each in job.monitors if each.unit != task.unit]
            ledger.edit_job(job).monitors = [*others, monitor]


def _next_link(ledger: Ledger, name: str) -> Chain:
    """Return the chain that goes on with the end of a unit."""
    chain = ledger.state(name).chain
    if chain is None or ledger.now.mono_ns - chain.from_ns >= CHAIN_NS:
        return Chain(1, ledger.now.mono_ns, (name,))
    units = chain.units if name in chain.units or len(chain.units) == CHAIN_UNITS else (*chain.units, name)
    return Chain(chain.links + 1, chain.from_ns, units)


def _left_alone(ledger: Ledger, name: str, chain: Chain) -> str | None:
    """Say why a unit is not started because of another one, None if it may be."""
    if _is_too_often(ledger, name):
        often = f"{RELATED_BURST} times within {format_timespan(RELATED_INTERVAL_NS)}"
        return f"it was started {often} because of other units"
    if chain.links > CHAIN_MAX:
        often = f"{CHAIN_MAX} starts within {format_timespan(CHAIN_NS)}"
        who = " and ".join(filter(None, (", ".join(chain.units[:-1]), chain.units[-1])))
        return f"{often} have followed one from the end of another, of {who}: they would go round for ever"
    return None

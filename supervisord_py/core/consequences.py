"""What a unit's change asks of other units: the worklist of intents, each carried out as a transaction of its own.

Source: systemd, core/unit.c (unit_notify, retroactively_stop_dependencies); that a unit waits for what it needs to
recover is ours.
"""

from supervisord_py.core import demand, jobs
from supervisord_py.core.installing import apply, finish, start_automatically, wait_for_dependency
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.state import BETWEEN_LIVES, REST, STARTING, UP, JobOrigin
from supervisord_py.core.transaction import Goal, build_stop
from supervisord_py.model.states import JobResult, JobState, JobType, SubState

RECOVERIES_MAX = 8
"""So often a unit is started for a recovered dependency within one event: more would be two rules that disagree for
ever.
"""


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
        wait_for_dependency(ledger, name, refusal)


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
    if job is None or job.state is not JobState.WAITING or job.type not in demand.STARTS or job.ignore_order:
        return
    # A unit that is still ending looks for itself when its turn comes; one in its back-off keeps its own time.
    sub = ledger.state(name).sub
    if sub in REST or sub in BETWEEN_LIVES:
        other = ledger.state(task.other)
        why = f" ({other.message})" if other.message else ""
        finish(ledger, job, JobResult.DEPENDENCY, f"{name} needs {task.other}, which did not start{why}")

"""What a unit that is to start waits for, and whether it is there: the questions that the order of jobs is decided by.

Laws: ordering applies between jobs that exist; a strict dependency must also be *met* when its dependent starts. A stop
goes before a start, and of two stops the dependent's goes first. A unit whose start was skipped, because a condition
did not hold, has done what was asked of it: what requires it may start, what is bound to it or only looks whether it is
there (requisite) may not.

Source: systemd, core/job.c (job_compare, job_is_runnable), core/unit.c (unit_verify_deps, unit_is_upheld_by_active);
``until`` is ours.
"""

from collections.abc import Iterator

from supervisord_py.core import health, processes, quarantine
from supervisord_py.core.graph import Edge
from supervisord_py.core.jobs import STOP_LIKE
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import ARMED, BETWEEN_LIVES, REST, STARTING, STOPPING, THERE, UP, Job, UnitState
from supervisord_py.model.states import JobState, JobType, Result, ServiceType, SubState, Until
from supervisord_py.model.unit import Dependency

STARTS = frozenset({JobType.START, JobType.VERIFY_ACTIVE})


def is_met(ledger: Ledger, other: str, until: Until) -> bool:
    """Tell whether ``other`` has got as far as ``until`` says, in its present life (or, having done its work, in its
    last).
    """
    state = ledger.state(other)
    if _is_skipped(state):
        return True
    if until is Until.EXITED:
        is_over = state.sub is SubState.DEAD or state.sub in ARMED
        return state.sub is SubState.EXITED or (is_over and state.succeeded)
    if state.sub is SubState.DEAD:
        # The readiness of a oneshot is its success; a daemon that ended well is not ready any more.
        return state.accomplished
    is_there = _is_there(state)
    if until is Until.HEALTHY and state.sub in UP:
        return health.is_healthy(ledger, other)
    return is_there or (until is Until.STARTED and _has_started(ledger, other, state))


def _is_there(state: UnitState) -> bool:
    """A stub takes the place of a unit that is quarantined; what is armed is there also between its runs."""
    return state.sub in UP or quarantine.stands_in(state) or state.is_armed


def _has_started(ledger: Ledger, name: str, state: UnitState) -> bool:
    """Tell whether the main program of a unit that is starting has begun, and goes on (or has done its work)."""
    if state.sub not in STARTING or not state.started or state.result is not Result.SUCCESS:
        return False
    service = ledger.service(name)
    may_end = service is not None and (service.type is ServiceType.ONESHOT or service.remain_after_exit)
    return may_end or processes.is_alive(ledger, name)


def is_kept(ledger: Ledger, other: str, until: Until) -> bool:
    """Tell whether ``other`` is there for a unit that is bound to it: any inactive state is not."""
    if until is Until.EXITED:
        return is_met(ledger, other, until) and not ledger.state(other).skipped
    state = ledger.state(other)
    return _is_there(state) or (until is Until.STARTED and not _is_skipped(state) and is_met(ledger, other, until))


def _may_bind(ledger: Ledger, other: str, until: Until) -> bool:
    """Tell whether a unit that is bound to ``other`` may start: one that is up already stays so when that gets ill."""
    return is_kept(ledger, other, until) and (until is not Until.HEALTHY or is_met(ledger, other, until))


def _is_skipped(state: UnitState) -> bool:
    """Tell whether the last start was skipped: by a condition, or by an exec-condition."""
    return state.sub in REST and (
        state.skipped or (state.sub is SubState.DEAD and state.result is Result.EXEC_CONDITION)
    )


def missing(ledger: Ledger, name: str) -> str | None:
    """Return the first dependency that ``name`` cannot start without and that is not there."""
    for edge in ledger.graph[name].after:
        if edge.needed is not None and not is_met(ledger, edge.other, edge.needed):
            return edge.other
        for until in (edge.bound, edge.present):
            if until is not None and not _may_bind(ledger, edge.other, until):
                return edge.other
    return next((each.unit for each in ledger.graph[name].requisite if _is_away(ledger, each)), None)


def _is_away(ledger: Ledger, dependency: Dependency) -> bool:
    """Tell whether a requisite that imposes no order is neither there nor on its way."""
    if dependency.ordered:
        return False
    job = ledger.job_of.get(dependency.unit)
    if job is not None and job.type in (JobType.START, JobType.RESTART):
        return False
    sub = ledger.state(dependency.unit).sub
    return sub not in THERE and sub not in STARTING and sub not in BETWEEN_LIVES


def has_all(ledger: Ledger, name: str) -> bool:
    """Tell whether every unit that ``name`` requires, is bound to or has to find is there."""
    relations = ledger.graph[name]
    return all(is_met(ledger, each.unit, each.until) for each in relations.requires) and all(
        _may_bind(ledger, each.unit, each.until) for each in (*relations.binds_to, *relations.requisite)
    )


def can_recover(ledger: Ledger, name: str) -> bool:
    """Tell whether a unit that waits for a dependency may be started: each of its strict ones is there, or simply
    down (then the start pulls it in).
    """
    relations = ledger.graph[name]
    if not all(_may_bind(ledger, each.unit, each.until) for each in relations.requisite):
        return False
    needs = [(each, False) for each in relations.requires] + [(each, True) for each in relations.binds_to]
    for dependency, bound in needs:
        other, until = dependency.unit, dependency.until
        if _may_bind(ledger, other, until) if bound else is_met(ledger, other, until):
            continue
        state = ledger.state(other)
        if state.sub is not SubState.DEAD or state.stopped or state.succeeded or other not in ledger.set.units:
            return False
    return True


def first_blocker(ledger: Ledger, job: Job) -> str | None:
    """Return a unit that the job has to wait for, None when it may run.

    The search goes on where it stopped last: a unit that waits for a thousand others would otherwise look at all of
    them each time one gets ready.
    """
    if job.ignore_order or job.type is JobType.NOP:
        return None
    edges = ledger.graph[job.unit].after
    if job.type not in STOP_LIKE and edges:
        start = ledger.cursors.get(job.id, 0)
        for offset in range(len(edges)):
            place = (start + offset) % len(edges)
            if _edge_blocks(ledger, edges[place]):
                ledger.cursors[job.id] = place
                return edges[place].other
    return next(_other_blockers(ledger, job), None)


def blockers(ledger: Ledger, job: Job) -> list[str]:
    """Return every unit that the job has to wait for, sorted."""
    if job.ignore_order or job.type is JobType.NOP:
        return []
    found = dict.fromkeys(_other_blockers(ledger, job))
    if job.type not in STOP_LIKE:
        found |= dict.fromkeys(edge.other for edge in ledger.graph[job.unit].after if _edge_blocks(ledger, edge))
    return sorted(found)


def _edge_blocks(ledger: Ledger, edge: Edge) -> bool:
    """Tell whether a start has to wait for the unit at the other end of its edge."""
    job = ledger.job_of.get(edge.other)
    if job is not None:
        if job.type in STOP_LIKE:
            return True
        if job.type in STARTS:
            if edge.until is not Until.STARTED:
                return True
            return job.state is JobState.WAITING or not is_met(ledger, edge.other, Until.STARTED)
    if edge.until is Until.HEALTHY and ledger.state(edge.other).sub in UP and health.is_undecided(ledger, edge.other):
        return True
    # Nobody asks it to end, but it is known to be on its way: what comes after its end waits.
    return edge.until is Until.EXITED and _may_still_end(ledger, edge.other)


def _may_still_end(ledger: Ledger, other: str) -> bool:
    state = ledger.state(other)
    sub = state.sub
    if sub in ARMED:
        return not state.succeeded
    return sub not in REST and sub not in BETWEEN_LIVES and sub is not SubState.EXITED and sub is not SubState.STUCK


def _other_blockers(ledger: Ledger, job: Job) -> Iterator[str]:
    """Yield the units whose stop goes before this job."""
    relations = ledger.graph[job.unit]
    for other in relations.before:
        other_job = ledger.job_of.get(other)
        if other_job is not None and other_job.type in STOP_LIKE and not other_job.ignore_order:
            yield other
    if job.type not in STOP_LIKE:
        for other in (*relations.conflicts, *relations.conflicted_by):
            other_job = ledger.job_of.get(other)
            ends = ledger.state(other).sub in STOPPING and ledger.state(other).sub is not SubState.STUCK
            if ends or (other_job is not None and other_job.type is JobType.STOP):
                yield other


def upholder(ledger: Ledger, name: str) -> str | None:
    """Return a unit that is up, with nothing else to be done about it, and upholds ``name``."""
    for other in ledger.graph[name].upheld_by:
        if ledger.state(other).sub in THERE and other not in ledger.job_of:
            return other
    return None


def standing_conflict(ledger: Ledger, name: str) -> str | None:
    """Return a unit that conflicts with ``name`` and is not down: its stop failed, or was called off."""
    relations = ledger.graph[name]
    for other in (*relations.conflicts, *relations.conflicted_by):
        if other != name and ledger.state(other).sub not in REST:
            return other
    return None

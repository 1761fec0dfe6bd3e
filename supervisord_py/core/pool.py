"""How many units may run at the same time, in all and in each pool, and whose turn it is when there is no room.

Theory of operation
-------------------
A *slot* is held from the moment when a start is let in until no process of the unit is left: by units that start, run,
are paused, end or are stuck, and by stubs. A target, a finished oneshot, an armed timer and a unit in its back-off hold
none; a restart that somebody asked for keeps its slot between its two halves.

A start whose only obstacle is the limit waits as a job with ``Job.pool`` set. Who is let in is decided when everything
else in an event has come to rest (``let_in``): the highest priority first, the oldest job first within one. A job that
must wait for another limit lets those behind it pass, or a full pool would empty the whole machine.

Laws: no more slots are held than a limit allows, but those that were held before it was lowered; a slot never stays
free while a job that needs nothing else waits for it; what is held is derived from units and jobs, never counted twice.

Source: ours; `WorkerPoolScheduler` of the older systems; defects B-PO-1 and B-PO-18 in their list.
"""

from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import Job
from supervisord_py.model.pools import WORKERS, PoolLimits
from supervisord_py.model.states import JobState


def limits_of(ledger: Ledger, name: str) -> tuple[str, ...]:
    """Return the names of the limits that the next life of a unit is under; a limit of 0 is none."""
    unit = ledger.set.units.get(name) or ledger.unit(name)
    if unit is None or unit.service is None:
        return ()
    limits = ledger.globals.limits
    names = (WORKERS, unit.pool.name) if unit.pool.name else (WORKERS,)
    return tuple(each for each in names if limits.of(each) is not None)


def ask(ledger: Ledger, job: Job) -> bool:
    """Tell whether a start may go on; else it waits for its turn."""
    if job.admitted or job.unit in ledger.holders or not limits_of(ledger, job.unit):
        return True
    ledger.waiting[job.id] = None
    ledger.waits_changed = True
    return False


def let_in(ledger: Ledger) -> None:
    """Let in who can be, and tell the others once what they wait for."""
    ledger.waits_changed = False
    left: dict[str, list[Job]] = {}
    for job in queue(ledger):
        full = _full_limit(ledger, job.unit)
        if full is not None:
            left.setdefault(full, []).append(job)
            continue
        ledger.edit_job(job).admitted = True
        job.pool = None
        del ledger.waiting[job.id]
        ledger.note_slot(job.unit)
        ledger.runnable[job.id] = None
    ledger.places = {}
    for limit, waiting in left.items():
        for place, job in enumerate(waiting, 1):
            ledger.places[job.id] = (place, len(waiting))
            if job.pool != limit:
                _tell(ledger, job, limit)


def queue(ledger: Ledger) -> list[Job]:
    """Return the jobs that wait for a slot, in the order in which they will get one."""
    found = [ledger.jobs[each] for each in ledger.waiting]
    return sorted(found, key=lambda job: (-_priority(ledger, job.unit), job.id))


def holders(ledger: Ledger, limit: str) -> list[str]:
    """Return the units that hold a slot of a limit, sorted."""
    return sorted(name for name, pool in ledger.holders.items() if limit in (WORKERS, pool))


def set_limits(ledger: Ledger, limits: PoolLimits) -> None:
    """Take over what is allowed from now on; who runs keeps running."""
    if ledger.globals.limits != limits:
        ledger.edit_globals().limits = limits
    ledger.waits_changed = True


def used(ledger: Ledger, limit: str) -> int:
    """Return how many slots of a limit are held."""
    return ledger.used.get(limit, 0)


def describe(ledger: Ledger, limit: str) -> str:
    """Name a limit with what it allows: ``max-workers = 4``, ``pool "gpu" (max-workers = 1)``."""
    most = ledger.globals.limits.of(limit)
    return f"max-workers = {most}" if limit == WORKERS else f'pool "{limit}" (max-workers = {most})'


def leave(ledger: Ledger, job: Job) -> None:
    """A job waits for a slot no longer: it has ended, or waits for something else first."""
    if job.id in ledger.waiting:
        del ledger.waiting[job.id]
        ledger.edit_job(job).pool = None
        ledger.places.pop(job.id, None)
        ledger.waits_changed = True
    if job.admitted:
        ledger.edit_job(job).admitted = False
        ledger.note_slot(job.unit)


def _priority(ledger: Ledger, name: str) -> int:
    unit = ledger.set.units.get(name) or ledger.unit(name)
    return unit.pool.priority if unit is not None else 0


def _full_limit(ledger: Ledger, name: str) -> str | None:
    for limit in limits_of(ledger, name):
        most = ledger.globals.limits.of(limit)
        if most is not None and used(ledger, limit) >= most:
            return limit
    return None


def _tell(ledger: Ledger, job: Job, limit: str) -> None:
    """Write that a start waits for a slot."""
    ledger.edit_job(job).pool = limit
    place, count = ledger.places[job.id]
    fields = {
        "job": job.id,
        "limit": limit or "max-workers",
        "allowed": ledger.globals.limits.of(limit),
        "position": place,
        "waiting": count,
    }
    ledger.record("unit.queued", job.unit, cause=job.cause, fields=fields, chain=False)


def restore(ledger: Ledger) -> None:
    """Build the index of held slots and waiting jobs from the state."""
    for name in sorted({**ledger.states, **ledger.job_of}):
        ledger.note_slot(name)
    for job in ledger.jobs.values():
        if job.state is JobState.WAITING and job.pool is not None:
            ledger.waiting[job.id] = None
    counts: dict[str | None, list[int]] = {}
    for job in queue(ledger):
        counts.setdefault(job.pool, []).append(job.id)
    for found in counts.values():
        ledger.places |= {job_id: (place, len(found)) for place, job_id in enumerate(found, 1)}

"""The algebra of jobs: which types merge, what a type becomes in a given state, and when a job would change nothing.

Laws of ``MERGE`` (a property test holds them): commutative, associative, idempotent; ``nop`` is the identity; ``stop``
merges with nothing but itself; ``restart`` absorbs all that merge. None means that the two cannot be one job: one of
them must go.

Source: systemd, core/job.c (job_type_lookup_merge, job_type_is_redundant, job_type_collapse); system-anchors 1.2.
"""

from supervisord_py.core.state import REST, STARTING, THERE, UP
from supervisord_py.model.states import JobType, SubState

_START, _VERIFY, _STOP = JobType.START, JobType.VERIFY_ACTIVE, JobType.STOP
_RELOAD, _RESTART, _EITHER, _NOP = JobType.RELOAD, JobType.RESTART, JobType.RELOAD_OR_START, JobType.NOP

_PAIRS: dict[tuple[JobType, JobType], JobType | None] = {
    (_START, _START): _START,
    (_START, _VERIFY): _START,
    (_START, _STOP): None,
    (_START, _RELOAD): _EITHER,
    (_START, _RESTART): _RESTART,
    (_START, _EITHER): _EITHER,
    (_VERIFY, _VERIFY): _VERIFY,
    (_VERIFY, _STOP): None,
    (_VERIFY, _RELOAD): _RELOAD,
    (_VERIFY, _RESTART): _RESTART,
    (_VERIFY, _EITHER): _EITHER,
    (_STOP, _STOP): _STOP,
    (_STOP, _RELOAD): None,
    (_STOP, _RESTART): None,
    (_STOP, _EITHER): None,
    (_RELOAD, _RELOAD): _RELOAD,
    (_RELOAD, _RESTART): _RESTART,
    (_RELOAD, _EITHER): _EITHER,
    (_RESTART, _RESTART): _RESTART,
    (_RESTART, _EITHER): _RESTART,
    (_EITHER, _EITHER): _EITHER,
    **{(_NOP, kind): kind for kind in JobType},
}

MERGE: dict[tuple[JobType, JobType], JobType | None] = _PAIRS | {(b, a): c for (a, b), c in _PAIRS.items()}
"""Every pair of types in both orders."""

STOP_LIKE = frozenset({JobType.STOP, JobType.RESTART})
"""Jobs whose next step is a stop: a restart that has stopped its unit is patched to a start."""


def merge(a: JobType, b: JobType) -> JobType | None:
    """Return the type that does what both ask for, None when there is none."""
    return MERGE[a, b]


def collapse(kind: JobType, sub: SubState) -> JobType:
    """Return what ``kind`` means for a unit in state ``sub``: ``reload-or-start`` is one or the other."""
    if kind is JobType.RELOAD_OR_START:
        return JobType.RELOAD if sub in UP else JobType.START
    return kind


def is_redundant(kind: JobType, sub: SubState) -> bool:
    """Tell whether a job of this type would change nothing for a unit in state ``sub``.

    A unit that waits for a dependency or for its back-off is not stopped: a stop ends the waiting.
    """
    match kind:
        case JobType.START | JobType.VERIFY_ACTIVE:
            return sub in THERE
        case JobType.STOP:
            return sub in REST and sub is not SubState.DEPENDENCY
        case JobType.RELOAD | JobType.RELOAD_OR_START | JobType.RESTART:
            return False
        case JobType.NOP:
            return True


def try_restart(sub: SubState) -> JobType:
    """Return what ``try-restart`` of a unit in state ``sub`` is: a restart if there is a life to restart.

    There is none while a unit waits for its time: the next one is a new one anyway.
    """
    return JobType.RESTART if sub in UP | STARTING else JobType.NOP

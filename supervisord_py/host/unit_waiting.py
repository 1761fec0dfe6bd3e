"""What ``Wait`` waits for, as a question about a unit's state that is asked again whenever something changed.

A life is over when none of its processes is at work any more: at rest, between two lives, or in a state that needs no
process.
"""

from collections.abc import Callable
from enum import Enum

from supervisord_py.model.status import UnitStatus

_UP = frozenset({"active", "reloading"})
_DOWN = frozenset({"inactive", "failed", "quarantined"})
_GIVEN_UP = frozenset({"failed", "quarantined"})
_PROCESSLESS = frozenset({"exited", "auto-restart", "auto-restart-queued", "waiting", "listening", "stub"})


class Goal(Enum):
    READY = "ready"
    ACTIVE = "active"
    INACTIVE = "inactive"
    EXIT = "exit"


class Watch:
    """Waits for one goal of one unit; ``first`` is its state when the waiting began."""

    def __init__(self, goal: Goal, first: UnitStatus) -> None:
        self._goal = goal
        self._invocation = first.invocation if _is_alive(first) else None

    def is_reached(self, status: UnitStatus, *, has_job: Callable[[], bool]) -> bool:
        """Tell whether the waiting is over.

        Args:
            status: The unit now.
            has_job: Says whether a job of the unit is queued or runs; asked only where it matters, it may be dear.
        """
        match self._goal:
            case Goal.ACTIVE:
                return status.active_state in _UP
            case Goal.READY:
                return status.active_state in _UP or _is_done(status, has_job=has_job)
            case Goal.INACTIVE:
                return status.active_state in _DOWN and not has_job()
            case Goal.EXIT:
                return self._life_is_over(status, has_job=has_job)

    def is_hopeless(self, status: UnitStatus, *, has_job: Callable[[], bool]) -> bool:
        """Tell whether the goal will not be reached without somebody doing something: the unit has failed for good."""
        return self._goal in (Goal.READY, Goal.ACTIVE) and status.active_state in _GIVEN_UP and not has_job()

    def _life_is_over(self, status: UnitStatus, *, has_job: Callable[[], bool]) -> bool:
        alive = _is_alive(status)
        if self._invocation is not None:
            return not alive or status.invocation != self._invocation
        if alive:
            # It was about to begin: this is the life that is meant.
            self._invocation = status.invocation
            return False
        return not has_job()


def _is_alive(status: UnitStatus) -> bool:
    return status.active_state not in _DOWN | {"queued"} and status.sub_state not in _PROCESSLESS


def _is_done(status: UnitStatus, *, has_job: Callable[[], bool]) -> bool:
    """A oneshot is ready by its success, and at rest right after."""
    return (
        status.active_state == "inactive"
        and status.sub_state == "dead"
        and status.result == "success"
        and status.exit is not None
        and status.exit.code == 0
        and not has_job()
    )

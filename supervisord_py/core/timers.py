"""The deadlines of all units in one heap.

Theory of operation
-------------------
A deadline lives in the state of its owner (``UnitState.timeout_at_ns``, ...); the heap only finds the earliest quickly.
An entry is stale when its owner's field no longer says the same time, and stale entries are dropped when they come to
the top, so moving a deadline costs one push. Equal times are ordered by owner and kind: the order does not depend on
when they were armed, so a restored manager fires them as the original would.
"""

from collections.abc import Callable
from enum import Enum
from heapq import heapify, heappop, heappush


class DeadlineKind(Enum):
    PHASE = "phase"
    HEALTHY = "healthy"
    JOB = "job"
    UPHOLD = "uphold"
    RETRY = "retry"
    PROBE = "probe"
    BESIDE = "beside"
    WATCHDOG = "watchdog"
    PROGRESS = "progress"
    TIMER = "timer"
    LISTEN = "listen"
    UNUSED = "unused"
    ROLLOUT = "rollout"
    SHUTDOWN = "shutdown"


Entry = tuple[int, str, str]
"""Time [ns], owner's name (empty: the manager itself), kind."""


class Timers:
    """Finds the earliest deadline that still holds."""

    def __init__(self, holds: Callable[[int, str, DeadlineKind], bool]) -> None:
        self._holds = holds
        self._heap: list[Entry] = []
        self._live = 0

    def arm(self, at_ns: int, owner: str, kind: DeadlineKind) -> None:
        heappush(self._heap, (at_ns, owner, kind.value))
        # A unit that extends its time-out all day would otherwise grow the heap all day.
        if len(self._heap) > 64 + 4 * self._live:
            self._compact()

    def first_ns(self) -> int | None:
        """Return the earliest deadline that holds, None without one."""
        while self._heap:
            at_ns, owner, kind = self._heap[0]
            if self._holds(at_ns, owner, DeadlineKind(kind)):
                return at_ns
            heappop(self._heap)
        return None

    def pop_due(self, now_ns: int) -> tuple[int, str, DeadlineKind] | None:
        """Take the first deadline that holds and is not after ``now_ns``."""
        first = self.first_ns()
        if first is None or first > now_ns:
            return None
        at_ns, owner, kind = heappop(self._heap)
        return at_ns, owner, DeadlineKind(kind)

    def _compact(self) -> None:
        self._heap = sorted({entry for entry in self._heap if self._holds(entry[0], entry[1], DeadlineKind(entry[2]))})
        heapify(self._heap)
        self._live = len(self._heap)

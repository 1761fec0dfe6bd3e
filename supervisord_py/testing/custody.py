"""The fake keeper's custody: facts in their order, kept until acknowledged, through the death of manager and keeper."""

from collections import deque

from msgspec.structs import replace

from supervisord_py.core.events import Event, ExitStatus, KeeperLost, NotifyReceived, ProcessExited


class Custody:
    """The stream of facts of one world."""

    def __init__(self) -> None:
        self.is_kept = True
        """There is a keeper."""
        self._facts: deque[tuple[int, Event]] = deque()
        self._next = 1
        self._untold: list[Event] = []
        """What happened while there was no keeper."""

    @property
    def acknowledged(self) -> int:
        """The number of the last fact that was acknowledged."""
        return self._facts[0][0] - 1 if self._facts else self._next - 1

    def unacknowledged(self, after: int) -> list[tuple[int, Event]]:
        """The facts that a manager which has been told up to ``after`` has not seen yet."""
        return [entry for entry in self._facts if entry[0] > after]

    def acknowledge(self, number: int) -> None:
        while self._facts and self._facts[0][0] <= number:
            self._facts.popleft()

    def tell(self, fact: Event) -> None:
        """Queue a fact. Without a keeper nobody hears a word, and how a process ended is never known."""
        if self.is_kept:
            self._queue(fact)
        elif isinstance(fact, ProcessExited):
            self._untold.append(replace(fact, status=ExitStatus(), runtime_ms=None, rusage={}))
        elif not isinstance(fact, NotifyReceived):
            self._untold.append(fact)

    def go_on(self) -> None:
        """Another keeper follows a lost one: it tells that first, and then what it finds changed."""
        self.is_kept = True
        lost, self._untold = self._untold, []
        for fact in (KeeperLost({}), *lost):
            self._queue(fact)

    def _queue(self, fact: Event) -> None:
        if isinstance(fact, NotifyReceived) and self._coalesces(fact):
            number, _ = self._facts.pop()
            self._facts.append((number, fact))
            return
        self._facts.append((self._next, fact))
        self._next += 1

    def _coalesces(self, fact: NotifyReceived) -> bool:
        """Beats and status texts that are still unread replace each other; what has been sent may be replaced in
        custody only by its own kind.
        """
        if not self._facts or set(fact.fields) - {"WATCHDOG", "STATUS"}:
            return False
        last = self._facts[-1][1]
        return (
            isinstance(last, NotifyReceived) and last.spawn_id == fact.spawn_id and set(last.fields) == set(fact.fields)
        )

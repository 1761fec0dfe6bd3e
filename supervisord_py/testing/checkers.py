"""The invariants of the core, by name: one small class a law, each of which has found at least one planted bug.

A checker is told what becomes true: each committed step (an event with what it decided), what the fake kernel does,
each reply. It compares the core with the ``Observer`` and the kernel, never with the core's own word for itself (but
for the laws about that word). A broken law raises ``Violation``, which names the checker. ``checkers_processes`` has
the laws about processes, ``checkers_answers`` those about jobs, replies and state, ``checkers_relations`` those about
what units mean to each other, ``checkers_rollouts`` those about rollouts and ``exit-supervisor-on``.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from msgspec import Struct

from supervisord_py.core.actions import AnyAction, Effects, Reply
from supervisord_py.core.events import Event, Now
from supervisord_py.model.records import Record
from supervisord_py.testing.processes import Process, Watcher

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

T = TypeVar("T")


class Violation(Exception):
    """A law of the core does not hold."""

    def __init__(self, checker: str, message: str) -> None:
        super().__init__(message)
        self.checker = checker


class Step(Struct, frozen=True):
    """One event that the core has handled for good: ``numbered`` are its records with their numbers (0: lost, or a
    beat).
    """

    event: Event
    now: Now
    effects: Effects
    numbered: list[tuple[int, Record]]
    changes: dict[str, str | None]


def ordered_units(step: Step) -> frozenset[str]:
    """The units that get jobs which count as asked for in a step: with a request, or by a rollout that goes on."""
    return frozenset(
        each.unit
        for each in step.effects.records
        if each.event in ("job.queued", "job.changed") and each.fields.get("origin") == "command" and each.unit
    )


class Checker(Watcher):
    """One law. Override what you need to be told."""

    name: ClassVar[str]

    def __init__(self, world: "World") -> None:
        self.world = world

    def fail(self, message: str) -> None:
        raise Violation(self.name, message)

    def step(self, step: Step) -> None:
        """The core has handled an event; the observer knows the event and not yet the actions."""

    def committing(self, actions: Sequence[AnyAction]) -> None:
        """The keeper is about to carry out the actions of one batch."""

    def committed(self) -> None:
        """The batch is over, the manager lives."""

    def manager_started(self) -> None:
        """A new manager has taken over."""

    def replied(self, reply: Reply) -> None:
        """A reply is on its way to its client."""

    def settled(self) -> None:
        """The faults ended long ago and nothing happens any more."""

    def ended(self) -> None:
        """The run is over; the supervisor has been told to stop."""


class Checkers(Checker):
    """All checkers as one; calls only those that listen."""

    name = "all"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        from supervisord_py.testing.checkers_answers import ANSWER_CHECKERS
        from supervisord_py.testing.checkers_health import HEALTH_CHECKERS
        from supervisord_py.testing.checkers_limits import LIMIT_CHECKERS
        from supervisord_py.testing.checkers_pools import POOL_CHECKERS
        from supervisord_py.testing.checkers_processes import PROCESS_CHECKERS
        from supervisord_py.testing.checkers_quarantine import QUARANTINE_CHECKERS
        from supervisord_py.testing.checkers_relations import RELATION_CHECKERS
        from supervisord_py.testing.checkers_rollouts import ROLLOUT_CHECKERS
        from supervisord_py.testing.checkers_silence import SILENCE_CHECKERS
        from supervisord_py.testing.checkers_sockets import SOCKET_CHECKERS
        from supervisord_py.testing.checkers_standstill import STANDSTILL_CHECKERS
        from supervisord_py.testing.checkers_timers import TIMER_CHECKERS

        kinds = (
            *PROCESS_CHECKERS,
            *ANSWER_CHECKERS,
            *RELATION_CHECKERS,
            *ROLLOUT_CHECKERS,
            *POOL_CHECKERS,
            *QUARANTINE_CHECKERS,
            *STANDSTILL_CHECKERS,
            *SILENCE_CHECKERS,
            *HEALTH_CHECKERS,
            *TIMER_CHECKERS,
            *SOCKET_CHECKERS,
            *LIMIT_CHECKERS,
        )
        self.only(*(made(world) for made in kinds))

    def only(self, *checkers: Checker) -> None:
        """Let nobody else judge."""
        self.all = list(checkers)
        self._step = [checker.step for checker in self.all if _listens(checker, "step")]
        self._committed = [checker.committed for checker in self.all if _listens(checker, "committed")]
        self._born = [checker.born for checker in self.all if _listens(checker, "born")]
        self._followed = [checker.followed for checker in self.all if _listens(checker, "followed")]
        self._exited = [checker.exited for checker in self.all if _listens(checker, "exited")]

    def step(self, step: Step) -> None:
        _tell(self._step, step)

    def committed(self) -> None:
        for told in self._committed:
            told()

    def committing(self, actions: Sequence[AnyAction]) -> None:
        for checker in self.all:
            checker.committing(actions)

    def manager_started(self) -> None:
        for checker in self.all:
            checker.manager_started()

    def replied(self, reply: Reply) -> None:
        for checker in self.all:
            checker.replied(reply)

    def settled(self) -> None:
        for checker in self.all:
            checker.settled()

    def ended(self) -> None:
        for checker in self.all:
            checker.ended()

    def born(self, process: Process) -> None:
        _tell(self._born, process)

    def followed(self, process: Process) -> None:
        _tell(self._followed, process)

    def exited(self, process: Process, spawn_id: int | None) -> None:
        for told in self._exited:
            told(process, spawn_id)

    def released(self, unit: str) -> None:
        for checker in self.all:
            checker.released(unit)


def _listens(checker: Checker, hook: str) -> bool:
    return getattr(type(checker), hook) is not getattr(Checker, hook)


def _tell(listeners: Sequence[Callable[[T], None]], what: T) -> None:
    for told in listeners:
        told(what)

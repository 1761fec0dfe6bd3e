"""Planted bugs in what follows from breaches, in bounds that are set live, and in what is said of failed and degraded
starts (``mutants`` tells how).
"""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace
from mutants import mutant, swapped
from mutants_sockets import PLANTED as PLANTED

from supervisord_py.core import failed_spawn, loading, service, steps
from supervisord_py.core.actions import Effects
from supervisord_py.core.events import Event, LimitExceeded, MainFollowed, Now, ProcessExited, ProcessSpawned
from supervisord_py.core.manager import Manager
from supervisord_py.core.service import TRANSITIONS, Input
from supervisord_py.model.context import Resources
from supervisord_py.model.states import Result, SubState

GREEDY = {
    "units_max": 8, "requests": 60, "gap_max_ms": 1000, "relations": 0.1, "breaches": 0.5, "shutdown": 0,
    "exits_supervisor": 0, "until_empty": 0, "spawn_failed": 0.05, "exec_slow": 0,
}  # fmt: skip
"""Worlds in which units take too much."""

SET = {**GREEDY, "breaches": 0, "new_bounds": 0.5, "daemon_reload": 0.05}
LACKING = {**GREEDY, "breaches": 0, "degraded": 0.5, "spawn_failed": 0.2, "forking": 0.3}


class Deaf(Manager):
    """Does not hear of breaches that nobody but us sees."""

    def handle(self, event: Event, now: Now) -> Effects:
        return Effects() if isinstance(event, LimitExceeded) else super().handle(event, now)


@mutant("who takes too much goes on", "limits-breach", **GREEDY)
def lets_eat() -> Iterator[type[Manager]]:
    yield Deaf


@mutant("a command before the start may take what it likes", "limits-breach", **{**GREEDY, "breaches": 1})
def lets_commands_eat() -> Iterator[type[Manager]]:
    with swapped(TRANSITIONS, (SubState.START_PRE, Input.BREACH), lambda _: lambda *about: None) as manager:
        yield manager


@mutant("who takes too much is given the time to stop", "limits-breach", **GREEDY)
def is_patient() -> Iterator[type[Manager]]:
    with swapped(steps, "took_too_much_in_its_end", lambda _: lambda *about: None) as manager:
        yield manager


@mutant("who takes too much has not failed", "limits-breach", **GREEDY)
def pardons_eaters() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def feed(book: Any, name: str, what: Input, ended: Any = service._NOTHING) -> None:
            mild = replace(ended, result=Result.SUCCESS) if what is Input.BREACH else ended
            original(book, name, what, mild)

        return feed

    with swapped(service, "feed", made) as manager:
        yield manager


@mutant("what a life had taken that is over is held against the next", "limits-breach", **GREEDY)
def blames_the_next_life() -> Iterator[type[Manager]]:
    class Confused(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, LimitExceeded):
                invocation = self.ledger.state(event.unit).invocation or ""
                event = LimitExceeded(event.unit, invocation, event.breach)
            return super().handle(event, now)

    yield Confused


@mutant("a breach is told without its numbers", "limits-breach", **GREEDY)
def rounds_numbers() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, breach: original(book, name, replace(breach, value=breach.most))

    with swapped(service, "_record_breach", made) as manager:
        yield manager


@mutant("that the kernel killed because memory was full is not said", "limits-breach", **GREEDY)
def overlooks_the_kernel() -> Iterator[type[Manager]]:
    class Overlooking(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, ProcessExited) and event.breach is not None:
                event = replace(event, breach=None)
            return super().handle(event, now)

    yield Overlooking


@mutant("bounds that are set live are shown at the next start only", "limits-bounds", **SET)
def shows_old_bounds() -> Iterator[type[Manager]]:
    with swapped(loading, "take_limits", lambda _: lambda book, units, names: None) as manager:
        yield manager


@mutant("every reload changes the bounds that are shown", "limits-bounds", **SET)
def shows_loaded_bounds() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, units, names: original(book, units, tuple(units.units))

    with swapped(loading, "take_limits", made) as manager:
        yield manager


@mutant("a unit whose bounds were set has none", "limits-bounds", **SET)
def drops_bounds() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def take_limits(book: Any, units: Any, names: Any) -> None:
            original(book, units, names)
            for name in names:
                text = book.texts.get(name)
                if text is not None and text.service is not None:
                    context = replace(text.service.context, resources=Resources())
                    book.keep_text(name, replace(text, service=replace(text.service, context=context)))

        return take_limits

    with swapped(loading, "take_limits", made) as manager:
        yield manager


@mutant("a failed step is not explained", "failed-steps", **LACKING)
def explains_nothing() -> Iterator[type[Manager]]:
    with swapped(failed_spawn, "_reasons", lambda _: lambda event: ()) as manager:
        yield manager


@mutant("any step that fails is a lack of resources", "failed-steps", **LACKING)
def blames_resources() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def process_over(book: Any, name: str, process: Any, status: Any, result: Result, message: str) -> None:
            original(book, name, process, status, Result.RESOURCES if result is Result.EXIT_CODE else result, message)

        return process_over

    with swapped(service, "_process_over", made) as manager:
        yield manager


@mutant("what a process runs without is not shown", "degraded", **LACKING)
def hides_what_is_lacking() -> Iterator[type[Manager]]:
    class Proud(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, ProcessSpawned):
                event = ProcessSpawned(event.spawn_id, event.pid)
            return super().handle(event, now)

    yield Proud


@mutant("a daemon is said to run with all that its start command ran without", "degraded", **{**LACKING, "forking": 1})
def forgets_what_daemons_lack() -> Iterator[type[Manager]]:
    class Forgetful(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, MainFollowed) and event.pid is not None:
                self.ledger.edit(event.unit).start_degraded = ()
            return super().handle(event, now)

    yield Forgetful

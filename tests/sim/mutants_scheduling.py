"""Planted bugs in pools, quarantine, pauses, hooks and the end of an empty supervisor (``mutants`` tells how)."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace
from mutants import MUTANTS, mutant, swapped

from supervisord_py.core import (
    beside,
    hooks,
    ledger,
    life,
    notify,
    pause,
    pool,
    quarantine,
    shutdown,
    snapshot,
    stopping,
    why,
)
from supervisord_py.core.actions import Effects, KillTree
from supervisord_py.core.events import Event, NotifyReceived, Now, ProcessExited, UnitFrozen
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import STOPPING
from supervisord_py.model.names import is_aux_owner
from supervisord_py.model.states import SubState

PLANTED = MUTANTS
"""All planted bugs: these and those of ``mutants``."""

# pools


@mutant("a start does not look at the limits", "pool-limit", needs="limits")
def ignores_limits() -> Iterator[type[Manager]]:
    with swapped(pool, "ask", lambda _: lambda book, job: True) as manager:
        yield manager


@mutant("a unit that is stopping has given its slot back", "pool-limit", needs="limits")
def frees_slots_too_early() -> Iterator[type[Manager]]:
    with swapped(ledger, "HOLDING", lambda original: original - STOPPING) as manager:
        yield manager


@mutant("a slot that becomes free is given to nobody", "pool-idle", needs="limits")
def leaves_slots_idle() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def note_slot(book: ledger.Ledger, name: str) -> None:
            before = book.waits_changed
            original(book, name)
            book.waits_changed = before

        return note_slot

    with swapped(ledger.Ledger, "note_slot", made) as manager:
        yield manager


@mutant("the last of those that wait is let in first", "pool-order", needs="limits")
def lets_in_the_last() -> Iterator[type[Manager]]:
    with swapped(pool, "queue", lambda original: lambda book: original(book)[::-1]) as manager:
        yield manager


@mutant(
    "a new manager turns the queue round", "pool-order", "twin",
    units_max=14, relations=0, limits=1.0, pools=0.4, new_settings=0, death_after_commit=0.1,
)  # fmt: skip
def turns_the_queue_round() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def restore(book: ledger.Ledger) -> None:
            original(book)
            book.places = {job: (count + 1 - place, count) for job, (place, count) in book.places.items()}

        return restore

    with swapped(pool, "restore", made) as manager:
        yield manager


# quarantine and errors


@mutant("a unit is quarantined one failure too early", "quarantine")
def quarantines_early() -> Iterator[type[Manager]]:
    with swapped(stopping, "is_limit_hit", lambda original: lambda policy, n: original(policy, n + 1)) as manager:
        yield manager


@mutant("retry-after is half as long as it should be", "quarantine-holds", quarantine=0.5, crash_at_once=0.4)
def retries_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, after_ns: original(book, name, after_ns and after_ns // 2)

    with swapped(ledger.Ledger, "arm_retry", made) as manager:
        yield manager


@mutant("a quarantined unit is started again in silence", "quarantine-holds")
def releases_in_silence() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        def release(book: ledger.Ledger, name: str, **_: object) -> None:
            state = book.edit(name)
            state.quarantined = state.half_open = state.stub_failed = False
            book.arm_retry(name, None)

        return release

    with swapped(quarantine, "release", made) as manager:
        yield manager


@mutant("a quarantined unit has no stub", "stub", needs="quarantine")
def has_no_stub() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        def stand_in(book: ledger.Ledger, name: str) -> None:
            unit = book.unit(name)
            if unit is not None and unit.quarantine.retry_after_ns is not None and book.globals.shutdown is None:
                book.arm_retry(name, unit.quarantine.retry_after_ns)

        return stand_in

    with swapped(quarantine, "stand_in", made) as manager:
        yield manager


@mutant("nobody says that it stands on a stub", "degraded", quarantine=0.5, crash_at_once=0.4, relations=0.4)
def hides_stubs() -> Iterator[type[Manager]]:
    with swapped(why, "_stood_in_for", lambda _: lambda book, name: []) as manager:
        yield manager


@mutant("a quarantine ends with the supervisor", "counters-survive", crash_at_once=0.4, shutdown=0.02)
def forgets_quarantines() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def load_counters(book: ledger.Ledger, state: Any) -> None:
            original(book, state)
            for name in list(book.states):
                book.edit(name).quarantined = False

        return load_counters

    with swapped(snapshot, "load_counters", made) as manager:
        yield manager


@mutant("a success does not end a row of errors", "error-threshold", needs="reports_errors")
def counts_all_errors() -> Iterator[type[Manager]]:
    class Deaf(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, NotifyReceived):
                event = replace(event, fields={key: text for key, text in event.fields.items() if key != "X_OK"})
            return super().handle(event, now)

    yield Deaf


@mutant("errors that a process reports lead to nothing", "error-threshold", needs="reports_errors")
def overlooks_errors() -> Iterator[type[Manager]]:
    with swapped(notify, "_judge_errors", lambda _: lambda book, name, text: None) as manager:
        yield manager


# pauses


@mutant("a unit that could not be frozen is said to be paused", "pause", freeze_fails=0.4, pause=0.4)
def says_paused_of_what_runs() -> Iterator[type[Manager]]:
    class Credulous(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, UnitFrozen):
                order = self.ledger.state(event.unit).freeze
                event = replace(event, frozen=order.pauses) if order is not None else event
            return super().handle(event, now)

    yield Credulous


@mutant(
    "the time of a pause counts for the longest run", "pause",
    requests=120, gap_max_ms=4000, runtime_max=1.0, pause=0.5, crash=0, daemon_reload=0, shutdown=0,
)  # fmt: skip
def counts_pauses() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def leave(book: ledger.Ledger, name: str, order: Any) -> None:
            end_ns = book.state(name).runtime_end_ns
            original(book, name, order)
            book.edit(name).runtime_end_ns = end_ns
            life.arm_running(book, name)

        return leave

    with swapped(pause, "_leave", made) as manager:
        yield manager


# commands beside the units' lives


@mutant("each call of a hook is made twice", "hook-calls", needs="event_hooks")
def calls_twice() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def note(*arguments: Any) -> None:
            original(*arguments)
            original(*arguments)

        return note

    with swapped(hooks, "_note", made) as manager:
        yield manager


@mutant("a hook that hangs is let hang", "hook-calls", "settled", needs="event_hooks")
def lets_hooks_hang() -> Iterator[type[Manager]]:
    with swapped(beside, "deadline", lambda _: lambda book, spawn_id: book.arm_beside(spawn_id, None)) as manager:
        yield manager


@mutant("what a hook has left behind is let be", "beside", "shutdown", needs="beside_leaves")
def lets_leftovers_of_hooks_be() -> Iterator[type[Manager]]:
    class Careless(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            if isinstance(event, ProcessExited):
                kept = (
                    each for each in effects.actions if not isinstance(each, KillTree) or not is_aux_owner(each.unit)
                )
                effects.actions = list(kept)
            return effects

    yield Careless


# the end of an empty supervisor


@mutant("what waits to be restarted is nothing to wait for", "until-empty", needs="until_empty")
def ends_in_the_back_off() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def is_work(book: ledger.Ledger, name: str) -> bool:
            return bool(original(book, name)) and book.state(name).sub is not SubState.AUTO_RESTART

        return is_work

    with swapped(shutdown, "_is_work", made) as manager:
        yield manager


@mutant("an empty supervisor goes on", "until-empty", needs="until_empty")
def goes_on_empty() -> Iterator[type[Manager]]:
    with swapped(shutdown, "end_if_empty", lambda _: lambda book: False) as manager:
        yield manager

"""Planted bugs in listening, its limit, and what processes are handed (``mutants`` tells how)."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace
from mutants import mutant, swapped
from mutants_scheduling import PLANTED as PLANTED

from supervisord_py.core import listening, processes
from supervisord_py.core.actions import CloseSockets, Effects, Handed
from supervisord_py.core.events import Event, Now, ProcessSpawned
from supervisord_py.core.manager import Manager
from supervisord_py.core.service import TRANSITIONS, Input
from supervisord_py.core.state import Ending
from supervisord_py.model.states import Role, SubState

LISTENING = {
    "units_max": 14, "requests": 120, "gap_max_ms": 1000, "relations": 0, "sockets": 0.5, "shutdown": 0,
    "conditions": 0, "daemon_reload": 0, "apply": 0, "rolling": 0, "exits_supervisor": 0, "until_empty": 0,
}  # fmt: skip
"""Worlds in which clients come for a while."""

SERVING = {**LISTENING, "accepts": 0.5}
IDLING = {**LISTENING, "idle_exits": 0.5, "gap_max_ms": 4000}


@mutant("after a pause nobody is listened to again", "sockets-heard", **LISTENING)
def pauses_for_ever() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        def resume(book: Any, name: str) -> None:
            book.set_sockets(name, replace(listening.of(book, name), resume_at_ns=None))

        return resume

    with swapped(listening, "resume", made) as manager:
        yield manager


@mutant("after a killed keeper nothing is opened again", "sockets-heard", **{**LISTENING, "keeper_lost": 0.05})
def trusts_a_lost_keeper() -> Iterator[type[Manager]]:
    with swapped(listening, "keeper_lost", lambda _: lambda book: []) as manager:
        yield manager


@mutant(
    "connections start a unit as often as they come",
    "sockets-limit",
    **{**LISTENING, "clean_exit": 1, "gap_max_ms": 4000},
)
def knows_no_trigger_limit() -> Iterator[type[Manager]]:
    with swapped(listening, "_too_many_for_ns", lambda _: lambda *about: None) as manager:
        yield manager


@mutant("a restart closes what is listened on", "sockets-held", **LISTENING)
def closes_in_restarts() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def close(book: Any, name: str) -> None:
            job = book.job_of.pop(name, None)
            original(book, name)
            if job is not None:
                book.job_of[name] = job

        return close

    with swapped(listening, "close_if_at_rest", made) as manager:
        yield manager


@mutant("what is at rest is listened for", "sockets-held", "sockets-accepted", **LISTENING)
def never_closes() -> Iterator[type[Manager]]:
    with swapped(listening, "close_if_at_rest", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant("a program is handed nothing", "sockets-given", **LISTENING)
def hands_nothing_over() -> Iterator[type[Manager]]:
    with swapped(processes, "handed", lambda _: lambda *about: None) as manager:
        yield manager


@mutant("commands are handed what belongs to the program", "sockets-given", **LISTENING)
def hands_over_to_all() -> Iterator[type[Manager]]:
    with swapped(processes, "_HANDED", lambda _: frozenset(Role)) as manager:
        yield manager


@mutant("a pause after too many connections lasts a hundred times as long", "sockets-heard", **LISTENING)
def pauses_too_long() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda *about: None if (left_ns := original(*about)) is None else left_ns * 100

    with swapped(listening, "_too_many_for_ns", made) as manager:
        yield manager


@mutant("connections are one too many already when they are as many as may be", "sockets-limit", **LISTENING)
def pauses_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def too_many_for_ns(book: Any, found: Any, sockets: Any) -> Any:
            less = tuple(replace(each, trigger_burst=each.trigger_burst - 1) for each in sockets.sockets)
            return original(book, found, replace(sockets, sockets=less))

        return too_many_for_ns

    with swapped(listening, "_too_many_for_ns", made) as manager:
        yield manager


# a process for each connection


@mutant("the connection of an instance that has ended is kept", "sockets-accepted", **SERVING)
def keeps_connections() -> Iterator[type[Manager]]:
    class Keeping(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            effects.actions = [
                each for each in effects.actions if not (isinstance(each, CloseSockets) and each.connection is not None)
            ]
            return effects

    yield Keeping


@mutant("nobody counts how many connections are open", "sockets-accepted", **SERVING)
def accepts_without_end() -> Iterator[type[Manager]]:
    with swapped(listening, "is_full", lambda _: lambda book, name: False) as manager:
        yield manager


@mutant("an instance is restarted as its parent's file says", "sockets-accepted", **{**SERVING, "crash_at_once": 0.5})
def restarts_instances() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def make_instance(book: Any, unit: Any, event: Any) -> Any:
            made_unit = original(book, unit, event)
            again = replace(made_unit, service=replace(made_unit.service, restart=unit.service.restart))
            book.keep_text(made_unit.name, again)
            return again

        return make_instance

    with swapped(listening, "_make_instance", made) as manager:
        yield manager


@mutant("a connection is closed when its program begins", "sockets-held", **SERVING)
def hangs_up() -> Iterator[type[Manager]]:
    class Rude(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            name = self.ledger.unit_of_spawn.get(event.spawn_id) if isinstance(event, ProcessSpawned) else None
            found = None if name is None else self.ledger.state(name).connection
            if found is not None:
                effects.actions.append(CloseSockets(found.unit, found.number))
            return effects

    yield Rude


@mutant("an instance is handed what its parent listens on", "sockets-given", **SERVING)
def hands_over_listeners() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def handed(*about: Any) -> Handed | None:
            given = original(*about)
            return None if given is None else Handed(given.unit)

        return handed

    with swapped(processes, "handed", made) as manager:
        yield manager


# unused


@mutant("nobody looks whether a unit is used", "sockets-unused", **IDLING)
def never_unused() -> Iterator[type[Manager]]:
    with swapped(listening, "begin_use", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant("a unit is unused whoever is connected", "sockets-unused", **IDLING)
def overlooks_the_connected() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, look_id, connections: original(book, name, look_id, 0)

    with swapped(listening, "is_unused", made) as manager:
        yield manager


@mutant("who has come lately does not count", "sockets-unused", **IDLING)
def forgets_who_came() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def look_again(book: Any, name: str, found: Any, at_ns: int) -> None:
            was = listening.of(book, name)
            original(book, name, found, min(at_ns, was.idle_at_ns or at_ns))

        return look_again

    with swapped(listening, "_look_again", made) as manager:
        yield manager


@mutant("the end of what is unused is one that somebody has asked for", "sockets-unused", **IDLING)
def ends_the_unused_for_good() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def found_unused(book: Any, name: str, why: Any) -> None:
            original(book, name, why)
            book.edit(name).ending = Ending.ORDER

        return found_unused

    with swapped(TRANSITIONS, (SubState.RUNNING, Input.UNUSED), made) as manager:
        yield manager


@mutant("the end of what is unused is its own", "sockets-unused", **{**IDLING, "bad_term_status": 1})
def counts_idle_ends() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def found_unused(book: Any, name: str, why: Any) -> None:
            original(book, name, why)
            book.edit(name).ending = Ending.ITSELF

        return found_unused

    with swapped(TRANSITIONS, (SubState.RUNNING, Input.UNUSED), made) as manager:
        yield manager


# stored


@mutant("what is left with the keeper is not noted", "sockets-stored", **LISTENING)
def forgets_what_is_stored() -> Iterator[type[Manager]]:
    with swapped(listening, "stored", lambda _: lambda book, event: None) as manager:
        yield manager


@mutant("what was left with the keeper is remembered when it is gone", "sockets-stored", **LISTENING)
def remembers_what_is_gone() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, event: original(book, event) if event.names else None

    with swapped(listening, "stored", made) as manager:
        yield manager

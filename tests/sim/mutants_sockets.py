"""Planted bugs in listening, its limit, and what processes are handed (``mutants`` tells how)."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace
from mutants import mutant, swapped
from mutants_scheduling import PLANTED as PLANTED

from supervisord_py.core import listening, processes
from supervisord_py.core.manager import Manager

LISTENING = {
    "units_max": 14, "requests": 120, "gap_max_ms": 1000, "relations": 0, "sockets": 0.5, "shutdown": 0,
    "conditions": 0, "daemon_reload": 0, "apply": 0, "rolling": 0, "exits_supervisor": 0, "until_empty": 0,
}  # fmt: skip
"""Worlds in which clients come for a while."""


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
    with swapped(listening, "keeper_lost", lambda _: lambda book: None) as manager:
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


@mutant("what is at rest is listened for", "sockets-held", **LISTENING)
def never_closes() -> Iterator[type[Manager]]:
    with swapped(listening, "close_if_at_rest", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant("a program is handed nothing", "sockets-given", **LISTENING)
def hands_nothing_over() -> Iterator[type[Manager]]:
    with swapped(processes, "handed", lambda _: lambda *about: None) as manager:
        yield manager


@mutant("commands are handed what belongs to the program", "sockets-given", **LISTENING)
def hands_over_to_all() -> Iterator[type[Manager]]:
    from supervisord_py.model.states import Role

    with swapped(processes, "_HANDED", lambda _: frozenset(Role)) as manager:
        yield manager

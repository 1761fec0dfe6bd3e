"""The keeper's loop: priorities in one wake-up, timers, and bugs that cost one handler only."""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from supervisord_py.keeper import loop as loop_module
from supervisord_py.keeper.loop import FAULTS_MAX, MANAGER, NOTIFY, PIDFD, SIGNAL, SPAWN, Loop


@pytest.fixture
def pipes() -> Iterator[Callable[[], int]]:
    """Makes pipes that are readable at once."""
    held: list[int] = []

    def ready() -> int:
        reading, writing = os.pipe()
        held.extend((reading, writing))
        os.write(writing, b"x")
        return reading

    yield ready
    for fd in held:
        os.close(fd)


def test_one_wake_up_is_handled_by_priority(pipes: Callable[[], int]) -> None:
    """An acknowledgement first, then who runs, then what it says, then who ended; whatever epoll's order is."""
    loop, seen = Loop(), []
    for priority in (PIDFD, NOTIFY, SIGNAL, MANAGER, SPAWN):
        loop.watch(pipes(), priority, lambda priority=priority: seen.append(priority))
    loop.turn(False)
    assert seen == [MANAGER, SPAWN, NOTIFY, SIGNAL, PIDFD]


def test_a_handler_that_was_removed_in_the_same_turn_is_not_called(pipes: Callable[[], int]) -> None:
    """Closing a descriptor takes its pending wake-up with it, also when the number is in use again."""
    loop, seen = Loop(), []
    early, later = pipes(), pipes()

    def first() -> None:
        loop.unwatch(early)
        loop.unwatch(later)
        loop.watch(later, PIDFD, lambda: seen.append("new"))

    loop.watch(early, MANAGER, first)
    loop.watch(later, PIDFD, lambda: seen.append("old"))
    loop.turn(False)
    assert seen == []
    loop.turn(True)
    assert seen == ["new"]


def test_timers_fire_once_at_their_time_and_can_be_moved_and_cancelled() -> None:
    """A name has one timer; the loop waits exactly for the next one."""
    loop, seen = Loop(), []
    start_ns = time.monotonic_ns()
    loop.set_timer("a", start_ns + 10**12, lambda: seen.append("never"))
    loop.set_timer("a", start_ns + 20_000_000, lambda: seen.append("a"))
    loop.set_timer("b", start_ns + 1, lambda: seen.append("never"))
    loop.set_timer("b", None, lambda: None)
    while not seen:
        loop.turn(False)
    assert seen == ["a"]
    assert time.monotonic_ns() - start_ns >= 20_000_000
    loop.turn(True)
    assert seen == ["a"]


def test_a_bug_costs_one_handler_and_too_many_end_the_keeper(capfd: pytest.CaptureFixture[str]) -> None:
    """The other handlers of the turn are called; the traceback is told; after 100 the loop says that it is broken."""
    loop, seen = Loop(), []

    def broken() -> None:
        raise KeyError("a bug")

    loop.set_timer("a", 0, broken)
    loop.set_timer("b", 0, lambda: seen.append("b"))
    loop.turn(True)
    assert seen == ["b"]
    assert "a bug" in capfd.readouterr().err
    assert not loop.is_broken
    for _ in range(FAULTS_MAX):
        loop.guard(broken)
    assert loop.is_broken


def test_the_faults_of_units_end_nobody() -> None:
    """However often what is done for a unit fails, the keeper goes on."""
    loop = Loop()
    for _ in range(3 * FAULTS_MAX):
        assert not loop.guard(lambda: print(1 // 0), of_unit=True)
    assert not loop.is_broken


def test_faults_of_a_whole_life_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug that is met now and then is told each time; only a hundred within the window end the keeper."""
    monkeypatch.setattr(loop_module, "FAULTS_WITHIN_NS", 0)
    loop = Loop()
    for _ in range(3 * FAULTS_MAX):
        loop.guard(lambda: print(1 // 0))
    assert not loop.is_broken


def test_a_handler_that_fails_does_not_spin(pipes: Callable[[], int]) -> None:
    """A descriptor that its handler left readable is left alone for a moment, then tried again; others go on."""
    loop, tried, seen = Loop(), [], []
    broken, good = pipes(), pipes()

    def fail() -> None:
        tried.append(time.monotonic_ns())
        raise OSError("a bug")

    loop.watch(broken, NOTIFY, fail)
    loop.watch(good, SIGNAL, lambda: seen.append(1))
    while len(tried) < 2:
        loop.turn(False)
    assert tried[1] - tried[0] >= loop_module.PAUSE_NS
    assert len(seen) > 1
    loop.unwatch(broken)
    for _ in range(3):
        loop.turn(True)
    assert len(tried) == 2


def test_a_timer_in_a_hundred_years_is_no_error(pipes: Callable[[], int]) -> None:
    """What epoll cannot wait for in one go is waited for in several."""
    loop, seen = Loop(), []
    loop.set_timer("far", time.monotonic_ns() + 100 * 365 * 86_400 * 10**9, lambda: seen.append("never"))
    loop.watch(pipes(), SIGNAL, lambda: seen.append("now"))
    loop.turn(False)
    assert seen == ["now"]

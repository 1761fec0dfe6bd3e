"""What is taken over of a killed keeper: only what is the very process that its book names."""

import json
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.host.adoption import (
    LostKeeper,
    end_leftovers,
    find_lost_keeper,
    find_processes,
    hold,
    read_book,
    take_over,
)
from supervisord_py.keeper.protocol import TAG_BASE, TAG_INSTANCE_SHIFT

INSTANCE = random.randrange(1 << 20)

Tagged = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def tagged() -> Iterator[Tagged]:
    """Makes sleeping processes with a spawn's tag."""
    made: list[subprocess.Popen[bytes]] = []

    def make(spawn_id: int, **environment: str) -> "subprocess.Popen[bytes]":
        def tag() -> None:
            soft = TAG_BASE + (INSTANCE << TAG_INSTANCE_SHIFT) + spawn_id
            resource.setrlimit(resource.RLIMIT_RTTIME, (soft, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))

        made.append(subprocess.Popen(["sleep", "1000"], preexec_fn=tag, env=environment, start_new_session=True))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        process.wait()


def lost() -> LostKeeper:
    return LostKeeper(1, INSTANCE, -1)


def line(spawn_id: int, pid: int, **more: Any) -> str:
    spawn = {"id": spawn_id, "unit": "web", "role": "main", "pid": pid, "main_pid": pid, "invocation": "ab" * 16}
    return json.dumps({"spawn": {**spawn, **more}}) + "\n"


def take(folder: Path, *lines: str, may_stay: bool = False) -> LostKeeper:
    (folder / "book").write_text("".join(lines))
    found = lost()
    take_over(found, folder, lambda unit: may_stay)
    for life in found.lives:
        for fd in life.pidfds.values():
            os.close(fd)
    return found


def test_life_goes_on_with_what_is_below_it(tmp_path: Path, tagged: Tagged) -> None:
    """The main process by its tag, another process of the unit by another spawn's."""
    main, other = tagged(7), tagged(8)
    found = take(tmp_path, line(7, main.pid, ready=True), line(8, other.pid, role="reload"))
    (life,) = found.lives
    assert (life.spawn.id, life.main.pid, life.spawn.ready, life.tags) == (7, main.pid, True, [7, 8])
    assert set(life.pidfds) == {main.pid, other.pid}
    assert found.last_id == 8
    assert not found.ended
    assert not end_leftovers(found)
    assert main.poll() is None


@pytest.mark.parametrize("more", [{"main_start": 1}, {"over": True}, {"role": "stop"}, {"id": 9}])
def test_pid_that_is_another_process_by_now_is_no_life(tmp_path: Path, tagged: Tagged, more: dict[str, Any]) -> None:
    """Another start time, a life that was over, another command, a pid of another spawn: it is ended, not adopted."""
    process = tagged(7)
    found = take(tmp_path, line(7, process.pid, role="stop"), line(7, process.pid, **more))
    assert not found.lives
    assert [one.pid for one in found.ended] == [process.pid]
    assert not end_leftovers(found)
    assert process.wait() == -15


def test_main_process_that_another_became_is_known_by_its_start(tmp_path: Path, tagged: Tagged) -> None:
    """A MAINPID process carries its parent's tag, or none that the book knows: pid and start time say who it is."""
    process = tagged(3)
    (seen,) = find_processes(INSTANCE)
    found = take(
        tmp_path,
        json.dumps({"unit": "web", "tags": [3]}) + "\n",
        line(7, 1, main_pid=process.pid, main_start=seen.start),
    )
    assert [(life.spawn.id, life.main.pid) for life in found.lives] == [(7, process.pid)]


def test_what_may_stay_stays(tmp_path: Path, tagged: Tagged) -> None:
    """``kill-mode = "process"``: what the main process left is told and let alone."""
    process = tagged(7)
    found = take(tmp_path, line(7, 2**22 + 1), may_stay=True)
    assert [one.pid for one in found.left] == [process.pid]
    assert [(one.unit, one.pid) for one in found.unseen] == [("web", 2**22 + 1)]
    assert not end_leftovers(found)
    assert process.poll() is None


def test_process_that_the_book_does_not_know_is_ended_under_the_name_it_has(tmp_path: Path, tagged: Tagged) -> None:
    """The keeper died between making and booking it."""
    process = tagged(7, SUPERVISORD_PY_UNIT="web")
    found = take(tmp_path)
    assert [(one.unit, one.pid) for one in found.ended] == [("web", process.pid)]
    assert not end_leftovers(found)
    assert process.wait() == -15


def test_book_that_is_cut_or_strange_or_missing_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """The last line of an id counts; a line that is no line costs itself."""
    book = tmp_path / "book"
    assert not read_book(book).spawns
    book.write_text(line(1, 10) + "{}\n[1]\n\xff\n" + line(1, 11) + '{"unit":"db","tags":[4,5]}\n' + line(2, 12)[:-9])
    found = read_book(book)
    assert {number: spawn.pid for number, spawn in found.spawns.items()} == {1: 11}
    assert found.units == {1: "web", 4: "db", 5: "db"}


def test_process_that_is_not_the_one_that_was_seen_is_not_held(tagged: Tagged) -> None:
    """Pid and tag are the same, the start time is not."""
    tagged(7)
    (seen,) = find_processes(INSTANCE)
    pidfd = hold(seen, INSTANCE)
    assert pidfd is not None
    os.close(pidfd)
    assert hold(type(seen)(seen.pid, seen.start + 1, seen.spawn_id), INSTANCE) is None
    assert hold(seen, INSTANCE + 1) is None


def test_only_a_keeper_that_was_killed_is_lost(tmp_path: Path) -> None:
    """No lock file: it ended in order; a held one: it lives, or another run adopts now."""
    assert find_lost_keeper(tmp_path) is None
    (tmp_path / "lock").write_text("1\n")
    assert find_lost_keeper(tmp_path) is None, "killed before it had a number: it had no processes"
    (tmp_path / "lock").write_text(f"{os.getpid()}\n77\n")
    first = find_lost_keeper(tmp_path)
    assert first is not None and first.instance == 77
    assert find_lost_keeper(tmp_path) is None
    os.close(first.lock)

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
    boot_id,
    end_leftovers,
    find_lost_keeper,
    find_processes,
    hand_over,
    hold,
    take_over,
)
from supervisord_py.host.book import read_book
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


def line(spawn_id: int, pid: int, **more: Any) -> str:
    spawn = {"id": spawn_id, "unit": "web", "role": "main", "pid": pid, "main_pid": pid, "told": True}
    return json.dumps({"spawn": {"invocation": "ab" * 16, **spawn, **more}}) + "\n"


def custody(**more: Any) -> str:
    nothing = {"state": {}, "lines": [], "facts": [], "last": 4, "acknowledged": 4, "requests": [], "ended": []}
    return json.dumps({"boot": boot_id()}) + "\n" + json.dumps({"custody": {**nothing, **more}}) + "\n"


def take(folder: Path, *lines: str, may_stay: bool = False, why_not: str = "") -> LostKeeper:
    (folder / "book").write_text("".join(lines))
    found = LostKeeper(1, INSTANCE, -1)
    take_over(found, folder, lambda unit: may_stay, lambda state: why_not)
    for tree in found.trees:
        for fd in tree.pidfds.values():
            os.close(fd)
    return found


def facts(found: LostKeeper) -> list[tuple[str, Any]]:
    assert found.book is not None
    told = sorted(found.book.facts.items())
    assert [number for number, _ in told] == list(range(5, 5 + len(told)))
    return [(fact["fact"], fact.get("id", fact.get("unit"))) for _, fact in told if fact["fact"] != "lost"]


def test_life_goes_on_with_what_is_below_it(tmp_path: Path, tagged: Tagged) -> None:
    """The main process by its tag, another command of the unit by its own, and what they forked by either."""
    main, other, forked = tagged(7), tagged(8), tagged(7)
    found = take(tmp_path, custody(), line(7, main.pid), line(8, other.pid, role="reload", told=False))
    (tree,) = found.trees
    assert [(spawn.id, process.pid) for spawn, process in tree.spawns] == [(7, main.pid), (8, other.pid)]
    assert (set(tree.pidfds), tree.tags) == ({main.pid, other.pid, forked.pid}, [7, 8])
    assert found.last_id == 8
    assert not found.ended and not found.unseen
    assert facts(found) == [("spawned", 8)]
    assert not end_leftovers(found)
    assert main.poll() is None


@pytest.mark.parametrize("more", [{"main_start": 1}, {"id": 9}])
def test_pid_that_is_another_process_by_now_is_no_life(tmp_path: Path, tagged: Tagged, more: dict[str, Any]) -> None:
    """Another start time, a pid of another spawn: the unit's all the same, but its main process ended unseen."""
    process = tagged(7)
    tags = json.dumps({"tags": ["web", [7]]}) + "\n"
    found = take(tmp_path, custody(), tags, line(7, process.pid, **more))
    (tree,) = found.trees
    assert (tree.spawns, set(tree.pidfds)) == ([], {process.pid})
    assert [(one.unit, one.pid) for one in found.unseen] == [("web", process.pid)]
    assert facts(found) == [("exited", more.get("id", 7))]


def test_what_ended_unseen_is_told(tmp_path: Path) -> None:
    """A process that was made and is not there any more, and the tree that is empty since."""
    found = take(tmp_path, custody(), line(7, 2**22 + 1, told=False))
    assert not found.trees[0].pidfds
    assert facts(found) == [("spawned", 7), ("exited", 7), ("tree-empty", "web")]


def test_exit_that_the_keeper_saw_keeps_its_status(tmp_path: Path) -> None:
    """It was reaped and not told yet, or told and not acknowledged: it is told once."""
    fact = {"fact": "exited", "id": 7, "pid": 70, "main": True, "code": 3, "signal": None, "core": False}
    ended = json.dumps({"ended": ["web", fact]}) + "\n"
    found = take(tmp_path, custody(), line(7, 70), ended)
    assert facts(found) == [("exited", 7), ("tree-empty", "web")]
    assert found.book is not None and found.book.facts[6]["code"] == 3
    told = json.dumps({"fact": [5, {**fact, "tree_empty": True}]}) + "\n"
    assert facts(take(tmp_path, custody(), line(7, 70), ended, told)) == [("exited", 7), ("tree-empty", "web")]
    commit = {"ack": 5, "state": {}, "lines": [], "journalled": 0, "do": []}
    again = take(tmp_path, custody(), line(7, 70), ended, told, json.dumps({"commit": commit}) + "\n")
    assert again.book is not None and again.book.acknowledged == 5
    assert [fact["fact"] for fact in again.book.facts.values()] == ["lost", "tree-empty"]


def test_main_process_that_another_became_is_known_by_its_start(tmp_path: Path, tagged: Tagged) -> None:
    """A MAINPID process carries its parent's tag, or none that the book knows: pid and start time say who it is."""
    process = tagged(3)
    (seen,) = find_processes(INSTANCE)
    tags = json.dumps({"tags": ["web", [3]]}) + "\n"
    found = take(tmp_path, custody(), tags, line(7, 1, main_pid=process.pid, main_start=seen.start))
    ((spawn, main),) = found.trees[0].spawns
    assert (spawn.id, main.pid) == (7, process.pid)


def test_process_that_cannot_carry_the_tag_is_known_by_its_invocation(tmp_path: Path) -> None:
    """``[limits] rttime``, or a program that sets that limit itself; what it forked is known by the same."""
    environment = {"INVOCATION_ID": "cd" * 16}
    made = [subprocess.Popen(["sleep", "1000"], env=environment) for _ in range(2)]
    try:
        found = take(tmp_path, custody(), line(7, made[0].pid, invocation="cd" * 16, tagged=False))
        (tree,) = found.trees
        assert [process.pid for _, process in tree.spawns] == [made[0].pid]
        assert set(tree.pidfds) == {process.pid for process in made}
        stranger = take(tmp_path, custody(), line(7, made[0].pid, invocation="ef" * 16))
        assert not stranger.trees[0].pidfds
        assert [one.pid for one in stranger.unseen] == [made[0].pid]
    finally:
        for process in made:
            process.kill()
            process.wait()


def test_process_that_was_made_and_not_booked_is_not_made_twice(tmp_path: Path, tagged: Tagged) -> None:
    """The keeper died between making and booking it: the request is in the book, and the process carries its tag."""
    process = tagged(7)
    requests = [{"do": "spawn", "id": number, "unit": "web", "role": "main"} for number in (7, 8)]
    found = take(tmp_path, custody(requests=requests))
    ((spawn, main),) = found.trees[0].spawns
    assert (spawn.id, spawn.role, main.pid) == (7, "main", process.pid)
    assert facts(found) == [("spawned", 7)]
    memfd = hand_over_of(found)
    assert memfd["requests"] == requests
    assert 7 in memfd["inventory"]["ids"] and 8 not in memfd["inventory"]["ids"]


def hand_over_of(found: LostKeeper) -> Any:
    found.lock, other = os.pipe()
    for tree in found.trees:
        tree.pidfds = {pid: os.pidfd_open(pid) for pid in tree.pidfds}
    memfd = hand_over(found)
    state = json.loads(os.pread(memfd, 1 << 20, 0))
    for fd in (memfd, found.lock, other, *(fd for tree in found.trees for fd in tree.pidfds.values())):
        os.close(fd)
    return state


def test_custody_is_what_the_commits_made_of_it(tmp_path: Path) -> None:
    """State, lines and requests of each packet; what was carried out is not asked for again."""
    ask = [{"do": "signal", "unit": "web"}, {"do": "release", "unit": "web"}]
    commit = {"ack": 4, "state": {"a": "2", "b": None}, "lines": [[11, "y"]], "journalled": 10, "do": ask}
    kill = json.dumps({"killing": ["web", 9]}) + "\n"
    found = take(
        tmp_path,
        custody(state={"a": "1", "b": "1", "c": "1"}, lines=[[10, "x"]]),
        json.dumps({"commit": commit}) + "\n" + json.dumps({"did": 1}) + "\n" + kill,
    )
    state = hand_over_of(found)
    assert state["custody"]["state"] == {"a": "2", "c": "1"}
    assert state["custody"]["lines"] == [[11, "y"]]
    assert state["requests"] == ask[1:], "nothing lives that could be killed"


@pytest.mark.parametrize(
    ("lines", "why_not", "told"),
    [
        ((), "", "it left no book"),
        ((json.dumps({"boot": "another"}) + "\n" + custody().partition("\n")[2],), "", "the machine was booted since"),
        (
            (json.dumps({"namespace": "pid:[1] 2"}) + "\n" + custody(),),
            "",
            "its PID namespace is another: the container was started again",
        ),
        ((custody(),), "it was stopping everything", "it was stopping everything"),
    ],
)
def test_where_nothing_can_go_on_it_is_ended(
    tmp_path: Path, tagged: Tagged, lines: tuple[str, ...], why_not: str, told: str
) -> None:
    process = tagged(7, SUPERVISORD_PY_UNIT="web")
    found = take(tmp_path, *lines, why_not=why_not)
    assert (found.why_not, found.book, found.trees) == (told, None, [])
    assert [(one.unit, one.pid) for one in found.ended] == [("web", process.pid)]
    assert not end_leftovers(found)
    assert process.wait() == -15


def test_what_may_stay_stays(tmp_path: Path, tagged: Tagged) -> None:
    """``kill-mode = "process"``: what cannot go on is told and let alone."""
    process = tagged(7)
    found = take(tmp_path, line(7, process.pid), may_stay=True)
    assert [(one.unit, one.pid) for one in found.left] == [("web", process.pid)]
    assert not end_leftovers(found)
    assert process.poll() is None


def test_book_that_is_cut_or_strange_or_missing_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """The last line of an id counts; a line that is no line costs itself."""
    book = tmp_path / "book"
    assert not read_book(book).spawns
    book.write_text(line(1, 10) + "{}\n[1]\n\xff\n" + line(1, 11) + '{"tags":["db",[4,5]]}\n' + line(2, 12)[:-9])
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

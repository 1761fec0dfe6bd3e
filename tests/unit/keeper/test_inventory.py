"""What the keeper reads out of /proc, and what it remembers."""

import os
import resource
import subprocess
from collections.abc import Iterator

import pytest

from supervisord_py.keeper import inventory
from supervisord_py.keeper.inventory import TAGS_KEPT, Inventory, Spawn, Unit, read_stat, walk
from supervisord_py.keeper.protocol import SPAWN_IDS_KEPT, TAG_BASE


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with two sleeping children, which has said that they are there."""
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000 & echo; wait"], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1) == b"\n"
    yield process
    for pid in walk({process.pid}):
        os.kill(pid, 9)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("has_children", [True, False])
def test_a_tree_is_walked_with_and_without_the_kernels_list(
    family: subprocess.Popen[bytes], has_children: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over /proc finds what ``children`` finds."""
    monkeypatch.setattr(inventory, "HAS_CHILDREN", has_children)
    found = walk({family.pid})
    assert len(found) == 3
    assert all(found[pid] == stat.start for pid in found if (stat := read_stat(pid)) is not None)


def test_a_program_name_with_brackets_and_spaces_is_no_trap(tmp_path: os.PathLike[str]) -> None:
    """The second field of stat is what a process calls itself: ``) R 1 (`` for example."""
    program = os.path.join(tmp_path, ") R 1 (")
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([program, "1000"]) as process:
        stat = read_stat(process.pid)
        assert stat is not None and stat.ppid == os.getpid()
        process.kill()


def test_a_pid_that_is_gone_has_no_stat() -> None:
    """None, and an empty walk."""
    assert read_stat(2**22 + 1) is None
    assert walk({2**22 + 1}) == {}


def test_the_start_time_is_the_kernels() -> None:
    """Field 22 of proc(5), counted behind the name."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    stat = read_stat(os.getpid())
    assert stat is not None
    assert (stat.ppid, stat.start) == (os.getppid(), int(fields[22 - 3]))


def test_ids_are_known_once_given_and_old_ones_for_ever() -> None:
    """The newest ids are remembered one by one; everything further below counts as known."""
    book = Inventory(1, lambda *_: True)
    assert not book.is_known(5)
    assert book.is_known(5)
    assert not book.is_known(3), "not seen, and not that old"
    for spawn_id in range(10, 10 + SPAWN_IDS_KEPT + 10):
        assert not book.is_known(spawn_id)
    assert book.is_known(3) and book.is_known(4)
    assert len(book._ids) == SPAWN_IDS_KEPT


def test_an_orphan_is_attributed_by_its_tag_of_this_instance_only(family: subprocess.Popen[bytes]) -> None:
    """A tag of another keeper, or of a spawn that is not known, is no mark."""
    import resource

    hard = resource.prlimit(family.pid, resource.RLIMIT_RTTIME)[1]
    told: list[dict[str, object]] = []
    for instance, spawn_id, is_ours in ((1, 7, True), (2, 7, False), (1, 8, False)):
        book = Inventory(1, lambda fact: told.append(fact) or True)
        unit = book.units.setdefault("a", Unit("a"))
        book.add(Spawn(7, unit, "main", 2**22 + 5, 0), None)
        resource.prlimit(family.pid, resource.RLIMIT_RTTIME, (TAG_BASE + (instance << 40) + spawn_id, hard))
        book.adopt(family.pid)
        assert book.children[family.pid] is (unit if is_ours else book.strays)
    assert [fact["fact"] for fact in told] == ["stray", "stray"]


def test_the_main_process_is_the_first_to_get_a_signal() -> None:
    """Workers of a daemon that forked are children of ours beside it, and for some a failure if they die before it."""
    sleepers = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    try:
        for main in sleepers:
            book = Inventory(1, lambda *_: True)
            unit = book.units.setdefault("a", Unit("a"))
            unit.children = {sleeper.pid for sleeper in sleepers}
            unit.main = Spawn(7, unit, "main", main.pid, 0)
            found = list(walk(book.roots(unit)))
            assert found[0] == main.pid and set(found) == unit.children
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()


def test_a_forgotten_unit_leaves_no_mark_behind() -> None:
    """Tags, invocations and groups go with the unit."""
    book = Inventory(1, lambda *_: True)
    for name in ("a", "b"):
        unit = book.units.setdefault(name, Unit(name))
        book.add(Spawn(len(book.units), unit, "main", 2**22 + len(book.units), 0), f"invocation of {name}")
    book.forget(book.units["a"])
    assert list(book.units) == ["b"]
    assert set(book._tags) == {2} and set(book._invocations) == {"invocation of b"}


def test_many_kills_in_one_commit_look_for_orphans_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand requests in a turn read the list of a thousand children once, not a thousand times."""
    looks: list[int] = []

    def children(pid: int) -> list[int]:
        looks.append(pid)
        return []

    monkeypatch.setattr(inventory, "_read_children", children)
    monkeypatch.setattr(inventory, "HAS_CHILDREN", True)
    book = Inventory(1, lambda *_: True)
    for _ in range(1000):
        book.scan()
    assert len(looks) == 1
    book.scan(again=True)
    assert len(looks) == 2, "what has ended since may have left orphans"
    book.is_stale = True
    book.scan()
    assert len(looks) == 3, "a new turn looks again"


def test_a_unit_that_never_rests_is_remembered_in_bounds() -> None:
    """Spawn after spawn of a running unit: the newest tags and the main process's own are kept, and no more."""
    inventory = Inventory(1, lambda fact, unit=None: True)
    unit = inventory.units.setdefault("a", Unit("a"))
    unit.main = Spawn(1, unit, "main", 10**6, 0)
    inventory.add(unit.main, "life")
    for spawn_id in range(2, 3 * TAGS_KEPT):
        inventory.add(Spawn(spawn_id, unit, "reload", 10**6 + spawn_id, 0), "life")
        inventory.remove(10**6 + spawn_id, unit)
    assert len(unit.tags) == len(inventory._tags) == TAGS_KEPT
    assert {1, 3 * TAGS_KEPT - 1} <= inventory._tags.keys()
    assert list(unit.invocations) == ["life"]


def test_nothing_is_remembered_of_a_unit_without_a_process() -> None:
    """A life that ended leaves neither tag nor invocation, and those of other units are not touched."""
    inventory = Inventory(1, lambda fact, unit=None: True)
    one, other = (inventory.units.setdefault(name, Unit(name)) for name in "ab")
    inventory.add(Spawn(1, one, "main", 10**6, 0), "first")
    inventory.add(Spawn(2, other, "main", 10**6 + 1, 0), "second")
    inventory.remove(10**6, one)
    inventory.forget_lives(one)
    assert inventory._tags == {2: other}
    assert inventory._invocations == {"second": other}


@pytest.mark.parametrize("has_children", [True, False])
def test_out_of_descriptors_is_not_taken_for_gone(has_children: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be looked at because of us is not told to be none."""
    monkeypatch.setattr(inventory, "HAS_CHILDREN", has_children)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_stat(os.getpid())
        with pytest.raises(OSError, match="Too many open files"):
            inventory.children_lookup()(os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

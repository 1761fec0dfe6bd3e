"""Whose a process is, however it fled; killing leaves none; strays are told."""

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.keeper_rig import (
    FakeManager,
    Rig,
    descendants,
    is_alive,
    keeper,
    keeper_of_nobody,
    python,
    spawn,
    wait_until,
)

UNIFIED = next((p for p in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if Path(p, "cgroup.procs").exists()), None)
SHAPES = {
    "child": "go()",
    "same-group-grandchild": "if os.fork() == 0: go()",
    "setsid-grandchild": "if os.fork() == 0: os.setsid(); go()",
    "daemon": "if os.fork() == 0:\n os.setsid()\n if os.fork() == 0: bare()\n os._exit(0)",
}
FOREST = """
import os, signal
def go():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execv('/bin/sleep', ['sleep', '1000'])
def bare():
    os.execve('/bin/sleep', ['sleep', '1000'], {})
"""


UNMARKED = """
import os, resource
seen, mine = os.pipe()
if os.fork() == 0:
    resource.setrlimit(resource.RLIMIT_RTTIME, (10**6, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))
    os.execve("/bin/sleep", ["sleep", "1234"], ENVIRONMENT)
os.close(mine)
os.read(seen, 1)
"""
"""Leaves an orphan that has lost its tag before its parent ends."""


def tree_of_all_shapes(spawn_id: int, unit: str, **more: Any) -> dict[str, Any]:
    """A process with a child, a grandchild in its group, one in another session, and a daemon without environment."""
    code = FOREST
    for shape in SHAPES.values():
        code += "if os.fork() == 0:\n" + "".join(f" {line}\n" for line in shape.splitlines()) + " os._exit(0)\n"
    return python(spawn_id, unit, code + "print('grown', flush=True)\ngo()\n", **more)


@contextmanager
def group() -> Iterator[str]:
    """A cgroup v2 folder, or a counted skip."""
    if UNIFIED is None or not os.access(f"{UNIFIED}/cgroup.procs", os.W_OK):
        pytest.skip("no writable cgroup v2 hierarchy")
    folder = f"{UNIFIED}/keeper-test-{os.getpid()}"
    os.mkdir(folder)

    def is_removed() -> bool:
        # A process that was reaped a moment ago may still be in it.
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    try:
        yield folder
    finally:
        wait_until(is_removed, "an empty group")


def grow(rig: Rig, manager: FakeManager, spawn_id: int, unit: str, **more: Any) -> set[int]:
    """Start a tree and return its processes when all five have their final shape."""
    manager.commit(tree_of_all_shapes(spawn_id, unit, **more))
    assert manager.line(unit) == "grown"

    def sleepers() -> set[int] | None:
        found = set()
        for pid in manager.ask("trees", units=[unit])["trees"][unit]:
            try:
                if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                    found.add(pid)
            except OSError:
                return None
        return found if len(found) == 5 else None

    pids: set[int] = wait_until(sleepers, "five processes")
    return pids


WHO = {"as-started": keeper, "ordinary-user": keeper_of_nobody}


@pytest.mark.parametrize("who", WHO)
def test_kill_leaves_none_of_the_four_shapes(who: str) -> None:
    """Child, grandchild, setsid grandchild and a daemon with a cleared environment end with the unit; others stay."""
    open_keeper: Any = WHO[who]
    with open_keeper() as rig:
        manager = rig.manager()
        pids, others = grow(rig, manager, 1, "a"), grow(rig, manager, 2, "b")
        assert not pids & others
        manager.commit({"do": "kill", "unit": "a", "signal": signal.SIGKILL})
        manager.until(lambda: any(f.get("tree_empty") or f["fact"] == "tree-empty" for _, f in manager.facts), "empty")
        assert not [pid for pid in pids if is_alive(pid)]
        assert all(is_alive(pid) for pid in others)
        assert not any(fact["fact"] == "stray" for _, fact in manager.facts)
        manager.commit({"do": "exit", "code": 0})
        manager.obey()
        assert rig.wait() == 0
        assert not [pid for pid in others if is_alive(pid)]


def home_of(pid: int) -> str:
    """The folder of a process's own cgroup v2."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return str(UNIFIED) + next(line for line in lines if line.startswith("0::"))[3:].rstrip("/")


@pytest.mark.cgroup
@pytest.mark.parametrize("way", ["auto", "fork"])
def test_kill_leaves_none_with_a_cgroup_and_release_removes_it(way: str) -> None:
    """With a cgroup the kernel does the same, and the folder goes with the unit; by vfork and by fork."""
    with group() as folder, keeper(spawner=way) as rig:
        manager = rig.manager()
        pids = grow(rig, manager, 1, "a", cgroups=[folder], home=home_of(rig.pid))
        assert set(map(int, Path(folder, "cgroup.procs").read_text().split())) == pids
        manager.commit({"do": "kill", "unit": "a", "signal": signal.SIGKILL})
        manager.until(lambda: any(f.get("tree_empty") or f["fact"] == "tree-empty" for _, f in manager.facts), "empty")
        assert not [pid for pid in pids if is_alive(pid)]
        manager.commit({"do": "release", "unit": "a"})
        wait_until(lambda: not os.path.exists(folder), "removal of the cgroup")


@pytest.mark.cgroup
def test_the_keeper_comes_back_from_the_group_of_a_unit() -> None:
    """It goes into the group to make a process there, where the way back is its own group; a failed exec or another
    group called its home leaves it where it was, too."""
    with group() as folder, keeper() as rig:
        manager = rig.manager()
        home = home_of(rig.pid)
        for spawn_id, way_back in ((1, home), (2, folder), (3, home)):
            manager.commit(spawn(spawn_id, "a", "sleep", "1000", cgroups=[folder], home=way_back))
            manager.commit(spawn(10 + spawn_id, "a", "/no/such", cgroups=[folder], home=way_back))
            pid = manager.fact("spawned", id=spawn_id)["pid"]
            assert manager.fact("spawn-failed", id=10 + spawn_id)["code"] == 203
            assert home_of(pid) == folder
            assert home_of(rig.pid) == home
        assert "group" not in rig.said()


@pytest.mark.cgroup
def test_a_frozen_group_does_not_freeze_the_keeper() -> None:
    """What is started in a group that somebody froze waits there alone, until it is thawed."""
    with group() as folder, keeper() as rig:
        manager = rig.manager()
        Path(folder, "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in Path(folder, "cgroup.events").read_text(), "the frozen group")
        manager.commit(spawn(1, "a", "true", cgroups=[folder], home=home_of(rig.pid)))
        manager.commit(spawn(2, "b", "true"))
        manager.fact("exited", id=2)
        assert not any(fact["fact"] == "exited" and fact["id"] == 1 for _, fact in manager.facts)
        Path(folder, "cgroup.freeze").write_text("0")
        manager.fact("exited", id=1)


@pytest.mark.cgroup
def test_the_cgroup_tells_whose_it_is_when_the_tag_does_not() -> None:
    """An orphan that changed its tag and cleared its environment is still the unit's, by its cgroup."""
    code = """
import os, resource
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_RTTIME, (10**6, resource.getrlimit(resource.RLIMIT_RTTIME)[1]))
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
os.wait()
"""
    with group() as folder, keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code, cgroups=[folder], home=home_of(rig.pid)))
        assert not manager.fact("exited", id=1)["tree_empty"]
        (pid,) = manager.ask("trees", units=["a"])["trees"]["a"]
        assert manager.ask("whose", pid=pid)["unit"] == "a"
        manager.commit({"do": "kill", "unit": "a", "signal": signal.SIGKILL})
        manager.fact("tree-empty", unit="a")


def test_a_cgroup_that_is_not_there_fails_the_start() -> None:
    """Step ``cgroup``, code 219."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "true", cgroups=["/no/such/group"]))
        fact = manager.fact("spawn-failed", id=1)
        assert (fact["step"], fact["code"], fact["errno"]) == ("cgroup", 219, 2)


def test_exit_of_the_main_process_is_not_the_end_of_the_tree() -> None:
    """``tree_empty`` is false while a daemon lives; its end is told as ``tree-empty``, once."""
    code = "import os\nif os.fork() == 0: os.execve('/bin/sleep', ['sleep', '1000'], {})\n"
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code))
        assert not manager.fact("exited", id=1)["tree_empty"]
        manager.commit({"do": "signal", "unit": "a", "id": None, "whom": "all", "signal": 15, "cont": False})
        manager.fact("tree-empty", unit="a")
        manager.commit(spawn(2, "a", "true"))
        assert manager.fact("exited", id=2)["tree_empty"]
        assert sum(fact["fact"] == "tree-empty" for _, fact in manager.facts) == 1


def test_two_exits_in_one_wake_up_only_the_last_empties_the_tree() -> None:
    """In the order of the stream ``tree_empty`` is true exactly once: when nothing of the unit is still to be told."""
    with keeper() as rig:
        manager = rig.manager()
        for round_ in range(10):
            first = 2 * round_ + 1
            manager.commit(spawn(first, "a", "sleep", "1000"), spawn(first + 1, "a", "sleep", "1000", role="stop"))
            manager.fact("spawned", id=first + 1)
            manager.commit({"do": "kill", "unit": "a", "signal": 9})
            manager.fact("exited", id=first)
            manager.fact("exited", id=first + 1)
            empties = [f["tree_empty"] for _, f in manager.facts if f["fact"] == "exited"]
            assert empties == [False, True] * (round_ + 1)


def test_a_kill_that_is_a_term_comes_once_and_goes_on_until_none_is_left() -> None:
    """Each process gets the signal once, however many rounds there are; one that ignores it waits for a better one."""
    code = """
import os, signal
count = 0
def on_term(*_):
    global count
    count += 1
    os.write(1, b"%d\\n" % count)
seen, mine = os.pipe()
for _ in range(3):
    if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '1000'])
os.close(mine)
os.read(seen, 1)
signal.signal(signal.SIGTERM, on_term)
os.write(1, b"up\\n")
while True:
    try: os.wait()
    except ChildProcessError: break
os.write(1, b"alone\\n")
while True: signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code))
        assert manager.line("a") == "up"
        manager.commit({"do": "kill", "unit": "a", "signal": 15})
        assert [manager.line("a"), manager.line("a")] == ["1", "alone"]
        manager.commit({"do": "kill", "unit": "a", "signal": 9})
        assert manager.fact("exited", id=1)["tree_empty"]
        assert os.read(manager.outputs["a"], 0) == b""


def test_a_spawn_ends_the_killing_before_it() -> None:
    """A kill that is still going on does not hit the next life of the unit."""
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", stubborn))
        assert manager.line("a") == "up"
        manager.commit({"do": "kill", "unit": "a", "signal": 15}, spawn(2, "a", "sleep", "1000", role="stop"))
        second = manager.fact("spawned", id=2)["pid"]
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 9, "cont": False})
        assert not manager.fact("exited", id=1)["tree_empty"]
        assert is_alive(second)


def test_signal_main_hits_the_main_process_only_and_continues_it() -> None:
    """``whom`` main is one process; with ``cont`` a stopped one can obey."""
    code = "import os\nos.fork()\nos.execv('/bin/sleep', ['sleep', '1000'])"
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code))
        pid = manager.fact("spawned", id=1)["pid"]
        wait_until(lambda: len(manager.ask("trees", units=["a"])["trees"]["a"]) == 2)
        os.kill(pid, signal.SIGSTOP)
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 15, "cont": True})
        fact = manager.fact("exited", id=1)
        assert (fact["signal"], fact["tree_empty"]) == (15, False)


def test_a_fork_bomb_is_killed() -> None:
    """Processes that fork while they are being killed are hunted down round by round."""
    code = """
import os, select, signal
for _ in range(20):
    if os.fork() == 0:
        for _ in range(200):
            if os.fork() == 0:
                select.select([], [], [], 0.02)
                continue
            os._exit(0)
        os._exit(0)
print("bomb", flush=True)
signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code))
        assert manager.line("a") == "bomb"
        manager.commit({"do": "kill", "unit": "a", "signal": 9})
        manager.until(lambda: any(f.get("tree_empty") or f["fact"] == "tree-empty" for _, f in manager.facts), "empty")
        assert descendants(rig.pid) == {manager.pid}


def test_a_stray_is_told_and_gone_at_exit() -> None:
    """A child of the keeper that carries no mark of a unit is a stray: told with its command, killed at the exit."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", UNMARKED.replace("ENVIRONMENT", "{}")))
        manager.fact("exited", id=1)
        fact = manager.until(lambda: next((f for _, f in manager.facts if f["fact"] == "stray"), None), "stray")
        answer = manager.ask("whose", pid=fact["pid"])
        assert (answer["unit"], answer["stray"], answer["descendant"]) == (None, True, True)
        assert fact["command"] == "sleep 1234"
        manager.commit({"do": "exit", "code": 3})
        manager.obey()
        assert rig.wait() == 3
        assert not is_alive(fact["pid"])


def test_the_end_of_a_stray_is_told() -> None:
    """``stray-exited`` with its status, and no event of a unit."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", UNMARKED.replace("ENVIRONMENT", "{}")))
        assert manager.fact("exited", id=1)["tree_empty"]
        pid = manager.until(lambda: next((f["pid"] for _, f in manager.facts if f["fact"] == "stray"), None), "stray")
        os.kill(pid, signal.SIGTERM)
        assert manager.fact("stray-exited", pid=pid)["signal"] == signal.SIGTERM
        assert not any(fact["fact"] == "tree-empty" for _, fact in manager.facts)


def test_an_orphan_without_tag_is_told_by_its_invocation() -> None:
    """INVOCATION_ID in the environment is the third mark, and it must be one that the keeper gave."""
    with keeper() as rig:
        manager = rig.manager()
        keeping = UNMARKED.replace("ENVIRONMENT", "{'INVOCATION_ID': os.environ['INVOCATION_ID']}")
        manager.commit(python(1, "a", keeping, env={"INVOCATION_ID": "abc123"}))
        assert not manager.fact("exited", id=1)["tree_empty"]
        (pid,) = manager.ask("trees", units=["a"])["trees"]["a"]
        assert manager.ask("whose", pid=pid)["unit"] == "a"


def test_whose_answers_for_all_kinds_of_processes() -> None:
    """A unit's grandchild, the manager, the keeper, a process outside, and a pid that does not exist."""
    with keeper() as rig:
        manager = rig.manager()
        for pid in grow(rig, manager, 1, "a"):
            assert manager.ask("whose", pid=pid)["unit"] == "a"
        for pid, descendant in (
            (manager.pid, True),
            (rig.pid, True),
            (os.getpid(), False),
            (1, False),
            (2**22 + 1, False),
        ):
            answer = manager.ask("whose", pid=pid)
            assert (answer["unit"], answer["stray"], answer["descendant"]) == (None, False, descendant), pid


def test_many_units_at_once_are_killed_and_told() -> None:
    """150 units killed in one commit: every exit is told with an empty tree, every process is gone."""
    with keeper() as rig:
        manager = rig.manager()
        names = [f"u{i}" for i in range(150)]
        manager.commit(*[spawn(i + 1, name, "sleep", "1000") for i, name in enumerate(names)])
        manager.until(lambda: len(manager.facts) == 150)
        manager.commit(*[{"do": "kill", "unit": name, "signal": 9} for name in names])
        manager.until(lambda: len(manager.facts) == 300)
        assert all(fact["tree_empty"] for _, fact in manager.facts if fact["fact"] == "exited")
        assert descendants(rig.pid) == {manager.pid}

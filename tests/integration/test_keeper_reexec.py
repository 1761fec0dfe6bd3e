"""The keeper replaces itself: same pid, everything it held goes on, and a new image that is not fit changes nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.keeper.handover import read_state
from supervisord_py.keeper.protocol import STATE_VERSION
from tests.integration.keeper_rig import SYSTEM_PYTHON, FakeManager, Rig, is_alive, keeper, python, spawn, wait_until


def reexec(rig: Rig, manager: FakeManager, *do: dict[str, Any]) -> FakeManager:
    """Let the keeper replace itself; returns the manager that it welcomes afterwards, the old one has left."""
    manager.commit(*do, {"do": "reexec"})
    manager.until(lambda: {"reexec": None} in manager.messages, "the check")
    following = rig.manager(greet=False)
    following.send({"op": "hello", "protocol": 1, "pid": following.pid})
    manager.obey()
    following.until(lambda: following.welcome, "welcome")
    return following


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_everything_goes_on_in_the_new_image() -> None:
    """Children, exits that nobody acknowledged, state, lines, output and notifications that waited: all there."""
    talks = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
def tell(*_):
    os.write(1, b"said before\\n")
    sock.send(b"READY=1")
signal.signal(signal.SIGUSR1, tell)
os.write(1, b"up\\n")
while True: signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(
            spawn(1, "a", "sleep", "1000"), python(2, "b", talks, notify="main"), spawn(3, "c", "sh", "-c", "exit 5"),
            state={"k": "v"}, lines=[(1, "one"), (2, "two")],
        )  # fmt: skip
        sleeper = manager.fact("spawned", id=1)["pid"]
        manager.fact("exited", id=3)
        assert manager.line("b") == "up"
        before = descriptors(rig.pid)
        first = manager
        told = len(manager.facts)
        manager = reexec(rig, manager, {"do": "signal", "unit": "b", "id": 2, "whom": "main", "signal": 10})
        assert command_line(rig.pid)[-3] == "--resume"
        assert manager.welcome["state"] == {"k": "v"}
        assert manager.welcome["lines"] == [[1, "one"], [2, "two"]]
        assert {process["id"]: process["unit"] for process in manager.welcome["processes"]} == {1: "a", 2: "b"}
        assert manager.welcome["instance"] == first.welcome["instance"]
        assert manager.welcome["managers"] == 2
        assert manager.line("b") == "said before"
        manager.fact("notify", unit="b", id=2)
        manager.fact("reexecuted", refused=None)
        numbers = [number for number, _ in manager.facts]
        assert numbers == list(range(told + 1, told + 1 + len(numbers))), "acknowledged facts are not told again"
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 9, "cont": False})
        end = manager.fact("exited", id=1)
        assert (end["pid"], end["signal"], end["tree_empty"]) == (sleeper, 9, True)
        assert end["rusage"]
        wait_until(lambda: descriptors(rig.pid) == before, "the descriptors of before")


def test_exits_while_nobody_looked_are_told_once() -> None:
    """Children that end around the exec stay zombies until the new image reaps them."""
    with keeper() as rig:
        manager = rig.manager()
        for round_ in range(5):
            first = 1 + round_ * 20
            ids = range(first, first + 20)
            dying = [spawn(number, f"u{number}", "sh", "-c", f"sleep 0.{number % 20:02}; exit 7") for number in ids]
            manager = reexec(rig, manager, *dying)
            for number in ids:
                assert manager.fact("exited", id=number)["code"] == 7
            ends = [fact["id"] for _, fact in manager.facts if fact["fact"] == "exited"]
            assert len(ends) == len(set(ends))
            manager.commit(*({"do": "release", "unit": f"u{number}"} for number in ids))


def test_orders_and_a_shutdown_under_way_go_on() -> None:
    """A stop that the old manager never heard is in the welcome of the next; its time limit stays."""
    with keeper(shutdown_timeout_s=0.1) as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "1000"))
        pid = manager.fact("spawned", id=1)["pid"]
        os.kill(rig.pid, signal.SIGTERM)
        manager.order("stop")
        manager = reexec(rig, manager)
        assert manager.welcome["stopping"] == "stop"
        manager.obey()
        assert rig.wait() == 1
        assert not is_alive(pid)


def test_fallen_away_process_still_belongs_to_its_unit_and_followed_ones_are_told() -> None:
    """Orphans by tag, the unit's other commands, a MAINPID process that is not our child, a kill under way."""
    code = """
import os, signal, socket
if (pid := os.fork()) == 0:
    signal.signal(15, lambda *_: os._exit(7))
    while True: signal.pause()
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
sock.send(b"MAINPID=%d" % pid)
print(pid, flush=True)
os.waitpid(pid, 0)
signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code, notify="main"))
        pid = int(manager.line("a"))
        manager.fact("notify", unit="a")
        manager = reexec(rig, manager)
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 15, "cont": False})
        end = manager.fact("exited", id=1, pid=pid)
        assert (end["main"], end["tree_empty"]) == (True, False)
        manager.commit(spawn(2, "b", "sh", "-c", "(setsid env -i sleep 1000 &) ; exec sleep 1000"))
        wait_until(lambda: len(manager.ask("trees", units=["b"])["trees"].get("b", [])) == 2, "an orphan")
        manager = reexec(rig, manager)
        assert len(manager.ask("trees", units=["b"])["trees"]["b"]) == 2
        manager.commit({"do": "kill", "unit": "b", "signal": 9}, {"do": "kill", "unit": "a", "signal": 9})
        manager.fact("exited", id=2)
        manager.until(lambda: not any(manager.ask("trees", units=None)["trees"].values()), "the end of all")


def test_unfit_image_is_refused_and_nothing_changes() -> None:
    """A broken upgrade: the reason is told, manager and children stay; once mended it works."""
    with keeper(python=SYSTEM_PYTHON) as rig:
        package = rig.package
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "1000"))
        pid = manager.fact("spawned", id=1)["pid"]
        good = (package / "keeper" / "loop.py").read_text()
        (package / "keeper" / "loop.py").write_text(good + "\nraise RuntimeError('half an upgrade')\n")
        before = descriptors(rig.pid)
        manager.commit({"do": "reexec"})
        fact = manager.fact("reexecuted", new=None)
        assert "half an upgrade" in fact["refused"]
        wait_until(lambda: descriptors(rig.pid) == before, "the descriptors of before")
        (package / "keeper" / "loop.py").write_text(good)
        (package / "__init__.py").write_text("__version__ = 'newer'\n")
        manager = reexec(rig, manager)
        assert manager.welcome["version"] == "newer"
        assert manager.fact("reexecuted", new="newer")["old"] == "0"
        assert is_alive(pid)


def test_unfit_manager_keeps_the_old_image() -> None:
    """The new manager dies in its pre-flight: the keeper stays what it was, and says so."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit({"do": "reexec"})
        rig.manager(greet=False).kill()
        fact = manager.fact("reexecuted", new=None)
        assert "ended before it was ready" in fact["refused"]
        assert "--resume" not in command_line(rig.pid)
        manager.commit(spawn(1, "a", "sleep", "1000"))
        manager.fact("spawned", id=1)
        assert '"id":1,' in (rig.runtime / "book").read_text(), "the copy that tried has left our book alone"
        manager = reexec(rig, manager)
        assert manager.fact("reexecuted", refused=None)


OLD_IMAGE = """
import fcntl, json, os, socket, subprocess, sys
argv, state = sys.argv[2:], json.load(open(sys.argv[1]))
runtime = json.loads(argv[argv.index("--config") + 1])["runtime_dir"]
os.makedirs(runtime + "/n")
held = []
def hold(fd):
    # As far away as the numbers of the fixture were: what is opened meanwhile is not in the way.
    held.append(fcntl.fcntl(fd, fcntl.F_DUPFD, 100))
    return held[-1]
def bound(kind, path):
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    made.bind(path)
    return made
lock = os.open(runtime + "/lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
listener = bound(socket.SOCK_STREAM, runtime + "/control.sock")
listener.listen()
state |= {"lock": hold(lock), "listener": hold(listener.fileno())}
state["socket_inode"] = os.stat(runtime + "/control.sock").st_ino
state["managers"] |= {"current": None, "pids": []}
pids = {}
for unit in state["inventory"]["units"]:
    reader, writer = os.pipe()
    unit["output"] = [hold(reader), hold(os.open(f"/proc/self/fd/{writer}", os.O_RDWR))]
    if unit["notify"] is not None:
        box = bound(socket.SOCK_DGRAM, runtime + "/n/box")
        unit["notify"][:2] = [runtime + "/n/box", hold(box.fileno())]
    for pid in unit["children"]:
        pids[pid] = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
    unit["children"] = [pids[pid] for pid in unit["children"]]
for spawn in state["inventory"]["spawns"]:
    spawn["pid"] = spawn["main_pid"] = pids[spawn["pid"]]
state["inventory"]["pids"] = [[pids[pid], spawn_id] for pid, spawn_id in state["inventory"]["pids"]]
state["fds"] = held
memfd = os.memfd_create("state", 0)
os.write(memfd, json.dumps(state).encode())
for fd in held:
    os.set_inheritable(fd, True)
os.execv(argv[0], [*argv, "--resume", str(memfd)])
"""


def test_state_of_the_version_before_is_read() -> None:
    """A state of version 1, as a keeper of that version wrote it, goes on: the fixture with this test's descriptors."""
    fixture = Path(__file__).parents[1] / "data" / "handover" / "state-1.json"
    old = json.loads(fixture.read_text())
    assert old["version"] == STATE_VERSION - 1
    with keeper(before=[SYSTEM_PYTHON, "-c", OLD_IMAGE, str(fixture)]) as rig:
        manager = rig.manager()
        assert manager.welcome["state"] == old["custody"]["state"]
        assert manager.welcome["lines"] == old["custody"]["lines"]
        assert manager.welcome["instance"] == old["instance"]
        assert {process["id"]: process["unit"] for process in manager.welcome["processes"]} == {1: "sleeps", 2: "talks"}
        assert sorted(manager.welcome["outputs"]) == ["gone", "sleeps", "talks"]
        assert manager.fact("reexecuted", refused=None)["old"] == old["old"]
        assert manager.facts[0][0] == old["custody"]["last"] + 1
        manager.commit(
            {"do": "signal", "unit": "sleeps", "id": 1, "whom": "main", "signal": 9, "cont": False},
            {"do": "kill", "unit": "talks", "signal": 9}, {"do": "release", "unit": "gone"},
            spawn(3, "new", "sh", "-c", "exit 5"), spawn(4, "new", "sh", "-c", "exit 6"),
        )  # fmt: skip
        assert manager.fact("exited", id=1)["signal"] == 9
        assert manager.fact("exited", id=2)["tree_empty"]
        assert manager.fact("exited", id=4)["code"] == 6
        assert not [fact for _, fact in manager.facts if fact.get("id") == 3], "a known id is no second process"
        reexec(rig, manager)


def test_state_of_a_later_version_is_refused_in_a_sentence() -> None:
    """After a downgrade: the check says so, nothing happens."""
    with pytest.raises(ValueError, match=f"version {STATE_VERSION + 1}; this keeper reads {STATE_VERSION}"):
        memfd = os.memfd_create("state")
        os.write(memfd, json.dumps({"version": STATE_VERSION + 1}).encode())
        read_state(memfd)

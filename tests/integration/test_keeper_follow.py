"""Following a main process that the keeper did not make: by its pid, by guess, and how its end is told."""

import os
import signal
from pathlib import Path

import pytest

from supervisord_py.keeper.follow import read_status, read_unreaped
from tests.integration.keeper_rig import FakeManager, is_alive, keeper, python, spawn, wait_until

KERNEL_TELLS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)
DAEMON = """
import os, signal
if os.fork() == 0:
    os.setsid()
    signal.signal(15, lambda *_: os._exit(42))
    print(os.getpid(), flush=True)
    while True: signal.pause()
"""
PARENT_THAT_REAPS = """
import os, signal
if (pid := os.fork()) == 0:
    signal.signal(15, lambda *_: os._exit(7))
    print(os.getpid(), flush=True)
    while True: signal.pause()
while os.waitpid(pid, 0) != (pid, 7 << 8): pass
signal.pause()
"""


def follow(spawn_id: int, unit: str, pid: int | None = None, **more: object) -> dict[str, object]:
    return {"do": "follow", "unit": unit, "id": spawn_id, "pid": pid, **more}


def term(spawn_id: int, unit: str) -> dict[str, object]:
    return {"do": "signal", "unit": unit, "id": spawn_id, "whom": "main", "signal": int(signal.SIGTERM), "cont": False}


def daemonize(manager: FakeManager, unit: str, code: str = DAEMON) -> int:
    """Run the start command of a forking unit; returns the daemon's pid."""
    manager.commit(python(1, unit, code, role="start"))
    pid = int(manager.line(unit))
    assert not manager.fact("exited", id=1)["tree_empty"]
    return pid


@pytest.mark.parametrize("named", [True, False])
def test_daemon_becomes_the_main_process_and_its_exit_is_told(named: bool) -> None:
    """The pid of a pid file, or the only child of the unit: the next manager finds it, and wait4 tells its end."""
    with keeper() as rig:
        manager = rig.manager()
        pid = daemonize(manager, "a")
        manager.commit(follow(2, "a", pid if named else None))
        fact = manager.fact("followed", id=2)
        assert (fact["unit"], fact["pid"], fact["refused"]) == ("a", pid, None)
        manager.commit()
        manager.kill()
        manager = rig.manager()
        assert manager.welcome["processes"] == [{"id": 2, "unit": "a", "role": "main", "pid": pid, "pending": False}]
        manager.commit(follow(2, "a", None), ack=0)
        assert manager.fact("followed", id=2)["pid"] == pid, "asked again: the same answer"
        manager.commit(term(2, "a"))
        end = manager.fact("exited", id=2)
        assert (end["pid"], end["code"], end["main"], end["tree_empty"]) == (pid, 42, True, True)
        assert end["runtime_ms"] < 60_000
        assert end["rusage"]["max_rss_kb"] > 0
        manager.commit(follow(2, "a", pid), {"do": "follow", "unit": "a", "id": 3, "pid": None})
        assert manager.fact("followed", id=3)["refused"]
        assert sum(told["fact"] == "followed" and told["id"] == 2 for _, told in manager.facts) == 1


def test_exit_of_a_process_that_is_not_our_child_has_a_status() -> None:
    """A followed grandchild, whether or not its parent reaps it before we look: /proc or the pidfd tells."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", PARENT_THAT_REAPS, role="start"))
        pid = int(manager.line("a"))
        manager.commit(follow(2, "a", pid))
        assert manager.fact("followed", id=2)["pid"] == pid
        manager.commit(term(2, "a"))
        end = manager.fact("exited", id=2)
        assert end["code"] == 7 or (end["code"] is None and not KERNEL_TELLS)
        assert not end["tree_empty"]


@pytest.mark.parametrize("status", [3 << 8, 0, signal.SIGKILL])
def test_status_of_a_zombie_and_of_one_that_was_reaped(status: int) -> None:
    """Before it is reaped /proc tells, afterwards the pidfd; each other tells nothing."""
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), status) if status == signal.SIGKILL else os._exit(status >> 8)
    pidfd = os.pidfd_open(pid)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert read_status(pidfd) is None
        assert read_unreaped(pid) == status
        assert os.waitpid(pid, 0)[1] == status
        assert read_unreaped(pid) is None
        assert read_status(pidfd) == (status if KERNEL_TELLS else None)
    finally:
        os.close(pidfd)


def test_guess_takes_no_command_no_zombie_and_not_one_of_two() -> None:
    """Of two daemons neither is guessed; a running command of the unit is none; when one daemon is left it is that."""
    with keeper() as rig:
        manager = rig.manager()
        first = daemonize(manager, "a")
        manager.commit(python(2, "a", DAEMON, role="start"))
        second = int(manager.line("a"))
        manager.fact("exited", id=2)
        manager.commit(follow(3, "a"))
        assert "2 processes" in manager.fact("followed", id=3)["refused"]
        manager.commit(spawn(4, "a", "sleep", "1000", role="stop"))
        manager.fact("spawned", id=4)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{first}").exists(), "the first daemon's end")
        manager.commit(follow(3, "a"))
        manager.until(lambda: any(f["fact"] == "followed" and f["pid"] == second for _, f in manager.facts))
        manager.commit(term(3, "a"))
        assert manager.fact("exited", id=3)["code"] == 42


def test_process_that_cannot_be_is_refused_with_the_reason() -> None:
    """Another unit's, the keeper, the manager, the dead, the unit's own command, nobody's: nothing changes."""
    with keeper() as rig:
        manager = rig.manager()
        daemonize(manager, "a")
        manager.commit(spawn(2, "b", "sleep", "1000"), spawn(3, "a", "sleep", "1000", role="stop"))
        other, command = manager.fact("spawned", id=2)["pid"], manager.fact("spawned", id=3)["pid"]
        reasons = {
            other: "belongs to unit b",
            rig.pid: "cannot be",
            manager.pid: "cannot be",
            1: "cannot be",
            -5: "cannot be",
            2**22 + 1: "not alive",
            command: "another command",
            os.getpid(): "belongs to no unit",
        }
        for number, (pid, reason) in enumerate(reasons.items(), 10):
            manager.commit(follow(number, "a", pid, trusted=reason.startswith("belongs to unit")))
            fact = manager.fact("followed", id=number)
            assert fact["pid"] is None
            assert reason in fact["refused"], pid
        manager.commit(follow(30, "none", other))
        assert "no process" in manager.fact("followed", id=30)["refused"]
        manager.commit(follow(31, "a", os.getpid(), trusted=True))
        assert manager.fact("followed", id=31)["pid"] == os.getpid(), "root's word is enough for a process of nobody"
        assert is_alive(other)

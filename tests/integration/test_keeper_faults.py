"""What goes wrong around the keeper: files removed under it, no descriptors left, limits it cannot take back."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import supervisord_py
from tests.integration.keeper_rig import Rig, keeper, public_folder, python, spawn, wait_until
from tests.integration.test_keeper_notify import notices, teller

CAN_UNSHARE = subprocess.run(["unshare", "-Ur", "true"], check=False, capture_output=True).returncode == 0
user_namespace = pytest.mark.skipif(not CAN_UNSHARE, reason="this machine makes no user namespaces: unshare -Ur fails")
SAY_AND_WAIT = "tell('READY=1'); print('up', flush=True); signal.pause()"
PAUSE = "import signal; print('up', flush=True); signal.pause()"


def file_limit(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/limits").read_text()
    return next(line for line in text.splitlines() if line.startswith("Max open files")).split()[3:5]


@user_namespace
def test_in_a_user_namespace_no_process_is_lost_and_no_limit_kept() -> None:
    """There root seems to be able to raise hard limits and is not: a lower one is made in a fork, and booked."""
    with public_folder() as folder, Rig(folder, before=["unshare", "-Ur"]) as rig:
        manager = rig.manager()
        before = file_limit(rig.pid)
        manager.commit(python(1, "a", PAUSE, rlimits={"nofile": [1000, 1000]}, strict=["nofile"]))
        pid = manager.fact("spawned", id=1)["pid"]
        manager.line("a")
        assert file_limit(pid) == ["1000", "1000"]
        assert file_limit(rig.pid) == before
        assert "internal error" not in rig.said()


@user_namespace
def test_a_limit_that_cannot_be_set_back_loses_no_process() -> None:
    """The process is returned all the same, it is told, and later limits of that kind go by way of a fork."""
    code = """
import os, resource, sys
from supervisord_py.keeper import child
child._may_raise_limits = lambda: True
spawner = child.Spawner(1, "auto")
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
out = os.open("/dev/null", os.O_RDWR)
for spawn_id in (1, 2):
    wanted = hard - spawn_id
    request = {"argv": ["/bin/true"], "env": {}, "cwd": "/", "umask": 18, "rlimits": {"nofile": [wanted, wanted]}}
    made = spawner.spawn(spawn_id, request, out, {})
    print(made.pid == os.waitpid(made.pid, 0)[0], made.report is not None)
"""
    package = str(Path(supervisord_py.__file__).parent.parent)
    argv = ["unshare", "-Ur", sys.executable, "-c", code]
    ran = subprocess.run(argv, env={"PYTHONPATH": package}, capture_output=True, text=True, timeout=20, check=True)
    assert ran.stdout.split() == ["True", "False", "True", "True"]
    assert "cannot set the keeper's own limit nofile back" in ran.stderr


def test_a_removed_notify_socket_costs_nothing_but_itself() -> None:
    """Its file, then its whole folder is removed: the next life has a socket that works, and all exits are told."""
    with keeper() as rig:
        manager = rig.manager()
        removed = []
        for spawn_id in (1, 2, 3):
            manager.commit(teller(spawn_id, "a", SAY_AND_WAIT))
            manager.line("a")
            (box,) = (rig.runtime / "n").iterdir()
            assert re.fullmatch("[0-9a-f]{24}", box.name)
            removed.append(box)
            if spawn_id == 1:
                box.unlink()
            else:
                shutil.rmtree(rig.runtime / "n")
            manager.commit({"do": "kill", "unit": "a", "signal": 9})
            assert manager.fact("exited", id=spawn_id)["tree_empty"]
            if spawn_id == 2:
                manager.commit({"do": "release", "unit": "a"})
                manager.outputs.pop("a")
        assert len(set(removed)) == 3
        assert notices(manager) == [{"READY": "1"}] * 3
        manager.kill()
        last = rig.manager()
        last.commit({"do": "exit", "code": 3})
        last.obey()
        assert rig.wait() == 3
        assert "internal error" not in rig.said() and "Traceback" not in rig.said()


def test_an_exit_is_told_though_what_the_process_said_cannot_be_read() -> None:
    """A mailbox that is broken keeps nobody from being reaped: neither its unit nor younger processes."""
    code = """
import os
from supervisord_py.keeper.book import Book
from supervisord_py.keeper.inventory import Inventory, Spawn, Unit
from supervisord_py.keeper.loop import Loop
from supervisord_py.keeper.notify import Mailbox
from supervisord_py.keeper.reaper import Reaper
facts = []
put = lambda fact, unit=None: facts.append((unit, fact["fact"])) or True
loop, inventory = Loop(), Inventory(1, put)
reaper = Reaper(loop, inventory, None, put, "/none", None, None, Book("/none", inventory, dict))
for spawn_id, name in enumerate("abc", 1):
    pid = os.fork() or os._exit(0)
    unit = inventory.units[name] = Unit(name)
    inventory.add(Spawn(spawn_id, unit, "main", pid, 0), None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
os.mkdir("n")
box = inventory.units["a"].notify = Mailbox("n/box")
box.socket.close()
reaper.reap()
reaper.settle()
print(sorted(facts) == [(name, "exited") for name in "abc"], inventory.children, loop.is_broken)
"""
    package = str(Path(supervisord_py.__file__).parent.parent)
    with public_folder() as folder:
        argv = [sys.executable, "-c", code]
        ran = subprocess.run(
            argv, env={"PYTHONPATH": package}, cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    assert ran.stdout == "True {} False\n"
    assert "Bad file descriptor" in ran.stderr


def test_a_runtime_folder_that_is_gone_does_not_hinder_the_end() -> None:
    """Removed at a logout: processes are ended and the exit code is the one that was asked for."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", SAY_AND_WAIT))
        manager.line("a")
        shutil.rmtree(rig.runtime)
        manager.commit(teller(2, "b", SAY_AND_WAIT))
        manager.line("b")
        manager.commit({"do": "exit", "code": 4})
        manager.obey()
        assert rig.wait() == 4
        assert "Traceback" not in rig.said()


def test_a_manager_is_started_when_descriptors_are_there_again() -> None:
    """No descriptor for it at the moment when one is needed: it is tried again until there is."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", PAUSE))
        manager.line("a")
        soft, hard = resource.prlimit(rig.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (5, hard))
        manager.kill()
        wait_until(lambda: rig.said().count("Too many open files; trying again") >= 2)
        resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert [process["id"] for process in rig.manager().welcome["processes"]] == [1]
        assert "internal error" not in rig.said()


def test_units_cannot_use_up_the_keepers_descriptors() -> None:
    """When only its own are left a start fails and says why; a manager can still be started, and trees be ended."""
    with public_folder() as folder, Rig(folder, before=["prlimit", "--nofile=96:96"]) as rig:
        manager = rig.manager()
        started = 0
        while not (failures := [fact for _, fact in manager.facts if fact["fact"] == "spawn-failed"]):
            started += 1
            manager.commit(python(started, f"u{started}", PAUSE))
            manager.until(partial(lambda count: len(manager.facts) == count, started))
        assert (failures[0]["step"], failures[0]["errno"]) == ("fds", 24)
        assert started > 5
        manager.kill()
        last = rig.manager()
        assert len(last.welcome["processes"]) == len(last.welcome["outputs"]) == started - 1
        last.commit({"do": "kill", "unit": "u1", "signal": 9}, ack=last.facts[-1][0] if last.facts else 0)
        assert last.fact("exited", id=1)["tree_empty"]
        assert "internal error" not in rig.said()


@pytest.mark.parametrize("hard", ["unlimited", "100000"])
def test_a_limit_on_files_does_not_kill_the_keeper(hard: str) -> None:
    """``ulimit -f`` is for units: a welcome above it is sent where that can be, else it is told, and all go on."""
    with public_folder() as folder, Rig(folder, before=["prlimit", f"--fsize=100000:{hard}"]) as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", "import resource; print(resource.getrlimit(resource.RLIMIT_FSIZE)[0])"))
        assert manager.line("a") == "100000"
        for i in range(4):
            manager.commit(state={f"key {i}": "x" * 40_000})
        manager.commit(python(2, "b", PAUSE))
        manager.line("b")
        manager.kill()
        if hard == "unlimited":
            assert len(rig.manager().welcome["state"]) == 4
        else:
            last = rig.manager(greet=False)
            last.send({"op": "hello", "protocol": 1, "pid": last.pid})
            wait_until(lambda: "cannot talk to the manager" in rig.said())
            assert "File too large" in rig.said()
        assert rig.process.poll() is None


def test_a_manager_that_sleeps_through_its_own_deadline_is_replaced() -> None:
    """It said when it would act; without a fact or an order outstanding it is aborted that much and 10 s later."""
    with keeper(hung_timeout_s=0.5) as rig:
        manager = rig.manager()
        for _ in range(3):
            manager.commit(deadline=time.monotonic_ns() + 10**9 * 3600)
        manager.commit(deadline=time.monotonic_ns())
        rig.manager()
        assert "does not answer" in rig.said()
        manager.drop()


def test_a_deadline_that_was_moved_is_no_reason() -> None:
    """A later commit replaces it, and one without takes it away: a quiet manager lives on."""
    with keeper(hung_timeout_s=0.3) as rig:
        manager = rig.manager()
        at_ns = time.monotonic_ns()
        manager.commit(deadline=at_ns)
        manager.commit(deadline=None)
        manager.commit(python(1, "a", "import select; select.select([], [], [], 0.6)"))
        manager.fact("spawned", id=1)
        manager.commit(deadline=time.monotonic_ns() + 10**9 * 3600)
        manager.fact("exited", id=1)
        manager.commit()
        assert manager.ask("trees", units=[])["trees"] == {}
        assert rig.said() == ""


def test_a_stopped_manager_is_replaced() -> None:
    """SIGSTOP with nothing to answer: it has the time of a hung one to go on, then it is killed."""
    with keeper(hung_timeout_s=0.3) as rig:
        manager = rig.manager()
        os.kill(manager.pid, signal.SIGSTOP)
        rig.manager()
        assert "does not answer" in rig.said()
        manager.drop()


@pytest.mark.parametrize("way", ["auto", "fork"])
def test_a_failed_step_names_the_path_not_pythons_words(way: str) -> None:
    """The path alone (step and errno are beside it), or words without an errno in them."""
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "/no/such program"), spawn(2, "a", "true", cwd="/no/such folder"))
        manager.commit(spawn(3, "a", "./none"), spawn(4, "a", "/etc/passwd/x", nice=1))
        details = [manager.fact("spawn-failed", id=i)["detail"] for i in (1, 2, 3, 4)]
        assert details == ["/no/such program", "/no/such folder", "./none: no such file or directory", "/etc/passwd/x"]


def test_a_lingering_socket_passed_by_a_unit_does_not_freeze_the_keeper() -> None:
    """The last close of it takes a minute: it is not the keeper that closes it, and no stray is told of who does."""
    code = """
import struct
listener = socket.create_server(("127.0.0.1", 0))
full = socket.create_connection(listener.getsockname())
peer = listener.accept()[0]
full.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
full.setblocking(False)
try:
    while True: full.send(b"x" * 65536)
except BlockingIOError: pass
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("full", flush=True)
signal.sigwait([signal.SIGUSR1])
tell('READY=1', full.fileno())
full.close()
print("sent", flush=True)
signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        assert manager.line("a") == "full"
        # The keeper does not look until the sender has closed its own: then its copy is the last.
        rig.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{rig.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        os.kill(manager.fact("spawned", id=1)["pid"], signal.SIGUSR1)
        assert manager.line("a") == "sent"
        rig.process.send_signal(signal.SIGCONT)
        manager.until(lambda: {"READY": "1"} in notices(manager))
        began = time.monotonic()
        manager.commit(spawn(2, "b", "true"))
        assert manager.fact("exited", id=2)["tree_empty"]
        assert time.monotonic() - began < 10
        manager.commit({"do": "exit", "code": 0})
        manager.obey()
        assert rig.wait() == 0
        assert not any(fact["fact"] == "stray" for _, fact in manager.facts)
        assert "internal error" not in rig.said()

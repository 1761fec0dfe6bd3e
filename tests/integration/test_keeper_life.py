"""The keeper's own beginning and end: folder, lock, sockets, signals, and nothing left behind."""

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisord_py.keeper.protocol import keeper_argv
from tests.integration.keeper_rig import (
    GLIBC_SIGNALS,
    Rig,
    descendants,
    is_alive,
    keeper,
    keeper_of_nobody,
    public_folder,
    python,
    spawn,
    wait_until,
)

STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"


def run_to_its_end(config: dict[str, object]) -> tuple[int, str]:
    ran = subprocess.run(keeper_argv(config), stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    return ran.returncode, ran.stderr


def test_the_runtime_folder_is_made_and_emptied_again() -> None:
    """Modes of folder, socket and lock while it runs; after the exit only the empty folder is left."""
    with keeper(socket_mode=0o600) as rig:
        manager = rig.manager()
        modes = {
            name: stat.S_IMODE(os.stat(rig.runtime / name).st_mode)
            for name in ("", "n", "control.sock", "bus.sock", "lock")
        }
        assert modes == {
            "": 0o755 if os.geteuid() == 0 else 0o700,
            "n": 0o711,
            "control.sock": 0o600,
            "bus.sock": 0o666,
            "lock": 0o600,
        }
        manager.commit(python(1, "a", "import signal; signal.pause()", notify="main"))
        manager.fact("spawned", id=1)
        (box,) = (rig.runtime / "n").iterdir()
        assert stat.S_IMODE(os.stat(box).st_mode) == 0o666
        manager.commit({"do": "exit", "code": 5})
        manager.obey()
        assert rig.wait() == 5
        assert list(rig.runtime.iterdir()) == []


def test_a_second_keeper_names_the_first_and_touches_nothing() -> None:
    """Exit 1 with the other's pid; the socket of the first still answers."""
    with keeper() as rig:
        manager = rig.manager()
        code, said = run_to_its_end(rig.config)
        assert code == 1
        assert f"pid {rig.pid}" in said
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(rig.runtime / "control.sock"))
        manager.commit(spawn(1, "a", "true"))
        manager.fact("exited", id=1)


def test_what_a_dead_keeper_left_is_replaced() -> None:
    """A stale socket, lock and mailboxes after kill -9 do not stop the next one."""
    with public_folder() as folder:
        runtime = folder / "run"
        (runtime / "n").mkdir(parents=True)
        (runtime / "n" / "old").touch()
        (runtime / "lock").write_text("1\n")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(runtime / "control.sock"))
        with keeper(runtime_dir=str(runtime)) as rig:
            rig.manager()
            assert list((runtime / "n").iterdir()) == []
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(runtime / "control.sock"))


def test_a_runtime_folder_that_cannot_be_used_is_a_clear_error() -> None:
    """Too long a path, one that others may write, one that is a file: exit 1, one line, no traceback."""
    with public_folder() as folder:
        open_to_all = folder / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        (folder / "file").touch()
        wrong = ((folder / ("x" * 80), "80 bytes"), (open_to_all, "written by others"), (folder / "file", "cannot"))
        for path, word in wrong:
            code, said = run_to_its_end({"runtime_dir": str(path), "manager_argv": ["/bin/false"]})
            assert code == 1 and word in said and "Traceback" not in said, said


def test_inherited_descriptors_and_ignored_signals_go_no_further() -> None:
    """A keeper started with open descriptors, nohup and a blocked mask gives its children none of it."""
    with public_folder() as folder:
        leaked, mine = os.pipe()
        os.set_inheritable(leaked, True)
        code = "import os,signal,sys; signal.pthread_sigmask(0, [10, 14]); signal.signal(1, signal.SIG_IGN); "
        code += "signal.signal(20, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        with Rig(folder, before=[sys.executable, "-c", code], pass_fds=[leaked]) as rig:
            manager = rig.manager()
            manager.commit(spawn(1, "a", "sh", "-c", "ls /proc/$$/fd; exec grep -E 'SigBlk|SigIgn' /proc/self/status"))
            manager.fact("exited", id=1)
            said = manager.output("a", 6 + 2 * 25).decode().split()
            assert said[:3] == ["0", "1", "2"]
            assert [int(said[4], 16), int(said[6], 16) & ~GLIBC_SIGNALS] == [0, 0]
        os.close(leaked)
        os.close(mine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGRTMIN + 3])
def test_stop_signals_order_a_stop_and_later_managers_know(number: int) -> None:
    """The order is sent once; a manager that comes after it reads ``stopping``."""
    with keeper() as rig:
        first = rig.manager()
        rig.process.send_signal(number)
        first.order("stop")
        first.kill()
        second = rig.manager()
        assert second.welcome["stopping"] == "stop"
        second.commit({"do": "exit", "code": 0})
        second.obey()
        assert rig.wait() == 0


def test_a_second_interrupt_orders_a_kill() -> None:
    """INT, INT: stop, then kill; a second TERM changes nothing."""
    with keeper() as rig:
        manager = rig.manager()
        rig.process.send_signal(signal.SIGTERM)
        manager.order("stop")
        rig.process.send_signal(signal.SIGTERM)
        rig.process.send_signal(signal.SIGHUP)
        manager.order("reload")
        assert {"order": "kill"} not in manager.messages
        rig.process.send_signal(signal.SIGINT)
        manager.order("kill")
        manager.kill()
        assert rig.manager().welcome["stopping"] == "kill"


def test_reload_and_reopen_are_ordered() -> None:
    """HUP and USR1."""
    with keeper() as rig:
        manager = rig.manager()
        rig.process.send_signal(signal.SIGHUP)
        manager.order("reload")
        rig.process.send_signal(signal.SIGUSR1)
        manager.order("reopen")


def test_orders_wait_for_a_manager() -> None:
    """A reload while there is no manager is told to the next one."""
    with keeper() as rig:
        rig.manager().kill()
        rig.process.send_signal(signal.SIGHUP)
        rig.manager().order("reload")


def test_a_shutdown_that_the_manager_does_not_finish_is_finished_by_the_keeper() -> None:
    """After the time-out and its grace everything is killed, the exit code is 1, and no process is left."""
    with keeper(shutdown_timeout_s=-4.5) as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", STUBBORN))
        assert manager.line("a") == "up"
        rig.process.send_signal(signal.SIGTERM)
        manager.obey()
        assert rig.wait() == 1
        assert not is_alive(manager.facts[0][1]["pid"])
        assert list(rig.runtime.iterdir()) == []
        assert "too long" in rig.said()


def test_exit_kills_a_manager_that_does_not_obey() -> None:
    """A manager that ignores the end of file does not keep the keeper."""
    with keeper() as rig:
        manager = rig.manager()
        start = time.monotonic()
        manager.commit(spawn(1, "a", "sleep", "1000"), {"do": "exit", "code": 2})
        manager.until(lambda: manager.is_over)
        assert rig.wait() == 2
        assert time.monotonic() - start < 9
        assert not is_alive(manager.pid)


def test_exit_without_a_manager() -> None:
    """An exit that was asked for is done though its manager died at once."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "1000"), {"do": "exit", "code": 6})
        manager.kill()
        assert rig.wait() == 6


def test_a_lost_keeper_is_the_managers_end_of_file() -> None:
    """kill -9 of the keeper: the manager reads end of file; its children keep their output and get no SIGPIPE."""
    with keeper() as rig:
        manager = rig.manager()
        code = "import signal\nsignal.pthread_sigmask(0, [10])\nprint('up', flush=True)\nsignal.sigwait([10])\n"
        code += "print('still here', flush=True)"
        manager.commit(python(1, "a", code))
        assert manager.line("a") == "up"
        pid = manager.fact("spawned", id=1)["pid"]
        os.kill(rig.pid, signal.SIGKILL)
        manager.until(lambda: manager.is_over)
        os.kill(pid, signal.SIGUSR1)
        assert manager.line("a") == "still here"
        wait_until(lambda: not is_alive(pid))


def test_the_lock_outlives_no_keeper_and_survives_a_race() -> None:
    """A lock file that its holder removes while the next one waits for it is not taken for the lock."""
    with public_folder() as folder:
        runtime = folder / "run"
        runtime.mkdir(mode=0o755)
        with (runtime / "lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            held.write("4711\n")
            held.flush()
            code, said = run_to_its_end({"runtime_dir": str(runtime), "manager_argv": ["/bin/false"]})
            assert code == 1 and "4711" in said
        with keeper(runtime_dir=str(runtime)) as rig:
            welcome = rig.manager().welcome
            assert (runtime / "lock").read_text() == f"{rig.pid}\n{welcome['instance']}\n"


def test_a_manager_that_cannot_be_started_is_tried_again_and_said() -> None:
    """A missing program is no crash of the keeper; TERM ends it all the same."""
    with keeper(manager_argv=["/no/such/manager"], shutdown_timeout_s=-5) as rig:
        wait_until(lambda: rig.said().count("cannot start the manager") >= 3)
        rig.process.send_signal(signal.SIGTERM)
        assert rig.wait() == 1


def test_an_ordinary_user_can_run_it_with_the_systems_python() -> None:
    """Standard library only, no root: spawn, notify, kill, exit, and a folder closed to others."""
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        sender = "import socket, os; socket.socket(1, 2).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
        manager.commit(python(1, "a", sender, notify="main"))
        assert manager.fact("notify", unit="a")["fields"] == {"READY": "1"}
        if os.geteuid() == 0:
            assert stat.S_IMODE(os.stat(rig.runtime).st_mode) == 0o700
        manager.commit(spawn(2, "b", "sleep", "1000"), {"do": "exit", "code": 0})
        manager.obey()
        assert rig.wait() == 0


def test_no_process_and_no_zombie_is_left_after_a_busy_life() -> None:
    """50 units with children of their own, all ended by exit alone."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(*[spawn(i, f"u{i}", "sh", "-c", "sleep 1000 & sleep 1000 & wait") for i in range(1, 51)])
        wait_until(lambda: len(descendants(rig.pid)) == 151)
        left = descendants(rig.pid)
        manager.commit({"do": "exit", "code": 0})
        manager.obey()
        assert rig.wait() == 0
        assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a process namespace of its own")
def test_it_is_pid_1_of_a_container() -> None:
    """As PID 1 it adopts, kills, reaps and passes its exit code on."""
    with public_folder() as folder, Rig(folder, before=["unshare", "-pf", "--mount-proc", "--kill-child"]) as rig:
        manager = rig.manager()
        assert manager.welcome["pid"] == 1
        manager.commit(python(1, "a", "import os\nif os.fork() == 0: os.execve('/bin/sleep', ['sleep', '1000'], {})"))
        assert not manager.fact("exited", id=1)["tree_empty"]
        manager.commit({"do": "kill", "unit": "a", "signal": 9})
        manager.fact("tree-empty", unit="a")
        manager.commit({"do": "exit", "code": 4})
        manager.obey()
        assert rig.wait() == 4


def test_a_runtime_folder_that_was_removed_is_there_again_with_the_next_manager() -> None:
    """A cleaner took it: clients connect, the lock names us, and a second keeper is refused."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "1000"))
        manager.fact("spawned", id=1)
        shutil.rmtree(rig.runtime)
        manager.commit({"do": "restart-manager"})
        following = rig.manager(greet=False)
        following.send({"op": "hello", "protocol": 1, "pid": following.pid})
        manager.obey()
        following.until(lambda: following.welcome, "welcome")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(rig.runtime / "control.sock"))
            listener = socket.socket(fileno=os.dup(following.listeners[0]))
            with listener, listener.accept()[0]:
                pass
        assert (rig.runtime / "lock").read_text().split() == [str(rig.pid), str(following.welcome["instance"])]
        assert '"unit":"a"' in (rig.runtime / "book").read_text()
        second = subprocess.run(keeper_argv(rig.config), capture_output=True, text=True, timeout=20, check=False)
        assert f"already running here as pid {rig.pid}" in second.stderr
        following.commit(python(2, "b", "print('x', flush=True)", notify="main"))
        assert following.line("b") == "x"

"""The whole supervisor, as its users meet it: real files, real processes, supctl from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.supervisor_rig import supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
DEAF_SCRIPT = "import signal; signal.signal(15, 1); print('deaf', flush=True); signal.pause()"
DEAF = f"""
[service]
exec-start = ["{sys.executable}", "-c", "{DEAF_SCRIPT}"]
"""
NOTIFIER = """
import os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
print("waiting for the word", flush=True)
with open(sys.argv[1]) as fifo:
    fifo.read()
sock.send(b"READY=1\\nSTATUS=here")
signal.pause()
"""


def notifier(fifo: Path) -> str:
    return f"""
    [service]
    type = "notify"
    exec-start = [{json.dumps(sys.executable)}, "-c", '''{NOTIFIER}''', {json.dumps(str(fifo))}]
    """


def test_killed_unit_comes_back_and_the_journal_says_why() -> None:
    """A service that dies is started again, with one exit record, the cause chain, and a new invocation."""
    with supervisor({"web": SLEEP}) as running:
        before = running.wait_state("web", "active")
        os.kill(before["pid"], signal.SIGKILL)
        until(lambda: running.status("web")["pid"] not in (None, before["pid"]), "a new life")
        after = running.status("web")
        assert after["invocation"] != before["invocation"]
        assert (after["restarts"], after["failures"]) == (1, 1)
        assert after["exit"]["signal"] == "SIGKILL"
        until(
            lambda: [r for r in running.records() if r["event"] == "unit.ready" and r["unit"] == "web"][1:], "records"
        )
        records = [record for record in running.records() if record["unit"] == "web"]
        (exited,) = (record for record in records if record["event"] == "unit.exited")
        assert (exited["pid"], exited["signal"], exited["role"]) == (before["pid"], "SIGKILL", "main")
        (scheduled,) = (record for record in records if record["event"] == "unit.restart-scheduled")
        assert scheduled["cause"] == exited["seq"]
        why = running.supctl("why", "web")
        assert why.returncode == 0
        assert "SIGKILL" in why.stdout


def test_running_is_not_said_before_ready(tmp_path: Path) -> None:
    """A notify unit is activating until READY, and what requires it starts only then."""
    fifo = tmp_path / "word"
    os.mkfifo(fifo)
    with supervisor({"db": notifier(fifo), "api": f'[unit]\nrequires = ["db"]\n{SLEEP}'}) as running:
        until(lambda: "waiting for the word" in running.supctl("logs", "db").stdout, "the first line")
        assert running.status("db")["active_state"] == "activating"
        api = running.status("api")
        assert (api["active_state"], api["sub_state"], api["pid"]) == ("queued", "dependency", None)
        assert running.supctl("status", "db").returncode == 3
        fifo.write_text("go")
        assert running.wait_state("db", "active")["status_text"] == "here"
        running.wait_state("api", "active")
        assert running.supctl("status", "db", "api").returncode == 0


def test_daemon_reload_adds_units_and_keeps_what_vanished() -> None:
    """New files are loaded and started; a running unit without a file stays supervised until it stops."""
    with supervisor({"old": SLEEP}) as running:
        pid = running.wait_state("old", "active")["pid"]
        (running.units / "new.toml").write_text(SLEEP)
        (running.units / "bad.toml").write_text("[service]\nexec-strat = ['x']\n")
        (running.units / "old.toml").unlink()
        done = running.supctl("daemon-reload")
        assert done.returncode == 1
        assert "bad.toml:2" in done.stderr
        running.wait_state("new", "active")
        assert running.status("old")["pid"] == pid
        assert running.status("bad")["load_state"] == "bad_setting"
        assert running.supctl("start", "bad").returncode == 6
        assert running.supctl("stop", "old").returncode == 0
        until(lambda: running.supctl("status", "old").returncode == 4, "the end of old")
        assert any(record["event"] == "unit.removed" and record["unit"] == "old" for record in running.records())


def test_two_instances_never_share_a_folder() -> None:
    """A second supervisor on the same runtime folder says whose it is and touches nothing."""
    with supervisor({"a": SLEEP}) as running:
        pid = running.wait_state("a", "active")["pid"]
        command = [sys.executable, "-m", "supervisord_py", "run", str(running.units)]
        folders = ["--runtime-dir", str(running.folder / "r"), "--state-dir", str(running.folder / "s2")]
        second = subprocess.run([*command, *folders], capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        assert str(running.keeper_pid) in second.stderr
        assert running.status("a")["pid"] == pid


def test_interrupt_stops_in_order_and_a_second_one_kills() -> None:
    """SIGINT begins the ordered stop; a unit that will not go is killed by the second."""
    with supervisor(
        {"stubborn": f'{DEAF}timeout-stop-sec = "1h"\n'}, settings='[supervisor]\nshutdown-timeout-sec = "1h"\n'
    ) as running:
        until(lambda: "deaf" in running.supctl("logs", "stubborn").stdout, "a deaf process")
        os.kill(running.keeper_pid, signal.SIGINT)
        running.wait_state("stubborn", "deactivating")
        assert running.process.poll() is None
        os.kill(running.keeper_pid, signal.SIGINT)
        assert running.process.wait(30) == 0
        assert not running.socket.exists()


def test_manager_stopped_by_a_signal_is_replaced_and_children_stay() -> None:
    """A manager that hangs with a fact unanswered is ended and replaced; the units never notice."""
    with supervisor({"stays": SLEEP, "dies": SLEEP}) as running:
        stays, dies = running.wait_state("stays", "active")["pid"], running.wait_state("dies", "active")["pid"]
        manager = running.manager_pid()
        assert manager is not None
        os.kill(manager, signal.SIGSTOP)
        os.kill(dies, signal.SIGKILL)
        until(lambda: running.manager_pid() not in (None, manager), "another manager", 40)
        until(lambda: running.status("dies")["pid"] not in (None, dies), "a new life")
        assert running.status("stays")["pid"] == stays
        assert sum(r["event"] == "unit.exited" and r["unit"] == "dies" for r in running.records()) == 1


def test_manager_stopped_with_only_a_deadline_ahead_is_replaced() -> None:
    """A manager that sleeps through its own deadline (here: a restart that is due) is ended and replaced too."""
    unit = '[service]\nexec-start = ["sleep", "1000"]\nrestart-sec = "1s"\n'
    with supervisor({"a": unit}) as running:
        pid = running.wait_state("a", "active")["pid"]
        manager = running.manager_pid()
        assert manager is not None
        os.kill(pid, signal.SIGKILL)
        running.wait_state("a", "activating")
        os.kill(manager, signal.SIGSTOP)
        until(lambda: running.manager_pid() not in (None, manager), "another manager", 60)
        assert running.wait_state("a", "active")["pid"] not in (None, pid)


def test_daemon_restart_replaces_the_manager_and_nothing_else() -> None:
    """A new manager takes over in a pre-flight; all processes and the open listener stay."""
    with supervisor({"a": SLEEP}) as running:
        pid, manager = running.wait_state("a", "active")["pid"], running.manager_pid()
        assert running.supctl("daemon-restart", "-m", "new version").returncode == 0
        assert running.manager_pid() not in (None, manager)
        assert running.status("a")["pid"] == pid
        assert any(r["event"] == "command" and r["verb"] == "daemon-restart" for r in running.records())


def test_a_process_of_a_unit_is_that_unit_to_the_supervisor() -> None:
    """A unit under our own uid may see its own status and nothing else: the kernel says who it is, not its uid."""
    script = f"""
    import subprocess, sys
    for words in (["ping"], ["status", "inside"], ["stop", "victim"], ["status", "victim"]):
        done = subprocess.run([{sys.executable!r}, "-m", "supervisord_py.ctl.cli", *words], capture_output=True)
        print(*words, "->", done.returncode, flush=True)
    """
    inside = f"""
    [service]
    type = "oneshot"
    exec-start = ["{sys.executable}", "-c", '''{"".join(line[4:] + chr(10) for line in script.splitlines())}''']
    environment = {{ PYTHONPATH = "{Path(__file__).parents[2]}" }}
    """
    with supervisor({"victim": SLEEP, "inside": f"[unit]\nenabled = false\n{inside}"}) as running:
        pid = running.wait_state("victim", "active")["pid"]
        assert running.supctl("start", "inside").returncode == 0
        lines = running.supctl("logs", "inside").stdout.splitlines()
        assert lines == ["ping -> 0", "status inside -> 3", "stop victim -> 5", "status victim -> 5"]
        assert running.status("victim")["pid"] == pid
        denied = [record for record in running.records() if record["event"] == "command.denied"]
        assert {record["peer_unit"] for record in denied} == {"inside"}


def test_logs_follow_and_survive_the_manager() -> None:
    """Lines come as they are written, and none is missing over a manager's death."""
    script = "import itertools, select; [(print(n), select.select([], [], [], 0.01)) for n in itertools.count()]"
    counter = f"""
    [service]
    exec-start = ["{sys.executable}", "-uc", "{script}"]
    """
    with supervisor({"counter": counter}) as running:
        log = running.log_folder / "counter.log"

        def lines() -> list[str]:
            return log.read_text().splitlines() if log.exists() else []

        for _ in range(3):
            enough = len(lines()) + 20
            until(lambda enough=enough: len(lines()) > enough, "more lines")
            running.kill_manager()
        enough = len(lines()) + 20
        until(lambda: len(lines()) > enough, "more lines")
        found = [int(line) for line in lines()[:-1]]
        assert found == list(range(len(found)))


@pytest.mark.parametrize("own", ["state", "log", "runtime"])
def test_two_instances_share_no_folder_and_a_refused_one_left_empty_folders(own: str) -> None:
    """A second supervisor is refused the first one's state, log or runtime folder, in a sentence that begins like any
    other; of the folders that it made for itself nothing is left.
    """
    with supervisor({"a": SLEEP}) as running:
        running.wait_state("a", "active")
        before = sorted(running.folder.iterdir())
        folders = {"runtime": "new/r", "state": "new/s", "log": "new/s/l"} | {own: own[0]}
        options = [word for name, folder in folders.items() for word in (f"--{name}-dir", str(running.folder / folder))]
        command = [sys.executable, "-m", "supervisord_py", "run", str(running.units), *options]
        second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert second.returncode == 1
        if own == "runtime":
            said = f"already running here as pid {running.keeper_pid} ({running.folder}/r/lock is locked); stop it"
        else:
            said = f"another supervisor uses {running.folder / own[0]} (it is locked); stop it"
        assert second.stderr.startswith(f"Error: {said}") and second.stderr.count("\n") == 1
        assert sorted(running.folder.iterdir()) == before


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_garbage_at_the_real_socket_changes_nothing() -> None:
    """Garbage, half a frame, bad UTF-8, deep nesting: an error or a closed connection; the next client is served."""
    with supervisor({"a": SLEEP}) as running:
        pid = running.wait_state("a", "active")["pid"]
        for data in (
            b"\xff\xfe\x00",
            b"GET / HTTP/1.0\r\n\r\n\0",
            b'{"method":' + b"[" * 100_000 + b"\0",
            b'{"method":"py.supervisord.Manager.Stop","parameters":{"units":["a"],"what":1}}\0',
            b'{"half',
            b"[]\0" * 1000,
        ):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(running.socket))
                try:
                    client.sendall(data)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        assert running.status("a")["pid"] == pid
        assert running.supctl("status", "a").returncode == 0


def test_process_gets_a_clean_environment_and_no_descriptor_but_its_own() -> None:
    """What a started process sees is what the contract lists."""
    script = (
        "import json, os, signal; print(json.dumps({'env': dict(os.environ),"
        " 'fds': sorted(map(int, os.listdir('/proc/self/fd'))),"
        " 'sid': os.getsid(0) == os.getpid(), 'pipe': signal.getsignal(13) == signal.SIG_IGN,"
        " 'stdin': os.readlink('/proc/self/fd/0')}))"
    )
    unit = f"""
    [service]
    type = "oneshot"
    exec-start = ["/usr/bin/env", "-S", "/usr/bin/python3", "-c", "{script}"]
    """.replace('"/usr/bin/env", "-S", ', "")
    with supervisor({"look": unit}) as running:
        until(lambda: running.supctl("logs", "look").stdout, "the answer")
        seen = json.loads(running.supctl("logs", "look").stdout)
        expected = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "INVOCATION_ID", "SUPERVISORD_PY_UNIT",
                    "SUPERVISORD_PY_SOCKET", "SUPERVISORD_PY_BUS", "SUPERVISORD_PY_RESTARTS"}  # fmt: skip
        assert set(seen["env"]) - {"LC_CTYPE"} == expected
        assert seen["env"]["SUPERVISORD_PY_UNIT"] == "look"
        assert (seen["fds"][:3], len(seen["fds"])) == ([0, 1, 2], 4)  # the fourth is listdir's own
        assert seen["sid"]
        assert seen["pipe"]
        assert seen["stdin"] == "/dev/null"


@pytest.mark.slow
def test_idle_supervisor_does_not_wake() -> None:
    """With nothing to do neither process wakes: no voluntary context switch in two seconds."""

    def switches(pid: int) -> int:
        return sum(
            int(line.split()[1])
            for task in Path(f"/proc/{pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("voluntary")
        )

    with supervisor({f"u{number}": SLEEP for number in range(20)}) as running:
        for number in range(20):
            running.wait_state(f"u{number}", "active")
        manager = running.manager_pid()
        assert manager is not None

        def is_quiet() -> bool:
            before = switches(manager) + switches(running.keeper_pid)
            end = time.monotonic() + 2
            until(lambda: time.monotonic() > end, "two seconds")
            return switches(manager) + switches(running.keeper_pid) == before

        until(is_quiet, "two quiet seconds", 30)

"""Types of services, conditions and exit statuses, with real processes and real files."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

ROOT = os.geteuid() == 0
NOBODY = 65534
SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'

DAEMON = """
import os, signal, sys
# daemon(7): a child in a session of its own, and its child, which stays; the first process ends when that is done.
if os.fork():
    os.wait()
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
if len(sys.argv) > 2:
    open(sys.argv[2]).read()
if len(sys.argv) > 1:
    os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
    with open(sys.argv[1], "w") as file:
        file.write(f"{os.getpid()}\\n")
signal.pause()
"""

RELOADER = """
import os, signal, socket, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
def reload(*_):
    sock.send(f"RELOADING=1\\nMONOTONIC_USEC={time.monotonic_ns() // 1000}".encode())
    with open(os.environ["FIFO"]) as fifo:
        fifo.read()
    sock.send(b"READY=1\\nSTATUS=reloaded")
signal.signal(signal.SIGUSR1, reload)
sock.send(b"READY=1")
while True:
    signal.pause()
"""


def python(script: str, *arguments: str) -> str:
    # The system's Python may be entered by every user.
    return f"""exec-start = ["/usr/bin/python3", "-c", '''{script}''', {", ".join(map(json.dumps, arguments))}]"""


def forking(*arguments: object, more: str = "") -> str:
    return f'[service]\ntype = "forking"\n{python(DAEMON, *map(str, arguments))}\n{more}\n'


def children_of(process: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def events(running: RunningSupervisor, unit: str, event: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["unit"] == unit and record["event"] == event]


@pytest.mark.parametrize("uid", [None, NOBODY] if ROOT else [None], ids=["as-started", "as-nobody"][: 1 + ROOT])
def test_a_forking_unit_is_its_daemon(uid: int | None) -> None:
    """The pid file names the main process, also for an ordinary user: it is restarted when it dies, stopped when it is
    asked to, and its file goes with it."""

    def prepare(folder: Path) -> None:
        text = forking(folder / "a.pid", more=f"pid-file = {json.dumps(str(folder / 'a.pid'))}")
        (folder / "units" / "a.toml").write_text(text)

    with supervisor({}, prepare=prepare, uid=uid) as running:
        pid_file = running.folder / "a.pid"
        first = running.wait_state("a", "active")["pid"]
        assert int(pid_file.read_text()) == first
        assert first in children_of(running.keeper_pid)
        os.kill(first, signal.SIGKILL)
        until(lambda: running.status("a")["pid"] not in (None, first), "a new daemon")
        second = running.wait_state("a", "active")["pid"]
        assert int(pid_file.read_text()) == second
        (end,) = (record for record in events(running, "a", "unit.exited") if record["role"] == "main")
        assert (end["pid"], end["signal"]) == (first, "SIGKILL")
        assert running.supctl("stop", "a").returncode == 0
        until(lambda: not pid_file.exists(), "the end of the pid file")
        assert not Path(f"/proc/{second}").exists()


def test_a_forking_unit_without_a_pid_file_is_the_process_it_left() -> None:
    """The only process that is left is the main one, and its end ends the unit."""
    with supervisor({"a": forking(more='restart = "no"')}) as running:
        pid = running.wait_state("a", "active")["pid"]
        assert pid in children_of(running.keeper_pid)
        os.kill(pid, signal.SIGKILL)
        status = running.wait_state("a", "failed")
        assert (status["result"], status["exit"]["signal"]) == ("signal", "SIGKILL")


def test_a_pid_file_may_come_late_and_its_folder_too(tmp_path: Path) -> None:
    """Until the file is written the unit is starting, whatever folder it will be in; a manager that dies meanwhile is
    followed by one that waits on."""
    fifo, pid_file = tmp_path / "word", tmp_path / "late" / "deep" / "a.pid"
    os.mkfifo(fifo)
    with supervisor({"a": forking(pid_file, fifo, more=f"pid-file = {json.dumps(str(pid_file))}")}) as running:
        until(lambda: events(running, "a", "unit.exited"), "the end of the start command")
        assert running.status("a")["active_state"] == "activating"
        running.kill_manager()
        until(lambda: running.supctl("ping").returncode == 0, "another manager")
        assert running.status("a")["active_state"] == "activating"
        fifo.write_text("go")
        status = running.wait_state("a", "active")
        assert status["pid"] == int(pid_file.read_text())


def test_a_manager_that_dies_in_a_restart_loses_no_daemon() -> None:
    """Whenever the manager is killed after a daemon's death, the next one ends up with exactly one daemon, the one that
    the pid file names."""

    def prepare(folder: Path) -> None:
        text = forking(folder / "a.pid", more=f"pid-file = {json.dumps(str(folder / 'a.pid'))}\nrestart-sec = 0")
        (folder / "units" / "a.toml").write_text(f"{text}\n[quarantine]\nfailures = 0\n")

    with supervisor({}, prepare=prepare) as running:
        pid = running.wait_state("a", "active")["pid"]
        for turn in range(4):
            os.kill(pid, signal.SIGKILL)
            exits = 2 * turn + 1 + turn % 3
            until(lambda exits=exits: len(events(running, "a", "unit.exited")) >= exits, "the restart's step")
            running.kill_manager()

            def is_up(before: int = pid) -> dict[str, Any] | None:
                status = running.status("a")
                return status if status["active_state"] == "active" and status["pid"] != before else None

            status = until(is_up, "the next daemon")
            pid = status["pid"]
            assert status["tasks"] == 1
            assert int((running.folder / "a.pid").read_text()) == pid


def test_a_stale_pid_file_is_not_believed(tmp_path: Path) -> None:
    """A file from before the start that names a process of nobody's is waited past, and the journal says so."""
    fifo, pid_file = tmp_path / "word", tmp_path / "a.pid"
    os.mkfifo(fifo)
    pid_file.write_text(f"{os.getpid()}\n")
    os.utime(pid_file, (time.time() - 3600,) * 2)
    with supervisor({"a": forking(pid_file, fifo, more=f"pid-file = {json.dumps(str(pid_file))}")}) as running:
        (error,) = until(lambda: events(running, "a", "unit.error"), "the complaint")
        assert f"names process {os.getpid()}" in error["message"]
        assert running.status("a")["active_state"] == "activating"
        fifo.write_text("go")
        assert running.wait_state("a", "active")["pid"] == int(pid_file.read_text())


def test_a_pid_file_that_never_comes_is_a_time_out(tmp_path: Path) -> None:
    """The daemon that wrote none is ended with the start's time-out."""
    more = f'timeout-start-sec = "300ms"\nrestart = "no"\npid-file = {json.dumps(str(tmp_path / "never.pid"))}'
    with supervisor({"a": forking(more=more)}) as running:
        assert running.wait_state("a", "failed")["result"] == "timeout"
        until(lambda: running.status("a")["tasks"] in (None, 0), "the daemon's end")


def test_reload_of_a_unit_that_tells_when_it_is_done(tmp_path: Path) -> None:
    """notify-reload needs no exec-reload: the signal is sent, and the reload is over when the process says READY."""
    fifo = tmp_path / "word"
    os.mkfifo(fifo)
    text = f"""
    [service]
    type = "notify-reload"
    reload-signal = "SIGUSR1"
    environment = {{ FIFO = {json.dumps(str(fifo))} }}
    {python(RELOADER)}
    """
    with supervisor({"a": text}) as running:
        pid = running.wait_state("a", "active")["pid"]
        assert running.supctl("reload", "a", "--no-wait").returncode == 0
        running.wait_state("a", "reloading")
        fifo.write_text("go")
        status = running.wait_state("a", "active")
        assert (status["pid"], status["status_text"]) == (pid, "reloaded")


def test_an_idle_unit_waits_for_the_others(tmp_path: Path) -> None:
    """Nothing of it runs while another job does."""
    fifo = tmp_path / "word"
    os.mkfifo(fifo)
    slow = f'[service]\ntype = "oneshot"\nexec-start = ["/bin/sh", "-c", "read line < {fifo}"]\n'
    with supervisor({"slow": slow, "quiet": f'{SLEEP}type = "idle"\n'}) as running:
        running.wait_state("slow", "activating")
        assert running.status("quiet")["pid"] is None
        fifo.write_text("go\n")
        running.wait_state("quiet", "active")
        (ended,) = events(running, "slow", "unit.exited")
        (started,) = events(running, "quiet", "unit.started") or events(running, "quiet", "unit.ready")
        assert started["seq"] > ended["seq"]


def test_commands_around_the_start(tmp_path: Path) -> None:
    """exec-condition decides before everything; exec-start-post runs when the unit has started and knows its main
    process; each takes several commands, prefixes and tables."""
    seen = tmp_path / "seen"
    go = f"""
    [service]
    exec-start = ["sleep", "1000"]
    exec-condition = '''
    -/bin/false
    /bin/sh -c "echo condition >> {seen}"
    '''
    exec-start-post = [
        {{ command = "/bin/sh -c 'echo post $MAINPID >> {seen}'" }},
        {{ command = ["/bin/false"], ignore-failure = true }},
        ["/bin/sh", "-c", "echo second >> {seen}"],
    ]
    """
    skipped = f"""
    [service]
    exec-condition = ["/bin/sh", "-c", "exit 3"]
    exec-start = ["/bin/sh", "-c", "echo never >> {seen}"]
    exec-stop-post = ["/bin/sh", "-c", "echo stop-post $SERVICE_RESULT >> {seen}"]
    """
    with supervisor({"go": f"[unit]\nenabled = false\n{go}", "no": f"[unit]\nenabled = false\n{skipped}"}) as running:
        assert running.supctl("start", "go").returncode == 0
        pid = running.status("go")["pid"]
        assert seen.read_text().splitlines() == ["condition", f"post {pid}", "second"]
        running.supctl("start", "no")
        status = running.status("no")
        assert (status["active_state"], status["result"]) == ("inactive", "exec_condition")
        assert "never" not in seen.read_text()
        assert "stop-post exec-condition" in seen.read_text()


def test_conditions_and_asserts_decide_about_a_start(tmp_path: Path) -> None:
    """A condition that does not hold skips the start, an assert fails it; both say which, and are looked at anew."""
    flag = tmp_path / "flag"
    condition = f"[unit]\nenabled = false\ncondition-path-exists = {json.dumps(str(flag))}\n{SLEEP}"
    assertion = f"[unit]\nenabled = false\nassert-path-exists = {json.dumps(str(flag))}\n{SLEEP}"
    either = f'[unit]\nenabled = false\ncondition-path-exists = ["|/nowhere", "|!/nowhere"]\n{SLEEP}'
    with supervisor({"maybe": condition, "must": assertion, "either": either}) as running:
        assert running.supctl("start", "maybe").returncode == 0
        assert running.status("maybe")["active_state"] == "inactive"
        assert str(flag) in running.supctl("status", "maybe").stdout + running.supctl("why", "maybe").stdout
        failed = running.supctl("start", "must")
        assert failed.returncode == 1
        assert str(flag) in failed.stderr
        assert running.supctl("start", "either").returncode == 0
        assert running.status("either")["active_state"] == "active"
        flag.touch()
        assert running.supctl("start", "maybe", "must").returncode == 0
        assert running.status("maybe")["active_state"] == running.status("must")["active_state"] == "active"


def test_exit_statuses_decide_about_the_end() -> None:
    """Codes and signals by name: what is success, what is never and what is always restarted."""

    def exits(code: int, more: str) -> str:
        return f'[service]\nexec-start = ["/bin/sh", "-c", "exit {code}"]\n{more}\n'

    units = {
        "good": exits(75, 'success-exit-status = "TEMPFAIL"'),
        "killed": '[service]\nexec-start = ["/bin/sh", "-c", "kill -KILL $$"]\nsuccess-exit-status = ["SIGKILL"]\n',
        "final": exits(3, "restart-prevent-exit-status = [3]"),
        "again": exits(0, 'restart-force-exit-status = 0\nrestart = "no"\n[quarantine]\nfailures = 0'),
        "limited": f"[unit]\nstart-limit-burst = 2\nstart-limit-interval-sec = 60\n{exits(1, 'restart-sec = 0')}",
    }
    with supervisor(units) as running:
        assert running.wait_state("good", "inactive", "failed")["result"] == "success"
        assert running.wait_state("killed", "inactive", "failed")["result"] == "success"
        assert running.wait_state("final", "failed")["restarts"] == 0
        until(lambda: running.status("again")["restarts"] >= 2, "restarts after success")
        limited = running.wait_state("limited", "failed")
        assert limited["result"] == "start_limit_hit"
        assert len(events(running, "limited", "unit.exited")) == 2, "the first start counts too"


def test_a_unit_that_runs_too_long_is_ended() -> None:
    """runtime-max-sec ends what is still running, as a failure."""
    with supervisor({"a": f'{SLEEP}runtime-max-sec = "200ms"\nrestart = "no"\n'}) as running:
        assert running.wait_state("a", "failed")["result"] == "timeout"


def test_on_failure_starts_a_unit_that_knows_what_failed(tmp_path: Path) -> None:
    """The handler, an instance that only this names, is not started before, and is told who failed and how."""
    seen = tmp_path / "seen"
    units = {
        "bad": '[unit]\non-failure = "alert@%n"\n[service]\nexec-start = ["/bin/sh", "-c", "exit 7"]\nrestart = "no"\n',
        "alert@": f"""
        [service]
        type = "oneshot"
        exec-start = ["/bin/sh", "-c", "echo %i $MONITOR_UNIT $MONITOR_SERVICE_RESULT $MONITOR_EXIT_STATUS >> {seen}"]
        """,
    }
    with supervisor(units) as running:
        running.wait_state("bad", "failed")
        until(seen.exists, "the handler's word")
        until(lambda: events(running, "alert@bad", "unit.exited"), "the handler's end")
        assert seen.read_text() == "bad bad exit-code 7\n"

"""Slots, quarantine, watchdogs, pauses, until-empty: real processes under a real supervisor."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.supervisor_rig import STOP_S, RunningSupervisor, supervisor, until

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
FORK_LOOP = '[service]\nexec-start = ["/bin/sh", "-c", "while :; do (exec sleep 0.01) & (exec true); done"]\n'
"""It never has the same processes twice."""

ONCE = 'restart = "no"\n'

AS_USER = [None, pytest.param(65534, marks=pytest.mark.root)] if os.geteuid() == 0 else [None]
"""As root there may be a freezer; an ordinary user has SIGSTOP."""


def told(running: RunningSupervisor, event: str, unit: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["event"] == event and record.get("unit") == unit]


def test_four_units_take_turns_in_a_pool_of_two() -> None:
    """No more run than there are slots, who waits says for what, and a free slot is taken at once."""
    pooled = {"w@": SLEEP + '[instances]\ncount = 4\n[pool]\nname = "p"\n'}
    with supervisor(pooled, settings="[pools.p]\nmax-workers = 2\n") as running:
        for unit, state in (("w@1", "active"), ("w@2", "active"), ("w@3", "queued"), ("w@4", "queued")):
            assert running.wait_state(unit, state)["sub_state"] == ("running" if state == "active" else "pool")
        jobs = running.supctl("jobs").stdout
        assert "pool p (number 1)" in jobs
        assert "pool p (number 2)" in jobs
        assert running.supctl("stop", "w@1").returncode == 0
        running.wait_state("w@3", "active")
        assert running.status("w@4")["active_state"] == "queued"
        (running.folder / "supervisord.toml").write_text("[pools.p]\nmax-workers = 3\n")
        assert running.supctl("daemon-reload").returncode == 0
        running.wait_state("w@4", "active")


def test_a_crash_loop_is_quarantined_stood_in_for_and_released() -> None:
    """It is stopped after so many failures, loud everywhere, its stub runs as the unit would, and release trusts it."""
    script = "test $SUPERVISORD_PY_STUB = 1 && echo stands in for $SUPERVISORD_PY_UNIT; exec sleep 1000"
    crash = (
        '[service]\nexec-start = ["/bin/sh", "-c", "test -e {go} && exec sleep 1000; exit 9"]\n'
        'restart = "always"\nrestart-sec = "10ms"\nrestart-max-delay-sec = "10ms"\n'
        f'[quarantine]\nfailures = 3\nstub = ["/bin/sh", "-c", "{script}"]\n'
    )

    def prepare(folder: Path) -> None:
        (folder / "units" / "crash.toml").write_text(crash.replace("{go}", str(folder / "go")))

    with supervisor({"other": SLEEP}, prepare=prepare) as running:
        status = running.wait_state("crash", "quarantined")
        assert (status["failures"], status["result"]) == (3, "exit_code")
        until(lambda: "stands in for crash" in running.supctl("logs", "crash").stdout, "the stub's output")
        assert running.supctl("status", "crash").returncode == 3
        assert running.supctl("status", "--failed").stdout.count("crash") >= 1
        health = running.supctl("health")
        assert health.returncode == 1
        assert "crash is quarantined after 3 failures" in health.stdout
        (stub,) = told(running, "unit.stub-started", "crash")
        assert running.status("crash")["pid"] == stub["pid"]
        (running.folder / "go").touch()
        assert running.supctl("release", "crash", "-m", "mended").returncode == 0
        assert running.status("crash")["active_state"] == "active"
        assert not psutil.pid_exists(stub["pid"])
        (released,) = told(running, "unit.released", "crash")
        assert (released["failures"], released["reason"]) == (3, "mended")


@pytest.mark.parametrize("uid", AS_USER)
def test_a_paused_fork_loop_stands_still_and_goes_on(uid: int | None) -> None:
    """Not one process of a tree that forks all the time runs while it is paused, whoever manages it meanwhile."""
    with supervisor({"forky": FORK_LOOP}, uid=uid, invariants=uid is None) as running:
        pid = running.wait_state("forky", "active")["pid"]
        main = psutil.Process(pid)
        until(lambda: sum(main.cpu_times()[:4]) > 0.02, "a loop that works")
        assert running.supctl("pause", "forky").returncode == 0
        assert running.status("forky")["sub_state"] == "paused"
        tree = [main, *main.children(recursive=True)]
        before = [each.cpu_times() for each in tree]
        running.kill_manager()
        until(lambda: running.status("forky")["sub_state"] == "paused", "a manager that knows of the pause")
        assert [each.cpu_times() for each in tree] == before
        assert [main, *main.children(recursive=True)] == tree
        assert running.supctl("resume", "forky").returncode == 0
        assert running.status("forky")["sub_state"] == "running"
        until(lambda: main.cpu_times() != before[0], "a loop that works again")
        assert running.supctl("pause", "forky").returncode == 0
        assert running.supctl("stop", "forky").returncode == 0
        assert not main.is_running()


def test_a_silent_unit_is_restarted_and_a_stopped_one_is_not_blamed() -> None:
    """No heartbeat within watchdog-sec ends a life, but not that of a process that cannot run."""
    silent = SLEEP + 'watchdog-sec = "500ms"\n'
    with supervisor({"silent": silent, "stopped": silent}) as running:
        pid = running.wait_state("stopped", "active")["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: told(running, "unit.watchdog", "silent"), "the end of the silent one")
        until(lambda: len(told(running, "unit.watchdog", "silent")) > 1, "the end of the one after it")
        assert told(running, "unit.exited", "silent")[0]["signal"] == "SIGABRT"
        assert running.status("stopped")["pid"] == pid
        (excused,) = told(running, "unit.excused", "stopped")
        assert (excused["severity"], "are stopped" in excused["message"]) == ("warning", True)
        os.kill(pid, signal.SIGCONT)
        until(lambda: running.status("stopped")["pid"] != pid, "the end of one that runs again and says nothing")


@pytest.mark.parametrize("who", ["keeper", "manager"])
def test_a_stop_of_our_own_is_no_silence_of_a_unit(who: str) -> None:
    """Found by an hour of real faults: heartbeats that a stopped keeper had not passed on were held against units."""
    beat = "\n".join(
        (
            "import os, select, socket",
            "sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)",
            "sock.connect(os.environ['NOTIFY_SOCKET'])",
            "sock.send(b'READY=1')",
            "while True:",
            "    sock.send(b'WATCHDOG=1')",
            "    open(os.environ['BEATS'], 'a').write('x')",
            "    select.select([], [], [], 0.2)",
        )
    )

    def prepare(folder: Path) -> None:
        keys = {"exec-start": ["/usr/bin/python3", "-S", "-c", beat], "type": "notify", "watchdog-sec": "500ms"}
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        text = "\n".join(["[service]", *lines, "[service.environment]", f'BEATS = "{folder}/beats"\n'])
        (folder / "units" / "web.toml").write_text(text)

    with supervisor({}, prepare=prepare) as running:
        beats = running.folder / "beats"

        def wait_for_beats(count: int) -> None:
            first = len(beats.read_text())
            until(lambda: len(beats.read_text()) >= first + count, f"{count} beats")

        first = running.wait_state("web", "active")["pid"]
        until(beats.exists, "the first beat")
        stopped = running.keeper_pid if who == "keeper" else until(running.manager_pid, "a manager")
        os.kill(stopped, signal.SIGSTOP)
        try:
            # No more: a mailbox that nobody reads is full after ten.
            wait_for_beats(8)
        finally:
            os.kill(stopped, signal.SIGCONT)
        wait_for_beats(6)
        assert running.status("web")["pid"] == first
        assert not told(running, "unit.watchdog", "web")


@pytest.mark.parametrize(
    ("units", "code"),
    [
        ({"a": '[service]\ntype = "oneshot"\nexec-start = ["true"]\n', "idle": "[target]\n"}, 0),
        ({"b": f'[service]\nexec-start = ["sh", "-c", "exit 7"]\n{ONCE}'}, 7),
        ({"a": '[service]\nexec-start = ["sh", "-c", "kill -9 $$"]\nrestart = "no"\n'}, 137),
        ({"a": '[service]\nexec-start = ["/no/such/program"]\nrestart = "no"\n'}, 125),
    ],
    ids=["success", "a failure", "a signal", "no program"],
)  # fmt: skip
def test_until_empty_ends_with_the_code_of_the_first_failure(units: dict[str, str], code: int) -> None:
    """When nothing is left to do the supervisor ends by itself, with 0 or that code."""
    held = {**units, "last": '[service]\nexec-start = ["/bin/sh", "-c", "read line < {fifo}"]\n'}

    def prepare(folder: Path) -> None:
        os.mkfifo(folder / "fifo")
        path = folder / "units" / "last.toml"
        path.write_text(path.read_text().replace("{fifo}", str(folder / "fifo")))

    with supervisor(held, options=("--mode", "until-empty", "--max-workers", "3"), prepare=prepare) as running:
        running.wait_state("last", "active")
        for unit in units:
            running.wait_state(unit, "inactive", "failed", "active")
        (running.folder / "fifo").write_text("done\n")
        assert running.process.wait(STOP_S) == code, running.output()


def test_a_hook_and_a_probe_run_beside_the_unit() -> None:
    """Both have a tree of their own: the unit is not touched when they fail, hang, or leave something behind."""
    web = (
        f'{SLEEP}[health.up]\nkind = "readiness"\nexec = ["/bin/sh", "-c", "sleep 999 & test -e {{ready}}"]\n'
        'interval = "100ms"\n'
        '[health.hangs]\nkind = "liveness"\nexec = ["sleep", "998"]\ninterval = "100ms"\ntimeout = "100ms"\n'
        'failure-threshold = 1\naction = "none"\n'
    )
    hook = "echo $SUPERVISORD_PY_EVENT of $SUPERVISORD_PY_UNIT; exec sleep 997"
    settings = f'[[hooks]]\nevent = "unit.ready"\ncommand = ["/bin/sh", "-c", "{hook}"]\ntimeout = "300ms"\n'

    def prepare(folder: Path) -> None:
        (folder / "units" / "web.toml").write_text(web.format(ready=folder / "ready"))

    with supervisor({"other": SLEEP}, prepare=prepare, settings=settings) as running:
        pid = running.wait_state("web", "activating")["pid"]
        (running.folder / "ready").touch()
        status = running.wait_state("web", "active")
        assert status["pid"] == pid
        log = running.log_folder / "_hooks.log"
        until(lambda: log.exists() and "web: unit.ready of web\n" in log.read_text(), "the hook's output")
        until(lambda: told(running, "hook.failed", "web"), "the end of a hook that hangs")
        until(lambda: told(running, "unit.health", "web"), "a check that hangs is bad")
        assert running.status("web")["pid"] == pid
        assert running.supctl("stop", "web").returncode == 0
        marks = {"999", "998", "997"}

        def left() -> list[int]:
            below = psutil.Process(running.keeper_pid).children(recursive=True)
            return [each.pid for each in below if marks & set(_words(each))]

        until(lambda: not left(), "nothing left of checks and hooks")


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

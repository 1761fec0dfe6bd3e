"""Who goes first: niceness, CPUs, scheduling and I/O, of real processes, at the start and set live."""

import os
from pathlib import Path

import psutil
import pytest

from supervisord_py.host.priorities import change_priorities, is_known_before
from supervisord_py.model.context import Priorities
from supervisord_py.model.unit import ExecContext
from tests.integration.supervisor_rig import supervisor

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
CPU = min(os.sched_getaffinity(0))


def seen(pid: int) -> tuple[object, ...]:
    process = psutil.Process(pid)
    oom = int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    io = process.ionice()
    return process.nice(), process.cpu_affinity(), os.sched_getscheduler(pid), (int(io.ioclass), int(io.value)), oom


def test_a_process_has_the_priorities_of_its_unit_and_takes_others() -> None:
    """All that an ordinary user may set, too; what is set live is true of the process and of what show says."""
    keys = (
        f"nice = 3\ncpu-affinity = ['{CPU}']\ncpu-scheduling-policy = 'batch'\nio-scheduling-priority = 6\n"
        "oom-score-adjust = 900\n"
    )
    with supervisor({"web": f"{SLEEP}[limits]\n{keys}"}) as running:
        pid = running.wait_state("web", "active")["pid"]
        assert seen(pid) == (3, [CPU], os.SCHED_BATCH, (2, 6), 900)
        wanted = ("nice=4", "cpu-scheduling-policy=idle", "io-scheduling-class=idle", "oom-score-adjust=950")
        changed = running.supctl("set", "web", *(f"limits.{each}" for each in wanted))
        assert changed.returncode == 0, changed.stderr
        assert seen(pid) == (4, [CPU], os.SCHED_IDLE, (3, 0), 950)
        assert running.status("web")["needs_restart"] is False
        wrong = running.supctl("set", "web", "limits.cpu-affinity=8000")
        assert (wrong.returncode, "cpu-affinity = 8000: invalid argument" in wrong.stderr) == (1, True)


@pytest.mark.parametrize("enforce", ["strict", "best-effort"])
def test_a_priority_that_cannot_be_had(enforce: str) -> None:
    """Strict, the start fails with systemd's code for it, 215; best-effort it runs, and status says without what."""
    unit = f"{SLEEP}restart = 'no'\n[limits]\ncpu-affinity = 8000\nnice = 2\nenforce = '{enforce}'\n"
    with supervisor({"web": unit}) as running:
        status = running.wait_state("web", "failed", "active")
        if enforce == "strict":
            assert status["exit"] == {"code": 215, "signal": None}
            assert "cpu-affinity" in status["why"]
        else:
            assert status["degraded"] == ["cpu-affinity: invalid argument"]
            assert psutil.Process(status["pid"]).nice() == 2
            assert "Degraded: cpu-affinity: invalid argument" in running.supctl("status", "web").stdout


def test_what_was_before_is_not_known() -> None:
    """A key that is taken back leaves a value that only a fresh process has; a process that is gone needs nothing."""
    plain, nice = ExecContext(), ExecContext(nice=1)
    bound = ExecContext(priorities=Priorities(cpu_affinity=(0,)))
    assert is_known_before(plain, nice) and is_known_before(plain, bound)
    assert is_known_before(nice, ExecContext(nice=2))
    assert not is_known_before(nice, plain)
    assert not is_known_before(bound, plain)
    assert change_priorities(2**22 + 1, plain, nice) is None


@pytest.mark.root
def test_a_niceness_that_could_not_be_had_ended_a_best_effort_start() -> None:
    """An ordinary user may not go before others: strict that fails, best-effort it is told."""
    keys = f"{SLEEP}restart = 'no'\n[limits]\nnice = -5\n"
    units = {"strict": keys, "loose": f"{keys}enforce = 'best-effort'\n"}
    with supervisor(units, uid=65534) as running:
        assert running.wait_state("strict", "failed")["exit"] == {"code": 201, "signal": None}
        status = running.wait_state("loose", "active")
        assert status["degraded"] == ["nice: setpriority: permission denied"]
        assert psutil.Process(status["pid"]).nice() == 0


def test_a_change_that_was_refused_was_half_done() -> None:
    """What was set before the kernel refused the rest is put back: the processes have what show says."""
    with supervisor({"web": f"{SLEEP}[limits]\nnofile = '500:600'\ncpu-affinity = {CPU}\n"}) as running:
        pid = running.wait_state("web", "active")["pid"]
        had = seen(pid)
        wanted = ("limits.nofile=400:600", "limits.oom-score-adjust=900", "limits.cpu-affinity=8000")
        assert running.supctl("set", "web", *wanted).returncode == 1
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) == (500, 600)
        assert seen(pid) == had

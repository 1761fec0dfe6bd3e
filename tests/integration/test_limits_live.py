"""What a running process really has, read while somebody else changes it."""

import os
import resource
import subprocess
from pathlib import Path

import psutil
import pytest

from supervisord_py.host.limits import describe_live
from supervisord_py.model.unit import Limit
from tests.integration.supervisor_rig import supervisor

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'


def test_limits_of_a_running_process_are_read_as_they_are_now() -> None:
    """Limits and niceness that were changed after the start are seen."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        watched = psutil.Process(process.pid)
        watched.rlimit(psutil.RLIMIT_NOFILE, (123, 456))
        watched.rlimit(psutil.RLIMIT_RTTIME, ((1 << 61) + 77, -1))
        watched.nice(7)
        watched.ionice(psutil.IOPRIO_CLASS_IDLE)
        watched.cpu_affinity([0])
        live = describe_live(process.pid)
        assert live is not None
        assert live.rlimits["nofile"] == Limit(123, 456)
        assert live.rlimits["rttime"] == Limit(None, None)
        assert (live.nice, live.io_class, live.cpu_affinity) == (7, "idle", (0,))
        assert live.oom_score_adjust == int(Path("/proc/self/oom_score_adj").read_text())
    finally:
        process.kill()
        process.wait()
    assert describe_live(process.pid) is None


def test_a_soft_rttime_that_was_lowered_was_not_told() -> None:
    """With a low hard limit the soft one cannot be the mark by which processes are known: status says so."""
    low = f"{SLEEP}[limits]\nrttime = 5000000\n"
    with supervisor({"low": low, "web": SLEEP}) as running:
        for name in ("low", "web"):
            running.wait_state(name, "active")
        assert running.status("web")["lowered_limits"] == []
        assert running.status("low")["lowered_limits"] == ["rttime 5000000"]
        assert "Limits: rttime 5000000 (soft): too low for the mark" in running.supctl("status", "low").stdout
        assert "Limits:" not in running.supctl("status", "web").stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a process of another user")
def test_limits_of_another_user_s_process_are_readable() -> None:
    """The reading does not need the right to change them, which root in a container may lack."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", "ulimit -c 0; echo x; read line"], user=65534, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        live = describe_live(process.pid)
        assert live is not None
        assert live.rlimits["core"] == Limit(0, 0)
        assert live.rlimits["nofile"].hard == (None if (hard := resource.getrlimit(7)[1]) == -1 else hard)
    finally:
        process.kill()
        process.communicate()

"""Stop leaves none of: child, same-group grandchild, setsid grandchild, double-forked daemon with a cleared
environment."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.supervisor_rig import SYSTEM_PYTHON, supervisor, until

NOBODY = 65534
SHAPES = """
import os, signal, sys
number = sys.argv[1]

def fork(action):
    if os.fork() == 0:
        action()
        os._exit(0)

def sleeper(*, ignoring=False, clean=False):
    if ignoring:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execve("/bin/sleep", ["sleep", number], {} if clean else dict(os.environ))

def in_new_session():
    os.setsid()
    sleeper(ignoring=True)

def daemon():
    os.setsid()
    fork(lambda: sleeper(ignoring=True, clean=True))

fork(sleeper)
fork(lambda: fork(lambda: sleeper(ignoring=True)))
fork(lambda: fork(in_new_session))
fork(daemon)
signal.signal(signal.SIGTERM, signal.SIG_IGN) if len(sys.argv) > 2 else None
os.execv("/bin/sleep", ["sleep", number])
"""
SHAPES_COUNT = 5


def alive(number: str) -> list[int]:
    """The processes that sleep for this number of seconds."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == b"sleep\0" + number.encode() + b"\0":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def check(*, uid: int | None = None, prefix: tuple[str, ...] = ()) -> str:
    """Start the shapes, stop them, restart them, crash the main one, shut down: never is one left. Returns the status
    of the groups."""
    number = f"{random.randrange(10**8, 10**9)}"
    python = SYSTEM_PYTHON if uid is not None else sys.executable
    unit = f"""
    [service]
    exec-start = ["{python}", "-c", '''{SHAPES}''', "{number}"]
    timeout-stop-sec = "300ms"
    restart-sec = 0
    restart-jitter = 0
    """
    with supervisor({"shapes": unit}, uid=uid, prefix=prefix) as running:
        until(lambda: len(alive(number)) == SHAPES_COUNT, "all shapes")
        first = set(alive(number))
        assert running.supctl("stop", "shapes").returncode == 0
        assert alive(number) == []
        assert running.supctl("start", "shapes").returncode == 0
        until(lambda: len(alive(number)) == SHAPES_COUNT, "all shapes again")
        assert not first & set(alive(number))
        second = set(alive(number))
        os.kill(running.status("shapes")["pid"], 9)
        until(lambda: len(alive(number)) == SHAPES_COUNT and not second & set(alive(number)), "a whole new life")
        groups = Path(f"/proc/{running.status('shapes')['pid']}/cgroup").read_text()
        assert running.stop() == 0
        assert alive(number) == []
    return groups


@pytest.mark.slow
def test_stop_leaves_nothing_as_we_are() -> None:
    """As the user that runs the tests, with control groups where they can be made."""
    check()


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become an ordinary user")
def test_stop_leaves_nothing_as_an_ordinary_user() -> None:
    """As an ordinary user without any control group: descent and tag find them all."""
    assert "supervisord-py" not in check(uid=NOBODY)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
def test_stop_leaves_nothing_as_root_without_control_groups() -> None:
    """As root where no hierarchy is mounted."""
    unshare = shutil.which("unshare")
    assert unshare is not None
    script = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
    probe = subprocess.run([unshare, "-m", "sh", "-c", script, "sh", "true"], check=False)
    if probe.returncode:
        pytest.skip("mount namespaces are not allowed here")
    assert "supervisord-py" not in check(prefix=(unshare, "-m", "sh", "-c", script, "sh"))

"""Bounds that the kernel keeps by cgroup v2, on a machine that has all of it: programs that try to break each of them.

Three supervisors, each for many units, for everything takes long here: root's and an ordinary user's, in what systemd
has delegated to them, and one in a control group namespace without systemd, as in a container.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import ROOT, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

MIB = 1024 * 1024
USER = 1000
ROOT_OF_ALL = Path("/sys/fs/cgroup")
ALL = ("memory", "cpu", "pids", "io")

HOG = "kept = []\nwhile True:\n  kept.append(b'x' * 1048576)\n"
HOLDER = "import signal, sys\nkept = b'x' * (int(sys.argv[1]) * 1048576)\nprint('held', flush=True)\nsignal.pause()\n"
FORKS = "import os, signal\nn = 0\ntry:\n  while n < 40:\n    if os.fork() == 0: signal.pause()\n    n += 1\n"
FORKS += "except OSError as error: print('refused', n, error.errno, flush=True)\nsignal.pause()\n"
SPIN = "while True: pass\n"
PARENT = "import os, signal, sys\nif os.fork() == 0:\n  exec(sys.argv[1])\n  os._exit(0)\n"
PARENT += "os.wait()\nprint('the child is gone', flush=True)\nsignal.pause()\n"
WRITER = "import os, sys, time\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)\n"
WRITER += "data = b'x' * 65536\nwhile True:\n  os.pwrite(fd, data, 0); os.fsync(fd)\n"
IDLE = "import signal; signal.pause()"


def unit(code: str, limits: str, *arguments: str, more: str = "") -> str:
    words = ", ".join(f"'''{word}'''" for word in (SYSTEM_PYTHON, "-S", "-c", code, *arguments))
    return f"[service]\nexec-start = [{words}]\nrestart = 'no'\n{more}\n[limits]\n{limits}\n"


UNITS = {
    "idle": unit(IDLE, "memory-max = '300M'"),
    "hog": unit(HOG, "memory-max = '40M'\nmemory-swap-max = 0"),
    "parent-stop": unit(PARENT, "memory-max = '40M'\nmemory-swap-max = 0", HOG),
    "parent-kill": unit(PARENT, "memory-max = '40M'\nmemory-swap-max = 0", HOG, more="oom-policy = 'kill'"),
    "parent-continue": unit(PARENT, "memory-max = '40M'\nmemory-swap-max = 0", HOG, more="oom-policy = 'continue'"),
    "high": unit(HOLDER, "memory-high = '24M'\nmemory-swap-max = '64M'", "48"),
    "swap": unit(HOLDER, "memory-max = '24M'\nmemory-swap-max = '100M'", "40"),
    "bomb": unit(FORKS, "tasks-max = 12"),
    "one": unit(IDLE, "tasks-max = 1"),
    "quota": unit(SPIN, "cpu-quota = '20%'"),
    "tiny": unit(SPIN, "cpu-quota = '0.5%'"),
    "heavy": unit(SPIN, "cpu-weight = 800\ncpu-affinity = 0"),
    "light": unit(SPIN, "cpu-weight = 100\ncpu-affinity = 0"),
    "weighed": unit(IDLE, "io-weight = 321"),
}


def value(running: RunningSupervisor, name: str, file: str) -> str:
    """What the kernel says of a unit's group."""
    group = Path(f"/proc/{running.status(name)['pid']}/cgroup").read_text().partition("::")[2].strip()
    return (ROOT_OF_ALL / group.lstrip("/") / file).read_text().strip()


def counts(text: str) -> dict[str, int]:
    return {key: int(number) for key, number in (line.split() for line in text.splitlines())}


def applied(running: RunningSupervisor, name: str) -> set[str]:
    return set(running.status(name)["applied"])


def breach(running: RunningSupervisor, name: str) -> dict[str, Any]:
    """The one record of a limit of a unit: status is ahead of the disk."""

    def found() -> list[dict[str, Any]]:
        return [each for each in running.records() if each["event"] == "unit.limit" and each["unit"] == name]

    (record,) = until(found, f"a breach of {name}")
    return dict(record)


def said(running: RunningSupervisor, name: str, word: str) -> str:
    return str(
        until(lambda: next((s for s in running.supctl("logs", name).stdout.splitlines() if word in s), ""), word)
    )


@pytest.fixture(scope="module", autouse=True)
def _a_disk_that_weighs_and_swap() -> Iterator[None]:
    """What a machine may have and this one has not: io.cost on its disk, and swap."""
    device = os.stat("/").st_dev
    (ROOT_OF_ALL / "io.cost.qos").write_text(f"{os.major(device)}:{os.minor(device)} enable=1")
    swap = "/var/swap"
    subprocess.run(["fallocate", "-l", "256M", swap], check=True)
    os.chmod(swap, 0o600)
    subprocess.run(["/usr/sbin/mkswap", swap], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["/usr/sbin/swapon", swap], check=True)
    yield
    subprocess.run(["/usr/sbin/swapoff", swap], check=True)


@contextmanager
def delegated(uid: int | None) -> Iterator[RunningSupervisor]:
    scope = ["systemd-run", *(["--user"] if uid else []), "--quiet", "--scope", "-p", "Delegate=yes"]
    units = {name: text for name, text in UNITS.items() if uid is None or name in OF_USERS}
    if uid:
        os.environ["XDG_RUNTIME_DIR"] = f"/run/user/{uid}"
        until(Path(f"/run/user/{uid}/bus").exists, "the user's systemd")
    try:
        with supervisor(units, prefix=tuple(scope), uid=uid) as running:
            yield running
    finally:
        os.environ.pop("XDG_RUNTIME_DIR", None)


OF_USERS = ("idle", "hog", "parent-stop", "high", "bomb", "quota", "weighed")


@pytest.fixture(scope="module")
def root() -> Iterator[RunningSupervisor]:
    with delegated(None) as running:
        yield running


def test_the_keeper_went_into_a_leaf_so_that_units_can_have_controllers(root: RunningSupervisor) -> None:
    """systemd 252 does not know DelegateSubgroup=: keeper and manager make room themselves, and units are beside."""
    root.wait_state("idle", "active")
    for pid in (root.keeper_pid, until(root.manager_pid, "a manager")):
        assert "/supervisord-py.keeper" in Path(f"/proc/{pid}/cgroup").read_text()
    group = Path(f"/proc/{root.status('idle')['pid']}/cgroup").read_text().strip()
    assert group.endswith("/idle.unit") and "supervisord-py.keeper" not in group


def test_memory_max(root: RunningSupervisor) -> None:
    """The kernel kills who takes more, which is the result, with its numbers, in status, why and journal."""
    status = root.wait_state("hog", "failed")
    assert (status["result"], status["exit"]) == ("oom_kill", {"code": None, "signal": "SIGKILL"})
    record = breach(root, "hog")
    assert (record["limit"], record["most"], record["mechanism"]) == ("memory-max", 40 * MIB, "cgroup v2")
    assert 36 * MIB <= record["value"] <= 40 * MIB
    assert "memory-max = 40M, it had " in status["why"]
    assert "memory-max = 40M" in root.supctl("why", "hog").stdout


@pytest.mark.parametrize("policy", ["stop", "kill"])
def test_a_child_that_the_kernel_kills_ends_the_unit(root: RunningSupervisor, policy: str) -> None:
    """Its main process would go on: stopped in order, or killed with it by the kernel as one."""
    status = root.wait_state(f"parent-{policy}", "failed")
    assert status["result"] == "oom_kill"
    assert breach(root, f"parent-{policy}")["mechanism"] == "cgroup v2"
    assert ("the child is gone" in root.supctl("logs", f"parent-{policy}").stdout) is (policy == "stop")


def test_a_child_that_the_kernel_kills_may_be_nobody_s_loss(root: RunningSupervisor) -> None:
    """It is told, and the unit goes on."""
    said(root, "parent-continue", "the child is gone")
    until(
        lambda: [
            each for each in root.records() if each["event"] == "unit.limit" and each["unit"] == "parent-continue"
        ],
        "its record",
    )
    assert root.status("parent-continue")["active_state"] == "active"
    assert value(root, "parent-continue", "memory.oom.group") == "0"


def test_memory_high_and_swap(root: RunningSupervisor) -> None:
    """Above the one memory is taken away again, into swap; with swap a program has more than memory-max."""
    said(root, "high", "held")
    assert counts(value(root, "high", "memory.events"))["high"] > 0
    assert int(value(root, "high", "memory.current")) <= 26 * MIB
    assert applied(root, "high") == {"memory-high: cgroup v2", "memory-swap-max: cgroup v2"}
    said(root, "swap", "held")
    assert int(value(root, "swap", "memory.swap.current")) > 10 * MIB
    assert int(value(root, "swap", "memory.current")) <= 24 * MIB


def test_tasks_max(root: RunningSupervisor) -> None:
    """The fork is refused; a unit that may have one task starts although its maker is there for a moment."""
    refused = said(root, "bomb", "refused").split()
    assert (int(refused[-2]), int(refused[-1])) == (11, 11)
    assert counts(value(root, "bomb", "pids.events"))["max"] >= 1
    assert applied(root, "bomb") == {"tasks-max: cgroup v2"}
    root.wait_state("one", "active")
    assert value(root, "one", "pids.max") == "1"


def test_cpu_quota_and_weight(root: RunningSupervisor) -> None:
    """A program that only computes gets its share, and the heavier of two more of the same processor."""
    names = ("quota", "tiny", "heavy", "light")
    for name in names:
        root.wait_state(name, "active")
    assert (value(root, "quota", "cpu.max"), value(root, "tiny", "cpu.max")) == ("20000 100000", "1000 200000")
    assert (value(root, "heavy", "cpu.weight"), value(root, "light", "cpu.weight")) == ("800", "100")

    def used() -> dict[str, int]:
        return {name: counts(value(root, name, "cpu.stat"))["usage_usec"] for name in names}

    before, began = used(), time.monotonic()
    until(lambda: time.monotonic() - began > 6, "some time for the scheduler")
    spent = time.monotonic() - began
    shares = {name: (now - before[name]) / 1e6 / spent for name, now in used().items()}
    assert 0.02 < shares["quota"] < 0.26, shares
    assert shares["tiny"] < 0.02, shares
    assert shares["heavy"] > 2 * shares["light"] > 0, shares
    assert counts(value(root, "quota", "cpu.stat"))["nr_throttled"] > 0


def test_io_weight(root: RunningSupervisor) -> None:
    """Where a disk weighs it is written, and status says so."""
    root.wait_state("weighed", "active")
    assert value(root, "weighed", "io.weight") == "default 321"
    assert applied(root, "weighed") == {"io-weight: cgroup v2"}


def test_bounds_are_set_live_and_taken_back(root: RunningSupervisor) -> None:
    """The unit has them at once, with its processes, and none is restarted; what has no mechanism is refused."""
    pid = root.wait_state("idle", "active")["pid"]
    keys = (
        "memory-max=100M",
        "memory-high=80M",
        "memory-swap-max=10M",
        "tasks-max=33",
        "cpu-quota=30%",
        "cpu-weight=77",
    )
    done = root.supctl("set", "idle", *(f"limits.{key}" for key in keys))
    assert done.returncode == 0, done.stderr
    files = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight")
    wanted = (str(100 * MIB), str(80 * MIB), str(10 * MIB), "33", "30000 100000", "77")
    assert tuple(value(root, "idle", file) for file in files) == wanted
    status = root.status("idle")
    assert (status["pid"], status["needs_restart"]) == (pid, False)
    assert set(status["applied"]) == {f"{key.partition('=')[0]}: cgroup v2" for key in keys}
    done = root.supctl("set", "idle", "limits.memory-max=infinity", "limits.cpu-quota=50%")
    assert done.returncode == 0, done.stderr
    assert (value(root, "idle", "memory.max"), value(root, "idle", "cpu.max")) == ("max", "50000 100000")


def test_a_bound_set_live_is_broken_and_tells_so(root: RunningSupervisor) -> None:
    """A running program that holds more than it may from now on is killed for it."""
    said(root, "swap", "held")
    for key in ("memory-swap-max=1M", "memory-max=8M"):
        done = root.supctl("set", "swap", f"limits.{key}")
        assert done.returncode == 0, done.stderr
    status = root.wait_state("swap", "failed")
    assert status["result"] == "oom_kill"
    assert breach(root, "swap")["most"] == 8 * MIB


def test_pause_is_the_freezer_s(root: RunningSupervisor) -> None:
    """A paused unit uses no processor time, whatever it computes, and goes on."""
    root.wait_state("light", "active")
    assert root.supctl("pause", "light").returncode == 0
    assert counts(value(root, "light", "cgroup.events"))["frozen"] == 1
    usage = counts(value(root, "light", "cpu.stat"))["usage_usec"]
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 1, "a second")
    assert counts(value(root, "light", "cpu.stat"))["usage_usec"] == usage
    assert root.supctl("resume", "light").returncode == 0
    until(lambda: counts(value(root, "light", "cpu.stat"))["usage_usec"] > usage, "some work")


def test_what_is_bound_outlives_a_manager(root: RunningSupervisor) -> None:
    """The next manager knows the mechanisms, counts kills from where they were, and keeps units in their groups."""
    root.wait_state("bomb", "active")
    root.kill_manager()
    root.wait_state("bomb", "active")
    assert applied(root, "bomb") == {"tasks-max: cgroup v2"}
    assert root.supctl("restart", "one").returncode == 0
    assert value(root, "one", "pids.max") == "1"


def test_all_of_a_unit_is_killed_by_its_group_and_its_group_goes(root: RunningSupervisor) -> None:
    """kill -9 of a tree that forks by cgroup.kill; nothing is left, not even an empty group."""
    group = ROOT_OF_ALL / Path(f"/proc/{root.status('bomb')['pid']}/cgroup").read_text().partition("::/")[2].strip()
    assert len((group / "cgroup.procs").read_text().split()) == 12
    assert root.supctl("kill", "--signal", "SIGKILL", "bomb").returncode == 0
    root.wait_state("bomb", "failed")
    until(lambda: not group.exists(), "the end of the group")


@pytest.fixture(scope="module")
def user(root: RunningSupervisor) -> Iterator[RunningSupervisor]:
    """After root's tests: two at a time would be slow."""
    root.stop()
    with delegated(USER) as running:
        yield running


def test_an_ordinary_user_has_what_is_delegated(user: RunningSupervisor) -> None:
    """systemd gives users memory, processors and tasks: bounds hold by the kernel, and kills are told with numbers."""
    status = user.wait_state("hog", "failed")
    assert status["result"] == "oom_kill", status["why"]
    assert breach(user, "hog")["mechanism"] == "cgroup v2"
    assert user.wait_state("parent-stop", "failed")["result"] == "oom_kill"
    assert said(user, "bomb", "refused").split()[-2] == "11"
    said(user, "high", "held")
    assert counts(value(user, "high", "memory.events"))["high"] > 0
    assert value(user, "quota", "cpu.max") == "20000 100000"
    assert applied(user, "quota") == {"cpu-quota: cgroup v2"}
    done = user.supctl("set", "idle", "limits.memory-max=100M", "limits.tasks-max=9")
    assert done.returncode == 0, done.stderr
    assert value(user, "idle", "memory.max") == str(100 * MIB)


def test_what_is_not_delegated_is_said(user: RunningSupervisor) -> None:
    """systemd 252 keeps the disks for itself: the start fails, with the controller and the reason."""
    status = user.wait_state("weighed", "failed")
    assert status["exit"] == {"code": 219, "signal": None}
    assert "io-weight cannot be enforced here: no control group has the controller io" in status["why"]


def test_in_a_container_without_systemd(user: RunningSupervisor) -> None:
    """Its control group is the root of what it sees, and it is all that is in there: it makes room for controllers."""
    user.stop()
    group = ROOT_OF_ALL / Path("/proc/self/cgroup").read_text().partition("::/")[2].strip() / "box"
    group.mkdir()
    hide = 'echo $$ > "$0/cgroup.procs" && exec unshare -C -m sh -c \'umount -l /sys/fs/cgroup && '
    hide += "mount -t cgroup2 cgroup2 /sys/fs/cgroup && "
    hide += 'mount -t tmpfs none /run/systemd && exec "$@"\' sh "$@"'
    parent, own = group.parent, group.parent / "tests"
    own.mkdir()
    for pid in (parent / "cgroup.procs").read_text().split():
        (own / "cgroup.procs").write_text(pid)
    (parent / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in ALL))
    units = {name: UNITS[name] for name in ("hog", "bomb", "idle")}
    with supervisor(units, prefix=("sh", "-c", hide, str(group))) as running:
        assert running.wait_state("hog", "failed")["result"] == "oom_kill"
        assert applied(running, "bomb") == {"tasks-max: cgroup v2"}
        assert (group / "supervisord-py.keeper/cgroup.procs").read_text().split()
        assert (group / "cgroup.procs").read_text() == ""
        assert ROOT.exists()
    until(lambda: not list(group.glob("supervisord-py.*-*")), "the end of its groups")

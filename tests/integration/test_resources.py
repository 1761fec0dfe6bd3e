"""Bounds on all processes of a unit together: programs that try to break each of them, and what status says."""

import os
from pathlib import Path

import pytest

from supervisord_py.host.cgroups import Finding, UnitGroups
from supervisord_py.host.resources import Controller, Mechanism, UnitResources, parse_v1
from supervisord_py.model.amounts import parse_count_amount, parse_percent, parse_size_amount
from supervisord_py.model.context import Amount, Resources
from supervisord_py.model.problems import BadValue
from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, supervisor, until

MIB = 1024 * 1024
FORKS = "import os, signal\nfor n in range(40):\n  if os.fork() == 0: signal.pause()\nsignal.pause()\n"
HOG = "import threading\nkept = []\nwhile True:\n  kept.append(b'x' * 4194304); threading.Event().wait(0.02)\n"


def has(controller: Controller) -> bool:
    """Whether this machine has it for us, as the supervisor finds out itself."""
    groups = UnitGroups(Finding(None, ()), "probe", 1)
    plan = UnitResources(groups).plan(Resources(cpu_quota=5000, memory_max=Amount(MIB), tasks_max=Amount(9)))
    return controller in plan.writes


def program(code: str, limits: str, *more: str) -> str:
    keys = "\n".join(more)
    return (
        f"[service]\nexec-start = ['{SYSTEM_PYTHON}', '-c', '''{code}''']\nrestart = 'no'\n{keys}\n[limits]\n{limits}\n"
    )


@pytest.mark.parametrize("uid", AS_USER)
def test_memory_max_ends_who_takes_more(uid: int | None) -> None:
    """By the kernel where it bounds the tree, else by us, who count it; result, record and why have the numbers."""
    with supervisor({"hog": program(HOG, "memory-max = '64M'")}, uid=uid) as running:
        status = running.wait_state("hog", "failed")
        by_kernel = status["result"] == "oom_kill"
        assert status["result"] in ("oom_kill", "memory_limit")
        (record,) = [record for record in running.records() if record["event"] == "unit.limit"]
        assert (record["limit"], record["most"], record["value"] >= 60 * MIB) == ("memory-max", 64 * MIB, True)
        assert (record["mechanism"] != "sampling") is by_kernel
        assert by_kernel is (uid is None and has(Controller.MEMORY))
        assert "memory-max = 64M" in status["why"]


@pytest.mark.parametrize("uid", AS_USER)
def test_tasks_max_bounds_forks(uid: int | None) -> None:
    """The kernel refuses the fork, or we end who has too many; nothing of it is left."""
    with supervisor({"bomb": program(FORKS, "tasks-max = 20")}, uid=uid) as running:
        status = running.wait_state("bomb", "failed")
        by_kernel = status["result"] == "exit_code"
        assert by_kernel is (uid is None and has(Controller.TASKS))
        assert by_kernel or "tasks-max = 20" in status["why"]
        until(lambda: running.status("bomb")["tasks"] in (None, 0), "the end of all")


@pytest.mark.skipif(not has(Controller.CPU), reason="no control group for processors that we may use")
def test_a_bound_is_where_the_kernel_reads_it_and_is_changed_live() -> None:
    """Quota, weight and tasks of a unit that runs; status names the mechanism; a bound taken back is gone."""
    limits = "cpu-quota = '50%'\ncpu-weight = 200\ntasks-max = 30\nmemory-max = '10%'"
    with supervisor({"web": program("import signal; signal.pause()", limits)}) as running:
        status = running.wait_state("web", "active")
        bounds = ("memory-max", "cpu-quota", "cpu-weight", "tasks-max")
        mechanisms = {word.partition(": ")[2] for word in status["applied"]}
        assert [word.partition(":")[0] for word in status["applied"]] == list(bounds)
        assert mechanisms <= {"cgroup v1", "cgroup v2"}
        groups = Path(f"/proc/{status['pid']}/cgroup").read_text()
        assert groups.count("/web.unit") >= 3
        done = running.supctl("set", "web", "limits.cpu-quota=75%", "limits.tasks-max=31", "limits.io-weight=50")
        if done.returncode != 0:
            assert "io-weight cannot be enforced here" in done.stderr
            done = running.supctl("set", "web", "limits.cpu-quota=75%", "limits.tasks-max=31")
        assert done.returncode == 0, done.stderr
        (found,) = {path for path in _files("pids.max") if "web.unit" in str(path)}
        assert found.read_text().strip() == "31"
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: not any("web.unit" in str(path) for path in _files("pids.max")), "the end of its groups")


def _files(name: str) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").rglob(name) if f"-{os.getpid()}" not in str(path)]


@pytest.mark.parametrize("enforce", ["strict", "best-effort"])
@pytest.mark.parametrize("uid", AS_USER[1:] or AS_USER)
def test_what_nothing_can_enforce(uid: int | None, enforce: str) -> None:
    """A quota needs a control group: strict fails the start with systemd's code, best-effort runs and is told."""
    if uid is None and has(Controller.CPU):
        pytest.skip("this user may have control groups")
    unit = program("import signal; signal.pause()", f"cpu-quota = '10%'\nenforce = '{enforce}'")
    with supervisor({"web": unit}, uid=uid) as running:
        status = running.wait_state("web", "failed", "active")
        if enforce == "strict":
            assert status["exit"] == {"code": 219, "signal": None}
            assert "cpu-quota cannot be enforced here" in status["why"]
        else:
            assert status["degraded"][0].startswith("cpu-quota: ")
            assert status["applied"] == []


def test_bounds_as_they_are_written() -> None:
    """Sizes, counts and shares; what cannot be meant is refused."""
    assert parse_size_amount("512M") == Amount(512 * MIB)
    assert parse_size_amount("12.5%").of(1000) == 125
    assert parse_size_amount("infinity").of(1000) is None
    assert parse_count_amount(7) == parse_count_amount("7") == Amount(7)
    assert (parse_percent("150%"), parse_percent("0.5%"), parse_percent("infinity")) == (15000, 50, None)
    for parse, wrong in (
        (parse_size_amount, "101%"),
        (parse_count_amount, 0),
        (parse_percent, "x"),
        (parse_percent, "0%"),
    ):
        with pytest.raises(BadValue):
            parse(wrong)


def test_hierarchies_of_controllers_are_found() -> None:
    """Each controller's own hierarchy, and in it our own group; one that is read-only, or v2, is none."""
    mounts = (
        "31 23 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "32 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "33 23 0:28 / /sys/fs/cgroup/pids ro - cgroup cgroup ro,pids\n"
        "34 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    own = "4:memory:/box\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n"
    found = parse_v1(mounts, own)
    assert found == {Controller.MEMORY: "/sys/fs/cgroup/memory/box", Controller.CPU: "/sys/fs/cgroup/cpu,cpuacct"}
    assert [each.value for each in Mechanism] == ["cgroup v2", "cgroup v1", "sampling"]

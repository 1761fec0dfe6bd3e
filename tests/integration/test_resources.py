"""Bounds on all processes of a unit together: programs that try to break each of them, and what status says."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.host.cgroups import Finding, UnitGroups, find_place
from supervisord_py.host.resources import Controller, Mechanism, UnitResources, io_weighers, parse_v1
from supervisord_py.model.amounts import parse_count_amount, parse_percent, parse_size_amount
from supervisord_py.model.context import Amount, Resources
from supervisord_py.model.problems import BadValue
from tests.integration.supervisor_rig import AS_USER, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

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


def breach(running: RunningSupervisor, unit: str) -> dict[str, Any]:
    """The one record of a limit of a unit: status is ahead of the disk."""

    def found() -> list[dict[str, Any]]:
        return [each for each in running.records() if each["event"] == "unit.limit" and each["unit"] == unit]

    (record,) = until(found, f"a breach of {unit}")
    return dict(record)


@pytest.mark.parametrize("uid", AS_USER)
def test_memory_max_ends_who_takes_more(uid: int | None) -> None:
    """By the kernel where it bounds the tree, else by us, who count it; result, record and why have the numbers."""
    with supervisor({"hog": program(HOG, "memory-max = '64M'")}, uid=uid) as running:
        status = running.wait_state("hog", "failed")
        by_kernel = status["result"] == "oom_kill"
        assert status["result"] in ("oom_kill", "memory_limit")
        record = breach(running, "hog")
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


PARENT = "import os, signal\nif os.fork() == 0:\n  kept = []\n  while True: kept.append(b'x' * 1048576)\n"
PARENT += "os.wait()\nprint('the child is gone', flush=True)\nsignal.pause()\n"


@pytest.mark.skipif(not has(Controller.MEMORY), reason="no control group for memory that we may use")
@pytest.mark.parametrize("policy", ["stop", "kill", "continue"])
def test_a_kill_of_another_process_was_seen_by_nobody(policy: str) -> None:
    """It is told, and what follows is oom-policy: an end with the result oom-kill, or nothing. When somebody killed the
    main process hours later it had been taken for the cause."""
    unit = program(PARENT, "memory-max = '48M'", f"oom-policy = '{policy}'")
    with supervisor({"web": unit}) as running:
        pid = running.wait_state("web", "active")["pid"]
        record = breach(running, "web")
        assert (record["limit"], record["most"]) == ("memory-max", 48 * MIB)
        if policy != "continue":
            status = running.wait_state("web", "failed")
            assert status["result"] == "oom_kill"
            assert "the kernel killed a process of it, for its memory was full (memory-max = 48M" in status["why"]
        else:
            assert running.status("web")["active_state"] == "active"
            running.kill_manager()  # what was told is not told again
            os.kill(pid, signal.SIGKILL)
            status = running.wait_state("web", "failed")
            assert (status["result"], len([each for each in running.records() if each["event"] == "unit.limit"])) == (
                "signal",
                1,
            )


LATER = "import signal\nset = {signal.SIGUSR1}\nsignal.pthread_sigmask(signal.SIG_BLOCK, set)\n"
LATER += "print('set', flush=True)\nsignal.sigwait(set)\n" + HOG


@pytest.mark.skipif(not has(Controller.MEMORY), reason="no control group for memory that we may use")
def test_a_kill_while_no_manager_looked_was_told_as_any_signal() -> None:
    """The group remembers what was told, and the next manager tells the rest."""
    with supervisor({"web": program(LATER, "memory-max = '48M'")}) as running:
        pid = running.wait_state("web", "active")["pid"]
        log = running.log_folder / "web.log"
        until(lambda: log.exists() and "set" in log.read_text(), "its handler")
        manager = until(running.manager_pid, "a manager")
        os.kill(manager, signal.SIGSTOP)
        os.kill(pid, signal.SIGUSR1)
        until(lambda: not Path(f"/proc/{pid}").exists(), "its end")
        os.kill(manager, signal.SIGKILL)
        assert running.wait_state("web", "failed")["result"] == "oom_kill"
        assert breach(running, "web")["most"] == 48 * MIB


@pytest.mark.parametrize("uid", AS_USER[1:] or AS_USER)
def test_a_sampled_bound_held_no_more_after_the_death_of_a_manager(uid: int | None) -> None:
    """The next manager did not count, and status went on saying that it did."""
    if uid is None and has(Controller.MEMORY):
        pytest.skip("this user may have control groups")
    with supervisor({"web": program(LATER, "memory-max = '64M'")}, uid=uid) as running:
        pid = running.wait_state("web", "active")["pid"]
        log = running.log_folder / "web.log"
        until(lambda: log.exists() and "set" in log.read_text(), "its handler")
        running.kill_manager()
        assert running.wait_state("web", "active")["applied"] == ["memory-max: sampling"]
        os.kill(pid, signal.SIGUSR1)
        assert running.wait_state("web", "failed")["result"] == "memory_limit"
        assert breach(running, "web")["value"] > 64 * MIB


@pytest.mark.parametrize("uid", AS_USER)
def test_a_bound_is_set_on_who_holds_more(uid: int | None) -> None:
    """Sampled, the life ends for it. The kernel counts nothing that was there before the group was: that is refused."""
    holder = "import signal\nkept = b'x' * (64 << 20)\nprint('held', flush=True)\nsignal.pause()\n"
    with supervisor({"web": program(holder, "nice = 1")}, uid=uid) as running:
        log = running.log_folder / "web.log"
        until(lambda: log.exists() and "held" in log.read_text(), "what it holds")
        done = running.supctl("set", "web", "limits.memory-max=32M")
        if done.returncode != 0:
            assert uid is None and has(Controller.MEMORY)
            assert "the kernel does not count the memory that its processes have already" in done.stderr
            status = running.status("web")
            assert (status["active_state"], status["applied"]) == ("active", [])
        else:
            assert running.wait_state("web", "failed")["result"] == "memory_limit"
            assert breach(running, "web")["most"] == 32 * MIB


@pytest.mark.skipif(not has(Controller.MEMORY), reason="no control group for memory that we may use")
def test_a_bound_that_the_kernel_keeps_is_set_lower() -> None:
    """Below what the unit has: v2 kills at once, v1 refuses and the bound stays; above it is changed."""
    holder = "import signal\nkept = b'x' * (64 << 20)\nprint('held', flush=True)\nsignal.pause()\n"
    with supervisor({"web": program(holder, "memory-max = '300M'")}) as running:
        log = running.log_folder / "web.log"
        until(lambda: log.exists() and "held" in log.read_text(), "what it holds")
        assert running.supctl("set", "web", "limits.memory-max=200M").returncode == 0
        assert running.status("web")["needs_restart"] is False
        done = running.supctl("set", "web", "limits.memory-max=32M", "limits.tasks-max=33")
        if done.returncode != 0:
            assert "memory-max cannot be enforced here: memory.limit_in_bytes" in done.stderr
            assert "have more than that already" in done.stderr
            assert running.status("web")["active_state"] == "active"
            assert running.status("web")["applied"] == ["memory-max: cgroup v1"]
            texts = [path.read_text() for path in _files("memory.limit_in_bytes") if "web.unit" in str(path)]
            assert texts == [f"{200 * MIB}\n"]
            assert {path.read_text() for path in _files("pids.max") if "web.unit" in str(path)} <= {"max\n"}
        else:
            assert running.wait_state("web", "failed")["result"] == "oom_kill"
            assert breach(running, "web")["most"] == 32 * MIB


@pytest.mark.skipif(not has(Controller.CPU), reason="no control group for processors that we may use")
def test_a_quota_holds_who_only_computes() -> None:
    """A fifth of a processor is what it gets, for all its processes together."""
    spin = "import os\nfor n in range(2): os.fork()\nwhile True: pass\n"
    with supervisor({"web": program(spin, "cpu-quota = '20%'")}) as running:
        running.wait_state("web", "active")
        until(lambda: running.status("web")["tasks"] == 4, "its processes")
        before, began = running.status("web")["cpu_ns"], time.monotonic()
        until(lambda: time.monotonic() - began > 3, "some seconds of work")
        spent = (running.status("web")["cpu_ns"] - before) / 1e9 / (time.monotonic() - began)
        assert 0.02 < spent < 0.28


@pytest.mark.parametrize("enforce", ["strict", "best-effort"])
def test_bounds_that_only_cgroup_v2_has(enforce: str) -> None:
    """memory-high, and a weight of I/O where no disk weighs: the start fails with the key, or both are told as left
    out. Such a start left an empty group behind."""
    if (
        UnitResources(UnitGroups(find_place(), "probe", 1)).plan(Resources(memory_high=Amount(MIB))).how
        or io_weighers()
    ):
        pytest.skip("this machine has them")
    limits = f"memory-high = '20M'\nio-weight = 50\nenforce = '{enforce}'"
    with supervisor({"web": program("import signal; signal.pause()", limits)}) as running:
        status = running.wait_state("web", "failed", "active")
        if enforce == "strict":
            assert status["exit"] == {"code": 219, "signal": None}
            assert "memory-high cannot be enforced here: " in status["why"]
        else:
            assert [told.partition(":")[0] for told in status["degraded"]] == ["memory-high", "io-weight"]
            assert status["applied"] == []


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


@pytest.mark.parametrize("uid", AS_USER)
def test_what_a_unit_does_without_stood_in_the_way_of_another_bound(uid: int | None) -> None:
    """With ``best-effort`` a quota that is not possible here is no reason against a bound on memory that is."""
    limits = "memory-max = '300M'\nmemory-high = '200M'\ncpu-quota = '50%'\nenforce = 'best-effort'"
    with supervisor({"web": program("import signal; signal.pause()", limits)}, uid=uid) as running:
        running.wait_state("web", "active")
        done = running.supctl("set", "web", "limits.memory-max=250M")
        assert done.returncode == 0, done.stderr
        assert any(each.startswith("memory-max: ") for each in running.status("web")["applied"])


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

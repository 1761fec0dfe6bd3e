"""What a process is given by the keeper, and how a start that cannot be is told."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.keeper_rig import (
    GLIBC_SIGNALS,
    NOBODY,
    SYSTEM_PYTHON,
    FakeManager,
    keeper,
    keeper_of_nobody,
    python,
    spawn,
)

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes the user of a process")
WAYS = ["auto", "fork"]
REPORT = """
import os, resource, signal
fds = sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1]
print(fds, os.getsid(0) == os.getpid(), os.getcwd(), oct(os.umask(0)))
print(repr(os.read(0, 10)), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
ignored = next(line for line in open("/proc/self/status") if line.startswith("SigIgn")).split()[1]
numbers = [n for n in range(1, 65) if n not in (32, 33) and int(ignored, 16) >> (n - 1) & 1]
print(numbers, resource.getrlimit(resource.RLIMIT_NOFILE))
"""
SIGNALS_OF_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
"""Python ignores these itself when it starts; what it was given is not to be seen from inside."""


def failure(manager: FakeManager, *do: dict[str, Any]) -> tuple[str, int, int]:
    manager.commit(*do)
    fact = manager.fact("spawn-failed", id=do[0]["id"])
    return fact["step"], fact["code"], fact["errno"]


@pytest.mark.parametrize("way", WAYS)
def test_a_process_is_given_exactly_its_own(way: str) -> None:
    """Session, folder, umask, empty signal mask, /dev/null as input, the given limit, and no descriptor but 0, 1, 2."""
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        limit = [512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]]
        manager.commit(python(1, "a", REPORT, cwd="/tmp", umask=0o027, rlimits={"nofile": limit}, strict=["nofile"]))
        assert manager.line("a") == "[0, 1, 2] True /tmp 0o27"
        assert manager.line("a") == "b'' set()"
        ignored, _, limits = manager.line("a").partition("] ")
        assert limits == str(tuple(limit))
        assert set(eval(ignored + "]")) <= SIGNALS_OF_PYTHON


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sigpipe", [True, False])
def test_sigpipe_is_ignored_unless_it_is_asked_for(way: str, sigpipe: bool) -> None:
    """``sigpipe`` decides what SIGPIPE does in the process, and it alone."""
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "grep", "SigIgn", "/proc/self/status", sigpipe=sigpipe))
        ignored = int(manager.line("a").split()[1], 16) & ~GLIBC_SIGNALS
        assert ignored == (0 if sigpipe else 1 << (signal.SIGPIPE - 1))


@pytest.mark.parametrize("way", WAYS)
def test_failures_name_step_code_and_errno(way: str) -> None:
    """A missing program, a missing folder and a file that is none fail with systemd's codes and are no exits."""
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        assert failure(manager, spawn(1, "a", "no-such-program")) == ("exec", 203, 2)
        assert failure(manager, spawn(2, "a", "/etc/passwd")) == ("exec", 203, 13)
        assert failure(manager, spawn(3, "a", "true", cwd="/no/such/folder")) == ("chdir", 200, 2)
        assert failure(manager, spawn(4, "a", "true", rlimits={"no-such-limit": [1, 1]}))[:2] == ("request", 203)
        assert failure(manager, spawn(5, "a", "tr\0ue"))[:2] == ("request", 203)
        assert failure(manager, spawn(6, "a"))[:2] == ("request", 203)
        manager.commit(spawn(7, "a", "true"))
        assert manager.fact("exited", id=7)["tree_empty"]
        assert [fact["id"] for _, fact in manager.facts if fact["fact"] == "exited"] == [7]


def test_a_program_is_looked_for_in_the_units_path(tmp_path: Path) -> None:
    """PATH of the request decides, a candidate that may not be executed is passed over, argv[0] stays as it was."""
    for folder, mode in (("one", 0o644), ("two", 0o755)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text(f"#!/bin/sh\necho {folder}\n")
        (tmp_path / folder / "tool").chmod(mode)
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "tool", env={"PATH": f"{tmp_path}/one:{tmp_path}/two:/bin"}))
        assert manager.line("a") == "two"
        manager.commit(spawn(2, "a", "my name", "-c", "echo $0", executable="/bin/sh"))
        assert manager.line("a") == "my name"


@pytest.mark.parametrize("way", WAYS)
def test_output_can_be_opened_again_by_its_path(way: str) -> None:
    """A process may write to /dev/stdout by name, as itself."""
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sh", "-c", "echo one >/dev/stdout; echo two >/dev/stderr"))
        assert [manager.line("a"), manager.line("a")] == ["one", "two"]


@root
def test_another_user_gets_its_output_and_groups() -> None:
    """uid, gid and groups are in force before the first instruction, and the output belongs to the user."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(
            spawn(1, "a", "sh", "-c", "id -u; id -g; id -G; echo hi >/dev/stdout", uid=NOBODY, gid=7, groups=[7, 8])
        )
        assert [manager.line("a") for _ in range(4)] == [str(NOBODY), "7", "7 8", "hi"]
        manager.commit(spawn(2, "b", "sh", "-c", "id -u; id -G", uid=NOBODY, gid=NOBODY))
        assert [manager.line("b"), manager.line("b")] == [str(NOBODY), str(NOBODY)]
        manager.commit(spawn(3, "a", "sh", "-c", "id -u", uid=NOBODY, gid=7, privileged=True))
        assert manager.line("a") == "0"


def test_an_ordinary_user_cannot_become_another() -> None:
    """Without privileges a change of the user fails with 216 or 217, and nothing runs."""
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        assert failure(manager, spawn(1, "a", "true", uid=1, gid=None, groups=None))[1:] == (216, 1)
        assert failure(manager, spawn(2, "a", "true", gid=1))[1:] == (216, 1)


def test_an_explicit_limit_that_does_not_hold_fails_the_start_and_a_default_is_clamped() -> None:
    """Above the hard limit: strict is 205 LIMITS, otherwise the process gets the hard limit there is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = {"nofile": [hard + 100, hard + 100]}
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        assert failure(manager, spawn(1, "a", "true", rlimits=limits, strict=["nofile"]))[:2] == ("limits", 205)
        manager.commit(spawn(2, "a", "sh", "-c", "ulimit -n; ulimit -Hn", rlimits=limits))
        assert [manager.line("a"), manager.line("a")] == [str(hard), str(hard)]


@pytest.mark.parametrize("way", WAYS)
def test_limits_are_in_force_and_the_keepers_own_are_not_touched(way: str) -> None:
    """Soft and hard limits of all kinds hold in the process; the next one has none of them."""
    limits = {"core": [0, 0], "as": [10**9, 2 * 10**9], "nproc": [500, 600], "stack": [4 << 20, 8 << 20]}
    names = "('CORE', 'AS', 'NPROC', 'STACK')"
    code = f"import resource as r; print([r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in {names}])"
    with keeper(spawner=way) as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", code, rlimits=limits, strict=list(limits)), python(2, "b", code))
        assert manager.line("a") == str([tuple(limit) for limit in limits.values()])
        mine = [resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}")) for name in limits]
        assert manager.line("b") == str(mine)


def test_a_memory_limit_below_the_keepers_own_size_starts_all_the_same() -> None:
    """Limits that would starve the steps before exec are set last."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sh", "-c", "ulimit -v", rlimits={"as": [12 << 20, 12 << 20]}, strict=["as"]))
        assert manager.line("a") == str(12 << 10)


def test_the_soft_file_limit_of_a_process_is_the_one_the_keeper_was_given() -> None:
    """The keeper raises its own; what it starts does not inherit that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        with keeper() as rig:
            manager = rig.manager()
            manager.commit(spawn(1, "a", "sh", "-c", "ulimit -n"), spawn(2, "b", "sh", "-c", "ulimit -n", nice=1))
            assert [manager.line("a"), manager.line("b")] == ["1000", "1000"]
            assert resource.prlimit(rig.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nice_and_its_own_pid_in_the_environment() -> None:
    """Niceness is set, and variables that must hold the process's own pid do."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sh", "-c", "nice; echo $WATCHDOG_PID $$", nice=5, pid_env=["WATCHDOG_PID"]))
        assert manager.line("a") == "5"
        assert len(set(manager.line("a").split())) == 1


@pytest.mark.parametrize("nice", [None, 3])
def test_the_tag_is_on_every_process(nice: int | None) -> None:
    """The soft RLIMIT_RTTIME names instance and spawn, by vfork and by fork, and the hard one is left alone."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(77, "a", "sleep", "100", nice=nice))
        fact = manager.fact("spawned", id=77)
        instance = manager.welcome["instance"]
        soft, hard = resource.prlimit(fact["pid"], resource.RLIMIT_RTTIME)
        assert (soft, hard) == ((1 << 61) + (instance << 40) + 77, resource.getrlimit(resource.RLIMIT_RTTIME)[1])
        assert fact["tagged"]


def test_a_process_that_cannot_be_tagged_says_so() -> None:
    """With a low hard RLIMIT_RTTIME of its own the process runs and ``tagged`` is false."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "100", rlimits={"rttime": [10**6, 10**6]}, strict=["rttime"]))
        assert not manager.fact("spawned", id=1)["tagged"]


def test_a_known_id_is_ignored_even_after_its_exit() -> None:
    """Asking twice for a spawn makes one process, in one commit, in two, and after the exit is acknowledged."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "echo", "x"), spawn(1, "a", "echo", "x"))
        manager.fact("exited", id=1)
        manager.commit(spawn(1, "a", "echo", "x"))
        manager.commit(spawn(2, "a", "echo", "y"))
        manager.fact("exited", id=2)
        assert manager.output("a", 4) == b"x\ny\n"
        assert [fact["id"] for _, fact in manager.facts if fact["fact"] == "spawned"] == [1, 2]


def test_two_hundred_quick_lives_are_all_told() -> None:
    """Each of 200 processes is told as spawned, then as exited with its own code, and no zombie is left."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(*[spawn(i, f"u{i % 7}", "sh", "-c", f"exit {i % 256}") for i in range(1, 201)])
        manager.until(lambda: sum(fact["fact"] == "exited" for _, fact in manager.facts) == 200)
        exits = {fact["id"]: fact["code"] for _, fact in manager.facts if fact["fact"] == "exited"}
        assert exits == {i: i % 256 for i in range(1, 201)}
        assert [number for number, _ in manager.facts] == list(range(1, 401))
        for _, fact in manager.facts:
            if fact["fact"] == "exited":
                assert fact["rusage"]["max_rss_kb"] > 0
        children = Path(f"/proc/{rig.pid}/task/{rig.pid}/children").read_text().split()
        assert children == [str(manager.pid)]


def test_signal_and_core_of_an_exit() -> None:
    """An exit by a signal has no code and the signal's number."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sh", "-c", "kill -TERM $$"))
        fact = manager.fact("exited", id=1)
        assert (fact["code"], fact["signal"], fact["core"], fact["main"]) == (None, signal.SIGTERM, False, True)


def test_the_output_pipe_outlives_the_process_and_is_one_for_all_lives_of_a_unit() -> None:
    """Output written before an exit is there after it; a second life writes to the same pipe; release closes it."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "echo", "one"))
        manager.fact("exited", id=1)
        manager.commit(spawn(2, "a", "echo", "two"))
        manager.fact("exited", id=2)
        assert manager.output("a", 8) == b"one\ntwo\n"
        manager.commit({"do": "release", "unit": "a"})
        assert os.read(manager.outputs["a"], 1) == b"", "the keeper still holds a writing end"
        assert manager.ask("trees", units=None)["trees"] == {}


def test_release_waits_for_the_last_process() -> None:
    """A unit with a process left is not released; its output is sent again to the manager, who has closed it."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "sleep", "100"), {"do": "release", "unit": "a"})
        manager.fact("spawned", id=1)
        manager.until(lambda: manager.messages.count({"outputs": ["a"]}) == 2, "the output again")
        assert list(manager.ask("trees", units=["a"])["trees"]) == ["a"]


def test_system_python_is_there() -> None:
    """The programs that these tests start exist; without them every test here would be about something else."""
    assert os.access(SYSTEM_PYTHON, os.X_OK)


@root
def test_a_privileged_command_does_not_take_the_output_away() -> None:
    """While a privileged stop command runs, the main process of another user can still open /dev/stdout."""
    with keeper() as rig:
        manager = rig.manager()
        waiting = "import signal\nsignal.pthread_sigmask(0, [10])\nprint('up', flush=True)\nsignal.sigwait([10])\n"
        manager.commit(
            python(1, "a", waiting + "open('/dev/stdout', 'w').write('again\\n')", uid=NOBODY, gid=NOBODY),
        )
        assert manager.line("a") == "up"
        manager.commit(spawn(2, "a", "true", role="stop", uid=NOBODY, gid=NOBODY, privileged=True))
        manager.fact("exited", id=2)
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 10, "cont": False})
        assert manager.line("a") == "again"
        assert manager.fact("exited", id=1)["code"] == 0

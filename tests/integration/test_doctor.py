"""``supervisord-py doctor`` on this machine and on a running supervisor, with bugs planted in real processes."""

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisord_py.doctor import instance
from supervisord_py.doctor.findings import Level
from supervisord_py.doctor.instance import examine
from supervisord_py.keeper.protocol import TAG_BASE, TAG_INSTANCE_SHIFT
from tests.integration.supervisor_rig import ROOT, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

NOBODY = 65534
SLEEPER = '[service]\nexec-start = "sleep 1000"\n'


def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "supervisord_py", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def findings_of(*prefix: str, folders: Path, settings: Path | None = None) -> dict[str, dict[str, str]]:
    """What doctor says of the machine, by topic; ``prefix`` is a command that executes it."""
    options = [f"--{name}-dir={folders / name[0]}" for name in ("runtime", "state", "log")]
    options += [] if settings is None else ["--config", str(settings)]
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "supervisord_py", "doctor", "--json", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {each["topic"]: each for each in json.loads(done.stdout)["findings"]}


def wrong(running: RunningSupervisor) -> dict[str, str]:
    """What is wrong with a supervisor now, by topic."""
    with running.client() as client:
        findings = examine(client, settle_s=1.0)
    return {finding.topic: finding.fact for finding in findings if finding.level is Level.WRONG}


def test_doctor_of_this_machine(tmp_path: Path) -> None:
    """Every line has a level, every one that is not good a cure, and folders that can be used are not wrong."""
    folders = [f"--{name}-dir={tmp_path / name[0]}" for name in ("runtime", "state", "log")]
    done = doctor("--json", *folders)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["ok"] else 1), done.stderr
    assert {each["level"] for each in found["findings"]} <= {"ok", "degraded", "wrong"}
    assert all(each["cure"] for each in found["findings"] if each["level"] != "ok")
    by_topic = {each["topic"]: each for each in found["findings"]}
    for topic in ("kernel", "pidfd", "tag", "cgroups", "descriptors", "clock", "Python", "journal space"):
        assert by_topic[topic]["fact"]
    assert by_topic["state folder"]["level"] == "ok"


def test_doctor_tells_a_state_folder_that_everybody_may_write(tmp_path: Path) -> None:
    """What is wrong makes the exit code 1 and stands in the text with its cure."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o777)
    done = doctor(f"--runtime-dir={tmp_path / 'r'}", f"--state-dir={tmp_path / 's'}")
    assert done.returncode == 1
    assert f"everybody may write to {tmp_path / 's'}" in done.stdout
    assert f"chmod o-w {tmp_path / 's'}" in done.stdout


@pytest.mark.parametrize(
    ("limit", "topic", "cure"),
    [
        ("--nofile=512:512", "descriptors", "LimitNOFILE="),
        ("--nproc=600:600", "processes", "LimitNPROC="),
        ("--rttime=1000000:1000000", "tag", "LimitRTTIME=infinity"),
    ],
    ids=["descriptors", "processes", "tag"],
)
def test_doctor_tells_limits_with_their_cure(tmp_path: Path, limit: str, topic: str, cure: str) -> None:
    """A limit that is too low for a supervisor is degraded, and not wrong."""
    found = findings_of("prlimit", limit, folders=tmp_path)
    assert found[topic]["level"] == "degraded" and cure in found[topic]["cure"]


def test_doctor_tells_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    """A control socket that nobody serves is degraded: the next run takes over."""
    (tmp_path / "r").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "r" / "control.sock"))
    found = findings_of(folders=tmp_path)
    assert found["control socket"]["level"] == "degraded" and "killed" in found["control socket"]["fact"]


def test_doctor_tells_a_runtime_path_that_is_too_long(tmp_path: Path) -> None:
    """Where run would refuse to start, doctor says so before."""
    found = findings_of(folders=tmp_path / ("long" * 25))
    assert found["runtime path"]["level"] == "wrong" and "--runtime-dir" in found["runtime path"]["cure"]


def test_doctor_compares_the_journal_with_the_disk(tmp_path: Path) -> None:
    """Settings that want more than the disk has are degraded, with the key that says how much."""
    (tmp_path / "settings.toml").write_text('[journal]\nmax-bytes = "100000G"\n')
    found = findings_of(folders=tmp_path, settings=tmp_path / "settings.toml")
    assert found["journal space"]["level"] == "degraded" and "max-bytes" in found["journal space"]["cure"]


def test_doctor_of_nobody(tmp_path: Path) -> None:
    """Where no supervisor is, --instance says so as supctl does."""
    done = doctor("--instance", "--json", "--socket", str(tmp_path / "none"))
    assert done.returncode == 7
    assert json.loads(done.stdout)["error"]["code"] == "unreachable"


def test_doctor_of_an_instance() -> None:
    """A healthy supervisor passes, on the command line too, through a killed manager and a reexec."""
    with supervisor({"one": SLEEPER, "two": SLEEPER}) as running:
        for unit in ("one", "two"):
            running.wait_state(unit, "active")
        assert wrong(running) == {}
        running.kill_manager()
        assert wrong(running) == {}
        assert running.supctl("daemon-reexec").returncode == 0
        assert wrong(running) == {}
        done = doctor("--instance", "--json", "--socket", str(running.socket))
        assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stdout


def test_doctor_finds_a_process_of_a_stopped_unit() -> None:
    """A process that carries a unit's tag while the unit is said to be stopped is wrong."""
    with supervisor({"one": SLEEPER}) as running:
        pid = running.wait_state("one", "active")["pid"]
        limits = Path(f"/proc/{pid}/limits").read_text()
        tag = int(limits.partition("Max realtime timeout")[2].split()[0])
        assert running.supctl("stop", "one").returncode == 0
        with subprocess.Popen(
            ["sleep", "1000"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_RTTIME, (tag, resource.RLIM_INFINITY)),
        ) as planted:
            try:
                assert f"pid {planted.pid} " in wrong(running)["processes"]
            finally:
                planted.kill()


def test_doctor_finds_a_process_of_an_unknown_spawn() -> None:
    """A process with the instance's number and a spawn id that the keeper never gave is wrong."""
    with supervisor({"one": SLEEPER}) as running:
        running.wait_state("one", "active")
        number = int((running.folder / "r" / "lock").read_text().split()[1])
        tag = TAG_BASE + (number << TAG_INSTANCE_SHIFT) + 999_999
        with subprocess.Popen(
            ["sleep", "1000"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_RTTIME, (tag, resource.RLIM_INFINITY)),
        ) as planted:
            try:
                assert "the keeper knows of no unit" in wrong(running)["processes"]
            finally:
                planted.kill()


def test_doctor_finds_what_is_left_in_the_folders() -> None:
    """A notify socket that nobody listens on is wrong, and so is a lock file that names another pid."""
    with supervisor({"one": '[service]\ntype = "notify"\nexec-start = "sleep 1000"\n'}, invariants=False) as running:
        until(lambda: list((running.folder / "r" / "n").iterdir()), "a notify socket")
        assert wrong(running) == {}
        (running.folder / "r" / "n" / "0123").touch()
        assert "0123" in wrong(running)["leftovers"]
        (running.folder / "r" / "n" / "0123").unlink()
        lock = running.folder / "r" / "lock"
        pid, number = lock.read_text().split()
        lock.write_text(f"{int(pid) + 1}\n{number}\n")
        assert f"names pid {int(pid) + 1}" in wrong(running)["lock"]
        lock.write_text(f"{pid}\n{number}\n")


def test_doctor_finds_what_others_could_write_or_read() -> None:
    """Folders, lock, book and journal of a running supervisor are for its user alone; the socket is as it was set."""
    with supervisor({"one": SLEEPER}) as running:
        running.wait_state("one", "active")
        (segment,) = running.journal_folder.glob("*.ndjson")
        for path, mode, topic in (
            (running.folder / "r", 0o777, "runtime folder"),
            (running.folder / "r" / "n", 0o777, "notify sockets"),
            (running.folder / "s", 0o777, "state folder"),
            (running.folder / "l", 0o777, "log folder"),
            (running.journal_folder, 0o777, "journal"),
            (segment, 0o666, "journal"),
            (running.folder / "r" / "lock", 0o666, "lock"),
            (running.folder / "r" / "book", 0o644, "book"),
        ):
            before = path.stat().st_mode
            path.chmod(mode)
            found = wrong(running)
            assert list(found) == [topic] and str(path) in found[topic]
            path.chmod(before)
        running.socket.chmod(0o666)
        with running.client() as client:
            told = {each.topic: each for each in examine(client)}["control socket"]
        assert told.level is Level.DEGRADED and "mode 0666" in told.fact and told.cure == f"chmod 0660 {running.socket}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's supervisor believes nobody")
def test_doctor_finds_unit_files_that_the_next_reload_refuses() -> None:
    """What root's supervisor reads must be root's alone: a folder, a file in it, the settings."""
    with supervisor({"one": SLEEPER}) as running:
        running.wait_state("one", "active")
        for path in (running.units, running.units / "one.toml", running.folder / "supervisord.toml"):
            before = path.stat().st_mode
            path.chmod(0o777)
            assert str(path) in wrong(running)["unit files"]
            path.chmod(before)


def test_doctor_tells_a_supervisor_that_nobody_can_reach() -> None:
    """Its socket or the whole runtime folder is gone: the keeper is named, and what it is told to do helps."""
    with supervisor({"one": SLEEPER}, invariants=False) as running:
        pid = running.wait_state("one", "active")["pid"]
        for remove in (running.socket.unlink, lambda: shutil.rmtree(running.folder / "r")):
            remove()
            done = doctor("--instance", "--socket", str(running.socket))
            assert done.returncode == 7 and f"kill -USR2 {running.keeper_pid}" in done.stderr
            found = findings_of(folders=running.folder)["control socket"]
            assert found["level"] == "wrong" and f"kill -USR2 {running.keeper_pid}" in found["cure"]
            os.kill(running.keeper_pid, signal.SIGUSR2)
            until(running.socket.exists, "another socket")
            assert running.status("one")["pid"] == pid


def test_doctor_tells_that_the_book_is_gone() -> None:
    """Without it a killed keeper costs everything that runs: it is wrong, and no question of rights."""
    with supervisor({"one": SLEEPER}) as running:
        running.wait_state("one", "active")
        (running.folder / "r" / "book").unlink()
        assert "missing" in wrong(running)["book"]
        assert running.supctl("daemon-reexec").returncode == 0
        assert wrong(running) == {}


def test_doctor_tells_how_many_wait_for_the_next_keeper() -> None:
    """The keeper was killed: nobody answers, and what lives is counted."""
    with supervisor({"one": SLEEPER, "two": SLEEPER}) as running:
        for unit in ("one", "two"):
            running.wait_state(unit, "active")
        running.process.kill()
        running.process.wait()
        done = doctor("--instance", "--socket", str(running.socket))
        assert done.returncode == 7 and f"(pid {running.keeper_pid}) was killed; 2 of its processes live" in done.stderr
        running.start_again()


def test_doctor_tells_an_answer_that_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that was stopped answers once it is replaced: then all is well again, and that it was not is told."""
    monkeypatch.setattr(instance, "SLOW_S", -1.0)
    with supervisor({"one": SLEEPER}) as running, running.client() as client:
        told = [each.fact for each in examine(client) if each.level is Level.DEGRADED and each.topic == "instance"]
        assert len(told) == 1 and "to answer" in told[0]


def test_doctor_of_a_home_that_is_closed_to_us(tmp_path: Path) -> None:
    """Folders behind one that may not be entered are findings, not a crash."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    options: dict[str, Any] = {}
    if os.geteuid() == 0:
        options = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    done = subprocess.run(
        [SYSTEM_PYTHON, "-m", "supervisord_py", "doctor", "--json", f"--state-dir={closed}/s", f"--log-dir={closed}/l"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(msgspec.__file__).parents[1]}", "HOME": str(closed)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    closed.chmod(0o700)
    found = {each["topic"]: each for each in json.loads(done.stdout)["findings"]}
    assert {found[topic]["level"] for topic in ("state folder", "journal space")} == {"wrong"}, done.stderr


def test_doctor_names_equal_uids() -> None:
    """Units of one user can signal each other and the supervisor that runs as that user."""
    with supervisor({"one": SLEEPER, "two": SLEEPER}) as running:
        for unit in ("one", "two"):
            running.wait_state(unit, "active")
        with running.client() as client:
            told = {each.topic: each for each in examine(client)}["signals"]
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert told.fact == f"one, two run as {user}: they can signal each other and the supervisor"
    assert told.level is Level.DEGRADED and "[service] user" in told.cure

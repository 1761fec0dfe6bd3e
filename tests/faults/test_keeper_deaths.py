"""The keeper is killed; the next ``run`` takes over what it left, starts no second copy and ends what is over."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.client import Client
from supervisord_py.host.adoption import find_processes
from supervisord_py.host.journal_reader import verify_directory
from tests.faults.chaos import read_ledger, write_units
from tests.faults.test_keeper_reexecs import PRINTERS, write_printers
from tests.integration.keeper_rig import NOBODY
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

KILLS = int(os.environ.get("SUPERVISORD_PY_KEEPER_KILLS", "8"))
SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'
TALKER = """
import os, select, signal, socket, sys
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text, os.environ["NOTIFY_SOCKET"])
signal.signal(signal.SIGUSR1, lambda *_: tell(b"READY=1\\nSTATUS=late"))
signal.signal(signal.SIGUSR2, lambda *_: os.write(1, b"still here\\n"))
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
os.write(1, b"up\\n")
while True: signal.pause()
"""


def script(folder: Path, name: str, text: str) -> str:
    """Write a script; returns the command line for a unit file. (A ``%`` in a unit file is a specifier.)"""
    (folder / name).write_text(text)
    return json.dumps(["/usr/bin/python3", "-S", str(folder / name)])


def kill_keeper(running: RunningSupervisor) -> None:
    """Kill the keeper and return when its manager is gone too."""
    manager = running.manager_pid()
    running.process.kill()
    running.process.wait()
    if manager is not None:
        until(lambda: is_gone(manager), "the manager's end")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def instance_of(running: RunningSupervisor) -> int:
    return int((running.folder / "r" / "lock").read_text().split()[1])


def events(running: RunningSupervisor, event: str, unit: str | None = None) -> list[dict[str, Any]]:
    return [record for record in running.records() if record["event"] == event and record["unit"] == unit]


@pytest.mark.parametrize("uid", [None, NOBODY])
def test_lives_go_on_under_the_next_keeper(uid: int | None) -> None:
    """Same pid and invocation, not started again; output, READY, exit status and stop are those of any life."""
    if uid is not None and os.geteuid() != 0:
        pytest.skip("needs root to become another user")

    def prepare(folder: Path) -> None:
        command = script(folder, "talker.py", TALKER)
        (folder / "units" / "web.toml").write_text(f'[service]\nexec-start = {command}\nrestart = "no"\n')
        (folder / "units" / "late.toml").write_text(f'[service]\ntype = "notify"\nexec-start = {command}\n')

    with supervisor({"idle": SLEEP}, prepare=prepare, uid=uid) as running:
        units = ("web", "late", "idle")
        for unit in ("web", "late"):
            log = running.log_folder / f"{unit}.log"
            until(lambda log=log: log.exists() and "up" in log.read_text(), f"the first word of {unit}")
        until(lambda: running.status("idle")["active_state"] == "active", "idle")
        before = {unit: running.status(unit) for unit in units}
        pids = {unit: int(status["pid"]) for unit, status in before.items()}
        assert before["late"]["active_state"] == "activating"
        instance = instance_of(running)
        for _ in range(2):
            kill_keeper(running)
            assert not any(map(is_gone, pids.values()))
            running.start_again()
            assert {unit: running.status(unit)["pid"] for unit in units} == pids
        assert {unit: running.status(unit)["invocation"] for unit in units} == {
            unit: before[unit]["invocation"] for unit in units
        }
        assert (running.status("web")["active_state"], running.status("late")["active_state"]) == (
            "active",
            "activating",
        )
        assert instance_of(running) == instance
        os.kill(pids["late"], signal.SIGUSR1)
        assert running.wait_state("late", "active")["status_text"] == "late"
        os.kill(pids["web"], signal.SIGUSR2)
        until(lambda: "still here" in (running.log_folder / "web.log").read_text(), "output after the adoption")
        os.kill(pids["web"], signal.SIGTERM)
        assert running.wait_state("web", "failed")["exit"] == {"code": 7, "signal": None}
        assert running.supctl("start", "web").returncode == 0
        assert running.status("web")["pid"] not in (None, pids["web"])
        assert running.supctl("stop", "late").returncode == 0
        assert is_gone(pids["late"])
        assert not events(running, "unit.exited", "idle")
        assert len(events(running, "unit.starting", "idle")) == 1
        assert len(events(running, "keeper.lost")) == 2
        assert running.stop() == 0
        assert is_gone(pids["idle"])
        assert not list(find_processes(instance))


def test_what_a_unit_forked_is_stopped_with_it() -> None:
    """Daemons and children of an adopted life are nobody's children: they are found by their tag, in rounds."""
    code = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
def spread(depth):
    for _ in range(2):
        if os.fork() == 0:
            if depth % 2: os.setsid()
            if depth: spread(depth - 1)
            while True: signal.pause()
spread(2)
os.write(1, b"up\\n")
signal.pause()
spread(1)
os.write(1, b"more\\n")
while True: signal.pause()
"""

    def prepare(folder: Path) -> None:
        (folder / "units" / "a.toml").write_text(f"[service]\nexec-start = {script(folder, 'a.py', code)}\n")

    with supervisor({}, prepare=prepare) as running:
        log = running.log_folder / "a.log"
        until(lambda: log.exists() and "up" in log.read_text(), "the tree")
        pid, instance = running.status("a")["pid"], instance_of(running)
        kill_keeper(running)
        running.start_again()
        os.kill(pid, signal.SIGUSR1)
        until(lambda: "more" in log.read_text(), "more of the tree")
        os.kill(pid, signal.SIGSTOP)
        assert len(list(find_processes(instance))) > 7
        assert running.supctl("stop", "a").returncode == 0
        assert not list(find_processes(instance))
        assert running.status("a")["active_state"] in ("inactive", "failed")


def test_life_that_ended_unseen_is_a_failure_and_what_it_left_is_ended() -> None:
    """No one knows how the main process ended: the policy decides, after the rest of the tree has been ended, unless
    its kill-mode lets it stay."""
    text = '[service]\nexec-start = ["sh", "-c", "sleep 1000 & exec sleep 2000"]\n'
    with supervisor({"a": text, "b": text + 'kill-mode = "process"\nrestart = "no"\n'}) as running:
        for unit in ("a", "b"):
            running.wait_state(unit, "active")
        until(lambda: len(list(find_processes(instance_of(running)))) == 4, "all four")
        mains = {unit: running.status(unit)["pid"] for unit in ("a", "b")}
        others = [p.pid for p in find_processes(instance_of(running)) if p.pid not in mains.values()]
        kill_keeper(running)
        for pid in mains.values():
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: is_gone(pid), "the end of a main process")
        running.start_again()
        until(lambda: running.status("a")["pid"] not in (None, mains["a"]), "another life")
        assert (running.status("a")["failures"], running.status("b")["result"]) == (1, "unknown")
        assert running.status("b")["active_state"] == "failed"
        assert sorted(map(is_gone, others)) == [False, True]
        (lost,) = events(running, "keeper.lost")
        assert (lost["ended"], lost["left"]) == ([], [])
        assert {(one["unit"], one["pid"]) for one in lost["unseen"]} == set(mains.items())
        assert len(events(running, "unit.exited", "b")) == 1
        for pid in [pid for pid in others if not is_gone(pid)]:
            os.kill(pid, signal.SIGKILL)


def test_adoption_review_what_was_asked_for_and_loaded_goes_on(tmp_path: Path) -> None:
    """Stopped units stay stopped, a mask and a broken file end nobody, a new text waits for its reload, a oneshot that
    remains is not run again, and a life whose process cannot carry the tag is not doubled."""
    ran = tmp_path / "ran"
    units = {
        "stopped": SLEEP,
        "masked": SLEEP,
        "broken": SLEEP,
        "changed": SLEEP,
        "untagged": SLEEP + '[limits]\nrttime = "500ms"\n',
        "once": '[service]\ntype = "oneshot"\nremain-after-exit = true\n'
        f'exec-start = ["sh", "-c", "echo x >> {ran}"]\n',
    }
    with supervisor(units) as running:
        for unit in units:
            running.wait_state(unit, "active")
        assert running.supctl("stop", "stopped").returncode == 0
        assert running.supctl("mask", "masked").returncode == 0
        (running.units / "broken.toml").write_text("[service]\nexec-strt = 1\n")
        (running.units / "changed.toml").write_text('[service]\nexec-start = ["sleep", "7"]\n')
        before = {unit: running.status(unit) for unit in units}
        kill_keeper(running)
        running.start_again()
        after = {unit: running.status(unit) for unit in units}
        for key in ("active_state", "sub_state", "pid", "invocation", "since", "restarts", "failures"):
            assert {unit: status[key] for unit, status in after.items()} == {
                unit: status[key] for unit, status in before.items()
            }, key
        assert ran.read_text() == "x\n"
        until(lambda: running.status("changed")["needs_reload"], "the mark of the changed file")
        pid = before["untagged"]["pid"]
        assert running.supctl("stop", "untagged", "masked", "broken").returncode == 0
        assert is_gone(pid)


def test_run_for_other_units_than_the_killed_keeper_had_loads_those() -> None:
    """``make run`` in a second checkout supervised the units of the first, whose keeper had been killed, and nothing
    but ``status`` said so. What lives goes on; what is loaded is what was asked for."""
    with supervisor({"old": SLEEP, "both": SLEEP}) as running:
        pids = {name: running.wait_state(name, "active")["pid"] for name in ("old", "both")}
        kill_keeper(running)
        running.units = running.folder / "others"
        running.units.mkdir()
        for name in ("both", "new"):
            (running.units / f"{name}.toml").write_text(SLEEP.replace("1000", "2000"))
        running.start_again()
        until(lambda: "active (running)" in running.supctl("status", "new").stdout, "the unit that is new")
        assert {name: running.status(name)["pid"] for name in pids} == pids
        assert running.status("both")["needs_restart"]
        assert running.status("old")["load_state"] == "not_found"


def test_two_runs_at_once_adopt_once() -> None:
    """Of two that find the same dead keeper one takes over; the other ends with a sentence and touches nothing."""
    with supervisor({"a": SLEEP}) as running:
        pid = running.wait_state("a", "active")["pid"]
        kill_keeper(running)
        command = [sys.executable, "-m", "supervisord_py", "run", str(running.units)]
        runtime = ["--runtime-dir", str(running.folder / "r")]
        folders = [
            [
                *runtime,
                "--state-dir",
                str(running.folder / f"s{number}"),
                "--log-dir",
                str(running.folder / f"l{number}"),
            ]
            for number in (1, 2)
        ]
        both = [subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) for options in folders]
        try:
            until(lambda: any(one.poll() is not None for one in both), "the end of one", 30)
            (loser,) = (one for one in both if one.poll() is not None)
            (winner,) = (one for one in both if one.poll() is None)
            assert loser.returncode == 1
            assert "Traceback" not in loser.communicate()[1]
            until(lambda: answers(running.socket), "the control socket")
            assert running.status("a")["pid"] == pid
        finally:
            for one in both:
                one.terminate()
                one.communicate(timeout=60)
        assert is_gone(pid)
        running.start_again()
        assert winner.returncode == 0


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


class Restless(threading.Thread):
    """Starts and stops units all the time; a supervisor that is dead for a while is no error."""

    def __init__(self, path: Path, units: list[str], chance: random.Random) -> None:
        super().__init__(daemon=True)
        self._path, self._units, self._chance = str(path), units, chance
        self.stopping = threading.Event()
        self.done = 0

    def run(self) -> None:
        while not self.stopping.wait(self._chance.uniform(0, 0.1)):
            verb = self._chance.choice(["Start", "Stop", "Start", "Restart"])
            try:
                with Client(self._path, timeout_s=20) as client:
                    client.call(verb, units=self._chance.sample(self._units, 2), wait=True, plan=False)
                self.done += 1
            except Exception:  # noqa: BLE001  whom it asked was killed
                continue


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
def test_keeper_killed_again_and_again_runs_nothing_twice() -> None:
    """Units start, stop, notify, crash and print while every keeper is killed; no life is doubled or lost."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    chance = random.Random(seed)
    kinds: dict[str, str] = {}

    def prepare(folder: Path) -> None:
        (folder / "ledgers").mkdir()
        kinds.update(write_units(folder / "units", folder / "ledgers", chance))
        write_printers(folder / "units", folder / "ledgers")

    with supervisor({}, prepare=prepare) as running:
        ledgers = running.folder / "ledgers"
        stable = [name for name, kind in kinds.items() if kind == "stable"]
        until(lambda: all((ledgers / f"{name}.ledger").exists() for name in stable), "the first start")
        until(lambda: all(running.status(name)["active_state"] == "active" for name in stable), "all stable ones")
        instance = instance_of(running)
        operator = Restless(running.socket, [name for name, kind in kinds.items() if kind == "toggled"], chance)
        operator.start()
        for _ in range(KILLS):
            if chance.random() < 0.6:
                with running.client() as client:
                    client.call("Ping")
            moment = chance.uniform(0, 0.3) if chance.random() < 0.3 else chance.uniform(0.2, 2.0)
            threading.Event().wait(moment)
            kill_keeper(running)
            threading.Event().wait(chance.choice([0, chance.uniform(0, 0.5)]))
            running.start_again()
            assert running.process.poll() is None, running.output()[-2000:]
        operator.stopping.set()
        operator.join(90)
        assert not operator.is_alive(), "a client waits for ever"
        until(lambda: not lies(running, instance), f"nothing is told that is not so: {lies(running, instance)}", 60)
        wrong: list[str] = []
        printed = [(running.log_folder / f"printer{number}.log").read_text().splitlines() for number in range(PRINTERS)]
        assert running.stop() == 0
        wrong += [f"left behind: {process}" for process in find_processes(instance)]
        for name, kind in kinds.items():
            lines = read_ledger(ledgers / f"{name}.ledger")
            wrong += [f"{name}: a second copy lived: {line}" for line in lines if line[0] == "double"]
            starts = sum(line[0] == "start" for line in lines)
            if kind == "stable" and starts != 1:
                wrong.append(f"{name}: a stable unit was started {starts} times")
        for number, lines_ in enumerate(printed):
            if lines_ != [f"line {at}" for at in range(1, len(lines_) + 1)]:
                wrong.append(f"printer{number}: lines are missing, doubled or out of order")
        lost = events(running, "keeper.lost")
        adopted = sum(len(record["adopted"]) for record in lost)
        exits = [r for r in running.records() if r["event"] == "unit.exited" and r["role"] == "main"]
        unknown = [r for r in exits if r.get("code") is None and r.get("signal") is None]
        print(f"{adopted} lives adopted, {operator.done} commands, {len(exits)} exits, {len(unknown)} unknown")
        assert verify_directory(running.journal_folder).ok
        assert not wrong, f"seed {seed}: " + "\n".join(wrong[:50])
        assert adopted >= KILLS * len(stable) * 0.9
        assert "internal error" not in running.output()


def lies(running: RunningSupervisor, instance: int) -> list[str]:
    """Compare what is told with the processes that there are; one that comes or goes meanwhile looks like a lie."""
    with running.client() as client:
        units: list[dict[str, Any]] = client.call("Status", units=[], lines=0)["units"]
    living = {process.pid for process in find_processes(instance)}
    told = {status["name"]: status for status in units}
    wrong = [
        f"{name} is told to run as {status['pid']}, which is no living process of ours"
        for name, status in told.items()
        if status["pid"] is not None and status["pid"] not in living
    ]
    return wrong + [
        f"{name} is a stable unit and {status['active_state']}"
        for name, status in told.items()
        if name.startswith("stable") and status["active_state"] != "active"
    ]

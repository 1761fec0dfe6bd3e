"""The same rows with real processes: one supervisor has all their units, and several are acted at a time."""

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.client import Client, ControlError
from supervisord_py.ctl.replies import unit_from_wire
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.values import parse_signal
from tests.compat.rows import Matrix, Row, judge, judged
from tests.compat.scenarios import Play, Setting, play
from tests.compat.theatre import Seen
from tests.compat.translate import load, translate_all
from tests.integration.supervisor_rig import SYSTEM_PYTHON, RunningSupervisor, supervisor, until

pytestmark = [pytest.mark.xdist_group("systemd-rows"), pytest.mark.slow]

SHORT_S = 2.0
"""A time-out that has to run out: what a process does before takes milliseconds, when busy a few hundred [s]."""

SETTLED_S = 30.0
NEVER_CAME = "what the row says"
AT_A_TIME = 6

NOT_SHOWN = {
    "types/RestartSec=1 timing": "takes as many seconds as it has restarts",
    "stop/FinalKillSignal=SIGQUIT/ignoring: main SIGTERM,SIGINT,SIGQUIT,SIGHUP, "
    "children SIGTERM,SIGINT,SIGQUIT,SIGHUP": "the keeper repeats the final signal, who knows how often",
    **{
        f"dependency/Upholds{after}/A exits {code} while both run": "an instant between an end and the next start"
        for after in ("", " and After")
        for code in (0, 1)
    },
}
"""Rows that are left to the simulated world."""

DUMP_SELF = Path(__file__).parent / "dump_self.py"
CLI_UNITS = {"q1": "ExecStart=/bin/sleep infinity\n", "q2": "ExecStart=/bin/false\n"}
CODES = {("start", 5): 4, ("stop", 5): 4, ("restart", 5): 4, ("reload", 3): 1}
"""Exit codes that have another number with us: no such unit is 4, what cannot be done is 1."""

SYSTEMD_ALONE = ("JOURNAL_STREAM", "SYSTEMD_EXEC_PID")
OURS_ALONE = re.compile("SUPERVISORD_PY_.*|HOME|USER|LOGNAME|SHELL")
"""What we add: systemd leaves out who the user is where no User= is written, and homes that do not exist."""

SHAPES = {"INVOCATION_ID": "<32 hex>", "NOTIFY_SOCKET": "<path>", "WATCHDOG_PID": "<pid>"}
OTHER_MACHINES_NOFILE = 20000
THEIR_OUTPUT = "/run/envx.out"
PASSED = ("/usr/bin/env", "TERM=xterm", "container=systemd-nspawn")
"""What the supervisor has in its own environment, as systemd had there."""
NO_SYNC = '[journal]\nsync = "never"\n'


def setting_name(row: Row) -> str:
    return f"s{judged(Matrix.SETTINGS).index(row)}"


def setting_text(row: Row) -> str:
    return re.sub(r"TimeoutStartSec=\d+", f"TimeoutStartSec={SHORT_S:g}", row.data["directives"])


ROWS = [
    row
    for row in judged(Matrix.RESTART, Matrix.DEPENDENCY, Matrix.STOP, Matrix.TYPES, Matrix.PHASES)
    if row.id not in NOT_SHOWN
]


class Stadium:
    """The theatre of real processes."""

    def __init__(self, client: Client, prefix: str = "") -> None:
        self._client = client
        self._prefix = prefix
        self._fifos: list[int] = []

    def ask(self, verb: str, *units: str, **arguments: Any) -> int:
        try:
            self._client.call(verb.title(), units=list(units), plan=False, wait=True, **arguments)
        except ControlError:
            return 1
        return 0

    def kill(self, unit: str, signal: str, whom: str = "all") -> None:
        self._client.call("Kill", units=[unit], signal=signal, whom=whom, plan=False)

    def murder(self, unit: str, signal: str) -> None:
        pid = self.look(unit).pid
        assert pid is not None, f"{unit} has no main process"
        os.kill(pid, parse_signal(signal))

    def touch(self, path: str) -> None:
        Path(path).touch()
        # Open for both, so that it holds the word until somebody reads it.
        fifo = os.open(f"{path}.fifo", os.O_RDWR | os.O_NONBLOCK)
        self._fifos.append(fifo)
        os.write(fifo, b"go\n")

    def settle(self, expected: Callable[[], bool] | None = None, seconds: float = 10) -> None:
        def is_there() -> bool:
            return (expected is None or expected()) and not self.is_busy()

        try:
            until(is_there, NEVER_CAME, SETTLED_S)
        except AssertionError as error:
            # What is there instead is told by the comparison.
            if NEVER_CAME not in str(error):
                raise

    def is_busy(self) -> bool:
        return any(job["unit"].startswith(self._prefix) for job in self._client.call("Jobs")["jobs"])

    def look(self, unit: str) -> Seen:
        try:
            (raw,) = self._client.call("Status", units=[unit], lines=0)["units"]
        except ControlError as error:
            assert error.name == "NoSuchUnit", error.parameters
            return Seen("inactive", "dead", "success", "", None, 0, "")
        found = unit_from_wire(raw)
        ended = found["exit"] or {}
        main_exit = ""
        if ended:
            code, name = ended.get("code"), ended.get("signal")
            main_exit = f"killed:{parse_signal(name)}" if name is not None else f"exited:{code}"
        return Seen(
            found["active_state"],
            found["sub_state"],
            found["result"],
            main_exit,
            found["pid"],
            found["restarts"],
            found["status_text"] or "",
        )

    def alive(self, unit: str, log: str) -> list[str]:
        return sorted(role for role, pid in self.left_alive(log))

    def left_alive(self, log: str) -> list[tuple[str, int]]:
        """Which of the processes that said ``ROLE up PID`` live."""
        up = [line.split() for line in self.lines(log) if " up " in line]
        return [(role, int(pid)) for role, _, pid in up if _is_alive(int(pid))]

    def lines(self, path: str) -> list[str]:
        try:
            return Path(path).read_text().splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        for fifo in self._fifos:
            os.close(fifo)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


class Season:
    """The supervisor that has the units of all plays, and what was seen in those that were wanted."""

    def __init__(self, running: RunningSupervisor, folder: Path) -> None:
        self.running = running
        self.folder = folder
        """Where the processes write."""
        self.plays: dict[str, Play] = {}
        self.seen: dict[str, Future[dict[str, Any]]] = {}
        self._own = threading.local()
        self._clients: list[Client] = []

    def act(self, acted: Play, prefix: str) -> dict[str, Any]:
        """Act a play from beginning to end; returns what was seen."""
        stadium = self.stadium(prefix)
        try:
            return acted.perform(stadium, load(acted.texts))
        finally:
            stadium.close()
            if acted.row.matrix is Matrix.STOP:
                # What systemd leaves behind (KillMode=process) is left here too, and ended by the test.
                for text in acted.texts.values():
                    for log in re.findall(r"stop-matrix (\S+)", text):
                        for _, pid in stadium.left_alive(log):
                            os.kill(pid, signal.SIGKILL)

    def stadium(self, prefix: str = "") -> Stadium:
        """Return a theatre with a client of this thread's own."""
        if not hasattr(self._own, "client"):
            self._own.client = self.running.client(timeout_s=120)
            self._clients.append(self._own.client)
        return Stadium(self._own.client, prefix)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture(scope="module")
def season(request: pytest.FixtureRequest) -> Iterator[Season]:
    wanted = {item.callspec.params["row"].id for item in request.session.items if "season" in item.fixturenames}
    with tempfile.TemporaryDirectory(prefix="spy-rows-") as name:
        folder = Path(name)
        # Some units are run by other users.
        folder.chmod(0o777)
        shutil.copy(DUMP_SELF, folder)
        python = SYSTEM_PYTHON if Path(SYSTEM_PYTHON).exists() else sys.executable
        plays = {row.id: play(row, Setting(f"r{index}-", name, SHORT_S, python)) for index, row in enumerate(ROWS)}
        texts = {unit: text for each in plays.values() for unit, text in each.texts.items() if is_unit_name(unit)}
        for row in judged(Matrix.SETTINGS):
            unit = setting_name(row)
            command = f"{python} {folder}/{DUMP_SELF.name} {folder}/{unit}.json"
            own = setting_text(row).replace(THEIR_OUTPUT, f"{folder}/{Path(THEIR_OUTPUT).name}")
            texts[unit] = f"{own}\nExecStart={command}\n"
        for text in texts.values():
            for fifo in re.findall(r"\S+\.fifo", text):
                os.mkfifo(fifo)
            for path in map(Path, re.findall(r"ExecStart=(\S+badfmt)", text)):
                path.write_text("this is no program\n")
                path.chmod(0o755)
        units = translate_all(texts | CLI_UNITS)
        units["q1"] = units["q1"].replace("enabled = false", "enabled = true")
        with supervisor(units, settings=NO_SYNC, prefix=PASSED) as running, ThreadPoolExecutor(AT_A_TIME) as pool:
            season = Season(running, folder)
            for index, row in enumerate(ROWS):
                season.plays[row.id] = plays[row.id]
                if row.id in wanted:
                    season.seen[row.id] = pool.submit(season.act, plays[row.id], f"r{index}-")
            try:
                yield season
            finally:
                pool.shutdown(cancel_futures=True)
                season.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_real_processes_do_what_they_did_under_systemd(row: Row, season: Season) -> None:
    """The units of the row come to the same end when they are run."""
    judge(row, season.plays[row.id].wanted, season.seen[row.id].result())


@pytest.mark.parametrize("row", judged(Matrix.CLI), ids=lambda row: row.id)
def test_supctl_exits_as_systemctl_did(row: Row, season: Season) -> None:
    """The codes that scripts know; where ours has another number for the same (``CODES``) it is that one."""
    verb, *units = row.id.partition("/")[2].split()
    stadium = season.stadium("q")
    stadium.settle(lambda: stadium.look("q1").active == "active")
    if stadium.look("q2").active != "failed":
        stadium.ask("start", "q2")
        stadium.settle(lambda: stadium.look("q2").active == "failed")
    done = season.running.supctl(verb, *units)
    code = row.data["rc"]
    wanted: dict[str, Any] = {"rc": CODES.get((verb, code), code)}
    seen: dict[str, Any] = {"rc": done.returncode}
    if verb in ("is-active", "is-failed") and units in (["q1"], ["q2"]):
        wanted["out"], seen["out"] = row.data["out"], done.stdout.split()
    judge(row, wanted, seen)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the rows change users")
@pytest.mark.parametrize("row", judged(Matrix.SETTINGS), ids=lambda row: row.id)
def test_a_process_is_given_what_systemd_gave_it(row: Row, season: Season) -> None:
    """Environment, ids, folder, umask and limits, as far as the row speaks of them."""
    unit = setting_name(row)
    stadium = season.stadium(unit)
    stadium.ask("start", unit)
    file = season.folder / f"{unit}.json"
    stadium.settle(file.exists)
    given = json.loads(file.read_text())
    observed = dict(row.data["observed"])
    wanted: dict[str, Any] = {}
    for key in (
        "cwd",
        "umask",
        "uid",
        "gid",
        "groups",
        "is_session_leader",
        "is_pgrp_leader",
        "nnp",
        "nice",
        "sched",
        "ionice",
        "uname",
        "timerslack",
    ):
        if key in observed:
            wanted[key] = observed[key]
    if "env" in observed:
        wanted["env"] = {name: value for name, value in observed["env"].items() if name not in SYSTEMD_ALONE}
        given["env"] = {
            name: SHAPES.get(name, value)
            for name, value in given["env"].items()
            if name in wanted["env"] or not OURS_ALONE.fullmatch(name)
        }
        wanted["env"] = {name: SHAPES.get(name, value) for name, value in wanted["env"].items()}
    if "caps" in observed and given["uid"][0] != 0:
        # What root has is the container's.
        wanted["caps"] = {name: value for name, value in observed["caps"].items() if name != "CapBnd"}
    if "fds" in observed:
        wanted["stdin"], wanted["fds"] = observed["fds"]["0"], sorted(map(int, observed["fds"]))
        if observed["fds"]["1"] == THEIR_OUTPUT:
            wanted["outputs"] = [Path(THEIR_OUTPUT).name] * 2
            given["outputs"] = [Path(path).name for path in given["outputs"]]
    if "Limit" in row.data["directives"]:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        soft, hard = observed["limits"]["NOFILE"]
        # More than the machine allows is cut to that, here as there.
        wanted["limits"] = {"NOFILE": [most, most] if soft == OTHER_MACHINES_NOFILE else [soft, hard]}
        if "LimitCORE" in row.data["directives"]:
            wanted["limits"]["CORE"] = observed["limits"]["CORE"]
        given["limits"] = {name: given["limits"][name] for name in wanted["limits"]}
    judge(row, wanted, {name: given[name] for name in wanted})

"""Agents that once went wrong, each in a process of its own as the supervisor starts it; and those of a rig."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent, indent

import pytest

from supervisord_py.agent import Message
from supervisord_py.agent.link import SupervisorLink
from supervisord_py.agent.reports import report_error
from supervisord_py.keeper.notify import DATAGRAM_MAX
from supervisord_py.testing import AgentRig
from tests.unit.agent.test_agent_cycles import KINDS, Counter, acting

START = Path(__file__).parents[3] / "supervisord_py" / "agent" / "start.py"
HEAD = """
import asyncio, os, signal, sys, threading, time
from supervisord_py.agent import Agent, Fatal, Plugin
"""
PATIENCE_S = 30.0
TIMED_OUT = "X_ERROR=the cycle has taken longer than 0.1 s (cycle-timeout)"


class Ran:
    """What an agent told, printed and ended with; it was asked to end when it had told ``stop_at`` so often."""

    def __init__(
        self, folder: Path, source: str, stop_at: str = "", *, count: int = 1, arguments: Sequence[str] = ()
    ) -> None:
        (folder / "under_test.py").write_text(HEAD + dedent(source))
        self.told: list[str] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(f"{folder}/n")
            notify.settimeout(PATIENCE_S)
            environment = {"NOTIFY_SOCKET": f"{folder}/n", "PATH": "/usr/bin:/bin"}
            command = [sys.executable, str(START), "under_test:Tested", f"--path={folder}", *arguments]
            with open(folder / "out", "wb") as out:
                process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
            try:
                while stop_at and sum(each.startswith(stop_at) for each in self.told) < count:
                    self._hear(notify)
                if stop_at:
                    process.send_signal(signal.SIGTERM)
                self._hear_until_its_end(notify, process)
                self.code = process.wait(PATIENCE_S)
            finally:
                process.kill()
                process.wait()
            notify.setblocking(False)
            try:
                while True:
                    self._hear(notify)
            except BlockingIOError:
                pass
        self.output = (folder / "out").read_text()

    def _hear_until_its_end(self, notify: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """As a supervisor does: a queue that nobody empties would hold up who tells something to the last."""
        deadline = time.monotonic() + PATIENCE_S
        notify.settimeout(0.05)
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                self._hear(notify)

    def _hear(self, notify: socket.socket) -> None:
        self.told += notify.recv(65536).decode().split("\n")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import urllib.error\nraise urllib.error.HTTPError('u', 404, 'not there', {}, None)", 1),
        ("problem = OSError()\nproblem.code = 'a word'\nraise problem", 1),
        ("raise Fatal('no disk', code=0)", 1),
        ("raise Fatal('no disk', code=256)", 1),
        ("raise Fatal('no disk', code=255)", 255),
    ],
    ids=["of HTTP", "a word", "success", "too large", "the largest"],
)
def test_the_code_of_an_exception_was_taken_for_an_exit_code(tmp_path: Path, source: str, expected: int) -> None:
    """A failure was exit code 148, or success; or nothing was torn down, since the code was no number."""
    body = indent(source, " " * 12)
    ran = Ran(
        tmp_path, f"class Tested(Agent):\n    def setup(self):\n{body}\n    def teardown(self): print('torn down')"
    )
    assert ran.code == expected, ran.output
    assert "torn down" in ran.output


def test_a_text_that_ends_the_process_was_not_printed(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "class Tested(Agent):\n    def run_cycle(self): sys.exit('no licence')")
    assert (ran.code, ran.output) == (1, "no licence\n")


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_cycle_that_swallowed_its_time_out_was_a_success(tmp_path: Path, kind: str) -> None:
    wait = "await asyncio.Event().wait()" if kind == "async def" else "threading.Event().wait()"
    ran = Ran(
        tmp_path,
        f"""
        class Tested(Agent):
            every, cycle_timeout = 0.01, 0.1
            {kind} run_cycle(self):
                try: {wait}
                except BaseException: pass
        """,
        "X_ERROR=",
    )
    assert ran.code == 0, ran.output
    assert TIMED_OUT in ran.told
    assert not any(each.startswith("X_OK") for each in ran.told)


def test_without_a_pause_a_coroutine_that_never_awaits_could_not_be_stopped(tmp_path: Path) -> None:
    """The loop never came to hear of the signal."""
    ran = Ran(tmp_path, "class Tested(Agent):\n    every = 0\n    async def run_cycle(self): pass", "X_OK", count=3)
    assert ran.code == 0, ran.output
    assert "STOPPING=1" in ran.told


@pytest.mark.parametrize("stderr", ["__import__('io').StringIO()", "None"])
def test_an_agent_without_a_standard_error_failed_in_every_cycle(tmp_path: Path, stderr: str) -> None:
    """With a time limit, whose end was to be written there; and where there was none, an error ended the process."""
    ran = Ran(
        tmp_path,
        f"""
        class Tested(Agent):
            every, cycle_timeout, cycles = 0.01, 60, 0
            def setup(self): sys.stderr = {stderr}
            def run_cycle(self):
                self.cycles += 1
                if self.cycles == 1: raise ValueError("the first")
        """,
        "X_OK",
    )
    assert ran.code == 0, ran.output
    assert [each for each in ran.told if each.startswith("X_ERROR")] == ["X_ERROR=ValueError: the first"]


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_signal_to_a_child_was_taken_for_the_agent(tmp_path: Path, kind: str) -> None:
    """Children inherit handlers: SIGTERM did not end them, and told the event loop of the agent to stop."""
    ran = Ran(
        tmp_path,
        f"""
        class Tested(Agent):
            every = 0.01
            {kind} run_cycle(self):
                child = os.fork()
                if not child:
                    signal.pause()
                    os._exit(1)
                os.kill(child, signal.SIGTERM)
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        "X_OK",
        count=3,
    )
    assert ran.code == 0, ran.output
    assert set(ran.output.split()) == {"-15"}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_thread_that_was_left_kept_an_agent_for_ever(tmp_path: Path, kind: str) -> None:
    """It had torn down, and was active all the same."""
    ran = Ran(
        tmp_path,
        f"""
        from supervisord_py.agent import leaving
        leaving.THREADS_S = 0.2

        class Tested(Agent):
            {kind} run_cycle(self):
                threading.Thread(target=threading.Event().wait, name="the hung one").start()
                raise Fatal("over", code=7)
        """,
    )
    assert ran.code == 7
    assert ran.output.endswith("ended although these threads are left: the hung one\n")


def test_a_coroutine_that_no_one_awaited_was_a_good_cycle(tmp_path: Path) -> None:
    """A decorator hides that it is one."""
    ran = Ran(
        tmp_path,
        """
        async def work(agent): pass
        class Tested(Agent):
            every = 0.01
            def run_cycle(self): return work(self)
        """,
        "X_ERROR",
    )
    assert "X_ERROR=TypeError: Tested.run_cycle is no coroutine and returned one" in "".join(ran.told)
    assert not any(each.startswith("X_OK") for each in ran.told)
    assert "never awaited" not in ran.output


def test_of_two_plugins_of_one_name_the_first_was_forgotten(tmp_path: Path) -> None:
    source = """
    class Tested(Agent): pass
    class One(Plugin): name = "cache"
    class Two(Plugin): name = "cache"
    """
    ran = Ran(tmp_path, source, arguments=["--plugin=under_test:One", "--plugin=under_test:Two"])
    assert ran.code == 78
    assert "two are called cache: set the name of under_test:Two to another one" in ran.output


def test_the_end_of_another_task_was_taken_for_the_agents_own() -> None:
    """It ended the process, where an exception of a cycle is an error."""

    class Tested(Counter):
        async def run_cycle(self) -> None:  # type: ignore[override]
            task = asyncio.create_task(asyncio.Event().wait())
            await asyncio.sleep(0)
            task.cancel()
            await task

    with AgentRig(Tested) as rig:
        rig.cycle(2)
        assert rig.errors == ["CancelledError"] * 2


def repeat(rig: AgentRig[Counter], messages: int) -> None:
    """Have an agent make cycles as its runner does, until it stops; so many messages have come before."""
    rig.link.has_bus = True
    rig.link.inbox.extend(Message(seq, "other", "news", "agent", {}) for seq in range(messages))
    rig._do(rig._cycles._repeat)


@KINDS
def test_without_a_pause_messages_were_never_taken(base: type[Counter]) -> None:
    """With ``every = 0`` the next cycle is always due."""
    taken: list[int] = []

    def stop_with_the_last(agent: Counter) -> None:
        if len(taken) == 3 or agent.cycles > 10:
            agent.stop()

    def take(agent: Counter, message: Message) -> None:
        taken.append(message.seq)

    with AgentRig(acting(base, stop_with_the_last, every=0, on_message=take)) as rig:
        repeat(rig, 3)
    assert taken == [0, 1, 2]


@KINDS
def test_an_agent_with_much_mail_did_not_stop(base: type[Counter]) -> None:
    """What had come was all taken first, in an event loop."""

    def take(agent: Counter, message: Message) -> None:
        agent.stop()

    with AgentRig(acting(base, lambda agent: None, every=60, on_message=take)) as rig:
        repeat(rig, 3)
        assert rig.agent.cycles == 1
        assert sum("X_PROGRESS" in each for each in rig.link.told) == 2


@pytest.mark.parametrize(
    "text", ["\u20ac" * 3000, "\\\\" * 3000, "a\0b", "\ud800"], ids=["euros", "\\", "zero", "half"]
)
def test_an_error_with_a_long_text_was_never_counted(tmp_path: Path, text: str) -> None:
    """Its datagram was longer than the supervisor takes, or had a zero byte in it, and was dropped as a whole."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{tmp_path}/n")
        link = SupervisorLink({"NOTIFY_SOCKET": f"{tmp_path}/n"})
        report_error(link, ValueError(text))
        link.close()
        told = notify.recv(65536)
    assert len(told) <= DATAGRAM_MAX and b"\0" not in told
    error, traceback = told.split(b"\n")
    assert error.startswith(b"X_ERROR=ValueError: ")
    assert traceback.startswith(b"X_TRACEBACK=")

"""supctl run --pty: a terminal lent to a unit, and given back as it was."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.supervisor_rig import AS_USER, ROOT, SYSTEM_PYTHON, RunningSupervisor, supervisor, until

WEB = '[service]\nexec-start = ["sleep", "1000"]\n'


class Person:
    """Somebody at a terminal who has typed ``supctl run --pty``."""

    def __init__(self, running: RunningSupervisor, *arguments: str, uid: int | None = None) -> None:
        self.master, slave = os.openpty()
        self._set_size(slave, 40, 100)
        python, environment = sys.executable, os.environ | {"TERM": "vt100"}
        if uid is not None:
            python = SYSTEM_PYTHON
            environment |= {"PYTHONPATH": f"{ROOT}:{Path(msgspec.__file__).parents[1]}"}
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [python, "-m", "supervisord_py.ctl.cli", "--socket", str(running.socket), "run", "--pty", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.slave = slave
        self.shown = b""

    def _set_size(self, descriptor: int, rows: int, columns: int) -> None:
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        self._set_size(self.master, rows, columns)

    def read(self) -> None:
        while select.select([self.master], [], [], 0.02)[0]:
            try:
                self.shown += os.read(self.master, 65536)
            except OSError:
                return

    def sees(self, text: str) -> None:
        """Wait until this is shown."""

        def is_shown() -> bool:
            self.read()
            return text.encode() in self.shown

        end = time.monotonic() + 30
        while not is_shown():
            assert (time.monotonic() < end and self.process.poll() is None) or is_shown(), (text, self.shown)

    def types(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ends(self) -> int:
        """Return the exit code; the terminal is as it was."""

        def is_over() -> bool:
            self.read()
            return self.process.poll() is not None

        until(is_over, f"the end of supctl: {self.shown!r}", 30)
        self.read()
        assert termios.tcgetattr(self.slave) == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@contextlib.contextmanager
def person(running: RunningSupervisor, *arguments: str, uid: int | None = None) -> Iterator[Person]:
    found = Person(running, *arguments, uid=uid)
    try:
        yield found
    finally:
        found.close()


def is_gone(running: RunningSupervisor, unit: str) -> Any:
    return running.supctl("status", unit).returncode == 4


NO_TERMINAL = os.O_RDONLY | os.O_NOCTTY
TALK = """
exec 3</dev/tty; echo term=$TERM; stty size
trap 'echo size $(stty size)' WINCH
trap 'echo interrupted' INT
while read -r line; do test "$line" = end && exit 5; echo "got $line"; done
"""


@pytest.mark.parametrize("uid", AS_USER)
def test_a_terminal_is_lent_and_given_back(uid: int | None) -> None:
    """It is the controlling terminal of the process, with our size and kind; keys go to it, Ctrl-C too; so do changes
    of the size; the code is its own, and the modes of the terminal here are what they were."""
    with supervisor({"web": WEB}, uid=uid) as running, person(running, "-u", "talk", "bash", "-c", TALK, uid=uid) as me:
        me.sees("term=vt100\r\n40 100\r\n")
        assert termios.tcgetattr(me.slave)[3] & termios.ICANON == 0
        me.types("hello\r")
        me.sees("got hello")
        me.types("\x03")
        me.sees("interrupted")
        pid = running.status("talk")["pid"]
        assert os.readlink(f"/proc/{pid}/fd/2").startswith("/dev/pts/")
        me.resize(20, 50)
        with open(f"/proc/{pid}/fd/2", "rb", buffering=0, opener=lambda path, _: os.open(path, NO_TERMINAL)) as inner:
            until(lambda: fcntl.ioctl(inner, termios.TIOCGWINSZ, bytes(4)) == struct.pack("2H", 20, 50), "the size")
        # The shell looks at its traps when it has read a line.
        me.types("more\r")
        me.sees("size 20 50")
        me.types("end\r")
        assert me.ends() == 5


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_the_terminal_becomes_that_of_the_units_user() -> None:
    """It is given to who the process runs as, who could not open it again otherwise; a supervisor that may not open it
    at all says so before anything is started."""
    with supervisor({"web": WEB}) as running:
        with person(running, "--uid", "nobody", "sh", "-c", "id -un; stat -c %U $(tty); exit 5") as me:
            me.sees("nobody\r\nnobody\r\n")
            assert me.ends() == 5
    with supervisor({"web": WEB}, uid=65534) as running, person(running, "true") as me:
        assert me.ends() == 2
        assert b"use supctl as that user" in me.shown


def test_much_output_comes_whole_and_last_words_too() -> None:
    """What was written last is shown, however soon the process has ended."""
    with supervisor({"web": WEB}) as running:
        with person(running, "-G", "sh", "-c", "seq 20000; echo the very last; exit 3") as me:
            assert me.ends() == 3
            lines = me.shown.replace(b"\r", b"").split(b"\n")
        assert lines == [*(b"%d" % number for number in range(1, 20001)), b"the very last", b""]
        with person(running, "-G", "/nonexistent") as me:
            assert me.ends() == 125
            assert b"never started" in me.shown


def test_the_unit_is_stopped_when_its_terminal_goes() -> None:
    """By the keys that leave it, by a signal, by kill -9 of supctl; the modes come back whenever they can."""
    with supervisor({"web": WEB}) as running:
        stubborn = ("sh", "-c", "trap '' HUP; echo here; sleep 1000; sleep 1000")
        with person(running, "-u", "left", *stubborn) as me:
            me.sees("here")
            me.types("\x1d\x1d\x1d")
            assert me.ends() == 129
            assert b"disconnected" in me.shown
        until(lambda: is_gone(running, "left"), "its end")
        for number in (signal.SIGTERM, signal.SIGHUP):
            with person(running, "-u", "ended", *stubborn) as me:
                me.sees("here")
                me.process.send_signal(number)
                assert me.ends() == 128 + number
            until(lambda: is_gone(running, "ended"), "its end")
        with person(running, "-u", "killed", *stubborn) as me:
            me.sees("here")
            me.process.kill()
            until(lambda: is_gone(running, "killed"), "its end")


def test_a_terminal_outlives_the_manager() -> None:
    """The process keeps it, and whoever waits waits for the next manager; the end is told once."""
    with supervisor({"web": WEB}) as running, person(running, "-u", "talk", "bash", "-c", TALK) as me:
        me.sees("40 100")
        running.kill_manager()
        running.wait_state("talk", "active")
        me.types("hello\r")
        me.sees("got hello")
        me.types("end\r")
        assert me.ends() == 5
        assert (
            len([each for each in running.records() if each["event"] == "unit.starting" and each["unit"] == "talk"])
            == 1
        )

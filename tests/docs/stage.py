"""Where a page is played: a home of its own, a shell that keeps its folder, a supervisor that ends with the page."""

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supervisord_py.ctl.client import Client
from supervisord_py.doctor.findings import Level
from supervisord_py.doctor.instance import examine
from tests.docs.pages import ROOT, Typed, is_shown
from tests.integration.supervisor_rig import INVARIANTS_S, STOP_S, until

SHOWS_S = 30.0
"""How long a command that only looks may take to see what the page shows."""
COMMAND_S = 60.0
LOOKS = ("status", "why", "lives", "logs", "journal", "health", "list", "jobs", "show", "cat", "deps")
_SUPERVISOR = """#!/bin/sh
folders="--config {home}/supervisord.toml --state-dir {home}/s"
case $1 in
    run) shift; set -- run $folders --runtime-dir {home}/r --log-dir {home}/l "$@" ;;
    check) shift; set -- check $folders "$@" ;;
esac
exec {python} -m supervisord_py "$@"
"""
_PYTEST = '#!/bin/sh\nexec {python} -B -m pytest -p no:cacheprovider "$@"\n'
_SUPCTL = '#!/bin/sh\nexec {python} -m supervisord_py.ctl.cli "$@"\n'
_MAKE = """#!/bin/sh
test "$*" = run && exec supervisord-py run units
test "$*" = fleet && exec {python} units/fleet/run.py run/fleet
echo "make $*?" >&2; exit 2
"""
_PYTHON = '#!/bin/sh\nexec {python} "$@"\n'
"""``supervisord-py`` with folders of this page, so that nothing of this machine is touched; what ``make run`` does."""


class Stage:
    """The shell of one page. Files of the page are where it says; ``~`` and ``/home/you`` are ``home``."""

    def __init__(self, home: Path, patience_s: float) -> None:
        self.home = home
        self.folder = home
        self._patience_s = patience_s
        self.socket = home / "r" / "control.sock"
        self._running: subprocess.Popen[bytes] | None = None
        self._terminal = bytearray()
        programs = home / ".venv" / "bin"
        programs.mkdir(parents=True)
        for name, text in (
            ("supervisord-py", _SUPERVISOR),
            ("supctl", _SUPCTL),
            ("make", _MAKE),
            ("pytest", _PYTEST),
            ("python", _PYTHON),
        ):
            (programs / name).write_text(text.format(home=home, python=shlex.quote(sys.executable)))
            (programs / name).chmod(0o755)
        (home / "supervisord.toml").touch()
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "SUPERVISORD_PY"))}
        self.environment = keep | {
            "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "SUPERVISORD_PY_SOCKET": str(self.socket), "NO_COLOR": "1", "LC_ALL": "C.UTF-8",
        }  # fmt: skip

    def write(self, name: str, text: str) -> Path:
        """Write a file of the page, below the folder that the shell is in."""
        path = Path(name.replace("~", str(self.home), 1)) if name.startswith("~") else self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def play(self, typed: Typed) -> str:
        """Type a command; returns what is seen. What only looks is typed until it sees what the page shows.

        Raises:
            AssertionError: The page shows something else.
        """
        command = typed.command.strip()
        if command in ("make run", "make fleet", "supervisord-py run units") or command.startswith(
            "supervisord-py run "
        ):
            return self._run(typed)
        words = command.replace(".venv/bin/", "").split()
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = self._shell(command)
            return is_shown(typed.shown, seen, str(self.home))

        if words[0] == "supctl" and words[1] in LOOKS:
            with suppress(AssertionError):
                until(is_there, "what the page shows", self._patience_s)
        else:
            is_there()
        return seen

    def _shell(self, command: str) -> str:
        told, tell = os.pipe()
        try:
            done = subprocess.run(
                ["bash", "-c", f"{command}\ncode=$?; pwd >&{tell}; exit $code"], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                timeout=COMMAND_S, check=False, pass_fds=(tell,),
            )  # fmt: skip
            os.set_blocking(told, False)
            with suppress(BlockingIOError):
                self.folder = Path(os.read(told, 4096).decode().rstrip("\n"))
        finally:
            os.close(told)
            os.close(tell)
        return done.stdout

    def _run(self, typed: Typed) -> str:
        """Start the supervisor on a terminal of its own, which shows what the page shows sooner or later."""
        assert self._running is None, "one supervisor a page"
        ours, its = pty.openpty()
        command = ["bash", "-c", f"exec {typed.command}"]
        self._running = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()
        until(lambda: self.socket.exists() or self._ended(), "the control socket", SHOWS_S)
        with suppress(AssertionError):
            until(lambda: is_shown(typed.shown, self._seen(), str(self.home)), "what the page shows", self._patience_s)
        return self._seen()

    def _seen(self) -> str:
        return self._terminal.decode(errors="replace").replace("\r\n", "\n")

    def _ended(self) -> bool:
        return self._running is None or self._running.poll() is not None

    def _read(self, terminal: int) -> None:
        with suppress(OSError):
            while select.select([terminal], [], []) and (data := os.read(terminal, 65536)):
                self._terminal += data
        os.close(terminal)

    def end(self) -> None:
        """Let the supervisor stop everything in order, if it still runs; its invariants hold until then."""
        process = self._running
        if process is None:
            return
        try:
            if process.poll() is None:
                with Client(str(self.socket), timeout_s=STOP_S) as client:
                    findings = examine(client, settle_s=INVARIANTS_S)
                wrong = [finding for finding in findings if finding.level is Level.WRONG]
                assert not wrong, f"{wrong}\n{self._seen()}"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                # Forced, so that a page that fails leaves no process behind.
                process.send_signal(signal.SIGINT)
                process.wait(STOP_S)
                raise


@contextmanager
def stage(patience_s: float = SHOWS_S) -> Iterator[Stage]:
    """A stage in a temporary folder, of which nothing is left."""
    # Not tmp_path: a socket's path must be short.
    home = Path(tempfile.mkdtemp(prefix="spy-"))
    try:
        played = Stage(home, patience_s)
        try:
            yield played
        finally:
            played.end()
    finally:
        shutil.rmtree(home, ignore_errors=True)

"""A terminal that is lent to a unit: one of our own making, between the process there and the terminal here.

The terminal here is raw meanwhile, so every key goes to the process; its modes come back whatever happens, but for
SIGKILL. Sizes go along. Pressing ``^]`` three times within a second ends it from here.

Source: systemd src/shared/ptyfwd.c; tty_ioctl(4).
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from supervisord_py.errors import SupervisordError, UsageError

_ESCAPE = b"\x1d"
_ESCAPES = 3
_ESCAPE_S = 1.0
_CHUNK = 65536
_WAITING_MAX = 1 << 20
"""Bytes that were typed and not taken by the process yet."""


class TerminalLeftError(SupervisordError):
    """The terminal here was let go of before the unit ended: by ``^]``, by a signal, or because it is gone."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.exit_status = code


class LentTerminal:
    """A new terminal with the modes and the size of ours; ``path`` is what a unit opens.

    Raises:
        UsageError: Standard input or output is no terminal.
    """

    def __init__(self) -> None:
        if not (os.isatty(0) and os.isatty(1)):
            raise UsageError("--pty needs a terminal as standard input and output: leave it out, or use --wait")
        self._modes = termios.tcgetattr(0)
        self._master, self._slave = os.openpty()
        self.path = os.ttyname(self._slave)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        self._copy_size()
        os.set_blocking(self._master, False)
        self._typed = bytearray()
        self._escapes: list[float] = []
        self._is_open = True

    def _copy_size(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that has none
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        """Hang up: what still has the terminal gets SIGHUP."""
        if self._is_open:
            self._is_open = False
            os.close(self._slave)
            os.close(self._master)

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Give every key to the process meanwhile."""
        handlers: dict[signal.Signals, Any] = {}

        def leave(number: int, frame: FrameType | None) -> None:
            raise TerminalLeftError(f"ended by {signal.Signals(number).name}", 128 + number)

        try:
            for name in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
                handlers[name] = signal.signal(name, leave)
            handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self._copy_size())
            tty.setraw(0, termios.TCSANOW)
            self._copy_size()
            yield
        finally:
            with contextlib.suppress(termios.error):  # it is gone
                termios.tcsetattr(0, termios.TCSADRAIN, self._modes)
            for name, handler in handlers.items():
                signal.signal(name, handler)

    def forward(self, other: int, is_over: Callable[[], bool]) -> None:
        """Forward until ``is_over``, which is asked whenever the descriptor ``other`` can be read.

        Raises:
            TerminalLeftError: It was let go of here.
        """
        while True:
            poller = select.poll()
            poller.register(other, select.POLLIN)
            poller.register(self._master, select.POLLIN | (select.POLLOUT if self._typed else 0))
            if len(self._typed) < _WAITING_MAX:
                poller.register(0, select.POLLIN)
            ready = dict(poller.poll())
            if 0 in ready:
                self._take_typed()
            if self._master in ready:
                self._pass_typed()
                self._show()
            if other in ready and is_over():
                return

    def drain(self) -> None:
        """Show what was written last."""
        while self._show():
            pass

    def _take_typed(self) -> None:
        try:
            typed = os.read(0, _CHUNK)
        except OSError as error:
            raise TerminalLeftError(f"the terminal is gone: {error.strerror}", 128 + signal.SIGHUP) from None
        if not typed:
            raise TerminalLeftError("the terminal is gone", 128 + signal.SIGHUP)
        now = time.monotonic()
        for byte in typed:
            is_escape = bytes((byte,)) == _ESCAPE
            self._escapes = [*(at for at in self._escapes if now - at < _ESCAPE_S), now] if is_escape else []
            if len(self._escapes) == _ESCAPES:
                raise TerminalLeftError("disconnected", 128 + signal.SIGHUP)
        self._typed += typed

    def _pass_typed(self) -> None:
        if self._typed:
            with contextlib.suppress(BlockingIOError):
                del self._typed[: os.write(self._master, self._typed)]

    def _show(self) -> bool:
        """Write what the process has written; says whether there was anything."""
        try:
            shown = os.read(self._master, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EIO:  # nobody has it
                return False
            raise
        while shown:
            shown = shown[os.write(sys.stdout.fileno(), shown) :]
        return True

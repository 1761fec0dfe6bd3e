"""What the manager tells the service manager above: ready, reloading, stopping, and how the units are in one line.

It goes to the relay of the keeper (``keeper.upward``), which is ``NOTIFY_SOCKET`` here; without one nothing is said.
The status line is looked at a while after something happened and sent when it is another: a busy supervisor does not
become busier by telling.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import sdnotify

from supervisord_py.model.states import ActiveState

STATUS_AFTER_S = 0.5
TEXT_MAX = 1000


def status_line(states: Iterable[ActiveState]) -> str:
    """Return ``N units: a active, b failed``: every state that is there, in the order of their names' list."""
    count = Counter(states)
    counted = ", ".join(f"{count[state]} {state.value}" for state in ActiveState if count[state])
    total = count.total()
    return f"{total} unit{'' if total == 1 else 's'}" + (f": {counted}" if counted else "")


def ascii_line(text: str) -> str:
    """Make text fit for a notification: one line, of ASCII only (``sdnotify`` loses a message with anything else)."""
    return " ".join(text.split()).encode("ascii", "backslashreplace").decode("ascii")[:TEXT_MAX]


class Upward:
    """Speaks for one manager; ``line`` makes the status line when it is wanted."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._last: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._notifier: sdnotify.SystemdNotifier | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            notifier = sdnotify.SystemdNotifier()
            if notifier.socket is not None:
                # A keeper that does not read must not stop a manager; what does not fit is lost, and told by the next.
                notifier.socket.setblocking(False)
                self._notifier = notifier

    def ready(self) -> None:
        """The units are loaded and the control socket answers."""
        if self._notifier is not None:
            self._last = ascii_line(self._line())
            self._say(f"READY=1\nSTATUS={self._last}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Settings and unit files are read anew; whatever comes of it, we are ready again then."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.ready()

    def stopping(self) -> None:
        self._say("STOPPING=1")
        self.changed()

    def changed(self) -> None:
        """Something happened: look in a moment whether the status line is another."""
        if self._notifier is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STATUS_AFTER_S, self._tell_status)

    def close(self) -> None:
        """Say nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _tell_status(self) -> None:
        self._timer = None
        line = ascii_line(self._line())
        if line != self._last:
            self._last = line
            self._say(f"STATUS={line}")

    def _say(self, text: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(text)

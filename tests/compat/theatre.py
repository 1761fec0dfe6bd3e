"""Where rows are acted: the simulated world and a real supervisor offer the same few verbs."""

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct


class Seen(Struct, frozen=True):
    """What a unit looks like from outside, in systemd's words."""

    active: str
    sub: str
    result: str
    main_exit: str
    """``exited:CODE`` or ``killed:SIGNAL``, empty when no main process has ended."""
    pid: int | None
    restarts: int
    status_text: str

    @property
    def state(self) -> str:
        return f"{self.active}/{self.sub}"


class Theatre(Protocol):
    def ask(self, verb: str, *units: str, **arguments: Any) -> int:
        """Ask for something and wait until it is done: 0, or 1 when it failed or was refused."""

    def kill(self, unit: str, signal: str, whom: str = "all") -> None:
        """The verb ``kill``."""

    def murder(self, unit: str, signal: str) -> None:
        """Send the main process a signal from outside."""

    def touch(self, path: str) -> None:
        """Make the file for which a program waits."""

    def settle(self, expected: Callable[[], bool] | None = None, seconds: float = 10) -> None:
        """Let everything that follows happen: so many simulated seconds, or until what is expected is there."""

    def look(self, unit: str) -> Seen:
        """Look at a unit; one that no file defines is inactive."""

    def alive(self, unit: str, log: str) -> list[str]:
        """Which of the processes of a stop-matrix unit live; they said in the log who they are."""

    def lines(self, path: str) -> list[str]:
        """The lines of a file that programs wrote."""

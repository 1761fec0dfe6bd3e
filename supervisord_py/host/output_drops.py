"""Lines that rate limits have dropped: counted for status, and told to the journal, but not line by line."""

import time
from collections.abc import Callable
from typing import NamedTuple

from supervisord_py.model.log import Rate

TOLD_EVERY_NS = 60 * 1_000_000_000
"""After the first lines of a unit were told, the next are told together."""


class DroppedLines(NamedTuple):
    """``lines`` of a unit's output were dropped, as there were more than ``rate``."""

    unit: str
    lines: int
    rate: Rate


class Drops:
    """The counts; everything but reading ``totals`` happens on the thread that moves output.

    Args:
        call_at: Has a function called at a time of the monotonic clock [ns].
        tell: Told at the first of a unit's dropped lines, then once a minute while there are more.
    """

    def __init__(
        self, call_at: Callable[[int, Callable[[], None]], None], tell: Callable[[DroppedLines], object]
    ) -> None:
        self.totals: dict[str, int] = {}
        """Of the present or last life of each unit."""
        self._call_at = call_at
        self._tell = tell
        self._untold: dict[str, DroppedLines] = {}
        """Those that are told later; a unit is here as long as it waits for that."""

    def taken_over(self, unit: str, lines: int) -> None:
        """A manager before us has counted these."""
        if lines:
            self.totals[unit] = lines

    def note(self, unit: str, lines: int, rate: Rate | None) -> None:
        """Count ``lines`` more."""
        self.totals[unit] = self.totals.get(unit, 0) + lines
        if rate is None:
            return
        waiting = self._untold.get(unit)
        if waiting is not None:
            self._untold[unit] = DroppedLines(unit, waiting.lines + lines, rate)
            return
        self._tell(DroppedLines(unit, lines, rate))
        self._wait(unit, rate)

    def _wait(self, unit: str, rate: Rate) -> None:
        self._untold[unit] = DroppedLines(unit, 0, rate)
        self._call_at(time.monotonic_ns() + TOLD_EVERY_NS, lambda: self._tell_rest(unit))

    def _tell_rest(self, unit: str) -> None:
        waiting = self._untold.pop(unit)
        if waiting.lines:
            self._tell(waiting)
            self._wait(unit, waiting.rate)

"""Virtual time: the three clocks of Linux, and an agenda of what happens when.

CLOCK_MONOTONIC drives the agenda. CLOCK_BOOTTIME is ahead of it by the time that the machine slept, the time of day
by an offset that jumps when somebody sets the clock. Nothing here reads a real clock, so a simulated hour costs what
its events cost.
"""

import heapq
from collections.abc import Callable

from supervisord_py.core.events import Now

MILLISECOND_NS = 1_000_000
SECOND_NS = 1_000_000_000

BOOT_NS = 5 * SECOND_NS
"""The machine's uptime when a world begins: never 0, so that a forgotten clock shows."""

WALL_NS = 1_767_225_600 * SECOND_NS
"""The time of day at the machine's boot (2026-01-01)."""


class Clock:
    """The time, advanced by hand."""

    def __init__(self) -> None:
        self.mono_ns = BOOT_NS
        self.slept_ns = 0
        self.wall_offset_ns = 0

    def now(self, seq: int) -> Now:
        boot_ns = self.mono_ns + self.slept_ns
        return Now(self.mono_ns, boot_ns, WALL_NS + boot_ns + self.wall_offset_ns, seq)

    def advance_to(self, mono_ns: int) -> None:
        assert mono_ns >= self.mono_ns, "the monotonic clock cannot go back"
        self.mono_ns = mono_ns

    def suspend(self, duration_ns: int) -> None:
        """Let the machine sleep: only boot time and the time of day go on."""
        self.slept_ns += duration_ns

    def set_wall(self, jump_ns: int) -> None:
        """Set the time of day forward or back."""
        self.wall_offset_ns += jump_ns


class Agenda:
    """Callbacks by monotonic time; those of one instant run in the order in which they were entered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_ns: int, callback: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._entries, (self._clock.mono_ns + delay_ns, self._count, callback))

    def next_ns(self) -> int | None:
        return self._entries[0][0] if self._entries else None

    def run_due(self) -> int:
        """Run everything that is due, also what that enters for the same instant; returns how many callbacks ran."""
        ran = 0
        while self._entries and self._entries[0][0] <= self._clock.mono_ns:
            _, _, callback = heapq.heappop(self._entries)
            callback()
            ran += 1
        return ran

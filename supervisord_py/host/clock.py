"""Reading the clocks once a batch: the only place where the manager asks for the time to decide with."""

import time

from supervisord_py.core.events import Now

SUSPEND_STEP_NS = 1_000_000_000
"""A change of boot minus monotonic time, or of wall minus boot time, above this is a suspend or a set clock."""


class Clock:
    """Hands out ``Now`` and notices when the wall clock was set or the machine slept."""

    def __init__(self) -> None:
        self._slept_ns: int | None = None
        self._wall_offset_ns: int | None = None

    def now(self, seq: int) -> Now:
        return Now(
            mono_ns=time.monotonic_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            wall_ns=time.time_ns(),
            seq=seq,
        )

    def jumped(self, now: Now) -> bool:
        """Say whether the clocks moved against each other since the last call."""
        slept_ns = now.boot_ns - now.mono_ns
        wall_offset_ns = now.wall_ns - now.boot_ns
        jumped = (
            self._slept_ns is not None
            and self._wall_offset_ns is not None
            and (
                abs(slept_ns - self._slept_ns) > SUSPEND_STEP_NS
                or abs(wall_offset_ns - self._wall_offset_ns) > SUSPEND_STEP_NS
            )
        )
        self._slept_ns, self._wall_offset_ns = slept_ns, wall_offset_ns
        return jumped

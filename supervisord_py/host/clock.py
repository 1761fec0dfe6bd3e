"""Reading the clocks once a batch: the only place where the manager asks for the time to decide with; and hearing of
it when somebody sets the clock, or the machine wakes, while nothing else happens.

Source: timerfd_create(2), TFD_TIMER_CANCEL_ON_SET.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

from supervisord_py.core.events import Now

SUSPEND_STEP_NS = 1_000_000_000
"""A change of boot minus monotonic time, or of wall minus boot time, above this is a suspend or a set clock."""


_CLOCK_REALTIME = 0
_ABSTIME, _CANCEL_ON_SET = 1, 2
_FAR_S = 1 << 40
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def watch_clock(loop: asyncio.AbstractEventLoop, on_set: Callable[[], None]) -> Callable[[], None]:
    """Call ``on_set`` whenever the wall clock jumps, until what is returned is called."""
    try:
        return ClockWatch(loop, on_set).close
    except (OSError, AttributeError):
        # The kernel does not tell. Then a batch notices it: the next one, whenever it comes.
        return lambda: None


class ClockWatch:
    """A timer far away on the wall clock, which the kernel cancels when that is set, and when the machine wakes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_set: Callable[[], None]) -> None:
        self._loop, self._on_set = loop, on_set
        self._fd = _checked(_libc.timerfd_create(_CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._arm()
            loop.add_reader(self._fd, self._ready)
        except OSError:
            os.close(self._fd)
            raise

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _arm(self) -> None:
        value = _Itimerspec(_Timespec(0, 0), _Timespec(_FAR_S, 0))
        _checked(_libc.timerfd_settime(self._fd, _ABSTIME | _CANCEL_ON_SET, ctypes.byref(value), None))

    def _ready(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError:
            # ECANCELED: that is what it is there for.
            pass
        self._arm()
        self._on_set()


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


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

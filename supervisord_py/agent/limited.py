"""A cycle of plain functions that may take so long, and no longer."""

import faulthandler

from supervisord_py.agent.errors import CycleTimeout

TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal as signal
else:
    import signal
    from collections.abc import Callable
    from types import FrameType

GRACE_MIN_S = 1.0
"""A cycle that does not end by the exception is given at least so long before the process is ended."""

STDERR = 2
"""Where faulthandler writes: ``sys.stderr`` may be something without a descriptor by now."""


def limited(limit_s: float, work: "Callable[..., object]", *arguments: object) -> None:
    """Call a method that may take so long.

    Raises:
        CycleTimeout: It took longer, also where it did not let itself be ended.
    """
    is_inside = is_over = False
    over = CycleTimeout(f"the cycle has taken longer than {limit_s:g} s (cycle-timeout)")

    def expire(number: int, frame: "FrameType | None") -> None:
        nonlocal is_over
        is_over = True
        if is_inside:
            raise over

    signal.signal(signal.SIGALRM, expire)
    try:
        try:
            is_inside = True
            faulthandler.dump_traceback_later(limit_s + max(limit_s, GRACE_MIN_S), exit=True, file=STDERR)
            signal.setitimer(signal.ITIMER_REAL, limit_s)
            work(*arguments)
        finally:
            is_inside = False
    finally:
        # The timer goes off once, so nothing is raised here any more.
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    if is_over:
        raise over

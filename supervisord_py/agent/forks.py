"""What a fork in an agent does to its signals: those of a child are its own. Imported at the first fork."""

import _thread as thread
import os

TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal as signal
else:
    import signal
    from typing import Any

_held: "dict[int, Any]" = {}
_ENDS = (signal.SIGTERM, signal.SIGINT)


def hold_signals() -> None:
    """Before fork: what comes for the child before it has forgotten the agent's handlers has to wait."""
    _held[thread.get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)


def release_signals() -> None:
    """After fork, in the agent."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.pop(thread.get_ident(), ()))


def forget_signals() -> None:
    """After fork, in the child: signals to it are not for the agent, and end it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    release_signals()


os.register_at_fork(after_in_parent=release_signals, after_in_child=forget_signals)

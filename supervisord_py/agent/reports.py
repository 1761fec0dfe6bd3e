"""What the supervisor is told of an exception."""

import sys

from supervisord_py.agent.agent import one_line
from supervisord_py.agent.errors import CycleTimeout, Recoverable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisord_py.agent.link import Link

MESSAGE_MAX = 500
TRACEBACK_MAX = 2000
"""Bytes of the end of a traceback that go into the record; all of it is in the agent's log."""


def describe(problem: "str | BaseException") -> str:
    """Return an exception as one line."""
    if isinstance(problem, str):
        return one_line(problem)[:MESSAGE_MAX]
    text = one_line(str(problem))
    if isinstance(problem, Recoverable | CycleTimeout):
        return text[:MESSAGE_MAX] or type(problem).__name__
    return f"{type(problem).__name__}: {text}"[:MESSAGE_MAX] if text else type(problem).__name__


def report_error(link: "Link", problem: "str | BaseException") -> None:
    """Tell one error, with the traceback of an exception that nobody expected, and print that into the log."""
    fields = {"X_ERROR": describe(problem)}
    if isinstance(problem, BaseException) and not isinstance(problem, Recoverable):
        import traceback

        text = "".join(traceback.format_exception(problem))
        print_error(text)
        fields["X_TRACEBACK"] = _end(text).replace("\\", "\\\\").replace("\n", "\\n")
    else:
        print_error(f"error: {fields['X_ERROR']}\n")
    link.tell(**fields)


def _end(text: str) -> str:
    return text.encode("utf-8", "backslashreplace")[-TRACEBACK_MAX:].decode("utf-8", "ignore")


def print_error(text: str) -> None:
    """Print into the log; an agent that has closed or replaced its standard error has none."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass

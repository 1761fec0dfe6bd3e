"""The terminal of a unit that was run with one: the client's, which the main process opens itself, as its controlling
terminal.

Who may be anybody at all opens it by its own rights, when it is no longer the keeper: what the terminal of that name
is by then, is no matter. An operator's is opened by the keeper and given to the user of the unit, as systemd does.

Source: tty_ioctl(4), TIOCSCTTY; systemd src/core/exec-invoke.c, setup_input, chown_terminal.
"""

import os
import re
import stat
from typing import Any

TIOCSCTTY = 0x540E
_PATH = re.compile(r"/dev/pts/\d{1,9}")
_PTS_MAJORS = range(136, 144)
_STEP = "stdin"
_REGISTER = "terminal"
_UNCHANGED = -1


def why_no_terminal(path: str, uid: int) -> str | None:
    """Say why ``path`` cannot be the terminal of a client with this uid; None: it can."""
    if not _PATH.fullmatch(path):
        return "it is no terminal as programs make them (/dev/pts/N)"
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{(error.strerror or str(error)).lower()}: is it a terminal of this machine?"
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) not in _PTS_MAJORS:
        return "it is no terminal"
    if status.st_uid != uid:
        return "it is a terminal of somebody else"
    if not os.access(path, os.R_OK | os.W_OK):
        return "the supervisor's user may not open it: use supctl as that user"
    return None


def terminal_operations(path: str, *, uid: int | None) -> list[dict[str, Any]]:
    """Return what the child does; ``uid``: whose it becomes, None leaves it."""
    operations: list[dict[str, Any]] = [
        {"do": "open", "path": path, "flags": os.O_RDWR | os.O_NOCTTY, "as": _REGISTER},
    ]
    if uid is not None:
        operations.append({"do": "call", "name": "fchown", "args": [{"fd": _REGISTER}, uid, _UNCHANGED]})
    operations.append({"do": "call", "name": "ioctl", "args": [{"fd": _REGISTER}, TIOCSCTTY, 0]})
    operations += ({"do": "dup", "fd": _REGISTER, "to": target} for target in (0, 1, 2))
    return [{"step": _STEP, "key": "terminal", **each} for each in operations]

"""Which control socket ``supctl`` talks to.

The first that exists of ``--socket``, ``$SUPERVISORD_PY_SOCKET``, the user's, the system's. "Exists" is all that is
asked here: a socket that exists and refuses the connection is an error and never a reason to try the next one, or a
command meant for one supervisor would reach another. For the same reason a ``--socket`` that was typed is taken even
when nothing is there.
"""

import os
from collections.abc import Callable, Mapping

from supervisord_py.errors import UsageError

PROJECT = "supervisord-py"
SYSTEM_SOCKET = f"/run/{PROJECT}/control.sock"
SCHEME = "tcp://"
"""What the address of a supervisor on another machine begins with."""

SOCKET_VARIABLE = "SUPERVISORD_PY_SOCKET"


class Address:
    """The socket to use, and what there is to say about how it was found.

    Attributes:
        path: The socket.
        note: Something that the caller should hear: a variable that names a socket which is gone.
        hint: The next step when the socket refuses: another supervisor that could have been meant.
        keys: The folder of the keys for a supervisor elsewhere; None: where ``ctl.remote`` looks.
    """

    __slots__ = ("hint", "keys", "note", "path")

    def __init__(self, path: str, *, note: str | None = None, hint: str | None = None, keys: str | None = None) -> None:
        self.path = path
        self.keys = keys
        self.note = note
        self.hint = hint


def user_sockets(environment: Mapping[str, str], uid: int) -> list[str]:
    """Return where a user's supervisor listens, most likely first.

    A supervisor started from cron or over ssh may have had no ``XDG_RUNTIME_DIR`` where this shell has one, or the
    other way round: both places are looked at.
    """
    if uid == 0:
        return [SYSTEM_SOCKET]
    state = environment.get("XDG_STATE_HOME") or os.path.join(
        environment.get("HOME") or os.path.expanduser("~"), ".local/state"
    )
    runtime = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    return [os.path.join(runtime, PROJECT, "control.sock"), os.path.join(state, PROJECT, "run", "control.sock")]


def socket_exists(path: str) -> bool:
    """Is something there? A folder that may not be searched counts as yes: the refusal is then told, not skipped."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def find_socket(
    environment: Mapping[str, str],
    uid: int,
    *,
    socket: str | None = None,
    user: bool = False,
    system: bool = False,
    remote: str | None = None,
    keys: str | None = None,
    exists: Callable[[str], bool] = socket_exists,
) -> Address:
    """Decide which socket is meant.

    Args:
        environment: ``SUPERVISORD_PY_SOCKET``, ``XDG_RUNTIME_DIR``, ``XDG_STATE_HOME``, ``HOME``.
        uid: Who is asking; root's own supervisor is the system's.
        socket: ``--socket``.
        user: Only the user's is meant, whatever the variable says.
        system: Only the system's is meant, likewise.
        remote: ``--remote``.
        keys: ``--keys``.
        exists: Asked for each path in turn.

    Raises:
        UsageError: More than one of ``socket``, ``user``, ``system`` and ``remote`` was given, or ``keys`` alone.
    """
    if (socket is not None) + user + system + (remote is not None) > 1:
        raise UsageError("--socket, --user, --system and --remote name different supervisors: give one of them")
    if remote is not None:
        return Address(remote if remote.startswith(SCHEME) else SCHEME + remote, keys=keys)
    if keys is not None:
        raise UsageError("--keys goes with --remote ADDRESS")
    if socket is not None:
        return Address(os.path.abspath(socket))
    if system:
        return Address(SYSTEM_SOCKET)
    of_user = user_sockets(environment, uid)
    if user:
        return Address(next((path for path in of_user if exists(path)), of_user[0]))
    note = None
    named = environment.get(SOCKET_VARIABLE)
    if named:
        if exists(named):
            return Address(named)
        note = f"${SOCKET_VARIABLE} names {named}, which does not exist"
    for path in of_user:
        if exists(path):
            hint = None
            if path != SYSTEM_SOCKET and exists(SYSTEM_SOCKET):
                hint = f"for the system's supervisor at {SYSTEM_SOCKET} add --system"
            return Address(path, note=note and f"{note}: using {path}", hint=hint)
    if exists(SYSTEM_SOCKET):
        return Address(SYSTEM_SOCKET, note=note and f"{note}: using {SYSTEM_SOCKET}")
    looked = [*([named] if named else []), *of_user, *([] if SYSTEM_SOCKET in of_user else [SYSTEM_SOCKET])]
    return Address(
        looked[0],
        hint=f"start one with supervisord-py run, or name its socket with --socket (looked at {', '.join(looked)})",
    )

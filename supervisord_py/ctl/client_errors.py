"""What calls to a supervisor may end with; each knows the exit code of ``supctl``."""

from typing import Any

from supervisord_py.errors import SupervisordError
from supervisord_py.wire.varlink import MANAGER, SERVICE

_EXIT_STATUS = {
    f"{MANAGER}.NoSuchUnit": 4,
    f"{MANAGER}.NotPermitted": 5,
    f"{SERVICE}.PermissionDenied": 5,
    f"{MANAGER}.BadUnit": 6,
    f"{MANAGER}.TimedOut": 124,
    f"{MANAGER}.InvalidRequest": 2,
    f"{SERVICE}.InvalidParameter": 2,
}


class ControlError(SupervisordError):
    """The supervisor answered a call with an error.

    Attributes:
        error: Its full name, ``py.supervisord.Manager.NoSuchUnit``.
        name: The last part of it, ``NoSuchUnit``.
        parameters: What the supervisor said about it; the interface definition names the fields.
        exit_status: What ``supctl`` exits with.
    """

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.name = error.rpartition(".")[2]
        self.parameters = parameters
        self.exit_status = _EXIT_STATUS.get(error, 1)

    def __str__(self) -> str:
        message = self.parameters.get("message")
        if isinstance(message, str) and message:
            return message
        if self.name in ("MethodNotFound", "MethodNotImplemented", "InterfaceNotFound"):
            missing = self.parameters.get("method") or self.parameters.get("interface") or "that"
            return f"this supervisor does not know {missing}: it is older than this client, see supctl version"
        if self.name == "InvalidParameter":
            return f"the supervisor refused the parameter {self.parameters.get('parameter', '?')!r}: see supctl idl"
        if self.name == "PermissionDenied":
            return "not permitted: see what you may do with supctl commands"
        return f"the supervisor answered {self.error}"


class UnreachableError(SupervisordError):
    """Nobody answers on the socket."""

    exit_status = 7

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"no supervisor reachable at {self.path}: {self.reason}"


class SocketDeniedError(SupervisordError):
    """The socket is there, and its mode or its folder's keeps this user out."""

    exit_status = 5

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"not permitted: cannot open {self.path}: become a member of the socket's group (ls -l), or use sudo"


class ConnectionLostError(SupervisordError):
    """The connection was lost before the reply to a call that must not be made twice: whether it was done is not
    known.
    """

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def __str__(self) -> str:
        return (
            f"the connection was lost before {self.method.rpartition('.')[2]} was answered, and it is not known "
            "whether it was done: see supctl journal query -e command"
        )


class SupervisorReplacedError(ConnectionLostError):
    """The supervisor died before it answered a verb, and the one that runs now has not gone on from its state: what
    became of the verb is not known.
    """

    def __str__(self) -> str:
        return (
            f"the supervisor was killed before {self.method.rpartition('.')[2]} was answered, another one runs now: "
            "what became of it is not known, and it is not asked for again: see supctl status and "
            "supctl journal query -e command"
        )


class CallTimeoutError(SupervisordError):
    """The time that the caller gave ran out. What was asked for may still be going on."""

    exit_status = 124

    def __init__(self, method: str, timeout_s: float) -> None:
        super().__init__(method, timeout_s)
        self.method = method
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        member = self.method.rpartition(".")[2]
        return f"no answer to {member} within {self.timeout_s:g}s: what was asked for goes on, see supctl jobs"

"""What a method of a control interface sees: the call, who makes it, and the errors that it may end with.

The server (``control_server``) knows bytes and connections and no method; the interfaces know methods and no socket.
They meet here.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from supervisord_py.errors import SupervisordError
from supervisord_py.host.facade import Peer
from supervisord_py.host.journal_reader import JournalUnavailableError as UnreadableError
from supervisord_py.wire.interface import Interface
from supervisord_py.wire.varlink import JOURNAL, MANAGER, SERVICE, Call

T = TypeVar("T")


class MethodError(SupervisordError):
    """A call ends with an error reply: ``error`` is its full name, ``parameters`` its fields."""

    def __init__(self, error: str, parameters: Mapping[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.parameters = dict(parameters)

    def __str__(self) -> str:
        message = self.parameters.get("message")
        return message if isinstance(message, str) else f"{self.error} {self.parameters}"


class InvalidCallError(MethodError):
    """The call itself cannot be understood; recorded as ``command.invalid``, with ``reason`` for the record."""

    def __init__(self, error: str, parameters: Mapping[str, Any], reason: str) -> None:
        super().__init__(error, parameters)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class InvalidRequestError(InvalidCallError):
    """The parameters have the right types and make no sense together."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{MANAGER}.InvalidRequest", {"parameter": None, "message": message}, message)


class InvalidParameterValueError(InvalidCallError):
    """A parameter has the right type and no usable value; ``reason`` says which values there are.

    It is not Varlink's own InvalidParameter, which has no room for a reason.
    """

    def __init__(self, parameter: str, reason: str) -> None:
        message = f"{parameter}: {reason}"
        super().__init__(f"{MANAGER}.InvalidRequest", {"parameter": parameter, "message": message}, message)


class ExpectedMoreError(InvalidCallError):
    """The method answers with a stream, and the call did not ask for one."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{SERVICE}.ExpectedMore", {}, f"{method} answers with a stream: call it with more")


class NotPermittedError(MethodError):
    """The rules do not let this peer do this; it is recorded where it is raised."""

    def __init__(self, command: str, unit: str | None, message: str) -> None:
        super().__init__(f"{MANAGER}.NotPermitted", {"command": command, "unit": unit, "message": message})


class NoSuchUnitError(MethodError):
    def __init__(self, unit: str, suggestions: Sequence[str] = ()) -> None:
        hint = f": did you mean {' or '.join(suggestions)}?" if suggestions else ": see supctl list"
        message = f"no such unit {unit}{hint}"
        super().__init__(f"{MANAGER}.NoSuchUnit", {"unit": unit, "suggestions": list(suggestions), "message": message})


class NoSuchJobError(MethodError):
    def __init__(self, job: int) -> None:
        message = f"no such job {job}: it has ended or never was, see supctl jobs"
        super().__init__(f"{MANAGER}.NoSuchJob", {"job": job, "message": message})


class BadUnitError(MethodError):
    def __init__(self, unit: str, problem: str) -> None:
        message = f"the file of {unit} is invalid: {problem} (supervisord-py check shows all)"
        super().__init__(f"{MANAGER}.BadUnit", {"unit": unit, "problem": problem, "message": message})


class UnitMaskedError(MethodError):
    def __init__(self, unit: str, message: str = "") -> None:
        message = message or f"{unit} is masked, so nothing starts it: supctl unmask {unit}"
        super().__init__(f"{MANAGER}.UnitMasked", {"unit": unit, "message": message})


class ShuttingDownError(MethodError):
    def __init__(self, message: str) -> None:
        super().__init__(f"{MANAGER}.ShuttingDown", {"message": message})


class TimedOutError(MethodError):
    def __init__(self, message: str) -> None:
        super().__init__(f"{MANAGER}.TimedOut", {"message": message})


class OutputUnavailableError(MethodError):
    def __init__(self, unit: str, message: str) -> None:
        super().__init__(f"{MANAGER}.OutputUnavailable", {"unit": unit, "message": message})


class JournalUnavailableError(MethodError):
    def __init__(self, message: str) -> None:
        super().__init__(f"{JOURNAL}.JournalUnavailable", {"message": message})


@contextmanager
def readable_journal() -> Iterator[None]:
    """Turn what the disk says against reading the journal into the interface's error."""
    try:
        yield
    except UnreadableError as error:
        raise JournalUnavailableError(str(error)) from None
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        raise JournalUnavailableError(f"the journal cannot be read: {reason}") from None


class PeerGoneError(SupervisordError):
    """The peer has closed its connection: nobody is left to answer."""


class Request(Protocol):
    """One call while it is answered."""

    @property
    def peer(self) -> Peer: ...

    @property
    def call(self) -> Call: ...

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters, checked against the interface: every field is there, nullable ones as None."""

    async def send(self, parameters: object) -> None:
        """Send a reply that continues, and wait until the peer's backlog is small again; only for a call with ``more``.

        Raises:
            PeerGoneError: The peer has closed the connection.
        """

    async def until_gone(self, awaitable: Awaitable[T]) -> T:
        """Await something that may take long; it is cancelled a moment after the peer has closed the connection.

        Raises:
            PeerGoneError: The peer has closed the connection.
        """


Handler = Callable[[Request], Awaitable[object]]
"""Answers one method: returns the final reply, raises ``MethodError`` for an error."""


class Endpoint(Struct, frozen=True):
    """An interface with a handler for each of its methods, by the method's name."""

    interface: Interface
    handlers: Mapping[str, Handler]

    def __post_init__(self) -> None:
        assert self.handlers.keys() == self.interface.methods.keys(), (
            f"internal error: {self.interface.name}: methods and handlers differ: "
            f"{sorted(self.handlers.keys() ^ self.interface.methods.keys())}"
        )

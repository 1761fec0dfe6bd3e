"""What every command of ``supctl`` works with: the options, the connection, and the two ways to print."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from supervisord_py.ctl.address import Address, find_socket
from supervisord_py.ctl.client import (
    CallTimeoutError,
    Client,
    ConnectionLostError,
    ControlError,
    Stream,
    UnreachableError,
)
from supervisord_py.ctl.render import Style, choose_style
from supervisord_py.errors import SupervisordError, UsageError


class Options:
    """The options that stand before or behind any verb, as they were typed; None or False: not given."""

    __slots__ = (
        "color",
        "format",
        "no_wait",
        "plan",
        "reason",
        "remote",
        "remote_keys",
        "socket",
        "system",
        "timeout_s",
        "user",
    )

    def __init__(self) -> None:
        self.socket: str | None = None
        self.remote: str | None = None
        self.remote_keys: str | None = None
        self.user = False
        self.system = False
        self.format: str | None = None
        self.color = "auto"
        self.timeout_s: float | None = None
        self.no_wait = False
        self.plan = False
        self.reason: str | None = None


class Session:
    """One run of ``supctl``. The connection is opened at the first call."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = os.environ if environment is None else environment
        self.options = Options()
        self.while_waiting: Callable[[float], None] | None = None
        self.expects_loss = False
        """A new manager is what was asked for, so nothing is said about waiting for it."""
        self._client: Client | None = None
        self._address: Address | None = None
        self._style: Style | None = None

    @property
    def wants_json(self) -> bool:
        return self.options.format == "json"

    @property
    def style(self) -> Style:
        """How standard output may look."""
        if self._style is None:
            width = shutil.get_terminal_size().columns
            self._style = choose_style(sys.stdout, self.environment, self.options.color, width)
        return self._style

    @property
    def address(self) -> Address:
        if self._address is None:
            options = self.options
            self._address = find_socket(
                self.environment,
                os.geteuid(),
                socket=options.socket,
                user=options.user,
                system=options.system,
                remote=options.remote,
                keys=options.remote_keys,
            )
            if self._address.note is not None:
                self.note(self._address.note)
        return self._address

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = self.new_client()
        return self._client

    def new_client(self, timeout_s: float | None = None) -> Client:
        """Return another client of the same supervisor; its time limit is ``--timeout`` unless one is given."""
        return Client(
            self.address.path,
            timeout_s=self.options.timeout_s if timeout_s is None else timeout_s,
            while_waiting=lambda elapsed_s: self.while_waiting(elapsed_s) if self.while_waiting else None,
            on_loss=self._tell_loss,
            keys=self.address.keys,
        )

    def _tell_loss(self) -> None:
        if not self.expects_loss:
            self.note("the connection was lost, the manager is replaced or has died: waiting for the next one")

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        return self.client.call(method, **parameters)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def follow(self, *streams: Stream) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (which stream, reply) as replies come on any of them, until all have ended or ``--timeout`` runs out.

        Raises:
            ConnectionLostError: As ``Stream.ready``.
            FollowedEnoughError: ``--timeout`` ran out.
        """
        import select

        limit_s = self.options.timeout_s
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while any(not stream.ended for stream in streams):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise FollowedEnoughError(limit_s or 0.0)
            poller = select.poll()
            which = {}
            for index, stream in enumerate(streams):
                if not stream.ended:
                    poller.register(stream, select.POLLIN)
                    which[stream.fileno()] = index
            for descriptor, _ in poller.poll(None if left is None else left * 1000):
                index = which[descriptor]
                for reply in streams[index].ready():
                    yield index, reply

    def echo(self, *lines: str) -> None:
        """Write lines to standard output."""
        sys.stdout.write("".join(f"{line}\n" for line in lines))

    def emit(self, document: Mapping[str, Any]) -> None:
        """Write a JSON document on a line of its own; follow modes do it once an object, everything else once."""
        encoding = (sys.stdout.encoding or "ascii").lower()
        sys.stdout.write(json.dumps(document, ensure_ascii=encoding not in ("utf-8", "utf8")) + "\n")

    def flush(self) -> None:
        """Hand over what was written; for follow modes, after each reply."""
        sys.stdout.flush()

    def note(self, message: str) -> None:
        """Say something beside the result, on standard error."""
        sys.stdout.flush()
        sys.stderr.write(f"supctl: {message}\n")
        sys.stderr.flush()

    def fail(self, error: SupervisordError, **more: Any) -> int:
        """Tell an error on standard error and, with ``--json``, as the document; return the exit code.

        Args:
            error: What happened.
            more: Fields beside ``error`` in the document: what could be found out all the same.
        """
        message = describe(error, self._address)
        if self.wants_json:
            self.emit({"error": error_document(error, message)} | more)
        self.note(message)
        return error.exit_status


class FollowedEnoughError(SupervisordError):
    """The time that ``--timeout`` gave a follower is over."""

    exit_status = 124

    def __init__(self, limit_s: float) -> None:
        super().__init__(limit_s)
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"followed for {self.limit_s:g}s, as long as --timeout allows"


class Patience:
    """How a follower waits for the next manager: a little longer after each loss that comes soon after the last.

    A call that kills every manager it reaches must not do so as fast as managers can be made.
    """

    SOON_S = 10.0

    def __init__(self, session: Session, *, losses_max: int | None = None) -> None:
        self._session = session
        self._losses_max = losses_max
        self._losses = 0
        self._lost_at = 0.0

    def next_manager(self) -> None:
        """Return when a manager answers again.

        Raises:
            UnreachableError: None does, or ``losses_max`` connections were lost in quick succession.
        """
        now = time.monotonic()
        self._losses = self._losses + 1 if now - self._lost_at < self.SOON_S else 1
        self._lost_at = now
        if self._losses_max is not None and self._losses > self._losses_max:
            raise UnreachableError(self._session.address.path, "it hangs up before it has answered, again and again")
        time.sleep(min(0.02 * 2**self._losses, 5.0))
        self._session.call("Ping")


_SLUGS: dict[type[SupervisordError], str] = {
    CallTimeoutError: "timed-out",
    ConnectionLostError: "connection-lost",
    UsageError: "usage",
}


def error_slug(error: SupervisordError) -> str:
    """Return the stable name of an error: ``no-such-unit``, ``timed-out``, ``usage``."""
    if isinstance(error, ControlError):
        return "".join(f"-{char.lower()}" if char.isupper() else char for char in error.name).lstrip("-")
    for kind, slug in _SLUGS.items():
        if isinstance(error, kind):
            return slug
    return {4: "no-such-unit", 5: "not-permitted", 6: "bad-unit", 7: "unreachable", 124: "timed-out"}.get(
        error.exit_status, "failed"
    )


def error_document(error: SupervisordError, message: str) -> dict[str, Any]:
    """Return the object behind ``error`` in JSON: code, message, and what the supervisor said with it."""
    document: dict[str, Any] = {"code": error_slug(error), "message": message}
    if isinstance(error, ControlError):
        from supervisord_py.ctl.replies import outcomes_from_wire

        said = dict(error.parameters)
        if "outcomes" in said:
            said["outcomes"] = outcomes_from_wire(said["outcomes"])
        document |= {key: value for key, value in said.items() if key not in document}
    return document


def describe(error: SupervisordError, address: Address | None) -> str:
    """Return an error's message with its next step."""
    message = str(error)
    if isinstance(error, ControlError) and error.name == "NoSuchUnit":
        suggestions = [name for name in error.parameters.get("suggestions") or () if name not in message]
        unit = error.parameters.get("unit")
        if unit == "all":
            message += "; every unit is '*'"
        elif isinstance(unit, str) and unit.endswith(":*"):
            message += f"; a group is @{unit[:-2]}"
        elif suggestions:
            message += f"; did you mean {' or '.join(suggestions)}?"
        elif not error.parameters.get("suggestions") and "supctl list" not in message:
            message += "; supctl list shows the units there are"
    if error.exit_status == 7 and address is not None and address.hint is not None:
        message += f"; {address.hint}"
    return message

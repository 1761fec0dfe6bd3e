"""A blocking client of the control socket: ``supctl`` and ``supervisord_py.Client`` are this class.

Theory of operation
-------------------
The listening socket belongs to the keeper, the accepted connections to the manager. When the manager dies or is
replaced,
a connection that is open is cut, and one that is made now waits in the kernel for the next manager. So a call whose
connection is lost before
its reply is made again on a new connection, when that cannot do anything twice:

- queries, and verbs whose second run changes nothing that the first has not, are repeated as they are, for at most
  ``TROUBLE_S``: a manager that dies of them, or at every start, must not hold its client for ever;
- verbs that change units carry a ``token`` (made here unless the caller gave one): the same token again attaches to
  the same jobs, and sends no signal twice. Tokens are in the keeper's custody: where another keeper listens after the
  loss (the kernel tells whose socket it is) that has not what the one before had (``Version`` tells), the verb is not
  repeated but for a plan, and the caller gets ``SupervisorReplacedError``;
- what ``_UNREPEATABLE`` names is not repeated: the caller gets ``ConnectionLostError`` and looks what has become of it.

Laws: no call is repeated after a reply to it was read; a refused connection is waited for only after a loss, for
``RECONNECT_S``; the time that is left of ``timeout_s``, not all of it, goes into a repeated call.
"""

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from supervisord_py.ctl.address import SCHEME
from supervisord_py.ctl.client_errors import (
    CallTimeoutError,
    ConnectionLostError,
    ControlError,
    SocketDeniedError,
    SupervisorReplacedError,
    UnreachableError,
)
from supervisord_py.errors import ProtocolError
from supervisord_py.wire.varlink import JOURNAL, MANAGER, ClientConnection, Reply

if TYPE_CHECKING:
    from supervisord_py.ctl.remote import Bridge, RemoteAddress

RECONNECT_S = 5.0
"""How long a connection may be refused after a loss: the keeper needs less to listen on a new one, longer means that
it is gone.
"""

GRACE_S = 2.0
"""How much longer than its ``timeout_ms`` an answer to a call is waited for."""

TROUBLE_S = 30.0
"""How long a query is made again while its connections keep being lost."""

_CHUNK = 256 * 1024

_JOBS = frozenset(
    f"{MANAGER}.{name}"
    for name in (
        "Start", "Stop", "Restart", "TryRestart", "Reload", "ReloadOrRestart", "Pause", "Resume", "Release", "Trigger",
    )
)  # fmt: skip
_CHANGES = frozenset(f"{MANAGER}.{name}" for name in ("Enable", "Disable", "Mask", "Unmask", "Apply", "Scale", "Run"))
TOKEN = _JOBS | _CHANGES | {f"{MANAGER}.Kill", f"{MANAGER}.ResetFailed"}
TIMEOUT = _JOBS | _CHANGES | {f"{MANAGER}.Wait"}
_UNREPEATABLE = frozenset(
    {f"{MANAGER}.Cancel", f"{MANAGER}.DaemonRestart", f"{MANAGER}.DaemonReexec", f"{MANAGER}.Shutdown"}
)
"""Calls without a token that a second time do more than the first; their callers can see whether the first was done."""


class _LostError(Exception):
    """The connection ended where a reply should have come."""


def qualify(method: str) -> str:
    """Return the full name of a method: ``Start`` is of the manager's interface, ``Journal.Query`` of the journal's."""
    match method.split("."):
        case [member]:
            return f"{MANAGER}.{member}"
        case ["Manager", member]:
            return f"{MANAGER}.{member}"
        case ["Journal", member]:
            return f"{JOURNAL}.{member}"
    return method


class Client:
    """A connection to one supervisor, made at the first call and made again when it is lost.

    Example:
        >>> with Client("/run/supervisord-py/control.sock") as client:       # doctest: +SKIP
        ...     client.call("Restart", units=["web"], wait=True, plan=False, reason="new release")
        ...     for reply in client.stream("Journal.Follow", filter={"units": ["web"], "events": []}, last=0):
        ...         print(reply["record"])

    Not for use by several threads at once.

    Args:
        socket_path: The control socket, or ``tcp://HOST:PORT`` of a supervisor that listens for remote clients.
        timeout_s: How long each call may take in all [s], repeats included; None waits for as long as it takes.
        while_waiting: Called about once a second while an answer is awaited, with the seconds since the call.
        on_loss: Called once a call when its connection is lost and it will be made again.
        keys: The folder of the keys for a remote supervisor (see ``ctl.remote``).

    Raises:
        UsageError: There are no usable keys for the remote supervisor.
    """

    def __init__(
        self,
        socket_path: str,
        *,
        timeout_s: float | None = None,
        while_waiting: Callable[[float], None] | None = None,
        on_loss: Callable[[], None] | None = None,
        keys: str | None = None,
    ) -> None:
        self._remote: RemoteAddress | None = None
        if socket_path.startswith(SCHEME):
            from supervisord_py.ctl import remote

            self._remote = remote.RemoteAddress(socket_path, keys)
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self._while_waiting = while_waiting
        self._on_loss = on_loss
        self._link: _Link | None = None
        self._was_refused = False
        self._asked: int | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Jobs that were waited for go on. A later call opens a new one."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def call(self, interface_method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its reply.

        Args:
            interface_method: ``py.supervisord.Manager.Start``, or short ``Start``, ``Journal.Verify``.
            parameters: As the interface definition has them (``supctl idl``). A ``token`` is added to verbs that take
            one,
                and ``timeout_ms`` where the client has a time limit.

        Returns:
            The reply's parameters, as they are on the wire (enums with ``_`` for ``-``).

        Raises:
            ControlError: The supervisor refused, or the job failed.
            UnreachableError: Nobody listens, or whoever listened is gone.
            SocketDeniedError: The socket may not be opened by this user.
            ConnectionLostError: The connection was lost in a call that is not repeated.
            SupervisorReplacedError: Another supervisor took the place of the one that a verb was sent to.
            CallTimeoutError: ``timeout_s`` ran out.
            ProtocolError: What answers there is no supervisor.
        """
        method = qualify(interface_method)
        if method in TOKEN and parameters.get("token") is None:
            parameters["token"] = new_token()
        started = time.monotonic()
        deadline = None if self.timeout_s is None else started + self.timeout_s
        self._was_refused = False
        lost_at: float | None = None
        first_lost_at: float | None = None
        attempt = 0
        self._asked = None
        while True:
            try:
                link = self._connected(method, deadline, lost_at)
                if self._asked is None:
                    self._asked = link.server_pid
                elif method in TOKEN and not parameters.get("plan") and self._is_replaced(link, started, deadline):
                    raise SupervisorReplacedError(method)
                link.send(method, self._timed(method, parameters, deadline))
                reply = self._await_reply(link, method, started, deadline)
            except _LostError:
                self.close()
                if method in _UNREPEATABLE:
                    raise ConnectionLostError(method) from None
                lost_at = time.monotonic()
                if first_lost_at is None:
                    first_lost_at = lost_at
                    if self._on_loss is not None:
                        self._on_loss()
                elif method not in TIMEOUT and lost_at - first_lost_at > TROUBLE_S:
                    raise UnreachableError(self.socket_path, "it hangs up before it answers, again and again") from None
                self._pause(min(0.02 * 2**attempt, 1.0), method, deadline)
                attempt += 1
                continue
            except BaseException:  # Ctrl-C too: the reply would come later and be taken for that to the next call.
                self.close()
                raise
            if reply.error is not None:
                raise ControlError(reply.error, reply.parameters)
            return reply.parameters

    def stream(self, interface_method: str, /, **parameters: Any) -> "Stream":
        """Call a method with ``more`` on a connection of its own and return its replies, one at a time.

        The stream is not made again when its connection is lost: only the caller knows from where on. It raises
        ``ConnectionLostError`` then. Raises as ``call`` does otherwise; ``timeout_s`` bounds the connecting only.
        """
        method = qualify(interface_method)
        deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        link = self._connect(method, deadline, None)
        try:
            link.send(method, parameters, more=True)
        except _LostError:
            link.close()
            raise ConnectionLostError(method) from None
        return Stream(link, method)

    def events(
        self,
        event: str | Sequence[str] = (),
        *,
        unit: str | Sequence[str] = (),
        severity: str | None = None,
        since: str | None = None,
        until: str | None = None,
        after: int | None = None,
        last: int | None = None,
        grep: str | None = None,
        invocation: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return records of the journal, oldest first.

        Args:
            event: Names or globs, of our events or of what agents call theirs; none: every event.
            unit: Names or globs; none: every unit, and what is about none.
            severity: ``info``, ``warning`` or ``error``: that or worse.
            since: Not before this moment (RFC 3339, UTC).
            until: Not after this one.
            after: Only records with a higher number.
            last: At most so many, the newest; None: all.
            grep: A regular expression that is searched for in the line.
            invocation: One life of a unit.

        Raises as ``call`` does, and ``ConnectionLostError``.
        """
        given = {"severity": severity, "since": since, "until": until, "after": after, "grep": grep}
        given["invocation"] = invocation
        wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        wanted["units"] = [unit] if isinstance(unit, str) else list(unit)
        wanted["events"] = [event] if isinstance(event, str) else list(event)
        parameters = {"filter": wanted} | ({} if last is None else {"last": last})
        with self.stream("Journal.Query", **parameters) as stream:
            return [record for reply in stream for record in reply["records"]]

    def is_replaced(self) -> bool:
        """Tell whether the supervisor that answers now is another than the one that the last call was sent to, without
        what that one had. Raises as ``call`` does.
        """
        asked = self._asked
        self.call("Ping")
        is_same = self._asked == asked
        keepers = () if is_same else self.call("Version").get("keepers") or ()
        self._asked = asked
        return not is_same and asked not in keepers

    def wait_until_gone(self) -> None:
        """Return when the supervisor that the last call was sent to is gone (after ``Shutdown``): nobody listens any
        more, or a new one, which a service manager has started.

        Raises:
            CallTimeoutError: ``timeout_s`` ran out first.
        """
        method = f"{MANAGER}.Shutdown"
        started = time.monotonic()
        deadline = None if self.timeout_s is None else started + self.timeout_s
        while True:
            try:
                if self._link is None:
                    self._link = self._connect(method, deadline, None)
                    if self._asked is not None and self._is_replaced(self._link, started, deadline):
                        return
                self._link.send(f"{MANAGER}.Ping", {})
                while True:
                    self._await_reply(self._link, method, started, deadline)
                    self._pause(0.1, method, deadline)
                    self._link.send(f"{MANAGER}.Ping", {})
            except _LostError:
                self.close()
                self._pause(0.02, method, deadline)
            except UnreachableError:
                return

    def _is_replaced(self, link: "_Link", started: float, deadline: float | None) -> bool:
        """Tell whether another keeper listens than the one that was asked before the loss, without what that one had.

        From another pid namespace all pids are 0: then nobody listening for a while tells that the keeper died, for it
        closes its socket at no other time; whether the next one goes on for it cannot be told.
        """
        asked = self._asked
        if link.server_pid == asked and (asked or not self._was_refused):
            return False
        version = f"{MANAGER}.Version"
        link.send(version, {})
        reply = self._await_reply(link, version, started, deadline)
        return reply.error is not None or asked not in (reply.parameters.get("keepers") or ())

    def _timed(self, method: str, parameters: dict[str, Any], deadline: float | None) -> dict[str, Any]:
        if deadline is None or method not in TIMEOUT:
            return parameters
        return parameters | {"timeout_ms": max(1, int((deadline - time.monotonic()) * 1000))}

    def _connected(self, method: str, deadline: float | None, lost_at: float | None) -> "_Link":
        if self._link is not None and self._link.is_stale():
            self.close()
        if self._link is None:
            self._link = self._connect(method, deadline, lost_at)
            if self._remote is not None:
                # The kernel does not know who listens there: it says so itself, and whoever says so has shown its key.
                version = f"{MANAGER}.Version"
                self._link.send(version, {})
                told = self._await_reply(self._link, version, time.monotonic(), deadline).parameters
                self._link.server_pid = told.get("keeper_pid") or 0
        return self._link

    def _connect(self, method: str, deadline: float | None, lost_at: float | None) -> "_Link":
        if self._remote is not None:
            bridge = self._remote.connect(
                lambda seconds: self._pause(seconds, method, deadline),
                lost=lost_at is not None,
                on_refused=self._note_refusal,
            )
            return _Link(bridge.socket, bridge)
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.setblocking(False)
            try:
                connection.connect(self.socket_path)
                return _Link(connection)
            except OSError as error:
                connection.close()
                self._was_refused |= error.errno == errno.ECONNREFUSED
                if error.errno == errno.EAGAIN:
                    pass  # The backlog is full: everybody waits for the next manager. So do we.
                elif error.errno in (errno.EACCES, errno.EPERM):
                    raise SocketDeniedError(self.socket_path) from None
                elif lost_at is None or time.monotonic() - lost_at > RECONNECT_S:
                    reason = {
                        errno.ENOENT: "there is no such socket",
                        errno.ECONNREFUSED: "nobody listens there any more",
                    }.get(error.errno or 0, error.strerror or str(error))
                    raise UnreachableError(self.socket_path, reason) from None
            self._pause(0.05, method, deadline)

    def _note_refusal(self) -> None:
        self._was_refused = True

    def _pause(self, seconds: float, method: str, deadline: float | None) -> None:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise CallTimeoutError(method, self.timeout_s or 0.0)
            seconds = min(seconds, left)
        time.sleep(seconds)

    def _await_reply(self, link: "_Link", method: str, started: float, deadline: float | None) -> Reply:
        grace = GRACE_S if method in TIMEOUT else 0.0
        while True:
            now = time.monotonic()
            left = None if deadline is None else deadline + grace - now
            if left is not None and left <= 0:
                raise CallTimeoutError(method, self.timeout_s or 0.0)
            slice_s = left
            if self._while_waiting is not None:
                slice_s = 1.0 if left is None else min(1.0, left)
            if link.wait_readable(slice_s):
                replies = link.receive()
                if replies:
                    return replies[0]
            elif self._while_waiting is not None:
                self._while_waiting(time.monotonic() - started)


class Stream:
    """The replies to one call with ``more``; an iterator over their parameters that ends with the last one.

    To wait for several streams at once, ``select`` on them (they have a ``fileno``) and take what is there with
    ``ready``.
    """

    def __init__(self, link: "_Link", method: str) -> None:
        self._link = link
        self._method = method
        self._replies: list[Reply] = []
        self._ended = False

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream: the supervisor stops sending when the connection is closed."""
        self._ended = True
        self._link.close()

    def fileno(self) -> int:
        return self._link.fileno()

    @property
    def ended(self) -> bool:
        """The last reply has been taken."""
        return self._ended

    def ready(self) -> list[dict[str, Any]]:
        """Return the replies that are here, without waiting for others.

        Raises:
            ControlError: The supervisor ended the call with an error.
            ConnectionLostError: The connection ended before the last reply.
        """
        if not self._ended and not self._replies:
            try:
                self._replies = self._link.receive()
            except _LostError:
                self.close()
                raise ConnectionLostError(self._method) from None
        taken: list[dict[str, Any]] = []
        while self._replies:
            if taken and self._replies[0].error is not None:
                break
            taken.append(self._take())
        return taken

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self._ended:
            if not self._replies:
                self._link.wait_readable(None)
            yield from self.ready()

    def _take(self) -> dict[str, Any]:
        reply = self._replies.pop(0)
        if not reply.continues:
            self.close()
        if reply.error is not None:
            raise ControlError(reply.error, reply.parameters)
        return reply.parameters


class _Link:
    """One connection: a non-blocking socket and the state of the protocol on it."""

    def __init__(self, connection: socket.socket, bridge: "Bridge | None" = None) -> None:
        self._socket = connection
        self._bridge = bridge
        self._protocol = ClientConnection()
        self.server_pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        """Who listens there: the keeper, also when another manager accepts; 0 in another pid namespace (unix(7))."""
        if bridge is not None:
            self.server_pid = 0  # the other end of the pair is this process

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        if self._bridge is not None:
            self._bridge.join()

    def is_stale(self) -> bool:
        """Has the server closed this idle connection? (It closes those that say nothing for long.)"""
        return self.wait_readable(0)

    def wait_readable(self, timeout_s: float | None) -> bool:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))

    def send(self, method: str, parameters: dict[str, Any], *, more: bool = False) -> None:
        data = memoryview(self._protocol.send(method, parameters, more=more))
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        while data:
            try:
                data = data[self._socket.send(data, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                poller.poll()
            except (BrokenPipeError, ConnectionResetError):
                raise _LostError from None

    def receive(self) -> list[Reply]:
        """Return the replies that became whole with what can be read now; none when that is only part of one."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            raise _LostError from None
        if not data:
            raise _LostError
        return self._protocol.receive_data(data)


def new_token() -> str:
    """Return a text that no other call will ever carry: a random UUID (RFC 9562, version 4)."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


__all__ = [
    "CallTimeoutError",
    "Client",
    "ConnectionLostError",
    "ControlError",
    "ProtocolError",
    "SocketDeniedError",
    "Stream",
    "SupervisorReplacedError",
    "UnreachableError",
    "new_token",
    "qualify",
]

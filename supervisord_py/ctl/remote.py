"""A connection to a supervisor on another machine: TCP, encrypted and authenticated by keys of CURVE.

Theory of operation
-------------------
The client of ``ctl.client`` speaks to a stream socket. Here that is one end of a pair, and a thread moves messages
between the other end and a DEALER of ZeroMQ: a message is a frame there, and ends with a NUL here. Each connection has
a DEALER of its own, which does not connect again by itself: that it has ended is told by the end of the pair, and the
client decides what may be asked again. The thread reads no faster than its pair is read.

Keys lie in a folder: ``client.key_secret``, which nobody else may read, and ``server.key``, the public key of the
supervisor that is meant. Without that one nothing is sent: an unknown supervisor is never trusted at first sight.

While a manager is replaced nobody listens, so a refused connection is tried again for a while: ``REFUSED_S`` at the
beginning, ``LOST_S`` after a loss.
"""

import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import cycle
from typing import Any

from supervisord_py.ctl.client_errors import UnreachableError
from supervisord_py.errors import SupervisordError, UsageError
from supervisord_py.model.problems import BadValue
from supervisord_py.model.targets import SCHEME, parse_endpoint
from supervisord_py.wire.curve import (
    CLIENT,
    PUBLIC_SUFFIX,
    REMOTE_FOLDER,
    SECRET_SUFFIX,
    SERVER,
    Certificate,
    CurveError,
    parse_certificate,
)

KEYS_VARIABLE = "SUPERVISORD_PY_REMOTE_KEYS"

HANDSHAKE_S = 10.0
"""How long a supervisor may take to let somebody in."""

REFUSED_S = 5.0
LOST_S = 30.0
TRY_S = 0.1
STRIKES = 3
"""Handshakes that break off before it is believed that the other end has another key."""

_BROKEN = f"whoever answers there has not the secret key of {SERVER}{PUBLIC_SUFFIX}, or is no supervisor"
_FILE_MAX = 64 * 1024
_CHUNK = 256 * 1024
_AHEAD = 64
"""Messages that ZeroMQ holds ahead of us."""


class KeyDeniedError(SupervisordError):
    """The supervisor does not know this client's key."""

    exit_status = 5

    def __init__(self, address: str, public: str) -> None:
        super().__init__(address, public)
        self.address = address
        self.public = public

    def __str__(self) -> str:
        return (
            f"not permitted: the supervisor at {self.address} does not let the key {self.public} in: "
            f"{CLIENT}{PUBLIC_SUFFIX} has to lie in its keys folder, under any NAME{PUBLIC_SUFFIX}"
        )


class Outcome(Enum):
    """What became of an attempt to connect."""

    OPEN = "open"
    DENIED = "denied"
    REFUSED = "refused"
    BROKEN = "broken"
    SILENT = "silent"


class ClientKeys:
    """This client's own key, and the public key of the supervisor."""

    __slots__ = ("own", "server")

    def __init__(self, own: Certificate, server: str) -> None:
        self.own = own
        self.server = server


def keys_folder(environment: Mapping[str, str], uid: int) -> str:
    """Return where keys lie when nobody says: the folder of ``KEYS_VARIABLE``, or ``remote`` beside the settings."""
    if environment.get(KEYS_VARIABLE):
        return environment[KEYS_VARIABLE]
    if uid == 0:
        return f"/etc/supervisord-py/{REMOTE_FOLDER}"
    home = environment.get("HOME") or os.path.expanduser("~")
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    return os.path.join(config, "supervisord-py", REMOTE_FOLDER)


def read_client_keys(folder: str) -> ClientKeys:
    """Read the keys of a client.

    Raises:
        UsageError: They are not there, others could read or write them, or they are no keys.
    """
    own = _read(
        os.path.join(folder, CLIENT + SECRET_SUFFIX), f"supervisord-py keygen --curve -o {folder} makes it", 0o077
    )
    server_path = os.path.join(folder, SERVER + PUBLIC_SUFFIX)
    hint = f"copy {SERVER}{PUBLIC_SUFFIX} from the keys folder of the supervisor, by a way that you trust"
    server = _read(server_path, hint, 0o022)
    if own.secret is None:
        raise UsageError(f"{os.path.join(folder, CLIENT + SECRET_SUFFIX)} has no secret key in it")
    return ClientKeys(own, server.public)


def _read(path: str, hint: str, forbidden: int) -> Certificate:
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_FILE_MAX)
    except FileNotFoundError:
        raise UsageError(f"--remote needs {path}, which is not there: {hint}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path} is not used: it belongs to uid {status.st_uid}, who could write anything into it")
    if stat.S_IMODE(status.st_mode) & forbidden:
        what = "read" if forbidden & 0o044 else "write"
        mode = "600" if forbidden & 0o044 else "644"
        raise UsageError(
            f"{path} is not used: others may {what} it (mode {stat.S_IMODE(status.st_mode):04o}): chmod {mode} {path}"
        )
    try:
        return parse_certificate(data.decode(errors="replace"))
    except CurveError as error:
        raise UsageError(f"{path}: {error}") from None


class RemoteAddress:
    """A supervisor behind an address, and the keys for it.

    Args:
        address: ``tcp://HOST:PORT`` or ``HOST:PORT``.
        keys: The folder of the keys; None: ``keys_folder``.

    Raises:
        UsageError: It is no address, or there are no keys.
    """

    def __init__(self, address: str, keys: str | None) -> None:
        try:
            self.address = parse_endpoint(address, listens=False)
        except BadValue as problem:
            raise UsageError(f"--remote: {problem.message}" + (f": {problem.hint}" if problem.hint else "")) from None
        try:
            import zmq  # noqa: F401
        except ModuleNotFoundError:
            raise UsageError(f"--remote needs pyzmq, which {sys.executable} has not") from None
        self.keys = read_client_keys(keys or keys_folder(os.environ, os.geteuid()))

    def connect(self, pause: Callable[[float], None], *, lost: bool, on_refused: Callable[[], None]) -> "Bridge":
        """Connect and prove who we are.

        Args:
            pause: Waits for some seconds; raises when the caller's time is over.
            lost: There was a connection a moment ago.
            on_refused: Is called when nobody listens.

        Raises:
            UnreachableError, KeyDeniedError: It cannot be.
        """
        began = time.monotonic()
        strikes = 0
        for endpoint in cycle(endpoints := self._resolved()):
            bridge = Bridge(endpoint, self.keys)
            try:
                outcome = bridge.wait(HANDSHAKE_S, pause)
            except BaseException:  # Ctrl-C too: what is open is closed.
                bridge.abandon()
                raise
            if outcome is Outcome.OPEN:
                bridge.start()
                return bridge
            bridge.abandon()
            patience = LOST_S if lost else REFUSED_S
            match outcome:
                case Outcome.DENIED:
                    raise KeyDeniedError(self.address, self.keys.own.public)
                case Outcome.REFUSED:
                    on_refused()
                    if time.monotonic() - began > patience:
                        raise UnreachableError(self.address, "nobody listens there")
                case Outcome.BROKEN:
                    strikes += 1
                    if strikes >= STRIKES and (not lost or time.monotonic() - began > patience):
                        raise UnreachableError(self.address, _BROKEN)
                case _:
                    if not lost or time.monotonic() - began > patience:
                        raise UnreachableError(self.address, f"no answer within {HANDSHAKE_S:g}s")
            pause(TRY_S if endpoint == endpoints[-1] else 0.0)
        raise AssertionError("internal error: a name without an address")

    def _resolved(self) -> list[str]:
        """Return all that the name stands for."""
        host, _, port = self.address.removeprefix(SCHEME).rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnreachableError(self.address, (error.strerror or str(error)).lower()) from None
        numeric = dict.fromkeys(str(each[4][0]) for each in found)
        return [f"{SCHEME}[{each}]:{port}" if ":" in each else f"{SCHEME}{each}:{port}" for each in numeric]


class Bridge:
    """One connection, and the pair of sockets that it is used by: ``socket`` is the caller's end."""

    def __init__(self, endpoint: str, keys: ClientKeys) -> None:
        import zmq

        assert keys.own.secret is not None
        self._zmq = zmq
        self.socket, self._ours = socket.socketpair()
        self._ours.setblocking(False)
        self._context = zmq.Context(io_threads=1)
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        self._dealer.ipv6 = "[" in endpoint
        self._dealer.reconnect_ivl = -1
        self._dealer.rcvhwm = _AHEAD
        self._dealer.handshake_ivl = int(HANDSHAKE_S * 1000)
        self._dealer.tcp_keepalive = 1
        self._dealer.tcp_keepalive_idle = 60
        self._dealer.curve_serverkey = keys.server.encode()
        self._dealer.curve_publickey = keys.own.public.encode()
        self._dealer.curve_secretkey = keys.own.secret.encode()
        self._monitor = self._dealer.get_monitor_socket()
        self._dealer.connect(endpoint)
        self._thread: threading.Thread | None = None
        self._calls: deque[bytes] = deque()
        self._call = bytearray()
        self._replies = bytearray()

    def wait(self, limit_s: float, pause: Callable[[float], None]) -> Outcome:
        """Return what became of the connection."""
        zmq = self._zmq
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not self._monitor.poll(50):
                pause(0.0)
                continue
            match self._event():
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    return Outcome.OPEN
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    return Outcome.DENIED
                case (
                    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
                ):
                    return Outcome.BROKEN
                case zmq.EVENT_CLOSED:
                    return Outcome.REFUSED
        return Outcome.SILENT

    def start(self) -> None:
        """Begin to move messages."""
        self._thread = threading.Thread(target=self._run, name="supctl remote", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Return when all is closed, after the caller's end was."""
        if self._thread is not None:
            self._thread.join(HANDSHAKE_S)

    def abandon(self) -> None:
        """Let go of what did not become a connection."""
        self.socket.close()
        self._shut()

    def _event(self) -> int | None:
        try:
            told = self._monitor.recv_multipart(self._zmq.NOBLOCK)
        except self._zmq.Again:
            return None
        return int.from_bytes(told[0][:2], sys.byteorder)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._shut()

    def _shut(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(0)
        self._context.term()
        self._ours.close()

    def _turn(self) -> bool:
        """Wait until something can be moved, and move it; False when one of the ends is gone."""
        zmq = self._zmq
        poller = zmq.Poller()
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._dealer, (0 if self._replies else zmq.POLLIN) | (zmq.POLLOUT if self._calls else 0))
        poller.register(self._ours, (0 if self._calls else zmq.POLLIN) | (zmq.POLLOUT if self._replies else 0))
        ready: dict[Any, int] = dict(poller.poll())
        if ready.get(self._ours.fileno(), 0) & zmq.POLLIN and not self._take_calls():
            return False
        if ready.get(self._ours.fileno(), 0) & zmq.POLLERR:
            return False
        self._pass_calls()
        self._take_replies()
        if not self._pass_replies():
            return False
        while (event := self._event()) is not None:
            if event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                self._say_the_last()
                return False
        return True

    def _take_calls(self) -> bool:
        try:
            data = self._ours.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *whole, rest = (self._call + data).split(b"\0")
        self._calls.extend(map(bytes, whole))
        self._call = bytearray(rest)
        return bool(data)

    def _pass_calls(self) -> None:
        try:
            while self._calls:
                self._dealer.send(self._calls[0], self._zmq.NOBLOCK)
                self._calls.popleft()
        except self._zmq.Again:
            pass

    def _take_replies(self) -> None:
        try:
            while len(self._replies) < _CHUNK:
                self._replies += b"".join(self._dealer.recv_multipart(self._zmq.NOBLOCK)) + b"\0"
        except self._zmq.Again:
            pass

    def _pass_replies(self) -> bool:
        try:
            while self._replies:
                del self._replies[: self._ours.send(self._replies, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _say_the_last(self) -> None:
        """The connection has ended: what has come by it is still passed on, as long as it is read."""
        poller = select.poll()
        poller.register(self._ours, select.POLLOUT)
        while True:
            self._take_replies()
            if not self._replies or not self._pass_replies():
                return
            if self._replies:
                poller.poll()

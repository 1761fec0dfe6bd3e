"""Who comes over TCP: a ROUTER of ZeroMQ with CURVE, and who is let in to it by the keys of a folder.

Theory of operation
-------------------
Everything is encrypted to the supervisor's own key, so who does not know that one gets no further than the first
packet, and nothing that was recorded can be played again. libzmq asks here for every connection (ZAP, RFC 27) whether
its public key is one that may come; the answer is the User-Id of each of its messages: the key itself. What that key is
called, and whether it still may come, is looked up for each message.

libzmq's monitor tells the descriptor of each accepted connection, and messages carry it: so a connection has an
address, and can be cut. All that are accepted are counted until they end. Those that have said nothing yet are bounded,
and so are those inside, in all and of each key: the one that was silent for longest goes, of the address or key that
has most. Whoever is cut connects again by itself.

As in ``bus_door``, descriptors are edge-triggered: ``turn`` must be called when one of them can be read.

Laws: nobody is let in whose key is not in the folder now; a connection whose key leaves the folder is cut.

Source: rfc.zeromq.org/spec/26 (CurveZMQ) and 27 (ZAP); libzmq 4.3.5, curve_server.cpp, stream_engine_base.cpp.
"""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import zmq
from zmq.utils import z85

from supervisord_py.host.bus_door import DOMAIN, ZAP_ADDRESS, Member, receive
from supervisord_py.host.facade import Peer, RemoteKey, remote_peer
from supervisord_py.host.remote_keys import KeyFolder
from supervisord_py.wire.curve import Certificate

WAITING_MAX = 256
"""Connections that have not shown a key, or have said nothing with it."""

INSIDE_MAX = 512
INSIDE_A_KEY_MAX = 64

DESCRIPTORS_A_CONNECTION = 16
"""Of so many that the process may have, one connection may wait and one be inside: each has up to four, there are two
listeners, and libzmq ends the process when it has none."""

HANDSHAKE_MS = 10_000
BACKLOG = 128
KEEPALIVE_S = 60
ASKED_A_TURN = 64


class _Caller:
    """A connection, with a duplicate of its descriptor, for as long as it lasts."""

    def __init__(self, fd: int, connection: socket.socket, host: str, port: int) -> None:
        self.fd = fd
        self.connection = connection
        self.host = host
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.key: str | None = None


class RemoteDoor:
    """A listener for keys.

    Args:
        listener: Whose it is.
        own: The supervisor's key.
        keys: Who may come.
        message_max: Bytes of a message; a connection that sends a larger one ends.
        queue: Messages that wait in libzmq for one connection.
        ahead: Messages that libzmq reads ahead of one connection.
        on_left: Is told the descriptor of a connection that has ended.
        on_refused: Is told who was refused, and why.
        on_news: Is called when something was sent: descriptors may have lost their edge by that.
    """

    def __init__(
        self,
        listener: Literal["control", "bus"],
        own: Certificate,
        keys: KeyFolder,
        *,
        message_max: int,
        queue: int,
        ahead: int,
        on_left: Callable[[int], None],
        on_refused: Callable[[Peer, str], Awaitable[None]],
        on_news: Callable[[], None],
    ) -> None:
        assert own.secret is not None
        self._listener: Literal["control", "bus"] = listener
        self._keys = keys
        self._on_left = on_left
        self._on_refused = on_refused
        self._on_news = on_news
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._waiting_max = min(WAITING_MAX, descriptors // DESCRIPTORS_A_CONNECTION)
        self._inside_max = min(INSIDE_MAX, descriptors // DESCRIPTORS_A_CONNECTION)
        self._callers: dict[int, _Caller] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.router_mandatory = True
        self.socket.maxmsgsize = message_max
        self.socket.sndhwm = queue
        self.socket.rcvhwm = ahead
        self.socket.backlog = BACKLOG
        self.socket.handshake_ivl = HANDSHAKE_MS
        self.socket.tcp_keepalive = 1
        self.socket.tcp_keepalive_idle = KEEPALIVE_S
        self.socket.tcp_keepalive_intvl = KEEPALIVE_S // 4
        self.socket.curve_server = True
        self.socket.curve_secretkey = own.secret.encode()
        self.socket.zap_domain = DOMAIN
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind(ZAP_ADDRESS)
        address = "inproc://supervisord-py.monitor"
        self.socket.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.rcvhwm = 0  # a full one would hold up libzmq's thread
        self._monitor.connect(address)

    def bind(self, address: str) -> None:
        """Listen.

        Raises:
            OSError: It cannot be: the port is taken, the address none of this machine's.
        """
        self.socket.ipv6 = "[" in address
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), address) from None

    @property
    def descriptors(self) -> tuple[int, int, int]:
        return self.socket.fileno(), self._zap.fileno(), self._monitor.fileno()

    @property
    def connections(self) -> int:
        """How many connections have said something with a key."""
        return sum(caller.key is not None for caller in self._callers.values())

    def peer(self, user: str, fd: int) -> Peer | None:
        """Return who has sent a message, by its User-Id and descriptor; None where nobody is answered any more."""
        if fd not in self._callers:
            self._hear()
        caller = self._callers.get(fd)
        keys = self._keys.known
        name = None if keys is None else keys.names.get(user)
        if caller is None or name is None:
            self.cut(fd)
            return None
        # The last in the order is the one that was heard last.
        self._callers[fd] = self._callers.pop(fd)
        if caller.key is None:
            caller.key = user
            self._bound(lambda each: each.key == user, INSIDE_A_KEY_MAX, lambda each: each.key)
            self._bound(lambda each: each.key is not None, self._inside_max, lambda each: each.key)
        return remote_peer(RemoteKey(name, caller.address, self._listener))

    def member(self, user: str, fd: int, address: bytes) -> Member | None:
        """As ``peer``, for the bus. ``address`` is the routing id: those of libzmq's making begin with a NUL."""
        peer = self.peer(user, fd)
        return None if peer is None else Member("", "", peer, "" if address[:1] == b"\0" else address.hex())

    def turn(self) -> None:
        """Take what libzmq tells and asks."""
        self._hear()
        for _ in range(ASKED_A_TURN):
            asked = receive(self._zap)
            if asked is None:
                return
            self._answer(asked)
        self._on_news()

    def keys_changed(self) -> None:
        """Cut off those whose keys may come no more."""
        keys = self._keys.known
        for caller in list(self._callers.values()):
            if caller.key is not None and (keys is None or caller.key not in keys.names):
                self.cut(caller.fd)

    def cut(self, fd: int) -> None:
        """End a connection; one that has ended is left alone."""
        caller = self._callers.get(fd)
        if caller is not None:
            with contextlib.suppress(OSError):
                caller.connection.shutdown(socket.SHUT_RDWR)
            # libzmq sees that in a moment, and says so; nothing that comes by it counts any more.
            self._left(fd)

    async def close(self) -> None:
        """Listen no more, and end all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.socket.disable_monitor()
        self._monitor.close()
        self._zap.close()
        self.socket.close()
        for caller in self._callers.values():
            caller.connection.close()
        self._callers.clear()
        self._context.term()

    def _hear(self) -> None:
        while (told := receive(self._monitor)) is not None:
            event, value = struct.unpack("=HI", told[0][:6])
            if event == zmq.EVENT_ACCEPTED:
                self._arrived(value)
            else:
                self._left(value)

    def _arrived(self, fd: int) -> None:
        try:
            connection = socket.socket(fileno=os.dup(fd))
        except OSError:
            return  # It is gone already.
        try:
            host, port = connection.getpeername()[:2]
        except OSError:
            connection.close()
            return
        self._left(fd)
        self._callers[fd] = _Caller(fd, connection, host, port)
        self._bound(lambda each: each.key is None, self._waiting_max, lambda each: each.host)

    def _left(self, fd: int) -> None:
        caller = self._callers.pop(fd, None)
        if caller is not None:
            caller.connection.close()
            self._on_left(fd)

    def _bound(self, counts: Callable[[_Caller], bool], most: int, kind: Callable[[_Caller], str | None]) -> None:
        """Cut one of those that count where they are too many: the one silent for longest, of the kind with most."""
        counted = [caller for caller in self._callers.values() if counts(caller)]
        if len(counted) > most:
            largest = max(Counter(map(kind, counted)).items(), key=lambda item: item[1])[0]
            self.cut(next(caller.fd for caller in counted if kind(caller) == largest))

    def _answer(self, asked: list[bytes]) -> None:
        if len(asked) < 8 or asked[2] != b"1.0":
            return  # libzmq never asks like that, and nobody else can
        is_curve = asked[4] == DOMAIN and asked[7] == b"CURVE" and len(asked) == 9 and len(asked[8]) == 32
        public = z85.encode(asked[8]).decode() if is_curve else ""
        keys = self._keys.keys
        if keys is not None and public in keys.names:
            status, text, user = b"200", b"OK", public
        else:
            status, text, user = b"400", b"refused", ""
            why = (
                f"the public key {public} is not in {self._keys.path}" if keys is not None else str(self._keys.problem)
            )
            peer = remote_peer(RemoteKey("", asked[5].decode(errors="replace"), self._listener))
            task = asyncio.get_running_loop().create_task(self._tell_refused(peer, why))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._zap.send_multipart([asked[0], b"", b"1.0", asked[3], status, text, user.encode(), b""])
        self._on_news()

    async def _tell_refused(self, peer: Peer, why: str) -> None:
        await self._on_refused(peer, why)

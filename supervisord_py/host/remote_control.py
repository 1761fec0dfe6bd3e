"""``[control.remote]``: the control interface over TCP, a Varlink message a frame, for those who have a key.

Theory of operation
-------------------
Each connection that says something gets one of the control server's, through a pair of sockets: so calls are answered,
judged, recorded and bounded by the code that answers those of the Unix socket, and nothing else does. What is here
moves messages between frames and that pair.

A frame is one message: what has a NUL in it, or several parts, becomes a message that is none, in its turn. A reply
that the peer has no room for waits in the pair, and behind it the server, which holds back whoever makes it; calls that
come faster than they are answered wait here up to ``AHEAD_MAX``, and above that the connection is cut.

When the server ends a conversation (nothing was said for long, or something that is no call), the connection is cut a
moment later, unless it has begun another one: then what is lost is seen to be lost.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable

import zmq

from supervisord_py.host.control_server import ControlServer, OnBug
from supervisord_py.host.facade import Peer
from supervisord_py.host.remote_door import RemoteDoor
from supervisord_py.host.remote_keys import KeyFolder
from supervisord_py.wire.curve import Certificate
from supervisord_py.wire.varlink import CALL_MAX, MANAGER, format_error

FRAME_MAX = 2 * CALL_MAX
"""Bytes of a frame that are still read, so that it can be refused with a reason; above it the connection ends."""

QUEUE = 4
"""Replies that libzmq has for a connection; each may be large."""

AHEAD = 2
AHEAD_MAX = 2 * FRAME_MAX
"""Bytes of calls that wait here until the server reads them."""

FRAMES_A_TURN = 64
CHUNK = 64 * 1024
CUT_S = 1.0
LOOK_FIRST_S = 0.02
LOOK_LAST_S = 1.0
BUG_PAUSE_S = 1.0


class RemoteControl:
    """The listener of the control interface.

    Args:
        own: The supervisor's key.
        keys: Who may come.
        server: Answers.
        on_refused: Is told who was refused, and why.
        on_bug: Is told of errors of ours.
    """

    def __init__(
        self,
        own: Certificate,
        keys: KeyFolder,
        server: ControlServer,
        *,
        on_refused: Callable[[Peer, str], Awaitable[None]],
        on_bug: OnBug,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._server = server
        self._on_bug = on_bug
        self._talks: dict[bytes, _Talk] = {}
        self._crowded: dict[_Talk, None] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._look_s = LOOK_FIRST_S
        self._is_scheduled = self._is_closed = False
        self.door = RemoteDoor(
            "control",
            own,
            keys,
            message_max=FRAME_MAX,
            queue=QUEUE,
            ahead=AHEAD,
            on_left=self._left,
            on_refused=on_refused,
            on_news=self._kick,
        )

    def open(self, address: str) -> None:
        """Listen. Raises: OSError."""
        self.door.bind(address)
        for descriptor in self.door.descriptors:
            self.loop.add_reader(descriptor, self._kick)
        self._kick()

    def keys_changed(self) -> None:
        self.door.keys_changed()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for descriptor in self.door.descriptors:
            self.loop.remove_reader(descriptor)
        if self._looking is not None:
            self._looking.cancel()
        for talk in list(self._talks.values()):
            self.forget(talk)
        await self.door.close()

    # What conversations need

    def send(self, talk: "_Talk", frame: bytes) -> bool:
        """Hand a reply to libzmq; False when there is no room for it."""
        try:
            self.door.socket.send_multipart((talk.address, frame), zmq.NOBLOCK)
        except zmq.Again:
            self._crowded[talk] = None
            if self._looking is None:
                self._looking = self.loop.call_later(self._look_s, self._look)
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.forget(talk)
            return False
        self._look_s = LOOK_FIRST_S
        self._kick()
        return True

    def forget(self, talk: "_Talk", *, cut: bool = False) -> None:
        """End a conversation; with ``cut`` its connection, too."""
        if self._talks.get(talk.address) is talk:
            del self._talks[talk.address]
        self._crowded.pop(talk, None)
        talk.close()
        if cut:
            self.door.cut(talk.fd)

    def ended(self, talk: "_Talk") -> None:
        """The server has ended a conversation, and its peer has what was said."""
        self.forget(talk)
        self.loop.call_later(CUT_S, self._cut_silent, talk)

    def _cut_silent(self, talk: "_Talk") -> None:
        if not self._is_closed and talk.address not in self._talks:
            self.door.cut(talk.fd)

    # Turns

    def _kick(self) -> None:
        """Look at all sockets soon: libzmq tells of news once, and every call may have taken the telling."""
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            self.loop.call_soon(self._turn)

    def _look(self) -> None:
        self._looking = None
        self._look_s = min(2 * self._look_s, LOOK_LAST_S)
        self._kick()

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        try:
            self.door.turn()
            for talk in list(self._crowded):
                self._crowded.pop(talk, None)
                talk.flush()
            for _ in range(FRAMES_A_TURN):
                try:
                    frames = self.door.socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    return
                self._take(frames)
            self._kick()
        except Exception as error:  # noqa: BLE001  a bug here must not end what others are doing
            self._on_bug("[control.remote]", error)
            self.loop.call_later(BUG_PAUSE_S, self._kick)

    def _take(self, frames: list[zmq.Frame]) -> None:
        address, *body = frames
        if not body:
            return
        fd = int(str(body[0].get("__fd")))
        peer = self.door.peer(str(body[0].get("User-Id")), fd)
        if peer is None:
            return
        talk = self._talks.get(address.bytes)
        if talk is None or talk.fd != fd or talk.has_ended:
            if talk is not None:
                self.forget(talk)
            talk = self._begin(address.bytes, fd, peer)
        if talk is not None:
            # A control character is nowhere in JSON.
            talk.hear(b"\1".join(part.bytes for part in body).replace(b"\0", b"\1") + b"\0")

    def _begin(self, address: bytes, fd: int, peer: Peer) -> "_Talk | None":
        ours, its = socket.socketpair()
        talk = _Talk(self, address, fd, ours)
        if not self._server.adopt(its, peer):
            message = "too many connections are at work: try again in a moment"
            self.send(talk, format_error(f"{MANAGER}.Busy", {"message": message})[:-1])
            self._crowded.pop(talk, None)
            talk.close()
            return None
        self._talks[address] = talk
        talk.open()
        return talk

    def _left(self, fd: int) -> None:
        for talk in [each for each in self._talks.values() if each.fd == fd]:
            self.forget(talk)


class _Talk:
    """What one connection says and is answered: frames here, a stream socket there."""

    def __init__(self, gate: RemoteControl, address: bytes, fd: int, connection: socket.socket) -> None:
        self.address = address
        self.fd = fd
        self.has_ended = False
        """The server has closed its end."""
        self._gate = gate
        self._connection = connection
        self._calls = bytearray()
        self._replies: deque[bytes] = deque()
        self._reply = bytearray()
        self._is_closed = self._is_reading = self._is_writing = False

    def open(self) -> None:
        self._connection.setblocking(False)
        self._read_on()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._stop_reading()
            self._stop_writing()
            self._connection.close()

    def hear(self, call: bytes) -> None:
        """Pass on a call, its NUL included."""
        self._calls += call
        self._write()
        if len(self._calls) > AHEAD_MAX:
            self._gate.forget(self, cut=True)

    def flush(self) -> None:
        """Send replies until there is no room, then read no more of them."""
        while self._replies and not self._is_closed:
            if not self._gate.send(self, self._replies[0]):
                self._stop_reading()
                return
            self._replies.popleft()
        if self._is_closed:
            return
        if self.has_ended:
            self._gate.ended(self)
        else:
            self._read_on()

    def _write(self) -> None:
        try:
            while self._calls and not self._is_closed:
                del self._calls[: self._connection.send(self._calls, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            if not self._is_writing:
                self._is_writing = True
                self._gate.loop.add_writer(self._connection.fileno(), self._write)
            return
        except OSError:
            self._calls.clear()  # The server has hung up: what it said last is read yet.
        self._stop_writing()

    def _readable(self) -> None:
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.has_ended = True
            self._stop_reading()
            self.flush()
            return
        searched = len(self._reply)
        self._reply += data
        while (end := self._reply.find(b"\0", searched)) >= 0:
            self._replies.append(bytes(self._reply[:end]))
            del self._reply[: end + 1]
            searched = 0
        self.flush()

    def _read_on(self) -> None:
        if not self._is_reading and not self.has_ended:
            self._is_reading = True
            self._gate.loop.add_reader(self._connection.fileno(), self._readable)

    def _stop_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._gate.loop.remove_reader(self._connection.fileno())

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._gate.loop.remove_writer(self._connection.fileno())

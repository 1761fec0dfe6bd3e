"""The Varlink server of the control socket: bytes and connections, no methods and no policy.

Theory of operation
-------------------
The listening socket comes from the keeper, so it outlives this process: clients of a dead manager wait in its
backlog. Each accepted connection is one task that answers call after call in their order; nothing one connection does
reaches another but through the bounds that all share.

Bounds: connections (``control_seats``), the size and nesting of a call (``wire.varlink``), the time until the first
call, between calls and for the rest of a call once it has begun, the bytes read ahead, and the bytes not yet read by
the peer: a reader that takes nothing of a plain reply for ``stall_s`` is cut off, one of a stream holds its handler
back (the source of the stream counts what it drops meanwhile, and says so).

A peer may close its sending half and still wait for replies (``nc -N`` does). That it is gone altogether is told by
EPOLLHUP, watched apart from asyncio, which sees nothing of a connection that it does not read from. A call whose peer
is gone is still carried out; only waiting and streams end.

What cannot be understood is answered with ``InvalidRequest`` and the connection is closed, because the framing may be
lost (not where frames of another kind hold the calls: ``adopt``).
"""

import asyncio
import errno
import select
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from msgspec import Struct

from supervisord_py.host.control_calls import Endpoint, InvalidCallError, MethodError, PeerGoneError
from supervisord_py.host.control_seats import Seat, SeatLimits, Seats
from supervisord_py.host.facade import Peer
from supervisord_py.host.peers import Credentials, read_credentials
from supervisord_py.host.refusals import Refusals
from supervisord_py.wire.interface import InvalidParameterError
from supervisord_py.wire.varlink import (
    CALL_MAX,
    MANAGER,
    SERVICE,
    Call,
    ServerConnection,
    VarlinkProtocolError,
    format_error,
)

T = TypeVar("T")

Identify = Callable[[socket.socket, Credentials], Awaitable[Peer]]

OnBug = Callable[[str, Exception], object]
"""Is told of an error of ours: where it was, and what. The call has ended, the server goes on."""

LOBBY_MAX = 64
"""Connections without a seat that are kept open for a moment, so that they read why."""

ACCEPTS_AT_ONCE = 16
"""Connections accepted before the rest of the manager gets its turn: few, so that in a flood a newcomer's call is read
before its seat is wanted by the next hundreds."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ControlLimits(Struct, frozen=True):
    """The bounds of the server; times in seconds, sizes in bytes."""

    call_max: int = CALL_MAX
    seats: SeatLimits = SeatLimits()
    first_call_s: float = 30.0
    between_calls_s: float = 300.0
    rest_of_call_s: float = 30.0
    stall_s: float = 30.0
    unread_max: int = 256 * 1024
    """Bytes that wait for the peer before its handler is held back."""
    gone_grace_s: float = 1.0
    """How long what a handler awaits may go on when the peer is gone."""
    accept_pause_s: float = 1.0
    lobby_s: float = 1.0
    room_pause_s: float = 0.05
    """As ``accept_pause_s``, when a connection was closed to make room: its descriptor is free in a moment."""


class ControlServer:
    """Serves ``endpoints`` on a listening Unix socket.

    Args:
        listener: The listening socket; it is made non-blocking and stays the caller's.
        endpoints: The interfaces.
        identify: Says who a peer is; asked once a connection, at its first call.
        refusals: Where calls that cannot be understood are recorded.
        own_uid: The supervisor's own user.
        on_bug: Is told of errors of ours.
        limits: The bounds.
    """

    def __init__(
        self,
        listener: socket.socket,
        endpoints: Sequence[Endpoint],
        *,
        identify: Identify,
        refusals: Refusals,
        own_uid: int,
        on_bug: OnBug,
        limits: ControlLimits | None = None,
    ) -> None:
        self.limits = limits or ControlLimits()
        self.endpoints = {endpoint.interface.name: endpoint for endpoint in endpoints}
        self.identify = identify
        self.refusals = refusals
        self.on_bug = on_bug
        self._listener = listener
        self._seats = Seats(self.limits.seats, own_uid=own_uid)
        self._connections: dict[Seat, _Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.hangups = _HangupWatch()
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._lobby: deque[socket.socket] = deque()
        self._is_short = False
        self._closed = False

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._seats)

    def start(self) -> None:
        """Begin to accept connections."""
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def close(self) -> None:
        """Stop accepting, end all connections, and return when their tasks have ended. The listener stays open."""
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener.fileno())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for connection in self._lobby:
            connection.close()
        self.hangups.close()
        await self.refusals.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause_accepting(error)
                return
            self._is_short = False
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        credentials = read_credentials(connection)
        places = self._seats.take(credentials.uid, self._loop.time())
        if not self._seated(connection, places, lambda: self.identify(connection, credentials), is_framed=False):
            self._turn_away(connection)

    def adopt(self, connection: socket.socket, peer: Peer) -> bool:
        """Serve somebody who comes by another way with a key; False when there is no room, and the connection closed.

        Whoever is at the other end of ``connection`` knows where a call ends, and gives one NUL to each.
        """
        assert peer.remote is not None

        async def who() -> Peer:
            return peer

        places = (None, None) if self._closed else self._seats.take_for_key(peer.remote.name, self._loop.time())
        if not self._seated(connection, places, who, is_framed=True):
            connection.close()
            return False
        return True

    def _seated(
        self,
        connection: socket.socket,
        places: tuple[Seat | None, Seat | None],
        who: Callable[[], Awaitable[Peer]],
        *,
        is_framed: bool,
    ) -> bool:
        """Serve a connection that has got a seat; says whether it has."""
        seat, victim = places
        if victim is not None:
            self._connections.pop(victim).cut()
        if seat is None:
            return False
        connection.setblocking(False)
        served = _Connection(self, connection, who, seat, is_framed=is_framed)
        self._connections[seat] = served
        task = self._loop.create_task(self._serve(served))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _serve(self, connection: "_Connection") -> None:
        try:
            await connection.open()
            await connection.serve()
        except Exception as error:  # noqa: BLE001  a bug in one connection must not end what others are doing
            self.on_bug("a control connection", error)
        finally:
            self._connections.pop(connection.seat, None)
            self._seats.leave(connection.seat)
            connection.close()

    def _turn_away(self, connection: socket.socket) -> None:
        """Say that there is no room, and keep the connection open for a moment: the caller writes before it reads."""
        message = "too many connections are at work: try again in a moment"
        connection.setblocking(False)
        try:
            connection.send(format_error(f"{MANAGER}.Busy", {"message": message}))
        except OSError:
            connection.close()  # The peer is gone already.
            return
        self._lobby.append(connection)
        if len(self._lobby) > LOBBY_MAX:
            self._lobby.popleft().close()
        self._loop.call_later(self.limits.lobby_s, connection.close)

    def take_unit_seat(self, seat: Seat, unit: str) -> bool:
        return self._seats.become_unit(seat, unit)

    def _pause_accepting(self, error: OSError) -> None:
        """Leave newcomers in the backlog: a listener that stays readable would keep the loop spinning."""
        victim = self._seats.give_up_one(self._loop.time())
        if victim is not None:
            self._connections.pop(victim).cut()
        self._loop.remove_reader(self._listener.fileno())
        pause_s = self.limits.accept_pause_s if victim is None else self.limits.room_pause_s
        self._resume = self._loop.call_later(pause_s, self._resume_accepting)
        if not self._is_short:
            self._is_short = True
            reason = error.strerror
            print(f"control: cannot accept connections now: {reason}: idle ones are closed", file=sys.stderr)

    def _resume_accepting(self) -> None:
        self._resume = None
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)


class _Connection(asyncio.Protocol):
    """One connection: asyncio's transport below, one task that answers calls above."""

    def __init__(
        self,
        server: ControlServer,
        connection: socket.socket,
        who: Callable[[], Awaitable[Peer]],
        seat: Seat,
        *,
        is_framed: bool,
    ) -> None:
        self.seat = seat
        self._server = server
        self._limits = server.limits
        self._socket = connection
        self._descriptor = connection.fileno()
        self._who = who
        self._peer: Peer | None = None
        self._is_framed = is_framed
        self._wire = ServerConnection(call_max=server.limits.call_max, is_framed=is_framed)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._ahead = 0
        self._reading_paused = False
        self._is_one_too_many = False
        self._ended = False
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._limits.unread_max)

    def data_received(self, data: bytes) -> None:
        self._wire.receive_data(data)
        self._ahead += len(data)
        self._arrived.set()
        if self._ahead > self._limits.call_max and self._transport is not None:
            # Read no further ahead than one call: what is beyond waits in the kernel, and then in the peer.
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        self._arrived.set()
        return True

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        # The descriptor is closed after this returns, and its number may be another connection's in the next moment.
        self._server.hangups.forget(self._descriptor, self)
        self._ended = True
        self._arrived.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Note that nobody will read a reply any more. What the peer has sent before is still read and carried out."""
        self.gone.set()
        self._writable.set()

    def cut(self) -> None:
        """End the connection from this side, at once; its task notices and cleans up."""
        self._ended = True
        self._arrived.set()
        self.hang_up()
        if self._transport is not None:
            self._transport.abort()

    # The life of a connection

    async def open(self) -> None:
        await self._loop.connect_accepted_socket(lambda: self, self._socket)
        if not self.gone.is_set():
            self._server.hangups.watch(self._descriptor, self)

    def close(self) -> None:
        """Close when what was written has been read, or after a while."""
        self._server.hangups.forget(self._descriptor, self)
        if self._transport is None:
            self._socket.close()
        elif self.gone.is_set():
            self._transport.abort()
        else:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._loop.call_later(self._limits.stall_s, self._transport.abort)

    async def serve(self) -> None:
        while (call := await self._next_call()) is not None:
            self.seat.is_busy = self.seat.has_called = True
            try:
                await self._answer(call)
                await self._flush(bounded=True)
            except _StalledError:
                pass  # It was cut off; calls that are already here are still carried out.
            if self._is_one_too_many:
                return
            # Calls that were sent together are answered one a turn: everybody else gets theirs in between.
            await asyncio.sleep(0)

    async def _next_call(self) -> Call | None:
        """Return the next call; None when there will be none: the peer ended, took too long, or sent what is no
        call."""
        begun_s: float | None = None
        while True:
            try:
                call = self._wire.next_call()
            except VarlinkProtocolError as error:
                await self._complain(error)
                if not self._is_framed or self.gone.is_set():
                    return None
                await asyncio.sleep(0)
                continue
            self._arrived.clear()
            if call is not None:
                return call
            if self._ended:
                return None
            self._read_on()
            now_s = self._loop.time()
            if self.seat.is_busy:
                self.seat.is_busy, self.seat.touched_s = False, now_s
            limit_s = self._limits.between_calls_s if self.seat.has_called else self._limits.first_call_s
            if self._wire.has_partial_call:
                # The rest of a call is waited for from its first byte on, however slowly it drips.
                begun_s = now_s if begun_s is None else begun_s
                limit_s = begun_s + self._limits.rest_of_call_s - now_s
            try:
                async with asyncio.timeout(limit_s):
                    await self._arrived.wait()
            except TimeoutError:
                return None

    def _read_on(self) -> None:
        self._ahead = 0
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()

    async def _complain(self, error: VarlinkProtocolError) -> None:
        """Answer what is no call, record it, and have the connection closed."""
        self._write(format_error(f"{MANAGER}.InvalidRequest", {"parameter": None, "message": error.message}))
        peer = await self._identified()
        if peer is not None:
            await self._server.refusals.invalid(peer, "", error.message)

    async def _identified(self) -> Peer | None:
        """Return the peer, asked for once; None when its unit has too many connections already."""
        if self._peer is None:
            self._peer = await self._who()
            unit = self._peer.subject
            self._is_one_too_many = unit is not None and not self._server.take_unit_seat(self.seat, unit)
        return None if self._is_one_too_many else self._peer

    async def _answer(self, call: Call) -> None:
        peer = await self._identified()
        if peer is None:
            self._write(self._wire.error(f"{MANAGER}.Busy", {"message": "this unit has too many connections open"}))
            return
        if peer.gone and self._has_hung_up():
            # A client that was killed while its call waited: there is nobody to refuse, and nothing known to record.
            self._wire.abandon()
            return
        request = _Request(self, call, peer)
        try:
            reply = await self._dispatch(request)
        except MethodError as error:
            if isinstance(error, InvalidCallError):
                await self._server.refusals.invalid(peer, call.method, str(error))
            self._write(self._wire.error(error.error, error.parameters))
        except PeerGoneError:
            self._wire.abandon()
        except Exception as error:  # noqa: BLE001  a bug in one method must not end what others are doing
            self._write(self._wire.error(f"{MANAGER}.InternalError", {"message": f"internal error: {error!r}"[:500]}))
            self._server.on_bug(call.method, error)
        else:
            self._write(self._wire.reply(reply))

    async def _dispatch(self, request: "_Request") -> object:
        call = request.call
        endpoint = self._server.endpoints.get(call.interface)
        if endpoint is None:
            message = f"no interface {call.interface}"
            raise InvalidCallError(f"{SERVICE}.InterfaceNotFound", {"interface": call.interface}, message)
        method = endpoint.interface.methods.get(call.member)
        if method is None:
            raise InvalidCallError(f"{SERVICE}.MethodNotFound", {"method": call.method}, f"no method {call.method}")
        if call.upgrade:
            message = f"{call.method} does not upgrade its connection"
            raise InvalidCallError(f"{SERVICE}.MethodNotImplemented", {"method": call.method}, message)
        try:
            request.parameters = endpoint.interface.check_input(method, call.parameters)
        except InvalidParameterError as error:
            raise InvalidCallError(
                f"{SERVICE}.InvalidParameter", {"parameter": error.parameter}, f"{call.method}: {error}"
            ) from None
        return await endpoint.handlers[call.member](request)

    def _has_hung_up(self) -> bool:
        """Tell whether the peer has closed both ways, also where ``_HangupWatch`` has not heard of it yet."""
        if self.gone.is_set():
            return True
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    # What a request needs of its connection

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self.gone.is_set():
            self._transport.write(data)

    async def send(self, parameters: object) -> None:
        self._write(self._wire.reply(parameters, continues=True))
        await self._flush(bounded=False)
        if self.gone.is_set():
            raise PeerGoneError("the peer has closed its connection")

    async def _flush(self, *, bounded: bool) -> None:
        """Wait until the peer's backlog is small; ``bounded``: cut off a peer that reads nothing for ``stall_s``."""
        if not bounded:
            await self._writable.wait()
            return
        transport = self._transport
        assert transport is not None
        while not self._writable.is_set():
            left = transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._limits.stall_s):
                    await self._writable.wait()
            except TimeoutError:
                if transport.get_write_buffer_size() >= left:
                    self.cut()
                    raise _StalledError from None

    async def until_gone(self, awaitable: Awaitable[T]) -> T:
        work = asyncio.ensure_future(awaitable)
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # What was asked for has begun: give it the moment that it needs to be on its way before it is left
                # alone.
                await asyncio.wait({work}, timeout=self._limits.gone_grace_s)
            if not work.done():
                raise PeerGoneError("the peer has closed its connection")
            return work.result()
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
                if not work.cancelled():
                    work.exception()  # It failed while it was being given up: nobody is left to tell.


class _StalledError(Exception):
    """The peer reads nothing of what it asked for."""


class _Request:
    """``control_calls.Request`` on a connection."""

    def __init__(self, connection: _Connection, call: Call, peer: Peer) -> None:
        self._connection = connection
        self.call = call
        self.peer = peer
        self.parameters: dict[str, Any] = {}

    async def send(self, parameters: object) -> None:
        assert self.call.more, f"internal error: {self.call.method} streams to a call without more"
        await self._connection.send(parameters)

    async def until_gone(self, awaitable: Awaitable[T]) -> T:
        return await self._connection.until_gone(awaitable)


class _HangupWatch:
    """Tells connections that their peer is gone for good, also those that are not being read.

    An epoll of its own, with an empty mask: then only EPOLLHUP and EPOLLERR are told, and EPOLLHUP of a Unix socket
    means that both halves are closed. asyncio watches the epoll's descriptor, which is readable when there is
    something to tell.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._tell)

    def watch(self, descriptor: int, connection: _Connection) -> None:
        self._epoll.register(descriptor, 0)
        self._connections[descriptor] = connection

    def forget(self, descriptor: int, connection: _Connection) -> None:
        if self._connections.get(descriptor) is connection:
            del self._connections[descriptor]
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _tell(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            connection = self._connections[descriptor]
            self.forget(descriptor, connection)
            connection.hang_up()

"""The bus: requests of agents become records, records become acknowledgements and deliveries.

Theory of operation
-------------------
One ROUTER on the listening socket that the keeper holds, so connections outlive a manager and wait for the next one;
with ``[bus.remote]`` another one, over TCP. Each has somebody who lets peers in and knows them (``Entrance``).
A turn takes what has come, at most ``BATCH_MAX`` requests, libzmq's fair queue giving every connection its own; all
that are to be written go to custody and journal as one commit. Batches are finished in their order, when the disk has
them (``[journal] sync``): their senders are answered, then their messages are delivered. With ``on-full = "block"`` it
is the other way round, and the answer waits until the subscribers have room.

A message is told by its id and the life of its sender. One that is sent again (its acknowledgement was lost, or died
with a manager) is answered with the number that it has. The ids of the newest messages are read back from the journal,
which has them all, custody's lines included.

What keeps a flood the business of its sender: the rate of each unit, the bound on what is under way in all, a pause
before the next turn where one brought little but refusals, and queues that are bounded at every end.

A journal that cannot be written takes no messages. What was in its hands when the disk failed is refused, kept, and
delivered when it is written after all; its sender gets the number when it asks again.

Laws: no message is acknowledged or delivered before its record is as safe as the journal promises; each is written
once; deliveries are in the order of the journal; the sender is who the kernel says.
"""

import asyncio
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import zmq
from msgspec import Struct, field

from supervisord_py.host.access import Scope
from supervisord_py.host.bus_door import Door, Identify, Judge, Member, life_of
from supervisord_py.host.bus_host import BusHost, Entrance
from supervisord_py.host.bus_limits import Bucket, Memory, Meter
from supervisord_py.host.bus_subscribers import PIPE_MAX, Connection, Past, Subscribers
from supervisord_py.host.facade import Peer, RecordFilter
from supervisord_py.host.peers import Credentials
from supervisord_py.model.records import Record
from supervisord_py.model.settings import BusSettings
from supervisord_py.model.states import Severity
from supervisord_py.wire.bus import (
    BAD_REQUEST,
    BUSY,
    FRAME_MAX,
    KEY,
    NO_SUCH_UNIT,
    NOT_PERMITTED,
    NOT_WRITTEN,
    OLD_LIFE,
    RATE_LIMITED,
    TOPIC,
    BadRequestError,
    Id,
    Publish,
    Subscribe,
    address_of,
    format_ack,
    format_error,
    format_subscribed,
    message_fields,
    parse_request,
)

BATCH_MAX = 256
UNDER_WAY_MAX = 4096
"""Messages in all that are not finished; above it nothing is read until some are."""

LOOK_FIRST_S = 0.02
LOOK_LAST_S = 1.0
"""How often somebody is looked at who has no room."""

BUG_PAUSE_S = 1.0
REFUSED_MAX = 64
"""Refusals that end a turn, and what follows is a pause: a flood is read no faster, nor does it fill the turns."""

PAUSE_S = 0.005

COUNTED_BYTES = 4096
"""A message counts for the rate once more for each of these: the disk is everybody's."""

LIMIT_RECORD_S = 60.0
IDS_READ_BACK = 10_000
RECEIVE_HWM = 128
"""Requests of one connection that libzmq reads ahead; what is above waits in the peer."""

KEPT_RETRY_S = 1.0
KEPT = 0
"""In the place of a number: the event is in the ring (``[journal] keep-last``), which has none."""


class _Pending(Struct):
    """One message, or a repetition of it, whose sender waits for the number of ``place`` in its batch (or ``seq``)."""

    connection: Connection | None
    id: Id
    place: int | None = None
    seq: int = 0


class _Batch(Struct):
    pending: list[_Pending] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    fresh: dict[tuple[str, Id], int] = field(default_factory=dict)
    written: list[dict[str, Any]] = field(default_factory=list)
    upto: int = 0
    done: asyncio.Future[bool] | None = None


class Router:
    """The bus of one manager, open.

    Args:
        path: The path of the socket.
        listener: It, listening; it stays the caller's.
        host: The manager.
        identify: Says who is at the other end of a connection.
        is_there: Says whether the process of a connection has not ended.
        start_of: When a process was started.
        judge: Who may come in.
        on_refused: Is told who may not.
        on_bug: Is told of errors of ours.
        meter: Counts.
    """

    def __init__(
        self,
        path: str,
        listener: socket.socket,
        host: BusHost,
        *,
        identify: Identify,
        is_there: Callable[[socket.socket, Credentials], bool],
        start_of: Callable[[int], int | None],
        judge: Judge,
        on_refused: Callable[[Peer, str], Awaitable[None]],
        on_bug: Callable[[str, Exception], object],
        meter: Meter,
    ) -> None:
        self._host = host
        self._on_bug = on_bug
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._memory = Memory()
        self._buckets: dict[str, Bucket] = {}
        self._limited: Counter[tuple[str, str]] = Counter()
        self._timers: set[asyncio.TimerHandle] = set()
        self._batches: deque[_Batch] = deque()
        self._work = asyncio.Event()
        self._under_way = 0
        self._refused = 0
        self._is_scheduled = self._is_closed = False
        self._looking: asyncio.TimerHandle | None = None
        self._look_s = LOOK_FIRST_S
        self._settings: BusSettings | None = None
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.router_mandatory = True
        self._socket.maxmsgsize = FRAME_MAX
        self._socket.rcvhwm = RECEIVE_HWM
        self._socket.setsockopt(zmq.USE_FD, os.dup(listener.fileno()))
        self._on_refused = on_refused
        self._refusing: set[asyncio.Future[None]] = set()
        self._subscribers = Subscribers(
            Past(host.stream, host.oldest, lambda: host.written, self._scope_of),
            meter,
            published=max(host.next_seq - 1, host.written),
            on_dropped=lambda whose, to: self._limit(whose, f"messages to {to}", "dropped"),
            on_sent=self._kick,
        )
        self._door = Door(
            self._context,
            self._socket,
            identify=identify,
            is_there=is_there,
            start_of=start_of,
            judge=judge,
            on_left=self._subscribers.left,
            on_refused=on_refused,
            on_answered=self._kick,
        )
        self._entrances: dict[zmq.Socket[Any], Entrance] = {self._socket: self._door}
        self._apply()
        self._path = path
        self._finisher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read back what has been sent, then let agents in."""
        for record in await self._host.newest(RecordFilter(events=("unit.message",)), IDS_READ_BACK):
            if (life := _life_of(record)) is not None and isinstance(record.get("id"), str | int):
                self._memory.remember(life, record["id"], record["seq"])
        self._finisher = self._loop.create_task(self._finish())
        # With a descriptor of its own it is not bound again, nor is its file removed when this socket is closed.
        self._socket.bind(f"ipc://{self._path}")
        for descriptor in (self._socket.fileno(), *self._door.descriptors):
            self._loop.add_reader(descriptor, self._kick)
        self._kick()

    def add(self, router: "zmq.Socket[Any]", entrance: Entrance) -> None:
        """Take requests by another socket, too, which is bound already."""
        self._entrances[router] = entrance
        for descriptor in entrance.descriptors:
            self._loop.add_reader(descriptor, self._kick)
        self._kick()

    def remove(self, router: "zmq.Socket[Any]") -> None:
        """Take none by it any more, and let go of everybody who came by it."""
        entrance = self._entrances.pop(router, None)
        if entrance is None:
            return
        for descriptor in entrance.descriptors:
            self._loop.remove_reader(descriptor)
        self._subscribers.end(router)

    def left(self, fd: int) -> None:
        """A connection has ended."""
        self._subscribers.left(fd)

    def kick(self) -> None:
        """Something was sent by one of the sockets."""
        self._kick()

    async def close(self) -> None:
        """Let go of everybody; they connect again, to the next manager."""
        if self._is_closed:
            return
        self._is_closed = True
        for router in [each for each in self._entrances if each is not self._socket]:
            self.remove(router)
        for descriptor in (self._socket.fileno(), *self._door.descriptors):
            self._loop.remove_reader(descriptor)
        for timer in self._timers:
            timer.cancel()
        if self._finisher is not None:
            self._finisher.cancel()
            await asyncio.wait([self._finisher])
        await self._subscribers.close()
        await self._door.close()
        self._socket.close()
        self._context.term()

    @property
    def queue(self) -> int:
        """How many messages libzmq may hold for a connection."""
        return min(self._host.settings.queue, PIPE_MAX)

    @property
    def connections(self) -> int:
        return sum(entrance.connections for entrance in self._entrances.values())

    async def publish(self, records: list[Record]) -> list[int]:
        """Write messages of others' making and deliver them; returns their numbers, none when nothing is written."""
        if self._host.failing is not None:
            return []
        batch = _Batch(records=records, done=self._loop.create_future())
        if not self._write(batch):
            return []
        assert batch.done is not None
        await batch.done
        return [record["seq"] for record in batch.written]

    # Turns

    def _kick(self) -> None:
        """Look at all sockets soon: libzmq tells of news once, and every call may have taken the telling."""
        if not self._is_scheduled and not self._is_closed:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._is_closed:
            return
        try:
            self._apply()
            for entrance in list(self._entrances.values()):
                entrance.turn()
            has_room = self._subscribers.flush()
            if self._under_way < UNDER_WAY_MAX:
                self._read()
            self._look_again(has_room)
        except Exception as error:  # noqa: BLE001  a bug here must not end what others are doing
            self._on_bug("the bus", error)
            self._later(BUG_PAUSE_S, self._kick)

    def _look_again(self, has_room: bool) -> None:
        """Look again after a while at whoever has no room: that there is some is told once, maybe to another call."""
        if self._looking is not None and (has_room or not self._subscribers.is_crowded):
            self._looking.cancel()
            self._looking = None
        if has_room:
            self._look_s = LOOK_FIRST_S
        if self._looking is None and self._subscribers.is_crowded:
            self._looking = self._later(self._look_s, self._look)
            self._look_s = min(2 * self._look_s, LOOK_LAST_S)

    def _look(self) -> None:
        self._looking = None
        self._kick()

    def _later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        now_s = self._loop.time()
        self._timers = {timer for timer in self._timers if not timer.cancelled() and timer.when() > now_s}
        timer = self._loop.call_later(delay_s, call, *arguments)
        self._timers.add(timer)
        return timer

    def _read(self) -> None:
        batch = _Batch()
        has_more = is_flooded = False
        for router, entrance in list(self._entrances.items()):
            self._refused = 0
            has_more |= self._read_from(router, entrance, batch)
            is_flooded |= self._refused >= REFUSED_MAX
        if batch.pending or batch.records:
            self._write(batch)
        if is_flooded:
            self._is_scheduled = True
            self._later(PAUSE_S, self._turn)
        elif has_more:
            self._kick()

    def _read_from(self, router: "zmq.Socket[Any]", entrance: Entrance, batch: _Batch) -> bool:
        """Take what has come by one socket; says whether there is more."""
        most, read = BATCH_MAX // len(self._entrances), 0
        while read < most and self._refused < REFUSED_MAX:
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            read += 1
            self._take(router, entrance, frames, batch)
        return read == most or bool(int(router.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _apply(self) -> None:
        """Take over the settings; a queue that is longer or shorter is so for new connections."""
        settings = self._host.settings
        if settings == self._settings:
            return
        self._settings = settings
        self._socket.sndhwm = self.queue
        self._subscribers.queue = settings.queue
        self._subscribers.is_blocking = settings.on_full == "block"
        self._buckets.clear()

    # One request

    def _take(self, router: "zmq.Socket[Any]", entrance: Entrance, frames: list[zmq.Frame], batch: _Batch) -> None:
        address, *body = frames
        user, fd = (_property(body[0], "User-Id"), int(_property(body[0], "__fd") or -1)) if body else ("", -1)
        member = entrance.member(user, fd, address.bytes)
        if member is None or not body:
            return  # a guest that came too many guests ago: it gets no answers, and connects again
        connection = self._subscribers.connection(router, address.bytes, user, fd, member)
        try:
            if len(body) != 1:
                raise BadRequestError(BAD_REQUEST, f"a request is one frame, not {len(body)}")
            request = parse_request(body[0].bytes)
            self._check(member, request.id, len(body[0]))
            if isinstance(request, Subscribe):
                self._subscribe(connection, request)
            else:
                self._send(connection, member, request, batch)
        except BadRequestError as bad:
            self._refuse(connection, bad.slug, bad.message, bad.id)

    def _check(self, member: Member, id: Id | None, size: int) -> None:
        """Refuse whoever sends too much, or in a life that is over."""
        subject = member.subject
        now_ns = time.monotonic_ns()
        bucket = self._buckets.get(subject)
        assert self._settings is not None
        if bucket is None:
            bucket = self._buckets[subject] = Bucket(self._settings.rate_limit, now_ns)
        if not bucket.take(now_ns, 1 + size // COUNTED_BYTES):
            self._limit(subject, "messages", "refused")
            raise BadRequestError(RATE_LIMITED, "more messages than [bus] rate-limit allows", id)
        if member.unit and self._host.invocation(member.unit) != member.invocation:
            raise BadRequestError(OLD_LIFE, f"{member.unit} has begun another life since", id)

    def _subscribe(self, connection: Connection, request: Subscribe) -> None:
        to = address_of(request.name, connection.member.unit or None)
        if not to:
            raise BadRequestError(BAD_REQUEST, "only a process of a unit has a mailbox: name a topic", request.id)
        if connection.member.peer is not None:
            self._require(connection.member.peer, "journal", request.id)
        if not self._subscribers.has_room(connection, to):
            raise BadRequestError(BUSY, "too many subscriptions on one connection", request.id)
        # The answer first: what follows it is what was asked for.
        self._subscribers.answer(connection, format_subscribed(request.id, request.name, self._subscribers.published))
        self._subscribers.subscribe(connection, to, request.after)

    def _send(self, connection: Connection, member: Member, request: Publish, batch: _Batch) -> None:
        if member.peer is not None:
            if member.peer.remote is None:
                raise BadRequestError(NOT_PERMITTED, "only a process of a unit may send", request.id)
            self._require(member.peer, "send", request.id)
        if request.to is not None and not request.to.startswith(TOPIC) and not self._host.has_unit(request.to):
            raise BadRequestError(NO_SUCH_UNIT, f"there is no unit {request.to}", request.id)
        seq = self._memory.find(member.life, request.id)
        place = batch.fresh.get((member.life, request.id))
        if seq == KEPT or (seq is None and request.to is None and request.event in self._host.keep_last):
            if seq is None:
                self._memory.remember(member.life, request.id, KEPT)
                self._host.keep(_record_of(member, request))
                self._meter.count(member.subject, "sent")
            self._subscribers.answer(connection, format_ack(request.id, None))
            return
        if seq is None and place is None:
            if (why := self._host.failing) is not None:
                raise BadRequestError(NOT_WRITTEN, why, request.id)
            assert self._settings is not None
            if connection.under_way >= self._settings.queue:
                raise BadRequestError(BUSY, "too many messages that are not acknowledged yet", request.id)
            place = batch.fresh[member.life, request.id] = len(batch.records)
            batch.records.append(_record_of(member, request))
            self._meter.count(member.subject, "sent")
        batch.pending.append(_Pending(connection, request.id, place, seq or 0))
        connection.under_way += 1

    def _require(self, peer: Peer, command: str, id: Id | None) -> None:
        """Refuse, and record it, what the rules do not grant."""
        if (why := self._host.refusal(peer, command)) is not None:
            telling = asyncio.ensure_future(self._on_refused(peer, why))
            self._refusing.add(telling)
            telling.add_done_callback(self._refusing.discard)
            raise BadRequestError(NOT_PERMITTED, why, id)

    def _refuse(self, connection: Connection, slug: str, message: str, id: Id | None) -> None:
        self._refused += 1
        self._meter.count(connection.member.subject, slug)
        self._subscribers.answer(connection, format_error(slug, message, id))

    # From records to answers and deliveries

    def _write(self, batch: _Batch) -> bool:
        """Hand a batch to custody and journal; what is lost is refused."""
        lines = self._host.write(batch.records) if batch.records else []
        if len(lines) != len(batch.records):
            self._not_written(batch)
            self._release(batch)
            return False
        batch.written = [msgspec.json.decode(line) for _, line in lines]
        for (life, id), place in batch.fresh.items():
            self._memory.remember(life, id, lines[place][0])
        for pending in batch.pending:
            if pending.place is not None:
                pending.seq = lines[pending.place][0]
        batch.upto = max(lines[-1][0] if lines else 0, max((pending.seq for pending in batch.pending), default=0))
        self._under_way += len(batch.pending)
        self._batches.append(batch)
        self._work.set()
        return True

    async def _finish(self) -> None:
        """Finish batch after batch, in their order."""
        while True:
            while not self._batches:
                self._work.clear()
                await self._work.wait()
            batch = self._batches[0]
            while not await self._host.kept(batch.upto):
                for each in self._batches:
                    self._not_written(each)
                await asyncio.sleep(KEPT_RETRY_S)
            self._batches.popleft()
            self._under_way -= len(batch.pending)
            try:
                await self._answer(batch)
            except Exception as error:  # noqa: BLE001  the messages after these are not to wait for ever
                self._on_bug("the bus", error)
            self._release(batch)
            self._kick()

    async def _answer(self, batch: _Batch) -> None:
        is_blocking = self._subscribers.is_blocking
        if not is_blocking:
            for pending in batch.pending:
                self._acknowledge(pending, batch)
        waits: dict[int, list[asyncio.Future[None]]] = {}
        for place, record in enumerate(batch.written):
            waits[place] = self._subscribers.publish(record)
            if place % 64 == 63:
                await asyncio.sleep(0)
        if is_blocking:
            for pending in batch.pending:
                await_for = waits.get(pending.place, []) if pending.place is not None else []
                self._acknowledge_after(pending, batch, await_for)

    def _acknowledge_after(self, pending: _Pending, batch: _Batch, waits: list["asyncio.Future[None]"]) -> None:
        left = sum(not wait.done() for wait in waits)
        if not left:
            self._acknowledge(pending, batch)
            return
        connection = pending.connection
        assert connection is not None
        connection.under_way += 1
        told = [left]

        def one_more_is_taken(_: "asyncio.Future[None]") -> None:
            told[0] -= 1
            if not told[0]:
                connection.under_way -= 1
                self._acknowledge(pending, batch)

        for wait in waits:
            if not wait.done():
                wait.add_done_callback(one_more_is_taken)

    def _acknowledge(self, pending: _Pending, batch: _Batch) -> None:
        if pending.connection is not None:
            truncated = None if pending.place is None else batch.written[pending.place].get("truncated")
            self._subscribers.answer(pending.connection, format_ack(pending.id, pending.seq, truncated))

    def _not_written(self, batch: _Batch) -> None:
        why = self._host.failing or "the journal's disk does not answer"
        for pending in batch.pending:
            if pending.connection is not None:
                self._refuse(pending.connection, NOT_WRITTEN, why, pending.id)
                pending.connection.under_way -= 1
                pending.connection = None

    def _release(self, batch: _Batch) -> None:
        for pending in batch.pending:
            if pending.connection is not None:
                pending.connection.under_way -= 1
        if batch.done is not None and not batch.done.done():
            batch.done.set_result(True)

    # What people are told

    def _limit(self, whose: str, limit: str, what: str) -> None:
        """Count what a bound kept from happening: a record at once, then one a minute with the count."""
        key = (whose, limit)
        is_new = key not in self._limited
        self._limited[key] += 1
        if is_new:
            self._tell_limit(key, what)

    def _tell_limit(self, key: tuple[str, str], what: str) -> None:
        if self._is_closed:
            return
        whose, limit = key
        count = self._limited[key]
        if not count:
            del self._limited[key]
            return
        self._limited[key] = 0
        if self._host.failing is None:
            problem = {
                "refused": "more than [bus] rate-limit allows",
                "dropped": "the queue of the subscriber is full ([bus] queue)",
            }[what]
            fields = {"limit": limit, "problem": problem, what: count}
            fields |= {"sender": whose} if whose.startswith(KEY) else {}
            unit = None if "/" in whose else whose
            self._host.write([Record("unit.limit", Severity.WARNING, unit=unit, fields=fields)])
        self._later(LIMIT_RECORD_S, self._tell_limit, key, what)

    def _scope_of(self, member: Member) -> Scope | None:
        return None if member.peer is None else self._host.scope(member.peer)


def _record_of(member: Member, request: Publish) -> Record:
    """Return the record of a message: of a unit's life, or of a key and where it is."""
    fields = message_fields(request)
    if member.peer is not None and member.peer.remote is not None:
        fields |= {"sender": member.subject, "address": member.peer.remote.address}
        fields |= {"session": member.session} if member.session else {}
    return Record("unit.message", unit=member.unit or None, invocation=member.invocation or None, fields=fields)


def _life_of(record: dict[str, Any]) -> str | None:
    """Return ``Member.life`` of the sender of a record; None where it has none."""
    invocation, sender = record.get("invocation"), record.get("sender")
    if isinstance(sender, str):
        return life_of(sender.removeprefix(KEY), record.get("session") or "", record.get("address") or "")
    return invocation if isinstance(invocation, str) else None


def _property(frame: zmq.Frame, name: str) -> str:
    """Return what libzmq knows of where a frame came from; empty where it knows nothing."""
    try:
        return str(frame.get(name))
    except (zmq.ZMQError, UnicodeDecodeError):
        return ""

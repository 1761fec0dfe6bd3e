"""Who is on the bus and what goes out to them: bounded queues, subscriptions that begin in the past, counted drops.

Theory of operation
-------------------
A *connection* is known from its first request on (a ROUTER knows no address before). Answers and deliveries to it go
through libzmq's pipe (``PIPE_MAX`` messages), and what that does not take waits in ``outgoing`` until libzmq says that
there is room: answers always, deliveries up to ``queue`` altogether, with ``on-full = "block"`` all of them. With
``"drop"``, and always for somebody who comes over TCP, a delivery that does not fit is counted, and the subscriber is
told how many and after which record before the next one: the journal has them. What waits is one message in memory,
however many subscribers it waits for.

A *subscription* is of one address: a topic, or the unit's own name. One that begins in the past (``after``) first reads
the journal, no faster than the subscriber takes it, up to the newest record that was delivered to anybody; in the same
turn that finds nothing more to read it goes live. So it has no hole and nothing twice, and the past waits in the
journal and not in memory. What the journal has dropped since (``[journal] max-bytes``, ``max-age``) is a hole all the
same, and told as one.

Laws: deliveries of one address come to a connection in the order of their numbers, each once; a subscriber that does
not read costs its queue, once, and nobody else anything (with ``"block"``: those who send to it).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import zmq

from supervisord_py.host.access import Scope
from supervisord_py.host.bus_door import Member
from supervisord_py.host.bus_limits import Meter
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.journal_reader import JournalUnavailableError
from supervisord_py.wire.bus import format_delivery, format_dropped, format_gone

SUBSCRIPTIONS_MAX = 64
"""Of one connection."""

READERS = 2
"""Subscriptions that read the past at a time."""

RETRY_S = 1.0
BEHIND_S = 0.01
PIPE_MAX = 64
"""Messages of one connection that libzmq holds: those of the past are its own, so their number is what bounds them."""

CHUNK_MAX = 1000
"""Deliveries of the past that are in memory for one unit."""

COLLECT_ATTEMPTS = 3
"""Readings that retention may overtake, before what it has dropped meanwhile counts as a hole."""

BREATH = 64
"""Deliveries of the past before everybody else gets a turn."""


class Connection:
    """One peer's end, as far as it has been heard of."""

    def __init__(self, router: "zmq.Socket[Any]", address: bytes, user: str, member: Member, fd: int) -> None:
        self.router = router
        self.address = address
        self.user = user
        self.member = member
        self.fd = fd
        self.subscriptions: dict[str, Subscription] = {}
        self.outgoing: deque[tuple[zmq.Frame, asyncio.Future[None] | None]] = deque()
        self.under_way = 0
        """Messages of it that are not acknowledged yet."""
        self.is_gone = False


class Subscription:
    """One connection's wish for one address. ``seen`` is the last record that went out, or that it does not want."""

    def __init__(self, connection: Connection, to: str, seen: int) -> None:
        self.connection = connection
        self.to = to
        self.seen = seen
        self.dropped = 0
        self.reading: asyncio.Task[None] | None = None


class Past:
    """What subscribers need of the journal, and of the order in which records become deliveries."""

    def __init__(
        self,
        stream: Callable[[RecordFilter], AsyncIterator[list[dict[str, Any]]]],
        oldest: Callable[[], Awaitable[int]],
        written: Callable[[], int],
        scope_of: Callable[[Member], Scope | None],
    ) -> None:
        self.stream = stream
        self.oldest = oldest
        self.written = written
        self.scope_of = scope_of


class Subscribers:
    """All connections.

    Args:
        past: Reads the journal.
        meter: Counts.
        published: The newest record that is delivered, or whose delivery is the journal's.
        on_dropped: Is told of a delivery that did not fit: whose it was, and the address.
        on_sent: Is called after something was sent: a socket's descriptor may have lost its edge.
    """

    def __init__(
        self,
        past: Past,
        meter: Meter,
        *,
        published: int,
        on_dropped: Callable[[str, str], None],
        on_sent: Callable[[], None],
    ) -> None:
        self.published = published
        self.queue = 1
        self.is_blocking = False
        self._past = past
        self._meter = meter
        self._on_dropped = on_dropped
        self._on_sent = on_sent
        self._connections: dict[tuple[zmq.Socket[Any], bytes], Connection] = {}
        self._by_address: dict[str, dict[Subscription, None]] = {}
        self._crowded: dict[Connection, None] = {}
        self._is_flushing = False
        self._sent = 0
        self._readers = asyncio.Semaphore(READERS)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection(self, router: "zmq.Socket[Any]", address: bytes, user: str, fd: int, member: Member) -> Connection:
        """Return the connection that a request came by, to one of the sockets."""
        found = self._connections.get((router, address))
        if found is not None and found.user == user and found.fd == fd:
            return found
        if found is not None:
            self._drop(found)
        connection = self._connections[router, address] = Connection(router, address, user, member, fd)
        if member.unit:
            self._add(Subscription(connection, member.unit, self.published))
        return connection

    def left(self, fd: int) -> None:
        """The connection of a descriptor has ended."""
        for connection in [each for each in self._connections.values() if each.fd == fd]:
            self._drop(connection)

    def end(self, router: "zmq.Socket[Any]") -> None:
        """One of the sockets is closed."""
        for connection in [each for each in self._connections.values() if each.router is router]:
            self._drop(connection)

    def has_room(self, connection: Connection, to: str) -> bool:
        """Say whether the connection may subscribe to an address, too."""
        return to in connection.subscriptions or len(connection.subscriptions) < SUBSCRIPTIONS_MAX

    def subscribe(self, connection: Connection, to: str, after: int | None) -> None:
        """Begin, or begin anew, to deliver."""
        old = connection.subscriptions.get(to)
        if old is not None:
            self._remove(old)
        seen = self.published if after is None else min(after, self.published)
        subscription = Subscription(connection, to, seen)
        self._add(subscription)
        if seen < self.published:
            self._read(subscription)

    def answer(self, connection: Connection, data: bytes) -> None:
        """Send an answer; one that a peer leaves unread for too long is counted and forgotten."""
        if connection.is_gone:
            return
        frame = zmq.Frame(data, copy=True)
        if connection.outgoing or not self._send(connection, frame):
            # Beside as many deliveries as may wait there is room for as many answers.
            if not connection.is_gone and len(connection.outgoing) < 2 * self.queue:
                self._queue(connection, frame)
            else:
                self._meter.count(connection.member.subject, "unread")

    def publish(self, record: dict[str, Any]) -> list["asyncio.Future[None]"]:
        """Deliver a message that is written; records come here in their order.

        Returns:
            With ``on-full = "block"``: what the acknowledgement has to wait for.
        """
        seq: int = record["seq"]
        self.published = max(self.published, seq)
        subscriptions = self._by_address.get(record["to"] or "")
        if not subscriptions:
            return []
        # Copied once into libzmq's memory, and shared by all whom it goes to.
        frame = zmq.Frame(format_delivery(record), copy=True)
        waits = [self._deliver(each, seq, frame, record) for each in list(subscriptions) if each.reading is None]
        return [wait for wait in waits if wait is not None]

    @property
    def is_crowded(self) -> bool:
        """Whether something waits for room."""
        return bool(self._crowded)

    def flush(self) -> bool:
        """Send what waits, where there is room now; says whether there was some for anybody."""
        before = self._sent
        self._is_flushing = True
        try:
            self._flush()
        finally:
            self._is_flushing = False
        return self._sent != before

    def _flush(self) -> None:
        for connection in list(self._crowded):
            while connection.outgoing:
                frame, done = connection.outgoing[0]
                if not self._send(connection, frame):
                    break
                connection.outgoing.popleft()
                if done is not None and not done.done():
                    done.set_result(None)
            if not connection.outgoing:
                self._crowded.pop(connection, None)
                for subscription in connection.subscriptions.values():
                    self._tell_dropped(subscription)

    async def close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Inside

    def _deliver(
        self, subscription: Subscription, seq: int, frame: zmq.Frame, record: dict[str, Any]
    ) -> "asyncio.Future[None] | None":
        connection = subscription.connection
        if seq <= subscription.seen or not self._may_see(connection, record):
            return None
        unit = connection.member.subject
        if self._tell_dropped(subscription) and self._put(connection, frame):
            subscription.seen = seq
            self._meter.count(unit, "delivered")
            return None
        if connection.is_gone:
            return None
        if self.is_blocking and not connection.member.is_remote:
            subscription.seen = seq
            self._meter.count(unit, "delivered")
            return self._wait(connection, frame)
        subscription.dropped += 1
        self._crowded[connection] = None
        self._meter.count(unit, "dropped")
        self._on_dropped(unit, subscription.to)
        return None

    def _tell_dropped(self, subscription: Subscription) -> bool:
        """Tell what did not fit, before anything else of that address; False when not even that fits."""
        if not subscription.dropped:
            return True
        notice = format_dropped(subscription.dropped, subscription.seen, subscription.to)
        if not self._put(subscription.connection, zmq.Frame(notice, copy=True)):
            return False
        subscription.dropped = 0
        return True

    def _may_see(self, connection: Connection, record: dict[str, Any]) -> bool:
        scope = self._past.scope_of(connection.member)
        unit = record.get("unit")
        return scope is None or scope.everything or (isinstance(unit, str) and scope.holds(unit))

    def _put(self, connection: Connection, frame: zmq.Frame) -> bool:
        """Send a message, or have it wait behind others; False when so many wait already, or the peer is gone."""
        if not connection.outgoing and self._send(connection, frame):
            return True
        if connection.is_gone or len(connection.outgoing) >= self.queue - PIPE_MAX:
            return False
        self._queue(connection, frame)
        return True

    def _wait(self, connection: Connection, frame: zmq.Frame) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue(connection, frame, done)
        return done

    def _queue(self, connection: Connection, frame: zmq.Frame, done: "asyncio.Future[None] | None" = None) -> None:
        connection.outgoing.append((frame, done))
        self._crowded[connection] = None

    def _send(self, connection: Connection, frame: zmq.Frame) -> bool:
        """Hand a message to libzmq; False when the peer's queue is full, or the peer gone."""
        if connection.is_gone:
            return False
        try:
            connection.router.send_multipart((connection.address, frame), zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._crowded[connection] = None
            if not self._is_flushing:
                self._on_sent()  # this call, too, may have taken the telling of something else
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(connection)
            return False
        self._sent += 1
        self._on_sent()
        return True

    def _add(self, subscription: Subscription) -> None:
        subscription.connection.subscriptions[subscription.to] = subscription
        self._by_address.setdefault(subscription.to, {})[subscription] = None

    def _remove(self, subscription: Subscription) -> None:
        subscription.connection.subscriptions.pop(subscription.to, None)
        others = self._by_address.get(subscription.to)
        if others is not None:
            others.pop(subscription, None)
            if not others:
                del self._by_address[subscription.to]
        if subscription.reading is not None:
            subscription.reading.cancel()

    def _drop(self, connection: Connection) -> None:
        connection.is_gone = True
        self._crowded.pop(connection, None)
        place = (connection.router, connection.address)
        if self._connections.get(place) is connection:
            del self._connections[place]
        for subscription in list(connection.subscriptions.values()):
            self._remove(subscription)
        for _, done in connection.outgoing:
            if done is not None and not done.done():
                done.set_result(None)
        connection.outgoing.clear()

    def _read(self, subscription: Subscription) -> None:
        subscription.reading = task = asyncio.get_running_loop().create_task(self._read_past(subscription))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_past(self, subscription: Subscription) -> None:
        while subscription.seen < self.published:
            try:
                await self._read_once(subscription)
            except JournalUnavailableError:
                await asyncio.sleep(RETRY_S)
            if subscription.connection.is_gone:
                return
        # In one turn with the look that found nothing more: what comes from now on is delivered as it comes.
        subscription.reading = None

    async def _read_once(self, subscription: Subscription) -> None:
        upto = min(self.published, self._past.written())
        if upto <= subscription.seen:
            await asyncio.sleep(BEHIND_S)  # the journal's file is a moment behind
            return
        connection = subscription.connection
        # One reader of a unit holds what it has read until it is taken; whoever is slow holds up its own kind only.
        async with self._turns.setdefault(connection.member.unit or connection.user, asyncio.Lock()):
            async with self._readers:
                oldest, records, upto = await self._collect(subscription, upto)
            if oldest - 1 > subscription.seen:
                gone = format_gone(subscription.seen, oldest - 1, subscription.to)
                if not await self._push(connection, gone):
                    return
                subscription.seen = oldest - 1
            for place, record in enumerate(records, 1):
                if not await self._push(connection, format_delivery(record)):
                    return
                subscription.seen = record["seq"]
                self._meter.count(connection.member.subject, "delivered")
                if place % BREATH == 0:
                    await asyncio.sleep(0)
        subscription.seen = max(subscription.seen, upto)

    async def _push(self, connection: Connection, data: bytes) -> bool:
        """Send when there is room; False when the peer is gone."""
        frame = zmq.Frame(data, copy=True)
        if connection.outgoing or not self._send(connection, frame):
            if connection.is_gone:
                return False
            await self._wait(connection, frame)
        return True

    async def _collect(self, subscription: Subscription, upto: int) -> tuple[int, list[dict[str, Any]], int]:
        """Return the oldest number that the journal had all the time, the next records from there on that are wanted,
        and up to which number these are all."""
        oldest = await self._past.oldest()
        for _ in range(COLLECT_ATTEMPTS):
            records, last = await self._collect_once(subscription, upto)
            before, oldest = oldest, await self._past.oldest()
            if before == oldest:
                break
        return oldest, [record for record in records if record["seq"] >= oldest], max(last, oldest - 1)

    async def _collect_once(self, subscription: Subscription, upto: int) -> tuple[list[dict[str, Any]], int]:
        found: list[dict[str, Any]] = []
        async for records in self._past.stream(RecordFilter(events=("unit.message",), after=subscription.seen)):
            for record in records:
                seq: int = record["seq"]
                if seq > upto:
                    return found, upto
                if record.get("to") == subscription.to and self._may_see(subscription.connection, record):
                    found.append(record)
                    if len(found) == CHUNK_MAX:
                        return found, seq
        return found, upto

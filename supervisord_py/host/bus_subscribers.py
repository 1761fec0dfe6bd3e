"""Who is on the bus and what goes out to them: bounded queues, subscriptions that begin in the past, counted drops.

Theory of operation
-------------------
A *connection* is known from its first request on (a ROUTER knows no address before). Answers and deliveries to it go
through libzmq's pipe (``queue`` messages), and what that does not take waits in ``outgoing``: answers always, and with
``on-full = "block"`` deliveries too, until libzmq says that there is room. With ``"drop"`` a delivery that does not fit
is counted, and the subscriber is told how many and after which record before the next one: the journal has them.

A *subscription* is of one address: a topic, or the unit's own name. One that begins in the past (``after``) first reads
the journal, no faster than the subscriber takes it, up to the newest record that was delivered to anybody; in the same
turn that finds nothing more to read it goes live. So it has no hole and nothing twice, and the past waits in the
journal and not in memory.

Laws: deliveries of one address come to a connection in the order of their numbers, each once; a subscriber that does
not read costs its queue, once, and nobody else anything (with ``"block"``: those who send to it).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakValueDictionary

import zmq

from supervisord_py.host.access import Scope
from supervisord_py.host.bus_door import Member
from supervisord_py.host.bus_limits import Meter
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.journal_reader import JournalUnavailableError
from supervisord_py.wire.bus import format_delivery, format_dropped

SUBSCRIPTIONS_MAX = 64
"""Of one connection."""

READERS = 2
"""Subscriptions that read the past at a time."""

RETRY_S = 1.0
BEHIND_S = 0.01
CHUNK_MAX = 1000
"""Deliveries of the past that are in memory for one unit."""

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
        self.outgoing: deque[tuple[bytes, asyncio.Future[None] | None]] = deque()
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
        written: Callable[[], int],
        scope_of: Callable[[Member], Scope | None],
    ) -> None:
        self.stream = stream
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
        if connection.outgoing or not self._send(connection, data):
            if not connection.is_gone and len(connection.outgoing) < self.queue:
                self._wait(connection, data)
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
        data = format_delivery(record)
        waits = [self._deliver(each, seq, data, record) for each in list(subscriptions) if each.reading is None]
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
                data, done = connection.outgoing[0]
                if not self._send(connection, data):
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
        self, subscription: Subscription, seq: int, data: bytes, record: dict[str, Any]
    ) -> "asyncio.Future[None] | None":
        connection = subscription.connection
        if seq <= subscription.seen or not self._may_see(connection, record):
            return None
        unit = connection.member.subject
        if not connection.outgoing and self._tell_dropped(subscription) and self._send(connection, data):
            subscription.seen = seq
            self._meter.count(unit, "delivered")
            return None
        if connection.is_gone:
            return None
        if self.is_blocking:
            subscription.seen = seq
            self._meter.count(unit, "delivered")
            return self._wait(connection, data)
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
        if not self._send(subscription.connection, notice):
            return False
        subscription.dropped = 0
        return True

    def _may_see(self, connection: Connection, record: dict[str, Any]) -> bool:
        scope = self._past.scope_of(connection.member)
        unit = record.get("unit")
        return scope is None or scope.everything or (isinstance(unit, str) and scope.holds(unit))

    def _wait(self, connection: Connection, data: bytes) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection.outgoing.append((data, done))
        self._crowded[connection] = None
        return done

    def _send(self, connection: Connection, data: bytes) -> bool:
        """Hand a message to libzmq; False when the peer's queue is full, or the peer gone."""
        if connection.is_gone:
            return False
        try:
            connection.router.send_multipart((connection.address, data), zmq.NOBLOCK)
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
                records, upto = await self._collect(subscription, upto)
            for place, record in enumerate(records, 1):
                data = format_delivery(record)
                if connection.outgoing or not self._send(connection, data):
                    if connection.is_gone:
                        return
                    await self._wait(connection, data)
                subscription.seen = record["seq"]
                self._meter.count(connection.member.subject, "delivered")
                if place % BREATH == 0:
                    await asyncio.sleep(0)
        subscription.seen = max(subscription.seen, upto)

    async def _collect(self, subscription: Subscription, upto: int) -> tuple[list[dict[str, Any]], int]:
        """Return the next records of the past that are wanted, and up to which number these are all."""
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

"""The agent's end of the message bus: what was not acknowledged is sent again, what was missed is asked for again.

Theory of operation
-------------------
One DEALER socket of ZeroMQ, and a new one each time that the connection ends (the manager was replaced): so everything
that is read is of the present connection, and the first things said on it are the subscriptions, each behind the last
message that was seen, then whatever waits for its acknowledgement, under the id that it had: the supervisor knows what
it has written already. libzmq's own reconnecting would send what it has in its queues first.

Nothing runs beside the agent's thread: sockets are looked at while ``send`` or ``receive`` waits, or when the event
loop says that they can be read. Their descriptors are edge-triggered, so all there is is taken each time.

Laws: a message is returned as sent only with the number of its record; each message of a subscription is handed out
once, in the order of the numbers, without a hole (one that the supervisor dropped here is asked for again, and one that
its journal has dropped is handed out as ``Missed``).

pyzmq is imported when a client is made, which is when the agent first sends or subscribes.
"""

import os
import sys
import time
from collections import deque

from supervisord_py.agent.errors import NotSentError
from supervisord_py.agent.message import Message, Missed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from typing import Any

REQUEST_MAX = 64 * 1024
INBOX_MAX = 10_000
"""Messages that wait for the agent; what comes above is asked for again when they are taken."""

RETRY_FIRST_S = 0.05
RETRY_LAST_S = 1.0
SUBSCRIBE_TIMEOUT_S = 30.0
PASSING = ("rate-limited", "not-written", "busy")
OWN_FIELDS = frozenset({"v", "seq", "from", "invocation", "event", "to"})
NOT_PAYLOAD = frozenset(
    {"v", "id", "seq", "from", "invocation", "truncated", "ack", "dropped", "subscribe", "replay_of"}
)
"""What a delivery has for itself; an ``id`` besides would be waited for in vain."""


class _Subscription:
    """One address. ``name`` is how it is asked for, ``seen`` the last number that was taken over; None: from now on."""

    def __init__(self, name: str, after: "int | None") -> None:
        self.name = name
        self.seen = after
        self.asked = ""
        """The id of the request that is not answered yet: what comes before the answer is of the one before."""
        self.is_missing = False
        """Something behind ``seen`` did not fit, here or there."""
        self.again_s = 0.0
        """When it may be asked again."""
        self.is_known = False
        self.refused: str | None = None


class BusClient:
    """A connection to the bus.

    Args:
        address: ``SUPERVISORD_PY_BUS``.
        unit: The unit that this process belongs to: the address of its own mailbox.

    Raises:
        NotSentError: pyzmq is not installed in this interpreter.
    """

    def __init__(self, address: str, unit: str = "") -> None:
        try:
            import zmq
        except ModuleNotFoundError:
            raise NotSentError(f"{sys.executable} has no pyzmq, which messages need: install that") from None
        import json

        self._zmq = zmq
        self._encode, self._decode = json.dumps, json.loads
        self._address = address
        self._unit = unit
        self._prefix = os.urandom(6).hex()
        self._count = 0
        self._context = zmq.Context(io_threads=1)
        self._socket: Any = None
        self._monitor: Any = None
        self._refused: str | None = None
        self._retry_s = RETRY_FIRST_S
        self._connect_at_s = 0.0
        self._unacknowledged: dict[str, bytes] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._inbox: deque[Message | Missed] = deque()
        self._loop: AbstractEventLoop | None = None
        self._watched: tuple[int, ...] = ()
        self._on_readable: Callable[[], None] | None = None
        self._connect()

    # What an agent does

    def send(self, envelope: "dict[str, Any]", timeout_s: "float | None") -> int:
        """Send a message and return its number in the journal; 0: it is kept in a ring (``[journal] keep-last``).

        Raises:
            NotSentError: It was refused, or not acknowledged in time.
        """
        if wrong := sorted(NOT_PAYLOAD & envelope.keys()):
            raise NotSentError(f"a message has no field {wrong[0]} of its own: name it otherwise")
        id = self._next_id()
        try:
            frame = self._encode({"v": 1, "id": id, **envelope}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as problem:
            raise NotSentError(f"this cannot be sent: {problem}") from problem
        if len(frame) > REQUEST_MAX:
            raise NotSentError(f"a message of {len(frame)} bytes; {REQUEST_MAX} at most")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._unacknowledged[id] = frame
        self._refused = None
        try:
            self._transmit(frame)
            return self._acknowledged(id, deadline_s)
        finally:
            self._unacknowledged.pop(id, None)
            self._answers.pop(id, None)

    def _acknowledged(self, id: str, deadline_s: "float | None") -> int:
        retry_s, again_s, why = RETRY_FIRST_S, None, "the supervisor does not answer"
        while True:
            answer = self._answers.pop(id, None)
            if answer is not None and "ack" in answer:
                return int(answer["seq"] or 0)
            if answer is not None:
                why = str(answer.get("message"))
                if answer.get("error") not in PASSING:
                    raise NotSentError(f"refused: {why}", answer.get("error"))
                again_s, retry_s = time.monotonic() + retry_s, min(2 * retry_s, RETRY_LAST_S)
            if self._refused is not None:
                raise NotSentError(self._refused)
            now_s = time.monotonic()
            if deadline_s is not None and now_s >= deadline_s:
                raise NotSentError(f"not acknowledged in time: {why}")
            if again_s is not None and now_s >= again_s:
                again_s = None
                self._transmit(self._unacknowledged[id])
            until = [moment for moment in (deadline_s, again_s) if moment is not None]
            self._wait(min(until) - now_s if until else None)

    def subscribe(self, topic: str, after: "int | None") -> None:
        """Have messages of a topic, or with ``""`` those to this unit, from now on or behind a number.

        Raises:
            NotSentError: It was refused, or not answered in time.
        """
        to = f"topic:{topic.removeprefix('topic:')}" if topic else self._unit
        subscription = self._subscriptions[to] = _Subscription(topic, after)
        deadline_s = time.monotonic() + SUBSCRIBE_TIMEOUT_S
        self._refused = None
        self._ask(subscription)
        while not subscription.is_known:
            if self._refused is None and subscription.refused is None and time.monotonic() < deadline_s:
                self._wait(deadline_s - time.monotonic())
                continue
            del self._subscriptions[to]
            raise NotSentError(self._refused or subscription.refused or "the supervisor does not answer")

    def receive(self, timeout_s: float, wake_fd: int) -> "Message | Missed | None":
        """Return the next message; None when none came in that time, or when ``wake_fd`` can be read."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._take()
            if self._inbox:
                return self._next()
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self._wait(left_s, wake_fd):
                return None

    def waiting(self) -> "list[Message | Missed]":
        """Return what has come."""
        self._take()
        messages = []
        while self._inbox:
            messages.append(self._next())
        return messages

    def on_readable(self, loop: "AbstractEventLoop", wake: "Callable[[], None]") -> None:
        """Have ``wake`` called in an event loop when there may be something waiting; once is enough."""
        self._loop, self._on_readable = loop, wake
        self._watch()
        if self._inbox:
            loop.call_soon(wake)

    def close(self) -> None:
        """Let go of everything."""
        self._disconnect()
        self._context.term()

    # The connection

    def _connect(self) -> None:
        zmq = self._zmq
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.reconnect_ivl = -1
        self._socket.sndhwm = 0
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self._socket.connect(self._address)
        for subscription in self._subscriptions.values():
            self._ask(subscription)
        for frame in list(self._unacknowledged.values()):
            self._transmit(frame)
        self._watch()

    def _disconnect(self) -> None:
        if self._socket is None:
            return
        for descriptor in self._watched:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(descriptor)
        self._watched = ()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)
        self._socket = self._monitor = None

    def _watch(self) -> None:
        if self._loop is None or self._socket is None or self._watched:
            return
        self._watched = (self._socket.fileno(), self._monitor.fileno())
        for descriptor in self._watched:
            self._loop.add_reader(descriptor, self._readable)

    def _readable(self) -> None:
        """The event loop says that there is something: take it at once, or the descriptor tells nothing more."""
        self._take()
        if self._socket is None and self._loop is not None:
            self._loop.call_later(max(0.0, self._connect_at_s - time.monotonic()), self._readable)
        if self._inbox and self._on_readable is not None:
            self._on_readable()

    def _wait(self, timeout_s: "float | None", wake_fd: int = -1) -> bool:
        """Return when there may be something, or after a time; True when ``wake_fd`` can be read."""
        poller = self._zmq.Poller()
        if self._socket is not None:
            poller.register(self._socket, self._zmq.POLLIN)
            poller.register(self._monitor, self._zmq.POLLIN)
        else:
            left_s = max(0.0, self._connect_at_s - time.monotonic())
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        if any(subscription.is_missing for subscription in self._subscriptions.values()):
            timeout_s = RETRY_LAST_S if timeout_s is None else min(timeout_s, RETRY_LAST_S)
        if wake_fd >= 0:
            poller.register(wake_fd, self._zmq.POLLIN)
        # Rounded up: a millisecond that is cut off would be spent in circles.
        ready = dict(poller.poll(None if timeout_s is None else int(max(0.0, timeout_s) * 1000) + 1))
        self._take()
        return wake_fd in ready

    def _take(self) -> None:
        """Take all that has come."""
        if self._socket is None and time.monotonic() >= self._connect_at_s and self._refused is None:
            self._connect()
        if self._socket is None:
            return
        self._hear()
        has_ended = False
        while (event := self._event()) is not None:
            if event == self._zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._retry_s = RETRY_FIRST_S
            elif event == self._zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._refused = (
                    "the supervisor does not let this process in: see supctl journal query -e command.denied"
                )
            elif event in (self._zmq.EVENT_DISCONNECTED, self._zmq.EVENT_CLOSED):
                has_ended = True
        if has_ended:
            self._hear()  # what it said last
            self._disconnect()
            self._connect_at_s = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)

    def _event(self) -> "int | None":
        try:
            told = self._monitor.recv_multipart(self._zmq.NOBLOCK)
        except self._zmq.Again:
            return None
        return int.from_bytes(told[0][:2], sys.byteorder)

    def _hear(self) -> None:
        while True:
            try:
                frames = self._socket.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                break
            answer = self._decode(frames[-1])
            if "from" in answer:
                self._deliver(answer)
            elif "dropped" in answer:
                self._dropped(answer)
            else:
                self._answered(answer)
        if not self._inbox:
            self._ask_for_the_missing()

    def _answered(self, answer: "dict[str, Any]") -> None:
        id = answer.get("ack", answer.get("id"))
        if id in self._unacknowledged:
            self._answers[id] = answer
        for subscription in self._subscriptions.values():
            if subscription.asked and subscription.asked == id:
                subscription.asked = ""
                if "ack" in answer:
                    subscription.is_known = True
                    subscription.seen = answer["seq"] if subscription.seen is None else subscription.seen
                elif answer["error"] in PASSING:
                    subscription.is_missing = True
                    subscription.again_s = time.monotonic() + RETRY_LAST_S
                else:
                    subscription.refused = f"refused: {answer.get('message')}"

    def _dropped(self, notice: "dict[str, Any]") -> None:
        """Something behind a number did not fit: ask again for that. What is gone (null) is the agent's to hear of."""
        subscription = self._subscriptions.get(notice["to"])
        if subscription is None or subscription.asked:
            return
        if notice["dropped"] is not None:
            subscription.is_missing = True
        elif not subscription.is_missing:
            after = max(notice["after"], subscription.seen or 0)
            subscription.seen = max(after, notice["until"])
            if subscription.seen > after:
                self._inbox.append(Missed(notice["to"], after, subscription.seen))

    def _deliver(self, delivery: "dict[str, Any]") -> None:
        seq, to = delivery["seq"], delivery["to"]
        subscription = self._subscriptions.get(to)
        if subscription is not None:
            if subscription.asked or subscription.is_missing or seq <= (subscription.seen or 0):
                return
            if len(self._inbox) >= INBOX_MAX:
                subscription.is_missing = True
                return
            subscription.seen = seq
        elif len(self._inbox) >= INBOX_MAX:
            return  # nobody asked for it, and nobody takes it
        payload = {name: value for name, value in delivery.items() if name not in OWN_FIELDS}
        self._inbox.append(Message(seq, delivery["from"], delivery["event"] or "", to, payload))

    def _next(self) -> "Message | Missed":
        message = self._inbox.popleft()
        if not self._inbox:
            self._ask_for_the_missing()
        return message

    def _ask_for_the_missing(self) -> None:
        for subscription in self._subscriptions.values():
            if not subscription.is_missing or subscription.asked or self._socket is None:
                continue
            left_s = subscription.again_s - time.monotonic()
            if left_s <= 0:
                self._ask(subscription)
            elif self._loop is not None:
                self._loop.call_later(left_s, self._readable)

    def _ask(self, subscription: _Subscription) -> None:
        subscription.is_missing = False
        subscription.asked = self._next_id()
        request = {"v": 1, "id": subscription.asked, "subscribe": subscription.name}
        if subscription.seen is not None:
            request["after"] = subscription.seen
        self._transmit(self._encode(request).encode())

    def _transmit(self, frame: bytes) -> None:
        """Hand a request to libzmq; while there is no connection it waits for the next one."""
        if self._socket is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._readable)  # sending may take the telling of what has come
        try:
            self._socket.send(frame, self._zmq.NOBLOCK)
        except self._zmq.Again:
            pass  # the connection has just ended

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"

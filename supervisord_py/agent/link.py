"""The line between an agent and its supervisor: datagrams of sd_notify(3), and messages.

``Link`` is what an agent sees; ``testing.agents`` has one that writes down what is told.
"""

import os
from _thread import get_ident

TYPE_CHECKING = False
if not TYPE_CHECKING:
    # What `socket` wraps: that takes longer to import than bare Python to start.
    import _socket as socket
else:
    import socket

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from typing import Any, Protocol

    from supervisord_py.agent.message import Message, Missed

    class Link(Protocol):
        def tell(self, **fields: str) -> None: ...
        def send(self, envelope: dict[str, Any], timeout_s: float | None) -> int: ...
        def subscribe(self, topic: str, after: int | None) -> None: ...
        def receive(self, timeout_s: float, wake_fd: int) -> Message | Missed | None: ...
        def waiting(self) -> list[Message | Missed]: ...
        def on_readable(self, loop: AbstractEventLoop, wake: Callable[[], None]) -> None: ...
        @property
        def has_bus(self) -> bool: ...
        def close(self) -> None: ...


FIELD_MAX = 3000
DATAGRAM_MAX = 4096
"""Bytes of one field, and of all: what is longer is cut, from the end, or nothing of it would be taken."""


class SupervisorLink:
    """The real line: ``NOTIFY_SOCKET`` and ``SUPERVISORD_PY_BUS``; without them nobody listens.

    The bus is connected to when it is first used, and pyzmq is imported only then.
    """

    def __init__(self, environment: "dict[str, str] | os._Environ[str]") -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._notify: socket.socket | None = None
        if address:
            self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._notify.connect("\0" + address[1:] if address[0] == "@" else address)
        self._bus_address = environment.get("SUPERVISORD_PY_BUS")
        self._unit = environment.get("SUPERVISORD_PY_UNIT", "")
        self._bus: Any = None
        self._watcher: tuple[AbstractEventLoop, Callable[[], None]] | None = None
        self._process, self._thread = os.getpid(), get_ident()
        self._left: Any = None

    def tell(self, **fields: str) -> None:
        """Send one datagram; a supervisor that is being replaced may be away for a moment, which is no error here."""
        if self._notify is None:
            return
        told, left = b"", DATAGRAM_MAX
        for name, value in fields.items():
            line = f"{name}={value}".encode("utf-8", "backslashreplace")[: max(0, min(FIELD_MAX, left - 1))]
            told += line + b"\n"
            left = DATAGRAM_MAX - len(told)
        try:
            # A zero byte would be a reason to take nothing, too.
            self._notify.send(told[:-1].replace(b"\0", b" "))
        except OSError:
            pass

    @property
    def has_bus(self) -> bool:
        """Whether a message may come: something was subscribed to, or sent."""
        return self._bus is not None

    def _open_bus(self) -> "Any":
        process, thread = os.getpid(), get_ident()
        if process != self._process:
            # libzmq does not outlive a fork: a child has a connection of its own, and lets go of nothing of its parent.
            self._left, self._bus, self._watcher = self._bus, None, None
            self._process, self._thread = process, thread
        if thread != self._thread:
            from supervisord_py.agent.errors import NotSentError

            # One would take what the other waits for.
            raise NotSentError("messages are sent and asked for by the agent's own thread, and this is another one")
        if self._bus is None:
            if not self._bus_address:
                from supervisord_py.agent.errors import NotSentError

                raise NotSentError("there is no message bus: SUPERVISORD_PY_BUS is not set")
            from supervisord_py.agent.bus import BusClient

            self._bus = BusClient(self._bus_address, self._unit)
            if self._watcher is not None:
                self._bus.on_readable(*self._watcher)
        return self._bus

    def send(self, envelope: "dict[str, Any]", timeout_s: "float | None") -> int:
        """Send a message and return its number in the journal, once it is written there."""
        return self._open_bus().send(envelope, timeout_s)  # type: ignore[no-any-return]

    def subscribe(self, topic: str, after: "int | None") -> None:
        """Have the messages of a topic, or those to this unit (``""``), from now on or after a number."""
        self._open_bus().subscribe(topic, after)

    def receive(self, timeout_s: float, wake_fd: int) -> "Message | Missed | None":
        """Return the next message; None when none came in that time, or when ``wake_fd`` can be read."""
        return self._open_bus().receive(timeout_s, wake_fd)  # type: ignore[no-any-return]

    def waiting(self) -> "list[Message | Missed]":
        """Return the messages that have come."""
        return [] if self._bus is None else self._bus.waiting()

    def on_readable(self, loop: "AbstractEventLoop", wake: "Callable[[], None]") -> None:
        """Have ``wake`` called in an event loop when messages may have come, also where the bus is opened later."""
        self._watcher = (loop, wake)
        if self._bus is not None:
            self._bus.on_readable(loop, wake)

    def close(self) -> None:
        if self._bus is not None and self._process == os.getpid():
            self._bus.close()
        if self._notify is not None:
            self._notify.close()

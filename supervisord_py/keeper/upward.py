"""What the keeper says to the service manager above it, which started us with ``NOTIFY_SOCKET``.

The service manager believes its main process only (``NotifyAccess=main``), and that is the keeper. So the manager's
own ``NOTIFY_SOCKET`` is a relay: what the manager of now says of readiness, reloads and status is passed on, everything
else is dropped. The beat for the watchdog is the keeper's own: a manager that hangs is the keeper's business, and never
a reason to kill the keeper. Nothing waits for the service manager: what it does not take is said again later, the
status in its newest words.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

from supervisord_py.keeper.loop import NOTIFY, Loop, say
from supervisord_py.keeper.notify import DATAGRAM_MAX, Mailbox, make_folder

ADDRESSED_TO_US = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PASSED = ("READY", "RELOADING", "MONOTONIC_USEC", "STOPPING", "STATUS")
AGAIN_NS = 100_000_000
WAITING_MAX = 64


class Upward:
    """Without a service manager above, this does nothing. ``packed`` is what the image before this one had."""

    def __init__(
        self, folder: str, loop: Loop, manager_pid: Callable[[], int | None], packed: list[Any] | None = None
    ) -> None:
        self._folder, self._loop, self._manager_pid = folder, loop, manager_pid
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._relay: Mailbox | None = None
        self._waiting: list[bytes] = []
        self._is_stopping = self._has_complained = False
        if packed is not None:
            self._is_stopping = packed[2]
            self._watch(Mailbox(*packed[:2]))

    def pack(self) -> list[Any] | None:
        relay = self._relay
        return None if relay is None else [relay.path, relay.socket.fileno(), self._is_stopping]

    def environment(self) -> MutableMapping[str, str]:
        """Return the environment of a manager: ours, with the relay in the place of what is above us."""
        environment = {name: value for name, value in os.environ.items() if name not in ADDRESSED_TO_US}
        if self._address:
            with contextlib.suppress(OSError):  # no folder to put it in: this manager has nobody to tell
                environment["NOTIFY_SOCKET"] = self._open()
        return environment

    def _open(self) -> str:
        if self._relay is not None and not os.path.exists(self._relay.path):
            self._loop.unwatch(self._relay.socket.fileno())
            self._relay.close()
            self._relay = None
        if self._relay is None:
            make_folder(self._folder)
            self._watch(Mailbox(f"{self._folder}/{os.urandom(12).hex()}", mode=0o600))
        assert self._relay is not None
        return self._relay.path

    def _watch(self, relay: Mailbox) -> None:
        self._relay = relay
        self._loop.watch(relay.socket.fileno(), NOTIFY, self._pass_on)

    def _pass_on(self) -> None:
        assert self._relay is not None
        for _ in range(self._relay.depth):
            try:
                data, ancillary, flags, _ = self._relay.socket.recvmsg(DATAGRAM_MAX, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return
            senders = [struct.unpack("=iII", content)[0] for _, _, content in ancillary if len(content) == 12]
            if senders == [self._manager_pid()] and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                lines = [line for line in data.split(b"\n") if line.partition(b"=")[0].decode("latin-1") in PASSED]
                self._tell(*(line for line in lines if line != b"STOPPING=1"))
                if b"STOPPING=1" in lines:
                    self.stopping()

    def stopping(self) -> None:
        """The end has begun; from now on nobody says that we are ready."""
        if not self._is_stopping:
            self._tell(b"STOPPING=1")
            self._is_stopping = True

    def start_beating(self) -> None:
        """Beat for the watchdog, twice as often as asked, if it is we whom it watches."""
        try:
            interval_ns = int(os.environ["WATCHDOG_USEC"]) * 1000 // 2
            watched = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        except (KeyError, ValueError):
            return
        if self._address and interval_ns > 0 and watched == os.getpid():
            self._beat(interval_ns)

    def _beat(self, interval_ns: int) -> None:
        self._loop.set_timer("beat", time.monotonic_ns() + interval_ns, partial(self._beat, interval_ns))
        # Not queued: a beat that comes late is none.
        with contextlib.suppress(OSError):
            self._send(b"WATCHDOG=1")

    def _tell(self, *lines: bytes) -> None:
        if self._is_stopping:
            lines = tuple(line for line in lines if line.startswith(b"STATUS="))
        if lines and self._address:
            self._waiting = [said for said in self._waiting if not (len(lines) == 1 and said.startswith(b"STATUS="))]
            self._waiting = [*self._waiting[-WAITING_MAX:], b"\n".join(lines)]
            self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._send(self._waiting[0])
                del self._waiting[0]
        except BlockingIOError:
            self._loop.set_timer("upward", time.monotonic_ns() + AGAIN_NS, self._flush)
        except OSError as error:
            self._waiting.clear()
            if not self._has_complained:
                self._has_complained = True
                say(f"cannot notify {self._address}: {error.strerror}")

    def _send(self, data: bytes) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(data, address)

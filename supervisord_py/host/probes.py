"""Health checks that the supervisor makes itself: over HTTP, by connecting, by looking for a file or a line of output.

Theory of operation
-------------------
Each ``RunProbe`` becomes a task that ends in one ``ProbeFinished``, within the check's time-out from its turn on; so
many have their turn at a time, the others wait in the order in which they were asked, and no check is asked twice at a
time. Nothing here blocks the loop: names and paths are looked up in threads (``bounded``), a regular expression is
stopped after so much processor time.

``http`` sends one GET, follows nothing, and is good by a status of 2xx or 3xx. A certificate is not verified: the
question is whether the service answers, mostly under ``localhost`` and not under the name in its certificate. What
follows the status line is read (up to ``ANSWER_MAX`` and for ``COURTESY_S``) only so that the server can finish its
sentence. ``tcp`` and ``unix`` are good when the kernel has made the connection. ``log`` reads on where it stopped the
last time; once a line has matched it is good for the rest of that life.

Checks are made by the supervisor and with its rights. One that it could not make, for want of descriptors or threads,
or because it was stopped meanwhile, says nothing (``ok`` None): that is no fault of the unit.

Source: kubelet, pkg/probe/http/http.go (2xx and 3xx, no verification); RFC 9112, section 4 and RFC 9110, section 15.2.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import signal
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NamedTuple, TypeVar

from supervisord_py.core.actions import RunProbe
from supervisord_py.core.events import Event, ProbeFinished
from supervisord_py.host.bounded import HangsError, TooManyHangError, call_bounded
from supervisord_py.host.output import OutputCollector
from supervisord_py.host.output_reading import Cursor
from supervisord_py.model.targets import Url, split_address, split_url
from supervisord_py.model.unit import Probe
from supervisord_py.model.values import format_timespan

AT_A_TIME = 64
ANSWER_MAX = 4096
"""Bytes of an answer over HTTP that are read."""
COURTESY_S = 0.2
BACKLOG_FULL_S = 0.02
"""The first pause before a Unix socket whose queue is full is tried again; it doubles."""
HELD_UP_S = 0.5
"""A time-out that is noticed so late says something about us, and nothing about the unit."""
LINE_LOOKED_AT = 8192
"""Characters of a line in which a regular expression is searched."""
MATCH_S = 0.05
"""Processor time that the matching of a block of lines may take."""
SLOW_MAX = 3
"""A check gives up after so many lines that took longer."""

_OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?: ([^\r\n]*))?\r?\n")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


Found = TypeVar("Found")


class Verdict(NamedTuple):
    ok: bool | None
    detail: str


class Probes:
    """Makes the checks of all units; all methods are called on the loop.

    Args:
        submit: Queues an event for the core.
        output: What the units print.
        invocation_of: The life of a unit, None when it has none.
    """

    def __init__(
        self,
        *,
        submit: Callable[[Event], None],
        output: OutputCollector,
        invocation_of: Callable[[str], str | None],
    ) -> None:
        self._submit = submit
        self._output = output
        self._invocation_of = invocation_of
        self._turns = asyncio.Semaphore(AT_A_TIME)
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._searches: dict[tuple[str, str], _Search] = {}
        self._tls: ssl.SSLContext | None = None

    def run(self, action: RunProbe) -> None:
        """Make a check: ``ProbeFinished`` tells. One that was asked before under this name is not answered any more."""
        key = (action.unit, action.name)
        if (before := self._tasks.get(key)) is not None:
            before.cancel()
        task = self._tasks[key] = asyncio.get_running_loop().create_task(self._make(action))
        task.add_done_callback(lambda done: self._tasks.pop(key, None) if self._tasks.get(key) is done else None)

    def forget(self, unit: str) -> None:
        """The life of the unit is over: nobody waits for its checks."""
        for key in [key for key in self._tasks if key[0] == unit]:
            self._tasks[key].cancel()
        for key in [key for key in self._searches if key[0] == unit]:
            self._searches.pop(key).close()

    async def close(self) -> None:
        """End what is under way: whoever comes next asks again."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for search in self._searches.values():
            search.close()
        self._searches.clear()

    async def _make(self, action: RunProbe) -> None:
        probe, loop = action.probe, asyncio.get_running_loop()
        async with self._turns:
            until_s = loop.time() + probe.timeout_ns / 1e9
            try:
                async with asyncio.timeout(probe.timeout_ns / 1e9):
                    found = await self._look(action)
            except TimeoutError:
                late_s = loop.time() - until_s
                found = (
                    Verdict(False, f"no answer within {format_timespan(probe.timeout_ns)}")
                    if late_s < HELD_UP_S
                    else Verdict(None, f"the supervisor itself was held up for {late_s:.1f} s")
                )
            except TooManyHangError as error:
                found = Verdict(None, str(error))
            except HangsError as error:
                found = Verdict(False, str(error))
            except OSError as error:
                found = Verdict(None if error.errno in _OUR_FAULT else False, in_words(error))
            except Exception as error:  # raised again: the unit is not to suffer by our mistake, and is asked again
                self._submit(
                    ProbeFinished(action.probe_id, action.unit, action.name, None, f"internal error: {error!r}")
                )
                raise
        self._submit(ProbeFinished(action.probe_id, action.unit, action.name, found.ok, found.detail))

    async def _look(self, action: RunProbe) -> Verdict:
        probe = action.probe
        match probe:
            case Probe(http=str(text)):
                return await self._look_at_http(split_url(text), probe.timeout_ns / 1e9)
            case Probe(tcp=str(text)):
                host, port = split_address(text)
                with await _connect(host, port, probe.timeout_ns / 1e9):
                    return Verdict(True, "connected")
            case Probe(unix=str(path)):
                return await _look_at_unix(path, probe.timeout_ns / 1e9)
            case Probe(file=str(path)):
                await _beside(lambda: os.stat(path), probe.timeout_ns / 1e9, "files", path)
                return Verdict(True, "it is there")
            case Probe(log=str(pattern)):
                return await self._look_at_log(action, pattern)
        raise AssertionError(f"internal error: the check {probe.name} is not one of ours")

    # HTTP

    async def _look_at_http(self, url: Url, timeout_s: float) -> Verdict:
        connection = await _connect(url.host, url.port, timeout_s)
        # From here on the socket is the transport's to close.
        tls = self._tls_context() if url.is_tls else None
        name = None if tls is None else "" if _is_address(url.host) else url.host
        reader, writer = await asyncio.open_connection(sock=connection, limit=ANSWER_MAX, ssl=tls, server_hostname=name)
        try:
            writer.write(_request(url))
            return await _read_answer(reader)
        finally:
            writer.transport.abort()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        return self._tls

    # Output

    async def _look_at_log(self, action: RunProbe, pattern: str) -> Verdict:
        key = (action.unit, action.name)
        invocation = self._invocation_of(action.unit)
        search = self._searches.get(key)
        if search is None or (search.invocation, search.pattern.pattern) != (invocation, pattern):
            if search is not None:
                search.close()
            search = self._searches[key] = _Search(invocation, re.compile(pattern))
        if search.cursor is None and not search.has_matched and invocation is not None:
            search.cursor = self._output.read_life(action.unit, invocation)
        if await search.go_on():
            return Verdict(True, "a line of its output matches")
        if search.slow:
            return Verdict(False, f"{search.slow} lines of its output are too much for the regular expression")
        return Verdict(False, "no line of its output matches")


class _Search:
    """How far the output of one life was searched for one regular expression."""

    def __init__(self, invocation: str | None, pattern: re.Pattern[str]) -> None:
        self.invocation = invocation
        self.pattern = pattern
        self.cursor: Cursor | None = None
        self.has_matched = False
        self.slow = 0
        """Lines on which the matching was given up, in all."""
        self._lines: deque[str] = deque()

    async def go_on(self) -> bool:
        """Search what is new; it may be cancelled, and goes on there."""
        slow_before = self.slow
        while not self.has_matched and self.slow < slow_before + SLOW_MAX:
            if not self._lines:
                lines = None if self.cursor is None else self.cursor.read()
                if lines is None:
                    break
                self._lines += lines
            self._search_block()
            await asyncio.sleep(0)
        return self.has_matched

    def _search_block(self) -> None:
        """Search the lines that are read, as many as there is time for; a line that takes all of it is passed over."""
        count = len(self._lines)
        try:
            with cpu_limit(MATCH_S):
                while self._lines:
                    if self.pattern.search(self._lines[0][:LINE_LOOKED_AT]):
                        self.has_matched = True
                        break
                    self._lines.popleft()
        except TooSlowError:
            if len(self._lines) == count:
                self._lines.popleft()
                self.slow += 1
        if self.has_matched:
            self.close()

    def close(self) -> None:
        self._lines.clear()
        if self.cursor is not None:
            self.cursor.close()
            self.cursor = None


class TooSlowError(Exception):
    """The processor time of a ``cpu_limit`` is used up."""


_is_limited = False


@contextlib.contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise ``TooSlowError`` in the body when this process has used so much processor time; in the main thread only.

    A regular expression looks at signals while it searches, so it can be stopped.
    """
    global _is_limited
    # Never taken back: the signal may come late, and its default is to kill.
    if signal.getsignal(signal.SIGVTALRM) is not _time_is_over:
        signal.signal(signal.SIGVTALRM, _time_is_over)
    _is_limited = True
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        _is_limited = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _time_is_over(number: int, frame: FrameType | None) -> None:
    if _is_limited:
        raise TooSlowError


def in_words(error: OSError) -> str:
    """Say what the system said: a reason, in lower case."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).replace('_', ' ').lower()}"
    text = error.strerror or str(error) or type(error).__name__
    return text[0].lower() + text[1:]


async def _beside(look: Callable[[], Found], timeout_s: float, kind: str, subject: str) -> Found:
    return await call_bounded(look, timeout_s, group=f"probes: {kind}", at_a_time=AT_A_TIME, key=subject)


# Connecting


async def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address of ``host`` that takes a connection; the time is shared between them.

    Raises:
        OSError: What the last address said, or that there is none.
        HangsError: The name is not looked up.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + timeout_s
    addresses = await _addresses(host, port, timeout_s)
    error: OSError = OSError(errno.EHOSTUNREACH, f"{host} has no address")
    for place, (family, address) in enumerate(addresses):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            share_s = (until_s - loop.time()) / (len(addresses) - place)
            async with asyncio.timeout(share_s if place + 1 < len(addresses) else None):
                await loop.sock_connect(connection, address)
            if connection.getsockname() == connection.getpeername():
                # Nobody listens: the kernel chose for our end the very port that we were calling.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        except TimeoutError:
            connection.close()
            error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        except OSError as raised:
            connection.close()
            error = raised if raised.errno is None else OSError(raised.errno, os.strerror(raised.errno))
        except BaseException:  # cancelled: raised again
            connection.close()
            raise
        else:
            return connection
    raise error


async def _addresses(host: str, port: int, timeout_s: float) -> list[tuple[int, tuple[object, ...]]]:
    flags = socket.AI_NUMERICHOST if _is_address(host) else 0

    def find() -> list[tuple[int, tuple[object, ...]]]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
        return [(family, address) for family, _, _, _, address in found]

    try:
        return find() if flags else await _beside(find, timeout_s, "names", host)
    except socket.gaierror as error:
        # Its numbers are not those of errno.
        raise OSError(errno.EHOSTUNREACH, f"{host}: {error.strerror}") from None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _look_at_unix(path: str, timeout_s: float) -> Verdict:
    address = f"\0{path[1:]}" if path.startswith("@") else path

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            connection.connect(address)

    pause_s = BACKLOG_FULL_S
    while True:
        try:
            # In a thread: the path may lie on a file server that is gone.
            await _beside(connect, timeout_s, "files", path)
        except BlockingIOError:
            # Its queue is full, and the kernel tells no one when it has room again.
            await asyncio.sleep(pause_s)
            pause_s *= 2
        else:
            return Verdict(True, "connected")


# HTTP


def _request(url: Url) -> bytes:
    host = f"[{url.host}]" if ":" in url.host else url.host
    if url.port != (443 if url.is_tls else 80):
        host += f":{url.port}"
    lines = (
        f"GET {url.path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: supervisord-py",
        "Accept: */*",
        "Connection: close",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _read_answer(reader: asyncio.StreamReader) -> Verdict:
    """Judge an answer by its status line."""
    answer = b""
    while (status := _final_status(answer)) is None:
        piece = await reader.read(ANSWER_MAX - len(answer)) if _may_be_http(answer) else b""
        if not piece:
            said = answer[:60].decode("ascii", "replace")
            return Verdict(False, f"no answer of HTTP: {said!r}" if said else "it closed the connection unanswered")
        answer += piece
    left = ANSWER_MAX - len(answer)
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(COURTESY_S):
            while left > 0 and (piece := await reader.read(left)):
                left -= len(piece)
    code, reason = int(status[1]), (status[2] or b"").decode("latin-1").strip()
    shown = "".join(character for character in reason if character.isprintable())
    return Verdict(200 <= code < 400, f"{code} {shown}".rstrip())


def _final_status(answer: bytes) -> re.Match[bytes] | None:
    """Return the status line of the answer, None as long as it is not there; those that announce another one (1xx) are
    passed over."""
    place = 0
    while (status := _STATUS_LINE.match(answer, place)) is not None and status[1].startswith(b"1"):
        end = _END_OF_HEAD.search(answer, status.end() - 2)
        if end is None:
            return None
        place = end.end()
    return status


def _may_be_http(answer: bytes) -> bool:
    """Whether more of an answer that has no status line yet may have one."""
    first, newline, _ = answer.partition(b"\n")
    is_begun = first[:5] == b"HTTP/"[: len(first)]
    return len(answer) < ANSWER_MAX and is_begun and (not newline or _STATUS_LINE.match(answer) is not None)

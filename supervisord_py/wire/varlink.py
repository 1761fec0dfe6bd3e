"""Varlink framing, calls and replies as bytes in and values out, for both ends of a connection.

Theory of operation
-------------------
A message is one JSON object in UTF-8 and a NUL. Calls carry no number: a connection answers them strictly in the
order in which they came, so each end keeps a queue of what is unanswered. Nothing here knows a socket:
``receive_data`` stores, the next call or reply is taken, ``send``, ``reply`` and ``error`` return the bytes to write.

Laws: a call marked ``oneway`` is answered by nothing, not even an error; any other by exactly one final reply;
replies that continue come only to a call that asked for ``more``. An end that saw a broken message is spent: framing
may be lost, so nothing after it is believed.

Strict on input, because what two parsers read differently is how a check is passed by: duplicate keys, unknown header
keys, a body that is no object, lone surrogates, numbers that are not JSON's, and nesting beyond ``DEPTH_MAX`` are
refused. Memory is bounded by the frame limit and one chunk.

Source: varlink.org, Method-Call and Interface-Definition; sd-varlink of systemd 256 for the strictness.
"""

import json
import re
from collections import deque
from typing import Any

import msgspec

from supervisord_py.errors import ProtocolError

CALL_MAX = 1024 * 1024
"""Bytes of one call, without its NUL."""

REPLY_MAX = 64 * 1024 * 1024
"""Bytes of one reply that a client takes: a reply may list every unit, or many records."""

DEPTH_MAX = 64
"""Nesting of objects and arrays in one message; our own interfaces need six."""

MANAGER = "py.supervisord.Manager"
JOURNAL = "py.supervisord.Journal"
SERVICE = "org.varlink.service"

INTERFACE_NAME = r"[A-Za-z](?:-*[A-Za-z0-9])*(?:\.[A-Za-z0-9](?:-*[A-Za-z0-9])*)+"
MEMBER_NAME = r"[A-Z][A-Za-z0-9]*"

_QUALIFIED = re.compile(rf"({INTERFACE_NAME})\.({MEMBER_NAME})", re.ASCII)
_CALL_KEYS = frozenset({"method", "parameters", "oneway", "more", "upgrade"})
_NAME_MAX = 255
_FLOAT_MAX = 1.7976931348623157e308


class VarlinkProtocolError(ProtocolError):
    """The other end sent what is no Varlink message, or a message that has no place here; the connection is spent."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Call(msgspec.Struct, frozen=True):
    """One method call; ``method`` is ``interface.Method``."""

    method: str
    parameters: dict[str, Any] = {}
    more: bool = False
    oneway: bool = False
    upgrade: bool = False

    @property
    def interface(self) -> str:
        return self.method.rpartition(".")[0]

    @property
    def member(self) -> str:
        return self.method.rpartition(".")[2]


class Reply(msgspec.Struct, frozen=True):
    """One reply; ``error`` is ``interface.Error`` or None. The call is answered when ``continues`` is False."""

    parameters: dict[str, Any] = {}
    error: str | None = None
    continues: bool = False


class ServerConnection:
    """The serving end: takes bytes, gives calls, and makes the bytes of their replies in call order."""

    def __init__(self, *, call_max: int = CALL_MAX, is_framed: bool = False) -> None:
        """``is_framed``: something else than NULs tells where a call ends, so what is no call spoils none after it."""
        self._frames = _Frames(call_max, "call", recovers=is_framed)
        self._unanswered: deque[Call] = deque()

    def receive_data(self, data: bytes) -> None:
        """Store what was read; the calls in it are taken with ``next_call``."""
        self._frames.feed(data)

    def next_call(self) -> Call | None:
        """Return the next whole call, or None when more data is needed.

        Raises:
            VarlinkProtocolError: The next message is no acceptable call. Calls before it were returned and may be
            answered.
        """
        frame = self._frames.next_frame()
        if frame is None:
            return None
        call = _parse_call(frame)
        self._unanswered.append(call)
        return call

    @property
    def has_partial_call(self) -> bool:
        """Whether bytes of a call that is not taken yet are stored."""
        return self._frames.size > 0

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def reply(self, parameters: object, *, continues: bool = False) -> bytes:
        """Answer the oldest unanswered call; the bytes are empty when it was ``oneway``.

        Args:
            parameters: A mapping or a msgspec Struct that encodes to an object.
            continues: More replies to this call follow; only for a call with ``more``.
        """
        assert self._unanswered, "internal error: a reply to no call"
        call = self._unanswered[0]
        assert call.more or not continues, f"internal error: {call.method} continues and was not called with more"
        if not continues:
            self._unanswered.popleft()
        if call.oneway:
            return b""
        body: dict[str, object] = {"parameters": parameters}
        if continues:
            body["continues"] = True
        return msgspec.json.encode(body) + b"\0"

    def error(self, name: str, parameters: object) -> bytes:
        """End the oldest unanswered call with an error; the bytes are empty when it was ``oneway``."""
        assert self._unanswered, "internal error: an error to no call"
        call = self._unanswered.popleft()
        return b"" if call.oneway else format_error(name, parameters)

    def abandon(self) -> None:
        """Forget the oldest unanswered call: its caller is gone, and nobody would read a reply."""
        assert self._unanswered, "internal error: no call to abandon"
        self._unanswered.popleft()


class ClientConnection:
    """The calling end: makes the bytes of calls, takes bytes, gives replies in call order."""

    def __init__(self, *, reply_max: int = REPLY_MAX) -> None:
        self._frames = _Frames(reply_max, "reply")
        self._unanswered: deque[Call] = deque()

    @property
    def unanswered(self) -> int:
        """How many calls still wait for their final reply."""
        return len(self._unanswered)

    def send(
        self, method: str, parameters: dict[str, Any] | None = None, *, more: bool = False, oneway: bool = False
    ) -> bytes:
        """Return the bytes of a call of ``interface.Method``; ``more`` asks for several replies, ``oneway`` for none.

        Raises:
            ValueError: ``method`` is no method name, or both ``more`` and ``oneway`` are asked for.
        """
        if _QUALIFIED.fullmatch(method) is None:
            raise ValueError(f"no method name: {method!r} (expected INTERFACE.Method)")
        if more and oneway:
            raise ValueError("a oneway call has no reply, let alone more")
        call = Call(method, parameters or {}, more=more, oneway=oneway)
        body: dict[str, Any] = {"method": method, "parameters": call.parameters}
        if more:
            body["more"] = True
        if oneway:
            body["oneway"] = True
        else:
            self._unanswered.append(call)
        return msgspec.json.encode(body) + b"\0"

    def receive_data(self, data: bytes) -> list[Reply]:
        """Store what was read and return the replies that are whole now, in the order of the calls.

        Raises:
            VarlinkProtocolError: The server broke the protocol: close the connection.
        """
        self._frames.feed(data)
        replies: list[Reply] = []
        while (frame := self._frames.next_frame()) is not None:
            reply = _parse_reply(frame)
            if not self._unanswered:
                raise VarlinkProtocolError("the server sent a reply that nothing had asked for")
            if reply.continues and not self._unanswered[0].more:
                method = self._unanswered[0].method
                raise VarlinkProtocolError(f"the server goes on replying to {method}, which did not ask for more")
            if not reply.continues:
                self._unanswered.popleft()
            replies.append(reply)
        return replies


def format_error(name: str, parameters: object) -> bytes:
    """Return the bytes of an error reply; for one that answers what could not be read as a call."""
    return msgspec.json.encode({"error": name, "parameters": parameters}) + b"\0"


class _Frames:
    """Cuts the stream at its NULs. Each byte is searched once, however small the chunks are."""

    def __init__(self, frame_max: int, what: str, *, recovers: bool = False) -> None:
        self._recovers = recovers
        self._is_skipping = False
        """The rest of a frame that was too large is still to come."""
        self._buffer = bytearray()
        self._searched = 0
        self._frame_max = frame_max
        self._what = what
        self._broken: VarlinkProtocolError | None = None

    @property
    def size(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        if self._broken is None:
            self._buffer += data

    def next_frame(self) -> bytes | None:
        if self._broken is not None:
            raise self._broken
        end = self._buffer.find(b"\0", self._searched)
        if self._is_skipping:
            self._is_skipping = end < 0
            del self._buffer[: end + 1 if end >= 0 else len(self._buffer)]
            return None if end < 0 else self.next_frame()
        if (len(self._buffer) if end < 0 else end) > self._frame_max:
            too_large = VarlinkProtocolError(f"a {self._what} is at most {self._frame_max} bytes: split it")
            if self._recovers:
                self._is_skipping, self._searched = end < 0, 0
                del self._buffer[: end + 1 if end >= 0 else len(self._buffer)]
            else:
                self._broken = too_large
                self._buffer.clear()
            raise too_large
        if end < 0:
            self._searched = len(self._buffer)
            return None
        frame = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return frame


def _parse_call(frame: bytes) -> Call:
    message = _parse_object(frame, "call")
    for key in message:
        if key not in _CALL_KEYS:
            raise VarlinkProtocolError(f"a call has no key {key[:64]!r}: it has method, parameters, more, oneway")
    method = message.get("method")
    if not isinstance(method, str) or len(method) > _NAME_MAX or _QUALIFIED.fullmatch(method) is None:
        raise VarlinkProtocolError("a call names its method as INTERFACE.Method")
    parameters = _parse_parameters(message)
    more, oneway, upgrade = (_parse_flag(message, key) for key in ("more", "oneway", "upgrade"))
    if oneway and (more or upgrade):
        raise VarlinkProtocolError(f"{method}: a oneway call has no reply, let alone more")
    return Call(method, parameters, more=more, oneway=oneway, upgrade=upgrade)


def _parse_reply(frame: bytes) -> Reply:
    # Keys that we do not know are left alone here: a newer server may say more than this client understands.
    message = _parse_object(frame, "reply")
    error = message.get("error")
    if error is not None and (not isinstance(error, str) or _QUALIFIED.fullmatch(error) is None):
        raise VarlinkProtocolError("a reply names its error as INTERFACE.Error")
    continues = _parse_flag(message, "continues")
    if continues and error is not None:
        raise VarlinkProtocolError(f"an error is the last reply, but {error} continues")
    return Reply(_parse_parameters(message), error, continues)


def _parse_parameters(message: dict[str, Any]) -> dict[str, Any]:
    parameters = message.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise VarlinkProtocolError("the parameters are an object")
    return parameters


def _parse_flag(message: dict[str, Any], key: str) -> bool:
    value = message.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise VarlinkProtocolError(f"{key} is true or false")
    return value


def _parse_object(frame: bytes, what: str) -> dict[str, Any]:
    try:
        message = json.loads(frame.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except UnicodeDecodeError as error:
        raise VarlinkProtocolError(f"a {what} is JSON in UTF-8: bad byte at {error.start}") from None
    except RecursionError:
        raise VarlinkProtocolError(f"a {what} nests at most {DEPTH_MAX} deep") from None
    except json.JSONDecodeError as error:
        raise VarlinkProtocolError(f"a {what} is one JSON object: {error.msg.lower()} at byte {error.pos}") from None
    except _Refused as error:
        raise VarlinkProtocolError(f"a {what} is one JSON object: {error}") from None
    except ValueError:
        raise VarlinkProtocolError(f"a {what} is one JSON object: a number has too many digits") from None
    if not isinstance(message, dict):
        raise VarlinkProtocolError(f"a {what} is one JSON object, not {_JSON_NAMES[type(message)]}")
    if frame.count(b"{") + frame.count(b"[") > DEPTH_MAX and not _is_shallow(message):
        raise VarlinkProtocolError(f"a {what} nests at most {DEPTH_MAX} deep")
    if b"\\u" in frame and _has_lone_surrogate(message):
        raise VarlinkProtocolError(f"a {what} is JSON in UTF-8: a lone surrogate is no character")
    return message


_JSON_NAMES: dict[type, str] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class _Refused(ValueError):
    """A value that JSON parsers read differently."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"duplicate key {key[:64]!r}")
            seen.add(key)
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not -_FLOAT_MAX <= number <= _FLOAT_MAX:
        raise _Refused(f"{text[:32]} is no number of JSON")
    return number


def _is_shallow(message: dict[str, Any]) -> bool:
    level: list[Any] = [message]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return True
    return False


def _has_lone_surrogate(message: dict[str, Any]) -> bool:
    try:
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False

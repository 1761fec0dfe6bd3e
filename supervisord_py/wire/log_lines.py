"""How lines of output are written in the formats of ``[log] format``, and read back as what the program wrote.

``timestamp``: an RFC 3339 time in UTC with milliseconds and a blank stand before each line; the rest is byte for byte
what was written. A line that is written in pieces has one time, that of its first piece.

``json``: each line is an object with ``time``, ``unit``, ``stream`` (``stdout`` or ``stderr`` where only one of them
comes here, ``output`` where both do, for they share a pipe; ``supervisor`` for what the supervisor says itself),
``invocation`` where it is known, and ``text``. The process that wrote it is not told: a pipe does not say. A piece of a
line that goes on in the next object has ``partial``; a line that is no UTF-8 has U+FFFD in its text and all of its
bytes, in base64, in ``bytes``.

Reading is by what stands there, so lines of several formats may follow one another in a file. An object is only taken
for ours when it has our keys and no others. Whether times are looked for is said by who asks: programs write those too.
"""

import base64
import re
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

OURS = "supervisor"
"""The stream of lines that the supervisor has written itself."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.ASCII)
_TIME_LENGTH = len("2026-01-01T00:00:00.000Z")
_encode = msgspec.json.Encoder().encode


class LogLine(NamedTuple):
    """A line as the program wrote it; ``time`` as it stands in the log, None where there is none; ``goes_on``: the next
    one is the rest of it."""

    text: str
    time: str | None = None
    goes_on: bool = False


class _Written(msgspec.Struct, forbid_unknown_fields=True):
    time: str
    unit: str
    stream: str
    text: str
    invocation: str = ""
    partial: bool = False
    bytes: str = ""


_decode = msgspec.json.Decoder(_Written).decode


def time_text(wall_ns: int) -> str:
    """Return a moment [ns since 1970] as it stands in the log."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03}Z"


def timestamped(lines: bytes, time: str, *, continues: bool) -> bytes:
    """Put ``time`` before each of ``lines``; the first one is the rest of an earlier line if it ``continues``."""
    stamp = f"{time} ".encode()
    written = lines[:-1].replace(b"\n", b"\n" + stamp) + lines[-1:]
    return written if continues else stamp + written


def json_lines(lines: bytes, time: str, unit: str, stream: str, invocation: str, *, goes_on: bool = False) -> bytes:
    """Write each of ``lines`` as an object; the last one is a piece if it ``goes_on``."""
    known = {"time": time, "unit": unit, "stream": stream} | ({"invocation": invocation} if invocation else {})
    head = _encode(known)[:-1] + b',"text":'
    pieces = lines.removesuffix(b"\n").split(b"\n")
    last = pieces.pop() if goes_on else None
    written = [head + _text(piece) + b"}\n" for piece in pieces]
    if last is not None:
        written.append(head + _text(last) + b',"partial":true}\n')
    return b"".join(written)


def _text(piece: bytes) -> bytes:
    try:
        return _encode(piece.decode())
    except UnicodeDecodeError:
        return _encode(piece.decode("utf-8", "replace")) + b',"bytes":"' + base64.b64encode(piece) + b'"'


def read_line(line: str, unit: str, *, stamped: bool) -> LogLine:
    """Take off what was put around a line of ``unit``, if anything was; ``stamped``: times before lines are ours."""
    if line.startswith('{"time":"'):
        try:
            found = _decode(line)
        except msgspec.MsgspecError:
            return LogLine(line)
        if found.unit == unit:
            return LogLine(found.text, found.time, found.partial)
    elif stamped and _TIME.match(line):
        return LogLine(line[_TIME_LENGTH + 1 :], line[:_TIME_LENGTH])
    return LogLine(line)


class LineReader:
    """Reads the lines of one unit one after the other, and puts the pieces of long ones together."""

    def __init__(self, unit: str, *, stamped: bool) -> None:
        self.unit = unit
        self.stamped = stamped
        self._begun: list[LogLine] = []

    def read(self, line: str) -> LogLine | None:
        """Return a whole line, None when this was a piece that goes on."""
        found = read_line(line, self.unit, stamped=self.stamped)
        if found.goes_on:
            self._begun.append(found)
            return None
        if not self._begun:
            return found
        first = self._begun[0]
        text = "".join(piece.text for piece in (*self._begun, found))
        self._begun = []
        return LogLine(text, first.time)

    def flush(self) -> list[LogLine]:
        """Return what was begun and will not go on."""
        text = "".join(piece.text for piece in self._begun)
        lines = [LogLine(text, self._begun[0].time)] if self._begun else []
        self._begun = []
        return lines

"""One record, one line: the codec of the journal and its hash chain.

A line is a JSON object in UTF-8 without spaces: ``seq ts mono_ns boot event severity unit invocation cause``, the
event's own fields, and ``hash`` last. The hash is over the hash of the record before and the line without its own hash:

    hash = sha256(previous hash in hex + '{"seq":7,...,"cause":3}')      the first 32 hex digits

so a changed, missing, added or exchanged record is found by whoever reads the lines in order, with any tool. 32
digits are enough: they guard against damage and careless editing, for which 128 bits are plenty; somebody who may
write the files may compute the whole chain anew anyway, whatever its length, and the line stays short enough to read.

Secrets are taken out (``redact``) and long values are cut here, so no caller can forget either.
"""

import re
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from supervisord_py.model.records import Record
from supervisord_py.store.redact import redact

HASH_DIGITS = 32
GENESIS = "0" * HASH_DIGITS
"""The hash before the first record of a journal."""

LINE_MAX = 256 * 1024
"""Longer lines are cut to their short fields: one record may not fill a segment."""

SHORT_VALUE = 256
"""What counts as a short field then [bytes]."""

RESERVED = ("seq", "ts", "mono_ns", "boot", "event", "severity", "unit", "invocation", "cause", "hash", "truncated")
"""An event's own field of such a name is written with ``_`` after it."""

_WALL_MAX_S = 253_402_300_799
_INTEGER_MAX = (1 << 64) - 1
_INTEGER_MIN = -(1 << 63)
_SUFFIX_LENGTH = len(b',"hash":""}') + HASH_DIGITS
_SUFFIX = re.compile(rb',"hash":"([0-9a-f]{%d})"\}' % HASH_DIGITS)
_SALVAGE = re.compile(rb'\{"seq":\d+,"ts":"(?:(?!\{"seq":\d{1,20},"ts":)[^\n])*?"hash":"[0-9a-f]{%d}"\}' % HASH_DIGITS)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class Stamp(Struct, frozen=True):
    """When a record was decided: wall and monotonic time [ns] and the boot that the latter belongs to."""

    wall_ns: int
    mono_ns: int
    boot: str


class Chain(Struct, frozen=True):
    """Where the journal stands: the number of the next record and the hash of the last one."""

    next_seq: int = 1
    last_hash: str = GENESIS


class Checked(NamedTuple):
    """A line that is what was once written after ``previous``."""

    seq: int
    hash: str


def pack(record: Record, stamp: Stamp, chain: Chain, *, payload_max: int) -> tuple[bytes, Chain]:
    """Number a record and make its line.

    Args:
        record: What happened; secrets are taken out of its fields.
        stamp: When.
        chain: The chain before it.
        payload_max: Longer strings are cut to so many bytes, and named with their full length in ``truncated``.

    Returns:
        The line with its newline, and the chain after it.
    """
    body = _encoder.encode(shape(record, stamp, chain.next_seq, payload_max=payload_max))
    if len(body) > LINE_MAX:
        body = _encoder.encode(_shortened(shape(record, stamp, chain.next_seq, payload_max=SHORT_VALUE), len(body)))
    digest = hash_line(chain.last_hash, body)
    return b'%s,"hash":"%s"}\n' % (body[:-1], digest.encode()), Chain(chain.next_seq + 1, digest)


def shape(record: Record, stamp: Stamp, seq: int | None, *, payload_max: int) -> dict[str, Any]:
    """Return a record as the object that is written and shown, without its hash; ``seq`` None is a beat's."""
    cut: dict[str, int] = {}
    own = {
        f"{name}_" if name in RESERVED else name: _fit(value, name, payload_max, cut)
        for name, value in redact(record.fields).items()
    }
    shaped: dict[str, Any] = {
        "seq": seq,
        "ts": format_time(stamp.wall_ns),
        "mono_ns": stamp.mono_ns,
        "boot": stamp.boot,
        "event": record.event,
        "severity": record.severity.value,
        "unit": None if record.unit is None else _plain(record.unit),
        "invocation": None if record.invocation is None else _plain(record.invocation),
        "cause": record.cause,
    }
    shaped |= own
    if cut:
        shaped["truncated"] = cut
    return shaped


def unpack(line: bytes) -> dict[str, Any] | None:
    """Read a line as a record; None when it is none (damaged, a segment's header, not ours). The hash is not looked
    at."""
    try:
        record = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    seq = record.get("seq")
    if not isinstance(seq, int) or seq < 1 or not isinstance(record.get("event"), str):
        return None
    return record


def salvage(line: bytes) -> list[dict[str, Any]]:
    """Return the whole records inside a damaged line, such as one whose newline was lost."""
    records = (unpack(match[0]) for match in _SALVAGE.finditer(line))
    return [record for record in records if record is not None]


def check(line: bytes, previous: str) -> Checked | None:
    """Check a line (without newline) against the hash of the one before; None when it is not what was written there."""
    parts = split_hash(line)
    if parts is None or hash_line(previous, parts[0]) != parts[1]:
        return None
    seq = seq_of(line)
    return None if seq is None else Checked(seq, parts[1])


def split_hash(line: bytes) -> tuple[bytes, str] | None:
    """Part a line into what the hash is over and the hash; None when it has none at its end."""
    match = _SUFFIX.fullmatch(line, max(0, len(line) - _SUFFIX_LENGTH))
    return None if match is None else (line[: match.start()] + b"}", match[1].decode())


def hash_line(previous: str, body: bytes) -> str:
    """Return the chained hash of a line's body: see the module's head."""
    return sha256(previous.encode() + body).hexdigest()[:HASH_DIGITS]


def seq_of(line: bytes) -> int | None:
    """Read a line's number without decoding the line; None when it does not begin like a record."""
    if not line.startswith(b'{"seq":'):
        return None
    digits = line[7 : line.find(b",", 7, 32)]
    return int(digits) if digits.isdigit() else None


def format_time(wall_ns: int) -> str:
    """Format a wall time [ns since 1970] as RFC 3339 in UTC with microseconds; texts of this form sort as times do."""
    seconds, fraction_ns = divmod(wall_ns, 1_000_000_000)
    return f"{_format_seconds(min(max(seconds, 0), _WALL_MAX_S))}.{fraction_ns // 1000:06d}Z"


def parse_time(text: str) -> str:
    """Bring a RFC 3339 time to the form of ``format_time``.

    Raises:
        ValueError: It is no such time.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"not a time: {text!r}; write it as 2026-01-31T12:00:00Z") from error
    return moment.strftime("%Y").rjust(4, "0") + moment.strftime("-%m-%dT%H:%M:%S.%fZ")


@lru_cache(maxsize=8)
def _format_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fit(value: Any, path: str, payload_max: int, cut: dict[str, int]) -> Any:
    """Make a value what JSON can hold, and cut long strings in it; ``cut`` collects their paths and full lengths."""
    match value:
        case str():
            return _cut(value, path, payload_max, cut)
        case bool() | None | float():
            return value
        case Enum():
            return _fit(value.value, path, payload_max, cut)
        case int():
            return value if _INTEGER_MIN <= value <= _INTEGER_MAX else str(value)
        case dict():
            return {_plain(str(key)): _fit(entry, f"{path}.{key}", payload_max, cut) for key, entry in value.items()}
        case list() | tuple():
            return [_fit(entry, f"{path}.{index}", payload_max, cut) for index, entry in enumerate(value)]
        case bytes():
            return _cut(value.decode("utf-8", "backslashreplace"), path, payload_max, cut)
        case _:
            return _cut(str(value), path, payload_max, cut)


def _cut(text: str, path: str, payload_max: int, cut: dict[str, int]) -> str:
    text = _plain(text)
    if len(text) * 4 <= payload_max:
        return text
    raw = text.encode()
    if len(raw) <= payload_max:
        return text
    cut[_plain(path)] = len(raw)
    return raw[:payload_max].decode("utf-8", "ignore")


def _plain(text: str) -> str:
    """Write bytes that were never UTF-8 (kept by Python as lone surrogates) as escapes, so that the line is UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _shortened(shaped: dict[str, Any], length: int) -> dict[str, Any]:
    """Keep of an overlong record what is short; ``truncated`` then holds the full length under the empty path."""
    kept = {
        name: value
        for name, value in shaped.items()
        if name in RESERVED[:9] or (name != "truncated" and len(name) <= 64 and not isinstance(value, dict | list))
    }
    while len(kept) > 9 and len(_encoder.encode(kept)) > LINE_MAX // 2:
        kept.popitem()
    kept["truncated"] = {"": length}
    return kept

"""Which records somebody wants: filters that look for bytes first and decode only what may match.

Decoding a line costs a hundred times what finding a word in it does, so a filter with a fixed part (an event, an
invocation, a unit without wildcards) is a *needle* that is searched for in a whole block of lines; only lines that
hold it are decoded, and decoding decides.

Regular expressions come from clients and run in the supervisor, where one that backtracks for ever would stop
everything (a match cannot be interrupted, and holds the interpreter). ``check_pattern`` therefore counts what a pattern
may cost on the worst text there can be: each unbounded repeat costs a factor of the text's length (as does the search
itself, which begins at every character), each choice and each bounded repeat a constant one. A pattern is searched for
in as much of a line as ``COST_MAX`` pays for, and refused when that is less than ``TEXT_MIN``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.errors import SupervisordError
from supervisord_py.model.records import EVENTS
from supervisord_py.model.states import Severity
from supervisord_py.store.record import HASH_DIGITS, parse_time, salvage, seq_of, unpack

MESSAGE = "unit.message"
PATTERN_MAX = 512
REPEATS_MAX = 2
REPEAT_COUNT_MAX = 1000
TEXT_MAX = 8192
"""Characters of a line that are searched at most: twice the default ``payload-max``."""
TEXT_MIN = 512
COST_MAX = 2**28
"""Steps of the matcher on one line: a third of a second."""

_HASH_TAIL = len(b',"hash":""}') + HASH_DIGITS
_WILDCARDS = frozenset("*?[")
_COUNTED = re.compile(r"\{(\d*)(,?)(\d*)\}")


class BadFilterError(SupervisordError):
    """A filter that cannot be used; ``message`` says what is wrong with it and what to write."""

    exit_status = 2

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Grep(Struct, frozen=True):
    """A regular expression that is searched for in the first ``text_max`` characters of a line."""

    pattern: re.Pattern[str]
    text_max: int

    def is_in(self, text: str) -> bool:
        return self.pattern.search(text, 0, self.text_max) is not None


class Query:
    """A compiled filter. Every given condition must hold.

    Args:
        units: Globs; a record is of a unit when its ``unit`` or one of its ``units`` (a command's) matches one of them.
        events: Event names or globs; what matches none of our events is what agents call theirs (``unit.message`` with
            that ``name``).
        severity: This severity or a worse one.
        since: Not before this time (RFC 3339).
        until: Not after this time.
        after: Only numbers above this one.
        grep: A regular expression that is searched for in the line, without its hash.
        invocation: One life of a unit.

    Raises:
        BadFilterError: A time, severity or expression that cannot be used.
    """

    def __init__(
        self,
        *,
        units: Sequence[str] = (),
        events: Sequence[str] = (),
        severity: str | None = None,
        since: str | None = None,
        until: str | None = None,
        after: int | None = None,
        grep: str | None = None,
        invocation: str | None = None,
    ) -> None:
        self.after = after or 0
        self.since = _time("since", since)
        self.until = _time("until", until)
        self._invocation = invocation
        self._units = [re.compile(translate(unit)).match for unit in units]
        self._events = [re.compile(translate(event)).match for event in events]
        self._names = [match for match in self._events if not any(map(match, EVENTS))]
        self._severities = _severities(severity)
        self._grep = None if grep is None else check_pattern(grep)
        self.needle = _needle(units, events, invocation)

    @property
    def is_timed(self) -> bool:
        return self.since is not None or self.until is not None

    def may_overlap(self, oldest: str, newest: str) -> bool:
        """Say whether records between these times can match."""
        return not (
            (self.since is not None and newest < self.since) or (self.until is not None and oldest > self.until)
        )

    def matches(self, record: Mapping[str, Any], line: bytes | None = None) -> bool:
        """Decide on a decoded record; ``line`` is its text where the caller has it."""
        seq, ts = record.get("seq"), record.get("ts")
        if isinstance(seq, int) and seq <= self.after:
            return False
        if self.is_timed and not (isinstance(ts, str) and self.may_overlap(ts, ts)):
            return False
        if self._severities is not None and record.get("severity") not in self._severities:
            return False
        if self._invocation is not None and record.get("invocation") != self._invocation:
            return False
        if self._events and not _any_matches(self._events, (record.get("event"),)):
            is_message = self._names and record.get("event") == MESSAGE
            if not (is_message and _any_matches(self._names, (record.get("name"),))):
                return False
        if self._units:
            others = record.get("units")
            names = (record.get("unit"), *(others if isinstance(others, list) else ()))
            if not _any_matches(self._units, names):
                return False
        if self._grep is None:
            return True
        text = line[:-_HASH_TAIL] if line is not None else msgspec.json.encode(record)
        return self._grep.is_in(text[: 4 * TEXT_MAX].decode("utf-8", "replace"))

    def select(self, block: bytes, *, newest_first: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the matching records of a block of whole lines, in its order or against it. Damaged lines are passed
        over."""
        lines = _lines_with(block, self.needle, newest_first) if self.needle else _lines(block, newest_first)
        for line in lines:
            if not line:
                continue
            record = unpack(line)
            if record is not None:
                if self.matches(record, line):
                    yield record
            elif seq_of(line) is not None or b'{"seq":' in line:
                found = [record for record in salvage(line) if self.matches(record)]
                yield from reversed(found) if newest_first else found


def check_pattern(pattern: str) -> Grep:
    """Compile a regular expression that cannot run away.

    Allowed are at most ``REPEATS_MAX`` unbounded repeats, none of them of a group that itself repeats or chooses, and
    no back references; the more it repeats and chooses, the less of a line is searched.

    Raises:
        BadFilterError: It is no regular expression, or one that could take for ever.
    """
    if len(pattern) > PATTERN_MAX:
        raise BadFilterError(f"cannot grep for a pattern of {len(pattern)} characters; use at most {PATTERN_MAX}")
    try:
        text_max = _text_max(pattern)
    except _RunawayError as error:
        raise BadFilterError(
            f"cannot grep for {pattern!r}: {error}, which could take for ever; use a simpler pattern"
        ) from None
    try:
        return Grep(re.compile(pattern), text_max)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadFilterError(f"cannot grep for {pattern!r}: {error}; write special characters as \\.") from error


class _RunawayError(Exception):
    """What makes a pattern dangerous."""


class _Group:
    """What is known of a group while it is scanned: its ways to match are those of its branches together."""

    def __init__(self) -> None:
        self.is_complex = False
        self.ways_before = 0
        self.ways = 1

    def choose(self) -> None:
        self.is_complex = True
        self.ways_before += self.ways
        self.ways = 1


def _text_max(pattern: str) -> int:
    """Return how many characters of a line the pattern may be searched for in. A scanner, not a parser: what is no
    pattern is left to ``re``."""
    groups = [_Group()]
    atom_is_complex = False
    repeats, position = 0, 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            if pattern[position + 1 : position + 2].isdigit() and pattern[position + 1] != "0":
                raise _RunawayError("it refers back to a group")
            position, atom_is_complex = position + 2, False
        elif character == "[":
            position, atom_is_complex = _class_end(pattern, position), False
        elif character == "(":
            if pattern.startswith(("(?P=", "(?("), position):
                raise _RunawayError("it refers back to a group")
            groups.append(_Group())
            position += 1
            if pattern.startswith("?", position):
                position += 1
        elif character == ")":
            atom_is_complex = False
            if len(groups) > 1:
                ended = groups.pop()
                atom_is_complex = ended.is_complex
                groups[-1].is_complex |= ended.is_complex
                groups[-1].ways *= ended.ways_before + ended.ways
            position += 1
        elif character == "|":
            groups[-1].choose()
            position, atom_is_complex = position + 1, False
        elif character in "*+?{":
            counted = _COUNTED.match(pattern, position) if character == "{" else None
            if character == "{" and counted is None:
                position, atom_is_complex = position + 1, False
                continue
            least, most = _counts(character, counted)
            if atom_is_complex and most != 1:
                raise _RunawayError("it repeats a group that repeats or chooses")
            if most is None:
                repeats += 1
                if repeats > REPEATS_MAX:
                    raise _RunawayError(f"it has more than {REPEATS_MAX} unbounded repeats")
            elif most > REPEAT_COUNT_MAX:
                raise _RunawayError(f"it repeats more than {REPEAT_COUNT_MAX} times")
            else:
                groups[-1].ways *= max(1, most - least + 1)
            groups[-1].is_complex = True
            position = counted.end() if counted is not None else position + 1
            while pattern.startswith(("?", "+"), position):
                position += 1
        else:
            position, atom_is_complex = position + 1, False
    return _affordable(repeats, math.prod(group.ways_before + group.ways for group in groups))


def _affordable(repeats: int, ways: int) -> int:
    """Return the longest text that ``ways`` * n^(``repeats`` + 1) / (``repeats`` + 1)! steps are paid for."""
    text_max = TEXT_MAX
    while ways * text_max ** (repeats + 1) // math.factorial(repeats + 1) > COST_MAX:
        text_max = text_max * 3 // 4
        if text_max < TEXT_MIN:
            raise _RunawayError("it can match in too many ways")
    return text_max


def _counts(character: str, counted: re.Match[str] | None) -> tuple[int, int | None]:
    """Return how often a quantifier repeats at least and at most; None: without bound."""
    if counted is None:
        return (0, 1) if character == "?" else (0, None)
    least, comma, most = counted.groups()
    return int(least or 0), int(most) if most else None if comma else int(least or 0)


def _class_end(pattern: str, start: int) -> int:
    position = start + 1
    if pattern.startswith("^", position):
        position += 1
    if pattern.startswith("]", position):
        position += 1
    while position < len(pattern) and pattern[position] != "]":
        position += 2 if pattern[position] == "\\" else 1
    return position + 1


def _time(name: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise BadFilterError(f"cannot use {name}: {error}") from error


def _severities(severity: str | None) -> frozenset[str] | None:
    if severity is None:
        return None
    names = [known.value for known in Severity]
    if severity not in names:
        raise BadFilterError(f"no such severity: {severity!r}; use one of {', '.join(names)}")
    return frozenset(names[: names.index(severity) + 1])


def _needle(units: Sequence[str], events: Sequence[str], invocation: str | None) -> bytes:
    """Return bytes that every matching line holds, the rarest there is; empty when there are none."""
    if invocation is not None:
        return b'"invocation":' + msgspec.json.encode(invocation)
    if len(units) == 1 and _WILDCARDS.isdisjoint(units[0]):
        return msgspec.json.encode(units[0])
    if len(events) == 1 and _WILDCARDS.isdisjoint(events[0]):
        return (b'"event":' if events[0] in EVENTS else b"") + msgspec.json.encode(events[0])
    return b""


def _any_matches(patterns: Sequence[Any], names: Sequence[object]) -> bool:
    return any(match(name) for name in names if isinstance(name, str) for match in patterns)


def _lines(block: bytes, newest_first: bool) -> Iterator[bytes]:
    lines = block.split(b"\n")
    return reversed(lines) if newest_first else iter(lines)


def _lines_with(block: bytes, needle: bytes, newest_first: bool) -> Iterator[bytes]:
    if newest_first:
        end = len(block)
        while (found := block.rfind(needle, 0, end)) >= 0:
            start = block.rfind(b"\n", 0, found) + 1
            stop = block.find(b"\n", found)
            yield block[start : stop if stop >= 0 else len(block)]
            end = max(start - 1, 0)
        return
    position = 0
    while (found := block.find(needle, position)) >= 0:
        start = block.rfind(b"\n", 0, found) + 1
        stop = block.find(b"\n", found)
        stop = stop if stop >= 0 else len(block)
        yield block[start:stop]
        position = stop

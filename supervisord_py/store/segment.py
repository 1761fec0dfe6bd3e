"""Segments: the files of the journal, how they begin, and what can be known about one from its bytes alone.

Theory
------
A segment ``journal-FIRST.ndjson`` is a header line and the records from number FIRST on. The header carries the hash
of the record before, so the chain of records runs through all segments as if they were one file, and the oldest ones
can be dropped: what is kept still begins with a known hash. The header has a hash of its own and is not a record.

* A *torn tail* is what stands after the last newline: a write that was cut off. Nobody was promised it; it is cut.
* Everything else that does not check is *damage*: a changed byte is somebody's evidence, so the file is never
  written again. It is renamed (``.damaged`` is added, it stays readable and is kept as long as others) and a new
  segment begins, whose header says so.
* Records of a segment count up to, not including, the FIRST of the segment after it. So when a disk may have lost
  what was written since the last good sync, the next segment simply begins there and holds those records again.

Laws: a line that checks is what was written; numbers of live records are never given twice; ``scan`` never raises,
whatever the bytes are (``tests/property``).
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec
from msgspec import Struct

from supervisord_py.store.record import GENESIS, check, hash_line, seq_of, split_hash, unpack

FORMAT = 1
NAME_DIGITS = 20
DAMAGED = ".damaged"
UNKNOWN_HASH = ""
"""The header's ``prev`` where the hash of the record before is lost; the first record is then taken as it is."""

_NAME = re.compile(rf"journal-(\d{{{NAME_DIGITS}}})\.ndjson(\.damaged(?:-(\d+))?)?")


class After(Enum):
    """Why a segment was begun."""

    START = "start"
    ROTATION = "rotation"
    DAMAGE = "damage"
    WRITE_FAILURE = "write-failure"
    SYNC_FAILURE = "sync-failure"
    LOSS = "loss"


class Header(Struct, frozen=True):
    """A segment's first line; ``file`` names the one that was given up where ``after`` is a failure or damage."""

    first: int
    prev: str = GENESIS
    ts: str = ""
    boot: str = ""
    after: After = After.START
    file: str | None = None


class _HeaderLine(Struct, frozen=True):
    journal: int
    first: int
    prev: str
    ts: str
    boot: str
    after: After
    file: str | None


class SegmentName(Struct, frozen=True, order=True):
    """A segment's file name, taken apart; sorts in the order of reading (the given-up file before its successor)."""

    first: int
    live: bool
    copy: int
    name: str


class Damage(Struct, frozen=True):
    """The first place where a segment is not what was written; ``line`` counts from 1 and the header is line 1."""

    line: int
    seq: int
    problem: str


class Scan(Struct, frozen=True):
    """What a segment's bytes say.

    ``records`` of the ``lines`` after the header are good; ``last_seq`` and ``last_hash`` are of the last good record
    before any damage (of the record before the segment when there is none). Cutting at ``good_end`` leaves whole
    lines only. ``resume_seq`` and ``resume_hash`` are of the last record of all, behind the damage too (the hash is
    ``UNKNOWN_HASH`` where the damage reaches the end).
    """

    header: Header | None
    records: int
    last_seq: int
    last_hash: str
    good_end: int
    torn: int
    damage: Damage | None
    resume_seq: int
    resume_hash: str


class Verdict(Struct, frozen=True):
    """What ``verify`` found: ``records`` good ones, and the first bad record with its file and line in ``problem``."""

    records: int
    first_seq: int | None = None
    last_seq: int | None = None
    bad_seq: int | None = None
    file: str | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


def format_name(first: int) -> str:
    return f"journal-{first:0{NAME_DIGITS}d}.ndjson"


def parse_name(name: str) -> SegmentName | None:
    """Take a file name apart; None when it is no segment's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return SegmentName(int(match[1]), match[2] is None, int(match[3] or 1), name)


def sort_names(names: Sequence[str]) -> list[SegmentName]:
    """Return the segments among some file names in the order of reading."""
    return sorted(parsed for parsed in map(parse_name, names) if parsed is not None)


def damaged_name(name: str, taken: Sequence[str]) -> str:
    """Return the name under which a segment is set aside: never one that exists."""
    candidate = name + DAMAGED
    copy = 2
    while candidate in taken:
        candidate = f"{name}{DAMAGED}-{copy}"
        copy += 1
    return candidate


def pack_header(header: Header) -> bytes:
    line = _HeaderLine(FORMAT, header.first, header.prev, header.ts, header.boot, header.after, header.file)
    body = msgspec.json.encode(line)
    return b'%s,"hash":"%s"}\n' % (body[:-1], hash_line(header.prev, body).encode())


def unpack_header(line: bytes) -> Header | None:
    """Read a header line; None when it is damaged, of another format, or none."""
    parts = split_hash(line)
    if parts is None:
        return None
    try:
        read = msgspec.json.decode(parts[0], type=_HeaderLine)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if read.journal != FORMAT or read.first < 1 or hash_line(read.prev, parts[0]) != parts[1]:
        return None
    return Header(read.first, read.prev, read.ts, read.boot, read.after, read.file)


def scan(data: bytes, first: int) -> Scan:
    """Check a segment from beginning to end.

    Args:
        data: The whole file, or what can be read of it.
        first: The number in its name.
    """
    end = data.rfind(b"\n") + 1
    lines = data[:end].split(b"\n")[:-1]
    header = unpack_header(lines[0]) if lines else None
    if header is None or header.first != first:
        damage = Damage(1, first, "the segment's header is damaged") if lines else None
        seq, digest = _resume(lines, 0, first - 1)
        return Scan(None, 0, first - 1, UNKNOWN_HASH, 0, len(data) - end, damage, seq, digest)
    seq, digest, offset = first - 1, header.prev, len(lines[0]) + 1
    for index in range(1, len(lines)):
        line = lines[index]
        checked = check(line, digest) if digest != UNKNOWN_HASH else _trust(line)
        if checked is None or checked[0] != seq + 1:
            damage = Damage(index + 1, seq + 1, _describe(line, checked, seq + 1))
            resumed = _resume(lines, index, seq)
            return Scan(header, index - 1, seq, digest, offset, len(data) - end, damage, *resumed)
        seq, digest = checked
        offset += len(line) + 1
    return Scan(header, len(lines) - 1, seq, digest, offset, len(data) - end, None, seq, digest)


def verify(names: Sequence[str], read: Callable[[str], bytes], *, written: int | None = None) -> Verdict:
    """Check the chain of everything that is kept.

    Args:
        names: The file names of the journal's folder, in any order.
        read: Gives the bytes of one of them.
        written: The last number known to be written, where somebody knows it: fewer records are a missing tail.
    """
    segments = sort_names(names)
    records, first_seq, last_seq, last_hash = 0, None, None, UNKNOWN_HASH
    bad: tuple[int, str, str] | None = None
    for index, segment in enumerate(segments):
        limit = segments[index + 1].first if index + 1 < len(segments) else None
        if limit is not None and limit <= segment.first:
            continue
        scanned = scan(_whole_lines_before(read(segment.name), limit), segment.first)
        if scanned.damage is not None and limit is not None and scanned.damage.seq >= limit:
            # Behind the last record that counts: whoever wrote there, a later segment has what matters.
            scanned = Scan(
                scanned.header, scanned.records, scanned.last_seq, scanned.last_hash,
                scanned.good_end, scanned.torn, None, scanned.last_seq, scanned.last_hash,
            )  # fmt: skip
        found = _joint(scanned.header, segment.first, last_seq, last_hash)
        if found is None and scanned.damage is not None:
            found = scanned.damage
        if found is not None and bad is None:
            bad = (found.seq, segment.name, f"line {found.line}: {found.problem}")
        if scanned.header is None and scanned.damage is None:
            if limit is not None and bad is None:
                bad = (segment.first, segment.name, f"records {segment.first} to {limit - 1} are missing: it is empty")
            continue
        seen = scanned.records if scanned.damage is None else max(0, scanned.resume_seq - segment.first)
        records += seen
        if seen and first_seq is None:
            first_seq = segment.first
        last_seq, last_hash = scanned.resume_seq, scanned.resume_hash
        if limit is not None and last_seq < limit - 1 and bad is None:
            bad = (last_seq + 1, segment.name, f"records {last_seq + 1} to {limit - 1} are missing after its end")
    if written is not None and (last_seq or 0) < written and bad is None:
        name = segments[-1].name if segments else format_name(1)
        bad = ((last_seq or 0) + 1, name, f"records {(last_seq or 0) + 1} to {written} are missing at its end")
    last = last_seq if first_seq is not None else None
    if bad is None:
        return Verdict(records, first_seq, last)
    return Verdict(records, first_seq, last, *bad)


def _joint(header: Header | None, first: int, last_seq: int | None, last_hash: str) -> Damage | None:
    """Check that a segment goes on where the one before it ended."""
    if last_seq is None or header is None:
        return None
    if first > last_seq + 1:
        return Damage(1, last_seq + 1, f"records {last_seq + 1} to {first - 1} are missing before it")
    if last_hash != UNKNOWN_HASH and header.prev != last_hash:
        return Damage(1, first, "it does not continue the segment before it (another hash)")
    return None


def _whole_lines_before(data: bytes, limit: int | None) -> bytes:
    """Leave out what a later segment holds instead (numbers from ``limit`` on), wherever it begins."""
    if limit is None:
        return data
    end = data.find(b'\n{"seq":%d,' % limit)
    return data if end < 0 else data[: end + 1]


def _trust(line: bytes) -> tuple[int, str] | None:
    """Take a line as good by its form alone: nothing is left that it could be checked against."""
    parts, seq = split_hash(line), seq_of(line)
    return None if parts is None or seq is None or unpack(line) is None else (seq, parts[1])


def _describe(line: bytes, checked: object, expected: int) -> str:
    if checked is not None:
        return f"number {seq_of(line)} where {expected} was expected"
    if unpack(line) is None:
        return "not a record"
    return "the hash does not match: the record was changed, or the one before it"


def _resume(lines: Sequence[bytes], bad: int, good_seq: int) -> tuple[int, str]:
    """Find the last record of a damaged segment, so that its number is never given again.

    Args:
        lines: All complete lines.
        bad: The index of the first bad one.
        good_seq: The number of the record before it.

    Returns:
        Its number (not less than the records that can have been there) and its hash, ``UNKNOWN_HASH`` where that
        cannot be trusted.
    """
    counted = good_seq + sum(max(1, line.count(b'{"seq":')) for line in lines[max(bad, 1) :])
    if len(lines) < 3 or len(lines) - 1 <= bad:
        return counted, UNKNOWN_HASH
    before = split_hash(lines[-2])
    last = check(lines[-1], before[1]) if before is not None else None
    if last is None:
        return counted, UNKNOWN_HASH
    return last

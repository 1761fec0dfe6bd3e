"""What a starting manager makes of the journal it finds: where the chain stands, what to cut, what to set aside, what
to write.

Only the newest segment is checked: older ones were closed in order and are looked at by ``verify``. The keeper's
custody holds the lines that the last manager decided and may not have written; those above the last good record are
written now, so nothing that was decided is missing.

Where the last manager had given up a file (its disk failed) and could not write all of it again, what that file has
is written before them: readable is not durable after a failed sync, so the new segment begins where that file began.
Nothing is changed here: the plan is carried out by ``journal_log``, again and again where a disk is read-only or full.
"""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from supervisord_py.host.journal_disk import Disk
from supervisord_py.host.journal_log import Beginning, Continuation, Line, Point, lines_of
from supervisord_py.store.record import GENESIS, Chain, check
from supervisord_py.store.segment import UNKNOWN_HASH, After, Header, Scan, SegmentName, parse_name, scan, sort_names

LINE_BYTES_MIN = 128
"""No record's line is shorter: bounds how many numbers an unreadable rest can hold."""


class Recovery(Struct, frozen=True):
    """What ``Journal.open`` found and did; names of files, None where there was nothing to do.

    ``written`` lines of the keeper's were missing in the file. ``problem`` tells what was wrong with ``set_aside``,
    or why nothing could be read.
    """

    next_seq: int
    written: int = 0
    cut_file: str | None = None
    cut_bytes: int = 0
    set_aside: str | None = None
    problem: str | None = None


class Plan(Struct, frozen=True):
    """How writing goes on: after which line, with which segment, and which lines come then. Those up to ``written``
    are in some file already."""

    recovery: Recovery
    at: Point
    start: Continuation | Beginning
    missing: tuple[Line, ...]
    written: int
    chain: Chain


def plan_recovery(disk: Disk, pending: Sequence[tuple[int, str]], given_up: str | None = None) -> Plan:
    """Look at the newest segment and at the keeper's unwritten lines.

    Args:
        disk: The open folder.
        pending: Numbered lines in custody, ascending.
        given_up: The segment that the last manager had given up and not set aside yet.

    Raises:
        OSError: The folder cannot be read.
    """
    found = _look(disk, given_up)
    at, start, again = found.at, found.start, found.again
    end = again[-1].point if again else at
    missing = [Line(seq, text.encode() + b"\n") for seq, text in pending if seq > end.seq]
    written = end.seq
    if missing and not _continues(end, missing[0]):
        at = end = Point(missing[0].seq - 1, UNKNOWN_HASH)
        again = ()
        set_aside = start.set_aside if isinstance(start, Beginning) else None
        remove = start.remove if isinstance(start, Beginning) else None
        start = Beginning(After.LOSS, set_aside, remove)
    last = missing[-1].point if missing else end
    recovery = Recovery(
        next_seq=last.seq + 1,
        written=len(missing),
        cut_file=found.cut_file,
        cut_bytes=found.cut_bytes,
        set_aside=found.set_aside,
        problem=found.problem,
    )
    return Plan(recovery, at, start, (*again, *missing), written, Chain(last.seq + 1, last.hash))


class _Found(Struct, frozen=True):
    """``again`` are lines that stand in a file that was given up, and have to be written once more."""

    at: Point
    start: Continuation | Beginning
    again: tuple[Line, ...] = ()
    set_aside: str | None = None
    cut_file: str | None = None
    cut_bytes: int = 0
    problem: str | None = None


def _look(disk: Disk, given_up: str | None) -> _Found:
    segments = sort_names([entry.name for entry in disk.entries()])
    remove: str | None = None
    while segments:
        segment = segments.pop()
        size, data, error = _read(disk, segment.name)
        scanned = scan(data, segment.first)
        if scanned.header is None and scanned.damage is None and error is None and segment.live:
            # The manager died between making the file and its header: nothing is in it.
            remove = segment.name
            continue
        aside = segment.name if segment.live else None
        if error is not None:
            rest = (size - scanned.good_end) // LINE_BYTES_MIN + 1
            at = Point(scanned.last_seq + rest, UNKNOWN_HASH)
            problem = f"{segment.name}: cannot be read: {error.strerror}"
            return _Found(at, Beginning(After.DAMAGE, aside, remove), set_aside=aside, problem=problem)
        at = Point(scanned.resume_seq, scanned.resume_hash)
        if scanned.damage is not None:
            problem = f"{segment.name}: line {scanned.damage.line}: {scanned.damage.problem}"
            start = Beginning(After.DAMAGE, segment.name, remove)
            return _Found(at, start, set_aside=aside, problem=problem)
        again = _given_up_before(disk, scanned.header, at)
        if scanned.header is not None and (not segment.live or segment.name == given_up):
            before = Point(segment.first - 1, scanned.header.prev)
            again = [*lines_of(data[: scanned.good_end]), *again]
            return _Found(before, Beginning(After.DAMAGE, segment.name, remove), tuple(again), aside)
        return _found(segment, scanned, remove, again)
    return _Found(Point(0, GENESIS), Beginning(After.START, remove=remove))


def _given_up_before(disk: Disk, header: Header | None, at: Point) -> list[Line]:
    """Return what goes on after ``at`` in the files that were given up for the segment with this header: its writer
    was killed before it had written all of that again."""
    again: list[Line] = []
    seen: set[str] = set()
    while header is not None and header.file is not None and header.file not in seen:
        seen.add(header.file)
        segment = parse_name(header.file)
        if segment is None or at.hash == UNKNOWN_HASH:
            break
        _, data, _ = _read(disk, segment.name)
        scanned = scan(data, segment.first)
        lines = [line for line in lines_of(data[: scanned.good_end]) if line.seq > at.seq]
        if lines and _continues(at, lines[0]):
            again += lines
            at = lines[-1].point
        header = scanned.header
    return again


def _read(disk: Disk, name: str) -> tuple[int, bytes, OSError | None]:
    size = next((entry.bytes for entry in disk.entries() if entry.name == name), 0)
    try:
        data, error = disk.read(name)
    except OSError as cannot_open:
        return size, b"", cannot_open
    return max(size, len(data)), data, error


def _found(segment: SegmentName, scanned: Scan, remove: str | None, again: Sequence[Line]) -> _Found:
    at = Point(scanned.resume_seq, scanned.resume_hash)
    if not segment.live:
        return _Found(at, Beginning(After.DAMAGE, segment.name, remove))
    if remove is not None or scanned.header is None:
        return _Found(at, Beginning(After.ROTATION, remove=remove), tuple(again))
    before = Point(segment.first - 1, scanned.header.prev)
    start = Continuation(segment.name, scanned.good_end, scanned.records, _begun_wall_ns(scanned.header), before)
    torn = segment.name if scanned.torn else None
    return _Found(at, start, tuple(again), cut_file=torn, cut_bytes=scanned.torn)


def _continues(at: Point, line: Line) -> bool:
    """Say whether the first missing line follows the last one in the files, by number and by hash."""
    if line.seq != at.seq + 1:
        return False
    return at.hash == UNKNOWN_HASH or check(line.data[:-1], at.hash) is not None


def _begun_wall_ns(header: Header) -> int:
    try:
        return int(datetime.fromisoformat(header.ts).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0

"""What a starting manager makes of the journal it finds: where the chain stands, what to cut, what to set aside, what
to write.

Only the newest segment is checked: older ones were closed in order and are looked at by ``verify``. The keeper's
custody holds the lines that the last manager decided and may not have written; those above the last good record are
written now, so nothing that was decided is missing. Nothing is changed here: the plan is carried out by
``journal_log``, again and again where a disk is read-only or full.
"""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from supervisord_py.host.journal_disk import Disk
from supervisord_py.host.journal_log import Beginning, Continuation, Line, Point
from supervisord_py.store.record import GENESIS, Chain, check
from supervisord_py.store.segment import UNKNOWN_HASH, After, Header, Scan, SegmentName, scan, sort_names

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
    """How writing goes on: where the files end, with which segment, and which lines they lack."""

    recovery: Recovery
    at: Point
    start: Continuation | Beginning
    missing: tuple[Line, ...]
    chain: Chain


def plan_recovery(disk: Disk, pending: Sequence[tuple[int, str]]) -> Plan:
    """Look at the newest segment and at the keeper's unwritten lines.

    Args:
        disk: The open folder.
        pending: Numbered lines in custody, ascending.

    Raises:
        OSError: The folder cannot be read.
    """
    found = _look(disk)
    missing = [Line(seq, text.encode() + b"\n") for seq, text in pending if seq > found.at.seq]
    at, start = found.at, found.start
    if missing and not _continues(at, missing[0]):
        at = Point(missing[0].seq - 1, UNKNOWN_HASH)
        set_aside = start.set_aside if isinstance(start, Beginning) else None
        remove = start.remove if isinstance(start, Beginning) else None
        start = Beginning(After.LOSS, set_aside, remove)
    last = Point(missing[-1].seq, missing[-1].hash) if missing else at
    recovery = Recovery(
        next_seq=last.seq + 1,
        written=len(missing),
        cut_file=found.cut_file,
        cut_bytes=found.cut_bytes,
        set_aside=start.set_aside if isinstance(start, Beginning) else None,
        problem=found.problem,
    )
    return Plan(recovery, at, start, tuple(missing), Chain(last.seq + 1, last.hash))


class _Found(Struct, frozen=True):
    at: Point
    start: Continuation | Beginning
    cut_file: str | None = None
    cut_bytes: int = 0
    problem: str | None = None


def _look(disk: Disk) -> _Found:
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
        if error is not None:
            rest = (size - scanned.good_end) // LINE_BYTES_MIN + 1
            at = Point(scanned.last_seq + rest, UNKNOWN_HASH)
            aside = segment.name if segment.live else None
            problem = f"{segment.name}: cannot be read: {error.strerror}"
            return _Found(at, Beginning(After.DAMAGE, aside, remove), problem=problem)
        return _found(segment, scanned, remove)
    return _Found(Point(0, GENESIS), Beginning(After.START, remove=remove))


def _read(disk: Disk, name: str) -> tuple[int, bytes, OSError | None]:
    size = next((entry.bytes for entry in disk.entries() if entry.name == name), 0)
    try:
        data, error = disk.read(name)
    except OSError as cannot_open:
        return size, b"", cannot_open
    return max(size, len(data)), data, error


def _found(segment: SegmentName, scanned: Scan, remove: str | None) -> _Found:
    at = Point(scanned.resume_seq, scanned.resume_hash)
    if scanned.damage is not None:
        problem = f"{segment.name}: line {scanned.damage.line}: {scanned.damage.problem}"
        return _Found(at, Beginning(After.DAMAGE, segment.name if segment.live else None, remove), problem=problem)
    if not segment.live:
        return _Found(at, Beginning(After.DAMAGE, remove=remove))
    if remove is not None or scanned.header is None:
        return _Found(at, Beginning(After.ROTATION, remove=remove))
    start = Continuation(segment.name, scanned.good_end, scanned.records, _begun_wall_ns(scanned.header))
    return _Found(at, start, segment.name if scanned.torn else None, scanned.torn)


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

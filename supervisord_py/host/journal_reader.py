"""Reads the journal from its files: queries newest first, counts, and verification; everything here may run in any
thread.

Readers share nothing with the writer but the files. A segment that retention drops meanwhile is passed over, a line
that is being written is not there yet, and records that a later segment holds again (``store.segment``) are read
there only.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.errors import SupervisordError
from supervisord_py.store.query import Query
from supervisord_py.store.record import seq_of
from supervisord_py.store.segment import SegmentName, Verdict, sort_names, verify

BLOCK_FIRST = 64 * 1024
BLOCK_MAX = 1024 * 1024
VERIFY_ATTEMPTS = 3


class Counts(Struct, frozen=True):
    """What is kept, counted; ``oldest`` is the time of the first record."""

    records: int = 0
    bytes: int = 0
    segments: int = 0
    first_seq: int | None = None
    last_seq: int | None = None
    oldest: str | None = None
    by_event: dict[str, int] = {}
    by_unit: dict[str, int] = {}


class _Brief(Struct, frozen=True):
    seq: int
    ts: str
    event: str
    unit: str | None = None


class _Segment(Struct, frozen=True):
    name: SegmentName
    path: Path
    size: int
    limit: int | None
    """Records from this number on are in a later segment; None: it is the newest."""


class _Summary(Struct, frozen=True):
    """One segment, counted; kept as long as its size and limit stay the same."""

    size: int
    limit: int | None
    first: _Brief | None
    last_seq: int
    oldest: str
    newest: str
    by_event: Counter[str]
    by_unit: Counter[str]


class JournalUnavailableError(SupervisordError):
    """The journal cannot be read now; ``message`` says why."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class JournalReader:
    """The reading end of a journal's folder.

    Args:
        directory: The folder with the segments.
        is_stopped: Asked between blocks; True ends the reading with ``JournalUnavailableError``.
    """

    def __init__(self, directory: Path, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._directory = directory
        self._is_stopped = is_stopped
        self._decoder = msgspec.json.Decoder(_Brief)
        self._summaries: dict[str, _Summary] = {}

    def last(self, query: Query, count: int, *, upto: int | None = None) -> list[dict[str, Any]]:
        """Return the last ``count`` records that match, oldest first; ``upto`` is the highest number wanted."""
        found: list[dict[str, Any]] = []
        if count < 1:
            return found
        for segment in reversed(self._segments(query)):
            for block in self._blocks_backwards(segment):
                for record in query.select(block, newest_first=True):
                    if _is_wanted(record, segment.limit, upto):
                        found.append(record)
                        if len(found) == count:
                            return found[::-1]
                if _is_before(block, query.after):
                    return found[::-1]
        return found[::-1]

    def all(self, query: Query, *, upto: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield every record that matches, oldest first."""
        for segment in self._segments(query):
            for block in self._blocks(segment):
                for record in query.select(block):
                    if _is_wanted(record, segment.limit, upto):
                        yield record

    def oldest(self) -> int:
        """Return the number that what is kept begins with; 1 where nothing is."""
        segments = self._list()
        return segments[0].name.first if segments else 1

    def count(self) -> Counts:
        """Count what is kept, by event and by unit."""
        segments = self._list()
        by_event: Counter[str] = Counter()
        by_unit: Counter[str] = Counter()
        first: _Brief | None = None
        last_seq: int | None = None
        for segment in segments:
            summary = self._summarize(segment)
            by_event += summary.by_event
            by_unit += summary.by_unit
            first = first or summary.first
            last_seq = summary.last_seq or last_seq
        for name in set(self._summaries) - {segment.name.name for segment in segments}:
            self._summaries.pop(name, None)
        return Counts(
            records=by_event.total(),
            bytes=sum(segment.size for segment in segments),
            segments=len(segments),
            first_seq=None if first is None else first.seq,
            last_seq=last_seq,
            oldest=None if first is None else first.ts,
            by_event=dict(sorted(by_event.items())),
            by_unit=dict(sorted(by_unit.items())),
        )

    def _list(self) -> list[_Segment]:
        try:
            sizes = {
                entry.name: entry.stat(follow_symlinks=False).st_size
                for entry in os.scandir(self._directory)
                if entry.is_file(follow_symlinks=False)
            }
        except FileNotFoundError:
            return []
        names = sort_names(list(sizes))
        limits = [name.first for name in names[1:]]
        return [
            _Segment(name, self._directory / name.name, sizes[name.name], limit)
            for name, limit in zip(names, [*limits, None], strict=False)
            if limit is None or limit > name.first
        ]

    def _segments(self, query: Query) -> list[_Segment]:
        """Return the segments that can hold matching records, by their numbers and times."""
        wanted: list[_Segment] = []
        for segment in self._list():
            if segment.limit is not None:
                if segment.limit - 1 <= query.after:
                    continue
                if query.is_timed:
                    summary = self._summarize(segment)
                    if not query.may_overlap(summary.oldest, summary.newest):
                        continue
            wanted.append(segment)
        return wanted

    def _summarize(self, segment: _Segment) -> _Summary:
        """Count one segment. Times are the extremes of all records, because the clock may have been set back and
        forth."""
        known = self._summaries.get(segment.name.name)
        if known is not None and known.size == segment.size and known.limit == segment.limit:
            return known
        by_event: Counter[str] = Counter()
        by_unit: Counter[str] = Counter()
        first: _Brief | None = None
        last_seq, oldest, newest = 0, "~", ""
        for block in self._blocks(segment):
            for line in block.split(b"\n"):
                brief = self._brief(line)
                if brief is None or (segment.limit is not None and brief.seq >= segment.limit):
                    continue
                first = first or brief
                last_seq, oldest, newest = brief.seq, min(oldest, brief.ts), max(newest, brief.ts)
                by_event[brief.event] += 1
                if brief.unit is not None:
                    by_unit[brief.unit] += 1
        summary = _Summary(segment.size, segment.limit, first, last_seq, oldest, newest, by_event, by_unit)
        if segment.limit is not None:
            self._summaries[segment.name.name] = summary
        return summary

    def _brief(self, line: bytes) -> _Brief | None:
        if not line.startswith(b'{"seq":'):
            return None
        try:
            return self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _open(self, segment: _Segment) -> int | None:
        if self._is_stopped():
            raise JournalUnavailableError("the journal was closed while it was read")
        try:
            return os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None

    def _blocks(self, segment: _Segment) -> Iterator[bytes]:
        """Yield a segment in blocks of whole lines; a last line without its newline comes last, should it be a record
        all the same."""
        descriptor = self._open(segment)
        if descriptor is None:
            return
        try:
            rest = b""
            while block := os.read(descriptor, BLOCK_MAX):
                if self._is_stopped():
                    raise JournalUnavailableError("the journal was closed while it was read")
                block = rest + block
                end = block.rfind(b"\n") + 1
                rest = block[end:]
                if end:
                    yield block[:end]
            if rest:
                yield rest
        finally:
            os.close(descriptor)

    def _blocks_backwards(self, segment: _Segment) -> Iterator[bytes]:
        """As ``_blocks``, from the end: small blocks first, because most people want the last few records."""
        descriptor = self._open(segment)
        if descriptor is None:
            return
        try:
            end = os.fstat(descriptor).st_size
            rest = b""
            size = BLOCK_FIRST
            while end > 0:
                if self._is_stopped():
                    raise JournalUnavailableError("the journal was closed while it was read")
                start = max(0, end - size)
                block = os.pread(descriptor, end - start, start) + rest
                end = start
                line_start = 0 if start == 0 else block.find(b"\n") + 1
                rest = block[:line_start] if line_start else b"" if start == 0 else block
                if line_start or start == 0:
                    yield block[line_start:]
                size = min(size * 2, BLOCK_MAX)
        finally:
            os.close(descriptor)


def verify_directory(directory: Path, *, written: int | None = None) -> Verdict:
    """Check the chain of everything that is kept in a folder, whether or not a supervisor runs.

    Args:
        directory: The journal's folder.
        written: The last number known to be written, if any.

    Raises:
        OSError: The folder or a file in it cannot be read.
    """
    for _ in range(VERIFY_ATTEMPTS - 1):
        try:
            return _verify_once(directory, written)
        except FileNotFoundError:
            # Retention dropped a segment between listing and reading; what is kept now is another set.
            continue
    return _verify_once(directory, written)


def _verify_once(directory: Path, written: int | None) -> Verdict:
    return verify(os.listdir(directory), lambda name: (directory / name).read_bytes(), written=written)


def _is_wanted(record: dict[str, Any], limit: int | None, upto: int | None) -> bool:
    seq: int = record["seq"]
    return (limit is None or seq < limit) and (upto is None or seq <= upto)


def _is_before(block: bytes, after: int) -> bool:
    """Say whether everything before this block has been seen already by somebody who wants numbers above ``after``."""
    seq = seq_of(block[:64]) if after else None
    return seq is not None and seq <= after

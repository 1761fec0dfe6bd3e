"""Writes journal lines into segments and survives what disks do; no threads in here (``journal_writer`` gives it one).

Theory
------
A line is in one of three places: ``unwritten`` (the disk has not taken it), ``unsynced`` (written, but a power
failure or a failing disk could still lose it), or durable (forgotten here). Lines move forward by ``flush`` and
``sync``. When a disk may have lost what it took (a failed sync, a file that was removed or changed by somebody
else), ``unsynced`` moves back in front of ``unwritten``, the file is set aside and a new segment begins with the
first line that is not durable: never "write again and assume", and no line of a living manager is lost.

A killed manager loses none either. What it had written before the failure stands in the file that is set aside, and
recovery takes it from there; what it took up afterwards is called written only when it is durable, so custody has it
until then. Of a segment that is continued nobody knows what is durable: before its first good sync, the lines that it
has count as unsynced. Segments that were left while nothing was synced (``sync = "never"``) are synced before anything
after them is called durable.

Every ``OSError`` ends in ``failing`` (a text for people) and the lines wait; the caller tries again later. A full
disk first costs the reserve.

Laws (``tests/faults/test_journal_log.py``, with a disk that fails at every step): lines reach the disk in order, each
exactly once in what a reader sees; ``written`` and ``durable`` never go back; nothing raises.
"""

import errno
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from msgspec import Struct

from supervisord_py.host.journal_disk import Disk, SegmentFile
from supervisord_py.model.settings import JournalSettings
from supervisord_py.store.record import HASH_DIGITS, format_time, seq_of
from supervisord_py.store.retention import SegmentInfo, expired, is_rotation_due
from supervisord_py.store.segment import (
    UNKNOWN_HASH,
    After,
    Header,
    damaged_name,
    format_name,
    pack_header,
    parse_name,
    scan,
    sort_names,
)

CHUNK_LINES = 512
CHUNK_BYTES = 256 * 1024
UNSYNCED_BYTES_MAX = 1024 * 1024
"""More is synced unasked: it bounds what is kept in memory for a second writing."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HASH_AT = -(HASH_DIGITS + 3)


class Point(Struct, frozen=True):
    """A place in the chain: the number and hash of the last record up to it."""

    seq: int = 0
    hash: str = UNKNOWN_HASH


class Line(Struct, frozen=True):
    """A numbered line with its newline."""

    seq: int
    data: bytes

    @property
    def hash(self) -> str:
        return self.data[_HASH_AT:-3].decode()

    @property
    def point(self) -> Point:
        return Point(self.seq, self.hash)


class Continuation(Struct, frozen=True):
    """The segment to go on with, as recovery found it: whole and good up to ``size`` bytes; ``before`` is the end of
    the one before it."""

    name: str
    size: int
    records: int
    begun_wall_ns: int
    before: Point


class Beginning(Struct, frozen=True):
    """How the next new segment begins: why, and after which file is set aside first."""

    after: After = After.START
    set_aside: str | None = None
    remove: str | None = None


class Rotation(Struct, frozen=True):
    """A new segment, for the ``journal.rotated`` record: why it was begun, what was set aside and what retention
    dropped."""

    segment: str
    first: int
    after: After
    set_aside: str | None
    dropped: tuple[str, ...]


class SegmentLog:
    """The journal's files, seen from the writing end.

    Args:
        disk: The folder.
        settings: Sizes, ages and ``sync``.
        boot: The boot id, for headers.
        at: Where the chain stands in the files.
        start: The segment to go on with, or how a new one begins.
        written: The highest number that is in any file, where that is beyond ``at``: those lines are written again.
    """

    def __init__(
        self,
        disk: Disk,
        settings: JournalSettings,
        *,
        boot: str,
        at: Point,
        start: Continuation | Beginning,
        written: int = 0,
    ) -> None:
        self.settings = settings
        self.failing: str | None = None
        self.is_full = False
        self.on_reserve = False
        self.rotations: list[Rotation] = []
        self._disk = disk
        self._boot = boot
        self._at = at
        self._base = at
        self._durable = 0
        self._written = max(at.seq, written)
        self._is_dirty = False
        self._is_streak = False
        self._unwritten: deque[Line] = deque()
        self._unsynced: deque[Line] = deque()
        self._unsynced_bytes = 0
        self._active: SegmentFile | None = None
        self._records = 0
        self._begun_wall_ns = 0
        self._next: Continuation | Beginning = start
        self._continued: tuple[Continuation, Point] | None = None
        self._is_rotating = False
        self._left_unsynced: deque[str] = deque()

    @property
    def written(self) -> int:
        """The highest number that the disk has taken, and that a killed manager's successor finds there."""
        return self._written

    @property
    def durable(self) -> int:
        """The highest number that survives a power failure."""
        return self._durable

    @property
    def given_up(self) -> str | None:
        """The file that is to be left and still has the name of a good one: its end may be readable and not on the
        disk, which nobody can see."""
        if self._active is not None or not isinstance(self._next, Beginning):
            return None
        name = self._next.set_aside or self._next.remove
        segment = None if name is None else parse_name(name)
        return name if segment is not None and segment.live else None

    @property
    def unwritten(self) -> int:
        return len(self._unwritten)

    @property
    def is_sync_due(self) -> bool:
        """Say whether enough is unsynced that a sync is due unasked."""
        return self._unsynced_bytes > UNSYNCED_BYTES_MAX

    @property
    def is_unsynced(self) -> bool:
        return self._is_dirty and self.settings.sync != "never"

    def add(self, lines: Sequence[Line]) -> None:
        """Take over lines, in order and after all earlier ones."""
        self._unwritten.extend(lines)

    def flush(self, wall_ns: int) -> None:
        """Write what is unwritten, as far as the disk lets us; see ``failing`` afterwards."""
        self._attempt(wall_ns, is_sync=False)

    def sync(self, wall_ns: int) -> None:
        """Write what is unwritten and make it durable; see ``failing`` and ``durable`` afterwards."""
        self._attempt(wall_ns, is_sync=True)

    def rotate(self, wall_ns: int) -> None:
        """Begin a new segment now (before the next line), unless the current one is still empty."""
        self._is_rotating = True
        self._attempt(wall_ns, is_sync=False)

    def restore_reserve(self) -> None:
        """Set the reserve aside (again) if the disk has room for it; a disk that has none is full."""
        try:
            self.on_reserve = not self._disk.reserve(self.settings.reserve)
        except OSError:
            # No question of room (read-only, broken): the next line will tell.
            return
        self.is_full = self.on_reserve or (self.failing is not None and self.is_full)

    def close(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    def _attempt(self, wall_ns: int, *, is_sync: bool) -> None:
        """Flush (and sync), once more after each remedy: the reserve for a full disk, a new segment for a failed
        file."""
        released = False
        for _ in range(3):
            try:
                self._flush(wall_ns)
                if is_sync or self._is_streak:
                    self._sync()
            except _GaveUp as gave_up:
                self._fail(gave_up.error)
            except OSError as error:
                self._fail(error)
                if self.is_full and not released and self._disk.release_reserve():
                    released = self.on_reserve = True
                    continue
                return
            else:
                self.failing = None
                self.is_full = self.on_reserve
                return

    def _fail(self, error: OSError) -> None:
        self.failing = f"cannot write the journal: {error.strerror or error}"
        self.is_full = error.errno in _FULL

    def _flush(self, wall_ns: int) -> None:
        while self._unwritten or self._is_rotating:
            if self._active is not None and not self._active.is_intact():
                self._give_up(After.LOSS, OSError(errno.EIO, f"{self._active.name} was changed or removed by others"))
            self._rotate_if_due(wall_ns)
            if not self._unwritten:
                return
            active = self._activate(wall_ns)
            chunk = self._chunk(active)
            appended = active.append(b"".join(line.data for line in chunk))
            self._took(chunk, appended.kept)
            if appended.error is not None:
                self._refused(active, appended.error)

    def _chunk(self, active: SegmentFile) -> list[Line]:
        """Return the next lines that still belong into this segment; always at least one."""
        size = active.size
        taken = 0
        chunk: list[Line] = []
        for line in islice(self._unwritten, CHUNK_LINES):
            if chunk and (taken > CHUNK_BYTES or self._is_due(size + taken, len(line.data), 0, 1)):
                break
            chunk.append(line)
            taken += len(line.data)
        return chunk

    def _is_due(self, size: int, adding: int, age_ns: int, records: int) -> bool:
        settings = self.settings
        return is_rotation_due(
            size, adding, age_ns, records=records, max_bytes=settings.max_bytes, max_age_ns=settings.max_age_ns
        )

    def _took(self, chunk: Sequence[Line], kept: int) -> None:
        self._is_dirty = self._is_dirty or kept > 0
        for line in chunk:
            if kept < len(line.data):
                break
            kept -= len(line.data)
            self._unwritten.popleft()
            self._at = line.point
            self._records += 1
            if not self._is_streak or self.settings.sync == "never":
                self._written = max(self._written, line.seq)
            if self.settings.sync != "never":
                self._unsynced.append(line)
                self._unsynced_bytes += len(line.data)

    def _refused(self, active: SegmentFile, error: OSError) -> None:
        if error.errno == errno.EFBIG and self._records > 0:
            # A limit on the size of one file (RLIMIT_FSIZE) is below ours: the next file has room again.
            self._is_rotating = True
            return
        if error.errno not in _FULL or not active.is_intact():
            self._give_up(After.WRITE_FAILURE, error)
        raise error

    def _sync(self) -> None:
        if self.settings.sync == "never":
            return
        self._sync_left()
        if self._active is None and isinstance(self._next, Continuation):
            self._activate(0)
        if self._active is None or not self._is_dirty:
            return
        if not self._active.is_intact():
            self._give_up(After.LOSS, OSError(errno.EIO, f"{self._active.name} was changed or removed by others"))
        try:
            self._active.sync()
        except OSError as error:
            self._give_up(After.SYNC_FAILURE, error)
        self._base, self._continued = self._at, None
        self._durable = max(self._durable, self._at.seq)
        self._written = max(self._written, self._at.seq)
        self._is_dirty = self._is_streak = False
        self._unsynced.clear()
        self._unsynced_bytes = 0

    def _sync_left(self) -> None:
        """Sync the segments that were left behind when nothing had to be durable yet. A failure is told once: to sync
        such a file again would succeed and mean nothing."""
        while self._left_unsynced:
            # Retention may have dropped it.
            with suppress(FileNotFoundError):
                self._disk.sync(self._left_unsynced.popleft())

    def _give_up(self, after: After, error: OSError) -> None:
        """Leave the file as it is and go back to the last durable line, which a new segment will follow.

        Raises:
            _GaveUp: Always; it carries the error.
        """
        assert self._active is not None
        name = self._active.name
        self._active.close()
        self._active = None
        self._is_rotating = self._is_dirty = False
        if self._continued is not None:
            self._unsynced.extendleft(reversed(self._read_back(*self._continued)))
            self._continued = None
        is_kept_in_memory = self.settings.sync != "never" and name == format_name(self._base.seq + 1)
        if self._records == 0 or (self._is_streak and is_kept_in_memory):
            # One file a failure is evidence enough: a disk that fails for days must not be filled with copies.
            self._next = Beginning(after, remove=name)
        else:
            self._next = Beginning(after, set_aside=name)
        self._is_streak = True
        if self.settings.sync != "never":
            self._unwritten.extendleft(reversed(self._unsynced))
            self._unsynced.clear()
            self._unsynced_bytes = 0
            self._at = self._base
        raise _GaveUp(error)

    def _read_back(self, continued: Continuation, end: Point) -> Sequence[Line]:
        """Return the lines that the given-up segment had when it was continued, from its beginning; none, and its end
        is the last durable line for us, where they cannot be read any more."""
        try:
            data, _ = self._disk.read(continued.name)
        except OSError:
            data = b""
        found = scan(data[: continued.size], continued.before.seq + 1)
        if found.damage is None and (found.last_seq, found.last_hash) == (end.seq, end.hash):
            self._base = continued.before
            return lines_of(data[: continued.size])
        self._base = end
        return ()

    def _rotate_if_due(self, wall_ns: int) -> None:
        if self._active is None and isinstance(self._next, Continuation):
            self._activate(wall_ns)
        if self._active is None or self._records == 0:
            self._is_rotating = False
            return
        adding = len(self._unwritten[0].data) if self._unwritten else 0
        if not self._is_rotating and not self._is_due(
            self._active.size, adding, wall_ns - self._begun_wall_ns, self._records
        ):
            return
        self._sync()
        if self.settings.sync == "never":
            self._left_unsynced.append(self._active.name)
        self._active.close()
        self._active = None
        self._next = Beginning(After.ROTATION)
        self._is_rotating = False
        self._activate(wall_ns)

    def _activate(self, wall_ns: int) -> SegmentFile:
        if self._active is not None:
            return self._active
        if isinstance(self._next, Continuation):
            self._active = self._disk.reopen(self._next.name, self._next.size)
            self._records, self._begun_wall_ns = self._next.records, self._next.begun_wall_ns
            self._continued = self._next, self._at
            self._is_dirty = True
            return self._active
        beginning = self._make_way(self._next)
        at = self._at
        if self._unwritten and self._unwritten[0].seq != at.seq + 1:
            # Lines between the files and custody are gone (a folder that was emptied, an older one put back): say so.
            beginning = Beginning(After.LOSS, beginning.set_aside)
            at = Point(self._unwritten[0].seq - 1, UNKNOWN_HASH)
        header = Header(at.seq + 1, at.hash, format_time(wall_ns), self._boot, beginning.after, beginning.set_aside)
        dropped = self._drop_expired(wall_ns)
        self._active = self._disk.create(format_name(header.first), pack_header(header))
        self._records, self._begun_wall_ns = 0, wall_ns
        if beginning.after is not After.START:
            self.rotations.append(
                Rotation(self._active.name, header.first, beginning.after, beginning.set_aside, dropped)
            )
        return self._active

    def _make_way(self, beginning: Beginning) -> Beginning:
        """Set the given-up file aside, so that its name is free and it is never written again."""
        if beginning.remove is not None:
            self._disk.remove(beginning.remove)
        if beginning.set_aside is not None and beginning.after is After.DAMAGE and self.settings.sync != "never":
            # Whoever wrote it may have been killed before its sync; the new segment's would promise those lines too.
            with suppress(OSError):
                self._disk.sync(beginning.set_aside)
        aside = None if beginning.set_aside is None else parse_name(beginning.set_aside)
        if beginning.set_aside is None or aside is None or not aside.live:
            return beginning
        names = [entry.name for entry in self._disk.entries()]
        if beginning.set_aside in names:
            renamed = damaged_name(beginning.set_aside, names)
            self._disk.rename(beginning.set_aside, renamed)
            if self.settings.sync == "never":
                self._left_unsynced.append(renamed)
            beginning = Beginning(beginning.after, renamed)
            self._next = beginning
        return beginning

    def _drop_expired(self, wall_ns: int) -> tuple[str, ...]:
        """Apply retention; what cannot be removed now is tried again at the next rotation."""
        dropped: list[str] = []
        try:
            entries = {entry.name: entry for entry in self._disk.entries()}
            segments = [
                SegmentInfo(name, entries[name.name].bytes, entries[name.name].changed_wall_ns)
                for name in sort_names(list(entries))
            ]
            settings = self.settings
            for name in expired(
                segments, max_bytes=settings.max_bytes, max_age_ns=settings.max_age_ns, now_wall_ns=wall_ns
            ):
                self._disk.remove(name)
                dropped.append(name)
                if name in self._left_unsynced:
                    self._left_unsynced.remove(name)
        except OSError:
            pass
        return tuple(dropped)


def lines_of(data: bytes) -> list[Line]:
    """Return the lines of a segment's bytes, which hold nothing but a header and good lines."""
    lines = data.split(b"\n")[1:-1]
    return [Line(seq, line + b"\n") for line in lines if (seq := seq_of(line)) is not None]


class _GaveUp(Exception):
    """The file was given up because of ``error``; a new segment is worth an attempt at once."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error

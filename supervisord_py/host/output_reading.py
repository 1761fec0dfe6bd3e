"""Reading output back: the last lines over rotated files, and a cursor that follows a unit's output as it grows.

Readers share nothing with the thread that writes: they open the files by name and know a file again by its inode, so
a rotation between two steps is seen and followed. What a reader has not read when its file is rotated away it still
reads: it holds the file.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from supervisord_py.host.output_folder import LogFolder, log_name
from supervisord_py.host.output_lives import Life, read_lives
from supervisord_py.host.output_pieces import LogPiece, open_piece, youngest_first
from supervisord_py.wire.log_lines import LineReader, LogLine, read_line

BLOCK = 64 * 1024
PROBE = 8 * 1024
PROBES_MAX = 32
"""So many times as much is looked through for a line that has a time."""
TAIL_MAX = 16 * 1024 * 1024
"""Bytes that are looked through for the last lines; a request for more gets what is in these."""
LINE_MAX = 1024 * 1024
"""A line that a follower has not seen the end of after so many bytes is handed out in pieces."""
LAG_MAX = 8 * 1024 * 1024
"""A follower that is further behind than this is moved forward, and told so."""


class _Span(NamedTuple):
    """A piece of one open file."""

    piece: LogPiece
    start: int
    end: int


class Window(NamedTuple):
    """From when to when, both included, as times stand in the log; lines without a time are in none."""

    since: str | None = None
    until: str | None = None

    def holds(self, line: LogLine) -> bool:
        return (
            line.time is not None
            and (self.since is None or line.time >= self.since)
            and (self.until is None or line.time <= self.until)
        )


def last_lines(
    folder: LogFolder,
    unit: str,
    lines: int,
    *,
    previous: bool = False,
    invocation: str | None = None,
    window: Window | None = None,
    stamped: bool = False,
) -> list[LogLine]:
    """Return the last ``lines`` lines of a unit's output, a last line without its newline included.

    Args:
        folder: Where the output is.
        unit: Whose output.
        lines: How many lines at most.
        previous: Of the life before the current one only; empty when nothing is known of one.
        invocation: Of that life only.
        window: Those of these times only.
        stamped: Times before lines are ours.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    if lines <= 0:
        return []
    begin: Life | None = None
    end: Life | None = None
    if previous or invocation is not None:
        lives = read_lives(folder, unit)
        place = _place_of_life(lives, invocation)
        if place is None:
            return []
        begin = lives[place]
        end = lives[place + 1] if place + 1 < len(lives) else None
    spans = _spans(folder, unit, begin, end)
    reader = LineReader(unit, stamped=stamped)
    if window is None:
        return _read_all(reader, _last_texts(_tail(spans, lines), lines))
    found = _read_all(reader, _last_texts(_tail(_narrow(spans, window, reader), lines), lines))
    return [line for line in found if window.holds(line)]


def _read_all(reader: LineReader, texts: Sequence[str]) -> list[LogLine]:
    return [line for text in texts if (line := reader.read(text)) is not None] + reader.flush()


def _narrow(spans: Iterator[_Span], window: Window, reader: LineReader) -> Iterator[_Span]:
    """Leave out what is too old or too young, without reading it: times grow from line to line."""
    since, until = window.since or "", window.until or "~"
    for span in spans:
        first = _time_from(span, span.start, reader)
        if first is not None and first > until:
            continue
        start = span.start if not since else _place_of_time(span, reader, lambda time: time >= since)
        end = span.end if until == "~" else _place_of_time(span, reader, lambda time: time > until)
        if start < end:
            yield span._replace(start=start, end=end)
        if first is not None and first < since:
            return


def _place_of_time(span: _Span, reader: LineReader, is_after: Callable[[str], bool]) -> int:
    """Return where the first line begins whose time ``is_after``; the end where there is none."""
    low, high = span.start, span.end
    while low < high:
        middle = (low + high) // 2
        time = _time_from(span, middle, reader)
        if time is None or is_after(time):
            high = middle
        else:
            low = middle + 1
    return _line_start(span, low)


def _line_start(span: _Span, offset: int) -> int:
    """Return where the first line begins at or behind ``offset``."""
    if offset <= span.start:
        return span.start
    at = offset - 1
    while at < span.end:
        block = span.piece.pread(min(PROBE, span.end - at), at)
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        if not block:
            break
        at += len(block)
    return span.end


def _time_from(span: _Span, offset: int, reader: LineReader) -> str | None:
    """Return the time of the first line at or behind ``offset`` that has one, None when none is near."""
    at = _line_start(span, offset)
    looked = 0
    while at < span.end and looked < PROBES_MAX:
        block = span.piece.pread(min(PROBE, span.end - at), at)
        for line in block.split(b"\n")[: None if at + len(block) >= span.end else -1]:
            time = read_line(line.decode("utf-8", "replace"), reader.unit, stamped=reader.stamped).time
            if time is not None:
                return time
        end = block.rfind(b"\n") + 1
        at = at + end if end else _line_start(span, at + len(block))
        looked += 1
    return None


def _last_texts(data: bytes, lines: int) -> list[str]:
    texts = data.decode("utf-8", "replace").split("\n")
    if texts[-1] == "":
        texts.pop()
    return texts[-lines:]


def _place_of_life(lives: Sequence[Life], invocation: str | None) -> int | None:
    if invocation is None:
        return len(lives) - 2 if len(lives) >= 2 else None
    return next((place for place in reversed(range(len(lives))) if lives[place].invocation == invocation), None)


def _spans(folder: LogFolder, unit: str, begin: Life | None, end: Life | None) -> Iterator[_Span]:
    """Yield the pieces between two beginnings of lives, youngest first; each is open until the next is asked for."""
    inside = end is None
    for piece in youngest_first(folder, unit):
        try:
            start, stop = 0, piece.size
            if end is not None and piece.is_inode(end.inode):
                inside, stop = True, min(stop, end.offset)
            last = begin is not None and piece.is_inode(begin.inode)
            if last and begin is not None:
                start = min(begin.offset, stop)
            if inside:
                yield _Span(piece, start, stop)
            if last:
                return
        finally:
            piece.close()


def _tail(spans: Iterator[_Span], lines: int) -> bytes:
    """Read backwards until ``lines`` whole lines are in hand."""
    blocks: deque[bytes] = deque()
    newlines = total = 0
    for span in spans:
        at = span.end
        while at > span.start:
            size = min(BLOCK, at - span.start)
            block = span.piece.pread(size, at - size)
            at -= size
            blocks.appendleft(block)
            newlines += block.count(b"\n")
            total += len(block)
            if newlines > lines or total >= TAIL_MAX:
                return b"".join(blocks)
    return b"".join(blocks)


def _never() -> bool:
    return False


def cursor_of_life(
    folder: LogFolder, unit: str, invocation: str, stamped: Callable[[], bool] = _never
) -> "Cursor | None":
    """Return a cursor at the beginning of what a life has written, None while it has written nothing.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    lives = read_lives(folder, unit)
    place = _place_of_life(lives, invocation)
    return None if place is None else Cursor(folder, unit, lives[place], stamped)


class Cursor:
    """Where a reader is in one unit's output."""

    def __init__(
        self, folder: LogFolder, unit: str, begin: Life | None = None, stamped: Callable[[], bool] = _never
    ) -> None:
        """Stand at the end of what there is, at the beginning of the line that is being written; or where the life
        ``begin`` begins, and then nothing is passed over, however far behind that is. ``stamped`` says whether times
        before lines are ours."""
        self.dropped_bytes = 0
        self._lag_max = LAG_MAX if begin is None else None
        self._folder = folder
        self._unit = unit
        self._reader = LineReader(unit, stamped=False)
        self._stamped = stamped
        self._piece: LogPiece | None = None
        self._offset = 0
        self._partial = b""
        if begin is None:
            self._open_first()
        else:
            self._open_life(begin)

    def _open_life(self, begin: Life) -> None:
        """Open the file that the life begins in, the oldest one where that is gone."""
        for piece in youngest_first(self._folder, self._unit):
            self._enter(piece)
            if piece.is_inode(begin.inode):
                self._offset = min(begin.offset, piece.size)
                return

    def _open_first(self) -> None:
        piece = next(youngest_first(self._folder, self._unit), None)
        self._enter(piece)
        if piece is None:
            return
        end = piece.size
        self._offset = end
        start = max(0, end - BLOCK)
        block = piece.pread(end - start, start)
        line_start = block.rfind(b"\n") + 1
        if line_start > 0 or start == 0:
            self._partial = block[line_start:]

    def _enter(self, piece: LogPiece | None) -> None:
        self.close()
        self._piece = piece
        self._offset = 0

    def close(self) -> None:
        if self._piece is not None:
            self._piece.close()
            self._piece = None

    def lines_before(self, lines: int) -> list[str]:
        """Return the last whole lines before the place where the cursor stands."""
        if self._piece is None:
            return []
        here = Life("", self._piece.inode, self._offset - len(self._partial))
        reader = LineReader(self._unit, stamped=self._stamped())
        texts = _last_texts(_tail(_spans(self._folder, self._unit, None, here), lines), lines)
        return [line.text for line in _read_all(reader, texts)]

    def read(self) -> list[str] | None:
        """Return the lines that one block completes; None when there is nothing new (the end is reached)."""
        while True:
            if self._piece is None:
                self._enter(open_piece(self._folder, self._unit, 0))
                if self._piece is None:
                    return None
            block = self._read_block(self._piece)
            if block:
                return self._split(block)
            if not self._step_to_younger(self._piece):
                return None

    def _read_block(self, piece: LogPiece) -> bytes:
        size = piece.size
        if size < self._offset:
            # Either a rotation has carried the unfinished line over to the next file, or somebody emptied the file.
            self._offset = size if size == self._offset - len(self._partial) else 0
            self._partial = b""
        if self._lag_max is not None and size - self._offset > self._lag_max:
            target = size - BLOCK
            self.dropped_bytes += target - self._offset + len(self._partial)
            self._partial = b""
            block = piece.pread(size - target, target)
            self._offset = target + len(block)
            whole = block.find(b"\n") + 1
            self.dropped_bytes += whole
            return block[whole:]
        block = piece.pread(BLOCK, self._offset)
        self._offset += len(block)
        return block

    def _step_to_younger(self, piece: LogPiece) -> bool:
        """The file is read to its end: go on to the next one, if it was rotated; say whether there is more to read."""
        status = self._folder.status(log_name(self._unit))
        if status is not None and status.st_ino == piece.inode:
            return False
        if piece.size != self._offset:
            return True  # bytes came between the read and the rotation
        younger: list[LogPiece] = []
        found = False
        for other in youngest_first(self._folder, self._unit):
            if other.is_same(piece):
                other.close()
                found = True
                break
            younger.append(other)
        if not younger:
            return False  # rotated, and the next byte has not come yet
        for other in younger[:-1]:
            other.close()
        if not found:
            self.dropped_bytes += len(self._partial)
            self._partial = b""
        self._enter(younger[-1])
        return True

    def _split(self, block: bytes) -> list[str]:
        pieces = (self._partial + block).split(b"\n")
        self._partial = pieces.pop()
        if len(self._partial) > LINE_MAX:
            pieces.append(self._partial)
            self._partial = b""
        self._reader.stamped = self._stamped()
        read = (self._reader.read(piece.decode("utf-8", "replace")) for piece in pieces)
        return [line.text for line in read if line is not None]

    def flush(self) -> list[str]:
        """Hand out a line that will not be ended: its life is over."""
        rest = self._split(b"\n") if self._partial else []
        return rest + [line.text for line in self._reader.flush()]


class OutputFollower:
    """New lines of some units as they come: an asynchronous iterator of (unit, line), until it is closed.

    It reads at its own pace from the files, so a slow reader costs no memory; one that falls too far behind is moved
    forward and gets a line that says how much it missed. ``dropped_bytes`` counts it.
    """

    def __init__(
        self,
        folder: LogFolder,
        units: Sequence[str],
        *,
        last: int,
        on_close: Callable[["OutputFollower"], None],
        is_stamped: Callable[[str], bool] = lambda unit: False,
    ) -> None:
        self.units = tuple(units)
        self.dropped_bytes = 0
        self._on_close = on_close
        self._cursors: dict[str, Cursor] = {}
        self._ready: dict[str, bool] = dict.fromkeys(units, False)
        self._ended: set[str] = set()
        self._lines: deque[tuple[str, str]] = deque()
        self._news = asyncio.Event()
        self._closed = False
        try:
            for unit in self.units:
                cursor = self._cursors[unit] = Cursor(folder, unit, stamped=partial(is_stamped, unit))
                if last > 0:
                    self._lines += [(unit, line) for line in cursor.lines_before(last)]
        except OSError:
            self._close_cursors()
            raise

    def wake(self, unit: str, *, ended: bool) -> None:
        """There is something new of ``unit``; ``ended``: what has no newline now will not get one."""
        self._ready[unit] = True
        if ended:
            self._ended.add(unit)
        self._news.set()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing that it knows of and has not handed out."""
        return self._closed or not (self._lines or any(self._ready.values()))

    def __aiter__(self) -> "OutputFollower":
        return self

    async def __anext__(self) -> tuple[str, str]:
        while not self._lines:
            if self._closed:
                raise StopAsyncIteration
            unit = next((unit for unit, ready in self._ready.items() if ready), None)
            if unit is None:
                self._news.clear()
                await self._news.wait()
            else:
                self._fill(unit)
                await asyncio.sleep(0)  # one block, then the others on this loop
        return self._lines.popleft()

    def _fill(self, unit: str) -> None:
        # Last in the order from now on, so that a busy unit does not starve the others.
        del self._ready[unit]
        cursor = self._cursors[unit]
        try:
            lines = cursor.read()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO, errno.ESTALE, errno.EACCES, errno.ELOOP):
                raise
            lines = None
        if lines is None and unit in self._ended:
            self._ended.discard(unit)
            self._lines += [(unit, line) for line in cursor.flush()]
        self._ready[unit] = lines is not None
        if cursor.dropped_bytes:
            self._lines.append(
                (unit, f"... {cursor.dropped_bytes} bytes of output passed over: this reader is too slow")
            )
            self.dropped_bytes += cursor.dropped_bytes
            cursor.dropped_bytes = 0
        self._lines += [(unit, line) for line in lines or ()]

    async def aclose(self) -> None:
        """End the following; the iterator stops."""
        self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_close(self)
            self._close_cursors()
            self._lines.clear()
            self._news.set()

    def _close_cursors(self) -> None:
        for cursor in self._cursors.values():
            cursor.close()

    def __del__(self) -> None:
        # A follower that its reader forgot holds open files only; they go with it.
        self._close_cursors()

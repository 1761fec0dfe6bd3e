"""Reading output back: the last lines over rotated files, and a cursor that follows a unit's output as it grows.

Readers share nothing with the thread that writes: they open the files by name and know a file again by its inode, so
a rotation between two steps is seen and followed. What a reader has not read when its file is rotated away it still
reads: it holds the file.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from supervisord_py.host.output_folder import LogFolder, log_name
from supervisord_py.host.output_lives import Life, read_lives

BLOCK = 64 * 1024
TAIL_MAX = 16 * 1024 * 1024
"""Bytes that are looked through for the last lines; a request for more gets what is in these."""
LINE_MAX = 1024 * 1024
"""A line that a follower has not seen the end of after so many bytes is handed out in pieces."""
LAG_MAX = 8 * 1024 * 1024
"""A follower that is further behind than this is moved forward, and told so."""


class _Span:
    """A piece of one open file."""

    def __init__(self, fd: int, start: int, end: int) -> None:
        self.fd = fd
        self.start = start
        self.end = end


def _youngest_first(folder: LogFolder, unit: str) -> Iterator[tuple[int, os.stat_result]]:
    """Open the unit's files one after the other, youngest first; each file once, however they are renamed meanwhile.

    One place may be empty (the youngest is missing between a rotation and the next byte, another while names are
    shifted); the second empty one after the youngest ends the list.
    """
    seen: set[tuple[int, int]] = set()
    backup = holes = 0
    while True:
        fd = folder.open_to_read(log_name(unit, backup))
        if fd is None:
            holes += backup > 0
            if holes > 1:
                return
        else:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            if key in seen:
                os.close(fd)
            else:
                seen.add(key)
                yield fd, status
        backup += 1


def last_lines(
    folder: LogFolder, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None
) -> list[str]:
    """Return the last ``lines`` lines of a unit's output, a last line without its newline included.

    Args:
        folder: Where the output is.
        unit: Whose output.
        lines: How many lines at most.
        previous: Of the life before the current one only; empty when nothing is known of one.
        invocation: Of that life only.

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
    return _last_texts(_tail(_spans(folder, unit, begin, end), lines), lines)


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
    for fd, status in _youngest_first(folder, unit):
        try:
            start, stop = 0, status.st_size
            if end is not None and status.st_ino == end.inode:
                inside, stop = True, min(stop, end.offset)
            last = begin is not None and status.st_ino == begin.inode
            if last and begin is not None:
                start = min(begin.offset, stop)
            if inside:
                yield _Span(fd, start, stop)
            if last:
                return
        finally:
            os.close(fd)


def _tail(spans: Iterator[_Span], lines: int) -> bytes:
    """Read backwards until ``lines`` whole lines are in hand."""
    blocks: deque[bytes] = deque()
    newlines = total = 0
    for span in spans:
        at = span.end
        while at > span.start:
            size = min(BLOCK, at - span.start)
            block = os.pread(span.fd, size, at - size)
            at -= size
            blocks.appendleft(block)
            newlines += block.count(b"\n")
            total += len(block)
            if newlines > lines or total >= TAIL_MAX:
                return b"".join(blocks)
    return b"".join(blocks)


def cursor_of_life(folder: LogFolder, unit: str, invocation: str) -> "Cursor | None":
    """Return a cursor at the beginning of what a life has written, None while it has written nothing.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    lives = read_lives(folder, unit)
    place = _place_of_life(lives, invocation)
    return None if place is None else Cursor(folder, unit, lives[place])


class Cursor:
    """Where a reader is in one unit's output."""

    def __init__(self, folder: LogFolder, unit: str, begin: Life | None = None) -> None:
        """Stand at the end of what there is, at the beginning of the line that is being written; or where the life
        ``begin`` begins, and then nothing is passed over, however far behind that is."""
        self.dropped_bytes = 0
        self._lag_max = LAG_MAX if begin is None else None
        self._folder = folder
        self._unit = unit
        self._fd: int | None = None
        self._inode = 0
        self._offset = 0
        self._partial = b""
        if begin is None:
            self._open_first()
        else:
            self._open_life(begin)

    def _open_life(self, begin: Life) -> None:
        """Open the file that the life begins in, the oldest one where that is gone."""
        for fd, status in _youngest_first(self._folder, self._unit):
            self._enter(fd)
            if status.st_ino == begin.inode:
                self._offset = min(begin.offset, status.st_size)
                return

    def _open_first(self) -> None:
        files = _youngest_first(self._folder, self._unit)
        self._enter(next((fd for fd, _ in files), None))
        if self._fd is None:
            return
        end = os.fstat(self._fd).st_size
        self._offset = end
        start = max(0, end - BLOCK)
        block = os.pread(self._fd, end - start, start)
        line_start = block.rfind(b"\n") + 1
        if line_start > 0 or start == 0:
            self._partial = block[line_start:]

    def _enter(self, fd: int | None) -> None:
        self.close()
        self._fd = fd
        self._offset = 0
        if fd is not None:
            self._inode = os.fstat(fd).st_ino

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def lines_before(self, lines: int) -> list[str]:
        """Return the last whole lines before the place where the cursor stands."""
        if self._fd is None:
            return []
        here = Life("", self._inode, self._offset - len(self._partial))
        return _last_texts(_tail(_spans(self._folder, self._unit, None, here), lines), lines)

    def read(self) -> list[str] | None:
        """Return the lines that one block completes; None when there is nothing new (the end is reached)."""
        while True:
            if self._fd is None:
                self._enter(self._folder.open_to_read(log_name(self._unit)))
                if self._fd is None:
                    return None
            block = self._read_block(self._fd)
            if block:
                return self._split(block)
            if not self._step_to_younger(self._fd):
                return None

    def _read_block(self, fd: int) -> bytes:
        size = os.fstat(fd).st_size
        if size < self._offset:
            # Either a rotation has carried the unfinished line over to the next file, or somebody emptied the file.
            self._offset = size if size == self._offset - len(self._partial) else 0
            self._partial = b""
        if self._lag_max is not None and size - self._offset > self._lag_max:
            target = size - BLOCK
            self.dropped_bytes += target - self._offset + len(self._partial)
            self._partial = b""
            block = os.pread(fd, size - target, target)
            self._offset = target + len(block)
            whole = block.find(b"\n") + 1
            self.dropped_bytes += whole
            return block[whole:]
        block = os.pread(fd, BLOCK, self._offset)
        self._offset += len(block)
        return block

    def _step_to_younger(self, fd: int) -> bool:
        """The file is read to its end: go on to the next one, if it was rotated; say whether there is more to read."""
        status = self._folder.status(log_name(self._unit))
        if status is not None and status.st_ino == self._inode:
            return False
        if os.fstat(fd).st_size != self._offset:
            return True  # bytes came between the read and the rotation
        younger: list[tuple[int, int]] = []
        found = False
        for other, other_status in _youngest_first(self._folder, self._unit):
            if other_status.st_ino == self._inode:
                os.close(other)
                found = True
                break
            younger.append((other, other_status.st_ino))
        if not younger:
            return False  # rotated, and the next byte has not come yet
        for other, _ in younger[:-1]:
            os.close(other)
        if not found:
            self.dropped_bytes += len(self._partial)
            self._partial = b""
        self._enter(younger[-1][0])
        return True

    def _split(self, block: bytes) -> list[str]:
        pieces = (self._partial + block).split(b"\n")
        self._partial = pieces.pop()
        if len(self._partial) > LINE_MAX:
            pieces.append(self._partial)
            self._partial = b""
        return [piece.decode("utf-8", "replace") for piece in pieces]

    def flush(self) -> list[str]:
        """Hand out a line that will not be ended: its life is over."""
        partial, self._partial = self._partial, b""
        return [partial.decode("utf-8", "replace")] if partial else []


class OutputFollower:
    """New lines of some units as they come: an asynchronous iterator of (unit, line), until it is closed.

    It reads at its own pace from the files, so a slow reader costs no memory; one that falls too far behind is moved
    forward and gets a line that says how much it missed. ``dropped_bytes`` counts it.
    """

    def __init__(
        self, folder: LogFolder, units: Sequence[str], *, last: int, on_close: Callable[["OutputFollower"], None]
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
                cursor = self._cursors[unit] = Cursor(folder, unit)
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

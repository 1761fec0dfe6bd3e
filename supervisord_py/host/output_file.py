"""One unit's output file: bytes are moved into it from a pipe by ``splice``, and it is rotated by size.

Laws
----
* The offset is always the file's size: ``splice`` takes from the pipe exactly what it has put into the file, so a
  process that is killed between any two instructions leaves every byte either in the file or in the pipe, and the
  next one goes on where the file ends. (A read/write loop loses what it had read: measured, hundreds of kilobytes in
  25 kills.) O_APPEND is refused by splice, hence the own offset.
* The file is opened at the first byte. Before each burst it is looked at again: if it became shorter (a foreign
  ``copytruncate``) or longer, the offset follows; if somebody removed it, a new one is made.
* Rotation happens between two moves, when the file has exactly its greatest size. A line that is cut by that is carried
  over: it is written to ``UNIT.log.next``, cut off the file, the names are shifted, and the new file takes its place.
  Killed in between: the carried line counts exactly if the old file ends at a line's end, so it is finished or undone
  without a guess. Names are shifted from the first hole upwards, so a shift that was cut loses nothing when repeated.
* Output that is looked at line by line (``output_lines``) goes through a staging file, into which it is spliced.
* Where the filesystem refuses splice (EINVAL and its kin), bytes are copied through memory; a kill may then lose what
  is held.
"""

import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable
from typing import NamedTuple

from supervisord_py.host.output_folder import LogFolder, log_name
from supervisord_py.host.output_lines import LineWork
from supervisord_py.host.output_lives import LifeMarks
from supervisord_py.host.output_old_files import keep_one
from supervisord_py.host.output_pieces import compressed_name
from supervisord_py.host.output_staging import staged_name
from supervisord_py.model.log import LogPolicy

CARRY_MAX = 64 * 1024
"""A line longer than this (or than half a file) is cut by a rotation; readers join it."""
COPY_MAX = 64 * 1024
REFUSES_SPLICE = frozenset({errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP})

Splice = Callable[[int, int, int, int | None], int]
BOTH = "output"
"""Standard output and standard error come here, through one pipe."""


class FileHooks(NamedTuple):
    """What a file tells, on the thread: that lines of a unit were dropped, that its files were shifted; and how it has
    something done later, at a time of the monotonic clock."""

    dropped: Callable[[str, int], None]
    rotated: Callable[[str], None]
    call_at: Callable[[int, Callable[[], None]], None]


NO_HOOKS = FileHooks(lambda unit, lines: None, lambda unit: None, lambda due_ns, callback: None)


def splice(source: int, destination: int, count: int, offset: int | None) -> int:
    """Move bytes out of the pipe ``source`` without ever waiting for more; raises BlockingIOError when it is empty.

    Only this call is non-blocking: the flag of the pipe itself is shared with the processes that write to it and is
    never touched.
    """
    return os.splice(source, destination, count, offset_dst=offset, flags=os.SPLICE_F_NONBLOCK)


def pending_bytes(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0\0\0\0"))[0])


class Scratch:
    """Where bytes go that cannot be spliced into a file: a private pipe to read them from, and nowhere."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None
        self._nowhere: int | None = None

    def read(self, pipe: int, count: int) -> bytes:
        """Take up to ``count`` bytes out of ``pipe`` without ever blocking on it; empty when it is."""
        if self._ends is None:
            self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            moved = splice(pipe, self._ends[1], count, None)
        except BlockingIOError:
            return b""
        return os.read(self._ends[0], moved)

    def discard(self, pipe: int, count: int) -> int:
        """Drop up to ``count`` bytes of ``pipe``; returns how many."""
        if self._nowhere is None:
            self._nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        dropped = 0
        while dropped < count:
            try:
                moved = splice(pipe, self._nowhere, count - dropped, None)
            except BlockingIOError:
                break
            if moved == 0:
                break
            dropped += moved
        return dropped

    def close(self) -> None:
        for fd in (*(self._ends or ()), *(() if self._nowhere is None else (self._nowhere,))):
            os.close(fd)
        self._ends = self._nowhere = None


class LogFile:
    """The output file of one unit; everything here is called by one thread."""

    def __init__(
        self,
        folder: LogFolder,
        unit: str,
        policy: LogPolicy,
        scratch: Scratch,
        *,
        splice: Splice = splice,
        hooks: FileHooks = NO_HOOKS,
    ) -> None:
        self.policy = policy
        self.stream = BOTH
        """Which stream of the unit's processes comes here."""
        self.lives = LifeMarks(folder, unit)
        self.rotation_problem: str | None = None
        self._hooks = hooks
        self._work: LineWork | None = None
        self._folder = folder
        self._unit = unit
        self._scratch = scratch
        self._splice = splice
        self._fd: int | None = None
        self._inode = 0
        self._offset = 0
        self._copies = False
        self._held = b""
        self._rotate_not_before = 0

    # Line by line

    def resume(self) -> None:
        """Take up what a manager before us has left on the way to the log."""
        if self._work is None and self._folder.status(staged_name(self._unit)) is not None:
            self._lines()

    def use(self, policy: LogPolicy) -> None:
        """Let another policy hold from the next byte on."""
        if self._work is not None and policy != self.policy:
            with contextlib.suppress(OSError):  # then it is written as the new policy says
                self._work.finish()
        self.policy = policy

    def finish(self, *, closing: bool = False) -> None:
        """Write what waits for the end of its line, as a life is over; ``closing``: nobody will go on with it.

        Raises:
            OSError: as ``take``.
        """
        if self._work is not None and (self._fd is not None or self._work.pending or self._work.untold):
            self._work.finish()
            if closing:
                self._work.end_line()

    @property
    def dropped_lines(self) -> int:
        """Lines of this life that the rate limit has dropped."""
        return 0 if self._work is None else self._work.dropped

    def _lines(self) -> LineWork:
        if self._work is None:
            self._work = LineWork(
                self,
                self._folder,
                self._unit,
                policy=lambda: self.policy,
                origin=lambda: (self.stream, self.lives.last or ""),
                on_dropped=lambda lines: self._hooks.dropped(self._unit, lines),
                call_at=self._hooks.call_at,
            )
            if self._fd is not None:
                self.settle()
                self._work.cut_at(self.inode, self.offset)
        return self._work

    def _no_more_lines(self, work: LineWork) -> None:
        """Go over to moving output as it is: write what waits, and what is begun there goes on here."""
        work.finish()
        work.remove()
        self._work = None

    @property
    def inode(self) -> int:
        return self._inode

    @property
    def offset(self) -> int:
        return self._offset

    def settle(self) -> None:
        """Open the file if need be, look at it again, rotate it when that is due."""
        self._settle()

    def ends_line(self) -> bool:
        return self._ends_line(self._settle())

    def append(self, data: bytes) -> None:
        """Add ``data``, whole or not at all."""
        fd = self._ready()
        written = os.pwrite(fd, data, self._offset)
        if written != len(data):
            os.ftruncate(fd, self._offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._offset += written

    def turn_over(self) -> None:
        """Begin a new file, if names can be shifted."""
        fd = self._settle()
        if self._offset:  # it may just have been done
            self._rotate(fd)
            self._ready()

    def room(self) -> int | None:
        """How many bytes may be added before a rotation; None: no end."""
        return self._room()

    def _stage(self, pipe: int, fd: int, count: int, offset: int) -> int:
        """Move bytes to ``offset`` of the staging file."""
        if not self._copies:
            try:
                return self._splice(pipe, fd, count, offset)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno not in REFUSES_SPLICE:
                    raise
                self._copies = True
        self._held = self._held or self._scratch.read(pipe, min(count, COPY_MAX))
        written = os.pwrite(fd, self._held, offset) if self._held else 0
        self._held = self._held[written:]
        return written

    # As it comes

    def take(self, pipe: int, count: int) -> int:
        """Move up to ``count`` bytes from ``pipe`` to the file; returns how many, 0 when the pipe is empty.

        Raises:
            OSError: the file cannot take them (no space, read-only, ...); they are still in the pipe, or held.
        """
        if self._fd is not None:
            self._follow_changes()
        is_empty = not self._held and pending_bytes(pipe) == 0
        if self._work is not None and not self.policy.is_by_lines:
            self._no_more_lines(self._work)
        if self.policy.is_by_lines:
            is_waiting = self._work is not None and self._work.is_stuck
            return 0 if is_empty and not is_waiting else self._lines().take(self._stage, pipe, count)
        if (self._fd is None or self.is_rotation_due) and is_empty:
            return 0  # neither is a file opened for nothing, nor rotated
        fd = self._ready()
        room = self._room()
        if room is not None:
            count = min(count, room)
        if not self._copies:
            try:
                moved = self._splice(pipe, fd, count, self._offset)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno not in REFUSES_SPLICE:
                    raise
                self._copies = True
            else:
                self._offset += moved
                return moved
        return self._copy(pipe, fd, count)

    def _copy(self, pipe: int, fd: int, count: int) -> int:
        if not self._held:
            self._held = self._scratch.read(pipe, min(count, COPY_MAX))
        total = 0
        while self._held:
            written = os.pwrite(fd, self._held, self._offset)
            self._offset += written
            total += written
            self._held = self._held[written:]
        return total

    @property
    def is_holding(self) -> bool:
        """Whether bytes were taken from the pipe and are not in the file as they should be."""
        return bool(self._held) or (self._work is not None and self._work.is_stuck)

    def discard(self, pipe: int) -> int:
        """Drop what waits in the pipe, and what is held; returns how many bytes."""
        held, self._held = len(self._held), b""
        if self._work is not None:
            held += self._work.discard()
        return held + self._scratch.discard(pipe, pending_bytes(pipe))

    def note(self, text: str) -> None:
        """Write a line of our own into the output, whole or not at all; raises OSError as ``take`` does."""
        if self.policy.is_by_lines:
            self._lines().say(text)
            return
        fd = self._settle()
        line = (f"{text}\n" if self._ends_line(fd) else f"\n{text}\n").encode()
        written = os.pwrite(fd, line, self._offset)
        if written != len(line):
            os.ftruncate(fd, self._offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._offset += written

    def mark_life(self, invocation: str) -> None:
        """A new life of the unit begins behind what is in the file now."""
        at: tuple[int, int] | None = None
        if self._work is not None:
            with contextlib.suppress(OSError):  # then what waits becomes a part of the new life
                self._work.next_life()
        try:
            if self._fd is not None:
                self._follow_changes()
            if self._fd is not None:
                at = (self._inode, self._offset)
            else:
                for backup in (0, 1):
                    status = self._folder.status(log_name(self._unit, backup))
                    if status is not None:
                        at = (status.st_ino, status.st_size)
                        break
        except OSError:  # a folder that cannot be looked at has no output to tell lives apart in
            at = None
        self.lives.mark(invocation, at)

    def close(self) -> None:
        """Close the file; the next byte opens the file that has the name then."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def release(self) -> None:
        """Close everything: nothing comes any more."""
        self.close()
        if self._work is not None:
            self._work.close()
            self._work = None

    def _settle(self) -> int:
        """Return the file's descriptor with the offset at its end: opened, looked at again, rotated when it is due."""
        if self._fd is not None:
            self._follow_changes()
        return self._ready()

    def _ready(self) -> int:
        if self._fd is None:
            self._open()
        assert self._fd is not None
        if self.is_rotation_due:
            self._rotate(self._fd)
            if self._fd is None:
                self._open()
        return self._fd

    def _open(self) -> None:
        self._finish_rotation()
        self._fd = self._folder.open_to_write(log_name(self._unit))
        status = os.fstat(self._fd)
        self._inode, self._offset = status.st_ino, status.st_size
        self._rotate_not_before = 0
        cut = None if self._work is None else self._work.cut_at(self._inode, self._offset)
        if cut is not None:
            os.ftruncate(self._fd, cut)
            self._offset = cut
        self.lives.opened(self._inode, self._offset)

    def _follow_changes(self) -> None:
        assert self._fd is not None
        status = os.fstat(self._fd)
        if status.st_nlink == 0:
            self.close()
            self.lives.removed(self._inode)
        elif status.st_size != self._offset:
            self._offset = status.st_size
            self._rotate_not_before = 0

    def _room(self) -> int | None:
        """Return how many bytes may be added before rotation is looked at again; None: no end."""
        limit = self.policy.max_bytes
        if limit <= 0 or self.rotation_problem is not None:
            return None
        return limit - self._offset

    @property
    def is_rotation_due(self) -> bool:
        """Whether the file has its greatest size, so that ``take`` stopped there with more in the pipe."""
        limit = self.policy.max_bytes
        return limit > 0 and self._offset >= max(limit, self._rotate_not_before)

    def _ends_line(self, fd: int) -> bool:
        return self._offset == 0 or os.pread(fd, 1, self._offset - 1) == b"\n"

    @property
    def _next(self) -> str:
        return f"{log_name(self._unit)}.next"

    def _rotate(self, fd: int) -> None:
        line = self._unfinished_line(fd)
        try:
            if line:
                self._set_aside(line)
                self._offset -= len(line)
                os.ftruncate(fd, self._offset)
            self._shift()
            if line:
                self._folder.rename(self._next, log_name(self._unit))
        except OSError as error:
            # A file that is too long is better than output that is lost: go on, and try again a good piece later.
            self.rotation_problem = f"cannot rotate {log_name(self._unit)}: {error.strerror}"
            self._rotate_not_before = self._offset + max(self.policy.max_bytes // 10, CARRY_MAX)
            self._offset = os.fstat(fd).st_size
            if line and self._ends_line(fd):
                self._offset += os.pwrite(fd, line, self._offset)
            self._folder.remove(self._next)
        else:
            self.rotation_problem = None
            self.close()

    def _unfinished_line(self, fd: int) -> bytes:
        """Return what follows the last line's end; nothing when there is no end near enough."""
        reach = min(self._offset, CARRY_MAX, self.policy.max_bytes // 2)
        block = os.pread(fd, reach, self._offset - reach)
        end = block.rfind(b"\n") + 1
        return block[end:] if end else b""

    def _set_aside(self, line: bytes) -> None:
        self._folder.remove(self._next)
        fd = self._folder.open_to_write(self._next)
        try:
            if os.pwrite(fd, line, 0) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)

    def _finish_rotation(self) -> None:
        """Finish, or undo, a rotation that a kill has cut: before the old file was cut it still ends with the line."""
        if self._folder.status(self._next) is None:
            return
        fd = self._folder.open_to_read(log_name(self._unit))
        if fd is not None:
            try:
                self._offset = os.fstat(fd).st_size
                is_cut = self._ends_line(fd)
            finally:
                os.close(fd)
            if not is_cut:
                self._folder.remove(self._next)
                return
            self._shift()
        self._folder.rename(self._next, log_name(self._unit))

    def _shift(self) -> None:
        backups = self.policy.backups
        for place in range(1, backups + 1):
            self._one_of_two(place)
        last = next((place for place in range(1, backups + 1) if not self._exists(place)), backups)
        self._drop(last)
        for place in range(last, 0, -1):
            for name_of in (log_name, compressed_name):
                name = name_of(self._unit, place - 1)
                if self._folder.status(name) is not None:
                    self._folder.rename(name, name_of(self._unit, place))
        surplus = backups + 1
        while self._exists(surplus):
            self._drop(surplus)
            surplus += 1
        self._hooks.rotated(self._unit)

    def _exists(self, place: int) -> bool:
        return any(self._folder.status(name(self._unit, place)) is not None for name in (log_name, compressed_name))

    def _drop(self, place: int) -> None:
        """Remove an older file, or with ``place`` 0, where none are kept, the one that is full."""
        for name in (log_name(self._unit, place), compressed_name(self._unit, place)):
            status = self._folder.status(name)
            if status is not None:
                self.lives.removed(status.st_ino)
                self._folder.remove(name)

    def _one_of_two(self, place: int) -> None:
        """Where a file is there plain and compressed, which a crash has left so, keep one."""
        compressed = compressed_name(self._unit, place)
        if self._folder.status(compressed) is not None:
            keep_one(self._folder, self.lives, log_name(self._unit, place), compressed)

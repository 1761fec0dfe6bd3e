"""Bytes that were taken out of a unit's pipe and are no lines in its log yet: ``UNIT.log.staged``.

Output that is looked at line by line cannot be spliced into the log. It is spliced here instead, and written to the log
from here, so that the law of ``output_file`` holds as well: whoever is killed between any two instructions has lost
and doubled nothing. The file's head says up to where its content has been dealt with, and how long the log was then
(``Progress``). What the log has beyond that was written by somebody who was killed before he could say so: it is cut
off and written once more. Only where something is left to deal with can that have been.

The head is one write of a fixed size. What has been dealt with is made room of by moving the rest to the front; the
head says so first (``cut``), so that this may be interrupted too.
"""

import os
from typing import NamedTuple, Protocol

from supervisord_py.host.output_folder import LogFolder, log_name

HEAD = 160
ROOM_MAX = 4 * 1024 * 1024
"""So much that is dealt with may stand before the rest until it is made room of."""
REST_MAX = 64 * 1024
"""So much of it when there is hardly a rest: a thousand units that have nothing to say would fill the disk."""
LITTLE = 4096


class Progress(NamedTuple):
    """``done``: up to where in the file all is dealt with; ``inode`` and ``offset``: the log's after that; ``begun``:
    1 when a line was begun there, 2 when the line that goes on is being dropped; ``dropped``: lines of this life that
    were, ``untold`` those of them that no line in the log tells of; ``cut``: when not 0, the file ends here."""

    done: int = HEAD
    inode: int = 0
    offset: int = 0
    begun: int = 0
    dropped: int = 0
    untold: int = 0
    cut: int = 0


def staged_name(unit: str) -> str:
    return f"{log_name(unit)}.staged"


def _pack(progress: Progress) -> bytes:
    return (" ".join(f"{value:019}" for value in progress) + "\n").encode().ljust(HEAD)


def _unpack(head: bytes) -> Progress | None:
    words = head.split()
    if len(head) != HEAD or len(words) != len(Progress._fields) or not all(map(bytes.isdigit, words)):
        return None
    return Progress(*map(int, words))


class Taker(Protocol):
    """Moves bytes from a pipe into a file at an offset; 0 when the pipe is empty."""

    def __call__(self, pipe: int, fd: int, count: int, offset: int) -> int: ...


class Staging:
    """The open file; everything here is called by the thread that moves output.

    Raises:
        OSError: The file cannot be opened or used.
    """

    def __init__(self, folder: LogFolder, unit: str) -> None:
        self._folder = folder
        self._name = staged_name(unit)
        self._fd = folder.open_to_write(self._name)
        head = os.pread(self._fd, HEAD, 0)
        progress = _unpack(head)
        self.is_new = progress is None
        if progress is None:
            os.ftruncate(self._fd, 0)
            progress = Progress()
            os.pwrite(self._fd, _pack(progress), 0)
        elif progress.cut:
            os.ftruncate(self._fd, progress.cut)
            progress = progress._replace(cut=0)
            # On disk too, before anything is taken: whoever is killed after that would have it cut off.
            os.pwrite(self._fd, _pack(progress), 0)
        self.progress = progress
        self._end = max(os.fstat(self._fd).st_size, HEAD)
        if progress.done > self._end:
            self.progress = progress._replace(done=self._end)

    @property
    def pending(self) -> int:
        """How many bytes are not dealt with."""
        return self._end - self.progress.done

    @property
    def is_removed(self) -> bool:
        """Whether somebody has removed the file."""
        return os.fstat(self._fd).st_nlink == 0

    def fill(self, take: Taker, pipe: int, count: int) -> int:
        """Take up to ``count`` bytes from ``pipe``."""
        if self.progress.done - HEAD > ROOM_MAX:
            self._make_room()
        moved = take(pipe, self._fd, count, self._end)
        self._end += moved
        return moved

    def read(self, count: int) -> bytes:
        """Return the first bytes that are not dealt with."""
        return os.pread(self._fd, min(count, self.pending), self.progress.done)

    def note(self, progress: Progress) -> None:
        """Say how far everything is dealt with."""
        if progress != self.progress:
            os.pwrite(self._fd, _pack(progress), 0)
            self.progress = progress

    def settle(self) -> None:
        """Make room of what is dealt with, when hardly anything else is there."""
        if self.progress.done - HEAD > REST_MAX and self.pending <= LITTLE:
            self._make_room()

    def discard(self) -> int:
        """Pass over everything that is not dealt with; returns how much."""
        count = self.pending
        self.note(self.progress._replace(done=self._end))
        return count

    def close(self) -> None:
        os.close(self._fd)

    def remove(self) -> None:
        """Close the file, and remove it: everything is dealt with, and lines are not looked at any longer."""
        self._folder.remove(self._name)
        self.close()

    def _make_room(self) -> None:
        rest = os.pread(self._fd, self.pending, self.progress.done)
        if len(rest) > self.progress.done - HEAD:
            return
        if rest:
            os.pwrite(self._fd, rest, HEAD)
        end = HEAD + len(rest)
        self.note(self.progress._replace(done=HEAD, cut=end))
        os.ftruncate(self._fd, end)
        self._end = end
        self.note(self.progress._replace(cut=0))

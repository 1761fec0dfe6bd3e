"""Where in a unit's output each life began, so that the words of the life before can be told from those of this one.

A beginning is a pair (inode, offset): an inode stays the same when a file is rotated, by us or by somebody else, so
  nothing has to be
rewritten then. The marks stand beside the output in ``UNIT.log.lives``, a line a life: ``INVOCATION INODE OFFSET``,
appended with one write. A life that has not written a byte while no output file exists yet is kept in memory only:
quiet units have no files at all. Inode 0 means "before everything that is still there": the file it began in was
rotated away.
"""

import contextlib
import os
from typing import NamedTuple

from supervisord_py.host.output_folder import LogFolder, log_name

KEPT_MAX = 64
"""Lives whose beginnings are kept."""


class Life(NamedTuple):
    invocation: str
    inode: int
    offset: int


def lives_name(unit: str) -> str:
    return f"{log_name(unit)}.lives"


def parse_lives(text: str) -> list[Life]:
    """Read the marks of a ``.lives`` file; a line that was torn by a crash is passed over."""
    lives = []
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) == 3 and words[1].isdecimal() and words[2].isdecimal():
            lives.append(Life(words[0], int(words[1]), int(words[2])))
    return lives


def format_life(life: Life) -> str:
    return f"{life.invocation} {life.inode} {life.offset}\n"


def read_lives(folder: LogFolder, unit: str) -> list[Life]:
    """Return the marks that are on disk, oldest first."""
    fd = folder.open_to_read(lives_name(unit))
    if fd is None:
        return []
    with open(fd, encoding="utf-8", errors="replace") as file:
        return parse_lives(file.read())


class LifeMarks:
    """The beginnings of one unit's lives; written through to disk, and kept in memory where the disk refuses."""

    def __init__(self, folder: LogFolder, unit: str) -> None:
        self._folder = folder
        self._unit = unit
        self._pending: list[str] = []
        self._written: list[Life] | None = None

    def _known(self) -> list[Life]:
        if self._written is None:
            try:
                self._written = read_lives(self._folder, self._unit)
            except OSError:  # unreadable marks cost the memory of earlier lives, nothing else
                self._written = []
        return self._written

    @property
    def has_pending(self) -> bool:
        """Whether a life waits for the file to be made."""
        return bool(self._pending)

    def mark(self, invocation: str, at: tuple[int, int] | None) -> None:
        """A life begins ``at`` (inode, offset), or where the file will be when ``at`` is None.

        The life that was marked last may be marked again (by a manager that took over): it began where it began.
        """
        if invocation == self.last:
            return
        if at is None:
            self._pending.append(invocation)
            del self._pending[:-KEPT_MAX]
        else:
            self._append([Life(invocation, *at)])

    def opened(self, inode: int, offset: int) -> None:
        """The output file was opened: what waited for it begins here."""
        if self._pending:
            lives = [Life(invocation, inode, offset) for invocation in self._pending]
            self._pending.clear()
            self._append(lives)

    def removed(self, inode: int) -> None:
        """The file ``inode`` is gone, and its number may be given to another file."""
        lives = self._known()
        if any(life.inode == inode for life in lives):
            self._rewrite([life._replace(inode=0, offset=0) if life.inode == inode else life for life in lives])

    def moved(self, old: int, new: int) -> None:
        """What the file ``old`` held is in the file ``new`` now (it was compressed)."""
        lives = self._known()
        if any(life.inode == old for life in lives):
            self._rewrite([life._replace(inode=new) if life.inode == old else life for life in lives])

    @property
    def last(self) -> str | None:
        """The life that was marked last."""
        return self._pending[-1] if self._pending else self._known()[-1].invocation if self._known() else None

    def _append(self, new: list[Life]) -> None:
        lives = self._known()
        lives += new
        if len(lives) > 2 * KEPT_MAX:
            self._rewrite(lives[-KEPT_MAX:])
            return
        with contextlib.suppress(OSError):  # the marks are a convenience: output itself is what must not stop
            fd = self._folder.open_to_write(lives_name(self._unit))
            try:
                os.pwrite(fd, "".join(map(format_life, new)).encode(), os.fstat(fd).st_size)
            finally:
                os.close(fd)

    def _rewrite(self, lives: list[Life]) -> None:
        self._written = lives
        name = lives_name(self._unit)
        with contextlib.suppress(OSError):  # as above
            fd = self._folder.open_to_write(f"{name}.new")
            try:
                os.ftruncate(fd, 0)
                os.pwrite(fd, "".join(map(format_life, lives)).encode(), 0)
            finally:
                os.close(fd)
            self._folder.rename(f"{name}.new", name)

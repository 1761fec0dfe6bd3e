"""Older output files: removed when they are too old, compressed where that is wanted.

All of it is looked at again when a unit's files were shifted, when other units or policies were loaded (so after a
restart of the manager too), and when the next file becomes too old: no unit need be running for it. How old a file is
says the time of its last write, which its compressed form takes over.

A compressed file takes the place of the plain one in this order: it has its name (whole, and on disk), the marks of
lives point into it, the plain file is removed. After a crash in between both are there; then the compressed one is
kept if it is known to hold just what the plain one does, else the plain one. Names are only changed on the thread that
rotates, so nothing is shifted meanwhile.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping

from supervisord_py.host.output_folder import LogFolder, log_name
from supervisord_py.host.output_gzip import Compressor, Work, unfinished_name
from supervisord_py.host.output_lives import LifeMarks
from supervisord_py.host.output_pieces import compressed_name, is_made_from
from supervisord_py.model.log import LogPolicy

_OLDER = re.compile(r"(.+)\.log\.([1-9]\d*)(\.gz)?")
LOOK_AGAIN_NS = 24 * 3600 * 1_000_000_000
"""The clock may be set; so nothing is waited for longer than this."""
SOON_NS = 1_000_000_000


def keep_one(folder: LogFolder, lives: LifeMarks, plain: str, compressed: str) -> None:
    """Remove one of two files that may hold the same; nothing is done where one of them is not there.

    Raises:
        OSError: a file cannot be read or removed.
    """
    status, packed = folder.status(plain), folder.status(compressed)
    fd = folder.open_to_read(plain)
    if fd is None or status is None or packed is None:
        if fd is not None:
            os.close(fd)
        return
    try:
        is_same = is_made_from(folder, compressed, fd)
    finally:
        os.close(fd)
    if is_same:
        lives.moved(status.st_ino, packed.st_ino)
        folder.remove(plain)
    else:
        folder.remove(compressed)


class OldFiles:
    """The older files of all units; everything is called on the thread that rotates.

    Args:
        folder: Where they are.
        compressor_folder: The same, for the thread that compresses.
        lives_of: The marks of a unit's lives.
        call_at: Has a function called at a time of the monotonic clock [ns].
        submit: Has a function called on this thread, from any other.
    """

    def __init__(
        self,
        folder: LogFolder,
        compressor_folder: LogFolder,
        *,
        lives_of: Callable[[str], LifeMarks],
        call_at: Callable[[int, Callable[[], None]], None],
        submit: Callable[[Callable[[], None]], None],
    ) -> None:
        self._folder = folder
        self._lives_of = lives_of
        self._call_at = call_at
        self._submit = submit
        self._policies: Mapping[str, LogPolicy] = {}
        self._due_ns = 0
        """When it will be looked again; 0: not by itself."""
        self._at_work: dict[str, int] = {}
        """The file (by inode) of each unit that is being compressed; one at a time."""
        self.problems: dict[str, str] = {}
        self._compressor = Compressor(compressor_folder, lambda *done: submit(lambda: self._compressed(*done)))

    def use(self, policies: Mapping[str, LogPolicy]) -> None:
        """Let these hold; of the units that keep their older files as they are nothing is looked at."""
        policies = {name: own for name, own in policies.items() if own.compress or own.max_age_ns is not None}
        self._policies = policies
        self.problems = {unit: problem for unit, problem in self.problems.items() if unit in policies}
        if policies:
            self._look()

    def rotated(self, unit: str) -> None:
        """The files of ``unit`` were shifted."""
        if unit in self._policies:
            # After the shift is done: names are looked at.
            self._submit(lambda: self._look(unit))

    def stop(self) -> None:
        self._compressor.stop()

    def join(self, timeout_s: float) -> None:
        self._compressor.join(timeout_s)

    def _look(self, only: str | None = None) -> None:
        """Look at all files, or at those of one unit."""
        try:
            names = os.listdir(self._folder.fd)
        except OSError:  # what is wrong with the folder is told when something is to be written
            self._folder.forget()
            return
        now_ns = time.time_ns()
        due_ns: list[int] = []
        for unit, place, name, is_packed in sorted(self._older(names, only)):
            try:
                due_ns += self._look_at(unit, place, name, is_packed=is_packed, now_ns=now_ns)
            except OSError as error:
                self._note_problem(unit, name, error)
        for unit in self._policies if only is None else ():
            if unit not in self._at_work and unfinished_name(unit) in names:
                self._folder.remove(unfinished_name(unit))
        if due_ns:
            self._look_at_time(min(due_ns) - now_ns)

    def _older(self, names: Iterable[str], only: str | None) -> Iterable[tuple[str, int, str, bool]]:
        for name in names:
            match = _OLDER.fullmatch(name)
            if match is not None and match[1] in self._policies and only in (None, match[1]):
                yield match[1], int(match[2]), name, match[3] is not None

    def _look_at(self, unit: str, place: int, name: str, *, is_packed: bool, now_ns: int) -> list[int]:
        """Do with one file what is to be done now; returns when it will be too old, if ever."""
        policy = self._policies[unit]
        status = self._folder.status(name)
        if status is None:
            return []
        if policy.max_age_ns is not None:
            due_ns = status.st_mtime_ns + policy.max_age_ns
            if due_ns <= now_ns:
                self._lives_of(unit).removed(status.st_ino)
                self._folder.remove(name)
                return []
        if is_packed:
            keep_one(self._folder, self._lives_of(unit), log_name(unit, place), name)
        elif policy.compress and status.st_size and unit not in self._at_work:
            self._at_work[unit] = status.st_ino
            self._compressor.give(Work(unit, name, status.st_ino))
        return [] if policy.max_age_ns is None else [due_ns]

    def _look_at_time(self, in_ns: int) -> None:
        now_ns = time.monotonic_ns()
        due_ns = now_ns + max(SOON_NS // 10, min(in_ns, LOOK_AGAIN_NS))
        if self._due_ns > now_ns and self._due_ns <= due_ns:
            return
        self._due_ns = due_ns

        def look() -> None:
            if self._due_ns == due_ns:
                self._due_ns = 0
                self._look()

        self._call_at(due_ns, look)

    def _compressed(self, work: Work, inode: int | None, error: OSError | None) -> None:
        """The compressor is done with a file: its names are ours to change."""
        self._at_work.pop(work.unit, None)
        try:
            if error is not None:
                raise error
            place = self._place_of(work)
            if inode is not None and place is not None:
                self._take_over(work, inode, place)
                self.problems.pop(work.unit, None)
            else:
                self._folder.remove(unfinished_name(work.unit))
        except OSError as problem:
            self._note_problem(work.unit, work.name, problem)
        else:
            self._look(work.unit)  # for the next, or the same where it was shifted before it could be opened

    def _place_of(self, work: Work) -> int | None:
        place = 1
        holes = 0
        while holes < 2:
            status = self._folder.status(log_name(work.unit, place))
            if status is not None and status.st_ino == work.inode:
                return place
            if status is None and self._folder.status(compressed_name(work.unit, place)) is None:
                holes += 1
            place += 1
        return None

    def _take_over(self, work: Work, inode: int, place: int) -> None:
        unfinished, packed = unfinished_name(work.unit), compressed_name(work.unit, place)
        lives = self._lives_of(work.unit)
        status = self._folder.status(unfinished)
        if status is None or status.st_ino != inode:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), unfinished)
        stale = self._folder.status(packed)
        if stale is not None:
            lives.removed(stale.st_ino)
        self._folder.rename(unfinished, packed)
        lives.moved(work.inode, inode)
        self._folder.remove(log_name(work.unit, place))

    def _note_problem(self, unit: str, name: str, error: OSError) -> None:
        """Tell it; it is tried again when files are shifted the next time."""
        self.problems[unit] = f"older output of {unit} is kept as it is ({name}): {error.strerror or error}"

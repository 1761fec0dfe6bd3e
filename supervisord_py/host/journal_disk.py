"""The journal's only hand on the file system: a folder of segments, and the file that is being written.

Everything above works on the ``Disk`` and ``SegmentFile`` protocols, so that a full or failing disk can be had in a
test without one (``tests/unit/host/fake_disk.py`` passes the same contract tests as the classes here).

Files are 0640 in a folder 0750 and belong to the control group before the first byte is in them. Nothing is opened
through a symbolic link, nothing is overwritten, and the folder is locked, so two managers can never write one journal.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

from supervisord_py.errors import SupervisordError

FOLDER_MODE = 0o750
FILE_MODE = 0o640
RESERVE_NAME = "reserve"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class JournalBusyError(SupervisordError):
    """Another process writes this journal."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return (
            f"cannot open the journal {self.directory}: another process writes it;"
            " stop the other supervisor, or give this one its own --state-dir"
        )


class Entry(NamedTuple):
    """A file in the folder: its size and the time of its last change [ns since 1970]."""

    name: str
    bytes: int
    changed_wall_ns: int


class Appended(NamedTuple):
    """So many bytes of the data stand in the file, whole lines all of them; ``error`` is why not all."""

    kept: int
    error: OSError | None


class SegmentFile(Protocol):
    """A segment open for writing."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes that stand in the file, the header included."""

    def append(self, data: bytes) -> Appended:
        """Write whole lines. After an error nothing but whole lines stands in the file, or ``is_intact`` is False."""

    def sync(self) -> None:
        """Return when everything appended is on stable storage, the file's own entry in the folder included; else
        OSError."""

    def is_intact(self) -> bool:
        """Say whether the file still is what was written: neither removed nor changed by somebody else."""

    def close(self) -> None: ...


class Disk(Protocol):
    """The journal's folder."""

    def open(self) -> None:
        """Make and lock the folder. Raises: OSError, JournalBusyError."""

    def entries(self) -> list[Entry]: ...

    def read(self, name: str) -> tuple[bytes, OSError | None]:
        """Return what can be read of a file from its beginning, and the error that ended that."""

    def create(self, name: str, header: bytes) -> SegmentFile:
        """Make a segment with its header line; after an OSError there is no such file."""

    def reopen(self, name: str, size: int) -> SegmentFile:
        """Open a segment to go on at ``size``; what is behind is cut."""

    def sync(self, name: str) -> None:
        """Return when what a file holds is on stable storage; else OSError."""

    def rename(self, name: str, new_name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def reserve(self, size: int) -> bool:
        """Set ``size`` bytes aside for a full disk, where at least as much stays free for others; False: not now."""

    def release_reserve(self) -> bool:
        """Give the reserve back to the disk; False when there is none."""

    def close(self) -> None: ...


class RealSegmentFile:
    def __init__(self, path: Path, descriptor: int, size: int, folder: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = size
        self._folder = folder
        self._is_listed = False
        self._is_broken = False

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: bytes) -> Appended:
        view = memoryview(data)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, view[written:])
        except OSError as error:
            kept = data.rfind(b"\n", 0, written) + 1
            self._size += kept
            if kept < written:
                self._cut()
            return Appended(kept, error)
        self._size += written
        return Appended(written, None)

    def _cut(self) -> None:
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._is_broken = True

    def sync(self) -> None:
        os.fdatasync(self._descriptor)
        if not self._is_listed:
            os.fsync(self._folder)
            self._is_listed = True

    def is_intact(self) -> bool:
        if self._is_broken:
            return False
        status = os.fstat(self._descriptor)
        return status.st_nlink > 0 and status.st_size == self._size

    def close(self) -> None:
        os.close(self._descriptor)


class RealDisk:
    """A folder of a file system. ``group_id`` is the control group, None to leave files to the creating process's."""

    def __init__(self, directory: Path, group_id: int | None = None) -> None:
        self._directory = directory
        self._group_id = group_id
        self._folder = -1

    def open(self) -> None:
        if self._folder >= 0:
            return
        self._make_folder()
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(folder)
            raise JournalBusyError(str(self._directory)) from error
        except OSError as error:
            # A file system without locks: the keeper's lock on the runtime folder is what remains.
            if error.errno not in _NO_LOCKS:
                os.close(folder)
                raise
        self._folder = folder

    def _make_folder(self) -> None:
        if not self._directory.is_dir():
            self._directory.parent.mkdir(parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700, exist_ok=True)
        status = self._directory.stat()
        if status.st_uid != os.geteuid():
            return
        if self._group_id is not None and status.st_gid != self._group_id:
            os.chown(self._directory, -1, self._group_id)
        if stat.S_IMODE(status.st_mode) != FOLDER_MODE:
            self._directory.chmod(FOLDER_MODE)

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        with os.scandir(self._directory) as listing:
            for entry in listing:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(Entry(entry.name, status.st_size, status.st_mtime_ns))
        return found

    def read(self, name: str) -> tuple[bytes, OSError | None]:
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        parts: list[bytes] = []
        try:
            while part := os.read(descriptor, 1 << 20):
                parts.append(part)
        except OSError as error:
            return b"".join(parts), error
        finally:
            os.close(descriptor)
        return b"".join(parts), None

    def create(self, name: str, header: bytes) -> RealSegmentFile:
        path = self._directory / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            # Somebody removed the whole folder under us.
            self.close()
            self.open()
            descriptor = os.open(path, flags, 0o600)
        try:
            self._give(descriptor)
            file = RealSegmentFile(path, descriptor, 0, self._folder)
            if (error := file.append(header).error) is not None:
                raise error
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return file

    def reopen(self, name: str, size: int) -> RealSegmentFile:
        path = self._directory / name
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._give(descriptor)
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        return RealSegmentFile(path, descriptor, size, self._folder)

    def _give(self, descriptor: int) -> None:
        """Make a file the control group's, then readable to it: in this order, so that no other group ever can read
        it."""
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            return
        if self._group_id is not None and status.st_gid != self._group_id:
            os.fchown(descriptor, -1, self._group_id)
        if stat.S_IMODE(status.st_mode) != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)

    def sync(self, name: str) -> None:
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, name: str, new_name: str) -> None:
        os.rename(self._directory / name, self._directory / new_name)

    def remove(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def reserve(self, size: int) -> bool:
        path = self._directory / RESERVE_NAME
        try:
            if path.lstat().st_size == size:
                return True
            path.unlink()
        except FileNotFoundError:
            pass
        space = os.statvfs(self._directory)
        if size == 0 or space.f_bavail * space.f_frsize < 2 * size:
            return size == 0
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno not in _FULL:
                raise
            return False
        finally:
            os.close(descriptor)
        return True

    def release_reserve(self) -> bool:
        try:
            (self._directory / RESERVE_NAME).unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

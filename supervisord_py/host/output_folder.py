"""The folder that output files live in: opened once, and never reached through a link that somebody else made.

The supervisor often runs as root while its log folder, or one above it, may be written by others (``/var/log`` is by
group syslog on some systems, ``/tmp`` by everybody). Whoever may write a folder may put a link where a log file is
expected and have root append to ``/etc/passwd``. So the path is walked one name at a time: in a folder that others
may write, a name that is a link is refused; in one that only we may write, links are ours and are followed. Files are
opened relative to the folder's descriptor, never through a link, and are regular files or refused.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

LINKS_MAX = 40
"""Links followed in one path before it counts as a loop; the kernel's own number."""

FILE_MODE = 0o640
FOLDER_MODE = 0o750


def log_name(unit: str, backup: int = 0) -> str:
    """Return the name of a unit's output file; ``backup`` 1 is the youngest one that was rotated away."""
    return f"{unit}.log.{backup}" if backup else f"{unit}.log"


def is_open_to_others(status: os.stat_result, uid: int) -> bool:
    """Say whether somebody who is neither root nor ``uid`` may change the names in the folder of ``status``."""
    return status.st_uid not in (0, uid) or bool(status.st_mode & 0o022)


def open_folder(path: Path, uid: int) -> int:
    """Open the folder ``path`` (absolute), making what is missing of it, and return its descriptor.

    Args:
        path: The folder; as root (``uid`` 0) links in folders that others may write are refused.
        uid: Who is asking; an ordinary user's links are the user's own matter.

    Raises:
        OSError: the folder cannot be made or opened, or a link in its path cannot be trusted (ELOOP).
    """
    if uid != 0:
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = [name for name in path.parts if name != "/"]
    links = 0
    current = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while names:
            name = names.pop(0)
            try:
                below = _open_below(current, name)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                target = _trusted_link(current, name, path, uid)
                links += 1
                if links > LINKS_MAX:
                    raise OSError(errno.ELOOP, "too many links", str(path)) from None
                names = [part for part in Path(target).parts if part != "/"] + names
                if not target.startswith("/"):
                    continue
                below = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.close(current)
            current = below
    except OSError:
        os.close(current)
        raise
    return current


def _open_below(folder: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, FOLDER_MODE, dir_fd=folder)
        return os.open(name, flags, dir_fd=folder)


def _trusted_link(folder: int, name: str, path: Path, uid: int) -> str:
    """Return where the link ``name`` leads, if only we could have made it."""
    if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{name} is not a folder", str(path))
    if is_open_to_others(os.fstat(folder), uid):
        raise OSError(errno.ELOOP, f"{name} is a link in a folder that others may write, give the real path", str(path))
    return os.readlink(name, dir_fd=folder)


class LogFolder:
    """The open folder, made anew when somebody removed it; ``uid`` is who we are, ``gid`` the group that may read."""

    def __init__(self, path: Path, *, uid: int | None = None, gid: int | None = None) -> None:
        self.path = path
        self._uid = os.geteuid() if uid is None else uid
        self._gid = gid
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        if self._fd is None:
            self._fd = open_folder(self.path, self._uid)
        return self._fd

    def forget(self) -> None:
        """Close the folder; the next use opens, and if need be makes, what the path names then."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def open_to_write(self, name: str) -> int:
        """Open (or make) a file for reading and writing at own offsets.

        Raises:
            OSError: as ``open(2)``, and EINVAL when the name is not a regular file or not ours to append to.
        """
        try:
            return self._open(name)
        except FileNotFoundError:
            self.forget()
            return self._open(name)

    def _open(self, name: str) -> int:
        # O_NONBLOCK: a FIFO that somebody planted must not block the open; it means nothing to a regular file.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            fd = os.open(name, flags, dir_fd=self.fd)
            made = False
        except FileNotFoundError:
            fd = os.open(name, flags | os.O_CREAT, FILE_MODE, dir_fd=self.fd)
            made = True
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file, move it away", str(self.path / name))
            if (
                self._uid == 0
                and is_open_to_others(os.fstat(self.fd), 0)
                and (status.st_uid != 0 or status.st_nlink > 1)
            ):
                raise OSError(errno.EINVAL, "not our own file in a folder that others may write", str(self.path / name))
            if made and self._gid is not None:
                os.fchown(fd, -1, self._gid)
        except OSError:
            os.close(fd)
            raise
        return fd

    def open_to_read(self, name: str) -> int | None:
        """Open a file for reading; None when there is none (or it is no regular file)."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def status(self, name: str) -> os.stat_result | None:
        """Return what ``stat`` says of a name, links not followed; None when there is none."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

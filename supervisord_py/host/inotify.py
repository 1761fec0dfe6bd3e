"""inotify(7): folders that are watched, and what came to them; by ctypes, because it is three system calls.

Nothing here waits: ``fileno`` is for the event loop, ``read`` returns what is there. Adding a watch looks up a path,
which can hang where a file system does: whoever cannot wait does it in a thread (``host.bounded``).
"""

import ctypes
import os
import struct

from msgspec import Struct

MODIFY = 0x002
ATTRIB = 0x004
CLOSE_WRITE = 0x008
MOVED_FROM = 0x040
MOVED_TO = 0x080
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x01000000
FOLDER_OF_FILES = CLOSE_WRITE | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR
"""Whatever changes what a folder's files say: written, renamed, come, gone, other rights; and its own end."""

_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Change(Struct, frozen=True):
    """What came: ``mask`` of the constants above, ``name`` within the folder of ``watch`` (empty: the folder itself).

    With ``OVERFLOW`` changes were lost and ``watch`` is -1; with ``IGNORED`` the watch is gone.
    """

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify descriptor, non-blocking and not inherited."""

    def __init__(self) -> None:
        """Raises OSError: too many are open (fs.inotify.max_user_instances)."""
        self._fd = -1
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch a folder; the same folder again is the same watch, with the new mask.

        Raises:
            OSError: It cannot be watched (ENOENT, EACCES), or there are too many watches (ENOSPC).
        """
        return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask), path)

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended by itself is ignored."""
        _libc.inotify_rm_watch(self._fd, watch)

    def read(self) -> list[Change]:
        """Return what came since, at most a buffer of it; nothing when there is nothing."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return []
        changes: list[Change] = []
        position = 0
        while position < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            name = data[position : position + length].split(b"\0", 1)[0]
            changes.append(Change(watch, mask, os.fsdecode(name)))
            position += length
        return changes

    def close(self) -> None:
        """Close it; what is dropped is closed as well (a thread that hangs may be the last to hold it)."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    __del__ = close


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result

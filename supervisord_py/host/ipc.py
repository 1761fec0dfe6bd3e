"""``remove-ipc``: System V and POSIX IPC objects that a user has left, removed when its last unit has stopped.

Never those of root: everybody's are. Source: systemd src/shared/clean-ipc.c.
"""

import contextlib
import ctypes
import os
import stat

_RMID = 0
_FOLDERS = ("/dev/shm", "/dev/mqueue")


def remove_ipc(uid: int) -> int:
    """Remove all shared memory, semaphores and queues of a user, and return how many there were."""
    if uid == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    removed = 0
    for number in _owned("shm", uid):
        removed += libc.shmctl(number, _RMID, None) == 0
    for number in _owned("sem", uid):
        removed += libc.semctl(number, 0, _RMID, 0) == 0
    for number in _owned("msg", uid):
        removed += libc.msgctl(number, _RMID, None) == 0
    for folder in _FOLDERS:
        with contextlib.suppress(OSError):
            removed += _remove_files(folder, uid)
    return removed


def _owned(kind: str, uid: int) -> list[int]:
    """Return the numbers of a user's objects, the second column; the first line names them all."""
    try:
        with open(f"/proc/sysvipc/{kind}", encoding="ascii") as file:
            head, *rows = (line.split() for line in file)
    except (OSError, ValueError):
        return []
    owner = head.index("uid")
    return [int(row[1]) for row in rows if int(row[owner]) == uid]


def _remove_files(folder: str, uid: int) -> int:
    removed = 0
    for base, folders, files, fd in os.fwalk(folder, topdown=False):
        del base
        for name in (*files, *folders):
            with contextlib.suppress(OSError):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_uid == uid:
                    os.rmdir(name, dir_fd=fd) if stat.S_ISDIR(found.st_mode) else os.unlink(name, dir_fd=fd)
                    removed += 1
    return removed

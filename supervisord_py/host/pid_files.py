"""Pid files of forking units: read with care, waited for, and removed when they name nobody any more.

Theory of operation
-------------------
``FollowMain`` with a pid file becomes a *wait*. It watches the folders that lead to the file and looks: a file that is
there and holds a number is handed to the keeper (``follow``), who says whether that process can be the unit's main one.
Where it cannot, or the file is not there or holds no number yet, the next change is waited for, until ``StopFollowing``
(the start's time-out is the core's). Without ``wait`` there is one look, and its answer is final.

What a file may say: a process of the unit is accepted whoever wrote the file. A process outside of the unit is believed
only where nobody but root and the supervisor's own user could have written it: the file is theirs, no link on the way
leads from somebody's folder into another's, and the file is not older than the start (a stale one names whoever has
that number by now). Source: systemd src/core/service.c (service_load_pid_file), chase-symlinks.c (CHASE_SAFE).

Every look happens in a thread (``host.bounded``): the path may be on a file server that is gone.
"""

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from supervisord_py.core.actions import FollowMain
from supervisord_py.core.events import MainFollowed
from supervisord_py.host import inotify
from supervisord_py.host.bounded import HangsError, call_bounded
from supervisord_py.host.inotify import Inotify

LOOK_S = 5.0
"""How long a look at a file may take, and after how long one that hung is made again."""

PID_MAX = 1 << 22
BLIND_S = 1.0
"""How often to look where no change can be told."""

SETTLE_S = 0.5
"""A file that is not believed is complained about when it stays as it is for so long."""

_BYTES_MAX = 64
_TRIES = 4
_LINKS_MAX = 32
_CHANGED = (
    inotify.MODIFY | inotify.CLOSE_WRITE | inotify.ATTRIB | inotify.CREATE | inotify.MOVED_TO | inotify.MOVED_FROM
    | inotify.DELETE | inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.ONLYDIR
)  # fmt: skip


class PidFile(Struct, frozen=True):
    """What a pid file says. ``is_safe``: only root or our own user could have written it; ``written_ns`` is the time of
    day of its last change [ns]."""

    pid: int
    is_safe: bool
    written_ns: int


class BadPidFileError(Exception):
    """A pid file that says nothing (yet); the message says why. ``is_there``: there is something under its name."""

    def __init__(self, message: str, *, is_there: bool = True) -> None:
        super().__init__(message)
        self.is_there = is_there


def read_pid_file(path: str) -> PidFile:
    """Read a pid file.

    Args:
        path: Absolute; links are followed.

    Raises:
        BadPidFileError: It is not there, cannot be read, is no plain file, or holds no process id.
    """
    try:
        descriptor, is_safe = _open_path(path)
    except OSError as error:
        message = f"{path}: {os.strerror(error.errno or 0).lower()}"
        raise BadPidFileError(message, is_there=error.errno != errno.ENOENT) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadPidFileError(f"{path} is not a plain file")
        with open(f"/proc/self/fd/{descriptor}", "rb", buffering=0) as file:
            data = file.read(_BYTES_MAX)
    except OSError as error:
        raise BadPidFileError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    finally:
        os.close(descriptor)
    text = data.split(b"\n", 1)[0].strip()
    if not text:
        raise BadPidFileError(f"{path} is empty")
    if not text.isdigit() or len(text) > 10 or not 1 < int(text) <= PID_MAX:
        raise BadPidFileError(f"{path} holds no process id")
    return PidFile(int(text), is_safe and status.st_uid in (0, os.geteuid()), status.st_mtime_ns)


def remove_pid_file(path: str, dead: int | None) -> bool:
    """Remove the file if it names ``dead`` or nobody that lives; say whether it did.

    It is left where somebody else could have put a link on the way to another's file.
    """
    try:
        found = read_pid_file(path)
    except BadPidFileError:
        return False
    if found.pid != dead and os.path.exists(f"/proc/{found.pid}"):
        return False
    with contextlib.suppress(OSError):
        folder, is_safe = _open_path(os.path.dirname(path))
        try:
            if not is_safe:
                return False
            os.unlink(os.path.basename(path), dir_fd=folder)
        finally:
            os.close(folder)
        return True
    return False


def _open_path(path: str) -> tuple[int, bool]:
    """Open what ``path`` leads to (O_PATH), and say whether no step on the way leads from what one user owns to what
    another one does. Whatever root owns may lead anywhere."""
    parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    current = os.open("/", os.O_PATH | os.O_CLOEXEC)
    is_safe, links = True, 0
    try:
        owner = os.fstat(current).st_uid
        while parts:
            part = parts.pop()
            following = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            status = os.fstat(following)
            is_safe = is_safe and owner in (0, status.st_uid)
            if not stat.S_ISLNK(status.st_mode):
                os.close(current)
                current, owner = following, status.st_uid
                continue
            try:
                target = os.readlink("", dir_fd=following)
            finally:
                os.close(following)
            links += 1
            if links > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                os.close(current)
                current = os.open("/", os.O_PATH | os.O_CLOEXEC)
            # From here on it is the link's owner who leads.
            owner = status.st_uid
            parts += [each for each in reversed(target.split("/")) if each not in ("", ".")]
    except BaseException:  # nothing may stay open
        os.close(current)
        raise
    return current, is_safe


class _Watch:
    """The folders on the way to one path, watched. ``is_blind``: not all of them can be, so look again now and then."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[int, set[str]] = {}
        self.is_blind = False
        self.inotify: Inotify | None = None
        # Too many of them are open on this machine: looked at from time to time all the same.
        with contextlib.suppress(OSError):
            self.inotify = Inotify()

    def look(self) -> PidFile:
        """Watch what leads to the file now, then read it: a change after that is told.

        Raises:
            BadPidFileError: It says nothing yet.
        """
        names: dict[int, set[str]] = {}
        by = self.inotify
        self.is_blind = by is None
        if by is not None:
            for path in dict.fromkeys((self._path, os.path.realpath(self._path))):
                self._watch(by, path, names)
            for watch in self._names.keys() - names.keys():
                by.remove(watch)
        self._names = names
        return read_pid_file(self._path)

    def has_changed(self) -> bool:
        """Take what came, and say whether any of it is about the path."""
        own = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.OVERFLOW
        changes = [] if self.inotify is None else self.inotify.read()
        return any(
            change.mask & inotify.OVERFLOW
            or (change.watch in self._names and change.mask & own)
            or change.name in self._names.get(change.watch, ())
            for change in changes
        )

    def close(self) -> None:
        # Not closed but let go of: a look that hangs in a thread may still use it.
        self.inotify = None

    def _watch(self, by: Inotify, path: str, names: dict[int, set[str]]) -> None:
        """Watch the folder of ``path``, or the nearest one above that is there."""
        for _ in range(_TRIES):
            folder, name = os.path.split(path)
            while True:
                try:
                    watch = by.add(folder, _CHANGED)
                    break
                except OSError:
                    if folder == "/":
                        self.is_blind = True
                        return
                    folder, name = os.path.split(folder)
            names.setdefault(watch, set()).add(name)
            below = os.path.join(folder, name)
            if below == path or not os.path.lexists(below):
                return
            # It has come while the folder above was being watched, or it may not be watched.
        self.is_blind = True


class PidFiles:
    """All waits of one manager.

    Args:
        ask: Sends the keeper a request with the next commit.
        answer: Takes the answer that no keeper gives (a single look that found nothing).
        complain: Takes a unit and why its pid file is not accepted, each reason of a wait once.
    """

    def __init__(
        self,
        *,
        ask: Callable[[dict[str, Any]], None],
        answer: Callable[[MainFollowed], None],
        complain: Callable[[str, str], None],
    ) -> None:
        self._ask = ask
        self._answer = answer
        self._complain = complain
        self._waits: dict[int, asyncio.Task[None]] = {}
        self._asked: dict[int, asyncio.Future[MainFollowed]] = {}
        self._removals: set[asyncio.Task[None]] = set()

    def follow(self, action: FollowMain, since_ns: int | None) -> None:
        """Begin to wait; the same wait twice is one.

        Args:
            action: What the core asked for; without a pid file the keeper guesses.
            since_ns: Time of day when the unit's start command was asked for, None when that is not known.
        """
        if action.pid_file is None:
            self._ask({"do": "follow", "unit": action.unit, "id": action.spawn_id, "pid": None})
        elif action.spawn_id not in self._waits:
            wait = asyncio.get_running_loop().create_task(self._wait(action, action.pid_file, since_ns))
            self._waits[action.spawn_id] = wait
            wait.add_done_callback(lambda _: self._waits.pop(action.spawn_id, None))

    def stop(self, spawn_id: int) -> None:
        wait = self._waits.pop(spawn_id, None)
        if wait is not None:
            wait.cancel()

    def is_for_core(self, event: MainFollowed) -> bool:
        """Take the keeper's answer; False when it is a refusal that a wait deals with."""
        asked = self._asked.get(event.spawn_id)
        if asked is not None and not asked.done():
            asked.set_result(event)
        elif event.pid is not None:
            # Asked for by the manager before this one, and granted.
            self.stop(event.spawn_id)
        return event.pid is not None or event.spawn_id not in self._waits

    def remove(self, path: str, dead: int | None) -> None:
        """Remove the file of a unit that has ended, in the background."""

        async def work() -> None:
            with contextlib.suppress(HangsError):
                await call_bounded(lambda: remove_pid_file(path, dead), LOOK_S)

        removal = asyncio.get_running_loop().create_task(work())
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def close(self) -> None:
        """End every wait; what is being removed is removed."""
        for wait in list(self._waits.values()):
            wait.cancel()
        await asyncio.gather(*self._waits.values(), *self._removals, return_exceptions=True)

    async def _wait(self, action: FollowMain, path: str, since_ns: int | None) -> None:
        told: set[str] = set()
        watch = _Watch(path)
        try:
            while True:
                again_s: float | None = None
                complaint: str | None = None
                try:
                    found = await call_bounded(watch.look, LOOK_S)
                except BadPidFileError as error:
                    reason, found = str(error), None
                    complaint = f"{reason}; waiting for a pid file that names a process" if error.is_there else None
                except HangsError as error:
                    reason, found, again_s = f"{path} cannot be looked at: {error}", None, LOOK_S
                    complaint = reason
                if found is not None:
                    stale = since_ns is not None and found.written_ns < since_ns
                    answer = await self._ask_keeper(action, found, is_trusted=found.is_safe and not stale)
                    if answer.pid is not None:
                        return
                    reason = f"{path} names process {found.pid}: {answer.refused}"
                    complaint = f"{reason}; waiting for another"
                if not action.wait:
                    self._answer(MainFollowed(action.unit, action.spawn_id, refused=reason))
                    return
                again_s = again_s or (BLIND_S if watch.is_blind else None)
                if complaint is not None and complaint not in told:
                    # A file that is just being written says nothing for a moment.
                    if await _changed(watch, SETTLE_S):
                        continue
                    told.add(complaint)
                    self._complain(action.unit, complaint)
                await _changed(watch, again_s)
        finally:
            watch.close()

    async def _ask_keeper(self, action: FollowMain, found: PidFile, *, is_trusted: bool) -> MainFollowed:
        future: asyncio.Future[MainFollowed] = asyncio.get_running_loop().create_future()
        self._asked[action.spawn_id] = future
        self._ask({"do": "follow", "unit": action.unit, "id": action.spawn_id, "pid": found.pid, "trusted": is_trusted})
        try:
            return await future
        finally:
            self._asked.pop(action.spawn_id, None)


async def _changed(watch: _Watch, timeout_s: float | None) -> bool:
    """Wait until something has happened on the way to the file, or the time is over; tell whether it has."""
    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if watch.has_changed() and not came.done():
            came.set_result(None)

    if watch.inotify is not None:
        loop.add_reader(watch.inotify.fileno(), readable)
    try:
        async with asyncio.timeout(timeout_s):
            await came
    except TimeoutError:
        return False
    finally:
        if watch.inotify is not None:
            loop.remove_reader(watch.inotify.fileno())
    return True

"""Notices that unit files or settings were changed since they were loaded; loads nothing.

Theory of operation
-------------------
inotify says that something happened in a folder, never what a load would read now. So an event only asks for a *look*:
a little later, once an editor's dance of renames is over, everything is read as a load would read it and compared with
what was loaded (``model.unitset.mark_files``). Marks can therefore not be wrong for long, whatever the events were:
lost ones (an overflow), a folder that went and came, a link that points elsewhere. A file that is as it was loses its
mark.

Watched are the folders that are read, the folders of what links in them point to, the folder of each link on the way to
them, and in place of a folder that is missing the nearest one that is there. The watches are set before the look, so
what happens after it is told by another event.

Nothing wakes up without an event. While files change without a pause, looks become rarer (up to ``REST_MAX_S``). Where
inotify has no room left changes are not noticed, and ``problem`` says so.

Not noticed is that a folder above the unit folders, which is no link, was renamed and another put in its place.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host import inotify
from supervisord_py.host.bounded import HangsError, call_bounded
from supervisord_py.host.inotify import Inotify
from supervisord_py.host.sources import Sources
from supervisord_py.model.unitset import FileMarks, mark_files

QUIET_S = 0.1
"""How long after an event the look comes: an editor writes a file in several steps."""

REST_MAX_S = 5.0
LOOK_TIMEOUT_S = 60.0

Names = frozenset[str] | None
"""The names in a folder that matter; None: every one that a unit's file or drop-in folder can have."""

_NO_ROOM = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SETTLE_MAX = 8
"""So often the folders are listed again because one was new."""


class SourceMarks(Struct, frozen=True):
    """What is another on disk than what was loaded."""

    files: FileMarks = FileMarks()
    settings_changed: bool = False


def compare_sources(loaded: Sources, now: Sources, units: Iterable[str]) -> SourceMarks:
    """Compare what was loaded with what is there now; ``units`` are the names of those that were loaded.

    Settings that cannot be used are others too, though a load leaves those that are in force.
    """
    return SourceMarks(
        mark_files(loaded.units.files, now.units.files, units),
        settings_changed=(now.settings, now.problems) != (loaded.settings, loaded.problems),
    )


class UnitWatch:
    """Keeps ``marks`` true.

    Args:
        loop: The manager's.
        paths: The folders and files that a load reads.
        begin_look: Called on the loop; returns what is then called in a thread: a comparison of the files with what is
            loaded at the moment.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        paths: Iterable[str],
        begin_look: Callable[[], Callable[[], SourceMarks]],
    ) -> None:
        self.marks = SourceMarks()
        self.problem: str | None = None
        """Why changes are not noticed, None while they are."""
        self.happened = 0
        """Counts what was noticed, loads included."""
        self._loop = loop
        self._paths = list(paths)
        self._begin_look = begin_look
        self._inotify: Inotify | None = None
        self._watches: dict[int, Names] = {}
        self._pending: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._pause_s = QUIET_S

    def start(self, delay_s: float = 0.0) -> None:
        """Begin to watch and look for the first time after ``delay_s``."""
        try:
            self._inotify = Inotify()
        except OSError as error:
            self.problem = _describe(error)
            return
        self._loop.add_reader(self._inotify.fileno(), self._came)
        self._pending = self._loop.call_later(delay_s, self._look)

    def loaded(self, since: int | None = None) -> None:
        """Everything was loaded: marks are taken off, and a look that is under way does not count.

        Args:
            since: ``happened`` when the reading began; what came later, or None, asks for another look.
        """
        if self._inotify is None:
            return
        if since == self.happened:
            self.marks = SourceMarks()
        if since != self.happened or self.problem is not None:
            self._schedule()
        self.happened += 1

    def mark(self, units: Iterable[str]) -> None:
        """Mark units whose files are known to be others than what was loaded; the next look decides."""
        changed = self.marks.files.changed.union(units)
        self.marks = replace(self.marks, files=replace(self.marks.files, changed=changed))

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None

    def _came(self) -> None:
        assert self._inotify is not None
        if any(self._matters(change) for change in self._inotify.read()):
            self.happened += 1
            self._schedule()

    def _matters(self, change: inotify.Change) -> bool:
        if change.watch not in self._watches:
            # One that we have ended says so; one that is being set is not known yet, and lost events have none.
            return not change.mask & inotify.IGNORED
        names = self._watches[change.watch]
        if not change.name:
            return not change.mask & inotify.ATTRIB or names is None
        return _may_be_units(change.name) if names is None else change.name in names

    def _schedule(self) -> None:
        if self._pending is None and self._looking is None:
            self._pending = self._loop.call_later(self._pause_s, self._look)

    def _look(self) -> None:
        self._pending = None
        self._looking = self._loop.create_task(self._look_once())

    async def _look_once(self) -> None:
        happened, compare = self.happened, self._begin_look()

        def look() -> SourceMarks:
            self._aim()
            return compare()

        try:
            marks = await call_bounded(look, LOOK_TIMEOUT_S)
        except HangsError as error:
            self.problem = f"changes of unit files are not noticed: their folders do not answer ({error})"
            marks = None
        self._looking = None
        if happened != self.happened:
            self._pause_s = min(self._pause_s * 2, REST_MAX_S)
            self._schedule()
            return
        self._pause_s = QUIET_S
        if marks is not None:
            self.marks = marks

    def _aim(self) -> None:
        """Watch the folders that there are now; returns when no new one has come while that was done."""
        for _ in range(_SETTLE_MAX):
            before = self._watches
            watches, self.problem = self._set(folders_to_watch(self._paths))
            # Without room for all, those of the time before are better than none.
            self._watches = watches if self.problem is None else before | watches
            for watch in before.keys() - self._watches.keys():
                if self._inotify is not None:
                    self._inotify.remove(watch)
            if self._watches.keys() <= before.keys():
                return

    def _set(self, folders: dict[str, Names]) -> tuple[dict[int, Names], str | None]:
        watches: dict[int, Names] = {}
        for folder, names in folders.items():
            if self._inotify is None:
                break
            try:
                watch = self._inotify.add(folder, inotify.FOLDER_OF_FILES)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    return watches, _describe(error)
                continue  # It went, or cannot be looked into: then no load reads it either.
            watches[watch] = _both(watches[watch], names) if watch in watches else names
        return watches, None


def folders_to_watch(paths: Iterable[str]) -> dict[str, Names]:
    """Return every folder in which something can happen to what a load reads from ``paths``, and the names that
    matter there."""
    folders: dict[str, Names] = {}

    def add(folder: str, names: Names) -> None:
        folder = folder or "."
        folders[folder] = _both(folders[folder], names) if folder in folders else names

    for path in paths:
        path = os.path.abspath(path)
        for link in _links_on(path):
            add(os.path.dirname(link), frozenset({os.path.basename(link)}))
        if os.path.isdir(path):
            add(path, None)
            for inner in _drop_in_folders(path):
                add(inner, None)
        elif os.path.exists(path):
            # Its drop-ins and the defaults stand beside it.
            add(os.path.dirname(path), None)
        else:
            folder, name = _nearest(path)
            add(folder, frozenset({name}))
    for folder in [folder for folder, names in folders.items() if names is None]:
        for target in _link_targets(folder):
            add(os.path.dirname(target), frozenset({os.path.basename(target)}))
    return folders


def _both(one: Names, other: Names) -> Names:
    return None if one is None or other is None else one | other


def _may_be_units(name: str) -> bool:
    """Tell whether a name can be a unit file's, a folder's of drop-ins, or the link by which a mounted folder of a
    container is exchanged as a whole (``..data``)."""
    return name.endswith((".toml", ".toml.d")) or name.startswith("..")


def _links_on(path: str) -> list[str]:
    """Return every part of a path that is a link, itself included."""
    links: list[str] = []
    while path != os.path.dirname(path):
        if os.path.islink(path):
            links.append(path)
        path = os.path.dirname(path)
    return links


def _nearest(path: str) -> tuple[str, str]:
    """Return the lowest folder above a missing path that is there, and the name to wait for in it."""
    while True:
        path, name = os.path.split(path)
        if os.path.isdir(path) or path == os.path.dirname(path):
            return path, name


def _drop_in_folders(folder: str) -> list[str]:
    return [path for name, path in _entries(folder) if name.endswith(".toml.d") and os.path.isdir(path)]


def _link_targets(folder: str) -> list[str]:
    return [os.path.realpath(path) for name, path in _entries(folder) if _may_be_units(name) and os.path.islink(path)]


def _entries(folder: str) -> list[tuple[str, str]]:
    try:
        return [(name, os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
    except OSError:
        return []


def _describe(error: OSError) -> str:
    limit = "max_user_watches" if error.errno == errno.ENOSPC else "max_user_instances"
    why = (error.strerror or str(error)).lower()
    return (
        f"changes of unit files are not noticed: {why} (see fs.inotify.{limit}, supctl daemon-reload --plan shows them)"
    )

"""The hot directory: agent wheels and unit files that are loaded when they come and stopped when they go.

Theory of operation
-------------------
A *turn* looks at the folder (``hot_files``), chooses what is to be loaded, and makes the units that are loaded and
those that run agree with it. inotify only says when the next turn is due; one comes every ``rescan`` anyway, so what
inotify does not tell (a disk that was mounted, a link's target) is found a little later. While a rollout is under way
there are no turns: the rollout may still want to go back.

What is loaded are values in the sources of the units (``UnitFile.hot``), in the custody of the keeper with all others.
So a manager that follows another knows what is in use without looking, and takes its turn from there: what was decided
is found decided, what was not is decided anew.

A new version is loaded as ``apply`` loads files, and brought to the units by the same rollout: one unit at a time, in
the order of their dependencies, the instances of a template one after another, each ready and up for ``probation``
before the next one of the old version is stopped. When one fails, all go back to the version before, and this one is
refused from then on, until it is signed anew. The highest version is on disk before it is loaded.

Units whose file has gone are stopped. Sites that no unit runs from are removed; of a supervisor that begins all are,
because what somebody wrote into them meanwhile was never verified.
"""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

from msgspec import Struct
from msgspec.structs import asdict, replace

from supervisord_py.core import view
from supervisord_py.core.events import CommandRequested
from supervisord_py.core.manager import Manager
from supervisord_py.host import inotify
from supervisord_py.host.agent_wheels import WheelError, prepare_folder
from supervisord_py.host.bounded import HangsError, call_bounded
from supervisord_py.host.command_records import bug_record, command_record, with_fields
from supervisord_py.host.facade import Peer, RolloutOptions, Submission
from supervisord_py.host.hot_files import SETTLE_NS, Candidate, Choice, Look, Rules, choose, look_at
from supervisord_py.host.hot_memory import Highest, HotMemory, MemoryLostError, key_of, read_memory, write_memory
from supervisord_py.host.inotify import Inotify
from supervisord_py.host.places import Places
from supervisord_py.host.signing import Keyring, read_keyring
from supervisord_py.host.sources import Sources
from supervisord_py.host.unit_changes import UnitChanges
from supervisord_py.host.unit_files import UnitSources, build
from supervisord_py.host.unit_watch import folders_to_watch
from supervisord_py.model.records import Record
from supervisord_py.model.settings import HotDirectorySettings, Settings
from supervisord_py.model.unit import Unit
from supervisord_py.model.unitset import LoadResult, UnitFile

QUIET_S = 0.1
"""How long after an event the turn comes: several files come together."""

BUSY_S = 1.0
"""How long a turn is put off while a rollout is under way, or the journal refuses changes."""

TURN_TIMEOUT_S = 300.0
_MAX_UNAVAILABLE = 1


class Host(Protocol):
    """What the hot directory needs of the daemon."""

    @property
    def manager(self) -> Manager: ...

    @property
    def loaded(self) -> LoadResult: ...

    @property
    def sources(self) -> Sources: ...

    @property
    def refusing(self) -> str | None: ...

    def note_command(self, record: Record) -> int | None: ...

    async def request(self, event: CommandRequested, record: Record | None) -> Submission: ...

    async def changed(self) -> None: ...

    def load(
        self,
        sources: Sources,
        loaded: LoadResult,
        *,
        read: Sequence[str] | None,
        applied: Sequence[str] | None = None,
        cause: int | None = None,
        start_enabled: bool = False,
    ) -> None: ...


class _Seen(Struct, frozen=True):
    """What was decided on and found to be so already: building everything only to find it again would be a waste."""

    look: Look
    units: UnitSources
    memory: HotMemory
    failed: frozenset[str]

    def is_same(self, other: "_Seen") -> bool:
        return (
            self.units is other.units
            and (self.memory, self.failed) == (other.memory, other.failed)
            and self.look.unsettled == other.look.unsettled
            and [(each.path, each.stamp, each.problem) for each in self.look.candidates]
            == [(each.path, each.stamp, each.problem) for each in other.look.candidates]
        )


class HotDirectory:
    """Keeps what is loaded and what runs in agreement with the folder.

    Args:
        host: The daemon.
        places: Where sites, memory and keys are.
        environment: For the key in it.
        changes: They load unit files, too, and go back.
    """

    def __init__(self, host: Host, places: Places, environment: Mapping[str, str], changes: UnitChanges) -> None:
        self._host = host
        self._places = places
        self._environment = environment
        self._lock = changes.lock
        changes.on_reverted = self._went_back
        self._settings = HotDirectorySettings()
        self._known: dict[str, Candidate] = {}
        self._rules: Rules | None = None
        self._problem = ""
        self._watch_problem = ""
        self._failed: dict[str, str] = {}
        """What did not stay up: why, by digest."""
        self._inotify: Inotify | None = None
        self._watches: dict[int, frozenset[str] | None] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._resumes = True
        """What a manager before this one may have left half done is to be looked for."""
        self._asked: set[str] = set()
        """Units that were told to stop, and have not ended yet."""
        self._patience_s = BUSY_S / 2
        self._seen: _Seen | None = None

    @property
    def problems(self) -> list[str]:
        """Why files are not loaded that might be."""
        if self._settings.path is None:
            return []
        keys = () if self._rules is None else self._rules.keyring.problems
        bad = self._host.loaded.unit_set.bad.values()
        rejected = [f"rejected: {each.reason}" for each in bad if each.rejected]
        return [each for each in (self._problem, self._watch_problem, *keys, *rejected) if each]

    @property
    def _folder(self) -> str | None:
        return None if self._settings.path is None else os.path.normpath(self._settings.path)

    # The first load

    def begin(self, sources: Sources, *, is_first: bool) -> Sources:
        """Return the sources that a manager begins with: the first one adds what lies in the folder. Blocks."""
        self._settings = sources.settings.hot_directory
        if not is_first:
            return sources
        if os.path.lexists(self._places.wheels):
            with contextlib.suppress(OSError, WheelError):
                # Not a folder that somebody else has put there.
                prepare_folder(self._places.wheels)
                self._sweep(())
        if self._folder is None:
            return sources
        look = self._look(is_rescan=True)
        self._problem = look.problem
        try:
            _, files, _ = self._choose(look, sources.units, sources.settings)
        except MemoryLostError as error:
            self._problem = str(error)
            return sources
        self._forget_data()
        return replace(sources, units=sources.units.with_hot(files))

    # The life of the manager

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def use(self, settings: Settings) -> None:
        """Go by other settings from now on."""
        if settings.hot_directory != self._settings:
            self._settings = settings.hot_directory
            self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._unwatch()

    def _went_back(self, before: Sequence[UnitFile], message: str) -> None:
        """A rollout has failed, and older files are loaded again: the versions that came with it are refused.

        Args:
            before: What was loaded from here until then.
            message: Why it failed.
        """
        now = {(file.path, file.hot) for file in self._host.sources.units.hot}
        for file in before:
            if file.hot is not None and file.problem is None and (file.path, file.hot) not in now:
                self._failed[file.hot.digest] = f"it did not stay up: {message}"
        self._wake.set()

    # Turns

    async def _run(self) -> None:
        is_rescan = True
        while True:
            self._wake.clear()
            try:
                delay_s = await self._turn(is_rescan=is_rescan)
            except Exception as error:  # noqa: BLE001  a bug of ours in one file is no reason to end with all units
                self._problem = f"internal error: {error!r}"
                self._host.note_command(bug_record("the hot directory", error))
                delay_s = self._settings.rescan_ns / 1e9
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                is_rescan = delay_s is not None and delay_s >= self._settings.rescan_ns / 1e9
            else:
                is_rescan = False
                await asyncio.sleep(QUIET_S)

    async def _turn(self, *, is_rescan: bool) -> float | None:
        """Take a turn; returns how many seconds later the next one is due, None where there is no folder."""
        host = self._host
        rescan_s = self._settings.rescan_ns / 1e9
        if view.is_stopping(host.manager):
            return rescan_s
        if self._settings.path is None and not host.sources.units.hot:
            self._unwatch()
            self._resumes = False
            await self._stop_orphans()
            if not self._asked:
                await asyncio.to_thread(self._sweep, self._used_paths())
                return None
            return BUSY_S
        if view.rollout_units(host.manager) or host.refusing is not None:
            return BUSY_S
        try:
            if self._settings.path is None:
                self._unwatch()
                look = Look()
            else:
                self._watch()
                look = await call_bounded(
                    lambda: self._look(is_rescan=is_rescan), TURN_TIMEOUT_S, group="hot directory", key="hot directory"
                )
            self._problem = look.problem
            if look.problem:
                return rescan_s
            async with self._lock:
                if view.rollout_units(host.manager):
                    return BUSY_S
                changed = await self._load(look)
        except HangsError as error:
            self._problem = f"the hot directory {self._settings.path} does not answer: {error}"
            return rescan_s
        except MemoryLostError as error:
            self._problem = str(error)
            return rescan_s
        await self._stop_orphans()
        names = self._to_apply(changed)
        self._resumes = False
        if names:
            await self._apply(names)
            return BUSY_S
        await asyncio.to_thread(self._sweep, self._used_paths())
        if self._asked:
            # Their sites go when they have ended.
            self._patience_s = min(self._patience_s * 2, rescan_s)
            return min(self._patience_s, SETTLE_NS / 1e9) if look.unsettled else self._patience_s
        self._patience_s = BUSY_S / 2
        return SETTLE_NS / 1e9 if look.unsettled else rescan_s

    def _look(self, *, is_rescan: bool) -> Look:
        """Look at the folder; in a thread. The watches are set before, so what happens after it is told."""
        settings, folder = self._settings, self._folder
        if folder is None:
            return Look()
        keys = settings.keys or str(self._places.keys)
        self._aim([folder, keys])
        keyring = read_keyring(keys, self._environment) if settings.require_signature else Keyring()
        rules = Rules(settings.require_signature, keyring, self._places.wheels)
        # The bytes of a wheel are kept until the end of a turn: one that is not in use may have to be unpacked. What a
        # file was refused for may be mended without a change of it.
        in_use = {file.hot.digest for file in self._host.sources.units.hot if file.hot is not None}
        known = {
            path: each
            for path, each in self._known.items()
            if rules == self._rules and (not is_rescan if each.problem else each.hot.digest in in_use)
        }
        look = look_at(folder, rules, known, time.time_ns())
        self._rules, self._known = rules, {each.path: each for each in look.candidates}
        return look

    def _choose(
        self, look: Look, sources: UnitSources, settings: Settings
    ) -> tuple[Choice, tuple[UnitFile, ...], LoadResult]:
        """Choose by what is remembered, and put on disk what is to be remembered; in a thread.

        Raises:
            MemoryLostError: Nobody knows what is an old version.
        """
        stored = read_memory(self._places.hot_versions)
        memory = self._without_failed(stored, sources.hot)
        others = [file for file in sources.files if file.hot is None]
        choice, files, loaded = choose(
            look, sources.hot, others, memory, lambda hot: build(sources.with_hot(hot), settings.limits)
        )
        if choice.memory != stored:
            write_memory(self._places.hot_versions, choice.memory)
        return choice, files, loaded

    def _without_failed(self, memory: HotMemory, in_use: Sequence[UnitFile]) -> HotMemory:
        """What did not stay up was never installed: the version that is in use again is the highest."""
        if not self._failed.keys() - memory.refused.keys():
            return memory
        back = {
            key_of(file.hot, file.name): Highest(file.hot.version, file.hot.timestamp)
            for file in in_use
            if file.hot is not None and file.problem is None and file.hot.digest not in self._failed
        }
        return HotMemory(memory.highest | back, memory.refused | self._failed)

    def _forget_data(self) -> None:
        """Keep the bytes of no wheel."""
        self._known = {path: replace(each, data=b"", wheel=None) for path, each in self._known.items()}

    async def _load(self, look: Look) -> set[str]:
        """Load what lies in the folder, where that is not what is loaded; returns the paths of new files."""
        host = self._host
        sources = host.sources
        seen = _Seen(look, sources.units, read_memory(self._places.hot_versions), frozenset(self._failed))
        if self._seen is not None and self._seen.is_same(seen):
            return set()
        choice, files, loaded = await asyncio.to_thread(self._choose, look, sources.units, sources.settings)
        self._forget_data()
        if host.sources is not sources:
            # A rollout went back meanwhile.
            self._wake.set()
            return set()
        before = sources.units.hot
        if files == before:
            bare = tuple(replace(each, data=b"", wheel=None) for each in look.candidates)
            self._seen = replace(seen, look=replace(look, candidates=bare), memory=choice.memory)
            return set()
        paths = {file.path for each in choice.fresh.values() for file in each.files}
        names = _names_of(loaded.unit_set.units.values(), paths)
        reason = "; ".join(map(_told, choice.fresh.values())) or _told_other(before, files)
        record = command_record("hot-directory", sorted(names), self._peer(), reason)
        seq = host.note_command(with_fields(record, result="done"))
        host.load(
            replace(sources, units=sources.units.with_hot(files)),
            loaded,
            read=sorted(names) or (),
            applied=[name for name in sorted(names) if name in host.loaded.unit_set.units] if paths else None,
            cause=seq,
            start_enabled=True,
        )
        await host.changed()
        return paths

    def _to_apply(self, paths: set[str]) -> list[str]:
        """Return the units that are to be restarted because of new files; in the first turn those, too, that a manager
        before may not have come to."""
        host = self._host
        units = host.loaded.unit_set.units
        names = _names_of(units.values(), paths)
        if self._resumes:
            ours = _names_of(units.values(), {file.path for file in host.sources.units.hot})
            lives = view.lives(host.manager)
            names |= {name for name in ours if name in lives and lives[name].source != units[name].source}
        return view.apply_order(host.manager, host.loaded.unit_set, sorted(names)) if names else []

    async def _apply(self, names: Sequence[str]) -> None:
        options = RolloutOptions(_MAX_UNAVAILABLE, self._settings.probation_ns, reverts=True)
        peer = self._peer()
        event = CommandRequested(
            0, "apply", tuple(names), peer.origin(), "a new version", wait=False, arguments=asdict(options)
        )
        await self._host.request(event, command_record("apply", names, peer, "a new version"))

    async def _stop_orphans(self) -> None:
        """Stop the units that run without a file and came from here: nobody else would."""
        bad = self._host.loaded.unit_set.bad
        orphans = {
            name
            for name, unit in view.lives(self._host.manager).items()
            if name not in self._host.loaded.unit_set.units
            and (name not in bad or bad[name].rejected)
            and self._is_ours(unit)
        }
        names, self._asked = sorted(orphans - self._asked), orphans
        if names:
            peer, reason = self._peer(), "its file is gone from the hot directory"
            event = CommandRequested(0, "stop", tuple(names), peer.origin(), reason, wait=False)
            await self._host.request(event, command_record("stop", names, peer, reason))

    def _is_ours(self, unit: Unit) -> bool:
        folders = [str(self._places.wheels)]
        if self._folder is not None:
            folders.append(self._folder)
        return any(unit.source.path.startswith(f"{folder}/") for folder in folders)

    def _peer(self) -> Peer:
        return Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid(), user="the hot directory")

    # Watching and sweeping

    def _watch(self) -> None:
        if self._inotify is not None:
            return
        try:
            self._inotify = Inotify()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            self._watch_problem = f"changes of the hot directory are noticed late: {why}"
            return
        self._watch_problem = ""
        asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._came)

    def _aim(self, paths: Sequence[str]) -> None:
        """Watch what can change: the folder and the keys, what links on the way point to, or what stands in for what is
        missing. In a thread."""
        own = self._inotify
        if own is None:
            return
        watches: dict[int, frozenset[str] | None] = {}
        for folder, names in folders_to_watch(paths).items():
            with contextlib.suppress(OSError):
                watch = own.add(folder, inotify.FOLDER_OF_FILES)
                before = watches.get(watch, frozenset())
                watches[watch] = None if names is None or before is None else names | before
        gone, self._watches = self._watches.keys() - watches.keys(), watches
        for watch in gone:
            own.remove(watch)

    def _came(self) -> None:
        if self._inotify is None:
            return
        for change in self._inotify.read():
            names = self._watches.get(change.watch)
            if change.watch not in self._watches and change.mask & inotify.IGNORED:
                continue
            if names is None or not change.name or change.name in names:
                self._wake.set()

    def _unwatch(self) -> None:
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify, self._watches, self._watch_problem = None, {}, ""

    def _used_paths(self) -> list[str]:
        """The unit files that are loaded from here, and those by which something still runs."""
        lives = [unit.source.path for unit in view.lives(self._host.manager).values()]
        return lives + [file.path for file in self._host.sources.units.hot]

    def _sweep(self, paths: Iterable[str]) -> None:
        """Remove every site in which none of these files lies."""
        folder = self._places.wheels
        try:
            names = os.listdir(folder)
        except OSError:
            return
        used = {Path(path).relative_to(folder).parts[0] for path in paths if Path(path).is_relative_to(folder)}
        for name in names:
            if name not in used:
                shutil.rmtree(folder / name, ignore_errors=True)


def _names_of(units: Iterable[Unit], paths: Set[str]) -> set[str]:
    return {unit.name for unit in units if unit.source.path in paths}


def _told(new: Candidate) -> str:
    what = f"{new.hot.package} {new.hot.version}" if new.hot.package else new.files[0].name
    signed = f", signed by {new.signer}" if new.signer else ", not signed"
    return f"{what} from {os.path.basename(new.path)}{signed}"


def _told_other(before: Sequence[UnitFile], after: Sequence[UnitFile]) -> str:
    """Say what a load without anything new is for."""
    left = {file.hot.source for file in after if file.hot is not None and file.problem is None}
    gone = {file.hot.source for file in before if file.hot is not None and file.problem is None} - left
    rejected = {file.path for file in after if file.problem is not None} - {file.path for file in before}
    told = [f"{os.path.basename(path)} is gone" for path in sorted(gone)]
    told += [f"{os.path.basename(path)} is rejected" for path in sorted(rejected)]
    return "; ".join(told) or "what was rejected has changed"

"""Changes of unit files that are made through the supervisor: enable, disable, mask, unmask, apply, and the check of a
text before it is written.

Theory of operation
-------------------
What was read last is a value (``Sources``). Each of these verbs makes another one of it: with other files in the
control folder (``control_folder``), with the files of some units as they are on disk now (``with_files_of``), or with
older files (``last_good``). It is built, looked at, refused or loaded, as a whole, through the same way as
``daemon-reload``; no file of a unit that was not named is looked at.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import RevertUnits
from supervisord_py.core.manager import Manager
from supervisord_py.errors import SupervisordError
from supervisord_py.host.control_folder import (
    Change,
    RefusedChange,
    apply_changes,
    overruling,
    plan_changes,
    write_changes,
)
from supervisord_py.host.last_good import LastGood
from supervisord_py.host.places import Places
from supervisord_py.host.sources import Sources, read_sources
from supervisord_py.host.unit_files import UnitSources, build
from supervisord_py.host.unit_files import read_sources as read_unit_sources
from supervisord_py.model.changes import Change as ChangeKind
from supervisord_py.model.changes import KeyChange, UnitChange, compare_settings
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.model.unitset import LoadResult, UnitFileKind


class Host(Protocol):
    """What the changes need of the daemon."""

    @property
    def manager(self) -> Manager: ...

    @property
    def loaded(self) -> LoadResult: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def sources(self) -> Sources: ...


class CannotChangeError(SupervisordError):
    """A change that is refused before anything is touched. ``error`` is a name of the control interface."""

    def __init__(self, error: str, unit: str, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.unit = unit
        self.message = message


class Enablement(Struct, frozen=True):
    """What a verb about the control folder does: its changes, what was loaded before, and what is afterwards."""

    changes: tuple[Change, ...]
    before: Sources
    sources: Sources
    loaded: LoadResult


class Application(Struct, frozen=True):
    """What ``apply`` would load, what that changes, and whom it would restart, in order."""

    sources: Sources
    settings: Settings
    loaded: LoadResult
    changes: tuple[UnitChange, ...]
    settings_changes: tuple[KeyChange, ...]
    restarts: tuple[str, ...]


class UnitChanges:
    """Decides and prepares changes for the daemon, which loads them.

    Args:
        host: The daemon.
        config: What ``run`` was told.
        places: Where the files are.
        last_good: The older files.
    """

    def __init__(self, host: Host, config: Any, places: Places, last_good: LastGood) -> None:
        self._host = host
        self._config = config
        self._places = places
        self.last_good = last_good
        self.lock = asyncio.Lock()
        """Held from the reading of files until what was read is loaded: two loads never mix."""

    async def plan_enablement(self, verb: str, names: Sequence[str]) -> Enablement:
        """Decide what ``enable``, ``disable``, ``mask`` or ``unmask`` does.

        Raises:
            CannotChangeError: A file that is not ours stands in the way.
        """
        sources = self._host.sources
        folder = self._places.control

        def plan() -> Enablement:
            changes = plan_changes(verb, names, sources.units, folder)
            after = replace(sources, units=apply_changes(sources.units, changes))
            if verb in ("enable", "disable"):
                touched = {change.unit for change in changes if change.file is not None}
                for name in names:
                    other = overruling(name, after.units, folder) if name in touched else None
                    if other is not None:
                        message = f"cannot {verb} {name}: {other} says otherwise, and is merged later; change it there"
                        raise CannotChangeError("JobFailed", name, message)
            return Enablement(tuple(changes), sources, after, build(after.units))

        try:
            return await asyncio.to_thread(plan)
        except RefusedChange as refused:
            raise CannotChangeError("JobFailed", refused.unit, refused.message) from None

    async def write(self, enablement: Enablement) -> None:
        """Put the changes on disk.

        Raises:
            CannotChangeError: They cannot be written.
        """
        try:
            gid = self._config["socket_gid"]
            await asyncio.to_thread(write_changes, enablement.changes, self._places.control, gid)
        except OSError as error:
            message = f"cannot write {error.filename or self._places.control}: {(error.strerror or str(error)).lower()}"
            raise CannotChangeError("JobFailed", enablement.changes[0].unit, message) from None

    def changed_now(self, enablement: Enablement) -> tuple[Sources, LoadResult]:
        """Return what is to be loaded for changes that are on disk: a rollout may have gone back since they were
        planned."""
        now = self._host.sources
        if now is enablement.before:
            return enablement.sources, enablement.loaded
        sources = replace(now, units=apply_changes(now.units, enablement.changes))
        return sources, build(sources.units)

    async def plan_application(self, names: Sequence[str]) -> Application:
        """Read the files of these units (of all, with the settings, when empty) and say what applying them means.

        Raises:
            CannotChangeError: A file has become invalid, so nothing may be loaded.
        """
        host = self._host
        before, old = host.sources, host.loaded

        def prepare() -> tuple[Sources, Settings, LoadResult]:
            fresh = read_sources(self._config, self._places)
            sources = fresh if not names else replace(before, units=with_files_of(before.units, fresh.units, names))
            return sources, *sources.build()

        sources, settings, loaded = await asyncio.to_thread(prepare)
        if not names and (wrong := next((each for each in sources.problems if each.severity == "error"), None)):
            message = f"the settings are invalid, nothing is applied: {wrong.headline()}"
            raise CannotChangeError("JobFailed", "", message)
        for name, bad in loaded.unit_set.bad.items():
            if bad != old.unit_set.bad.get(name) or name in names:
                raise CannotChangeError("BadUnit", name, bad.reason)
        restarts = view.apply_order(host.manager, loaded.unit_set, names)
        changes = view.reload_plan(host.manager, loaded.unit_set)
        settings_changes = compare_settings(host.settings, settings)
        return Application(sources, settings, loaded, changes, settings_changes, tuple(restarts))

    def go_back(self, action: RevertUnits) -> tuple[Sources, LoadResult]:
        """Return what is to be loaded because a rollout has failed."""
        sources = self._host.sources
        message = f"it was refused by apply: {action.message}"
        units = self.last_good.go_back(action.units, message, sources.units, self._host.loaded)
        return replace(sources, units=units), build(units)

    async def check_text(self, path: str, text: str) -> tuple[Problem, ...]:
        """Return the problems that all unit files would have if the file at ``path`` had this text, without those that
        they have anyway.

        Raises:
            CannotChangeError: It is no file that the supervisor reads.
        """

        def check() -> tuple[Problem, ...] | None:
            paths = self._config["unit_paths"] or None
            with_text = read_unit_sources(paths, self._places, overlay={path: text})
            if not any(file.path == path for file in with_text.files):
                return None
            known = frozenset(build(read_unit_sources(paths, self._places)).problems)
            return tuple(problem for problem in build(with_text).problems if problem not in known)

        problems = await asyncio.to_thread(check)
        if problems is None:
            raise CannotChangeError("InvalidRequest", "", f"{path} is no unit file in a folder that is read")
        return problems


def with_files_of(old: UnitSources, fresh: UnitSources, names: Sequence[str]) -> UnitSources:
    """Return ``old`` with the files of these units (their own, their template's, drop-ins) as they are in ``fresh``.

    What units share beyond that (``defaults.toml``) stays as it was.
    """
    holders = {holder for name in names for holder in (name, parse_unit_name(name).template)}

    def is_theirs(name: str, kind: UnitFileKind) -> bool:
        return kind is not UnitFileKind.DEFAULTS and name in holders

    kept = [file for file in old.files if not is_theirs(file.name, file.kind)]
    taken = [file for file in fresh.files if is_theirs(file.name, file.kind)]
    return replace(old, files=(*kept, *taken))


def told_changes(changes: Sequence[Change]) -> dict[str, str]:
    """Say what becomes of the control folder, by unit or template."""
    return {change.unit: f"{'removed' if change.file is None else 'wrote'} {change.path}" for change in changes}


def changed_units(application: Application) -> list[str]:
    """The units that an apply changes in what they mean, and that were there before."""
    return [each.unit for each in application.changes if each.change is ChangeKind.CHANGED and each.keys]

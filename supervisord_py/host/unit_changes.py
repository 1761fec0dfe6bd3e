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
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import asdict, replace

from supervisord_py.core import view
from supervisord_py.core.actions import RevertUnits, UnitOutcome
from supervisord_py.core.events import CommandRequested
from supervisord_py.host.command_records import command_record, with_fields
from supervisord_py.host.control_folder import (
    Change,
    RefusedChange,
    apply_changes,
    by_name,
    overruling,
    plan_changes,
    write_changes,
)
from supervisord_py.host.facade import (
    ApplyReport,
    EnablementReport,
    Peer,
    RolloutOptions,
    reload_report,
)
from supervisord_py.host.last_good import LastGood
from supervisord_py.host.places import Places
from supervisord_py.host.sources import Sources, read_sources
from supervisord_py.host.transients import Transients
from supervisord_py.host.tuning import CannotChangeError, Tuning
from supervisord_py.host.tuning import Host as TuningHost
from supervisord_py.host.unit_files import UnitSources, build
from supervisord_py.host.unit_files import read_sources as read_unit_sources
from supervisord_py.model.changes import Change as ChangeKind
from supervisord_py.model.changes import KeyChange, UnitChange, compare_settings
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import JobResult
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind

LAST_WORDS = 3
"""Lines of a unit's output that are told with its failure."""

_BUSY = "a rollout is under way: wait for it (supctl jobs), or end it with supctl cancel JOB"


class Host(TuningHost, Protocol):
    """What the changes need of the daemon, besides what tuning does."""

    @property
    def settings(self) -> Settings: ...

    def load(
        self,
        sources: Sources,
        loaded: LoadResult,
        *,
        settings: Settings | None = None,
        read: Sequence[str] | None,
        applied: Sequence[str] | None = None,
        cause: int | None = None,
        start_enabled: bool = False,
        reverts: bool = False,
        limited: tuple[str, ...] = (),
    ) -> None:
        """Take over what was read and built; ``read`` and ``applied`` are those of ``LastGood.note_load``, ``limited``
        units on whose processes the limits of the new text are already."""

    def last_lines(self, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None) -> list[str]:
        """The last lines of output of one life."""


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
        self.transients = Transients(host, config, places, self.lock)
        self.tuning = Tuning(host, config["socket_gid"], places, self.lock)
        self.on_reverted: Callable[[Sequence[UnitFile], str], None] = lambda before, message: None
        """Called when a rollout has gone back: with what the hot directory had brought, and why."""
        self._failed_life: dict[str, str | None] = {}
        """The life because of which an apply went back: its last words are told."""

    # The verbs (host.facade.Changes)

    async def change(
        self,
        verb: str,
        names: Sequence[str],
        peer: Peer,
        *,
        reason: str = "",
        plan: bool = False,
        now: Sequence[str] = (),
        wait: bool = True,
        token: str = "",
    ) -> EnablementReport:
        host = self._host
        async with self.lock:
            planned = await self.plan_enablement(verb, names)
            files = _told(planned.changes, plan=plan)
            if plan:
                return EnablementReport(files, durable=False)
            self._refuse_while_refusing(verb, names, peer, reason)
            if planned.changes:
                await self.write(planned)
            seq = host.note_command(with_fields(command_record(verb, names, peer, reason), result="done"))
            if planned.changes:
                sources, loaded = self._changed_now(planned)
                host.load(sources, loaded, read=(), cause=seq)
                await host.changed()
        if not now:
            return EnablementReport(files, await host.all_durable())
        job_verb = "start" if verb in ("enable", "unmask") else "stop"
        event = CommandRequested(0, job_verb, tuple(now), peer.origin(), reason, wait=wait, token=token, cause=seq)
        submission = await host.request(event, None)
        return EnablementReport(files, submission.durable, submission)

    async def apply(
        self,
        units: Sequence[str],
        peer: Peer,
        options: RolloutOptions,
        *,
        reason: str = "",
        plan: bool = False,
        wait: bool = True,
        token: str = "",
    ) -> ApplyReport:
        host = self._host
        event = CommandRequested(
            0, "apply", tuple(units), peer.origin(), reason, wait=wait, token=token, arguments=asdict(options)
        )
        record = command_record("apply", units, peer, reason)
        if token and not plan and view.knows_token(host.manager, token):
            # The same request as before, after a lost connection: its files are loaded, or were refused.
            return ApplyReport(reload_report(()), (), await host.request(event, record))
        async with self.lock:
            planned = await self.plan_application(units)
            report = reload_report(planned.changes, planned.settings_changes)
            if plan:
                return ApplyReport(report, planned.restarts)
            self._refuse_while_refusing("apply", units, peer, reason)
            if under_way := view.rollout_units(host.manager):
                raise CannotChangeError("Busy", under_way[0], _BUSY)
            result = "queued" if planned.restarts else "done"
            seq = host.note_command(with_fields(record, result=result))
            host.load(
                planned.sources,
                planned.loaded,
                settings=planned.settings,
                read=units or None,
                applied=[each.unit for each in planned.changes if each.change is ChangeKind.CHANGED and each.keys],
                cause=seq,
                start_enabled=True,
            )
            await host.changed()
        submission = await host.request(replace(event, cause=seq), None)
        outcomes = tuple(self._with_last_words(each) for each in submission.reply.outcomes)
        return ApplyReport(
            report, planned.restarts, replace(submission, reply=replace(submission.reply, outcomes=outcomes), seq=seq)
        )

    def _refuse_while_refusing(self, verb: str, units: Sequence[str], peer: Peer, reason: str) -> None:
        if (why := self._host.refusing) is not None:
            self._host.note_command(with_fields(command_record(verb, units, peer, reason), result="Busy"))
            raise CannotChangeError("Busy", "", why)

    def revert(self, action: RevertUnits) -> None:
        """A rollout has failed: load the older files of its units, and of what was changed with them."""
        host = self._host
        self._failed_life = {action.failed: view.unit_status(host.manager, action.failed).invocation}
        message = f"it was refused by apply: {action.message}"
        units = self.last_good.go_back(action.units, message, host.sources.units, host.loaded)
        before = host.sources.units.hot
        sources = replace(host.sources, units=units)
        host.load(sources, sources.build()[1], read=(), reverts=True)
        self.on_reverted(before, action.message)

    def refused_text(self, unit: str) -> str | None:
        return self.last_good.refused(unit)

    def _with_last_words(self, outcome: UnitOutcome) -> UnitOutcome:
        if outcome.result != JobResult.FAILED.value or outcome.unit not in self._failed_life:
            return outcome
        try:
            words = self._host.last_lines(outcome.unit, LAST_WORDS, invocation=self._failed_life[outcome.unit])
        except OSError:
            return outcome
        if not words:
            return outcome
        return replace(outcome, message=f"{outcome.message}; its last words: {' | '.join(words)}")

    # Deciding

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
                narrowed = by_name(after.units)
                for name in names:
                    other = overruling(name, narrowed(name), folder) if name in touched else None
                    if other is not None:
                        message = f"cannot {verb} {name}: {other} says otherwise, and is merged later; change it there"
                        raise CannotChangeError("JobFailed", name, message)
            return Enablement(tuple(changes), sources, after, after.build()[1])

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

    def _changed_now(self, enablement: Enablement) -> tuple[Sources, LoadResult]:
        """Return what is to be loaded for changes that are on disk: a rollout may have gone back since they were
        planned."""
        now = self._host.sources
        if now is enablement.before:
            return enablement.sources, enablement.loaded
        sources = replace(now, units=apply_changes(now.units, enablement.changes))
        return sources, sources.build()[1]

    async def plan_application(self, names: Sequence[str]) -> Application:
        """Read the files of these units (of all, with the settings, when empty) and say what applying them means.

        Raises:
            CannotChangeError: A file has become invalid, so nothing may be loaded.
        """
        host = self._host
        before, old = host.sources, host.loaded

        def prepare() -> tuple[Sources, Settings, LoadResult]:
            fresh = read_sources(self._config, self._places, before)
            _refuse_kept(fresh.units, names)
            sources = fresh if not names else replace(before, units=with_files_of(before.units, fresh.units, names))
            return sources, *sources.build()

        sources, settings, loaded = await asyncio.to_thread(prepare)
        if not names and (wrong := next((each for each in sources.problems if each.severity == "error"), None)):
            message = f"the settings are invalid, nothing is applied: {wrong.headline()}"
            raise CannotChangeError("JobFailed", "", message)
        for name in names:
            if not loaded.read_files(name) and name not in {*loaded.unit_set.masked, *view.list_units(host.manager)}:
                raise CannotChangeError("NoSuchUnit", name, f"no file defines {name}")
        for name, bad in loaded.unit_set.bad.items():
            if bad != old.unit_set.bad.get(name) or name in names:
                raise CannotChangeError("BadUnit", name, bad.reason)
        restarts = view.apply_order(host.manager, loaded.unit_set, names)
        changes = view.reload_plan(host.manager, loaded.unit_set)
        settings_changes = compare_settings(host.settings, settings)
        return Application(sources, settings, loaded, changes, settings_changes, tuple(restarts))

    async def check_text(self, path: str, text: str) -> tuple[Problem, ...]:
        """Return the problems that all unit files would have if the file at ``path`` had this text, without those that
        they have anyway.

        Raises:
            CannotChangeError: It is no file that the supervisor reads.
        """

        def check() -> tuple[Problem, ...] | None:
            paths = self._config["unit_paths"] or None
            apart = self._host.sources.units.apart
            with_text = read_unit_sources(paths, self._places, overlay={path: text}, apart=apart)
            if not any(file.path == path for file in with_text.files):
                return None
            limits = self._host.settings.limits
            known = frozenset(build(read_unit_sources(paths, self._places, apart=apart), limits).problems)
            return tuple(problem for problem in build(with_text, limits).problems if problem not in known)

        problems = await asyncio.to_thread(check)
        if problems is None:
            raise CannotChangeError("InvalidRequest", "", f"{path} is no unit file in a folder that is read")
        return problems


def _refuse_kept(sources: UnitSources, names: Sequence[str]) -> None:
    """Refuse an apply whose files (all of them when ``names`` is empty) lie in a folder that cannot be read.

    Raises:
        CannotChangeError: They do.
    """
    holders = {holder for name in names for holder in (name, parse_unit_name(name).template)}
    for folder in sources.kept:
        if not names or any(file.name in holders and file.path.startswith(f"{folder}/") for file in sources.files):
            message = f"{folder} cannot be read, nothing is applied: see supctl daemon-reload --plan"
            raise CannotChangeError("JobFailed", names[0] if names else "", message)


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


def _told(changes: Sequence[Change], *, plan: bool) -> dict[str, str]:
    """Say what becomes of the control folder, by unit or template."""
    removed, wrote = ("removes", "writes") if plan else ("removed", "wrote")
    return {change.unit: f"{removed if change.file is None else wrote} {change.path}" for change in changes}

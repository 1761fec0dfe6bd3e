"""Units that are changed while they run: how many instances a template has, and single keys.

Theory of operation
-------------------
Both are drop-ins that are written for the user, so the one loader reads, checks and merges them, and ``cat --origin``
shows where a value comes from: ``scale`` writes ``TEMPLATE.toml.d/50-count.toml`` into the control folder, ``set`` a
``95-set.toml`` there (``persist``) or a ``96-set.toml`` into the folder ``set`` of the runtime folder, which the next
supervisor empties. Those of an instance have other names (97, 98): a file of the same name would take the place of its
template's, and take back with it what was set for all. What would be read is built and looked at first; a value that
the loader refuses, that another file overrules, or that only a restart could bring, changes nothing.

Limits of a running unit are set on its processes before the new text is loaded: where the kernel refuses one, the text
is not loaded either.
"""

import asyncio
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import UnitOutcome
from supervisord_py.core.events import CommandRequested
from supervisord_py.core.manager import Manager
from supervisord_py.errors import SupervisordError
from supervisord_py.host.command_records import command_record, with_fields
from supervisord_py.host.control_folder import Change, apply_changes, write_changes
from supervisord_py.host.execution import DEFAULT_LIMITS
from supervisord_py.host.facade import Peer, Submission, TuningReport
from supervisord_py.host.limits import LiveLimits, change_limits, describe_live
from supervisord_py.host.places import Places
from supervisord_py.host.priorities import change_priorities, is_known_before
from supervisord_py.host.resources import Mechanism, UnitResources
from supervisord_py.host.sources import Sources
from supervisord_py.host.toml_values import parse_value, write_toml
from supervisord_py.host.unit_files import CONTROL_PRIORITY, key_table, printable
from supervisord_py.model.change_keys import Effect
from supervisord_py.model.changes import KeyChange
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.problems import Problem
from supervisord_py.model.records import Record
from supervisord_py.model.states import OomPolicy
from supervisord_py.model.unit import ExecContext, Limit, Unit
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind

INSTANCES_MAX = 1000
COUNT_DROP_IN = "50-count.toml"
KEPT_DROP_IN = "95-set.toml"
PASSING_DROP_IN = "96-set.toml"
KEPT_OF_INSTANCE = "97-set.toml"
PASSING_OF_INSTANCE = "98-set.toml"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_:@-]+)+")
_LIMITS = "limits."
_NOT_A_LIMIT = ("limits.enforce",)


class CannotChangeError(SupervisordError):
    """A change that is refused before anything is touched. ``error`` is a name of the control interface."""

    def __init__(self, error: str, unit: str, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.unit = unit
        self.message = message


class Host(Protocol):
    """What tuning needs of the daemon."""

    @property
    def manager(self) -> Manager: ...

    @property
    def loaded(self) -> LoadResult: ...

    @property
    def resources(self) -> UnitResources: ...

    def watch_limits(self, unit: str) -> None:
        """Hold the life of a unit to its limits as they are now."""

    @property
    def sources(self) -> Sources: ...

    @property
    def refusing(self) -> str | None:
        """Why no change is taken now (a journal that cannot be written, where the settings want that), else None."""

    def note_command(self, record: Record) -> int | None:
        """Write a ``command`` record and return its number."""

    async def request(self, event: CommandRequested, record: Record | None) -> Submission:
        """Submit a command, with its record unless it has one; wait for the reply and its durability."""

    async def changed(self) -> None:
        """Return when what was loaded is decided."""

    async def all_durable(self) -> bool:
        """Return when all records are on disk, or cannot be."""

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        """All processes of these units."""

    def load(
        self,
        sources: Sources,
        loaded: LoadResult,
        *,
        read: Sequence[str] | None,
        cause: int | None = None,
        limited: tuple[str, ...] = (),
    ) -> None: ...


class _Planned(Struct, frozen=True):
    """What would be written, and what would be loaded then."""

    changes: tuple[Change, ...]
    before: Sources
    sources: Sources
    loaded: LoadResult


class Tuning:
    """Does ``scale`` and ``set`` for the daemon.

    Args:
        host: The daemon.
        gid: The group that may read what is written; None for our own.
        places: Where the files are.
        lock: Held from the planning until what was planned is loaded.
    """

    def __init__(self, host: Host, gid: int | None, places: Places, lock: asyncio.Lock) -> None:
        self._host, self._gid, self._places, self._lock = host, gid, places, lock

    async def scale(
        self,
        template: str,
        count: int,
        peer: Peer,
        *,
        reason: str = "",
        plan: bool = False,
        wait: bool = True,
        token: str = "",
    ) -> TuningReport:
        """Let ``template`` have so many numbered instances: new ones are started in order, others stopped from the
        highest number down, and forgotten.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """
        host = self._host
        if token and not plan and view.knows_token(host.manager, token):
            # The same request as before, after a lost connection: it is loaded, and its jobs are known.
            event = CommandRequested(0, "start", (), peer.origin(), reason, wait=False, token=token)
            return await self._carry_out(event, wait=wait)
        async with self._lock:
            planned = await asyncio.to_thread(self._plan_scale, template, count)
            before = _instances(host.loaded, template)
            after = _instances(planned.loaded, template)
            new = [name for name in after if name not in before]
            gone = [name for name in reversed(before) if name not in after]
            verb, units = ("start", new) if new else ("stop", gone)
            if plan:
                outcomes = tuple(UnitOutcome(unit, 0, verb, "queued") for unit in units)
                return TuningReport(outcomes or (_unchanged(template, count),), durable=False)
            self._refuse_while_refusing("scale", template, peer, reason)
            if planned.changes:
                await self._write(planned.changes, self._places.control)
            result = "queued" if units else "done"
            seq = host.note_command(with_fields(command_record("scale", [template], peer, reason), result=result))
            if planned.changes:
                host.load(*self._now(planned), read=(), cause=seq)
                await host.changed()
        known = set(view.list_units(host.manager))
        units = [unit for unit in units if unit in known]
        if not units:
            return TuningReport((_unchanged(template, count),), await host.all_durable())
        token = token or uuid4().hex
        event = CommandRequested(0, verb, tuple(units), peer.origin(), reason, wait=False, token=token, cause=seq)
        return await self._carry_out(event, wait=wait)

    async def _carry_out(self, event: CommandRequested, *, wait: bool) -> TuningReport:
        """Start or stop instances; with ``wait`` until each is there, or waits for a slot: that may last for ever, and
        is told instead.
        """
        host = self._host
        submission = await host.request(event, None)
        outcomes = submission.reply.outcomes
        if wait and submission.reply.refusal is None:
            while any(view.is_under_way(host.manager, outcome.job) for outcome in outcomes):
                await host.changed()
            # By its token it is the same request: only how its jobs have ended is asked.
            outcomes = (await host.request(event, None)).reply.outcomes
        slots = {outcome.job: view.slot_awaited(host.manager, outcome.job) for outcome in outcomes}
        told = tuple(replace(each, message=slots[each.job]) if slots[each.job] else each for each in outcomes)
        return TuningReport(told, submission.durable, submission.reply.refusal)

    async def set(
        self, unit: str, settings: Sequence[str], peer: Peer, *, persist: bool, reason: str = "", plan: bool = False
    ) -> TuningReport:
        """Give keys of a unit (or of a template: of all its instances) other values.

        Args:
            unit: The unit or template.
            settings: ``TABLE.KEY=VALUE`` each; an empty value takes back what was set.
            peer: Who asks.
            persist: Keep them over the end of the supervisor.
            reason: Why.
            plan: Only say what would change.

        Raises:
            CannotChangeError: It cannot be, and nothing has changed.
        """
        host = self._host
        wanted = parse_settings(unit, settings)
        async with self._lock:
            planned = await asyncio.to_thread(self._plan_set, unit, wanted, persist)
            changes = {
                change.unit: change.keys
                for change in view.reload_plan(host.manager, planned.loaded.unit_set)
                if unit in (change.unit, parse_unit_name(change.unit).template)
            }
            is_taken_back = all(value is None for value in wanted.values())
            if not persist and not is_taken_back:
                _refuse_restarts(changes)
            if not plan:
                self._refuse_while_refusing("set", unit, peer, reason)
            limited: tuple[str, ...] = ()
            for name, keys in changes.items():
                if not any(_is_limit(key) for key in keys):
                    continue
                problem = await self._limit(name, planned.loaded.unit_set.units[name], plan=plan)
                if problem is None:
                    limited += (name,)
                elif not persist and not is_taken_back:
                    raise CannotChangeError("JobFailed", name, f"cannot set the limits of {name} now: {problem}")
            outcomes = tuple(
                UnitOutcome(name, 0, "set", "queued" if plan else "done", _told(keys, name in limited))
                for name, keys in changes.items()
            ) or (UnitOutcome(unit, 0, "set", "done", "nothing has changed"),)
            if plan:
                return TuningReport(outcomes, durable=False)
            for folder in (self._places.control, self._places.set):
                await self._write([each for each in planned.changes if Path(each.path).parents[1] == folder], folder)
            seq = host.note_command(with_fields(command_record("set", [unit], peer, reason), result="done"))
            if planned.changes:
                host.load(*self._now(planned), read=(), cause=seq, limited=limited)
                await host.changed()
                for name in limited:
                    host.watch_limits(name)
        return TuningReport(outcomes, await host.all_durable())

    # Deciding

    def _plan_scale(self, template: str, count: int) -> _Planned:
        sources = self._host.sources
        name = template.removesuffix("@")
        if not _main_files(sources, template) and _main_files(sources, name):
            raise CannotChangeError("InvalidRequest", name, f"{name} is no template, so it has no instances")
        if not _main_files(sources, template):
            raise CannotChangeError("NoSuchUnit", template, f"{template} is no template: no file {template}.toml")
        path = self._path(self._places.control, template, COUNT_DROP_IN)
        planned = self._planned(sources, template, {path: f"[instances]\ncount = {count}\n"}, "scale")
        self._refuse_overruled("scale", planned.loaded, template, {"instances.count": path})
        return planned

    def _plan_set(self, unit: str, wanted: Mapping[tuple[str, ...], Any], persist: bool) -> _Planned:
        sources = self._host.sources
        is_instance = parse_unit_name(unit).is_instance
        kept = self._path(self._places.control, unit, KEPT_OF_INSTANCE if is_instance else KEPT_DROP_IN)
        passing = self._path(self._places.set, unit, PASSING_OF_INSTANCE if is_instance else PASSING_DROP_IN)
        texts = {path: _text_of(sources, path) for path in (kept, passing)}
        places: dict[str, str] = {}
        for keys, value in wanted.items():
            # What is kept from now on is not hidden by what was to pass.
            for path in (kept, passing) if persist else (passing,):
                is_its_place = path == (kept if persist else passing)
                texts[path] = _with(texts[path], keys, value if is_its_place else None)
            if value is not None:
                places[".".join(keys)] = kept if persist else passing
        planned = self._planned(sources, unit, {path: write_toml(tables) for path, tables in texts.items()}, "set")
        self._refuse_overruled("set", planned.loaded, unit, places)
        return planned

    def _planned(self, sources: Sources, name: str, texts: Mapping[str, str], verb: str) -> _Planned:
        """Build what would be read with these drop-ins; an empty text is none.

        Raises:
            CannotChangeError: The loader refuses it.
        """
        now = {file.path: file.text for file in sources.units.files}
        changes = []
        for path, text in texts.items():
            if now.get(path, "") == text:
                continue
            folder = printable(str(Path(path).parents[1]))
            file = UnitFile(name, path, text, UnitFileKind.DROP_IN, folder, CONTROL_PRIORITY) if text else None
            changes.append(Change(name, path, file))
        after = replace(sources, units=apply_changes(sources.units, changes))
        loaded = after.build()[1]
        known = frozenset(self._host.loaded.problems)
        wrong = [each for each in loaded.problems if each.severity == "error" and each not in known]
        if wrong:
            error = "InvalidRequest" if wrong[0].file in texts else "BadUnit"
            raise CannotChangeError(error, name, _complaint(verb, wrong[0], texts))
        bad = next((each for each in loaded.unit_set.bad.values() if name in _holders(each.name)), None)
        if bad is not None:
            raise CannotChangeError("BadUnit", bad.name, bad.reason)
        return _Planned(tuple(changes), sources, after, loaded)

    def _now(self, planned: _Planned) -> tuple[Sources, LoadResult]:
        """Return what is to be loaded: a rollout may have gone back since it was planned."""
        now = self._host.sources
        if now is planned.before:
            return planned.sources, planned.loaded
        sources = replace(now, units=apply_changes(now.units, planned.changes))
        return sources, sources.build()[1]

    def _refuse_overruled(self, verb: str, loaded: LoadResult, name: str, places: Mapping[str, str]) -> None:
        for setting in loaded.settings(name) or loaded.settings(f"{name}1"):
            if setting.key in places and setting.file != places[setting.key]:
                where = f"{setting.file}:{setting.line}"
                message = f"cannot {verb} {name}: {where} says otherwise about {setting.key}, and is merged later"
                raise CannotChangeError("JobFailed", name, f"{message}; change it there")

    def _refuse_while_refusing(self, verb: str, name: str, peer: Peer, reason: str) -> None:
        if (why := self._host.refusing) is not None:
            self._host.note_command(with_fields(command_record(verb, [name], peer, reason), result="Busy"))
            raise CannotChangeError("Busy", "", why)

    # Doing

    async def _write(self, changes: Sequence[Change], folder: Path) -> None:
        try:
            await asyncio.to_thread(write_changes, changes, folder, self._gid)
        except OSError as error:
            message = f"cannot write {error.filename or folder}: {(error.strerror or str(error)).lower()}"
            raise CannotChangeError("JobFailed", changes[0].unit, message) from None

    async def _limit(self, name: str, loaded: Unit, *, plan: bool) -> str | None:
        """Put the limits of ``loaded`` on all processes of a unit; return what speaks against it."""
        running = view.lives(self._host.manager).get(name)
        if running is None or running.service is None or loaded.service is None:
            return None
        old, new = running.service.context, loaded.service.context
        limits = limits_between(old, new)
        if limits is None or not is_known_before(old, new):
            return "what it had before is known to a fresh process only: restart it"
        wanted = new.resources
        resources = self._host.resources
        bounds = resources.plan(wanted)
        together = loaded.service.oom_policy is OomPolicy.KILL
        if wanted.memory_max not in (None, old.resources.memory_max) and "memory-max" in bounds.how:
            pids = (await self._host.trees([name])).get(name, [])
            if bounds.how["memory-max"] is not Mechanism.SAMPLING and not resources.counts(name, pids):
                return "the kernel does not count the memory that its processes have already: restart it"
        if wanted != old.resources:
            problems = bounds.impossible | ({} if plan else resources.apply(name, bounds, together=together))
            if new.enforce == "best-effort":
                # What it does without already speaks against nothing that is asked for now.
                without = resources.plan(old.resources).impossible
                problems = {key: reason for key, reason in problems.items() if without.get(key) != reason}
            if problems and not plan:
                resources.apply(name, resources.plan(old.resources), together=together)
            if problems:
                key, reason = next(iter(problems.items()))
                return f"{key} cannot be enforced here: {reason}"
        done: dict[int, LiveLimits | None] = {}
        while not plan:
            fresh = [pid for pid in (await self._host.trees([name])).get(name, []) if pid not in done]
            if not fresh:
                break
            if wanted != old.resources:
                resources.move(name, fresh, bounds)
            for pid in fresh:
                done[pid] = describe_live(pid)
                problem = change_limits(pid, limits) or change_priorities(pid, old, new)
                if problem is not None:
                    if wanted != old.resources:
                        resources.apply(name, resources.plan(old.resources), together=together)
                    return put_back(problem, done, limits, old, new)
        return None

    def _path(self, folder: Path, name: str, base: str) -> str:
        return printable(str(folder / f"{name}.toml.d" / base))


def put_back(
    problem: str, done: Mapping[int, LiveLimits | None], limits: Mapping[str, Limit], old: ExecContext, new: ExecContext
) -> str:
    """Give processes what they had before a change that was refused; return the problem, and what they could not get
    back."""
    lasting: list[str] = []
    for pid, had in done.items():
        if had is None:
            continue
        priorities = replace(
            old.priorities,
            oom_score_adjust=had.oom_score_adjust if new.priorities.oom_score_adjust is not None else None,
            cpu_affinity=had.cpu_affinity if new.priorities.cpu_affinity else (),
        )
        before = replace(old, nice=None if new.nice is None else had.nice, priorities=priorities)
        rlimits = {name: had.rlimits[name] for name in limits if name in had.rlimits}
        lasting += filter(None, (change_limits(pid, rlimits), change_priorities(pid, new, before)))
    return problem if not lasting else f"{problem}; and what was changed before could not be put back: {lasting[0]}"


def limits_between(old: ExecContext, new: ExecContext) -> dict[str, Limit] | None:
    """Return the limits that a process by ``old`` needs for ``new``; None where that is not known."""
    before, after = {**DEFAULT_LIMITS, **dict(old.rlimits)}, {**DEFAULT_LIMITS, **dict(new.rlimits)}
    if before.keys() - after.keys():
        return None
    return {name: limit for name, limit in after.items() if before.get(name) != limit}


def parse_settings(unit: str, settings: Sequence[str]) -> dict[tuple[str, ...], Any]:
    """Read ``TABLE.KEY=VALUE`` as TOML has values; what is none is a string, an empty one None.

    Raises:
        CannotChangeError: One is no such assignment.
    """
    wanted: dict[tuple[str, ...], Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        key = _places_of_names().get(key.strip(), key)
        if not equals or _PATH.fullmatch(key.strip()) is None:
            message = f"{text[:80]!r} is no TABLE.KEY=VALUE, such as limits.nofile=4096"
            if equals and _NAME.fullmatch(key.strip()) is not None:
                message = _unknown_name(key.strip())
            raise CannotChangeError("InvalidRequest", unit, message)
        if key.strip() == "instances.count":
            raise CannotChangeError("InvalidRequest", unit, f"the number of instances: supctl scale {unit}=N")
        wanted[tuple(key.strip().split("."))] = parse_value(value.strip())
    if not wanted:
        raise CannotChangeError("InvalidRequest", unit, "set needs a TABLE.KEY=VALUE")
    return wanted


def _unknown_name(name: str) -> str:
    """Say of a key without its table that no one table has it."""
    tables = [table.name for table in key_table().of("unit") if table.form == "table" and name in table.keys]
    if tables:
        return f"several tables have a key {name!r}: write {' or '.join(f'{table}.{name}' for table in tables)}"
    near = get_close_matches(name, _places_of_names(), 1)
    meant = f"did you mean {near[0]!r}?" if near else "see supervisord-py.unit(5)"
    return f"no table has a key {name!r} ({meant})"


@cache
def _places_of_names() -> dict[str, str]:
    """Return ``TABLE.KEY`` by what else a key may be called: systemd's directive, and the key alone where one table has
    it."""
    found: dict[str, list[str]] = {}
    for table in key_table().of("unit"):
        for key, spec in table.keys.items() if table.form == "table" else ():
            for name in filter(None, (key, spec.systemd)):
                found.setdefault(name, []).append(f"{table.name}.{key}")
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def _with(tables: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return nested tables with another value at a place; None takes it away, and tables that are empty then."""
    first, *rest = keys
    below = tables.get(first)
    if not rest:
        new = value
    else:
        new = _with(below if isinstance(below, dict) else {}, tuple(rest), value) or None
    return {key: each for key, each in {**tables, first: new}.items() if each is not None}


def _text_of(sources: Sources, path: str) -> dict[str, Any]:
    text = next((file.text for file in sources.units.files if file.path == path), "")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        # Somebody has written into it: what it said is lost, as it was for the loader.
        return {}


def _complaint(verb: str, problem: Problem, ours: Mapping[str, str]) -> str:
    """Say what is wrong; of a value that was typed the place is the verb."""
    if problem.file not in ours:
        return problem.headline()
    text = f"{verb}: {problem.key}: {problem.message}" if problem.key else f"{verb}: {problem.message}"
    return f"{text} ({problem.hint})" if problem.hint else text


def _refuse_restarts(changes: Mapping[str, Sequence[KeyChange]]) -> None:
    for name, keys in changes.items():
        for key in keys:
            if key.effect is Effect.RESTART and not _is_limit(key):
                message = f"{key.key} of {name} needs a restart: add --persist, then supctl restart {name}"
                raise CannotChangeError("JobFailed", name, message)


def _is_limit(key: KeyChange) -> bool:
    return key.key.startswith(_LIMITS) and key.key not in _NOT_A_LIMIT and key.effect is Effect.RESTART


def _told(keys: Sequence[KeyChange], is_limited: bool) -> str:
    words = {Effect.LIVE: "in force at once", Effect.RESTART: "needs a restart"}
    told = []
    for key in keys:
        effect = Effect.LIVE if is_limited and _is_limit(key) else key.effect
        old, new = ("not set" if value is None else value for value in (key.old, key.new))
        told.append(f"{key.key}: {old} -> {new} ({words.get(effect, 'at its next start')})")
    return ", ".join(told) or "nothing has changed"


def _unchanged(template: str, count: int) -> UnitOutcome:
    return UnitOutcome(template, 0, "scale", "done", f"{count} instance{'s' if count != 1 else ''}")


def _main_files(sources: Sources, name: str) -> list[UnitFile]:
    return [file for file in sources.units.files if file.kind is UnitFileKind.UNIT and file.name == name]


def _holders(name: str) -> tuple[str | None, ...]:
    return name, parse_unit_name(name).template


def _instances(loaded: LoadResult, template: str) -> list[str]:
    """Return the instances of a template, by number, then by name."""
    found = [name for name in loaded.unit_set.units if parse_unit_name(name).template == template]

    def place(name: str) -> tuple[bool, int, str]:
        instance = name.removeprefix(template)
        return (not instance.isdecimal(), int(instance) if instance.isdecimal() else 0, instance)

    return sorted(found, key=place)

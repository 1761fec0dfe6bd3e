"""All unit files of one load to a ``UnitSet``: drop-ins and defaults, templates and instances, groups, cycles; every
problem at once.

Theory of operation
-------------------
1. *Choose*: of several files for one name the folder of the highest priority wins; drop-ins of all folders count, those
   of one file name once.
2. *Build*: each unit is decoded from its layers (``defaults.toml`` of its folder, its file, its drop-ins) with its own
   specifiers. A template is built once for each instance: numbered from 1 by ``[instances] count``, named by a file
   ``NAME@INSTANCE.toml``, or named by another unit (requires, requisite, wants, binds-to, upholds, on-failure,
   on-success, on-quarantine); so building goes on until nothing new is named. An instance that no unit starts with
   itself (one of requisite, or of the last four) is not started with the supervisor, unless it says so.
3. *Resolve* (``model.verify``): groups and templates in relations become names; what does not exist is a problem;
   cycles are broken or refused.

One bad file never takes others with it, but for what shares it: the instances of a template, the units under a
``defaults.toml``.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from functools import cached_property

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.model.agents import AgentRunner
from supervisord_py.model.assemble import Machine, assemble, wrong_values
from supervisord_py.model.effective_settings import Setting, effective_settings
from supervisord_py.model.keys import KeyTable
from supervisord_py.model.names import ReferenceKind, UnitName, is_unit_name, parse_unit_name
from supervisord_py.model.parse import (
    Decoded,
    DecodedTables,
    FileTables,
    Merged,
    TableId,
    decode_entries,
    merge,
    problem_at,
    read_tables,
)
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.positions import SourceText
from supervisord_py.model.problems import Problem
from supervisord_py.model.specifiers import SpecifierContext, Specifiers
from supervisord_py.model.states import ServiceType
from supervisord_py.model.unit import BadUnit, LoadedFrom, Transient, Unit, UnitSet
from supervisord_py.model.verify import (
    ORDERING,
    RELATIONS_OF_TABLES,
    TRIGGERED,
    Candidate,
    Universe,
    check_limits,
    verify,
)

SAMPLE_INSTANCE = "1"
"""The instance as which a template is checked when it has none."""

_WITH_PROCESS = ("service", "limits", "log", "quarantine", "pool", "health", "timer")
"""Tables of units that have processes."""
_NOT_IN_DEFAULTS = dict.fromkeys(("agent", "target"), "each file says itself what the unit is") | {
    "instances": "write it into the template",
    "socket": "an address is that of one unit",
}


class UnitFileKind(Enum):
    UNIT = "unit"
    DROP_IN = "drop-in"
    DEFAULTS = "defaults"


class HotFile(Struct, frozen=True):
    """Where a unit file of the hot directory comes from.

    ``source`` lies there, ``digest`` is of it and its signature; ``package`` is a wheel's distribution (empty: a unit
    file alone), ``site`` its folder; ``version`` and ``timestamp`` (None: not signed) say which of two is newer.
    """

    source: str
    digest: str = ""
    package: str = ""
    version: str = ""
    timestamp: int | None = None
    site: str = ""


class UnitFile(Struct, frozen=True):
    """A file as the host read it.

    ``name`` is the unit's or template's name as the file has it (of a drop-in: the folder; empty for
    ``defaults.toml``); ``directory`` the unit folder it was found in, ``priority`` that folder's rank (0 is the
    highest). An empty text of a unit masks it. ``problem`` is set when the file could not be read or was refused; the
    text is empty then. ``hot`` is set for what the hot directory brought, ``transient`` for what ``supctl run`` asked
    for: neither lies in a folder that is read.
    """

    name: str
    path: str
    text: str
    kind: UnitFileKind
    directory: str
    priority: int
    problem: Problem | None = None
    hot: HotFile | None = None
    transient: Transient | None = None


class _Built(Struct, frozen=True):
    """One unit after step 2: the unit, or the problem that keeps it from being one."""

    path: str
    unit: Unit | None
    merged: Merged
    files: tuple[UnitFile, ...]
    specifiers: Specifiers
    first_problem: Problem | None = None


@dataclass(frozen=True)
class LoadResult:
    """What one load found. ``problems`` are sorted by place; an error has made its unit ``bad-setting``, or will fail
    its start."""

    unit_set: UnitSet
    problems: tuple[Problem, ...]
    key_table: KeyTable
    _built: dict[str, _Built] = field(default_factory=dict)

    @cached_property
    def has_errors(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all units, bad and masked ones too."""
        return (*self.unit_set.units, *self.unit_set.bad, *self.unit_set.masked)

    def files(self, name: str) -> list[tuple[str, str]]:
        """Path and text of the files of a unit, in merge order; empty for a name that no file defines."""
        built = self._built.get(name)
        return [] if built is None else [(file.path, file.text) for file in built.files]

    def read_files(self, name: str) -> tuple[UnitFile, ...]:
        """The files of a unit as they were read, in merge order; empty for a name that no file defines."""
        built = self._built.get(name)
        return () if built is None else built.files

    def settings(self, name: str) -> list[Setting]:
        """Every setting of a unit: those that are written, with file and line, then the defaults.

        Names of a table value are settings of their own (``service.environment.PATH``).
        """
        built = self._built.get(name)
        if built is None:
            return []
        return effective_settings(self.key_table, built.merged.tables, built.specifiers, built.unit)


def no_zones(name: str) -> None:
    """Know no time zone by its name."""


NOWHERE = Machine(no_zones, AgentRunner("python3", "runner.py"))
"""A machine of which nothing is known."""


def build_unit_set(
    files: Sequence[UnitFile],
    context: SpecifierContext,
    *,
    key_table: KeyTable,
    problems: Sequence[Problem] = (),
    limits: PoolLimits | None = None,
    machine: Machine = NOWHERE,
) -> LoadResult:
    """Make the unit set of everything the host has read.

    Args:
        files: In any order.
        context: What specifiers stand for.
        key_table: ``docs/keys.toml``.
        problems: What the host met that belongs to no unit; they go into the result.
        limits: How many units may run at a time; None: nobody knows, and nothing is compared with them.
        machine: What there is here that units refer to.
    """
    builder = _Builder(files, context, key_table, limits, machine)
    builder.complain(*problems)
    return builder.build()


class FileMarks(Struct, frozen=True):
    """Where files are others than those that were loaded: the units that ``changed``, and the names (of templates too)
    whose first file ``appeared``."""

    changed: frozenset[str] = frozenset()
    appeared: tuple[str, ...] = ()


def mark_files(loaded: Sequence[UnitFile], now: Sequence[UnitFile], units: Iterable[str]) -> FileMarks:
    """Compare what was loaded with what is there now, by content, without reading any of it.

    Args:
        loaded: The files of the last load.
        now: The files that a load would read now.
        units: The names of the units that were loaded, bad and masked ones too.
    """
    if loaded == now:
        return FileMarks()
    before, after = _Layers(loaded), _Layers(now)
    return FileMarks(
        changed=frozenset(name for name in units if before.content_of(name) != after.content_of(name)),
        appeared=tuple(sorted(after.names_with_text() - before.mains.keys())),
    )


class _Layers:
    """Step 1: which files make a unit."""

    def __init__(self, files: Sequence[UnitFile]) -> None:
        self.mains: dict[str, UnitFile] = {}
        self.defaults: dict[str, UnitFile] = {}
        self.drop_ins: dict[str, list[UnitFile]] = {}
        for file in sorted(files, key=lambda file: (file.priority, file.path)):
            match file.kind:
                case UnitFileKind.UNIT:
                    self.mains.setdefault(file.name, file)
                case UnitFileKind.DEFAULTS:
                    self.defaults.setdefault(file.directory, file)
                case UnitFileKind.DROP_IN:
                    self.drop_ins.setdefault(file.name, []).append(file)

    def main_of(self, name: UnitName) -> UnitFile | None:
        return self.mains.get(str(name)) or self.mains.get(name.template or "")

    def files_of(self, name: UnitName, main: UnitFile) -> tuple[UnitFile | None, list[UnitFile]]:
        """Return the defaults under a unit, and its own files in the order in which they are merged."""
        return self.defaults.get(main.directory), [main, *self.drop_ins_of(name)]

    def content_of(self, name: str) -> list[tuple[str, str, bool]] | None:
        """Return path and text of every file of a unit, and whether it can be read; None without a file."""
        unit_name = parse_unit_name(name)
        main = self.main_of(unit_name)
        if main is None:
            return None
        defaults, own = self.files_of(unit_name, main)
        files = [defaults, *own] if defaults is not None else own
        return [(file.path, file.text, file.problem is None) for file in files]

    def names_with_text(self) -> set[str]:
        """Return the names that a file defines; a mask defines nothing."""
        return {name for name, file in self.mains.items() if file.text or file.problem is not None}

    def drop_ins_of(self, name: UnitName) -> list[UnitFile]:
        """Sorted by file name over all folders; of one file name the highest folder's counts, the instance's own before
        the template's."""
        chosen: dict[str, UnitFile] = {}
        for holder in (str(name), name.template):
            for file in self.drop_ins.get(holder or "", ()):
                base = file.path.rpartition("/")[2]
                if base not in chosen or (holder == str(name) and file.priority < chosen[base].priority):
                    chosen[base] = file
        return [chosen[base] for base in sorted(chosen)]


class _Builder(_Layers):
    """The three steps of the module's theory, over one set of files."""

    def __init__(
        self,
        files: Sequence[UnitFile],
        context: SpecifierContext,
        key_table: KeyTable,
        limits: PoolLimits | None,
        machine: Machine,
    ) -> None:
        super().__init__(files)
        self._context = context
        self._key_table = key_table
        self._limits = limits
        self._machine = machine
        self._read: dict[tuple[str, bool], FileTables] = {}
        """By path, and whether it can be used: what was refused may stand where a good one was read."""
        self._problems: dict[Problem, None] = {}
        """Each problem once, though a template's come with every instance."""
        self._built: dict[str, _Built] = {}
        self._templates: dict[str, _Built] = {}
        """Each template as its first instance: to be shown, not to run."""
        self._pulled: set[str] = set()
        """Units that have a file or a number, or that another unit starts with itself."""
        self._masked: set[str] = set()

    def build(self) -> LoadResult:
        templates = {name for name in self.mains if not is_unit_name(name)}
        wanted = sorted(self.mains.keys() - templates)
        for template in sorted(templates):
            wanted += self._numbered(template)
        self._pulled.update(wanted)
        while wanted:
            name = wanted.pop(0)
            if name not in self._built and name not in self._masked:
                wanted += self._build(name)
        for name in sorted(self.drop_ins.keys() - self.mains.keys() - self._built.keys()):
            for file in self.drop_ins[name]:
                message = f"a drop-in for {name}, which no file defines"
                self.complain(Problem(file.path, 0, 0, "", message, f"write {name}.toml, or remove it", "warning"))
        return self._finish(templates)

    def complain(self, *problems: Problem) -> None:
        self._problems.update(dict.fromkeys(problems))

    def _numbered(self, template: str) -> list[str]:
        """The numbered instances of a template, which is checked as its first one even when it has none."""
        file = self.mains[template]
        if file.problem is None and not file.text:
            self._masked.add(template)
            return []
        # Of the template's files alone: the first instance may have another file, or be masked.
        sample = self._layer(parse_unit_name(template + SAMPLE_INSTANCE), holder=parse_unit_name(template))
        count = sample.merged.tables.get(("instances",), {}).get("count")
        if sample.first_problem is not None and (count is None or not count.value):
            self._built[template] = sample
        self._templates[template] = sample
        return [f"{template}{number}" for number in range(1, 1 + (count.value if count is not None else 0))]

    def _build(self, name: str) -> list[str]:
        """Build one unit; returns the instances of templates that it needs."""
        unit_name = parse_unit_name(name)
        main = self.main_of(unit_name)
        if main is None:
            return []
        if main.problem is None and not main.text:
            self._masked.add(name)
            return []
        built = self._built[name] = self._layer(unit_name)
        if built.unit is None:
            return []
        needed: list[str] = []
        relations = _relations(built.merged)
        for key in (*ORDERING, *TRIGGERED):
            decoded = relations.get(key)
            for dependency in decoded.value if decoded is not None else ():
                if dependency.reference.kind is ReferenceKind.UNIT:
                    template = parse_unit_name(dependency.reference.name).template
                    if template in self.mains:
                        needed.append(dependency.reference.name)
                        if key in ORDERING and key != "requisite":
                            self._pulled.add(dependency.reference.name)
        return needed

    def _layer(self, name: UnitName, *, holder: UnitName | None = None) -> _Built:
        """Decode and merge all files of one unit; with ``holder`` the files of that name."""
        main = self.main_of(holder or name)
        assert main is not None, f"internal error: no file defines {name}"
        defaults, own = self.files_of(holder or name, main)
        files = ([defaults] if defaults is not None else []) + own
        specifiers = Specifiers(self._context, name, main.path)
        problems: list[Problem] = []
        own_tables = {table for file in own for table in self._tables(file).tables}
        layers: list[tuple[FileTables, DecodedTables]] = []
        for file in files:
            tables = self._tables(file)
            if file is defaults:
                tables = _as_defaults(tables, own_tables)
            decoded, found = decode_entries(tables, specifiers.expand)
            problems += [*tables.problems, *found]
            layers.append((tables, decoded))
        merged = merge(layers)
        source = LoadedFrom(main.path, tuple(file.path for file in own[1:]), _digest(files))
        unit: Unit | None = None
        if not problems:
            unit, combined = assemble(name, merged, source, self._machine)
            problems += combined
            is_accepting = unit is not None and unit.sockets is not None and unit.sockets.accepts
            if is_accepting and name.instance is None and not specifiers.used.isdisjoint("iI"):
                message = "%i is empty: with accept it is expanded before anybody has connected"
                hint = "use REMOTE_ADDR and REMOTE_PORT, which are in the environment"
                problems.append(Problem(main.path, 0, 0, "", message, hint, "warning"))
        else:
            problems += wrong_values(merged, self._machine)
        if unit is not None and main.transient is not None:
            unit = replace(unit, transient=main.transient)
        if main.hot is None or main.problem is None:
            # What a hot directory refused is listed, and no mistake in the files that are to be read.
            self.complain(*problems)
        first = next((problem for problem in problems if problem.severity == "error"), None)
        return _Built(main.path, unit if first is None else None, merged, tuple(files), specifiers, first)

    def _tables(self, file: UnitFile) -> FileTables:
        key = file.path, file.problem is None
        if key not in self._read:
            if file.problem is not None:
                read = FileTables(SourceText(file.path, ""), {}, (file.problem,))
            else:
                read = read_tables(file.path, file.text, "unit", self._key_table)
            self._read[key] = read
        return self._read[key]

    def _finish(self, templates: set[str]) -> LoadResult:
        candidates: dict[str, Candidate] = {}
        bad: dict[str, BadUnit] = {}
        groups_of_bad: dict[str, tuple[str, ...]] = {}
        for name, built in list(self._built.items()):
            if built.unit is not None:
                written = built.merged.tables.get(("unit",), {})
                unit = built.unit
                if name not in self._pulled and "enabled" not in written:
                    unit = replace(unit, enabled=False)
                    self._built[name] = replace(built, unit=unit)
                candidates[name] = Candidate(unit, _relations(built.merged))
            else:
                assert built.first_problem is not None, "a unit is missing without a problem"
                main = self.main_of(parse_unit_name(name))
                rejected = main is not None and main.hot is not None and main.problem is not None
                bad[name] = BadUnit(name, built.path, built.first_problem.public(), rejected)
                groups = built.merged.tables.get(("unit",), {}).get("groups")
                groups_of_bad[name] = () if groups is None else groups.value
        self._check_pid_files(candidates)
        verified = verify(Universe(candidates, groups_of_bad, frozenset(self._masked), frozenset(templates)))
        self.complain(*verified.problems)
        if self._limits is not None:
            self._check_pools(candidates, self._limits)
            self.complain(*check_limits(verified.units, candidates, self._limits))
        problems = sorted(self._problems, key=lambda problem: (problem.file, problem.line, problem.column))
        bad |= verified.bad
        unit_set = UnitSet(
            units=verified.units,
            bad={name: bad[name] for name in sorted(bad)},
            warnings=tuple(problem.headline() for problem in problems if problem.severity == "warning"),
            masked=tuple(sorted(self._masked)),
        )
        return LoadResult(unit_set, tuple(problems), self._key_table, self._templates | self._built)

    def _check_pid_files(self, candidates: Mapping[str, Candidate]) -> None:
        """Units that write one pid file would each be taken for the other."""
        owners: dict[str, str] = {}
        for name in sorted(candidates):
            service = candidates[name].unit.service
            if service is None or service.pid_file is None or service.type is not ServiceType.FORKING:
                continue
            other = owners.setdefault(service.pid_file, name)
            if other != name:
                entry = self._built[name].merged.tables["service",]["pid-file"].entry
                hint = "write a name with %i into it" if "@" in name else "give each a file of its own"
                message = f"{service.pid_file} is the pid file of {other} too"
                self.complain(entry.problem(message, hint, severity="warning"))

    def _check_pools(self, candidates: Mapping[str, Candidate], limits: PoolLimits) -> None:
        """A pool that nobody has set up bounds nothing."""
        for name in sorted(candidates):
            pool = candidates[name].unit.pool.name
            if pool and pool not in limits.pools:
                near = get_close_matches(pool, limits.pools, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"write [pools.{pool}] with max-workers into it"
                message = f"there is no pool {pool} in supervisord.toml, so nothing bounds it but max-workers"
                entry = self._built[name].merged.tables["pool",]["name"].entry
                self.complain(entry.problem(message, hint, severity="warning"))


def _relations(merged: Merged) -> dict[str, Decoded]:
    """The relations of a unit that are written, by key."""
    return {
        key: decoded
        for table, keys in RELATIONS_OF_TABLES.items()
        for key in keys
        if (decoded := merged.tables.get((table,), {}).get(key)) is not None
    }


def _as_defaults(file: FileTables, own: Set[TableId]) -> FileTables:
    """What ``defaults.toml`` says for one unit, of which its own files have these tables: nothing about processes
    where there is none; it says of no unit what it is, and makes none a timer."""
    has_process, is_timer = not own.isdisjoint({("service",), ("agent",)}), ("timer",) in own
    tables = {
        table: entries
        for table, entries in file.tables.items()
        if (has_process or table[0] not in _WITH_PROCESS)
        and (is_timer or table[0] != "timer")
        and table[0] not in _NOT_IN_DEFAULTS
    }
    problems = [
        problem_at(file.source, table, f"[{table[0]}] does not belong into defaults.toml", hint, on_key=True)
        for table in file.tables
        if (hint := _NOT_IN_DEFAULTS.get(str(table[0])))
    ]
    return FileTables(file.source, tables, (*file.problems, *problems), file.broken)


def _digest(files: Iterable[UnitFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        text = file.text.encode()
        digest.update(f"{file.path}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


class Difference(Struct, frozen=True):
    """What a new set changes, names sorted. A unit that only moved to another file is not changed."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


def compare(old: UnitSet, new: UnitSet) -> Difference:
    """Compare two sets by what their units mean; a unit that is bad in one of them counts as not there."""
    nowhere = LoadedFrom("")
    return Difference(
        tuple(sorted(new.units.keys() - old.units.keys())),
        tuple(
            name
            for name in sorted(new.units.keys() & old.units.keys())
            if replace(new.units[name], source=nowhere) != replace(old.units[name], source=nowhere)
        ),
        tuple(sorted(old.units.keys() - new.units.keys())),
    )

"""Checks over all units together: what relations name, combinations that cannot be, cycles.

Theory of operation
-------------------
Relations come as they are written. A name stays a name, whether a file defines it or not (the core gives it
``not-found``); ``@group`` and ``template@`` become their members, without the unit itself. Then the ordering graph is
built: requires, requisite, binds-to and wants order unless ``ordered = false``, after and before always do. A cycle of
hard edges makes its units, and all that require them, ``bad-setting``; in any other cycle the order of a ``wants`` is
dropped, with a warning. Whatever ``until`` says, an edge is an edge.

A required unit that no file defines is an error of ``check``; the unit is loaded all the same and its start fails with
``dependency``.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.model.decode import RawDependency
from supervisord_py.model.names import ReferenceKind, parse_unit_name
from supervisord_py.model.ordering import Edge, drop_soft, hard_cycles
from supervisord_py.model.parse import Decoded
from supervisord_py.model.pools import Excess, PoolLimits, find_excess, label
from supervisord_py.model.problems import Problem
from supervisord_py.model.sockets import shared_addresses
from supervisord_py.model.unit import BadUnit, Dependency, Unit

ORDERING = ("requires", "requisite", "wants", "binds-to")
"""Relations that order as well."""
REQUIRING = ("requires", "requisite", "binds-to")
TRIGGERED = ("upholds", "on-failure", "on-success", "on-quarantine")
"""Relations whose units are started when something happens."""
CYCLE_SHOWN = 12
"""So many units of a dropped cycle are named."""
RELATIONS = (*ORDERING, *TRIGGERED, "part-of", "propagates-stop-to", "conflicts", "after", "before")
RELATIONS_OF_TABLES = {
    "unit": tuple(key for key in RELATIONS if key != "on-quarantine"),
    "quarantine": ("on-quarantine",),
}
"""Which table each stands in."""
CHAINS_SHOWN = 3
"""So many chains of units that cannot be up together are told."""


class Candidate(Struct, frozen=True):
    """A unit whose own files are right. ``relations`` holds the keys of ``RELATIONS`` that are written."""

    unit: Unit
    relations: Mapping[str, Decoded]

    def raw(self, key: str) -> tuple[RawDependency, ...]:
        decoded = self.relations.get(key)
        return () if decoded is None else decoded.value

    def problem(self, key: str, index: int | None, message: str, hint: str = "", *, warning: bool = False) -> Problem:
        at = () if index is None else (index,)
        return self.relations[key].entry.problem(message, hint, at, "warning" if warning else "error")


class Universe(Struct, frozen=True):
    """All names of one load: ``bad`` units with the groups that could be read, masked ones, templates (ending in
    ``@``)."""

    candidates: Mapping[str, Candidate]
    bad: Mapping[str, tuple[str, ...]]
    masked: frozenset[str]
    templates: frozenset[str]


class Verified(Struct, frozen=True):
    units: dict[str, Unit]
    bad: dict[str, BadUnit]
    problems: list[Problem]


def verify(universe: Universe) -> Verified:
    """Resolve and check everything."""
    resolver = _Resolver(universe)
    for name in sorted(universe.candidates):
        resolver.resolve(universe.candidates[name])
    units, bad, problems = resolver.units, resolver.bad, resolver.problems
    edges = [edge for unit in units.values() if unit.name not in bad for edge in _edges(unit, resolver.places)]
    members: list[str] = []
    for knot, cycle in hard_cycles(edges):
        problem = _cycle_problem(cycle, universe.candidates)
        problems.append(problem)
        bad.update((name, BadUnit(name, units[name].source.path, problem.public())) for name in knot)
        members += knot
    _spread(units, bad, members, problems, universe.candidates)
    left = {name: unit for name, unit in units.items() if name not in bad}
    for dropped in drop_soft(edge for edge in edges if edge.first in left and edge.then in left):
        edge = dropped.edge
        owner = left[edge.owner]
        wants = tuple(replace(item, ordered=False) if item.unit == edge.first else item for item in owner.wants)
        left[edge.owner] = replace(owner, wants=wants)
        # The way is in the order of starting; a cycle is told from each unit to what it waits for.
        around = [edge.then, *reversed(dropped.way)]
        path = around if len(around) <= CYCLE_SHOWN else [*around[: CYCLE_SHOWN - 2], "...", around[-1]]
        problems.append(
            universe.candidates[edge.owner].problem(
                "wants",
                edge.index if edge.index >= 0 else None,
                f"not ordered after {edge.first}, which would close the cycle {' -> '.join(path)}",
                f'write {{ unit = "{edge.first}", ordered = false }} if that is as it should be',
                warning=True,
            )
        )
    for name, other, address in shared_addresses((name, left[name].sockets) for name in sorted(left)):
        message = f"{name} and {other} listen on {address}: the second to start will fail"
        hint = "write reuse-port = true in both, or another address"
        problems.append(Problem(left[name].source.path, 0, 0, "socket", message, hint, "warning"))
    return Verified({name: left[name] for name in sorted(left)}, {name: bad[name] for name in sorted(bad)}, problems)


class _Resolver:
    """Turns written relations into names."""

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self._groups: dict[str, list[str]] = {}
        self._instances: dict[str, list[str]] = {}
        for name, candidate in universe.candidates.items():
            for group in candidate.unit.groups:
                self._groups.setdefault(group, []).append(name)
        for name, groups in universe.bad.items():
            for group in groups:
                self._groups.setdefault(group, []).append(name)
        self._others = {*universe.bad, *universe.masked}
        for name in (*universe.candidates, *self._others):
            template = parse_unit_name(name).template
            if template is not None:
                self._instances.setdefault(template, []).append(name)
        self.units: dict[str, Unit] = {}
        self.bad: dict[str, BadUnit] = {}
        self.problems: list[Problem] = []
        self.places: dict[tuple[str, str, str], int | None] = {}
        """Where in its list a relation stands: by owner, key and the other unit."""

    def resolve(self, candidate: Candidate) -> None:
        name = candidate.unit.name
        resolved = {key: self._resolve_key(candidate, key) for key in RELATIONS}
        hostile = {dependency.unit for dependency in resolved["conflicts"]}
        for key in (*ORDERING, "upholds", "part-of"):
            for dependency in resolved[key]:
                if dependency.unit in hostile:
                    self._refuse(
                        candidate,
                        candidate.problem(
                            key,
                            self.places[name, key, dependency.unit],
                            f"{dependency.unit} is in conflicts too",
                            "a unit cannot need what it stops, or follow what stops it",
                        ),
                    )
        self.units[name] = replace(
            candidate.unit,
            requires=resolved["requires"],
            wants=resolved["wants"],
            requisite=resolved["requisite"],
            binds_to=resolved["binds-to"],
            upholds=tuple(replace(dependency, ordered=False) for dependency in resolved["upholds"]),
            after=resolved["after"],
            part_of=_names(resolved["part-of"]),
            propagates_stop_to=_names(resolved["propagates-stop-to"]),
            conflicts=_names(resolved["conflicts"]),
            before=_names(resolved["before"]),
            on_failure=_names(resolved["on-failure"]),
            on_success=_names(resolved["on-success"]),
            quarantine=replace(candidate.unit.quarantine, on_quarantine=_names(resolved["on-quarantine"])),
        )

    def _refuse(self, candidate: Candidate, problem: Problem) -> None:
        name = candidate.unit.name
        self.problems.append(problem)
        self.bad.setdefault(name, BadUnit(name, candidate.unit.source.path, problem.public()))

    def _resolve_key(self, candidate: Candidate, key: str) -> tuple[Dependency, ...]:
        """The members of one relation; a name that stands for itself wins over the same name in a group."""
        name = candidate.unit.name
        found: dict[str, Dependency] = {}
        raw = candidate.raw(key)
        for dependency in sorted(raw, key=lambda item: item.reference.kind is not ReferenceKind.UNIT):
            for other in self._members(candidate, key, dependency):
                if other not in found:
                    found[other] = Dependency(other, dependency.until, dependency.ordered)
                    self.places[name, key, other] = dependency.index
        return tuple(found.values())

    def _members(self, candidate: Candidate, key: str, dependency: RawDependency) -> list[str]:
        reference, own = dependency.reference, candidate.unit.name
        if reference.kind is ReferenceKind.UNIT:
            if reference.name == own:
                inherited = candidate.relations[key].entry.source.path.endswith("/defaults.toml")
                hint = f"write {key} = [] into {own}.toml" if inherited else "take it out"
                self._refuse(candidate, candidate.problem(key, dependency.index, f"{own} names itself", hint))
                return []
            if reference.name in self._universe.masked and key in REQUIRING:
                self._missing(
                    candidate, key, dependency, f"{reference.name} is masked", "its file is empty: remove that"
                )
            elif reference.name not in self._universe.candidates and reference.name not in self._others:
                self._missing(
                    candidate, key, dependency, f"there is no unit {reference.name}", self._near(reference.name)
                )
            return [reference.name]
        if reference.kind is ReferenceKind.GROUP:
            members = sorted(name for name in self._groups.get(reference.name, ()) if name != own)
            if not members and own not in self._groups.get(reference.name, ()):
                near = get_close_matches(reference.name, self._groups, 1)
                hint = f"did you mean @{near[0]}?" if near else f'write groups = ["{reference.name}"] into its members'
                self._missing(candidate, key, dependency, f"the group @{reference.name} has no members", hint)
            return members
        instances = self._instances.get(reference.name, [])
        if not instances:
            exists = reference.name in self._universe.templates
            message = f"{reference.name} has no instances" if exists else f"there is no template {reference.name}"
            hint = "write [instances] count into it" if exists else self._near(reference.name)
            self._missing(candidate, key, dependency, message, hint)
        return sorted((name for name in instances if name != own), key=instance_order)

    def _missing(self, candidate: Candidate, key: str, dependency: RawDependency, message: str, hint: str) -> None:
        self.problems.append(candidate.problem(key, dependency.index, message, hint, warning=key not in REQUIRING))

    def _near(self, name: str) -> str:
        if f"{name}@" in self._universe.templates:
            return f"did you mean {name}@, all its instances?"
        near = get_close_matches(
            name, [*self._universe.candidates, *sorted(self._others), *sorted(self._universe.templates)], 1
        )
        return f"did you mean {near[0]}?" if near else ""


def check_limits(units: Mapping[str, Unit], candidates: Mapping[str, Candidate], limits: PoolLimits) -> list[Problem]:
    """Tell of units that can never start, because they and what they require do not fit into a limit together.

    They are loaded all the same: the limit may change while they wait.
    """
    return [_excess_problem(excess, candidates[excess.unit]) for excess in find_excess(units, limits)]


def _excess_problem(excess: Excess, candidate: Candidate) -> Problem:
    # A unit that needs more than one slot requires something.
    key = next(key for key in REQUIRING if key in candidate.relations)
    shown = ["; ".join(" -> ".join(chain) for chain in excess.chains[:CHAINS_SHOWN])]
    shown += [f"and {left} more" for left in [len(excess.chains) - CHAINS_SHOWN] if left > 0]
    return candidate.problem(
        key,
        None,
        f"it can never start: it needs {len(excess.holders)} slots of {label(excess.pool)} at a time, "
        f"and there are {excess.room} ({', '.join(shown)})",
        f"write {label(excess.pool)} = {len(excess.holders)} or more into supervisord.toml, or require less",
    )


def _names(dependencies: Iterable[Dependency]) -> tuple[str, ...]:
    return tuple(dependency.unit for dependency in dependencies)


def instance_order(name: str) -> tuple[str, int, str]:
    """Sorts ``worker@2`` before ``worker@10``."""
    prefix, _, instance = name.partition("@")
    return (prefix, int(instance) if instance.isdecimal() and instance.isascii() else -1, instance)


def ordering_edges(units: Iterable[Unit]) -> list[Edge]:
    """The ordering graph of resolved units, for waves and drawings."""
    return [edge for unit in units for edge in _edges(unit, {})]


def _edges(unit: Unit, places: Mapping[tuple[str, str, str], int | None]) -> list[Edge]:
    def index(key: str, other: str) -> int:
        place = places.get((unit.name, key, other))
        return -1 if place is None else place

    edges: list[Edge] = []
    for key, dependencies in (
        ("requires", unit.requires),
        ("requisite", unit.requisite),
        ("wants", unit.wants),
        ("binds-to", unit.binds_to),
        ("after", unit.after),
    ):
        for dependency in dependencies:
            if dependency.ordered:
                edges.append(Edge(dependency.unit, unit.name, unit.name, key, index(key, dependency.unit)))
    edges += [Edge(unit.name, other, unit.name, "before", index("before", other)) for other in unit.before]
    return edges


def _cycle_problem(cycle: tuple[Edge, ...], candidates: Mapping[str, Candidate]) -> Problem:
    """One problem for a cycle: at its first edge, with every edge's file and line in the hint."""
    # Told from each unit to what it waits for, as the files say it.
    steps = list(reversed(cycle))
    path = " -> ".join([steps[0].then, *(edge.first for edge in steps)])
    told: list[str] = []
    for edge in steps:
        place = candidates[edge.owner].problem(edge.key, edge.index if edge.index >= 0 else None, "")
        other = edge.first if edge.owner == edge.then else edge.then
        told.append(f"{place.file}:{place.line}: {edge.owner} has {edge.key} = {other}")
    last = next((edge for edge in steps if edge.key in ORDERING), steps[-1])
    return candidates[steps[0].owner].problem(
        steps[0].key,
        steps[0].index if steps[0].index >= 0 else None,
        f"ordering cycle: {path} ({'; '.join(told)})",
        f'take one of them out, or write {{ unit = "{last.first}", ordered = false }} into {last.owner}'
        if last.key in ORDERING
        else "take one of them out",
    )


def _spread(
    units: Mapping[str, Unit],
    bad: dict[str, BadUnit],
    members: list[str],
    problems: list[Problem],
    candidates: Mapping[str, Candidate],
) -> None:
    """Units that require a unit of a cycle go with it."""
    requirers: dict[str, list[tuple[str, str]]] = {}
    for unit in units.values():
        needed = (("requires", unit.requires), ("requisite", unit.requisite), ("binds-to", unit.binds_to))
        for key, dependencies in needed:
            for dependency in dependencies:
                requirers.setdefault(dependency.unit, []).append((unit.name, key))
    queue = list(members)
    while queue:
        lost = queue.pop(0)
        for name, key in sorted(requirers.get(lost, ())):
            if name not in bad:
                problem = candidates[name].problem(key, None, f"{lost} is bad-setting: {bad[lost].reason}")
                problems.append(problem)
                bad[name] = BadUnit(name, units[name].source.path, problem.public())
                queue.append(name)

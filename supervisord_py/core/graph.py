"""The relations of all units, looked up from both ends, and the order they impose.

Theory of operation
-------------------
An *edge* says that ``unit`` starts after ``other`` has got as far as ``until`` says. ``requires``, ``requisite``,
``binds-to`` and ``wants`` impose one unless ``ordered = false``; ``after`` is one; ``before`` is one seen from the
other end. Where several relations name the same pair, one edge remains: it waits for what comes latest. What the unit
cannot start without (requires, requisite, binds-to) is kept beside that: waiting for more does not mean to need more. A
graph is built once for a unit set, in sorted order.

Strict cycles are refused at load (``model.verify``); what is left here is looked for only among the jobs of a
transaction.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from supervisord_py.model.states import Until
from supervisord_py.model.unit import Dependency, Unit

LATENESS = {until: place for place, until in enumerate((Until.STARTED, Until.READY, Until.HEALTHY, Until.EXITED))}


class Edge(Struct, frozen=True):
    """``unit`` starts after ``other`` is ``until``."""

    unit: str
    other: str
    until: Until
    needed: Until | None = None
    """What ``unit`` cannot start without (requires)."""
    bound: Until | None = None
    """What ``unit`` can neither start nor be without (binds-to)."""
    present: Until | None = None
    """What has to be there already when ``unit`` starts (requisite)."""


class Relations(Struct):
    """What one unit has to do with others; tuples are in sorted order of the other unit."""

    requires: tuple[Dependency, ...] = ()
    requisite: tuple[Dependency, ...] = ()
    binds_to: tuple[Dependency, ...] = ()
    wants: tuple[Dependency, ...] = ()
    upholds: tuple[Dependency, ...] = ()
    part_of: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    """Units that go down with it (propagates-stop-to)."""
    conflicts: tuple[str, ...] = ()
    """Both ways: those it names."""
    conflicted_by: tuple[str, ...] = ()
    required_by: tuple[str, ...] = ()
    """By requires, requisite or binds-to."""
    bound_by: tuple[str, ...] = ()
    requisite_of: tuple[str, ...] = ()
    wanted_by: tuple[str, ...] = ()
    upheld_by: tuple[str, ...] = ()
    consists_of: tuple[str, ...] = ()
    """Units that are part of it."""
    after: tuple[Edge, ...] = ()
    """Edges to what it starts after."""
    before: tuple[str, ...] = ()
    """Units that start after it."""

    def follows_stops(self) -> tuple[str, ...]:
        """Return the units that are stopped and restarted with it."""
        return tuple(dict.fromkeys((*self.required_by, *self.consists_of)))


_NOTHING = Relations()


class Graph:
    """The relations of a set of units; names that no unit has keep the relations that point at them."""

    def __init__(self, units: Mapping[str, Unit]) -> None:
        self._relations: dict[str, Relations] = {}
        edges: dict[tuple[str, str], Edge] = {}
        for name in sorted(units):
            unit = units[name]
            own = self._of(name)
            own.requires, own.binds_to, own.wants = unit.requires, unit.binds_to, unit.wants
            own.requisite, own.upholds = unit.requisite, unit.upholds
            own.part_of = tuple(sorted(unit.part_of))
            own.stops = tuple(sorted(unit.propagates_stop_to))
            own.conflicts = tuple(sorted(unit.conflicts))
            for other in own.conflicts:
                self._of(other).conflicted_by += (name,)
            for other in own.part_of:
                if other != name:
                    self._of(other).consists_of += (name,)
            for dependency in own.upholds:
                if dependency.unit != name:
                    self._of(dependency.unit).upheld_by += (name,)
            for kind, dependencies in (
                ("requires", unit.requires),
                ("requisite", unit.requisite),
                ("binds-to", unit.binds_to),
                ("wants", unit.wants),
            ):
                for dependency in dependencies:
                    self._pull(name, kind, dependency)
                    if dependency.ordered:
                        until = dependency.until
                        needed = until if kind == "requires" else None
                        bound = until if kind == "binds-to" else None
                        present = until if kind == "requisite" else None
                        _add(edges, Edge(name, dependency.unit, until, needed, bound, present))
            for dependency in unit.after:
                _add(edges, Edge(name, dependency.unit, dependency.until))
            for other in unit.before:
                _add(edges, Edge(other, name, Until.READY))
        for unit_name, other in sorted(edges):
            self._of(unit_name).after += (edges[unit_name, other],)
            self._of(other).before += (unit_name,)
        order = {name: [edge.other for edge in own.after] for name, own in self._relations.items()}
        self.is_acyclic = find_cycle(order) is None
        """Whether the order of all units has no cycle; then no transaction needs to look for one."""

    def __getitem__(self, name: str) -> Relations:
        return self._relations.get(name, _NOTHING)

    def neighbours(self, name: str) -> Iterable[str]:
        """Every unit whose job may have waited for a change of ``name``."""
        own = self[name]
        yield from own.before
        for edge in own.after:
            yield edge.other
        yield from own.conflicts
        yield from own.conflicted_by

    def _of(self, name: str) -> Relations:
        relations = self._relations.get(name)
        if relations is None:
            relations = self._relations[name] = Relations()
        return relations

    def _pull(self, name: str, kind: str, dependency: Dependency) -> None:
        if dependency.unit == name:
            return
        other = self._of(dependency.unit)
        if kind == "wants":
            other.wanted_by += (name,)
            return
        if name not in other.required_by[-1:]:
            other.required_by += (name,)
        if kind == "binds-to":
            other.bound_by += (name,)
        elif kind == "requisite":
            other.requisite_of += (name,)


def _add(edges: dict[tuple[str, str], Edge], edge: Edge) -> None:
    """Keep one edge a pair: the latest of each kind that was said."""
    if edge.unit == edge.other:
        return
    key = (edge.unit, edge.other)
    known = edges.get(key)
    if known is None:
        edges[key] = edge
        return
    until = _latest(known.until, edge.until)
    assert until is not None
    edges[key] = Edge(
        edge.unit,
        edge.other,
        until,
        _latest(known.needed, edge.needed),
        _latest(known.bound, edge.bound),
        _latest(known.present, edge.present),
    )


def _latest(a: Until | None, b: Until | None) -> Until | None:
    return max((each for each in (a, b) if each is not None), key=lambda each: LATENESS[each], default=None)


def find_cycle(edges: Mapping[str, Iterable[str]]) -> list[str] | None:
    """Return a cycle of a directed graph as a list of nodes, first node not repeated, or None.

    Iterative depth-first search in the order of the mapping, so the same graph gives the same cycle.
    """
    done: dict[str, bool] = {}
    for root in edges:
        if root in done:
            continue
        path: list[str] = [root]
        done[root] = False
        stack = [iter(edges.get(root, ()))]
        while stack:
            for node in stack[-1]:
                if done.get(node) is False:
                    return path[path.index(node) :]
                if node not in done:
                    done[node] = False
                    path.append(node)
                    stack.append(iter(edges.get(node, ())))
                    break
            else:
                done[path.pop()] = True
                stack.pop()
    return None

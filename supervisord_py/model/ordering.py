"""The order in which units start, as a graph: cycles and start waves.

An edge says that ``first`` starts before ``then``. It comes from one entry of one unit's file, so that a cycle can be
told with its files. Edges of ``wants`` alone are *soft*: their order may be dropped to break a cycle; all others are
hard.

Laws (property tests): without what ``drop_soft`` chose the graph is acyclic; nothing is dropped from an acyclic graph;
only soft edges are ever dropped; the result does not depend on the order of the input.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct


class Edge(Struct, frozen=True, order=True):
    """``owner``'s file says under ``key`` that ``first`` starts before ``then``; ``index`` is the place in the key's
    list."""

    first: str
    then: str
    owner: str
    key: str
    index: int = -1

    @property
    def soft(self) -> bool:
        return self.key == "wants"


def hard_cycles(edges: Iterable[Edge]) -> list[tuple[list[str], tuple[Edge, ...]]]:
    """Find the knots of hard edges: the units of each, sorted, and a shortest cycle among them."""
    successors = _successors(edge for edge in edges if not edge.soft)
    return [(knot, _shortest_cycle(successors, knot)) for knot in _knots(successors)]


class Dropped(Struct, frozen=True):
    """A soft edge whose order was dropped, and the way from ``edge.then`` to ``edge.first`` that it would have
    closed."""

    edge: Edge
    way: tuple[str, ...]


def drop_soft(edges: Iterable[Edge]) -> list[Dropped]:
    """Choose soft edges whose order is dropped so that no cycle is left.

    Soft edges are taken in their sorted order, and each is kept that closes no cycle with what is kept already; so none
    of the dropped ones could have been kept beside the others.

    Args:
        edges: Without hard cycles.
    """
    left = sorted(edges)
    knot_of = {unit: number for number, knot in enumerate(_knots(_successors(left))) for unit in knot}
    # An edge that leaves a knot is part of no cycle.
    inside = [edge for edge in left if edge.first in knot_of and knot_of[edge.first] == knot_of.get(edge.then)]
    kept: dict[str, set[str]] = {}
    dropped: list[Dropped] = []
    for edge in sorted(inside, key=lambda edge: edge.soft):
        way = _way(kept, edge.then, edge.first) if edge.soft else ()
        if way:
            dropped.append(Dropped(edge, way))
        else:
            kept.setdefault(edge.first, set()).add(edge.then)
    return dropped


def _way(successors: Mapping[str, set[str]], start: str, goal: str) -> tuple[str, ...]:
    """A shortest way from ``start`` to ``goal``, both included; empty when there is none."""
    came_from = {start: start}
    queue = deque([start])
    while queue:
        unit = queue.popleft()
        if unit == goal:
            way = [unit]
            while way[-1] != start:
                way.append(came_from[way[-1]])
            return tuple(reversed(way))
        for target in sorted(successors.get(unit, ())):
            if target not in came_from:
                came_from[target] = unit
                queue.append(target)
    return ()


def start_waves(units: Iterable[str], edges: Iterable[Edge]) -> list[list[str]]:
    """Sort units into waves: each starts when the waves before it have.

    Args:
        units: Names; edges that touch others are left out.
        edges: Acyclic.
    """
    waiting = dict.fromkeys(sorted(units), 0)
    successors = _successors(edge for edge in edges if edge.first in waiting and edge.then in waiting)
    for targets in successors.values():
        for target in targets:
            waiting[target] += 1
    waves: list[list[str]] = []
    wave = [unit for unit, count in waiting.items() if not count]
    while wave:
        waves.append(wave)
        ready: list[str] = []
        for unit in wave:
            for target in successors.get(unit, {}):
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)
        wave = sorted(ready)
    assert sum(map(len, waves)) == len(waiting), "a cycle was not broken"
    return waves


_Successors = dict[str, dict[str, Edge]]
"""For each unit the units after it; of parallel edges the least."""


def _successors(edges: Iterable[Edge]) -> _Successors:
    successors: _Successors = {}
    for edge in sorted(edges):
        successors.setdefault(edge.first, {}).setdefault(edge.then, edge)
    return successors


def _knots(successors: _Successors) -> list[list[str]]:
    """The strongly connected components of more than one unit (or one that follows itself), sorted. Tarjan's algorithm,
    without recursion."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    on_path: set[str] = set()
    knots: list[list[str]] = []
    for root in successors:
        if root in number:
            continue
        work = [(root, iter(successors.get(root, ())))]
        number[root] = low[root] = len(number)
        path.append(root)
        on_path.add(root)
        while work:
            unit, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    path.append(target)
                    on_path.add(target)
                    work.append((target, iter(successors.get(target, ()))))
                    break
                if target in on_path:
                    low[unit] = min(low[unit], number[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[unit])
                if low[unit] == number[unit]:
                    knot = [path.pop()]
                    while knot[-1] != unit:
                        knot.append(path.pop())
                    on_path.difference_update(knot)
                    if len(knot) > 1 or unit in successors.get(unit, {}):
                        knots.append(sorted(knot))
    return sorted(knots)


def _shortest_cycle(successors: _Successors, knot: Sequence[str]) -> tuple[Edge, ...]:
    """A shortest way from the knot's first unit back to it."""
    start, members = knot[0], set(knot)
    came_by: dict[str, Edge] = {}
    queue = deque([start])
    while queue:
        unit = queue.popleft()
        for target, edge in successors.get(unit, {}).items():
            if target == start:
                cycle = [edge]
                while cycle[-1].first != start:
                    cycle.append(came_by[cycle[-1].first])
                return tuple(reversed(cycle))
            if target in members and target not in came_by:
                came_by[target] = edge
                queue.append(target)
    raise AssertionError("a strongly connected component without a cycle")

"""The dependency graph as text, for Graphviz, for Mermaid, and as values for JSON."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from supervisord_py.model.ordering import start_waves
from supervisord_py.model.states import Until
from supervisord_py.model.unit import Unit, UnitSet
from supervisord_py.model.verify import ordering_edges

_STYLES = {"requires": "solid", "binds-to": "bold", "wants": "dashed", "after": "dotted", "before": "dotted"}
_ARROWS = {
    "requires": "-->",
    "binds-to": "==>",
    "wants": "-.->",
    "after": "-.->",
    "before": "-.->",
    "conflicts": "x--x",
}


class Line(Struct, frozen=True):
    """``unit`` has ``kind`` = ``other``."""

    unit: str
    kind: str
    other: str
    until: str | None = None
    ordered: bool = False

    @property
    def label(self) -> str:
        """The kind, and what is unusual about it."""
        words = [self.kind]
        if self.until is not None and self.until != Until.READY.value:
            words.append(f"until {self.until}")
        if self.kind in ("requires", "wants", "binds-to") and not self.ordered:
            words.append("unordered")
        return ", ".join(words)


def graph_lines(unit_set: UnitSet) -> list[Line]:
    """All relations of all units, sorted by unit, in the order of the reference."""
    return [line for name in sorted(unit_set.units) for line in _lines(unit_set.units[name])]


def _lines(unit: Unit) -> list[Line]:
    lines: list[Line] = []
    for kind, dependencies in (
        ("requires", unit.requires),
        ("binds-to", unit.binds_to),
        ("wants", unit.wants),
        ("after", unit.after),
    ):
        for item in dependencies:
            lines.append(Line(unit.name, kind, item.unit, item.until.value if item.ordered else None, item.ordered))
    lines += [Line(unit.name, "before", other, None, True) for other in unit.before]
    lines += [Line(unit.name, "conflicts", other) for other in unit.conflicts]
    return lines


def waves(unit_set: UnitSet) -> list[list[str]]:
    """The units in the order in which they start, each wave when the ones before it have."""
    return start_waves(unit_set.units, ordering_edges(unit_set.units.values()))


def draw_text(unit_set: UnitSet) -> str:
    """Each unit with its relations below it."""
    lines: list[str] = []
    for name in sorted(unit_set.units):
        lines.append(name)
        lines += [f"  {line.label}: {line.other}" for line in _lines(unit_set.units[name])]
    return "\n".join(lines)


def draw_waves(unit_set: UnitSet) -> str:
    """A line a wave."""
    return "\n".join(f"{number}  {' '.join(wave)}" for number, wave in enumerate(waves(unit_set), 1))


def draw_dot(unit_set: UnitSet, *, order: bool = False) -> str:
    """For Graphviz; an arrow goes from a unit to what it needs. ``order`` puts the units of a wave beside each
    other."""
    lines = ["digraph units {", "  rankdir = LR", "  node [shape = box]"]
    lines += [f"  {_quoted(name)}" for name in _names(unit_set)]
    if order:
        lines += [f"  {{ rank = same; {'; '.join(map(_quoted, wave))} }}" for wave in waves(unit_set)]
    for line in graph_lines(unit_set):
        if line.kind == "conflicts":
            style = "style = dashed, color = red, dir = none"
        else:
            style = f"style = {_STYLES[line.kind]}"
        lines.append(f"  {_quoted(line.unit)} -> {_quoted(line.other)} [label = {_quoted(line.label)}, {style}]")
    return "\n".join([*lines, "}"])


def draw_mermaid(unit_set: UnitSet, *, order: bool = False) -> str:
    """For Mermaid; an arrow goes from a unit to what it needs. ``order`` makes a box of each wave."""
    # Names of units hold what Mermaid's own names may not.
    ids = {name: f"u{number}" for number, name in enumerate(_names(unit_set), 1)}
    lines = ["graph LR"]
    if order:
        for number, wave in enumerate(waves(unit_set), 1):
            lines.append(f'  subgraph w{number}["wave {number}"]')
            lines += [f'    {ids[name]}["{name}"]' for name in wave]
            lines.append("  end")
        lines += [f'  {ids[name]}["{name}"]' for name in ids if name not in unit_set.units]
    else:
        lines += [f'  {ids[name]}["{name}"]' for name in ids]
    lines += [
        f'  {ids[line.unit]} {_ARROWS[line.kind]}|"{line.label}"| {ids[line.other]}' for line in graph_lines(unit_set)
    ]
    return "\n".join(lines)


def graph_document(unit_set: UnitSet) -> dict[str, Any]:
    """For JSON: the units, the relations as ``edges``, and the start ``waves``."""
    return {
        "units": [
            {"name": name, "kind": unit.kind.value, "groups": list(unit.groups), "path": unit.source.path}
            for name, unit in sorted(unit_set.units.items())
        ],
        "edges": [
            {"from": line.unit, "to": line.other, "kind": line.kind, "until": line.until, "ordered": line.ordered}
            for line in graph_lines(unit_set)
        ],
        "waves": waves(unit_set),
    }


def _names(unit_set: UnitSet) -> Sequence[str]:
    """All units, and what they name that is none."""
    return sorted({*unit_set.units, *(line.other for line in graph_lines(unit_set))})


def _quoted(name: str) -> str:
    return f'"{name}"'

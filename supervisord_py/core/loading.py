"""Taking over a unit set: what is new, what changed, what is gone, and what lives on although its file is gone.

A unit runs by the text that its life began with; a new text holds from the next start. A unit whose file vanished (or
became unusable) stays supervised, restarts included, until it is at rest.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from supervisord_py.core.graph import Graph
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import REST
from supervisord_py.model.states import Severity
from supervisord_py.model.unit import Dependency, Unit, UnitSet


def take_over(ledger: Ledger, units: UnitSet, cause: int | None) -> None:
    """Make ``units`` the unit set, and write what that changed."""
    old = ledger.set
    ledger.set = units
    rebuild_graph(ledger)
    vanished: dict[str, None] = {}
    for name in sorted({**old.units, **old.bad, **units.units, **units.bad, **ledger.texts, **ledger.states}):
        before, now, bad = old.units.get(name), units.units.get(name), units.bad.get(name)
        if bad is not None and bad != old.bad.get(name):
            fields = {"path": bad.path, "reason": bad.reason}
            ledger.record(
                "unit.rejected", name, severity=Severity.ERROR, cause=cause, fields=fields, chain=False, asked=True
            )
        elif now is not None and now != before:
            change = "added" if before is None else "changed"
            ledger.record("unit.loaded", name, cause=cause, fields=_origin(now, change), chain=False, asked=True)
        if now is None and (before is not None or name in ledger.texts):
            vanished[name] = None
            ledger.touch_unit(name)
        elif now is None and bad is None and name not in units.masked and name not in ledger.globals.vanished:
            # Counters that survived the supervisor, of a unit that did not.
            ledger.states.pop(name, None)
            ledger.touch_unit(name)
    # What a job waits for may not be asked for any more, or be there under another name.
    ledger.cursors.clear()
    ledger.runnable |= dict.fromkeys(sorted(ledger.jobs))
    if vanished or ledger.globals.vanished:
        names = ledger.globals.vanished | vanished
        ledger.edit_globals().vanished = {name: None for name in names if name not in units.units}


def rebuild_graph(ledger: Ledger) -> None:
    """Relate all units of the set and those that live on without a file.

    A set has no cycle in its order, but what lives on may close one with it (a stood after b, and now b stands after
    a, whose file is gone): then the two sides keep their relations and lose the order between them, or neither could
    ever be stopped. What lives on may come of several older sets; if those contradict each other, no order of it holds.
    """
    lives_on = {name: text for name, text in ledger.texts.items() if name not in ledger.set.units}
    texts = {**ledger.set.units, **lives_on}
    ledger.graph = Graph(texts)
    for within in (True, False):
        if ledger.graph.is_acyclic or not lives_on:
            return
        ledger.graph = Graph({name: _loosened(text, lives_on, within=within) for name, text in texts.items()})


def _loosened(unit: Unit, lives_on: Mapping[str, Unit], *, within: bool) -> Unit:
    """Return the unit without the order between what lives on and the rest (without ``within``: any of the former)."""
    own = unit.name in lives_on

    def holds(other: str) -> bool:
        return own == (other in lives_on) and (within or not own)

    def loose(edges: tuple[Dependency, ...]) -> tuple[Dependency, ...]:
        return tuple(edge if holds(edge.unit) else replace(edge, ordered=False) for edge in edges)

    return replace(
        unit,
        requires=loose(unit.requires),
        requisite=loose(unit.requisite),
        wants=loose(unit.wants),
        binds_to=loose(unit.binds_to),
        after=tuple(edge for edge in unit.after if holds(edge.unit)),
        before=tuple(other for other in unit.before if holds(other)),
    )


def forget_if_vanished(ledger: Ledger, name: str) -> None:
    """Forget a unit whose file is gone once it is at rest with nothing left of it; one whose file is bad keeps its
    place.
    """
    if name not in ledger.globals.vanished or name in ledger.job_of:
        return
    state = ledger.state(name)
    if state.sub not in REST or state.leftover or state.held or state.former:
        return
    ledger.edit_globals().vanished.pop(name)
    ledger.drop_text(name)
    if name not in ledger.set.bad and name not in ledger.set.masked:
        ledger.record("unit.removed", name)
        ledger.states.pop(name, None)
        ledger.touch_unit(name)


def _origin(unit: Unit, change: str) -> dict[str, str]:
    return {"change": change, "path": unit.source.path, "digest": unit.source.digest}

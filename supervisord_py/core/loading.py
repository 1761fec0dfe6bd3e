"""Taking over a unit set: what is new, what changed, what is gone, and what lives on although its file is gone.

A life goes on by the loaded text but for what only a restart brings (``model.changes.take_live``), so most keys hold
from the reload on:

- A command that runs, and those after it of its list, are those that the list had when it was begun.
- A stop that has begun is finished under the ``kill-mode`` that it was begun under; so is the sweep after a command
  before the start.
- A time-out that changes while its phase runs is counted from the beginning of the phase, as in systemd; one that the
  process has extended, or that a shutdown has scaled, stays. A pause before a restart that has begun keeps its length.

A unit whose file vanished (or became unusable) stays supervised, restarts included, until it is at rest. What somebody
stopped, and what has run since the supervisor began, is not started by a reload.

Source: systemd, core/service.c (service_coldplug_timeout); core/unit.c (a unit whose file vanished is ``not-found``).
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from supervisord_py.core import health, life, listening, timed
from supervisord_py.core.graph import Graph
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.rollout_state import RolloutStep
from supervisord_py.core.state import ARMED, BETWEEN_LIVES, REST, STOPPING, UP
from supervisord_py.model.change_keys import Effect
from supervisord_py.model.changes import Change, UnitChange, plan, restart_keys
from supervisord_py.model.changes import take_live as live_text
from supervisord_py.model.states import Role, Severity, SubState
from supervisord_py.model.unit import Dependency, Service, Unit, UnitSet


def take_over(ledger: Ledger, units: UnitSet, cause: int | None) -> list[str]:
    """Make ``units`` the unit set, write what that changed, and let every life take over what it can.

    Returns:
        The enabled units that are to be started because they are new.
    """
    old = ledger.set
    changes = plan_of(ledger, units)
    ledger.set = units
    rebuild_graph(ledger)
    for change in changes:
        _record(ledger, change, cause)
    vanished: dict[str, None] = {}
    for name in sorted({**old.units, **old.bad, **ledger.texts, **ledger.states}):
        if name in units.units:
            take_live(ledger, name)
            listening.start_changed(ledger, name, old.units.get(name))
        elif name in old.units or name in ledger.texts:
            vanished[name] = None
            ledger.touch_unit(name)
        elif name not in units.bad and name not in units.masked and name not in ledger.globals.vanished:
            # Counters that survived the supervisor, of a unit that did not.
            ledger.note_refused(name, None)
            ledger.states.pop(name, None)
            ledger.touch_unit(name)
    # What a job waits for may not be asked for any more, or be there under another name.
    ledger.cursors.clear()
    ledger.runnable |= dict.fromkeys(sorted(ledger.jobs))
    if vanished or ledger.globals.vanished:
        names = ledger.globals.vanished | vanished
        ledger.edit_globals().vanished = {name: None for name in names if name not in units.units}
    return [each.unit for each in changes if each.effect is Effect.START and _is_new(ledger, each.unit, old)]


def take_limits(ledger: Ledger, units: UnitSet, names: Sequence[str]) -> None:
    """The processes of these units were given the limits that ``units`` sets: their lives go by them."""
    for name in names:
        running, loaded = ledger.texts.get(name), units.units.get(name)
        if running is None or loaded is None or running.service is None or loaded.service is None:
            continue
        own, new = running.service.context, loaded.service.context
        context = replace(own, rlimits=new.rlimits, nice=new.nice, priorities=new.priorities, resources=new.resources)
        ledger.keep_text(name, replace(running, service=replace(running.service, context=context)))
        ledger.touch_unit(name)


def plan_of(ledger: Ledger, units: UnitSet) -> tuple[UnitChange, ...]:
    """Say what taking over ``units`` would change."""
    lives: dict[str, Unit] = {}
    between: dict[str, Unit] = {}
    for name, text in ledger.texts.items():
        sub = ledger.state(name).sub
        if sub not in REST:
            (between if sub in BETWEEN_LIVES | ARMED else lives)[name] = text
    return plan(ledger.set, units, lives, between)


def restart_needed(ledger: Ledger, name: str) -> tuple[str, ...]:
    """Return the keys in which the unit's life differs from its loaded text; none while it has no life."""
    running, loaded = ledger.texts.get(name), ledger.set.units.get(name)
    sub = ledger.state(name).sub
    if running is None or loaded is None or sub in REST or sub in BETWEEN_LIVES | ARMED:
        return ()
    return restart_keys(running, loaded)


def _is_new(ledger: Ledger, name: str, old: UnitSet) -> bool:
    """A unit whose file is mended is new only if it was not there before the file broke."""
    state = ledger.state(name)
    return name not in old.bad or (not state.stopped and state.invocation is None)


def _record(ledger: Ledger, change: UnitChange, cause: int | None) -> None:
    name = change.unit
    if change.change is Change.BROKEN:
        fields: dict[str, object] = {"path": change.path, "reason": change.message}
        ledger.record(
            "unit.rejected", name, severity=Severity.ERROR, cause=cause, fields=fields, chain=False, asked=True
        )
        return
    fields = {"change": change.change.value, "path": change.path}
    if change.change is Change.REMOVED:
        # One that is at rest is forgotten at once, and that is told.
        if change.effect is Effect.KEEP:
            fields["change"] = "masked" if change.unit in ledger.set.masked else "vanished"
            ledger.record("unit.loaded", name, severity=Severity.WARNING, cause=cause, fields=fields, chain=False)
        return
    fields["digest"] = ledger.set.units[name].source.digest
    if change.keys:
        # Their values stay in the files: they may be secrets.
        fields["keys"] = [each.key for each in change.keys]
    if needed := [each.key for each in change.keys if each.effect is Effect.RESTART]:
        fields["needs_restart"] = needed
    ledger.record("unit.loaded", name, cause=cause, fields=fields, chain=False, asked=True)


# live keys


def take_live(ledger: Ledger, name: str) -> None:
    """Let a life go on by the loaded text, as far as that is possible now; what has to wait is taken over later."""
    running, loaded = ledger.texts.get(name), ledger.set.units.get(name)
    if running is None or loaded is None:
        return
    wanted = live_text(running, loaded)
    text = _unbroken(ledger, name, running, wanted)
    pending = ledger.globals.pending_texts
    if (name in pending) is (text == wanted):
        rest = {other: None for other in pending if other != name}
        ledger.edit_globals().pending_texts = rest if text == wanted else rest | {name: None}
    if text == running:
        return
    ledger.keep_text(name, text)
    ledger.touch_unit(name)
    if running.service is not None and text.service is not None:
        _rearm(ledger, name, running.service, text.service)
    timed.text_changed(ledger, name, running.timer, text.timer)
    listening.text_changed(ledger, name)
    state = ledger.state(name)
    if running.health != text.health and (state.awaits_health or state.sub in (SubState.RUNNING, SubState.RELOAD)):
        health.go_on(ledger, name, before=running.health)
        life.health_changed(ledger, name)


def _unbroken(ledger: Ledger, name: str, running: Unit, wanted: Unit) -> Unit:
    """Return ``wanted`` without what would change under the feet of what goes on at the moment."""
    state, own = ledger.state(name), running.service
    if own is None or wanted.service is None or own == wanted.service:
        return wanted
    service = wanted.service
    match state.control.role if state.control is not None else None:
        case Role.RELOAD:
            service = replace(service, exec_reload=own.exec_reload)
        case Role.STOP:
            service = replace(service, exec_stop=own.exec_stop)
        case Role.STOP_POST:
            service = replace(service, exec_stop_post=own.exec_stop_post)
    if state.sub in STOPPING or state.sweeping:
        service = replace(service, kill=replace(service.kill, mode=own.kill.mode))
    return replace(wanted, service=service)


_TIMEOUTS: dict[SubState, Callable[[Service], int | None]] = {
    **dict.fromkeys(
        (SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST, SubState.RELOAD),
        lambda service: service.timeout_start_ns,
    ),
    SubState.STOP_WATCHDOG: lambda service: service.timeout_abort_ns,
    **dict.fromkeys(STOPPING - {SubState.STOP_WATCHDOG, SubState.STUCK}, lambda service: service.timeout_stop_ns),
}
"""The time-out that bounds each phase."""


def _rearm(ledger: Ledger, name: str, old: Service, new: Service) -> None:
    """Move the deadlines that follow from keys that changed."""
    state = ledger.state(name)
    if state.healthy_at_ns is not None and old.restart.reset_ns != new.restart.reset_ns:
        begun_ns = state.healthy_at_ns - (old.restart.reset_ns or 0)
        ledger.arm_healthy_at(name, _after(begun_ns, new.restart.reset_ns))
    if old.runtime_max_ns != new.runtime_max_ns and state.sub in UP:
        _rearm_runtime(ledger, name, old, new)
    bound = _TIMEOUTS.get(state.sub)
    if bound is None or bound(old) == bound(new) or ledger.globals.shutdown is not None:
        return
    begun_ns = ledger.now.mono_ns if state.phase_at_ns is None else state.phase_at_ns
    if state.timeout_at_ns == _after(begun_ns, bound(old)):
        ledger.arm_phase_at(name, _after(begun_ns, bound(new)))


def _rearm_runtime(ledger: Ledger, name: str, old: Service, new: Service) -> None:
    state = ledger.edit(name)
    end_ns, begun_ns = state.runtime_end_ns, state.phase_at_ns or ledger.now.mono_ns
    if end_ns is not None and old.runtime_max_ns is not None:
        begun_ns = end_ns - old.runtime_max_ns
    state.runtime_end_ns = _after(begun_ns, new.runtime_max_ns)
    if state.sub is SubState.RUNNING and state.timeout_at_ns == end_ns:
        ledger.arm_phase_at(name, state.runtime_end_ns)


def _after(begun_ns: int, span_ns: int | None) -> int | None:
    return None if span_ns is None else begun_ns + span_ns


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
    if state.sub not in REST or state.leftover or state.held or state.former or state.freeze is not None:
        return
    ledger.edit_globals().vanished.pop(name)
    if state.stopped and ledger.rollout is not None and name in ledger.rollout.units:
        # Going back may bring its file back; that somebody has stopped it would be forgotten with it.
        unit = ledger.edit_rollout().units[name]
        unit.step, unit.message = RolloutStep.LEFT_OUT, f"{name} was stopped meanwhile"
    ledger.drop_text(name)
    if name not in ledger.set.bad and name not in ledger.set.masked:
        ledger.record("unit.removed", name)
        ledger.note_refused(name, None)
        ledger.states.pop(name, None)
        ledger.touch_unit(name)

"""Health checks: what is asked of a unit from outside, how often, and what follows from the answers.

Theory of operation
-------------------
The checks of a unit begin when its main process has started (and has said READY, if it does that): first those of kind
``startup``, the others when all of these are good. Each is *unknown* until ``success-threshold`` answers in a row were
good or ``failure-threshold`` bad; from then on it turns only when as many say the contrary. The start of a unit with
readiness or startup checks is done when all of them are good. Afterwards a bad readiness check is told and shown, and
what waits for ``until = "healthy"`` waits; a bad liveness check, or a startup check that fails for good, leads to its
``action``, which counts as a failure of the unit like any other.

A startup check that was good is not asked again, nor is one of the output: what a life has said it has said. A reload
that has a check look at something else begins with it anew.

A check is never asked twice at a time. One that is a command is a process beside the life (``beside``), the others are
asked of the host (``RunProbe``). Where an action may follow, the processes are looked at before a bad answer counts:
those that are stopped cannot answer, and are not blamed; nor for the first bad answer after that, whose question may
be from before. While a unit is paused nothing is asked.

Laws: no answer of one life changes another; an action follows from ``failure-threshold`` bad answers in a row and from
nothing less.

Source: kubelet, pkg/kubelet/prober/worker.go (thresholds, order of the kinds); system-anchors 2.4.
"""

from msgspec.structs import replace

from supervisord_py.core import beside, processes
from supervisord_py.core.actions import LookAtProcesses, RunProbe
from supervisord_py.core.events import ProbeFinished, ProcessesSeen
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.restart import jitter_ns
from supervisord_py.core.state import ProbeState
from supervisord_py.model.states import ProbeAction, ProbeKind, Role, Severity
from supervisord_py.model.unit import Probe, RestartPolicy

DETAIL_MAX = 200
_STOPPED = "its processes were stopped"
_JITTER = RestartPolicy(jitter=0.1)
"""Units that start together are not asked together for ever."""

_GATES = (ProbeKind.READINESS, ProbeKind.STARTUP)


def gates(ledger: Ledger, name: str) -> bool:
    """Tell whether the start of the unit has to wait for its health checks."""
    return any(probe.kind in _GATES for probe in _probes(ledger, name))


def is_satisfied(ledger: Ledger, name: str) -> bool:
    """Tell whether all checks that the start waits for are good."""
    return all(_is_good(ledger, name, probe) for probe in _probes(ledger, name) if probe.kind in _GATES)


def is_healthy(ledger: Ledger, name: str) -> bool:
    """Tell whether every check is good now."""
    return all(_is_good(ledger, name, probe) for probe in _probes(ledger, name))


def is_undecided(ledger: Ledger, name: str) -> bool:
    """Tell whether it is not known yet how the unit is: no check is bad, and one has not said anything for sure."""
    probes = ledger.state(name).probes
    found = [probes[each.name].good if each.name in probes else None for each in _probes(ledger, name)]
    return None in found and False not in found


def begin(ledger: Ledger, name: str) -> None:
    """The main process has started: begin to ask."""
    ledger.edit(name).probes = {}
    go_on(ledger, name)


def go_on(ledger: Ledger, name: str, before: tuple[Probe, ...] = ()) -> None:
    """Ask what is to be asked at this stage and is not being asked: at the start, after a reload, after a pause.

    ``before`` are the checks of the text that a reload has replaced.
    """
    wanted = {probe.name: probe for probe in _probes(ledger, name)}
    others = {old.name for old in before if old.name in wanted and _subject(old) != _subject(wanted[old.name])}
    if not processes.is_alive(ledger, name):
        return
    state = ledger.edit(name)
    for gone in [each for each in state.probes if each not in wanted or each in others]:
        _stop(ledger, name, gone)
        state.probes = {each: found for each, found in state.probes.items() if each != gone}
    startup_is_over = all(_is_good(ledger, name, each) for each in wanted.values() if each.kind is ProbeKind.STARTUP)
    for probe in wanted.values():
        known = state.probes.get(probe.name)
        is_its_turn = probe.kind is ProbeKind.STARTUP or startup_is_over
        if not is_its_turn or (known is not None and (known.is_asked or _is_over(probe, known))):
            continue
        delay_ns = probe.initial_delay_ns if known is None else 0
        _schedule(ledger, name, probe, known or ProbeState(), delay_ns)


def end(ledger: Ledger, name: str) -> None:
    """The life is ending: nothing is asked any more, and what was found says nothing about what comes."""
    state = ledger.state(name)
    if state.probes:
        for probe in list(state.probes):
            _stop(ledger, name, probe)
        ledger.edit(name).probes = {}


def stand_still(ledger: Ledger, name: str) -> None:
    """The unit is paused: what is known stays."""
    for probe in list(ledger.state(name).probes):
        _stop(ledger, name, probe)


def deadline(ledger: Ledger, name: str, probe_name: str) -> None:
    """It is time to ask."""
    probe, known = _probe(ledger, name, probe_name), ledger.state(name).probes[probe_name]
    if probe is None:
        return
    found = replace(known)
    found.at_ns, found.asked_ns = None, ledger.now.mono_ns
    if probe.exec is not None:
        found.spawn_id = beside.run(ledger, name, probe_name, Role.PROBE, probe.exec, probe.timeout_ns)
    else:
        found.probe_id = ledger.new_look_id()
        ledger.act(RunProbe(found.probe_id, name, probe_name, probe))
    _set(ledger, name, probe_name, found)


def probe_finished(ledger: Ledger, event: ProbeFinished) -> bool:
    """Take an answer of the host; returns whether it was waited for."""
    known = ledger.state(event.unit).probes.get(event.name)
    if known is None or known.probe_id != event.probe_id:
        return False
    _answered(ledger, event.unit, event.name, event.ok, event.detail)
    return True


def command_ended(ledger: Ledger, result: beside.Ended) -> None:
    """Take the end of a command as its answer; one that nobody saw is none."""
    if result.name in ledger.state(result.unit).probes:
        _answered(ledger, result.unit, result.name, result.ok, result.detail)


def _answered(ledger: Ledger, name: str, probe_name: str, ok: bool | None, detail: str) -> None:
    probe = _probe(ledger, name, probe_name)
    found = replace(ledger.state(name).probes[probe_name])
    found.probe_id = found.spawn_id = None
    if probe is None:
        return
    if ok is False and probe.kind is not ProbeKind.READINESS and probe.action is not ProbeAction.NONE:
        found.look_id, found.bad = ledger.new_look_id(), detail[:DETAIL_MAX]
        _set(ledger, name, probe_name, found)
        ledger.act(LookAtProcesses(found.look_id, name))
        return
    _count(ledger, name, probe, found, ok, detail)


def _count(ledger: Ledger, name: str, probe: Probe, found: ProbeState, ok: bool | None, detail: str) -> None:
    if ok is not None:
        found.stopped = False
        found.detail, found.checked_wall_ns = detail[:DETAIL_MAX], ledger.now.wall_ns
        found.row = found.row + 1 if found.ok is ok else 1
        found.ok = ok
    elif found.ok is None:
        found.detail = detail[:DETAIL_MAX]
    threshold = probe.success_threshold if found.ok else probe.failure_threshold
    if found.ok is not None and found.row >= threshold and found.good is not found.ok:
        found.good = found.ok
        _set(ledger, name, probe.name, found)
        _tell(ledger, name, probe, found)
        ledger.changed[name] = None
    pause_ns = max(0, found.asked_ns + probe.interval_ns - ledger.now.mono_ns)
    _schedule(ledger, name, probe, found, pause_ns)
    if found.good is True and probe.kind is ProbeKind.STARTUP:
        go_on(ledger, name)


def seen(ledger: Ledger, event: ProcessesSeen) -> tuple[Probe, str] | None:
    """Let a bad answer count, unless the processes are stopped; return the check whose action is due, and what it
    found."""
    name = event.unit
    for probe_name, known in ledger.state(name).probes.items():
        if known.look_id != event.look_id:
            continue
        found, probe = replace(known), _probe(ledger, name, probe_name)
        detail, was_stopped = found.bad, found.stopped
        found.look_id, found.bad, found.stopped = None, "", event.stopped
        _set(ledger, name, probe_name, found)
        if probe is None:
            return None
        if event.stopped or was_stopped:
            _count(ledger, name, probe, found, None, _STOPPED)
            return None
        _count(ledger, name, probe, found, False, detail)
        if found.good is not False or found.row < probe.failure_threshold:
            return None
        times = "once" if found.row == 1 else f"{found.row} times in a row"
        return probe, f"its {probe.kind.value} check {probe_name} failed {times}: {found.detail}"
    return None


def pending(ledger: Ledger, name: str) -> list[RunProbe | LookAtProcesses]:
    """Return what was asked of the host and not answered: a new manager asks again."""
    asked: list[RunProbe | LookAtProcesses] = []
    for probe_name, known in ledger.state(name).probes.items():
        probe = _probe(ledger, name, probe_name)
        if known.probe_id is not None and probe is not None:
            asked.append(RunProbe(known.probe_id, name, probe_name, probe))
        if known.look_id is not None:
            asked.append(LookAtProcesses(known.look_id, name))
    return asked


def _tell(ledger: Ledger, name: str, probe: Probe, found: ProbeState) -> None:
    fields: dict[str, object] = {
        "probe": probe.name,
        "kind": probe.kind.value,
        "good": found.good,
        "message": found.detail,
        "count": found.row,
    }
    severity = Severity.INFO if found.good else Severity.WARNING
    ledger.record("unit.health", name, severity=severity, fields=fields, chain=False)


def _schedule(ledger: Ledger, name: str, probe: Probe, found: ProbeState, delay_ns: int) -> None:
    if _is_over(probe, found):
        _set(ledger, name, probe.name, found)
        return
    found = replace(found)
    found.at_ns = ledger.now.mono_ns + delay_ns
    if found.asked_ns:
        found.at_ns += jitter_ns(_JITTER, probe.interval_ns, ledger.draw())
    _set(ledger, name, probe.name, found)
    ledger.arm_probe(name, probe.name, found.at_ns)


def _stop(ledger: Ledger, name: str, probe_name: str) -> None:
    """Ask no more; an answer that is on its way says nothing."""
    found = replace(ledger.state(name).probes[probe_name])
    if found.spawn_id is not None and found.spawn_id in ledger.beside:
        beside.kill(ledger, found.spawn_id)
    found.at_ns = found.probe_id = found.spawn_id = found.look_id = None
    _set(ledger, name, probe_name, found)


def _set(ledger: Ledger, name: str, probe_name: str, found: ProbeState) -> None:
    state = ledger.edit(name)
    state.probes = {**state.probes, probe_name: found}


def _probes(ledger: Ledger, name: str) -> tuple[Probe, ...]:
    unit = ledger.unit(name)
    return unit.health if unit is not None and unit.service is not None else ()


def _probe(ledger: Ledger, name: str, probe_name: str) -> Probe | None:
    return next((each for each in _probes(ledger, name) if each.name == probe_name), None)


def _subject(probe: Probe) -> Probe:
    """What a check looks at, without how often and what follows."""
    return Probe(
        probe.name,
        probe.kind,
        exec=probe.exec,
        http=probe.http,
        tcp=probe.tcp,
        unix=probe.unix,
        file=probe.file,
        log=probe.log,
    )


def _is_over(probe: Probe, found: ProbeState) -> bool:
    """Whether a check has done its work for this life."""
    return found.good is True and (probe.kind is ProbeKind.STARTUP or probe.log is not None)


def _is_good(ledger: Ledger, name: str, probe: Probe) -> bool:
    known = ledger.state(name).probes.get(probe.name)
    return known is not None and known.good is True

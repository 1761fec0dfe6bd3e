"""What people are shown: the manager's state as values of ``model.status``. Nothing here changes anything."""

from collections.abc import Mapping, Sequence
from typing import Any

from supervisord_py.core import demand, pool, timed
from supervisord_py.core.graph import Graph, Relations
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.loading import plan_of, restart_needed
from supervisord_py.core.manager import Manager
from supervisord_py.core.rollout import in_order, needing_restart
from supervisord_py.core.rollout_state import RolloutStep
from supervisord_py.core.shutdown import code_of_life
from supervisord_py.core.state import REST, ProbeState, UnitState
from supervisord_py.core.why import explain, in_a_sentence
from supervisord_py.model.changes import UnitChange
from supervisord_py.model.states import ActiveState, JobState, JobType, LoadState, Role, SubState
from supervisord_py.model.status import Exit, HealthStatus, JobStatus, UnitStatus, WhyLine
from supervisord_py.model.unit import Unit, UnitSet

_NAMED_MAX = 5
"""So many holders of slots are named."""

_IN_ROLLOUT = (RolloutStep.RESTARTING, RolloutStep.PROBATION)

DepsEdge = tuple[str, str, str | None, str, int]
"""Unit, kind of relation, until, active state, depth."""


def list_units(manager: Manager) -> list[str]:
    """Return the names of all units: those of the unit set, bad ones, and those that live on without a file."""
    ledger = manager.ledger
    return sorted({**ledger.set.units, **ledger.set.bad, **ledger.texts, **ledger.globals.vanished})


def active_states(manager: Manager) -> list[ActiveState]:
    """Return the state of every unit, by name."""
    return [manager.ledger.shown_active(name) for name in list_units(manager)]


def totals(manager: Manager) -> tuple[int, int]:
    """Return how many automatic restarts and failures are counted of all units."""
    states = manager.ledger.states.values()
    return sum(state.restarts for state in states), sum(state.failures for state in states)


def is_stopping(manager: Manager) -> bool:
    """Tell whether the supervisor is shutting down."""
    return manager.ledger.globals.shutdown is not None


def is_over(manager: Manager) -> bool:
    """Tell whether the end of the supervisor is decided (``ExitSupervisor``).

    No request to the keeper goes with that decision, so a manager that takes over a state of which this is true has to
    carry the end out again: nothing in the core will ask for it a second time.
    """
    shutdown = manager.ledger.globals.shutdown
    return shutdown is not None and shutdown.exited


def exit_code(manager: Manager, unit: str | None = None) -> int:
    """Return the code that the supervisor ends with: 0, or that of the unit whose end began the shutdown; or the code
    that stands for the last life of ``unit``."""
    if unit is not None:
        return code_of_life(manager.ledger.state(unit))
    shutdown = manager.ledger.globals.shutdown
    return 0 if shutdown is None else shutdown.code


def unit_status(manager: Manager, name: str) -> UnitStatus:
    """Return one unit as ``status`` shows it; a name that nothing defines is ``not-found``."""
    ledger = manager.ledger
    state, unit, bad = ledger.state(name), ledger.unit(name), ledger.set.bad.get(name)
    active = ledger.shown_active(name)
    path = unit.source.path if unit is not None else bad.path if bad is not None else None
    return UnitStatus(
        name=name,
        description=unit.description if unit is not None else "",
        load_state=_load_state(ledger, name).value,
        active_state=active.value,
        sub_state=_sub_state(ledger, name, active).value,
        result=state.result.value,
        pid=_shown_pid(state),
        invocation=state.invocation,
        since=timed.format_wall(state.since_wall_ns) if state.since_wall_ns else None,
        restarts=state.restarts,
        failures=state.failures,
        exit=_exit(state),
        status_text=state.status_text,
        path=path or None,
        transient=unit is not None and unit.transient is not None,
        enabled=_is_enabled(ledger, name),
        why=in_a_sentence(ledger, name),  # what ``why`` begins with: following the chain is for whoever asks
        needs_restart=bool(restart_needed(ledger, name)),
        condition_result=state.unmet is None if state.checked_wall_ns else None,
        condition_at=timed.format_wall(state.checked_wall_ns) if state.checked_wall_ns else None,
        condition_unmet=state.unmet,
        health=_health(state, unit),
        next_elapse=_next_elapse(ledger, state),
        last_elapse=_last_elapse(state),
        **_sockets(ledger, name),
        has_run=state.started or state.invocation is None,
        degraded=() if state.main is None else state.main.degraded,
    )


def made_by(manager: Manager, name: str) -> str | None:
    """Return the unit for a connection to which this one was made; None of any other unit."""
    connection = manager.ledger.state(name).connection
    return None if connection is None else connection.unit


def _sockets(ledger: Ledger, name: str) -> dict[str, Any]:
    found, unit = ledger.state(name).sockets, ledger.unit(name)
    if found is None or unit is None:
        return {}
    is_open = found.held and found.asked is None and unit.sockets is not None
    return {
        "sockets": unit.sockets.addresses if is_open and unit.sockets is not None else (),
        "accepted": found.came,
        "connections": len(found.instances),
        "stored": found.stored,
    }


def _shown_pid(state: UnitState) -> int | None:
    """The main process, or that of the stub: what runs under the name of the unit."""
    if state.main is not None:
        return state.main.pid
    return state.control.pid if state.is_stub and state.control is not None else None


def _next_elapse(ledger: Ledger, state: UnitState) -> str | None:
    at_ns = timed.next_wall_ns(ledger, state)
    return None if at_ns is None else timed.format_wall(at_ns)


def _last_elapse(state: UnitState) -> str | None:
    last_ns = None if state.timer is None else state.timer.last_wall_ns
    return None if last_ns is None else timed.format_wall(last_ns)


def has_timer(manager: Manager, name: str) -> bool:
    """Tell whether a unit is one that is run by the clock."""
    return timed.has_timer(manager.ledger, name)


def main_pid(manager: Manager, name: str) -> int | None:
    """Return the main process of a unit, None when it has none."""
    main = manager.ledger.state(name).main
    return None if main is None else main.pid


def invocation(manager: Manager, name: str) -> str | None:
    """Return the id of the unit's life, or of its last one; None when it has had none."""
    return manager.ledger.state(name).invocation


def began_ns(manager: Manager, name: str) -> int:
    """Return when the life of a unit, or its last one, began [CLOCK_MONOTONIC ns]; 0 when it has had none."""
    return manager.ledger.state(name).began_ns


def is_restarted(manager: Manager, name: str) -> bool:
    """Tell whether a unit that is at rest is about to start: it was stopped to be started again."""
    job = manager.ledger.job_of.get(name)
    return job is not None and job.type in (JobType.START, JobType.RESTART)


def is_known(manager: Manager, name: str) -> bool:
    """Tell whether there is such a unit, or something that runs as one."""
    return name in manager.ledger.set.units or name in manager.ledger.set.bad or name in manager.ledger.texts


def is_at_rest(manager: Manager, name: str) -> bool:
    """Tell whether nothing of a unit runs or is left, and nothing is about to start it; so it is with one that there is
    not."""
    ledger = manager.ledger
    state = ledger.state(name)
    is_down = state.sub in REST and not state.is_stub and name not in ledger.job_of
    return is_down and not (state.leftover or state.held or state.former or state.freeze is not None)


def has_failed(manager: Manager, name: str) -> bool:
    """Tell whether a unit has failed for good, or is quarantined."""
    return manager.ledger.shown_active(name) in (ActiveState.FAILED, ActiveState.QUARANTINED)


def since_ns(manager: Manager, name: str) -> int:
    """Return when a unit's active state changed last [ns of the wall clock]; 0 when it never did."""
    return manager.ledger.state(name).since_wall_ns


def restart_keys(manager: Manager, name: str) -> tuple[str, ...]:
    """Return the keys (``TABLE.KEY``) in which a unit's life differs from the text that is loaded."""
    return restart_needed(manager.ledger, name)


def reload_plan(manager: Manager, units: UnitSet) -> tuple[UnitChange, ...]:
    """Return what loading ``units`` would change, and what follows for each unit."""
    return plan_of(manager.ledger, units)


def apply_order(manager: Manager, units: UnitSet, names: Sequence[str]) -> list[str]:
    """Return what ``apply`` would restart if ``units`` were loaded, in its order; of ``names`` only, unless empty."""
    return in_order(Graph(units.units), needing_restart(units, manager.ledger.texts, names or None))


def held(manager: Manager) -> list[str]:
    """Return the units of which something was spawned since they were last released: what was made for them is in use,
    though no process of theirs may run now."""
    return [name for name, state in manager.ledger.states.items() if state.held]


def processes(manager: Manager) -> list[tuple[int, str, Role]]:
    """Return spawn id, unit and role of each process whose end has not been told."""
    return [
        (process.spawn_id, name, process.role)
        for name, state in manager.ledger.states.items()
        for process in (state.main, state.control)
        if process is not None
    ]


def lives(manager: Manager) -> Mapping[str, Unit]:
    """Return the text that each unit with a life runs by."""
    return manager.ledger.texts


def rollout_units(manager: Manager) -> tuple[str, ...]:
    """Return the units of the rollout that is under way; none without one."""
    rollout = manager.ledger.rollout
    return () if rollout is None else tuple(rollout.units)


def knows_token(manager: Manager, token: str) -> bool:
    """Tell whether a request with this token was taken before, so that the same one again attaches to it."""
    return any(entry.token == token for entry in manager.ledger.tokens.values())


def is_under_way(manager: Manager, job_id: int) -> bool:
    """Tell whether a job has not ended, and waits for something else than a slot."""
    job = manager.ledger.jobs.get(job_id)
    return job is not None and job.pool is None


def slot_awaited(manager: Manager, job_id: int) -> str:
    """Say of which limit a job waits for a slot, and how many do; nothing where it does not."""
    ledger = manager.ledger
    job = ledger.jobs.get(job_id)
    if job is None or job.pool is None:
        return ""
    place, count = ledger.places[job.id]
    return f"it waits for a slot, number {place} of {count}: {pool.describe(ledger, job.pool)}"


def jobs(manager: Manager) -> list[JobStatus]:
    """Return all jobs by number, with the units that the waiting ones wait for."""
    ledger = manager.ledger
    return [
        JobStatus(
            job=job.id,
            unit=job.unit,
            type=job.type.value,
            state=job.state.value,
            waiting_for=tuple(demand.blockers(ledger, job)) if job.state is JobState.WAITING else (),
            limit=None if job.pool is None else job.pool or "max-workers",
            position=ledger.places[job.id][0] if job.id in ledger.places else None,
        )
        for _, job in sorted(ledger.jobs.items())
    ] + _rollout_jobs(ledger)


def _rollout_jobs(ledger: Ledger) -> list[JobStatus]:
    """Return the numbers that a rollout has given out: cancelling one of them ends it."""
    rollout = ledger.rollout
    if rollout is None:
        return []
    before = [name for name, unit in rollout.units.items() if unit.step in _IN_ROLLOUT]
    return [
        JobStatus(
            job=unit.job,
            unit=name,
            type="rollout",
            state=(JobState.RUNNING if name in before else JobState.WAITING).value,
            waiting_for=() if name in before else tuple(before),
        )
        for name, unit in rollout.units.items()
        if name in before or unit.step is RolloutStep.WAITING
    ]


def why(manager: Manager, name: str) -> list[WhyLine]:
    """Say what keeps a unit from being plainly active, nearest cause first; follows what it waits for to the end of
    the chain.
    """
    return explain(manager.ledger, name)


def deps(manager: Manager, name: str, reverse: bool = False) -> list[DepsEdge]:
    """Return what a unit pulls in and waits for (or, reversed, who needs it), depth first; each unit is opened once."""
    ledger = manager.ledger
    known = dict.fromkeys(list_units(manager))
    edges: list[DepsEdge] = []
    opened = {name: None}
    stack = [(each, 1) for each in reversed(_edges_of(ledger, name, reverse))]
    while stack:
        (other, kind, until), depth = stack.pop()
        if reverse and other not in known:
            continue
        edges.append((other, kind, until, ledger.shown_active(other).value, depth))
        if other not in opened:
            opened[other] = None
            stack.extend((each, depth + 1) for each in reversed(_edges_of(ledger, other, reverse)))
    return edges


def _edges_of(ledger: Ledger, name: str, reverse: bool) -> list[tuple[str, str, str | None]]:
    relations = ledger.graph[name]
    edges: list[tuple[str, str, str | None]] = []
    if reverse:
        for others, kind in (
            (relations.required_by, "required-by"),
            (relations.wanted_by, "wanted-by"),
            (relations.upheld_by, "upheld-by"),
            (relations.consists_of, "consists-of"),
            (relations.conflicted_by, "conflicted-by"),
        ):
            edges += [(other, _reversed(relations, other, kind), None) for other in others]
        listed = {other for other, _, _ in edges}
        edges += [(other, "before", None) for other in relations.before if other not in listed]
        return edges
    for dependencies, kind in (
        (relations.requires, "requires"),
        (relations.requisite, "requisite"),
        (relations.binds_to, "binds-to"),
        (relations.wants, "wants"),
        (relations.upholds, "upholds"),
    ):
        edges += [(each.unit, kind, each.until.value) for each in dependencies]
    edges += [(other, "part-of", None) for other in relations.part_of]
    edges += [(other, "propagates-stop-to", None) for other in relations.stops]
    listed = {other for other, _, _ in edges}
    edges += [(edge.other, "after", edge.until.value) for edge in relations.after if edge.other not in listed]
    return edges + [(other, "conflicts", None) for other in relations.conflicts]


def _reversed(relations: Relations, other: str, kind: str) -> str:
    if kind != "required-by":
        return kind
    if other in relations.bound_by:
        return "bound-by"
    return "requisite-of" if other in relations.requisite_of else kind


def _is_enabled(ledger: Ledger, name: str) -> bool:
    """Whether the unit will start with the supervisor: what was loaded last counts, not what its life runs by."""
    loaded = ledger.set.units.get(name)
    if loaded is not None:
        return loaded.enabled
    living = ledger.texts.get(name)
    return living is not None and living.enabled and name in ledger.set.bad


def _load_state(ledger: Ledger, name: str) -> LoadState:
    if name in ledger.set.bad:
        return LoadState.REJECTED if ledger.set.bad[name].rejected else LoadState.BAD_SETTING
    if name in ledger.set.masked:
        return LoadState.MASKED
    connection = ledger.state(name).connection
    if connection is not None:
        # It has no file of its own: its unit's is what it was made by.
        name = connection.unit
    return LoadState.LOADED if name in ledger.set.units else LoadState.NOT_FOUND


def _sub_state(ledger: Ledger, name: str, active: ActiveState) -> SubState:
    """A unit at rest whose start waits is shown by what it waits for."""
    if active is not ActiveState.QUEUED:
        return ledger.state(name).sub
    job = ledger.job_of.get(name)
    return SubState.POOL if job is not None and job.pool is not None else SubState.DEPENDENCY


def _health(state: UnitState, unit: Unit | None) -> tuple[HealthStatus, ...]:
    """Return what the health checks of a unit have found in this life."""
    if unit is None or not unit.health:
        return ()
    shown = []
    for probe in unit.health:
        found = state.probes.get(probe.name, ProbeState())
        at = timed.format_wall(found.checked_wall_ns) if found.checked_wall_ns else None
        shown.append(HealthStatus(probe.name, probe.kind.value, probe.check, found.good, found.detail, at))
    return tuple(shown)


def _exit(state: UnitState) -> Exit | None:
    if state.exit_code is None and state.exit_signal is None:
        return None
    return Exit(code=state.exit_code, signal=state.exit_signal)

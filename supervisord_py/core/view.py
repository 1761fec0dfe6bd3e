"""What people are shown: the manager's state as values of ``model.status``. Nothing here changes anything."""

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from supervisord_py.core import demand, processes, stopping
from supervisord_py.core.graph import Graph, Relations
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.loading import plan_of, restart_needed
from supervisord_py.core.manager import Manager
from supervisord_py.core.orders import describe
from supervisord_py.core.restart import is_limit_hit
from supervisord_py.core.rollout import in_order, needing_restart
from supervisord_py.core.shutdown import code_of_life
from supervisord_py.core.state import BETWEEN_LIVES, REST, STARTING, STOPPING, Ending, LastLife, RolloutStep, UnitState
from supervisord_py.model.changes import UnitChange
from supervisord_py.model.states import ActiveState, JobState, JobType, LoadState, Result, SubState
from supervisord_py.model.status import Exit, JobStatus, UnitStatus, WhyLine
from supervisord_py.model.unit import Unit, UnitSet

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

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
        sub_state=_sub_state(state, active).value,
        result=state.result.value,
        pid=state.main.pid if state.main is not None else None,
        invocation=state.invocation,
        since=_rfc3339(state.since_wall_ns) if state.since_wall_ns else None,
        restarts=state.restarts,
        failures=state.failures,
        exit=_exit(state),
        status_text=state.status_text,
        path=path or None,
        enabled=_is_enabled(ledger, name),
        why=_sentence(_reasons(ledger, name)),  # what ``why`` begins with: following the chain is for whoever asks
        needs_restart=bool(restart_needed(ledger, name)),
        condition_result=state.unmet is None if state.checked_wall_ns else None,
        condition_at=_rfc3339(state.checked_wall_ns) if state.checked_wall_ns else None,
        condition_unmet=state.unmet,
        has_run=state.started or state.invocation is None,
    )


def restart_keys(manager: Manager, name: str) -> tuple[str, ...]:
    """Return the keys (``TABLE.KEY``) in which a unit's life differs from the text that is loaded."""
    return restart_needed(manager.ledger, name)


def reload_plan(manager: Manager, units: UnitSet) -> tuple[UnitChange, ...]:
    """Return what loading ``units`` would change, and what follows for each unit."""
    return plan_of(manager.ledger, units)


def apply_order(manager: Manager, units: UnitSet, names: Sequence[str]) -> list[str]:
    """Return what ``apply`` would restart if ``units`` were loaded, in its order; of ``names`` only, unless empty."""
    return in_order(Graph(units.units), needing_restart(units, manager.ledger.texts, names or None))


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
    ledger = manager.ledger
    lines: list[WhyLine] = []
    seen: dict[str, None] = {}
    queue = deque([name])
    while queue:
        current = queue.popleft()
        if current in seen:
            continue
        seen[current] = None
        found = _reasons(ledger, current)
        lines += found
        queue.extend(line.unit for line in found if line.unit is not None and line.unit != current)
    return lines


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
        return LoadState.BAD_SETTING
    if name in ledger.set.masked:
        return LoadState.MASKED
    return LoadState.LOADED if name in ledger.set.units else LoadState.NOT_FOUND


def _sub_state(state: UnitState, active: ActiveState) -> SubState:
    """A unit at rest whose start waits is shown by what it waits for."""
    return SubState.DEPENDENCY if active is ActiveState.QUEUED else state.sub


def _exit(state: UnitState) -> Exit | None:
    if state.exit_code is None and state.exit_signal is None:
        return None
    return Exit(code=state.exit_code, signal=state.exit_signal)


def _rfc3339(wall_ns: int) -> str:
    moment = _EPOCH + timedelta(microseconds=wall_ns // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _sentence(lines: list[WhyLine]) -> str | None:
    """Return what ``status`` says; of a unit that runs only that it runs by a text that is no more."""
    if lines and lines[0].kind != "running":
        return lines[0].message
    return next((line.message for line in lines if line.kind in ("bad-setting", "disabled")), None)


def _reasons(ledger: Ledger, name: str) -> list[WhyLine]:
    """Return the causes that lie in the unit itself, and the units they point at."""
    state, bad, unit = ledger.state(name), ledger.set.bad.get(name), ledger.unit(name)
    seq = state.cause
    job = ledger.job_of.get(name)
    if bad is not None and state.sub in REST:
        return [WhyLine("bad-setting", f"its file is invalid: {bad.reason}", advice=f"supervisord-py check {bad.path}")]
    if name in ledger.set.masked and state.sub in REST:
        return [WhyLine("disabled", "it is masked: nothing starts it", advice=f"supctl unmask {name}")]
    if unit is None:
        return [WhyLine("bad-setting", f"no file defines {name}", advice="supctl list")]
    if job is not None and job.state is JobState.WAITING and job.type is not JobType.NOP:
        waiting = demand.blockers(ledger, job)
        kind = "conflict" if job.type is JobType.STOP else "dependency"
        lines = [
            WhyLine(kind, f"its {job.type.value} job {job.id} waits for {other}", unit=other, seq=job.cause)
            for other in waiting
        ]
        if lines:
            return lines
    if job is not None and job.checking:
        return [WhyLine("starting", "its conditions are being looked at", seq=job.cause)]
    if state.sub is SubState.STUCK:
        return [WhyLine("stuck", stopping.stuck_message(ledger, name), seq=seq, advice=f"supctl stop {name}")]
    if state.sub in BETWEEN_LIVES:
        ended = f": {state.message}" if state.message else ""
        message = f"it ended ({state.result.value}) and is restarted{ended}"
        return [WhyLine("backoff", message, seq=seq, advice=f"supctl start {name}")]
    if state.sub is SubState.DEPENDENCY:
        return _missing_dependencies(ledger, name, state)
    upholder = None if state.uphold_at_ns is None else demand.upholder(ledger, name)
    if upholder is not None and state.sub in REST:
        ended = f": {state.message}" if state.message else ""
        message = f"it ended ({state.result.value}) and is started after a pause, because {upholder} upholds it{ended}"
        return [WhyLine("backoff", message, seq=seq, advice=f"supctl start {name}")]
    if state.sub is SubState.FAILED:
        return [_failed(state, unit, name)]
    if state.sub in STARTING:
        lines = [WhyLine("starting", _starting(ledger, name), seq=seq, advice=f"supctl logs -f {name}")]
        return lines + _source(state) if state.monitor is not None or (state.order and state.order.by) else lines
    if state.sub in STOPPING:
        kinds = {Ending.ORDER: "operator", Ending.BOUND: "dependency", Ending.ITSELF: "failed"}
        return [WhyLine("operator" if state.stopped else kinds[state.ending], _stopping(state), seq=seq)]
    if state.sub is SubState.DEAD:
        return [_at_rest(state, unit.enabled, name)]
    lines = _running(state, name)
    if bad is not None:
        reason = f"its file has become invalid, it runs on by the text before: {bad.reason}"
        lines.append(WhyLine("bad-setting", reason, advice=f"supervisord-py check {bad.path}"))
    elif name in ledger.set.masked:
        reason = "it is masked since, it runs on by the text that it has until it stops"
        lines.append(WhyLine("disabled", reason, advice=f"supctl unmask {name}"))
    elif name not in ledger.set.units:
        lines.append(WhyLine("bad-setting", "no file defines it any more, it runs on by the text that it has"))
    return lines


def _running(state: UnitState, name: str) -> list[WhyLine]:
    """A unit that somebody or something started is explained by that, one that runs again after a failure by the life
    before.
    """
    lines = [WhyLine("running", "it is running", seq=state.cause)]
    before = state.last_life
    if state.restarts and before is not None:
        after = "" if before.runtime_ms is None else f" after {before.runtime_ms / 1000:.1f}s"
        message = (
            f"the life before ended ({_end_of(before)}){after}; "
            f"automatic restarts: {state.restarts}, failures counted: {state.failures}"
        )
        lines.append(WhyLine("failed", message, advice=f"supctl lives {name}"))
    source = _source(state)
    return [*lines, *source] if state.order is not None and state.order.past else [lines[0], *source, *lines[1:]]


def _source(state: UnitState) -> list[WhyLine]:
    """Say who or what started a unit, and point at the unit whose end did."""
    order = state.order
    if order is None or order.verb == "stopped" or not (order.by or order.note or order.reason):
        return []
    source = state.monitor.unit if state.monitor is not None else None
    which = "an earlier life" if order.past else "it"
    return [WhyLine("operator", f"{which} was {describe(order)}", unit=source)]


def _stopping(state: UnitState) -> str:
    """Say why a unit is stopping: an order, a bond, or how its life ended."""
    order = state.order
    if state.ending is not Ending.ITSELF and order is not None and order.verb != "started" and not order.past:
        return f"it is stopping: it was {describe(order)}"
    return f"it is stopping: {state.message}" if state.message else "it is stopping"


def _end_of(life: LastLife) -> str:
    if life.signal is not None:
        return f"{life.result.value}: killed by {life.signal}"
    return life.result.value if life.code is None else f"{life.result.value}: exit code {life.code}"


def _failed(state: UnitState, unit: Unit, name: str) -> WhyLine:
    ended = f": {state.message}" if state.message else ""
    limited = state.ending is Ending.ITSELF and state.result is not Result.DEPENDENCY and unit.service is not None
    if limited and unit.service is not None and is_limit_hit(unit.service.restart, state.failures):
        message = f"it has failed {state.failures} times and is not restarted any more ({state.result.value}){ended}"
        return WhyLine("failed", message, seq=state.cause, advice=f"supctl lives {name}")
    message = f"it failed ({state.result.value}){ended}"
    return WhyLine("failed", message, seq=state.cause, advice=f"supctl logs {name}")


def _starting(ledger: Ledger, name: str) -> str:
    """What its start waits for, where that is not the process itself."""
    service = ledger.service(name)
    if ledger.state(name).following is not None and service is not None and service.pid_file is not None:
        return f"it waits for its pid file {service.pid_file}"
    return (
        "it is idle until the jobs of the other units are done"
        if processes.is_idling(ledger, name)
        else "it is starting"
    )


def _missing_dependencies(ledger: Ledger, name: str, state: UnitState) -> list[WhyLine]:
    relations = ledger.graph[name]
    lines = [
        WhyLine("dependency", f"it waits for {each.unit} to be {each.until.value}", unit=each.unit, seq=state.cause)
        for each in (*relations.requires, *relations.binds_to)
        if not demand.is_met(ledger, each.unit, each.until)
    ]
    lines += [
        WhyLine("dependency", f"it has to find {each.unit} active, and never starts it", unit=each.unit)
        for each in relations.requisite
        if not demand.is_kept(ledger, each.unit, each.until)
    ]
    message = state.message or "it waits for a dependency"
    return lines or [WhyLine("dependency", message, seq=state.cause, advice=f"supctl start {name}")]


def _at_rest(state: UnitState, enabled: bool, name: str) -> WhyLine:
    if state.unmet is not None and state.message and state.unmet in state.message:
        return WhyLine("condition", state.message, seq=state.cause, advice=f"supctl start {name}")
    order = state.order if state.order is not None and state.order.verb == "stopped" else None
    if state.stopped:
        told = describe(order) if order is not None else "stopped"
        return WhyLine("operator", f"it was {told}", seq=state.cause, advice=f"supctl start {name}")
    if state.message:
        return WhyLine("operator", state.message, seq=state.cause, advice=f"supctl start {name}")
    if state.order is not None and state.order.verb == "restarted" and state.ending is Ending.ORDER:
        called_off = f"it was {describe(state.order)}, and that was called off half-way"
        return WhyLine("operator", called_off, seq=state.cause, advice=f"supctl start {name}")
    if order is not None and order.reason and state.ending is Ending.ORDER:
        return WhyLine("operator", f"it was {describe(order)}", seq=state.cause, advice=f"supctl start {name}")
    if state.last_life is None and not enabled:
        return WhyLine("disabled", "it is not enabled", advice=f"supctl start {name}")
    if state.last_life is not None and state.result is Result.SUCCESS:
        return WhyLine("operator", "it ended, and its policy does not restart it", seq=state.cause)
    return WhyLine("operator", "nobody has started it", advice=f"supctl start {name}")

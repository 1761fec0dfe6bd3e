"""Why a unit is as it is: the causes in words, nearest first, and what to type next. Nothing here changes anything.

Each cause is a line: what it is about, what kind it is of, and the particulars (who, which limit, until when). Lines of
other units follow where a unit waits for them, to the end of the chain. Moments are said as moments, not as spans: what
was decided does not change while it is read.
"""

from collections import deque

from msgspec.structs import replace

from supervisord_py.core import demand, listening, pool, processes, quarantine, restart, stopping, timed
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.orders import describe
from supervisord_py.core.state import (
    BETWEEN_LIVES,
    REST,
    STARTING,
    STOPPING,
    Ending,
    Job,
    LastLife,
    Order,
    UnitState,
)
from supervisord_py.model.states import JobState, JobType, Result, ServiceType, SubState
from supervisord_py.model.status import WhyLine
from supervisord_py.model.unit import Probe, Service

_NAMED_MAX = 5
"""So many holders of slots are named."""

_FOUND_BY = {Result.WATCHDOG: "watchdog", Result.PROGRESS: "watchdog", Result.HEALTH: "probe"}
"""The kind of a failure that something else has found than the end of a process."""


def explain(ledger: Ledger, name: str) -> list[WhyLine]:
    """Return all causes, nearest first; each unit is explained once."""
    lines: list[WhyLine] = []
    seen: dict[str, None] = {}
    queue = deque([name])
    while queue:
        current = queue.popleft()
        if current in seen:
            continue
        seen[current] = None
        found = _reasons(ledger, current)
        lines += [replace(line, about=current) for line in found]
        queue.extend(line.unit for line in found if line.unit is not None and line.unit != current)
    return lines


def in_a_sentence(ledger: Ledger, name: str) -> str | None:
    """Return what ``status`` says; of a unit that runs only what is amiss: its text, its checks, whom it stands on."""
    lines = _reasons(ledger, name)
    if lines and lines[0].kind != "running":
        return lines[0].message
    amiss = ("bad-setting", "disabled", "probe", "quarantine")
    return next((line.message for line in lines if line.kind in amiss), None)


def _reasons(ledger: Ledger, name: str) -> list[WhyLine]:
    """Return the causes that lie in the unit itself, and the units they point at."""
    state, bad, unit = ledger.state(name), ledger.set.bad.get(name), ledger.unit(name)
    seq = state.cause
    job = ledger.job_of.get(name)
    if bad is not None and bad.rejected and state.sub in REST:
        return [WhyLine("bad-setting", f"it was rejected: {bad.reason}")]
    if bad is not None and state.sub in REST:
        return [WhyLine("bad-setting", f"its file is invalid: {bad.reason}", advice=f"supervisord-py check {bad.path}")]
    if name in ledger.set.masked and state.sub in REST:
        return [WhyLine("disabled", "it is masked: nothing starts it", advice=f"supctl unmask {name}")]
    if unit is None:
        return [WhyLine("bad-setting", f"no file defines {name}", advice="supctl list")]
    if job is not None and job.state is JobState.WAITING and job.type is not JobType.NOP:
        lines = [_waits_for(ledger, job, other) for other in demand.blockers(ledger, job)]
        if lines:
            return lines
    if job is not None and job.pool is not None:
        return [_queued(ledger, job), *_life_before(state, name)]
    if job is not None and job.checking:
        return [WhyLine("starting", "its conditions are being looked at", seq=job.cause)]
    if state.sub is SubState.STUCK:
        return [WhyLine("stuck", stopping.stuck_message(ledger, name), seq=seq, advice=f"supctl stop {name}")]
    if state.is_stub:
        return _quarantined(ledger, name)
    if state.sub in BETWEEN_LIVES:
        return [_restarted(ledger, name, state)]
    if state.sub is SubState.DEPENDENCY:
        return _missing_dependencies(ledger, name, state)
    upholder = None if state.uphold_at_ns is None else demand.upholder(ledger, name)
    if upholder is not None and state.sub in REST:
        at = "" if state.uphold_at_ns is None else f" at {_moment(ledger, state.uphold_at_ns)}"
        message = f"it ended ({state.result.value}) and is started{at}, because {upholder} upholds it"
        return [WhyLine("backoff", message + _what(state), seq=seq, advice=f"supctl lives {name}")]
    if state.sub is SubState.DEAD and state.uphold_refused is not None and demand.upholder(ledger, name) is not None:
        message = f"it is upheld by {demand.upholder(ledger, name)}, but its start was refused: {state.uphold_refused}"
        return [WhyLine("conflict", message, seq=seq, advice=f"supctl start {name}")]
    if state.sub in (SubState.DEAD, SubState.FAILED) and state.left_alone is not None and not state.quarantined:
        alone = WhyLine("limit", state.left_alone, seq=seq, advice=f"supctl start {name}")
        return [alone, *(_failed(ledger, name) if state.sub is SubState.FAILED else [])]
    if state.sub is SubState.FAILED:
        return _failed(ledger, name)
    if state.awaits_health:
        lines = _unhealthy(ledger, name) or [WhyLine("starting", "it is starting", seq=seq)]
        return lines + _time_out(ledger, state, "starting", "then its start has failed")
    if state.sub in STARTING:
        lines = [WhyLine("starting", _starting(ledger, name), seq=seq, advice=f"supctl logs -f {name}")]
        if state.monitor is not None or (state.order and state.order.by):
            lines += _source(state)
        if not processes.is_idling(ledger, name):
            lines += _time_out(ledger, state, "starting", "then its start has failed")
        return lines + _life_before(state, name)
    if state.sub in STOPPING:
        kinds = {
            Ending.ORDER: "operator",
            Ending.IDLE: "socket",
            Ending.BOUND: "dependency",
            Ending.ITSELF: _kind(state.result),
        }
        kind = "operator" if state.stopped else kinds[state.ending]
        follows = "then it is killed" if _is_asked_to_end(ledger, name) else "then it is asked more strongly"
        return [WhyLine(kind, _stopping(state), seq=seq), *_time_out(ledger, state, kind, follows)]
    if state.sub is SubState.DEAD:
        return [_at_rest(ledger, state, unit.enabled, name)]
    if state.sub is SubState.PAUSED:
        return [_paused(state, name)]
    if job is not None and job.opening:
        return [WhyLine("starting", "its sockets are being opened", seq=job.cause)]
    if state.sub is SubState.LISTENING:
        return [_listens(ledger, name, state), *_source(state)]
    if state.sub is SubState.WAITING:
        return [_waits_for_its_time(ledger, name, state), *_source(state)]
    return [*_running(ledger, state, name), *_text_of_old(ledger, name)]


def _text_of_old(ledger: Ledger, name: str) -> list[WhyLine]:
    """Say that a unit runs on by a text that is no more."""
    if (bad := ledger.set.bad.get(name)) is not None:
        reason = f"its file has become invalid, it runs on by the text before: {bad.reason}"
        return [WhyLine("bad-setting", reason, advice=f"supervisord-py check {bad.path}")]
    if name in ledger.set.masked:
        reason = "it is masked since, it runs on by the text that it has until it stops"
        return [WhyLine("disabled", reason, advice=f"supctl unmask {name}")]
    if name not in ledger.set.units and ledger.state(name).connection is None:
        return [WhyLine("bad-setting", "no file defines it any more, it runs on by the text that it has")]
    return []


# waiting


def _waits_for(ledger: Ledger, job: Job, other: str) -> WhyLine:
    """Say for which unit a job waits: one that must be there first, or one that must be gone."""
    relations = ledger.graph[job.unit]
    message = f"its {job.type.value} job {job.id} waits for {other}"
    is_conflict = other in relations.conflicts or other in relations.conflicted_by
    if is_conflict and job.type is not JobType.STOP:
        message += ", which conflicts with it, to stop"
    return WhyLine("conflict" if is_conflict else "dependency", message, unit=other, seq=job.cause)


def _queued(ledger: Ledger, job: Job) -> WhyLine:
    """Say of which limit a start waits for a slot, whose turn comes before, and who holds the slots."""
    assert job.pool is not None
    place, count = ledger.places[job.id]
    held = pool.holders(ledger, job.pool)
    named = [f"{each} (stuck)" if ledger.state(each).sub is SubState.STUCK else each for each in held]
    most = ", ".join(named[:_NAMED_MAX]) + (f" and {len(named) - _NAMED_MAX} more" if len(named) > _NAMED_MAX else "")
    message = f"it waits for a slot, number {place} of {count}: {pool.describe(ledger, job.pool)}, held by {most}"
    stuck = next((each for each in held if ledger.state(each).sub is SubState.STUCK), None)
    return WhyLine("pool", message, unit=stuck, seq=job.cause, advice="supctl jobs")


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


def _waits_for_its_time(ledger: Ledger, name: str, state: UnitState) -> WhyLine:
    at_ns = timed.next_wall_ns(ledger, state)
    if at_ns is None:
        message = "its times count from a run, and it has not been run yet"
    else:
        message = f"it is not due until {_wall(at_ns)}"
    if state.result not in (Result.SUCCESS, Result.EXEC_CONDITION):
        message += f"; its last run failed ({state.result.value})" + _what(state)
    elif state.unmet is not None and state.skipped:
        message += f"; its last run was skipped: {state.unmet} does not hold"
    return WhyLine("timer", message, seq=state.cause, advice=f"supctl trigger {name}")


def _listens(ledger: Ledger, name: str, state: UnitState) -> WhyLine:
    """Say what the unit listens on, and why it does not at the moment."""
    unit, found = ledger.unit(name), listening.of(ledger, name)
    assert unit is not None and unit.sockets is not None
    message = f"it listens on {' and '.join(unit.sockets.addresses)}"
    if found.resume_at_ns is not None and found.refused:
        message += (
            f"; the last connection could not start it, and it is tried again at {_moment(ledger, found.resume_at_ns)}"
        )
    elif found.resume_at_ns is not None:
        message += f"; it was started {len(found.triggers_ns)} times in too short a time by connections: those that"
        message += f" have come since wait until {_moment(ledger, found.resume_at_ns)}"
    elif listening.is_full(ledger, name):
        message += f"; {len(found.instances)} connections are open, and max-connections allows no more"
    elif not unit.sockets.accepts:
        message += ": the first connection starts it"
    if state.result not in (Result.SUCCESS, Result.EXEC_CONDITION):
        message += f"; its last run failed ({state.result.value})" + _what(state)
    elif state.unmet is not None and state.skipped:
        message += f"; its last run was skipped: {state.unmet} does not hold"
    return WhyLine("socket", message, seq=state.cause, advice=f"supctl trigger {name}")


# starting, running, stopping


def _starting(ledger: Ledger, name: str) -> str:
    """Say what a start waits for."""
    state, service = ledger.state(name), ledger.service(name)
    if state.following is not None and service is not None and service.pid_file is not None:
        return f"it waits for its pid file {service.pid_file}"
    if processes.is_idling(ledger, name):
        return "it is idle until the jobs of the other units are done"
    message = "it is starting"
    if state.control is not None:
        message += f": its exec-{state.control.role.value} command runs"
    elif state.main is not None and state.main.pid is not None and service is not None:
        if service.type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
            message += ": it has not said READY=1 yet"
        elif service.type is ServiceType.ONESHOT:
            message += ": it is done when its command has ended"
    return message


def _time_out(ledger: Ledger, state: UnitState, kind: str, follows: str) -> list[WhyLine]:
    """Say how long the present phase may last, and what comes then."""
    if state.timeout_at_ns is None:
        return []
    return [WhyLine(kind, f"it has until {_moment(ledger, state.timeout_at_ns)}: {follows}")]


def _is_asked_to_end(ledger: Ledger, name: str) -> bool:
    """Tell whether the present phase is the last one before the final signal."""
    service = ledger.service(name)
    is_signalled = ledger.state(name).sub in (SubState.STOP_SIGTERM, SubState.FINAL_SIGTERM, SubState.STOP_WATCHDOG)
    return is_signalled and service is not None and service.kill.send_sigkill


def _unhealthy(ledger: Ledger, name: str) -> list[WhyLine]:
    """Name the health checks that are not good, with what they found last."""
    state, unit = ledger.state(name), ledger.unit(name)
    lines = []
    for probe in unit.health if unit is not None else ():
        found = state.probes.get(probe.name)
        if found is not None and found.good is True:
            continue
        if found is None or found.ok is None:
            words = "has not answered yet"
        else:
            words = f"{'was good' if found.ok else 'failed'} {'once' if found.row == 1 else f'{found.row} times'}"
            words += f" ({_subject(probe)})"
            words += f": {found.detail}" if found.detail else ""
        if state.awaits_health or (found is not None and found.good is False):
            message = f"its {probe.kind.value} check {probe.name} {words}"
            lines.append(WhyLine("probe", message, seq=state.cause, advice=f"supctl logs {name}"))
    return lines


def _subject(probe: Probe) -> str:
    """Say what a check looks at: its program only, where it is a command, and no query of a URL."""
    if probe.exec is not None:
        return f"exec {probe.exec.words[0]}"
    text = probe.http or probe.tcp or probe.unix or probe.file or probe.log or ""
    return f"{probe.check} {text.partition('?')[0] if probe.http else text}"


def _running(ledger: Ledger, state: UnitState, name: str) -> list[WhyLine]:
    """A unit that somebody or something started is explained by that, one that runs again after a failure by the life
    before.
    """
    lines, source = [WhyLine("running", "it is running", seq=state.cause)], _source(state)
    is_past = state.order is not None and state.order.past
    lines += [] if is_past else source
    lines += _life_before(state, name)
    lines += source if is_past else []
    for kind, watch in state.watches.items():
        if watch.stopped:
            message = f"its processes are stopped (by a signal, or a debugger): {kind.value}-sec waits until they go on"
            lines.append(WhyLine("watchdog", message, advice=f"supctl kill -s SIGCONT {name}"))
    return lines + _unhealthy(ledger, name) + _stood_in_for(ledger, name)


def _life_before(state: UnitState, name: str) -> list[WhyLine]:
    """Say how the life before ended, of a unit that was restarted since: also while it starts, or waits for a slot."""
    before = state.last_life
    if not state.restarts or before is None:
        return []
    after = "" if before.runtime_ms is None else f" after {before.runtime_ms / 1000:.1f}s"
    message = (
        f"the life before ended ({_end_of(before)}){after}; "
        f"automatic restarts: {state.restarts}, failures counted: {state.failures}"
    )
    return [WhyLine(_kind(before.result), message, advice=f"supctl lives {name}")]


def _source(state: UnitState) -> list[WhyLine]:
    """Say who or what started a unit, and point at the unit whose end did."""
    order = state.order
    if order is None or order.verb == "stopped" or not (order.by or order.note or order.reason):
        return []
    source = state.monitor.unit if state.monitor is not None else None
    which = "an earlier life" if order.past else "it"
    return [WhyLine("operator", f"{which} was {describe(order)}", unit=source)]


def _stood_in_for(ledger: Ledger, name: str) -> list[WhyLine]:
    """Name the units that this one needs and that are only there as stubs."""
    relations = ledger.graph[name]
    return [
        WhyLine(
            "quarantine",
            f"it is degraded: {each.unit}, which it needs, is quarantined, and a stub runs in its place",
            unit=each.unit,
        )
        for each in (*relations.requires, *relations.binds_to)
        if ledger.state(each.unit).is_stub
    ]


def _stopping(state: UnitState) -> str:
    """Say why a unit is stopping: an order, a bond, or how its life ended."""
    order = state.order
    if state.ending is Ending.IDLE:
        return "it is stopping: nothing has come to it for its idle-exit-sec"
    if state.ending is not Ending.ITSELF and order is not None and order.verb != "started" and not order.past:
        return f"it is stopping: it was {describe(order)}"
    return "it is stopping" + _what(state)


def _paused(state: UnitState, name: str) -> WhyLine:
    order = state.paused_by
    by = "" if order is None else describe(Order("paused", order.by, order.note)).removeprefix("paused")
    return WhyLine("operator", f"it was paused{by}", seq=state.cause, advice=f"supctl resume {name}")


# failed


def _restarted(ledger: Ledger, name: str, state: UnitState) -> WhyLine:
    """Say after what a unit is restarted, when, and how many failures it has left."""
    is_good = state.result is Result.SUCCESS
    message = "it ended" if is_good else f"it failed ({state.result.value}), {_count(ledger, name, state)},"
    if state.sub is SubState.AUTO_RESTART and state.timeout_at_ns is not None:
        message += f" and is restarted at {_moment(ledger, state.timeout_at_ns)}"
    else:
        message += " and is being restarted"
    return WhyLine("backoff", message + _what(state), seq=state.cause, advice=f"supctl lives {name}")


def _count(ledger: Ledger, name: str, state: UnitState) -> str:
    service = ledger.service(name)
    most = 0 if service is None else service.restart.failures
    return f"failure {state.failures} of {most}" if most else f"failure {state.failures}"


def _failed(ledger: Ledger, name: str) -> list[WhyLine]:
    state, service = ledger.state(name), ledger.service(name)
    if state.quarantined:
        return _quarantined(ledger, name)
    advice = f"supctl logs {name}"
    if state.result is Result.DEPENDENCY:
        missing = _missing_dependencies(ledger, name, state)
        message = f"it failed ({state.result.value}){_what(state)}"
        # The unit that is to blame says what to do; without one there is nothing left but to start this one.
        first = missing[0]
        return [WhyLine("dependency", message, unit=first.unit, seq=state.cause, advice=first.advice)]
    if state.result is Result.START_LIMIT_HIT:
        return [WhyLine("limit", f"it failed ({state.result.value}){_what(state)}", seq=state.cause, advice=advice)]
    left = "" if service is None else _not_restarted(state, service)
    message = f"it failed ({state.result.value}){left}{_what(state)}"
    return [WhyLine(_kind(state.result), message, seq=state.cause, advice=advice)]


def _not_restarted(state: UnitState, service: Service) -> str:
    """Say which setting left a unit down that has ended by itself."""
    if state.ending is not Ending.ITSELF or state.last_life is None:
        return ""
    main = processes.main_status(state)
    oneshot = service.type is ServiceType.ONESHOT
    if restart.wants_restart(service.restart, state.result, oneshot=oneshot, main=main):
        return ""
    if main is not None and restart.is_among(main, service.restart.prevent):
        return ", and restart-prevent-exit-status leaves it down"
    return f', and restart = "{service.restart.restart.value}" leaves it down'


def _quarantined(ledger: Ledger, name: str) -> list[WhyLine]:
    """Say how often it has failed, what runs in its place, and how it gets out of there."""
    state = ledger.state(name)
    times = "once" if state.failures == 1 else f"{state.failures} times"
    message = f"it is quarantined: it has failed {times} ({state.result.value}){_what(state)}"
    if state.is_stub:
        message += "; its stub runs in its place" if quarantine.stands_in(state) else "; its stub is being changed"
    elif state.stub_failed:
        message += "; its stub has ended too"
    way_out = "nothing starts it until somebody releases it, which forgets its failures"
    if state.retry_at_ns is not None and not state.stopped:
        message += f"; it is tried again at {_moment(ledger, state.retry_at_ns)}"
        way_out = "a release starts it at once, and forgets its failures"
    return [
        WhyLine("quarantine", message, seq=state.cause, advice=f"supctl lives {name}"),
        WhyLine("quarantine", way_out, advice=f"supctl release {name}"),
    ]


def _at_rest(ledger: Ledger, state: UnitState, enabled: bool, name: str) -> WhyLine:
    if state.unmet is not None and state.message and state.unmet in state.message:
        return WhyLine("condition", state.message, seq=state.cause, advice=f"supctl start {name}")
    order = state.order if state.order is not None and state.order.verb == "stopped" else None
    if state.stopped:
        told = describe(order) if order is not None else "stopped"
        return WhyLine("operator", f"it was {told}", seq=state.cause, advice=f"supctl start {name}")
    if state.message:
        kind = "timer" if state.message == timed.ELAPSED else "operator"
        return WhyLine(kind, state.message, seq=state.cause, advice=f"supctl start {name}")
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


# words


def _kind(result: Result) -> str:
    return _FOUND_BY.get(result, "failed")


def _what(state: UnitState) -> str:
    """What went wrong last, behind what followed from it."""
    return f": {state.message}" if state.message else ""


def _end_of(life: LastLife) -> str:
    if life.message is not None:
        return f"{life.result.value}: {life.message}"
    if life.signal is not None:
        return f"{life.result.value}: killed by {life.signal}"
    return life.result.value if life.code is None else f"{life.result.value}: exit code {life.code}"


def _moment(ledger: Ledger, mono_ns: int) -> str:
    return _wall(ledger.now.wall_ns + mono_ns - ledger.now.mono_ns)


def _wall(wall_ns: int) -> str:
    """Write a wall time for people, in UTC and to the second; what is sooner than that is over when it is read."""
    return f"{timed.format_wall(wall_ns)[:19].replace('T', ' ')} UTC"

"""The end of everything: stops in order, time-outs scaled into what is allowed, then force, then the exit.

Nine tenths of the time belong to the ordered stop. The worst case of each unit is added up along the order (a unit
stops when its dependents have); if the longest such chain does not fit, every stop time-out is scaled down by the same
ratio, an infinite one first cut to the whole. After the nine tenths everything that is left is killed, and at the end
of the time the supervisor exits even if a process does not die: a stop that never ends is no stop.
"""

from collections import deque

from supervisord_py.core import beside, pause, processes, service, stopping
from supervisord_py.core.actions import ExitSupervisor, KillTree
from supervisord_py.core.events import ShutdownRequested
from supervisord_py.core.installing import apply, finish
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import ARMED, BETWEEN_LIVES, STOPPING, Ending, JobOrigin, Shutdown, UnitState
from supervisord_py.core.timers import DeadlineKind
from supervisord_py.core.transaction import Goal, build_stop
from supervisord_py.model.states import ExitSupervisorOn, JobMode, JobResult, JobType, Result, Severity, SubState
from supervisord_py.model.values import parse_signal

FORCED_GRACE_NS = processes.FORCED_KILL_NS + 1_000_000_000
FORCED_LEAST_NS = 1_000_000_000
NEVER_STARTED = 125


def request(ledger: Ledger, event: ShutdownRequested, unit: str | None = None) -> None:
    """Begin the ordered stop, for whoever asked or because of ``unit``; a second request changes nothing."""
    if ledger.globals.shutdown is not None:
        return
    now_ns = ledger.now.mono_ns
    budget_ns = event.timeout_ns * 9 // 10
    fields: dict[str, object] = {"reason": event.reason, "timeout_ms": event.timeout_ns // 1_000_000}
    if unit is None:
        remote = event.origin.remote
        fields |= {"uid": None if remote else event.origin.uid, "user": remote or event.origin.user}
    cause = ledger.record("daemon.stopping", unit, cause=event.cause, fields=fields, chain=False)
    worst_ns = _longest_chain_ns(ledger, budget_ns)
    shutdown = Shutdown(
        force_at_ns=now_ns + budget_ns,
        give_up_at_ns=now_ns + event.timeout_ns,
        scale_num=budget_ns,
        scale_den=max(worst_ns, budget_ns, 1),
        longest_ns=budget_ns,
        cause=cause,
    )
    ledger.edit_globals().shutdown = shutdown
    ledger.timers.arm(shutdown.force_at_ns, "", DeadlineKind.SHUTDOWN)
    ledger.timers.arm(shutdown.give_up_at_ns, "", DeadlineKind.SHUTDOWN)
    _rescale_running(ledger)
    names = sorted(ledger.alive | ledger.job_of | _waiting(ledger))
    if names:
        anchors = tuple((name, JobType.STOP) for name in names)
        reason = "the supervisor is shutting down"
        goal = Goal(anchors, JobOrigin.COMMAND, JobMode.REPLACE, reason=reason, cause=cause)
        apply(ledger, build_stop(ledger, goal))


def end_for_unit(ledger: Ledger, name: str, cause: int | None) -> None:
    """Begin the ordered stop, with a unit's code for the supervisor's, if the end of its life asks for it.

    A unit that somebody stopped has not ended, nor has one that is started again; the first one that does counts.
    """
    unit, state = ledger.unit(name), ledger.state(name)
    if unit is None or unit.exit_supervisor_on is None or name in ledger.job_of:
        return
    if state.sub is SubState.FAILED:
        if state.ending is Ending.ORDER and state.result is not Result.DEPENDENCY:
            return
        how = "has failed"
    else:
        is_skipped = state.sub is not SubState.DEAD or state.result is Result.EXEC_CONDITION
        if is_skipped or state.ending is not Ending.ITSELF or unit.exit_supervisor_on is ExitSupervisorOn.FAILURE:
            return
        how = "has ended"
    reason = f"{name} {how} (exit-supervisor-on)" + (f": {state.message}" if state.message else "")
    request(ledger, ShutdownRequested(ledger.globals.shutdown_timeout_ns, reason=reason, cause=cause), name)
    shutdown = ledger.edit_globals().shutdown
    assert shutdown is not None
    shutdown.code = code_of_life(state)


def end_if_empty(ledger: Ledger) -> bool:
    """In the mode until-empty: begin the end when nothing runs, waits for its time, or will by itself.

    The code is that of the first unit that has failed for good: one that is bad, or that waits for what will never be
    there, has never started.
    """
    if (
        not ledger.globals.until_empty
        or ledger.globals.shutdown is not None
        or not (ledger.set.units or ledger.set.bad)
    ):
        return False
    if (
        any(_is_work(ledger, name) for name in ledger.alive)
        or ledger.jobs
        or ledger.rollout is not None
        or any(map(_comes_back, ledger.states.values()))
    ):
        return False
    failed = [(state.since_wall_ns, name) for name, state in ledger.states.items() if _has_failed(state)]
    waiting = sorted(_waiting(ledger))
    reason, code = "nothing is left to do", 0
    if failed:
        name = min(failed)[1]
        reason, code = f"nothing is left to do, and {name} has failed", code_of_life(ledger.state(name))
    elif waiting or ledger.set.bad:
        name = next(iter((*waiting, *sorted(ledger.set.bad))))
        reason, code = f"nothing is left to do, and {name} could not be started", NEVER_STARTED
    request(ledger, ShutdownRequested(ledger.globals.shutdown_timeout_ns, reason=reason))
    shutdown = ledger.edit_globals().shutdown
    assert shutdown is not None
    shutdown.code = code
    return True


def _is_work(ledger: Ledger, name: str) -> bool:
    """Tell whether something may still come of a unit: a target is only a name, and what has done its work is done."""
    return ledger.service(name) is not None and ledger.state(name).sub is not SubState.EXITED


def _comes_back(state: UnitState) -> bool:
    """Tell whether a unit at rest is started by the clock."""
    return state.uphold_at_ns is not None or state.retry_at_ns is not None


def _has_failed(state: UnitState) -> bool:
    return state.sub is SubState.FAILED and (state.ending is Ending.ITSELF or state.result is Result.DEPENDENCY)


def code_of_life(state: UnitState) -> int:
    """Return the code that stands for the end of a unit's last life: 128 + n for a signal, 125 when its program never
    ran; never 0 for a failure.
    """
    if not state.main_ended or not state.started or state.result is Result.DEPENDENCY:
        return 0 if state.result is Result.SUCCESS else NEVER_STARTED
    code = state.exit_code if state.exit_signal is None else 128 + parse_signal(state.exit_signal)
    return code or int(state.sub is SubState.FAILED)


def force(ledger: Ledger, reason: str) -> None:
    """Kill everything at once."""
    now_ns = ledger.now.mono_ns
    state = ledger.edit_globals()
    if state.shutdown is None:
        state.shutdown = Shutdown(force_at_ns=now_ns, give_up_at_ns=now_ns + FORCED_GRACE_NS)
    shutdown = state.shutdown
    if shutdown.forced:
        return
    shutdown.forced = True
    # Even when this comes late (a suspended machine), what is killed gets a moment to die.
    shutdown.give_up_at_ns = max(min(shutdown.give_up_at_ns, now_ns + FORCED_GRACE_NS), now_ns + FORCED_LEAST_NS)
    ledger.timers.arm(shutdown.give_up_at_ns, "", DeadlineKind.SHUTDOWN)
    shutdown.cause = ledger.record(
        "daemon.stopping",
        severity=Severity.WARNING,
        cause=shutdown.cause,
        fields={"reason": reason, "forced": True},
    )
    for _, job in sorted(ledger.jobs.items()):
        if job.type is JobType.STOP:
            ledger.edit_job(job).ignore_order = True
            ledger.runnable[job.id] = None
        else:
            finish(ledger, job, JobResult.CANCELED, "the shutdown was forced", spread=False)
    for name in sorted(ledger.alive):
        if ledger.state(name).sub in BETWEEN_LIVES | ARMED:
            service.order_stop(ledger, name, Ending.ORDER, reason)
        else:
            stopping.kill_now(ledger, name)
    for name in sorted(ledger.states):
        if name not in ledger.alive and ledger.state(name).leftover:
            ledger.act(KillTree(name))
    for spawn_id in list(ledger.beside):
        beside.kill(ledger, spawn_id)


def deadline(ledger: Ledger) -> None:
    """Nine tenths of the time are over, or all of it."""
    shutdown = ledger.globals.shutdown
    if shutdown is None or shutdown.exited:
        return
    if not shutdown.forced:
        force(ledger, "the ordered stop took too long")
    elif ledger.now.mono_ns >= shutdown.give_up_at_ns:
        _exit(ledger)


def exit_if_done(ledger: Ledger) -> None:
    """End the supervisor when nothing runs any more, or nothing that force can end."""
    shutdown = ledger.globals.shutdown
    if shutdown is None or shutdown.exited:
        return
    if ledger.beside:
        return
    if all(shutdown.forced and ledger.state(name).sub is SubState.STUCK for name in ledger.alive):
        _exit(ledger)


def _exit(ledger: Ledger) -> None:
    shutdown = ledger.edit_globals().shutdown
    assert shutdown is not None
    shutdown.exited = True
    for _, job in sorted(ledger.jobs.items()):
        finish(ledger, job, JobResult.CANCELED, "the supervisor ends", spread=False)
    pause.give_up(ledger, "the supervisor ends")
    ledger.act(ExitSupervisor(shutdown.code))


def _waiting(ledger: Ledger) -> dict[str, None]:
    """Units that wait for a dependency: their waiting ends too."""
    return {name: None for name, state in ledger.states.items() if state.sub is SubState.DEPENDENCY}


def _rescale_running(ledger: Ledger) -> None:
    """Shorten the time-outs of stops that began before the shutdown."""
    for name in sorted(ledger.alive):
        state, own = ledger.state(name), ledger.service(name)
        if own is None or state.sub not in STOPPING or state.sub is SubState.STUCK:
            continue
        timeout_ns = processes.stop_timeout_ns(ledger, own.timeout_stop_ns)
        assert timeout_ns is not None
        at_ns = ledger.now.mono_ns + timeout_ns
        if state.timeout_at_ns is None or state.timeout_at_ns > at_ns:
            ledger.arm_phase_at(name, at_ns)


def _worst_case_ns(ledger: Ledger, name: str, cap_ns: int) -> int:
    own = ledger.service(name)
    if own is None or ledger.state(name).sub in ARMED:
        return 0
    timeout_ns = cap_ns if own.timeout_stop_ns is None else min(own.timeout_stop_ns, cap_ns)
    return timeout_ns * (1 + len(own.exec_stop) + len(own.exec_stop_post)) + timeout_ns // processes.KILL_SHARE


def _longest_chain_ns(ledger: Ledger, cap_ns: int) -> int:
    """Return the longest time that the units which are up may need, one after the other along their order [ns]."""
    waits_for = {
        name: [other for other in ledger.graph[name].before if other in ledger.alive] for name in sorted(ledger.alive)
    }
    left = {name: len(others) for name, others in waits_for.items()}
    done_ns: dict[str, int] = {}
    ready = deque(name for name, count in left.items() if not count)
    while ready:
        name = ready.popleft()
        before_ns = max((done_ns[other] for other in waits_for[name]), default=0)
        done_ns[name] = before_ns + _worst_case_ns(ledger, name, cap_ns)
        for edge in ledger.graph[name].after:
            if edge.other in left:
                left[edge.other] -= 1
                if not left[edge.other]:
                    ready.append(edge.other)
    return max(done_ns.values(), default=0)

"""The end of a life: ask its processes to go, make them go, and decide what follows.

Theory of operation
-------------------
Any end goes through the same kill sequence, so whatever began it, the life is over only when no process of it is left
(``kill-mode = "process"``: when main is gone).

Laws: the first failure of a life is its result; ``exec-stop-post`` runs exactly once a life (a forced shutdown leaves
it out).

Source: systemd, core/service.c (service_enter_stop, service_enter_signal, service_enter_dead), core/unit.c
(unit_kill_context); system-anchors 1.6.
"""

from supervisord_py.core import health, listening, processes, quarantine, timed
from supervisord_py.core.actions import KillTree, SignalProcesses, StopFollowing, ThawUnit, Whom
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.restart import is_limit_hit, jitter_ns, restart_delay_ns, wants_restart
from supervisord_py.core.state import ARMED, STOPPING, Ending, LastLife, UnitState
from supervisord_py.model.states import (
    JobState,
    JobType,
    KillMode,
    OnDependencyFailure,
    Result,
    Role,
    ServiceType,
    Severity,
    SubState,
)
from supervisord_py.model.unit import RestartPolicy, Service, Unit

SIGHUP = 1

_TOLD_BY_THE_END = frozenset({Result.SUCCESS, Result.EXIT_CODE, Result.SIGNAL, Result.CORE_DUMP, Result.UNKNOWN})
"""Results whose message says nothing but how the main process ended."""


def fail(ledger: Ledger, name: str, result: Result, message: str) -> None:
    """Note a failure of the life; the first one stays."""
    state = ledger.edit(name)
    if result is not Result.SUCCESS and state.result is Result.SUCCESS:
        state.result, state.message = result, message


def _begin_stopping(ledger: Ledger, name: str, reason: str, *, quiet: bool = False) -> None:
    """Write ``unit.stopping`` once a life, unless the life ended by itself and nothing is left to stop."""
    state = ledger.edit(name)
    state.sweeping = state.awaits_health = False
    state.watches = {}
    health.end(ledger, name)
    if state.sub is SubState.PAUSED:
        thaw(ledger, name)
    if state.following is not None:
        ledger.act(StopFollowing(name, state.following))
        ledger.unit_of_spawn.pop(state.following, None)
        state.following = None
    if state.sub in STOPPING or (quiet and processes.is_gone(ledger, name)):
        return
    ledger.record("unit.stopping", name, fields={"reason": reason})


def thaw(ledger: Ledger, name: str) -> None:
    """A paused unit is paused no longer; what is frozen hears no signal."""
    state = ledger.edit(name)
    ledger.act(ThawUnit(name))
    state.thawing = True
    state.paused_ns = state.healthy_left_ns = state.paused_by = None


def enter_stop(ledger: Ledger, name: str, reason: str, *, quiet: bool = False) -> None:
    """Stop a unit that was fully started: exec-stop first, then signals."""
    service = processes.service_of(ledger, name)
    if ledger.state(name).was_up and service.exec_stop and not _is_forced(ledger):
        _begin_stopping(ledger, name, reason)
        processes.run_command(ledger, name, SubState.STOP, Role.STOP, 0)
    else:
        enter_signal(ledger, name, reason, quiet=quiet)


def enter_signal(ledger: Ledger, name: str, reason: str, *, quiet: bool = False) -> None:
    """Ask what is left of the life to end."""
    _begin_stopping(ledger, name, reason, quiet=quiet)
    _signal_phase(ledger, name, SubState.STOP_SIGTERM)


def enter_end(ledger: Ledger, name: str, reason: str) -> None:
    """Kill what is left of the life without having asked it."""
    _begin_stopping(ledger, name, reason)
    if processes.is_gone(ledger, name):
        over(ledger, name)
    else:
        enter_kill(ledger, name)


def enter_final(ledger: Ledger, name: str) -> None:
    """Ask what exec-stop-post left to end."""
    ledger.edit(name).post_done = True
    _signal_phase(ledger, name, SubState.FINAL_SIGTERM)


def _signal_phase(ledger: Ledger, name: str, sub: SubState) -> None:
    service = processes.service_of(ledger, name)
    if processes.is_gone(ledger, name):
        over(ledger, name)
        return
    state = ledger.set_sub(name, sub)
    if _only_leftover(state) and _kills_leftover(ledger, name):
        enter_kill(ledger, name)
        return
    ledger.arm_phase(name, processes.stop_timeout_ns(ledger, service.timeout_stop_ns))
    _ask_to_end(ledger, name)


def enter_watchdog(ledger: Ledger, name: str, message: str, result: Result = Result.WATCHDOG) -> None:
    """A watchdog has failed: the unit is asked to dump its state and end."""
    service = processes.service_of(ledger, name)
    fail(ledger, name, result, message)
    if result is Result.PROGRESS:
        ledger.record("unit.progress-stalled", name, severity=Severity.ERROR, fields={"message": message})
    else:
        ledger.record("unit.watchdog", name, severity=Severity.ERROR, fields={"message": message})
    _begin_stopping(ledger, name, message)
    ledger.set_sub(name, SubState.STOP_WATCHDOG)
    ledger.arm_phase(name, processes.stop_timeout_ns(ledger, service.timeout_abort_ns))
    _signal(ledger, name, service.kill.watchdog_signal)


def enter_stopping_itself(ledger: Ledger, name: str) -> None:
    """The process says that it is ending: wait for it as after a signal, without one."""
    _begin_stopping(ledger, name, "it said STOPPING=1")
    ledger.set_sub(name, SubState.STOP_SIGTERM)
    ledger.arm_phase(name, processes.stop_timeout_ns(ledger, processes.service_of(ledger, name).timeout_stop_ns))


def enter_kill(ledger: Ledger, name: str) -> None:
    """Kill what is left, in rounds until nothing is."""
    service = processes.service_of(ledger, name)
    state = ledger.state(name)
    ledger.set_sub(name, SubState.FINAL_SIGKILL if state.post_done else SubState.STOP_SIGKILL)
    ledger.arm_phase(name, processes.kill_timeout_ns(ledger, service.timeout_stop_ns))
    if processes.spares_leftover(ledger, name) and not _is_forced(ledger):
        for process in (state.main, state.control):
            if process is not None:
                ledger.act(SignalProcesses(name, service.kill.final_signal, Whom.MAIN, process.spawn_id))
    else:
        ledger.act(KillTree(name, 9 if _is_forced(ledger) else service.kill.final_signal))


def enter_stuck(ledger: Ledger, name: str) -> None:
    """Nothing more can be done; the unit keeps its place, so that no second copy is ever started."""
    state = ledger.set_sub(name, SubState.STUCK)
    ledger.arm_phase(name, None)
    spawns = [process.spawn_id for process in (state.main, state.control) if process is not None]
    fields = {"message": stuck_message(ledger, name), "spawn_ids": spawns}
    ledger.record("unit.stuck", name, severity=Severity.ERROR, fields=fields)


def stuck_message(ledger: Ledger, name: str) -> str:
    """Say what keeps a stuck unit, and what can be done."""
    if processes.service_of(ledger, name).kill.send_sigkill:
        return f"{name} is stuck: a process does not die, even of the final signal; it keeps its place until that ends"
    return f"{name} is stuck: it does not end, and send-sigkill is false; end its processes by hand"


def stop_timed_out(ledger: Ledger, name: str) -> None:
    """The signal did not help in time."""
    fail(ledger, name, Result.TIMEOUT, "it did not end within its stop time-out")
    if processes.service_of(ledger, name).kill.send_sigkill or _is_forced(ledger):
        enter_kill(ledger, name)
    else:
        enter_stuck(ledger, name)


def try_again(ledger: Ledger, name: str) -> None:
    """A stop of a stuck unit: signal once more, as strongly as the unit allows."""
    service = processes.service_of(ledger, name)
    if service.kill.send_sigkill:
        enter_kill(ledger, name)
    else:
        _signal_phase(ledger, name, SubState.FINAL_SIGTERM if ledger.state(name).post_done else SubState.STOP_SIGTERM)


def process_ended(ledger: Ledger, name: str) -> None:
    """In a signal phase: go on if that was the last one."""
    if processes.is_gone(ledger, name):
        over(ledger, name)
        return
    state = ledger.state(name)
    asked = state.sub not in (SubState.STOP_SIGKILL, SubState.FINAL_SIGKILL, SubState.STUCK)
    if not asked or not _only_leftover(state):
        return
    if _kills_leftover(ledger, name):
        enter_kill(ledger, name)
    elif not processes.spares_leftover(ledger, name):
        # What was made after the signal has not heard it (and where nothing may be killed, the rest was spared so far).
        _ask_to_end(ledger, name)


def _kills_leftover(ledger: Ledger, name: str) -> bool:
    """Tell whether what outlives the main process is killed without being asked; it is asked where one of it is the
    main process that nobody knows.
    """
    kill = processes.service_of(ledger, name).kill
    return kill.mode is KillMode.MIXED and kill.send_sigkill and not processes.has_no_known_main(ledger, name)


def over(ledger: Ledger, name: str) -> None:
    """No process is left: run exec-stop-post if it has not run, else end the life."""
    if (
        not ledger.state(name).post_done
        and processes.service_of(ledger, name).exec_stop_post
        and not _is_forced(ledger)
    ):
        processes.run_command(ledger, name, SubState.STOP_POST, Role.STOP_POST, 0)
    else:
        end(ledger, name)


def _only_leftover(state: UnitState) -> bool:
    return state.main is None and state.control is None


def _is_forced(ledger: Ledger) -> bool:
    shutdown = ledger.globals.shutdown
    return shutdown is not None and shutdown.forced


def _ask_to_end(ledger: Ledger, name: str) -> None:
    """Send the signal that the unit is stopped with, or restarted with."""
    kill, job = processes.service_of(ledger, name).kill, ledger.job_of.get(name)
    if job is not None and job.type is JobType.RESTART and ledger.state(name).sub is SubState.STOP_SIGTERM:
        _signal(ledger, name, kill.signal if kill.restart_signal is None else kill.restart_signal)
    else:
        _signal(ledger, name, kill.signal, and_hangup=kill.send_sighup and kill.signal != SIGHUP)


def _signal(ledger: Ledger, name: str, signal: int, *, and_hangup: bool = False) -> None:
    """Signal the processes that the kill mode names, and let stopped ones go on; what is only left, all of it."""
    state = ledger.state(name)
    targets: list[tuple[Whom, int | None]] = [
        (Whom.MAIN, process.spawn_id) for process in (state.main, state.control) if process is not None
    ]
    if not targets or processes.service_of(ledger, name).kill.mode is KillMode.CONTROL_GROUP:
        targets = [(Whom.ALL, None)]
    for whom, spawn_id in targets:
        ledger.act(SignalProcesses(name, signal, whom, spawn_id, then_continue=not and_hangup))
        if and_hangup:
            ledger.act(SignalProcesses(name, SIGHUP, whom, spawn_id, then_continue=True))


def kill_now(ledger: Ledger, name: str) -> None:
    """A forced shutdown: no command, no grace."""
    state = ledger.edit(name)
    state.ending = Ending.ORDER
    if ledger.service(name) is None:
        end(ledger, name)
        return
    _begin_stopping(ledger, name, "the shutdown was forced")
    if processes.is_gone(ledger, name):
        over(ledger, name)
    else:
        enter_kill(ledger, name)


def end(ledger: Ledger, name: str) -> None:
    """The life is over: count it, and decide what follows."""
    if ledger.state(name).is_stub:
        quarantine.stub_over(ledger, name)
        return
    unit = ledger.unit(name)
    state = ledger.edit(name)
    assert unit is not None
    service = unit.service
    if state.healthy_at_ns is not None and state.healthy_at_ns <= ledger.now.mono_ns:
        forget_failures(ledger, name)
    state.healthy_at_ns = state.timeout_at_ns = state.runtime_end_ns = None
    state.watches = {}
    health.end(ledger, name)
    good = state.result is Result.SUCCESS
    state.succeeded = good and state.was_up and state.ending is Ending.ITSELF
    state.last_life = LastLife(
        state.result,
        state.exit_code if state.main_ended else None,
        state.exit_signal if state.main_ended else None,
        None if state.unseen else max(0, ledger.now.mono_ns - state.began_ns) // 1_000_000,
        None if state.result in _TOLD_BY_THE_END else state.message,
    )
    for other in ledger.graph[name].bound_by:
        ledger.intents.append(Task(Intent.STOP_BOUND, other, name, state.cause))
    oneshot = service is not None and service.type is ServiceType.ONESHOT
    state.accomplished = oneshot and state.succeeded
    timed.ended(ledger, name)
    if state.accomplished or (state.succeeded and state.is_armed):
        # A run that ended well is what health is to others.
        forget_failures(ledger, name)
    if not good and state.result is not Result.EXEC_CONDITION and state.ending is Ending.ITSELF:
        state.failures += 1
    if service is not None and _is_restarted(ledger, name, state, service, oneshot):
        _schedule_restart(ledger, name, state, service)
        return
    _rest(ledger, name, unit, state)


def forget_failures(ledger: Ledger, name: str) -> None:
    quarantine.release(ledger, name, cause=ledger.state(name).cause)
    state = ledger.edit(name)
    state.failures = state.backoff = 0
    state.healthy_at_ns = None


def _is_restarted(ledger: Ledger, name: str, state: UnitState, service: Service, oneshot: bool) -> bool:
    if state.ending is not Ending.ITSELF or ledger.globals.shutdown is not None:
        return False
    job = ledger.job_of.get(name)
    if job is not None and job.state is JobState.WAITING and job.named:
        # Somebody asked for a start (or a stop) while this life was ending: that is what happens next.
        return False
    if state.result is not Result.SUCCESS and is_limit_hit(service.restart, state.failures):
        return False
    return wants_restart(service.restart, state.result, oneshot=oneshot, main=processes.main_status(state))


def _schedule_restart(ledger: Ledger, name: str, state: UnitState, service: Service) -> None:
    state.backoff += 1
    delay_ns = next_delay_ns(ledger, service.restart, state.backoff)
    ledger.set_sub(name, SubState.AUTO_RESTART)
    ledger.arm_phase(name, delay_ns)
    ledger.record(
        "unit.restart-scheduled",
        name,
        severity=Severity.INFO if state.result is Result.SUCCESS else Severity.WARNING,
        fields={
            "result": state.result.value,
            "delay_ms": delay_ns // 1_000_000,
            "restarts": state.restarts + 1,
            "failures": state.failures,
            **({"message": state.message} if state.message else {}),
        },
    )


def next_delay_ns(ledger: Ledger, policy: RestartPolicy, attempt: int) -> int:
    """Return how long a unit pauses before the next life that nobody asked for, jitter included [ns]."""
    delay_ns = restart_delay_ns(policy, attempt)
    return delay_ns + jitter_ns(policy, delay_ns, ledger.draw())


def _rest(ledger: Ledger, name: str, unit: Unit, state: UnitState) -> None:
    service = unit.service
    is_good = state.result in (Result.SUCCESS, Result.EXEC_CONDITION)
    limited = (
        not is_good
        and service is not None
        and state.ending is Ending.ITSELF
        and is_limit_hit(service.restart, state.failures)
    )
    if not limited and (timed.wait_again(ledger, name) or listening.wait_again(ledger, name)):
        # The run has ended as a life does, though the unit goes on.
        follows = Intent.SUCCEEDED if is_good else Intent.FAILED
        if unit.on_success if is_good else unit.on_failure:
            ledger.intents.append(Task(follows, name, name, state.cause))
    elif state.ending is Ending.BOUND:
        waits = unit.on_dependency_failure is OnDependencyFailure.WAIT
        state.result = Result.DEPENDENCY
        ledger.set_sub(name, SubState.DEPENDENCY if waits else SubState.FAILED)
        # What it is bound to may be back already: nothing else would tell it.
        ledger.intents.append(Task(Intent.RECOVERED, name, name, state.cause))
    else:
        if is_good and timed.is_armed(state) and state.ending is Ending.ITSELF and ledger.globals.shutdown is None:
            state.message = timed.ELAPSED
        ledger.set_sub(name, SubState.DEAD if is_good else SubState.FAILED)
    has_failed = state.sub is SubState.FAILED if state.sub not in ARMED else not is_good
    fields: dict[str, object] = {"result": state.result.value}
    if state.last_life is not None and state.last_life.runtime_ms is not None:
        fields["runtime_ms"] = state.last_life.runtime_ms
    if state.message:
        fields["message"] = state.message
    if state.errno is not None:
        fields["errno"] = state.errno
    if state.sub is SubState.WAITING:
        fields |= {"armed": True} | timed.told_next(ledger, name)
    elif state.sub is SubState.LISTENING:
        fields["armed"] = True
    if not has_failed:
        ledger.record("unit.stopped", name, fields=fields)
        return
    ledger.record(
        "unit.failed",
        name,
        severity=Severity.ERROR,
        fields={**fields, "failures": state.failures, "limit_hit": limited},
    )
    if limited:
        quarantine.enter(ledger, name)

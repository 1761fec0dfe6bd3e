"""The verbs of one life: make its processes, let it be up, end it, and decide what follows.

Theory of operation
-------------------
A life runs exec-condition, exec-start-pre, exec-start, exec-start-post, [exec-reload]*, exec-stop (only after a full
start), the kill sequence, exec-stop-post (always), one command at a time; ``service`` says which event leads from one
to the next, this module says what each step does. Any end goes through the same kill sequence, so whatever began it,
the life is over only when no process of it is left (``kill-mode = "process"``: when main is gone).

The main process of a forking unit is made by its start command and *followed* afterwards: until ``MainFollowed`` there
is none. Where none can be told from the others, the unit is up while any process of it is left.

Laws: the first failure of a life is its result; a process is asked for only when its ``unit.starting`` is written; no
life begins while a process of the old one is left; ``exec-stop-post`` runs exactly once a life (a forced shutdown
leaves it out).

Source: systemd, core/service.c (service_enter_*); system-anchors 1.6.
"""

from msgspec import json

from supervisord_py.core.actions import FollowMain, KillTree, SignalProcesses, SpawnProcess, StopFollowing, Whom
from supervisord_py.core.events import Adopted, ExitStatus
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.restart import admit_start, is_limit_hit, jitter_ns, restart_delay_ns, wants_restart
from supervisord_py.core.state import STOPPING, Ending, LastLife, Monitor, Process, UnitState
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
from supervisord_py.model.unit import Command, Service, Unit
from supervisord_py.model.values import format_signal, format_timespan, parse_signal

IDLE_NS = 5_000_000_000
"""How long the start of an ``idle`` unit waits for the other jobs at most."""

SIGHUP = 1

FORCED_KILL_NS = 5_000_000_000
"""How long a forced shutdown waits for the kernel after SIGKILL."""

KILL_SHARE = 8
"""In a shutdown the wait after the final signal is this fraction of the stop time-out: processes rarely need it."""


def service_of(ledger: Ledger, name: str) -> Service:
    service = ledger.service(name)
    assert service is not None, f"internal error: {name} has no service"
    return service


def commands_of(service: Service, role: Role) -> tuple[Command, ...]:
    match role:
        case Role.CONDITION:
            return service.exec_condition
        case Role.START_PRE:
            return service.exec_start_pre
        case Role.MAIN | Role.START:
            return service.exec_start
        case Role.START_POST:
            return service.exec_start_post
        case Role.RELOAD:
            return service.exec_reload
        case Role.STOP:
            return service.exec_stop
        case Role.STOP_POST:
            return service.exec_stop_post


def is_gone(ledger: Ledger, name: str) -> bool:
    """Tell whether no process is left that belongs to the life."""
    state = ledger.state(name)
    if state.main is not None or state.control is not None:
        return False
    return not state.leftover or service_of(ledger, name).kill.mode is KillMode.PROCESS


def has_no_known_main(ledger: Ledger, name: str) -> bool:
    """Tell whether the unit's main process is one that nobody knows, so that its whole tree stands for it."""
    state, service = ledger.state(name), ledger.service(name)
    is_forking = service is not None and service.type is ServiceType.FORKING
    return is_forking and state.main is None and not state.main_ended


def is_alive(ledger: Ledger, name: str) -> bool:
    """Tell whether what a unit is up for still runs: its main process, or any where that one is not known."""
    state = ledger.state(name)
    return state.main is not None or (state.leftover and has_no_known_main(ledger, name))


def is_idling(ledger: Ledger, name: str) -> bool:
    """Tell whether the unit waits for the other jobs before its program is run."""
    state, service = ledger.state(name), ledger.service(name)
    return (
        state.sub is SubState.START and state.main is None and service is not None and service.type is ServiceType.IDLE
    )


def can_reload(service: Service) -> bool:
    """Tell whether there is a way to make the unit read its settings again."""
    return bool(service.exec_reload) or service.type is ServiceType.NOTIFY_RELOAD


def stop_timeout_ns(ledger: Ledger, timeout_ns: int | None) -> int | None:
    """Return a stop time-out as it holds now: a shutdown scales all of them [ns]."""
    shutdown = ledger.globals.shutdown
    if shutdown is None:
        return timeout_ns
    if shutdown.forced:
        return FORCED_KILL_NS
    longest_ns = shutdown.longest_ns if timeout_ns is None else min(timeout_ns, shutdown.longest_ns)
    return longest_ns * shutdown.scale_num // shutdown.scale_den


def kill_timeout_ns(ledger: Ledger, timeout_ns: int | None) -> int | None:
    """Return how long to wait after the final signal [ns]."""
    shutdown = ledger.globals.shutdown
    scaled_ns = stop_timeout_ns(ledger, timeout_ns)
    if shutdown is None or shutdown.forced or scaled_ns is None:
        return scaled_ns
    return scaled_ns // KILL_SHARE


# the start


def begin(ledger: Ledger, name: str) -> None:
    """Begin a new life by the newest text of the unit."""
    unit = ledger.set.units.get(name) or ledger.texts.get(name)
    assert unit is not None, f"internal error: {name} has no text"
    ledger.keep_text(name, unit)
    state = ledger.edit(name)
    assert state.main is None and state.control is None, f"internal error: {name} still has a process"
    state.result, state.message = Result.SUCCESS, None
    state.invocation = ledger.new_invocation()
    state.started = state.main_ended = state.was_up = state.post_done = state.stopped = False
    state.succeeded = state.accomplished = False
    state.ending = Ending.ITSELF
    state.sweeping = state.notify_reloading = False
    state.reload_failed = state.status_text = state.errno = state.progress = state.beat_at_ns = None
    state.refused_at_ns = state.error_at_ns = state.runtime_end_ns = state.reload_asked_ns = None
    state.errors = state.refusals = 0
    state.began_ns = ledger.now.mono_ns
    ledger.arm_healthy(name, None)
    if unit.service is None:
        became_started(ledger, name)
        became_up(ledger, name)
    elif unit.service.exec_condition:
        run_command(ledger, name, SubState.CONDITION, Role.CONDITION, 0)
    else:
        begin_pre(ledger, name)


def begin_pre(ledger: Ledger, name: str) -> None:
    if service_of(ledger, name).exec_start_pre:
        run_command(ledger, name, SubState.START_PRE, Role.START_PRE, 0)
    else:
        begin_main(ledger, name)


def begin_main(ledger: Ledger, name: str) -> None:
    service = service_of(ledger, name)
    if not service.exec_start:
        # A oneshot may consist of its stop commands alone.
        begin_post(ledger, name)
    elif service.type is ServiceType.IDLE:
        # The engine says when the other jobs are done, in this very event if there are none.
        ledger.set_sub(name, SubState.START)
        ledger.arm_phase(name, IDLE_NS)
        ledger.idling[name] = None
    else:
        run_main(ledger, name)


def run_main(ledger: Ledger, name: str) -> None:
    is_forking = service_of(ledger, name).type is ServiceType.FORKING
    run_command(ledger, name, SubState.START, Role.START if is_forking else Role.MAIN, 0)


def follow(ledger: Ledger, name: str, *, wait: bool) -> None:
    """Ask for the main process that a start command has left behind."""
    state = ledger.edit(name)
    state.following = ledger.new_spawn_id()
    ledger.unit_of_spawn[state.following] = name
    ledger.act(FollowMain(name, state.following, service_of(ledger, name).pid_file, wait))


def waits_for_pid_file(ledger: Ledger, name: str) -> bool:
    """Tell whether the unit's pid file may still come; before ``exec-start-post``, which may write it, it need not."""
    sub = ledger.state(name).sub
    return sub is SubState.START_POST or (sub is SubState.START and not service_of(ledger, name).exec_start_post)


def looks_for_successor(ledger: Ledger, name: str) -> bool:
    """Tell whether the main process has ended and the pid file is being looked at for the one that took its place."""
    state = ledger.state(name)
    return state.sub is SubState.RUNNING and state.following is not None


def begin_post(ledger: Ledger, name: str) -> None:
    """The main process has started (it is ready, if it says so; it is done, if it is a oneshot's)."""
    became_started(ledger, name)
    if service_of(ledger, name).exec_start_post:
        run_command(ledger, name, SubState.START_POST, Role.START_POST, 0)
    else:
        finish_start(ledger, name)


def finish_start(ledger: Ledger, name: str) -> None:
    """All commands of the start are done: the unit is up, unless what it is up for is over already."""
    state, service = ledger.state(name), service_of(ledger, name)
    if state.result is not Result.SUCCESS:
        enter_signal(ledger, name, state.message or "its main process has failed", quiet=True)
    elif is_alive(ledger, name):
        became_up(ledger, name)
        if state.notify_reloading:
            enter_own_reload(ledger, name)
    elif service.remain_after_exit:
        became_up(ledger, name, SubState.EXITED)
    else:
        is_oneshot = service.type is ServiceType.ONESHOT
        ledger.edit(name).was_up = True
        if is_oneshot:
            ledger.record("unit.ready", name)
        enter_stop(ledger, name, "its work is done" if is_oneshot else "no process of it is left", quiet=True)


def enter_own_reload(ledger: Ledger, name: str) -> None:
    """The process says that it reads its settings again."""
    state = ledger.set_sub(name, SubState.RELOAD)
    state.notify_reloading = True
    state.reload_failed = None
    ledger.arm_phase(name, service_of(ledger, name).timeout_start_ns)
    ledger.record("unit.reloading", name, fields={"itself": True})


def adopt(ledger: Ledger, adopted: Adopted) -> None:
    """Go on with a life that a lost keeper left: with its main process and its counters, before anything is started."""
    name = adopted.unit
    unit = ledger.set.units.get(name)
    if unit is None or unit.service is None:
        # No text says how to supervise it, and it must not be left behind.
        ledger.act(KillTree(name))
        return
    ledger.keep_text(name, unit)
    needs_ready = unit.service.type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD, ServiceType.ONESHOT)
    state = ledger.edit(name)
    state.invocation = adopted.invocation
    state.main = Process(adopted.spawn_id, Role.MAIN, pid=adopted.pid)
    ledger.unit_of_spawn[adopted.spawn_id] = name
    state.result, state.message = Result.SUCCESS, None
    state.held = state.started = True
    state.leftover = adopted.leftover
    state.began_ns = ledger.now.mono_ns
    if state.last_life == LastLife(result=Result.UNKNOWN):
        # So it was noted when the counters were taken over; this life has not ended.
        state.last_life = None
    fields = {"spawn_id": adopted.spawn_id, "pid": adopted.pid, "ready": adopted.ready or not needs_ready}
    ledger.record("unit.adopted", name, fields=fields)
    if adopted.ready or not needs_ready:
        enter_running(ledger, name)
    else:
        ledger.set_sub(name, SubState.START)
        ledger.arm_phase(name, unit.service.timeout_start_ns)


def count_start(ledger: Ledger, name: str) -> None:
    """Count a start that somebody asked for: it is never refused, but an automatic one after it may be."""
    service, state = ledger.service(name), ledger.edit(name)
    limit = service.restart.limit if service is not None else None
    if limit is not None:
        state.starts_ns = admit_start(state.starts_ns, limit, ledger.now.boot_ns) or state.starts_ns


def refuse_automatic_start(ledger: Ledger, name: str) -> str | None:
    """Count an automatic start; one too many fails the unit instead, and the reason is returned."""
    service, state = ledger.service(name), ledger.edit(name)
    limit = service.restart.limit if service is not None else None
    if limit is None:
        return None
    counted = admit_start(state.starts_ns, limit, ledger.now.boot_ns)
    if counted is not None:
        state.starts_ns = counted
        return None
    span = "" if limit.interval_ns is None else f" within {format_timespan(limit.interval_ns)}"
    ledger.set_sub(name, SubState.FAILED)
    ledger.arm_phase(name, None)
    state.result, state.ending = Result.START_LIMIT_HIT, Ending.ITSELF
    state.message = f"it was started {limit.burst} times{span}; start it when it is mended"
    fields = {"result": state.result.value, "message": state.message, "failures": state.failures, "limit_hit": True}
    ledger.record("unit.failed", name, severity=Severity.ERROR, fields=fields)
    return state.message


def run_command(ledger: Ledger, name: str, sub: SubState, role: Role, index: int) -> None:
    """Enter ``sub`` and run command ``index`` of ``role`` in it, each with its own time-out."""
    unit = ledger.unit(name)
    service = service_of(ledger, name)
    assert unit is not None
    state = ledger.set_sub(name, sub)
    command = commands_of(service, role)[index]
    process = Process(ledger.new_spawn_id(), role, index)
    if role is Role.MAIN:
        assert state.main is None, f"internal error: {name} would have two main processes"
        state.main = process
    else:
        assert state.control is None, f"internal error: {name} would have two control processes"
        state.control = process
    state.index = index
    if role in (Role.STOP, Role.STOP_POST):
        ledger.arm_phase(name, stop_timeout_ns(ledger, service.timeout_stop_ns))
    else:
        ledger.arm_phase(name, service.timeout_start_ns)
    ledger.record(
        "unit.starting",
        name,
        fields={"spawn_id": process.spawn_id, "role": role.value, "program": command.words[0] if command.words else ""},
    )
    assert state.invocation is not None
    action = SpawnProcess(
        spawn_id=process.spawn_id,
        unit=name,
        role=role,
        command=command,
        invocation=state.invocation,
        environment=_environment(name, state, role),
        main_spawn=state.main.spawn_id if state.main is not None and role is not Role.MAIN else None,
    )
    ledger.spawn(name, process, action)


def _environment(name: str, state: UnitState, role: Role) -> tuple[tuple[str, str], ...]:
    """Return what only the core knows about the process; the host adds the rest."""
    variables = [
        ("INVOCATION_ID", state.invocation or ""),
        ("SUPERVISORD_PY_UNIT", name),
        ("SUPERVISORD_PY_RESTARTS", str(state.restarts)),
    ]
    if state.last_life is not None:
        life = state.last_life
        end = {"code": life.code} if life.code is not None else {"signal": life.signal} if life.signal else None
        told = {"result": life.result.value, "exit": end, "runtime_ms": life.runtime_ms}
        variables.append(("SUPERVISORD_PY_LAST_LIFE", json.encode(told).decode()))
    if role in (Role.STOP, Role.STOP_POST):
        variables.append(("SERVICE_RESULT", state.result.value))
        if state.main_ended:
            variables += _exit_variables(state.exit_code, state.exit_signal, state.exit_dumped)
    elif state.monitor is not None and role in _MONITORS:
        variables += _monitor_variables(state.monitor)
    return tuple(variables)


_MONITORS = frozenset({Role.CONDITION, Role.START_PRE, Role.START, Role.MAIN})


def _monitor_variables(monitor: Monitor) -> list[tuple[str, str]]:
    """Return whose end started the unit, and what that end was."""
    told = [("SERVICE_RESULT", monitor.result.value)]
    if monitor.ended:
        told += _exit_variables(monitor.code, monitor.signal, monitor.dumped)
    if monitor.invocation is not None:
        told.append(("INVOCATION_ID", monitor.invocation))
    return [(f"MONITOR_{key}", value) for key, value in (*told, ("UNIT", monitor.unit))]


def _exit_variables(code: int | None, signal: str | None, dumped: bool) -> list[tuple[str, str]]:
    if code is not None:
        return [("EXIT_CODE", "exited"), ("EXIT_STATUS", str(code))]
    if signal is not None:
        return [("EXIT_CODE", "dumped" if dumped else "killed"), ("EXIT_STATUS", signal.removeprefix("SIG"))]
    return []


def became_started(ledger: Ledger, name: str) -> None:
    """The main program runs: what waits for ``until = "started"`` may go on."""
    state = ledger.edit(name)
    if state.started:
        return
    state.started = True
    ledger.changed[name] = None
    fields = {"spawn_id": state.main.spawn_id, "pid": state.main.pid} if state.main is not None else {}
    ledger.record("unit.started", name, fields=fields)


def became_up(ledger: Ledger, name: str, sub: SubState = SubState.RUNNING) -> None:
    """The unit is fully started; from now on it counts as healthy."""
    became_started(ledger, name)
    enter_running(ledger, name, sub)
    ledger.record("unit.ready", name)


def enter_running(ledger: Ledger, name: str, sub: SubState = SubState.RUNNING) -> None:
    """The unit is up from now on: its time begins to count."""
    service = ledger.service(name)
    state = ledger.set_sub(name, sub)
    state.was_up = True
    if service is not None and service.runtime_max_ns is not None and service.type is not ServiceType.ONESHOT:
        state.runtime_end_ns = ledger.now.mono_ns + service.runtime_max_ns
    arm_running(ledger, name)
    if service is not None and (state.failures or state.backoff):
        ledger.arm_healthy(name, service.restart.reset_ns)


def arm_running(ledger: Ledger, name: str) -> None:
    """Bound the time in which the unit is running, if it has a bound."""
    state = ledger.state(name)
    if state.sub is SubState.RUNNING and state.runtime_end_ns is not None:
        ledger.arm_phase_at(name, state.runtime_end_ns)
    else:
        ledger.arm_phase(name, None)


def forget_failures(ledger: Ledger, name: str) -> None:
    state = ledger.edit(name)
    state.failures = state.backoff = 0
    state.healthy_at_ns = None


# the end


def fail(ledger: Ledger, name: str, result: Result, message: str) -> None:
    """Note a failure of the life; the first one stays."""
    state = ledger.edit(name)
    if result is not Result.SUCCESS and state.result is Result.SUCCESS:
        state.result, state.message = result, message


def _begin_stopping(ledger: Ledger, name: str, reason: str, quiet: bool) -> None:
    """Write ``unit.stopping`` once a life, unless the life ended by itself and nothing is left to stop."""
    state = ledger.edit(name)
    state.sweeping = False
    if state.following is not None:
        ledger.act(StopFollowing(name, state.following))
        ledger.unit_of_spawn.pop(state.following, None)
        state.following = None
    if state.sub in STOPPING or (quiet and is_gone(ledger, name)):
        return
    ledger.record("unit.stopping", name, fields={"reason": reason})


def enter_stop(ledger: Ledger, name: str, reason: str, *, quiet: bool = False) -> None:
    """Stop a unit that was fully started: exec-stop first, then signals."""
    service = service_of(ledger, name)
    if ledger.state(name).was_up and service.exec_stop and not _is_forced(ledger):
        _begin_stopping(ledger, name, reason, quiet=False)
        run_command(ledger, name, SubState.STOP, Role.STOP, 0)
    else:
        enter_signal(ledger, name, reason, quiet=quiet)


def enter_signal(ledger: Ledger, name: str, reason: str, *, quiet: bool = False) -> None:
    """Ask what is left of the life to end."""
    _begin_stopping(ledger, name, reason, quiet)
    _signal_phase(ledger, name, SubState.STOP_SIGTERM)


def enter_final(ledger: Ledger, name: str) -> None:
    """Ask what exec-stop-post left to end."""
    ledger.edit(name).post_done = True
    _signal_phase(ledger, name, SubState.FINAL_SIGTERM)


def _signal_phase(ledger: Ledger, name: str, sub: SubState) -> None:
    service = service_of(ledger, name)
    if is_gone(ledger, name):
        over(ledger, name)
        return
    state = ledger.set_sub(name, sub)
    if _only_leftover(state) and _kills_leftover(ledger, name):
        enter_kill(ledger, name)
        return
    ledger.arm_phase(name, stop_timeout_ns(ledger, service.timeout_stop_ns))
    _ask_to_end(ledger, name)


def enter_watchdog(ledger: Ledger, name: str, message: str) -> None:
    """A watchdog has failed: the unit is asked to dump its state and end."""
    service = service_of(ledger, name)
    fail(ledger, name, Result.WATCHDOG, message)
    ledger.record("unit.watchdog", name, severity=Severity.ERROR, fields={"message": message})
    _begin_stopping(ledger, name, message, quiet=False)
    ledger.set_sub(name, SubState.STOP_WATCHDOG)
    ledger.arm_phase(name, stop_timeout_ns(ledger, service.timeout_abort_ns))
    _signal(ledger, name, service.kill.watchdog_signal)


def enter_stopping_itself(ledger: Ledger, name: str) -> None:
    """The process says that it is ending: wait for it as after a signal, without one."""
    _begin_stopping(ledger, name, "it said STOPPING=1", quiet=False)
    ledger.set_sub(name, SubState.STOP_SIGTERM)
    ledger.arm_phase(name, stop_timeout_ns(ledger, service_of(ledger, name).timeout_stop_ns))


def enter_kill(ledger: Ledger, name: str) -> None:
    """Kill what is left, in rounds until nothing is."""
    service = service_of(ledger, name)
    state = ledger.state(name)
    ledger.set_sub(name, SubState.FINAL_SIGKILL if state.post_done else SubState.STOP_SIGKILL)
    ledger.arm_phase(name, kill_timeout_ns(ledger, service.timeout_stop_ns))
    if service.kill.mode is KillMode.PROCESS and not _is_forced(ledger):
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
    if service_of(ledger, name).kill.send_sigkill:
        return f"{name} is stuck: a process does not die, even of the final signal; it keeps its place until that ends"
    return f"{name} is stuck: it does not end, and send-sigkill is false; end its processes by hand"


def stop_timed_out(ledger: Ledger, name: str) -> None:
    """The signal did not help in time."""
    fail(ledger, name, Result.TIMEOUT, "it did not end within its stop time-out")
    if service_of(ledger, name).kill.send_sigkill or _is_forced(ledger):
        enter_kill(ledger, name)
    else:
        enter_stuck(ledger, name)


def try_again(ledger: Ledger, name: str) -> None:
    """A stop of a stuck unit: signal once more, as strongly as the unit allows."""
    service = service_of(ledger, name)
    if service.kill.send_sigkill:
        enter_kill(ledger, name)
    else:
        _signal_phase(ledger, name, SubState.FINAL_SIGTERM if ledger.state(name).post_done else SubState.STOP_SIGTERM)


def process_ended(ledger: Ledger, name: str) -> None:
    """In a signal phase: go on if that was the last one."""
    if is_gone(ledger, name):
        over(ledger, name)
        return
    state, service = ledger.state(name), service_of(ledger, name)
    asked = state.sub not in (SubState.STOP_SIGKILL, SubState.FINAL_SIGKILL, SubState.STUCK)
    if not asked or not _only_leftover(state):
        return
    if _kills_leftover(ledger, name):
        enter_kill(ledger, name)
    elif service.kill.mode is not KillMode.PROCESS:
        # What was made after the signal has not heard it (and where nothing may be killed, the rest was spared so far).
        _ask_to_end(ledger, name)


def _kills_leftover(ledger: Ledger, name: str) -> bool:
    """Tell whether what outlives the main process is killed without being asked; it is asked where one of it is the
    main process that nobody knows.
    """
    kill = service_of(ledger, name).kill
    return kill.mode is KillMode.MIXED and kill.send_sigkill and not has_no_known_main(ledger, name)


def over(ledger: Ledger, name: str) -> None:
    """No process is left: run exec-stop-post if it has not run, else end the life."""
    if not ledger.state(name).post_done and service_of(ledger, name).exec_stop_post and not _is_forced(ledger):
        run_command(ledger, name, SubState.STOP_POST, Role.STOP_POST, 0)
    else:
        end(ledger, name)


def _only_leftover(state: UnitState) -> bool:
    return state.main is None and state.control is None


def _is_forced(ledger: Ledger) -> bool:
    shutdown = ledger.globals.shutdown
    return shutdown is not None and shutdown.forced


def _ask_to_end(ledger: Ledger, name: str) -> None:
    """Send the signal that the unit is stopped with, or restarted with."""
    kill, job = service_of(ledger, name).kill, ledger.job_of.get(name)
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
    if not targets or service_of(ledger, name).kill.mode is KillMode.CONTROL_GROUP:
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
    _begin_stopping(ledger, name, "the shutdown was forced", quiet=False)
    if is_gone(ledger, name):
        over(ledger, name)
    else:
        enter_kill(ledger, name)


def end(ledger: Ledger, name: str) -> None:
    """The life is over: count it, and decide what follows."""
    unit = ledger.unit(name)
    state = ledger.edit(name)
    assert unit is not None
    service = unit.service
    if state.healthy_at_ns is not None and state.healthy_at_ns <= ledger.now.mono_ns:
        forget_failures(ledger, name)
    state.healthy_at_ns = state.timeout_at_ns = state.runtime_end_ns = None
    good = state.result is Result.SUCCESS
    state.succeeded = good and state.was_up and state.ending is Ending.ITSELF
    state.last_life = LastLife(
        state.result,
        state.exit_code if state.main_ended else None,
        state.exit_signal if state.main_ended else None,
        max(0, ledger.now.mono_ns - state.began_ns) // 1_000_000,
    )
    for other in ledger.graph[name].bound_by:
        ledger.intents.append(Task(Intent.STOP_BOUND, other, name, state.cause))
    oneshot = service is not None and service.type is ServiceType.ONESHOT
    state.accomplished = oneshot and state.succeeded
    if state.accomplished:
        forget_failures(ledger, name)
    if not good and state.result is not Result.EXEC_CONDITION and state.ending is Ending.ITSELF:
        state.failures += 1
    if service is not None and _is_restarted(ledger, name, state, service, oneshot):
        _schedule_restart(ledger, name, state, service)
        return
    _rest(ledger, name, unit, state)


def _is_restarted(ledger: Ledger, name: str, state: UnitState, service: Service, oneshot: bool) -> bool:
    if state.ending is not Ending.ITSELF or ledger.globals.shutdown is not None:
        return False
    job = ledger.job_of.get(name)
    if job is not None and job.state is JobState.WAITING and job.named:
        # Somebody asked for a start (or a stop) while this life was ending: that is what happens next.
        return False
    if state.result is not Result.SUCCESS and is_limit_hit(service.restart, state.failures):
        return False
    return wants_restart(service.restart, state.result, oneshot=oneshot, main=main_status(state))


def main_status(state: UnitState) -> ExitStatus | None:
    """Return how the main process of this life ended, None without one."""
    if not state.main_ended:
        return None
    signal = None if state.exit_signal is None else parse_signal(state.exit_signal)
    return ExitStatus(state.exit_code, signal, state.exit_dumped)


def _schedule_restart(ledger: Ledger, name: str, state: UnitState, service: Service) -> None:
    state.backoff += 1
    delay_ns = restart_delay_ns(service.restart, state.backoff)
    if service.restart.jitter > 0:
        delay_ns += jitter_ns(service.restart, delay_ns, ledger.draw())
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


def _rest(ledger: Ledger, name: str, unit: Unit, state: UnitState) -> None:
    if state.ending is Ending.BOUND:
        waits = unit.on_dependency_failure is OnDependencyFailure.WAIT
        state.result = Result.DEPENDENCY
        ledger.set_sub(name, SubState.DEPENDENCY if waits else SubState.FAILED)
        # What it is bound to may be back already: nothing else would tell it.
        ledger.intents.append(Task(Intent.RECOVERED, name, name, state.cause))
    else:
        is_good = state.result in (Result.SUCCESS, Result.EXEC_CONDITION)
        ledger.set_sub(name, SubState.DEAD if is_good else SubState.FAILED)
    fields = {"result": state.result.value, "runtime_ms": state.last_life.runtime_ms if state.last_life else 0}
    if state.message:
        fields["message"] = state.message
    if state.errno is not None:
        fields["errno"] = state.errno
    if state.sub is not SubState.FAILED:
        ledger.record("unit.stopped", name, fields=fields)
        return
    service = unit.service
    limited = service is not None and state.ending is Ending.ITSELF and is_limit_hit(service.restart, state.failures)
    ledger.record(
        "unit.failed",
        name,
        severity=Severity.ERROR,
        fields={**fields, "failures": state.failures, "limit_hit": limited},
    )


def describe_exit(code: int | None, signal: int | None, dumped: bool) -> str:
    """Say how a process ended: ``exited with code 1``, ``was killed by SIGKILL``."""
    if code is not None:
        return f"exited with code {code}"
    if signal is None:
        return "ended, and the kernel no longer tells how"
    return f"was killed by {format_signal(signal)}" + (" and dumped core" if dumped else "")

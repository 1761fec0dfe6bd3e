"""The state machine of a service: which of the ``steps`` each input leads to in each state.

Theory of operation
-------------------
Facts and orders are first booked (which process ended, how, what is left), then fed to ``TRANSITIONS`` as an ``Input``.
The table is keyed by names; a pair that is in neither the table nor ``IGNORED`` is a bug, and a test holds the three
sets against each other. Targets have no processes: they take the two orders only, by the same states.

Source: systemd, core/service.c (service_sigchld_event, service_dispatch_timer, service_notify_message); system-anchors
1.5 to 1.7.
"""

from collections.abc import Callable
from enum import Enum

from supervisord_py.core import processes, steps, stopping
from supervisord_py.core.events import (
    Breach,
    ExitStatus,
    LimitExceeded,
    MainFollowed,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    TreeEmptied,
)
from supervisord_py.core.failed_spawn import describe, with_program, with_sandbox
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.restart import exit_result
from supervisord_py.core.state import (
    ACTIVE_STATES,
    ARMED,
    BETWEEN_LIVES,
    REST,
    STARTING,
    STOPPING,
    UP,
    Ending,
    Former,
    Process,
    UnitState,
)
from supervisord_py.core.steps import Ended
from supervisord_py.model.states import OomPolicy, ProbeAction, Result, Role, ServiceType, Severity, SubState
from supervisord_py.model.unit import Command, Probe
from supervisord_py.model.values import format_signal, format_size

SIGKILL = 9


class Input(Enum):
    """What can happen to a service."""

    SPAWNED = "spawned"
    FOLLOWED = "followed"
    """The main process that a start command left is known, or will not be (then the input is a failure)."""
    MAIN_ENDED = "main-ended"
    CONTROL_ENDED = "control-ended"
    TREE_EMPTIED = "tree-emptied"
    DEADLINE = "deadline"
    IDLE = "idle"
    """No other job runs or waits."""
    READY = "ready"
    RELOADING = "reloading"
    STOPPING = "stopping"
    WATCHDOG = "watchdog"
    FAULT = "fault"
    """Something that watches the unit has found it faulty; the result says what."""
    BREACH = "breach"
    """It takes more than it may, and nothing but us holds it back."""
    UNUSED = "unused"
    """Nothing has come to it for its idle time."""
    START = "start"
    ARM = "arm"
    """It is to wait for the time, or the connection, at which it is run."""
    STOP = "stop"
    RELOAD = "reload"


Handler = Callable[[Ledger, str, Ended], None]

_NOTHING = Ended(Result.SUCCESS, "")

FAILED_CONDITION = 255
"""The exit code of an ``exec-condition`` that has failed; any other than 0 skips the start."""


# entries: what the manager calls


def feed(ledger: Ledger, name: str, what: Input, ended: Ended = _NOTHING) -> None:
    """Let one input happen to a unit."""
    if what not in (Input.FOLLOWED, Input.TREE_EMPTIED, Input.READY) and processes.looks_for_successor(ledger, name):
        # Whatever happens now is too late for a new main process: the unit ends as the one that it had.
        what, ended = Input.FOLLOWED, Ended(Result.PROTOCOL, "")
    sub = ledger.state(name).sub
    handler = TRANSITIONS.get((sub, what))
    if handler is not None:
        handler(ledger, name, ended)
    elif (sub, what) not in IGNORED:
        # A bug, told loudly. Not an assertion: the fact would be told to the next manager again, and end that one too.
        message = f"internal error: {what.value} happened to {name} in {sub.value}"
        ledger.record("unit.error", name, severity=Severity.ERROR, fields={"message": message}, chain=False)


def process_spawned(ledger: Ledger, event: ProcessSpawned) -> None:
    name = ledger.unit_of_spawn.get(event.spawn_id)
    if name is None:
        return
    process = _process(ledger.edit(name), event.spawn_id)
    if process is not None:
        process.pid, process.degraded = event.pid, event.degraded
        if process.role is Role.START:
            # What it leaves behind runs as it did.
            ledger.edit(name).start_degraded = event.degraded
        feed(ledger, name, Input.SPAWNED)


def spawn_failed(ledger: Ledger, event: SpawnFailed) -> None:
    """Book a process that never ran its program as one that exited with systemd's code for the step; without a code
    (0: not even a process was made) nothing has exited.
    """
    name = ledger.unit_of_spawn.pop(event.spawn_id, None)
    if name is None or (process := _process(ledger.state(name), event.spawn_id)) is None:
        return
    command = _command(ledger, name, process)
    event = with_program(event, None if command is None else command.words[0])
    service = ledger.service(name)
    if service is not None and command is not None and not command.privileged:
        event = with_sandbox(event, service.context)
    ledger.record(
        "unit.exited",
        name,
        severity=Severity.WARNING,
        fields={
            "spawn_id": event.spawn_id,
            "pid": None,
            "role": process.role.value,
            "code": event.code or None,
            "core": False,
            "rusage": {},
            "runtime_ms": 0,
            "step": event.step,
            "errno": event.errno,
            "detail": event.detail,
        },
    )
    result = Result.RESOURCES if event.step in ("fork", "environment-file") else Result.EXIT_CODE
    _process_over(ledger, name, process, ExitStatus(code=event.code or None), result, describe(process.role, event))


def process_exited(ledger: Ledger, event: ProcessExited) -> None:
    """Write ``unit.exited``, whatever it means, and let it happen to the unit."""
    name = ledger.unit_of_spawn.get(event.spawn_id)
    if name is None or not event.main:
        _former_exited(ledger, name, event)
        return
    process = _process(ledger.state(name), event.spawn_id)
    if process is None:
        _former_exited(ledger, name, event)
        return
    service = processes.service_of(ledger, name)
    daemon = process.role in (Role.MAIN, Role.START, Role.STUB) and service.type is not ServiceType.ONESHOT
    status = event.status
    result = exit_result(status, daemon=daemon, success=service.success)
    if process.role is Role.CONDITION and result is Result.EXIT_CODE and status.code != FAILED_CONDITION:
        result = Result.EXEC_CONDITION
    if event.breach is not None:
        _record_breach(ledger, name, event.breach)
        result = _result_of_kill(result, status, service.oom_policy)
    good = result in (Result.SUCCESS, Result.EXEC_CONDITION)
    _record_exit(ledger, name, process.role, event, Severity.INFO if good else Severity.WARNING)
    state = ledger.edit(name)
    _forget_spawn(ledger, state, event.spawn_id, still_main=False)
    state.leftover = not event.tree_empty
    state.unseen = process.role is Role.MAIN and event.runtime_ms is None
    what = "main process" if process.role is Role.MAIN else f"{process.role.value} command"
    message = f"its {what} {processes.describe_exit(status.code, status.signal, status.core_dumped)}"
    if result is Result.OOM_KILL and event.breach is not None:
        by_whom = "by the kernel" if status.signal == SIGKILL else "after the kernel had killed a process of it"
        message += f" {by_whom}, for its memory was full ({_describe_breach(event.breach)})"
    _process_over(ledger, name, process, status, result, message)


def main_followed(ledger: Ledger, event: MainFollowed) -> None:
    """Let the process be the unit's main one; one that comes too late is booked as a process that is not any more."""
    name = event.unit
    state = ledger.edit(name)
    if state.following == event.spawn_id:
        state.following = None
        if event.pid is None:
            ledger.unit_of_spawn.pop(event.spawn_id, None)
            message = f"its main process could not be found: {event.refused}"
            feed(ledger, name, Input.FOLLOWED, Ended(Result.PROTOCOL, message))
        else:
            is_guess = processes.service_of(ledger, name).pid_file is None
            state.main = Process(
                event.spawn_id, Role.MAIN, pid=event.pid, degraded=state.start_degraded, is_guess=is_guess
            )
            feed(ledger, name, Input.FOLLOWED)
        # A reload may have waited for it.
        ledger.changed[name] = None
    elif event.pid is not None and event.spawn_id not in ledger.unit_of_spawn:
        state.former = [*state.former, Former(event.spawn_id, state.invocation, event.pid)]
        ledger.unit_of_spawn[event.spawn_id] = name
        state.leftover = state.held = True


def _former_exited(ledger: Ledger, name: str | None, event: ProcessExited) -> None:
    """Book the end of a process that is nobody's main one any more; it is told, and decides nothing."""
    if name is None:
        _record_exit(ledger, None, Role.MAIN, event, _severity(event))
        return
    state = ledger.edit(name)
    former = next((each for each in state.former if each.spawn_id == event.spawn_id), None)
    invocation = former.invocation if former is not None else None
    _record_exit(ledger, name, Role.MAIN, event, _severity(event), invocation)
    if former is not None:
        place = state.former.index(former)
        state.former = [*state.former[:place], *state.former[place + 1 :]]
    _forget_spawn(ledger, state, event.spawn_id, still_main=_process(state, event.spawn_id) is not None)
    if event.tree_empty and state.leftover:
        state.leftover = False
        feed(ledger, name, Input.TREE_EMPTIED)


def _forget_spawn(ledger: Ledger, state: UnitState, spawn_id: int, *, still_main: bool) -> None:
    """Forget whose a spawn id is once none of its processes is left."""
    if not still_main and all(each.spawn_id != spawn_id for each in state.former):
        ledger.unit_of_spawn.pop(spawn_id, None)


def tree_emptied(ledger: Ledger, event: TreeEmptied) -> None:
    if ledger.state(event.unit).leftover:
        ledger.edit(event.unit).leftover = False
        feed(ledger, event.unit, Input.TREE_EMPTIED)


def found_unhealthy(ledger: Ledger, name: str, probe: Probe, message: str) -> None:
    """A health check has failed for good: do what it is to lead to."""
    if probe.action is ProbeAction.STOP:
        state = ledger.edit(name)
        state.stopped, state.ending = True, Ending.ORDER
    feed(ledger, name, Input.FAULT, Ended(Result.HEALTH, message, 0))
    if probe.action is ProbeAction.KILL and ledger.state(name).sub in (SubState.STOP, SubState.STOP_SIGTERM):
        stopping.enter_kill(ledger, name)


def _result_of_kill(result: Result, status: ExitStatus, policy: OomPolicy) -> Result:
    """Return how a life ended in which the kernel has killed a process because the memory was full."""
    if (result is Result.SIGNAL and status.signal == SIGKILL) or result is Result.UNKNOWN:
        return Result.OOM_KILL
    return Result.OOM_KILL if result is Result.SUCCESS and policy is not OomPolicy.CONTINUE else result


def limit_exceeded(ledger: Ledger, event: LimitExceeded) -> None:
    """End a life that takes more than it may, where only we see it: at once, for it will not get less; one of which the
    kernel has killed a process, as its ``oom-policy`` says."""
    name = event.unit
    if ledger.state(name).invocation != event.invocation:
        return
    _record_breach(ledger, name, event.breach)
    policy = processes.service_of(ledger, name).oom_policy if event.by_kernel else OomPolicy.KILL
    if policy is OomPolicy.CONTINUE or _has_ended_well(ledger, name):
        return
    if event.by_kernel:
        message = f"the kernel killed a process of it, for its memory was full ({_describe_breach(event.breach)})"
        found = Ended(Result.OOM_KILL, message)
    else:
        result = Result.MEMORY_LIMIT if event.breach.limit == "memory-max" else Result.RESOURCES
        found = Ended(result, f"it exceeded {_describe_breach(event.breach)}")
    sub = ledger.state(name).sub
    if policy is OomPolicy.KILL:
        feed(ledger, name, Input.BREACH, found)
    elif sub in _BEFORE_START:
        # What processes say then means nothing, what they take does.
        steps.found_faulty(ledger, name, found)
    elif sub is SubState.STUB:
        steps.stub_ended(ledger, name, found)
    else:
        feed(ledger, name, Input.FAULT, found)


def _has_ended_well(ledger: Ledger, name: str) -> bool:
    """Tell whether a life is up without any process: its work was done before it could be ended for what it took."""
    state = ledger.state(name)
    return state.sub is SubState.EXITED and not state.leftover


def _record_breach(ledger: Ledger, name: str, breach: Breach) -> None:
    fields = {"limit": breach.limit, "value": breach.value, "most": breach.most, "mechanism": breach.mechanism}
    ledger.record("unit.limit", name, severity=Severity.WARNING, fields=fields)


def _describe_breach(breach: Breach) -> str:
    show = format_size if breach.limit.startswith("memory") else str
    return f"{breach.limit} = {show(breach.most)}, it had {show(breach.value)}"


def order_stop(ledger: Ledger, name: str, ending: Ending, reason: str) -> None:
    """Stop the unit; what was asked for outweighs what followed from another unit."""
    state = ledger.edit(name)
    if state.ending is not Ending.ORDER:
        state.ending = ending
    feed(ledger, name, Input.STOP, Ended(Result.SUCCESS, reason))


def _process(state: UnitState, spawn_id: int) -> Process | None:
    for process in (state.main, state.control):
        if process is not None and process.spawn_id == spawn_id:
            return process
    return None


def _severity(event: ProcessExited) -> Severity:
    """How the end of a process that decides nothing is told."""
    return Severity.INFO if event.status.code == 0 or not event.main else Severity.WARNING


def _record_exit(
    ledger: Ledger,
    name: str | None,
    role: Role,
    event: ProcessExited,
    severity: Severity,
    invocation: str | None = None,
) -> None:
    status = event.status
    end: dict[str, object] = {}
    if status.signal is not None:
        end["signal"] = format_signal(status.signal)
    elif status.code is not None:
        end["code"] = status.code
    ledger.record(
        "unit.exited",
        name,
        severity=severity,
        fields={
            "spawn_id": event.spawn_id,
            "pid": event.pid,
            "role": role.value,
            **end,
            "core": status.core_dumped,
            "rusage": event.rusage,
            "runtime_ms": event.runtime_ms,
            **({} if event.main else {"handed_over": True}),
        },
        chain=event.main,
        invocation=invocation,
    )


def _process_over(
    ledger: Ledger, name: str, process: Process, status: ExitStatus, result: Result, message: str
) -> None:
    state = ledger.edit(name)
    command = _command(ledger, name, process)
    if process.role is Role.MAIN:
        state.main, state.main_ended = None, True
        state.exit_code, state.exit_dumped = status.code, status.core_dumped
        state.exit_signal = format_signal(status.signal) if status.signal is not None else None
        if _is_stand_in(ledger, name, process, status):
            state.main_ended = False
    else:
        state.control = None
    if command is not None and command.ignore_failure:
        result = Result.SUCCESS
    what = Input.MAIN_ENDED if process.role is Role.MAIN else Input.CONTROL_ENDED
    feed(ledger, name, what, Ended(result, message, process.index))


def _is_stand_in(ledger: Ledger, name: str, process: Process, status: ExitStatus) -> bool:
    """Tell whether a guess was wrong: a daemon that forks twice leaves first the process in between, which ends well as
    soon as it has made the real one. What is left then stands for the main process, until one of it is known.
    """
    state = ledger.state(name)
    return process.is_guess and status.code == 0 and state.leftover and state.sub in UP | STARTING


def _command(ledger: Ledger, name: str, process: Process) -> Command | None:
    if process.role is Role.STUB:
        return None
    commands = processes.commands_of(processes.service_of(ledger, name), process.role)
    return commands[process.index] if process.index < len(commands) else None


# the table

SIGNAL_PHASES = (
    SubState.STOP_WATCHDOG,
    SubState.STOP_SIGTERM,
    SubState.STOP_SIGKILL,
    SubState.FINAL_SIGTERM,
    SubState.FINAL_SIGKILL,
    SubState.STUCK,
)

FINAL = frozenset({SubState.FINAL_SIGTERM, SubState.FINAL_SIGKILL})
"""What exec-stop-post has left ends."""

TRANSITIONS: dict[tuple[SubState, Input], Handler] = {
    (SubState.DEAD, Input.START): steps.begin,
    (SubState.FAILED, Input.START): steps.begin,
    (SubState.DEPENDENCY, Input.START): steps.begin,
    (SubState.DEPENDENCY, Input.STOP): steps.give_up_waiting,
    **{(sub, Input.ARM): steps.arm for sub in sorted(REST, key=lambda sub: sub.value)},
    (SubState.WAITING, Input.START): steps.begin,
    (SubState.WAITING, Input.STOP): steps.disarm,
    (SubState.LISTENING, Input.START): steps.begin,
    (SubState.LISTENING, Input.STOP): steps.stop_listening,
    (SubState.AUTO_RESTART, Input.START): steps.begin,
    (SubState.AUTO_RESTART, Input.STOP): steps.give_up_waiting,
    (SubState.AUTO_RESTART, Input.DEADLINE): steps.backoff_over,
    (SubState.AUTO_RESTART_QUEUED, Input.START): steps.begin,
    (SubState.AUTO_RESTART_QUEUED, Input.STOP): steps.give_up_waiting,
    (SubState.CONDITION, Input.CONTROL_ENDED): steps.condition_ended,
    (SubState.CONDITION, Input.TREE_EMPTIED): steps.condition_swept,
    (SubState.CONDITION, Input.DEADLINE): steps.start_timed_out,
    (SubState.CONDITION, Input.STOP): steps.stop_starting,
    (SubState.START_PRE, Input.CONTROL_ENDED): steps.pre_ended,
    (SubState.START_PRE, Input.TREE_EMPTIED): steps.pre_swept,
    (SubState.START_PRE, Input.DEADLINE): steps.start_timed_out,
    (SubState.START_PRE, Input.STOP): steps.stop_starting,
    (SubState.START, Input.SPAWNED): steps.main_spawned,
    (SubState.START, Input.IDLE): steps.others_are_done,
    (SubState.START, Input.FOLLOWED): steps.followed,
    (SubState.START, Input.MAIN_ENDED): steps.start_ended,
    (SubState.START, Input.CONTROL_ENDED): steps.start_command_ended,
    (SubState.START, Input.TREE_EMPTIED): steps.emptied_in_start,
    (SubState.START, Input.READY): steps.ready,
    (SubState.START, Input.DEADLINE): steps.start_deadline,
    (SubState.START, Input.WATCHDOG): steps.watchdog_triggered,
    (SubState.START, Input.STOP): steps.stop_starting,
    (SubState.START_POST, Input.FOLLOWED): steps.followed_at_last,
    (SubState.START_POST, Input.MAIN_ENDED): steps.main_ended_in_post,
    (SubState.START_POST, Input.CONTROL_ENDED): steps.start_post_ended,
    (SubState.START_POST, Input.TREE_EMPTIED): steps.emptied_in_start,
    (SubState.START_POST, Input.READY): steps.has_reloaded_itself,
    (SubState.START_POST, Input.RELOADING): steps.also_reloads_itself,
    (SubState.START_POST, Input.DEADLINE): steps.start_timed_out,
    (SubState.START_POST, Input.WATCHDOG): steps.watchdog_triggered,
    (SubState.START, Input.FAULT): steps.found_faulty,
    (SubState.START_POST, Input.FAULT): steps.found_faulty,
    (SubState.RUNNING, Input.FAULT): steps.found_faulty_while_up,
    (SubState.RELOAD, Input.FAULT): steps.found_faulty,
    **{(sub, Input.BREACH): steps.took_too_much for sub in sorted(STARTING | UP, key=lambda sub: sub.value)},
    (SubState.STUB, Input.BREACH): steps.stub_took_too_much,
    **{
        (sub, Input.BREACH): steps.took_too_much_in_its_end
        for sub in (SubState.STOP, SubState.STOP_WATCHDOG, SubState.STOP_SIGTERM, SubState.FINAL_SIGTERM)
    },
    (SubState.STOP_POST, Input.BREACH): steps.took_too_much_in_post,
    (SubState.START_POST, Input.STOP): steps.stop_starting,
    (SubState.RUNNING, Input.FOLLOWED): steps.succeeded_or_not,
    (SubState.RUNNING, Input.MAIN_ENDED): steps.main_ended_while_up,
    (SubState.RUNNING, Input.TREE_EMPTIED): steps.emptied_while_up,
    (SubState.RUNNING, Input.DEADLINE): steps.ran_too_long,
    (SubState.RUNNING, Input.RELOADING): steps.reloads_itself,
    (SubState.RUNNING, Input.STOPPING): steps.says_stopping,
    (SubState.RUNNING, Input.WATCHDOG): steps.watchdog_triggered,
    (SubState.RUNNING, Input.STOP): steps.stop,
    (SubState.RUNNING, Input.RELOAD): steps.reload,
    (SubState.RUNNING, Input.UNUSED): steps.found_unused,
    (SubState.PAUSED, Input.MAIN_ENDED): steps.main_ended_while_paused,
    (SubState.PAUSED, Input.TREE_EMPTIED): steps.emptied_while_paused,
    (SubState.PAUSED, Input.WATCHDOG): steps.watchdog_triggered,
    (SubState.PAUSED, Input.FAULT): steps.found_faulty_while_up,
    (SubState.PAUSED, Input.STOP): steps.stop,
    (SubState.EXITED, Input.STOP): steps.stop,
    (SubState.EXITED, Input.RELOAD): steps.reload,
    (SubState.RELOAD, Input.FOLLOWED): steps.succeeded_or_not_in_reload,
    (SubState.RELOAD, Input.MAIN_ENDED): steps.main_ended_in_reload,
    (SubState.RELOAD, Input.CONTROL_ENDED): steps.reload_ended,
    (SubState.RELOAD, Input.TREE_EMPTIED): steps.emptied_in_reload,
    (SubState.RELOAD, Input.READY): steps.reload_ready,
    (SubState.RELOAD, Input.RELOADING): steps.also_reloads_itself,
    (SubState.RELOAD, Input.STOPPING): steps.says_stopping,
    (SubState.RELOAD, Input.WATCHDOG): steps.watchdog_triggered,
    (SubState.RELOAD, Input.DEADLINE): steps.reload_timed_out,
    (SubState.RELOAD, Input.STOP): steps.stop_in_reload,
    (SubState.STUB, Input.SPAWNED): steps.stub_spawned,
    (SubState.STUB, Input.CONTROL_ENDED): steps.stub_ended,
    (SubState.STUB, Input.STOP): steps.stop_starting,
    (SubState.STOP, Input.MAIN_ENDED): steps.main_ended_in_stop,
    (SubState.STOP, Input.CONTROL_ENDED): steps.stop_command_ended,
    (SubState.STOP, Input.DEADLINE): steps.stop_command_timed_out,
    **{(sub, Input.MAIN_ENDED): steps.ended_in_signal for sub in SIGNAL_PHASES if sub not in FINAL},
    **{(sub, Input.CONTROL_ENDED): steps.control_ended_in_signal for sub in SIGNAL_PHASES},
    **{(sub, Input.TREE_EMPTIED): steps.emptied_in_signal for sub in SIGNAL_PHASES},
    (SubState.STOP_WATCHDOG, Input.DEADLINE): steps.signal_timed_out,
    (SubState.STOP_SIGTERM, Input.DEADLINE): steps.signal_timed_out,
    (SubState.STOP_SIGKILL, Input.DEADLINE): steps.kill_timed_out,
    (SubState.FINAL_SIGTERM, Input.DEADLINE): steps.signal_timed_out,
    (SubState.FINAL_SIGKILL, Input.DEADLINE): steps.kill_timed_out,
    (SubState.STUCK, Input.STOP): steps.kill_again,
    (SubState.STOP_POST, Input.CONTROL_ENDED): steps.post_ended,
    (SubState.STOP_POST, Input.DEADLINE): steps.post_timed_out,
}
"""What follows in each state from each input that means something there."""

_FAULTS = (Input.WATCHDOG, Input.FAULT)
_NOTIFIED = (Input.READY, Input.RELOADING, Input.STOPPING, Input.WATCHDOG, Input.FAULT)
_KILLED = (SubState.STOP_SIGKILL, SubState.FINAL_SIGKILL, SubState.STUCK)
_IDLE = tuple(sorted(REST | BETWEEN_LIVES | ARMED, key=lambda sub: sub.value))

_BEFORE_START = (SubState.CONDITION, SubState.START_PRE)

IGNORED: dict[tuple[SubState, Input], str] = {
    **{(sub, what): "a process of an old life speaks" for sub in _IDLE for what in _NOTIFIED},
    **{(sub, Input.TREE_EMPTIED): "leftovers of an old life end" for sub in _IDLE},
    **{(sub, Input.BREACH): "what is left of an old life was let live" for sub in _IDLE},
    **{(sub, Input.BREACH): "it is being killed" for sub in _KILLED},
    **{(sub, Input.STOP): "it is down" for sub in (SubState.DEAD, SubState.FAILED)},
    **{(sub, what): "only commands of the start run" for sub in _BEFORE_START for what in _NOTIFIED},
    **{(sub, Input.SPAWNED): "the end of the command matters" for sub in (*_BEFORE_START, SubState.START_POST)},
    (SubState.START, Input.RELOADING): "it is not up yet",
    **{(sub, Input.STOPPING): "its exit will tell" for sub in (SubState.START, SubState.START_POST)},
    **{(sub, Input.START): "it is starting" for sub in sorted(STARTING, key=lambda sub: sub.value)},
    **{(sub, Input.START): "it is up" for sub in sorted(UP, key=lambda sub: sub.value)},
    (SubState.EXITED, Input.TREE_EMPTIED): "it is up without a process",
    (SubState.RUNNING, Input.READY): "it is up",
    **{
        (SubState.PAUSED, what): "said before it stood still" for what in (Input.READY, Input.RELOADING, Input.STOPPING)
    },
    **{(SubState.EXITED, what): "its main process is gone" for what in _NOTIFIED},
    (SubState.RELOAD, Input.SPAWNED): "the end of the command matters",
    (SubState.RELOAD, Input.RELOAD): "it is reloading",
    (SubState.STOP, Input.SPAWNED): "the end of the command matters",
    (SubState.STOP_POST, Input.SPAWNED): "the end of the command matters",
    **{(sub, Input.SPAWNED): "it was signalled before its program ran" for sub in SIGNAL_PHASES},
    **{(sub, what): "it is ending" for sub in sorted(STOPPING, key=lambda sub: sub.value) for what in _NOTIFIED},
    **{(sub, Input.STOP): "it is ending" for sub in sorted(STOPPING - {SubState.STUCK}, key=lambda sub: sub.value)},
    (SubState.STOP, Input.TREE_EMPTIED): "exec-stop matters",
    (SubState.STOP_POST, Input.TREE_EMPTIED): "exec-stop-post matters",
    (SubState.STUB, Input.TREE_EMPTIED): "the stub itself matters",
    **{(SubState.STUB, what): "the word of a stub is not that of the unit" for what in _NOTIFIED},
}
"""What may happen and means nothing, with the reason."""

_NO_MAIN = (*_IDLE, SubState.EXITED, SubState.STUB)
_NO_PROCESS = (*_IDLE, SubState.EXITED)

IMPOSSIBLE: dict[tuple[SubState, Input], str] = {
    **{(sub, Input.MAIN_ENDED): "there is no main process" for sub in (*_NO_MAIN, *_BEFORE_START)},
    **{
        (sub, Input.MAIN_ENDED): "there is no main process"
        for sub in (SubState.STOP_POST, SubState.FINAL_SIGTERM, SubState.FINAL_SIGKILL)
    },
    **{(sub, Input.CONTROL_ENDED): "no command runs" for sub in (*_NO_PROCESS, SubState.RUNNING, SubState.PAUSED)},
    **{(sub, Input.FOLLOWED): "nobody asked" for sub in (*_NO_MAIN, SubState.PAUSED, *_BEFORE_START)},
    **{(sub, Input.FOLLOWED): "the asking was called off" for sub in sorted(STOPPING, key=lambda sub: sub.value)},
    **{
        (sub, Input.IDLE): "nobody waits for it"
        for sub in sorted(ACTIVE_STATES, key=lambda sub: sub.value)
        if sub is not SubState.START
    },
    **{(sub, Input.SPAWNED): "no process is being made" for sub in (*_NO_PROCESS, SubState.RUNNING, SubState.PAUSED)},
    **{
        (sub, Input.DEADLINE): "there is no deadline"
        for sub in (*_IDLE, SubState.EXITED, SubState.STUCK, SubState.STUB, SubState.PAUSED)
        if sub is not SubState.AUTO_RESTART
    },
    **{
        (sub, Input.UNUSED): "only what runs is found unused"
        for sub in sorted(ACTIVE_STATES, key=lambda sub: sub.value)
        if sub is not SubState.RUNNING
    },
    **{
        (sub, Input.ARM): "only what is at rest is armed"
        for sub in sorted(ACTIVE_STATES, key=lambda sub: sub.value)
        if sub not in REST
    },
    (SubState.STUB, Input.START): "the stub is ended first",
    **{(sub, Input.START): "the job waits for the end" for sub in sorted(STOPPING, key=lambda sub: sub.value)},
    **{
        (sub, Input.RELOAD): "the job is refused"
        for sub in (*_IDLE, SubState.STUB, SubState.PAUSED, *sorted(STARTING | STOPPING, key=lambda sub: sub.value))
    },
}
"""What cannot happen, with the reason; if it does, that is a bug, and an error in the journal."""

NOT_ENTERED = frozenset(
    {
        SubState.POOL,
    }
)
"""States of what this machine does not run: pools."""

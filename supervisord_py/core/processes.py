"""The processes of a unit: which of them are there, and how one is asked for.

The main process of a forking unit is made by its start command and *followed* afterwards: until ``MainFollowed`` there
is none. Where none can be told from the others, the unit is up while any process of it is left.

Law: a process is asked for only when its ``unit.starting`` is written.

Source: systemd, core/service.c (service_spawn, main_pid_good, service_search_main_pid); system-anchors 1.6, 1.10.
"""

from msgspec import json

from supervisord_py.core.actions import FollowMain, Handed, SpawnProcess
from supervisord_py.core.events import ExitStatus
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import Monitor, Process, UnitState
from supervisord_py.model.states import KillMode, Role, ServiceType, SubState
from supervisord_py.model.unit import Command, Service
from supervisord_py.model.values import format_signal, parse_signal

FORCED_KILL_NS = 5_000_000_000
"""How long a forced shutdown waits for the kernel after SIGKILL."""

KILL_SHARE = 8
"""In a shutdown the wait after the final signal is this fraction of the stop time-out: processes rarely need it."""

_HANDED = frozenset({Role.MAIN, Role.START, Role.STUB})
_MONITORS = frozenset({Role.CONDITION, Role.START_PRE, Role.START, Role.MAIN})
"""The commands that are told whose end started the unit."""


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
        case Role.STUB | Role.PROBE | Role.HOOK:
            raise AssertionError(f"internal error: {role.value} is no command of a life")


def is_gone(ledger: Ledger, name: str) -> bool:
    """Tell whether no process is left that belongs to the life."""
    state = ledger.state(name)
    if state.main is not None or state.control is not None:
        return False
    return not state.leftover or spares_leftover(ledger, name)


def spares_leftover(ledger: Ledger, name: str) -> bool:
    """Tell whether only known processes are ended (``kill-mode = "process"``); where none is known to be the main one,
    it may be any of those that are left.
    """
    is_known = ledger.state(name).post_done or not has_no_known_main(ledger, name)
    return service_of(ledger, name).kill.mode is KillMode.PROCESS and is_known


def has_no_known_main(ledger: Ledger, name: str) -> bool:
    """Tell whether the unit's main process is one that nobody knows, so that its whole tree stands for it."""
    state, service = ledger.state(name), ledger.service(name)
    is_forking = service is not None and service.type is ServiceType.FORKING
    # The daemon of a unit that is up was left by its start command, in a state that does not say so yet too.
    has_forked = state.forked or state.started
    return is_forking and has_forked and state.main is None and not state.main_ended


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


def waits_for_pid_file(ledger: Ledger, name: str) -> bool:
    """Tell whether the unit's pid file may still come; before ``exec-start-post``, which may write it, it need not."""
    sub = ledger.state(name).sub
    return sub is SubState.START_POST or (sub is SubState.START and not service_of(ledger, name).exec_start_post)


def looks_for_successor(ledger: Ledger, name: str) -> bool:
    """Tell whether the main process has ended and the pid file is being looked at for the one that took its place."""
    state = ledger.state(name)
    return state.sub is SubState.RUNNING and state.following is not None and state.main_ended


def main_status(state: UnitState) -> ExitStatus | None:
    """Return how the main process of this life ended, None without one."""
    if not state.main_ended:
        return None
    signal = None if state.exit_signal is None else parse_signal(state.exit_signal)
    return ExitStatus(state.exit_code, signal, state.exit_dumped)


def describe_exit(code: int | None, signal: int | None, dumped: bool) -> str:
    """Say how a process ended: ``exited with code 1``, ``was killed by SIGKILL``."""
    if code is not None:
        return f"exited with code {code}"
    if signal is None:
        return "ended, and the kernel no longer tells how"
    return f"was killed by {format_signal(signal)}" + (" and dumped core" if dumped else "")


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
        environment=environment(ledger, name, role),
        main_spawn=state.main.spawn_id if state.main is not None and role is not Role.MAIN else None,
        handed=handed(ledger, name, role),
    )
    ledger.spawn(name, process, action)


def handed(ledger: Ledger, name: str, role: Role) -> Handed | None:
    """Return what a process is handed over, None for nothing: the program itself gets it, and no command beside it."""
    unit, connection = ledger.unit(name), ledger.state(name).connection
    if role not in _HANDED or unit is None or unit.service is None:
        return None
    if connection is not None:
        return None if connection.number is None else Handed(connection.unit, connection.number)
    return Handed(name) if unit.sockets is not None or unit.service.store_max else None


def follow(ledger: Ledger, name: str, *, wait: bool) -> None:
    """Ask for the main process that a start command has left behind."""
    state = ledger.edit(name)
    state.following = ledger.new_spawn_id()
    ledger.unit_of_spawn[state.following] = name
    ledger.act(FollowMain(name, state.following, service_of(ledger, name).pid_file, wait))


def environment(ledger: Ledger, name: str, role: Role) -> tuple[tuple[str, str], ...]:
    """Return what only the core knows about the process; the host adds the rest."""
    state = ledger.state(name)
    variables = [
        ("INVOCATION_ID", state.invocation or ""),
        ("SUPERVISORD_PY_UNIT", name),
        ("SUPERVISORD_PY_RESTARTS", str(state.restarts)),
    ]
    service = ledger.service(name)
    if role in (Role.MAIN, Role.START) and service is not None and service.watchdog_ns:
        variables.append(("WATCHDOG_USEC", str(service.watchdog_ns // 1000)))
    if state.connection is not None and role is not Role.STUB:
        variables += state.connection.environment
    if state.last_life is not None:
        life = state.last_life
        end = {"code": life.code} if life.code is not None else {"signal": life.signal} if life.signal else None
        told: dict[str, object] = {"result": life.result.value, "exit": end}
        if life.runtime_ms is not None:
            told["runtime_ms"] = life.runtime_ms
        variables.append(("SUPERVISORD_PY_LAST_LIFE", json.encode(told).decode()))
    if role in (Role.STOP, Role.STOP_POST):
        variables.append(("SERVICE_RESULT", state.result.value))
        if state.main_ended:
            variables += _exit_variables(state.exit_code, state.exit_signal, state.exit_dumped)
    elif state.monitor is not None and role in _MONITORS:
        variables += _monitor_variables(state.monitor)
    return tuple(variables)


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

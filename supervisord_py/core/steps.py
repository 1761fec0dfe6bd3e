"""What follows from one input in one state: a step of a service each, called by the table in ``service``.

A step looks at what kind of service it is and takes the next step of ``life`` or ``stopping``; it never looks at the
state it is in, because the table did.
"""

from collections.abc import Callable

from msgspec import Struct

from supervisord_py.core import health, life, listening, processes, quarantine, stopping, timed, watchdog
from supervisord_py.core.actions import KillTree, SignalProcesses, Whom
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.core.restart import exit_result
from supervisord_py.core.state import Ending
from supervisord_py.model.states import KillMode, Result, Role, ServiceType, Severity, SubState


class Ended(Struct, frozen=True):
    """How a command ended, with its ``-`` prefix taken into account; of a stop that is ordered the message alone:
    why.
    """

    result: Result
    message: str
    index: int = 0
    """Which command of its list it was."""


_OVER = Ended(Result.SUCCESS, "")


def begin(ledger: Ledger, name: str, _: Ended) -> None:
    life.begin(ledger, name)


def arm(ledger: Ledger, name: str, _: Ended) -> None:
    if listening.is_on_demand(ledger, name):
        listening.arm(ledger, name)
    else:
        timed.arm(ledger, name)


def disarm(ledger: Ledger, name: str, _: Ended) -> None:
    timed.disarm(ledger, name)


def stop_listening(ledger: Ledger, name: str, _: Ended) -> None:
    listening.disarm(ledger, name)


def give_up_waiting(ledger: Ledger, name: str, _: Ended) -> None:
    """A stop of a unit that waits (for its back-off, for a dependency): it is down, and stays down."""
    state = ledger.set_sub(name, SubState.DEAD)
    ledger.arm_phase(name, None)
    if state.result is Result.DEPENDENCY:
        state.result, state.message = Result.SUCCESS, None
    ledger.record("unit.stopped", name, fields={"result": state.result.value})


def backoff_over(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.set_sub(name, SubState.AUTO_RESTART_QUEUED)
    ledger.arm_phase(name, None)
    state.restarts += 1
    ledger.intents.append(Task(Intent.RESTART, name, name, state.cause))


def condition_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """The start goes on, or is skipped, or has failed: the command's result says which."""
    _command_before_start_ended(ledger, name, ended, next_condition)


def next_condition(ledger: Ledger, name: str) -> None:
    _next_before_start(ledger, name, SubState.CONDITION, Role.CONDITION, life.begin_pre)


def condition_swept(ledger: Ledger, name: str, _: Ended) -> None:
    if ledger.state(name).sweeping:
        next_condition(ledger, name)


def _command_before_start_ended(ledger: Ledger, name: str, ended: Ended, go_on: Callable[[Ledger, str], None]) -> None:
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message, quiet=True)
    elif ledger.state(name).leftover and service.kill.mode is not KillMode.PROCESS and service.kill.send_sigkill:
        # What the command leaves behind must not live beside the service; a spawn would cancel the killing, so wait.
        ledger.edit(name).sweeping = True
        ledger.act(KillTree(name))
    else:
        go_on(ledger, name)


def _next_before_start(
    ledger: Ledger, name: str, sub: SubState, role: Role, go_on: Callable[[Ledger, str], None]
) -> None:
    """Run the next command of the list, or go on when that was the last one."""
    state = ledger.edit(name)
    state.sweeping = False
    if state.index + 1 < len(processes.commands_of(processes.service_of(ledger, name), role)):
        processes.run_command(ledger, name, sub, role, state.index + 1)
    else:
        go_on(ledger, name)


def pre_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    _command_before_start_ended(ledger, name, ended, next_pre)


def next_pre(ledger: Ledger, name: str) -> None:
    _next_before_start(ledger, name, SubState.START_PRE, Role.START_PRE, life.begin_main)


def pre_swept(ledger: Ledger, name: str, _: Ended) -> None:
    if ledger.state(name).sweeping:
        next_pre(ledger, name)


def main_spawned(ledger: Ledger, name: str, _: Ended) -> None:
    service = processes.service_of(ledger, name)
    if service.type in (ServiceType.SIMPLE, ServiceType.EXEC, ServiceType.IDLE):
        life.begin_post(ledger, name)
    elif service.type is not ServiceType.FORKING:
        life.became_started(ledger, name)


def others_are_done(ledger: Ledger, name: str, _: Ended) -> None:
    if processes.is_idling(ledger, name):
        life.run_main(ledger, name)


def start_deadline(ledger: Ledger, name: str, ended: Ended) -> None:
    """An idle unit has waited long enough for the others; any other was to be up by now."""
    if processes.is_idling(ledger, name):
        life.run_main(ledger, name)
    else:
        start_timed_out(ledger, name, ended)


def start_command_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """The start command of a forking unit has done its part: find the daemon that it left."""
    service = processes.service_of(ledger, name)
    is_left = ledger.state(name).leftover
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message, quiet=True)
    elif service.pid_file is not None:
        processes.follow(ledger, name, wait=processes.waits_for_pid_file(ledger, name))
        if not is_left:
            emptied_in_start(ledger, name, ended)
    elif service.guess_main_pid and is_left:
        processes.follow(ledger, name, wait=True)
    else:
        life.begin_post(ledger, name)


def emptied_in_start(ledger: Ledger, name: str, _: Ended) -> None:
    """No process is left that could still write the pid file, or answer a health check."""
    waits = ledger.state(name).following is not None and processes.service_of(ledger, name).pid_file is not None
    if waits and processes.waits_for_pid_file(ledger, name):
        message = "no process of it is left that could write its pid file"
        stopping.fail(ledger, name, Result.PROTOCOL, message)
        stopping.enter_signal(ledger, name, message, quiet=True)
    elif ledger.state(name).awaits_health and processes.has_no_known_main(ledger, name):
        message = "no process of it is left that could get ready"
        stopping.fail(ledger, name, Result.PROTOCOL, message)
        stopping.enter_signal(ledger, name, message, quiet=True)


def followed(ledger: Ledger, name: str, ended: Ended) -> None:
    """The main process is known, or cannot be: a pid file must name one, a guess may fail."""
    must_be = processes.service_of(ledger, name).pid_file is not None and processes.waits_for_pid_file(ledger, name)
    if must_be and ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message)
    else:
        life.begin_post(ledger, name)


def followed_at_last(ledger: Ledger, name: str, ended: Ended) -> None:
    """The commands after the start are done, and the pid file is there."""
    if ended.result is not Result.SUCCESS and processes.service_of(ledger, name).pid_file is not None:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message)
    else:
        life.finish_start(ledger, name)


def start_post_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message)
    elif ended.index + 1 < len(service.exec_start_post):
        processes.run_command(ledger, name, SubState.START_POST, Role.START_POST, ended.index + 1)
    elif processes.has_no_known_main(ledger, name) and (service.pid_file is not None or service.guess_main_pid):
        processes.follow(ledger, name, wait=True)
        if not ledger.state(name).leftover:
            emptied_in_start(ledger, name, ended)
    else:
        life.finish_start(ledger, name)


def main_ended_in_post(ledger: Ledger, name: str, ended: Ended) -> None:
    """The command that runs is waited for: it may have more to do, and a new pid file may be there when it has done."""
    service, state = processes.service_of(ledger, name), ledger.edit(name)
    if service.type is ServiceType.FORKING and service.pid_file is not None and state.leftover:
        state.main_ended = False
        return
    if processes.has_no_known_main(ledger, name):
        return
    # What is gone is not silent, nor unwell.
    watchdog.end(ledger, name)
    health.end(ledger, name)
    stopping.fail(ledger, name, ended.result, ended.message)


def start_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """The main process is gone before the unit was up: a oneshot's way, everybody else's failure."""
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
    elif ledger.state(name).result is not Result.SUCCESS:
        # An adopted life that cannot go on.
        ended = Ended(ended.result, ledger.state(name).message or ended.message, ended.index)
    elif service.type is ServiceType.ONESHOT:
        if ended.index + 1 < len(service.exec_start):
            processes.run_command(ledger, name, SubState.START, Role.MAIN, ended.index + 1)
        else:
            life.begin_post(ledger, name)
        return
    elif service.type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
        before = "its health checks were good" if ledger.state(name).awaits_health else "it said READY=1"
        stopping.fail(ledger, name, Result.PROTOCOL, f"{ended.message} before {before}")
    elif ledger.state(name).awaits_health:
        stopping.fail(ledger, name, Result.PROTOCOL, f"{ended.message} before its health checks were good")
    elif service.remain_after_exit:
        life.begin_post(ledger, name)
        return
    stopping.enter_signal(ledger, name, ended.message, quiet=True)


def ready(ledger: Ledger, name: str, _: Ended) -> None:
    if processes.service_of(ledger, name).type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
        life.begin_post(ledger, name)


def start_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    message = "it was not ready within its start time-out"
    stopping.fail(ledger, name, Result.TIMEOUT, message)
    stopping.enter_signal(ledger, name, message)


def stop_starting(ledger: Ledger, name: str, why: Ended) -> None:
    stopping.enter_signal(ledger, name, why.message)


def main_ended_while_up(ledger: Ledger, name: str, ended: Ended) -> None:
    if not _is_succeeded(ledger, name):
        main_ended(ledger, name, ended)


def main_ended_while_paused(ledger: Ledger, name: str, ended: Ended) -> None:
    """What is left of it goes on: nobody paused the end of a unit."""
    stopping.thaw(ledger, name)
    ledger.set_sub(name, SubState.RUNNING)
    main_ended_while_up(ledger, name, ended)


def emptied_while_paused(ledger: Ledger, name: str, ended: Ended) -> None:
    stopping.thaw(ledger, name)
    ledger.set_sub(name, SubState.RUNNING)
    emptied_while_up(ledger, name, ended)


def _is_succeeded(ledger: Ledger, name: str) -> bool:
    """A forking daemon may have left its place to another one, by its pid file, or have been guessed wrongly: ask for
    the one that goes on. Any other end is the unit's.
    """
    state, service = ledger.state(name), processes.service_of(ledger, name)
    has_pid_file = service.type is ServiceType.FORKING and service.pid_file is not None
    is_awaited = has_pid_file and state.leftover and ledger.globals.shutdown is None
    if is_awaited or processes.has_no_known_main(ledger, name):
        processes.follow(ledger, name, wait=False)
        return True
    return False


def succeeded_or_not(ledger: Ledger, name: str, ended: Ended) -> None:
    """The pid file names the process that goes on with the life; or it does not, and the life ends as it did. Where it
    was a guess, what is left goes on, whether one of it is known to be the main process or not.
    """
    end = _unsucceeded(ledger, name, ended)
    if end is not None:
        main_ended(ledger, name, end)


def succeeded_or_not_in_reload(ledger: Ledger, name: str, ended: Ended) -> None:
    end = _unsucceeded(ledger, name, ended)
    if end is not None:
        _end_in_reload(ledger, name, end)


def _unsucceeded(ledger: Ledger, name: str, ended: Ended) -> Ended | None:
    """Return how the main process ended if nothing goes on with its life."""
    state, service = ledger.edit(name), processes.service_of(ledger, name)
    if ended.result is Result.SUCCESS:
        state.main_ended = False
    status = processes.main_status(state)
    if status is None:
        return None
    ignored = service.exec_start[0].ignore_failure
    result = Result.SUCCESS if ignored else exit_result(status, daemon=True, success=service.success)
    message = f"its main process {processes.describe_exit(status.code, status.signal, status.core_dumped)}"
    return Ended(result, message)


def main_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """A unit that was up has lost its main process: cleanly ended ones get their exec-stop, failed ones do not."""
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
        stopping.enter_signal(ledger, name, ended.message, quiet=True)
    elif service.remain_after_exit:
        ledger.set_sub(name, SubState.EXITED)
        ledger.arm_phase(name, None)
        watchdog.end(ledger, name)
        health.end(ledger, name)
    else:
        stopping.enter_stop(ledger, name, ended.message, quiet=True)


def emptied_while_up(ledger: Ledger, name: str, _: Ended) -> None:
    """The last process is gone: the end of a unit whose main process nobody knows."""
    if processes.has_no_known_main(ledger, name):
        main_ended(ledger, name, Ended(Result.SUCCESS, "no process of it is left"))


def emptied_in_reload(ledger: Ledger, name: str, ended: Ended) -> None:
    if ledger.state(name).control is None:
        emptied_while_up(ledger, name, ended)


def ran_too_long(ledger: Ledger, name: str, _: Ended) -> None:
    message = "it has run for its runtime-max-sec"
    stopping.fail(ledger, name, Result.TIMEOUT, message)
    stopping.enter_stop(ledger, name, message)


def stop(ledger: Ledger, name: str, why: Ended) -> None:
    if ledger.service(name) is None:
        stopping.end(ledger, name)
    else:
        stopping.enter_stop(ledger, name, why.message)


def reload(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.reload_failed = None
    ledger.record("unit.reloading", name)
    if processes.service_of(ledger, name).exec_reload:
        processes.run_command(ledger, name, SubState.RELOAD, Role.RELOAD, 0)
    else:
        ask_to_reload(ledger, name)


def ask_to_reload(ledger: Ledger, name: str) -> None:
    """Send a ``notify-reload`` unit its signal, and wait for RELOADING=1 of after that, then READY=1."""
    state, service = ledger.set_sub(name, SubState.RELOAD), processes.service_of(ledger, name)
    if state.main is None or service.type is not ServiceType.NOTIFY_RELOAD:
        back_to_running(ledger, name)
        return
    state.reload_asked_ns = ledger.now.mono_ns
    ledger.arm_phase(name, service.timeout_start_ns)
    spawn_id = state.main.spawn_id
    ledger.act(SignalProcesses(name, service.reload_signal, Whom.MAIN, spawn_id, then_continue=True))


def reloads_itself(ledger: Ledger, name: str, _: Ended) -> None:
    life.enter_own_reload(ledger, name)


def also_reloads_itself(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.notify_reloading = True
    state.reload_asked_ns = None


def has_reloaded_itself(ledger: Ledger, name: str, _: Ended) -> None:
    ledger.edit(name).notify_reloading = False


def reload_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """A reload command ended: the next one, or back to running; its failure fails the job and nothing else."""
    service = processes.service_of(ledger, name)
    state = ledger.edit(name)
    if ended.result is not Result.SUCCESS and state.reload_failed is None:
        state.reload_failed = ended.message
    if state.reload_failed is None and ended.index + 1 < len(service.exec_reload):
        processes.run_command(ledger, name, SubState.RELOAD, Role.RELOAD, ended.index + 1)
    elif state.reload_failed is None and service.type is ServiceType.NOTIFY_RELOAD:
        ask_to_reload(ledger, name)
    elif state.reload_failed is not None or not state.notify_reloading:
        back_to_running(ledger, name)


def reload_ready(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.notify_reloading = False
    if state.control is None and state.reload_asked_ns is None:
        back_to_running(ledger, name)


def reload_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.reload_failed = "it did not reload within its start time-out"
    ledger.arm_phase(name, None)
    if state.control is not None:
        ledger.act(SignalProcesses(name, 9, Whom.MAIN, state.control.spawn_id))
    else:
        back_to_running(ledger, name)


def back_to_running(ledger: Ledger, name: str) -> None:
    # Who goes on with the life of a main process that has ended meanwhile may not be known yet.
    is_alive = processes.is_alive(ledger, name) or ledger.state(name).following is not None
    state = ledger.set_sub(name, SubState.RUNNING if is_alive else SubState.EXITED)
    state.notify_reloading = False
    state.reload_asked_ns = None
    life.arm_running(ledger, name)
    if state.reload_failed is None:
        ledger.record("unit.ready", name, fields={"reloaded": True})
    else:
        ledger.record(
            "unit.ready", name, severity=Severity.WARNING, fields={"reloaded": False, "message": state.reload_failed}
        )
    if not is_alive:
        # The last process of a unit without a known main one may have ended while its reload command ran.
        emptied_while_up(ledger, name, _OVER)


def main_ended_in_reload(ledger: Ledger, name: str, ended: Ended) -> None:
    if not _is_succeeded(ledger, name):
        _end_in_reload(ledger, name, ended)


def _end_in_reload(ledger: Ledger, name: str, ended: Ended) -> None:
    if ended.result is Result.SUCCESS and ledger.state(name).control is None:
        main_ended(ledger, name, ended)
        return
    # Its reload command is ended with it. systemd waits for that, and calls the unit active meanwhile: it is not.
    stopping.fail(ledger, name, ended.result, ended.message)
    stopping.enter_signal(ledger, name, ended.message, quiet=True)


def stop_in_reload(ledger: Ledger, name: str, why: Ended) -> None:
    """A reload command that runs is ended with everything else; without one exec-stop has its turn."""
    if ledger.state(name).control is None:
        stop(ledger, name, why)
    else:
        stop_starting(ledger, name, why)


def says_stopping(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.enter_stopping_itself(ledger, name)


def found_faulty(ledger: Ledger, name: str, found: Ended) -> None:
    stopping.fail(ledger, name, found.result, found.message)
    stopping.enter_signal(ledger, name, found.message)


def found_faulty_while_up(ledger: Ledger, name: str, found: Ended) -> None:
    stopping.fail(ledger, name, found.result, found.message)
    stopping.enter_stop(ledger, name, found.message)


def took_too_much(ledger: Ledger, name: str, found: Ended) -> None:
    """It will not get less: no command, no signal before the last and no time to stop."""
    stopping.fail(ledger, name, found.result, found.message)
    stopping.enter_end(ledger, name, found.message)


def took_too_much_in_its_end(ledger: Ledger, name: str, found: Ended) -> None:
    stopping.fail(ledger, name, found.result, found.message)
    if ledger.state(name).sub in (SubState.STOP, SubState.STOP_WATCHDOG, SubState.STOP_SIGTERM, SubState.FINAL_SIGTERM):
        stopping.enter_kill(ledger, name)


def took_too_much_in_post(ledger: Ledger, name: str, found: Ended) -> None:
    stopping.fail(ledger, name, found.result, found.message)
    stopping.enter_final(ledger, name)
    took_too_much_in_its_end(ledger, name, found)


def stub_took_too_much(ledger: Ledger, name: str, found: Ended) -> None:
    stub_ended(ledger, name, found)
    took_too_much_in_its_end(ledger, name, found)


def found_unused(ledger: Ledger, name: str, why: Ended) -> None:
    ledger.edit(name).ending = Ending.IDLE
    stopping.enter_stop(ledger, name, why.message)


def watchdog_triggered(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.enter_watchdog(ledger, name, "it said WATCHDOG=trigger")


def stub_spawned(ledger: Ledger, name: str, _: Ended) -> None:
    quarantine.stub_started(ledger, name)


def stub_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """The stub has failed too (even a clean end is one): the unit stays quarantined without it."""
    ledger.edit(name).stub_failed = True
    stopping.enter_signal(ledger, name, ended.message, quiet=True)


def stop_command_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
    elif ended.index + 1 < len(service.exec_stop):
        processes.run_command(ledger, name, SubState.STOP, Role.STOP, ended.index + 1)
        return
    stopping.enter_signal(ledger, name, ended.message)


def stop_command_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    message = "its stop command did not end within the stop time-out"
    stopping.fail(ledger, name, Result.TIMEOUT, message)
    stopping.enter_signal(ledger, name, message)


def main_ended_in_stop(ledger: Ledger, name: str, ended: Ended) -> None:
    """exec-stop goes on: it may have more to do than to end the main process."""
    stopping.fail(ledger, name, ended.result, ended.message)


def ended_in_signal(ledger: Ledger, name: str, ended: Ended) -> None:
    stopping.fail(ledger, name, ended.result, ended.message)
    stopping.process_ended(ledger, name)


def control_ended_in_signal(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.process_ended(ledger, name)


def emptied_in_signal(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.process_ended(ledger, name)


def signal_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.stop_timed_out(ledger, name)


def kill_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.fail(ledger, name, Result.TIMEOUT, "it did not end within its stop time-out")
    stopping.enter_stuck(ledger, name)


def kill_again(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.try_again(ledger, name)


def post_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = processes.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        stopping.fail(ledger, name, ended.result, ended.message)
    elif ended.index + 1 < len(service.exec_stop_post):
        processes.run_command(ledger, name, SubState.STOP_POST, Role.STOP_POST, ended.index + 1)
        return
    stopping.enter_final(ledger, name)


def post_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    stopping.fail(ledger, name, Result.TIMEOUT, "its stop-post command did not end within the stop time-out")
    stopping.enter_final(ledger, name)

"""What follows from one input in one state: a step of a service each, called by the table in ``service``.

A step looks at what kind of service it is and takes the next step of ``life``; it never looks at the state it is in,
because the table did.
"""

from msgspec import Struct

from supervisord_py.core import life
from supervisord_py.core.actions import KillTree, SignalProcesses, Whom
from supervisord_py.core.ledger import Intent, Ledger, Task
from supervisord_py.model.states import KillMode, Result, Role, ServiceType, Severity, SubState


class Ended(Struct, frozen=True):
    """How a command ended, with its ``-`` prefix taken into account; of a stop that is ordered the message alone:
    why.
    """

    result: Result
    message: str
    index: int


def begin(ledger: Ledger, name: str, _: Ended) -> None:
    life.begin(ledger, name)


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


def pre_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = life.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        life.fail(ledger, name, ended.result, ended.message)
        life.enter_signal(ledger, name, ended.message, quiet=True)
    elif ledger.state(name).leftover and service.kill.mode is not KillMode.PROCESS and service.kill.send_sigkill:
        # What exec-start-pre leaves behind must not live beside the service; a spawn would cancel the killing, so wait.
        ledger.edit(name).sweeping = True
        ledger.act(KillTree(name))
    else:
        next_pre(ledger, name)


def next_pre(ledger: Ledger, name: str) -> None:
    state = ledger.edit(name)
    state.sweeping = False
    if state.index + 1 < len(life.service_of(ledger, name).exec_start_pre):
        life.run_command(ledger, name, SubState.START_PRE, Role.START_PRE, state.index + 1)
    else:
        life.begin_main(ledger, name)


def pre_swept(ledger: Ledger, name: str, _: Ended) -> None:
    if ledger.state(name).sweeping:
        next_pre(ledger, name)


def main_spawned(ledger: Ledger, name: str, _: Ended) -> None:
    service = life.service_of(ledger, name)
    if service.type in (ServiceType.SIMPLE, ServiceType.EXEC, ServiceType.IDLE):
        life.became_up(ledger, name)
    else:
        life.became_started(ledger, name)


def start_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """The main process is gone before the unit was up: a oneshot's way, everybody else's failure."""
    service = life.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        life.fail(ledger, name, ended.result, ended.message)
    elif service.type is ServiceType.ONESHOT:
        if ended.index + 1 < len(service.exec_start):
            life.run_command(ledger, name, SubState.START, Role.MAIN, ended.index + 1)
        else:
            life.complete(ledger, name)
        return
    elif service.type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
        life.fail(ledger, name, Result.PROTOCOL, f"{ended.message} before it said READY=1")
    elif service.remain_after_exit:
        life.became_up(ledger, name, SubState.EXITED)
        return
    life.enter_signal(ledger, name, ended.message, quiet=True)


def ready(ledger: Ledger, name: str, _: Ended) -> None:
    if life.service_of(ledger, name).type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
        life.became_up(ledger, name)


def start_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    message = "it was not ready within its start time-out"
    life.fail(ledger, name, Result.TIMEOUT, message)
    life.enter_signal(ledger, name, message)


def stop_starting(ledger: Ledger, name: str, why: Ended) -> None:
    life.enter_signal(ledger, name, why.message)


def main_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """A unit that was up has lost its main process: cleanly ended ones get their exec-stop, failed ones do not."""
    service = life.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        life.fail(ledger, name, ended.result, ended.message)
        life.enter_signal(ledger, name, ended.message, quiet=True)
    elif service.remain_after_exit:
        ledger.set_sub(name, SubState.EXITED)
    else:
        life.enter_stop(ledger, name, ended.message, quiet=True)


def stop(ledger: Ledger, name: str, why: Ended) -> None:
    if ledger.service(name) is None:
        life.end(ledger, name)
    else:
        life.enter_stop(ledger, name, why.message)


def reload(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.reload_failed = None
    ledger.record("unit.reloading", name)
    life.run_command(ledger, name, SubState.RELOAD, Role.RELOAD, 0)


def reloads_itself(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.set_sub(name, SubState.RELOAD)
    state.notify_reloading = True
    state.reload_failed = None
    ledger.arm_phase(name, life.service_of(ledger, name).timeout_start_ns)
    ledger.record("unit.reloading", name, fields={"itself": True})


def also_reloads_itself(ledger: Ledger, name: str, _: Ended) -> None:
    ledger.edit(name).notify_reloading = True


def reload_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    """A reload command ended: the next one, or back to running; its failure fails the job and nothing else."""
    service = life.service_of(ledger, name)
    state = ledger.edit(name)
    if ended.result is not Result.SUCCESS and state.reload_failed is None:
        state.reload_failed = ended.message
    if state.reload_failed is None and ended.index + 1 < len(service.exec_reload):
        life.run_command(ledger, name, SubState.RELOAD, Role.RELOAD, ended.index + 1)
    elif state.reload_failed is not None or not state.notify_reloading:
        back_to_running(ledger, name)


def reload_ready(ledger: Ledger, name: str, _: Ended) -> None:
    state = ledger.edit(name)
    state.notify_reloading = False
    if state.control is None:
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
    state = ledger.set_sub(name, SubState.RUNNING if ledger.state(name).main is not None else SubState.EXITED)
    state.notify_reloading = False
    ledger.arm_phase(name, None)
    if state.reload_failed is None:
        ledger.record("unit.ready", name, fields={"reloaded": True})
    else:
        ledger.record(
            "unit.ready", name, severity=Severity.WARNING, fields={"reloaded": False, "message": state.reload_failed}
        )


def main_ended_in_reload(ledger: Ledger, name: str, ended: Ended) -> None:
    if ended.result is Result.SUCCESS and ledger.state(name).control is None:
        main_ended(ledger, name, ended)
        return
    life.fail(ledger, name, ended.result, ended.message)
    life.enter_signal(ledger, name, ended.message, quiet=True)


def stop_in_reload(ledger: Ledger, name: str, why: Ended) -> None:
    """A reload command that runs is ended with everything else; without one exec-stop has its turn."""
    if ledger.state(name).control is None:
        stop(ledger, name, why)
    else:
        stop_starting(ledger, name, why)


def says_stopping(ledger: Ledger, name: str, _: Ended) -> None:
    life.enter_stopping_itself(ledger, name)


def watchdog(ledger: Ledger, name: str, _: Ended) -> None:
    life.enter_watchdog(ledger, name, "it said WATCHDOG=trigger")


def stop_command_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = life.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        life.fail(ledger, name, ended.result, ended.message)
    elif ended.index + 1 < len(service.exec_stop):
        life.run_command(ledger, name, SubState.STOP, Role.STOP, ended.index + 1)
        return
    life.enter_signal(ledger, name, ended.message)


def stop_command_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    message = "its stop command did not end within the stop time-out"
    life.fail(ledger, name, Result.TIMEOUT, message)
    life.enter_signal(ledger, name, message)


def main_ended_in_stop(ledger: Ledger, name: str, ended: Ended) -> None:
    """exec-stop goes on: it may have more to do than to end the main process."""
    life.fail(ledger, name, ended.result, ended.message)


def ended_in_signal(ledger: Ledger, name: str, ended: Ended) -> None:
    life.fail(ledger, name, ended.result, ended.message)
    life.process_ended(ledger, name)


def control_ended_in_signal(ledger: Ledger, name: str, _: Ended) -> None:
    life.process_ended(ledger, name)


def emptied_in_signal(ledger: Ledger, name: str, _: Ended) -> None:
    life.process_ended(ledger, name)


def signal_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    life.stop_timed_out(ledger, name)


def kill_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    life.fail(ledger, name, Result.TIMEOUT, "it did not end within its stop time-out")
    life.enter_stuck(ledger, name)


def kill_again(ledger: Ledger, name: str, _: Ended) -> None:
    life.try_again(ledger, name)


def post_ended(ledger: Ledger, name: str, ended: Ended) -> None:
    service = life.service_of(ledger, name)
    if ended.result is not Result.SUCCESS:
        life.fail(ledger, name, ended.result, ended.message)
    elif ended.index + 1 < len(service.exec_stop_post):
        life.run_command(ledger, name, SubState.STOP_POST, Role.STOP_POST, ended.index + 1)
        return
    life.enter_final(ledger, name)


def post_timed_out(ledger: Ledger, name: str, _: Ended) -> None:
    life.fail(ledger, name, Result.TIMEOUT, "its stop-post command did not end within the stop time-out")
    life.enter_final(ledger, name)

"""The beginning of a life: its commands one after the other, until it is up (or over already).

Theory of operation
-------------------
A life runs exec-condition, exec-start-pre, exec-start, exec-start-post, [exec-reload]*, exec-stop (only after a full
start), the kill sequence, exec-stop-post (always), one command at a time; ``service`` says which event leads from one
to the next, this module and ``stopping`` say what each step does.

Law: no life begins while a process of the old one is left.

Source: systemd, core/service.c (service_enter_condition to service_enter_running); system-anchors 1.6.
"""

from supervisord_py.core import health, listening, processes, quarantine, stopping, timed, watchdog
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.restart import admit_start
from supervisord_py.core.state import Ending
from supervisord_py.model.states import Result, Role, ServiceType, Severity, SubState
from supervisord_py.model.unit import StartLimit
from supervisord_py.model.values import format_timespan

IDLE_NS = 5_000_000_000
"""How long the start of an ``idle`` unit waits for the other jobs at most."""


def begin(ledger: Ledger, name: str) -> None:
    """Begin a new life by the newest text of the unit."""
    unit = ledger.set.units.get(name) or ledger.texts.get(name)
    assert unit is not None, f"internal error: {name} has no text"
    unit = listening.text_of_run(ledger, name, timed.text_of_run(ledger, name, unit))
    ledger.keep_text(name, unit)
    state = ledger.edit(name)
    assert state.main is None and state.control is None, f"internal error: {name} still has a process"
    quarantine.begin_life(ledger, name)
    timed.began(ledger, name, unit)
    state.result, state.message = Result.SUCCESS, None
    state.invocation = ledger.new_invocation()
    state.started = state.forked = state.main_ended = state.unseen = False
    state.start_degraded = ()
    state.was_up = state.post_done = state.stopped = False
    state.succeeded = state.accomplished = False
    state.ending = Ending.ITSELF
    state.sweeping = state.notify_reloading = False
    state.reload_failed = state.status_text = state.errno = state.progress = state.beat_at_ns = None
    state.refused_at_ns = state.error_at_ns = state.runtime_end_ns = state.reload_asked_ns = None
    state.errors = state.refusals = 0
    state.watches, state.watchdog_ns, state.awaits_health = {}, None, False
    state.began_ns = ledger.now.mono_ns
    ledger.arm_uphold(name, None)
    if unit.service is None:
        became_started(ledger, name)
        became_up(ledger, name)
    elif unit.service.exec_condition:
        processes.run_command(ledger, name, SubState.CONDITION, Role.CONDITION, 0)
    else:
        begin_pre(ledger, name)


def begin_pre(ledger: Ledger, name: str) -> None:
    if processes.service_of(ledger, name).exec_start_pre:
        processes.run_command(ledger, name, SubState.START_PRE, Role.START_PRE, 0)
    else:
        begin_main(ledger, name)


def begin_main(ledger: Ledger, name: str) -> None:
    service = processes.service_of(ledger, name)
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
    is_forking = processes.service_of(ledger, name).type is ServiceType.FORKING
    ledger.edit(name).forked = is_forking
    processes.run_command(ledger, name, SubState.START, Role.START if is_forking else Role.MAIN, 0)


def begin_post(ledger: Ledger, name: str) -> None:
    """The main process has started (it is ready, if it says so; it is done, if it is a oneshot's)."""
    became_started(ledger, name)
    if ledger.state(name).awaits_health:
        # It said READY once more.
        return
    health.begin(ledger, name)
    if processes.is_alive(ledger, name) and health.gates(ledger, name):
        ledger.edit(name).awaits_health = True
        return
    run_post(ledger, name)


def health_changed(ledger: Ledger, name: str) -> None:
    """Something was learned about the health of a unit: its start may be done."""
    if ledger.state(name).awaits_health and health.is_satisfied(ledger, name):
        ledger.edit(name).awaits_health = False
        run_post(ledger, name)


def run_post(ledger: Ledger, name: str) -> None:
    """The unit can be used: run the commands that follow its start."""
    watchdog.begin(ledger, name)
    if processes.service_of(ledger, name).exec_start_post:
        processes.run_command(ledger, name, SubState.START_POST, Role.START_POST, 0)
    else:
        finish_start(ledger, name)


def finish_start(ledger: Ledger, name: str) -> None:
    """All commands of the start are done: the unit is up, unless what it is up for is over already."""
    state, service = ledger.state(name), processes.service_of(ledger, name)
    if state.result is not Result.SUCCESS:
        stopping.enter_signal(ledger, name, state.message or "its main process has failed", quiet=True)
    elif processes.is_alive(ledger, name):
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
        stopping.enter_stop(ledger, name, "its work is done" if is_oneshot else "no process of it is left", quiet=True)


def enter_own_reload(ledger: Ledger, name: str) -> None:
    """The process says that it reads its settings again."""
    state = ledger.set_sub(name, SubState.RELOAD)
    state.notify_reloading = True
    state.reload_failed = None
    ledger.arm_phase(name, processes.service_of(ledger, name).timeout_start_ns)
    ledger.record("unit.reloading", name, fields={"itself": True})


def _limit(ledger: Ledger, name: str) -> StartLimit | None:
    """Return the start limit of the text that the next life will run by: that of the file, if there is one."""
    unit = ledger.set.units.get(name) or ledger.unit(name)
    return unit.service.restart.limit if unit is not None and unit.service is not None else None


def count_start(ledger: Ledger, name: str) -> None:
    """Count a start that somebody asked for: it is never refused, but an automatic one after it may be."""
    limit, state = _limit(ledger, name), ledger.edit(name)
    if limit is not None:
        state.starts_ns = admit_start(state.starts_ns, limit, ledger.now.boot_ns) or state.starts_ns


def refuse_automatic_start(ledger: Ledger, name: str) -> str | None:
    """Count an automatic start; one too many fails the unit instead, and the reason is returned."""
    limit, state = _limit(ledger, name), ledger.edit(name)
    if limit is None:
        return None
    counted = admit_start(state.starts_ns, limit, ledger.now.boot_ns)
    if counted is not None:
        state.starts_ns = counted
        return None
    span = "" if limit.interval_ns is None else f" within {format_timespan(limit.interval_ns)}"
    had_failed = state.sub is SubState.FAILED
    ledger.set_sub(name, SubState.FAILED)
    ledger.arm_phase(name, None)
    state.result, state.ending = Result.START_LIMIT_HIT, Ending.ITSELF
    state.message = f"it was started {limit.burst} times{span}; start it when it is mended"
    fields = {"result": state.result.value, "message": state.message, "failures": state.failures, "limit_hit": True}
    if not had_failed:
        # A failed unit that another upholds stays failed: that was told, and has started its handlers.
        ledger.record("unit.failed", name, severity=Severity.ERROR, fields=fields)
    return state.message


def became_started(ledger: Ledger, name: str) -> None:
    """The main program runs: what waits for ``until = "started"`` may go on."""
    state = ledger.edit(name)
    if state.started:
        return
    state.started = True
    ledger.changed[name] = None
    fields: dict[str, object] = {}
    if state.main is not None:
        fields = {"spawn_id": state.main.spawn_id, "pid": state.main.pid}
        if state.main.degraded:
            fields["degraded"] = list(state.main.degraded)
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
    listening.begin_use(ledger, name)
    is_healthy = service is not None and (state.progress is not None or not service.progress_ns)
    if service is not None and is_healthy and (state.failures or state.backoff):
        ledger.arm_healthy(name, service.restart.reset_ns)


def arm_running(ledger: Ledger, name: str) -> None:
    """Bound the time in which the unit is running, if it has a bound."""
    state = ledger.state(name)
    if state.sub is SubState.RUNNING and state.runtime_end_ns is not None:
        ledger.arm_phase_at(name, state.runtime_end_ns)
    else:
        ledger.arm_phase(name, None)

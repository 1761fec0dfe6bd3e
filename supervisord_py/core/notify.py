"""What a process says about itself: the assignments of one sd_notify datagram, in the order of precedence.

The keeper has checked who speaks (``notify-access``); here only what was said matters. In one datagram STOPPING wins
over READY, and READY over RELOADING. What cannot be understood is ignored: a service must not fail because of a word
that only others know.

Source: sd_notify(3); systemd, core/service.c (service_notify_message); system-anchors 1.7. ``X_*`` are ours.
"""

from supervisord_py.core import watchdog
from supervisord_py.core.events import NotifyReceived
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.service import Input, feed
from supervisord_py.core.state import STARTING, STOPPING, UP, Former, WatchKind
from supervisord_py.core.steps import Ended
from supervisord_py.model.states import Result, Severity, SubState

BEAT_NS = 1_000_000_000
"""At most one ``unit.heartbeat`` record in this time."""

REFUSAL_NS = 60_000_000_000
"""At most one ``unit.error`` record about a refused MAINPID in this time; its count tells the others."""

EXTENSION_MAX_NS = 100 * 365 * 86_400 * 1_000_000_000
"""A century: no time-out of ours leaves 64 bits, whatever a process says."""

ERROR_NS = 1_000_000_000
"""At most one ``unit.error`` record about errors that the process reports in this time; its count tells the others."""

STATUS_MAX = 16_384
ERROR_TEXT_MAX = 200
_EXTENDED = STARTING | STOPPING | {SubState.RELOAD, SubState.RUNNING}


def notify_received(ledger: Ledger, event: NotifyReceived) -> None:
    """Let a datagram happen to its unit; one of a process that is not of the present life is ignored."""
    name, fields = event.unit, event.fields
    state = ledger.state(name)
    _note_heir(ledger, event)
    processes = [process for process in (state.main, state.control) if process is not None]
    if event.spawn_id is not None and all(process.spawn_id != event.spawn_id for process in processes):
        return
    if not processes and not state.leftover:
        return
    _note_main_pid(ledger, event)
    if "STATUS" in fields:
        ledger.edit(name).status_text = fields["STATUS"][:STATUS_MAX] or None
    if (errno := _integer(fields.get("ERRNO"))) is not None:
        ledger.edit(name).errno = errno
    if (extended_us := _integer(fields.get("EXTEND_TIMEOUT_USEC"))) is not None:
        _extend(ledger, name, min(extended_us * 1000, EXTENSION_MAX_NS))
    if (period_us := _integer(fields.get("WATCHDOG_USEC"))) is not None:
        watchdog.set_period(ledger, name, min(period_us * 1000, EXTENSION_MAX_NS))
    _note_work(ledger, name, fields)
    if fields.get("STOPPING") == "1":
        feed(ledger, name, Input.STOPPING)
    else:
        # Both in one datagram: it has reloaded at once.
        reloads = fields.get("RELOADING") == "1"
        if reloads and (fields.get("READY") != "1" or state.reload_asked_ns is not None):
            _note_reloading(ledger, name, _integer(fields.get("MONOTONIC_USEC")))
        if fields.get("READY") == "1":
            feed(ledger, name, Input.READY)
    if fields.get("WATCHDOG") == "trigger":
        feed(ledger, name, Input.WATCHDOG)


def _note_reloading(ledger: Ledger, name: str, since_us: int | None) -> None:
    """RELOADING=1 answers our signal only if it says that it began after that: an older reload read older settings."""
    asked_ns = ledger.state(name).reload_asked_ns
    if asked_ns is None or (since_us is not None and since_us >= asked_ns // 1000):
        feed(ledger, name, Input.RELOADING)


def _note_heir(ledger: Ledger, event: NotifyReceived) -> None:
    """A process that was found too late to be the main one may hand its place over all the same: two ends will be
    told of its spawn id.
    """
    state = ledger.state(event.unit)
    if event.main_pid is None or state.main is not None:
        return
    late = next((each for each in reversed(state.former) if each.pid is not None), None)
    if late is not None and late.pid != event.main_pid:
        edited = ledger.edit(event.unit)
        edited.former = [*edited.former, Former(late.spawn_id, late.invocation, event.main_pid)]


def _note_main_pid(ledger: Ledger, event: NotifyReceived) -> None:
    state = ledger.state(event.unit)
    if event.main_pid is not None and state.main is not None:
        edited = ledger.edit(event.unit)
        process = edited.main
        assert process is not None
        if process.pid is not None and process.pid != event.main_pid:
            edited.former = [*edited.former, Former(process.spawn_id, edited.invocation)]
        process.pid, process.is_guess = event.main_pid, False
    elif event.refused is not None:
        _note_refusal(ledger, event.unit, event.pid, event.refused)


def _note_refusal(ledger: Ledger, name: str, pid: int, reason: str) -> None:
    """Write that a MAINPID= was refused, now and then: a process that repeats it must not fill the journal."""
    state = ledger.edit(name)
    state.refusals += 1
    now_ns = ledger.now.mono_ns
    if state.refused_at_ns is not None and now_ns - state.refused_at_ns < REFUSAL_NS:
        return
    state.refused_at_ns = now_ns
    fields = {"message": f"MAINPID was refused: {reason}", "pid": pid, "count": state.refusals}
    ledger.record("unit.error", name, severity=Severity.WARNING, fields=fields, chain=False)


def _note_work(ledger: Ledger, name: str, fields: dict[str, str]) -> None:
    """Note beats, progress and errors that the process reports."""
    if "X_OK" in fields and ledger.state(name).errors:
        ledger.edit(name).errors = 0
    if "X_ERROR" in fields:
        state = ledger.edit(name)
        state.errors += 1
        if state.error_at_ns is None or ledger.now.mono_ns - state.error_at_ns >= ERROR_NS:
            state.error_at_ns = ledger.now.mono_ns
            told: dict[str, object] = {"message": fields["X_ERROR"], "count": state.errors}
            if fields.get("X_TRACEBACK"):
                told["traceback"] = _unescaped(fields["X_TRACEBACK"])
            ledger.record("unit.error", name, severity=Severity.WARNING, fields=told, chain=False)
        _judge_errors(ledger, name, fields["X_ERROR"])
    progress = fields.get("X_PROGRESS")
    if progress is None and fields.get("WATCHDOG") != "1":
        return
    state, service = ledger.edit(name), ledger.service(name)
    if fields.get("WATCHDOG") == "1":
        watchdog.sign(ledger, name, WatchKind.WATCHDOG)
    if progress is not None:
        watchdog.sign(ledger, name, WatchKind.PROGRESS)
        is_first, state.progress = state.progress is None, progress
        has_failed = bool(state.failures or state.backoff) and state.sub in UP
        if is_first and has_failed and service is not None and service.progress_ns:
            # Only work done is health, where work is expected.
            ledger.arm_healthy(name, service.restart.reset_ns)
    now_ns = ledger.now.mono_ns
    if state.beat_at_ns is None or now_ns - state.beat_at_ns >= BEAT_NS:
        state.beat_at_ns = now_ns
        ledger.record("unit.heartbeat", name, fields={} if progress is None else {"progress": progress})


def _unescaped(text: str) -> str:
    """Read a text in which a line feed is written as ``\\n``: a datagram has a field a line."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


def _judge_errors(ledger: Ledger, name: str, text: str) -> None:
    """So many errors in a row are a failure of the unit, as if its process had ended with one."""
    service, errors = ledger.service(name), ledger.state(name).errors
    if service is None or not 0 < service.error_threshold <= errors:
        return
    message = f"it reported {errors} errors in a row, the last: {text[:ERROR_TEXT_MAX]}"
    feed(ledger, name, Input.FAULT, Ended(Result.ERRORS, message, 0))


def _extend(ledger: Ledger, name: str, extension_ns: int) -> None:
    """Move the end of the present phase, if it has one and it would come earlier; never beyond a shutdown's."""
    state = ledger.state(name)
    if state.timeout_at_ns is None or state.sub not in _EXTENDED:
        return
    at_ns = ledger.now.mono_ns + extension_ns
    shutdown = ledger.globals.shutdown
    if shutdown is not None:
        at_ns = min(at_ns, shutdown.force_at_ns)
    if at_ns > state.timeout_at_ns:
        ledger.arm_phase_at(name, at_ns)
        if state.sub is SubState.RUNNING:
            ledger.edit(name).runtime_end_ns = at_ns


def _integer(text: str | None) -> int | None:
    """Read a whole number of at most 18 digits, None for anything else."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        return None
    return int(text)

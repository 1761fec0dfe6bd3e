"""The state as text by key, and back: what the keeper holds for the next manager.

Keys: ``unit/NAME`` runtime state, ``text/NAME`` the text that a life runs by, ``job/ID``, ``token/SLOT``, ``end/JOB``,
``beside/SPAWN``, ``rollout``, ``global``. What has nothing to tell has no key.

The format has a number (``GlobalState.format``): an older state is read and goes on in the present format, a newer one
is refused whole, before anything of it is believed.

Laws (held by property tests): folding ``Manager.take_changes`` from the start gives ``Manager.snapshot``;
``restore(snapshot)`` decides as the original for ever.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import pool
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.loading import rebuild_graph
from supervisord_py.core.processes import is_idling
from supervisord_py.core.rollout_state import Rollout
from supervisord_py.core.state import (
    FORMAT,
    REST,
    Beside,
    GlobalState,
    Job,
    JobEnd,
    LastLife,
    TimerState,
    TokenEntry,
    UnitState,
)
from supervisord_py.core.timers import DeadlineKind
from supervisord_py.errors import SupervisordError
from supervisord_py.model.states import ActiveState, Result, SubState
from supervisord_py.model.unit import Unit, UnitSet


class NewerFormatError(SupervisordError):
    """The state was written by a newer version, in a format that this one does not know."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(found, known)
        self.found, self.known = found, known

    def __str__(self) -> str:
        return (
            f"the state of the supervisor is of format {self.found}, and this version knows {self.known} and older: "
            "install the version that wrote it, or a newer one"
        )


class _FormatOnly(Struct):
    format: int = 1


_AT_REST = msgspec.json.encode(UnitState())
_TIMES = (
    "phase_at_ns",
    "timeout_at_ns",
    "runtime_end_ns",
    "healthy_at_ns",
    "reload_asked_ns",
    "error_at_ns",
    "beat_at_ns",
    "refused_at_ns",
    "uphold_at_ns",
    "retry_at_ns",
    "paused_ns",
)
"""The fields of a unit's state that are a time or None."""
_TIMES_OF_TIMERS = ("armed_ns", "fired_ns", "fired_before_ns", "began_ns", "ended_ns", "mono_ns", "at_ns")
_TIMES_OF_SOCKETS = ("resume_at_ns", "used_ns", "idle_at_ns")


def encode(ledger: Ledger, key: str) -> str | None:
    """Return the text of one key, None when there is nothing to tell."""
    kind, _, name = key.partition("/")
    value: UnitState | Unit | Job | Beside | TokenEntry | JobEnd | Rollout | GlobalState | None
    match kind:
        case "unit":
            value = ledger.states.get(name)
        case "text":
            value = ledger.texts.get(name)
        case "job":
            value = ledger.jobs.get(int(name))
        case "token":
            value = ledger.tokens.get(int(name))
        case "end":
            value = ledger.ends.get(int(name))
        case "beside":
            value = ledger.beside.get(int(name))
        case "rollout":
            value = ledger.rollout
        case _:
            value = ledger.globals
    if value is None:
        return None
    text = msgspec.json.encode(value)
    return None if kind == "unit" and text == _AT_REST else text.decode()


def keys(ledger: Ledger) -> list[str]:
    """Return every key that may have a text."""
    return [
        *(f"unit/{name}" for name in ledger.states),
        *(f"text/{name}" for name in ledger.texts),
        *(f"job/{job_id}" for job_id in ledger.jobs),
        *(f"token/{slot}" for slot in ledger.tokens),
        *(f"end/{job_id}" for job_id in ledger.ends),
        *(f"beside/{spawn_id}" for spawn_id in ledger.beside),
        "rollout",
        "global",
    ]


def load(ledger: Ledger, state: Mapping[str, str], units: UnitSet, shift_ns: int) -> None:
    """Fill an empty ledger; ``shift_ns`` is added to every time (0 within a boot)."""
    check_format(state)
    ledger.set = units
    for key in sorted(state):
        kind, _, name = key.partition("/")
        text = state[key]
        match kind:
            case "unit":
                ledger.states[name] = msgspec.json.decode(text, type=UnitState)
            case "text":
                ledger.texts[name] = msgspec.json.decode(text, type=Unit)
            case "job":
                job = msgspec.json.decode(text, type=Job)
                ledger.jobs[job.id] = ledger.job_of[job.unit] = job
            case "token":
                ledger.tokens[int(name)] = msgspec.json.decode(text, type=TokenEntry)
            case "end":
                ledger.ends[int(name)] = msgspec.json.decode(text, type=JobEnd)
            case "beside":
                ledger.beside[int(name)] = msgspec.json.decode(text, type=Beside)
            case "rollout":
                ledger.rollout = msgspec.json.decode(text, type=Rollout)
            case "global":
                ledger.globals = msgspec.json.decode(text, type=GlobalState)
    if ledger.globals.format != FORMAT:
        ledger.edit_globals().format = FORMAT
    ledger.jobs = dict(sorted(ledger.jobs.items()))
    gone = [name for name in sorted(ledger.texts) if name not in units.units and name not in ledger.globals.vanished]
    if gone:
        ledger.edit_globals().vanished |= dict.fromkeys(gone)
    if shift_ns:
        _shift(ledger, shift_ns)
    _index(ledger)
    rebuild_graph(ledger)
    pool.restore(ledger)


def check_format(state: Mapping[str, str]) -> None:
    """Look at the format of a state and at nothing else of it.

    Raises:
        NewerFormatError: It is newer than ours.
    """
    text = state.get("global")
    found = msgspec.json.decode(text, type=_FormatOnly).format if text is not None else 1
    if found > FORMAT:
        raise NewerFormatError(found, FORMAT)


def _shift(ledger: Ledger, shift_ns: int) -> None:
    for name in sorted(ledger.states):
        state = ledger.edit(name)
        state.began_ns += shift_ns
        state.related_from_ns += shift_ns if state.related else 0
        for field in _TIMES:
            at_ns = getattr(state, field)
            if at_ns is not None:
                setattr(state, field, at_ns + shift_ns)
        if state.chain is not None:
            state.chain = replace(state.chain, from_ns=state.chain.from_ns + shift_ns)
        state.starts_ns = [at_ns + shift_ns for at_ns in state.starts_ns]
        for found in state.probes.values():
            found.asked_ns += shift_ns if found.asked_ns else 0
            found.at_ns = None if found.at_ns is None else found.at_ns + shift_ns
        if state.timer is not None:
            times = {field: getattr(state.timer, field) for field in _TIMES_OF_TIMERS}
            shifted = {field: at_ns + shift_ns for field, at_ns in times.items() if at_ns is not None}
            state.timer = replace(state.timer, **shifted)
        if state.sockets is not None:
            times = {field: getattr(state.sockets, field) for field in _TIMES_OF_SOCKETS}
            shifted = {field: at_ns + shift_ns for field, at_ns in times.items() if at_ns is not None}
            triggers = tuple(at_ns + shift_ns for at_ns in state.sockets.triggers_ns)
            state.sockets = replace(state.sockets, triggers_ns=triggers, **shifted)
        state.watches = {
            kind: replace(
                watch,
                from_ns=watch.from_ns + shift_ns,
                at_ns=None if watch.at_ns is None else watch.at_ns + shift_ns,
                asked_ns=None if watch.asked_ns is None else watch.asked_ns + shift_ns,
            )
            for kind, watch in state.watches.items()
        }
    for job in ledger.jobs.values():
        if job.chain is not None:
            ledger.edit_job(job).chain = replace(job.chain, from_ns=job.chain.from_ns + shift_ns)
        if job.timeout_at_ns is not None:
            ledger.edit_job(job).timeout_at_ns = job.timeout_at_ns + shift_ns
    for spawn_id in ledger.beside:
        beside = ledger.edit_beside(spawn_id)
        beside.began_ns += shift_ns
        beside.at_ns = None if beside.at_ns is None else beside.at_ns + shift_ns
    if ledger.rollout is not None:
        for unit in ledger.edit_rollout().units.values():
            if unit.good_at_ns is not None:
                unit.good_at_ns += shift_ns
    numbers = ledger.edit_globals()
    numbers.began_ns = None if numbers.began_ns is None else numbers.began_ns + shift_ns
    shutdown = numbers.shutdown
    if shutdown is not None:
        shutdown.force_at_ns += shift_ns
        shutdown.give_up_at_ns += shift_ns


def _index(ledger: Ledger) -> None:
    """Build everything that is looked up from the state itself."""
    for name in sorted(ledger.states):
        state = ledger.states[name]
        if state.sub not in REST:
            ledger.alive[name] = None
        for process in (state.main, state.control):
            if process is not None:
                ledger.unit_of_spawn[process.spawn_id] = name
        if state.following is not None:
            ledger.unit_of_spawn[state.following] = name
        for former in state.former:
            ledger.unit_of_spawn[former.spawn_id] = name
        if is_idling(ledger, name):
            ledger.idling[name] = None
        if state.timeout_at_ns is not None:
            ledger.timers.arm(state.timeout_at_ns, name, DeadlineKind.PHASE)
        if state.healthy_at_ns is not None:
            ledger.timers.arm(state.healthy_at_ns, name, DeadlineKind.HEALTHY)
        if state.uphold_refused is not None:
            ledger.refused[name] = None
        if state.uphold_at_ns is not None:
            ledger.timers.arm(state.uphold_at_ns, name, DeadlineKind.UPHOLD)
        for probe, found in state.probes.items():
            ledger.arm_probe(name, probe, found.at_ns)
        for kind, watch in state.watches.items():
            ledger.arm_watch(name, kind, watch.at_ns)
        if state.timer is not None and state.timer.at_ns is not None:
            ledger.timers.arm(state.timer.at_ns, name, DeadlineKind.TIMER)
        if state.sockets is not None and state.sockets.resume_at_ns is not None:
            ledger.timers.arm(state.sockets.resume_at_ns, name, DeadlineKind.LISTEN)
        if state.sockets is not None and state.sockets.idle_at_ns is not None:
            ledger.timers.arm(state.sockets.idle_at_ns, name, DeadlineKind.UNUSED)
        if state.retry_at_ns is not None:
            ledger.timers.arm(state.retry_at_ns, name, DeadlineKind.RETRY)
    for job in ledger.jobs.values():
        if job.timeout_at_ns is not None:
            ledger.timers.arm(job.timeout_at_ns, job.unit, DeadlineKind.JOB)
    ledger.beside = dict(sorted(ledger.beside.items()))
    for spawn_id, beside in ledger.beside.items():
        if beside.at_ns is not None:
            ledger.timers.arm(beside.at_ns, str(spawn_id), DeadlineKind.BESIDE)
    if ledger.rollout is not None:
        for name, unit in ledger.rollout.units.items():
            if unit.good_at_ns is not None:
                ledger.timers.arm(unit.good_at_ns, name, DeadlineKind.ROLLOUT)
    shutdown = ledger.globals.shutdown
    if shutdown is not None:
        ledger.timers.arm(shutdown.force_at_ns, "", DeadlineKind.SHUTDOWN)
        ledger.timers.arm(shutdown.give_up_at_ns, "", DeadlineKind.SHUTDOWN)


def load_counters(ledger: Ledger, state: Mapping[str, str]) -> None:
    """Take over what survives the supervisor itself: counters, the last life and the last run by a timer of each unit,
    job numbers and tokens' absence of reuse.

    Processes, jobs, deadlines and what people stopped do not: enabled units start again.

    Raises:
        NewerFormatError: A newer version wrote it; nothing was taken over.
    """
    check_format(state)
    for key in sorted(state):
        kind, _, name = key.partition("/")
        if kind == "unit":
            old = msgspec.json.decode(state[key], type=UnitState)
            kept = ledger.edit(name)
            kept.failures, kept.backoff, kept.restarts = old.failures, old.backoff, old.restarts
            kept.exit_code, kept.exit_signal, kept.exit_dumped = old.exit_code, old.exit_signal, old.exit_dumped
            kept.last_life = old.last_life
            if old.sub not in REST:
                # Its end was not seen by anybody.
                kept.last_life = LastLife(result=Result.UNKNOWN)
            elif old.sub is SubState.FAILED:
                kept.sub, kept.active, kept.since_wall_ns = old.sub, ActiveState.FAILED, old.since_wall_ns
                kept.result, kept.message = old.result, old.message
            if old.quarantined:
                # Also while its stub ran. It is let be until somebody, or its time, says otherwise.
                kept.quarantined, kept.sub, kept.active = True, SubState.FAILED, ActiveState.QUARANTINED
                kept.result, kept.message, kept.since_wall_ns = old.result, old.message, old.since_wall_ns
                kept.last_life = old.last_life
                if old.retry_at_ns is not None and not old.stopped:
                    # On a clock that is gone; ``quarantine.arm_retries`` arms it by the one that there is now.
                    kept.retry_at_ns = 0
            kept.half_open = old.half_open
            if old.timer is not None:
                kept.timer = TimerState(stamp_wall_ns=old.timer.stamp_wall_ns, last_wall_ns=old.timer.last_wall_ns)
        elif kind == "global":
            numbers, old_numbers = ledger.edit_globals(), msgspec.json.decode(state[key], type=GlobalState)
            numbers.next_job, numbers.next_spawn = old_numbers.next_job, old_numbers.next_spawn

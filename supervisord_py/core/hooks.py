"""Hooks: commands that are run when an event is written, and that nothing waits for.

Theory of operation
-------------------
After each decision its records are held against ``[[hooks]]``; each match is a *call*. So many of them run at a time,
the others wait in order; where too many wait, the newest are dropped, and that is told once. A hook is a process beside
the life of the unit that the event is about (``beside``): it is killed as a tree when its time is over. What becomes of
a hook calls no hook.

Laws: a call is run at most once, whoever dies; no hook delays anything but other hooks and the exit of the supervisor.

Source: ours; the event listeners of supervisor and the hooks of circus, which block (peers.md).
"""

from collections.abc import Sequence

from msgspec import json

from supervisord_py.core import beside
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.state import HookCall
from supervisord_py.model.hooks import Hook, is_called_by
from supervisord_py.model.records import Record
from supervisord_py.model.states import Role, Severity
from supervisord_py.model.values import format_signal

RUNNING_MAX = 8
WAITING_MAX = 100
TEXT_MAX = 4000


def set_hooks(ledger: Ledger, hooks: tuple[Hook, ...]) -> None:
    if ledger.globals.hooks != hooks:
        ledger.edit_globals().hooks = hooks


def call(ledger: Ledger, records: Sequence[Record], first_seq: int) -> None:
    """Note which hooks the records of this event call for, and run those whose turn it is."""
    if ledger.globals.hooks:
        for offset, record in enumerate(list(records)):
            if record.fields.get("role") == Role.HOOK.value:
                continue
            for hook in ledger.globals.hooks:
                if is_called_by(hook.event, record.event):
                    _note(ledger, hook, record, first_seq + offset if first_seq else 0)
    _run(ledger)


def _note(ledger: Ledger, hook: Hook, record: Record, seq: int) -> None:
    waiting = ledger.globals.hook_calls
    if len(waiting) >= WAITING_MAX:
        if not ledger.globals.hooks_dropped:
            message = f"{WAITING_MAX} calls of hooks wait already: new ones are dropped until they are done"
            ledger.record("hook.dropped", severity=Severity.ERROR, fields={"message": message})
        ledger.edit_globals().hooks_dropped += 1
        return
    text = json.encode(record.fields).decode()
    message = str(record.fields.get("message", record.fields.get("reason", "")))
    environment = (
        ("SUPERVISORD_PY_EVENT", record.event),
        ("SUPERVISORD_PY_SEQ", str(seq) if seq else ""),
        ("SUPERVISORD_PY_SEVERITY", record.severity.value),
        ("SUPERVISORD_PY_MESSAGE", message[:TEXT_MAX]),
        ("SUPERVISORD_PY_FIELDS", text if len(text) <= TEXT_MAX else "{}"),
    )
    new = HookCall(hook, record.unit or "", record.event, environment)
    ledger.edit_globals().hook_calls = [*waiting, new]


def _run(ledger: Ledger) -> None:
    running = sum(each.role is Role.HOOK for each in ledger.beside.values())
    while ledger.globals.hook_calls and running < RUNNING_MAX:
        shutdown = ledger.globals.shutdown
        first, *rest = ledger.globals.hook_calls
        ledger.edit_globals().hook_calls = rest
        if shutdown is not None and shutdown.forced:
            continue
        beside.run(
            ledger, first.unit, first.event, Role.HOOK, first.hook.command, first.hook.timeout_ns, first.environment
        )
        running += 1
    if not ledger.globals.hook_calls and ledger.globals.hooks_dropped:
        ledger.edit_globals().hooks_dropped = 0


def ended(ledger: Ledger, result: beside.Ended) -> None:
    """Write how a hook ended; that it failed is told, and leads to nothing else."""
    unit = result.unit or None
    status = result.status
    if status is not None:
        end: dict[str, object] = {}
        if status.signal is not None:
            end["signal"] = format_signal(status.signal)
        elif status.code is not None:
            end["code"] = status.code
        which = {"spawn_id": result.spawn_id, "pid": result.pid, "role": Role.HOOK.value}
        fields = {**which, **end, "called_for": result.name}
        ledger.record("unit.exited", unit, fields=fields, chain=False, invocation=result.invocation)
    if not result.ok and not result.was_told:
        message = f"the hook of {result.name} failed: {result.detail}"
        ledger.record("hook.failed", unit, severity=Severity.WARNING, fields={"message": message}, chain=False)

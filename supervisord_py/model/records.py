"""What the journal holds: one ``Record`` a decision or fact. ``store`` gives it a number, a chain and bytes."""

from typing import Any

from msgspec import Struct

from supervisord_py.model.states import Severity


class Record(Struct, frozen=True):
    """A journal record before it is numbered.

    ``event`` is one of ``EVENTS``; ``cause`` is the sequence number of the record that led to this one;
    ``fields`` are the event's own, JSON values only. Times are stamped by the shell.
    """

    event: str
    severity: Severity = Severity.INFO
    unit: str | None = None
    invocation: str | None = None
    cause: int | None = None
    fields: dict[str, Any] = {}


EVENTS: tuple[str, ...] = (
    "daemon.started", "daemon.stopping", "daemon.stopped", "manager.restarted", "keeper.reexecuted", "keeper.lost",
    "unit.loaded", "unit.rejected", "unit.removed", "unit.queued", "unit.starting", "unit.started", "unit.ready",
    "unit.reloading", "unit.stopping", "unit.exited", "unit.stopped", "unit.failed", "unit.restart-scheduled",
    "unit.watchdog", "unit.progress-stalled", "unit.heartbeat", "unit.error", "unit.health", "unit.quarantined",
    "unit.released", "unit.stub-started", "unit.stuck", "unit.paused", "unit.resumed", "unit.limit", "unit.message",
    "job.queued", "job.finished", "timer.elapsed", "command", "command.denied", "command.invalid",
    "journal.gap", "journal.rotated",
    "stray.appeared", "stray.exited", "keeper.reexec-failed", "manager.unfit",
    "unit.skipped", "job.changed",
    "rollout.started", "rollout.failed", "rollout.reverted", "rollout.finished", "hook.failed", "hook.dropped",
    "unit.excused", "remote.listening", "remote.failed", "socket.connection", "socket.paused",
)  # fmt: skip
"""Every event of the contract (section 7), in its order, then our additions."""

_SUBJECTS = frozenset(event.partition(".")[0] for event in EVENTS)


def is_own_event(name: str) -> bool:
    """Tell whether an event of this name is one of ours, or would look like one: what agents call theirs is not."""
    return name.partition(".")[0] in _SUBJECTS


UNNUMBERED: frozenset[str] = frozenset({"unit.heartbeat"})
"""Events that are kept in a ring with ``seq`` null, so that beats never grow the chain."""

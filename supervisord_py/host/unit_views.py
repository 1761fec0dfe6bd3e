"""Units as the control interface shows them, from the core's state, the unit files and the journal.

Enums have ``_`` for ``-`` on the wire, and only there.
"""

import resource
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import asdict, replace

from supervisord_py.core import view
from supervisord_py.host.facade import Supervisor, Usage
from supervisord_py.host.limits import lowered_rttime
from supervisord_py.host.redaction import redact_file, redact_setting
from supervisord_py.host.sandbox import applied_sandbox
from supervisord_py.model.status import Exit, UnitStatus
from supervisord_py.model.unit import BadUnit, Unit
from supervisord_py.store.redact import redact_text, redact_words

_ENUMS = ("load_state", "active_state", "sub_state", "result")
_RECORDS_PER_LIFE = 12

LIFE_EVENTS = ("unit.starting", "unit.exited", "unit.restart-scheduled", "unit.stopped", "unit.failed")
"""The events that a life is told by."""


def to_wire(word: str) -> str:
    """Return an enum's word as the interface writes it."""
    return word.replace("-", "_")


def from_wire(word: str) -> str:
    """Return an enum's word as everything else writes it; both spellings are taken."""
    return word.replace("_", "-")


class UnitViews:
    """Reads what the interface shows of units out of the running manager."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def names(self) -> list[str]:
        """Every unit there is, bad and masked ones too, sorted."""
        return sorted({*view.list_units(self._supervisor.manager), *self._supervisor.loaded.unit_set.masked})

    def memberships(self) -> dict[str, tuple[str, ...]]:
        """The groups of every unit that has any, sorted by unit."""
        return {name: groups for name in self.names() if (groups := self.groups(name))}

    def groups(self, unit: str) -> tuple[str, ...]:
        found = self._unit(unit)
        return () if found is None else found.groups

    def bad(self, unit: str) -> BadUnit | None:
        return self._supervisor.loaded.unit_set.bad.get(unit)

    def is_masked(self, unit: str) -> bool:
        return unit in self._supervisor.loaded.unit_set.masked

    def is_running_on(self, unit: str) -> bool:
        """Whether a unit without a usable file is supervised all the same, by the text that it was started with."""
        return self.status(unit).active_state != "inactive"

    def status(self, unit: str) -> UnitStatus:
        """Return the core's word for a unit, and whether its files are still those that were loaded."""
        status = view.unit_status(self._supervisor.manager, unit)
        if unit in self._supervisor.marks.files.changed:
            return replace(status, needs_reload=True, refused=self._supervisor.changes.refused_text(unit))
        return status

    def unloaded(self) -> dict[str, Any] | None:
        """Return what no unit shows as the type ``Unloaded``: new files, and changed settings."""
        marks = self._supervisor.marks
        if not marks.files.appeared and not marks.settings_changed:
            return None
        return {"units": list(marks.files.appeared), "settings": marks.settings_changed}

    def wire_unit(
        self,
        unit: str,
        *,
        usage: Usage | None = None,
        arguments: bool = False,
        secrets: bool = False,
        lines: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Return a unit as the type ``Unit`` of the interface.

        Args:
            unit: Its name.
            usage: What its tree uses now.
            arguments: Whether the peer may see what is executed.
            secrets: Whether it may see secrets in that.
            lines: Its last lines of output, None where the peer may not see them.
        """
        status = self.status(unit)
        shown = asdict(status)
        for name in _ENUMS:
            shown[name] = to_wire(shown[name])
        shown["exit"] = _wire_exit(status.exit)
        shown["health"] = [asdict(check) for check in status.health]
        if usage is not None:
            shown |= asdict(usage)
        if not secrets and status.why is not None:
            shown["why"] = redact_text(status.why)
        if not secrets and status.refused is not None:
            shown["refused"] = redact_text(status.refused)
        for check in () if secrets else shown["health"]:
            check["detail"] = redact_text(check["detail"])
        shown["exec"] = self._exec(unit, secrets=secrets) if arguments else None
        shown["restart_keys"] = list(view.restart_keys(self._supervisor.manager, unit)) if arguments else None
        shown["lines"] = None if lines is None else list(lines)
        shown["groups"] = list(self.groups(unit))
        shown["dropped_lines"] = self._supervisor.output.dropped_lines(unit)
        shown["lowered_limits"] = self._lowered_limits(unit, status.pid)
        shown["applied"] = [*self._applied(unit, status), *self._confining(unit, status)]
        return shown

    def _confining(self, unit: str, status: UnitStatus) -> list[str]:
        """Return what of ``[sandbox]`` confines the process of a unit."""
        life = view.lives(self._supervisor.manager).get(unit)
        if status.pid is None or life is None or life.service is None:
            return []
        if any(command.privileged for command in life.service.exec_start):
            return []
        return applied_sandbox(life.service.context.sandbox, status.degraded)

    def _applied(self, unit: str, status: UnitStatus) -> list[str]:
        """Return the bounds that hold for a unit that runs, each with its mechanism."""
        life = view.lives(self._supervisor.manager).get(unit)
        if status.pid is None or life is None or life.service is None:
            return []
        plan = self._supervisor.resources.plan(life.service.context.resources)
        without = {told.partition(":")[0] for told in status.degraded}
        return [f"{key}: {mechanism.value}" for key, mechanism in plan.how.items() if key not in without]

    def _lowered_limits(self, unit: str, pid: int | None) -> list[str]:
        """Return what is lower than it should be, by what the process really has; looked up where that can be."""
        if pid is None:
            return []
        life = view.lives(self._supervisor.manager).get(unit)
        limits = () if life is None or life.service is None else life.service.context.rlimits
        _, inherited = resource.getrlimit(resource.RLIMIT_RTTIME)
        if inherited == resource.RLIM_INFINITY and all(name != "rttime" for name, _ in limits):
            return []
        soft = lowered_rttime(pid)
        return [] if soft is None else [f"rttime {soft}"]

    def settings(self, unit: str, *, secrets: bool) -> list[dict[str, Any]]:
        """Return every setting of a unit as the type ``Setting``."""
        return [
            {
                "key": setting.key,
                "value": setting.value if secrets else redact_setting(setting.key, setting.value),
                "file": setting.file,
                "line": setting.line,
            }
            for setting in self._supervisor.loaded.settings(unit)
        ]

    def files(self, unit: str, *, secrets: bool) -> list[dict[str, str]]:
        """Return the unit's files in merge order."""
        files = self._supervisor.loaded.files(unit)
        return [{"path": path, "text": text if secrets else redact_file(text)} for path, text in files]

    def edges(self, unit: str, *, reverse: bool) -> list[dict[str, Any]]:
        """Return the dependency tree of a unit as a list of the type ``Edge``, in the order of a walk."""
        return [
            {
                "unit": other,
                "kind": to_wire(kind),
                "until": None if until is None else to_wire(until),
                "active_state": to_wire(active_state),
                "depth": depth,
            }
            for other, kind, until, active_state, depth in view.deps(self._supervisor.manager, unit, reverse)
        ]

    def causes(self, unit: str, *, secrets: bool) -> list[dict[str, Any]]:
        """Return what keeps a unit from being plainly active as the type ``Cause``, nearest first."""
        causes = []
        for line in view.why(self._supervisor.manager, unit):
            cause = asdict(line) | {"kind": to_wire(line.kind)}
            if not secrets:
                cause["message"] = redact_text(line.message)
            causes.append(cause)
        return causes

    def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs as the type ``Job``."""
        return [
            asdict(job) | {"type": to_wire(job.type), "state": to_wire(job.state), "waiting_for": list(job.waiting_for)}
            for job in view.jobs(self._supervisor.manager)
        ]

    def _exec(self, unit: str, *, secrets: bool) -> str | None:
        found = self._unit(unit)
        if found is None or found.service is None or not found.service.exec_start:
            return None
        words = found.service.exec_start[0].words
        return shlex.join(words if secrets else redact_words(words))

    def _unit(self, unit: str) -> Unit | None:
        return self._supervisor.loaded.unit_set.units.get(unit)


def life_query_last(lives: int) -> int:
    """How many records of ``LIFE_EVENTS`` hold the last ``lives`` lives, as a rule."""
    return max(1, lives) * _RECORDS_PER_LIFE


def build_lives(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group the records of one unit by its invocations: one life each, oldest first, as the type ``Life``.

    Args:
        records: Records of ``LIFE_EVENTS``, oldest first. A life whose beginning is not among them is left out.
    """
    lives: dict[str, dict[str, Any]] = {}
    began: dict[str, Mapping[str, Any]] = {}
    unseen: dict[str, None] = {}
    """Lives that ended while no keeper was there."""
    for record in records:
        invocation = record.get("invocation")
        if not isinstance(invocation, str):
            continue
        life = lives.get(invocation)
        if record["event"] == "unit.starting":
            if life is None:
                lives[invocation] = _new_life(record)
                began[invocation] = record
            continue
        if life is None:
            continue
        match record["event"]:
            case "unit.exited":
                if record.get("role") in ("main", "stub"):
                    life["exit"] = {"code": record.get("code"), "signal": record.get("signal")}
                    if record.get("runtime_ms") is None:
                        unseen[invocation] = None
                    _end_life(life, began[invocation], record, is_seen=invocation not in unseen)
            case "unit.restart-scheduled" | "unit.stopped" | "unit.failed":
                _end_life(life, began[invocation], record, is_seen=invocation not in unseen)
                result = record.get("result")
                life["result"] = to_wire(result) if isinstance(result, str) else life["result"]
    return list(lives.values())


def _end_life(life: dict[str, Any], began: Mapping[str, Any], ended: Mapping[str, Any], *, is_seen: bool) -> None:
    """Let a life end with a record: it ran from its beginning to there, through all its commands, if somebody saw it.

    The clock of the machine counts, unless it has booted in between; the time of day may have been set.
    """
    life["end"] = ended["ts"]
    if ended["boot"] == began["boot"] and is_seen:
        life["runtime_ms"] = (ended["mono_ns"] - began["mono_ns"]) // 1_000_000


def _new_life(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "invocation": record["invocation"],
        "start": record["ts"],
        "end": None,
        "result": None,
        "exit": None,
        "runtime_ms": None,
        "last_words": None,
    }


def _wire_exit(exit_: Exit | None) -> dict[str, Any] | None:
    return None if exit_ is None else {"code": exit_.code, "signal": exit_.signal}

"""How the units were at a record: told by the journal alone, record after record from its beginning.

Theory of operation
-------------------
``Past.follow`` takes records in their order and keeps what they say of each unit: its state, its processes, its jobs.
Nothing is looked up: not the files of units, which may have been others then, nor the state of the manager. What
records do not tell is not made up:

* ``queued`` is no state here: a unit at rest whose start waits is at rest, with a job;
* a unit of which no record says how it is has the state None (its records are gone, or it was only ever loaded);
* where the same records come of two states, ``uncertain`` says which the other one is.

Law: what is said without ``uncertain`` is what ``status`` said at that record, but for ``queued`` (a property test
holds it in simulated worlds).

Source: core/ledger.py (``record``) and whoever calls it; supervisord-py.journal(5).
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from supervisord_py.model.states import ActiveState

INACTIVE, ACTIVE, FAILED = ActiveState.INACTIVE.value, ActiveState.ACTIVE.value, ActiveState.FAILED.value
ACTIVATING, DEACTIVATING = ActiveState.ACTIVATING.value, ActiveState.DEACTIVATING.value
RELOADING, QUARANTINED = ActiveState.RELOADING.value, ActiveState.QUARANTINED.value

_BY_ROLE = {"stop": DEACTIVATING, "stop-post": DEACTIVATING, "reload": RELOADING, "stub": QUARANTINED}
"""The state that a command of a unit is run in, where that is no start."""

_STARTS = ("start", "restart")
_REST = (INACTIVE, FAILED, QUARANTINED, None)
_DOES = ("queued", "done")


MAY_BE_RESTARTED = "it may still be between two lives"
MAY_HAVE_FAILED = 'it may have stayed failed (on-dependency-failure = "fail")'


class PastUnit(Struct):
    """One unit, as it was. ``seq`` and ``ts`` are those of the record that told its state; ``jobs`` maps the numbers of
    jobs that had not ended to their types."""

    active_state: str | None = None
    pid: int | None = None
    invocation: str | None = None
    result: str | None = None
    message: str | None = None
    exit_code: int | None = None
    exit_signal: str | None = None
    failures: int = 0
    jobs: dict[int, str] = {}
    seq: int | None = None
    ts: str | None = None
    uncertain: str | None = None
    is_between_lives: bool = False
    is_restarting: bool = False
    """Between two lives, with the pause behind it: what comes next is the job that the restart consists of."""
    released: bool = False
    """While its stub still runs."""


class Past(Struct):
    """Everything that was told up to record ``last``; ``first`` is where the telling began, ``lost`` counts records
    that the journal itself says were lost."""

    units: dict[str, PastUnit] = field(default_factory=dict)
    supervisor: str | None = None
    first: int | None = None
    last: int = 0
    ts: str | None = None
    lost: int = 0

    def follow(self, record: Mapping[str, Any]) -> None:
        """Take the next record."""
        seq = record["seq"]
        if seq is None:
            return
        self.first = self.first or seq
        self.last, self.ts = seq, record["ts"]
        event: str = record["event"]
        match event:
            case "daemon.started":
                self._began_anew()
            case "daemon.stopping" | "daemon.stopped":
                self.supervisor = event.removeprefix("daemon.")
            case "journal.gap":
                self.lost += int(record.get("lost") or 0)
            case "command" if record.get("verb") == "reset-failed" and record.get("result") in _DOES:
                for name in record.get("units") or list(self.units):
                    if name in self.units and self.units[name].active_state == FAILED:
                        self._say(self.units[name], INACTIVE, record)
        name = record.get("unit")
        if isinstance(name, str) and event.startswith(("unit.", "job.")):
            if event == "unit.removed":
                self.units.pop(name, None)
                return
            self._follow_unit(self.units.setdefault(name, PastUnit()), event, record)

    def _began_anew(self) -> None:
        """A supervisor without the processes and jobs of the one before; what had failed is remembered."""
        self.supervisor = "running"
        for unit in self.units.values():
            unit.pid, unit.jobs = None, {}
            if unit.active_state not in _REST:
                unit.active_state, unit.uncertain = INACTIVE, None

    def _follow_unit(self, unit: PastUnit, event: str, record: Mapping[str, Any]) -> None:
        if event.startswith("job."):
            self._follow_job(unit, event, record)
            return
        if event in ("unit.released", "unit.quarantined", "unit.starting"):
            unit.released = event == "unit.released"
        if event == "unit.started" or event == "unit.stub-started":
            unit.pid = record.get("pid")
        elif event == "unit.exited" and record.get("role") in ("main", "start", "stub"):
            if record.get("pid") == unit.pid or record.get("role") != "start":
                unit.pid = None
            if record.get("role") != "stub":
                unit.exit_code, unit.exit_signal = record.get("code"), record.get("signal")
        if event == "unit.released":
            unit.failures = 0
        elif "failures" in record:
            unit.failures = int(record["failures"])
        said = _told(unit, event, record)
        if said is None:
            return
        # The end of a stub is not that of a quarantine.
        is_of_stub = said == DEACTIVATING and unit.active_state == QUARANTINED
        self._say(unit, QUARANTINED if is_of_stub else said, record)
        unit.is_between_lives, unit.is_restarting = event == "unit.restart-scheduled", False
        unit.invocation = record.get("invocation") or unit.invocation
        if event in ("unit.stopped", "unit.failed", "unit.quarantined", "unit.restart-scheduled"):
            unit.result, unit.message = record.get("result", unit.result), record.get("message")
            if said in _REST or said == ACTIVATING:
                unit.pid = None
        elif event == "unit.starting" and said == ACTIVATING:
            unit.result = unit.message = None

    def _follow_job(self, unit: PastUnit, event: str, record: Mapping[str, Any]) -> None:
        number, kind = record.get("job"), str(record.get("type"))
        if event != "job.finished":
            unit.jobs = {**unit.jobs, int(record["job"]): kind}
            unit.is_restarting = unit.is_between_lives and record.get("origin") == "automatic"
            return
        unit.jobs = {job: each for job, each in unit.jobs.items() if job != number}
        if record.get("result") != "dependency" or kind not in _STARTS:
            return
        is_refused = number is None and unit.is_between_lives
        if unit.active_state in _REST or unit.is_restarting or is_refused:
            # It waits for what it needs, unless it is to fail then: had it failed already, no record says which.
            is_unsure = unit.active_state == FAILED or unit.uncertain is not None
            self._say(unit, INACTIVE, record)
            if is_unsure:
                unit.uncertain = MAY_HAVE_FAILED
            elif is_refused:
                unit.uncertain = MAY_BE_RESTARTED
            unit.result, unit.message = "dependency", record.get("message")

    def _say(self, unit: PastUnit, said: str, record: Mapping[str, Any]) -> None:
        unit.active_state, unit.seq, unit.ts, unit.uncertain = said, record["seq"], record["ts"], None


def describe_units(past: Past) -> list[dict[str, Any]]:
    """Return the units as the interface has them, by name."""
    return [
        {
            "name": name,
            "active_state": unit.active_state,
            "pid": unit.pid,
            "invocation": unit.invocation,
            "result": unit.result,
            "message": unit.message,
            "exit": None
            if unit.exit_code is None and unit.exit_signal is None
            else {"code": unit.exit_code, "signal": unit.exit_signal},
            "failures": unit.failures,
            "jobs": [{"job": job, "type": kind} for job, kind in sorted(unit.jobs.items())],
            "since": unit.ts,
            "seq": unit.seq,
            "uncertain": unit.uncertain,
        }
        for name, unit in sorted(past.units.items())
    ]


def _told(unit: PastUnit, event: str, record: Mapping[str, Any]) -> str | None:
    """Return the state that a record says its unit is in from then on, None where it says nothing of that."""
    match event:
        case "unit.starting":
            return _BY_ROLE.get(str(record.get("role")), ACTIVATING)
        case "unit.quarantined":
            return QUARANTINED
        case "unit.released" if unit.active_state == QUARANTINED and unit.pid is None:
            return INACTIVE
        case "unit.stopped" | "unit.failed" if record.get("armed"):
            return ACTIVE
        case "unit.stopped" if record.get("stub"):
            return INACTIVE if unit.released else QUARANTINED
        case "unit.stopping" | "unit.watchdog" | "unit.stuck":
            return DEACTIVATING
        case "unit.restart-scheduled":
            return ACTIVATING
        case "unit.reloading":
            return RELOADING
        case "unit.ready":
            return ACTIVE
        case "unit.failed":
            return FAILED
        case "unit.stopped":
            return INACTIVE
        case _:
            return None

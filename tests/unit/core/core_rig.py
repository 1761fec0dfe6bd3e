"""A hand-driven world for one manager: the test says what happens, the rig keeps the time, the numbers and the laws.

After every event nine laws are checked: the folded changes are the snapshot, a manager restored from the changes
before the event decides the same and finds everything where the other one does, nothing is decided without a record
for each spawn, each record is as grave as its event is, a life ends once, the records alone tell how a unit is, what is
only said of it leads to nothing, and whoever looks at everything once more finds nothing that could go on.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, tzinfo
from typing import Any

from supervisord_py.core import view
from supervisord_py.core.actions import (
    CheckConditions,
    Effects,
    FollowMain,
    LookAtProcesses,
    Reply,
    RunProbe,
    SpawnProcess,
)
from supervisord_py.core.demand import blockers, first_blocker
from supervisord_py.core.events import (
    ClockChanged,
    CommandRequested,
    ConditionsChecked,
    DeadlineReached,
    Event,
    ExitStatus,
    MainFollowed,
    NotifyReceived,
    Now,
    ProbeFinished,
    ProcessesSeen,
    ProcessExited,
    ProcessSpawned,
    ShutdownRequested,
    SpawnFailed,
    TreeEmptied,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.core.processes import is_idling, looks_for_successor
from supervisord_py.core.state import BETWEEN_LIVES, REST, STOPPING, UP, JobOrigin
from supervisord_py.core.timed import is_armed
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import JobState, Role, ServiceType, Severity, SubState
from supervisord_py.model.status import UnitStatus
from supervisord_py.model.unit import SECOND_NS, Command, Dependency, RestartPolicy, Service, Unit, UnitKind, UnitSet

WALL_NS = 1_700_000_000 * SECOND_NS
NO_JITTER = RestartPolicy(jitter=0.0)


BEFORE_START = (SubState.CONDITION, SubState.START_PRE)


def untrue(manager: Manager) -> Iterator[str]:
    """Yield what the states of units say that is not so: each field means something in some states alone, and is empty
    in the others.
    """
    ledger = manager.ledger
    for name, state in ledger.states.items():
        rests = state.sub in REST
        laws = {
            "at rest it has no process": not rests or not (state.main or state.control or state.following),
            "at rest nothing ends by itself": not rests or state.timeout_at_ns is None,
            "at rest no life is bounded": not rests or state.runtime_end_ns is None,
            "it is in no phase exactly at rest": rests is (state.phase_at_ns is None),
            "what is swept precedes the start": not state.sweeping or state.sub in BEFORE_START,
            "while it is up, a reload was asked for where one goes on": state.reload_asked_ns is None
            or state.sub not in UP - {SubState.RELOAD},
            "while it is up, it reloads itself in its reload": not state.notify_reloading
            or state.sub not in UP - {SubState.RELOAD},
            "what gets healthy is up": state.healthy_at_ns is None or state.sub in UP | STOPPING,
            "what gets healthy has failed": state.healthy_at_ns is None or state.failures > 0 or state.backoff > 0,
            "an armed timer is not at rest": not rests or not is_armed(state),
            "a plan is of what waits": state.timer is None
            or state.timer.at_ns is None
            or state.sub is SubState.WAITING,
            "what waits is armed": state.sub is not SubState.WAITING or is_armed(state),
            "what is upheld is at rest": state.uphold_at_ns is None or rests,
            "what is followed is known": state.following is None or state.following in ledger.unit_of_spawn,
            "the text of a life is kept": rests or name in ledger.texts,
            "one command at a time": state.control is None or state.index == state.control.index,
            "what ended well is over": not state.accomplished or state.succeeded,
            "who was the main process is a process of it": not rests or state.leftover or not state.former,
            "what is shown is so": state.active is ledger.shown_active(name),
        }
        yield from (f"{name}: {law}" for law, holds in laws.items() if not holds)
    for job in ledger.jobs.values():
        laws = {
            "a job that asks runs": not job.checking or job.state is JobState.RUNNING,
            "a job has one place": ledger.job_of.get(job.unit) is job,
            "what is named was asked for": not job.named or job.origin is JobOrigin.COMMAND,
            "what waits for no other unit waits for its own": job.state is not JobState.WAITING
            or bool(blockers(ledger, job))
            or ledger.state(job.unit).sub in STOPPING | BETWEEN_LIVES | {SubState.RELOAD}
            or looks_for_successor(ledger, job.unit)
            or job.pool is not None,
            "it is blocked by one of its blockers": first_blocker(ledger, job) in (blockers(ledger, job) or [None]),
        }
        yield from (f"job {job.id} of {job.unit}: {law}" for law, holds in laws.items() if not holds)


def unfinished(manager: Manager, now: Now) -> Effects:
    """Have everything looked at once more, and return what comes of that.

    (Who waits for a dependency may be waiting for a change of it, though it could be started now; so may what is upheld
    be for one of what it contradicted.)
    """
    ledger = manager.ledger
    may_wait = [
        name
        for name, state in ledger.states.items()
        if state.sub is SubState.DEPENDENCY or (state.sub in REST and ledger.graph[name].upheld_by)
    ]
    if not may_wait:
        ledger.changed = dict.fromkeys(sorted(ledger.states))
    ledger.runnable = dict.fromkeys(ledger.jobs)
    return manager.handle(ClockChanged(), now)


def told_by(record: Record) -> str | None:
    """Return the active state that a record says its unit is in from then on, None where it says nothing of that."""
    match record.event:
        case "unit.starting":
            by_role = {"stop": "deactivating", "stop-post": "deactivating", "reload": "reloading"}
            return {**by_role, "stub": "quarantined"}.get(record.fields["role"], "activating")
        case "unit.quarantined":
            return "quarantined"
        case "unit.stopped" | "unit.failed" if record.fields.get("armed"):
            return "active"
        case "unit.stopped" if record.fields.get("stub"):
            return "quarantined" if "message" in record.fields else "without a stub"
        case "unit.stopping" | "unit.watchdog" | "unit.stuck":
            return "deactivating"
        case "unit.restart-scheduled":
            return "activating"
        case "unit.reloading" | "unit.ready" | "unit.failed":
            return {"reloading": "reloading", "ready": "active", "failed": "failed"}[record.event.removeprefix("unit.")]
        case "unit.stopped" | "unit.removed":
            return "inactive"
        case _:
            return None


class Told:
    """How each unit is, as its records tell it."""

    def __init__(self) -> None:
        self._active: dict[str, str] = {}

    def begin(self, manager: Manager) -> None:
        """Know of a manager that was restored what the records of the one before have told of quarantines: how a stub
        ends reads like the end of the unit.
        """
        names = (name for name, state in manager.ledger.states.items() if state.is_stub or state.quarantined)
        self._active = {
            name: "quarantined" for name in names if manager.ledger.shown_active(name).value == "quarantined"
        }

    def follow(self, manager: Manager, event: Event, effects: Effects) -> None:
        """Read on, and compare with what is shown."""
        pardons = isinstance(event, CommandRequested) and event.verb == "reset-failed"
        released = {record.unit for record in effects.records if record.event == "unit.released"}
        for record in effects.records:
            if record.unit is not None and (said := told_by(record)) is not None:
                # The end of a stub is not that of a quarantine.
                is_stubs = said == "deactivating" and self._active.get(record.unit) == "quarantined"
                self._active[record.unit] = "quarantined" if is_stubs else said
        for name, said in self._active.items():
            status = view.unit_status(manager, name)
            if said == "without a stub":
                # It was released, or only its stub was stopped.
                self._active[name] = said = status.active_state
                assert said in ("inactive", "quarantined", "queued")
            pardoned = (pardons and said in ("failed", "quarantined")) or (name in released and said == "quarantined")
            if status.active_state == "inactive" and (status.sub_state == "dependency" or pardoned):
                # The end of its job says so, or whoever has its failure forgotten.
                self._active[name] = said = "inactive"
            if name in released and said == "quarantined" and status.active_state in ("queued", "activating"):
                # Its start waits: what comes of that is told.
                self._active[name] = "inactive"
                continue
            if is_idling(manager.ledger, name):
                # Its job says that its start has begun; of a process there is nothing to say yet.
                said = "activating"
            assert status.active_state in (said, "queued"), f"{name} is {status.active_state}, its records say {said}"


GRAVE = {
    "unit.failed": Severity.ERROR, "unit.stuck": Severity.ERROR, "unit.watchdog": Severity.ERROR,
    "unit.rejected": Severity.ERROR, "unit.error": Severity.WARNING, "rollout.failed": Severity.ERROR,
    "keeper.lost": Severity.ERROR, "unit.excused": Severity.WARNING, "keeper.reexec-failed": Severity.ERROR,
}  # fmt: skip
NEVER_GRAVE = (
    "unit.starting", "unit.started", "unit.stopping", "unit.stopped", "unit.queued", "unit.skipped", "unit.reloading",
    "job.queued", "job.changed", "rollout.started", "rollout.reverted",
)  # fmt: skip
ENDS = ("unit.stopped", "unit.failed", "unit.restart-scheduled")
ONLY_SAID = ("unit.error", "unit.queued", "unit.rejected", "unit.loaded", "rollout.failed", "daemon.stopping")
"""What is written of a unit and is no reason for what it does next."""


def severity_of(record: Record) -> Severity | None:
    """Return how grave a record has to be, None where more than the record decides that."""
    fields = record.fields
    match record.event:
        case "unit.restart-scheduled":
            return Severity.INFO if fields["result"] == "success" else Severity.WARNING
        case "unit.ready":
            return Severity.WARNING if fields.get("reloaded") is False else Severity.INFO
        case "unit.exited" if "step" in fields:
            return Severity.WARNING
        case "job.finished" if fields["job"] is None:
            # What is upheld is tried again.
            return Severity.WARNING if "upheld_by" in fields else Severity.ERROR
        case "job.finished":
            return Severity.INFO if fields["result"] in ("done", "skipped", "canceled") else Severity.WARNING
        case "rollout.finished":
            return Severity.INFO if fields["result"] == "done" else Severity.WARNING
        case "unit.stopped" if fields.get("stub"):
            return Severity.WARNING if "message" in fields else Severity.INFO
        case "daemon.stopping":
            return Severity.WARNING if fields.get("forced") else Severity.INFO
        case event:
            return Severity.INFO if event in NEVER_GRAVE else GRAVE.get(event)


INDEXES = ("alive", "unit_of_spawn", "job_of", "jobs", "texts", "idling", "refused")
"""What a manager looks up: made from the state by one that is restored, kept up to date by one that goes on."""


def index_of(manager: Manager, name: str) -> object:
    """Return an index of a manager in an order of its own: only of the jobs the order matters."""
    index = getattr(manager.ledger, name)
    if name == "idling":
        # Who is not idle any more leaves it when it is looked at.
        return sorted(unit for unit in index if is_idling(manager.ledger, unit))
    return list(index) if name == "jobs" else sorted(index)


def commands(*words: str) -> tuple[Command, ...]:
    return tuple(Command((word,)) for word in words)


def service(name: str, *, relations: Mapping[str, Any] | None = None, **keys: Any) -> Unit:
    """Make a unit with a service: ``relations`` are keys of ``Unit``, the rest keys of ``Service``."""
    keys.setdefault("exec_start", commands(f"/bin/{name}"))
    keys.setdefault("restart", NO_JITTER)
    return Unit(name, UnitKind.SERVICE, Service(**keys), **(relations or {}))


def notify(name: str, *, relations: Mapping[str, Any] | None = None, **keys: Any) -> Unit:
    return service(name, relations=relations, type=ServiceType.NOTIFY, **keys)


def oneshot(name: str, *, relations: Mapping[str, Any] | None = None, **keys: Any) -> Unit:
    from supervisord_py.model.states import Restart

    keys.setdefault("restart", RestartPolicy(restart=Restart.NO, jitter=0.0))
    return service(name, relations=relations, type=ServiceType.ONESHOT, **keys)


def target(name: str, **relations: Any) -> Unit:
    return Unit(name, UnitKind.TARGET, **relations)


def needs(*names: str, **how: Any) -> dict[str, tuple[Dependency, ...]]:
    """``requires`` of these units, as a relation."""
    return {"requires": tuple(Dependency(name, **how) for name in names)}


def unit_set(*units: Unit) -> UnitSet:
    return UnitSet(units={unit.name: unit for unit in sorted(units, key=lambda unit: unit.name)})


def on(kind: str, *names: str, **how: object) -> dict[str, tuple[Dependency, ...]]:
    """A relation of dependencies: ``on("requisite", "db")``."""
    return {kind: tuple(Dependency(name, **how) for name in names)}  # type: ignore[arg-type]


class Rig:
    """A manager, its time, and everything it has said."""

    def __init__(self, *units: Unit, start: bool = False, manager: Manager | None = None) -> None:
        self.manager = manager if manager is not None else Manager(7)
        self.units = UnitSet()
        self.mono_ns = 1000 * SECOND_NS
        self.slept_ns = 0
        self.set_ns = 0
        """By so much the wall clock was set."""
        self.zone_of: Callable[[str], tzinfo] = lambda name: UTC
        self.seq = 1
        self.records: list[Record] = []
        self.actions: list[Any] = []
        self.replies: dict[int, Reply] = {}
        self.spawns: list[SpawnProcess] = []
        self.state: dict[str, str] = {}
        self.last = Effects()
        self.seen = 0
        self._pid = 100
        self._request = 0
        self._living: dict[int, int] = {}
        self._written: dict[int, str] = {}
        """The event of each record that has a number."""
        self._told = Told()
        self._fold()
        if units:
            self.load(*units, start=start)

    # what happens

    def happen(self, event: Event) -> Effects:
        """Let one event happen now, and check the laws."""
        boot_ns = self.mono_ns + self.slept_ns
        now = Now(self.mono_ns, boot_ns, WALL_NS + boot_ns + self.set_ns, self.seq)
        twin = Manager.restore(self.state, self.units)
        twin.use_zones(self.zone_of)
        effects = self.manager.handle(event, now)
        if isinstance(event, UnitsLoaded):
            self.units = event.units
        copied = twin.handle(event, now)
        assert copied.records == effects.records, "a restored manager decides the same"
        assert copied.actions == effects.actions, "a restored manager decides the same"
        assert [index_of(twin, name) for name in INDEXES] == [index_of(self.manager, name) for name in INDEXES]
        assert list(untrue(self.manager)) == []
        assert self.manager.ledger.cursors.keys() <= self.manager.ledger.jobs.keys()
        assert twin.deadline_ns() == self.manager.deadline_ns()
        self._fold()
        assert self.state == self.manager.snapshot() == twin.snapshot()
        again = unfinished(twin, now)
        assert (again.records, again.actions) == ([], []), "nothing is left that could be done"
        assert twin.snapshot() == self.state, "nothing is left that could be done"
        self._check_records(event, effects)
        self.records += effects.records
        self.actions += effects.actions
        self.spawns += [action for action in effects.actions if isinstance(action, SpawnProcess)]
        self.replies |= {reply.request_id: reply for reply in effects.replies}
        self.seq += sum(record.event not in UNNUMBERED for record in effects.records)
        self.last = effects
        return effects

    def _fold(self) -> None:
        for key, text in self.manager.take_changes().items():
            if text is None:
                del self.state[key]
            else:
                self.state[key] = text

    def _check_records(self, event: Event, effects: Effects) -> None:
        starting = [r.fields["spawn_id"] for r in effects.records if r.event == "unit.starting"]
        spawns = [a for a in effects.actions if isinstance(a, SpawnProcess)]
        # A check writes nothing: it would fill the journal.
        assert starting == [a.spawn_id for a in spawns if a.role not in (Role.PROBE, Role.HOOK)]
        for record in effects.records:
            assert "internal error" not in str(record.fields)
            assert record.cause is None or record.cause < self.seq + len(effects.records)
            assert severity_of(record) in (None, record.severity), record
        ends = [(r.event, r.unit, r.invocation) for r in effects.records if r.event in ENDS]
        assert len(ends) == len(set(ends)), "a life ends once"
        numbered = [record.event for record in effects.records if record.event not in UNNUMBERED]
        self._told.follow(self.manager, event, effects)
        self._written |= dict(enumerate(numbered, self.seq))
        led = {name: self._written.get(state.cause or 0) for name, state in self.manager.ledger.states.items()}
        assert {name: event for name, event in led.items() if event in ONLY_SAID} == {}

    def load(self, *units: Unit, start: bool = False, bad: UnitSet | None = None, **loaded_with: Any) -> Effects:
        loaded = unit_set(*units)
        if bad is not None:
            loaded = UnitSet(units=loaded.units, bad=bad.bad)
        return self.happen(UnitsLoaded(loaded, start_enabled=start, **loaded_with))

    def ask(self, verb: str, *units: str, **how: Any) -> int:
        """Ask for something; returns the request's number."""
        self._request += 1
        how.setdefault("cause", None)
        self.happen(CommandRequested(self._request, verb, units, **how))
        return self._request

    def spawned(self, name: str) -> int:
        """The latest process of the unit runs its program; returns its spawn id."""
        spawn = self.spawn_of(name)
        self._pid += 1
        self._living[spawn.spawn_id] = self._pid
        self.happen(ProcessSpawned(spawn.spawn_id, self._pid))
        return spawn.spawn_id

    def followed(self, name: str, refused: str | None = None) -> int:
        """The main process that a start command left is found (or not, and why); returns its spawn id."""
        asked = self.follow_of(name)
        self._pid += 1
        if refused is None:
            self._living[asked.spawn_id] = self._pid
        self.happen(MainFollowed(name, asked.spawn_id, None if refused else self._pid, refused))
        return asked.spawn_id

    def daemon_exited(
        self, name: str, code: int | None = None, *, signal: int | None = None, empty: bool = True
    ) -> Effects:
        """The main process that was followed ends, and the tree is empty then (or not)."""
        spawn_id = self.follow_of(name).spawn_id
        status = ExitStatus(code, signal)
        return self.happen(ProcessExited(spawn_id, self._living[spawn_id], status, tree_empty=empty, rusage={}))

    def failed_to_spawn(self, name: str, step: str = "exec", code: int = 203, errno: int = 2) -> None:
        self.happen(SpawnFailed(self.spawn_of(name).spawn_id, step, code, errno))

    def exited(
        self,
        name: str,
        code: int | None = None,
        *,
        signal: int | None = None,
        core: bool = False,
        empty: bool = True,
        role: Role | None = None,
        main: bool = True,
    ) -> Effects:
        """The latest process of the unit (of the role) ends."""
        spawn_id = self.spawn_of(name, role).spawn_id
        pid = self._living.get(spawn_id, 1)
        status = ExitStatus(code, signal, core)
        return self.happen(ProcessExited(spawn_id, pid, status, main, empty, runtime_ms=5, rusage={"user_us": 1}))

    def emptied(self, name: str) -> None:
        self.happen(TreeEmptied(name))

    def says(self, name: str, **fields: str) -> Effects:
        main = self.manager.ledger.state(name).main
        spawn_id = main.spawn_id if main is not None else self.spawn_of(name, Role.MAIN).spawn_id
        return self.happen(NotifyReceived(name, spawn_id, self._living.get(spawn_id, 1), fields))

    def up(self, name: str) -> None:
        """The unit's main process runs and, where that matters, says READY."""
        self.spawned(name)
        unit = self.manager.ledger.unit(name)
        assert unit is not None and unit.service is not None
        if unit.service.type is ServiceType.NOTIFY:
            self.says(name, READY="1")

    def crash(self, name: str, code: int = 1) -> Effects:
        return self.exited(name, code, role=Role.MAIN)

    def checked(self, name: str, condition: str | None = None, assertion: str | None = None) -> Effects:
        """Somebody has looked at the conditions that the manager asked about last."""
        asked = [each for each in self.actions if isinstance(each, CheckConditions) and each.unit == name]
        return self.happen(ConditionsChecked(asked[-1].check_id, name, condition, assertion))

    def probed(self, name: str, check: str, ok: bool | None, detail: str = "") -> Effects:
        """The host answers what the manager asked last about a health check."""
        asked = [
            each for each in self.actions if isinstance(each, RunProbe) and (each.unit, each.name) == (name, check)
        ]
        return self.happen(ProbeFinished(asked[-1].probe_id, name, check, ok, detail))

    def looked(self, name: str, *, stopped: bool = False) -> Effects:
        """Somebody has looked at the processes that the manager asked about last."""
        asked = [each for each in self.actions if isinstance(each, LookAtProcesses) and each.unit == name]
        return self.happen(ProcessesSeen(asked[-1].look_id, name, stopped))

    def later(self, seconds: float) -> None:
        """Let time pass; every deadline on the way is met on time."""
        end_ns = self.mono_ns + round(seconds * 1000) * SECOND_NS // 1000
        for _ in range(1000):
            deadline_ns = self.manager.deadline_ns()
            if deadline_ns is None or deadline_ns > end_ns:
                break
            self.mono_ns = max(self.mono_ns, deadline_ns)
            self.happen(DeadlineReached())
        else:
            raise AssertionError("the deadlines never end")
        self.mono_ns = end_ns

    def set_clock(self, seconds: float) -> None:
        """Somebody moves the wall clock by that much, and the manager hears of it."""
        self.set_ns += round(seconds * SECOND_NS)
        self.happen(ClockChanged())

    def suspend(self, seconds: float) -> None:
        self.slept_ns += round(seconds * SECOND_NS)
        self.happen(ClockChanged())

    def shut_down(self, seconds: int = 90) -> None:
        self.happen(ShutdownRequested(seconds * SECOND_NS))

    # what can be seen

    def spawn_of(self, name: str, role: Role | None = None) -> SpawnProcess:
        for action in reversed(self.spawns):
            if action.unit == name and role in (None, action.role):
                return action
        raise AssertionError(f"{name} was never spawned")

    def follow_of(self, name: str) -> FollowMain:
        """The latest question for the unit's main process."""
        for action in reversed(self.actions):
            if isinstance(action, FollowMain) and action.unit == name:
                return action
        raise AssertionError(f"nobody asked to follow {name}")

    def status(self, name: str) -> UnitStatus:
        return view.unit_status(self.manager, name)

    def shown(self, name: str) -> str:
        """Active state, sub state and result, as one word."""
        status = self.status(name)
        return f"{status.active_state}/{status.sub_state}/{status.result}"

    def events(self, name: str | None = None) -> list[str]:
        return [record.event for record in self.records if name is None or record.unit == name]

    def record(self, event: str, name: str | None = None) -> Record:
        """The latest record of this event."""
        for record in reversed(self.records):
            if record.event == event and name in (None, record.unit):
                return record
        raise AssertionError(f"no {event} of {name}")

    def outcome(self, request: int) -> dict[str, str]:
        """Result by unit of an answered request."""
        reply = self.replies[request]
        assert reply.refusal is None, reply.refusal
        return {outcome.unit: outcome.result for outcome in reply.outcomes}

    def refusal(self, request: int) -> str:
        refusal = self.replies[request].refusal
        assert refusal is not None
        return refusal.error

    def did(self, kind: type) -> list[Any]:
        """The actions of this kind in the last effects."""
        return [action for action in self.last.actions if isinstance(action, kind)]

    def launched(self) -> list[str]:
        """The units of all spawns of main processes so far."""
        return [action.unit for action in self.spawns if action.role is Role.MAIN]


def running(*units: object, start: tuple[str, ...]) -> Rig:
    """A rig in which these units have been started, one after the other, and are up."""
    rig = Rig(*units)  # type: ignore[arg-type]
    for name in start:
        rig.ask("start", name)
        rig.up(name)
    return rig

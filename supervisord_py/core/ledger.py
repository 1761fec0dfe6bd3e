"""The one mutable root of the core: all state, the moment, and the effects that are being decided.

Theory of operation
-------------------
Everything that decides (``service``, ``engine``, ``requests``, ...) is functions over a ``Ledger``. They change state
through its accessors, which note what was touched, and put consequences for other units on its worklist; the engine
works that off until nothing is left, so no function calls back up.

Laws: a value got by ``edit`` is written before the batch ends; names are iterated in sorted or stored order, never as a
set; the seq of a record is ``now.seq`` plus the numbered records before it in the same effects.
"""

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo
from enum import Enum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core.actions import AnyAction, Effects, Reply, SpawnProcess
from supervisord_py.core.events import Now
from supervisord_py.core.graph import Graph
from supervisord_py.core.restart import next_random
from supervisord_py.core.rollout_state import Rollout
from supervisord_py.core.state import (
    ACTIVE_STATES,
    BETWEEN_LIVES,
    FORMAT,
    HOLDING,
    REST,
    Beside,
    GlobalState,
    Job,
    JobEnd,
    Process,
    TimerState,
    TokenEntry,
    UnitState,
    WatchKind,
)
from supervisord_py.core.timers import DeadlineKind, Timers
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import ActiveState, JobState, JobType, Severity, SubState
from supervisord_py.model.unit import Service, Unit, UnitSet


class Intent(Enum):
    """What a unit's change asks of the job engine."""

    RESTART = "restart"
    """The back-off is over: start it again."""
    RECOVER = "recover"
    """What it waited for may be there: start it if all is."""
    RECOVERED = "recovered"
    """It begins to wait: start it if what it waits for is back already."""
    STOP_BOUND = "stop-bound"
    """Something it is bound to is gone: stop it."""
    FAIL_DEPENDENT = "fail-dependent"
    """Something it requires could not be started: its start ends too."""
    STOP_ALONG = "stop-along"
    """Something that takes it down with it has ended."""
    UPHOLD_LATER = "uphold-later"
    """Its start came to nothing: if a unit that is up upholds it, it is tried again after a pause."""
    UPHOLD = "uphold"
    """It is down: start it if a unit that is up upholds it. ``other`` is that one, or itself when it has just ended,
    or nobody when it need not pause (any more).
    """
    RUN = "run"
    """Its timer has elapsed: run it."""
    RETRY = "retry"
    """It is quarantined, and its "retry-after" has passed: start it once more."""
    QUARANTINED = "quarantined"
    """It was quarantined: start what its on-quarantine names."""
    FAILED = "failed"
    """It has failed, for good or in a job: start what its on-failure names."""
    SUCCEEDED = "succeeded"
    """It has ended well and is at rest: start what its on-success names."""
    EXIT_SUPERVISOR = "exit-supervisor"
    """It is at rest: end everything, if its end is to be that of the supervisor."""


class Task(Struct, frozen=True):
    """One entry of the worklist of intents."""

    intent: Intent
    unit: str
    other: str
    """The unit whose change this follows from."""
    cause: int | None = None


class Ledger:
    """State, moment, effects and worklists."""

    def __init__(self, seed: int) -> None:
        self.now = Now(0, 0, 0, 0)
        self.set = UnitSet()
        self.graph = Graph({})
        self.states: dict[str, UnitState] = {}
        self.texts: dict[str, Unit] = {}
        """The unit as its present life was started; kept until it is at rest."""
        self.jobs: dict[int, Job] = {}
        self.tokens: dict[int, TokenEntry] = {}
        self.ends: dict[int, JobEnd] = {}
        self.rollout: Rollout | None = None
        self.globals = GlobalState(random=seed & ((1 << 64) - 1), format=FORMAT)
        self.job_of: dict[str, Job] = {}
        self.alive: dict[str, None] = {}
        """Units that are not at rest."""
        self.unit_of_spawn: dict[int, str] = {}
        self.timers = Timers(self._holds)
        self.zone_of: Callable[[str], tzinfo] = lambda name: UTC
        """Time zones by name, the empty name is the local one; not state: each manager is handed its own."""
        self.effects = Effects()
        self.touched: dict[str, None] = {}
        """Keys whose text may have changed since the changes were last taken."""
        self.recent: dict[str, None] = {}
        """Units touched in this event."""
        self.changed: dict[str, None] = {}
        """Units whose change others may be waiting for."""
        self.runnable: dict[int, None] = {}
        """Jobs to be looked at."""
        self.cursors: dict[int, int] = {}
        """Where the search for what blocks a job goes on: an index that saves time and decides nothing."""
        self.refused: dict[str, None] = {}
        """Units whose start for who upholds them was refused (``UnitState.uphold_refused``)."""
        self.refused_changed = False
        """Something has changed for which starts may have been refused."""
        self.idling: dict[str, None] = {}
        """Units whose start may be waiting for the other jobs (``life.is_idling`` tells)."""
        self.beside: dict[int, Beside] = {}
        """Processes beside the lives of units, by spawn id."""
        self.holders: dict[str, str] = {}
        """Units that hold a slot, and the pool of which they hold one as well (``core.pool``)."""
        self.used: dict[str, int] = {}
        """How many slots of each pool are held, under the empty name of all."""
        self.waiting: dict[int, None] = {}
        """Jobs that wait for a slot."""
        self.places: dict[int, tuple[int, int]] = {}
        """The place of each of these among those that wait for the same limit (from 1), and how many they are."""
        self.waits_changed = False
        """A slot has become free, or a job has begun to wait for one."""
        self.intents: deque[Task] = deque()
        self.finished: list[tuple[Job, str, str]] = []
        """Jobs that ended in this event, with result and message: what requests are answered from."""
        self.recoveries: dict[str, int] = {}
        """How often each unit was started for a recovered dependency in this event."""
        self._beats: list[Record] = []
        self._numbered = 0

    # one event

    def begin(self, now: Now) -> None:
        self.now = now
        self.effects = Effects(records=[], actions=[], replies=[])
        self._beats = []
        self._numbered = 0
        self.recent = {}
        self.recoveries = {}

    def end(self) -> Effects:
        """Hand over the effects; beats come last, because they have no number."""
        self.effects.records += self._beats
        return self.effects

    def touched_units(self) -> list[str]:
        """Return the units touched in this event, in the order in which they were."""
        return list(self.recent)

    # units

    def state(self, name: str) -> UnitState:
        """Return the unit's state to read; a unit that nothing happened to has the default."""
        state = self.states.get(name)
        return state if state is not None else _AT_REST

    def edit(self, name: str) -> UnitState:
        """Return the unit's state to change it."""
        self.touch_unit(name)
        state = self.states.get(name)
        if state is None:
            state = self.states[name] = UnitState()
        return state

    def touch_unit(self, name: str) -> None:
        self.touched[f"unit/{name}"] = None
        self.recent[name] = None

    def unit(self, name: str) -> Unit | None:
        """Return the text that the unit's present life runs by, else the one of the unit set."""
        return self.texts.get(name) or self.set.units.get(name)

    def service(self, name: str) -> Service | None:
        unit = self.unit(name)
        return unit.service if unit is not None else None

    def keep_text(self, name: str, unit: Unit) -> None:
        if self.texts.get(name) != unit:
            self.texts[name] = unit
            self.touched[f"text/{name}"] = None
            self.note_slot(name)

    def drop_text(self, name: str) -> None:
        if self.texts.pop(name, None) is not None:
            self.touched[f"text/{name}"] = None

    def set_sub(self, name: str, sub: SubState) -> UnitState:
        """Enter a low-level state; everybody who may wait for that is looked at."""
        state = self.edit(name)
        if sub is not state.sub:
            self._note_end(name, state.sub, sub, state.cause)
        state.sub = sub
        self.changed[name] = None
        if sub in REST:
            state.phase_at_ns = None
            self.alive.pop(name, None)
            if state.timer is not None and state.timer.armed_ns is not None:
                # Only what is up has an armed timer.
                self.set_timer(name, replace(state.timer, armed_ns=None, mono_ns=None, wall_ns=None, at_ns=None))
        else:
            self.alive[name] = None
            self.note_refused(name, None)
        self.note_slot(name)
        return state

    def note_refused(self, name: str, reason: str | None) -> None:
        """Remember that a start for an upholder was refused, or (None) that nothing is refused any more."""
        if self.state(name).uphold_refused != reason:
            self.edit(name).uphold_refused = reason
        if reason is None:
            self.refused.pop(name, None)
        else:
            self.refused[name] = None

    def note_slot(self, name: str) -> None:
        """Bring the index of held slots up to date with what the unit and its job are."""
        before, pool = self.holders.get(name), self._held_pool(name)
        if pool == before:
            return
        if before is not None:
            del self.holders[name]
            self.waits_changed = True
            for limit in dict.fromkeys(("", before)):
                self.used[limit] -= 1
        if pool is not None:
            self.holders[name] = pool
            for limit in dict.fromkeys(("", pool)):
                self.used[limit] = self.used.get(limit, 0) + 1

    def _held_pool(self, name: str) -> str | None:
        unit, job = self.unit(name), self.job_of.get(name)
        if unit is None or unit.service is None:
            return None
        # Between the halves of a restart the slot is kept.
        is_restarted = job is not None and job.type is JobType.RESTART and job.state is JobState.RUNNING
        if self.state(name).sub in HOLDING or (job is not None and job.admitted):
            return unit.pool.name
        return self.holders.get(name) if is_restarted else None

    def _note_end(self, name: str, old: SubState, new: SubState, cause: int | None) -> None:
        """Note what follows for others from the end of a life, and from coming to rest."""
        if self.state(name).is_stub:
            # What followed from the unit's failure has followed: the end of its stub is none.
            return
        if new in _DOWN and old not in _DOWN:
            for other in self.graph[name].stops:
                self.intents.append(Task(Intent.STOP_ALONG, other, name, cause))
        if new in REST:
            self._note_rest(name, new, old not in REST, cause)

    def _note_rest(self, name: str, new: SubState, ended: bool, cause: int | None) -> None:
        if self.graph[name].upheld_by and (ended or new is SubState.DEAD):
            self.intents.append(Task(Intent.UPHOLD, name, name if ended else "", cause))
        unit = self.unit(name)
        if unit is None:
            return
        if unit.exit_supervisor_on is not None and (ended or new is SubState.FAILED):
            self.intents.append(Task(Intent.EXIT_SUPERVISOR, name, name, cause))
        if new is SubState.FAILED and unit.on_failure:
            self.intents.append(Task(Intent.FAILED, name, name, cause))
        elif new is SubState.DEAD and ended and unit.on_success:
            self.intents.append(Task(Intent.SUCCEEDED, name, name, cause))

    def shown_active(self, name: str) -> ActiveState:
        """Return the high-level state as people see it: ``queued`` for a unit at rest whose start waits, and for one
        that would be restarted if there were a slot for it.
        """
        state = self.state(name)
        job = self.job_of.get(name)
        if state.is_stub or (state.quarantined and state.sub is SubState.FAILED):
            return ActiveState.QUARANTINED
        if job is None or job.state is not JobState.WAITING or job.type in (JobType.STOP, JobType.NOP):
            return ACTIVE_STATES[state.sub]
        is_queued = state.sub in REST or (state.sub in BETWEEN_LIVES and job.pool is not None)
        return ActiveState.QUEUED if is_queued else ACTIVE_STATES[state.sub]

    # deadlines

    def arm_phase(self, name: str, timeout_ns: int | None) -> None:
        """Begin to bound the present phase; None is for ever."""
        state = self.edit(name)
        state.phase_at_ns = None if state.sub in REST else self.now.mono_ns
        state.timeout_at_ns = None if timeout_ns is None else self.now.mono_ns + timeout_ns
        if state.timeout_at_ns is not None:
            self.timers.arm(state.timeout_at_ns, name, DeadlineKind.PHASE)

    def arm_phase_at(self, name: str, at_ns: int | None) -> None:
        """Move the end of the present phase."""
        self.edit(name).timeout_at_ns = at_ns
        if at_ns is not None:
            self.timers.arm(at_ns, name, DeadlineKind.PHASE)

    def arm_healthy(self, name: str, after_ns: int | None) -> None:
        self.arm_healthy_at(name, None if after_ns is None else self.now.mono_ns + after_ns)

    def arm_healthy_at(self, name: str, at_ns: int | None) -> None:
        self.edit(name).healthy_at_ns = at_ns
        if at_ns is not None:
            self.timers.arm(at_ns, name, DeadlineKind.HEALTHY)

    def _holds(self, at_ns: int, owner: str, kind: DeadlineKind) -> bool:
        match kind:
            case DeadlineKind.PHASE:
                return self.state(owner).timeout_at_ns == at_ns
            case DeadlineKind.HEALTHY:
                return self.state(owner).healthy_at_ns == at_ns
            case DeadlineKind.JOB:
                job = self.job_of.get(owner)
                return job is not None and job.timeout_at_ns == at_ns
            case DeadlineKind.UPHOLD:
                return self.state(owner).uphold_at_ns == at_ns
            case DeadlineKind.WATCHDOG | DeadlineKind.PROGRESS:
                watch = self.state(owner).watches.get(WatchKind(kind.value))
                return watch is not None and watch.at_ns == at_ns
            case DeadlineKind.PROBE:
                name, _, check = owner.partition("!")
                probe = self.state(name).probes.get(check)
                return probe is not None and probe.at_ns == at_ns
            case DeadlineKind.BESIDE:
                beside = self.beside.get(int(owner))
                return beside is not None and beside.at_ns == at_ns
            case DeadlineKind.TIMER:
                timer = self.state(owner).timer
                return timer is not None and timer.at_ns == at_ns
            case DeadlineKind.RETRY:
                return self.state(owner).retry_at_ns == at_ns
            case DeadlineKind.ROLLOUT:
                unit = None if self.rollout is None else self.rollout.units.get(owner)
                return unit is not None and unit.good_at_ns == at_ns
            case DeadlineKind.SHUTDOWN:
                shutdown = self.globals.shutdown
                return (
                    shutdown is not None
                    and not shutdown.exited
                    and at_ns in (shutdown.force_at_ns, shutdown.give_up_at_ns)
                    and (at_ns == shutdown.give_up_at_ns or not shutdown.forced)
                )

    def arm_job(self, job: Job, timeout_ns: int | None) -> None:
        """Bound the whole time of a job; None is for ever."""
        self.edit_job(job).timeout_at_ns = None if timeout_ns is None else self.now.mono_ns + timeout_ns
        if job.timeout_at_ns is not None:
            self.timers.arm(job.timeout_at_ns, job.unit, DeadlineKind.JOB)

    def arm_uphold(self, name: str, at_ns: int | None) -> None:
        self.edit(name).uphold_at_ns = at_ns
        if at_ns is not None:
            self.timers.arm(at_ns, name, DeadlineKind.UPHOLD)

    def arm_watch(self, name: str, kind: WatchKind, at_ns: int | None) -> None:
        if at_ns is not None:
            self.timers.arm(at_ns, name, DeadlineKind(kind.value))

    def arm_probe(self, name: str, probe: str, at_ns: int | None) -> None:
        if at_ns is not None:
            self.timers.arm(at_ns, f"{name}!{probe}", DeadlineKind.PROBE)

    def arm_beside(self, spawn_id: int, at_ns: int | None) -> None:
        self.edit_beside(spawn_id).at_ns = at_ns
        if at_ns is not None:
            self.timers.arm(at_ns, str(spawn_id), DeadlineKind.BESIDE)

    def arm_retry(self, name: str, after_ns: int | None) -> None:
        at_ns = self.edit(name).retry_at_ns = None if after_ns is None else self.now.mono_ns + after_ns
        if at_ns is not None:
            self.timers.arm(at_ns, name, DeadlineKind.RETRY)

    def set_timer(self, name: str, timer: TimerState) -> None:
        self.edit(name).timer = timer
        if timer.at_ns is not None:
            self.timers.arm(timer.at_ns, name, DeadlineKind.TIMER)

    # jobs

    def edit_job(self, job: Job) -> Job:
        self.touched[f"job/{job.id}"] = None
        self.touch_unit(job.unit)
        return job

    def new_job_id(self) -> int:
        state = self.edit_globals()
        state.next_job += 1
        return state.next_job - 1

    # everything else

    def edit_globals(self) -> GlobalState:
        self.touched["global"] = None
        return self.globals

    def set_rollout(self, rollout: Rollout | None) -> None:
        self.rollout = rollout
        self.touched["rollout"] = None

    def edit_rollout(self) -> Rollout:
        """Return the rollout that is under way, to change it."""
        assert self.rollout is not None, "internal error: there is no rollout"
        self.touched["rollout"] = None
        return self.rollout

    def set_beside(self, spawn_id: int, beside: Beside | None) -> None:
        """Remember a process beside a life, or forget it."""
        self.touched[f"beside/{spawn_id}"] = None
        if beside is None:
            del self.beside[spawn_id]
            return
        self.beside[spawn_id] = beside
        self.arm_beside(spawn_id, beside.at_ns)

    def edit_beside(self, spawn_id: int) -> Beside:
        self.touched[f"beside/{spawn_id}"] = None
        return self.beside[spawn_id]

    def draw(self) -> int:
        """Return a 64-bit random number."""
        state = self.edit_globals()
        state.random, value = next_random(state.random)
        return value

    def new_invocation(self) -> str:
        return f"{self.draw():016x}{self.draw():016x}"

    # effects

    def record(
        self,
        event: str,
        unit: str | None = None,
        *,
        severity: Severity = Severity.INFO,
        cause: int | None = None,
        fields: Mapping[str, Any] | None = None,
        chain: bool = True,
        asked: bool = False,
        invocation: str | None = None,
    ) -> int | None:
        """Write a record and return its number, None while numbers are unknown.

        A record of a unit is caused by the unit's last one unless ``cause`` says more (``asked``: by ``cause`` or by
        nothing); with ``chain`` the unit's next record is caused by it.
        """
        if unit is not None:
            state = self.state(unit)
            invocation = invocation or state.invocation
            if cause is None and not asked:
                cause = state.cause
        if not self.now.seq:
            cause = None
        record = Record(
            event=event,
            severity=severity,
            unit=unit,
            invocation=invocation,
            cause=cause,
            fields=dict(fields) if fields else {},
        )
        if event in UNNUMBERED:
            self._beats.append(record)
            return None
        self.effects.records.append(record)
        self._numbered += 1
        seq = self.now.seq + self._numbered - 1 if self.now.seq else None
        if unit is not None and chain:
            self.edit(unit).cause = seq
        return seq

    def act(self, action: AnyAction) -> None:
        self.effects.actions.append(action)

    def reply(self, reply: Reply) -> None:
        self.effects.replies.append(reply)

    def spawn(self, name: str, process: Process, action: SpawnProcess) -> None:
        """Ask for a process, once its record is written."""
        self.unit_of_spawn[process.spawn_id] = name
        self.edit(name).held = True
        self.act(action)

    def new_look_id(self) -> int:
        state = self.edit_globals()
        state.next_look += 1
        return state.next_look - 1

    def new_spawn_id(self) -> int:
        state = self.edit_globals()
        state.next_spawn += 1
        return state.next_spawn - 1


_DOWN = REST | BETWEEN_LIVES

_AT_REST = UnitState()
"""What ``state`` returns for a unit without a state of its own; never changed, because changes go through ``edit``."""

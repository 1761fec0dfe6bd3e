"""What the core remembers: one mutable value a unit, a job, a token, and one for everything else.

All of it is data (no handles, no closures), so the whole state is text in the keeper's custody after every batch and a
new manager goes on where the old one was cut. Times are CLOCK_MONOTONIC nanoseconds unless the name says wall. Fields
with their default value are not written: a unit at rest that nothing has happened to since it was loaded has no text at
all.

Terms
-----
life      from the first process of a start to the moment when no process of it is left and ``exec-stop-post`` has
          run; has one invocation id.
at rest   no life and none scheduled: ``dead``, ``failed``, or ``dependency`` (waiting for another unit to recover).
leftover  processes of the unit's tree that are neither its main nor its control process.
"""

from enum import Enum

from msgspec import Struct

from supervisord_py.core.socket_state import Connection, SocketState
from supervisord_py.model.hooks import Hook
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import ActiveState, JobState, JobType, Result, Role, SubState

REST = frozenset({SubState.DEAD, SubState.FAILED, SubState.DEPENDENCY})
BETWEEN_LIVES = frozenset({SubState.AUTO_RESTART, SubState.AUTO_RESTART_QUEUED})
STARTING = frozenset({SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST})
UP = frozenset({SubState.RUNNING, SubState.EXITED, SubState.RELOAD, SubState.PAUSED})
STOPPING = frozenset(
    {
        SubState.STOP,
        SubState.STOP_WATCHDOG,
        SubState.STOP_SIGTERM,
        SubState.STOP_SIGKILL,
        SubState.STOP_POST,
        SubState.FINAL_SIGTERM,
        SubState.FINAL_SIGKILL,
        SubState.STUCK,
    }
)

ARMED = frozenset({SubState.WAITING, SubState.LISTENING})
"""A timer, or sockets, between two runs: it is up, and has no process (``core.timed``, ``core.listening``)."""
THERE = UP | ARMED
"""The unit is active, as far as its state alone tells: what is armed is also in a run (``UnitState.is_armed``)."""

HOLDING = STARTING | STOPPING | UP - {SubState.EXITED} | {SubState.STUB}
"""A service in one of these has processes, and a slot of its pool (``core.pool``)."""

ACTIVE_STATES: dict[SubState, ActiveState] = {
    SubState.DEAD: ActiveState.INACTIVE,
    SubState.DEPENDENCY: ActiveState.INACTIVE,
    SubState.FAILED: ActiveState.FAILED,
    SubState.AUTO_RESTART: ActiveState.ACTIVATING,
    SubState.AUTO_RESTART_QUEUED: ActiveState.ACTIVATING,
    SubState.CONDITION: ActiveState.ACTIVATING,
    SubState.START_PRE: ActiveState.ACTIVATING,
    SubState.START: ActiveState.ACTIVATING,
    SubState.START_POST: ActiveState.ACTIVATING,
    SubState.RUNNING: ActiveState.ACTIVE,
    SubState.EXITED: ActiveState.ACTIVE,
    SubState.STUB: ActiveState.QUARANTINED,
    SubState.RELOAD: ActiveState.RELOADING,
    SubState.PAUSED: ActiveState.ACTIVE,
    SubState.WAITING: ActiveState.ACTIVE,
    SubState.LISTENING: ActiveState.ACTIVE,
    **dict.fromkeys(STOPPING, ActiveState.DEACTIVATING),
}
"""The high-level state of each low-level one that this core enters; ``QUEUED`` is derived from a waiting job."""


class Process(Struct, omit_defaults=True):
    """A process that was asked for and has not ended: the main one, or the control process (any other command)."""

    spawn_id: int
    role: Role
    index: int = 0
    """Which command of its list."""
    pid: int | None = None
    """None until the program runs."""
    degraded: tuple[str, ...] = ()
    """What it runs without although its unit asks for it, best-effort."""
    is_guess: bool = False
    """The main process of a forking unit that was taken for it because it was the only one there."""


class Former(Struct, frozen=True):
    """A process that is not the main one any more, and shares the spawn id of the one that is; or one that was found
    too late to be it.
    """

    spawn_id: int
    invocation: str | None
    pid: int | None = None
    """Of one that was found too late."""


class LastLife(Struct, frozen=True, omit_defaults=True):
    """How the life before ended; told to the next one as ``SUPERVISORD_PY_LAST_LIFE``."""

    result: Result = Result.SUCCESS
    code: int | None = None
    signal: str | None = None
    runtime_ms: int | None = None
    """None where nobody saw its end."""
    message: str | None = None
    """What was found of it, where its end alone does not tell."""


class Monitor(Struct, frozen=True, omit_defaults=True):
    """The end of a unit as what its ``on-failure`` or ``on-success`` starts is told it (``MONITOR_*``)."""

    unit: str
    result: Result = Result.SUCCESS
    code: int | None = None
    signal: str | None = None
    dumped: bool = False
    invocation: str | None = None
    ended: bool = False
    """A main process of that life has ended: ``code`` or ``signal`` is how."""


class Order(Struct, frozen=True, omit_defaults=True):
    """What began or ended a life, for ``why``: who asked for it and why, or what it followed from."""

    verb: str
    """``started``, ``stopped``, ``restarted`` or ``triggered``."""
    by: str = ""
    """Who asked (``root (uid 0)``); empty when nobody did, or nobody knows."""
    note: str = ""
    """The reason that was given."""
    reason: str = ""
    """What it followed from, where the unit itself was not named."""
    past: bool = False
    """Its policy has begun another life since."""


class Beside(Struct, omit_defaults=True):
    """A process beside the life of a unit; see ``core.beside``."""

    unit: str
    name: str
    """What it is to who asked for it: the name of a check, the number of a hook."""
    role: Role
    invocation: str
    began_ns: int
    timeout_ns: int
    at_ns: int | None
    """When it has taken too long."""
    pid: int | None = None
    told: bool = False
    """Its result is known, or not wanted any more."""
    ended: bool = False
    """Its main process has ended; what is left of its tree is being killed."""
    overdue: bool = False
    """Its time is over: it is being killed."""
    held_up: bool = False
    """The keeper had not made it by then: its end says nothing."""


class HookCall(Struct, frozen=True, omit_defaults=True):
    """A hook that an event has called for; see ``core.hooks``."""

    hook: Hook
    unit: str
    event: str
    environment: tuple[tuple[str, str], ...] = ()


class ProbeState(Struct, omit_defaults=True):
    """What is known by one health check of a unit; see ``core.health``."""

    good: bool | None = None
    """What holds by the thresholds; None before the first that was reached."""
    ok: bool | None = None
    """The last answer."""
    row: int = 0
    """So many answers in a row were like the last."""
    at_ns: int | None = None
    """When it is asked next."""
    asked_ns: int = 0
    """When it was asked last; 0: never."""
    probe_id: int | None = None
    """The question that the host has not answered."""
    spawn_id: int | None = None
    """The command that has not ended."""
    look_id: int | None = None
    """The processes are being looked at, before a bad answer counts."""
    bad: str = ""
    """The bad answer that does not count yet."""
    stopped: bool = False
    """The processes were stopped when they were looked at last."""
    detail: str = ""
    checked_wall_ns: int = 0

    @property
    def is_asked(self) -> bool:
        """Whether an answer will come, or it will be asked."""
        return any(each is not None for each in (self.at_ns, self.probe_id, self.spawn_id, self.look_id))


class Freeze(Struct, frozen=True, omit_defaults=True):
    """An order to pause or resume a unit; see ``core.pause``."""

    job: int
    """Its number for those who wait."""
    pauses: bool
    by: str = ""
    """Who asked for it."""
    note: str = ""
    """The reason that they gave."""
    cause: int | None = None


class WatchKind(Enum):
    """What silence is watched for."""

    WATCHDOG = "watchdog"
    PROGRESS = "progress"


class Watch(Struct, frozen=True, omit_defaults=True):
    """A silence that is being measured; see ``core.watchdog``."""

    period_ns: int
    from_ns: int
    """When the last sign came."""
    at_ns: int | None
    """When it is looked at next; None while somebody looks."""
    look_id: int | None = None
    stopped: bool = False
    """The processes were stopped when somebody looked last."""
    held_up: bool = False
    """This silence was allowed to last longer, because the supervisor was held up itself."""
    asked_ns: int | None = None
    """When somebody was asked to look, as long as there is no answer."""


class TimerState(Struct, frozen=True, omit_defaults=True):
    """What is known about the timer of a unit; see ``core.timed``. None: it has not been."""

    armed_ns: int | None = None
    """When it was armed; None while it is not."""
    armed_wall_ns: int = 0
    fired_ns: int | None = None
    """When it fired last since it was armed."""
    fired_wall_ns: int | None = None
    """Calendars are looked up from there: when it fired last, the stamp of a persistent timer that has not fired since
    it was armed, or the reload that brought other calendars."""
    fired_before_ns: int | None = None
    """When it fired last before it was armed."""
    stamp_wall_ns: int | None = None
    """When it fired last at all, or was armed first if it is persistent: this survives the supervisor."""
    last_wall_ns: int | None = None
    """When it fired last at all, for people; this survives too."""
    began_ns: int | None = None
    """The last run began."""
    ended_ns: int | None = None
    ended_wall_ns: int | None = None
    once_more: bool = False
    """It was triggered in a run, and is run again when that is over (``overrun = "queue"``)."""
    random_millionths: int = 0
    """This part of the random delay is added to the present plan."""
    mono_ns: int | None = None
    """The plan: it fires then, or ..."""
    wall_ns: int | None = None
    """... then, whichever is first."""
    at_ns: int | None = None
    """When that is looked at: the earlier of the two on our clock, and so much later that wake-ups fall together."""


class Ending(Enum):
    """Who began the end of the present life."""

    ITSELF = "itself"
    """The process, a time-out or a watchdog: the restart policy decides what follows."""
    ORDER = "order"
    """A stop or restart that was asked for, or the shutdown: no automatic restart."""
    IDLE = "idle"
    """Nothing has come to it for so long: it listens again, and that is no failure."""
    BOUND = "bound"
    """A unit it is bound to went away: it is awaited."""


class Chain(Struct, frozen=True, omit_defaults=True):
    """Starts that have followed one from another: each because of the end of the unit before."""

    links: int
    from_ns: int
    """When the first of them was."""
    units: tuple[str, ...] = ()
    """The units in it, each once; not all of many."""


class UnitState(Struct, omit_defaults=True):
    """The runtime state of one unit."""

    sub: SubState = SubState.DEAD
    active: ActiveState = ActiveState.INACTIVE
    """As it is shown (``queued`` included); kept to notice when it changes."""
    since_wall_ns: int = 0
    result: Result = Result.SUCCESS
    invocation: str | None = None
    main: Process | None = None
    control: Process | None = None
    leftover: bool = False
    following: int | None = None
    """The spawn id that ``FollowMain`` was asked for and that nothing runs as yet."""
    held: bool = False
    """Something was spawned since the last ``ReleaseUnit``."""
    sweeping: bool = False
    """Processes left by ``exec-condition`` or ``exec-start-pre`` are being killed before the next command."""
    started: bool = False
    """The main program of this life runs or has run."""
    forked: bool = False
    """The start command of this life, of a forking unit, runs or has run: what it leaves behind is the daemon."""
    start_degraded: tuple[str, ...] = ()
    """Without what the last start command of a forking unit ran, though its unit asks for it, best-effort."""
    main_ended: bool = False
    """A main process of this life has ended (``exit_code`` and ``exit_signal`` are its, not an older life's)."""
    unseen: bool = False
    """Nobody saw when it ended."""
    was_up: bool = False
    """This life was fully started (``exec-stop`` applies)."""
    post_done: bool = False
    succeeded: bool = False
    """The last life was complete and ended well by itself: what ``until = "exited"`` waits for."""
    accomplished: bool = False
    """The last life was a oneshot's success, which is what readiness means for a oneshot."""
    former: list[Former] = []
    """Processes that were the main one before ``MAINPID=`` handed their place to another, and that have not ended."""
    ending: Ending = Ending.ITSELF
    stopped: bool = False
    """Somebody stopped it: nothing automatic starts it again."""
    index: int = 0
    """The command of the present phase that runs or ran last."""
    phase_at_ns: int | None = None
    """Beginning of the present phase: a reload that changes its time-out counts from there."""
    timeout_at_ns: int | None = None
    """End of the present phase (of the back-off in ``auto-restart``)."""
    runtime_end_ns: int | None = None
    """When this life has run for ``runtime-max-sec``; the phase ends then while it is running."""
    healthy_at_ns: int | None = None
    """When failures are forgotten, if nothing happens until then."""
    began_ns: int = 0
    exit_code: int | None = None
    exit_signal: str | None = None
    exit_dumped: bool = False
    last_life: LastLife | None = None
    restarts: int = 0
    backoff: int = 0
    """Automatic restarts since the unit was last healthy: the level of the back-off."""
    failures: int = 0
    starts_ns: list[int] = []
    """The starts that the start limit still counts [CLOCK_BOOTTIME ns], ascending."""
    errors: int = 0
    """Consecutive errors that the process itself reported."""
    error_at_ns: int | None = None
    """When one was written last."""
    reload_failed: str | None = None
    """Why the present or last reload failed."""
    notify_reloading: bool = False
    """The process has said RELOADING=1, and not READY=1 since."""
    reload_asked_ns: int | None = None
    """When the reload signal was sent, until RELOADING=1 answers it."""
    status_text: str | None = None
    errno: int | None = None
    refusals: int = 0
    """How often a MAINPID= of this life was refused."""
    refused_at_ns: int | None = None
    """When that was written last."""
    progress: str | None = None
    beat_at_ns: int | None = None
    message: str | None = None
    """What went wrong last, in words."""
    cause: int | None = None
    """The record that led to the present state."""
    order: Order | None = None
    """The last start or stop that was not automatic."""
    skipped: bool = False
    """Its last start was skipped: a condition did not hold."""
    unmet: str | None = None
    """The condition or assertion that did not hold when they were looked at last."""
    checked_wall_ns: int = 0
    """When its conditions and assertions were looked at last; 0: never."""
    monitor: Monitor | None = None
    """The one unit whose end started it."""
    related: int = 0
    """How often it was started because of another (upholds, on-failure, on-success), since ``related_from_ns``."""
    related_from_ns: int = 0
    chain: Chain | None = None
    """What its present life, or its end, follows from."""
    left_alone: str | None = None
    """Why it was not started because of another unit; until it is started at all."""
    uphold_at_ns: int | None = None
    """When that is tried again, if it has been too often."""
    uphold_refused: str | None = None
    """Why its start for who upholds it was refused when that was tried last; it is tried again when a job ends."""
    watchdog_ns: int | None = None
    """The pause between heartbeats that the process of this life has asked for."""
    watches: dict[WatchKind, Watch] = {}
    probes: dict[str, ProbeState] = {}
    """By the name of the health check."""
    awaits_health: bool = False
    """Its start is done but for its health checks."""
    freeze: Freeze | None = None
    """It is being paused or resumed."""
    thawing: bool = False
    """It is to go on, whatever it was paused for, and nobody has said yet that it does."""
    paused_ns: int | None = None
    """Since when it stands still."""
    paused_by: Freeze | None = None
    healthy_left_ns: int | None = None
    """How long it still had to be healthy when it was paused."""
    quarantined: bool = False
    """It has failed as often as it may: nothing automatic starts it but ``retry-after``."""
    retry_at_ns: int | None = None
    """When a quarantined unit is tried once more."""
    half_open: bool = False
    """It is being tried once more after a quarantine: the next failure brings it back there."""
    is_stub: bool = False
    """The present life is that of its stub."""
    stub_failed: bool = False
    """The stub has ended by itself: it is not started again in this quarantine."""
    timer: TimerState | None = None
    """None until it was armed or run for the first time."""
    sockets: SocketState | None = None
    connection: Connection | None = None
    """It was made for this one, and is forgotten with it."""

    @property
    def is_armed(self) -> bool:
        """Whether it is run by its timer or its sockets; it counts as up, in a run and between two."""
        return (self.timer is not None and self.timer.armed_ns is not None) or (
            self.sockets is not None and self.sockets.armed
        )


class JobOrigin(Enum):
    """Why a job exists; a stronger origin wins when jobs merge (in this order, the last is strongest)."""

    AUTOMATIC = "automatic"
    """A restart by policy or the recovery of a dependency: never overrides what was asked for, respects the failure
    count.
    """
    RELATION = "relation"
    """Follows from what another unit says about it (on-failure, on-success, upholds): as a command, but counters are
    kept.
    """
    BOOT = "boot"
    """Started with the supervisor: as a command, but counters are kept."""
    COMMAND = "command"
    """Asked for: resets the counters."""


class Job(Struct, omit_defaults=True):
    """What is to be done with one unit; a unit has at most one."""

    id: int
    unit: str
    type: JobType
    origin: JobOrigin
    state: JobState = JobState.WAITING
    named: bool = False
    """Somebody named the unit itself in a command; it was not pulled in."""
    ignore_order: bool = False
    bound: bool = False
    """A stop because a unit it is bound to went away."""
    told: bool = False
    """``unit.queued`` has been written."""
    checking: bool = False
    """``CheckConditions`` was asked and is not answered yet."""
    checks: int = 0
    """How often it was asked before the present or last time."""
    opening: bool = False
    """``OpenSockets`` was asked and is not answered yet."""
    opened: bool = False
    """What the unit listens on is open."""
    checked: bool = False
    """Its conditions and assertions hold; known for the step that follows only."""
    halfway: bool = False
    """A restart that has stopped its unit: what is left of it is the start."""
    ignore_needs: bool = False
    """It runs whatever the units that it needs are in."""
    irreversible: bool = False
    """Nothing may replace it but a cancel and the shutdown."""
    timeout_at_ns: int | None = None
    """When it has taken too long."""
    by: str = ""
    """Who asked for it."""
    note: str = ""
    """The reason that they gave."""
    chain: Chain | None = None
    monitors: list[Monitor] = []
    """The units whose end it follows from, one entry each."""
    reason: str = ""
    """Why it exists, where nobody asked for it by name."""
    runs: bool = False
    """The start of a unit with a timer runs it now, and does not arm it."""
    arms: bool = False
    """It does both."""
    pool: str | None = None
    """The limit of which it waits for a slot (``core.pool``), and for nothing else."""
    admitted: bool = False
    """It holds a slot for its unit, which does not hold one by its state yet."""
    cause: int | None = None


class Outcome(Struct, frozen=True, omit_defaults=True):
    """A job of a request and how it ended; ``result`` None while it goes on."""

    unit: str
    job: int
    job_type: str
    result: str | None = None
    message: str = ""


class JobEnd(Struct, frozen=True, omit_defaults=True):
    """How a job ended that a token with other, open jobs still has to tell."""

    result: str
    message: str = ""


class TokenEntry(Struct, omit_defaults=True):
    """A remembered request: the same token again attaches to its jobs, or gets the same answer.

    Ends are written into the outcomes when the last job has ended; until then they stand beside the entry by job
    (``JobEnd``), so that a request for a thousand units is not written a thousand times.
    """

    token: str
    outcomes: list[Outcome]


class Shutdown(Struct, omit_defaults=True):
    """The ordered end of everything; stop time-outs are multiplied by ``scale_num / scale_den``."""

    force_at_ns: int
    give_up_at_ns: int
    scale_num: int = 1
    scale_den: int = 1
    longest_ns: int = 0
    forced: bool = False
    exited: bool = False
    cause: int | None = None
    code: int = 0
    """Of the unit that brought it about (``exit-supervisor-on``)."""


FORMAT = 2
"""The format of the state as text. A field that is added with a default needs no new one; 2 began with the relations,
types and conditions of the complete engine.
"""


class GlobalState(Struct, omit_defaults=True):
    """What belongs to no unit."""

    random: int
    """State of the generator behind jitter and invocation ids."""
    format: int = 1
    """The format of the whole state; 1 did not say so."""
    next_job: int = 1
    next_spawn: int = 1
    next_token: int = 0
    next_look: int = 1
    shutdown: Shutdown | None = None
    shutdown_timeout_ns: int = 90_000_000_000
    """As the last load set it, for a shutdown that a unit brings about."""
    limits: PoolLimits = PoolLimits()
    hooks: tuple[Hook, ...] = ()
    hook_calls: list[HookCall] = []
    """Calls that wait for their turn."""
    hooks_dropped: int = 0
    """So many calls were dropped since there was no room."""
    began_ns: int | None = None
    """When the supervisor began; the machine too, where ``is_init``."""
    is_init: bool = False
    """The supervisor is process 1 of a container."""
    wake_offset_ns: int | None = None
    """By so much the moments at which timers wake us together are moved; None: not drawn yet."""
    until_empty: bool = False
    """The supervisor ends when nothing is left to do."""
    vanished: dict[str, None] = {}
    """Units whose file is gone and that are not at rest yet."""
    pending_texts: dict[str, None] = {}
    """Units whose life has not taken over all of the loaded text that it can: something goes on by the old one."""

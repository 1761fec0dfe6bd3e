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

from supervisord_py.model.states import ActiveState, JobState, JobType, Result, Role, SubState

REST = frozenset({SubState.DEAD, SubState.FAILED, SubState.DEPENDENCY})
BETWEEN_LIVES = frozenset({SubState.AUTO_RESTART, SubState.AUTO_RESTART_QUEUED})
STARTING = frozenset({SubState.CONDITION, SubState.START_PRE, SubState.START, SubState.START_POST})
UP = frozenset({SubState.RUNNING, SubState.EXITED, SubState.RELOAD})
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
    SubState.RELOAD: ActiveState.RELOADING,
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
    """``started``, ``stopped`` or ``restarted``."""
    by: str = ""
    """Who asked (``root (uid 0)``); empty when nobody did, or nobody knows."""
    note: str = ""
    """The reason that was given."""
    reason: str = ""
    """What it followed from, where the unit itself was not named."""
    past: bool = False
    """Its policy has begun another life since."""


class Ending(Enum):
    """Who began the end of the present life."""

    ITSELF = "itself"
    """The process, a time-out or a watchdog: the restart policy decides what follows."""
    ORDER = "order"
    """A stop or restart that was asked for, or the shutdown: no automatic restart."""
    BOUND = "bound"
    """A unit it is bound to went away: it is awaited."""


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
    uphold_at_ns: int | None = None
    """When that is tried again, if it has been too often."""


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
    monitors: list[Monitor] = []
    """The units whose end it follows from, one entry each."""
    reason: str = ""
    """Why it exists, where nobody asked for it by name."""
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


class RolloutStep(Enum):
    """How far one unit of a rollout has got."""

    WAITING = "waiting"
    RESTARTING = "restarting"
    PROBATION = "probation"
    """It is ready, and has to stay up."""
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left-out"
    """It is not restarted any more, and that is no failure."""


class RolloutPhase(Enum):
    FORWARD = "forward"
    REVERTING = "reverting"
    """The host was asked for the older texts."""
    BACK = "back"


class RolloutUnit(Struct, omit_defaults=True):
    """One unit of a rollout; ``job`` is its number for those who wait, ``restart_job`` the job that restarts it."""

    job: int
    before: str | None = None
    """Its invocation when the rollout began."""
    was_stopped: bool = False
    """Somebody had stopped it before."""
    step: RolloutStep = RolloutStep.WAITING
    restart_job: int | None = None
    invocation: str | None = None
    """The life that is watched."""
    good_at_ns: int | None = None
    """End of its probation."""
    message: str = ""


class Rollout(Struct, omit_defaults=True):
    """Many units that are restarted so that few are down at a time; see ``core.rollout``."""

    verb: str
    units: dict[str, RolloutUnit]
    """In the order in which they are restarted."""
    max_unavailable: int = 0
    """0: all at once."""
    probation_ns: int = 0
    reverts: bool = False
    by: str = ""
    """Who asked for it."""
    note: str = ""
    """The reason that they gave."""
    phase: RolloutPhase = RolloutPhase.FORWARD
    failed: str | None = None
    """The unit whose failure ended the way forward."""
    message: str = ""
    cause: int | None = None


class GlobalState(Struct, omit_defaults=True):
    """What belongs to no unit."""

    random: int
    """State of the generator behind jitter and invocation ids."""
    format: int = 1
    """The format of the whole state; 1 did not say so."""
    next_job: int = 1
    next_spawn: int = 1
    next_token: int = 0
    shutdown: Shutdown | None = None
    shutdown_timeout_ns: int = 90_000_000_000
    """As the last load set it, for a shutdown that a unit brings about."""
    vanished: dict[str, None] = {}
    """Units whose file is gone and that are not at rest yet."""
    pending_texts: dict[str, None] = {}
    """Units whose life has not taken over all of the loaded text that it can: something goes on by the old one."""

"""The vocabulary of states: every enum that units, jobs and results are described with.

The values are the words of the contract (its section 5): what ``--json`` prints and the journal writes.
Source: systemd's unit and service states; the words that are ours are marked.
"""

from enum import Enum


class LoadState(Enum):
    """What became of the unit's file."""

    LOADED = "loaded"
    NOT_FOUND = "not-found"
    BAD_SETTING = "bad-setting"
    MASKED = "masked"
    REJECTED = "rejected"


class ActiveState(Enum):
    """The high-level state; ``QUEUED`` and ``QUARANTINED`` are ours."""

    INACTIVE = "inactive"
    QUEUED = "queued"
    ACTIVATING = "activating"
    ACTIVE = "active"
    RELOADING = "reloading"
    DEACTIVATING = "deactivating"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class SubState(Enum):
    """The low-level state of a unit; the words after ``FAILED`` are ours."""

    DEAD = "dead"
    CONDITION = "condition"
    START_PRE = "start-pre"
    START = "start"
    START_POST = "start-post"
    RUNNING = "running"
    EXITED = "exited"
    RELOAD = "reload"
    STOP = "stop"
    STOP_WATCHDOG = "stop-watchdog"
    STOP_SIGTERM = "stop-sigterm"
    STOP_SIGKILL = "stop-sigkill"
    STOP_POST = "stop-post"
    FINAL_SIGTERM = "final-sigterm"
    FINAL_SIGKILL = "final-sigkill"
    AUTO_RESTART = "auto-restart"
    AUTO_RESTART_QUEUED = "auto-restart-queued"
    FAILED = "failed"
    WAITING = "waiting"
    LISTENING = "listening"
    POOL = "pool"
    DEPENDENCY = "dependency"
    STUB = "stub"
    PAUSED = "paused"
    STUCK = "stuck"


class Result(Enum):
    """How a life ended. The first result other than success stays for that life."""

    SUCCESS = "success"
    EXIT_CODE = "exit-code"
    SIGNAL = "signal"
    CORE_DUMP = "core-dump"
    TIMEOUT = "timeout"
    WATCHDOG = "watchdog"
    PROGRESS = "progress"
    ERRORS = "errors"
    HEALTH = "health"
    PROTOCOL = "protocol"
    RESOURCES = "resources"
    OOM_KILL = "oom-kill"
    MEMORY_LIMIT = "memory-limit"
    START_LIMIT_HIT = "start-limit-hit"
    DEPENDENCY = "dependency"
    EXEC_CONDITION = "exec-condition"
    UNKNOWN = "unknown"


class ServiceType(Enum):
    SIMPLE = "simple"
    EXEC = "exec"
    NOTIFY = "notify"
    NOTIFY_RELOAD = "notify-reload"
    FORKING = "forking"
    ONESHOT = "oneshot"
    IDLE = "idle"


class Restart(Enum):
    NO = "no"
    ALWAYS = "always"
    ON_SUCCESS = "on-success"
    ON_FAILURE = "on-failure"
    ON_ABNORMAL = "on-abnormal"
    ON_ABORT = "on-abort"
    ON_WATCHDOG = "on-watchdog"


class KillMode(Enum):
    CONTROL_GROUP = "control-group"
    MIXED = "mixed"
    PROCESS = "process"


class NotifyAccess(Enum):
    NONE = "none"
    MAIN = "main"
    EXEC = "exec"
    ALL = "all"


class OomPolicy(Enum):
    """What becomes of a unit of which the kernel has killed a process because its memory was full."""

    CONTINUE = "continue"
    STOP = "stop"
    KILL = "kill"


class Until(Enum):
    """What a dependent waits for before it starts."""

    STARTED = "started"
    READY = "ready"
    HEALTHY = "healthy"
    EXITED = "exited"


class ExitSupervisorOn(Enum):
    """When the end of a unit is the end of the supervisor."""

    FAILURE = "failure"
    """It has failed for good."""
    EXIT = "exit"
    """It has ended by itself and is not restarted, well or not."""


class OnDependencyFailure(Enum):
    WAIT = "wait"
    FAIL = "fail"


class Role(Enum):
    """Which command of the unit a process runs (``unit.exited`` names it)."""

    CONDITION = "condition"
    START_PRE = "start-pre"
    START = "start"
    """The command of a forking unit: it ends when the daemon that it leaves behind has started."""
    MAIN = "main"
    START_POST = "start-post"
    RELOAD = "reload"
    STOP = "stop"
    STOP_POST = "stop-post"
    STUB = "stub"
    """What runs in the place of a quarantined unit."""
    PROBE = "probe"
    """A health check by a command: beside the unit's life, not of it."""
    HOOK = "hook"
    """A command that an event has called for, about the unit."""


class ProbeKind(Enum):
    """What a health check is about."""

    READINESS = "readiness"
    """Whether the unit can be used now."""
    LIVENESS = "liveness"
    """Whether it still works."""
    STARTUP = "startup"
    """Whether it has come up: the other checks wait for it."""


class ProbeAction(Enum):
    """What follows when a health check has failed ``failure-threshold`` times in a row."""

    RESTART = "restart"
    STOP = "stop"
    KILL = "kill"
    NONE = "none"


class TimerFrom(Enum):
    """What ``every`` counts from: the start of the last run, or its end."""

    START = "start"
    END = "end"


class Overrun(Enum):
    """What becomes of a time that falls into a run: passed over, or one run follows at once."""

    SKIP = "skip"
    QUEUE = "queue"


class SupervisorMode(Enum):
    DAEMON = "daemon"
    UNTIL_EMPTY = "until-empty"
    """The supervisor ends when nothing is left to do."""


class JobType(Enum):
    """What a job does. ``TRY_RESTART`` and ``RELOAD_OR_RESTART`` collapse before they are installed."""

    START = "start"
    VERIFY_ACTIVE = "verify-active"
    STOP = "stop"
    RELOAD = "reload"
    RESTART = "restart"
    RELOAD_OR_START = "reload-or-start"
    NOP = "nop"


class JobMode(Enum):
    REPLACE = "replace"
    FAIL = "fail"
    REPLACE_IRREVERSIBLY = "replace-irreversibly"
    ISOLATE = "isolate"
    FLUSH = "flush"
    IGNORE_DEPENDENCIES = "ignore-dependencies"
    IGNORE_REQUIREMENTS = "ignore-requirements"
    RESTART_DEPENDENCIES = "restart-dependencies"


class JobState(Enum):
    WAITING = "waiting"
    RUNNING = "running"


class JobResult(Enum):
    DONE = "done"
    CANCELED = "canceled"
    TIMEOUT = "timeout"
    FAILED = "failed"
    DEPENDENCY = "dependency"
    SKIPPED = "skipped"
    INVALID = "invalid"
    ASSERT = "assert"


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

"""What a unit is: frozen values, decoded from TOML by ``model.parse`` and never changed afterwards.

Field names are the keys of the unit file in snake case; times are integers in nanoseconds
(``None`` is systemd's ``infinity``), sizes are bytes. ``docs/keys.toml`` is the table of all keys.
"""

from enum import Enum
from typing import Literal

from msgspec import Struct

from supervisord_py.model.calendar import Calendar
from supervisord_py.model.context import Belongings, Priorities, Resources, Streams
from supervisord_py.model.log import LogPolicy
from supervisord_py.model.sandbox import Sandbox
from supervisord_py.model.sockets import Sockets
from supervisord_py.model.states import (
    ExitSupervisorOn,
    KillMode,
    NotifyAccess,
    OnDependencyFailure,
    OomPolicy,
    Overrun,
    ProbeAction,
    ProbeKind,
    Restart,
    ServiceType,
    TimerFrom,
    Until,
)

SECOND_NS = 1_000_000_000


class Command(Struct, frozen=True, forbid_unknown_fields=True):
    """One command to execute; never run by a shell.

    ``words`` is what remains after prefixes, quoting and specifiers. With ``expand`` (the string form)
    ``$VAR`` and ``${VAR}`` are replaced from the process's own environment just before exec, by
    ``model.command.expand_words``; without it the words are the exact argv.
    """

    words: tuple[str, ...]
    expand: bool = False
    ignore_failure: bool = False
    privileged: bool = False
    argv0: str | None = None
    keeps_user: bool = False
    """It runs as the supervisor, and all else is as for the others (``!``); ``privileged`` ones are without all of it
    (``+``)."""


class Dependency(Struct, frozen=True):
    """An edge to another unit. ``unit`` is a full unit name: groups and templates are resolved by the unit set."""

    unit: str
    until: Until = Until.READY
    ordered: bool = True


class Limit(Struct, frozen=True):
    """A resource limit; ``None`` is infinity."""

    soft: int | None
    hard: int | None


class ExitStatuses(Struct, frozen=True):
    """A set of ways to end: exit codes, and signals by number."""

    codes: tuple[int, ...] = ()
    signals: tuple[int, ...] = ()


class StartLimit(Struct, frozen=True):
    """systemd's plain limit: more than ``burst`` automatic starts within ``interval_ns`` are refused; an interval or a
    burst of 0 is no limit."""

    interval_ns: int | None
    burst: int


class Condition(Struct, frozen=True):
    """One ``condition-*`` or ``assert-*`` entry: ``kind`` is the key without that prefix (``path-exists``).

    With ``trigger`` (written ``|``) one of all that have it must hold; ``negate`` is written ``!``.
    """

    kind: str
    parameter: str
    trigger: bool = False
    negate: bool = False


class LoadedFrom(Struct, frozen=True):
    """Where a unit came from: the main file and its drop-ins, in the order they were merged."""

    path: str
    drop_ins: tuple[str, ...] = ()
    digest: str = ""


class RestartPolicy(Struct, frozen=True):
    restart: Restart = Restart.ON_FAILURE
    delay_ns: int = SECOND_NS // 10
    steps: int = 8
    max_delay_ns: int | None = 60 * SECOND_NS
    jitter: float = 0.1
    reset_ns: int | None = 600 * SECOND_NS
    failures: int = 5
    """So many counted failures end the restarts (``[quarantine] failures``); 0: never."""
    prevent: ExitStatuses = ExitStatuses()
    """``restart-prevent-exit-status``: never restarted after these ends of the main process."""
    force: ExitStatuses = ExitStatuses()
    """``restart-force-exit-status``: always restarted after these."""
    limit: StartLimit | None = None


class KillPolicy(Struct, frozen=True):
    mode: KillMode = KillMode.CONTROL_GROUP
    signal: int = 15
    final_signal: int = 9
    watchdog_signal: int = 6
    send_sigkill: bool = True
    restart_signal: int | None = None
    """In place of ``signal`` when the stop is for a restart."""
    send_sighup: bool = False


class ExecContext(Struct, frozen=True):
    """How the unit's processes are made; ``host.execution`` turns it into a request to the keeper."""

    user: str | None = None
    group: str | None = None
    supplementary_groups: tuple[str, ...] = ()
    dynamic_user: bool = False
    """``user`` is made while it runs, unless it is there."""
    working_directory: str | None = None
    root_directory: str | None = None
    search_path: tuple[str, ...] = ()
    """Where programs are looked for; empty: the usual folders."""
    umask: int = 0o022
    environment: tuple[tuple[str, str], ...] = ()
    ignore_sigpipe: bool = True
    personality: str | None = None
    timer_slack_ns: int | None = None
    belongings: Belongings = Belongings()
    streams: Streams = Streams()
    rlimits: tuple[tuple[str, Limit], ...] = ()
    nice: int | None = None
    priorities: Priorities = Priorities()
    resources: Resources = Resources()
    enforce: Literal["strict", "best-effort"] = "strict"
    sandbox: Sandbox = Sandbox()


class Service(Struct, frozen=True):
    """``[service]``: what is run, and how it is started, watched and ended."""

    type: ServiceType = ServiceType.SIMPLE
    exec_start: tuple[Command, ...] = ()
    exec_start_pre: tuple[Command, ...] = ()
    exec_condition: tuple[Command, ...] = ()
    exec_start_post: tuple[Command, ...] = ()
    exec_reload: tuple[Command, ...] = ()
    exec_stop: tuple[Command, ...] = ()
    exec_stop_post: tuple[Command, ...] = ()
    restart: RestartPolicy = RestartPolicy()
    kill: KillPolicy = KillPolicy()
    timeout_start_ns: int | None = 90 * SECOND_NS
    timeout_stop_ns: int | None = 90 * SECOND_NS
    timeout_abort_ns: int | None = 90 * SECOND_NS
    runtime_max_ns: int | None = None
    error_threshold: int = 3
    """So many errors in a row that the process itself tells (``X_ERROR=``) are a failure; 0: never."""
    watchdog_ns: int | None = None
    """The longest pause between two heartbeats (``WATCHDOG=1``); None: there is no watchdog."""
    progress_ns: int | None = None
    """The longest pause between two signs of work done (``X_PROGRESS=``); None: none is expected."""
    success: ExitStatuses = ExitStatuses()
    """``success-exit-status``: ends of any command that count as clean, besides the usual ones."""
    pid_file: str | None = None
    """Absolute path of the file that a forking unit writes its main pid to."""
    guess_main_pid: bool = True
    reload_signal: int = 1
    """Asks a ``notify-reload`` unit to reload."""
    remain_after_exit: bool = False
    notify_access: NotifyAccess = NotifyAccess.NONE
    oom_policy: OomPolicy = OomPolicy.STOP
    store_max: int = 0
    """So many descriptors it may leave with the supervisor (``file-descriptor-store-max``)."""
    context: ExecContext = ExecContext()
    log: LogPolicy = LogPolicy()


class Probe(Struct, frozen=True):
    """One ``[health.NAME]``: exactly one of ``exec``, ``http``, ``tcp``, ``unix``, ``file`` and ``log`` is set.

    ``http`` is a URL, ``tcp`` ``HOST:PORT`` (an IPv6 address in brackets), ``unix`` and ``file`` are absolute paths
    (``unix`` may be ``@NAME``, an abstract socket), ``log`` is a regular expression that is searched in each line.
    Defaults are those of the kubelet; that of ``action`` follows from ``kind``.
    """

    name: str
    kind: ProbeKind
    exec: Command | None = None
    http: str | None = None
    tcp: str | None = None
    unix: str | None = None
    file: str | None = None
    log: str | None = None
    interval_ns: int = 10 * SECOND_NS
    timeout_ns: int = SECOND_NS
    initial_delay_ns: int = 0
    failure_threshold: int = 3
    success_threshold: int = 1
    action: ProbeAction = ProbeAction.RESTART

    @property
    def is_command(self) -> bool:
        """Whether it is a process of its own; the others are looked at by the supervisor itself."""
        return self.exec is not None

    @property
    def check(self) -> str:
        """The key that says what is looked at."""
        return next(key for key in ("exec", "http", "tcp", "unix", "file", "log") if getattr(self, key) is not None)


class Timer(Struct, frozen=True):
    """``[timer]``: when the unit is run. At least one of the times is there.

    Spans are in nanoseconds, each a tuple of any length. ``every_ns`` counts from the begin or the end of the last run;
    its first run is when the timer is armed. When it fires is in ``model.timer``.
    """

    every_ns: int | None = None
    every_from: TimerFrom = TimerFrom.START
    on_active_ns: tuple[int, ...] = ()
    on_boot_ns: tuple[int, ...] = ()
    on_startup_ns: tuple[int, ...] = ()
    on_unit_active_ns: tuple[int, ...] = ()
    on_unit_inactive_ns: tuple[int, ...] = ()
    on_calendar: tuple[Calendar, ...] = ()
    accuracy_ns: int = 60 * SECOND_NS
    randomized_delay_ns: int = 0
    persistent: bool = False
    overrun: Overrun = Overrun.SKIP


class PoolPlace(Struct, frozen=True):
    """``[pool]``. ``name`` empty: no pool but the one of the whole supervisor (``max-workers``), in which every unit
    has a slot too. Among those that wait the higher ``priority`` goes first."""

    name: str = ""
    priority: int = 0


class Quarantine(Struct, frozen=True):
    """``[quarantine]``, but for ``failures``, which is in the restart policy."""

    stub: Command | None = None
    """Runs in the unit's place while it is quarantined."""
    retry_after_ns: int | None = None
    """One more start after so long; None: never by itself."""
    on_quarantine: tuple[str, ...] = ()
    """Units that are started when it is quarantined."""


class UnitKind(Enum):
    SERVICE = "service"
    AGENT = "agent"
    TARGET = "target"


class Identity(Struct, frozen=True):
    """Whom a process is made as, whatever the unit's keys say: exactly these ids."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Transient(Struct, frozen=True):
    """How a unit was asked for that has no file on disk (``supctl run``)."""

    token: str = ""
    """Of the request: the same one again means this unit."""
    collect: bool = False
    """It is forgotten when it has failed, too."""
    identity: Identity | None = None
    """Of who may run what they like as themselves only."""
    terminal: str | None = None
    """The terminal that its main process has for input and output."""


class Unit(Struct, frozen=True):
    """A unit as the core sees it: everything is resolved, nothing refers to files or the environment.

    A ``[target]`` has ``service`` None. Relations name full units; a name that no file defines stays here
    (the core gives it the load state ``not-found``).
    """

    name: str
    kind: UnitKind
    service: Service | None = None
    description: str = ""
    documentation: tuple[str, ...] = ()
    requires: tuple[Dependency, ...] = ()
    wants: tuple[Dependency, ...] = ()
    requisite: tuple[Dependency, ...] = ()
    binds_to: tuple[Dependency, ...] = ()
    part_of: tuple[str, ...] = ()
    propagates_stop_to: tuple[str, ...] = ()
    upholds: tuple[Dependency, ...] = ()
    conflicts: tuple[str, ...] = ()
    after: tuple[Dependency, ...] = ()
    before: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    on_success: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    asserts: tuple[Condition, ...] = ()
    job_timeout_ns: int | None = None
    enabled: bool = True
    groups: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    on_dependency_failure: OnDependencyFailure = OnDependencyFailure.WAIT
    exit_supervisor_on: ExitSupervisorOn | None = None
    health: tuple[Probe, ...] = ()
    """By name, sorted."""
    timer: Timer | None = None
    sockets: Sockets | None = None
    pool: PoolPlace = PoolPlace()
    quarantine: Quarantine = Quarantine()
    source: LoadedFrom = LoadedFrom("")
    transient: Transient | None = None


class BadUnit(Struct, frozen=True):
    """A unit whose file could not be used: listed as ``bad-setting``, or as ``rejected`` where a hot directory refused
    it; never started."""

    name: str
    path: str
    reason: str
    """The first problem in one line, as ``check`` prints it: ``FILE:LINE:COLUMN: KEY: message``."""
    rejected: bool = False


class UnitSet(Struct, frozen=True):
    """Everything one load found, by name; the order of both mappings is the sorted names."""

    units: dict[str, Unit] = {}
    bad: dict[str, BadUnit] = {}
    warnings: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    """Names whose file is empty or a link to /dev/null: they exist and cannot be started."""

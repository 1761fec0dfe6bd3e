"""Everything the world can tell the core: past participles, all of them values.

The counterpart of events are the actions. Facts that come out of the keeper's numbered stream are delivered in
the order of the stream and may be delivered again after a manager's death, never twice to the same state: the
acknowledgement and the state after the fact are committed in one packet (``docs/adr/0001``).
"""

from typing import Any

from msgspec import Struct

from supervisord_py.model.hooks import Hook
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import UnitSet


class Now(Struct, frozen=True):
    """The moment of a decision, read once by the shell and handed in: the core has no clock.

    ``mono_ns`` is CLOCK_MONOTONIC (time-outs), ``boot_ns`` CLOCK_BOOTTIME (windows, rate limits), ``wall_ns``
    the time of day (never compared with the others). ``seq`` is the number that the next record will get, so that
    causes can be named; 0 when records are being lost (then causes are None).
    """

    mono_ns: int
    boot_ns: int
    wall_ns: int
    seq: int


class ExitStatus(Struct, frozen=True):
    """How a process ended: exactly one of ``code`` and ``signal`` is set, neither when the kernel no longer tells."""

    code: int | None = None
    signal: int | None = None
    core_dumped: bool = False


class Event(Struct, frozen=True, tag=True):
    """Base of all events; ``tag`` names the class in the flight log."""


# Facts from the keeper


class ProcessSpawned(Event, frozen=True):
    """The process of ``spawn_id`` runs its program: exec has succeeded; ``degraded`` says, in words, without what."""

    spawn_id: int
    pid: int
    degraded: tuple[str, ...] = ()


class SpawnFailed(Event, frozen=True):
    """No program runs for ``spawn_id``, and none ever will.

    ``step`` is the step that failed (``exec``, ``limits``, ``user``, ``group``, ``chdir``, ``fork``, ...), ``code``
    systemd's exit code for it (203 EXEC, 205 LIMITS, 217 USER, ...; 0: there is none, no process was made), ``errno``
    the error, ``detail`` what it was about.
    """

    spawn_id: int
    step: str
    code: int
    errno: int
    detail: str = ""


class Breach(Struct, frozen=True):
    """A limit on all processes of a unit that was reached: ``value`` of ``most`` (bytes, or tasks)."""

    limit: str
    """The key: ``memory-max`` or ``tasks-max``."""
    value: int
    most: int
    mechanism: str


class LimitExceeded(Event, frozen=True):
    """The life ``invocation`` uses more than it may, and nothing but us holds it back.

    ``by_kernel``: it is held back, and the kernel has killed a process of it for that, which was not its main one.
    """

    unit: str
    invocation: str
    breach: Breach
    by_kernel: bool = False


class ProcessExited(Event, frozen=True):
    """The process of ``spawn_id`` has ended and was reaped; or, with ``main`` False, the process that it was before
    ``MAINPID=`` handed its place to another.

    ``breach``: the kernel killed it because the unit's memory was full.
    ``tree_empty``: no other process of the unit is left. ``rusage`` is what wait4 said
    (``user_us``, ``system_us``, ``max_rss_kb``, ...), empty when unknown. ``runtime_ms`` is None where nobody saw when
    it ended.
    """

    spawn_id: int
    pid: int
    status: ExitStatus
    main: bool = True
    tree_empty: bool = True
    runtime_ms: int | None = 0
    rusage: dict[str, int] = {}
    breach: Breach | None = None


class MainFollowed(Event, frozen=True):
    """Completes ``FollowMain``: the keeper follows process ``pid`` as ``spawn_id`` from now on, and will tell its end.

    Without a ``pid`` there is none to follow, and ``refused`` says why (a pid file that names a process of another
    unit, no single process that could be meant, ...). A pid file that is not there yet completes nothing: the host
    waits for it until ``StopFollowing``.
    """

    unit: str
    spawn_id: int
    pid: int | None = None
    refused: str | None = None


class ConditionsChecked(Event, frozen=True):
    """Completes ``CheckConditions``: the first condition and the first assertion that do not hold, as written
    (``condition-path-exists = "!/run/x"``); None where all of them do."""

    check_id: int
    unit: str
    condition: str | None = None
    assertion: str | None = None


class ProbeFinished(Event, frozen=True):
    """Completes ``RunProbe``: whether the check was good, and in words what was found (an HTTP status, an error).

    ``ok`` None: it could not be made, for nothing that is the unit's.
    """

    probe_id: int
    unit: str
    name: str
    ok: bool | None
    detail: str = ""


class ProcessesSeen(Event, frozen=True):
    """Completes ``LookAtProcesses``. ``stopped``: the unit cannot run now, for no fault of its own (its main process
    is stopped by a signal or a debugger, or its cgroup is frozen)."""

    look_id: int
    unit: str
    stopped: bool


class SocketsOpened(Event, frozen=True):
    """Completes ``OpenSockets``: the keeper listens for the unit; or ``failed`` says what could not be had."""

    listen_id: int
    unit: str
    failed: str | None = None


class ConnectionCame(Event, frozen=True):
    """Completes ``AwaitConnection``: somebody has come to ``socket`` of the unit. With a number it is accepted, and
    held until ``CloseSockets``; ``peer`` names who is there, ``environment`` tells that to a process."""

    unit: str
    socket: str
    connection: int | None = None
    peer: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class ConnectionsSeen(Event, frozen=True):
    """Completes ``LookAtConnections``: so many are open."""

    look_id: int
    unit: str
    connections: int


class DescriptorsStored(Event, frozen=True):
    """What the unit's processes have left with the keeper (FDSTORE=1) is this now, by name."""

    unit: str
    names: tuple[str, ...]


class UnitFrozen(Event, frozen=True):
    """Completes ``FreezeUnit`` and ``ThawUnit``: whether the unit stands still now; ``detail`` says why it is not as
    was asked."""

    unit: str
    frozen: bool
    detail: str = ""


class TreeEmptied(Event, frozen=True):
    """The last process of ``unit`` that was nobody's main process (a grandchild) is gone.

    ``unit`` is the owner: of a process beside the unit's life ``web!17`` (``model.names``).
    """

    unit: str


class NotifyReceived(Event, frozen=True):
    """A datagram came to the unit's notify socket, from a sender that ``notify-access`` admits.

    ``spawn_id`` is the sender's process if it is one of the unit's own (else None: a descendant).
    ``fields`` holds the assignments in order, the last one of a name winning. ``main_pid`` is the new main pid
    that the keeper already follows, when the datagram carried an acceptable ``MAINPID=``; ``refused`` says why one
    was not.
    """

    unit: str
    spawn_id: int | None
    pid: int
    fields: dict[str, str]
    main_pid: int | None = None
    refused: str | None = None


class StrayAppeared(Event, frozen=True):
    """A process that belongs to no unit became a child of the keeper."""

    pid: int
    command: str
    is_expected: bool = False
    """The keeper is process 1: every orphan becomes its child."""


class StrayExited(Event, frozen=True):
    pid: int
    status: ExitStatus


class KeeperReplaced(Event, frozen=True):
    """The keeper of version ``old`` has replaced itself by one of version ``new``; or has not, and why."""

    old: str
    new: str | None = None
    refused: str | None = None


class KeeperLost(Event, frozen=True):
    """The keeper was killed, and another one goes on with what it left; first of all that this one tells.

    Processes that ended meanwhile are told as ``ProcessExited``, of which nobody knows the status. ``fields`` are those
    of the record: who lives on (``adopted``), who ended with nobody to see it (``unseen``), what was ended.
    """

    fields: dict[str, Any]


# What people and the host ask


class Origin(Struct, frozen=True):
    """Who asked: the kernel's word for the peer; ``unit`` when the peer is a process of a unit. ``remote``: somebody
    who is no process here, in words (``key alice (192.0.2.7:40102)``); the numbers say nothing then."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    user: str = ""
    unit: str | None = None
    remote: str = ""


class CommandRequested(Event, frozen=True):
    """A permitted command that changes something; answered by exactly one ``Reply`` with this ``request_id``.

    ``verb`` is one of ``start stop restart try-restart reload reload-or-restart kill pause resume trigger reset-failed
    release cancel apply``;
    ``units`` are full names that are known to the unit set (the host has resolved globs and groups); ``arguments`` are
    the verb's own (``signal`` and ``whom`` of kill, ``job`` of cancel; of apply and a rolling restart
    ``max_unavailable``, ``probation_ns`` and ``reverts``: see ``core.rollout``). ``token`` identifies the request
    across a manager's death: the same token again attaches to the jobs of the first. ``plan`` decides and changes
    nothing. ``wait`` False replies when the jobs are queued. ``cause`` is the ``command`` record's number.
    """

    request_id: int
    verb: str
    units: tuple[str, ...]
    origin: Origin = Origin()
    reason: str = ""
    mode: JobMode = JobMode.REPLACE
    wait: bool = True
    plan: bool = False
    token: str = ""
    cause: int | None = None
    arguments: dict[str, Any] = {}


class RequesterGone(Event, frozen=True):
    """Nobody waits for this request any more; its jobs go on."""

    request_id: int


class UnitsLoaded(Event, frozen=True):
    """A validated unit set: the first one at start, later ones by ``daemon-reload``.

    New units are added (and started when ``start_enabled``), vanished ones are forgotten when they are at rest and
    stay supervised until then, changed ones take their new text at the next start.
    """

    units: UnitSet
    start_enabled: bool = False
    reverts: bool = False
    """It answers ``RevertUnits``."""
    cause: int | None = None
    shutdown_timeout_ns: int = 90_000_000_000
    """The time that a shutdown has which a unit brings about (``exit-supervisor-on``)."""
    limits: PoolLimits = PoolLimits()
    hooks: tuple[Hook, ...] = ()
    is_init: bool = False
    """The supervisor is process 1: its machine, a container, began with it (``on-boot-sec``)."""
    until_empty: bool = False
    """End the supervisor when nothing is left to do (``mode = "until-empty"``)."""
    limited: tuple[str, ...] = ()
    """Units whose processes have the limits of this set already."""


class ShutdownRequested(Event, frozen=True):
    """Stop everything in order, all stop time-outs scaled into ``timeout_ns``, then ``ExitSupervisor``."""

    timeout_ns: int
    origin: Origin = Origin()
    reason: str = ""
    cause: int | None = None


class ShutdownForced(Event, frozen=True):
    """A second interrupt: kill everything now."""


class DeadlineReached(Event, frozen=True):
    """``Manager.deadline_ns`` has passed (early wake-ups are harmless)."""


class ClockChanged(Event, frozen=True):
    """The time of day was set, or the machine slept: deadlines on boot and wall time are converted anew."""


AnyEvent = (
    ProcessSpawned
    | LimitExceeded
    | SpawnFailed
    | ProcessExited
    | MainFollowed
    | ConditionsChecked
    | ProbeFinished
    | ProcessesSeen
    | SocketsOpened
    | ConnectionCame
    | ConnectionsSeen
    | DescriptorsStored
    | UnitFrozen
    | TreeEmptied
    | NotifyReceived
    | StrayAppeared
    | StrayExited
    | KeeperReplaced
    | KeeperLost
    | CommandRequested
    | RequesterGone
    | UnitsLoaded
    | ShutdownRequested
    | ShutdownForced
    | DeadlineReached
    | ClockChanged
)

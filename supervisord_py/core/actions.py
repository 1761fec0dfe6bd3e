"""Everything the core can ask of the world: imperatives, all of them values, and the order in which they are carried
out.

The counterpart of actions are the events. An action that can fail has exactly one completing event:
``SpawnProcess`` is answered by ``ProcessSpawned`` (and later ``ProcessExited``) or by ``SpawnFailed``, ``OpenSockets``
by ``SocketsOpened``, ``AwaitConnection`` by ``ConnectionCame``, when there is one. Signals have none: that a process is
gone already is normal, and its exit is told anyway. ``FollowMain`` is answered by ``MainFollowed``,
``LookAtConnections`` by ``ConnectionsSeen``, ``CheckConditions`` by ``ConditionsChecked``, ``RunProbe`` by
``ProbeFinished``, ``LookAtProcesses`` by ``ProcessesSeen``, ``FreezeUnit`` and ``ThawUnit`` by ``UnitFrozen``; all of
these are asked again by a new manager (their answers are not in the keeper's stream before they are asked for).

``unit`` of ``SpawnProcess``, ``SignalProcesses``, ``KillTree`` and ``ReleaseUnit`` is the owner of the processes: the
unit, or, of a process beside its life (``Role.PROBE``, ``Role.HOOK``), ``UNIT!SPAWNID`` (``model.names``). Such an
owner has a tree of its own, under the context of the unit, and no notify socket.
"""

from enum import Enum
from typing import Any

from msgspec import Struct

from supervisord_py.model.records import Record
from supervisord_py.model.sockets import Socket
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Command, Condition, Probe


class Action(Struct, frozen=True, tag=True):
    """Base of all actions; ``tag`` names the class in the flight log."""


class SpawnProcess(Action, frozen=True):
    """Make the process ``spawn_id`` of ``unit``. Idempotent: the same spawn id never makes a second process.

    The host adds what the unit's context says (user, limits, directory, environment); ``environment`` is what only
    the core knows (``INVOCATION_ID``, ``SERVICE_RESULT``, ...). ``main_spawn`` is the main process at the moment, for
    ``MAINPID`` in stop and reload commands.
    """

    spawn_id: int
    unit: str
    role: Role
    command: Command
    invocation: str
    environment: tuple[tuple[str, str], ...] = ()
    main_spawn: int | None = None
    handed: "Handed | None" = None


class Handed(Struct, frozen=True):
    """What a process is handed over from descriptor 3 on: all that ``unit`` listens on, or its connection
    ``connection``; then what was stored."""

    unit: str
    connection: int | None = None


class OpenSockets(Action, frozen=True):
    """Listen on exactly these for a unit; who waits in what is open already goes on waiting."""

    listen_id: int
    unit: str
    sockets: tuple[Socket, ...]


class AwaitConnection(Action, frozen=True):
    """Tell of the next connection to the unit, or of one that is there, once; accept it where the socket says so.

    Its answer comes when it comes: it is in the keeper's stream, and never asked for again.
    """

    unit: str


class CloseSockets(Action, frozen=True):
    """Close one connection of the unit; without a number all that is held for it, stored descriptors too."""

    unit: str
    connection: int | None = None


class LookAtConnections(Action, frozen=True):
    """Say how many connections to what the unit listens on are open."""

    look_id: int
    unit: str


class FollowMain(Action, frozen=True):
    """Find the daemon that a forking unit left behind and follow it as ``spawn_id``.

    With ``pid_file`` it is the process that the file names, and the file is waited for (unless ``wait`` is false: then
    a file that is not there, or names nobody that lives, is refused at once); without one (``guess``) it is the only
    process of the unit that is a direct child of the keeper.
    """

    unit: str
    spawn_id: int
    pid_file: str | None = None
    wait: bool = True


class StopFollowing(Action, frozen=True):
    """Wait no longer for the pid file of ``spawn_id``."""

    unit: str
    spawn_id: int


class CheckConditions(Action, frozen=True):
    """Evaluate ``condition-*`` and ``assert-*`` of a unit, now."""

    check_id: int
    unit: str
    conditions: tuple[Condition, ...] = ()
    asserts: tuple[Condition, ...] = ()


class RunProbe(Action, frozen=True):
    """Do the health check ``name`` of ``unit`` once, within its time-out; one that is a command is a process instead
    (``SpawnProcess`` with ``Role.PROBE``)."""

    probe_id: int
    unit: str
    name: str
    probe: Probe


class LookAtProcesses(Action, frozen=True):
    """Say whether the processes of ``unit`` can run now, or were stopped: asked before a silence is held against
    them."""

    look_id: int
    unit: str


class FreezeUnit(Action, frozen=True):
    """Let every process of the unit stand still: by the freezer of its cgroup, else by SIGSTOP."""

    unit: str


class ThawUnit(Action, frozen=True):
    """Let them go on."""

    unit: str


class Whom(Enum):
    """``MAIN``: the process of ``spawn_id`` alone; ``ALL``: every process of the unit, wherever it has fled."""

    MAIN = "main"
    ALL = "all"


class SignalProcesses(Action, frozen=True):
    """Send ``signal`` once, then SIGCONT where ``then_continue``; with ``Whom.MAIN`` to ``spawn_id`` alone."""

    unit: str
    signal: int
    whom: Whom
    spawn_id: int | None = None
    then_continue: bool = False


class KillTree(Action, frozen=True):
    """Send ``signal`` to every process of the unit, in rounds, until none is left (or it is cancelled by a later
    spawn)."""

    unit: str
    signal: int = 9


class ReleaseUnit(Action, frozen=True):
    """The unit is at rest with no process left: its output may be closed when drained, its notify socket and cgroup
    removed."""

    unit: str


class RevertUnits(Action, frozen=True):
    """Go back to the texts that these units had before they were changed; answered by ``UnitsLoaded`` with
    ``reverts``. Asked again by a new manager.

    ``failed`` is the unit because of which, ``message`` what happened to it.
    """

    units: tuple[str, ...]
    failed: str
    message: str


class KeepState(Action, frozen=True):
    """Put the state on disk soon: what has happened now must not happen again after a power cut."""


class ExitSupervisor(Action, frozen=True):
    """Everything has stopped: end the keeper with ``code``."""

    code: int = 0


AnyAction = (
    SpawnProcess
    | OpenSockets
    | AwaitConnection
    | CloseSockets
    | LookAtConnections
    | FollowMain
    | StopFollowing
    | CheckConditions
    | RunProbe
    | LookAtProcesses
    | FreezeUnit
    | ThawUnit
    | SignalProcesses
    | KillTree
    | ReleaseUnit
    | RevertUnits
    | KeepState
    | ExitSupervisor
)


class Refusal(Struct, frozen=True):
    """A request that cannot be done. ``error`` is a name of the control interface (``NoSuchUnit``, ``BadUnit``,
    ``UnitMasked``,
    ``TransactionConflict``, ``DependencyCycle``, ``ShuttingDown``, ``NoSuchJob``, ``JobFailed``), ``parameters`` are
    its fields."""

    error: str
    message: str
    parameters: dict[str, Any] = {}


class UnitOutcome(Struct, frozen=True):
    """What became of one unit of a request: the job's result, and in words why when it is not ``done``."""

    unit: str
    job: int
    job_type: str
    result: str
    """A ``JobResult`` value, or ``queued`` when nobody waits."""
    message: str = ""


class Reply(Struct, frozen=True):
    """The one answer to a ``CommandRequested``: either ``refusal`` or ``outcomes`` (with ``plan``: what would be
    done)."""

    request_id: int
    refusal: Refusal | None = None
    outcomes: tuple[UnitOutcome, ...] = ()


class Effects(Struct):
    """What one event decided. The shell keeps this order (``docs/adr/0001``):

    1. number ``records`` from ``Now.seq`` on and commit them to the keeper's custody in one packet with the
       acknowledgement of the event, the changed state (``Manager.take_changes``) and the requests made of
       ``actions``;
    2. write the records to the journal; 3. send ``replies``, after an fsync where they promise durability.
    """

    records: list[Record] = []
    actions: list[AnyAction] = []
    replies: list[Reply] = []

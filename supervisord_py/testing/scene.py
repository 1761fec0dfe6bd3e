"""A scene: one core, a clock moved by hand, and a cast of processes that are called by their unit's name.

Playbooks and golden scripts are told on it. Processes do nothing by themselves here: each exit and each READY is a
line of the story. After every event the state is committed, so ``manager_dies`` continues from there; with ``lost``
the manager dies with the event in its hands and nothing of it holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from supervisord_py.core.actions import (
    AnyAction,
    CheckConditions,
    Effects,
    FollowMain,
    LookAtConnections,
    OpenSockets,
    SpawnProcess,
    StopFollowing,
)
from supervisord_py.core.events import (
    Breach,
    CommandRequested,
    ConditionsChecked,
    ConnectionCame,
    ConnectionsSeen,
    DeadlineReached,
    Event,
    ExitStatus,
    KeeperLost,
    LimitExceeded,
    MainFollowed,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SocketsOpened,
    SpawnFailed,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.core.view import list_units, unit_status
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Unit, UnitSet
from supervisord_py.testing.clock import SECOND_NS, Clock

FIRST_PID = 1000
MIB = 1024 * 1024


class Cast(Struct):
    """One process of the story."""

    spawn_id: int
    unit: str
    role: Role
    pid: int
    running: bool = False
    followed: bool = False
    """It was not made for this spawn id: the command of a forking unit left it behind."""


class Happened(Struct, frozen=True):
    """One event and what it decided; ``changes`` are the states that it changed, by unit."""

    event: Event
    at_ns: int
    effects: Effects
    changes: dict[str, str]
    causes: tuple[str, ...] = ()
    """For each record what it follows from, in words; empty where that is a record of its own unit."""


class StoryError(Exception):
    """The story itself makes no sense: it speaks of a process that does not exist, say."""


class Scene:
    """One core on a stage."""

    def __init__(self, units: Iterable[Unit] = (), seed: int = 0) -> None:
        self.manager = Manager(seed)
        self.clock = Clock()
        self.units = UnitSet()
        self.cast: dict[int, Cast] = {}
        self._unit_of: dict[int, str] = {}
        self._checks: dict[str, CheckConditions] = {}
        """By unit: the question about its conditions that is not answered yet."""
        self._opening: dict[str, OpenSockets] = {}
        """By unit: what it is to listen on, asked for and not answered yet."""
        self._looks: dict[str, LookAtConnections] = {}
        self._connections = 0
        self._invocations: dict[str, str] = {}
        """By unit: its last life."""
        self._former: dict[str, tuple[int, int]] = {}
        """By unit: spawn id and pid of the process that handed its place over with MAINPID= and is still there."""
        self._seq = 1
        self._told: dict[int, Record] = {}
        """Every numbered record by its number."""
        self._requests = 0
        self._committed: dict[str, str] = {}
        self._shown: dict[str, str] = {}
        units = list(units)
        if units:
            self.load(units)

    # time and events

    def handle(self, event: Event, *, lost: bool = False) -> Happened:
        """Let the core decide one event; with ``lost`` the manager dies before its commit and a new one takes over."""
        now = self.clock.now(self._seq)
        effects = self.manager.handle(event, now)
        changes = self.manager.take_changes()
        if lost:
            self.manager_dies()
            return Happened(event, now.mono_ns, Effects(), {})
        causes = tuple([self._cause_of(record) for record in effects.records])
        for key, text in changes.items():
            if text is None:
                self._committed.pop(key, None)
            else:
                self._committed[key] = text
        if isinstance(event, UnitsLoaded):
            self.units = event.units
        self._follow(event)
        self._carry_out(effects.actions)
        return Happened(event, now.mono_ns, effects, self._changed_states(), causes)

    def load(self, units: Iterable[Unit], *, start_enabled: bool = False, reverts: bool = False) -> Happened:
        by_name = {unit.name: unit for unit in units}
        unit_set = UnitSet(units={name: by_name[name] for name in sorted(by_name)})
        return self.handle(UnitsLoaded(unit_set, start_enabled=start_enabled, reverts=reverts))

    def pass_time(self, duration_ns: int) -> Iterator[Happened]:
        """Let time pass: each deadline in it is handled at its time."""
        end_ns = self.clock.mono_ns + duration_ns
        while (deadline_ns := self.manager.deadline_ns()) is not None and deadline_ns <= end_ns:
            self.clock.advance_to(max(deadline_ns, self.clock.mono_ns))
            yield self.handle(DeadlineReached())
        self.clock.advance_to(end_ns)

    def manager_dies(self) -> None:
        """A new manager restores the state of the last commit."""
        self.manager = Manager.restore(dict(self._committed), self.units)
        self._checks.clear()
        self._carry_out(self.manager.pending_actions())

    def keeper_dies(self, survivors: Sequence[str]) -> Iterator[Happened]:
        """The keeper is killed, and the next one goes on; of what else ran than ``survivors`` nobody saw the end."""
        self.manager_dies()
        ended = [process for process in self.cast.values() if process.running and process.unit not in survivors]
        yield self.handle(KeeperLost({}))
        for process in ended:
            yield self.handle(ProcessExited(process.spawn_id, process.pid, ExitStatus()))

    # what people and processes do

    def request(self, verb: str, units: Sequence[str] = (), **fields: object) -> CommandRequested:
        self._requests += 1
        return CommandRequested(self._requests, verb, tuple(units), **fields)  # type: ignore[arg-type]

    def spawned(self, unit: str, degraded: str = "") -> ProcessSpawned:
        process = self._process(unit, running=False)
        return ProcessSpawned(process.spawn_id, process.pid, (degraded,) if degraded else ())

    def breached(self, unit: str, limit: str, *, by_kernel: bool = False) -> LimitExceeded:
        """The life of the unit takes more than it may, or the kernel has killed a process of it for that."""
        how = "cgroup v2" if by_kernel else "sampling"
        breach = Breach(limit, 21, 20, how) if limit == "tasks-max" else Breach(limit, 70 * MIB, 64 * MIB, how)
        return LimitExceeded(unit, self._invocations.get(unit, ""), breach, by_kernel)

    def spawn_failed(self, unit: str, step: str = "exec", code: int = 203, errno: int = 2) -> SpawnFailed:
        return SpawnFailed(self._process(unit, running=False).spawn_id, step, code, errno)

    def exited(self, unit: str, status: ExitStatus, *, left: bool = False, role: Role | None = None) -> ProcessExited:
        """The unit's newest running process (of that role) ends; ``left``: others of its tree stay behind."""
        process = self._process(unit, running=True, role=role)
        others = any(other.unit == unit and other is not process for other in self.cast.values())
        return ProcessExited(process.spawn_id, process.pid, status, tree_empty=not left and not others)

    def followed(self, unit: str, refused: str | None = None) -> MainFollowed:
        """The daemon that the unit's command left behind is found (or not, and ``refused`` says why)."""
        process = self._process(unit, running=False, role=Role.MAIN)
        if not process.followed:
            raise StoryError(f"{unit} is not asked to be followed")
        return MainFollowed(unit, process.spawn_id, None if refused else process.pid, refused)

    def checked(self, unit: str, condition: str | None = None, assertion: str | None = None) -> ConditionsChecked:
        """Somebody has looked at the conditions of the unit; ``condition`` and ``assertion`` are what does not hold."""
        if unit not in self._checks:
            raise StoryError(f"nobody has asked for the conditions of {unit}")
        return ConditionsChecked(self._checks[unit].check_id, unit, condition, assertion)

    def listening(self, unit: str, failed: str | None = None) -> SocketsOpened:
        """The keeper listens for the unit, or ``failed`` says why not."""
        if unit not in self._opening:
            raise StoryError(f"nobody has asked for the sockets of {unit}")
        return SocketsOpened(self._opening.pop(unit).listen_id, unit, failed)

    def came(self, unit: str, accepted: str | None = None) -> ConnectionCame:
        """Somebody has come to the unit; ``accepted`` and, behind that word, who it is."""
        if accepted is None:
            return ConnectionCame(unit, "web")
        self._connections += 1
        return ConnectionCame(unit, "web", self._connections, accepted.removeprefix("accepted").strip())

    def connected(self, unit: str, count: int) -> ConnectionsSeen:
        """So many connections to the unit are open."""
        if unit not in self._looks:
            raise StoryError(f"nobody has asked for the connections of {unit}")
        return ConnectionsSeen(self._looks.pop(unit).look_id, unit, count)

    def former_exited(self, unit: str, status: ExitStatus) -> ProcessExited:
        """The process that handed its place to another ends."""
        former = self._former.get(unit)
        if former is None:
            raise StoryError(f"{unit} has not handed its main process over: say main-pid first")
        spawn_id, pid = former
        others = any(other.unit == unit for other in self.cast.values())
        return ProcessExited(spawn_id, pid, status, main=False, tree_empty=not others)

    def notified(self, unit: str, fields: Mapping[str, str], main_pid: int | None = None) -> NotifyReceived:
        process = self._process(unit, running=True, role=Role.MAIN)
        return NotifyReceived(unit, process.spawn_id, process.pid, dict(fields), main_pid=main_pid)

    def handed_over(self, unit: str) -> NotifyReceived:
        """The main process names another one with MAINPID=."""
        new_pid = self._process(unit, running=True, role=Role.MAIN).pid + 5000
        return self.notified(unit, {"MAINPID": str(new_pid)}, main_pid=new_pid)

    def is_pending(self, unit: str) -> bool:
        """Whether a process of the unit was asked for and its program does not run yet."""
        return any(process.unit == unit and not process.running for process in self.cast.values())

    # inside

    def _cause_of(self, record: Record) -> str:
        """Number a record; returns what it follows from, if that is nothing of its own unit."""
        if record.event not in UNNUMBERED:
            self._told[self._seq] = record
            self._seq += 1
        cause = None if record.cause is None else self._told[record.cause]
        return "" if cause is None or cause.unit == record.unit else f"{cause.event} {cause.unit or ''}".strip()

    def _process(self, unit: str, *, running: bool, role: Role | None = None) -> Cast:
        for process in reversed(self.cast.values()):
            if process.unit == unit and process.running is running and role in (None, process.role):
                return process
        wanted = f"{'running' if running else 'pending'} {role.value + ' ' if role else ''}process"
        raise StoryError(f"{unit} has no {wanted}; there are: {self._cast_list() or 'none'}")

    def _cast_list(self) -> str:
        return ", ".join(
            f"#{process.spawn_id} {process.unit} {process.role.value} ({'running' if process.running else 'pending'})"
            for process in self.cast.values()
        )

    def _carry_out(self, actions: Sequence[AnyAction]) -> None:
        for action in actions:
            match action:
                case SpawnProcess():
                    self._invocations[action.unit] = action.invocation
                    self._unit_of[action.spawn_id] = action.unit
                    self.cast[action.spawn_id] = Cast(
                        action.spawn_id, action.unit, action.role, FIRST_PID + action.spawn_id
                    )
                case FollowMain() if action.spawn_id not in self.cast:
                    self._unit_of[action.spawn_id] = action.unit
                    self.cast[action.spawn_id] = Cast(
                        action.spawn_id, action.unit, Role.MAIN, FIRST_PID + action.spawn_id, followed=True
                    )
                case StopFollowing():
                    process = self.cast.get(action.spawn_id)
                    if process is not None and not process.running:
                        del self.cast[action.spawn_id]
                case OpenSockets():
                    self._opening[action.unit] = action
                case LookAtConnections():
                    self._looks[action.unit] = action
                case CheckConditions():
                    self._checks[action.unit] = action
                case _:
                    pass

    def _follow(self, event: Event) -> None:
        match event:
            case MainFollowed() if event.pid is not None:
                self.cast[event.spawn_id].running = True
            case MainFollowed():
                del self.cast[event.spawn_id]
            case ConditionsChecked():
                self._checks.pop(event.unit, None)
            case ProcessSpawned():
                self.cast[event.spawn_id].running = True
            case SpawnFailed():
                del self.cast[event.spawn_id]
            case ProcessExited() if event.main:
                del self.cast[event.spawn_id]
            case ProcessExited():
                del self._former[self._unit_of[event.spawn_id]]
            case NotifyReceived() if event.main_pid is not None and event.spawn_id is not None:
                process = self.cast[event.spawn_id]
                self._former[event.unit] = (event.spawn_id, process.pid)
                process.pid = event.main_pid
            case _:
                pass

    def _changed_states(self) -> dict[str, str]:
        shown = {name: self.state_words(name) for name in list_units(self.manager)}
        changed = {name: words for name, words in shown.items() if self._shown.get(name, "inactive/dead") != words}
        gone = {name: "gone" for name in self._shown if name not in shown}
        self._shown = shown
        return changed | gone

    def state_words(self, name: str) -> str:
        """Say a unit's state in a word or two: ``active/running``, and the result when it is not success."""
        status = unit_status(self.manager, name)
        result = "" if status.result == "success" else f" ({status.result})"
        return f"{status.active_state}/{status.sub_state}{result}"


def seconds(duration_ns: int) -> str:
    """Say a time as people do in a story: ``+1.5s``."""
    return f"{duration_ns / SECOND_NS:g}s"

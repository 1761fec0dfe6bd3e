"""What an observer at the border of the core knows: units' lives, kept from events and actions alone.

The checkers compare the core with this, never with the core's own state: a wrong belief of the core would agree with
itself. The observer is told each event before the checkers judge the step, and the step's actions after.
"""

from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core.actions import Effects, FollowMain, KillTree, SignalProcesses, SpawnProcess, StopFollowing
from supervisord_py.core.events import (
    CommandRequested,
    Event,
    ExitStatus,
    MainFollowed,
    NotifyReceived,
    Now,
    ProcessExited,
    ProcessSpawned,
    ShutdownForced,
    ShutdownRequested,
    SpawnFailed,
    TreeEmptied,
    UnitsLoaded,
)
from supervisord_py.model.changes import take_live
from supervisord_py.model.hooks import Hook
from supervisord_py.model.names import is_aux_owner
from supervisord_py.model.records import Record
from supervisord_py.model.states import JobMode, KillMode, Role, ServiceType, Until
from supervisord_py.model.unit import Dependency, Unit, UnitSet
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.processes import NOTIFYING
from supervisord_py.testing.settings import Settings, settings_of
from supervisord_py.testing.sockets import parent_of

IGNORING = frozenset({JobMode.IGNORE_DEPENDENCIES, JobMode.IGNORE_REQUIREMENTS})
CLEAN_SIGNALS = frozenset({1, 2, 13, 15})
STARTING_VERBS = frozenset({"start", "release", "restart", "try-restart", "reload-or-restart"})


class Asked(Struct, frozen=True):
    """A spawn id that the core has given: for a process to be made, followed or adopted."""

    unit: str
    role: Role
    invocation: str


class Life:
    """One invocation of a unit: its processes as they were asked for and told of."""

    def __init__(self, unit: Unit, invocation: str, now: Now) -> None:
        self.unit = unit
        self.invocation = invocation
        self.begun_ns = now.mono_ns
        self.pending: dict[int, Role] = {}
        """Asked for, not told of yet."""
        self.running: dict[int, Role] = {}
        self.leftovers = False
        self.mains = 0
        self.is_stub = False
        """It is that of a stub, in the place of the unit."""
        self.main_failed = False
        self.remained = False
        """Its main process has ended, and it was to remain up then: a reload takes nothing back of that."""
        self.forked = False
        """The command of a forking unit has ended with success: the unit may be up without a main process."""
        self.is_unsure = False
        """Its main process was guessed, has ended, and nobody can tell which of the others goes on."""
        self.started = False
        """The main program runs or has run (of a oneshot: the first of its commands)."""
        self.started_late = False
        """It was being made still when its unit was stopped."""
        self.ready = False
        self.main_gone = False
        self.main_status: ExitStatus | None = None
        self.stop_signal_ns: int | None = None
        """When the present attempt to end it began: the first signal of ours."""
        self.ignores_order = False
        """A request with ignore-dependencies (or ignore-requirements) was about it."""
        self.ordered = False
        """A job that stops or restarts it was queued."""
        self.was_stuck = False
        """It was said that nothing more can be done about its processes."""
        self.changed_post = False
        """A reload of unit files has changed its exec-stop-post."""
        self.ending = False
        """A stop command was asked for, or something was signalled."""

    @property
    def alive(self) -> bool:
        return bool(self.pending or self.running or self.leftovers)

    @property
    def main_running(self) -> bool:
        return Role.MAIN in self.running.values()

    @property
    def main_exists(self) -> bool:
        return self.main_running or Role.MAIN in self.pending.values()

    @property
    def is_up_without_main(self) -> bool:
        """A forking unit whose daemon nobody could tell from its other processes, or is being looked for again."""
        is_looked_for = Role.MAIN in self.pending.values()
        is_unknown = not self.mains or is_looked_for or self.is_unsure
        return self.forked and is_unknown and (self.leftovers or bool(self.running))

    @property
    def remains(self) -> bool:
        """Whether it is up although its main process (or, of a forking unit, all that it left) has ended, and well."""
        if self.unit.service is None or not self.unit.service.remain_after_exit or self.main_exists:
            return False
        return not self.main_failed if self.main_gone else self.forked and not self.mains

    @property
    def is_forking(self) -> bool:
        return self.unit.service is not None and self.unit.service.type is ServiceType.FORKING

    @property
    def oneshot(self) -> bool:
        return self.unit.service is not None and self.unit.service.type is ServiceType.ONESHOT

    def is_clean(self, status: ExitStatus) -> bool:
        """Whether this is a good end of the main process: a daemon may be ended by a signal, a command may not."""
        if status.code == 0 or (status.signal in CLEAN_SIGNALS and not self.oneshot):
            return True
        service = self.unit.service
        return service is not None and (
            status.code in service.success.codes or (status.code is None and status.signal in service.success.signals)
        )

    @property
    def succeeded(self) -> bool:
        """A oneshot has run all of its commands, each with success."""
        service = self.unit.service
        commands = len(service.exec_start) if service else 0
        if self.mains != commands or self.main_exists or self.main_status is None:
            return False
        return self.is_clean(self.main_status)

    def fulfils(self, edge: Dependency) -> bool:
        """Whether the life has been as far as ``until`` asks, and (but for ``exited``) is still there."""
        match edge.until:
            case _ if self.is_stub:
                return Role.STUB in self.running.values()
            case Until.EXITED:
                return self.main_gone and not self.main_exists
            case Until.STARTED:
                if self.started and (self.main_exists or not self.main_failed):
                    return True
                return self.is_up_without_main or self.remains
            case Until.READY | Until.HEALTHY:
                if self.oneshot:
                    return self.succeeded
                if self.remains:
                    return True
                if self.unit.service is not None and self.unit.service.type in NOTIFYING and not self.ready:
                    return False
                return self.main_running or self.is_up_without_main


def _waits(unit: Unit) -> bool:
    return unit.timer is not None or (unit.sockets is not None and unit.sockets.is_on_demand)


class Observer:
    """All units' lives, and what people have asked for."""

    def __init__(self, text_of_core: Callable[[str], Unit | None] = lambda name: None) -> None:
        self.text_of_core = text_of_core
        self.units = UnitSet()
        self.settings = Settings()
        self.hooks_seen: dict[Hook, None] = {}
        """Every hook that there ever was: calls that wait outlive a load."""
        self.texts: dict[str, Unit] = {}
        self.idling: set[str] = set()
        """Units that were of type idle before a reload, and may have begun then: nothing told it."""
        self.older: dict[str, Unit] = {}
        """The texts before the last reload: an idle unit may have begun by one of them without a process to tell it."""
        self.lives: dict[str, Life] = {}
        self.spawned: dict[int, Asked] = {}
        self.ignoring: set[str] = set()
        """Units with a job that was asked for with a mode that ignores others: nothing is promised about those."""
        self.left_behind: set[str] = set()
        """Units that have had a life, or an end, with kill mode ``process``: what it left may still be there."""
        self.skipped: set[str] = set()
        """Units whose last start was skipped because a condition did not hold: whoever requires them may start."""
        self.targets: set[str] = set()
        """Names that were a target at some time: a life of one has no process to judge it by."""
        self.waited: set[str] = set()
        """Names that were run by their time or their sockets at some time: a start of one begins no life."""
        self.shutdown: ShutdownRequested | None = None
        self.shutdown_ns = 0
        self.forced = False

    def text(self, name: str) -> Unit:
        """What the next life of a unit runs by: the newest text, or, when its file is gone, the one it runs by now."""
        if name not in self.units.units and name in self.lives and not (parent_of(name) and name in self.texts):
            # (an instance may have the name of one that was there before)
            return self.lives[name].unit
        return self.texts[name]

    def _text_of_life(self, action: SpawnProcess) -> Unit:
        text = self.text(action.unit)
        if action.unit in self.idling:
            # it may have begun under a text of then, and only the core can say so
            begun = self.text_of_core(action.unit)
            if begun is not None and begun.service is not None and begun.service.type is ServiceType.IDLE:
                return begun
        return text if text.service is not None else self.older[action.unit]

    def life_of(self, spawn_id: int) -> Life | None:
        action = self.spawned.get(spawn_id)
        life = self.lives.get(action.unit) if action else None
        return life if life is not None and action is not None and life.invocation == action.invocation else None

    def see_event(self, event: Event, now: Now) -> None:
        match event:
            case ProcessSpawned() | SpawnFailed() | ProcessExited():
                self._see_process(event, now)
            case TreeEmptied():
                if (life := self.lives.get(event.unit)) is not None:
                    life.leftovers = False
            case MainFollowed():
                self._see_followed(event)
            case NotifyReceived():
                self._see_notification(event, now)
            case UnitsLoaded():
                self.older = {**self.older, **self.texts}
                self.idling.update(
                    name
                    for name, unit in self.texts.items()
                    if unit.service is not None and unit.service.type is ServiceType.IDLE
                )
                self.units, self.settings = event.units, settings_of(event)
                self.hooks_seen |= dict.fromkeys(event.hooks)
                self.texts.update(event.units.units)
                self.targets.update(name for name, unit in event.units.units.items() if unit.service is None)
                self.waited.update(name for name, unit in event.units.units.items() if _waits(unit))
                for life in self.lives.values():
                    self._take_live(life)
                for name in event.limited:
                    self._take_limits(name)
            case CommandRequested() if event.mode in IGNORING and not event.plan:
                self.ignoring.update(event.units)
                for name in event.units:
                    if name in self.lives:
                        self.lives[name].ignores_order = True
            case ShutdownRequested():
                if self.shutdown is None:
                    self.shutdown, self.shutdown_ns = event, now.mono_ns
            case ShutdownForced():
                self.forced = True
            case _:
                pass

    def _take_live(self, life: Life) -> None:
        """A life goes on by the new text, as far as it can take it over."""
        loaded = self.units.units.get(life.unit.name)
        if loaded is None:
            return
        is_there = life.running or life.pending or life.is_up_without_main or life.remains
        old, life.unit = life.unit, take_live(life.unit, loaded)
        if old.service is not None and life.unit.service is not None:
            if life.ending or not is_there:
                # an end that is under way goes on as it began; one that is over has left what it left
                kill = replace(life.unit.service.kill, mode=old.service.kill.mode)
                life.unit = replace(life.unit, service=replace(life.unit.service, kill=kill))
            post = life.unit.service.exec_stop_post if life.unit.service is not None else ()
            life.changed_post = life.changed_post or old.service.exec_stop_post != post

    def _take_limits(self, name: str) -> None:
        """The processes of a life were given the bounds of the loaded text."""
        life, loaded = self.lives.get(name), self.units.units.get(name)
        if life is None or life.unit.service is None or loaded is None or loaded.service is None:
            return
        context = replace(life.unit.service.context, resources=loaded.service.context.resources)
        life.unit = replace(life.unit, service=replace(life.unit.service, context=context))

    def _see_process(self, event: ProcessSpawned | SpawnFailed | ProcessExited, now: Now) -> None:
        life = self.life_of(event.spawn_id)
        if life is None:
            return
        role = self.spawned[event.spawn_id].role
        if isinstance(event, ProcessSpawned):
            if life.pending.pop(event.spawn_id, None) is not None:
                life.running[event.spawn_id] = role
                life.started = life.started or role is Role.MAIN
                life.started_late = life.started_late or (role is Role.MAIN and life.ending)
            return
        if isinstance(event, ProcessExited):
            life.leftovers = not event.tree_empty and not (set(life.running) | set(life.pending)) - {event.spawn_id}
            if not event.main:
                return
        life.pending.pop(event.spawn_id, None)
        life.running.pop(event.spawn_id, None)
        if role is Role.CONDITION and isinstance(event, ProcessExited) and not life.is_clean(event.status):
            self.skipped.add(life.unit.name)
        if role is Role.START:
            life.forked = isinstance(event, ProcessExited) and life.is_clean(event.status)
        if role is Role.MAIN:
            life.main_gone = True
            life.ready = False
            life.remained = life.unit.service is not None and life.unit.service.remain_after_exit
            life.main_status = event.status if isinstance(event, ProcessExited) else None
            life.main_failed = isinstance(event, SpawnFailed) or not life.is_clean(event.status)

    def _see_followed(self, event: MainFollowed) -> None:
        life = self.life_of(event.spawn_id)
        if life is None or life.pending.pop(event.spawn_id, None) is None:
            return
        life.is_unsure = event.pid is None and life.unit.service is not None and life.unit.service.pid_file is None
        if event.pid is not None:
            life.running[event.spawn_id] = Role.MAIN
            life.started, life.main_gone = True, False
            life.mains += 1

    def _see_notification(self, event: NotifyReceived, now: Now) -> None:
        life = self.life_of(event.spawn_id) if event.spawn_id is not None else self.lives.get(event.unit)
        if life is None or life.main_gone:
            return
        if event.fields.get("READY") == "1" and life.main_running:
            life.ready = True
        if event.fields.get("STOPPING") == "1" and life.stop_signal_ns is None:
            life.stop_signal_ns = now.mono_ns

    def see_records(self, effects: Effects, now: Now) -> None:
        """What the core says that it begins to do: at the end of a shutdown's time it forces by itself, and the end of
        a unit may be that of the supervisor.
        """
        for record in effects.records:
            if record.event == "daemon.stopping" and record.fields.get("forced"):
                self.forced = True
            elif record.event == "daemon.stopping" and self.shutdown is None:
                timeout_ns = int(record.fields["timeout_ms"]) * MILLISECOND_NS
                self.shutdown, self.shutdown_ns = ShutdownRequested(timeout_ns), now.mono_ns
            self._see_instance(record)
            life = self.lives.get(record.unit or "")
            if record.event == "unit.skipped" and record.unit is not None:
                self.skipped.add(record.unit)
            if life is None:
                continue
            if record.event in ("unit.stopped", "unit.failed") and self.may_leave_processes(life.unit.name):
                self.left_behind.add(life.unit.name)
            is_job = record.event in ("job.queued", "job.changed")
            life.ordered = life.ordered or (is_job and record.fields.get("type") in ("stop", "restart"))
            life.was_stuck = life.was_stuck or record.event == "unit.stuck"

    def _see_instance(self, record: Record) -> None:
        """A unit that was made for a connection has no file: what it is like only the core can say."""
        name = record.unit or ""
        if parent_of(name) is None:
            return
        if record.event == "unit.removed":
            self.texts.pop(name, None)
        elif (text := self.text_of_core(name)) is not None:
            self.texts[name] = text

    def see_effects(self, event: Event, effects: Effects, now: Now) -> None:
        is_kill = isinstance(event, CommandRequested) and event.verb == "kill"
        if not (isinstance(event, CommandRequested) and event.mode in IGNORING):
            ended = [r for r in effects.records if r.event == "job.finished" and r.fields.get("job") is not None]
            self.ignoring.difference_update(r.unit for r in ended if r.unit)
        for action in effects.actions:
            match action:
                case SpawnProcess():
                    self.spawned[action.spawn_id] = Asked(action.unit, action.role, action.invocation)
                    if is_aux_owner(action.unit):
                        continue
                    life = self.lives.get(action.unit)
                    if life is None or life.invocation != action.invocation:
                        if self.may_leave_processes(action.unit):
                            self.left_behind.add(action.unit)
                        life = self.lives[action.unit] = Life(self._text_of_life(action), action.invocation, now)
                        self.skipped.discard(action.unit)
                        self.idling.discard(action.unit)
                        life.ignores_order = action.unit in self.ignoring
                        life.is_stub = action.role is Role.STUB
                    life.pending[action.spawn_id] = action.role
                    life.mains += action.role is Role.MAIN
                    life.ending = life.ending or action.role in (Role.STOP, Role.STOP_POST)
                    if action.role is Role.MAIN:
                        life.main_gone = False
                case FollowMain():
                    if action.spawn_id not in self.spawned and (life := self.lives.get(action.unit)) is not None:
                        self.spawned[action.spawn_id] = Asked(action.unit, Role.MAIN, life.invocation)
                        life.pending[action.spawn_id] = Role.MAIN
                case StopFollowing():
                    if (life := self.life_of(action.spawn_id)) is not None:
                        life.pending.pop(action.spawn_id, None)
                case SignalProcesses() | KillTree():
                    life = self.lives.get(action.unit)
                    if life is not None and self.is_end(action) and not is_kill:
                        life.ending = True
                        if life.stop_signal_ns is None:
                            life.stop_signal_ns = now.mono_ns
                case _:
                    pass

    def is_end(self, action: SignalProcesses | KillTree) -> bool:
        """Whether a signal is meant to end the unit: one for a reload command alone is not, nor one that asks a main
        process to reload.
        """
        if isinstance(action, KillTree) or action.spawn_id is None or action.spawn_id not in self.spawned:
            return True
        role, life = self.spawned[action.spawn_id].role, self.lives.get(action.unit)
        service = life.unit.service if life is not None else None
        if role is Role.MAIN and service is not None and service.type is ServiceType.NOTIFY_RELOAD:
            return action.signal != service.reload_signal
        return role is not Role.RELOAD

    def ends_by_itself(self, name: str) -> bool:
        """Whether a unit has no process that is to stay."""
        service = self.text(name).service if name in self.texts else None
        return service is None or service.type is ServiceType.ONESHOT

    def may_leave_processes(self, name: str) -> bool:
        """Kill mode ``process``, now or in the text that the present life began with, leaves whatever is not the main
        process.
        """
        if name in self.left_behind:
            return True
        texts = [life.unit for life in (self.lives.get(name),) if life is not None]
        texts += [self.texts[name]] if name in self.texts else []
        return any(text.service is not None and text.service.kill.mode is KillMode.PROCESS for text in texts)

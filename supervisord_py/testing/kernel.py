"""A fake kernel with a fake keeper on it: processes that misbehave, and a keeper that holds to the custody rules.

Theory of operation
-------------------
The keeper's side is ``keeper/protocol.py`` at the level of events and actions: facts are numbered from 1, told in
order, and kept until acknowledged; a new manager is told again everything that was not. Requests come with a commit
and are carried out in order. A spawn id that is known makes no second process. A datagram is queued before the exit
of its sender. ``tree_empty`` is the truth at the instant of the exit.

The processes' side is random by profile: how long exec takes, whether it works, READY or not, how the end comes, what
a signal does, who is left behind. ``cure`` ends all trouble: what hangs gets on, what ignored its signal obeys, and
from then on every new process is well behaved: after the faults stop, everything has to settle.

A forking unit's command leaves a daemon in the tree and ends. The daemon is nobody's until the keeper is told to
follow it (``follow``); its pid file is written in time, late, never, or names somebody else.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import TypeVar

from supervisord_py.core.actions import (
    AnyAction,
    ExitSupervisor,
    FollowMain,
    KillTree,
    ReleaseUnit,
    SignalProcesses,
    SpawnProcess,
    Whom,
)
from supervisord_py.core.events import (
    ExitStatus,
    MainFollowed,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    StrayAppeared,
    StrayExited,
    TreeEmptied,
)
from supervisord_py.model.states import NotifyAccess, Role
from supervisord_py.model.unit import Service
from supervisord_py.testing.beats import Beats
from supervisord_py.testing.beside import CommandsBeside
from supervisord_py.testing.clock import MILLISECOND_NS, SECOND_NS, Agenda, Clock
from supervisord_py.testing.conduct import Conduct
from supervisord_py.testing.custody import Custody
from supervisord_py.testing.daemons import Daemons
from supervisord_py.testing.limits import Appetite
from supervisord_py.testing.processes import (
    DEGRADED,
    FAILED_STEPS,
    LATER_STEPS,
    NOTIFYING,
    SIGABRT,
    SIGCONT,
    SIGKILL,
    SIGSTOP,
    SIGTERM,
    Process,
    Spawn,
    Watcher,
)
from supervisord_py.testing.profile import Profile
from supervisord_py.testing.speech import Speech
from supervisord_py.testing.standstill import Standstill

T = TypeVar("T")

KILL_ROUND_NS = 200 * MILLISECOND_NS


class Kernel:
    """The fake kernel and keeper of one world."""

    def __init__(
        self,
        rng: Random,
        profile: Profile,
        clock: Clock,
        agenda: Agenda,
        service_of: Callable[[SpawnProcess], Service | None],
        watcher: Watcher,
    ) -> None:
        self.rng = rng
        self._profile = profile
        self._clock = clock
        self._agenda = agenda
        self._service_of = service_of
        self.watcher = watcher
        self._next_pid = 1000
        self.is_calm = False
        self._killing: dict[str, int] = {}
        self._ending: set[str] = set()
        """Units whose every process was told to end: one that was made a moment later has not heard it."""
        self.spawns: dict[int, Spawn] = {}
        self.trees: dict[str, dict[int, Process]] = {}
        self.strays: dict[int, int] = {}
        self.custody = Custody()
        self.beside = CommandsBeside(self)
        self.conduct = Conduct(self)
        self.daemons = Daemons(self)
        self.speech = Speech(self)
        self.beats = Beats(self)
        self.freezer = Standstill(self)
        self.appetite = Appetite(self)
        self.exit_codes: list[int] = []
        self.pid_files: dict[str, int] = {}
        self.pid_file_written: Callable[[str], None] = lambda path: None
        """Told after each change of a pid file."""
        self.struck: Callable[[str, str], None] = lambda fault, unit: None
        """Told when a fault takes effect on a process of a unit."""

    @property
    def now_ns(self) -> int:
        return self._clock.mono_ns

    @property
    def is_lost(self) -> bool:
        """Nobody has adopted what the last keeper left."""
        return not self.custody.is_kept

    def lose_keeper(self) -> None:
        """The keeper is killed: what it had in custody is in its book, what runs goes on, and nobody listens."""
        self.custody.is_kept = False

    def adopt(self) -> None:
        """A new keeper goes on with what the last one left; the kernel may not tell it how a process ends."""
        for tree in self.trees.values():
            for process in tree.values():
                process.status_unknown = process.status_unknown or self.rng.random() < 0.5
        self.custody.go_on()

    def apply(self, actions: Sequence[AnyAction]) -> None:
        """Carry out the requests of one commit, in order."""
        for action in actions:
            match action:
                case SpawnProcess():
                    self._spawn(action)
                case SignalProcesses():
                    self._signal(action)
                case KillTree():
                    self._kill_tree(action)
                case FollowMain() if action.pid_file is None:
                    self.follow(action.unit, action.spawn_id, None)
                case ReleaseUnit():
                    self.watcher.released(action.unit)
                    self._killing.pop(action.unit, None)
                    self.freezer.thaw(action.unit)
                case ExitSupervisor():
                    self._exit(action.code)

    # the keeper: requests

    def _spawn(self, action: SpawnProcess) -> None:
        if action.spawn_id in self.spawns:
            return
        self._killing.pop(action.unit, None)
        process = self.new_process(action.unit, action.invocation)
        spawn = Spawn(action.spawn_id, action.role, self._service_of(action), process)
        process.spawn = spawn
        self.spawns[action.spawn_id] = spawn
        self.beside.note(action)
        self.watcher.born(process)
        exec_ns = self.rng.randint(1, 20) * MILLISECOND_NS
        if self.fault("exec_slow"):
            exec_ns = self.rng.randint(100, 12_000) * MILLISECOND_NS
        steps = (*FAILED_STEPS, *LATER_STEPS) if self.has("degraded") else FAILED_STEPS
        failed = self.rng.choice(steps) if self.fault("spawn_failed") else None
        self._agenda.after(exec_ns, lambda: self._exec(spawn, failed))

    def _exec(self, spawn: Spawn, failed: tuple[str, int, int] | None) -> None:
        if not spawn.pending or self.freezer.holds(spawn.main, lambda: self._exec(spawn, failed)):
            return
        spawn.pending = False
        if failed:
            step, code, errno = failed
            self.struck("spawn_failed", spawn.unit)
            self._forget(spawn.main)
            spawn.over = True
            self.watcher.exited(spawn.main, None)
            self.custody.tell(SpawnFailed(spawn.spawn_id, step, code, errno, detail="as the profile wants it"))
            if spawn.unit not in self.trees:
                # no exit told that the tree is empty, so the keeper tells it by itself
                self.custody.tell(TreeEmptied(spawn.unit))
            return
        if self.has("degraded") and self.fault("degraded"):
            spawn.degraded = self.choice(DEGRADED)
        self.custody.tell(ProcessSpawned(spawn.spawn_id, spawn.main.pid, spawn.degraded))
        self.conduct.begin(spawn)
        for signal in spawn.held_signals:
            self.deliver(spawn.main, signal)

    def follow(self, unit: str, spawn_id: int, pid: int | None) -> bool:
        """Follow the process ``pid`` (None: the only child of the keeper that nobody follows) as ``spawn_id``.

        Returns:
            False when ``pid`` names nothing that runs, so that another one may still come.
        """
        known = self.spawns.get(spawn_id)
        if known is not None:
            if not known.over:
                self.custody.tell(MainFollowed(unit, spawn_id, known.followed_pid))
            return True
        tree = self.trees.get(unit, {})
        if pid is None:
            mine = [each for each in tree.values() if each.spawn is None and self._is_child(each)]
            if len(mine) != 1:
                self.custody.tell(MainFollowed(unit, spawn_id, refused=f"{len(mine)} processes could be meant"))
                return True
            process = mine[0]
        elif pid in tree and tree[pid].spawn is None:
            process = tree[pid]
        elif pid in tree or any(pid in other for other in self.trees.values()):
            self.custody.tell(MainFollowed(unit, spawn_id, refused=f"process {pid} is not one of {unit} that is free"))
            return True
        else:
            return False
        command = process.daemon_of
        service = command.service if command is not None else self._service_in(tree)
        process.spawn = spawn = Spawn(spawn_id, Role.MAIN, service, process)
        spawn.pending, spawn.followed_pid = False, process.pid
        self.spawns[spawn_id] = spawn
        self.watcher.followed(process)
        self.custody.tell(MainFollowed(unit, spawn_id, process.pid))
        self.conduct.begin_daemon(spawn)
        return True

    def _is_child(self, process: Process) -> bool:
        """Whether it is a direct child of the keeper: who made it is gone."""
        return process.parent is None or not process.parent.alive

    def _service_in(self, tree: dict[int, Process]) -> Service | None:
        return next((each.daemon_of.service for each in tree.values() if each.daemon_of is not None), None)

    def _signal(self, action: SignalProcesses) -> None:
        if action.whom is Whom.ALL:
            targets = list(self.trees.get(action.unit, {}).values())
            if targets and action.then_continue:
                self._ending.add(action.unit)
        else:
            spawn = self.spawns.get(action.spawn_id) if action.spawn_id is not None else None
            targets = [spawn.main] if spawn and not spawn.over else []
        for process in targets:
            self.deliver(process, action.signal)
            if action.then_continue:
                self.deliver(process, SIGCONT)

    def _kill_tree(self, action: KillTree) -> None:
        self._killing[action.unit] = action.signal
        self._kill_round(action.unit, action.signal)

    def _kill_round(self, unit: str, signal: int) -> None:
        if self._killing.get(unit) != signal:
            return
        for process in list(self.trees.get(unit, {}).values()):
            self.deliver(process, signal)
        if not self.trees.get(unit):
            del self._killing[unit]
        elif signal != SIGKILL:
            self._agenda.after(KILL_ROUND_NS, lambda: self._kill_round(unit, signal))

    def _exit(self, code: int) -> None:
        self.exit_codes.append(code)
        for process in self.alive():
            self._forget(process)

    # processes: how they live

    def fault(self, name: str) -> bool:
        return not self.is_calm and self.rng.random() < float(getattr(self._profile, name))

    def has(self, name: str) -> bool:
        """Whether a class of faults is on at all: one that is off draws nothing."""
        return bool(getattr(self._profile, name))

    def later(self, least_ms: int, most_ms: int, callback: Callable[[], None]) -> None:
        """Let something happen after a drawn time."""
        self._agenda.after(self.milliseconds(least_ms, most_ms), callback)

    def after(self, delay_ns: int, callback: Callable[[], None]) -> None:
        self._agenda.after(delay_ns, callback)

    def number(self, least: int, most: int) -> int:
        return self.rng.randint(least, most)

    def choice(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def milliseconds(self, least: int, most: int) -> int:
        return self.rng.randint(least, most) * MILLISECOND_NS

    def new_process(self, unit: str, invocation: str) -> Process:
        if self._profile.pid_reuse and self._next_pid > 1040:
            self._next_pid = 1000
        while any(self._next_pid in tree for tree in self.trees.values()):
            self._next_pid += 1
        process = Process(self._next_pid, unit, invocation, None, self._clock.mono_ns)
        self._next_pid += 1
        self.trees.setdefault(unit, {})[process.pid] = process
        process.ignores_term = self.fault("ignore_term")
        process.term_delay_ns = self.milliseconds(0, 40)
        if self.fault("slow_term"):
            process.term_delay_ns = self.milliseconds(200, 7000)
        process.term_status = self.rng.choice((None, None, ExitStatus(code=0)))
        if self.fault("bad_term_status"):
            process.term_status = ExitStatus(code=self.rng.choice((1, 143)))
        process.unkillable = self.fault("unkillable")
        process.status_unknown = self.fault("unknown_status")
        return process

    def fork(self, spawn: Spawn) -> None:
        if spawn.over or not spawn.main.alive or self.freezer.holds(spawn.main, lambda: self.fork(spawn)):
            return
        child = self.new_process(spawn.unit, spawn.invocation)
        self.struck("grandchild", spawn.unit)
        child.parent = spawn.main
        child.outlives_main = self.rng.random() < 0.6
        child.ignores_term = self.fault("grandchild_ignores")
        self.watcher.born(child)
        self.catch_up(child)
        if self.rng.random() < 0.3:
            self._agenda.after(self.milliseconds(10, 20_000), lambda: self.end(child, ExitStatus(code=0)))

    def catch_up(self, child: Process) -> None:
        """The keeper kills in rounds until nothing is left: what is forked meanwhile does not escape."""
        if (signal := self._killing.get(child.unit)) is not None:
            self.deliver(child, signal)

    def say_ready(self, spawn: Spawn) -> None:
        if self.freezer.holds(spawn.main, lambda: self.say_ready(spawn)):
            return
        if not spawn.over and not spawn.main.dying and self.admits(spawn, spawn.main):
            spawn.ready_sent = True
            self.notify(spawn, {"READY": "1", "STATUS": "ready"})

    def notify(self, spawn: Spawn, fields: dict[str, str]) -> None:
        if self.freezer.holds(spawn.main, lambda: self.notify(spawn, fields)):
            return
        if self.is_lost and self.is_calm:
            # in the calm nobody speaks before there is somebody to hear it
            self._agenda.after(SECOND_NS, lambda: self.notify(spawn, fields))
            return
        if not spawn.over and spawn.main.alive and not spawn.pending and self.admits(spawn, spawn.main):
            self.struck("chatter", spawn.unit)
            self.custody.tell(NotifyReceived(spawn.unit, spawn.spawn_id, spawn.main.pid, fields))
            if not self.is_lost:
                self.beats.note(spawn, fields)

    def admits(self, spawn: Spawn, process: Process) -> bool:
        service = spawn.service
        if service is None:
            return False
        access = service.notify_access
        if access is NotifyAccess.NONE and service.type in NOTIFYING:
            access = NotifyAccess.MAIN
        if access is NotifyAccess.MAIN:
            return spawn.role is Role.MAIN and process is spawn.main
        return access is not NotifyAccess.NONE

    # processes: how they end

    def deliver(self, process: Process, signal: int) -> None:
        if not process.alive:
            return
        process.killed = process.killed or signal == SIGKILL
        if signal == SIGCONT and not (process.spawn is not None and process.spawn.pending):
            self.freezer.go_on(process)
            return
        if self.freezer.holds(process, lambda: self.deliver(process, signal), is_signal=True):
            return
        if process.spawn is not None and process.spawn.pending:
            process.spawn.held_signals.append(signal)
            if signal == SIGKILL and not process.unkillable:
                self._exec(process.spawn, None)
            return
        if signal == SIGSTOP:
            self.freezer.stop(process)
            return
        if signal != SIGKILL and self.conduct.reloads(process, signal):
            return
        if signal != SIGKILL:
            process.signalled = True
        if signal == SIGKILL:
            delay_ns = self.milliseconds(500, 25_000) if process.unkillable else self.milliseconds(0, 5)
            if process.unkillable:
                self.struck("unkillable", process.unit)
            status = ExitStatus(signal=SIGKILL)
        elif process.ignores_term:
            self.struck("ignore_term", process.unit)
            return
        else:
            delay_ns = process.term_delay_ns
            status = process.term_status or ExitStatus(signal=signal, core_dumped=signal == SIGABRT)
            if process.dying:
                return
        process.dying = True
        self._agenda.after(delay_ns, lambda: self.end(process, status))

    def end(self, process: Process, status: ExitStatus) -> None:
        spawn = process.spawn
        if self.freezer.holds(process, lambda: self.end(process, status)):
            return
        if not process.alive or (spawn is not None and spawn.pending):
            return
        self._forget(process)
        tree = self.trees.get(process.unit, {})
        if process.status_unknown and spawn is not None and spawn.main is process:
            status = ExitStatus()
            self.struck("unknown_status", process.unit)
        elif spawn is not None and spawn.main is process and not process.signalled and not process.killed:
            self.struck("ends_badly" if status.code != 0 else "ends_well", process.unit)
        runtime_ms = (self._clock.mono_ns - process.born_ns) // MILLISECOND_NS
        if spawn is None:
            self.watcher.exited(process, None)
            if not tree:
                self.custody.tell(TreeEmptied(process.unit))
            return
        is_main = spawn.main is process
        spawn.over = spawn.over or is_main
        self.watcher.exited(process, spawn.spawn_id)
        rusage = {"user_us": runtime_ms, "system_us": 1, "max_rss_kb": 4096}
        self.custody.tell(
            ProcessExited(
                spawn.spawn_id,
                process.pid,
                status,
                is_main,
                tree_empty=not tree,
                runtime_ms=runtime_ms,
                rusage=rusage,
                breach=self.appetite.breach_of(process, status) if is_main else None,
            )
        )
        if is_main and spawn.role in (Role.MAIN, Role.STUB):
            for other in list(tree.values()):
                if other.spawn is None and not other.outlives_main:
                    self._agenda.after(self.milliseconds(0, 30), partial(self.end, other, ExitStatus(code=0)))

    def _forget(self, process: Process) -> None:
        process.alive = False
        tree = self.trees.get(process.unit, {})
        tree.pop(process.pid, None)
        if not tree:
            self.trees.pop(process.unit, None)
            self._ending.discard(process.unit)

    # trouble from outside, and its end

    def add_stray(self) -> None:
        """A process that belongs to nobody turns up, and goes."""
        pid = 5000 + len(self.strays)
        self.strays[pid] = self._clock.mono_ns
        self.custody.tell(StrayAppeared(pid, "sleep 30"))
        self._agenda.after(self.milliseconds(1, 5000), lambda: self.custody.tell(StrayExited(pid, ExitStatus(code=0))))

    def kill_some(self, name: str) -> None:
        """The OOM killer, or a colleague, picks a process of the unit."""
        tree = self.trees.get(name)
        if tree:
            self.struck("killed", name)
            self.deliver(self.rng.choice(list(tree.values())), SIGKILL)

    def stop_some(self, name: str) -> None:
        """A debugger, or a colleague, stops the main process of the unit, or all of it."""
        tree = list(self.trees.get(name, {}).values())
        mains = [each for each in tree if each.spawn is not None and each.spawn.main is each]
        for process in self.rng.choice((tree, mains, mains)):
            self.deliver(process, SIGSTOP)

    def cure(self) -> None:
        """End all trouble: what hangs gets on, what was signalled in vain ends, and new processes behave."""
        self.is_calm = True
        self.freezer.end()
        self.beats.end()
        for process in self.alive():
            process.ignores_term = False
            process.unkillable = False
            spawn = process.spawn
            if process.signalled or process.dying or process.unit in self._ending:
                self._agenda.after(self.milliseconds(0, 50), partial(self.end, process, ExitStatus(signal=SIGTERM)))
            elif spawn is not None and spawn.unfinished is not None and process is spawn.main:
                self._agenda.after(self.milliseconds(0, 50), spawn.unfinished)
            elif spawn is None:
                self.daemons.cure(process)

    def alive(self) -> list[Process]:
        return [process for tree in self.trees.values() for process in tree.values()]

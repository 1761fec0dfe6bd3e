"""A scripted world: one core, an exact fake kernel, virtual time, and the rows' own programs acted on it.

Nothing is random here. Facts are told in the order in which they happen; a process that is killed is gone at once,
and its exit says whether others of its unit are left, as the keeper's do.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from supervisord_py.core.actions import (
    AnyAction,
    CheckConditions,
    FollowMain,
    KillTree,
    LookAtProcesses,
    Reply,
    SignalProcesses,
    SpawnProcess,
    StopFollowing,
    Whom,
)
from supervisord_py.core.events import (
    CommandRequested,
    ConditionsChecked,
    DeadlineReached,
    Event,
    ExitStatus,
    MainFollowed,
    NotifyReceived,
    ProcessesSeen,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    TreeEmptied,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.core.view import jobs, unit_status
from supervisord_py.model.command import expand_words
from supervisord_py.model.records import UNNUMBERED
from supervisord_py.model.states import NotifyAccess, Role, ServiceType
from supervisord_py.model.unit import Condition, UnitSet
from supervisord_py.model.values import format_signal, parse_signal
from supervisord_py.testing.clock import MILLISECOND_NS, SECOND_NS, Agenda, Clock
from tests.compat.programs import (
    Append,
    Exit,
    Fork,
    Handle,
    KillMain,
    KillSelf,
    Notify,
    Program,
    Sleep,
    Step,
    WaitFor,
    WritePid,
    program,
)
from tests.compat.theatre import Seen

SIGKILL, SIGCONT = 9, 18
BLOCKED_NS = 400 * SECOND_NS
"""A request that is not answered after so much time never will be."""

MISSING = "/nonexistent"
"""No file or folder below it is there; everything else that a unit names is."""

BAD_ACCOUNT = "nosuch"
FAILURES = {"user": 217, "group": 216, "chdir": 200, "exec": 203, "stdin": 208, "stdout": 209}


class Body:
    """One process."""

    def __init__(self, pid: int, unit: str, role: Role, spawn_id: int | None, program: Program) -> None:
        self.pid = pid
        self.unit = unit
        self.role = role
        self.spawn_id = spawn_id
        self.program = program
        self.alive = True
        self.parent: Body | None = None
        self.last_fork: Body | None = None
        self.main_of_spawn: int | None = None
        self.handles: Handle | None = None
        self.environment: dict[str, str] = {}
        self.is_former = False
        self.is_ending = False

    @property
    def is_ours(self) -> bool:
        return self.spawn_id is not None


class Stage:
    """The theatre of the simulated world.

    With ``mortal`` each decision is its manager's last: the next one restores the committed state and goes on.
    """

    def __init__(self, units: UnitSet, *, mortal: bool = False) -> None:
        self.manager = Manager(1)
        self._mortal = mortal
        self._committed: dict[str, str] = {}
        self.units = units
        self.clock = Clock()
        self.agenda = Agenda(self.clock)
        self.files: dict[str, list[str]] = {}
        self.bodies: dict[int, Body] = {}
        self._facts: deque[Event] = deque()
        self._following: dict[int, FollowMain] = {}
        self._replies: dict[int, Reply] = {}
        self._seq = 1
        self._request = 0
        self._next_pid = 1000
        self._handle(UnitsLoaded(units))

    # what people do

    def ask(self, verb: str, *units: str, **arguments: Any) -> int:
        """Ask for something and wait for the answer: 0 when all of it was done, else 1."""
        self._request += 1
        request = self._request
        command = CommandRequested(request, verb, units, arguments=arguments, token=f"token-{request}")
        self._handle(command)
        end_ns = self.clock.mono_ns + BLOCKED_NS
        while request not in self._replies:
            if self._mortal:
                # The client's connection was cut with the manager: it asks again.
                self._handle(command)
                if request in self._replies:
                    break
            assert self._step(end_ns), f"{verb} {units} is never answered"
        reply = self._replies[request]
        if reply.refusal is not None:
            return 1
        return int(any(outcome.result not in ("done", "skipped") for outcome in reply.outcomes))

    def kill(self, unit: str, signal: str, whom: str = "all") -> None:
        self.ask("kill", unit, signal=parse_signal(signal), whom=whom)

    def murder(self, unit: str, signal: str) -> None:
        """A signal for the main process, from outside."""
        (main,) = [body for body in self._tree(unit) if body.role is Role.MAIN and body.is_ours]
        self._deliver(main, parse_signal(signal))
        self._work()

    def touch(self, path: str) -> None:
        self.files.setdefault(path, [])
        self._work()

    def settle(self, expected: Callable[[], bool] | None = None, seconds: float = 10) -> None:
        """Let time pass; here nothing has to be expected."""
        end_ns = self.clock.mono_ns + int(seconds * SECOND_NS)
        while self._step(end_ns):
            pass

    # what is seen

    def look(self, unit: str) -> Seen:
        if unit not in self.units.units and unit not in self.units.bad:
            return Seen("inactive", "dead", "success", "", None, 0, "")
        status = unit_status(self.manager, unit)
        ended = ""
        if status.exit is not None:
            code, signal = status.exit.code, status.exit.signal
            ended = f"exited:{code}" if signal is None else f"killed:{parse_signal(signal)}"
        return Seen(
            status.active_state,
            status.sub_state,
            status.result,
            ended,
            status.pid,
            status.restarts,
            status.status_text or "",
        )

    def busy(self) -> bool:
        return bool(jobs(self.manager))

    def alive(self, unit: str, log: str) -> list[str]:
        return sorted(body.handles.role for body in self._tree(unit) if body.handles is not None)

    def lines(self, path: str) -> list[str]:
        return list(self.files.get(path, ()))

    # time

    def _step(self, end_ns: int) -> bool:
        """Go on to the next thing that happens up to ``end_ns``; false when the end is reached first."""
        deadline_ns, due_ns = self.manager.deadline_ns(), self.agenda.next_ns()
        next_ns = min((at for at in (deadline_ns, due_ns) if at is not None), default=None)
        if next_ns is None or next_ns > end_ns:
            self.clock.advance_to(end_ns)
            return False
        self.clock.advance_to(max(next_ns, self.clock.mono_ns))
        self.agenda.run_due()
        if deadline_ns is not None and deadline_ns <= self.clock.mono_ns:
            self._facts.append(DeadlineReached())
        self._work()
        return True

    def _work(self) -> None:
        while self._facts:
            self._handle(self._facts.popleft())

    def _handle(self, event: Event) -> None:
        effects = self.manager.handle(event, self.clock.now(self._seq))
        self._seq += sum(record.event not in UNNUMBERED for record in effects.records)
        internal = [record for record in effects.records if "internal error" in str(record.fields)]
        assert not internal, internal
        for reply in effects.replies:
            self._replies[reply.request_id] = reply
        for action in effects.actions:
            self._apply(action)
        if self._mortal:
            self._succeed()
        self._work()

    def _succeed(self) -> None:
        """The manager dies with its decision committed; the next one asks again for what has not been answered."""
        for key, text in self.manager.take_changes().items():
            if text is None:
                del self._committed[key]
            else:
                self._committed[key] = text
        self.manager = Manager.restore(dict(self._committed), self.units)
        if not self._facts:
            for action in self.manager.pending_actions():
                self._apply(action)

    # the keeper and the host

    def _apply(self, action: AnyAction) -> None:
        match action:
            case SpawnProcess():
                self._spawn(action)
            case SignalProcesses():
                everybody = action.whom is Whom.ALL
                for body in self._tree(action.unit):
                    if everybody or body.spawn_id == action.spawn_id:
                        self._deliver(body, action.signal)
                        if action.then_continue:
                            self._deliver(body, SIGCONT)
            case KillTree():
                for body in self._tree(action.unit):
                    self._deliver(body, action.signal)
            case FollowMain():
                self._following[action.spawn_id] = action
                self._follow()
            case StopFollowing():
                self._following.pop(action.spawn_id, None)
            case CheckConditions():
                self._facts.append(
                    ConditionsChecked(
                        action.check_id,
                        action.unit,
                        _first_broken("condition", action.conditions),
                        _first_broken("assert", action.asserts),
                    )
                )
            case LookAtProcesses():
                # nobody in the rows is stopped by a signal
                self._facts.append(ProcessesSeen(action.look_id, action.unit, stopped=False))
            case _:
                pass

    def _spawn(self, action: SpawnProcess) -> None:
        service = self.units.units[action.unit].service
        assert service is not None
        context = service.context
        environment = dict(action.environment)
        main = next((body for body in self.bodies.values() if body.spawn_id == action.main_spawn and body.alive), None)
        if action.main_spawn is not None and main is not None:
            environment["MAINPID"] = str(main.pid)
        folder = context.working_directory or "/"
        failed = None
        if context.user == BAD_ACCOUNT:
            failed = "user"
        elif context.group == BAD_ACCOUNT:
            failed = "group"
        elif folder.startswith(MISSING):
            failed = "chdir"
        elif MISSING in context.streams.input:
            failed = "stdin"
        elif MISSING in (context.streams.output or ""):
            failed = "stdout"
        elif action.command.words[0].startswith(MISSING) or action.command.words[0] == "/run/badfmt":
            failed = "exec"
        if failed is not None:
            self._facts.append(SpawnFailed(action.spawn_id, failed, FAILURES[failed], 2))
            return
        argv = expand_words(action.command, environment)
        body = self._body(action.unit, action.role, action.spawn_id, program(argv, environment))
        body.environment = environment
        body.main_of_spawn = main.pid if main is not None else None
        self._facts.append(ProcessSpawned(action.spawn_id, body.pid))
        self._go_on(body, MILLISECOND_NS)

    def _body(self, unit: str, role: Role, spawn_id: int | None, program: Program) -> Body:
        body = Body(self._next_pid, unit, role, spawn_id, program)
        self._next_pid += 1
        self.bodies[body.pid] = body
        return body

    def _tree(self, unit: str) -> list[Body]:
        return [body for body in self.bodies.values() if body.alive and body.unit == unit]

    def _follow(self) -> None:
        """Answer those who look for the daemon that a forking unit left behind."""
        for spawn_id, action in list(self._following.items()):
            if action.pid_file is not None:
                if action.pid_file in self.files:
                    self._followed(action, self.bodies[int(self.files[action.pid_file][-1])])
                continue
            orphans = [body for body in self._tree(action.unit) if body.parent is not None and not body.parent.alive]
            if len(orphans) == 1:
                self._followed(action, orphans[0])
            else:
                del self._following[spawn_id]
                self._facts.append(MainFollowed(action.unit, spawn_id, None, f"{len(orphans)} processes could be it"))

    def _followed(self, action: FollowMain, body: Body) -> None:
        del self._following[action.spawn_id]
        body.spawn_id, body.role = action.spawn_id, Role.MAIN
        self._facts.append(MainFollowed(action.unit, action.spawn_id, body.pid))

    # processes

    def _go_on(self, body: Body, delay_ns: int) -> None:
        self.agenda.after(delay_ns, lambda: self._run(body))

    def _run(self, body: Body) -> None:
        while body.alive:
            step = next(body.program, Exit(0))
            if isinstance(step, WaitFor) and step.path not in self.files:
                body.program = _again(step, body.program)
                self._go_on(body, 100 * MILLISECOND_NS)
                return
            if isinstance(step, Sleep):
                self._go_on(body, step.duration_ns)
                return
            self._do(body, step)

    def _do(self, body: Body, step: Step) -> None:
        match step:
            case Exit():
                self._end(body, ExitStatus(code=step.code))
            case KillSelf():
                self._deliver(body, step.signal)
            case KillMain():
                assert body.main_of_spawn is not None, "no MAINPID was given"
                self._deliver(self.bodies[body.main_of_spawn], step.signal)
            case Fork():
                child = self._body(body.unit, body.role, None, step.program)
                child.parent, body.last_fork = body, child
                self._go_on(child, MILLISECOND_NS)
            case Append():
                lines = [step.line]
                if step.line == "@time":
                    lines = [f"{self.clock.mono_ns / SECOND_NS}"]
                elif step.line == "env":
                    lines = [f"{name}={value}" for name, value in body.environment.items()]
                self.files.setdefault(step.path, []).extend(lines)
            case WritePid():
                assert body.last_fork is not None
                self.files[step.path] = [str(body.last_fork.pid)]
                self._follow()
            case Handle():
                body.handles = step
            case Notify():
                self._notify(body, step)
            case _:
                pass

    def _notify(self, body: Body, step: Notify) -> None:
        service = self.units.units[body.unit].service
        assert service is not None
        access = service.notify_access
        if access is NotifyAccess.NONE and service.type in (ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD):
            access = NotifyAccess.MAIN
        is_admitted = {
            NotifyAccess.NONE: False,
            NotifyAccess.MAIN: body.is_ours and body.role is Role.MAIN,
            NotifyAccess.EXEC: body.is_ours,
            NotifyAccess.ALL: True,
        }[access]
        if not is_admitted:
            return
        fields, main_pid = dict(step.fields), None
        if step.main_is_fork:
            assert body.last_fork is not None
            heir = body.last_fork
            main_pid = heir.pid
            fields["MAINPID"] = str(main_pid)
            heir.spawn_id, heir.role, body.is_former = body.spawn_id, Role.MAIN, True
        self._facts.append(NotifyReceived(body.unit, body.spawn_id, body.pid, fields, main_pid=main_pid))

    def _deliver(self, body: Body, signal: int) -> None:
        if not body.alive or (body.is_ending and signal not in (SIGKILL, SIGCONT)):
            return
        name = format_signal(signal)
        if signal == SIGKILL:
            self._end(body, ExitStatus(signal=SIGKILL))
        elif body.handles is not None:
            self.files.setdefault(body.handles.log, []).append(f"{body.handles.role} {name}")
            if signal != SIGCONT and signal not in body.handles.ignored:
                # It has heard one and ends; what comes before it is gone, it only hears where it goes on.
                body.is_ending = True
                self.agenda.after(MILLISECOND_NS, lambda: self._end(body, ExitStatus(code=0)))
        elif signal != SIGCONT:
            self._end(body, ExitStatus(signal=signal))

    def _end(self, body: Body, status: ExitStatus) -> None:
        if not body.alive:
            return
        body.alive = False
        is_empty = not self._tree(body.unit)
        if body.spawn_id is None:
            if is_empty:
                self._facts.append(TreeEmptied(body.unit))
            return
        self._facts.append(ProcessExited(body.spawn_id, body.pid, status, main=not body.is_former, tree_empty=is_empty))


def _again(step: Step, program: Program) -> Program:
    yield step
    yield from program


def _first_broken(word: str, conditions: tuple[Condition, ...]) -> str | None:
    """Every condition of the rows is a path that must be there."""
    for condition in conditions:
        assert condition.kind == "path-exists", f"no actor for condition-{condition.kind}"
        if condition.parameter.startswith(MISSING) is not condition.negate:
            return f'{word}-{condition.kind} = "{condition.parameter}"'
    return None

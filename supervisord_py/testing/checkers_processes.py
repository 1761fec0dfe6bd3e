"""Laws about processes: what may run when, and what may be done to it."""

from collections.abc import Sequence

from supervisord_py.core.actions import (
    AnyAction,
    ExitSupervisor,
    FollowMain,
    KeepState,
    KillTree,
    RevertUnits,
    SignalProcesses,
    SpawnProcess,
    Whom,
)
from supervisord_py.core.events import CommandRequested, LimitExceeded, ProcessesSeen, ProcessExited, SpawnFailed
from supervisord_py.core.view import unit_status
from supervisord_py.model.names import is_aux_owner
from supervisord_py.model.states import JobState, JobType, KillMode, ProbeAction, Role, ServiceType
from supervisord_py.model.unit import Dependency, Unit
from supervisord_py.model.values import format_signal
from supervisord_py.testing.checkers import Checker, Step, ordered_units
from supervisord_py.testing.checkers_sockets import waits
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.observer import Life
from supervisord_py.testing.processes import SIGKILL, Process

BEGINNING = frozenset({Role.CONDITION, Role.START_PRE, Role.START, Role.MAIN})
FIRST = BEGINNING | {Role.STUB}


class OneMain(Checker):
    """A unit has at most one main process at any instant."""

    name = "one-main"

    def born(self, process: Process) -> None:
        spawn = process.spawn
        if spawn is None or spawn.role is not Role.MAIN:
            return
        for other in self.world.kernel.trees[process.unit].values():
            rival = other.spawn
            if other.invocation != process.invocation and self.world.seen.may_leave_processes(process.unit):
                # a daemon of an older life, that was let live before anybody knew it
                continue
            if rival is not None and rival is not spawn and rival.role is Role.MAIN and rival.main is other:
                self.fail(f"{process.unit}: #{spawn.spawn_id} was made while the main process #{rival.spawn_id} lives")

    def followed(self, process: Process) -> None:
        self.born(process)


class NoOverlap(Checker):
    """No life begins while a process of the life before is left (kill mode ``process`` leaves what it leaves)."""

    name = "no-overlap"

    def born(self, process: Process) -> None:
        if process.spawn is None or process.spawn.role not in FIRST:
            return
        if self.world.seen.may_leave_processes(process.unit):
            return
        for other in self.world.kernel.trees[process.unit].values():
            if other.invocation != process.invocation:
                self.fail(f"{process.unit}: a life began while pid {other.pid} of the life before is left")


class SpawnIds(Checker):
    """Spawn ids only grow, a life is announced by ``unit.starting`` with the spawn beside it, and signals name what
    exists.
    """

    name = "spawn-ids"

    def step(self, step: Step) -> None:
        seen = self.world.seen
        last = max(seen.spawned, default=0)
        announced = [r.fields.get("spawn_id") for r in step.effects.records if r.event == "unit.starting"]
        given = [action for action in step.effects.actions if isinstance(action, SpawnProcess | FollowMain)]
        spawned = [action for action in given if isinstance(action, SpawnProcess)]
        for each in given:
            if each.spawn_id <= last:
                self.fail(f"{each.unit}: spawn id {each.spawn_id} is not above {last}")
            last = each.spawn_id
        for action in spawned:
            life = seen.lives.get(action.unit)
            is_first = life is None or life.invocation != action.invocation
            if is_first and action.role in FIRST and action.spawn_id not in announced:
                self.fail(f"{action.unit}: #{action.spawn_id} begins a life without a unit.starting record")
        for spawn_id in announced:
            if spawn_id not in {action.spawn_id for action in spawned}:
                self.fail(f"unit.starting names spawn {spawn_id}, which was not asked for")
        known = {*seen.spawned, *(action.spawn_id for action in spawned)}
        for other in step.effects.actions:
            if isinstance(other, SignalProcesses) and other.spawn_id not in known and other.whom is Whom.MAIN:
                self.fail(f"{other.unit}: a signal for #{other.spawn_id}, which was never spawned")


class StartOrder(Checker):
    """A life begins only when what the unit requires (in order) has come as far as ``until`` says, and what it only
    orders itself after has no start pending.
    """

    name = "start-order"

    def step(self, step: Step) -> None:
        seen = self.world.seen
        pending: frozenset[str] | None = None
        for action in step.effects.actions:
            if not isinstance(action, SpawnProcess) or action.role not in BEGINNING or action.unit in seen.ignoring:
                continue
            life = seen.lives.get(action.unit)
            if life is not None and life.invocation == action.invocation:
                continue
            unit = seen.text(action.unit)
            is_idle = unit.service is not None and unit.service.type is ServiceType.IDLE
            if is_idle or action.unit in seen.idling:
                # its turn came earlier: since then it has waited for the other jobs
                continue
            for edge in (*unit.requires, *unit.binds_to, *unit.requisite):
                is_skipped = edge.unit in seen.skipped and edge in unit.requires
                if edge.ordered and not is_skipped and not self._is_met(edge):
                    self.fail(f"{unit.name} starts, and {edge.unit}, which it requires, is not {edge.until.value}")
            if pending is None:
                kinds = (JobType.START.value, JobType.RESTART.value)
                pending = frozenset(job.unit for job in self.world.jobs() if job.type in kinds)
            for edge in self._waits_for(unit):
                is_known = edge.unit in seen.units.units
                if is_known and edge.unit in pending - self._queued_later(step, action) and not self._is_met(edge):
                    self.fail(f"{unit.name} starts before {edge.unit}, which is to be {edge.until.value} first")

    def _queued_later(self, step: Step, action: SpawnProcess) -> frozenset[str]:
        """Units whose job was queued in the same step, when this start was under way already: no order binds those."""
        names: list[str] = []
        for record in reversed(step.effects.records):
            if record.event == "unit.starting" and record.fields.get("spawn_id") == action.spawn_id:
                break
            if record.event == "job.queued" and record.unit is not None:
                names.append(record.unit)
        return frozenset(names)

    def _waits_for(self, unit: Unit) -> list[Dependency]:
        edges = [edge for edge in (*unit.after, *unit.wants) if edge.ordered]
        texts = self.world.seen.texts
        return edges + [Dependency(other.name) for other in texts.values() if unit.name in other.before]

    def _is_met(self, edge: Dependency) -> bool:
        seen = self.world.seen
        text, life = seen.texts.get(edge.unit), seen.lives.get(edge.unit)
        if text is None:
            return False
        if life is not None and life.fulfils(edge):
            return True
        if waits(text) or waits(seen.text_of_core(edge.unit)):
            # what is run by its timer or its sockets is there, in a run and between two; a load takes those at its end
            return unit_status(self.world.manager, edge.unit).active_state not in ("inactive", "failed", "quarantined")
        if text.service is None or (edge.unit in seen.targets and not (life and life.alive)):
            # a target runs no process: only the core can say whether it is up
            return unit_status(self.world.manager, edge.unit).active_state == "active"
        if life is None:
            return False
        # a clean end under an older text may be the success that the present text, a oneshot's, asks for
        is_done = text.service.type is ServiceType.ONESHOT and life.main_gone and not life.main_failed
        return is_done and not life.oneshot and not life.alive


class StopOrder(Checker):
    """A unit that is stopped by a job is left alone until those that come after it, and are stopped too, are down."""

    name = "stop-order"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._given_up: set[str] = set()
        """Units whose stop job has ended before they were down: what they need is stopped all the same."""

    def step(self, step: Step) -> None:
        for record in step.effects.records:
            if record.event == "job.queued":
                self._given_up.discard(record.unit or "")
            if record.event == "job.finished" and record.fields.get("result") == "timeout":
                self._given_up.add(record.unit or "")
        if isinstance(step.event, CommandRequested) and step.event.verb == "kill":
            return
        stopped = [name for action in step.effects.actions if (name := self._stops(action)) is not None]
        if not stopped:
            return
        seen = self.world.seen
        present = {job.unit: job for job in self.world.jobs()}
        types = {name: job.type for name, job in present.items()}
        stopping = {name for name, kind in types.items() if kind in (JobType.STOP.value, JobType.RESTART.value)}
        for name in stopped:
            # a unit that ends by itself, while its stop job still waits for its turn, is no business of the order
            is_ordered = name in stopping and present[name].state == JobState.RUNNING.value
            if not is_ordered or name in seen.ignoring or seen.forced:
                continue
            later = self._queued_since(step, name)
            for other in seen.texts.values():
                life = seen.lives.get(other.name)
                if life is None or not life.main_exists or other.name in seen.ignoring or other.name == name:
                    continue
                if other.name in stopping - later and comes_after(
                    life.unit, seen.text(name), seen.text(other.name), name
                ):
                    self.fail(f"{name} is stopped while {other.name}, which comes after it, is still up")
                is_required = _requires(life.unit, name) and _requires(other, name) and not life.ignores_order
                is_required = is_required and other.name not in self._given_up
                if is_required and types.get(name) == "stop" and other.name not in types and not self._is_ending(life):
                    self.fail(f"{name} is stopped and {other.name}, which requires it, is not")

    def _queued_since(self, step: Step, name: str) -> frozenset[str]:
        """Units whose job was queued when the stop of a unit had begun: a rollout goes on when it sees that stop."""
        events = [(record.event, record.unit) for record in step.effects.records]
        begun = events.index(("unit.stopping", name)) if ("unit.stopping", name) in events else len(events)
        kinds = ("job.queued", "job.changed")
        return frozenset(unit for event, unit in events[begun:] if event in kinds and unit is not None)

    def _stops(self, action: AnyAction) -> str | None:
        """Name the unit whose stop begins with this action."""
        seen = self.world.seen
        if isinstance(action, SpawnProcess):
            is_stop = action.role is Role.STOP
        else:
            is_stop = isinstance(action, SignalProcesses | KillTree) and seen.is_end(action)
        if not is_stop or isinstance(action, ExitSupervisor | RevertUnits | KeepState):
            return None
        life = seen.lives.get(action.unit)
        return action.unit if life is not None and not life.ending else None

    def _is_ending(self, life: Life) -> bool:
        return unit_status(self.world.manager, life.unit.name).active_state in ("deactivating", "failed", "inactive")


def _requires(unit: Unit, name: str) -> bool:
    return any(edge.unit == name for edge in (*unit.requires, *unit.binds_to))


def comes_after(running: Unit, first: Unit, text: Unit, name: str) -> bool:
    """Whether ``text`` (as it runs, and as it is loaded: both have to say so) orders itself after the unit ``name``."""

    def says(unit: Unit) -> bool:
        edges = (*unit.requires, *unit.binds_to, *unit.requisite, *unit.wants, *unit.after)
        return any(edge.unit == name and edge.ordered for edge in edges) or unit.name in first.before

    return says(running) and says(text)


class KillTimeout(Checker):
    """SIGKILL comes no sooner than the time-out after the first signal (but for ``mixed``, once the main process is
    gone, and a shutdown).
    """

    name = "kill-timeout"

    def step(self, step: Step) -> None:
        seen = self.world.seen
        if isinstance(step.event, CommandRequested) or seen.forced or seen.shutdown is not None:
            return
        ordered = ordered_units(step)
        for action in step.effects.actions:
            if not isinstance(action, KillTree) and not self._is_kill_of_main(action):
                continue
            assert isinstance(action, KillTree | SignalProcesses)
            if is_aux_owner(action.unit):
                # what is beside a life is killed at once
                continue
            life = seen.lives.get(action.unit)
            service = life.unit.service if life else None
            if life is None or service is None:
                self.fail(f"{action.unit}: a kill without a life")
                return
            if isinstance(step.event, LimitExceeded) and step.event.unit == action.unit:
                # it is to end at once: it will not get less
                continue
            if any(each.action is ProbeAction.KILL for each in life.unit.health) and isinstance(
                step.event, ProcessesSeen
            ):
                # that is how it wants to be ended when it is unwell
                continue
            if life.was_stuck and action.unit in ordered:
                # a stuck unit that a rollout stops once more is signalled as strongly as it allows now
                continue
            if not service.kill.send_sigkill:
                self.fail(f"{action.unit}: {format_signal(action.signal)} although send-sigkill is off")
            if service.kill.mode is KillMode.MIXED and not life.main_exists:
                continue
            if not life.mains and not life.running and not life.pending:
                # what a command before the start has left must be gone before the next one
                continue
            if life.stop_signal_ns is None:
                self.fail(f"{action.unit}: {format_signal(action.signal)} without a word before")
                return
            limits = [at_ns for at_ns in (service.timeout_stop_ns, service.timeout_abort_ns) if at_ns is not None]
            waited_ns = step.now.mono_ns - life.stop_signal_ns
            if not limits or waited_ns < min(limits):
                self.fail(
                    f"{action.unit}: {format_signal(action.signal)} {waited_ns // MILLISECOND_NS} ms after the first"
                )

    def _is_kill_of_main(self, action: AnyAction) -> bool:
        if not isinstance(action, SignalProcesses) or action.signal != SIGKILL or action.spawn_id is None:
            return False
        spawned = self.world.seen.spawned.get(action.spawn_id)
        return spawned is not None and spawned.role is Role.MAIN


class Conflicts(Checker):
    """Of two units that conflict, one is down before the other begins."""

    name = "conflicts"

    def step(self, step: Step) -> None:
        seen = self.world.seen
        for action in step.effects.actions:
            if not isinstance(action, SpawnProcess) or action.role not in BEGINNING or action.unit in seen.ignoring:
                continue
            own = seen.lives.get(action.unit)
            if own is not None and own.invocation == action.invocation:
                # a conflict that a reload brings into a life ends nothing
                continue
            unit = seen.text(action.unit)
            against = {*unit.conflicts, *(name for name in seen.texts if unit.name in seen.text(name).conflicts)}
            for name in sorted(against):
                life = seen.lives.get(name)
                if life is None or not life.main_exists or name in seen.ignoring:
                    continue
                if unit_status(self.world.manager, name).sub_state != "stuck":
                    self.fail(f"{unit.name} starts while {name}, with which it conflicts, is up")


class ExitRecorded(Checker):
    """Every process that ended has exactly one ``unit.exited`` record, over all deaths of the manager, and it says
    how.
    """

    name = "exit-recorded"

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._owed: dict[tuple[int, int], str] = {}

    def exited(self, process: Process, spawn_id: int | None) -> None:
        if spawn_id is not None and not is_aux_owner(process.unit):
            self._owed[spawn_id, process.pid] = process.unit

    def step(self, step: Step) -> None:
        records = [record for record in step.effects.records if record.event == "unit.exited"]
        event = step.event
        if isinstance(event, SpawnFailed | ProcessExited) and is_aux_owner(
            self.world.seen.spawned[event.spawn_id].unit
        ):
            # the law of those is another one
            return
        if isinstance(event, SpawnFailed):
            told_of = [(record.fields.get("spawn_id"), record.fields.get("code")) for record in records]
            if told_of != [(event.spawn_id, event.code or None)]:
                self.fail(f"the process of #{event.spawn_id}, which never ran its program, has no record of its end")
            return
        if not isinstance(event, ProcessExited):
            if records:
                self.fail(f"a unit.exited record for {records[0].unit}, and nothing has exited")
            return
        if len(records) != 1:
            self.fail(f"{len(records)} unit.exited records for #{event.spawn_id}")
        fields = records[0].fields
        status = event.status
        told = (fields.get("pid"), fields.get("code"), fields.get("signal"))
        expected = (event.pid, status.code, None if status.signal is None else format_signal(status.signal))
        if told != expected:
            self.fail(f"unit.exited says {told} of #{event.spawn_id}, which was {expected}")
        if self._owed.pop((event.spawn_id, event.pid), None) != records[0].unit:
            self.fail(f"unit.exited of #{event.spawn_id} names the unit {records[0].unit}, or comes twice")

    def settled(self) -> None:
        if self._owed:
            self.fail(f"no unit.exited record for {sorted(self._owed)}")


class Released(Checker):
    """A unit is only released when none of its processes is left."""

    name = "release"

    def released(self, unit: str) -> None:
        if unit in self.world.kernel.trees:
            self.fail(f"{unit} is released with {len(self.world.kernel.trees[unit])} processes left")


class Ended(Checker):
    """A shutdown ends with exactly one ``ExitSupervisor``, in time, and with no process left that could be ended."""

    name = "shutdown"

    def committing(self, actions: Sequence[AnyAction]) -> None:
        exits = [action for action in actions if isinstance(action, ExitSupervisor)]
        kernel, seen = self.world.kernel, self.world.seen
        if len(exits) + len(kernel.exit_codes) > 1:
            self.fail("the supervisor ends twice")
        if not exits:
            return
        if seen.shutdown is None and not seen.forced:
            self.fail("the supervisor ends and nobody asked for it")
        for process in kernel.alive():
            life = seen.lives.get(process.unit)
            service = life.unit.service if life else None
            is_let_live = seen.may_leave_processes(process.unit) or (service and not service.kill.send_sigkill)
            if not is_let_live and not process.killed:
                self.fail(f"the supervisor ends and leaves pid {process.pid} of {process.unit}")

    def ended(self) -> None:
        if not self.world.kernel.exit_codes:
            self.fail("the supervisor was told to stop everything and never ended")


PROCESS_CHECKERS: tuple[type[Checker], ...] = (
    OneMain, NoOverlap, SpawnIds, StartOrder, StopOrder, KillTimeout, Conflicts, ExitRecorded, Released, Ended,
)  # fmt: skip

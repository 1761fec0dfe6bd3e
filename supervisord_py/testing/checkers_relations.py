"""Laws about what units mean to each other, and about what has to be true before one begins."""

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING

from supervisord_py.core.actions import CheckConditions, SpawnProcess
from supervisord_py.core.events import (
    CommandRequested,
    ConditionsChecked,
    DeadlineReached,
    ExitStatus,
    ProcessExited,
    UnitsLoaded,
)
from supervisord_py.core.view import unit_status
from supervisord_py.model.records import Record
from supervisord_py.model.states import JobMode, Restart, Role, ServiceType
from supervisord_py.model.unit import ExitStatuses, Unit
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.clock import MILLISECOND_NS

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

BEGINNING = frozenset({Role.CONDITION, Role.START_PRE, Role.START, Role.MAIN})
STARTING_JOBS = frozenset({"start", "restart", "reload-or-start"})
LONELY = frozenset({JobMode.IGNORE_DEPENDENCIES, JobMode.IGNORE_REQUIREMENTS, JobMode.FAIL, JobMode.ISOLATE})
"""Modes in which a stop need not take along what is part of the unit: for some of them what is named wins."""
UP = frozenset({"active", "reloading", "activating"})


def queued(step: Step, but_for: Container[int | None] = ()) -> Iterable[tuple[str, str, str]]:
    """The jobs that a step has queued: unit, type, origin; but for those that one of some records has caused."""
    for record in step.effects.records:
        if record.event == "job.queued" and record.unit is not None and record.cause not in but_for:
            yield record.unit, str(record.fields.get("type")), str(record.fields.get("origin"))


class ChecksConditions(Checker):
    """A unit that has conditions begins only when somebody has just looked and found that they hold, and nothing of it
    is started while somebody looks.
    """

    name = "conditions"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._asked: dict[str, int] = {}
        """By unit: the number of the question that is open."""
        self._held: set[str] = set()

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        if isinstance(event, UnitsLoaded):
            # a text that has no conditions yet, or has others, was looked at by its old ones
            self._held.update(event.units.units)
            self._asked.clear()
        if isinstance(event, ConditionsChecked) and self._asked.get(event.unit) == event.check_id:
            del self._asked[event.unit]
            if event.condition is None and event.assertion is None:
                self._held.add(event.unit)
            else:
                self._held.discard(event.unit)
        for record in step.effects.records:
            if record.event == "unit.restart-scheduled" and record.unit is not None:
                # as systemd has it: what is between two lives is starting, and looked at no more
                self._held.add(record.unit)
        for action in step.effects.actions:
            if isinstance(action, CheckConditions):
                self._asked[action.unit] = action.check_id
                self._held.discard(action.unit)
            if not isinstance(action, SpawnProcess) or action.role not in BEGINNING:
                continue
            life = seen.lives.get(action.unit)
            if life is not None and life.invocation == action.invocation:
                continue
            if action.unit in self._asked:
                self.fail(f"{action.unit} begins while its conditions are being looked at")
            unit = seen.text(action.unit)
            if (unit.conditions or unit.asserts) and action.unit not in self._held:
                self.fail(f"{action.unit} begins, and nobody has found that its conditions hold")
            self._held.discard(action.unit)


class PulledIn(Checker):
    """A request starts what it names and what that pulls in, and nothing else: a requisite is never started."""

    name = "requisite"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._rollout: tuple[str, ...] = ()
        """The units of the last rollout, and the records that its jobs name as their cause (0: a lost one)."""
        self._causes: set[int] = set()

    def step(self, step: Step) -> None:
        event = step.event
        for number, record in step.numbered:
            if record.event == "rollout.started":
                self._rollout, self._causes = tuple(record.fields["units"]), {number}
            elif record.event == "rollout.failed":
                self._causes.add(number)
        if not isinstance(event, CommandRequested) or event.verb == "apply":
            return
        allowed: set[str] | None = None
        # what needs a unit that is restarted is restarted with it, and pulls in what it needs itself
        restarted: list[str] = []
        for name, kind, origin in queued(step, but_for=self._causes):
            if kind != "start" or origin != "command":
                continue
            if allowed is None:
                restarted += (job.unit for job in self.world.jobs() if job.type == "restart")
                restarted += (
                    record.unit
                    for record in step.effects.records
                    if record.event in ("job.queued", "job.changed") and record.fields.get("type") == "restart"
                    if record.unit is not None
                )
                # a rollout may go on because of what somebody else has asked for; which jobs are its own is not known
                # where records have no numbers
                rolled = self._rollout if 0 in self._causes or not step.now.seq else ()
                allowed = self._pulled_by((*event.units, *restarted, *rolled))
            if name not in allowed:
                self.fail(f"{event.verb} {' '.join(event.units)} starts {name}, which nothing pulls in")

    def _pulled_by(self, names: Iterable[str]) -> set[str]:
        texts = self.world.seen.texts
        found, todo = set(names), list(names)
        while todo:
            unit = texts.get(todo.pop())
            for edge in (*unit.requires, *unit.wants, *unit.binds_to, *unit.upholds) if unit else ():
                if edge.unit not in found:
                    found.add(edge.unit)
                    todo.append(edge.unit)
        return found


class PartOf(Checker):
    """Whatever is part of a unit is stopped when that is stopped, and restarted when that is restarted; an automatic
    restart leaves alone what could not come up again.
    """

    name = "part-of"

    def step(self, step: Step) -> None:
        stopped = {name: (kind, origin) for name, kind, origin in queued(step) if kind in ("stop", "restart")}
        if not stopped or (isinstance(step.event, CommandRequested) and step.event.mode in LONELY):
            return
        seen = self.world.seen
        present = {job.unit: job.type for job in self.world.jobs()}
        ended = {record.unit for record in step.effects.records if record.event == "job.finished"}
        for other in seen.units.units.values():
            life = seen.lives.get(other.name)
            if life is None or life.ending or not life.main_running or other.name in ended:
                continue
            # one that has said that it is stopping has nothing left to restart
            wanted = {"stop"} if life.stop_signal_ns is not None else {"stop", "restart"}
            for whole in other.part_of:
                kind, origin = stopped.get(whole, ("", ""))
                if kind not in wanted or whole not in present or present.get(other.name) in ("stop", "restart"):
                    continue
                if (kind, origin) == ("restart", "automatic") and self._lacks(other, present):
                    continue
                self.fail(f"{whole} gets a {kind} job, and {other.name}, which is part of it, does not")

    def _lacks(self, unit: Unit, jobs: Mapping[str, str]) -> bool:
        """Whether something that a unit cannot do without is down, and nobody starts it."""
        world = self.world
        needs, todo = {unit.name}, [unit]
        while todo:
            text = todo.pop()
            for edge in (*text.requires, *text.binds_to):
                other = world.seen.texts.get(edge.unit)
                if edge.unit in needs:
                    continue
                needs.add(edge.unit)
                if other is None or other.name not in world.manager_units():
                    return True
                starts = jobs.get(other.name) in STARTING_JOBS
                if not starts and unit_status(world.manager, other.name).active_state not in UP:
                    return True
                todo.append(other)
        return False


class Upheld(Checker):
    """What an active unit upholds comes back, whatever took it down."""

    name = "upholds"

    def settled(self) -> None:
        world = self.world
        for unit in world.seen.units.units.values():
            if unit.name not in world.manager_units() or not self._is_active(unit.name):
                continue
            for edge in unit.upholds:
                other = world.seen.units.units.get(edge.unit)
                if other is None or not self._can_be_up(other):
                    continue
                status = unit_status(world.manager, other.name)
                if status.active_state == "inactive" and status.sub_state == "dead":
                    self.fail(f"{other.name} is down, and {unit.name}, which upholds it, is active")

    def _is_active(self, name: str) -> bool:
        return unit_status(self.world.manager, name).active_state == "active"

    def _can_be_up(self, unit: Unit) -> bool:
        service = unit.service
        texts = self.world.seen.units.units.values()
        if unit.conditions or unit.asserts or unit.conflicts or any(unit.name in other.conflicts for other in texts):
            return False
        if any(not self._is_active(edge.unit) for edge in (*unit.requires, *unit.binds_to, *unit.requisite)):
            return False
        if unit.part_of:
            return False
        return service is None or (service.type is not ServiceType.ONESHOT and not service.exec_condition)


class Hooks(Checker):
    """``on-failure`` and ``on-success`` start what they name once for each final end, and never for a failure after
    which the unit is restarted by itself.
    """

    name = "hooks"

    def step(self, step: Step) -> None:
        seen = self.world.seen
        fired: dict[str, int] = {}
        refused: set[str] = set()
        for record in step.effects.records:
            name = record.unit or ""
            is_start = record.event == "job.queued" and record.fields.get("type") in STARTING_JOBS
            if is_start and record.fields.get("origin") == "relation":
                fired[name] = fired.get(name, 0) + 1
            if record.event == "job.finished":
                refused.add(name)
        owed: dict[str, int] = {}
        upheld = {edge.unit for unit in seen.texts.values() for edge in unit.upholds}
        for record in step.effects.records:
            for hook in self._hooks_of(record):
                owed[hook] = owed.get(hook, 0) + 1
        allowed: dict[str, int] = dict(owed)
        for name, count in fired.items():
            if name in upheld or name in self._pulled((*owed, *upheld)):
                continue
            if count > allowed.get(name, 0):
                self.fail(f"{name} is started {count} times for {allowed.get(name, 0)} ends of units that name it")
        if seen.shutdown is not None or seen.forced:
            return
        present = {job.unit for job in self.world.jobs()}
        for record in step.effects.records:
            if record.event != "unit.failed" or record.unit is None:
                continue
            unit = self._text(record.unit)
            for hook in unit.on_failure if unit is not None else ():
                is_there = hook in present or hook in refused or hook in fired or hook not in seen.units.units
                if not is_there and unit_status(self.world.manager, hook).active_state not in UP:
                    self.fail(f"{record.unit} has failed, and {hook}, its on-failure, is not started")

    def _text(self, name: str) -> Unit | None:
        life = self.world.seen.lives.get(name)
        return self.world.seen.texts.get(name) or (life.unit if life is not None else None)

    def _hooks_of(self, record: Record) -> tuple[str, ...]:
        """Name what this record of an end may start."""
        unit = self._text(record.unit) if record.unit is not None else None
        if unit is None:
            return ()
        if record.event == "unit.failed":
            return unit.on_failure
        if record.event == "unit.quarantined":
            # a key that a running life does not take over from a new text
            life = self.world.seen.lives.get(unit.name)
            return (life.unit if life is not None else unit).quarantine.on_quarantine
        if record.event == "job.finished" and record.fields.get("result") in ("timeout", "dependency"):
            return unit.on_failure
        if record.event == "unit.stopped":
            return unit.on_success
        return ()

    def _pulled(self, names: Iterable[str]) -> set[str]:
        """What the start of these pulls in."""
        texts = self.world.seen.texts
        found: set[str] = set()
        todo = list(names)
        while todo:
            unit = texts.get(todo.pop())
            for edge in (*unit.requires, *unit.wants, *unit.binds_to, *unit.upholds) if unit else ():
                if edge.unit not in found:
                    found.add(edge.unit)
                    todo.append(edge.unit)
        return found


class JobTimeout(Checker):
    """A job ends when its time is over, with that result; and none has it before."""

    name = "job-timeout"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._due: dict[int, int | None] = {}

    def step(self, step: Step) -> None:
        seen, now_ns = self.world.seen, step.now.mono_ns
        for record in step.effects.records:
            job = record.fields.get("job")
            if not isinstance(job, int):
                continue
            if record.event == "job.queued":
                name = record.unit or ""
                timeout_ns = seen.text(name).job_timeout_ns if name in seen.texts else None
                self._due[job] = None if timeout_ns is None else now_ns + timeout_ns
            elif record.event == "job.finished":
                due_ns = self._due.pop(job, None)
                if record.fields.get("result") == "timeout" and (due_ns is None or now_ns < due_ns):
                    early = "has none" if due_ns is None else f"has {(due_ns - now_ns) // MILLISECOND_NS} ms left"
                    self.fail(f"job {job} of {record.unit} has timed out, and it {early}")
        if not isinstance(step.event, DeadlineReached):
            return
        deadline_ns = self.world.manager.deadline_ns()
        if deadline_ns is not None and deadline_ns <= now_ns:
            return
        for job, due_ns in self._due.items():
            if due_ns is not None and due_ns <= now_ns:
                self.fail(f"job {job} goes on {(now_ns - due_ns) // MILLISECOND_NS} ms after its time was over")


class RestartRules(Checker):
    """``restart-prevent-exit-status`` beats ``restart-force-exit-status``, and that beats the policy."""

    name = "restart-rules"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._ends: dict[str, tuple[str, ExitStatus]] = {}
        """By unit: the life and the end of its main process."""

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        if isinstance(event, ProcessExited) and event.main and event.spawn_id in seen.spawned:
            asked = seen.spawned[event.spawn_id]
            if asked.role is Role.MAIN:
                self._ends[asked.unit] = asked.invocation, event.status
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event not in ("unit.restart-scheduled", "unit.failed", "unit.stopped") or life is None:
                continue
            service = life.unit.service
            invocation, status = self._ends.get(name, ("", ExitStatus()))
            if service is None or invocation != life.invocation:
                continue
            policy = service.restart
            if record.event == "unit.restart-scheduled":
                if _is_in(policy.prevent, status):
                    self.fail(f"{name} is restarted after an end that prevents it: {status}")
                if policy.restart is Restart.NO and not _is_in(policy.force, status):
                    self.fail(f"{name} is restarted, its policy is no, and nothing forces it")
            elif (
                _is_in(policy.force, status) and not _is_in(policy.prevent, status) and not self._is_let_be(step, name)
            ):
                self.fail(f"{name} is not restarted after an end that forces it: {status}")

    def _is_let_be(self, step: Step, name: str) -> bool:
        """Whether something else explains that it is not restarted: an order, a limit, another unit, the shutdown."""
        seen = self.world.seen
        life, service = seen.lives[name], seen.lives[name].unit.service
        assert service is not None
        if life.oneshot and life.succeeded:
            # one that did its work is never repeated
            return True
        has_limit = service.restart.failures > 0 or service.restart.limit is not None
        # the first process of this life that failed decides too, and a forced restart needs the main process's end last
        is_told = life.ending or seen.shutdown is not None or seen.forced or has_limit or life.ordered
        if is_told or isinstance(step.event, CommandRequested | UnitsLoaded):
            return True
        # somebody has asked for something while this life went on: that is what happens next
        return name in {job.unit for job in self.world.jobs()}


def _is_in(statuses: ExitStatuses, status: ExitStatus) -> bool:
    return status.code in statuses.codes if status.code is not None else status.signal in statuses.signals


class StartLimit(Checker):
    """No more automatic starts than the start limit allows happen within its interval."""

    name = "start-limit"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._starts: dict[str, list[int]] = {}
        self._scheduled: set[str] = set()

    def step(self, step: Step) -> None:
        seen = self.world.seen
        if isinstance(step.event, CommandRequested | UnitsLoaded):
            # people may pardon anything: the count begins again, which only makes this checker milder
            self._starts.clear()
            self._scheduled.clear()
        for record in step.effects.records:
            if record.event == "job.queued" and record.fields.get("origin") != "automatic":
                self._scheduled.discard(record.unit or "")
                self._starts.pop(record.unit or "", None)
        for action in step.effects.actions:
            if not isinstance(action, SpawnProcess) or action.role not in BEGINNING:
                continue
            life = seen.lives.get(action.unit)
            if life is not None and life.invocation == action.invocation:
                continue
            if action.unit not in self._scheduled:
                continue
            self._scheduled.discard(action.unit)
            service = seen.text(action.unit).service
            limit = service.restart.limit if service is not None else None
            if limit is None or limit.burst == 0 or limit.interval_ns == 0:
                continue
            since_ns = step.now.boot_ns - limit.interval_ns if limit.interval_ns is not None else 0
            starts = [at_ns for at_ns in self._starts.get(action.unit, ()) if at_ns > since_ns] + [step.now.boot_ns]
            self._starts[action.unit] = starts
            if len(starts) > limit.burst:
                self.fail(f"{action.unit} is started automatically {len(starts)} times, its limit is {limit.burst}")
        for record in step.effects.records:
            if record.event == "unit.restart-scheduled" and record.unit is not None:
                self._scheduled.add(record.unit)


class StopPostOnce(Checker):
    """``exec-stop-post`` runs exactly once a life, whatever became of its start."""

    name = "stop-post"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._ran: dict[str, str] = {}
        """By unit: the invocation whose first stop-post command was asked for."""

    def step(self, step: Step) -> None:
        seen = self.world.seen
        for action in step.effects.actions:
            if not isinstance(action, SpawnProcess) or action.role is not Role.STOP_POST:
                continue
            life = seen.lives.get(action.unit)
            service = life.unit.service if life is not None else None
            is_first = service is not None and service.exec_stop_post and action.command == service.exec_stop_post[0]
            if is_first and self._ran.get(action.unit) == action.invocation:
                self.fail(f"exec-stop-post of {action.unit} is run twice in one life")
            self._ran[action.unit] = action.invocation
        if seen.forced:
            return
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event not in ("unit.stopped", "unit.failed", "unit.restart-scheduled") or life is None:
                continue
            service = life.unit.service
            if service is None or not service.exec_stop_post or life.changed_post or life.is_stub:
                continue
            if self._ran.get(name) != life.invocation:
                self.fail(f"a life of {name} is over, and exec-stop-post was never run")


RELATION_CHECKERS: tuple[type[Checker], ...] = (
    ChecksConditions, PulledIn, PartOf, Upheld, Hooks, JobTimeout, RestartRules, StartLimit, StopPostOnce,
)  # fmt: skip

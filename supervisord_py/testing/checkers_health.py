"""Laws about health checks: when they are made, what is counted, and what follows from it."""

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from supervisord_py.core.actions import KillTree, LookAtProcesses, RunProbe, SpawnProcess
from supervisord_py.core.beside import KILL_NS
from supervisord_py.core.events import (
    DeadlineReached,
    Event,
    ExitStatus,
    ProbeFinished,
    ProcessesSeen,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    TreeEmptied,
    UnitsLoaded,
)
from supervisord_py.core.view import unit_status
from supervisord_py.model.names import base_unit
from supervisord_py.model.records import Record
from supervisord_py.model.states import ProbeAction, ProbeKind, Role, ServiceType, Until
from supervisord_py.model.unit import Probe
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.checkers_processes import BEGINNING

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

GATES = frozenset({ProbeKind.READINESS, ProbeKind.STARTUP})


class Found(Struct):
    """What the answers to one check of a life were."""

    probe: Probe
    asked: int | None = None
    """The question, or the process, that is not answered."""
    look: int | None = None
    """The answer was bad, and the processes are being looked at before it counts."""
    stopped: bool = False
    """The processes were stopped when they were looked at last."""
    ok: bool | None = None
    row: int = 0
    good: bool | None = None
    since_ns: int = 0
    """When it was answered last."""
    is_known: bool = True
    """False after a reload has changed the check: what is counted then is the core's to say, until the next life."""


class Probes(Checker):
    """Each check is made when its time has come, one at a time and only while its unit can answer;
    ``failure-threshold`` bad answers in a row make it bad and nothing less does, and as many good ones good; a start
    waits for its checks, the others wait for those of the startup; an action follows from a bad check that is bad
    still, and from nothing else. A bad answer of processes that are stopped, or of a command that the keeper had no
    time to make, is none.
    """

    name = "probes"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._found: dict[str, dict[str, Found]] = {}
        """By unit, while its life goes on and checks may be made."""
        self._life: dict[str, str] = {}
        self._check_of: dict[int, tuple[str, str]] = {}
        """By spawn id: which check a command is."""
        self._made: set[int] = set()
        """Commands that run, or have run."""
        self._overdue: dict[int, tuple[int, bool]] = {}
        """By spawn id: when its time was over and it was killed, and whether it had been made by then."""
        self._paused: set[str] = set()
        self._stirred_ns: dict[str, int] = {}
        """By unit: when anything was written about it last."""
        self._ready: set[str] = set()
        """The lives that have been ready once: what the start waited for may be bad later."""

    def step(self, step: Step) -> None:
        event = step.event
        self._note_end(event)
        if isinstance(event, UnitsLoaded):
            self._forget_what_changes(event)
        told = {(r.unit or "", str(r.fields["probe"])): r for r in step.effects.records if r.event == "unit.health"}
        killed = [action.unit for action in step.effects.actions if isinstance(action, KillTree)]
        ending = {r.unit or "" for r in step.effects.records if r.event == "unit.stopping"}
        if isinstance(event, ProcessesSeen):
            self._note_look(event, told)
        for unit, name, ok in self._answers(step, killed, ending):
            asked = self._found[unit][name]
            may_act = asked.probe.kind is not ProbeKind.READINESS and asked.probe.action is not ProbeAction.NONE
            if ok is False and may_act:
                self._expect_look(unit, asked, step)
            else:
                self._count(unit, name, ok, told)
        for unit, name in told:
            if (found := self._checks(unit).get(name)) is None or found.is_known:
                self.fail(f"{unit}: its check {name} turns, and nothing was found that would turn it")
        self._judge_action(step)
        for record in step.effects.records:
            self._stirred_ns[record.unit or ""] = step.now.mono_ns
            self._follow(record)
        for action in step.effects.actions:
            if isinstance(action, RunProbe):
                self._asked(action.unit, action.name, action.probe_id)
            elif isinstance(action, SpawnProcess) and action.role is Role.PROBE:
                unit, name = base_unit(action.unit), action.command.words[-1]
                self._check_of[action.spawn_id] = unit, name
                self._asked(unit, name, action.spawn_id)
            elif isinstance(action, SpawnProcess) and action.role in BEGINNING:
                self._begins(action)
        for unit in ending:
            # what was asked in the same breath is not waited for
            for found in self._found.get(unit, {}).values():
                found.asked = found.look = None

    def _note_end(self, event: Event) -> None:
        """A life that has lost its main process, or all, may go on in ways that only the core can tell."""
        if isinstance(event, TreeEmptied):
            for found in self._found.get(event.unit, {}).values():
                found.asked, found.is_known = None, False
        if not isinstance(event, ProcessExited | SpawnFailed) or event.spawn_id in self._check_of:
            return
        asked = self.world.seen.spawned.get(event.spawn_id)
        if asked is not None and asked.role is Role.MAIN:
            for found in self._found.get(asked.unit, {}).values():
                found.asked, found.is_known = None, False

    # what is asked

    def _asked(self, unit: str, name: str, number: int) -> None:
        life, checks = self.world.seen.lives.get(unit), self._checks(unit)
        found = checks.get(name)
        if life is None or not life.alive or unit in self._paused:
            self.fail(f"{unit}: its check {name} is made, and it cannot answer")
            return
        if found is None:
            self.fail(f"{unit}: there is no check {name}")
            return
        if (found.asked is not None or found.look is not None) and found.is_known:
            self.fail(f"{unit}: its check {name} is made while it is being made")
        is_early = found.probe.kind is not ProbeKind.STARTUP and any(
            other.probe.kind is ProbeKind.STARTUP and other.good is not True and other.is_known
            for other in checks.values()
        )
        if is_early:
            self.fail(f"{unit}: its check {name} is made before those of the startup are good")
        found.asked = number

    def committed(self) -> None:
        deadline_ns = self.world.manager.deadline_ns()
        for unit, checks in self._found.items():
            life = self.world.seen.lives.get(unit)
            is_asked = life is not None and life.main_running and not life.ending and unit not in self._paused
            if not is_asked or life is None or self._life.get(unit) != life.invocation:
                continue
            startup_is_over = all(each.good is True for each in checks.values() if each.probe.kind is ProbeKind.STARTUP)
            for name, found in checks.items():
                probe, is_startup = found.probe, found.probe.kind is ProbeKind.STARTUP
                is_over = found.good is True and (is_startup or probe.log is not None)
                is_its_turn = found.is_known and not is_over and (is_startup or startup_is_over)
                if not is_its_turn or found.asked is not None or found.look is not None:
                    continue
                since_ns = max(found.since_ns, self._stirred_ns.get(unit, 0))
                latest_ns = since_ns + probe.initial_delay_ns + probe.interval_ns * 11 // 10
                if (deadline_ns is None or deadline_ns > latest_ns) and self._is_up(unit):
                    self.fail(f"{unit}: its check {name} is not made any more")

    def _is_up(self, unit: str) -> bool:
        if unit not in self.world.manager_units():
            return False
        return unit_status(self.world.manager, unit).sub_state in ("running", "reload")

    def _begins(self, action: SpawnProcess) -> None:
        """Whoever waits for a healthy unit is not started before."""
        seen = self.world.seen
        life = seen.lives.get(action.unit)
        if (
            action.unit in seen.ignoring
            or action.unit in seen.idling
            or (life and life.invocation == action.invocation)
        ):
            return
        unit = seen.text(action.unit)
        if unit.service is not None and unit.service.type is ServiceType.IDLE:
            return
        for edge in (*unit.requires, *unit.binds_to, *unit.requisite):
            other = seen.lives.get(edge.unit)
            if edge.until is not Until.HEALTHY or not edge.ordered or other is None or not other.main_running:
                continue
            for name, found in self._checks(edge.unit).items():
                if found.is_known and found.good is not True:
                    self.fail(
                        f"{unit.name} starts, and the check {name} of {edge.unit}, which it needs healthy, is bad"
                    )

    def _checks(self, unit: str) -> dict[str, Found]:
        """What is known of the checks of the present life."""
        life = self.world.seen.lives.get(unit)
        invocation = life.invocation if life is not None else ""
        if self._life.get(unit) != invocation or unit not in self._found:
            text = life.unit if life is not None else self.world.seen.texts.get(unit)
            self._found[unit] = {} if text is None else {each.name: Found(each) for each in text.health}
            self._life[unit] = invocation
        return self._found[unit]

    # what is answered

    def _expect_look(self, unit: str, found: Found, step: Step) -> None:
        looks = [each for each in step.effects.actions if isinstance(each, LookAtProcesses) and each.unit == unit]
        found.asked = None
        if not looks and not found.is_known:
            # what follows from it was changed meanwhile
            return
        if not looks:
            self.fail(f"{unit}: its check {found.probe.name} is bad, and nobody looks at the processes")
        elif len(looks) > 1:
            # a silence is looked at in the same breath: which is whose only the core knows
            found.is_known = False
        else:
            found.look = looks[0].look_id

    def _note_look(self, event: ProcessesSeen, told: dict[tuple[str, str], Record]) -> None:
        for name, found in self._found.get(event.unit, {}).items():
            if found.look == event.look_id:
                excused = event.stopped or found.stopped
                found.look, found.stopped = None, event.stopped
                self._count(event.unit, name, None if excused else False, told)

    def _answers(self, step: Step, killed: list[str], ending: set[str]) -> list[tuple[str, str, bool | None]]:
        event, now_ns = step.event, step.now.mono_ns
        match event:
            case ProcessSpawned():
                self._made.add(event.spawn_id)
            case ProbeFinished() if self._is_awaited(event.unit, event.name, event.probe_id):
                return [(event.unit, event.name, event.ok)]
            case ProcessExited() | SpawnFailed() if event.spawn_id in self._check_of:
                unit, name = self._check_of[event.spawn_id]
                if self._is_awaited(unit, name, event.spawn_id):
                    return [(unit, name, self._result(event))]
            case DeadlineReached():
                late = [
                    (number, unit, name)
                    for number, (unit, name) in self._check_of.items()
                    if unit not in ending and self._is_awaited(unit, name, number)
                ]
                unkillable = [
                    (unit, name, False if self._overdue[number][1] else None)
                    for number, unit, name in late
                    if number in self._overdue and now_ns >= self._overdue[number][0] + KILL_NS
                ]
                for number, unit, _ in late:
                    if f"{unit}!{number}" in killed:
                        self._overdue.setdefault(number, (now_ns, number in self._made))
                return unkillable
            case _:
                pass
        return []

    def _result(self, event: ProcessExited | SpawnFailed) -> bool | None:
        if isinstance(event, SpawnFailed):
            return False
        if event.spawn_id in self._overdue and event.status.code is None:
            return False if self._overdue[event.spawn_id][1] and event.status.signal is not None else None
        return _is_good(event.status)

    def _is_awaited(self, unit: str, name: str, number: int) -> bool:
        found = self._found.get(unit, {}).get(name)
        return found is not None and found.asked == number

    def _count(self, unit: str, name: str, ok: bool | None, told: dict[tuple[str, str], Record]) -> None:
        found = self._found[unit][name]
        found.asked, found.since_ns = None, self.world.clock.mono_ns
        if ok is not None:
            found.stopped = False
            found.row = found.row + 1 if found.ok is ok else 1
            found.ok = ok
        threshold = found.probe.success_threshold if found.ok else found.probe.failure_threshold
        turns = found.ok is not None and found.row >= threshold and found.good is not found.ok
        record = told.pop((unit, name), None)
        if not found.is_known:
            return
        if turns:
            found.good = found.ok
        if turns is (record is None) or (record is not None and record.fields["good"] is not found.good):
            word = "good" if found.ok else "bad"
            self.fail(f"{unit}: its check {name} was {word} {found.row} times of {threshold}, and that is not so told")

    # what follows

    def _judge_action(self, step: Step) -> None:
        blamed = {
            record.unit or "": record
            for record in step.effects.records
            if record.event == "unit.stopping" and re.match("its .* check ", str(record.fields.get("reason")))
        }
        if not blamed:
            return
        if not isinstance(step.event, ProcessesSeen) or step.event.stopped:
            self.fail(f"{', '.join(blamed)}: ended by a health check, and nobody has seen that it could answer")
        for unit in blamed:
            checks = self._checks(unit).values()
            is_bad = any(each.good is False and each.probe.action is not ProbeAction.NONE for each in checks)
            if not is_bad and all(each.is_known for each in checks):
                self.fail(f"{unit} is ended by a health check, and none of them is bad")

    def _follow(self, record: Record) -> None:
        unit = record.unit or ""
        if record.event in ("unit.stopping", "unit.stopped", "unit.failed", "unit.restart-scheduled", "unit.paused"):
            if record.event == "unit.paused":
                self._paused.add(unit)
            for found in self._found.get(unit, {}).values():
                found.asked = found.look = None
        elif record.event == "unit.resumed" or record.event == "unit.starting":
            self._paused.discard(unit)
        elif record.event == "unit.ready" and not record.fields.get("armed"):
            self._judge_ready(unit)

    def _judge_ready(self, unit: str) -> None:
        life = self.world.seen.lives.get(unit)
        if life is None or not life.main_running or life.oneshot or life.invocation in self._ready:
            return
        self._ready.add(life.invocation)
        for found in self._checks(unit).values():
            if found.probe.kind in GATES and found.good is not True and found.is_known:
                self.fail(f"{unit} is said to be ready, and its check {found.probe.name} has not been good")

    def _forget_what_changes(self, event: UnitsLoaded) -> None:
        for unit, checks in self._found.items():
            text = event.units.units.get(unit)
            fresh = {each.name: each for each in text.health} if text is not None else {}
            for name, found in checks.items():
                if fresh.get(name) != found.probe:
                    found.is_known = False
            for name, probe in fresh.items():
                if name not in checks:
                    checks[name] = Found(probe, is_known=False)


def _is_good(status: ExitStatus) -> bool | None:
    return None if status.code is None and status.signal is None else status.code == 0


HEALTH_CHECKERS: tuple[type[Checker], ...] = (Probes,)

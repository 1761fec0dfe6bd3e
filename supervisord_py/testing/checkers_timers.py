"""Laws about timers: when a unit is run by the clock, judged by the clocks that the world itself drives."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from supervisord_py.core.actions import AnyAction, KeepState
from supervisord_py.core.events import ClockChanged, CommandRequested, DeadlineReached, Now, UnitsLoaded
from supervisord_py.core.view import unit_status
from supervisord_py.model.records import Record
from supervisord_py.model.states import Overrun, TimerFrom
from supervisord_py.model.unit import SECOND_NS, Timer, UnitSet
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.timers import next_match_s

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

SET_BACK_NS = 3 * 3600 * SECOND_NS
"""A clock that is set back by more was wrong before."""

_ENDS = frozenset({"unit.stopped", "unit.failed", "unit.restart-scheduled"})


class Armed(Struct):
    """A unit that waits for its time, or is run; times on the monotonic and the wall clock."""

    timer: Timer
    at: Now
    planned: Now
    """When it was decided last what comes next."""
    by_clock: bool = False
    """Because the clock was set."""
    fired: Now | None = None
    stamp_wall_ns: int | None = None
    """When it was run before it was armed; what has been missed since is made up for."""
    fired_before_ns: int = -1
    began_ns: int | None = None
    ended: Now | None = None
    is_known: bool = True
    """False after a reload has changed the timer, until it has fired once more."""
    is_spent: bool = False
    """It has fired, and its run has not begun."""
    runs_again: bool = False
    """Somebody has triggered it in a run."""


class Timers(Checker):
    """An armed unit is run when it is due, not before, within its accuracy and delay, and once for each time; a time
    that it was missed at is made up for once where that is wanted. What fires a persistent timer is kept on disk.
    """

    name = "timers"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._armed: dict[str, Armed] = {}
        self._stamps: dict[str, int] = {}
        """By unit: the wall time at which it fired last, or was armed first; for those that are persistent."""
        self._fired_ns: dict[str, int] = {}
        self._began_ns: dict[str, int] = {}
        self._ended: dict[str, Now] = {}
        self._running: set[str] = set()
        self._timed: set[str] = set()
        """Units that have had a timer when a life began, or were armed: of all others nobody notes when they ran."""
        self._startup_ns: int | None = None
        self.units = UnitSet()
        """What was loaded before the calm."""
        self.kept: dict[str, str] = {}
        """The state that was last asked to be kept on disk; ``_kept_stamps`` are of the same moment."""
        self._kept_stamps: dict[str, int] = {}

    def remember(self, before: "Timers", *, is_orderly: bool) -> None:
        """Know when units were run before the supervisor was off; after a loss of power, as far as that was kept."""
        self._stamps = dict(before._stamps if is_orderly else before._kept_stamps)

    def committing(self, actions: Sequence[AnyAction]) -> None:
        if any(isinstance(action, KeepState) for action in actions):
            self.kept, self._kept_stamps = dict(self.world.state), dict(self._stamps)

    def look_for_missed(self) -> None:
        """It is late: whatever was to be run has been."""
        for name, armed in self._armed.items():
            self._look_for_missed(name, armed, self.world.clock.now(0))

    def step(self, step: Step) -> None:
        event, now = step.event, step.now
        if isinstance(event, UnitsLoaded):
            self._startup_ns = now.mono_ns if self._startup_ns is None else self._startup_ns
            self._note_texts()
            self.units = self.units if self.world.calm else event.units
        if isinstance(event, ClockChanged):
            for armed in self._armed.values():
                armed.planned, armed.by_clock = now, True
        if isinstance(event, CommandRequested) and event.verb == "trigger" and not event.plan:
            for name in event.units:
                if name in self._armed and self._armed[name].timer.overrun is Overrun.QUEUE:
                    self._armed[name].runs_again = True
        for record in step.effects.records:
            self._follow(record, step)
        for key in step.changes:
            self._note_rest(key.removeprefix("unit/"))
        if isinstance(event, DeadlineReached):
            for name, armed in self._armed.items():
                self._look_for_missed(name, armed, now)

    # what happens

    def _follow(self, record: Record, step: Step) -> None:
        name, now = record.unit or "", step.now
        armed = self._armed.get(name)
        match record.event:
            case "unit.ready" if record.fields.get("armed"):
                self._arm(name, now)
            case "timer.elapsed":
                self._fired(name, step)
            case "unit.removed":
                # with its file goes what is known of when it was run
                for known in (self._stamps, self._fired_ns, self._began_ns, self._ended):
                    known.pop(name, None)
            case "unit.starting" | "unit.stopped" if "stub" in (record.fields.get("role"), *record.fields):
                # what stands in for a unit is no run of it
                pass
            case "unit.starting" if armed is not None or name in self.world.seen.texts:
                goes_on = self._goes_on(record)
                if name not in self._timed and (goes_on or self.world.seen.text(name).timer is None):
                    return
                self._timed.add(name)
                self._began_ns[name] = self._began_ns.get(name, now.mono_ns) if goes_on else now.mono_ns
                self._running.add(name)
                if armed is not None:
                    armed.began_ns = self._began_ns[name]
            case "job.finished" if armed is not None and armed.is_spent:
                armed.planned, armed.by_clock, armed.is_spent = now, False, False
            case event if event in _ENDS and name in self._running:
                self._running.discard(name)
                self._ended[name] = now
                if armed is not None:
                    armed.ended, armed.planned, armed.by_clock, armed.is_spent = now, now, False, False
            case _:
                pass

    def _goes_on(self, record: Record) -> bool:
        """Whether it is a later command of a life that has begun."""
        life = self.world.seen.lives.get(record.unit or "")
        return life is not None and life.invocation == record.invocation

    def _arm(self, name: str, now: Now) -> None:
        timer = self.world.seen.text(name).timer
        if timer is None:
            self.fail(f"{name} is armed, and has no timer")
            return
        self._timed.add(name)
        stamp_ns = self._stamps.get(name) if timer.persistent else None
        if timer.persistent and stamp_ns is None:
            self._stamps[name] = now.wall_ns
        self._armed[name] = Armed(
            timer, now, now, stamp_wall_ns=stamp_ns, fired_before_ns=self._fired_ns.get(name, -1),
            began_ns=self._began_ns.get(name), ended=self._ended.get(name),
        )  # fmt: skip

    def _fired(self, name: str, step: Step) -> None:
        armed, now = self._armed.get(name), step.now
        if armed is None:
            self.fail(f"{name} is run by a timer that is not armed")
            return
        due_ns = self._due_ns(armed, now)
        if armed.is_known and not armed.runs_again and (due_ns is None or due_ns > now.mono_ns):
            early = "for ever" if due_ns is None else f"{(due_ns - now.mono_ns) // MILLISECOND_NS} ms"
            self.fail(f"{name} is run by its timer, and is not due for {early}")
        if armed.timer.persistent and not any(isinstance(action, KeepState) for action in step.effects.actions):
            self.fail(f"{name} is run by a persistent timer, and that is not kept")
        armed.fired, armed.is_known, armed.is_spent, armed.runs_again = now, True, True, False
        self._stamps[name], self._fired_ns[name] = now.wall_ns, now.mono_ns
        present = {r.unit for r in step.effects.records if r.event in ("job.queued", "job.finished", "job.changed")}
        is_over = self.world.seen.shutdown is not None or self.world.seen.forced
        if name not in present and not is_over and name not in {job.unit for job in self.world.jobs()}:
            self.fail(f"the timer of {name} has elapsed, and it is not run")

    def _note_texts(self) -> None:
        for name, armed in self._armed.items():
            text = self.world.seen.texts.get(name)
            if text is not None and text.timer is not None and text.timer != armed.timer:
                armed.timer, armed.is_known = text.timer, False

    def _note_rest(self, name: str) -> None:
        if name in self._armed and name in self.world.manager_units():
            if unit_status(self.world.manager, name).sub_state in ("dead", "failed", "dependency", "stub"):
                del self._armed[name]
        elif name in self._armed:
            del self._armed[name]

    # when it is due

    def _look_for_missed(self, name: str, armed: Armed, now: Now) -> None:
        if not armed.is_known or name not in self.world.manager_units() or self.world.seen.shutdown is not None:
            return
        is_waiting = unit_status(self.world.manager, name).sub_state == "waiting"
        if not is_waiting or name in {job.unit for job in self.world.jobs()}:
            return
        due_ns = self._due_ns(armed, now)
        if due_ns is None:
            return
        latest_ns = max(due_ns, armed.planned.mono_ns) + armed.timer.randomized_delay_ns + armed.timer.accuracy_ns
        if now.mono_ns > latest_ns + MILLISECOND_NS:
            self.fail(f"{name} is not run by its timer, and is due since {(now.mono_ns - due_ns) // MILLISECOND_NS} ms")

    def _due_ns(self, armed: Armed, now: Now) -> int | None:
        """When it is due next, without the random delay [monotonic clock]."""
        due = self._by_spans(armed)
        wall_ns = self._by_calendar(armed, now)
        if wall_ns is not None:
            due.append(wall_ns - now.wall_ns + now.mono_ns)
        return min(due, default=None)

    def _by_spans(self, armed: Armed) -> list[int]:
        timer, planned_ns = armed.timer, armed.planned.mono_ns
        startup_ns = self._startup_ns or 0
        due = []
        fired_ns = max(armed.fired_before_ns, armed.fired.mono_ns if armed.fired is not None else -1)
        has_fired = armed.fired is not None or armed.stamp_wall_ns is not None
        for base_ns, spans in (
            (armed.at.mono_ns, timer.on_active_ns), (0, timer.on_boot_ns), (startup_ns, timer.on_startup_ns),
        ):  # fmt: skip
            for at_ns in (base_ns + span_ns for span_ns in spans):
                was_passed_over = has_fired and at_ns < planned_ns and not armed.by_clock
                if at_ns > fired_ns and not was_passed_over:
                    due.append(at_ns)
        last_fired = () if armed.fired is None else (armed.fired.mono_ns,)
        began = max((*last_fired, *(() if armed.began_ns is None else (armed.began_ns,))), default=None)
        ended = max((*last_fired, *(() if armed.ended is None else (armed.ended.mono_ns,))), default=None)
        due += [began + span_ns for span_ns in timer.on_unit_active_ns if began is not None]
        due += [ended + span_ns for span_ns in timer.on_unit_inactive_ns if ended is not None]
        if timer.every_ns is not None:
            due.append(self._by_beat(armed, timer.every_ns, ended if timer.every_from is TimerFrom.END else began))
        return due

    def _by_beat(self, armed: Armed, every_ns: int, last_ns: int | None) -> int:
        if last_ns is None or last_ns < armed.at.mono_ns:
            return armed.at.mono_ns
        at_ns = last_ns + every_ns
        ended_ns = armed.ended.mono_ns if armed.ended is not None else 0
        while armed.timer.overrun is Overrun.SKIP and at_ns < ended_ns:
            at_ns += every_ns
        return at_ns

    def _by_calendar(self, armed: Armed, now: Now) -> int | None:
        planned_ns = armed.planned.wall_ns
        last_ns = armed.fired.wall_ns if armed.fired is not None else armed.stamp_wall_ns
        if last_ns is None or (armed.fired is None and last_ns > planned_ns):
            base_ns = min(armed.at.wall_ns, planned_ns)
        elif last_ns - planned_ns > SET_BACK_NS:
            base_ns = planned_ns
        else:
            base_ns = last_ns
            if armed.ended is not None and armed.timer.overrun is Overrun.SKIP:
                base_ns = max(base_ns, min(armed.ended.wall_ns, planned_ns))
        second = next_match_s(armed.timer, base_ns)
        if second is None:
            return None
        startup_ns = now.wall_ns - (now.mono_ns - (self._startup_ns or 0))
        return max(second * SECOND_NS, startup_ns) if armed.fired is None else second * SECOND_NS


TIMER_CHECKERS: tuple[type[Checker], ...] = (Timers,)

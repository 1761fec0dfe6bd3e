"""Laws about rollouts, and about the end of the supervisor that the end of a unit brings about.

``RolloutEnds`` watches the one rollout there is: its records, the jobs that name it as their cause (their units are
*taken*), how those ended, and what people have asked for since; it tells the other laws (``RolloutLaw``) of each unit
that is taken and of the end. Of a rollout whose records have no numbers nobody knows which jobs are its own.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from supervisord_py.core.actions import ExitSupervisor, Reply
from supervisord_py.core.events import (
    CommandRequested,
    ExitStatus,
    ProcessExited,
    ShutdownForced,
    ShutdownRequested,
    SpawnFailed,
    UnitsLoaded,
)
from supervisord_py.core.view import unit_status
from supervisord_py.model.changes import restart_keys
from supervisord_py.model.records import Record
from supervisord_py.model.states import ExitSupervisorOn, Role
from supervisord_py.model.unit import Unit
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.checkers_answers import is_refused
from supervisord_py.testing.checkers_processes import comes_after
from supervisord_py.testing.checkers_sockets import waits
from supervisord_py.testing.clock import MILLISECOND_NS

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

BAD_ENDS = frozenset({"failed", "timeout", "dependency", "invalid", "assert"})
STIRRING = frozenset({"activating", "deactivating"})
NEVER_STARTED = 125


class Taken:
    """One unit that a rollout restarts: the job, when that was done, and how."""

    def __init__(self, job: int) -> None:
        self.job = job
        self.result: str | None = None
        self.done_ns = 0
        self.left = False
        """Somebody has stopped it since: what it does now is not the rollout's."""


class Rollout:
    """What is seen of one rollout."""

    def __init__(self, number: int, fields: dict[str, Any], before: dict[str, str]) -> None:
        self.causes = {number}
        self.verb = str(fields["verb"])
        self.units: list[str] = list(fields["units"])
        self.max_unavailable = int(fields["max_unavailable"])
        self.probation_ns = int(fields["probation_ms"]) * MILLISECOND_NS
        self.before = before
        """The lives that there were when it began."""
        self.failed: str | None = None
        self.is_back = False
        self.taken: dict[str, Taken] = {}
        self.stopped: set[str] = set()
        """What somebody has stopped since, and nobody has started since."""
        self.troubled: set[str] = set()
        """What has ended since, or could not start."""
        self.asked: set[str] = set()
        """What anybody has asked for anything since, or is being stopped when it begins."""
        self.loads = 0
        """Loads since it began (but for the answer to its own question)."""
        self.older: dict[str, Unit] = {}
        """What it has gone back to."""
        self.up: set[str] = set()
        """What was up before the step."""
        self.stirring: set[str] = set()
        """What was on its way up or down before the step."""
        self.blurred = number == 0
        """Something of it was written without a number: which jobs are its own is not known."""


class RolloutLaw(Checker):
    """A law that is told what ``RolloutEnds`` sees."""

    def began(self, step: Step, rollout: Rollout) -> None:
        """A rollout has begun."""

    def takes(self, step: Step, rollout: Rollout, name: str) -> None:
        """A rollout is about to restart one of its units; before that is written into ``taken``."""

    def finished(self, step: Step, rollout: Rollout, record: Record) -> None:
        """A rollout is over."""


class RolloutEnds(Checker):
    """Each rollout ends once, for the units that it began with; there is one at a time, and none in a shutdown."""

    name = "rollout-ends"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._now: Rollout | None = None
        self._tokens: set[str] = set()

    @property
    def _laws(self) -> list[RolloutLaw]:
        return [law for law in self.world.checkers.all if isinstance(law, RolloutLaw)]

    def step(self, step: Step) -> None:
        event, rollout = step.event, self._now
        if isinstance(event, UnitsLoaded) and rollout is not None:
            # an answer that nobody waits for any more (its rollout was cancelled) is a load like any other
            is_answer = event.reverts and rollout.failed is not None and not rollout.is_back
            rollout.loads += not is_answer
            if is_answer:
                rollout.older = dict(event.units.units)
        if isinstance(event, CommandRequested) and not event.plan:
            self._see_request(step, event)
        if rollout is not None or any(record.event == "rollout.started" for record in step.effects.records):
            for number, record in step.numbered:
                self._see(step, number, record)
            self._look_around()

    def _see_request(self, step: Step, event: CommandRequested) -> None:
        is_repeated = event.token in self._tokens
        if event.token:
            self._tokens.add(event.token)
        if self._now is None or is_refused(step, event):
            return
        self._now.asked.update(event.units)
        if event.verb == "stop" and not is_repeated:
            self._now.stopped.update(event.units)
        elif event.verb == "cancel":
            # which unit that is about only the number says
            self._now.asked.update(self._now.units)

    def _see(self, step: Step, number: int, record: Record) -> None:
        rollout, name = self._now, record.unit or ""
        if record.event == "rollout.started":
            if rollout is not None:
                self.fail(f"a rollout of {rollout.units} is under way, and another one begins")
            lives = {name: life.invocation for name, life in self.world.seen.lives.items()}
            self._now = rollout = Rollout(number, record.fields, lives)
            rollout.asked.update(job.unit for job in self.world.jobs() if job.type == "stop")
            for law in self._laws:
                law.began(step, rollout)
        if rollout is None:
            return
        rollout.blurred = rollout.blurred or not number
        match record.event:
            case "rollout.failed":
                rollout.failed = name
                rollout.causes.add(number)
            case "rollout.reverted":
                rollout.is_back, rollout.taken = True, {}
            case "rollout.finished":
                self._now = None
                if list(record.fields["units"]) != rollout.units:
                    self.fail(f"a rollout of {rollout.units} ends for {list(record.fields['units'])}")
                for law in self._laws:
                    law.finished(step, rollout, record)
            case "job.queued" | "job.changed" if record.fields.get("type") in ("start", "restart"):
                self._see_job(step, rollout, record)
            case "job.queued" | "job.changed" if record.fields.get("type") == "stop":
                if record.cause not in rollout.causes:
                    # with what somebody stops goes what needs it
                    rollout.asked.add(name)
                    if name in rollout.taken:
                        rollout.taken[name].left = True
            case "job.finished":
                taken = rollout.taken.get(name)
                if taken is not None and taken.job == record.fields.get("job"):
                    taken.result, taken.done_ns = str(record.fields["result"]), step.now.mono_ns
                if record.fields.get("type") == "stop" and record.fields["result"] != "done":
                    rollout.stopped.discard(name)
                if record.fields.get("result") in BAD_ENDS:
                    rollout.troubled.add(name)
            case "unit.stopping" | "unit.exited" | "unit.failed" | "unit.stopped" | "unit.restart-scheduled":
                rollout.troubled.add(name)
            case _:
                pass

    def _see_job(self, step: Step, rollout: Rollout, record: Record) -> None:
        name = record.unit or ""
        if record.cause not in rollout.causes:
            rollout.stopped.discard(name)
        elif name in rollout.units and "pulled_in_by" not in record.fields:
            for law in self._laws:
                law.takes(step, rollout, name)
            rollout.taken[name] = Taken(int(record.fields["job"]))

    def _look_around(self) -> None:
        if (rollout := self._now) is None:
            return
        seen = self.world.seen
        if seen.shutdown is not None or seen.forced:
            self.fail("a rollout goes on while the supervisor is shutting down")
        known = self.world.manager_units()
        states = {name: unit_status(self.world.manager, name).active_state for name in rollout.units if name in known}
        rollout.up = {name for name, state in states.items() if state in ("active", "reloading")}
        rollout.stirring = {name for name, state in states.items() if state in STIRRING}

    def ended(self) -> None:
        if self._now is not None:
            self.fail(f"the rollout of {self._now.units} never ended")


class RolloutScope(RolloutLaw):
    """An apply is about exactly what runs by another text than the one that is loaded; a rolling restart about exactly
    what was named.
    """

    name = "rollout-scope"

    def began(self, step: Step, rollout: Rollout) -> None:
        seen, event = self.world.seen, step.event
        assert isinstance(event, CommandRequested)
        if rollout.verb != "apply":
            if set(rollout.units) != set(event.units):
                self.fail(f"restart {' '.join(event.units)} is a rollout of {rollout.units}")
            return
        for name, life in seen.lives.items():
            loaded = seen.units.units.get(name)
            if loaded is None or name in seen.idling or not life.main_running:
                continue
            keys = restart_keys(life.unit, loaded) if not event.units or name in event.units else ()
            if keys and name not in rollout.units:
                self.fail(f"{name} runs by an older text, and apply leaves it out ({', '.join(keys)})")
            if name in rollout.units and not keys:
                self.fail(f"apply restarts {name}, to which that brings nothing new")


class RolloutBound(RolloutLaw):
    """No more units than allowed are taken down by a rollout, or have been restarted by it and not yet proved good;
    none is restarted twice on the way forward.
    """

    name = "rollout-bound"

    def takes(self, step: Step, rollout: Rollout, name: str) -> None:
        if rollout.blurred or not rollout.max_unavailable:
            return
        if not rollout.is_back and name in rollout.taken:
            self.fail(f"{name} is restarted twice")
        in_hand = [other for other in rollout.taken if other != name and self._is_in_hand(step, rollout, other)]
        # on the way back what is down comes up first, also what went down by itself just now
        ends = ("unit.exited", "unit.watchdog", "unit.progress-stalled", "unit.failed")
        own = [record for record in step.effects.records if record.unit == name]
        # whom the rollout takes down has a job before it stops
        stops_itself = next((each.event for each in own if each.event in ("job.queued", "unit.stopping")), "")
        has_ended = stops_itself == "unit.stopping" or any(
            record.event in ends or "pulled_in_by" in record.fields for record in own
        )
        is_down = rollout.is_back and (name not in rollout.up or has_ended)
        if len(in_hand) >= rollout.max_unavailable and not is_down:
            self.fail(f"{name} is taken down while {in_hand} are, and {rollout.max_unavailable} may be")

    def _is_in_hand(self, step: Step, rollout: Rollout, name: str) -> bool:
        taken = rollout.taken[name]
        if taken.result is None:
            return True
        if taken.result != "done" or rollout.is_back or taken.left:
            return False
        if step.now.mono_ns < taken.done_ns + rollout.probation_ns and not self.world.seen.ends_by_itself(name):
            return name in rollout.up or taken.done_ns == step.now.mono_ns
        # what goes down, or comes to rest and begins anew, in this step may do so because of the one that is taken
        has_rested = any(each.event == "unit.stopped" and each.unit == name for each in step.effects.records)
        is_older = name in rollout.stirring and taken.done_ns < step.now.mono_ns and not has_rested
        return is_older and self._is_stirring(name)

    def _is_stirring(self, name: str) -> bool:
        known, text = self.world.manager_units(), self.world.seen.texts.get(name)
        if waits(text):
            # what is run by the clock, or a connection, is up in a run as between two
            return False
        return name in known and unit_status(self.world.manager, name).active_state in STIRRING


class RolloutOrder(RolloutLaw):
    """What comes after a unit is restarted when that is up again and has proved good, not before."""

    name = "rollout-order"

    def takes(self, step: Step, rollout: Rollout, name: str) -> None:
        seen = self.world.seen
        life = seen.lives.get(name)
        if rollout.blurred or not rollout.max_unavailable or rollout.is_back or life is None:
            return
        for other, taken in rollout.taken.items():
            first = seen.units.units.get(other)
            if taken.result is None and first is not None and comes_after(life.unit, first, seen.text(name), other):
                self.fail(f"{name} is restarted while {other} is, after which it comes")


class RolloutStop(RolloutLaw):
    """What somebody stops while a rollout goes on is not started by it."""

    name = "rollout-stop"

    def takes(self, step: Step, rollout: Rollout, name: str) -> None:
        if name in rollout.stopped:
            self.fail(f"{name} was stopped, and the rollout starts it")


class RolloutProbation(RolloutLaw):
    """A unit is good when it has been up for the whole probation."""

    name = "rollout-probation"

    def finished(self, step: Step, rollout: Rollout, record: Record) -> None:
        seen = self.world.seen
        for name, taken in rollout.taken.items():
            life = seen.lives.get(name)
            if record.fields["result"] != "done" or record.fields["units"][name] != "done" or taken.result != "done":
                continue
            if life is None or not life.main_running or name in rollout.asked or seen.ends_by_itself(name):
                continue
            if step.now.mono_ns < taken.done_ns + rollout.probation_ns:
                since_ms = (step.now.mono_ns - taken.done_ns) // MILLISECOND_NS
                self.fail(f"{name} counts as good {since_ms} ms after it was up")


class RolloutBack(RolloutLaw):
    """After a rollout has gone back nothing runs by a text that it has taken back, and what was the reason to go back
    is not left where it fell, unless somebody asked for that.
    """

    name = "rollout-back"

    def finished(self, step: Step, rollout: Rollout, record: Record) -> None:
        if not rollout.is_back or record.fields["result"] != "failed" or rollout.loads:
            return
        failed = rollout.failed
        if failed is not None and record.fields["units"][failed] == "left-out":
            life = self.world.seen.lives.get(failed)
            # what was never touched, because its restart was refused, may be up without a main process
            excused = {*rollout.asked, *rollout.up, *self.world.seen.units.masked}
            if failed not in excused and life is not None and life.main_gone and not life.ordered:
                self.fail(f"{failed} has failed, and nothing was done to bring it back")
        stopped = {job.unit for job in self.world.jobs() if job.type == "stop"}
        for name in rollout.units:
            life, older = self.world.seen.lives.get(name), rollout.older.get(name)
            is_left = name in rollout.asked or name in stopped
            if life is None or older is None or not life.main_running or life.ending or is_left:
                continue
            fate = record.fields["units"][name]
            taken = rollout.taken.get(name)
            if fate == "failed" and (taken is None or taken.result == "timeout"):
                # what was loaded contradicts itself, so that its restart was refused, or the restart did not get its
                # turn within its job time-out; that is told
                continue
            if keys := restart_keys(life.unit, older):
                self.fail(f"{name} ({fate}) runs by the text that was taken back ({', '.join(keys)})")


class RolloutWords(RolloutLaw):
    """What a rollout says of itself and of each unit at its end, in its record and in replies, is so."""

    name = "rollout-words"

    def finished(self, step: Step, rollout: Rollout, record: Record) -> None:
        fates: dict[str, str] = record.fields["units"]
        result = str(record.fields["result"])
        expected = {"failed" if rollout.failed is not None else "done"}
        if self._is_called_off(step):
            # what is cancelled may be one of its jobs, and not the whole of it; an empty supervisor ends after that
            may_be_both = isinstance(step.event, CommandRequested) or self.world.seen.settings.until_empty
            expected = {"canceled", *expected} if may_be_both else {"canceled"}
        if result not in expected:
            self.fail(f"the rollout is said to be {result}, and what has failed is {rollout.failed}")
        for name, fate in fates.items():
            self._check_fate(rollout, name, fate, result)
        self._check_replies(step, rollout, fates, result)

    def _is_called_off(self, step: Step) -> bool:
        seen, event = self.world.seen, step.event
        is_cancel = isinstance(event, CommandRequested) and event.verb == "cancel" and not event.plan
        return is_cancel or seen.shutdown is not None or seen.forced

    def _check_fate(self, rollout: Rollout, name: str, fate: str, result: str) -> None:
        seen = self.world.seen
        life, loaded = seen.lives.get(name), seen.units.units.get(name)
        allowed = _FATES.get(result, {fate})
        if result == "failed" and rollout.is_back:
            allowed = _FATES["back"]
        if fate not in allowed:
            self.fail(f"the rollout is {result}, and {name} is {fate}")
        if name in seen.targets | seen.waited:
            # to restart what waits for its time, or did before a load, is to arm it anew: that is no life
            return
        if fate in ("done", "probation") and (life is None or life.invocation == rollout.before.get(name)):
            self.fail(f"{name} is said to be restarted, and it was not")
        if fate == "failed" and name in rollout.taken and name not in rollout.troubled:
            self.fail(f"{name} is said to have failed, and nothing has happened to it")
        if result != "done" or life is None or loaded is None or rollout.loads or name in seen.idling:
            return
        is_older = life.main_running and bool(restart_keys(life.unit, loaded))
        if fate == "done" and is_older:
            self.fail(f"{name} is said to be done, and it runs by its older text")
        is_called_off = rollout.blurred or name in rollout.asked | rollout.troubled or name in rollout.taken
        if fate == "left-out" and is_older and name in rollout.up and not is_called_off:
            self.fail(f"{name} is left out, and nobody has asked for that")

    def _check_replies(self, step: Step, rollout: Rollout, fates: dict[str, str], result: str) -> None:
        for reply in self._replies(step, rollout):
            for outcome in reply.outcomes:
                name, fate = outcome.unit, fates[outcome.unit]
                if outcome.result != (expected := _outcome(rollout, name, fate, result)):
                    self.fail(f"{name} is {fate}, its answer is {outcome.result} and not {expected}")
                is_told = "runs by the text before" in outcome.message
                if is_told is not (fate == "reverted" and name != rollout.failed):
                    self.fail(f"{name} is {fate}, and its answer says: {outcome.message}")

    def _replies(self, step: Step, rollout: Rollout) -> Iterator[Reply]:
        """The answers to those who waited for this rollout."""
        asking = step.event.request_id if isinstance(step.event, CommandRequested) else None
        for reply in step.effects.replies:
            request = self.world.clients.waiting.get(reply.request_id)
            if request is None or reply.request_id == asking or reply.refusal is not None:
                continue
            is_rollout = request.event.verb == "apply" or "max_unavailable" in request.event.arguments
            if is_rollout and sorted(outcome.unit for outcome in reply.outcomes) == sorted(rollout.units):
                yield reply


_FATES = {
    "done": frozenset({"done", "left-out"}),
    "failed": frozenset({"done", "failed", "left-out", "probation", "waiting"}),
    "back": frozenset({"reverted", "failed", "left-out"}),
}


def _outcome(rollout: Rollout, name: str, fate: str, result: str) -> str:
    if name == rollout.failed:
        return "failed"
    if result == "done":
        return "done" if fate == "done" else "skipped"
    if fate == "failed" and result == "failed":
        return "failed"
    return "done" if fate in ("done", "probation") else "canceled"


class ExitCode(Checker):
    """The end of a unit ends the supervisor if it asks for that, at once and with the code of its main process; the
    end of no other unit does.
    """

    name = "exit-code"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._ends: dict[str, tuple[str, ExitStatus]] = {}
        """By unit: the life and the end of its main process."""
        self._is_begun = False
        self._codes = {0}

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        if isinstance(event, ProcessExited | SpawnFailed) and event.spawn_id in seen.spawned:
            asked = seen.spawned[event.spawn_id]
            if asked.role is Role.MAIN and (isinstance(event, SpawnFailed) or event.main):
                # A later command that never ran has the code of the step that failed, as in the journal.
                status = event.status if isinstance(event, ProcessExited) else ExitStatus(code=event.code or None)
                self._ends[asked.unit] = asked.invocation, status
        ends = {
            record.unit: (record.event, str(record.fields.get("result")))
            for record in step.effects.records
            if record.event in ("unit.failed", "unit.stopped") and record.unit is not None
        }
        for record in step.effects.records:
            if record.event == "daemon.stopping" and not self._is_begun:
                self._is_begun = True
                is_empty = record.unit is None and seen.settings.until_empty
                if is_empty:
                    # whether it was, and with which code, is the law of another checker
                    self._codes = set(range(256))
                elif not isinstance(event, ShutdownRequested | ShutdownForced):
                    self._begin(record.unit or "", ends)
        if not self._is_begun:
            self._check_missed(step, ends)
        for action in step.effects.actions:
            if isinstance(action, ExitSupervisor) and action.code not in self._codes:
                self.fail(f"the supervisor ends with {action.code}, and it should be {self._codes}")

    def _begin(self, name: str, ends: dict[str, tuple[str, str]]) -> None:
        """The supervisor begins to end because of a unit."""
        if name not in ends:
            self.fail(f"{name} has not ended, and the supervisor ends because of it")
        event, result = ends[name]
        when = self._when(name)
        if when is None or (when is ExitSupervisorOn.FAILURE and event != "unit.failed"):
            self.fail(f"{name} does not ask for the end of the supervisor")
        life = self.world.seen.lives.get(name)
        invocation, status = self._ends.get(name, ("", ExitStatus()))
        self._codes = set()
        if life is not None and invocation == life.invocation and life.started and result != "dependency":
            code = status.code if status.signal is None else 128 + status.signal
            self._codes.add(code or int(event == "unit.failed"))
        if not self._codes or (life is not None and life.started_late):
            self._codes.add(0 if result == "success" else NEVER_STARTED)

    def _check_missed(self, step: Step, ends: dict[str, tuple[str, str]]) -> None:
        busy = {job.unit for job in self.world.jobs()}
        busy |= {record.unit for record in step.effects.records if record.event == "job.queued" and record.unit}
        for name, (event, result) in ends.items():
            life, when = self.world.seen.lives.get(name), self._when(name)
            if when is None or life is None or life.ordered or name in busy or result == "exec-condition":
                continue
            if not life.mains:
                # it may have been ordered to stop before it had a process
                continue
            if waits(life.unit):
                # the end of a run is none of the unit, which waits for the next one
                continue
            if event == "unit.failed" or when is ExitSupervisorOn.EXIT:
                self.fail(f"{name} has ended ({result}), and the supervisor goes on")

    def _when(self, name: str) -> ExitSupervisorOn | None:
        life, text = self.world.seen.lives.get(name), self.world.seen.texts.get(name)
        unit = text if life is None else life.unit
        return None if unit is None else unit.exit_supervisor_on


ROLLOUT_CHECKERS: tuple[type[Checker], ...] = (
    RolloutEnds, RolloutScope, RolloutBound, RolloutOrder, RolloutStop, RolloutProbation, RolloutBack, RolloutWords,
    ExitCode,
)  # fmt: skip

"""Laws about units that fail too often: when they are quarantined, what runs meanwhile, how they come back; and about
errors that a process reports itself.
"""

from typing import TYPE_CHECKING

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import CommandRequested, NotifyReceived, Now, UnitsLoaded
from supervisord_py.core.view import rollout_units, unit_status
from supervisord_py.model.records import Record
from supervisord_py.model.states import Role, ServiceType
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.checkers_answers import is_refused
from supervisord_py.testing.checkers_pools import new_lives
from supervisord_py.testing.checkers_sockets import waits
from supervisord_py.testing.observer import STARTING_VERBS
from supervisord_py.testing.processes import Process

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

GOOD = frozenset({"success", "exec-condition"})
NO_FAILURE = GOOD | {"dependency", "start-limit-hit"}
PARDONING = STARTING_VERBS | {"reset-failed", "reload", "apply", "trigger"}


class Count:
    """The failures in a row of one unit: at least and at most so many (who pardons what is the core's to know)."""

    def __init__(self) -> None:
        self.least = 0
        self.most = 0


class QuarantineCount(Checker):
    """A unit is quarantined at its Nth failure in a row, neither earlier nor later, whatever lies between them."""

    name = "quarantine"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._counts: dict[str, Count] = {}

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        is_request = isinstance(event, CommandRequested) and event.verb in PARDONING and not event.plan
        if is_request or isinstance(event, UnitsLoaded) or rollout_units(self.world.manager):
            # whom a request, a load or a rollout pulls in is pardoned too, also by a job that was there
            for count in self._counts.values():
                count.least = 0
        quarantined = {record.unit for record in step.effects.records if record.event == "unit.quarantined"}
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event in ("job.queued", "job.changed") and record.fields.get("origin") == "command":
                self._count(name).least = 0
            elif record.event in ("unit.released", "unit.removed"):
                self._counts.pop(name, None)
            elif record.event == "unit.stopped":
                self._count(name).least = 0
            elif record.event == "unit.quarantined":
                self._check_early(name, record)
            if (
                record.event not in ("unit.restart-scheduled", "unit.failed")
                or life is None
                or life.unit.service is None
            ):
                continue
            reset_ns, limit = life.unit.service.restart.reset_ns, life.unit.service.restart.failures
            count = self._count(name)
            if reset_ns is not None and step.now.mono_ns - life.begun_ns >= reset_ns:
                count.least = 0
            if str(record.fields.get("message")).startswith("it cannot listen on"):
                # no life of it has failed
                continue
            if record.fields.get("result") in NO_FAILURE:
                if record.event == "unit.restart-scheduled":
                    # its success is the health of a oneshot
                    count.least = 0
                continue
            count.most += 1
            # an order may have ended it
            is_own = record.event == "unit.restart-scheduled" or not (life.ordered or life.ending)
            count.least += is_own
            if 0 < limit <= count.least and is_own and name not in quarantined and name not in self._timed():
                self.fail(f"{name} has failed {count.least} times of {limit}, and is not quarantined")

    def _timed(self) -> set[str]:
        return {name for name, unit in self.world.seen.texts.items() if waits(unit)}

    def _check_early(self, name: str, record: Record) -> None:
        life = self.world.seen.lives.get(name)
        limit = life.unit.service.restart.failures if life is not None and life.unit.service is not None else 0
        if self._count(name).most < limit or limit == 0:
            self.fail(f"{name} is quarantined after {self._count(name).most} failures, and {limit} are allowed")

    def _count(self, name: str) -> Count:
        return self._counts.setdefault(name, Count())


class QuarantineHolds(Checker):
    """A quarantined unit begins no life of its own until it is released, or its ``retry-after`` has passed; every
    release is of a unit that was quarantined, and says who did it.
    """

    name = "quarantine-holds"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self.since: dict[str, int] = {}
        """By unit: when it was quarantined; it is until it is released."""
        self._after_ns: dict[str, int] = {}
        """By unit: the shortest retry-after that it has had since then."""
        self.tried: set[str] = set()
        """Those that are tried once more."""

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        before = dict(self.since)
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.quarantined":
                self.since[name] = step.now.mono_ns
                self.tried.discard(name)
                self._after_ns.pop(name, None)
            elif record.event == "unit.released":
                if self.since.pop(name, None) is None:
                    self.fail(f"{name} is released, and it was not quarantined")
                self.tried.discard(name)
                is_asked = isinstance(event, CommandRequested) and name in event.units and not is_refused(step, event)
                # (a stop may find that it has been healthy for long enough)
                is_asked = is_asked and isinstance(event, CommandRequested) and event.verb != "stop"
                if is_asked and not record.fields.get("by"):
                    self.fail(f"{name} is released, and nobody has done it")
            elif record.event == "unit.removed":
                self.since.pop(name, None)
                self.tried.discard(name)
        for name in self.since:
            after_ns = seen.text(name).quarantine.retry_after_ns if name in seen.texts else None
            if after_ns is not None:
                self._after_ns[name] = min(after_ns, self._after_ns.get(name, after_ns))
        for action in new_lives(self.world, step):
            name = action.unit
            if action.role is Role.STUB or name not in before or name not in self.since or name in self.tried:
                continue
            after_ns = self._after_ns.get(name)
            if after_ns is None or step.now.mono_ns < before[name] + after_ns:
                self.fail(f"{name} is quarantined, and begins all the same")
            self.tried.add(name)

    def settled(self) -> None:
        now_ns = self.world.clock.mono_ns
        for name in self.since:
            if name not in self.world.manager_units() or name in self.world.seen.targets:
                continue
            if waits(self.world.seen.texts.get(name)):
                # to try it once more is to let it wait again
                continue
            status, life = unit_status(self.world.manager, name), self.world.seen.lives.get(name)
            if name not in self.tried and status.active_state not in ("quarantined", "inactive", "activating"):
                self.fail(f"{name} is quarantined, and shown as {status.active_state}")
            service = life.unit.service if life is not None else None
            if life is None or service is None or name not in self.tried or not life.main_running:
                continue
            reset_ns = service.restart.reset_ns
            is_healthy = reset_ns is not None and not service.progress_ns and service.type is not ServiceType.ONESHOT
            if is_healthy and reset_ns is not None and now_ns - life.begun_ns > 2 * reset_ns + 60_000_000_000:
                self.fail(f"{name} has been up long enough since its quarantine, and was not released")


class Stubs(Checker):
    """A stub runs only in the place of a quarantined unit, and only one; where there is one, it runs at once."""

    name = "stub"

    def born(self, process: Process) -> None:
        if process.spawn is None or process.spawn.role is not Role.STUB:
            return
        for other in self.world.kernel.trees[process.unit].values():
            if other is not process and other.spawn is not None and other.spawn.role in (Role.STUB, Role.MAIN):
                self.fail(f"the stub of {process.unit} is made beside pid {other.pid}")

    def step(self, step: Step) -> None:
        seen = self.world.seen
        held = next(each for each in self.world.checkers.all if isinstance(each, QuarantineHolds))
        stubs = {action.unit for action in new_lives(self.world, step) if action.role is Role.STUB}
        for name in stubs:
            if name not in held.since or name in held.tried:
                self.fail(f"the stub of {name} begins, and that is not quarantined")
        busy = {job.unit for job in self.world.jobs()}
        for record in step.effects.records:
            name = record.unit or ""
            if record.event != "unit.quarantined" or name not in held.since or name in busy | stubs:
                continue
            text = seen.units.units.get(name)
            if text is None or text.quarantine.stub is None or text.exit_supervisor_on is not None:
                continue
            if seen.shutdown is None and not seen.forced:
                self.fail(f"{name} is quarantined, and its stub does not begin")


class Degraded(Checker):
    """What needs a unit in whose place a stub runs is up, and says that it is degraded."""

    name = "degraded"

    def committed(self) -> None:
        seen, manager = self.world.seen, self.world.manager
        stubs = {
            name
            for name, life in seen.lives.items()
            if life.is_stub and Role.STUB in life.running.values() and not life.ending
        }
        if not stubs:
            return
        busy = {job.unit for job in self.world.jobs()}
        for name, life in seen.lives.items():
            is_busy = name in busy or name not in self.world.manager_units()
            if life.is_stub or not life.main_running or is_busy:
                continue
            status = unit_status(manager, name)
            for edge in life.unit.requires:
                text = seen.units.units.get(name)
                if edge.unit not in stubs or text is None or edge not in text.requires or status.sub_state != "running":
                    continue
                if edge.unit not in (status.why or ""):
                    self.fail(f"{name} needs {edge.unit}, which is a stub, and says {status.why}")


class CountersSurvive(Checker):
    """What is quarantined at the end of the supervisor is not started by the next one, but for its stub."""

    name = "counters-survive"

    def ended(self) -> None:
        world = self.world
        held = next(each for each in world.checkers.all if isinstance(each, QuarantineHolds))
        left = {name for name in held.since if name not in held.tried}
        if not left or not world.loaded:
            return
        manager = world.manager_type(world.seed)
        manager.restore_counters(dict(world.state))
        old = world.clock.now(1)
        now = Now(1_000_000_000, 1_000_000_000, old.wall_ns, 1)
        effects = manager.handle(world.releases.boot(world.units), now)
        for action in effects.actions:
            if isinstance(action, SpawnProcess) and action.unit in left and action.role is not Role.STUB:
                self.fail(f"{action.unit} was quarantined, and the next supervisor starts it")


class ErrorThreshold(Checker):
    """So many errors in a row that a process reports end its life with that result; a success in between begins the
    count anew.
    """

    name = "error-threshold"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._errors: dict[str, tuple[str, int]] = {}
        """By unit: the life, and how many errors in a row it has reported."""
        self._up: dict[str, str] = {}
        self._full: dict[str, str] = {}
        """By unit: the life that has reached its threshold at some time."""

    def step(self, step: Step) -> None:
        seen, event = self.world.seen, step.event
        if isinstance(event, NotifyReceived):
            self._note(step, event)
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event == "unit.ready" and life is not None:
                self._up[name] = life.invocation
            is_end = record.event in ("unit.failed", "unit.restart-scheduled")
            is_of_errors = is_end and record.fields.get("result") == "errors"
            if is_of_errors and life is not None and self._full.get(name) != life.invocation:
                self.fail(f"{name} has ended because of errors, and has not reported so many in a row")

    def _note(self, step: Step, event: NotifyReceived) -> None:
        seen, name = self.world.seen, event.unit
        life = seen.life_of(event.spawn_id) if event.spawn_id is not None else seen.lives.get(name)
        service = life.unit.service if life is not None else None
        if life is None or service is None or life.is_stub:
            return
        invocation, count = self._errors.get(name, ("", 0))
        count = count if invocation == life.invocation and "X_OK" not in event.fields else 0
        count += "X_ERROR" in event.fields
        self._errors[name] = life.invocation, count
        limit = service.error_threshold
        if "X_ERROR" not in event.fields or not 0 < limit <= count:
            return
        self._full[name] = life.invocation
        is_up = self._up.get(name) == life.invocation and life.main_running and not life.ending
        if is_up and life.stop_signal_ns is None and not self._is_ending(step, name):
            self.fail(f"{name} has reported {count} errors in a row, {limit} are enough, and it goes on")

    def _is_ending(self, step: Step, name: str) -> bool:
        return any(record.event == "unit.stopping" and record.unit == name for record in step.effects.records)


QUARANTINE_CHECKERS: tuple[type[Checker], ...] = (
    QuarantineCount, QuarantineHolds, Stubs, Degraded, CountersSurvive, ErrorThreshold,
)  # fmt: skip

"""Laws about worker pools: how many units have processes at a time, and whose turn it is."""

from typing import TYPE_CHECKING

from supervisord_py.core.actions import AnyAction, SpawnProcess
from supervisord_py.core.view import unit_status
from supervisord_py.model.pools import WORKERS
from supervisord_py.model.states import ServiceType
from supervisord_py.model.unit import Unit
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.checkers_processes import FIRST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisord_py.testing.world import World

HOLDING = frozenset(
    {
        "condition", "start-pre", "start", "start-post", "running", "reload", "paused", "stub", "stop", "stop-watchdog",
        "stop-sigterm", "stop-sigkill", "stop-post", "final-sigterm", "final-sigkill", "stuck",
    }
)  # fmt: skip
OVER = frozenset({"unit.stopped", "unit.failed", "unit.restart-scheduled"})


def limits_of(unit: Unit) -> tuple[str, ...]:
    """Name what may limit a unit, whether it does or not."""
    if unit.service is None:
        return ()
    return (WORKERS, unit.pool.name) if unit.pool.name else (WORKERS,)


def new_lives(world: "World", step: Step) -> list[SpawnProcess]:
    """The first processes of lives that begin in a step."""
    found = []
    for action in step.effects.actions:
        if isinstance(action, SpawnProcess) and action.role in FIRST:
            life = world.seen.lives.get(action.unit)
            if life is None or life.invocation != action.invocation:
                found.append(action)
    return found


class PoolLimit(Checker):
    """No unit begins while as many as a limit allows have processes; what was let in before it was lowered goes on."""

    name = "pool-limit"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._over: dict[str, str] = {}
        """By unit: the life that is over, whatever it has left behind."""
        self._restarted: set[str] = set()
        """Units between the two halves of a restart: they keep their slot."""

    def step(self, step: Step) -> None:
        seen = self.world.seen
        ended: set[str] = set()
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event in OVER and life is not None:
                self._over[name] = life.invocation
                ended.add(name)
            if record.event in ("job.queued", "job.changed") and record.fields.get("type") == "restart":
                self._restarted.add(name)
            elif record.event in ("job.finished", "job.changed"):
                # a rollout may order another restart in the same step
                self._restarted.discard(name)
        begun: list[tuple[str, Unit]] = []
        for action in new_lives(self.world, step):
            unit = seen.text(action.unit)
            if not self._had_slot(action, unit, ended):
                for limit in limits_of(unit):
                    self._check(unit, limit, begun)
            begun.append((action.unit, unit))
            self._restarted.discard(action.unit)

    def _check(self, unit: Unit, limit: str, begun: list[tuple[str, Unit]]) -> None:
        most = self.world.seen.settings.limits.of(limit)
        if most is None:
            return
        held = {name for name, other in begun if limit in limits_of(other)}
        for name, life in self.world.seen.lives.items():
            # what remains up holds no slot, whatever a reload has changed about that since
            remains = life.remains or (life.remained and not life.main_exists and not life.ending)
            is_over = self._over.get(name) == life.invocation or remains
            if life.alive and not is_over and limit in limits_of(life.unit):
                held.add(name)
        held.discard(unit.name)
        if len(held) >= most:
            what = f"pool {limit}" if limit else "the supervisor"
            self.fail(f"{unit.name} begins, and {sorted(held)} hold all {most} slots of {what}")

    def _had_slot(self, action: SpawnProcess, unit: Unit, ended: set[str]) -> bool:
        """Whether it may have got its slot earlier, before the limit was lowered, say."""
        is_idle = unit.service is not None and unit.service.type is ServiceType.IDLE
        if is_idle or action.unit in self.world.seen.idling or action.unit in self._restarted:
            return True
        # a stub takes the place of a life that ends in this very step; conditions are looked at with the slot in hand
        return action.unit in ended or bool(unit.conditions or unit.asserts)


class PoolIdle(Checker):
    """Nobody waits for a slot while there is a free one."""

    name = "pool-idle"

    def committed(self) -> None:
        world = self.world
        jobs = world.jobs()
        waiting = [job for job in jobs if job.limit is not None]
        if not waiting:
            return
        busy = {job.unit for job in jobs if job.limit is None}
        texts = {name: unit for name, unit in world.seen.texts.items() if name in world.manager_units()}
        texts |= {name: life.unit for name, life in world.seen.lives.items() if name in texts}
        limits = world.seen.settings.limits
        for limit in {str(job.limit) for job in waiting}:
            name = WORKERS if limit == "max-workers" else limit
            held = [
                each
                for each, unit in texts.items()
                if name in limits_of(unit) and (each in busy or unit_status(world.manager, each).sub_state in HOLDING)
            ]
            most = limits.of(name)
            if most is None or len(held) < most:
                units = [job.unit for job in waiting if job.limit == limit]
                self.fail(f"{units} wait for {limit}, which allows {most}, and only {held} may hold a slot")


class PoolOrder(Checker):
    """Of those that wait for the same slot the one of the highest priority is let in first, the oldest of them first;
    neither a new manager nor a new keeper changes the queue.
    """

    name = "pool-order"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._queue: dict[str, int] = {}
        """By unit: the job that waits."""
        self._places: list[tuple[int, str | None, int | None]] = []

    def step(self, step: Step) -> None:
        seen = self.world.seen
        before = dict(self._queue)
        for record in step.effects.records:
            name, job = record.unit or "", record.fields.get("job")
            if record.event == "unit.queued":
                # it may have waited for something else in between
                before.pop(name, None)
                if "limit" in record.fields and isinstance(job, int):
                    self._queue[name] = job
            elif record.event in ("job.finished", "job.changed") and self._queue.get(name, 0) == job:
                del self._queue[name]
        for action in new_lives(self.world, step):
            mine = self._queue.pop(action.unit, None)
            unit = seen.text(action.unit)
            is_idle = unit.service is not None and unit.service.type is ServiceType.IDLE
            if mine is None or action.unit not in before or unit.conditions or unit.asserts or is_idle:
                # what is looked at first, or waits until all is quiet, was let in before
                continue
            self._check(unit, mine, before)

    def _check(self, unit: Unit, mine: int, before: dict[str, int]) -> None:
        left = {job.unit: job.job for job in self.world.jobs() if job.limit is not None}
        for name, job in before.items():
            if name not in self.world.seen.texts or left.get(name) != job or name == unit.name:
                continue
            other = self.world.seen.text(name)
            is_first = (-other.pool.priority, job) < (-unit.pool.priority, mine)
            if is_first and set(limits_of(other)) <= set(limits_of(unit)):
                self.fail(
                    f"{unit.name} (job {mine}, priority {unit.pool.priority}) is let in before {name} "
                    f"(job {job}, priority {other.pool.priority})"
                )

    def committing(self, actions: "Sequence[AnyAction]") -> None:
        self._places = self._now()

    def manager_started(self) -> None:
        if self._places and self._places != (now := self._now()):
            self.fail(f"the queue was {self._places}, and a new manager has {now}")

    def _now(self) -> list[tuple[int, str | None, int | None]]:
        return [(job.job, job.limit, job.position) for job in self.world.jobs() if job.limit is not None]


POOL_CHECKERS: tuple[type[Checker], ...] = (PoolLimit, PoolIdle, PoolOrder)

"""Laws about bounds and what is done before exec: a breach has one result, with its numbers; the bound that is shown is
the one that was set last; a step that fails is told as it was; without what a program runs is shown.
"""

from typing import TYPE_CHECKING

from supervisord_py.core.actions import KillTree, SignalProcesses, SpawnProcess
from supervisord_py.core.events import (
    Breach,
    LimitExceeded,
    MainFollowed,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    UnitsLoaded,
)
from supervisord_py.core.view import unit_status
from supervisord_py.model.context import Resources
from supervisord_py.model.names import is_aux_owner
from supervisord_py.model.states import OomPolicy, Role
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.observer import Life

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

NO_LIFE = ("dead", "failed", "dependency", "auto-restart", "auto-restart-queued", "waiting", "listening")
DYING = ("stop-sigkill", "final-sigkill", "stuck")
RESULTS = {"memory-max": "memory-limit", "tasks-max": "resources"}


class Breaches(Checker):
    """Who takes too much is ended at once, and that is written once, with the numbers; the result of the life says it,
    unless it had failed before.
    """

    name = "limits-breach"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._before: dict[str, tuple[str, str]] = {}
        """By unit: how its state and its result were after the step before."""

    def step(self, step: Step) -> None:
        if not self.world.profile.breaches:
            return
        event = step.event
        told = [record for record in step.effects.records if record.event == "unit.limit"]
        if isinstance(event, LimitExceeded):
            self._judge_sampled(step, event, [record.fields for record in told])
        elif isinstance(event, ProcessExited) and event.breach is not None:
            self._judge_killed(event, event.breach, [record.fields for record in told])
        elif told:
            self.fail(f"a breach of {told[0].unit} is told, and there was none")
        signalled = [each.unit for each in step.effects.actions if isinstance(each, KillTree | SignalProcesses)]
        for name in (*(record.unit for record in step.effects.records if record.unit), *signalled):
            state = self.world.manager.ledger.state(name)
            self._before[name] = state.sub.value, state.result.value

    def _judge_sampled(self, step: Step, event: LimitExceeded, told: list[dict[str, object]]) -> None:
        life, name = self.world.seen.lives.get(event.unit), event.unit
        sub, result = self._before.get(name, ("dead", "success"))
        if life is None or life.invocation != event.invocation or name not in self.world.manager_units():
            if told:
                self.fail(f"{name}: what a life that is over had taken is told of another")
            return
        if told != [_numbers(event.breach)]:
            self.fail(f"{name} had {event.breach.value} of {event.breach.limit}, and {told} is told")
        is_over = sub == "exited" and not self.world.manager.ledger.state(name).leftover
        if sub in NO_LIFE or sub in DYING or is_over:
            return
        policy = OomPolicy.KILL
        if event.by_kernel and life.unit.service is not None:
            policy = life.unit.service.oom_policy
        if policy is not OomPolicy.KILL:
            self._judge_policy(name, policy, sub, result)
            return
        kills = [each for each in step.effects.actions if isinstance(each, KillTree | SignalProcesses)]
        service = life.unit.service
        final = 9 if service is None else service.kill.final_signal
        if not any(each.unit == name and each.signal == final for each in kills):
            self.fail(f"{name}, {sub}, takes more than it may, and goes on")
        status = unit_status(self.world.manager, name)
        own = "oom-kill" if event.by_kernel else RESULTS[event.breach.limit]
        wanted = own if result == "success" else result
        if status.result != wanted:
            self.fail(f"{name} took more than it may, and its result is {status.result} (it was {result})")

    def _judge_policy(self, name: str, policy: OomPolicy, sub: str, result: str) -> None:
        """The kernel has killed another process than the main one."""
        status = unit_status(self.world.manager, name)
        if policy is OomPolicy.CONTINUE and (status.sub_state, status.result) != (sub, result):
            self.fail(f"{name} is to go on when the kernel kills a process of it, and is {status.sub_state}")
        ends = sub in ("running", "start", "start-post", "start-pre", "condition", "reload")
        if policy is OomPolicy.STOP and ends and (status.sub_state == sub or status.result == "success"):
            self.fail(f"{name} is to end when the kernel kills a process of it, and is {status.sub_state}")

    def _judge_killed(self, event: ProcessExited, breach: Breach, told: list[dict[str, object]]) -> None:
        asked = self.world.seen.spawned.get(event.spawn_id)
        if asked is None or is_aux_owner(asked.unit) or not event.main:
            return
        name, life = asked.unit, self.world.seen.life_of(event.spawn_id)
        if life is None:
            return
        if told != [_numbers(breach)]:
            self.fail(f"{name} was killed because its memory was full, and {told} is told")
        _, result = self._before.get(name, ("dead", "success"))
        status = unit_status(self.world.manager, name)
        is_pardoned = life.is_clean(event.status) and _goes_on(life)
        if asked.role is not Role.MAIN or is_pardoned or status.invocation != life.invocation:
            return
        # Of who was being stopped because of another that is the result.
        if result == "success" and status.result not in ("oom-kill", "dependency"):
            self.fail(f"{name} was killed because its memory was full, and its result is {status.result}")


def _goes_on(life: Life) -> bool:
    return life.unit.service is not None and life.unit.service.oom_policy is OomPolicy.CONTINUE


def _numbers(breach: Breach) -> dict[str, object]:
    return {"limit": breach.limit, "value": breach.value, "most": breach.most, "mechanism": breach.mechanism}


class Bounds(Checker):
    """The bounds that are said to hold for a process are those that it was made with, or was given last."""

    name = "limits-bounds"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._bounds: dict[str, tuple[str, Resources]] = {}
        """By unit: its life, and what holds for that."""
        self._is_changed = False
        """Something has happened that what is said may follow from."""

    def step(self, step: Step) -> None:
        event = step.event
        if not self.world.profile.new_bounds:
            return
        if isinstance(event, UnitsLoaded):
            self._is_changed = True
            for name in event.limited:
                loaded = event.units.units.get(name)
                if name in self._bounds and loaded is not None and loaded.service is not None:
                    self._bounds[name] = self._bounds[name][0], loaded.service.context.resources
        for action in step.effects.actions:
            if not isinstance(action, SpawnProcess) or is_aux_owner(action.unit):
                continue
            self._is_changed = True
            if self._bounds.get(action.unit, ("", None))[0] != action.invocation:
                text = self.world.manager.ledger.texts.get(action.unit)
                if text is not None and text.service is not None:
                    self._bounds[action.unit] = action.invocation, text.service.context.resources

    def committed(self) -> None:
        if not self._is_changed:
            return
        self._is_changed = False
        lives = self.world.manager.ledger.texts
        for name, (invocation, bounds) in self._bounds.items():
            life, text = self.world.seen.lives.get(name), lives.get(name)
            if life is None or life.invocation != invocation or not life.main_running or text is None:
                continue
            said = None if text.service is None else text.service.context.resources
            if said != bounds:
                self.fail(f"{name} is said to be bounded by {said}, and it is by {bounds}")


class FailedSteps(Checker):
    """A process that never ran its program is told by the step that failed, and what that was about; so is the life
    that ends by it.
    """

    name = "failed-steps"

    def step(self, step: Step) -> None:
        event = step.event
        if not isinstance(event, SpawnFailed) or is_aux_owner(self.world.seen.spawned[event.spawn_id].unit):
            return
        for record in step.effects.records:
            if record.event == "unit.exited":
                told = tuple(record.fields.get(key) for key in ("step", "errno", "detail", "pid"))
                if told != (event.step, event.errno, event.detail, None):
                    self.fail(f"the step {event.step} of {record.unit} failed ({event.detail}), and {told} is told")
            if record.event not in ("unit.restart-scheduled", "unit.failed"):
                continue
            if self.world.seen.spawned[event.spawn_id].role is Role.MAIN and record.fields["result"] in (
                "exit-code", "resources"
            ):  # fmt: skip
                self._judge(event, str(record.fields.get("message")), str(record.fields["result"]))

    def _judge(self, event: SpawnFailed, message: str, result: str) -> None:
        if message.startswith("it exceeded "):
            # Who took too much had failed before.
            return
        if event.detail not in message:
            self.fail(f"the message of a life that ended by the step {event.step} does not say why: {message}")
        wanted = "resources" if event.step in ("fork", "environment-file") else "exit-code"
        if result != wanted:
            self.fail(f"a life that ended by the step {event.step} has the result {result}")


class Degraded(Checker):
    """Without what the main process runs is shown as long as that lives, and of nothing else."""

    name = "degraded"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._told: dict[str, tuple[int, tuple[str, ...]]] = {}
        """By unit: the newest main process that was told of, and without what it runs."""
        self._start: dict[str, tuple[str, ...]] = {}
        """By forking unit: without what its start command ran last."""

    def step(self, step: Step) -> None:
        event = step.event
        if not self.world.profile.degraded or not isinstance(
            event, ProcessSpawned | ProcessExited | NotifyReceived | MainFollowed
        ):
            return
        spawn_id = event.spawn_id
        asked = None if spawn_id is None else self.world.seen.spawned.get(spawn_id)
        if asked is None or spawn_id is None or is_aux_owner(asked.unit):
            return
        if isinstance(event, ProcessSpawned) and asked.role is Role.MAIN:
            self._told[asked.unit] = spawn_id, event.degraded
        elif isinstance(event, ProcessSpawned) and asked.role is Role.START:
            self._start[asked.unit] = event.degraded
        elif isinstance(event, MainFollowed) and event.pid is not None:
            # who was left behind runs as who left him
            self._told[asked.unit] = spawn_id, self._start.get(asked.unit, ())
        life = self.world.seen.lives.get(asked.unit)
        main, degraded = self._told.get(asked.unit, (0, ()))
        is_running = life is not None and life.running.get(main) is Role.MAIN
        shown = unit_status(self.world.manager, asked.unit).degraded
        if shown != (degraded if is_running else ()):
            self.fail(f"{asked.unit} is said to run without {shown}, and it does without {degraded}")


LIMIT_CHECKERS: tuple[type[Checker], ...] = (Breaches, Bounds, FailedSteps, Degraded)

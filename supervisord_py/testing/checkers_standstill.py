"""Laws about units that stand still, about hooks, and about a supervisor that ends when nothing is left to do."""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from supervisord_py.core.actions import KillTree, SpawnProcess, StopFollowing, ThawUnit
from supervisord_py.core.events import DeadlineReached, ProcessExited, ProcessSpawned, SpawnFailed
from supervisord_py.core.view import rollout_units, unit_status
from supervisord_py.model.hooks import CALLING
from supervisord_py.model.names import base_unit
from supervisord_py.model.states import Role
from supervisord_py.testing.beside import BESIDE
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.clock import MILLISECOND_NS

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

RUNNING_MAX = 8
BLAMES = frozenset({"unit.watchdog", "unit.progress-stalled", "unit.health"})


class Pause(Checker):
    """A unit that is said to be paused stands still, and nothing is held against it meanwhile; whatever stands still
    and is not paused goes on soon; a pause is not counted as time that it has run.
    """

    name = "pause"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._paused: dict[str, int] = {}
        """By unit: since when it is paused."""
        self._thawing: set[str] = set()
        """Paused ones that are about to go on."""
        self._stood: dict[str, tuple[str, int]] = {}
        """By unit: the life, and how long it has stood still."""

    def step(self, step: Step) -> None:
        seen, now_ns = self.world.seen, step.now.mono_ns
        self._note_thaws(step)
        for record in step.effects.records:
            name = record.unit or ""
            life = seen.lives.get(name)
            if record.event == "unit.paused":
                self._thawing.discard(name)
                self._paused[name] = now_ns
            elif (
                record.event in BLAMES
                and name in self._paused
                and record.fields.get("message") != "it said WATCHDOG=trigger"
            ):
                self.fail(f"{name} is paused, and {record.event} is held against it")
            elif record.event in ("unit.resumed", "unit.stopping", "unit.exited", "unit.stopped", "unit.failed"):
                self._let_go(name, now_ns)
            if record.event == "unit.stopping" and life is not None and life.unit.service is not None:
                text = str(record.fields.get("reason"))
                longest_ns = life.unit.service.runtime_max_ns
                invocation, stood_ns = self._stood.get(name, ("", 0))
                if text != "it has run for its runtime-max-sec" or longest_ns is None or invocation != life.invocation:
                    continue
                if now_ns - life.begun_ns - stood_ns < longest_ns:
                    self.fail(
                        f"{name} has not run for its longest time: it was paused for {stood_ns // MILLISECOND_NS} ms"
                    )

    def _note_thaws(self, step: Step) -> None:
        self._thawing.update(action.unit for action in step.effects.actions if isinstance(action, ThawUnit))
        self._thawing.intersection_update(self._paused)

    def _let_go(self, name: str, now_ns: int) -> None:
        since_ns, life = self._paused.pop(name, None), self.world.seen.lives.get(name)
        if since_ns is not None and life is not None:
            invocation, stood_ns = self._stood.get(name, ("", 0))
            before_ns = stood_ns if invocation == life.invocation else 0
            self._stood[name] = life.invocation, before_ns + now_ns - since_ns

    def committed(self) -> None:
        frozen = self.world.kernel.freezer.frozen
        for name in self._paused:
            if name not in frozen and name not in self._thawing:
                self.fail(f"{name} is said to be paused, and its processes run")

    def settled(self) -> None:
        left = sorted(set(self.world.kernel.freezer.frozen) & set(self.world.kernel.trees))
        if left:
            self.fail(f"{left} stand still for ever")


class HookCalls(Checker):
    """Every record that a hook is for calls it exactly once, unless too many wait (and that is told); no more than a
    few run at a time, and each is killed as a tree when its time is over.
    """

    name = "hook-calls"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._owed: dict[tuple[str, tuple[str, ...], str], int] = {}
        """How many calls are owed: by unit, command and event."""
        self._running: dict[int, int] = {}
        """By spawn: when its time is over, which counts from its start."""
        self._spans_ns: dict[int, int] = {}
        """By spawn that has not started yet: how long it has."""
        self._killed: set[int] = set()
        self._dropped = False

    def step(self, step: Step) -> None:
        seen, now_ns = self.world.seen, step.now.mono_ns
        self._note_ends(step)
        for record in step.effects.records:
            self._dropped = self._dropped or record.event == "hook.dropped"
            if record.fields.get("role") == Role.HOOK.value:
                continue
            for hook in seen.settings.hooks:
                if record.event in CALLING and fnmatchcase(record.event, hook.event):
                    key = record.unit or "", hook.command.words, record.event
                    self._owed[key] = self._owed.get(key, 0) + 1
        for action in step.effects.actions:
            if isinstance(action, SpawnProcess) and action.role is Role.HOOK:
                self._note_call(action, now_ns)
            if isinstance(action, KillTree):
                self._killed.add(int(action.unit.partition("!")[2] or 0))
        if isinstance(step.event, ProcessSpawned) and step.event.spawn_id in self._spans_ns:
            self._running[step.event.spawn_id] = now_ns + self._spans_ns.pop(step.event.spawn_id)
        if len(self._running) > RUNNING_MAX:
            self.fail(f"{len(self._running)} hooks run at a time")
        if isinstance(step.event, DeadlineReached):
            late = [each for each, at_ns in self._running.items() if at_ns <= now_ns and each not in self._killed]
            if late:
                self.fail(f"the time of the hooks {late} is over, and they are not killed")

    def _note_call(self, action: SpawnProcess, now_ns: int) -> None:
        event = dict(action.environment)["SUPERVISORD_PY_EVENT"]
        key = base_unit(action.unit), action.command.words, event
        if not self._owed.get(key):
            self.fail(
                f"the hook {' '.join(action.command.words)} is called for {event} of {key[0]}, which nobody wrote"
            )
        self._owed[key] -= 1
        self._spans_ns[action.spawn_id] = self._timeout_ns(action)
        self._running[action.spawn_id] = now_ns + self._spans_ns[action.spawn_id]

    def _timeout_ns(self, action: SpawnProcess) -> int:
        """The longest that any hook of this command was ever given."""
        known = self.world.seen.hooks_seen
        return max(hook.timeout_ns for hook in known if hook.command == action.command)

    def _note_ends(self, step: Step) -> None:
        event = step.event
        if isinstance(event, SpawnFailed | ProcessExited) and event.spawn_id in self._running:
            del self._running[event.spawn_id]
            records = [r for r in step.effects.records if r.event == "unit.exited"]
            if [r.fields.get("spawn_id") for r in records] != [event.spawn_id]:
                self.fail(f"the end of hook #{event.spawn_id} is not written")

    def settled(self) -> None:
        left = {key: count for key, count in self._owed.items() if count}
        if left and not self._dropped:
            self.fail(f"hooks were never called: {left}")
        for owner, tree in self.world.kernel.trees.items():
            for process in tree.values():
                if process.spawn is not None and process.spawn.role is Role.HOOK:
                    self.fail(f"a hook of {owner} runs for ever (pid {process.pid})")


class Beside(Checker):
    """Whatever runs beside a unit's life is in a tree of its own, and forgotten when that is empty."""

    name = "beside"

    def settled(self) -> None:
        for spawn_id, asked in self.world.seen.spawned.items():
            if asked.role not in BESIDE:
                continue
            spawn = self.world.kernel.spawns.get(spawn_id)
            tree = self.world.kernel.trees.get(asked.unit)
            if spawn is not None and spawn.over and tree:
                self.fail(f"#{spawn_id} has ended, and {len(tree)} processes of it are left")


class UntilEmpty(Checker):
    """In the mode until-empty the supervisor ends when nothing runs, waits or comes back by itself, and not before."""

    name = "until-empty"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._is_begun = False
        self._scheduled: set[str] = set()
        """Units that are restarted by themselves."""

    def step(self, step: Step) -> None:
        seen = self.world.seen
        scheduled: set[str] = set()
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.restart-scheduled":
                self._scheduled.add(name)
                scheduled.add(name)
            elif record.event == "job.finished" and name not in scheduled:
                # what it waited for may not come
                self._scheduled.discard(name)
            elif record.event in ("unit.starting", "unit.stopped", "unit.failed", "unit.removed"):
                self._scheduled.discard(name)
            if record.event != "daemon.stopping" or self._is_begun:
                continue
            self._is_begun = True
            if record.unit is not None or not str(record.fields.get("reason")).startswith("nothing is left to do"):
                continue
            if not seen.settings.until_empty:
                self.fail("the supervisor ends because nothing is left to do, and it is to stay")
            if left := self._work(step):
                self.fail(f"the supervisor ends because nothing is left to do, and there is {left}")

    def committed(self) -> None:
        seen = self.world.seen
        is_over = self._is_begun or seen.shutdown is not None or seen.forced
        if is_over or not seen.settings.until_empty or not (seen.units.units or seen.units.bad):
            return
        if not self._work(None) and not self.world.jobs() and not self._may_come_back():
            self.fail("nothing is left to do, and the supervisor goes on")

    def _work(self, step: Step | None) -> list[str]:
        """What runs, or will by itself."""
        seen = self.world.seen
        actions = step.effects.actions if step is not None else []
        over = {action.spawn_id for action in actions if isinstance(action, StopFollowing)}
        alive = [
            name
            for name, life in seen.lives.items()
            if set(life.pending) - over | set(life.running) and not (life.remains and not life.main_exists)
        ]
        return [*alive, *sorted(self._scheduled)]

    def _may_come_back(self) -> bool:
        """Whether the clock may start something, or what is there may be more than its processes."""
        for name in self.world.manager_units():
            unit = self.world.seen.texts.get(name)
            if unit is None or unit.service is None:
                continue
            status = unit_status(self.world.manager, name)
            at_rest = status.sub_state in ("dead", "failed", "dependency", "exited")
            has_retry = status.active_state == "quarantined" and unit.quarantine.retry_after_ns is not None
            is_upheld = any(edge.unit == name for other in self.world.seen.texts.values() for edge in other.upholds)
            if not at_rest or has_retry or is_upheld or unit.timer is not None:
                return True
        return bool(rollout_units(self.world.manager))


STANDSTILL_CHECKERS: tuple[type[Checker], ...] = (Pause, HookCalls, Beside, UntilEmpty)

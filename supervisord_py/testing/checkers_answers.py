"""Laws about answers, restarts and state: what people are told, what happens by itself, and what the core remembers."""

from typing import TYPE_CHECKING

from supervisord_py.core.actions import FollowMain, Reply, SpawnProcess
from supervisord_py.core.events import CommandRequested, DeadlineReached, ProcessExited, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.core.processes import looks_for_successor
from supervisord_py.core.view import unit_status
from supervisord_py.model.states import OnDependencyFailure, Role
from supervisord_py.model.unit import RestartPolicy, Unit
from supervisord_py.testing.checkers import Checker, Step, ordered_units
from supervisord_py.testing.checkers_processes import BEGINNING
from supervisord_py.testing.checkers_sockets import waits
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.observer import STARTING_VERBS
from supervisord_py.testing.processes import NOTIFYING
from supervisord_py.testing.timers import zone_of

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

FOLD_EVERY = 16
"""Commits between two comparisons of the folded changes with a whole snapshot."""

TWIN_EVERY = 48
"""Commits between two twins."""

TWIN_SEEDS = 3
"""A twin doubles the cost of a world: every third one has it."""


_SETTLED = ("dead", "failed", "dependency", "exited", "waiting", "listening")
"""What a unit that is not running may be in for ever."""


class OneReply(Checker):
    """Each request gets exactly one reply (unless its client or the manager is gone), and nobody else gets one."""

    name = "one-reply"

    def replied(self, reply: Reply) -> None:
        request = self.world.clients.waiting.get(reply.request_id)
        if request is None or not request.taken:
            self.fail(f"a reply to request {reply.request_id}, which nobody asked")
            return
        if request.answered:
            self.fail(f"request {reply.request_id} is answered twice")
        self.world.clients.see(request, reply)

    def settled(self) -> None:
        for number, request in self.world.clients.waiting.items():
            if request.taken and not request.answered and not request.gone:
                self.fail(f"request {number} ({request.event.verb} {' '.join(request.event.units)}) was never answered")

    def ended(self) -> None:
        self.settled()


class PlanChangesNothing(Checker):
    """A plan is answered at once and changes nothing; a request without waiting is answered at once."""

    name = "plan"

    def step(self, step: Step) -> None:
        event = step.event
        if not isinstance(event, CommandRequested):
            return
        if event.plan and (step.effects.actions or step.changes):
            self.fail(f"the plan of {event.verb} {' '.join(event.units)} did something")
        answered = any(reply.request_id == event.request_id for reply in step.effects.replies)
        if (event.plan or not event.wait) and not answered:
            self.fail(f"request {event.request_id} does not wait and is not answered at once")


class SameTokenSameJobs(Checker):
    """The same token again attaches to the jobs of the first request: it makes no second job."""

    name = "token"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._jobs: dict[str, tuple[int, ...]] = {}

    def replied(self, reply: Reply) -> None:
        request = self.world.clients.waiting.get(reply.request_id)
        if request is None or not request.event.token or reply.refusal is not None or request.event.plan:
            return
        token, ids = request.event.token, tuple(sorted(outcome.job for outcome in reply.outcomes))
        if self._jobs.setdefault(token, ids) != ids:
            self.fail(f"{token} made jobs {ids} after {self._jobs[token]}")


class RestartDelay(Checker):
    """An automatic restart is never made before its delay, and the delays grow as the policy says."""

    name = "restart-delay"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._attempts: dict[str, int] = {}
        self._not_before: dict[str, int] = {}
        self._ended_ns: dict[str, int] = {}

    def step(self, step: Step) -> None:
        seen = self.world.seen
        event, now_ns = step.event, step.now.mono_ns
        ordered = ordered_units(step)
        if isinstance(event, CommandRequested | UnitsLoaded):
            # people may start, pull in or pardon anything: the count begins again, which only makes this checker milder
            self._attempts.clear()
            self._not_before.clear()
        self._forget(ordered)
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.stopped" and name in seen.lives and seen.lives[name].oneshot:
                # its success is the health of a oneshot
                self._attempts.pop(name, None)
            if record.event in ("unit.stopped", "unit.failed"):
                # a restart that was scheduled has been called off
                self._not_before.pop(name, None)
            if record.event == "unit.restart-scheduled":
                life = seen.lives.get(name)
                service = life.unit.service if life else None
                if life is None or service is None:
                    self.fail(f"{name}: a restart is scheduled without a life")
                    return
                policy = service.restart
                reset_ns = policy.reset_ns
                if reset_ns is not None and now_ns - life.begun_ns >= reset_ns:
                    self._attempts.pop(name, None)
                self._attempts[name] = attempt = self._attempts.get(name, 0) + 1
                is_asked = name in {job.unit for job in self.world.jobs()}
                if name not in seen.units.units and (text := seen.text_of_core(name)) is not None and text.service:
                    # which of several older texts a unit without a file runs by is the core's to know
                    policy = text.service.restart
                if not is_asked:
                    # (if somebody has asked for a start that waits for the end of this life, there is no delay)
                    self._not_before[name] = now_ns + least_delay_ns(policy, attempt)
        for action in step.effects.actions:
            if isinstance(action, SpawnProcess) and action.role in BEGINNING:
                earliest_ns = self._not_before.pop(action.unit, 0)
                if now_ns < earliest_ns:
                    self.fail(f"{action.unit} restarts {(earliest_ns - now_ns) // MILLISECOND_NS} ms too early")
        # a rollout goes on when it sees the end of a life, so its order comes after that
        self._forget(ordered)

    def _forget(self, ordered: frozenset[str]) -> None:
        for name in ordered:
            self._attempts.pop(name, None)
            self._not_before.pop(name, None)

    def manager_started(self) -> None:
        """A restart of the manager shortens no delay: what is noted stays noted."""


def least_delay_ns(policy: RestartPolicy, attempt: int) -> int:
    """The delay of the law, by floating point (the core has integers) and a thousandth less: a second opinion."""
    first, last, steps = policy.delay_ns, policy.max_delay_ns, policy.steps
    if attempt <= 1 or steps == 0 or last is None or last <= first:
        delay = float(first)
    elif attempt > steps:
        delay = float(last)
    else:
        least = max(first, 1000)
        delay = least * (last / least) ** ((attempt - 1) / steps)
    return int(delay * 0.999)


class FailureCount(Checker):
    """A unit that has failed as often as its policy allows, with no healthy time and nobody's word between, is not
    restarted by itself.
    """

    name = "failure-count"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._failures: dict[str, int] = {}
        self._counted: dict[str, str] = {}
        self._restarted: dict[str, None] = {}
        self._ordered: dict[str, str] = {}
        """By unit: the life whose end was asked for; it counts for nothing."""

    def step(self, step: Step) -> None:
        seen = self.world.seen
        for record in step.effects.records:
            life = seen.lives.get(record.unit or "")
            if record.event == "job.queued" and record.fields.get("type") in ("stop", "restart") and life is not None:
                self._ordered[life.unit.name] = life.invocation
                self._failures.pop(life.unit.name, None)
        for action in step.effects.actions:
            # a start that was asked for begins the count anew; only what the core restarts by itself goes on counting
            if not isinstance(action, SpawnProcess) or self._is_same_life(action) or action.role not in BEGINNING:
                continue
            if self._restarted.pop(action.unit, None) is None:
                self._failures.pop(action.unit, None)
        if isinstance(step.event, CommandRequested | UnitsLoaded):
            self._failures.clear()
            self._restarted.clear()
            return
        if isinstance(step.event, ProcessExited):
            life = seen.life_of(step.event.spawn_id)
            service = life.unit.service if life else None
            role = seen.spawned[step.event.spawn_id].role
            if life is not None and service is not None and role is Role.MAIN and step.event.main:
                reset_ns = service.restart.reset_ns
                if reset_ns is not None and step.now.mono_ns - life.begun_ns >= reset_ns:
                    self._failures.pop(life.unit.name, None)
                is_counted = self._ordered.get(life.unit.name) != life.invocation
                clean = life.is_clean(step.event.status)
                if is_counted and not clean and self._counted.get(life.unit.name) != life.invocation:
                    self._counted[life.unit.name] = life.invocation
                    self._failures[life.unit.name] = self._failures.get(life.unit.name, 0) + 1
        for record in step.effects.records:
            if record.event == "unit.restart-scheduled" and record.unit is not None:
                self._restarted[record.unit] = None
                life = seen.lives.get(record.unit)
                limit = life.unit.service.restart.failures if life is not None and life.unit.service else 0
                if 0 < limit <= self._failures.get(record.unit, 0):
                    self.fail(f"{record.unit} is restarted after {self._failures[record.unit]} failures of {limit}")
        for name in ordered_units(step):
            # what a rollout goes on with has been asked for, and its order comes after the end that it has seen
            self._failures.pop(name, None)
            self._restarted.pop(name, None)

    def _is_same_life(self, action: SpawnProcess) -> bool:
        life = self.world.seen.lives.get(action.unit)
        return life is not None and life.invocation == action.invocation


class StopWins(Checker):
    """What somebody has stopped does not run, and does not start by itself: only for a request, or pulled in by
    another unit's start.
    """

    name = "stop-wins"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._asked: set[str] = set()
        self._stopped: set[str] = set()
        self._tokens: set[str] = set()
        self._files: set[str] = set()

    def step(self, step: Step) -> None:
        seen = self.world.seen
        event = step.event
        if isinstance(event, CommandRequested) and not event.plan and not is_refused(step, event):
            is_repeated = event.token in self._tokens
            if event.token:
                self._tokens.add(event.token)
            # what is said again is no new order
            if event.verb == "stop" and not is_repeated:
                self._asked.update(event.units)
            elif event.verb in STARTING_VERBS:
                for name in event.units:
                    self._forgive({name} | self._pulled_by(name))
        if isinstance(event, UnitsLoaded):
            # what is new is started; a reload starts nothing else that somebody has stopped
            old, self._files = self._files, set(event.units.units)
            self._asked &= old & self._files
            self._stopped &= old & self._files
        for record in step.effects.records:
            name, kind = record.unit or "", record.fields.get("type")
            if (
                record.event in ("unit.failed", "unit.quarantined", "unit.stopped", "job.finished")
                and name in seen.texts
            ):
                # what a unit names for its end is started by it; that may change a job that was there
                text = seen.texts[name]
                for hook in (*text.on_failure, *text.on_success, *text.quarantine.on_quarantine):
                    if hook in {job.unit for job in self.world.jobs()}:
                        self._forgive({hook} | self._pulled_by(hook))
            if record.event == "unit.removed":
                # another may come by its name
                self._stopped.discard(name)
            if record.event == "job.queued" and kind in ("start", "restart"):
                self._asked.discard(name)
                if record.fields.get("origin") != "automatic":
                    self._forgive({name} | self._pulled_by(name))
            if record.event == "job.finished" and name in self._asked and kind == "stop":
                self._asked.discard(name)
                if record.fields.get("result") != "done":
                    continue
                self._stopped.add(name)
                alive = self.world.kernel.trees.get(name)
                if alive and not seen.may_leave_processes(name):
                    self.fail(f"the stop of {name} is done and {len(alive)} processes of it are left")
        for unit in seen.texts.values() if self._stopped else ():
            upheld = self._stopped.intersection(edge.unit for edge in unit.upholds)
            if not upheld or unit.name not in self.world.manager_units():
                continue
            if unit_status(self.world.manager, unit.name).active_state in ("active", "reloading"):
                # what an active unit upholds is started again, as systemd does it
                self._stopped -= upheld
        for action in step.effects.actions:
            if isinstance(action, SpawnProcess) and action.unit in self._stopped and action.role is not Role.STOP_POST:
                self.fail(f"{action.unit} was stopped and starts by itself")

    def _forgive(self, names: set[str]) -> None:
        """These were asked for, or are needed by what was."""
        self._asked -= names
        self._stopped -= names

    def _pulled_by(self, name: str) -> set[str]:
        """Everything that a start of ``name`` pulls in, without itself."""
        texts = self.world.seen.texts
        seen: dict[str, None] = {}
        todo = [name]
        while todo:
            unit = texts.get(todo.pop())
            for edge in (*unit.requires, *unit.wants, *unit.binds_to) if unit else ():
                if edge.unit not in seen:
                    seen[edge.unit] = None
                    todo.append(edge.unit)
        return set(seen) - {name}


def is_refused(step: Step, event: CommandRequested) -> bool:
    """Whether the request of a step is refused."""
    replies = step.effects.replies
    return any(reply.request_id == event.request_id and reply.refusal is not None for reply in replies)


class StatusTruth(Checker):
    """Status says active only of what runs (and has said READY, if it is to), and never says dead of a main process
    that runs.
    """

    name = "status-truth"

    def step(self, step: Step) -> None:
        looked_for = {action.unit for action in step.effects.actions if isinstance(action, FollowMain)}
        for key in step.changes:
            name = key.removeprefix("unit/")
            # a forking unit whose main process has ended may have another one: its pid file is read again first
            if key.startswith("unit/") and name not in looked_for:
                self._check(name)

    def _check(self, name: str) -> None:
        unit = self.world.seen.texts.get(name)
        if unit is None or name in self.world.seen.targets or name not in self.world.manager_units():
            return
        status = unit_status(self.world.manager, name)
        life = self.world.seen.lives.get(name)
        # a unit that remains after its exit may be reloaded too
        text = life.unit.service if life is not None else None
        remains = life is not None and (life.remained or (text is not None and text.remain_after_exit))
        if status.sub_state == "running" or (status.sub_state == "reload" and not remains):
            if life is not None and life.is_up_without_main:
                return
            if looks_for_successor(self.world.manager.ledger, name):
                # its daemon has ended, and its pid file is asked who goes on
                return
            if life is None or not life.main_running:
                self.fail(f"{name} is said to be {status.sub_state}, and its main process is not running")
                return
            service = life.unit.service
            spawn_id = next(number for number, role in life.running.items() if role is Role.MAIN)
            if service is not None and service.type in NOTIFYING:
                spawn = self.world.kernel.spawns[spawn_id]
                # (what was ready by the text of another time stays so)
                if not spawn.ready_sent:
                    self.fail(f"{name} is said to be active, and it has not said READY")
        if status.sub_state in ("dead", "failed") and life is not None and life.main_running:
            self.fail(f"{name} is said to be {status.sub_state}, and its main process runs")
        if status.sub_state == "exited" and life is not None and life.main_exists:
            self.fail(f"{name} is said to have exited, and its main process runs")


class Settled(Checker):
    """When the faults are over every job ends, and what the core believes of each unit is what the kernel has."""

    name = "settled"

    def settled(self) -> None:
        world = self.world
        left = [
            f"{job.type} {job.unit} ({job.state}{', waits for ' if job.waiting_for else ''}{' '.join(job.waiting_for)})"
            for job in (*world.jobs(), *world.rollout_jobs())
        ]
        if left:
            self.fail(f"jobs never end: {', '.join(left)}")
        for name in sorted(world.manager_units()):
            unit = world.seen.texts.get(name)
            if unit is None or name in world.seen.targets:
                continue
            status = unit_status(world.manager, name)
            mains = [
                process
                for process in world.kernel.trees.get(name, {}).values()
                if process.spawn is not None and process.spawn.role is Role.MAIN and process.spawn.main is process
            ]
            is_up = status.sub_state in ("running", "reload")
            tree, life = world.kernel.trees.get(name), world.seen.lives.get(name)
            if is_up and not mains and tree and life is not None and life.is_forking:
                # nobody can say which of its processes is the main one
                continue
            if is_up and (not mains or status.pid != mains[0].pid):
                self.fail(
                    f"{name} is {status.sub_state} with pid {status.pid}, the kernel has {[p.pid for p in mains]}"
                )
            if status.sub_state in ("dead", "failed", "dependency", "exited") and mains:
                self.fail(f"{name} is {status.sub_state}, the kernel has pid {mains[0].pid} as its main process")
            may_be_stuck = unit.service is not None and not unit.service.kill.send_sigkill
            if status.sub_state == "stuck" and may_be_stuck:
                continue
            if status.sub_state == "stub" and len(rest := world.kernel.trees.get(name, {})):
                continue
            if not is_up and status.sub_state not in _SETTLED:
                self.fail(f"{name} is left in {status.active_state}/{status.sub_state} for ever")
            rest = world.kernel.trees.get(name, {})
            if rest and not mains and status.sub_state != "exited" and not world.seen.may_leave_processes(name):
                self.fail(f"{name} is {status.sub_state} and {len(rest)} processes of it are left")


class Recovers(Checker):
    """A unit whose start failed for its dependency is started when the dependency has recovered, unless it was
    stopped since.
    """

    name = "recovers"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._waiting: dict[str, bool] = {}
        """By unit: whether a job of it ended so; one that was refused may contradict others, and is not waiting."""

    def step(self, step: Step) -> None:
        event = step.event
        if isinstance(event, CommandRequested) and not event.plan and event.verb in ("stop", "reset-failed"):
            for name in event.units:
                self._waiting.pop(name, None)
        if isinstance(event, UnitsLoaded):
            self._waiting.clear()
        for record in step.effects.records:
            name = record.unit or ""
            if record.event in ("unit.starting", "job.queued", "unit.removed"):
                self._waiting.pop(name, None)
            if record.event == "job.finished" and record.fields.get("result") in ("assert", "skipped"):
                # it has had its turn
                self._waiting.pop(name, None)
            is_bound_stop = record.event == "unit.stopped"
            if record.fields.get("type") == "verify-active":
                # to ask whether a unit is there never starts it
                continue
            if (record.event == "job.finished" or is_bound_stop) and record.fields.get("result") == "dependency":
                self._waiting[name] = is_bound_stop or record.fields.get("job") is not None

    def settled(self) -> None:
        texts = self.world.seen.texts
        for name, had_job in self._waiting.items():
            unit = texts.get(name) if name in self.world.seen.units.units else None
            if unit is None or unit.on_dependency_failure is OnDependencyFailure.FAIL or unit.conflicts:
                continue
            if any(name in other.conflicts for other in texts.values()) or not self._can_start(unit):
                continue
            status = unit_status(self.world.manager, name)
            if status.sub_state == "dependency" or (had_job and status.active_state == "inactive"):
                self.fail(f"{name} waits for a dependency, and all that it requires is up")

    def _can_start(self, unit: Unit) -> bool:
        seen, manager = self.world.seen, self.world.manager
        for edge in (*unit.requires, *unit.binds_to, *unit.requisite):
            if edge.unit not in self.world.manager_units():
                return False
            if unit_status(manager, edge.unit).active_state != "active":
                return False
            life = seen.lives.get(edge.unit)
            if waits(seen.texts[edge.unit]):
                # it is there as long as it is armed
                continue
            if seen.texts[edge.unit].service is not None and (life is None or not life.fulfils(edge)):
                return False
        return True


class Causes(Checker):
    """The cause of a record is an earlier record."""

    name = "causes"

    def step(self, step: Step) -> None:
        for number, record in step.numbered:
            # a lost record may still name one from before the loss, a beat one of its own batch
            limit = number or (step.now.seq + len(step.numbered) if step.now.seq else self.world.next_seq)
            if record.cause is not None and not 0 < record.cause < limit:
                self.fail(f"{record.event} of {record.unit}, record {number}, is caused by {record.cause}")


class NoInternalError(Checker):
    """Nothing happens to a unit that its state machine does not know: the core would write it down as its own bug."""

    name = "internal-error"

    def step(self, step: Step) -> None:
        for record in step.effects.records:
            message = str(record.fields.get("message", ""))
            if record.event == "unit.error" and message.startswith("internal error"):
                self.fail(f"{record.unit}: {message}")


class Deadline(Checker):
    """A deadline that was looked at is over: the next one lies ahead, or something was done."""

    name = "deadline"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._idle = 0

    def step(self, step: Step) -> None:
        deadline_ns = self.world.manager.deadline_ns()
        is_past = deadline_ns is not None and deadline_ns <= step.now.mono_ns
        did_nothing = not (step.effects.records or step.effects.actions or step.effects.replies or step.changes)
        self._idle = self._idle + 1 if isinstance(step.event, DeadlineReached) and is_past and did_nothing else 0
        if self._idle > 1:
            self.fail("the deadline is past, nothing is done about it, and it stays")


class Fold(Checker):
    """The changes told so far make up the whole state, and a manager that is restored from it has the same state."""

    name = "fold"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._commits = 0

    def committed(self) -> None:
        self._commits += 1
        if self._commits % FOLD_EVERY == 0:
            self._compare()

    def settled(self) -> None:
        self._compare()

    def _compare(self) -> None:
        world = self.world
        snapshot = world.manager.snapshot()
        if snapshot != world.state:
            self.fail(f"folded changes and snapshot differ: {_difference(world.state, snapshot)}")
        again = world.manager_type.restore(dict(snapshot), world.units).snapshot()
        if again != snapshot:
            self.fail(f"a restored manager's snapshot differs: {_difference(snapshot, again)}")


class Twin(Checker):
    """A manager restored from the state at any moment decides what the original decides from then on."""

    name = "twin"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._twin: Manager | None = None
        self._known: frozenset[int] = frozenset()
        self._commits = 0

    def committed(self) -> None:
        self._commits += 1
        world = self.world
        if world.seed % TWIN_SEEDS == 0 and self._commits % TWIN_EVERY == TWIN_EVERY // 8:
            self._twin = world.manager_type.restore(world.manager.snapshot(), world.units)
            self._twin.use_zones(zone_of)
            self._known = frozenset(world.clients.waiting)

    def manager_started(self) -> None:
        self._twin = None

    def step(self, step: Step) -> None:
        if self._twin is None:
            return
        effects = self._twin.handle(step.event, step.now)
        if effects.records != step.effects.records or effects.actions != step.effects.actions:
            self.fail(f"restored: {_effects(effects)}; original: {_effects(step.effects)}")
        replies = [reply for reply in step.effects.replies if reply.request_id not in self._known]
        if [reply for reply in effects.replies if reply.request_id not in self._known] != replies:
            self.fail(f"restored: {effects.replies}; original: {replies}")
        if self._twin.deadline_ns() != self.world.manager.deadline_ns():
            self.fail("the restored manager has another deadline than the original")


def _effects(effects: object) -> str:
    return str(effects)[:600]


def _difference(old: dict[str, str], new: dict[str, str]) -> str:
    keys = sorted(set(old) | set(new))
    return "; ".join(f"{key}: {old.get(key)} != {new.get(key)}" for key in keys if old.get(key) != new.get(key))[:600]


ANSWER_CHECKERS: tuple[type[Checker], ...] = (
    Settled, OneReply, PlanChangesNothing, SameTokenSameJobs, RestartDelay, FailureCount, StopWins, StatusTruth,
    Recovers, Causes, NoInternalError, Deadline, Fold, Twin,
)  # fmt: skip

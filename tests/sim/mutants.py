"""Planted bugs: each is one plausible slip in the core, applied in this process while a ``with`` block runs.

A checker that has never found anything proves nothing. Every bug here names the checker that has to find it
(sometimes several are close enough that whichever looks first is right). A bug is a replacement of one name in one
module of the core; the replacement calls the original where it can, so that the rest of the core stays what it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import (
    consequences,
    demand,
    engine,
    graph,
    health,
    ledger,
    life,
    probation,
    processes,
    rollout,
    shutdown,
    stopping,
    timed,
    transaction,
    watchdog,
)
from supervisord_py.core.actions import (
    Effects,
    ExitSupervisor,
    KeepState,
    KillTree,
    ReleaseUnit,
    SignalProcesses,
    SpawnProcess,
)
from supervisord_py.core.events import (
    CommandRequested,
    ConditionsChecked,
    DeadlineReached,
    Event,
    KeeperLost,
    Now,
    ProcessesSeen,
    ShutdownRequested,
)
from supervisord_py.core.jobs import STOP_LIKE
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.manager import Manager
from supervisord_py.core.rollout_state import RolloutPhase, RolloutStep
from supervisord_py.core.service import TRANSITIONS, Input
from supervisord_py.core.state import REST, Ending
from supervisord_py.model.states import Role, SubState
from supervisord_py.model.unit import ExitStatuses


class Mutant(Struct, frozen=True):
    """A planted bug: what is wrong, and which checkers may find it; the first of them has to."""

    what: str
    checkers: tuple[str, ...]
    plant: Callable[[], Any]
    """A context manager that plants it; what it gives is the manager class to test."""
    needs: str = ""
    """The classes of faults or features, with spaces between, without which no world can notice it."""
    more: Mapping[str, float] = {}
    """What the profiles of the worlds are given more of, so that it is noticed within some seeds."""


MUTANTS: dict[str, Mutant] = {}

TIMED = {
    "units_max": 14, "requests": 120, "gap_max_ms": 4000, "relations": 0, "timers": 0.5, "shutdown": 0, "conditions": 0,
    "daemon_reload": 0, "apply": 0, "rolling": 0, "exits_supervisor": 0,
}  # fmt: skip
"""Worlds in which timers fire for a while."""


def mutant(
    what: str, *checkers: str, needs: str = "", **more: float
) -> Callable[[Callable[[], Iterator[type[Manager]]]], None]:
    """Register a planted bug under its function's name."""

    def register(plant: Callable[[], Iterator[type[Manager]]]) -> None:
        MUTANTS[plant.__name__] = Mutant(what, checkers, contextmanager(plant), needs, more)

    return register


@contextmanager
def swapped(owner: Any, name: str, made: Callable[[Any], Any]) -> Iterator[type[Manager]]:
    """Replace ``owner.name`` by what ``made`` makes of it (an item, when the owner is a table)."""
    is_table = isinstance(owner, dict)
    original = owner[name] if is_table else getattr(owner, name)
    put = owner.__setitem__ if is_table else (lambda key, value: setattr(owner, key, value))
    put(name, made(original))
    try:
        yield Manager
    finally:
        put(name, original)


# processes


@mutant("a life that ended by itself counts as over although something of it is left", "no-overlap", "stop-wins")
def forgets_leftovers() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def is_gone(book: ledger.Ledger, name: str) -> bool:
            state = book.state(name)
            if state.ending is Ending.ITSELF and state.main is None and state.control is None:
                return True
            return bool(original(book, name))

        return is_gone

    with swapped(processes, "is_gone", made) as manager:
        yield manager


@mutant("SIGKILL is sent at once instead of the stop signal", "kill-timeout")
def kills_at_once() -> Iterator[type[Manager]]:
    with swapped(stopping, "_signal", lambda _: lambda book, name, signal, **_: book.act(KillTree(name, 9))) as manager:
        yield manager


@mutant("the stop time-out is half of what it should be", "kill-timeout")
def kills_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def stop_timeout_ns(book: ledger.Ledger, timeout_ns: int | None) -> int | None:
            value: int | None = original(book, timeout_ns)
            return value // 2 if value else value

        return stop_timeout_ns

    with swapped(processes, "stop_timeout_ns", made) as manager:
        yield manager


@mutant("a stop does not wait for the stops of those that come after it", "stop-order")
def ignores_stop_order() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, job: None if job.type in STOP_LIKE else original(book, job)

    with swapped(demand, "first_blocker", made) as manager:
        yield manager


@mutant("a strict dependency need not be there when its dependent's turn comes", "start-order")
def starts_without_dependency() -> Iterator[type[Manager]]:
    with swapped(demand, "missing", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant("a start neither stops nor looks at what it conflicts with", "conflicts", needs="conflicts")
def ignores_conflicts() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda self, key, other, pull: None if pull.conflict else original(self, key, other, pull)

    with (
        swapped(transaction._Builder, "_pull_stop", made) as manager,
        swapped(demand, "standing_conflict", lambda _: lambda book, name: None),
    ):
        yield manager


@mutant("a notifying service is up as soon as its program runs", "status-truth", "start-order", "probes")
def says_ready_too_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, ended: life.became_up(book, name)

    with swapped(TRANSITIONS, (SubState.START, Input.SPAWNED), made) as manager:
        yield manager


@mutant("the exits of commands that are not main are not recorded", "exit-recorded", "hook-calls")
def forgets_control_exits() -> Iterator[type[Manager]]:
    class Forgetful(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            effects.records = [
                record
                for record in effects.records
                if record.event != "unit.exited" or record.fields["role"] == Role.MAIN.value
            ]
            return effects

    yield Forgetful


@mutant("a second main process is made beside the first, for a reload", "one-main")
def spawns_a_second_main() -> Iterator[type[Manager]]:
    class Twice(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            effects.actions = [
                replace(action, role=Role.MAIN)
                if isinstance(action, SpawnProcess) and action.role is Role.RELOAD
                else action
                for action in effects.actions
            ]
            return effects

    yield Twice


@mutant("a spawn is not announced by its record", "spawn-ids")
def spawns_unannounced() -> Iterator[type[Manager]]:
    class Silent(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            effects.records = [record for record in effects.records if record.event != "unit.starting"]
            return effects

    yield Silent


@mutant("a unit is released while its stop is under way", "release")
def releases_too_early() -> Iterator[type[Manager]]:
    class Early(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            signalled = [action.unit for action in effects.actions if isinstance(action, SignalProcesses)]
            effects.actions += [ReleaseUnit(unit) for unit in signalled]
            return effects

    yield Early


# restarts


@mutant("the back-off is half of what the policy says", "restart-delay")
def restarts_early() -> Iterator[type[Manager]]:
    with swapped(stopping, "restart_delay_ns", lambda original: lambda policy, n: original(policy, n) // 2) as manager:
        yield manager


@mutant("the back-off never grows", "restart-delay")
def backoff_does_not_grow() -> Iterator[type[Manager]]:
    with swapped(stopping, "restart_delay_ns", lambda original: lambda policy, n: original(policy, 1)) as manager:
        yield manager


@mutant("the count of failures ends no restarts", "failure-count", "quarantine")
def restarts_for_ever() -> Iterator[type[Manager]]:
    with swapped(stopping, "is_limit_hit", lambda _: lambda policy, failures: False) as manager:
        yield manager


@mutant(
    "that somebody has stopped a unit is forgotten",
    "stop-wins", "settled", "rollout-stop", "upholds",
    crash=0.4, death_in_batch=0.1, requests=80, gap_max_ms=1000, restart=0, shutdown=0, exits_supervisor=0,
    until_empty=0,
)  # fmt: skip
def forgets_who_stopped() -> Iterator[type[Manager]]:
    class Forgetful(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            for name, state in list(self.ledger.states.items()):
                if state.stopped:
                    self.ledger.edit(name).stopped = False
            return effects

    yield Forgetful


@mutant(
    "a stop is done when the main process is gone, whatever else is left",
    "stop-wins", "no-overlap", "settled", "limits-breach",
)  # fmt: skip
def stops_half() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def is_gone(book: ledger.Ledger, name: str) -> bool:
            state = book.state(name)
            if state.ending is Ending.ORDER and state.main is None and state.control is None:
                return True
            return bool(original(book, name))

        return is_gone

    with swapped(processes, "is_gone", made) as manager:
        yield manager


@mutant("the table of transitions has a hole", "internal-error")
def has_a_hole_in_the_table() -> Iterator[type[Manager]]:
    handler = TRANSITIONS.pop((SubState.STOP_SIGTERM, Input.MAIN_ENDED))
    try:
        yield Manager
    finally:
        TRANSITIONS[SubState.STOP_SIGTERM, Input.MAIN_ENDED] = handler


@mutant("the end of exec-stop-post is overlooked", "settled", "start-order")
def overlooks_stop_post() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, ended: book.arm_phase(name, None)

    with swapped(TRANSITIONS, (SubState.STOP_POST, Input.CONTROL_ENDED), made) as manager:
        yield manager


@mutant("what waits for a dependency is forgotten", "recovers")
def never_recovers() -> Iterator[type[Manager]]:
    with swapped(consequences, "_recover", lambda _: lambda book, task: None) as manager:
        yield manager


# lives and relations


@mutant("exec-stop-post is left out of a life that was never up", "stop-post", "settled")
def forgets_stop_post() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def over(book: ledger.Ledger, name: str) -> None:
            if book.state(name).was_up:
                original(book, name)
            else:
                stopping.end(book, name)

        return over

    with swapped(stopping, "over", made) as manager:
        yield manager


@mutant("a start does not look at the conditions", "conditions", needs="conditions")
def starts_without_looking() -> Iterator[type[Manager]]:
    with swapped(engine, "_ask_conditions", lambda _: lambda book, job: False) as manager:
        yield manager


@mutant("a start goes on although a condition does not hold", "conditions", needs="conditions")
def starts_in_spite_of_conditions() -> Iterator[type[Manager]]:
    class Reckless(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, ConditionsChecked):
                event = replace(event, condition=None, assertion=None)
            return super().handle(event, now)

    yield Reckless


@mutant("a requisite is started like what is required", "requisite", needs="requisite")
def starts_requisites() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        return lambda self, key, dependency: self._pull_start(key, dependency, matters=True)

    with swapped(transaction._Builder, "_verify", made) as manager:
        yield manager


@mutant("what is part of a unit is not stopped with it", "part-of", needs="part_of")
def forgets_parts() -> Iterator[type[Manager]]:
    with swapped(graph.Relations, "follows_stops", lambda _: lambda self: self.required_by) as manager:
        yield manager


@mutant("what is upheld stays down", "upholds", upholds=0.4)
def never_upholds() -> Iterator[type[Manager]]:
    with swapped(consequences, "_uphold", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant(
    "what is upheld stays down when its start was refused once", "upholds",
    upholds=0.9, relations=0.7, requests=20, gap_max_ms=400, units_max=8, shutdown=0, conditions=0, conflicts=0,
    timers=0, apply=0, rolling=0,
)  # fmt: skip
def upholds_once() -> Iterator[type[Manager]]:
    with swapped(Ledger, "note_refused", lambda _: lambda book, name, reason: None) as manager:
        yield manager


@mutant("on-failure starts its units at every failure, also before a restart", "hooks", needs="hooks")
def hooks_fire_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def schedule(book: ledger.Ledger, name: str, *more: Any) -> None:
            original(book, name, *more)
            book.intents.append(ledger.Task(ledger.Intent.FAILED, name, name))

        return schedule

    with swapped(stopping, "_schedule_restart", made) as manager:
        yield manager


@mutant("on-failure and on-success start nothing", "hooks", needs="hooks")
def hooks_never_fire() -> Iterator[type[Manager]]:
    with swapped(consequences, "_trigger", lambda _: lambda book, task: None) as manager:
        yield manager


@mutant("a job has all the time in the world", "job-timeout", needs="job_timeout")
def jobs_never_time_out() -> Iterator[type[Manager]]:
    with swapped(ledger.Ledger, "arm_job", lambda _: lambda self, job, timeout_ns: None) as manager:
        yield manager


@mutant("restart-prevent-exit-status is not looked at", "restart-rules", needs="statuses")
def nothing_prevents_a_restart() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda policy, *more, **how: original(replace(policy, prevent=ExitStatuses()), *more, **how)

    with swapped(stopping, "wants_restart", made) as manager:
        yield manager


@mutant("restart-force-exit-status is not looked at", "restart-rules", statuses=1.0, clean_exit=0.4, crash=0.4)
def nothing_forces_a_restart() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda policy, *more, **how: original(replace(policy, force=ExitStatuses()), *more, **how)

    with swapped(stopping, "wants_restart", made) as manager:
        yield manager


@mutant("the start limit refuses nothing", "start-limit", start_limit=0.8)
def starts_without_limit() -> Iterator[type[Manager]]:
    with swapped(life, "refuse_automatic_start", lambda _: lambda book, name: None) as manager:
        yield manager


@mutant(
    "what a lost keeper left is forgotten, and is started once more",
    "status-truth", "one-main", "no-overlap", "exit-recorded", "stop-wins", "settled", "kill-timeout", "shutdown",
    "release", "twin",
    needs="keeper_lost",
)  # fmt: skip
def forgets_what_a_keeper_left() -> Iterator[type[Manager]]:
    class Orphaning(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, KeeperLost):
                for name, state in list(self.ledger.states.items()):
                    if state.main is not None:
                        self.ledger.edit(name).main = None
            return super().handle(event, now)

    yield Orphaning


# answers and state


@mutant("every third waiting client is forgotten", "one-reply")
def forgets_a_reply() -> Iterator[type[Manager]]:
    class Forgetful(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            if not isinstance(event, CommandRequested):
                effects.replies = [reply for reply in effects.replies if reply.request_id % 3]
            return effects

    yield Forgetful


@mutant("a plan is carried out", "plan", needs="plan")
def plans_are_carried_out() -> Iterator[type[Manager]]:
    class Eager(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, CommandRequested) and event.plan:
                event = replace(event, plan=False)
            return super().handle(event, now)

    yield Eager


@mutant("a repeated token makes new jobs", "token", needs="token_repeated")
def forgets_tokens() -> Iterator[type[Manager]]:
    class Tokenless(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, CommandRequested):
                event = replace(event, token="")
            return super().handle(event, now)

    yield Tokenless


@mutant("a deadline is looked at and not taken off", "deadline")
def keeps_old_deadlines() -> Iterator[type[Manager]]:
    class Stale(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, DeadlineReached):
                return Effects()
            return super().handle(event, now)

    yield Stale


@mutant("that a key of the state is gone is never told", "fold")
def forgets_to_tell_what_is_gone() -> Iterator[type[Manager]]:
    class Silent(Manager):
        def take_changes(self) -> dict[str, str | None]:
            return {key: text for key, text in super().take_changes().items() if text is not None}

    yield Silent


@mutant("a restored manager has no deadlines", "twin", "settled")
def restores_without_deadlines() -> Iterator[type[Manager]]:
    class Amnesiac(Manager):
        _deaf = False

        @classmethod
        def restore(cls, state: Any, units: Any, **more: Any) -> "Manager":
            manager = super().restore(state, units, **more)
            assert isinstance(manager, Amnesiac)
            manager._deaf = True
            return manager

        def deadline_ns(self) -> int | None:
            return None if self._deaf else super().deadline_ns()

    yield Amnesiac


@mutant("a record names itself as its cause", "causes")
def causes_point_forward() -> Iterator[type[Manager]]:
    class Forward(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            if now.seq and effects.records:
                effects.records[0] = replace(effects.records[0], cause=now.seq)
            return effects

    yield Forward


@mutant("the supervisor ends while processes are left", "shutdown")
def ends_too_early() -> Iterator[type[Manager]]:
    class Hasty(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            if isinstance(event, ShutdownRequested):
                effects.actions = [a for a in effects.actions if not isinstance(a, ExitSupervisor)]
                effects.actions.append(ExitSupervisor(0))
            return effects

    yield Hasty


# rollouts


@mutant("a shutdown does not end a rollout", "rollout-ends")
def rolls_on_in_a_shutdown() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book: original(book) if book.globals.shutdown is None else False

    with swapped(rollout, "advance", made) as manager:
        yield manager


@mutant("an apply restarts units that did not change", "rollout-scope", needs="apply")
def applies_what_is_the_same() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda units, lives, among=None: sorted(
            name for name in (lives if among is None else among) if name in lives and name in units.units
        )

    with swapped(rollout, "needing_restart", made) as manager:
        yield manager


@mutant("what is being restarted does not count as unavailable", "rollout-bound", "rollout-order")
def counts_nothing_as_unavailable() -> Iterator[type[Manager]]:
    with swapped(rollout, "_unavailable", lambda _: lambda book, roll: 0) as manager:
        yield manager


@mutant("a unit does not wait for the one that it comes after", "rollout-order")
def rolls_without_an_order() -> Iterator[type[Manager]]:
    with swapped(rollout, "_waits_for_another", lambda _: lambda book, roll, name: False) as manager:
        yield manager


@mutant("what was stopped meanwhile is restarted all the same", "rollout-stop")
def restarts_what_was_stopped() -> Iterator[type[Manager]]:
    with (
        swapped(rollout, "_left_out", lambda _: lambda book, roll, name: None) as manager,
        swapped(rollout, "_was_stopped", lambda _: lambda book, roll, name: False),
    ):
        yield manager


@mutant("a probation is over after half of its time", "rollout-probation", "rollout-bound")
def lets_off_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def put(book: ledger.Ledger, roll: Any, name: str, unit: Any) -> None:
            original(book, roll, name, unit)
            unit.good_at_ns -= roll.probation_ns // 2
            book.timers.arm(unit.good_at_ns, name, probation.DeadlineKind.ROLLOUT)

        return put

    with swapped(probation, "put_on_probation", made) as manager:
        yield manager


@mutant("a rollout goes back in words only", "rollout-back", "rollout-words", needs="apply")
def goes_back_in_words_only() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def reverted(book: ledger.Ledger) -> None:
            original(book)
            for unit in book.rollout.units.values() if book.rollout is not None else ():
                if unit.step is RolloutStep.WAITING:
                    unit.step = RolloutStep.DONE

        return reverted

    with swapped(rollout, "reverted", made) as manager:
        yield manager


@mutant("what was the reason to go back is left down", "rollout-back", needs="apply")
def leaves_down() -> Iterator[type[Manager]]:
    def made(real: Any) -> Any:
        def left_out(book: Ledger, roll: Any, name: str) -> str | None:
            if roll.phase is RolloutPhase.BACK and book.state(name).sub in REST:
                return f"{name} does not run any more"
            told: str | None = real(book, roll, name)
            return told

        return left_out

    with swapped(rollout, "_left_out", made) as manager:
        yield manager


@mutant("whatever was left out is said to be done", "rollout-words")
def says_that_all_is_done() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda roll: {
            name: "done" if fate in ("left-out", "waiting") else fate for name, fate in original(roll).items()
        }

    with swapped(rollout, "_by_fate", made) as manager:
        yield manager


# the end because of a unit


@mutant("the code of a unit that ends the supervisor is lost", "exit-code", needs="exits_supervisor")
def ends_with_success() -> Iterator[type[Manager]]:
    with swapped(shutdown, "code_of_life", lambda _: lambda state: 0) as manager:
        yield manager


@mutant("a unit that has failed ends nothing", "exit-code", needs="exits_supervisor")
def ends_nothing() -> Iterator[type[Manager]]:
    with swapped(shutdown, "end_for_unit", lambda _: lambda book, name, cause: None) as manager:
        yield manager


# silence


@mutant("who is stopped by a signal is blamed for its silence", "watchdog-blame", "probes", needs="watchdogs")
def blames_who_is_stopped() -> Iterator[type[Manager]]:
    class Impatient(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            if isinstance(event, ProcessesSeen):
                event = replace(event, stopped=False)
            return super().handle(event, now)

    yield Impatient


@mutant("a silence is held against a unit after half of its time", "watchdog-blame", needs="watchdogs")
def blames_too_soon() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, name, kind, period_ns: original(book, name, kind, period_ns and period_ns // 2)

    with swapped(watchdog, "_arm", made) as manager:
        yield manager


@mutant("nobody looks at who is silent", "watchdog-blame", needs="watchdogs")
def blames_nobody() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        def deadline(book: ledger.Ledger, name: str, kind: Any) -> None:
            watchdog._arm(book, name, kind, book.state(name).watches[kind].period_ns)

        return deadline

    with swapped(watchdog, "deadline", made) as manager:
        yield manager


# health


@mutant("a check is bad one answer too early", "probes", probes=0.4, unwell=0.4)
def counts_one_too_many() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def probe(book: ledger.Ledger, name: str, probe_name: str) -> Any:
            found = original(book, name, probe_name)
            return found and replace(found, failure_threshold=max(1, found.failure_threshold - 1))

        return probe

    with swapped(health, "_probe", made) as manager:
        yield manager


@mutant("what a stopped unit does not answer counts", "probes", probes=0.4, unwell=0.4, stopped=0.4)
def counts_what_is_stopped() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        return lambda book, event: original(book, replace(event, stopped=False))

    with swapped(health, "seen", made) as manager:
        yield manager


@mutant("a start does not wait for its checks", "probes", needs="probes")
def is_ready_unchecked() -> Iterator[type[Manager]]:
    with swapped(health, "gates", lambda _: lambda book, name: False) as manager:
        yield manager


@mutant("a check is made once and never again", "probes", needs="probes")
def checks_once() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def schedule(book: ledger.Ledger, name: str, probe: Any, found: Any, delay_ns: int) -> None:
            if found.asked_ns:
                health._set(book, name, probe.name, found)
            else:
                original(book, name, probe, found, delay_ns)

        return schedule

    with swapped(health, "_schedule", made) as manager:
        yield manager


@mutant("a unit that ends is checked on", "probes", needs="probes")
def checks_what_ends() -> Iterator[type[Manager]]:
    with swapped(health, "end", lambda _: lambda book, name: None) as manager:
        yield manager


# timers


@mutant("a timer fires a tenth of its span too early", "timers", **TIMED)
def fires_early() -> Iterator[type[Manager]]:
    def made(original: Any) -> Any:
        def plan_timer(timer: Any, *more: Any, **how: Any) -> Any:
            shorter = replace(
                timer,
                every_ns=timer.every_ns and timer.every_ns * 9 // 10,
                on_active_ns=tuple(span * 9 // 10 for span in timer.on_active_ns),
            )
            return original(shorter, *more, **how)

        return plan_timer

    with swapped(timed, "plan_timer", made) as manager:
        yield manager


@mutant("a clock that is set is not noticed", "timers", **{**TIMED, "wall_jump": 0.2})
def overlooks_the_clock() -> Iterator[type[Manager]]:
    def made(_: Any) -> Any:
        return lambda book: None

    with swapped(timed, "clock_changed", made) as manager:
        yield manager


@mutant("calendars are read in UTC, whatever the zone", "timers", **{**TIMED, "gap_max_ms": 12_000, "wall_jump": 0.4})
def knows_no_zones() -> Iterator[type[Manager]]:
    class Zoneless(Manager):
        def use_zones(self, zone_of: Any) -> None:
            pass

    yield Zoneless


@mutant("a supervisor that was off has forgotten when its timers fired", "timers", **{**TIMED, "requests": 30})
def forgets_over_a_cold_start() -> Iterator[type[Manager]]:
    class Forgetful(Manager):
        def restore_counters(self, state: Mapping[str, str]) -> None:
            super().restore_counters(state)
            for name in list(self.ledger.states):
                self.ledger.edit(name).timer = None

    yield Forgetful


@mutant("what a timer has missed while the supervisor was off is run twice", "timers", **{**TIMED, "requests": 30})
def makes_up_twice() -> Iterator[type[Manager]]:
    class Eager(Manager):
        def __init__(self, seed: int) -> None:
            super().__init__(seed)
            self.may_repeat: set[str] = set()

        def restore_counters(self, state: Mapping[str, str]) -> None:
            super().restore_counters(state)
            self.may_repeat = set(self.ledger.states)

        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            for name in [each.unit for each in effects.records if each.event == "timer.elapsed"]:
                timer = self.ledger.state(name or "").timer
                if name in self.may_repeat and timer is not None:
                    self.may_repeat.discard(name)
                    self.ledger.set_timer(name, replace(timer, once_more=True))
            return effects

    yield Eager


@mutant("what fires a persistent timer is not kept", "timers", **TIMED)
def keeps_no_stamp() -> Iterator[type[Manager]]:
    class Careless(Manager):
        def handle(self, event: Event, now: Now) -> Effects:
            effects = super().handle(event, now)
            effects.actions = [action for action in effects.actions if not isinstance(action, KeepState)]
            return effects

    yield Careless

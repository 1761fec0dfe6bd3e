"""The simulated world that judges the core: a fake kernel, a fake keeper, fake clients, virtual time, one seed.

Theory of operation
-------------------
A seed draws a fault profile, a unit set and everything that happens. The world is a loop over virtual time: the
kernel's processes live and die, clients ask, and whenever there is something to tell (or a deadline has passed) the
manager gets one batch, as ``host.driver`` gives it: facts in their order, then requests, then deadlines. The batch
ends in one commit. The manager may die

* in the batch: nothing of it ever happened; facts are told again, requests are lost,
* after the commit: it all holds, but journal lines (in custody) and replies are not out yet,
* after the replies.

Whether a batch is doomed is drawn before it runs, so that checkers only ever see what becomes true. A new manager
restores the committed state.

Every run has four acts: trouble, calm (faults end, everything has to settle and belief has to equal the kernel),
mending (an operator starts what has failed), shutdown. Some seeds shut down in the middle of the trouble. Run it:
``python -m supervisord_py.testing.world --seeds 200``.
"""

import argparse
import hashlib
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random

import msgspec

from supervisord_py.core.actions import AnyAction, Effects, RevertUnits, SpawnProcess
from supervisord_py.core.events import (
    ClockChanged,
    CommandRequested,
    DeadlineReached,
    Event,
    RequesterGone,
    ShutdownForced,
    ShutdownRequested,
    SpawnFailed,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.core.view import jobs, list_units, lives, rollout_units
from supervisord_py.model.names import is_aux_owner
from supervisord_py.model.records import UNNUMBERED, Record
from supervisord_py.model.states import SubState
from supervisord_py.model.status import JobStatus
from supervisord_py.model.unit import Service, UnitSet
from supervisord_py.testing.batch import Batch
from supervisord_py.testing.checkers import Checkers, Step, Violation
from supervisord_py.testing.clients import Clients
from supervisord_py.testing.clock import MILLISECOND_NS, SECOND_NS, Agenda, Clock
from supervisord_py.testing.disturber import SHUTDOWN_NS, Disturber
from supervisord_py.testing.hands import Hands
from supervisord_py.testing.kernel import Kernel
from supervisord_py.testing.narrative import entry_lines, where_raised
from supervisord_py.testing.observer import Observer
from supervisord_py.testing.operator import Operator
from supervisord_py.testing.outcome import Outcome
from supervisord_py.testing.population import draw_units
from supervisord_py.testing.profile import Profile, draw_profile
from supervisord_py.testing.releases import Releases
from supervisord_py.testing.replay import FlightLog
from supervisord_py.testing.timers import zone_of

STEPS_MAX = 30_000
"""More events than any honest run needs: beyond it the world says that the core is not settling."""

CALM_NS = 3 * 3600 * SECOND_NS
FAILURES_SHOWN = 10
TAIL = 40
"""Entries before a violation that are kept for the report, and lines of them that it shows."""

DEADLINES_MAX = 200
"""Deadlines at one instant in one batch: more is a busy loop."""


class World:
    """One simulated machine with one supervisor on it.

    Args:
        seed: Decides everything, unless ``rng`` is given (Hypothesis gives its own, and shrinks it).
        profile: The faults; None draws one from the seed.
        manager_type: The core under test (a mutant, to test the checkers).
        flight: Where to write every input of every manager, for ``replay``.
        trace: Is told every event and effect in words.
        digest: Whether to hash every event and effect.
    """

    def __init__(
        self,
        seed: int,
        profile: Profile | None = None,
        *,
        rng: Random | None = None,
        manager_type: type[Manager] = Manager,
        flight: FlightLog | None = None,
        trace: Callable[[str], None] | None = None,
        digest: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = rng or Random(seed)
        self.profile = profile or draw_profile(self.rng)
        self.clock = Clock()
        self.agenda = Agenda(self.clock)
        self.seen = Observer(lambda name: self.manager.ledger.texts.get(name))
        self.checkers = Checkers(self)
        self.kernel = Kernel(self.rng, self.profile, self.clock, self.agenda, self._service_of, self.checkers)
        self.hands = Hands(self.rng, self.profile, self.agenda, self.kernel, self.submit, self.seen.texts.get)
        self.releases = Releases(self.rng, self.profile, self.agenda, self.submit)
        self.operator = Operator(self)
        self._disturber = Disturber(self)
        self.clients = Clients(self.rng, self.profile)
        self.journal: list[tuple[int, Record]] = []
        self.state: dict[str, str] = {}
        self.units = UnitSet()
        self.calm = False
        self.calm_seq: int | None = None
        """The number of the first record after the faults."""
        self.steps = 0
        self.steps_max = STEPS_MAX
        self.strikes: Counter[tuple[str, SubState]] = Counter()
        """How often each fault took effect on a unit in each state: what the coverage of faults is printed from."""
        self.kernel.struck = self._strike
        self._jobs: list[JobStatus] = []
        self._jobs_at = -1
        self.deaths = 0
        self.manager_type = manager_type
        self._flight = flight
        self._trace = trace
        self._digest = hashlib.sha256() if digest else None
        self._tail: deque[str | tuple[int, Event] | Effects] = deque(maxlen=TAIL)
        self._custody: list[tuple[int, Record]] = []
        self.next_seq = 1
        self._told = 0
        self._inbox: deque[Event] = deque()
        self._down_until_ns: int | None = None
        self._work_ns: int | None = None
        self._deadline_ns: int | None = None
        self._deadline_wake_ns: int | None = None
        self.clock_changed = False
        self.loaded = False
        self.is_forced = False
        self.stopping: ShutdownRequested | None = None
        self._requests_left = self.profile.requests
        self.manager = self._new_manager()

    # acts

    def run(self) -> Outcome:
        """Play all acts; never raises for what the core does wrong."""
        violation: Violation | None = None
        from supervisord_py.testing.cold_start import begin_again

        try:
            self._play()
            begin_again(self)
        except Violation as found:
            violation = found
        except Exception as bug:  # noqa: BLE001 - whatever the core raises, in the simulation or in a checker's hands, is a finding
            violation = Violation("no-exception", f"{type(bug).__name__}: {bug} (in {where_raised(bug)})")
        return Outcome(
            seed=self.seed,
            profile=self.profile,
            steps=self.steps,
            deaths=self.deaths,
            simulated_ns=self.clock.mono_ns,
            digest=self._digest.hexdigest() if self._digest else "",
            violation=str(violation) if violation else None,
            checker=violation.checker if violation else None,
            tail=tuple(line for entry in self._tail for line in entry_lines(entry))[-TAIL:] if violation else (),
        )

    def _play(self) -> None:
        self.releases.load(draw_units(self.rng, self.profile), start_enabled=True)
        self.agenda.after(self._gap_ns(), self._next_request)
        self._run_until(lambda: self._requests_left <= 0)
        if not self.kernel.exit_codes:
            self.calm = self.releases.calm = True
            self.calm_seq = self.next_seq
            self.hands.become_calm()
            self.kernel.cure()
            # what was said already is heard first: only then is it known what is there
            self._run_until(lambda: not self._inbox and self._down_until_ns is None)
            self.operator.let_live()
            limit_ns = self.clock.mono_ns + CALM_NS
            self._run_until(lambda: self.clock.mono_ns >= limit_ns, limit_ns)
        if not self.kernel.exit_codes and not self.stopping:
            self.checkers.settled()
            self.operator.mend()
            limit_ns = self.clock.mono_ns + CALM_NS
            self._run_until(lambda: self.clock.mono_ns >= limit_ns, limit_ns)
            self.checkers.settled()
            self.order_stop(ShutdownRequested(SHUTDOWN_NS))
            limit_ns = self.clock.mono_ns + CALM_NS
            self._run_until(lambda: self.clock.mono_ns >= limit_ns, limit_ns)
        self.checkers.ended()

    def _run_until(self, is_over: Callable[[], bool], limit_ns: int | None = None) -> None:
        while not self.kernel.exit_codes and not is_over():
            next_ns = self._next_ns()
            if next_ns is None or (limit_ns is not None and next_ns > limit_ns):
                return
            self.clock.advance_to(max(next_ns, self.clock.mono_ns))
            self.agenda.run_due()
            if self._down_until_ns is not None:
                if self.clock.mono_ns >= self._down_until_ns:
                    self._start_manager()
            elif self._is_due():
                self._run_batch()

    def _next_ns(self) -> int | None:
        times = [self.agenda.next_ns()]
        if self._down_until_ns is not None:
            times.append(self._down_until_ns)
        else:
            self._arm()
            times += [self._work_ns, self._deadline_wake_ns]
        return min((at_ns for at_ns in times if at_ns is not None), default=None)

    # people

    def submit(self, event: Event) -> None:
        """Queue an event that does not come from the keeper."""
        self._inbox.append(event)

    def order_stop(self, event: ShutdownRequested) -> None:
        """Stop everything; the keeper remembers the order and gives it to every later manager."""
        self.stopping = event
        self.submit(event)

    def _gap_ns(self) -> int:
        return self.rng.randint(0, self.profile.gap_max_ms) * MILLISECOND_NS

    def _next_request(self) -> None:
        self._requests_left -= 1
        if self._requests_left > 0:
            self.agenda.after(self._gap_ns(), self._next_request)
        self._disturber.disturb()
        names = sorted(self.units.units)
        if not names:
            return
        rollout = [] if not self.chance("cancel_rollout") else [job.job for job in self.rollout_jobs()]
        event = self.clients.ask(names, bool(self.units.bad), rollout)
        if event.verb == "apply" and not event.plan and (not rollout_units(self.manager) or self.rng.random() < 0.1):
            self.releases.apply()
        self.submit(event)
        if self.chance("client_gone"):
            self.agenda.after(self._gap_ns(), lambda: self._hang_up(event))

    def _hang_up(self, event: CommandRequested) -> None:
        request = self.clients.waiting.get(event.request_id)
        if request is not None and request.event is event and not request.answered:
            request.gone = True
            self.submit(RequesterGone(event.request_id))

    def _strike(self, fault: str, unit: str) -> None:
        if not is_aux_owner(unit):
            self.strikes[fault, self.manager.ledger.state(unit).sub] += 1

    def strike_all(self, fault: str) -> None:
        """A fault that is about the whole machine strikes every unit where it is."""
        for state in self.manager.ledger.states.values():
            self.strikes[fault, state.sub] += 1

    def chance(self, name: str) -> bool:
        return not self.calm and self.rng.random() < float(getattr(self.profile, name))

    # the manager's life

    def _new_manager(self) -> Manager:
        if self._flight is not None:
            self._flight.began(self.seed)
        manager = self.manager_type(self.seed)
        manager.use_zones(zone_of)
        return manager

    def _start_manager(self) -> None:
        self._down_until_ns = None
        if self.kernel.is_lost:
            self.kernel.adopt()
        if self.loaded:
            self.manager = self.manager_type.restore(dict(self.state), self.units)
            self.manager.use_zones(zone_of)
            if self._flight is not None:
                self._flight.restored(self.state, self.units)
            self._carry_out(self.manager.pending_actions())
        else:
            self.manager = self._new_manager()
            self.releases.load(draw_units(self.rng, self.profile), start_enabled=True)
        # a new manager does not know how the clocks were
        self.clock_changed = True
        self._note("-- a new manager")
        self.journal += self._custody
        self._custody = []
        self.checkers.manager_started()
        if self.stopping is not None:
            self.submit(self.stopping)
        if self.is_forced:
            self.submit(ShutdownForced())

    def lose_keeper(self) -> None:
        """The keeper is killed, and the manager ends with it. What ran goes on, and so does the next keeper."""
        self.strike_all("keeper_lost")
        self.kernel.lose_keeper()
        self._die("with the keeper")

    def _die(self, when: str) -> None:
        self.deaths += 1
        self.strike_all(f"death_{when.replace(' ', '_')}")
        self._note(f"-- the manager dies {when}")
        self._inbox.clear()
        self.hands.drop()
        self.releases.drop(self.units, self.seen.settings)
        self._told = self.kernel.custody.acknowledged
        self._work_ns = self._deadline_ns = self._deadline_wake_ns = None
        downtime_ns = self.rng.choice((1, 50, 3000)) * MILLISECOND_NS
        self._down_until_ns = self.clock.mono_ns + downtime_ns
        for event in self.clients.manager_died():
            self.agenda.after(downtime_ns + self._gap_ns() // 4, partial(self._ask_again, event))

    def _ask_again(self, event: CommandRequested) -> None:
        self.submit(self.clients.ask_again(event))

    # batches

    def _arm(self) -> None:
        """Draw when the manager wakes: at once as a rule, late when it is busy or the machine is."""
        if self._inbox or self.kernel.custody.unacknowledged(self._told) or self.clock_changed:
            if self._work_ns is None:
                self._work_ns = self.clock.mono_ns + self._latency_ns()
        else:
            self._work_ns = None
        deadline_ns = self.manager.deadline_ns()
        if deadline_ns != self._deadline_ns:
            self._deadline_ns = deadline_ns
            self._deadline_wake_ns = None
            if deadline_ns is not None:
                self._deadline_wake_ns = max(deadline_ns, self.clock.mono_ns) + self._latency_ns()

    def _latency_ns(self) -> int:
        return (
            self.rng.randint(1, 3000) * MILLISECOND_NS
            if self.chance("late")
            else self.rng.randint(0, 2) * MILLISECOND_NS
        )

    def _is_due(self) -> bool:
        now_ns = self.clock.mono_ns
        self._arm()
        return any(at_ns is not None and at_ns <= now_ns for at_ns in (self._work_ns, self._deadline_wake_ns))

    def _run_batch(self) -> None:
        self._work_ns = self._deadline_ns = self._deadline_wake_ns = None
        batch = Batch(seq=0 if self.chance("records_lost") else self.next_seq, doomed=self.chance("death_in_batch"))
        size = 10_000 if self.chance("large_batch") else self.rng.randint(1, 3)
        if self.clock_changed:
            self.clock_changed = False
            self._take(batch, ClockChanged())
        for number, fact in self.kernel.custody.unacknowledged(self._told)[:size]:
            if batch.doomed and self.rng.random() < 0.3:
                break
            self._told = number
            batch.ack = number
            self._take(batch, fact)
        facts_done = not self.kernel.custody.unacknowledged(self._told)
        while self._inbox and batch.handled < size and facts_done:
            self._take(batch, self._inbox.popleft())
        if facts_done and not self._inbox:
            self._take_deadlines(batch)
        if batch.doomed:
            self._die("in the batch")
            return
        self._commit(batch)

    def _take_deadlines(self, batch: Batch) -> None:
        for _ in range(DEADLINES_MAX):
            deadline_ns = self.manager.deadline_ns()
            if deadline_ns is None or deadline_ns > self.clock.mono_ns:
                break
            self._take(batch, DeadlineReached())
        else:
            if not batch.doomed:
                raise Violation("deadline", f"{DEADLINES_MAX} deadlines at one instant: a busy loop")
        if self.chance("repeated_deadline"):
            self._take(batch, DeadlineReached())

    def _take(self, batch: Batch, event: Event) -> None:
        """Let the core decide one event of a batch."""
        self.steps += 1
        if self.steps > self.steps_max:
            raise Violation("settles", f"{self.steps_max} events and no end")
        batch.handled += 1
        now = self.clock.now(batch.seq)
        self._show((now.mono_ns, event))
        if self._flight is not None:
            self._flight.took(now, event)
        if not batch.doomed:
            self.seen.see_event(event, now)
            if isinstance(event, UnitsLoaded):
                units, in_rollout = batch.units or self.units, rollout_units(self.manager)
                self.releases.note_load(units, event, lives(self.manager), in_rollout)
        effects = self.manager.handle(event, now)
        changes = self.manager.take_changes()
        if self._digest is not None:
            self._digest.update(msgspec.json.encode((now, event, effects)))
        self._show(effects)
        if self._flight is not None:
            self._flight.decided(effects)
        if batch.doomed:
            return
        numbered: list[tuple[int, Record]] = []
        for record in effects.records:
            if record.event in UNNUMBERED or not batch.seq:
                numbered.append((0, record))
            else:
                numbered.append((batch.seq, record))
                batch.seq += 1
        if isinstance(event, CommandRequested):
            self.clients.waiting[event.request_id].taken = True
        if isinstance(event, UnitsLoaded):
            batch.units = event.units
        self.seen.see_records(effects, now)
        self.checkers.step(Step(event, now, effects, numbered, changes))
        self.seen.see_effects(event, effects, now)
        batch.absorb(effects, numbered, changes)
        self._refuse_spawns(batch, effects)

    def _refuse_spawns(self, batch: Batch, effects: Effects) -> None:
        """The host itself cannot prepare a spawn (no such user, say): it fails inside the batch that asked for it."""
        for action in effects.actions:
            if isinstance(action, SpawnProcess) and self.chance("spawn_refused"):
                batch.refused.add(action.spawn_id)
                self._take(batch, SpawnFailed(action.spawn_id, "user", 217, 0, detail="no such user"))

    def _commit(self, batch: Batch) -> None:
        for key, text in batch.changes.items():
            if text is None:
                self.state.pop(key, None)
            else:
                self.state[key] = text
        if batch.seq:
            self.next_seq = batch.seq
        if batch.units is not None:
            self.units = batch.units
            self.loaded = True
        self.kernel.custody.acknowledge(batch.ack)
        actions = [
            a for a in batch.effects.actions if not (isinstance(a, SpawnProcess) and a.spawn_id in batch.refused)
        ]
        self.checkers.committing(actions)
        self._carry_out(actions)
        if self.chance("repeated_spawn"):
            self.kernel.apply([action for action in actions if isinstance(action, SpawnProcess)])
        self._custody += batch.numbered
        if self.chance("death_after_commit"):
            self._die("after the commit")
            return
        self.journal += self._custody
        self._custody = []
        for reply in batch.effects.replies:
            self.checkers.replied(reply)
        if self.chance("death_after_replies"):
            self._die("after the replies")
            return
        self.checkers.committed()

    def _carry_out(self, actions: Sequence[AnyAction]) -> None:
        self.kernel.apply(actions)
        self.hands.apply(actions)
        for action in actions:
            if isinstance(action, RevertUnits):
                self.releases.revert(action)

    def _service_of(self, action: SpawnProcess) -> Service | None:
        if is_aux_owner(action.unit):
            return None
        life = self.seen.life_of(action.spawn_id)
        assert life is not None, "a spawn without a life"
        return life.unit.service

    def jobs(self) -> list[JobStatus]:
        """The jobs that there are now; several checkers look at them in the same step."""
        if self._jobs_at != self.steps:
            self._jobs = [job for job in jobs(self.manager) if job.type != "rollout"]
            self._jobs_at = self.steps
        return self._jobs

    def rollout_jobs(self) -> list[JobStatus]:
        """The numbers that a rollout has given out and that have not ended."""
        return [job for job in jobs(self.manager) if job.type == "rollout"]

    @property
    def is_up(self) -> bool:
        """There is a manager that could be asked for something."""
        return self._down_until_ns is None

    def manager_units(self) -> frozenset[str]:
        """The names that the core knows now."""
        return frozenset(list_units(self.manager))

    # telling

    def _note(self, line: str) -> None:
        self._show(f"{self.clock.mono_ns / SECOND_NS:.3f} {line}")

    def _show(self, entry: str | tuple[int, Event] | Effects) -> None:
        self._tail.append(entry)
        if self._trace is not None:
            for line in entry_lines(entry):
                self._trace(line)


def run_seeds(seeds: Iterable[int], manager_type: type[Manager] = Manager) -> Iterator[Outcome]:
    """Run one world a seed."""
    for seed in seeds:
        yield World(seed, manager_type=manager_type).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds and print what fails; the exit status is 1 when something does."""
    parser = argparse.ArgumentParser(prog="python -m supervisord_py.testing.world", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run (default 200)")
    parser.add_argument("--start", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--verbose", action="store_true", help="print every event and effect")
    parser.add_argument("--keep-going", action="store_true", help="do not stop after ten failures")
    options = parser.parse_args(arguments)
    seeds = [options.seed] if options.seed is not None else range(options.start, options.start + options.seeds)
    began_s = time.perf_counter()
    failed = steps = deaths = simulated_ns = 0
    for seed in seeds:
        outcome = World(seed, trace=print if options.verbose else None).run()
        steps, deaths, simulated_ns = (
            steps + outcome.steps,
            deaths + outcome.deaths,
            simulated_ns + outcome.simulated_ns,
        )
        if outcome.violation is not None:
            failed += 1
            print(outcome.report(), file=sys.stderr)
            if failed >= FAILURES_SHOWN and not options.keep_going:
                print(f"stopped after {failed} failures (--keep-going runs on)", file=sys.stderr)
                break
    hours = simulated_ns / SECOND_NS / 3600
    took_s = time.perf_counter() - began_s
    print(
        f"{len(seeds)} seeds, {failed} failed: {steps} events, {deaths} manager deaths, "
        f"{hours:.0f} simulated hours in {took_s:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

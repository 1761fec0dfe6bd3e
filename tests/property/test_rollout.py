"""Rollouts under everything that can come between: crashes, operators, cancels, managers that die at any event.

``Rig`` holds a manager restored before each event against the original, so the law about new managers is held after
every single one. The order of what happens is drawn by the seed of each case.
"""

from random import Random

import pytest

from supervisord_py.core import view
from supervisord_py.core.actions import RevertUnits
from supervisord_py.core.events import UnitsLoaded
from supervisord_py.core.ledger import Ledger
from supervisord_py.core.rollout_state import RolloutPhase, RolloutStep
from supervisord_py.core.state import REST, UP
from supervisord_py.model.states import SubState
from supervisord_py.model.unit import SECOND_NS, Unit
from tests.unit.core.core_rig import Rig, commands, needs, notify, unit_set

NAMES = ("a", "b", "c", "d")
SEEDS = 150
STEPS = 90


def text(name: str, version: int) -> Unit:
    relations = needs("a") if name == "d" else None
    return notify(name, relations=relations, exec_start=commands(f"/bin/{name}-{version}"))


class Story:
    """One rollout after another, and what becomes of them."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.version = 1
        self.rig = Rig(*(text(name, 1) for name in NAMES))
        self.rig.ask("start", *NAMES)
        for name in NAMES:
            self.rig.up(name)
        self.asked: dict[int, tuple[str, ...]] = {}
        self.in_hand: set[str] = set()

    @property
    def ledger(self) -> Ledger:
        return self.rig.manager.ledger

    def run(self) -> None:
        for _ in range(STEPS):
            self.rng.choice(
                [self.process, self.process, self.process, self.process, self.time, self.crash, self.operator, self.ask]
            )()
            self.answer_revert()
            self.check()
        self.finish()

    # what happens

    def ask(self) -> None:
        if self.rng.random() < 0.6 and self.ledger.rollout is None:
            self.version += 1
            self.rig.load(*(text(name, self.version) for name in NAMES))
        verb = self.rng.choice(("apply", "apply", "restart"))
        most = self.rng.choice((1, 1, 2, 0))
        arguments = {
            "max_unavailable": most,
            "probation_ns": self.rng.choice((0, 5)) * SECOND_NS,
            "reverts": verb == "apply" and self.rng.random() < 0.7,
        }
        if verb == "restart" and not most:
            return
        before = self.ledger.rollout
        units = NAMES if verb == "restart" else ()
        request = self.rig.ask(verb, *units, arguments=arguments)
        reply = self.rig.replies.get(request)
        if before is not None:
            assert reply is not None and reply.refusal is not None and reply.refusal.error == "Busy"
        elif reply is None:
            self.asked[request] = tuple(self.ledger.rollout.units) if self.ledger.rollout is not None else ()

    def process(self) -> None:
        """Something that was asked for happens: a program runs, is ready, or ends as it was told to."""
        name = self.rng.choice(NAMES)
        state = self.ledger.state(name)
        if state.main is None:
            return
        if state.main.pid is None:
            self.rig.spawned(name)
        elif state.sub is SubState.START:
            if self.rng.random() < 0.85:
                self.rig.says(name, READY="1")
            else:
                self.rig.crash(name)
        elif state.sub in (
            SubState.STOP_SIGTERM,
            SubState.STOP_SIGKILL,
            SubState.FINAL_SIGTERM,
            SubState.FINAL_SIGKILL,
        ):
            self.rig.exited(name, signal=15)

    def crash(self) -> None:
        name = self.rng.choice(NAMES)
        state = self.ledger.state(name)
        if self.rng.random() < 0.25 and state.main is not None and state.main.pid is not None and state.sub in UP:
            self.rig.crash(name)

    def time(self) -> None:
        self.rig.later(self.rng.choice((0.05, 0.5, 3, 6)))

    def operator(self) -> None:
        name = self.rng.choice(NAMES)
        match self.rng.randrange(8):
            case 0:
                self.rig.ask("stop", name)
            case 1 | 2:
                self.rig.ask("start", name)
            case 3:
                self.rig.ask("restart", name)
            case 4 if self.ledger.rollout is not None:
                number = self.rng.choice([unit.job for unit in self.ledger.rollout.units.values()])
                self.rig.ask("cancel", arguments={"job": number})
            case _:
                pass

    def answer_revert(self) -> None:
        """The host answers what was asked of it, sometimes late; a new manager asks the same."""
        asked = [each for each in self.rig.manager.pending_actions() if isinstance(each, RevertUnits)]
        if asked and self.rng.random() < 0.7:
            self.version += 1
            self.rig.happen(UnitsLoaded(unit_set(*(text(name, self.version) for name in NAMES)), reverts=True))
            assert not [each for each in self.rig.manager.pending_actions() if isinstance(each, RevertUnits)]

    # what must hold

    def check(self) -> None:
        rollout = self.ledger.rollout
        for request, units in list(self.asked.items()):
            reply = self.rig.replies.get(request)
            if reply is not None:
                assert sorted(outcome.unit for outcome in reply.outcomes) == sorted(units)
                assert all(outcome.result != "queued" for outcome in reply.outcomes)
                del self.asked[request]
        assert len(self.asked) == (0 if rollout is None else 1), "every number ends, and only with its rollout"
        if rollout is None:
            self.in_hand = set()
            assert not [job for job in view.jobs(self.rig.manager) if job.type == "rollout"]
            return
        in_hand = {
            name for name, unit in rollout.units.items() if unit.step in (RolloutStep.RESTARTING, RolloutStep.PROBATION)
        }
        begun = {name for name in in_hand if rollout.units[name].step is RolloutStep.RESTARTING} - self.in_hand
        self.in_hand = in_hand
        if rollout.phase is RolloutPhase.FORWARD and rollout.max_unavailable and begun:
            # Whoever has a new life by somebody else's order is watched too; that takes no other unit down.
            assert len(in_hand) <= rollout.max_unavailable

    def finish(self) -> None:
        """Left alone, with programs that work, it ends."""
        for _ in range(400):
            self.answer_revert()
            if self.ledger.rollout is None:
                break
            self.rig.later(6)
            for name in NAMES:
                state = self.ledger.state(name)
                if state.main is not None and state.main.pid is None:
                    self.rig.spawned(name)
                elif state.main is not None and state.sub is SubState.START:
                    self.rig.says(name, READY="1")
                elif state.main is not None and state.sub not in UP and state.sub not in REST:
                    self.rig.exited(name, signal=15)
        assert self.ledger.rollout is None, "a rollout never hangs"
        self.check()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_rollout_keeps_its_bound_ends_and_survives_every_manager(seed: int) -> None:
    """At most so many in hand at a time, one answer for each request, no rollout without an end."""
    Story(seed).run()

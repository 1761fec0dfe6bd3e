"""The laws of the rig in simulated worlds, where more comes together than a test thinks of."""

from random import Random

import pytest
from core_rig import Told, unfinished, untrue
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import Effects
from supervisord_py.core.events import Event, Now
from supervisord_py.core.manager import Manager
from supervisord_py.testing.profile import draw_profile
from supervisord_py.testing.world import World


class Watched(Manager):
    """A core that is looked at after each event."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._events = 0
        self._followed: Told | None = None

    def handle(self, event: Event, now: Now) -> Effects:
        if self._followed is None:
            self._followed = Told()
            self._followed.begin(self)
        effects = super().handle(event, now)
        self._events += 1
        assert list(untrue(self)) == []
        self._followed.follow(self, event, effects)
        if self._events % 5 == 0 and not view.is_over(self):
            again = Manager.restore(self.snapshot(), self.ledger.set)
            before = again.snapshot()
            more = unfinished(again, now)
            assert (more.records, more.actions) == ([], [])
            assert again.snapshot() == before
        return effects


@pytest.mark.parametrize("seed", range(12))
def test_the_laws_of_the_core_hold_in_a_world(seed: int) -> None:
    """After every event the state says what is so, the records alone tell how each unit is, and whoever looks at every
    unit and job once more finds nothing that could go on.
    """
    rng = Random(seed)
    profile = replace(draw_profile(rng), requests=30)
    outcome = World(seed, profile, rng=rng, manager_type=Watched).run()
    assert outcome.violation is None, outcome.report()

"""Hypothesis drives the same world: it draws what the seeds draw, and shrinks what it finds to a few units and
requests.
"""

from random import Random

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from supervisord_py.core.actions import Effects
from supervisord_py.core.events import CommandRequested, Event, Now
from supervisord_py.core.manager import Manager
from supervisord_py.testing.profile import FAULTS, Profile
from supervisord_py.testing.world import World

profiles = st.builds(
    Profile,
    units_max=st.integers(1, 5),
    requests=st.integers(1, 15),
    gap_max_ms=st.sampled_from((50, 4000)),
    relations=st.sampled_from((0.0, 0.4)),
    **{name: st.sampled_from((0.0, 0.0, 0.3)) for name in FAULTS},
)
quiet_profiles = st.builds(
    Profile, units_max=st.integers(1, 5), requests=st.integers(1, 15), gap_max_ms=st.just(4000), targets=st.just(0.0)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(profile=profiles, rng=st.randoms(use_true_random=False))
def test_no_law_is_broken_in_any_small_world(profile: Profile, rng: Random) -> None:
    """Whatever Hypothesis makes of a small world, every law of the core holds."""
    outcome = World(0, profile, rng=rng).run()
    assert outcome.violation is None, outcome.report()


class Forgetful(Manager):
    """A core that never answers who has to wait."""

    def handle(self, event: Event, now: Now) -> Effects:
        effects = super().handle(event, now)
        if not isinstance(event, CommandRequested):
            effects.replies = []
        return effects


@pytest.mark.slow
def test_what_it_finds_is_small() -> None:
    """A planted bug is shrunk to a world that a person can read: at most four units."""
    profile, _ = find(
        st.tuples(quiet_profiles, st.randoms(use_true_random=False)),
        lambda drawn: World(0, drawn[0], rng=drawn[1], manager_type=Forgetful).run().checker == "one-reply",
        settings=settings(max_examples=60, deadline=None, phases=(Phase.generate, Phase.shrink), database=None),
    )
    assert profile.units_max <= 4

"""The checkers themselves are tested: every planted bug is found, by a checker that is made for it."""

from random import Random

import pytest
from msgspec.structs import replace
from mutants_limits import PLANTED as MUTANTS

from supervisord_py.testing.profile import draw_profile
from supervisord_py.testing.world import World

SEEDS = 1500
"""Those in which nothing could be noticed are passed over."""


@pytest.mark.parametrize("name", MUTANTS)
def test_the_planted_bug_is_found(name: str) -> None:
    """Within some seeds the checker that is made for the bug finds it, and no other that has nothing to do
    with it.
    """
    planted = MUTANTS[name]
    with planted.plant() as manager_type:
        for seed in range(SEEDS):
            profile = draw_profile(Random(seed))
            if not all(getattr(profile, need) for need in planted.needs.split()):
                continue
            richer = replace(profile, **planted.more) if planted.more else None
            outcome = World(seed, richer, manager_type=manager_type).run()
            if outcome.checker is not None:
                assert outcome.checker in planted.checkers, f"{planted.what}: {outcome.report()}"
            if outcome.checker == planted.checkers[0]:
                return
    pytest.fail(f"{SEEDS} seeds and {planted.checkers[0]} did not notice: {planted.what}")


def test_every_checker_has_found_a_bug() -> None:
    """No checker is decoration: each is the one that has to find at least one planted bug."""
    named = {planted.checkers[0] for planted in MUTANTS.values()}
    assert {checker.name for checker in World(0).checkers.all} <= named


def test_planting_leaves_no_trace() -> None:
    """After the planted bugs are gone the core is as it was: a seed that they broke passes."""
    for planted in MUTANTS.values():
        with planted.plant():
            pass
    assert World(1).run().violation is None

"""Two thousand seeds of the simulated world; ``make test`` runs all, in chunks that parallel workers share."""

import pytest
from mutants import MUTANTS

from supervisord_py.testing.profile import FAULTS
from supervisord_py.testing.world import World, main

CHUNKS = 80
CHUNK = 25


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_checker_finds_anything(chunk: int) -> None:
    """Every law of the core holds in every world of this chunk of seeds."""
    failures = [
        outcome.report()
        for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK)
        if (outcome := World(seed).run()).violation is not None
    ]
    assert not failures, "\n\n".join(failures)


def test_the_worlds_are_eventful() -> None:
    """The seeds do reach what they are for: deaths of the manager, hours of time, every fault class."""
    outcomes = [World(seed).run() for seed in range(30)]
    assert sum(outcome.deaths for outcome in outcomes) > 20
    assert sum(outcome.steps for outcome in outcomes) > 5000
    switched_on = {line.partition("=")[0] for outcome in outcomes for line in outcome.profile.switched_on()}
    assert set(FAULTS) <= switched_on


def test_a_failing_seed_is_reported_so_that_one_can_begin(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line names the seed, the law, the faults, the last events and how to run it again."""
    with MUTANTS["kills_at_once"].plant():
        assert main(["--seeds", "12"]) == 1
    said = capsys.readouterr()
    assert "kill-timeout" in said.err
    assert "profile:" in said.err
    assert "again: python -m supervisord_py.testing.world --seed" in said.err
    assert main(["--seed", "1", "--verbose"]) == 0
    said = capsys.readouterr()
    assert "units loaded:" in said.out
    assert said.out.splitlines()[-1].startswith("1 seeds, 0 failed")

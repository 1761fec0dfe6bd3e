"""The core is a function of its inputs: no hash seed, no process and no replay changes what it decides."""

import os
import subprocess
import sys

import msgspec
import pytest

from supervisord_py.testing.profile import draw_profile
from supervisord_py.testing.replay import FlightLog, read_flight_log, replay
from supervisord_py.testing.world import World

SEEDS = (3, 11, 27)
PROGRAM = (
    "import sys; from supervisord_py.testing.world import World; "
    "print(*(World(int(seed), digest=True).run().digest for seed in sys.argv[1:]))"
)


def _digests(hash_seed: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, SEEDS)], env=environment, capture_output=True, text=True, check=True
    )
    return ran.stdout


def test_one_digest_for_every_hash_seed() -> None:
    """Every event and effect is the same whatever PYTHONHASHSEED is: no set of names is iterated."""
    digests = {hash_seed: _digests(hash_seed) for hash_seed in ("0", "1", "2", "random")}
    assert len(set(digests.values())) == 1, digests
    assert len(digests["0"].split()) == len(set(digests["0"].split())) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_flight_log_replays_to_the_same_bytes(seed: int) -> None:
    """The recorded inputs of a run, read back from text and put through fresh managers, give identical effects."""
    effects: list[bytes] = []
    log = FlightLog(decided=lambda effect: effects.append(msgspec.json.encode(effect)))
    World(seed, flight=log).run()
    again = [msgspec.json.encode(effect) for _, effect in replay(log.lines)]
    assert len(again) > 50
    assert again == effects


def test_a_replay_with_another_seed_is_another_story() -> None:
    """The comparison can fail: a log whose first line names another seed gives other effects (jitter, invocation
    ids).
    """
    log = FlightLog()
    World(SEEDS[0], flight=log).run()
    first = log.lines[0].replace(b'"seed":3', b'"seed":4')
    assert first != log.lines[0]
    one = [msgspec.json.encode(effect) for _, effect in replay(log.lines[:50])]
    other = [msgspec.json.encode(effect) for _, effect in replay([first, *log.lines[1:50]])]
    assert one != other


def test_a_damaged_log_names_its_line() -> None:
    """A line that is not of a flight log is refused with its number."""
    with pytest.raises(msgspec.ValidationError) as refused:
        list(read_flight_log([b'{"type":"began","seed":1}', b'{"type":"took","now":1}']))
    assert refused.value.__notes__ == ["line 2 of the flight log"]


def test_a_log_without_a_beginning_is_refused() -> None:
    """A log that does not say what the manager began with cannot be replayed."""
    log = FlightLog()
    World(SEEDS[0], flight=log).run()
    with pytest.raises(ValueError, match="begins in the middle"):
        list(replay(log.lines[1:3]))


def test_profiles_differ_between_seeds() -> None:
    """Swarm testing switches a different subset of the fault classes on for each seed."""
    from random import Random

    drawn = {tuple(draw_profile(Random(seed)).switched_on()) for seed in range(20)}
    assert len(drawn) == 20

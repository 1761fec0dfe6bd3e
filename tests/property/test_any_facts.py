"""Whatever is told to the core, in whatever order: it decides something. A fact that it raised at would be told to the
next manager again, and end that one too.

Unlike the simulated world nothing here makes sense: exits of what never ran, units that come and go, orders that are
cycles.
"""

from random import Random

import pytest
from msgspec.structs import replace

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import (
    CommandRequested,
    DeadlineReached,
    Event,
    ExitStatus,
    NotifyReceived,
    Now,
    ProcessExited,
    ProcessSpawned,
    RequesterGone,
    ShutdownForced,
    ShutdownRequested,
    SpawnFailed,
    TreeEmptied,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import SECOND_NS, Dependency, UnitSet
from supervisord_py.testing.population import draw_units, mutate_units
from supervisord_py.testing.profile import Profile

PROFILE = Profile(conflicts=0.3, missing=0.3, bad_unit=0.3, kill_process=0.1, no_sigkill=0.2, infinite_timeout=0.2)
VERBS = [
    "start",
    "start",
    "start",
    "stop",
    "restart",
    "try-restart",
    "reload",
    "reload-or-restart",
    "kill",
    "reset-failed",
    "cancel",
]
STATUSES = (ExitStatus(code=0), ExitStatus(code=1), ExitStatus(signal=15), ExitStatus(signal=9), ExitStatus())
WORDS: tuple[dict[str, str], ...] = (
    {"READY": "1"}, {"STOPPING": "1"}, {"RELOADING": "1"}, {"WATCHDOG": "trigger"}, {"EXTEND_TIMEOUT_USEC": "9" * 18},
)  # fmt: skip


def draw_set(rng: Random) -> UnitSet:
    """Draw a unit set, every third one with an order that no check has looked at."""
    loaded = draw_units(rng, PROFILE)
    units = dict(loaded.units)
    for name in sorted(units) if rng.random() < 0.3 else ():
        after = (*units[name].after, Dependency(rng.choice(sorted(units))))
        units[name] = replace(units[name], after=after)
    return replace(loaded, units=units)


def draw_fact(rng: Random, action: SpawnProcess) -> Event:
    """Draw something that is said of a process, true or not."""
    spawn_id, pid = action.spawn_id, 1000 + action.spawn_id
    match rng.randrange(5):
        case 0:
            return ProcessSpawned(spawn_id, pid)
        case 1:
            return SpawnFailed(spawn_id, rng.choice(("exec", "fork", "chdir")), 203, rng.choice((0, 2)))
        case 2:
            is_main, is_empty = rng.random() < 0.8, rng.random() < 0.6
            return ProcessExited(spawn_id, pid, rng.choice(STATUSES), is_main, is_empty)
        case 3:
            return TreeEmptied(action.unit)
        case _:
            main_pid = rng.choice((None, 2000 + rng.randrange(9)))
            sender = rng.choice((spawn_id, None))
            return NotifyReceived(action.unit, sender, pid, rng.choice(WORDS), main_pid, rng.choice((None, "no")))


def draw_event(rng: Random, number: int, units: UnitSet, spawns: list[SpawnProcess]) -> Event:
    chance = rng.random()
    if spawns and chance < 0.5:
        return draw_fact(rng, rng.choice(spawns[-8:]))
    if chance < 0.8:
        names = sorted(units.units)
        return CommandRequested(
            number,
            rng.choice(VERBS),
            tuple(rng.sample(names, min(len(names), 3))),
            mode=rng.choice((JobMode.REPLACE, *JobMode)),
            plan=rng.random() < 0.1,
            token=rng.choice(("", "again")),
            arguments={"job": rng.randrange(1, 30)},
        )
    if chance < 0.9:
        return DeadlineReached()
    if chance < 0.96:
        loaded = draw_set(rng) if rng.random() < 0.5 else mutate_units(rng, PROFILE, units)
        return UnitsLoaded(loaded, start_enabled=rng.random() < 0.7)
    if chance < 0.965:
        return rng.choice((ShutdownForced(), ShutdownRequested(0), ShutdownRequested(30 * SECOND_NS)))
    return RequesterGone(number - 1)


@pytest.mark.parametrize("chunk", range(5))
def test_nothing_that_is_told_ends_the_manager(chunk: int) -> None:
    """No event raises, and a manager restored at any moment has the same state."""
    for seed in range(chunk * 40, chunk * 40 + 40):
        rng = Random(seed)
        units, manager = draw_set(rng), Manager(seed)
        mono_ns, seq, spawns = 1000 * SECOND_NS, 1, list[SpawnProcess]()
        event: Event = UnitsLoaded(units, start_enabled=True)
        for number in range(1, 200):
            mono_ns += rng.choice((0, 0, SECOND_NS // 10, SECOND_NS, 20 * SECOND_NS))
            effects = manager.handle(event, Now(mono_ns, mono_ns, mono_ns, seq))
            units = event.units if isinstance(event, UnitsLoaded) else units
            seq += len(effects.records)
            spawns += [action for action in effects.actions if isinstance(action, SpawnProcess)]
            if rng.random() < 0.1:
                snapshot = manager.snapshot()
                manager = Manager.restore(snapshot, units)
                assert manager.snapshot() == snapshot, seed
            event = draw_event(rng, number, units, spawns)

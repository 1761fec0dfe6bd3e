"""The supervisor is off for a while and begins again: with what it has kept on disk, and nothing else.

After the end of a world the machine is switched on again, at once or days later, with the unit files of before the
calm. What was kept is the state at the orderly end, or, as after a loss of power, that of the last ``KeepState``.
Nothing goes wrong in this act; it is judged by the checker of timers alone, which knows when each unit was run before:
a time that a persistent timer has missed while it was off is made up for once, those that any other has missed are not.
"""

from random import Random
from typing import TYPE_CHECKING

from supervisord_py.core.manager import Manager
from supervisord_py.testing.checkers_timers import Timers
from supervisord_py.testing.clock import SECOND_NS
from supervisord_py.testing.profile import QUIET
from supervisord_py.testing.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

OFF_S = (1, 90, 3600, 30 * 3600)
AWAKE_S = (150, 1500)


class Morning(World):
    """The machine after it was off."""

    def __init__(self, before: World, timers: Timers) -> None:
        rng = Random(f"{before.seed} in the morning")
        is_orderly = rng.random() < 0.5
        self._kept: Mapping[str, str] = before.state if is_orderly else timers.kept
        super().__init__(before.seed, QUIET, rng=rng, manager_type=before.manager_type, trace=before._trace)
        self._tail = before._tail
        self._note("-- the supervisor was off, and begins again")
        off_ns = rng.choice(OFF_S) * SECOND_NS
        if rng.random() < 0.5:
            # the machine was on: its clocks have gone on
            self.clock.mono_ns, self.clock.slept_ns = before.clock.mono_ns + off_ns, before.clock.slept_ns
        self.clock.wall_offset_ns += before.clock.now(0).wall_ns + off_ns - self.clock.now(0).wall_ns
        own = Timers(self)
        own.remember(timers, is_orderly=is_orderly)
        self.checkers.only(own)
        self._timers = own
        self._units = timers.units
        self._awake_ns = rng.choice(AWAKE_S) * SECOND_NS

    def _new_manager(self) -> Manager:
        manager = super()._new_manager()
        manager.restore_counters(self._kept)
        return manager

    def _play(self) -> None:
        self.releases.load(self._units, start_enabled=True)
        limit_ns = self.clock.mono_ns + self._awake_ns
        self._run_until(lambda: False, limit_ns)
        self.clock.advance_to(limit_ns)
        self._timers.look_for_missed()


def begin_again(before: World) -> None:
    """Play the act after a world, where it has timers."""
    timers = next(each for each in before.checkers.all if isinstance(each, Timers))
    if any(unit.timer is not None for unit in timers.units.units.values()):
        Morning(before, timers)._play()

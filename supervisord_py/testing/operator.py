"""The operator who makes a world calm: takes away what would go on for ever, lets all go on, starts what has failed."""

from typing import TYPE_CHECKING

from supervisord_py.core.view import unit_status
from supervisord_py.testing.clock import SECOND_NS
from supervisord_py.testing.population import without_cycles_of_lives
from supervisord_py.testing.settings import calm

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

RESUMED_NS = 60 * SECOND_NS
"""When the last order to pause anything has been carried out, and whoever stands still is resumed."""


class Operator:
    """Acts on one world when its faults are over."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def let_live(self) -> None:
        """An operator takes away what ends units although nothing is wrong; what has no file any more is stopped."""
        world = self._world
        calmer = without_cycles_of_lives(world.releases.units)
        quiet = calm(world.releases.settings)
        if calmer != world.releases.units or quiet != world.releases.settings:
            world.releases.settings = quiet
            world.releases.load(calmer)
        world.agenda.after(RESUMED_NS, self._resume)
        vanished = sorted(world.manager_units() - set(world.units.units) - set(world.units.bad))
        for job in world.jobs():
            # an irreversible start would have the stop refused
            if job.unit in vanished and job.type != "stop":
                world.submit(world.clients.enter("cancel", arguments={"job": job.job}))
        for name in vanished:
            world.submit(world.clients.enter("stop", name))

    def pause(self) -> None:
        """Let something that runs stand still for a while."""
        world = self._world
        running = [name for name, life in world.seen.lives.items() if life.main_running and not life.ending]
        if running and world.is_up:
            name = world.rng.choice(running)
            world.submit(world.clients.enter("pause", name))
            world.agenda.after(world.rng.randint(0, 30) * SECOND_NS, lambda: self._end_pause(name))

    def _end_pause(self, name: str) -> None:
        if self._world.is_up:
            self._world.submit(self._world.clients.enter("resume", name))

    def _resume(self) -> None:
        """Nothing is left standing still."""
        world = self._world
        for name in sorted(world.manager_units()):
            if unit_status(world.manager, name).sub_state == "paused":
                world.submit(world.clients.enter("resume", name))

    def mend(self) -> None:
        """An operator starts what has failed: whatever waits for it has to come back by itself."""
        world = self._world
        for name in sorted(world.manager_units()):
            if unit_status(world.manager, name).active_state in ("failed", "quarantined"):
                world.submit(world.clients.enter("start", name))

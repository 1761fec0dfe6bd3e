"""What disturbs a world from outside, at the pace of its requests: clocks, reloads, kills, losses, orders to end."""

from typing import TYPE_CHECKING

from supervisord_py.core.events import DeadlineReached, ShutdownForced, ShutdownRequested
from supervisord_py.testing.clock import SECOND_NS
from supervisord_py.testing.population import mutate_units, scale_units
from supervisord_py.testing.settings import draw_settings

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

SHUTDOWN_NS = 30 * SECOND_NS


class Disturber:
    """Disturbs one world."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def disturb(self) -> None:
        """Something happens to the machine, or somebody edits unit files."""
        world = self._world
        if world.chance("daemon_reload"):
            world.strike_all("daemon_reload")
            world.releases.load(mutate_units(world.rng, world.profile, world.releases.units), start_enabled=True)
        if world.chance("scale"):
            world.releases.load(scale_units(world.rng, world.releases.units), start_enabled=True)
        if world.chance("pause"):
            world.operator.pause()
        if world.chance("new_settings"):
            world.releases.settings = draw_settings(world.rng, world.profile)
            world.releases.load(world.releases.units)
        if world.profile.new_bounds and world.chance("new_bounds"):
            living = sorted(name for name, life in world.seen.lives.items() if life.main_running)
            if living:
                world.releases.set_bounds(world.rng.choice(living))
        if world.chance("wall_jump"):
            world.strike_all("wall_jump")
            most_s = world.rng.choice((90, 3600, 86_400))
            world.clock.set_wall(world.rng.randint(-most_s, most_s) * SECOND_NS)
            world.clock_changed = True
        if world.chance("keeper_lost") and world.loaded and world.seen.shutdown is None and world.is_up:
            world.lose_keeper()
            return
        if world.chance("suspend"):
            world.strike_all("suspend")
            world.clock.suspend(world.rng.randint(1, 36_000) * SECOND_NS)
            world.clock_changed = True
        if world.chance("conditions_change"):
            world.hands.change()
        if world.chance("stopped") and world.units.units:
            world.kernel.stop_some(world.rng.choice(sorted(world.units.units)))
        if world.chance("stray"):
            world.kernel.add_stray()
        if world.chance("crash") and world.units.units:
            world.kernel.kill_some(world.rng.choice(sorted(world.units.units)))
        if world.chance("early_deadline"):
            world.submit(DeadlineReached())
        if world.chance("shutdown") and world.stopping is None:
            world.strike_all("shutdown")
            world.order_stop(ShutdownRequested(world.rng.choice((SECOND_NS, SHUTDOWN_NS))))
        elif (world.stopping or world.seen.shutdown) is not None and world.chance("forced"):
            world.strike_all("forced")
            world.is_forced = True
            world.submit(ShutdownForced())

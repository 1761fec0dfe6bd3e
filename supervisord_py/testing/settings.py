"""What ``supervisord.toml`` says in the simulated world: limits, hooks, and whether an empty supervisor ends."""

from random import Random

from msgspec import Struct

from supervisord_py.core.events import UnitsLoaded
from supervisord_py.model.hooks import Hook
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.unit import SECOND_NS, Command
from supervisord_py.testing.profile import Profile

POOLS = ("gpu", "io", "net")
"""The pools that units may name; one without a limit is no limit."""

_EVENTS = ("unit.failed", "unit.exited", "unit.quarantined", "unit.*", "job.finished", "unit.re*", "*")


class Settings(Struct, frozen=True):
    """What a load says besides the units."""

    limits: PoolLimits = PoolLimits()
    hooks: tuple[Hook, ...] = ()
    until_empty: bool = False


def draw_settings(rng: Random, profile: Profile) -> Settings:
    return Settings(
        draw_limits(rng, profile),
        _draw_hooks(rng, profile),
        until_empty=rng.random() < profile.until_empty,
    )


def draw_limits(rng: Random, profile: Profile) -> PoolLimits:
    most = rng.choice((1, 2, 3, 5)) if rng.random() < profile.limits else 0
    return PoolLimits(most, {name: rng.randint(1, 3) for name in POOLS if rng.random() < profile.limits})


def calm(settings: Settings) -> Settings:
    """Everything may run, and nothing ends by itself."""
    return Settings(hooks=settings.hooks)


def settings_of(event: UnitsLoaded) -> Settings:
    return Settings(event.limits, event.hooks, event.until_empty)


def _draw_hooks(rng: Random, profile: Profile) -> tuple[Hook, ...]:
    count = rng.randint(1, 3) if rng.random() < profile.event_hooks else 0
    return tuple(
        Hook(rng.choice(_EVENTS), Command((f"/opt/hooks/{index}",)), rng.choice((1, 3, 10)) * SECOND_NS)
        for index in range(count)
    )

"""Worker pools: how many units run at a time, and what can never fit in.

A unit that has processes holds a slot of the supervisor (``max-workers``) and one of its pool, if it names one, from
the start of its start to the end of its stop. Targets, timers that wait and oneshots that are done hold none.

What a unit requires runs while it starts, so a unit and all that it requires need their slots at the same time: where
a limit is below that it never starts.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from supervisord_py.model.states import ServiceType, Until
from supervisord_py.model.unit import Dependency, Unit

WORKERS = ""
"""The name of the limit that all units share, ``max-workers``."""


class PoolLimits(Struct, frozen=True):
    """The limits that ``supervisord.toml`` sets; 0 is no limit, and so is a pool that is not in ``pools``."""

    max_workers: int = 0
    pools: dict[str, int] = {}

    def of(self, name: str) -> int | None:
        """How many units the pool ``name`` holds (``WORKERS``: the supervisor); None without a limit."""
        return (self.max_workers if name == WORKERS else self.pools.get(name, 0)) or None

    @property
    def bounding(self) -> tuple[str, ...]:
        """The names of the limits that there are."""
        return tuple(name for name in (WORKERS, *sorted(self.pools)) if self.of(name) is not None)


class Excess(Struct, frozen=True):
    """A unit that can never start: with what it requires it needs more slots of ``pool`` than the ``room`` there.

    ``holders`` are the units that need one, the unit itself among them if it does; ``chains`` lead from the unit to
    each of those that nothing further is required by.
    """

    unit: str
    pool: str
    room: int
    holders: tuple[str, ...]
    chains: tuple[tuple[str, ...], ...]


def label(pool: str) -> str:
    """The key of ``supervisord.toml`` that sets the limit."""
    return "max-workers" if pool == WORKERS else f"[pools.{pool}] max-workers"


def find_excess(units: Mapping[str, Unit], limits: PoolLimits) -> list[Excess]:
    """Find the units that can never start; where one requires another of them, only the latter."""
    found: list[Excess] = []
    for pool in limits.bounding:
        over = {name: excess for name in sorted(units) if (excess := excess_of(units, name, limits, pool)) is not None}
        for name, excess in over.items():
            others = [other for other in _parents(units, name) if other in over and other != name]
            # Of two that require each other the first by name is told.
            if all(name < other and name in _parents(units, other) for other in others):
                found.append(excess)
    return found


def excess_of(units: Mapping[str, Unit], name: str, limits: PoolLimits, pool: str) -> Excess | None:
    """Say why a unit can never start under one limit; None when it can."""
    room = limits.of(pool)
    if room is None:
        return None
    parents = _parents(units, name)
    holders = tuple(
        other for other in parents if _is_in(units[other], pool) and (other == name or _stays(units[other]))
    )
    if len(holders) <= room:
        return None
    inner = {parent for other in holders for parent in _chain(parents, other)[:-1]}
    ends = (other for other in holders if other not in inner)
    return Excess(name, pool, room, holders, tuple(tuple(_chain(parents, other)) for other in ends))


def _parents(units: Mapping[str, Unit], name: str) -> dict[str, str | None]:
    """What a unit requires, itself first and nearest first, each with the unit that requires it."""
    parents: dict[str, str | None] = {name: None}
    queue = [name]
    for one in queue:
        for dependency in _required(units[one]):
            # What must have exited is over when this one starts.
            if dependency.unit in units and dependency.unit not in parents and dependency.until is not Until.EXITED:
                parents[dependency.unit] = one
                queue.append(dependency.unit)
    return parents


def _required(unit: Unit) -> Iterable[Dependency]:
    return (*unit.requires, *unit.requisite, *unit.binds_to)


def _chain(parents: Mapping[str, str | None], name: str) -> list[str]:
    chain = [name]
    while (parent := parents[chain[-1]]) is not None:
        chain.append(parent)
    return chain[::-1]


def _is_in(unit: Unit, pool: str) -> bool:
    return unit.service is not None and pool in (WORKERS, unit.pool.name)


def _stays(unit: Unit) -> bool:
    """Whether a unit holds its slot while those run that require it."""
    return unit.service is not None and unit.service.type is not ServiceType.ONESHOT and unit.timer is None

"""Worker pools: how many units run at a time, and what can never fit in.

A unit that has processes holds a place of the supervisor (``max-workers``) and one of its pool, if it names one, from
the start of its start to the end of its stop. Targets, timers that wait and oneshots that are done hold none.
"""

from msgspec import Struct

WORKERS = ""
"""The name of the limit that all units share, ``max-workers``."""


class PoolLimits(Struct, frozen=True):
    """The limits that ``supervisord.toml`` sets; 0 is no limit, and so is a pool that is not in ``pools``."""

    max_workers: int = 0
    pools: dict[str, int] = {}

    def of(self, name: str) -> int | None:
        """How many units the pool ``name`` holds (``WORKERS``: the supervisor); None without a limit."""
        return (self.max_workers if name == WORKERS else self.pools.get(name, 0)) or None

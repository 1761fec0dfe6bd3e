"""Whom the kernel has killed because the memory of a unit was full, and how much that was."""

from collections.abc import Collection

from supervisord_py.core.events import Breach
from supervisord_py.host.resources import UnitResources


class MemoryKills:
    """Asks the groups of units whose memory the kernel bounds.

    What holds is read from the group, not from the unit file: who sets a bound on a unit that has more already has it
    killed before the new text is in force.

    Args:
        resources: The bounds of all units; None where there are none.
    """

    def __init__(self, resources: UnitResources | None) -> None:
        self._resources = resources

    def may_have_killed(self) -> bool:
        """Say whether the kernel may have killed anything of any unit since this was asked."""
        return self._resources is not None and self._resources.may_have_killed()

    def keep_count(self) -> None:
        """Do not tell again, whoever is the next manager, what was settled until now."""
        if self._resources is not None:
            self._resources.keep_count()

    def kills_of(self, units: Collection[str], *, settle: bool) -> dict[str, Breach]:
        """Return which of these units a process was killed of since that was settled."""
        found = {unit: self.breach_of(unit, settle=settle) for unit in units}
        return {unit: breach for unit, breach in found.items() if breach is not None}

    def breach_of(self, unit: str, *, settle: bool) -> Breach | None:
        """Return what the unit had when a process of it was killed; None when none was."""
        resources = self._resources
        if resources is None or not resources.has_killed(unit, settle=settle):
            return None
        most, mechanism = resources.memory_bound(unit)
        return None if most is None else Breach("memory-max", resources.peak(unit) or most, most, mechanism.value)

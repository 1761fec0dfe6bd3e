"""Bounds on all processes of a unit, and who breaks them: the kernel that kills because memory is full, and the hand of
the manager that counts what no kernel bounds.

Some process of a unit takes too much, whatever it is there for. Where the kernel holds the bound it kills one of the
tree, and the keeper's fact of that end carries the numbers, if it is of a process that somebody waits for. Elsewhere
the manager notices it within a second, and every manager that follows notices it again, as long as it is so.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from msgspec.structs import replace

from supervisord_py.core.events import Breach, Event, ExitStatus, LimitExceeded
from supervisord_py.model.context import Amount, Resources
from supervisord_py.model.unit import SECOND_NS, Unit, UnitSet
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.processes import SIGKILL, Process, Spawn
from supervisord_py.testing.profile import Profile

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel

MIB = 1024 * 1024
LOOKS_NS = SECOND_NS
"""So often the manager counts."""


def draw_resources(rng: Random, profile: Profile) -> Resources:
    """The bounds of a unit; none, and nothing drawn, in a world where nobody breaks or sets any."""
    if not profile.breaches and not profile.new_bounds:
        return Resources()
    return Resources(
        memory_max=rng.choice((None, Amount(count=64 * MIB), Amount(count=512 * MIB))),
        tasks_max=rng.choice((None, Amount(count=20))),
    )


def with_other_bounds(rng: Random, profile: Profile, units: UnitSet, name: str) -> UnitSet | None:
    """The set in which a unit has other bounds; None where there is nothing to bound."""
    unit = units.units.get(name)
    if unit is None or unit.service is None:
        return None
    return replace(units, units={**units.units, name: _bounded(unit, draw_resources(rng, profile))})


def _bounded(unit: Unit, resources: Resources) -> Unit:
    assert unit.service is not None
    return replace(unit, service=replace(unit.service, context=replace(unit.service.context, resources=resources)))


class Appetite:
    """Who takes too much on one kernel."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self.excess: dict[str, tuple[str, Breach]] = {}
        """By unit: the life that has too much, where only we see it, and how much."""
        self._killed: dict[str, tuple[str, Breach]] = {}
        """By unit: the life of which the kernel has killed a process whose end the keeper tells."""
        self.others_killed: dict[str, tuple[str, Breach]] = {}
        """By unit: the life of which it has killed another."""

    def begin(self, spawn: Spawn) -> None:
        """The program of a process of a unit's life runs: decide whether it takes too much."""
        kernel, service = self._kernel, spawn.service
        if service is None or not kernel.has("breaches") or service.context.resources == Resources():
            return
        if kernel.fault("breaches"):
            resources = service.context.resources
            kernel.later(1, kernel.choice((100, 8000)), lambda: self._eat(spawn, resources))

    def _eat(self, spawn: Spawn, resources: Resources) -> None:
        kernel, unit = self._kernel, spawn.unit
        tree = kernel.trees.get(unit, {})
        if kernel.is_calm or not spawn.main.alive or spawn.pending or kernel.freezer.is_still(spawn.main):
            return
        if resources.memory_max is not None and kernel.number(0, 1):
            most = resources.memory_max.count or 0
            breach = Breach("memory-max", most, most, "cgroup v2")
            victim = kernel.choice([spawn.main, spawn.main, *tree.values()])
            told = self._killed if victim.spawn is not None and victim.spawn.main is victim else self.others_killed
            told[unit] = (spawn.invocation, breach)
            kernel.struck("oom", unit)
            kernel.deliver(victim, SIGKILL)
            return
        if resources.memory_max is not None:
            most = resources.memory_max.count or 0
            breach = Breach("memory-max", most + kernel.number(1, 9) * MIB, most, "sampling")
        else:
            assert resources.tasks_max is not None
            most = resources.tasks_max.count or 0
            breach = Breach("tasks-max", most + kernel.number(1, 9), most, "sampling")
        self.excess[unit] = (spawn.invocation, breach)

    def breach_of(self, process: Process, status: ExitStatus) -> Breach | None:
        """What the host adds to the end of a process: that the kernel has killed one of its life."""
        killed = self._killed.get(process.unit)
        if killed is None or killed[0] != process.invocation or status.signal != SIGKILL:
            return None
        del self._killed[process.unit]
        return killed[1]

    def is_over(self, unit: str, invocation: str) -> bool:
        """Whether nothing of the life is left that could take too much."""
        tree = self._kernel.trees.get(unit, {})
        return not any(process.invocation == invocation for process in tree.values())


class LimitHand:
    """The manager's hand that counts; it dies with it."""

    def __init__(self, agenda: Agenda, kernel: "Kernel", submit: Callable[[Event], None]) -> None:
        self._agenda, self._kernel, self._submit = agenda, kernel, submit
        self._told: set[str] = set()
        """The lives that this manager has told of."""
        self._manager = 0
        self._is_counting = False

    def look(self) -> None:
        """Count once a second from now on, while anything has too much."""
        appetite = self._kernel.appetite
        if (appetite.excess or appetite.others_killed) and not self._is_counting:
            self._is_counting = True
            manager = self._manager
            self._agenda.after(LOOKS_NS - 3 * MILLISECOND_NS, lambda: self._count(manager))

    def drop(self) -> None:
        self._manager += 1
        self._told.clear()
        self._is_counting = False

    def _count(self, manager: int) -> None:
        if manager != self._manager:
            return
        self._is_counting = False
        for unit, (invocation, breach) in self._kernel.appetite.others_killed.items():
            self._submit(LimitExceeded(unit, invocation, breach, by_kernel=True))
        self._kernel.appetite.others_killed.clear()
        excess = self._kernel.appetite.excess
        for unit, (invocation, breach) in list(excess.items()):
            if self._kernel.appetite.is_over(unit, invocation):
                del excess[unit]
            elif invocation not in self._told:
                self._told.add(invocation)
                self._kernel.struck("breach", unit)
                self._submit(LimitExceeded(unit, invocation, breach))
        self.look()

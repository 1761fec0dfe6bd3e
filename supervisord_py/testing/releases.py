"""The operator who rolls out releases, and the host's part in it: what runs by an older text, and how to go back to it.

An apply loads other unit files and then asks for the rollout, as ``host.unit_changes`` does; one that is refused,
because another is under way, loads nothing as a rule. Beside what is loaded the text of every life that runs by an
older one is kept; the answer to ``RevertUnits`` is what is loaded then, with those texts in it. It comes a moment later
and dies with the manager that was asked; a new one is asked again.
"""

from collections.abc import Callable, Mapping
from random import Random

from msgspec.structs import replace

from supervisord_py.core.actions import RevertUnits
from supervisord_py.core.events import Event, UnitsLoaded
from supervisord_py.model.changes import restart_keys
from supervisord_py.model.unit import Unit, UnitSet
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.limits import with_other_bounds
from supervisord_py.testing.population import draw_release, older_units, without_cycles_of_lives
from supervisord_py.testing.profile import Profile
from supervisord_py.testing.settings import Settings, draw_settings


class Releases:
    """Draws releases and remembers what they took the place of."""

    def __init__(self, rng: Random, profile: Profile, agenda: Agenda, submit: Callable[[Event], None]) -> None:
        self._rng = rng
        self._profile = profile
        self._agenda = agenda
        self._submit = submit
        self._older: dict[str, Unit] = {}
        self._manager = 0
        self._number = 0
        self.units = UnitSet()
        """What was loaded last, or is about to be."""
        self.settings = draw_settings(rng, profile)
        self.calm = False

    def load(self, units: UnitSet, *, start_enabled: bool = False) -> None:
        """Load another set."""
        self.units = units
        self._submit(self._loaded(start_enabled=start_enabled))

    def set_bounds(self, name: str) -> None:
        """Give a unit other bounds, and its processes at once."""
        units = with_other_bounds(self._rng, self._profile, self.units, name)
        if units is not None:
            self.units = units
            self._submit(replace(self._loaded(), limited=(name,)))

    def apply(self) -> None:
        """Load what an apply found in the files."""
        self._number += 1
        self.load(draw_release(self._rng, self._profile, self.units, self._number), start_enabled=True)

    def note_load(
        self, old: UnitSet, event: UnitsLoaded, lives: Mapping[str, Unit], in_rollout: tuple[str, ...]
    ) -> None:
        """Take in what a load changes, just before it is decided."""
        new = event.units.units
        for name in sorted({*self._older, *lives}):
            runs_by_another = name in lives and name in new and restart_keys(lives[name], new[name])
            if name in in_rollout or name not in new or runs_by_another:
                if name not in self._older and name in old.units:
                    self._older[name] = old.units[name]
            else:
                self._older.pop(name, None)

    def revert(self, action: RevertUnits) -> None:
        """A rollout has failed, and this manager is asked for the older texts."""
        manager = self._manager
        self._agenda.after(self._rng.randint(0, 50) * MILLISECOND_NS, lambda: self._answer(action, manager))

    def _answer(self, action: RevertUnits, manager: int) -> None:
        if manager != self._manager:
            return
        older = {name: self._older[name] for name in action.units if name in self._older}
        units = older_units(self.units, older)
        self.units = without_cycles_of_lives(units) if self.calm else units
        self._submit(self._loaded(reverts=True))

    def boot(self, units: UnitSet) -> UnitsLoaded:
        """What the next supervisor loads first."""
        self.units = units
        return self._loaded(start_enabled=True)

    def _loaded(self, *, start_enabled: bool = False, reverts: bool = False) -> UnitsLoaded:
        now = self.settings
        return UnitsLoaded(
            self.units,
            start_enabled=start_enabled,
            reverts=reverts,
            limits=now.limits,
            hooks=now.hooks,
            until_empty=now.until_empty,
        )

    def drop(self, committed: UnitSet, settings: Settings) -> None:
        """The manager is dead: what it was about to load is not loaded."""
        self._manager += 1
        self.units, self.settings = committed, settings

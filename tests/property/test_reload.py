"""Reloads in the simulated world: the plan is what happens, and nothing is said of a life that is not so."""

from random import Random

from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import Effects, SpawnProcess
from supervisord_py.core.events import Event, Now, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import BETWEEN_LIVES, REST
from supervisord_py.model.change_keys import Effect
from supervisord_py.model.changes import Change
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Command
from supervisord_py.testing.profile import draw_profile
from supervisord_py.testing.world import World

_RAN: dict[int, Command] = {}
"""The command of every main process that was asked for, by spawn id."""

_SEEN: dict[str, int] = {}
"""How often each law had something to say: a law that is never tried proves nothing."""


def tried(what: str) -> None:
    _SEEN[what] = _SEEN.get(what, 0) + 1


class Watched(Manager):
    """A core whose reloads are looked at."""

    def handle(self, event: Event, now: Now) -> Effects:
        if not isinstance(event, UnitsLoaded):
            effects = super().handle(event, now)
            self._note(effects)
            return effects
        plan = view.reload_plan(self, event.units)
        effects = super().handle(event, now)
        self._note(effects)
        assert view.reload_plan(self, event.units) == (), "a second reload of the same files changes nothing"
        told = {(r.unit, r.event, r.fields.get("change")) for r in effects.records}
        for change in plan:
            tried(change.change.value)
            tried(change.effect.value)
            match change.change:
                case Change.BROKEN:
                    assert (change.unit, "unit.rejected", None) in told
                case Change.REMOVED:
                    # One that is at rest is told when it is forgotten, which a job or a process of it may delay.
                    vanished = (change.unit, "unit.loaded", "vanished") in told
                    assert vanished is (change.effect is Effect.KEEP)
                case _:
                    assert (change.unit, "unit.loaded", change.change.value) in told
            if change.effect is Effect.RESTART:
                needed = view.restart_keys(self, change.unit)
                sub = self.ledger.state(change.unit).sub
                keys = {key.key for key in change.keys if key.effect is Effect.RESTART}
                if change.unit in event.limited:
                    # What runs has them already.
                    keys = {key for key in keys if not key.startswith("limits.")}
                assert keys <= set(needed) or sub in REST or sub in BETWEEN_LIVES
        for record in effects.records:
            if record.event == "unit.loaded":
                assert record.unit in {change.unit for change in plan}
        self._check_lives()
        return effects

    def _note(self, effects: Effects) -> None:
        for action in effects.actions:
            if isinstance(action, SpawnProcess) and action.role in (Role.MAIN, Role.START):
                _RAN[action.spawn_id] = action.command

    def _check_lives(self) -> None:
        """``needs_restart`` is said of a command exactly when the process that runs was made by another."""
        for name, unit in self.ledger.set.units.items():
            main = self.ledger.state(name).main
            if main is None or main.spawn_id not in _RAN or unit.service is None:
                continue
            says = "service.exec-start" in view.restart_keys(self, name)
            text = self.ledger.texts[name].service
            assert text is not None
            is_another = text.exec_start != unit.service.exec_start
            assert says is is_another
            assert _RAN[main.spawn_id] in text.exec_start, "a life is shown with a command that it was not made by"
            tried("needs" if says else "up-to-date")


def test_reloads_in_random_worlds() -> None:
    """Over faults, deaths of the manager and every kind of change, what a plan said is what the reload did; and the
    worlds hold all that the laws are about.
    """
    for seed in range(40):
        _RAN.clear()
        rng = Random(seed)
        profile = replace(draw_profile(rng), daemon_reload=0.4, requests=25)
        outcome = World(seed, profile, rng=rng, manager_type=Watched).run()
        assert outcome.checker != "no-exception", outcome.report()
    wanted = {"added", "changed", "removed", "start", "live", "restart", "keep", "none", "needs", "up-to-date"}
    assert wanted <= _SEEN.keys()

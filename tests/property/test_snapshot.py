"""The state as text, at any moment that a world reaches, and as an older version wrote it."""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from supervisord_py.core.actions import (
    AnyAction,
    CheckConditions,
    ExitSupervisor,
    FollowMain,
    KillTree,
    SignalProcesses,
    SpawnProcess,
)
from supervisord_py.core.events import (
    ConditionsChecked,
    DeadlineReached,
    Event,
    ExitStatus,
    MainFollowed,
    Now,
    ProcessExited,
    ProcessSpawned,
    ShutdownRequested,
)
from supervisord_py.core.manager import Manager
from supervisord_py.core.snapshot import NewerFormatError
from supervisord_py.core.state import FORMAT
from supervisord_py.model.unit import SECOND_NS, UnitSet
from supervisord_py.testing import checkers_answers
from supervisord_py.testing.profile import Profile, draw_profile
from supervisord_py.testing.world import World

OLDER: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "snapshots" / "format-1.json").read_text(encoding="utf-8")
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(seed=st.integers(0, 1 << 32))
@example(seed=337416).via("the end of the supervisor by a later command that could not be forked")
def test_a_manager_restored_after_any_commit_is_the_same(seed: int) -> None:
    """After every single commit of a world the folded changes are the snapshot, a restored manager has that snapshot,
    and decides the next batch as the original does.
    """
    rng = Random(seed)
    profile: Profile = msgspec.structs.replace(draw_profile(rng), requests=25, units_max=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkers_answers, "FOLD_EVERY", 1)
        patch.setattr(checkers_answers, "TWIN_EVERY", 1)
        patch.setattr(checkers_answers, "TWIN_SEEDS", 1)
        outcome = World(seed, profile, rng=rng).run()
    assert outcome.violation is None, outcome.report()


@pytest.mark.parametrize("older", OLDER, ids=lambda older: str(older["seed"]))
def test_a_state_of_format_1_is_read_in_full(older: dict[str, Any]) -> None:
    """Every field that the format before this one wrote is in the state that it is restored to, with its value, and
    the format of the state is the present one from then on.
    """
    manager = Manager.restore(older["state"], _units(older))
    snapshot = manager.snapshot()
    assert set(snapshot) == set(older["state"])
    for key, text in older["state"].items():
        assert _says(json.loads(snapshot[key]), json.loads(text)), f"{key}: {snapshot[key]} after {text}"
    assert json.loads(snapshot["global"])["format"] == FORMAT > 1
    assert "global" in manager.take_changes()


@pytest.mark.parametrize("older", OLDER, ids=lambda older: str(older["seed"]))
def test_a_state_of_format_1_goes_on(older: dict[str, Any]) -> None:
    """A manager that took such a state over can stop everything in it and end, and never writes an error of its own."""
    manager = Manager.restore(older["state"], _units(older))
    machine = _Machine(manager, older["state"])
    machine.tell(ShutdownRequested(20 * SECOND_NS))
    for _ in range(2000):
        if machine.ended:
            break
        machine.turn()
    assert machine.ended
    assert not [record for record in machine.events if record == "unit.error"]


def test_a_newer_format_is_refused_before_anything_of_it_is_read() -> None:
    """A state of the next format is refused by name, by a restart and by a cold start, whatever else it holds."""
    state = {"global": json.dumps({"format": FORMAT + 1, "random": "now a text"}), "unit/web": "what is this"}
    with pytest.raises(NewerFormatError, match=f"is of format {FORMAT + 1}, and this version knows {FORMAT}"):
        Manager.restore(state, UnitSet())
    cold = Manager(1)
    before = cold.snapshot()
    with pytest.raises(NewerFormatError):
        cold.restore_counters(state)
    assert cold.snapshot() == before


def _units(older: Mapping[str, Any]) -> UnitSet:
    return msgspec.convert(older["units"], UnitSet)


def _says(new: Any, old: Any) -> bool:
    """Whether ``new`` holds everything that ``old`` does; new fields are beside the point."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(
            key in new and _says(new[key], value) for key, value in old.items() if key != "format"
        )
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(_says, new, old))
    return bool(new == old)


class _Machine:
    """Answers a manager in the simplest way: what is asked for happens, what is signalled ends."""

    def __init__(self, manager: Manager, state: Mapping[str, str]) -> None:
        self.manager = manager
        self.ended = False
        self.events: list[str] = []
        self._mono_ns = 10_000 * SECOND_NS
        self._running: dict[int, str] = {}
        self._todo: list[Event] = []
        for key, text in sorted(state.items()):
            kind, _, name = key.partition("/")
            if kind == "unit":
                unit = json.loads(text)
                processes = [unit[role] for role in ("main", "control") if unit.get(role)]
                self._running |= {process["spawn_id"]: name for process in processes}
                self._todo += [ProcessSpawned(p["spawn_id"], 7) for p in processes if p.get("pid") is None]

    def tell(self, event: Event) -> None:
        effects = self.manager.handle(event, Now(self._mono_ns, self._mono_ns, self._mono_ns, 1))
        self.events += [record.event for record in effects.records]
        for action in effects.actions:
            self._do(action)

    def turn(self) -> None:
        """Tell what is due next: a fact, else the deadline."""
        if self._todo:
            self.tell(self._todo.pop(0))
            return
        deadline_ns = self.manager.deadline_ns()
        assert deadline_ns is not None, "nothing will ever happen, and the supervisor has not ended"
        self._mono_ns = max(self._mono_ns, deadline_ns)
        self.tell(DeadlineReached())

    def _do(self, action: AnyAction) -> None:
        match action:
            case SpawnProcess():
                self._running[action.spawn_id] = action.unit
                self._todo += [ProcessSpawned(action.spawn_id, 7), self._end(action.spawn_id, ExitStatus(code=0))]
            case FollowMain():
                self._todo.append(MainFollowed(action.unit, action.spawn_id, refused="there is none"))
            case CheckConditions():
                self._todo.append(ConditionsChecked(action.check_id, action.unit))
            case KillTree() | SignalProcesses():
                ending = [number for number, unit in self._running.items() if unit == action.unit]
                if isinstance(action, SignalProcesses) and action.spawn_id is not None:
                    ending = [number for number in ending if number == action.spawn_id]
                self._todo += [self._end(number, ExitStatus(signal=action.signal)) for number in ending]
            case ExitSupervisor():
                self.ended = True

    def _end(self, spawn_id: int, status: ExitStatus) -> Event:
        unit = self._running.pop(spawn_id, None)
        return ProcessExited(spawn_id, 7, status, tree_empty=unit not in self._running.values())

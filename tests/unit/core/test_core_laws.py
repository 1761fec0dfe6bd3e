"""Laws over whole values and over random unit sets: what is added later is held by them too, because they go through
the fields that there are.
"""

from random import Random
from typing import Any, cast

import pytest
from core_rig import Rig, notify, service
from msgspec import Struct, inspect, json, structs

from supervisord_py.core import view
from supervisord_py.core.manager import Manager
from supervisord_py.core.rollout_state import Rollout
from supervisord_py.core.state import (
    ACTIVE_STATES,
    FORMAT,
    REST,
    GlobalState,
    Job,
    JobEnd,
    LastLife,
    TimerState,
    TokenEntry,
    UnitState,
)
from supervisord_py.model.states import ActiveState, Result, SubState
from supervisord_py.model.unit import Unit, UnitSet
from supervisord_py.testing.population import draw_units
from supervisord_py.testing.profile import Profile

# states in which nothing is as it is by default


def other_than_default(kind: inspect.Type, default: object = None) -> object:
    """Return a value of a type that is not the default; of a Struct one in which no field has its own."""
    match kind:
        case inspect.BoolType():
            return not default
        case inspect.IntType():
            return 7 if default != 7 else 8
        case inspect.FloatType():
            return 0.5
        case inspect.StrType():
            return "word"
        case inspect.EnumType(cls=cls):
            return next(each for each in cls if each is not default)
        case inspect.LiteralType(values=values):
            return next(each for each in values if each != default)
        case inspect.ListType(item_type=item):
            return [other_than_default(item)]
        case inspect.VarTupleType(item_type=item):
            return (other_than_default(item),)
        case inspect.TupleType(item_types=items):
            return tuple(map(other_than_default, items))
        case inspect.DictType(key_type=key, value_type=value):
            return {
                other_than_default(key): other_than_default(value) if not isinstance(value, inspect.NoneType) else None
            }
        case inspect.UnionType(types=types):
            return other_than_default(next(each for each in types if not isinstance(each, inspect.NoneType)), default)
        case inspect.StructType(cls=cls):
            return full(cls)
    raise AssertionError(f"no value of {kind} is known here")


def full(kind: type[Struct], **given: object) -> Any:
    """Make a value in which every field is something else than its default."""
    fields = cast(inspect.StructType, inspect.type_info(kind)).fields
    return kind(**{each.name: other_than_default(each.type, each.default) for each in fields} | given)


def text(value: Struct) -> str:
    return json.encode(value).decode()


def test_every_field_of_the_state_survives_a_restart_of_the_manager() -> None:
    """What is written is what is read, for a state in which no field is as it is by default."""
    web = service("web")
    state = {
        "unit/web": text(full(UnitState, sub=SubState.RUNNING)),
        "text/web": text(full(Unit, name="web")),
        "job/7": text(full(Job, id=7, unit="web")),
        "token/7": text(full(TokenEntry)),
        "end/7": text(full(JobEnd)),
        "rollout": text(full(Rollout)),
        "global": text(full(GlobalState, format=FORMAT)),
    }
    manager = Manager.restore(state, UnitSet(units={"web": web}))
    assert manager.snapshot() == state
    assert manager.take_changes() == {}


OUTLIVES_THE_SUPERVISOR = {
    "failures", "backoff", "restarts", "exit_code", "exit_signal", "exit_dumped", "last_life", "half_open",
}  # fmt: skip
OF_A_FAILURE = {"sub", "active", "since_wall_ns", "result", "message"}


@pytest.mark.parametrize("quarantined", [False, True])
@pytest.mark.parametrize("sub", [sub for sub in SubState if sub in ACTIVE_STATES])
def test_the_end_of_the_supervisor_is_survived_by_counters_and_ends_alone(sub: SubState, quarantined: bool) -> None:
    """Processes, jobs, deadlines and orders are over; what had failed is still failed, what is in quarantine stays
    there, anything else is down. How a life ended that was going on then is not known.
    """
    old = full(UnitState, sub=sub, active=ACTIVE_STATES[sub], quarantined=quarantined)
    cold = Manager(1)
    cold.restore_counters({"unit/web": text(old)})
    new = structs.asdict(cold.ledger.state("web"))
    kept = OUTLIVES_THE_SUPERVISOR | (OF_A_FAILURE if sub is SubState.FAILED or quarantined else set())
    expected = structs.asdict(UnitState()) | {
        name: value for name, value in structs.asdict(old).items() if name in kept
    }
    expected["timer"] = TimerState(stamp_wall_ns=old.timer.stamp_wall_ns, last_wall_ns=old.timer.last_wall_ns)
    if quarantined:
        expected |= {"quarantined": True, "sub": SubState.FAILED, "active": ActiveState.QUARANTINED}
    elif sub not in REST:
        expected["last_life"] = LastLife(result=Result.UNKNOWN)
    assert new == expected


OUTLIVES_A_LIFE = {
    "exit_code", "exit_signal", "exit_dumped", "last_life", "unmet", "checked_wall_ns", "related", "related_from_ns",
}  # fmt: skip
"""What is still told, or counted, of what was before."""


@pytest.mark.parametrize("sub", [SubState.DEAD, SubState.FAILED, SubState.DEPENDENCY])
def test_a_new_life_has_nothing_of_the_one_before(sub: SubState) -> None:
    """A unit of which everything had been told is started by hand: but for what outlives a life it is like one that is
    started for the first time.
    """
    nothing = (
        "main", "control", "following", "timeout_at_ns", "timer", "retry_at_ns", "freeze", "paused_ns", "paused_by",
        "healthy_left_ns", "sockets", "connection",
    )  # fmt: skip
    never = ("is_stub", "quarantined", "half_open", "stub_failed", "thawing")
    rests = (
        dict.fromkeys(nothing) | dict.fromkeys(never, False) | {"former": [], "held": True, "watches": {}, "probes": {}}
    )
    old = full(UnitState, sub=sub, active=ACTIVE_STATES[sub], healthy_at_ns=None, leftover=False, **rests)
    states = []
    for known in (old, UnitState()):
        rig = Rig(service("web"))
        state = rig.state | {"unit/web": text(known)}
        rig.manager = Manager.restore(state, rig.units)
        rig.state = dict(state)
        rig._fold()
        rig.ask("start", "web", wait=False)
        states.append(structs.asdict(rig.manager.ledger.state("web")))
    assert {name for name in states[0] if states[0][name] != states[1][name]} == OUTLIVES_A_LIFE


# what processes say


SAID = {
    "STATUS": ("busy", {"status_text"}),
    "ERRNO": ("5", {"errno"}),
    "X_PROGRESS": ("half", {"progress", "beat_at_ns"}),
    "WATCHDOG": ("1", {"beat_at_ns"}),
    "X_ERROR": ("no", {"errors", "error_at_ns"}),
    "X_OK": ("1", {"errors"}),
    "EXTEND_TIMEOUT_USEC": ("900000000", {"timeout_at_ns", "runtime_end_ns"}),
    "RELOADING": ("1", {"sub", "active", "notify_reloading", "phase_at_ns", "timeout_at_ns", "cause", "reload_failed"}),
    "READY": ("1", {"sub", "active", "notify_reloading", "phase_at_ns", "timeout_at_ns", "cause"}),
}
"""Each assignment, and what it may change."""


@pytest.mark.parametrize("seed", range(8))
def test_a_datagram_changes_what_it_says_and_nothing_else(seed: int) -> None:
    """Whatever was said before, in whatever order, stays."""
    rng = Random(seed)
    rig = Rig(notify("web", runtime_max_ns=10**12, error_threshold=0))
    rig.ask("start", "web")
    rig.up("web")
    changed: dict[str, set[str]] = {name: set() for name in SAID}
    for _ in range(40):
        name = rng.choice(list(SAID))
        before = structs.asdict(rig.manager.ledger.state("web"))
        rig.says("web", **{name: SAID[name][0]})
        after = structs.asdict(rig.manager.ledger.state("web"))
        changed[name] |= {field for field in after if before[field] != after[field]}
        rig.later(rng.choice((0, 0.5, 1)))
    assert {name: fields - SAID[name][1] for name, fields in changed.items()} == {name: set() for name in SAID}


# what is shown

PROFILE = Profile(units_max=14, conflicts=0.3, missing=0.3, bad_unit=0.1)


@pytest.mark.parametrize("seed", range(12))
def test_every_relation_is_shown_at_both_of_its_ends(seed: int) -> None:
    """What ``deps`` says that a unit needs, wants, or conflicts with, ``deps --reverse`` says of the other one, and the
    other way round; only units that there are, are said to need something, and none but others.
    """
    rig = Rig(*draw_units(Random(seed), PROFILE).units.values())
    units = view.list_units(rig.manager)
    backward = {
        "requires": "required-by", "requisite": "requisite-of", "binds-to": "bound-by", "wants": "wanted-by",
        "upholds": "upheld-by", "part-of": "consists-of", "conflicts": "conflicted-by",
    }  # fmt: skip
    names = {*units, "ghost"}
    forth = {
        (name, other, kind) for name in names for other, kind, _, _, depth in view.deps(rig.manager, name) if depth == 1
    }
    back = {
        (other, name, kind)
        for name in names
        for other, kind, _, _, depth in view.deps(rig.manager, name, reverse=True)
        if depth == 1
    }
    assert {name for name, _, _ in back} <= set(units)
    assert {(name, other) for name, other, kind in forth if kind in backward} == {
        (name, other) for name, other, kind in back if kind in backward.values()
    }
    # Of several relations to one unit the nearest is told from its end.
    told = {"required-by", "requisite-of", "bound-by"}
    for name, other, kind in forth:
        mirrored = backward.get(kind)
        assert (
            mirrored is None
            or (name, other, mirrored) in back
            or (mirrored in told and any((name, other, each) in back for each in told))
        )
    assert all(name != other for name, other, _ in forth | back)

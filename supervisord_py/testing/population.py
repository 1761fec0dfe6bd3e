"""Random unit sets: relations of every kind without a cycle, every type, kill mode, policy and time-out that the core
knows.

Units stand in a row, and an ordering edge only ever points from a later one to an earlier one: so no set has a cycle,
and any mutation of a set (``daemon-reload``) keeps that. Units that others wait for with ``until = "exited"`` are
made to end by themselves.
"""

from random import Random

from msgspec.structs import replace

from supervisord_py.model.states import KillMode, NotifyAccess, OnDependencyFailure, Restart, ServiceType, Until
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Command,
    Dependency,
    KillPolicy,
    LoadedFrom,
    RestartPolicy,
    Service,
    Unit,
    UnitKind,
    UnitSet,
)
from supervisord_py.testing.profile import Profile

ROW: tuple[str, ...] = (
    "db", "setup", "cache", "net", "queue", "auth", "api", "worker@1", "worker@2", "web", "mail", "edge", "report",
    "all",
)  # fmt: skip
"""The names, in the order in which units may depend on each other."""

SHORT_LIVED = frozenset({"setup", "report"})
"""Units whose main process ends by itself: the only ones that others wait for with ``until = "exited"``."""

BROKEN = "broken"
"""The name of the unit whose file is always bad."""

MISSING = "ghost"
"""A name that no file defines."""


def draw_units(rng: Random, profile: Profile) -> UnitSet:
    """Draw a whole set; sorted by name, as the loader gives it."""
    count = (
        rng.randint(1, 3)
        if rng.random() < profile.tiny_set
        else rng.randint((profile.units_max + 1) // 2, profile.units_max)
    )
    names = sorted(rng.sample(range(len(ROW)), count))
    row = [ROW[index] for index in names]
    units = {name: draw_unit(rng, profile, name, row) for name in row}
    return as_unit_set(_without_double_starts(units), with_bad=rng.random() < profile.bad_unit)


def mutate_units(rng: Random, profile: Profile, old: UnitSet) -> UnitSet:
    """Draw what an edit leaves: some units changed, some gone, some new."""
    units = {name: old.units[name] for name in ROW if name in old.units}
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("change", "add", "remove"))
        if kind == "remove" and len(units) > 1:
            del units[rng.choice(sorted(units))]
        elif kind == "add":
            units.setdefault(rng.choice(ROW), Unit("", UnitKind.TARGET))
        elif units:
            units[rng.choice(sorted(units))] = Unit("", UnitKind.TARGET)
    row = [name for name in ROW if name in units]
    drawn = {name: unit if unit.name else draw_unit(rng, profile, name, row) for name, unit in units.items()}
    ordered = {name: _without_vanished(drawn[name], row) for name in row}
    return as_unit_set(_without_double_starts(ordered), with_bad=BROKEN in old.bad)


def as_unit_set(units: dict[str, Unit], with_bad: bool = False) -> UnitSet:
    bad = {BROKEN: BadUnit(BROKEN, "broken.toml", "broken.toml:1:1: unit: unknown key")} if with_bad else {}
    return UnitSet(units={name: units[name] for name in sorted(units)}, bad=bad)


def draw_unit(rng: Random, profile: Profile, name: str, row: list[str]) -> Unit:
    """Draw one unit that stands at its place in ``row``."""
    place = row.index(name)
    earlier, later = row[:place], row[place + 1 :]
    is_target = name == "all" or (name not in SHORT_LIVED and rng.random() < profile.targets)
    relations: dict[str, list[Dependency]] = {"requires": [], "wants": [], "binds_to": [], "after": []}
    for other in earlier:
        if rng.random() < profile.relations:
            kind = rng.choice(("requires", "requires", "wants", "binds_to", "after"))
            if kind == "binds_to" and other in SHORT_LIVED:
                kind = "requires"
            relations[kind].append(_draw_edge(rng, other, kind))
    if rng.random() < profile.missing:
        relations[rng.choice(("requires", "wants", "after"))].append(Dependency(MISSING))
    before = tuple(other for other in later if rng.random() < profile.relations / 5)
    pulled = {edge.unit for kind in ("requires", "wants", "binds_to") for edge in relations[kind]}
    conflicts = tuple(other for other in earlier if other not in pulled and rng.random() < profile.conflicts / 2)
    return Unit(
        name=name,
        kind=UnitKind.TARGET if is_target else UnitKind.SERVICE,
        service=None if is_target else _draw_service(rng, profile, name),
        description=f"the {name} of seed {rng.randint(0, 9999)}",
        requires=tuple(relations["requires"]),
        wants=tuple(relations["wants"]),
        binds_to=tuple(relations["binds_to"]),
        after=tuple(relations["after"]),
        before=before,
        conflicts=conflicts,
        enabled=rng.random() < 0.7,
        groups=("all",),
        on_dependency_failure=rng.choice(
            (OnDependencyFailure.WAIT, OnDependencyFailure.WAIT, OnDependencyFailure.FAIL)
        ),
        source=LoadedFrom(f"units/{name}.toml"),
    )


def _draw_edge(rng: Random, other: str, kind: str) -> Dependency:
    choices = [Until.READY, Until.READY, Until.STARTED]
    if other in SHORT_LIVED and kind != "binds_to":
        choices.append(Until.EXITED)
    return Dependency(other, until=rng.choice(choices), ordered=kind == "after" or rng.random() < 0.85)


def _draw_service(rng: Random, profile: Profile, name: str) -> Service:
    short = name in SHORT_LIVED
    types = (ServiceType.SIMPLE, ServiceType.EXEC, ServiceType.NOTIFY, ServiceType.NOTIFY, ServiceType.ONESHOT)
    kind = rng.choice((ServiceType.ONESHOT, ServiceType.ONESHOT, ServiceType.SIMPLE) if short else types)
    oneshot = kind is ServiceType.ONESHOT
    if oneshot:
        restart = rng.choice((Restart.NO, Restart.NO, Restart.ON_FAILURE, Restart.ON_ABNORMAL))
    elif short:
        restart = rng.choice((Restart.NO, Restart.ON_FAILURE, Restart.ON_ABNORMAL))
    else:
        restart = rng.choice((Restart.ON_FAILURE, Restart.ON_FAILURE, Restart.ALWAYS, *tuple(Restart)))
    return Service(
        type=kind,
        exec_start=tuple(_command(name, "run", index) for index in range(rng.randint(1, 2) if oneshot else 1)),
        exec_start_pre=_draw_commands(rng, name, "pre", 2),
        exec_reload=_draw_commands(rng, name, "reload", 1),
        exec_stop=_draw_commands(rng, name, "stop", 2),
        exec_stop_post=_draw_commands(rng, name, "post", 1),
        restart=RestartPolicy(
            restart=restart,
            delay_ns=rng.choice((0, SECOND_NS // 10, SECOND_NS // 10, SECOND_NS)),
            steps=rng.choice((0, 2, 8)),
            max_delay_ns=rng.choice((None, 5 * SECOND_NS, 20 * SECOND_NS)),
            jitter=rng.choice((0.0, 0.1, 0.5)),
            reset_ns=rng.choice((None, 5 * SECOND_NS, 60 * SECOND_NS)),
            failures=rng.choice((0, 1, 3, 5)),
        ),
        kill=KillPolicy(
            mode=KillMode.PROCESS
            if rng.random() < profile.kill_process
            else rng.choice((KillMode.CONTROL_GROUP, KillMode.CONTROL_GROUP, KillMode.MIXED)),
            signal=rng.choice((15, 15, 15, 2, 3)),
            send_sigkill=rng.random() >= profile.no_sigkill,
        ),
        timeout_start_ns=_draw_timeout(rng, profile, 10),
        timeout_stop_ns=_draw_timeout(rng, profile, 5),
        timeout_abort_ns=_draw_timeout(rng, profile, 5),
        remain_after_exit=rng.random() < (0.5 if oneshot else 0.1),
        notify_access=rng.choice((NotifyAccess.NONE, NotifyAccess.MAIN, NotifyAccess.EXEC, NotifyAccess.ALL)),
    )


def _draw_timeout(rng: Random, profile: Profile, seconds_max: int) -> int | None:
    if rng.random() < profile.infinite_timeout:
        return None
    return rng.randint(1, seconds_max) * SECOND_NS


def _draw_commands(rng: Random, name: str, verb: str, count_max: int) -> tuple[Command, ...]:
    count = rng.randint(1, count_max) if rng.random() < 0.25 else 0
    return tuple(_command(name, verb, index, ignore_failure=rng.random() < 0.3) for index in range(count))


def _command(name: str, verb: str, index: int, ignore_failure: bool = False) -> Command:
    return Command((f"/opt/{name}/{verb}", str(index)), ignore_failure=ignore_failure)


def _without_vanished(unit: Unit, row: list[str]) -> Unit:
    """Move ``before`` to units that stand later in the new row; names that are gone stay: they are ``not-found``
    then.
    """
    place = row.index(unit.name)
    return replace(unit, before=tuple(other for other in unit.before if other in row[place + 1 :]))


def _without_double_starts(units: dict[str, Unit]) -> dict[str, Unit]:
    """Enable at most one side of each conflict, as an author of unit files would."""
    result = dict(units)
    for unit in units.values():
        if any(other in units and result[other].enabled for other in unit.conflicts):
            result[unit.name] = replace(unit, enabled=False)
    return result

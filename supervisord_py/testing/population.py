"""Random unit sets: relations of every kind without a cycle, every type, kill mode, policy and time-out that the core
knows.

Units stand in a row, and an ordering edge only ever points from a later one to an earlier one: so no set has a cycle,
and any mutation of a set (``daemon-reload``) keeps that. Units that others wait for with ``until = "exited"`` are
made to end by themselves.
"""

from collections.abc import Mapping
from random import Random

from msgspec.structs import replace

from supervisord_py.model.states import (
    ExitSupervisorOn,
    KillMode,
    NotifyAccess,
    OnDependencyFailure,
    OomPolicy,
    Restart,
    ServiceType,
    Until,
)
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Command,
    Condition,
    Dependency,
    ExecContext,
    ExitStatuses,
    KillPolicy,
    LoadedFrom,
    PoolPlace,
    Quarantine,
    RestartPolicy,
    Service,
    StartLimit,
    Unit,
    UnitKind,
    UnitSet,
)
from supervisord_py.testing.checks import draw_probes
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.limits import draw_resources
from supervisord_py.testing.profile import Profile
from supervisord_py.testing.settings import POOLS
from supervisord_py.testing.sockets import LISTENED, STORE_MAX, draw_sockets
from supervisord_py.testing.timers import TIMED, draw_timer, quieted

ROW: tuple[str, ...] = (
    "db", "setup", "cache", "net", "queue", "auth", "api", "worker@1", "worker@2", "worker@3", "web", "mail", "edge",
    "backup", "rotate", "report", "all",
)  # fmt: skip
"""The names, in the order in which units may depend on each other."""

INSTANCES = ("worker@1", "worker@2", "worker@3")
"""What ``scale`` adds and takes away."""

SHORT_LIVED = frozenset({"setup", "report"})
"""Units whose main process ends by itself: the only ones that others wait for with ``until = "exited"``."""

BROKEN = "broken"
"""The name of the unit whose file is always bad, and the mark of programs that do not work."""

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
    return as_unit_set(_without_contradictions(units), with_bad=rng.random() < profile.bad_unit)


def mutate_units(rng: Random, profile: Profile, old: UnitSet) -> UnitSet:
    """Draw what an edit leaves: some units changed, some gone, some new."""
    units = {name: old.units[name] for name in ROW if name in old.units}
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("change", "tweak", "add", "remove"))
        if kind == "remove" and len(units) > 1:
            del units[rng.choice(sorted(units))]
        elif kind == "add":
            units.setdefault(rng.choice(ROW), Unit("", UnitKind.TARGET))
        elif kind == "tweak" and units:
            name = rng.choice(sorted(units))
            if units[name].name:
                units[name] = _tweak(rng, profile, units[name])
        elif units:
            units[rng.choice(sorted(units))] = Unit("", UnitKind.TARGET)
    row = [name for name in ROW if name in units]
    drawn = {name: unit if unit.name else draw_unit(rng, profile, name, row) for name, unit in units.items()}
    ordered = {name: _without_vanished(drawn[name], row) for name in row}
    return as_unit_set(_without_contradictions(ordered), with_bad=BROKEN in old.bad)


def draw_release(rng: Random, profile: Profile, old: UnitSet, number: int) -> UnitSet:
    """Draw what an apply finds: other programs of some units, now and then with other edits; some are broken."""
    units = dict((mutate_units(rng, profile, old) if rng.random() < 0.2 else old).units)
    for name, unit in units.items():
        if unit.service is None or rng.random() < 0.3:
            continue
        mark = BROKEN if rng.random() < profile.bad_release else f"release-{number}"
        programs = tuple(replace(each, words=(*each.words[:2], mark)) for each in unit.service.exec_start)
        units[name] = replace(unit, service=replace(unit.service, exec_start=programs))
    return as_unit_set(units, with_bad=BROKEN in old.bad)


def older_units(now: UnitSet, older: Mapping[str, Unit]) -> UnitSet:
    """Return ``now`` with the texts of another time in it."""
    units = {**now.units, **older}
    row = [name for name in ROW if name in units]
    ordered = {name: _without_vanished(units[name], row) for name in row}
    return as_unit_set(_without_contradictions(ordered), with_bad=BROKEN in now.bad)


def is_broken_release(service: Service | None) -> bool:
    """Whether the programs of a service are of a release that does not work."""
    return service is not None and any(each.words[-1] == BROKEN for each in service.exec_start)


def without_cycles_of_lives(old: UnitSet) -> UnitSet:
    """Take away what would start and end units for ever although nothing is wrong: a longest run time, and relations
    that start again what ends by itself, or cannot stay up because it needs what does; hooks that start what a unit is
    in conflict with, whose hooks may start that again; and what ends everything.
    """
    passing, rivals = _passing(old), _rivals(old)
    units = {}
    for name, unit in old.units.items():
        service = unit.service and replace(unit.service, runtime_max_ns=None, watchdog_ns=None, progress_ns=None)
        upholds = tuple(edge for edge in unit.upholds if edge.unit in old.units and edge.unit not in passing)
        on_success = () if _ends(unit) else tuple(other for other in unit.on_success if other not in rivals)
        on_failure = tuple(other for other in unit.on_failure if other not in passing | rivals)
        on_quarantine = tuple(other for other in unit.quarantine.on_quarantine if other not in passing | rivals)
        units[name] = replace(
            unit,
            service=service,
            health=(),
            timer=quieted(unit),
            upholds=upholds,
            on_success=on_success,
            on_failure=on_failure,
            quarantine=replace(unit.quarantine, on_quarantine=on_quarantine, retry_after_ns=None),
            exit_supervisor_on=None,
        )
    return replace(old, units=units)


def _rivals(units: UnitSet) -> set[str]:
    """The units whose start may stop another: those of a conflict, and what pulls one of them in."""
    found = {name for unit in units.units.values() if unit.conflicts for name in (unit.name, *unit.conflicts)}
    while True:
        more = {
            unit.name
            for unit in units.units.values()
            for edge in (*unit.requires, *unit.wants, *unit.binds_to, *unit.upholds)
            if edge.unit in found
        }
        if more <= found:
            return found
        found |= more


def _passing(units: UnitSet) -> set[str]:
    """The units that do not stay up: what ends by itself, and what needs such a unit."""
    found = {name for name, unit in units.units.items() if _ends(unit)}
    # a need only ever points to an earlier unit of the row
    for name in (name for name in ROW if name in units.units):
        unit = units.units[name]
        # what requires a oneshot is content with its success
        strict = (
            *(edge for edge in unit.requires if not _is_oneshot(units, edge.unit)),
            *unit.binds_to,
            *unit.requisite,
        )
        if any(edge.unit in found for edge in strict):
            found.add(name)
    return found


def _is_oneshot(units: UnitSet, name: str) -> bool:
    unit = units.units.get(name)
    return unit is not None and unit.service is not None and unit.service.type is ServiceType.ONESHOT


def _ends(unit: Unit) -> bool:
    return unit.name in SHORT_LIVED or (unit.service is not None and unit.service.type is ServiceType.ONESHOT)


def _tweak(rng: Random, profile: Profile, unit: Unit) -> Unit:
    """Change a few keys of a unit that stays what it is: those that a running life can take over, and others."""
    if unit.service is None:
        return replace(unit, description=f"another {unit.name}")
    drawn = _draw_service(rng, profile, unit.name)
    keys = rng.sample(_TWEAKED, rng.randint(1, 3))
    service = replace(unit.service, **{key: getattr(drawn, key) for key in keys})
    if service.restart.limit is None and "failures" not in keys and rng.random() < 0.3:
        service = replace(service, restart=replace(service.restart, failures=rng.choice((0, 1, 4))))
    health = draw_probes(rng, profile, unit.name) if unit.health and rng.random() < 0.3 else unit.health
    return replace(unit, service=service, health=health)


_TWEAKED = (
    "exec_start_pre", "exec_start_post", "exec_condition", "exec_reload", "exec_stop", "exec_stop_post", "restart",
    "kill", "timeout_start_ns", "timeout_stop_ns", "timeout_abort_ns", "runtime_max_ns", "success", "notify_access",
    "remain_after_exit", "reload_signal", "error_threshold",
)  # fmt: skip


def as_unit_set(units: dict[str, Unit], with_bad: bool = False) -> UnitSet:
    bad = {BROKEN: BadUnit(BROKEN, "broken.toml", "broken.toml:1:1: unit: unknown key")} if with_bad else {}
    return UnitSet(units={name: units[name] for name in sorted(units)}, bad=bad)


def draw_unit(rng: Random, profile: Profile, name: str, row: list[str]) -> Unit:
    """Draw one unit that stands at its place in ``row``."""
    place = row.index(name)
    earlier, later = row[:place], row[place + 1 :]
    is_target = name == "all" or (name not in SHORT_LIVED | TIMED and rng.random() < profile.targets)
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
    requisite = [other for other in earlier if rng.random() < profile.requisite / 3]
    others = [other for other in row if other != name]
    upholds = [other for other in others if rng.random() < profile.upholds / 3]
    pulled.update(requisite, upholds)
    conflicts = tuple(other for other in earlier if other not in pulled and rng.random() < profile.conflicts / 2)
    service = None if is_target else _draw_service(rng, profile, name)
    is_daemon = service is not None and name not in SHORT_LIVED and service.type is not ServiceType.ONESHOT
    is_one_process = is_daemon and service is not None and service.type is not ServiceType.FORKING
    sockets = draw_sockets(rng, profile, name) if is_one_process else None
    if service is not None and profile.sockets and name in LISTENED:
        service = replace(service, remain_after_exit=False, store_max=rng.choice((0, STORE_MAX)))
    return Unit(
        name=name,
        kind=UnitKind.TARGET if is_target else UnitKind.SERVICE,
        service=service,
        timer=draw_timer(rng, profile, name),
        sockets=sockets,
        health=draw_probes(rng, profile, name) if is_daemon else (),
        description=f"the {name} of seed {rng.randint(0, 9999)}",
        requires=tuple(relations["requires"]),
        wants=tuple(relations["wants"]),
        binds_to=tuple(relations["binds_to"]),
        requisite=tuple(_draw_edge(rng, other, "requisite") for other in requisite),
        part_of=tuple(other for other in others if rng.random() < profile.part_of / 3),
        upholds=tuple(Dependency(other, ordered=False) for other in upholds),
        on_failure=tuple(other for other in others if rng.random() < profile.hooks / 3),
        on_success=tuple(other for other in others if rng.random() < profile.hooks / 4),
        conditions=_draw_conditions(rng, profile, name, "condition"),
        asserts=_draw_conditions(rng, profile, name, "assert") if rng.random() < 0.3 else (),
        job_timeout_ns=rng.randint(1, 20) * SECOND_NS if rng.random() < profile.job_timeout else None,
        after=tuple(relations["after"]),
        before=before,
        conflicts=conflicts,
        enabled=rng.random() < 0.7,
        groups=("all",),
        on_dependency_failure=rng.choice(
            (OnDependencyFailure.WAIT, OnDependencyFailure.WAIT, OnDependencyFailure.FAIL)
        ),
        exit_supervisor_on=rng.choice(tuple(ExitSupervisorOn)) if rng.random() < profile.exits_supervisor else None,
        pool=_draw_pool(rng, profile),
        quarantine=_draw_quarantine(rng, profile, name, others),
        source=LoadedFrom(f"units/{name}.toml"),
    )


def _draw_pool(rng: Random, profile: Profile) -> PoolPlace:
    if rng.random() >= profile.pools * 2:
        return PoolPlace()
    return PoolPlace(rng.choice(("", *POOLS)), rng.choice((0, 0, 1, -3, 10)))


def _draw_quarantine(rng: Random, profile: Profile, name: str, others: list[str]) -> Quarantine:
    if rng.random() >= profile.quarantine * 2:
        return Quarantine()
    return Quarantine(
        stub=_command(name, "stub", 0) if rng.random() < 0.5 else None,
        retry_after_ns=rng.choice((None, None, SECOND_NS, 10 * SECOND_NS, 60 * SECOND_NS)),
        on_quarantine=tuple(other for other in others if rng.random() < 0.1),
    )


def scale_units(rng: Random, old: UnitSet) -> UnitSet:
    """Draw another number of instances of the template that there is."""
    first = old.units.get(INSTANCES[0])
    if first is None:
        return old
    count = rng.randint(1, len(INSTANCES))
    units = {name: unit for name, unit in old.units.items() if name not in INSTANCES[count:]}
    for name in INSTANCES[1:count]:
        units.setdefault(name, _instance(first, name))
    row = [name for name in ROW if name in units]
    ordered = {name: _without_vanished(units[name], row) for name in row}
    return as_unit_set(_without_contradictions(ordered), with_bad=BROKEN in old.bad)


def _instance(first: Unit, name: str) -> Unit:
    """Another instance of the same template: it names whatever the first one does, but never itself."""

    def others(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(other for other in names if other != name)

    return replace(
        first,
        name=name,
        conflicts=(),
        upholds=(),
        part_of=others(first.part_of),
        on_failure=others(first.on_failure),
        on_success=others(first.on_success),
        quarantine=replace(first.quarantine, on_quarantine=others(first.quarantine.on_quarantine)),
    )


def _draw_conditions(rng: Random, profile: Profile, name: str, table: str) -> tuple[Condition, ...]:
    count = rng.randint(1, 3) if rng.random() < profile.conditions else 0
    kinds = ("path-exists", "path-exists", "file-not-empty")
    return tuple(
        Condition(rng.choice(kinds), f"/run/{name}/{table}{index}", rng.random() < 0.2, rng.random() < 0.2)
        for index in range(count)
    )


def _draw_edge(rng: Random, other: str, kind: str) -> Dependency:
    choices = [Until.READY, Until.READY, Until.STARTED, Until.HEALTHY]
    if other in SHORT_LIVED and kind != "binds_to":
        choices.append(Until.EXITED)
    return Dependency(other, until=rng.choice(choices), ordered=kind == "after" or rng.random() < 0.85)


def _draw_service(rng: Random, profile: Profile, name: str) -> Service:
    short = name in SHORT_LIVED
    types = (ServiceType.SIMPLE, ServiceType.EXEC, ServiceType.NOTIFY, ServiceType.NOTIFY, ServiceType.ONESHOT)
    kind = rng.choice((ServiceType.ONESHOT, ServiceType.ONESHOT, ServiceType.SIMPLE) if short else types)
    if name in TIMED:
        kind = ServiceType.ONESHOT
    if not short and name not in TIMED:
        rarer = ((profile.forking, ServiceType.FORKING), (profile.notify_reload, ServiceType.NOTIFY_RELOAD))
        for share, other in (*rarer, (profile.idle, ServiceType.IDLE)):
            kind = other if rng.random() < share else kind
    oneshot = kind is ServiceType.ONESHOT
    if oneshot:
        restart = rng.choice((Restart.NO, Restart.NO, Restart.ON_FAILURE, Restart.ON_ABNORMAL))
    elif short:
        restart = rng.choice((Restart.NO, Restart.ON_FAILURE, Restart.ON_ABNORMAL))
    else:
        restart = rng.choice((Restart.ON_FAILURE, Restart.ON_FAILURE, Restart.ALWAYS, *tuple(Restart)))
    limit = None
    if rng.random() < profile.start_limit:
        limit = StartLimit(rng.choice((None, 0, 2 * SECOND_NS, 30 * SECOND_NS)), rng.randint(0, 4))
    has_statuses = rng.random() < profile.statuses
    is_watched = not short and not oneshot and rng.random() < profile.watchdogs
    return Service(
        type=kind,
        exec_start=tuple(_command(name, "run", index) for index in range(rng.randint(1, 2) if oneshot else 1)),
        exec_start_pre=_draw_commands(rng, name, "pre", 2),
        exec_condition=_draw_commands(rng, name, "condition", 2) if rng.random() < profile.exec_condition * 2 else (),
        exec_start_post=_draw_commands(rng, name, "start-post", 2) if rng.random() < profile.start_post * 2 else (),
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
            # the model lets nobody write both
            failures=rng.choice((0, 1, 3, 5)) if limit is None else 0,
            prevent=_draw_statuses(rng) if has_statuses else ExitStatuses(),
            force=_draw_statuses(rng) if has_statuses else ExitStatuses(),
            limit=limit,
        ),
        kill=KillPolicy(
            mode=KillMode.PROCESS
            if rng.random() < profile.kill_process
            else rng.choice((KillMode.CONTROL_GROUP, KillMode.CONTROL_GROUP, KillMode.MIXED)),
            signal=rng.choice((15, 15, 15, 2, 3)),
            send_sigkill=rng.random() >= profile.no_sigkill,
            restart_signal=rng.choice((None, 2, 10)) if rng.random() < profile.odd_signals else None,
            send_sighup=rng.random() < profile.odd_signals,
        ),
        timeout_start_ns=_draw_timeout(rng, profile, 10),
        timeout_stop_ns=_draw_timeout(rng, profile, 5),
        timeout_abort_ns=_draw_timeout(rng, profile, 5),
        error_threshold=rng.choice((0, 1, 3, 3)),
        runtime_max_ns=rng.randint(1, 30) * SECOND_NS if rng.random() < profile.runtime_max else None,
        watchdog_ns=_draw_watch(rng) if is_watched else None,
        progress_ns=_draw_watch(rng) if is_watched and rng.random() < 0.4 else None,
        success=_draw_statuses(rng) if has_statuses else ExitStatuses(),
        pid_file=f"/run/{name}.pid" if kind is ServiceType.FORKING and rng.random() < 0.6 else None,
        guess_main_pid=rng.random() < 0.8,
        reload_signal=rng.choice((1, 12)),
        context=ExecContext(resources=draw_resources(rng, profile)),
        oom_policy=rng.choice(tuple(OomPolicy)) if profile.breaches else OomPolicy.STOP,
        remain_after_exit=rng.random() < (0.5 if oneshot else 0.1),
        notify_access=rng.choice(
            (
                NotifyAccess.MAIN if is_watched else NotifyAccess.NONE,
                NotifyAccess.MAIN,
                NotifyAccess.EXEC,
                NotifyAccess.ALL,
            )
        ),
    )


def _draw_statuses(rng: Random) -> ExitStatuses:
    return ExitStatuses(
        tuple(code for code in (1, 2, 255) if rng.random() < 0.3), tuple(n for n in (9, 11, 15) if rng.random() < 0.2)
    )


def _draw_watch(rng: Random) -> int:
    return rng.choice((4000, 15_000, 60_000)) * MILLISECOND_NS


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


def _without_contradictions(units: dict[str, Unit]) -> dict[str, Unit]:
    """Enable at most one side of each conflict, and uphold nothing that one is in conflict with, as an author of unit
    files would.
    """
    result = dict(units)
    for unit in units.values():
        upholds = tuple(
            edge
            for edge in unit.upholds
            if edge.unit not in unit.conflicts
            and (edge.unit not in units or unit.name not in units[edge.unit].conflicts)
        )
        result[unit.name] = replace(unit, upholds=upholds)
    for unit in units.values():
        if any(other in units and result[other].enabled for other in unit.conflicts):
            result[unit.name] = replace(unit, enabled=False)
    return result

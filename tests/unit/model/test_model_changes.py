"""What a reload changes: per unit and key, and what a running life needs to take it over."""

import enum
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import fields, replace

from supervisord_py.model.calendar import Calendar
from supervisord_py.model.change_keys import ELSEWHERE, FAMILIES, KEYS, Effect, effect_of, texts_of
from supervisord_py.model.changes import (
    Change,
    compare_units,
    is_same,
    plan,
    restart_keys,
    take_live,
)
from supervisord_py.model.context import Amount, Credential, Folder
from supervisord_py.model.keys import parse_key_table
from supervisord_py.model.log import Rate
from supervisord_py.model.sandbox import Access, Bind, Families
from supervisord_py.model.sockets import Listen, ListenKind, Socket, Sockets, parse_socket_address
from supervisord_py.model.states import ProbeKind, Restart, ServiceType
from supervisord_py.model.system_calls import CallFilter
from supervisord_py.model.unit import (
    BadUnit,
    Command,
    Condition,
    Dependency,
    ExecContext,
    KillPolicy,
    Limit,
    LoadedFrom,
    PoolPlace,
    Probe,
    Quarantine,
    RestartPolicy,
    Service,
    StartLimit,
    Timer,
    Unit,
    UnitKind,
    UnitSet,
)

TABLE = parse_key_table((Path(__file__).parents[3] / "docs" / "keys.toml").read_text())
BUILT = {f"{table.name}.{key}": spec for table in TABLE.of("unit") for key, spec in table.keys.items() if spec.built}
BASE = Unit(
    "web",
    UnitKind.SERVICE,
    Service(
        exec_start=(Command(("/bin/web",)),),
        # Distinct from the time-out that it follows, so that each is seen alone.
        timeout_abort_ns=70 * 10**9,
        kill=KillPolicy(restart_signal=12),
        restart=RestartPolicy(limit=StartLimit(10**10, 5)),
        context=ExecContext(nice=1),
        pid_file="/run/web.pid",
    ),
    health=(Probe("up", ProbeKind.LIVENESS, tcp="localhost:80"),),
    timer=Timer(on_calendar=(Calendar(zone="UTC"),)),
)


def web(**service: Any) -> Unit:
    """The unit of these tests with some keys of its service changed."""
    assert BASE.service is not None
    return replace(BASE, service=replace(BASE.service, **service))


def units(*all_units: Unit, **more: Any) -> UnitSet:
    return UnitSet(units={unit.name: unit for unit in all_units}, **more)


def leaves(struct: type[msgspec.Struct], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every field of a struct and of the structs in it, with its type."""
    hints = typing.get_type_hints(struct)
    for field in fields(struct):
        if field.name == "transient":
            continue  # how it was asked for, which no key says, and which stays as it is
        inner = [hint for hint in (hints[field.name], *typing.get_args(hints[field.name])) if _is_group(hint)]
        if inner:
            yield from leaves(inner[0], (*path, field.name))
        else:
            yield (*path, field.name), hints[field.name]


def _is_group(hint: Any) -> bool:
    """Whether a field holds keys of its own (a policy), not a value."""
    return (
        isinstance(hint, type)
        and issubclass(hint, msgspec.Struct)
        and hint not in (Command, Condition, Calendar, Dependency, Probe, Folder, Credential, Amount, Rate, Sockets)
        and hint not in (Access, Bind, CallFilter, Families)
    )


def value_at(unit: Unit, path: tuple[str, ...]) -> Any:
    value: Any = unit
    for step in path:
        value = getattr(value, step)
    return value


def changed_at(struct: Any, path: tuple[str, ...], value: Any) -> Any:
    if len(path) == 1:
        return replace(struct, **{path[0]: value})
    return replace(struct, **{path[0]: changed_at(getattr(struct, path[0]), path[1:], value)})


def another(value: Any, hint: Any, name: str) -> Any:
    """A value of this type that is not ``value``."""
    choices = {
        "environment": (("A", "1"),),
        "rlimits": (("nofile", Limit(7, 7)),),
        "codes": (3,),
        "signals": (10,),
        "enforce": "best-effort",
        "signal": 10,
        "health": (Probe("up", ProbeKind.LIVENESS, tcp="localhost:81"),),
        "on_calendar": (Calendar(weekdays=1),),
        "stub": Command(("/bin/other",)),
        "sockets": Sockets(),
        "keyring_mode": "private",
        "rate_limit": Rate(7, 10**9),
        "system_call_filter": CallFilter(False, (("uname", None),)),
        "system_call_architectures": ("x86",),
        "restrict_address_families": Families(True, (1,)),
        "restrict_namespaces": 0x10000000,
        "landlock": (Access("/srv", "r"),),
        "protect_system": "full",
        "protect_home": "tmpfs",
        "protect_proc": "invisible",
        "proc_subset": "pid",
        "bind_paths": (Bind("/a", "/b"),),
        "bind_read_only_paths": (Bind("/a", "/b"),),
        "temporary_file_system": (("/var", ""),),
    }
    if name in choices and value != choices[name]:
        return choices[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = next(option for option in options if option is not type(None))
    if typing.get_origin(plain) is tuple:
        (item, _) = typing.get_args(plain)
        made: dict[type, Any] = {
            Command: Command(("/bin/other",)),
            Dependency: Dependency("other"),
            Folder: Folder("other"),
            Credential: Credential("other", path="/other"),
            str: "other",
            int: 7 * 10**9,
        }
        return (Condition("path-exists", "/x"),) if item is Condition else (made[item],)
    if plain is bool:
        return not value
    if plain is int:
        return (value or 0) + (1024 * 1024 if name == "max_bytes" else 10**9 if name.endswith("_ns") else 1)
    if plain is float:
        return 0.5
    if issubclass(plain, enum.Enum):
        return next(item for item in plain if item is not value)
    return "/other"


FIELDS = [
    (path, hint)
    for path, hint in leaves(Unit)
    if path[0] not in ("name", "kind", "source") and path != ("service", "type")
]


@pytest.mark.parametrize(("path", "hint"), FIELDS, ids=[".".join(path) for path, _ in FIELDS])
def test_every_field_of_a_unit_is_a_key(path: tuple[str, ...], hint: Any) -> None:
    """What can differ between two units is told by exactly one key, and a life takes over exactly what is live."""
    other = changed_at(BASE, path, another(value_at(BASE, path), hint, path[-1]))
    (change,) = compare_units(BASE, other)
    assert change.effect is effect_of(change.key)
    assert change.old != change.new
    taken = take_live(BASE, other)
    source = other if change.effect is Effect.LIVE else BASE
    assert texts_of(taken) == texts_of(source)
    assert restart_keys(taken, other) == ((change.key,) if change.effect is Effect.RESTART else ())


def test_every_built_key_has_an_effect_and_none_is_made_up() -> None:
    """The table of changes and docs/keys.toml hold the same keys."""
    every = {f"{table.name}.{key}" for table in TABLE.of("unit") for key in table.keys}
    assert [key for key in BUILT if effect_of(key) is None] == []
    assert [key.name for key in KEYS if key.name not in every] == []
    assert [key for key in ELSEWHERE if key not in every] == []
    assert [family for family in FAMILIES if not any(key.startswith(family) for key in every)] == []
    assert len({key.name for key in KEYS}) == len(KEYS)


def test_the_manual_lists_what_needs_a_restart() -> None:
    """supervisord-py.unit(5) names every key of [service] that only a restart brings, and no other."""
    manual = (Path(__file__).parents[3] / "man" / "supervisord-py.unit.5").read_text()
    told = re.search(
        r"holds until the next start:\n(.*?)and the tables\n"
        r"\.Ic agent ,\n\.Ic limits ,\n\.Ic sandbox\nand\n\.Ic socket",
        manual,
        re.DOTALL,
    )
    assert told is not None
    words = {word for word in told[1].replace("\\-", "-").split() if word not in (".Ic", ",", "and")}
    keys = {key.removeprefix("service.") for key in BUILT if key.startswith("service.")}
    assert words == {key for key in keys if effect_of(f"service.{key}") is Effect.RESTART}
    others = [key for key in BUILT if not key.startswith("service.") and effect_of(key) is Effect.RESTART]
    assert {key.partition(".")[0] for key in others} == {"agent", "limits", "sandbox", "socket"}


SOCKET = Socket("web", (Listen(ListenKind.STREAM, parse_socket_address(80)),))
OTHERS = {
    "name": Socket("other", SOCKET.listens),
    **{
        f"listen-{kind.value}": replace(SOCKET, listens=(*SOCKET.listens, Listen(kind, parse_socket_address("/run/x"))))
        for kind in ListenKind
    },
    "backlog": replace(SOCKET, backlog=5),
    "socket-mode": replace(SOCKET, mode=0o600),
    "socket-user": replace(SOCKET, user="web"),
    "socket-group": replace(SOCKET, group="web"),
    "accept": replace(SOCKET, accept=True),
    "max-connections": replace(SOCKET, max_connections=3),
    "reuse-port": replace(SOCKET, reuse_port=True),
    "trigger-limit-interval-sec": replace(SOCKET, trigger_interval_ns=None),
    "trigger-limit-burst": replace(SOCKET, trigger_burst=3),
}


@pytest.mark.parametrize("key", OTHERS)
def test_every_key_of_a_socket_needs_a_restart(key: str) -> None:
    """Each is told by its own name, and by no other."""
    old, new = (replace(BASE, sockets=Sockets((socket,))) for socket in (SOCKET, OTHERS[key]))
    assert [(each.key, each.effect) for each in compare_units(old, new)] == [(f"socket.{key}", Effect.RESTART)]


def test_values_are_told_as_the_file_has_them() -> None:
    """Spans, signals, commands and dependencies read as people wrote them."""
    other = replace(
        web(
            exec_start=(Command(("/bin/web", "a b"), ignore_failure=True),),
            exec_stop=(Command(("echo", "$HOME"), expand=True),),
            timeout_stop_ns=90_000_000_000 + 90_000_000_000,
        ),
        requires=(Dependency("db", ordered=False), Dependency("cache")),
    )
    told = {change.key: (change.old, change.new) for change in compare_units(BASE, other)}
    assert told == {
        "unit.requires": (None, "db (not ordered), cache"),
        "service.exec-start": ('["/bin/web"]', '["-/bin/web", "a b"]'),
        "service.exec-stop": (None, "echo '$HOME'"),
        "service.timeout-stop-sec": ("1min 30s", "3min"),
    }


def test_another_type_waits_for_the_next_start_as_a_whole() -> None:
    """A simple service that becomes a oneshot on disk is restarted after a crash by the policy that it was started
    with.
    """
    other = web(type=ServiceType.ONESHOT, restart=RestartPolicy(restart=Restart.NO), timeout_start_ns=None)
    other = replace(other, description="new")
    taken = take_live(BASE, other)
    assert taken.service == BASE.service
    assert taken.description == "new"
    assert "service.restart" in restart_keys(taken, other)
    assert take_live(BASE, Unit("web", UnitKind.TARGET)).service == BASE.service


def test_only_the_place_and_the_comments_changed() -> None:
    """The unit is named without keys, and nothing follows."""
    moved = replace(BASE, source=LoadedFrom("/other/web.toml", digest="1"))
    (change,) = plan(units(BASE), units(moved), {"web": BASE})
    assert (change.change, change.effect, change.keys, change.path) == (
        Change.CHANGED, Effect.NONE, (), "/other/web.toml",
    )  # fmt: skip
    assert is_same(BASE, moved)
    assert plan(units(BASE), units(BASE), {}) == ()


def test_plan_names_what_follows_for_each_unit() -> None:
    """New ones start, live keys hold at once, others need a restart, what is gone or broken runs on."""
    names = ["gone", "keep", "live", "off", "restart"]
    old = units(*(replace(BASE, name=name) for name in names), bad={"mended": BadUnit("mended", "m", "x")})
    new = units(
        replace(BASE, name="new"),
        replace(BASE, name="new-disabled", enabled=False),
        replace(BASE, name="mended"),
        replace(web(timeout_stop_ns=1), name="live"),
        replace(web(exec_start=(Command(("/n",)),), timeout_stop_ns=1), name="restart"),
        replace(web(exec_start=(Command(("/n",)),)), name="off"),
        bad={"keep": BadUnit("keep", "keep.toml", "keep.toml:1:1: no")},
    )
    lives = {name: replace(BASE, name=name) for name in ("gone", "keep", "live", "restart")}
    told = {each.unit: (each.change.value, each.effect.value) for each in plan(old, new, lives)}
    assert told == {
        "gone": ("removed", "keep"),
        "keep": ("broken", "keep"),
        "live": ("changed", "live"),
        "mended": ("added", "start"),
        "new": ("added", "start"),
        "new-disabled": ("added", "none"),
        "off": ("changed", "none"),
        "restart": ("changed", "restart"),
    }
    (broken,) = (each for each in plan(old, new, lives) if each.change is Change.BROKEN)
    assert broken.message == "keep.toml:1:1: no"


def test_a_change_that_goes_back_to_what_runs_needs_no_restart() -> None:
    """Two edits before a restart, the second takes the first back: the life has that text already."""
    edited = web(exec_start=(Command(("/new",)),))
    (change,) = plan(units(edited), units(BASE), {"web": BASE})
    assert [each.effect for each in change.keys] == [Effect.NONE]
    assert change.effect is Effect.NONE


def test_a_unit_that_is_unmasked_is_not_started() -> None:
    """Taking a mask away is no order to start."""
    (change,) = plan(units(masked=("web",)), units(BASE), {})
    assert (change.change, change.effect) == (Change.ADDED, Effect.NONE)


def test_environment_is_told_by_variable() -> None:
    """Each variable is a key, and only those that changed are named."""
    one = web(context=ExecContext(environment=(("A", "1"), ("B", "1"))))
    other = web(context=ExecContext(environment=(("A", "1"), ("B", "2"), ("C", "3"))))
    told = [(each.key, each.old, each.new) for each in compare_units(one, other)]
    assert told == [("service.environment.B", "1", "2"), ("service.environment.C", None, "3")]


def test_a_timer_that_comes_or_goes_waits_for_the_next_start() -> None:
    """A service that runs is no armed timer, and an armed timer no service; another time is taken over at once."""
    assert BASE.timer is not None
    plain = replace(BASE, timer=None)
    for old, new in ((BASE, plain), (plain, BASE)):
        changes = compare_units(old, new)
        assert changes and {each.effect for each in changes} == {Effect.RESTART}
        assert take_live(old, new).timer == old.timer
        assert restart_keys(old, new) == tuple(each.key for each in changes)
    later = replace(BASE, timer=Timer(on_calendar=(Calendar(weekdays=1),)))
    assert [(each.key, each.effect) for each in compare_units(BASE, later)] == [("timer.on-calendar", Effect.LIVE)]
    assert take_live(BASE, later) == later


def test_with_another_type_the_tables_beside_the_service_wait_too() -> None:
    """Checks, times and places of the old type hold for the life that runs."""
    new = replace(web(type=ServiceType.NOTIFY), health=(), timer=None, pool=PoolPlace("a"), quarantine=Quarantine())
    taken = take_live(BASE, new)
    assert (taken.health, taken.timer, taken.pool) == (BASE.health, BASE.timer, BASE.pool)
    assert {each.effect for each in compare_units(BASE, new)} == {Effect.RESTART}


def test_a_check_is_told_key_by_key() -> None:
    """One that is new with all it says, one that is changed by what is different."""
    (up,) = BASE.health
    slower = replace(BASE, health=(replace(up, interval_ns=60 * 10**9),))
    (change,) = compare_units(BASE, slower)
    assert (change.key, change.old, change.new, change.effect) == ("health.up.interval", "10s", "1min", Effect.LIVE)
    more = replace(BASE, health=(up, Probe("x", ProbeKind.STARTUP, exec=Command(("/bin/a", "b c"), expand=True))))
    told = {each.key: each.new for each in compare_units(BASE, more)}
    assert told["health.x.exec"] == "/bin/a 'b c'" and told["health.x.kind"] == "startup"

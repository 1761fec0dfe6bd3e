"""What ``supervisord.toml`` says: frozen values with the contract's defaults (its section 6).

Field names are the keys in snake case; times are integers in nanoseconds, sizes are bytes. ``docs/keys.toml`` is the
table of all keys.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from supervisord_py.model.command import command_text
from supervisord_py.model.hooks import Hook
from supervisord_py.model.keys import KeyTable
from supervisord_py.model.log import Rate
from supervisord_py.model.names import parse_group_name
from supervisord_py.model.parse import (
    Decoded,
    DecodedTables,
    Entry,
    FileTables,
    decode_entries,
    problem_at,
    read_tables,
)
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.problems import Problem
from supervisord_py.model.specifiers import check_specifiers
from supervisord_py.model.states import SupervisorMode
from supervisord_py.model.values import format_mode, format_rate, format_size, format_timespan

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
MEBIBYTE = 1024 * 1024
DEFAULT_SOCKET_GROUP = "supervisord-py"
OTHERS_WRITE = 0o002
"""The bit of ``socket-mode`` that lets everybody open the socket."""


class SupervisorSettings(Struct, frozen=True):
    """``[supervisor]``. ``max_workers`` 0 is no limit; ``allowed_commands`` is a ceiling for everyone: a
    preset's name, or commands (``model.commands``)."""

    name: str = "main"
    mode: SupervisorMode = SupervisorMode.DAEMON
    max_workers: int = 0
    allowed_commands: str | tuple[str, ...] = "admin"
    shutdown_timeout_ns: int | None = 90 * SECOND_NS
    pass_environment: tuple[str, ...] | Literal["all"] = ()


class RemoteSettings(Struct, frozen=True):
    """``[control.remote]`` or ``[bus.remote]``. ``address`` is as ZeroMQ has it, ``keys`` a folder; ``commands`` is
    what keys are granted besides monitoring, by their names or globs."""

    address: str
    keys: str
    commands: dict[str, str | tuple[str, ...]] = field(default_factory=lambda: {"*": "monitoring"})


class AllowRule(Struct, frozen=True):
    """One ``[[control.allow]]``: exactly one of the six subjects is set.

    ``user`` and ``group`` are names as written (the host looks them up), ``unit`` is a unit name or glob, ``key`` the
    name of a key that comes from afar, or a glob. ``commands`` is a preset's name or a list of commands and presets;
    ``units`` are globs and ``@groups`` that verbs on units are held to, empty for all units.
    """

    commands: str | tuple[str, ...]
    group: str | None = None
    user: str | None = None
    uid: int | None = None
    gid: int | None = None
    unit: str | None = None
    units: tuple[str, ...] = ()
    key: str | None = None


class ControlSettings(Struct, frozen=True):
    """``[control]``. ``socket_group`` None: the group ``supervisord-py`` where that exists."""

    socket_group: str | None = None
    socket_mode: int = 0o660
    require_reason: bool = False
    allow: tuple[AllowRule, ...] = ()
    remote: RemoteSettings | None = None


class JournalSettings(Struct, frozen=True):
    """``[journal]``. ``max_age_ns`` None keeps by size alone; ``keep_last`` is how many records of an event the ring
    holds a unit."""

    max_bytes: int = 256 * MEBIBYTE
    max_age_ns: int | None = 30 * DAY_NS
    payload_max: int = 4096
    reserve: int = 16 * MEBIBYTE
    when_full: Literal["continue", "refuse-commands"] = "continue"
    sync: Literal["always", "commit", "never"] = "commit"
    keep_last: dict[str, int] = field(default_factory=lambda: {"unit.heartbeat": 2})


class HotDirectorySettings(Struct, frozen=True):
    """``[hot-directory]``. ``path`` None: there is none; ``keys`` None: the folder ``keys`` beside the settings."""

    path: str | None = None
    require_signature: bool = True
    keys: str | None = None
    rescan_ns: int = 60 * SECOND_NS
    probation_ns: int = 5 * SECOND_NS


class BusSettings(Struct, frozen=True):
    """``[bus]``. ``queue`` is how many messages wait for one subscriber, ``on_full`` what becomes of the next."""

    rate_limit: Rate = Rate(1000, SECOND_NS)
    queue: int = 1000
    on_full: Literal["drop", "block"] = "drop"
    remote: RemoteSettings | None = None


class Settings(Struct, frozen=True):
    """All of ``supervisord.toml``; ``path`` is empty when there was no file."""

    supervisor: SupervisorSettings = SupervisorSettings()
    control: ControlSettings = ControlSettings()
    journal: JournalSettings = JournalSettings()
    bus: BusSettings = BusSettings()
    hot_directory: HotDirectorySettings = HotDirectorySettings()
    pools: dict[str, int] = {}
    """``[pools.NAME] max-workers``; 0: no limit."""
    hooks: tuple[Hook, ...] = ()
    path: str = ""

    @property
    def limits(self) -> PoolLimits:
        """What bounds how many units run at a time."""
        return PoolLimits(self.supervisor.max_workers, self.pools)


def settings_texts(settings: Settings) -> dict[str, str]:
    """Return every setting that has a value as text by its key (``journal.max-bytes``), defaults included; each rule
    of ``[[control.allow]]`` is one."""
    keys = {field: key for key, field in _FIELDS.items()}
    texts: dict[str, str] = {}
    for table in _TABLES:
        for name, value in asdict(getattr(settings, table)).items():
            if name == "allow":
                texts |= {f"control.allow.{place}": _rule_text(rule) for place, rule in enumerate(value, 1)}
            elif name == "remote":
                texts |= _remote_texts(f"{table}.remote", value)
            elif value is not None or name in keys:
                texts[f"{table.replace('_', '-')}.{keys.get(name, name.replace('_', '-'))}"] = _text(name, value)
    texts |= {f"pools.{name}.max-workers": str(count) for name, count in settings.pools.items()}
    for place, hook in enumerate(settings.hooks, 1):
        texts[f"hooks.{place}"] = f"{hook.event}: {command_text(hook.command)} ({format_timespan(hook.timeout_ns)})"
    return texts


def _remote_texts(table: str, remote: RemoteSettings | None) -> dict[str, str]:
    if remote is None:
        return {}
    grants = ((name, (value,) if isinstance(value, str) else value) for name, value in remote.commands.items())
    commands = " ".join(f"{name}={','.join(granted)}" for name, granted in grants)
    return {f"{table}.address": remote.address, f"{table}.keys": remote.keys, f"{table}.commands": commands}


def _rule_text(rule: AllowRule) -> str:
    return " ".join(f"{name}={_text(name, value)}" for name, value in asdict(rule).items() if value not in (None, ()))


def _text(name: str, value: Any) -> str:
    if name.endswith("_ns"):
        return format_timespan(value)
    match value:
        case Enum():
            return str(value.value)
        case Rate():
            return format_rate(value)
        case bool():
            return "true" if value else "false"
        case int():
            return format_mode(value) if name == "socket_mode" else format_size(value) if name in _SIZES else str(value)
        case dict():
            return " ".join(f"{key}={item}" for key, item in value.items())
        case tuple():
            return " ".join(value)
    return str(value)


_SIZES = frozenset({"max_bytes", "payload_max", "reserve"})
_TABLES = ("supervisor", "control", "journal", "bus", "hot_directory")
_SUBJECTS = ("group", "user", "uid", "gid", "unit", "key")
_REMOTE_HINTS = {
    "address": 'write address = "tcp://HOST:PORT"',
    "keys": (
        "nobody is let in without a key: supervisord-py keygen --curve --name server -o DIR makes the supervisor's, "
        'then write keys = "DIR"'
    ),
}
_FIELDS = {
    "shutdown-timeout-sec": "shutdown_timeout_ns",
    "max-age": "max_age_ns",
    "timeout": "timeout_ns",
    "rescan": "rescan_ns",
    "probation": "probation_ns",
}
"""Where the field is not the key in snake case."""


def parse_settings(text: str, path: str, key_table: KeyTable) -> tuple[Settings, tuple[Problem, ...]]:
    """Read ``supervisord.toml``.

    Args:
        text: What it says.
        path: How it is named in problems.
        key_table: ``docs/keys.toml``.

    Returns:
        The settings, and all problems. Where there is an error the settings are not to be used: what is wrong has its
        default.
    """
    file = read_tables(path, text, "settings", key_table)
    tables, problems = _decode(file)
    rules: list[AllowRule] = []
    grouped: list[Entry] = []
    for table, values in tables.items():
        if table[:2] == ("control", "allow"):
            subjects = [key for key in _SUBJECTS if key in file.tables[table]]
            if len(subjects) != 1:
                message = f"a rule has one of {', '.join(_SUBJECTS)}"
                hint = f"make a rule each for {' and '.join(subjects)}" if subjects else "say whom it is for"
                problems.append(problem_at(file.source, table, message, hint, on_key=True))
            elif "commands" not in file.tables[table]:
                message = "a rule without the key 'commands'"
                hint = 'write commands = "operator", or a list'
                problems.append(problem_at(file.source, table, message, hint, on_key=True))
            elif values.keys() >= {"commands", subjects[0]}:
                rules.append(AllowRule(**_fields(values)))
                grouped += [values["group"].entry] if "group" in values else []
    supervisor = _fields(tables.get(("supervisor",), {}))
    if "mode" in supervisor:
        supervisor["mode"] = SupervisorMode(supervisor["mode"])
    settings = Settings(
        supervisor=SupervisorSettings(**supervisor),
        control=ControlSettings(
            **_fields(tables.get(("control",), {})),
            allow=tuple(rules),
            remote=_remote("control", file, tables, problems),
        ),
        journal=JournalSettings(**_fields(tables.get(("journal",), {}))),
        bus=BusSettings(**_fields(tables.get(("bus",), {})), remote=_remote("bus", file, tables, problems)),
        hot_directory=HotDirectorySettings(**_fields(tables.get(("hot-directory",), {}))),
        pools=_pools(file, tables, problems),
        hooks=_hooks(file, tables, problems),
        path=path,
    )
    group, mode = settings.control.socket_group or DEFAULT_SOCKET_GROUP, settings.control.socket_mode
    for entry in grouped:
        if entry.value != group and not mode & OTHERS_WRITE:
            message = f"members of {entry.value} cannot open the socket (group {group}, mode {format_mode(mode)})"
            hint = f'write socket-group = "{entry.value}" or socket-mode = "{format_mode(mode | 0o006)}" into [control]'
            problems.append(entry.problem(message, hint, severity="warning"))
    return settings, tuple(sorted(problems, key=lambda problem: (problem.line, problem.column)))


def _decode(file: FileTables) -> tuple[DecodedTables, list[Problem]]:
    """Decode all tables; specifiers stand for something in hooks alone."""
    hooks = {table: entries for table, entries in file.tables.items() if table[0] == "hooks"}
    others = {table: entries for table, entries in file.tables.items() if table not in hooks}
    # An empty list is a value here, not a reset: "allowed-commands = []" allows nothing.
    tables, problems = decode_entries(replace(file, tables=others), str, resets=False)
    of_hooks, found = decode_entries(replace(file, tables=hooks), check_specifiers, resets=False)
    return tables | of_hooks, [*file.problems, *problems, *found]


def _remote(table: str, file: FileTables, tables: DecodedTables, problems: list[Problem]) -> RemoteSettings | None:
    """``[control.remote]`` or ``[bus.remote]``: one that listens without keys is not possible."""
    where = (table, "remote")
    if where not in tables:
        return None
    values, is_whole = tables[where], True
    for key, hint in _REMOTE_HINTS.items():
        is_whole &= key in values
        if key not in file.tables[where]:
            problems.append(
                problem_at(file.source, where, f"[{table}.remote] without the key {key!r}", hint, on_key=True)
            )
    if not is_whole:
        return None
    other = tables.get(("control", "remote"), {}).get("address") if table == "bus" else None
    if other is not None and other.value == values["address"].value:
        hint = "each listens on a port of its own"
        problems.append(values["address"].entry.problem("this is the address of [control.remote]", hint))
    return RemoteSettings(**_fields(values))


def _pools(file: FileTables, tables: DecodedTables, problems: list[Problem]) -> dict[str, int]:
    """``[pools.NAME]``, sorted by name."""
    pools: dict[str, int] = {}
    for table in sorted(each for each in tables if each[0] == "pools"):
        name = str(table[1])
        try:
            parse_group_name(name)
        except ValueError:
            hint = "letters, digits and : _ . -, a letter or digit first"
            problems.append(problem_at(file.source, table, f"{name!r} is not the name of a pool", hint, on_key=True))
        else:
            count = tables[table].get("max-workers")
            pools[name] = 0 if count is None else count.value
    return pools


def _hooks(file: FileTables, tables: DecodedTables, problems: list[Problem]) -> tuple[Hook, ...]:
    """``[[hooks]]``, in their order."""
    hooks: list[Hook] = []
    for table, values in tables.items():
        if table[0] == "hooks":
            missing = [key for key in ("event", "command") if key not in file.tables[table]]
            for key in missing:
                message = f"a hook without the key {key!r}"
                hint = 'write event = "unit.failed"' if key == "event" else 'write command = ["PROGRAM", "ARGUMENT"]'
                problems.append(problem_at(file.source, table, message, hint, on_key=True))
            if values.keys() >= {"event", "command"}:
                hooks.append(Hook(**_fields(values)))
    return tuple(hooks)


def _fields(values: Mapping[str, Decoded]) -> dict[str, Any]:
    return {_FIELDS.get(key, key.replace("-", "_")): decoded.value for key, decoded in values.items()}

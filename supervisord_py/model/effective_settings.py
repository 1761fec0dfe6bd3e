"""What holds for a unit, key by key: what its files say, and the defaults of the rest."""

from typing import Any

from msgspec import Struct

from supervisord_py.model.keys import KeyTable, TableSpec
from supervisord_py.model.parse import Decoded, DecodedTables, TableId
from supervisord_py.model.specifiers import Specifiers
from supervisord_py.model.unit import Unit
from supervisord_py.model.values import format_timespan


class Setting(Struct, frozen=True):
    """One setting in force: ``key`` is ``TABLE.KEY``, ``value`` as TOML has it, specifiers expanded; without a file
    it is a default."""

    key: str
    value: Any
    file: str | None = None
    line: int | None = None


def effective_settings(
    key_table: KeyTable, tables: DecodedTables, specifiers: Specifiers, unit: Unit | None
) -> list[Setting]:
    """Every setting of a unit with these tables: those that are written, with file and line, then the defaults.

    Names of a table value are settings of their own (``service.environment.PATH``).
    """
    written: list[Setting] = []
    defaults: list[Setting] = []
    has_process = ("service",) in tables
    for spec in key_table.of("unit"):
        is_shown = spec.name == "unit" or (spec.name in _ALWAYS and has_process)
        for place in _places(spec, tables):
            for key, key_spec in spec.keys.items():
                decoded = tables.get(place, {}).get(key)
                if decoded is not None:
                    written += _written_setting(decoded, specifiers)
                elif key_spec.built and (is_shown or (spec.name in _WHERE_WRITTEN and place in tables)):
                    default = _effective_default(place, key, key_spec.default, unit)
                    if default is not None:
                        defaults.append(Setting(".".join((*map(str, place), key)), default))
    return written + defaults


_ALWAYS = ("service", "limits", "log", "quarantine", "pool")
"""Tables whose defaults hold for each unit that has processes."""
_WHERE_WRITTEN = ("timer", "health.NAME")
"""Those whose defaults hold only where the table is."""


def _places(spec: TableSpec, tables: DecodedTables) -> list[TableId]:
    """Where a table stands in a unit: a named one as often as it has names."""
    if spec.form != "named":
        return [(spec.name,)]
    holder = spec.name.removesuffix(".NAME")
    return sorted(place for place in tables if place[0] == holder and len(place) > 1)


def _written_setting(decoded: Decoded, specifiers: Specifiers) -> list[Setting]:
    """One setting, or one for each name of a table value."""
    entry = decoded.entry
    name = ".".join(map(str, entry.path))
    if not isinstance(decoded.value, dict):
        value = specifiers.expand_all(entry.value) if entry.spec.expands else entry.value
        return [Setting(name, value, entry.source.path, entry.source.line(entry.path))]
    found: list[Setting] = []
    for part in decoded.value:
        own = decoded.at(part)
        line = own.source.line((*own.path, part))
        found.append(Setting(f"{name}.{part}", specifiers.expand_all(own.value[part]), own.source.path, line))
    return found


def _effective_default(place: TableId, key: str, default: Any, unit: Unit | None) -> Any:
    """The default of a key in this unit, where it follows from others."""
    table = place[0]
    if unit is not None and (table, key) == ("unit", "enabled"):
        return unit.enabled
    if unit is not None and (table, key) == ("health", "action"):
        return next(probe.action.value for probe in unit.health if probe.name == place[-1])
    service = unit.service if unit is not None else None
    if service is None:
        return default
    limit = service.restart.limit
    match table, key:
        case "service", "type":
            return service.type.value
        case "service", "restart":
            return service.restart.restart.value
        case "service", "restart-max-delay-sec":
            return format_timespan(service.restart.max_delay_ns)
        case "service", "timeout-start-sec":
            return format_timespan(service.timeout_start_ns)
        case "service", "timeout-abort-sec":
            return format_timespan(service.timeout_abort_ns)
        case "service", "notify-access":
            return service.notify_access.value
        case "quarantine", "failures":
            return service.restart.failures
        case "unit", "start-limit-interval-sec" if limit is not None:
            return format_timespan(limit.interval_ns)
        case "unit", "start-limit-burst" if limit is not None:
            return limit.burst
    return default

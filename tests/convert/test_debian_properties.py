"""Debian's units under booted systemd and as ours: property by property, with a listed file of differences."""

import json
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomli

from supervisord_py.convert.formats import convert
from supervisord_py.convert.settle import settle
from supervisord_py.convert.systemd_rules import Rules
from supervisord_py.convert.systemd_units import parse_name
from supervisord_py.model.calendar import format_calendar
from supervisord_py.model.unitset import UnitFile, UnitFileKind
from tests.convert.bench import CONTEXT, KEYS, MACHINE, around, debian_sets, fixture, loaded, read_all
from tests.convert.properties import (
    IMPLIED_BY_DYNAMIC_USER,
    IMPLIED_CAPABILITIES,
    NAMES_OF_DYNAMIC_USER,
    PROPERTIES,
    RELATIONS,
    Seen,
    edges,
    missing_edges,
    normal,
    raw_tables,
)

LISTED = tomli.loads((Path(__file__).parent / "differences.toml").read_text(encoding="utf-8"))
RULES = Rules(KEYS, resources.files("supervisord_py.convert").joinpath("systemd.toml").read_text(encoding="utf-8"))


class Comparison:
    """Counts what is the same, and collects what is not."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.used: set[str] = set()

    def note(self, unit: str, name: str, expected: Any, ours: Any) -> None:
        if expected == ours:
            self.counts["the same"] += 1
        elif f"{name} {json.dumps(expected)}" in LISTED["value"]:
            self.used.add(f"{name} {json.dumps(expected)}")
            self.counts["a listed value"] += 1
        elif f"{unit} {name}" in LISTED["one"]:
            self.used.add(f"{unit} {name}")
            self.counts["listed one by one"] += 1
        else:
            self.wrong.append(f"{unit} {name}: {expected!r}, not {ours!r}")


def test_properties_of_debian_units(record_property: Callable[[str, object], None]) -> None:
    """Each property that systemd computed is what our unit says, or stands in differences.toml with its reason."""
    folder = fixture("debian-units")
    found = Comparison()
    for name, paths in debian_sets():
        package, scope = name.split("/")
        answers = folder / "_expected" / f"{package}.json"
        if scope == "system" and answers.exists():
            _compare(json.loads(answers.read_text()), paths, found)
    stale = sorted({*LISTED["one"], *LISTED["value"]} - found.used)
    assert not found.wrong, f"{len(found.wrong)}:\n" + "\n".join(found.wrong)
    assert not stale, f"these are the same now: {stale}"
    total = found.counts.total()
    record_property(
        "summary",
        f"convert systemd, properties of {found.counts.pop('units')} units of Debian: {dict(found.counts)} of {total}",
    )


def _compare(answers: dict[str, Any], paths: list[str], found: Comparison) -> None:
    conversion = convert("systemd", read_all(paths), around())
    raw = {name: raw_tables(draft) for name, draft in conversion.drafts.items()}
    settle(conversion, KEYS, CONTEXT, MACHINE)
    names = _names(answers, conversion.drafts)
    instances = sorted({ours for ours in names.values() if "@" in ours and not ours.endswith("@")})
    wanting = UnitFile("z-all", "/z/z-all.toml", f"[unit]\nwants = {json.dumps(instances)}\n[target]\n",
                       UnitFileKind.UNIT, "/z", 1)  # fmt: skip
    units = dict(loaded(conversion, wanting).unit_set.units)
    units.pop("z-all")
    for unit_name, sections in answers.items():
        ours = names.get(unit_name)
        unit = units.get(ours or "")
        if unit is None and (ours or "").endswith("@"):
            unit = units.get(f"{ours}inst-1")
        if unit is None or unit.service is None:
            continue
        found.counts["units"] += 1
        template = f"{unit.name.partition('@')[0]}@"
        seen = Seen(unit, raw.get(unit.name) or raw.get(template) or {})
        is_service = unit_name.endswith(".service")
        is_dynamic = sections.get("Service", {}).get("DynamicUser") is True
        for section, properties in sections.items():
            for key, value in properties.items():
                if is_dynamic and f"{section}.{key}" in NAMES_OF_DYNAMIC_USER:
                    found.counts["of a dynamic user's name"] += 1
                    continue
                if is_dynamic and f"{section}.{key}" in IMPLIED_BY_DYNAMIC_USER:
                    implied = IMPLIED_BY_DYNAMIC_USER[f"{section}.{key}"](unit.service.context.sandbox)
                    found.note(unit_name, f"{section}.{key}", value, implied)
                    continue
                _property(f"{section}.{key}", value, unit_name, seen, units, names, found, is_service)


def _property(
    name: str, value: Any, unit: str, seen: Seen, units: dict[str, Any], names: dict[str, str], found: Comparison,
    is_service: bool,
) -> None:  # fmt: skip
    key = name.partition(".")[2]
    if name in LISTED["every"] or key.endswith("_implicit_removed"):
        found.counts["listed as a whole"] += 1
    elif name == "Timer.TimersCalendar":
        calendars = seen.unit.timer.on_calendar if seen.unit.timer else ()
        found.note(unit, name, sorted(spec for _, spec, _ in value), sorted(map(format_calendar, calendars)))
    elif name == "Timer.TimersMonotonic":
        found.note(unit, name, sorted((kind, usec) for kind, usec, _ in value), _monotonic(seen))
    elif name == "Socket.Listen":
        found.note(unit, name, sorted(map(tuple, value)), _listen(seen, unit))
    elif name.startswith("Socket."):
        _socket(name, value, unit, seen, found)
    elif name.startswith("Unit.") and not is_service:
        # Three units are one here: what is said of the service counts.
        found.counts["of sockets and timers"] += 1
    elif name.startswith("Unit.") and key in RELATIONS:
        theirs = [other for other in value if other != unit]
        missing = missing_edges(key, theirs, edges(units, seen.unit.name)[key], seen.unit.name, RULES, names, units)
        found.note(unit, name, [], missing)
    elif name == "Unit.Documentation":
        found.note(unit, name, [], [each for each in value if each not in seen.unit.documentation])
    elif name == "Unit.Description":
        found.note(unit, name, value, seen.unit.description or unit)
    elif name == "Service.CapabilityBoundingSet":
        theirs, ours = normal(name, value), PROPERTIES[name](seen)
        assert isinstance(ours, int)
        found.note(unit, name, theirs & ~IMPLIED_CAPABILITIES, ours & ~IMPLIED_CAPABILITIES)
    elif name in PROPERTIES:
        found.note(unit, name, normal(name, value), PROPERTIES[name](seen))
    else:
        found.wrong.append(f"{unit} {name}: nothing is known of this property")


def _names(answers: dict[str, Any], drafts: dict[str, Any]) -> dict[str, str]:
    """Our names of the units that systemd was asked about."""
    names: dict[str, str] = {}
    for unit, sections in answers.items():
        asked = unit
        if not unit.endswith((".service", ".target")):
            triggers = sections["Unit"].get("Triggers") or [unit.rpartition(".")[0] + ".service"]
            asked = triggers[0]
            if sections.get("Socket", {}).get("Accept"):
                asked = f"{unit.rpartition('.')[0]}@.service"
        parsed = parse_name(asked)
        if parsed is None:
            continue
        prefix = parsed.prefix.replace("\\x2d", "-")
        name = prefix if parsed.instance is None else f"{prefix}@{parsed.instance}"
        accepting = [f"{prefix}.socket", prefix] if parsed.instance is not None else []
        for candidate in (name, f"{name}.target", *accepting):
            if candidate in drafts or ("@" in candidate and f"{candidate.partition('@')[0]}@" in drafts):
                names[unit] = candidate
                break
    return names


def _monotonic(seen: Seen) -> list[tuple[str, int]]:
    timer = seen.unit.timer
    if timer is None:
        return []
    spans = {"OnActiveUSec": timer.on_active_ns, "OnBootUSec": timer.on_boot_ns, "OnStartupUSec": timer.on_startup_ns,
             "OnUnitActiveUSec": timer.on_unit_active_ns, "OnUnitInactiveUSec": timer.on_unit_inactive_ns}  # fmt: skip
    return sorted((kind, span // 1000) for kind, found in spans.items() for span in found)


def _tables_of(seen: Seen, unit: str) -> list[dict[str, Any]]:
    tables = [dict(values) for table, values in seen.raw.items() if table[0] == "socket"]
    own = [values for values in tables if seen.expand(values["name"]) == unit] or tables
    return own[:1]


def _listen(seen: Seen, unit: str) -> list[tuple[str, str]]:
    kinds = {"listen-stream": "Stream", "listen-datagram": "Datagram", "listen-sequential-packet": "SequentialPacket",
             "listen-fifo": "FIFO"}  # fmt: skip
    return sorted(
        (kind, _address(seen.expand(address)))
        for values in _tables_of(seen, unit)
        for key, kind in kinds.items()
        for address in values.get(key, [])
    )


def _address(text: str) -> str:
    return f"[::]:{text}" if text.isdecimal() else text


def _socket(name: str, value: Any, unit: str, seen: Seen, found: Comparison) -> None:
    (table,) = _tables_of(seen, unit) or ({},)
    key = name.partition(".")[2]
    known = {"SocketUser": "socket-user", "SocketGroup": "socket-group", "SocketMode": "socket-mode",
             "Accept": "accept", "Backlog": "backlog", "FileDescriptorName": "name",
             "TriggerLimitBurst": "trigger-limit-burst"}.get(key)  # fmt: skip
    if known is None:
        found.wrong.append(f"{unit} {name}: nothing is known of this property")
        return
    ours = seen.expand(table.get(known))
    found.note(unit, name, value, int(ours, 8) if known == "socket-mode" and ours else ours)


@pytest.mark.parametrize("kind", ["every", "one", "value", "oracle"])
def test_differences_have_reasons(kind: str) -> None:
    """A difference is listed with the reason for it."""
    assert all(len(reason) > 15 for reason in LISTED[kind].values())

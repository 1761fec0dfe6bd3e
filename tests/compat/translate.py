"""Unit files of systemd in our words, as ``convert systemd`` writes them: systemd's own defaults are written out."""

import re
from pathlib import Path

from supervisord_py.model.keys import KeySpec, parse_key_table
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.specifiers import SpecifierContext
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set

KEY_TABLE = parse_key_table((Path(__file__).parents[2] / "docs" / "keys.toml").read_text(encoding="utf-8"))
CONTEXT = SpecifierContext("/root", "/run", "/var/lib", "/var/log", "root", 0, "host", "b00f")

SYSTEMD_DEFAULTS = {
    "unit": {"start-limit-interval-sec": '"10s"', "start-limit-burst": "5"},
    "service": {"restart": '"no"', "restart-steps": "0", "restart-jitter": "0"},
}
"""What holds in systemd when nothing is written, and is something else with us."""

WITH_ORDER = {"Requires", "Wants", "Requisite", "BindsTo", "Upholds"}
"""Relations that can carry an order with us; there an order is a relation of its own."""

_TRUE = {"1", "yes", "y", "true", "t", "on"}


class Untranslatable(Exception):
    """There is no key for a directive."""


def translate(text: str) -> str:
    """Turn the text of a ``.service`` file into one of ours.

    Directives that stand before any ``[Section]`` are of the service. A number alone is a time in seconds in both.

    Raises:
        Untranslatable: One of the directives has no key.
    """
    directives: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith(("#", ";", "[")):
            directives.setdefault(name.strip(), []).append(value.strip())
    tables: dict[str, dict[str, str]] = {table: dict(keys) for table, keys in SYSTEMD_DEFAULTS.items()}
    after = [name for value in directives.get("After", ()) for name in value.split()]
    for directive, values in directives.items():
        found = KEY_TABLE.by_directive("unit", directive)
        if found is None:
            raise Untranslatable(directive)
        table, key = found
        tables.setdefault(table.name, {})[key] = _value(directive, table.keys[key], values, after)
    if "limits" in tables:
        tables["limits"]["enforce"] = '"best-effort"'
    lines = []
    for table_name, keys in tables.items():
        lines += [f"[{table_name}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _value(directive: str, spec: KeySpec, values: list[str], after: list[str]) -> str:
    words = [word for value in values for word in value.split()]
    match spec.type:
        case "commands":
            # One command a line, by systemd's own rules; a literal string, so nothing is escaped twice.
            assert not any("'''" in value for value in values)
            return "'''\n" + "\n".join(map(_escaped, values)) + "'''"
        case "dependencies":
            entries = []
            for name in map(_unit, words):
                ordered = name in map(_unit, after) or directive not in WITH_ORDER
                entries.append(f'"{name}"' if ordered else f'{{ unit = "{name}", ordered = false }}')
            return f"[{', '.join(entries)}]"
        case "ordering" | "names":
            return f"[{', '.join(_text(_unit(word)) for word in words)}]"
        case "strings":
            if directive.startswith(("Condition", "Assert")):
                words = values
            return f"[{', '.join(map(_text, words))}]"
        case "accounts" | "environment-files" | "variable-names" | "unset-variables":
            return f"[{', '.join(map(_text, words))}]"
        case "environment":
            pairs = [word.split("=", 1) for word in words]
            return "{ " + ", ".join(f"{name} = {_text(value)}" for name, value in pairs) + " }"
        case "boolean":
            return "true" if values[-1].lower() in _TRUE else "false"
        case "integer":
            return values[-1]
        case "timespans":
            return f"[{', '.join(value if value.isdigit() else _text(value) for value in values)}]"
        case "timespan" | "timeout" | "limit-count" | "limit-bytes":
            return values[-1] if re.fullmatch(r"[0-9]+", values[-1]) else _text(values[-1])
        case _:
            return _text(values[-1])


_ESCAPE = re.compile(r"\\(?:[abfnrtvs\\\"']|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3})|\\")


def _escaped(command: str) -> str:
    """An unknown escape stays as it is in systemd, with a warning, and is an error with us."""
    return _ESCAPE.sub(lambda found: "\\\\" if found[0] == "\\" else found[0], command)


def _unit(name: str) -> str:
    return name.removesuffix(".service")


def _text(value: str) -> str:
    assert "'" not in value
    return f"'{value}'"


def load(texts: dict[str, str]) -> LoadResult:
    """Load unit files of systemd through the real model; a file whose name is no unit's name is never looked at."""
    files = [
        UnitFile(name, f"u/{name}.toml", translate(text), UnitFileKind.UNIT, "u", 0)
        for name, text in texts.items()
        if is_unit_name(name)
    ]
    return build_unit_set(files, CONTEXT, key_table=KEY_TABLE)

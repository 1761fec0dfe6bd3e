"""Writes the reference of all keys from ``docs/keys.toml``: ``docs/units.md`` whole, and the key lists of the manuals.

``python docs/make_reference.py`` writes, with ``--check`` it only says what is out of date (exit 1). A list in a manual
stands between two comments, ``.\\" keys FILE TABLE`` and ``.\\" end keys``, and holds the keys that are built; what
people need to know beyond a line a key is written by hand around it. A table of the manual's file that has a built key
and no such place is an error, so no key can be forgotten.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

DOCS = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))

from supervisord_py.model.keys import FileKind, KeySpec, KeyTable, TableSpec, parse_key_table  # noqa: E402

MANUALS: dict[str, FileKind] = {"supervisord-py.unit.5": "unit", "supervisord.toml.5": "settings"}
"""Each manual with key lists, and the file whose tables it must hold."""

VALUES: dict[str, str] = {
    "string": "string",
    "strings": "strings",
    "boolean": "boolean",
    "switch-or-strings": "boolean or strings",
    "fraction": "number from 0 to 1",
    "integer": "integer",
    "timespan": "time span",
    "timespans": "time spans",
    "period": "time span",
    "delay": "time span",
    "calendars": "calendar times",
    "timeout": "time-out",
    "size": "size",
    "mode": "mode",
    "signal": "signal",
    "command": "command",
    "commands": "commands",
    "dependencies": "dependencies",
    "ordering": "dependencies",
    "names": "units",
    "label": "name",
    "labels": "names",
    "url": "URL",
    "address": "HOST:PORT",
    "listen-address": "tcp://HOST:PORT",
    "path": "path",
    "socket-path": "path",
    "socket-addresses": "addresses",
    "fifos": "paths",
    "descriptor-name": "name",
    "regex": "regular expression",
    "event": "event or glob",
    "class": "class",
    "classes": "classes",
    "config": "table",
    "pause": "time span",
    "account": "name or number",
    "accounts": "names or numbers",
    "directory": "path",
    "runtime-path": "path",
    "conditions": "conditions",
    "exit-statuses": "exit codes and signals",
    "environment": "table",
    "environment-files": "strings",
    "variable-names": "strings",
    "unset-variables": "strings",
    "folders": "strings",
    "loaded-credentials": "strings",
    "set-credentials": "strings",
    "cpus": "strings",
    "input-stream": "string",
    "input-texts": "strings",
    "input-data": "strings",
    "absolute-paths": "paths",
    "nanoseconds": "time span",
    "output-stream": "string",
    "environment-names": 'names, or "all"',
    "table": "table",
    "counts": "table",
    "rate": "rate",
    "limit-count": "limit",
    "limit-bytes": "limit in bytes",
    "limit-seconds": "limit in seconds",
    "limit-hard-microseconds": "time span",
    "size-or-percent": "size",
    "count-or-percent": "integer",
    "percent": "string",
    "grant": "preset or commands",
    "key-grants": "preset, commands, or a table of them",
    "pattern": "unit or glob",
    "patterns": "units, globs or @groups",
}
"""What a value of each type is called; the manuals explain the words under "VALUES"."""

_BEGIN = re.compile(r'\.\\" keys (unit|settings) (\S+)')
_END = '.\\" end keys'

LINE_MAX = 79


class OutOfPlaceError(Exception):
    """A manual and the table of keys do not go together; the message says what to do."""


def value_words(spec: KeySpec) -> str:
    """Say what a key takes: ``time span``, ``integer from 0``, ``"wait" or "fail"``."""
    if spec.type in ("enum", "switch"):
        built = [f'"{value}"' for value in spec.values if value not in spec.pending]
        return f"{', '.join(built[:-1])} or {built[-1]}" if len(built) > 1 else built[0]
    words = VALUES[spec.type]
    if spec.minimum is not None:
        words += f" from {spec.minimum}"
    if spec.maximum is not None:
        words += f" to {spec.maximum}"
    return words


def default_text(value: Any) -> str:
    """Write a default as TOML has it, None as nothing at all."""
    if value is None:
        return ""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(name)} = {default_text(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json.dumps(value, ensure_ascii=False)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# Markdown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def units_page(table: KeyTable) -> str:
    """Return ``docs/units.md``."""
    lines = [
        "# All keys",
        "",
        "Made from `docs/keys.toml` by `docs/make_reference.py`; change that table, not this page. The manuals",
        "supervisord-py.unit(5) and supervisord.toml(5) say more: how values are written, how commands,",
        "dependencies and drop-ins work. `supervisord-py schema` prints the same as a JSON schema for editors.",
        "",
        "A key without a default sets nothing when it is not written. The last column names the directive of systemd",
        "that a key stands for, and that it means the same as. What is not supported yet would be listed at the end of",
        "each part: a file that has it is refused, never half obeyed.",
    ]
    for file, title in (("unit", "Unit files"), ("settings", "supervisord.toml")):
        lines += ["", f"## {title}"]
        tables = table.of("unit" if file == "unit" else "settings")
        for spec in tables:
            if spec.built:
                lines += _markdown_table(spec)
        pending: list[str] = []
        for spec in tables:
            later = [f"`{key}`" for key, item in spec.keys.items() if not item.built]
            values = [
                f"`{key} = {json.dumps(value)}`"
                for key, item in spec.keys.items()
                if item.built
                for value in item.pending
            ]
            if later or values:
                pending.append(f"* `{spec.header}`: {', '.join(later + values)}")
        if pending:
            lines += ["", "### Not supported yet", "", *pending]
    return "\n".join(lines) + "\n"


def _markdown_table(spec: TableSpec) -> Iterator[str]:
    yield from ("", f"### {spec.header}", "", _sentence(spec.doc))
    built = {key: item for key, item in spec.keys.items() if item.built}
    if not built:
        return
    yield from ("", "| key | value | default | what it does | systemd |", "|---|---|---|---|---|")
    for key, item in built.items():
        default = default_text(item.default)
        cells = (f"`{key}`", value_words(item), f"`{default}`" if default else "", item.doc, item.systemd)
        yield f"| {' | '.join(map(_cell, cells))} |"


# Manuals


def roff(text: str) -> str:
    """Write text so that a formatter prints it as it is: backslashes, a leading dot, and the hyphen of code."""
    text = text.replace("\\", "\\e")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def _filled_lines(text: str) -> list[str]:
    """Write text in lines of a length that mandoc finds good style."""
    lines = wrap(text, LINE_MAX, break_long_words=False, break_on_hyphens=False)
    return [roff(line) for line in lines]


def _code(text: str) -> str:
    """Write code for a macro's argument: quotes and blanks kept together, hyphens that can be copied."""
    quoted = roff(text).replace("-", "\\-").replace('"', "\\(dq")
    return f'"{quoted}"' if " " in quoted or not quoted else quoted


def key_list(spec: TableSpec) -> list[str]:
    """Return the lines of a manual that say what the built keys of a table are."""
    lines = [".Bl -tag -width Ds"]
    for key, item in spec.keys.items():
        if not item.built:
            continue
        words = value_words(item).replace('"', "\\(dq")
        shown = words.replace("-", "\\-") if item.type in ("enum", "switch") else f"Ar {words}"
        lines += [f".It Ic {_code(key)} No = {shown}", *_filled_lines(_sentence(item.doc))]
        # An empty default is what everybody expects of a key that is not written; saying so thirty times is noise.
        if item.default not in (None, "", [], {}):
            lines += ["Default:", f".Ql {_code(default_text(item.default))} ."]
    return [*lines, ".El"]


def filled(name: str, text: str, table: KeyTable) -> str:
    """Return a manual with its key lists made anew.

    Raises:
        OutOfPlaceError: A list of no table, a table without its list, or a list that does not end.
    """
    lines: list[str] = []
    missing = {spec.name for spec in table.of(MANUALS[name]) if any(item.built for item in spec.keys.values())}
    source = iter(text.splitlines())
    for line in source:  # the search for the end below takes lines out of the same iterator: those that are replaced
        lines.append(line)
        begin = _BEGIN.fullmatch(line)
        if begin is None:
            continue
        spec = table.find("unit" if begin[1] == "unit" else "settings", begin[2])
        if spec is None or begin[1] != MANUALS[name] or begin[2] not in missing:
            raise OutOfPlaceError(f"{name}: {line}: there is no such table here, or it stands here twice")
        missing.remove(spec.name)
        if _END not in source:
            raise OutOfPlaceError(f"{name}: {line}: the list has no end; write {_END}")
        lines += [*key_list(spec), _END]
    if missing:
        places = ", ".join(f'.\\" keys {MANUALS[name]} {each}' for each in sorted(missing))
        raise OutOfPlaceError(f"{name}: write {places} where the keys are to stand")
    return "\n".join(lines) + "\n"


def references(root: Path) -> dict[Path, str]:
    """Return what every generated file is to hold, by path."""
    table = parse_key_table((root / "docs" / "keys.toml").read_text(encoding="utf-8"))
    made = {root / "docs" / "units.md": units_page(table)}
    for name in MANUALS:
        path = root / "man" / name
        made[path] = filled(name, path.read_text(encoding="utf-8"), table)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the reference of all keys.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is out of date")
    check: bool = parser.parse_args().check
    stale = [
        path
        for path, text in references(DOCS.parent).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if check:
        for path in stale:
            print(f"{path} is out of date: run python docs/make_reference.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in references(DOCS.parent).items():
        if path in stale:
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

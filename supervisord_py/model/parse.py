"""TOML text to tables of known keys, and every problem on the way.

Theory of operation
-------------------
A file goes through three steps. ``read_tables`` parses it and compares it with the table of keys: what is unknown,
misplaced or not built yet becomes a ``Problem``, the rest an ``Entry``. ``decode_entries`` turns the entries of one
file into values of the model, with the specifiers of one unit. ``merge`` lays the files of a unit over each other:
tables merge, values replace, ``KEY = []`` takes back what the files below said. Each step goes on after a problem, so
that all of them are told at once; positions are looked up only for problems and origins.

Files are decoded before they are merged: a wrong value is a problem even where a drop-in replaces it.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import tomli
from msgspec import Struct

from supervisord_py.model.command import Expand
from supervisord_py.model.decode import DECODERS
from supervisord_py.model.keys import FileKind, KeySpec, KeyTable, TableSpec
from supervisord_py.model.positions import Path, SourceText
from supervisord_py.model.problems import BadValue, Gravity, Problem

TableId = Path
"""Where a table stands in its file: ``("service",)``, ``("health", "http")``, ``("control", "allow", 0)``."""

ABBREVIATED_MIN = 3
"""So many letters of a key are enough to be taken for its beginning."""
_CAMEL = re.compile(r"(?:[A-Z]+[a-z0-9]*)+")
_WORDS_OF_OTHERS = {
    "command": "exec-start", "cmd": "exec-start", "exec": "exec-start", "args": "exec-start", "autostart": "enabled",
    "autorestart": "restart", "startsecs": "restart-reset-sec", "startretries": "failures", "stopsignal": "kill-signal",
    "stop-signal": "kill-signal", "stopwaitsecs": "timeout-stop-sec", "graceful-timeout": "timeout-stop-sec",
    "killasgroup": "kill-mode", "stopasgroup": "kill-mode", "directory": "working-directory", "cwd":
    "working-directory", "chdir": "working-directory", "uid": "user", "gid": "group", "env": "environment", "env-file":
    "environment-file", "numprocs": "count", "numprocesses": "count", "replicas": "count", "depends-on": "requires",
    "cron": "on-calendar", "cron-restart": "on-calendar", "schedule": "on-calendar", "retries": "failure-threshold",
    "start-period": "initial-delay",
    "stdout-logfile-maxbytes": "max-bytes", "stdout-logfile-backups": "backups", "max-restarts": "failures",
    "max-size": "max-bytes", "max-file": "backups", "max-files": "backups", "max-memory-restart": "memory-max",
    "mem-limit": "memory-max", "stdout-logfile": "standard-output", "stderr-logfile": "standard-error", "stdout":
    "standard-output", "stderr": "standard-error", "workdir": "working-directory", "restart-delay": "restart-sec",
    "kill-timeout": "timeout-stop-sec", "listen": "listen-stream",
}  # fmt: skip
"""What supervisor, circus, pm2 and compose call it."""


class Entry(Struct, frozen=True):
    """A known, built key in a file. ``table`` and ``key`` are its name, ``path`` its place."""

    spec: KeySpec
    table: TableId
    key: str
    value: Any
    source: SourceText

    @property
    def path(self) -> Path:
        return (*self.table, self.key)

    def problem(self, message: str, hint: str = "", at: Path = (), severity: Gravity = "error") -> Problem:
        """A problem with the value, or with the part of it that ``at`` leads to."""
        return problem_at(self.source, (*self.path, *at), message, hint, severity=severity)


class Decoded(Struct, frozen=True):
    """An entry and what its value means. ``reset``: it only takes back what is below. ``parts`` are where the names of
    a table value come from, after a merge."""

    entry: Entry
    value: Any
    reset: bool = False
    parts: Mapping[str, Entry] = {}

    def at(self, name: str) -> Entry:
        return self.parts.get(name, self.entry)


Tables = dict[TableId, dict[str, Entry]]
DecodedTables = dict[TableId, dict[str, Decoded]]


class FileTables(Struct, frozen=True):
    """One file, read. ``tables`` holds the tables that are there, empty ones too; ``broken`` when it is no TOML at
    all."""

    source: SourceText
    tables: Tables
    problems: tuple[Problem, ...]
    broken: bool = False


def problem_at(
    source: SourceText,
    path: Path,
    message: str,
    hint: str = "",
    *,
    on_key: bool = False,
    severity: Gravity = "error",
) -> Problem:
    """A problem at the value of ``path``, or at its key."""
    key = ".".join(str(step) for step in path if isinstance(step, str))
    spot = source.spot(path)
    if spot is None:
        return Problem(source.path, 0, 0, key, message, hint, severity)
    line, column, text = source.place(spot.key if on_key else spot.value)
    return Problem(source.path, line, column, key, message, hint, severity, text)


def read_tables(path: str, text: str, file: FileKind, key_table: KeyTable) -> FileTables:
    """Read a file and sort its keys into known and wrong ones.

    Args:
        path: How the file is named in problems.
        text: What it says.
        file: Which tables of the key table it may hold.
        key_table: ``docs/keys.toml``.
    """
    source = SourceText(path, text)
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        # tomli counts the end of a text as a line of its own when it ends in a newline: point to what is there.
        line, column, shown = source.place(min(error.pos, len(text.rstrip())))
        message = error.msg[:1].lower() + error.msg[1:]
        return FileTables(
            source,
            {},
            (Problem(path, line, column, "", message, _syntax_hint(message, shown), source=shown),),
            broken=True,
        )
    except ValueError as error:
        # tomli lets Python's own error through for a number of thousands of digits.
        return FileTables(
            source, {}, (Problem(path, 0, 0, "", "a number is too large", str(error).lower()),), broken=True
        )
    except RecursionError:
        problem = Problem(path, 0, 0, "", "too deeply nested", "no key takes lists or tables within so many others")
        return FileTables(source, {}, (problem,), broken=True)
    reader = _Reader(source, file, key_table)
    reader.read(document)
    return FileTables(source, reader.tables, tuple(reader.problems))


def _syntax_hint(message: str, line: str) -> str:
    if message.startswith("cannot overwrite"):
        return "it is written twice: leave one"
    if message.startswith("cannot declare"):
        return "the table stands twice: put all its keys into one"
    if message.startswith(("illegal character '\\n'", "unterminated string")):
        return 'text ends in the line in which it begins: close it with a quote, or write """ around several lines'
    pair = re.match(r"\s*[\w.-]+\s*=\s*([^\"'\[{\s#].*)", line)
    if pair is None:
        return "write one KEY = VALUE a line" if "=" not in line and not line.lstrip().startswith("[") else ""
    value = pair[1].strip()
    if value.lower() in ("yes", "no", "on", "off", "true", "false"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}"
    if re.fullmatch(r"0\d+", value):
        return f'a mode is written as text: "{value}"'
    return f"text stands in quotes: {value!r}" if not re.match(r"[-+\d]|true|false", value) else ""


def _giant(value: Any, path: Path) -> Path | None:
    """Where within a value an integer stands that TOML does not have: every reader may assume 64 bits."""
    if isinstance(value, int):
        return path if value.bit_length() > 64 else None
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    return next((giant for step, item in items if (giant := _giant(item, (*path, step))) is not None), None)


class _Reader:
    """Compares one document with the table of keys."""

    def __init__(self, source: SourceText, file: FileKind, key_table: KeyTable) -> None:
        self._source = source
        self._file: FileKind = file
        self._key_table = key_table
        self.tables: Tables = {}
        self.problems: list[Problem] = []

    def read(self, document: dict[str, Any]) -> None:
        for name, value in document.items():
            if not self._read_child((), "", name, value):
                self._complain((name,), *self._unknown_table(name, value), on_key=True)

    def _read_child(self, parent: Path, prefix: str, name: str, value: Any) -> bool:
        """Read ``value`` as the table ``prefix + name``; False when there is no such table."""
        spec = self._key_table.find(self._file, prefix + name)
        named = self._key_table.find(self._file, f"{prefix}{name}.NAME")
        path = (*parent, name)
        if spec is not None and spec.form == "list":
            self._read_list(spec, path, value)
        elif spec is not None:
            if self._is_table(spec, path, value):
                self._read_table(spec, path, value)
        elif named is not None:
            self._read_named(named, path, value)
        else:
            return False
        return True

    def _read_list(self, spec: TableSpec, path: Path, value: Any) -> None:
        if not isinstance(value, list):
            self._complain(
                path, f"{spec.header} is a list of tables", f"write {spec.header}, in double brackets", on_key=True
            )
            return
        for index, item in enumerate(value):
            if self._is_table(spec, (*path, index), item) and not self._read_table(spec, (*path, index), item):
                return

    def _read_named(self, spec: TableSpec, path: Path, value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
            self._complain(
                path, f"{spec.header} has a name of its own", f"write [{path[-1]}.NAME], with any name", on_key=True
            )
            return
        for name, item in value.items():
            if not self._read_table(spec, (*path, name), item):
                return

    def _is_table(self, spec: TableSpec, path: Path, value: Any) -> bool:
        if isinstance(value, dict):
            return True
        double = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
        self._complain(
            path,
            f"{path[-1]} is a table",
            f"write {spec.header}{', in single brackets' if double else ''}",
            on_key=True,
        )
        return False

    def _read_table(self, spec: TableSpec, path: Path, value: dict[str, Any]) -> bool:
        """Read the keys of a table; False when nothing of it is built."""
        if not spec.built:
            self._complain(path, f"{spec.header} is not supported yet", on_key=True)
            return False
        entries = self.tables.setdefault(path, {})
        for key, item in value.items():
            key_spec = spec.keys.get(key)
            if key_spec is None:
                if not self._read_child(path, f"{spec.name}.", key, item):
                    self._complain((*path, key), *self._unknown_key(spec, key), on_key=True)
            elif not key_spec.built:
                self._complain((*path, key), f"{key} is not supported yet", key_spec.instead, on_key=True)
            elif (giant := _giant(item, (*path, key))) is not None:
                self._complain(giant, "the number is too large", "numbers have 64 bits")
            else:
                entries[key] = Entry(key_spec, path, key, item, self._source)
        return True

    def _complain(self, path: Path, message: str, hint: str = "", *, on_key: bool = False) -> None:
        self.problems.append(problem_at(self._source, path, message, hint, on_key=on_key))

    def _unknown_table(self, name: str, value: Any) -> tuple[str, str]:
        if not isinstance(value, dict | list) or (
            isinstance(value, list) and not any(isinstance(item, dict) for item in value)
        ):
            return f"the key {name!r} stands outside of all tables", self._suggestion(None, name)
        names = [table.name.removesuffix(".NAME") for table in self._key_table.of(self._file)]
        near = get_close_matches(name.lower(), names, 1)
        if near:
            return f"unknown table [{name}]", f"did you mean [{near[0]}]?"
        return f"unknown table [{name}]", f"the tables are {', '.join(f'[{name}]' for name in names)}"

    def _unknown_key(self, spec: TableSpec, key: str) -> tuple[str, str]:
        return f"unknown key {key!r} in {spec.header}", self._suggestion(spec, key)

    def _suggestion(self, spec: TableSpec | None, key: str) -> str:
        """What was probably meant: another table, systemd's spelling, another tool's word, or a near key."""
        for candidate in (key, key.replace("_", "-"), _WORDS_OF_OTHERS.get(key.replace("_", "-"), "")):
            homes = self._key_table.with_key(self._file, candidate) if candidate else []
            if spec in homes:
                return f"did you mean {candidate!r}?"
            if homes:
                called = f"{candidate!r} belongs" if candidate == key else f"did you mean {candidate!r}? It belongs"
                return f"{called} into {' or '.join(home.header for home in homes)}"
        directive = self._key_table.by_directive(self._file, key) if _CAMEL.fullmatch(key) else None
        if directive is not None:
            table, kebab = directive
            return (
                f"did you mean {kebab!r}?"
                if table is spec
                else f"did you mean {kebab!r}? It belongs into {table.header}"
            )
        lowered = key.lower().replace("_", "-")
        if spec is not None:
            near = get_close_matches(lowered, [name for name, item in spec.keys.items() if item.built], 2, 0.7)
            near = near or get_close_matches(lowered, spec.keys, 1, 0.7)
            near = near or [name for name in spec.keys if len(lowered) >= ABBREVIATED_MIN and name.startswith(lowered)]
            if near:
                return f"did you mean {' or '.join(map(repr, near))}?"
        everywhere = {name: table for table in reversed(self._key_table.of(self._file)) for name in table.keys}
        far = get_close_matches(lowered, everywhere, 1, 0.8)
        return f"did you mean {far[0]!r}? It belongs into {everywhere[far[0]].header}" if far else ""


def decode_entries(file: FileTables, expand: Expand, *, resets: bool = True) -> tuple[DecodedTables, list[Problem]]:
    """Decode the values of one file.

    Args:
        file: As read.
        expand: Replaces specifiers; raises ``BadValue``.
        resets: ``KEY = []`` takes back what is below; else it is an empty list.

    Returns:
        What could be decoded, and the problems of the rest.
    """
    decoded: DecodedTables = {}
    problems: list[Problem] = []
    for table, entries in file.tables.items():
        values = decoded.setdefault(table, {})
        for key, entry in entries.items():
            try:
                reset = resets and entry.value == []
                value = None if reset else DECODERS[entry.spec.type](entry.value, entry.spec, expand)
            except BadValue as bad:
                problems += [
                    problem_at(entry.source, (*entry.path, *one.at), one.message, one.hint, on_key=one.on_key)
                    for one in bad.all()
                ]
            else:
                values[key] = Decoded(
                    entry, value, reset, dict.fromkeys(value, entry) if isinstance(value, dict) else {}
                )
    return decoded, problems


class Merged(Struct, frozen=True):
    """All files of a unit as one. ``homes`` says for each table which file opens it (the lowest of those that do)."""

    tables: DecodedTables
    homes: dict[TableId, SourceText]

    def problem(self, table: TableId, message: str, hint: str = "") -> Problem:
        """A problem with a table as a whole, at its header."""
        return problem_at(self.homes[table], table, message, hint, on_key=True)


def merge(layers: Iterable[tuple[FileTables, DecodedTables]]) -> Merged:
    """Lay files over each other, the first at the bottom."""
    tables: DecodedTables = {}
    homes: dict[TableId, SourceText] = {}
    for file, layer in layers:
        for table, values in layer.items():
            homes.setdefault(table, file.source)
            below = tables.setdefault(table, {})
            for key, decoded in values.items():
                below[key] = _over(below.get(key), decoded)
    for values in tables.values():
        for key in [key for key, decoded in values.items() if decoded.reset]:
            del values[key]
    return Merged(tables, homes)


def _over(below: Decoded | None, above: Decoded) -> Decoded:
    if below is None or not isinstance(above.value, dict) or not isinstance(below.value, dict):
        return above
    # A table value merges name by name; NAME = [] takes the name back.
    taken_back = {name for name, item in above.entry.value.items() if item == []}
    value = {name: item for name, item in below.value.items() if name not in taken_back} | above.value
    return Decoded(above.entry, value, parts={name: above.parts.get(name) or below.at(name) for name in value})

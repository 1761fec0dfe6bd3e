"""The table of all keys (``docs/keys.toml``): what reads unit files and settings is driven by it.

The text is handed in, because this layer reads no files; ``host.unit_files`` finds it.
"""

from typing import Any, Literal

import msgspec
import tomli
from msgspec import Struct
from msgspec.structs import replace

FileKind = Literal["unit", "settings"]

_EXPANDING = frozenset(
    {
    "string", "strings", "command", "commands", "dependencies", "ordering", "names", "labels", "account", "accounts",
    "directory", "environment", "conditions", "exit-statuses", "runtime-path", "label", "url", "address", "path",
    "switch-or-strings", "socket-path", "socket-addresses", "fifos", "descriptor-name", "regex", "calendars",
    "environment-files", "variable-names", "unset-variables", "folders",
    "loaded-credentials", "set-credentials", "input-stream", "output-stream", "input-texts",
    "absolute-paths",
    }
)  # fmt: skip
"""The types that are text; numbers, spans, sizes, modes, signals and enums are read as they stand."""


class KeySpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One key.

    ``default`` None: nothing is set when it is not written. ``values`` are those of an enum, ``pending`` the ones that
    are not built yet; of an environment ``values`` are the names that no variable may have, because a key slipped in
    there (the keys of its table); of conditions it is their kind. ``instead`` says what to write in place of a key that
    is not built.
    """

    type: str
    built: bool
    doc: str
    default: Any = None
    systemd: str = ""
    values: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    instead: str = ""

    @property
    def expands(self) -> bool:
        """Whether specifiers are expanded in the value."""
        return self.type in _EXPANDING


class TableSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One table. ``form``: ``table`` is ``[NAME]``, ``named`` is ``[NAME.X]`` for any X (``name`` ends in ``.NAME``),
    ``list`` is ``[[NAME]]``."""

    file: FileKind
    name: str
    form: Literal["table", "named", "list"]
    doc: str
    keys: dict[str, KeySpec]

    @property
    def built(self) -> bool:
        """Whether anything of the table is built; a table without keys says what the unit is and is."""
        return not self.keys or any(spec.built for spec in self.keys.values())

    @property
    def header(self) -> str:
        return f"[[{self.name}]]" if self.form == "list" else f"[{self.name}]"


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    table: list[TableSpec]


class KeyTable:
    """All tables by file and name."""

    def __init__(self, tables: list[TableSpec]) -> None:
        self._tables = {(table.file, table.name): table for table in tables}
        assert len(self._tables) == len(tables), "a table stands twice in the table of keys"

    def find(self, file: FileKind, name: str) -> TableSpec | None:
        return self._tables.get((file, name))

    def of(self, file: FileKind) -> list[TableSpec]:
        """The tables of a file, in the order of the reference."""
        return [table for table in self._tables.values() if table.file == file]

    def with_key(self, file: FileKind, key: str) -> list[TableSpec]:
        """The tables that have a key of this name."""
        return [table for table in self.of(file) if key in table.keys]

    def by_directive(self, file: FileKind, directive: str) -> tuple[TableSpec, str] | None:
        """The table and key that stand for one of systemd's directives (``ExecStart``)."""
        for table in self.of(file):
            for key, spec in table.keys.items():
                if spec.systemd == directive:
                    return table, key
        return None


def parse_key_table(text: str) -> KeyTable:
    """Read ``docs/keys.toml``.

    Raises:
        tomli.TOMLDecodeError, msgspec.ValidationError: The file is broken; it is part of this program.
    """
    tables = msgspec.convert(tomli.loads(text), _Document).table
    for table in tables:
        for key, spec in table.keys.items():
            if spec.type == "environment":
                table.keys[key] = replace(spec, values=tuple(table.keys))
            elif spec.type == "conditions":
                table.keys[key] = replace(spec, values=(key.partition("-")[2],))
    return KeyTable(tables)

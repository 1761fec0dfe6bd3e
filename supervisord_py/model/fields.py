"""The values of one unit while it is put together: by table and key, with the place where each was written."""

from typing import Any, TypeVar, cast

from msgspec.structs import replace

from supervisord_py.model.parse import Decoded, Merged, TableId
from supervisord_py.model.problems import Gravity, Problem

Value = TypeVar("Value")


class Fields:
    """The values of one unit by table and key."""

    def __init__(self, merged: Merged) -> None:
        self.merged = merged

    def has(self, table: str) -> bool:
        return (table,) in self.merged.tables

    def below(self, table: str) -> list[TableId]:
        """The tables ``[TABLE.NAME]``, sorted by their names."""
        return sorted(each for each in self.merged.tables if each[0] == table and len(each) > 1)

    def decoded(self, table: str | TableId, key: str) -> Decoded | None:
        return self.merged.tables.get(_place(table), {}).get(key)

    def get(self, table: str | TableId, key: str, default: Value) -> Value:
        """The value, or ``default`` when the key is not written; its type is the key's (``docs/keys.toml``)."""
        decoded = self.decoded(table, key)
        value: Any = default if decoded is None else decoded.value
        return cast(Value, value)

    def problem(
        self, table: str | TableId, key: str, message: str, hint: str = "", *, warning: bool = False, info: bool = False
    ) -> Problem:
        """A problem at the key, or at its table when the key is not written."""
        decoded = self.decoded(table, key)
        severity: Gravity = "info" if info else "warning" if warning else "error"
        if decoded is not None:
            return decoded.entry.problem(message, hint, severity=severity)
        return replace(self.merged.problem(_place(table), message, hint), severity=severity)


def _place(table: str | TableId) -> TableId:
    return (table,) if isinstance(table, str) else table

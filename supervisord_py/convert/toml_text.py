"""A draft as the text of a unit file: tables and keys in the order of the reference, one key a line."""

import json
import re
from typing import Any

from supervisord_py.convert.draft import Draft, TableId
from supervisord_py.model.keys import KeyTable

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_WIDTH = 110
_FIRST = ("unit", "agent", "service", "limits", "sandbox", "socket", "timer", "instances", "health", "log")


def unit_text(draft: Draft, keys: KeyTable, made_by: str) -> str:
    """Write a draft.

    Args:
        draft: Its values are TOML values; an empty table is written where it says what the unit is.
        keys: The table of keys, for their order.
        made_by: What the first comment says besides the files that it was made of.
    """
    lines = [f"# {_one_line(line)}" for line in (f"{made_by} from {', '.join(draft.origins) or 'nothing'}",)]
    for table in sorted(draft.tables, key=lambda table: _rank(table, keys)):
        values = draft.tables[table]
        if not values and table != ("target",) and table != ("service",):
            continue
        lines += ["", _header(table)]
        order = _key_order(table, keys)
        nested: list[tuple[str, dict[str, Any]]] = []
        for key in sorted(values, key=lambda key: (order.get(key, len(order)), key)):
            if isinstance(values[key], dict) and values[key] and key == "environment":
                nested.append((key, values[key]))
            else:
                lines.append(f"{_key(key)} = {_value(_single(key, values[key]))}")
        for key, inner in nested:
            lines += ["", f"[{'.'.join(_key(str(step)) for step in (*table, key))}]"]
            lines += [f"{_key(name)} = {_value(item)}" for name, item in inner.items()]
    return "\n".join(lines) + "\n"


def _single(key: str, value: Any) -> Any:
    """A list of one value as that value, but for commands: of those a list is the exact words."""
    is_one = isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | int)
    return value[0] if is_one and not key.startswith(("exec", "stub")) else value


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _header(table: TableId) -> str:
    names = ".".join(_key(step) for step in table if isinstance(step, str))
    return f"[[{names}]]" if any(isinstance(step, int) for step in table) else f"[{names}]"


def _rank(table: TableId, keys: KeyTable) -> tuple[int, list[str]]:
    name = str(table[0])
    known = [spec.name.removesuffix(".NAME") for spec in keys.of("unit")]
    place = _FIRST.index(name) if name in _FIRST else len(_FIRST) + (known.index(name) if name in known else 99)
    return place, [f"{step:08}" if isinstance(step, int) else step for step in table]


def _key_order(table: TableId, keys: KeyTable) -> dict[str, int]:
    spec = keys.find("unit", str(table[0])) or keys.find("unit", f"{table[0]}.NAME")
    return {} if spec is None else {key: place for place, key in enumerate(spec.keys)}


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return _text(value)
        case dict():
            return "{ " + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + " }"
    written = [_value(item) for item in value]
    line = f"[{', '.join(written)}]"
    return line if len(line) <= _WIDTH else "[\n" + "".join(f"    {item},\n" for item in written) + "]"


def _text(text: str) -> str:
    """The shortest of TOML's forms that people can read: literal where there is something to escape."""
    if "\n" in text:
        if "'''" not in text and _is_plain(text.replace("\n", "")):
            return f"'''\n{text}\n'''"
        return _basic(text)
    if ('"' in text or "\\" in text) and "'" not in text and _is_plain(text):
        return f"'{text}'"
    return _basic(text)


def _is_plain(text: str) -> bool:
    return all(character == "\t" or (character >= " " and character != "\x7f") for character in text)


def _basic(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(
        character if character == "\t" or (character >= " " and character != "\x7f") else f"\\u{ord(character):04X}"
        for character in quoted
    )

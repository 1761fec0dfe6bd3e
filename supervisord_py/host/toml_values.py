"""Values as they are typed, and tables as TOML that reads back as it was meant."""

import json
import math
import re
import tomllib
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def parse_value(text: str) -> Any:
    """Return the value that a typed text stands for."""
    if not text:
        return None
    try:
        value = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A line end would begin another key.
    return value["value"] if value.keys() == {"value"} and _is_plain(value) else text


def _is_plain(value: Any) -> bool:
    """Whether it is a value of ours: dates and what is no number are none wherever they stand, nor is a table without
    entries, which says nothing."""
    match value:
        case dict():
            return value != {} and all(map(_is_plain, value.values()))
        case list():
            return all(map(_is_plain, value))
        case float():
            return math.isfinite(value)
        case _:
            return isinstance(value, bool | int | str)


def write_toml(tables: Mapping[str, Any]) -> str:
    """Write nested tables as TOML; nothing for no tables."""
    lines: list[str] = []

    def write(path: tuple[str, ...], table: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        if plain:
            lines.append(f"[{'.'.join(map(_key, path))}]")
            lines.extend(f"{_key(key)} = {_toml(value)}" for key, value in plain.items())
        for key, value in table.items():
            if isinstance(value, dict):
                write((*path, key), value)

    write((), tables)
    return "".join(f"{line}\n" for line in lines)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value)

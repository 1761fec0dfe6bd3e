"""Values as a unit file has them, for those formats that have no specifiers of systemd's."""

import re
from collections.abc import Sequence

from supervisord_py.model.conditions import FALSE_WORDS, TRUE_WORDS

_SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+", re.ASCII)


def literal(text: str) -> str:
    """A text that means itself where specifiers are expanded."""
    return text.replace("%", "%%")


def argv(words: Sequence[str]) -> list[str]:
    """The exact words of a command."""
    return [literal(word) for word in words]


def quoted(word: str) -> str:
    """A word of a command line that is read by systemd's rules; ``$`` and ``%`` in it mean what they mean there."""
    if _SAFE.fullmatch(word.replace("$", "").replace("{", "").replace("}", "")) and word not in (";",):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def shell(text: str) -> list[str]:
    """A command line that another supervisor hands to a shell."""
    return ["/bin/sh", "-c", literal(text)]


def truth(text: str) -> bool | None:
    """What a word for true or false means; None for another word."""
    lowered = text.strip().lower()
    return True if lowered in TRUE_WORDS else False if lowered in FALSE_WORDS else None


def seconds(value: float) -> int | str:
    """A time span in seconds as a unit file has it."""
    return int(value) if value == int(value) else f"{round(value * 1000)}ms"


def joined(base: str, path: str) -> str:
    """A path from a folder; an absolute one and one that begins at home stay. ``.`` and ``..`` are taken out."""
    if path == "~" or path.startswith("~/"):
        return f"%h{path[1:]}"
    if path.startswith(("/", "%h")):
        return path
    parts = [part for part in base.split("/") if part]
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)

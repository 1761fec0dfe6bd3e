"""Unit files of systemd as assignments: sections, comments, continuations, encoding; nothing is interpreted.

A line that ends in an odd number of backslashes goes on in the next one, with a blank between; comments within are
passed over. A line without ``=`` and one before the first section are ignored by systemd, with a warning; a section
header that is not closed makes the whole file bad.

Source: systemd.syntax(7); systemd src/shared/conf-parser.c (config_parse, parse_line), src/basic/fileio.c (read_line).
"""

import re
from collections.abc import Iterator

from msgspec import Struct

from supervisord_py.convert.draft import ConvertError

_BLANKS = " \t\n\r"
_ENDS = re.compile(r"\r\n|\n\r|\r|\n|\0")


class Assignment(Struct, frozen=True):
    """``name=value`` in a section; ``line`` is where it begins."""

    section: str
    name: str
    value: str
    file: str
    line: int


class Ignored(Struct, frozen=True):
    """A line that systemd ignores."""

    text: str
    reason: str
    file: str
    line: int


def parse_unit_file(text: str, file: str) -> tuple[list[Assignment], list[Ignored]]:
    """Read a unit file.

    Args:
        text: What it says; bytes that are no UTF-8 as lone surrogates.
        file: How it is named in what is told.

    Raises:
        ConvertError: A section header is broken: systemd refuses the file.
    """
    section = ""
    assignments: list[Assignment] = []
    ignored: list[Ignored] = []
    for number, line in _logical_lines(text.removeprefix("\ufeff")):
        stripped = line.strip(_BLANKS)
        if not stripped:
            continue
        if stripped.startswith("["):
            if not stripped.endswith("]") or not _is_clean(stripped):
                raise ConvertError(
                    f"{file}:{number}: {_shown(stripped)} is no section header: systemd refuses the file"
                )
            section = stripped[1:-1]
            continue
        name, equals, value = stripped.partition("=")
        name = name.strip(_BLANKS)
        if not equals:
            ignored.append(Ignored(_shown(stripped), "a line without =, which systemd ignores", file, number))
        elif not name:
            ignored.append(Ignored(_shown(stripped), "a line without a name, which systemd ignores", file, number))
        elif not section:
            ignored.append(Ignored(name, "it stands before the first section, and systemd ignores it", file, number))
        elif not _is_clean(stripped):
            ignored.append(Ignored(_shown(name), "it is no UTF-8, and systemd ignores it", file, number))
        else:
            assignments.append(Assignment(section, name, value.strip(_BLANKS), file, number))
    return assignments, ignored


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first."""
    begun: str | None = None
    first = 0
    for number, line in enumerate(_ENDS.split(text), 1):
        if line.lstrip(_BLANKS)[:1] in ("#", ";"):
            continue
        if begun is None:
            first = number
        whole = line if begun is None else begun + line
        if (len(whole) - len(whole.rstrip("\\"))) % 2:
            begun = whole[:-1] + " "
        else:
            begun = None
            yield first, whole
    if begun is not None:
        yield first, begun


def _is_clean(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)[:60]

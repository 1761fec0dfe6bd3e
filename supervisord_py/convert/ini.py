"""Files in the format of Python's ``configparser``, which supervisor and circus use, with the lines of their keys."""

import configparser
import re
from collections.abc import Mapping

from msgspec import Struct

from supervisord_py.convert.draft import ConvertError, Place, SourceFile

_HEADER = re.compile(r"\[(?P<name>.+)\]")


class IniKey(Struct, frozen=True):
    """One key. ``base`` is the folder of the file that it stands in."""

    value: str
    place: Place
    base: str


Sections = dict[str, dict[str, IniKey]]


def read_ini(
    file: SourceFile, *, inline: tuple[str, ...] = (), keeps_case: bool = False, strict: bool = False
) -> Sections:
    """Read a file.

    Args:
        file: Path and text.
        inline: What begins a comment behind a value, after a blank.
        keeps_case: Keys are not put into lower case.
        strict: Nothing may stand twice.

    Raises:
        ConvertError: It cannot be read as such a file.
    """
    parser = configparser.RawConfigParser(inline_comment_prefixes=inline or None, strict=strict)
    if keeps_case:
        parser.optionxform = lambda optionstr: optionstr  # type: ignore[method-assign]
    if any("\ud800" <= character <= "\udfff" for character in file.text):
        raise ConvertError(f"{file.path}: this is no UTF-8")
    try:
        parser.read_string(file.text, file.path)
    except configparser.Error as error:
        raise ConvertError(f"{file.path}: {_first_line(error)}") from None
    except (ValueError, AttributeError, TypeError) as error:
        # A continuation of what is no value, and such: configparser does not say it in its own words.
        raise ConvertError(f"{file.path}: it cannot be read: {error}") from None
    lines = _lines(file.text, keeps_case=keeps_case)
    return {
        section: {
            key: IniKey(value or "", Place(file.path, lines.get((section, key), 0), f"{section}.{key}"), file.base)
            for key, value in parser.items(section)
        }
        for section in parser.sections()
    }


def _first_line(error: configparser.Error) -> str:
    lines = [line.strip() for line in error.message.splitlines()]
    return ": ".join(lines[:2]) if lines else "it cannot be read"


def _lines(text: str, *, keeps_case: bool) -> Mapping[tuple[str, str], int]:
    """The line in which each key stands last."""
    found: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line.strip())
        if header is not None and not line[:1].isspace():
            section = header["name"]
        elif line[:1] not in ("#", ";"):
            key = re.split(r"[=:]", line, maxsplit=1)[0].strip()
            found[section, key if keeps_case else key.lower()] = number
    return found

"""Unit files of systemd in our words: what ``convert systemd`` makes of them, and nothing may be lost on the way."""

import re
from contextlib import suppress

from supervisord_py.convert.draft import SourceFile
from supervisord_py.convert.formats import convert
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set
from tests.convert.bench import CONTEXT, KEYS, around

_UNIT = re.compile(r"[\w@.-]+\.service")


class Untranslatable(Exception):
    """Something is not carried over."""


def translate(text: str, name: str = "a") -> str:
    """Turn the text of a ``.service`` file into one of ours.

    Directives that stand before any ``[Section]`` are of the service, or of the unit or of a timer of its if they are
    theirs. Units that it names are taken to be there.

    Raises:
        Untranslatable: One of the directives is not carried over.
    """
    sections: dict[str, list[str]] = {"Unit": [], "Service": [], "Timer": []}
    for line in text.splitlines():
        directive, equals, _ = line.partition("=")
        if equals and not line.startswith(("#", ";", "[")):
            found = KEYS.by_directive("unit", directive.strip())
            section = found[0].name.title() if found is not None else "Service"
            sections[section if section in sections else "Service"].append(line)
    service, timer = (
        "\n".join(line for section in part for line in (f"[{section}]", *sections[section], ""))
        for part in (("Unit", "Service"), ("Timer",))
    )
    files = [SourceFile(f"{name}.service", service)]
    files += [SourceFile(f"{name}.timer", timer)] if sections["Timer"] else []
    known = (unit.removesuffix(".service") for unit in _UNIT.findall(text))
    conversion = convert("systemd", files, around(known=known))
    if conversion.not_carried:
        raise Untranslatable("; ".join(f"{use.place.key}: {use.reason}" for use in conversion.not_carried))
    return unit_text(conversion.drafts[name], KEYS, "converted")


def translate_all(texts: dict[str, str]) -> dict[str, str]:
    """Turn unit files of systemd, by name, into ours.

    One whose name is no unit's name is never looked at, and a unit of which something cannot be carried over is none.
    """
    found = {}
    for name, text in texts.items():
        if is_unit_name(name):
            with suppress(Untranslatable):
                found[name] = translate(text, name)
    return found


def load(texts: dict[str, str]) -> LoadResult:
    """Load unit files of systemd through the real model."""
    files = [
        UnitFile(name, f"u/{name}.toml", text, UnitFileKind.UNIT, "u", 0) for name, text in translate_all(texts).items()
    ]
    return build_unit_set(files, CONTEXT, key_table=KEYS)

"""Unit files out of thin air: ``load_texts({"web": "..."})``; paths are ``u/NAME.toml``."""

from collections.abc import Mapping
from pathlib import Path

from supervisord_py.model.keys import parse_key_table
from supervisord_py.model.problems import Problem
from supervisord_py.model.specifiers import SpecifierContext
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set

KEY_TABLE = parse_key_table((Path(__file__).parents[3] / "docs" / "keys.toml").read_text(encoding="utf-8"))
CONTEXT = SpecifierContext("/home/me", "/run", "/var/lib", "/var/log", "me", 1000, "host", "b00f")

SLEEP = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'
"""The least that a service needs."""


def service(unit: str = "", more: str = "") -> str:
    """A service with these lines in ``[unit]`` and ``[service]``."""
    return (f"[unit]\n{unit}\n" if unit else "") + SLEEP + more


def unit_files(texts: Mapping[str, str], folder: str = "u", priority: int = 0) -> list[UnitFile]:
    """Files by name: ``web``, ``worker@``, ``defaults``, and ``web.d/50`` for a drop-in."""
    files: list[UnitFile] = []
    for name, text in texts.items():
        if name == "defaults":
            files.append(UnitFile("", f"{folder}/defaults.toml", text, UnitFileKind.DEFAULTS, folder, priority))
        elif ".d/" in name:
            unit, _, drop_in = name.partition(".d/")
            path = f"{folder}/{unit}.toml.d/{drop_in}.toml"
            files.append(UnitFile(unit, path, text, UnitFileKind.DROP_IN, folder, priority))
        else:
            files.append(UnitFile(name, f"{folder}/{name}.toml", text, UnitFileKind.UNIT, folder, priority))
    return files


def load_texts(texts: Mapping[str, str]) -> LoadResult:
    return build_unit_set(unit_files(texts), CONTEXT, key_table=KEY_TABLE)


def problems_of(text: str, name: str = "web") -> list[Problem]:
    """The problems of one unit file alone."""
    return list(load_texts({name: text}).problems)


def headlines(result: LoadResult) -> list[str]:
    return [problem.headline() for problem in result.problems]

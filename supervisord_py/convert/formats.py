"""The formats that are converted from, by name."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, resources
from typing import Any

from msgspec import Struct

from supervisord_py.convert.draft import Conversion, ConvertError, SourceFile
from supervisord_py.model.keys import KeyTable

ReadMatching = Callable[[str, str], list[SourceFile]]
"""Reads the files that match a pattern, relative ones below a folder."""


class Surroundings(Struct, frozen=True):
    """What a converter may want besides its files.

    ``read`` finds what a configuration includes; ``known`` are units that are there besides; ``load_yaml`` reads a
    YAML text (it raises ``ConvertError`` where that is not possible here).
    """

    keys: KeyTable
    read: ReadMatching
    load_yaml: Callable[[str, str], tuple[Any, dict[tuple[str | int, ...], int]]]
    known: frozenset[str] = frozenset()


FORMATS: Mapping[str, str] = {
    "systemd": "unit files of systemd: services, sockets, timers, targets and their drop-ins",
    "supervisord": "supervisord.conf and what it includes",
    "procfile": "Procfiles of Heroku, foreman and honcho",
    "pm2": "ecosystem files of pm2: JSON, YAML, and JavaScript that only states values",
    "circus": "circus.ini and what it includes",
    "horust": "services of Horust",
    "process-compose": "process-compose.yaml",
}
"""What ``convert`` reads, and a line for people about each."""


def convert(name: str, files: Sequence[SourceFile], around: Surroundings) -> Conversion:
    """Convert files of one format.

    Raises:
        ConvertError: A file cannot be read as what it is said to be.
    """
    if name == "systemd":
        from supervisord_py.convert.systemd import convert_systemd
        from supervisord_py.convert.systemd_rules import Rules

        reviewed = resources.files(__package__).joinpath("systemd.toml").read_text(encoding="utf-8")
        return convert_systemd(files, Rules(around.keys, reviewed), around.known)
    for file in files:
        if any("\ud800" <= character <= "\udfff" for character in file.text):
            raise ConvertError(f"{file.path}: this is no UTF-8")
    module = import_module(f"supervisord_py.convert.{name.replace('-', '_')}")
    result = module.convert(files, around)
    assert isinstance(result, Conversion), f"internal error: {name} made no conversion"
    return result

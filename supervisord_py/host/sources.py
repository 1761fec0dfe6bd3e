"""What one load read, settings and unit files as they were: kept in custody, so that a restarted manager sees the
same units."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.host.places import Places, default_places, moved
from supervisord_py.host.unit_files import UnitSources, build, load_settings
from supervisord_py.host.unit_files import read_sources as read_unit_sources
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.model.unitset import LoadResult

SOURCES_KEY = "host/sources"


class Sources(Struct, frozen=True):
    """``problems`` are those of the settings; those of units are part of their load."""

    settings: Settings
    problems: tuple[Problem, ...]
    units: UnitSources
    paths: tuple[str, ...] = ()
    """Where they were looked for (``source_paths``); empty in a state of an older version."""

    def orders(self, config: Mapping[str, Any], places: Places) -> list[str]:
        """Return what a manager that goes on with them has to do first: where ``run`` was typed for other files than
        a killed keeper had, those are loaded."""
        return ["reload"] if self.paths and [*self.paths] != source_paths(config, places) else []

    @property
    def has_bad_settings(self) -> bool:
        """Whether the settings cannot be used: what is wrong in them has its default."""
        return any(problem.severity == "error" for problem in self.problems)

    def pack(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def unpack(cls, text: str) -> "Sources":
        return msgspec.json.decode(text, type=cls)

    def build(self) -> tuple[Settings, LoadResult]:
        return self.settings, build(self.units)


def read_sources(config: Mapping[str, Any], places: Places, before: Sources | None = None) -> Sources:
    """Read settings and unit files from where ``run`` was told they are.

    ``before`` is what was loaded last: folders that cannot be read now keep their files (``unit_files.read_sources``).
    """
    settings, problems = load_settings(places.settings, required=bool(config["is_settings_typed"]))
    units = read_unit_sources(config["unit_paths"] or None, places, before=None if before is None else before.units)
    return Sources(settings, problems, units, tuple(source_paths(config, places)))


def source_paths(config: Mapping[str, Any], places: Places) -> list[str]:
    """Return the folders and files that ``read_sources`` looks into."""
    units = config["unit_paths"] or [str(folder) for folder in places.unit_path]
    return [str(places.control), *units, str(places.settings)]


def places_of(config: Mapping[str, Any], environment: Mapping[str, str], uid: int, home: str) -> Places:
    """Return the places that ``run`` settled on, from the keeper's configuration."""
    return moved(
        default_places(dict(environment), uid, home),
        runtime=config["runtime_dir"],
        state=config["state_dir"],
        log=config["log_dir"],
        settings=config["settings_path"],
        socket=config["socket"],
    )

"""What one load read, settings and unit files as they were: kept in custody, so that a restarted manager sees the
same units."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.places import Places, default_places, moved
from supervisord_py.host.unit_files import UnitSources, build, load_settings
from supervisord_py.host.unit_files import read_sources as read_unit_sources
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import SupervisorMode
from supervisord_py.model.unitset import LoadResult, UnitFile

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
        return self.settings, build(self.units, self.settings.limits)


def read_sources(
    config: Mapping[str, Any], places: Places, before: Sources | None = None, *, apart: Sequence[UnitFile] = ()
) -> Sources:
    """Read settings and unit files from where ``run`` was told they are.

    ``before`` is what was loaded last: folders that cannot be read now keep their files (``unit_files.read_sources``),
    and so does what lies in no folder, which is ``apart`` where there is no ``before``.
    """
    settings, problems = load_settings(places.settings, required=bool(config["is_settings_typed"]))
    settings = with_options(settings, config.get("mode"), config.get("max_workers"))
    last = None if before is None else before.units
    apart = apart if last is None else last.apart
    units = read_unit_sources(config["unit_paths"] or None, places, before=last, apart=apart)
    return Sources(settings, problems, units, tuple(source_paths(config, places)))


def sources_of(config: Mapping[str, Any], places: Places, state: Mapping[str, str]) -> Sources:
    """Return what is in custody; read everything for a supervisor that begins: what ``set`` said for the time of an
    earlier one is over."""
    if SOURCES_KEY in state:
        return Sources.unpack(state[SOURCES_KEY])
    with suppress(FileNotFoundError):
        shutil.rmtree(places.set)
    return read_sources(config, places)


def with_options(settings: Settings, mode: str | None, max_workers: int | None) -> Settings:
    """Return the settings with what ``run`` was told on its command line, which counts for as long as it runs."""
    own = settings.supervisor
    if mode is not None:
        own = replace(own, mode=SupervisorMode(mode))
    if max_workers is not None:
        own = replace(own, max_workers=max_workers)
    return replace(settings, supervisor=own)


def told_of_settings(settings: Settings) -> dict[str, Any]:
    """Return what ``UnitsLoaded`` tells the core of the settings, each time."""
    is_until_empty = settings.supervisor.mode is SupervisorMode.UNTIL_EMPTY
    return {"limits": settings.limits, "hooks": settings.hooks, "until_empty": is_until_empty}


def source_paths(config: Mapping[str, Any], places: Places) -> list[str]:
    """Return the folders and files that ``read_sources`` looks into."""
    units = config["unit_paths"] or [str(folder) for folder in places.unit_path]
    return [str(places.control), str(places.set), *units, str(places.settings)]


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

"""Where things live: runtime, state, log and settings places of root and of a user (contract, section 2)."""

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

PROJECT = "supervisord-py"
RUNTIME_DIR_MAX = 80
"""Bytes of a runtime folder's path: the kernel allows 107 for a socket, notify sockets need the rest."""

KEEPS_OUT = (
    "keeps others out: units with a user of their own cannot say READY, read their credentials or ask for status"
)
"""What follows from a runtime folder below one that is closed (``closed_to_others``)."""


@dataclass(frozen=True, slots=True)
class Places:
    """The folders and files of one instance, absolute."""

    runtime: Path
    state: Path
    log: Path
    settings: Path
    unit_path: tuple[Path, ...]
    socket: Path

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def control(self) -> Path:
        """What ``enable``, ``disable`` and ``mask`` write: the first folder of every unit path."""
        return self.state / "control"

    @property
    def agents(self) -> Path:
        """A folder for each agent; beside our own, which other users cannot enter."""
        return self.state.with_name(f"{self.state.name}-agents")

    @property
    def wheels(self) -> Path:
        """A folder for each version of a wheel of the hot directory; beside our own, as ``agents``."""
        return self.state.with_name(f"{self.state.name}-wheels")

    @property
    def hot_versions(self) -> Path:
        """The highest version of each wheel that was ever installed."""
        return self.state / "hot-directory.json"

    @property
    def keys(self) -> Path:
        """The keys that may sign, unless the settings name another folder."""
        return self.settings.parent / "keys"

    @property
    def set(self) -> Path:
        """What ``supctl set`` says for the time of this supervisor."""
        return self.runtime / "set"

    @property
    def snapshot(self) -> Path:
        return self.state / "snapshot.json"


def default_places(environment: dict[str, str], uid: int, home: str) -> Places:
    """Return the places of root (``uid`` 0) or of a user by the XDG variables of ``environment``."""
    if uid == 0:
        runtime = Path("/run") / PROJECT
        return Places(
            runtime=runtime,
            state=Path("/var/lib") / PROJECT,
            log=Path("/var/log") / PROJECT,
            settings=Path("/etc") / PROJECT / "supervisord.toml",
            unit_path=tuple(Path(base) / PROJECT / "units" for base in ("/etc", "/run", "/usr/lib")),
            socket=runtime / "control.sock",
        )
    config = Path(environment.get("XDG_CONFIG_HOME") or f"{home}/.config") / PROJECT
    data = Path(environment.get("XDG_DATA_HOME") or f"{home}/.local/share") / PROJECT
    state = Path(environment.get("XDG_STATE_HOME") or f"{home}/.local/state") / PROJECT
    xdg_runtime = environment.get("XDG_RUNTIME_DIR")
    runtime = Path(xdg_runtime) / PROJECT if xdg_runtime else state / "run"
    return Places(
        runtime=runtime,
        state=state,
        log=state / "log",
        settings=config / "supervisord.toml",
        unit_path=(config / "units", runtime / "units", data / "units"),
        socket=runtime / "control.sock",
    )


def moved(
    places: Places,
    *,
    runtime: str | None = None,
    state: str | None = None,
    log: str | None = None,
    settings: str | None = None,
    socket: str | None = None,
) -> Places:
    """Return ``places`` with what the options of ``run`` moved; all made absolute."""

    def absolute(path: str) -> Path:
        return Path(os.path.abspath(path))

    if runtime is not None:
        places = replace(places, runtime=absolute(runtime), socket=absolute(runtime) / "control.sock")
    if state is not None:
        places = replace(places, state=absolute(state), log=absolute(state) / "log" if log is None else places.log)
    if log is not None:
        places = replace(places, log=absolute(log))
    if settings is not None:
        places = replace(places, settings=absolute(settings))
    if socket is not None:
        places = replace(places, socket=absolute(socket))
    return places


def closed_to_others(folder: Path) -> Path | None:
    """Return the folder, or the one above it, through which other users do not come. What is not there yet is made so
    that everybody may pass."""
    for path in (folder, *folder.parents):
        try:
            if not path.stat().st_mode & stat.S_IXOTH:
                return path
        except OSError:
            continue
    return None

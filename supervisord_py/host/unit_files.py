"""Finding and reading unit files and settings: the one loader of ``check``, ``run`` and ``daemon-reload``.

The folders of the unit path (or the paths that were typed) are read from the highest priority to the lowest:
``NAME.toml`` is a unit or a template, ``NAME.toml.d/*.toml`` are its drop-ins, ``defaults.toml`` is laid under every
unit of its folder. All else in a folder is left alone. What cannot be read, or may not be believed
(``host.trusted_files``), becomes a bad unit and never stops the others. Before all of them comes the control folder
(``host.control_folder``), where ``supctl`` writes.

What was read (``UnitSources``) can be kept and built again: a manager that follows another sees the same units without
looking at the disk.
"""

import grp
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.belongings import CREDENTIALS, own_roots
from supervisord_py.host.conditions import own_architecture
from supervisord_py.host.places import Places, default_places
from supervisord_py.host.remote_keys import key_problems
from supervisord_py.host.trusted_files import FileRefused, TrustedReader, trusted_uids
from supervisord_py.host.zones import zone_named
from supervisord_py.model.agents import AgentRunner
from supervisord_py.model.assemble import Machine
from supervisord_py.model.keys import KeyTable, parse_key_table
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.problems import Problem
from supervisord_py.model.settings import Settings, parse_settings
from supervisord_py.model.specifiers import SpecifierContext
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set

AGENT_RUNNER = AgentRunner(sys.executable, str(Path(__file__).parents[1] / "agent" / "start.py"))
DEFAULTS_NAME = "defaults.toml"
_SUFFIX = ".toml"
_DROP_IN_SUFFIX = ".toml.d"
CONTROL_PRIORITY = -1
"""The control folder stands before every other one, whether the unit path or typed paths are read."""

HOT_PRIORITY = 1_000_000
"""What the hot directory brings stands behind every folder."""


class UnitSources(Struct, frozen=True):
    """Everything that one load read. JSON by msgspec.

    ``kept`` are folders that were read at the load before and could not be this time: their files are those of that
    load.
    """

    files: tuple[UnitFile, ...]
    problems: tuple[Problem, ...]
    context: SpecifierContext
    kept: tuple[str, ...] = ()

    @property
    def hot(self) -> tuple[UnitFile, ...]:
        """What came from the hot directory: ``read_sources`` does not look there."""
        return tuple(file for file in self.files if file.hot is not None)

    @property
    def transient(self) -> tuple[UnitFile, ...]:
        """What ``supctl run`` asked for: it is nowhere but here."""
        return tuple(file for file in self.files if file.transient is not None)

    @property
    def apart(self) -> tuple[UnitFile, ...]:
        """All that ``read_sources`` does not find."""
        return (*self.hot, *self.transient)

    def with_hot(self, files: Sequence[UnitFile]) -> "UnitSources":
        """Return these sources with other files from the hot directory."""
        return replace(self, files=(*(file for file in self.files if file.hot is None), *files))


def load(paths: Sequence[str] | None, places: Places, limits: PoolLimits | None = None) -> LoadResult:
    """Read and build everything.

    Args:
        paths: Files and folders that were typed, the first with the highest priority; None for the unit path.
        places: Where the unit path is.
        limits: What the settings say of pools; None: they are not looked at.
    """
    return build(read_sources(paths, places), limits)


def build(sources: UnitSources, limits: PoolLimits | None = None, *, is_part: bool = False) -> LoadResult:
    """Build the units of what was read; ``is_part``: of a part of it, in which what a drop-in is for may be missing."""
    return build_unit_set(
        sources.files if is_part else _without_orphans(sources.files),
        sources.context,
        key_table=key_table(),
        problems=sources.problems,
        limits=limits,
        machine=Machine(zone_named, AGENT_RUNNER),
    )


def read_sources(
    paths: Sequence[str] | None,
    places: Places,
    *,
    overlay: Mapping[str, str] | None = None,
    before: UnitSources | None = None,
    apart: Sequence[UnitFile] = (),
) -> UnitSources:
    """Read all unit files; see ``load``. ``apart`` are those that lie in no folder (``UnitSources.apart``).

    ``overlay`` holds texts by path that are taken for what stands on disk there, or would. ``before`` is what the last
    load read: a folder that had files then and cannot be read now (its disk is not mounted for a moment) is a problem
    and keeps them; an empty folder in its place has none.
    """
    scan = _Scan(OverlaidReader(trusted_uids(os.environ, typed=paths is not None), overlay or {}))
    if os.path.lexists(places.control):
        scan.folder(str(places.control), CONTROL_PRIORITY)
    else:
        scan.unread.append(str(places.control))
    if os.path.lexists(places.set):
        scan.folder(str(places.set), CONTROL_PRIORITY)
    if paths is None:
        for priority, folder in enumerate(places.unit_path):
            if os.path.lexists(folder):
                scan.folder(str(folder), priority)
            else:
                scan.unread.append(str(folder))
    else:
        for priority, path in enumerate(paths):
            scan.typed(path, priority)
    read = () if before is None else [file for file in before.files if file.hot is None and file.transient is None]
    kept = scan.keep(read)
    context = specifier_context(os.environ, places.runtime)
    return UnitSources((*scan.files, *apart), tuple(scan.problems), context, kept)


def _without_orphans(files: Sequence[UnitFile]) -> tuple[UnitFile, ...]:
    """Leave out drop-ins of the control folder for units that are not here: they wait until their unit comes back (into
    the hot directory, without anything being read again), and nobody wrote them by hand who would have to be warned."""
    names = {file.name for file in files if file.kind is UnitFileKind.UNIT}

    def has_unit(name: str) -> bool:
        return name in names or (parse_unit_name(name).template or name) in names

    return tuple(
        file
        for file in files
        if file.priority != CONTROL_PRIORITY or file.kind is not UnitFileKind.DROP_IN or has_unit(file.name)
    )


def load_settings(path: Path, *, required: bool = False) -> tuple[Settings, tuple[Problem, ...]]:
    """Read ``supervisord.toml``.

    Args:
        path: The file.
        required: It was typed: a missing file is a problem, and the user behind sudo is trusted with it.
    """
    reader = TrustedReader(trusted_uids(os.environ, typed=required))
    try:
        text = reader.read(str(path))
    except FileNotFoundError:
        if not required:
            return Settings(), ()
        return Settings(), (Problem(str(path), 0, 0, "", "no such file"),)
    except FileRefused as refused:
        return Settings(), (_refusal(str(path), refused),)
    except OSError as error:
        return Settings(), (Problem(str(path), 0, 0, "", _cannot_read(error)),)
    settings, problems = parse_settings(text, str(path), key_table())
    return settings, (*problems, *key_problems(settings, text, str(path), key_table()))


@cache
def key_table() -> KeyTable:
    """The table of keys: packaged beside the model, in a checkout ``docs/keys.toml``."""
    packaged = resources.files("supervisord_py.model").joinpath("keys.toml")
    if packaged.is_file():
        return parse_key_table(packaged.read_text(encoding="utf-8"))
    return parse_key_table(Path(__file__).parents[2].joinpath("docs", "keys.toml").read_text(encoding="utf-8"))


def specifier_context(environment: Mapping[str, str], runtime: Path | None = None) -> SpecifierContext:
    """What specifiers stand for, for the user this process runs as; ``runtime`` is the runtime folder of the instance,
    if it is not the usual one."""
    uid, gid = os.geteuid(), os.getegid()
    home = os.path.expanduser("~")
    roots = own_roots(environment)
    try:
        entry = pwd.getpwuid(uid)
        user, shell = entry.pw_name, entry.pw_shell
    except KeyError:
        user, shell = str(uid), ""
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    if runtime is None:
        runtime = default_places(dict(environment), uid, home).runtime
    return SpecifierContext(
        home,
        roots.runtime,
        roots.state,
        roots.logs,
        user,
        uid,
        os.uname().nodename,
        _boot_id(),
        _here(),
        credentials_dir=f"{runtime}/{CREDENTIALS}",
        group=group,
        gid=gid,
        shell=shell or "/bin/sh",
        kernel=os.uname().release,
        architecture=own_architecture(),
        machine_id=_machine_id(),
    )


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _machine_id() -> str:
    """Empty on a machine that has none."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _boot_id() -> str:
    """systemd's form of it: no dashes; all zeros where there is no /proc."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return "0" * 32
    return text.strip().replace("-", "")


class OverlaidReader(TrustedReader):
    """Reads files as they are, but for some whose text is given; their folders need not exist."""

    def __init__(self, uids: frozenset[int] | None, overlay: Mapping[str, str]) -> None:
        super().__init__(uids)
        self._overlay = overlay

    def read(self, path: str) -> str:
        return self._overlay[path] if path in self._overlay else super().read(path)

    def list(self, folder: str) -> list[str]:
        within = [os.path.relpath(path, folder) for path in self._overlay if path.startswith(f"{folder}/")]
        if not within:
            return super().list(folder)
        found = super().list(folder) if os.path.isdir(folder) else []
        return sorted({*found, *(path.partition("/")[0] for path in within)})

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path) or any(each.startswith(f"{path}/") for each in self._overlay)


class _Scan:
    """Collects the files of one load."""

    def __init__(self, reader: OverlaidReader) -> None:
        self._reader = reader
        self.files: list[UnitFile] = []
        self.problems: list[Problem] = []
        self.unread: list[str] = []
        """Folders that could not be listed."""

    def keep(self, before: Sequence[UnitFile]) -> tuple[str, ...]:
        """Take the files of folders that could not be read from an earlier load; return these folders."""
        kept: list[str] = []
        for folder in map(printable, self.unread):
            files = [file for file in before if file.path.startswith(f"{folder}/")]
            if not files:
                continue
            why = next((problem.message for problem in self.problems if problem.file == folder), "no such folder")
            self.problems = [problem for problem in self.problems if problem.file != folder]
            self._complain(folder, f"{why}: the units in it are kept as they were", "an empty folder has none")
            self.files += files
            kept.append(folder)
        return tuple(kept)

    def typed(self, path: str, priority: int) -> None:
        """Read a path that the user gave: a folder, or one unit file with its drop-ins and its folder's defaults."""
        before = len(self.files)
        if os.path.isdir(path):
            self.folder(path, priority)
        else:
            self._typed_file(path, priority)
        # A mask in the control folder was not typed: it is meant to stand before what was.
        typed = [file for file in self.files[:before] if file.priority != CONTROL_PRIORITY]
        names = {file.name: file.path for file in reversed(typed) if file.kind is UnitFileKind.UNIT}
        for file in self.files[before:]:
            if file.kind is UnitFileKind.UNIT and names.get(file.name, file.path) != file.path:
                message = f"not used: {names[file.name]} defines {file.name} too, and was named first"
                self._complain(file.path, message, "give one of them another name", warning=True)

    def folder(self, folder: str, priority: int) -> None:
        """Read all unit files of a folder."""
        names = self._list(folder)
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith("."):
                continue
            if name == DEFAULTS_NAME:
                self._add("", path, UnitFileKind.DEFAULTS, folder, priority)
            elif name.endswith(_SUFFIX):
                self._unit(path, folder, priority)
            elif name.endswith(_DROP_IN_SUFFIX) and self._reader.is_folder(path):
                self._drop_ins(path, folder, priority)

    def _typed_file(self, path: str, priority: int) -> None:
        folder, base = os.path.split(path)
        if not os.path.lexists(path):
            self._complain(path, "no such file or folder")
            self.unread.append(path)
        elif not base.endswith(_SUFFIX) or base == DEFAULTS_NAME:
            self._complain(path, "not a unit file", f"a unit file is named NAME{_SUFFIX}")
        elif (name := self._unit(path, folder, priority)) is not None:
            unit = parse_unit_name(name)
            for holder in {name, unit.template or name}:
                drop_ins = os.path.join(folder, holder + _DROP_IN_SUFFIX)
                if self._reader.is_folder(drop_ins):
                    self._drop_ins(drop_ins, folder, priority)
            defaults = os.path.join(folder, DEFAULTS_NAME)
            if os.path.lexists(defaults):
                self._add("", defaults, UnitFileKind.DEFAULTS, folder, priority)

    def _unit(self, path: str, folder: str, priority: int) -> str | None:
        """Read a unit's main file; returns its name, None when the file's name is none."""
        name = os.path.basename(path).removesuffix(_SUFFIX)
        try:
            parse_unit_name(name)
        except ValueError as error:
            self._complain(path, str(error), "rename the file")
            return None
        self._add(name, path, UnitFileKind.UNIT, folder, priority)
        return name

    def _drop_ins(self, drop_in_folder: str, folder: str, priority: int) -> None:
        name = os.path.basename(drop_in_folder).removesuffix(_DROP_IN_SUFFIX)
        try:
            parse_unit_name(name)
        except ValueError as error:
            self._complain(drop_in_folder, str(error), "rename the folder")
            return
        for base in self._list(drop_in_folder):
            if base.endswith(_SUFFIX) and not base.startswith("."):
                self._add(name, os.path.join(drop_in_folder, base), UnitFileKind.DROP_IN, folder, priority)

    def _list(self, folder: str) -> list[str]:
        try:
            return self._reader.list(folder)
        except FileRefused as refused:
            self._complain(folder, refused.message, refused.hint)
        except OSError as error:
            self._complain(folder, _cannot_read(error))
        self.unread.append(folder)
        return []

    def _add(self, name: str, path: str, kind: UnitFileKind, folder: str, priority: int) -> None:
        text, problem = "", None
        try:
            text = self._reader.read(path)
        except FileRefused as refused:
            problem = _refusal(path, refused)
        except OSError as error:
            problem = Problem(printable(path), 0, 0, "", _cannot_read(error))
        self.files.append(UnitFile(name, printable(path), text, kind, printable(folder), priority, problem))

    def _complain(self, path: str, message: str, hint: str = "", *, warning: bool = False) -> None:
        severity: Literal["error", "warning"] = "warning" if warning else "error"
        self.problems.append(Problem(printable(path), 0, 0, "", printable(message), printable(hint), severity))


def _refusal(path: str, refused: FileRefused) -> Problem:
    message, hint = printable(refused.message), printable(refused.hint)
    return Problem(printable(path), refused.line, refused.column, "", message, hint)


def printable(path: str) -> str:
    """A path as people and JSON can have it: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _cannot_read(error: OSError) -> str:
    return f"cannot read: {(error.strerror or str(error)).lower()}"

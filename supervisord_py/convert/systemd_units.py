"""Files of systemd as units: which files make which unit, and what each is called here."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.names import unit_name
from supervisord_py.convert.systemd_syntax import Assignment, Ignored, parse_unit_file
from supervisord_py.convert.systemd_values import UnitContext

SUFFIXES = ("service", "socket", "timer", "target", "path", "slice", "mount", "automount", "swap", "scope", "device")
_NAME = re.compile(rf"(?P<prefix>[^/@]+)(?P<at>@(?P<instance>[^/]*))?\.(?P<suffix>{'|'.join(SUFFIXES)})")
_DROP_IN = re.compile(r"(?:.*/)?([^/]+)\.d/[^/]+\.conf")


@dataclass
class SystemdUnit:
    """One unit of systemd: its file and its drop-ins, read. ``instance`` is None for a plain unit, empty for a
    template."""

    name: str
    prefix: str
    instance: str | None
    suffix: str
    files: list[str] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    is_user: bool = False

    def values(self, section: str, *directives: str) -> list[str]:
        return [each.value for each in self.assignments if each.section == section and each.name in directives]

    def last(self, section: str, directive: str) -> str:
        found = self.values(section, directive)
        return found[-1] if found else ""


@dataclass(frozen=True)
class UnitId:
    """The name of a unit of systemd, taken apart."""

    prefix: str
    instance: str | None
    suffix: str

    def named(self, suffix: str) -> str:
        return f"{self.prefix}{'' if self.instance is None else '@' + self.instance}.{suffix}"


def parse_name(name: str) -> UnitId | None:
    """Take a unit's name apart; None for what is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return UnitId(match["prefix"], match["instance"] if match["at"] else None, match["suffix"])


def our_name(unit: UnitId) -> str:
    """The name of ours that is nearest to that of a service or target; ``%i`` in an instance stays."""
    prefix = unit_name(unit.prefix.replace("\\x2d", "-"))
    if unit.instance is None:
        return prefix
    return f"{prefix}@{re.sub(r'[^A-Za-z0-9:_.%-]+', '-', unit.instance)}"


def context_of(unit: SystemdUnit, name: str) -> UnitContext:
    """What the specifiers of a unit stand for, which is called ``name`` here."""
    plain = UnitId(unit.prefix, unit.instance, unit.suffix).named("x").removesuffix(".x")
    renamed = unit.suffix in ("service", "target") and name != plain
    return UnitContext(unit.prefix, unit.instance, unit.suffix, renamed, unit.is_user)


def read_units(files: Sequence[SourceFile]) -> list[SystemdUnit]:
    """Put files and drop-ins together to units, in the order in which they were named.

    Raises:
        ConvertError: A file that is no unit file, or one that systemd refuses.
    """
    units: dict[str, SystemdUnit] = {}
    for file in _mains(files):
        base = file.path.rpartition("/")[2]
        name = parse_name(base)
        if name is None:
            raise ConvertError(f"{file.path}: this is no name of a unit of systemd (NAME.service, NAME.socket, ...)")
        if base in units:
            raise ConvertError(f"{file.path}: {units[base].files[0]} is the same unit; convert them apart")
        unit = units[base] = SystemdUnit(base, name.prefix, name.instance, name.suffix)
        unit.is_user = "/systemd/user/" in file.path or "/user/" in file.path
        _read(unit, file)
    for file in sorted(_drop_ins(files), key=lambda file: file.path.rpartition("/")[2]):
        match = _DROP_IN.fullmatch(file.path)
        assert match is not None
        taken = [unit for unit in units.values() if match[1] in _drop_in_folders(unit)]
        if not taken:
            raise ConvertError(f"{file.path}: the unit {match[1]} that this is a drop-in of is not among the files")
        for unit in taken:
            _read(unit, file)
    return list(units.values())


def _mains(files: Iterable[SourceFile]) -> list[SourceFile]:
    return [file for file in files if _DROP_IN.fullmatch(file.path) is None]


def _drop_ins(files: Iterable[SourceFile]) -> list[SourceFile]:
    return [file for file in files if _DROP_IN.fullmatch(file.path) is not None]


def _drop_in_folders(unit: SystemdUnit) -> set[str]:
    """The names of the folders, without ``.d``, whose drop-ins a unit gets."""
    folders = {unit.name}
    if unit.instance:
        folders.add(f"{unit.prefix}@.{unit.suffix}")
    return folders


def _read(unit: SystemdUnit, file: SourceFile) -> None:
    assignments, ignored = parse_unit_file(file.text, file.path)
    unit.files.append(file.path)
    unit.assignments += assignments
    unit.ignored += ignored

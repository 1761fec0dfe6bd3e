"""Wheels of agents: what one says of itself, and how it becomes a folder that agents run from.

A wheel of agents is an ordinary wheel with unit files in ``supervisord_py_units/`` beside its packages. It is read and
unpacked from bytes in memory, never from its file: what was verified is what is installed. Nothing of it is executed,
and nothing is fetched: what it requires has to be there.

Each version has a folder of its own; what the folder has is what pip would put into ``site-packages``. Scripts, headers
and data files of a wheel are left out: nobody would find them.

Source: PyPA, "Binary distribution format"; "Core metadata specifications".
"""

import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

import tomli
from msgspec import Struct

from supervisord_py import __version__
from supervisord_py.model.agents import UNITS_FOLDER
from supervisord_py.model.names import parse_unit_name

WHEEL_SUFFIX = ".whl"
WHEEL_MAX = 256 * 1024 * 1024
UNPACKED_MAX = 1024 * 1024 * 1024
MEMBERS_MAX = 20_000
_METADATA_MAX = 1024 * 1024
_OWN_NAME = "supervisord-py"
_LIBRARIES = ("purelib", "platlib")


class WheelError(Exception):
    """A wheel that cannot be used: why."""


class Wheel(Struct, frozen=True):
    """What is in a wheel. ``name`` is normalised, ``units`` are the texts of unit files by unit (or template);
    ``members`` are the places of its files in the folder, by their names in the archive."""

    name: str
    version: str
    units: dict[str, str]
    requires: tuple[str, ...]
    requires_python: str
    tags: frozenset[str]
    members: dict[str, str]


def read_wheel(data: bytes, filename: str) -> Wheel:
    """Read a wheel.

    Args:
        data: The archive.
        filename: What its file is called; name and version in it must be those inside.

    Raises:
        WheelError: It is none, has no unit files, or would write outside of its folder.
    """
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
    from packaging.version import InvalidVersion, Version

    try:
        name, version, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise WheelError(f"{filename} is not the name of a wheel: {str(error).lower()}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = _dist_info(archive)
            headers = HeaderParser().parsestr(_text(archive, f"{info}/METADATA"))
            members = _members(archive, info)
            units = {unit: _text(archive, member) for unit, member in _unit_members(members)}
        said = canonicalize_name(headers.get("Name", "")), Version(headers.get("Version", ""))
    except WheelError:
        raise
    except InvalidVersion as error:
        raise WheelError(f"its metadata is wrong: {error}") from None
    except Exception as error:  # noqa: BLE001  zipfile raises half a dozen kinds for damaged archives
        raise WheelError(f"cannot read the archive: {error or type(error).__name__}") from None
    if said != (name, version):
        raise WheelError(f"its metadata is that of {said[0]} {said[1]}, its name that of {name} {version}")
    if not units:
        raise WheelError(f"it has no unit files: {UNITS_FOLDER}/NAME.toml says what runs")
    return Wheel(
        name,
        str(version),
        units,
        tuple(headers.get_all("Requires-Dist", [])),
        headers.get("Requires-Python", ""),
        frozenset(map(str, tags)),
        members,
    )


def _dist_info(archive: zipfile.ZipFile) -> str:
    found = {name.partition("/")[0] for name in archive.namelist() if name.partition("/")[0].endswith(".dist-info")}
    if len(found) != 1:
        raise WheelError("not a wheel: it has no METADATA" if not found else "it has more than one METADATA")
    return found.pop()


def _text(archive: zipfile.ZipFile, name: str) -> str:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise WheelError(f"not a wheel: it has no {name.rpartition('/')[2]}") from None
    if info.file_size > _METADATA_MAX:
        raise WheelError(f"{name} in it is larger than {_METADATA_MAX // 1024} KiB")
    with archive.open(info) as file:
        data = file.read(_METADATA_MAX + 1)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WheelError(f"{name} in it is not UTF-8") from None


def _members(archive: zipfile.ZipFile, info: str) -> dict[str, str]:
    """Return where each file goes; refuses what goes elsewhere, and what nobody would write into a wheel."""
    infos = archive.infolist()
    if len(infos) > MEMBERS_MAX or sum(each.file_size for each in infos) > UNPACKED_MAX:
        raise WheelError(f"it has more than {MEMBERS_MAX} files, or unpacks to more than {UNPACKED_MAX >> 20} MiB")
    data = f"{info.removesuffix('.dist-info')}.data"
    members: dict[str, str] = {}
    places: set[str] = set()
    for each in infos:
        name, mode = each.filename, each.external_attr >> 16
        if name.endswith("/"):
            continue
        parts = name.split("/")
        if "\\" in name or "\0" in each.orig_filename or any(part in ("", ".", "..") for part in parts):
            raise WheelError(f"it would write outside of its folder: {name!r}")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise WheelError(f"{name!r} in it is a link, or no file at all")
        if parts[0] == data:
            if len(parts) < 3 or parts[1] not in _LIBRARIES:
                continue
            parts = parts[2:]
        place = "/".join(parts)
        if place in places or name in members:
            raise WheelError(f"{name!r} is in it twice")
        places.add(place)
        members[name] = place
    return members


def _unit_members(members: dict[str, str]) -> Iterator[tuple[str, str]]:
    for member, place in sorted(members.items()):
        folder, _, base = place.rpartition("/")
        if folder != UNITS_FOLDER or not base.endswith(".toml"):
            continue
        name = base.removesuffix(".toml")
        try:
            parse_unit_name(name)
        except ValueError as error:
            raise WheelError(f"{place} in it: {error}") from None
        if name == "defaults":
            raise WheelError(f"{place} in it: a wheel has no defaults, write them into each unit")
        yield name, member


def check_requirements(wheel: Wheel) -> None:
    """Check that what a wheel requires is there, in this interpreter: nothing is installed for it.

    Where every agent of it names an interpreter of its own, that one has to have it, and nothing is checked here.

    Raises:
        WheelError: Something is missing, or it is for another Python or machine.
    """
    if all(_has_own_python(text) for text in wheel.units.values()):
        return
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.tags import sys_tags

    if wheel.tags.isdisjoint(map(str, sys_tags())):
        raise WheelError(f"it is for another Python or machine: {', '.join(sorted(wheel.tags))}")
    here = ".".join(map(str, sys.version_info[:3]))
    try:
        if wheel.requires_python and not SpecifierSet(wheel.requires_python).contains(here, prereleases=True):
            raise WheelError(f"it requires Python {wheel.requires_python}, and this is {here}")
        for text in wheel.requires:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _installed(requirement.name)
            if version is None:
                raise WheelError(f"it requires {requirement.name}, which is not installed here")
            if not requirement.specifier.contains(version, prereleases=True):
                raise WheelError(f"it requires {requirement.name}{requirement.specifier}, and {version} is installed")
    except (InvalidRequirement, InvalidSpecifier) as error:
        raise WheelError(f"its metadata is wrong: {str(error).splitlines()[0]}") from None


def _has_own_python(text: str) -> bool:
    """Tell whether a unit runs nothing in the supervisor's interpreter; a text that is wrong is told of later."""
    try:
        agent = tomli.loads(text).get("agent")
    except tomli.TOMLDecodeError:
        return True
    return not isinstance(agent, dict) or "python" in agent


def _installed(name: str) -> str | None:
    from packaging.utils import canonicalize_name

    if canonicalize_name(name) == _OWN_NAME:
        return __version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unpack(data: bytes, wheel: Wheel, site: Path) -> None:
    """Make the folder ``site`` of a wheel, whole or not at all; one that is there is replaced.

    Raises:
        WheelError: The archive is damaged, or larger than it says.
        OSError: It cannot be written.
    """
    prepare_folder(site.parent)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=site.parent))
    try:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for member, place in wheel.members.items():
                    _unpack_member(archive, member, folder / place)
        except (OSError, WheelError):
            raise
        except Exception as error:  # noqa: BLE001  as in read_wheel
            raise WheelError(f"cannot unpack the archive: {error or type(error).__name__}") from None
        for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        if os.path.lexists(site):
            shutil.rmtree(site)
        folder.rename(site)
    except BaseException:  # whatever it is, nothing is left behind
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack_member(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    info = archive.getinfo(member)
    path.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with archive.open(info) as source, path.open("xb") as target:
        while chunk := source.read(1024 * 1024):
            left -= len(chunk)
            if left < 0:
                raise WheelError(f"{member!r} in it is larger than it says")
            target.write(chunk)
        os.fchmod(target.fileno(), 0o755 if info.external_attr >> 16 & 0o111 else 0o644)


def prepare_folder(folder: Path) -> None:
    """Make the folder of all sites, or see that nobody else could have put something into it.

    Raises:
        OSError: It cannot be made.
        WheelError: It is somebody else's, or others may write it.
    """
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(0o755)
    except FileExistsError:
        pass
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise WheelError(f"{folder} is not a folder of the supervisor's own: remove it")
    if status.st_mode & 0o022:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~0o022)
        raise WheelError(f"{folder} could be written by others, who may have put something into it: remove it")

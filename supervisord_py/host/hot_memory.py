"""What the hot directory remembers in the state folder: the highest version of each wheel that was ever installed, the
newest signature of each unit file, and what was tried and did not stay up.

It is what keeps somebody who has an old signed file from bringing it back, so it is on disk before a version is loaded,
and where it cannot be read nothing is loaded.
"""

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec
from msgspec import Struct

from supervisord_py.model.unitset import HotFile

REFUSED_MAX = 200


class MemoryLostError(Exception):
    """The memory cannot be read or written: why."""


class Highest(Struct, frozen=True):
    """``version`` is empty for a unit file; ``timestamp`` None where it was not signed."""

    version: str = ""
    timestamp: int | None = None


class HotMemory(Struct, frozen=True):
    """``highest`` by package, or by unit for a unit file (``unit:NAME``); ``refused`` says why by digest."""

    highest: dict[str, Highest] = {}
    refused: dict[str, str] = {}


def key_of(hot: HotFile, unit: str) -> str:
    """Return what ``highest`` calls a package, or a unit file by itself."""
    return hot.package or f"unit:{unit}"


def is_lower(hot: HotFile, than: Highest) -> bool:
    """Tell whether a file is older than what was there before; without a signature its version alone counts."""
    from packaging.version import Version

    if hot.package and than.version and Version(hot.version) != Version(than.version):
        return Version(hot.version) < Version(than.version)
    return hot.timestamp is not None and than.timestamp is not None and hot.timestamp < than.timestamp


def read_memory(path: Path) -> HotMemory:
    """Read what is remembered; nothing where there is no file yet.

    Raises:
        MemoryLostError: It is there and cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=HotMemory)
    except FileNotFoundError:
        return HotMemory()
    except OSError as error:
        raise MemoryLostError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise MemoryLostError(
            f"cannot read {path}, so nobody knows which versions are old: mend it, or remove it to begin anew"
        ) from None


def write_memory(path: Path, memory: HotMemory) -> None:
    """Put it on disk, whole or not at all, and return when it is there to stay.

    Raises:
        MemoryLostError: It could not be written.
    """
    newest = dict(list(memory.refused.items())[-REFUSED_MAX:])
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(msgspec.json.encode(HotMemory(memory.highest, newest)))
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise MemoryLostError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None

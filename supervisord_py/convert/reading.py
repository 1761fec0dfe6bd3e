"""The edge of the converters: files and folders, and nothing else of the machine."""

import contextlib
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from supervisord_py.convert.draft import ConvertError, SourceFile
from supervisord_py.convert.systemd_units import SUFFIXES, parse_name

_SIZE_MAX = 8 * 1024 * 1024


def read_file(path: str) -> SourceFile:
    """Read a file; what is no UTF-8 in it becomes lone surrogates.

    Raises:
        ConvertError: It cannot be read, or is too large to be a configuration.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_SIZE_MAX + 1)
    except OSError as error:
        raise ConvertError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise ConvertError(f"{path!r} is no file's name") from None
    if len(data) > _SIZE_MAX:
        raise ConvertError(f"{path}: more than {_SIZE_MAX >> 20} MiB, which is no configuration")
    return SourceFile(path, data.decode(errors="surrogateescape"), os.path.dirname(os.path.abspath(path)))


def read_matching(pattern: str, base: str) -> list[SourceFile]:
    """Read the files that match a pattern, sorted; relative ones below ``base``.

    Raises:
        ConvertError: One of them cannot be read.
    """
    found = sorted(glob.glob(os.path.join(glob.escape(base), pattern)))
    return [read_file(path) for path in found if os.path.isfile(path)]


def read_systemd(paths: Sequence[str]) -> list[SourceFile]:
    """Read unit files of systemd and what belongs to them: of a folder its unit files, of each unit its drop-ins, of a
    socket or a timer the service beside it.

    Raises:
        ConvertError: One of them cannot be read.
    """
    mains: dict[str, None] = {}
    drop_ins: dict[str, None] = {}
    for path in paths:
        if os.path.isdir(path) and not path.rstrip("/").endswith(".d"):
            try:
                inside = sorted(os.listdir(path))
            except OSError as error:
                raise ConvertError(f"{path}: {(error.strerror or str(error)).lower()}") from None
            here = [os.path.join(path, name) for name in inside if parse_name(name) is not None]
            mains |= dict.fromkeys(each for each in here if _is_unit_of_its_own(each))
        elif path.endswith(".conf"):
            drop_ins[path] = None
        else:
            mains[path] = None
    for path in list(mains):
        folder, name = os.path.split(path)
        unit = parse_name(name)
        if unit is not None and unit.suffix in ("socket", "timer"):
            beside = os.path.join(folder, unit.named("service"))
            if os.path.isfile(beside):
                mains[beside] = None
    for path in mains:
        unit = parse_name(os.path.basename(path))
        names = [os.path.basename(path)]
        if unit is not None and unit.instance and unit.suffix in SUFFIXES:
            names.append(f"{unit.prefix}@.{unit.suffix}")
        for name in names:
            folder = os.path.join(os.path.dirname(path), f"{glob.escape(name)}.d")
            drop_ins |= dict.fromkeys(sorted(glob.glob(os.path.join(folder, "*.conf"))))
    return [read_file(path) for path in (*mains, *drop_ins)]


def _is_unit_of_its_own(path: str) -> bool:
    """Whether a file of a folder is a unit: a link to another unit beside it is only another name, one to /dev/null
    masks."""
    real = os.path.realpath(path)
    if real == "/dev/null":
        return True
    is_alias = os.path.basename(real) != os.path.basename(path) and os.path.dirname(real) == os.path.realpath(
        os.path.dirname(path)
    )
    return os.path.isfile(path) and not is_alias


def narrowest_mode(files: Sequence[SourceFile]) -> int:
    """The mode that lets nobody read what the files did not: they may hold secrets."""
    mode = 0o666
    for file in files:
        try:
            mode &= os.stat(file.path).st_mode
        except OSError:
            mode &= 0o600
    return mode | 0o600


def write_units(folder: Path, texts: dict[str, str], *, force: bool, mode: int) -> list[str]:
    """Write unit files, all or none; the folder is made.

    Args:
        folder: Where to.
        texts: By file name.
        force: Files that are there are replaced.
        mode: Of new files, before the umask.

    Returns:
        The paths that were written.

    Raises:
        ConvertError: A file is there already, or cannot be written.
    """
    there = [name for name in texts if os.path.lexists(folder / name)]
    if there and not force:
        shown = ", ".join(str(folder / name) for name in there[:3]) + (" ..." if len(there) > 3 else "")
        raise ConvertError(f"{shown} {'is' if len(there) == 1 else 'are'} there already; --force replaces files")
    made: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary = folder / f".{name}.new"
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            made[temporary] = folder / name
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        for temporary, path in made.items():
            # Not through a link that somebody put there.
            temporary.replace(path)
    except OSError as error:
        for temporary in made:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise ConvertError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from None
    return [str(path) for path in made.values()]

"""Time zones of this machine: by name, and the local one, as the C library finds it."""

import io
import os
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import TZPATH, ZoneInfo

LOCALTIME: Final = Path("/etc/localtime")


def zone_named(name: str) -> tzinfo | None:
    """Return the time zone of the database with that name; None where there is none (or no database)."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        # A folder, a file that is no zone or a name outside the database, a name that is not there.
        return None


def zones_now() -> Callable[[str], tzinfo]:
    """Return what knows time zones by name, and by the empty name the local one of this moment; what is gone from the
    database is UTC."""
    local = local_zone()
    return lambda name: (zone_named(name) or UTC) if name else local


def local_zone(environment: Mapping[str, str] = os.environ, localtime: Path = LOCALTIME) -> tzinfo:
    """Return the zone of ``$TZ``, else of ``/etc/localtime``, else UTC.

    ``TZ`` is a name of the database, a path of a zone's file, or a rule of POSIX (``CET-1CEST,M3.5.0,M10.5.0/3``); what
    is none of these is UTC, as for the C library.
    """
    setting = environment.get("TZ")
    if setting is None:
        return _of_file(localtime) or UTC
    name = setting.removeprefix(":")
    if not name:
        return UTC
    return (_of_file(Path(name)) if name.startswith("/") else zone_named(name)) or _of_rule(name) or UTC


def _of_file(path: Path) -> tzinfo | None:
    """The zone of a file; with its name where it is one of the database."""
    resolved = os.path.realpath(path)
    for folder in TZPATH:
        if resolved.startswith(f"{os.path.realpath(folder)}/"):
            named = zone_named(os.path.relpath(resolved, os.path.realpath(folder)))
            if named is not None:
                return named
    try:
        with open(resolved, "rb") as file:
            return ZoneInfo.from_file(file, key=str(path))
    except (OSError, ValueError, struct.error, IndexError):
        # No such file, or one that is no zone: the C library says UTC then.
        return None


def _of_rule(rule: str) -> tzinfo | None:
    """The zone of a rule of POSIX: a zone's file that holds nothing else."""
    head = struct.Struct(">4sc15x6l")
    empty = head.pack(b"TZif", b"2", 0, 0, 0, 0, 1, 4) + struct.pack(">lbB4s", 0, 0, 0, b"UTC\0")
    try:
        return ZoneInfo.from_file(io.BytesIO(empty + empty + b"\n" + rule.encode("ascii") + b"\n"), key=rule)
    except (ValueError, UnicodeError):
        # Not a rule either.
        return None

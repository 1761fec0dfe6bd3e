"""The copy of the manager's state on disk: written at each rotation of the journal and at the end, read by the first
manager of the next start.

Only counters are taken from it (``Manager.restore_counters``): what ran then is gone. A copy that cannot be read is
worth a warning, never a refusal to start.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.core.manager import Manager
from supervisord_py.core.snapshot import NewerFormatError
from supervisord_py.host.zones import zones_now
from supervisord_py.model.unit import UnitSet

VERSION = 1
"""The format of the file; that of the state in it has a number of its own (``core.state.FORMAT``)."""


class Snapshot(Struct, frozen=True):
    version: int
    boot: str
    state: dict[str, str]


def boot_id() -> str:
    """Return this boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def read_snapshot(path: Path) -> Snapshot | None:
    """Return the last copy; None when there is none, or none that can be used.

    Raises:
        NewerFormatError: A newer version wrote it.
    """
    try:
        snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if snapshot.version > VERSION:
        raise NewerFormatError(snapshot.version, VERSION)
    return snapshot


def write_snapshot(path: Path, state: dict[str, str], gid: int | None) -> bool:
    """Replace the copy, whole or not at all; returns whether it is on disk."""
    temporary = path.with_suffix(".new")
    data = msgspec.json.encode(Snapshot(VERSION, boot_id(), state))
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            if gid is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, -1, gid)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        return False
    return True


class SnapshotStore:
    """Writes the state to disk in a thread, one copy at a time: a disk that hangs must not hang the decisions.

    Args:
        path: The copy.
        gid: The group that may read it.
        state: Gives the state as it is when the writing begins.
    """

    def __init__(self, path: Path, gid: int | None, state: Callable[[], dict[str, str]]) -> None:
        self._path, self._gid, self._state = path, gid, state
        self._lock = asyncio.Lock()
        self._is_next = False

    async def store(self) -> None:
        """Write a copy; whoever asks while one waits for its turn is content with that one."""
        if self._is_next:
            async with self._lock:
                return
        self._is_next = True
        async with self._lock:
            self._is_next = False
            await asyncio.to_thread(write_snapshot, self._path, self._state(), self._gid)


def next_manager(state: Mapping[str, str], units: UnitSet) -> Manager:
    """Make the core of a manager that follows another, of what the keeper has in custody; it keeps the host's part
    too."""
    manager = Manager.restore({key: text for key, text in state.items() if not key.startswith("host/")}, units)
    manager.use_zones(zones_now())
    return manager


def first_manager(path: Path, lost: Mapping[str, Any] | None) -> Manager:
    """Make the core of the first manager of a start: with the counters of the last copy, and, after a killed keeper
    (``lost``), with spawn ids above its."""
    manager = Manager(int.from_bytes(os.urandom(8)))
    manager.use_zones(zones_now())
    try:
        snapshot = read_snapshot(path)
        if snapshot is not None:
            manager.restore_counters(snapshot.state)
    except NewerFormatError as newer:
        # After a downgrade: units run, their counters begin anew.
        print(f"manager: {path} is not used: {newer}", file=sys.stderr)
    if lost is not None:
        manager.skip_spawns(lost["last_id"])
    return manager

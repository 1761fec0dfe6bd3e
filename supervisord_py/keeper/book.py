"""What the next ``run`` needs to know if this keeper is killed: a file in the runtime folder, a line a change.

It holds all that the keeper holds but descriptors: what is in custody, which processes were made, what was asked for
and what was done of it. A line is written before what it tells is acted upon (a process: as soon as there is one);
nothing is synced, because the file outlives the keeper and need not outlive the machine. Lines are ``{KEY: VALUE}``:

    boot         the boot id; a process of another boot is nobody's
    namespace    the PID namespace of all pids; when a container is started again, its processes are gone as at a boot
    custody      everything in custody (``Custody.pack``), ``requests`` that wait, ``ended``: exits not yet told
    commit       a manager's packet, without what only concerns that manager
    did          so many of the requests were carried out
    fact         [NUMBER, FACT]: one that the manager has to be told
    ended        [UNIT, FACT]: an exit that will be told once it is known what is left of the unit
    spawn        the whole of what is to be known of one spawn; the last line of an id counts
    killing      [UNIT, SIGNAL]: its processes are being killed in rounds
    tags         [UNIT, IDS]: by these spawn ids the unit's processes may be tagged (no unit: the newest id seen)

A file that cannot be written whole is removed, for half a truth is none: that costs the adoption, no unit.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

from supervisord_py.keeper.inventory import Inventory, Spawn, Unit, pid_namespace, read
from supervisord_py.keeper.loop import say

BOOK_MAX = 1 << 20
"""Bytes beyond twice the size of all that is true, after which only that is written anew."""
RETRY_NS = 10_000_000_000
DID = b'{"did":1}\n'


class Book:
    """Nothing is written before the first ``rewrite``: a copy that only tries whether it could go on has a book too."""

    def __init__(self, path: str, inventory: Inventory, custody: Callable[[], dict[str, Any]]) -> None:
        self._path, self._inventory, self._custody = path, inventory, custody
        self._fd = -1
        self._size = self._limit = self._retry_ns = 0
        self._is_begun = self._is_told = False

    def spawn(self, spawn: Spawn) -> None:
        """Write what is true of a spawn now; this and what follows raise nothing."""
        self._write("spawn", _describe(spawn))

    def ended(self, unit: Unit, fact: dict[str, Any]) -> None:
        self._write("ended", [unit.name, fact])

    def killing(self, unit: Unit) -> None:
        self._write("killing", [unit.name, unit.killing])

    def fact(self, number: int, fact: dict[str, Any]) -> None:
        self._write("fact", [number, fact])

    def commit(self, commit: dict[str, Any]) -> None:
        self._write("commit", {key: commit[key] for key in ("ack", "state", "lines", "journalled", "do")})

    def did(self) -> None:
        self._append(DID)

    def keep_short(self) -> None:
        """Once a turn: write anew what has grown too long, or could not be written."""
        if self._is_begun and (self._fd < 0 or self._size > self._limit) and time.monotonic_ns() >= self._retry_ns:
            self.rewrite()

    def rewrite(self) -> None:
        """Put a new file, with what is known now and no more, in the place of the old one."""
        self._is_begun = True
        self._close()
        self._size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path + "~", flags, 0o600)
        except OSError as error:
            self._give_up(error)
            return
        self._write("boot", read("/proc/sys/kernel/random/boot_id").decode().strip())
        self._write("namespace", pid_namespace())
        self._write("tags", ["", [self._inventory.newest_id]])
        self._write("custody", self._custody())
        for unit in self._inventory.units.values():
            if unit.tags:
                self._write("tags", [unit.name, list(unit.tags)])
        for spawn in {spawn.id: spawn for spawn in self._inventory.spawns.values()}.values():
            self._write("spawn", _describe(spawn))
        for unit in self._inventory.units.values():
            if unit.killing is not None:
                self._write("killing", [unit.name, unit.killing])
        self._limit = 2 * self._size + BOOK_MAX
        if self._fd >= 0:
            try:
                os.rename(self._path + "~", self._path)
            except OSError as error:
                self._give_up(error)
            else:
                self._is_told = False

    def _write(self, key: str, value: Any) -> None:
        if self._fd >= 0:
            self._append(json.dumps({key: value}, separators=(",", ":")).encode("ascii") + b"\n")

    def _append(self, data: bytes) -> None:
        if self._fd < 0:
            return
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(28, os.strerror(28))
            self._size += written
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Leave no book rather than a wrong one, and try again after a while."""
        self._close()
        self._retry_ns = time.monotonic_ns() + RETRY_NS
        for path in (self._path, self._path + "~"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        if not self._is_told:
            say(f"cannot write {self._path}: {error.strerror}; should I be killed, my processes cannot be adopted")
        self._is_told = True

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _describe(spawn: Spawn) -> dict[str, Any]:
    box = spawn.unit.notify
    return {
        "id": spawn.id, "unit": spawn.unit.name, "role": spawn.role, "pid": spawn.pid, "main_pid": spawn.main_pid,
        "main_start": spawn.main_start, "invocation": spawn.invocation, "cgroups": spawn.cgroups,
        "tagged": spawn.tagged, "told": spawn.is_told, "notify": None if box is None else [box.path, box.access],
    }  # fmt: skip

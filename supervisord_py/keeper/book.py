"""What the next ``run`` needs to know if this keeper is killed: a file in the runtime folder, a line a change.

It is written when a process is booked, when another takes its place and when it says READY; never synced, because it
outlives the keeper and need not outlive the machine. A line is ``{"spawn": {..}}``, the whole of what is to be known of
one spawn (the last line of an id counts), or ``{"unit": NAME, "tags": [..]}``: by these spawn ids the unit's processes
may be tagged though nothing else is known of those spawns (no unit: the newest id that was seen). A file that cannot be
written costs the adoption, no unit.
"""

import json
import os
from typing import Any

from supervisord_py.keeper.inventory import Inventory, Spawn
from supervisord_py.keeper.loop import say

BOOK_MAX = 1 << 20
"""Bytes after which only what is still true is written anew."""


class Book:
    """Nothing is written before the first ``rewrite``: a copy that only tries whether it could go on has a book too."""

    def __init__(self, path: str, inventory: Inventory) -> None:
        self._path, self._inventory = path, inventory
        self._fd = -1
        self._size = self._limit = 0
        self._is_told = False

    def note(self, spawn: Spawn) -> None:
        """Write what is true of a spawn now; raises nothing."""
        self._write({"spawn": _describe(spawn)})
        if self._size > self._limit:
            self.rewrite()

    def rewrite(self) -> None:
        """Put a new file, with what is known now and no more, in the place of the old one."""
        old, self._size = self._fd, 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path + "~", flags, 0o600)
            self._write({"unit": "", "tags": [self._inventory.newest_id]})
            for unit in self._inventory.units.values():
                if unit.tags:
                    self._write({"unit": unit.name, "tags": list(unit.tags)})
            for spawn in {spawn.id: spawn for spawn in self._inventory.spawns.values()}.values():
                self._write({"spawn": _describe(spawn)})
            os.rename(self._path + "~", self._path)
        except OSError as error:
            if not self._is_told:
                say(f"cannot write {self._path}: {error.strerror}; should I be killed, my processes cannot be adopted")
            self._is_told = True
        self._limit = self._size + BOOK_MAX
        if old >= 0 and old != self._fd:
            os.close(old)

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            self._size += os.write(self._fd, data)
        except OSError:
            self._limit = 0  # tried anew with the next line, and told then


def _describe(spawn: Spawn) -> dict[str, Any]:
    box = spawn.unit.notify
    return {
        "id": spawn.id, "unit": spawn.unit.name, "role": spawn.role, "pid": spawn.pid, "main_pid": spawn.main_pid,
        "main_start": spawn.main_start, "invocation": spawn.invocation, "cgroups": spawn.cgroups,
        "ready": spawn.is_ready, "over": spawn.is_over, "notify": None if box is None else [box.path, box.access],
    }  # fmt: skip

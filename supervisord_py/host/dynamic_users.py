"""``dynamic-user``: a user id for each unit while it runs, out of systemd's range, that no one else has.

The id is that of the unit's name where that is free, so that it is mostly the same the next time and its folders need
not be handed over. What is taken is written down in ``dynamic-users.json`` of the runtime folder before it is used; who
else on the machine runs by an id, systemd's own dynamic users and those of other supervisors among them, is looked up
in /proc. There is no entry in the user database: programs see the number, and the name in ``USER``.

Source: systemd.exec(5), DynamicUser=; systemd src/core/dynamic-user.c (pick_uid).
"""

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

FIRST, LAST = 61184, 65519
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}", re.ASCII)
_SYSTEMD = "/run/systemd/dynamic-uid"


class NoFreeUser(Exception):
    """All ids are taken."""


def dynamic_name(user: str | None, unit: str) -> str:
    """Return what the user of a unit is called: ``user``, or the unit's name where that can be a user's."""
    if user is not None:
        return user
    return unit if _NAME.fullmatch(unit) else f"_du{hashlib.blake2b(unit.encode(), digest_size=8).hexdigest()}"


class DynamicUsers:
    """Gives ids to units and takes them back.

    Args:
        folder: The instance's runtime folder.
        proc: Where the kernel's view of processes is.
    """

    def __init__(self, folder: Path, proc: str = "/proc") -> None:
        self._note = folder / "dynamic-users.json"
        self._proc = proc
        self._taken: dict[str, int] | None = None

    def provide(self, unit: str, name: str) -> int:
        """Return the id of a unit's user, a free one if it has none yet.

        Raises:
            NoFreeUser: There is none.
            OSError: It cannot be written down.
        """
        taken = self._read()
        if unit not in taken:
            running = {info.st_uid for info in self._processes()}
            for uid in _candidates(name):
                if uid not in taken.values() and uid not in running and not _is_known(uid):
                    self._write({**taken, unit: uid})
                    return uid
            raise NoFreeUser(f"all user ids from {FIRST} to {LAST} are taken")
        return taken[unit]

    def of(self, unit: str) -> int | None:
        """Return the id that a unit has."""
        return self._read().get(unit)

    def release(self, unit: str) -> None:
        """Take the id of a unit back; raises OSError."""
        taken = self._read()
        if unit in taken:
            self._write({other: uid for other, uid in taken.items() if other != unit})

    def _processes(self) -> Iterator[os.stat_result]:
        for name in os.listdir(self._proc):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    yield os.stat(f"{self._proc}/{name}")

    def _read(self) -> dict[str, int]:
        if self._taken is None:
            try:
                found = json.loads(self._note.read_bytes())
            except (OSError, ValueError):
                found = {}
            self._taken = {str(unit): int(uid) for unit, uid in found.items()}
        return self._taken

    def _write(self, taken: dict[str, int]) -> None:
        if taken:
            fresh = self._note.with_suffix(".new")
            fresh.write_text(json.dumps(taken))
            fresh.rename(self._note)
        else:
            self._note.unlink(missing_ok=True)
        self._taken = taken


def _candidates(name: str) -> Iterator[int]:
    """All ids, from that of the name on."""
    count = LAST - FIRST + 1
    begin = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % count
    for step in range(count):
        yield FIRST + (begin + step) % count


def _is_known(uid: int) -> bool:
    """Whether the machine knows a user or a group by this number, or systemd has given it away."""
    with contextlib.suppress(KeyError):
        pwd.getpwuid(uid)
        return True
    with contextlib.suppress(KeyError):
        grp.getgrgid(uid)
        return True
    return os.path.lexists(f"{_SYSTEMD}/{uid}")

"""A disk in memory that fills up, fails and loses power, for the journal's tests.

It passes the contract tests of the real one (``test_journal_disk.py``). ``stable`` is what survives a power failure;
what was appended after the last good sync does not. After a failed sync the bytes concerned are lost for good, although
they can still be read: later syncs of that file succeed and keep nothing (what Linux does).
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from supervisord_py.host.journal_disk import Appended, Entry


class FakeFile:
    def __init__(self, disk: "FakeDisk", name: str, data: bytearray) -> None:
        self._disk = disk
        self._name = name
        self._data = data
        self._size = len(data)
        self._is_broken = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: bytes) -> Appended:
        room = self._disk.room()
        written, error = min(room, len(data)), None
        try:
            self._disk.step("append", self._name)
        except OSError as failure:
            written, error = min(written, len(data) // 2), failure
        if error is None and written < len(data):
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._data += data[:written]
        kept = data.rfind(b"\n", 0, written) + 1 if error is not None else written
        self._size += kept
        if kept < written:
            try:
                self._disk.step("truncate", self._name)
                del self._data[self._size :]
            except OSError:
                self._is_broken = True
        return Appended(kept, error)

    def sync(self) -> None:
        try:
            self._disk.step("sync", self._name)
        except OSError:
            self._disk.poisoned.add(id(self._data))
            raise
        if id(self._data) not in self._disk.poisoned:
            self._disk.stable[self._name] = bytes(self._data)

    def is_intact(self) -> bool:
        is_there = self._disk.files.get(self._name) is self._data
        return not self._is_broken and is_there and len(self._data) == self._size

    def close(self) -> None:
        pass


class FakeDisk:
    """``on_step`` is called with each operation and file name before it happens and may raise OSError."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.stable: dict[str, bytes] = {}
        self.poisoned: set[int] = set()
        self.capacity = 1 << 40
        self.reserved = 0
        self.on_step: Callable[[str, str], None] | None = None
        self.steps = 0
        self._changed = 0
        self._graveyard: list[bytearray] = []

    def step(self, operation: str, name: str) -> None:
        self.steps += 1
        if self.on_step is not None:
            self.on_step(operation, name)

    def room(self) -> int:
        return max(0, self.capacity - self.reserved - sum(len(data) for data in self.files.values()))

    def open(self) -> None:
        self.step("open", "")

    def entries(self) -> list[Entry]:
        self.step("entries", "")
        return [Entry(name, len(data), 0) for name, data in self.files.items()]

    def read(self, name: str) -> tuple[bytes, OSError | None]:
        data = bytes(self._found(name))
        try:
            self.step("read", name)
        except OSError as error:
            return data[: len(data) // 2], error
        return data, None

    def create(self, name: str, header: bytes) -> FakeFile:
        self.step("create", name)
        if name in self.files:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self.files[name] = data = bytearray()
        file = FakeFile(self, name, data)
        if (error := file.append(header).error) is not None:
            self._forget(name)
            raise error
        return file

    def reopen(self, name: str, size: int) -> FakeFile:
        self.step("reopen", name)
        data = self.files[name]
        del data[size:]
        return FakeFile(self, name, data)

    def sync(self, name: str) -> None:
        FakeFile(self, name, self._found(name)).sync()

    def rename(self, name: str, new_name: str) -> None:
        self.step("rename", name)
        self.files[new_name] = self.files.pop(name)
        if name in self.stable:
            self.stable[new_name] = self.stable.pop(name)

    def remove(self, name: str) -> None:
        self.step("remove", name)
        if name in self.files:
            self._forget(name)

    def _found(self, name: str) -> bytearray:
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self.files[name]

    def _forget(self, name: str) -> None:
        # Kept alive, so that the identity of its bytes is not given to another file.
        self._graveyard.append(self.files.pop(name))
        self.stable.pop(name, None)

    def reserve(self, size: int) -> bool:
        self.step("reserve", "")
        if self.reserved == size:
            return True
        self.reserved = 0
        if size and self.room() < 2 * size:
            return False
        self.reserved = size
        return True

    def release_reserve(self) -> bool:
        was_reserved, self.reserved = self.reserved, 0
        return was_reserved > 0

    def close(self) -> None:
        pass

    def lose_power(self) -> "FakeDisk":
        """Return the disk as it is found after a power failure: nothing but what was synced."""
        found = FakeDisk()
        found.files = {name: bytearray(data) for name, data in self.stable.items()}
        found.stable = dict(self.stable)
        return found

    def dump(self, directory: Path) -> None:
        """Write the files to a real folder, for the reader."""
        directory.mkdir(exist_ok=True)
        for name, data in self.files.items():
            (directory / name).write_bytes(data)

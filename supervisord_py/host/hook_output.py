"""What hooks print: each in a pipe of its own that the keeper holds, all of it in one file beside those of the units.

A hook is short and says little, and many run at a time: their lines are read here, each gets the name of the unit that
its event was about, and all go into one pipe that the collector captures as it captures a unit's, so that the file is
rotated, bounded and grouped as all others are. What does not fit into that pipe (a disk that stands still) is dropped,
before anything waits for it.

The keeper's pipes are never made non-blocking: their flags are shared with the hook. One that is readable does not
block, because nobody else reads it.
"""

import asyncio
import contextlib
import os
import select

from supervisord_py.host.output import OutputCollector
from supervisord_py.model.log import LogPolicy
from supervisord_py.model.names import base_unit

HOOKS_LOG = "_hooks"
"""No unit's name begins like that."""

CHUNK = 65536


class HookOutput:
    """Reads the pipes of hooks into ``_hooks.log``; all methods are called on the loop.

    Args:
        output: Captures the one pipe.
    """

    def __init__(self, output: OutputCollector) -> None:
        self._output = output
        self._loop = asyncio.get_running_loop()
        self._pipe: int | None = None
        self._fds: dict[str, int] = {}
        self._begun: dict[str, bytes] = {}
        """The line that each has begun and not ended."""

    def attach(self, owner: str, fd: int) -> None:
        """Read the pipe ``fd`` (ours to close from now on) of a hook."""
        self.detach(owner)
        self._fds[owner] = fd
        self._loop.add_reader(fd, self._read, owner)

    def detach(self, owner: str) -> None:
        """Read what is there, and close the pipe of a hook; one that has none is fine."""
        fd = self._fds.get(owner)
        if fd is None:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while any(happened & select.POLLIN for _, happened in poll.poll(0)) and self._read(owner):
            pass
        self._write(owner, self._begun.pop(owner, b""))
        self._loop.remove_reader(fd)
        del self._fds[owner]
        os.close(fd)

    def close(self) -> None:
        """Close everything: the keeper holds what is left in the pipes."""
        for owner in list(self._fds):
            self._loop.remove_reader(self._fds[owner])
            os.close(self._fds.pop(owner))
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _read(self, owner: str) -> bool:
        try:
            found = os.read(self._fds[owner], CHUNK)
        except BlockingIOError:
            return False
        *lines, rest = (self._begun.pop(owner, b"") + found).split(b"\n")
        for line in lines:
            self._write(owner, line)
        if len(rest) > CHUNK:
            self._write(owner, rest)
            rest = b""
        if rest:
            self._begun[owner] = rest
        return bool(found)

    def _write(self, owner: str, line: bytes) -> None:
        if not line:
            return
        if self._pipe is None:
            reader, self._pipe = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._pipe, False)
            self._output.attach(HOOKS_LOG, reader, LogPolicy())
        unit = base_unit(owner).encode()
        with contextlib.suppress(BlockingIOError):
            os.write(self._pipe, b"%s: %s\n" % (unit, line) if unit else b"%s\n" % line)

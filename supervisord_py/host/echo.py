"""The output of all units on the supervisor's own standard output, a line at a time, each with its unit's name.

What is shown is read back from the output files, so that they are the buffer: a reader of standard output that is slow
costs lines (it is told how many bytes were passed over), one that stands still costs nothing but a thread that waits,
and one that has gone ends the showing. Nothing of it ever holds up a unit or a decision.

A line is written when it is complete, or when its life is over; one that is longer than ``output_reading.LINE_MAX`` in
pieces. Bytes that are no UTF-8 are shown as U+FFFD; the file has them as they were.
"""

import asyncio
import contextlib
import errno
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from zlib import crc32

from supervisord_py.host.output_reading import OutputFollower

PENDING_MAX = 256 * 1024
"""Bytes that wait for standard output before reading stops."""
BURST = 64 * 1024
NAME_MAX = 24
"""Names are padded to the longest one, up to this."""
SETTLE_S = 0.02
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class BlockingWriter:
    """Writes to a descriptor that may block, in a thread of its own."""

    def __init__(self, descriptor: int, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = descriptor
        self._loop = loop
        self._pieces: deque[bytes] = deque()
        self._work = threading.Semaphore(0)
        self._room = asyncio.Event()
        self.pending_bytes = 0
        self.is_dead = False
        """Nobody reads any more; what is given is dropped."""
        threading.Thread(target=self._run, name="standard-output", daemon=True).start()

    async def write(self, data: bytes) -> None:
        """Give ``data`` to the thread; wait while too much is waiting already."""
        if self.is_dead:
            return
        self.pending_bytes += len(data)
        self._pieces.append(data)
        self._work.release()
        while self.pending_bytes > PENDING_MAX and not self.is_dead:
            self._room.clear()
            await self._room.wait()

    def _run(self) -> None:
        while True:
            self._work.acquire()
            pieces: list[bytes] = []
            size = 0
            while self._pieces and size < BURST:
                pieces.append(self._pieces.popleft())
                size += len(pieces[-1])
            is_dead = size > 0 and not self._write_all(b"".join(pieces))
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._written, size, is_dead)
            if is_dead:
                return

    def _write_all(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody has made it non-blocking for all who share it
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                # A file on a full disk: these lines are lost, later ones may not be.
                return error.errno == errno.ENOSPC
        return True

    def _written(self, size: int, is_dead: bool) -> None:
        self.pending_bytes -= size
        self.is_dead = self.is_dead or is_dead
        self._room.set()


class Echo:
    """Shows what units print, from the moment that their output is captured.

    Args:
        loop: The manager's event loop.
        follow: Opens a follower of one unit at the end of what it has printed.
        descriptor: Where it is written.
        colour: Whether names are coloured.
        timestamps: Whether the time at which a line is shown stands before it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        follow: Callable[[str], OutputFollower],
        *,
        descriptor: int = 1,
        colour: bool = False,
        timestamps: bool = False,
    ) -> None:
        self._loop = loop
        self._follow = follow
        self._colour = colour
        self._timestamps = timestamps
        self._writer = BlockingWriter(descriptor, loop)
        self._followers: dict[str, OutputFollower] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._width = 0

    def attached(self, unit: str) -> None:
        """The output of ``unit`` is captured from now on; to be called before its first byte is moved."""
        if unit in self._tasks and not self._tasks[unit].done():
            return
        self._width = min(NAME_MAX, max(self._width, len(unit)))
        with contextlib.suppress(OSError):  # a folder that cannot be read: ``health`` tells what is wrong with it
            follower = self._followers[unit] = self._follow(unit)
            self._tasks[unit] = self._loop.create_task(self._show(unit, follower))

    async def _show(self, unit: str, follower: OutputFollower) -> None:
        async for _, line in follower:
            await self._writer.write(self._format(unit, line))
            if self._writer.is_dead:
                follower.close()

    def _format(self, unit: str, line: str) -> bytes:
        name = f"{unit:<{self._width}} |"
        if self._colour:
            name = f"\x1b[{_COLOURS[crc32(unit.encode()) % len(_COLOURS)]}m{name}\x1b[0m"
        stamp = ""
        if self._timestamps:
            stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") + " "
        return f"{stamp}{name} {line}\n".encode()

    async def settle(self, timeout_s: float) -> None:
        """Wait until everything that is in the files has been written, but no longer than ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._writer.is_dead and (
                    self._writer.pending_bytes or any(not each.is_idle for each in self._followers.values())
                ):
                    await asyncio.sleep(SETTLE_S)

    async def close(self) -> None:
        for follower in self._followers.values():
            follower.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

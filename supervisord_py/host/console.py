"""The events of ``run`` on its own terminal or log, as they happen; never in the way of supervision.

A line is written only when the descriptor takes it at once (poll first, at most PIPE_BUF bytes), so a stopped
terminal or a full pipe costs lines, which are counted, and nothing else.
"""

import contextlib
import os
import select
from collections.abc import AsyncIterator

from supervisord_py.host.facade import Followed
from supervisord_py.model.event_text import format_event

LINE_MAX = select.PIPE_BUF


class Console:
    """Writes events to a descriptor that may block, vanish or be slow."""

    def __init__(self, descriptor: int, *, colour: bool) -> None:
        self._descriptor = descriptor
        self._colour = colour
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._missed = 0

    async def show(self, events: AsyncIterator[Followed]) -> None:
        """Write every event until the stream ends."""
        async for followed in events:
            self._missed += followed.dropped
            self.write(format_event(followed.record, colour=self._colour))

    def write(self, line: str) -> None:
        """Write one line, or count it as missed."""
        if not any(mask & select.POLLOUT for _, mask in self._poll.poll(0)):
            self._missed += 1
            return
        if self._missed:
            line = f"({self._missed} lines missed)\n{line}"
        with contextlib.suppress(OSError):
            os.write(self._descriptor, line.encode(errors="replace")[: LINE_MAX - 1] + b"\n")
            self._missed = 0

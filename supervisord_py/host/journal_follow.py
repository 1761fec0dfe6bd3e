"""Followers of the journal: each has a bounded queue, and one that reads too slowly is told how many records it missed.

Nothing is polled: records are offered when the writer has reported them written. A follower that is gone costs nothing.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from supervisord_py.host.facade import Followed
from supervisord_py.store.query import Query

QUEUE_MAX = 1000


class Follower:
    """One reader's queue between the journal and its connection."""

    def __init__(self, query: Query, after: int) -> None:
        self._query = query
        self._after = after
        self._queue: deque[Followed] = deque()
        self._missed = 0
        self._is_ended = False
        self._changed = asyncio.Event()

    def offer(self, record: Mapping[str, Any], line: bytes | None) -> None:
        """Queue a record if it is wanted; count it as missed when the queue is full."""
        seq = record["seq"]
        if (seq is not None and seq <= self._after) or not self._query.matches(record, line):
            return
        if len(self._queue) >= QUEUE_MAX:
            self._missed += 1
            return
        self._queue.append(Followed(dict(record), self._missed))
        self._missed = 0
        self._changed.set()

    def end(self) -> None:
        """The journal is closed: what is queued is still read, then the following ends."""
        self._is_ended = True
        self._changed.set()

    async def next(self) -> Followed | None:
        """Return the next record, None at the end."""
        while not self._queue:
            if self._is_ended:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._queue.popleft()

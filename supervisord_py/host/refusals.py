"""Writes refused, impossible and unintelligible calls to the journal, and keeps a peer from filling it with them.

Every refusal is a record, as every command is. But any user that may open the socket can be refused ten thousand
times a second, and the journal drops its oldest segments: unlimited, that would wipe out what others did. So each
subject (a unit, a key, else a uid) has a bucket of records; what does not fit is counted, and the count follows in one
record as soon as the bucket holds one again.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from supervisord_py.host.facade import Peer
from supervisord_py.model.names import NAME_MAX, is_unit_name
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.store.redact import redact_text

SUBJECTS_MAX = 1024
"""Buckets kept; beyond that the one unused longest is forgotten (with what it counted written first)."""

UNITS_MAX = 100
"""Names in a record: a call may hold thousands, and what a peer wrote for a unit may be anything."""

TEXT_MAX = 500
"""Characters of a message in a record: parts of it are chosen by the peer."""


class Rate(Struct, frozen=True):
    """At most ``burst`` records at once, and one more every ``interval_s``."""

    burst: int
    interval_s: float


DENIED = Rate(burst=200, interval_s=0.1)
INVALID = Rate(burst=20, interval_s=1.0)


class _Bucket:
    def __init__(self, rate: Rate, now_s: float) -> None:
        self.rate = rate
        self.level = float(rate.burst)
        self.filled_s = now_s
        self.suppressed = 0
        self.last: Record | None = None
        self.timer: asyncio.TimerHandle | None = None

    def take(self, now_s: float) -> bool:
        self.level = min(self.rate.burst, self.level + (now_s - self.filled_s) / self.rate.interval_s)
        self.filled_s = now_s
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def wait_s(self) -> float:
        """Seconds until the bucket holds a record again."""
        return max(0.0, (1 - self.level) * self.rate.interval_s)


class Refusals:
    """The records ``command.denied`` and ``command.invalid``.

    Args:
        note: Writes a record (``Supervisor.note``).
        clock_s: A monotonic clock [s].
    """

    def __init__(
        self, note: Callable[[Record], Awaitable[int | None]], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._note = note
        self._clock_s = clock_s
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()
        self._tasks: set[asyncio.Task[int | None]] = set()

    async def denied(
        self, peer: Peer, verb: str, units: Sequence[str], reason: str, message: str, *, duration_ms: int = 0
    ) -> None:
        """Record that ``peer`` may not do ``verb``; ``message`` is what it was told."""
        fields = who_fields(peer) | {
            "verb": verb,
            "units": [unit[:NAME_MAX] for unit in units[:UNITS_MAX]],
            "reason": redact_text(reason)[:TEXT_MAX],
            "result": "NotPermitted",
            "duration_ms": duration_ms,
            "message": message[:TEXT_MAX],
        }
        unit = units[0] if len(units) == 1 and is_unit_name(units[0]) else None
        await self._write(peer, Record("command.denied", Severity.WARNING, unit, fields=fields), DENIED)

    async def refused(self, peer: Peer, verb: str, units: Sequence[str], reason: str, error: str, message: str) -> None:
        """Record a command that ``peer`` may give and that cannot be carried out: why is in ``error``."""
        fields = who_fields(peer) | {
            "verb": verb,
            "units": [unit[:NAME_MAX] for unit in units[:UNITS_MAX]],
            "reason": redact_text(reason)[:TEXT_MAX],
            "result": error,
            "duration_ms": 0,
            "message": redact_text(message)[:TEXT_MAX],
        }
        await self._write(peer, Record("command", Severity.WARNING, fields=fields), DENIED)

    async def invalid(self, peer: Peer, method: str, message: str) -> None:
        """Record that a call could not be understood; ``method`` is empty when not even that was readable."""
        fields = who_fields(peer) | {
            "method": method[:TEXT_MAX],
            "result": "invalid",
            "message": redact_text(message)[:TEXT_MAX],
        }
        await self._write(peer, Record("command.invalid", Severity.WARNING, fields=fields), INVALID)

    async def close(self) -> None:
        """Write what is still only counted."""
        for bucket in self._buckets.values():
            if bucket.timer is not None:
                bucket.timer.cancel()
            self._write_suppressed(bucket)
        self._buckets.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _write(self, peer: Peer, record: Record, rate: Rate) -> None:
        subject = f"unit {peer.subject}" if peer.unit is not None else f"uid {peer.uid}"
        if peer.remote is not None:
            subject = f"key {peer.remote.name}"
        bucket = self._bucket((record.event, subject), rate)
        if not bucket.take(self._clock_s()):
            bucket.suppressed += 1
            bucket.last = record
            if bucket.timer is None:
                loop = asyncio.get_running_loop()
                bucket.timer = loop.call_later(bucket.wait_s(), self._timer_fired, bucket)
            return
        await self._note(record)

    def _bucket(self, key: tuple[str, str], rate: Rate) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(rate, self._clock_s())
            if len(self._buckets) > SUBJECTS_MAX:
                _, oldest = self._buckets.popitem(last=False)
                if oldest.timer is not None:
                    oldest.timer.cancel()
                self._write_suppressed(oldest)
        self._buckets.move_to_end(key)
        return bucket

    def _timer_fired(self, bucket: _Bucket) -> None:
        bucket.timer = None
        if bucket.take(self._clock_s()):
            self._write_suppressed(bucket)
        elif bucket.suppressed:
            bucket.timer = asyncio.get_running_loop().call_later(bucket.wait_s(), self._timer_fired, bucket)

    def _write_suppressed(self, bucket: _Bucket) -> None:
        if bucket.last is None:
            return
        count, last = bucket.suppressed, bucket.last
        bucket.suppressed, bucket.last = 0, None
        record = Record(last.event, last.severity, last.unit, fields={**last.fields, "suppressed": count})
        task = asyncio.ensure_future(self._note(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def who_fields(peer: Peer) -> dict[str, Any]:
    """Return what records of commands say of the peer; of a key that comes from afar nothing but its name and where."""
    if peer.remote is not None:
        nobody = dict.fromkeys(("uid", "gid", "pid", "login_uid", "peer_command", "peer_unit"))
        return nobody | {"key": peer.remote.name or None, "address": peer.remote.address}
    return {
        "uid": peer.uid,
        "gid": peer.gid,
        "pid": peer.pid,
        "login_uid": peer.login_uid,
        "peer_command": redact_text(peer.command),
        "peer_unit": None if peer.claimed else peer.unit,
    }

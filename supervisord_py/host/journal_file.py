"""The journal as the manager sees it: numbers, custody, durability, loss, queries and followers, all on the loop's
thread.

Theory of operation
-------------------
``encode`` gives records their numbers and makes their lines; the driver puts the lines into the keeper's custody and
then hands them to ``append``. The writer's thread reports what the disk took: ``journalled`` (custody may forget it)
and ``durable`` (a power failure may come).

A disk that is full, read-only or broken never stops supervision. Lines wait in memory, at most ``BUFFER_BYTES_MAX``
of them; then the journal is *losing*: ``next_seq`` is 0, ``encode`` counts records instead of numbering them, so no
number is used up and the chain has no hole. When the disk is back the buffer is written first, and then a
``journal.gap`` record says how much was lost, from when to when, and why. The count itself is in custody
(``take_changes``), so a manager that dies meanwhile does not hide the loss.

Laws: numbers ascend without a hole; nothing is lost silently; ``wait_durable`` is True only after a sync that covers
the number; nothing here waits for the disk but ``open`` and the awaiting methods.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from supervisord_py.core.events import Now
from supervisord_py.host.facade import Followed, JournalStats, RecordFilter, Verification
from supervisord_py.host.journal_disk import Disk, JournalBusyError, RealDisk
from supervisord_py.host.journal_follow import Follower
from supervisord_py.host.journal_log import Line, Rotation, SegmentLog
from supervisord_py.host.journal_reader import Counts, JournalReader, JournalUnavailableError, verify_directory
from supervisord_py.host.journal_recovery import Plan, Recovery, plan_recovery
from supervisord_py.host.journal_writer import JournalWriter, Status
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings
from supervisord_py.model.states import Severity
from supervisord_py.model.values import format_size
from supervisord_py.store.query import Query
from supervisord_py.store.record import Chain, Stamp, format_time, pack, shape, unpack
from supervisord_py.store.ring import Ring, merge
from supervisord_py.store.segment import After

BUFFER_BYTES_MAX = 4 * 1024 * 1024
SYNC_TIMEOUT_S = 10.0
"""A disk that takes longer is said not to be durable; the command itself is not held up any longer."""

CLOSE_TIMEOUT_S = 10.0
OPEN_AGAIN_FIRST_S = 0.5
OPEN_AGAIN_LAST_S = 30.0
READERS = 2
OWN_MAX = 100
LOSS_KEY = "host/journal/loss"
GIVEN_UP_KEY = "host/journal/given-up"

_T = TypeVar("_T")


class Loss(Struct, frozen=True):
    """So many records were lost between two times, and why."""

    lost: int
    reason: str
    first: str
    last: str


class Journal:
    """The journal of one supervisor.

    Args:
        directory: The folder of the segments; made when it is missing.
        settings: ``[journal]``.
        boot_id: This boot, for ``mono_ns`` to mean something.
        loop: The manager's loop; everything here is called on its thread.
        group_id: The control group, which may read the files; None: nobody but the owner's own group.
        disk: What writes; None: the folder itself.
    """

    def __init__(
        self,
        directory: Path,
        settings: JournalSettings,
        *,
        boot_id: str,
        loop: asyncio.AbstractEventLoop,
        group_id: int | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.on_written: list[Callable[[], object]] = []
        self.on_rotated: list[Callable[[], object]] = []
        self.lost = 0
        self._directory = directory
        self._settings = settings
        self._boot_id = boot_id
        self._loop = loop
        self._disk: Disk = disk or RealDisk(directory, group_id)
        self._writer: JournalWriter | None = None
        self._chain = Chain()
        self._journalled = 0
        self._durable = 0
        self._failing: str | None = None
        self._is_full = False
        self._is_slow = False
        self._is_losing = True
        self._is_closed = False
        self._loss: Loss | None = None
        self._is_loss_changed = False
        self._given_up: str | None = None
        self._is_given_up_changed = False
        self._pending: deque[Line] = deque()
        self._pending_bytes = 0
        self._published = 0
        self._waiters: dict[asyncio.Future[bool], int] = {}
        self._followers: set[Follower] = set()
        self._ring = Ring(settings.keep_last)
        self._note: Callable[[Sequence[Record]], object] | None = None
        self._own: list[Record] = []
        self._reader = JournalReader(directory, lambda: self._is_closed)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="journal-reader")
        self._opening: asyncio.Task[None] | None = None

    # Life

    def open(
        self, pending: Sequence[tuple[int, str]], loss: str | None = None, given_up: str | None = None
    ) -> Recovery:
        """Find the end of the chain, write what only the keeper's custody has, and begin to take records.

        A folder that cannot be read does not keep the supervisor from starting: records are then counted as lost, and
        it is tried again.

        Args:
            pending: The keeper's unwritten lines.
            loss: What ``take_changes`` last put under ``LOSS_KEY``.
            given_up: The same of ``GIVEN_UP_KEY``.

        Returns:
            What was found: a torn tail, a damaged segment, missing lines.

        Raises:
            JournalBusyError: Another process writes this journal.
        """
        if loss is not None:
            self._loss = msgspec.json.decode(loss, type=Loss)
            self.lost = self._loss.lost
        try:
            self._disk.open()
            self._given_up = None if given_up is None else msgspec.json.decode(given_up, type=str)
            plan = plan_recovery(self._disk, pending, self._given_up)
        except OSError as error:
            self._failing = f"cannot open the journal: {error.strerror or error}"
            self._opening = self._loop.create_task(self._open_again(pending))
            return Recovery(next_seq=0, problem=self._failing)
        self._begin(plan)
        return plan.recovery

    def attach(self, note: Callable[[Sequence[Record]], object]) -> None:
        """Say how the journal's own records (``journal.rotated``, ``journal.gap``) get their custody: like all others.

        ``note`` must encode, commit and append them at once, before it returns. Records that wait are given to it
        right away.
        """
        self._note = note
        self._tell_own()

    def apply(self, settings: JournalSettings) -> None:
        """Take over other settings (``daemon-reload``)."""
        self._settings = settings
        self._ring.keep_last = settings.keep_last
        if self._writer is not None:
            self._writer.apply(settings)

    async def close(self) -> None:
        """Write and sync what is left, end all followers and the threads."""
        if self._is_closed:
            return
        self._is_closed = self._is_losing = True
        if self._opening is not None:
            self._opening.cancel()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close, CLOSE_TIMEOUT_S)
            # What the writer's last pass reported stands in the loop's queue before this.
            await asyncio.sleep(0)
        for follower in self._followers:
            follower.end()
        self._settle_waiters(is_failed=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._disk.close()

    def rotate(self) -> None:
        """Begin a new segment now."""
        if self._writer is not None:
            self._writer.rotate()

    # Where it stands

    @property
    def next_seq(self) -> int:
        """The number of the next record; 0 while records are being lost."""
        return 0 if self._is_losing else self._chain.next_seq

    @property
    def journalled(self) -> int:
        """The highest number that is in the file."""
        return self._journalled

    @property
    def durable(self) -> int:
        """The highest number that survives a power failure."""
        return self._durable

    @property
    def degraded(self) -> str | None:
        """What is wrong with the journal, in words for people; None when nothing is."""
        if self._is_closed:
            return "the journal is closed"
        if self._failing is not None:
            return f"{self._failing}; {self._consequence()}"
        if self._is_slow:
            return f"the journal's disk took more than {SYNC_TIMEOUT_S:.0f}s to answer; check it"
        if self._is_losing:
            return f"the journal's disk is too slow; {self._consequence()}"
        if self._is_full:
            reserve = format_size(self._settings.reserve)
            return (
                f"the disk is full, or nearly: the journal's reserve of {reserve} is in use or has no room; make room"
            )
        return None

    @property
    def failing(self) -> str | None:
        """Why a record that is decided now would not reach the file, None when it would."""
        return self.degraded if self._failing is not None or self._is_losing or self._is_closed else None

    @property
    def refusing(self) -> bool:
        """Say whether commands are to be refused because the disk is full (``when-full = "refuse-commands"``)."""
        return self._settings.when_full == "refuse-commands" and (self._is_full or self._is_losing)

    def take_changes(self) -> dict[str, str | None]:
        """Return what custody must know since the last call: goes into the state of the next commit."""
        changes: dict[str, str | None] = {}
        if self._is_loss_changed:
            changes[LOSS_KEY] = None if self._loss is None else msgspec.json.encode(self._loss).decode()
        if self._is_given_up_changed:
            changes[GIVEN_UP_KEY] = None if self._given_up is None else msgspec.json.encode(self._given_up).decode()
        self._is_loss_changed = self._is_given_up_changed = False
        return changes

    # Writing

    def encode(self, records: Sequence[Record], now: Now) -> list[tuple[int, str]]:
        """Number records and make their lines, in order; none while records are being lost."""
        if not records:
            return []
        if self._is_losing:
            self._count_lost(len(records), format_time(now.wall_ns))
            return []
        stamp = Stamp(now.wall_ns, now.mono_ns, self._boot_id)
        chain, lines = self._chain, list[tuple[int, str]]()
        for record in records:
            line, following = pack(record, stamp, chain, payload_max=self._settings.payload_max)
            lines.append((chain.next_seq, line[:-1].decode()))
            chain = following
        self._chain = chain
        return lines

    def append(self, lines: Sequence[tuple[int, str]]) -> None:
        """Hand lines of ``encode`` to the writer; they must be in custody."""
        if not lines or self._writer is None:
            return
        ready = [Line(seq, text.encode() + b"\n") for seq, text in lines]
        self._wait_for_disk(ready)
        self._writer.append(ready)
        if self._failing is not None:
            self._publish(ready[-1].seq)
        if self._pending_bytes > BUFFER_BYTES_MAX:
            self._is_losing = True

    def beat(self, record: Record, now: Now) -> None:
        """Keep a record without a number (``unit.heartbeat``) in the ring, and show it to followers."""
        stamp = Stamp(now.wall_ns, now.mono_ns, self._boot_id)
        shaped = shape(record, stamp, None, payload_max=self._settings.payload_max)
        self._ring.add(shaped, self._chain.next_seq - 1)
        for follower in self._followers:
            follower.offer(shaped, None)

    async def wait_durable(self, seq: int) -> bool:
        """Return when the record is on stable storage.

        Returns:
            False when that cannot be promised: the disk fails or does not answer, the number was never given, or
            ``sync = "never"``.
        """
        if 0 < seq <= self._durable:
            return True
        if not self._can_be_durable(seq):
            return False
        assert self._writer is not None
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiters[waiter] = seq
        self._writer.sync()
        try:
            return await asyncio.wait_for(waiter, SYNC_TIMEOUT_S)
        except TimeoutError:
            self._is_slow = True
            return False
        finally:
            self._waiters.pop(waiter, None)

    # Reading

    async def query(self, wanted: RecordFilter, last: int | None) -> list[dict[str, Any]]:
        """Return the records that match, oldest first; only the last ``last`` of them unless that is None.

        Raises:
            BadFilterError: The filter cannot be used.
            JournalUnavailableError: The files cannot be read, or the journal is closed.
        """
        query = compile_filter(wanted)
        return await self._read(query, last, self._ring.matching(query))

    async def stream(self, wanted: RecordFilter) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield all records that match, in batches as they are read: for histories that are larger than memory."""
        query = compile_filter(wanted)
        records = self._reader.all(query, upto=self._journalled)
        while batch := await self._in_thread(partial(_take, records, 1000)):
            yield batch

    async def oldest(self) -> int:
        """Return the number that what is kept begins with: retention drops what was before."""
        return await self._in_thread(self._reader.oldest)

    async def follow(self, wanted: RecordFilter, last: int | None) -> AsyncGenerator[Followed, None]:
        """Yield as ``query``, then every new record that matches as soon as it is written, until the journal is
        closed.

        Whoever goes on behind a number (``after``, without ``last``) is told, with the first record, of what is no
        longer kept.
        """
        query = compile_filter(wanted)
        follower = Follower(query, self._published)
        upto, beats = self._published, self._ring.matching(query)
        self._followers.add(follower)
        try:
            found = await self._read(query, last, beats, upto)
            gone = None
            if last is None and wanted.after is not None and self._published > wanted.after:
                # Behind the reading: what retention has dropped meanwhile may be missing, too.
                oldest = await self.oldest()
                gone = oldest - 1 if oldest - 1 > wanted.after else None
            for record in found:
                yield Followed(record, gone=gone)
                gone = None
            if self._is_closed:
                follower.end()
            while (followed := await follower.next()) is not None:
                yield followed if gone is None else msgspec.structs.replace(followed, gone=gone)
                gone = None
        finally:
            self._followers.discard(follower)

    async def verify(self) -> Verification:
        """Check the chain of all that is kept."""
        verdict = await self._in_thread(partial(verify_directory, self._directory, written=self._journalled))
        return Verification(
            ok=verdict.ok,
            records=verdict.records,
            first_seq=verdict.first_seq,
            last_seq=verdict.last_seq,
            bad_seq=verdict.bad_seq,
            file=verdict.file,
            problem=verdict.problem,
        )

    async def stats(self) -> JournalStats:
        """Count what is kept; ``lost`` counts records since this manager's start (and a loss not yet in a gap
        record)."""
        counts: Counts = await self._in_thread(self._reader.count)
        return JournalStats(
            records=counts.records,
            bytes=counts.bytes,
            segments=counts.segments,
            first_seq=counts.first_seq,
            last_seq=counts.last_seq,
            oldest=counts.oldest,
            lost=self.lost,
            degraded=self.degraded,
            by_event=counts.by_event,
            by_unit=counts.by_unit,
        )

    async def _read(
        self, query: Query, last: int | None, beats: list[tuple[int, dict[str, Any]]], upto: int | None = None
    ) -> list[dict[str, Any]]:
        if last is not None and last <= 0:
            return []
        journalled = self._journalled if upto is None else min(upto, self._journalled)
        # What the disk has not taken is known all the same: at night, with a full disk, it is what people look for.
        unwritten = [line for line in self._pending if line.seq > journalled and (upto is None or line.seq <= upto)]
        if last is None:
            records = await self._in_thread(lambda: list(self._reader.all(query, upto=journalled)))
        else:
            records = await self._in_thread(partial(self._reader.last, query, last, upto=journalled))
        for line in unwritten:
            records += query.select(line.data)
        merged = merge(records, beats)
        return merged if last is None else merged[-last:]

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        if self._is_closed:
            raise JournalUnavailableError("the journal is closed")
        try:
            return await self._loop.run_in_executor(self._threads, function)
        except OSError as error:
            raise JournalUnavailableError(f"cannot read the journal: {error}") from error

    # Inside

    def _begin(self, plan: Plan) -> None:
        self._chain = plan.chain
        self._journalled = self._published = plan.written
        self._is_losing = False
        self._failing = None
        log = SegmentLog(
            self._disk, self._settings, boot=self._boot_id, at=plan.at, start=plan.start, written=plan.written
        )
        self._writer = JournalWriter(log, self._report)
        if plan.missing:
            self._wait_for_disk([line for line in plan.missing if line.seq > plan.written])
            self._writer.append(plan.missing)
        self._writer.start()
        self._tell_gap()

    async def _open_again(self, pending: Sequence[tuple[int, str]]) -> None:
        delay_s = OPEN_AGAIN_FIRST_S
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, OPEN_AGAIN_LAST_S)
            try:
                plan = await self._in_thread(partial(_open_and_plan, self._disk, pending, self._given_up))
            except (OSError, JournalBusyError) as error:
                self._failing = f"cannot open the journal: {error}"
                continue
            self._begin(plan)
            return

    def _report(self, status: Status) -> None:
        """Called in the writer's thread."""
        try:
            self._loop.call_soon_threadsafe(self._on_status, status)
        except RuntimeError:
            # The loop is closed: the manager is at its end, and the keeper still has what it was not told about.
            pass

    def _on_status(self, status: Status) -> None:
        self._failing, self._is_full, self._is_slow = status.failing, status.is_full, False
        self._durable = max(self._durable, status.durable)
        if status.given_up != self._given_up:
            self._given_up, self._is_given_up_changed = status.given_up, True
        self._publish(status.written)
        has_advanced = status.written > self._journalled
        self._journalled = max(self._journalled, status.written)
        while self._pending and self._pending[0].seq <= self._journalled:
            self._pending_bytes -= len(self._pending.popleft().data)
        if self._failing is not None:
            self._publish(self._chain.next_seq - 1)
        self._settle_waiters(is_failed=self._failing is not None)
        is_drained = self._failing is None and self._pending_bytes <= BUFFER_BYTES_MAX // 2
        if self._is_losing and is_drained and not self._is_closed:
            self._is_losing = False
            self._tell_gap()
        for rotation in status.rotations:
            self._own.append(_rotated(rotation))
            self._tell_own()
            for callback in self.on_rotated:
                callback()
        if has_advanced:
            for callback in self.on_written:
                callback()

    def _tell_own(self) -> None:
        """Write the journal's own records, once there is a way and a place for them."""
        if self._note is None or self._is_losing:
            del self._own[OWN_MAX:]
            return
        own, self._own = self._own, []
        if own:
            self._note(own)

    def _tell_gap(self) -> None:
        """Say what was lost, before any other record; the loss leaves custody in the same commit."""
        loss, self._loss = self._loss, None
        if loss is not None:
            self._is_loss_changed = True
            fields = {"lost": loss.lost, "reason": loss.reason, "first_lost": loss.first, "last_lost": loss.last}
            self._own.insert(0, Record("journal.gap", Severity.ERROR, fields=fields))
        self._tell_own()

    def _count_lost(self, count: int, ts: str) -> None:
        self.lost += count
        self._is_loss_changed = True
        if self._loss is None:
            self._loss = Loss(count, self._failing or "the disk is too slow", ts, ts)
        else:
            self._loss = msgspec.structs.replace(self._loss, lost=self._loss.lost + count, last=ts)

    def _wait_for_disk(self, lines: Sequence[Line]) -> None:
        self._pending.extend(lines)
        self._pending_bytes += sum(len(line.data) for line in lines)

    def _publish(self, upto: int) -> None:
        """Show followers what has not been shown up to this number: what is written, or what waits for a failing
        disk."""
        if upto <= self._published:
            return
        if self._followers:
            for line in self._pending:
                if self._published < line.seq <= upto and (record := unpack(line.data)) is not None:
                    for follower in self._followers:
                        follower.offer(record, line.data[:-1])
        self._published = upto

    def _can_be_durable(self, seq: int) -> bool:
        return (
            0 < seq < self._chain.next_seq
            and self._writer is not None
            and self._failing is None
            and not self._is_closed
            and self._settings.sync != "never"
        )

    def _settle_waiters(self, *, is_failed: bool) -> None:
        for waiter, seq in list(self._waiters.items()):
            if not waiter.done() and (is_failed or seq <= self._durable):
                waiter.set_result(seq <= self._durable)

    def _consequence(self) -> str:
        if self._is_losing:
            lost = 0 if self._loss is None else self._loss.lost
            return f"{lost} records are lost so far, supervision goes on; make room or repair the disk"
        return f"{len(self._pending)} records wait in memory, supervision goes on; make room or repair the disk"


def compile_filter(wanted: RecordFilter) -> Query:
    """Make a query of what a client asked for. Raises: BadFilterError."""
    return Query(**msgspec.structs.asdict(wanted))


def _open_and_plan(disk: Disk, pending: Sequence[tuple[int, str]], given_up: str | None) -> Plan:
    disk.open()
    return plan_recovery(disk, pending, given_up)


def _rotated(rotation: Rotation) -> Record:
    is_planned = rotation.after is After.ROTATION
    fields: dict[str, Any] = {
        "segment": rotation.segment,
        "after": rotation.after.value,
        "set_aside": rotation.set_aside,
        "dropped": list(rotation.dropped),
    }
    return Record("journal.rotated", Severity.INFO if is_planned else Severity.ERROR, fields=fields)


def _take(records: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(islice(records, count))

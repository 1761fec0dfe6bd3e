"""The journal as the manager uses it, on a real folder: numbers, custody, durability, restarts, queries and
followers."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.core.events import Now
from supervisord_py.host.facade import Followed, RecordFilter
from supervisord_py.host.journal_disk import JournalBusyError
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.journal_follow import QUEUE_MAX
from supervisord_py.host.journal_reader import JournalUnavailableError, verify_directory
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings
from supervisord_py.model.states import Severity
from supervisord_py.store.query import BadFilterError
from supervisord_py.store.segment import format_name
from tests.faults.journal_fake_disk import FakeDisk

SETTINGS = JournalSettings(reserve=0, max_bytes=1 << 20)
DEADLINE_S = 20


class Keeper:
    """Custody and the driver's part, in the driver's order: encode, commit, append."""

    def __init__(self) -> None:
        self.lines: dict[int, str] = {}
        self.state: dict[str, str | None] = {}
        self.journal: Journal | None = None

    def note(self, records: Sequence[Record]) -> list[int]:
        assert self.journal is not None
        lines = self.journal.encode(records, now(self.journal))
        self.state |= self.journal.take_changes()
        self.lines |= dict(lines)
        self.journal.append(lines)
        return [seq for seq, _ in lines]

    def forget(self) -> None:
        assert self.journal is not None
        self.lines = {seq: text for seq, text in self.lines.items() if seq > self.journal.journalled}


def now(journal: Journal, wall_ns: int | None = None) -> Now:
    return Now(time.monotonic_ns(), time.monotonic_ns(), wall_ns or time.time_ns(), journal.next_seq)


def open_journal(
    directory: Path, keeper: Keeper, settings: JournalSettings = SETTINGS, disk: FakeDisk | None = None
) -> Journal:
    journal = Journal(directory, settings, boot_id="boot", loop=asyncio.get_running_loop(), disk=disk)
    keeper.journal = journal
    journal.on_written.append(keeper.forget)
    journal.open(sorted(keeper.lines.items()), keeper.state.get("host/journal/loss"))
    journal.attach(keeper.note)
    return journal


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool], journal: Journal) -> None:
    """Wait for a condition that the journal's reports change."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
        journal.append([])


def ready(number: int, unit: str = "web") -> list[Record]:
    return [Record("unit.ready", unit=unit) for _ in range(number)]


def test_records_are_numbered_written_and_durable(tmp_path: Path) -> None:
    """Numbers ascend from 1, a sync makes them durable, and custody is told what it may forget."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        assert journal.next_seq == 1
        assert keeper.note(ready(3)) == [1, 2, 3]
        assert await journal.wait_durable(3)
        assert (journal.journalled, journal.durable, journal.next_seq, journal.degraded) == (3, 3, 4, None)
        assert keeper.lines == {}
        await journal.close()
        assert journal.next_seq == 0
        assert verify_directory(tmp_path / "journal", written=3).ok

    run(body)


def test_a_restarted_manager_goes_on_where_the_chain_ends(tmp_path: Path) -> None:
    """The next manager continues numbers and hashes in the same segment."""

    async def body() -> None:
        keeper = Keeper()
        for first in (1, 3, 5):
            journal = open_journal(tmp_path / "journal", keeper)
            assert keeper.note(ready(2)) == [first, first + 1]
            await journal.close()
        assert verify_directory(tmp_path / "journal", written=6).ok
        assert len(list((tmp_path / "journal").glob("journal-*"))) == 1

    run(body)


def test_lines_that_only_custody_has_are_written_by_the_next_manager(tmp_path: Path) -> None:
    """A manager that was killed before its writer wrote loses nothing: custody hands the lines over, and known ones
    are not doubled."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(2))
        assert await journal.wait_durable(2)
        lines = journal.encode(ready(3), now(journal))
        await journal.close()
        text = (tmp_path / "journal" / format_name(1)).read_text().splitlines()[2]
        again = Journal(tmp_path / "journal", SETTINGS, boot_id="boot", loop=asyncio.get_running_loop())
        recovery = again.open([(2, text), *lines])
        assert (recovery.written, recovery.next_seq, recovery.set_aside) == (3, 6, None)
        assert await again.wait_durable(5)
        await again.close()
        assert verify_directory(tmp_path / "journal", written=5).ok

    run(body)


def test_a_torn_tail_is_cut(tmp_path: Path) -> None:
    """Half a line at the end is cut off and told; the next record stands where it was."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(2))
        await journal.close()
        path = tmp_path / "journal" / format_name(1)
        path.write_bytes(path.read_bytes()[:-7])
        again = Journal(tmp_path / "journal", SETTINGS, boot_id="boot", loop=asyncio.get_running_loop())
        recovery = again.open([])
        assert (recovery.cut_file, recovery.next_seq) == (path.name, 2)
        assert recovery.cut_bytes > 100
        again.append(again.encode(ready(1), now(again)))
        await again.close()
        assert verify_directory(tmp_path / "journal", written=2).ok

    run(body)


def test_a_damaged_segment_is_set_aside_and_the_chain_goes_on(tmp_path: Path) -> None:
    """A changed byte costs its record; the file is kept as it is under another name, and verify names the place for
    ever."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(4))
        await journal.close()
        path = tmp_path / "journal" / format_name(1)
        damaged = path.read_bytes().replace(b'{"seq":2,', b'{"seq":x,')
        path.write_bytes(damaged)
        again = open_journal(tmp_path / "journal", keeper)
        assert keeper.note(ready(1)) == [5]
        assert await again.wait_durable(5)
        aside = path.with_name(path.name + ".damaged")
        assert aside.read_bytes() == damaged
        found = await again.query(RecordFilter(), None)
        assert [record["seq"] for record in found] == [1, 3, 4, 5, 6]
        assert (found[-1]["event"], found[-1]["after"]) == ("journal.rotated", "damage")
        assert found[-1]["severity"] == "error" and found[-1]["set_aside"] == aside.name
        verification = await again.verify()
        assert (verification.ok, verification.bad_seq, verification.file) == (False, 2, aside.name)
        assert verification.problem == "line 3: not a record"
        await again.close()

    run(body)


def test_an_emptied_folder_is_told_and_gone_on_from(tmp_path: Path) -> None:
    """When the files are gone but custody is ahead of them, numbers go on from custody and nothing pretends to begin
    at 1."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(2))
        assert await journal.wait_durable(2)
        lines = journal.encode(ready(2), now(journal))
        await journal.close()
        (tmp_path / "journal" / format_name(1)).unlink()
        keeper.lines = dict(lines)
        again = open_journal(tmp_path / "journal", keeper)
        assert again.next_seq == 5
        assert await again.wait_durable(4)
        await until(lambda: again.journalled == 5, again)
        assert [record["seq"] for record in await again.query(RecordFilter(), None)] == [3, 4, 5]
        assert (await again.verify()).ok
        await again.close()

    run(body)


def test_rotation_is_recorded_and_hooked(tmp_path: Path) -> None:
    """Each rotation is a record with what was dropped, and the driver's hook is called."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        rotated: list[int] = []
        journal.on_rotated.append(lambda: rotated.append(journal.journalled))
        keeper.note(ready(2))
        assert await journal.wait_durable(2)
        journal.rotate()
        await until(lambda: journal.journalled == 3, journal)
        (record,) = await journal.query(RecordFilter(events=("journal.rotated",)), None)
        assert (record["segment"], record["after"], record["dropped"]) == (format_name(3), "rotation", [])
        assert len(rotated) == 1
        await journal.close()

    run(body)


def test_sync_never_promises_nothing(tmp_path: Path) -> None:
    """With sync = never no reply says durable, and records are written all the same."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper, JournalSettings(reserve=0, sync="never"))
        keeper.note(ready(1))
        assert not await journal.wait_durable(1)
        await until(lambda: journal.journalled == 1, journal)
        assert journal.durable == 0
        await journal.close()

    run(body)


def test_sync_always_makes_every_record_durable(tmp_path: Path) -> None:
    """With sync = always a record is durable although nobody waits for it."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper, JournalSettings(reserve=0, sync="always"))
        keeper.note(ready(1))
        await until(lambda: journal.durable == 1, journal)
        await journal.close()

    run(body)


def test_a_number_that_was_never_given_is_never_durable(tmp_path: Path) -> None:
    """Waiting for 0, or for a number of the future, answers at once instead of for ever."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        assert not await journal.wait_durable(0)
        assert not await journal.wait_durable(7)
        await journal.close()

    run(body)


def test_many_waiters_share_one_sync(tmp_path: Path) -> None:
    """Two hundred replies at once cost a few syncs, not two hundred."""

    async def body() -> None:
        keeper, disk = Keeper(), FakeDisk()
        syncs: list[str] = []
        disk.on_step = lambda operation, name: syncs.append(name) if operation == "sync" else None
        journal = open_journal(tmp_path / "journal", keeper, disk=disk)
        keeper.note(ready(200))
        assert all(await asyncio.gather(*(journal.wait_durable(seq) for seq in range(1, 201))))
        assert len(syncs) <= 5
        await journal.close()

    run(body)


def test_settings_can_change_while_it_runs(tmp_path: Path) -> None:
    """daemon-reload takes effect: payload-max at once, sync with the next pass."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper, JournalSettings(reserve=0, sync="never"))
        journal.apply(JournalSettings(reserve=0, sync="always", payload_max=4))
        keeper.note([Record("unit.message", fields={"text": "abcdefgh"})])
        await until(lambda: journal.durable == 1, journal)
        (record,) = await journal.query(RecordFilter(), None)
        assert (record["text"], record["truncated"]) == ("abcd", {"text": 8})
        await journal.close()

    run(body)


def test_two_managers_never_write_one_journal(tmp_path: Path) -> None:
    """The second one is refused with words, the first one is not disturbed."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        second = Journal(tmp_path / "journal", SETTINGS, boot_id="boot", loop=asyncio.get_running_loop())
        with pytest.raises(JournalBusyError):
            second.open([])
        await second.close()
        keeper.note(ready(1))
        assert await journal.wait_durable(1)
        await journal.close()

    run(body)


def test_queries_find_the_last_ones_over_segments(tmp_path: Path) -> None:
    """The last N of a filter are found from the end, across segments, oldest first in the answer."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        rotations: list[int] = []
        journal.on_rotated.append(lambda: rotations.append(1))
        for number in range(30):
            keeper.note([Record("unit.ready", unit=f"u{number % 3}"), Record("unit.failed", Severity.ERROR, "bad")])
            if number % 10 == 9:
                assert await journal.wait_durable(journal.next_seq - 1)
                events = len(rotations) + 1
                journal.rotate()
                await until(lambda events=events: len(rotations) == events, journal)  # type: ignore[misc]
        last = await journal.query(RecordFilter(units=("u1",)), 15)
        everything = await journal.query(RecordFilter(units=("u1",)), None)
        assert len(everything) == 10 and last == everything
        assert [record["seq"] for record in last] == sorted(record["seq"] for record in last)
        assert await journal.query(RecordFilter(units=("u1",)), 3) == everything[-3:]
        assert await journal.query(RecordFilter(), 0) == []
        middle = everything[5]["seq"]
        assert await journal.query(RecordFilter(units=("u1",), after=middle), None) == everything[6:]
        with pytest.raises(BadFilterError):
            await journal.query(RecordFilter(grep="(a+)+"), None)
        streamed = [record async for batch in journal.stream(RecordFilter(severity="error")) for record in batch]
        assert len(streamed) == 30
        await journal.close()
        with pytest.raises(JournalUnavailableError):
            await journal.query(RecordFilter(), 1)

    run(body)


def test_times_prune_segments_even_when_the_clock_was_set_back(tmp_path: Path) -> None:
    """Records are found by their time wherever a wrong clock put them."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        day_ns = 86_400 * 10**9
        for day in (5, 1, 3):
            journal.append(journal.encode(ready(2), now(journal, day * day_ns)))
            assert await journal.wait_durable(journal.next_seq - 1)
            journal.rotate()
            await until(lambda: journal.journalled == journal.next_seq - 1 and journal.durable > 0, journal)
        of_day = RecordFilter(since="1970-01-04T00:00:00Z", until="1970-01-05T00:00:00Z", units=("web",))
        assert [record["ts"][:10] for record in await journal.query(of_day, None)] == ["1970-01-04"] * 2
        of_day = RecordFilter(since="1970-01-06T00:00:00Z", until="1970-01-07T00:00:00Z")
        assert [record["ts"][:10] for record in await journal.query(of_day, 5)] == ["1970-01-06"] * 2
        await journal.close()

    run(body)


def test_stats_count_what_is_kept(tmp_path: Path) -> None:
    """Records, bytes, segments, the first and the last, by event and by unit."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        empty = await journal.stats()
        assert (empty.records, empty.first_seq, empty.last_seq, empty.oldest) == (0, None, None, None)
        keeper.note([*ready(3), *ready(1, "db"), Record("daemon.started")])
        assert await journal.wait_durable(5)
        stats = await journal.stats()
        assert (stats.records, stats.segments, stats.first_seq, stats.last_seq) == (5, 1, 1, 5)
        assert stats.by_event == {"daemon.started": 1, "unit.ready": 4}
        assert stats.by_unit == {"db": 1, "web": 3}
        assert stats.bytes == (tmp_path / "journal" / format_name(1)).stat().st_size
        assert (stats.lost, stats.degraded) == (0, None)
        await journal.close()

    run(body)


async def take(following: AsyncIterator[Followed], number: int) -> list[Followed]:
    return [await anext(following) for _ in range(number)]


def test_followers_get_history_and_then_every_new_record_once(tmp_path: Path) -> None:
    """No record between the history and the live part is missed or doubled, and only what matches comes."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(5))
        assert await journal.wait_durable(5)
        following = journal.follow(RecordFilter(units=("web",)), 2)
        first = asyncio.create_task(take(following, 1))
        await asyncio.sleep(0)
        keeper.note([*ready(1, "db"), *ready(4)])
        (oldest,) = await first
        rest = await take(following, 5 if oldest.record["seq"] == 4 else 4)
        seqs = [oldest.record["seq"], *(followed.record["seq"] for followed in rest)]
        assert seqs == sorted(set(seqs)) and seqs[-4:] == [7, 8, 9, 10]
        assert {followed.dropped for followed in rest} == {0}
        await following.aclose()
        keeper.note(ready(1))
        assert await journal.wait_durable(11)
        await journal.close()

    run(body)


def test_a_slow_follower_is_told_what_it_missed(tmp_path: Path) -> None:
    """Its queue is bounded; the next record that it gets carries the number of those it did not."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper, JournalSettings(reserve=0))
        following = journal.follow(RecordFilter(), 0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        keeper.note(ready(1))
        assert (await waiting).record["seq"] == 1
        keeper.note(ready(QUEUE_MAX + 7))
        assert await journal.wait_durable(QUEUE_MAX + 8)
        assert (await anext(following)).record["seq"] == 2
        keeper.note(ready(1))
        assert await journal.wait_durable(QUEUE_MAX + 9)
        queued = await take(following, QUEUE_MAX)
        assert queued[-2].record["seq"] == QUEUE_MAX + 1 and queued[-2].dropped == 0
        assert (queued[-1].record["seq"], queued[-1].dropped) == (QUEUE_MAX + 9, 7)
        await following.aclose()
        await journal.close()

    run(body)


def test_following_ends_with_the_journal(tmp_path: Path) -> None:
    """A reader that waits is not left waiting when the supervisor stops."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)

        async def collect() -> list[Any]:
            return [followed async for followed in journal.follow(RecordFilter(), 0)]

        collecting = asyncio.create_task(collect())
        await asyncio.sleep(0)
        keeper.note(ready(2))
        await journal.close()
        assert [followed.record["seq"] for followed in await collecting] == [1, 2]

    run(body)


def test_beats_are_shown_at_their_place_and_never_written(tmp_path: Path) -> None:
    """Beats come to queries and followers with seq null, two a unit, and no file holds one."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(1))
        for number in range(5):
            journal.beat(Record("unit.heartbeat", unit="web", fields={"n": number}), now(journal))
        keeper.note(ready(1))
        assert await journal.wait_durable(2)
        shown = await journal.query(RecordFilter(), 10)
        assert [(record["seq"], record.get("n")) for record in shown] == [(1, None), (None, 3), (None, 4), (2, None)]
        assert b"heartbeat" not in (tmp_path / "journal" / format_name(1)).read_bytes()
        following = journal.follow(RecordFilter(events=("unit.heartbeat",)), 0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        journal.beat(Record("unit.heartbeat", unit="db"), now(journal))
        assert (await waiting).record["unit"] == "db"
        await following.aclose()
        await journal.close()

    run(body)


def test_an_idle_journal_sleeps(tmp_path: Path) -> None:
    """With everything written and synced the writer's thread waits without a time-out."""

    async def body() -> None:
        keeper = Keeper()
        journal = open_journal(tmp_path / "journal", keeper)
        keeper.note(ready(1))
        assert await journal.wait_durable(1)
        writer = journal._writer
        assert writer is not None and writer._timeout_s() is None
        await journal.close()

    run(body)

"""The writing end on a disk that fills up, fails, is tampered with or loses power: nothing is lost silently, nothing
doubled."""

import errno
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from msgspec import structs

from supervisord_py.host.journal_log import Beginning, Line, Point, SegmentLog
from supervisord_py.host.journal_reader import JournalReader, verify_directory
from supervisord_py.host.journal_recovery import plan_recovery
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings
from supervisord_py.store.query import Query
from supervisord_py.store.record import GENESIS, Chain, Stamp, pack
from supervisord_py.store.segment import verify
from tests.faults.journal_fake_disk import FakeDisk

SETTINGS = JournalSettings(max_bytes=1 << 20, reserve=0, max_age_ns=None)
SMALL = JournalSettings(max_bytes=8 * 16 * 1024, reserve=0, max_age_ns=None)


class Source:
    """Makes lines that chain."""

    def __init__(self, chain: Chain | None = None) -> None:
        self.chain = chain or Chain()

    def lines(self, number: int, size: int = 20) -> list[Line]:
        made: list[Line] = []
        for _ in range(number):
            seq = self.chain.next_seq
            record = Record("unit.message", unit="u", fields={"text": "x" * size})
            data, self.chain = pack(record, Stamp(0, 0, "boot"), self.chain, payload_max=1 << 20)
            made.append(Line(seq, data))
        return made


def make_log(disk: FakeDisk, settings: JournalSettings = SETTINGS) -> SegmentLog:
    return SegmentLog(disk, settings, boot="boot", at=Point(0, GENESIS), start=Beginning())


def failing(operation: str, code: int, times: int | None = 1) -> Callable[[str, str], None]:
    """Return a fault: the operation fails so many times (None: always)."""
    left = count() if times is None else iter(range(times))

    def fail(happening: str, _name: str) -> None:
        if happening == operation and next(left, None) is not None:
            raise OSError(code, os.strerror(code))

    return fail


def visible(disk: FakeDisk, directory: Path) -> list[int]:
    """Return the numbers that a reader sees, in order."""
    disk.dump(directory)
    return [record["seq"] for record in JournalReader(directory).all(Query())]


def write(log: SegmentLog, lines: Sequence[Line], wall_ns: int = 0) -> None:
    log.add(lines)
    log.sync(wall_ns)


def assert_sound(disk: FakeDisk, directory: Path, last: int) -> None:
    assert visible(disk, directory) == list(range(1, last + 1))
    assert verify_directory(directory, written=last).ok


def test_lines_are_written_synced_and_numbered_on(tmp_path: Path) -> None:
    """The plain case: what is added is written, and durable after a sync."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    log.add(source.lines(3))
    log.flush(0)
    assert (log.written, log.durable, log.failing) == (3, 0, None)
    log.sync(0)
    assert log.durable == 3
    assert_sound(disk, tmp_path, 3)


def test_segments_rotate_by_size_and_retention_keeps_the_bound(tmp_path: Path) -> None:
    """However much is written, the folder stays within max-bytes, and what is kept is one good chain."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk, SMALL)
    for _ in range(100):
        write(log, source.lines(20, 200))
        assert sum(len(data) for data in disk.files.values()) <= SMALL.max_bytes
    seen = visible(disk, tmp_path)
    assert seen == list(range(seen[0], 2001)) and seen[0] > 1
    assert verify(list(disk.files), lambda name: bytes(disk.files[name])).ok
    assert len(log.rotations) > 20 and any(rotation.dropped for rotation in log.rotations)


def test_segments_rotate_by_age(tmp_path: Path) -> None:
    """A segment that was begun long ago is followed by a new one, so that old records can go."""
    disk, source = FakeDisk(), Source()
    settings = JournalSettings(max_age_ns=80, reserve=0)
    log = make_log(disk, settings)
    write(log, source.lines(1), wall_ns=0)
    write(log, source.lines(1), wall_ns=5)
    assert len(disk.files) == 1
    write(log, source.lines(1), wall_ns=11)
    assert len(disk.files) == 2
    assert_sound(disk, tmp_path, 3)


def test_rotation_on_demand_needs_a_record(tmp_path: Path) -> None:
    """Asking for a new segment makes one, once; an empty segment is new enough."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(2))
    log.rotate(0)
    log.rotate(0)
    assert len(disk.files) == 2
    write(log, source.lines(1))
    assert_sound(disk, tmp_path, 3)


def test_a_full_disk_loses_nothing_and_tears_nothing(tmp_path: Path) -> None:
    """Lines wait in memory; whole lines that fitted stay; when there is room everything is there once."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(2))
    disk.capacity = sum(len(data) for data in disk.files.values()) + 700
    write(log, source.lines(10))
    assert log.failing is not None and "No space left" in log.failing and log.is_full
    assert 2 < log.written < 12
    assert_sound(disk, tmp_path / "full", log.written)
    disk.capacity = 1 << 40
    write(log, source.lines(1))
    assert log.failing is None and not log.is_full
    assert log.durable == 13
    assert_sound(disk, tmp_path / "again", 13)


def test_the_reserve_is_spent_on_a_full_disk_and_comes_back(tmp_path: Path) -> None:
    """A full disk costs the reserve first and no record; people are told all the while; with room it is set aside
    again."""
    settings = JournalSettings(reserve=8192, max_age_ns=None)
    disk, source = FakeDisk(), Source()
    log = make_log(disk, settings)
    log.restore_reserve()
    assert disk.reserved == 8192 and not log.is_full
    write(log, source.lines(2))
    disk.capacity = disk.reserved + sum(len(data) for data in disk.files.values()) + 100
    write(log, source.lines(5))
    assert (log.failing, log.durable, log.on_reserve, log.is_full) == (None, 7, True, True)
    log.restore_reserve()
    assert log.on_reserve and log.is_full
    disk.capacity = 1 << 40
    log.restore_reserve()
    assert (log.on_reserve, log.is_full, disk.reserved) == (False, False, 8192)
    assert_sound(disk, tmp_path, 7)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EBADF])
def test_a_failed_write_begins_a_new_segment(tmp_path: Path, code: int) -> None:
    """A file that could not be written is set aside; the lines are in its successor, each once."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(3))
    disk.on_step = failing("append", code)
    write(log, source.lines(3))
    assert (log.failing, log.durable) == (None, 6)
    assert [name.endswith(".damaged") for name in sorted(disk.files)].count(True) == 1
    assert_sound(disk, tmp_path, 6)


def test_a_failed_sync_is_never_taken_for_good(tmp_path: Path) -> None:
    """After a failed sync the bytes may be gone although they can be read: all that was not durable is written again
    elsewhere."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(3))
    log.add(source.lines(2))
    log.flush(0)
    disk.on_step = failing("sync", errno.EIO)
    write(log, source.lines(1))
    assert (log.failing, log.durable) == (None, 6)
    assert_sound(disk, tmp_path / "before", 6)
    assert_sound(disk.lose_power(), tmp_path / "after", 6)


def test_a_disk_that_never_syncs_is_not_filled_with_copies(tmp_path: Path) -> None:
    """A hundred failed attempts leave one file as evidence, not a hundred."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(3))
    disk.on_step = failing("sync", errno.EIO, None)
    for _ in range(100):
        write(log, source.lines(1))
        assert log.failing is not None and log.durable == 3
    assert len(disk.files) <= 3
    disk.on_step = None
    write(log, source.lines(1))
    assert log.durable == 104
    assert_sound(disk, tmp_path / "before", 104)
    assert_sound(disk.lose_power(), tmp_path / "after", 104)


def test_a_disk_that_never_takes_a_line_is_not_filled_with_empty_segments(tmp_path: Path) -> None:
    """Segments that could be made but not written are taken away again."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(1))

    def fail(operation: str, name: str) -> None:
        if operation == "append" and name in disk.files and disk.files[name]:
            raise OSError(errno.EIO, "broken")

    disk.on_step = fail
    for _ in range(50):
        write(log, source.lines(1))
    assert len(disk.files) <= 2
    disk.on_step = None
    write(log, source.lines(1))
    assert_sound(disk, tmp_path, 52)


def test_a_limit_on_file_size_begins_a_new_segment(tmp_path: Path) -> None:
    """RLIMIT_FSIZE below the segment size costs smaller segments, nothing else."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(2))
    disk.on_step = failing("append", errno.EFBIG)
    write(log, source.lines(2))
    assert (log.failing, log.durable) == (None, 4)
    assert not [name for name in disk.files if name.endswith(".damaged")]
    assert_sound(disk, tmp_path, 4)


def test_a_removed_segment_costs_only_what_was_durable_in_it(tmp_path: Path) -> None:
    """When somebody removes the file under us, a new one begins, with all that can still be written again, and verify
    names the hole."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(3))
    log.add(source.lines(2))
    log.flush(0)
    disk.remove(next(iter(disk.files)))
    write(log, source.lines(1))
    assert (log.failing, log.durable) == (None, 6)
    assert visible(disk, tmp_path) == [4, 5, 6]
    assert verify_directory(tmp_path, written=6).ok


def test_a_file_written_by_others_is_set_aside(tmp_path: Path) -> None:
    """Foreign bytes in the segment are kept as evidence in the file that is given up; the chain goes on beside it."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk)
    write(log, source.lines(3))
    disk.files[next(iter(disk.files))].extend(b"GARBAGE\n")
    write(log, source.lines(2))
    assert (log.failing, log.durable) == (None, 5)
    assert any(b"GARBAGE" in data for name, data in disk.files.items() if name.endswith(".damaged"))
    assert_sound(disk, tmp_path, 5)


def test_without_sync_a_failed_file_is_still_left_behind(tmp_path: Path) -> None:
    """With sync = never nothing is promised, but the journal still goes on in a new segment."""
    disk, source = FakeDisk(), Source()
    log = make_log(disk, JournalSettings(sync="never", reserve=0))
    write(log, source.lines(3))
    disk.on_step = failing("append", errno.EIO)
    write(log, source.lines(1))
    assert (log.failing, log.written, log.durable) == (None, 4, 0)
    assert_sound(disk, tmp_path, 4)


def test_what_was_left_unsynced_is_synced_before_it_is_promised(tmp_path: Path) -> None:
    """sync was "never" for some segments and is "commit" from now on: the first line that is durable has all before it
    on the disk, as a power failure shows; a segment that the disk cannot keep is told.
    """
    disk, source = FakeDisk(), Source()
    log = make_log(disk, structs.replace(SMALL, sync="never"))
    write(log, source.lines(60, 1000))
    assert len(disk.files) > 2 and (disk.stable, log.durable) == ({}, 0)
    log.settings = SMALL
    write(log, source.lines(1))
    assert log.durable == 61
    assert visible(disk.lose_power(), tmp_path) == list(range(1, 62))

    log.settings = structs.replace(SMALL, sync="never")
    write(log, source.lines(60, 1000))
    log.settings = SMALL
    disk.on_step = failing("sync", errno.EIO)
    log.sync(0)
    assert log.failing is not None and log.durable == 61
    log.sync(0)
    assert (log.failing, log.durable) == (None, 121)


def scenario(disk: FakeDisk, log: SegmentLog, source: Source) -> None:
    """Writing with rotations, as it goes on while single operations fail."""
    for step in range(6):
        log.add(source.lines(3, 2000))
        if step % 2:
            log.sync(step)
        else:
            log.flush(step)
    log.rotate(6)
    log.add(source.lines(2))
    log.sync(7)


def operations() -> int:
    disk = FakeDisk()
    scenario(disk, make_log(disk, SMALL), Source())
    return disk.steps


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_failure_at_any_operation_loses_and_doubles_nothing(tmp_path: Path, code: int, length: int) -> None:
    """Whichever operations in a row fail, and with what: in the end each line is there once, durable, and the chain
    verifies."""
    for at in range(operations()):
        disk, source = FakeDisk(), Source()

        def fail(_operation: str, _name: str, disk: FakeDisk = disk, at: int = at) -> None:
            if at < disk.steps <= at + length:
                raise OSError(code, os.strerror(code))

        disk.on_step = fail
        log = make_log(disk, SMALL)
        scenario(disk, log, source)
        disk.on_step = None
        log.sync(8)
        assert (log.failing, log.unwritten) == (None, 0), at
        assert log.written == log.durable == 20, at
        assert_sound(disk, tmp_path / f"{at}", 20)
        assert_sound(disk.lose_power(), tmp_path / f"{at}-after", 20)


@pytest.mark.parametrize("operation", ["create", "append", "sync", "truncate", "rename", "entries", "reopen"])
def test_a_manager_killed_while_the_disk_fails_leaves_a_journal_to_go_on_with(tmp_path: Path, operation: str) -> None:
    """Whatever was failing when the manager was killed, the next one has all lines: in the files, or in the keeper's
    custody."""
    for lines_before in range(4):
        disk, source = FakeDisk(), Source()
        log = make_log(disk)
        if lines_before:
            write(log, source.lines(lines_before))
        disk.on_step = failing(operation, errno.EIO, None)
        lines = source.lines(3)
        write(log, lines)
        custody = [(line.seq, line.data[:-1].decode()) for line in lines if line.seq > log.written]
        disk.on_step = None
        plan = plan_recovery(disk, custody)
        again = SegmentLog(disk, SETTINGS, boot="boot", at=plan.at, start=plan.start, written=plan.written)
        again.add(plan.missing)
        write(again, Source(plan.chain).lines(1))
        assert (again.failing, again.durable) == (None, lines_before + 4)
        assert_sound(disk, tmp_path / f"{lines_before}", lines_before + 4)

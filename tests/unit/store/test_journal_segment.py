"""Segments: their headers and names, torn tails, damage, and the chain over all that is kept."""

from collections.abc import Sequence

import pytest

from supervisord_py.model.records import Record
from supervisord_py.store.record import GENESIS, Chain, Stamp, pack
from supervisord_py.store.retention import SegmentInfo, expired, is_rotation_due, segment_bytes
from supervisord_py.store.segment import (
    UNKNOWN_HASH,
    After,
    Header,
    damaged_name,
    format_name,
    pack_header,
    parse_name,
    scan,
    sort_names,
    unpack_header,
    verify,
)

STAMP = Stamp(1_700_000_000_000_000_000, 1, "boot")


def make_lines(count: int) -> tuple[list[bytes], list[Chain]]:
    """Return lines 1 to ``count`` and the chain before each (and after the last)."""
    lines: list[bytes] = []
    chains = [Chain()]
    for number in range(count):
        line, chain = pack(Record("unit.ready", unit=f"u{number}"), STAMP, chains[-1], payload_max=99)
        lines.append(line)
        chains.append(chain)
    return lines, chains


LINES, CHAINS = make_lines(9)


def segment(first: int, last: int, after: After = After.ROTATION, prev: str | None = None) -> bytes:
    """Return a segment with records ``first`` to ``last``."""
    hash_before = CHAINS[first - 1].last_hash if prev is None else prev
    return pack_header(Header(first, hash_before, "t", "boot", after)) + b"".join(LINES[first - 1 : last])


def verdict_of(files: dict[str, bytes], written: int | None = None) -> tuple[bool, int, int | None, str | None]:
    verdict = verify(list(files), files.__getitem__, written=written)
    return verdict.ok, verdict.records, verdict.bad_seq, verdict.problem


THREE = {format_name(1): segment(1, 3), format_name(4): segment(4, 6), format_name(7): segment(7, 9)}


def test_a_header_comes_back_as_it_was() -> None:
    """Every field of a header survives the file."""
    header = Header(7, "a" * 32, "2026-01-01T00:00:00.000000Z", "boot", After.DAMAGE, "journal-x.ndjson.damaged")
    assert unpack_header(pack_header(header)[:-1]) == header


def test_a_changed_header_is_none() -> None:
    """No byte of a header can be exchanged without it being refused."""
    line = pack_header(Header(7, "a" * 32, "t", "b", After.LOSS, "f"))[:-1]
    for position in range(len(line)):
        assert unpack_header(line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]) is None


def test_names_sort_in_the_order_of_reading() -> None:
    """A given-up file stands before the segment that replaces it, and foreign files do not count."""
    names = [
        format_name(1),
        format_name(5) + ".damaged-2",
        format_name(5),
        format_name(5) + ".damaged",
        "reserve",
        "x.ndjson",
    ]
    assert [entry.name for entry in sort_names(names)] == [names[0], names[3], names[1], names[2]]
    assert parse_name("reserve") is None


def test_a_set_aside_name_is_never_taken() -> None:
    """Evidence is never overwritten by later evidence."""
    name = format_name(3)
    taken = [name + ".damaged", name + ".damaged-2"]
    assert damaged_name(name, taken) == name + ".damaged-3"
    assert parse_name(damaged_name(name, taken)) is not None


def test_a_whole_segment_is_good_to_its_end() -> None:
    """Scanning tells the last number and hash, which the next segment begins with."""
    scanned = scan(segment(4, 6), 4)
    assert (scanned.records, scanned.last_seq, scanned.last_hash) == (3, 6, CHAINS[6].last_hash)
    assert (scanned.torn, scanned.damage, scanned.good_end) == (0, None, len(segment(4, 6)))


def test_a_torn_tail_is_told_from_damage() -> None:
    """Half a line at the end is a cut-off write; it is to be cut at the last good record."""
    data = segment(1, 3)
    scanned = scan(data[:-5], 1)
    assert scanned.damage is None
    assert scanned.last_seq == 2 and scanned.torn == len(LINES[2]) - 5
    assert scanned.good_end == len(data) - len(LINES[2])


def test_zeros_at_the_end_are_a_torn_tail() -> None:
    """A power failure can leave zeros where the size was written and the data was not."""
    scanned = scan(segment(1, 2) + b"\0" * 4096, 1)
    assert (scanned.damage, scanned.last_seq, scanned.torn) == (None, 2, 4096)


def test_damage_in_the_middle_is_named_and_the_last_number_is_known() -> None:
    """A changed record is named by line and number; the chain goes on after the last record, so no number is given
    twice."""
    data = segment(1, 5).replace(b'"unit":"u2"', b'"unit":"XX"')
    scanned = scan(data, 1)
    assert scanned.damage is not None
    assert (scanned.damage.line, scanned.damage.seq) == (4, 3)
    assert "hash" in scanned.damage.problem
    assert (scanned.last_seq, scanned.resume_seq, scanned.resume_hash) == (2, 5, CHAINS[5].last_hash)


def test_damage_at_the_end_still_keeps_its_number() -> None:
    """The number of a destroyed last record is not given again; its hash is unknown."""
    data = segment(1, 3)[:-20] + b"x" * 19 + b"\n"
    scanned = scan(data, 1)
    assert scanned.damage is not None and scanned.damage.seq == 3
    assert (scanned.resume_seq, scanned.resume_hash) == (3, UNKNOWN_HASH)


def test_a_lost_header_loses_no_number() -> None:
    """With its header destroyed a segment still tells where the next one begins."""
    scanned = scan(b"x" + segment(4, 6)[1:], 4)
    assert scanned.damage is not None and scanned.damage.line == 1
    assert (scanned.resume_seq, scanned.resume_hash) == (6, CHAINS[6].last_hash)


@pytest.mark.parametrize("data", [b"", b"{", b"\n", b"\n\n\n", b"\0" * 100, b"\xff\n" * 5, b"{}\n{}\n"])
def test_no_bytes_make_scanning_fail(data: bytes) -> None:
    """Whatever stands in a file, scanning it gives an answer and knows no good record in it."""
    assert scan(data, 1).records == 0


def test_a_chain_over_three_segments_is_good() -> None:
    """The chain runs through all segments as if they were one file."""
    assert verdict_of(THREE) == (True, 9, None, None)


def test_what_retention_left_is_good() -> None:
    """Dropped oldest segments leave a chain that begins with a known hash."""
    kept = {name: data for name, data in THREE.items() if name != format_name(1)}
    verdict = verify(list(kept), kept.__getitem__)
    assert (verdict.ok, verdict.records, verdict.first_seq, verdict.last_seq) == (True, 6, 4, 9)


def test_an_empty_journal_is_good() -> None:
    """Nothing kept is nothing wrong."""
    assert verdict_of({}) == (True, 0, None, None)


@pytest.mark.parametrize("number", range(1, 10))
def test_any_changed_record_is_named(number: int) -> None:
    """verify names exactly the record that was changed, and counts the others as good."""
    files = {name: data.replace(b'"unit":"u%d"' % (number - 1), b'"unit":"zz"') for name, data in THREE.items()}
    ok, records, bad, problem = verdict_of(files)
    assert (ok, bad) == (False, number)
    assert records == 8
    assert problem is not None and problem.startswith(f"line {(number - 1) % 3 + 2}: ")


@pytest.mark.parametrize("number", range(1, 10))
def test_any_removed_record_is_named(number: int) -> None:
    """A record that was cut out is missed, wherever it stood."""
    files = {name: data.replace(LINES[number - 1], b"") for name, data in THREE.items()}
    if number == 9:
        assert verdict_of(files, written=9)[2] == 9
    else:
        assert verdict_of(files)[:3:2] == (False, number)


def test_a_missing_segment_in_the_middle_is_named() -> None:
    """A hole between segments is told as the numbers that are missing."""
    files = {name: data for name, data in THREE.items() if name != format_name(4)}
    ok, records, bad, problem = verdict_of(files)
    assert (ok, records, bad) == (False, 6, 4)
    assert problem is not None and "records 4 to 6 are missing" in problem


def test_an_exchanged_segment_is_named() -> None:
    """A segment that is good in itself but does not continue the one before it is not accepted."""
    line, _ = pack(Record("unit.exited"), STAMP, Chain(4, "f" * 32), payload_max=99)
    other = pack_header(Header(4, "f" * 32, "t", "boot", After.ROTATION)) + line
    ok, _, bad, problem = verdict_of({format_name(1): segment(1, 3), format_name(4): other})
    assert (ok, bad) == (False, 4)
    assert problem is not None and "does not continue" in problem


def test_records_that_a_later_segment_holds_again_count_once() -> None:
    """After a failed sync the old file keeps its copies, even torn ones; they are neither counted nor complained
    about."""
    files = {format_name(1) + ".damaged": segment(1, 5)[:-9], format_name(3): segment(3, 6, After.SYNC_FAILURE)}
    assert verdict_of(files) == (True, 6, None, None)
    files = {format_name(1) + ".damaged": segment(1, 3), format_name(1): segment(1, 4, After.SYNC_FAILURE)}
    assert verdict_of(files) == (True, 4, None, None)


def test_a_cut_off_end_is_seen_by_who_knows_what_was_written() -> None:
    """Offline a shorter journal is a good one; a running supervisor knows better."""
    files = dict(THREE)
    del files[format_name(7)]
    assert verdict_of(files)[0]
    ok, _, bad, _ = verdict_of(files, written=9)
    assert (ok, bad) == (False, 7)


def test_an_unknown_hash_before_is_taken_and_checked_from_there() -> None:
    """Where the hash before is lost, the first record is taken as it is and all others are checked."""
    assert verdict_of({format_name(4): segment(4, 6, After.LOSS, UNKNOWN_HASH)}) == (True, 3, None, None)
    changed = segment(4, 6, After.LOSS, UNKNOWN_HASH).replace(b'"unit":"u4"', b'"unit":"zz"')
    assert verdict_of({format_name(4): changed})[2] == 5


def infos(sizes: Sequence[int], changed: Sequence[int] | None = None) -> list[SegmentInfo]:
    names = sort_names([format_name(number + 1) for number in range(len(sizes))])
    return [SegmentInfo(*entry) for entry in zip(names, sizes, changed or [0] * len(sizes), strict=True)]


def test_oldest_segments_go_first_and_the_newest_never() -> None:
    """Dropping keeps a chain: a prefix goes, and never the segment in use."""
    size = segment_bytes(1 << 20)
    dropped = expired(infos([size] * 10), max_bytes=1 << 20, max_age_ns=None, now_wall_ns=0)
    assert dropped == tuple(format_name(number) for number in (1, 2, 3))
    assert expired(infos([1 << 30]), max_bytes=1, max_age_ns=1, now_wall_ns=1 << 60) == ()


def test_old_segments_go_by_age() -> None:
    """Age drops what was last written too long ago, up to the first one that is young enough."""
    segments = infos([1, 1, 1, 1], [10, 20, 10, 90])
    assert expired(segments, max_bytes=1 << 30, max_age_ns=75, now_wall_ns=90) == (format_name(1),)
    assert expired(segments, max_bytes=1 << 30, max_age_ns=None, now_wall_ns=90) == ()


def test_a_segment_is_full_by_size_or_age_but_never_empty() -> None:
    """A record larger than a segment still gets one; an old segment is followed by a new one."""
    size = segment_bytes(1 << 20)
    assert not is_rotation_due(0, size * 2, 0, records=0, max_bytes=1 << 20, max_age_ns=80)
    assert is_rotation_due(size, 1, 0, records=1, max_bytes=1 << 20, max_age_ns=80)
    assert not is_rotation_due(size - 1, 1, 10, records=1, max_bytes=1 << 20, max_age_ns=80)
    assert is_rotation_due(1, 1, 11, records=1, max_bytes=1 << 20, max_age_ns=80)


def test_the_first_segment_begins_at_the_genesis() -> None:
    """The chain of a new journal hangs on a fixed hash, so its first record is checked too."""
    assert scan(segment(1, 1), 1).header == Header(1, GENESIS, "t", "boot", After.ROTATION)
    assert verdict_of({format_name(1): segment(1, 2).replace(b'"u0"', b'"zz"')})[2] == 1

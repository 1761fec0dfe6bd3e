"""Whatever happens to the bytes of a journal: readers never fail, lose at most the damaged record, and verify never
calls it good."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisord_py.host.journal_reader import JournalReader, verify_directory
from supervisord_py.model.records import Record
from supervisord_py.store.query import Query
from supervisord_py.store.record import Chain, Stamp, pack, unpack
from supervisord_py.store.retention import SegmentInfo, expired, segment_bytes
from supervisord_py.store.segment import After, Header, format_name, pack_header, scan, sort_names, verify

LAST = 5
SPLIT = 3
"""Two segments: records 1 to 3, and 4 to 5."""


def make_journal() -> tuple[dict[str, bytes], list[bytes]]:
    chain = Chain()
    files = {format_name(1): pack_header(Header(1, chain.last_hash, "t", "b", After.START))}
    lines: list[bytes] = []
    name = format_name(1)
    for seq in range(1, LAST + 1):
        if seq == SPLIT + 1:
            name = format_name(seq)
            files[name] = pack_header(Header(seq, chain.last_hash, "t", "b", After.ROTATION))
        line, chain = pack(
            Record("unit.exited", unit=f"u{seq}", fields={"pid": seq}), Stamp(seq, seq, "b"), chain, payload_max=99
        )
        lines.append(line)
        files[name] += line
    return files, lines


FILES, LINES = make_journal()
ORIGINALS = {seq: unpack(line) for seq, line in enumerate(LINES, 1)}
FIRST, SECOND = sorted(FILES)


def records_of(line_start: int, data: bytes) -> int:
    """Return the number of the line (header 0) that the byte at this offset belongs to."""
    return data.count(b"\n", 0, line_start)


def read_with(directory: Path, changed: dict[str, bytes], *, backwards: bool) -> list[dict[str, Any]]:
    """Read the journal with some files' contents replaced."""
    for name, data in {**FILES, **changed}.items():
        (directory / name).write_bytes(data)
    reader = JournalReader(directory)
    return reader.last(Query(), 100) if backwards else list(reader.all(Query()))


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_a_flipped_bit_loses_at_most_its_record_and_never_verifies(tmp_path: Path, name: str, mask: int) -> None:
    """For every byte: all other records are read as they were, in both directions, and verify names a bad place."""
    first = 1 if name == FIRST else SPLIT + 1
    data = FILES[name]
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
        damaged = first + records_of(position, data) - 1
        for backwards in (False, True):
            found = read_with(tmp_path, {name: changed}, backwards=backwards)
            for seq, original in ORIGINALS.items():
                assert seq == damaged or original in found, (position, seq)
        verdict = verify_directory(tmp_path, written=LAST)
        assert not verdict.ok, position
        assert verdict.bad_seq is not None and damaged <= verdict.bad_seq <= damaged + 1, position


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_truncated_segment_loses_only_what_was_cut(tmp_path: Path, name: str) -> None:
    """For every length: whole lines are read, the rest is missed by verify, and a start goes on after the last whole
    one."""
    first = 1 if name == FIRST else SPLIT + 1
    data = FILES[name]
    for length in range(len(data)):
        whole = max(0, data.count(b"\n", 0, length) - 1)
        found = read_with(tmp_path, {name: data[:length]}, backwards=length % 2 == 0)
        kept = {record["seq"] for record in found}
        assert kept >= {seq for seq in ORIGINALS if not first + whole <= seq < first + LAST}
        assert not verify_directory(tmp_path, written=LAST).ok
        scanned = scan(data[:length], first)
        assert (scanned.damage, scanned.last_seq) == (None, first + whole - 1), length


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 600), st.integers(0, 200))
def test_any_bytes_anywhere_are_survived(junk: bytes, position: int, removed: int) -> None:
    """Bytes that are replaced, inserted or cut out anywhere give an answer, never an exception, and no record that
    was not written."""
    data = FILES[FIRST]
    changed = data[:position] + junk + data[position + removed :]
    scanned = scan(changed, 1)
    assert 0 <= scanned.records <= SPLIT + changed.count(b"\n")
    files = {**FILES, FIRST: changed}
    verdict = verify(list(files), files.__getitem__, written=LAST)
    assert verdict.ok == (changed == data or (changed.startswith(data) and b"\n" not in changed[len(data) :]))
    for record in Query().select(changed):
        assert isinstance(record["seq"], int)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40_000), st.integers(0, 100)), min_size=1, max_size=30),
    st.integers(1 << 17, 1 << 20),
)
def test_retention_keeps_the_bound_and_a_suffix(segments: list[tuple[int, int]], max_bytes: int) -> None:
    """What is dropped is a prefix without the newest; what is kept with one more full segment fits, unless only the
    newest is left."""
    names = sort_names([format_name(number) for number in range(1, len(segments) + 1)])
    infos = [SegmentInfo(name, size, age) for name, (size, age) in zip(names, segments, strict=True)]
    dropped = expired(infos, max_bytes=max_bytes, max_age_ns=50, now_wall_ns=100)
    assert dropped == tuple(info.name.name for info in infos[: len(dropped)])
    kept = infos[len(dropped) :]
    assert kept
    total = sum(info.bytes for info in kept) + segment_bytes(max_bytes)
    assert total <= max_bytes or len(kept) == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5), st.integers(1, 64))
def test_any_fields_make_a_line_that_checks(fields: dict[str, object], payload_max: int) -> None:
    """Whatever an agent or a file puts into a record, its line is one line of JSON that reads back and continues the
    chain."""
    line, chain = pack(Record("unit.message", fields=fields), Stamp(1, 1, "b"), Chain(), payload_max=payload_max)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    record = unpack(line)
    assert record is not None and record["seq"] == 1 and record["hash"] == chain.last_hash
    assert list(record)[-1] == "hash"

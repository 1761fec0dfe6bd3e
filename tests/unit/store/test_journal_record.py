"""The line codec: what stands in a line, in which order, and that no change of it goes unseen."""

import json
from hashlib import sha256
from typing import Any

import pytest

from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.store.record import (
    GENESIS,
    LINE_MAX,
    Chain,
    Stamp,
    check,
    format_time,
    pack,
    parse_time,
    salvage,
    seq_of,
    shape,
    split_hash,
    unpack,
)

FRESH = Chain()
STAMP = Stamp(wall_ns=1_700_000_000_123_456_789, mono_ns=42, boot="b" * 32)


def packed(record: Record, chain: Chain = FRESH, payload_max: int = 4096) -> tuple[dict[str, Any], bytes]:
    line, _ = pack(record, STAMP, chain, payload_max=payload_max)
    return json.loads(line), line


def test_a_line_holds_the_contract_fields_in_order_and_the_hash_last() -> None:
    """The order is the contract's, so that lines can be read with the eye and cut with simple tools."""
    record = Record("unit.exited", Severity.WARNING, "web", "f" * 32, 7, {"code": 1, "role": "main"})
    decoded, line = packed(record, Chain(12, "a" * 32))
    assert list(decoded) == [
        "seq", "ts", "mono_ns", "boot", "event", "severity", "unit", "invocation", "cause", "code", "role", "hash",
    ]  # fmt: skip
    assert decoded["seq"] == 12
    assert decoded["ts"] == "2023-11-14T22:13:20.123456Z"
    assert line.endswith(b"\n") and line.count(b"\n") == 1


def test_the_hash_can_be_checked_by_anybody() -> None:
    """sha256 of the hash before and the line without its own: ten lines of any language verify a journal."""
    _, line = packed(Record("unit.ready", unit="web"))
    text = line.decode().rstrip("\n")
    body, _, tail = text.rpartition(',"hash":"')
    assert sha256((GENESIS + body + "}").encode()).hexdigest()[:32] == tail[:-2]


def test_the_chain_goes_on_from_line_to_line() -> None:
    """Each line checks after the one before it and after no other."""
    first, chain = pack(Record("unit.ready"), STAMP, Chain(), payload_max=99)
    second, after = pack(Record("unit.ready"), STAMP, chain, payload_max=99)
    assert check(first[:-1], GENESIS) == (1, chain.last_hash)
    assert check(second[:-1], chain.last_hash) == (2, after.last_hash)
    assert check(second[:-1], GENESIS) is None


def test_every_changed_byte_is_seen() -> None:
    """No byte of a line can be exchanged without the check failing."""
    _, line = packed(Record("unit.exited", unit="web", fields={"pid": 1}))
    line = line[:-1]
    for position in range(len(line)):
        changed = line[:position] + bytes([line[position] ^ 1]) + line[position + 1 :]
        assert check(changed, GENESIS) is None, position


def test_secrets_never_reach_a_line() -> None:
    """Redaction is part of the codec, so no caller can forget it."""
    _, line = packed(Record("command", fields={"peer_command": "supctl --token=abc", "environment": {"A": "geheim"}}))
    assert b"abc" not in line and b"geheim" not in line


def test_long_values_are_cut_and_named() -> None:
    """A long string keeps its beginning; ``truncated`` says where and how long it was."""
    decoded, _ = packed(Record("unit.message", fields={"body": {"text": ["x" * 100]}, "ok": "y"}), payload_max=10)
    assert decoded["body"] == {"text": ["x" * 10]}
    assert decoded["truncated"] == {"body.text.0": 100}
    assert decoded["ok"] == "y"


def test_cutting_keeps_characters_whole() -> None:
    """A cut in the middle of a character of several bytes takes the whole character away."""
    decoded, _ = packed(Record("unit.message", fields={"text": "ä" * 10}), payload_max=5)
    assert decoded["text"] == "ää"


def test_a_huge_record_becomes_a_short_line() -> None:
    """Ten thousand short strings are more than a line may hold: the short fields stay and the length is told."""
    fields = {"words": ["word" * 10] * 10_000, "pid": 7, **{f"n{k}": "z" * 4000 for k in range(200)}}
    decoded, line = packed(Record("unit.message", unit="web", fields=fields))
    assert len(line) < LINE_MAX
    assert decoded["pid"] == 7 and "words" not in decoded
    assert decoded["truncated"][""] > LINE_MAX


def test_odd_values_are_written_as_json_can_hold_them() -> None:
    """Bytes that are no UTF-8, huge integers, tuples, enums and foreign objects never stop the journal."""
    fields = {
        "path": "a\udcffb",
        "big": 1 << 80,
        "pair": (1, 2),
        "state": Severity.ERROR,
        "raw": b"\xff",
        "o": {1: 2.5},
    }
    decoded, line = packed(Record("unit.message", fields=fields))
    assert decoded["path"] == "a\\udcffb"
    assert decoded["big"] == str(1 << 80)
    assert decoded["pair"] == [1, 2] and decoded["state"] == "error" and decoded["raw"] == "\\xff"
    assert decoded["o"] == {"1": 2.5}
    assert unpack(line) is not None


def test_own_fields_cannot_replace_the_frame() -> None:
    """An agent's message with a field called seq or hash is kept, under another name."""
    decoded, line = packed(Record("unit.message", fields={"seq": 99, "hash": "x", "event": "daemon.stopped"}))
    assert (decoded["seq"], decoded["event"]) == (1, "unit.message")
    assert (decoded["seq_"], decoded["hash_"], decoded["event_"]) == (99, "x", "daemon.stopped")
    assert check(line[:-1], GENESIS) is not None


def test_a_beat_has_no_number() -> None:
    """Beats are shown like records, with ``seq`` null."""
    assert shape(Record("unit.heartbeat", unit="web"), STAMP, None, payload_max=99)["seq"] is None


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"null", b'{"seq":0,"event":"x"}', b'{"seq":"1","event":"x"}', b'{"seq":1}', b"\xff\xfe",
     b"{" * 10_000,
     b"[" * 100_000, b'{"seq":1,"event":"\\ud800"}'],
)  # fmt: skip
def test_garbage_is_no_record(line: bytes) -> None:
    """Whatever the bytes are, reading a line answers None instead of raising."""
    assert unpack(line) is None
    assert check(line, GENESIS) is None
    assert split_hash(line) is None


def test_two_records_on_one_line_are_both_saved() -> None:
    """A lost newline costs no record: both are found in the joined line."""
    first, chain = pack(Record("unit.ready"), STAMP, Chain(), payload_max=99)
    second, _ = pack(Record("unit.exited", fields={"in": {"seq": 5}}), STAMP, chain, payload_max=99)
    joined = first[:-1] + b"\x0b" + second
    assert [record["seq"] for record in salvage(joined)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "seq"), [(b'{"seq":17,"x":1}', 17), (b'{"seq":,', None), (b'{"journal":1}', None), (b'{"seq":1', None)]
)
def test_numbers_are_read_without_decoding(line: bytes, seq: int | None) -> None:
    """The number stands at a fixed place, so pruning needs no JSON."""
    assert seq_of(line) == seq


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000000Z"),
        ("2026-01-31T13:00:00.5+01:00", "2026-01-31T12:00:00.500000Z"),
        ("2026-01-31 12:00:00", "2026-01-31T12:00:00.000000Z"),
    ],
)
def test_times_come_to_one_form(text: str, normal: str) -> None:
    """Times of one form can be compared as texts."""
    assert parse_time(text) == normal


@pytest.mark.parametrize("text", ["", "yesterday", "12:00", "2026-13-01T00:00:00Z", "0001-01-01T00:00:00+23:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """A time that cannot be used says so, with an example."""
    with pytest.raises(ValueError, match="2026-01-31T12:00:00Z"):
        parse_time(text)


@pytest.mark.parametrize("wall_ns", [-5, 0, 1 << 70])
def test_no_clock_is_too_wrong_to_be_written(wall_ns: int) -> None:
    """A clock before 1970 or after 9999 is written as the nearest time that can be, and sorts."""
    assert len(format_time(wall_ns)) == len("2026-01-31T12:00:00.000000Z")

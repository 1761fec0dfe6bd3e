"""Messages of the bus: whatever the bytes, an answer or a refusal; whatever the message, it comes out as it went in."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.host.bus_limits import IDS_A_LIFE_MAX, IDS_MAX, Bucket, Memory
from supervisord_py.model.log import Rate
from supervisord_py.model.values import format_rate, parse_rate
from supervisord_py.wire.bus import (
    ID_MAX,
    OWN,
    BadRequestError,
    Publish,
    Subscribe,
    format_delivery,
    format_error,
    message_fields,
    parse_request,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=30)
ADDRESSES = st.sampled_from(["web", "worker@3"]) | NAMES.map(lambda name: f"topic:{name}")


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_refused(frame: bytes) -> None:
    try:
        assert isinstance(parse_request(frame), Publish | Subscribe)
    except BadRequestError as refused:
        assert refused.id is None or isinstance(refused.id, int) or len(refused.id) <= ID_MAX
        answer = json.loads(format_error(refused.slug, refused.message, refused.id))
        assert answer["error"] and answer["message"]


@given(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=ID_MAX) | st.integers(-(2**62), 2**62),
    NAMES,
    ADDRESSES,
    st.dictionaries(st.text(max_size=10).filter(lambda name: name not in OWN), JSON, max_size=4),
)
def test_what_is_sent_is_what_is_delivered(id: str | int, event: str, to: str, payload: dict[str, Any]) -> None:
    request = parse_request(json.dumps({"v": 1, "id": id, "event": event, "to": to, **payload}).encode())
    assert request == Publish(id, event, to, payload)
    record = {"seq": 9, "unit": "db", "invocation": "f00", **message_fields(request)}
    assert json.loads(format_delivery(record)) == {
        **payload, "v": 1, "seq": 9, "from": "db", "invocation": "f00", "event": event, "to": to
    }  # fmt: skip


@given(st.integers(1, 10**6), st.integers(1, 86_400_000_000).map(lambda us: us * 1000))
def test_rates_are_written_as_they_are_read(count: int, span_ns: int) -> None:
    rate = Rate(count, span_ns)
    assert parse_rate(format_rate(rate)) == rate


@given(
    st.integers(1, 50),
    st.integers(1, 10**9),
    st.lists(st.integers(0, 10**9), min_size=1, max_size=100),
)
def test_a_bucket_lets_no_more_through_than_its_rate(count: int, span_ns: int, gaps_ns: list[int]) -> None:
    """In any stretch of time: the rate times the time, and what one span holds besides."""
    bucket, now_ns = Bucket(Rate(count, span_ns), 0), 0
    passed: list[int] = []
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        if bucket.take(now_ns):
            passed.append(now_ns)
    for first, start_ns in enumerate(passed):
        for last, end_ns in enumerate(passed[first:], first):
            assert (last - first + 1) * span_ns <= (end_ns - start_ns + span_ns) * count


def test_a_long_message_cost_no_more_than_a_short_one() -> None:
    """Though the disk is everybody's: it counts as several, and as no more than there can be."""
    bucket = Bucket(Rate(10, 1_000), 0)
    assert bucket.take(0, 4)
    assert bucket.take(0, 6)
    assert not bucket.take(99)
    assert bucket.take(100)
    assert not bucket.take(1_099, 16)
    assert bucket.take(1_100, 16)


def test_ids_are_remembered_for_as_long_as_they_may_come_again() -> None:
    """A life's newest ids; an integer and its text are two."""
    memory = Memory()
    for number in range(IDS_A_LIFE_MAX + 1):
        memory.remember("life", number, 100 + number)
    memory.remember("other", "1", 5)
    assert memory.find("life", 0) is None
    assert memory.find("life", 1) == 101
    assert memory.find("life", "1") is None
    assert memory.find("other", "1") == 5
    assert memory.find("new", 1) is None
    for life in range(IDS_MAX // IDS_A_LIFE_MAX + 1):
        for number in range(IDS_A_LIFE_MAX):
            memory.remember(f"life {life}", number, number + 1)
    assert memory.find("life", 1) is memory.find("other", "1") is memory.find("life 0", 5) is None
    assert memory.find("life 1", 0) == 1

"""The frames of the message bus: what is a request, and what is said to one that is none."""

import json
from typing import Any

import pytest

from supervisord_py.wire.bus import (
    BAD_REQUEST,
    FRAME_MAX,
    REQUEST_MAX,
    TOO_LARGE,
    BadRequestError,
    Publish,
    Subscribe,
    address_of,
    format_ack,
    format_delivery,
    format_dropped,
    format_error,
    format_subscribed,
    message_fields,
    parse_request,
)


def frame(**fields: Any) -> bytes:
    return json.dumps({"v": 1, **fields}).encode()


@pytest.mark.parametrize(
    ("request_", "parsed"),
    [
        (frame(id="a", event="tick"), Publish("a", "tick", None, {})),
        (frame(id=7, to="worker@3", n=1, deep={"x": [1]}), Publish(7, None, "worker@3", {"n": 1, "deep": {"x": [1]}})),
        (frame(id="a", to="topic:jobs done", event="ok"), Publish("a", "ok", "topic:jobs done", {})),
        (frame(subscribe="jobs"), Subscribe("jobs", None, None)),
        (frame(subscribe="", after=0, id="s"), Subscribe("", 0, "s")),
        (frame(id="a", event="failed", error="why", message="m", after=3), Publish(
            "a", "failed", None, {"error": "why", "message": "m", "after": 3})),
    ],
)  # fmt: skip
def test_requests(request_: bytes, parsed: Publish | Subscribe) -> None:
    """The three requests of the contract; every other field is payload."""
    assert parse_request(request_) == parsed


@pytest.mark.parametrize(
    ("request_", "slug", "message", "id"),
    [
        (b"", BAD_REQUEST, "a frame is one JSON object", None),
        (b"\xff\xfe", BAD_REQUEST, "a frame is one JSON object", None),
        (b"[1]", BAD_REQUEST, "a frame is one JSON object", None),
        (b"[" * 5000, BAD_REQUEST, "a frame is one JSON object", None),
        (b'{"v":1,"id":"a","event":"x","p":NaN}', BAD_REQUEST, "a frame is one JSON object", None),
        (b'{"id":"a","event":"x"}', BAD_REQUEST, '"v" must be 1', "a"),
        (b'{"v":true,"id":"a","event":"x"}', BAD_REQUEST, '"v" must be 1', "a"),
        (frame(event="x"), BAD_REQUEST, '"id" is missing', None),
        (frame(id="", event="x"), BAD_REQUEST, '"id" is an integer', None),
        (frame(id=True, event="x"), BAD_REQUEST, '"id" is an integer', None),
        (frame(id="a" * 129, event="x"), BAD_REQUEST, '"id" is an integer', None),
        (frame(id="a"), BAD_REQUEST, 'a request has "event", "to" or "subscribe"', "a"),
        (frame(id="a", event=""), BAD_REQUEST, '"event" is a name', "a"),
        (frame(id="a", event="a\nb"), BAD_REQUEST, '"event" is a name', "a"),
        (frame(id="a", to="worker@"), BAD_REQUEST, '"to" is a unit', "a"),
        (frame(id="a", to="topic:"), BAD_REQUEST, '"to" is a unit', "a"),
        (frame(id="a", to=["web"]), BAD_REQUEST, '"to" is a unit', "a"),
        (frame(id="a", event="x", seq=3), BAD_REQUEST, "no field 'seq' of its own", "a"),
        (frame(id="a", event="x", **{"from": "db"}), BAD_REQUEST, "no field 'from' of its own", "a"),
        (frame(subscribe="x", event="y"), BAD_REQUEST, "not with 'event'", None),
        (frame(subscribe=3), BAD_REQUEST, '"subscribe" is the name of a topic', None),
        (frame(subscribe="topic:"), BAD_REQUEST, '"subscribe" is the name of a topic', None),
        (frame(subscribe="x", after=-1), BAD_REQUEST, '"after" is the number', None),
        (frame(subscribe="x", after=1.5), BAD_REQUEST, '"after" is the number', None),
        (b" " * (REQUEST_MAX + 1), TOO_LARGE, f"{REQUEST_MAX} at most", None),
    ],
)
def test_what_is_no_request(request_: bytes, slug: str, message: str, id: str | None) -> None:
    """Refused with a word for programs, a sentence for people, and the id where there is one."""
    with pytest.raises(BadRequestError) as refused:
        parse_request(request_)
    assert (refused.value.slug, refused.value.id) == (slug, id)
    assert message in refused.value.message


def test_what_a_subscription_is_for() -> None:
    """A topic with or without its prefix, the peer's own unit, and nothing for who has none."""
    assert address_of("jobs", "web") == address_of("topic:jobs", "web") == "topic:jobs"
    assert address_of("", "web") == address_of("web", "web") == "web"
    assert address_of("topic:web", "web") == "topic:web"
    assert address_of("", None) == ""
    assert address_of("web", None) == "topic:web"


def test_answers_as_the_contract_has_them() -> None:
    """Byte for byte, because programs in other languages read them."""
    assert format_ack("a", 3) == b'{"v":1,"ack":"a","seq":3}'
    assert json.loads(format_ack(1, 3, {"payload.x": 9000})) == {
        "v": 1, "ack": 1, "seq": 3, "truncated": {"payload.x": 9000}
    }  # fmt: skip
    assert format_subscribed(None, "jobs", 9) == b'{"v":1,"ack":null,"seq":9,"subscribe":"jobs"}'
    assert format_error("busy", "later", None) == b'{"v":1,"error":"busy","message":"later","id":null}'
    assert format_dropped(4, 17, "topic:jobs") == b'{"v":1,"dropped":4,"after":17,"to":"topic:jobs"}'


def test_a_delivery_is_the_record_with_its_payload_beside_it() -> None:
    """Nothing in a payload can take the place of what the supervisor says."""
    fields = message_fields(Publish("a", "tick", "web", {"n": 1}))
    record = {"seq": 5, "unit": "db", "invocation": "f00", "event": "unit.message", **fields}
    assert json.loads(format_delivery(record)) == {
        "v": 1, "seq": 5, "from": "db", "invocation": "f00", "event": "tick", "to": "web", "n": 1
    }  # fmt: skip
    forged = record | {"payload": {"from": "root", "seq": 1, "v": 2}, "replay_of": 2, "truncated": {"payload.n": 9}}
    assert json.loads(format_delivery(forged)) == {
        "v": 1, "seq": 5, "from": "db", "invocation": "f00", "event": "tick", "to": "web", "replay_of": 2,
        "truncated": {"payload.n": 9},
    }  # fmt: skip


def test_a_message_that_is_refused_with_a_reason_is_read_at_all() -> None:
    """The bound of libzmq, above which the connection ends without a word, is far above ours."""
    assert FRAME_MAX > 4 * REQUEST_MAX

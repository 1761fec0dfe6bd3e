"""The messages of the bus: bytes of one frame to values, and answers to bytes. No sockets, no policy.

Theory of operation
-------------------
Every frame is one JSON object with ``"v": 1``. A peer sends *requests*:

    {"v":1,"id":ID,"event":NAME,...}                   an event: for whoever asks the journal
    {"v":1,"id":ID,"to":UNIT or "topic:NAME",...}      a message; may have an "event" too
    {"v":1,"subscribe":NAME,"after":SEQ,"id":ID}       a topic (with "topic:" or without), or the peer's own unit: its
                                                       mailbox ("" is that too). ``after`` and ``id`` may be missing

and is sent *answers* and *deliveries*:

    {"v":1,"ack":ID,"seq":N}                           written, as record N ("truncated": what was cut, if anything);
                                                       null: an event that is kept in a ring (``keep-last``)
    {"v":1,"ack":ID,"seq":N,"subscribe":NAME}          from N on everything comes; what is behind ``after``, first
    {"v":1,"error":SLUG,"message":TEXT,"id":ID}        refused; ``id`` null where there was none to be read
    {"v":1,"seq":N,"from":UNIT,"invocation":LIFE,"event":NAME,"to":TO,...}      ("replay_of": it was record M before)
    {"v":1,"dropped":N,"after":SEQ,"to":TO}            N deliveries behind SEQ did not fit: the journal has them
    {"v":1,"dropped":null,"after":SEQ,"until":M,"to":TO}     what was there behind SEQ up to M is gone: the journal has
                                                       dropped it, and nobody knows how many deliveries that were

A delivery has ``from`` and nothing else has: a unit, or ``key/NAME`` where the sender came over TCP with that key (no
unit has a slash in its name; ``invocation`` is null then). The other fields of a message are its payload; those that a
delivery has for itself cannot be among them.

Laws: what ``parse_request`` returns is what was sent, field by field; everything else is refused, with a reason that
says what to send instead.

Source: contract, section 9.
"""

from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.model.names import is_unit_name

VERSION = 1

REQUEST_MAX = 64 * 1024
"""Bytes of a request: what is longer is refused. Records of the journal are not endless either."""

FRAME_MAX = 1024 * 1024
"""Bytes of a frame that are still read, so that it can be refused with a reason; above it the connection ends."""

ID_MAX = 128
NAME_MAX = 200
"""Characters of an id, and of an event's or a topic's name."""

TOPIC = "topic:"
KEY = "key/"
"""What the name of a sender begins with that is a key and no unit."""

OWN = frozenset(
    {"v", "id", "event", "to", "seq", "from", "invocation", "truncated", "ack", "dropped", "subscribe", "replay_of"}
)
"""Fields that a payload cannot have."""

BAD_REQUEST = "bad-request"
TOO_LARGE = "too-large"
NO_SUCH_UNIT = "no-such-unit"
NOT_PERMITTED = "not-permitted"
RATE_LIMITED = "rate-limited"
NOT_WRITTEN = "not-written"
BUSY = "busy"
OLD_LIFE = "old-life"

PASSING = frozenset({RATE_LIMITED, NOT_WRITTEN, BUSY})
"""Refusals that another try a moment later may not meet."""

Id = str | int

_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


class Publish(Struct, frozen=True):
    """A message to be written. ``to`` None: to nobody but the journal."""

    id: Id
    event: str | None
    to: str | None
    payload: dict[str, Any]


class Subscribe(Struct, frozen=True):
    """A wish for messages. ``name`` is as it was asked: see ``address_of``."""

    name: str
    after: int | None
    id: Id | None


class BadRequestError(Exception):
    """A frame that is no request; ``id`` is whose it is, where that could be read."""

    def __init__(self, slug: str, message: str, id: Id | None = None) -> None:
        super().__init__(message)
        self.slug = slug
        self.message = message
        self.id = id


def parse_request(frame: bytes) -> Publish | Subscribe:
    """Read one frame of a peer.

    Raises:
        BadRequestError: It is no request.
    """
    if len(frame) > REQUEST_MAX:
        raise BadRequestError(TOO_LARGE, f"a message of {len(frame)} bytes; {REQUEST_MAX} at most")
    try:
        fields = _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadRequestError(BAD_REQUEST, "a frame is one JSON object") from None
    id = _id(fields)
    if fields.get("v") != VERSION or isinstance(fields["v"], bool):
        raise BadRequestError(BAD_REQUEST, f'"v" must be {VERSION}', id)
    if "subscribe" in fields:
        return _subscribe(fields, id)
    if id is None:
        raise BadRequestError(BAD_REQUEST, '"id" is missing: the acknowledgement names it')
    event, to = fields.pop("event", None), fields.pop("to", None)
    if event is None and to is None:
        raise BadRequestError(BAD_REQUEST, 'a request has "event", "to" or "subscribe"', id)
    if event is not None and not _is_name(event):
        raise BadRequestError(BAD_REQUEST, f'"event" is a name of 1 to {NAME_MAX} printable characters', id)
    if to is not None and not is_address(to):
        raise BadRequestError(BAD_REQUEST, f'"to" is a unit or "{TOPIC}NAME"', id)
    del fields["v"], fields["id"]
    for name in fields:
        if name in OWN:
            raise BadRequestError(BAD_REQUEST, f"a message has no field {name!r} of its own: name it otherwise", id)
    return Publish(id, event, to, fields)


def address_of(name: str, unit: str | None) -> str:
    """Return what a subscription of a peer of ``unit`` (None: of none) is for, as the ``to`` of messages has it; empty
    where that is nothing: only units have a mailbox."""
    if name in ("", unit):
        return unit or ""
    return name if name.startswith(TOPIC) else TOPIC + name


def _subscribe(fields: dict[str, Any], id: Id | None) -> Subscribe:
    for name in fields:
        if name not in ("v", "id", "subscribe", "after"):
            raise BadRequestError(BAD_REQUEST, f'"subscribe" goes with "after" and "id", not with {name!r}', id)
    name, after = fields["subscribe"], fields.get("after")
    if not isinstance(name, str) or not (name == "" or _is_name(name.removeprefix(TOPIC))):
        raise BadRequestError(BAD_REQUEST, f'"subscribe" is the name of a topic, 1 to {NAME_MAX} characters', id)
    if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < 0):
        raise BadRequestError(BAD_REQUEST, '"after" is the number of a record', id)
    return Subscribe(name, after, id)


def _id(fields: dict[str, Any]) -> Id | None:
    id = fields.get("id")
    if id is None:
        return None
    if isinstance(id, str) and 0 < len(id) <= ID_MAX and id.isprintable():
        return id
    if isinstance(id, int) and not isinstance(id, bool) and abs(id) < 1 << 63:
        return id
    raise BadRequestError(BAD_REQUEST, f'"id" is an integer or 1 to {ID_MAX} printable characters')


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= NAME_MAX and name.isprintable()


def is_address(to: object) -> bool:
    """Say whether a message can go there: the name of a unit, or ``topic:NAME``."""
    return isinstance(to, str) and (_is_name(to.removeprefix(TOPIC)) if to.startswith(TOPIC) else is_unit_name(to))


def format_ack(id: Id, seq: int | None, truncated: dict[str, int] | None = None) -> bytes:
    """Say that a message is record ``seq`` (None: an event that is kept in a ring); ``truncated`` has the full lengths
    of what was cut."""
    answer: dict[str, Any] = {"v": VERSION, "ack": id, "seq": seq}
    return _encoder.encode(answer | {"truncated": truncated} if truncated else answer)


def format_subscribed(id: Id | None, name: str, seq: int) -> bytes:
    """Say that everything behind record ``seq`` is delivered as it comes (what is before it, as asked, first)."""
    return _encoder.encode({"v": VERSION, "ack": id, "seq": seq, "subscribe": name})


def format_error(slug: str, message: str, id: Id | None) -> bytes:
    """Refuse a request."""
    return _encoder.encode({"v": VERSION, "error": slug, "message": message, "id": id})


def format_delivery(record: dict[str, Any]) -> bytes:
    """Make a delivery of a ``unit.message`` record, as it stands in the journal."""
    payload = record.get("payload")
    delivery = {
        "v": VERSION,
        "seq": record["seq"],
        "from": record.get("unit") or record.get("sender"),
        "invocation": record.get("invocation"),
        "event": record.get("name"),
        "to": record.get("to"),
    }
    if isinstance(payload, dict):
        delivery = payload | delivery
    for name in ("truncated", "replay_of"):
        if record.get(name):
            delivery[name] = record[name]
    return _encoder.encode(delivery)


def format_dropped(count: int, after: int, to: str) -> bytes:
    """Say how many deliveries of one address did not fit behind record ``after``."""
    return _encoder.encode({"v": VERSION, "dropped": count, "after": after, "to": to})


def format_gone(after: int, until: int, to: str) -> bytes:
    """Say that the journal no longer has the records behind ``after`` up to ``until``."""
    return _encoder.encode({"v": VERSION, "dropped": None, "after": after, "until": until, "to": to})


def message_fields(request: Publish) -> dict[str, Any]:
    """Return the own fields of the ``unit.message`` record of a message."""
    return {"id": request.id, "to": request.to, "name": request.event, "payload": request.payload}

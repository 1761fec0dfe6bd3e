"""Framing, calls and replies: what passes, what is refused, and that chunks do not matter."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.wire.varlink import (
    DEPTH_MAX,
    Call,
    ClientConnection,
    Reply,
    ServerConnection,
    VarlinkProtocolError,
    format_error,
)

PING = b'{"method":"a.b.Ping"}\0'


def first_call(data: bytes) -> Call | None:
    server = ServerConnection()
    server.receive_data(data)
    return server.next_call()


def refusal(data: bytes, **limits: int) -> str:
    server = ServerConnection(**limits)
    server.receive_data(data)
    with pytest.raises(VarlinkProtocolError) as caught:
        server.next_call()
    return str(caught.value)


def test_a_call_and_its_reply() -> None:
    """What a client sends is what the server takes, and the reply comes back."""
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send("py.supervisord.Manager.Start", {"units": ["web"]}))
    call = server.next_call()
    assert call == Call("py.supervisord.Manager.Start", {"units": ["web"]})
    assert (call.interface, call.member) == ("py.supervisord.Manager", "Start")
    assert client.receive_data(server.reply({"job": 3})) == [Reply({"job": 3})]
    assert (client.unanswered, server.unanswered) == (0, 0)


def test_replies_come_in_the_order_of_the_calls() -> None:
    """Calls sent together are answered one after the other, errors among them."""
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send("a.b.One") + client.send("a.b.Two"))
    assert [call.member for call in (server.next_call(), server.next_call()) if call] == ["One", "Two"]
    assert client.receive_data(server.reply({"n": 1}) + server.error("a.b.Bad", {"n": 2})) == [
        Reply({"n": 1}),
        Reply({"n": 2}, "a.b.Bad"),
    ]


def test_a_stream_ends_with_a_reply_that_does_not_continue() -> None:
    """A call with more is answered until a reply says that it is the last."""
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send("a.b.Follow", more=True))
    assert server.next_call() == Call("a.b.Follow", more=True)
    assert client.receive_data(server.reply({"n": 1}, continues=True)) == [Reply({"n": 1}, continues=True)]
    assert client.unanswered == 1
    assert client.receive_data(server.reply({"n": 2})) == [Reply({"n": 2})]
    assert client.unanswered == 0


def test_oneway_is_answered_by_nothing() -> None:
    """Neither a reply nor an error goes to a oneway call, and the client does not wait for one."""
    client, server = ClientConnection(), ServerConnection()
    server.receive_data(client.send("a.b.Poke", oneway=True) + client.send("a.b.Poke", oneway=True))
    server.next_call(), server.next_call()
    assert server.reply({"n": 1}) == b"" == server.error("a.b.Bad", {})
    assert (client.unanswered, server.unanswered) == (0, 0)


def test_continuing_without_more_is_a_bug_of_ours() -> None:
    """The server never continues a reply that nobody asked to be continued."""
    server = ServerConnection()
    server.receive_data(PING)
    server.next_call()
    with pytest.raises(AssertionError):
        server.reply({}, continues=True)


def test_an_abandoned_call_is_forgotten() -> None:
    """The reply after an abandoned call belongs to the next one."""
    server = ServerConnection()
    server.receive_data(b'{"method":"a.b.One","oneway":true}\0' + PING)
    server.next_call(), server.next_call()
    server.abandon()
    assert server.reply({"n": 2}) != b""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0", "one JSON object"),
        (b"hello\0", "one JSON object"),
        (b"[1]\0", "not an array"),
        (b"3\0", "not a number"),
        (b"null\0", "not null"),
        (b'{"method":"a.b.C"}{}\0', "one JSON object"),
        (b'{"method":"a.b.C","method":"a.b.D"}\0', "duplicate key 'method'"),
        (b'{"method":"a.b.C","parameters":{"x":1,"x":2}}\0', "duplicate key 'x'"),
        (b'{"method":"a.b.C","params":{}}\0', "no key 'params'"),
        (b'{"parameters":{}}\0', "names its method"),
        (b'{"method":3}\0', "names its method"),
        (b'{"method":"Ping"}\0', "names its method"),
        (b'{"method":"a.Ping"}\0', "names its method"),
        (b'{"method":"a.b.ping"}\0', "names its method"),
        (b'{"method":"a.b.' + b"C" * 300 + b'"}\0', "names its method"),
        (b'{"method":"a.b.C","parameters":[]}\0', "parameters are an object"),
        (b'{"method":"a.b.C","more":1}\0', "more is true or false"),
        (b'{"method":"a.b.C","more":true,"oneway":true}\0', "oneway call has no reply"),
        (b'{"method":"a.b.C","parameters":{"x":NaN}}\0', "NaN is no number"),
        (b'{"method":"a.b.C","parameters":{"x":-Infinity}}\0', "Infinity is no number"),
        (b'{"method":"a.b.C","parameters":{"x":1e999}}\0', "1e999 is no number"),
        (b'{"method":"a.b.C","parameters":{"x":' + b"1" * 5000 + b"}}\0", "too many digits"),
        (b'{"method":"a.b.C","parameters":{"x":"\xff"}}\0', "bad byte at 37"),
        (b'{"method":"a.b.C","parameters":{"x":"\xed\xa0\x80"}}\0', "UTF-8"),
        (b'{"method":"a.b.C","parameters":{"x":"\\ud800"}}\0', "lone surrogate"),
        (b'{"method":"a.b.C","parameters":{"\\udfff":1}}\0', "lone surrogate"),
        (b"\xef\xbb\xbf" + PING, "one JSON object"),
        (b"[" * 500_000 + b"\0", "nests at most"),
        (b'{"x":' * 100_000 + b"\0", "nests at most"),
    ],
    ids=lambda value: repr(value[:50]),
)
def test_what_is_no_call_is_refused(data: bytes, said: str) -> None:
    """Whatever two parsers could read differently, or one could choke on, is refused with the reason."""
    assert said in refusal(data)


def test_nesting_is_bounded_exactly() -> None:
    """A call as deep as the limit passes, one level more does not."""

    def nested(depth: int) -> bytes:
        return b'{"method":"a.b.C","parameters":' + b'{"x":' * (depth - 2) + b"{}" + b"}" * (depth - 2) + b"}\0"

    assert first_call(nested(DEPTH_MAX)) is not None
    assert f"at most {DEPTH_MAX}" in refusal(nested(DEPTH_MAX + 1))


def test_many_brackets_side_by_side_are_not_deep() -> None:
    """The bound is on depth, not on how many objects there are."""
    assert first_call(b'{"method":"a.b.C","parameters":{"x":[' + b"{}," * 1000 + b"{}]}}\0") is not None


def test_brackets_inside_text_are_not_deep() -> None:
    """Text may hold whatever it likes."""
    assert first_call(b'{"method":"a.b.C","parameters":{"x":"' + b"[" * 1000 + b'"}}\0') is not None


def test_a_frame_is_bounded_before_its_end_comes() -> None:
    """A call that is too long is refused while it is still coming, and its bytes are let go."""
    server = ServerConnection(call_max=1000)
    server.receive_data(b"x" * 999)
    assert server.next_call() is None
    server.receive_data(b"xx")
    for _ in range(2):
        with pytest.raises(VarlinkProtocolError, match="at most 1000 bytes"):
            server.next_call()
    server.receive_data(b"x" * 5000)
    assert not server.has_partial_call


def test_many_calls_may_be_longer_than_one() -> None:
    """The bound is for each call, however many come at once."""
    server = ServerConnection(call_max=len(PING))
    server.receive_data(PING * 50)
    assert sum(server.next_call() is not None for _ in range(50)) == 50
    assert server.next_call() is None


def test_nulls_in_the_header_are_absent() -> None:
    """Absent and null are the same for parameters and flags."""
    assert first_call(b'{"method":"a.b.C","parameters":null,"more":null,"oneway":false}\0') == Call("a.b.C")


def test_a_surrogate_pair_is_a_character() -> None:
    """Two halves that belong together are one character."""
    call = first_call(b'{"method":"a.b.C","parameters":{"x":"\\ud83d\\ude00"}}\0')
    assert call is not None
    assert call.parameters == {"x": "\U0001f600"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"parameters":{}}\0', "nothing had asked"),
        (b'{"error":"NoDots"}\0', "names its error"),
        (b'{"error":"a.b.C","continues":true}\0', "last reply"),
        (b'{"continues":"yes"}\0', "true or false"),
        (b"nonsense\0", "one JSON object"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_noticed(data: bytes, said: str) -> None:
    """The client believes no reply that cannot be one."""
    with pytest.raises(VarlinkProtocolError, match=said):
        ClientConnection().receive_data(data)


def test_a_reply_that_continues_unasked_is_noticed() -> None:
    """A server may not stream to a call without more."""
    client = ClientConnection()
    client.send("a.b.C")
    with pytest.raises(VarlinkProtocolError, match="did not ask for more"):
        client.receive_data(b'{"parameters":{},"continues":true}\0')


def test_a_client_tolerates_what_a_newer_server_adds() -> None:
    """Header keys of replies that this client does not know are left alone."""
    client = ClientConnection()
    client.send("a.b.C")
    assert client.receive_data(b'{"parameters":{"n":1},"com.example.extra":1}\0') == [Reply({"n": 1})]


def test_a_client_sends_no_nonsense() -> None:
    """A method that is none and flags that contradict each other are the caller's mistake."""
    client = ClientConnection()
    with pytest.raises(ValueError, match="no method name"):
        client.send("Ping")
    with pytest.raises(ValueError, match="oneway"):
        client.send("a.b.C", more=True, oneway=True)


def test_an_error_without_a_call() -> None:
    """What cannot be read as a call is still answered with an error that clients understand."""
    client = ClientConnection()
    client.send("a.b.C")
    assert client.receive_data(format_error("a.b.Bad", {"message": "no"})) == [Reply({"message": "no"}, "a.b.Bad")]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=4), max_size=5), st.data())
def test_chunks_do_not_matter(parameters: list[dict[str, Any]], data: st.DataObject) -> None:
    """However the bytes are cut, the same calls arrive, NULs in text and all."""
    client, server = ClientConnection(), ServerConnection()
    stream = b"".join(client.send("a.b.C", given) for given in parameters)
    arrived = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        chunk, stream = stream[:size], stream[size:]
        server.receive_data(chunk)
        while (call := server.next_call()) is not None:
            arrived.append(call.parameters)
    assert arrived == parameters
    replies = b"".join(server.reply(given) for given in arrived)
    middle = len(replies) // 2
    taken = client.receive_data(replies[:middle]) + client.receive_data(replies[middle:])
    assert [reply.parameters for reply in taken] == parameters


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    """Any bytes either make a call, or are refused as a broken protocol, or are not whole yet: nothing else happens."""
    server = ServerConnection(call_max=150)
    server.receive_data(data)
    try:
        while (call := server.next_call()) is not None:
            assert json.dumps(call.parameters) is not None
    except VarlinkProtocolError as error:
        assert str(error)


@pytest.mark.parametrize("piece", [1, 7, 10_000], ids=["bytes", "pieces", "whole"])
def test_where_frames_tell_the_ends_of_calls_what_is_none_spoils_none_after_it(piece: int) -> None:
    """Garbage and what is too large are each told once; the calls between them are read."""
    good = b'{"method":"a.b.C"}\0'
    stream = good + b"garbage\0" + good + b"x" * 3000 + b"\0" + good + b"\0" + good
    connection = ServerConnection(call_max=1000, is_framed=True)
    found = []
    for start in range(0, len(stream), piece):
        connection.receive_data(stream[start : start + piece])
        while True:
            try:
                call = connection.next_call()
            except VarlinkProtocolError as error:
                found.append("too large" if "at most" in error.message else "bad")
                continue
            if call is None:
                break
            found.append("call")
    assert found == ["call", "bad", "call", "too large", "call", "bad", "call"]

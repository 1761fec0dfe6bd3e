"""The client on a real socket: replies, errors, lost connections, time limits."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_py.ctl import client as client_module
from supervisord_py.ctl.client import (
    CallTimeoutError,
    Client,
    ConnectionLostError,
    ControlError,
    SocketDeniedError,
    UnreachableError,
)
from supervisord_py.errors import ProtocolError
from tests.integration.supctl_fake import FakeSupervisor, HangUp, Later, Raise, done, outcome, unit


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeSupervisor]:
    supervisor = FakeSupervisor(tmp_path / "control.sock")
    yield supervisor
    supervisor.close()


def test_a_reply_is_returned_as_it_is_on_the_wire(fake: FakeSupervisor) -> None:
    """A call returns its reply's parameters, whether its name is short or in full."""
    with Client(str(fake.path)) as client:
        assert client.call("Ping") == {"answer": "pong"}
        assert client.call("py.supervisord.Manager.Ping") == {"answer": "pong"}


def test_an_error_carries_what_the_supervisor_said(fake: FakeSupervisor) -> None:
    """A refusal is an exception with the error's name, its fields and the exit code of the contract."""
    fake.on("Cat", Raise("NoSuchUnit", {"unit": "wbe", "suggestions": ["web"], "message": "no such unit: wbe"}))
    with Client(str(fake.path)) as client, pytest.raises(ControlError, match="no such unit: wbe") as caught:
        client.call("Cat", unit="wbe")
    assert (caught.value.name, caught.value.exit_status) == ("NoSuchUnit", 4)
    assert caught.value.parameters["suggestions"] == ["web"]


def test_a_query_that_was_lost_is_asked_again(fake: FakeSupervisor) -> None:
    """The manager dies in the middle of a query: the client asks the next one and its caller sees nothing of it."""
    fake.on("Jobs", HangUp(), HangUp(), {"jobs": []})
    with Client(str(fake.path)) as client:
        assert client.call("Jobs") == {"jobs": []}
    assert len(fake.called("Jobs")) == 3


def test_a_verb_that_was_lost_is_repeated_with_the_same_token(fake: FakeSupervisor) -> None:
    """The second Restart after a lost connection attaches to the jobs of the first, by the token that was made here."""
    fake.on("Restart", HangUp(), done(outcome("web", "restart")))
    with Client(str(fake.path)) as client:
        client.call("Restart", units=["web"], wait=True, plan=False)
    first, second = fake.called("Restart")
    assert first["token"] and first["token"] == second["token"]


def test_each_invocation_has_a_token_of_its_own(fake: FakeSupervisor) -> None:
    """Two restarts that a person asked for are two restarts."""
    fake.on("Restart", done(outcome("web", "restart")))
    with Client(str(fake.path)) as client:
        client.call("Restart", units=["web"], wait=True, plan=False)
        client.call("Restart", units=["web"], wait=True, plan=False)
    first, second = fake.called("Restart")
    assert first["token"] != second["token"]


def test_a_signal_is_never_sent_twice(fake: FakeSupervisor) -> None:
    """A Kill that was lost is repeated with its token, by which the supervisor knows that it was sent."""
    fake.on("Kill", HangUp(), done())
    with Client(str(fake.path)) as client:
        client.call("Kill", units=["web"], signal="SIGHUP", whom="main", plan=False)
    first, second = fake.called("Kill")
    assert first["token"]
    assert first == second


def test_what_has_no_token_is_not_repeated(fake: FakeSupervisor) -> None:
    """Cancel is not made again behind its caller's back: the caller is told that nobody knows."""
    fake.on("Cancel", HangUp(), {"job": 3, "durable": True})
    with Client(str(fake.path)) as client, pytest.raises(ConnectionLostError, match="not known"):
        client.call("Cancel", job=3)
    assert len(fake.called("Cancel")) == 1


def test_a_connection_that_idled_too_long_is_made_again_before_the_call(fake: FakeSupervisor) -> None:
    """The server closes idle connections; a call after that is made on a new one, once."""
    fake.on("Jobs", {"jobs": []})
    fake.on("Cancel", {"job": 3, "durable": True})
    with Client(str(fake.path)) as client:
        client.call("Jobs")
        fake.cut_all()
        client.call("Cancel", job=3)
    assert len(fake.called("Cancel")) == 1


def test_nobody_there_is_told_at_once(tmp_path: Path) -> None:
    """Without a loss before it, a missing socket is not waited for."""
    started = time.monotonic()
    with Client(str(tmp_path / "none.sock")) as client, pytest.raises(UnreachableError, match="no such socket"):
        client.call("Ping")
    assert time.monotonic() - started < 1


def test_a_socket_that_refuses_is_told_at_once(tmp_path: Path) -> None:
    """What a supervisor that was killed left behind refuses connections: exit 7, without waiting."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Client(path) as client, pytest.raises(UnreachableError, match="nobody listens") as caught:
        client.call("Ping")
    assert caught.value.exit_status == 7


def test_a_keeper_that_is_gone_too_ends_the_waiting(fake: FakeSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss followed by refused connections ends in exit 7 after the time that a new manager could need."""
    monkeypatch.setattr(client_module, "RECONNECT_S", 0.2)
    lost = threading.Event()
    fake.on("Jobs", HangUp())
    with Client(str(fake.path), on_loss=lambda: (fake.stop_listening(), lost.set())[0]) as client:
        with pytest.raises(UnreachableError) as caught:
            client.call("Jobs")
    assert lost.is_set()
    assert caught.value.exit_status == 7


def test_a_query_that_kills_every_manager_is_given_up(fake: FakeSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query whose connections are lost again and again ends, so that it cannot keep the manager down for ever."""
    monkeypatch.setattr(client_module, "TROUBLE_S", 0.1)
    fake.on("Jobs", HangUp())
    with Client(str(fake.path)) as client, pytest.raises(UnreachableError, match="again and again"):
        client.call("Jobs")


def test_the_time_limit_holds_when_nobody_answers(fake: FakeSupervisor) -> None:
    """An accepted call that is not answered ends with 124 when the time is over."""
    fake.on("Jobs", lambda _: [Later(threading.Event())])
    with Client(str(fake.path), timeout_s=0.1) as client, pytest.raises(CallTimeoutError) as caught:
        client.call("Jobs")
    assert caught.value.exit_status == 124


def test_what_is_left_of_the_time_goes_into_the_repeated_call(fake: FakeSupervisor) -> None:
    """A repeated verb gets the rest of the limit, not all of it anew."""
    fake.on("Start", HangUp(), done(outcome("web")))
    with Client(str(fake.path), timeout_s=30) as client:
        client.call("Start", units=["web"], wait=True, plan=False)
    first, second = (call["timeout_ms"] for call in fake.called("Start"))
    assert 0 < second < first <= 30_000


def test_a_late_reply_is_not_taken_for_the_next_one(fake: FakeSupervisor) -> None:
    """After a time-out the connection is not used again: its reply would answer the wrong question."""
    answer = threading.Event()
    fake.on("Jobs", lambda _: [Later(answer), {"jobs": []}])
    with Client(str(fake.path), timeout_s=0.1) as client:
        with pytest.raises(CallTimeoutError):
            client.call("Jobs")
        answer.set()
        assert client.call("Ping") == {"answer": "pong"}


def test_a_stream_yields_each_reply_and_ends(fake: FakeSupervisor) -> None:
    """``stream`` gives the replies in order and stops after the last."""
    fake.on("List", lambda _: [{"units": [unit("a")]}, {"units": [unit("b")]}])
    with Client(str(fake.path)) as client:
        names = [reply["units"][0]["name"] for reply in client.stream("List", units=[], failed=False)]
    assert names == ["a", "b"]


def test_an_error_ends_a_stream_after_what_came_before(fake: FakeSupervisor) -> None:
    """Replies before an error are delivered, then the error is raised."""
    fake.on("List", lambda _: [{"units": [unit("a")]}, {"units": [unit("b")]}, Raise("Busy", {"message": "busy"})])
    seen = []
    with Client(str(fake.path)) as client, pytest.raises(ControlError, match="busy"):
        for reply in client.stream("List", units=[], failed=False):
            seen.append(reply["units"][0]["name"])
    assert seen == ["a"]


def test_a_stream_that_is_cut_says_so(fake: FakeSupervisor) -> None:
    """A stream is not restarted behind its reader's back."""
    fake.on("List", lambda _: [{"units": [unit("a")]}, HangUp()])
    with Client(str(fake.path)) as client, pytest.raises(ConnectionLostError):
        list(client.stream("List", units=[], failed=False))


def test_waiting_until_the_supervisor_is_gone(fake: FakeSupervisor) -> None:
    """``wait_until_gone`` outlives the manager's connections and returns when nobody listens any more."""
    fake.on("Ping", lambda _: [{"answer": "pong"}], lambda _: fake.stop_listening() or [HangUp()])
    with Client(str(fake.path), timeout_s=10) as client:
        client.wait_until_gone()
    assert len(fake.called("Ping")) == 2


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    """While no manager accepts, callers queue in the kernel; when the queue is full they wait and do not fail."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as crowd:
        listener.bind(path)
        listener.listen(1)
        while True:
            other = crowd.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            try:
                other.connect(path)
            except BlockingIOError:
                break
        with Client(path, timeout_s=0.2) as client, pytest.raises(CallTimeoutError):
            client.call("Ping")

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(1024):
                        connection.sendall(b'{"parameters":{"answer":"pong"}}\0')
                        return

        server = threading.Thread(target=serve)
        server.start()
        crowd.close()
        with Client(path, timeout_s=30) as client:
            assert client.call("Ping") == {"answer": "pong"}
        server.join(30)
        assert not server.is_alive()


def test_a_socket_that_may_not_be_opened_is_5(fake: FakeSupervisor) -> None:
    """Kept out by the mode of the socket: not permitted, which is not the same as nobody there."""
    fake.path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        with Client(str(fake.path)) as client, pytest.raises(SocketDeniedError) as caught:
            client.call("Ping")
    finally:
        if is_root:
            os.seteuid(0)
    assert caught.value.exit_status == 5


def test_what_is_no_supervisor_is_told(tmp_path: Path) -> None:
    """Something else listens there and answers something else: an error, not a traceback and not a wait."""
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n\0")

        server = threading.Thread(target=serve)
        server.start()
        with Client(path) as client, pytest.raises(ProtocolError, match="JSON"):
            client.call("Ping")
        server.join(30)

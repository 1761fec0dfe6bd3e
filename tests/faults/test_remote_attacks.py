"""Attacks on the remote listeners: silent crowds, garbage, strangers, replays, and those who read nothing."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest
import zmq
from zmq.utils.monitor import parse_monitor_message

from supervisord_py.host.remote_door import WAITING_MAX
from supervisord_py.wire.varlink import CALL_MAX
from tests.integration.remote_rig import WAIT_S, Dealer, Keys, Remote
from tests.integration.supervisor_rig import supervisor, until

CROWD = 600
MESSAGES = 15_000

PONG = {"parameters": {"answer": "pong"}}
QUERY = {"filter": {"units": [], "events": []}, "last": 500}
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\3\0CURVE" + b"\0" * 15 + b"\0" * 32
"""What a client of CURVE says first (ZMTP 3.0)."""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    made = Remote()
    try:
        made.keys = Keys(tmp_path_factory.mktemp("attacks"))
        for name in ("alice", "mallory"):
            made.keys.make(name)
        settings = made.settings('"operator"', '["journal", "send"]', '[bus]\nrate-limit = "100000/s"\n')
        web = '[service]\nexec-start = ["/bin/sleep", "1000"]\n'
        with supervisor({"web": web}, settings=settings) as made.running:
            made.wait_listening()
            yield made
    finally:
        made.close()


@contextmanager
def unharmed(remote: Remote, more_mib: int = 64) -> Iterator[None]:
    """The manager is the same one afterwards, answers others at once, and has let go of everything."""
    manager = psutil.Process(remote.running.manager_pid())
    descriptors, resident = manager.num_fds(), manager.memory_info().rss
    with remote.dealer("alice") as witness:
        assert witness.call("Manager.Ping") == PONG
        yield
        assert witness.call("Manager.Ping") == PONG
    assert remote.running.manager_pid() == manager.pid
    until(lambda: manager.num_fds() <= descriptors + 8, f"{manager.num_fds()} descriptors, {descriptors} before")
    assert manager.memory_info().rss - resident < more_mib * 2**20


def connected(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    made = socket.socket()
    made.settimeout(WAIT_S)
    made.connect((host, int(port)))
    return made


def is_open(connection: socket.socket) -> bool:
    """Whether the other end has not hung up; what it has said is read."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@pytest.mark.parametrize("listener", ["control", "bus"])
def test_a_crowd_that_says_nothing_is_bounded(remote: Remote, listener: str) -> None:
    """Whoever comes with a key gets in meanwhile, and who is inside stays."""
    address = remote.control if listener == "control" else remote.bus
    manager = psutil.Process(remote.running.manager_pid())
    descriptors = manager.num_fds()
    with unharmed(remote), ExitStack() as crowd:
        silent = [crowd.enter_context(connected(address)) for _ in range(CROWD)]
        until(lambda: sum(map(is_open, silent)) <= WAITING_MAX, "an end of most of them")
        # Each has two: libzmq's own, and ours.
        assert manager.num_fds() < descriptors + 2 * WAITING_MAX + 64
        with remote.dealer("mallory") as newcomer:
            assert newcomer.call("Manager.Ping") == PONG


def test_garbage_before_the_handshake_costs_its_sender(remote: Remote) -> None:
    """Anything at all, a handshake that is cut anywhere, and one that is not encrypted for us."""
    rng = random.Random(7)
    hello = GREETING + b"\4\xc8\5HELLO\1\0" + rng.randbytes(192)
    initiate = hello + b"\4\xff\10INITIATE" + rng.randbytes(246)
    spoken = [rng.randbytes(rng.choice([1, 9, 64, 500, 70_000])) for _ in range(100)]
    spoken += [hello[: rng.randrange(len(hello))] for _ in range(100)] + [hello, initiate] * 50
    spoken += [GREETING.replace(b"CURVE", b"NULL\0") + b"\4\x19\5READY\x0bSocket-Type\0\0\0\6DEALER"] * 20
    spoken += [GREETING.replace(b"CURVE", b"PLAIN") + b"\4\x0d\5HELLO\5admin\0"] * 20
    with unharmed(remote):
        for data in spoken:
            with connected(remote.control) as stranger:
                try:
                    stranger.sendall(data)
                except OSError:
                    continue  # it has hung up already
        with connected(remote.control) as stranger:
            stranger.sendall(hello)
            until(lambda: not is_open(stranger), "the end of a connection with a wrong key")


def test_strangers_fill_neither_the_journal_nor_the_time(remote: Remote) -> None:
    """Many keys that nobody knows, over and over: some of them are records, the others are counted there."""
    with unharmed(remote), ExitStack() as strangers:
        for _ in range(300):
            public, secret = zmq.curve_keypair()
            made = strangers.enter_context(zmq.Context.instance().socket(zmq.DEALER))
            made.linger = 0
            made.reconnect_ivl = 20
            made.curve_serverkey, made.curve_publickey = remote.keys.server.public.encode(), public
            made.curve_secretkey = secret
            made.connect(remote.bus)
        with remote.dealer("mallory", remote.bus) as newcomer:
            assert "ack" in newcomer.ask(event="x")
        until(lambda: len(denied(remote)) > 100, "the first of them")
        until(lambda: any(record.get("suppressed") for record in denied(remote)), "the count of the others")
    assert all(record["key"] is None and record["address"] for record in denied(remote))


def denied(remote: Remote) -> list[dict[str, Any]]:
    return [
        each for each in remote.running.records() if each["event"] == "command.denied" and each["verb"] == "connect"
    ]


def test_the_public_key_of_another_is_of_no_use(remote: Remote) -> None:
    """It lies about for everybody to see: without its secret half nobody gets in with it."""
    with unharmed(remote), zmq.Context.instance().socket(zmq.DEALER) as thief:
        thief.linger = 0
        thief.curve_serverkey = remote.keys.server.public.encode()
        thief.curve_publickey = remote.keys.own["alice"].public.encode()
        secret = remote.keys.own["mallory"].secret
        assert secret is not None
        thief.curve_secretkey = secret.encode()
        monitor = thief.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        thief.connect(remote.control)
        thief.send(b'{"method":"py.supervisord.Manager.Ping"}')
        for _ in range(3):
            assert monitor.poll(int(WAIT_S * 1000))
            assert parse_monitor_message(monitor.recv_multipart())["event"] == zmq.EVENT_DISCONNECTED
        assert not thief.poll(100)
        thief.disable_monitor()
        monitor.close(0)


def test_what_was_recorded_cannot_be_played_again(remote: Remote) -> None:
    """All that a client has said, said once more on another connection, does nothing."""
    with _Wire(remote.control) as wire, remote.dealer("alice", wire.address) as dealer:
        done = dealer.call("Manager.Restart", units=["web"], wait=True, plan=False, reason="once")
        assert done["parameters"]["outcomes"][0]["result"] == "done"
    assert len(wire.heard) > 500

    def restarts() -> int:
        return sum(record["event"] == "command" and record["reason"] == "once" for record in remote.running.records())

    assert restarts() == 1
    with unharmed(remote):
        for _ in range(3):
            with connected(remote.control) as replay:
                replay.sendall(bytes(wire.heard))
                until(lambda: not is_open(replay), "the end of the connection")
    assert restarts() == 1


class _Wire:
    """Somebody in the middle, who passes everything on and keeps what the client says."""

    def __init__(self, address: str) -> None:
        self._target = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = bytearray()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]

    def __enter__(self) -> "_Wire":
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in (self._listener, *self._ends):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its other end was quicker
        for thread in list(self._threads):
            thread.join(WAIT_S)
        for each in (self._listener, *self._ends):
            each.close()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        server = connected(self._target)
        server.settimeout(None)
        self._ends = [client, server]
        back = threading.Thread(target=self._pass, args=(server, client, bytearray()))
        self._threads.append(back)
        back.start()
        self._pass(client, server, self.heard)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(65536):
                kept += data
                target.sendall(data)
        except OSError:
            pass  # the end


def test_who_follows_and_does_not_read_is_told_what_it_missed(remote: Remote) -> None:
    """A follower that takes nothing costs a bounded amount of memory, and nobody else anything."""
    follow = {"method": "py.supervisord.Journal.Follow", "more": True}
    wanted = {"filter": {"units": [], "events": ["unit.message"]}, "last": 0}
    with unharmed(remote), remote.dealer("mallory", ahead=1) as slow, remote.dealer("alice", remote.bus) as sender:
        slow.send(json.dumps(follow | {"parameters": wanted}).encode())
        until(lambda: "ack" in sender.ask(event="the first") and slow.socket.poll(100), "the beginning")
        first = sender.ask(event="the next")["seq"]
        while slow.hear()["parameters"]["record"]["seq"] < first:
            pass
        _flood(sender, MESSAGES)
        seen, dropped, last = [], 0, 0
        # What was dropped is told with the next record that fits.
        while not last or seen[-1] < last:
            if not last and not slow.socket.poll(1000):
                last = sender.ask(event="the last")["seq"]
            reply = slow.hear()["parameters"]
            seen.append(reply["record"]["seq"])
            dropped += reply["dropped"] or 0
        assert seen == sorted(set(seen))
        assert dropped > 0
        assert len(seen) + dropped == MESSAGES + 1


def _flood(sender: Dealer, many: int) -> None:
    """Send so many messages of a kilobyte, and return when they are written."""
    text, acknowledged = "x" * 1000, 0
    for start in range(0, many, 500):
        for number in range(start, start + 500):
            sender.send(json.dumps({"v": 1, "id": number, "event": "e", "text": text}).encode())
        while acknowledged < start + 500:
            answer = sender.hear()
            assert "ack" in answer, answer
            acknowledged += 1


def test_calls_whose_replies_are_not_read_are_held_back(remote: Remote) -> None:
    """Many large questions at once: they are answered as they are read, one after the other."""
    call = json.dumps({"method": "py.supervisord.Journal.Query", "parameters": QUERY})
    with unharmed(remote), remote.dealer("mallory", ahead=1) as greedy, remote.dealer("alice") as other:
        greedy.socket.sndhwm = 0
        for _ in range(200):
            greedy.send(call.encode())
        for _ in range(20):
            began_s = time.monotonic()
            assert other.call("Manager.Ping") == PONG
            assert time.monotonic() - began_s < WAIT_S / 2
        assert len(greedy.hear()["parameters"]["records"]) == 500


def test_frames_that_are_too_large_end_with_their_connection(remote: Remote) -> None:
    """Above 2 MiB nothing is read, and more than the server takes is not kept; both come again by themselves."""
    with unharmed(remote, 96), remote.dealer("mallory") as large:
        large.send(b" " * (3 * CALL_MAX))
        for _ in range(10):
            large.send(b" " * (CALL_MAX + 500_000))

        def answered() -> bool:
            large.send(b'{"method":"py.supervisord.Manager.Ping"}')
            while large.socket.poll(500):
                if large.hear() == PONG:
                    return True
            return False

        until(answered, "an answer on the next connection", 2 * WAIT_S)

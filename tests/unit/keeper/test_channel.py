"""Packets between keeper and manager: whole, in order, with their descriptors, never blocking."""

import gc
import json
import os
import socket
from collections.abc import Iterator

import pytest

from supervisord_py.keeper.protocol import FDS_MAX, INLINE_MAX, Channel, keeper_argv


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    one.close()
    other.close()


def open_fds() -> int:
    gc.collect()  # what another test has left behind is closed now, and not between two counts
    return len(os.listdir("/proc/self/fd"))


def test_a_message_and_its_descriptors_arrive(pair: tuple[Channel, Channel]) -> None:
    """200 descriptors beside one message, in order, each closed on exec."""
    one, other = pair
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(FDS_MAX)]
    one.send({"hello": "ü"}, files)
    assert one.flush()
    received = other.receive()
    assert received is not None
    message, fds = received
    assert message == {"hello": "ü"}
    assert len(fds) == FDS_MAX and not any(os.get_inheritable(fd) for fd in fds)
    for fd in [*files, *fds]:
        os.close(fd)
    assert other.receive() is None


@pytest.mark.parametrize("size", [INLINE_MAX - 20, INLINE_MAX, 5_000_000])
def test_any_size_arrives_with_descriptors(pair: tuple[Channel, Channel], size: int) -> None:
    """Below and above the bound of a packet; nothing of the memfd is left open."""
    one, other = pair
    before = open_fds()
    read_end, write_end = os.pipe()
    one.send({"text": "x" * size}, [write_end])
    one.flush()
    received = other.receive()
    assert received is not None and received[0] == {"text": "x" * size}
    os.write(received[1][0], b"!")
    assert os.read(read_end, 1) == b"!"
    for fd in (read_end, write_end, *received[1]):
        os.close(fd)
    assert open_fds() == before


def test_what_does_not_fit_waits_in_order(pair: tuple[Channel, Channel]) -> None:
    """A full socket makes ``flush`` say no; nothing blocks, nothing is lost or swapped."""
    one, other = pair
    for number in range(500):
        one.send({"n": number, "pad": "x" * 5000})
    assert not one.flush() and one.is_waiting
    seen = []
    while one.is_waiting or len(seen) < 500:
        while (received := other.receive()) is not None:
            seen.append(received[0]["n"])
        one.flush()
    assert seen == list(range(500))


def test_what_was_sent_before_a_death_is_read_though_the_dead_left_packets_unread(
    pair: tuple[Channel, Channel],
) -> None:
    """The kernel says ECONNRESET first, when the other end died with our packets unread; its own are behind that."""
    one, other = pair
    one.send({"to": "the dead"})
    one.flush()
    other.send({"last": "words"})
    other.flush()
    other.close()
    assert one.receive() == ({"last": "words"}, [])
    with pytest.raises(EOFError):
        one.receive()
    one.send({"x": 1})
    with pytest.raises(OSError):
        one.flush()


@pytest.mark.parametrize("packet", [b"no json", b"\xff", b'{"memfd": 5}', b"[" * 9000 + b"]" * 9000, b"[1]", b"3"])
def test_garbage_is_an_error_and_leaks_nothing(pair: tuple[Channel, Channel], packet: bytes) -> None:
    """What is not one of our packets raises ValueError, and its descriptors are closed."""
    one, other = pair
    before = open_fds()
    with open("/dev/null") as file:
        socket.send_fds(one.sock, [packet], [] if b"memfd" in packet else [file.fileno()])
    with pytest.raises(ValueError):
        other.receive()
    assert open_fds() == before


def test_the_keepers_command_carries_the_configuration() -> None:
    """``keeper_argv`` starts the interpreter isolated, on the keeper's own file, with the configuration as JSON."""
    argv = keeper_argv({"runtime_dir": "/x", "n": "ü"})
    assert {"-I", "-S"} < set(argv)
    assert json.loads(argv[argv.index("--config") + 1]) == {"runtime_dir": "/x", "n": "ü"}
    assert os.path.isfile(argv[argv.index("--config") - 1])


def test_what_cannot_be_sent_leaves_nothing_behind(pair: tuple[Channel, Channel]) -> None:
    """No free descriptor for one of them: nothing is queued, and what was duplicated before is closed again."""
    one, other = pair
    before = open_fds()
    with pytest.raises(OSError, match="Bad file descriptor"):
        one.send({"text": "x" * INLINE_MAX * 2}, [0, 1, 10**6])
    assert open_fds() == before
    assert one.flush() and other.receive() is None

"""Whatever comes in at the control socket: an error or a closed connection, and the next client is answered."""

import asyncio
import os
import random
import resource
import socket
from pathlib import Path

import pytest

from supervisord_py.host.control_server import ControlLimits
from supervisord_py.host.refusals import INVALID
from tests.integration.control_rig import Rig, drive, running, until

UID = os.getuid()
PING = b'{"method":"py.supervisord.Manager.Ping"}\0'
PONG = b'{"parameters":{"answer":"pong"}}\0'
MEBIBYTE = 1024 * 1024


async def told(rig: Rig, data: bytes) -> bytes:
    """Send ``data``, close the sending half, and return all that the server says until it closes."""
    loop = asyncio.get_running_loop()
    answer = b""
    with rig.raw() as connection:
        connection.setblocking(False)
        async with asyncio.timeout(30):
            try:
                await loop.sock_sendall(connection, data)
                connection.shutdown(socket.SHUT_WR)
                while piece := await loop.sock_recv(connection, 1 << 16):
                    answer += piece
            except ConnectionError:
                pass
    return answer


async def goes_on(rig: Rig) -> None:
    """The next well-behaved client is answered, a change among its calls."""
    assert await rig.call("Ping") == {"answer": "pong"}
    reply = await rig.call("Restart", units=["db"], wait=True, plan=False)
    assert [outcome["result"] for outcome in reply["outcomes"]] == ["done"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0", b"one JSON object"),
        (b"GET / HTTP/1.1\r\n\r\n\0", b"one JSON object"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"one JSON object"),
        (b"[" * 900_000 + b"\0", b"nests at most 64 deep"),
        (b'{"parameters":' * 60_000 + b"\0", b"nests at most 64 deep"),
        (b'{"method":"py.supervisord.Manager.Ping","parameters":{"x":"\xc3\x28"}}\0', b"UTF-8"),
        (b'{"method":"py.supervisord.Manager.Ping","parameters":{"x":"\\udead"}}\0', b"lone surrogate"),
        (b'{"method":"py.supervisord.Manager.Ping","parameters":{"x":' + b"9" * 100_000 + b"}}\0", b"too many digits"),
        (b'{"method":"py.supervisord.Manager.Ping","method":"x.y.Z"}\0', b"duplicate key"),
        (b'{"method":"py.supervisord.Manager.Ping","more":true,"oneway":true}\0', b"oneway"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_garbage_is_named_and_the_next_client_is_answered(tmp_path: Path, data: bytes, said: bytes) -> None:
    """What is no call is answered with InvalidRequest and its reason, closed, and on record; what came before it
    counts."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            answer = await told(rig, PING + data + PING)
            assert answer.startswith(PONG + b'{"error":"py.supervisord.Manager.InvalidRequest"')
            assert said in answer
            assert answer.count(b"\0") == 2
            await goes_on(rig)
            [record] = rig.supervisor.events("command.invalid")
            assert said.decode() in record["message"]
            assert (record["uid"], record["pid"]) == (UID, os.getpid())

    drive(main())


def test_random_garbage(tmp_path: Path) -> None:
    """Hundreds of connections with random bytes and mangled calls: errors or silence, and a journal that is not
    flooded."""
    dice = random.Random(20261120)
    call = b'{"method":"py.supervisord.Manager.List","parameters":{"units":["web","db"],"failed":false},"more":true}\0'

    def mangled() -> bytes:
        if dice.random() < 0.3:
            return dice.randbytes(dice.randrange(1, 3000))
        data = bytearray(call * dice.randrange(1, 4))
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(data))
            match dice.randrange(3):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at : at + dice.randrange(1, 20)]
                case _:
                    data[at:at] = dice.choice([b"\0", b'"', b"{", b"[", b"\\u0000", b"\xff", call[:30]])
            data = data or bytearray(b"x")
        return bytes(data)

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            for _ in range(300):
                answer = await told(rig, mangled())
                assert not answer or answer.endswith(b"\0")
                assert b"InternalError" not in answer
            await goes_on(rig)
            # The bucket of this uid, and what it refills with while the test runs.
            assert INVALID.burst <= len(rig.supervisor.events("command.invalid")) < 100

    drive(main())


def test_half_frames(tmp_path: Path) -> None:
    """A call cut at every byte, by a client that leaves or by one that stays, harms nobody."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID, limits=ControlLimits(rest_of_call_s=0.2)) as rig:
            staying = []
            for size in range(len(PING)):
                assert await told(rig, PING[:size]) == b""
                staying.append(rig.raw())
                staying[-1].sendall(PING[:size])
            await goes_on(rig)
            # One sent nothing at all and may stay longer.
            await until(lambda: rig.server.connections <= 1)
            for connection in staying:
                connection.close()
            assert not rig.supervisor.events("command.invalid")

    drive(main())


@pytest.mark.parametrize(
    "head", [b"", b'{"method":"py.supervisord.Manager.Ping","parameters":{"x":"'], ids=["raw", "json"]
)
def test_a_frame_of_100_megabytes_takes_no_memory(tmp_path: Path, head: bytes) -> None:
    """Ten clients that send 100 MB without an end are refused at the bound; the server's memory does not grow with
    them."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            await goes_on(rig)
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            refused = await asyncio.gather(*(flood(rig) for _ in range(10)))
            after_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert all(sent < 10 * MEBIBYTE for sent in refused)
            assert after_kib - before_kib < 64 * 1024
            await goes_on(rig)

    async def flood(rig: Rig) -> int:
        """Send until the server has had enough; return how much it took."""
        loop, chunk, sent = asyncio.get_running_loop(), b"x" * 65536, 0
        with rig.raw() as connection:
            connection.setblocking(False)
            try:
                await loop.sock_sendall(connection, head)
                while sent < 100 * MEBIBYTE:
                    await loop.sock_sendall(connection, chunk)
                    sent += len(chunk)
            except ConnectionError:
                pass
        return sent

    drive(main())


@pytest.mark.parametrize("data", [b"", PING[:20], PING], ids=["silent", "half a call", "a call each"])
def test_five_thousand_connections(tmp_path: Path, data: bytes) -> None:
    """While 5,000 connections are held open, a client that means it is answered at once, and again afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 7000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    crowd: list[socket.socket] = []

    def flood(path: str) -> None:
        for _ in range(5000):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            crowd.append(connection)
            connection.connect(path)
            try:
                connection.sendall(data)
            except ConnectionError:
                pass  # It had to make room already.

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            flooding = asyncio.ensure_future(asyncio.to_thread(flood, rig.path))
            while not flooding.done():
                await goes_on(rig)
            await flooding
            assert len(crowd) == 5000
            assert rig.server.connections <= rig.server.limits.seats.total
            for _ in range(20):
                await goes_on(rig)
            for connection in crowd:
                connection.close()
            await until(lambda: rig.server.connections == 0)
            await goes_on(rig)

    try:
        drive(main())
    finally:
        for connection in crowd:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_slow_readers(tmp_path: Path) -> None:
    """A hundred clients that ask for megabytes and read nothing are cut off; memory stays bounded, others are
    served."""

    async def main() -> None:
        limits = ControlLimits(stall_s=0.5)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            rig.supervisor.lines["db"] = ["x" * 1000] * 500
            call = b'{"method":"py.supervisord.Manager.Status","parameters":{"units":["db"],"lines":500}}\0'
            before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            crowd = [rig.raw() for _ in range(100)]
            for connection in crowd:
                connection.sendall(call * 10)
            await goes_on(rig)
            await until(lambda: rig.server.connections == 0)
            # Each holds one reply of half a megabyte at most, of the ten that it asked for.
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 * 1024
            await goes_on(rig)
            for connection in crowd:
                connection.close()

    drive(main())

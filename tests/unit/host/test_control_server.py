"""The server's manners: order, half-closed peers, peers that vanish, bounds on time, bytes and connections."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from supervisord_py.host.control_seats import SeatLimits
from supervisord_py.host.control_server import ControlLimits
from supervisord_py.wire.varlink import CALL_MAX, ClientConnection
from tests.integration.control_rig import CallFailed, Owner, Rig, drive, running, until

UID = os.getuid()
PING = b'{"method":"py.supervisord.Manager.Ping"}\0'
PONG = b'{"parameters":{"answer":"pong"}}\0'
FOLLOW = {"filter": {"units": [], "events": []}, "last": 0}
SLOW = {"units": ["slow"], "wait": True, "plan": False}


async def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes; what it reset is what it closed."""
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    told = b""
    async with asyncio.timeout(30):
        try:
            while data := await loop.sock_recv(connection, 1 << 16):
                told += data
        except ConnectionError:
            pass
    return told


def test_pipelined_calls_are_answered_in_order(tmp_path: Path) -> None:
    """A thousand calls in one write get a thousand replies in their order, oneway ones none."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            client = await rig.connect()
            for number in range(1000):
                client.send("Can", verb="ping", unit=("web", "db")[number % 2])
                client.send("Ping", oneway=True)
            whys = [(await client.reply()).parameters["why"] for _ in range(1000)]
            assert [("may ping web" in why, "may ping db" in why) for why in whys] == [
                (True, False),
                (False, True),
            ] * 500
            assert client.wire.unanswered == 0
            await client.close()

    drive(main())


def test_others_get_their_turn_between_pipelined_calls(tmp_path: Path) -> None:
    """A client with thousands of calls in flight does not keep another one waiting for all of them."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            greedy, modest = await rig.connect(), await rig.connect()
            greedy.writer.write(PING * 5000)
            await until(lambda: rig.server.connections == 2)
            assert await modest.call("Ping") == {"answer": "pong"}
            answered = 0
            async with asyncio.timeout(30):
                while answered < 5000:
                    answered += (await greedy.reader.read(1 << 16)).count(b"\0")
            await greedy.close()
            await modest.close()

    drive(main())


def test_a_peer_may_close_its_sending_half(tmp_path: Path) -> None:
    """What ``nc -N`` does: send, close the sending half, read the replies, also one that takes a while."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            with rig.raw() as connection:
                wire = ClientConnection()
                connection.sendall(PING + wire.send("py.supervisord.Manager.Wait", {"unit": "db", "until": "active"}))
                connection.shutdown(socket.SHUT_WR)
                await until(lambda: rig.supervisor.waiters == 1)
                await rig.call("Start", units=["db"], wait=True, plan=False)
                answer = await read_all(connection)
            assert answer.startswith(PONG + b'{"parameters":{"unit":{"name":"db"')

    drive(main())


def test_a_peer_that_closes_one_half_and_then_the_other_is_gone(tmp_path: Path) -> None:
    """After the sending half the rest may go too, and what waited for it ends."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID, limits=ControlLimits(gone_grace_s=0.01)) as rig:
            with rig.raw() as connection:
                wire = ClientConnection()
                connection.sendall(wire.send("py.supervisord.Manager.Wait", {"unit": "slow", "until": "active"}))
                connection.shutdown(socket.SHUT_WR)
                await until(lambda: rig.supervisor.waiters == 1)
                assert await rig.call("Ping")
                assert rig.supervisor.waiters == 1
            await until(lambda: rig.supervisor.waiters == 0 == rig.server.connections)

    drive(main())


def test_calls_of_a_peer_that_left_are_carried_out(tmp_path: Path) -> None:
    """Whoever sends and goes away without reading has asked all the same: every whole call counts, half ones do not."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            wire = ClientConnection()
            start = {"wait": True, "plan": False}
            with rig.raw() as connection:
                connection.sendall(
                    wire.send("py.supervisord.Manager.Start", start | {"units": ["db"]}, oneway=True)
                    + wire.send("py.supervisord.Manager.Start", start | {"units": ["worker@1"]})
                    + wire.send("py.supervisord.Manager.Start", start | {"units": ["worker@2"]})[:-1]
                )
            await until(lambda: len(rig.supervisor.commands) == 2)
            await until(lambda: rig.server.connections == 0)
            assert [units for _, units, _, _ in rig.supervisor.commands] == [("db",), ("worker@1",)]

    drive(main())


def test_a_verbs_job_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    """A client that dies while it waits leaves its job running and nothing of its own behind."""

    async def main() -> None:
        limits = ControlLimits(gone_grace_s=0.01)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            client = await rig.connect()
            client.send("Start", **SLOW)
            await until(lambda: bool(rig.supervisor.commands))
            await client.close()
            await until(lambda: rig.server.connections == 0)
            assert [job["unit"] for job in (await rig.call("Jobs"))["jobs"]] == ["slow"]

    drive(main())


def test_a_peer_that_vanishes_while_unread_calls_wait_is_noticed(tmp_path: Path) -> None:
    """A peer with more calls sent than are read ahead is not read from; that it is gone is noticed all the same."""

    async def main() -> None:
        limits = ControlLimits(call_max=10_000, gone_grace_s=0.01)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            connection = rig.raw()
            wire = ClientConnection()
            follow = wire.send("py.supervisord.Journal.Follow", FOLLOW, more=True)
            await asyncio.to_thread(connection.sendall, follow + PING * 1000)
            await until(lambda: rig.supervisor.following == 1)
            connection.close()
            await until(lambda: rig.supervisor.following == 0 == rig.server.connections)

    drive(main())


def test_silence_is_bounded(tmp_path: Path) -> None:
    """Who never calls, pauses too long between calls, or never ends a call, is closed; a stream may last."""

    async def main() -> None:
        limits = ControlLimits(first_call_s=0.05, between_calls_s=0.05, rest_of_call_s=0.05)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            silent, caller, dripping = rig.raw(), rig.raw(), rig.raw()
            caller.sendall(PING)
            dripping.sendall(PING[:10])
            stream = await rig.connect()
            stream.send("py.supervisord.Journal.Follow", more=True, **FOLLOW)
            assert await read_all(silent) == b""
            assert await read_all(caller) == PONG
            assert await read_all(dripping) == b""
            for connection in (silent, caller, dripping):
                connection.close()
            await rig.call("Start", units=["db"], wait=True, plan=False)
            assert (await stream.reply()).parameters["record"]["event"] == "command"
            await stream.close()

    drive(main())


def test_a_call_that_drips_is_cut_off(tmp_path: Path) -> None:
    """Sending a byte now and then does not keep a half call alive."""

    async def main() -> None:
        limits = ControlLimits(first_call_s=30, rest_of_call_s=0.1)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            with rig.raw() as connection:
                connection.setblocking(False)
                loop = asyncio.get_running_loop()
                with pytest.raises(ConnectionError):
                    async with asyncio.timeout(30):
                        while True:
                            await loop.sock_sendall(connection, b"x")
                            await asyncio.sleep(0)

    drive(main())


def test_a_reader_of_a_plain_reply_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    """Replies pile up no higher than the bound, and then the connection ends; others are served meanwhile."""

    async def main() -> None:
        limits = ControlLimits(stall_s=0.1, unread_max=10_000)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            rig.supervisor.lines["web"] = ["x" * 1000] * 1000
            wire = ClientConnection()
            status = wire.send("py.supervisord.Manager.Status", {"units": ["web"], "lines": 1000})
            with rig.raw() as connection:
                await asyncio.to_thread(connection.sendall, status * 5)
                await until(lambda: rig.server.connections == 1)
                assert await rig.call("Ping")
                await until(lambda: rig.server.connections == 0)

    drive(main())


def test_a_slow_reader_of_a_stream_holds_only_itself_back(tmp_path: Path) -> None:
    """The stream of a reader that stops waits with a bounded backlog, and goes on without a gap when it reads again."""

    async def main() -> None:
        limits = ControlLimits(stall_s=0.01, unread_max=10_000)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            client = await rig.connect()
            client.send("Logs", more=True, units=["web"], lines=0, follow=True, previous=False)
            await until(lambda: rig.supervisor.following == 1)
            for number in range(2000):
                rig.supervisor.writes_line("web", f"{number} " + "x" * 1000)
            for _ in range(20):
                assert await rig.call("Ping")
            assert rig.supervisor._output[0].qsize() > 1000
            numbers = [int((await client.reply()).parameters["text"].split()[0]) for _ in range(2000)]
            assert numbers == list(range(2000))
            await client.close()

    drive(main())


def test_a_reply_larger_than_the_backlog_arrives_whole(tmp_path: Path) -> None:
    """The bound is on what piles up, not on the size of one reply that is being read."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID, limits=ControlLimits(unread_max=1000)) as rig:
            rig.supervisor.lines["web"] = ["x" * 5000] * 1000
            [web] = (await rig.call("Status", units=["web"], lines=1000))["units"]
            assert web["lines"] == rig.supervisor.lines["web"]

    drive(main())


def test_an_idle_crowd_gives_way(tmp_path: Path) -> None:
    """When all seats are taken by connections that say nothing, a newcomer is served and the oldest of them is
    closed."""

    async def main() -> None:
        limits = ControlLimits(seats=SeatLimits(total=5, reserved=0))
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            crowd = []
            for number in range(5):
                crowd.append(rig.raw())
                await until(lambda: rig.server.connections == number + 1)  # noqa: B023  awaited in this turn
            assert await rig.call("Ping") == {"answer": "pong"}
            assert await read_all(crowd[0]) == b""
            crowd[1].sendall(PING)
            crowd[1].shutdown(socket.SHUT_WR)
            assert await read_all(crowd[1]) == PONG
            for connection in crowd:
                connection.close()

    drive(main())


def test_a_busy_crowd_is_told_to_newcomers(tmp_path: Path) -> None:
    """When every seat is at work a newcomer is told so, and is served when one is free."""

    async def main() -> None:
        limits = ControlLimits(seats=SeatLimits(total=2, reserved=0))
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            workers = [await rig.connect(), await rig.connect()]
            for worker in workers:
                worker.send("Wait", unit="slow", until="active")
            await until(lambda: rig.supervisor.waiters == 2)
            error, parameters = await rig.refusal("Ping")
            assert (error, parameters["message"]) == (
                "Busy",
                "too many connections are at work: try again in a moment",
            )
            await workers[0].close()
            await until(lambda: rig.server.connections == 1)
            assert await rig.call("Ping")
            await workers[1].close()

    drive(main())


def test_a_units_processes_share_their_seats(tmp_path: Path) -> None:
    """A unit beyond its number of connections is told so at the first call, whatever its uid."""

    async def main() -> None:
        limits = ControlLimits(seats=SeatLimits(per_unit=1))
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            rig.supervisor.owner = Owner(unit="web", descendant=True)
            first = await rig.connect()
            assert await first.call("Ping")
            assert (await rig.refusal("Ping"))[0] == "Busy"
            with rig.raw() as second:
                # Calls sent behind the one that is refused are not answered either.
                second.sendall(PING * 3)
                answer = await read_all(second)
            assert answer.startswith(b'{"error":"py.supervisord.Manager.Busy"')
            assert answer.count(b"\0") == 1
            assert await first.call("Ping")
            await first.close()
            await until(lambda: rig.server.connections == 0)
            assert await rig.call("Ping")

    drive(main())


def test_no_descriptors_left_is_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a descriptor to accept with, idle connections are closed, newcomers wait, and the loop does not spin."""

    async def main(rig: Rig) -> None:
        idle = rig.raw()
        await until(lambda: rig.server.connections == 1)
        crowd = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(20)]
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        # Gaps below the highest number would still be found: fill them.
        fillers = []
        try:
            while True:
                try:
                    fillers.append(os.dup(0))
                except OSError:
                    break
            for connection in crowd:
                connection.setblocking(False)
                connection.connect(rig.path)
            assert await read_all(idle) == b""
            await asyncio.get_running_loop().sock_sendall(crowd[0], PING)
        finally:
            for descriptor in fillers:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await rig.call("Ping") == {"answer": "pong"}
        for connection in (*crowd, idle):
            connection.close()

    async def around() -> None:
        limits = ControlLimits(accept_pause_s=0.05, room_pause_s=0.01)
        async with running(tmp_path, own_uid=UID, limits=limits) as rig:
            await main(rig)

    drive(around())
    assert capsys.readouterr().err == (
        "control: cannot accept connections now: Too many open files: idle ones are closed\n"
    )


def test_a_bug_in_a_method_ends_one_call(tmp_path: Path) -> None:
    """An error of ours is told to its caller as such, reported once, and the connection goes on; the loop's handler,
    which ends the manager, hears nothing of it."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            del rig.supervisor.versions
            client = await rig.connect()
            with pytest.raises(CallFailed) as caught:
                await client.call("Version")
            assert caught.value.error == "py.supervisord.Manager.InternalError"
            assert await client.call("Ping")
            await client.close()
            ((where, error),) = rig.bugs
            assert where == "py.supervisord.Manager.Version"
            assert isinstance(error, AttributeError)
            rig.bugs.clear()

    drive(main())


def test_the_largest_call_is_answered(tmp_path: Path) -> None:
    """A call of exactly the allowed size passes; one byte more is refused with the bound."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            for size, said in ((CALL_MAX, b"InvalidParameter"), (CALL_MAX + 1, b"at most 1048576 bytes")):
                head, tail = b'{"method":"py.supervisord.Manager.Ping","parameters":{"x":"', b'"}}'
                call = head + b"y" * (size - len(head) - len(tail)) + tail + b"\0"
                with rig.raw() as connection:
                    await asyncio.to_thread(connection.sendall, call)
                    connection.shutdown(socket.SHUT_WR)
                    assert said in await read_all(connection)

    drive(main())


def test_closing_the_server_ends_all_connections(tmp_path: Path) -> None:
    """Waits and streams end when the server is closed, and the listener is left to its owner."""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            waiting, following = await rig.connect(), await rig.connect()
            waiting.send("Start", **SLOW)
            following.send("py.supervisord.Journal.Follow", more=True, **FOLLOW)
            await until(lambda: rig.supervisor.following == 1 and bool(rig.supervisor.commands))
            await rig.server.close()
            assert await waiting.is_closed()
            assert await following.is_closed()
            await waiting.close()
            await following.close()
            with rig.raw():
                pass  # The backlog of the listener goes on taking connections, for the next server.

    drive(main())


def test_a_client_that_was_killed_was_recorded_as_a_stray_that_is_denied(tmp_path: Path) -> None:
    """Its call waited (for the next manager, as a rule), and its process cannot be looked at any more: there is nobody
    to answer and nothing to record. Whoever holds the connection of a process that has ended is still denied."""
    code = """
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(sys.argv[2].encode() + b"\\0")
if sys.argv[3] == "heir" and os.fork() == 0:
    os.read(0, 1)
"""

    async def main() -> None:
        async with running(tmp_path, own_uid=UID) as rig:
            call = ClientConnection().send("py.supervisord.Manager.Version", {}).rstrip(b"\0").decode()
            # The loop stands still meanwhile: the call is found when its caller is gone.
            subprocess.run([sys.executable, "-c", code, rig.path, call, "gone"], check=True)
            await until(lambda: not rig.server.connections)
            assert await rig.call("Ping") == {"answer": "pong"}
            assert rig.supervisor.events("command.denied") == []
            with subprocess.Popen([sys.executable, "-c", code, rig.path, call, "heir"], stdin=subprocess.PIPE) as heir:
                heir.wait()
                await until(lambda: rig.supervisor.events("command.denied"))

    drive(main())

"""The bus over a host that does what a test says: when a message is safe, and who is at the other end."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio

from supervisord_py.host.access import Scope
from supervisord_py.host.bus_door import CONNECTIONS_A_UNIT_MAX, Door, Member, RefusedError
from supervisord_py.host.bus_limits import Meter
from supervisord_py.host.bus_router import Router
from supervisord_py.host.facade import Peer, RecordFilter
from supervisord_py.host.peers import Credentials
from supervisord_py.model.records import Record
from supervisord_py.model.settings import BusSettings
from supervisord_py.store.record import Chain, Stamp, pack

PATIENCE_S = 20.0
QUIET_S = 0.1
"""How long nothing comes that must not come: too short, and the test passes when it should fail, never the reverse."""


class Host:
    """A manager whose disk is as quick as the test says. ``safe`` is the number up to which records are kept."""

    def __init__(self) -> None:
        self.settings = BusSettings()
        self.failing: str | None = None
        self.safe = 1 << 60
        self.is_kept = True
        self.records: list[dict[str, Any]] = []
        self.first = 1
        self.keep_last: dict[str, int] = {}
        self.ring: list[Record] = []
        self.chain = Chain()
        self.life: dict[str, str] = {"web": "life-1", "db": "life-1"}
        self.peers: Callable[[], Peer] = lambda: Peer(0, 0, 1, unit="web")
        self.refused: list[str] = []
        self.bugs: list[Exception] = []
        self._moved = asyncio.Event()

    def write(self, records: list[Record]) -> list[tuple[int, str]]:
        lines = []
        for record in records:
            line, chain = pack(record, Stamp(0, 0, "boot"), self.chain, payload_max=100)
            lines.append((self.chain.next_seq, line[:-1].decode()))
            self.records.append(json.loads(line))
            self.chain = chain
        return lines

    @property
    def written(self) -> int:
        return self.chain.next_seq - 1

    @property
    def next_seq(self) -> int:
        return self.chain.next_seq

    async def kept(self, seq: int) -> bool:
        while self.is_kept and seq > self.safe:
            self._moved.clear()
            await self._moved.wait()
        return self.is_kept

    def is_safe(self, upto: int, *, is_kept: bool = True) -> None:
        self.safe, self.is_kept = upto, is_kept
        self._moved.set()

    async def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]:
        yield [record for record in self.records if record["seq"] > (wanted.after or 0)]

    async def oldest(self) -> int:
        return self.first

    def keep(self, record: Record) -> None:
        self.ring.append(record)

    async def newest(self, wanted: RecordFilter, count: int) -> list[dict[str, Any]]:
        return self.records[-count:]

    def invocation(self, unit: str) -> str | None:
        return self.life.get(unit)

    def has_unit(self, unit: str) -> bool:
        return unit in self.life

    def scope(self, peer: Peer) -> Scope:
        return Scope((), lambda unit: ())

    # What stands at the door

    async def identify(self, connection: socket.socket, credentials: Credentials) -> Peer:
        await asyncio.sleep(0)
        return self.peers()

    def judge(self, peer: Peer, started_ns: int) -> Member:
        if peer.unit is None:
            raise RefusedError("nobody")
        return Member(peer.unit, self.life[peer.unit])

    async def on_refused(self, peer: Peer, why: str) -> None:
        self.refused.append(why)


class Agent:
    def __init__(self, context: "zmq.asyncio.Context", path: str) -> None:
        self.path = path
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"ipc://{path}")

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps({"v": 1, **message}).encode())

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return dict(json.loads(await self.socket.recv()))

    async def hears_nothing(self) -> bool:
        return not await self.socket.poll(QUIET_S * 1000)


@asynccontextmanager
async def bus(host: Host) -> AsyncIterator[Callable[[], Agent]]:
    with tempfile.TemporaryDirectory(prefix="spy-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = str(Path(folder) / "bus.sock")
        listener.bind(path)
        listener.listen()
        router = Router(
            path,
            listener,
            host,
            identify=host.identify,
            is_there=lambda connection, credentials: True,
            start_of=lambda pid: 0,
            judge=host.judge,
            on_refused=host.on_refused,
            on_bug=lambda where, error: host.bugs.append(error),
            meter=Meter(),
        )
        context = zmq.asyncio.Context()
        agents: list[Agent] = []

        def agent() -> Agent:
            agents.append(Agent(context, path))
            return agents[-1]

        try:
            await router.open()
            yield agent
            assert not host.bugs
        finally:
            for each in agents:
                each.socket.close()
            context.term()
            await router.close()
            assert Path(path).exists(), "the socket is the keeper's"


def drive(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


def test_nothing_is_said_before_the_disk_has_it() -> None:
    """Neither the acknowledgement nor the delivery; then both, in the order of the journal."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            web = agent()
            await web.say(id="s", subscribe="t")
            assert (await web.hear())["ack"] == "s"
            host.safe = 1
            await web.say(id="a", to="topic:t", event="a")
            assert [(await web.hear())["seq"] for _ in range(2)] == [1, 1]
            for name in "bc":
                await web.say(id=name, to="topic:t", event=name)
            await until(lambda: len(host.records) == 3)
            assert await web.hears_nothing()
            host.is_safe(3)
            said = [await web.hear() for _ in range(4)]
            assert sorted(each["ack"] for each in said if "ack" in each) == ["b", "c"]
            assert [each["seq"] for each in said if "from" in each] == [2, 3]

    drive(main())


def test_what_a_failing_disk_had_in_its_hands_is_refused_and_delivered_when_it_is_written() -> None:
    """The sender that asks again gets the number that it has, and it is written once."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            web = agent()
            await web.say(id="s", subscribe="t")
            await web.hear()
            host.safe = 0
            await web.say(id="a", to="topic:t", event="a")
            await until(lambda: host.records)
            host.is_safe(0, is_kept=False)
            assert (await web.hear())["error"] == "not-written"
            host.failing = "no room"
            await web.say(id="b", to="topic:t", event="b")
            while (answer := await web.hear())["id"] != "b":
                assert answer["error"] == "not-written"
            assert (answer["error"], answer["message"]) == ("not-written", "no room")
            assert len(host.records) == 1, "while it fails nothing more is handed to it"
            host.failing = None
            host.is_safe(1 << 60)
            assert (await web.hear())["event"] == "a"
            await web.say(id="a", to="topic:t", event="a")
            assert await web.hear() == {"v": 1, "ack": "a", "seq": 1}
            assert len(host.records) == 1

    drive(main())


def test_events_that_are_kept_in_a_ring_have_no_number() -> None:
    """They are no records; what goes to somebody is one, whatever it is called."""

    async def main() -> None:
        host = Host()
        host.keep_last = {"metrics": 3}
        async with bus(host) as agent:
            web = agent()
            for _ in range(2):
                await web.say(id="a", event="metrics", load=1)
                assert await web.hear() == {"v": 1, "ack": "a", "seq": None}
            assert [record.fields["payload"] for record in host.ring] == [{"load": 1}]
            await web.say(id="b", event="metrics", to="topic:load")
            assert await web.hear() == {"v": 1, "ack": "b", "seq": 1}
            assert len(host.records) == len(host.ring) == 1

    drive(main())


def test_ids_are_known_to_the_next_manager() -> None:
    """It reads them back from the journal: the same life's, not another one's."""

    async def main() -> None:
        host = Host()
        host.write([Record("unit.message", unit="web", invocation="life-1", fields={"id": "a", "to": None})])
        async with bus(host) as agent:
            web = agent()
            await web.say(id="a", event="x")
            assert await web.hear() == {"v": 1, "ack": "a", "seq": 1}
            host.peers = lambda: Peer(0, 0, 1, unit="db")
            host.life["db"] = "life-2"
            db = agent()
            await db.say(id="a", event="x")
            assert (await db.hear())["seq"] == 2

    drive(main())


def test_a_connection_speaks_for_the_life_that_it_was_opened_in() -> None:
    """Whatever comes on it when the unit has begun another is of the old one."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            web = agent()
            await web.say(id="a", event="x")
            assert (await web.hear())["ack"] == "a"
            host.life["web"] = "life-2"
            await web.say(id="b", event="x")
            assert (await web.hear())["error"] == "old-life"
            new = agent()
            await new.say(id="b", event="x")
            assert (await new.hear())["ack"] == "b"
            assert [record["invocation"] for record in host.records] == ["life-1", "life-2"]

    drive(main())


def test_nobody_is_let_in_whose_process_may_be_another_one_by_now() -> None:
    """Two connections wait under one pid, and the process of one is gone: neither is believed, and who is still there
    connects again."""

    async def main() -> None:
        host = Host()
        answers = [Peer(0, 0, 1, stray=True, gone=True)]
        host.peers = lambda: answers.pop() if answers else Peer(0, 0, 1, unit="web")
        async with bus(host) as agent:
            one, other = agent(), agent()
            for each, name in ((one, "a"), (other, "b")):
                await each.say(id=name, event="x")
            assert {(await one.hear())["ack"], (await other.hear())["ack"]} == {"a", "b"}
            assert not answers and not host.refused

    drive(main())


def test_a_connection_that_was_told_of_a_moment_after_the_last_look_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """libzmq tells of it and then asks for it: what tells may be looked at just before both. One in a thousand was
    refused, and a client that was refused does not come again."""
    hear, turn = Door._hear, Door.turn
    is_early: list[bool] = []

    def look_too_early(door: Door) -> None:
        is_early.append(True)
        turn(door)
        is_early.clear()

    monkeypatch.setattr(Door, "turn", look_too_early)
    monkeypatch.setattr(Door, "_hear", lambda door: None if is_early else hear(door))

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            web = agent()
            await web.say(id="a", event="x")
            assert (await web.hear())["ack"] == "a"

    drive(main())


def test_what_retention_drops_while_the_past_is_read_is_told_once() -> None:
    """Each reading is overtaken: what is kept at the end is delivered, and the rest is one hole before it."""

    class Rotating(Host):
        async def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]:
            async for records in super().stream(wanted):
                yield [record for record in records if record["seq"] >= self.first]
            self.first = min(self.first + 2, 9)

    async def main() -> None:
        host = Rotating()
        fields = {"id": "a", "to": "topic:t", "name": None, "payload": {}}
        host.write([Record("unit.message", unit="web", invocation="life-1", fields=fields) for _ in range(10)])
        async with bus(host) as agent:
            web = agent()
            await web.say(id="s", subscribe="t", after=2)
            assert (await web.hear())["subscribe"] == "t"
            hole = await web.hear()
            assert hole == {"v": 1, "dropped": None, "after": 2, "until": hole["until"], "to": "topic:t"}
            assert hole["until"] >= 4
            assert [(await web.hear())["seq"] for _ in range(10 - hole["until"])] == list(range(hole["until"] + 1, 11))

    drive(main())


def test_a_stranger_is_refused_and_not_heard() -> None:
    """Its client is told by ZeroMQ, and nothing that it has sent comes in."""

    async def main() -> None:
        host = Host()
        host.peers = lambda: Peer(5, 5, 1)
        async with bus(host) as agent:
            stranger = agent()
            await stranger.say(id="a", event="x")
            await until(lambda: host.refused)
            host.peers = lambda: Peer(0, 0, 1, unit="web")
            web = agent()
            await web.say(id="a", event="x")
            assert (await web.hear())["seq"] == 1
            assert await stranger.hears_nothing()
            assert len(host.records) == 1

    drive(main())


def test_a_connection_that_ends_in_its_handshake_takes_nobody_s_place() -> None:
    """A process opens one, closes it at once and opens another: the answer to the first was taken for the second's,
    which was refused for good."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            for number in range(100):
                agent().socket.close()
                web = agent()
                await web.say(id=number, event="x")
                assert (await web.hear())["ack"] == number
                web.socket.close()

    drive(main())


def test_one_process_took_all_places_of_its_user_at_the_door() -> None:
    """By connections that say nothing: no other agent of that user came in until they were given up."""

    async def main() -> None:
        async with bus(Host()) as agent:
            path = agent().path
            crowd = (
                "import socket, sys\n"
                "crowd = [socket.socket(socket.AF_UNIX) for _ in range(600)]\n"
                "for each in crowd: each.connect(sys.argv[1])\n"
                "print(flush=True)\n"
                "sys.stdin.read()"
            )
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", crowd, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            try:
                await process.stdout.readline()
                web = agent()
                await web.say(id="a", event="x")
                async with asyncio.timeout(10):
                    assert (await web.hear())["seq"] == 1
            finally:
                process.kill()
                await process.wait()

    drive(main())


def test_connections_of_one_unit_are_bounded() -> None:
    """One that is too many is refused; when another has ended there is room again, and other units have theirs."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            agents = [agent() for _ in range(CONNECTIONS_A_UNIT_MAX)]
            for number, each in enumerate(agents):
                await each.say(id=number, event="x")
            for number, each in enumerate(agents):
                assert (await each.hear())["ack"] == number
            late = agent()
            await late.say(id="late", event="x")
            await until(lambda: host.refused)
            assert host.refused == [f"web have {CONNECTIONS_A_UNIT_MAX} connections to the bus"]
            host.peers = lambda: Peer(0, 0, 1, unit="db")
            other = agent()
            await other.say(id="other", event="x")
            assert (await other.hear())["ack"] == "other"
            assert await late.hears_nothing()
            agents[0].socket.close()
            host.peers = lambda: Peer(0, 0, 1, unit="web")

            async def comes_in() -> bool:
                again = agent()
                await again.say(id="again", event="x")
                return bool(await again.socket.poll(200))

            async with asyncio.timeout(PATIENCE_S):
                while not await comes_in():
                    pass

    drive(main())


def test_subscriptions_of_one_connection_are_bounded() -> None:
    """The one that is too many is refused, the others go on."""

    async def main() -> None:
        host = Host()
        async with bus(host) as agent:
            web = agent()
            for number in range(70):
                await web.say(id=number, subscribe=f"t{number}")
            said = [await web.hear() for _ in range(70)]
            assert {each["error"] for each in said if "error" in each} == {"busy"}
            kept = sum("ack" in each for each in said)
            assert 60 < kept < 70
            await web.say(id="a", to="topic:t0", event="x")
            said = [await web.hear(), await web.hear()]
            assert [each.get("ack") for each in said] == ["a", None] and said[1]["from"] == "web"

    drive(main())

"""The manager's end of the custody protocol on asyncio, against a keeper that the test plays itself."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from supervisord_py.core.events import (
    Event,
    ExitStatus,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    StrayAppeared,
    StrayExited,
    TreeEmptied,
)
from supervisord_py.host.keeper_client import KeeperClient, Orphan, Owner, Process, fact_to_event
from supervisord_py.keeper.protocol import PROTOCOL, Channel

DEADLINE_S = 10.0
WELCOME: dict[str, Any] = {
    "protocol": PROTOCOL,
    "version": "0.1.0",
    "pid": 4711,
    "instance": 9,
    "runtime_dir": "/run/x",
    "state": {"k": "v"},
    "lines": [[3, "three"]],
    "processes": [{"id": 1, "unit": "a", "role": "main", "pid": 20, "pending": False}],
    "orphans": [{"pid": 21, "unit": "a"}],
    "strays": [22],
    "outputs": ["a"],
    "managers": 2,
    "stopping": None,
    "config": {"name": "test"},
    "listeners": ["control"],
    "a-field-of-later": 1,
}
EXITED = {
    "fact": "exited", "id": 1, "pid": 20, "code": None, "signal": 9, "core": True, "main": True, "tree_empty": False,
    "runtime_ms": 12, "rusage": {"user_us": 5},
}  # fmt: skip


def test_every_fact_becomes_its_event() -> None:
    """The stream's words and the core's, one to one."""
    notify = {"fact": "notify", "unit": "a", "id": None, "pid": 5, "fields": {"X": "1"}, "main_pid": 6, "refused": None}
    table: list[tuple[dict[str, Any], Event]] = [
        ({"fact": "spawned", "id": 1, "pid": 20, "tagged": True}, ProcessSpawned(1, 20)),
        (
            {"fact": "spawn-failed", "id": 1, "step": "exec", "code": 203, "errno": 2, "detail": "/x"},
            SpawnFailed(1, "exec", 203, 2, "/x"),
        ),
        (EXITED, ProcessExited(1, 20, ExitStatus(None, 9, True), True, False, 12, {"user_us": 5})),
        ({"fact": "tree-empty", "unit": "a"}, TreeEmptied("a")),
        (notify, NotifyReceived("a", None, 5, {"X": "1"}, 6, None)),
        ({"fact": "stray", "pid": 5, "command": "x y"}, StrayAppeared(5, "x y")),
        (
            {"fact": "stray-exited", "pid": 5, "code": 1, "signal": None, "core": False},
            StrayExited(5, ExitStatus(1, None, False)),
        ),
    ]
    for fact, event in table:
        assert fact_to_event(fact) == event
    with pytest.raises(ValueError, match="unknown kind 'sung'"):
        fact_to_event({"fact": "sung"})


class Keeper:
    """The other end: sends what the test says, reads packets one by one."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock)
        self.listener = socket.socket(socket.AF_UNIX)

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        self.channel.send(message, fds)
        assert self.channel.flush()

    def welcome(self, **more: Any) -> None:
        self.send({"welcome": {**WELCOME, **more}}, (self.listener.fileno(),))

    async def read(self) -> dict[str, Any]:
        received: list[dict[str, Any]] = []

        def look() -> bool:
            packet = self.channel.receive()
            if packet is not None:
                received.append(packet[0])
            return packet is not None

        await until(look)
        return received[0]

    def close(self) -> None:
        self.channel.close()
        self.listener.close()


class Taker:
    """Takes what the client delivers, in its order."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_facts": lambda facts: self.got.append(("facts", facts)),
            "on_output": self._output,
            "on_order": lambda order: self.got.append(("order", order)),
            "on_lost": lambda: self.got.append(("lost", None)),
            "on_preflight_failed": lambda why: self.got.append(("failed", why)),
        }

    def _output(self, unit: str, fd: int) -> None:
        self.got.append(("output", unit))
        os.close(fd)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[Keeper, KeeperClient]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper, client = Keeper(ours), KeeperClient(theirs)
    try:
        yield keeper, client
    finally:
        client.close()
        keeper.close()


async def greeted(keeper: Keeper, client: KeeperClient) -> None:
    keeper.welcome()
    welcome = await client.hello()
    welcome.listeners["control"].close()
    assert await keeper.read() == {"op": "hello", "protocol": PROTOCOL, "pid": os.getpid()}


def commit_of(client: KeeperClient, on_sent: Callable[[], None] = lambda: None, **parts: Any) -> None:
    empty: dict[str, Any] = {"ack": 0, "state": {}, "lines": [], "journalled": 0, "requests": []}
    client.commit(**{**empty, **parts}, on_sent=on_sent)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE_S))


def test_the_welcome_is_a_value_with_its_listeners() -> None:
    """Everything in it is typed, the listener is an open socket, unknown fields are ignored."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            keeper.welcome()
            welcome = await client.hello()
            assert welcome.processes == [Process(1, "a", "main", 20, False)]
            assert welcome.orphans == [Orphan(21, "a")]
            assert (welcome.state, welcome.lines, welcome.strays) == ({"k": "v"}, [(3, "three")], [22])
            assert (welcome.managers, welcome.stopping, welcome.config) == (2, None, {"name": "test"})
            assert (client.pid, client.version, client.protocol) == (4711, "0.1.0", PROTOCOL)
            with welcome.listeners["control"] as listener:
                assert os.path.sameopenfile(listener.fileno(), keeper.listener.fileno())

    run(test())


def test_what_comes_before_start_is_delivered_after_it_in_order() -> None:
    """Facts, outputs and orders behind the welcome wait until somebody takes them."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            with open("/dev/null") as file:
                keeper.send({"outputs": ["a"]}, (file.fileno(),))
            keeper.send({"facts": [[1, {"fact": "tree-empty", "unit": "a"}]]})
            keeper.send({"order": "stop"})
            answer = asyncio.create_task(client.trees(["a"]))
            question = await keeper.read()
            keeper.send({"answer": question["question"], "trees": {"a": [1, 2]}})
            assert await answer == {"a": [1, 2]}
            taker = Taker()
            client.start(**taker.callbacks())
            assert taker.got == [("output", "a"), ("facts", [(1, TreeEmptied("a"))]), ("order", "stop")]
            keeper.send({"facts": [[2, {"fact": "tree-empty", "unit": "b"}]]})
            await until(lambda: len(taker.got) == 4)
            assert taker.got[3] == ("facts", [(2, TreeEmptied("b"))])

    run(test())


def test_an_order_is_answered_so_that_the_manager_does_not_count_as_hung() -> None:
    """``heard`` goes out for each order."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            client.start(**Taker().callbacks())
            keeper.send({"order": "reload"})
            assert await keeper.read() == {"op": "heard"}

    run(test())


def test_a_commit_is_one_packet_and_questions_find_their_answers() -> None:
    """Answers in another order than the questions reach the right asker; a cancelled question is forgotten."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            commit_of(
                client, ack=3, state={"a": None}, lines=[(7, "x")], journalled=6, requests=[{"do": "exit", "code": 0}]
            )
            commit = {"op": "commit", "ack": 3, "state": {"a": None}, "lines": [[7, "x"]], "journalled": 6}
            assert await keeper.read() == {**commit, "do": [{"do": "exit", "code": 0}], "deadline": None}
            first, second, third = (asyncio.create_task(client.whose(pid)) for pid in (10, 11, 12))
            asked = [await keeper.read() for _ in range(3)]
            assert [question["pid"] for question in asked] == [10, 11, 12]
            third.cancel()
            for question, unit in zip(reversed(asked), ("c", "b", "a"), strict=True):
                keeper.send({"answer": question["question"], "unit": unit, "stray": False, "descendant": True})
            assert (await first, await second) == (Owner("a", False, True), Owner("b", False, True))

    run(test())


def test_a_keeper_that_does_not_read_blocks_nothing_and_gets_all_in_order() -> None:
    """Hundreds of large commits against a full socket: the loop runs on, all arrive in order, ``on_sent`` follows."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            sent: list[int] = []
            for number in range(300):
                commit_of(client, lambda n=number: sent.append(n), ack=number, state={"pad": "x" * 4000})
            assert len(sent) < 300, "the last ones cannot be the keeper's yet"
            assert [(await keeper.read())["ack"] for _ in range(300)] == list(range(300))
            await until(lambda: len(sent) == 300)
            assert sent == list(range(300))

    run(test())


@pytest.mark.parametrize("when", ["before the welcome", "before start", "after start"])
def test_the_keepers_end_is_told_once(when: str) -> None:
    """Whoever waits gets ConnectionError, ``on_lost`` is called once, and a later commit is no error."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            taker = Taker()
            if when == "before the welcome":
                hello = asyncio.create_task(client.hello())
                await keeper.read()
                keeper.channel.close()
                with pytest.raises(ConnectionError):
                    await hello
            else:
                await greeted(keeper, client)
                if when == "after start":
                    client.start(**taker.callbacks())
                question = asyncio.create_task(client.whose(1))
                await keeper.read()
                keeper.channel.close()
                with pytest.raises(ConnectionError):
                    await question
            if when != "after start":
                client.start(**taker.callbacks())
            commit_of(client, lambda: taker.got.append(("sent", None)))
            with pytest.raises(ConnectionError):
                await client.trees()
            assert taker.got == [("lost", None)]

    run(test())


def test_a_commit_that_never_left_is_not_called_sent() -> None:
    """The keeper died with commits in our queue: what depends on their custody does not happen."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            sent: list[int] = []
            for number in range(300):
                commit_of(client, lambda n=number: sent.append(n), ack=number, state={"pad": "x" * 4000})
            keeper.channel.close()
            taker = Taker()
            client.start(**taker.callbacks())
            await until(lambda: ("lost", None) in taker.got)
            assert len(sent) < 300

    run(test())


def test_a_preflight_that_failed_is_told() -> None:
    """``restart-manager`` came to nothing: the reason reaches the taker."""

    async def test() -> None:
        async with conversation() as (keeper, client):
            await greeted(keeper, client)
            taker = Taker()
            client.start(**taker.callbacks())
            keeper.send({"preflight-failed": "exit code 3"})
            await until(lambda: taker.got)
            assert taker.got == [("failed", "exit code 3")]

    run(test())

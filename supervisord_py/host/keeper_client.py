"""The manager's end of the custody protocol, on asyncio: nothing here blocks, and nothing is decided here.

``hello`` greets and returns the welcome; what comes after it waits inside until ``start`` names who takes it, so that
a daemon can be put together in between. The keeper's death, and its wish that this manager ends, are the same thing:
end of file, told once by ``on_lost``.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.core.events import (
    Event,
    ExitStatus,
    KeeperLost,
    KeeperReplaced,
    MainFollowed,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
    StrayAppeared,
    StrayExited,
    TreeEmptied,
)
from supervisord_py.keeper.protocol import PROTOCOL, Channel

PACKETS_A_WAKE_UP = 32


class Process(Struct, frozen=True):
    """A spawn that has not ended; ``pid`` 0: the keeper has the request and has not made the process yet."""

    id: int
    unit: str
    role: str
    pid: int
    pending: bool


class Orphan(Struct, frozen=True):
    """A process of a unit that lost its parent and is the keeper's child now."""

    pid: int
    unit: str


class Welcome(Struct, frozen=True):
    """What a manager is told first. ``listeners`` are bound, listening, and the manager's own copies; ``lost`` is what
    ``run`` found of a killed keeper, for the first one (``host.adoption.report``)."""

    protocol: int
    version: str
    pid: int
    instance: int
    runtime_dir: str
    state: dict[str, str]
    lines: list[tuple[int, str]]
    processes: list[Process]
    orphans: list[Orphan]
    strays: list[int]
    outputs: list[str]
    managers: int
    stopping: str | None
    config: dict[str, Any]
    listeners: dict[str, Any] = {}
    lost: dict[str, Any] | None = None


class Owner(Struct, frozen=True):
    """Whose a process is: of ``unit``, or a ``stray``; ``descendant``: below the keeper (the manager itself is too);
    ``claimed``: an orphan, and only what it carries itself says whose it is."""

    unit: str | None
    stray: bool
    descendant: bool
    claimed: bool = False


def fact_to_event(fact: dict[str, Any]) -> Event:
    """Turn a fact of the keeper's stream into the core's event."""
    match fact["fact"]:
        case "spawned":
            return ProcessSpawned(fact["id"], fact["pid"])
        case "spawn-failed":
            return SpawnFailed(fact["id"], fact["step"], fact["code"], fact["errno"], fact["detail"])
        case "exited":
            return ProcessExited(
                spawn_id=fact["id"],
                pid=fact["pid"],
                status=_status(fact),
                main=fact["main"],
                tree_empty=fact["tree_empty"],
                runtime_ms=fact["runtime_ms"],
                rusage=fact["rusage"],
            )
        case "followed":
            return MainFollowed(unit=fact["unit"], spawn_id=fact["id"], pid=fact["pid"], refused=fact["refused"])
        case "tree-empty":
            return TreeEmptied(fact["unit"])
        case "notify":
            return NotifyReceived(
                unit=fact["unit"],
                spawn_id=fact["id"],
                pid=fact["pid"],
                fields=fact["fields"],
                main_pid=fact["main_pid"],
                refused=fact["refused"],
            )
        case "lost":
            return KeeperLost(lost_fields(fact["lost"]))
        case "reexecuted":
            return KeeperReplaced(old=fact["old"], new=fact["new"], refused=fact["refused"])
        case "stray":
            return StrayAppeared(fact["pid"], fact["command"], is_expected=bool(fact.get("init")))
        case "stray-exited":
            return StrayExited(fact["pid"], _status(fact))
        case kind:
            raise ValueError(f"the keeper told a fact of unknown kind {kind!r}")


def lost_fields(lost: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``keeper.lost`` for what ``run`` found of a killed keeper (``adoption.report``)."""
    return {
        "keeper_pid": lost["pid"],
        "keeper_instance": f"{lost['instance']:05x}",
        "adopted": lost["adopted"],
        "ended": lost["ended"],
        "left": lost["left"],
        "unseen": lost["unseen"],
        **({"message": lost["why_not"]} if lost["why_not"] else {}),
    }


def _status(fact: dict[str, Any]) -> ExitStatus:
    return ExitStatus(code=fact["code"], signal=fact["signal"], core_dumped=fact["core"])


class KeeperClient:
    """Speaks to the keeper over ``sock``; satisfies ``host.driver.Custody``."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop | None = None) -> None:
        sock.set_inheritable(False)
        self._channel = Channel(sock)
        self._loop = loop or asyncio.get_running_loop()
        self._welcome: asyncio.Future[Welcome] = self._loop.create_future()
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._asked = 0
        self._unsent: list[Callable[[], None]] = []
        self._waiting: list[tuple[dict[str, Any], list[int]]] = []
        self._is_lost = self._is_reading = self._is_writing = False
        self._on_facts: Callable[[list[tuple[int, Event]]], None] | None = None
        self._on_output: Callable[[str, int], None]
        self._on_order: Callable[[str], None]
        self._on_lost: Callable[[], None] | None = None
        self._on_preflight_failed: Callable[[str], None] | None = None
        self._reexec: asyncio.Future[str | None] | None = None
        self.protocol = PROTOCOL
        self.version = ""
        self.pid = 0

    async def hello(self) -> Welcome:
        """Greet, and return the welcome when this manager's turn has come (a pre-flight waits for the old one's end).

        Raises:
            ConnectionError: The keeper is gone, or does not want this manager.
        """
        self._read_from_now_on()
        self._send({"op": "hello", "protocol": PROTOCOL, "pid": os.getpid()})
        welcome = await self._welcome
        self.protocol, self.version, self.pid = welcome.protocol, welcome.version, welcome.pid
        return welcome

    def start(
        self,
        *,
        on_facts: Callable[[list[tuple[int, Event]]], None],
        on_output: Callable[[str, int], None],
        on_order: Callable[[str], None],
        on_lost: Callable[[], None],
        on_preflight_failed: Callable[[str], None] | None = None,
    ) -> None:
        """Deliver from now on, beginning with what came since the welcome, in its order.

        Args:
            on_facts: A batch of (number, event); acknowledge with ``commit``.
            on_output: A unit and the reading end of its output pipe, which is the taker's to close.
            on_order: ``stop``, ``kill``, ``reload``, ``reopen`` or ``replace``: a signal came to the keeper.
            on_lost: The keeper is gone, or this manager shall end; called once.
            on_preflight_failed: ``restart-manager`` came to nothing, and why.
        """
        self._on_facts, self._on_output, self._on_order = on_facts, on_output, on_order
        self._on_lost, self._on_preflight_failed = on_lost, on_preflight_failed
        waiting, self._waiting = self._waiting, []
        for message, fds in waiting:
            self._deliver(message, fds)
        if self._is_lost:
            on_lost()

    def commit(
        self,
        *,
        ack: int,
        state: dict[str, str | None],
        lines: Sequence[tuple[int, str]],
        journalled: int,
        requests: Sequence[dict[str, Any]],
        on_sent: Callable[[], None],
        deadline_ns: int | None = None,
    ) -> None:
        """Put everything a batch decided into the keeper's custody: whole, or not at all.

        Args:
            ack: Number of the last fact that is dealt with.
            state: What changed; None forgets a key.
            lines: (number, text) of new journal lines.
            journalled: Every line up to this number is in the file.
            requests: For the keeper, in order.
            on_sent: Called when the packet is the keeper's, at once as a rule; in the order of the commits.
            deadline_ns: When there will be another commit if nothing happens until then [ns, CLOCK_MONOTONIC]: a
                manager that lets it pass by is hung. None: it waits for others only.
        """
        self._unsent.append(on_sent)
        self._send(
            {
                "op": "commit",
                "ack": ack,
                "state": state,
                "lines": list(lines),
                "journalled": journalled,
                "do": list(requests),
                "deadline": deadline_ns,
            }
        )

    async def whose(self, pid: int) -> Owner:
        """Ask whose process ``pid`` is. Raises ConnectionError when the keeper is gone."""
        answer = await self._ask({"op": "whose", "pid": pid})
        return Owner(answer["unit"], answer["stray"], answer["descendant"], answer.get("claimed", False))

    async def trees(self, units: Sequence[str] | None = None) -> dict[str, list[int]]:
        """Ask for all processes of these units (None: of all); units that the keeper does not have are missing."""
        answer = await self._ask({"op": "trees", "units": None if units is None else list(units)})
        trees: dict[str, list[int]] = answer["trees"]
        return trees

    def reexec_checked(self) -> "asyncio.Future[str | None]":
        """Return what the next check of a new image of the keeper will find: why it cannot take over, None when it
        can, and does with the next manager."""
        if self._reexec is None:
            self._reexec = self._loop.create_future()
        return asyncio.shield(self._reexec)

    async def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._is_lost:
            raise ConnectionError("the keeper is gone")
        self._asked += 1
        number = self._asked
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._questions[number] = future
        try:
            self._send({**question, "question": number})
            return await future
        finally:
            self._questions.pop(number, None)

    def close(self) -> None:
        """Close this end; nothing is called any more."""
        self._stop_watching()
        for _, fds in self._waiting:
            _close_all(fds)
        self._waiting = []
        self._is_lost = True
        self._on_lost = None
        self._channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        if self._is_lost:
            return
        self._channel.send(message)
        if not self._is_writing:
            self._flush()

    def _flush(self) -> None:
        try:
            done = self._channel.flush()
        except OSError:
            # Its end is closed: nothing is sent any more. What it sent is still to be read, then end of file comes.
            self._unsent.clear()
            done = True
        if done and self._is_writing:
            self._loop.remove_writer(self._channel.sock)
        elif not done and not self._is_writing:
            self._loop.add_writer(self._channel.sock, self._flush)
        self._is_writing = not done
        if done and not self._is_lost:
            sent, self._unsent = self._unsent, []
            for callback in sent:
                callback()

    def _read_from_now_on(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.add_reader(self._channel.sock, self._read)

    def _read(self) -> None:
        for _ in range(PACKETS_A_WAKE_UP):
            if self._is_lost:
                return
            try:
                packet = self._channel.receive()
            except EOFError:
                self._lose()
                return
            if packet is None:
                return
            self._take(*packet)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if "answer" in message:
            future = self._questions.get(message["answer"])
            if future is not None and not future.done():
                future.set_result(message)
        elif "welcome" in message:
            listeners = {
                name: socket.socket(fileno=fd)
                for name, fd in zip(message["welcome"].pop("listeners"), fds, strict=True)
            }
            # A field that a later keeper added is ignored.
            welcome = msgspec.structs.replace(msgspec.convert(message["welcome"], Welcome), listeners=listeners)
            self._welcome.set_result(welcome)
        elif self._on_facts is None:
            self._waiting.append((message, fds))
        else:
            self._deliver(message, fds)

    def _deliver(self, message: dict[str, Any], fds: list[int]) -> None:
        assert self._on_facts is not None
        if "facts" in message:
            self._on_facts([(number, fact_to_event(fact)) for number, fact in message["facts"]])
        elif "outputs" in message:
            for unit, fd in zip(message["outputs"], fds, strict=True):
                self._on_output(unit, fd)
        elif "order" in message:
            self._send({"op": "heard"})
            self._on_order(message["order"])
        elif "preflight-failed" in message and self._on_preflight_failed is not None:
            self._on_preflight_failed(message["preflight-failed"])
        elif "reexec" in message and self._reexec is not None:
            self._reexec.set_result(message["reexec"])
            self._reexec = None

    def _lose(self) -> None:
        self._is_lost = True
        self._stop_watching()
        error = ConnectionError("the keeper is gone")
        if not self._welcome.done():
            self._welcome.set_exception(error)
        for question in self._questions.values():
            if not question.done():
                question.set_exception(error)
        if self._on_lost is not None:
            self._on_lost()

    def _stop_watching(self) -> None:
        if self._is_reading:
            self._loop.remove_reader(self._channel.sock)
        if self._is_writing:
            self._loop.remove_writer(self._channel.sock)
        self._is_reading = self._is_writing = False


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

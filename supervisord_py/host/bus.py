"""The message bus as the manager has it: closed until the first agent comes, then open until the manager ends.

The keeper holds the listening socket, so agents can connect at any time. Only when one does is libzmq loaded: a
supervisor whose agents send nothing pays nothing for the bus, neither in memory nor in a thread.
"""

import asyncio
import importlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisord_py.core import view
from supervisord_py.core.events import Now
from supervisord_py.host.access import Scope
from supervisord_py.host.authority import Authority
from supervisord_py.host.bus_limits import Meter
from supervisord_py.host.control_server import OnBug
from supervisord_py.host.facade import BusStats, Peer, RecordFilter, Supervisor
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.peers import Credentials, Whose, identify, is_there, read_start_ns
from supervisord_py.host.refusals import Refusals
from supervisord_py.model.records import Record
from supervisord_py.model.settings import BusSettings

if TYPE_CHECKING:
    from supervisord_py.host.bus_door import Member
    from supervisord_py.host.bus_router import Router

LISTENER = "bus"
"""What the keeper calls the socket."""

START_SLACK_NS = 50_000_000
"""The kernel tells when a process was started in ticks, and we when a life began before its first process is made."""

OPEN_AGAIN_FIRST_S = 1.0
OPEN_AGAIN_LAST_S = 300.0
WRITTEN_TIMEOUT_S = 10.0

Write = Callable[[list[Record]], list[tuple[int, str]]]


def bus_path(runtime: Path | str) -> str:
    """Return where the keeper listens for agents."""
    return f"{runtime}/bus.sock"


def bus_address(runtime: Path | str, listeners: dict[str, Any]) -> str | None:
    """Return what ``SUPERVISORD_PY_BUS`` says; None where nobody listens: a keeper of a version before, no libzmq."""
    return f"ipc://{bus_path(runtime)}" if LISTENER in listeners and find_spec("zmq") is not None else None


class Bus:
    """The bus of one manager.

    Args:
        supervisor: The running manager.
        journal: Its journal.
        write: Puts records into custody and journal.
        listener: The listening socket; None: the keeper has none.
        runtime: The runtime folder, where the socket is.
        whose: Asks the keeper whose process a pid is.
        authority: The rules.
        refusals: Where refusals are recorded.
        on_bug: Is told of errors of ours.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        journal: Journal,
        write: Write,
        listener: socket.socket | None,
        runtime: Path | str,
        *,
        whose: Whose,
        authority: Authority,
        refusals: Refusals,
        on_bug: OnBug,
    ) -> None:
        self.write = write
        self._supervisor = supervisor
        self._journal = journal
        self._listener = listener
        self._path = bus_path(runtime)
        self._whose = whose
        self._authority = authority
        self._refusals = refusals
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        self._meter = Meter()
        self._router: Router | None = None
        self._opening: asyncio.Task[None] | None = None
        self.on_open: list[Callable[[], None]] = []
        """Are called when the bus is open: others may want to come by other ways."""
        self._has_more = asyncio.Event()
        self._open_again_s = OPEN_AGAIN_FIRST_S
        self._is_closed = self._is_open = self._waits_for_nobody = False
        journal.on_written.append(self._has_more.set)

    def start(self) -> None:
        """Wait for the first agent."""
        if self._listener is not None:
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener.fileno(), self._somebody_came)

    @property
    def router(self) -> "Router | None":
        """The bus, where it is open."""
        return self._router if self._is_open else None

    def open_now(self) -> str | None:
        """Do not wait for an agent, because somebody else may come; says why that cannot be."""
        if self._listener is None:
            return "this keeper has no socket for the bus: start the supervisor again"
        self._waits_for_nobody = True
        if self._opening is None:
            self._somebody_came()
        return None

    async def close(self) -> None:
        self._is_closed = True
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._router is not None:
            await self._router.close()

    async def publish(self, records: list[Record]) -> list[int]:
        """Write messages that no agent sends now, and deliver them; none when they cannot be written."""
        if self._router is not None:
            return await self._router.publish(records)
        lines = self.write(records) if self._journal.failing is None else []
        return [seq for seq, _ in lines] if lines and await self.kept(lines[-1][0]) else []

    def stats(self) -> BusStats:
        """Return what became of messages since this manager began."""
        return BusStats(
            listening=self._listener is not None,
            connections=0 if self._router is None else self._router.connections,
            totals=dict(sorted(self._meter.total.items())),
            by_unit={unit or "/": dict(sorted(counts.items())) for unit, counts in sorted(self._meter.by_unit.items())},
        )

    # What the router needs (host.bus_router.BusHost)

    @property
    def settings(self) -> BusSettings:
        return self._supervisor.settings.bus

    @property
    def failing(self) -> str | None:
        return self._journal.failing

    @property
    def written(self) -> int:
        return self._journal.journalled

    @property
    def next_seq(self) -> int:
        return self._journal.next_seq

    async def kept(self, seq: int) -> bool:
        if self._supervisor.settings.journal.sync != "never":
            return await self._journal.wait_durable(seq)
        try:
            async with asyncio.timeout(WRITTEN_TIMEOUT_S):
                while self._journal.journalled < seq:
                    self._has_more.clear()
                    await self._has_more.wait()
        except TimeoutError:
            return False
        return True

    def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]:
        return self._journal.stream(wanted)

    async def newest(self, wanted: RecordFilter, count: int) -> list[dict[str, Any]]:
        return await self._journal.query(wanted, count)

    async def oldest(self) -> int:
        return await self._journal.oldest()

    @property
    def keep_last(self) -> Mapping[str, int]:
        return self._supervisor.settings.journal.keep_last

    def keep(self, record: Record) -> None:
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._journal.beat(record, Now(time.monotonic_ns(), boot_ns, time.time_ns(), 0))

    def invocation(self, unit: str) -> str | None:
        return view.invocation(self._supervisor.manager, unit)

    def has_unit(self, unit: str) -> bool:
        return view.is_known(self._supervisor.manager, unit)

    def scope(self, peer: Peer) -> Scope:
        return self._authority.access.scope(peer, "journal")

    def refusal(self, peer: Peer, command: str) -> str | None:
        access = self._authority.access
        return access.decide(peer, command).why if access.scope(peer, command).nothing else None

    @property
    def on_refused(self) -> Callable[[Peer, str], Awaitable[None]]:
        return self._refused

    # Inside

    def _somebody_came(self) -> None:
        assert self._listener is not None
        self._loop.remove_reader(self._listener.fileno())
        self._opening = self._loop.create_task(self._open())

    async def _open(self) -> None:
        assert self._listener is not None
        try:
            # Beside the loop: it takes as long as everything else that a loaded machine reads from disk.
            await asyncio.to_thread(importlib.import_module, "supervisord_py.host.bus_router")
            from supervisord_py.host.bus_router import Router

            router = Router(
                self._path,
                self._listener,
                self,
                identify=self._identify,
                is_there=is_there,
                start_of=read_start_ns,
                judge=self._judge,
                on_refused=self._refused,
                on_bug=self._on_bug,
                meter=self._meter,
            )
            self._router = router
            await router.open()
            self._is_open = True
            for call in self.on_open:
                call()
        except Exception as error:  # noqa: BLE001  without a bus everything else goes on
            self._is_open = False
            self._on_bug("opening the bus", error)
            if self._router is not None:
                await self._router.close()
                self._router = None
            if not self._is_closed:
                self._loop.call_later(self._open_again_s, self._try_again)
                self._open_again_s = min(2 * self._open_again_s, OPEN_AGAIN_LAST_S)

    def _try_again(self) -> None:
        if not self._is_closed:
            self._opening = None
            self.start()
            if self._waits_for_nobody:
                self._somebody_came()

    async def _identify(self, connection: socket.socket, credentials: Credentials) -> Peer:
        return await identify(connection, credentials, self._whose)

    def _judge(self, peer: Peer, started_ns: int) -> "Member":
        """Decide who may come in. Raises: RefusedError."""
        from supervisord_py.host.bus_door import Member, RefusedError

        if peer.unit is not None:
            manager = self._supervisor.manager
            invocation = view.invocation(manager, peer.unit)
            boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
            began_ns = view.began_ns(manager, peer.unit) + boot_ns
            if invocation is None or started_ns + START_SLACK_NS < began_ns:
                self._meter.count(peer.unit, "old-life")
                raise RefusedError(f"this process is of a life of {peer.unit} that is over")
            life = view.lives(manager).get(peer.unit)
            if life is not None and life.transient is not None and life.transient.identity is not None:
                # Its user could not come either; that it may run something is no right to speak to agents.
                raise RefusedError(f"{peer.unit} is run by somebody as who they are, and no agent")
            if peer.claimed:
                raise RefusedError(f"only its own word says that this orphan is a process of {peer.unit}")
            return Member(peer.unit, invocation)
        if not peer.stray and not self.scope(peer).nothing:
            return Member("", "", peer)
        why = self._authority.access.decide(peer, "journal").why
        raise RefusedError(f"the bus is for processes of units, and for readers of the journal: {why}")

    async def _refused(self, peer: Peer, why: str) -> None:
        await self._refusals.denied(peer, "bus", (), "", why)

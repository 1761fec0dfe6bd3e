"""A control server over a real core and a fake world, and clients that are simple enough to misbehave.

``FakeSupervisor`` is the ``Supervisor`` of ``host.facade``: the core's ``Manager`` decides, processes are pretended:
what is spawned runs at once, a program called ``false`` exits with 1, ``true`` with 0, ``hang`` never becomes ready,
and whatever is signalled dies of it.
"""

import asyncio
import os
import socket
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import FreezeUnit, KillTree, Reply, SignalProcesses, SpawnProcess, ThawUnit
from supervisord_py.core.events import (
    CommandRequested,
    DeadlineReached,
    Event,
    ExitStatus,
    Now,
    ProcessExited,
    ProcessSpawned,
    UnitFrozen,
    UnitsLoaded,
)
from supervisord_py.core.manager import Manager
from supervisord_py.host.cgroups import Finding, UnitGroups
from supervisord_py.host.control_interfaces import build_control_server, load_interface
from supervisord_py.host.control_server import ControlLimits, ControlServer
from supervisord_py.host.facade import (
    BusStats,
    Followed,
    JournalStats,
    Peer,
    ProcessFigures,
    RecordFilter,
    ReloadReport,
    Submission,
    SupervisorFigures,
    UnitFigures,
    Usage,
    Verification,
    reload_report,
)
from supervisord_py.host.last_good import LastGood
from supervisord_py.host.output_reading import Window
from supervisord_py.host.places import default_places, moved
from supervisord_py.host.resources import UnitResources
from supervisord_py.host.sources import Sources, read_sources
from supervisord_py.host.unit_changes import UnitChanges
from supervisord_py.host.unit_files import load
from supervisord_py.host.unit_watch import SourceMarks
from supervisord_py.model.records import Record
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import JobMode
from supervisord_py.model.unitset import LoadResult
from supervisord_py.wire.interface import SERVICE_TEXT, parse_interface
from supervisord_py.wire.log_lines import LogLine
from supervisord_py.wire.varlink import JOURNAL, MANAGER, SERVICE, ClientConnection
from supervisord_py.wire.varlink import Reply as WireReply

T = TypeVar("T")
DEADLINE_S = 30.0
OWN_UID = 4000

INTERFACES = {
    SERVICE: parse_interface(SERVICE_TEXT),
    MANAGER: load_interface(MANAGER),
    JOURNAL: load_interface(JOURNAL),
}

UNITS = {
    "web": """
        [unit]
        description = "the web"
        groups = ["front"]
        requires = ["db"]
        [service]
        exec-start = ["serve", "--token", "hunter1"]
        [service.environment]
        KEY = "hunter2"
        """,
    "db": '[unit]\ngroups = ["back"]\n[service]\nexec-start = "dbd"\n',
    "crash": '[service]\nexec-start = "false"\nrestart = "no"\n',
    "once": '[service]\ntype = "oneshot"\nexec-start = "true"\n',
    "slow": '[service]\ntype = "notify"\nexec-start = "hang"\n',
    "worker@": '[service]\nexec-start = "work %i"\n[instances]\ncount = 2\n',
    "bad": '[service]\nexec-start = "x"\nno-such-key = 1\n',
    "gone": "",
}
"""Every kind of unit that the interface treats differently."""


class Owner(Struct, frozen=True):
    """What the keeper would say of a pid."""

    unit: str | None = None
    stray: bool = False
    descendant: bool = False
    claimed: bool = False


class FakeBus:
    """The message bus of a ``FakeSupervisor``, with nobody on it."""

    def __init__(self, supervisor: "FakeSupervisor") -> None:
        self._supervisor = supervisor

    def stats(self) -> BusStats:
        return BusStats(True, 2, {"sent": 3, "delivered": 1}, {"db": {"delivered": 1}, "web": {"sent": 3}})

    async def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]:
        yield [record for record in self._supervisor.records if _passes(wanted, record)]

    async def publish(self, records: list[Record]) -> list[int]:
        return [self._supervisor.write(record) for record in records]


class FakeFigures:
    """Numbers of a supervisor that does nothing."""

    async def of_supervisor(self) -> SupervisorFigures:
        own = ProcessFigures(100, 60_000, 12_000_000, 30_000_000)
        return SupervisorFigures(own, own, 12, 0, 1, 0, 4096, 512)

    async def of_units(self, trees: Mapping[str, Sequence[int]]) -> dict[str, UnitFigures]:
        by = dict.fromkeys(("memory", "cpu", "tasks"), "processes")
        return {"web": UnitFigures(4096, 1000, 1, counted_by=by)}


class FakeSupervisor:
    """The running manager, without a keeper, a journal on disk, or processes."""

    def __init__(self, folder: Path, units: Mapping[str, str] = UNITS, settings: Settings | None = None) -> None:
        self.manager = Manager(7)
        self.settings = settings or Settings()
        self.versions: Mapping[str, Any] = {
            "manager": "0.1.0", "keeper": "0.1.0", "protocol": 1, "name": "main",
            "pid": 101, "keeper_pid": 100, "instance": "00001", "keepers": [100],
        }  # fmt: skip
        self.records: list[dict[str, Any]] = []
        self.lines: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.marks = SourceMarks()
        self.durable = True
        self.orders: list[tuple[str, str]] = []
        self.owner = Owner()
        self.waiters = 0
        self.commands: list[tuple[str, tuple[str, ...], Peer, str]] = []
        self._folder = folder
        self._requests: dict[int, asyncio.Future[Reply]] = {}
        self._processes: dict[int, tuple[str, int]] = {}
        self._events: deque[Event] = deque()
        self._asked = 0
        self._followers: list[asyncio.Queue[Followed]] = []
        self._output: list[asyncio.Queue[tuple[str, str]]] = []
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        self.write_units(units)
        state, runtime = folder.parent / "state", folder.parent / "run"
        self._places = moved(
            default_places({}, 0, "/"), state=str(state), runtime=str(runtime), settings="/nonexistent"
        )
        state.mkdir(exist_ok=True)
        runtime.mkdir(exist_ok=True)
        self.loaded = self._load()
        self._config = {
            "unit_paths": [str(folder)],
            "is_settings_typed": False,
            "socket_gid": None,
        }
        self._sources = read_sources(self._config, self._places)
        self._changes = UnitChanges(self, self._config, self._places, LastGood())
        self.happens(UnitsLoaded(self.loaded.unit_set))

    def write_units(self, units: Mapping[str, str]) -> None:
        self._folder.mkdir(exist_ok=True)
        for name, text in units.items():
            (self._folder / f"{name}.toml").write_text("\n".join(line.strip() for line in text.splitlines()))

    def _load(self) -> LoadResult:
        return load([str(self._folder)], self._places)

    async def whose(self, pid: int) -> Owner:
        return self.owner

    # The core and its world

    def happens(self, event: Event) -> None:
        """Let the core handle an event, and all that follows from it."""
        self._events.append(event)
        while self._events:
            now = Now(time.monotonic_ns(), time.monotonic_ns(), time.time_ns(), len(self.records) + 1)
            effects = self.manager.handle(self._events.popleft(), now)
            for record in effects.records:
                self.write(record)
            for action in effects.actions:
                match action:
                    case SpawnProcess():
                        self._spawn(action)
                    case SignalProcesses() | KillTree():
                        self._signal(action.unit, action.signal)
                    case FreezeUnit() | ThawUnit():
                        self._events.append(UnitFrozen(action.unit, isinstance(action, FreezeUnit)))
            for reply in effects.replies:
                future = self._requests.pop(reply.request_id, None)
                if future is not None and not future.done():
                    future.set_result(reply)
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)
        self._arm()

    def _spawn(self, action: SpawnProcess) -> None:
        pid = 1000 + action.spawn_id
        self._processes[action.spawn_id] = (action.unit, pid)
        self._events.append(ProcessSpawned(action.spawn_id, pid))
        program = action.command.words[0]
        if program in ("true", "false"):
            self._exit(action.spawn_id, ExitStatus(code=int(program == "false")))

    def _signal(self, unit: str, signal: int) -> None:
        for spawn_id, (owner, _) in list(self._processes.items()):
            if owner == unit:
                self._exit(spawn_id, ExitStatus(signal=signal))

    def _exit(self, spawn_id: int, status: ExitStatus) -> None:
        _, pid = self._processes.pop(spawn_id)
        self._events.append(ProcessExited(spawn_id, pid, status, runtime_ms=5))

    def exits(self, unit: str, status: ExitStatus) -> None:
        """The main process of a unit ends."""
        for spawn_id, (owner, _) in list(self._processes.items()):
            if owner == unit:
                self._exit(spawn_id, status)
        self.happens(DeadlineReached())

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline_ns = self.manager.deadline_ns()
        if deadline_ns is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(deadline_ns / 1e9, self.happens, DeadlineReached())

    def write(self, record: Record) -> int:
        seq = len(self.records) + 1
        line = {
            "seq": seq,
            "ts": "2026-11-20T12:00:00.000000Z",
            "mono_ns": 0,
            "boot": "4f1c5a8e7d2b4c6f9a0b1c2d3e4f5a6b",
            "event": record.event,
            "severity": record.severity.value,
            "unit": record.unit,
            "invocation": record.invocation,
            **record.fields,
        }
        self.records.append(line)
        for queue in self._followers:
            queue.put_nowait(Followed(line))
        return seq

    def events(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]

    # host.facade.Supervisor

    async def command(
        self,
        verb: str,
        units: Sequence[str],
        peer: Peer,
        *,
        reason: str = "",
        mode: JobMode = JobMode.REPLACE,
        wait: bool = True,
        plan: bool = False,
        token: str = "",
        arguments: Mapping[str, Any] | None = None,
    ) -> Submission:
        self.commands.append((verb, tuple(units), peer, reason))
        seq = None if plan else self.write(Record("command", fields={"verb": verb, "units": list(units)}))
        request_id = len(self.commands)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._requests[request_id] = future
        self.happens(
            CommandRequested(
                request_id,
                verb,
                tuple(units),
                peer.origin(),
                reason,
                mode,
                wait,
                plan,
                token,
                seq,
                dict(arguments or {}),
            )
        )
        return Submission(await future, self.durable, seq)

    async def note(self, record: Record, *, durable: bool = False) -> int | None:
        return self.write(record)

    async def usage(self, units: Sequence[str]) -> dict[str, Usage]:
        return {unit: Usage(4096, 1000, 1) for unit, _ in self._processes.values() if unit in units}

    async def live(self, unit: str) -> dict[str, Any]:
        return {"nice": 0} if any(name == unit for name, _ in self._processes.values()) else {}

    async def changed(self) -> None:
        self.waiters += 1
        try:
            await asyncio.shield(self._changed)
        finally:
            self.waiters -= 1

    def last_lines(self, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None) -> list[str]:
        key = f"{unit} {invocation}" if invocation is not None else f"{unit} before" if previous else unit
        return self.lines.get(key, [])[-lines:]

    @property
    def output(self) -> "FakeSupervisor":
        return self

    def log_lines(
        self, unit: str, lines: int, *, previous: bool = False, window: Window | None = None
    ) -> list[LogLine]:
        assert window is None
        return [LogLine(text) for text in self.last_lines(unit, lines, previous=previous)]

    def has_times(self, unit: str) -> bool:
        return False

    def dropped_lines(self, unit: str) -> int:
        return 0

    def writes_line(self, unit: str, line: str) -> None:
        self.lines.setdefault(unit, []).append(line)
        for queue in self._output:
            queue.put_nowait((unit, line))

    def follow_output(self, units: Sequence[str]) -> AsyncIterator[tuple[str, str]]:
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._output.append(queue)
        return self._following(queue, self._output, lambda entry: entry[0] in units)

    async def journal_query(self, query: RecordFilter, last: int | None) -> list[dict[str, Any]]:
        found = [record for record in self.records if _passes(query, record)]
        return found if last is None else found[len(found) - min(last, len(found)) :]

    def journal_follow(self, query: RecordFilter, last: int | None) -> AsyncIterator[Followed]:
        queue: asyncio.Queue[Followed] = asyncio.Queue()
        found = [record for record in self.records if _passes(query, record)]
        for record in found if last is None else found[len(found) - min(last, len(found)) :]:
            queue.put_nowait(Followed(record))
        self._followers.append(queue)
        return self._following(queue, self._followers, lambda entry: _passes(query, entry.record))

    async def _following(
        self, queue: "asyncio.Queue[T]", among: "list[asyncio.Queue[T]]", wanted: Callable[[T], bool]
    ) -> AsyncIterator[T]:
        try:
            while True:
                entry = await queue.get()
                if wanted(entry):
                    yield entry
        finally:
            among.remove(queue)

    @property
    def following(self) -> int:
        """How many streams are open."""
        return len(self._followers) + len(self._output)

    async def journal_verify(self) -> Verification:
        return Verification(True, len(self.records), 1, len(self.records))

    async def journal_stats(self) -> JournalStats:
        by_event = Counter(record["event"] for record in self.records)
        by_unit = Counter(record["unit"] for record in self.records if record["unit"])
        return JournalStats(len(self.records), 1, 1, 1, len(self.records), None, 0, None, dict(by_event), dict(by_unit))

    @property
    def bus(self) -> "FakeBus":
        return FakeBus(self)

    async def reload(self, peer: Peer, *, reason: str = "", plan: bool = False) -> ReloadReport:
        loaded = self._load()
        problems = [problem.headline() for problem in loaded.problems]
        report = reload_report(view.reload_plan(self.manager, loaded.unit_set), (), problems)
        if not plan:
            self.orders.append(("reload", reason))
            self.loaded = loaded
            self.happens(UnitsLoaded(loaded.unit_set))
        return replace(report, durable=self.durable and not plan)

    @property
    def resources(self) -> UnitResources:
        return UnitResources(UnitGroups(Finding(None, ()), "fake", 1), has_systemd=True)

    def watch_limits(self, unit: str) -> None:
        pass

    @property
    def sources(self) -> Sources:
        return self._sources

    @property
    def changes(self) -> UnitChanges:
        return self._changes

    refusing: str | None = None

    def note_command(self, record: Record) -> int | None:
        return self.write(record)

    async def request(self, event: CommandRequested, record: Record | None) -> Submission:
        self._asked += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._requests[-self._asked] = future
        self.happens(replace(event, request_id=-self._asked))
        return Submission(await future, self.durable, None)

    async def all_durable(self) -> bool:
        return self.durable

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        return {}

    figures = FakeFigures()

    def load(self, sources: Sources, loaded: LoadResult, **how: Any) -> None:
        self._sources, self.loaded = sources, loaded
        asyncio.get_running_loop().call_soon(
            self.happens, UnitsLoaded(loaded.unit_set, reverts=bool(how.get("reverts")))
        )

    async def restart_manager(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        self.orders.append(("restart", reason))
        return self.durable, None

    async def reexec_keeper(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        self.orders.append(("reexec", reason))
        return self.durable, None

    async def shutdown(self, peer: Peer, *, reason: str = "") -> bool:
        self.orders.append(("shutdown", reason))
        return self.durable

    def health_problems(self) -> list[str]:
        return self.problems

    def health_warnings(self) -> list[str]:
        return self.warnings


def _passes(query: RecordFilter, record: Mapping[str, Any]) -> bool:
    units = (record["unit"] or "", *record.get("units", ()))
    return (
        (not query.units or any(fnmatchcase(unit, glob) for unit in units for glob in query.units))
        and (not query.events or record["event"] in query.events)
        and (query.severity is None or record["severity"] == query.severity)
    )


class Rig(Struct):
    """A server that runs, and what it runs over."""

    supervisor: FakeSupervisor
    server: ControlServer
    path: str
    bugs: list[tuple[str, Exception]]

    async def connect(self) -> "Client":
        # A blocking connect waits while the backlog is full; asyncio's would take EAGAIN for a connection.
        connection = await asyncio.to_thread(self.raw)
        return Client(*await asyncio.open_unix_connection(sock=connection))

    def raw(self) -> socket.socket:
        """Return a connected socket that does whatever the test wants."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.path)
        return connection

    async def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call once on a connection of its own and return the reply; an error raises ``CallFailed``."""
        client = await self.connect()
        try:
            return await client.call(method, **parameters)
        finally:
            await client.close()

    async def refusal(self, method: str, /, **parameters: Any) -> tuple[str, dict[str, Any]]:
        """Call once and return the error: the last part of its name, and its parameters."""
        try:
            reply = await self.call(method, **parameters)
        except CallFailed as failure:
            return failure.error.rpartition(".")[2], failure.parameters
        raise AssertionError(f"{method} was answered: {reply}")


class CallFailed(Exception):
    def __init__(self, reply: WireReply) -> None:
        super().__init__(reply.error, reply.parameters)
        assert reply.error is not None
        self.error = reply.error
        self.parameters = reply.parameters


class Client:
    """A well-behaved client on asyncio."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.wire = ClientConnection()
        self._replies: deque[WireReply] = deque()

    def send(self, method: str, /, *, more: bool = False, oneway: bool = False, **parameters: Any) -> None:
        full = method if "." in method else f"{MANAGER}.{method}"
        self.writer.write(self.wire.send(full, parameters, more=more, oneway=oneway))

    async def reply(self) -> WireReply:
        """Return the next reply of any kind; EOFError when the server closes instead."""
        async with asyncio.timeout(DEADLINE_S):
            while not self._replies:
                data = await self.reader.read(1 << 16)
                if not data:
                    raise EOFError("the server has closed the connection")
                self._replies.extend(self.wire.receive_data(data))
        return self._replies.popleft()

    async def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        self.send(method, **parameters)
        return self._checked(method, await self.reply())

    def _checked(self, method: str, reply: WireReply) -> dict[str, Any]:
        """Return the reply's parameters, which are what the interface says to the last field."""
        if reply.error is not None:
            owner, _, name = reply.error.rpartition(".")
            INTERFACES[owner].check_error(name, reply.parameters, allow_unknown=False)
            raise CallFailed(reply)
        interface = INTERFACES[method.rpartition(".")[0] or MANAGER]
        output = interface.methods[method.rpartition(".")[2]]
        interface.check_output(output, reply.parameters, allow_unknown=False)
        return reply.parameters

    async def stream(self, method: str, /, **parameters: Any) -> list[dict[str, Any]]:
        """Call with more and return all replies."""
        self.send(method, more=True, **parameters)
        replies = [await self.reply()]
        while replies[-1].continues:
            replies.append(await self.reply())
        return [self._checked(method, reply) for reply in replies]

    async def is_closed(self) -> bool:
        """Read until the server closes the connection."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass
        return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def running(
    folder: Path,
    *,
    units: Mapping[str, str] = UNITS,
    settings: Settings | None = None,
    limits: ControlLimits | None = None,
    own_uid: int = OWN_UID,
) -> AsyncIterator[Rig]:
    """Run a control server in this process."""
    path = str(folder / "control.sock")
    supervisor = FakeSupervisor(folder / "units", units, settings)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen(128)
        bugs: list[tuple[str, Exception]] = []
        server = build_control_server(
            listener,
            supervisor,
            whose=supervisor.whose,
            own_uid=own_uid,
            on_bug=lambda where, error: bugs.append((where, error)),
            limits=limits,
        )
        server.start()
        try:
            yield Rig(supervisor, server, path, bugs)
            assert not bugs, bugs
        finally:
            await server.close()
            assert supervisor.following == 0, "a stream outlived its connection"
            assert server.connections == 0


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until ``condition`` holds."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0)


def drive(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; whatever the loop would only log fails the test."""
    troubles: list[Mapping[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        return await main

    result = asyncio.run(watched())
    assert not troubles, troubles
    return result

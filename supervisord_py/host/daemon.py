"""The manager: puts everything together, restores what the last one knew, and serves until the keeper says otherwise.

Started by the keeper (``python -m supervisord_py.host.daemon``) with its end of the custody socket under the
descriptor that ``SUPERVISORD_PY_KEEPER_FD`` names. A manager that is the first of its supervisor reads files and
counters; one that follows another takes state, files, settings and unwritten journal lines out of the keeper's
custody and changes nothing.
"""

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from supervisord_py.core import view
from supervisord_py.core.actions import Refusal, Reply, RevertUnits
from supervisord_py.core.events import CommandRequested, ShutdownForced, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.core.snapshot import NewerFormatError
from supervisord_py.host.bus import Bus
from supervisord_py.host.cgroups import UnitGroups
from supervisord_py.host.clock import Clock, watch_clock
from supervisord_py.host.command_records import (
    bug_record,
    command_record,
    dropped_record,
    reload_in_shutdown,
    trouble_record,
    with_fields,
)
from supervisord_py.host.container import (
    console_of,
    echo_of,
    environment_of,
    runtime_of,
    shutdown_timeout_ns,
)
from supervisord_py.host.driver import Driver
from supervisord_py.host.ending import ORIGIN_SIGNAL, STOPPED_KEY, Ending
from supervisord_py.host.facade import (
    Followed,
    JournalStats,
    Peer,
    RecordFilter,
    ReloadReport,
    Submission,
    Usage,
    Verification,
    reload_report,
)
from supervisord_py.host.figures import Figures
from supervisord_py.host.hands import ManagerHands
from supervisord_py.host.hot_directory import HotDirectory
from supervisord_py.host.journal_file import GIVEN_UP_KEY, LOSS_KEY, Journal
from supervisord_py.host.keeper_client import KeeperClient, Welcome
from supervisord_py.host.last_good import LAST_GOOD_KEY, LastGood
from supervisord_py.host.live import describe_process
from supervisord_py.host.output import OutputCollector
from supervisord_py.host.rehearsal import rehearse
from supervisord_py.host.resources import UnitResources, find_own_place
from supervisord_py.host.servers import Servers
from supervisord_py.host.snapshot_file import SnapshotStore, boot_id, first_manager, next_manager
from supervisord_py.host.sources import (
    SOURCES_KEY,
    Sources,
    places_of,
    read_sources,
    source_paths,
    sources_of,
    told_of_settings,
)
from supervisord_py.host.start_records import lineage_of, lost_record, start_record, versions_of
from supervisord_py.host.stop_with import watch
from supervisord_py.host.unit_changes import UnitChanges
from supervisord_py.host.unit_watch import SourceMarks, UnitWatch, compare_sources
from supervisord_py.host.upward import Upward, status_line
from supervisord_py.host.usage import sample
from supervisord_py.host.zones import zones_now
from supervisord_py.keeper.protocol import KEEPER_FD
from supervisord_py.model.changes import compare_settings
from supervisord_py.model.records import Record
from supervisord_py.model.settings import Settings
from supervisord_py.model.states import JobMode, Severity
from supervisord_py.model.unit import Unit
from supervisord_py.model.unitset import LoadResult

FIRST_LOOK_S = 1.0
"""How long after the first load it is compared with the files for the first time."""


class Daemon:
    """One manager. Implements ``host.facade.Supervisor``."""

    def __init__(self, keeper: KeeperClient, welcome: Welcome) -> None:
        self._keeper = keeper
        self._config: Mapping[str, Any] = welcome.config
        self._loop = asyncio.get_running_loop()
        self._changed: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._instance = welcome.instance
        is_first = SOURCES_KEY not in welcome.state
        places = places_of(welcome.config, os.environ, os.getuid(), os.path.expanduser("~"))
        self._places = places
        self._sources = sources_of(welcome.config, places, welcome.state)
        self._changes = UnitChanges(self, self._config, places, LastGood(welcome.state.get(LAST_GOOD_KEY)))
        self._hot = HotDirectory(self, places, os.environ, self._changes)
        self._sources = self._hot.begin(self._sources, is_first=is_first)
        self._settings, self._loaded = self._sources.build()
        self._watch = UnitWatch(self._loop, source_paths(welcome.config, places), self._begin_look)
        # What was loaded a moment ago is not read again while everything starts.
        self._first_look_s = FIRST_LOOK_S if is_first else 0.0
        gid: int | None = welcome.config["socket_gid"]
        self._journal = Journal(
            places.journal, self._settings.journal, boot_id=boot_id(), loop=self._loop, group_id=gid
        )
        recovery = self._journal.open(welcome.lines, welcome.state.get(LOSS_KEY), welcome.state.get(GIVEN_UP_KEY))
        self._lost = welcome.lost if is_first else None
        units = self._loaded.unit_set
        self._manager = first_manager(places.snapshot, self._lost) if is_first else next_manager(welcome.state, units)
        self._snapshot = SnapshotStore(places.snapshot, gid, lambda: self._manager.snapshot())
        self._lineage = lineage_of(welcome, keeper.pid)
        self._groups = UnitGroups(find_own_place(keeper.pid), welcome.config["name"], welcome.instance, keeper.pid)
        self._resources = UnitResources(self._groups)
        if is_first:
            # What a killed supervisor of this name left, as far as nothing lives in it.
            self._groups.sweep()
            self._groups.sweep_own()
        self._output = OutputCollector(
            self._loop, places.log, gid=gid, on_trouble=lambda trouble: self._driver.note([trouble_record(trouble)]),
            on_dropped=lambda dropped: self._driver.note([dropped_record(dropped)]),
        )  # fmt: skip
        self._echo = echo_of(self._config, self._loop, self._output)
        self._hands = ManagerHands(
            runtime=runtime_of(self._config, self._settings, places, self._resources, welcome.listeners),
            output=self._output,
            unit_of=self._unit_of,
            ask=lambda request: self._driver.ask(request),
            submit=lambda event: self._driver.submit(event),
            note=lambda record: self._driver.note([record]),
            trees=keeper.trees,
            pid_of=lambda unit: view.main_pid(self._manager, unit),
            invocation_of=lambda unit: view.invocation(self._manager, unit),
            is_restarted=lambda unit: view.is_restarted(self._manager, unit),
        )
        self._hands.restore(
            [(each.id, each.unit, each.role, each.pid) for each in welcome.processes],
            view.processes(self._manager), view.held(self._manager),
        )  # fmt: skip
        self.figures = Figures(self._journal, places, self._resources, keeper.pid)
        self._driver = Driver(
            self._manager,
            keeper,
            self._journal,
            self._hands,
            clock=Clock(),
            on_exit=self._finish,
            on_revert=self._changes.revert,
            on_keep=lambda: self._spawn_task(self._snapshot.store()),
            on_batch=self._batch_done,
        )
        self._stop_watching_clock = watch_clock(self._loop, self._driver.clock_set)
        self._servers = Servers(
            welcome.listeners, places.runtime, self, self._journal, self._driver.write, whose=keeper.whose,
            on_bug=lambda where, error: self._driver.note([bug_record(where, error)]),
        )  # fmt: skip
        self._upward = Upward(lambda: status_line(view.active_states(self._manager)))
        self._ending = Ending(
            self._config,
            lambda: self._settings,
            manager=self._manager,
            driver=self._driver,
            hands=self._hands,
            echo=self._echo,
            snapshot=self._snapshot,
            journal=self._journal,
            output=self._output,
            groups=self._groups,
            has_told=STOPPED_KEY in welcome.state,
            on_begin=self._upward.stopping,
        )
        self._journal.attach(self._driver.note)
        self._journal.on_rotated.append(lambda: self._spawn_task(self._snapshot.store()))
        started = start_record(welcome, recovery, keeper.pid, units if is_first else None)
        if is_first:
            # All in one commit: whoever follows a manager that got no further is the first one too.
            lost = [] if self._lost is None else [lost_record(self._lost)]
            self._load_units(*lost, started)
        else:
            self._driver.note([started], keep=self._lineage)
            self._driver.ask_again()
        running = {process.unit for process in welcome.processes} | {orphan.unit for orphan in welcome.orphans}
        self._idle_outputs = [unit for unit in welcome.outputs if unit not in running.union(view.held(self._manager))]
        self._stopping = welcome.stopping

    async def serve(self) -> None:
        """Take facts, orders and connections, until the keeper is gone or the supervisor has ended."""
        self._keeper.start(
            on_facts=self._driver.facts,
            on_output=self._hands.output_came,
            on_order=self._order,
            on_lost=self._keeper_lost,
            on_preflight_failed=self._preflight_failed,
        )
        self._hands.use_log_policies(self._loaded.unit_set)
        for unit in self._idle_outputs:
            self._hands.release(unit)
        for order in (*self._sources.orders(self._config, self._places), *filter(None, [self._stopping])):
            self._order(order)
        for action in self._manager.pending_actions():
            if isinstance(action, RevertUnits):
                self._changes.revert(action)
        if view.is_over(self._manager):
            # Decided, but the manager that decided it did not live to ask for it.
            self._finish(view.exit_code(self._manager))
        if (shown := console_of(self._config)) is not None:
            self._spawn_task(shown[0].show(self.journal_follow(shown[1], 0)))
        watch(self._config, self._loop, lambda: self._order("stop"))
        self._servers.start()
        # The units that were loaded are the core's when the first batch is done.
        self._changed.add_done_callback(lambda _: self._upward.ready())
        self._watch.start(self._first_look_s)
        self._hot.start()
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Let go of connections, files and threads and decide nothing: what is left is what a killed manager leaves."""
        await self._servers.close()
        await self._watch.close()
        await self._hot.close()
        await self._changes.transients.close()
        self._stop_watching_clock()
        self._upward.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._hands.close()
        await self._journal.close()
        if self._echo is not None:
            await self._echo.close()
        await self._output.close()
        self._groups.close(remove=False)

    # What the control interfaces see (host.facade.Supervisor)

    @property
    def manager(self) -> Manager:
        return self._manager

    @property
    def resources(self) -> UnitResources:
        return self._resources

    def watch_limits(self, unit: str) -> None:
        self._hands.watch_limits(unit, view.invocation(self._manager, unit) or "")

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def loaded(self) -> LoadResult:
        return self._loaded

    @property
    def versions(self) -> Mapping[str, Any]:
        return versions_of(self._keeper, self._config["name"], self._instance, self._lineage)

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
        record = None if plan else command_record(verb, units, peer, reason)
        if record is not None and (why := self.refusing) is not None:
            refusal = Refusal("Busy", why)
            seq = self._driver.note([with_fields(record, result="Busy")])
            return Submission(Reply(0, refusal=refusal), durable=False, seq=seq)
        answer = await self._driver.request(
            CommandRequested(
                request_id=0,
                verb=verb,
                units=tuple(units),
                origin=peer.origin(),
                reason=reason,
                mode=mode,
                wait=wait,
                plan=plan,
                token=token,
                arguments=dict(arguments or {}),
            ),
            record,
        )
        return Submission(answer.reply, answer.durable, answer.seq)

    async def note(self, record: Record, *, durable: bool = False) -> int | None:
        seq = self._driver.note([record])
        if durable and seq is not None:
            await self._journal.wait_durable(seq)
        return seq

    async def usage(self, units: Sequence[str]) -> dict[str, Usage]:
        return sample(await self.trees(units))

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        return await self._keeper.trees(list(units))

    async def live(self, unit: str) -> dict[str, Any]:
        pid = view.unit_status(self._manager, unit).pid
        return {} if pid is None else await asyncio.to_thread(describe_process, pid)

    async def changed(self) -> None:
        await asyncio.shield(self._changed)

    def last_lines(self, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None) -> list[str]:
        return self._output.last_lines(unit, lines, previous=previous, invocation=invocation)

    @property
    def output(self) -> OutputCollector:
        return self._output

    def follow_output(self, units: Sequence[str]) -> AsyncIterator[tuple[str, str]]:
        return self._output.follow(units)

    async def journal_query(self, query: RecordFilter, last: int | None) -> list[dict[str, Any]]:
        return await self._journal.query(query, last)

    def journal_follow(self, query: RecordFilter, last: int | None) -> AsyncIterator[Followed]:
        return self._journal.follow(query, last)

    async def journal_verify(self) -> Verification:
        return await self._journal.verify()

    @property
    def bus(self) -> Bus:
        return self._servers.bus

    async def journal_stats(self) -> JournalStats:
        return await self._journal.stats()

    async def reload(self, peer: Peer, *, reason: str = "", plan: bool = False) -> ReloadReport:
        async with self._changes.lock:
            with contextlib.nullcontext() if plan else self._upward.reloading():
                return await self._reload(peer, reason=reason, plan=plan)

    async def _reload(self, peer: Peer, *, reason: str, plan: bool) -> ReloadReport:
        seen = self._watch.happened
        sources, settings, loaded = await asyncio.to_thread(self._read_and_build)
        problems = tuple(
            problem.headline() for problem in (*sources.problems, *loaded.problems) if problem.severity == "error"
        )
        report = reload_report(
            view.reload_plan(self._manager, loaded.unit_set),
            () if sources.has_bad_settings else compare_settings(self._settings, settings),
            problems,
        )
        if plan:
            return report
        seq = self._driver.note([with_fields(command_record("daemon-reload", (), peer, reason), result="done")])
        if sources.has_bad_settings:
            # Settings that cannot be read change nothing: the units of this load are used, the settings stay.
            settings = self._sources.settings
            sources = msgspec.structs.replace(sources, settings=settings)
        self._use(settings, loaded, sources, seen=seen)
        self._load_units(cause=seq)
        await self.changed()
        self._hands.use_log_policies(self._loaded.unit_set)
        durable = await self._journal.wait_durable(self._journal.next_seq - 1)
        return msgspec.structs.replace(report, durable=durable)

    def _read_and_build(self) -> tuple[Sources, Settings, LoadResult]:
        """Read everything anew; in a thread, because a thousand files take longer than anybody should wait for."""
        sources = read_sources(self._config, self._places, self._sources)
        return sources, *sources.build()

    @property
    def sources(self) -> Sources:
        return self._sources

    @property
    def changes(self) -> UnitChanges:
        return self._changes

    # What the changes of unit files need (host.unit_changes.Host)

    @property
    def refusing(self) -> str | None:
        degraded = self._journal.degraded if self._journal.refusing else None
        return degraded and f"the journal cannot be written (when-full = refuse-commands): {degraded}"

    def note_command(self, record: Record) -> int | None:
        return self._driver.note([record])

    async def request(self, event: CommandRequested, record: Record | None) -> Submission:
        answer = await self._driver.request(event, record)
        return Submission(answer.reply, answer.durable, answer.seq)

    async def all_durable(self) -> bool:
        return await self._journal.wait_durable(self._journal.next_seq - 1)

    def load(
        self,
        sources: Sources,
        loaded: LoadResult,
        *,
        settings: Settings | None = None,
        read: Sequence[str] | None,
        applied: Sequence[str] | None = None,
        start_enabled: bool = False,
        **why: Any,
    ) -> None:
        self._use(settings or self._settings, loaded, sources, read=read, applied=applied)
        if why.get("reverts"):
            self._watch.mark(self._changes.last_good.refused_units)
        self._load_units(start_enabled=start_enabled, **why)
        # The batch that decides it may be done before a task of ours would have begun to wait for it.
        self._changed.add_done_callback(lambda _: self._hands.use_log_policies(self._loaded.unit_set))

    async def restart_manager(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        return await self._replace("daemon-restart", "restart-manager", peer, reason)

    async def reexec_keeper(self, peer: Peer, *, reason: str = "") -> tuple[bool, str | None]:
        return await self._replace("daemon-reexec", "reexec", peer, reason)

    async def _replace(self, verb: str, request: str, peer: Peer, reason: str) -> tuple[bool, str | None]:
        seq = self.note_command(with_fields(command_record(verb, (), peer, reason), result="queued"))
        durable = seq is not None and await self._journal.wait_durable(seq)
        if unfit := await asyncio.to_thread(rehearse, self._manager.snapshot() | self._kept()):
            self._preflight_failed(unfit)
            return durable, unfit
        refused = self._keeper.reexec_checked() if request == "reexec" else None
        self._driver.ask({"do": request})
        return durable, None if refused is None else await refused

    async def shutdown(self, peer: Peer, *, reason: str = "") -> bool:
        record = with_fields(command_record("shutdown", (), peer, reason), result="queued")
        seq = self._driver.note([record])
        durable = seq is not None and await self._journal.wait_durable(seq)
        self._ending.begin(peer.origin(), reason, seq)
        return durable

    @property
    def marks(self) -> SourceMarks:
        return self._watch.marks

    def _begin_look(self) -> Callable[[], SourceMarks]:
        loaded, units, config, places = self._sources, self._loaded.names, self._config, self._places
        return lambda: compare_sources(loaded, read_sources(config, places, apart=loaded.units.apart), units)

    def health_warnings(self) -> list[str]:
        return [*filter(None, [self._watch.problem]), *self._hot.problems, *self._servers.remote.warnings()]

    def health_problems(self) -> list[str]:
        problems = self._output.problems() + self._servers.remote.problems()
        if self._journal.degraded is not None:
            problems.append(self._journal.degraded)
        return problems

    # Inside

    def _use(
        self,
        settings: Settings,
        loaded: LoadResult,
        sources: Sources,
        *,
        read: Sequence[str] | None = None,
        applied: Sequence[str] | None = None,
        seen: int | None = None,
    ) -> None:
        """Take over what a reload read (the files of the units ``read``, None: all); the core gets its part as an
        event."""
        rolled = view.rollout_units(self._manager)
        self._changes.last_good.note_load(
            self._loaded, loaded, view.lives(self._manager), read=read, in_rollout=rolled, applied=applied
        )
        self._settings, self._loaded, self._sources = settings, loaded, sources
        self._watch.loaded(seen)
        self._hot.use(settings)
        self._servers.remote.use()
        self._driver.clock_set(zones_now())
        self._journal.apply(settings.journal)
        self._hands.use_environment(environment_of(self._config, settings))

    def _load_units(self, *records: Record, start_enabled: bool = True, **why: Any) -> None:
        """Give the core what was read; the sources are the manager's state from the moment that it is decided."""
        self._driver.submit(
            UnitsLoaded(
                self._loaded.unit_set,
                start_enabled=start_enabled,
                shutdown_timeout_ns=shutdown_timeout_ns(self._config, self._settings),
                is_init=self._keeper.pid == 1,
                **told_of_settings(self._settings),
                **why,
            ),
            records=records,
            keep=self._kept() | self._lineage,
        )

    def _kept(self) -> dict[str, str]:
        """Return what is kept of files for the next manager."""
        return {SOURCES_KEY: self._sources.pack(), LAST_GOOD_KEY: self._changes.last_good.pack()}

    def _unit_of(self, name: str) -> Unit | None:
        return self._manager.ledger.unit(name)

    def _order(self, order: str) -> None:
        """A signal came to the keeper."""
        match order:
            case "stop":
                self._ending.begin(ORIGIN_SIGNAL)
            case "kill":
                self._driver.submit(ShutdownForced())
            case "reload" if self._ending.has_begun or view.is_stopping(self._manager):
                self._driver.note([reload_in_shutdown(self._signaller())])
            case "reload":
                self._spawn_task(self.reload(self._signaller()))
            case "reopen":
                self._output.reopen()
            case "replace":
                self._spawn_task(self.restart_manager(self._signaller()))
            case _:
                raise AssertionError(f"internal error: unknown order {order}")

    def _signaller(self) -> Peer:
        return Peer(uid=os.getuid(), gid=os.getgid(), pid=self._keeper.pid, user=ORIGIN_SIGNAL.user)

    def _preflight_failed(self, reason: str) -> None:
        """A new manager was to take over and did not; this one goes on."""
        self._driver.note([Record("manager.unfit", Severity.ERROR, fields={"reason": reason})])

    def _finish(self, code: int) -> None:
        self._spawn_task(self._ending.finish(code))

    def _batch_done(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)
        self._changed = self._loop.create_future()
        self._upward.changed()
        self._changes.transients.look()

    def _keeper_lost(self) -> None:
        """The keeper is dead, or wants us to be: what it has of us is all there is, so end at once."""
        os._exit(0)

    def _spawn_task(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_stop_on_bug)
    keeper = KeeperClient(socket.socket(fileno=int(os.environ.pop(KEEPER_FD))), loop)
    try:
        welcome = await keeper.hello()
    except ConnectionError:
        os._exit(0)  # the keeper is dead, or found another one fit before us
    try:
        daemon = Daemon(keeper, welcome)
    except NewerFormatError as newer:
        print(f"manager: {newer}", file=sys.stderr)
        sys.exit(newer.exit_status)
    await daemon.serve()


def _stop_on_bug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A callback failed: that is a bug of ours. The keeper holds everything; a fresh manager goes on from the last
    commit."""
    loop.default_exception_handler(context)
    sys.stderr.flush()
    os._exit(70)


def main() -> None:
    """Run the manager; returns never."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_main())


if __name__ == "__main__":
    main()

"""What carries out the core's actions on the manager's side of the keeper: environment, cgroup folders, output, pids,
pid files, conditions.

No policy: everything is decided by the core or written in the unit. Preparing a spawn may fail (an unknown user,
say); then the failure is the event that completes the action.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from supervisord_py.core.actions import (
    CheckConditions,
    FollowMain,
    FreezeUnit,
    LookAtConnections,
    LookAtProcesses,
    OpenSockets,
    RunProbe,
    SpawnProcess,
    ThawUnit,
)
from supervisord_py.core.events import (
    ConditionsChecked,
    ConnectionsSeen,
    Event,
    MainFollowed,
    NotifyReceived,
    ProcessExited,
    ProcessSpawned,
    SocketsOpened,
    SpawnFailed,
)
from supervisord_py.host.accounts import NoAccount
from supervisord_py.host.command_records import bug_record
from supervisord_py.host.conditions import Host, check_bounded
from supervisord_py.host.execution import SpawnRuntime, build_spawn
from supervisord_py.host.hook_output import HookOutput
from supervisord_py.host.ipc import remove_ipc
from supervisord_py.host.limit_watch import LimitWatch
from supervisord_py.host.memory_kills import MemoryKills
from supervisord_py.host.output import OutputCollector
from supervisord_py.host.pid_files import PidFiles
from supervisord_py.host.probes import Probes
from supervisord_py.host.resources import Mechanism, sampled_bounds
from supervisord_py.host.sockets import count_connections, listen_request
from supervisord_py.host.standstill import StandStill, Trees
from supervisord_py.host.streams import captured_stream
from supervisord_py.host.unit_files import specifier_context
from supervisord_py.model.context import Streams
from supervisord_py.model.hooks import with_specifiers
from supervisord_py.model.log import LogPolicy
from supervisord_py.model.names import UnitName, base_unit, is_aux_owner, parse_unit_name
from supervisord_py.model.records import Record
from supervisord_py.model.sockets import is_connection_name
from supervisord_py.model.specifiers import Specifiers
from supervisord_py.model.states import Role, Severity
from supervisord_py.model.unit import ExecContext, Unit, UnitSet

LAST_LIFE = "SUPERVISORD_PY_LAST_LIFE"
LAST_WORDS_LINES = 5
LAST_WORDS_MAX = 1000
"""Characters of the last words that a new life is told of the one before."""
CLEARED_AFTER = 50
"""After so many connections the oldest of their output is removed."""

CLOCK_GRAIN_NS = 100_000_000
"""By so much a file may seem older than it is: the kernel stamps files by a coarser clock."""


class ManagerHands:
    """Prepares spawns and lets units go.

    Args:
        runtime: What all spawns share.
        output: Captures what the units print.
        unit_of: The text a unit runs by, None for one that is gone.
        ask: Sends the keeper a request with the next commit.
        submit: Queues an event for the core.
        note: Writes a record of the host's own.
        trees: Asks the keeper for all processes of units.
        pid_of: The main process of a unit, None when there is none.
        invocation_of: The life of a unit, None when it has none.
        is_restarted: Whether a unit that has stopped is about to start again.
    """

    def __init__(
        self,
        *,
        runtime: SpawnRuntime,
        output: OutputCollector,
        unit_of: Callable[[str], Unit | None],
        ask: Callable[[dict[str, Any]], None],
        submit: Callable[[Event], None],
        note: Callable[[Record], object],
        trees: Trees,
        pid_of: Callable[[str], int | None],
        invocation_of: Callable[[str], str | None],
        is_restarted: Callable[[str], bool],
    ) -> None:
        self._runtime = runtime
        self._output = output
        self._hook_output = HookOutput(output)
        self._unit_of = unit_of
        self._is_restarted = is_restarted
        self._invocation_of = invocation_of
        self._ask = ask
        self._submit = submit
        self._note = note
        self._pid_files = PidFiles(ask=ask, answer=submit, complain=self._pid_file_refused)
        self._still = StandStill(groups=runtime.groups, trees=trees, ask=ask, submit=submit, pid_of=pid_of)
        self._probes = Probes(submit=submit, output=output, invocation_of=invocation_of)
        self._kills = MemoryKills(runtime.resources)
        self._limits = LimitWatch(trees, self._kills, submit)
        self._checks: set[asyncio.Task[None]] = set()
        self._pids: dict[int, int] = {}
        self._roles: dict[int, tuple[str, Role]] = {}
        self._daemons: dict[str, int] = {}
        """The process that each forking unit's pid file named."""
        self._start_asked_ns: dict[str, int] = {}
        self._lives: dict[str, str] = {}
        self._spawns_of: dict[str, int] = {}
        self._last_words: dict[str, str] = {}
        self._releasing: set[asyncio.Future[None]] = set()
        self._forgotten = 0

    def restore(
        self,
        processes: Collection[tuple[int, str, str, int]],
        awaited: Iterable[tuple[int, str, Role]] = (),
        held: Iterable[str] = (),
    ) -> None:
        """Take over (spawn id, unit, role, pid) of the keeper's inventory after a manager's death; those that are
        ``awaited`` beside them have ended, and that will be told. What was made for units that are ``held`` is in use,
        though they may have no process now."""
        for ended, unit, its_role in awaited:
            self._roles[ended] = (unit, its_role)
            self._go_on_counting(unit)
        living = {unit for _, unit, _, _ in processes} | set(held)
        for left in (self._runtime.private, self._runtime.keeping):
            if left is not None:
                left.sweep(living)
        for spawn_id, unit, role, pid in processes:
            self._spawns_of[unit] = spawn_id
            self._roles[spawn_id] = (unit, Role(role))
            if pid:
                self._pids[spawn_id] = pid
                if Role(role) is Role.MAIN:
                    self._daemons[unit] = pid
                self._go_on_counting(unit)
            if not is_aux_owner(unit) and (invocation := self._invocation_of(unit)) is not None:
                self.watch_limits(unit, invocation)

    def _go_on_counting(self, unit: str) -> None:
        if self._runtime.resources is not None and not is_aux_owner(unit):
            self._runtime.resources.go_on_counting(unit)

    def spawn(self, action: SpawnProcess) -> dict[str, Any] | SpawnFailed:
        """Turn ``action`` into the keeper's request; the unit's new life begins in its output too."""
        if is_aux_owner(action.unit):
            return self._spawn_beside(action)
        unit = self._unit_of(action.unit)
        if unit is None:
            return SpawnFailed(action.spawn_id, "unit", 255, 2, f"the unit {action.unit} is gone")
        self._spawns_of[action.unit] = action.spawn_id
        self._roles[action.spawn_id] = (action.unit, action.role)
        if action.role is Role.START:
            self._start_asked_ns[action.unit] = time.time_ns() - CLOCK_GRAIN_NS
        if self._lives.get(action.unit) != action.invocation:
            self._lives[action.unit] = action.invocation
            # Asked before the new life is marked: what is in the file now was said by the life before.
            words = "\n".join(self._output.last_lines(action.unit, LAST_WORDS_LINES))
            self._last_words[action.unit] = words[-LAST_WORDS_MAX:]
            self._output.drain(action.unit)
            self._output.mark_life(action.unit, action.invocation)
        environment = tuple(
            (name, self._with_last_words(action.unit, value) if name == LAST_LIFE else value)
            for name, value in action.environment
        )
        main_pid = None if action.main_spawn is None else self._pids.get(action.main_spawn)
        self.watch_limits(action.unit, action.invocation)
        return build_spawn(
            msgspec.structs.replace(action, environment=environment),
            unit,
            self._runtime,
            main_pid=main_pid,
        )

    def _spawn_beside(self, action: SpawnProcess) -> dict[str, Any] | SpawnFailed:
        """Turn a process beside a unit's life into the keeper's request; it runs as the unit's processes do."""
        self._spawns_of[action.unit] = action.spawn_id
        unit = self._unit_of(base_unit(action.unit))
        if action.role is Role.HOOK:
            # Written for any unit, so it is known only now what its specifiers stand for.
            folder = None if self._runtime.private is None else self._runtime.private.runtime
            specifiers = hook_specifiers(base_unit(action.unit), unit, folder)
            command = with_specifiers(action.command, specifiers.expand)
            action = msgspec.structs.replace(action, command=command)
        main_pid = None if action.main_spawn is None else self._pids.get(action.main_spawn)
        beside = self._main_pid(base_unit(action.unit)) if action.role is Role.PROBE else None
        return build_spawn(action, unit, self._runtime, main_pid=main_pid, beside=beside)

    def _main_pid(self, unit: str) -> int | None:
        """Return the main process that a unit has now."""
        mains = (spawn_id for spawn_id, found in self._roles.items() if found == (unit, Role.MAIN))
        return next((self._pids[spawn_id] for spawn_id in mains if spawn_id in self._pids), None)

    def use_environment(self, passed: tuple[tuple[str, str], ...]) -> None:
        """Pass these variables to every process from now on (``pass-environment`` was reloaded)."""
        self._runtime = msgspec.structs.replace(self._runtime, passed=passed)

    def process_spawned(self, event: ProcessSpawned) -> None:
        self._pids[event.spawn_id] = event.pid

    def spawn_failed(self, event: SpawnFailed) -> None:
        self._roles.pop(event.spawn_id, None)

    def process_exited(self, event: ProcessExited) -> ProcessExited:
        """Return the event with what the kernel counted when it killed the process."""
        if not event.main:
            return event
        self._pids.pop(event.spawn_id, None)
        unit, role = self._roles.pop(event.spawn_id, (None, None))
        if unit is not None and event.tree_empty:
            text = self._unit_of(unit)
            has_more = text is not None and text.service is not None and bool(text.service.exec_stop_post)
            if role is Role.STOP_POST or not has_more:
                self._remove_pid_file(unit)
        return event if unit is None else self._with_breach(event, unit)

    def batch_done(self) -> None:
        """What was taken is told for good."""
        self._kills.keep_count()

    def _with_breach(self, event: ProcessExited, unit: str) -> ProcessExited:
        breach = self._kills.breach_of(unit, settle=True)
        return event if breach is None else msgspec.structs.replace(event, breach=breach)

    def watch_limits(self, unit: str, invocation: str) -> None:
        """Count what a life has, as far as nothing else bounds it, and whom the kernel kills in it."""
        resources, text = self._runtime.resources, self._unit_of(unit)
        if resources is not None and text is not None and text.service is not None:
            wanted = text.service.context.resources
            how = resources.plan(wanted).how
            by_kernel = how.get("memory-max") in (Mechanism.V1, Mechanism.V2)
            self._limits.watch(unit, invocation, sampled_bounds(wanted, how), by_kernel=by_kernel)

    def follow(self, action: FollowMain) -> None:
        """Find the main process of a forking unit: ``MainFollowed`` tells which."""
        self._pid_files.follow(action, self._start_asked_ns.get(action.unit))

    def stop_following(self, spawn_id: int) -> None:
        self._pid_files.stop(spawn_id)

    def main_followed(self, event: MainFollowed) -> bool:
        """Take the keeper's answer; False when it is not for the core: the pid file is waited for on."""
        if event.pid is not None:
            self._pids[event.spawn_id] = event.pid
            self._roles[event.spawn_id] = (event.unit, Role.MAIN)
            self._daemons[event.unit] = event.pid
        return self._pid_files.is_for_core(event)

    def check(self, action: CheckConditions) -> None:
        """Look at conditions and asserts, beside everything else: ``ConditionsChecked`` tells."""

        async def work() -> None:
            found = await check_bounded(action.conditions, action.asserts, Host(environment=os.environ))
            self._submit(ConditionsChecked(action.check_id, action.unit, found.condition, found.assertion))

        task = asyncio.get_running_loop().create_task(work())
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def freeze(self, action: FreezeUnit) -> None:
        """Let a unit stand still: ``UnitFrozen`` tells."""
        self._still.freeze(action)

    def thaw(self, action: ThawUnit) -> None:
        """Let a unit go on: ``UnitFrozen`` tells."""
        self._still.thaw(action)

    def open_sockets(self, action: OpenSockets) -> dict[str, Any] | SocketsOpened:
        """Turn ``action`` into the keeper's request, or say why not."""
        return listen_request(action, self._runtime.accounts)

    def look_at_connections(self, action: LookAtConnections) -> None:
        """See who is connected to a unit: ``ConnectionsSeen`` tells."""
        unit = self._unit_of(action.unit)
        sockets = () if unit is None or unit.sockets is None else unit.sockets.sockets

        async def work() -> None:
            found = await asyncio.to_thread(count_connections, sockets)
            self._submit(ConnectionsSeen(action.look_id, action.unit, found))

        task = asyncio.get_running_loop().create_task(work())
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def look(self, action: LookAtProcesses) -> None:
        """See whether a unit's processes can run: ``ProcessesSeen`` tells."""
        self._still.look(action)

    def probe(self, action: RunProbe) -> None:
        """Make a health check: ``ProbeFinished`` tells."""
        self._probes.run(action)

    def main_pid_changed(self, event: NotifyReceived) -> None:
        if event.main_pid is not None and event.spawn_id is not None:
            self._pids[event.spawn_id] = event.main_pid

    def policy_of(self, unit: str) -> LogPolicy:
        text = self._unit_of(unit)
        return text.service.log if text is not None and text.service is not None else LogPolicy()

    def use_log_policies(self, units: UnitSet) -> None:
        """Let ``[log]`` of these units hold, and for what runs that of the text it runs by."""
        logs = {unit.name: unit.service.log for unit in units.units.values() if unit.service is not None}
        for unit in self._output.attached:
            logs[unit] = self.policy_of(unit)
            self._output.set_policy(unit, logs[unit])
        self._output.use_policies({unit: log for unit, log in logs.items() if log != LogPolicy()})

    def output_came(self, unit: str, descriptor: int) -> None:
        """The keeper made or handed over the output pipe of ``unit``."""
        if is_aux_owner(unit):
            self._hook_output.attach(unit, descriptor)
        else:
            text = self._unit_of(unit)
            stream = captured_stream(
                Streams() if text is None or text.service is None else text.service.context.streams
            )
            self._output.attach(unit, descriptor, self.policy_of(unit), stream)

    def _forget(self, unit: str) -> None:
        """Remember nothing of a unit whose name does not come again; there is one for each connection."""
        self._output.forget(unit)
        for known in (self._lives, self._last_words, self._start_asked_ns, self._daemons):
            known.pop(unit, None)
        self._forgotten += 1
        if self._forgotten % CLEARED_AFTER == 0:
            self._output.clear(lambda name: is_connection_name(name) and self._unit_of(name) is None)

    def release(self, unit: str) -> None:
        """Let the keeper close what it holds for ``unit``, once the last output is in its file; a new spawn in
        between keeps it."""
        if is_aux_owner(unit):
            # Its name is used once: nothing can come between.
            self._hook_output.detach(unit)
            self._spawns_of.pop(unit, None)
            self._ask({"do": "release", "unit": unit})
            return
        keeping, private, resources = self._runtime.keeping, self._runtime.private, self._runtime.resources
        with self._guarded(unit):
            self._remove_pid_file(unit)
        self._limits.forget(unit)
        if keeping is not None:
            with self._guarded(unit):
                keeping.release(unit, is_restarted=self._is_restarted(unit))
        if private is not None:
            with self._guarded(unit):
                private.release(unit)
        with self._guarded(unit):
            self._remove_ipc(unit)
        if self._runtime.dynamic is not None and not self._is_restarted(unit):
            with self._guarded(unit):
                self._runtime.dynamic.release(unit)
        self._probes.forget(unit)
        spawn_id = self._spawns_of.get(unit)
        drained = asyncio.get_running_loop().create_future()
        drained.set_result(None)
        with self._guarded(unit):
            drained = self._output.drain(unit)

        def done(future: "asyncio.Future[None]") -> None:
            self._releasing.discard(future)
            if not future.cancelled() and self._spawns_of.get(unit) == spawn_id:
                self._spawns_of.pop(unit, None)
                with self._guarded(unit):
                    if is_connection_name(unit):
                        self._forget(unit)
                    else:
                        self._output.detach(unit)
                self._ask({"do": "release", "unit": unit})
                if resources is not None:
                    with self._guarded(unit):
                        resources.release(unit)

        self._releasing.add(drained)
        drained.add_done_callback(done)

    @contextlib.contextmanager
    def _guarded(self, unit: str) -> Iterator[None]:
        """Let a bug in one thing that is let go of keep nothing else: a unit that the keeper is never told to release
        would be there for ever."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever it is, it is told
            self._note(bug_record(f"the release of {unit}", error))

    def _remove_ipc(self, unit: str) -> None:
        """Remove the IPC objects of the unit's user, unless another unit of that user runs."""

        def context_of(name: str) -> ExecContext:
            text = self._unit_of(name)
            return ExecContext() if text is None or text.service is None else text.service.context

        context, dynamic = context_of(unit), self._runtime.dynamic
        if not context.sandbox.remove_ipc:
            return
        own = dynamic.of(unit) if dynamic is not None and context.dynamic_user else None
        others = [base_unit(other) for other in self._spawns_of if base_unit(other) != unit]
        if own is not None:
            remove_ipc(own)
        elif context.user is not None and all(context_of(other).user != context.user for other in others):
            with contextlib.suppress(NoAccount):
                account = self._runtime.accounts.find(context.user, context.group)
                if account.uid is not None:
                    remove_ipc(account.uid)

    async def settle(self) -> None:
        """Wait until everything that was released has been let go (before the supervisor ends)."""
        while self._releasing:
            await asyncio.wait(set(self._releasing))
            await asyncio.sleep(0)
        await self._pid_files.close()
        if self._runtime.private is not None:
            await asyncio.to_thread(self._runtime.private.settle)

    async def close(self) -> None:
        """End what waits and looks: whoever comes next asks again."""
        for task in list(self._checks):
            task.cancel()
        self._hook_output.close()
        looking = (self._limits.close(), self._pid_files.close(), self._still.close(), self._probes.close())
        await asyncio.gather(*self._checks, *looking, return_exceptions=True)

    def _remove_pid_file(self, unit: str) -> None:
        """Remove the pid file of a unit that has ended, as systemd does: it would name whoever gets that number."""
        dead = self._daemons.pop(unit, None)
        text = self._unit_of(unit)
        if text is not None and text.service is not None and text.service.pid_file is not None:
            self._pid_files.remove(text.service.pid_file, dead)

    def _pid_file_refused(self, unit: str, reason: str) -> None:
        self._note(Record("unit.error", Severity.WARNING, unit=unit, fields={"message": reason}))

    def _with_last_words(self, unit: str, value: str) -> str:
        words = self._last_words.get(unit, "")
        return json.dumps({**json.loads(value), "last_words": words}, ensure_ascii=False)


def hook_specifiers(name: str, unit: Unit | None, runtime: Path | None) -> Specifiers:
    """Return what the specifiers of a hook stand for; a hook about no unit has the empty name."""
    path = unit.source.path if unit is not None else ""
    return Specifiers(specifier_context(os.environ, runtime), parse_unit_name(name) if name else UnitName(""), path)

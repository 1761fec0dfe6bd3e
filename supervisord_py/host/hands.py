"""What carries out the core's actions on the manager's side of the keeper: environment, cgroup folders, output, pids.

No policy: everything is decided by the core or written in the unit. Preparing a spawn may fail (an unknown user,
say); then the failure is the event that completes the action.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import NotifyReceived, ProcessExited, ProcessSpawned, SpawnFailed
from supervisord_py.host.execution import SpawnRuntime, build_spawn
from supervisord_py.host.output import OutputCollector
from supervisord_py.model.unit import LogPolicy, Unit

LAST_LIFE = "SUPERVISORD_PY_LAST_LIFE"
LAST_WORDS_LINES = 5
LAST_WORDS_MAX = 1000
"""Characters of the last words that a new life is told of the one before."""


class ManagerHands:
    """Prepares spawns and lets units go.

    Args:
        runtime: What all spawns share.
        output: Captures what the units print.
        unit_of: The text a unit runs by, None for one that is gone.
        ask: Sends the keeper a request with the next commit.
    """

    def __init__(
        self,
        *,
        runtime: SpawnRuntime,
        output: OutputCollector,
        unit_of: Callable[[str], Unit | None],
        ask: Callable[[dict[str, Any]], None],
    ) -> None:
        self._runtime = runtime
        self._output = output
        self._unit_of = unit_of
        self._ask = ask
        self._pids: dict[int, int] = {}
        self._lives: dict[str, str] = {}
        self._spawns_of: dict[str, int] = {}
        self._last_words: dict[str, str] = {}
        self._releasing: set[asyncio.Future[None]] = set()

    def restore(self, processes: Iterable[tuple[int, str, int]]) -> None:
        """Take over (spawn id, unit, pid) of the keeper's inventory after a manager's death."""
        for spawn_id, unit, pid in processes:
            self._spawns_of[unit] = spawn_id
            if pid:
                self._pids[spawn_id] = pid

    def spawn(self, action: SpawnProcess) -> dict[str, Any] | SpawnFailed:
        """Turn ``action`` into the keeper's request; the unit's new life begins in its output too."""
        unit = self._unit_of(action.unit)
        if unit is None:
            return SpawnFailed(action.spawn_id, "unit", 255, 2, f"the unit {action.unit} is gone")
        self._spawns_of[action.unit] = action.spawn_id
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
        return build_spawn(
            msgspec.structs.replace(action, environment=environment),
            unit,
            self._runtime,
            main_pid=main_pid,
        )

    def use_environment(self, passed: tuple[tuple[str, str], ...]) -> None:
        """Pass these variables to every process from now on (``pass-environment`` was reloaded)."""
        self._runtime = msgspec.structs.replace(self._runtime, passed=passed)

    def process_spawned(self, event: ProcessSpawned) -> None:
        self._pids[event.spawn_id] = event.pid

    def process_exited(self, event: ProcessExited) -> None:
        if event.main:
            self._pids.pop(event.spawn_id, None)

    def main_pid_changed(self, event: NotifyReceived) -> None:
        if event.main_pid is not None and event.spawn_id is not None:
            self._pids[event.spawn_id] = event.main_pid

    def policy_of(self, unit: str) -> LogPolicy:
        text = self._unit_of(unit)
        return text.service.log if text is not None and text.service is not None else LogPolicy()

    def output_came(self, unit: str, descriptor: int) -> None:
        """The keeper made or handed over the output pipe of ``unit``."""
        self._output.attach(unit, descriptor, self.policy_of(unit))

    def release(self, unit: str) -> None:
        """Let the keeper close what it holds for ``unit``, once the last output is in its file; a new spawn in
        between keeps it."""
        spawn_id = self._spawns_of.get(unit)
        drained = self._output.drain(unit)

        def done(future: "asyncio.Future[None]") -> None:
            self._releasing.discard(future)
            if not future.cancelled() and self._spawns_of.get(unit) == spawn_id:
                self._spawns_of.pop(unit, None)
                self._output.detach(unit)
                self._ask({"do": "release", "unit": unit})

        self._releasing.add(drained)
        drained.add_done_callback(done)

    async def settle(self) -> None:
        """Wait until everything that was released has been let go (before the supervisor ends)."""
        while self._releasing:
            await asyncio.wait(set(self._releasing))
            await asyncio.sleep(0)

    def _with_last_words(self, unit: str, value: str) -> str:
        words = self._last_words.get(unit, "")
        return json.dumps({**json.loads(value), "last_words": words}, ensure_ascii=False)

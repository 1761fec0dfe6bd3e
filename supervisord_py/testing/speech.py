"""What main processes on the fake machine say besides READY: chatter, errors in a row, a word before they freeze."""

from functools import partial
from typing import TYPE_CHECKING

from supervisord_py.core.events import ExitStatus, NotifyReceived
from supervisord_py.model.states import Role
from supervisord_py.testing.processes import Spawn

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel


class Speech:
    """What the main processes of one kernel say."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel

    def begin(self, spawn: Spawn) -> None:
        """A main process goes on: draw what it will say."""
        kernel = self._kernel
        for _ in range(kernel.number(1, 4) if kernel.fault("chatter") else 0):
            kernel.later(1, 20_000, lambda: self._chat(spawn))
        if kernel.fault("watchdog_trigger"):
            kernel.later(50, 10_000, lambda: kernel.notify(spawn, {"WATCHDOG": "trigger"}))
        if kernel.fault("reports_errors"):
            at_ms = kernel.number(1, 5000)
            for _ in range(kernel.number(1, 8)):
                at_ms += kernel.number(1, 500)
                word = kernel.choice(("X_ERROR", "X_ERROR", "X_OK"))
                kernel.later(at_ms, at_ms, partial(kernel.notify, spawn, {word: "as the profile wants it"}))

    def _chat(self, spawn: Spawn) -> None:
        kernel = self._kernel
        fields = kernel.choice(
            (
                {"STATUS": f"doing {kernel.number(1, 99)} things"},
                {"WATCHDOG": "1"},
                {"X_ERROR": "no answer from upstream"},
                {"X_OK": "1"},
                {"X_PROGRESS": str(kernel.number(1, 999))},
                {"EXTEND_TIMEOUT_USEC": str(kernel.number(0, 3) * 1_000_000)},
                {"ERRNO": "5"},
                {"STOPPING": "1"},
                {"RELOADING": "1", "MONOTONIC_USEC": "1"},
                {"X_UNHEARD_OF": "=\u00e4", "EXTEND_TIMEOUT_USEC": "-x", "ERRNO": "", "WATCHDOG": "9"},
            )
        )
        kernel.notify(spawn, fields)
        if "RELOADING" in fields:
            spawn.unfinished = lambda: kernel.say_ready(spawn)
            if not kernel.fault("never_ready"):
                kernel.later(1, 2000, lambda: kernel.say_ready(spawn))
        if "STOPPING" in fields:
            ends = spawn.unfinished = lambda: kernel.end(spawn.main, ExitStatus(code=0))
            if not kernel.fault("never_ready"):
                kernel.later(1, 3000, ends)

    def say_last_word(self, unit: str) -> None:
        """What a unit said just before it stood still may be read after that."""
        kernel = self._kernel
        for process in kernel.trees.get(unit, {}).values():
            spawn = process.spawn
            is_main = spawn is not None and spawn.role is Role.MAIN and spawn.main is process
            if spawn is None or not is_main or spawn.pending or not kernel.admits(spawn, process):
                continue
            if not kernel.fault("chatter"):
                continue
            fields = kernel.choice(
                ({"WATCHDOG": "trigger"}, {"X_ERROR": "at last"}, {"STATUS": "still here"}, {"READY": "1"})
            )
            kernel.later(0, 30, partial(self._is_heard, spawn, fields))

    def _is_heard(self, spawn: Spawn, fields: dict[str, str]) -> None:
        if spawn.main.alive and not spawn.over:
            spawn.ready_sent = spawn.ready_sent or "READY" in fields
            self._kernel.struck("chatter", spawn.unit)
            self._kernel.custody.tell(NotifyReceived(spawn.unit, spawn.spawn_id, spawn.main.pid, fields))

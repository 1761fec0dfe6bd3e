"""Fake processes that stand still: stopped by SIGSTOP, or frozen with their unit.

What such a process was about to do (speak, fork, end) it does when it goes on, and a signal reaches it then; only
SIGKILL is quicker. Somebody who has stopped a process lets it go on after a while.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from supervisord_py.testing.processes import Process

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel

BY_SIGNAL, BY_FREEZER = "signal", "freezer"


class Standstill:
    """Who stands still on one kernel."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self._held: dict[int, list[Callable[[], None]]] = {}

    def stop(self, process: Process, by: str = BY_SIGNAL) -> None:
        """Let a process stand still; one that was stopped by a signal goes on within half a minute."""
        if not process.alive:
            return
        process.stopped_by = process.stopped_by | {by}
        if by == BY_SIGNAL:
            self._kernel.struck("stopped", process.unit)
            self._kernel.later(100, 25_000, lambda: self.go_on(process))

    def go_on(self, process: Process, by: str = BY_SIGNAL) -> None:
        """Take one of the reasons away; without any the process does what it was about to do."""
        was_stopped = process.stopped
        process.stopped_by = process.stopped_by - {by}
        if not was_stopped or process.stopped:
            return
        process.resumed_ns = self._kernel.now_ns
        for callback in self._held.pop(id(process), []):
            callback()

    def holds(self, process: Process, callback: Callable[[], None]) -> bool:
        """Whether a process stands still; then it does this later."""
        if process.alive and process.stopped:
            self._held.setdefault(id(process), []).append(callback)
            return True
        return False

    def is_stopped(self, unit: str) -> bool:
        """Whether the main process of a unit cannot run now."""
        tree = self._kernel.trees.get(unit, {})
        return any(each.stopped for each in tree.values() if each.spawn is not None and each.spawn.main is each)

    def end(self) -> None:
        """Whoever has stopped something lets it go on."""
        for process in self._kernel.alive():
            self.go_on(process)

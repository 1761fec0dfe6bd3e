"""Fake processes that are stopped by SIGSTOP, beside those that are frozen with their unit.

What such a process was about to do (speak, fork, end) it does when it goes on, and a signal reaches it just
before; only SIGKILL is quicker. Somebody who has stopped a process lets it go on after a while.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from supervisord_py.testing.freezer import Freezer, Held
from supervisord_py.testing.processes import Process

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel

LONGEST_MS = 25_000


class Standstill(Freezer):
    """Who stands still on one kernel, for whatever reason."""

    def __init__(self, kernel: "Kernel") -> None:
        super().__init__()
        self._kernel = kernel
        self._stopped: dict[Process, Held] = {}

    def holds(self, process: Process, act: Callable[[], None], *, is_signal: bool = False) -> bool:
        if super().holds(process, act, is_signal=is_signal):
            return True
        held = self._stopped.get(process)
        if held is None or process.killed:
            return False
        held.keep(act, is_signal=is_signal)
        return True

    def stop(self, process: Process) -> None:
        """Let a process stand still, until somebody lets it go on."""
        if process.alive and process not in self._stopped:
            self._stopped[process] = Held()
            self._kernel.struck("stopped", process.unit)
            self._kernel.later(100, LONGEST_MS, lambda: self.go_on(process))

    def go_on(self, process: Process) -> None:
        held = self._stopped.pop(process, None)
        if held is not None:
            process.resumed_ns = self._kernel.now_ns
            held.do()

    def is_still(self, process: Process) -> bool:
        return process in self._stopped or process.unit in self.frozen

    def is_stopped(self, unit: str) -> bool:
        """Whether the main process of a unit cannot run now."""
        tree = self._kernel.trees.get(unit, {})
        return any(self.is_still(each) for each in tree.values() if each.spawn is not None and each.spawn.main is each)

    def end(self) -> None:
        """Whoever has stopped something lets it go on."""
        for process in list(self._stopped):
            self.go_on(process)

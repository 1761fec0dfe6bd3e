"""Commands that are run beside a unit's life on the fake machine: hooks, and health checks that are commands.

Each is held under an owner of its own (``web!17``), in a tree of its own. How one goes is drawn: it ends well, badly,
late, never; leaves something behind, or ignores what it is told. What a health check finds can be decided by somebody
else (``verdict``): then only how long it takes is drawn here.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from supervisord_py.core.actions import SpawnProcess
from supervisord_py.core.events import ExitStatus
from supervisord_py.model.states import Role

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel
    from supervisord_py.testing.processes import Spawn

BESIDE = frozenset({Role.PROBE, Role.HOOK})
"""What is no process of a unit's life."""


class CommandsBeside:
    """How the commands of one kernel go."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self.verdict: Callable[[SpawnProcess], bool | None] = lambda action: None
        """What a health check will find, None where chance decides."""
        self._asked: dict[int, SpawnProcess] = {}

    def note(self, action: SpawnProcess) -> None:
        """Keep what was asked for until the program runs."""
        if action.role in BESIDE:
            self._asked[action.spawn_id] = action

    def begin(self, spawn: "Spawn") -> None:
        """The program runs: draw how it goes."""
        kernel = self._kernel
        action = self._asked.pop(spawn.spawn_id)
        spawn.unfinished = partial(kernel.end, spawn.main, ExitStatus(code=0))
        if kernel.fault("beside_leaves"):
            kernel.later(0, 5, partial(kernel.fork, spawn))
        if kernel.fault("beside_hangs"):
            return
        status = ExitStatus(code=0)
        if self.verdict(action) is False or (self.verdict(action) is None and kernel.fault("beside_fails")):
            status = kernel.choice((ExitStatus(code=1), ExitStatus(code=127), ExitStatus(signal=11, core_dumped=True)))
        longest_ms = 8000 if kernel.fault("beside_slow") else 300
        kernel.later(1, longest_ms, partial(kernel.end, spawn.main, status))

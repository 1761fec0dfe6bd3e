"""What stands still on the fake machine, and the host's part in it: a freezer that takes its time, fails, and is asked
again.

A frozen process does nothing: what it would have done is kept and done when it goes on. SIGKILL ends it all the same;
any other signal waits, and reaches it before it does anything. The hand that freezes is the manager's and dies with
it, perhaps when it has done its work and told nobody.
"""

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from supervisord_py.core.actions import FreezeUnit, ThawUnit
from supervisord_py.core.events import Event, UnitFrozen
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.profile import Profile

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel
    from supervisord_py.testing.processes import Process


class Held:
    """What is kept for later; signals come first, as the kernel delivers them before anything else runs."""

    def __init__(self) -> None:
        self._signals: list[Callable[[], None]] = []
        self._acts: list[Callable[[], None]] = []

    def keep(self, act: Callable[[], None], *, is_signal: bool) -> None:
        (self._signals if is_signal else self._acts).append(act)

    def do(self) -> None:
        for act in (*self._signals, *self._acts):
            act()


class Freezer:
    """Which units stand still, and what their processes will do when they go on."""

    def __init__(self) -> None:
        self.frozen: dict[str, Held] = {}

    def holds(self, process: "Process", act: Callable[[], None], *, is_signal: bool = False) -> bool:
        """Whether the process stands still; then ``act`` is kept for later."""
        held = self.frozen.get(process.unit)
        if held is None or process.killed:
            return False
        held.keep(act, is_signal=is_signal)
        return True

    def thaw(self, unit: str) -> None:
        held = self.frozen.pop(unit, None)
        if held is not None:
            held.do()


class FreezingHand:
    """Carries out ``FreezeUnit`` and ``ThawUnit``; the newest order about a unit is the one that counts."""

    def __init__(
        self, rng: Random, profile: Profile, agenda: Agenda, kernel: "Kernel", submit: Callable[[Event], None]
    ) -> None:
        self._rng = rng
        self._profile = profile
        self._agenda = agenda
        self._kernel = kernel
        self._submit = submit
        self._orders: dict[str, FreezeUnit | ThawUnit] = {}
        self.calm = False

    def apply(self, action: FreezeUnit | ThawUnit) -> None:
        self._orders[action.unit] = action
        longest_ms = 4000 if self._fault("freeze_slow") else 20
        self._agenda.after(self._rng.randint(0, longest_ms) * MILLISECOND_NS, lambda: self._work(action))

    def drop(self) -> None:
        """The manager is dead: what it has not done is not done."""
        self._orders.clear()

    def _fault(self, name: str) -> bool:
        return not self.calm and self._rng.random() < float(getattr(self._profile, name))

    def _work(self, action: FreezeUnit | ThawUnit) -> None:
        if self._orders.get(action.unit) is not action:
            return
        unit, kernel = action.unit, self._kernel
        if isinstance(action, FreezeUnit) and (unit not in kernel.trees or self._fault("freeze_fails")):
            kernel.freezer.thaw(unit)
            self._tell(UnitFrozen(unit, frozen=False, detail="it cannot be frozen"))
        elif isinstance(action, FreezeUnit):
            kernel.freezer.frozen.setdefault(unit, Held())
            self._tell(UnitFrozen(unit, frozen=True))
            kernel.speech.say_last_word(unit)
        elif unit in kernel.freezer.frozen and self._fault("freeze_fails"):
            self._tell(UnitFrozen(unit, frozen=True, detail="it does not go on"))
        else:
            kernel.freezer.thaw(unit)
            self._tell(UnitFrozen(unit, frozen=False))

    def _tell(self, event: UnitFrozen) -> None:
        self._submit(event)
        # until it is taken the order may be given again; a manager that dies has not heard it
        self._orders.pop(event.unit, None)

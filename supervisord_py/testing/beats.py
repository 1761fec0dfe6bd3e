"""Signs of life: fake processes that are watched say WATCHDOG=1 and X_PROGRESS in time, or fall silent.

A process that is well has no pause between two signs that is longer than seven tenths of what is allowed, and one that
was stopped by a signal makes up for its sign as soon as it runs again: so whoever blames it has made a mistake, however
long it stood still, and however busy the machine was. What has fallen silent stays so.
"""

from functools import partial
from typing import TYPE_CHECKING

from supervisord_py.core.events import NotifyReceived
from supervisord_py.testing.clock import MILLISECOND_NS, SECOND_NS
from supervisord_py.testing.processes import Pulse, Spawn

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel

WATCHDOG, PROGRESS = "WATCHDOG", "X_PROGRESS"
"""The two kinds, by the field that is a sign."""

_LONGEST = 0.7
_SHORTEST = 0.5

_LAST_NS = 60 * SECOND_NS
"""How long who is made in the calm, and watched all the same, says that it lives."""


class Beats:
    """The signs of all processes of one kernel."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel

    def begin(self, spawn: Spawn) -> None:
        """A main process begins, and knows whether it is watched."""
        service = spawn.service
        if service is None:
            return
        for field, period_ns in ((WATCHDOG, service.watchdog_ns), (PROGRESS, service.progress_ns)):
            if not period_ns:
                continue
            pulse = Pulse(period_ns, self._draw_pause(period_ns), self._kernel.now_ns)
            spawn.pulses[field] = pulse
            if not self._kernel.admits(spawn, spawn.main):
                pulse.silent = True
            elif self._kernel.fault("silent"):
                most_ms = 6 * period_ns // MILLISECOND_NS
                self._kernel.later(0, most_ms, partial(self._fall_silent, spawn, pulse))
            if self._kernel.is_calm:
                # made by an older text, after all the others fell silent: watched to its end like them
                self._kernel.after(_LAST_NS, partial(_silence, pulse))
            self._beat(spawn, field, pulse, pulse.round)
        if WATCHDOG in spawn.pulses and self._kernel.fault("watchdog_usec"):
            self._kernel.later(1, 20_000, lambda: self._want_another(spawn))

    def note(self, spawn: Spawn, fields: dict[str, str]) -> None:
        """A word of the process has gone out."""
        for field, pulse in spawn.pulses.items():
            if fields.get(field) is not None and (field != WATCHDOG or fields[field] == "1"):
                pulse.heard_ns = self._kernel.now_ns

    def end(self) -> None:
        """Everybody falls silent: a life that is watched is so to its end, and nobody is watched after it."""
        for spawn in self._kernel.spawns.values():
            for pulse in spawn.pulses.values():
                _silence(pulse)

    def _draw_pause(self, period_ns: int) -> int:
        return int(period_ns * self._kernel.choice((_SHORTEST, _LONGEST)))

    def _beat(self, spawn: Spawn, field: str, pulse: Pulse, number: int) -> None:
        if spawn.over or pulse.silent or pulse.round != number:
            return
        if self._kernel.freezer.holds(spawn.main, lambda: self._beat(spawn, field, pulse, number)):
            return
        self._kernel.notify(spawn, {field: "1" if field == WATCHDOG else str(self._kernel.now_ns)})
        self._kernel.after(pulse.every_ns, lambda: self._beat(spawn, field, pulse, number))

    def _fall_silent(self, spawn: Spawn, pulse: Pulse) -> None:
        if not spawn.over:
            pulse.silent = True
            self._kernel.struck("silent", spawn.unit)

    def _want_another(self, spawn: Spawn) -> None:
        """The process changes the pause that it is allowed; it says so when somebody listens."""
        pulse = spawn.pulses[WATCHDOG]
        is_heard = not self._kernel.is_lost and not spawn.pending and spawn.main.alive
        if spawn.over or pulse.silent or self._kernel.freezer.is_still(spawn.main) or not is_heard:
            return
        pulse.period_ns = self._kernel.choice((0, 2500, 8000, 30_000)) * MILLISECOND_NS
        pulse.every_ns = self._draw_pause(pulse.period_ns)
        pulse.round += 1
        fields = {"WATCHDOG_USEC": str(pulse.period_ns // 1000), WATCHDOG: "1"}
        self._kernel.notify(spawn, fields)
        if pulse.period_ns:
            number = pulse.round
            self._kernel.after(pulse.every_ns, lambda: self._beat(spawn, WATCHDOG, pulse, number))


def _silence(pulse: Pulse) -> None:
    pulse.silent = True


def is_trigger(event: object) -> bool:
    """Whether a process has set its own watchdog off."""
    return isinstance(event, NotifyReceived) and event.fields.get("WATCHDOG") == "trigger"

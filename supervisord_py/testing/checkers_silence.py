"""Laws about silence: who is blamed for it, and that nobody who should be is forgotten."""

from typing import TYPE_CHECKING

from supervisord_py.core.events import DeadlineReached, ProcessesSeen
from supervisord_py.model.records import Record
from supervisord_py.model.states import Role, Severity
from supervisord_py.testing.beats import PROGRESS, WATCHDOG, is_trigger
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.clock import MILLISECOND_NS, SECOND_NS
from supervisord_py.testing.processes import Pulse, Spawn

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

LATENESS_NS = 15 * SECOND_NS
"""Beside what is allowed for our own stalls: how late a look, and its answer, may be."""

_KINDS = {"unit.watchdog": WATCHDOG, "unit.progress-stalled": PROGRESS}


class WatchdogBlame(Checker):
    """A life is ended for its silence only if its process was silent that long, and could have spoken: not one that
    is well and stood still. One that is silent for good is ended.
    """

    name = "watchdog-blame"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._since: dict[str, tuple[str, int]] = {}
        """By unit: which life is watched, and since when everything went on as it should."""

    def step(self, step: Step) -> None:
        now_ns = step.now.mono_ns
        for record in step.effects.records:
            field = _KINDS.get(record.event)
            if field is not None and record.severity is Severity.ERROR and not is_trigger(step.event):
                self._judge(step, record, field)
            self._follow(record, now_ns)
        if isinstance(step.event, DeadlineReached):
            self._look_for_missed(now_ns)

    def _judge(self, step: Step, record: Record, field: str) -> None:
        name = record.unit or ""
        spawn, life = self._main(name), self.world.seen.lives.get(name)
        if spawn is None and life is not None and life.is_forking:
            # nobody knows its main process, so nobody hears it
            return
        pulse = spawn.pulses.get(field) if spawn is not None else None
        if spawn is None or pulse is None:
            self.fail(f"{name} is ended for a silence ({field}), and nothing was expected of it")
            return
        if isinstance(step.event, ProcessesSeen) and step.event.stopped:
            self.fail(f"{name} is ended for a silence ({field}), and its processes were seen to be stopped")
        if not pulse.silent:
            self.fail(f"{name} is ended for a silence ({field}), and it is well: it stood still, or was not heard")
        silent_ns = step.now.mono_ns - pulse.heard_ns
        if silent_ns < pulse.period_ns:
            self.fail(f"{name} is ended after {silent_ns // MILLISECOND_NS} ms without {field}: that is too soon")

    def _follow(self, record: Record, now_ns: int) -> None:
        name = record.unit or ""
        life = self.world.seen.lives.get(name)
        if record.event in ("unit.ready", "unit.resumed") and life is not None:
            self._since[name] = (life.invocation, now_ns)
        elif record.event in ("unit.stopping", "unit.stopped", "unit.failed", "unit.paused", "unit.starting"):
            self._since.pop(name, None)

    def _look_for_missed(self, now_ns: int) -> None:
        for name, (invocation, since_ns) in self._since.items():
            life, spawn = self.world.seen.lives.get(name), self._main(name)
            if life is None or spawn is None or life.invocation != invocation or life.ending:
                continue
            for field, pulse in spawn.pulses.items():
                if self._is_overdue(spawn, pulse, since_ns, now_ns):
                    self.fail(f"{name} is silent ({field}) since {(now_ns - pulse.heard_ns) // MILLISECOND_NS} ms")

    def _is_overdue(self, spawn: Spawn, pulse: Pulse, since_ns: int, now_ns: int) -> bool:
        if not pulse.period_ns or self.world.kernel.freezer.is_still(spawn.main):
            return False
        quiet_from_ns = max(pulse.heard_ns, since_ns, spawn.main.resumed_ns)
        return now_ns - quiet_from_ns > 2 * pulse.period_ns + pulse.period_ns // 2 + LATENESS_NS

    def _main(self, name: str) -> Spawn | None:
        life = self.world.seen.lives.get(name)
        if life is None:
            return None
        mains = [number for number, role in life.running.items() if role is Role.MAIN]
        return self.world.kernel.spawns[mains[0]] if mains else None

    def manager_started(self) -> None:
        """Nobody looked for a while."""
        now_ns = self.world.clock.mono_ns
        self._since = {name: (invocation, now_ns) for name, (invocation, _) in self._since.items()}


SILENCE_CHECKERS: tuple[type[Checker], ...] = (WatchdogBlame,)

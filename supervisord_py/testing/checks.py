"""Health checks in the simulated world: which ones units have, what they find, and the host that makes them.

What a check finds is the truth about its unit: good for a while, bad for a while. A check that is a command is a
process beside the life (``beside``), the others are the manager's own: they take some time, at most what they are
allowed, and die with the manager that was asked.
"""

from collections.abc import Callable
from random import Random

from supervisord_py.core.actions import RunProbe, SpawnProcess
from supervisord_py.core.events import Event, ProbeFinished
from supervisord_py.model.states import ProbeAction, ProbeKind
from supervisord_py.model.unit import SECOND_NS, Command, Probe
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.profile import Profile

NAMES = ("alive", "useful")


def draw_probes(rng: Random, profile: Profile, unit: str) -> tuple[Probe, ...]:
    """Draw the checks of a unit, by name."""
    if rng.random() >= profile.probes:
        return ()
    return tuple(_draw_probe(rng, unit, name) for name in NAMES if rng.random() < 0.7)


def _draw_probe(rng: Random, unit: str, name: str) -> Probe:
    kind = rng.choice(tuple(ProbeKind))
    actions: tuple[ProbeAction, ...] = (ProbeAction.NONE,)
    if kind is not ProbeKind.READINESS:
        actions = (ProbeAction.RESTART, ProbeAction.RESTART, ProbeAction.STOP, ProbeAction.KILL)
    probe = Probe(
        name,
        kind,
        interval_ns=rng.choice((3, 10, 30)) * SECOND_NS,
        timeout_ns=rng.choice((1, 3)) * SECOND_NS,
        initial_delay_ns=rng.choice((0, 0, 2)) * SECOND_NS,
        failure_threshold=rng.randint(1, 3),
        success_threshold=rng.randint(1, 3) if kind is ProbeKind.READINESS else 1,
        action=rng.choice(actions),
    )
    match rng.choice(("exec", "exec", "http", "tcp", "unix", "file", "log")):
        case "exec":
            return _with(probe, exec=Command((f"/opt/{unit}/check", name)))
        case "http":
            return _with(probe, http=f"http://127.0.0.1:8080/{unit}")
        case "tcp":
            return _with(probe, tcp="127.0.0.1:8080")
        case "unix":
            return _with(probe, unix=f"/run/{unit}.sock")
        case "file":
            return _with(probe, file=f"/run/{unit}.{name}")
        case _:
            return _with(probe, log="ready")


def _with(probe: Probe, **what: object) -> Probe:
    known = {field: getattr(probe, field) for field in Probe.__struct_fields__}
    return Probe(**{**known, **what})


class CheckingHand:
    """Makes the checks of one manager, and knows how the units are."""

    def __init__(self, rng: Random, profile: Profile, agenda: Agenda, submit: Callable[[Event], None]) -> None:
        self._rng = rng
        self._profile = profile
        self._agenda = agenda
        self._submit = submit
        self._truths: dict[tuple[str, str], bool] = {}
        self._manager = 0
        self.calm = False
        self.struck: Callable[[str, str], None] = lambda fault, unit: None

    def drop(self) -> None:
        """The manager is dead: what it was asked is told to nobody."""
        self._manager += 1

    def is_good(self, unit: str, name: str) -> bool:
        """How the unit is at this moment, by one of its checks: that stays so for a while."""
        if self.calm:
            return True
        truth = self._truths.get((unit, name), True)
        if self._rng.random() < (self._profile.unwell if truth else 0.3):
            truth = not truth
        self._truths[unit, name] = truth
        if not truth:
            self.struck("unwell", unit)
        return truth

    def verdict(self, action: SpawnProcess) -> bool:
        """What a check that is a command will find."""
        return self.is_good(action.unit.partition("!")[0], action.command.words[-1])

    def make(self, action: RunProbe) -> None:
        delay_ns = self._rng.randint(0, 50) * MILLISECOND_NS
        if not self.calm and self._rng.random() < self._profile.probe_slow:
            delay_ns = self._rng.randint(0, action.probe.timeout_ns)
        manager = self._manager
        self._agenda.after(delay_ns, lambda: self._answer(action, manager))

    def _answer(self, action: RunProbe, manager: int) -> None:
        if manager != self._manager:
            return
        good: bool | None = self.is_good(action.unit, action.name)
        if not self.calm and self._rng.random() < self._profile.probe_impossible:
            good = None
        self._submit(ProbeFinished(action.probe_id, action.unit, action.name, good, "" if good else "as it is"))

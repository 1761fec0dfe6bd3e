"""Laws about sockets: nobody who connects is turned away or waits in vain, and what was left behind is handed on."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from supervisord_py.core.actions import AnyAction, CloseSockets, Handed, SpawnProcess
from supervisord_py.core.events import UnitsLoaded
from supervisord_py.core.view import unit_status
from supervisord_py.model.states import Role
from supervisord_py.model.unit import Unit
from supervisord_py.testing.checkers import Checker, Step

if TYPE_CHECKING:
    from supervisord_py.testing.world import World


def waits(unit: Unit | None) -> bool:
    """Whether a start of the unit makes it wait: for its time, or for a connection."""
    return unit is not None and (unit.timer is not None or (unit.sockets is not None and unit.sockets.is_on_demand))


class Held(Checker):
    """What is listened on is closed when the unit is at rest with nothing to start it, and then it is."""

    name = "sockets-held"

    def step(self, step: Step) -> None:
        for action in step.effects.actions:
            if isinstance(action, CloseSockets) and action.connection is None:
                status = unit_status(self.world.manager, action.unit)
                starts = [job for job in self.world.jobs() if job.unit == action.unit and job.type != "stop"]
                if status.sub_state not in ("dead", "failed", "dependency") or starts:
                    self.fail(f"the sockets of {action.unit}, which is {status.sub_state}, are closed")

    def settled(self) -> None:
        for name in self.world.hands.listeners.waiting:
            if unit_status(self.world.manager, name).sub_state in ("dead", "failed", "dependency"):
                self.fail(f"{name} is at rest, and is listened for")


class Heard(Checker):
    """In the end nobody waits in vain: a unit that listens is told of who is there, and of the next who comes."""

    name = "sockets-heard"

    def settled(self) -> None:
        listeners = self.world.hands.listeners
        for name in self.world.manager_units():
            sub = unit_status(self.world.manager, name).sub_state
            found = self.world.manager.ledger.state(name).sockets
            if found is not None and (found.resume_at_ns or 0) > self.world.clock.mono_ns:
                # What it needs may be down, whoever comes: then it tries again as often as its limit allows.
                continue
            if sub == "listening" and (name not in listeners.awaited or listeners.waiting[name]):
                self.fail(f"{name} listens, and nobody tells it of {listeners.waiting.get(name)} who wait")


class Limit(Checker):
    """Connections start a unit no more often than its limit says."""

    name = "sockets-limit"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._came: dict[str, deque[int]] = {}

    def step(self, step: Step) -> None:
        if isinstance(step.event, UnitsLoaded):
            # The limit may be another one from now on.
            self._came.clear()
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.ready" and "listening" in record.fields:
                self._came.pop(name, None)
            if record.event != "socket.connection":
                continue
            came = self._came.setdefault(name, deque(maxlen=20))
            came.append(step.now.boot_ns)
            text = self.world.manager.ledger.unit(name)
            for socket in text.sockets.sockets if text is not None and text.sockets is not None else ():
                span_ns = socket.trigger_interval_ns or 0
                if len([at for at in came if at > step.now.boot_ns - span_ns]) > socket.trigger_burst:
                    self.fail(f"{name} was started more than {socket.trigger_burst} times by connections")


class Given(Checker):
    """The program of a unit, and no command beside it, gets what is listened on and what was left for it."""

    name = "sockets-given"

    def committing(self, actions: Sequence[AnyAction]) -> None:
        for action in actions:
            if not isinstance(action, SpawnProcess) or "!" in action.unit:
                continue
            life = self.world.seen.lives.get(action.unit)
            unit = life.unit if life is not None and life.invocation == action.invocation else None
            if unit is None or unit.service is None or action.role is Role.STUB:
                continue
            is_program = action.role in (Role.MAIN, Role.START)
            is_given = is_program and (unit.sockets is not None or unit.service.store_max > 0)
            if action.handed != (Handed(action.unit) if is_given else None):
                self.fail(f"the {action.role.value} command of {action.unit} is handed {action.handed}")


SOCKET_CHECKERS: tuple[type[Checker], ...] = (Held, Heard, Limit, Given)

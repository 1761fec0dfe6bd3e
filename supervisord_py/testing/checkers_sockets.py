"""Laws about sockets: nobody who connects is turned away or waits in vain, who is accepted has a process and leaves
nothing behind, what nobody uses ends and is no failure, and what was left behind is handed on.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from supervisord_py.core.actions import AnyAction, AwaitConnection, CloseSockets, Handed, OpenSockets, SpawnProcess
from supervisord_py.core.events import ConnectionCame, DescriptorsStored, KeeperLost, SocketsOpened, UnitsLoaded
from supervisord_py.core.view import unit_status
from supervisord_py.model.sockets import Sockets
from supervisord_py.model.states import Role
from supervisord_py.model.unit import SECOND_NS, Unit
from supervisord_py.testing.checkers import Checker, Step
from supervisord_py.testing.sockets import LISTENED, parent_of

if TYPE_CHECKING:
    from supervisord_py.testing.world import World

AT_REST = ("dead", "failed", "dependency")

UNUSED = "nothing has come to it"
"""The reason of an end that nobody has asked for but the clock."""

LATEST_NS = 5 * SECOND_NS
"""So late a manager may be that is busy, or that another one had to follow."""

REFUSED_MAX_NS = 60 * SECOND_NS


def waits(unit: Unit | None) -> bool:
    """Whether a start of the unit makes it wait: for its time, or for a connection."""
    return unit is not None and (unit.timer is not None or (unit.sockets is not None and unit.sockets.is_on_demand))


class _OfSockets(Checker):
    """What these laws look at."""

    name = ""

    def sockets_of(self, name: str) -> Sockets | None:
        """What the unit listens on now is by a text that only the core can choose."""
        text = self.world.manager.ledger.unit(name)
        return None if text is None else text.sockets

    def listening(self) -> list[str]:
        """The units that listen, as the core has it."""
        if not self.world.profile.sockets:
            return []
        states = self.world.manager.ledger.states
        return [name for name in sorted(LISTENED) if name in states and states[name].sub.value == "listening"]

    def untold(self) -> list[object]:
        """The keeper's facts that no manager has handled for good."""
        custody = self.world.kernel.custody
        return [fact for _, fact in custody.unacknowledged(custody.acknowledged)]

    def instance_of(self, unit: str, number: int) -> str | None:
        """The unit that was made for a connection."""
        begin = f"{unit}@{number}-"
        return next((name for name in self.world.manager_units() if name.startswith(begin)), None)


class Held(_OfSockets):
    """What is listened on is closed when the unit is at rest with nothing to start it, and then it is; a connection
    when the unit that was made for it is.
    """

    name = "sockets-held"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._given: dict[tuple[str, int | None], str] = {}
        """The unit whose program each connection was handed to."""

    def step(self, step: Step) -> None:
        if isinstance(step.event, KeeperLost):
            # the next counts from 1
            self._given.clear()
        for action in step.effects.actions:
            if isinstance(action, SpawnProcess) and action.handed is not None:
                self._given[action.handed.unit, action.handed.connection] = action.unit
            if not isinstance(action, CloseSockets):
                continue
            if action.connection is not None:
                self._check_connection(action.unit, action.connection)
                continue
            status = unit_status(self.world.manager, action.unit)
            starts = [job for job in self.world.jobs() if job.unit == action.unit and job.type != "stop"]
            if status.sub_state not in AT_REST or starts:
                self.fail(f"the sockets of {action.unit}, which is {status.sub_state}, are closed")

    def _check_connection(self, unit: str, number: int) -> None:
        name = self._given.get((unit, number))
        if name in self.world.manager_units() and unit_status(self.world.manager, name).sub_state not in AT_REST:
            self.fail(f"connection {number} of {unit} is closed, and {name} lives")

    def settled(self) -> None:
        for name in self.world.hands.listeners.waiting:
            if unit_status(self.world.manager, name).sub_state in AT_REST:
                self.fail(f"{name} is at rest, and is listened for")


class Heard(_OfSockets):
    """Nobody waits in vain: a unit that listens is told of who is there, and of the next who comes; unless it is full,
    or paused, and then that has an end.
    """

    name = "sockets-heard"

    def committed(self) -> None:
        world = self.world
        names = self.listening()
        if not names or world.seen.shutdown is not None or world.seen.forced:
            return
        untold = self.untold()
        if any(isinstance(fact, KeeperLost) for fact in untold):
            return
        told = {fact.unit for fact in untold if isinstance(fact, ConnectionCame | SocketsOpened)}
        busy = {job.unit for job in world.jobs()}
        for name in names:
            if name not in world.hands.listeners.awaited | told | busy and not self._is_full(name):
                self._check_pause(name)

    def _is_full(self, name: str) -> bool:
        sockets = self.sockets_of(name)
        # (that none of them stays for ever is another law; what a killed keeper held is held no more, and served still)
        living = sum(parent_of(each) == name for each in self.world.manager_units())
        return sockets is not None and sockets.accepts and living >= sockets.connections_max

    def _check_pause(self, name: str) -> None:
        found, sockets, now_ns = self.world.manager.ledger.state(name).sockets, self.sockets_of(name), self._now_ns
        resume_at_ns = None if found is None else found.resume_at_ns
        if resume_at_ns is None or sockets is None:
            self.fail(f"{name} listens, and nobody will tell it who comes")
            return
        spans = [each.trigger_interval_ns or 0 for each in sockets.sockets]
        if resume_at_ns > now_ns + max(*spans, REFUSED_MAX_NS):
            self.fail(f"{name} is paused for {(resume_at_ns - now_ns) // SECOND_NS} s, longer than any limit says")
        deadline_ns = self.world.manager.deadline_ns()
        if deadline_ns is None or deadline_ns > resume_at_ns:
            self.fail(f"{name} is paused, and nothing ends that")

    @property
    def _now_ns(self) -> int:
        return self.world.clock.mono_ns

    def settled(self) -> None:
        listeners = self.world.hands.listeners
        for name in self.listening():
            found = self.world.manager.ledger.state(name).sockets
            if found is not None and (found.resume_at_ns or 0) > self._now_ns:
                # What it needs may be down, whoever comes: then it tries again as often as its limit allows.
                continue
            if name not in listeners.awaited or listeners.waiting[name]:
                self.fail(f"{name} listens, and nobody tells it of {listeners.waiting.get(name)} who wait")


class Limit(_OfSockets):
    """Connections start a unit no more often than its limit says, and nothing pauses it before that, or fails."""

    name = "sockets-limit"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._came: dict[str, deque[int]] = {}
        self._all: dict[str, deque[int]] = {}

    def step(self, step: Step) -> None:
        if isinstance(step.event, UnitsLoaded):
            # The limit may be another one from now on.
            self._came.clear()
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.ready" and "listening" in record.fields:
                self._came.pop(name, None)
            if record.event == "socket.paused":
                self._check_pause(name, step.now.boot_ns)
            if record.event != "socket.connection":
                continue
            self._all.setdefault(name, deque(maxlen=201)).append(step.now.boot_ns)
            came = self._came.setdefault(name, deque(maxlen=201))
            came.append(step.now.boot_ns)
            sockets = self.sockets_of(name)
            for socket in () if sockets is None else sockets.sockets:
                span_ns = socket.trigger_interval_ns or 0
                if len([at for at in came if at > step.now.boot_ns - span_ns]) > socket.trigger_burst:
                    self.fail(f"{name} was started more than {socket.trigger_burst} times by connections")

    def _check_pause(self, name: str, now_ns: int) -> None:
        came, sockets = self._all.get(name, ()), self.sockets_of(name)
        if sockets is not None and not any(
            len([at for at in came if at > now_ns - (each.trigger_interval_ns or 0)]) >= each.trigger_burst
            for each in sockets.sockets
        ):
            self.fail(f"{name} is paused by its trigger limit after {len(came)} connections")
        status = unit_status(self.world.manager, name)
        if status.active_state != "active":
            self.fail(f"{name} is paused by its trigger limit, and that makes it {status.active_state}")


class Given(_OfSockets):
    """The program of a unit, and no command beside it, gets what is listened on and what was left for it; that of an
    instance its connection, which is there.
    """

    name = "sockets-given"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._is_lost = False
        """In this batch it was told that what the keeper held is gone."""

    def step(self, step: Step) -> None:
        self._is_lost = self._is_lost or isinstance(step.event, KeeperLost)

    def committing(self, actions: Sequence[AnyAction]) -> None:
        self._check(actions)
        self._is_lost = False

    def _check(self, actions: Sequence[AnyAction]) -> None:
        for action in actions:
            if not isinstance(action, SpawnProcess) or "!" in action.unit:
                continue
            life = self.world.seen.lives.get(action.unit)
            unit = life.unit if life is not None and life.invocation == action.invocation else None
            if unit is None or unit.service is None or action.role is Role.STUB:
                continue
            is_program = action.role in (Role.MAIN, Role.START)
            parent = parent_of(action.unit)
            if parent is not None:
                self._check_instance(action, parent, is_program=is_program)
                continue
            # what listens goes on with that until its next start, also when its file has no sockets any more
            listens = unit.sockets is not None or bool(self.world.hands.listeners.specs.get(action.unit))
            is_given = is_program and (listens or unit.service.store_max > 0)
            if action.handed != (Handed(action.unit) if is_given else None):
                self.fail(f"the {action.role.value} command of {action.unit} is handed {action.handed}")

    def _check_instance(self, action: SpawnProcess, parent: str, *, is_program: bool) -> None:
        number = int(action.unit.removeprefix(f"{parent}@").partition("-")[0])
        if action.handed != (Handed(parent, number) if is_program else None):
            self.fail(f"the {action.role.value} command of {action.unit} is handed {action.handed}")
        is_known = not self._is_lost and not any(isinstance(fact, KeeperLost) for fact in self.untold())
        if is_program and is_known and (parent, number) not in self.world.hands.listeners.connections:
            self.fail(f"{action.unit} is run for a connection that nobody holds any more")


class Accepted(_OfSockets):
    """Who is accepted has an instance, of which no more are there than may be; it is forgotten when it has ended, and
    then its connection is held no more.
    """

    name = "sockets-accepted"

    def step(self, step: Step) -> None:
        for record in step.effects.records:
            if record.event in ("unit.quarantined", "unit.restart-scheduled") and parent_of(record.unit or ""):
                self.fail(f"{record.event} of {record.unit}, which is there for one connection")

    def committing(self, actions: Sequence[AnyAction]) -> None:
        listeners = self.world.hands.listeners
        if not self.world.profile.accepts:
            return
        held, specs = dict(listeners.connections), dict(listeners.specs)
        for action in actions:
            match action:
                case CloseSockets():
                    numbers = [key for key in held if key[0] == action.unit and action.connection in (None, key[1])]
                    for key in numbers:
                        del held[key]
                case OpenSockets():
                    specs[action.unit] = action.sockets
                case AwaitConnection():
                    count = sum(unit == action.unit for unit, _ in held)
                    if any(each.accept and count >= each.max_connections for each in specs.get(action.unit, ())):
                        self.fail(f"another connection to {action.unit} is awaited, and {count} are open")
                case _:
                    pass

    def committed(self) -> None:
        connections = self.world.hands.listeners.connections
        if not connections:
            return
        told = {(fact.unit, fact.connection) for fact in self.untold() if isinstance(fact, ConnectionCame)}
        for unit, number in connections:
            if (unit, number) not in told and self.instance_of(unit, number) is None:
                self.fail(f"connection {number} of {unit} is held, and no unit is there for it")

    def settled(self) -> None:
        for name in self.world.manager_units():
            if parent_of(name) is not None and name not in self.world.kernel.trees:
                self.fail(f"{name} is left behind: {unit_status(self.world.manager, name).sub_state}")


class Unused(_OfSockets):
    """A unit ends when nothing has come to it for its idle time and nobody is connected, and then: that is no failure,
    and it listens again.
    """

    name = "sockets-unused"

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._ending: dict[str, int] = {}
        """The units that are ended for that, and how often they had failed."""
        self._came: dict[str, int] = {}
        """When somebody has come last, as far as the core was told."""

    def step(self, step: Step) -> None:
        if isinstance(step.event, ConnectionCame):
            self._came[step.event.unit] = step.now.mono_ns
        for record in step.effects.records:
            name = record.unit or ""
            if record.event == "unit.stopping" and record.fields.get("reason") == UNUSED:
                self._check_begin(name, step.now.mono_ns)
                self._ending[name] = unit_status(self.world.manager, name).failures
            elif record.event == "unit.restart-scheduled" and name in self._ending:
                self.fail(f"{name} was ended because nobody used it, and is restarted")
            elif record.event in ("unit.stopped", "unit.failed") and name in self._ending:
                failures = self._ending.pop(name)
                if unit_status(self.world.manager, name).failures > failures:
                    self.fail(f"{name} was ended because nobody used it, and that counts as a failure")
                self._check_end(name)

    def _check_begin(self, name: str, now_ns: int) -> None:
        listeners, sockets = self.world.hands.listeners, self.sockets_of(name)
        idle_ns = None if sockets is None else sockets.idle_exit_ns
        if idle_ns is None:
            self.fail(f"{name} is ended because nobody uses it, and does not want that")
            return
        if listeners.found.get(name):
            self.fail(f"{name} is ended because nobody uses it, and {listeners.found[name]} were connected")
        if now_ns - self._came.get(name, 0) < idle_ns:
            self.fail(f"{name} is ended because nobody uses it, and was told of somebody just now")
        # (between two moments at which it is told of the next, who comes and goes is not seen)
        if now_ns - listeners.came_ns.get(name, 0) < idle_ns - idle_ns // 8 - LATEST_NS:
            self.fail(f"{name} is ended because nobody uses it, and somebody has come just now")

    def _check_end(self, name: str) -> None:
        world = self.world
        is_over = world.seen.shutdown is not None or world.seen.forced
        is_asked = any(job.unit == name for job in world.jobs()) or self.was_ordered(name)
        sub = unit_status(world.manager, name).sub_state
        if sub != "listening" and not is_over and not is_asked:
            self.fail(f"{name} was ended because nobody used it, and is {sub}")

    def was_ordered(self, name: str) -> bool:
        """Whether somebody has asked for its end meanwhile."""
        life = self.world.seen.lives.get(name)
        return life is not None and life.ordered

    def settled(self) -> None:
        for name in sorted(LISTENED):
            sockets = self.sockets_of(name)
            if sockets is None or not sockets.idle_exit_ns:
                continue
            found = self.world.manager.ledger.state(name).sockets
            is_armed = found is not None and found.armed and found.held
            if is_armed and unit_status(self.world.manager, name).sub_state == "running":
                self.fail(f"nothing has come to {name} for hours, and it runs")


class Stored(_OfSockets):
    """What the core says that the keeper holds for a unit is what it holds."""

    name = "sockets-stored"

    def committed(self) -> None:
        if not self.world.profile.sockets:
            return
        stored = self.world.hands.listeners.stored
        untold = self.untold()
        if any(isinstance(fact, KeeperLost) for fact in untold):
            return
        news = {fact.unit for fact in untold if isinstance(fact, DescriptorsStored)}
        for name in sorted(LISTENED - news):
            found = self.world.manager.ledger.state(name).sockets
            said = () if found is None else found.stored
            if said != stored.get(name, ()):
                self.fail(f"{said or 'nothing'} is said to be stored for {name}, and {stored.get(name)} is")


SOCKET_CHECKERS: tuple[type[Checker], ...] = (Held, Heard, Limit, Given, Accepted, Unused, Stored)

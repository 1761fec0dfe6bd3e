"""Sockets in the simulated world: the fake keeper's listeners, who connects to them, and what processes leave with it.

A client waits in the queue of a listener until a process of the unit takes it, however long that is; it is turned away
when the listener is closed. Clients come until the world is calm.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from supervisord_py.core.actions import (
    AnyAction,
    AwaitConnection,
    CloseSockets,
    LookAtConnections,
    OpenSockets,
    SpawnProcess,
)
from supervisord_py.core.events import ConnectionCame, DescriptorsStored, SocketsOpened
from supervisord_py.model.sockets import Activation, AddressFamily, Listen, ListenKind, Socket, SocketAddress, Sockets
from supervisord_py.model.states import Role
from supervisord_py.model.unit import SECOND_NS
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.profile import Profile

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel

LISTENED = frozenset({"web", "cache", "api"})
"""Units that may have sockets, or leave descriptors behind."""

REFUSED = 0.1
"""How often an address is in use, while the world is in trouble."""

STORE_MAX = 2


def draw_sockets(rng: Random, profile: Profile, unit: str) -> Sockets | None:
    if unit not in LISTENED or not profile.sockets or rng.random() >= profile.sockets * 2:
        return None
    address = SocketAddress(AddressFamily.UNIX, f"/run/{unit}.sock")
    burst = rng.choice((2, 3, 20))
    socket = Socket(
        unit,
        (Listen(ListenKind.STREAM, address),),
        trigger_burst=burst,
        trigger_interval_ns=rng.choice((2, 10, 60)) * SECOND_NS,
    )
    is_on_demand = rng.random() < 0.8
    return Sockets((socket,), Activation.DEMAND if is_on_demand else Activation.START)


class Listeners:
    """What the fake keeper holds for units."""

    def __init__(self, rng: Random, profile: Profile, agenda: Agenda, kernel: "Kernel") -> None:
        self._rng, self._profile, self._agenda, self._kernel = rng, profile, agenda, kernel
        self.calm = False
        self.waiting: dict[str, int] = {}
        """By unit that is listened for: how many clients are in the queue."""
        self.awaited: set[str] = set()
        self.stored: dict[str, tuple[str, ...]] = {}
        self._visited: set[str] = set()
        """Units that clients come to, now and then."""

    def apply(self, actions: Sequence[AnyAction]) -> None:
        for action in actions:
            match action:
                case OpenSockets():
                    self._open(action)
                case AwaitConnection() if action.unit in self.waiting:
                    self.awaited.add(action.unit)
                    self._tell(action.unit)
                case CloseSockets() if action.connection is None:
                    self.awaited.discard(action.unit)
                    self.waiting.pop(action.unit, None)
                    self.stored.pop(action.unit, None)
                case SpawnProcess() if action.role is Role.MAIN and action.handed is not None:
                    self._leave(action)
                case _:
                    pass

    def lose(self) -> None:
        """The keeper is killed: what it held is gone."""
        self.waiting.clear()
        self.awaited.clear()
        self.stored.clear()

    def count(self, action: LookAtConnections) -> int:
        """How many are connected now: nobody knows but they."""
        return 0 if self.calm else self._rng.choice((0, 0, 1))

    def _open(self, action: OpenSockets) -> None:
        failed = None
        if action.sockets and not self.calm and action.unit not in self.waiting and self._rng.random() < REFUSED:
            failed = "/run/x.sock: address already in use"
        elif action.sockets:
            self.waiting.setdefault(action.unit, 0)
            self._expect(action.unit)
        else:
            self.waiting.pop(action.unit, None)
            self.awaited.discard(action.unit)
        self._kernel.custody.tell(SocketsOpened(action.listen_id, action.unit, failed))

    def _expect(self, unit: str) -> None:
        if unit not in self._visited and not self.calm:
            self._visited.add(unit)
            self._agenda.after(self._rng.randint(1, 5000) * MILLISECOND_NS, lambda: self._come(unit))

    def _come(self, unit: str) -> None:
        self._visited.discard(unit)
        if unit in self.waiting and not self.calm:
            self.waiting[unit] += self._rng.randint(1, 3)
            self._tell(unit)
            self._serve(unit)
            self._expect(unit)

    def _tell(self, unit: str) -> None:
        if unit in self.awaited and self.waiting[unit]:
            self.awaited.discard(unit)
            self._kernel.custody.tell(ConnectionCame(unit, unit))

    def _serve(self, unit: str) -> None:
        """Whoever waits is taken by the main process, if one lives a moment later."""
        self._agenda.after(self._rng.randint(1, 400) * MILLISECOND_NS, lambda: self._take(unit))

    def _take(self, unit: str) -> None:
        tree = self._kernel.trees.get(unit, {}).values()
        is_served = any(each.spawn is not None and each.spawn.role is Role.MAIN for each in tree)
        if is_served and self.waiting.get(unit):
            self.waiting[unit] = 0

    def _leave(self, action: SpawnProcess) -> None:
        """A process takes who waits, and leaves something behind if it may, soon after it was made."""
        unit = action.unit

        def leave() -> None:
            spawn = self._kernel.spawns.get(action.spawn_id)
            if spawn is None or spawn.over or self._kernel.is_lost or spawn.service is None:
                return
            if spawn.pending:
                self._agenda.after(SECOND_NS, leave)
                return
            self._take(unit)
            if spawn.service.store_max and unit not in self.stored:
                self.stored[unit] = ("state",)
                self._kernel.custody.tell(DescriptorsStored(unit, self.stored[unit]))

        self._agenda.after(self._rng.randint(1, 500) * MILLISECOND_NS, leave)

"""Sockets in the simulated world: the fake keeper's listeners, who connects to them, and what processes leave with it.

A client waits in the queue of a listener until a process of the unit takes it, however long that is; it is turned away
when the listener is closed. One that was taken stays connected for a while. Where the keeper accepts, each client has a
process of its own, which ends when it hangs up. Clients come until the world is calm.

The keeper counts accepted connections from 1; one that follows a killed one begins anew.
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
from supervisord_py.core.events import ConnectionCame, DescriptorsStored, ExitStatus, SocketsOpened
from supervisord_py.model.sockets import Activation, AddressFamily, Listen, ListenKind, Socket, SocketAddress, Sockets
from supervisord_py.model.states import Role
from supervisord_py.model.unit import SECOND_NS
from supervisord_py.testing.clock import MILLISECOND_NS, Agenda
from supervisord_py.testing.profile import Profile

if TYPE_CHECKING:
    from supervisord_py.testing.kernel import Kernel
    from supervisord_py.testing.processes import Process

LISTENED = frozenset({"web", "cache", "api"})
"""Units that may have sockets, or leave descriptors behind."""

REFUSED = 0.1
"""How often an address is in use, while the world is in trouble."""

STORE_MAX = 2

PEERS = ("", "192.0.2.7:4711", "uid 1000")
"""Who comes, as the keeper says it."""


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
    if profile.accepts and rng.random() < profile.accepts * 2:
        most = rng.choice((1, 2, 64))
        accepting = Socket(
            unit,
            socket.listens,
            accept=True,
            max_connections=most,
            trigger_burst=burst * 10,
            trigger_interval_ns=socket.trigger_interval_ns,
        )
        return Sockets((accepting,))
    idle_ns = None
    if is_on_demand and profile.idle_exits and rng.random() < profile.idle_exits * 2:
        idle_ns = rng.choice((4, 20)) * SECOND_NS
    return Sockets((socket,), Activation.DEMAND if is_on_demand else Activation.START, idle_ns)


def parent_of(unit: str) -> str | None:
    """The unit whose connection this one was made for, by its name; None for any other."""
    parent, _, connection = unit.partition("@")
    return parent if parent in LISTENED and connection else None


class Listeners:
    """What the fake keeper holds for units."""

    def __init__(self, rng: Random, profile: Profile, agenda: Agenda, kernel: "Kernel") -> None:
        self._rng, self._profile, self._agenda, self._kernel = rng, profile, agenda, kernel
        self.calm = False
        self.waiting: dict[str, int] = {}
        """By unit that is listened for: how many clients are in the queue."""
        self.specs: dict[str, tuple[Socket, ...]] = {}
        """By unit that is listened for: what on."""
        self.awaited: set[str] = set()
        self.connections: dict[tuple[str, int], None] = {}
        """What was accepted and is held, by unit and number."""
        self.connected: dict[str, list[int]] = {}
        """By unit: when each client that its process has taken hangs up."""
        self.came_ns: dict[str, int] = {}
        """When somebody has come last."""
        self.found: dict[str, int] = {}
        """How many were connected when that was looked at last."""
        self.stored: dict[str, tuple[str, ...]] = {}
        self._visited: set[str] = set()
        """Units that clients come to, now and then."""
        self._last = 0

    def apply(self, actions: Sequence[AnyAction]) -> None:
        for action in actions:
            match action:
                case OpenSockets():
                    self._open(action)
                case AwaitConnection() if action.unit in self.waiting:
                    self.awaited.add(action.unit)
                    self._tell(action.unit)
                case CloseSockets() if action.connection is None:
                    self._close(action.unit)
                case CloseSockets():
                    self.connections.pop((action.unit, action.connection or 0), None)
                case SpawnProcess() if action.role in (Role.MAIN, Role.START) and action.handed is not None:
                    if action.handed.connection is None:
                        self._leave(action)
                    else:
                        self._serve_one(action)
                case _:
                    pass

    def lose(self) -> None:
        """The keeper is killed: what it held is gone."""
        for held in (self.waiting, self.specs, self.awaited, self.connections, self.stored):
            held.clear()
        self._last = 0

    def count(self, action: LookAtConnections) -> int:
        """How many are connected now; who waits in the queue may be one of them, or not (TCP and Unix differ)."""
        count = len(self._talking(action.unit))
        if self.waiting.get(action.unit) and self._rng.random() < 0.5:
            count += self.waiting[action.unit]
        self.found[action.unit] = count
        return count

    def _talking(self, unit: str) -> list[int]:
        now_ns = self._kernel.now_ns
        self.connected[unit] = [at_ns for at_ns in self.connected.get(unit, ()) if at_ns > now_ns]
        return self.connected[unit]

    def _close(self, unit: str) -> None:
        self.awaited.discard(unit)
        self.waiting.pop(unit, None)
        self.specs.pop(unit, None)
        self.stored.pop(unit, None)
        for name, number in [key for key in self.connections if key[0] == unit]:
            del self.connections[name, number]

    def _open(self, action: OpenSockets) -> None:
        failed = None
        if action.sockets and not self.calm and action.unit not in self.waiting and self._rng.random() < REFUSED:
            failed = "/run/x.sock: address already in use"
        elif action.sockets:
            self.waiting.setdefault(action.unit, 0)
            self.specs[action.unit] = action.sockets
            self._expect(action.unit)
        else:
            self.waiting.pop(action.unit, None)
            self.specs.pop(action.unit, None)
            self.awaited.discard(action.unit)
        self._kernel.custody.tell(SocketsOpened(action.listen_id, action.unit, failed))

    def _expect(self, unit: str) -> None:
        if unit not in self._visited and not self.calm:
            self._visited.add(unit)
            # (each who is accepted has a life of his own)
            is_dear = any(each.accept for each in self.specs[unit])
            longest_ms = max(1000, self._profile.gap_max_ms) * (5 if is_dear else 2)
            self._agenda.after(self._rng.randint(1, longest_ms) * MILLISECOND_NS, lambda: self._come(unit))

    def _come(self, unit: str) -> None:
        self._visited.discard(unit)
        if unit in self.waiting and not self.calm:
            self.waiting[unit] += self._rng.randint(1, 3)
            self.came_ns[unit] = self._kernel.now_ns
            self._tell(unit)
            self._serve(unit)
            self._expect(unit)

    def _tell(self, unit: str) -> None:
        if unit not in self.awaited or not self.waiting[unit]:
            return
        self.awaited.discard(unit)
        if not any(each.accept for each in self.specs[unit]):
            self._kernel.custody.tell(ConnectionCame(unit, unit))
            # (whoever stood still when somebody came takes him later)
            self._serve(unit)
            return
        self.waiting[unit] -= 1
        self._last += 1
        self.connections[unit, self._last] = None
        peer = self._rng.choice(PEERS)
        self._kernel.struck("accepted", unit)
        self._kernel.custody.tell(ConnectionCame(unit, unit, self._last, peer, (("REMOTE_ADDR", peer),)))

    def _serve(self, unit: str) -> None:
        """Whoever waits is taken by the main process, if one lives a moment later."""
        self._agenda.after(self._rng.randint(1, 400) * MILLISECOND_NS, lambda: self._take(unit))

    def _take(self, unit: str) -> None:
        if not self.waiting.get(unit) or any(each.accept for each in self.specs[unit]):
            return
        tree = self._kernel.trees.get(unit, {}).values()
        if any(self._takes(each) for each in tree):
            now_ns = self._kernel.now_ns
            self._talking(unit).extend(
                now_ns + self._rng.randint(1, 3000) * MILLISECOND_NS for _ in range(self.waiting[unit])
            )
            self.waiting[unit] = 0

    def _takes(self, process: "Process") -> bool:
        """Whether a process takes who waits: one that was asked to end does not."""
        spawn = process.spawn
        if spawn is None or spawn.role is not Role.MAIN or spawn.pending or process.signalled or process.dying:
            return False
        return not self._kernel.freezer.is_still(process)

    def _leave(self, action: SpawnProcess) -> None:
        """A process takes who waits, and leaves something behind if it may, soon after it was made; it may want that
        no more some time later.
        """
        unit = action.unit
        self.connected.pop(unit, None)

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
            elif self.stored.get(unit) and not self.calm and self._rng.random() < 0.5:
                del self.stored[unit]
                self._kernel.custody.tell(DescriptorsStored(unit, ()))

        self._agenda.after(self._rng.randint(1, 500) * MILLISECOND_NS, leave)

    def _serve_one(self, action: SpawnProcess) -> None:
        """A process for one connection: it ends when the client hangs up."""

        def hang_up() -> None:
            spawn = self._kernel.spawns.get(action.spawn_id)
            if spawn is None or spawn.over:
                return
            if spawn.pending:
                self._agenda.after(SECOND_NS, hang_up)
                return
            self._kernel.end(spawn.main, ExitStatus(code=0))

        self._agenda.after(self._rng.randint(1, 8000) * MILLISECOND_NS, hang_up)

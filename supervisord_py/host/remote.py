"""``[control.remote]`` and ``[bus.remote]``: listeners that open, close and change as the settings and their keys do.

libzmq binds the addresses, in the manager: while a manager is replaced nobody listens, and clients connect again by
themselves. An address that is taken is tried again; until then it is a problem of ``supctl health``. A key that comes
or goes counts at once; another key of the supervisor's own is a new listener, so everybody connects anew.
"""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

from supervisord_py.host.bus import Bus
from supervisord_py.host.control_server import ControlServer, OnBug
from supervisord_py.host.facade import Peer, Supervisor
from supervisord_py.host.refusals import Refusals
from supervisord_py.host.remote_keys import KeyFolder
from supervisord_py.model.records import Record
from supervisord_py.model.settings import RemoteSettings
from supervisord_py.model.states import Severity
from supervisord_py.wire.curve import Certificate

TRY_FIRST_S = 0.05
TRY_LAST_S = 5.0
TELL_AFTER_S = 1.0
"""A failure is told when it has lasted for so long: the manager before this one may have just let go."""


class Gate(Protocol):
    """An open listener."""

    def open(self, address: str) -> None:
        """Listen. Raises: OSError."""

    def keys_changed(self) -> None: ...

    async def close(self) -> None: ...


class Remote:
    """Both listeners.

    Args:
        supervisor: The running manager, and its settings.
        control: Answers what comes by ``[control.remote]``.
        bus: Takes what comes by ``[bus.remote]``.
        refusals: Where refusals are recorded.
        on_bug: Is told of errors of ours.
    """

    def __init__(
        self, supervisor: Supervisor, control: ControlServer, bus: Bus, *, refusals: Refusals, on_bug: OnBug
    ) -> None:
        self._supervisor = supervisor
        self._control_server = control
        self._bus_server = bus
        self._refusals = refusals
        self._on_bug = on_bug
        self._control = _Listener("control", self._make_control, self._note, on_bug)
        self._bus = _Listener("bus", self._make_bus, self._note, on_bug)
        bus.on_open.append(self._bus.reconcile)

    def use(self) -> None:
        """Take over the settings as they are now."""
        settings = self._supervisor.settings
        self._control.use(settings.control.remote)
        self._bus.use(settings.bus.remote)

    def problems(self) -> list[str]:
        """Say what is wrong."""
        return [*self._control.problems(), *self._bus.problems()]

    def warnings(self) -> list[str]:
        """Say which keys are not used."""
        return list(dict.fromkeys((*self._control.warnings(), *self._bus.warnings())))

    async def close(self) -> None:
        await self._control.close()
        await self._bus.close()

    async def _make_control(self, own: Certificate, keys: KeyFolder) -> "Gate | str":
        # Beside the loop: libzmq takes a while to be read from disk.
        await asyncio.to_thread(importlib.import_module, "supervisord_py.host.remote_control")
        from supervisord_py.host.remote_control import RemoteControl

        return RemoteControl(own, keys, self._control_server, on_refused=self._refused, on_bug=self._on_bug)

    async def _make_bus(self, own: Certificate, keys: KeyFolder) -> "Gate | str":
        router = self._bus_server.router
        if router is None:
            return self._bus_server.open_now() or ""
        from supervisord_py.host.remote_bus import RemoteBus

        return RemoteBus(own, keys, router, on_refused=self._refused)

    async def _refused(self, peer: Peer, why: str) -> None:
        await self._refusals.denied(peer, "connect", (), "", why)

    async def _note(self, record: Record) -> None:
        await self._supervisor.note(record)


class _Listener:
    """One table. All its work is one task, which ends when things are as they are wanted."""

    def __init__(
        self,
        name: Literal["control", "bus"],
        make: Callable[[Certificate, KeyFolder], Awaitable["Gate | str"]],
        note: Callable[[Record], Awaitable[None]],
        on_bug: OnBug,
    ) -> None:
        self._name = name
        self._make = make
        self._note = note
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        self._wanted: RemoteSettings | None = None
        self._keys: KeyFolder | None = None
        self._gate: Gate | None = None
        self._bound: tuple[str, Certificate] | None = None
        self._problem: str | None = None
        self._told: str | None = None
        self._failing_since_s = 0.0
        self._try_s = TRY_FIRST_S
        self._retry: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None
        self._is_asked = self._is_closed = False

    def use(self, wanted: RemoteSettings | None) -> None:
        if wanted != self._wanted:
            self._wanted = wanted
            self.reconcile()

    def reconcile(self) -> None:
        """Make things as they are wanted, soon."""
        self._is_asked = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if (self._work is None or self._work.done()) and not self._is_closed:
            self._work = self._loop.create_task(self._reconcile())

    def problems(self) -> list[str]:
        if self._wanted is None:
            return []
        found = [] if self._keys is None else [self._keys.problem]
        found.append(self._problem)
        return [f"[{self._name}.remote]: {problem}" for problem in found if problem]

    def warnings(self) -> list[str]:
        keys = None if self._keys is None or self._wanted is None else self._keys.known
        return [] if keys is None else list(keys.problems)

    async def close(self) -> None:
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        await self._shut()
        if self._keys is not None:
            self._keys.close()

    async def _reconcile(self) -> None:
        while self._is_asked:
            self._is_asked = False
            try:
                await self._reconcile_once()
            except Exception as error:  # noqa: BLE001  without this listener everything else goes on
                await self._shut()
                self._failed(f"internal error: {error!r}")
                self._on_bug(f"[{self._name}.remote]", error)

    async def _reconcile_once(self) -> None:
        wanted = self._wanted
        if self._keys is not None and (wanted is None or self._keys.path != wanted.keys):
            await self._shut()
            self._keys.close()
            self._keys = None
        if wanted is None:
            await self._shut()
            self._problem = self._told = None
            return
        if self._keys is None:
            self._keys = KeyFolder(wanted.keys, self._keys_changed)
        keys = self._keys.keys
        if keys is None:
            return  # who is inside was cut, nobody comes in, and a change of the folder is told
        if self._gate is not None and self._bound != (wanted.address, keys.own):
            await self._shut()
        if self._gate is None:
            await self._open(wanted.address, keys.own, self._keys)

    async def _open(self, address: str, own: Certificate, keys: KeyFolder) -> None:
        gate = await self._make(own, keys)
        if isinstance(gate, str):
            self._problem = gate or None  # what it needs tells when it is there
            return
        try:
            gate.open(address)
        except OSError as error:
            await gate.close()
            self._failed(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}")
            await self._tell_failure(address)
            return
        self._gate, self._bound = gate, (address, own)
        self._problem = self._told = None
        self._try_s = TRY_FIRST_S
        fields = {"listener": self._name, "address": address, "public_key": own.public}
        await self._note(Record("remote.listening", fields=fields))

    def _failed(self, problem: str) -> None:
        now_s = self._loop.time()
        if self._problem is None:
            self._failing_since_s = now_s
        self._problem = problem
        self._retry = self._loop.call_later(self._try_s, self.reconcile)
        self._try_s = min(2 * self._try_s, TRY_LAST_S)

    async def _tell_failure(self, address: str) -> None:
        lasts_s = self._loop.time() - self._failing_since_s
        if lasts_s >= TELL_AFTER_S and self._told != self._problem:
            self._told = self._problem
            fields = {"listener": self._name, "address": address, "problem": self._problem}
            await self._note(Record("remote.failed", Severity.ERROR, fields=fields))

    async def _shut(self) -> None:
        gate, self._gate, self._bound = self._gate, None, None
        if gate is not None:
            await gate.close()

    def _keys_changed(self) -> None:
        if self._gate is not None:
            self._gate.keys_changed()
        self.reconcile()

"""The end of the supervisor: begun once, by a command or a signal, and carried out when everything has stopped.

Theory of operation
-------------------
``begin`` tells the core, which stops the units in their order and says when it is over (``finish``). Then the last
words are written and what the manager holds is closed; the keeper ends us. A manager that takes over in between is told
by the core to finish once more, so everything here may happen twice but ``daemon.stopped``, which is in custody from
the moment that it is told.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from supervisord_py.core.events import Origin, ShutdownRequested
from supervisord_py.core.manager import Manager
from supervisord_py.host.cgroups import UnitGroups
from supervisord_py.host.container import ECHO_TIMEOUT_S, final_code, shutdown_timeout_ns
from supervisord_py.host.driver import Driver
from supervisord_py.host.echo import Echo
from supervisord_py.host.hands import ManagerHands
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.output import OutputCollector
from supervisord_py.host.snapshot_file import SnapshotStore
from supervisord_py.model.records import Record
from supervisord_py.model.settings import Settings

ORIGIN_SIGNAL = Origin(uid=os.getuid(), gid=os.getgid(), user="a signal to the supervisor")
FLUSH_TIMEOUT_S = 5.0

STOPPED_KEY = "host/stopped"
"""Set when ``daemon.stopped`` is told, for a manager that has to finish the end of another."""


class Ending:
    """The end of one supervisor.

    Args:
        config: What the keeper was started with.
        settings: The settings in force.
        has_told: ``daemon.stopped`` was written by a manager before this one.
        on_begin: The end has begun.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: Callable[[], Settings],
        *,
        manager: Manager,
        driver: Driver,
        hands: ManagerHands,
        echo: Echo | None,
        snapshot: SnapshotStore,
        journal: Journal,
        output: OutputCollector,
        groups: UnitGroups,
        has_told: bool,
        on_begin: Callable[[], None],
    ) -> None:
        self._config = config
        self._settings = settings
        self._manager = manager
        self._driver = driver
        self._hands = hands
        self._echo = echo
        self._snapshot = snapshot
        self._journal = journal
        self._output = output
        self._groups = groups
        self._has_told = has_told
        self.has_begun = False
        self._on_begin = on_begin

    def begin(self, origin: Origin, reason: str = "", cause: int | None = None) -> None:
        """Stop everything in order; asked again it changes nothing."""
        if not self.has_begun:
            self.has_begun = True
            self._on_begin()
            timeout_ns = shutdown_timeout_ns(self._config, self._settings())
            self._driver.submit(ShutdownRequested(timeout_ns, origin, reason, cause))

    async def finish(self, code: int) -> None:
        """Everything has stopped: write the last words, then let the keeper end us with ``code``, or with what stands
        for that here."""
        code = final_code(self._config, self._manager, code)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hands.settle(), FLUSH_TIMEOUT_S)
            if self._echo is not None:
                await self._echo.settle(ECHO_TIMEOUT_S)
            if not self._has_told:
                self._has_told = True
                self._driver.note([Record("daemon.stopped", fields={"code": code})], keep={STOPPED_KEY: "true"})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._snapshot.store(), FLUSH_TIMEOUT_S)
            await self._journal.close()
            await self._output.close()
            self._groups.close(remove=True)
        finally:
            # Whatever fails on the way: nobody else will ask for the end.
            self._driver.ask({"do": "exit", "code": code})

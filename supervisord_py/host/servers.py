"""What others can connect to: the control socket for people and programs, the bus for agents, both from afar."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisord_py.host.authority import Authority
from supervisord_py.host.bus import LISTENER, Bus, Write
from supervisord_py.host.control_interfaces import build_control_server
from supervisord_py.host.control_server import OnBug
from supervisord_py.host.facade import Supervisor
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.peers import Whose
from supervisord_py.host.refusals import Refusals
from supervisord_py.host.remote import Remote
from supervisord_py.host.unit_views import UnitViews


class Servers:
    """Both servers of one manager, on the sockets that the keeper listens on.

    Args:
        listeners: The sockets by name.
        runtime: The runtime folder.
        supervisor: The running manager.
        journal: Its journal.
        write: Puts records into custody and journal.
        whose: Asks the keeper whose process a pid is.
        on_bug: Is told of errors of ours in one call or message.
    """

    def __init__(
        self,
        listeners: Mapping[str, Any],
        runtime: Path,
        supervisor: Supervisor,
        journal: Journal,
        write: Write,
        *,
        whose: Whose,
        on_bug: OnBug,
    ) -> None:
        self._control = build_control_server(
            listeners["control"], supervisor, whose=whose, own_uid=os.getuid(), on_bug=on_bug
        )
        self._refusals = Refusals(supervisor.note)
        groups_of = UnitViews(supervisor).groups
        authority = Authority(supervisor, self._refusals, own_uid=os.getuid(), groups_of=groups_of)
        self.bus = Bus(
            supervisor,
            journal,
            write,
            listeners.get(LISTENER),
            runtime,
            whose=whose,
            authority=authority,
            refusals=self._refusals,
            on_bug=on_bug,
        )
        self.remote = Remote(supervisor, self._control, self.bus, refusals=self._refusals, on_bug=on_bug)

    def start(self) -> None:
        """Take connections."""
        self._control.start()
        self.bus.start()
        self.remote.use()

    async def close(self) -> None:
        """End all connections; the sockets stay open."""
        await self.remote.close()
        await self._control.close()
        await self.bus.close()
        await self._refusals.close()

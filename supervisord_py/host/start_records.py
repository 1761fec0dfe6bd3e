"""What the journal says when a manager begins: a first one, or one that follows another."""

import os
from collections.abc import Mapping
from typing import Any

from supervisord_py import __version__
from supervisord_py.host.journal_recovery import Recovery
from supervisord_py.host.keeper_client import KeeperClient, Welcome, lost_fields
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.model.unit import UnitSet

MANAGERS_KEY = "host/managers"
"""How many managers the keeper had made when the last one took over, this one included."""

KEEPERS_KEY = "host/keepers"
"""The pids of the keepers that had this state, the present one last."""

KEEPERS_MAX = 16


def lineage_of(welcome: Welcome, keeper_pid: int) -> dict[str, str]:
    """Return what a manager that begins adds to the state: who it is, and who had the state."""
    before = [pid for pid in welcome.state.get(KEEPERS_KEY, "").split() if pid != str(keeper_pid)]
    keepers = " ".join([*before[-KEEPERS_MAX:], str(keeper_pid)])
    return {MANAGERS_KEY: str(welcome.managers), KEEPERS_KEY: keepers}


def versions_of(keeper: KeeperClient, name: str, instance: int, lineage: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer of Version."""
    return {
        "manager": __version__,
        "keeper": keeper.version,
        "protocol": keeper.protocol,
        "name": name,
        "pid": os.getpid(),
        "keeper_pid": keeper.pid,
        "instance": f"{instance:05x}",
        "keepers": [int(pid) for pid in lineage[KEEPERS_KEY].split()],
    }


def start_record(welcome: Welcome, recovery: Recovery, keeper_pid: int, first: UnitSet | None) -> Record:
    """Return ``daemon.started`` for the manager that loads the ``first`` unit set, else ``manager.restarted``."""
    fields: dict[str, Any] = {
        "name": welcome.config["name"],
        "version": __version__,
        "keeper_pid": keeper_pid,
        "manager_pid": os.getpid(),
        "instance": f"{welcome.instance:05x}",
    }
    if recovery.problem:
        fields["journal"] = recovery.problem
    if first is not None:
        return Record("daemon.started", fields=fields | {"units": len(first.units), "bad": len(first.bad)})
    fields |= {
        "managers": welcome.managers,
        "processes": len(welcome.processes),
        "lines_recovered": len(welcome.lines),
    }
    if (before := welcome.state.get(MANAGERS_KEY)) is not None:
        # Those between the last one that took over and this one: they were not fit, or died before their first commit.
        fields["failed"] = max(0, welcome.managers - int(before) - 1)
    return Record("manager.restarted", Severity.WARNING, fields=fields)


def lost_record(lost: Mapping[str, Any]) -> Record:
    """Return ``keeper.lost`` for a killed keeper after which nothing could go on (``adoption.report``)."""
    return Record("keeper.lost", Severity.ERROR, fields=lost_fields(lost))

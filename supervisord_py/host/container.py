"""Container mode: what is different where the keeper is the first process, or supervises one command for a caller."""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

from supervisord_py.core.manager import Manager
from supervisord_py.core.view import exit_code, unit_status
from supervisord_py.host.accounts import Accounts
from supervisord_py.host.belongings import Keeping, own_roots
from supervisord_py.host.bus import bus_address
from supervisord_py.host.console import Console
from supervisord_py.host.dynamic_users import DynamicUsers
from supervisord_py.host.echo import Echo
from supervisord_py.host.execution import SpawnRuntime, passed_environment
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.output import OutputCollector
from supervisord_py.host.places import Places
from supervisord_py.host.private_folders import PrivateFolders
from supervisord_py.host.resources import UnitResources
from supervisord_py.model.settings import Settings

ENDLESS_NS = 100 * 365 * 86_400 * 1_000_000_000
"""What ``shutdown-timeout-sec = "infinity"`` means to the core: a century."""
NEVER_STARTED = 125
ECHO_TIMEOUT_S = 1.0
"""How long the end waits for a reader of standard output that stands still."""


def shutdown_timeout_ns(config: Mapping[str, Any], settings: Settings) -> int:
    """Return the time for a shutdown [ns]: what ``run`` was told, else what the settings say."""
    given: int | None = config.get("shutdown_timeout_ns")
    if given is not None:
        return given
    timeout_ns = settings.supervisor.shutdown_timeout_ns
    return ENDLESS_NS if timeout_ns is None else timeout_ns


def console_of(config: Mapping[str, Any]) -> tuple[Console, RecordFilter] | None:
    """Return where events are shown, and which; None for ``exec``, whose terminal is its command's.

    Standard output is for the output of units where that was asked for: then events are errors' neighbours.
    """
    if config["events"] == "none":
        return None
    wanted = RecordFilter() if config["events"] == "all" else RecordFilter(severity="warning")
    return Console(2 if config.get("output") == "stdout" else 1, colour=config["colour"]), wanted


def echo_of(config: Mapping[str, Any], loop: asyncio.AbstractEventLoop, output: OutputCollector) -> Echo | None:
    """Return what shows the output of units on standard output, if that was asked for."""
    if config.get("output") != "stdout":
        return None
    echo = Echo(
        loop,
        lambda unit: output.follow([unit]),
        colour=config["colour"],
        timestamps=bool(config.get("timestamps")),
    )
    output.on_attached = echo.attached
    return echo


def final_code(config: Mapping[str, Any], manager: Manager, code: int) -> int:
    """Return the code that the keeper ends with: of ``exec`` its command's, whoever ended that; else the core's."""
    unit: str | None = config.get("forward")
    if unit is None:
        return code
    code = exit_code(manager, unit)
    if code == NEVER_STARTED:
        status = unit_status(manager, unit)
        print(f"supervisord-py: {status.why or f'{unit} could not be started'}", file=sys.stderr, flush=True)
    return code


def environment_of(config: Mapping[str, Any], settings: Settings) -> tuple[tuple[str, str], ...]:
    """Return what every unit gets of our own environment."""
    wanted, given = settings.supervisor.pass_environment, config["pass_environment"]
    names = "all" if "all" in (wanted, given) else (*wanted, *given)
    return passed_environment(names, os.environ)


def runtime_of(
    config: Mapping[str, Any], settings: Settings, places: Places, resources: UnitResources, listeners: dict[str, Any]
) -> SpawnRuntime:
    """Return what all spawns of a manager share."""
    return SpawnRuntime(
        control_socket=str(places.socket),
        accounts=Accounts(),
        groups=resources.groups,
        resources=resources,
        bus=bus_address(places.runtime, listeners),
        agents=str(places.agents),
        keeping=Keeping(places.runtime, own_roots(os.environ)),
        private=PrivateFolders(places.runtime),
        dynamic=DynamicUsers(places.runtime),
        own_environment=passed_environment("all", os.environ),
        direct=config.get("forward"),
        passed=environment_of(config, settings),
    )

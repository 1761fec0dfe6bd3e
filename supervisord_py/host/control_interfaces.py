"""Puts the control interfaces together: descriptions, methods, rules, and the server that ``daemon`` runs.

The descriptions are files beside ``wire`` in an installed package, and in ``packaging/`` in a checkout.
"""

import socket
from importlib import resources
from pathlib import Path

import supervisord_py
from supervisord_py.host.authority import Authority
from supervisord_py.host.change_verbs import ChangeVerbs
from supervisord_py.host.control_calls import (
    Endpoint,
    Handler,
    InvalidCallError,
    MethodError,
    NotPermittedError,
    Request,
)
from supervisord_py.host.control_server import ControlLimits, ControlServer, OnBug
from supervisord_py.host.facade import Peer, Supervisor
from supervisord_py.host.journal_interface import JournalMethods
from supervisord_py.host.manager_interface import Queries
from supervisord_py.host.manager_verbs import Verbs
from supervisord_py.host.peers import Credentials, Whose, identify
from supervisord_py.host.refusals import Refusals
from supervisord_py.host.run_verbs import RunVerbs
from supervisord_py.host.unit_views import UnitViews
from supervisord_py.wire.interface import SERVICE_TEXT, Interface, parse_interface
from supervisord_py.wire.varlink import JOURNAL, MANAGER, SERVICE

VENDOR = "supervisord-py"
URL = "https://pypi.org/project/supervisord-py/"


class ServiceMethods:
    """Answers ``org.varlink.service``: what there is here to call."""

    def __init__(self, authority: Authority, texts: dict[str, str], version: str) -> None:
        self._authority = authority
        self._texts = texts
        self._version = version

    def handlers(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {"GetInfo": self.get_info, "GetInterfaceDescription": self.get_interface_description}

    async def get_info(self, request: Request) -> object:
        await self._require(request)
        return {
            "vendor": VENDOR,
            "product": VENDOR,
            "version": self._version,
            "url": URL,
            "interfaces": list(self._texts),
        }

    async def get_interface_description(self, request: Request) -> object:
        await self._require(request)
        name = request.parameters["interface"]
        text = self._texts.get(name)
        if text is None:
            message = f"no interface {name[:255]}"
            raise InvalidCallError(f"{SERVICE}.InterfaceNotFound", {"interface": name}, message)
        return {"description": text}

    async def _require(self, request: Request) -> None:
        try:
            await self._authority.require(request.peer, "idl")
        except NotPermittedError:
            # This interface has an error of its own for it, and clients of other makes know no other.
            raise MethodError(f"{SERVICE}.PermissionDenied", {}) from None


def load_interface(name: str) -> Interface:
    """Read the description of one of our interfaces.

    Raises:
        InterfaceSyntaxError: The file was changed and cannot be read any more.
        FileNotFoundError: The installation is incomplete.
    """
    installed = resources.files("supervisord_py.wire") / f"{name}.varlink"
    if installed.is_file():
        return parse_interface(installed.read_text())
    checkout = Path(supervisord_py.__file__).parent.parent / "packaging" / f"{name}.varlink"
    return parse_interface(checkout.read_text())


def build_endpoints(supervisor: Supervisor, refusals: Refusals, *, own_uid: int) -> list[Endpoint]:
    """Return the three interfaces of the control socket over ``supervisor``."""
    views = UnitViews(supervisor)
    authority = Authority(supervisor, refusals, own_uid=own_uid, groups_of=views.groups)
    queries = Queries(supervisor, authority, views)
    manager, journal, service = load_interface(MANAGER), load_interface(JOURNAL), parse_interface(SERVICE_TEXT)
    verbs = Verbs(supervisor, authority, views, queries, manager)
    changes = ChangeVerbs(supervisor, authority, views, queries, verbs)
    runs = RunVerbs(supervisor, authority, views, verbs, changes)
    texts = {interface.name: interface.text for interface in (service, manager, journal)}
    version = str(supervisor.versions["manager"])
    return [
        Endpoint(service, ServiceMethods(authority, texts, version).handlers()),
        Endpoint(manager, queries.handlers() | verbs.handlers() | changes.handlers() | runs.handlers()),
        Endpoint(journal, JournalMethods(supervisor, authority, queries).handlers()),
    ]


def build_control_server(
    listener: socket.socket,
    supervisor: Supervisor,
    *,
    whose: Whose,
    own_uid: int,
    on_bug: OnBug,
    limits: ControlLimits | None = None,
) -> ControlServer:
    """Return the server of the control socket, not started yet.

    Args:
        listener: The listening socket, from the keeper.
        supervisor: The running manager.
        whose: Asks the keeper whose process a pid is.
        own_uid: The supervisor's own user.
        on_bug: Is told of errors of ours in a method; only the one call has ended by it.
        limits: The bounds, for tests.
    """
    refusals = Refusals(supervisor.note)

    async def who(connection: socket.socket, credentials: Credentials) -> Peer:
        return await identify(connection, credentials, whose)

    endpoints = build_endpoints(supervisor, refusals, own_uid=own_uid)
    return ControlServer(
        listener, endpoints, identify=who, refusals=refusals, own_uid=own_uid, on_bug=on_bug, limits=limits
    )

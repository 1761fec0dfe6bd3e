"""``[[socket]]`` of one unit, with ``activation`` and ``idle-exit-sec`` of its service."""

from supervisord_py.model.fields import Fields
from supervisord_py.model.parse import TableId
from supervisord_py.model.problems import Problem
from supervisord_py.model.sockets import (
    BURST_OF_ACCEPT,
    Activation,
    Listen,
    ListenKind,
    Socket,
    SocketAddress,
    Sockets,
)
from supervisord_py.model.unit import Service

_SOCKET = Socket("")
_KINDS = {
    "listen-stream": ListenKind.STREAM,
    "listen-datagram": ListenKind.DATAGRAM,
    "listen-sequential-packet": ListenKind.SEQUENTIAL_PACKET,
    "listen-fifo": ListenKind.FIFO,
}
_CONNECTED = (ListenKind.STREAM, ListenKind.SEQUENTIAL_PACKET)


def assemble_sockets(fields: Fields, unit: str, service: Service, problems: list[Problem]) -> Sockets | None:
    """Return what the unit listens on, None for one that does not."""
    written = fields.decoded("service", "activation")
    places = fields.below("socket")
    if service.context.streams.input == "socket" and not any(fields.get(place, "accept", False) for place in places):
        hint = "write [[socket]] with accept = true, or take it out"
        problems.append(fields.problem("service", "standard-input", "no connection is handed to it", hint))
    if not places:
        if written is not None and written.value == Activation.DEMAND.value:
            hint = "add [[socket]] with listen-stream, or take it out"
            problems.append(fields.problem("service", "activation", "nothing is there to ask for the unit", hint))
        if fields.get("service", "idle-exit-sec", None) is not None:
            message = "without [[socket]] nothing would start the unit again"
            problems.append(fields.problem("service", "idle-exit-sec", message, "take it out"))
        return None
    sockets = tuple(_socket(fields, place, unit, problems) for place in places)
    activation = Activation(fields.get("service", "activation", Activation.DEMAND.value))
    idle_ns: int | None = fields.get("service", "idle-exit-sec", None)
    found = Sockets(sockets, activation, idle_ns)
    _check(fields, found, service, places, problems)
    return found


def _check(fields: Fields, found: Sockets, service: Service, places: list[TableId], problems: list[Problem]) -> None:
    def complain(table: str | TableId, key: str, message: str, hint: str, *, warning: bool = False) -> None:
        problems.append(fields.problem(table, key, message, hint, warning=warning))

    addresses = [(listen.kind, str(listen.address)) for each in found.sockets for listen in each.listens]
    for kind, address in dict.fromkeys(addresses):
        if addresses.count((kind, address)) > 1:
            complain(places[-1], "", f"{address} stands here twice", "leave it once")
    if fields.has("timer") and found.is_on_demand:
        hint = 'take one of them out, or write activation = "start"'
        complain("timer", "", "a unit is run by its timer or by its sockets, not by both", hint)
    if found.is_on_demand and service.remain_after_exit:
        message = "a run that stays active is never over, and nothing listens after it"
        complain("service", "remain-after-exit", message, "take it out")
    if found.accepts:
        for place, each in zip(places, found.sockets, strict=True):
            if not each.accept:
                complain(place, "accept", "another socket of the unit accepts", "write accept = true everywhere")
            if any(listen.kind not in _CONNECTED for listen in each.listens):
                hint = "take accept out, or put what has no connections into a unit of its own"
                complain(place, "accept", "datagrams and FIFOs have no connections to accept", hint)
        if not found.is_on_demand:
            hint = "take activation out, or accept"
            complain("service", "activation", "what is accepted has a process each, made on demand", hint)
    else:
        for place in places:
            if fields.decoded(place, "max-connections") is not None:
                hint = "write accept = true, or take it out"
                complain(place, "max-connections", "the process itself accepts", hint, warning=True)
    if found.idle_exit_ns is not None and (found.accepts or not found.is_on_demand):
        message = "nothing would start the unit again" if not found.accepts else "each connection has its own process"
        complain("service", "idle-exit-sec", message, "take it out")
    elif found.idle_exit_ns == 0:
        complain("service", "idle-exit-sec", "the unit would be ended at once", 'for never write "infinity"')


def _socket(fields: Fields, place: TableId, unit: str, problems: list[Problem]) -> Socket:
    accept = fields.get(place, "accept", _SOCKET.accept)
    addresses: dict[str, tuple[SocketAddress, ...]] = {key: fields.get(place, key, ()) for key in _KINDS}
    listens = tuple(Listen(kind, address) for key, kind in _KINDS.items() for address in addresses[key])
    if not listens:
        hint = f"write one of {', '.join(_KINDS)}"
        problems.append(fields.problem(place, "", "a socket without an address", hint))
    return Socket(
        name=fields.get(place, "name", unit.replace(":", "_")),
        listens=listens,
        backlog=fields.get(place, "backlog", _SOCKET.backlog),
        mode=fields.get(place, "socket-mode", _SOCKET.mode),
        user=fields.get(place, "socket-user", None),
        group=fields.get(place, "socket-group", None),
        accept=accept,
        max_connections=fields.get(place, "max-connections", _SOCKET.max_connections),
        reuse_port=fields.get(place, "reuse-port", _SOCKET.reuse_port),
        trigger_interval_ns=fields.get(place, "trigger-limit-interval-sec", _SOCKET.trigger_interval_ns),
        trigger_burst=fields.get(place, "trigger-limit-burst", BURST_OF_ACCEPT if accept else _SOCKET.trigger_burst),
    )

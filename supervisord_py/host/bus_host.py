"""What the router of the bus needs of others: of the manager, and of who lets peers in."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from supervisord_py.host.access import Scope
from supervisord_py.host.bus_door import Member
from supervisord_py.host.facade import Peer, RecordFilter
from supervisord_py.model.records import Record
from supervisord_py.model.settings import BusSettings


class BusHost(Protocol):
    """What the bus needs of the manager."""

    @property
    def settings(self) -> BusSettings: ...

    def write(self, records: list[Record]) -> list[tuple[int, str]]:
        """Put records into custody and journal; none are returned when they are lost."""

    @property
    def failing(self) -> str | None:
        """Why nothing can be written now."""

    @property
    def written(self) -> int:
        """The highest number that is in the journal's file."""

    @property
    def next_seq(self) -> int: ...

    async def kept(self, seq: int) -> bool:
        """Return when a record is as safe as ``[journal] sync`` promises; False when that cannot be said."""

    def stream(self, wanted: RecordFilter) -> AsyncIterator[list[dict[str, Any]]]: ...

    @property
    def keep_last(self) -> Mapping[str, int]:
        """The events that are kept in a ring."""

    def keep(self, record: Record) -> None:
        """Put an event into the ring."""

    async def newest(self, wanted: RecordFilter, count: int) -> list[dict[str, Any]]: ...

    async def oldest(self) -> int:
        """The number that what the journal has kept begins with."""

    def invocation(self, unit: str) -> str | None: ...

    def has_unit(self, unit: str) -> bool: ...

    def scope(self, peer: Peer) -> Scope:
        """Return whose records a peer may read."""

    def refusal(self, peer: Peer, command: str) -> str | None:
        """Say why a peer may not use a command of the rules; None where it may."""


class Entrance(Protocol):
    """Who lets peers in to a ROUTER, and knows them: ``bus_door``, ``remote_door``."""

    @property
    def descriptors(self) -> tuple[int, ...]: ...

    @property
    def connections(self) -> int: ...

    def member(self, user: str, fd: int, address: bytes) -> Member | None: ...

    def turn(self) -> None: ...

    async def close(self) -> None: ...

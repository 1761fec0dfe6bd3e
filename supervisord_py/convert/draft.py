"""What a converter makes: drafts of unit files, and for each key that it read what became of it.

A *use* is one assignment in a file that was read. It is carried (a key of ours has its effect), needless (what it
asks for is so anyway, with the reason), or lost (with the reason). Nothing is passed over in silence: who converts a
file can see of every line where it went.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from msgspec import Struct

SECRET_KEYS = frozenset({"environment", "set-credential", "load-credential"})
"""Keys of which no value is shown to anybody."""

TableId = tuple[str | int, ...]
"""Where a table stands in a unit file: ``("service",)``, ``("health", "http")``, ``("socket", 0)``."""


class SourceFile(Struct, frozen=True):
    """A file as it was read. ``base`` is the folder that relative paths in it begin at."""

    path: str
    text: str
    base: str = "/"


class Place(Struct, frozen=True):
    """A key in a file that was read; ``line`` is 0 where a format has no lines to tell."""

    file: str
    line: int
    key: str


class Fate(Enum):
    CARRIED = "carried"
    NEEDLESS = "needless"
    LOST = "lost"


class Use(Struct, frozen=True):
    """What became of one assignment. ``reason`` is empty for one that was carried over; ``awaited``: lost only as long
    as the key it belongs to is not built."""

    place: Place
    fate: Fate
    reason: str = ""
    awaited: bool = False


class ConvertError(Exception):
    """A file that cannot be read at all; the message says where and what."""


@dataclass
class Draft:
    """A unit file to be. ``tables`` hold TOML values; ``places`` say which uses a key was made of, ``members`` which a
    unit in a relation of ours was."""

    name: str
    origins: list[str] = field(default_factory=list)
    tables: dict[TableId, dict[str, Any]] = field(default_factory=dict)
    places: dict[tuple[TableId, str], list[Place]] = field(default_factory=dict)
    members: dict[tuple[str, str], list[Place]] = field(default_factory=dict)

    def table(self, *path: str | int) -> dict[str, Any]:
        return self.tables.setdefault(path, {})

    def put(self, table: str | TableId, key: str, value: Any, *places: Place) -> None:
        """Set a key, and remember where it comes from."""
        path = (table,) if isinstance(table, str) else table
        self.tables.setdefault(path, {})[key] = value
        self.places.setdefault((path, key), []).extend(places)

    def add(self, table: str | TableId, key: str, values: Iterable[Any], *places: Place) -> None:
        """Lengthen a list, each value once."""
        path = (table,) if isinstance(table, str) else table
        there = self.tables.setdefault(path, {}).setdefault(key, [])
        there += [value for value in dict.fromkeys(values) if value not in there]
        self.places.setdefault((path, key), []).extend(places)

    def get(self, table: str | TableId, key: str, default: Any = None) -> Any:
        path = (table,) if isinstance(table, str) else table
        return self.tables.get(path, {}).get(key, default)

    def drop(self, table: TableId, key: str) -> list[Place]:
        """Take a key out again; returns what it was made of."""
        self.tables.get(table, {}).pop(key, None)
        return self.places.pop((table, key), [])


@dataclass
class Ledger:
    """What became of every use, in the order in which they were read; ``notes`` are what else is to be known."""

    uses: list[Use] = field(default_factory=list)
    notes: list[Use] = field(default_factory=list)

    def carried(self, *places: Place) -> None:
        self.uses += [Use(place, Fate.CARRIED) for place in places]

    def needless(self, place: Place, reason: str) -> None:
        self.uses.append(Use(place, Fate.NEEDLESS, reason))

    def lost(self, place: Place, reason: str, *, awaited: bool = False) -> None:
        self.uses.append(Use(place, Fate.LOST, reason, awaited))

    def note(self, place: Place, reason: str) -> None:
        self.notes.append(Use(place, Fate.CARRIED, reason))

    def lose(self, places: Iterable[Place], reason: str, *, awaited: bool = False) -> None:
        """What had been carried over is not after all."""
        gone = dict.fromkeys(places)
        lost = {use.place for use in self.uses if use.fate is Fate.LOST}
        self.uses = [use for use in self.uses if use.place not in gone or use.fate is not Fate.CARRIED]
        for place in gone:
            if place not in lost:
                self.lost(place, reason, awaited=awaited)


@dataclass
class Conversion:
    """The units that came out, by name, and the ledger."""

    drafts: dict[str, Draft] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)

    def draft(self, name: str, origin: str) -> Draft:
        found = self.drafts.setdefault(name, Draft(name))
        if origin not in found.origins:
            found.origins.append(origin)
        return found

    @property
    def not_carried(self) -> Sequence[Use]:
        return [use for use in self.ledger.uses if use.fate is Fate.LOST]

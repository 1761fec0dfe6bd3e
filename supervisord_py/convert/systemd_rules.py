"""Which directive is which key, and why the others are none: ``docs/keys.toml`` read the other way round, and the
reviewed list ``systemd.toml``."""

from fnmatch import fnmatchcase

import msgspec
import tomli
from msgspec import Struct

from supervisord_py.model.keys import KeySpec, KeyTable

TABLES_OF_SECTIONS = {
    "Unit": ("unit",),
    "Service": ("service", "limits", "sandbox"),
    "Socket": ("socket",),
    "Timer": ("timer",),
    "Target": (),
}
"""The tables that hold the keys of a section."""


class Target(Struct, frozen=True):
    """The key that a directive is."""

    table: str
    key: str
    spec: KeySpec


class _Reviewed(Struct, frozen=True):
    needless: dict[str, str]
    missing: dict[str, str]
    alias: dict[str, str]
    milestones: dict[str, str]
    reasons: dict[str, str]


class Milestone(Struct, frozen=True):
    """A unit of the operating system that stands for how far it has come: ``boot``, ``late``, ``enabled``, ``session``
    or ``end``."""

    kind: str
    reason: str


class Rules:
    """The table of keys by section and directive, and what has been reviewed by hand."""

    def __init__(self, keys: KeyTable, reviewed: str) -> None:
        """``reviewed`` is the text of ``systemd.toml``."""
        self.keys = keys
        self._reviewed = msgspec.convert(tomli.loads(reviewed), _Reviewed)
        self._targets = {
            (section, spec.systemd): Target(table, key, spec)
            for section, tables in TABLES_OF_SECTIONS.items()
            for table in tables
            if (found := keys.find("unit", table)) is not None
            for key, spec in found.keys.items()
            if spec.systemd
        }

    def resolve(self, section: str, directive: str) -> str:
        """The name that a directive has today."""
        return self._reviewed.alias.get(f"{section}.{directive}", directive)

    def target(self, section: str, directive: str) -> Target | None:
        found = self._targets.get((section, directive))
        if found is None and section == "Service" and directive.startswith("StartLimit"):
            # Where it stood before systemd 230.
            found = self._targets.get(("Unit", directive))
        return found

    def needless(self, section: str, directive: str) -> str | None:
        return self._reviewed.needless.get(f"{section}.{directive}")

    def missing(self, section: str, directive: str) -> str:
        return self._reviewed.missing.get(f"{section}.{directive}", f"{directive} has no counterpart here")

    def milestone(self, unit: str) -> Milestone | None:
        for pattern, kind in self._reviewed.milestones.items():
            if fnmatchcase(unit, pattern):
                return Milestone(kind, self._reviewed.reasons[kind])
        return None

"""What one batch of the simulated manager has decided so far, until its commit makes it true."""

from collections.abc import Sequence

from supervisord_py.core.actions import Effects
from supervisord_py.model.records import Record
from supervisord_py.model.unit import UnitSet


class Batch:
    """The effects, changes and records of one batch; a doomed one is never committed."""

    def __init__(self, seq: int, doomed: bool) -> None:
        self.seq = seq
        self.doomed = doomed
        self.handled = 0
        self.ack = 0
        self.effects = Effects()
        self.numbered: list[tuple[int, Record]] = []
        self.changes: dict[str, str | None] = {}
        self.refused: set[int] = set()
        self.units: UnitSet | None = None

    def absorb(self, effects: Effects, numbered: Sequence[tuple[int, Record]], changes: dict[str, str | None]) -> None:
        self.effects.records += effects.records
        self.effects.actions += effects.actions
        self.effects.replies += effects.replies
        self.numbered += numbered
        self.changes |= changes

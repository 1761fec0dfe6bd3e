"""The ring of records without numbers: the last few beats of every unit, kept in memory beside the chain.

Beats come every few seconds from every unit; in the chain they would push out what matters. So would events that agents
send by the second, where ``keep-last`` names them. Each knows the number that was given last before it, so it is shown
at its place among the others.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from supervisord_py.store.query import Query

UNITS_MAX = 4096
"""Units that are remembered; the one that has been silent longest is forgotten first."""

KEEP_DEFAULT = 2
MESSAGE = "unit.message"


class Ring:
    """The last records of each event and unit. ``keep_last`` is how many, by event; 0 keeps none."""

    def __init__(self, keep_last: Mapping[str, int]) -> None:
        self.keep_last = keep_last
        self._kept: dict[tuple[str, str], deque[tuple[int, dict[str, Any]]]] = {}

    def add(self, record: dict[str, Any], after_seq: int) -> None:
        """Keep a record that came after number ``after_seq``."""
        # An event of an agent's own is a message to nobody but the journal.
        event: str = record["name"] if record["event"] == MESSAGE else record["event"]
        keep = self.keep_last.get(event, KEEP_DEFAULT)
        key = (event, record["unit"] or "")
        kept = self._kept.pop(key, None)
        if keep <= 0:
            return
        if kept is None or kept.maxlen != keep:
            kept = deque(kept or (), maxlen=keep)
        kept.append((after_seq, record))
        self._kept[key] = kept
        if len(self._kept) > UNITS_MAX:
            del self._kept[next(iter(self._kept))]

    def matching(self, query: Query) -> list[tuple[int, dict[str, Any]]]:
        """Return what matches, each with the number before it, in order."""
        found = [
            (after_seq, record)
            for kept in self._kept.values()
            for after_seq, record in kept
            if after_seq >= query.after and query.matches(record)
        ]
        found.sort(key=lambda entry: (entry[0], entry[1]["mono_ns"]))
        return found


def merge(records: Sequence[dict[str, Any]], beats: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Put beats between numbered records, each right after the number it came after."""
    merged: list[dict[str, Any]] = []
    position = 0
    for record in records:
        while position < len(beats) and beats[position][0] < record["seq"]:
            merged.append(beats[position][1])
            position += 1
        merged.append(record)
    merged += [beat for _, beat in beats[position:]]
    return merged

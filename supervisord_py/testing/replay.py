"""The flight log: every input of a manager, and the same inputs through a fresh one.

The core is a function of its inputs, so an incident is the list of what it was told. A log is NDJSON: first what the
manager began with (``began`` with a seed, or ``restored`` with state and units), then one ``took`` a line with the
time and the event. ``replay`` gives the effects of each; what the first run decided and what the replay decides must
be the same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from supervisord_py.core.actions import Effects
from supervisord_py.core.events import AnyEvent, Event, Now
from supervisord_py.core.manager import Manager
from supervisord_py.model.unit import UnitSet
from supervisord_py.testing.timers import zone_of


class Began(Struct, frozen=True, tag="began"):
    """A new manager, with nothing behind it but, perhaps, the counters of one that was lost with its keeper."""

    seed: int
    counters: dict[str, str] = {}


class Restored(Struct, frozen=True, tag="restored"):
    """A manager that took over the state of another."""

    state: dict[str, str]
    units: UnitSet


class Took(Struct, frozen=True, tag="took"):
    """One input."""

    now: Now
    event: AnyEvent


_LINE = msgspec.json.Decoder(Began | Restored | Took)


class FlightLog:
    """Writes what a manager is told; ``lines`` is the log, ``decided`` is given what each input led to."""

    def __init__(self, decided: Callable[[Effects], None] = lambda effects: None) -> None:
        self.lines: list[bytes] = []
        self.decided = decided

    def began(self, seed: int, counters: Mapping[str, str] | None = None) -> None:
        self._write(Began(seed, dict(counters or {})))

    def restored(self, state: Mapping[str, str], units: UnitSet) -> None:
        self._write(Restored(dict(state), units))

    def took(self, now: Now, event: Event) -> None:
        self._write({"type": "took", "now": now, "event": event})

    def _write(self, line: object) -> None:
        self.lines.append(msgspec.json.encode(line))


def read_flight_log(lines: Iterable[bytes]) -> Iterator[Began | Restored | Took]:
    """Decode a log.

    Raises:
        msgspec.ValidationError: A line is not one of ours; its number is in the note.
    """
    for number, line in enumerate(lines, start=1):
        try:
            yield _LINE.decode(line)
        except msgspec.ValidationError as bad:
            bad.add_note(f"line {number} of the flight log")
            raise


def replay(lines: Iterable[bytes], manager_type: type[Manager] = Manager) -> Iterator[tuple[Took, Effects]]:
    """Run a log through a fresh manager (or other rules: ``manager_type``) and give each input with what it
    decides now.

    Raises:
        ValueError: The log does not say what the manager began with.
    """
    manager: Manager | None = None
    for entry in read_flight_log(lines):
        match entry:
            case Began():
                manager = manager_type(entry.seed)
                manager.use_zones(zone_of)
                manager.restore_counters(entry.counters)
            case Restored():
                manager = manager_type.restore(entry.state, entry.units)
                manager.use_zones(zone_of)
            case Took():
                if manager is None:
                    raise ValueError("the log begins in the middle: the first line has to be began or restored")
                effects = manager.handle(entry.event, entry.now)
                manager.take_changes()
                yield entry, effects

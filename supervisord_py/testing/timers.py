"""Timers in the simulated world: which ones units have, and a time zone whose clocks change every few minutes.

The zone has what real ones have twice a year, wall times that do not come and wall times that come twice, so often that
every world sees both.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from random import Random

from supervisord_py.model.calendar import parse_calendar
from supervisord_py.model.states import Overrun, TimerFrom
from supervisord_py.model.unit import SECOND_NS, Timer, Unit
from supervisord_py.testing.clock import MILLISECOND_NS
from supervisord_py.testing.profile import Profile

TIMED = frozenset({"backup", "rotate"})
"""Units that may have a timer."""

CALENDARS: dict[str, Callable[[int], bool]] = {
    "*:*:0/20": lambda second: second % 20 == 0,
    "*:*:00": lambda second: second % 60 == 0,
    "*:*:40": lambda second: second % 60 == 40,
    "*:0/2:20": lambda second: second % 120 == 20,
    "*:0/10": lambda second: second % 600 == 0,
    "*:30": lambda second: second % 3600 == 1800,
}
"""Expressions, and which second of an hour of the wall clock each matches: an opinion of its own."""

ZONES = ("", " UTC")
"""Each calendar is read in the local zone, which is the wobbly one, or in that of the machine."""

RASTER_S = 20
"""All of them match multiples of this alone."""

NEVER = Timer(on_active_ns=(100 * 365 * 86_400 * SECOND_NS,))
"""What a unit waits for when the world is calm."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Wobbly(tzinfo):
    """Four minutes at UTC, then four minutes a minute ahead of it."""

    PERIOD_S, AHEAD_S = 240, 60

    def offset_s(self, second: int) -> int:
        """How far the wall clock is ahead at a second since 1970."""
        return self.AHEAD_S if second // self.PERIOD_S % 2 else 0

    def utcoffset(self, moment: datetime | None) -> timedelta:
        assert moment is not None
        wall = (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
        offsets = [offset for offset in (self.AHEAD_S, 0) if self.offset_s(wall - offset) == offset]
        if not offsets:
            # it does not come: by the rules of fold the offset before the jump, or the one after it
            return timedelta(seconds=self.AHEAD_S if moment.fold else 0)
        return timedelta(seconds=offsets[-1 if moment.fold else 0])

    def dst(self, moment: datetime | None) -> timedelta:
        return self.utcoffset(moment)

    def tzname(self, moment: datetime | None) -> str:
        return "WOB"

    def fromutc(self, moment: datetime) -> datetime:
        second = (moment.replace(tzinfo=UTC) - _EPOCH) // timedelta(seconds=1)
        offset_s = self.offset_s(second)
        is_second_time = not offset_s and self.offset_s(second - self.AHEAD_S) == self.AHEAD_S
        return (moment + timedelta(seconds=offset_s)).replace(fold=int(is_second_time))


def draw_timer(rng: Random, profile: Profile, unit: str) -> Timer | None:
    if unit not in TIMED or rng.random() >= profile.timers * 2:
        return None
    spans = [rng.choice((1, 3, 10, 30)) * SECOND_NS for _ in range(2)]
    times: dict[str, object] = {}
    match rng.choice(("every", "every", "active", "startup", "boot", "calendar", "calendar")):
        case "every":
            times = {"every_ns": spans[0], "every_from": rng.choice(tuple(TimerFrom))}
        case "active":
            times = {"on_active_ns": (spans[0],), "on_unit_active_ns": (spans[1],)}
        case "startup":
            times = {"on_startup_ns": (spans[0],), "on_unit_inactive_ns": (spans[1],)}
        case "boot":
            times = {"on_boot_ns": (spans[0], 60 * SECOND_NS)}
        case _:
            count = rng.choice((1, 1, 2))
            times = {"on_calendar": tuple(each for each, _ in rng.sample(_READ, count))}
    return Timer(
        accuracy_ns=rng.choice((MILLISECOND_NS, SECOND_NS, 5 * SECOND_NS)),
        randomized_delay_ns=rng.choice((0, 0, 2 * SECOND_NS)),
        persistent=rng.random() < 0.3,
        overrun=rng.choice(tuple(Overrun)),
        **times,  # type: ignore[arg-type]
    )


def quieted(unit: Unit) -> Timer | None:
    """The timer of a unit in a calm world."""
    return NEVER if unit.timer is not None else None


_LOCAL = Wobbly()
_READ = [(parse_calendar(text + zone, lambda name: UTC), rule) for text, rule in CALENDARS.items() for zone in ZONES]


def zone_of(name: str) -> tzinfo:
    """The time zones of the machine."""
    return UTC if name else _LOCAL


def next_match_s(timer: Timer, after_ns: int) -> int | None:
    """The first second (since 1970) after an instant at which a calendar of the timer elapses; None for none in two
    days. A wall time that comes twice counts the first time, but for one who asks in the second round.
    """
    rules = [(rule, not calendar.zone) for calendar, rule in _READ if calendar in timer.on_calendar]
    if not rules:
        return None
    first_s = after_ns // SECOND_NS // RASTER_S * RASTER_S + RASTER_S
    for second in range(first_s, first_s + 2 * 86_400, RASTER_S):
        for rule, wobbles in rules:
            if rule((second + (_LOCAL.offset_s(second) if wobbles else 0)) % 3600) and not (
                wobbles and _was_there(second, after_ns)
            ):
                return second
    return None


def _was_there(second: int, after_ns: int) -> bool:
    """Whether the wall time of a second was there a minute ago already, and was asked for before it came again."""
    back_s = second // Wobbly.PERIOD_S * Wobbly.PERIOD_S
    is_second_time = not _LOCAL.offset_s(second) and second - back_s < Wobbly.AHEAD_S
    return is_second_time and after_ns < back_s * SECOND_NS - 1

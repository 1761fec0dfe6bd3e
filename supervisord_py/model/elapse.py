"""When a calendar elapses: the first instant after a given one that it matches, in a time zone.

Theory of operation. The search is over *wall times*, what a clock on the wall shows, date by date and then within the
day; a zone is only asked for what it makes of one of them. A wall time that the clock jumps over does not come, and the
search goes on where the clock does: a time within such a gap is skipped, not moved. A wall time that comes twice counts
as its first instant, but for one who asks within the second round: to them it is the second. So a run at 02:30 is one
run in that night, and one each minute pauses for the hour that is repeated.

Laws: the instant is after the given one; its wall time matches; the later the given instant, the later the answer,
unless the given one is within a repeated hour. Gaps and repeated hours are treated as systemd does (it was asked:
``tests/data``).
"""

import calendar as months
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Final

from supervisord_py.model.calendar import SECOND_US, YEAR_MAX, YEAR_MIN, Calendar, Part

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MINUTE_US: Final = 60 * SECOND_US
_LAST_US: Final = (datetime(YEAR_MAX + 1, 1, 2, tzinfo=UTC) - _EPOCH) // _MICROSECOND


def next_elapse_ns(calendar: Calendar, after_ns: int, zone: tzinfo) -> int | None:
    """Return the first elapse after an instant.

    Args:
        calendar: What elapses.
        after_ns: The instant, in wall time since 1970 [ns].
        zone: The time zone of ``calendar.zone``, the local one where it names none.

    Returns:
        Wall time since 1970, whole microseconds [ns]; None when it never elapses again (up to the year 2199).
    """
    begin_us = max(after_ns // 1000 + 1, 0)
    if begin_us > _LAST_US:
        return None
    begin = _EPOCH + begin_us * _MICROSECOND
    wall = begin.astimezone(zone).replace(tzinfo=None, fold=0)
    while (found := _match_from(calendar, wall)) is not None:
        instant = found.replace(tzinfo=zone).astimezone(UTC)
        if instant.astimezone(zone).replace(tzinfo=None, fold=0) != found:
            wall = _end_of_gap(found, zone)
            continue
        if instant < begin:
            # The wall time has been, and comes again.
            instant = found.replace(tzinfo=zone, fold=1).astimezone(UTC)
        return (instant - _EPOCH) // _MICROSECOND * 1000
    return None


def is_match(calendar: Calendar, wall: datetime) -> bool:
    """Tell whether a calendar matches a wall time (without a zone)."""
    return _match_from(calendar, wall) == wall


def can_elapse(calendar: Calendar) -> bool:
    """Tell whether there is any moment that a calendar matches: there is no ``*-02-30``."""
    return _match_from(calendar, datetime(YEAR_MIN, 1, 1)) is not None


def _end_of_gap(wall: datetime, zone: tzinfo) -> datetime:
    """Return the wall time to which the clock jumps over ``wall``."""
    before = wall.replace(tzinfo=zone, fold=0).utcoffset()
    after = wall.replace(tzinfo=zone, fold=1).utcoffset()
    assert before is not None and after is not None, "a time zone that does not know its offset"
    # Both ends are seconds of UTC since the start of the search: the jump is between them.
    start = (wall - after).replace(microsecond=0, tzinfo=UTC)
    low, high = 0, (after - before) // timedelta(seconds=1) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if (start + timedelta(seconds=middle)).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return (start + timedelta(seconds=high)).astimezone(zone).replace(tzinfo=None, fold=0)


def _match_from(calendar: Calendar, wall: datetime) -> datetime | None:
    """Return the first wall time from ``wall`` on that matches."""
    for day in _days_from(calendar, wall.date()):
        from_us = 0
        if day == wall.date():
            from_us = (wall - datetime.combine(day, time())) // _MICROSECOND
        found_us = _time_from(calendar, from_us)
        if found_us is not None:
            return datetime.combine(day, time()) + found_us * _MICROSECOND
    return None


def _days_from(calendar: Calendar, begin: date) -> Iterator[date]:
    """Yield the matching days from ``begin`` on, ascending."""
    for year in _values_from(calendar.year, begin.year, YEAR_MAX):
        for month in _values_from(calendar.month, begin.month if year == begin.year else 1, 12):
            weekday, days = months.monthrange(year, month)
            parts = _from_start(calendar.day, days) if calendar.from_end else calendar.day
            for day in _values_from(parts, begin.day if (year, month) == (begin.year, begin.month) else 1, days):
                if calendar.weekdays >> (weekday + day - 1) % 7 & 1:
                    yield date(year, month, day)


def _from_start(parts: tuple[Part, ...], days: int) -> tuple[Part, ...]:
    """Days that count from the end of a month to days that count from its start."""
    return tuple(
        Part(days + 1 - part.first, None, part.step)
        if part.last is None
        else Part(days + 1 - part.last, days + 1 - part.first, part.step)
        for part in parts
    )


def _time_from(calendar: Calendar, from_us: int) -> int | None:
    """Return the first matching time of a day from one on, as microseconds of the day."""
    from_minute, from_second_us = divmod(from_us, _MINUTE_US)
    from_hour, from_minute = divmod(from_minute, 60)
    for hour in _values_from(calendar.hour, from_hour, 23):
        for minute in _values_from(calendar.minute, from_minute if hour == from_hour else 0, 59):
            second_us = from_second_us if (hour, minute) == (from_hour, from_minute) else 0
            found_us = _value_from(calendar.second_us, second_us, _MINUTE_US - 1)
            if found_us is not None:
                return (hour * 60 + minute) * _MINUTE_US + found_us
    return None


def _values_from(parts: tuple[Part, ...], value: int, high: int) -> Iterator[int]:
    """Yield the values from ``value`` to ``high`` that the parts have, ascending."""
    while (found := _value_from(parts, value, high)) is not None:
        yield found
        value = found + 1


def _value_from(parts: tuple[Part, ...], value: int, high: int) -> int | None:
    """Return the smallest value from ``value`` to ``high`` that one of the parts has; any, if there are none."""
    if not parts:
        return value if value <= high else None
    nearest: int | None = None
    for part in parts:
        if part.first >= value:
            found = part.first
        elif part.step:
            found = value + (part.first - value) % part.step
        else:
            continue
        if found <= (high if part.last is None else min(part.last, high)) and (nearest is None or found < nearest):
            nearest = found
    return nearest

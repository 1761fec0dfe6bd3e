"""Timestamps as people type them: ``Fri 2026-11-20 13:00:Europe/Berlin``, ``tomorrow``, ``2h ago``, ``@1700000000``.

The rules are systemd's (``tests/data``), those of its newer versions included: RFC 3339 is understood. Source:
systemd.time(7), parsing timestamps.
"""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from supervisord_py.model.calendar import Zones
from supervisord_py.model.problems import BadValue
from supervisord_py.model.values import parse_timespan

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_NAMES: Final = "|".join(("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", *_DAYS))
_DATE_TIME = re.compile(
    rf"(?:(?P<weekday>{_DAY_NAMES}) +)?"
    r"(?:(?P<year>\d{4}|\d\d)-(?P<month>\d{1,2})-(?P<day>\d{1,2}))?"
    r"(?:(?P<between>(?: +|T)?)(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?)?"
    r"(?P<zone>Z| *[+-]\d\d:?\d\d| +[A-Za-z][\w+/-]*)?",
    re.ASCII | re.IGNORECASE,
)
_HINT: Final = 'write "2026-11-20 13:00:00", "13:00", "today", "2h ago", "+5min" or "@SECONDS"'


def parse_timestamp(text: str, now: datetime, zones: Zones) -> int:
    """Read a moment.

    Args:
        text: What was typed.
        now: The present, in the time zone in which ``text`` is read where it names none.
        zones: The time zones that may be named.

    Returns:
        Microseconds since 1970 [us].

    Raises:
        BadValue: It is none, or before 1970.
    """
    try:
        moment = _moment(text.strip(), now, zones)
    except (OverflowError, ValueError) as error:
        if isinstance(error, BadValue):
            raise
        raise BadValue(f"{text!r} is no moment: {error}", _HINT) from None
    usec = (moment - _EPOCH) // _MICROSECOND
    if usec < 0:
        raise BadValue(f"{text!r} is before 1970")
    return usec


def _moment(text: str, now: datetime, zones: Zones) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match text.lower():
        case "now":
            return now
        case "today":
            return midnight
        case "yesterday":
            return midnight - timedelta(days=1)
        case "tomorrow":
            return midnight + timedelta(days=1)
    if text.startswith("@"):
        return _EPOCH + _span(text[1:])
    # A step in time, not on the wall: an hour is an hour in the night of the switch, too.
    present = now.astimezone(UTC)
    if text.startswith("+"):
        return present + _span(text[1:])
    if text.startswith("-"):
        return present - _span(text[1:])
    if text.endswith(" ago"):
        return present - _span(text.removesuffix(" ago"))
    if text.endswith(" left"):
        return present + _span(text.removesuffix(" left"))
    return _date_time(text, now, zones)


def _span(text: str) -> timedelta:
    span_ns = parse_timespan(text)
    if span_ns is None:
        raise BadValue("an infinite time span leads to no moment", _HINT)
    return timedelta(microseconds=span_ns // 1000)


def _date_time(text: str, now: datetime, zones: Zones) -> datetime:
    match = _DATE_TIME.fullmatch(text)
    if match is None or (match["year"] is None and match["hour"] is None):
        raise BadValue(f"{text!r} is no moment", _HINT)
    if match["hour"] is not None and (match["year"] is None) == bool(match["between"]):
        raise BadValue(f"{text!r} is no moment", _HINT)
    named = (match["zone"] or "").strip()
    if not named:
        zone = now.tzinfo
    elif named.upper() in ("Z", "UTC"):
        zone = UTC
    elif named[0] in "+-":
        offset = timedelta(hours=int(named[1:3]), minutes=int(named[-2:]))
        zone = timezone(offset if named[0] == "+" else -offset)
    else:
        zone = zones(named)
        if zone is None:
            raise BadValue(f"there is no time zone {named!r}", 'write a name such as "Europe/Berlin", or UTC')
    if match["year"] is None:
        day = now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    else:
        year = int(match["year"])
        year += 0 if len(match["year"]) == 4 else 2000 if year < 69 else 1900
        day = datetime(year, int(match["month"]), int(match["day"]), tzinfo=zone)
    if match["weekday"] is not None and _DAYS.index(match["weekday"][:3].lower()) != day.weekday():
        raise BadValue(f"{day.date()} is no {match['weekday']}")
    if match["hour"] is None:
        return day
    second = int(match["second"] or 0)
    moment = day.replace(
        hour=int(match["hour"]),
        minute=int(match["minute"]),
        second=min(second, 59),
        microsecond=int(f"{(match['fraction'] or '')[:6]:0<6}"),
    )
    if second > 60:
        raise BadValue(f"{text!r}: a minute has 60 seconds")
    # A leap second is the first one of the next minute.
    return moment.astimezone(UTC) + timedelta(seconds=second == 60)

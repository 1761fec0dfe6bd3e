"""Calendar expressions: ``Mon..Fri *-*-01..07 8..18/2:00 Europe/Berlin`` to a value, and to its normal form.

An expression is up to four words: weekdays, a date, a time of the day, a time zone; or a shorthand (``daily``), or
``@SECONDS``. A field of a date or a time is ``*`` or a list of *parts*: a value, a range ``a..b``, each with a step
``/n``. Text that is no expression is refused with the place and with what was probably meant.

Nothing here knows which time zones there are: they are asked for by name (``Zones``). When a calendar elapses is in
``model/elapse``. The grammar, the normal form and the bounds are systemd's (its parser was asked: ``tests/data``);
where ours differs, ``parse_calendar`` says so. Source: systemd.time(7), calendar events.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from typing import Final, Literal, NoReturn

from msgspec import Struct

from supervisord_py.model.problems import BadValue

Zones = Callable[[str], tzinfo | None]
"""A time zone by its name (``Europe/Berlin``); None where there is none of that name."""

YEAR_MIN: Final = 1970
YEAR_MAX: Final = 2199
SECOND_US: Final = 1_000_000
EVERY_WEEKDAY: Final = 0b111_1111
_TEXT_MAX: Final = 2_000
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEEKDAY_NUMBERS: Final = {
    name: number for number, day in enumerate(_WEEKDAYS) for name in (day.lower(), day[:3].lower())
}
_SHORTHANDS: Final = {
    "minutely": "*-*-* *:*:00",
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    "quarterly": "*-01,04,07,10-01 00:00:00",
    **dict.fromkeys(("semiannually", "semi-annually", "biannually", "bi-annually"), "*-01,07-01 00:00:00"),
    **dict.fromkeys(("yearly", "annually", "anually"), "*-01-01 00:00:00"),
}
_SHAPE: Final = 'write text such as "Mon..Fri 08:00", "*-*-01 00:00", "*:0/15" or "daily"'


class BadCalendar(BadValue):
    """Text that is no calendar expression; ``position`` is the index of the character that is wrong."""

    def __init__(self, message: str, hint: str, position: int) -> None:
        super().__init__(message, hint)
        self.position = position


class Part(Struct, frozen=True, order=True):
    """The values ``first``, ``first + step`` and so on up to ``last``; without a step ``first`` alone, without a last
    one all that the field takes."""

    first: int
    last: int | None = None
    step: int = 0


class Calendar(Struct, frozen=True):
    """A calendar expression. A field without parts takes every value.

    ``weekdays`` are bits, Monday is the lowest. With ``from_end`` the days count from the end of the month: 1 is the
    last. ``second_us`` counts microseconds. ``zone`` is a name; "" is the zone of whoever asks.
    """

    weekdays: int = EVERY_WEEKDAY
    year: tuple[Part, ...] = ()
    month: tuple[Part, ...] = ()
    day: tuple[Part, ...] = ()
    hour: tuple[Part, ...] = ()
    minute: tuple[Part, ...] = ()
    second_us: tuple[Part, ...] = ()
    from_end: bool = False
    zone: str = ""


_Field = Literal["year", "month", "day", "hour", "minute", "second"]
_BOUNDS: Final[dict[_Field, tuple[int, int]]] = {
    "year": (YEAR_MIN, YEAR_MAX),
    "month": (1, 12),
    "day": (1, 31),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 60 * SECOND_US - 1),
}
_DAYS_FROM_END_MAX: Final = 28
EVERY_SECOND: Final = (Part(0, None, SECOND_US),)
"""What ``*`` means for seconds: every one, not every microsecond."""


def parse_calendar(text: str, zones: Zones) -> Calendar:
    """Read a calendar expression.

    Differs from systemd in one thing: an abbreviation of the local time zone (``CEST``) is refused, because it holds
    for one half of the year only (there such a timer stops for good when the clocks are set).

    Args:
        text: The expression, without blanks around it.
        zones: The time zones that an expression may name.

    Raises:
        BadCalendar: It is none.
    """
    if len(text) > _TEXT_MAX:
        raise BadCalendar(f"a text of {len(text)} characters is no calendar expression", _SHAPE, 0)
    rest, zone = _split_zone(text, zones)
    if rest.lower() in _SHORTHANDS:
        rest = _SHORTHANDS[rest.lower()]
    return _Reader(rest, text).calendar(zone)


def _split_zone(text: str, zones: Zones) -> tuple[str, str]:
    head, blank, name = text.rpartition(" ")
    if not blank or not name or not name[0].isalpha():
        return text, ""
    if name.upper() == "UTC":
        return head, "UTC"
    if zones(name) is not None:
        return head, name
    position = len(head) + 1
    if name.lower() in _SHORTHANDS or name.split("..")[0].split(",")[0].lower() in _WEEKDAY_NUMBERS:
        raise BadCalendar(f"{name!r} does not stand at the end", _SHAPE, position)
    if name.lower() in ("am", "pm"):
        raise BadCalendar(f"{name!r} is no time zone", 'hours count from 0 to 23: write "18:00" for 6 pm', position)
    near = next((meant for meant in (name.title(), name.upper()) if zones(meant) is not None), None)
    if near is not None:
        hint = f"did you mean {near!r}?"
    elif name.isupper():
        hint = 'an abbreviation holds for a half of the year only: write a name such as "Europe/Berlin", or UTC'
    else:
        hint = 'write a name of the time zone database such as "Europe/Berlin", or UTC'
    raise BadCalendar(f"there is no time zone {name!r}", hint, position)


_PART = re.compile(r"(?P<first>\d+)(?P<fraction>\.\d+)?", re.ASCII)
_CRON = re.compile(r"[\d*/,?A-Za-z-]+( [\d*/,?A-Za-z-]+){4,5}", re.ASCII)


class _Reader:
    """Reads an expression without its zone; ``place`` is how far it has come."""

    def __init__(self, text: str, whole: str) -> None:
        self.text = text
        self.whole = whole
        self.place = 0

    def calendar(self, zone: str) -> Calendar:
        if not self.text:
            self.refuse("the calendar expression is empty" if not self.whole else "only a time zone is named")
        weekdays = self.weekdays()
        if self.peek() == "@":
            return self.moment(weekdays)
        year, month, day, from_end = self.date()
        hour, minute, second = self.time()
        return Calendar(
            weekdays=weekdays,
            year=year,
            month=month,
            day=day,
            hour=hour,
            minute=minute,
            second_us=second,
            from_end=from_end,
            zone=zone,
        )

    def refuse(self, message: str, hint: str = "", place: int | None = None) -> NoReturn:
        place = self.place if place is None else place
        if _CRON.fullmatch(self.whole) is not None and any(mark in self.whole for mark in "0123456789*"):
            hint = 'this looks like cron: "30 4 * * 1" is "Mon 04:30" here, "*/5 * * * *" is "*:0/5"'
        where = f" (character {place + 1})" if place or len(self.whole) > 1 else ""
        raise BadCalendar(f"{message}{where}", hint or _SHAPE, min(place, len(self.whole)))

    def peek(self) -> str:
        """The next character; "" at the end."""
        return self.text[self.place : self.place + 1]

    def skip_blanks(self) -> None:
        while self.peek() == " ":
            self.place += 1

    # weekdays

    def weekdays(self) -> int:
        """Read ``Mon..Fri,Sun``; a comma may stand at the end. Without any weekday all are meant."""
        if not self.peek().isalpha():
            return EVERY_WEEKDAY
        bits = 0
        range_from: int | None = None
        while True:
            begin = self.place
            number = self.weekday()
            if range_from is not None and number < range_from:
                first, last = _WEEKDAYS[range_from][:3], _WEEKDAYS[number][:3]
                both = f"{first}..Sun,Mon..{last}" if number else f"{first}..Sun,Mon"
                self.refuse("a range of weekdays ends at Sunday", f'write "{both}"', begin)
            for day in range(number if range_from is None else range_from, number + 1):
                bits |= 1 << day
            if self.peek() in ("", " "):
                break
            was_range = range_from is not None
            range_from = None
            if self.text.startswith("..", self.place) or self.peek() == "-":
                if was_range:
                    self.refuse("a range of weekdays has two ends", 'write "Mon..Wed,Fri"')
                range_from = number
                self.place += 1 if self.peek() == "-" else 2
            elif self.peek() == ",":
                self.place += 1
                if self.peek() in ("", " "):
                    break
            else:
                self.refuse(f"{self.peek()!r} cannot stand after a weekday", 'write "Mon..Wed,Fri"')
        self.skip_blanks()
        return bits

    def weekday(self) -> int:
        end = self.place
        while end < len(self.text) and self.text[end].isalpha():
            end += 1
        word = self.text[self.place : end]
        number = _WEEKDAY_NUMBERS.get(word.lower())
        if number is None:
            near = get_close_matches(word.lower(), [*_WEEKDAY_NUMBERS, *_SHORTHANDS], 1)
            meant = near[0].title() if near and near[0] in _WEEKDAY_NUMBERS else near[0] if near else ""
            if not word:
                self.refuse("a weekday is missing", 'write "Mon..Wed,Fri"')
            self.refuse(
                f"{word!r} is neither a weekday nor a word such as daily", f"did you mean {meant!r}?" if meant else ""
            )
        self.place = end
        return number

    # dates

    def moment(self, weekdays: int) -> Calendar:
        """Read ``@SECONDS``, an instant: in UTC whatever zone is named."""
        self.place += 1
        begin = self.place
        digits = re.compile(r" *(\d+)", re.ASCII).match(self.text, self.place)
        if digits is None or digits.end() != len(self.text):
            self.refuse("@ is followed by whole seconds since 1970, and by nothing else", 'write "@1700000000"')
        if len(digits[1]) > 11:
            self.refuse(f"@{digits[1]} is after the year {YEAR_MAX}", place=begin)
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(digits[1]))
        if at.year > YEAR_MAX:
            self.refuse(f"@{digits[1]} is after the year {YEAR_MAX}", place=begin)
        parts = ((Part(value),) for value in (at.year, at.month, at.day, at.hour, at.minute, at.second * SECOND_US))
        year, month, day, hour, minute, second = parts
        return Calendar(weekdays, year, month, day, hour, minute, second, zone="UTC")

    def date(self) -> tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...], bool]:
        """Read ``Y-M-D``, ``M-D``, with ``~`` in place of the last ``-``; what is a time is left."""
        begin = self.place
        if self.peek() == "":
            return (), (), (), False
        fields = [self.field()]
        if self.peek() in ("", ":"):
            self.place = begin
            return (), (), (), False
        from_end = False
        while len(fields) < 3 and self.peek() in ("-", "~"):
            if from_end:
                self.refuse("~ stands before the day, the last part of a date", 'write "*-02~01" for its last day')
            from_end = self.peek() == "~"
            self.place += 1
            fields.append(self.field())
        if len(fields) == 1:
            self.refuse("a date has a month and a day, a time hours and minutes", 'write "*-*-05" or "05:00"', begin)
        if self.peek() == "T":
            self.refuse("a blank stands between date and time")
        if self.peek() not in ("", " "):
            self.refuse(f"{self.peek()!r} cannot stand here: a date is YEAR-MONTH-DAY")
        self.skip_blanks()
        year = self.checked("year", fields[0]) if len(fields) == 3 else ()
        month = self.checked("month", fields[-2])
        day = self.checked("day", fields[-1], from_end)
        return year, month, day, from_end and bool(day)

    def time(self) -> tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...]]:
        """Read ``H:M`` or ``H:M:S``; without any time midnight is meant."""
        if self.peek() == "":
            return (Part(0),), (Part(0),), (Part(0),)
        fields = [self.field()]
        if self.peek() != ":":
            what = (
                f"{self.text[fields[0].begin : self.place]!r} is no time" if self.place > fields[0].begin else "no time"
            )
            self.refuse(what, 'a time is HOUR:MINUTE or HOUR:MINUTE:SECOND, such as "12:00"')
        self.place += 1
        fields.append(self.field())
        if self.peek() == ":":
            self.place += 1
            fields.append(self.field(is_second=True))
        if self.peek() == " ":
            self.refuse("nothing but a time zone stands after the time", 'write "Mon *-*-01 12:00 Europe/Berlin"')
        if self.peek() in tuple("+-Zz"):
            self.refuse("a time zone is a name after a blank", 'write "12:00 UTC" or "12:00 Europe/Berlin"')
        if self.peek():
            self.refuse(f"{self.peek()!r} cannot stand in a time", 'write "12:00" or "12:00:30.5"')
        second = self.checked("second", fields[2]) if len(fields) == 3 else (Part(0),)
        return self.checked("hour", fields[0]), self.checked("minute", fields[1]), second

    # fields

    def field(self, is_second: bool = False) -> "_Raw":
        """Read ``*`` or a list of parts, whatever it will be a field of."""
        begin = self.place
        if self.peek() == "*":
            self.place += 1
            if self.peek() == "/":
                self.refuse("* takes no step", 'write "0/5" for every fifth (from 1 for months and days)')
            if self.peek() == ",":
                self.refuse("* takes everything, nothing can be added to it")
            return _Raw(begin, EVERY_SECOND if is_second else ())
        parts = [self.part(is_second)]
        while self.peek() == ",":
            self.place += 1
            parts.append(self.part(is_second))
        return _Raw(begin, tuple(parts))

    def part(self, is_second: bool) -> Part:
        begin = self.place
        first = self.number(is_second)
        last, step = None, 0
        if self.text.startswith("..", self.place):
            self.place += 2
            last = self.number(is_second)
            step = SECOND_US if is_second else 1
            if is_second and self.peek() != "/" and first <= last < first + step:
                self.refuse("a range of seconds is a second long at least", 'write a step: "0..0.9/0.1"', begin)
        if self.peek() == "/":
            self.place += 1
            begin_step = self.place
            step = self.number(is_second)
            if step == 0:
                self.refuse(
                    "a step is 1 at least" if not is_second else "a step is a microsecond at least", "", begin_step
                )
        return Part(first, last, step)

    def number(self, is_second: bool) -> int:
        match = _PART.match(self.text, self.place)
        if match is None:
            found = repr(self.peek()) if self.peek() else "the end"
            self.refuse(f"a number or * is missing before {found}")
        if len(match["first"]) > 18:
            self.refuse("the number is too large")
        if not is_second:
            self.place += len(match["first"])
            if self.peek() == "." and not self.text.startswith("..", self.place):
                self.refuse("only seconds have fractions", 'write "12:00:00.5"; a range is "1..5"')
            return int(match["first"])
        self.place = match.end()
        digits = (match["fraction"] or ".")[1:]
        usec = int(match["first"]) * SECOND_US + int(f"{digits[:6]:0<6}")
        # What is below a microsecond is rounded, as systemd does.
        return usec + (digits[6:7] >= "5")

    def checked(self, field: _Field, raw: "_Raw", from_end: bool = False) -> tuple[Part, ...]:
        """The parts of a field in normal form, all of them within its bounds."""
        low, high = _BOUNDS[field]
        if from_end:
            high = _DAYS_FROM_END_MAX
        unit = SECOND_US if field == "second" else 1
        normal: set[Part] = set()
        for read in raw.parts:
            part = _normal(_with_century(read) if field == "year" else read)
            first, last, step = part.first, part.last, part.step
            for value in (first, last):
                if value is not None and not low <= value <= high:
                    hint = f"{field}s are {low // unit} to {high // unit}"
                    if from_end:
                        hint = f"counted from the end of the month the days are {low} to {high}; ~1 is the last"
                    self.refuse(f"{_shown(value, unit)} is no {field}", hint, raw.begin)
            if last is not None and last < first:
                turned = f"{_shown(first, unit)}..{high // unit},{low // unit}..{_shown(last, unit)}"
                self.refuse("a range goes up", "" if field == "year" else f'write "{turned}"', raw.begin)
            if step and last is None and step > (first - low if from_end else high - first):
                what = f"a step of {_shown(step, unit)} from {_shown(first, unit)} leads beyond the {field}s there are"
                self.refuse(what, f"write {_shown(first, unit)} alone", raw.begin)
            normal.add(part)
        if EVERY_SECOND[0] in normal and not any(part.first % unit or part.step % unit for part in normal):
            return EVERY_SECOND
        return tuple(sorted(normal, key=lambda part: (part.first, -1 if part.last is None else part.last, part.step)))


class _Raw(Struct, frozen=True):
    """A field as it was read, and where it began."""

    begin: int
    parts: tuple[Part, ...]


def _with_century(part: Part) -> Part:
    """Years of two digits: 70 to 99 were, 0 to 69 will be."""

    def year(number: int) -> int:
        return number + (2000 if number < 70 else 1900 if number < 100 else 0)

    return Part(year(part.first), None if part.last is None else year(part.last), part.step)


def _normal(part: Part) -> Part:
    """End a range at the last value that its steps reach; a range of one value is that value."""
    if part.last is None or part.last < part.first:
        return part
    last = part.last - (part.last - part.first) % part.step
    return Part(part.first) if last == part.first else Part(part.first, last, part.step)


def _shown(value: int, unit: int, width: int = 1) -> str:
    whole, below = divmod(value, unit)
    return f"{whole:0{width}}" + (f".{below:06}" if below else "")


def format_calendar(calendar: Calendar) -> str:
    """Write the normal form; ``parse_calendar`` reads it back."""
    words = [] if calendar.weekdays == EVERY_WEEKDAY else [_format_weekdays(calendar.weekdays)]
    year, month, day = _format_field(calendar.year), _format_field(calendar.month), _format_field(calendar.day)
    words.append(f"{year}-{month}{'~' if calendar.from_end else '-'}{day}")
    hour, minute = _format_field(calendar.hour), _format_field(calendar.minute)
    words.append(f"{hour}:{minute}:{_format_field(calendar.second_us, SECOND_US)}")
    return " ".join([*words, calendar.zone]) if calendar.zone else " ".join(words)


def _format_weekdays(bits: int) -> str:
    """Three days and more in a row are a range."""
    groups: list[str] = []
    first = 0
    while first < 7:
        last = first
        while bits >> last & 1:
            last += 1
        names = [day[:3] for day in _WEEKDAYS[first:last]]
        groups += [f"{names[0]}..{names[-1]}"] if len(names) > 2 else names
        first = last + 1
    return ",".join(groups)


def _format_field(parts: tuple[Part, ...], unit: int = 1) -> str:
    if not parts or (unit == SECOND_US and parts == EVERY_SECOND):
        return "*"
    texts: list[str] = []
    for part in parts:
        text = _shown(part.first, unit, 2)
        if part.last is not None:
            text += f"..{_shown(part.last, unit, 2)}"
        if part.step and (part.last is None or part.step != unit):
            text += f"/{_shown(part.step, unit)}"
        texts.append(text)
    return ",".join(texts)

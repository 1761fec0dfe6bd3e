"""Configurations that are trees (TOML, YAML, JSON): values with their places, and how their keys are gone through."""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from supervisord_py.convert.draft import Ledger, Place
from supervisord_py.convert.text_forms import truth
from supervisord_py.model.problems import BadValue
from supervisord_py.model.values import SECOND_NS, parse_timespan

Path = tuple[str | int, ...]
Lines = Mapping[Path, int]


class Item(Struct, frozen=True):
    """A value and where it stands; each reader of it raises ``BadValue`` when it is something else."""

    value: Any
    path: Path
    file: str
    lines: Lines

    @property
    def place(self) -> Place:
        path = self.path
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path, 0)
        return Place(self.file, line, ".".join(str(step) for step in self.path))

    def below(self, key: str | int) -> "Item":
        return Item(self.value[key], (*self.path, key), self.file, self.lines)

    def text(self) -> str:
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float):
            raise BadValue("no text")
        text = str(self.value)
        if "\0" in text:
            raise BadValue("a text with a NUL character")
        return text

    def boolean(self) -> bool:
        found = self.value if isinstance(self.value, bool) else truth(str(self.value))
        if not isinstance(found, bool):
            raise BadValue("neither true nor false")
        return found

    def integer(self) -> int:
        if isinstance(self.value, bool):
            raise BadValue("no whole number")
        try:
            return int(self.value)
        except (TypeError, ValueError, OverflowError):
            raise BadValue("no whole number") from None

    def number(self) -> float:
        try:
            found = float(self.value)
        except (TypeError, ValueError, OverflowError):
            raise BadValue("no number") from None
        if isinstance(self.value, bool) or not 0 <= found < 1e12:
            raise BadValue("no number that is a time")
        return found

    def words(self) -> list[str]:
        """A list of texts, or one text split as a shell splits it."""
        if isinstance(self.value, list):
            return [self.below(index).text() for index in range(len(self.value))]
        try:
            return shlex.split(self.text())
        except ValueError as error:
            raise BadValue(f"no command: {str(error).lower()}") from None

    def texts(self) -> list[str]:
        """A list of texts, or one text."""
        return self.words() if isinstance(self.value, list) else [self.text()]

    def mapping(self) -> dict[str, "Item"]:
        if not isinstance(self.value, dict):
            raise BadValue("no table of keys")
        return {str(key): self.below(key) for key in self.value}

    def pairs(self) -> dict[str, str]:
        """Variables, as a mapping or as a list of ``NAME=VALUE``."""
        if isinstance(self.value, list):
            found = [text.partition("=") for text in self.words()]
            return {name: value for name, equals, value in found if equals}
        pairs: dict[str, str] = {}
        for name, item in self.mapping().items():
            if isinstance(item.value, bool):
                pairs[name] = "true" if item.value else "false"
            elif item.value is not None:
                pairs[name] = item.text()
        return pairs


Reader = Callable[[Item], str | None]
"""Carries a key over. Returns the reason why there was nothing to do, if so; raises ``BadValue`` when it cannot."""

UNKNOWN = "it is not known there either, or it is new"


def go_through(
    items: Mapping[str, Item],
    readers: Mapping[str, Reader],
    ledger: Ledger,
    *,
    needless: Mapping[str, str] | None = None,
    lost: Mapping[str, str] | None = None,
) -> None:
    """Go through the keys of a table, each to its reader or to the reason why it has none."""
    for name, item in items.items():
        reader = readers.get(name)
        try:
            if reader is not None:
                reason = reader(item)
                if reason:
                    ledger.needless(item.place, reason)
                else:
                    ledger.carried(item.place)
            elif needless is not None and name in needless:
                ledger.needless(item.place, needless[name])
            else:
                ledger.lost(item.place, (lost or {}).get(name, UNKNOWN))
        except BadValue as bad:
            ledger.lost(item.place, bad.message)


def span_seconds(text: str) -> float:
    """A time span as Rust's humantime and Go write it, in seconds.

    Raises:
        BadValue: It is none.
    """
    spelled = re.sub(r"(?<=\d)\s*(millis|milliseconds?|msecs?)\b", "ms", text.strip())
    found = parse_timespan(spelled)
    if found is None:
        raise BadValue("a time span without end")
    return found / SECOND_NS


_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NICKNAMES = {
    "@yearly": "yearly", "@annually": "yearly", "@monthly": "monthly", "@weekly": "Sun *-*-* 00:00:00",
    "@daily": "daily", "@midnight": "daily", "@hourly": "hourly",
}  # fmt: skip


def cron_calendar(text: str) -> str:
    """A line of cron as a calendar expression.

    Raises:
        BadValue: It is none, or says day and weekday both, of which cron takes either.
    """
    if text.strip() in _NICKNAMES:
        return _NICKNAMES[text.strip()]
    fields = text.split()
    second = "00"
    if len(fields) == 6:
        second = _cron_field(fields.pop(0), 0, 59)
    if len(fields) != 5:
        raise BadValue("no line of cron with five or six fields")
    minute, hour, day, month, weekday = (
        _cron_field(_named(field, name), low, high) for field, (name, low, high) in zip(fields, _FIELDS, strict=True)
    )
    if day != "*" and weekday != "*":
        raise BadValue("cron takes the day or the weekday, a calendar expression both: write two on-calendar")
    days = ""
    if weekday != "*":
        if "/" in weekday:
            raise BadValue("steps of weekdays are not had in calendar expressions")
        days = re.sub(r"\d+", lambda match: _DAYS[int(match[0])], weekday) + " "
    return f"{days}*-{month}-{day} {hour}:{minute}:{second}"


def _named(field: str, name: str) -> str:
    lowered = field.lower()
    if name == "month":
        return re.sub("|".join(_MONTHS), lambda match: str(_MONTHS.index(match[0]) + 1), lowered)
    if name == "weekday":
        known = [day.lower() for day in _DAYS[:7]]
        return re.sub("|".join(known), lambda match: str(known.index(match[0])), lowered)
    return field


def _cron_field(field: str, low: int, high: int) -> str:
    parts: list[str] = []
    for part in field.split(","):
        match = re.fullmatch(r"(?:(\*)|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", part)
        if match is None:
            raise BadValue(f"{part!r} is no field of cron")
        star, first, last, step = match.groups()
        if any(number is not None and not low <= int(number) <= high for number in (first, last)):
            raise BadValue(f"{part!r} is out of its range")
        begin = "*" if star else first + (f"..{last}" if last else "")
        if step is None or (star and step == "1"):
            parts.append(begin)
        elif star:
            parts.append(f"{low}/{step}")
        else:
            parts.append(f"{first}..{last or high}/{step}")
    return ",".join(parts)

"""Values of unit files: time spans, sizes, signals, modes, limits. Text in, integers out, and back.

Every ``parse_`` raises ``BadValue`` with a message for people. The rules are systemd's (its parsers were asked:
``tests/data``); where ours differ, the docstring says so. Source: systemd src/basic/time-util.c, parse-util.c,
signal-util.c, rlimit-util.c; systemd.syntax(7), systemd.time(7).
"""

import re
from difflib import get_close_matches
from typing import Final, Literal

from supervisord_py.model.log import Rate
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import Limit

MICROSECOND_NS: Final = 1_000
SECOND_NS: Final = 1_000_000_000
_SECOND_US: Final = 1_000_000
_USEC_INFINITY: Final = 2**64 - 1
_SIZE_MAX: Final = 2**63 - 1
_TEXT_MAX: Final = 200
_BLANKS: Final = " \t\n\r"

_MONTH_US = 2_629_800 * _SECOND_US
_YEAR_US = 31_557_600 * _SECOND_US
_UNITS_US: Final[dict[str, int]] = {
    **dict.fromkeys(("seconds", "second", "sec", "s"), _SECOND_US),
    **dict.fromkeys(("minutes", "minute", "min", "m"), 60 * _SECOND_US),
    **dict.fromkeys(("months", "month", "M"), _MONTH_US),
    **dict.fromkeys(("msec", "ms"), 1_000),
    **dict.fromkeys(("hours", "hour", "hr", "h"), 3_600 * _SECOND_US),
    **dict.fromkeys(("days", "day", "d"), 86_400 * _SECOND_US),
    **dict.fromkeys(("weeks", "week", "w"), 604_800 * _SECOND_US),
    **dict.fromkeys(("years", "year", "y"), _YEAR_US),
    **dict.fromkeys(("usec", "us", "μs", "µs"), 1),
}
_UNIT = "|".join(sorted(_UNITS_US, key=len, reverse=True))
# A number, then a unit, then anything; a number without a unit must be followed by a blank or the end ("12.34.56" is no
# time span).
_SPAN = re.compile(
    rf"[{_BLANKS}]*(?P<whole>\+?\d+)?(?P<fraction>\.\d+)?(?:[{_BLANKS}]*(?P<unit>{_UNIT})|(?=[{_BLANKS}]|$))", re.ASCII
)
_FORMAT_US: Final = (
    ("y", _YEAR_US), ("month", _MONTH_US), ("w", 604_800 * _SECOND_US), ("d", 86_400 * _SECOND_US), ("h", 3_600 *
    _SECOND_US), ("min", 60 * _SECOND_US), ("s", _SECOND_US), ("ms", 1_000), ("us", 1),
)  # fmt: skip


def parse_timespan(value: object) -> int | None:
    """Read a time span: text such as ``"1min 30s"``, or a number of seconds.

    Returns:
        Nanoseconds (whole microseconds, as systemd counts), or None for ``"infinity"``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadValue(f"{shown(value)} is not a time span", 'write a number of seconds or text such as "1min 30s"')
    if isinstance(value, str):
        usec = _parse_span_us(value, _SECOND_US)
        return None if usec is None else usec * MICROSECOND_NS
    if value != value or value < 0:
        raise BadValue("a time span is not negative", 'for "never" write "infinity"')
    if value == float("inf"):
        return None
    if value >= _USEC_INFINITY // _SECOND_US:
        raise BadValue(f"{value} seconds are too long", 'for "never" write "infinity"')
    return int(value * _SECOND_US) * MICROSECOND_NS


def parse_timeout(value: object) -> int | None:
    """Read a time-out: as ``parse_timespan``, and 0 is infinity too (systemd's rule for TimeoutStartSec= and its
    kin)."""
    return parse_timespan(value) or None


def _parse_span_us(text: str, default_us: int) -> int | None:
    if text.strip(_BLANKS) == "infinity":
        return None
    _refuse_long(text)
    total, position, end = 0, 0, len(text.rstrip(_BLANKS))
    if end == 0:
        raise BadValue("the time span is empty", 'write text such as "90s", or "infinity"')
    while position < end:
        match = _SPAN.match(text, position, end)
        if match is None or (match["whole"] is None and match["fraction"] is None):
            raise BadValue(
                f"{text!r} is not a time span",
                'write text such as "1min 30s"; units are us ms s min h d w month y, a number alone is seconds',
            )
        unit_us = _UNITS_US[match["unit"]] if match["unit"] else default_us
        whole = int(match["whole"] or 0)
        total += whole * unit_us
        for digit in (match["fraction"] or "")[1:]:
            # Digit by digit, as systemd does: what is below a microsecond is cut, not rounded.
            total += int(digit) * (unit_us := unit_us // 10)
        if total >= _USEC_INFINITY or whole >= _USEC_INFINITY // (
            _UNITS_US[match["unit"]] if match["unit"] else default_us
        ):
            raise BadValue(f"{text!r} is too long a time span", 'for "never" write "infinity"')
        position = match.end()
    return total


def format_timespan(ns: int | None) -> str:
    """Write a time span as systemd does (``1min 30s``, ``2.500000s`` is ``2.5s`` here); what is below a microsecond is
    dropped."""
    if ns is None:
        return "infinity"
    rest = ns // MICROSECOND_NS
    if rest <= 0:
        return "0"
    parts: list[str] = []
    for suffix, unit_us in _FORMAT_US:
        if rest < unit_us:
            continue
        whole, below = divmod(rest, unit_us)
        if rest < 60 * _SECOND_US and below:
            digits = f"{below:0{len(str(unit_us)) - 1}}".rstrip("0")
            parts.append(f"{whole}.{digits}{suffix}")
            break
        parts.append(f"{whole}{suffix}")
        rest = below
        if not rest:
            break
    return " ".join(parts)


_SIZE_SUFFIXES: Final = "EPTGMKB"
_SIZE = re.compile(rf"[{_BLANKS}]*(\d+)(?:\.(\d*))?[{_BLANKS}]*(?:([EPTGMK])(?:i?B)?|(B))?", re.ASCII)


def parse_size(value: object) -> int:
    """Read a size: text such as ``"512M"``, or a number of bytes. Suffixes are powers of 1024.

    ``"50MB"`` and ``"50MiB"`` are ``"50M"`` (systemd refuses both); several parts add up, from large to small.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadValue(f"{shown(value)} is not a size", 'write a number of bytes or text such as "512M"')
    total = value if isinstance(value, int) else _parse_size_text(value)
    if total < 0:
        raise BadValue("a size is not negative")
    if total > _SIZE_MAX:
        raise BadValue(f"{value} is too large a size", "the largest is 8E less one byte")
    return total


def _parse_size_text(text: str) -> int:
    _refuse_long(text)
    total, position, smallest = 0, 0, -1
    while position < len(text) or position == 0:
        match = _SIZE.match(text, position)
        rank = _SIZE_SUFFIXES.index(match[3] or match[4]) if match and (match[3] or match[4]) else len(_SIZE_SUFFIXES)
        if match is None or rank <= smallest:
            raise BadValue(
                f"{text!r} is not a size", 'write text such as "512M"; suffixes are K M G T P E (powers of 1024)'
            )
        factor = 1024 ** max(len(_SIZE_SUFFIXES) - 1 - rank, 0)
        total += int(match[1]) * factor
        if match[2]:
            total += int(match[2]) * factor // 10 ** len(match[2])
        position, smallest = match.end(), rank
    return total


def format_size(size: int) -> str:
    """Write a size with the largest suffix that leaves a whole number; ``parse_size`` reads it back."""
    for power, suffix in ((6, "E"), (5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{suffix}"
    return str(size)


SIGNALS: Final[dict[str, int]] = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV":
    11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20,
    "TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "PWR":
    30, "SYS": 31,
}  # fmt: skip
"""Numbers of the signals on Linux, all architectures but alpha, mips, parisc and sparc."""

_SIGNAL_NAMES: Final = {number: name for name, number in SIGNALS.items()}
_RTMIN: Final = 34
_RTMAX: Final = 64
_REALTIME = re.compile(r"RTMIN(?:\+(\d+))?|RTMAX(?:-(\d+))?", re.ASCII)


def parse_signal(value: object) -> int:
    """Read a signal: ``"SIGTERM"``, ``"TERM"``, ``"SIGRTMIN+3"``, or its number (as text too)."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadValue(f"{shown(value)} is not a signal", 'write a name such as "SIGTERM", or its number')
    if isinstance(value, str):
        _refuse_long(value)
    if isinstance(value, int) or (value.isascii() and value.isdigit()):
        number = int(value)
        if not 1 <= number <= _RTMAX:
            raise BadValue(f"there is no signal {number}", f"signals are 1 to {_RTMAX}")
        return number
    name = value.removeprefix("SIG")
    if name in SIGNALS:
        return SIGNALS[name]
    match = _REALTIME.fullmatch(name)
    if match is not None:
        number = _RTMIN + int(match[1] or 0) if name.startswith("RTMIN") else _RTMAX - int(match[2] or 0)
        if _RTMIN <= number <= _RTMAX:
            return number
    near = get_close_matches(name.upper().removeprefix("SIG"), SIGNALS, 1)
    raise BadValue(
        f"there is no signal {value!r}",
        f"did you mean {'SIG' + near[0]!r}?" if near else 'write a name such as "SIGTERM", or its number',
    )


def format_signal(number: int) -> str:
    """The signal's name, ``SIGTERM`` or ``SIGRTMIN+3``; its number where it has none."""
    if number in _SIGNAL_NAMES:
        return f"SIG{_SIGNAL_NAMES[number]}"
    if _RTMIN <= number <= _RTMAX:
        return f"SIGRTMIN+{number - _RTMIN}" if number > _RTMIN else "SIGRTMIN"
    return str(number)


_MODE = re.compile(r"[0-7]+", re.ASCII)


def parse_mode(value: object) -> int:
    """Read a mode: text in octal. An integer is refused, because ``0755`` is none in TOML and ``755`` is not what is
    meant."""
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
        meant = f'"0{text}"' if _MODE.fullmatch(text) else '"0755"'
        raise BadValue("a mode is written as text", f"write {meant}, in quotes: an integer would be read as decimal")
    if isinstance(value, str):
        _refuse_long(value)
    if not isinstance(value, str) or _MODE.fullmatch(value) is None or int(value, 8) > 0o7777:
        raise BadValue(f"{shown(value)} is not a mode", 'write octal digits in quotes, such as "0755"')
    return int(value, 8)


def format_mode(mode: int) -> str:
    return f"{mode:04o}"


_BOOLEAN_WORDS: Final = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "on"), "true"),
    **dict.fromkeys(("0", "no", "n", "false", "f", "off"), "false"),
}


def parse_boolean(value: object) -> bool:
    """Take TOML's ``true`` and ``false``; systemd's words for them are refused with the literal to write."""
    if isinstance(value, bool):
        return value
    meant = _BOOLEAN_WORDS.get(str(value).lower()) if isinstance(value, str | int) else None
    raise BadValue(
        f"{shown(value)} is not a boolean", f"write {meant}, without quotes" if meant else "write true or false"
    )


def parse_integer(value: object, minimum: int | None = None, maximum: int | None = None) -> int:
    """Take an integer within its bounds (both inclusive)."""
    if isinstance(value, bool) or not isinstance(value, int):
        quoted = isinstance(value, str) and value.strip().lstrip("+-").isdecimal()
        raise BadValue(f"{shown(value)} is not an integer", "write the number without quotes" if quoted else "")
    if minimum is not None and value < minimum:
        raise BadValue(f"{value} is too small", f"the smallest is {minimum}")
    if maximum is not None and value > maximum:
        raise BadValue(f"{value} is too large", f"the largest is {maximum}")
    return value


def parse_fraction(value: object) -> float:
    """Take a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadValue(f"{shown(value)} is not a fraction", "write a number from 0 to 1, such as 0.1")
    return float(value)


LimitUnit = Literal["count", "bytes", "seconds", "microseconds"]


_RATE = re.compile(rf"[{_BLANKS}]*(\d{{1,9}})[{_BLANKS}]*/[{_BLANKS}]*(\d*)[{_BLANKS}]*({_UNIT})[{_BLANKS}]*", re.ASCII)


def parse_rate(value: object) -> Rate:
    """Read a rate: ``"1000/s"``, ``"30/min"``, ``"5/10s"``."""
    match = _RATE.fullmatch(value) if isinstance(value, str) and len(value) <= _TEXT_MAX else None
    if match is None:
        raise BadValue(f"{shown(value)} is not a rate", 'write text such as "1000/s" or "30/min"')
    count, spans = int(match[1]), int(match[2] or 1)
    if not count or not spans:
        raise BadValue(f"{value!r} lets nothing through", "write a number from 1")
    span_ns = spans * _UNITS_US[match[3]] * MICROSECOND_NS
    if span_ns > _RATE_SPAN_MAX_NS:
        raise BadValue(f"{value!r} is too slow a rate", "the longest time is a day")
    return Rate(count, span_ns)


_RATE_SPAN_MAX_NS: Final = 86_400 * SECOND_NS


def format_rate(rate: Rate) -> str:
    """Write a rate as ``parse_rate`` reads it, in the largest unit that fits."""
    span_us = rate.span_ns // MICROSECOND_NS
    for unit, unit_us in _FORMAT_US:
        if span_us % unit_us == 0:
            spans = span_us // unit_us
            return f"{rate.count}/{'' if spans == 1 else spans}{unit}"
    raise AssertionError(f"internal error: a rate of no whole microseconds: {rate}")


def parse_limit(value: object, unit: LimitUnit) -> Limit:
    """Read a resource limit: one value for both, or ``"soft:hard"``; each may be ``"infinity"``.

    Args:
        value: What the file says.
        unit: Counts are plain numbers, bytes are sizes; seconds and microseconds are time spans whose bare number is in
            that
            unit. What is between two seconds is rounded up.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise BadValue("a limit is not negative", 'for no limit write "infinity"')
        both = _parse_limit_part(str(value), unit)
        return Limit(both, both)
    if not isinstance(value, str):
        raise BadValue(f"{shown(value)} is not a limit", 'write a number, "infinity" or "soft:hard"')
    _refuse_long(value)
    parts = value.split(":")
    if len(parts) > 2:
        raise BadValue(f"{value!r} is not a limit", 'write one value or "soft:hard"')
    soft = _parse_limit_part(parts[0], unit)
    hard = _parse_limit_part(parts[-1], unit)
    if hard is not None and (soft is None or soft > hard):
        raise BadValue(f"{value!r}: the soft limit is above the hard one", 'write "soft:hard", the smaller one first')
    return Limit(soft, hard)


def _parse_limit_part(text: str, unit: LimitUnit) -> int | None:
    if text == "infinity":
        return None
    if text in ("unlimited", "-1"):
        raise BadValue(f"{text!r} is not a limit", 'for no limit write "infinity"')
    match unit:
        case "bytes":
            return parse_size(text)
        case "seconds":
            usec = _parse_span_us(text, _SECOND_US)
            return None if usec is None else -(-usec // _SECOND_US)
        case "microseconds":
            return _parse_span_us(text, 1)
        case "count":
            if not (text.isascii() and text.isdigit()) or int(text) >= _USEC_INFINITY:
                raise BadValue(f"{text!r} is not a count", 'write a whole number or "infinity"')
            return int(text)


def _refuse_long(text: str) -> None:
    """Python refuses to read numbers of thousands of digits, with an error that is not for people."""
    if len(text) > _TEXT_MAX:
        raise BadValue(f"a text of {len(text)} characters is no such value")


def shown(value: object) -> str:
    """A value as the file would have it, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."

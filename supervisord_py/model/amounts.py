"""Bounds as ``[limits]`` has them: sizes, counts, shares of the machine, percentages of a processor.

Source: systemd.resource-control(5), MemoryMax=, CPUQuota=, TasksMax=.
"""

import re

from supervisord_py.model.context import Amount
from supervisord_py.model.digits import parse_digits
from supervisord_py.model.problems import BadValue
from supervisord_py.model.values import format_size, parse_integer, parse_size, shown

_PERCENT = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,2}))?%", re.ASCII)
_WHOLE = 10_000

_LEAST_QUOTA = 10
"""A millisecond in each second: the kernel takes no quota below the one, and no period above the other."""


def parse_size_amount(value: object) -> Amount:
    """Read ``"512M"``, ``"50%"`` of the machine's memory, or ``"infinity"``."""
    return _amount(value) or Amount(parse_size(value))


def parse_count_amount(value: object) -> Amount:
    """Read a number, ``"50%"`` of what the kernel allows, or ``"infinity"``."""
    if isinstance(value, str) and (number := parse_digits(value)) is not None:
        value = number
    return _amount(value) or Amount(parse_integer(value, 1, 2**31 - 1))


def parse_percent(value: object) -> int | None:
    """Read a percentage of one processor, ``"150%"`` for one and a half; hundredths of a percent, None: no bound."""
    if value == "infinity":
        return None
    found = _permyriad(value)
    if found is None:
        raise BadValue(f"{shown(value)} is not a percentage", 'write "50%", or "200%" for two processors')
    if found < _LEAST_QUOTA:
        raise BadValue(f"{shown(value)} is less than the kernel can hold", "write at least 0.1%")
    return found


def _amount(value: object) -> Amount | None:
    if value == "infinity":
        return Amount()
    found = _permyriad(value)
    if found is not None and not 0 < found <= _WHOLE:
        raise BadValue(f"{shown(value)} is not a share", "write a percentage from 0.01% to 100%")
    return None if found is None else Amount(permyriad=found)


def _permyriad(value: object) -> int | None:
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    return None if match is None else int(match[1]) * 100 + int((match[2] or "0").ljust(2, "0"))


def format_percent(permyriad: int) -> str:
    """Write ``12.5%``."""
    whole, rest = divmod(permyriad, 100)
    return f"{whole}.{rest:02}".rstrip("0").rstrip(".") + "%"


def format_amount(amount: Amount, *, is_size: bool) -> str:
    """Write a bound as a unit file has it."""
    if amount.permyriad is not None:
        return format_percent(amount.permyriad)
    if amount.count is None:
        return "infinity"
    return format_size(amount.count) if is_size else str(amount.count)

"""System calls by name: their numbers and groups, and filters as units write them.

A filter is read as systemd reads it: the first entry decides whether it lists what is allowed or, with ``~``, what is
refused; a later entry of the other kind takes back. What lists what is allowed always holds ``@default``: without those
no program starts. Source: systemd.exec(5), SystemCallFilter; systemd src/shared/seccomp-util.c
(seccomp_parse_syscall_filter); the tables: ``model.system_call_data``.
"""

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache

from msgspec import Struct

from supervisord_py.model.digits import parse_digits
from supervisord_py.model.problems import BadValue
from supervisord_py.model.system_call_data import ARCHITECTURES, GROUPS, NUMBERS

KILL = -1
"""In the place of an errno: the process dies by SIGSYS."""


class CallFilter(Struct, frozen=True):
    """``system-call-filter``. ``calls`` are those listed, by name, each with the errno of its own that a refused one
    gives (``KILL``, or None: that of the filter); with ``allows`` all others are refused, else these are. One that is
    listed as allowed and has an errno of its own is refused all the same."""

    allows: bool
    calls: tuple[tuple[str, int | None], ...]


@lru_cache(maxsize=1)
def numbers() -> dict[str, dict[str, int]]:
    """Return the numbers of all calls: architecture to name to number."""
    tables: dict[str, dict[str, int]] = {architecture: {} for architecture in ARCHITECTURES}
    for row in NUMBERS.split():
        name, *found = row.split("/")
        for architecture, number in zip(ARCHITECTURES, found, strict=True):
            if number:
                tables[architecture][name] = int(number)
    return tables


@lru_cache(maxsize=1)
def call_names() -> frozenset[str]:
    """Return all calls that any architecture has."""
    return frozenset(row.partition("/")[0] for row in NUMBERS.split())


@lru_cache(maxsize=1)
def groups() -> dict[str, tuple[str, ...]]:
    """Return the groups with their members, groups among them."""
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for word in GROUPS.split():
        if word.endswith(":"):
            name = word[:-1]
            found[name] = ()
        else:
            found[name] = (*found[name], word)
    return found


def members(name: str) -> list[str]:
    """Return the calls of a group, or the call itself; raises BadValue for a group that there is not."""
    if not name.startswith("@"):
        return [name]
    if name not in groups():
        near = get_close_matches(name, groups(), 1)
        hint = f"did you mean {near[0]}?" if near else f"the groups are {', '.join(groups())}"
        raise BadValue(f"there is no group {name!r} of system calls", hint)
    return list(dict.fromkeys(call for each in groups()[name] for call in members(each)))


def parse_errno(text: str) -> int:
    """Read ``EPERM``, a number, or ``kill``; raises BadValue."""
    if text == "kill":
        return KILL
    if (digits := parse_digits(text)) is not None and digits <= 4095:
        return digits
    number = getattr(errno, text, None)
    if not isinstance(number, int) or text not in errno.errorcode.values():
        near = get_close_matches(text.upper(), errno.errorcode.values(), 1)
        hint = f"did you mean {near[0]}?" if near else "write EPERM, or kill"
        raise BadValue(f"{text[:60]!r} is not an error number", hint)
    return number


def parse_call_filter(lines: Iterable[str]) -> tuple[CallFilter | None, list[str]]:
    """Read ``system-call-filter``.

    Args:
        lines: Each holds names divided by blanks, ``@GROUP`` and ``NAME:ERRNO`` among them, with ``~`` in front of the
            first where the calls are refused.

    Returns:
        The filter, None when there is none; and the names written that nobody knows: the kernel of tomorrow may.

    Raises:
        BadValue: A group or an errno that there is not.
    """
    allows: bool | None = None
    calls: dict[str, int | None] = {}
    unknown: list[str] = []
    for line in lines:
        inverts = line.startswith("~")
        if allows is None:
            allows = not inverts
            calls = dict.fromkeys(members("@default")) if allows else {}
        for word in line.removeprefix("~").split():
            name, colon, error = word.partition(":")
            number = parse_errno(error) if colon else None
            for call in members(name):
                if call not in call_names():
                    # A group holds the calls of machines that are not known here, too; nobody can mend that.
                    unknown += [call] if call == name else []
                elif inverts is not allows or (inverts and number is not None):
                    calls[call] = number
                else:
                    calls.pop(call, None)
    return None if allows is None else CallFilter(allows, tuple(sorted(calls.items()))), unknown

"""Filters of system calls, from rules to the bytes that the kernel runs.

A program loads the architecture, then the number of the call, finds by halving the range of numbers it is in, and does
what holds for that range: return an action, or try clauses on the arguments. Only the lower half of an argument is
looked at: all that rules are about (flags, modes, protections, families) is in there, and the kernel itself takes no
more of them. Jumps on a condition reach 255 instructions, so each is over a ``JA``, which reaches everything.

Source: linux/filter.h, linux/seccomp.h, linux/audit.h; Documentation/userspace-api/seccomp_filter.rst.
"""

import struct
from collections.abc import Mapping, Sequence

from msgspec import Struct

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

AUDIT_ARCHITECTURES = {"x86-64": 0xC000003E, "x86": 0x40000003, "arm64": 0xC00000B7, "arm": 0x40000028}
X32_BIT = 0x40000000
"""Calls of the ABI x32 have the architecture of x86-64 and this bit in their number."""

INSTRUCTIONS_MAX = 4096
FULL = 0xFFFFFFFF

_LOAD, _AND = 0x20, 0x54
_JUMP, _IF_EQUAL, _IF_AT_LEAST = 0x05, 0x15, 0x35
_RETURN = 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]
Code = list[Instruction]


def errno_action(number: int) -> int:
    """Return the action that lets a call fail with this errno."""
    return _ERRNO | number


class Look(Struct, frozen=True):
    """Whether ``argument & mask`` equals ``value``, or with ``differs`` whether it does not."""

    argument: int
    mask: int
    value: int
    differs: bool = False


class Clause(Struct, frozen=True):
    """The action when all tests hold."""

    looks: tuple[Look, ...]
    action: int


class Rule(Struct, frozen=True):
    """What holds for a call: the first clause that does, else ``action``."""

    action: int
    clauses: tuple[Clause, ...] = ()


class Part(Struct, frozen=True):
    """The rules of one architecture; ``default`` is for calls without one, ``x32`` for those of that ABI."""

    rules: Mapping[int, Rule]
    default: Rule
    x32: int = ALLOW


def _return(action: int) -> Code:
    return [(_RETURN, 0, 0, action)]


def _clause(clause: Clause) -> Code:
    """Return its code; it goes on behind it where the clause does not hold."""
    code = _return(clause.action)
    for look in reversed(clause.looks):
        load = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * look.argument)]
        masked = [] if look.mask == FULL else [(_AND, 0, 0, look.mask)]
        over = len(code)
        jump = (_IF_EQUAL, over, 0, look.value) if look.differs else (_IF_EQUAL, 0, over, look.value)
        code = [*load, *masked, jump, *code]
    return code


def _rule(rule: Rule) -> Code:
    code: Code = []
    for clause in rule.clauses:
        code += _clause(clause)
    return code + _return(rule.action)


def _either(condition: int, value: int, yes: Code, no: Code) -> Code:
    return [(condition, 1, 0, value), (_JUMP, 0, 0, len(yes)), *yes, *no]


def _tree(ranges: Sequence[tuple[int, Rule]]) -> Code:
    """Return the code for ranges of numbers, given by their first number, ascending."""
    if len(ranges) == 1:
        return _rule(ranges[0][1])
    middle = len(ranges) // 2
    return _either(_IF_AT_LEAST, ranges[middle][0], _tree(ranges[middle:]), _tree(ranges[:middle]))


def _part(part: Part) -> Code:
    ranges: list[tuple[int, Rule]] = [(0, part.rules.get(0, part.default))]
    for number in sorted({0, *part.rules, *(number + 1 for number in part.rules)} - {0}):
        rule = part.rules.get(number, part.default)
        if rule != ranges[-1][1]:
            ranges.append((number, rule))
    code = _tree(ranges)
    if part.x32 != ALLOW:
        code = _either(_IF_AT_LEAST, X32_BIT, _return(part.x32), code)
    return [(_LOAD, 0, 0, _NUMBER_AT), *code]


def assemble_filter(parts: Mapping[str, Part], other: int) -> bytes:
    """Return the program, an array of ``struct sock_filter``.

    Args:
        parts: Rules by architecture, names of ``AUDIT_ARCHITECTURES``.
        other: The action for calls of all other architectures.

    Raises:
        ValueError: The kernel takes no program of that length.
    """
    code = _return(other)
    for name, part in reversed(list(parts.items())):
        code = _either(_IF_EQUAL, AUDIT_ARCHITECTURES[name], _part(part), code)
    code = [(_LOAD, 0, 0, _ARCHITECTURE_AT), *code]
    if len(code) > INSTRUCTIONS_MAX:
        raise ValueError(f"a filter of {len(code)} instructions; the kernel takes {INSTRUCTIONS_MAX}")
    return b"".join(struct.pack("<HBBI", *one) for one in code)

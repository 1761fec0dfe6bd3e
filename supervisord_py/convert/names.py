"""Names of others as unit names."""

import re

from supervisord_py.model.names import NAME_MAX, UnitName, parse_unit_name

_FOREIGN = re.compile(r"[^A-Za-z0-9:_.-]+")


def unit_name(text: str, taken: set[str] | None = None) -> str:
    """Return the unit name that is nearest to a name of another supervisor.

    Args:
        text: Any text; a name that can be one of ours stays as it is.
        taken: Names that are given already: the result is none of them (a number is appended).
    """
    cleaned = _FOREIGN.sub("-", text).strip("-")
    if not cleaned or not cleaned[0].isascii() or not cleaned[0].isalnum():
        cleaned = f"unit{'' if cleaned[:1] in tuple('_.:') and cleaned else '-'}{cleaned}".rstrip("-")
    cleaned = cleaned[: NAME_MAX - 10]
    result, number = cleaned, 2
    while taken is not None and result in taken:
        result, number = f"{cleaned}-{number}", number + 1
    return result


def template_name(text: str, taken: set[str] | None = None) -> str:
    """Return the name of the template that is nearest to a name of another supervisor."""
    return f"{unit_name(text, {name.removesuffix('@') for name in taken or ()})}@"


def instance_name(prefix: str, instance: str) -> str:
    return str(UnitName(unit_name(prefix), _FOREIGN.sub("-", instance) or "-"))


def is_name(text: str) -> bool:
    """Whether this can be the name of a unit or a template as it is."""
    try:
        parse_unit_name(text)
    except ValueError:
        return False
    return True

"""Unit names: plain ones, templates, instances, and the references that dependencies are written with.

``web`` is a unit, ``worker@`` a template (the file ``worker@.toml``), ``worker@3`` an instance of it; in a dependency
``worker@`` is all instances and ``@backend`` every member of the group. Source: contract, section 3.

Processes are held under the name of their *owner*. That is the unit, or, for a process beside the unit's life (a health
check, a hook), ``web!17``: the unit and the number of the spawn. Such a process has a tree of its own, and what is done
to it is not done to the unit.
"""

import re
from enum import Enum

from msgspec import Struct

NAME_MAX = 200
_PLAIN = r"[A-Za-z0-9][A-Za-z0-9:_.-]*"
_NAME = re.compile(rf"({_PLAIN})(?:(@)([A-Za-z0-9:_.-]*))?")
_GROUP = re.compile(_PLAIN)
_HINT = "a name begins with a letter or digit and goes on with letters, digits and : _ . -"


class UnitName(Struct, frozen=True):
    """A name taken apart. ``instance`` is None for a plain unit and empty for a template."""

    prefix: str
    instance: str | None = None

    @property
    def is_template(self) -> bool:
        return self.instance == ""

    @property
    def is_instance(self) -> bool:
        return bool(self.instance)

    @property
    def template(self) -> str | None:
        """The template that this is an instance of; None unless it is one."""
        return f"{self.prefix}@" if self.instance else None

    def __str__(self) -> str:
        return self.prefix if self.instance is None else f"{self.prefix}@{self.instance}"


def parse_unit_name(text: str) -> UnitName:
    """Take a unit's name apart.

    Raises:
        ValueError: Not a name; the message says why.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a unit name: {_HINT}")
    if len(text) > NAME_MAX:
        raise ValueError(f"a unit name of {len(text)} characters is too long: at most {NAME_MAX}")
    prefix, at, instance = match.groups()
    return UnitName(prefix, instance if at else None)


def is_unit_name(text: str) -> bool:
    """Whether this can be the name of a unit that runs: a plain name or an instance, not a template."""
    match = _NAME.fullmatch(text)
    return match is not None and len(text) <= NAME_MAX and not (match[2] and not match[3])


class ReferenceKind(Enum):
    UNIT = "unit"
    TEMPLATE = "template"
    GROUP = "group"


class Reference(Struct, frozen=True):
    """What a dependency names. ``name`` is the unit, the template with its ``@``, or the group without one."""

    kind: ReferenceKind
    name: str


def parse_reference(text: str) -> Reference:
    """Read ``web``, ``worker@3``, ``worker@`` or ``@group``.

    Raises:
        ValueError: None of these; the message says why.
    """
    if text.startswith("@"):
        return Reference(ReferenceKind.GROUP, parse_group_name(text[1:]))
    name = parse_unit_name(text)
    return Reference(ReferenceKind.TEMPLATE if name.is_template else ReferenceKind.UNIT, text)


def parse_group_name(text: str) -> str:
    """Check a group's name (without ``@``) and return it.

    Raises:
        ValueError: Not a name.
    """
    if _GROUP.fullmatch(text) is None or len(text) > NAME_MAX:
        raise ValueError(f"{text!r} is not a group name: {_HINT}")
    return text


_BESIDE = "!"
"""In no unit's name."""


def aux_owner(unit: str, spawn_id: int) -> str:
    """The owner's name of a process beside the life of ``unit``."""
    return f"{unit}{_BESIDE}{spawn_id}"


def base_unit(owner: str) -> str:
    """The unit that an owner's name belongs to: ``web`` for ``web`` and for ``web!17``."""
    return owner.partition(_BESIDE)[0]


def spawn_of(owner: str) -> int:
    """The number of the spawn that an owner beside a unit's life is named by: 17 for ``web!17``."""
    return int(owner.partition(_BESIDE)[2])


def is_aux_owner(owner: str) -> bool:
    """Whether the name is that of a process beside a unit's life."""
    return _BESIDE in owner

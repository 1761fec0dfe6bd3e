"""What people write for units, resolved to names: plain names, ``@group``, ``template@`` and globs.

A name that nothing answers to is refused with what was probably meant. What a pattern costs is bounded, because peers
with few rights may send thousands of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from msgspec import Struct

from supervisord_py.host.control_calls import InvalidRequestError, NoSuchUnitError
from supervisord_py.model.names import NAME_MAX

PATTERNS_MAX = 4096
"""Arguments of one call."""

GLOBS_MAX = 64
"""Globs among them: each is compared with every name."""

SUGGESTIONS_MAX = 3
_SHOWN_MAX = 80
_FOREIGN_SUFFIXES = (".toml", ".service", ".target")


class Named(Struct, frozen=True):
    """A unit that a call means; ``explicit`` when it was written by its name, not found by a pattern."""

    unit: str
    explicit: bool


class UnitNames:
    """The names and groups there are now.

    Args:
        names: Every unit, sorted.
        groups: The members of each group, sorted.
        is_visible: Whether the peer may know that a unit exists; others are never suggested or found by a pattern.
        may_be_none: Whether a template (``worker@``) is one, and may have no instance at the moment.
    """

    def __init__(
        self,
        names: Iterable[str],
        groups: Mapping[str, Sequence[str]],
        *,
        is_visible: Callable[[str], bool] = lambda unit: True,
        may_be_none: Callable[[str], bool] = lambda template: False,
    ) -> None:
        self._names = dict.fromkeys(names)
        self._groups = groups
        self._is_visible = is_visible
        self._may_be_none = may_be_none

    def everything(self) -> list[Named]:
        """Return all units that the peer may know of, as if found by a glob."""
        return [Named(name, False) for name in self._names if self._is_visible(name)]

    def resolve(self, patterns: Sequence[str]) -> list[Named]:
        """Return the units that ``patterns`` mean, each once, in the order of the patterns.

        Raises:
            NoSuchUnitError: A name of no unit, or a pattern that matches none.
            InvalidRequestError: More patterns than anybody needs.
        """
        if len(patterns) > PATTERNS_MAX:
            raise InvalidRequestError(
                f"{len(patterns)} units in one call: at most {PATTERNS_MAX}, use a glob or a group"
            )
        if sum(map(_is_glob, patterns)) > GLOBS_MAX:
            raise InvalidRequestError(f"more than {GLOBS_MAX} globs in one call: use a group")
        found: dict[str, bool] = {}
        for pattern in patterns:
            explicit = pattern in self._names
            for name in self._matching(pattern):
                found[name] = found.get(name, False) or explicit
        return [Named(unit, explicit) for unit, explicit in found.items()]

    def resolve_one(self, name: str) -> str:
        """Return the one unit that ``name`` means, for calls about a single unit.

        Raises:
            NoSuchUnitError: It means none.
            InvalidRequestError: It is a pattern that means several.
        """
        found = self.resolve((name,))
        if not found:
            raise NoSuchUnitError(name[:_SHOWN_MAX])
        if len(found) > 1:
            units = ", ".join(named.unit for named in found[:5])
            raise InvalidRequestError(f"{name[:_SHOWN_MAX]} is {len(found)} units ({units}...): name one")
        return found[0].unit

    def _matching(self, pattern: str) -> list[str]:
        if pattern in self._names:
            return [pattern]
        matching: list[str] = []
        if len(pattern) <= NAME_MAX:
            if pattern.startswith("@"):
                matching = [name for name in self._groups.get(pattern[1:], ()) if name in self._names]
            elif pattern.endswith("@"):
                matching = [name for name in self._names if name.startswith(pattern) and name != pattern]
            elif _is_glob(pattern):
                matching = [name for name in self._names if fnmatchcase(name, pattern)]
        matching = [name for name in matching if self._is_visible(name)]
        is_none = pattern.endswith("@") and self._is_visible(pattern) and self._may_be_none(pattern)
        if not matching and not is_none:
            raise NoSuchUnitError(pattern[:_SHOWN_MAX], self._suggest(pattern))
        return matching

    def _suggest(self, pattern: str) -> list[str]:
        """Return what was probably meant, the likeliest first."""
        if len(pattern) > NAME_MAX or _is_glob(pattern):
            return []
        names = [name for name in self._names if self._is_visible(name)]
        if pattern.startswith("@"):
            groups = [group for group, members in self._groups.items() if any(map(self._is_visible, members))]
            close = get_close_matches(pattern[1:], groups, SUGGESTIONS_MAX)
            return ["@" + group for group in close]
        likely: list[str] = []
        for suffix in _FOREIGN_SUFFIXES:
            if pattern.removesuffix(suffix) in names:
                likely.append(pattern.removesuffix(suffix))
        if any(name.startswith(f"{pattern}@") for name in names):
            likely.append(f"{pattern}@")
        if pattern in self._groups:
            likely.append(f"@{pattern}")
        likely += [name for name in names if name.lower() == pattern.lower()]
        likely += get_close_matches(pattern, names, SUGGESTIONS_MAX)
        return list(dict.fromkeys(likely))[:SUGGESTIONS_MAX]


def _is_glob(pattern: str) -> bool:
    return not pattern.startswith("@") and any(character in pattern for character in "*?[")

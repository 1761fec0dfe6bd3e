"""Relations between units of systemd as ours.

Here requires, wants, requisite and binds-to imply the order, there they do not: ``Requires=`` with ``After=`` is one
relation, without it the order is taken out. A target comes after what it wants and requires in any case, unless one of
the two says ``DefaultDependencies=no`` or the order is the other way round (systemd.target(5)). Units of the operating
system (``network.target``) are no units here: ``systemd.toml`` says what they stand for.
"""

from collections.abc import Mapping, Set

from supervisord_py.convert.draft import Draft, Ledger, Place
from supervisord_py.convert.systemd_rules import Milestone, Rules
from supervisord_py.convert.systemd_syntax import Assignment
from supervisord_py.convert.systemd_units import SystemdUnit, UnitId, our_name, parse_name
from supervisord_py.convert.systemd_values import UnitContext, translate_specifiers, words_of
from supervisord_py.model.problems import BadValue

_ORDERING = ("requires", "requisite", "wants", "binds-to")
_REQUIRING = ("requires", "requisite", "binds-to")
_FOLLOWING = (*_ORDERING, "after", "upholds")
_INSTALLS = {"WantedBy": "wants", "RequiredBy": "requires", "UpheldBy": "upholds"}


class _Lost(Exception):
    """A word that is not carried over."""


class _Needless(Exception):
    """A word that asks for what is so anyway."""


class Relations:
    """Collects the relations of all units, because each may name any other, and writes them at the end."""

    def __init__(self, rules: Rules, names: Mapping[str, str], known: frozenset[str], ledger: Ledger) -> None:
        """``names`` are our names by systemd's, ``known`` units that are there besides."""
        self._rules = rules
        self._names = names
        self._known = known | frozenset(names.values())
        self._ledger = ledger
        self._found: dict[str, dict[str, dict[str, list[Place]]]] = {}

    def take(self, owner: str, unit: SystemdUnit, key: str, text: str, context: UnitContext, place: Place) -> None:
        """Take one assignment of a relation."""
        relation = self._found.setdefault(owner, {}).setdefault(key, {})
        if not text:
            # An empty list of dependencies takes nothing back: systemd keeps them too.
            self._ledger.needless(place, "it is empty, and dependencies cannot be taken back")
            return
        lost: list[str] = []
        needless: list[str] = []
        carried = 0
        for word in words_of(text):
            try:
                name = self._member(owner, key, word, context)
            except _Lost as why:
                lost.append(str(why))
            except BadValue as bad:
                lost.append(f"{word}: {bad.message}")
            except _Needless as why:
                needless.append(str(why))
            else:
                relation.setdefault(name, []).append(place)
                carried += 1
        if lost:
            self._ledger.lost(place, "; ".join(lost))
        elif carried:
            self._ledger.carried(place)
        else:
            self._ledger.needless(place, "; ".join(dict.fromkeys(needless)) or "it names no unit")

    def _member(self, owner: str, key: str, word: str, context: UnitContext) -> str:
        """Our name for a word of a relation."""
        milestone = None if word in self._names else self._rules.milestone(word)
        if milestone is not None:
            self._judge(key, word, milestone)
        unit = parse_name(translate_specifiers(word, context))
        if unit is None:
            raise _Lost(f"{word} is no unit's name, and systemd ignores it")
        if unit.suffix not in ("service", "target", "socket", "timer"):
            raise _Lost(f"{word}: there are no {unit.suffix} units here")
        name = self._names.get(word) or self._names.get(unit.named(unit.suffix)) or our_name(unit)
        if name == owner:
            raise _Needless(f"{word} is the same unit here")
        if key in _REQUIRING and name.endswith("@"):
            raise _Lost(f"{word} has an instance for each connection, which a unit cannot require")
        if key in _REQUIRING and not self._is_known(name):
            raise _Lost(f"{word} is not among the files, and a unit cannot start without what it requires")
        return name

    def _is_known(self, name: str) -> bool:
        prefix, at, _ = name.partition("@")
        return name in self._known or (bool(at) and f"{prefix}@" in self._known)

    def _judge(self, key: str, word: str, milestone: Milestone) -> None:
        """Whether what a unit of the operating system stands for is so anyway."""
        kind, reason = milestone.kind, f"{word}: {milestone.reason}"
        if key == "before" and kind in ("boot", "late"):
            raise _Lost(f"{word}: the operating system has come that far before a supervisor starts")
        if key == "conflicts" and kind != "end":
            raise _Lost(f"{word} is a unit of the operating system, which is not stopped from here")
        if key == "after" and kind == "enabled":
            raise _Lost(f"{word}: which units are started last is said unit by unit")
        if kind == "late" or key not in (*_FOLLOWING, "before", "conflicts", "part-of"):
            raise _Lost(reason)
        raise _Needless(reason)

    def install(self, owner: str, assignment: Assignment, context: UnitContext, place: Place) -> bool:
        """Take an ``[Install]``: returns whether it makes the unit enabled."""
        enables = False
        lost: list[str] = []
        for word in words_of(assignment.value):
            unit = parse_name(word)
            holder = self._names.get(word)
            if unit is not None and holder is None and unit.instance is not None:
                holder = self._names.get(UnitId(unit.prefix, "", unit.suffix).named(unit.suffix))
            if holder is not None and holder != owner:
                member = owner if not owner.endswith("@") else f"{owner}%i" if holder.endswith("@") else ""
                if not member:
                    lost.append(f"{word}: which instance it wants is said there")
                    continue
                kept = self._found.setdefault(holder, {}).setdefault(_INSTALLS[assignment.name], {})
                kept.setdefault(member, []).append(place)
            elif unit is not None and (unit.suffix == "target" or self._rules.milestone(word) is not None):
                enables = True
            elif holder != owner:
                lost.append(f"{word} is not among the files, and cannot be told to start this unit")
        if lost:
            self._ledger.lost(place, "; ".join(lost))
        else:
            self._ledger.carried(place)
        return enables

    def write(self, drafts: Mapping[str, Draft], without_defaults: Set[str] = frozenset()) -> None:
        """Write all relations into their units; ``without_defaults`` are those with ``DefaultDependencies=no``."""
        for owner, relations in self._found.items():
            draft = drafts.get(owner)
            if draft is None:
                continue
            after = relations.get("after", {})
            is_target = ("target",) in draft.tables and ("service",) not in draft.tables
            has_defaults = is_target and owner not in without_defaults
            implied: set[str] = set()
            for key, members in relations.items():
                if key not in _ORDERING:
                    continue
                written: list[object] = []
                for name in members:
                    waits = has_defaults and name not in without_defaults and not self._comes_first(owner, name)
                    if name in after or waits:
                        implied.add(name)
                        written.append(name)
                    else:
                        written.append({"unit": name, "ordered": False})
                _put(draft, key, written, members)
            for key, members in relations.items():
                if key not in _ORDERING:
                    named = [name for name in members if key != "after" or name not in implied]
                    _put(draft, key, named, members)

    def _comes_first(self, name: str, other: str) -> bool:
        """Whether a unit is said to come before another."""
        return other in self._found[name].get("before", {}) or name in self._found.get(other, {}).get("after", {})


def _put(draft: Draft, key: str, values: list[object] | list[str], members: Mapping[str, list[Place]]) -> None:
    if values:
        draft.put("unit", key, values, *(place for places in members.values() for place in places))
        draft.members |= {(key, name): places for name, places in members.items()}

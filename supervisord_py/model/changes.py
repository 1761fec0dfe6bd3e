"""What a new unit set changes, per unit and key, and what will happen with each change.

Theory of operation
-------------------
``change_keys.KEYS`` says of each key how it is read out of a ``Unit``, and whether a running life can take it over.
Most can: the core looks at its text when it decides (restart policy, time-outs, kill policy, relations). What a process
got when it was made (its command, user, environment, limits) holds until the next start.

A life therefore runs by ``take_live(running, loaded)``: the loaded text, but for what needs a restart. What remains
different between that and the loaded text is what a restart is needed for.

With another ``type`` the defaults of other keys are others too, and a life must not be judged by the rules of a type
that it does not have: then everything but ``[unit]`` waits for the next start. So does a ``[timer]`` that comes or
goes: a service that runs is no armed timer.

Source: peers.md, 1a row 36 and section 5, item 9.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.model.change_keys import Effect, effect_of, texts_of
from supervisord_py.model.settings import Settings, settings_texts
from supervisord_py.model.unit import (
    BadUnit,
    LoadedFrom,
    Unit,
    UnitKind,
    UnitSet,
)


class Change(Enum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"
    BROKEN = "broken"


class KeyChange(Struct, frozen=True):
    """One key in terms of the file: ``key`` is ``TABLE.KEY``; a value is None where the key has none, of several
    commands each has a line."""

    key: str
    old: str | None
    new: str | None
    effect: Effect


class UnitChange(Struct, frozen=True):
    """One unit. ``keys`` are those that mean something else now; a changed unit without keys has other comments,
    another order or another place. ``message`` says more where there is more to say (why a file is broken)."""

    unit: str
    change: Change
    effect: Effect
    keys: tuple[KeyChange, ...] = ()
    path: str = ""
    message: str = ""


def compare_units(old: Unit, new: Unit) -> tuple[KeyChange, ...]:
    """Return every key that means something else in ``new``, with what a running life needs to take it over."""
    if is_same(old, new):
        return ()
    before, after = texts_of(old), texts_of(new)
    by_another_type = _type_of(old) is not _type_of(new)
    is_armed_anew = _comes_or_goes(old, new)
    changes = []
    for key in dict.fromkeys((*before, *after)):
        if before.get(key) != after.get(key):
            effect = effect_of(key)
            assert effect is not None, f"internal error: no effect of {key}"
            if (by_another_type and not key.startswith("unit.")) or (is_armed_anew and key.startswith("timer.")):
                effect = Effect.RESTART
            changes.append(KeyChange(key, before.get(key), after.get(key), effect))
    return tuple(changes)


def is_same(old: Unit, new: Unit) -> bool:
    """Tell whether two texts mean the same, wherever they were read from."""
    return old is new or replace(old, source=_NOWHERE) == replace(new, source=_NOWHERE)


_NOWHERE = LoadedFrom("")
_NONE: Mapping[str, Unit] = {}


def _type_of(unit: Unit) -> Any:
    return UnitKind.TARGET if unit.service is None else unit.service.type


def _comes_or_goes(old: Unit, new: Unit) -> bool:
    """Tell whether only one of the two is a timer."""
    return (old.timer is None) is not (new.timer is None)


def take_live(running: Unit, loaded: Unit) -> Unit:
    """Return the text that a life goes on by: ``loaded``, with what ``running`` has where a restart is needed."""
    if _type_of(running) is not _type_of(loaded):
        return replace(
            loaded,
            kind=running.kind,
            service=running.service,
            health=running.health,
            timer=running.timer,
            sockets=running.sockets,
            pool=running.pool,
            quarantine=running.quarantine,
        )
    if running.service is None or loaded.service is None:
        return loaded
    own = running.service
    service = replace(
        loaded.service,
        exec_start=own.exec_start,
        exec_start_pre=own.exec_start_pre,
        exec_start_post=own.exec_start_post,
        exec_condition=own.exec_condition,
        pid_file=own.pid_file,
        guess_main_pid=own.guess_main_pid,
        notify_access=own.notify_access,
        oom_policy=own.oom_policy,
        store_max=own.store_max,
        watchdog_ns=own.watchdog_ns,
        progress_ns=own.progress_ns,
        context=own.context,
    )
    timer = running.timer if _comes_or_goes(running, loaded) else loaded.timer
    return replace(loaded, service=service, timer=timer, sockets=running.sockets)


def restart_keys(running: Unit, loaded: Unit) -> tuple[str, ...]:
    """Return the keys in which a life differs from the loaded text, and which only a restart brings."""
    return tuple(each.key for each in compare_units(running, loaded) if each.effect is Effect.RESTART)


_SETTINGS_OF_START = frozenset({"supervisor.name", "control.socket-group", "control.socket-mode"})
"""Settings that ``run`` looks at once."""


def compare_settings(old: Settings, new: Settings) -> tuple[KeyChange, ...]:
    """Return every key of ``supervisord.toml`` that means something else in ``new``."""
    before, after = settings_texts(old), settings_texts(new)
    return tuple(
        KeyChange(key, before.get(key), after.get(key), Effect.RESTART if key in _SETTINGS_OF_START else Effect.LIVE)
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    )


def plan(
    old: UnitSet, new: UnitSet, lives: Mapping[str, Unit], between: Mapping[str, Unit] = _NONE
) -> tuple[UnitChange, ...]:
    """Say what loading ``new`` changes, unit by unit in the order of their names.

    Args:
        old: The set that is loaded.
        new: The one that would take its place.
        lives: The text of every unit that has a life.
        between: The same of those that wait for their next life: it will begin by the new text, if there is one.
    """
    changes: list[UnitChange] = []
    for name in sorted({**old.units, **old.bad, **new.units, **new.bad}):
        life, bad, now = lives.get(name), new.bad.get(name), new.units.get(name)
        if bad is not None:
            if bad != old.bad.get(name):
                changes.append(_broken(bad, life or between.get(name)))
        elif now is None:
            known = old.units.get(name) or old.bad[name]
            path = known.source.path if isinstance(known, Unit) else known.path
            effect = Effect.KEEP if name in lives or name in between else Effect.NONE
            message = "it is masked" if name in new.masked else ""
            changes.append(UnitChange(name, Change.REMOVED, effect, path=path, message=message))
        elif (change := _loaded(old.units.get(name) or life or between.get(name), now, life, old)) is not None:
            changes.append(change)
    return tuple(changes)


def _broken(bad: BadUnit, life: Unit | None) -> UnitChange:
    effect = Effect.NONE if life is None else Effect.KEEP
    return UnitChange(bad.name, Change.BROKEN, effect, path=bad.path, message=bad.reason)


def _loaded(before: Unit | None, now: Unit, life: Unit | None, old: UnitSet) -> UnitChange | None:
    path = now.source.path
    if before is None:
        starts = now.enabled and now.name not in old.masked
        return UnitChange(now.name, Change.ADDED, Effect.START if starts else Effect.NONE, path=path)
    if before.source == now.source and before == now and now.name not in old.bad:
        return None
    left = frozenset(restart_keys(life, now)) if life is not None else frozenset()
    keys = tuple(_within(each, life, left) for each in compare_units(before, now))
    effects = {each.effect for each in keys}
    effect = next((each for each in (Effect.RESTART, Effect.LIVE) if each in effects), Effect.NONE)
    return UnitChange(now.name, Change.CHANGED, effect, keys, path)


def _within(change: KeyChange, life: Unit | None, left: frozenset[str]) -> KeyChange:
    """Say what a key's change means for this life: nothing where there is none, or where it has the new value
    already."""
    needless = life is None or (change.effect is Effect.RESTART and change.key not in left)
    return replace(change, effect=Effect.NONE) if needless else change

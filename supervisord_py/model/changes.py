"""What a new unit set changes, per unit and key, and what will happen with each change.

Theory of operation
-------------------
``KEYS`` says of each key how it is read out of a ``Unit``, and whether a running life can take it over. Most can: the
core looks at its text when it decides (restart policy, time-outs, kill policy, relations). What a process got when it
was made (its command, user, environment, limits) holds until the next start.

A life therefore runs by ``take_live(running, loaded)``: the loaded text, but for what needs a restart. What remains
different between that and the loaded text is what a restart is needed for.

With another ``type`` the defaults of other keys are others too, and a life must not be judged by the rules of a type
that it does not have: then everything but ``[unit]`` waits for the next start. So does a ``[timer]`` that comes or
goes: a service that runs is no armed timer.

Source: peers.md, 1a row 36 and section 5, item 9.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.model.assemble import RLIMITS
from supervisord_py.model.calendar import format_calendar
from supervisord_py.model.command import command_text
from supervisord_py.model.settings import Settings, settings_texts
from supervisord_py.model.states import Until
from supervisord_py.model.unit import (
    BadUnit,
    Command,
    Condition,
    Dependency,
    ExitStatuses,
    Limit,
    LoadedFrom,
    Probe,
    Service,
    Timer,
    Unit,
    UnitKind,
    UnitSet,
)
from supervisord_py.model.values import format_mode, format_signal, format_size, format_timespan


class Effect(Enum):
    """What follows from a change. Of a key: ``LIVE``, ``RESTART`` or ``NONE``; of a unit all of them."""

    START = "start"
    """The unit is new and enabled: it will be started."""
    LIVE = "live"
    """The running life takes it over at once."""
    RESTART = "restart"
    """The running life goes on with what it has; a restart brings the new text."""
    KEEP = "keep"
    """The file is gone or unusable: the running life goes on by the text that it has, restarts included."""
    NONE = "none"
    """Nothing runs that it could concern; the next start reads it."""


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


# values as text


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _names(names: Iterable[str]) -> str | None:
    return " ".join(names) or None


def _span(ns: int | None) -> str:
    return format_timespan(ns)


def _dependency(edge: Dependency) -> str:
    text = edge.unit if edge.until is Until.READY else f"{edge.unit} ({edge.until.value})"
    return text if edge.ordered else f"{text} (not ordered)"


def _edges(edges: Iterable[Dependency]) -> str | None:
    return ", ".join(map(_dependency, edges)) or None


def _commands(commands: Iterable[Command]) -> str | None:
    return "\n".join(map(command_text, commands)) or None


def _statuses(statuses: ExitStatuses) -> str | None:
    return _names((*map(str, statuses.codes), *map(format_signal, statuses.signals)))


def _limit(limit: Limit) -> str:
    def part(value: int | None) -> str:
        return "infinity" if value is None else str(value)

    return part(limit.soft) if limit.soft == limit.hard else f"{part(limit.soft)}:{part(limit.hard)}"


def _condition(condition: Condition) -> str:
    return ("|" if condition.trigger else "") + ("!" if condition.negate else "") + condition.parameter


def _spans(spans: Iterable[int]) -> str | None:
    return ", ".join(map(format_timespan, spans)) or None


# the keys


class Key(Struct, frozen=True):
    """One key of the unit file, ``TABLE.KEY``. A key of a service is read from units that have one.

    ``text`` gives its value as text, None when the unit has none.
    """

    name: str
    effect: Effect
    text: Callable[[Unit], str | None]


def _unit(name: str, text: Callable[[Unit], str | None]) -> Key:
    return Key(f"unit.{name}", Effect.LIVE, text)


def _beside(name: str, text: Callable[[Unit], str | None]) -> Key:
    """A key of a table of its own that only units with processes have."""
    return Key(name, Effect.LIVE, lambda unit: None if unit.service is None else text(unit))


def _of_service(name: str, effect: Effect, text: Callable[[Service], str | None]) -> Key:
    return Key(name, effect, lambda unit: None if unit.service is None else text(unit.service))


def _live(name: str, text: Callable[[Service], str | None]) -> Key:
    return _of_service(name, Effect.LIVE, text)


def _restart(name: str, text: Callable[[Service], str | None]) -> Key:
    return _of_service(name, Effect.RESTART, text)


def _timer(name: str, text: Callable[[Timer], str | None]) -> Key:
    return Key(f"timer.{name}", Effect.LIVE, lambda unit: None if unit.timer is None else text(unit.timer))


def _rlimit(name: str) -> Key:
    def text(own: Service) -> str | None:
        limit = dict(own.context.rlimits).get(name)
        return None if limit is None else _limit(limit)

    return _restart(f"limits.{name}", text)


KEYS: tuple[Key, ...] = (
    _unit("description", lambda unit: unit.description or None),
    _unit("documentation", lambda unit: _names(unit.documentation)),
    _unit("requires", lambda unit: _edges(unit.requires)),
    _unit("wants", lambda unit: _edges(unit.wants)),
    _unit("requisite", lambda unit: _edges(unit.requisite)),
    _unit("binds-to", lambda unit: _edges(unit.binds_to)),
    _unit("part-of", lambda unit: _names(unit.part_of)),
    _unit("propagates-stop-to", lambda unit: _names(unit.propagates_stop_to)),
    _unit("upholds", lambda unit: _edges(unit.upholds)),
    _unit("conflicts", lambda unit: _names(unit.conflicts)),
    _unit("after", lambda unit: _edges(unit.after)),
    _unit("before", lambda unit: _names(unit.before)),
    _unit("on-failure", lambda unit: _names(unit.on_failure)),
    _unit("on-success", lambda unit: _names(unit.on_success)),
    _unit("job-timeout-sec", lambda unit: _span(unit.job_timeout_ns)),
    _unit("enabled", lambda unit: _flag(unit.enabled)),
    _unit("groups", lambda unit: _names(unit.groups)),
    _unit("tags", lambda unit: _names(unit.tags)),
    _unit("on-dependency-failure", lambda unit: unit.on_dependency_failure.value),
    _unit(
        "exit-supervisor-on", lambda unit: None if unit.exit_supervisor_on is None else unit.exit_supervisor_on.value
    ),
    _live(
        "unit.start-limit-interval-sec",
        lambda own: None if own.restart.limit is None else _span(own.restart.limit.interval_ns),
    ),
    _live("unit.start-limit-burst", lambda own: None if own.restart.limit is None else str(own.restart.limit.burst)),
    _restart("service.type", lambda own: own.type.value),
    _restart("service.exec-start", lambda own: _commands(own.exec_start)),
    _restart("service.exec-start-pre", lambda own: _commands(own.exec_start_pre)),
    _restart("service.exec-start-post", lambda own: _commands(own.exec_start_post)),
    _restart("service.exec-condition", lambda own: _commands(own.exec_condition)),
    _live("service.exec-reload", lambda own: _commands(own.exec_reload)),
    _live("service.exec-stop", lambda own: _commands(own.exec_stop)),
    _live("service.exec-stop-post", lambda own: _commands(own.exec_stop_post)),
    _live("service.restart", lambda own: own.restart.restart.value),
    _live("service.restart-sec", lambda own: _span(own.restart.delay_ns)),
    _live("service.restart-steps", lambda own: str(own.restart.steps)),
    _live("service.restart-max-delay-sec", lambda own: _span(own.restart.max_delay_ns)),
    _live("service.restart-jitter", lambda own: str(own.restart.jitter)),
    _live("service.restart-reset-sec", lambda own: _span(own.restart.reset_ns)),
    _live("service.timeout-start-sec", lambda own: _span(own.timeout_start_ns)),
    _live("service.timeout-stop-sec", lambda own: _span(own.timeout_stop_ns)),
    # Not written it is timeout-stop-sec, and then it does not change by itself.
    _live(
        "service.timeout-abort-sec",
        lambda own: None if own.timeout_abort_ns == own.timeout_stop_ns else _span(own.timeout_abort_ns),
    ),
    _live("service.runtime-max-sec", lambda own: _span(own.runtime_max_ns)),
    _live("service.error-threshold", lambda own: str(own.error_threshold)),
    # The process was told when it was made, and beats as it was told.
    _restart("service.watchdog-sec", lambda own: None if own.watchdog_ns is None else _span(own.watchdog_ns)),
    _restart("service.progress-sec", lambda own: None if own.progress_ns is None else _span(own.progress_ns)),
    _live("service.kill-mode", lambda own: own.kill.mode.value),
    _live("service.kill-signal", lambda own: format_signal(own.kill.signal)),
    _live(
        "service.restart-kill-signal",
        lambda own: None if own.kill.restart_signal is None else format_signal(own.kill.restart_signal),
    ),
    _live("service.final-kill-signal", lambda own: format_signal(own.kill.final_signal)),
    _live("service.watchdog-signal", lambda own: format_signal(own.kill.watchdog_signal)),
    _live("service.send-sigkill", lambda own: _flag(own.kill.send_sigkill)),
    _live("service.send-sighup", lambda own: _flag(own.kill.send_sighup)),
    _live("service.reload-signal", lambda own: format_signal(own.reload_signal)),
    _live("service.success-exit-status", lambda own: _statuses(own.success)),
    _live("service.restart-prevent-exit-status", lambda own: _statuses(own.restart.prevent)),
    _live("service.restart-force-exit-status", lambda own: _statuses(own.restart.force)),
    _live("service.remain-after-exit", lambda own: _flag(own.remain_after_exit)),
    _restart("service.pid-file", lambda own: own.pid_file),
    _restart("service.guess-main-pid", lambda own: _flag(own.guess_main_pid)),
    _restart("service.notify-access", lambda own: own.notify_access.value),
    _restart("service.user", lambda own: own.context.user),
    _restart("service.group", lambda own: own.context.group),
    _restart("service.supplementary-groups", lambda own: _names(own.context.supplementary_groups)),
    _restart("service.working-directory", lambda own: own.context.working_directory),
    _restart("service.umask", lambda own: format_mode(own.context.umask)),
    _restart("service.ignore-sigpipe", lambda own: _flag(own.context.ignore_sigpipe)),
    _restart("limits.nice", lambda own: None if own.context.nice is None else str(own.context.nice)),
    _restart("limits.enforce", lambda own: own.context.enforce),
    *(_rlimit(name) for name in RLIMITS),
    _live("quarantine.failures", lambda own: str(own.restart.failures)),
    _beside(
        "quarantine.stub",
        lambda unit: None if unit.quarantine.stub is None else command_text(unit.quarantine.stub),
    ),
    _beside(
        "quarantine.retry-after",
        lambda unit: None if unit.quarantine.retry_after_ns is None else _span(unit.quarantine.retry_after_ns),
    ),
    _beside("quarantine.on-quarantine", lambda unit: _names(unit.quarantine.on_quarantine)),
    _beside("pool.name", lambda unit: unit.pool.name or None),
    _beside("pool.priority", lambda unit: str(unit.pool.priority)),
    _timer("every", lambda own: None if own.every_ns is None else _span(own.every_ns)),
    _timer("from", lambda own: own.every_from.value),
    _timer("on-active-sec", lambda own: _spans(own.on_active_ns)),
    _timer("on-boot-sec", lambda own: _spans(own.on_boot_ns)),
    _timer("on-startup-sec", lambda own: _spans(own.on_startup_ns)),
    _timer("on-unit-active-sec", lambda own: _spans(own.on_unit_active_ns)),
    _timer("on-unit-inactive-sec", lambda own: _spans(own.on_unit_inactive_ns)),
    _timer("on-calendar", lambda own: ", ".join(map(format_calendar, own.on_calendar)) or None),
    _timer("accuracy-sec", lambda own: _span(own.accuracy_ns)),
    _timer("randomized-delay-sec", lambda own: _span(own.randomized_delay_ns)),
    _timer("persistent", lambda own: _flag(own.persistent)),
    _timer("overrun", lambda own: own.overrun.value),
    _live("log.max-bytes", lambda own: format_size(own.log.max_bytes)),
    _live("log.backups", lambda own: str(own.log.backups)),
)
"""Every key that stands for itself; those that stand for many are ``FAMILIES``."""

FAMILIES: dict[str, Effect] = {
    "unit.condition-": Effect.LIVE,
    "unit.assert-": Effect.LIVE,
    "service.environment": Effect.RESTART,
    "health.": Effect.LIVE,
    "agent.": Effect.RESTART,
    "quarantine.stub-": Effect.LIVE,
}
"""Keys by how they begin: each condition is one, each variable of the environment, and each key of a health check. What
``[agent]`` says is in the command of its process and in its environment, and told with those; what ``stub-class`` says
is in the command of the stub."""

ELSEWHERE: dict[str, Effect] = {
    "instances.count": Effect.LIVE,
}
"""Keys that are no part of a unit: the instances come and go as units of their own."""

_EFFECTS = {key.name: key.effect for key in KEYS}


def effect_of(key: str) -> Effect | None:
    """Say what a change of ``TABLE.KEY`` needs in a running life; None when there is no such key."""
    found = _EFFECTS.get(key) or ELSEWHERE.get(key)
    if found is not None:
        return found
    return next((effect for family, effect in FAMILIES.items() if key.startswith(family)), None)


def texts_of(unit: Unit) -> dict[str, str]:
    """Return every key of a unit that has a value, as text, defaults included."""
    texts = {key.name: text for key in KEYS if (text := key.text(unit)) is not None}
    for family, conditions in (("condition", unit.conditions), ("assert", unit.asserts)):
        for condition in conditions:
            key = f"unit.{family}-{condition.kind}"
            texts[key] = " ".join(filter(None, (texts.get(key), _condition(condition))))
    if unit.service is not None:
        texts |= {f"service.environment.{name}": value for name, value in unit.service.context.environment}
    for probe in unit.health:
        texts |= {f"health.{probe.name}.{key}": text for key, text in _probe_texts(probe).items() if text is not None}
    return texts


def _probe_texts(probe: Probe) -> dict[str, str | None]:
    return {
        "kind": probe.kind.value,
        "exec": None if probe.exec is None else command_text(probe.exec),
        "http": probe.http,
        "tcp": probe.tcp,
        "unix": probe.unix,
        "file": probe.file,
        "log": probe.log,
        "interval": _span(probe.interval_ns),
        "timeout": _span(probe.timeout_ns),
        "initial-delay": _span(probe.initial_delay_ns),
        "failure-threshold": str(probe.failure_threshold),
        "success-threshold": str(probe.success_threshold),
        "action": probe.action.value,
    }


# comparing


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
        watchdog_ns=own.watchdog_ns,
        progress_ns=own.progress_ns,
        context=own.context,
    )
    return replace(loaded, service=service, timer=running.timer if _comes_or_goes(running, loaded) else loaded.timer)


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

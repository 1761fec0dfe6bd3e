"""The keys of a unit file as a ``Unit`` holds them: how each is read out as text, and what a change of it needs.

Source: peers.md, 1a row 36 and section 5, item 9.
"""

from collections.abc import Callable, Iterable
from enum import Enum

from msgspec import Struct

from supervisord_py.model.amounts import format_amount, format_percent
from supervisord_py.model.assemble_context import RLIMITS
from supervisord_py.model.calendar import format_calendar
from supervisord_py.model.command import command_text
from supervisord_py.model.context import Amount, Credential, FolderKind, Resources
from supervisord_py.model.sandbox import SANDBOX_KEYS, sandbox_text
from supervisord_py.model.sockets import ListenKind, Socket, Sockets
from supervisord_py.model.states import Until
from supervisord_py.model.unit import (
    Command,
    Condition,
    Dependency,
    ExitStatuses,
    Limit,
    Probe,
    Service,
    Timer,
    Unit,
)
from supervisord_py.model.values import format_mode, format_rate, format_signal, format_size, format_timespan


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


# values as text


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _names(names: Iterable[str]) -> str | None:
    return " ".join(names) or None


def _span(ns: int | None) -> str:
    return format_timespan(ns)


def _nanoseconds(ns: int | None) -> str | None:
    return None if ns is None else f"{ns}ns"


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


def _sandbox(key: str) -> Key:
    return _restart(f"sandbox.{key}", lambda own: sandbox_text(own.context.sandbox, key))


def _timer(name: str, text: Callable[[Timer], str | None]) -> Key:
    return Key(f"timer.{name}", Effect.LIVE, lambda unit: None if unit.timer is None else text(unit.timer))


def _socket(name: str, text: Callable[[Socket], str | None]) -> Key:
    def texts(unit: Unit) -> str | None:
        found = [text(each) for each in unit.sockets.sockets] if unit.sockets is not None else []
        return "; ".join(each for each in found if each is not None) or None

    return Key(f"socket.{name}", Effect.RESTART, texts)


def _of_sockets(name: str, text: Callable[[Sockets], str | None]) -> Key:
    return Key(f"service.{name}", Effect.RESTART, lambda unit: None if unit.sockets is None else text(unit.sockets))


def _addresses(kind: ListenKind) -> Callable[[Socket], str | None]:
    return lambda own: _names(str(each.address) for each in own.listens if each.kind is kind)


def _rlimit(name: str) -> Key:
    def text(own: Service) -> str | None:
        limit = dict(own.context.rlimits).get(name)
        return None if limit is None else _limit(limit)

    return _restart(f"limits.{name}", text)


def _folders(kind: FolderKind) -> tuple[Key, Key]:
    key = f"service.{kind.value}-directory"

    def paths(own: Service) -> str | None:
        folders = own.context.belongings.of(kind).folders
        return _names(each.path + (f":{each.link}" if each.link else "") for each in folders)

    return _restart(key, paths), _restart(f"{key}-mode", lambda own: format_mode(own.context.belongings.of(kind).mode))


def _credentials(credentials: Iterable[Credential]) -> str | None:
    return _names(f"{each.name}:{each.path if each.value is None else each.value}" for each in credentials)


PRIORITIES = {
    "oom_score_adjust": "oom-score-adjust",
    "cpu_affinity": "cpu-affinity",
    "io_class": "io-scheduling-class",
    "io_priority": "io-scheduling-priority",
    "cpu_policy": "cpu-scheduling-policy",
    "cpu_priority": "cpu-scheduling-priority",
}
"""The fields of ``Priorities`` and their keys."""


def _priority(name: str, key: str) -> Key:
    def text(own: Service) -> str | None:
        value = getattr(own.context.priorities, name)
        return None if value is None else _names(map(str, value)) if isinstance(value, tuple) else str(value)

    return _restart(f"limits.{key}", text)


def _resource(name: str) -> Key:
    def text(own: Service) -> str | None:
        value = getattr(own.context.resources, name)
        if isinstance(value, Amount):
            return format_amount(value, is_size=name.startswith("memory"))
        if value is None:
            return None
        return format_percent(value) if name == "cpu_quota" else str(value)

    return _restart(f"limits.{name.replace('_', '-')}", text)


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
    _restart("service.oom-policy", lambda own: own.oom_policy.value),
    _restart("service.notify-access", lambda own: own.notify_access.value),
    _restart("service.user", lambda own: own.context.user),
    _restart("service.group", lambda own: own.context.group),
    _restart("service.supplementary-groups", lambda own: _names(own.context.supplementary_groups)),
    _restart("service.dynamic-user", lambda own: _flag(own.context.dynamic_user)),
    _restart("service.working-directory", lambda own: own.context.working_directory),
    _restart("service.root-directory", lambda own: own.context.root_directory),
    _restart("service.exec-search-path", lambda own: _names(own.context.search_path)),
    _restart("service.umask", lambda own: format_mode(own.context.umask)),
    _restart("service.syslog-identifier", lambda own: own.context.streams.identifier),
    _restart("service.syslog-facility", lambda own: own.context.streams.facility),
    _restart("service.syslog-level", lambda own: own.context.streams.level),
    _restart("service.syslog-level-prefix", lambda own: _flag(own.context.streams.level_prefix)),
    _restart("service.personality", lambda own: own.context.personality),
    _restart("service.timer-slack-nsec", lambda own: _nanoseconds(own.context.timer_slack_ns)),
    _restart("service.ignore-sigpipe", lambda own: _flag(own.context.ignore_sigpipe)),
    _restart("service.environment-file", lambda own: _names(own.context.belongings.environment_files)),
    _restart("service.pass-environment", lambda own: _names(own.context.belongings.pass_environment)),
    _restart("service.unset-environment", lambda own: _names(own.context.belongings.unset_environment)),
    *(each for kind in FolderKind for each in _folders(kind)),
    _restart("service.runtime-directory-preserve", lambda own: own.context.belongings.runtime_preserve),
    _restart("service.load-credential", lambda own: _credentials(own.context.belongings.load_credentials)),
    _restart("service.set-credential", lambda own: _credentials(own.context.belongings.set_credentials)),
    _restart("service.standard-input", lambda own: own.context.streams.input),
    _restart("service.standard-input-text", lambda own: _names(own.context.streams.texts)),
    _restart("service.standard-input-data", lambda own: _names(own.context.streams.data)),
    _restart("service.standard-output", lambda own: own.context.streams.output),
    _restart("service.standard-error", lambda own: own.context.streams.error),
    _restart("limits.nice", lambda own: None if own.context.nice is None else str(own.context.nice)),
    *(_priority(name, key) for name, key in PRIORITIES.items()),
    *(_resource(name) for name in Resources.__struct_fields__),
    _restart("limits.enforce", lambda own: own.context.enforce),
    *(_rlimit(name) for name in RLIMITS),
    *(_sandbox(key) for key in SANDBOX_KEYS),
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
    _of_sockets("activation", lambda own: own.activation.value),
    _of_sockets("idle-exit-sec", lambda own: None if own.idle_exit_ns is None else _span(own.idle_exit_ns)),
    _restart("service.file-descriptor-store-max", lambda own: str(own.store_max)),
    _socket("name", lambda own: own.name),
    _socket("listen-stream", _addresses(ListenKind.STREAM)),
    _socket("listen-datagram", _addresses(ListenKind.DATAGRAM)),
    _socket("listen-sequential-packet", _addresses(ListenKind.SEQUENTIAL_PACKET)),
    _socket("listen-fifo", _addresses(ListenKind.FIFO)),
    _socket("backlog", lambda own: str(own.backlog)),
    _socket("socket-mode", lambda own: format_mode(own.mode)),
    _socket("socket-user", lambda own: own.user),
    _socket("socket-group", lambda own: own.group),
    _socket("accept", lambda own: _flag(own.accept)),
    _socket("max-connections", lambda own: str(own.max_connections)),
    _socket("reuse-port", lambda own: _flag(own.reuse_port)),
    _socket("trigger-limit-interval-sec", lambda own: _span(own.trigger_interval_ns)),
    _socket("trigger-limit-burst", lambda own: str(own.trigger_burst)),
    _live("log.max-bytes", lambda own: format_size(own.log.max_bytes)),
    _live("log.backups", lambda own: str(own.log.backups)),
    _live("log.max-age", lambda own: None if own.log.max_age_ns is None else _span(own.log.max_age_ns)),
    _live("log.compress", lambda own: _flag(own.log.compress)),
    _live("log.format", lambda own: own.log.format.value),
    _live("log.rate-limit", lambda own: None if own.log.rate_limit is None else format_rate(own.log.rate_limit)),
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

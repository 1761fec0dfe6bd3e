"""Merged tables of one unit to a ``Unit``: defaults that depend on each other, and combinations that cannot be.

Relations are left as written (``RawDependency``); the unit set resolves groups and templates.
Source: contract, section 3; systemd src/core/service.c (service_verify, service_add_extras, service_fix_stop_timeout).
"""

from typing import Any, TypeVar, cast

from supervisord_py.model.names import UnitName
from supervisord_py.model.parse import Decoded, Merged
from supervisord_py.model.problems import Problem
from supervisord_py.model.states import KillMode, NotifyAccess, OnDependencyFailure, Restart, ServiceType
from supervisord_py.model.unit import (
    Command,
    ExecContext,
    KillPolicy,
    LoadedFrom,
    LogPolicy,
    RestartPolicy,
    Service,
    Unit,
    UnitKind,
)

Value = TypeVar("Value")

_NOTIFYING = frozenset({ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD})
_OF_PROCESSES = ("limits", "log", "quarantine")
# The defaults that stand in model.unit.
_SERVICE = Service()
_KILL = _SERVICE.kill
_RESTART = _SERVICE.restart
_LOG = _SERVICE.log
_CONTEXT = _SERVICE.context
RLIMITS = (
    "nofile", "nproc", "core", "cpu", "fsize", "as", "data", "stack", "memlock", "rss", "sigpending", "msgqueue",
    "rtprio", "locks", "rttime",
)  # fmt: skip
"""The keys of ``[limits]`` that are resource limits, in the order in which they are set."""


class _Fields:
    """The values of one unit by table and key."""

    def __init__(self, merged: Merged) -> None:
        self.merged = merged

    def has(self, table: str) -> bool:
        return (table,) in self.merged.tables

    def decoded(self, table: str, key: str) -> Decoded | None:
        return self.merged.tables.get((table,), {}).get(key)

    def get(self, table: str, key: str, default: Value) -> Value:
        """The value, or ``default`` when the key is not written; its type is the key's (``docs/keys.toml``)."""
        decoded = self.decoded(table, key)
        value: Any = default if decoded is None else decoded.value
        return cast(Value, value)

    def problem(self, table: str, key: str, message: str, hint: str = "") -> Problem:
        """A problem at the key, or at its table when the key is not written."""
        decoded = self.decoded(table, key)
        if decoded is not None:
            return decoded.entry.problem(message, hint)
        return self.merged.problem((table,), message, hint)


def assemble(name: UnitName, merged: Merged, source: LoadedFrom) -> tuple[Unit | None, list[Problem]]:
    """Make the unit of what its files say.

    Args:
        name: The unit's name; its instance decides whether ``[instances]`` may stand here.
        merged: Decoded and merged.
        source: Where the unit comes from.

    Returns:
        The unit without its relations, or None when there are problems.
    """
    fields = _Fields(merged)
    problems: list[Problem] = []
    kinds = [table for table in ("service", "target") if fields.has(table)]
    if not kinds:
        hint = "add [service] with exec-start, or [target] for a unit that only groups others"
        return None, [Problem(source.path, 0, 0, "", "neither [service] nor [target] stands in the file", hint)]
    if len(kinds) == 2:
        problems.append(
            merged.problem(("target",), "a unit is a [service] or a [target], not both", "take one of them out")
        )
    if fields.has("instances") and name.instance is None:
        problems.append(
            fields.problem("instances", "count", "only a template has instances", f"name the file {name}@.toml")
        )
    if kinds == ["target"]:
        for table in _OF_PROCESSES:
            if fields.has(table):
                hint = f"take [{table}] out, or make the unit a [service]"
                problems.append(merged.problem((table,), "a target has no process", hint))
    service = _service(fields, problems) if fields.has("service") else None
    if problems:
        return None, problems
    unit = Unit(
        name=str(name),
        kind=UnitKind(kinds[0]),
        service=service,
        description=fields.get("unit", "description", ""),
        documentation=fields.get("unit", "documentation", ()),
        enabled=fields.get("unit", "enabled", True),
        groups=_unique(fields.get("unit", "groups", ())),
        tags=_unique(fields.get("unit", "tags", ())),
        on_dependency_failure=OnDependencyFailure(fields.get("unit", "on-dependency-failure", "wait")),
        source=source,
    )
    return unit, []


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _service(fields: _Fields, problems: list[Problem]) -> Service:
    commands = {key: fields.get("service", key, ()) for key in _COMMAND_KEYS}
    default_type = ServiceType.SIMPLE if commands["exec-start"] else ServiceType.ONESHOT
    kind = ServiceType(fields.get("service", "type", default_type.value))
    oneshot = kind is ServiceType.ONESHOT
    timeout_stop = fields.get("service", "timeout-stop-sec", _SERVICE.timeout_stop_ns)
    service = Service(
        type=kind,
        exec_start=commands["exec-start"],
        exec_start_pre=commands["exec-start-pre"],
        exec_reload=commands["exec-reload"],
        exec_stop=commands["exec-stop"],
        exec_stop_post=commands["exec-stop-post"],
        restart=_restart(fields, oneshot, problems),
        kill=KillPolicy(
            mode=KillMode(fields.get("service", "kill-mode", _KILL.mode.value)),
            signal=fields.get("service", "kill-signal", _KILL.signal),
            final_signal=fields.get("service", "final-kill-signal", _KILL.final_signal),
            watchdog_signal=fields.get("service", "watchdog-signal", _KILL.watchdog_signal),
            send_sigkill=fields.get("service", "send-sigkill", _KILL.send_sigkill),
        ),
        timeout_start_ns=fields.get("service", "timeout-start-sec", None if oneshot else _SERVICE.timeout_start_ns),
        timeout_stop_ns=timeout_stop,
        timeout_abort_ns=fields.get("service", "timeout-abort-sec", timeout_stop),
        remain_after_exit=fields.get("service", "remain-after-exit", False),
        notify_access=_notify_access(fields, kind),
        context=_context(fields),
        log=LogPolicy(
            max_bytes=fields.get("log", "max-bytes", _LOG.max_bytes),
            backups=fields.get("log", "backups", _LOG.backups),
        ),
    )
    _check_commands(service, fields, problems)
    return service


_COMMAND_KEYS = ("exec-start", "exec-start-pre", "exec-reload", "exec-stop", "exec-stop-post")


def _check_commands(service: Service, fields: _Fields, problems: list[Problem]) -> None:
    start: tuple[Command, ...] = service.exec_start
    if service.type is not ServiceType.ONESHOT:
        if len(start) > 1:
            problems.append(
                fields.problem(
                    "service",
                    "exec-start",
                    f"{len(start)} commands, and only a oneshot may have several",
                    'put those before the last into exec-start-pre, or write type = "oneshot"',
                )
            )
        elif not start:
            problems.append(fields.problem("service", "type", f"a unit of type {service.type.value} needs exec-start"))
    elif not start and not (service.exec_stop and service.remain_after_exit):
        hint = "write exec-start (or exec-stop and remain-after-exit = true)"
        problems.append(fields.problem("service", "exec-start", "[service] without exec-start", hint))


def _restart(fields: _Fields, oneshot: bool, problems: list[Problem]) -> RestartPolicy:
    restart = Restart(fields.get("service", "restart", "no" if oneshot else _RESTART.restart.value))
    if oneshot and restart in (Restart.ALWAYS, Restart.ON_SUCCESS):
        problems.append(
            fields.problem(
                "service",
                "restart",
                f"{restart.value} is not possible for a oneshot",
                "it would run without end; on-failure is",
            )
        )
    delay = fields.get("service", "restart-sec", _RESTART.delay_ns)
    if delay is None:
        problems.append(fields.problem("service", "restart-sec", "a pause without end", 'write restart = "no"'))
        delay = 0
    steps = fields.get("service", "restart-steps", _RESTART.steps)
    longest = fields.get("service", "restart-max-delay-sec", _RESTART.max_delay_ns)
    if longest is None:
        # Between a pause and infinity there are no steps: systemd ignores them too.
        steps = 0
    elif longest < delay:
        if fields.decoded("service", "restart-max-delay-sec") is not None:
            problems.append(
                fields.problem(
                    "service",
                    "restart-max-delay-sec",
                    "the longest pause is shorter than restart-sec",
                    "make it longer",
                )
            )
        longest = delay
    return RestartPolicy(
        restart=restart,
        delay_ns=delay,
        steps=steps,
        max_delay_ns=longest,
        jitter=fields.get("service", "restart-jitter", _RESTART.jitter),
        reset_ns=fields.get("service", "restart-reset-sec", _RESTART.reset_ns),
        failures=fields.get("quarantine", "failures", _RESTART.failures),
    )


def _notify_access(fields: _Fields, kind: ServiceType) -> NotifyAccess:
    access = NotifyAccess(fields.get("service", "notify-access", NotifyAccess.NONE.value))
    if access is NotifyAccess.NONE and kind in _NOTIFYING:
        return NotifyAccess.MAIN
    return access


def _context(fields: _Fields) -> ExecContext:
    environment: dict[str, str] = fields.get("service", "environment", {})
    limits = [(key, fields.decoded("limits", key)) for key in RLIMITS]
    return ExecContext(
        user=fields.get("service", "user", None),
        group=fields.get("service", "group", None),
        supplementary_groups=_unique(fields.get("service", "supplementary-groups", ())),
        working_directory=fields.get("service", "working-directory", None),
        umask=fields.get("service", "umask", _CONTEXT.umask),
        environment=tuple(environment.items()),
        ignore_sigpipe=fields.get("service", "ignore-sigpipe", True),
        rlimits=tuple((key, decoded.value) for key, decoded in limits if decoded is not None),
        nice=fields.get("limits", "nice", None),
        enforce=fields.get("limits", "enforce", _CONTEXT.enforce),
    )

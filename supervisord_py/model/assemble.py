"""Merged tables of one unit to a ``Unit``: defaults that depend on each other, and combinations that cannot be.

Relations are left as written (``RawDependency``); the unit set resolves groups and templates.
Source: contract, section 3; systemd src/core/service.c (service_verify, service_add_extras, service_fix_stop_timeout).
"""

import posixpath

from msgspec import Struct

from supervisord_py.model.agents import PREVENT, AgentRunner, agent_command, agent_environment
from supervisord_py.model.assemble_agents import read_agent, read_quarantine
from supervisord_py.model.assemble_context import assemble_context
from supervisord_py.model.assemble_health import assemble_health
from supervisord_py.model.assemble_sandbox import wrong_values as wrong_sandbox_values
from supervisord_py.model.assemble_sockets import assemble_sockets
from supervisord_py.model.assemble_timer import assemble_timer, read_calendars
from supervisord_py.model.calendar import Zones
from supervisord_py.model.fields import Fields
from supervisord_py.model.log import LogFormat, LogPolicy
from supervisord_py.model.names import UnitName
from supervisord_py.model.parse import Merged
from supervisord_py.model.problems import Problem
from supervisord_py.model.sockets import Sockets
from supervisord_py.model.states import (
    ExitSupervisorOn,
    KillMode,
    NotifyAccess,
    OnDependencyFailure,
    OomPolicy,
    Restart,
    ServiceType,
)
from supervisord_py.model.unit import (
    SECOND_NS,
    Command,
    Condition,
    ExitStatuses,
    KillPolicy,
    LoadedFrom,
    PoolPlace,
    Probe,
    Quarantine,
    RestartPolicy,
    Service,
    StartLimit,
    Timer,
    Unit,
    UnitKind,
)

_NOTIFYING = frozenset({ServiceType.NOTIFY, ServiceType.NOTIFY_RELOAD})
_DEFAULT_LIMIT = StartLimit(10 * SECOND_NS, 5)
"""systemd's, for the one of its two keys that is not written."""
_NO_STATUSES = ExitStatuses()
_OF_PROCESSES = ("limits", "sandbox", "log", "quarantine", "pool", "timer", "health", "socket")
# The defaults that stand in model.unit.
_SERVICE = Service()
_KILL = _SERVICE.kill
_RESTART = _SERVICE.restart
_LOG = _SERVICE.log


class Machine(Struct, frozen=True):
    """What there is on this machine that units refer to: only the host knows.

    ``zones`` are the time zones that ``on-calendar`` may name, ``runner`` runs agents.
    """

    zones: Zones
    runner: AgentRunner


def wrong_values(merged: Merged, machine: Machine) -> list[Problem]:
    """Return what is wrong with single values of a unit that cannot be put together, so that all is told at once."""
    fields = Fields(merged)
    problems = wrong_sandbox_values(fields)
    read_calendars(fields, problems, machine.zones)
    return problems


def assemble(name: UnitName, merged: Merged, source: LoadedFrom, machine: Machine) -> tuple[Unit | None, list[Problem]]:
    """Make the unit of what its files say.

    Args:
        name: The unit's name; its instance decides whether ``[instances]`` may stand here.
        merged: Decoded and merged.
        source: Where the unit comes from.
        machine: What there is here that units refer to.

    Returns:
        The unit without its relations, None when there are errors; and the problems, warnings among them.
    """
    fields = Fields(merged)
    problems: list[Problem] = []
    kinds = [table for table in ("agent", "service", "target") if fields.has(table)]
    if not kinds:
        hint = "add [service] with exec-start, [agent] with class, or [target] for a unit that only groups others"
        return None, [Problem(source.path, 0, 0, "", "neither [service], [agent] nor [target] is in the file", hint)]
    if "target" in kinds and len(kinds) > 1:
        message = f"a unit is {'an [agent]' if kinds[0] == 'agent' else 'a [service]'} or a [target], not both"
        problems.append(merged.problem(("target",), message, "take one of them out"))
    if fields.has("instances") and name.instance is None:
        problems.append(
            fields.problem("instances", "count", "only a template has instances", f"name the file {name}@.toml")
        )
    if kinds == ["target"]:
        for place in merged.tables:
            if place[0] in _OF_PROCESSES:
                hint = f"take [{'.'.join(map(str, place))}] out, or make the unit a [service]"
                problems.append(merged.problem(place, "a target has no process", hint))
    service = None if kinds == ["target"] else _service(fields, problems, machine, source)
    if service is None:
        for key in _START_LIMIT:
            if fields.decoded("unit", key) is not None:
                problems.append(fields.problem("unit", key, "a target has no automatic starts", "take it out"))
    health: tuple[Probe, ...] = ()
    timer: Timer | None = None
    sockets: Sockets | None = None
    quarantine = Quarantine()
    if service is not None:
        health = assemble_health(fields, service, problems)
        timer = assemble_timer(fields, service, problems, machine.zones) if fields.has("timer") else None
        sockets = assemble_sockets(fields, str(name), service, problems)
        folder = posixpath.dirname(source.path)
        quarantine = read_quarantine(fields, service.restart, machine.runner, folder, problems)
    if any(problem.severity == "error" for problem in problems):
        return None, problems
    ends = fields.get("unit", "exit-supervisor-on", None)
    unit = Unit(
        name=str(name),
        kind=UnitKind(kinds[0]),
        service=service,
        description=fields.get("unit", "description", ""),
        documentation=fields.get("unit", "documentation", ()),
        conditions=_conditions(fields, "condition-"),
        asserts=_conditions(fields, "assert-"),
        job_timeout_ns=fields.get("unit", "job-timeout-sec", None),
        enabled=fields.get("unit", "enabled", True),
        groups=_unique(fields.get("unit", "groups", ())),
        tags=_unique(fields.get("unit", "tags", ())),
        on_dependency_failure=OnDependencyFailure(fields.get("unit", "on-dependency-failure", "wait")),
        exit_supervisor_on=None if ends is None else ExitSupervisorOn(ends),
        health=health,
        timer=timer,
        sockets=sockets,
        pool=PoolPlace(fields.get("pool", "name", ""), fields.get("pool", "priority", 0)),
        quarantine=quarantine,
        source=source,
    )
    return unit, problems


def _conditions(fields: Fields, prefix: str) -> tuple[Condition, ...]:
    """All conditions of a unit, in the order in which they are written."""
    written = fields.merged.tables.get(("unit",), {})
    return tuple(condition for key, decoded in written.items() if key.startswith(prefix) for condition in decoded.value)


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _service(fields: Fields, problems: list[Problem], machine: Machine, source: LoadedFrom) -> Service:
    commands: dict[str, tuple[Command, ...]] = {key: fields.get("service", key, ()) for key in _COMMAND_KEYS}
    default_type = ServiceType.SIMPLE if commands["exec-start"] else ServiceType.ONESHOT
    agent = read_agent(fields, problems) if fields.has("agent") else None
    if agent is not None:
        default_type = ServiceType.NOTIFY
        commands["exec-start"] = (agent_command(agent, machine.runner, posixpath.dirname(source.path)),)
    kind = default_type if agent is not None else ServiceType(fields.get("service", "type", default_type.value))
    oneshot = kind is ServiceType.ONESHOT
    timeout_stop = fields.get("service", "timeout-stop-sec", _SERVICE.timeout_stop_ns)
    service = Service(
        type=kind,
        exec_start=commands["exec-start"],
        exec_start_pre=commands["exec-start-pre"],
        exec_condition=commands["exec-condition"],
        exec_start_post=commands["exec-start-post"],
        exec_reload=commands["exec-reload"],
        exec_stop=commands["exec-stop"],
        exec_stop_post=commands["exec-stop-post"],
        restart=_restart(fields, oneshot, problems, PREVENT if agent is not None else _NO_STATUSES),
        kill=KillPolicy(
            mode=KillMode(fields.get("service", "kill-mode", _KILL.mode.value)),
            signal=fields.get("service", "kill-signal", _KILL.signal),
            final_signal=fields.get("service", "final-kill-signal", _KILL.final_signal),
            watchdog_signal=fields.get("service", "watchdog-signal", _KILL.watchdog_signal),
            send_sigkill=fields.get("service", "send-sigkill", _KILL.send_sigkill),
            restart_signal=fields.get("service", "restart-kill-signal", _KILL.restart_signal),
            send_sighup=fields.get("service", "send-sighup", _KILL.send_sighup),
        ),
        timeout_start_ns=fields.get("service", "timeout-start-sec", None if oneshot else _SERVICE.timeout_start_ns),
        timeout_stop_ns=timeout_stop,
        timeout_abort_ns=fields.get("service", "timeout-abort-sec", timeout_stop),
        runtime_max_ns=fields.get("service", "runtime-max-sec", _SERVICE.runtime_max_ns),
        error_threshold=fields.get("service", "error-threshold", _SERVICE.error_threshold),
        watchdog_ns=fields.get("service", "watchdog-sec", _SERVICE.watchdog_ns),
        progress_ns=fields.get("service", "progress-sec", _SERVICE.progress_ns),
        success=fields.get("service", "success-exit-status", _NO_STATUSES),
        pid_file=fields.get("service", "pid-file", None),
        guess_main_pid=fields.get("service", "guess-main-pid", _SERVICE.guess_main_pid),
        reload_signal=fields.get("service", "reload-signal", _SERVICE.reload_signal),
        remain_after_exit=fields.get("service", "remain-after-exit", False),
        notify_access=_notify_access(fields, kind),
        oom_policy=OomPolicy(fields.get("service", "oom-policy", _SERVICE.oom_policy.value)),
        store_max=fields.get("service", "file-descriptor-store-max", _SERVICE.store_max),
        context=assemble_context(fields, () if agent is None else agent_environment(agent), problems),
        log=LogPolicy(
            max_bytes=fields.get("log", "max-bytes", _LOG.max_bytes),
            backups=fields.get("log", "backups", _LOG.backups),
            max_age_ns=fields.get("log", "max-age", None),
            compress=fields.get("log", "compress", _LOG.compress),
            format=LogFormat(fields.get("log", "format", _LOG.format.value)),
            rate_limit=fields.get("log", "rate-limit", None),
        ),
    )
    _check_commands(service, fields, problems)
    _check_type(service, fields, problems)
    return service


_COMMAND_KEYS = (
    "exec-condition", "exec-start-pre", "exec-start", "exec-start-post", "exec-reload", "exec-stop", "exec-stop-post",
)  # fmt: skip
_START_LIMIT = ("start-limit-interval-sec", "start-limit-burst")


def _check_type(service: Service, fields: Fields, problems: list[Problem]) -> None:
    """Keys that mean nothing, or something else than they say, for this type of unit."""

    def complain(key: str, message: str, hint: str, *, warning: bool = False) -> None:
        if fields.decoded("service", key) is not None:
            problems.append(fields.problem("service", key, message, hint, warning=warning))

    kind = service.type
    if service.runtime_max_ns == 0:
        complain("runtime-max-sec", "the unit would be ended at once", 'for no limit write "infinity"')
    elif kind is ServiceType.ONESHOT and service.runtime_max_ns is not None:
        complain(
            "runtime-max-sec",
            "a oneshot does not run on, so this limits nothing",
            "write timeout-start-sec: that is how long its commands may take",
            warning=True,
        )
    if kind is not ServiceType.FORKING:
        hint = 'take it out, or write type = "forking" if the program goes into the background'
        complain("pid-file", f"of a unit of type {kind.value} the main process is known without it", hint, warning=True)
        complain("guess-main-pid", f"nothing is guessed for a unit of type {kind.value}", hint, warning=True)
    elif service.pid_file is None:
        problems.append(
            fields.problem(
                "service",
                "type",
                "a forking unit without pid-file: "
                + (
                    "its main process is guessed, which fails where several are left"
                    if service.guess_main_pid
                    else "its main process stays unknown, so its end is seen by an empty process tree only"
                ),
                'write pid-file, or better: run the program in the foreground with type = "exec"',
                warning=True,
            )
        )
    if kind is not ServiceType.NOTIFY_RELOAD:
        complain(
            "reload-signal",
            f"a unit of type {kind.value} is not reloaded by a signal",
            'write type = "notify-reload", or exec-reload with a kill command',
            warning=True,
        )
    if kind is ServiceType.FORKING and service.remain_after_exit:
        complain(
            "remain-after-exit",
            "a forking unit that stays active when its daemon is gone",
            "take it out: a dead daemon would be shown as active",
            warning=True,
        )
    if 0 in service.success.codes:
        complain("success-exit-status", "0 is success anyway", "take it out", warning=True)
    prevent: ExitStatuses = fields.get("service", "restart-prevent-exit-status", _NO_STATUSES)
    force: ExitStatuses = fields.get("service", "restart-force-exit-status", _NO_STATUSES)
    if set(prevent.codes) & set(force.codes) or set(prevent.signals) & set(force.signals):
        complain(
            "restart-force-exit-status",
            "one of these is in restart-prevent-exit-status too, which wins",
            "leave it in one of them",
            warning=True,
        )


def _check_commands(service: Service, fields: Fields, problems: list[Problem]) -> None:
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


def _restart(fields: Fields, oneshot: bool, problems: list[Problem], prevent: ExitStatuses) -> RestartPolicy:
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
    limit = _start_limit(fields, problems)
    return RestartPolicy(
        restart=restart,
        delay_ns=delay,
        steps=steps,
        max_delay_ns=longest,
        jitter=fields.get("service", "restart-jitter", _RESTART.jitter),
        reset_ns=fields.get("service", "restart-reset-sec", _RESTART.reset_ns),
        failures=0 if limit is not None else fields.get("quarantine", "failures", _RESTART.failures),
        prevent=fields.get("service", "restart-prevent-exit-status", prevent),
        force=fields.get("service", "restart-force-exit-status", _NO_STATUSES),
        limit=limit,
    )


def _start_limit(fields: Fields, problems: list[Problem]) -> StartLimit | None:
    """systemd's plain window, where one of its keys is written; it takes the place of the quarantine."""
    written = [key for key in _START_LIMIT if fields.decoded("unit", key) is not None]
    if not written:
        return None
    if fields.merged.tables.get(("quarantine",)):
        hint = "leave one of them: [quarantine] counts failures, this counts automatic starts in a window"
        problems.append(fields.problem("unit", written[0], f"{written[0]} together with [quarantine]", hint))
    return StartLimit(
        fields.get("unit", "start-limit-interval-sec", _DEFAULT_LIMIT.interval_ns),
        fields.get("unit", "start-limit-burst", _DEFAULT_LIMIT.burst),
    )


_TELLING = ("watchdog-sec", "progress-sec", "error-threshold", "file-descriptor-store-max")
"""Keys about what the process itself tells: it needs somebody who listens."""


def _notify_access(fields: Fields, kind: ServiceType) -> NotifyAccess:
    access = NotifyAccess(fields.get("service", "notify-access", NotifyAccess.NONE.value))
    listens = kind in _NOTIFYING or any(fields.get("service", key, 0) for key in _TELLING)
    return NotifyAccess.MAIN if access is NotifyAccess.NONE and listens else access

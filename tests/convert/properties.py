"""The properties that booted systemd computed for a unit, and what our unit of the same files says of each.

Properties of keys that are built are read from the parsed unit; those of keys to come from the draft, before what is
not built was taken out of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from supervisord_py.convert.draft import Draft
from supervisord_py.convert.systemd_rules import Rules
from supervisord_py.convert.systemd_units import our_name, parse_name
from supervisord_py.model.conditions import CAPABILITIES
from supervisord_py.model.names import parse_unit_name
from supervisord_py.model.specifiers import Specifiers
from supervisord_py.model.unit import Command, Service, Unit
from supervisord_py.model.values import parse_limit, parse_size, parse_timespan
from tests.convert.bench import CONTEXT

INFINITY = 2**64 - 1
_EXEC = {
    "ExecStartEx": "exec_start", "ExecStartPreEx": "exec_start_pre", "ExecStartPostEx": "exec_start_post",
    "ExecReloadEx": "exec_reload", "ExecStopEx": "exec_stop", "ExecStopPostEx": "exec_stop_post",
    "ExecConditionEx": "exec_condition",
}  # fmt: skip
_CLASSES = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
_POLICIES = {"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}
_ALL_CAPABILITIES = (1 << len(CAPABILITIES)) - 1

Ours = Callable[["Seen"], object]


class Seen:
    """One unit: parsed, and as the converter drew it before anything was taken out."""

    def __init__(self, unit: Unit, raw: Mapping[tuple[str | int, ...], Mapping[str, Any]]) -> None:
        self.unit = unit
        self.raw = raw
        self.expand = Specifiers(CONTEXT, parse_unit_name(unit.name)).expand_all
        assert unit.service is not None
        self.service: Service = unit.service

    def get(self, table: str, key: str, default: Any = None) -> Any:
        value = self.raw.get((table,), {}).get(key, default)
        # Numbers and percentages have no specifiers.
        return value if table == "limits" else self.expand(value)


def _usec(ns: int | None) -> int:
    return INFINITY if ns is None else ns // 1000


def _commands(commands: tuple[Command, ...]) -> list[list[object]]:
    found: list[list[object]] = []
    for command in commands:
        flags = [
            *(["ignore-failure"] if command.ignore_failure else []),
            *(["privileged"] if command.privileged else []),
            *(["no-setuid"] if command.keeps_user else []),
            *([] if command.expand else ["no-env-expand"]),
        ]
        found.append([command.words[0], [command.argv0 or command.words[0], *command.words[1:]], flags])
    return found


def _statuses(statuses: Any) -> list[list[int]]:
    return [sorted(statuses.codes), sorted(statuses.signals)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _limit(name: str, which: str) -> Ours:
    def ours(seen: Seen) -> object:
        limit = dict(seen.service.context.rlimits).get(name)
        if limit is None:
            return None
        value = getattr(limit, which)
        return INFINITY if value is None else value

    return ours


def _mode(table: str, key: str) -> Ours:
    return lambda seen: int(seen.get(table, key, "0755"), 8)


def _raw(table: str, key: str, default: Any = None) -> Ours:
    return lambda seen: seen.get(table, key, default)


def _strings(table: str, key: str) -> Ours:
    return lambda seen: sorted(_listed(seen.get(table, key, [])))


def capability_mask(words: list[str], start: int) -> int:
    """The set that a list of names makes: ``~`` takes out."""
    mask = start
    inverted = bool(words) and words[0].startswith("~")
    if not inverted:
        mask = 0
    for word in (f"~{word}" if line.startswith("~") else word for line in words for word in line.strip("~").split()):
        name = word.removeprefix("~").lower()
        bit = 1 << CAPABILITIES.index(name) if name in CAPABILITIES else 0
        mask = mask & ~bit if word.startswith("~") else mask | bit
    return mask


def _mask(key: str, start: int) -> Ours:
    def ours(seen: Seen) -> object:
        words = _listed(seen.get("sandbox", key, []))
        written = [word for word in words if word]
        return (capability_mask(written, start) if written else 0 if words else start) & _ALL_CAPABILITIES

    return ours


def _environment_files(seen: Seen) -> object:
    files = _listed(seen.get("service", "environment-file", []))
    return [[file.removeprefix("-"), file.startswith("-")] for file in files]


def _error_output(seen: Seen) -> object:
    written = seen.get("service", "standard-error")
    if written is None:
        # Standard error goes where standard output goes, which is the journal there and the log here.
        return "journal" if seen.get("service", "standard-output") is None else "inherit"
    return {"journald": "journal"}.get(written, written.partition(":")[0])


def _tasks(seen: Seen) -> object:
    value = seen.get("limits", "tasks-max")
    return INFINITY if value == "infinity" else value


def _families(seen: Seen) -> object:
    lines = _listed(seen.get("sandbox", "restrict-address-families", []))
    words = [f"~{word}" if line.startswith("~") else word for line in lines for word in line.strip("~").split()]
    names = {word.removeprefix("~").replace("AF_LOCAL", "AF_UNIX") for word in words}
    return [not any(word.startswith("~") for word in words), sorted(names)]


def _namespaces(seen: Seen) -> object:
    value = seen.get("sandbox", "restrict-namespaces")
    return 0 if value is True else value


PROPERTIES: dict[str, Ours] = {
    **{f"Service.{name}": (lambda seen, field=field: _commands(getattr(seen.service, field)))
       for name, field in _EXEC.items()},
    "Unit.Description": lambda seen: seen.unit.description,
    "Unit.Documentation": lambda seen: list(seen.unit.documentation),
    "Unit.Conditions": lambda seen: _conditions(seen.unit.conditions, "Condition"),
    "Unit.Asserts": lambda seen: _conditions(seen.unit.asserts, "Assert"),
    "Unit.StartLimitBurst": lambda seen: seen.service.restart.limit and seen.service.restart.limit.burst,
    "Unit.StartLimitIntervalUSec": lambda seen: (
        seen.service.restart.limit and _usec(seen.service.restart.limit.interval_ns)
    ),
    "Service.Type": lambda seen: seen.service.type.value,
    "Service.Restart": lambda seen: seen.service.restart.restart.value,
    "Service.RestartUSec": lambda seen: _usec(seen.service.restart.delay_ns),
    "Service.User": lambda seen: seen.service.context.user,
    "Service.Group": lambda seen: seen.service.context.group,
    "Service.DynamicUser": lambda seen: seen.service.context.dynamic_user,
    "Service.UMask": lambda seen: seen.service.context.umask,
    "Service.WorkingDirectory": lambda seen: seen.service.context.working_directory,
    "Service.Environment": lambda seen: [f"{name}={value}" for name, value in seen.service.context.environment],
    "Service.EnvironmentFiles": _environment_files,
    "Service.TimeoutStartUSec": lambda seen: _usec(seen.service.timeout_start_ns),
    "Service.TimeoutStopUSec": lambda seen: _usec(seen.service.timeout_stop_ns),
    "Service.TimeoutAbortUSec": lambda seen: _usec(seen.service.timeout_abort_ns),
    "Service.WatchdogUSec": lambda seen: (seen.service.watchdog_ns or 0) // 1000,
    "Service.PIDFile": lambda seen: seen.service.pid_file,
    "Service.KillMode": lambda seen: seen.service.kill.mode.value,
    "Service.KillSignal": lambda seen: seen.service.kill.signal,
    "Service.RestartKillSignal": lambda seen: seen.service.kill.restart_signal or seen.service.kill.signal,
    "Service.SendSIGKILL": lambda seen: seen.service.kill.send_sigkill,
    "Service.RemainAfterExit": lambda seen: seen.service.remain_after_exit,
    "Service.NotifyAccess": lambda seen: seen.service.notify_access.value,
    "Service.IgnoreSIGPIPE": lambda seen: seen.service.context.ignore_sigpipe,
    "Service.SuccessExitStatus": lambda seen: _statuses(seen.service.success),
    "Service.RestartPreventExitStatus": lambda seen: _statuses(seen.service.restart.prevent),
    "Service.Nice": _raw("limits", "nice"),
    "Service.OOMScoreAdjust": _raw("limits", "oom-score-adjust"),
    "Service.IOSchedulingClass": lambda seen: _CLASSES.get(seen.get("limits", "io-scheduling-class", "")),
    "Service.IOSchedulingPriority": _raw("limits", "io-scheduling-priority"),
    "Service.CPUSchedulingPolicy": lambda seen: _POLICIES.get(seen.get("limits", "cpu-scheduling-policy", "")),
    "Service.IOWeight": _raw("limits", "io-weight"),
    "Service.TasksMax": _tasks,
    "Service.MemoryMax": lambda seen: parse_size(seen.get("limits", "memory-max", 0)),
    "Service.RuntimeDirectory": lambda seen: _listed(seen.get("service", "runtime-directory")),
    "Service.StateDirectory": lambda seen: _listed(seen.get("service", "state-directory")),
    "Service.CacheDirectory": lambda seen: _listed(seen.get("service", "cache-directory")),
    "Service.LogsDirectory": lambda seen: _listed(seen.get("service", "logs-directory")),
    "Service.ConfigurationDirectory": lambda seen: _listed(seen.get("service", "configuration-directory")),
    "Service.RuntimeDirectoryMode": _mode("service", "runtime-directory-mode"),
    "Service.StateDirectoryMode": _mode("service", "state-directory-mode"),
    "Service.LogsDirectoryMode": _mode("service", "logs-directory-mode"),
    "Service.ConfigurationDirectoryMode": _mode("service", "configuration-directory-mode"),
    "Service.RuntimeDirectoryPreserve": _raw("service", "runtime-directory-preserve"),
    "Service.StandardInput": _raw("service", "standard-input", "null"),
    "Service.StandardOutput": lambda seen: seen.get("service", "standard-output", "journal").partition(":")[0],
    "Service.StandardError": _error_output,
    "Service.SyslogIdentifier": _raw("service", "syslog-identifier"),
    "Service.CapabilityBoundingSet": _mask("capability-bounding-set", _ALL_CAPABILITIES),
    "Service.AmbientCapabilities": _mask("ambient-capabilities", 0),
    "Service.RestrictAddressFamilies": _families,
    "Service.RestrictNamespaces": _namespaces,
    "Service.ReadOnlyPaths": _strings("sandbox", "read-only-paths"),
    "Service.ReadWritePaths": _strings("sandbox", "read-write-paths"),
    "Service.InaccessiblePaths": _strings("sandbox", "inaccessible-paths"),
    "Service.ExecPaths": _strings("sandbox", "exec-paths"),
    "Service.NoExecPaths": _strings("sandbox", "no-exec-paths"),
    "Service.SystemCallArchitectures": _strings("sandbox", "system-call-architectures"),
    **{f"Service.{name}": _raw("sandbox", key, False) for name, key in {
        "LockPersonality": "lock-personality", "MemoryDenyWriteExecute": "memory-deny-write-execute",
        "NoNewPrivileges": "no-new-privileges", "PrivateDevices": "private-devices",
        "PrivateNetwork": "private-network", "PrivateTmp": "private-tmp", "PrivateUsers": "private-users",
        "ProcSubset": "proc-subset", "ProtectClock": "protect-clock", "ProtectControlGroups": "protect-control-groups",
        "ProtectHome": "protect-home", "ProtectHostname": "protect-hostname",
        "ProtectKernelLogs": "protect-kernel-logs", "ProtectKernelModules": "protect-kernel-modules",
        "ProtectKernelTunables": "protect-kernel-tunables", "ProtectProc": "protect-proc",
        "ProtectSystem": "protect-system", "RemoveIPC": "remove-ipc", "RestrictRealtime": "restrict-realtime",
        "RestrictSUIDSGID": "restrict-suid-sgid", "KeyringMode": "keyring-mode",
    }.items()},
    **{f"Service.Limit{name.upper()}": _limit(name, "hard") for name in ("nofile", "nproc", "memlock", "rtprio")},
    **{f"Service.Limit{name.upper()}Soft": _limit(name, "soft")
       for name in ("nofile", "nproc", "memlock", "rtprio", "core")},
    "Timer.AccuracyUSec": lambda seen: seen.unit.timer and seen.unit.timer.accuracy_ns // 1000,
    "Timer.RandomizedDelayUSec": lambda seen: seen.unit.timer and seen.unit.timer.randomized_delay_ns // 1000,
    "Timer.Persistent": lambda seen: seen.unit.timer and seen.unit.timer.persistent,
}  # fmt: skip
"""What our unit says of a property, in systemd's terms."""

RELATIONS = ("After", "Before", "Wants", "Requires", "BindsTo", "Conflicts", "PartOf", "OnFailure", "Requisite")


def _conditions(conditions: Any, prefix: str) -> list[list[object]]:
    from tests.convert.bench import KEYS

    spec = KEYS.find("unit", "unit")
    assert spec is not None
    names = {key.partition("-")[2]: each.systemd for key, each in spec.keys.items() if key.startswith(prefix.lower())}
    return sorted([names[each.kind], each.trigger, each.negate, each.parameter] for each in conditions)


IMPLIED_CAPABILITIES = sum(
    1 << CAPABILITIES.index(f"cap_{name}")
    for name in ("sys_module", "sys_time", "wake_alarm", "syslog", "mknod", "sys_rawio", "mac_override", "mac_admin")
)
"""What Protect*= and PrivateDevices= take away too: the sandbox does, when the unit starts."""

IMPLIED_BY_DYNAMIC_USER = {
    "Service.NoNewPrivileges": lambda sandbox: sandbox.no_new_privileges,
    "Service.PrivateTmp": lambda sandbox: sandbox.private_tmp,
    "Service.RemoveIPC": lambda sandbox: sandbox.remove_ipc,
    "Service.RestrictSUIDSGID": lambda sandbox: sandbox.restrict_suid_sgid,
    "Service.ProtectSystem": lambda sandbox: sandbox.protect_system,
    "Service.ProtectHome": lambda sandbox: sandbox.protect_home,
}
NAMES_OF_DYNAMIC_USER = frozenset({"Service.User", "Service.Group"})
"""systemd writes them out; here the name is found when the unit starts."""


def normal(name: str, value: Any) -> Any:
    """systemd's value in the form that ours has."""
    if name in ("Unit.Conditions", "Unit.Asserts"):
        return sorted(value)
    if name.endswith(("CapabilityBoundingSet", "AmbientCapabilities")):
        return value & _ALL_CAPABILITIES
    if name == "Service.RestrictAddressFamilies":
        return [value[0], sorted(value[1])]
    if name == "Service.StandardError" and value == "inherit":
        return "journal"
    if name.endswith(("Paths", "Architectures")):
        return sorted(value)
    if name.endswith("Ex"):
        # !! does nothing where there are ambient capabilities.
        return [[path, argv, [flag for flag in flags if flag != "ambient"]] for path, argv, flags in value]
    return value


def edges(units: Mapping[str, Unit], name: str) -> dict[str, set[str]]:
    """The relations of a unit, with the orders that the other units say."""
    unit = units[name]
    ordered = {each.unit for relation in (unit.requires, unit.wants, unit.requisite, unit.binds_to)
               for each in relation if each.ordered}  # fmt: skip
    return {
        "After": {each.unit for each in unit.after} | ordered | {n for n, u in units.items() if name in u.before},
        "Before": set(unit.before) | {n for n, u in units.items() if any(e.unit == name for e in u.after)},
        "Wants": {each.unit for each in unit.wants},
        "Requires": {each.unit for each in unit.requires},
        "BindsTo": {each.unit for each in unit.binds_to},
        "Conflicts": set(unit.conflicts),
        "PartOf": set(unit.part_of),
        "OnFailure": set(unit.on_failure),
        "Requisite": {each.unit for each in unit.requisite},
    }


def missing_edges(
    key: str,
    theirs: list[str],
    ours: set[str],
    own: str,
    rules: Rules,
    names: Mapping[str, str],
    units: Mapping[str, Unit],
) -> list[str]:
    """What systemd has of a relation and we have not, but for units that are none here."""
    missing: list[str] = []
    for other in theirs:
        parsed = parse_name(other)
        if parsed is None or parsed.suffix not in ("service", "target", "socket", "timer"):
            continue
        if rules.milestone(other) is not None and other not in names:
            continue
        template = f"{parsed.prefix}@.{parsed.suffix}"
        name = names.get(other)
        if name is None and parsed.instance is not None and template in names:
            name = f"{names[template].rstrip('@')}@{parsed.instance}"
        name = name or our_name(parsed)
        required = key in ("Requires", "BindsTo", "Requisite")
        if name == own or name in ours or (required and name not in units):
            continue
        missing.append(other)
    return missing


def raw_tables(draft: Draft) -> dict[tuple[str | int, ...], dict[str, Any]]:
    return {table: dict(values) for table, values in draft.tables.items()}


__all__ = ["PROPERTIES", "RELATIONS", "Seen", "edges", "missing_edges", "normal", "parse_limit", "parse_timespan",
           "raw_tables"]  # fmt: skip

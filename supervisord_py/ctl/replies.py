"""What the supervisor's replies look like, typed, in the words of the contract.

Varlink has no ``-`` in enums, so on the wire ``start-pre`` is ``start_pre``; ``unit_from_wire`` and its siblings are
the one place where the words are turned back. They are plain dictionaries with a type, not structs: what a newer
supervisor adds is kept and printed.
"""

from typing import Any, TypedDict, cast


class ExitReply(TypedDict, total=False):
    code: int | None
    signal: str | None


class CheckReply(TypedDict):
    """A health check; ``good`` None as long as nothing is known."""

    name: str
    kind: str
    check: str
    good: bool | None
    detail: str
    checked_at: str | None


class UnitReply(TypedDict, total=False):
    """One unit; the fields up to ``why`` are those of ``status --json``, the rest belongs to ``show``."""

    name: str
    description: str
    load_state: str
    active_state: str
    sub_state: str
    result: str
    pid: int | None
    invocation: str | None
    since: str | None
    restarts: int
    failures: int
    exit: ExitReply | None
    memory_bytes: int | None
    cpu_ns: int | None
    tasks: int | None
    status_text: str | None
    path: str | None
    enabled: bool
    why: str | None
    exec: str | None
    lines: list[str] | None
    groups: list[str]
    needs_restart: bool
    needs_reload: bool
    refused: str | None
    condition_result: bool | None
    condition_at: str | None
    condition_unmet: str | None
    health: list[CheckReply]
    next_elapse: str | None
    last_elapse: str | None
    sockets: list[str]
    accepted: int
    connections: int
    stored: list[str]
    dropped_lines: int
    transient: bool
    has_run: bool
    lowered_limits: list[str]
    applied: list[str]
    degraded: list[str]
    restart_keys: list[str] | None


class OutcomeReply(TypedDict):
    unit: str
    job: int
    type: str
    result: str
    message: str


STATUS_FIELDS = (
    "name", "description", "load_state", "active_state", "sub_state", "result", "pid", "invocation", "since",
    "restarts", "failures", "exit", "memory_bytes", "cpu_ns", "tasks", "status_text", "path", "enabled", "why",
    "needs_restart", "needs_reload", "refused", "condition_result", "condition_at", "condition_unmet", "health",
    "next_elapse", "last_elapse",
    "has_run", "lowered_limits", "applied", "degraded", "sockets", "accepted", "connections", "stored",
    "dropped_lines", "transient",
)  # fmt: skip
"""The fields of ``status --json``, exactly, those of the contract in its order."""

_WORDS = ("load_state", "active_state", "sub_state", "result", "type", "state", "kind", "until")
"""Fields that hold a word of an enum."""

NEVER_LOADED = ("not-found", "bad-setting", "masked", "rejected")
RUNNING_STATES = ("active", "reloading")


def words_from_wire(raw: dict[str, Any]) -> dict[str, Any]:
    """Return ``raw`` with the words of its own enum fields as the contract spells them."""
    return {
        key: value.replace("_", "-") if key in _WORDS and isinstance(value, str) else value
        for key, value in raw.items()
    }


def exit_from_wire(raw: object) -> ExitReply | None:
    """Return an exit with only the field that says something; None when nothing is known."""
    if not isinstance(raw, dict):
        return None
    known = {key: raw[key] for key in ("code", "signal") if raw.get(key) is not None}
    return cast(ExitReply, known) if known else None


def unit_from_wire(raw: dict[str, Any]) -> UnitReply:
    """Return one ``Unit`` of the Varlink interface; nullable fields that were left out are None."""
    unit = cast(UnitReply, dict.fromkeys(STATUS_FIELDS) | words_from_wire(raw))
    unit["exit"] = exit_from_wire(raw.get("exit"))
    # An older supervisor does not say.
    unit["needs_restart"], unit["needs_reload"] = bool(raw.get("needs_restart")), bool(raw.get("needs_reload"))
    unit["health"] = raw.get("health") or []
    for key in ("lowered_limits", "applied", "degraded"):
        unit[key] = list(raw.get(key) or ())
    unit["transient"] = bool(raw.get("transient"))
    unit["has_run"] = bool(raw.get("has_run", True))
    return unit


def units_from_wire(reply: dict[str, Any]) -> list[UnitReply]:
    return [unit_from_wire(raw) for raw in reply["units"]]


def outcomes_from_wire(raw: object) -> list[OutcomeReply]:
    return [cast(OutcomeReply, words_from_wire(outcome)) for outcome in raw] if isinstance(raw, list) else []


def status_document(unit: UnitReply) -> dict[str, Any]:
    """Return what ``status --json`` prints of one unit: ``STATUS_FIELDS``, nothing else."""
    fields = cast(dict[str, Any], unit)
    return {name: fields[name] for name in STATUS_FIELDS}


def is_unknown(unit: UnitReply) -> bool:
    """Is there neither a file nor a life of this name? One that lives on without a file is what its state says."""
    return unit["load_state"] == "not-found" and unit["active_state"] in ("inactive", "failed")


def is_problem(unit: UnitReply) -> bool:
    """Is this a unit that somebody should look at?"""
    if unit["load_state"] in NEVER_LOADED:
        return unit["load_state"] != "masked"
    if unit["active_state"] in ("failed", "quarantined"):
        return True
    return unit["sub_state"] in ("stuck", "auto-restart", "auto-restart-queued", "stub") or (
        unit["active_state"] == "inactive" and unit["sub_state"] == "dependency"
    )


_RANK = {"failed": 0, "quarantined": 1}


def by_trouble(unit: UnitReply) -> tuple[int, int, str]:
    """Sort key: what is wrong first, the worst of it first, then by name."""
    if not is_problem(unit):
        return (1, 0, unit["name"])
    return (0, _RANK.get(unit["active_state"], 2), unit["name"])


def health_text(unit: UnitReply) -> str:
    """Say in a word or two that a unit runs and its health checks are bad; empty where that is not so."""
    bad = [check["kind"] for check in unit["health"] if check["good"] is False]
    if not bad or unit["active_state"] not in RUNNING_STATES:
        return ""
    return "not ready" if "readiness" in bad else "unhealthy"


def state_text(unit: UnitReply) -> str:
    """Return a unit's state for people: the active state, and the sub-state or load state where that says more, or how
    the unit is where it runs and is not well."""
    if unit["load_state"] in NEVER_LOADED:
        # What runs on with a file that became invalid, or vanished, is not hidden by it.
        at_rest = unit["active_state"] in ("inactive", "failed")
        return unit["load_state"] if at_rest else f"{unit['active_state']} ({unit['load_state']})"
    active, sub = unit["active_state"], unit["sub_state"]
    plain = {
        "active": "running",
        "inactive": "dead",
        "reloading": "reload",
        "deactivating": "stop",
        "activating": "start",
    }
    more = health_text(unit) or ("" if sub in (plain.get(active), active) else sub)
    return f"{active} ({more})" if more else active


def exit_text(ended: ExitReply | None, result: str) -> str:
    """Return how the last life ended in a few words: ``exit 1``, ``SIGKILL``, ``exit 0 (watchdog)``; empty when it
    never did.
    """
    if ended is None:
        return "" if result == "success" else result
    text = f"exit {ended['code']}" if ended.get("code") is not None else str(ended.get("signal"))
    return text if result in ("success", "exit-code", "signal") else f"{text} ({result})"


_EXIT_STATUSES = {
    126: "the program could not be executed",
    127: "command not found",
    200: "CHDIR: the working directory",
    201: "NICE: the priority could not be set",
    202: "FDS: the file descriptors",
    203: "EXEC: the program could not be run",
    204: "MEMORY: no memory left",
    205: "LIMITS: a resource limit could not be set",
    206: "OOM_ADJUST: oom-score-adjust could not be set",
    207: "SIGNAL_MASK: the signal mask could not be set",
    208: "STDIN: standard input could not be opened",
    209: "STDOUT: standard output could not be opened",
    210: "CHROOT: the root directory",
    211: "IOPRIO: the I/O priority could not be set",
    214: "SETSCHEDULER: the scheduling policy could not be set",
    215: "CPUAFFINITY: the CPU affinity could not be set",
    216: "GROUP: the group could not be set",
    217: "USER: the user could not be set",
    218: "CAPABILITIES: they could not be set",
    219: "CGROUP: the process could not be put into it",
    220: "SETSID: no session of its own",
    222: "STDERR: standard error could not be opened",
    225: "NETWORK: the network namespace",
    226: "NAMESPACE: the mount namespace",
    227: "NO_NEW_PRIVILEGES: it could not be set",
    228: "SECCOMP: the system call filter",
    230: "PERSONALITY: it could not be set",
    233: "RUNTIME_DIRECTORY: its runtime folder",
    238: "STATE_DIRECTORY: its state folder",
    239: "CACHE_DIRECTORY: its cache folder",
    240: "LOGS_DIRECTORY: its folder for logs",
    241: "CONFIGURATION_DIRECTORY: its configuration folder",
    243: "CREDENTIALS: they could not be given",
}
"""What an exit code means where everybody agrees on it. Source: systemd.exec(5), "Process exit codes"; sh(1)."""


def explain_exit(ended: ExitReply) -> str:
    """Return an exit decoded for the detailed status: ``code 203 (EXEC: ...)``, ``signal SIGKILL (...)``."""
    code = ended.get("code")
    if code is None:
        name = str(ended.get("signal"))
        hint = {
            "SIGKILL": "killed outright: by an operator, the supervisor's stop, or the kernel when memory ran out",
            "SIGSEGV": "it touched memory that is not its own: a bug of the program",
            "SIGABRT": "it gave up by itself, or a watchdog ended it",
            "SIGBUS": "a file it had mapped was cut, or the disk is bad",
            "SIGSYS": "it made a system call that its sandbox refuses; with system-call-error-number it gets an error",
            "SIGXCPU": "the limit cpu was reached",
            "SIGXFSZ": "the limit fsize was reached",
        }.get(name)
        return f"signal {name} ({hint})" if hint else f"signal {name}"
    if code in _EXIT_STATUSES:
        return f"code {code} ({_EXIT_STATUSES[code]})"
    if 128 < code < 160:
        import signal

        try:
            return f"code {code} (a shell's way to say {signal.Signals(code - 128).name})"
        except ValueError:
            pass
    return f"code {code}"

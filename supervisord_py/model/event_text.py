"""A journal record as one line for people: what the terminal of ``run`` and ``supctl journal tail`` show."""

from collections.abc import Mapping
from typing import Any

_STYLES = {"error": "31", "warning": "33", "info": ""}
_HIDDEN = frozenset(
    {
        "seq",
        "ts",
        "mono_ns",
        "boot",
        "event",
        "severity",
        "unit",
        "invocation",
        "cause",
        "hash",
        "rusage",
        "spawn_id",
        "core",
        "traceback",
    }
)
"""What the line says already, and what does not fit into one."""


def format_event(record: Mapping[str, Any], *, colour: bool = False, date: bool = False) -> str:
    """Return ``record`` as ``TIME UNIT EVENT words``; with ``date`` the whole RFC 3339 time instead of the time of
    day."""
    stamp = str(record.get("ts") or "")
    if not date and len(stamp) >= 23:
        stamp = stamp[11:23]
    unit = str(record.get("unit") or "-")
    event = str(record.get("event"))
    text = f"{stamp} {unit:<16} {event:<22} {event_words(record)}".rstrip()
    style = _STYLES.get(str(record.get("severity")), "")
    if not colour:
        return text
    if style:
        return f"\x1b[{style}m{text}\x1b[0m"
    return f"\x1b[2m{stamp}\x1b[0m {text[len(stamp) + 1 :]}"


def event_words(record: Mapping[str, Any]) -> str:
    """Say in a few words what the event's own fields say: how a process ended, who gave a command, else the fields as
    they are."""
    match record.get("event"):
        case "unit.exited":
            runtime_ms = record.get("runtime_ms")
            lived = f" after {_seconds(runtime_ms)}" if isinstance(runtime_ms, int) else ""
            role = "" if record.get("role") == "main" else f"{record.get('role')} "
            if record.get("step") is not None:
                code = "" if record.get("code") is None else f" ({record['code']})"
                return f"{role}never ran: step {record['step']}{code}"
            return f"{role}pid {record.get('pid')} {exit_words(record)}{lived}"
        case "command" | "command.denied":
            who = f"uid {record.get('uid')}" if record.get("peer_unit") is None else f"unit {record.get('peer_unit')}"
            if record.get("address") is not None:
                who = f"key {record.get('key') or '(unknown)'} ({record['address']})"
            reason = f" ({record['reason']})" if record.get("reason") else ""
            units = " ".join(str(unit) for unit in record.get("units") or ())
            return f"{who}: {record.get('verb')} {units}{reason} -> {record.get('result')}"
        case _:
            return " ".join(
                f"{key}={_short(value)}" for key, value in record.items() if key not in _HIDDEN and value is not None
            )


def exit_words(record: Mapping[str, Any]) -> str:
    """Say how a process ended: ``exited 1``, ``killed by SIGSEGV (core dumped)``, ``ended, status unknown``."""
    if record.get("code") is not None:
        return f"exited {record['code']}"
    if record.get("signal") is not None:
        return f"killed by {record['signal']}{' (core dumped)' if record.get('core') else ''}"
    return "ended, status unknown"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _short(value: object) -> str:
    match value:
        case bool():
            text = "true" if value else "false"
        case list():
            text = " ".join(map(str, value))
        case dict():
            text = " ".join(f"{name}:{entry}" for name, entry in value.items())
        case _:
            text = " ".join(str(value).splitlines())
    return text if len(text) <= 100 else text[:97] + "..."

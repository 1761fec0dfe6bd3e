"""``status``, ``list`` and the ``is-*`` questions: what runs, and what is wrong."""

import time
from collections.abc import Sequence
from typing import Any

import click

from supervisord_py.ctl.client import ControlError
from supervisord_py.ctl.options import Verb, units_argument
from supervisord_py.ctl.render import (
    STATE_COLOURS,
    Cell,
    Style,
    clean,
    format_ago,
    format_bytes,
    format_cpu,
    format_duration,
    format_moment,
    parse_timestamp,
    table,
    text_width,
)
from supervisord_py.ctl.replies import (
    NEVER_LOADED,
    RUNNING_STATES,
    UnitReply,
    by_trouble,
    exit_text,
    explain_exit,
    health_text,
    is_problem,
    is_unknown,
    state_text,
    status_document,
    units_from_wire,
)
from supervisord_py.ctl.session import Session

NO_SUCH_UNIT = 4
NOT_RUNNING = 3


class Found:
    """What came of looking units up: those that are there, and the first name that is not."""

    __slots__ = ("missing", "units", "unloaded")

    def __init__(self) -> None:
        self.units: list[UnitReply] = []
        self.missing: ControlError | None = None
        self.unloaded: dict[str, Any] | None = None
        """What is on disk and not loaded: ``units`` whose file is new, ``settings`` that changed."""

    def more(self) -> dict[str, Any]:
        """Return what stands beside the units in the document."""
        return {} if self.unloaded is None else {"unloaded": self.unloaded}


def look_up(session: Session, patterns: Sequence[str], *, failed: bool = False, lines: int | None = None) -> Found:
    """Fetch units. One name that does not exist does not hide the others.

    Args:
        session: Where to ask.
        patterns: Names, @groups, template@ and globs; none stands for all units.
        failed: Only those with a problem.
        lines: So many last lines of output with each; None asks for none and needs less permission.

    Raises:
        ControlError: Anything but ``NoSuchUnit``.
    """

    found = Found()

    def fetch(wanted: Sequence[str]) -> list[UnitReply]:
        if lines is not None:
            units = units_from_wire(session.call("Status", units=list(wanted), lines=lines))
            return [unit for unit in units if is_problem(unit)] if failed else units
        reply = session.call("List", units=list(wanted), failed=failed)
        found.unloaded = reply.get("unloaded")
        return units_from_wire(reply)

    try:
        found.units = fetch(patterns)
        return found
    except ControlError as error:
        if error.name != "NoSuchUnit":
            raise
        found.missing = error
    seen: dict[str, UnitReply] = {}
    for pattern in patterns if len(patterns) > 1 else ():
        try:
            seen |= {unit["name"]: unit for unit in fetch([pattern])}
        except ControlError as error:
            if error.name != "NoSuchUnit":
                raise
    found.units = list(seen.values())
    return found


def is_plain_name(pattern: str) -> bool:
    """Does it name one unit (rather than a @group, all of a template@, or a glob)?"""
    return not (pattern.startswith("@") or pattern.endswith("@") or any(char in pattern for char in "*?["))


def status_code(found: Found) -> int:
    """Return the exit code of ``status UNIT...``: 4 beats 3."""
    if found.missing is not None or any(map(is_unknown, found.units)):
        return NO_SUCH_UNIT
    return 0 if all(unit["active_state"] in RUNNING_STATES for unit in found.units) else NOT_RUNNING


@click.command("status", cls=Verb, short_help="what runs, and what is wrong")
@units_argument(required=False)
@click.option("--failed", is_flag=True, help="Only units with a problem.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True, help="Lines of output to show."
)
@click.pass_obj
def status(session: Session, units: tuple[str, ...], failed: bool, lines: int) -> int:
    """Show all units, those with a problem first; one unit in detail with its last output.

    Exits 0 when every named unit is active or reloading, 3 when one is not, 4 when one does not exist.
    """
    in_detail = len(units) == 1 and is_plain_name(units[0])
    found = look_up(session, units, failed=failed, lines=lines if in_detail and not session.wants_json else None)
    documents = [status_document(unit) for unit in found.units]
    if found.missing is not None:
        if not session.wants_json and found.units:
            session.echo(*overview(session.style, found.units, time.time()))
        return session.fail(found.missing, **({"units": documents} if documents else {}))
    if session.wants_json:
        session.emit({"units": documents} | found.more())
    elif in_detail and len(found.units) == 1:
        session.echo(*detail(session.style, found.units[0], time.time()))
    elif found.units:
        session.echo(*overview(session.style, found.units, time.time()))
        if not units:
            session.echo("", summary(session.style, found.units))
    else:
        session.echo("nothing is wrong" if failed else "no units: put unit files where supervisord-py looks for them")
    if not session.wants_json:
        session.echo(*_unloaded_lines(found))
    return status_code(found) if units else 0


def overview(style: Style, units: Sequence[UnitReply], now_s: float) -> list[str]:
    """Lay out units as a table, problems first; where the reasons do not fit beside the rest they stand below."""

    def row(unit: UnitReply) -> list[Cell | str]:
        is_up = unit["pid"] is not None or unit["active_state"] in RUNNING_STATES
        name = f"{_glyph(style, unit)} {unit['name']}"
        return [
            Cell(name, "bold") if is_problem(unit) else name,
            Cell(state_text(unit), _colour(unit)),
            str(unit["pid"] or ""),
            format_ago(unit["since"], now_s) if is_up else "",
            str(unit["restarts"] or ""),
            format_bytes(unit["memory_bytes"]),
            format_cpu(unit["cpu_ns"]),
            exit_text(unit["exit"], unit["result"]),
            Cell(_why_cell(unit), *(() if unit["why"] else ("dim",))),
        ]

    ordered = sorted(units, key=by_trouble)
    rows = [row(unit) for unit in ordered]
    headings = ("UNIT", "STATE", "PID", "UPTIME", "RESTARTS", "MEM", "CPU", "LAST", "WHY")
    right = "PID RESTARTS MEM CPU"
    whole = table(Style(), headings, rows, right=right)
    if style.width is None or all(text_width(line) <= style.width for line in whole):
        return table(style, headings, rows, right=right)
    lines = table(style, headings[:-1], [cells[:-1] for cells in rows], right=right)
    below = [lines[0]]
    for unit, line in zip(ordered, lines[1:], strict=True):
        below.append(line)
        if unit["why"] or unit["needs_reload"] or unit["needs_restart"]:
            below.append(f"  {style.glyph('because')}{clean(_why_cell(unit))}")
    return below


_NEEDS_RELOAD = "its file has changed since, or is gone: supctl daemon-reload"


def _why_cell(unit: UnitReply) -> str:
    marks = [unit["why"] or unit["status_text"] or ""]
    if unit["needs_reload"]:
        marks.append(f"its file is not in use: {unit['refused']}" if unit["refused"] else _NEEDS_RELOAD)
    elif unit["needs_restart"]:
        marks.append(f"it has a new text: supctl restart {unit['name']}")
    return "; ".join(filter(None, marks))


_GOOD = {True: "good", False: "failing", None: "unknown"}


def _health(style: Style, unit: UnitReply, now_s: float) -> str:
    """Say of each health check what it found, a line each."""
    lines = []
    for check in unit["health"]:
        word = style.paint(_GOOD[check["good"]], *(("red",) if check["good"] is False else ()))
        found = f" ({clean(check['detail'])})" if check["detail"] else ""
        at = check["checked_at"]
        ago = "" if at is None else f", {format_ago(at, now_s)} ago"
        lines.append(f"{check['name']}: {word}{found}, {check['kind']} by {check['check']}{ago}")
    return f"\n{'':13}".join(lines)


def _condition(unit: UnitReply) -> str:
    """Say when the conditions of a unit were looked at last, and which did not hold; empty when they never were."""
    moment = unit["condition_at"]
    if moment is None:
        return ""
    unmet = unit["condition_unmet"]
    found = "all hold" if unmet is None else f"does not hold: {clean(unmet)}"
    return f"{found} (looked at {format_moment(moment)})"


def _lowered(unit: UnitReply) -> str:
    """Say which limits are lower than they should be, and what follows from that; empty where none is."""
    if not unit["lowered_limits"]:
        return ""
    return f"{', '.join(unit['lowered_limits'])} (soft): too low for the mark that tells its processes from others"


def needs_restart_text(unit: UnitReply) -> str:
    """Say what a running unit has not taken over; empty when there is nothing."""
    if not unit["needs_restart"]:
        return ""
    keys = unit.get("restart_keys") or ()
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"{shown or 'its text'} since it was started: supctl restart {unit['name']}"


_GLYPHED = ("active", "reloading", "activating", "deactivating", "queued", "inactive", "failed", "quarantined")


def _glyph(style: Style, unit: UnitReply) -> str:
    broken = unit["load_state"] in NEVER_LOADED or unit["active_state"] not in _GLYPHED
    return style.glyph("failed" if broken else unit["active_state"])


def _colour(unit: UnitReply) -> str:
    if health_text(unit):
        return "yellow"
    if is_problem(unit) and unit["active_state"] in ("inactive", "activating"):
        return "yellow" if unit["active_state"] == "activating" else "red"
    return STATE_COLOURS.get(unit["active_state"], "red")


def summary(style: Style, units: Sequence[UnitReply]) -> str:
    """Return the last line under all units: how many are in which state, and where to go on."""
    counts: dict[str, int] = {}
    for unit in units:
        word = unit["load_state"] if unit["load_state"] in NEVER_LOADED else unit["active_state"]
        counts[word] = counts.get(word, 0) + 1
    parts = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    problems = sorted((unit for unit in units if is_problem(unit)), key=by_trouble)
    line = f"{len(units)} unit{'s' if len(units) != 1 else ''}: {parts}"
    return f"{line}; next: supctl why {problems[0]['name']}" if problems else style.paint(line, "dim")


def _unloaded_lines(found: Found) -> list[str]:
    """Say what is on disk and in no unit."""
    if found.unloaded is None:
        return []
    names = " ".join(map(clean, found.unloaded["units"]))
    new = [f"not loaded: {names}"] if names else []
    changed = ["supervisord.toml has changed since it was loaded"] if found.unloaded["settings"] else []
    return [f"{line}; next: supctl daemon-reload" for line in (*new, *changed)]


def detail(style: Style, unit: UnitReply, now_s: float) -> list[str]:
    """Lay out one unit: state, cause, place, use, and its last output."""
    state = unit["active_state"]
    title = f"{style.paint(_glyph(style, unit), _colour(unit))} {style.paint(unit['name'], 'bold')}"
    if unit["description"]:
        title += f" - {clean(unit['description'])}"
    since = unit["since"]
    active = style.paint(f"{state} ({unit['sub_state']})", _colour(unit))
    if unit["result"] != "success":
        active += f" (result: {unit['result']})"
    if since is not None:
        active += f" since {format_moment(since)}; {format_ago(since, now_s)} ago"
    loaded = unit["load_state"]
    if unit["needs_reload"]:
        loaded += f", {_NEEDS_RELOAD}"
    if unit["path"]:
        loaded += f" ({unit['path']}; {_start_word(unit)})"
    ended = unit["exit"]
    failures = unit["failures"]
    counted = f"{unit['restarts']}" + (
        f", {failures} failure{'s' if failures != 1 else ''} counted" if failures else ""
    )
    rows: list[tuple[str, str]] = [
        ("Loaded", loaded),
        ("Active", active),
        ("Why", clean(unit["why"] or "")),
        ("Changed", needs_restart_text(unit)),
        ("Refused", f"its file is not in use: {clean(unit['refused'])}" if unit["refused"] else ""),
        ("Condition", _condition(unit)),
        ("Health", _health(style, unit, now_s)),
        ("Pid", str(unit["pid"] or "")),
        ("Limits", _lowered(unit)),
        ("Confined", f"\n{'':13}".join(_confined(unit["applied"]))),
        ("Degraded", clean("; ".join(unit["degraded"]))),
        ("Command", clean(unit.get("exec") or "")),
        ("Status", f'"{clean(unit["status_text"])}"' if unit["status_text"] else ""),
        ("Last exit", explain_exit(ended) if ended is not None else ""),
        ("Listen", clean(" ".join(unit["sockets"]))),
        ("Accepted", _accepted(unit)),
        ("Stored", clean(" ".join(unit["stored"]))),
        ("Output", f"{unit['dropped_lines']} lines dropped by rate-limit" if unit["dropped_lines"] else ""),
        ("Next run", _next_run(unit, now_s)),
        ("Last run", _last_run(unit, now_s)),
        ("Restarts", counted if unit["restarts"] or failures else ""),
        ("Memory", format_bytes(unit["memory_bytes"])),
        ("CPU", format_cpu(unit["cpu_ns"])),
        ("Tasks", "" if unit["tasks"] is None else str(unit["tasks"])),
        ("Groups", " ".join(f"@{group}" for group in unit.get("groups") or ())),
        ("Invocation", unit["invocation"] or ""),
    ]
    lines = [title, *(f"{name:>11}: {text}" for name, text in rows if text)]
    output = unit.get("lines")
    if output:
        lines += ["", *(clean(line) for line in output)]
    if is_problem(unit):
        lines += ["", f"next: supctl why {unit['name']}"]
    return lines


def _confined(applied: Sequence[str]) -> list[str]:
    """Lay out ``KEY: MECHANISM``, a line for each mechanism."""
    keys: dict[str, list[str]] = {}
    for each in applied:
        key, _, mechanism = each.partition(": ")
        keys.setdefault(mechanism, []).append(key)
    return [
        clean(f"{', '.join(names)}: {mechanism}" if mechanism else ", ".join(names))
        for mechanism, names in keys.items()
    ]


def _accepted(unit: UnitReply) -> str:
    if not unit["sockets"] or not unit["accepted"]:
        return ""
    return f"{unit['accepted']}" + (f"; {unit['connections']} connected now" if unit["connections"] else "")


def _next_run(unit: UnitReply, now_s: float) -> str:
    at = unit["next_elapse"]
    if at is None:
        return ""
    left_s = parse_timestamp(at).timestamp() - now_s
    return format_moment(at) + (f"; in {format_duration(left_s)}" if left_s > 0 else "; it is due")


def _last_run(unit: UnitReply, now_s: float) -> str:
    at = unit["last_elapse"]
    return "" if at is None else f"{format_moment(at)}; {format_ago(at, now_s)} ago"


@click.command("list", cls=Verb, short_help="all units, a line each")
@units_argument(required=False)
@click.option("--failed", is_flag=True, help="Only units with a problem.")
@click.option("--timers", is_flag=True, help="When units with a timer are run next, and when they were last.")
@click.option("--sockets", is_flag=True, help="What is listened on, and for which unit.")
@click.pass_obj
def list_units(session: Session, units: tuple[str, ...], failed: bool, timers: bool, sockets: bool) -> int:
    """List units by name with their load state and what they are; with --timers those that are run by the clock, the
    next one first, with --sockets those that are listened for."""
    found = look_up(session, units, failed=failed)
    if timers:
        found.units = [unit for unit in found.units if _is_timed(unit)]
    if sockets:
        found.units = [unit for unit in found.units if unit["sockets"]]
    documents = [status_document(unit) for unit in found.units]
    if sockets and not session.wants_json:
        session.echo(*_socket_lines(session, found.units))
    elif timers and not session.wants_json:
        session.echo(*_timer_lines(session, found.units))
    elif not session.wants_json:
        rows = [
            [
                unit["name"],
                Cell(unit["load_state"], *(("red",) if unit["load_state"] in NEVER_LOADED else ())),
                Cell(unit["active_state"], _colour(unit)),
                Cell(f"{unit['sub_state']} ({ill})", "yellow") if (ill := health_text(unit)) else unit["sub_state"],
                "masked" if unit["load_state"] == "masked" else _start_word(unit),
                f"{unit['description']} ({_NEEDS_RELOAD})".lstrip() if unit["needs_reload"] else unit["description"],
            ]
            for unit in sorted(found.units, key=lambda unit: unit["name"])
        ]
        session.echo(*table(session.style, ("UNIT", "LOAD", "ACTIVE", "SUB", "ENABLED", "DESCRIPTION"), rows))
        session.echo(*_unloaded_lines(found))
    if found.missing is not None:
        return session.fail(found.missing, **({"units": documents} if documents else {}))
    if session.wants_json:
        session.emit({"units": documents} | found.more())
    return 0


def _is_timed(unit: UnitReply) -> bool:
    return unit["sub_state"] == "waiting" or bool(unit["next_elapse"] or unit["last_elapse"])


def _timer_lines(session: Session, units: Sequence[UnitReply]) -> list[str]:
    """A line for each unit that is run by the clock: systemctl's columns, the next one first."""
    now_s = time.time()
    rows = []
    for unit in sorted(units, key=lambda unit: (unit["next_elapse"] is None, unit["next_elapse"] or "", unit["name"])):
        following, last = unit["next_elapse"], unit["last_elapse"]
        left_s = 0.0 if following is None else parse_timestamp(following).timestamp() - now_s
        rows.append(
            [
                format_moment(following) if following else "-",
                ("due" if left_s <= 0 else format_duration(left_s)) if following else "-",
                format_moment(last) if last else "-",
                format_ago(last, now_s) or "-",
                unit["name"],
            ]
        )
    return table(session.style, ("NEXT", "LEFT", "LAST", "PASSED", "UNIT"), rows)


def _socket_lines(session: Session, units: Sequence[UnitReply]) -> list[str]:
    """A line for each address: who it is listened on for, and how many have come."""
    rows = [
        [clean(address), unit["name"], unit["sub_state"], str(unit["accepted"]), str(unit["connections"] or "-")]
        for unit in sorted(units, key=lambda unit: unit["name"])
        for address in unit["sockets"]
    ]
    return table(session.style, ("LISTEN", "UNIT", "SUB", "ACCEPTED", "INSTANCES"), rows)


def _ask(session: Session, units: tuple[str, ...], quiet: bool, answers: "list[tuple[UnitReply, str, bool]]") -> None:
    if session.wants_json:
        session.emit({"units": [{"name": unit["name"], "answer": word, "is": yes} for unit, word, yes in answers]})
    elif not quiet:
        session.echo(*(word for _, word, _ in answers))


_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing, only exit.")


@click.command("is-active", cls=Verb, short_help="exit 0 when a unit is active")
@units_argument(required=True)
@_QUIET
@click.pass_obj
def is_active(session: Session, units: tuple[str, ...], quiet: bool) -> int:
    """Print the state of units; exit 0 when at least one is active or reloading, 3 when none is, 4 when one does not
    exist.
    """
    found = look_up(session, units)
    if found.missing is not None:
        return session.fail(found.missing)
    answers = [(unit, unit["active_state"], unit["active_state"] in RUNNING_STATES) for unit in found.units]
    _ask(session, units, quiet, answers)
    code = status_code(found)
    return 0 if code == NOT_RUNNING and any(yes for _, _, yes in answers) else code


@click.command("is-failed", cls=Verb, short_help="exit 0 when a unit has failed")
@units_argument(required=False)
@_QUIET
@click.pass_obj
def is_failed(session: Session, units: tuple[str, ...], quiet: bool) -> int:
    """Print the state of units; exit 0 when at least one is failed or quarantined, 1 when none is, 4 when one does
    not exist.
    """
    found = look_up(session, units)
    if found.missing is not None:
        return session.fail(found.missing)
    bad = ("failed", "quarantined")
    answers = [(unit, unit["active_state"], unit["active_state"] in bad) for unit in found.units]
    _ask(session, units, quiet, answers)
    return 0 if any(yes for _, _, yes in answers) else 1


@click.command("is-enabled", cls=Verb, short_help="exit 0 when every unit starts with the supervisor")
@units_argument(required=True)
@_QUIET
@click.pass_obj
def is_enabled(session: Session, units: tuple[str, ...], quiet: bool) -> int:
    """Print enabled or disabled; exit 0 when all are enabled, 1 when one is not, 4 when one does not exist."""
    found = look_up(session, units)
    if found.missing is not None or any(map(is_unknown, found.units)):
        return session.fail(found.missing) if found.missing is not None else NO_SUCH_UNIT
    answers = [(unit, _enabled_word(unit), _enabled_word(unit) == "enabled") for unit in found.units]
    _ask(session, units, quiet, answers)
    return 0 if all(yes for _, _, yes in answers) else 1


def _enabled_word(unit: UnitReply) -> str:
    if unit["load_state"] in NEVER_LOADED:
        return unit["load_state"]
    return _start_word(unit)


def _start_word(unit: UnitReply) -> str:
    """Say whether a unit starts with the supervisor; one that was run is not there any more by then."""
    if unit["transient"]:
        return "transient"
    return "enabled" if unit["enabled"] else "disabled"

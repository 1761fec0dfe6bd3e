"""What a unit is and how it came to be so: ``show``, ``cat``, ``deps``, ``why``, ``lives``."""

import json
from collections.abc import Sequence
from typing import Any, cast

import click

from supervisord_py.ctl.options import Misuse, Verb, moment_of, unit_argument
from supervisord_py.ctl.render import Cell, Style, clean, format_duration, format_moment, table
from supervisord_py.ctl.replies import (
    UnitReply,
    exit_from_wire,
    exit_text,
    state_text,
    unit_from_wire,
    words_from_wire,
)
from supervisord_py.ctl.session import Session
from supervisord_py.errors import SupervisordError


def _value_text(value: object) -> str:
    """Return a setting's value as TOML would show it, which for all that occurs here is JSON; text stays bare."""
    if isinstance(value, str):
        return clean(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


@click.command("show", cls=Verb)
@unit_argument()
@click.option(
    "-p", "--property", "keys", metavar="KEY", multiple=True, help="Only this key; may be given several times."
)
@click.option("--value", "only_value", is_flag=True, help="Print values without their keys.")
@click.pass_obj
def show(session: Session, unit: str, keys: tuple[str, ...], only_value: bool) -> int:
    """Print everything about a unit as KEY=VALUE: its state, then its settings with specifiers expanded."""
    reply = session.call("Show", unit=unit)
    status = cast(dict[str, Any], unit_from_wire(reply["status"]))
    settings: list[dict[str, Any]] = reply["settings"]
    values = status | {setting["key"]: setting["value"] for setting in settings}
    wanted = [key for given in keys for key in given.split(",")]
    for key in wanted:
        if key not in values:
            from difflib import get_close_matches

            near = get_close_matches(key, list(values), n=1)
            hint = f"did you mean {near[0]}?" if near else f"see all with supctl show {unit}"
            raise Misuse(f"{unit} has no key {key!r}: {hint}")
    if session.wants_json:
        if wanted:
            session.emit({"unit": status["name"], "values": {key: values[key] for key in wanted}})
        else:
            session.emit({"status": status, "settings": settings})
        return 0
    for key in wanted or values:
        text = _value_text(values[key])
        session.echo(text if only_value else f"{key}={text}")
    return 0


@click.command("cat", cls=Verb)
@unit_argument()
@click.option("--origin", is_flag=True, help="Every value in force, with the file and line it comes from.")
@click.pass_obj
def cat(session: Session, unit: str, origin: bool) -> int:
    """Print a unit's files as they are on disk, in the order in which they are merged."""
    style = session.style
    if origin:
        # What it really has now (live) comes from no file.
        shown = session.call("Show", unit=unit)["settings"]
        settings: list[dict[str, Any]] = [each for each in shown if not each["key"].startswith("live.")]
        if session.wants_json:
            session.emit({"unit": unit, "settings": settings})
            return 0
        rows = [
            [setting["key"], Cell(_value_text(setting["value"])), Cell(_origin_text(setting), "dim")]
            for setting in settings
        ]
        session.echo(*table(style, ("KEY", "VALUE", "FROM"), rows))
        return 0
    files = session.call("Cat", unit=unit)["files"]
    if not files:
        state = session.call("List", units=[unit], failed=False)["units"][0]["load_state"].replace("_", "-")
        if state == "not-found":
            return session.fail(NoFileError(unit))
        if not session.wants_json:
            # What is loaded and has none was made for a connection.
            why = f"it was made for a connection: supctl cat {unit.partition('@')[0]}"
            session.note(f"{unit} has no file to show: {why if state == 'loaded' else f'it is {state}'}")
    if session.wants_json:
        session.emit({"unit": unit, "files": files})
        return 0
    for index, file in enumerate(files):
        if index:
            session.echo("")
        session.echo(style.paint(f"# {file['path']}", "dim"), *(file["text"].rstrip("\n").split("\n")))
    return 0


class NoFileError(SupervisordError):
    """A unit that no file defines (any more)."""

    exit_status = 4

    def __init__(self, unit: str) -> None:
        super().__init__(unit)
        self.unit = unit

    def __str__(self) -> str:
        return f"{self.unit} has no file to show: no file defines it"


def _origin_text(setting: dict[str, Any]) -> str:
    if not setting.get("file"):
        return "default"
    return f"{setting['file']}:{setting['line']}" if setting.get("line") else str(setting["file"])


@click.command("deps", cls=Verb)
@unit_argument()
@click.option("--reverse", is_flag=True, help="What depends on it.")
@click.pass_obj
def deps(session: Session, unit: str, reverse: bool) -> int:
    """Print what a unit depends on as a tree, with the state of each."""
    edges = [words_from_wire(edge) for edge in session.call("Deps", unit=unit, reverse=reverse)["edges"]]
    if session.wants_json:
        session.emit({"unit": unit, "reverse": reverse, "edges": edges})
        return 0
    session.echo(session.style.paint(unit, "bold"), *tree(session.style, edges))
    if not edges:
        session.note(f"{'nothing depends on it' if reverse else 'it depends on nothing'}")
    return 0


def tree(style: Style, edges: Sequence[dict[str, Any]]) -> list[str]:
    """Draw edges that come parent before child, each with its ``depth``, as a tree.

    An edge is last among its siblings when no later one has its depth before one of a smaller depth comes.
    """
    lines: list[str] = []
    open_branches: list[bool] = []
    base = min((edge["depth"] for edge in edges), default=0)
    for index, edge in enumerate(edges):
        depth = edge["depth"] - base
        later = next((other["depth"] for other in edges[index + 1 :] if other["depth"] <= edge["depth"]), None)
        has_sibling = later == edge["depth"]
        open_branches[depth:] = [has_sibling]
        stem = "".join(style.glyph("pipe" if is_open else "gap") for is_open in open_branches[:depth])
        fork = style.glyph("branch" if has_sibling else "last")
        until = f" until {edge['until']}" if edge.get("until") else ""
        state = style.state(edge["active_state"], edge["active_state"])
        about = style.paint(f"({edge['kind']}{until})", "dim")
        lines.append(f"{stem}{fork}{edge['unit']} {state} {about}")
    return lines


@click.command("why", cls=Verb)
@unit_argument()
@click.option("--all", "is_all", is_flag=True, help="And all that befell it before, as far as the journal goes back.")
@click.option("--since", metavar="TIME", callback=moment_of, help="And what befell it from then on: 10m, today.")
@click.pass_obj
def why(session: Session, unit: str, is_all: bool, since: str | None) -> int:
    """Explain a unit's state: the chain of causes, nearest first, and what to type next."""
    reply = session.call("Why", unit=unit)
    status = unit_from_wire(reply["unit"])
    causes = [words_from_wire(cause) for cause in reply["causes"]]
    answer: dict[str, Any] = {"unit": status, "causes": causes}
    if is_all or since is not None:
        from supervisord_py.ctl.journal import find_records

        wanted = {"units": [status["name"]], "events": list(_BEFELL)} | ({} if since is None else {"since": since})
        answer["before"] = list(find_records(session, wanted, None))
    if session.wants_json:
        session.emit(answer)
        return 0
    session.echo(*causal_chain(session.style, status, causes))
    if "before" in answer:
        from supervisord_py.ctl.journal import record_printer

        session.echo("", "before:" if answer["before"] else "before: nothing that the journal tells")
        show = record_printer(session)
        for record in answer["before"]:
            show(record)
    return 0


_BEFELL = (
    "unit.started", "unit.exited", "unit.stopping", "unit.stopped", "unit.failed", "unit.restart-scheduled",
    "unit.watchdog", "unit.progress-stalled", "unit.limit", "unit.quarantined", "unit.released", "unit.stuck",
    "unit.paused", "unit.resumed", "unit.skipped", "unit.excused",
)  # fmt: skip
"""The events by which a unit came from one state to another."""


def causal_chain(style: Style, unit: UnitReply, causes: Sequence[dict[str, Any]]) -> list[str]:
    """Lay out why a unit is as it is: each cause one step further in, then the advice, each command once."""
    state = style.state(unit["active_state"], state_text(unit))
    lines = [f"{style.paint(unit['name'], 'bold')} is {state}"]
    if not causes and unit["why"]:
        lines[0] += f": {clean(unit['why'])}"
    for depth, cause in enumerate(causes):
        about = [f"record {cause['seq']}"] if cause.get("seq") is not None else []
        other = cause.get("about")
        whose = f"{other}: " if other and other != unit["name"] else ""
        suffix = style.paint(f" ({', '.join(about)})", "dim") if about else ""
        stem = style.glyph("gap") * depth + style.glyph("because")
        lines.append(f"{stem}{whose}{clean(cause['message'])}{suffix}")
    advice = list(dict.fromkeys(cause["advice"] for cause in causes if cause.get("advice")))
    return [*lines, *(f"next: {clean(command)}" for command in advice)]


@click.command("lives", cls=Verb)
@unit_argument()
@click.option("-n", "--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many lives.")
@click.pass_obj
def lives(session: Session, unit: str, last: int) -> int:
    """Print a line for each life of a unit, the latest last: start, end, how it ended, its last words."""
    found = [life_from_wire(life) for life in session.call("Lives", unit=unit, last=last)["lives"]]
    if session.wants_json:
        session.emit({"unit": unit, "lives": found})
        return 0
    rows = [
        [
            format_moment(life["start"]),
            format_moment(life["end"]) if life.get("end") else "",
            format_duration(life["runtime_ms"] / 1000) if life.get("runtime_ms") is not None else "",
            Cell(_result_of(life), *(("red",) if life["result"] not in (None, "success") else ("green",))),
            exit_text(life["exit"], "success") if life["exit"] else "",
            life.get("last_words") or "",
        ]
        for life in found
    ]
    lines = table(session.style, ("START", "END", "RAN", "RESULT", "EXIT", "LAST WORDS"), rows, right="RAN")
    session.echo(*(lines or [f"{unit} has not lived yet"]))
    return 0


def _result_of(life: dict[str, Any]) -> str:
    """What became of a life: that of a stub has an end, and no result."""
    return life["result"] or ("stub" if life.get("end") else "running")


def life_from_wire(raw: dict[str, Any]) -> dict[str, Any]:
    """Return one life in the contract's words."""
    defaults = dict.fromkeys(("end", "result", "runtime_ms", "last_words"))
    return defaults | words_from_wire(raw) | {"exit": exit_from_wire(raw.get("exit"))}

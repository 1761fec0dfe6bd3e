"""``top``: what units need now, looked at again and again; between two looks counters become rates.

On a terminal the picture is drawn anew in place until ``q`` or Ctrl-C; elsewhere each look is printed behind the one
before. A unit is followed by name: one that was begun anew in between, whose counters are smaller, has no rate for
that look.
"""

import contextlib
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from supervisord_py.ctl.moments import format_rfc3339
from supervisord_py.ctl.options import Misuse, Verb, units_argument
from supervisord_py.ctl.render import clean, format_bytes, format_duration, table
from supervisord_py.ctl.session import FollowedEnoughError, Session
from supervisord_py.errors import SupervisordError

FIRST_LOOK_S = 0.5
"""How long the first rates are measured, so that nobody waits long for a picture."""

_SORTED_BY = {
    "cpu": "cpu_percent",
    "memory": "memory_bytes",
    "tasks": "tasks",
    "read": "read_bytes_per_s",
    "write": "write_bytes_per_s",
}
_SCREEN, _SCREEN_BACK, _HOME, _REST = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[K\n"
_RATES = (("cpu_ns", "cpu_percent"), ("read_bytes", "read_bytes_per_s"), ("write_bytes", "write_bytes_per_s"))


class NotPermittedError(SupervisordError):
    """The caller may not look all the time."""

    exit_status = 5

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"you may not use top: {self.why}: supctl stats looks once"


def _delay_s(context: click.Context, parameter: click.Parameter, value: str) -> float:
    from supervisord_py.model.values import parse_timespan

    try:
        delay_ns = parse_timespan(value)
    except ValueError as error:
        raise Misuse(f"--delay: {error}", context) from None
    if delay_ns is None or delay_ns < 100_000_000:
        raise Misuse("--delay is from 100ms on", context)
    return delay_ns / 1e9


@click.command("top", cls=Verb)
@units_argument(required=False)
@click.option(
    "-d", "--delay", metavar="SPAN", default="2s", show_default=True, callback=_delay_s, help="Between looks."
)
@click.option("-n", "--iterations", type=click.IntRange(min=1), metavar="N", help="End after so many looks.")
@click.option(
    "-s", "--sort", type=click.Choice((*_SORTED_BY, "name")), default="cpu", show_default=True, help="Largest first."
)
@click.pass_obj
def top(session: Session, units: tuple[str, ...], delay: float, iterations: int | None, sort: str) -> int:
    """Show what units need (those that run, when none is named), again and again; on a terminal q ends it."""
    allowed = session.call("Can", verb="top")
    if not allowed["allowed"]:
        raise NotPermittedError(clean(allowed["why"]))
    limit_s = session.options.timeout_s
    deadline = None if limit_s is None else time.monotonic() + limit_s
    before, looks = _Look(session, units), 0
    with _screen(session) as screen:
        pause_s = min(delay, FIRST_LOOK_S)
        while True:
            if deadline is not None and time.monotonic() + pause_s > deadline:
                raise FollowedEnoughError(limit_s or 0.0)
            if not screen.wait(pause_s):
                return 0
            now = _Look(session, units)
            screen.show(now.document(before), sort)
            looks += 1
            if looks == iterations:
                return 0
            before, pause_s = now, delay


class _Look:
    """What was counted at one moment."""

    def __init__(self, session: Session, patterns: tuple[str, ...]) -> None:
        wanted = None
        if patterns:
            wanted = {unit["name"] for unit in session.call("List", units=list(patterns), failed=False)["units"]}
        reply = session.call("Stats")
        self.at_s = time.monotonic()
        self.supervisor: dict[str, Any] | None = reply.get("supervisor")
        self.units: dict[str, dict[str, Any]] = {
            unit["name"]: unit
            for unit in reply.get("units") or []
            if (unit["name"] in wanted if wanted is not None else unit["tasks"] is not None)
        }

    def document(self, before: "_Look") -> dict[str, Any]:
        """Return this look, with rates since the one before; a rate is None where nothing is known."""
        span_s = max(self.at_s - before.at_s, 1e-9)
        shown = []
        for name, unit in self.units.items():
            old = before.units.get(name, {})
            rates: dict[str, float | None] = {}
            for counter, rate in _RATES:
                now, then = unit[counter], old.get(counter)
                grown = None if now is None or then is None or now < then else (now - then) / span_s
                scale = 1e7 if counter == "cpu_ns" else 1
                rates[rate] = None if grown is None else round(grown / scale, 1)
            state = unit["active_state"].replace("_", "-")
            kept = {key: unit[key] for key in ("memory_bytes", "tasks", "cpu_ns", "restarts", "failures")}
            shown.append({"name": name, "active_state": state, **rates, **kept})
        moment = format_rfc3339(datetime.now(UTC))
        return {"time": moment, "supervisor": self.supervisor, "units": shown}


class _Screen:
    """Where looks are shown: drawn in place on a terminal, else one behind the other."""

    def __init__(self, session: Session, keys: int | None) -> None:
        self._session = session
        self._keys = keys
        self._is_first = True

    def wait(self, pause_s: float) -> bool:
        """Wait for the next look; False when it is not wanted any more."""
        end = time.monotonic() + pause_s
        while (left := end - time.monotonic()) > 0:
            if self._keys is None:
                time.sleep(left)
            elif select.select([self._keys], [], [], left)[0] and os.read(self._keys, 64).lower() in (
                b"q",
                b"",
                b"\x04",
            ):
                return False
        return True

    def show(self, look: dict[str, Any], sort: str) -> None:
        session = self._session
        if session.wants_json:
            session.emit(look)
        elif self._keys is None:
            session.echo(*([] if self._is_first else [""]), *_lines(session, look, sort))
        else:
            rows = shutil.get_terminal_size().lines
            sys.stdout.write(_HOME + _REST.join(_lines(session, look, sort)[: rows - 1]) + "\x1b[K\x1b[J")
        session.flush()
        self._is_first = False


def _lines(session: Session, look: dict[str, Any], sort: str) -> list[str]:
    head = []
    told = look["supervisor"]
    if told is not None:
        states = ", ".join(f"{count} {state.replace('_', '-')}" for state, count in told["units"].items())
        uptime_ms = told["keeper"]["uptime_ms"]
        up = "" if uptime_ms is None else f" up {format_duration(uptime_ms / 1000)},"
        head = [f"{clean(told['name'])}{up} units: {states or 'none'}, processes: {told['processes']}", ""]
    key = _SORTED_BY.get(sort)
    units = sorted(look["units"], key=lambda unit: str(unit["name"]))
    if key is not None:
        units.sort(key=lambda unit: -1 if unit[key] is None else unit[key], reverse=True)
    rows = [
        [
            unit["name"],
            unit["active_state"],
            "" if unit["cpu_percent"] is None else f"{unit['cpu_percent']:.1f}%",
            format_bytes(unit["memory_bytes"]),
            "" if unit["tasks"] is None else str(unit["tasks"]),
            *(
                "" if unit[rate] is None else f"{format_bytes(int(unit[rate]))}/s"
                for rate in ("read_bytes_per_s", "write_bytes_per_s")
            ),
            str(unit["restarts"] or ""),
        ]
        for unit in units
    ]
    headings = ("UNIT", "STATE", "CPU", "MEM", "TASKS", "READ", "WRITTEN", "RESTARTS")
    shown = table(session.style, headings, rows, right="CPU MEM TASKS READ WRITTEN RESTARTS")
    return [*head, *(shown or ["nothing runs"])]


@contextlib.contextmanager
def _screen(session: Session) -> Iterator[_Screen]:
    """Lend the terminal, if there is one; it is afterwards as it was."""
    if session.wants_json or session.style.width is None or not sys.stdin.isatty():
        yield _Screen(session, None)
        return
    import termios
    import tty

    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        sys.stdout.write(_SCREEN)
        yield _Screen(session, keys)
    finally:
        sys.stdout.write(_SCREEN_BACK)
        session.flush()
        termios.tcsetattr(keys, termios.TCSADRAIN, before)

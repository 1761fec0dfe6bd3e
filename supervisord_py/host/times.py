"""``supervisord-py calendar`` and ``timespan``: what an expression means, and when it elapses next."""

import json
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import click

from supervisord_py.host.zones import local_zone, zone_named
from supervisord_py.model.calendar import BadCalendar, Calendar, format_calendar, parse_calendar
from supervisord_py.model.elapse import next_elapse_ns
from supervisord_py.model.problems import BadValue
from supervisord_py.model.timestamp import parse_timestamp
from supervisord_py.model.values import MICROSECOND_NS, SECOND_NS, format_timespan, parse_timespan

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ITERATIONS_MAX = 100_000


@click.command("calendar")
@click.argument("expressions", metavar="EXPR...", nargs=-1, required=True)
@click.option(
    "--iterations",
    metavar="N",
    type=click.IntRange(1, _ITERATIONS_MAX),
    default=1,
    help="How many elapses are shown (default: 1).",
)
@click.option("--base-time", metavar="TS", help="Elapses after this moment, in place of now; @EPOCH too.")
@click.option("--timezone", metavar="TZ", help="The time zone in place of the local one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def calendar_command(
    expressions: tuple[str, ...], iterations: int, base_time: str | None, timezone: str | None, as_json: bool
) -> None:
    """Print the normal form of calendar expressions, and when they elapse next.

    An expression is one argument: supervisord-py calendar "Mon..Fri 08:00". Exits 1 when one of them is none.
    """
    zone = _zone(timezone)
    now = datetime.now(UTC).astimezone(zone)
    base_us = _usec(now)
    if base_time is not None:
        try:
            base_us = parse_timestamp(base_time, now, zone_named)
        except BadValue as error:
            raise click.UsageError(f"--base-time: {_in_one_line(error)}") from None
    documents: list[dict[str, Any]] = []
    shown: list[str] = []
    for text in expressions:
        try:
            calendar = parse_calendar(text, zone_named)
        except BadCalendar as error:
            documents.append({"input": text, "error": _in_one_line(error)})
            if not as_json:
                _complain(text, error)
            continue
        moments = _elapses(calendar, base_us, iterations, zone)
        normalized = format_calendar(calendar)
        documents.append(
            {
                "input": text,
                "normalized": normalized,
                "next": [{"usec": _usec(moment), "time": moment.isoformat()} for moment in moments],
            }
        )
        if not as_json:
            shown.append(_calendar_text(text, normalized, moments, now))
    _finish(documents, None if as_json else shown)


@click.command("timespan")
@click.argument("expressions", metavar="EXPR...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def timespan_command(expressions: tuple[str, ...], as_json: bool) -> None:
    """Print what time spans mean, in microseconds and in their normal form.

    An expression is one argument: supervisord-py timespan "1min 30s". Exits 1 when one of them is none.
    """
    documents: list[dict[str, Any]] = []
    shown: list[str] = []
    for text in expressions:
        try:
            span_ns = parse_timespan(text)
        except BadValue as error:
            documents.append({"input": text, "error": _in_one_line(error)})
            if not as_json:
                click.echo(f"{error.message}\n    hint: {error.hint}" if error.hint else error.message, err=True)
            continue
        usec = None if span_ns is None else span_ns // MICROSECOND_NS
        documents.append({"input": text, "usec": usec})
        if not as_json:
            rows = (
                ("Original", text),
                ("μs", "infinity" if usec is None else usec),
                ("Human", format_timespan(span_ns)),
            )
            shown.append("\n".join(f"{name:>8}: {value}" for name, value in rows))
    _finish(documents, None if as_json else shown)


def _finish(documents: list[dict[str, Any]], shown: list[str] | None) -> None:
    """Print the document, or what is shown in place of it; exit 1 when there was an error."""
    if shown is None:
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
    elif shown:
        click.echo("\n\n".join(shown))
    if any("error" in document for document in documents):
        raise SystemExit(1)


def _in_one_line(error: BadValue) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _complain(text: str, error: BadCalendar) -> None:
    lines = [error.message]
    if text.isprintable() and text:
        lines += [f"    {text}", f"    {' ' * error.position}^"]
    click.echo("\n".join([*lines, f"    hint: {error.hint}"]), err=True)


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return local_zone()
    zone = zone_named("UTC" if name.upper() == "UTC" else name)
    if zone is None:
        raise click.UsageError(
            f"--timezone: there is no time zone {name!r}; write a name such as Europe/Berlin, or UTC"
        )
    return zone


def _elapses(calendar: Calendar, base_us: int, count: int, zone: tzinfo) -> list[datetime]:
    """The next elapses, in the zone of whoever asks."""
    own = zone_named(calendar.zone) if calendar.zone else zone
    assert own is not None, "the zone was there when the expression was read"
    moments: list[datetime] = []
    after_ns: int | None = base_us * MICROSECOND_NS
    while len(moments) < count and after_ns is not None:
        after_ns = next_elapse_ns(calendar, after_ns, own)
        if after_ns is not None:
            moments.append((_EPOCH + timedelta(microseconds=after_ns // MICROSECOND_NS)).astimezone(zone))
    return moments


def _calendar_text(text: str, normalized: str, moments: list[datetime], now: datetime) -> str:
    rows = [] if text == normalized else [("Original form", text)]
    rows.append(("Normalized form", normalized))
    for number, moment in enumerate(moments, 1):
        rows.append(("Next elapse" if number == 1 else f"Iter. #{number}", _moment_text(moment)))
        if moment.tzname() != "UTC":
            rows.append(("(in UTC)", _moment_text(moment.astimezone(UTC))))
        rows.append(("From now", _distance(_usec(moment) - _usec(now))))
    if not moments:
        rows.append(("Next elapse", "never"))
    return "\n".join(f"{name:>15}: {value}" for name, value in rows)


def _moment_text(moment: datetime) -> str:
    fraction = f".{moment.microsecond:06}" if moment.microsecond else ""
    return f"{moment:%a %Y-%m-%d %H:%M:%S}{fraction} {moment.tzname()}"


def _distance(usec: int) -> str:
    """A time span in its two largest units, whole seconds from one second on."""
    span_ns = abs(usec) * MICROSECOND_NS
    if span_ns >= SECOND_NS:
        span_ns -= span_ns % SECOND_NS
    return " ".join(format_timespan(span_ns).split()[:2]) + (" left" if usec >= 0 else " ago")


def _usec(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)

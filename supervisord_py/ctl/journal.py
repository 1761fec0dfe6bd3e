"""``journal``: what was decided and what happened, in order; shown, searched, followed and verified.

A follower knows the number of the last record it showed, so when the manager is replaced it goes on from there and
misses nothing.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import click

from supervisord_py.ctl.client import ConnectionLostError
from supervisord_py.ctl.options import Misuse, Verb, common_options, complete_units, moment_of, skip_common
from supervisord_py.ctl.render import format_bytes, format_moment, table
from supervisord_py.ctl.session import Patience, Session
from supervisord_py.model.event_text import format_event
from supervisord_py.model.records import EVENTS, is_own_event

TAIL_LAST = 50
FORMATS = ("short", "verbose")


class JournalGroup(click.Group):
    """``journal``: with no subcommand it is ``tail`` with the options given."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.extend(common_options())

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        rest = args[skip_common(args) :]
        if not rest or (rest[0] not in self.commands and rest[0].startswith("-") and rest[0] not in ("-h", "--help")):
            position = len(args) - len(rest)
            args = [*args[:position], "tail", *rest]
        return super().parse_args(context, args)


@click.group("journal", cls=JournalGroup)
def journal() -> None:
    """Show, search, follow and verify the journal; alone it prints the last 50 records."""


def _filters(function: Callable[..., int]) -> Callable[..., int]:
    for decorate in (
        click.option("--invocation", metavar="ID", help="Only this life of a unit."),
        click.option("-g", "--grep", metavar="REGEX", help="Only records whose line matches."),
        click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Only records after this number."),
        click.option("--until", metavar="TIME", callback=moment_of, help="Only records up to then."),
        click.option("--since", metavar="TIME", callback=moment_of, help="From then on: 10m, '10 min ago', today."),
        click.option(
            "--severity", type=click.Choice(("error", "warning", "info")), help="Only of this severity or a worse one.",
        ),
        click.option(
            "-e", "--event", "events", metavar="EVENT", multiple=True, help="Only this event (glob); may be repeated.",
            shell_complete=lambda context, parameter, incomplete: [e for e in EVENTS if e.startswith(incomplete)],
        ),
        click.option(
            "-u", "--unit", "units", metavar="UNIT", multiple=True, shell_complete=complete_units,
            help="Only this unit (glob); may be repeated.",
        ),
    ):  # fmt: skip
        function = decorate(function)
    return function


def _filter(criteria: dict[str, Any]) -> dict[str, Any]:
    """Return the ``Filter`` of the interface: what was not asked for is left out."""
    lists = {"units": list(criteria.pop("units")), "events": list(criteria.pop("events"))}
    return lists | {key: value for key, value in criteria.items() if value is not None}


def _note_unknown(session: Session, events: Sequence[str]) -> None:
    """Say of a name that only the supervisor's events could have, and none has, that nothing will be found by it. A
    supervisor newer than this program may have it, so it is no error."""
    for event in events:
        if event not in EVENTS and is_own_event(event) and not set(event) & set("*?["):
            near = get_close_matches(event, EVENTS, 1)
            session.note(f"no event is called {event}" + (f": did you mean {near[0]}?" if near else ""))


@journal.command("tail", cls=Verb, formats=FORMATS)
@click.option("-f", "--follow", is_flag=True, help="Go on with every new record.")
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), help="How many records (50; 10 with -f); 0: none.")
@_filters
@click.pass_obj
def tail(session: Session, /, follow: bool, last: int | None, **criteria: Any) -> int:
    """Show the last records, and with -f every new one."""
    if last is None:
        last = 10 if follow else TAIL_LAST
    _note_unknown(session, criteria["events"])
    wanted = _filter(criteria)
    if not follow:
        return _print_query(session, wanted, last)
    show = record_printer(session)
    try:
        for record in follow_records(session, wanted, last):
            show(record)
            session.flush()
    except KeyboardInterrupt:
        return 130
    return 0


@journal.command("query", cls=Verb, formats=FORMATS)
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), help="Only the last so many of those found.")
@_filters
@click.pass_obj
def query(session: Session, /, last: int | None, **criteria: Any) -> int:
    """Print all records that were asked for, oldest first."""
    _note_unknown(session, criteria["events"])
    return _print_query(session, _filter(criteria), last)


def _print_query(session: Session, wanted: dict[str, Any], last: int | None) -> int:
    if session.wants_json:
        session.emit({"records": list(find_records(session, wanted, last))})
        return 0
    show = record_printer(session)
    for record in find_records(session, wanted, last):
        show(record)
    return 0


def find_records(session: Session, wanted: dict[str, Any], last: int | None) -> Iterator[dict[str, Any]]:
    """Yield the records that pass a filter, as they come; a lost connection goes on behind the last that came."""
    seen: int | None = None
    patience = Patience(session, losses_max=5)
    while True:
        parameters = {"filter": wanted} | ({} if last is None else {"last": last})
        try:
            with session.client.stream("Journal.Query", **parameters) as stream:
                for reply in stream:
                    for record in reply["records"]:
                        seen = record.get("seq") or seen
                        yield record
            return
        except ConnectionLostError:
            patience.next_manager()
            if seen is not None:
                wanted, last = wanted | {"after": seen}, None


def newest_record(session: Session) -> int | None:
    """Return the number of the last record there is, so that a follower who has seen none yet can go on from it."""
    newest = session.call("Journal.Query", filter={"units": [], "events": []}, last=1)["records"]
    return newest[-1].get("seq") if newest else None


def follow_records(session: Session, wanted: dict[str, Any], last: int) -> Iterator[dict[str, Any]]:
    """Yield the last records that pass a filter and then every new one, across the death of managers."""
    seen = newest_record(session)
    parameters: dict[str, Any] = {"filter": wanted, "last": last}
    patience = Patience(session)
    while True:
        try:
            with session.client.stream("Journal.Follow", **parameters) as stream:
                for _, reply in session.follow(stream):
                    if reply.get("dropped"):
                        note_dropped(session, reply["dropped"], seen)
                    if reply.get("gone"):
                        session.note(f"the records up to {reply['gone']} are no longer in the journal")
                    if reply.get("record"):
                        seen = reply["record"].get("seq") or seen
                        yield reply["record"]
            return
        except ConnectionLostError:
            patience.next_manager()
            parameters = {"filter": wanted | ({} if seen is None else {"after": seen})}
            if seen is None:
                parameters["last"] = 0


def note_dropped(session: Session, dropped: int, seen: int | None) -> None:
    after = f" --after {seen}" if seen is not None else ""
    session.note(f"{dropped} records are missing here, this reader was too slow: supctl journal query{after}")


def record_printer(session: Session) -> Callable[[dict[str, Any]], None]:
    """Return what prints one record in the chosen format."""
    colour = session.style.colour
    match session.options.format:
        case "json":
            return session.emit
        case "verbose":
            return lambda record: session.echo(*verbose(record), "")
        case _:
            return lambda record: session.echo(_printable(format_event(record, colour=colour, date=True), colour))


def _printable(line: str, colour: bool) -> str:
    """Return a line without control characters but the colours that were put there by ``format_event``."""
    from supervisord_py.ctl.render import tame

    return tame(line) if colour else line if line.isprintable() else tame(line, colours=False)


def verbose(record: dict[str, Any]) -> list[str]:
    """Return a record with every field on a line of its own."""
    title = f"{record.get('seq') or '-'} {record.get('event')}"
    if record.get("ts"):
        title += f" {format_moment(str(record['ts']))}"
    fields = [key for key in record if key not in ("seq", "event")]
    width = max((len(key) for key in fields), default=0)
    return [title, *(f"    {key:<{width}}  {_field_text(record[key])}" for key in fields)]


def _field_text(value: object) -> str:
    from supervisord_py.ctl.render import clean

    return clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@journal.command("export", cls=Verb)
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), help="Only the last so many of those found.")
@_filters
@click.pass_obj
def export(session: Session, /, last: int | None, **criteria: Any) -> int:
    """Print records in the Journal Export Format of systemd, for systemd-journal-remote."""
    from supervisord_py.ctl.journal_export import export_entry

    if session.wants_json:
        raise Misuse("journal export has one format, systemd's: supctl journal query --json prints JSON")
    for record in find_records(session, _filter(criteria), last):
        sys.stdout.buffer.write(export_entry(record))
    return 0


@journal.command("verify", cls=Verb)
@click.pass_obj
def verify(session: Session) -> int:
    """Check the hash chain of all that is kept; exit 1 and name the first bad record when it is broken."""
    reply = session.call("Journal.Verify")
    if session.wants_json:
        session.emit(reply)
    elif reply["ok"]:
        span = f", {reply['first_seq']} to {reply['last_seq']}" if reply.get("first_seq") is not None else ""
        session.echo(f"the journal is whole: {reply['records']} records{span}")
    else:
        bad = f"record {reply['bad_seq']}" if reply.get("bad_seq") is not None else "a record"
        where = f" in {reply['file']}" if reply.get("file") else ""
        sys.stdout.flush()
        session.note(f"the journal is damaged: {bad}{where}: {reply.get('problem') or 'its hash is wrong'}")
    return 0 if reply["ok"] else 1


@journal.command("stats", cls=Verb)
@click.pass_obj
def stats(session: Session) -> int:
    """Print how much the journal holds, of what, and whether it can be written."""
    reply = session.call("Journal.Stats")
    if session.wants_json:
        session.emit(reply)
        return 0
    span = f", {reply['first_seq']} to {reply['last_seq']}" if reply.get("first_seq") is not None else ""
    session.echo(
        f"records   {reply['records']}{span}",
        f"size      {format_bytes(reply['bytes'])} in {reply['segments']} segments",
    )
    if reply.get("oldest"):
        session.echo(f"oldest    {format_moment(reply['oldest'])}")
    session.echo(f"lost      {reply['lost']}", f"degraded  {reply.get('degraded') or 'no'}")
    for heading, counts in (("EVENT", reply["by_event"]), ("UNIT", reply["by_unit"])):
        rows = [[name, str(count)] for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        if rows:
            session.echo("", *table(session.style, (heading, "RECORDS"), rows, right="RECORDS"))
    return 0


@journal.command("replay", cls=Verb, accepts=("reason",))
@click.option("--to", "to", metavar="TOPIC", help="Publish the messages among these records again, to this topic.")
@click.option(
    "-u", "--unit", "units", metavar="UNIT", multiple=True, shell_complete=complete_units,
    help="Only what this unit (glob) has sent; may be repeated.",
)  # fmt: skip
@click.option("--since", metavar="TIME", callback=moment_of, help="From then on: 10m, '10 min ago', today.")
@click.option("--until", metavar="SEQ", help="Show the state at this record; with --to: only messages up to a TIME.")
@click.option("--after", type=click.IntRange(min=0), metavar="SEQ", help="Only messages after this number.")
@click.option("-g", "--grep", metavar="REGEX", help="Only messages whose line matches.")
@click.option("--invocation", metavar="ID", help="Only what this life of a unit has sent.")
@click.pass_context
def replay(context: click.Context, /, to: str | None, until: str | None, **criteria: Any) -> int:
    """Show how the units were at a record, told by the journal; or publish messages again, to a topic."""
    session: Session = context.obj
    if to is None:
        return _show_state(session, until, criteria)
    wanted = _filter({**criteria, "events": (), "until": moment_of(context, context.command.params[0], until)})
    reply = session.call("Journal.Replay", filter=wanted, to=to, reason=session.options.reason or None)
    if session.wants_json:
        session.emit(reply)
    elif reply["count"]:
        session.echo(f"published {reply['count']} messages, records {reply['first_seq']} to {reply['last_seq']}")
    else:
        session.echo("no message passes the filter")
    return 0


def _show_state(session: Session, until: str | None, criteria: dict[str, Any]) -> int:
    """Print how the units were when a record was the last one."""
    if until is None:
        raise Misuse(
            "journal replay needs --until SEQ, to show the state then, or --to TOPIC, to publish messages again"
        )
    if not (until.isascii() and until.isdigit()):
        raise Misuse(f"--until {until} is not the number of a record: supctl journal query --until {until} shows them")
    for name, given in criteria.items():
        if given and name != "units":
            raise Misuse(f"--{name} goes with --to TOPIC: the state is told by all records up to one")
    reply = session.call("Journal.State", seq=int(until))
    if criteria["units"]:
        patterns = [f"{pattern}*" if pattern.endswith("@") else pattern for pattern in criteria["units"]]
        reply["units"] = [unit for unit in reply["units"] if any(fnmatchcase(unit["name"], each) for each in patterns)]
    if session.wants_json:
        session.emit(reply)
        return 0
    session.echo(
        f"at record {reply['seq']}, {format_moment(reply['ts'])}: the supervisor was {_was(reply['supervisor'])}"
    )
    if reply.get("first"):
        session.echo(f"the journal begins with record {reply['first']}: what only older ones told is not known")
    if reply["lost"]:
        session.echo(f"{reply['lost']} records could not be written: what they told is missing here")
    rows = [
        [unit["name"], _was(unit.get("active_state")), str(unit.get("pid") or ""), *_told(unit)]
        for unit in reply["units"]
    ]
    if rows:
        session.echo("", *table(session.style, ("UNIT", "STATE", "PID", "RECORD", "TOLD"), rows, right="PID"))
    return 0


def _was(state: str | None) -> str:
    return state or "unknown"


def _told(unit: dict[str, Any]) -> tuple[str, str]:
    """Return which record told the state of a unit, and what else is known."""
    from supervisord_py.ctl.render import clean

    words = [clean(unit["message"])] if unit.get("message") else []
    words += [f"{job['type']} (job {job['job']}) under way" for job in unit["jobs"]]
    words += [unit["uncertain"]] if unit.get("uncertain") else []
    return str(unit.get("seq") or ""), "; ".join(words)

"""``logs``: what units have written, and with -f what they write now.

By time it can be searched where ``[log] format`` keeps times. ``--events`` puts the journal's records beside it: with
-f in the order in which both arrive; without -f, where no order between the two is known, behind it.
"""

import re
import zlib
from collections.abc import Iterator
from typing import Any

import click

from supervisord_py.ctl.client import ConnectionLostError, Stream
from supervisord_py.ctl.options import Misuse, Verb, moment_of, units_argument
from supervisord_py.ctl.render import clean, tame
from supervisord_py.ctl.session import Patience, Session
from supervisord_py.ctl.status import is_plain_name
from supervisord_py.errors import SupervisordError

LINES = 50
LINES_FOLLOWING = 10
LINES_MAX = 100_000
"""With --since or --until: all that the supervisor gives."""
EVENTS = 20

_COLOURS = ("cyan", "green", "yellow", "blue")


@click.command("logs", cls=Verb)
@units_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with every new line.")
@click.option("-n", "--lines", "--tail", "lines", type=click.IntRange(min=0), help="Lines a unit (50; 10 with -f).")
@click.option("-g", "--grep", metavar="REGEX", help="Only lines that match.")
@click.option("--previous", is_flag=True, help="The output of the life before.")
@click.option("--events", is_flag=True, help="Show the journal's records of the units too.")
@click.option(
    "--since", metavar="TIME", callback=moment_of, help="Not before TIME: 10m (ago), today, 2026-11-20 13:00."
)
@click.option("--until", metavar="TIME", callback=moment_of, help="Not after TIME.")
@click.pass_obj
def logs(
    session: Session,
    units: tuple[str, ...],
    follow: bool,
    lines: int | None,
    grep: str | None,
    previous: bool,
    events: bool,
    since: str | None,
    until: str | None,
) -> int:
    """Print the last output of units (of all when none is named), each line with its unit when there are several."""
    if follow and previous:
        raise Misuse("a life that is over writes nothing more: leave out -f or --previous")
    if grep is not None:
        try:
            re.compile(grep)
        except re.error as error:
            raise Misuse(f"--grep is no regular expression: {error}") from None
    if follow and until is not None:
        raise Misuse("with -f it goes on: leave out -f or --until")
    times = {name: moment for name, moment in (("since", since), ("until", until)) if moment is not None}
    reader = _Reader(session, units, lines, grep, previous, times)
    try:
        return reader.follow(events) if follow else reader.print(events)
    except KeyboardInterrupt:
        return 130


class _Reader:
    """One run of ``logs``."""

    def __init__(
        self,
        session: Session,
        units: tuple[str, ...],
        lines: int | None,
        grep: str | None,
        previous: bool,
        times: dict[str, str],
    ) -> None:
        self._session = session
        self._units = list(units)
        self._lines = lines
        self._grep = grep
        self._previous = previous
        self._times = times
        self._is_single = len(units) == 1 and is_plain_name(units[0])
        self._to_terminal = session.style.width is not None
        self._name_width = 0

    def print(self, events: bool) -> int:
        """Print what is there."""
        session = self._session
        usual = LINES_MAX if self._times else LINES
        lines = usual if self._lines is None else self._lines
        found: list[dict[str, Any]] = []
        patience = Patience(session, losses_max=5)
        while True:
            found.clear()
            try:
                with self._open(lines, follow=False) as stream:
                    for reply in stream:
                        found += _lines_of(reply)
                break
            except ConnectionLostError:
                patience.next_manager()
        records: list[dict[str, Any]] = []
        if events:
            reply = session.call("Journal.Query", filter=self._record_filter(), last=EVENTS)
            records = reply["records"]
        if session.wants_json:
            session.emit({"lines": found} | ({"records": records} if events else {}))
            return 0
        self._name_width = max((len(line["unit"]) for line in found), default=0)
        for line in found:
            self._show_line(line)
        if records and found:
            session.echo("")
        for record in records:
            self._show_record(record)
        if not found and self._is_single and lines:
            self._tell_where()
        return 0

    def _tell_where(self) -> None:
        """Say of a unit without a line here that its output goes elsewhere, if that is so."""
        (unit,) = self._units
        try:
            settings = self._session.call("Show", unit=unit)["settings"]
        except SupervisordError:
            # It is forgotten, or the caller may not see its settings.
            return
        where = next((each["value"] for each in settings if each["key"] == "service.standard-output"), None)
        if where not in (None, "journal", "inherit"):
            self._session.note(f"no output of {unit} comes here: its standard-output is {clean(str(where))}")

    def follow(self, events: bool) -> int:
        """Print the last lines, then what comes, until interrupted; go on with the next manager when one is lost."""
        session = self._session
        usual = LINES_MAX if self._times else LINES_FOLLOWING
        lines = usual if self._lines is None else self._lines
        patience = Patience(session)
        seen = self._newest_record() if events else None
        is_first = True
        while True:
            streams: list[Stream] = []
            try:
                streams.append(self._open(lines, follow=True))
                if events:
                    place = {"last": 0} if is_first or seen is None else {}
                    wanted = self._record_filter() | ({} if is_first or seen is None else {"after": seen})
                    streams.append(session.client.stream("Journal.Follow", filter=wanted, **place))
                for index, reply in session.follow(*streams):
                    if index == 0:
                        for line in _lines_of(reply):
                            self._show_line(line)
                    elif reply.get("record"):
                        seen = reply["record"].get("seq") or seen
                        self._show_record(reply["record"])
                    session.flush()
                return 0
            except ConnectionLostError:
                patience.next_manager()
                session.note("following again; lines that were written in between are in supctl logs")
                lines, is_first = 0, False
            finally:
                for stream in streams:
                    stream.close()

    def _open(self, lines: int, *, follow: bool) -> Stream:
        parameters: dict[str, Any] = {
            "units": self._units, "lines": lines, "follow": follow, "previous": self._previous,
        }  # fmt: skip
        if self._grep is not None:
            parameters["grep"] = self._grep
        parameters |= self._times
        return self._session.client.stream("Logs", **parameters)

    def _newest_record(self) -> int | None:
        from supervisord_py.ctl.journal import newest_record

        return newest_record(self._session)

    def _record_filter(self) -> dict[str, Any]:
        return {"units": self._units, "events": []}

    def _show_line(self, line: dict[str, Any]) -> None:
        session = self._session
        if session.wants_json:
            session.emit(line)
            return
        text = tame(line["text"], colours=session.style.colour) if self._to_terminal else line["text"]
        if self._is_single:
            session.echo(text)
            return
        unit = line["unit"]
        self._name_width = max(self._name_width, len(unit))
        colour = _COLOURS[zlib.crc32(unit.encode()) % len(_COLOURS)]
        session.echo(f"{session.style.paint(f'{unit:<{self._name_width}} |', colour)} {text}")

    def _show_record(self, record: dict[str, Any]) -> None:
        from supervisord_py.model.event_text import format_event

        session = self._session
        if session.wants_json:
            session.emit({"record": record})
        else:
            session.echo(session.style.paint(f"-- {tame(format_event(record, date=True), colours=False)}", "dim"))


def _lines_of(reply: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the lines of one reply; the reply that ends an empty log names no unit."""
    if not reply.get("unit"):
        return
    time = {"time": reply["time"]} if reply.get("time") else {}
    for text in reply["text"].removesuffix("\n").split("\n"):
        yield {"unit": reply["unit"], "text": text} | time

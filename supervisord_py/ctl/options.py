"""The options that stand before or behind every verb, and the click classes that know them.

A verb says what it can use: one that changes nothing refuses ``--plan``, ``-m`` and ``--no-wait`` rather than
ignoring them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from supervisord_py.ctl.session import Session


_Function = TypeVar("_Function", bound=Callable[..., Any] | click.Command)


class Misuse(click.UsageError):
    """Wrong usage whose message says the next step already."""


def session_of(context: click.Context) -> "Session":
    session: Session = context.find_root().obj
    return session


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put an option that was given into the session; the one behind the verb wins."""
    name = parameter.name
    if value is None or value is False or context.resilient_parsing or name is None:
        return
    options = session_of(context).options
    match name:
        case "json":
            options.format = "json"
        case "timeout":
            options.timeout_s = parse_limit_s(value)
        case _:
            setattr(options, name, value)
    given: set[str] = context.find_root().meta.setdefault("supctl.given", set())
    given.add(name)


def parse_limit_s(text: str) -> float | None:
    """Read the time span of ``--timeout`` [s]; None is ``infinity``.

    Raises:
        click.BadParameter: It is none, or it is not above zero.
    """
    from supervisord_py.model.values import parse_timespan

    try:
        limit_ns = parse_timespan(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}: write --timeout 30s") from None
    if limit_ns == 0:
        raise click.BadParameter("a time limit is more than nothing: to not wait at all use --no-wait")
    return None if limit_ns is None else limit_ns / 1e9


def common_options() -> list[click.Option]:
    """Return new objects for the options of every verb (click ties an object to one command)."""

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(list(names), expose_value=False, callback=_keep, **attributes)

    return [
        option("--socket", metavar="PATH", help="Talk to the supervisor at this socket."),
        option("--user", is_flag=True, help="Talk to your own supervisor."),
        option("--system", is_flag=True, help="Talk to the system's supervisor."),
        option("--remote", metavar="ADDRESS", help="Talk to a supervisor elsewhere, tcp://HOST:PORT, with keys."),
        option("--keys", "remote_keys", metavar="DIR", help="The folder of the keys for --remote."),
        option("--json", is_flag=True, help="Print one JSON document (follow modes: one object a line)."),
        option("-o", "--output", "format", metavar="FORMAT", help="json is the same as --json."),
        option("--color", type=click.Choice(("auto", "always", "never")), help="When to use colour (default: auto)."),
        option("--timeout", metavar="SPAN", help="Wait at most this long (30s, 2min), then exit 124."),
        option("--no-wait", "--no-block", "no_wait", is_flag=True, help="Queue the job, print its id, do not wait."),
        option("-m", "--reason", "reason", metavar="TEXT", help="Why: recorded in the journal."),
        option("--plan", "--dry-run", "plan", is_flag=True, help="Print what would be done and do nothing."),
    ]


_FLAGS = frozenset({"--user", "--system", "--json", "--no-wait", "--no-block", "--plan", "--dry-run"})
_VALUED = frozenset({"--socket", "--remote", "--keys", "-o", "--output", "--color", "--timeout", "-m", "--reason"})


def skip_common(arguments: Sequence[str]) -> int:
    """Return how many of the first arguments are common options and their values."""
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word in _VALUED:
            index += 2
        elif word in _FLAGS or word.partition("=")[0] in _VALUED or (word[:2] in ("-o", "-m") and len(word) > 2):
            index += 1
        else:
            break
    return min(index, len(arguments))


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Did the caller ask for JSON? For usage errors, that are told before everything is parsed."""
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    return any(word in ("--json", "-ojson", "--output=json") for word in words) or any(
        option in ("-o", "--output") and value == "json" for option, value in pairwise(words)
    )


_ONLY_FOR = {"no_wait": "--no-wait", "reason": "-m", "plan": "--plan"}


class Verb(click.Command):
    """A verb of ``supctl``.

    Args:
        accepts: Which of ``no_wait``, ``reason`` and ``plan`` mean something to it.
        formats: Words that ``-o`` takes besides ``json``.
        no_units: What to say when it is called without its units: another tool means something else by that.
    """

    def __init__(
        self,
        *arguments: Any,
        accepts: Sequence[str] = (),
        formats: Sequence[str] = (),
        no_units: str | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(*arguments, **attributes)
        self.accepts = frozenset(accepts)
        self.formats = ("json", *formats)
        self.no_units = no_units
        self._common = common_options()
        self.params.extend(self._common)

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(context, args)
        except click.MissingParameter as error:
            if self.no_units is not None and error.param is not None and error.param.name == "units":
                raise Misuse(self.no_units, context) from None
            raise

    def invoke(self, context: click.Context) -> Any:
        given: set[str] = context.find_root().meta.get("supctl.given", set())
        for name, option in _ONLY_FOR.items():
            if name in given and name not in self.accepts:
                raise Misuse(f"{option} means nothing to {self.name}: leave it out", context)
        chosen = session_of(context).options.format
        if chosen is not None and chosen not in self.formats:
            raise Misuse(f"{self.name} has no format {chosen!r}: -o takes {', '.join(self.formats)}", context)
        return super().invoke(context)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context)
            if (
                record is None
                or isinstance(parameter, click.Argument)
                or (parameter.name in _ONLY_FOR and parameter.name not in self.accepts)
            ):
                continue
            (common if parameter in self._common else own).append(record)
        for title, records in (("Options", own), ("Common options", common)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def complete_units(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    """Offer the names of units and groups; nothing at all when the supervisor does not answer at once."""
    from click.shell_completion import CompletionItem

    from supervisord_py.errors import SupervisordError

    try:
        with session_of(context).new_client(timeout_s=1.0) as client:
            units = client.call("List", units=[], failed=False)["units"]
    except SupervisordError:
        return []
    names = {unit["name"]: unit.get("description", "") for unit in units}
    names |= {f"@{group}": "group" for unit in units for group in unit.get("groups") or ()}
    return [CompletionItem(name, help=names[name]) for name in sorted(names) if name.startswith(incomplete)]


def units_argument(*, required: bool) -> Callable[[_Function], _Function]:
    """Return the decorator of the argument UNIT...: names, @groups, template@ and globs."""
    metavar = "UNIT..." if required else "[UNIT...]"
    return click.argument("units", metavar=metavar, nargs=-1, required=required, shell_complete=complete_units)


def unit_argument() -> Callable[[_Function], _Function]:
    """Return the decorator of the argument UNIT."""
    return click.argument("unit", metavar="UNIT", shell_complete=complete_units)


def moment_of(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Read an option that is a time; a callback of ``click.option``."""
    if value is None or context.resilient_parsing:
        return None
    from datetime import datetime

    from supervisord_py.ctl.moments import format_rfc3339, parse_moment

    try:
        return format_rfc3339(parse_moment(value, datetime.now().astimezone()))
    except ValueError as error:
        raise Misuse(f"{parameter.opts[0]}: {error}", context) from None

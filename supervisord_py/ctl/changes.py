"""The verbs that change what units are: enable, disable, mask, unmask, and apply."""

import sys
from typing import Any

import click

from supervisord_py.ctl.client import ControlError
from supervisord_py.ctl.options import Misuse, Verb, units_argument
from supervisord_py.ctl.render import clean
from supervisord_py.ctl.session import Session
from supervisord_py.ctl.verbs import carry_out, rolling_limit, rolling_options

_ACCEPTS = ("no_wait", "reason", "plan")
_NOW = {"enable": "Start them now, too.", "disable": "Stop them now, too."}
_NOW |= {"mask": _NOW["disable"], "unmask": _NOW["enable"]}


def _verb(name: str, method: str, summary: str, text: str) -> click.Command:
    @click.command(
        name,
        cls=Verb,
        accepts=_ACCEPTS,
        short_help=summary,
        help=text,
        no_units=f"{name} what? name units, @groups or globs",
    )
    @units_argument(required=True)
    @click.option("--now", is_flag=True, help=_NOW[name])
    @click.pass_obj
    def command(session: Session, units: tuple[str, ...], now: bool) -> int:
        options = session.options

        def request() -> dict[str, Any]:
            return session.call(
                method,
                units=list(units),
                now=now,
                wait=not options.no_wait and not options.plan,
                plan=options.plan,
                reason=options.reason,
            )

        return carry_out(session, request, units)

    return command


_KEPT = "It is written into the control folder, so it holds after a restart of the supervisor and of the machine."
enable = _verb(
    "enable", "Enable", "let units start with the supervisor",
    f"Let units start with the supervisor. {_KEPT} A TEMPLATE@ stands for all its instances, later ones too.",
)  # fmt: skip
disable = _verb(
    "disable", "Disable", "let units no longer start with the supervisor",
    f"Let units no longer start with the supervisor; those that run go on. {_KEPT}",
)  # fmt: skip
mask = _verb(
    "mask", "Mask", "let nothing start units",
    f"Let nothing start units, neither people nor dependencies; those that run go on. {_KEPT}",
)  # fmt: skip
unmask = _verb("unmask", "Unmask", "let masked units be started again", "Take back mask. Starts nothing.")


@click.command("apply", cls=Verb, accepts=_ACCEPTS)
@units_argument(required=False)
@rolling_options
@click.option("--probation", metavar="SPAN", help="A unit must stay up this long (30s, 5min), or all go back.")
@click.pass_context
def apply(
    context: click.Context, units: tuple[str, ...], rolling: bool, max_unavailable: int | None, probation: str | None
) -> int:
    """Read the unit files again (of these units only, when some are named), then restart what changed and needs it, in
    the order of dependencies. A file that has become invalid refuses all of it.

    With --rolling or --probation the first unit that fails makes all of them go back to the text before.
    """
    session: Session = context.obj
    options = session.options
    limit = rolling_limit(context, rolling, max_unavailable)
    probation_ms = None if probation is None else _milliseconds(context, probation)

    def request() -> dict[str, Any]:
        return session.call(
            "Apply",
            units=list(units),
            wait=not options.no_wait and not options.plan,
            plan=options.plan,
            reason=options.reason,
            max_unavailable=limit,
            probation_ms=probation_ms,
        )

    if options.plan:
        return _plan(session, request)
    changed: list[dict[str, Any]] = []

    def request_and_keep() -> dict[str, Any]:
        reply = request()
        changed.extend(reply.get("changes") or ())
        return reply

    code = carry_out(session, request_and_keep, units, nothing="nothing needs a restart")
    if code == 0 and not session.wants_json:
        for change in changed:
            if change["effect"] != "restart":
                is_gone = change["change"] == "removed" and change["effect"] == "none"
                follows = "no file defines it" if is_gone else _EFFECTS.get(change["effect"], change["effect"])
                session.echo(f"{change['change']} {change['unit']} ({follows})")
    return code


@click.command("scale", cls=Verb, accepts=_ACCEPTS)
@click.argument("scaling", metavar="TEMPLATE=N")
@click.pass_context
def scale(context: click.Context, scaling: str) -> int:
    """Let a template have N instances, numbered from 1: new ones are started in order, others are stopped from the
    highest number down, and forgotten. The number is kept in the control folder, so it holds after a restart. What
    waits for a slot of a pool is told and not waited for."""
    session: Session = context.obj
    template, _, number = scaling.partition("=")
    if not template or not number.isdecimal():
        raise Misuse(f"{scaling} is no TEMPLATE=N: supctl scale worker@=4", context)
    options = session.options

    def request() -> dict[str, Any]:
        return session.call(
            "Scale",
            template=template,
            count=int(number),
            wait=not options.no_wait and not options.plan,
            plan=options.plan,
            reason=options.reason,
        )

    return carry_out(session, request, [template])


@click.command("set", cls=Verb, accepts=("reason", "plan"))
@click.argument("unit", metavar="UNIT")
@click.argument("settings", metavar="TABLE.KEY=VALUE", nargs=-1, required=True)
@click.option("--persist", is_flag=True, help="Keep it after the end of the supervisor; it may need a restart, too.")
@click.pass_obj
def set_keys(session: Session, unit: str, settings: tuple[str, ...], persist: bool) -> int:
    """Give keys of a running unit, or of a TEMPLATE@ and all its instances, other values at once: limits, the restart
    policy, its pool, and all else that a reload brings into force. They hold until the supervisor ends, or for good
    with --persist. TABLE.KEY= takes back what was set."""
    options = session.options

    def request() -> dict[str, Any]:
        return session.call(
            "Set", unit=unit, settings=list(settings), persist=persist, plan=options.plan, reason=options.reason
        )

    return carry_out(session, request, [unit])


_EFFECTS = {
    "live": "in force at once",
    "none": "read at its next start",
    "start": "started",
    "keep": "it runs on by the text that it has",
}


def _plan(session: Session, request: Any) -> int:
    try:
        reply: dict[str, Any] = request()
    except ControlError as error:
        return session.fail(error)
    if session.wants_json:
        session.emit(
            {key: reply[key] for key in ("job", "durable", "restarts", "changes", "settings")}
            | {"outcomes": [], "plan": True}
        )
        return 0
    for change in reply["changes"]:
        keys = ", ".join(key["key"] for key in change["keys"])
        session.echo(f"would be {change['change']}: {change['unit']}" + (f" ({clean(keys)})" if keys else ""))
    for number, unit in enumerate(reply["restarts"], 1):
        session.echo(f"{number}. would restart {unit}")
    if not reply["changes"] and not reply["restarts"]:
        session.echo("nothing has changed")
    sys.stdout.flush()
    return 0


def _milliseconds(context: click.Context, text: str) -> int:
    from supervisord_py.model.values import parse_timespan

    try:
        span_ns = parse_timespan(text)
    except ValueError as error:
        raise Misuse(f"{error}: write --probation 5min", context) from None
    if span_ns is None:
        raise Misuse("a probation has an end: write --probation 5min", context)
    return span_ns // 1_000_000

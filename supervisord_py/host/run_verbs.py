"""The method ``Run`` of ``py.supervisord.Manager``: a command as a unit without a file, or with one that is written.

Who may ``run`` gives what any unit file may say. Who has ``run-as-self`` only is held to ``host.run_as_self``.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from supervisord_py.core import view
from supervisord_py.core.actions import UnitOutcome
from supervisord_py.host import run_as_self
from supervisord_py.host.access import describe
from supervisord_py.host.authority import Authority
from supervisord_py.host.change_verbs import ChangeVerbs
from supervisord_py.host.control_calls import (
    Handler,
    InvalidParameterValueError,
    InvalidRequestError,
    PeerGoneError,
    Request,
    TimedOutError,
)
from supervisord_py.host.facade import Order, RecordFilter, RunReport, Supervisor
from supervisord_py.host.manager_interface import timeout_s
from supervisord_py.host.manager_verbs import Verbs, parse_reason, parse_token, raise_failure, wire_outcome
from supervisord_py.host.run_as_self import NotAsSelfError
from supervisord_py.host.terminal import why_no_terminal
from supervisord_py.host.toml_values import write_toml
from supervisord_py.host.transients import made_name
from supervisord_py.host.tuning import CannotChangeError, parse_settings
from supervisord_py.host.unit_names import Named
from supervisord_py.host.unit_views import UnitViews, to_wire
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.unit import Transient

_PREFIXES = "-@:+!"
_TIMES = ("timer",)
_EXITS_MAX = 20


class RunVerbs:
    """Answers ``Run``.

    Args:
        supervisor: The running manager.
        authority: The rules.
        views: How units are shown.
        verbs: The verbs about jobs.
        changes: The verbs about unit files.
    """

    def __init__(
        self, supervisor: Supervisor, authority: Authority, views: UnitViews, verbs: Verbs, changes: ChangeVerbs
    ) -> None:
        self._supervisor = supervisor
        self._authority = authority
        self._views = views
        self._verbs = verbs
        self._changes = changes

    def handlers(self) -> dict[str, Handler]:
        """Return the method by its name."""
        return {"Run": self.run}

    async def run(self, request: Request) -> object:
        parameters = request.parameters
        plan, reason = parameters["plan"], parse_reason(parameters["reason"])
        token, limit_s = parse_token(parameters["token"]), timeout_s(parameters["timeout_ms"])
        if parameters["until"] not in (None, "started", "exit"):
            raise InvalidParameterValueError("until", "started or exit")
        until_exit = parameters["until"] == "exit" and not plan
        order = await self._order(request, token, reason)
        self._refuse_nonsense(request, order, until_exit=until_exit)
        if not plan:
            await self._authority.require_reason(request.peer, "run", [order.name], reason)
        wait = (parameters["wait"] or until_exit) and not request.call.oneway and not plan
        transients = self._supervisor.changes.transients
        with transients.holding(order.name):
            try:
                async with asyncio.timeout(limit_s):
                    report = await request.until_gone(
                        transients.run(order, request.peer, reason=reason, plan=plan, wait=wait, token=token)
                    )
                    is_refused = report.submission is None or report.submission.reply.refusal is not None
                    if until_exit and not is_refused:
                        await request.until_gone(transients.ended(order.name))
            except CannotChangeError as error:
                await self._refuse(request, order, reason, error)
            except TimeoutError:
                self._hang_up(order, request)
                ms = parameters["timeout_ms"]
                raise TimedOutError(f"{order.name} has not ended after {ms} ms and goes on") from None
            except (PeerGoneError, asyncio.CancelledError):
                self._hang_up(order, request)
                raise
            ended = await self._ended(order.name) if until_exit else None
            return self._reply(order, report, plan=plan, ended=ended)

    def _hang_up(self, order: Order, request: Request) -> None:
        """Nobody waits any more, and a terminal goes with who had it."""
        if order.transient.terminal is not None:
            self._supervisor.changes.transients.give_up(order.name, request.peer, "its terminal is gone")

    def _reply(self, order: Order, report: RunReport, *, plan: bool, ended: dict[str, Any] | None) -> dict[str, Any]:
        outcomes = [UnitOutcome(order.name, 0, "start", "queued")]
        if report.submission is not None:
            self._verbs.raise_refusal(report.submission.reply.refusal)
            outcomes = list(report.submission.reply.outcomes)
        told = [wire_outcome(outcome) for outcome in outcomes]
        if not plan and ended is None:
            raise_failure("run", outcomes, told, {order.name})
        return {
            "job": next((outcome.job for outcome in outcomes if outcome.job), None),
            "durable": report.submission is not None and report.submission.durable,
            "outcomes": told,
            "unit": order.name,
            "path": report.path,
            "text": order.text if plan else None,
            "warnings": list(report.warnings),
            "ended": ended,
        }

    async def _ended(self, name: str) -> dict[str, Any]:
        """Say how the unit has ended: by its state, or by the journal where it was forgotten before we could look."""
        status = self._views.status(name)
        if status.load_state != "not-found":
            exit_ = status.exit if status.has_run else None
            shown = None if exit_ is None else {"code": exit_.code, "signal": exit_.signal}
            return {"result": to_wire(status.result), "exit": shown}
        wanted = RecordFilter(units=(name,), events=("unit.exited", "unit.stopped", "unit.failed"))
        records = await self._supervisor.journal_query(wanted, _EXITS_MAX)
        ends = [each for each in records if each["event"] == "unit.exited" and each.get("role") == "main"]
        results = [each["result"] for each in records if isinstance(each.get("result"), str)]
        shown = {"code": ends[-1].get("code"), "signal": ends[-1].get("signal")} if ends else None
        return {"result": to_wire(results[-1]) if results else "success", "exit": shown}

    async def _refuse(self, request: Request, order: Order, reason: str, error: CannotChangeError) -> None:
        if error.error == "NotPermitted":
            await self._authority.deny(
                request.peer, "run", (order.name,), error.message, unit=order.name, reason=reason
            )
        await self._changes.refuse(request, "run", [order.name], reason, error)

    # What is asked for

    async def _order(self, request: Request, token: str, reason: str) -> Order:
        """Return what is to be run, by the rights of who asks.

        Raises:
            NotPermittedError: It may not.
            InvalidRequestError: It makes no sense.
        """
        parameters, peer = request.parameters, request.peer
        access = self._authority.access
        name = parameters["unit"]
        if name is not None and not is_unit_name(name):
            raise InvalidParameterValueError("unit", "no name of a unit: letters, digits, and any of : _ . -")
        may_run = not access.scope(peer, "run").nothing
        if not may_run and not access.scope(peer, "run-as-self").nothing:
            return await self._order_as_self(request, token, reason)
        command = self._verbs.planning(request, "run") if parameters["plan"] else "run"
        name = name or made_name(token)
        await self._authority.require_units(peer, command, [Named(name, True)], reason=reason, every=True)
        settings = self._settings(name, parameters["properties"])
        tables = self._tables(parameters, saved=parameters["save"])
        transient = Transient(token, collect=parameters["collect"], terminal=self._terminal(request))
        maker = f"# run by {describe(peer)}\n"
        argv = tuple(parameters["command"])
        return Order(name, maker + _text(tables, settings), argv, transient, save=parameters["save"])

    async def _order_as_self(self, request: Request, token: str, reason: str) -> Order:
        parameters, peer = request.parameters, request.peer
        prefix = run_as_self.own_name(peer.uid)
        name = parameters["unit"] or made_name(token, str(peer.uid))

        async def deny(why: str) -> None:
            await self._authority.deny(peer, "run", (name,), why, unit=name, reason=reason)

        if not name.startswith(prefix):
            await deny(f"{describe(peer)} may run as itself only, as a unit {prefix}NAME")
        await self._authority.require_units(peer, "run-as-self", [Named(name, True)], reason=reason, every=True)
        given = [key for key in ("save", "user", "group") if parameters[key]]
        settings = self._settings(name, parameters["properties"])
        if wrong := [*given, *run_as_self.refused_keys(settings)]:
            await deny(f"{describe(peer)} may run as itself only, without {', '.join(wrong)}")
        try:
            identity = run_as_self.identity_of(peer)
            if peer.unit is not None:
                life = view.lives(self._supervisor.manager).get(peer.unit)
                if (why := run_as_self.confined_unit(life)) is not None:
                    raise NotAsSelfError(f"the caller is confined, and what is run for it would not be: {why}")
            caller = await asyncio.to_thread(run_as_self.read_caller, peer)
        except NotAsSelfError as error:
            await deny(str(error))
            raise
        tables = self._tables(parameters, saved=False)
        for table, keys in run_as_self.tables_of(caller, identity).items():
            tables[table] = {**tables.get(table, {}), **keys}
        transient = Transient(token, collect=parameters["collect"], identity=identity, terminal=self._terminal(request))
        text = f"# run by {describe(peer)}, as itself\n" + _text(tables, settings)
        argv = tuple(parameters["command"])
        return Order(name, text, argv, transient, objection=run_as_self.objection_by(caller))

    def _settings(self, name: str, properties: list[str]) -> dict[tuple[str, ...], Any]:
        if not properties:
            return {}
        try:
            return parse_settings(name, properties)
        except CannotChangeError as error:
            raise InvalidRequestError(error.message) from None

    def _terminal(self, request: Request) -> str | None:
        path = request.parameters["terminal"]
        if path is None:
            return None
        if request.peer.remote is not None:
            raise InvalidParameterValueError("terminal", "a terminal of another machine cannot be used")
        why = why_no_terminal(path, request.peer.uid)
        if why is not None:
            raise InvalidParameterValueError("terminal", f"{path[:80]}: {why}")
        return str(path)

    def _tables(self, parameters: Mapping[str, Any], *, saved: bool) -> dict[str, dict[str, Any]]:
        """Return the unit that the parameters say, without its properties: nothing of them is expanded."""
        words = parameters["command"]
        if not words or not words[0]:
            raise InvalidParameterValueError("command", "a program and its arguments")
        if words[0][0] in _PREFIXES:
            raise InvalidParameterValueError("command", f"{words[0][:80]!r} would be a prefix: name the program whole")
        unit: dict[str, Any] = {}
        if parameters["description"] is not None:
            unit["description"] = _literal(parameters["description"])
        if not saved:
            unit["enabled"] = False
        service: dict[str, Any] = {"exec-start": [_literal(word) for word in words]}
        if not saved:
            service["restart"] = "no"
        for key in ("user", "group", "working_directory"):
            if parameters[key] is not None:
                service[key.replace("_", "-")] = _literal(parameters[key])
        if parameters["environment"]:
            service["environment"] = {name: _literal(value) for name, value in parameters["environment"].items()}
        return ({"unit": unit} if unit else {}) | {"service": service}

    def _refuse_nonsense(self, request: Request, order: Order, *, until_exit: bool) -> None:
        settings = {key.partition(".")[0] for key in request.parameters["properties"]}
        if until_exit and not settings.isdisjoint(_TIMES):
            raise InvalidRequestError("what is run by the clock has no end to wait for")
        if order.transient.terminal is not None and (order.save or not settings.isdisjoint(_TIMES)):
            raise InvalidRequestError("a terminal is there for one run only: not for a saved unit, or one with a timer")


def _text(tables: Mapping[str, Mapping[str, Any]], settings: Mapping[tuple[str, ...], Any]) -> str:
    """Write the unit file, properties over what stands there already."""
    merged: dict[str, Any] = {name: dict(table) for name, table in tables.items()}
    for path, value in settings.items():
        table = merged
        for part in path[:-1]:
            below = table.get(part)
            table[part] = dict(below) if isinstance(below, dict) else {}
            table = table[part]
        if value is None:
            table.pop(path[-1], None)
        else:
            table[path[-1]] = value
    return write_toml(merged)


def _literal(text: str) -> str:
    return text.replace("%", "%%")

"""The methods of ``py.supervisord.Manager`` that change something: rights, reasons, units, then the core, then what
became of it.

The ``command`` record is written by the supervisor when it takes the command; a refusal by the rules is
``command.denied``.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import Refusal, UnitOutcome
from supervisord_py.host.authority import Authority
from supervisord_py.host.control_calls import (
    BadUnitError,
    Handler,
    InvalidParameterValueError,
    InvalidRequestError,
    MethodError,
    NoSuchJobError,
    NoSuchUnitError,
    Request,
    ShuttingDownError,
    TimedOutError,
    UnitMaskedError,
)
from supervisord_py.host.facade import ReloadReport, Supervisor
from supervisord_py.host.manager_interface import Queries, timeout_s
from supervisord_py.host.redaction import redact_change
from supervisord_py.host.unit_names import Named
from supervisord_py.host.unit_views import UnitViews, from_wire, to_wire
from supervisord_py.model.changes import KeyChange
from supervisord_py.model.problems import BadValue
from supervisord_py.model.states import JobMode
from supervisord_py.model.values import parse_signal
from supervisord_py.wire.interface import Basic, Interface, Maybe
from supervisord_py.wire.interface import Named as NamedType
from supervisord_py.wire.varlink import MANAGER

REASON_MAX = 1000
TOKEN_MAX = 200
_STARTING = frozenset({"start", "trigger", "release", "restart", "try-restart", "reload-or-restart"})
"""Verbs that read the unit's text anew: a bad one cannot do."""

_ALREADY = {
    "start": {"active": "already active", "reloading": "already active"},
    "release": {"active": "already active", "reloading": "already active"},
    "stop": {"inactive": "already inactive", "failed": "already inactive (it failed)"},
}
"""What is said of a unit that is where the verb would bring it, by the verb and the unit's active state."""

_GOOD = frozenset({"done", "skipped", "queued"})


class Verbs:
    """Answers what changes something.

    Args:
        supervisor: The running manager.
        authority: The rules.
        views: How units are shown.
        queries: The other half of the interface, which resolves units.
        interface: The description, whose errors are filled in.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        authority: Authority,
        views: UnitViews,
        queries: Queries,
        interface: Interface,
    ) -> None:
        self._supervisor = supervisor
        self._authority = authority
        self._views = views
        self._queries = queries
        self._interface = interface

    def handlers(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {
            "Start": self.start,
            "Stop": self.stop,
            "Restart": self.restart,
            "TryRestart": self.try_restart,
            "Reload": self.reload,
            "ReloadOrRestart": self.reload_or_restart,
            "Kill": self.kill,
            "ResetFailed": self.reset_failed,
            "Pause": self.pause,
            "Resume": self.resume,
            "Release": self.release,
            "Trigger": self.trigger,
            "Cancel": self.cancel,
            "DaemonReload": self.daemon_reload,
            "DaemonRestart": self.daemon_restart,
            "DaemonReexec": self.daemon_reexec,
            "Shutdown": self.shutdown,
        }

    async def start(self, request: Request) -> object:
        return await self._verb(request, "start")

    async def stop(self, request: Request) -> object:
        return await self._verb(request, "stop")

    async def restart(self, request: Request) -> object:
        most = request.parameters["max_unavailable"]
        if most is None:
            return await self._verb(request, "restart")
        if most < 1:
            raise InvalidParameterValueError("max_unavailable", "at least 1")
        return await self._verb(request, "restart", {"max_unavailable": most})

    async def try_restart(self, request: Request) -> object:
        return await self._verb(request, "try-restart")

    async def reload(self, request: Request) -> object:
        return await self._verb(request, "reload")

    async def reload_or_restart(self, request: Request) -> object:
        return await self._verb(request, "reload-or-restart")

    async def kill(self, request: Request) -> object:
        parameters = request.parameters
        try:
            signal = parse_signal(parameters["signal"])
        except BadValue as error:
            raise InvalidParameterValueError("signal", f"{error.message}, {error.hint}") from None
        if parameters["whom"] not in ("main", "all"):
            raise InvalidParameterValueError("whom", "main or all")
        return await self._verb(request, "kill", {"signal": signal, "whom": parameters["whom"]})

    async def reset_failed(self, request: Request) -> object:
        return await self._verb(request, "reset-failed")

    async def pause(self, request: Request) -> object:
        return await self._verb(request, "pause")

    async def resume(self, request: Request) -> object:
        return await self._verb(request, "resume")

    async def release(self, request: Request) -> object:
        return await self._verb(request, "release")

    async def trigger(self, request: Request) -> object:
        return await self._verb(request, "trigger")

    async def _verb(self, request: Request, verb: str, arguments: dict[str, Any] | None = None) -> object:
        """Do a verb for units and say what became of each.

        ``oneway`` calls do not wait: nobody would read how it ended, and what follows on the connection would be held
        up.
        """
        parameters = request.parameters
        plan = parameters["plan"]
        reason = parse_reason(parameters["reason"])
        mode = _mode(parameters.get("mode"))
        token = parse_token(parameters.get("token"))
        limit_s = timeout_s(parameters.get("timeout_ms"))
        command = self.planning(request, verb) if plan else verb
        try:
            wanted = await self.units_of(request, command, verb, reason)
            if not plan:
                await self._authority.require_reason(request.peer, verb, wanted, reason)
            units, invalid = self._set_bad_aside(request, verb, wanted)
        except (NoSuchUnitError, BadUnitError, UnitMaskedError) as error:
            if not plan:
                await self._authority.note_refusal(request.peer, verb, parameters["units"], reason, error)
            raise
        wait = parameters.get("wait", True) and not request.call.oneway
        submission = None
        outcomes = list(invalid.values())
        before = {} if plan else self._already(verb, units)
        if units or not invalid:
            try:
                async with asyncio.timeout(limit_s):
                    submission = await request.until_gone(
                        self._supervisor.command(
                            verb,
                            units,
                            request.peer,
                            reason=reason,
                            mode=mode,
                            wait=wait,
                            plan=plan,
                            token=token,
                            arguments=arguments,
                        )
                    )
            except TimeoutError:
                what = f"{verb} {' '.join(units[:5])}".strip()
                ms = parameters["timeout_ms"]
                raise TimedOutError(f"{what} is not done after {ms} ms and goes on: see supctl jobs") from None
            self.raise_refusal(submission.reply.refusal)
            already = {unit: words for unit, words in self._already(verb, before).items() if before[unit] == words}
            outcomes = [*(_with_already(each, already) for each in submission.reply.outcomes), *outcomes]
        told = [wire_outcome(outcome) for outcome in outcomes]
        if not plan:
            raise_failure(verb, outcomes, told, set(wanted))
        job = next((outcome.job for outcome in outcomes if outcome.job), None)
        return {"job": job, "durable": submission is not None and submission.durable and not plan, "outcomes": told}

    def _already(self, verb: str, units: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Return which units are where the verb would bring them, in words, and in which life.

        The same before and after a verb means that it had nothing to do.
        """
        found: dict[str, tuple[str, str | None]] = {}
        for unit in units if verb in _ALREADY else ():
            status = self._views.status(unit)
            words = _ALREADY[verb].get(status.active_state)
            if words is not None:
                found[unit] = (words, status.invocation)
        return found

    def planning(self, request: Request, verb: str) -> str:
        """Return the command whose rights a plan takes: ``plan`` itself, or the verb's for who may do it anyway."""
        access = self._authority.access
        if access.scope(request.peer, "plan").everything or access.scope(request.peer, verb).nothing:
            return "plan"
        return verb

    async def units_of(self, request: Request, command: str, verb: str, reason: str) -> list[str]:
        """Return the units of a change, all of them permitted."""
        peer, patterns = request.peer, request.parameters["units"]
        await self._authority.require(peer, command, reason=reason, asked=patterns[:100])
        if not patterns and verb != "reset-failed":
            raise InvalidRequestError(f"{verb} needs a unit: name one, a @group or a glob")
        names = self._queries.names_for(peer, command)
        found = names.resolve(patterns) if patterns else names.everything()
        # Without names it means what the peer may reset, not everything there is.
        return await self._authority.require_units(peer, command, found, reason=reason, every=bool(patterns))

    def _set_bad_aside(
        self, request: Request, verb: str, units: Sequence[str]
    ) -> tuple[list[str], dict[str, UnitOutcome]]:
        """Take out units whose file is masked or invalid, where the verb needs it.

        One that was named refuses the call. Those that a pattern found do not keep the others from being started: an
        invalid one becomes an outcome ``invalid``, so the call fails all the same and says why; a masked one is left
        out, because masking is there to keep it down.
        """
        named = set(request.parameters["units"])
        usable: list[str] = []
        invalid: dict[str, UnitOutcome] = {}
        for unit in units:
            bad = self._views.bad(unit) if verb in _STARTING else None
            if self._views.is_masked(unit) and (verb in _STARTING or not self._views.is_running_on(unit)):
                if unit in named:
                    raise UnitMaskedError(unit)
            elif bad is None:
                usable.append(unit)
            elif unit in named:
                raise BadUnitError(unit, bad.reason)
            else:
                invalid[unit] = UnitOutcome(unit, 0, verb, "invalid", bad.reason)
        return usable, invalid

    def raise_refusal(self, refusal: Refusal | None) -> None:
        """Turn the core's refusal into the error of that name, with all the fields that the interface gives it."""
        if refusal is None:
            return
        given = {**refusal.parameters, "message": refusal.message}
        parameters: dict[str, Any] = {}
        for name, type_ in self._interface.errors[refusal.error].fields:
            value = given.get(name)
            if value is None and not isinstance(type_, Maybe):
                value = _EMPTY[type_.name] if isinstance(type_, (Basic, NamedType)) else []
            parameters[name] = value
        raise MethodError(f"{MANAGER}.{refusal.error}", parameters)

    async def cancel(self, request: Request) -> object:
        job, reason = request.parameters["job"], parse_reason(request.parameters["reason"])
        peer = request.peer
        await self._authority.require(peer, "cancel", reason=reason)
        unit = next((entry["unit"] for entry in self._views.jobs() if entry["job"] == job), None)
        if unit is None:
            error = NoSuchJobError(job)
            await self._authority.note_refusal(peer, "cancel", (), reason, error)
            raise error
        await self._authority.require_units(peer, "cancel", [Named(unit, True)], reason=reason, every=True)
        await self._authority.require_reason(peer, "cancel", (unit,), reason)
        submission = await self._supervisor.command("cancel", (), peer, reason=reason, arguments={"job": job})
        self.raise_refusal(submission.reply.refusal)
        return {"job": job, "durable": submission.durable}

    # The daemon

    async def daemon_reload(self, request: Request) -> object:
        plan, reason = request.parameters["plan"], parse_reason(request.parameters["reason"])
        command = self.planning(request, "daemon-reload") if plan else "daemon-reload"
        await self._authority.require(request.peer, command, reason=reason)
        if not plan:
            await self._authority.require_reason(request.peer, command, (), reason)
            if view.is_stopping(self._supervisor.manager):
                # What it would bring could not start any more.
                error = ShuttingDownError("cannot daemon-reload: the supervisor is shutting down")
                await self._authority.note_refusal(request.peer, command, (), reason, error)
                raise error
        report = await self._supervisor.reload(request.peer, reason=reason, plan=plan)
        return wire_reload(report, secrets=self._authority.access.sees_secrets(request.peer))

    async def daemon_restart(self, request: Request) -> object:
        reason = await self._allowed_daemon_verb(request, "daemon-restart")
        leaving = self._supervisor.versions["pid"]
        durable, unfit = await self._supervisor.restart_manager(request.peer, reason=reason)
        if unfit is not None:
            message = f"the manager has not been replaced, everything is as it was: {unfit}"
            raise MethodError(f"{MANAGER}.JobFailed", {"outcomes": [], "message": message})
        return {"job": None, "durable": durable, "manager_pid": leaving}

    async def daemon_reexec(self, request: Request) -> object:
        reason = await self._allowed_daemon_verb(request, "daemon-reexec")
        versions = self._supervisor.versions
        durable, refused = await self._supervisor.reexec_keeper(request.peer, reason=reason)
        return {
            "job": None,
            "durable": durable,
            "manager_pid": versions["pid"],
            "keeper": versions["keeper"],
            "refused": refused,
        }

    async def shutdown(self, request: Request) -> object:
        reason = await self._allowed_daemon_verb(request, "shutdown")
        return {"job": None, "durable": await self._supervisor.shutdown(request.peer, reason=reason)}

    async def _allowed_daemon_verb(self, request: Request, command: str) -> str:
        reason = parse_reason(request.parameters["reason"])
        await self._authority.require(request.peer, command, reason=reason)
        await self._authority.require_reason(request.peer, command, (), reason)
        return reason


def wire_reload(report: ReloadReport, *, secrets: bool) -> dict[str, Any]:
    """Return a report as the reply of ``DaemonReload``; values without ``secrets`` are redacted."""

    def keys(changes: Iterable[KeyChange]) -> list[dict[str, Any]]:
        return [
            {
                "key": each.key,
                "old": each.old if secrets else redact_change(each.key, each.old),
                "new": each.new if secrets else redact_change(each.key, each.new),
                "effect": to_wire(each.effect.value),
            }
            for each in changes
        ]

    return {
        "job": None,
        "durable": report.durable,
        "added": list(report.added),
        "changed": list(report.changed),
        "removed": list(report.removed),
        "problems": list(report.problems),
        "changes": [
            {
                "unit": each.unit,
                "change": to_wire(each.change.value),
                "effect": to_wire(each.effect.value),
                "keys": keys(each.keys),
                "path": each.path,
                "message": each.message,
            }
            for each in report.changes
        ],
        "settings": keys(report.settings),
    }


_EMPTY: dict[str, Any] = {"string": "", "int": 0, "bool": False, "float": 0.0, "object": {}}


def raise_failure(verb: str, outcomes: Sequence[UnitOutcome], told: Sequence[dict[str, Any]], wanted: set[str]) -> None:
    """Raise ``JobFailed`` when a unit that was asked for did not get what was asked."""
    failed = [outcome for outcome in outcomes if outcome.unit in wanted and outcome.result not in _GOOD]
    if not failed:
        return
    first = failed[0]
    message = f"cannot {verb} {first.unit}: {first.message or first.result}"
    if len(failed) > 1:
        message += f" (and {len(failed) - 1} more)"
    message += f": see supctl why {first.unit}"
    raise MethodError(f"{MANAGER}.JobFailed", {"outcomes": list(told), "message": message})


def _with_already(outcome: UnitOutcome, already: Mapping[str, tuple[str, str | None]]) -> UnitOutcome:
    if outcome.unit not in already or outcome.result != "done" or outcome.message:
        return outcome
    return replace(outcome, message=already[outcome.unit][0])


def wire_outcome(outcome: UnitOutcome) -> dict[str, Any]:
    return {
        "unit": outcome.unit,
        "job": outcome.job,
        "type": to_wire(outcome.job_type),
        "result": to_wire(outcome.result),
        "message": outcome.message,
    }


def parse_reason(text: str | None) -> str:
    if text is not None and len(text) > REASON_MAX:
        raise InvalidParameterValueError("reason", f"at most {REASON_MAX} characters")
    return text or ""


def parse_token(text: str | None) -> str:
    if text is not None and len(text) > TOKEN_MAX:
        raise InvalidParameterValueError("token", f"at most {TOKEN_MAX} characters")
    return text or ""


def _mode(text: str | None) -> JobMode:
    if text is None:
        return JobMode.REPLACE
    try:
        return JobMode(from_wire(text))
    except ValueError:
        modes = ", ".join(mode.value for mode in JobMode)
        raise InvalidParameterValueError("mode", f"one of {modes}") from None

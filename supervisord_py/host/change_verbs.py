"""The methods of ``py.supervisord.Manager`` that change what units are: from Enable to Apply and CheckText.

The other verbs are in ``manager_verbs``, which knows rights, reasons and outcomes.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

from supervisord_py.core import view
from supervisord_py.core.actions import UnitOutcome
from supervisord_py.host.authority import Authority
from supervisord_py.host.control_calls import (
    BadUnitError,
    Handler,
    InvalidParameterValueError,
    InvalidRequestError,
    MethodError,
    NoSuchUnitError,
    Request,
    TimedOutError,
    UnitMaskedError,
)
from supervisord_py.host.facade import RolloutOptions, Submission, Supervisor, TuningReport
from supervisord_py.host.manager_interface import Queries, timeout_s
from supervisord_py.host.manager_verbs import (
    Verbs,
    parse_reason,
    parse_token,
    raise_failure,
    wire_outcome,
    wire_reload,
)
from supervisord_py.host.tuning import INSTANCES_MAX, CannotChangeError
from supervisord_py.host.unit_names import Named
from supervisord_py.host.unit_views import UnitViews
from supervisord_py.model.names import is_unit_name, parse_unit_name
from supervisord_py.wire.varlink import MANAGER

_MS_NS = 1_000_000
_ALREADY = {
    "enable": "already enabled",
    "disable": "already disabled",
    "mask": "already masked",
    "unmask": "not masked",
}


class ChangeVerbs:
    """Answers what changes unit files, or what is loaded of them.

    Args:
        supervisor: The running manager.
        authority: The rules.
        views: How units are shown.
        queries: Resolves units.
        verbs: The verbs about jobs.
    """

    def __init__(
        self, supervisor: Supervisor, authority: Authority, views: UnitViews, queries: Queries, verbs: Verbs
    ) -> None:
        self._supervisor = supervisor
        self._authority = authority
        self._views = views
        self._queries = queries
        self._verbs = verbs

    def handlers(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {
            "Enable": self.enable,
            "Disable": self.disable,
            "Mask": self.mask,
            "Unmask": self.unmask,
            "Apply": self.apply,
            "Scale": self.scale,
            "Set": self.set,
            "CheckText": self.check_text,
        }

    async def enable(self, request: Request) -> object:
        return await self._change(request, "enable")

    async def disable(self, request: Request) -> object:
        return await self._change(request, "disable")

    async def mask(self, request: Request) -> object:
        return await self._change(request, "mask")

    async def unmask(self, request: Request) -> object:
        return await self._change(request, "unmask")

    async def _change(self, request: Request, verb: str) -> object:
        parameters, peer = request.parameters, request.peer
        plan, reason = parameters["plan"], parse_reason(parameters["reason"])
        token, limit_s = parse_token(parameters["token"]), timeout_s(parameters["timeout_ms"])
        command = self._verbs.planning(request, verb) if plan else verb
        try:
            names, units = await self._names(request, command, verb, reason)
            if parameters["now"] and not plan:
                job_verb = "start" if verb in ("enable", "unmask") else "stop"
                wanted = [Named(unit, True) for unit in units]
                await self._authority.require_units(peer, job_verb, wanted, reason=reason, every=True)
            if not plan:
                await self._authority.require_reason(peer, verb, names, reason)
            for name in names if verb in ("enable", "disable") else ():
                if self._views.is_masked(name):
                    message = f"cannot {verb} {name}, it is masked: supctl unmask {name}, then supctl {verb} {name}"
                    raise UnitMaskedError(name, message)
            for name in names:
                await self._refuse_without_file(request, verb, name, reason)
        except (NoSuchUnitError, UnitMaskedError) as error:
            if not plan:
                await self._authority.note_refusal(peer, verb, parameters["units"], reason, error)
            raise
        now = units if parameters["now"] and not plan else []
        wait = parameters["wait"] and not request.call.oneway
        try:
            async with asyncio.timeout(limit_s):
                report = await request.until_gone(
                    self._supervisor.changes.change(
                        verb, names, peer, reason=reason, plan=plan, now=now, wait=wait, token=token
                    )
                )
        except CannotChangeError as error:
            await self.refuse(request, verb, names, reason, error)
        except TimeoutError:
            raise TimedOutError(f"{verb} is not done after {parameters['timeout_ms']} ms and goes on") from None
        outcomes = [self._outcome(verb, name, report.files, plan=plan) for name in names]
        if report.submission is not None:
            outcomes += self._jobs(report.submission)
        told = [wire_outcome(outcome) for outcome in outcomes]
        if not plan:
            raise_failure(verb, outcomes, told, {*names, *units})
        job = next((outcome.job for outcome in outcomes if outcome.job), None)
        return {"job": job, "durable": report.durable, "outcomes": told}

    async def _refuse_without_file(self, request: Request, verb: str, name: str, reason: str) -> None:
        """What is written of a unit that goes with its command or connection would be there for the next of its name.

        Raises:
            InvalidRequestError: It is such a unit.
        """
        if (parent := view.made_by(self._supervisor.manager, name)) is not None:
            message = f"cannot {verb} {name}, it is there for one connection to {parent}: name {parent}"
        elif verb != "unmask" and self._views.status(name).transient:
            message = f"cannot {verb} {name}, it was run without a file: supctl run --save writes one"
        else:
            return
        await self.refuse(request, verb, [name], reason, CannotChangeError("InvalidRequest", name, message))

    def _outcome(self, verb: str, name: str, files: dict[str, str], *, plan: bool) -> UnitOutcome:
        # A template's word may take the place of what was said of an instance.
        path = files.get(name) or next((path for unit, path in files.items() if unit.startswith(name)), None)
        if path is None:
            return UnitOutcome(name, 0, verb, "done", _ALREADY[verb])
        return UnitOutcome(name, 0, verb, "queued" if plan else "done", path)

    async def _names(self, request: Request, command: str, verb: str, reason: str) -> tuple[list[str], list[str]]:
        """Return what the control folder is to say something about, and the units that this concerns.

        ``worker@`` is the template itself for enable and disable, so that later instances are meant too; it is
        every instance there is for mask and unmask, so that each is shown.
        """
        peer, patterns = request.peer, request.parameters["units"]
        await self._authority.require(peer, command, reason=reason, asked=patterns[:100])
        if not patterns:
            raise InvalidRequestError(f"{verb} needs a unit: name one, a @group or a glob")
        resolver = self._queries.names_for(peer, command)
        names: dict[str, None] = {}
        units: dict[str, None] = {}
        for pattern in dict.fromkeys(patterns):
            is_template = pattern.endswith("@") and bool(self._supervisor.loaded.read_files(pattern))
            found: Sequence[Named] = ()
            try:
                found = resolver.resolve((pattern,))
            except NoSuchUnitError:
                if not is_template:
                    raise
            units |= dict.fromkeys(named.unit for named in found)
            whole = is_template and (verb in ("enable", "disable") or not found)
            names |= {pattern: None} if whole else dict.fromkeys(named.unit for named in found)
        asked = [Named(name, True) for name in {**names, **units}]
        await self._authority.require_units(peer, command, asked, reason=reason, every=True)
        return list(names), list(units)

    async def refuse(
        self, request: Request, verb: str, units: Sequence[str], reason: str, error: CannotChangeError
    ) -> NoReturn:
        """Record a change that cannot be, and raise it by its name in the interface."""
        raised: MethodError
        match error.error:
            case "NoSuchUnit":
                raised = NoSuchUnitError(error.unit)
            case "BadUnit":
                raised = BadUnitError(error.unit, error.message)
            case "InvalidRequest":
                raise InvalidRequestError(error.message)
            case "JobFailed":
                raised = MethodError(f"{MANAGER}.JobFailed", {"outcomes": [], "message": error.message})
            case name:
                raised = MethodError(f"{MANAGER}.{name}", {"message": error.message})
        await self._authority.note_refusal(request.peer, verb, units, reason, raised)
        raise raised

    def _jobs(self, submission: Submission) -> Sequence[UnitOutcome]:
        self._verbs.raise_refusal(submission.reply.refusal)
        return submission.reply.outcomes

    async def apply(self, request: Request) -> object:
        parameters, peer = request.parameters, request.peer
        plan, reason = parameters["plan"], parse_reason(parameters["reason"])
        token, limit_s = parse_token(parameters["token"]), timeout_s(parameters["timeout_ms"])
        most, probation_ms = parameters["max_unavailable"], parameters["probation_ms"]
        if most is not None and most < 1:
            raise InvalidParameterValueError("max_unavailable", "at least 1")
        if probation_ms is not None and probation_ms < 0:
            raise InvalidParameterValueError("probation_ms", "not negative")
        options = RolloutOptions(
            max_unavailable=most or 0,
            probation_ns=(probation_ms or 0) * _MS_NS,
            reverts=most is not None or bool(probation_ms),
        )
        command = self._verbs.planning(request, "apply") if plan else "apply"
        units: list[str] = []
        try:
            if parameters["units"]:
                units = await self._units_with_files(request, command, reason)
            else:
                scope = await self._authority.require(peer, command, reason=reason)
                if not scope.everything:
                    await self._authority.deny(
                        peer, command, (), "apply without units is for all of them: name those that are yours",
                        reason=reason,
                    )  # fmt: skip
            if not plan:
                await self._authority.require_reason(peer, "apply", units, reason)
        except NoSuchUnitError as error:
            if not plan:
                await self._authority.note_refusal(peer, "apply", parameters["units"], reason, error)
            raise
        wait = parameters["wait"] and not request.call.oneway
        changes = self._supervisor.changes
        try:
            async with asyncio.timeout(limit_s):
                report = await request.until_gone(
                    changes.apply(units, peer, options, reason=reason, plan=plan, wait=wait, token=token)
                )
        except CannotChangeError as error:
            await self.refuse(request, "apply", units, reason, error)
        except TimeoutError:
            ms = parameters["timeout_ms"]
            raise TimedOutError(f"apply is not done after {ms} ms and goes on: see supctl jobs") from None
        outcomes = () if report.submission is None else self._jobs(report.submission)
        told = [wire_outcome(outcome) for outcome in outcomes]
        _raise_first_failure(outcomes, told)
        shown: dict[str, Any] = wire_reload(report.reload, secrets=self._authority.access.sees_secrets(peer))
        return {
            "job": next((outcome.job for outcome in outcomes if outcome.job), None),
            "durable": report.submission is not None and report.submission.durable,
            "outcomes": told,
            "restarts": list(report.restarts),
            "changes": shown["changes"],
            "settings": shown["settings"],
        }

    async def scale(self, request: Request) -> object:
        parameters, peer = request.parameters, request.peer
        plan, reason, count = parameters["plan"], parse_reason(parameters["reason"]), parameters["count"]
        token, limit_s = parse_token(parameters["token"]), timeout_s(parameters["timeout_ms"])
        command = self._verbs.planning(request, "scale") if plan else "scale"
        template = await self._template(request, command, reason)
        if not 0 <= count <= INSTANCES_MAX:
            raise InvalidParameterValueError("count", f"0 to {INSTANCES_MAX}")
        tuning = self._supervisor.changes.tuning
        wait = parameters["wait"] and not request.call.oneway
        try:
            async with asyncio.timeout(limit_s):
                report = await request.until_gone(
                    tuning.scale(template, count, peer, reason=reason, plan=plan, wait=wait, token=token)
                )
        except CannotChangeError as error:
            await self.refuse(request, "scale", [template], reason, error)
        except TimeoutError:
            ms = parameters["timeout_ms"]
            raise TimedOutError(f"scale is not done after {ms} ms and goes on: see supctl jobs") from None
        return self._tuned("scale", report, plan=plan)

    async def set(self, request: Request) -> object:
        parameters, peer = request.parameters, request.peer
        plan, reason = parameters["plan"], parse_reason(parameters["reason"])
        command = self._verbs.planning(request, "set") if plan else "set"
        unit = await self._unit_or_template(request, command, reason)
        tuning, persist = self._supervisor.changes.tuning, parameters["persist"]
        if persist:
            await self._refuse_without_file(request, "set --persist", unit, reason)
        try:
            report = await tuning.set(unit, parameters["settings"], peer, persist=persist, reason=reason, plan=plan)
        except CannotChangeError as error:
            await self.refuse(request, "set", [unit], reason, error)
        return self._tuned("set", report, plan=plan)

    def _tuned(self, verb: str, report: TuningReport, *, plan: bool) -> dict[str, Any]:
        self._verbs.raise_refusal(report.refusal)
        told = [wire_outcome(outcome) for outcome in report.outcomes]
        if not plan:
            raise_failure(verb, report.outcomes, told, {outcome.unit for outcome in report.outcomes})
        job = next((outcome.job for outcome in report.outcomes if outcome.job), None)
        return {"job": job, "durable": report.durable, "outcomes": told}

    async def _template(self, request: Request, command: str, reason: str) -> str:
        """Return the template of a scale, with or without its ``@``; the peer may change it and each instance."""
        peer, name = request.peer, request.parameters["template"]
        await self._authority.require(peer, command, reason=reason, asked=(name,))
        template = name if name.endswith("@") else f"{name}@"
        if not is_unit_name(f"{template}1"):
            raise InvalidParameterValueError("template", "a template's name, such as worker@")
        units = {unit for unit in self._views.names() if parse_unit_name(unit).template == template}
        asked = [Named(unit, True) for unit in (template, f"{template}1", *sorted(units))]
        await self._authority.require_units(peer, command, asked, reason=reason, every=True)
        await self._require_reason(request, [template], reason)
        return template

    async def _unit_or_template(self, request: Request, command: str, reason: str) -> str:
        peer, name = request.peer, request.parameters["unit"]
        await self._authority.require(peer, command, reason=reason, asked=(name,))
        is_template = name.endswith("@") and any(parse_unit_name(unit).template == name for unit in self._views.names())
        unit = name if is_template else self._queries.names_for(peer, command).resolve_one(name)
        await self._authority.require_units(peer, command, [Named(unit, True)], reason=reason, every=True)
        await self._require_reason(request, [unit], reason)
        return str(unit)

    async def _require_reason(self, request: Request, units: Sequence[str], reason: str) -> None:
        if not request.parameters["plan"]:
            verb = "scale" if "template" in request.parameters else "set"
            await self._authority.require_reason(request.peer, verb, units, reason)

    async def _units_with_files(self, request: Request, command: str, reason: str) -> list[str]:
        """Return the units of an apply: those that there are, and names whose file may be new."""
        peer, patterns = request.peer, request.parameters["units"]
        await self._authority.require(peer, command, reason=reason, asked=patterns[:100])
        resolver = self._queries.names_for(peer, command)
        found: list[Named] = []
        for pattern in dict.fromkeys(patterns):
            try:
                found += resolver.resolve((pattern,))
            except NoSuchUnitError:
                if not is_unit_name(pattern):
                    raise
                found.append(Named(pattern, True))
        return await self._authority.require_units(peer, command, found, reason=reason, every=True)

    async def check_text(self, request: Request) -> object:
        await self._authority.require(request.peer, "edit")
        path, text = request.parameters["path"], request.parameters["text"]
        try:
            problems = await self._supervisor.changes.check_text(path, text)
        except CannotChangeError as error:
            raise InvalidRequestError(error.message) from None
        return {
            "problems": [
                {
                    "file": problem.file,
                    "line": problem.line,
                    "column": problem.column,
                    "key": problem.key,
                    "message": problem.message,
                    "hint": problem.hint,
                    "severity": problem.severity,
                }
                for problem in problems
            ]
        }


def _raise_first_failure(outcomes: Sequence[UnitOutcome], told: Sequence[dict[str, Any]]) -> None:
    """Raise ``JobFailed`` when an apply has failed, for the unit because of which."""
    bad = [outcome for outcome in outcomes if outcome.result not in ("done", "skipped", "queued")]
    if not bad:
        return
    first = next((outcome for outcome in bad if outcome.result == "failed"), bad[0])
    others = [outcome for outcome in outcomes if outcome is not first and "the text before" in outcome.message]
    message = f"cannot apply {first.unit}: {first.message or first.result}"
    if others:
        message += f"; gone back to the text before: {' '.join([first.unit, *(each.unit for each in others)])}"
    message += f": see supctl why {first.unit}"
    raise MethodError(f"{MANAGER}.JobFailed", {"outcomes": list(told), "message": message})

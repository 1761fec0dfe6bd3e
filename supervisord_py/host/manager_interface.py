"""The methods of ``py.supervisord.Manager`` that ask: what is there, how is it, why, and what may I do?

The methods that change something are in ``manager_verbs``.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import asdict

from supervisord_py.core import view
from supervisord_py.host.access import hypothetical_peer
from supervisord_py.host.authority import Authority, group_members
from supervisord_py.host.control_calls import (
    BadUnitError,
    ExpectedMoreError,
    Handler,
    InvalidParameterValueError,
    InvalidRequestError,
    MethodError,
    NoSuchUnitError,
    OutputUnavailableError,
    Request,
    TimedOutError,
    UnitMaskedError,
    readable_journal,
)
from supervisord_py.host.facade import Peer, RecordFilter, Supervisor, UnitFigures
from supervisord_py.host.output_reading import Window
from supervisord_py.host.unit_names import Named, UnitNames
from supervisord_py.host.unit_views import LIFE_EVENTS, UnitViews, build_lives, from_wire, life_query_last, to_wire
from supervisord_py.host.unit_waiting import Goal, Watch
from supervisord_py.model.commands import COMMANDS
from supervisord_py.model.names import is_unit_name
from supervisord_py.model.status import UnitStatus
from supervisord_py.store.query import BadFilterError, Grep, check_pattern
from supervisord_py.wire.log_lines import LogLine, time_text
from supervisord_py.wire.varlink import MANAGER

STATUS_LINES_MAX = 1000
LOG_LINES_MAX = 100_000
GREP_LINES = 10_000
"""Lines a unit that are looked through for matches, from the last one back."""

GREP_MAX = 1000
GREP_S = 3.0
"""How long a unit's lines are looked through."""

LIVES_MAX = 1000
_TURN = 20
"""Units that are looked at before the rest of the manager gets its turn."""


Units = Sequence[str]


class Queries:
    """Answers what asks. ``names_for`` and ``permitted`` are for the verbs too.

    Args:
        supervisor: The running manager.
        authority: The rules.
        views: How units are shown.
    """

    def __init__(self, supervisor: Supervisor, authority: Authority, views: UnitViews) -> None:
        self._supervisor = supervisor
        self._authority = authority
        self._views = views

    def handlers(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {
            "Ping": self.ping,
            "Version": self.version,
            "Stats": self.stats,
            "Commands": self.commands,
            "Can": self.can,
            "Health": self.health,
            "List": self.list,
            "Status": self.status,
            "Show": self.show,
            "Cat": self.cat,
            "Deps": self.deps,
            "Jobs": self.jobs,
            "Why": self.why,
            "Lives": self.lives,
            "Logs": self.logs,
            "Wait": self.wait,
        }

    # Which units

    def names_for(self, peer: Peer, command: str) -> UnitNames:
        """Return the units that the peer may know of: those it may list, and those it may use ``command`` for."""
        access = self._authority.access
        scopes = [access.scope(peer, command), access.scope(peer, "list")]
        everything = any(scope.everything for scope in scopes)
        return UnitNames(
            self._views.names(),
            group_members(self._views.memberships()),
            is_visible=lambda unit: everything or any(scope.holds(unit) for scope in scopes),
            may_be_none=lambda template: (
                command in ("list", "status") and bool(self._supervisor.loaded.files(template))
            ),
        )

    def members(self, group: str) -> list[str]:
        """Return the units of a group, none when there is no such group."""
        return group_members(self._views.memberships()).get(group, [])

    async def permitted(self, peer: Peer, command: str, patterns: Sequence[str]) -> list[str]:
        """Return the units that a question is about: all that the peer may ask about when ``patterns`` is empty.

        Raises:
            NotPermittedError: It may not ask this at all, or not about a unit that it named.
            NoSuchUnitError: A pattern matches nothing.
        """
        await self._authority.require(peer, command, asked=patterns[:100])
        names = self.names_for(peer, command)
        found = names.resolve(patterns) if patterns else names.everything()
        return await self._authority.require_units(peer, command, found, every=False)

    async def _one(self, request: Request, command: str) -> str:
        """Return the one unit that a call is about."""
        peer, name = request.peer, request.parameters["unit"]
        await self._authority.require(peer, command, asked=(name,))
        unit = self.names_for(peer, command).resolve_one(name)
        await self._authority.require_units(peer, command, [Named(unit, True)], every=True)
        return unit

    # The daemon

    async def ping(self, request: Request) -> object:
        await self._authority.require(request.peer, "ping")
        return {"answer": "pong"}

    async def version(self, request: Request) -> object:
        await self._authority.require(request.peer, "version")
        return dict(self._supervisor.versions)

    async def stats(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "stats")
        bus = asdict(self._supervisor.bus.stats())
        bus["by_unit"] = {unit: counts for unit, counts in bus["by_unit"].items() if scope.holds(unit)}
        names = [unit for unit in self._views.names() if scope.holds(unit)]
        trees = await self._supervisor.trees(names)
        figures = await self._supervisor.figures.of_units(trees)
        whole = await self._of_supervisor(trees) if scope.everything else None
        units = [
            {"name": name, "active_state": to_wire(state.active_state), "restarts": state.restarts}
            | {"failures": state.failures}
            | asdict(figures.get(name, UnitFigures()))
            async for name, state in self._states(names)
        ]
        return {"supervisor": whole, "units": units, "bus": bus}

    async def _states(self, names: Sequence[str]) -> AsyncIterator[tuple[str, UnitStatus]]:
        for index, name in enumerate(names):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            yield name, self._views.status(name)

    async def _of_supervisor(self, trees: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        manager, versions = self._supervisor.manager, self._supervisor.versions
        states = Counter(to_wire(state.value) for state in view.active_states(manager))
        restarts, failures = view.totals(manager)
        figures = asdict(await self._supervisor.figures.of_supervisor())
        return figures | {
            "name": versions["name"],
            "keeper": asdict(figures["keeper"]),
            "manager": asdict(figures["manager"]),
            "units": dict(sorted(states.items())),
            "processes": sum(map(len, trees.values())),
            "jobs": len(view.jobs(manager)),
            "restarts": restarts,
            "failures": failures,
        }

    async def commands(self, request: Request) -> object:
        await self._authority.require(request.peer, "commands")
        return {"commands": sorted(COMMANDS), "allowed": sorted(self._authority.access.allowed(request.peer))}

    async def can(self, request: Request) -> object:
        peer = request.peer
        await self._authority.require(peer, "can")
        verb, unit, user = (request.parameters[name] for name in ("verb", "unit", "user"))
        verb = from_wire(verb)
        if verb not in COMMANDS:
            raise InvalidParameterValueError("verb", f"no such command {verb[:80]!r}, see supctl commands")
        if unit is not None:
            unit = self.names_for(peer, "can").resolve_one(unit)
        subject = peer if user is None else await self._other(peer, user)
        decision = self._authority.access.decide(subject, verb, unit)
        return {"allowed": decision.allowed, "why": decision.why}

    async def _other(self, peer: Peer, user: str) -> Peer:
        """Return the peer that a user would be, for an admin who wants to know what they may do."""
        if peer.unit is None and not peer.stray and user == peer.user:
            return peer
        if not self._authority.access.sees_secrets(peer):
            await self._authority.deny(peer, "can", (), "only an admin may ask about others: leave out the user")
        # A look-up may wait for a directory server; the manager does not.
        other = await asyncio.to_thread(hypothetical_peer, user)
        if other is None:
            raise InvalidParameterValueError("user", f"no such user {user[:80]!r}")
        return other

    async def health(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "health")
        problems: list[str] = []
        for index, unit in enumerate(self._views.names()):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if scope.holds(unit) and (problem := self._problem(unit)) is not None:
                problems.append(problem)
        if scope.everything:
            problems += [problem for problem in self._supervisor.health_problems() if problem not in problems]
        warnings = self._supervisor.health_warnings() if scope.everything else []
        return {"healthy": not problems, "problems": problems, "warnings": warnings}

    def _problem(self, unit: str) -> str | None:
        status = self._views.status(unit)
        advice = f"see supctl why {unit}"
        if status.load_state == "bad-setting":
            bad = self._views.bad(unit)
            return f"{unit} has an invalid file: {advice if bad is None else bad.reason}"
        if status.active_state == "quarantined":
            return f"{unit} is quarantined after {status.failures} failures: {advice}"
        if status.active_state == "failed":
            return f"{unit} has failed ({status.result}): {advice}"
        if status.sub_state == "stuck":
            return f"{unit} has a process that will not die: {advice}"
        return None

    # Units

    async def list(self, request: Request) -> object:
        units = await self.permitted(request.peer, "list", request.parameters["units"])
        return await self._tell_units(request, "list", units, failed=request.parameters["failed"], lines=0)

    async def status(self, request: Request) -> object:
        lines = _bounded("lines", request.parameters["lines"], 0, STATUS_LINES_MAX)
        units = await self.permitted(request.peer, "status", request.parameters["units"])
        return await self._tell_units(request, "status", units, failed=False, lines=lines)

    async def _tell_units(
        self, request: Request, command: str, units: Sequence[str], *, failed: bool, lines: int
    ) -> object:
        """Reply with units: all at once, or one a reply for who asked for more."""
        if failed:
            units = [unit for unit in units if self._problem(unit) is not None]
        usage = await self._supervisor.usage(units)
        shown: list[dict[str, Any]] = []
        for index, unit in enumerate(units):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            shown.append(self._shown(request.peer, unit, usage.get(unit), lines))
            if request.call.more and index < len(units) - 1:
                await request.send({"units": shown})
                shown = []
        sees_all = self._authority.access.scope(request.peer, command).everything
        unloaded = self._views.unloaded() if sees_all and not request.parameters["units"] else None
        return {"units": shown, "unloaded": unloaded}

    def _shown(self, peer: Peer, unit: str, usage: Any, lines: int) -> dict[str, Any]:
        access = self._authority.access
        sees_lines = lines > 0 and access.scope(peer, "logs").holds(unit)
        return self._views.wire_unit(
            unit,
            usage=usage,
            arguments=access.scope(peer, "show").holds(unit),
            secrets=access.sees_secrets(peer, unit),
            lines=self._lines(unit, lines) if sees_lines else None,
        )

    def _lines(self, unit: str, lines: int, *, invocation: str | None = None) -> Sequence[str] | None:
        """Return the last lines (of one life) as a part of a larger answer, which an unreadable log does not spoil."""
        try:
            return self._supervisor.last_lines(unit, lines, invocation=invocation)
        except OSError:
            return None

    async def _shown_now(self, peer: Peer, unit: str) -> dict[str, Any]:
        usage = await self._supervisor.usage([unit])
        return self._shown(peer, unit, usage.get(unit), 0)

    async def show(self, request: Request) -> object:
        unit = await self._one(request, "show")
        secrets = self._authority.access.sees_secrets(request.peer, unit)
        live = await self._supervisor.live(unit)
        return {
            "status": await self._shown_now(request.peer, unit),
            "settings": [
                *self._views.settings(unit, secrets=secrets),
                *({"key": f"live.{key}", "value": value, "file": None, "line": None} for key, value in live.items()),
            ],
        }

    async def cat(self, request: Request) -> object:
        unit = await self._one(request, "cat")
        secrets = self._authority.access.sees_secrets(request.peer, unit)
        return {"files": self._views.files(unit, secrets=secrets)}

    async def deps(self, request: Request) -> object:
        unit = await self._one(request, "deps")
        return {"edges": self._views.edges(unit, reverse=request.parameters["reverse"])}

    async def jobs(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "jobs")
        return {"jobs": [job for job in self._views.jobs() if scope.holds(job["unit"])]}

    async def why(self, request: Request) -> object:
        unit = await self._one(request, "why")
        secrets = self._authority.access.sees_secrets(request.peer, unit)
        return {
            "unit": await self._shown_now(request.peer, unit),
            "causes": self._views.causes(unit, secrets=secrets),
        }

    async def lives(self, request: Request) -> object:
        last = _bounded("last", request.parameters["last"], 1, LIVES_MAX)
        unit = await self._one(request, "lives")
        wanted = RecordFilter(units=(unit,), events=LIFE_EVENTS)
        with readable_journal():
            records = await self._supervisor.journal_query(wanted, life_query_last(last))
        lives = build_lives(records)[-last:]
        if lives and self._authority.access.scope(request.peer, "logs").holds(unit):
            await self._add_last_words(unit, lives)
        return {"lives": lives}

    async def _add_last_words(self, unit: str, lives: Sequence[dict[str, Any]]) -> None:
        """Add the last line of output to each life that is over, as far back as it is known where one began."""
        for index, life in enumerate(reversed(lives)):
            if index % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            if life["end"] is not None:
                words = self._lines(unit, 1, invocation=life["invocation"])
                life["last_words"] = words[-1] if words else None

    # Output

    async def logs(self, request: Request) -> object:
        parameters = request.parameters
        lines = _bounded("lines", parameters["lines"], 0, LOG_LINES_MAX)
        pattern = _parse_grep(parameters["grep"])
        if parameters["follow"] and parameters["previous"]:
            raise InvalidRequestError("a life that is over writes nothing more: leave out follow or previous")
        window = _parse_window(parameters["since"], parameters["until"])
        units = await self._units_with_output(request)
        if window is not None:
            units = self._with_times(units, parameters["units"])
        previous = parameters["previous"]
        if not request.call.more:
            if parameters["follow"] or len(units) != 1:
                raise ExpectedMoreError(request.call.method)
            found = self._last_lines(units[0], lines, pattern, previous=previous, window=window)
            matching = await _matching(found, lines, pattern)
            return {"unit": units[0], "text": "\n".join(line.text for line in matching)}
        # The follower is made in the same step as the last lines are read, so no line falls between the two.
        read = [(unit, self._last_lines(unit, lines, pattern, previous=previous, window=window)) for unit in units]
        coming = self._supervisor.follow_output(units) if parameters["follow"] and units else None
        try:
            told = [(unit, line) for unit, found in read for line in await _matching(found, lines, pattern)]
            if coming is None:
                for unit, line in told[:-1]:
                    await request.send(_told(unit, line))
                return _told(*told[-1]) if told else _told("", LogLine(""))
            for unit, line in told:
                await request.send(_told(unit, line))
            await self._follow_output(request, coming, pattern)
        finally:
            close = getattr(coming, "aclose", None)
            if close is not None:
                await close()
        return _told("", LogLine(""))

    async def _units_with_output(self, request: Request) -> Sequence[str]:
        """Return the units whose output is meant; a name alone may be that of one that is forgotten."""
        patterns, peer = request.parameters["units"], request.peer
        try:
            return await self.permitted(peer, "logs", patterns)
        except NoSuchUnitError:
            is_name = len(patterns) == 1 and is_unit_name(patterns[0]) and not request.parameters["follow"]
            may_all = self._authority.access.scope(peer, "logs").everything
            if not (is_name and may_all and self._lines(patterns[0], 1)):
                raise
            return tuple(patterns)

    def _with_times(self, units: Units, asked: Units) -> Units:
        """Return the units whose lines have times; one that was asked for by its name must.

        Raises:
            OutputUnavailableError: It has none.
        """
        for unit in units:
            if unit in asked and not self._supervisor.output.has_times(unit):
                hint = 'write format = "timestamp" (or "json") into its [log], for what it writes from then on'
                raise OutputUnavailableError(unit, f"the output of {unit} is kept without times: {hint}")
        return [unit for unit in units if self._supervisor.output.has_times(unit)]

    def _last_lines(
        self, unit: str, lines: int, pattern: Grep | None, *, previous: bool, window: Window | None
    ) -> Sequence[LogLine]:
        """Return the lines that are shown, or that are looked through for those to show."""
        if not lines:
            return []
        wanted = lines if pattern is None else max(lines, GREP_LINES)
        try:
            return self._supervisor.output.log_lines(unit, wanted, previous=previous, window=window)
        except OSError as error:
            message = f"the output of {unit} cannot be read: {error.filename}: {error.strerror}"
            raise OutputUnavailableError(unit, message) from None

    async def _follow_output(
        self, request: Request, coming: AsyncIterator[tuple[str, str]], pattern: Grep | None
    ) -> None:
        while True:
            try:
                unit, line = await request.until_gone(anext(coming))
            except StopAsyncIteration:
                return
            if pattern is None or pattern.is_in(line):
                await request.send(_told(unit, LogLine(line)))

    # Waiting

    async def wait(self, request: Request) -> object:
        until, timeout_ms = request.parameters["until"], request.parameters["timeout_ms"]
        try:
            goal = Goal(from_wire(until))
        except ValueError:
            raise InvalidParameterValueError("until", "one of ready, active, inactive, exit") from None
        unit = await self._one(request, "wait")
        try:
            async with asyncio.timeout(timeout_s(timeout_ms)):
                await request.until_gone(self._wait_for(goal, unit))
        except TimeoutError:
            now = self._views.status(unit)
            message = f"{unit} is {now.active_state} ({now.sub_state}) after {timeout_ms} ms, not {until}"
            raise TimedOutError(f"{message}: see supctl why {unit}") from None
        return {"unit": await self._shown_now(request.peer, unit)}

    async def _wait_for(self, goal: Goal, unit: str) -> None:
        def has_job() -> bool:
            return any(job["unit"] == unit for job in self._views.jobs())

        watch = Watch(goal, self._views.status(unit))
        while True:
            status = self._views.status(unit)
            if status.load_state == "not-found":
                raise NoSuchUnitError(unit)
            if watch.is_reached(status, has_job=has_job):
                return
            if watch.is_hopeless(status, has_job=has_job):
                message = f"{unit} is {status.active_state} ({status.result}): see supctl why {unit}"
                raise MethodError(f"{MANAGER}.JobFailed", {"outcomes": [], "message": message})
            self._refuse_unusable(goal, unit, status, has_job=has_job)
            await self._supervisor.changed()

    def _refuse_unusable(self, goal: Goal, unit: str, status: UnitStatus, *, has_job: Callable[[], bool]) -> None:
        """Refuse to wait for the start of a unit at rest that nothing starts until its file is another.

        Raises:
            BadUnitError: Its file is invalid.
            UnitMaskedError: It is masked.
        """
        if goal not in (Goal.READY, Goal.ACTIVE) or status.active_state != "inactive" or has_job():
            return
        if (bad := self._views.bad(unit)) is not None:
            raise BadUnitError(unit, bad.reason)
        if self._views.is_masked(unit):
            raise UnitMaskedError(unit)


def timeout_s(timeout_ms: int | None) -> float | None:
    """Return a ``timeout_ms`` parameter in seconds.

    Raises:
        InvalidParameterValueError: It is negative.
    """
    if timeout_ms is not None and timeout_ms < 0:
        raise InvalidParameterValueError("timeout_ms", "not negative")
    return None if timeout_ms is None else timeout_ms / 1000


def _bounded(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise InvalidParameterValueError(name, f"{least} to {most}")
    return value


def _told(unit: str, line: LogLine) -> dict[str, Any]:
    return {"unit": unit, "text": line.text} | ({} if line.time is None else {"time": line.time})


def _parse_window(since: str | None, until: str | None) -> Window | None:
    """Read two moments (RFC 3339) as the log writes them; None when there is neither."""
    moments: list[str | None] = []
    for name, given in (("since", since), ("until", until)):
        try:
            at = None if given is None else datetime.fromisoformat(given)
        except ValueError:
            at = None
        if given is not None and (at is None or at.tzinfo is None):
            raise InvalidParameterValueError(name, "a time such as 2026-11-20T13:00:00Z")
        moments.append(None if at is None else time_text(round(at.timestamp() * 1000) * 1_000_000))
    return Window(*moments) if any(moments) else None


async def _matching(found: Sequence[LogLine], lines: int, pattern: Grep | None) -> Sequence[LogLine]:
    """Return the last lines that match. The search is done in a thread, and not for longer than ``GREP_S``: what is
    costly on one line would be on all of them, and each holds up the whole manager."""
    if pattern is None or not found:
        return found

    def search() -> list[LogLine] | None:
        end_s = time.monotonic() + GREP_S
        matching: list[LogLine] = []
        for line in reversed(found):
            if pattern.is_in(line.text):
                matching.append(line)
                if len(matching) == lines:
                    break
            if time.monotonic() > end_s:
                return None
        return matching[::-1]

    matching = await asyncio.to_thread(search)
    if matching is None:
        raise InvalidRequestError(f"grep took longer than {GREP_S:g}s: use a simpler pattern, or fewer lines")
    return matching


def _parse_grep(text: str | None) -> Grep | None:
    if text is None:
        return None
    if len(text) > GREP_MAX:
        raise InvalidParameterValueError("grep", f"at most {GREP_MAX} characters")
    try:
        # A pattern that backtracks for ever would stop the whole manager: such ones are refused.
        return check_pattern(text)
    except BadFilterError as error:
        raise InvalidParameterValueError("grep", str(error)) from None

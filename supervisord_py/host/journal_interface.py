"""The methods of ``py.supervisord.Journal``: asking it, following it, checking it.

A peer whose rights are held to some units sees the records of those units and no other. Secrets are taken out before
a record is written; for everybody but an admin they are taken out once more when it is read, by the rules of today.
"""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from msgspec.structs import asdict, replace

from supervisord_py.host.access import Scope
from supervisord_py.host.authority import Authority
from supervisord_py.host.command_records import command_record, with_fields
from supervisord_py.host.control_calls import (
    ExpectedMoreError,
    Handler,
    InvalidParameterValueError,
    JournalUnavailableError,
    Request,
    readable_journal,
)
from supervisord_py.host.facade import Followed, Peer, RecordFilter, Supervisor
from supervisord_py.host.manager_interface import GREP_MAX, Queries
from supervisord_py.model.records import Record
from supervisord_py.model.states import Severity
from supervisord_py.store.past import Past, describe_units
from supervisord_py.store.query import BadFilterError, check_pattern
from supervisord_py.store.redact import redact
from supervisord_py.wire.bus import TOPIC, is_address

REPLAYED_AT_ONCE = 256
"""Messages that are published before the next ones are read."""

RECORDS_MAX = 10_000
"""Records of one reply; who wants more asks with ``more``, and gets them one by one."""


class JournalMethods:
    """Answers the journal's methods.

    Args:
        supervisor: The running manager.
        authority: The rules.
        queries: Resolves groups and templates in filters.
    """

    def __init__(self, supervisor: Supervisor, authority: Authority, queries: Queries) -> None:
        self._supervisor = supervisor
        self._authority = authority
        self._queries = queries

    def handlers(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {
            "Query": self.query,
            "Follow": self.follow,
            "Verify": self.verify,
            "Stats": self.stats,
            "Replay": self.replay,
            "State": self.state,
        }

    async def query(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "journal")
        last = _last(request.parameters["last"])
        wanted = self._filter(request.peer, request.parameters["filter"])
        # Records that the peer may not see must not count among its last ones.
        is_exact = scope.everything
        if not is_exact and not wanted.units:
            wanted, is_exact = replace(wanted, units=self._globs_of(scope)), True
        with readable_journal():
            found = await self._supervisor.journal_query(wanted, last if is_exact else None)
        records = [self._shown(request.peer, record) for record in found if _is_in(scope, record)]
        if last is not None:
            records = records[len(records) - last :] if last < len(records) else records
        if not request.call.more:
            if len(records) > RECORDS_MAX:
                raise ExpectedMoreError(request.call.method)
            return {"records": records}
        for record in records[:-1]:
            await request.send({"records": [record]})
        return {"records": records[-1:]}

    async def follow(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "journal")
        if not request.call.more:
            raise ExpectedMoreError(request.call.method)
        last = _last(request.parameters["last"])
        wanted = self._filter(request.peer, request.parameters["filter"])
        coming = self._supervisor.journal_follow(wanted, last)
        try:
            await self._tell(request, scope, coming)
        finally:
            close = getattr(coming, "aclose", None)
            if close is not None:
                await close()
        return {"record": {}, "dropped": None}

    async def _tell(self, request: Request, scope: Scope, coming: AsyncIterator[Followed]) -> None:
        dropped, gone = 0, None
        while True:
            try:
                with readable_journal():
                    followed = await request.until_gone(anext(coming))
            except StopAsyncIteration:
                return
            # What was missed before a record that is not shown is told with the next one that is.
            dropped, gone = dropped + followed.dropped, gone if followed.gone is None else followed.gone
            if _is_in(scope, followed.record):
                record = self._shown(request.peer, followed.record)
                hole = {} if gone is None else {"gone": gone}
                await request.send({"record": record, "dropped": dropped or None, **hole})
                dropped, gone = 0, None

    async def verify(self, request: Request) -> object:
        await self._authority.require(request.peer, "journal")
        with readable_journal():
            return asdict(await self._supervisor.journal_verify())

    async def stats(self, request: Request) -> object:
        scope = await self._authority.require(request.peer, "stats")
        with readable_journal():
            shown = asdict(await self._supervisor.journal_stats())
        shown["by_unit"] = {unit: count for unit, count in shown["by_unit"].items() if scope.holds(unit)}
        return shown

    async def replay(self, request: Request) -> object:
        peer, reason = request.peer, request.parameters["reason"] or ""
        scope = await self._authority.require(peer, "replay", reason=reason)
        await self._authority.require_reason(peer, "replay", (), reason)
        to = TOPIC + request.parameters["to"].removeprefix(TOPIC)
        if not is_address(to):
            raise InvalidParameterValueError("to", "the name of a topic, 1 to 200 printable characters")
        wanted = replace(self._filter(peer, request.parameters["filter"]), events=("unit.message",))
        command = command_record("replay", (), peer, reason)
        cause = await self._supervisor.note(with_fields(command, result="done", to=to), durable=True)
        if cause is None:
            raise JournalUnavailableError("the journal cannot be written now: see supctl journal stats")
        first: int | None = None
        last: int | None = None
        count = 0
        with readable_journal():
            async for records in self._supervisor.bus.stream(wanted):
                # What is told from now on, by this too, is no part of it.
                old = [record for record in records if record["seq"] < cause and _is_in(scope, record)]
                for place in range(0, len(old), REPLAYED_AT_ONCE):
                    again = [_again(record, to, cause) for record in old[place : place + REPLAYED_AT_ONCE]]
                    numbers = await self._supervisor.bus.publish(again)
                    if not numbers:
                        raise JournalUnavailableError(f"the journal takes no more; {count} messages were published")
                    first, last, count = first or numbers[0], numbers[-1], count + len(numbers)
        return {"count": count, "first_seq": first, "last_seq": last}

    async def state(self, request: Request) -> object:
        peer, seq = request.peer, request.parameters["seq"]
        scope = await self._authority.require(peer, "journal")
        past, oldest = Past(), None
        with readable_journal():
            async for records in self._supervisor.bus.stream(RecordFilter()):
                for record in records:
                    oldest = oldest or record["seq"]
                    if record["seq"] <= seq:
                        past.follow(record)
                if records and records[-1]["seq"] >= seq:
                    break
        if past.last != seq:
            is_gone = oldest is not None and 0 < seq < oldest
            why = f"record {seq} is no longer kept: the journal begins with {oldest}" if is_gone else ""
            raise InvalidParameterValueError("seq", why or f"there is no record {seq}: the last one is {past.last}")
        units = [
            unit if self._authority.access.sees_secrets(peer, str(unit["name"])) else redact(unit)
            for unit in describe_units(past)
            if scope.holds(str(unit["name"]))
        ]
        first = None if past.first == 1 else past.first
        told = {"seq": seq, "ts": past.ts, "first": first, "lost": past.lost, "supervisor": past.supervisor}
        return told | {"units": units}

    def _filter(self, peer: Peer, given: dict[str, Any]) -> RecordFilter:
        """Return the filter with groups and templates resolved; a name of no unit may be one that was, and stays."""
        units: list[str] = []
        names = self._queries.names_for(peer, "journal")
        for pattern in given["units"]:
            if pattern.startswith("@"):
                units += [named.unit for named in names.resolve((pattern,))]
            else:
                units.append(f"{pattern}*" if pattern.endswith("@") else pattern)
        severities = [severity.value for severity in Severity]
        if given["severity"] is not None and given["severity"] not in severities:
            raise InvalidParameterValueError("filter.severity", f"one of {', '.join(severities)}")
        for name in ("since", "until"):
            _check_time(f"filter.{name}", given[name])
        _check_grep(given["grep"])
        return RecordFilter(
            units=tuple(units),
            events=tuple(given["events"]),
            severity=given["severity"],
            since=given["since"],
            until=given["until"],
            after=given["after"],
            grep=given["grep"],
            invocation=given["invocation"],
        )

    def _globs_of(self, scope: Scope) -> tuple[str, ...]:
        """Return the units of a scope as a filter takes them."""
        globs: list[str] = []
        for pattern in (pattern for grant in scope.grants for pattern in grant.units or ()):
            if pattern.startswith("@"):
                globs += self._queries.members(pattern[1:])
            else:
                globs.append(f"{pattern}*" if pattern.endswith("@") else pattern)
        # A filter without units takes all: a scope that holds none of today's must not become that.
        return tuple(globs) or ("@",)

    def _shown(self, peer: Peer, record: dict[str, Any]) -> dict[str, Any]:
        unit = record.get("unit")
        return record if self._authority.access.sees_secrets(peer, unit) else redact(record)


def _again(record: dict[str, Any], to: str, cause: int) -> Record:
    """Return a message as it is published once more; its sender is who sent it first."""
    fields = {"id": None, "to": to, "name": record.get("name"), "payload": record.get("payload")}
    fields["replay_of"] = record.get("replay_of") or record["seq"]
    fields |= {name: record[name] for name in ("sender", "address") if record.get(name)}
    unit, invocation = record.get("unit"), record.get("invocation")
    return Record("unit.message", unit=unit, invocation=invocation, cause=cause, fields=fields)


def _is_in(scope: Scope, record: dict[str, Any]) -> bool:
    unit = record.get("unit")
    return scope.everything or (isinstance(unit, str) and scope.holds(unit))


def _last(last: int | None) -> int | None:
    if last is not None and last < 0:
        raise InvalidParameterValueError("last", "not negative")
    return last


def _check_time(name: str, text: str | None) -> None:
    if text is None:
        return
    try:
        aware = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        aware = False
    if not aware:
        raise InvalidParameterValueError(name, "a time as 2026-11-20T12:00:00Z")


def _check_grep(text: str | None) -> None:
    if text is None:
        return
    if len(text) > GREP_MAX:
        raise InvalidParameterValueError("filter.grep", f"at most {GREP_MAX} characters")
    try:
        check_pattern(text)
    except BadFilterError as error:
        raise InvalidParameterValueError("filter.grep", str(error)) from None

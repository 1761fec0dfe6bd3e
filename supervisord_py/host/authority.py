"""Applies the rules to calls: which units a peer may use a command for, and a record for every refusal."""

from collections.abc import Callable, Mapping, Sequence

from supervisord_py.host.access import Access, Scope
from supervisord_py.host.control_calls import MethodError, NotPermittedError
from supervisord_py.host.facade import Peer, Supervisor
from supervisord_py.host.refusals import Refusals
from supervisord_py.host.unit_names import Named
from supervisord_py.model.settings import Settings
from supervisord_py.model.unitset import LoadResult


class Authority:
    """The rules as the settings have them now; they are read anew after each ``daemon-reload``.

    Args:
        supervisor: Whose settings and units count.
        refusals: Where refusals are recorded.
        own_uid: The supervisor's own user.
        groups_of: The groups of a unit.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        refusals: Refusals,
        *,
        own_uid: int,
        groups_of: Callable[[str], Sequence[str]],
    ) -> None:
        self._supervisor = supervisor
        self._refusals = refusals
        self._own_uid = own_uid
        self._groups_of = groups_of
        self._access: Access | None = None
        self._read_from: tuple[Settings, LoadResult] | None = None

    @property
    def access(self) -> Access:
        current = (self._supervisor.settings, self._supervisor.loaded)
        if self._access is None or self._read_from is None or not all(map(_is, current, self._read_from)):
            # User and group names are looked up again with every load, changed or not.
            self._access = Access(current[0], own_uid=self._own_uid, groups_of=self._groups_of)
            self._read_from = current
        return self._access

    async def require(self, peer: Peer, command: str, *, reason: str = "", asked: Sequence[str] = ()) -> Scope:
        """Return the units for which the peer may use ``command``; ``asked`` is what it named, for the record.

        Raises:
            NotPermittedError: It may not use it for any.
        """
        scope = self.access.scope(peer, command)
        if scope.nothing:
            await self.deny(peer, command, asked, self.access.decide(peer, command).why, reason=reason)
        return scope

    async def require_units(
        self, peer: Peer, command: str, units: Sequence[Named], *, reason: str = "", every: bool
    ) -> list[str]:
        """Return the units that the peer may use ``command`` for.

        Args:
            units: The units that it means. every: Refuse all when one that a pattern found is not permitted (for
            changes, which are never half done); else those
                are left out, and only a unit that was named is refused.

        Raises:
            NotPermittedError: The command or a unit is not permitted.
        """
        scope = await self.require(peer, command, reason=reason, asked=[named.unit for named in units])
        permitted: list[str] = []
        for named in units:
            if scope.holds(named.unit):
                permitted.append(named.unit)
            elif every or named.explicit:
                why = self.access.decide(peer, command, named.unit).why
                await self.deny(peer, command, [entry.unit for entry in units], why, unit=named.unit, reason=reason)
        return permitted

    async def require_reason(self, peer: Peer, command: str, units: Sequence[str], reason: str) -> None:
        """Refuse a change without a reason where the settings require one.

        Raises:
            NotPermittedError: There is no reason.
        """
        if self.access.lacks_reason(reason):
            await self.deny(peer, command, units, f"{command} needs a reason here: say why with -m REASON")

    async def note_refusal(
        self, peer: Peer, command: str, units: Sequence[str], reason: str, error: MethodError
    ) -> None:
        """Record a change that is permitted and cannot be: no such unit, its file is invalid."""
        await self._refusals.refused(peer, command, units, reason, error.error.rpartition(".")[2], str(error))

    async def deny(
        self,
        peer: Peer,
        command: str,
        units: Sequence[str],
        why: str,
        *,
        unit: str | None = None,
        reason: str = "",
    ) -> None:
        """Record a refusal and raise it.

        Raises:
            NotPermittedError: Always.
        """
        await self._refusals.denied(peer, command, units, reason, why)
        raise NotPermittedError(command, unit, why)


def group_members(memberships: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Turn the groups of each unit into the units of each group, both in order."""
    members: dict[str, list[str]] = {}
    for unit, groups in memberships.items():
        for group in groups:
            members.setdefault(group, []).append(unit)
    return members


def _is(one: object, other: object) -> bool:
    return one is other

"""Who may do what: presets and rules applied to a peer that the kernel and the keeper have named.

Theory of operation
-------------------
A peer has a *subject*: the unit whose process it is, else nothing at all when it is a stray, else its uid and groups.
A process of a unit is judged as that unit only: thirty agents under one uid would otherwise all be that uid. Each
subject has *grants*: commands, and the units that they are held to (None: all). Grants add up, nothing takes one away
but the ceiling ``allowed-commands``, which holds for everyone, root included.

Who comes over TCP with a key is that key, and no uid: it has ``monitoring``, and what ``commands`` of the table that it
came by and rules about keys grant.

Laws: a stray pings and no more, whatever its uid. A rule about uids or groups never speaks of a unit's process, and a
rule about units of nobody else, nor of an orphan that only its own word calls a process of the unit. A command that is
not granted for every unit is not granted for what concerns them all (``shutdown``).
"""

import grp
import os
import pwd
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from msgspec import Struct

from supervisord_py.host.facade import Peer, RemoteKey, remote_peer
from supervisord_py.model.commands import COMMANDS, PRESETS, command_set
from supervisord_py.model.settings import AllowRule, RemoteSettings, Settings
from supervisord_py.wire.bus import KEY

WHOLE: frozenset[str] = frozenset({"shutdown"})
"""Commands without a unit that act on all of them: a grant for some units is none for these."""

GroupsOf = Callable[[str], Sequence[str]]
"""The groups that a unit is a member of."""


class Decision(Struct, frozen=True):
    """Whether a peer may, and in one sentence why."""

    allowed: bool
    why: str


class Grant(Struct, frozen=True):
    """Commands for some units (globs and ``@groups``; None: all). ``source`` says in words where it comes from.

    ``admin``: the grant is the whole preset ``admin``, so secrets are shown, even where the ceiling leaves few
    commands.
    """

    commands: frozenset[str]
    units: tuple[str, ...] | None
    source: str
    admin: bool = False

    def covers(self, unit: str, groups: Sequence[str]) -> bool:
        if self.units is None:
            return True
        return any(
            pattern[1:] in groups if pattern.startswith("@") else _matches(pattern, unit) for pattern in self.units
        )


class Scope(Struct, frozen=True):
    """The units for which a peer may use a command: those that one of ``grants`` covers."""

    grants: tuple[Grant, ...]
    groups_of: GroupsOf

    @property
    def nothing(self) -> bool:
        return not self.grants

    @property
    def everything(self) -> bool:
        return any(grant.units is None for grant in self.grants)

    def holds(self, unit: str) -> bool:
        return self.everything or any(grant.covers(unit, self.groups_of(unit)) for grant in self.grants)


class Access:
    """The rules of one reading of the settings.

    Names of users and groups are looked up once, here; a name that the system does not know matches nobody until the
    next ``daemon-reload``.

    Args:
        settings: The settings.
        own_uid: The supervisor's own user, which is admin as root is.
        groups_of: The groups of a unit, for ``units = ["@backend"]``.
    """

    def __init__(self, settings: Settings, *, own_uid: int, groups_of: GroupsOf) -> None:
        self._own_uid = own_uid
        self._groups_of = groups_of
        self._ceiling = command_set(settings.supervisor.allowed_commands)
        self._require_reason = settings.control.require_reason
        self._rules = [(rule, _rule_grant(number, rule)) for number, rule in enumerate(settings.control.allow, 1)]
        self._of_keys = {"control": _remote_grants("control", settings.control.remote)}
        self._of_keys["bus"] = _remote_grants("bus", settings.bus.remote)
        self._uids = {rule.user: _uid_of(rule.user) for rule in settings.control.allow if rule.user is not None}
        self._gids = {rule.group: _gid_of(rule.group) for rule in settings.control.allow if rule.group is not None}

    def grants(self, peer: Peer) -> tuple[Grant, ...]:
        """Return what the peer is granted before the ceiling, in the order of the rules."""
        if peer.remote is not None:
            return self._grants_of_key(peer.remote)
        if peer.stray:
            return (Grant(frozenset({"ping"}), None, "a process that belongs to no unit"),)
        if peer.unit is not None:
            own = (
                Grant(frozenset({"ping"}), None, f"a process of {peer.unit}"),
                Grant(frozenset({"status"}), (peer.unit,), f"a process of {peer.unit}"),
            )
            if peer.claimed:
                return own
            return own + tuple(grant for rule, grant in self._rules if _names_unit(rule, peer.unit))
        if peer.uid == 0:
            return (Grant(COMMANDS, None, "root", admin=True),)
        if peer.uid == self._own_uid:
            return (Grant(COMMANDS, None, "the supervisor's own user", admin=True),)
        return (_BASE, *(grant for rule, grant in self._rules if self._names_peer(rule, peer)))

    def _grants_of_key(self, key: RemoteKey) -> tuple[Grant, ...]:
        of_table = [grant for name, grant in self._of_keys[key.listener] if fnmatchcase(key.name, name)]
        of_rules = [grant for rule, grant in self._rules if rule.key is not None and fnmatchcase(key.name, rule.key)]
        return (_BASE, *of_table, *of_rules)

    def scope(self, peer: Peer, command: str) -> Scope:
        """Return the units for which the peer may use ``command``."""
        grants: tuple[Grant, ...] = ()
        if command in self._ceiling:
            grants = tuple(grant for grant in self.grants(peer) if command in grant.commands)
        if command in WHOLE:
            grants = tuple(grant for grant in grants if grant.units is None)
        return Scope(grants, self._groups_of)

    def decide(self, peer: Peer, command: str, unit: str | None = None) -> Decision:
        """Decide about ``command`` for ``unit``, or without a unit: for anything at all."""
        scope = self.scope(peer, command)
        what = command if unit is None else f"{command} {unit}"
        groups = () if unit is None else self._groups_of(unit)
        for grant in scope.grants:
            if unit is None or grant.covers(unit, groups):
                return Decision(True, f"{describe(peer)} may {what}: {grant.source}")
        return Decision(False, f"{describe(peer)} may not {what}: {self._reason_against(peer, command, unit, scope)}")

    def allowed(self, peer: Peer) -> frozenset[str]:
        """Return every command that the peer may use for some unit."""
        return frozenset(command for command in COMMANDS if not self.scope(peer, command).nothing)

    def sees_secrets(self, peer: Peer, unit: str | None = None) -> bool:
        """Whether environment values, credentials and what is named like a secret are shown (``unit`` None: of all)."""
        return any(
            grant.admin and (grant.units is None or (unit is not None and grant.covers(unit, self._groups_of(unit))))
            for grant in self.grants(peer)
        )

    def lacks_reason(self, reason: str) -> bool:
        """Whether the settings require a reason for a change and ``reason`` is none."""
        return self._require_reason and not reason.strip()

    def _names_peer(self, rule: AllowRule, peer: Peer) -> bool:
        groups = (peer.gid, *peer.groups)
        return (
            (rule.uid is not None and rule.uid == peer.uid)
            or (rule.user is not None and self._uids[rule.user] == peer.uid)
            or (rule.gid is not None and rule.gid in groups)
            or (rule.group is not None and self._gids[rule.group] in groups)
        )

    def _reason_against(self, peer: Peer, command: str, unit: str | None, scope: Scope) -> str:
        if command not in COMMANDS:
            return "there is no such command, see supctl commands"
        if command not in self._ceiling:
            return "allowed-commands in supervisord.toml leaves it to nobody"
        if peer.stray:
            return "a process that belongs to no unit may only ping"
        if not scope.nothing:
            held = ", ".join(pattern for grant in scope.grants for pattern in grant.units or ())
            return f"it is granted for {held} only"
        if peer.unit is not None and peer.claimed:
            return "no rule speaks of an orphan whose unit nobody else can tell"
        if peer.unit is not None:
            rule = f'[[control.allow]] unit = "{peer.unit}"'
            return f"a unit's process may ping and see its own status; {rule} in supervisord.toml grants more"
        if peer.remote is not None:
            return f"commands in [{peer.remote.listener}.remote] of supervisord.toml may grant it"
        return "an admin may grant it with a rule in supervisord.toml, [[control.allow]]"


def describe(peer: Peer) -> str:
    """Name a peer for people."""
    if peer.remote is not None:
        return f"key {peer.remote.name}" if peer.remote.name else "a key that is not known"
    if peer.stray:
        return f"process {peer.pid} of no unit"
    if peer.unit is not None and peer.claimed:
        return f"process {peer.pid}, by its own word of unit {peer.unit},"
    if peer.unit is not None:
        return f"unit {peer.unit}"
    return f"user {peer.user}" if peer.user else f"uid {peer.uid}"


def hypothetical_peer(user: str) -> Peer | None:
    """Return the peer that ``user`` (a name or a uid) would be in a session of its own, or ``key/NAME`` over TCP; None
    when there is no such user."""
    if user.startswith(KEY):
        return remote_peer(RemoteKey(user.removeprefix(KEY), "", "control"))
    try:
        entry = pwd.getpwuid(int(user)) if user.isascii() and user.isdigit() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):  # ValueError: a NUL in it
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Peer(uid=entry.pw_uid, gid=entry.pw_gid, pid=0, groups=tuple(groups), user=entry.pw_name)


def _rule_grant(number: int, rule: AllowRule) -> Grant:
    subject = next(
        f"{key} {value}"
        for key, value in (
            ("unit", rule.unit),
            ("key", rule.key),
            ("user", rule.user),
            ("uid", rule.uid),
            ("group", rule.group),
            ("gid", rule.gid),
        )
        if value is not None
    )
    return _grant(rule.commands, rule.units or None, f"rule {number} of supervisord.toml, {subject}")


def _remote_grants(listener: str, remote: RemoteSettings | None) -> list[tuple[str, Grant]]:
    """Return what a table of a remote listener grants to keys, by their names or globs."""
    source = f"[{listener}.remote] of supervisord.toml, commands"
    commands = {} if remote is None else remote.commands
    return [(name, _grant(granted, None, f"{source} of {name}")) for name, granted in commands.items()]


def _grant(granted: str | tuple[str, ...], units: tuple[str, ...] | None, source: str) -> Grant:
    commands = command_set(granted)
    return Grant(commands, units, source, admin=commands >= PRESETS["admin"])


_BASE = Grant(PRESETS["monitoring"], None, "the default, monitoring")


def _names_unit(rule: AllowRule, unit: str) -> bool:
    return rule.unit is not None and _matches(rule.unit, unit)


def _matches(pattern: str, unit: str) -> bool:
    """Whether a unit is meant by a name, a glob, or ``template@`` for all its instances."""
    return unit.startswith(pattern) if pattern.endswith("@") else fnmatchcase(unit, pattern)


def _uid_of(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _gid_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None

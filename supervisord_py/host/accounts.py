"""Users and groups by name or number, as they are when a process is to be made.

Rules, systemd's where it has one: a user without a group gets its primary group and all groups it is a member of;
``supplementary-groups`` add to these; a group alone leaves the user as it is. A number needs an entry in the user
database unless a group is named too (containers run as numbers that nobody named). A supervisor that is not root can
only be what it is: anything else fails before anything is made.

Answers are kept for ``KEPT_S`` and only as long as ``/etc/passwd`` and ``/etc/group`` are the same files: a thousand
units of one user ask once. Failures are never kept. Source: systemd src/core/execute.c, get_fixed_user,
get_supplementary_groups; src/basic/user-util.c.
"""

import grp
import os
import pwd
import time
from collections.abc import Callable
from typing import NamedTuple

EXIT_GROUP = 216
EXIT_USER = 217
KEPT_S = 30.0

NO_HOME = frozenset({"", "/", "/nonexistent"})
NO_SHELL = frozenset({"", "false", "true", "nologin"})
"""Programs that stand for "no shell", by the last part of their path."""


class Identity(NamedTuple):
    """Who this process is."""

    uid: int
    gid: int
    groups: frozenset[int]

    @staticmethod
    def of_this_process() -> "Identity":
        return Identity(os.geteuid(), os.getegid(), frozenset(os.getgroups()))


class Account(NamedTuple):
    """Who a process is to be. ``uid``, ``gid`` and ``groups`` are None where nothing has to be changed."""

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None
    name: str | None
    home: str | None
    shell: str | None


class NoAccount(Exception):
    """The wanted user or group cannot be had; ``step`` and ``code`` are those of a failed spawn."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(detail)
        self.step = step
        self.code = EXIT_USER if step == "user" else EXIT_GROUP
        self.detail = detail


class Accounts:
    """Finds accounts; one a manager."""

    def __init__(self, own: Identity | None = None) -> None:
        self.own = own if own is not None else Identity.of_this_process()
        self._kept: dict[tuple[str | None, str | None, tuple[str, ...]], Account] = {}
        self._stamp: tuple[object, ...] = ()
        self._until_s = 0.0

    def find(self, user: str | None, group: str | None, supplementary: tuple[str, ...] = ()) -> Account:
        """Return who a process of this ``user`` and ``group`` (names or numbers, None: ours) is.

        Raises:
            NoAccount: there is no such user or group, or we are not allowed to become it.
        """
        stamp = (_stamp("/etc/passwd"), _stamp("/etc/group"))
        now_s = time.monotonic()
        if stamp != self._stamp or now_s > self._until_s:
            self._kept.clear()
            self._stamp, self._until_s = stamp, now_s + KEPT_S
        key = (user, group, supplementary)
        account = self._kept.get(key)
        if account is None:
            account = self._kept[key] = self._allowed(*self._resolve(user, group, supplementary))
        return account

    def dynamic(
        self, name: str, group: str | None, supplementary: tuple[str, ...], provide: Callable[[str], int]
    ) -> Account:
        """Return who a process of a user is that is made on the way, unless there is one of that name.

        Args:
            name: What the user is called.
            group: The group, made on the way too where there is none of that name.
            supplementary: Further groups.
            provide: Gives an id to a name.

        Raises:
            NoAccount: there is no such group, or we may not make users.
        """
        if name.isdecimal() or _entry(name, self.own.uid) is not None:
            return self.find(name, group, supplementary)
        if self.own.uid != 0:
            raise NoAccount(
                "group",
                f"a supervisor with uid {self.own.uid} cannot make a user: run it as root, or drop dynamic-user",
            )
        uid = provide(name)
        gid = uid
        if group is not None and (group.isdecimal() or _is_group(group)):
            gid = _gid(group)
        return Account(uid, gid, tuple(sorted({gid, *map(_gid, supplementary)})), name, None, None)

    def exactly(self, uid: int, gid: int, groups: tuple[int, ...]) -> Account:
        """Return who a process with these ids is, whatever the user database says of groups.

        Raises:
            NoAccount: we are not allowed to become it.
        """
        entry = _entry(str(uid), self.own.uid)
        account = self._allowed(entry, uid, gid, tuple(sorted({gid, *groups})))
        if self.own.uid != 0:
            return account
        # Set in any case: what we have ourselves is not to be left because it looks the same.
        return account._replace(uid=uid, gid=gid, groups=groups)

    def _resolve(
        self, user: str | None, group: str | None, supplementary: tuple[str, ...]
    ) -> tuple[pwd.struct_passwd | None, int, int, tuple[int, ...] | None]:
        entry = _entry(user, self.own.uid)
        if user is not None and entry is None:
            if not user.isdecimal():
                raise NoAccount("user", f"no such user {user}")
            if group is None:
                raise NoAccount("user", f"no user has the number {user}: name a group too, or create the user")
        uid = entry.pw_uid if entry is not None else self.own.uid if user is None else int(user)
        gid = self.own.gid
        if group is not None:
            gid = _gid(group)
        elif user is not None and entry is not None:
            gid = entry.pw_gid
        groups: tuple[int, ...] | None = None
        if user is not None or group is not None or supplementary:
            member = set(os.getgrouplist(entry.pw_name, gid)) if user is not None and entry is not None else {gid}
            groups = tuple(sorted(member | {_gid(name) for name in supplementary}))
        return entry, uid, gid, groups

    def _allowed(self, entry: pwd.struct_passwd | None, uid: int, gid: int, groups: tuple[int, ...] | None) -> Account:
        own = self.own
        if own.uid != 0:
            if uid != own.uid:
                who = entry.pw_name if entry is not None else str(uid)
                # A process takes its groups first, so that is where it would fail.
                step = "user" if groups is None or (gid == own.gid and set(groups) <= own.groups) else "group"
                raise NoAccount(
                    step, f"a supervisor with uid {own.uid} cannot become {who}: run it as root, or drop user"
                )
            if gid != own.gid:
                raise NoAccount(
                    "group", f"a supervisor with gid {own.gid} cannot take group {gid}: run it as root, or drop group"
                )
            missing = sorted(set(groups or ()) - own.groups - {own.gid})
            if missing:
                raise NoAccount(
                    "group", f"this supervisor is not in group {missing[0]} and cannot add it: run it as root"
                )
        is_same_groups = groups is None or own.uid != 0 or frozenset(groups) == own.groups | {own.gid}
        is_same = uid == own.uid and gid == own.gid and is_same_groups
        # A uid without an account, as containers have them: its home is what we were told, as for %h.
        own_home = os.environ.get("HOME", "") if uid == own.uid else ""
        home = entry.pw_dir if entry is not None else own_home
        shell = entry.pw_shell if entry is not None and entry.pw_shell.rpartition("/")[2] not in NO_SHELL else None
        return Account(
            uid=None if is_same else uid,
            gid=None if is_same else gid,
            groups=None if is_same else groups,
            name=entry.pw_name if entry is not None else None,
            home=home if home.startswith("/") and home not in NO_HOME else None,
            shell=shell,
        )


def _entry(user: str | None, own_uid: int) -> pwd.struct_passwd | None:
    try:
        if user is None:
            return pwd.getpwuid(own_uid)
        return pwd.getpwnam(user)
    except KeyError:
        pass
    if user is None or not user.isdecimal():
        return None
    try:
        return pwd.getpwuid(int(user))
    except (KeyError, OverflowError):
        return None


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdecimal() and int(group) < 2**32 - 1:
            return int(group)
    raise NoAccount("group", f"no such group {group}")


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # a system without the file has its users elsewhere
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

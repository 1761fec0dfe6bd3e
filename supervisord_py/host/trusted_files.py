"""Reading files that decide what runs: as root, nothing is believed that somebody else could have written.

Theory of operation
-------------------
A file is as trustworthy as the weakest thing on the way to it. The path is walked from ``/`` one name at a time, links
followed by hand; each folder and the file itself must belong to a trusted user and be writable by nobody else. A folder
that others may write is accepted only when it is sticky (``/tmp``): there a name cannot be replaced by others, so its
owner counts, of a link too. Since only trusted users can then change anything on the way, nothing can be swapped
between the check and the read; the file's own owner and mode are read from the open descriptor all the same.

Trusted are root and, for paths that were typed, the user behind sudo. A group counts as nobody else when it is root's,
or the private group of a trusted user. In a user namespace whatever belongs to nobody in it counts as the system's.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Mapping

FILE_MAX = 1024 * 1024
"""Bytes of a unit file or the settings: far more than anybody writes, far less than hurts."""

LINKS_MAX = 40


class FileRefused(Exception):
    """A file that is not read: what is wrong with it, where if that is one place (else 0), and what to type."""

    def __init__(self, message: str, hint: str = "", *, line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line
        self.column = column


def trusted_uids(environment: Mapping[str, str], *, typed: bool) -> frozenset[int] | None:
    """Whose files are believed; None when this process is not root and the kernel's own rules are all there is.

    Args:
        environment: For ``SUDO_UID``.
        typed: The paths were given by the user (``run PATH``), so the user behind sudo is trusted with them.
    """
    if os.geteuid() != 0:
        return None
    uids = {0}
    if typed and environment.get("SUDO_UID", "").isdecimal():
        uids.add(int(environment["SUDO_UID"]))
    if _is_user_namespace():
        uids.add(_overflow("uid"))
    return frozenset(uids)


def key_owners() -> frozenset[int]:
    """Whose keys are believed: root's and this user's, and nobody else may write them, even where this is no root."""
    return frozenset({0, os.geteuid()} | ({_overflow("uid")} if _is_user_namespace() else set()))


class TrustedReader:
    """Reads files for one load; folders are checked once."""

    def __init__(self, uids: frozenset[int] | None) -> None:
        self._uids = uids
        self._gids = {0} | ({_overflow("gid")} if uids is not None and _is_user_namespace() else set())
        self._checked: dict[str, bool] = {}
        """Real folders that were checked: whether others may add names (a sticky folder)."""

    def read(self, path: str) -> str:
        """Read a whole file of text; ``""`` for a link to ``/dev/null``.

        Raises:
            FileRefused: Not trusted, no plain file, too large, or not UTF-8.
            OSError: It cannot be read.
        """
        data = self.read_bytes(path, FILE_MAX)
        try:
            # Editors of other systems put a mark before the first letter, which TOML has no place for.
            return data.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line_start = data.rfind(b"\n", 0, error.start) + 1
            raise FileRefused(
                f"not UTF-8: the byte 0x{data[error.start]:02x}",
                "save it as UTF-8",
                line=data.count(b"\n", 0, error.start) + 1,
                column=len(data[line_start : error.start].decode()) + 1,
            ) from None

    def read_secret(self, path: str) -> str:
        """Read a whole file of text that nobody but its owner may read.

        Raises:
            FileRefused: Not trusted, no plain file, too large, or others may read it.
            OSError: It cannot be read.
        """
        return self.read_bytes(path, FILE_MAX, secret=True).decode(errors="replace")

    def read_bytes(self, path: str, limit: int, *, secret: bool = False) -> bytes:
        """Read a whole file of at most ``limit`` bytes through one descriptor; ``b""`` for a link to ``/dev/null``.

        Raises:
            FileRefused: Not trusted, no plain file, too large, or ``secret`` and not only for its owner.
            OSError: It cannot be read.
        """
        real = self._walk(path)
        if real == os.devnull:
            return b""
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefused("not a plain file", f"remove {path}, or link it to /dev/null to mask the unit")
            self._check(real, status, "file")
            if secret and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise FileRefused(f"refused: others may read the secret key {real} (mode {mode})", f"chmod 600 {path}")
            if status.st_size > limit:
                raise FileRefused(f"larger than {limit // 1024} KiB")
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            # Not by the file object, which cannot be made for a folder.
            os.close(descriptor)
        if len(data) > limit:
            raise FileRefused(f"larger than {limit // 1024} KiB")
        return data

    def list(self, folder: str) -> list[str]:
        """The names in a folder, sorted.

        Raises:
            FileRefused: Not trusted.
            OSError: It is no folder, or cannot be read.
        """
        real = self._walk(folder)
        if self._uids is not None and os.path.isdir(real):
            self._enter(real)
        return sorted(os.listdir(real))

    def _walk(self, path: str) -> str:
        """Check every folder on the way and return the path without links; the last part itself is not checked.

        Raises:
            FileRefused: A folder or link on the way is not trusted.
            OSError: Something on the way does not exist, or there are too many links.
        """
        if self._uids is None:
            return os.path.realpath(path)
        parts = [part for part in os.path.abspath(path).split("/") if part]
        parts.reverse()
        current, links = "/", 0
        while parts:
            shared = self._enter(current)
            part = parts.pop()
            if part == "..":
                current = os.path.dirname(current)
                continue
            candidate = os.path.join(current, part)
            status = os.lstat(candidate)
            if not stat.S_ISLNK(status.st_mode):
                current = candidate
                continue
            links += 1
            if links > LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if shared and status.st_uid not in self._uids:
                raise FileRefused(
                    f"the link {candidate} belongs to {_user(status.st_uid)}",
                    f"remove it, or chown -h root {candidate}",
                )
            target = os.readlink(candidate)
            if target.startswith("/"):
                current = "/"
            parts += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        return current

    def _enter(self, folder: str) -> bool:
        """Check a real folder; returns whether others may add names to it."""
        if folder not in self._checked:
            status = os.stat(folder)
            sticky = bool(status.st_mode & stat.S_ISVTX)
            self._checked[folder] = self._check(folder, status, "folder", sticky=sticky)
        return self._checked[folder]

    def _check(self, path: str, status: os.stat_result, what: str, *, sticky: bool = False) -> bool:
        """Refuse what does not belong to a trusted user, or what others may write (a sticky folder: says so)."""
        if self._uids is None:
            return False
        if status.st_uid not in self._uids:
            raise FileRefused(
                f"refused: the {what} {path} belongs to {_user(status.st_uid)}, who could write anything into it",
                f"chown root {path}",
            )
        by_others = bool(status.st_mode & stat.S_IWOTH)
        by_group = bool(status.st_mode & stat.S_IWGRP) and not self._is_own_group(status.st_gid)
        if not by_others and not by_group:
            return False
        if sticky:
            return True
        writers = "everybody" if by_others else f"the group {_group(status.st_gid)}"
        raise FileRefused(
            f"refused: the {what} {path} may be written by {writers} (mode {stat.S_IMODE(status.st_mode):04o})",
            f"chmod {'go' if by_others else 'g'}-w {path}",
        )

    def _is_own_group(self, gid: int) -> bool:
        """Whether nobody but trusted users is in the group: root's, or a user's private one."""
        assert self._uids is not None
        if gid in self._gids:
            return True
        try:
            group = grp.getgrgid(gid)
            names = {pwd.getpwuid(uid).pw_name for uid in self._uids if uid != 0}
        except KeyError:
            return False
        return group.gr_name in names and names.issuperset(group.gr_mem)


def _is_user_namespace() -> bool:
    """Whether uids here are not those of the machine."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _overflow(kind: str) -> int:
    """The id that stands for whatever the namespace does not know."""
    try:
        with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
            return int(file.read())
    except OSError:
        return 65534


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} (gid {gid})"
    except KeyError:
        return f"gid {gid}"

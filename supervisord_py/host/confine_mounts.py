"""From a plan of mounts to operations, and the namespaces that they and other keys need.

A supervisor without CAP_SYS_ADMIN makes a user namespace for the process first, in which it is itself and nobody else;
a privileged one makes the others directly, and a user namespace, where that is asked for, after them. All mounts are
copies of what the machine has (``open_tree``), taken before anything is laid over it, moved to their place, and given
their flags with everything below them (``mount_setattr``, Linux 5.12). They go with the last process that sees them:
nothing is left when supervisor and keeper are killed.

Every operation on a mount needs the register of the namespace: where making that has failed, nothing is mounted.
Source: systemd src/core/namespace.c; mount_setattr(2), open_tree(2), pivot_root(2), user_namespaces(7).
"""

import base64
import contextlib
import os
import struct
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from supervisord_py.host.accounts import Account
from supervisord_py.host.belongings import OwnFolder
from supervisord_py.host.confine import Confinement
from supervisord_py.host.powers import SYS_ADMIN, Powers
from supervisord_py.model.mount_plan import Kind, Lay, MountPlan, Rule, plan_mounts
from supervisord_py.model.sandbox import NAMESPACES, Sandbox
from supervisord_py.model.sandbox_paths import interfaces_of, lays_of, needs_mounts, needs_namespace, rules_of

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_CLONE_TREE = 1 | os.O_CLOEXEC
_EMPTY_SOURCE = 0x4
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x2, 0x4, 0x8, 0x4000, 0x80000, 0x100000
_MOUNT_FLAGS = {
    "ro": 0x1, "nosuid": _MS_NOSUID, "nodev": _MS_NODEV, "noexec": _MS_NOEXEC, "sync": 0x10, "mand": 0x40,
    "dirsync": 0x80, "nosymfollow": 0x100, "noatime": 0x400, "nodiratime": 0x800, "relatime": 0x200000,
    "strictatime": 0x1000000, "lazytime": 0x2000000,
}  # fmt: skip
_NOT_FLAGS = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "symfollow": "nosymfollow",
    "atime": "noatime", "diratime": "nodiratime", "nomand": "mand", "norelatime": "relatime",
    "nostrictatime": "strictatime", "nolazytime": "lazytime",
}  # fmt: skip
"""Words among mount options that the kernel takes as flags, and those that take one back. Source: mount(8)."""
_MNT_DETACH = 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_NAMESPACE = "mount-namespace"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_FOLDERS = ("pts", "shm", "mqueue", "hugepages")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore", "ptmx": "pts/ptmx",
}  # fmt: skip


class Places(Struct, frozen=True):
    """``inaccessible`` is a folder that holds ``folder`` and ``file``, which nobody may use; ``folders`` are those of
    the unit for ``private-tmp``, by path; ``reached`` are paths that a process must reach wherever it is put."""

    inaccessible: str
    folders: dict[str, str] = {}
    reached: tuple[str, ...] = ()
    root: str | None = None
    """``root-directory``."""
    own: tuple[OwnFolder, ...] = ()
    """The unit's own folders: it may write into them, and those below ``private`` it alone sees."""
    beside: tuple[int, int] | None = None
    """The main process of the unit, by pid and start time [clock ticks]: a check of it is to see what it sees."""


def make_inaccessible(folder: Path) -> str:
    """Make the folder and the file that are laid over what is inaccessible; raises OSError."""
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / "folder").mkdir(mode=0, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(folder / "file", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    return str(folder)


def confine_namespaces(sandbox: Sandbox, account: Account, powers: Powers, places: Places, into: Confinement) -> bool:
    """Gather namespaces and mounts.

    Returns:
        Whether the process gets a user namespace.
    """
    if not needs_namespace(sandbox, has_root=places.root is not None):
        return False
    is_privileged = powers.has(SYS_ADMIN)
    builder = _Builder(into)
    shared = (NAMESPACES["net"] if sandbox.private_network else 0) | (NAMESPACES["ipc"] if sandbox.private_ipc else 0)
    if places.beside is not None and shared:
        builder.join(_first_key(sandbox), *places.beside, shared | (0 if is_privileged else NAMESPACES["user"]))
    else:
        if not is_privileged:
            builder.own_user_namespace(_first_key(sandbox))
        if sandbox.private_network and sandbox.network_namespace_path is None:
            builder.own_network()
        if sandbox.private_ipc:
            builder.call("namespace", "private-ipc", "unshare", NAMESPACES["ipc"])
    if sandbox.network_namespace_path is not None:
        builder.join_network(sandbox.network_namespace_path)
    if needs_mounts(sandbox) or places.root is not None:
        root = places.root or ""
        plan = _plan(sandbox, places, root)
        key = _mount_key(sandbox, plan)
        builder.mounts(key, plan, root, places.inaccessible)
    if is_privileged and sandbox.private_users:
        builder.user_namespace("private-users", _map(0, account.uid), _map(0, account.gid, *(account.groups or ())))
    return not is_privileged or sandbox.private_users


def _first_key(sandbox: Sandbox) -> str:
    if sandbox.private_users:
        return "private-users"
    for key in ("private_network", "private_ipc", "network_namespace_path"):
        if getattr(sandbox, key):
            return key.replace("_", "-")
    return _mount_key(sandbox, MountPlan(tuple(lays_of(sandbox, {}))))


def _mount_key(sandbox: Sandbox, plan: MountPlan) -> str:
    keys = [one.key for one in plan.lays] + [one.key for one in plan.shades] + [one.key for one in rules_of(sandbox)]
    return keys[0] if keys else "private-mounts"


def _map(*ids: int | None) -> str:
    return "".join(f"{each} {each} 1\n" for each in dict.fromkeys(each for each in ids if each is not None))


def _plan(sandbox: Sandbox, places: Places, root: str) -> MountPlan:
    """Plan with the paths as they are on this machine; what is not there and may be missing is left out."""
    lays = [replace(lay, path=_resolved(lay.path, root)) for lay in lays_of(sandbox, places.folders)]
    made = [lay.path for lay in lays if lay.kind in (Kind.TMPFS, Kind.FOLDER, Kind.BIND)]

    def counts(one: Lay | Rule) -> bool:
        if not one.may_miss:
            return True
        if isinstance(one, Lay) and one.kind is Kind.BIND:
            return os.path.lexists(one.source)
        inside = any(one.path != path and one.path.startswith(f"{path}/") for path in made)
        return inside or os.path.lexists(root + one.path)

    rules = [replace(rule, path=_resolved(rule.path, root)) for rule in rules_of(sandbox)]
    for each in places.own:
        rules.append(Rule(_resolved(each.path, root), each.key, read_only=False, may_miss=True))
        if each.private is not None:
            lays.append(Lay(each.private, Kind.TMPFS, each.key, options="mode=0755", read_only=True))
        if each.private is not None or root:
            lays.append(Lay(each.path, Kind.BIND, each.key, source=os.path.realpath(each.path), may_miss=True))
    reached = [
        Lay(os.path.realpath(path), Kind.BIND, "", source=os.path.realpath(path), may_miss=True)
        for path in places.reached
    ]
    if root:
        lays += [replace(lay, key="root-directory") for lay in reached]
        lays += interfaces_of(sandbox)
    return plan_mounts(filter(counts, lays), filter(counts, rules), reached)


def _resolved(path: str, root: str) -> str:
    """Follow the links of a path, within ``root``.

    One of another user that leads nowhere is left as it is: what is missing there would be made, and it is not for who
    may write a folder on the way to choose where.
    """
    parts, found, left, is_foreign = [part for part in path.split("/") if part], "", 40, False
    while parts:
        part = parts.pop(0)
        if part == "..":
            found = found.rpartition("/")[0]
            continue
        link = f"{root}{found}/{part}"
        try:
            target = os.readlink(link) if left else ""
            is_foreign |= target != "" and os.lstat(link).st_uid not in (0, os.geteuid())
        except OSError:  # no link, or none any more
            target = ""
        if target:
            left -= 1
            found = "" if target.startswith("/") else found
            parts = [each for each in target.split("/") if each not in ("", ".")] + parts
        else:
            found += f"/{part}"
    if is_foreign and not os.path.lexists(root + found):
        return path
    return found or "/"


def _mounts_in(folder: str) -> list[str]:
    """Return the places within a folder of this machine where something is mounted, and not within another of them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = {line.split()[4] for line in file}
    within = sorted(place for place in places if place.startswith(f"{folder}/") and "\\" not in place)
    return [place for place in within if not any(place.startswith(f"{other}/") for other in within)]


def _split_options(options: str, flags: int) -> tuple[int, str]:
    """Return the flags that mount options mean, beginning with ``flags``, and what is the file system's own."""
    own = []
    for word in options.split(","):
        if word in _MOUNT_FLAGS:
            flags |= _MOUNT_FLAGS[word]
        elif word in _NOT_FLAGS:
            flags &= ~_MOUNT_FLAGS[_NOT_FLAGS[word]]
        elif word:
            own.append(word)
    return flags, ",".join(own)


class _Builder:
    def __init__(self, into: Confinement) -> None:
        self._into = into
        self._number = 0

    def call(self, step: str, key: str, name: str, *args: Any, **given: Any) -> None:
        self._into.call(self._into.before, step, key, name, *args, **given)

    def own_user_namespace(self, key: str) -> None:
        """One in which the process is who it is, and has every capability until exec."""
        self.user_namespace(key, _map(os.geteuid()), _map(os.getegid()), deny_setgroups=True)

    def user_namespace(self, key: str, uids: str, gids: str, **given: Any) -> None:
        self._into.add(self._into.before, "namespace", key, "user-namespace", uids=uids, gids=gids, **given)

    def join(self, key: str, pid: int, start: int, flags: int) -> None:
        """Enter namespaces of another process."""
        self._into.add(self._into.before, "namespace", key, "join", pid=pid, start=start, flags=flags)

    def own_network(self) -> None:
        key, register = "private-network", "loopback"
        self.call("network", key, "unshare", NAMESPACES["net"], **{"as": "network"})
        self.call("network", key, "socket", 2, 2 | os.O_CLOEXEC, 0, needs="network", **{"as": register})
        request = base64.b64encode(struct.pack("=16sH22x", b"lo", _IFF_UP)).decode()
        self.call("network", key, "ioctl", {"fd": register}, _SIOCSIFFLAGS, {"bytes": request})

    def join_network(self, path: str) -> None:
        key = "network-namespace-path"
        self._into.add(
            self._into.before, "network", key, "open", path=path, flags=os.O_RDONLY, **{"as": "network-namespace"}
        )
        self.call("network", key, "setns", {"fd": "network-namespace"}, NAMESPACES["net"])

    def mounts(self, key: str, plan: MountPlan, root: str, inaccessible: str) -> None:
        """Make a mount namespace and all that is in it; what comes to the machine later is seen in it too."""
        self.call("namespace", key, "unshare", NAMESPACES["mnt"], **{"as": _NAMESPACE})
        self._mount(key, None, "/", None, _MS_REC | _MS_SLAVE, None)
        sources = self._sources(plan, root, inaccessible)
        if root:
            self._clone("root-directory", root, register="root")
            self._move("root-directory", "root", root)
        for lay in plan.lays:
            self._lay(lay, plan, root, sources)
        shades = [shade for shade in plan.shades if root or shade.path != "/"]
        there = dict(sources)
        """The register of the mount at each path: empty where there is none after all."""
        for shade in shades:
            if not shade.is_laid and not shade.restores:
                register = there[shade.path] = self._clone(shade.key, root + shade.path, may_miss=shade.may_miss)
                self._move(shade.key, register, root + shade.path)
        copies = {
            shade.path: self._clone(shade.key, root + shade.path, may_miss=shade.may_miss)
            for shade in shades
            if shade.restores
        }
        for shade in plan.shades:
            if shade.path in copies:
                self._move(shade.key, copies[shade.path], root + shade.path)
            flags = (_RDONLY if shade.read_only else 0) | (_NOEXEC if shade.no_exec else 0)
            if flags:
                self._set(shade.key, root + shade.path, flags, needs=(there | copies).get(shade.path, _NAMESPACE))
        if root:
            self._enter(root)
        # A namespace that the process makes itself sees what it mounts later, as it would on the machine.
        self._mount(key, None, "/", None, _MS_REC | _MS_SHARED, None)

    def _mount(self, key: str, *args: Any) -> None:
        self.call("namespace", key, "mount", *args, needs=_NAMESPACE)

    def _register(self) -> str:
        self._number += 1
        return f"mount-{self._number}"

    def _clone(
        self, key: str, path: str, *, register: str | None = None, may_miss: bool = False, recursive: bool = True
    ) -> str:  # fmt: skip
        register = register or self._register()
        flags = _CLONE_TREE | (_AT_RECURSIVE if recursive else 0)
        given: dict[str, Any] = {"needs": _NAMESPACE, "as": register}
        if may_miss:
            given["if_missing"] = True
        self.call("namespace", key, "syscall", _OPEN_TREE, _AT_FDCWD, path, flags, **given)
        return register

    def _move(self, key: str, register: str, path: str, *, may_miss: bool = False) -> None:
        source, given = {"fd": register}, {"if_missing": True} if may_miss else {}
        self.call("namespace", key, "syscall", _MOVE_MOUNT, source, "", _AT_FDCWD, path, _EMPTY_SOURCE, **given)

    def _set(
        self, key: str, path: str, flags: int, *, needs: str = _NAMESPACE, register: str | None = None
    ) -> None:  # fmt: skip
        """Set flags of a mount and all below it."""
        attributes = base64.b64encode(struct.pack("=4Q", flags, 0, 0, 0)).decode()
        self.call(
            "namespace", key, "syscall", _MOUNT_SETATTR, _AT_FDCWD if register is None else {"fd": register}, path,
            _AT_RECURSIVE | (_AT_EMPTY_PATH if register else 0), {"bytes": attributes}, 32, needs=needs,
        )  # fmt: skip

    def _sources(self, plan: MountPlan, root: str, inaccessible: str) -> dict[str, str]:
        """Take what is to be laid before anything is: the machine's own view of it."""
        sources: dict[str, str] = {}
        for lay in plan.lays:
            match lay.kind:
                case Kind.BIND | Kind.FOLDER:
                    sources[lay.path] = self._clone(lay.key, lay.source, may_miss=lay.may_miss, recursive=lay.recursive)
                case Kind.INACCESSIBLE:
                    covered = root + lay.path
                    what = "file" if os.path.exists(covered) and not os.path.isdir(covered) else "folder"
                    sources[lay.path] = self._clone(lay.key, f"{inaccessible}/{what}")
                case Kind.SYSFS:
                    for place in _mounts_in(lay.path):
                        sources[place] = self._clone(lay.key, place, may_miss=True)
                case Kind.DEVICES:
                    for name in (*_DEVICES, *_DEVICE_FOLDERS, "log"):
                        sources[f"/dev/{name}"] = self._clone(lay.key, f"/dev/{name}", may_miss=True)
                case _:
                    pass
        return sources

    def _lay(self, lay: Lay, plan: MountPlan, root: str, sources: dict[str, str]) -> None:
        path = root + lay.path
        if lay.kind in (Kind.BIND, Kind.FOLDER, Kind.TMPFS, Kind.PROC, Kind.DEVICES):
            self._make_place(lay, plan, root)
        match lay.kind:
            case Kind.BIND | Kind.FOLDER:
                self._move(lay.key, sources[lay.path], path)
            case Kind.INACCESSIBLE:
                register = sources[lay.path]
                self._set(lay.key, "", _RDONLY | _NOSUID | _NODEV | _NOEXEC, register=register)
                # What the machine has may be missing in what is laid above it: a /proc of processes only.
                self._move(lay.key, register, path, may_miss=lay.may_miss)
            case Kind.TMPFS:
                flags, options = _split_options(lay.options, _MS_NODEV | _MS_NOSUID)
                self._mount(lay.key, "tmpfs", path, "tmpfs", flags, options or None)
            case Kind.SYSFS:
                self._sysfs(lay, path, sources)
            case Kind.PROC:
                flags = _MS_NODEV | _MS_NOSUID | _MS_NOEXEC
                self._mount(lay.key, "proc", path, "proc", flags, lay.options)
            case Kind.DEVICES:
                self._devices(lay, root, sources)

    def _sysfs(self, lay: Lay, path: str, sources: dict[str, str]) -> None:
        """As in systemd the machine's own is seen where a new one cannot be had: that of a user namespace cannot where
        something is hidden in the machine's."""
        flags = _MS_NODEV | _MS_NOSUID | _MS_NOEXEC
        given: dict[str, Any] = {"needs": _NAMESPACE, "as": "sysfs", "may_fail": True}
        self._into.call(self._into.before, "namespace", lay.key, "mount", "sysfs", path, "sysfs", flags, None, **given)
        for place in _mounts_in(lay.path):
            register = sources[place]
            self._into.call(
                self._into.before, "namespace", lay.key, "syscall", _MOVE_MOUNT, {"fd": register}, "", _AT_FDCWD,
                f"{path}{place.removeprefix(lay.path)}", _EMPTY_SOURCE, needs="sysfs", may_fail=True,
            )  # fmt: skip

    def _devices(self, lay: Lay, root: str, sources: dict[str, str]) -> None:
        folder = root + lay.path
        self._mount(lay.key, "tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=0755,size=4m,nr_inodes=64k")
        for name in (*_DEVICES, *_DEVICE_FOLDERS, "log"):
            register, path = sources[f"/dev/{name}"], f"{folder}/{name}"
            do = "mkdir" if name in _DEVICE_FOLDERS else "touch"
            if os.path.exists(f"/dev/{name}"):
                self._into.add(self._into.before, "namespace", lay.key, do, path=path, mode=0o755, needs=register)
                self._move(lay.key, register, path)
        for name, target in _DEVICE_LINKS.items():
            self.call("namespace", lay.key, "symlink", target, f"{folder}/{name}", needs=_NAMESPACE)

    def _make_place(self, lay: Lay, plan: MountPlan, root: str) -> None:
        """Make what is mounted over where it is not there, or where something else is laid above it."""
        hidden = any(
            other.path != lay.path and (other.path == "/" or lay.path.startswith(f"{other.path}/"))
            for other in plan.lays
        )
        if os.path.exists(root + lay.path) and not hidden:
            return
        is_file = lay.kind is Kind.BIND and os.path.exists(lay.source) and not os.path.isdir(lay.source)
        parts = lay.path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            place = "/" + "/".join(parts[:count])
            if os.path.exists(root + place) and not hidden:
                continue
            do = "touch" if is_file and count == len(parts) else "mkdir"
            self._into.add(self._into.before, "namespace", lay.key, do, path=root + place, mode=0o755, needs=_NAMESPACE)

    def _enter(self, root: str) -> None:
        """Make ``root`` the root, and let go of the machine's."""
        key = "root-directory"
        self.call("chroot", key, "chdir", root, needs="root")
        self.call("chroot", key, "syscall", _PIVOT_ROOT[os.uname().machine], ".", ".", needs="root")
        self.call("chroot", key, "umount2", ".", _MNT_DETACH, needs="root")
        self.call("chroot", key, "chdir", "/", needs="root")

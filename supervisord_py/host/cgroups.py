"""One control group a unit, where we may make them: the strongest answer to "whose process is this?".

Theory of operation
-------------------
Groups are made below our own group, in the first hierarchy that allows it: cgroup v2 (controllers or not: membership
alone is what we need), else the v1 hierarchy ``name=systemd``, which has no controllers. We may make them where
systemd says so (the group carries the attribute ``user.delegate`` or ``trusted.delegate``), or where no systemd runs
at all; a group that systemd owns and did not delegate is left alone even by root, because systemd removes and moves
what it finds there. Where nothing allows it there are no groups, and the keeper's tag alone tells whose a process is.

    OWN_GROUP/supervisord-py.NAME-INSTANCE/UNIT.unit        INSTANCE is the keeper's number, new for each keeper

cgroup v2 passes controllers on only from a group without processes of its own. Where keeper and manager are all that is
in theirs they go into a leaf of it, ``OWN_GROUP/supervisord-py.keeper``, beside the units' (``take_leaf``); a systemd
that knows DelegateSubgroup= has done so already.

The base folder is locked (flock) as long as a manager of the instance lives, and names the keeper in an attribute.
Folders of the same NAME that nobody locks, and whose keeper is gone, are leftovers of dead instances: empty ones are
removed, others are reported with the processes in them. The suffix keeps a unit called ``cgroup.procs`` or ``tasks``
apart from the kernel's files.

What to do is decided by functions of texts and answers (``choose``); ``UnitGroups`` does it.
"""

import contextlib
import errno
import fcntl
import os
import subprocess
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from supervisord_py.keeper.inventory import pid_namespace, read_stat

PREFIX = "supervisord-py."
SUFFIX = ".unit"
KEEPER_LEAF = "supervisor"
"""Keeper and manager sit in this group under a delegating systemd: units are its siblings."""
OWN_LEAF = f"{PREFIX}keeper"
"""The same, where we have made it ourselves."""

NO_CONTROLLERS = "no controllers for units"

_KEEPER = "user.supervisord-py.keeper"
"""The attribute of a base folder that says whose it is: pid, start and namespace of the keeper."""
ASK_S = 10.0
DELEGATE_ATTRIBUTES = ("user.delegate", "trusted.delegate")


class Hierarchy(Enum):
    UNIFIED = "cgroup2"
    NAMED = "name=systemd"


class Mount(NamedTuple):
    """A mounted hierarchy: ``root`` is the part of it that is seen at ``point``."""

    hierarchy: Hierarchy
    root: str
    point: str
    is_writable: bool


class Place(NamedTuple):
    """Where groups are made: below ``folder``, in which we are ourselves, unless ``leaf`` says where."""

    hierarchy: Hierarchy
    folder: str
    leaf: str | None = None


class Finding(NamedTuple):
    """The place, or None, and for each hierarchy that was passed over the reason."""

    place: Place | None
    reasons: tuple[str, ...]


class Leftover(NamedTuple):
    """A group of a dead instance in which processes still live."""

    folder: str
    unit: str
    pids: tuple[int, ...]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Find the hierarchies we can use in the text of ``/proc/self/mountinfo``; the unified one first."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        if rest[0] == "cgroup2":
            hierarchy = Hierarchy.UNIFIED
        elif rest[0] == "cgroup" and Hierarchy.NAMED.value in rest[2].split(","):
            hierarchy = Hierarchy.NAMED
        else:
            continue
        is_writable = "rw" in fields[5].split(",") and "rw" in rest[2].split(",")
        mounts.append(Mount(hierarchy, unescape(fields[3]), unescape(fields[4]), is_writable))
    return sorted(mounts, key=lambda mount: mount.hierarchy is Hierarchy.NAMED)


def unescape(text: str) -> str:
    for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, character)
    return text


def parse_own_groups(proc_cgroup: str) -> dict[Hierarchy, str]:
    """Read ``/proc/self/cgroup``: our path in each hierarchy that matters."""
    paths = {}
    for line in proc_cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and controllers == "":
            paths[Hierarchy.UNIFIED] = path
        elif controllers == Hierarchy.NAMED.value:
            paths[Hierarchy.NAMED] = path
    return paths


def own_folder(mount: Mount, path: str) -> str | None:
    """Return the folder of the group ``path``; None when it lies outside of what is mounted."""
    if ".." in PurePosixPath(path).parts:
        return None
    try:
        relative = PurePosixPath(path).relative_to(mount.root)
    except ValueError:
        return None
    return str(PurePosixPath(mount.point) / relative)


def choose(
    proc_cgroup: str,
    mountinfo: str,
    *,
    has_systemd: bool,
    is_delegated: Callable[[str], bool],
    refusal: Callable[[str], str | None],
) -> Finding:
    """Decide where groups are made.

    Args:
        proc_cgroup: Text of ``/proc/self/cgroup``.
        mountinfo: Text of ``/proc/self/mountinfo``.
        has_systemd: Whether systemd manages this machine.
        is_delegated: Whether a group carries systemd's mark of delegation.
        refusal: Why groups cannot be made in a folder, None when they can; tried in earnest.
    """
    own = parse_own_groups(proc_cgroup)
    mounts = parse_mounts(mountinfo)
    reasons = [
        f"{hierarchy.value}: not mounted"
        for hierarchy in Hierarchy
        if not any(mount.hierarchy is hierarchy for mount in mounts)
    ]
    for mount in mounts:
        name = f"{mount.hierarchy.value} at {mount.point}"
        folder = own_folder(mount, own[mount.hierarchy]) if mount.hierarchy in own else None
        if folder is None:
            reasons.append(f"{name}: our own group is not in it")
            continue
        if not mount.is_writable:
            reasons.append(f"{name}: mounted read-only")
            continue
        leaf, above, last = None, str(PurePosixPath(folder).parent), PurePosixPath(folder).name
        if last == OWN_LEAF:
            folder, leaf = above, folder
        if has_systemd:
            if not is_delegated(folder) and last == KEEPER_LEAF and is_delegated(above):
                folder, leaf = above, folder
            if not is_delegated(folder):
                reasons.append(
                    f"{name}: systemd did not delegate {folder}; set Delegate=yes in the service, "
                    "or start with systemd-run --user --scope -p Delegate=yes"
                )
                continue
        why_not = refusal(folder)
        if why_not is not None:
            reasons.append(f"{name}: {why_not}")
            continue
        return Finding(Place(mount.hierarchy, folder, leaf), tuple(reasons))
    return Finding(None, tuple(reasons))


def find_place() -> Finding:
    """Look at this machine; makes and removes an empty group to be sure."""
    try:
        proc_cgroup = Path("/proc/self/cgroup").read_text()
        mountinfo = Path("/proc/self/mountinfo").read_text()
    except OSError as error:
        return Finding(None, (f"cannot look for cgroups: {error}",))
    return choose(
        proc_cgroup,
        mountinfo,
        has_systemd=os.path.isdir("/run/systemd/system"),
        is_delegated=is_delegated,
        refusal=refusal,
    )


def take_leaf(finding: Finding, pids: frozenset[int], wanted: Collection[str]) -> Finding:
    """Go into a leaf of our own group where only that lets units have controllers, and nobody else is in it.

    Args:
        finding: Where groups may be made.
        pids: Keeper and manager; nobody else is moved.
        wanted: The controllers that units could use.
    """
    place = finding.place
    if place is None or place.leaf is not None or place.hierarchy is not Hierarchy.UNIFIED:
        return finding
    # Only the root of the hierarchy has no type, and may have processes beside groups with controllers.
    if not os.path.exists(f"{place.folder}/cgroup.type"):
        return finding
    try:
        if not set(wanted).intersection(Path(place.folder, "cgroup.controllers").read_text().split()):
            return finding
        if others := sorted({int(pid) for pid in Path(place.folder, "cgroup.procs").read_text().split()} - pids):
            reason = f"{NO_CONTROLLERS}: process {others[0]} is in {place.folder} too"
            return Finding(place, (*finding.reasons, reason))
        leaf = f"{place.folder}/{OWN_LEAF}"
        os.makedirs(leaf, exist_ok=True)
        for pid in sorted(pids):
            Path(leaf, "cgroup.procs").write_text(str(pid))
    except OSError as error:
        reason = f"{NO_CONTROLLERS}: cannot go into {place.folder}/{OWN_LEAF}: {error.strerror}"
        return Finding(place, (*finding.reasons, reason))
    return Finding(Place(place.hierarchy, place.folder, leaf), finding.reasons)


def is_delegated(folder: str) -> bool:
    """Whether systemd marked the group as somebody else's to manage."""
    for attribute in DELEGATE_ATTRIBUTES:
        with contextlib.suppress(OSError):  # no such attribute, or not for our eyes
            if os.getxattr(folder, attribute) == b"1":
                return True
    return _user_s_systemd_delegates(folder)


def _user_s_systemd_delegates(folder: str) -> bool:
    """Ask a user's systemd, which before version 254 marks nothing, whether the unit of a group may manage it."""
    name, uid = PurePosixPath(folder).name, os.geteuid()
    if uid == 0 or f"/user@{uid}.service/" not in folder or not name.endswith((".service", ".scope")):
        return False
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{uid}", **os.environ}
    command = ("systemctl", "--user", "show", "--property=Delegate", "--value", "--", name)
    try:
        asked = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.stdout.strip() == b"yes"


def refusal(folder: str) -> str | None:
    """Try whether groups can be made in ``folder`` and processes be moved out of it; return what speaks against it."""
    # The kernel wants write access to the procs file of the common ancestor to move a process.
    if not os.access(f"{folder}/cgroup.procs", os.W_OK):
        return f"no right to move processes in {folder}"
    probe = f"{folder}/{PREFIX}probe-{os.getpid()}"
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError as error:
        return f"cannot make groups in {folder}: {error.strerror}"
    return None


def base_name(name: str, instance: int) -> str:
    return f"{PREFIX}{name}-{instance:05x}"


def is_base_of(folder: str, name: str) -> bool:
    """Whether ``folder`` (a name) is the base of some instance called ``name``."""
    start = f"{PREFIX}{name}-"
    number = folder.removeprefix(start)
    return folder.startswith(start) and number != "" and all(digit in "0123456789abcdef" for digit in number)


class UnitGroups:
    """The groups of one instance's units; every method is a few system calls, none blocks.

    Args:
        finding: Where groups may be made, from ``find_place``.
        name: The instance's name.
        instance: The keeper's number (20 bits), new for each keeper.
        keeper: The keeper's pid.
    """

    def __init__(self, finding: Finding, name: str, instance: int, keeper: int = 0) -> None:
        self._finding = finding
        self._name = name
        self._instance = instance
        self._keeper = keeper
        self._others: list[UnitGroups] = []
        self._lock: int | None = None
        self._problem: str | None = None
        place = finding.place
        self.base: str | None = None if place is None else f"{place.folder}/{base_name(name, instance)}"
        self.home: str | None = None if place is None else place.leaf or place.folder
        """The group of the keeper and ourselves."""

    def beside(self, folder: str) -> "UnitGroups":
        """Return groups of the same units in another hierarchy, below ``folder``; swept and closed with these."""
        other = UnitGroups(Finding(Place(Hierarchy.NAMED, folder), ()), self._name, self._instance, self._keeper)
        self._others.append(other)
        return other

    def folder(self, unit: str) -> str | None:
        """Return the folder of the unit's group, made or not; None where there are no groups."""
        return None if self.base is None else f"{self.base}/{unit}{SUFFIX}"

    def create(self, unit: str) -> tuple[str, ...]:
        """Make the unit's group; returns the folders that a process of it joins: none where it cannot be made.

        That is not an error of the unit: the keeper's tag still tells whose its processes are.
        """
        folder = self.folder(unit)
        if folder is None or self.base is None:
            return ()
        try:
            try:
                os.mkdir(folder)
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.base)
                os.mkdir(folder)
        except FileExistsError:
            pass
        except OSError as error:
            self._problem = f"cannot make the group {folder}: {error.strerror}"
            return ()
        if self._lock is None:
            # A manager that took over finds the base folder made, and locked until the one before is gone.
            self._lock = _lock(self.base)
            with contextlib.suppress(OSError):  # of an older kernel: then the lock alone keeps others off
                os.setxattr(self.base, _KEEPER, _describe_keeper(self._keeper).encode())
        self._problem = None
        return (folder,)

    @property
    def is_unified(self) -> bool:
        """Whether these are groups of cgroup v2."""
        place = self._finding.place
        return place is not None and place.hierarchy is Hierarchy.UNIFIED

    def controllers(self, wanted: Collection[str]) -> set[str]:
        """Return which controllers the units' groups can have: those of cgroup v2 that may be passed on to them."""
        place = self._finding.place
        if place is None or place.hierarchy is not Hierarchy.UNIFIED:
            return set()
        with contextlib.suppress(OSError):
            offered = set(Path(place.folder, "cgroup.controllers").read_text().split()).intersection(wanted)
            passed = set(Path(place.folder, "cgroup.subtree_control").read_text().split())
            return {each for each in offered if each in passed or _pass_on(place.folder, each)}
        return set()

    def why_not(self, controller: str) -> str:
        """Say why units cannot have a controller that ``controllers`` does not name."""
        place = self._finding.place
        if place is not None and place.hierarchy is Hierarchy.UNIFIED:
            with contextlib.suppress(OSError):
                if controller in Path(place.folder, "cgroup.controllers").read_text().split():
                    told = [reason for reason in self._finding.reasons if reason.startswith(NO_CONTROLLERS)]
                    return told[0] if told else f"{place.folder} cannot pass the controller {controller} on"
        if place is None and self._finding.reasons:
            return f"there are no control groups ({'; '.join(self._finding.reasons)})"
        return f"no control group has the controller {controller}"

    def pass_on(self, controller: str) -> None:
        """Let the units' groups have a controller; until then they are without it, and cheaper."""
        if self.base is not None:
            with contextlib.suppress(FileExistsError, OSError):
                os.mkdir(self.base)
            _pass_on(self.base, controller)

    def remove(self, unit: str) -> bool:
        """Remove the unit's group and what its processes made below; False when one of them still lives there: try
        again later."""
        folder = self.folder(unit)
        return folder is None or _remove_tree(folder)

    def members(self, unit: str) -> list[int]:
        """Return the processes in the unit's group and below, ascending."""
        folder = self.folder(unit)
        return [] if folder is None else sorted(_members(folder))

    def sweep(self) -> list[Leftover]:
        """Remove what dead instances of this name left, where it is empty; return what is not."""
        for other in self._others:
            other.sweep()
        if self.base is None:
            return []
        parent, own = os.path.split(self.base)
        leftovers = []
        for name in _folders(parent):
            if name == own or not is_base_of(name, self._name):
                continue
            base = f"{parent}/{name}"
            lock = None if _is_kept(base) else _lock(base)
            if lock is None:
                continue
            try:
                for unit_folder in _folders(base):
                    folder = f"{base}/{unit_folder}"
                    if not _remove_tree(folder):
                        pids = tuple(sorted(_members(folder)))
                        leftovers.append(Leftover(folder, unit_folder.removesuffix(SUFFIX), pids))
                _remove_tree(base)
            finally:
                os.close(lock)
        return leftovers

    def sweep_own(self) -> None:
        """Before anything is started: remove what the killed keeper that we go on for has left empty."""
        for other in self._others:
            other.sweep_own()
        if self.base is not None:
            for name in _folders(self.base):
                if name.endswith(SUFFIX):
                    _remove_tree(f"{self.base}/{name}")

    def close(self, *, remove: bool) -> None:
        """Give up the lock; with ``remove`` (the instance ends) also the base folder, when nothing lives in it."""
        for other in self._others:
            other.close(remove=remove)
        if remove and self.base is not None:
            _remove_tree(self.base)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def describe(self) -> str:
        """Return in one line what is used, and why nothing better."""
        place = self._finding.place
        reasons = "; ".join(self._finding.reasons)
        if place is None:
            return f"no control groups ({reasons}): processes are told apart by their tag"
        text = f"control groups in {self.base} ({place.hierarchy.value})"
        if place.hierarchy is Hierarchy.UNIFIED:
            with contextlib.suppress(OSError):
                controllers = Path(place.folder, "cgroup.controllers").read_text().split()
                text += f", controllers: {' '.join(controllers) or 'none'}"
        elif reasons:
            text += f", not the unified ones ({reasons})"
        return f"{text}; {self._problem}" if self._problem else text


def _pass_on(folder: str, controller: str) -> bool:
    """Let the groups below have a controller; False where the kernel refuses it: there are processes in the group."""
    try:
        Path(folder, "cgroup.subtree_control").write_text(f"+{controller}")
    except OSError:
        return False
    return True


def _describe_keeper(pid: int) -> str:
    stat = read_stat(pid)
    return "" if stat is None else f"{pid} {stat.start} {pid_namespace()}"


def _is_kept(base: str) -> bool:
    """Say whether the keeper lives that these groups are for: between two of its managers nobody has the lock."""
    try:
        text = os.getxattr(base, _KEEPER).decode()
        return text != "" and text == _describe_keeper(int(text.partition(" ")[0]))
    except (OSError, ValueError):
        return False


def _lock(folder: str) -> int | None:
    """Lock a folder for as long as the descriptor is open; None when somebody else has it, or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _folders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _members(folder: str) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, OSError):  # ENODEV: the group is being removed
        for line in Path(folder, "cgroup.procs").read_text().split():
            yield int(line)
    for name in _folders(folder):
        yield from _members(f"{folder}/{name}")


def _remove_tree(folder: str) -> bool:
    """Remove a group from the leaves up; False when a process lives in one of them, or it is not ours."""
    done = True
    for name in _folders(folder):
        done = _remove_tree(f"{folder}/{name}") and done
    if not done:
        return False
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY, errno.EACCES, errno.EPERM):
            return False
        raise
    return True

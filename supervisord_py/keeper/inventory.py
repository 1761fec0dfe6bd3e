"""Whose is it: the units that have or had processes, the keeper's direct children, and the trees below them.

A child keeps its pid until we reap it, so an attribution is made once. Deeper processes are told by pid and start time.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from supervisord_py.keeper.child import SpawnError
from supervisord_py.keeper.protocol import SPAWN_IDS_KEPT, TAG_BASE, TAG_INSTANCE_SHIFT

ME = os.getpid()
HAS_CHILDREN = os.path.exists(f"/proc/{ME}/task/{ME}/children")
"""False on kernels without CONFIG_PROC_CHILDREN: then each walk is one pass over /proc."""
TAGS_KEPT = 4096
"""Of a unit that is never empty: what comes of an older command of it is known by the invocation or the cgroup."""
CANNOT_LOOK = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Stat(NamedTuple):
    state: str
    ppid: int
    start: int


class Whose(NamedTuple):
    """Whose a process is. ``descends``: from us. ``claimed``: it is an orphan, and that it is the unit's is what it
    carries itself: the tag, and the environment."""

    unit: "Unit | None"
    stray: bool
    descends: bool
    claimed: bool = False


class Spawn:
    """A process that was asked for. ``main_pid`` is whom it means now: itself, or what ``MAINPID=`` named."""

    def __init__(self, spawn_id: int, unit: "Unit", role: str, pid: int, started_ns: int) -> None:
        self.id, self.unit, self.role, self.started_ns = spawn_id, unit, role, started_ns
        self.pid = self.main_pid = pid
        self.report: int | None = None
        """The pipe that tells of a failed step, until exec."""
        self.failure: Any = None
        """What it told: then the process is no life of the unit (a ``SpawnError``)."""
        self.cgroups: list[str] = []
        self.tagged = self.is_told = False
        self.invocation: str | None = None
        self.main_start = 0
        """When the process that ``main_pid`` names began, should it not be the one that we made."""


class Unit:
    def __init__(self, name: str) -> None:
        self.name = name
        self.output: tuple[int, int] | None = None
        """Our reading end, and the end for reading and writing that its processes get."""
        self.notify: Any = None
        """Its socket and the bounds of its queue (``notify.Mailbox``)."""
        self.uid = os.geteuid()
        self.cgroups: dict[str, bool] = {}
        """Folders its processes were put into; True where /proc confirmed it and the group is no other unit's."""
        self.main: Spawn | None = None
        self.starting: list[Spawn] = []
        """Forked, and not yet known to have reached exec."""
        self.children = set[int]()
        """Direct children of the keeper, not yet reaped: spawns and orphans."""
        self.followed: dict[int, int] = {}
        """pidfds of ``MAINPID`` processes that are not our children."""
        self.killing: int | None = None
        self.signalled = set[tuple[int, int]]()
        self.told_empty = True
        self.is_adopted = False
        """A dead keeper made processes of it: they are below nobody of ours, and are looked for by tag."""
        self.tags, self.invocations, self.groups = deque[int](), deque[str](), list[bytes]()
        """By what its processes are known, oldest first."""

    @property
    def is_empty(self) -> bool:
        return not self.children and not self.followed


def read(path: str) -> bytes:
    """Return what a file of /proc says, nothing when the process is gone or not ours to read.

    Raises OSError when nobody can read it now: that says nothing about the process.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall() or b""
    except OSError as error:
        if error.errno in CANNOT_LOOK:
            raise
        return b""


def read_stat(pid: int) -> Stat | None:
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def pid_namespace() -> str:
    """Return where our pids mean something: the number of the namespace, which is given again, and when its process 1
    was started."""
    try:
        number = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    first = read_stat(1)
    return f"{number} {first.start if first is not None else 0}"


def children_lookup() -> Callable[[int], list[int]]:
    """Return what lists the children of a pid: the kernel, or else a table made of one pass over /proc."""
    if HAS_CHILDREN:
        return _read_children
    table: dict[int, list[int]] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if (stat := read_stat(pid)) is not None:
            table.setdefault(stat.ppid, []).append(pid)
    return lambda pid: table.get(pid, [])


def _read_children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError as error:
        if error.errno in CANNOT_LOOK:
            raise
        return []
    return [int(child) for task in tasks for child in read(f"/proc/{pid}/task/{task}/children").split()]


def walk(roots: Collection[int]) -> dict[int, int]:
    """Return the start times of ``roots`` and all their descendants by pid, each root before what is below it and all
    in their order. What forks meanwhile may be missing."""
    children, found, todo = children_lookup(), dict[int, int](), [(pid, 0) for pid in roots][::-1]
    while todo:
        pid, parent = todo.pop()
        stat = read_stat(pid)
        if stat is None or pid in found or (parent and stat.ppid != parent):
            continue
        found[pid] = stat.start
        below = children(pid)
        if (again := read_stat(pid)) is not None and again.start == stat.start:
            todo += [(child, pid) for child in below]
    return found


class Inventory:
    def __init__(self, instance: int, put: Callable[..., bool]) -> None:
        self.units: dict[str, Unit] = {}
        self.strays = Unit("")
        """Not a unit: the children that belong to none."""
        self.untold = set[int]()
        """Strays that had ended when process 1 met them: that is its trade, and no news."""
        self.children: dict[int, Unit] = {}
        """Every direct child that is not a manager."""
        self.touched: dict[str, Unit] = {}
        """Units that lost or gained a child and have to be looked at, in that order."""
        self.spawns: dict[int, Spawn] = {}
        """By pid: of the process made, and of the one that ``MAINPID`` named."""
        self.managers = set[int]()
        self.is_stale = True
        """A turn has begun since the last look for orphans."""
        self._instance, self._put = instance, put
        self._tags: dict[int, Unit] = {}
        self._invocations: dict[str, Unit] = {}
        self._groups: dict[bytes, Unit] = {}
        self._own_groups = set(read("/proc/self/cgroup").splitlines())
        self._ids, self._ids_in_order = set[int](), deque[int]()

    def pack(self) -> dict[str, Any]:
        """Return everything for the next image of this process; descriptors stay what they are."""
        spawns = {id(spawn): spawn for spawn in self.spawns.values()}
        return {
            "units": [_pack_unit(unit) for unit in self.units.values()], "strays": sorted(self.strays.children),
            "spawns": [_pack_spawn(spawn) for spawn in spawns.values()],
            "pids": [[pid, spawn.id] for pid, spawn in self.spawns.items()],
            "touched": [name for name in self.touched if not name or name in self.units],
            "ids": list(self._ids_in_order),
        }  # fmt: skip

    def unpack(self, packed: dict[str, Any]) -> None:
        """Take over what the image before packed; mailboxes are the notifier's to open, pidfds the follower's."""
        for given in packed["units"]:
            unit = self.units[given["name"]] = _unpack_unit(given)
            self.children |= dict.fromkeys(unit.children, unit)
            self._tags |= dict.fromkeys(unit.tags, unit)
            self._invocations |= dict.fromkeys(unit.invocations, unit)
            self._groups |= dict.fromkeys(unit.groups, unit)
        self.strays.children = set(packed["strays"])
        self.children |= dict.fromkeys(packed["strays"], self.strays)
        spawns = {spawn.id: spawn for spawn in (_unpack_spawn(given, self.units) for given in packed["spawns"])}
        self.spawns = {pid: spawns[spawn_id] for pid, spawn_id in packed["pids"]}
        for given in packed["units"]:
            self.units[given["name"]].main = spawns.get(given["main"])
        for name in packed["touched"]:
            self.touched[name] = self.units.get(name) or self.strays
        self._ids_in_order = deque(packed["ids"])
        self._ids = set(packed["ids"])

    def has_seen(self, spawn_id: int) -> bool:
        """Say whether this id was asked for before."""
        return spawn_id in self._ids or (len(self._ids) >= SPAWN_IDS_KEPT and spawn_id < self._ids_in_order[0])

    def is_known(self, spawn_id: int) -> bool:
        """Say whether this id was asked for before, and remember it."""
        if self.has_seen(spawn_id):
            return True
        self._ids.add(spawn_id)
        self._ids_in_order.append(spawn_id)
        if len(self._ids) > SPAWN_IDS_KEPT:
            self._ids.discard(self._ids_in_order.popleft())
        return False

    @property
    def newest_id(self) -> int:
        return self._ids_in_order[-1] if self._ids_in_order else 0

    def add(self, spawn: Spawn, invocation: str | None) -> None:
        spawn.invocation = invocation
        self.spawns[spawn.pid] = spawn
        unit = self.children[spawn.pid] = self._tags[spawn.id] = spawn.unit
        unit.children.add(spawn.pid)
        unit.tags.append(spawn.id)
        if invocation and self._invocations.get(invocation) is not unit:
            self._invocations[invocation] = unit
            unit.invocations.append(invocation)
        if len(unit.tags) > TAGS_KEPT:
            if unit.main is not None and unit.main.id == unit.tags[0]:
                unit.tags.rotate(-1)
            self._tags.pop(unit.tags.popleft(), None)

    def learn_groups(self, spawn: Spawn) -> None:
        """Remember what /proc calls the cgroups that a new process has put itself into."""
        names = {os.path.basename(folder.rstrip("/")).encode(): folder for folder in spawn.cgroups}
        for line in set(read(f"/proc/{spawn.pid}/cgroup").splitlines()) - self._own_groups:
            folder = names.get(line.rpartition(b"/")[2])
            if folder is not None and self._groups.setdefault(line, spawn.unit) is spawn.unit:
                spawn.unit.cgroups[folder] = True
                spawn.unit.groups.append(line)

    def forget(self, unit: Unit) -> None:
        """Drop a unit that has no process left."""
        del self.units[unit.name]
        self.forget_lives(unit)
        for line in unit.groups:
            self._groups.pop(line, None)

    def forget_lives(self, unit: Unit) -> None:
        """No process is left that could carry a tag or an invocation of this unit; others' are not looked at."""
        for tag in unit.tags:
            self._tags.pop(tag, None)
        for invocation in unit.invocations:
            self._invocations.pop(invocation, None)
        unit.tags.clear()
        unit.invocations.clear()
        unit.signalled.clear()

    def scan(self, *, again: bool = False) -> None:
        """Attribute the orphans that became our children; once a turn is enough, unless something has ended since."""
        if not (self.is_stale or again):
            return
        for pid in set(_read_children(ME) if HAS_CHILDREN else children_lookup()(ME)) - self.children.keys():
            self.adopt(pid)
        self.is_stale = False

    def adopt(self, pid: int) -> None:
        """Attribute a child that we did not make; it may be a zombie already."""
        if pid in self.managers or pid in self.children:
            return
        unit = self.owner(pid) or self.strays
        command = read(f"/proc/{pid}/cmdline") or read(f"/proc/{pid}/comm") if unit is self.strays else b""
        self.children[pid] = unit
        unit.children.add(pid)
        unit.told_empty = False
        self.touched[unit.name] = unit
        if unit is self.strays and ME == 1 and ((stat := read_stat(pid)) is None or stat.state in "ZX"):
            self.untold.add(pid)
        elif unit is self.strays:
            text = command.strip(b"\0\n").replace(b"\0", b" ").decode("utf-8", "replace")
            self._put({"fact": "stray", "pid": pid, "command": text[:200], "init": ME == 1})

    def remove(self, pid: int, unit: Unit) -> Spawn | None:
        """Take out a process of ``unit`` that has ended."""
        self.children.pop(pid, None)
        unit.children.discard(pid)
        self.touched[unit.name] = unit
        return self.spawns.pop(pid, None)

    def owner(self, pid: int) -> Unit | None:
        """Tell by cgroup, then by the tag, then by the environment, whose process ``pid`` is."""
        if (unit := self.marked(pid)) is not None:
            return unit
        for variable in read(f"/proc/{pid}/environ").split(b"\0"):
            if variable.startswith(b"INVOCATION_ID="):
                return self._invocations.get(variable[14:].decode("ascii", "replace"))
        return None

    def grouped(self, pid: int) -> Unit | None:
        """Tell by cgroup whose process ``pid`` is."""
        for line in read(f"/proc/{pid}/cgroup").splitlines() if self._groups else ():
            while line.count(b"/") and line not in self._groups:
                line = line.rpartition(b"/")[0]
            if line in self._groups:
                return self._groups[line]
        return None

    def marked(self, pid: int) -> Unit | None:
        """Tell by cgroup, then by the tag, whose process ``pid`` is."""
        if (unit := self.grouped(pid)) is not None:
            return unit
        limits = read(f"/proc/{pid}/limits").partition(b"Max realtime timeout")[2].split()
        if limits and limits[0].isdigit():
            instance, spawn_id = divmod(int(limits[0]) - TAG_BASE, 1 << TAG_INSTANCE_SHIFT)
            if instance == self._instance and spawn_id in self._tags:
                return self._tags[spawn_id]
        return None

    def whose(self, pid: int) -> Whose:
        """Return whose process it is."""
        at = pid
        for _ in range(1000):
            if (unit := self.children.get(at)) is not None:
                if unit is self.strays:
                    return Whose(None, True, True)
                return Whose(unit, False, True, at not in self.spawns and not self._is_in_its_group(at, unit))
            if at in self.managers or at == ME:
                return Whose(None, False, True)
            if (stat := read_stat(at)) is None or stat.ppid <= 0:
                break
            if (spawn := self.spawns.get(at)) is not None and spawn.main_start == stat.start:
                return Whose(spawn.unit, False, True)  # of an adopted unit: it is nobody's child here
            if stat.ppid == ME:
                self.adopt(at)
            else:
                at = stat.ppid
        return Whose(self.owner(pid), False, False)

    def _is_in_its_group(self, pid: int, unit: Unit) -> bool:
        """Say whether a process is in a cgroup of ``unit`` that it cannot have moved into by itself."""
        return os.geteuid() == 0 and self.grouped(pid) is unit

    def roots(self, unit: Unit) -> list[int]:
        """Return what everything of a unit descends from. The main process is the first, and so the first to get a
        signal: its workers end because it ends them, not before it knows why."""
        main = None if unit.main is None else unit.main.main_pid
        return sorted(unit.children | unit.followed.keys(), key=lambda pid: pid != main)


def _pack_unit(unit: Unit) -> dict[str, Any]:
    box = unit.notify
    return {
        "name": unit.name, "output": unit.output, "uid": unit.uid, "cgroups": unit.cgroups,
        "notify": None if box is None else [box.path, box.socket.fileno(), box.access, box.unacknowledged],
        "main": None if unit.main is None else unit.main.id, "children": sorted(unit.children),
        "followed": list(unit.followed.items()), "killing": unit.killing, "signalled": sorted(unit.signalled),
        "told_empty": unit.told_empty, "adopted": unit.is_adopted, "tags": list(unit.tags),
        "invocations": list(unit.invocations),
        "groups": [os.fsdecode(line) for line in unit.groups],
    }  # fmt: skip


def _unpack_unit(given: dict[str, Any]) -> Unit:
    unit = Unit(given["name"])
    unit.output = None if given["output"] is None else (given["output"][0], given["output"][1])
    unit.uid, unit.cgroups, unit.killing = given["uid"], given["cgroups"], given["killing"]
    unit.children, unit.followed = set(given["children"]), dict(given["followed"])
    unit.signalled = {(pid, start) for pid, start in given["signalled"]}
    unit.told_empty, unit.tags = given["told_empty"], deque(given["tags"])
    unit.is_adopted = given.get("adopted", False)
    unit.invocations, unit.groups = deque(given["invocations"]), [os.fsencode(line) for line in given["groups"]]
    return unit


def _pack_spawn(spawn: Spawn) -> dict[str, Any]:
    return {
        "id": spawn.id, "unit": spawn.unit.name, "role": spawn.role, "pid": spawn.pid, "main_pid": spawn.main_pid,
        "started_ns": spawn.started_ns, "report": spawn.report, "cgroups": spawn.cgroups, "tagged": spawn.tagged,
        "failure": None if spawn.failure is None else spawn.failure.args, "told": spawn.is_told,
        "invocation": spawn.invocation, "main_start": spawn.main_start,
    }  # fmt: skip


def _unpack_spawn(given: dict[str, Any], units: dict[str, Unit]) -> Spawn:
    spawn = Spawn(given["id"], units[given["unit"]], given["role"], given["pid"], given["started_ns"])
    spawn.main_pid, spawn.report, spawn.cgroups = given["main_pid"], given["report"], given["cgroups"]
    spawn.tagged, spawn.is_told = given["tagged"], given.get("told", given["report"] is None)
    spawn.invocation, spawn.main_start = given.get("invocation"), given.get("main_start", 0)
    spawn.failure = None if given["failure"] is None else SpawnError(*given["failure"])
    if spawn.report is not None:
        spawn.unit.starting.append(spawn)
    return spawn

"""Bounds on all processes of a unit together, by the strongest mechanism that there is.

Theory of operation
-------------------
Each kind of bound (memory, processor, tasks, I/O) has a *controller*. It is looked for in the hierarchy of the units'
own groups (cgroup v2 whose parent may pass it on), then in a v1 hierarchy of its own, where nobody else manages that
(no systemd). There a unit that asks for a bound has a group, its processes are born in it, and the bound is a file.
Where there is neither, memory and tasks are *sampled*: once a second the whole tree is counted, and a life that has too
much is ended. Weights, quotas and ``memory-high`` cannot be had by sampling.

A bound without a mechanism fails the start, or with ``enforce = "best-effort"`` is told as degraded. What the kernel
kills because a group is full is counted by the kernel; the count tells an out-of-memory kill from any other SIGKILL.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; systemd.resource-control(5).
"""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import psutil

from supervisord_py.host.cgroups import (
    Finding,
    Hierarchy,
    Mount,
    UnitGroups,
    find_place,
    own_folder,
    refusal,
    take_leaf,
    unescape,
)
from supervisord_py.model.context import Amount, Resources

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
PERIOD_US = 100_000
"""Of a quota, as in systemd."""
PERIOD_MAX_US = 1_000_000
QUOTA_MIN_US = 1_000
V1_SHARES_OF_WEIGHT = 1024 / 100
V1_SHARES_MIN = 2
_SETTLED = "user.supervisord-py.killed"
"""The attribute of a group that says how many of its kills are told; a group of the unit's next life begins anew."""
UNLIMITED_V1 = -1
UNLIMITED_FLOOR = 1 << 62
"""In v1 no bound is a number, too: the largest that is a whole number of pages."""


class Controller(Enum):
    """The kinds of bounds, by their names in cgroup v2; v1 has the same but for io."""

    MEMORY = "memory"
    CPU = "cpu"
    TASKS = "pids"
    IO = "io"


class Mechanism(Enum):
    V2 = "cgroup v2"
    V1 = "cgroup v1"
    SAMPLING = "sampling"


KEYS: dict[str, Controller] = {
    "memory_max": Controller.MEMORY,
    "memory_high": Controller.MEMORY,
    "memory_swap_max": Controller.MEMORY,
    "cpu_quota": Controller.CPU,
    "cpu_weight": Controller.CPU,
    "tasks_max": Controller.TASKS,
    "io_weight": Controller.IO,
}
SAMPLED = frozenset({"memory_max", "tasks_max"})
"""What can be seen by counting processes."""


class Write(NamedTuple):
    """One file of a group, and what it is to say: for which key."""

    name: str
    text: str
    key: str = ""


class Kills(NamedTuple):
    """What the kernel has counted of a group: how often its memory was full, and whom it has killed in it."""

    full: int = 0
    killed: int = 0


NO_WEIGHERS = "no disk here shares by weight: none has the scheduler bfq, or io.cost.qos on"


_UNBOUND = {
    Controller.MEMORY: (
        Write("memory.memsw.limit_in_bytes", "-1"),
        Write("memory.limit_in_bytes", "-1"),
        *(Write(name, "max") for name in ("memory.max", "memory.high", "memory.swap.max")),
    ),
    Controller.CPU: (
        Write("cpu.cfs_quota_us", "-1"),
        Write("cpu.shares", "1024"),
        Write("cpu.max", "max"),
        Write("cpu.weight", "100"),
    ),
    Controller.TASKS: (Write("pids.max", "max"),),
    Controller.IO: (
        Write("io.weight", "default 100"),
        Write("io.bfq.weight", "default 100"),
        Write("blkio.bfq.weight", "100"),
    ),
}


class Plan(NamedTuple):
    """How the bounds of one unit are kept."""

    writes: dict[Controller, list[Write]]
    how: dict[str, Mechanism]
    impossible: dict[str, str]
    """Keys (with ``-``) that nothing here can enforce, and why."""


def find_own_place(keeper_pid: int) -> Finding:
    """Look where this machine lets us make groups, and go into a leaf where units can have controllers then.

    Embedded we stay: the process that we are a thread of is not ours to move.
    """
    finding = find_place()
    if os.getppid() != keeper_pid:
        return finding
    return take_leaf(finding, frozenset({keeper_pid, os.getpid()}), [each.value for each in Controller])


def written(resources: Resources) -> list[str]:
    """Return the fields that are written in the unit file."""
    return [name for name in KEYS if getattr(resources, name) is not None]


def parse_v1(mountinfo: str, proc_cgroup: str) -> dict[Controller, str]:
    """Find our own group in each v1 hierarchy that has a controller of ours."""
    paths: dict[str, str] = {}
    for line in proc_cgroup.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths |= dict.fromkeys(controllers.split(","), path)
    found: dict[Controller, str] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, rest_fields = before.split(), after.split()
        if len(fields) < 6 or len(rest_fields) < 3 or rest_fields[0] != "cgroup":
            continue
        mount = Mount(Hierarchy.NAMED, unescape(fields[3]), unescape(fields[4]), "rw" in fields[5].split(","))
        for controller, name in ((each, "blkio" if each is Controller.IO else each.value) for each in Controller):
            if name in rest_fields[2].split(",") and name in paths and mount.is_writable:
                folder = own_folder(mount, paths[name])
                if folder is not None:
                    found.setdefault(controller, folder)
    return found


class UnitResources:
    """The bounds of one instance's units.

    Args:
        groups: The units' own groups.
        has_systemd: Whether systemd manages this machine: then v1 hierarchies are its own.
    """

    def __init__(self, groups: UnitGroups, *, has_systemd: bool | None = None) -> None:
        self.groups = groups
        self._v1: dict[Controller, UnitGroups] = {}
        self._v2: set[Controller] = set()
        self._why_not: dict[Controller, str] = {}
        self._kills: dict[str, Kills] = {}
        self._unkept: set[str] = set()
        self._killed_in_all = 0
        has_systemd = os.path.isdir("/run/systemd/system") if has_systemd is None else has_systemd
        v1 = {} if has_systemd else _read_v1()
        available = groups.controllers([each.value for each in Controller])
        for controller in Controller:
            if controller.value in available:
                self._v2.add(controller)
            elif (folder := v1.get(controller)) is not None and (reason := refusal(folder)) is None:
                self._v1[controller] = groups.beside(folder)
            else:
                why = reason if folder is not None else groups.why_not(controller.value)
                self._why_not[controller] = str(why)

    def plan(self, resources: Resources) -> Plan:
        """Decide how each bound is kept."""
        plan = Plan({}, {}, {})
        for name in written(resources):
            controller, key = KEYS[name], name.replace("_", "-")
            mechanism = self._mechanism(controller)
            writes = None if mechanism is None else _writes(name, resources, mechanism, self._file_exists(controller))
            if mechanism is not None and writes is not None:
                plan.writes.setdefault(controller, []).extend(each._replace(key=key) for each in writes)
                plan.how[key] = mechanism
            elif name in SAMPLED:
                plan.how[key] = Mechanism.SAMPLING
            else:
                nothing = "" if mechanism is None else f"{mechanism.value} has no such bound"
                if controller is Controller.IO and mechanism is not None and not io_weighers():
                    nothing = NO_WEIGHERS
                plan.impossible[key] = self._why_not.get(controller) or nothing
        return plan

    def _mechanism(self, controller: Controller) -> Mechanism | None:
        if controller in self._v2:
            return Mechanism.V2
        return Mechanism.V1 if controller in self._v1 else None

    def _file_exists(self, controller: Controller) -> Callable[[str], bool]:
        folder = self.groups.base if controller in self._v2 else None
        if controller in self._v1:
            folder = os.path.dirname(self._v1[controller].base or "")
        return lambda name: folder is not None and (controller in self._v2 or os.path.exists(f"{folder}/{name}"))

    def folders(self, unit: str, plan: Plan) -> tuple[str, ...]:
        """Return the groups, besides its own, that a unit's processes join."""
        v1 = (self._v1[controller] for controller in plan.writes if controller in self._v1)
        return tuple(folder for groups in v1 if (folder := groups.folder(unit)) is not None)

    def apply(self, unit: str, plan: Plan, *, together: bool = False) -> dict[str, str]:
        """Make the unit's groups and write its bounds; returns what could not be, as ``Plan.impossible``. With
        ``together`` the kernel kills all of the unit when its memory is full."""
        # The kernel kills while a bound is written that is below what the unit has.
        before = self._count_kills(unit)
        failed: dict[str, str] = {}
        for controller, writes in plan.writes.items():
            if controller in self._v2:
                self.groups.pass_on(controller.value)
            if made := self._v1.get(controller, self.groups).create(unit):
                failed |= _write_all(made[0], writes)
            else:
                failed |= dict.fromkeys((write.key for write in writes), "its group cannot be made")
        self._lift(unit, plan)
        if (group := self._memory_group(unit)) is not None and Controller.MEMORY in self._v2:
            with contextlib.suppress(OSError):  # of an older kernel: then we end the others when we see it
                Path(group, "memory.oom.group").write_text(str(int(together and Controller.MEMORY in plan.writes)))
        self._settle(unit, self._kills.get(unit, before))
        return failed

    def is_bound(self, unit: str) -> bool:
        """Say whether the unit has bounds that were written before, and that another text may not have."""
        return unit in self._kills

    def _lift(self, unit: str, plan: Plan) -> None:
        """Take back the bounds that a group still has of a text before."""
        kept = {write.name for writes in plan.writes.values() for write in writes}
        for controller in Controller:
            folder = self._v1.get(controller, self.groups).folder(unit)
            for write in _UNBOUND[controller] if folder is not None else ():
                if write.name not in kept:
                    with contextlib.suppress(OSError):  # of another version, or no controller of this group
                        path = Path(folder or "", write.name)
                        if path.exists():
                            path.write_text(write.text)

    def counting_group(self, unit: str, controller: Controller) -> tuple[str, str] | None:
        """Return the group in which the kernel counts what a unit uses, and the mechanism in a word."""
        # Of the processor cgroup v2 counts without a controller.
        is_v2 = controller in self._v2 or (controller is Controller.CPU and self.groups.is_unified)
        groups = self.groups if is_v2 else self._v1.get(controller)
        folder = None if groups is None else groups.folder(unit)
        return None if folder is None else (folder, (Mechanism.V2 if is_v2 else Mechanism.V1).value)

    def move(self, unit: str, pids: list[int], plan: Plan) -> None:
        """Put processes that run into the unit's groups."""
        for folder in self.folders(unit, plan):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    Path(folder, "cgroup.procs").write_text(str(pid))

    def release(self, unit: str) -> None:
        """Remove the unit's groups in the hierarchies of controllers; nothing of it lives any more."""
        self._kills.pop(unit, None)
        self._unkept.discard(unit)
        for groups in self._v1.values():
            groups.remove(unit)

    def _memory_group(self, unit: str) -> str | None:
        groups = self.groups if Controller.MEMORY in self._v2 else self._v1.get(Controller.MEMORY)
        return None if groups is None else groups.folder(unit)

    def _count_kills(self, unit: str) -> Kills:
        """Return what the kernel has counted of a unit so far."""
        folder = self._memory_group(unit)
        if folder is None:
            return Kills()
        if Controller.MEMORY in self._v2:
            # "oom" of this group alone: a kill can also come of a limit above it, or of the whole machine.
            own = _counts(folder, "memory.events.local") or _counts(folder, "memory.events")
            return Kills(own.get("oom", 0), _counts(folder, "memory.events").get("oom_kill", 0))
        killed = _counts(folder, "memory.oom_control").get("oom_kill", 0)
        return Kills(killed, killed)

    def count_from_here(self, unit: str) -> None:
        """Settle what the kernel has killed of a unit so far: it was in another life, or before our time."""
        self._settle(unit, self._count_kills(unit))

    def go_on_counting(self, unit: str) -> None:
        """Go on from what the manager before had settled: whom the kernel has killed in between is told."""
        with contextlib.suppress(OSError, ValueError):  # nothing was written, or the kernel keeps no attributes here
            words = os.getxattr(self._memory_group(unit) or "/nonexistent", _SETTLED).split()
            self._kills[unit] = Kills(int(words[0]), int(words[1]))
            return
        self.count_from_here(unit)

    def keep_count(self) -> None:
        """Write down what was settled of whom the kernel has killed: it has been told."""
        for unit in self._unkept & self._kills.keys():
            self._settle(unit, self._kills[unit])
        self._unkept.clear()

    def _settle(self, unit: str, kills: Kills) -> None:
        self._kills[unit] = kills
        self._unkept.discard(unit)
        with contextlib.suppress(OSError):  # as above: then the next manager counts from what it finds
            os.setxattr(self._memory_group(unit) or "/nonexistent", _SETTLED, f"{kills.full} {kills.killed}".encode())

    def has_killed(self, unit: str, *, settle: bool) -> bool:
        """Say whether the kernel has killed a process of the unit because its memory was full, since this was settled
        the last time."""
        before, now = self._kills.get(unit), self._count_kills(unit)
        if settle and before != now:
            # Not written down yet: who dies before this is told leaves it to the next manager.
            self._kills[unit] = now
            self._unkept.add(unit)
        return before is not None and now.full > before.full and now.killed > before.killed

    def counts(self, unit: str, pids: list[int]) -> bool:
        """Say whether the kernel counts the memory of these processes for the unit: what they have had before the unit
        had its group stays with another."""
        folder = self._memory_group(unit)
        name = "memory.current" if Controller.MEMORY in self._v2 else "memory.usage_in_bytes"
        counted = own = 0
        with contextlib.suppress(OSError, ValueError):
            counted = int(Path(folder or "/nonexistent", name).read_text())
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                # Resident, but for what is shared with files: that may be counted for whoever read them first.
                words = Path(f"/proc/{pid}/statm").read_text().split()
                own += (int(words[1]) - int(words[2])) * PAGE_SIZE
        return counted >= own // 2

    def memory_bound(self, unit: str) -> tuple[int | None, Mechanism]:
        """Return what memory the kernel lets the unit have [B], None for any, and by which mechanism."""
        mechanism = Mechanism.V2 if Controller.MEMORY in self._v2 else Mechanism.V1
        name = "memory.max" if mechanism is Mechanism.V2 else "memory.limit_in_bytes"
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            most = int(Path(self._memory_group(unit) or "/nonexistent", name).read_text())
            return (most if most < UNLIMITED_FLOOR else None), mechanism
        return None, mechanism

    def may_have_killed(self) -> bool:
        """Say whether the kernel may have killed anything of any unit since the last time that this was asked."""
        if Controller.MEMORY not in self._v2 or self.groups.base is None:
            return True
        # The group above the units' counts for them all.
        before, self._killed_in_all = self._killed_in_all, _counts(self.groups.base, "memory.events").get("oom_kill", 0)
        return self._killed_in_all != before

    def peak(self, unit: str) -> int | None:
        """Return the most memory that the unit has had, as the kernel counts it [B]."""
        folder = self._memory_group(unit)
        name = "memory.peak" if Controller.MEMORY in self._v2 else "memory.max_usage_in_bytes"
        with contextlib.suppress(OSError, ValueError):
            return int(Path(folder or "/nonexistent", name).read_text())
        return None


def _counts(folder: str, name: str) -> dict[str, int]:
    """Read a file of words and numbers; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        words = (line.partition(" ") for line in Path(folder, name).read_text().splitlines())
        return {key: int(count) for key, _, count in words}
    return {}


def _write_all(folder: str, writes: list[Write]) -> dict[str, str]:
    """Write the files of a group; one that depends on another is tried again after it."""
    failed: dict[Write, str] = {}
    for write in (*writes, *reversed(writes)):
        try:
            Path(folder, write.name).write_text(write.text)
            failed.pop(write, None)
        except FileNotFoundError:
            failed[write] = f"the kernel has no {write.name}"
        except OSError as error:
            failed[write] = f"{write.name} = {write.text}: {(error.strerror or str(error)).lower()}"
            if error.errno == errno.EBUSY:
                # Of v1: the kernel has tried to take back what is above the bound, and could not.
                failed[write] += ", which is what the kernel says where the processes have more than that already"
    return {write.key: reason for write, reason in failed.items()}


def io_weighers(disks: str = "/sys/block", root: str = "/sys/fs/cgroup") -> set[str]:
    """Return what weighs I/O on some disk of this machine: ``bfq``, ``iocost``. Without either a weight is a number."""
    found = set()
    for path in Path(disks).glob("*/queue/scheduler"):
        with contextlib.suppress(OSError):
            if "[bfq]" in path.read_text():
                found.add("bfq")
    with contextlib.suppress(OSError):
        if "enable=1" in Path(root, "io.cost.qos").read_text():
            found.add("iocost")
    return found


def find_v1() -> dict[Controller, str]:
    """Return our group in each v1 hierarchy in which units could have groups of their own; systemd's are its own."""
    if os.path.isdir("/run/systemd/system"):
        return {}
    return {controller: folder for controller, folder in _read_v1().items() if refusal(folder) is None}


def _read_v1() -> dict[Controller, str]:
    try:
        return parse_v1(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return {}


def bound_of(name: str, amount: Amount) -> int | None:
    """Return a bound in bytes or tasks; None: there is none."""
    return amount.of(psutil.virtual_memory().total if name.startswith("memory") else _tasks_of_machine())


def _tasks_of_machine() -> int:
    found = [int(Path("/proc/sys/kernel", name).read_text()) for name in ("pid_max", "threads-max")]
    return min(found)


def _writes(
    name: str, resources: Resources, mechanism: Mechanism, has_file: Callable[[str], bool]
) -> list[Write] | None:
    """Return the files that say a bound, None when the mechanism has none for it."""
    value = getattr(resources, name)
    is_v2 = mechanism is Mechanism.V2
    if isinstance(value, Amount):
        return _bound(name, bound_of(name, value), resources, has_file, is_v2=is_v2)
    if name == "cpu_quota":
        # The kernel takes no quota below a millisecond, and no period above a second.
        period = min(max(PERIOD_US, -(-QUOTA_MIN_US * 10_000 // value)), PERIOD_MAX_US)
        quota = value * period // 10_000
        if is_v2:
            return [Write("cpu.max", f"{quota} {period}")]
        files = [Write("cpu.cfs_period_us", str(period)), Write("cpu.cfs_quota_us", str(quota))]
        return files if has_file("cpu.cfs_quota_us") else None
    if name == "cpu_weight":
        shares = max(V1_SHARES_MIN, int(value * V1_SHARES_OF_WEIGHT))
        return [Write("cpu.weight", str(value)) if is_v2 else Write("cpu.shares", str(shares))]
    weighers = io_weighers()
    bfq = str(value if value <= 100 else 100 + (value - 100) * 900 // 9900)
    if is_v2:
        files = [Write("io.weight", f"default {value}")] if "iocost" in weighers else []
        return [*files, *([Write("io.bfq.weight", f"default {bfq}")] if "bfq" in weighers else [])] or None
    return [Write("blkio.bfq.weight", bfq)] if "bfq" in weighers else None


def _bound(
    name: str, bound: int | None, resources: Resources, has_file: Callable[[str], bool], *, is_v2: bool
) -> list[Write] | None:
    text = "max" if bound is None else str(bound)
    if name == "tasks_max":
        return [Write("pids.max", text)]
    if is_v2:
        return [Write({"memory_max": "memory.max", "memory_high": "memory.high"}.get(name, "memory.swap.max"), text)]
    if name == "memory_max":
        return [Write("memory.limit_in_bytes", str(UNLIMITED_V1 if bound is None else bound))]
    memory = None if resources.memory_max is None else bound_of("memory_max", resources.memory_max)
    if name == "memory_high" or memory is None or not has_file("memory.memsw.limit_in_bytes"):
        return None
    # In v1 there is one bound for memory and swap together.
    return [Write("memory.memsw.limit_in_bytes", str(UNLIMITED_V1 if bound is None else memory + bound))]


def sampled_bounds(resources: Resources, how: Mapping[str, Mechanism]) -> dict[str, int]:
    """Return the bounds that are sampled, by their keys."""
    bounds: dict[str, int] = {}
    for name in SAMPLED:
        key, amount = name.replace("_", "-"), getattr(resources, name)
        bound = None if amount is None or how.get(key) is not Mechanism.SAMPLING else bound_of(name, amount)
        if bound is not None:
            bounds[key] = bound
    return bounds

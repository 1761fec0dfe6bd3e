"""One look at a running supervisor: what it says on its control socket, what /proc shows, what lies in its folders.

Theory of operation
-------------------
Status is asked before and after /proc is read, and a unit whose words differ (state, process, invocation) is in
motion and not judged by this look. What is between two states for longer than that (an exit that is on its way from
the keeper to the manager) is told from what is wrong by looking again: see ``instance``.

Whose a process is, is taken from four sources that do not know of each other: the tag (soft RLIMIT_RTTIME), the cgroup,
the parent, and the keeper's book of spawns. The book is the owner's to read; without it (another user, monitoring only)
what it decides is not looked at, and ``Evidence.book`` is None.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from supervisord_py.ctl.client import Client, ControlError
from supervisord_py.host.book import Book, read_book
from supervisord_py.host.cgroups import SUFFIX, base_name, choose, is_delegated
from supervisord_py.keeper.protocol import TAG_BASE, TAG_INSTANCE_SHIFT

AT_REST = frozenset({"dead", "failed", "dependency"})
BETWEEN_LIVES = frozenset({"auto-restart", "auto-restart-queued", "waiting"})


class Instance(Struct, frozen=True):
    """Which supervisor it is, as it says itself and as its keeper's command line says."""

    name: str
    keeper: int
    manager: int
    number: int | None
    runtime: str | None
    state: str | None
    log: str | None


class Process(Struct, frozen=True):
    """A living process. ``spawn_id`` is what the tag says, ``group`` the unit whose cgroup it is in."""

    pid: int
    ppid: int
    start: int
    uid: int
    command: str
    descends: bool
    spawn_id: int | None = None
    may_be_tagged: bool = True
    group: str | None = None


class UnitWord(Struct, frozen=True):
    """What status says of a unit; ``moving``: it said something else a moment later."""

    name: str
    active: str
    sub: str
    pid: int | None
    invocation: str | None
    moving: bool = False
    may_leave: bool = False
    """Its text leaves alone what a life leaves behind (``kill-mode``)."""
    has_command: bool = True
    """Whether there is anything to run: not of a target, and not known where commands may not be seen."""

    @property
    def is_at_rest(self) -> bool:
        return self.sub in AT_REST


class Evidence(Struct):
    instance: Instance
    units: dict[str, UnitWord]
    processes: dict[int, Process]
    """Descendants of the keeper, and everything with its tag, wherever it is; no zombies."""
    managers: list[int]
    """Children of the keeper that are managers."""
    invocations: dict[int, str]
    """What the environment of main processes says, where it may be read."""
    book: Book | None = None
    is_book_missing: bool = False
    """There is none, and we would see it."""
    mailboxes: dict[str, bool] = {}
    """Files of notify sockets; True where a socket is bound to it."""
    has_relay: bool = False
    """One of them is the keeper's own: the manager speaks through it to the service manager above."""
    groups: dict[str, str] = {}
    """Units by the cgroup folder made for them."""
    keeper_descriptors: int | None = None
    manager_descriptors: int | None = None
    locks: dict[str, str] = {}
    """What is locked, and what is wrong with the lock; empty where all is well."""


def identify(client: Client) -> Instance:
    """Ask which supervisor this is.

    Raises:
        SupervisordError: Nobody answers, or not to us.
    """
    version = client.call("Version")
    keeper = int(version["keeper_pid"])
    config = config_of(keeper)
    runtime = config.get("runtime_dir")
    number = None
    if runtime is not None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            number = int(Path(runtime, "lock").read_bytes().split()[1])
    return Instance(
        name=version["name"],
        keeper=keeper,
        manager=int(version["pid"]),
        number=number,
        runtime=runtime,
        state=config.get("state_dir"),
        log=config.get("log_dir"),
    )


def config_of(keeper: int) -> dict[str, Any]:
    """Return what the keeper was started with; empty where that may not be read."""
    try:
        words = Path(f"/proc/{keeper}/cmdline").read_bytes().split(b"\0")
        config = json.loads(words[words.index(b"--config") + 1])
    except (OSError, ValueError, IndexError):
        return {}
    return config if isinstance(config, dict) else {}


def look(client: Client) -> Evidence:
    """Take one look.

    Raises:
        SupervisordError: The supervisor does not answer.
    """
    instance = identify(client)
    before = _status(client)
    book = _read_book(instance)
    processes, managers = _processes(instance)
    mailboxes, groups = _mailboxes(instance), _groups(instance)
    mains = [unit.pid for unit in before.values() if unit.pid is not None]
    invocations = {pid: found for pid in mains if (found := variable(pid, "INVOCATION_ID")) is not None}
    keeper_descriptors, manager_descriptors = _descriptors(instance.keeper), _descriptors(instance.manager)
    units = _compared(before, _status(client))
    living = _units_of(processes.values(), book)
    units = {
        name: _with_kill_mode(client, unit)
        if name in living and (unit.is_at_rest or unit.sub in BETWEEN_LIVES) and not unit.moving
        else unit
        for name, unit in units.items()
    }
    return Evidence(
        instance=instance,
        units=units,
        processes=processes,
        managers=managers,
        invocations=invocations,
        book=book,
        is_book_missing=book is None and _is_missing(instance),
        mailboxes=mailboxes,
        has_relay=variable(instance.manager, "NOTIFY_SOCKET") is not None,
        groups=groups,
        keeper_descriptors=keeper_descriptors,
        manager_descriptors=manager_descriptors,
        locks=_locks(instance),
    )


def _status(client: Client) -> dict[str, UnitWord]:
    words = {}
    for unit in client.call("List", units=[], failed=False)["units"]:
        words[unit["name"]] = UnitWord(
            name=unit["name"],
            active=unit["active_state"],
            sub=unit["sub_state"].replace("_", "-"),
            pid=unit["pid"],
            invocation=unit["invocation"],
            has_command=unit["exec"] is not None,
        )
    return words


def _compared(before: dict[str, UnitWord], after: dict[str, UnitWord]) -> dict[str, UnitWord]:
    """Return what was said last, marked where it was not what was said first."""
    return {
        name: word if before.get(name) == word else structs.replace(word, moving=True) for name, word in after.items()
    }


def _with_kill_mode(client: Client, unit: UnitWord) -> UnitWord:
    """Ask for the one setting that makes what a unit left behind right; it stays wrong where we may not ask."""
    try:
        settings = client.call("Show", unit=unit.name)["settings"]
    except ControlError:
        return unit
    mode = next((each["value"] for each in settings if each["key"] == "service.kill-mode"), None)
    if mode not in ("process", "none"):
        return unit
    return structs.replace(unit, may_leave=True)


def _read_book(instance: Instance) -> Book | None:
    if instance.runtime is None or not os.access(f"{instance.runtime}/book", os.R_OK):
        return None
    return read_book(Path(instance.runtime, "book"))


def _is_missing(instance: Instance) -> bool:
    try:
        return instance.runtime is not None and "book" not in os.listdir(instance.runtime)
    except PermissionError:
        return False
    except OSError:
        return True


def _units_of(processes: Iterable[Process], book: Book | None) -> set[str]:
    known = {} if book is None else book.units
    return {unit for each in processes if each.spawn_id is not None and (unit := known.get(each.spawn_id)) is not None}


# Processes


def _processes(instance: Instance) -> tuple[dict[int, Process], list[int]]:
    """Return what descends from the keeper or carries its tag, and the keeper's managers."""
    stats: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := _stat(int(entry))) is not None:
            stats[int(entry)] = found
    descendants = _below([instance.keeper], stats)
    managers = [pid for pid, (ppid, _) in stats.items() if ppid == instance.keeper and _is_manager(pid, instance)]
    passed_over = {instance.keeper, *managers, *_below(managers, stats)}
    processes: dict[int, Process] = {}
    for pid, (ppid, start) in stats.items():
        if pid in passed_over:
            continue
        spawn_id, may_be_tagged = _tag(pid, instance.number)
        if spawn_id is None and pid not in descendants:
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            processes[pid] = Process(
                pid=pid,
                ppid=ppid,
                start=start,
                uid=os.stat(f"/proc/{pid}").st_uid,
                command=_command(pid),
                descends=pid in descendants,
                spawn_id=spawn_id,
                may_be_tagged=may_be_tagged,
                group=_group_unit(pid, instance),
            )
    return processes, managers


def _is_manager(pid: int, instance: Instance) -> bool:
    """Whether a child of the keeper is a manager; the keeper's own command line, which a fresh child still has, names
    the manager's too."""
    if pid == instance.manager:
        return True
    command = _command(pid)
    return "supervisord_py.host.daemon" in command and "--config" not in command


def _below(roots: Iterable[int], stats: dict[int, tuple[int, int]]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, (ppid, _) in stats.items():
        children.setdefault(ppid, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        below = children.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


def _stat(pid: int) -> tuple[int, int] | None:
    """Return parent and start time; None of what is dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else None


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return file.read(65536).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _tag(pid: int, number: int | None) -> tuple[int | None, bool]:
    """Return the spawn id in the tag, None without one of ours; and whether the hard limit lets it carry one."""
    try:
        with open(f"/proc/{pid}/limits", "rb", buffering=0) as file:
            words = file.read(8192).partition(b"Max realtime timeout")[2].split(None, 2)[:2]
    except OSError:
        return None, True
    if len(words) < 2:
        return None, True
    soft, hard = words
    may_be_tagged = hard == b"unlimited" or int(hard) >= 2 * TAG_BASE
    if number is None or not soft.isdigit() or not TAG_BASE <= int(soft) < 2 * TAG_BASE:
        return None, may_be_tagged
    found, spawn_id = divmod(int(soft) - TAG_BASE, 1 << TAG_INSTANCE_SHIFT)
    return (spawn_id if found == number else None), may_be_tagged


def _group_unit(pid: int, instance: Instance) -> str | None:
    """Return the unit in whose cgroup a process is, by the names that the supervisor gives."""
    if instance.number is None:
        return None
    base = f"/{base_name(instance.name, instance.number)}/"
    try:
        with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:
            text = file.read(65536).decode(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        _, _, rest = line.partition(base)
        name = rest.partition("/")[0]
        if name.endswith(SUFFIX):
            return name.removesuffix(SUFFIX)
    return None


def variable(pid: int, name: str) -> str | None:
    """Return what a process was given as a variable; None also where its environment may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            items = file.read(1 << 20).split(b"\0")
    except OSError:
        return None
    start = f"{name}=".encode()
    return next((item[len(start) :].decode(errors="replace") for item in items if item.startswith(start)), None)


def _descriptors(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


# Folders


def _mailboxes(instance: Instance) -> dict[str, bool]:
    if instance.runtime is None:
        return {}
    folder = f"{instance.runtime}/n"
    try:
        names = os.listdir(folder)
        # The keeper's own view: it may live in another network namespace.
        bound = {line.split()[-1] for line in Path(f"/proc/{instance.keeper}/net/unix").read_text().splitlines()}
    except OSError:
        return {}
    return {f"{folder}/{name}": f"{folder}/{name}" in bound for name in names}


def _groups(instance: Instance) -> dict[str, str]:
    if instance.number is None:
        return {}
    try:
        finding = choose(
            Path(f"/proc/{instance.keeper}/cgroup").read_text(),
            Path("/proc/self/mountinfo").read_text(),
            has_systemd=os.path.isdir("/run/systemd/system"),
            is_delegated=is_delegated,
            refusal=lambda folder: None,
        )
        if finding.place is None:
            return {}
        base = f"{finding.place.folder}/{base_name(instance.name, instance.number)}"
        with os.scandir(base) as entries:
            return {
                entry.path: entry.name.removesuffix(SUFFIX)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and entry.name.endswith(SUFFIX)
            }
    except OSError:
        return {}


def _locks(instance: Instance) -> dict[str, str]:
    """Look whether lock file, state and log folder are locked, by the keeper as far as the kernel says by whom."""
    found = {}
    if instance.runtime is not None:
        lock = f"{instance.runtime}/lock"
        found[lock] = _lock_problem(lock, instance.keeper)
        with contextlib.suppress(OSError, ValueError, IndexError):
            holder = int(Path(lock).read_bytes().split()[0])
            if holder != instance.keeper and not found[lock]:
                found[lock] = f"names pid {holder}"
    for folder in (instance.state, instance.log):
        if folder is not None and os.access(folder, os.R_OK):
            found[folder] = _lock_problem(folder, instance.keeper)
    return found


def _lock_problem(path: str, keeper: int) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        return ""
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        # Held for an instant when nobody else has it, which is what is wrong then.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _other_holder(os.fstat(descriptor), keeper)
    else:
        return "is locked by nobody"
    finally:
        os.close(descriptor)


def _other_holder(status: os.stat_result, keeper: int) -> str:
    """Return who else holds the lock; nothing where the kernel names the keeper, or nobody (other pid namespaces)."""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    holders = {int(words[4]) for words in map(str.split, lines) if len(words) > 5 and words[5] == wanted}
    others = {pid for pid in holders if pid > 0} - {keeper}
    return f"is locked by pid {min(others)}, not by the keeper" if others and keeper not in holders else ""

"""Taking over what a killed keeper left: found here, before the next keeper starts, and handed to it.

Theory of operation
-------------------
A keeper that ends in order removes its lock file; one that was killed leaves it, with its instance number, and beside
it the *book* (``keeper/book.py``): everything that the keeper held but descriptors. ``run`` takes the dead keeper's
lock and keeps it, so that of two at once only one adopts. What the book says and what lives are put together to the
state that a keeper hands over when it replaces itself (``keeper/handover.py``), so the next manager goes on as after
the death of a manager: with the units as they were loaded, every job, deadline, counter and wish of an operator.

A process is the one that the book names if it has the start time that the book names (``MAINPID``, pid files), the tag
of the spawn (soft RLIMIT_RTTIME), or, where it cannot have the tag or has thrown it away, the spawn's invocation id in
its environment. It is held by a pidfd and then looked at again, so that it cannot be another by now. Everything else
that carries a tag or an invocation of the unit belongs to it. The output pipe is opened through /proc, the notify
socket is bound again at the old path by the keeper. What was made and ended with nobody to see it becomes an exit
whose status nobody knows; what was asked for and not made is asked for again.

Without a book that can be used (it could not be written, the machine or the container was started again, everything
was just being stopped) nothing can go on: what the tag finds is ended (TERM, ``GRACE_S``, KILL in rounds) before
anything is started beside it, unless ``kill-mode = "process"`` says that it may stay.

The new keeper goes on under the dead one's instance number, so that all tags stay true, and its spawn ids are above all
that were seen.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.host.book import Book, Spawn, read_book
from supervisord_py.keeper.inventory import pid_namespace
from supervisord_py.keeper.protocol import STATE_VERSION, TAG_BASE, TAG_INSTANCE_SHIFT

GRACE_S = 10.0
ROUNDS_MAX = 50
"""Rounds of SIGKILL before what is still there is called unkillable."""
LOCK_WAIT_S = 2.0
"""How long what a dead keeper was just making may hold its lock."""
POLL_S = 0.02
LEFT_BY_NAME = "SUPERVISORD_PY_UNIT="
INVOCATION = b"INVOCATION_ID="


class Process(Struct, frozen=True):
    """A living process with the dead keeper's tag, ``spawn_id`` None for one without; ``start`` is its start time, as
    /proc says it."""

    pid: int
    start: int
    spawn_id: int | None


class Tree(Struct):
    """A unit that is not released: its living processes, held, and those of its spawns that are among them."""

    unit: str
    spawns: list[tuple[Spawn, Process]]
    pidfds: dict[int, int]
    tags: list[int]
    output: tuple[int, int] | None = None


class Leftover(Struct, frozen=True):
    """A process of the dead keeper; ``unit`` None where nobody knows whose it was."""

    pid: int
    unit: str | None


class LostKeeper(Struct):
    """A keeper that did not end in order. ``lock`` is its lock, which is ours now."""

    pid: int
    instance: int
    lock: int
    book: Book | None = None
    """None: nothing can go on."""
    why_not: str = ""
    trees: list[Tree] = []
    ended: list[Leftover] = []
    left: list[Leftover] = []
    """Of units that may leave processes behind (``kill-mode = "process"``)."""
    unseen: list[Leftover] = []
    """Processes that were made and whose end nobody saw."""
    last_id: int = 0


def find_lost_keeper(runtime: Path) -> LostKeeper | None:
    """Take the lock of a keeper that was killed; None when the last one ended in order, or one lives."""
    try:
        lock = os.open(runtime / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    words = os.pread(lock, 64, 0).split()
    if len(words) < 2 or not all(word.isdigit() for word in words[:2]) or not _take(lock, int(words[0])):
        os.close(lock)
        return None
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(lock), os.stat(runtime / "lock")):
            return LostKeeper(int(words[0]), int(words[1]), lock)
    os.close(lock)
    return None


def _take(lock: int, holder: int) -> bool:
    """Lock, at once or, when the holder is dead, as soon as what it was making is dead too."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if _stat(holder) is not None or time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        else:
            return True


def take_over(
    lost: LostKeeper, runtime: Path, may_stay: Callable[[str], bool], why_not: Callable[[Mapping[str, str]], str]
) -> None:
    """Find what goes on, and what has to be ended.

    Args:
        lost: The dead keeper; what is found is put into it.
        runtime: Where its book is.
        may_stay: Whether processes of a unit are left alone where nothing can go on.
        why_not: Says why a manager cannot go on from a state; nothing when it can.
    """
    book = read_book(runtime / "book")
    processes = {process.pid: process for process in find_processes(lost.instance)}
    ids = [process.spawn_id for process in processes.values() if process.spawn_id is not None]
    lost.last_id = max([*book.spawns, *book.units, *ids], default=0)
    lost.why_not = _why_not(book, why_not)
    if not lost.why_not:
        lost.book = book
        _find_trees(lost, book, processes)
        return
    for process in processes.values():
        unit = book.unit_of(process.spawn_id) or _variable(process.pid, LEFT_BY_NAME.encode())
        where = lost.left if unit is not None and may_stay(unit) else lost.ended
        where.append(Leftover(process.pid, unit))


def _why_not(book: Book, why_not: Callable[[Mapping[str, str]], str]) -> str:
    if book.state is None:
        return "it left no book"
    if book.boot != boot_id():
        return "the machine was booted since"
    if book.namespace not in ("", pid_namespace()):
        return "its PID namespace is another: the container was started again"
    return why_not(book.state)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _find_trees(lost: LostKeeper, book: Book, processes: dict[int, Process]) -> None:
    """Put together what lives of each unit, and the facts of what does not."""
    _book_what_was_made(book, processes.values())
    members: dict[str, list[Process]] = {}
    for process in processes.values():
        unit = book.unit_of(process.spawn_id) or _variable(process.pid, LEFT_BY_NAME.encode())
        if unit is None:
            lost.ended.append(Leftover(process.pid, None))
        else:
            members.setdefault(unit, []).append(process)
    mains = {spawn.id: found for spawn in book.spawns.values() if (found := _find_main(book, spawn, processes))}
    strangers = {process.pid: book.spawns[number].unit for number, process in mains.items()}
    if any(process.spawn_id is None for process in mains.values()):
        strangers |= _find_by_invocation(book, processes)
    for pid, unit in strangers.items():
        if pid not in processes and (stranger := _seen(pid)) is not None:
            members.setdefault(unit, []).append(stranger)
    names = dict.fromkeys([*members, *book.held])
    lost.trees = [_hold_tree(book, unit, members.get(unit, []), mains, lost.instance) for unit in names]
    _tell_the_rest(lost, book)


def _book_what_was_made(book: Book, processes: Iterable[Process]) -> None:
    """A process that was made when the keeper died has a tag, and is not in the book yet: its request is."""
    asked = {do["id"]: do for do in book.requests if do["do"] == "spawn" and do["id"] not in book.spawns}
    for process in sorted(processes, key=lambda process: process.start, reverse=True):
        do = asked.get(process.spawn_id or 0)
        if do is not None:
            invocation = _variable(process.pid, INVOCATION)
            groups = list(do.get("cgroups") or ())
            spawn = Spawn(do["id"], do["unit"], do["role"], process.pid, process.pid, 0, invocation, groups)
            book.spawns[spawn.id], book.units[spawn.id] = spawn, spawn.unit
            book.held.setdefault(spawn.unit, []).append(spawn)


def _find_main(book: Book, spawn: Spawn, processes: Mapping[int, Process]) -> Process | None:
    """Return the process that a spawn means, if it is alive and is what the book says it is."""
    if spawn.over:
        return None
    process = processes.get(spawn.main_pid)
    if process is not None and not spawn.main_start and process.spawn_id == spawn.id:
        return process
    found = process or _seen(spawn.main_pid)
    if found is None:
        return None
    if spawn.main_start:
        return found if found.start == spawn.main_start else None
    # It cannot have the tag (``[limits] rttime``), or has set the limit itself.
    is_same = spawn.invocation is not None and _variable(found.pid, INVOCATION) == spawn.invocation
    return found if is_same else None


def _find_by_invocation(book: Book, processes: Mapping[int, Process]) -> dict[int, str]:
    """Look for what untagged processes have forked: by pid, the unit."""
    units = {spawn.invocation: spawn.unit for spawn in book.spawns.values() if spawn.invocation and not spawn.over}
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in processes:
            invocation = _variable(int(entry), INVOCATION)
            if invocation in units:
                found[int(entry)] = units[invocation]
    return found


def _hold_tree(book: Book, unit: str, members: list[Process], mains: Mapping[int, Process], instance: int) -> Tree:
    """Hold every process of a unit."""
    pidfds = {process.pid: pidfd for process in members if (pidfd := hold(process, instance)) is not None}
    spawns = [
        (book.spawns[number], process)
        for number, process in sorted(mains.items())
        if book.spawns[number].unit == unit and process.pid in pidfds
    ]
    tags = {process.spawn_id for process in members if process.spawn_id is not None} | {each.id for each, _ in spawns}
    first = {process.pid for _, process in spawns}
    outputs = (_open_output(process.pid) for process in sorted(members, key=lambda one: one.pid not in first))
    return Tree(unit, spawns, pidfds, sorted(tags), next(filter(None, outputs), None))


def _tell_the_rest(lost: LostKeeper, book: Book) -> None:
    """Add the facts that the dead keeper would have told: starts, exits that it saw, and ends that nobody saw."""
    living = {tree.unit for tree in lost.trees if tree.pidfds}
    alive = {spawn.id for tree in lost.trees for spawn, _ in tree.spawns}

    def tell(fact: dict[str, Any]) -> None:
        book.last += 1
        book.facts[book.last] = fact

    tell({"fact": "lost", "lost": {}})
    ends = {fact["id"]: fact for _, fact in book.ended}
    for spawn in sorted(book.spawns.values(), key=lambda spawn: spawn.id):
        if not spawn.told and (spawn.id in alive or not spawn.over):
            tell({"fact": "spawned", "id": spawn.id, "pid": spawn.main_pid, "tagged": spawn.tagged})
        if spawn.id not in alive and not spawn.over:
            lost.unseen.append(Leftover(spawn.main_pid, spawn.unit))
            nothing: dict[str, Any] = {"code": None, "signal": None, "core": False, "rusage": {}, "runtime_ms": None}
            ends[spawn.id] = {"fact": "exited", "id": spawn.id, "pid": spawn.main_pid, "main": True, **nothing}
            book.ended.append((spawn.unit, ends[spawn.id]))
    for _, fact in book.ended:
        tell({**fact, "tree_empty": False})
    for unit in sorted({unit for unit in book.units.values() if unit} - living):
        tell({"fact": "tree-empty", "unit": unit})
    book.ended = []


def hold(process: Process, instance: int) -> int | None:
    """Open a pidfd of exactly this process; None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    again = _seen(process.pid) if process.spawn_id is None else look_at(process.pid, instance)
    if again == process:
        return pidfd
    os.close(pidfd)
    return None


def _open_output(pid: int) -> tuple[int, int] | None:
    """Open the unit's output pipe again by a process that has it: a reading end, and the one for both directions.

    It is the keeper's pipe if the process has it open for reading and writing: nobody else makes them like that.
    """
    for number in (1, 2):
        opened: list[int] = []
        try:
            flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().partition("flags:")[2].split()[0]
            path = f"/proc/{pid}/fd/{number}"
            if int(flags, 8) & os.O_ACCMODE == os.O_RDWR and os.readlink(path).startswith("pipe:"):
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
                opened.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                if stat.S_ISFIFO(os.fstat(opened[0]).st_mode):
                    os.set_blocking(opened[0], True)
                    return opened[0], opened[1]
        except (OSError, IndexError, ValueError):
            pass  # gone meanwhile, or not ours to look into: its next life has a new pipe
        for fd in opened:
            os.close(fd)
    return None


def hand_over(lost: LostKeeper) -> int:
    """Return an inheritable memfd with everything that the next keeper goes on with.

    Args:
        lost: What was found; its descriptors become inheritable.
    """
    fds = [lost.lock]
    units, spawns, pids, requests = [], [], [], []
    now_ns, boot_ns = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for tree in lost.trees:
        fds += [*tree.pidfds.values(), *(tree.output or ())]
        main = next((spawn for spawn, _ in reversed(tree.spawns) if spawn.role == "main"), None)
        held = [] if lost.book is None else lost.book.held.get(tree.unit, [])
        box = next((spawn.notify for spawn in reversed(held) if spawn.notify is not None), None)
        groups = [group for spawn in held for group in spawn.cgroups]
        units.append(
            {
                "name": tree.unit,
                "output": tree.output,
                "notify": None if box is None else [box[0], None, box[1], 0],
                "uid": _uid(min(tree.pidfds, default=0)),
                "cgroups": dict.fromkeys(groups, False),
                "main": None if main is None else main.id,
                "children": [],
                "followed": list(tree.pidfds.items()),
                "killing": None,
                "signalled": [],
                "told_empty": not tree.pidfds,
                "adopted": bool(tree.pidfds),
                "tags": tree.tags,
                "invocations": list(dict.fromkeys(spawn.invocation for spawn, _ in tree.spawns if spawn.invocation)),
                "groups": [],
            }
        )
        for spawn, process in tree.spawns:
            age_ns = boot_ns - process.start * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
            spawns.append(
                {
                    "id": spawn.id,
                    "unit": spawn.unit,
                    "role": spawn.role,
                    "pid": process.pid,
                    "main_pid": process.pid,
                    "main_start": process.start,
                    "started_ns": now_ns - max(0, age_ns),
                    "report": None,
                    "cgroups": spawn.cgroups,
                    "tagged": spawn.tagged,
                    "failure": None,
                    "told": True,
                    "invocation": spawn.invocation,
                }
            )
            pids.append([process.pid, spawn.id])
        if lost.book is not None and lost.book.killing.get(tree.unit) is not None:
            requests.append({"do": "kill", "unit": tree.unit, "signal": lost.book.killing[tree.unit]})
    made = set() if lost.book is None else {*lost.book.spawns}
    ids = sorted({lost.last_id, *made, *(tag for tree in lost.trees for tag in tree.tags)})
    inventory = {"units": units, "strays": [], "spawns": spawns, "pids": pids, "touched": [], "ids": ids}
    state = {
        "version": STATE_VERSION,
        "fds": fds,
        "lock": lost.lock,
        "instance": lost.instance,
        "inventory": inventory,
        "lost": report(lost),
        "custody": None if lost.book is None else _custody(lost, lost.book),
        "requests": requests if lost.book is None else [*requests, *lost.book.requests],
    }
    memfd = os.memfd_create("supervisord-py-adoption")
    with open(memfd, "wb", closefd=False) as file:
        file.write(json.dumps(state).encode("ascii"))
    for fd in (memfd, *fds):
        os.set_inheritable(fd, True)
    return memfd


def _custody(lost: LostKeeper, book: Book) -> dict[str, Any]:
    """Return what was in custody, as ``Custody.pack`` gives it, with ``lost`` told as a fact among the others."""
    facts = [
        [number, {**fact, "lost": report(lost)} if fact["fact"] == "lost" else fact]
        for number, fact in sorted(book.facts.items())
    ]
    told = {"facts": facts, "last": book.last, "acknowledged": book.acknowledged}
    return {"state": book.state, "lines": sorted(book.lines.items()), **told}


def report(lost: LostKeeper) -> dict[str, Any]:
    """Return what the record of it says, and what a first manager has to know."""
    adopted = [Leftover(process.pid, tree.unit) for tree in lost.trees for _, process in tree.spawns]
    return {
        "pid": lost.pid,
        "instance": lost.instance,
        "last_id": lost.last_id,
        "why_not": lost.why_not,
        "adopted": msgspec.to_builtins(adopted),
        "ended": msgspec.to_builtins(lost.ended),
        "left": msgspec.to_builtins(lost.left),
        "unseen": msgspec.to_builtins(lost.unseen),
    }


def end_leftovers(lost: LostKeeper) -> list[Leftover]:
    """End every process of the dead keeper that does not go on and may not stay; returns those that would not die."""
    kept = {leftover.pid for leftover in lost.left} | {pid for tree in lost.trees for pid in tree.pidfds}
    tags = {tag for tree in lost.trees for tag in tree.tags}

    def condemned() -> list[Process]:
        return [p for p in find_processes(lost.instance) if p.pid not in kept and p.spawn_id not in tags]

    if lost.ended:
        _signal_all(lost.instance, condemned(), signal.SIGTERM, GRACE_S)
        for _ in range(ROUNDS_MAX):
            if not _signal_all(lost.instance, condemned(), signal.SIGKILL, 1.0):
                return []
    return [Leftover(process.pid, None) for process in condemned()] if lost.ended else []


def _signal_all(instance: int, processes: list[Process], number: signal.Signals, wait_s: float) -> bool:
    """Signal each process and wait for their ends; returns whether there was one."""
    pidfds = [pidfd for process in processes if (pidfd := hold(process, instance)) is not None]
    try:
        for pidfd in pidfds:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        deadline = time.monotonic() + wait_s
        poll = select.poll()
        for pidfd in pidfds:
            poll.register(pidfd, select.POLLIN)
        waiting = len(pidfds)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            for pidfd, _ in poll.poll(left_s * 1000):
                poll.unregister(pidfd)
                waiting -= 1
        return bool(pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def find_processes(instance: int) -> Iterator[Process]:
    """Yield every living process that carries the instance number in its tag."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := look_at(int(entry), instance)) is not None:
            yield process


def look_at(pid: int, instance: int) -> Process | None:
    """Return what a process is, None when it is dead or not of this instance."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    line = next((line for line in limits.splitlines() if line.startswith("Max realtime timeout")), "")
    soft = line[len("Max realtime timeout") :].split()[:1]
    if not soft or not soft[0].isdigit() or not TAG_BASE <= int(soft[0]) < 2 * TAG_BASE:
        return None
    found, spawn_id = divmod(int(soft[0]) - TAG_BASE, 1 << TAG_INSTANCE_SHIFT)
    fields = _stat(pid)
    if found != instance or fields is None:
        return None
    return Process(pid, int(fields[19]), spawn_id)


def _seen(pid: int) -> Process | None:
    """Return what a process is that has no tag to be known by."""
    fields = _stat(pid)
    return None if fields is None else Process(pid, int(fields[19]), None)


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``stat`` behind the name; None when the process is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 19 and fields[0] not in "ZX" else None


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return os.geteuid()


def _variable(pid: int, name: bytes) -> str | None:
    """Return a variable of a process's environment; None where it is not there, or not ours to read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((item[len(name) :].decode(errors="replace") for item in environment if item.startswith(name)), None)

"""Taking over what a killed keeper left: found here, before the next keeper starts, and handed to it.

Theory of operation
-------------------
A keeper that ends in order removes its lock file; one that was killed leaves it, with its instance number, and beside
it the *book* (``keeper/book.py``): which processes were whose, which of them are main processes, and which of those
had said READY. ``run`` takes the dead keeper's lock and keeps it, so that of two at once only one adopts. Then it looks
for every process that carries the instance number in its tag (soft RLIMIT_RTTIME, ``keeper/protocol.py``).

A *life* goes on when its main process is alive: the pid that the book names, and behind it the tag of the very spawn
(or, where ``MAINPID`` or a pid file named another process, the start time that the book names). It is held by a pidfd
and then looked at again, so that it cannot be another by now. What else there is of the unit belongs to that life. Its
output pipe is opened through /proc, its notify socket is bound again at the old path by the keeper.

What is left of a unit without its main process is no life: it is ended (TERM, ``GRACE_S``, KILL in rounds) before
anything is started beside it, unless ``kill-mode = "process"`` says that it may stay.

The new keeper goes on under the dead one's instance number, so that all tags stay true, and its spawn ids are above all
that were seen. What it gets is the state that a keeper hands over when it replaces itself (``keeper/handover.py``).
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from supervisord_py.core.events import Adopted
from supervisord_py.keeper.protocol import STATE_VERSION, TAG_BASE, TAG_INSTANCE_SHIFT

GRACE_S = 10.0
ROUNDS_MAX = 50
"""Rounds of SIGKILL before what is still there is called unkillable."""
LOCK_WAIT_S = 2.0
"""How long what a dead keeper was just making may hold its lock."""
POLL_S = 0.02
LEFT_BY_NAME = "SUPERVISORD_PY_UNIT="


class Process(Struct, frozen=True):
    """A living process with the dead keeper's tag; ``start`` is its start time, as /proc says it."""

    pid: int
    start: int
    spawn_id: int


class Spawn(Struct, frozen=True):
    """A line of the book."""

    id: int
    unit: str
    role: str
    pid: int
    main_pid: int
    main_start: int = 0
    invocation: str | None = None
    cgroups: list[str] = []
    ready: bool = False
    over: bool = False
    notify: tuple[str, str] | None = None


class Book(Struct):
    """What the dead keeper had written: its spawns by id, and whose the processes are that carry an id."""

    spawns: dict[int, Spawn] = {}
    units: dict[int, str] = {}

    def unit_of(self, process: Process) -> str | None:
        return self.units.get(process.spawn_id)


class Life(Struct, frozen=True):
    """A life that goes on: its main process, held, and everything else of the unit, held too."""

    spawn: Spawn
    main: Process
    pidfds: dict[int, int]
    tags: list[int]
    output: tuple[int, int] | None = None


class Leftover(Struct, frozen=True):
    """A process that was ended; ``unit`` None where nobody knows whose it was."""

    pid: int
    unit: str | None


class LostKeeper(Struct):
    """A keeper that did not end in order. ``lock`` is its lock, which is ours now."""

    pid: int
    instance: int
    lock: int
    lives: list[Life] = []
    ended: list[Leftover] = []
    left: list[Leftover] = []
    """Of units that may leave processes behind (``kill-mode = "process"``)."""
    unseen: list[Leftover] = []
    """Main processes whose end nobody saw."""
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


def take_over(lost: LostKeeper, runtime: Path, may_stay: Callable[[str], bool]) -> None:
    """Find the lives that go on, and end what else the dead keeper left.

    Args:
        lost: The dead keeper; what is found is put into it.
        runtime: Where its book is.
        may_stay: Whether processes of a unit are left alone when its main process is gone.
    """
    book = read_book(runtime / "book")
    processes = list(find_processes(lost.instance))
    lost.last_id = max([*book.spawns, *book.units, *(process.spawn_id for process in processes)], default=0)
    units: dict[str | None, list[Process]] = {}
    for process in processes:
        units.setdefault(book.unit_of(process) or _unit_by_name(process.pid), []).append(process)
    for unit, members in units.items():
        life = None if unit is None else _find_life(book, unit, members, lost.instance)
        if life is not None:
            lost.lives.append(life)
        elif unit is not None and may_stay(unit):
            lost.left += [Leftover(process.pid, unit) for process in members]
        else:
            lost.ended += [Leftover(process.pid, unit) for process in members]
    living = {process.pid for process in processes}
    mains = (spawn for spawn in book.spawns.values() if spawn.role == "main" and not spawn.over)
    lost.unseen = [Leftover(spawn.main_pid, spawn.unit) for spawn in mains if spawn.main_pid not in living]


def read_book(path: Path) -> Book:
    """Read what the dead keeper had written; a line that is cut, or no book, is not an error."""
    book = Book()
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return book
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if "spawn" in entry:
                spawn = msgspec.convert(entry["spawn"], Spawn)
                book.spawns[spawn.id] = spawn
                book.units[spawn.id] = spawn.unit
            else:
                book.units |= dict.fromkeys(map(int, entry["tags"]), str(entry["unit"]))
    return book


def _find_life(book: Book, unit: str, members: list[Process], instance: int) -> Life | None:
    """Return the unit's life, held: of its newest main process that is alive and is what the book says it is."""
    living = {process.pid: process for process in members}
    for spawn in sorted(book.spawns.values(), key=lambda spawn: -spawn.id):
        main = living.get(spawn.main_pid)
        if spawn.unit != unit or spawn.role != "main" or spawn.over or main is None:
            continue
        is_same = main.start == spawn.main_start if spawn.main_start else main.spawn_id == spawn.id
        if not is_same:
            continue
        pidfds = {process.pid: pidfd for process in members if (pidfd := hold(process, instance)) is not None}
        if main.pid not in pidfds:
            for pidfd in pidfds.values():
                os.close(pidfd)
            return None
        tags = sorted({spawn.id, *(process.spawn_id for process in members)})
        outputs = (_open_output(process.pid) for process in sorted(members, key=lambda one: one.pid != main.pid))
        return Life(spawn, main, pidfds, tags, next(filter(None, outputs), None))
    return None


def hold(process: Process, instance: int) -> int | None:
    """Open a pidfd of exactly this process; None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    if look_at(process.pid, instance) == process:
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


def hand_over(lost: LostKeeper, access_of: Callable[[str], str]) -> int:
    """Return an inheritable memfd with everything that the next keeper goes on with.

    Args:
        lost: What was found; its descriptors become inheritable.
        access_of: Whose notifications a unit listens to.
    """
    fds = [lost.lock]
    units, spawns, pids = [], [], []
    now_ns, boot_ns = time.monotonic_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    for life in lost.lives:
        spawn, main = life.spawn, life.main
        fds += [*life.pidfds.values(), *(life.output or ())]
        path = None if spawn.notify is None else spawn.notify[0]
        age_ns = boot_ns - main.start * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        units.append(
            {
                "name": spawn.unit,
                "output": life.output,
                "notify": None if path is None else [path, None, access_of(spawn.unit), 0],
                "uid": _uid(main.pid),
                "cgroups": dict.fromkeys(spawn.cgroups, False),
                "main": spawn.id,
                "children": [],
                "followed": list(life.pidfds.items()),
                "killing": None,
                "signalled": [],
                "told_empty": False,
                "adopted": True,
                "tags": life.tags,
                "invocations": [spawn.invocation] if spawn.invocation else [],
                "groups": [],
            }
        )
        spawns.append(
            {
                "id": spawn.id,
                "unit": spawn.unit,
                "role": "main",
                "pid": main.pid,
                "main_pid": main.pid,
                "main_start": main.start,
                "started_ns": now_ns - max(0, age_ns),
                "report": None,
                "cgroups": spawn.cgroups,
                "tagged": True,
                "failure": None,
                "ready": spawn.ready,
                "invocation": spawn.invocation,
            }
        )
        pids.append([main.pid, spawn.id])
    ids = sorted({lost.last_id, *(tag for life in lost.lives for tag in life.tags)})
    inventory = {"units": units, "strays": [], "spawns": spawns, "pids": pids, "touched": [], "ids": ids}
    state = {
        "version": STATE_VERSION,
        "fds": fds,
        "lock": lost.lock,
        "instance": lost.instance,
        "inventory": inventory,
        "lost": report(lost),
    }
    memfd = os.memfd_create("supervisord-py-adoption")
    with open(memfd, "wb", closefd=False) as file:
        file.write(json.dumps(state).encode("ascii"))
    for fd in (memfd, *fds):
        os.set_inheritable(fd, True)
    return memfd


def report(lost: LostKeeper) -> dict[str, Any]:
    """Return what the first manager is told: the lives for the core, and everything for the record."""
    return {
        "pid": lost.pid,
        "instance": lost.instance,
        "last_id": lost.last_id,
        "adopted": [
            {
                "unit": life.spawn.unit,
                "spawn_id": life.spawn.id,
                "pid": life.main.pid,
                "invocation": life.spawn.invocation or "",
                "ready": life.spawn.ready,
                "leftover": len(life.pidfds) > 1,
            }
            for life in lost.lives
        ],
        "ended": msgspec.to_builtins(lost.ended),
        "left": msgspec.to_builtins(lost.left),
        "unseen": msgspec.to_builtins(lost.unseen),
    }


def adopted_lives(lost: Mapping[str, Any] | None) -> tuple[Adopted, ...]:
    """Return the lives of a report, for the core."""
    return () if lost is None else tuple(msgspec.convert(life, Adopted) for life in lost["adopted"])


def end_leftovers(lost: LostKeeper) -> list[Leftover]:
    """End every process of the dead keeper that is of no life and may not stay; returns those that would not die."""
    kept = {tag for life in lost.lives for tag in life.tags}
    staying = {leftover.pid for leftover in lost.left}

    def condemned() -> list[Process]:
        return [p for p in find_processes(lost.instance) if p.spawn_id not in kept and p.pid not in staying]

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


def _unit_by_name(pid: int) -> str | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    name = LEFT_BY_NAME.encode()
    return next((item[len(name) :].decode(errors="replace") for item in environment if item.startswith(name)), None)

"""What a killed keeper left: its processes are found by their tag and ended, so that no second copy is started beside
them.

A keeper that ends in order removes its lock file; one that was killed leaves it, with its instance number. All its
processes carry that number in the soft RLIMIT_RTTIME (``keeper/protocol.py``), however they have fled. They cannot be
supervised any more (nobody is told how they end), so they are asked to end, given ``GRACE_S``, and then killed in
rounds until none is left.
"""

import contextlib
import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from supervisord_py.keeper.protocol import TAG_BASE, TAG_INSTANCE_SHIFT

GRACE_S = 10.0
ROUNDS_MAX = 50
"""Rounds of SIGKILL before what is still there is called unkillable."""


class Leftover(Struct, frozen=True):
    """A process of a dead keeper; ``unit`` None where it does not say whose it was."""

    pid: int
    unit: str | None


class LostKeeper(Struct, frozen=True):
    """A keeper that did not end in order, and what it left."""

    pid: int
    instance: int
    processes: tuple[Leftover, ...] = ()


def find_lost_keeper(runtime: Path) -> LostKeeper | None:
    """Return the dead keeper of this runtime folder; None when the last one ended in order, or one lives."""
    try:
        lock = os.open(runtime / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        words = os.read(lock, 64).split()
    except OSError:
        return None
    finally:
        os.close(lock)
    if len(words) < 2 or not all(word.isdigit() for word in words[:2]):
        return None
    pid, instance = int(words[0]), int(words[1])
    return LostKeeper(pid, instance, tuple(_leftovers(instance)))


def end_leftovers(keeper: LostKeeper) -> list[Leftover]:
    """End every process of a dead keeper; returns those that would not die."""
    _signal_all(keeper.instance, signal.SIGTERM, GRACE_S)
    for _ in range(ROUNDS_MAX):
        if not _signal_all(keeper.instance, signal.SIGKILL, 1.0):
            return []
    return list(_leftovers(keeper.instance))


def _signal_all(instance: int, number: signal.Signals, wait_s: float) -> bool:
    """Signal each process of the instance and wait for their ends; returns whether there was one."""
    pidfds: list[int] = []
    try:
        for leftover in _leftovers(instance):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(leftover.pid)
                pidfds.append(pidfd)
                # Looked at again: the pid may be another process's since the scan.
                if _tag_instance(leftover.pid) == instance:
                    signal.pidfd_send_signal(pidfd, number)
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        deadline = time.monotonic() + wait_s
        waiting = set(pidfds)
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            ended, _, _ = select.select(list(waiting), [], [], left_s)
            waiting -= set(ended)
        return bool(pidfds)
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _leftovers(instance: int) -> Iterator[Leftover]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and _tag_instance(int(entry)) == instance and not _is_dead(int(entry)):
            yield Leftover(int(entry), _unit_of(int(entry)))


def _tag_instance(pid: int) -> int | None:
    """Return the instance number in a process's tag; None when it has none."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except OSError:
        return None
    line = next((line for line in limits.splitlines() if line.startswith("Max realtime timeout")), "")
    soft = line[len("Max realtime timeout") :].split()[:1]
    if not soft or not soft[0].isdigit() or not TAG_BASE <= int(soft[0]) < 2 * TAG_BASE:
        return None
    return (int(soft[0]) - TAG_BASE) >> TAG_INSTANCE_SHIFT


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _unit_of(pid: int) -> str | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = b"SUPERVISORD_PY_UNIT="
    return next((item[len(prefix) :].decode() for item in environment.split(b"\0") if item.startswith(prefix)), None)

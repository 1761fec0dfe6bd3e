"""Resource limits: their names, and what a running process really has.

What was asked for and what holds may differ: best-effort limits are clamped, a program lowers its own, an operator
changed one. ``status`` and ``show`` tell what the kernel says, read from ``/proc/PID/limits``, which any user may
read (``prlimit(2)`` of another user's process needs CAP_SYS_RESOURCE, which root in a container often lacks), and
with psutil for everything else.
"""

import contextlib
import resource
from collections.abc import Mapping
from pathlib import Path

import psutil
from msgspec import Struct

from supervisord_py.model.unit import Limit

INFINITY = -1
"""Infinity in a request to the keeper; the kernel's own number for it as Python has it."""

RLIMIT_NUMBERS: dict[str, int] = {
    "cpu": resource.RLIMIT_CPU,
    "fsize": resource.RLIMIT_FSIZE,
    "data": resource.RLIMIT_DATA,
    "stack": resource.RLIMIT_STACK,
    "core": resource.RLIMIT_CORE,
    "rss": resource.RLIMIT_RSS,
    "nproc": resource.RLIMIT_NPROC,
    "nofile": resource.RLIMIT_NOFILE,
    "memlock": resource.RLIMIT_MEMLOCK,
    "as": resource.RLIMIT_AS,
    "locks": 10,  # RLIMIT_LOCKS: ignored by the kernel since 2.4.25, still settable; Python does not name it
    "sigpending": resource.RLIMIT_SIGPENDING,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
}

PROC_NAMES: dict[str, str] = {
    "Max cpu time": "cpu",
    "Max file size": "fsize",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "rss",
    "Max processes": "nproc",
    "Max open files": "nofile",
    "Max locked memory": "memlock",
    "Max address space": "as",
    "Max file locks": "locks",
    "Max pending signals": "sigpending",
    "Max msgqueue size": "msgqueue",
    "Max nice priority": "nice",
    "Max realtime priority": "rtprio",
    "Max realtime timeout": "rttime",
}
"""Names in ``/proc/PID/limits``. Source: Linux fs/proc/base.c, lnames."""

TAG_FLOOR = 1 << 61
"""A soft rttime from here on is the mark by which the keeper knows its processes, not a limit that somebody asked
for."""

IO_CLASSES = {0: "none", 1: "realtime", 2: "best-effort", 3: "idle"}


class LiveLimits(Struct, frozen=True):
    """What one process has now; what cannot be read is None or missing."""

    rlimits: dict[str, Limit] = {}
    nice: int | None = None
    io_class: str | None = None
    io_priority: int | None = None
    cpu_affinity: tuple[int, ...] = ()
    oom_score_adjust: int | None = None


def parse_proc_limits(text: str) -> dict[str, Limit]:
    """Read ``/proc/PID/limits``; the keeper's mark in rttime reads as no limit."""
    limits = {}
    for line in text.splitlines()[1:]:
        name = PROC_NAMES.get(line[:25].rstrip())
        words = line[25:].split()
        if name is None or len(words) < 2:
            continue
        soft, hard = (None if word == "unlimited" else int(word) for word in words[:2])
        if name == "rttime" and soft is not None and soft >= TAG_FLOOR:
            soft = None
        limits[name] = Limit(soft, hard)
    return limits


def change_limits(pid: int, limits: Mapping[str, Limit]) -> str | None:
    """Give a running process other limits; of ``rttime`` the hard one only, the soft one is the keeper's mark.

    Returns:
        What speaks against it, in words; a process that is gone needs none.
    """
    for name, limit in limits.items():
        number = RLIMIT_NUMBERS[name]
        soft, hard = (INFINITY if value is None else value for value in (limit.soft, limit.hard))
        try:
            if name == "rttime":
                soft = resource.prlimit(pid, number)[0]
            resource.prlimit(pid, number, (soft, hard))
            if resource.prlimit(pid, number) != (soft, hard):
                return f"the kernel did not keep {name} = {format_limit(limit)}"
        except ProcessLookupError:
            return None
        except (OSError, ValueError) as error:
            return f"{name} = {format_limit(limit)}: {error} (process {pid})"
    return None


def lowered_rttime(pid: int) -> int | None:
    """Return the soft rttime of a process [us] where that is too low to be the keeper's mark; None where it is not, or
    there is no such process."""
    try:
        limit = parse_proc_limits((Path("/proc") / str(pid) / "limits").read_text()).get("rttime")
    except OSError:
        return None
    return None if limit is None else limit.soft


def describe_live(pid: int) -> LiveLimits | None:
    """Return what the process has now; None when there is no such process."""
    proc = Path("/proc") / str(pid)
    try:
        rlimits = parse_proc_limits((proc / "limits").read_text())
        process = psutil.Process(pid)
    except (OSError, psutil.NoSuchProcess):
        return None
    nice = io_class = io_priority = oom_score_adjust = None
    affinity: tuple[int, ...] = ()
    # Each of these may vanish or be refused by itself; what can be told is told.
    with contextlib.suppress(psutil.Error):
        nice = int(process.nice())
    with contextlib.suppress(psutil.Error):
        io = process.ionice()
        io_class, io_priority = IO_CLASSES.get(int(io.ioclass)), int(io.value)
    with contextlib.suppress(psutil.Error):
        affinity = tuple(process.cpu_affinity() or ())
    with contextlib.suppress(OSError, ValueError):
        oom_score_adjust = int((proc / "oom_score_adj").read_text())
    return LiveLimits(rlimits, nice, io_class, io_priority, affinity, oom_score_adjust)


def format_limit(limit: Limit) -> str:
    """Write a limit as a unit file has it: ``1024:524288``, or one value where both are the same."""
    soft, hard = ("infinity" if value is None else str(value) for value in (limit.soft, limit.hard))
    return soft if soft == hard else f"{soft}:{hard}"

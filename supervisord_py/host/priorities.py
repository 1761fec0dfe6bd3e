"""Who goes first: niceness, CPUs, scheduling and I/O priorities, of a process that is made and of those that run.

A child sets them itself, with the keeper's privileges (``keeper.ops``); ``supctl set`` sets them on each thread of
a unit. Source: systemd.exec(5), OOMScoreAdjust=, IOSchedulingClass=, CPUSchedulingPolicy=; ioprio_set(2).
"""

import contextlib
import ctypes
import os
from typing import Any

from supervisord_py.model.context import Priorities
from supervisord_py.model.unit import ExecContext

IO_CLASSES = {"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}
IO_PRIORITY = 4
"""Of a class without a priority, as in systemd."""
POLICIES = {
    "other": os.SCHED_OTHER,
    "batch": os.SCHED_BATCH,
    "idle": os.SCHED_IDLE,
    "fifo": os.SCHED_FIFO,
    "rr": os.SCHED_RR,
}
_libc = ctypes.CDLL(None, use_errno=True)
_WHO_PROCESS = 1
_CLASS_SHIFT = 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30}.get(os.uname().machine)


def priority_operations(context: ExecContext, *, may_fail: bool) -> list[dict[str, Any]]:
    """Return what the child does; niceness that must be had is a step of its own."""
    operations: list[dict[str, Any]] = []
    wanted = context.priorities
    if may_fail and context.nice is not None:
        operations.append(
            {"step": "nice", "do": "call", "name": "setpriority", "args": [os.PRIO_PROCESS, 0, context.nice]}
        )
    if wanted.oom_score_adjust is not None:
        text = str(wanted.oom_score_adjust)
        operations.append(
            {"step": "oom", "key": "oom-score-adjust", "do": "write", "path": "/proc/self/oom_score_adj", "text": text}
        )
    if wanted.cpu_policy is not None:
        priority = cpu_priority(wanted)
        policy = {"do": "scheduler", "policy": POLICIES[wanted.cpu_policy], "priority": priority}
        operations.append({"step": "scheduler", "key": "cpu-scheduling-policy", **policy})
    if wanted.cpu_affinity:
        affinity = {"do": "affinity", "cpus": list(wanted.cpu_affinity)}
        operations.append({"step": "affinity", "key": "cpu-affinity", **affinity})
    if (io := io_priority(wanted)) is not None:
        value = io[0] << _CLASS_SHIFT | io[1]
        call = {"do": "call", "name": "syscall", "args": [_IOPRIO_SET, _WHO_PROCESS, 0, value]}
        key = "io-scheduling-priority" if wanted.io_class is None else "io-scheduling-class"
        operations.append({"step": "ioprio", "key": key, **call})
    return [{**operation, "may_fail": may_fail} for operation in operations]


def cpu_priority(wanted: Priorities) -> int:
    """Return the static priority: only fifo and rr have one."""
    return (wanted.cpu_priority or 1) if wanted.cpu_policy in ("fifo", "rr") else 0


def io_priority(wanted: Priorities) -> tuple[int, int] | None:
    """Return class and priority for I/O; None when neither is written."""
    if wanted.io_class is None and wanted.io_priority is None:
        return None
    io_class = IO_CLASSES[wanted.io_class or "best-effort"]
    has_levels = io_class in (IO_CLASSES["realtime"], IO_CLASSES["best-effort"])
    return io_class, (IO_PRIORITY if wanted.io_priority is None else wanted.io_priority) if has_levels else 0


def change_priorities(pid: int, old_context: ExecContext, new_context: ExecContext) -> str | None:
    """Give a running process, with all its threads, what the new text says and the old does not.

    Returns:
        What speaks against it, in words; a process that is gone needs none.
    """
    old, new = old_context.priorities, new_context.priorities
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return None
    key = ""
    try:
        if new.oom_score_adjust != old.oom_score_adjust:
            key = f"oom-score-adjust = {new.oom_score_adjust}"
            with open(f"/proc/{pid}/oom_score_adj", "w") as file:
                file.write(str(new.oom_score_adjust))
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                if new_context.nice != old_context.nice:
                    key = f"nice = {new_context.nice}"
                    os.setpriority(os.PRIO_PROCESS, thread, new_context.nice or 0)
                if new.cpu_affinity != old.cpu_affinity:
                    key = f"cpu-affinity = {' '.join(map(str, new.cpu_affinity))}"
                    os.sched_setaffinity(thread, new.cpu_affinity)
                if (new.cpu_policy, new.cpu_priority) != (old.cpu_policy, old.cpu_priority):
                    key = f"cpu-scheduling-policy = {new.cpu_policy}"
                    priority = os.sched_param(cpu_priority(new))
                    os.sched_setscheduler(thread, POLICIES[new.cpu_policy or "other"], priority)
                if (io := io_priority(new)) != io_priority(old) and io is not None:
                    key = f"io-scheduling-class = {new.io_class or 'best-effort'}"
                    _set_io_priority(thread, io)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{key}: {(error.strerror or str(error)).lower()} (process {pid})"
    return None


def _set_io_priority(thread: int, io: tuple[int, int]) -> None:
    """Of one thread: psutil knows those of whole processes only, which is their first thread's."""
    if _libc.syscall(_IOPRIO_SET, _WHO_PROCESS, thread, io[0] << _CLASS_SHIFT | io[1]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def is_known_before(old: ExecContext, new: ExecContext) -> bool:
    """Say whether what ``new`` leaves out was not set by ``old`` either: what a process had before is not known."""
    names = Priorities.__struct_fields__
    pairs = [(getattr(old.priorities, name), getattr(new.priorities, name)) for name in names]
    return all(after not in (None, ()) or before in (None, ()) for before, after in [*pairs, (old.nice, new.nice)])

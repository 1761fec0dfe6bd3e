"""What whole trees of processes use now: memory, CPU time, tasks.

A sample is one read of ``/proc/PID/stat`` a process: it holds resident memory, CPU times, threads and the start time
together, in 13 microseconds, where psutil's ``oneshot`` reads three files in 84 (measured; ``status`` of a thousand
units asks for a thousand). psutil is asked for what is wanted of one process at a time (``details``): descriptors,
I/O, memory that is shared fairly.

A process that vanished between the list and the read is not an error. Memory is resident memory, so pages shared
within a tree count more than once; CPU time is that of the living.
"""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import psutil
from msgspec import Struct

from supervisord_py.host.facade import Usage

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class ProcessUsage(NamedTuple):
    """One process; ``start_ticks`` tells it from a later one with the same pid."""

    memory_bytes: int
    cpu_ns: int
    tasks: int
    start_ticks: int


class ProcessDetails(Struct, frozen=True):
    """What is too dear for a sample of everything; None where it cannot be known."""

    pid: int
    command: str
    created: float
    shared_fairly_bytes: int | None = None
    descriptors: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None


def parse_stat(data: bytes) -> ProcessUsage:
    """Read the text of ``/proc/PID/stat``. The name may hold anything, so fields are counted from its last bracket.

    Source: proc_pid_stat(5), fields 14, 15, 20, 22 and 24.
    """
    fields = data[data.rindex(b")") + 2 :].split(None, 22)
    return ProcessUsage(
        memory_bytes=max(0, int(fields[21])) * PAGE_SIZE,
        cpu_ns=(int(fields[11]) + int(fields[12])) * TICK_NS,
        tasks=int(fields[17]),
        start_ticks=int(fields[19]),
    )


def read_process(pid: int) -> ProcessUsage | None:
    """Return what the process uses now; None when it is gone."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        # Between its end and its burial the kernel may say either.
        return None
    try:
        return parse_stat(os.read(fd, 2048))
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)


def sample(trees: Mapping[str, Sequence[int]], started: Mapping[int, int] | None = None) -> dict[str, Usage]:
    """Return what each unit's processes use together; a unit of which no process is left has None everywhere.

    Args:
        trees: Process ids by unit.
        started: Start times [ticks since boot] by pid, where they are known: another process that has the pid now is
            passed over.
    """
    usages = {}
    for unit, pids in trees.items():
        memory_bytes = cpu_ns = tasks = 0
        for pid in pids:
            process = read_process(pid)
            if process is None or (
                started is not None and started.get(pid, process.start_ticks) != process.start_ticks
            ):
                continue
            memory_bytes += process.memory_bytes
            cpu_ns += process.cpu_ns
            tasks += process.tasks
        usages[unit] = Usage(memory_bytes, cpu_ns, tasks) if tasks else Usage()
    return usages


def details(pid: int) -> ProcessDetails | None:
    """Return what psutil can tell of one process; None when it is gone."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            command = " ".join(process.cmdline()) or f"[{process.name()}]"
            created = process.create_time()
            shared_fairly = descriptors = read_bytes = write_bytes = None
            try:
                shared_fairly = process.memory_full_info().pss
                descriptors = process.num_fds()
                counters = process.io_counters()
                read_bytes, write_bytes = counters.read_bytes, counters.write_bytes
            except psutil.AccessDenied:
                pass  # another user's process, and we are not root: what is public was read
    except psutil.NoSuchProcess:
        return None
    return ProcessDetails(pid, command, created, shared_fairly, descriptors, read_bytes, write_bytes)

"""What ``supctl stats`` tells in numbers: what the supervisor itself needs, and each unit, and who counted it.

A number of a unit is the kernel's where the unit has a control group that counts it (processes that have ended are in
it then), else the sum over its processes that live; each says which.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; proc_pid_io(5).
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from supervisord_py.host.facade import ProcessFigures, SupervisorFigures, UnitFigures
from supervisord_py.host.journal_disk import RESERVE_NAME
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.peers import read_start_ns
from supervisord_py.host.places import Places
from supervisord_py.host.resources import Controller, UnitResources
from supervisord_py.host.usage import read_process, sample

TREE = "processes"
"""The word for a sum over processes."""

_USEC_NS = 1000


class Figures:
    """Counts for the daemon.

    Args:
        journal: Where it stands.
        places: The folders.
        resources: The units' groups.
        keeper_pid: The keeper.
    """

    def __init__(self, journal: Journal, places: Places, resources: UnitResources, keeper_pid: int) -> None:
        self._journal, self._places, self._resources, self._keeper_pid = journal, places, resources, keeper_pid

    async def of_supervisor(self) -> SupervisorFigures:
        journal = self._journal
        last = max(journal.next_seq - 1, 0)
        journal_bytes, output_bytes = await asyncio.to_thread(
            lambda: (folder_bytes(self._places.journal, without=RESERVE_NAME), folder_bytes(self._places.log))
        )
        return SupervisorFigures(
            keeper=_figures_of(self._keeper_pid),
            manager=_figures_of(os.getpid()),
            last_seq=last,
            unwritten=max(last - journal.journalled, 0),
            unsynced=max(last - journal.durable, 0),
            lost=journal.lost,
            journal_bytes=journal_bytes,
            output_bytes=output_bytes,
        )

    async def of_units(self, trees: Mapping[str, Sequence[int]]) -> dict[str, UnitFigures]:
        return await asyncio.to_thread(
            lambda: {unit: unit_figures(pids, self._counted(unit)) for unit, pids in trees.items()}
        )

    def _counted(self, unit: str) -> dict[str, tuple[int, str]]:
        return read_counters(lambda controller: self._resources.counting_group(unit, controller))


def unit_figures(pids: Sequence[int], counted: Mapping[str, tuple[int, str]]) -> UnitFigures:
    """Return what a unit uses: by what its groups have ``counted`` (number and mechanism by name), else by its
    processes."""
    if not pids:
        return UnitFigures()
    usage = sample({"": pids})[""]
    read, written = _io_of(pids)
    summed = {"memory": usage.memory_bytes, "cpu": usage.cpu_ns, "tasks": usage.tasks, "read": read, "write": written}
    found = {name: counted.get(name, (value, TREE)) for name, value in summed.items()}
    return UnitFigures(
        memory_bytes=found["memory"][0],
        cpu_ns=found["cpu"][0],
        tasks=found["tasks"][0],
        read_bytes=found["read"][0],
        write_bytes=found["write"][0],
        counted_by={name: mechanism for name, (value, mechanism) in found.items() if value is not None},
    )


def _io_of(pids: Sequence[int]) -> tuple[int | None, int | None]:
    """Return what processes have read from disks and written to them [B]; None where that may not be known."""
    read = written = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/io").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:  # another user's, and we are not root
            return None, None
        fields = dict(line.split(": ", 1) for line in text.splitlines())
        read, written = read + int(fields["read_bytes"]), written + int(fields["write_bytes"])
    return read, written


def folder_bytes(folder: Path, *, without: str = "") -> int:
    """Return how much the files of a folder hold [B], but for one; what cannot be seen does not count."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in (each for each in entries if each.name != without):
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _figures_of(pid: int) -> ProcessFigures:
    found, started_ns = read_process(pid), read_start_ns(pid)
    if found is None or started_ns is None:
        return ProcessFigures(pid)
    uptime_ms = max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started_ns) // 1_000_000
    return ProcessFigures(pid, uptime_ms, found.memory_bytes, found.cpu_ns)


def read_counters(folder: Callable[[Controller], tuple[str, str] | None]) -> dict[str, tuple[int, str]]:
    """Return what the kernel has counted of a unit, with the mechanism.

    Args:
        folder: The unit's group for a kind of bound, and the mechanism; None where it has none.
    """
    found: dict[str, tuple[int, str]] = {}
    for controller, read in _READERS.items():
        place = folder(controller)
        if place is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
                found |= {name: (value, place[1]) for name, value in read(Path(place[0])).items()}
    return found


def _memory(folder: Path) -> dict[str, int]:
    for name in ("memory.current", "memory.usage_in_bytes"):
        with contextlib.suppress(FileNotFoundError):
            return {"memory": int((folder / name).read_text())}
    return {}


def _cpu(folder: Path) -> dict[str, int]:
    fields = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return {"cpu": int(fields["usage_usec"]) * _USEC_NS}


def _tasks(folder: Path) -> dict[str, int]:
    return {"tasks": int((folder / "pids.current").read_text())}


def _io(folder: Path) -> dict[str, int]:
    words = [word.partition("=") for word in (folder / "io.stat").read_text().split()]
    return {
        name: sum(int(value) for key, _, value in words if key == field)
        for name, field in (("read", "rbytes"), ("write", "wbytes"))
    }


_READERS: dict[Controller, Callable[[Path], dict[str, int]]] = {
    Controller.MEMORY: _memory,
    Controller.CPU: _cpu,
    Controller.TASKS: _tasks,
    Controller.IO: _io,
}

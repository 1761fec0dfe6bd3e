"""Usage of process trees: one read a process, and nobody minds who is gone."""

import os
import subprocess

import psutil
import pytest

from supervisord_py.host.facade import Usage
from supervisord_py.host.usage import PAGE_SIZE, TICK_NS, details, parse_stat, read_process, sample

NO_PID = 2**22 + 1
STAT = b"7 (evil) R 1 (x) S 1 7 7 0 -1 4194560 110 0 0 0 250 50 0 0 20 0 3 0 4242 2600960 211 1844674407370955161 0 0\n"


def test_a_name_may_hold_anything() -> None:
    """Brackets and spaces in a process's name shift no field."""
    usage = parse_stat(STAT)
    assert (usage.memory_bytes, usage.cpu_ns) == (211 * PAGE_SIZE, 300 * TICK_NS)
    assert (usage.tasks, usage.start_ticks) == (3, 4242)


def test_the_reading_is_psutil_s() -> None:
    """Threads and start time are what psutil says; memory and CPU time are of its size."""
    usage = read_process(os.getpid())
    process = psutil.Process()
    assert usage is not None
    assert usage.tasks == process.num_threads()
    assert abs(usage.start_ticks * TICK_NS / 1e9 + psutil.boot_time() - process.create_time()) < 0.1
    assert 0.5 < usage.memory_bytes / process.memory_info().rss < 2
    times = process.cpu_times()
    assert abs(usage.cpu_ns / 1e9 - times.user - times.system) < 1


def test_a_tree_is_the_sum_of_its_living_processes() -> None:
    """Who has gone is passed over; no processes, no usage; a later process with the same pid does not count."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        own, child = read_process(os.getpid()), read_process(process.pid)
        assert own is not None and child is not None
        usages = sample({"both": [os.getpid(), process.pid, NO_PID], "none": [NO_PID], "idle": []})
        assert usages["both"].tasks == own.tasks + child.tasks
        assert usages["both"].cpu_ns is not None and usages["both"].cpu_ns >= own.cpu_ns + child.cpu_ns
        assert usages["none"] == usages["idle"] == Usage(None, None, None)
        started = {process.pid: child.start_ticks - 1}
        assert sample({"other": [process.pid]}, started)["other"] == Usage()
        assert sample({"same": [process.pid]}, {process.pid: child.start_ticks})["same"].tasks == 1
    finally:
        process.kill()
        process.wait()


def test_a_process_whose_stat_cannot_even_be_opened_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """status failed with ProcessLookupError: between end and burial the kernel says so where it opens the file."""

    def dying(*_: object) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "open", dying)
    assert read_process(os.getpid()) is None


def test_details_of_one_process() -> None:
    """psutil tells what a sample leaves out; of a process that is gone nothing."""
    told = details(os.getpid())
    assert told is not None
    assert told.descriptors is not None and told.descriptors > 0
    assert told.shared_fairly_bytes is not None and told.shared_fairly_bytes > 0
    assert "python" in told.command
    assert details(NO_PID) is None

"""Limits: the names, and the kernel's table."""

import resource
from pathlib import Path

from supervisord_py.host.limits import (
    PROC_NAMES,
    RLIMIT_NUMBERS,
    describe_live,
    format_limit,
    parse_proc_limits,
)
from supervisord_py.model.unit import Limit

NO_PID = 2**22 + 1
"""Above the largest process id there can be."""


def test_every_limit_has_its_number_and_the_kernel_s_name() -> None:
    """The sixteen limits of Linux are all there, each once."""
    assert sorted(RLIMIT_NUMBERS.values()) == list(range(16))
    assert set(PROC_NAMES.values()) == set(RLIMIT_NUMBERS)
    named = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    for name in named & set(RLIMIT_NUMBERS):
        assert RLIMIT_NUMBERS[name] == getattr(resource, f"RLIMIT_{name.upper()}")


def test_the_kernel_s_table_reads_as_the_system_calls_do() -> None:
    """``/proc/PID/limits`` says of us what getrlimit says."""
    limits = parse_proc_limits(Path("/proc/self/limits").read_text())
    assert set(limits) == set(RLIMIT_NUMBERS)
    for name, limit in limits.items():
        if name == "locks":
            continue
        assert limit == Limit(*(None if value == -1 else value for value in resource.getrlimit(RLIMIT_NUMBERS[name])))


def test_the_keeper_s_mark_is_no_limit() -> None:
    """A soft rttime that says whose a process is reads as no limit; a real one reads as it is."""
    head = "Limit                     Soft Limit           Hard Limit           Units     \n"
    line = "Max realtime timeout      {:<20} unlimited            us        \n"
    assert parse_proc_limits(head + line.format((1 << 61) + 12345)) == {"rttime": Limit(None, None)}
    assert parse_proc_limits(head + line.format(5000)) == {"rttime": Limit(5000, None)}


def test_limits_are_written_as_in_unit_files() -> None:
    """One value where both are the same, ``infinity`` for none."""
    assert format_limit(Limit(1024, 524288)) == "1024:524288"
    assert format_limit(Limit(5, 5)) == "5"
    assert format_limit(Limit(None, None)) == "infinity"
    assert format_limit(Limit(0, None)) == "0:infinity"


def test_a_process_that_is_gone_has_no_limits() -> None:
    """No process, no answer, no error."""
    assert describe_live(NO_PID) is None

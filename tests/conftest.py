"""What all tests share: a session that leaks a process fails."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.compat.execution import ledger
from tests.compat.summary import summary

# A machine under load is not a slow strategy. The examples are the same each time, so that a change is judged by what
# it changed; SUPERVISORD_PY_RANDOM=1 draws others, as the simulation's soak does.
settings.register_profile(
    "loaded",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("SUPERVISORD_PY_RANDOM"),
)
settings.load_profile("loaded")

PR_SET_CHILD_SUBREAPER = 36


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how the rows of what systemd did came out, and what else tests have found out about the whole."""
    reports = [
        (report.nodeid, word == "passed")
        for word in ("passed", "failed", "error")
        for report in terminalreporter.getreports(word)
    ]
    if (line := summary(reports)) is not None:
        terminalreporter.write_line(line)
    outcomes = []
    for report in [each for word in ("passed", "failed", "skipped") for each in terminalreporter.getreports(word)]:
        for key, value in getattr(report, "user_properties", ()):
            # What a test has to say about the whole run, wherever it ran.
            if key == "summary" and getattr(report, "when", None) == "call":
                terminalreporter.write_line(str(value))
            if key == "execution" and getattr(report, "when", None) == "call":
                outcomes.append(tuple(value))
    for line in ledger(outcomes):
        terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An ordinary user is told what only root could have tried."""
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root") is not None:
                item.add_marker(pytest.mark.skip(reason="needs root"))


def descendants(pid: int) -> list[tuple[int, str]]:
    """Return (pid, command line) of every living descendant of ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in ("Z", "X"):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[tuple[int, str]] = []
    todo = [pid]
    while todo:
        for child in parents.get(todo.pop(), []):
            todo.append(child)
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found.append((child, command.strip()))
    return found


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left_behind() -> Iterator[None]:
    """Every process that a test started, however it fled, has ended when the session ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {pid for pid, _ in descendants(os.getpid())}
    yield
    deadline = time.monotonic() + 5
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            pass
        left = [(pid, command) for pid, command in descendants(os.getpid()) if pid not in before]
        if not left or time.monotonic() > deadline:
            break
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"the tests left processes behind (killed now): {left}"

"""What the runner of Python agents costs over bare Python: memory of an agent that rests, and its start."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import BenchError, Figures
from peers import ROOT

STARTS = 40
PATIENCE_S = 30.0
BARE = "bare Python"
BARE_LOOP = "bare Python with a loop"
AGENT = "agent"
AGENT_LOOP = "agent with coroutines"
BASE = {AGENT: BARE, AGENT_LOOP: BARE_LOOP}
KINDS = {
    BARE: "import os, time\nos.write(1, b'xy')\ntime.sleep(1000)\n",
    BARE_LOOP: """
import asyncio, os

async def main():
    os.write(1, b"xy")
    await asyncio.sleep(1000)

asyncio.run(main())
""",
    AGENT: """
import os
from supervisord_py.agent import Agent

class Tested(Agent):
    every = 1000

    def setup(self):
        os.write(1, b"x")

    def run_cycle(self):
        os.write(1, b"y")
""",
}
KINDS[AGENT_LOOP] = KINDS[AGENT].replace("    def run_cycle", "    async def run_cycle")
RUNNER = ROOT / "supervisord_py" / "agent" / "start.py"


def measure_runner(kind: str, folder: Path) -> Figures:
    """Start one kind and its bare base in turn, ``STARTS`` times, and look at the memory of both at the same time.

    Raises:
        BenchError: One did not come to its own code.
    """
    base = BASE.get(kind, kind)
    commands = {each: _command(folder / str(number), each) for number, each in enumerate(dict.fromkeys((base, kind)))}
    for command in commands.values():
        _start(command)  # compiles what it imports
    times = {each: [_start(command)] for each, command in commands.items()}
    for _ in range(STARTS):
        for each, command in commands.items():
            times[each].append(_start(command))
    wall_s, cpu_s = ({each: statistics.median(column) for each, column in table.items()} for table in _columns(times))
    memory = _memory(commands)
    figures: Figures = {"runner_start_ms": wall_s[kind] * 1000, "runner_cpu_ms": cpu_s[kind] * 1000}
    figures |= {f"runner_{name}_mb": value for name, value in memory[kind].items()}
    if kind != base:
        figures |= {"runner_start_times": wall_s[kind] / wall_s[base], "runner_cpu_times": cpu_s[kind] / cpu_s[base]}
        figures |= {f"runner_more_{name}_mb": value - memory[base][name] for name, value in memory[kind].items()}
    return figures


def _columns(times: dict[str, list[tuple[float, float]]]) -> list[dict[str, list[float]]]:
    return [{each: [row[column] for row in rows] for each, rows in times.items()} for column in (0, 1)]


def _command(folder: Path, kind: str) -> list[str]:
    folder.mkdir(parents=True)
    (folder / "tested.py").write_text(KINDS[kind])
    if kind == BARE:
        return [sys.executable, "-u", str(folder / "tested.py")]
    return [sys.executable, "-u", str(RUNNER), "tested:Tested", f"--path={folder}"]


def _launch(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]})


def _hear(process: "subprocess.Popen[bytes]", sign: bytes) -> None:
    assert process.stdout is not None
    if process.stdout.read(1) != sign:
        raise BenchError(f"{process.args!r} did not come to its own code")


def _start(command: list[str]) -> tuple[float, float]:
    """Return the seconds until the code of the program's own runs: on the clock, and of a processor."""
    begun = time.monotonic()
    process = _launch(command)
    try:
        _hear(process, b"x")
        took_s = time.monotonic() - begun
        fields = Path(f"/proc/{process.pid}/schedstat").read_text().split()
    finally:
        process.kill()
        process.communicate()
    return took_s, int(fields[0]) / 1e9


def _memory(commands: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Return the memory [MB] of all of them at the same time: what they share is shared by all alike."""
    processes = {kind: _launch(command) for kind, command in commands.items()}
    try:
        for process in processes.values():
            _hear(process, b"x")
            _hear(process, b"y")
        return {kind: _rollup(process.pid) for kind, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()


def _rollup(pid: int) -> dict[str, float]:
    found = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name.lower(): int(found[name].split()[0]) / 1024 for name in ("Rss", "Pss")}

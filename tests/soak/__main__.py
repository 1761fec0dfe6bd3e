"""Run a real supervisor under real faults for a while, and say what was wrong.

python -m tests.soak                    an hour, or $SUPERVISORD_PY_SOAK_SEC
python -m tests.soak --seconds 120
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil

from supervisord_py.doctor.findings import Level
from supervisord_py.host.journal_reader import verify_directory
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until
from tests.soak.deeds import Fate, Operator
from tests.soak.units import Population, write_units
from tests.soak.verdict import Ledger, Sample, growth, judge

DEFAULT_S = 3600.0
SAMPLE_S = 5.0
TELL_S = 300.0
SPINNERS = 4
SETTLE_S = 120.0


def main() -> int:
    """Soak; the exit status is 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    default_s = float(os.environ.get("SUPERVISORD_PY_SOAK_SEC") or DEFAULT_S)
    parser.add_argument(
        "--seconds", type=float, default=default_s, help="how long (default 3600, or $SUPERVISORD_PY_SOAK_SEC)"
    )
    parser.add_argument("--seed", type=int, help="of what is done when (default: drawn, and printed)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where journal and output are put when something was wrong"
    )
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    print(f"a real supervisor for {options.seconds:.0f} s, seed {seed}", flush=True)
    wrong = soak(options.seconds, seed, options.keep or Path(tempfile.gettempdir(), f"soak-{seed}"))
    for line in wrong:
        print(f"WRONG: {line}")
    print("something was wrong" if wrong else "nothing was wrong", flush=True)
    return 1 if wrong else 0


def soak(seconds: float, seed: int, keep: Path) -> list[str]:
    """Run for so long; returns everything that was wrong, in words."""
    mark = uuid.uuid4().hex
    people: list[Population] = []

    def prepare(folder: Path) -> None:
        (folder / "ledgers").mkdir()
        people.append(write_units(folder, folder / "ledgers", mark))

    began_s = time.monotonic()
    with supervisor({}, prepare=prepare, invariants=False) as running, _spinners(seed):
        running_with = people[0]
        ledgers = running.folder / "ledgers"
        for unit in (*running_with.victims, *running_with.steady, *running_with.paused):
            running.wait_state(unit, "active")
        calm_from_s = time.monotonic() + seconds / 2
        fate = Fate(running, running_with, seed, calm_from_s=calm_from_s)
        operators = [Operator(running, running_with, fate.deeds, seed + 1, calm_from_s)]
        samples: list[Sample] = []
        for thread in (fate, *operators):
            thread.start()
        try:
            watch(running, seconds, samples, fate)
        finally:
            for thread in (fate, *operators):
                thread.stopping.set()
            for thread in (fate, *operators):
                thread.join(SETTLE_S)
        wrong = [f"{type(fate.error).__name__}: {fate.error}"] if fate.error is not None else []
        wrong += [f"{thread.name} does not end" for thread in (fate, *operators) if thread.is_alive()]
        wrong += _settle(running, running_with, fate)
        code = running.stop()
        wrong += [f"the supervisor ended with {code}"] if code else []
        wrong += left_behind(mark)
        verdict = verify_directory(running.journal_folder)
        wrong += [] if verdict.ok else [f"the journal: {verdict}"]
        records = running.records()
        written = {path.stem: _lines(path) for path in ledgers.glob("*.ledger")}
        wrong += judge(records, written, fate.deeds, running_with)
        told, grown = growth(samples)
        wrong += grown
        _tell(seconds, began_s, records, written, fate, told)
        if wrong:
            keep.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["cp", "-r", *map(str, (running.journal_folder, ledgers, running.folder / "out")), str(keep)],
                check=False,
            )
            print(f"journal, ledgers and output are in {keep}")
    return wrong


def watch(running: RunningSupervisor, seconds: float, samples: list[Sample], fate: Fate) -> None:
    """Sit and measure until the time is over."""
    began_s = time.monotonic()
    told_s = began_s
    while (now_s := time.monotonic()) < began_s + seconds and fate.is_alive():
        for who, pid in (("keeper", running.keeper_pid), ("manager", running.manager_pid())):
            if pid is not None:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    samples.append(Sample(who, pid, now_s, process.memory_full_info().uss // 1024, process.num_fds()))
        if running.process.poll() is not None:
            raise AssertionError(f"the supervisor has ended: {running.output()[-4000:]}")
        if now_s - told_s > TELL_S:
            told_s = now_s
            deeds = fate.deeds
            done = f"{sum(deeds.counts.values())} deeds, {len(deeds.troubles)} troubles"
            print(f"{now_s - began_s:.0f} s: {done}", flush=True)
        threading.Event().wait(SAMPLE_S)


def _settle(running: RunningSupervisor, people: Population, fate: Fate) -> list[str]:
    """Let everything come to rest: what was made to hang is noticed, all units are up, no law is broken."""
    wrong = []
    try:
        for unit, pid in list(fate.deeds.hung):
            until(
                lambda unit=unit, pid=pid: not _lives(pid, unit, running),
                f"the end of {pid}, which hangs",
                SETTLE_S,
            )
        for unit in (*people.victims, *people.steady, *people.paused):
            running.wait_state(unit, "active")
        for unit in (*people.timers, *people.triggered):
            running.wait_state(unit, "active", "activating")
        with running.client(timeout_s=SETTLE_S) as client:
            from supervisord_py.doctor.instance import examine

            findings = examine(client, settle_s=20)
        wrong += [f"doctor: {finding.fact}" for finding in findings if finding.level is Level.WRONG]
    except AssertionError as error:
        wrong.append(str(error).splitlines()[0])
    return wrong


def _lives(pid: int, unit: str, running: RunningSupervisor) -> bool:
    return running.status(unit)["pid"] == pid


@contextlib.contextmanager
def _spinners(seed: int):
    """Keep the processors busy, sometimes more, sometimes less."""
    stopping = multiprocessing.Event()
    spinners = [multiprocessing.Process(target=_spin, args=(seed + number, stopping)) for number in range(SPINNERS)]
    for spinner in spinners:
        spinner.start()
    try:
        yield
    finally:
        stopping.set()
        for spinner in spinners:
            spinner.join()


def _spin(seed: int, stopping) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(seed)
    parent = os.getppid()
    while not stopping.wait(chance.uniform(0, 6)):
        end_s = time.monotonic() + chance.uniform(0, 6)
        while time.monotonic() < end_s:
            sum(range(10000))
        if os.getppid() != parent:
            return


def left_behind(mark: str) -> list[str]:
    """Name the processes that are left of any unit."""
    wrong = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SOAK") == mark:
                wrong.append(f"left behind: {process.pid} {process.cmdline()}")
    return wrong


def _lines(path: Path) -> Ledger:
    return [line.split() for line in path.read_text().splitlines()]


def _tell(
    seconds: float,
    began_s: float,
    records: list[dict[str, object]],
    written: dict[str, Ledger],
    fate: Fate,
    told: list[str],
) -> None:
    events = Counter(str(record["event"]) for record in records)
    print(f"{time.monotonic() - began_s:.0f} s altogether, {seconds:.0f} s of them under fire")
    print("done: " + ", ".join(f"{count} times {what}" for what, count in sorted(fate.deeds.counts.items())))
    print(
        "lives: "
        + ", ".join(f"{unit} {sum(line[0] == 'start' for line in lines)}" for unit, lines in sorted(written.items()))
    )
    shown = (
        "manager.restarted",
        "unit.watchdog",
        "unit.health",
        "unit.quarantined",
        "unit.released",
        "timer.elapsed",
        "hook.failed",
    )
    print(f"{len(records)} records: " + ", ".join(f"{events[event]} {event}" for event in shown))
    for line in told:
        print(line)


if __name__ == "__main__":
    sys.exit(main())

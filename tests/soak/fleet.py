"""Run the example fleet of units/fleet under real faults for a while, and say what was wrong.

python -m tests.soak.fleet                    an hour, or $SUPERVISORD_PY_SOAK_SEC
python -m tests.soak.fleet --seconds 120
"""

import argparse
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

from supervisord_py.ctl.client import Client, ControlError
from supervisord_py.doctor.findings import Level
from supervisord_py.doctor.instance import examine
from supervisord_py.errors import SupervisordError
from supervisord_py.host.journal_reader import verify_directory
from tests.integration.supervisor_rig import ROOT, RunningSupervisor, supervisor, until
from tests.soak.__main__ import DEFAULT_S, SETTLE_S, left_behind, watch
from tests.soak.deeds import CALL_S, Deeds, Fate
from tests.soak.fleet_verdict import ENDINGS, Answer, Left, judge
from tests.soak.units import Population
from tests.soak.verdict import Sample, growth

FLEET = ROOT / "units" / "fleet"
PACE_S = 3.0
SCALED_MAX_S = 8.0
PASSED = ("--pass-env", "SOAK", "--pass-env", "PYTHONPATH")
"""By the first its processes are known; by the second agents find pyzmq where they run on the system's Python."""

FDS_MAX = 6
"""Three of the keeper's descriptors are a unit's, and a worker in the queue has them if it has lived before."""

VICTIMS = ["feed", "scheduler", "worker@1", "worker@2", "collector", "archive", "cache", "courier", "gauge", "monitor"]
VICTIMS += ["auditor"]
FAST = {"printer": ('retry-after = "15s"', 'retry-after = "5s"')}


def main() -> int:
    """Soak; the exit status is 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.fleet", description=__doc__.split("\n")[0])
    default_s = float(os.environ.get("SUPERVISORD_PY_SOAK_SEC") or DEFAULT_S)
    parser.add_argument("--seconds", type=float, default=default_s, help="how long (default: an hour)")
    parser.add_argument("--seed", type=int, help="of what is done when (default: drawn, and printed)")
    parser.add_argument("--uid", type=int, help="as root: run as this ordinary user")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where journal and state go when something was wrong")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else secrets.randbelow(1 << 32)
    print(f"the fleet for {options.seconds:.0f} s, seed {seed}", flush=True)
    wrong = soak(options.seconds, seed, options.keep or Path(tempfile.gettempdir(), f"fleet-{seed}"), options.uid)
    for line in wrong:
        print(f"WRONG: {line}")
    print("something was wrong" if wrong else "nothing was wrong", flush=True)
    return 1 if wrong else 0


class FleetFate(Fate):
    """Does to the fleet what its agents do not do to themselves."""

    def _do_something(self) -> None:
        deeds = {
            self._stop_unit: 8, self._kill_unit: 8, self._kill_manager: 3, self._stop_manager: 1, self._stop_keeper: 1,
            self._restart: 2, self._scale: 1, self._replace: 1,
        }  # fmt: skip
        self._random.choices(list(deeds), list(deeds.values()))[0]()

    def _restart(self) -> None:
        # A worker would wait for its slot, and the next deed with it.
        unit = self._random.choice([each for each in self._people.victims if "@" not in each])
        self._order(unit, "Restart", units=[unit], reason="the soak wants it so")

    def _scale(self) -> None:
        for count in (self._random.randint(4, 5), 3):
            self._order("worker@", "Scale", template="worker@", count=count)
            self.stopping.wait(self._random.uniform(1, SCALED_MAX_S))

    def _order(self, unit: str, method: str, **parameters: Any) -> None:
        began_ns = time.monotonic_ns()
        self.deeds.counts[method.lower()] += 1
        try:
            with self._running.client(timeout_s=CALL_S) as client:
                client.call(method, wait=True, plan=False, **parameters)
        except ControlError as error:
            # One that fails by itself may do so in this moment; a worker may have been scaled away.
            if error.name not in ("JobFailed", "NoSuchUnit"):
                self.deeds.troubles.append(f"{method} {unit}: {error}")
        finally:
            self.deeds.orders.append((unit, began_ns, time.monotonic_ns()))

    def _replace(self) -> None:
        if time.monotonic() < self._calm_from_s:
            self.deeds.counts["replaced"] += 1
            try:
                with self._running.client(timeout_s=CALL_S) as client:
                    client.call(self._random.choice(("DaemonRestart", "DaemonReexec")))
            except SupervisordError:
                self.deeds.counts["replacement unanswered"] += 1


class Asker(threading.Thread):
    """Asks ``why`` of each end, as soon as the journal tells of it."""

    def __init__(self, running: RunningSupervisor) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self.stopping = threading.Event()
        self._running = running
        self._seen = 0

    def run(self) -> None:
        wanted = {"units": [], "events": list(ENDINGS)}
        while not self.stopping.wait(0.2):
            try:
                with self._running.client(timeout_s=CALL_S) as client:
                    filter = wanted | {"after": self._seen}
                    for record in client.call("Journal.Query", filter=filter, last=None)["records"]:
                        self._ask(client, record)
                        self._seen = record["seq"]
            except SupervisordError:
                continue  # whoever was asked has been killed

    def _ask(self, client: Client, record: dict[str, Any]) -> None:
        try:
            causes = client.call("Why", unit=record["unit"])["causes"]
        except ControlError as error:
            if error.name != "NoSuchUnit":
                raise
            return  # a worker that was scaled away
        text = " | ".join(cause["message"] for cause in causes)
        self.answers.append(Answer(record["seq"], record["unit"], text, time.monotonic_ns()))


def soak(seconds: float, seed: int, keep: Path, uid: int | None = None) -> list[str]:
    """Run for so long; returns everything that was wrong, in words."""
    mark = os.environ["SOAK"] = uuid.uuid4().hex
    with supervisor({}, prepare=lambda folder: _prepare(folder), options=PASSED, uid=uid, invariants=False) as running:
        running.wait_state("scheduler", "active")
        deliver = _module(FLEET / "auditor" / "deliver.py").deliver
        bring = lambda version: deliver(running.folder / "fleet.key", running.folder / "hot", version)  # noqa: E731
        bring("1.0")
        running_with = Population(victims=VICTIMS)
        fate = FleetFate(running, running_with, seed, calm_from_s=time.monotonic() + seconds / 2, pace_s=PACE_S)
        asker = Asker(running)
        samples: list[Sample] = []
        for thread in (fate, asker):
            thread.start()
        try:
            watch(running, seconds / 2, samples, fate)
            bring("1.1")
            watch(running, seconds / 2, samples, fate)
        finally:
            fate.stopping.set()
            fate.join(SETTLE_S)
        wrong = [f"{type(fate.error).__name__}: {fate.error}"] if fate.error is not None else []
        wrong += ["fate does not end"] if fate.is_alive() else []
        # Of an end just before the order to stop, why tells that order.
        asker.stopping.set()
        asker.join(SETTLE_S)
        left, unsettled = _settle(running)
        wrong += unsettled
        code = running.stop()
        wrong += [f"the supervisor ended with {code}"] if code else []
        wrong += left_behind(mark)
        verdict = verify_directory(running.journal_folder)
        wrong += [] if verdict.ok else [f"the journal: {verdict}"]
        records = running.records()
        told, of_judge = judge(records, fate.deeds, left, asker.answers, seconds)
        wrong += of_judge
        told_of_growth, grown = growth(samples, FDS_MAX)
        wrong += grown
        _tell(records, fate.deeds, [*told, *told_of_growth])
        if wrong:
            keep.mkdir(parents=True, exist_ok=True)
            kept = [running.journal_folder, running.folder / "s-agents", running.folder / "l", running.folder / "out"]
            subprocess.run(["cp", "-r", *map(str, kept), str(keep)], check=False)
            (keep / "answers").write_text("\n".join(map(str, asker.answers)))
            print(f"journal, state and output are in {keep}")
    return wrong


def _prepare(folder: Path) -> None:
    shutil.copytree(FLEET, folder / "units", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "units" / "defaults.toml").open("a") as defaults:
        # What is killed again and again on purpose is not to be quarantined for it.
        defaults.write("\n[quarantine]\nfailures = 0\n")
    for unit, (old, new) in FAST.items():
        path = folder / "units" / f"{unit}.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    _module(FLEET / "run.py").prepare(folder)


def _module(path: Path) -> ModuleType:
    """Import an example by its path: it is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _settle(running: RunningSupervisor) -> tuple[Left, list[str]]:
    """Let what was ordered be done, and read what the agents have written."""
    wrong = []
    agents = running.folder / "s-agents"

    def notes(unit: str) -> dict[str, Any]:
        return dict(json.loads((agents / unit / "notes.json").read_text()))

    def book() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (agents / "collector" / "book.ndjson").read_text().splitlines()]

    try:
        with running.client(timeout_s=SETTLE_S) as client:
            client.call("Stop", units=["feed"], wait=True, plan=False, reason="the soak is over")
            findings = examine(client, settle_s=20)
        wrong += [f"doctor: {finding.fact}" for finding in findings if finding.level is Level.WRONG]
        until(lambda: notes("scheduler")["done"] >= notes("feed")["number"], "the end of all orders", SETTLE_S)
        until(lambda: book()[-1]["seq"] >= notes("scheduler")["results"], "the last result in the book", SETTLE_S)
        with running.client(timeout_s=SETTLE_S) as client:
            # Its unit came in the wheel, with the usual policy: five kills on purpose are too many for that.
            client.call("Release", units=["auditor"], wait=True, plan=False)
        running.wait_state("auditor", "active")
    except (AssertionError, SupervisordError) as error:
        wrong.append(str(error).splitlines()[0])
    return Left(book(), notes("feed")["number"], notes("scheduler"), notes("monitor")), wrong


def _tell(records: list[dict[str, Any]], deeds: Deeds, told: list[str]) -> None:
    events = Counter(str(record["event"]) for record in records)
    print("done: " + ", ".join(f"{count} times {what}" for what, count in sorted(deeds.counts.items())))
    shown = ("unit.message", "manager.restarted", "keeper.reexecuted", "unit.error", "unit.progress-stalled")
    shown += ("unit.quarantined", "unit.stub-started", "timer.elapsed")
    print(f"{len(records)} records: " + ", ".join(f"{events[event]} {event}" for event in shown))
    for line in told:
        print(line)


if __name__ == "__main__":
    sys.exit(main())

"""The keeper replaces itself again and again under load; nothing is lost, doubled, restarted or forgotten."""

import json
import os
import random
import threading
from pathlib import Path

import pytest

from supervisord_py.ctl.client import Client, ConnectionLostError
from supervisord_py.host.journal_reader import verify_directory
from tests.faults.chaos import compare, write_units
from tests.faults.test_manager_deaths import Operator
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

REEXECS = int(os.environ.get("SUPERVISORD_PY_REEXECS", "30"))
PRINTERS = 3
GROWTH_MAX_KB = 4096
PRINTER = """\
import os, select, sys
number = 0
while True:
    number += 1
    os.write(1 + number % 2, b"line %d\\n" % number)
    if number % 20 == 0: select.select([], [], [], 0.05)
"""


def write_printers(folder: Path, scripts: Path) -> None:
    (scripts / "printer.py").write_text(PRINTER)
    command = json.dumps(["/usr/bin/python3", "-S", str(scripts / "printer.py")])
    for number in range(PRINTERS):
        (folder / f"printer{number}.toml").write_text(f"[service]\nexec-start = {command}\n")


def reexec(running: RunningSupervisor) -> None:
    """Let the keeper replace itself and return when the next manager runs."""
    before = until(running.manager_pid, "a manager", 60)
    with Client(str(running.socket)) as client:
        try:
            reply = client.call("DaemonReexec", reason="test")
            assert reply["refused"] is None, reply
        except ConnectionLostError:
            pass  # it was faster than the reply
    until(lambda: running.manager_pid() not in (None, before), f"the next manager: {running.output()[-2000:]}", 60)


def resident_kb(running: RunningSupervisor) -> int:
    """Return the keeper's memory, once it is in the middle of its work again."""
    with running.client() as client:
        client.call("Ping")
    status = Path(f"/proc/{running.keeper_pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def descriptors_at_rest() -> int:
    """Return how many descriptors a keeper has that never had a unit, and has replaced itself once; give or take one
    that it opens just now: what leaks, leaks at each reexec."""
    with supervisor({}) as running:
        reexec(running)
        with running.client() as client:
            client.call("Ping")  # in the middle of an exec it has few
            return max(descriptors(running.keeper_pid) for _ in range(50) if client.call("Ping") is not None)


@pytest.mark.slow
@pytest.mark.timeout(120 + 5 * REEXECS)
def test_keeper_that_replaces_itself_again_and_again_loses_nothing() -> None:
    """Units start, stop, notify, crash and print while the keeper becomes another image; ledgers and journal agree."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {REEXECS} reexecs")
    chance = random.Random(seed)
    kinds: dict[str, str] = {}

    def prepare(folder: Path) -> None:
        (folder / "ledgers").mkdir()
        kinds.update(write_units(folder / "units", folder / "ledgers", chance))
        write_printers(folder / "units", folder / "ledgers")

    at_rest = descriptors_at_rest()
    # What is compared is the whole journal, and a thousand reexecs under load fill more than it keeps.
    with supervisor({}, prepare=prepare, settings='[journal]\nmax-bytes = "8G"\n') as running:
        ledgers, keeper = running.folder / "ledgers", running.keeper_pid
        toggled = [name for name, kind in kinds.items() if kind == "toggled"]
        until(lambda: (ledgers / "stable15.ledger").exists(), "the first start")
        operators = [Operator(running.socket, toggled[:5], seed), Operator(running.socket, toggled[5:], seed + 1)]
        for operator in operators:
            operator.start()
        reexec(running)
        size_kb = resident_kb(running)
        for _ in range(REEXECS - 1):
            threading.Event().wait(chance.uniform(0, 0.5))
            reexec(running)
        for operator in operators:
            operator.stopping.set()
        for operator in operators:
            operator.join(60)
            assert not operator.is_alive(), "a client waits for ever"
        grown_kb = resident_kb(running) - size_kb
        with running.client() as client:
            client.call(
                "Stop", units=[*kinds, *(f"printer{number}" for number in range(PRINTERS))], wait=True, plan=False
            )
        until(lambda: descriptors(keeper) < at_rest + REEXECS, "no descriptor more than at rest")
        reexec(running)
        until(lambda: descriptors(keeper) < at_rest + REEXECS, "no descriptor more after a reexec")
        lines = {
            f"printer{number}": (running.log_folder / f"printer{number}.log").read_text().splitlines()
            for number in range(PRINTERS)
        }
        assert running.keeper_pid == keeper
        assert running.stop() == 0
        records = running.records()
        verdict = verify_directory(running.journal_folder)
        wrong = compare(ledgers, kinds, records, [reason for operator in operators for reason in operator.acknowledged])
        wrong += [failure for operator in operators for failure in operator.failures]
        for unit, found in lines.items():
            if found != [f"line {at}" for at in range(1, len(found) + 1)] or len(found) < REEXECS:
                wrong.append(
                    f"{unit}: lines are missing, doubled or out of order: {len(found)} {found[:3]} {found[-3:]}"
                )
        done = [record for record in records if record["event"] == "keeper.reexecuted"]
        refused = [record for record in records if record["event"] in ("keeper.reexec-failed", "manager.unfit")]
        print(f"{sum(map(len, lines.values()))} lines, {len(records)} records, {grown_kb} kB more")
        assert verdict.ok, verdict
        assert not wrong, f"seed {seed}: " + "\n".join(wrong[:50])
        assert not refused
        assert len(done) == REEXECS + 1
        assert grown_kb < GROWTH_MAX_KB
        assert "internal error" not in running.output()

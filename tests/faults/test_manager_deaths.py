"""The manager is killed at random moments under load; nothing is lost, doubled, restarted or forgotten."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from supervisord_py.ctl.client import Client
from supervisord_py.host.journal_reader import verify_directory
from tests.faults.chaos import compare, write_units
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

KILLS = int(os.environ.get("SUPERVISORD_PY_KILLS", "100"))


class Operator(threading.Thread):
    """Starts and stops units all the time; what is acknowledged as durable it remembers."""

    def __init__(self, socket: Path, units: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self._socket = str(socket)
        self._units = units
        self._random = random.Random(seed)
        self.stopping = threading.Event()
        self.acknowledged: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        count = 0
        with Client(self._socket) as client:
            while not self.stopping.wait(self._random.uniform(0, 0.1)):
                count += 1
                reason = f"{self.name} {count}"
                verb = self._random.choice(["Start", "Stop", "Start", "Restart"])
                units = self._random.sample(self._units, self._random.randint(1, 3))
                try:
                    reply = client.call(verb, units=units, wait=True, plan=False, reason=reason)
                except Exception as error:  # noqa: BLE001  whatever it is, a client must not see it
                    self.failures.append(f"{verb} {units}: {type(error).__name__}: {error}")
                    continue
                if reply["durable"]:
                    self.acknowledged.append(reason)


def kill_again_and_again(running: RunningSupervisor, kills: int, seed: int) -> None:
    """Kill every manager after a random moment of its life: importing, restoring, deciding, at rest."""
    chance = random.Random(seed)
    for _ in range(kills):
        pid = until(running.manager_pid, "a manager", 60)
        moment = chance.uniform(0, 0.3) if chance.random() < 0.3 else chance.uniform(0.2, 1.2)
        threading.Event().wait(moment)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            raise AssertionError(f"manager {pid} died by itself: {running.output()[-4000:]}") from None
        until(lambda pid=pid: running.manager_pid() not in (None, pid), "the next manager", 60)


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
def test_manager_killed_again_and_again_loses_nothing() -> None:
    """Fifty units start, stop, notify and crash while every manager is killed; ledgers and journal agree."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    kinds: dict[str, str] = {}

    def prepare(folder: Path) -> None:
        (folder / "ledgers").mkdir()
        kinds.update(write_units(folder / "units", folder / "ledgers", random.Random(seed)))

    with supervisor({}, prepare=prepare) as running:
        ledgers = running.folder / "ledgers"
        toggled = [name for name, kind in kinds.items() if kind == "toggled"]
        until(lambda: (ledgers / "stable15.ledger").exists(), "the first start")
        operators = [Operator(running.socket, toggled[:5], seed), Operator(running.socket, toggled[5:], seed + 1)]
        for operator in operators:
            operator.start()
        kill_again_and_again(running, KILLS, seed)
        for operator in operators:
            operator.stopping.set()
        for operator in operators:
            operator.join(60)
            assert not operator.is_alive(), "a client waits for ever"
        with running.client() as client:
            assert client.call("Ping")["answer"]
        assert running.stop() == 0
        records = running.records()
        verdict = verify_directory(running.journal_folder)
        wrong = compare(ledgers, kinds, records, [reason for operator in operators for reason in operator.acknowledged])
        wrong += [failure for operator in operators for failure in operator.failures]
        restarts = sum(record["event"] == "manager.restarted" for record in records)
        commands = sum(len(operator.acknowledged) for operator in operators)
        print(f"{restarts} managers got as far as deciding, {commands} commands acknowledged, {len(records)} records")
        assert verdict.ok, verdict
        assert not wrong, f"seed {seed}: " + "\n".join(wrong[:50])
        assert commands >= min(5, KILLS / 4), "hardly anything was asked of those managers"
        assert restarts > KILLS / 5

"""The manager is killed again and again while agents flood the bus: no acknowledged message is lost, none doubled."""

import os
import random
import threading
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from supervisord_py.host.journal_reader import verify_directory
from tests.integration.bus_rig import messages
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

KILLS = int(os.environ.get("SUPERVISORD_PY_BUS_KILLS", "3"))
FLOODERS = 3

AGENTS = dedent(
    """
    from supervisord_py.agent import Agent

    class Flooder(Agent):
        every = 0

        def setup(self):
            self.n = 0
            self.acknowledged = open(self.config["file"], "a")

        def run_cycle(self):
            seq = self.send("flood", to="topic:flood", timeout=None, n=self.n)
            print(seq, self.n, file=self.acknowledged, flush=True)
            self.n += 1

    class Listener(Agent):
        every = 3600

        def setup(self):
            self.subscribe("flood")
            self.seen = open(self.config["file"], "a")

        def run_cycle(self):
            pass

        def on_message(self, message):
            print(message.seq, message.sender, message.payload["n"], file=self.seen, flush=True)
    """
)


def kill_in_the_flood(running: RunningSupervisor, told: list[Path], chance: random.Random) -> None:
    """Kill each manager when some messages have been acknowledged under it, at a random moment of the next ones."""
    for _ in range(KILLS):
        before = sum(path.stat().st_size for path in told)
        more = chance.randrange(1, 400)
        until(lambda before=before, more=more: sum(path.stat().st_size for path in told) >= before + more, "more", 60)
        threading.Event().wait(chance.uniform(0, 0.02))
        running.kill_manager()


@pytest.mark.slow
@pytest.mark.timeout(300 + 10 * KILLS)
def test_kills_during_a_flood_lose_no_acknowledged_message() -> None:
    """What each agent was told is written is there under that number, once, and a subscriber has heard all of it in
    order."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    names = [f"flooder{number}" for number in range(FLOODERS)]

    def prepare(folder: Path) -> None:
        (folder / "flood_agents.py").write_text(AGENTS)
        for name in (*names, "listener"):
            cls = "Listener" if name == "listener" else "Flooder"
            text = (
                f'[agent]\nclass = "flood_agents:{cls}"\npath = "{folder}"\nconfig = {{ file = "{folder}/{name}" }}\n'
            )
            after = "" if name == "listener" else '[unit]\nafter = ["listener"]\n'
            (folder / "units" / f"{name}.toml").write_text(after + text)

    with supervisor({}, prepare=prepare, settings='[bus]\nrate-limit = "100000/s"\n') as running:
        until(lambda: all((running.folder / name).exists() for name in names), "everybody floods", 120)
        kill_in_the_flood(running, [running.folder / name for name in names], random.Random(seed))
        sent = Counter(record["unit"] for record in messages(running))

        def goes_on() -> bool:
            now = Counter(record["unit"] for record in messages(running))
            return all(now[name] > sent[name] for name in names)

        until(goes_on, "everybody goes on", 120)
        assert running.supctl("stop", *names).returncode == 0
        written = {(record["unit"], record["payload"]["n"]): record["seq"] for record in messages(running)}
        assert len(written) == len(messages(running)), f"seed {seed}: a message is written twice"
        for name in names:
            told = [line.split() for line in (running.folder / name).read_text().splitlines()]
            assert told, f"{name} was never told anything"
            lost = [(seq, n) for seq, n in told if written.get((name, int(n))) != int(seq)]
            assert not lost, f"seed {seed}: {name} was told of {lost[:5]}"
        numbers = sorted(written.values())

        def heard() -> list[int]:
            return [int(line.split()[0]) for line in (running.folder / "listener").read_text().splitlines()]

        until(lambda: heard()[-1:] == numbers[-1:], "the listener has heard the last one", 120)
        assert heard() == numbers, f"seed {seed}: a hole, or something twice"
        assert verify_directory(running.journal_folder).ok
        acknowledged = sum(len((running.folder / name).read_text().splitlines()) for name in names)
        print(f"{len(numbers)} messages, {acknowledged} acknowledged")

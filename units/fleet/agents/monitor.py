"""Reads the journal and writes the story of the fleet: a line for each life that has ended, with what ended it.

Any program may read the journal through the control socket, as far as the settings let it: a rule in supervisord.toml
lets this unit.
"""

import os
from collections import Counter
from typing import Any

from agents.notes import load, save
from supervisord_py import Client
from supervisord_py.agent import Agent

CAUSES = ("unit.error", "unit.progress-stalled", "unit.watchdog", "unit.health", "unit.stopping")
LEARNS = ["unit.exited", "unit.quarantined", "unit.stub-started", "unit.released", *CAUSES]


class Monitor(Agent):
    def setup(self) -> None:
        self.notes = self.state_dir / "notes.json"
        self.known: dict[str, Any] = load(self.notes, {"seq": 0, "ends": {}, "causes": {}})

    def run_cycle(self) -> None:
        with Client(os.environ["SUPERVISORD_PY_SOCKET"], timeout_s=10.0) as client:
            wanted = {"units": [], "events": LEARNS, "after": self.known["seq"]}
            records = client.call("Journal.Query", filter=wanted, last=None)["records"]
        for record in records:
            self.learn(record)
        save(self.notes, self.known)
        ends = Counter(self.known["ends"])
        self.status(f"{sum(ends.values())} lives have ended; most often {ends.most_common(1)[0][0] if ends else '-'}")

    def learn(self, record: dict[str, Any]) -> None:
        unit, event = record["unit"], record["event"]
        if event in CAUSES:
            self.known["causes"][record["invocation"]] = record.get("message") or record.get("reason") or event
        elif event == "unit.exited" and record["role"] == "main":
            cause = self.known["causes"].pop(record["invocation"], "by itself")
            how = record.get("signal") or f"exit {record.get('code')}"
            print(f"{record['ts']} {unit}: {how}, {cause}")
            ends = self.known["ends"]
            ends[unit] = ends.get(unit, 0) + 1
        elif event == "unit.quarantined":
            print(f"{record['ts']} {unit} is quarantined")
            self.send("alarm", to="topic:alarms", unit=unit)
        self.known["seq"] = record["seq"]

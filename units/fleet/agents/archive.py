"""Copies the results to a slow disk, which hangs after a while. A cycle that takes longer than ``cycle-timeout`` is
ended, as an error; ``error-threshold`` of them in a row are the end of the process. The next life has a new disk."""

import json
import time
from dataclasses import dataclass

from agents.notes import load, save
from supervisord_py.agent import Agent, Message


@dataclass
class Config:
    good: int = 30  # so many copies before the disk hangs


class Archive(Agent):
    Config = Config

    def setup(self) -> None:
        self.notes = self.state_dir / "notes.json"
        self.copied = load(self.notes, {"seq": 0, "count": 0})
        self.waiting: list[Message] = []
        self.written = 0
        self.subscribe("results", after=self.copied["seq"])

    def on_message(self, message: Message) -> None:
        self.waiting.append(message)

    def run_cycle(self) -> None:
        while self.waiting:
            if self.written >= self.config.good:
                time.sleep(1000)  # the disk hangs; what waits is asked for again by the next life
            message = self.waiting[0]
            with (self.state_dir / "copies.ndjson").open("a") as copies:
                copies.write(json.dumps(message.payload) + "\n")
            self.copied = {"seq": message.seq, "count": self.copied["count"] + 1}
            save(self.notes, self.copied)
            self.waiting.pop(0)
            self.written += 1
        self.status(f"{self.copied['count']} copies")

"""Checks every result that workers publish. It comes into the fleet as a signed wheel, while the others run."""

from dataclasses import dataclass
from math import prod

from supervisord_py.agent import Agent, Message


@dataclass
class Config:
    version: str = "?"


class Auditor(Agent):
    Config = Config

    def setup(self) -> None:
        self.place = self.state_dir / "seen"
        self.seen = int(self.place.read_text()) if self.place.exists() else 0
        self.checked = 0
        self.subscribe("results", after=self.seen)  # the bus has what was sent before the auditor came

    def on_message(self, message: Message) -> None:
        value, factors = message.payload["value"], message.payload["factors"]
        if prod(factors) != value:
            self.error(f"{value} is not {' * '.join(map(str, factors))}, as {message.sender} says")
        self.checked += 1
        self.seen = message.seq

    def run_cycle(self) -> None:
        self.place.write_text(str(self.seen))
        self.status(f"auditor {self.config.version}: {self.checked} results are right")

"""Thinks of a number now and then and orders its factors. Its source hangs up after a while; a new life asks anew."""

import random
from dataclasses import dataclass

from agents.notes import load, save
from supervisord_py.agent import Agent, Recoverable


@dataclass
class Config:
    good: int = 40  # so many orders before the source hangs up


class Feed(Agent):
    Config = Config

    def setup(self) -> None:
        self.notes = self.state_dir / "notes.json"
        self.number = load(self.notes, {"number": 0})["number"]
        self.made = 0

    def run_cycle(self) -> None:
        if self.made >= self.config.good:
            raise Recoverable("the source has hung up")  # an error, and no traceback: nobody has to look at the code
        order = self.number + 1
        self.send("order", to="scheduler", number=order, value=random.randrange(10**8, 10**10))
        # Sent before it is saved: a life that ends in between orders the same number again, which the scheduler knows.
        save(self.notes, {"number": order})
        self.number = order
        self.made += 1
        self.status(f"{order} orders")

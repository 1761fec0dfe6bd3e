"""Prints what it is sent, if there is paper, which somebody brings every few lives. A start without paper fails; the
third failure in a row is quarantine, and the stub has its place until it is tried again."""

from dataclasses import dataclass

from agents.notes import load, save
from supervisord_py.agent import Agent, Fatal, Message


@dataclass
class Config:
    lives_without_paper: int = 4
    sheets: int = 3


class Printer(Agent):
    Config = Config

    def setup(self) -> None:
        notes = self.state_dir / "notes.json"
        life = load(notes, {"lives": 0})["lives"] + 1
        save(notes, {"lives": life})
        if life % (self.config.lives_without_paper + 1):
            raise Fatal("there is no paper")
        self.sheets = self.config.sheets
        self.subscribe()

    def on_message(self, message: Message) -> None:
        if not self.sheets:
            raise Fatal("the paper has run out")
        self.sheets -= 1
        print(message.payload["text"])

    def run_cycle(self) -> None:
        self.status(f"{self.sheets} sheets")


class Closed(Agent):
    """The stub: in the printer's place, under its name, it takes what is sent there and says that it is not printed."""

    Config = Config

    def setup(self) -> None:
        self.refused = 0
        self.subscribe()

    def on_message(self, message: Message) -> None:
        self.refused += 1
        print(f"not printed: {message.payload['text']}")

    def run_cycle(self) -> None:
        self.status(f"closed, {self.refused} summaries not printed")

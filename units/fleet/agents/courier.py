"""Carries each summary to the printer. After some rounds it stands before a closed door: it lives, and beats, but no
work is done, which ``progress-sec`` notices where no watchdog would."""

from dataclasses import dataclass

from supervisord_py.agent import Agent, Message


@dataclass
class Config:
    rounds: int = 3  # so many, then the door is closed


class Courier(Agent):
    Config = Config

    def setup(self) -> None:
        self.rounds = 0
        self.subscribe("summaries")

    def on_message(self, message: Message) -> None:
        self.send("print", to="printer", text=f"{message.payload['new']} more, {message.payload['results']} in all")
        self.rounds += 1

    def run_cycle(self) -> None:
        self.status(f"{self.rounds} rounds")
        if self.rounds >= self.config.rounds:
            self.status("before a closed door")
            while not self.wait(1):
                self.beat()

"""Factors the numbers that it is given. After so many it leaves its place in the pool to the next one."""

from dataclasses import dataclass

from supervisord_py.agent import Agent, Message


def factors_of(value: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= value:
        if value % divisor:
            divisor += 1
        else:
            found.append(divisor)
            value //= divisor
    return [*found, value] if value > 1 else found


@dataclass
class Config:
    turn: int = 15  # so many numbers, then somebody else has a turn


class Worker(Agent):
    Config = Config

    def setup(self) -> None:
        self.done = 0
        self.subscribe()  # what is sent to this unit; first, or the answer to the next line could be missed
        self.send("ask", to="scheduler")

    def on_message(self, message: Message) -> None:
        if message.event != "task":
            return
        number, value = message.payload["number"], message.payload["value"]
        factors = factors_of(value)
        self.done += 1
        leaves = self.done >= self.config.turn
        self.send("result", to="topic:results", number=number, value=value, factors=factors, leaves=leaves)
        self.status(f"{self.done} of {self.config.turn}: {value} = {' * '.join(map(str, factors))}")
        if leaves:
            self.stop()

    def run_cycle(self) -> None:
        """Everything is done when a message comes; the cycle is the sign of life between them."""

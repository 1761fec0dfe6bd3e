"""Remembers every result, with a picture of it, and forgets none: it leaks. ``[limits] data`` bounds what it may have;
above that Python raises MemoryError, which is fatal here: the process ends, and the next one begins with nothing."""

from dataclasses import dataclass

from supervisord_py.agent import Agent, Message


@dataclass
class Config:
    picture_bytes: int = 2_000_000


class Cache(Agent):
    Config = Config
    fatal = (MemoryError,)  # another cycle would not find any more

    def setup(self) -> None:
        self.pictures: dict[int, bytearray] = {}
        self.subscribe("results")

    def on_message(self, message: Message) -> None:
        self.pictures[message.seq] = bytearray(self.config.picture_bytes)

    def run_cycle(self) -> None:
        self.status(f"{len(self.pictures)} pictures")

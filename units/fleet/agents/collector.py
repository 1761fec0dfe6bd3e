"""Writes every result into its book, with a number of its own, and goes on where it was after each of its lives.

The last line of the book tells the last message that it has seen; the bus has what came after it. So the book holds
each message of the topic once, in the order of the journal, however often its writer was killed.
"""

import json
from dataclasses import dataclass

from supervisord_py.agent import Agent, Message


@dataclass
class Config:
    page: int = 60  # so many results, then it ends, and the next life begins another page


class Collector(Agent):
    Config = Config

    def setup(self) -> None:
        path = self.state_dir / "book.ndjson"
        self.book = path.open("ab+")
        self.book.seek(0)
        lines = self.book.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            self.book.truncate(self.book.tell() - len(lines.pop()))  # its writer was killed in the middle
        last = json.loads(lines[-1]) if lines else {"n": 0, "seq": 0}
        self.count, self.summed_up, self.on_page = last["n"], last["n"], 0
        self.subscribe("results", after=last["seq"])
        self.subscribe()

    def on_message(self, message: Message) -> None:
        if message.event == "bell":
            self.sum_up()
        elif message.to == "topic:results":
            self.count += 1
            line = {"n": self.count, "seq": message.seq, "number": message.payload["number"], "from": message.sender}
            self.book.write(json.dumps(line).encode() + b"\n")
            self.book.flush()
            self.on_page += 1
            if self.on_page >= self.config.page:
                self.stop()

    def sum_up(self) -> None:
        self.send("summary", to="topic:summaries", results=self.count, new=self.count - self.summed_up)
        self.summed_up = self.count

    def run_cycle(self) -> None:
        self.status(f"{self.count} results in the book, {self.on_page} on this page")

    def teardown(self) -> None:
        self.book.close()

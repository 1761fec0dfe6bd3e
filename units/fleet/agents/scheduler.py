"""Hands orders out to workers, one each, and knows who has which.

Everybody may end at any moment. What the scheduler knows is saved after each message together with the number of that
message, and its next life asks the bus for what came after it. A worker that begins a life says ``ask``: what it had
is handed out again. So an order is done at least once; whoever counts looks at its number.
"""

import time
from dataclasses import dataclass

from agents.notes import load, save
from supervisord_py.agent import Agent, Message, NotSentError


@dataclass
class Config:
    patience_s: float = 60.0  # so long a worker has for an order, then somebody else is given it


class Scheduler(Agent):
    Config = Config

    def setup(self) -> None:
        self.notes = self.state_dir / "notes.json"
        nothing = {"mailbox": 0, "results": 0, "last": 0, "done": 0, "waiting": [], "handed": {}, "idle": []}
        self.known = load(self.notes, nothing)
        self.subscribe(after=self.known["mailbox"])
        self.subscribe("results", after=self.known["results"])

    def on_message(self, message: Message) -> None:
        known, sender = self.known, message.sender
        handed, idle = known["handed"], known["idle"]
        match message.event:
            case "order" if message.payload["number"] > known["last"]:
                known["last"] = message.payload["number"]
                known["waiting"].append([message.payload["number"], message.payload["value"]])
            case "ask":
                if sender in handed:
                    number, value, _ = handed.pop(sender)
                    known["waiting"].insert(0, [number, value])
                if sender not in idle:
                    idle.append(sender)
            case "result" if sender in handed and handed[sender][0] == message.payload["number"]:
                del handed[sender]
                known["done"] += 1
                if not message.payload["leaves"]:
                    idle.append(sender)
        known["mailbox" if message.to == self.name else "results"] = message.seq
        save(self.notes, known)

    def run_cycle(self) -> None:
        known = self.known
        for worker, (number, value, since) in list(known["handed"].items()):
            if not since <= time.time() <= since + self.config.patience_s:
                del known["handed"][worker]
                known["waiting"].insert(0, [number, value])
        while known["waiting"] and known["idle"]:
            worker, (number, value) = known["idle"][0], known["waiting"][0]
            # First sent, then saved: twice is no harm, never is.
            try:
                self.send("task", to=worker, number=number, value=value)
            except NotSentError as problem:
                if problem.refusal != "no-such-unit":
                    raise  # it stays on top of the list, and the next cycle tries again
                known["idle"].pop(0)  # somebody has scaled it away
                continue
            known["idle"].pop(0)
            known["waiting"].pop(0)
            known["handed"][worker] = [number, value, time.time()]
            save(self.notes, known)
        self.status(f"{known['done']} done, {len(known['handed'])} handed out, {len(known['waiting'])} waiting")

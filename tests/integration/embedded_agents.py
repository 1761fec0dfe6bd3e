"""Agents of test_embedded: a supervisor imports them in processes of their own."""

from supervisord_py.agent import Agent


class Counter(Agent):
    """Counts to ``config["to"]`` and stops."""

    every = 0.02

    def setup(self) -> None:
        self.count = 0

    def run_cycle(self) -> None:
        self.count += 1
        self.progress(self.count)
        self.status(f"counted to {self.count}")
        if self.count >= self.config.get("to", 3):
            self.stop()


class Idle(Agent):
    """Runs until it is stopped."""

    every = 60

    def run_cycle(self) -> None:
        self.status("idle")


class Instead(Agent):
    """Runs in the place of another."""

    def run_cycle(self) -> None:
        print(f"instead of {self.name}", flush=True)


class Meter(Agent):
    """Tells its load, which is worth a moment, and each tenth time what it has earned, which is kept."""

    every = 0.01

    def setup(self) -> None:
        self.count = 0

    def run_cycle(self) -> None:
        self.count += 1
        seq = self.send("load", value=self.count)
        if self.count % 10 == 0:
            self.send("earned", value=self.count, load_seq=seq)


class Broken(Agent):
    """Cannot do its work."""

    every = 0.02

    def run_cycle(self) -> None:
        raise ValueError("the upstream is gone")

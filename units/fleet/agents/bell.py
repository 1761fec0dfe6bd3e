"""Rings once. ``[timer]`` makes a process for each time, and it ends with its one cycle."""

from supervisord_py.agent import Agent


class Bell(Agent):
    def run_cycle(self) -> None:
        self.send("bell", to="collector")

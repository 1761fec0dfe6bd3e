"""Whoever goes on behind a record that retention has dropped since is told so: on the bus, by the SDK, by Follow."""

from pathlib import Path
from textwrap import dedent

from tests.integration.bus_rig import Puppet, is_ack, is_delivery, puppets, with_puppets
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SMALL = '[journal]\nmax-bytes = "128K"\n'
"""Eight segments of 16 KiB."""

LATE = dedent(
    """
    from supervisord_py.agent import Agent

    class Late(Agent):
        every = 0.05

        def setup(self):
            self.missed, self.first = None, None
            self.subscribe("stream", after=1)

        def run_cycle(self):
            pass

        def on_message(self, message):
            self.first = self.first or (message.seq, message.payload["n"])
            self.status(f"{self.missed} {self.first} {message.payload['n']}")

        def on_missed(self, missed):
            self.missed = (missed.to, missed.after, missed.until)
    """
)


def flood(running: RunningSupervisor, puppet: Puppet) -> int:
    """Send messages until the journal has dropped some; returns the number that it begins with."""
    count = 0
    while True:
        puppet.send(
            *({"id": f"f{n}", "to": "topic:stream", "n": n, "pad": "x" * 500} for n in range(count, count + 50))
        )
        puppet.receive_all(is_ack, 50)
        count += 50
        with running.client() as client:
            oldest = int(client.call("Journal.Stats")["first_seq"])
        if oldest > 30:
            return oldest


def test_a_hole_is_told_before_what_is_behind_it() -> None:
    """Of the past of a topic the first part is gone: how much of it nobody knows, but from where to where."""

    def prepare(folder: Path) -> None:
        with_puppets("a", "b")(folder)
        (folder / "units" / "late.py").write_text(LATE)
        text = '[agent]\nclass = "late:Late"\npath = ["."]\n[unit]\nenabled = false\n'
        (folder / "units" / "late.toml").write_text(text)

    with supervisor({}, prepare=prepare, settings=SMALL) as running, puppets(running, "a", "b") as (a, b):
        oldest = flood(running, a)
        b.send({"id": "sub", "subscribe": "stream", "after": 1})
        told, first = b.receive_all(lambda each: "dropped" in each or is_delivery(each), 2)
        assert (told["dropped"], told["after"], told["to"]) == (None, 1, "topic:stream")
        assert first["seq"] > told["until"] >= oldest - 1

        # The SDK: the agent hears of it, and of everything from there on.
        assert running.supctl("start", "late").returncode == 0
        until(lambda: "topic:stream" in (running.status("late")["status_text"] or ""), "its first message")
        missed, _, rest = running.status("late")["status_text"].partition(") (")
        assert missed.startswith("('topic:stream', 1, ")
        assert int(rest.split(",")[0]) > int(missed.rpartition(" ")[2]) >= oldest - 1

        # People and programs without ZeroMQ.
        everything = {"units": [], "events": [], "after": 1}
        with running.client() as client, client.stream("Journal.Follow", filter=everything) as stream:
            reply = next(iter(stream))
            assert reply["gone"] == reply["record"]["seq"] - 1 >= oldest - 1
            assert "gone" not in next(iter(stream))
        with running.client() as client:
            kept = everything | {"after": reply["record"]["seq"]}
            with client.stream("Journal.Follow", filter=kept) as stream:
                assert "gone" not in next(iter(stream))

"""The message bus when managers die, lives end, one agent floods it, nobody reads, or the disk takes nothing."""

import json
import resource
import threading
import time
from pathlib import Path
from textwrap import dedent

import psutil

from tests.integration.bus_rig import Puppet, is_ack, is_delivery, messages, puppet_unit, puppets, with_puppets
from tests.integration.supervisor_rig import SYSTEM_PYTHON, RunningSupervisor, supervisor, until

AGENTS = dedent(
    """
    from supervisord_py.agent import Agent, NotSentError

    class Counter(Agent):
        every = 0

        def setup(self):
            self.n = 0

        def run_cycle(self):
            self.send("count", to="topic:count", n=self.n)
            self.n += 1

    class Listener(Agent):
        every = 3600

        def setup(self):
            self.subscribe("count")
            self.subscribe("")
            self.seen = open(self.config["seen"], "a")

        def run_cycle(self):
            pass

        def on_message(self, message):
            print(message.seq, message.sender, message.payload.get("n"), file=self.seen, flush=True)

    class Stray(Agent):
        def run_cycle(self):
            try:
                self.send("hello", to="nobody")
            except NotSentError as problem:
                self.status(f"{problem.refusal}: {problem}")

    class LoopListener(Listener):
        async def run_cycle(self):
            pass
    """
)


def agent(name: str, folder: Path) -> str:
    return f'[agent]\nclass = "bus_agents:{name}"\npath = "{folder}"\nconfig = {{ seen = "{folder}/{name}" }}\n'


def test_no_manager_s_death_loses_or_doubles_a_message_of_agents() -> None:
    """The SDK sends again and asks again: a counter that is killed under counts on, listeners of both kinds miss none,
    and hear it at once although their next cycle is in an hour."""

    def prepare(folder: Path) -> None:
        (folder / "bus_agents.py").write_text(AGENTS)
        for unit, cls in (("plain", "Listener"), ("loop", "LoopListener")):
            (folder / "units" / f"{unit}.toml").write_text(agent(cls, folder))
        (folder / "units" / "counter.toml").write_text('[unit]\nafter = ["plain", "loop"]\n' + agent("Counter", folder))

    with supervisor({}, prepare=prepare) as running:
        for _ in range(3):
            before = len(messages(running, "counter"))
            until(lambda before=before: len(messages(running, "counter")) > before + 20, "the counter counts", 60)
            running.kill_manager()
        before = len(messages(running, "counter"))
        until(lambda: len(messages(running, "counter")) > before + 20, "the counter counts on", 60)
        running.supctl("stop", "counter")
        written = [(record["seq"], record["payload"]["n"]) for record in messages(running, "counter")]
        assert [n for _, n in written] == list(range(len(written)))

        def heard(name: str) -> list[tuple[int, int]]:
            lines = [line.split() for line in (running.folder / name).read_text().splitlines()]
            assert all(sender == "counter" for _, sender, _ in lines)
            return [(int(seq), int(n)) for seq, _, n in lines]

        for name in ("Listener", "LoopListener"):
            until(lambda name=name: heard(name)[-1] == written[-1], f"the {name} hears the last one", 60)
            assert heard(name) == written


def test_no_manager_s_death_loses_or_doubles_a_message_of_plain_zeromq() -> None:
    """Sent without waiting while managers die; what is not acknowledged is sent again until it is: once each."""
    with supervisor({}, prepare=with_puppets("a", "b"), settings='[bus]\nrate-limit = "100000/s"\n') as running:
        with puppets(running, "a", "b") as (a, b):
            b.ask(subscribe="t")
            waiting = {f"m{number}": {"to": "topic:t", "n": number} for number in range(600)}
            acknowledged: dict[str, int] = {}
            killer = threading.Thread(target=lambda: [running.kill_manager() for _ in range(2)])
            for round_ in range(20):
                a.send(*({"id": id, **message} for id, message in waiting.items()))
                if round_ == 0:
                    killer.start()
                while came := a.receive(50, timeout_s=3):
                    acknowledged |= {answer["ack"]: answer["seq"] for answer in came if "ack" in answer}
                    if waiting.keys() <= acknowledged.keys():
                        break
                waiting = {id: message for id, message in waiting.items() if id not in acknowledged}
                if not waiting and not killer.is_alive():
                    break
            killer.join()
            assert not waiting
            written = {record["id"]: record["seq"] for record in messages(running, "a")}
            assert written == acknowledged
            assert len(messages(running, "a")) == len(written) == 600
            # Whoever lost its connection gets the rest by the number that it saw last.
            b.open("new")
            b.send({"subscribe": "t", "after": 0}, name="new")
            came = b.receive_all(is_delivery, 600, "new")
            assert [each["seq"] for each in came] == sorted(written.values())


def test_the_bus_stays_when_keeper_and_manager_are_replaced() -> None:
    """``daemon-reexec``: the same socket, with whoever waits there; at the end it is gone."""
    with supervisor({}, prepare=with_puppets("a")) as running:
        path = running.folder / "r" / "bus.sock"
        inode = path.stat().st_ino
        with puppets(running, "a") as (a,):
            first = a.ask(event="before")["seq"]
            assert running.supctl("daemon-reexec").returncode == 0
            assert a.ask(event="after")["seq"] > first
            assert path.stat().st_ino == inode
        assert running.stop() == 0
        assert not path.exists()


def test_messages_of_a_life_that_is_over_are_dropped() -> None:
    """What it left behind may not speak for the next life: neither on its old connection nor on a new one."""

    def prepare(folder: Path) -> None:
        with_puppets("a")(folder)
        (folder / "units" / "a.toml").write_text(puppet_unit(folder, "a", 'kill-mode = "process"\n'))

    with supervisor({}, prepare=prepare) as running:
        left = running.folder / "left.orders"
        with puppets(running, "a") as (a,):
            a.do("fork", path=str(left))
        old = Puppet(left)
        try:
            old.open()
            assert old.ask(event="of the first life")["seq"] > 0
            assert running.supctl("restart", "a").returncode == 0
            assert old.ask(event="still of the first life")["error"] == "old-life"
            old.open("new")
            old.send({"id": "n", "event": "from a new connection"}, name="new")
            with puppets(running, "a") as (a,):
                assert a.ask(event="of the second life")["seq"] > 0
            assert old.receive(name="new", timeout_s=0.1) == []
            names = [record["name"] for record in messages(running, "a")]
            assert names == ["of the first life", "of the second life"]
            assert len({record["invocation"] for record in messages(running, "a")}) == 2
            stats = json.loads(running.supctl("stats", "--json").stdout)["bus"]
            assert stats["by_unit"]["a"]["old-life"] >= 2
        finally:
            old.close()
            until(lambda: _kill_left(running, left), "what was left behind ends")


def _kill_left(running: RunningSupervisor, left: Path) -> bool:
    found = [
        process
        for process in psutil.Process(running.keeper_pid).children(recursive=True)
        if str(left) in process.cmdline()
    ]
    for process in found:
        process.kill()
    return not found


def test_a_flood_costs_the_one_who_makes_it() -> None:
    """Ten thousand messages that nobody waits for: another agent's are acknowledged meanwhile, at once."""
    with supervisor({}, prepare=with_puppets("a", "b"), settings='[bus]\nrate-limit = "50/s"\n') as running:
        with puppets(running, "a", "b") as (a, b):
            b.ask(event="warm")
            flood = threading.Thread(
                target=lambda: a.send(*({"id": f"f{number}", "event": "flood"} for number in range(10_000)))
            )
            flood.start()
            took_s = []
            for _ in range(10):
                begun_s = time.monotonic()
                assert b.ask(event="normal")["seq"] > 0
                took_s.append(time.monotonic() - begun_s)
            flood.join()
            refused = a.receive_all(lambda each: each.get("error") == "rate-limited", 100)
            assert {answer["id"][0] for answer in refused} == {"f"}
            # As long as a loaded machine may take, and far from what a flood in front of it would.
            assert sorted(took_s)[5] < 2, took_s
            assert len(messages(running, "a")) < 2000
            limits = [record for record in running.records() if record["event"] == "unit.limit"]
            assert [(record["unit"], record["limit"], record["refused"]) for record in limits] == [("a", "messages", 1)]
            running.check_invariants()


def test_a_subscriber_that_does_not_read_is_told_what_it_missed() -> None:
    """Its queue is bounded, others get theirs; from where it was told on the journal has the rest."""
    settings = '[bus]\nrate-limit = "100000/s"\nqueue = 100\n'
    with supervisor({}, prepare=with_puppets("a", "b", "c"), settings=settings) as running:
        with puppets(running, "a", "b", "c") as (a, b, c):
            b.open("slow", rcvhwm=1)
            b.ask("slow", subscribe="t")
            c.ask(subscribe="t")
            count = 2000
            for start in range(0, count, 50):
                a.send(*({"id": f"m{n}", "to": "topic:t", "n": n, "x": "x" * 3000} for n in range(start, start + 50)))
                a.receive_all(is_ack, 50)
                c.receive_all(is_delivery, 50)
            came: list[int] = []
            while True:
                (answer,) = b.receive(name="slow")
                if "dropped" in answer:
                    break
                came.append(answer["n"])
            assert came == list(range(len(came)))
            assert 0 < answer["dropped"] <= count - len(came)
            assert answer["to"] == "topic:t"
            b.open("again")
            b.send({"subscribe": "t", "after": answer["after"]}, name="again")
            rest = [each["n"] for each in b.receive_all(is_delivery, count - len(came), "again")]
            assert came + rest == list(range(count))
            stats = json.loads(running.supctl("stats", "--json").stdout)["bus"]
            assert stats["by_unit"]["b"]["dropped"] >= answer["dropped"]
            (limit,) = [record for record in running.records() if record["event"] == "unit.limit"]
            assert (limit["unit"], limit["limit"]) == ("b", "messages to topic:t")


def test_subscribers_that_do_not_read_took_the_managers_memory() -> None:
    """Each had a copy of its own of every message: one agent with 60 connections made it 3 GB, and everybody wait."""
    settings = '[bus]\nrate-limit = "100000/s"\nqueue = 1000\n'
    with supervisor({}, prepare=with_puppets("a", "b"), settings=settings) as running:
        with puppets(running, "a", "b") as (a, b):
            for number in range(40):
                b.open(f"slow {number}", rcvhwm=1)
                b.ask(f"slow {number}", subscribe="t")
            manager = psutil.Process(running.manager_pid())
            before = manager.memory_info().rss
            for start in range(0, 200, 20):
                payload = {f"part{n}": "x" * 3900 for n in range(15)}
                a.send(*({"id": f"m{n}", "to": "topic:t", **payload} for n in range(start, start + 20)))
                a.receive_all(is_ack, 20)
            stats = json.loads(running.supctl("stats", "--json").stdout)["bus"]
            assert stats["by_unit"]["b"]["delivered"] == 40 * 200
            assert manager.memory_info().rss - before < 200 * 1024 * 1024


def test_with_block_the_sender_waits_for_room() -> None:
    """Nothing is dropped: the acknowledgement comes when the subscriber has taken what was before."""
    settings = '[bus]\nrate-limit = "100000/s"\nqueue = 1000\non-full = "block"\n'
    with supervisor({}, prepare=with_puppets("a", "b"), settings=settings) as running:
        with puppets(running, "a", "b") as (a, b):
            b.open("slow", rcvhwm=1)
            b.ask("slow", subscribe="t")
            sent = 0
            acknowledged: list[dict[str, object]] = []
            while len(acknowledged) == sent:
                a.send(*({"id": f"m{n}", "to": "topic:t", "n": n, "x": "x" * 4000} for n in range(sent, sent + 200)))
                sent += 200
                acknowledged += a.receive(200, timeout_s=1)
                assert sent < 20_000, "it never waits"
            taken = b.receive_all(is_delivery, sent, "slow")
            assert [each["n"] for each in taken] == list(range(sent))
            acknowledged += a.receive_all(is_ack, sent - len(acknowledged))
            assert {answer["ack"] for answer in acknowledged} == {f"m{n}" for n in range(sent)}


def test_a_disk_that_takes_nothing_is_never_acknowledged() -> None:
    """Refused while the journal cannot be written; the same message is taken when it can be again."""
    with supervisor({}, prepare=with_puppets("a", "b"), invariants=False) as running:
        with puppets(running, "a", "b") as (a, b):
            b.ask(subscribe="t")
            assert a.ask(to="topic:t", n=0)["seq"] > 0
            manager = psutil.Process(until(running.manager_pid, "the manager"))
            _, hard = manager.rlimit(resource.RLIMIT_FSIZE)
            manager.rlimit(resource.RLIMIT_FSIZE, (1, hard))
            refused = a.ask(id="late", to="topic:t", n=1)
            assert refused["error"] == "not-written"
            assert a.ask(id="later", to="topic:t", n=2)["error"] == "not-written"
            assert len(messages(running, "a")) == 1
            manager.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
            seqs = [
                until(lambda id=id, n=n: a.ask(id=id, to="topic:t", n=n).get("seq"), f"{id} is taken", 60)
                for n, id in ((1, "late"), (2, "later"))
            ]
            assert [(record["id"], record["seq"]) for record in messages(running, "a")[1:]] == [
                ("late", seqs[0]),
                ("later", seqs[1]),
            ]
            assert [each["n"] for each in b.receive_all(is_delivery, 3)] == [0, 1, 2]


def test_an_agent_without_pyzmq_is_told() -> None:
    """An interpreter of its own that has none: the cycle's error says what to install."""

    def prepare(folder: Path) -> None:
        (folder / "bus_agents.py").write_text(AGENTS)
        text = agent("Counter", folder).replace("[agent]\n", f'[agent]\npython = "{SYSTEM_PYTHON}"\nevery = 0.2\n')
        (folder / "units" / "counter.toml").write_text(text)

    with supervisor({}, prepare=prepare) as running:
        until(lambda: [record for record in running.records() if record["event"] == "unit.error"], "an error", 60)
        (error, *_) = [record for record in running.records() if record["event"] == "unit.error"]
        assert "has no pyzmq, which messages need: install that" in error["message"]


def test_an_agent_learns_why_its_message_was_refused() -> None:
    """By a word that it can decide by, as the protocol has it."""

    def prepare(folder: Path) -> None:
        (folder / "bus_agents.py").write_text(AGENTS)
        (folder / "units" / "stray.toml").write_text(agent("Stray", folder))

    with supervisor({}, prepare=prepare) as running:
        told = until(lambda: running.status("stray")["status_text"], "what it was told")
        assert told == "no-such-unit: refused: there is no unit nobody"


SENDER = dedent(
    """
    import os, threading
    from supervisord_py.agent import Agent, NotSentError

    class Sender(Agent):
        every = 3600

        def tell(self, what, **payload):
            try:
                self.send("news", to="topic:t", timeout=60, what=what, **payload)
            except NotSentError as problem:
                print(what, "not sent:", problem, flush=True)
            else:
                print(what, "sent", flush=True)

        def run_cycle(self):
            self.tell("first")
            thread = threading.Thread(target=self.tell, args=("thread",))
            thread.start()
            thread.join()
            self.tell("id", id=1)
            self.tell("half", half="\\ud800")
            if not os.fork():
                self.tell("child")
                os._exit(0)
            os.wait()
            self.tell("last")
    """
)


def test_what_could_not_be_sent_was_waited_for_in_vain() -> None:
    """By a child, whose libzmq was its parent's, for ever; by another thread, or under an id of one's own, until the
    time was up."""

    def prepare(folder: Path) -> None:
        (folder / "units" / "sender.py").write_text(SENDER)

    unit = '[agent]\nclass = "sender:Sender"\npath = ["."]\n'
    with supervisor({"sender": unit}, prepare=prepare) as running:
        log = running.folder / "l" / "sender.log"
        until(lambda: log.exists() and "last" in log.read_text(), "the last message")
        told = log.read_text().splitlines()
        assert told.pop(3).startswith("half not sent: this cannot be sent: 'utf-8' codec can't encode")
        assert told == [
            "first sent",
            "thread not sent: messages are sent and asked for by the agent's own thread, and this is another one",
            "id not sent: a message has no field id of its own: name it otherwise",
            "child sent",
            "last sent",
        ]
        assert [each["payload"]["what"] for each in messages(running)] == ["first", "child", "last"]

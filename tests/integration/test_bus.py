"""The message bus of a real supervisor, spoken to with plain pyzmq by processes of units, and by strangers."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.integration.bus_rig import Puppet, is_ack, is_delivery, messages, puppets, with_puppets
from tests.integration.supervisor_rig import SYSTEM_PYTHON, RunningSupervisor, supervisor, until


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSupervisor]:
    with supervisor({}, prepare=with_puppets("a", "b", "c"), settings='[bus]\nrate-limit = "100000/s"\n') as made:
        yield made


@pytest.fixture
def a(running: RunningSupervisor) -> Iterator[Puppet]:
    with puppets(running, "a") as (found,):
        yield found


@pytest.fixture
def b(running: RunningSupervisor) -> Iterator[Puppet]:
    with puppets(running, "b") as (found,):
        yield found


@pytest.fixture
def c(running: RunningSupervisor) -> Iterator[Puppet]:
    with puppets(running, "c") as (found,):
        yield found


def test_a_message_is_a_record_before_it_is_acknowledged_and_then_delivered(
    running: RunningSupervisor, a: Puppet, b: Puppet
) -> None:
    """From unit to unit: who sent it is what the kernel says, in the record and in the delivery."""
    b.ask(subscribe="b")
    ack = a.ask(id="one", to="b", event="hello", n=1)
    (record,) = [record for record in messages(running, "a") if record["id"] == "one"]
    assert ack == {"v": 1, "ack": "one", "seq": record["seq"]}
    assert (record["to"], record["name"], record["payload"]) == ("b", "hello", {"n": 1})
    assert record["invocation"] == running.status("a")["invocation"]
    assert b.receive_all(is_delivery, 1) == [
        {
            "v": 1, "seq": record["seq"], "from": "a", "invocation": record["invocation"], "event": "hello", "to": "b",
            "n": 1,
        }
    ]  # fmt: skip


def test_a_topic_goes_to_all_its_subscribers_and_an_event_to_the_journal_alone(
    running: RunningSupervisor, a: Puppet, b: Puppet, c: Puppet
) -> None:
    """One with a prefix, one without; who has not subscribed gets nothing."""
    b.ask(subscribe="news")
    c.ask(subscribe="topic:news")
    seq = a.ask(to="topic:news", x=1)["seq"]
    alone = a.ask(event="to nobody")["seq"]
    last = a.ask(to="topic:news", x=2)["seq"]
    for each in (b, c):
        assert [delivery["seq"] for delivery in each.receive_all(is_delivery, 2)] == [seq, last]
    assert alone in [record["seq"] for record in messages(running, "a") if record["to"] is None]


def test_a_connection_gets_what_is_sent_to_its_unit_from_its_first_request_on(
    running: RunningSupervisor, a: Puppet, b: Puppet
) -> None:
    """Without a subscription: each connection of the unit, and none twice."""
    b.open("other")
    b.ask(event="I am here")
    b.ask("other", subscribe="", after=0)
    seq = a.ask(to="b", event="for you")["seq"]
    assert b.receive_all(is_delivery, 1)[0]["seq"] == seq
    came = b.receive_all(lambda each: each.get("seq") == seq, 1, "other")
    assert came[0]["event"] == "for you"
    marker = a.ask(to="b", event="the next")["seq"]
    for name in ("", "other"):
        assert b.receive_all(is_delivery, 1, name)[0]["seq"] == marker


def test_what_is_sent_again_is_written_once(running: RunningSupervisor, a: Puppet, b: Puppet) -> None:
    """An id of the same life has one number, however often it comes; another unit may use it too."""
    a.send(*({"id": "same", "event": "x", "n": n} for n in range(3)))
    numbers = {answer["seq"] for answer in a.receive_all(is_ack, 3)}
    assert numbers == {a.ask(id="same", event="x")["seq"]}
    assert b.ask(id="same", event="x")["seq"] not in numbers
    assert len([record for record in messages(running, "a") if record["id"] == "same"]) == 1


def test_a_subscription_behind_a_number_has_no_hole_and_nothing_twice(
    running: RunningSupervisor, a: Puppet, b: Puppet
) -> None:
    """It begins in the middle of a stream: what is in the journal first, then what comes."""
    first = a.ask(event="the stream begins")["seq"]
    for start in range(0, 600, 100):
        a.send(*({"id": f"s{n}", "to": "topic:stream", "n": n} for n in range(start, start + 100)))
        if start == 200:
            b.send({"id": "sub", "subscribe": "stream", "after": first})
    a.receive_all(is_ack, 600)
    came = b.receive_all(is_delivery, 600)
    assert [delivery["n"] for delivery in came] == list(range(600))
    # And anew, from where it was seen last.
    seen = came[299]["seq"]
    b.open("again")
    b.send({"id": "sub", "subscribe": "stream", "after": seen}, name="again")
    assert [delivery["n"] for delivery in b.receive_all(is_delivery, 300, "again")] == list(range(300, 600))


def test_what_is_no_request_is_answered_and_the_next_one_counts(running: RunningSupervisor, a: Puppet) -> None:
    """Garbage, several frames, a unit that there is not, too much of it: an error each, and nothing is written."""
    before = len(messages(running, "a"))
    a.send_frames([b"\x00garbage"], [b"{}", b"{}"], [b""], [b" " * 70_000])
    slugs = [answer["error"] for answer in a.receive_all(lambda each: "error" in each, 4)]
    assert slugs == ["bad-request", "bad-request", "bad-request", "too-large"]
    assert a.ask(to="nobody", event="x")["error"] == "no-such-unit"
    assert a.ask(event="x", seq=3)["error"] == "bad-request"
    assert a.ask(event="still here")["seq"] > 0
    assert len(messages(running, "a")) == before + 1


def test_a_frame_without_end_costs_its_sender_the_connection(running: RunningSupervisor, a: Puppet, b: Puppet) -> None:
    """Above the bound of libzmq nothing is read: that connection ends, and comes again by itself."""
    a.send_frames([b" " * 2_000_000])
    assert b.ask(event="others go on")["seq"] > 0
    a.open("new")
    assert a.ask("new", event="so does it, anew")["seq"] > 0


def test_long_values_are_cut_as_in_the_journal_and_secrets_taken_out(
    running: RunningSupervisor, a: Puppet, b: Puppet
) -> None:
    """Subscribers get what the journal has, now and later; the sender is told what was cut."""
    b.ask(subscribe="long")
    ack = a.ask(to="topic:long", text="x" * 10_000, password="hunter2")
    assert ack["truncated"] == {"payload.text": 10_000}
    (delivery,) = b.receive_all(is_delivery, 1)
    assert (len(delivery["text"]), delivery["password"]) == (4096, "[redacted]")
    assert delivery["truncated"] == {"payload.text": 10_000}
    b.open("later")
    b.send({"subscribe": "long", "after": ack["seq"] - 1}, name="later")
    assert b.receive_all(is_delivery, 1, "later") == [delivery]


def test_every_process_of_a_unit_finds_the_bus(running: RunningSupervisor, a: Puppet) -> None:
    """It is in the environment, and any user may connect: the manager says who may come in."""
    path = running.folder / "r" / "bus.sock"
    assert a.do("environ")["SUPERVISORD_PY_BUS"] == f"ipc://{path}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666


def test_who_may_read_the_journal_may_subscribe_and_not_send(running: RunningSupervisor, a: Puppet) -> None:
    """This process belongs to no unit."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as guest:
        guest.linger = 0
        guest.rcvtimeo = 30_000
        guest.connect(f"ipc://{running.folder}/r/bus.sock")
        guest.send_json({"v": 1, "id": "x", "to": "a", "event": "stop"})
        assert guest.recv_json()["error"] == "not-permitted"
        guest.send_json({"v": 1, "id": "m", "subscribe": ""})
        assert guest.recv_json()["error"] == "bad-request"
        guest.send_json({"v": 1, "id": "s", "subscribe": "open"})
        assert guest.recv_json()["ack"] == "s"
        seq = a.ask(to="topic:open", event="x")["seq"]
        assert guest.recv_json()["seq"] == seq


def test_messages_are_published_again(running: RunningSupervisor, a: Puppet, b: Puppet) -> None:
    """``journal replay --to``: with their senders, once each, and never what was published again by itself."""
    b.ask(subscribe="again")
    before = a.ask(event="before")["seq"]
    numbers = [a.ask(to="topic:first", n=n)["seq"] for n in range(3)]
    ran = running.supctl("journal", "replay", "--to", "again", "--after", str(before), "-u", "a", "--json")
    reply = json.loads(ran.stdout)
    assert reply["count"] == 3, ran
    came = b.receive_all(is_delivery, 3)
    assert [(each["from"], each["n"], each["replay_of"]) for each in came] == [
        ("a", n, seq) for n, seq in enumerate(numbers)
    ]
    assert [reply["first_seq"], reply["last_seq"]] == [came[0]["seq"], came[-1]["seq"]]
    (command,) = [record for record in running.records() if record["event"] == "command" and record["verb"] == "replay"]
    assert command["to"] == "topic:again"


def test_what_became_of_messages_is_counted(running: RunningSupervisor, a: Puppet) -> None:
    """``supctl stats``: by unit and in all."""
    before = json.loads(running.supctl("stats", "--json").stdout)["bus"]
    a.ask(event="x")
    a.ask(to="nobody", event="x")
    after = json.loads(running.supctl("stats", "--json").stdout)["bus"]
    assert after["listening"] and after["connections"] >= 1
    assert after["by_unit"]["a"]["sent"] == before["by_unit"].get("a", {}).get("sent", 0) + 1
    assert after["totals"]["no-such-unit"] == before["totals"].get("no-such-unit", 0) + 1
    assert "SENT" in running.supctl("stats").stdout


def test_a_stranger_is_refused_and_that_is_a_record() -> None:
    """Nobody may read this journal, so who belongs to no unit has no business here; units have."""
    settings = '[supervisor]\nallowed-commands = ["monitoring", "shutdown"]\n'
    with supervisor({}, prepare=with_puppets("a"), settings=settings, invariants=False) as running:
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            monitor = stranger.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
            stranger.connect(f"ipc://{running.folder}/r/bus.sock")
            stranger.send_json({"v": 1, "id": "x", "to": "a", "event": "stop"})
            assert monitor.poll(30_000)
            stranger.disable_monitor()
            monitor.close(0)
        until(lambda: [r for r in running.records() if r["event"] == "command.denied"], "a record of it")
        (denied,) = [record for record in running.records() if record["event"] == "command.denied"]
        assert (denied["verb"], denied["pid"]) == ("bus", os.getpid())
        assert not messages(running)
        with puppets(running, "a") as (a,):
            assert a.ask(event="x")["seq"] > 0


@pytest.mark.root
def test_agents_of_every_user_come_in() -> None:
    """A supervisor of root has units that run as others: they are who they are by their unit, and not by their uid."""

    def prepare(folder: Path) -> None:
        with_puppets("a")(folder)
        folder.chmod(0o755)
        (folder / "orders").mkdir()
        (folder / "orders").chmod(0o777)
        orders = json.dumps([SYSTEM_PYTHON, str(folder / "puppet.py"), str(folder / "orders" / "b.orders")])
        path = f'[service.environment]\nPYTHONPATH = "{Path(zmq.__file__).parents[1]}"\n'
        (folder / "units" / "b.toml").write_text(f'[service]\nexec-start = {orders}\nuser = "nobody"\n{path}')

    with supervisor({}, prepare=prepare) as running, puppets(running, "a", "orders/b") as (a, b):
        b.ask(subscribe="b")
        seq = a.ask(to="b", event="x")["seq"]
        assert b.receive_all(is_delivery, 1)[0]["seq"] == seq
        b.ask(event="y")
        assert [record["name"] for record in messages(running, "b")] == ["y"]

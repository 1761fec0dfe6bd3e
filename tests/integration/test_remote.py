"""Remote access to a real supervisor: CURVE keys, what each may do, and what becomes of everybody at every death."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.ctl.client import ConnectionLostError, ControlError
from tests.integration.bus_rig import puppets, with_puppets
from tests.integration.remote_rig import WAIT_S, Remote, free_address, listens
from tests.integration.remote_rig import Keys as KeysOf
from tests.integration.supervisor_rig import supervisor, until

SLEEPER = '[service]\nexec-start = ["/bin/sleep", "1000"]\n'
TALKER = '[service]\nexec-start = ["/bin/sh", "-c", "while echo $((n += 1)); do sleep 0.1; done"]\n'


@contextmanager
def remote_supervisor(
    keys_in: Path, units: dict[str, str], commands: str, bus_commands: str = "[]", *puppet_names: str, more: str = ""
) -> Iterator[Remote]:
    """A supervisor with the keys of alice and bob."""
    remote = Remote()
    try:
        remote.keys = KeysOf(keys_in)
        for name in ("alice", "bob"):
            remote.keys.make(name)
        settings = remote.settings(commands, bus_commands, more)
        with supervisor(units, settings=settings, prepare=with_puppets(*puppet_names)) as running:
            remote.running = running
            remote.wait_listening()
            yield remote
    finally:
        remote.close()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("remote")
    units = {"web": SLEEPER, "talker": TALKER}
    grants = '{ alice = ["operator", "set"], crowd = "journal" }', '{ alice = ["journal", "send"] }'
    with remote_supervisor(folder, units, *grants, "puppet") as made:
        yield made


def records(remote: Remote, event: str, **fields: Any) -> list[dict[str, Any]]:
    return [
        record
        for record in remote.running.records()
        if record["event"] == event and all(record.get(name) == value for name, value in fields.items())
    ]


# The control interface


def test_a_call_is_a_frame_and_so_is_its_reply(remote: Remote) -> None:
    """One Varlink message each, without a NUL, from a plain DEALER; calls that are sent together, in their order."""
    with remote.dealer("alice") as dealer:
        assert dealer.call("Manager.Ping") == {"parameters": {"answer": "pong"}}
        for method in ("Manager.Version", "Manager.Ping"):
            dealer.send(json.dumps({"method": f"py.supervisord.{method}"}).encode())
        assert "keeper_pid" in dealer.hear()["parameters"]
        assert dealer.hear() == {"parameters": {"answer": "pong"}}


def test_what_is_no_call_is_told_and_spoils_none_after_it(remote: Remote) -> None:
    """Garbage, NULs, several parts, too large: an error each, in turn, on the same connection."""
    ping = b'{"method":"py.supervisord.Manager.Ping"}'
    bad = ([b"garbage"], [b""], [b"\0"], [ping + b"\0" + ping], [ping, ping], [b"[]"], [b"x" * 1_500_000])
    with remote.dealer("bob") as dealer:
        for frames in bad:
            dealer.send(*frames)
            dealer.send(ping)
            assert dealer.hear()["error"] == "py.supervisord.Manager.InvalidRequest"
            assert dealer.hear() == {"parameters": {"answer": "pong"}}
    until(lambda: len(records(remote, "command.invalid", key="bob")) >= len(bad), "a record of each")


def test_a_key_monitors_unless_it_is_granted_more(remote: Remote) -> None:
    """Refusals and what was done are recorded with the key and its address, ``why`` names both."""
    with remote.client("bob") as bob, pytest.raises(ControlError, match="key bob may not restart") as refused:
        bob.call("Restart", units=["web"], wait=True, plan=False, reason="for fun")
    assert (refused.value.name, refused.value.exit_status) == ("NotPermitted", 5)
    (denied,) = until(lambda: records(remote, "command.denied", key="bob", verb="restart"), "the refusal")
    assert denied["address"].startswith("127.")
    assert (denied["uid"], denied["pid"], denied["units"], denied["reason"]) == (None, None, ["web"], "for fun")

    done = remote.supctl("restart", "web", "-m", "new release")
    assert done.returncode == 0, done.stderr
    (command,) = records(remote, "command", key="alice", verb="restart")
    assert (command["uid"], command["reason"], command["result"]) == (None, "new release", "queued")
    why = remote.supctl("why", "web").stdout
    assert f"restarted by key alice ({command['address']}): new release" in why
    assert f"key alice ({command['address']}): restart web (new release)" in remote.supctl("journal", "tail").stdout


def test_supctl_and_the_client_are_as_at_home(remote: Remote) -> None:
    """Queries, verbs, exit codes, streams."""
    assert remote.supctl("status", "web").returncode == 0
    assert remote.supctl("status", "nothing").returncode == 4
    assert remote.supctl("shutdown").returncode == 5
    assert "yes: key alice may restart web" in remote.supctl("can", "restart", "web").stdout
    assert remote.supctl("set", "web", "limits.nofile=4096").returncode == 0
    listed = json.loads(remote.supctl("list", "--json").stdout)
    assert {unit["name"] for unit in listed["units"]} == {"web", "talker", "puppet"}
    edit = remote.supctl("edit", "web")
    assert (edit.returncode, "--remote is another" in edit.stderr) == (2, True)
    with remote.client("alice") as client:
        with client.stream("Journal.Follow", filter={"units": ["web"], "events": []}, last=1) as stream:
            assert next(iter(stream))["record"]["unit"] == "web"
            client.call("Restart", units=["web"], wait=True, plan=False)
            assert any(reply["record"]["event"] == "unit.ready" for reply in stream)


def test_who_is_not_meant_is_told_so_and_does_not_hang(remote: Remote, tmp_path: Path) -> None:
    """A key that nobody knows, a supervisor that is another one, nobody at all, somebody who says nothing."""
    stranger = remote.keys.make("stranger", known=False)
    denied = remote.supctl("--json", "ping", keys=str(stranger))
    assert (denied.returncode, json.loads(denied.stdout)["error"]["code"]) == (5, "not-permitted")
    assert remote.keys.own["stranger"].public in denied.stderr
    message = f"the public key {remote.keys.own['stranger'].public} is not in {remote.keys.folder}"
    until(lambda: records(remote, "command.denied", verb="connect", message=message), "a record of the refusal")
    (stranger / "server.key").write_text((stranger / "client.key").read_text())
    wrong = remote.supctl("ping", keys=str(stranger))
    assert (wrong.returncode, "has not the secret key of server.key" in wrong.stderr) == (7, True)
    assert "chmod 600" in remote.supctl("ping", keys=_spoiled(stranger)).stderr
    nobody = remote.supctl("ping", address=free_address())
    assert (nobody.returncode, "nobody listens there" in nobody.stderr) == (7, True)


def _spoiled(folder: Path) -> str:
    (folder / "client.key_secret").chmod(0o644)
    return str(folder)


def test_a_key_that_comes_is_let_in_and_one_that_goes_is_cut_off(remote: Remote) -> None:
    """At once, without a restart: what it follows ends, and it does not come in again, until it is there again."""
    remote.keys.make("carol", known=False)
    with remote.client("carol") as carol:
        with pytest.raises(Exception, match="does not let the key"):
            carol.call("Ping")
        remote.keys.let_in("carol")
        assert carol.call("Ping") == {"answer": "pong"}
        with remote.dealer("carol", remote.bus) as on_the_bus, remote.dealer("carol") as plain:
            assert plain.call("Manager.Ping") == {"parameters": {"answer": "pong"}}
            assert on_the_bus.ask(subscribe="news")["error"] == "not-permitted"
            with remote.client("alice") as alice:
                stream = alice.stream("Journal.Follow", filter={"units": ["web"], "events": []}, last=0)
                remote.keys.take_away("carol")
                with pytest.raises(Exception, match="does not let the key"):
                    until(lambda: carol.call("Ping") is None, "the end of the connection")
                assert not stream.ended, "nobody else is cut"
                stream.close()
            plain.send(b'{"method":"py.supervisord.Manager.Ping"}')
            assert not plain.socket.poll(500), "a DEALER that connects again by itself is not let in"


def test_a_follower_whose_key_goes_is_cut_off(remote: Remote) -> None:
    remote.keys.make("dora")
    with remote.client("dora") as dora:
        assert dora.call("Ping")
        remote.keys.take_away("dora")
        remote.keys.make("dora")
        link = remote.client("dora")
        assert link.call("Ping"), "another key of the same name"
        # Somebody who waits for long is cut off, too.
        lost = threading.Event()

        def wait() -> None:
            with pytest.raises(Exception, match="does not let the key"):
                link.call("Wait", unit="web", until="inactive")
            lost.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        remote.keys.take_away("dora")
        waiting.join(WAIT_S)
        assert lost.is_set()
        link.close()


def test_a_key_has_so_many_conversations_and_no_more(remote: Remote) -> None:
    """The others are told that it is busy, and other keys are none the worse."""
    remote.keys.make("crowd")
    with _followers(remote, 40) as answers:
        assert sum("error" in answer and answer["error"].endswith(".Busy") for answer in answers) == 8
        with remote.dealer("bob") as dealer:
            assert dealer.call("Manager.Ping") == {"parameters": {"answer": "pong"}}


@contextmanager
def _followers(remote: Remote, many: int) -> Iterator[list[dict[str, Any]]]:
    if not many:
        yield []
        return
    call = {"method": "py.supervisord.Journal.Follow", "more": True}
    with remote.dealer("crowd") as dealer:
        dealer.send(json.dumps(call | {"parameters": {"filter": {"units": [], "events": []}, "last": 1}}).encode())
        first = dealer.hear()
        with _followers(remote, many - 1) as others:
            yield [first, *others]


# The bus


def test_messages_from_afar_have_a_sender_that_is_no_unit(remote: Remote) -> None:
    """To a topic and to a unit; the record has key and address, and one may subscribe to what others send."""
    with puppets(remote.running, "puppet") as (puppet,), remote.dealer("alice", remote.bus) as alice:
        puppet.ask(subscribe="news")
        seq = alice.ask(to="topic:news", event="hello", n=1)["seq"]
        delivery = puppet.receive_all(lambda each: "from" in each, 1)[0]
        assert delivery == {
            "v": 1, "seq": seq, "from": "key/alice", "invocation": None, "event": "hello", "to": "topic:news", "n": 1,
        }  # fmt: skip
        (record,) = records(remote, "unit.message", seq=seq)
        assert (record["unit"], record["sender"]) == (None, "key/alice")
        assert record["address"].startswith("127.")
        seq = alice.ask(to="puppet", event="x")["seq"]
        assert puppet.receive_all(lambda each: each.get("seq") == seq, 1)[0]["from"] == "key/alice"
        alice.ask(subscribe="answers", after=0)
        seq = puppet.ask(to="topic:answers", event="yes")["seq"]
        assert alice.hear() | {"invocation": None} == {
            "v": 1, "seq": seq, "from": "puppet", "invocation": None, "event": "yes", "to": "topic:answers",
        }  # fmt: skip
        assert alice.ask(subscribe="")["error"] == "bad-request", "a key has no mailbox"
        assert alice.ask(to="key/alice", event="x")["error"] == "bad-request"


def test_a_message_from_afar_is_published_again_as_it_was(remote: Remote) -> None:
    """``journal replay`` names the key as the sender, and the record it was before."""
    with remote.dealer("alice", remote.bus) as alice:
        seq = alice.ask(to="topic:old", event="again", n=7)["seq"]
        alice.ask(subscribe="new")
        done = remote.running.supctl("journal", "replay", "--to", "new", "--after", str(seq - 1))
        assert done.returncode == 0, done.stderr
        delivery = alice.hear()
        assert (delivery["from"], delivery["replay_of"], delivery["n"]) == ("key/alice", seq, 7)


def test_nobody_waits_for_a_subscriber_from_afar(tmp_path: Path) -> None:
    """One that reads nothing is told what it missed, also where those of this machine are waited for."""
    more = '[bus]\nqueue = 100\non-full = "block"\nrate-limit = "100000/s"\n'
    many, text = 1600, "x" * 4000
    with remote_supervisor(tmp_path, {}, "[]", '"journal"', "puppet", more=more) as remote:
        with puppets(remote.running, "puppet") as (puppet,), remote.dealer("alice", remote.bus, ahead=1) as alice:
            alice.ask(subscribe="news")
            for start in range(0, many, 100):
                puppet.send(*({"id": number, "to": "topic:news", "text": text} for number in range(start, start + 100)))
                assert puppet.receive_all(lambda each: "ack" in each, 100)
            until(lambda: alice.hear().get("dropped"), "what it missed")


def test_who_is_not_granted_it_may_neither_read_nor_send(remote: Remote) -> None:
    """A key monitors: it is let in, told why it may not, and that is recorded."""
    with remote.dealer("bob", remote.bus) as bob:
        for request in ({"subscribe": "news"}, {"event": "x"}, {"to": "topic:news"}):
            answer = bob.ask(**request)
            assert answer["error"] == "not-permitted"
            assert "commands in [bus.remote]" in answer["message"]
    until(lambda: len(records(remote, "command.denied", key="bob", verb="bus")) >= 3, "the refusals")


def test_an_id_is_told_within_a_connection_or_a_session(remote: Remote) -> None:
    """Two programs that count from 1 lose nothing; who names itself and sends again what was written gets its number,
    after the death of a manager, too."""
    numbers = set()
    for _ in range(2):
        with remote.dealer("alice", remote.bus) as dealer:
            numbers |= {dealer.ask(id=1, event="plain")["seq"] for _ in range(2)}
    assert len(numbers) == 2
    with remote.dealer("alice", remote.bus, routing_id=b"sensor-7") as dealer:
        first = dealer.ask(id=1, event="named")["seq"]
    remote.running.kill_manager()
    with remote.dealer("alice", remote.bus, routing_id=b"sensor-7") as dealer:
        assert dealer.ask(id=1, event="named")["seq"] == first
        assert dealer.ask(id=2, event="named")["seq"] > first
    assert len(records(remote, "unit.message", name="named")) == 2


# Deaths


@pytest.mark.parametrize("verb", ["kill", "daemon-restart", "daemon-reexec"])
def test_clients_come_back_by_themselves(remote: Remote, verb: str) -> None:
    """A query in flight is asked again, a verb done once, a follower goes on, a plain DEALER connects again."""
    with remote.client("alice") as client, remote.dealer("bob") as dealer:
        assert dealer.call("Manager.Ping")
        followed = subprocess.Popen(
            [*remote.words(), "logs", "-f", "-n", "0", "talker"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert followed.stdout is not None
            assert followed.stdout.readline()
            before = client.call("Version")
            waited: list[Any] = []
            connected = threading.Event()
            waiting = threading.Thread(target=lambda: waited.append(_wait_inactive(remote, connected)))
            waiting.start()
            assert connected.wait(WAIT_S)
            if verb == "kill":
                os.kill(before["pid"], signal.SIGKILL)
            else:
                assert remote.running.supctl(verb).returncode == 0
            done = client.call("Restart", units=["web"], wait=True, plan=False, reason=f"after {verb}")
            assert done["outcomes"][0]["result"] == "done"
            assert client.call("Version")["pid"] != before["pid"]
            assert len(records(remote, "command", verb="restart", reason=f"after {verb}")) == 1
            until(lambda: "following again" in str(followed.stdout and followed.stdout.readline()), "the follower")
            assert followed.stdout.readline().strip().isdigit()
            until(lambda: _pings(dealer), "the DEALER")
            client.call("Stop", units=["web"], wait=True, plan=False)
            waiting.join(WAIT_S)
            assert waited and waited[0]["unit"]["active_state"] == "inactive"
            client.call("Start", units=["web"], wait=True, plan=False)
        finally:
            followed.kill()
            followed.communicate()


def _wait_inactive(remote: Remote, connected: threading.Event) -> dict[str, Any]:
    with remote.client("bob", timeout_s=3 * WAIT_S) as client:
        client.call("Ping")
        connected.set()
        return client.call("Wait", unit="web", until="inactive")


def _pings(dealer: Any) -> bool:
    dealer.send(b'{"method":"py.supervisord.Manager.Ping"}')
    return bool(dealer.socket.poll(1000)) and dealer.hear() == {"parameters": {"answer": "pong"}}


def test_what_must_not_be_done_twice_is_not_asked_again(remote: Remote) -> None:
    """As at home: the client says that it does not know."""
    with remote.client("alice") as client:
        pid = client.call("Version")["pid"]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises((ConnectionLostError, ControlError)):
            client.call("Cancel", job=1)


# Settings


def test_settings_and_keys_that_change_while_it_runs(tmp_path: Path) -> None:
    """Grants, addresses and the supervisor's own key count at once, a table that goes closes its listener, and what
    cannot be used changes nothing."""
    with remote_supervisor(tmp_path, {"web": SLEEPER}, '"operator"') as remote:
        running, file = remote.running, remote.running.folder / "supervisord.toml"

        def reload(settings: str) -> int:
            file.write_text(settings)
            return running.supctl("daemon-reload").returncode

        with remote.client("alice") as client:
            assert client.call("Restart", units=["web"], wait=True, plan=False)
            assert reload(remote.settings('{ bob = "operator" }', "[]")) == 0
            with pytest.raises(ControlError, match="key alice may not restart"):
                client.call("Restart", units=["web"], wait=True, plan=False)
            rule = '[[control.allow]]\nkey = "alice"\ncommands = "operator"\nunits = ["web"]\n'
            assert reload(remote.settings("[]", "[]", rule)) == 0
            assert client.call("Restart", units=["web"], wait=True, plan=False)

            old, remote.control = remote.control, free_address()
            assert reload(remote.settings("[]", "[]")) == 0
            remote.wait_listening()
            with remote.client("alice") as elsewhere:
                assert elsewhere.call("Ping")
            assert not listens(old)

        (remote.keys.folder / "server.key_secret").chmod(0o640)
        assert remote.supctl("ping").returncode == 5, "a secret that others may read lets nobody in"
        assert "others may read the secret key" in running.supctl("health").stdout
        assert "others may read the secret key" in running.supctl("daemon-reload").stderr
        (remote.keys.folder / "server.key_secret").chmod(0o600)
        assert remote.supctl("ping").returncode == 0
        assert running.supctl("health").returncode == 0

        other = KeysOf(tmp_path / "other")
        for suffix in ("key_secret", "key"):
            os.replace(other.folder / f"server.{suffix}", remote.keys.folder / f"server.{suffix}")
        until(lambda: remote.supctl("ping").returncode == 7, "the other key of the supervisor")
        for name in ("alice", "bob"):
            (Path(remote.keys.of(name)) / "server.key").write_text((remote.keys.folder / "server.key").read_text())
        assert remote.supctl("ping").returncode == 0

        assert reload("") == 0
        until(lambda: not listens(remote.control) and not listens(remote.bus), "the end of the listeners")
        assert running.supctl("ping").returncode == 0


def test_an_address_that_is_taken_is_a_problem_until_it_is_free(tmp_path: Path) -> None:
    """Everything else goes on meanwhile; the journal has both."""
    import socket

    with remote_supervisor(tmp_path, {}, "[]") as remote:
        settings = remote.running.folder / "supervisord.toml"
        other = free_address()
        host, _, port = other.removeprefix("tcp://").rpartition(":")
        with socket.socket() as taken:
            taken.bind((host, int(port)))
            taken.listen()
            settings.write_text(settings.read_text().replace(remote.control, other))
            assert remote.running.supctl("daemon-reload").returncode == 0
            until(lambda: records(remote, "remote.failed", listener="control"), "a record")
            health = remote.running.supctl("health")
            assert (health.returncode, "address already in use" in health.stdout) == (1, True)
        remote.control = other
        until(lambda: records(remote, "remote.listening", address=other), "the listener")
        assert remote.supctl("ping").returncode == 0


def test_it_does_not_start_without_keys(tmp_path: Path) -> None:
    """A wrong setting as any other: said at the start, with what to do."""
    import sys

    (tmp_path / "units").mkdir()
    settings = tmp_path / "s.toml"
    settings.write_text(f'[control.remote]\naddress = "127.0.0.1:7700"\nkeys = "{tmp_path}/keys"\n')
    command = [sys.executable, "-m", "supervisord_py", "run", str(tmp_path / "units"), "--config", str(settings)]
    places = [
        "--runtime-dir",
        str(tmp_path / "r"),
        "--state-dir",
        str(tmp_path / "s"),
        "--log-dir",
        str(tmp_path / "l"),
    ]
    found = subprocess.run([*command, *places], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert f"no {tmp_path}/keys/server.key_secret" in found.stderr
    assert "supervisord-py keygen --curve --name server" in found.stderr

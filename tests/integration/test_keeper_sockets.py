"""What the keeper listens on for units, and what they leave with it: ``keeper.sockets``."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from tests.integration.keeper_rig import FakeManager, Rig, keeper, python, wait_until

LISTEN = """
import json, os, socket, stat, sys
fds = range(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))
told = {"pid": os.environ.get("LISTEN_PID") == str(os.getpid()), "names": os.environ.get("LISTEN_FDNAMES")}
told["open"] = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
told["blocking"] = [os.get_blocking(fd) for fd in fds]
told["inode"] = [os.fstat(fd).st_ino for fd in fds]
print(json.dumps(told), flush=True)
"""
SEND = """
import array, os, socket, sys
def send(text, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        mouth.connect(os.environ["NOTIFY_SOCKET"])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        mouth.sendmsg([text.encode()], rights)
def barrier():
    ours, theirs = os.pipe()
    send("BARRIER=1", theirs)
    os.close(theirs)
    os.read(ours, 1)
"""


def spec(name: str, address: Any, **more: Any) -> dict[str, Any]:
    path = address if isinstance(address, str) else None
    return {
        "name": name,
        "text": str(address),
        "family": int(socket.AF_UNIX if path else socket.AF_INET),
        "type": int(socket.SOCK_STREAM),
        "address": address,
        "path": path,
        "fifo": False,
        "mode": 0o666,
        "uid": None,
        "gid": None,
        "backlog": 16,
        "reuse_port": False,
        "accept": False,
        **more,
    }


def listen(manager: FakeManager, number: int, *specs: dict[str, Any]) -> str | None:
    manager.commit({"do": "listen", "unit": "web", "id": number, "sockets": list(specs)})
    failed: str | None = manager.fact("listening", id=number)["failed"]
    return failed


def told(manager: FakeManager) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(manager.line("web"))
    return answer


def test_a_connection_is_told_once_and_the_process_gets_all_listeners_in_order(tmp_path: Path) -> None:
    """A stream socket, a datagram socket and a FIFO: descriptors 3, 4 and 5, blocking, and no other stays open."""
    with keeper() as rig:
        manager = rig.manager()
        a, b, c = (f"{rig.folder}/deep/{name}" for name in "abc")
        specs = [
            spec("http", a, mode=0o600),
            spec("log", b, type=int(socket.SOCK_DGRAM)),
            spec("pipe", c, fifo=True, mode=0o620),
        ]
        assert listen(manager, 1, *specs) is None
        assert [os.stat(path).st_mode & 0o777 for path in (a, b, c)] == [0o600, 0o666, 0o620]
        manager.commit({"do": "await", "unit": "web"})
        with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as second:
            client.connect(a)
            fact = manager.fact("connection", unit="web")
            assert (fact["socket"], fact["number"], fact["peer"]) == ("http", None, None)
            second.connect(a)
            manager.commit(python(1, "web", LISTEN, sockets={"of": "web"}))
            seen = told(manager)
        assert seen.pop("inode")
        assert seen == {"pid": True, "names": "http:log:pipe", "open": [0, 1, 2, 3, 4, 5], "blocking": [True] * 3}
        manager.fact("exited", id=1)
        assert sum(fact["fact"] == "connection" for _, fact in manager.facts) == 1
        manager.commit({"do": "close", "unit": "web"})
        wait_until(lambda: not any(map(os.path.exists, (a, b, c))), "the paths are removed")


def test_a_fifo_that_was_there_before_was_removed_with_ours() -> None:
    """It is somebody's, with whoever writes to it by its name."""
    with keeper() as rig:
        manager = rig.manager()
        theirs, ours = f"{rig.folder}/theirs", f"{rig.folder}/ours"
        os.mkfifo(theirs, 0o600)
        assert listen(manager, 1, spec("a", theirs, fifo=True), spec("b", ours, fifo=True)) is None
        manager.commit({"do": "close", "unit": "web"})
        wait_until(lambda: not os.path.exists(ours), "ours is removed")
        assert os.stat(theirs).st_mode & 0o777 == 0o600


def test_a_listener_that_is_asked_for_again_keeps_who_waits_in_it() -> None:
    """Over a new list, a manager's death and a reexec; what is not in the list any more is closed."""
    with keeper() as rig:
        manager = rig.manager()
        a, b = f"{rig.folder}/a", f"{rig.folder}/b"
        assert listen(manager, 1, spec("a", a), spec("b", b)) is None
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(a)
            assert listen(manager, 2, spec("a", a)) is None
            assert not os.path.exists(b)
            manager.kill()
            manager = rig.manager()
            manager = _reexec(rig, manager)
            assert listen(manager, 3, spec("a", a)) is None
            manager.commit({"do": "await", "unit": "web"})
            manager.fact("connection", unit="web")
            code = "import socket; socket.socket(fileno=3).accept()[0].sendall(b'served')"
            manager.commit(python(1, "web", code, sockets={"of": "web"}))
            client.settimeout(20)
            assert client.recv(6) == b"served"


def _reexec(rig: Rig, manager: FakeManager) -> FakeManager:
    manager.commit({"do": "reexec"})
    new = rig.manager(greet=False)
    new.send({"op": "hello", "protocol": 1, "pid": new.pid})
    manager.obey()
    new.until(lambda: new.welcome, "welcome")
    new.fact("reexecuted", refused=None)
    return new


def test_an_address_in_use_and_a_deserted_one() -> None:
    """Who listens is left alone, and that is said; a path that somebody left is taken over."""
    with keeper() as rig:
        manager = rig.manager()
        path = f"{rig.folder}/a"
        with socket.socket(socket.AF_UNIX) as other, socket.create_server(("127.0.0.1", 0)) as tcp:
            other.bind(path)
            other.listen()
            failed = listen(manager, 1, spec("a", path))
            assert failed == f"{path}: address already in use"
            failed = listen(manager, 2, spec("t", list(tcp.getsockname())))
            assert failed is not None and failed.endswith("address already in use")
        assert listen(manager, 3, spec("a", path)) is None
        Path(f"{rig.folder}/file").write_text("precious")
        failed = listen(manager, 4, spec("f", f"{rig.folder}/file"))
        assert failed is not None and Path(f"{rig.folder}/file").read_text() == "precious"


def test_a_connection_is_accepted_for_a_process_of_its_own() -> None:
    """One for each time it is asked for; who is there is told; closing it is the end of it for the client."""
    with keeper() as rig:
        manager = rig.manager()
        assert listen(manager, 1, spec("a", ["127.0.0.1", 0], accept=True)) is None
        address = _address(rig)
        manager.commit({"do": "await", "unit": "web"})
        with socket.create_connection(address) as one, socket.create_connection(address) as two:
            fact = manager.fact("connection", number=1)
            assert fact["peer"] == {"address": "127.0.0.1", "port": one.getsockname()[1]}
            manager.commit(python(1, "web", LISTEN, sockets={"of": "web", "connection": 1}))
            seen = told(manager)
            assert (seen["names"], seen["open"], seen["blocking"]) == ("connection", [0, 1, 2, 3], [True])
            manager.fact("exited", id=1)
            manager.commit({"do": "close", "unit": "web", "connection": 1}, {"do": "await", "unit": "web"})
            one.settimeout(20)
            assert one.recv(1) == b""
            manager.fact("connection", number=2)
            manager.commit({"do": "close", "unit": "web"})
            two.settimeout(20)
            assert two.recv(1) == b""


def _address(rig: Rig) -> tuple[str, int]:
    """The address of the keeper's only TCP listener."""
    inodes = {os.readlink(f"/proc/{rig.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{rig.pid}/fd")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[9]}]" in inodes:
            return "127.0.0.1", int(fields[1].partition(":")[2], 16)
    raise AssertionError("no listener")


def test_descriptors_that_a_process_leaves_are_handed_to_the_next() -> None:
    """Under their names, bounded, each once, over a manager's death and a reexec; a removed one and one whose other
    end is gone are not; without a word about the store nothing is kept."""
    with keeper() as rig:
        manager = rig.manager()
        code = SEND + (
            "ends = [os.pipe() for _ in range(5)]\n"
            "send('FDSTORE=1\\nFDNAME=one', ends[0][0]); send('FDSTORE=1\\nFDNAME=one', ends[0][0])\n"
            "send('FDSTORE=1\\nFDNAME=bad:name', ends[1][1]); send('FDSTORE=1\\nFDNAME=two', ends[2][1])\n"
            "send('FDSTORE=1\\nFDNAME=over', ends[3][1]); send('FDSTOREREMOVE=1\\nFDNAME=two')\n"
            "os.write(ends[0][1], b'x'); send('FDSTORE=1\\nFDPOLL=0\\nFDNAME=three', ends[4][1]); barrier()\n"
            "print([os.fstat(fd).st_ino for fd in (ends[0][0], ends[1][1], ends[4][1])], flush=True)\n"
        )
        manager.commit(python(1, "web", code, notify="main", store=3))
        inodes = json.loads(manager.line("web"))
        manager.fact("stored", names=["one", "stored", "two"])
        manager.fact("exited", id=1)
        # The reading end of the second pipe went with the process; that of the first is ours, its writer is gone.
        manager.fact("stored", names=["three"])
        manager = _reexec(rig, manager)
        manager.kill()
        manager = rig.manager()
        manager.commit(python(2, "web", LISTEN, sockets={"of": "web"}, notify="main", store=3))
        seen = told(manager)
        assert (seen["names"], seen["inode"], seen["pid"]) == ("three", inodes[2:], True)
        manager.commit(python(3, "other", SEND + "send('FDSTORE=1', os.pipe()[0]); barrier()", notify="main"))
        manager.fact("exited", id=3)
        assert not any(fact["fact"] == "stored" and fact["unit"] == "other" for _, fact in manager.facts)


def test_two_units_had_one_address_for_datagrams() -> None:
    """The one that listened later took what was sent to the other; it fails, as with a stream. A path where something
    else is says so."""
    with keeper() as rig, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        manager = rig.manager()
        probe.bind(("127.0.0.1", 0))
        address = list(probe.getsockname())
        probe.close()
        datagrams = spec("u", address, type=int(socket.SOCK_DGRAM))
        assert listen(manager, 1, datagrams) is None
        manager.commit({"do": "listen", "unit": "other", "id": 2, "sockets": [datagrams]})
        failed = manager.fact("listening", id=2)["failed"]
        assert failed is not None and failed.endswith("address already in use")
        os.mkdir(f"{rig.folder}/folder")
        assert str(listen(manager, 3, spec("f", f"{rig.folder}/folder"))).endswith(": what is there is no socket")


def test_a_program_was_started_without_the_connection_that_it_was_for() -> None:
    """What a killed keeper had accepted is gone: that is a failure of the start, and not of the program."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "web", LISTEN, sockets={"of": "web", "connection": 9}))
        fact = manager.fact("spawn-failed", id=1)
        assert (fact["step"], "connection is gone" in fact["detail"]) == ("fds", True)


def test_a_listener_whose_backlog_or_mode_was_changed_lost_who_waited_in_it() -> None:
    """The address is the same: it stays open, with what is said of it now."""
    with keeper() as rig, socket.socket(socket.AF_UNIX) as client:
        manager = rig.manager()
        path = f"{rig.folder}/a"
        assert listen(manager, 1, spec("a", path)) is None
        client.connect(path)
        assert listen(manager, 2, spec("b", path, mode=0o600, backlog=3)) is None
        assert os.stat(path).st_mode & 0o777 == 0o600
        code = "import os, socket; socket.socket(fileno=3).accept()[0].sendall(os.environ['LISTEN_FDNAMES'].encode())"
        manager.commit(python(1, "web", code, sockets={"of": "web"}))
        client.settimeout(20)
        assert client.recv(6) == b"b"

"""Processes of units that do on the message bus what a test tells them, with plain pyzmq: puppets."""

import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.integration.supervisor_rig import RunningSupervisor, until

WAIT_S = 30.0
IDS = count()
"""Never used twice: a life of a unit is known by them."""

PUPPET = dedent(
    """
    import json, os, socket, sys, zmq
    context = zmq.Context()
    sockets = {}
    path = sys.argv[1]
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "~")
    listener.listen()
    os.rename(path + "~", path)

    def do(order):
        match order["do"]:
            case "open":
                made = sockets[order["name"]] = context.socket(zmq.DEALER)
                made.linger = 0
                made.sndhwm = 0
                made.rcvhwm = order["rcvhwm"]
                made.connect(os.environ["SUPERVISORD_PY_BUS"])
            case "send":
                for frames in order["messages"]:
                    sockets[order["name"]].send_multipart([frame.encode("latin-1") for frame in frames])
            case "receive":
                came = []
                while len(came) < order["count"] and sockets[order["name"]].poll(1000 * order["timeout"]):
                    came.append(json.loads(sockets[order["name"]].recv()))
                return came
            case "environ":
                return dict(os.environ)
            case "fork":
                # A process of this life that outlives it, and takes orders at another place.
                if os.fork() == 0:
                    os.setsid()
                    os.execv(sys.executable, [sys.executable, sys.argv[0], order["path"]])

    while True:
        connection, _ = listener.accept()
        while sockets:
            sockets.popitem()[1].close()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                stream.write(json.dumps(do(json.loads(line))) + "\\n")
                stream.flush()
    """
)


class Puppet:
    """One process, through the socket where it takes orders; its own sockets have names."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(2 * WAIT_S)
        until(lambda: self._socket.connect_ex(str(path)) == 0, f"{path.name} takes orders", WAIT_S)
        self._stream = self._socket.makefile("rw")

    def do(self, what: str, **order: Any) -> Any:
        self._stream.write(json.dumps({"do": what, **order}) + "\n")
        self._stream.flush()
        return json.loads(self._stream.readline())

    def open(self, name: str = "", rcvhwm: int = 1000) -> None:
        self.do("open", name=name, rcvhwm=rcvhwm)

    def send_frames(self, *messages: list[bytes], name: str = "") -> None:
        self.do("send", name=name, messages=[[frame.decode("latin-1") for frame in frames] for frames in messages])

    def send(self, *messages: dict[str, Any], name: str = "") -> None:
        """Send requests; ``v`` is added."""
        self.send_frames(*([json.dumps({"v": 1, **message}).encode()] for message in messages), name=name)

    def receive(self, many: int = 1, *, name: str = "", timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
        """Return what comes: so many, unless none comes for so long."""
        return list(self.do("receive", name=name, count=many, timeout=timeout_s))

    def receive_all(self, what: Callable[[dict[str, Any]], bool], many: int, name: str = "") -> list[dict[str, Any]]:
        """Return the next ``many`` answers of one kind, of all that come."""
        found: list[dict[str, Any]] = []
        while len(found) < many:
            came = self.receive(name=name)
            assert came, f"only {len(found)} of {many}: {found[-3:]}"
            found += [answer for answer in came if what(answer)]
        return found

    def ask(self, name: str = "", **message: Any) -> dict[str, Any]:
        """Send one request and return its answer, whatever comes meanwhile."""
        id = message.pop("id", f"ask-{next(IDS)}")
        self.send({"id": id, **message}, name=name)
        (answer,) = self.receive_all(lambda each: "from" not in each and each.get("ack", each.get("id")) == id, 1, name)
        return answer

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def puppet_unit(folder: Path, name: str, more: str = "") -> str:
    """The text of a unit that is a puppet."""
    command = json.dumps([sys.executable, str(folder / "puppet.py"), str(folder / f"{name}.orders")])
    return f"[service]\nexec-start = {command}\n{more}"


def with_puppets(*names: str, more: str = "") -> Callable[[Path], None]:
    """Return what makes units of these names that are puppets."""

    def prepare(folder: Path) -> None:
        (folder / "puppet.py").write_text(PUPPET)
        for name in names:
            (folder / "units" / f"{name}.toml").write_text(puppet_unit(folder, name, more))

    return prepare


@contextmanager
def puppets(running: RunningSupervisor, *names: str) -> Iterator[list[Puppet]]:
    """The puppets of units, each with a new connection to the bus."""
    found: list[Puppet] = []
    try:
        for name in names:
            found.append(Puppet(running.folder / f"{name}.orders"))
            found[-1].open()
        yield found
    finally:
        for each in found:
            each.close()


def is_delivery(answer: dict[str, Any]) -> bool:
    return "from" in answer


def is_ack(answer: dict[str, Any]) -> bool:
    return "ack" in answer and "subscribe" not in answer


def messages(running: RunningSupervisor, unit: str | None = None) -> list[dict[str, Any]]:
    """The messages in the journal, of one unit or of all."""
    return [
        record for record in running.records() if record["event"] == "unit.message" and unit in (None, record["unit"])
    ]

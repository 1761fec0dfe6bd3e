"""Keys, an address of its own, and plain pyzmq clients for supervisors that listen over TCP."""

import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import zmq

from supervisord_py.ctl.client import Client
from supervisord_py.wire.curve import Certificate, format_certificate
from tests.integration.supervisor_rig import RunningSupervisor, until

WAIT_S = 30.0
IDS = count()


def free_address() -> str:
    """An address that nobody else has: one of the 16 million of loopback, and a port that the system chose there."""
    host = ".".join(["127", *(str(1 + secrets.randbelow(253)) for _ in range(3))])
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"tcp://{host}:{probe.getsockname()[1]}"


def listens(address: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def make_key(folder: Path, name: str) -> Certificate:
    """Make a key: both of its files."""
    public, secret = (part.decode() for part in zmq.curve_keypair())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = Certificate(public, secret)
    path = folder / f"{name}.key_secret"
    path.touch(0o600)
    path.write_text(format_certificate(own, name))
    (folder / f"{name}.key").write_text(format_certificate(Certificate(public), name))
    return own


class Keys:
    """The folder of a supervisor, and one for each client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "keys"
        self.server = make_key(self.folder, "server")
        self._of_clients = folder / "clients"
        self.own: dict[str, Certificate] = {}

    def make(self, name: str, *, known: bool = True) -> Path:
        """Make the folder of a client; one that is not ``known`` is not let in."""
        of_client = self._of_clients / name
        self.own[name] = make_key(of_client, "client")
        (of_client / "server.key").write_text((self.folder / "server.key").read_text())
        if known:
            self.let_in(name)
        return of_client

    def of(self, name: str) -> str:
        return str(self._of_clients / name)

    def let_in(self, name: str) -> None:
        (self.folder / f"{name}.key").write_text((self._of_clients / name / "client.key").read_text())

    def take_away(self, name: str) -> None:
        (self.folder / f"{name}.key").unlink()


class Remote:
    """A supervisor that listens for keys; ``control`` and ``bus`` are its addresses."""

    def __init__(self) -> None:
        self.control, self.bus = free_address(), free_address()
        self.keys: Keys
        self.running: RunningSupervisor
        self._context: zmq.Context[Any] = zmq.Context()

    def settings(self, commands: str, bus_commands: str, more: str = "") -> str:
        folder = self.keys.folder
        return (
            f'[control.remote]\naddress = "{self.control}"\nkeys = "{folder}"\ncommands = {commands}\n'
            f'[bus.remote]\naddress = "{self.bus}"\nkeys = "{folder}"\ncommands = {bus_commands}\n{more}'
        )

    def client(self, name: str, **options: Any) -> Client:
        return Client(self.control, keys=self.keys.of(name), **{"timeout_s": WAIT_S, **options})

    def wait_listening(self, *addresses: str) -> None:
        """Return when somebody listens at these addresses; at those of the supervisor where none are named."""
        for address in addresses or (self.control, self.bus):
            until(lambda address=address: listens(address), f"a listener at {address}", WAIT_S)  # type: ignore[misc]

    def words(self, keys: str | None = None, address: str | None = None) -> list[str]:
        """The beginning of a command line; with the keys of alice unless told otherwise."""
        options = ["--remote", address or self.control, "--keys", keys or self.keys.of("alice")]
        return [sys.executable, "-m", "supervisord_py.ctl.cli", *options]

    def supctl(
        self, *words: str, keys: str | None = None, address: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self.words(keys, address), *words], capture_output=True, text=True, timeout=2 * WAIT_S, check=False
        )

    @contextmanager
    def dealer(
        self, name: str, address: str | None = None, *, routing_id: bytes = b"", ahead: int = 1000
    ) -> "Iterator[Dealer]":
        """A plain DEALER of a client, as any program could have one; with ``ahead`` 1 it takes as little as it can."""
        made = self._context.socket(zmq.DEALER)
        try:
            made.linger = 0
            made.rcvhwm = ahead
            if ahead == 1:
                made.rcvbuf = 4096
            made.curve_serverkey = self.keys.server.public.encode()
            own = self.keys.own[name]
            assert own.secret is not None
            made.curve_publickey, made.curve_secretkey = own.public.encode(), own.secret.encode()
            if routing_id:
                made.routing_id = routing_id
            made.connect(address or self.control)
            yield Dealer(made)
        finally:
            made.close()

    def close(self) -> None:
        self._context.term()


class Dealer:
    """What it says and hears."""

    def __init__(self, made: "zmq.Socket[Any]") -> None:
        self.socket = made

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def hear(self, timeout_s: float = WAIT_S) -> dict[str, Any]:
        assert self.socket.poll(int(timeout_s * 1000)), "no answer"
        (frame,) = self.socket.recv_multipart()
        return dict(json.loads(frame))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method, by its full name but for ``py.supervisord``."""
        self.send(json.dumps({"method": f"py.supervisord.{method}", "parameters": parameters}).encode())
        return self.hear()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request to the bus and return its answer; what comes before it is left out."""
        request.setdefault("id", f"ask-{next(IDS)}")
        self.send(json.dumps({"v": 1, **request}).encode())
        while True:
            answer = self.hear()
            if answer.get("ack", answer.get("id")) == request["id"] and "from" not in answer:
                return answer

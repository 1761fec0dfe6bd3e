"""A real keeper with a fake manager: the test holds the manager's end of the pair and speaks the protocol itself.

The manager's process is a tiny script that hands its end of the pair to the test and lives until the test lets it go;
so the test can kill it between any two packets.
"""

import array
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import supervisord_py
from supervisord_py.keeper.protocol import Channel, keeper_argv

DEADLINE_S = 20.0
SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = 65534
MANAGER = """
import array, os, socket, sys
fd = int(os.environ["SUPERVISORD_PY_KEEPER_FD"])
test = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
test.connect(sys.argv[1])
test.sendmsg([str(os.getpid()).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
test.recv(1)
"""

GLIBC_SIGNALS = 1 << 31 | 1 << 32
"""Signals 32 and 33 are glibc's own: its posix_spawn (make uses it) leaves them ignored; nobody can undo it."""


def wait_until(condition: Callable[[], Any], what: str = "condition") -> Any:
    """Poll ``condition`` until it is true; for facts of /proc that have no descriptor to wait on."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never came true: {what}"
        select.select([], [], [], 0.005)
    return value


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class FakeManager:
    """The manager's end; messages are taken in their order, facts are kept in ``facts``."""

    def __init__(self, pid: int, channel: Channel, leash: socket.socket) -> None:
        self.pid, self.channel, self._leash = pid, channel, leash
        self.facts: list[tuple[int, dict[str, Any]]] = []
        self.messages: list[dict[str, Any]] = []
        self.outputs: dict[str, int] = {}
        self.listeners: list[int] = []
        self.welcome: dict[str, Any] = {}
        self.is_over = False
        self._question = 0

    def send(self, message: dict[str, Any]) -> None:
        self.channel.send(message)
        deadline = time.monotonic() + DEADLINE_S
        while not self.channel.flush():
            assert time.monotonic() < deadline, "the keeper does not read"
            select.select([], [self.channel.sock], [], 0.1)

    def hello(self) -> dict[str, Any]:
        self.send({"op": "hello", "protocol": 1, "pid": self.pid})
        self.until(lambda: self.welcome, "welcome")
        return self.welcome

    def commit(self, *do: dict[str, Any], ack: int | None = None, **more: Any) -> None:
        """Commit requests; without ``ack`` everything seen so far is acknowledged."""
        seen = self.facts[-1][0] if self.facts else self.welcome.get("acknowledged", 0)
        message = {"op": "commit", "ack": seen if ack is None else ack, "state": {}, "lines": [], "journalled": 0}
        self.send({**message, "do": list(do), **more})

    def ask(self, op: str, **more: Any) -> dict[str, Any]:
        self._question += 1
        self.send({"op": op, "question": self._question, **more})
        return self.until(
            lambda: next((m for m in self.messages if m.get("answer") == self._question), None), f"answer to {op}"
        )

    def until(self, condition: Callable[[], Any], what: str = "condition") -> Any:
        """Read packets until ``condition`` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"never came: {what}; facts {self.facts[-10:]}, messages {self.messages[-5:]}"
            if select.select([self.channel.sock], [], [], left)[0]:
                self._read()
        return value

    def _read(self) -> None:
        try:
            packet = self.channel.receive()
        except EOFError:
            assert not self.is_over, "the keeper is gone"
            self.is_over = True
            return
        if packet is None:
            return
        message, fds = packet
        if "facts" in message:
            self.facts += [(number, fact) for number, fact in message["facts"]]
            return
        if "outputs" in message:
            self.outputs |= dict(zip(message["outputs"], fds, strict=True))
        if "welcome" in message:
            self.welcome, self.listeners = message["welcome"], fds
        self.messages.append(message)

    def fact(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for a fact of this kind with these fields and return it."""

        def found() -> dict[str, Any] | None:
            for _, fact in self.facts:
                if fact["fact"] == kind and all(fact.get(key) == value for key, value in fields.items()):
                    return fact
            return None

        return self.until(found, f"{kind} {fields}")

    def order(self, order: str) -> None:
        self.until(lambda: {"order": order} in self.messages, f"order {order}")

    def output(self, unit: str, size: int) -> bytes:
        """Read ``size`` bytes of a unit's output."""
        self.until(lambda: unit in self.outputs, f"output of {unit}")
        data = b""
        while len(data) < size:
            assert select.select([self.outputs[unit]], [], [], DEADLINE_S)[0], f"only {data!r} from {unit}"
            data += os.read(self.outputs[unit], size - len(data))
        return data

    def line(self, unit: str) -> str:
        data = b""
        while not data.endswith(b"\n"):
            data += self.output(unit, 1)
        return data.decode().rstrip("\n")

    def drop(self) -> None:
        """Close our copies; what the manager process holds stays open until it ends."""
        for fd in [*self.outputs.values(), *self.listeners]:
            os.close(fd)
        self.outputs, self.listeners = {}, []
        self.channel.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.drop()
        self._leash.close()

    def obey(self) -> None:
        """Read to the end of file and exit, as a manager does that shall end."""
        self.until(lambda: self.is_over, "end of file")
        self.leave()

    def leave(self) -> None:
        """Exit by itself, with code 0."""
        self.drop()
        self._leash.close()


class Rig:
    """A keeper and the socket where its managers report."""

    def __init__(
        self,
        folder: Path,
        *,
        uid: int | None = None,
        python: str | None = None,
        before: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        **config: Any,
    ) -> None:
        self.folder, self.runtime = folder, Path(config.get("runtime_dir", folder / "run"))
        self._managers: list[FakeManager] = []
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door.bind(str(folder / "door"))
        os.chmod(folder / "door", 0o666)
        self._door.listen(8)
        script = folder / "manager.py"
        script.write_text(MANAGER)
        interpreter = python or sys.executable
        self.config: dict[str, Any] = {
            "name": "test",
            "runtime_dir": str(self.runtime),
            "manager_argv": [interpreter, "-I", "-S", str(script), str(folder / "door")],
            **config,
        }
        argv = keeper_argv(self.config)
        self.package = Path(supervisord_py.__file__).parent
        if python is not None:
            # A user that may not read the checkout, and an interpreter without our packages: the keeper needs neither.
            self.package = folder / "lib" / "supervisord_py"
            shutil.copytree(Path(supervisord_py.__file__).parent / "keeper", self.package / "keeper")
            (self.package / "__init__.py").write_text("__version__ = '0'\n")
            argv = [python, *argv[1:]]
            argv[argv.index("--config") - 1] = str(self.package / "keeper" / "main.py")
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [*before, *argv], user=uid, group=uid, stderr=self.errors, cwd="/", pass_fds=pass_fds
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def manager(self, *, greet: bool = True) -> FakeManager:
        """Wait for the next manager process."""
        self._door.settimeout(DEADLINE_S)
        leash, _ = self._door.accept()
        body, ancillary, _, _ = leash.recvmsg(64, socket.CMSG_SPACE(4))
        fd = array.array("i", ancillary[0][2])[0]
        manager = FakeManager(int(body), Channel(socket.socket(fileno=fd)), leash)
        self._managers.append(manager)
        if greet:
            manager.hello()
        return manager

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def said(self) -> str:
        return (self.folder / "stderr").read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            tree = descendants(self.pid)
            self.process.kill()
            self.process.wait()
            for pid in tree:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for manager in self._managers:
            manager.leave()
        self._door.close()
        self.errors.close()

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if error is not None and self.said():
            error.add_note(f"the keeper said:\n{self.said()}")


def descendants(root: int) -> set[int]:
    parents: dict[int, list[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(pid))
    found: set[int] = set()
    todo = [root]
    while todo:
        below = parents.get(todo.pop(), [])
        found.update(below)
        todo += below
    return found


@contextmanager
def public_folder() -> Iterator[Path]:
    """A short folder that an ordinary user can enter (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="keeper") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def keeper(**config: Any) -> Iterator[Rig]:
    """A keeper in a short folder of its own (a socket's path has 107 bytes)."""
    with public_folder() as folder, Rig(folder, **config) as rig:
        yield rig


@contextmanager
def keeper_of_nobody(**config: Any) -> Iterator[Rig]:
    """The same as an ordinary user; as root's test that is ``nobody`` and the system's Python."""
    if os.geteuid() != 0:
        with keeper(**config) as rig:
            yield rig
        return
    with public_folder() as folder:
        home = folder / "home"
        home.mkdir()
        home.chmod(0o755)
        os.chown(home, NOBODY, NOBODY)
        with Rig(home, uid=NOBODY, python=SYSTEM_PYTHON, **config) as rig:
            yield rig


def spawn(spawn_id: int, unit: str, *argv: str, **more: Any) -> dict[str, Any]:
    """A spawn request with the fields that every one has."""
    return {
        "do": "spawn",
        "id": spawn_id,
        "unit": unit,
        "role": "main",
        "argv": list(argv),
        "executable": None,
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/",
        "umask": 0o022,
        "uid": None,
        "gid": None,
        "groups": None,
        "rlimits": {},
        "strict": [],
        "nice": None,
        "cgroups": [],
        "sigpipe": True,
        "notify": "none",
        "privileged": False,
        **more,
    }


def python(spawn_id: int, unit: str, code: str, **more: Any) -> dict[str, Any]:
    """A spawn of a few lines of Python."""
    return spawn(spawn_id, unit, SYSTEM_PYTHON, "-I", "-S", "-c", code, **more)

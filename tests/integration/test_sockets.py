"""Units that are listened for, under a real supervisor: nobody who connects is turned away."""

import json
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

SERVER = """
import http.server, os, signal, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=3)
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "1"
server = Server()
# What is being answered is answered, what waits in the queue is left to the next process.
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.01)
"""
DUMP = """
import json, os, socket, sys
fds = range(3, 3 + int(os.environ.get("LISTEN_FDS", 0)))
told = {key: os.environ.get(key) for key in ("LISTEN_FDNAMES", "REMOTE_ADDR")}
told["mine"] = os.environ.get("LISTEN_PID") == str(os.getpid())
told["unit"] = os.environ["SUPERVISORD_PY_UNIT"]
told["fds"] = [os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in fds]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(folder: Path, text: str, name: str = "program.py") -> None:
    (folder / name).write_text(text)


def unit(folder: Path, sockets: str, service: str = "") -> str:
    return (
        f'[service]\nexec-start = ["{sys.executable}", "-S", "{folder}/program.py"]\n{service}\n[[socket]]\n{sockets}\n'
    )


class Hammer:
    """A client that connects without a pause, each time anew; whoever is refused or cut off is counted."""

    def __init__(self, port: int) -> None:
        self.answers: list[str] = []
        self.errors: list[str] = []
        self._over = threading.Event()
        self._url = f"http://127.0.0.1:{port}/"
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with urllib.request.urlopen(self._url, timeout=60) as answer:
                    self.answers.append(answer.read().decode())
            except OSError as error:
                self.errors.append(repr(error))

    def more(self, count: int = 20) -> None:
        """Wait for so many more answers."""
        begun = len(self.answers)
        until(lambda: len(self.answers) >= begun + count or self.errors, "answers", 60)
        assert not self.errors

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)


def test_no_connection_is_lost_over_restarts_a_managers_death_and_a_reexec() -> None:
    """Ten restarts under fire, a manager that is killed, a keeper and a manager that are replaced: everybody who
    connects is answered, by one process after the other."""
    port = free_port()

    def prepare(folder: Path) -> None:
        program(folder, SERVER)
        text = unit(folder, f'listen-stream = "127.0.0.1:{port}"\ntrigger-limit-burst = 0')
        (folder / "units" / "web.toml").write_text(text)

    with supervisor({}, prepare=prepare) as running:
        assert running.wait_state("web", "active")["sub_state"] == "listening"
        hammer = Hammer(port)
        try:
            hammer.more()
            for _ in range(10):
                assert running.supctl("restart", "web").returncode == 0
                hammer.more()
            running.kill_manager()
            hammer.more()
            assert running.supctl("daemon-reexec").returncode == 0
            assert running.supctl("restart", "web").returncode == 0
            hammer.more()
        finally:
            hammer.stop()
        assert not hammer.errors
        assert len(set(hammer.answers)) >= 11
        assert f"127.0.0.1:{port}" in running.supctl("list", "--sockets").stdout
        assert "Listen:" in running.supctl("status", "web").stdout


def test_every_kind_of_socket_is_handed_over_in_order() -> None:
    """A stream socket by path and by port, a datagram and a sequential-packet socket, a FIFO, by name; a datagram
    starts the unit; a restart is followed by listening; a stop removes the paths."""
    port = free_port()

    def prepare(folder: Path) -> None:
        program(
            folder,
            DUMP + f"open({str(folder / 'told')!r}, 'w').write(json.dumps(told)); socket.socket(fileno=6).recv(9)",
        )
        sockets = (
            f'name = "web"\nlisten-stream = ["{folder}/a", "127.0.0.1:{port}"]\nsocket-mode = "0600"\n'
            f'[[socket]]\nname = "other"\nlisten-datagram = "{folder}/b"\n[[socket]]\nname = "packets"\n'
            f'listen-sequential-packet = "@{folder}"\n[[socket]]\nlisten-fifo = "{folder}/c"\n'
        )
        (folder / "units" / "all.toml").write_text(unit(folder, sockets).replace("fileno=6", "fileno=5"))

    with supervisor({}, prepare=prepare) as running:
        running.wait_state("all", "active")
        folder = running.folder
        assert os.stat(folder / "a").st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"hello", str(folder / "b"))
        told = json.loads(until(lambda: (folder / "told").exists() and (folder / "told").read_text(), "a run"))
        assert told["LISTEN_FDNAMES"] == "web:web:other:packets:all"
        assert told["mine"] and told["fds"] == ["socket"] * 4 + [str(folder / "c")]
        assert running.supctl("stop", "all").returncode == 0
        assert not any((folder / name).exists() for name in "abc")


def test_each_connection_has_an_instance_where_the_unit_accepts() -> None:
    """With the address of the client, the connection as descriptor 3, and no more of them at a time than allowed; the
    supervisor forgets each with its end."""
    port = free_port()
    serve = DUMP + "with socket.socket(fileno=3) as c:\n    c.sendall(json.dumps(told).encode() + b'\\n'); c.recv(1)"

    def prepare(folder: Path) -> None:
        program(folder, serve)
        sockets = f'listen-stream = "127.0.0.1:{port}"\naccept = true\nmax-connections = 2'
        (folder / "units" / "echo.toml").write_text(unit(folder, sockets))

    with supervisor({}, prepare=prepare) as running:
        running.wait_state("echo", "active")
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        try:
            for client in clients:
                client.settimeout(20)
            told = [_line(client) for client in clients[:2]]
            assert {one["LISTEN_FDNAMES"] for one in told} == {"connection"}
            assert {one["REMOTE_ADDR"] for one in told} == {"127.0.0.1"}
            assert all(one["mine"] and one["unit"].startswith("echo@") for one in told)
            status = running.status("echo")
            assert (status["sub_state"], status["connections"]) == ("listening", 2)
            assert "max-connections" in running.supctl("why", "echo").stdout
            clients[0].sendall(b"x")
            assert _line(clients[2])["unit"].startswith("echo@3-")
            until(lambda: len(_instances(running)) == 2, "the first is forgotten")
            assert running.supctl("stop", "echo").returncode == 0
            until(lambda: not _instances(running), "all are gone")
            assert clients[1].recv(1) == b""
        finally:
            for client in clients:
                client.close()


def _line(client: socket.socket) -> dict[str, Any]:
    with client.makefile() as file:
        return dict(json.loads(file.readline()))


def _instances(running: RunningSupervisor) -> list[str]:
    listed = json.loads(running.supctl("list", "--json").stdout)["units"]
    return [unit["name"] for unit in listed if unit["name"].startswith("echo@")]


def test_two_units_share_a_port_with_reuse_port_and_fail_clearly_without() -> None:
    port = free_port()
    sleep = '[service]\nexec-start = ["sleep", "1000"]\nactivation = "start"\n[[socket]]\n'
    shared = f'{sleep}listen-stream = "127.0.0.1:{port}"\nreuse-port = true\n'
    alone = f'{sleep}listen-stream = "127.0.0.1:{port}"\n'
    with supervisor({"a": shared, "b": shared, "c": alone}) as running:
        for name in "ab":
            assert running.wait_state(name, "active")["sub_state"] == "running"
        failed = running.wait_state("c", "failed")
        assert failed["result"] == "resources"
        assert f"127.0.0.1:{port}: address already in use" in failed["why"]


def test_an_unused_unit_ends_and_is_started_again() -> None:
    """``idle-exit-sec``: who is connected keeps it, and the next connection starts it."""

    def prepare(folder: Path) -> None:
        program(
            folder,
            "import socket\ns = socket.socket(fileno=3)\nwhile True:\n    c, _ = s.accept(); c.recv(1); c.close()",
        )
        sockets = f'listen-stream = "{folder}/web.sock"'
        (folder / "units" / "web.toml").write_text(unit(folder, sockets, 'idle-exit-sec = "300ms"'))

    with supervisor({}, prepare=prepare) as running:
        running.wait_state("web", "active")
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(running.folder / "web.sock"))
                until(lambda: running.status("web")["sub_state"] == "running", "a run")
                begun = time.monotonic()
                until(lambda begun=begun: time.monotonic() - begun > 1, "three idle times")
                assert running.status("web")["sub_state"] == "running", "somebody is connected"
            until(lambda: running.status("web")["sub_state"] == "listening", "its end")
        assert running.status("web")["failures"] == 0


@pytest.mark.parametrize("kill", [False, True])
def test_descriptors_that_a_process_leaves_outlive_it(kill: bool) -> None:
    """A counter in a memory file, handed from life to life over restarts and a manager's death."""
    code = """
import array, os, signal, socket
if os.environ.get("LISTEN_FDNAMES") == "count":
    fd = 3
else:
    fd = os.memfd_create("count")
    os.write(fd, b"0")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
        mouth.connect(os.environ["NOTIFY_SOCKET"])
        rights = array.array("i", [fd])
        mouth.sendmsg([b"FDSTORE=1\\nFDNAME=count"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
count = int(os.pread(fd, 9, 0)) + 1
os.pwrite(fd, str(count).encode(), 0)
open("COUNT", "w").write(str(count))
signal.pause()
"""

    def prepare(folder: Path) -> None:
        program(folder, code.replace("COUNT", str(folder / "count")))
        start = f'[service]\nexec-start = ["{sys.executable}", "-S", "{folder}/program.py"]\n'
        text = start + "file-descriptor-store-max = 3\n"
        (folder / "units" / "web.toml").write_text(text)

    with supervisor({}, prepare=prepare) as running:

        def count() -> str:
            file = running.folder / "count"
            return file.read_text() if file.exists() else ""

        until(lambda: count() == "1", "the first life")
        until(lambda: running.status("web")["stored"] == ["count"], "the store")
        for life in ("2", "3"):
            assert running.supctl("restart", "web").returncode == 0
            until(lambda life=life: count() == life, "the next life")
            if kill:
                running.kill_manager()
        assert "count" in running.supctl("status", "web").stdout
        assert running.supctl("stop", "web").returncode == 0
        assert running.supctl("start", "web").returncode == 0
        until(lambda: count() == "1", "a life that begins anew")

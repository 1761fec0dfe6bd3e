"""Health checks under a real supervisor: what is asked, what is killed, and what a killed manager leaves."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.supervisor_rig import AS_USER, RunningSupervisor, is_gone, pids_in, supervisor, until

SLEEP = 'exec-start = ["sleep", "1000"]\n'
OFTEN = 'interval = "100ms"\nfailure-threshold = 1\n'
QUICK = f'{OFTEN}timeout = "10s"\n'
SLOW = f'{OFTEN}timeout = "60s"\n'
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(sys.argv[1]) else 503)
        self.end_headers()
        self.wfile.write(b"x" * 100000)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass
server = Server(("127.0.0.1", 0), Handler)
open(sys.argv[2], "w").write(str(server.server_port))
server.serve_forever()
"""


def told(running: RunningSupervisor, event: str, unit: str = "web") -> list[dict[str, Any]]:
    return [record for record in running.records() if record["event"] == event and record.get("unit") == unit]


def check(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(dict(found) for found in status["health"] if found["name"] == name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("uid", AS_USER)
def test_readiness_over_http(uid: int | None) -> None:
    """A unit is up when its server says so; one that says no later goes on, and status and list say how it is."""
    port_file = "{folder}/port"

    def prepare(folder: Path) -> None:
        port = free_port()
        server = SERVER.replace('("127.0.0.1", 0)', f'("127.0.0.1", {port})')
        (folder / "server.py").write_text(server)
        command = ["/usr/bin/python3", str(folder / "server.py"), str(folder / "go"), port_file.format(folder=folder)]
        health = f'[health.up]\nkind = "readiness"\nhttp = "http://127.0.0.1:{port}/"\n{QUICK}'
        text = f"[service]\nexec-start = {command}\n{health}".replace("'", '"')
        (folder / "units" / "web.toml").write_text(text)
        (folder / "units" / "app.toml").write_text(f'[unit]\nrequires = ["web"]\n[service]\n{SLEEP}')

    with supervisor({}, prepare=prepare, uid=uid, invariants=uid is None) as running:
        until(lambda: check(running.status("web"), "up")["detail"] == "503 Service Unavailable", "the first answers")
        status = running.status("web")
        assert (status["active_state"], check(status, "up")["good"]) == ("activating", False)
        assert running.status("app")["active_state"] in ("inactive", "queued")
        (running.folder / "go").touch()
        running.wait_state("app", "active")
        status = running.wait_state("web", "active")
        found = check(status, "up")
        assert (found["kind"], found["check"], found["good"], found["detail"]) == ("readiness", "http", True, "200 OK")
        assert found["checked_at"]
        pid = status["pid"]
        (running.folder / "go").unlink()
        until(lambda: check(running.status("web"), "up")["good"] is False, "the answer that is bad again")
        status = running.status("web")
        assert (status["active_state"], status["pid"]) == ("active", pid), "readiness ends nothing"
        assert "its readiness check up failed" in status["why"]
        shown = running.supctl("status", "web").stdout
        assert "up: failing (503 Service Unavailable)" in shown
        listed = running.supctl("list").stdout.splitlines()
        assert "not ready" in next(line for line in listed if line.startswith("web"))
        until(lambda: len(told(running, "unit.health")) == 3, "three records")
        assert [record["good"] for record in told(running, "unit.health")] == [False, True, False]


@pytest.mark.parametrize("uid", AS_USER)
def test_a_liveness_command_that_hangs_is_killed_with_all_it_started(uid: int | None) -> None:
    """Its time-out counts as a failure of the unit; nothing of the check is left, and nothing of the unit is hit."""

    def prepare(folder: Path) -> None:
        script = f"sleep 1000 & echo $! $$ >> {folder}/pids; test -e {folder}/well || exec sleep 1001"
        health = f'[health.alive]\nkind = "liveness"\nexec = ["/bin/sh", "-c", "{script}"]\ninterval = "100ms"\n'
        text = f'[service]\n{SLEEP}restart-sec = "10ms"\n{health}failure-threshold = 2\ntimeout = "400ms"\n'
        (folder / "units" / "web.toml").write_text(text)

    with supervisor({"other": f"[service]\n{SLEEP}"}, prepare=prepare, uid=uid, invariants=uid is None) as running:
        first = running.wait_state("web", "active")["pid"]
        pids = pids_in(running.folder / "pids", 4)
        until(lambda: all(map(is_gone, pids[:4])), "the end of the checks and of what they started")
        assert not is_gone(running.status("other")["pid"])
        until(lambda: running.status("web")["pid"] not in (first, None), "another life")
        (running.folder / "well").touch()
        assert until(lambda: told(running, "unit.stopping"), "the record of its end")[0]["reason"] == (
            "its liveness check alive failed 2 times in a row: it did not end within 400ms, and was killed"
        )
        until(lambda: check(running.status("web"), "alive")["good"] is True, "a check that is good")
        good = pids_in(running.folder / "pids")
        until(lambda: all(map(is_gone, good)), "the end of what good checks leave too")


def test_checks_of_every_kind() -> None:
    """A port, sockets by path and by name, a file, a line of the output: each is good when that is there."""
    name = f"spy-health-{os.getpid()}"
    port = free_port()

    def prepare(folder: Path) -> None:
        subjects = {
            "port": f'tcp = "localhost:{port}"',
            "path": f'unix = "{folder}/sock"',
            "abstract": f'unix = "@{name}"',
            "file": f'file = "{folder}/go"',
            "line": 'log = "^ready [0-9]+$"',
        }
        health = "".join(f'[health.{key}]\nkind = "readiness"\n{each}\n{QUICK}' for key, each in subjects.items())
        script = f"echo not ready; until test -e {folder}/go; do sleep 0.05; done; echo ready 1; exec sleep 1000"
        (folder / "units" / "web.toml").write_text(f'[service]\nexec-start = ["/bin/sh", "-c", "{script}"]\n{health}')

    with supervisor({}, prepare=prepare) as running:

        def answered() -> list[dict[str, Any]]:
            found = running.status("web")["health"]
            return found if len(found) == 5 and all(each["good"] is not None for each in found) else []

        assert [each["good"] for each in until(answered, "five answers")] == [False] * 5
        assert running.status("web")["active_state"] == "activating"
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as path, socket.socket(socket.AF_UNIX) as abstract:
            tcp.bind(("127.0.0.1", port))
            path.bind(str(running.folder / "sock"))
            abstract.bind(f"\0{name}")
            for listening in (tcp, path, abstract):
                listening.listen(100)
            (running.folder / "go").touch()
            status = running.wait_state("web", "active")
        assert {each["name"]: each["check"] for each in status["health"]} == {
            "port": "tcp", "path": "unix", "abstract": "unix", "file": "file", "line": "log"
        }  # fmt: skip
        assert running.supctl("show", "web").stdout.count("detail") >= 5


def test_a_check_goes_on_under_the_next_manager() -> None:
    """A command that runs while its manager is killed is the next one's: its end counts, it is not run twice at a
    time, and one that hangs is killed; a check that the supervisor makes is asked again."""
    slow = "echo $$ >> {folder}/pids; until test -e {folder}/well; do sleep 0.05; done"

    def prepare(folder: Path) -> None:
        health = (
            f'[health.slow]\nkind = "readiness"\nexec = ["/bin/sh", "-c", "{slow}"]\n{SLOW}\n'
            f'[health.silent]\nkind = "readiness"\nhttp = "http://127.0.0.1:{port}/"\n{SLOW}\n'
        ).replace("{folder}", str(folder))
        (folder / "units" / "web.toml").write_text(f"[service]\n{SLEEP}{health}")

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(10)
        port = silent.getsockname()[1]
        with supervisor({}, prepare=prepare) as running:
            (running_check,) = pids_in(running.folder / "pids")
            first, _ = silent.accept()
            running.kill_manager()
            with first:
                until(lambda: first.recv(1000) == b"" or None, "the end of the first question")
            second, _ = silent.accept()
            with second:
                assert second.recv(1000).startswith(b"GET / HTTP/1.1\r\n")
                second.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            assert not is_gone(running_check)
            assert pids_in(running.folder / "pids") == [running_check]
            silent.close()
            (running.folder / "well").touch()
            until(lambda: check(running.status("web"), "slow")["good"] is True, "the command's answer")


def test_a_check_goes_on_under_the_next_keeper() -> None:
    """A command that lives is held by the run that follows a killed keeper: its end counts."""

    def prepare(folder: Path) -> None:
        script = f"sleep 1000 & echo $$ $! >> {folder}/pids; until test -e {folder}/well; do sleep 0.05; done"
        health = f'[health.slow]\nkind = "readiness"\nexec = ["/bin/sh", "-c", "{script}"]\n{SLOW}\n'
        (folder / "units" / "web.toml").write_text(f"[service]\n{SLEEP}{health}")

    with supervisor({}, prepare=prepare) as running:
        mine = pids_in(running.folder / "pids", 2)
        main = running.status("web")["pid"]
        os.kill(running.keeper_pid, signal.SIGKILL)
        running.process.wait()
        running.start_again()
        assert running.status("web")["pid"] == main
        (running.folder / "well").touch()
        running.wait_state("web", "active")
        until(lambda: all(map(is_gone, mine)), "the end of the check and of what it started")

"""Real daemons that we did not write, as a user would supervise them: with their notifications, reloads and ends."""

import os
import re
import shutil
import socket
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.doctor.evidence import look
from supervisord_py.doctor.invariants import unit_of
from tests.integration.supervisor_rig import RunningSupervisor, supervisor, until

if "SUPERVISORD_PY_DAEMONS" not in os.environ:
    pytest.skip("real daemons run in a container root only: make test-daemons", allow_module_level=True)

DAEMONS: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "daemons.toml").read_text())
HOME = Path("/srv")
SETTLE_S = 60.0
RELOADS = 6


def prepare(name: str) -> None:
    """Make the folder of a daemon with its files, owned by its user."""
    folder = HOME / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    for path, text in DAEMONS[name].get("files", {}).items():
        (folder / path).write_text(text)
    user = tomllib.loads(DAEMONS[name]["unit"])["service"].get("user")
    if user is not None:
        subprocess.run(["chown", "-R", user, folder], check=True)
    for command in DAEMONS[name].get("setup", []):
        subprocess.run(command, shell=True, check=True, cwd=folder)


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSupervisor]:
    for name in DAEMONS:
        prepare(name)
    units = {name: f"[unit]\nenabled = false\n{daemon['unit']}" for name, daemon in DAEMONS.items()}
    # The notify sockets are below it, and must be reached by the users of the daemons.
    with supervisor(units, prepare=lambda folder: folder.chmod(0o755)) as found:
        yield found


def answers(name: str) -> bool:
    """Whether the daemon listens, and says what it should."""
    daemon = DAEMONS[name]
    if "port" not in daemon:
        return True
    try:
        with socket.create_connection(("127.0.0.1", daemon["port"]), timeout=5) as connection:
            if "send" not in daemon:
                return True
            connection.sendall(daemon["send"].encode())
            said = b""
            while len(said) < len(daemon["reply"]) and (more := connection.recv(4096)):
                said += more
            return said.startswith(daemon["reply"].encode())
    except OSError:
        return False


def processes(running: RunningSupervisor, name: str) -> list[str]:
    """The command lines of the unit's processes, as an outsider finds them."""
    with running.client() as client:
        evidence = look(client)
    return [each.command for each in evidence.processes.values() if unit_of(each, evidence) == name]


def events(running: RunningSupervisor, name: str, event: str) -> list[dict[str, Any]]:
    return [record for record in running.records() if record.get("unit") == name and record["event"] == event]


def wait_serving(running: RunningSupervisor, name: str, *, not_pid: int | None = None) -> dict[str, Any]:
    """Return the status once the unit runs (as another process than ``not_pid``) and its daemon answers."""

    def is_serving() -> dict[str, Any] | None:
        status = running.status(name)
        is_up = (status["active_state"], status["sub_state"]) == ("active", "running")
        return status if is_up and status["pid"] not in (None, not_pid) and answers(name) else None

    found: dict[str, Any] = until(is_serving, f"{name} serving, it is {running.status(name)}", SETTLE_S)
    return found


def start(running: RunningSupervisor, name: str) -> dict[str, Any]:
    done = running.supctl("start", name)
    log = running.supctl("logs", name, "-n", "20").stdout
    assert done.returncode == 0, f"{done.stderr}\n{log}"
    return wait_serving(running, name)


def stop(running: RunningSupervisor, name: str) -> None:
    done = running.supctl("stop", name, timeout_s=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_lives_as_it_says(running: RunningSupervisor, name: str) -> None:
    """It is ready when it says so, reloads, comes back when it is killed, and ends as it does by itself."""
    daemon = DAEMONS[name]
    status = start(running, name)
    assert events(running, name, "unit.ready"), "READY was never told"
    until(lambda: len(processes(running, name)) == daemon["processes"], f"{name}: {processes(running, name)}", SETTLE_S)
    if "status" in daemon:
        said = re.compile(daemon["status"])
        until(lambda: said.match(running.status(name)["status_text"] or ""), f"the STATUS= of {name}", SETTLE_S)
    status = reload(running, name, status)
    assert running.supctl("kill", "-s", "SIGKILL", "--whom", "main", name).returncode == 0
    wait_serving(running, name, not_pid=status["pid"])
    until(lambda: len(processes(running, name)) == daemon["processes"], f"{name}: {processes(running, name)}", SETTLE_S)
    running.check_invariants()
    stop(running, name)
    check_end(running, name)


def reload(running: RunningSupervisor, name: str, status: dict[str, Any]) -> dict[str, Any]:
    """Reload the daemon as its unit says; returns the status of the life that goes on."""
    how = DAEMONS[name].get("reload")
    if how is None:
        return status
    done = running.supctl("reload", name)
    if how in ("alive", "notifies"):
        assert done.returncode == 0, done.stderr
        assert wait_serving(running, name)["pid"] == status["pid"]
    if how == "notifies":
        # The same by a signal of ours: nobody asked the supervisor for a reload, the daemon itself tells of it.
        before = len(events(running, name, "unit.reloading"))
        assert running.supctl("kill", "-s", "SIGHUP", "--whom", "main", name).returncode == 0
        until(lambda: len(events(running, name, "unit.reloading")) > before, f"{name} reloading", SETTLE_S)
        assert wait_serving(running, name)["pid"] == status["pid"]
    if how == "restarts":
        return wait_serving(running, name, not_pid=status["pid"])
    if how == "ends":
        running.wait_state(name, "inactive")
        return start(running, name)
    return wait_serving(running, name)


def check_end(running: RunningSupervisor, name: str) -> None:
    """The unit is stopped, with the daemon's own exit, and nothing is left of it."""
    daemon = DAEMONS[name]
    result = daemon.get("result", "success")
    status = running.status(name)
    assert status["result"].replace("_", "-") == result, status
    assert status["active_state"] == ("inactive" if result == "success" else "failed")
    main = [record for record in events(running, name, "unit.exited") if record["role"] == "main"][-1]
    assert daemon["exit"] in (main.get("code"), main.get("signal")), main
    assert processes(running, name) == []


def test_a_gunicorn_reloads_under_load_without_a_failed_request(running: RunningSupervisor) -> None:
    """While four clients ask without a pause, reloads replace every worker, and no request fails."""
    status = start(running, "gunicorn")
    over = threading.Event()
    failed: list[int] = []
    answered = [0] * 4

    def ask(client: int) -> None:
        while not over.is_set():
            if answers("gunicorn"):
                answered[client] += 1
            else:
                failed.append(client)

    def workers() -> set[int]:
        with running.client() as client:
            evidence = look(client)
        return {pid for pid, each in evidence.processes.items() if unit_of(each, evidence) == "gunicorn"}

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(4)]
    for client in clients:
        client.start()
    try:
        for _ in range(RELOADS):
            before, count = workers() - {status["pid"]}, sum(answered)
            done = running.supctl("reload", "gunicorn")
            assert done.returncode == 0, done.stderr
            until(lambda before=before: not before & workers(), "other workers", SETTLE_S)
            until(lambda count=count: sum(answered) > count + 20, "answers after a reload", SETTLE_S)
    finally:
        over.set()
        for client in clients:
            client.join(SETTLE_S)
    assert not failed, f"{len(failed)} of {sum(answered) + len(failed)} requests failed"
    assert wait_serving(running, "gunicorn")["pid"] == status["pid"]
    stop(running, "gunicorn")


def test_all_daemons_at_once_outlive_the_manager_and_the_keepers_replacement(running: RunningSupervisor) -> None:
    """All run side by side; a killed manager and a new keeper touch none; a shutdown ends all of them."""
    for name in DAEMONS:
        prepare(name)
    done = running.supctl("start", "*", timeout_s=300)
    assert done.returncode == 0, done.stderr
    pids = {name: wait_serving(running, name)["pid"] for name in DAEMONS}
    running.kill_manager()
    running.check_invariants()
    done = running.supctl("daemon-reexec", timeout_s=120)
    assert done.returncode == 0, done.stderr
    running.check_invariants()
    assert {name: wait_serving(running, name)["pid"] for name in DAEMONS} == pids
    assert running.stop() == 0
    assert [name for name, pid in pids.items() if os.path.exists(f"/proc/{pid}")] == []

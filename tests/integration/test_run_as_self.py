"""run-as-self: somebody who may run what they like as exactly who they are, and what they try to be more."""

import ctypes
import json
import os
import resource
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from supervisord_py.host.limits import parse_proc_limits
from supervisord_py.host.transients import FAILED_OF_ONE_USER_MAX, OF_ONE_USER_A_MINUTE, OF_ONE_USER_MAX
from supervisord_py.model.unit import Limit
from tests.integration.supervisor_rig import ROOT, SYSTEM_PYTHON, RunningSupervisor, is_gone, supervisor, until
from tests.integration.test_run_terminal import person

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a supervisor that runs others as who they are is root's"),
]
UID, GID, GROUPS = 65534, 4242, [4243, 4244]
SETTINGS = f"""
[control]
socket-mode = "0666"
[[control.allow]]
uid = {UID}
commands = "run-as-self"
[[control.allow]]
unit = "planner*"
commands = "run-as-self"
"""
ASK = """
import json, os, sys
from supervisord_py.ctl.client import Client, ControlError
def ask(path, calls):
    with Client(path, timeout_s=60) as client:
        for method, parameters in calls:
            base = {"save": False, "properties": [], "collect": False, "wait": True, "plan": False}
            try:
                yield client.call(method, **(base if method == "Run" else {}) | parameters)
            except ControlError as error:
                yield {"error": error.name, "message": str(error)}
answer = json.dumps(list(ask(sys.argv[1], json.loads(sys.argv[2]))))
if len(sys.argv) == 3:
    print(answer)
else:
    with open(sys.argv[3] + ".new", "w") as file:
        file.write(answer)
    os.rename(sys.argv[3] + ".new", sys.argv[3])
"""


def open_to_all(folder: Path) -> None:
    folder.chmod(0o755)


@contextmanager
def running_for_others() -> Iterator[RunningSupervisor]:
    web = {"web": '[service]\nexec-start = ["sleep", "1000"]\n'}
    with supervisor(web, settings=SETTINGS, prepare=open_to_all) as running:
        (running.folder / "r").chmod(0o755)
        yield running


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{Path(msgspec.__file__).parents[1]}", "PATH": os.environ["PATH"]}


def ask(
    running: RunningSupervisor,
    *calls: tuple[str, dict[str, Any]],
    prefix: Sequence[str] = (),
    before: Callable[[], None] | None = None,
    uid: int = UID,
) -> list[dict[str, Any]]:
    """Make calls as an ordinary user, in one process."""
    done = subprocess.run(
        [*prefix, SYSTEM_PYTHON, "-c", ASK, str(running.socket), json.dumps(calls)],
        env=environment(),
        user=uid,
        group=GID,
        extra_groups=GROUPS,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def run(command: Sequence[str], **more: Any) -> tuple[str, dict[str, Any]]:
    return "Run", {"command": list(command), **more}


def ids(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}
    return {
        name: found[name] for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs")
    }


def test_it_is_exactly_who_asked() -> None:
    """The ids of the process are those that the kernel has of the caller, not what the user database says, no
    capabilities, and the caller's limits; the unit is the caller's by its name, and goes as others do."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(3)

    with running_for_others() as running:
        (reply,) = ask(running, run(["/bin/sleep", "1000"]), before=limited)
        name = reply["unit"]
        assert name.startswith(f"run-{UID}-"), reply
        status = running.status(name)
        pid = status["pid"]
        assert ids(pid) == {
            "Uid": f"{UID} {UID} {UID} {UID}",
            "Gid": f"{GID} {GID} {GID} {GID}",
            "Groups": " ".join(map(str, GROUPS)),
            "CapEff": "0" * 16,
            "CapPrm": "0" * 16,
            "CapInh": "0" * 16,
            "CapAmb": "0" * 16,
            "NoNewPrivs": "0",
        }
        limits = parse_proc_limits(Path(f"/proc/{pid}/limits").read_text())
        assert (limits["nofile"], limits["core"]) == (Limit(100, 200), Limit(0, 0))
        assert os.getpriority(os.PRIO_PROCESS, pid) == 3
        # Nobody makes somebody else of it afterwards.
        for how in ([], ["--persist"]):
            assert running.supctl("set", name, *how, "service.user=root", "service.group=root").returncode != 0
        running.kill_manager()
        assert running.supctl("restart", name).returncode == 0
        again = running.wait_state(name, "active")["pid"]
        assert again != pid and ids(again)["Uid"].startswith(f"{UID} ")
        assert ids(again)["Gid"].startswith(f"{GID} ")
        assert running.supctl("stop", name).returncode == 0
        until(lambda: is_gone(again), "its end")
        (wait,) = ask(running, run(["/bin/sh", "-c", "exit 4"], until="exit", unit=f"run-{UID}-mine"))
        assert wait["ended"]["exit"]["code"] == 4
        # Its name is free again when the failure is forgotten.
        assert running.supctl("reset-failed", f"run-{UID}-mine").returncode == 0


ATTACKS: dict[str, dict[str, Any]] = {
    "another user": {"user": "root"},
    "another group": {"group": "root"},
    "a file": {"save": True, "unit": f"run-{UID}-x"},
    "another name": {"unit": "cron"},
    "the name of another user": {"unit": "run-0-x"},
    "a name that begins alike": {"unit": f"run-{UID}0-x"},
    "a user by its key": {"properties": ["service.user=root"]},
    "groups": {"properties": ['service.supplementary-groups=["root"]']},
    "a command before it": {"properties": ['service.exec-start-pre="+/bin/sh -c id"']},
    "another command": {"properties": ['service.exec-start="+/bin/id"']},
    "a command as the supervisor": {"properties": ['service.exec-start="!/bin/id"']},
    "a stub": {"properties": ['quarantine.stub="+/bin/id"']},
    "a check": {"properties": ['health.x.exec="+/bin/id"', 'health.x.kind="liveness"']},
    "ambient capabilities": {"properties": ['sandbox.ambient-capabilities=["CAP_SYS_ADMIN"]']},
    "a bounding set": {"properties": ['sandbox.capability-bounding-set=["~"]']},
    "a mount": {"properties": ['sandbox.bind-paths=["/root:/mnt"]']},
    "a file system": {"properties": ["sandbox.private-tmp=true"]},
    "another root": {"properties": ["service.root-directory=/"]},
    "a file of root's to read": {"properties": ["service.standard-input='file:/etc/shadow'"]},
    "a file of root's to write": {"properties": ["service.standard-output='truncate:/etc/passwd'"]},
    "variables of root's files": {"properties": ["service.environment-file=/etc/shadow"]},
    "a credential": {"properties": ["service.load-credential='x:/etc/shadow'"]},
    "variables of the supervisor": {"properties": ["service.pass-environment=SECRET"]},
    "a folder": {"properties": ["service.state-directory=../../etc"]},
    "a pid file": {"properties": ["service.pid-file=/run/x"]},
    "a socket": {"properties": ['socket.listen-stream="80"']},
    "restarts for ever": {"properties": ["service.restart=always"]},
    "the clock": {"properties": ["timer.every=1ms"]},
    "other units": {"properties": ["unit.conflicts=web"]},
    "the end of the supervisor": {"properties": ["unit.exit-supervisor-on=exit"]},
    "a group of units": {"properties": ["unit.groups=backend"]},
    "to go first": {"properties": ["pool.priority=1000"]},
    "more of the disk": {"properties": ["log.max-bytes=100G"]},
    "more files": {"properties": ["limits.nofile=1000:1000"]},
    "no end of files": {"properties": ["limits.nofile=infinity"]},
    "real time": {"properties": ["limits.rtprio=99"]},
    "real time at once": {"properties": ["limits.cpu-scheduling-policy=fifo"]},
    "a better place": {"properties": ["limits.nice=-5"]},
    "never to be killed": {"properties": ["limits.oom-score-adjust=-900"]},
    "more of the processor": {"properties": ["limits.cpu-weight=10000"]},
    "what may be missing": {"properties": ["service.working-directory='-/root/secret'"]},
    "a prefix": {"command": ["+/bin/id"]},
    "a terminal of others": {"terminal": "/dev/pts/0"},
    "no terminal": {"terminal": "/dev/null"},
    "a way around": {"terminal": "/dev/pts/../sda"},
}  # fmt: skip


def test_whoever_wants_more_is_refused() -> None:
    """Each is refused with what is wrong, is in the journal, and leaves no unit."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))

    others = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    try:
        with running_for_others() as running:
            calls = [("Run", {"command": ["/bin/id"], **attack}) for attack in ATTACKS.values()]
            replies = ask(running, *calls, before=limited)
            for what, reply in zip(ATTACKS, replies, strict=True):
                assert reply.get("error") in ("NotPermitted", "InvalidRequest"), (what, reply)
            others_verbs = [("Stop", {"units": ["web"], "wait": True, "plan": False}), ("Shutdown", {})]
            others_verbs += [("Cat", {"unit": "web"}), ("Set", {"unit": "web", "settings": ["limits.nofile=1"],
                              "persist": False, "plan": False})]  # fmt: skip
            assert {reply["error"] for reply in ask(running, *others_verbs)} == {"NotPermitted"}
            with running.client() as client:
                assert [each["name"] for each in client.call("List", units=[], failed=False)["units"]] == ["web"]
            refused = [each for each in running.records() if each["event"].startswith("command.")]
            assert sum(each.get("verb") == "run" for each in refused) >= 10
    finally:
        os.close(others)


DROPPED = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"]
CONFINED = {
    "net": ["unshare", "--net", *DROPPED],
    "mnt": ["unshare", "--mount", *DROPPED],
    "pid": ["unshare", "--pid", "--fork", *DROPPED],
    "CapBnd": [*DROPPED, "--bounding-set=-sys_admin"],
}


def filtered() -> None:
    """Take a filter that lets everything through."""
    libc = ctypes.CDLL(None, use_errno=True)
    allow = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000), 8)
    program = struct.pack("HP", 1, ctypes.addressof(allow))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0


def test_a_confined_caller_stays_confined() -> None:
    """no-new-privileges goes along; a namespace, fewer capabilities and a filter would be left behind: refused."""
    with running_for_others() as running:
        first = run(["/bin/sleep", "1000"])
        (reply,) = ask(running, first, prefix=["setpriv", "--no-new-privs"])
        assert ids(running.status(reply["unit"])["pid"])["NoNewPrivs"] == "1", reply
        tried = 0
        for what, prefix in [*CONFINED.items(), ("user", ["unshare", "--user"])]:
            uid = UID if what == "user" else 0
            if subprocess.run([*prefix, "true"], check=False, capture_output=True, user=uid).returncode != 0:
                continue  # this machine has no such namespaces
            tried += 1
            (reply,) = ask(running, first, prefix=prefix, uid=uid)
            assert (reply.get("error"), "confined" in reply["message"]) == ("NotPermitted", True), (what, reply)
        assert tried
        (reply,) = ask(running, first, before=filtered)
        assert (reply.get("error"), "filtered" in reply["message"]) == ("NotPermitted", True), reply


def test_a_process_of_a_unit_runs_as_itself_or_not_at_all() -> None:
    """Where a rule lets it; what its unit has of a sandbox or of bounds would be left behind, so it is refused then."""
    more = {
        "planner": "",
        "planner-boxed": "[sandbox]\nrestrict-realtime = true\n",
        "planner-bound": "[limits]\ntasks-max = 100\n",
        "other": "",
    }
    calls = json.dumps([run(["/bin/sleep", "1000"])])
    settings = SETTINGS.replace(f"uid = {UID}", "uid = 1")

    def prepare(folder: Path) -> None:
        open_to_all(folder)
        (folder / "answers").mkdir(mode=0o777)
        (folder / "answers").chmod(0o777)
        (folder / "ask.py").write_text(ASK)
        for name, text in more.items():
            command = [
                SYSTEM_PYTHON,
                str(folder / "ask.py"),
                f"{folder}/r/control.sock",
                calls,
                f"{folder}/answers/{name}",
            ]
            (folder / "units" / f"{name}.toml").write_text(
                f'[service]\ntype = "oneshot"\nuser = "{UID}"\ngroup = "{GID}"\nexec-start = {json.dumps(command)}\n'
                f'[service.environment]\nPYTHONPATH = "{environment()["PYTHONPATH"]}"\n{text}'
            )

    with supervisor({}, settings=settings, prepare=prepare) as running:
        (running.folder / "r").chmod(0o755)
        told = {}
        for name in more:
            running.supctl("start", name)
            path = running.folder / "answers" / name
            until(path.exists, f"the answer of {name}: {running.supctl('status', name).stdout}")
            (told[name],) = json.loads(path.read_text())
        assert ids(running.status(told["planner"]["unit"])["pid"])["Uid"].startswith(f"{UID} ")
        assert "its unit has a sandbox" in told["planner-boxed"]["message"]
        assert "its unit has bounds" in told["planner-bound"]["message"]
        assert told["other"]["error"] == "NotPermitted"


def test_so_many_and_no_more() -> None:
    """One user has not all the places there are."""
    with running_for_others() as running:
        replies = ask(running, *[run(["/bin/sleep", "1000"]) for _ in range(OF_ONE_USER_MAX + 2)])
        assert [reply.get("error") for reply in replies] == [None] * OF_ONE_USER_MAX + ["Busy"] * 2
        assert running.supctl("run", "--wait", "true").returncode == 0
        assert running.supctl("stop", f"run-{UID}-*").returncode == 0


def test_a_terminal_is_opened_by_ones_own_rights() -> None:
    """Who runs as itself may have its own terminal, which the process opens as who it is."""
    with running_for_others() as running, person(running, "bash", "-c", "stty size; id -u; exit 5", uid=UID) as me:
        me.sees("40 100\r\n65534\r\n")
        assert me.ends() == 5


COMES = """
import sys, zmq
context = zmq.Context()
dealer = context.socket(zmq.DEALER)
dealer.linger = 0
events = dealer.get_monitor_socket()
dealer.connect("ipc://" + sys.argv[1])
from zmq.utils.monitor import recv_monitor_message
while True:
    event = recv_monitor_message(events)["event"]
    if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
        sys.exit(0)
    if event in (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_DISCONNECTED):
        sys.exit(7)
"""


def test_it_does_not_come_to_the_bus() -> None:
    """Who runs a command as itself could not speak to agents before, and cannot through it; a unit of an operator's
    with the same program and user can."""
    with running_for_others() as running:
        command = [SYSTEM_PYTHON, "-c", COMES, str(running.folder / "r" / "bus.sock")]
        with_path = {"environment": {"PYTHONPATH": environment()["PYTHONPATH"]}}
        (reply,) = ask(running, run(command, until="exit", **with_path))
        assert reply["ended"]["exit"]["code"] == 7, reply
        path = f"PYTHONPATH={environment()['PYTHONPATH']}"
        done = running.supctl("run", "--wait", "--uid", str(UID), "--gid", str(GID), "-E", path, "--", *command)
        assert done.returncode == 0, done
        (reply,) = ask(running, run(["/bin/sh", "-c", 'test -z "$SUPERVISORD_PY_BUS"'], until="exit"))
        assert reply["ended"]["exit"]["code"] == 0


def test_failures_and_haste_of_one_user_are_bounded() -> None:
    """Of those that have failed the latest stay, without anybody's help; who begins too many at once waits a minute."""
    with running_for_others() as running:
        first = ask(running, *[run(["/bin/false"], until="exit") for _ in range(FAILED_OF_ONE_USER_MAX + 3)])
        kept = {reply["unit"] for reply in first[3:]}

        def left() -> set[str]:
            with running.client() as client:
                return {each["name"] for each in client.call("List", units=[], failed=False)["units"]} - {"web"}

        until(lambda: left() == kept, "the last ones only")
        calls = [run(["/bin/true"]) for _ in range(OF_ONE_USER_A_MINUTE)]
        replies = ask(running, *calls)
        assert replies[-1].get("error") == "Busy", replies[-1]
        assert "within a minute" in replies[-1]["message"]

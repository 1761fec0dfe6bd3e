"""Notifications: who may send, in which order they come, what ``MAINPID=`` changes."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.keeper_rig import NOBODY, FakeManager, is_alive, keeper, python, wait_until

HEAD = """
import array, os, select, signal, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
where = os.environ.get("NOTIFY_SOCKET", "")
def tell(text, *fds):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    s.sendmsg([text.encode() if isinstance(text, str) else text], rights, 0, where)
def child():
    gate, mine = os.pipe()
    pid = os.fork()
    if pid: os.close(mine); os.read(gate, 1)
    else: os.close(gate)
    return pid, mine
"""


def teller(spawn_id: int, unit: str, code: str, **more: Any) -> dict[str, Any]:
    return python(spawn_id, unit, HEAD + code, **{"notify": "main", **more})


def notices(manager: FakeManager) -> list[dict[str, str]]:
    return [fact["fields"] for _, fact in manager.facts if fact["fact"] == "notify"]


def test_ready_is_never_overtaken_by_the_exit() -> None:
    """READY=1 and an immediate exit: always in this order, by vfork and by fork, 60 times."""
    with keeper() as rig:
        manager = rig.manager()
        for i in range(1, 61):
            manager.commit(teller(i, f"u{i % 3}", "tell('READY=1'); os._exit(0)", nice=1 if i % 2 else None))
        manager.until(lambda: sum(fact["fact"] == "exited" for _, fact in manager.facts) == 60)
        for i in range(1, 61):
            assert [f["fact"] for _, f in manager.facts if f.get("id") == i] == ["spawned", "notify", "exited"]


def test_fields_come_as_they_were_sent() -> None:
    """The last of a name wins, a line without = and an empty datagram say nothing, one NUL may end a datagram."""
    code = """
tell('A=1\\nB=2=3\\nrubbish\\nA=4\\n')
tell(b'READY=1\\0')
tell('')
tell('=x')
tell(b'STATUS=\\xc3\\xbc \\xff')
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        manager.fact("exited", id=1)
        first, second, third = notices(manager)
        assert (first, second) == ({"A": "4", "B": "2=3"}, {"READY": "1"})
        assert third == {"STATUS": "ü \ufffd"}


def test_what_breaks_the_rules_is_dropped() -> None:
    """A NUL inside, more than 4096 bytes, and a barrier alone are no facts; what follows them is."""
    code = "tell(b'READY=1\\0STATUS=x'); tell('STATUS=' + 'x' * 4096); tell('BARRIER=1'); tell('X=1')"
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        manager.fact("exited", id=1)
        assert notices(manager) == [{"X": "1"}]


def test_a_barrier_is_answered_and_descriptors_are_closed() -> None:
    """The descriptor beside BARRIER=1 is closed when what came before is in the stream; others are not kept either."""
    code = """
tell('READY=1')
r, w = os.pipe()
tell('BARRIER=1', w)
os.close(w)
ready, _, _ = select.select([r], [], [], 20)
print(bool(ready), os.read(r, 1), flush=True)
r, w = os.pipe()
tell('FDSTORE=1', w, w, w)
os.close(w)
print(os.read(r, 1), flush=True)
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.ask("trees", units=None)  # by then the keeper has closed its copies of what the welcome carried
        before = len(os.listdir(f"/proc/{rig.pid}/fd"))
        manager.commit(teller(1, "a", code))
        assert [manager.line("a"), manager.line("a")] == ["True b''", "b''"]
        assert notices(manager) or manager.fact("notify", unit="a")
        manager.fact("exited", id=1)
        manager.commit({"do": "release", "unit": "a"})
        wait_until(lambda: len(os.listdir(f"/proc/{rig.pid}/fd")) == before, "no descriptor left of the unit")


CHILD_TELLS = """
pid, gate = child()
if pid == 0:
    tell('FROM=child')
    os.close(gate)
    os._exit(0)
os.waitpid(pid, 0)
tell('FROM=main')
"""
ORPHAN_TELLS = """
pid, gate = child()
if pid == 0:
    if os.fork() == 0:
        os.setsid()
        tell('FROM=orphan')
        os.close(gate)
    os._exit(0)
os.waitpid(pid, 0)
tell('FROM=main')
"""


@pytest.mark.parametrize("access", ["main", "exec", "all"])
@pytest.mark.parametrize("code", [CHILD_TELLS, ORPHAN_TELLS])
def test_access_decides_who_may_send(access: str, code: str) -> None:
    """The main process always, a descendant with ``all`` only, and even when it is gone already."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code, notify=access))
        manager.fact("exited", id=1)
        senders = [fields["FROM"] for fields in notices(manager)]
        assert senders[-1] == "main"
        assert len(senders) == (2 if access == "all" else 1)


@pytest.mark.parametrize(
    ("access", "heard"), [("main", []), ("exec", [{"FROM": "command"}]), ("all", [{"FROM": "command"}])]
)
def test_another_command_of_the_unit_may_send_with_exec(access: str, heard: list[dict[str, str]]) -> None:
    """A stop command is no main process, but one that we spawned; the fact names its spawn."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "a", "import signal; signal.pause()", notify=access))
        manager.commit(teller(2, "a", "tell('FROM=command')", role="stop", notify=access))
        manager.fact("exited", id=2)
        assert notices(manager) == heard
        assert all(fact["id"] == 2 for _, fact in manager.facts if fact["fact"] == "notify")


def test_access_none_gives_no_socket() -> None:
    """Without notify there is no NOTIFY_SOCKET."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", "print(repr(where))", notify="none"))
        assert manager.line("a") == "''"


def test_a_stranger_is_not_heard() -> None:
    """A process outside, and one of another unit, that know the socket's name are ignored."""
    import socket

    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", "print(where, flush=True); signal.pause()", notify="all"))
        where = manager.line("a")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"READY=1", where)
        manager.commit(teller(2, "b", f"where = {where!r}; tell('READY=1')", notify="all"))
        manager.fact("exited", id=2)
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 15, "cont": False})
        manager.fact("exited", id=1)
        assert notices(manager) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process notifies")
def test_another_users_process_can_send() -> None:
    """The socket can be reached by a unit that runs as somebody else."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", "tell('READY=1')", uid=NOBODY, gid=NOBODY))
        assert manager.fact("notify", unit="a")["fields"] == {"READY": "1"}


def test_a_full_queue_makes_the_sender_wait_and_nothing_is_dropped() -> None:
    """64 unacknowledged notifications stop the reading; acknowledged ones let the sender go on, in order."""
    code = "[tell(f'X_PROGRESS={i}') for i in range(2000)]; print('sent', flush=True)"
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        manager.until(lambda: len(notices(manager)) == 64)
        assert manager.ask("trees", units=["a"])["trees"]["a"], "the sender waits"
        assert len(notices(manager)) == 64
        while len(notices(manager)) < 2000:
            seen = len(notices(manager))
            manager.commit()
            manager.until(lambda seen=seen: len(notices(manager)) > seen)
        assert manager.line("a") == "sent"
        assert [fields["X_PROGRESS"] for fields in notices(manager)] == [str(i) for i in range(2000)]


def test_a_full_queue_is_read_to_its_end_before_the_exit() -> None:
    """What a process sent before it died comes before its exit, also beyond the bound."""
    code = """
s.setblocking(False)
count = 0
try:
    while count < 400:
        tell(f'N={count}')
        count += 1
except BlockingIOError:
    pass
os._exit(count // 10)
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        fact = manager.fact("exited", id=1)
        told = [fields["N"] for fields in notices(manager)]
        assert told == [str(i) for i in range(len(told))]
        assert len(told) // 10 == fact["code"]
        assert manager.facts[-1][1]["fact"] == "exited"


def test_beats_coalesce_while_nobody_listens() -> None:
    """Thousands of WATCHDOG and STATUS without a manager are few facts with the last status; READY between stays."""
    code = """
for i in range(3000): tell(f'WATCHDOG=1\\nSTATUS={i}')
tell('READY=1')
for i in range(3000): tell(f'STATUS=again {i}')
os._exit(0)
"""
    with keeper() as rig:
        first = rig.manager()
        first.kill()
        second = rig.manager(greet=False)
        second.send({"op": "hello", "protocol": 1, "pid": second.pid})
        second.until(lambda: second.welcome)
        second.commit(teller(1, "a", code))
        second.kill()
        third = rig.manager(greet=False)
        probe = f"/proc/{rig.pid}/task/{rig.pid}/children"
        wait_until(lambda: len(Path(probe).read_text().split()) == 1, "the end of the sender")
        third.hello()
        third.fact("exited", id=1)
        told = notices(third)
        assert {"READY": "1"} in told
        assert told[-1]["STATUS"] == "again 2999"
        assert len(told) < 100


def test_mainpid_hands_the_place_to_a_grandchild() -> None:
    """The old main's exit is told with main false, the new one's by its pidfd; signals go to the new one."""
    code = """
pid, gate = child()
if pid == 0:
    os.close(gate)
    signal.pause()
tell(f'MAINPID={pid}')
print(pid, flush=True)
signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        pid = int(manager.line("a"))
        fact = manager.fact("notify", unit="a")
        assert (fact["main_pid"], fact["refused"], fact["id"]) == (pid, None, 1)
        assert manager.ask("trees", units=["a"])
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 15, "cont": False})
        gone = manager.fact("exited", id=1, pid=pid)
        assert (gone["main"], gone["tree_empty"], gone["code"], gone["signal"]) == (True, False, None, signal.SIGTERM)
        manager.commit({"do": "kill", "unit": "a", "signal": 9})
        old = manager.fact("exited", id=1, main=False)
        assert (old["signal"], old["tree_empty"]) == (9, True)


@pytest.mark.parametrize("by", ["exit", "kill"])
def test_mainpid_of_a_daemon_is_our_child_when_its_parent_goes(by: str) -> None:
    """Forking daemon: MAINPID=, the parent exits (main false), and the daemon's own status is told by wait4."""
    code = """
pid, gate = child()
if pid == 0:
    os.close(gate)
    signal.signal(15, lambda *_: os._exit(42))
    print(os.getpid(), flush=True)
    while True: signal.pause()
tell(f'READY=1\\nMAINPID={pid}')
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code))
        pid = int(manager.line("a"))
        parent = manager.fact("exited", id=1)
        assert (parent["main"], parent["tree_empty"], parent["code"]) == (False, False, 0)
        assert manager.welcome and manager.ask("whose", pid=pid)["unit"] == "a"
        manager.kill()
        manager = rig.manager()
        assert manager.welcome["processes"] == [{"id": 1, "unit": "a", "role": "main", "pid": pid, "pending": False}]
        if by == "exit":
            manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": 15, "cont": True}, ack=0)
        else:
            manager.commit({"do": "kill", "unit": "a", "signal": 9}, ack=0)
        end = manager.fact("exited", id=1, pid=pid)
        assert (end["main"], end["tree_empty"]) == (True, True)
        assert (end["code"], end["signal"]) == ((42, None) if by == "exit" else (None, 9))
        assert sum(fact["fact"] == "exited" for _, fact in manager.facts) == 2
        assert not any(fact["fact"] in ("tree-empty", "stray") for _, fact in manager.facts)


def test_mainpid_that_cannot_be_is_refused_with_the_reason() -> None:
    """Nonsense, pid 1, the keeper, the manager, the dead, another unit's process: named, and nothing changes."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(python(1, "b", "import signal; signal.pause()"))
        other = manager.fact("spawned", id=1)["pid"]
        wrong = ["x", "-5", "0", "1", str(rig.pid), str(manager.pid), str(2**22 + 1), str(other), "9" * 30]
        code = "".join(f"tell('MAINPID={value}')\n" for value in wrong) + "signal.pause()"
        manager.commit(teller(2, "a", code))
        manager.until(lambda: len(notices(manager)) == len(wrong))
        for _, fact in manager.facts:
            if fact["fact"] == "notify":
                assert fact["main_pid"] is None and fact["refused"], fact
        manager.commit({"do": "signal", "unit": "a", "id": 2, "whom": "main", "signal": 9, "cont": False})
        assert manager.fact("exited", id=2)["main"]
        assert is_alive(other)


def test_mainpid_may_go_back() -> None:
    """The main process that named another and then itself again is the main process; the other's end is no main's."""
    code = """
pid, gate = child()
if pid == 0:
    os.close(gate)
    signal.pause()
tell(f'MAINPID={pid}')
tell(f'MAINPID={os.getpid()}')
signal.pause()
"""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(teller(1, "a", code, notify="all"))
        manager.until(lambda: len(notices(manager)) == 2)
        pid = manager.fact("spawned", id=1)["pid"]
        manager.commit({"do": "signal", "unit": "a", "id": 1, "whom": "main", "signal": signal.SIGTERM, "cont": False})
        end = manager.fact("exited", id=1, pid=pid)
        assert (end["main"], end["signal"], end["tree_empty"]) == (True, signal.SIGTERM, False)
        manager.commit({"do": "kill", "unit": "a", "signal": 9})
        assert manager.fact("exited", id=1, main=False)["tree_empty"]

"""The manager dies at any instant, and nothing is lost, done twice or forgotten."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.keeper_rig import is_alive, keeper, python, spawn, wait_until

READY = """
import os, socket
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.sendto(b"READY=1\\nMAINPID=%d" % os.getpid(), os.environ["NOTIFY_SOCKET"])
"""


def test_state_lines_and_facts_are_handed_to_the_next_manager() -> None:
    """After kill -9: the state of the last commit, the lines not journalled, the facts not acknowledged, in order."""
    with keeper() as rig:
        first = rig.manager()
        assert (first.welcome["managers"], first.welcome["state"], first.welcome["lines"]) == (1, {}, [])
        first.commit(spawn(1, "a", "sh", "-c", "exit 4"), state={"x": "1", "y": "2"}, lines=[[1, "one"], [2, "two"]])
        first.fact("exited", id=1)
        first.commit(ack=1, state={"x": None, "z": "ü"}, lines=[[3, "three"]], journalled=2)
        first.kill()
        second = rig.manager()
        assert second.welcome["managers"] == 2
        assert second.welcome["state"] == {"y": "2", "z": "ü"}
        assert second.welcome["lines"] == [[3, "three"]]
        assert second.fact("exited", id=1)["code"] == 4
        assert [number for number, _ in second.facts] == [2]
        second.commit(journalled=3)
        second.kill()
        third = rig.manager()
        assert third.welcome["lines"] == []
        third.commit(spawn(2, "a", "true"), ack=0)
        third.fact("exited", id=2)
        assert [number for number, _ in third.facts] == [3, 4]


def test_a_commit_that_was_sent_is_done_though_its_manager_died_at_once() -> None:
    """kill -9 directly after the packet: it is applied whole, the spawn is made once, and its facts reach the next."""
    with keeper() as rig:
        for life in range(1, 21):
            manager = rig.manager()
            assert manager.welcome["state"] == ({"life": str(life - 1)} if life > 1 else {})
            if life > 1:
                manager.fact("exited", id=life - 1)
            manager.commit(spawn(life, "a", "echo", "x"), state={"life": str(life)})
            manager.kill()
        manager = rig.manager()
        manager.fact("exited", id=20)
        assert [number for number, _ in manager.facts] == [39, 40]
        assert manager.output("a", 40) == b"x\n" * 20


def test_a_manager_that_dies_before_its_greeting_or_its_welcome_changes_nothing() -> None:
    """Death without hello, and with the welcome unread: the next one is told the same."""
    with keeper() as rig:
        first = rig.manager()
        first.commit(spawn(1, "a", "sleep", "1000"), state={"k": "v"})
        pid = first.fact("spawned", id=1)["pid"]
        first.kill()
        rig.manager(greet=False).kill()
        silent = rig.manager(greet=False)
        silent.send({"op": "hello", "protocol": 1, "pid": silent.pid})
        silent.kill()
        last = rig.manager()
        assert last.welcome["state"] == {"k": "v"}
        assert last.welcome["processes"] == [{"id": 1, "unit": "a", "role": "main", "pid": pid, "pending": False}]
        assert last.fact("spawned", id=1)["pid"] == pid
        assert is_alive(pid)


def test_the_next_manager_gets_the_outputs_and_the_control_socket() -> None:
    """Descriptors of every unit's pipe, more than fit one packet, and of the listener, after a death."""
    with keeper() as rig:
        first = rig.manager()
        names = [f"u{i:03}" for i in range(230)]
        first.commit(*[spawn(i + 1, name, "echo", name) for i, name in enumerate(names)])
        first.until(lambda: sum(fact["fact"] == "exited" for _, fact in first.facts) == 230)
        first.kill()
        second = rig.manager()
        assert second.welcome["outputs"] == names
        second.until(lambda: len(second.outputs) == 230)
        assert all(os.read(second.outputs[name], 5) == f"{name}\n".encode() for name in names)
        inode = os.fstat(second.listeners[0]).st_ino
        assert f" {inode} {rig.runtime}/control.sock" in Path("/proc/net/unix").read_text().replace("~", "")


def test_more_than_a_packet_holds_travels_in_a_memfd() -> None:
    """A state and lines of megabytes go both ways."""
    with keeper() as rig:
        first = rig.manager()
        big = "ä" * 1_000_000
        first.commit(state={"big": big}, lines=[[1, big]])
        first.kill()
        second = rig.manager()
        assert second.welcome["state"] == {"big": big}
        assert second.welcome["lines"] == [[1, big]]


def test_facts_wait_for_a_manager_that_does_not_read_and_none_is_lost() -> None:
    """Thousands of facts against an unread socket: the keeper goes on working, then all come in order."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(*[spawn(i, "a", "true") for i in range(1, 1501)])
        probe = rig.folder / "done"
        manager.commit(spawn(1501, "b", "touch", str(probe)))
        wait_until(probe.exists, "the keeper has worked through everything unheard")
        manager.until(lambda: len(manager.facts) == 3002)
        assert [number for number, _ in manager.facts] == list(range(1, 3003))


def test_a_manager_that_breaks_the_protocol_is_replaced_and_its_commit_leaves_no_trace() -> None:
    """A commit with one bad part is not applied in part, whatever the part; garbage is no better."""
    bad: list[dict[str, Any]] = [
        {"state": {"k": 1}},
        {"lines": [["x", "y"]]},
        {"ack": 99},
        {"do": [{"spawn": 1}]},
        {"do": None},
        {"journalled": None},
    ]
    with keeper() as rig:
        for broken in bad:
            manager = rig.manager()
            whole = {"op": "commit", "ack": 0, "state": {"k": "v"}, "lines": [], "journalled": 0, "do": []}
            manager.send({**whole, "do": [spawn(1, "a", "true")], **broken})
            manager.until(lambda m=manager: m.is_over)
            manager.leave()
        manager = rig.manager()
        manager.channel.sock.send(b"\xff{not json")
        manager.until(lambda: manager.is_over)
        manager.leave()
        manager = rig.manager()
        assert manager.welcome["state"] == {} and manager.welcome["processes"] == []
        assert "breaks the protocol" in rig.said()


def test_a_hung_manager_is_aborted_and_replaced() -> None:
    """A sent fact that is not acknowledged in time costs the manager its life; what was told is told again."""
    with keeper(hung_timeout_s=0.3) as rig:
        first = rig.manager()
        first.commit(spawn(1, "a", "true"))
        second = rig.manager()
        assert not is_alive(first.pid)
        second.fact("exited", id=1)
        second.commit()
        assert "does not answer" in rig.said()


def test_a_hung_manager_that_survives_an_abort_is_killed() -> None:
    """SIGABRT blocked or stopped: SIGKILL follows, and the new one starts when the old is reaped."""
    with keeper(hung_timeout_s=0.3) as rig:
        first = rig.manager()
        os.kill(first.pid, signal.SIGSTOP)
        first.commit(spawn(1, "a", "sleep", "1000"))
        second = rig.manager()
        assert not os.path.exists(f"/proc/{first.pid}")
        assert [process["id"] for process in second.welcome["processes"]] == [1]
        second.commit()


def test_an_unanswered_order_is_a_hung_manager_and_the_next_gets_the_order() -> None:
    """A reload that was not heard is ordered again; a heard one is not."""
    with keeper(hung_timeout_s=0.3) as rig:
        rig.manager()
        rig.process.send_signal(signal.SIGHUP)
        second = rig.manager()
        second.order("reload")
        second.send({"op": "heard"})
        second.kill()
        third = rig.manager()
        third.commit(spawn(1, "a", "true"))
        third.fact("exited", id=1)
        third.commit()
        assert {"order": "reload"} not in third.messages


def test_an_idle_manager_is_not_hung() -> None:
    """Nothing sent, nothing due: a manager may be silent for longer than the time-out, and the keeper does not wake."""
    with keeper(hung_timeout_s=0.1) as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "true"))
        manager.fact("exited", id=1)
        manager.commit()
        manager.ask("trees", units=None)

        def sleeps() -> int:
            status = Path(f"/proc/{rig.pid}/status").read_text()
            return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])

        before, start = sleeps(), time.monotonic()
        wait_until(lambda: time.monotonic() > start + 0.6)
        assert sleeps() - before <= 1
        assert manager.ask("trees", units=None)["trees"] == {"a": []}


def test_quick_deaths_are_answered_with_growing_patience() -> None:
    """Managers that achieve nothing: the first is replaced at once, later ones wait longer; children do not notice."""
    with keeper() as rig:
        first = rig.manager()
        first.commit(spawn(1, "a", "sleep", "1000"))
        pid = first.fact("spawned", id=1)["pid"]
        first.kill()
        waits = []
        for _ in range(5):
            start = time.monotonic()
            manager = rig.manager()
            waits.append(time.monotonic() - start)
            manager.kill()
        assert waits[4] > waits[0] + 0.3
        assert is_alive(pid)


def test_preflight_ends_the_old_manager_only_when_the_new_one_has_greeted() -> None:
    """``restart-manager``: the old one works on, then reads end of file; the new one is welcomed after its end."""
    with keeper() as rig:
        old = rig.manager()
        old.commit(spawn(1, "a", "sleep", "1000"), {"do": "restart-manager"}, state={"k": "1"})
        new = rig.manager(greet=False)
        old.commit(state={"k": "2"})
        assert old.ask("whose", pid=rig.pid)["descendant"]
        new.send({"op": "hello", "protocol": 1, "pid": new.pid})
        old.until(lambda: old.is_over)
        old.send({"op": "commit", "ack": 0, "state": {"k": "3"}, "lines": [], "journalled": 0, "do": []})
        assert not new.messages
        old.leave()
        new.until(lambda: new.welcome)
        assert new.welcome["state"] == {"k": "3"}
        assert new.welcome["managers"] == 2
        new.fact("spawned", id=1)


@pytest.mark.parametrize("how", ["dies", "speaks another protocol"])
def test_a_preflight_that_fails_changes_nothing_but_is_told(how: str) -> None:
    """The new one dies or cannot be understood: the old one hears why and stays."""
    with keeper() as rig:
        old = rig.manager()
        old.commit({"do": "restart-manager"})
        new = rig.manager(greet=False)
        if how == "dies":
            new.kill()
        else:
            new.send({"op": "hello", "protocol": 99, "pid": new.pid})
        failed = old.until(lambda: next((m for m in old.messages if "preflight-failed" in m), None))
        assert "before it was ready" in failed["preflight-failed"]
        old.commit(spawn(1, "a", "true"))
        old.fact("exited", id=1)


def test_when_the_old_manager_dies_in_a_preflight_the_new_one_takes_over() -> None:
    """No third manager is started."""
    with keeper() as rig:
        old = rig.manager()
        old.commit({"do": "restart-manager"}, state={"k": "v"})
        new = rig.manager(greet=False)
        old.kill()
        assert new.hello()["state"] == {"k": "v"}
        assert new.welcome["managers"] == 2


def test_usr2_replaced_a_manager_that_had_no_say_in_it() -> None:
    """SIGUSR2 to the keeper is an order to the manager, which sees whether another can follow before it asks."""
    with keeper() as rig:
        old = rig.manager()
        rig.process.send_signal(signal.SIGUSR2)
        old.order("replace")
        old.commit({"do": "restart-manager"})
        new = rig.manager(greet=False)
        new.send({"op": "hello", "protocol": 1, "pid": new.pid})
        old.obey()
        new.until(lambda: new.welcome)


def test_pending_spawns_are_in_the_welcome() -> None:
    """A spawn that is asked for and not made yet is told as pending, and is made once."""
    with keeper() as rig:
        manager = rig.manager()
        manager.commit(*[spawn(i, "a", "true", nice=1) for i in range(1, 301)])
        manager.kill()
        second = rig.manager()
        pending = [process["id"] for process in second.welcome["processes"] if process["pending"]]
        second.until(lambda: sum(fact["fact"] == "exited" for _, fact in second.facts) == 300)
        assert sorted(fact["id"] for _, fact in second.facts if fact["fact"] == "spawned") == list(range(1, 301))
        assert len(pending) == len(set(pending))


def test_kill_9_between_any_two_packets() -> None:
    """40 managers die at chosen places of a conversation: a spawn is made once, an exit is told until acknowledged."""
    acknowledged: set[int] = set()
    exits: dict[int, int] = {}
    asked = 0
    with keeper() as rig:
        for life in range(40):
            manager = rig.manager(greet=life % 7 != 6)
            if life % 7 == 6:
                manager.kill()
                continue
            asked = int(manager.welcome["state"].get("asked", "0"))
            for step in range(life % 5):
                asked += 1
                manager.commit(
                    spawn(asked, f"u{asked % 3}", "sh", "-c", f"echo {asked}; exit {asked % 200}"),
                    state={"asked": str(asked)},
                )
                if step % 2:
                    manager.fact("exited", id=asked)
                for number, fact in manager.facts:
                    assert number not in acknowledged, "told again after its acknowledgement"
                    if fact["fact"] == "exited":
                        assert exits.setdefault(fact["id"], fact["code"]) == fact["code"] == fact["id"] % 200
            manager.commit()
            acknowledged |= {number for number, _ in manager.facts}
            manager.kill()
        manager = rig.manager()
        asked = int(manager.welcome["state"]["asked"])
        manager.until(
            lambda: (
                exits.keys() | {f["id"] for _, f in manager.facts if f["fact"] == "exited"} == set(range(1, asked + 1))
            )
        )
        said = "".join(manager.output(name, 1).decode() for name in sorted(manager.welcome["outputs"]))
        assert said


def test_the_keeper_needs_no_file_of_its_own_after_the_start(tmp_path: Path) -> None:
    """With the package deleted under it the keeper spawns by both ways, reaps, notifies and ends."""
    with keeper(python="/usr/bin/python3") as rig:
        manager = rig.manager()
        for path in sorted(rig.package.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        manager.commit(
            python(1, "a", READY, notify="main", nice=2), spawn(2, "b", "no-such-program"), spawn(3, "c", "sleep", "99")
        )
        assert manager.fact("notify", unit="a")["fields"]["READY"] == "1"
        manager.fact("spawn-failed", id=2)
        manager.commit({"do": "kill", "unit": "c", "signal": 9})
        manager.fact("exited", id=3)
        manager.channel.sock.send(b"garbage")
        manager.until(lambda: manager.is_over)
        manager.leave()
        rig.process.send_signal(signal.SIGTERM)
        last = rig.manager()
        last.commit({"do": "exit", "code": 0})
        last.obey()
        assert rig.wait() == 0
        assert "internal error" not in rig.said()

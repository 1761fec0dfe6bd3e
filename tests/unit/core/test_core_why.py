"""why, and the state behind it: who asked for a start or a stop and for what reason, and what went along with it."""

import pytest
from core_rig import NO_JITTER, Rig, needs, service, target

from supervisord_py.core import demand, view
from supervisord_py.core.events import Origin
from supervisord_py.model.states import JobMode, Restart
from supervisord_py.model.unit import Dependency, RestartPolicy

ROOT = Origin(uid=0, gid=0, pid=77, user="root")
NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def up(*names: str) -> Rig:
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web", origin=ROOT, reason="release 7")
    rig.spawned("db")
    rig.spawned("web")
    return rig


def why(rig: Rig, name: str) -> list[str]:
    return [line.message for line in view.why(rig.manager, name)]


def test_a_stop_names_person_and_reason_while_it_lasts_and_after() -> None:
    """In the record, in why of the stopping unit, and of the stopped one; a new manager knows it too."""
    rig = up()
    rig.ask("stop", "web", origin=ROOT, reason="maintenance")
    words = "stopped by root (uid 0): maintenance"
    assert rig.record("unit.stopping", "web").fields["reason"] == words
    assert rig.status("web").why == f"it is stopping: it was {words}"
    rig.exited("web", signal=15)
    assert rig.status("web").why == f"it was {words}"
    restored = type(rig.manager).restore(rig.state, rig.units)
    assert view.unit_status(restored, "web").why == f"it was {words}"


def test_who_asked_is_a_user_a_number_or_a_unit() -> None:
    """A uid without a name is a number; a peer inside a unit is that unit, whoever it runs as."""
    for origin, who in (
        (Origin(uid=1234, pid=5), "uid 1234"),
        (Origin(uid=0, pid=5, user="root", unit="planner"), "unit planner"),
        (ROOT, "root (uid 0)"),
    ):
        rig = up()
        rig.ask("stop", "web", origin=origin)
        rig.exited("web", signal=15)
        assert rig.status("web").why == f"it was stopped by {who}"


def test_a_unit_that_is_stopped_along_says_with_which_and_for_whom() -> None:
    """web never was named: it says db, and who stopped that."""
    rig = up()
    rig.ask("stop", "db", origin=ROOT, reason="upgrade")
    rig.exited("web", signal=15)
    expected = "it was stopped because db, which it needs, is stopped (root (uid 0): upgrade)"
    assert rig.status("web").why == expected
    rig.exited("db", signal=15)
    assert rig.status("db").why == "it was stopped by root (uid 0): upgrade"


def test_a_running_unit_says_who_started_or_restarted_it() -> None:
    """And one that was pulled in says for whom."""
    rig = up()
    assert why(rig, "web") == ["it is running", "it was started by root (uid 0): release 7"]
    assert why(rig, "db") == ["it is running", "it was started because web needs it (root (uid 0): release 7)"]
    rig.ask("restart", "web", origin=ROOT)
    rig.exited("web", signal=15)
    rig.spawned("web")
    assert why(rig, "web") == ["it is running", "it was restarted by root (uid 0)"]


def test_a_life_after_a_crash_was_said_to_be_an_order_of_long_ago() -> None:
    """``it was restarted by root`` stood before the crash that was the cause of the present life."""
    rig = up()
    rig.ask("restart", "web", origin=ROOT)
    rig.exited("web", signal=15)
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    said = why(rig, "web")
    assert said[:2] == ["it is starting", "an earlier life was restarted by root (uid 0)"]
    assert said[-1].startswith("the life before ended (exit-code: exit code 1)"), "it was not said until it ran"
    rig.spawned("web")
    assert [line.partition(" (")[0] for line in why(rig, "web")] == [
        "it is running",
        "the life before ended",
        "an earlier life was restarted by root",
    ]
    rig.ask("restart", "web", origin=ROOT, reason="new key")
    assert why(rig, "web")[0].endswith("it was restarted by root (uid 0): new key")


def test_the_last_word_counts() -> None:
    """A unit that was stopped by one and started by another says the other."""
    rig = up()
    rig.ask("stop", "web", origin=ROOT, reason="oops")
    rig.exited("web", signal=15)
    rig.ask("start", "web", origin=Origin(uid=7, pid=1, user="anna"))
    rig.spawned("web")
    assert why(rig, "web") == ["it is running", "it was started by anna (uid 7)"]


def test_a_bond_and_a_conflict_are_named() -> None:
    """Nobody asked for these stops by name."""
    rig = Rig(
        service("db", restart=NEVER),
        service("probe", relations={"binds_to": (Dependency("db"),)}),
        service("blue", restart=NO_JITTER),
        service("green", relations={"conflicts": ("blue",)}),
    )
    rig.ask("start", "probe", "blue")
    for name in ("db", "probe", "blue"):
        rig.spawned(name)
    rig.crash("db")
    bound = "it is stopping: it was stopped because db, which it is bound to, has ended"
    assert rig.status("probe").why == bound
    rig.ask("start", "green")
    rig.exited("blue", signal=15)
    assert rig.status("blue").why == "it was stopped because green, which conflicts with it, is started"


def test_a_target_that_is_isolated_says_so_to_whom_it_stops() -> None:
    """The units that go down name the one that was asked for."""
    rig = Rig(service("web"), target("rescue"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("start", "rescue", mode=JobMode.ISOLATE, origin=ROOT)
    rig.exited("web", signal=15)
    assert rig.status("web").why == "it was stopped because rescue alone is asked for (root (uid 0))"


def test_a_unit_that_ends_by_itself_says_what_happened() -> None:
    """Not who started it."""
    rig = Rig(service("web", exec_stop_post=service("x").service.exec_start))  # type: ignore[union-attr]
    rig.ask("start", "web", origin=ROOT)
    rig.spawned("web")
    rig.exited("web", 3)
    assert rig.status("web").why == "it is stopping: its main process exited with code 3"


def test_the_status_of_each_unit_followed_its_whole_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cause is all that status shows: a chain of 40 waiting units is not walked 40 times."""
    names = [f"u{number:02d}" for number in range(40)]
    rig = Rig(*(service(name, relations=needs(below)) for name, below in zip(names[1:], names, strict=False)))
    rig.load(service(names[0]), *rig.units.units.values())
    rig.ask("start", names[-1])
    asked: list[str] = []
    blockers = demand.blockers
    monkeypatch.setattr(demand, "blockers", lambda ledger, job: asked.append(job.unit) or blockers(ledger, job))
    assert [rig.status(name).why for name in names[1:]] == [
        f"its start job {rig.manager.ledger.job_of[name].id} waits for {below}"
        for name, below in zip(names[1:], names, strict=False)
    ]
    assert len(asked) == len(names) - 1

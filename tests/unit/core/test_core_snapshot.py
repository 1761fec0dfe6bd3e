"""The state as text: restore, counters over a cold start, times of another boot."""

from core_rig import Rig, needs, notify, service
from msgspec import json

from supervisord_py.core import view
from supervisord_py.core.events import ExitStatus, StrayAppeared, StrayExited
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import FORMAT, UnitState
from supervisord_py.core.timers import DeadlineKind, Timers
from supervisord_py.model.states import Restart, Severity
from supervisord_py.model.unit import SECOND_NS, RestartPolicy


def test_units_at_rest_have_no_text() -> None:
    """A thousand loaded units that nothing happened to cost nothing in custody."""
    rig = Rig(*(service(f"u{number}") for number in range(50)))
    assert list(rig.state) == ["global"]


def test_a_change_is_told_once() -> None:
    """What has been taken is not told again, and an unchanged text is not told at all."""
    manager = Manager(1)
    assert list(manager.take_changes()) == ["global"]
    assert manager.take_changes() == {}


def test_restored_deadlines_can_be_moved_to_another_clock() -> None:
    """``shift_ns`` is added to every time."""
    rig = Rig(service("web", restart=RestartPolicy(delay_ns=5 * SECOND_NS, jitter=0.0)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    deadline_ns = rig.manager.deadline_ns()
    assert deadline_ns is not None
    moved = Manager.restore(rig.state, rig.units, shift_ns=-100 * SECOND_NS)
    assert moved.deadline_ns() == deadline_ns - 100 * SECOND_NS
    assert moved.take_changes()


def test_keys_of_others_are_left_alone() -> None:
    """What the host keeps beside the core's state is neither read nor dropped."""
    rig = Rig(service("web"))
    restored = Manager.restore({**rig.state, "host/files": "{}"}, rig.units)
    assert restored.take_changes() == {}


def test_counters_survive_the_supervisor() -> None:
    """A cold start keeps failures and back-off; enabled units start again, and what was one failure short of the limit
    is quarantined at the next.
    """
    rig = Rig(service("web"), start=True)
    for _ in range(4):
        rig.spawned("web")
        rig.crash("web")
        rig.later(5)
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.load(service("web"), start=True)
    assert again.launched() == ["web"]
    assert again.spawns[0].spawn_id > rig.spawns[-1].spawn_id
    again.spawned("web")
    again.crash("web")
    assert again.shown("web") == "quarantined/failed/exit-code"
    assert again.status("web").failures == 5


def test_a_life_whose_end_nobody_saw_is_told_as_unknown() -> None:
    """After a cold start the next life knows that the last one's end is not known."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.load(service("web"), start=True)
    assert '"result":"unknown"' in dict(again.spawns[0].environment)["SUPERVISORD_PY_LAST_LIFE"]


def test_001_the_signal_of_an_exit_survives_a_restore() -> None:
    """A main process that died of a signal can be restored (simulated seed 5)."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", signal=9)
    restored = Manager.restore(rig.state, rig.units)
    assert restored.snapshot() == rig.state


def test_counters_of_units_that_are_gone_are_dropped() -> None:
    """A unit whose file went while the supervisor was down leaves nothing in the state."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.crash("web")
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.load(service("other"), start=True)
    assert "unit/web" not in again.state
    assert "unit.removed" not in again.events()


def test_extending_all_day_does_not_grow_the_heap() -> None:
    """Deadlines that were moved are forgotten: the heap stays within a few times what is armed."""
    held: dict[str, int] = {}
    timers = Timers(lambda at_ns, owner, kind: held.get(owner) == at_ns)
    for moment in range(10_000):
        name = f"u{moment % 10}"
        held[name] = 1_000_000 - moment
        timers.arm(held[name], name, DeadlineKind.PHASE)
    assert len(timers._heap) < 200
    assert timers.first_ns() == 1_000_000 - 9_999
    fired = [timers.pop_due(1_000_000) for _ in range(10)]
    assert [entry[0] for entry in fired if entry] == sorted(held.values())


def test_every_time_of_a_life_is_moved_with_the_clock() -> None:
    """The beginning of a life is moved as its deadlines are: its run time stays what it was."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    began_ns = rig.manager.ledger.state("web").began_ns
    moved = Manager.restore(rig.state, rig.units, shift_ns=-100 * SECOND_NS)
    assert moved.ledger.state("web").began_ns == began_ns - 100 * SECOND_NS


def test_jobs_are_restored_in_the_order_of_their_numbers() -> None:
    """Job 10 comes after job 9, though its key comes before: who is looked at first does not depend on a restart."""
    names = [f"w{number:02}" for number in range(12)]
    rig = Rig(notify("db"), *(service(name, relations=needs("db")) for name in names))
    for name in names:
        rig.ask("start", name, wait=False)
    numbers = [job.job for job in view.jobs(rig.manager)]
    assert len(numbers) == 13
    assert list(Manager.restore(rig.state, rig.units).ledger.jobs) == numbers


def moments(value: object, key: str = "") -> dict[str, int]:
    """Every number of a snapshot by its path."""
    if isinstance(value, dict):
        return {path: at for name, each in value.items() for path, at in moments(each, f"{key}/{name}").items()}
    if isinstance(value, list):
        return {path: at for place, each in enumerate(value) for path, at in moments(each, f"{key}/{place}").items()}
    return {key: value} if type(value) is int else {}


def test_all_times_are_moved_with_the_clock_and_nothing_else_is() -> None:
    """Whatever time is in the state is moved: the name of the field says whether it is one, so that a new one cannot be
    forgotten. Wall times and spans stay.
    """
    at_ns = 5000 * SECOND_NS
    times = {name: at_ns for name in UnitState.__struct_fields__ if name.endswith("_ns")} | {"starts_ns": [at_ns] * 2}
    numbers = {"failures": 7, "restarts": 7, "backoff": 7, "errors": 7, "refusals": 7, "cause": 7, "related": 7}
    shutdown = {"force_at_ns": at_ns, "give_up_at_ns": at_ns, "longest_ns": at_ns}
    units = {"web": {"job": 3, "good_at_ns": at_ns}, "db": {"job": 4}}
    job = {"id": 9, "unit": "web", "type": "start", "origin": "command", "timeout_at_ns": at_ns}
    text = {
        "unit/web": json.encode({"sub": "running", **times, **numbers}),
        "job/9": json.encode(job),
        "rollout": json.encode({"verb": "apply", "units": units, "probation_ns": at_ns}),
        "global": json.encode({"format": FORMAT, "random": 3, "shutdown": shutdown, "shutdown_timeout_ns": at_ns}),
    }
    state = {key: each.decode() for key, each in text.items()}
    rig = Rig(service("web"), service("db"))
    still, moved = (
        moments({key: json.decode(each) for key, each in manager.snapshot().items()})
        for manager in (Manager.restore(state, rig.units), Manager.restore(state, rig.units, shift_ns=-SECOND_NS))
    )
    assert still.keys() == moved.keys()
    shifted = {path for path in still if still[path] != moved[path]}
    assert all(still[path] - moved[path] == SECOND_NS for path in shifted)
    assert shifted == {path for path, value in still.items() if value == at_ns and not is_span_or_wall(path)}
    assert len(shifted) >= 16


def is_span_or_wall(path: str) -> bool:
    name = path.rpartition("/")[2]
    spans = ("shutdown_timeout_ns", "longest_ns", "probation_ns", "watchdog_ns", "healthy_left_ns")
    return name.endswith("_wall_ns") or name in spans


def test_a_failed_unit_is_still_failed_after_a_cold_start() -> None:
    """One that had failed shows it, with its result and since when; one that ran is down, and one that was well too."""
    never = RestartPolicy(restart=Restart.NO, jitter=0.0)
    rig = Rig(*(service(name, restart=never) for name in ("bad", "good", "up")))
    rig.ask("start", "bad", "good", "up")
    for name in ("bad", "good", "up"):
        rig.spawned(name)
    rig.crash("bad", 3)
    rig.exited("good", 0)
    since = rig.status("bad").since
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.mono_ns += 60 * SECOND_NS
    again.load(*rig.units.units.values())
    assert [again.shown(name) for name in ("bad", "good", "up")] == [
        "failed/failed/exit-code",
        "inactive/dead/success",
        "inactive/dead/success",
    ]
    assert again.status("bad").since == since
    ended = [again.manager.ledger.state(name).last_life for name in ("bad", "good", "up")]
    assert [life and (life.result.value, life.code) for life in ended] == [
        ("exit-code", 3),
        ("success", 0),
        ("unknown", None),
    ]
    assert view.why(again.manager, "bad")[0].message == (
        'it failed (exit-code), and restart = "no" leaves it down: its main process exited with code 3'
    )


def test_a_stray_is_told_when_it_comes_and_when_it_goes() -> None:
    """A process that belongs to no unit is written down twice, with its command and with its end."""
    rig = Rig(service("web"))
    rig.happen(StrayAppeared(77, "sleep 30"))
    rig.happen(StrayExited(77, ExitStatus(signal=9)))
    assert rig.record("stray.appeared").fields == {"pid": 77, "command": "sleep 30"}
    assert rig.record("stray.appeared").severity is Severity.WARNING
    assert rig.record("stray.exited").fields == {"pid": 77, "signal": "SIGKILL", "core": False}

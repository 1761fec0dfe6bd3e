"""Units that are run by the clock: armed, waiting, run, waiting again."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from core_rig import NO_JITTER, WALL_NS, Rig, needs, oneshot, service
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import KeepState, KillTree, SignalProcesses
from supervisord_py.core.events import UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.core.state import UnitState
from supervisord_py.model.calendar import parse_calendar
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import Overrun, Restart, Role, TimerFrom
from supervisord_py.model.unit import (
    SECOND_NS,
    Condition,
    Dependency,
    PoolPlace,
    Quarantine,
    RestartPolicy,
    StartLimit,
    Timer,
    Unit,
    UnitSet,
)

EXACT: dict[str, Any] = {"accuracy_ns": 0}


def timer(**keys: Any) -> dict[str, Any]:
    """The relations of a unit with a timer; ``every`` in seconds, ``calendar`` as text, spans in seconds."""
    every, calendar = keys.pop("every", None), keys.pop("calendar", ())
    if every is not None:
        keys["every_ns"] = round(every * SECOND_NS)
    texts = (calendar,) if isinstance(calendar, str) else calendar
    keys["on_calendar"] = tuple(parse_calendar(text, ZoneInfo) for text in texts)
    for key in ("on_active", "on_boot", "on_startup", "on_unit_active", "on_unit_inactive"):
        if key in keys:
            keys[f"{key}_ns"] = tuple(round(span * SECOND_NS) for span in keys.pop(key))
    return {"timer": Timer(**EXACT | keys)}


def job(name: str = "job", *, relations: dict[str, Any] | None = None, restart: Any = None, **keys: Any) -> Unit:
    """A oneshot with a timer."""
    policy = restart if restart is not None else RestartPolicy(restart=Restart.NO, jitter=0.0)
    return oneshot(name, relations={**timer(**keys), **(relations or {})}, restart=policy)


def armed(*units: Unit, **how: Any) -> Rig:
    """A rig with units of which the first has been started."""
    rig = Rig(*units, **how)
    rig.ask("start", units[0].name)
    return rig


def run(rig: Rig, name: str = "job", code: int = 0, seconds: float = 0) -> None:
    """The run that was begun goes its way."""
    rig.spawned(name)
    rig.later(seconds)
    rig.exited(name, code, role=Role.MAIN)


def runs(rig: Rig, name: str = "job") -> int:
    return rig.launched().count(name)


def due_in(rig: Rig, name: str = "job") -> float | None:
    """Seconds until the next run, as status says."""
    at = rig.status(name).next_elapse
    if at is None:
        return None
    now_ns = WALL_NS + rig.mono_ns + rig.slept_ns + rig.set_ns
    return round(datetime.fromisoformat(at).timestamp() - now_ns / SECOND_NS, 3)


# arming, waiting, running


def test_a_start_arms_and_the_run_comes_at_its_time() -> None:
    """Started it waits, active and without a process; the run is an ordinary life; then it waits for the next one."""
    rig = armed(job(on_active=[5], on_unit_active=[60]))
    assert rig.shown("job") == "active/waiting/success"
    assert rig.outcome(1) == {"job": "done"}
    assert rig.record("unit.ready", "job").fields == {"armed": True, "next": rig.status("job").next_elapse}
    assert (runs(rig), due_in(rig)) == (0, 5.0)
    rig.later(4.9)
    assert runs(rig) == 0
    rig.later(0.1)
    assert runs(rig) == 1
    assert rig.shown("job") == "activating/start/success"
    assert rig.record("timer.elapsed", "job").fields == {"due": rig.status("job").last_elapse, "late_ms": 0}
    assert rig.record("job.queued", "job").fields["origin"] == "automatic"
    run(rig, seconds=2)
    assert rig.shown("job") == "active/waiting/success"
    assert due_in(rig) == 58.0
    assert rig.record("unit.stopped", "job").fields["next"] == rig.status("job").next_elapse


def test_what_led_to_a_run_is_told() -> None:
    """From the process back to the timer: each record names its cause."""
    rig = armed(job(every=10))
    rig.later(0)
    elapsed, queued, starting = (rig.record(event, "job") for event in ("timer.elapsed", "job.queued", "unit.starting"))
    numbered = {id(record): number for number, record in enumerate(rig.records, 1)}
    assert queued.cause == numbered[id(elapsed)]
    assert starting.cause == numbered[id(queued)]


def test_every_begins_at_once_and_keeps_its_beat() -> None:
    """The first run is when it is armed; from start to start, whatever a run takes, or from end to start."""
    rig = armed(job(every=10))
    rig.later(0)
    assert runs(rig) == 1
    run(rig, seconds=3)
    assert due_in(rig) == 7.0
    rig.later(7)
    assert runs(rig) == 2
    rig = armed(job(every=10, every_from=TimerFrom.END))
    rig.later(0)
    run(rig, seconds=3)
    assert due_in(rig) == 10.0


def test_daemons_can_be_run_by_a_timer() -> None:
    """A run need not be a oneshot: it is over when its process has ended."""
    unit = service("job", relations=timer(every=10))
    rig = armed(unit)
    rig.later(0)
    rig.spawned("job")
    assert rig.shown("job") == "active/running/success"
    rig.later(35)
    assert (runs(rig), due_in(rig)) == (1, None)
    rig.exited("job", 0)
    assert rig.shown("job") == "active/waiting/success"
    assert due_in(rig) == 5.0, "the beat is kept: what fell into the run is left out"


def test_b_af_12_cycles_never_overlap() -> None:
    """A run longer than its period, and one that is triggered meanwhile, never lead to a second process."""
    rig = armed(job(every=1))
    rig.later(0)
    rig.spawned("job")
    rig.later(3.5)
    request = rig.ask("trigger", "job")
    assert rig.outcome(request) == {"job": "skipped"}
    assert runs(rig) == 1
    rig.exited("job", 0, role=Role.MAIN)
    assert (runs(rig), due_in(rig)) == (1, 0.5)
    rig.later(0.5)
    assert runs(rig) == 2


def test_overrun_queue_makes_up_for_what_fell_into_a_run_once() -> None:
    """However many times have passed, one run follows at once; so does one that was triggered meanwhile."""
    rig = armed(job(every=1, overrun=Overrun.QUEUE))
    rig.later(0)
    run(rig, seconds=3.5)
    rig.later(0)
    assert runs(rig) == 2
    rig.spawned("job")
    request = rig.ask("trigger", "job")
    assert rig.outcome(request) == {"job": "queued"}
    rig.exited("job", 0, role=Role.MAIN)
    rig.later(0)
    assert runs(rig) == 3
    run(rig)
    assert due_in(rig) == 1.0


def test_a_timer_that_has_elapsed_is_dead_and_says_so() -> None:
    """After the last time the unit is at rest; a calendar of the past is never armed."""
    rig = armed(job(on_active=[1]))
    rig.later(1)
    run(rig)
    assert rig.shown("job") == "inactive/dead/success"
    assert "timer has elapsed" in view.why(rig.manager, "job")[0].message
    rig = armed(job(calendar="2020-01-01"))
    assert rig.outcome(1) == {"job": "done"}
    assert rig.shown("job") == "inactive/dead/success"
    assert (
        rig.record("unit.stopped", "job").fields["message"]
        == "its timer has elapsed: no time is left at which it is to run"
    )
    assert rig.manager.deadline_ns() is None


def test_times_that_count_from_a_run_wait_for_one() -> None:
    """Nothing brings the first run about but somebody who triggers it: until then it waits, and says for what."""
    rig = armed(job(on_unit_inactive=[60]))
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", None)
    line = view.why(rig.manager, "job")[0]
    assert (line.kind, line.advice) == ("timer", "supctl trigger job")
    rig.ask("trigger", "job")
    run(rig, seconds=1)
    assert due_in(rig) == 60.0


def test_boot_and_startup_count_from_there() -> None:
    """``on-boot-sec`` from the boot of the machine (of a container: with the supervisor), ``on-startup-sec`` from the
    start of the supervisor, whenever the unit is armed."""
    units = (job(on_startup=[100]), job("boot", on_boot=[1100]))
    for is_init, expected in ((False, 100.0), (True, 1100.0)):
        rig = Rig()
        rig.happen(UnitsLoaded(UnitSet(units={unit.name: unit for unit in units}), is_init=is_init))
        rig.later(40)
        rig.ask("start", "job", "boot")
        assert (due_in(rig), due_in(rig, "boot")) == (60.0, expected - 40.0)
    passed = armed(job(on_boot=[1]))
    passed.later(0)
    assert runs(passed) == 1, "what is long past comes at once"


# stop, trigger, restart


def test_a_stop_disarms() -> None:
    """A stop of a unit that waits, of one in a run and of one in its back-off: it is down, and never run again."""
    rig = armed(job(every=10))
    rig.later(0)
    run(rig)
    rig.ask("stop", "job")
    assert rig.shown("job") == "inactive/dead/success"
    rig.later(60)
    assert runs(rig) == 1
    rig.ask("start", "job")
    rig.later(0)
    rig.spawned("job")
    rig.ask("stop", "job")
    rig.exited("job", signal=15, role=Role.MAIN)
    assert rig.shown("job").startswith("inactive/dead") or rig.shown("job").startswith("failed/")
    rig.later(60)
    assert runs(rig) == 2
    assert rig.manager.deadline_ns() is None


def test_a_trigger_runs_now_and_changes_nothing_else() -> None:
    """Armed or not: the run comes at once, its job ends as that of a start, and the unit is what it was before."""
    rig = armed(job(calendar="daily"))
    request = rig.ask("trigger", "job")
    assert runs(rig) == 1
    assert request not in rig.replies
    run(rig)
    assert rig.outcome(request) == {"job": "done"}
    assert rig.shown("job") == "active/waiting/success"
    rig.ask("stop", "job")
    request = rig.ask("trigger", "job")
    run(rig, code=3)
    assert rig.outcome(request) == {"job": "failed"}
    assert rig.shown("job") == "failed/failed/exit-code"


def test_a_trigger_is_for_units_with_a_timer() -> None:
    """Any other is refused, before anything is done; so is one that is quarantined."""
    policy = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=1)
    rig = armed(job(every=10, restart=policy), service("web"))
    assert rig.refusal(rig.ask("trigger", "web")) == "JobFailed"
    assert rig.launched() == []
    rig.later(0)
    run(rig, code=1)
    assert rig.refusal(rig.ask("trigger", "job")) == "JobFailed"
    assert rig.refusal(rig.ask("trigger", "nobody")) == "NoSuchUnit"


def test_a_plan_of_a_trigger_says_what_would_be_done() -> None:
    """It is queued although the unit is up already, and nothing happens."""
    rig = armed(job(calendar="daily"))
    request = rig.ask("trigger", "job", plan=True)
    assert rig.outcome(request) == {"job": "queued"}
    assert runs(rig) == 0


def test_a_start_and_a_trigger_that_meet() -> None:
    """While a start waits for another unit, a trigger comes: the unit is armed, and it is run."""
    rig = Rig(job(calendar="daily", relations=needs("db")), service("db", type=service("x").service.type))  # type: ignore[union-attr]
    started = rig.ask("start", "job")
    triggered = rig.ask("trigger", "job")
    assert runs(rig) == 0
    rig.up("db")
    assert runs(rig) == 1
    run(rig)
    assert (rig.outcome(started), rig.outcome(triggered)) == ({"job": "done"}, {"job": "done"})
    assert rig.shown("job") == "active/waiting/success"


def test_a_start_of_what_is_armed_changes_nothing() -> None:
    """Neither while it waits nor in a run."""
    rig = armed(job(every=10))
    rig.later(0)
    run(rig)
    before = due_in(rig)
    assert rig.outcome(rig.ask("start", "job")) == {"job": "done"}
    assert due_in(rig) == before
    rig.later(10)
    rig.spawned("job")
    assert rig.outcome(rig.ask("start", "job")) == {"job": "done"}
    assert runs(rig) == 2


def test_a_restart_arms_anew() -> None:
    """A run that goes on is ended; a first run counts from the new arming."""
    rig = armed(job(on_active=[30]))
    rig.later(20)
    assert rig.outcome(rig.ask("restart", "job")) == {"job": "done"}
    assert due_in(rig) == 30.0
    rig.later(30)
    rig.spawned("job")
    request = rig.ask("restart", "job")
    rig.exited("job", signal=15, role=Role.MAIN)
    assert rig.outcome(request) == {"job": "done"}
    assert (rig.shown("job"), due_in(rig), runs(rig)) == ("active/waiting/success", 30.0, 1)


def test_what_cannot_be_done_to_a_unit_that_waits() -> None:
    """There is no process to reload, to pause or to kill."""
    rig = armed(job(calendar="daily"))
    for verb in ("reload", "pause", "kill"):
        assert rig.outcome(rig.ask(verb, "job")) == {"job": "invalid"}
    assert rig.shown("job") == "active/waiting/success"


# failures


def test_a_failed_run_is_told_and_the_next_one_comes() -> None:
    """The unit goes on waiting, with the result of the run; what its on-failure names is started each time."""
    rig = armed(job(every=10, relations={"on_failure": ("pager",)}), oneshot("pager"))
    rig.later(0)
    run(rig, code=3)
    assert rig.shown("job") == "active/waiting/exit-code"
    failed = rig.record("unit.failed", "job").fields
    assert (failed["failures"], failed["limit_hit"]) == (1, False)
    assert "its last run failed (exit-code)" in view.why(rig.manager, "job")[0].message
    assert runs(rig, "pager") == 1
    rig.later(10)
    run(rig)
    assert rig.shown("job") == "active/waiting/success"
    assert rig.status("job").failures == 0, "a run that ended well is what health is to others"


def test_on_success_is_of_each_run() -> None:
    """What it names is started whenever a run has ended well."""
    rig = armed(job(every=10, relations={"on_success": ("report",)}), oneshot("report"))
    for count in (1, 2):
        rig.later(10 if count > 1 else 0)
        run(rig)
        assert runs(rig, "report") == count
        run(rig, "report")


def test_b_af_3_one_failing_timer_delays_no_other_and_gives_up() -> None:
    """Restarts of a failed run are bounded in their pause and in their number; others keep their beat meanwhile."""
    policy = RestartPolicy(jitter=0.0, delay_ns=SECOND_NS, max_delay_ns=4 * SECOND_NS, steps=2, failures=5)
    rig = armed(job(every=1000, restart=policy), job("beat", every=10))
    rig.ask("start", "beat")
    rig.later(0)
    pauses = []
    for _ in range(5):
        run(rig, code=1)
        delay_ms = rig.record("unit.restart-scheduled", "job").fields["delay_ms"]
        pauses.append(delay_ms)
        if rig.status("job").sub_state == "auto-restart":
            rig.later(delay_ms / 1000)
    assert pauses[:4] == [1000, 2000, 4000, 4000]
    assert rig.shown("job") == "quarantined/failed/exit-code"
    assert runs(rig) == 5
    assert rig.record("timer.elapsed", "job").fields["late_ms"] == 0
    assert rig.events("job").count("timer.elapsed") == 1, "a restart of a run is no new time"
    for _ in range(3):
        run(rig, "beat")
        rig.later(10 - rig.mono_ns // SECOND_NS % 10)
    assert runs(rig, "beat") == 4


def test_a_failed_run_is_restarted_first() -> None:
    """By the restart policy; the next time is waited for when that has succeeded."""
    rig = armed(job(every=60, restart=NO_JITTER))
    rig.later(0)
    run(rig, code=1)
    assert rig.shown("job") == "activating/auto-restart/exit-code"
    rig.later(0.1)
    assert runs(rig) == 2
    run(rig)
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", 60.0)


def test_a_restart_of_a_run_that_waits_in_the_queue_is_begun_by_any_start() -> None:
    """A relation's start came in the place of its time-out's, found it armed, and nothing ever restarted it."""
    policy = replace(NO_JITTER, delay_ns=SECOND_NS)
    rig = armed(
        job(every=60, restart=policy, relations={"after": (Dependency("dep"),)}),
        service("dep", relations={"on_success": ("job",)}),
    )
    rig.ask("start", "dep")
    rig.spawned("dep")
    rig.later(0)
    run(rig, code=1)
    rig.ask("stop", "dep")
    rig.later(1)
    assert rig.shown("job") == "activating/auto-restart-queued/exit-code"
    rig.exited("dep", signal=15)
    assert runs(rig) == 2


def test_a_quarantine_disarms_and_a_release_arms_again() -> None:
    """No time is left for a quarantined unit; whoever releases it arms it."""
    policy = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=2)
    rig = armed(job(every=10, restart=policy))
    for _ in range(2):
        rig.later(10)
        run(rig, code=1)
    assert rig.shown("job") == "quarantined/failed/exit-code"
    rig.later(100)
    assert runs(rig) == 2
    assert rig.outcome(rig.ask("release", "job")) == {"job": "done"}
    assert "unit.released" in rig.events("job")
    rig.later(0)
    assert runs(rig) == 3
    assert rig.status("job").failures == 0


def test_a_retry_arms_half_open() -> None:
    """``retry-after``: it is armed once more, and the next run that fails quarantines it at once."""
    policy = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=2)
    quarantine = {"quarantine": Quarantine(retry_after_ns=100 * SECOND_NS)}
    rig = armed(job(every=10, restart=policy, relations=quarantine))
    for _ in range(2):
        rig.later(10)
        run(rig, code=1)
    rig.later(100)
    assert rig.status("job").active_state in ("active", "activating")
    rig.later(0)
    run(rig, code=1)
    assert rig.shown("job") == "quarantined/failed/exit-code"
    rig.later(100)
    run(rig)
    assert rig.shown("job") == "active/waiting/success"
    assert "unit.released" in rig.events("job")


def test_a_start_limit_ends_the_runs() -> None:
    """Runs by the clock are automatic starts, and are counted as such."""
    policy = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0, limit=StartLimit(60 * SECOND_NS, 2))
    rig = armed(job(every=1, restart=policy))
    for _ in range(2):
        rig.later(1)
        run(rig)
    rig.later(1)
    assert rig.shown("job") == "failed/failed/start-limit-hit"
    rig.later(100)
    assert runs(rig) == 2


def test_a_run_that_cannot_begin_is_told_and_the_next_one_waited_for() -> None:
    """A condition that does not hold, a dependency that somebody stopped, a job that is cancelled."""
    conditions = {"conditions": (Condition("path-exists", "/run/x"),)}
    rig = armed(job(every=10, relations=conditions))
    rig.later(0)
    assert runs(rig) == 0
    rig.checked("job", condition='condition-path-exists = "/run/x"')
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", 10.0)
    assert "its last run was skipped" in view.why(rig.manager, "job")[0].message
    rig.later(10)
    rig.checked("job")
    assert runs(rig) == 1
    run(rig)
    rig = armed(job(every=10, relations=needs("db", ordered=False)), service("db"))
    rig.up("db")
    rig.later(0)
    run(rig)
    rig.crash("db", 0)
    rig.manager.ledger.edit("db").stopped = True
    rig.state |= {"unit/db": rig.manager.snapshot()["unit/db"]}
    rig.later(10)
    assert runs(rig) == 1
    refused = rig.record("job.finished", "job").fields
    assert refused["result"] == "dependency"
    assert "db, which was stopped" in refused["message"]
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", 10.0)


# together with others


def test_what_needs_it_may_start_when_it_is_armed() -> None:
    """Armed is up: for ``started`` and ``ready``, between the runs and in them; ``exited`` waits for a run."""
    reader = service("reader", relations=needs("job"))
    last = service("last", relations={"requires": (Dependency("job", until=_until("exited")),)})
    rig = Rig(job(on_active=[5], on_unit_active=[60]), reader, last)
    rig.ask("start", "reader", "last")
    assert rig.launched() == ["reader"]
    rig.later(5)
    assert rig.launched() == ["reader", "job"]
    run(rig)
    assert rig.launched() == ["reader", "job", "last"]


def _until(word: str) -> Any:
    from supervisord_py.model.states import Until

    return Until(word)


def test_what_is_bound_to_it_stays_for_as_long_as_it_is_armed() -> None:
    """The end of a run takes nobody along, a failed one neither; a stop does."""
    bound = service("bound", relations={"binds_to": (Dependency("job"),), "after": (Dependency("job"),)})
    rig = Rig(job(every=10), bound)
    rig.ask("start", "bound")
    rig.up("bound")
    rig.later(0)
    run(rig, code=1)
    assert rig.status("bound").sub_state == "running"
    rig.ask("stop", "job")
    assert rig.status("bound").active_state == "deactivating"


def test_a_dependency_that_is_restarted_leaves_the_waiting_alone() -> None:
    """A restart of what it requires ends a run, but not the waiting: that would run it at another time."""
    rig = armed(job(calendar="daily", relations=needs("db")), service("db"))
    rig.up("db")
    before = due_in(rig)
    request = rig.ask("restart", "db")
    rig.exited("db", signal=15)
    rig.up("db")
    assert rig.outcome(request) == {"db": "done"}
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", before)
    rig.ask("stop", "db")
    assert rig.shown("job") == "inactive/dead/success"


def in_a_full_pool() -> Rig:
    """A rig in which the only slot of the job's pool is held by web."""
    rig = Rig()
    pool = {"pool": PoolPlace("one")}
    rig.load(job(every=10, relations=pool), service("web", relations=pool), limits=PoolLimits(pools={"one": 1}))
    rig.ask("start", "web")
    rig.up("web")
    return rig


def test_a_run_waits_for_its_slot_and_the_waiting_holds_none() -> None:
    """An armed timer is in no pool; the run takes a place in the queue like any start."""
    rig = in_a_full_pool()
    assert rig.outcome(rig.ask("start", "job")) == {"job": "done"}
    rig.later(0)
    assert runs(rig) == 0
    assert view.why(rig.manager, "job")[0].kind == "pool"
    assert rig.status("job").active_state == "active"
    rig.later(25)
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert runs(rig) == 1
    run(rig)
    assert rig.shown("job") == "active/waiting/success"


def test_a_cancelled_run_is_not_made_up_for() -> None:
    """Its job is gone from the queue of a pool: the next time is waited for."""
    rig = in_a_full_pool()
    rig.ask("start", "job")
    rig.later(0)
    (waiting,) = view.jobs(rig.manager)
    rig.ask("cancel", arguments={"job": waiting.job})
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", 10.0)


def test_boot_arms_what_is_enabled() -> None:
    """Enabled units with a timer are armed with the supervisor; shut down, they do not keep it."""
    rig = Rig(job(calendar="daily"), start=True)
    assert rig.shown("job") == "active/waiting/success"
    rig.shut_down()
    assert rig.shown("job") == "inactive/dead/success"
    assert [type(action).__name__ for action in rig.last.actions][-1] == "ExitSupervisor"


def test_a_forced_shutdown_ends_waiting_and_runs() -> None:
    """A second interrupt: what waits is down at once, what runs is killed."""
    from supervisord_py.core.events import ShutdownForced

    rig = armed(job(calendar="daily"), job("other", every=10))
    rig.ask("start", "other")
    rig.later(0)
    rig.spawned("other")
    rig.happen(ShutdownForced())
    assert rig.status("job").sub_state == "dead"
    assert rig.did(KillTree)
    assert not rig.did(SignalProcesses)


# clocks


BERLIN = ZoneInfo("Europe/Berlin")


def at(rig: Rig, text: str) -> None:
    """Put the wall clock of a rig where it is to begin (UTC)."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    rig.set_ns = int(moment.timestamp()) * SECOND_NS - WALL_NS - rig.mono_ns - rig.slept_ns


def elapses(rig: Rig, count: int, name: str = "job") -> list[str]:
    """Let so many runs happen; returns their wall times."""
    found = []
    for _ in range(count):
        rig.later(due_in(rig, name) or 0)
        found.append((rig.status(name).last_elapse or "")[:19])
        run(rig, name)
    return found


def berlin(*texts: str, begin: str, **keys: Any) -> Rig:
    rig = Rig(job(calendar=texts, **keys))
    rig.zone_of = lambda name: ZoneInfo(name) if name else BERLIN
    rig.manager.use_zones(rig.zone_of)
    at(rig, begin)
    rig.ask("start", "job")
    return rig


def test_calendars_are_read_in_the_local_zone_or_their_own() -> None:
    """Nine in Berlin is seven in UTC in summer."""
    rig = berlin("09:00", begin="2025-07-01T12:00:00")
    assert elapses(rig, 2) == ["2025-07-02T07:00:00", "2025-07-03T07:00:00"]
    rig = berlin("09:00 UTC", begin="2025-07-01T12:00:00")
    assert elapses(rig, 1) == ["2025-07-02T09:00:00"]


def test_summer_time_begins_and_ends() -> None:
    """A time within the gap does not come that day; within the hour that comes twice it comes once."""
    rig = berlin("02:30", begin="2025-03-29T12:00:00")
    assert elapses(rig, 2) == ["2025-03-31T00:30:00", "2025-04-01T00:30:00"]
    rig = berlin("02:30", begin="2025-10-25T12:00:00")
    assert elapses(rig, 2) == ["2025-10-26T00:30:00", "2025-10-27T01:30:00"]


def test_a_clock_that_is_set_forward_brings_what_it_passed_once() -> None:
    """Times that were jumped over are one run, at once."""
    rig = berlin("*:00:00 UTC", begin="2025-07-01T12:30:00")
    rig.set_clock(5 * 3600)
    rig.later(0)
    assert runs(rig) == 1
    run(rig)
    assert due_in(rig) == 1800.0


def test_a_clock_that_is_set_back_fires_nothing_twice() -> None:
    """By less than three hours: what has been is not repeated. By more the clock was wrong, and it counts from now."""
    rig = berlin("*:00:00 UTC", begin="2025-07-01T12:30:00")
    assert elapses(rig, 1) == ["2025-07-01T13:00:00"]
    rig.set_clock(-3600)
    assert due_in(rig) == 7200.0
    rig.set_clock(-24 * 3600)
    assert due_in(rig) == 3600.0


def test_spans_stand_over_a_clock_that_is_set() -> None:
    """They are on the monotonic clock."""
    rig = armed(job(on_active=[60]))
    rig.set_clock(-100_000)
    assert due_in(rig) == 60.0
    rig.set_clock(200_000)
    assert due_in(rig) == 60.0
    rig.later(60)
    assert runs(rig) == 1


def test_a_machine_that_slept_makes_up_for_its_calendar_once() -> None:
    """What fell into the sleep is one run when it wakes; spans do not count while it sleeps."""
    rig = berlin("*:00:00 UTC", begin="2025-07-01T12:30:00", on_active=[7200])
    rig.suspend(10 * 3600)
    rig.later(0)
    assert runs(rig) == 1
    run(rig)
    assert due_in(rig) == 1800.0
    rig = armed(job(on_active=[7200]))
    rig.suspend(10 * 3600)
    assert due_in(rig) == 7200.0


def test_a_clock_that_falls_behind_unnoticed_is_waited_for() -> None:
    """When the deadline has come and the wall clock is not there yet nothing is fired, or it would be fired twice."""
    rig = berlin("13:00:00 UTC", begin="2025-07-01T12:59:00")
    rig.set_ns -= 5 * SECOND_NS
    rig.later(60)
    assert runs(rig) == 0
    rig.later(4.9)
    assert runs(rig) == 0
    rig.later(0.1)
    assert runs(rig) == 1


# accuracy, random delay


def test_wake_ups_fall_together() -> None:
    """Within their accuracy timers wake at one moment, after their time and within the accuracy."""
    rig = Rig(*(job(f"job{number}", on_active=[100 + number], accuracy_ns=60 * SECOND_NS) for number in range(5)))
    rig.ask("start", *(f"job{number}" for number in range(5)))
    deadline_ns = rig.manager.deadline_ns()
    assert deadline_ns is not None
    rig.later(300)
    late = [record.fields["late_ms"] for record in rig.records if record.event == "timer.elapsed"]
    assert len(late) == 5
    assert all(0 <= each <= 60_000 for each in late)
    elapsed = [rig.status(f"job{number}").last_elapse for number in range(5)]
    assert len(set(elapsed)) <= 2, "all in one minute of the raster, or on both sides of its edge"


def test_a_random_delay_is_drawn_once_for_each_time() -> None:
    """It is within its bound, others for other times, and a clock that is set does not draw it anew."""
    rig = armed(job(every=100, randomized_delay_ns=50 * SECOND_NS))
    delays = []
    for _ in range(5):
        rig.later((due_in(rig) or 0) + 0.001)
        run(rig)
        delay_s = (due_in(rig) or 0) - 100 + rig.record("timer.elapsed").fields["late_ms"] / 1000
        delays.append(delay_s)
        rig.set_clock(1000)
        assert due_in(rig) == pytest.approx(100 + delay_s)
    assert all(0 <= each <= 50 for each in delays)
    assert len(set(delays)) > 1


# what survives


def _next_supervisor(rig: Rig, unit: Unit, *, after_s: float) -> Rig:
    manager = Manager(3)
    manager.restore_counters(rig.manager.snapshot())
    later = Rig(manager=manager)
    later.set_ns = rig.set_ns + rig.mono_ns - later.mono_ns + round(after_s * SECOND_NS)
    later.load(unit, start=True)
    return later


def test_a_persistent_timer_makes_up_for_what_was_missed_once() -> None:
    """Its stamp survives the supervisor, from the first arming on; without ``persistent`` nothing is made up for."""
    for persistent in (True, False):
        unit = job(calendar="*:00:00 UTC", persistent=persistent)
        rig = Rig(unit)
        at(rig, "2025-07-01T12:30:00")
        rig.ask("start", "job")
        assert bool(rig.did(KeepState)) is persistent
        next_rig = _next_supervisor(rig, unit, after_s=5 * 3600)
        next_rig.later(0)
        assert runs(next_rig) == persistent
        if persistent:
            assert next_rig.did(KeepState) or KeepState in map(type, next_rig.actions)
            run(next_rig)
            assert due_in(next_rig) == 1800.0
            third = _next_supervisor(next_rig, unit, after_s=60)
            third.later(0)
            assert runs(third) == 0, "what was made up for is not made up for again"
            assert third.status("job").last_elapse == next_rig.status("job").last_elapse


def test_a_stamp_of_the_future_is_not_believed() -> None:
    """A clock was wrong when it was written: the next time counts from now."""
    unit = job(calendar="*:00:00 UTC", persistent=True)
    rig = Rig(unit)
    at(rig, "2030-07-01T12:30:00")
    rig.ask("start", "job")
    later = _next_supervisor(rig, unit, after_s=-5 * 365 * 86400)
    assert due_in(later) == 1800.0


def test_a_snapshot_of_another_boot_is_shifted() -> None:
    """Every time of a timer on the monotonic clock moves with the clock, those on the wall clock stay."""
    rig = armed(job(on_active=[60], calendar="daily"))
    moved = Manager.restore(rig.manager.snapshot(), rig.units, shift_ns=10**12)
    old, new = (manager.ledger.state("job").timer for manager in (rig.manager, moved))
    assert old is not None and new is not None
    assert new.armed_ns == (old.armed_ns or 0) + 10**12
    assert new.mono_ns == (old.mono_ns or 0) + 10**12
    assert new.wall_ns == old.wall_ns
    deadline_ns = rig.manager.deadline_ns()
    assert moved.deadline_ns() == (deadline_ns or 0) + 10**12


# reload


def test_a_reload_that_changes_the_timer_arms_it_anew() -> None:
    """A shorter span counts from when it counted before; another calendar from now; nothing is run by the reload."""
    rig = armed(job(every=100))
    rig.later(0)
    run(rig)
    rig.later(30)
    rig.load(job(every=50))
    assert (due_in(rig), runs(rig)) == (20.0, 1)
    rig = berlin("18:00 UTC", begin="2025-07-01T06:00:00")
    rig.later(6 * 3600)
    rig.load(job(calendar="09:00 UTC"))
    assert (due_in(rig), runs(rig)) == (21 * 3600.0, 0)
    rig.load(job(calendar="2020-01-01"))
    assert rig.shown("job") == "inactive/dead/success"


def test_a_timer_that_comes_or_goes_waits_for_the_next_start() -> None:
    """A service that runs is no armed timer, and an armed timer stays one, until somebody restarts it."""
    plain = oneshot("job")
    rig = armed(job(every=100))
    rig.later(0)
    run(rig)
    rig.load(plain)
    assert due_in(rig) == 100.0
    rig.later(100)
    run(rig)
    assert (rig.shown("job"), due_in(rig)) == ("active/waiting/success", 100.0)
    rig.ask("restart", "job")
    run(rig)
    assert rig.shown("job") == "inactive/dead/success"


def test_why_and_status_say_when() -> None:
    """What waits says until when; after a trigger also who did that."""
    rig = armed(job(calendar="daily"))
    line = view.why(rig.manager, "job")[0]
    at_wall = f"{(rig.status('job').next_elapse or '')[:19].replace('T', ' ')} UTC"
    assert (line.kind, line.message, line.advice) == ("timer", f"it is not due until {at_wall}", "supctl trigger job")
    assert rig.status("job").why == line.message
    assert rig.status("job").last_elapse is None
    assert UnitState().timer is None


def test_a_rolling_restart_of_a_unit_that_waits_for_its_time_is_done_when_it_is_armed_anew() -> None:
    """Between two runs a unit is up without a process: that is no failure of the rollout."""
    rig = armed(job(on_active=(60,)), job("other", on_active=(60,)))
    rig.ask("start", "other")
    request = rig.ask("restart", "job", "other", arguments={"max_unavailable": 1, "probation_ns": SECOND_NS})
    rig.later(5)
    assert rig.outcome(request) == {"job": "done", "other": "done"}
    assert rig.record("rollout.finished").fields["result"] == "done"
    assert rig.shown("job") == "active/waiting/success"

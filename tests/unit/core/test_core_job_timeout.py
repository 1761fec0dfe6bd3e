"""job-timeout-sec: a job has so long from when it was queued; what it began goes on without it."""

from core_rig import NO_JITTER, WALL_NS, Rig, needs, notify, service

from supervisord_py.core import view
from supervisord_py.core.events import Now
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import Restart
from supervisord_py.model.unit import SECOND_NS, Dependency, RestartPolicy, Unit

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def limited(name: str, seconds: int = 5, **relations: object) -> Unit:
    return notify(name, relations={"job_timeout_ns": seconds * SECOND_NS, **relations}, restart=NEVER)


def test_a_start_that_takes_too_long_ends_its_job_and_not_the_unit() -> None:
    """The job has result timeout; the unit starts on, and is active when it is ready."""
    rig = Rig(limited("web"))
    request = rig.ask("start", "web")
    rig.spawned("web")
    rig.later(5)
    assert rig.outcome(request) == {"web": "timeout"}
    assert rig.shown("web") == "activating/start/success"
    rig.says("web", READY="1")
    assert rig.shown("web") == "active/running/success"


def test_the_time_runs_from_when_the_job_is_queued() -> None:
    """It waits for db and never had its turn: its time is over all the same, and it says so."""
    rig = Rig(notify("db"), limited("web", **needs("db")))
    request = rig.ask("start", "web")
    rig.spawned("db")
    rig.later(4)
    rig.ask("start", "web", wait=False)
    rig.later(1)
    assert rig.outcome(request) == {"web": "timeout"}
    assert rig.status("web").why == "the start of web was not done within its job time-out"
    rig.says("db", READY="1")
    assert rig.launched() == ["db"]


def test_dependents_of_a_job_that_timed_out_fail_for_it() -> None:
    """As after any start that failed: dependency; and they come back when it has got there."""
    rig = Rig(limited("db"), service("web", relations=needs("db")))
    request = rig.ask("start", "web")
    rig.spawned("db")
    rig.later(5)
    assert rig.outcome(request) == {"web": "dependency"}
    rig.says("db", READY="1")
    assert rig.launched() == ["db", "web"]


def test_a_timed_out_job_starts_the_handler() -> None:
    """on-failure is for jobs that time out, too."""
    rig = Rig(limited("web", on_failure=("alert",)), service("alert"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(5)
    assert rig.launched() == ["web", "alert"]


def test_a_stop_has_its_time_as_well() -> None:
    """The job is over, the unit goes on stopping."""
    rig = Rig(limited("web"))
    rig.ask("start", "web")
    rig.up("web")
    request = rig.ask("stop", "web")
    rig.later(5)
    assert rig.outcome(request) == {"web": "timeout"}
    assert rig.shown("web") == "deactivating/stop-sigterm/success"


def test_both_halves_of_a_restart_share_one_time() -> None:
    """The stop takes three seconds: two are left for the start."""
    rig = Rig(limited("web"))
    rig.ask("start", "web")
    rig.up("web")
    request = rig.ask("restart", "web")
    rig.later(3)
    rig.exited("web", signal=15)
    rig.spawned("web")
    rig.later(2)
    assert rig.outcome(request) == {"web": "timeout"}


def test_a_job_in_time_leaves_no_deadline() -> None:
    """A done job is not timed out later."""
    rig = Rig(limited("web"))
    request = rig.ask("start", "web")
    rig.up("web")
    assert rig.outcome(request) == {"web": "done"}
    rig.later(60)
    assert rig.events("web").count("job.finished") == 1
    assert rig.manager.deadline_ns() is None


def test_a_check_of_conditions_uses_the_time() -> None:
    """Nobody answers about the conditions: the job ends, and a late answer starts nothing."""
    from supervisord_py.model.unit import Condition

    rig = Rig(limited("web", conditions=(Condition("path-exists", "/x"),)))
    request = rig.ask("start", "web")
    rig.later(5)
    assert rig.outcome(request) == {"web": "timeout"}
    rig.checked("web")
    assert rig.launched() == []


def test_a_restart_of_policy_whose_job_timed_out_is_over() -> None:
    """The unit does not stay queued for a job that is gone."""
    rig = Rig(
        notify("db"),
        service("web", relations={"after": (Dependency("db"),), "job_timeout_ns": 5 * SECOND_NS}, restart=NO_JITTER),
    )
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("start", "db", wait=False)
    rig.spawned("db")
    rig.crash("web")
    rig.later(1)
    assert rig.shown("web") == "activating/auto-restart-queued/exit-code"
    rig.later(5)
    assert view.jobs(rig.manager)[0].unit == "db"
    assert rig.status("web").active_state == "inactive"
    assert "job time-out" in str(rig.status("web").why)


def test_the_time_survives_the_manager_and_the_boot_clock() -> None:
    """The deadline is state: a restored manager has it, shifted with the clock."""
    rig = Rig(limited("web"))
    rig.ask("start", "web")
    due_ns = rig.manager.deadline_ns()
    assert due_ns == rig.mono_ns + 5 * SECOND_NS
    assert Manager.restore(rig.state, rig.units).deadline_ns() == due_ns
    later = Manager.restore(rig.state, rig.units, shift_ns=7)
    assert later.deadline_ns() == due_ns + 7
    from supervisord_py.core.events import DeadlineReached

    effects = later.handle(DeadlineReached(), Now(due_ns + 7, due_ns + 7, WALL_NS, 50))
    assert [record.fields["result"] for record in effects.records] == ["timeout"]

"""Corners that a review has found by hand; each was red once."""

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service

from supervisord_py.core import view
from supervisord_py.model.states import OnDependencyFailure, Restart, Role, ServiceType, Until
from supervisord_py.model.unit import SECOND_NS, Dependency, RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def requires(until: Until, name: str = "db") -> dict[str, object]:
    return {"requires": (Dependency(name, until),)}


def requisite(name: str, *, ordered: bool = True) -> dict[str, object]:
    return {"requisite": (Dependency(name, ordered=ordered),)}


@pytest.mark.parametrize("kind", ["requires", "requisite"])
def test_a_start_after_a_stop_never_recovered(kind: str) -> None:
    """Somebody stops web, and later starts it: what it needs is down, so it waits, and comes with that. The stop of
    before kept it down for ever, and status said that it waits."""
    relations = needs("db") if kind == "requires" else requisite("db")
    rig = Rig(service("db", restart=NEVER), service("web", restart=NEVER, relations=relations))
    for name in ("db", "web"):
        rig.ask("start", name)
        rig.spawned(name)
    for name in ("web", "db"):
        rig.ask("stop", name)
        rig.exited(name, signal=15)
    start = rig.ask("start", "web")
    if kind == "requires":
        rig.failed_to_spawn("db")
    assert rig.outcome(start) == {"web": "dependency"}
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.launched()[-1] == "web"
    assert rig.shown("web") == "activating/start/success"


def test_to_look_for_a_unit_never_made_it_wait() -> None:
    """app has to find web, which somebody stopped; web's own start could not be because of db. web is not started, and
    waits for nothing."""
    rig = Rig(
        notify("db", restart=NEVER),
        service("web", relations=needs("db")),
        service("app", relations=requisite("web")),
    )
    rig.ask("start", "web")
    rig.ask("stop", "web")
    rig.ask("start", "app")
    rig.spawned("db")
    rig.exited("db", 1)
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.status("web").why == "it was stopped"


def test_a_dead_main_process_counted_as_started() -> None:
    """db has begun and died, and its exec-start-post still runs: whoever waits for it to have started waits on, and is
    told that it failed."""
    rig = Rig(
        service("db", exec_start_post=commands("post"), restart=NEVER),
        service("web", relations=requires(Until.STARTED)),
    )
    rig.ask("start", "db")
    rig.spawned("db")
    rig.exited("db", 1, role=Role.MAIN, empty=False)
    start = rig.ask("start", "web")
    assert rig.launched().count("web") == 0
    rig.exited("db", 0, role=Role.START_POST)
    assert rig.outcome(start) == {"web": "dependency"}


def test_what_has_done_its_work_has_started() -> None:
    """A oneshot, and what remains after its exit, count as started while their exec-start-post runs."""
    for unit in (
        oneshot("db", exec_start_post=commands("post")),
        service("db", exec_start_post=commands("post"), remain_after_exit=True),
    ):
        rig = Rig(unit, service("web", relations=requires(Until.STARTED)))
        rig.ask("start", "db")
        rig.spawned("db")
        rig.exited("db", 0, role=Role.MAIN, empty=False)
        rig.ask("start", "web")
        assert rig.launched()[-1] == "web"


def test_a_job_that_became_another_said_so_nowhere() -> None:
    """web is starting, and a restart is asked for: the job goes on as a restart, says so, and names that command as its
    cause."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    asked = rig.seq - 1
    rig.ask("restart", "web", cause=asked)
    changed = rig.record("job.changed", "web")
    assert changed.cause == asked
    assert {key: changed.fields[key] for key in ("type", "was", "origin")} == {
        "type": "restart",
        "was": "start",
        "origin": "command",
    }
    seq = rig.seq - len(rig.last.records) + rig.last.records.index(changed)
    assert rig.record("unit.stopping", "web").cause == seq
    rig.exited("web", 0)
    rig.ask("start", "web")
    assert [record.event for record in rig.records].count("job.changed") == 1


def test_a_look_at_a_stopping_unit_called_its_stop_off() -> None:
    """web has to find db, and somebody is stopping db: that stop is done, and web's start has failed."""
    for ordered in (True, False):
        rig = Rig(service("db"), service("web", relations=requisite("db", ordered=ordered)))
        rig.ask("start", "db")
        rig.spawned("db")
        stop = rig.ask("stop", "db")
        start = rig.ask("start", "web")
        rig.exited("db", signal=15)
        assert rig.outcome(stop) == {"db": "done"}
        assert rig.outcome(start) == {"web": "dependency"}
        assert rig.launched() == ["db"]


@pytest.mark.parametrize("how", ["cancel", "job time-out"])
def test_a_restart_that_was_called_off_blamed_the_policy(how: str) -> None:
    """web is down because of the half of a restart, not because its policy does not restart it."""
    always = RestartPolicy(restart=Restart.ALWAYS, jitter=0.0)
    rig = Rig(service("web", restart=always, relations={"job_timeout_ns": 5 * SECOND_NS}))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("restart", "web")
    if how == "cancel":
        rig.ask("cancel", arguments={"job": view.jobs(rig.manager)[0].job})
    else:
        rig.later(5)
    rig.exited("web", signal=15)
    assert rig.status("web").why == "it was restarted, and that was called off half-way"


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_rolling_restart_started_what_somebody_had_stopped(is_removed: bool) -> None:
    """The second unit is stopped while the first is on probation: it is left out, whether its file is gone or not."""
    units = [service(name) for name in ("a", "b", "c")]
    rig = Rig(*units)
    for unit in units:
        rig.ask("start", unit.name)
        rig.spawned(unit.name)
    arguments = {"max_unavailable": 1, "probation_ns": 5 * SECOND_NS}
    roll = rig.ask("restart", "a", "b", "c", arguments=arguments)
    rig.ask("stop", "b")
    rig.exited("b", signal=15)
    if is_removed:
        rig.load(units[0], units[2])
    for name in ("a", "c"):
        rig.exited(name, signal=15)
        rig.spawned(name)
        rig.later(5)
    assert rig.launched() == ["a", "b", "c", "a", "c"]
    assert rig.outcome(roll) == {"a": "done", "b": "skipped", "c": "done"}


def test_a_rolling_restart_starts_what_was_down_before() -> None:
    """What somebody had stopped before is named all the same, so it is started."""
    rig = Rig(service("a"))
    rig.ask("start", "a")
    rig.spawned("a")
    rig.ask("stop", "a")
    rig.exited("a", signal=15)
    roll = rig.ask("restart", "a", arguments={"max_unavailable": 1})
    rig.spawned("a")
    assert rig.outcome(roll) == {"a": "done"}


def test_a_refused_start_of_a_failed_unit_is_a_failed_job() -> None:
    """With on-dependency-failure = fail: each start that fails for a dependency calls the handler (as systemd, for each
    job), and the unit itself has failed once."""
    relations = {**needs("db"), "on_failure": ("alert",), "on_dependency_failure": OnDependencyFailure.FAIL}
    rig = Rig(service("db", restart=NEVER), service("web", relations=relations), oneshot("alert"))
    for _ in range(2):
        rig.ask("start", "web")
        rig.failed_to_spawn("db")
        rig.spawned("alert")
        rig.exited("alert", 0)
    assert rig.launched().count("alert") == 2
    assert rig.events("web").count("unit.failed") == 1


def test_a_forking_unit_of_which_nothing_is_left_has_not_started() -> None:
    """The start command is done, left nobody, and exec-start-post runs: there is nothing that could have started."""
    rig = Rig(
        service("db", type=ServiceType.FORKING, exec_start_post=commands("post"), restart=NEVER),
        service("web", relations=requires(Until.STARTED)),
    )
    rig.ask("start", "db")
    rig.spawned("db")
    rig.exited("db", 0)
    rig.ask("start", "web")
    assert rig.launched().count("web") == 0

"""Conditions and assertions: asked when a start's turn comes, and what follows from the answer."""

from core_rig import Rig, needs, service

from supervisord_py.core import view
from supervisord_py.core.actions import CheckConditions
from supervisord_py.core.events import ConditionsChecked
from supervisord_py.model.states import JobMode, Restart
from supervisord_py.model.unit import Condition, Dependency, RestartPolicy, StartLimit, Unit

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
PATH = Condition("path-exists", "/srv/web")
MEMORY = Condition("memory", ">=1G")
UNMET = 'condition-path-exists = "/srv/web"'
NEEDS = {"conditions": (PATH,)}


def conditional(name: str = "web", **relations: object) -> Unit:
    return service(name, relations={**NEEDS, **relations}, restart=NEVER)


def test_a_start_asks_first_and_the_unit_stays_as_it_is() -> None:
    """The job runs and nothing else happens until the answer; then the unit starts."""
    rig = Rig(service("web", relations={"conditions": (PATH,), "asserts": (MEMORY,)}))
    request = rig.ask("start", "web")
    job = view.jobs(rig.manager)[0]
    assert rig.did(CheckConditions) == [CheckConditions(job.job, "web", (PATH,), (MEMORY,))]
    assert (job.state, rig.shown("web")) == ("running", "inactive/dead/success")
    assert rig.status("web").why == "its conditions are being looked at"
    assert rig.launched() == [] and request not in rig.replies
    rig.checked("web")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}
    assert rig.status("web").condition_result is True
    assert rig.status("web").condition_at == "2023-11-14T22:30:00.000000Z"


def test_a_condition_that_does_not_hold_skips_the_start() -> None:
    """The job ends as skipped, the unit is inactive and not failed; record, status and why say which condition."""
    rig = Rig(conditional())
    request = rig.ask("start", "web")
    rig.checked("web", UNMET)
    assert rig.outcome(request) == {"web": "skipped"}
    message = f"a condition of web does not hold: {UNMET}"
    assert rig.replies[request].outcomes[0].message == message
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.record("unit.skipped", "web").fields["condition"] == UNMET
    status = rig.status("web")
    assert (status.condition_result, status.condition_unmet, status.why) == (False, UNMET, message)
    assert rig.launched() == [] and view.jobs(rig.manager) == []


def test_a_skipped_unit_is_asked_anew_by_the_next_start() -> None:
    """An answer holds for one start."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    rig.checked("web", UNMET)
    rig.ask("start", "web")
    assert len(rig.did(CheckConditions)) == 1
    rig.checked("web")
    assert rig.launched() == ["web"]
    assert rig.status("web").condition_unmet is None


def test_an_assertion_that_does_not_hold_fails_the_job_and_not_the_unit() -> None:
    """Result assert; the unit is where it was."""
    rig = Rig(service("web", relations={"asserts": (PATH,)}))
    request = rig.ask("start", "web")
    rig.checked("web", assertion='assert-path-exists = "/srv/web"')
    assert rig.outcome(request) == {"web": "assert"}
    assert rig.shown("web") == "inactive/dead/success"
    assert "unit.skipped" not in rig.events("web")
    assert rig.status("web").why == 'an assertion of web does not hold: assert-path-exists = "/srv/web"'


def test_a_failed_unit_stays_failed_when_its_condition_does_not_hold() -> None:
    """The start did not happen, so what was true before is true now; the failure is not forgotten either."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    rig.checked("web")
    rig.spawned("web")
    rig.crash("web")
    request = rig.ask("start", "web")
    assert rig.shown("web") == "failed/failed/exit-code"
    rig.checked("web", UNMET)
    assert rig.outcome(request) == {"web": "skipped"}
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.status("web").failures == 1


def test_requires_is_satisfied_by_a_skipped_unit_and_binds_to_and_requisite_are_not() -> None:
    """The job was done: who requires the unit starts; who has to have it active does not."""
    for relation, result in (("requires", "done"), ("binds_to", "dependency")):
        rig = Rig(conditional("db"), service("web", relations={relation: (Dependency("db"),)}))
        request = rig.ask("start", "web")
        rig.checked("db", UNMET)
        if result == "done":
            rig.spawned("web")
        assert rig.outcome(request) == {"web": result}, relation
    rig = Rig(conditional("db"), service("web", relations={"requisite": (Dependency("db"),)}))
    request = rig.ask("start", "web", "db")
    rig.checked("db", UNMET)
    assert rig.outcome(request) == {"web": "dependency", "db": "skipped"}


def test_an_assertion_that_fails_fails_the_dependents() -> None:
    """As any start that failed."""
    rig = Rig(service("db", relations={"asserts": (PATH,)}), service("web", relations=needs("db")))
    request = rig.ask("start", "web")
    rig.checked("db", assertion="assert-path-exists = /x")
    assert rig.outcome(request) == {"web": "dependency"}


def test_an_automatic_restart_looks_at_no_condition() -> None:
    """As systemd: the unit is activating all the time; only a start from rest asks."""
    rig = Rig(service("web", relations=NEEDS))
    rig.ask("start", "web")
    rig.checked("web")
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["web", "web"]


def test_a_restart_that_was_asked_for_looks_again_when_the_unit_is_down() -> None:
    """The condition is gone meanwhile: the unit stays down, and that is no failure."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    rig.checked("web")
    rig.spawned("web")
    request = rig.ask("restart", "web")
    rig.exited("web", signal=15)
    rig.checked("web", UNMET)
    assert rig.outcome(request) == {"web": "skipped"}
    assert rig.shown("web") == "inactive/dead/success"


def test_conditions_come_before_the_start_limit_and_use_nothing_of_it() -> None:
    """Starts that were skipped are no starts."""
    limited = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0, limit=StartLimit(None, 2))
    rig = Rig(
        service("keeper", relations={"upholds": (Dependency("web"),)}),
        service("web", relations=NEEDS, restart=limited),
    )
    for _ in range(3):
        rig.ask("start", "keeper")
        rig.checked("web", UNMET)
        rig.spawned("keeper")
        rig.ask("stop", "keeper")
        rig.exited("keeper", signal=15)
    rig.ask("start", "keeper")
    rig.spawned("keeper")
    rig.checked("web")
    rig.spawned("web")
    rig.exited("web", 0)
    rig.later(1)
    rig.checked("web")
    assert rig.launched().count("web") == 2
    rig.spawned("web")
    rig.exited("web", 0)
    rig.later(1)
    rig.checked("web")
    assert rig.shown("web") == "failed/failed/start-limit-hit"


def test_a_stop_while_somebody_looks_wins_and_the_answer_is_late() -> None:
    """The start is canceled; what is said about its conditions then means nothing."""
    rig = Rig(conditional())
    start = rig.ask("start", "web")
    stop = rig.ask("stop", "web")
    assert (rig.outcome(start), rig.outcome(stop)) == ({"web": "canceled"}, {"web": "done"})
    rig.checked("web")
    assert rig.launched() == [] and rig.last.records == []


def test_an_answer_to_another_question_means_nothing() -> None:
    """Neither a number that no job has, nor the number of a job that asks nothing, nor another unit's."""
    rig = Rig(conditional(), service("app"))
    rig.ask("start", "app")
    rig.ask("start", "web")
    for check_id, unit in ((99, "web"), (1, "app"), (2, "app")):
        rig.happen(ConditionsChecked(check_id, unit, UNMET))
    assert rig.events("web") == ["unit.loaded", "job.queued"]
    rig.checked("web")
    assert rig.launched() == ["app", "web"]


def test_a_cancelled_check_leaves_nothing_behind() -> None:
    """cancel of the job that looks: the unit is inactive, and says why."""
    rig = Rig(conditional())
    request = rig.ask("start", "web")
    rig.ask("cancel", arguments={"job": view.jobs(rig.manager)[0].job})
    assert rig.outcome(request) == {"web": "canceled"}
    rig.checked("web")
    assert rig.launched() == []
    assert rig.shown("web") == "inactive/dead/success"


def test_what_changed_while_somebody_looked_counts() -> None:
    """db, which web is bound to, ends during the check: web does not start on the answer."""
    rig = Rig(service("db", restart=NEVER), service("web", relations={**NEEDS, "binds_to": (Dependency("db"),)}))
    rig.ask("start", "db")
    rig.up("db")
    request = rig.ask("start", "web")
    rig.crash("db")
    rig.checked("web")
    assert rig.outcome(request) == {"web": "dependency"}
    assert rig.launched() == ["db"]


def test_a_start_that_has_to_wait_after_the_check_looks_again() -> None:
    """During the check a stop of what it comes after is queued: its turn comes later, and so does the look."""
    rig = Rig(service("db"), service("web", relations={**NEEDS, "after": (Dependency("db"),)}))
    rig.ask("start", "db")
    rig.up("db")
    rig.ask("start", "web")
    rig.ask("stop", "db")
    rig.checked("web")
    assert rig.launched() == ["db"]
    rig.exited("db", signal=15)
    assert len(rig.did(CheckConditions)) == 1
    rig.checked("web")
    assert rig.launched() == ["db", "web"]


def test_a_new_manager_asks_again() -> None:
    """The question is part of the state: it is pending until it is answered."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    asked = rig.did(CheckConditions)
    assert type(rig.manager).restore(rig.state, rig.units).pending_actions() == asked
    rig.checked("web")
    assert type(rig.manager).restore(rig.state, rig.units).pending_actions() == []


def test_a_unit_that_waited_for_a_dependency_and_is_skipped_waits_no_more() -> None:
    """Its turn came, and its condition did not hold: it is plainly inactive."""
    rig = Rig(service("db", restart=NEVER), conditional("web", **needs("db")))
    rig.ask("start", "web")
    rig.failed_to_spawn("db")
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.ask("start", "db")
    rig.up("db")
    rig.checked("web", UNMET)
    assert rig.shown("web") == "inactive/dead/success"
    rig.ask("stop", "db")
    rig.exited("db", signal=15)
    rig.ask("start", "db")
    rig.up("db")
    assert rig.did(CheckConditions) == []


def test_a_target_has_conditions_too() -> None:
    """And ignore-dependencies does not ignore them: they are no dependency."""
    from core_rig import target

    rig = Rig(target("all", conditions=(PATH,)))
    rig.ask("start", "all", mode=JobMode.IGNORE_DEPENDENCIES)
    assert rig.shown("all") == "inactive/dead/success"
    rig.checked("all")
    assert rig.shown("all") == "active/running/success"


def test_nothing_is_upheld_over_a_condition_again_and_again() -> None:
    """An upheld unit whose condition does not hold is not tried in a loop."""
    rig = Rig(service("keeper", relations={"upholds": (Dependency("web"),)}), conditional("web"))
    rig.ask("start", "keeper")
    rig.checked("web", UNMET)
    rig.spawned("keeper")
    rig.later(60)
    assert sum(isinstance(action, CheckConditions) for action in rig.actions) == 1


def test_a_reload_in_the_middle_asks_by_the_new_text_and_hears_no_old_answer() -> None:
    """The file got another condition while somebody looked: what is said about the old one decides nothing."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    old = rig.did(CheckConditions)[0]
    rig.load(service("web", relations={"conditions": (MEMORY,)}, restart=NEVER))
    new = rig.did(CheckConditions)[0]
    assert (new.conditions, new.check_id != old.check_id) == ((MEMORY,), True)
    rig.happen(ConditionsChecked(old.check_id, "web", UNMET))
    assert rig.last.records == []
    rig.checked("web")
    assert rig.launched() == ["web"]


def test_a_reload_that_leaves_the_conditions_alone_asks_nothing() -> None:
    """One question is enough."""
    rig = Rig(conditional())
    rig.ask("start", "web")
    rig.load(conditional(description="another text"))
    assert rig.did(CheckConditions) == []
    rig.checked("web")
    assert rig.launched() == ["web"]


def test_a_unit_whose_file_vanishes_while_somebody_looks_is_not_started() -> None:
    """The job ends; it does not wait for an answer that nobody can give any more."""
    rig = Rig(conditional(), service("app"))
    request = rig.ask("start", "web")
    rig.load(service("app"))
    assert rig.outcome(request) == {"web": "invalid"}
    assert type(rig.manager).restore(rig.state, rig.units).pending_actions() == []

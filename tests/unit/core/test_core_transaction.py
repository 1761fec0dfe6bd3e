"""Transactions: what is pulled in, what is dropped, what is refused whole, in every job mode."""

import pytest
from core_rig import Rig, needs, notify, service, target

from supervisord_py.core import view
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import Dependency


def loose(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(name, ordered=False) for name in names)


def planned(rig: Rig, verb: str, unit: str, mode: JobMode = JobMode.REPLACE) -> dict[str, str]:
    """The jobs of a plan by unit."""
    request = rig.ask(verb, unit, mode=mode, plan=True)
    reply = rig.replies[request]
    assert reply.refusal is None, reply.refusal
    return {outcome.unit: outcome.job_type for outcome in reply.outcomes}


def test_a_refused_transaction_changes_nothing() -> None:
    """Two units, one of them bad: nothing of the request is done, and no job is left."""
    rig = Rig(service("web"), service("app", relations=needs("ghost")))
    request = rig.ask("start", "web", "app")
    assert rig.refusal(request) == "NoSuchUnit"
    assert view.jobs(rig.manager) == []
    assert rig.launched() == []


def test_a_plan_changes_nothing_and_writes_nothing() -> None:
    """A plan says what would be done; state, journal and processes stay as they are."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    before = dict(rig.state)
    request = rig.ask("start", "web", plan=True)
    assert [(o.unit, o.job_type, o.result) for o in rig.replies[request].outcomes] == [
        ("web", "start", "queued"),
        ("db", "start", "queued"),
    ]
    assert rig.state == before
    assert rig.last.records == [] and rig.last.actions == []


def test_ignore_dependencies_touches_the_named_unit_only() -> None:
    """Neither what it requires nor who requires it is looked at."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    assert rig.launched() == ["web"]
    rig.spawned("web")
    rig.ask("start", "db")
    rig.spawned("db")
    rig.ask("stop", "db", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.exited("db", signal=15)
    assert rig.status("web").active_state == "active"


def test_isolate_stops_what_was_not_asked_for() -> None:
    """start in mode isolate: everything else goes."""
    rig = Rig(service("a"), service("b"), service("db"), service("web", relations=needs("db")))
    rig.ask("start", "a", "b")
    rig.spawned("a")
    rig.spawned("b")
    rig.ask("start", "web", mode=JobMode.ISOLATE)
    assert rig.shown("a") == rig.shown("b") == "deactivating/stop-sigterm/success"
    assert rig.launched()[-1] == "db"


def test_restart_dependencies_restarts_who_requires_it() -> None:
    """start of db in mode restart-dependencies restarts web, which runs already."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.spawned("web")
    rig.ask("start", "db", mode=JobMode.RESTART_DEPENDENCIES)
    assert rig.shown("web") == "deactivating/stop-sigterm/success"


def test_a_dependency_that_is_up_is_left_alone() -> None:
    """Its job would change nothing, so there is none, and its own wants are not started again."""
    rig = Rig(
        service("cache"),
        service("db", relations={"wants": loose("cache")}),
        service("web", relations=needs("db")),
    )
    rig.ask("start", "db")
    rig.spawned("db")
    rig.spawned("cache")
    rig.ask("stop", "cache")
    rig.exited("cache", signal=15)
    assert planned(rig, "start", "web") == {"web": "start"}


def test_a_required_unit_cannot_be_stopped_by_the_same_request() -> None:
    """web requires db and conflicts with what db conflicts with: a contradiction is refused even when db is up."""
    rig = Rig(
        service("db"),
        service("x", relations={"conflicts": ("db",)}),
        service("web", relations={"requires": loose("db", "x")}),
    )
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.refusal(rig.ask("start", "web")) == "TransactionConflict"
    assert rig.status("db").active_state == "active"


@pytest.mark.parametrize("first", ["start", "restart"])
def test_a_stop_that_replaces_a_start_ends_it_as_canceled(first: str) -> None:
    """Each job ends exactly once, with its own result."""
    rig = Rig(service("web"))
    one = rig.ask(first, "web")
    two = rig.ask("stop", "web")
    assert rig.outcome(one) == {"web": "canceled"}
    rig.exited("web", signal=15)
    assert rig.outcome(two) == {"web": "done"}
    finished = [record.fields["job"] for record in rig.records if record.event == "job.finished"]
    assert sorted(finished) == sorted(set(finished))


def test_an_irreversible_job_is_replaced_by_a_cancel_only() -> None:
    """A start that contradicts it is refused in every mode; after the cancel it is not."""
    rig = Rig(service("web"), service("edge", relations=needs("web")))
    rig.ask("start", "edge")
    rig.spawned("web")
    rig.spawned("edge")
    rig.ask("stop", "web", mode=JobMode.REPLACE_IRREVERSIBLY, wait=False)
    for mode in (JobMode.REPLACE, JobMode.FAIL, JobMode.IGNORE_DEPENDENCIES, JobMode.FLUSH):
        request = rig.ask("start", "web", mode=mode)
        assert rig.refusal(request) == "TransactionConflict"
    refusal = rig.replies[request].refusal
    assert refusal is not None and "is queued and irreversible; wait for it, or cancel it" in refusal.message
    number = next(job.job for job in view.jobs(rig.manager) if job.unit == "web")
    rig.ask("cancel", arguments={"job": number})
    assert planned(rig, "start", "web") == {"web": "nop"}


def test_an_irreversible_job_takes_what_merges_and_stays_irreversible() -> None:
    """A second stop is the same job."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    first = rig.ask("stop", "web", mode=JobMode.REPLACE_IRREVERSIBLY)
    second = rig.ask("stop", "web")
    assert rig.refusal(rig.ask("start", "web")) == "TransactionConflict"
    rig.exited("web", signal=15)
    assert rig.outcome(first) == rig.outcome(second) == {"web": "done"}
    rig.ask("start", "web")
    assert rig.launched() == ["web", "web"]


def test_a_conflict_does_not_end_an_irreversible_start() -> None:
    """web would stop what conflicts with it; while that starts irreversibly, web cannot be asked for."""
    rig = Rig(service("web", relations={"conflicts": ("maintenance",)}), notify("maintenance"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("start", "maintenance", mode=JobMode.REPLACE_IRREVERSIBLY, wait=False)
    rig.exited("web", signal=15)
    rig.spawned("maintenance")
    assert rig.refusal(rig.ask("start", "web")) == "TransactionConflict"
    assert rig.launched() == ["web", "maintenance"]


def test_the_shutdown_replaces_an_irreversible_job() -> None:
    """Nothing keeps the supervisor from ending."""
    rig = Rig(notify("web"))
    rig.ask("start", "web", mode=JobMode.REPLACE_IRREVERSIBLY, wait=False)
    rig.spawned("web")
    rig.shut_down()
    assert rig.shown("web") == "deactivating/stop-sigterm/success"


def test_enabled_units_start_beside_an_irreversible_stop() -> None:
    """A reload brings new units: the one that needs what is being stopped does without, the other starts."""
    rig = Rig(service("db"))
    rig.ask("start", "db")
    rig.spawned("db")
    rig.ask("stop", "db", mode=JobMode.REPLACE_IRREVERSIBLY, wait=False)
    rig.load(service("db"), service("web", relations=needs("db")), service("edge"), start=True)
    assert rig.launched() == ["db", "edge"]


def test_isolate_keeps_what_is_needed_and_cancels_the_jobs_of_all_others() -> None:
    """web stays up with what it requires, though nothing has to be done about them; a queued start elsewhere ends."""
    rig = Rig(
        service("db"),
        service("web", relations=needs("db")),
        target("all", **needs("web")),
        notify("slow"),
        service("edge", relations=needs("slow")),
    )
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    edge = rig.ask("start", "edge")
    rig.ask("start", "all", mode=JobMode.ISOLATE)
    assert rig.shown("db") == rig.shown("web") == "active/running/success"
    assert rig.outcome(edge) == {"edge": "canceled"}
    assert rig.shown("slow") == "deactivating/stop-sigterm/success"
    assert rig.record("unit.stopping", "slow").fields["reason"] == "all alone is asked for"


def test_isolate_keeps_a_requisite() -> None:
    """It is never started for the unit, but it is one of those that have to be there."""
    rig = Rig(service("db"), service("web", relations={"requisite": loose("db")}), service("edge"))
    for name in ("db", "web", "edge"):
        rig.ask("start", name)
        rig.spawned(name)
    rig.ask("start", "web", mode=JobMode.ISOLATE)
    assert rig.shown("db") == rig.shown("web") == "active/running/success"
    assert rig.shown("edge") == "deactivating/stop-sigterm/success"


def test_flush_cancels_all_other_jobs_and_stops_nothing() -> None:
    """What is queued elsewhere is called off, what runs goes on; a restart that was due does not come."""
    rig = Rig(
        notify("db"),
        service("web", relations=needs("db")),
        service("edge"),
        service("crashed", relations={"after": (Dependency("db"),)}),
    )
    rig.ask("start", "crashed")
    rig.spawned("crashed")
    rig.ask("start", "edge")
    rig.spawned("edge")
    web = rig.ask("start", "web")
    rig.crash("crashed")
    rig.later(1)
    assert rig.shown("crashed") == "activating/auto-restart-queued/exit-code"
    rig.ask("start", "edge", mode=JobMode.FLUSH)
    assert rig.outcome(web) == {"web": "canceled"}
    assert view.jobs(rig.manager) == []
    assert rig.shown("edge") == "active/running/success"
    assert rig.shown("crashed").startswith("inactive/dead")
    rig.up("db")
    assert rig.launched().count("web") == 0


def test_ignore_requirements_pulls_nothing_in_and_keeps_the_order() -> None:
    """What it needs is not started, but a start of it that is under way is waited for."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web", mode=JobMode.IGNORE_REQUIREMENTS)
    assert rig.launched() == ["web"]
    other = Rig(notify("db"), service("web", relations=needs("db")))
    other.ask("start", "db", wait=False)
    other.ask("start", "web", mode=JobMode.IGNORE_REQUIREMENTS, wait=False)
    assert other.launched() == ["db"]
    other.up("db")
    assert other.launched() == ["db", "web"]
    last = Rig(notify("db"), service("web", relations=needs("db")))
    last.ask("start", "db", wait=False)
    last.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES, wait=False)
    assert last.launched() == ["db", "web"]


@pytest.mark.parametrize("mode", [JobMode.ISOLATE, JobMode.RESTART_DEPENDENCIES])
def test_modes_of_a_start_are_refused_for_other_verbs(mode: JobMode) -> None:
    """They say what a start does to others."""
    rig = Rig(service("web"))
    assert rig.refusal(rig.ask("restart", "web", mode=mode)) == "TransactionConflict"


def test_mode_fail_lets_a_restart_of_what_is_only_wanted_be() -> None:
    """As systemd: only stops of running units count as an impact that a wish may not have."""
    rig = Rig(service("log"), service("web", relations={"wants": loose("log")}))
    rig.ask("start", "log")
    rig.spawned("log")
    assert planned(rig, "start", "web", JobMode.FAIL) == {"web": "start"}

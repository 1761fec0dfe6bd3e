"""Transactions: what is pulled in, what is dropped, what is refused whole.

The twelve scenarios are those of systemd's src/test/test-engine.c (v256) with its units a to i and a-conj, as described
in the study of the anchors (2.7). Where systemd's relations impose no order, ours say ``ordered = false``.
"""

import pytest
from core_rig import Rig, needs, service

from supervisord_py.core import view
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import Dependency, Unit


def loose(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(name, ordered=False) for name in names)


def after(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(name) for name in names)


ENGINE: list[Unit] = [
    service("a", relations={"requires": loose("b"), "before": ("b",)}),
    service("b", relations={"wants": loose("f")}),
    service("c", relations={"requires": loose("a")}),
    service("d", relations={"after": after("b"), "before": ("a",), "requires": loose("a")}),
    service("e", relations={"after": after("b"), "before": ("a",), "wants": loose("a")}),
    service("f"),
    service("g", relations={"conflicts": ("e",)}),
    service("h", relations={"wants": loose("g")}),
    service("i", relations={"conflicts": ("a", "d"), "wants": loose("b"), "after": after("b")}),
    service("a-conj", relations={"requires": loose("a"), "after": after("a"), "before": ("a",)}),
]


def engine() -> Rig:
    return Rig(*ENGINE)


def planned(rig: Rig, verb: str, unit: str, mode: JobMode = JobMode.REPLACE) -> dict[str, str]:
    """The jobs of a plan by unit."""
    request = rig.ask(verb, unit, mode=mode, plan=True)
    reply = rig.replies[request]
    assert reply.refusal is None, reply.refusal
    return {outcome.unit: outcome.job_type for outcome in reply.outcomes}


def queue_start_of_e(rig: Rig) -> None:
    """Scenario 3 and 4 leave a start of e queued: here it waits behind b, which is still starting."""
    rig.ask("start", "e")


def test_engine_1_start_pulls_in_what_is_required_and_wanted() -> None:
    """start c: a, b and f come too."""
    assert planned(engine(), "start", "c") == {"c": "start", "a": "start", "b": "start", "f": "start"}


def test_engine_2_a_cycle_of_what_matters_is_refused_with_its_path() -> None:
    """start d: d after b, d before a, a before b, and all three are needed."""
    rig = engine()
    request = rig.ask("start", "d")
    assert rig.refusal(request) == "DependencyCycle"
    refusal = rig.replies[request].refusal
    assert refusal is not None
    assert set(refusal.parameters["path"]) == {"a", "b", "d"}
    assert rig.launched() == []


def test_engine_3_a_cycle_is_broken_at_what_does_not_matter() -> None:
    """start e: the same cycle, but a is only wanted, so it goes (and b and f with it)."""
    assert planned(engine(), "start", "e") == {"e": "start"}


def test_engine_4_the_same_in_mode_fail() -> None:
    """start e in mode fail changes nothing about that."""
    assert planned(engine(), "start", "e", JobMode.FAIL) == {"e": "start"}


def test_engine_5_and_6_a_conflict_with_a_queued_job() -> None:
    """start g while e's start is queued: refused in mode fail, and in mode replace e is stopped."""
    rig = engine()
    queue_start_of_e(rig)
    request = rig.ask("start", "g", mode=JobMode.FAIL)
    assert rig.refusal(request) == "TransactionConflict"
    assert planned(rig, "start", "g") == {"g": "start", "e": "stop"}


def test_engine_7_to_9_stop_and_restart_of_a_queued_start() -> None:
    """A queued start of g: stop in mode fail is refused, restart merges with it, stop in mode replace wins."""
    rig = engine()
    rig.ask("start", "g")
    assert rig.refusal(rig.ask("stop", "g", mode=JobMode.FAIL)) == "TransactionConflict"
    assert planned(rig, "restart", "g") == {"g": "restart"}
    assert planned(rig, "stop", "g") == {"g": "stop"}


def test_engine_10_a_wanted_unit_may_be_dropped() -> None:
    """start h in mode fail while e is queued: g conflicts with e, h only wants g, so h starts alone."""
    rig = engine()
    queue_start_of_e(rig)
    assert planned(rig, "start", "h", JobMode.FAIL) == {"h": "start"}


def test_engine_11_conflicts_of_the_anchor_stop_others() -> None:
    """start i while a and d run: both get stop jobs, b is started."""
    rig = engine()
    rig.ask("start", "a", "d", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.spawned("a")
    rig.spawned("d")
    jobs = planned(rig, "start", "i", JobMode.FAIL)
    assert (jobs["i"], jobs["a"], jobs["d"]) == ("start", "stop", "stop")
    assert jobs["b"] == "start"


def test_engine_12_a_unit_before_and_after_another_is_refused() -> None:
    """start a-conj: after a and before a is a cycle of two that both matter."""
    rig = engine()
    assert rig.refusal(rig.ask("start", "a-conj")) == "DependencyCycle"


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

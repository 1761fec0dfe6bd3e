"""What a unit that is up upholds: started again whatever took it down, with pauses, and never over an order."""

from core_rig import Rig, needs, notify, on, oneshot, running, service

from supervisord_py.model.states import OnDependencyFailure, Restart
from supervisord_py.model.unit import SECOND_NS, RestartPolicy, StartLimit

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
NO_LIMIT = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0)


def test_an_upheld_unit_is_started_with_the_unit_and_again_whenever_it_is_down() -> None:
    """It is wanted at the start; a clean end and a crash are made good after the pause of its restarts, a stop by hand
    at once (as systemd)."""
    rig = running(service("keeper", relations=on("upholds", "web")), service("web", restart=NEVER), start=("keeper",))
    assert rig.launched() == ["keeper", "web"] or rig.launched() == ["web", "keeper"]
    rig.up("web")
    rig.exited("web", 0)
    assert "because keeper upholds it" in (rig.status("web").why or "")
    rig.later(1)
    assert rig.launched().count("web") == 2
    rig.up("web")
    rig.crash("web")
    rig.later(1)
    assert rig.launched().count("web") == 3
    rig.up("web")
    stop = rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert rig.outcome(stop) == {"web": "done"}
    assert rig.launched().count("web") == 4
    assert rig.record("job.queued", "web").fields["origin"] == "relation"


def test_nothing_is_upheld_by_a_unit_that_is_down() -> None:
    """With the upholder stopped the other one ends for good, and comes back with it."""
    rig = running(service("keeper", relations=on("upholds", "web")), service("web", restart=NEVER), start=("keeper",))
    rig.up("web")
    rig.ask("stop", "keeper")
    rig.exited("keeper", signal=15)
    rig.exited("web", 0)
    assert rig.shown("web") == "inactive/dead/success"
    rig.ask("start", "keeper")
    rig.up("keeper")
    assert rig.launched().count("web") == 2


def test_a_unit_that_went_down_before_its_upholder_was_up_is_started() -> None:
    """An upholder that becomes active looks after what it upholds."""
    rig = Rig(notify("keeper", relations=on("upholds", "web")), service("web", restart=NEVER))
    rig.ask("start", "keeper")
    rig.spawned("web")
    rig.exited("web", 0)
    rig.spawned("keeper")
    assert rig.launched().count("web") == 1
    rig.says("keeper", READY="1")
    assert rig.launched().count("web") == 2


def test_upholding_is_rate_limited_and_goes_on_later() -> None:
    """Sixteen times within ten seconds, then the rest of these is waited for: no wild loop, and no giving up."""
    rig = running(
        service("keeper", relations=on("upholds", "web")), service("web", restart=NO_LIMIT), start=("keeper",)
    )
    for _ in range(17):
        rig.spawned("web")
        rig.ask("stop", "web")
        rig.exited("web", signal=15)
    assert rig.launched().count("web") == 17
    assert rig.shown("web") == "inactive/dead/success"
    rig.later(9)
    assert rig.launched().count("web") == 17
    rig.later(2)
    assert rig.launched().count("web") == 18


def test_a_program_that_ends_at_once_was_upheld_without_a_rest() -> None:
    """Sixteen runs in ten seconds, for ever, of a program that keeps exiting with 0: the pauses between its lives grow
    as those of any other restart."""
    policy = RestartPolicy(restart=Restart.NO, jitter=0.0, delay_ns=SECOND_NS, steps=2, max_delay_ns=4 * SECOND_NS)
    rig = running(service("keeper", relations=on("upholds", "web")), service("web", restart=policy), start=("keeper",))
    for pause in (1, 2, 4, 4):
        lives = rig.launched().count("web")
        rig.spawned("web")
        rig.exited("web", 0)
        rig.later(pause - 0.5)
        assert rig.launched().count("web") == lives
        rig.later(0.5)
        assert rig.launched().count("web") == lives + 1


def test_upholding_ends_where_the_unit_has_failed_too_often() -> None:
    """The count of failures is one for all restarts: five crashes and it stays failed until somebody starts it."""
    rig = running(service("keeper", relations=on("upholds", "web")), service("web", restart=NEVER), start=("keeper",))
    for _ in range(5):
        rig.spawned("web")
        rig.crash("web")
        rig.later(60)
    assert rig.launched().count("web") == 5
    assert rig.shown("web") == "quarantined/failed/exit-code"
    rig.later(60)
    assert rig.launched().count("web") == 5
    rig.ask("reset-failed", "web")
    assert rig.launched().count("web") == 6


def test_upholding_ends_at_the_start_limit() -> None:
    """systemd's plain window counts these starts as well as the one that began it."""
    limited = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0, limit=StartLimit(10_000_000_000, 3))
    rig = running(service("keeper", relations=on("upholds", "web")), service("web", restart=limited), start=("keeper",))
    for _ in range(3):
        rig.spawned("web")
        rig.exited("web", 0)
        rig.later(1)
    assert rig.shown("web") == "failed/failed/start-limit-hit"
    rig.later(60)
    assert rig.launched().count("web") == 3


def test_a_failed_unit_at_its_start_limit_fails_once() -> None:
    """web crashes, and its limit keeps it from being started for the upholder: one failure, one call of its handler."""
    limited = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0, limit=StartLimit(10_000_000_000, 1))
    rig = running(
        service("keeper", relations=on("upholds", "web")),
        service("web", relations={"on_failure": ("alert",)}, restart=limited),
        service("alert"),
        start=("keeper",),
    )
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    assert rig.shown("web") == "failed/failed/start-limit-hit"
    assert rig.events("web").count("unit.failed") == 1
    assert rig.launched().count("alert") == 1


def test_upholding_does_not_replace_a_stop_that_is_asked_for() -> None:
    """db goes down and takes web along: web is not started again over the stop of what it needs."""
    rig = running(
        service("keeper", relations=on("upholds", "web")),
        service("db"),
        service("web", relations=needs("db"), restart=NEVER),
        start=("db", "keeper"),
    )
    rig.up("web")
    stop = rig.ask("stop", "db")
    rig.exited("web", signal=15)
    assert rig.shown("db") == "deactivating/stop-sigterm/success"
    rig.exited("db", signal=15)
    assert rig.outcome(stop) == {"db": "done"}


def test_an_upheld_unit_whose_dependency_was_stopped_comes_back_with_it() -> None:
    """The stop of db takes web along, and stays: nobody starts db for web. web waits, says so, and comes with db."""
    rig = running(
        service("keeper", relations=on("upholds", "web")),
        service("db"),
        service("web", relations=needs("db"), restart=NEVER),
        start=("db", "keeper"),
    )
    rig.up("web")
    rig.ask("stop", "db")
    rig.exited("web", signal=15)
    rig.exited("db", signal=15)
    assert rig.shown("web") == "inactive/dependency/dependency"
    assert rig.shown("db") == "inactive/dead/success"
    rig.later(60)
    assert rig.launched().count("db") == 1
    rig.ask("start", "db")
    rig.up("db")
    assert rig.launched()[-1] == "web"


def test_an_upheld_unit_that_was_refused_because_of_a_stop_is_tried_again_after_it() -> None:
    """lead takes db down with it, and that web. web is down first, and db was just stopping: that was the end of it,
    and nothing said so (world seed 77310286).
    """
    rig = running(
        service("keeper", relations=on("upholds", "web")),
        service("lead", relations={"propagates_stop_to": ("db",)}, restart=NEVER),
        service("db"),
        service("web", relations=needs("db"), restart=NEVER),
        start=("db", "lead", "keeper"),
    )
    rig.up("web")
    rig.exited("lead", 0)
    rig.exited("web", signal=15)
    said = [record for record in rig.records if "upheld_by" in record.fields]
    assert [(record.unit, record.fields["upheld_by"]) for record in said] == [("web", "keeper")]
    assert "stop" in said[0].fields["message"]
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.exited("db", signal=15)
    assert rig.launched()[-1] == "db"
    rig.up("db")
    rig.up("web")
    assert rig.shown("web") == "active/running/success"
    assert len([record for record in rig.records if "upheld_by" in record.fields]) == 1, "it is said once"


def test_an_upheld_unit_that_fails_with_its_dependency_is_tried_with_growing_pauses() -> None:
    """db fails whenever it is started for web: about twice a second, for ever (world seed 77310301)."""
    rig = Rig(
        service("keeper", relations=on("upholds", "web")),
        oneshot("db", restart=NO_LIMIT),
        service("web", relations={**needs("db"), "on_dependency_failure": OnDependencyFailure.FAIL}, restart=NEVER),
    )
    rig.ask("start", "keeper")
    rig.up("keeper")
    for _ in range(1200):
        if rig.manager.ledger.state("db").main is not None:
            rig.spawned("db")
            rig.crash("db")
            assert rig.shown("web").endswith("failed/dependency")
        rig.later(0.1)
    assert 8 <= rig.launched().count("db") <= 10, "after 0.1 s at first, and each minute at last"
    assert rig.launched().count("web") == 0


def test_an_upheld_unit_waited_for_one_whose_failures_were_forgotten() -> None:
    """web waits for db, which has failed too often; with that forgotten db may be started again, and nobody looked.
    What nobody upholds waits on: to forget a failure is no order to start.
    """
    once = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=1)
    rig = Rig(
        service("keeper", relations=on("upholds", "web")),
        oneshot("db", restart=once),
        service("log", relations=needs("db"), restart=NEVER),
        service("web", relations=needs("db"), restart=NEVER),
    )
    rig.ask("start", "keeper", "log", wait=False)
    rig.spawned("keeper")
    rig.spawned("db")
    rig.crash("db")
    assert (rig.shown("db"), rig.shown("web")) == ("quarantined/failed/exit-code", "inactive/dependency/dependency")
    rig.later(60)
    assert rig.launched() == ["keeper", "db"]
    rig.ask("reset-failed", "keeper")
    assert rig.launched() == ["keeper", "db"]
    rig.ask("reset-failed", "db")
    assert rig.launched() == ["keeper", "db", "db"]
    assert rig.shown("log") == "inactive/dependency/dependency"
    rig.spawned("db")
    rig.exited("db", 0)
    assert sorted(rig.launched()[3:]) == ["log", "web"]


def test_upholding_begins_with_the_reload_that_says_so() -> None:
    """keeper runs already when its file begins to uphold web, which is down: web is started."""
    rig = running(service("keeper"), service("web", relations={"enabled": False}), start=("keeper",))
    rig.load(service("keeper", relations=on("upholds", "web")), service("web", relations={"enabled": False}))
    assert rig.launched() == ["keeper", "web"]


def test_an_upheld_unit_without_what_it_needs_is_tried_less_and_less_often_whatever_its_policy() -> None:
    """With a constant pause between restarts it was tried ten times a second, for ever: such a start is no failure."""
    policy = RestartPolicy(restart=Restart.ALWAYS, delay_ns=SECOND_NS // 10, steps=0, jitter=0.0)
    relations = {**on("requisite", "db"), "on_dependency_failure": OnDependencyFailure.FAIL}
    rig = running(
        service("keeper", relations=on("upholds", "web")),
        service("web", restart=policy, relations=relations),
        service("db"),
        start=("keeper",),
    )
    for _ in range(600):
        rig.later(1)
    attempts = [record for record in rig.records if record.event == "job.queued" and record.unit == "web"]
    assert 8 <= len(attempts) <= 40
    assert rig.launched() == ["keeper"]

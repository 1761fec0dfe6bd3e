"""Units together: order, failure, recovery, conflicts, bonds."""

from itertools import pairwise

import pytest
from core_rig import NO_JITTER, Rig, needs, notify, oneshot, service, target

from supervisord_py.core import view
from supervisord_py.model.states import JobMode, OnDependencyFailure, Restart, Until
from supervisord_py.model.unit import SECOND_NS, Dependency, RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def bound(name: str, **how: object) -> dict[str, tuple[Dependency, ...]]:
    return {"binds_to": (Dependency(name, **how),)}  # type: ignore[arg-type]


def test_a_dependent_waits_for_readiness() -> None:
    """web is queued until db has said READY, and shows what it waits for."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    assert rig.shown("web") == "queued/dependency/success"
    assert view.jobs(rig.manager)[0].waiting_for == ("db",)
    assert rig.record("unit.queued", "web").fields["waiting_for"] == ["db"]
    rig.spawned("db")
    assert rig.launched() == ["db"]
    rig.says("db", READY="1")
    assert rig.launched() == ["db", "web"]


def test_until_started_waits_for_the_program_only() -> None:
    """With ``until = "started"`` READY is not awaited."""
    rig = Rig(notify("db"), service("web", relations=needs("db", until=Until.STARTED)))
    rig.ask("start", "web")
    assert rig.launched() == ["db"]
    rig.spawned("db")
    assert rig.launched() == ["db", "web"]


def test_until_exited_waits_for_the_good_end() -> None:
    """With ``until = "exited"`` a daemon has to end well first."""
    rig = Rig(service("migrate", restart=NEVER), service("web", relations=needs("migrate", until=Until.EXITED)))
    rig.ask("start", "web")
    rig.spawned("migrate")
    assert rig.launched() == ["migrate"]
    rig.exited("migrate", 0)
    assert rig.launched() == ["migrate", "web"]


def test_until_exited_fails_with_a_bad_end() -> None:
    """A migration that fails keeps the web down, with result dependency."""
    rig = Rig(service("migrate", restart=NEVER), service("web", relations=needs("migrate", until=Until.EXITED)))
    request = rig.ask("start", "web")
    rig.spawned("migrate")
    rig.exited("migrate", 1)
    assert rig.launched() == ["migrate"]
    assert rig.shown("web") == "inactive/dependency/dependency"
    assert rig.outcome(request) == {"web": "dependency"}


def test_a_oneshot_is_ready_when_it_has_succeeded() -> None:
    """Its dependents start after its success, not after its start."""
    rig = Rig(oneshot("setup"), service("web", relations=needs("setup")))
    rig.ask("start", "web")
    rig.spawned("setup")
    assert rig.launched() == ["setup"]
    rig.exited("setup", 0)
    assert rig.launched() == ["setup", "web"]


def test_order_can_be_waived() -> None:
    """``ordered = false`` pulls in and waits for nothing."""
    rig = Rig(notify("db"), service("web", relations=needs("db", ordered=False)))
    rig.ask("start", "web")
    assert sorted(rig.launched()) == ["db", "web"]


def test_after_orders_and_pulls_in_nothing() -> None:
    """``after`` waits for a start that is under way, and starts nothing."""
    after = {"after": (Dependency("db"),)}
    rig = Rig(notify("db"), service("web", relations=after))
    rig.ask("start", "web")
    assert rig.launched() == ["web"]
    both = Rig(notify("db"), service("web", relations=after))
    both.ask("start", "web", "db")
    assert both.launched() == ["db"]
    both.spawned("db")
    both.says("db", READY="1")
    assert both.launched() == ["db", "web"]


def test_before_is_after_from_the_other_end() -> None:
    """``before`` in one file orders like ``after`` in the other."""
    rig = Rig(notify("db", relations={"before": ("web",)}), service("web"))
    rig.ask("start", "web", "db")
    assert rig.launched() == ["db"]


def test_a_wanted_unit_may_fail() -> None:
    """wants waits for the start, and does not care how it ends."""
    rig = Rig(notify("cache", restart=NEVER), service("web", relations={"wants": (Dependency("cache"),)}))
    request = rig.ask("start", "web")
    rig.spawned("cache")
    assert rig.launched() == ["cache"]
    rig.exited("cache", 1)
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}


def test_a_missing_wanted_unit_is_ignored_and_a_missing_required_one_refused() -> None:
    """wants of a unit that no file defines is nothing; requires refuses the request and names the unit."""
    rig = Rig(service("web", relations={"wants": (Dependency("ghost"),)}), service("app", relations=needs("ghost")))
    rig.ask("start", "web")
    assert rig.launched() == ["web"]
    request = rig.ask("start", "app")
    assert rig.refusal(request) == "NoSuchUnit"
    assert "ghost" in str(rig.replies[request].refusal)


def test_a_failed_dependency_ends_the_job_and_its_recovery_starts_the_unit() -> None:
    """web's job ends at once with dependency; web waits, and starts when db has recovered by itself."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    request = rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    assert rig.outcome(request) == {"web": "dependency"}
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.later(1)
    rig.spawned("db")
    assert rig.launched() == ["db", "db"]
    rig.says("db", READY="1")
    assert rig.launched() == ["db", "db", "web"]
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"


def test_a_recovery_by_hand_counts_too() -> None:
    """``for whatever reason``: db started by an operator brings web back."""
    rig = Rig(notify("db", restart=NEVER), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    rig.later(100)
    rig.ask("start", "db")
    rig.up("db")
    assert rig.launched()[-1] == "web"


def test_recovery_goes_down_the_chain() -> None:
    """edge requires web requires db: all three come back, in order."""
    rig = Rig(
        notify("db", restart=NEVER), service("web", relations=needs("db")), service("edge", relations=needs("web"))
    )
    rig.ask("start", "edge")
    rig.spawned("db")
    rig.crash("db")
    assert rig.shown("edge") == "inactive/dependency/dependency"
    rig.ask("start", "db")
    rig.up("db")
    rig.spawned("web")
    assert rig.launched() == ["db", "db", "web", "edge"]


def test_a_waiting_unit_that_is_stopped_does_not_come_back() -> None:
    """``unless it was stopped since``."""
    rig = Rig(notify("db", restart=NEVER), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    rig.ask("stop", "web")
    assert rig.shown("web") == "inactive/dead/success"
    rig.ask("start", "db")
    rig.up("db")
    assert "web" not in rig.launched()


def test_a_unit_may_fail_with_its_dependency() -> None:
    """on-dependency-failure = fail: failed, loud, and it stays so."""
    rig = Rig(
        notify("db", restart=NEVER),
        service("web", relations={**needs("db"), "on_dependency_failure": OnDependencyFailure.FAIL}),
    )
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    assert rig.shown("web") == "failed/failed/dependency"
    assert rig.record("unit.failed", "web").fields["result"] == "dependency"
    rig.ask("start", "db")
    rig.up("db")
    assert "web" not in rig.launched()


def test_a_unit_waits_for_all_it_lacks() -> None:
    """With two failed dependencies the unit starts when both are back, and is not tried in between."""
    rig = Rig(notify("a", restart=NEVER), notify("b", restart=NEVER), service("web", relations=needs("a", "b")))
    rig.ask("start", "web")
    for name in ("a", "b"):
        rig.spawned(name)
        rig.crash(name)
    rig.ask("start", "a")
    rig.up("a")
    assert rig.shown("web") == "inactive/dependency/dependency"
    assert "b" not in rig.launched()[2:]
    rig.ask("start", "b")
    rig.up("b")
    assert rig.launched()[-1] == "web"


def test_a_crash_of_a_required_unit_stops_nobody_and_its_restart_restarts_the_dependent() -> None:
    """While db is down web runs on; when db is restarted automatically, web is restarted, db first (as systemd)."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    assert rig.shown("web") == "active/running/success"
    rig.later(1)
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    assert rig.record("unit.stopping", "web").fields["reason"] == "db, which it needs, is restarted"
    rig.exited("web", signal=15)
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "db", "web"]


def test_an_automatic_restart_gives_way_to_a_stop_of_the_dependent() -> None:
    """web waits for its stop when db restarts: it is stopped and stays so, what was asked for is not undone."""
    rig = Rig(
        service("db"), service("web", relations=needs("db")), service("edge", relations={"after": (Dependency("web"),)})
    )
    rig.ask("start", "web", "edge")
    for name in ("db", "web", "edge"):
        rig.spawned(name)
    rig.crash("db")
    stop = rig.ask("stop", "web", "edge")
    rig.later(1)
    rig.exited("edge", signal=15)
    rig.exited("web", signal=15)
    assert rig.outcome(stop) == {"web": "done", "edge": "done"}
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "edge", "db"]


def test_a_dependent_that_cannot_be_restarted_does_not_keep_what_it_needs_down() -> None:
    """web needs cache too, which was stopped meanwhile: db restarts without it."""
    rig = Rig(
        service("db"),
        service("cache"),
        service("web", relations=needs("db", "cache", ordered=False)),
    )
    rig.ask("start", "web")
    for name in ("db", "cache", "web"):
        rig.spawned(name)
    rig.ask("stop", "cache", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.exited("cache", signal=15)
    rig.crash("db")
    rig.later(1)
    rig.spawned("db")
    assert rig.shown("db") == "active/running/success"
    assert rig.shown("web") == "active/running/success"


def test_an_explicit_stop_takes_the_dependents_along_in_reverse_order() -> None:
    """web is stopped before db; neither comes back when db is started again."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    stop = rig.ask("stop", "db")
    assert rig.shown("db") == "active/running/success"
    rig.exited("web", signal=15)
    assert rig.shown("db") == "deactivating/stop-sigterm/success"
    rig.exited("db", signal=15)
    assert rig.outcome(stop) == {"db": "done"}
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.launched().count("web") == 1


def test_an_explicit_restart_restarts_the_dependents() -> None:
    """restart db: web stops, db stops, db starts, web starts."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.spawned("web")
    request = rig.ask("restart", "db")
    rig.exited("web", signal=15)
    rig.exited("db", signal=15)
    assert rig.launched() == ["db", "web", "db"]
    assert rig.shown("web") == "queued/dependency/success"
    rig.spawned("db")
    rig.says("db", READY="1")
    assert rig.launched() == ["db", "web", "db", "web"]
    assert rig.outcome(request) == {"db": "done"}


def test_a_restart_leaves_dependents_that_are_down_alone() -> None:
    """try-restart is what a dependent gets: nothing, when it does not run."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "db")
    rig.spawned("db")
    rig.ask("restart", "db")
    rig.exited("db", signal=15)
    assert rig.launched() == ["db", "db"]


@pytest.mark.parametrize("code", [0, 1], ids=["ends well", "crashes"])
def test_a_bound_unit_stops_with_its_other_and_comes_back_with_it(code: int) -> None:
    """Any inactive state of db stops web; when db is back, so is web: nobody stopped it."""
    rig = Rig(service("db", restart=NEVER), service("web", relations=bound("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.exited("db", code)
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.exited("web", signal=15)
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "db", "web"]


def test_a_bound_unit_stops_even_if_its_other_is_restarted() -> None:
    """Between two lives db is not active: web stops and comes back after it."""
    rig = Rig(service("db"), service("web", relations=bound("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    rig.exited("web", signal=15)
    rig.later(1)
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "db", "web"]


def test_a_bound_unit_that_an_operator_stopped_stays_down() -> None:
    """The operator's stop outweighs the bond's."""
    rig = Rig(service("db"), service("web", relations=bound("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.later(1)
    rig.spawned("db")
    assert rig.launched() == ["db", "web", "db"]
    assert rig.shown("web") == "inactive/dead/success"


def test_a_conflict_stops_the_other_first() -> None:
    """Starting one stops the other, and begins when that is down."""
    rig = Rig(service("blue"), service("green", relations={"conflicts": ("blue",)}))
    rig.ask("start", "blue")
    rig.spawned("blue")
    rig.ask("start", "green")
    assert rig.launched() == ["blue"]
    rig.exited("blue", signal=15)
    assert rig.launched() == ["blue", "green"]
    rig.spawned("green")
    rig.ask("start", "blue")
    assert rig.shown("green") == "deactivating/stop-sigterm/success"


def test_two_that_conflict_cannot_be_asked_for_at_once() -> None:
    """A request for both is refused whole, in words, and nothing is started."""
    rig = Rig(service("blue"), service("green", relations={"conflicts": ("blue",)}))
    request = rig.ask("start", "blue", "green")
    assert rig.refusal(request) == "TransactionConflict"
    assert rig.launched() == []


def test_a_target_starts_and_stops_what_it_requires_in_order() -> None:
    """A target is up when everything it requires is."""
    rig = Rig(service("a"), notify("b"), target("all", **needs("a", "b")))
    request = rig.ask("start", "all")
    rig.spawned("a")
    rig.spawned("b")
    assert request not in rig.replies
    rig.says("b", READY="1")
    assert rig.outcome(request) == {"all": "done"}
    stop = rig.ask("stop", "all")
    assert rig.outcome(stop) == {"all": "done"}
    assert rig.status("a").active_state == "active"


def test_an_automatic_restart_does_not_start_what_somebody_stopped() -> None:
    """web crashes and wants cache, which was stopped: web comes back, cache does not."""
    rig = Rig(service("cache"), service("web", relations={"wants": (Dependency("cache"),)}))
    rig.ask("start", "web")
    rig.spawned("cache")
    rig.spawned("web")
    rig.ask("stop", "cache")
    rig.exited("cache", signal=15)
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["cache", "web", "web"]


def test_an_automatic_restart_does_not_repeat_a_oneshot_that_is_done() -> None:
    """A crash of web does not run the migration again; a start by hand does."""
    rig = Rig(oneshot("migrate"), service("web", relations=needs("migrate")))
    rig.ask("start", "web")
    rig.exited("migrate", 0)
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["migrate", "web", "web"]
    rig.spawned("web")
    rig.ask("restart", "web")
    rig.exited("web", signal=15)
    assert rig.launched() == ["migrate", "web", "web", "migrate"]


def test_a_restart_whose_dependency_fails_leaves_auto_restart_queued() -> None:
    """The hole of the toy core: the unit ends up waiting for its dependency, not for a job that is gone."""
    rig = Rig(notify("db", restart=NEVER), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.spawned("web")
    rig.crash("db")
    rig.crash("web")
    rig.later(1)
    assert rig.shown("web") == "activating/auto-restart-queued/exit-code"
    rig.crash("db")
    assert rig.shown("web") == "inactive/dependency/dependency"
    assert view.jobs(rig.manager) == []
    rig.ask("start", "db")
    rig.up("db")
    assert rig.launched()[-1] == "web"


def test_a_cancelled_restart_leaves_auto_restart_queued() -> None:
    """``cancel`` of the job of a restart calls the restart off."""
    rig = Rig(notify("db", restart=NEVER), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.spawned("web")
    rig.crash("db")
    rig.crash("web")
    rig.later(1)
    job = next(job.job for job in view.jobs(rig.manager) if job.unit == "web")
    rig.ask("cancel", arguments={"job": job})
    assert rig.status("web").active_state == "inactive"
    rig.up("db")
    assert rig.launched().count("web") == 1


def test_everything_enabled_starts_in_order_with_the_supervisor() -> None:
    """The first load starts what is enabled, and what that requires; one that cannot start does not keep the others."""
    rig = Rig(
        notify("db", relations={"enabled": False}),
        service("web", relations=needs("db")),
        service("lost", relations=needs("ghost")),
        service("off", relations={"enabled": False}),
        start=True,
    )
    assert rig.launched() == ["db"]
    assert rig.shown("lost") == "inactive/dependency/dependency"
    assert rig.status("off").active_state == "inactive"
    rig.up("db")
    assert rig.launched() == ["db", "web"]


def test_a_thousand_dependents_of_one_unit_and_one_of_a_thousand() -> None:
    """Wide graphs come to rest within the bounds of the worklists, forwards and backwards."""
    leaves = [service(f"leaf{number:04}", relations=needs("root")) for number in range(1000)]
    units = [notify("root"), *leaves, target("all", **needs(*(leaf.name for leaf in leaves)))]
    from core_rig import unit_set

    from supervisord_py.core.events import (
        CommandRequested,
        ExitStatus,
        NotifyReceived,
        Now,
        ProcessExited,
        ProcessSpawned,
        UnitsLoaded,
    )
    from supervisord_py.core.manager import Manager

    manager = Manager(1)
    now = Now(SECOND_NS, SECOND_NS, SECOND_NS, 1)
    manager.handle(UnitsLoaded(unit_set(*units)), now)
    manager.handle(CommandRequested(1, "start", ("all",)), now)
    manager.handle(ProcessSpawned(1, 1), now)
    effects = manager.handle(NotifyReceived("root", 1, 1, {"READY": "1"}), now)
    assert len(effects.actions) == 1000
    for spawn_id in range(2, 1002):
        effects = manager.handle(ProcessSpawned(spawn_id, spawn_id), now)
    assert [reply.outcomes[0].result for reply in effects.replies] == ["done"]
    manager.handle(CommandRequested(2, "stop", ("root",)), now)
    for spawn_id in (*range(2, 1002), 1):
        effects = manager.handle(ProcessExited(spawn_id, spawn_id, ExitStatus(signal=15)), now)
    assert [reply.outcomes[0].result for reply in effects.replies] == ["done"]


def test_a_chain_of_a_thousand_needs_no_recursion() -> None:
    """A dependency chain longer than Python's stack starts and stops in order."""
    from core_rig import unit_set

    from supervisord_py.core.events import CommandRequested, ExitStatus, Now, ProcessExited, ProcessSpawned, UnitsLoaded
    from supervisord_py.core.manager import Manager

    names = [f"link{number:04}" for number in range(1500)]
    units = [service(names[0])] + [service(name, relations=needs(before)) for before, name in pairwise(names)]
    manager = Manager(1)
    now = Now(SECOND_NS, SECOND_NS, SECOND_NS, 1)
    manager.handle(UnitsLoaded(unit_set(*units)), now)
    manager.handle(CommandRequested(1, "start", (names[-1],)), now)
    for spawn_id in range(1, 1501):
        effects = manager.handle(ProcessSpawned(spawn_id, spawn_id), now)
    assert [reply.outcomes[0].result for reply in effects.replies] == ["done"]
    manager.handle(CommandRequested(2, "stop", (names[0],)), now)
    for spawn_id in range(1500, 0, -1):
        effects = manager.handle(ProcessExited(spawn_id, spawn_id, ExitStatus(signal=15)), now)
    assert [reply.outcomes[0].result for reply in effects.replies] == ["done"]


def test_delay_of_no_policy_is_used_for_a_recovery() -> None:
    """A recovered unit starts at once: it did not fail, its dependency did."""
    rig = Rig(notify("db"), service("web", relations=needs("db"), restart=NO_JITTER))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    rig.later(1)
    rig.spawned("db")
    rig.says("db", READY="1")
    assert rig.launched()[-1] == "web"
    assert (rig.status("web").failures, rig.status("web").restarts) == (0, 0)

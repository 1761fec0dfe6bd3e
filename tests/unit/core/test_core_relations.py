"""The other relations than requires, wants and binds-to: what each pulls in, and what it carries from unit to unit."""

import pytest
from core_rig import NO_JITTER, Rig, needs, notify, on, oneshot, running, service, target

from supervisord_py.core import view
from supervisord_py.model.states import OnDependencyFailure, Restart, Role, Until
from supervisord_py.model.unit import RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
NO_LIMIT = RestartPolicy(restart=Restart.NO, jitter=0.0, failures=0)


def monitored(rig: Rig, name: str) -> dict[str, str]:
    """The MONITOR variables of the latest process of a unit."""
    return {key: value for key, value in rig.spawn_of(name).environment if key.startswith("MONITOR_")}


# requisite


def test_a_requisite_that_is_down_fails_the_start_at_once_and_is_not_started() -> None:
    """web has to find db active: its job ends with dependency, and db is left alone."""
    rig = Rig(service("db"), service("web", relations=on("requisite", "db")))
    request = rig.ask("start", "web")
    assert rig.outcome(request) == {"web": "dependency"}
    assert rig.replies[request].outcomes[0].message == "web has to find db active, and it is dead"
    assert rig.launched() == []
    assert rig.shown("web") == "inactive/dependency/dependency"


def test_a_requisite_that_is_up_or_on_its_way_is_enough() -> None:
    """With db up web starts; with db starting web waits for it; asked for together, db goes first."""
    rig = running(service("db"), service("web", relations=on("requisite", "db")), start=("db", "web"))
    assert rig.shown("web") == "active/running/success"
    slow = Rig(notify("db"), service("web", relations=on("requisite", "db")))
    slow.ask("start", "web", "db")
    assert slow.launched() == ["db"]
    slow.up("db")
    assert slow.launched() == ["db", "web"]


def test_a_unit_with_a_requisite_comes_up_when_that_does() -> None:
    """As with every dependency that failed, the unit waits, and starts when somebody has started the other."""
    rig = Rig(service("db"), service("web", relations=on("requisite", "db")))
    rig.ask("start", "web")
    rig.ask("start", "db")
    rig.up("db")
    assert rig.launched() == ["db", "web"]


def test_a_oneshot_that_is_done_is_no_requisite() -> None:
    """Active is asked for, and success in the past is not that (until exited asks for just that)."""
    done = Rig(oneshot("setup"), service("web", relations=on("requisite", "setup")))
    done.ask("start", "setup")
    done.exited("setup", 0)
    assert done.outcome(done.ask("start", "web")) == {"web": "dependency"}
    exited = Rig(oneshot("setup"), service("web", relations=on("requisite", "setup", until=Until.EXITED)))
    exited.ask("start", "setup")
    exited.exited("setup", 0)
    exited.ask("start", "web")
    assert exited.launched() == ["setup", "web"]


def test_an_unordered_requisite_is_looked_at_when_the_unit_starts() -> None:
    """Without order nothing waits for it, but it has to be up or on its way."""
    units = (notify("db"), service("web", relations=on("requisite", "db", ordered=False)))
    down = Rig(*units)
    assert down.outcome(down.ask("start", "web")) == {"web": "dependency"}
    together = Rig(*units)
    together.ask("start", "db", "web")
    assert sorted(together.launched()) == ["db", "web"]


def test_a_missing_requisite_refuses_the_request() -> None:
    """What no file defines is never active."""
    rig = Rig(service("web", relations=on("requisite", "ghost")))
    assert rig.refusal(rig.ask("start", "web")) == "NoSuchUnit"


def test_a_stop_and_a_restart_of_a_requisite_reach_the_unit() -> None:
    """As with requires: web is stopped first, restarted after."""
    rig = running(service("db"), service("web", relations=on("requisite", "db")), start=("db", "web"))
    rig.ask("restart", "db")
    rig.exited("web", signal=15)
    rig.exited("db", signal=15)
    rig.spawned("db")
    rig.spawned("web")
    assert rig.launched() == ["db", "web", "db", "web"]
    rig.ask("stop", "db")
    assert rig.shown("web") == "deactivating/stop-sigterm/success"


# part-of


def test_a_part_follows_the_stop_and_the_restart_of_the_whole_and_nothing_else() -> None:
    """Neither the start nor a crash nor a clean end of the whole reaches the part."""
    rig = running(
        service("app", restart=NEVER), service("worker", relations={"part_of": ("app",)}), start=("worker", "app")
    )
    assert rig.launched() == ["worker", "app"]
    rig.crash("app")
    assert rig.shown("worker") == "active/running/success"
    rig.ask("start", "app")
    rig.up("app")
    rig.ask("restart", "app")
    assert rig.shown("worker") == "deactivating/stop-sigterm/success"
    assert rig.record("unit.stopping", "worker").fields["reason"] == "app, which it is part of, is restarted"
    rig.exited("app", signal=15)
    rig.exited("worker", signal=15)
    rig.up("app")
    rig.up("worker")
    stop = rig.ask("stop", "app")
    rig.exited("app", signal=15)
    rig.exited("worker", signal=15)
    assert rig.outcome(stop) == {"app": "done"}
    assert rig.shown("worker") == "inactive/dead/success"


def test_part_of_goes_one_way() -> None:
    """A stop of the part leaves the whole alone, and a part that is down is not started by a restart of the whole."""
    rig = running(service("app"), service("worker", relations={"part_of": ("app",)}), start=("app", "worker"))
    rig.ask("stop", "worker")
    rig.exited("worker", signal=15)
    assert rig.shown("app") == "active/running/success"
    rig.ask("restart", "app")
    rig.exited("app", signal=15)
    assert rig.launched() == ["app", "worker", "app"]


def test_an_automatic_restart_of_the_whole_restarts_the_part() -> None:
    """As systemd: the restart is a start that takes the parts along."""
    rig = running(service("app"), service("worker", relations={"part_of": ("app",)}), start=("app", "worker"))
    rig.crash("app")
    rig.later(1)
    assert rig.shown("worker") == "deactivating/stop-sigterm/success"


def test_a_part_that_could_not_come_up_again_goes_on_when_the_whole_is_restarted_automatically() -> None:
    """It needs cache, which is in quarantine: app restarts without its part; by hand the part goes along, and cache is
    left alone.
    """
    rig = running(
        service("app"),
        service("cache", restart=RestartPolicy(failures=1, jitter=0.0)),
        service("worker", relations={**needs("cache"), "part_of": ("app",)}),
        start=("app", "cache", "worker"),
    )
    rig.crash("cache")
    assert rig.shown("cache") == "quarantined/failed/exit-code"
    rig.crash("app")
    rig.later(1)
    rig.up("app")
    assert rig.shown("app") == rig.shown("worker") == "active/running/success"
    rig.ask("restart", "app")
    assert rig.shown("worker") == "deactivating/stop-sigterm/success"
    rig.exited("worker", signal=15)
    assert rig.launched()[-1] == "app"
    assert rig.shown("cache") == "quarantined/failed/exit-code"


# propagates-stop-to


@pytest.mark.parametrize("code", [0, 1])
def test_a_unit_takes_others_down_when_it_ends(code: int) -> None:
    """A stop and any end reach what propagates-stop-to names, restarted or not; a restart by hand does not."""
    rig = running(
        service("app", relations={"propagates_stop_to": ("worker",)}), service("worker"), start=("app", "worker")
    )
    rig.ask("restart", "app")
    rig.exited("app", signal=15)
    rig.up("app")
    assert rig.shown("worker") == "active/running/success"
    rig.exited("app", code)
    assert rig.shown("worker") == "deactivating/stop-sigterm/success"
    rig.exited("worker", signal=15)
    assert rig.shown("worker") == "inactive/dead/success"
    assert "app, which takes it down with it, has ended" in str(rig.status("worker").why)


# on-failure, on-success


def test_a_failure_for_good_starts_the_handler_with_the_end_in_its_environment() -> None:
    """No automatic restart follows: alert starts, and knows whose end it was, and how that was."""
    rig = running(
        service("web", relations={"on_failure": ("alert",)}, restart=NEVER),
        oneshot("alert", exec_start_pre=()),
        start=("web",),
    )
    life = rig.status("web").invocation
    rig.exited("web", 3)
    assert rig.launched() == ["web", "alert"]
    assert monitored(rig, "alert") == {
        "MONITOR_SERVICE_RESULT": "exit-code",
        "MONITOR_EXIT_CODE": "exited",
        "MONITOR_EXIT_STATUS": "3",
        "MONITOR_INVOCATION_ID": life,
        "MONITOR_UNIT": "web",
    }
    assert rig.record("job.queued", "alert").cause == seq_of(rig, "unit.failed", "web")
    lines = [line.message for line in view.why(rig.manager, "alert")]
    assert lines[0] == "it is starting"
    rig.exited("alert", 0)


def seq_of(rig: Rig, event: str, name: str) -> int:
    """The number of the latest record of an event: the rig numbers from 1, without holes."""
    found = [number for number, each in enumerate(rig.records, 1) if each.event == event and each.unit == name]
    return found[-1]


def test_a_death_by_a_signal_is_told_as_systemd_tells_it() -> None:
    """killed and KILL, dumped and SEGV."""
    rig = running(service("web", relations={"on_failure": ("alert",)}, restart=NEVER), service("alert"), start=("web",))
    rig.exited("web", signal=11, core=True)
    told = monitored(rig, "alert")
    assert (told["MONITOR_SERVICE_RESULT"], told["MONITOR_EXIT_CODE"], told["MONITOR_EXIT_STATUS"]) == (
        "core-dump",
        "dumped",
        "SEGV",
    )


def test_a_failure_that_is_followed_by_a_restart_starts_no_handler() -> None:
    """Only when the restarts are used up: once, not five times."""
    rig = running(service("web", relations={"on_failure": ("alert",)}), oneshot("alert"), start=("web",))
    for _ in range(4):
        rig.crash("web")
        assert "alert" not in rig.launched()
        rig.later(60)
        rig.spawned("web")
    rig.crash("web")
    assert rig.shown("web") == "quarantined/failed/exit-code"
    assert rig.launched().count("alert") == 1


@pytest.mark.parametrize("policy", [OnDependencyFailure.WAIT, OnDependencyFailure.FAIL])
def test_a_start_that_failed_for_a_dependency_starts_the_handler_once(policy: OnDependencyFailure) -> None:
    """web never ran, and its on-failure is started all the same."""
    rig = Rig(
        notify("db", restart=NEVER),
        service("web", relations={**needs("db"), "on_failure": ("alert",), "on_dependency_failure": policy}),
        service("alert"),
    )
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    assert rig.launched().count("alert") == 1
    assert rig.events("alert").count("job.queued") == 1
    assert monitored(rig, "alert")["MONITOR_SERVICE_RESULT"] == "dependency"


def test_two_failures_that_start_one_handler_tell_it_about_neither() -> None:
    """While the handler waits for its turn a second unit fails: there is no single end to tell about."""
    hook = {"on_failure": ("alert",)}
    rig = running(
        service("a", relations=hook, restart=NEVER),
        service("b", relations=hook, restart=NEVER),
        notify("log"),
        service("alert", relations=needs("log")),
        start=("a", "b"),
    )
    rig.crash("a")
    rig.crash("b")
    rig.up("log")
    assert rig.launched()[-1] == "alert"
    assert monitored(rig, "alert") == {}


def test_the_handler_of_one_failure_knows_nothing_of_it_when_somebody_starts_it() -> None:
    """MONITOR variables belong to the life that the failure began (and its automatic restarts)."""
    rig = running(service("web", relations={"on_failure": ("alert",)}, restart=NEVER), service("alert"), start=("web",))
    rig.crash("web")
    rig.spawned("alert")
    rig.crash("alert")
    rig.later(1)
    assert monitored(rig, "alert")["MONITOR_UNIT"] == "web"
    rig.spawned("alert")
    rig.ask("restart", "alert")
    rig.exited("alert", signal=15)
    assert monitored(rig, "alert") == {}


def test_a_handler_that_was_stopped_by_hand_is_started_by_the_next_failure() -> None:
    """It is named for failures: a stop ends this run of it, not its purpose."""
    rig = running(service("web", relations={"on_failure": ("alert",)}, restart=NEVER), service("alert"), start=("web",))
    rig.crash("web")
    rig.spawned("alert")
    rig.ask("stop", "alert")
    rig.exited("alert", signal=15)
    rig.ask("start", "web")
    rig.up("web")
    rig.crash("web")
    assert rig.launched().count("alert") == 2


def test_success_starts_what_on_success_names() -> None:
    """A good end at rest does, by itself or by a stop; one that is followed by a restart, or a failure, does not."""
    rig = Rig(
        oneshot("backup", relations={"on_success": ("report",), "on_failure": ("alert",)}),
        service("report"),
        service("alert"),
    )
    rig.ask("start", "backup")
    rig.exited("backup", 0)
    assert rig.launched() == ["backup", "report"]
    assert monitored(rig, "report")["MONITOR_SERVICE_RESULT"] == "success"
    rig.ask("start", "backup")
    rig.exited("backup", 1)
    assert rig.launched() == ["backup", "report", "backup", "alert"]


def test_an_end_that_is_followed_by_a_restart_is_no_success_yet() -> None:
    """restart = always: the unit goes on, on-success waits for the stop."""
    always = RestartPolicy(restart=Restart.ALWAYS, jitter=0.0)
    rig = running(
        service("web", relations={"on_success": ("report",)}, restart=always), service("report"), start=("web",)
    )
    rig.exited("web", 0)
    rig.later(1)
    rig.spawned("web")
    assert "report" not in rig.launched()
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert "report" in rig.launched()


def test_a_handler_that_cannot_be_started_is_told_in_the_journal() -> None:
    """No file defines it: nothing breaks, and the record says what was to happen and why it did not."""
    rig = running(service("web", relations={"on_failure": ("ghost",)}, restart=NEVER), start=("web",))
    rig.crash("web")
    record = rig.record("job.finished", "ghost")
    assert record.fields["result"] == "dependency"
    assert "no file defines ghost" in record.fields["message"]


def test_a_unit_that_names_itself_is_not_started_by_its_own_failure() -> None:
    """Restarts are what restart is for."""
    rig = running(service("web", relations={"on_failure": ("web",)}, restart=NEVER), start=("web",))
    rig.crash("web")
    assert rig.launched() == ["web"]


def test_no_handler_starts_while_the_supervisor_ends() -> None:
    """A unit that fails in the shutdown starts nothing any more."""
    rig = running(service("web", relations={"on_failure": ("alert",)}, restart=NEVER), service("alert"), start=("web",))
    rig.shut_down()
    rig.exited("web", 1)
    assert rig.launched() == ["web"]


def test_healthy_is_ready_as_long_as_nobody_looks_at_health() -> None:
    """until = healthy is prepared: it is met when the unit is ready, in its order after ready."""
    rig = Rig(notify("db"), service("web", relations=needs("db", until=Until.HEALTHY)))
    rig.ask("start", "web")
    rig.spawned("db")
    assert rig.launched() == ["db"]
    rig.says("db", READY="1")
    assert rig.launched() == ["db", "web"]


def test_relations_are_shown_from_both_ends() -> None:
    """deps and deps --reverse name every relation that is built."""
    rig = Rig(
        service("db"),
        service("web", relations={**on("requisite", "db"), **on("upholds", "log"), "part_of": ("app",)}),
        service("log"),
        target("app", propagates_stop_to=("log",)),
    )
    assert [(unit, kind) for unit, kind, *_ in view.deps(rig.manager, "web")][:3] == [
        ("db", "requisite"),
        ("log", "upholds"),
        ("app", "part-of"),
    ]
    assert view.deps(rig.manager, "db", reverse=True)[0][:2] == ("web", "requisite-of")
    assert view.deps(rig.manager, "log", reverse=True)[0][:2] == ("web", "upheld-by")
    assert view.deps(rig.manager, "app", reverse=True)[0][:2] == ("web", "consists-of")


def test_a_restart_policy_keeps_the_handlers_jitter_out() -> None:
    """The role of the process decides what it is told: stop-post of a handler is told its own end."""
    rig = running(
        service("web", relations={"on_failure": ("alert",)}, restart=NEVER),
        service("alert", restart=NO_JITTER, exec_stop_post=service("x").service.exec_start),  # type: ignore[union-attr]
        start=("web",),
    )
    rig.crash("web")
    rig.spawned("alert")
    rig.exited("alert", 0)
    assert rig.spawn_of("alert").role is Role.STOP_POST
    assert monitored(rig, "alert") == {}

"""Quarantine: what ends in it, what runs meanwhile, and what leads out."""

from collections.abc import Mapping
from typing import Any

import pytest
from core_rig import Rig, commands, needs, notify, service, target

from supervisord_py.core import view
from supervisord_py.core.actions import ExitSupervisor, SpawnProcess
from supervisord_py.core.events import Origin
from supervisord_py.core.manager import Manager
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import ExitSupervisorOn, Restart, Role, ServiceType
from supervisord_py.model.unit import SECOND_NS, Command, Dependency, Quarantine, RestartPolicy, Unit

STUB = Command(("/bin/stub",))
ALICE = Origin(uid=1000, user="alice")


def policy(failures: int = 1, **keys: Any) -> RestartPolicy:
    return RestartPolicy(restart=Restart.ALWAYS, delay_ns=SECOND_NS, jitter=0.0, failures=failures, **keys)


def fragile(name: str = "web", relations: Mapping[str, Any] | None = None, **keys: Any) -> Unit:
    """A unit that its first failure quarantines; ``quarantine`` holds keys of that table."""
    table = Quarantine(**keys.pop("quarantine", {}))
    return service(name, relations={"quarantine": table, **(relations or {})}, restart=policy(**keys))


def quarantined(*others: Unit, **quarantine: Any) -> Rig:
    """A rig in which web has just been quarantined."""
    rig = Rig(fragile(quarantine=quarantine), *others)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web", 3)
    return rig


def events(rig: Rig, unit: str = "web") -> list[str]:
    return [record.event for record in rig.records if record.unit == unit]


def stub_of(rig: Rig, unit: str = "web") -> SpawnProcess:
    found = [spawn for spawn in rig.spawns if spawn.role is Role.STUB and spawn.unit == unit]
    return found[-1]


@pytest.mark.parametrize(("pause", "name"), [(7, "every seven seconds"), (300, "every five minutes")])
def test_a_loop_is_quarantined_at_its_fifth_failure(pause: int, name: str) -> None:
    """However slowly it fails: a failure stays counted until the unit was healthy for ten minutes."""
    rig = Rig(service("web", restart=policy(5)), start=True)
    for count in range(1, 6):
        assert rig.status("web").failures == count - 1
        rig.spawned("web")
        rig.later(pause)
        rig.crash("web")
        if count < 5:
            rig.later(60)
    assert rig.shown("web") == "quarantined/failed/exit-code", name
    assert events(rig).count("unit.quarantined") == 1
    assert view.why(rig.manager, "web")[0].kind == "quarantine"
    assert [line.advice for line in view.why(rig.manager, "web")] == ["supctl lives web", "supctl release web"]
    before = len(rig.spawns)
    rig.later(100_000)
    assert len(rig.spawns) == before, "nothing starts it again"


def test_b_af_1_a_threshold_of_consecutive_errors_is_a_failure() -> None:
    """The older system counted three errors in a lifetime; here X_OK between them begins anew (B-AF-1)."""
    rig = Rig(notify("web", restart=policy(5), error_threshold=3))
    rig.ask("start", "web")
    rig.up("web")
    for word in ("X_ERROR", "X_ERROR", "X_OK", "X_ERROR", "X_ERROR"):
        rig.says("web", **{word: "1" if word == "X_OK" else "no answer"})
    assert rig.shown("web") == "active/running/success"
    rig.says("web", X_ERROR="no answer")
    assert rig.shown("web") == "deactivating/stop-sigterm/errors"
    rig.exited("web", 0)
    assert rig.shown("web") == "activating/auto-restart/errors"
    assert rig.status("web").failures == 1
    assert "it reported 3 errors in a row, the last: no answer" in (view.why(rig.manager, "web")[0].message)
    rig.later(2)
    rig.up("web")
    assert rig.manager.ledger.state("web").errors == 0, "a new life begins without the errors of the old (B-AF-2)"


@pytest.mark.parametrize("verb", ["release", "start", "restart"])
def test_somebody_releases_it(verb: str) -> None:
    """A start by name ends the quarantine, every counter begins anew, and who did it is written."""
    rig = quarantined()
    rig.ask(verb, "web", origin=ALICE, reason="mended")
    released = next(record for record in rig.records if record.event == "unit.released")
    assert released.fields == {"failures": 1, "by": "alice (uid 1000)", "reason": "mended"}
    assert rig.shown("web").startswith("activating/start")
    assert rig.status("web").failures == 0


def test_reset_failed_releases_it_and_starts_nothing() -> None:
    rig = quarantined()
    rig.ask("reset-failed", "web", origin=ALICE)
    assert rig.shown("web") == "inactive/dead/success"
    assert events(rig).count("unit.released") == 1
    assert len(rig.spawns) == 1


def test_what_needs_it_does_not_release_it() -> None:
    """A start of another unit pulls it in: that is no word about whether it is mended."""
    rig = quarantined(service("app", relations=needs("web")))
    request = rig.ask("start", "app")
    assert rig.shown("web") == "quarantined/failed/exit-code"
    assert rig.outcome(request)["app"] == "dependency"
    assert rig.shown("app") == "inactive/dependency/dependency"
    rig.ask("release", "web")
    rig.spawned("web")
    assert rig.spawns[-1].unit == "app", "it waited for that"


def test_a_stub_takes_its_place() -> None:
    """It runs with the unit's environment and is told that it is one; status says quarantined all the while."""
    rig = quarantined(stub=STUB)
    stub = stub_of(rig)
    assert stub.command is STUB
    assert dict(stub.environment)["SUPERVISORD_PY_STUB"] == "1"
    assert dict(stub.environment)["SUPERVISORD_PY_UNIT"] == "web"
    assert rig.shown("web") == "quarantined/stub/exit-code"
    assert rig.status("web").pid is None
    rig.spawned("web")
    assert events(rig)[-1] == "unit.stub-started"
    assert rig.status("web").pid == rig.records[-1].fields["pid"]
    exit_of_the_unit = rig.status("web").exit
    assert exit_of_the_unit is not None
    assert exit_of_the_unit.code == 3, "how the unit itself ended stays known"


def test_dependents_are_content_with_a_stub_once_it_runs() -> None:
    app = service("app", relations=needs("web"))
    rig = quarantined(app, stub=STUB)
    request = rig.ask("start", "app")
    assert [spawn.unit for spawn in rig.spawns] == ["web", "web"]
    rig.spawned("web")
    assert rig.spawns[-1].unit == "app"
    rig.spawned("app")
    assert rig.outcome(request)["app"] == "done"
    degraded = [line for line in view.why(rig.manager, "app") if line.kind == "quarantine"]
    assert [line.unit for line in degraded if line.unit] == ["web"]
    assert "degraded: web" in (rig.status("app").why or "")


def test_a_bound_unit_goes_with_its_stub() -> None:
    bound = service("app", relations={"binds_to": (Dependency("web"),)})
    rig = quarantined(bound, stub=STUB)
    rig.spawned("web")
    rig.ask("start", "app")
    rig.spawned("app")
    rig.exited("web", 1, role=Role.STUB)
    assert rig.shown("app").startswith("deactivating/")


def test_when_the_stub_fails_too_the_unit_stays_quarantined_without_it() -> None:
    rig = quarantined(stub=STUB)
    rig.spawned("web")
    rig.exited("web", 1, role=Role.STUB)
    assert rig.shown("web") == "quarantined/failed/exit-code"
    assert rig.status("web").failures == 1, "a stub's failure is not the unit's"
    assert events(rig).count("unit.quarantined") == events(rig).count("unit.failed") == 1
    rig.later(100_000)
    assert len(rig.spawns) == 2


def test_a_stub_was_the_second_command_of_a_unit_that_failed_in_its_second() -> None:
    """What is counted of a life begins anew with the stub's (core world seed 112)."""
    unit = service(
        "web",
        type=ServiceType.ONESHOT,
        exec_start=commands("/bin/one", "/bin/two"),
        restart=RestartPolicy(restart=Restart.NO, failures=1),
        relations={"quarantine": Quarantine(stub=STUB)},
    )
    rig = Rig(unit)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    rig.spawned("web")
    rig.exited("web", 1)
    assert rig.shown("web") == "quarantined/stub/exit-code"


def test_a_stub_whose_program_is_missing() -> None:
    rig = quarantined(stub=STUB)
    rig.failed_to_spawn("web")
    assert rig.shown("web") == "quarantined/failed/exit-code"


def test_the_stub_ends_before_the_unit_begins() -> None:
    """Released while its stub runs: no moment has both."""
    rig = quarantined(stub=STUB)
    rig.spawned("web")
    request = rig.ask("release", "web")
    assert rig.shown("web").startswith("quarantined/stop-sigterm")
    assert rig.record("unit.queued").fields["message"] == "its stub ends first", "it waits for no other unit"
    assert "waiting_for" not in rig.record("unit.queued").fields
    assert len(rig.spawns) == 2
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.spawns[-1].role is Role.MAIN
    rig.spawned("web")
    assert rig.outcome(request)["web"] == "done"


def test_a_restart_ends_the_stub_and_releases() -> None:
    rig = quarantined(stub=STUB)
    rig.spawned("web")
    rig.ask("restart", "web")
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.spawns[-1].role is Role.MAIN
    assert "unit.released" in events(rig)


def test_a_stop_ends_the_stub_and_the_quarantine_stays() -> None:
    rig = quarantined(stub=STUB, retry_after_ns=10 * SECOND_NS)
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.shown("web") == "quarantined/failed/exit-code"
    rig.later(100)
    assert len(rig.spawns) == 2, "what somebody stopped is not tried again"


def test_reset_failed_ends_the_stub() -> None:
    rig = quarantined(stub=STUB)
    rig.spawned("web")
    rig.ask("reset-failed", "web")
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.shown("web") == "inactive/dead/success"


def test_a_stub_runs_no_stop_commands_of_the_unit() -> None:
    unit = service(
        "web",
        relations={"quarantine": Quarantine(stub=STUB)},
        restart=policy(),
        exec_stop=commands("/bin/bye"),
        exec_stop_post=commands("/bin/after"),
    )
    rig = Rig(unit, start=True)
    rig.spawned("web")
    rig.crash("web")
    rig.spawned("web")
    rig.exited("web", 0, role=Role.STOP_POST)
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15, role=Role.STUB)
    assert [spawn.role for spawn in rig.spawns] == [Role.MAIN, Role.STOP_POST, Role.STUB]


def test_retry_after_is_half_open() -> None:
    """One more life; its failure quarantines at once again, its health writes that it is released."""
    rig = quarantined(retry_after_ns=10 * SECOND_NS)
    rig.later(9)
    assert len(rig.spawns) == 1
    rig.later(2)
    assert rig.shown("web").startswith("activating/start")
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"
    rig.crash("web")
    assert rig.shown("web") == "quarantined/failed/exit-code"
    assert rig.status("web").failures == 2
    rig.later(11)
    rig.spawned("web")
    assert "unit.released" not in events(rig)
    rig.later(700)
    assert events(rig)[-1] == "unit.released"
    assert rig.status("web").failures == 0
    rig.crash("web")
    assert events(rig).count("unit.quarantined") == 3


def test_a_retry_ends_the_stub_first_and_has_it_back_when_it_fails() -> None:
    rig = quarantined(stub=STUB, retry_after_ns=10 * SECOND_NS)
    rig.spawned("web")
    rig.later(11)
    assert rig.spawns[-1].role is Role.STUB
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.spawns[-1].role is Role.MAIN
    rig.spawned("web")
    rig.crash("web")
    assert rig.spawns[-1].role is Role.STUB
    assert rig.shown("web") == "quarantined/stub/exit-code"


def test_a_retry_that_cannot_be_made_is_made_later() -> None:
    """What it needs was stopped by hand: it waits for that, and is tried when it is back."""
    db = service("db")
    web = fragile(relations=needs("db"), quarantine={"retry_after_ns": 10 * SECOND_NS})
    rig = Rig(db, web, start=True)
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("web")
    rig.ask("stop", "db")
    rig.exited("db", signal=15)
    rig.later(25)
    assert rig.status("web").active_state == "quarantined"
    rig.ask("start", "db")
    rig.spawned("db")
    rig.later(25)
    assert rig.spawns[-1].unit == "web"


def test_on_quarantine_starts_what_it_names() -> None:
    rig = quarantined(service("page"), on_quarantine=("page",))
    page = rig.spawns[-1]
    assert page.unit == "page"
    assert dict(page.environment)["MONITOR_UNIT"] == "web"
    assert dict(page.environment)["MONITOR_EXIT_STATUS"] == "3"


def test_a_quarantine_survives_the_supervisor() -> None:
    """The next supervisor does not start it, says why, and has its stub and its retry."""
    rig = quarantined(stub=STUB, retry_after_ns=10 * SECOND_NS)
    rig.spawned("web")
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.load(fragile(quarantine={"stub": STUB, "retry_after_ns": 10 * SECOND_NS}), start=True)
    assert [spawn.role for spawn in again.spawns] == [Role.STUB]
    assert again.shown("web") == "quarantined/stub/exit-code"
    again.spawned("web")
    again.later(11)
    again.exited("web", signal=15, role=Role.STUB)
    assert again.spawns[-1].role is Role.MAIN


@pytest.mark.parametrize("stopped", [False, True])
def test_a_retry_that_was_due_comes_after_a_cold_start_though_nothing_starts_the_unit(stopped: bool) -> None:
    """A disabled unit that somebody had started: only its retry leads out; not if somebody has stopped it since."""
    text = fragile(quarantine={"retry_after_ns": 10 * SECOND_NS}, relations={"enabled": False})
    rig = Rig(text)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web", 3)
    if stopped:
        rig.ask("stop", "web")
    cold = Manager(9)
    cold.restore_counters(rig.state)
    again = Rig(manager=cold)
    again.load(text, start=True)
    assert again.spawns == []
    assert again.shown("web") == "quarantined/failed/exit-code"
    again.later(11)
    assert [spawn.role for spawn in again.spawns] == ([] if stopped else [Role.MAIN])


def test_a_unit_whose_stub_runs_becomes_a_target() -> None:
    """The stub ends as what it was, and the target is no quarantined unit (seed 193)."""
    rig = quarantined(stub=STUB)
    rig.spawned("web")
    rig.load(target("web"))
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.shown("web") == "inactive/dead/success"
    assert events(rig).count("unit.released") == 1
    rig.ask("start", "web")
    assert rig.shown("web") == "active/running/success"


def test_a_quarantined_unit_that_becomes_a_target_is_released() -> None:
    """What has failed is not there any more."""
    rig = quarantined(retry_after_ns=10 * SECOND_NS)
    rig.load(target("web"))
    assert rig.shown("web") == "inactive/dead/success"
    assert events(rig).count("unit.released") == 1
    rig.later(20)
    assert len(rig.spawns) == 1


def test_a_shutdown_ends_the_stub_and_tries_nothing_again() -> None:
    rig = quarantined(stub=STUB, retry_after_ns=10 * SECOND_NS)
    rig.spawned("web")
    rig.shut_down(90)
    rig.exited("web", signal=15, role=Role.STUB)
    assert [spawn.role for spawn in rig.spawns] == [Role.MAIN, Role.STUB]


def test_a_release_of_a_unit_on_trial_ends_the_trial() -> None:
    """It runs, so no start follows: who trusts it is told, and its next failure is the first. It counted on."""
    rig = quarantined(retry_after_ns=60 * SECOND_NS)
    rig.later(60)
    rig.spawned("web")
    assert (rig.shown("web"), rig.status("web").failures) == ("active/running/success", 1)
    rig.ask("release", "web", origin=ALICE, plan=True)
    assert rig.status("web").failures == 1
    rig.ask("release", "web", origin=ALICE, reason="it was the disk")
    assert rig.status("web").failures == 0
    fields = rig.record("unit.released").fields
    assert (fields["by"], fields["reason"]) == ("alice (uid 1000)", "it was the disk")
    assert rig.status("web").pid is not None


def test_a_stub_holds_the_slot_of_its_unit() -> None:
    rig = Rig()
    rig.load(fragile(quarantine={"stub": STUB}), service("z"), start=True, limits=PoolLimits(1))
    rig.spawned("web")
    rig.crash("web")
    rig.spawned("web")
    assert rig.shown("z") == "queued/pool/success"
    rig.exited("web", 1, role=Role.STUB)
    assert rig.spawns[-1].unit == "z"


def test_a_clean_oneshot_after_a_retry_is_released_at_once() -> None:
    """Its success is what health is for a daemon."""
    job = service(
        "job",
        relations={"quarantine": Quarantine(retry_after_ns=10 * SECOND_NS)},
        type=ServiceType.ONESHOT,
        restart=RestartPolicy(restart=Restart.ON_FAILURE, delay_ns=SECOND_NS, jitter=0.0, failures=1),
    )
    rig = Rig(job, start=True)
    rig.spawned("job")
    rig.crash("job")
    rig.later(11)
    rig.spawned("job")
    rig.exited("job", 0)
    assert "unit.released" in events(rig, "job")


def test_a_stub_that_comes_later_waits_for_a_slot() -> None:
    """A start that brought a stub back let it in beyond the limit."""
    rig = Rig()
    units = (fragile(quarantine={"stub": STUB}), service("other"), service("shop", relations=needs("web")))
    rig.load(*units, limits=PoolLimits(1))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.ask("start", "other")
    rig.spawned("other")
    rig.ask("start", "shop", wait=False)
    assert [job.unit for job in view.jobs(rig.manager) if job.limit is not None] == ["web"]
    rig.ask("stop", "other")
    rig.exited("other", signal=15)
    assert rig.status("web").sub_state == "stub"


def test_a_unit_that_ends_the_supervisor_has_no_stub() -> None:
    """A stub took the place of its failure, which was to be the end of everything: the supervisor went on."""
    rig = Rig(fragile(relations={"exit_supervisor_on": ExitSupervisorOn.FAILURE}, quarantine={"stub": STUB}))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web", 3)
    assert [spawn for spawn in rig.spawns if spawn.role is Role.STUB] == []
    assert rig.did(ExitSupervisor) == [ExitSupervisor(3)]

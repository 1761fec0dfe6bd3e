"""Small things that were told and were not so, or were so and were not told; each is named after its bug."""

import json

import pytest
from core_rig import Rig, needs, notify, service, unit_set
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.events import ExitStatus, ProcessExited, UnitsLoaded
from supervisord_py.model.states import ExitSupervisorOn, Restart, Role, Severity
from supervisord_py.model.unit import BadUnit, Dependency, RestartPolicy, UnitSet

AGAIN = RestartPolicy(jitter=0.0)
NEVER = RestartPolicy(Restart.NO, jitter=0.0)


def masked(*names: str, without: UnitSet | None = None) -> UnitsLoaded:
    """A load in which these units are masked."""
    units = without or UnitSet()
    return UnitsLoaded(UnitSet(units=units.units, masked=names), start_enabled=False)


def test_the_end_of_a_unit_ended_the_supervisor_in_the_name_of_root() -> None:
    """``daemon.stopping`` of exit-supervisor-on said uid 0, as if root had asked; now it names the unit."""
    rig = Rig(service("web", relations={"exit_supervisor_on": ExitSupervisorOn.FAILURE}, restart=NEVER))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    stopping = rig.record("daemon.stopping")
    assert stopping.unit == "web"
    assert stopping.fields.keys() == {"reason", "timeout_ms"}


def test_a_life_whose_end_nobody_saw_ran_for_0_ms() -> None:
    """How long it ran is not known: no record, no later life and no ``why`` tells a number."""
    rig = Rig(service("web", restart=AGAIN))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.later(3)
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(), runtime_ms=None))
    assert rig.record("unit.exited").fields["runtime_ms"] is None
    rig.later(1)
    rig.spawned("web")
    environment = dict(rig.spawn_of("web").environment)
    assert json.loads(environment["SUPERVISORD_PY_LAST_LIFE"]) == {"result": "unknown", "exit": None}
    assert any("the life before ended (unknown);" in line.message for line in view.why(rig.manager, "web"))
    rig.crash("web")
    assert '"runtime_ms":' in rig.state["unit/web"], "the next end was seen"


def test_a_unit_that_failed_unseen_told_how_long_it_had_run() -> None:
    """``unit.failed`` of a life that ended with no keeper counted the time until somebody looked."""
    rig = Rig(service("web", restart=NEVER))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(), runtime_ms=None))
    assert "runtime_ms" not in rig.record("unit.failed").fields


def test_a_unit_that_was_masked_while_its_restart_was_halfway_was_started() -> None:
    """It was stopped, masked, and then started by its old text all the same."""
    rig = Rig(service("web"), service("db"))
    for name in ("db", "web"):
        rig.ask("start", name)
        rig.spawned(name)
    request = rig.ask("restart", "web")
    rig.happen(masked("web", without=unit_set(service("db"))))
    rig.exited("web", signal=15)
    assert len([each for each in rig.spawns if each.unit == "web"]) == 1
    assert rig.status("web").active_state == "inactive"
    assert rig.status("web").load_state == "masked"
    outcome = rig.replies[request].outcomes[0]
    assert outcome.result == "invalid"
    assert "is masked" in outcome.message


def test_a_unit_that_was_masked_in_its_back_off_waited_for_a_dependency() -> None:
    """Nothing starts it, so it waits for nothing: it is down."""
    rig = Rig(service("web", restart=AGAIN))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    assert rig.status("web").sub_state == "auto-restart"
    rig.happen(masked("web"))
    rig.later(60)
    assert len(rig.spawns) == 1
    assert (rig.status("web").sub_state, rig.status("web").load_state) == ("dead", "masked")
    assert rig.record("unit.stopped", "web")


@pytest.mark.parametrize("what", ["invalid", "gone", "masked"])
def test_status_was_silent_about_a_unit_that_runs_by_a_text_that_is_no_more(what: str) -> None:
    """Only ``why`` told that its file had become invalid, and nothing that it was masked while it ran."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    assert rig.status("web").why is None
    match what:
        case "invalid":
            rig.load(bad=UnitSet(bad={"web": BadUnit("web", "/units/web.toml", "no such key")}))
        case "gone":
            rig.load()
        case "masked":
            rig.happen(masked("web"))
    why = rig.status("web").why or ""
    assert "it runs on by the text" in why
    assert {"invalid": "no such key", "gone": "no file", "masked": "masked"}[what] in why


def test_a_restart_that_cannot_be_waited_without_a_word() -> None:
    """web is in its back-off when db has failed too often: that it waits for db now stood nowhere (world seed 5107)."""
    rig = Rig(notify("db", restart=replace(NEVER, failures=1)), notify("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.up("web")
    rig.crash("db")
    rig.crash("web")
    rig.later(1)
    assert rig.shown("web") == "inactive/dependency/dependency"
    said = rig.record("job.finished", "web")
    assert (said.fields["job"], said.fields["result"], said.severity) == (None, "dependency", Severity.ERROR)
    assert "db" in said.fields["message"]


@pytest.mark.parametrize("kind", ["requires", "binds_to"])
def test_an_upheld_unit_whose_start_was_refused_waited_without_a_word(kind: str) -> None:
    """It lacks something that is masked: that it waits for it is written, as for any start that cannot be."""
    upholder = notify("keeper", relations={"upholds": (Dependency("web"),)})
    web = service("web", relations={kind: (Dependency("db"),)}, restart=NEVER)
    rig = Rig(upholder, web)
    rig.happen(masked("db", without=unit_set(upholder, web)))
    rig.ask("start", "keeper")
    rig.up("keeper")
    assert rig.status("web").sub_state == "dependency"
    told = rig.record("job.finished", "web").fields
    assert told["result"] == "dependency"
    assert "db is masked" in told["message"]
    assert len([each for each in rig.records if each.event == "job.finished" and each.unit == "web"]) == 1
    assert not [each for each in rig.spawns if each.unit == "web" and each.role is Role.MAIN]

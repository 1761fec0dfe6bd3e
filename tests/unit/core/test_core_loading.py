"""daemon-reload: what is new, changed, gone, bad."""

from core_rig import NO_JITTER, Rig, commands, needs, notify, service, target

from supervisord_py.core import view
from supervisord_py.core.manager import Manager
from supervisord_py.model.unit import BadUnit, Dependency, UnitSet


def test_each_change_is_recorded() -> None:
    """unit.loaded for new and changed ones, unit.removed for those that are gone, unit.rejected for bad ones."""
    rig = Rig(service("a"), service("b"), service("c"))
    bad = UnitSet(bad={"d": BadUnit("d", "d.toml", "d.toml:1:1: x")})
    rig.load(service("a"), service("b", exec_start=commands("/new")), service("e"), bad=bad)
    told = {(record.event, record.unit, record.fields.get("change")) for record in rig.last.records}
    assert told == {
        ("unit.loaded", "b", "changed"),
        ("unit.loaded", "e", "added"),
        ("unit.rejected", "d", None),
        ("unit.removed", "c", None),
    }
    assert view.list_units(rig.manager) == ["a", "b", "d", "e"]
    rig.load(service("a"), service("b", exec_start=commands("/new")), service("e"), bad=bad)
    assert rig.last.records == []


def test_new_units_are_started_when_that_is_asked_for() -> None:
    """Only new and enabled ones; a stopped one stays stopped."""
    rig = Rig(service("a"), start=True)
    rig.spawned("a")
    rig.ask("stop", "a")
    rig.exited("a", signal=15)
    rig.load(service("a"), service("b"), service("off", relations={"enabled": False}), start=True)
    assert rig.launched() == ["a", "b"]


def test_a_changed_unit_runs_by_its_old_text_until_its_next_start() -> None:
    """The stop command of the text that it was started with is the one that stops it."""
    rig = Rig(service("web", exec_stop=commands("old")))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.load(service("web", exec_start=commands("/new"), exec_stop=commands("new")))
    rig.ask("restart", "web")
    assert rig.spawns[-1].command.words == ("old",)
    rig.exited("web", 0, empty=False)
    rig.exited("web", signal=15, role=None) if rig.spawns[-1].role.value == "main" else None
    from supervisord_py.model.states import Role

    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.spawns[-1].command.words == ("/new",)


def test_relations_hold_from_the_reload_on() -> None:
    """A restart after a reload pulls in what the new text requires."""
    rig = Rig(service("web"), notify("db"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.load(service("web", relations=needs("db")), notify("db"))
    rig.ask("restart", "web")
    rig.exited("web", signal=15)
    assert rig.launched() == ["web", "db"]


def test_a_unit_whose_file_vanished_stays_supervised() -> None:
    """It is restarted after a crash, shown, and forgotten only when it is at rest."""
    rig = Rig(service("web"), service("a"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.load(service("a"))
    assert rig.status("web").active_state == "active"
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["web", "web"]
    rig.spawned("web")
    stop = rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert rig.outcome(stop) == {"web": "done"}
    assert rig.events("web")[-1] == "unit.removed"
    assert view.list_units(rig.manager) == ["a"]
    assert rig.refusal(rig.ask("start", "web")) == "NoSuchUnit"
    assert not [key for key in rig.state if key.endswith("/web")]


def test_a_vanished_unit_survives_the_manager_too() -> None:
    """Its text is in the state, so the next manager restarts it as well."""
    rig = Rig(service("web"), service("a"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.load(service("a"))
    rig.manager = Manager.restore(rig.state, rig.units)
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["web", "web"]


def test_a_vanished_unit_that_comes_back_is_known_again() -> None:
    """A file that was moved away and back leaves the running unit as it was."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.load(service("other"))
    rig.load(service("web"))
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert "unit.removed" not in rig.events("web")
    assert view.list_units(rig.manager) == ["web"]


def test_a_waiting_start_of_a_vanished_unit_ends() -> None:
    """Nobody waits for ever for a unit that does not exist any more."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    start = rig.ask("start", "web")
    rig.load(notify("db"))
    assert rig.outcome(start) == {"web": "invalid"}
    assert view.list_units(rig.manager) == ["db"]


def test_a_unit_whose_file_went_bad_keeps_running_and_is_shown_as_bad() -> None:
    """bad-setting, and up; it cannot be started again until the file is mended."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    bad = UnitSet(bad={"web": BadUnit("web", "web.toml", "web.toml:3:1: no")})
    rig.load(bad=bad)
    status = rig.status("web")
    assert (status.load_state, status.active_state) == ("bad-setting", "active")
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert rig.refusal(rig.ask("start", "web")) == "BadUnit"
    assert view.list_units(rig.manager) == ["web"]


def test_002_a_waiting_job_is_looked_at_again_after_a_reload() -> None:
    """A start whose blocker's edge went away with the new texts goes on (simulated seed 278)."""
    rig = Rig(notify("slow"), target("all", **needs("slow")))
    start = rig.ask("start", "all")
    assert start not in rig.replies
    rig.load(notify("slow"), target("all"))
    assert rig.outcome(start) == {"all": "done"}


def test_a_missing_dependency_that_appears_starts_the_unit_that_waits() -> None:
    """web waits for a db that no file defined; daemon-reload brings it, and web comes up."""
    rig = Rig(service("web", relations=needs("db")), start=True)
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.load(service("web", relations=needs("db")), service("db", restart=NO_JITTER), start=True)
    rig.spawned("db")
    assert rig.launched() == ["db", "web"]
    assert Dependency("db") in rig.units.units["web"].requires


def test_a_unit_without_a_file_closes_no_cycle() -> None:
    """a stands after b; its file goes, and b now stands after a: neither start, stop nor shutdown is refused or waits
    for itself (the shutdown was refused, which ended one manager after the other).
    """
    rig = Rig(service("a", relations=needs("b")), service("b"), service("c"))
    rig.ask("start", "a", "c")
    rig.spawned("b")
    rig.spawned("c")
    rig.spawned("a")
    rig.load(service("b", relations={"after": (Dependency("a"),)}), service("c", relations={"before": ("a",)}))
    stop = rig.ask("stop", "b", "c")
    for name in ("a", "b", "c"):
        assert rig.status(name).active_state == "deactivating"
        rig.exited(name, signal=15)
    assert set(rig.outcome(stop).values()) == {"done"}
    assert view.list_units(rig.manager) == ["b", "c"]


def test_what_lives_on_together_keeps_its_own_order() -> None:
    """Of two units whose files are gone the one that requires the other is stopped first, although the order between
    them and the new set was a cycle; if they contradict each other as well, that order goes too.
    """
    rig = Rig(service("a", relations=needs("b")), service("b", relations=needs("c")), service("c"))
    rig.ask("start", "a")
    for name in ("c", "b", "a"):
        rig.spawned(name)
    rig.load(service("c", relations={"after": (Dependency("a"),)}))
    rig.ask("stop", "b", "c")
    assert [rig.status(name).active_state for name in "abc"] == ["deactivating", "active", "deactivating"]
    rig = Rig(service("a", relations={"after": (Dependency("b"),)}), service("b"))
    rig.ask("start", "a")
    rig.spawned("a")
    rig.load(service("b", relations={"after": (Dependency("a"),)}))
    rig.ask("start", "b")
    rig.spawned("b")
    rig.load(service("c"))
    stop = rig.ask("stop", "a", "b")
    rig.exited("a", signal=15)
    rig.exited("b", signal=15)
    assert rig.outcome(stop) == {"a": "done", "b": "done"}


def test_queued_jobs_that_a_new_order_contradicts_do_not_end_the_manager() -> None:
    """Units loaded beside a cycle among jobs that are queued already: what cannot be started says so."""
    rig = Rig(notify("z"), *(service(name, relations=needs("z")) for name in "ab"))
    rig.ask("start", "a", "b")
    cycle = (
        service("a", relations={"after": (Dependency("b"),)}),
        service("b", relations={"after": (Dependency("a"),)}),
    )
    rig.load(notify("z"), *cycle, service("new"), start=True)
    finished = rig.record("job.finished", "new")
    assert finished.fields["result"] == "dependency"
    assert "cycle" in finished.fields["message"]
    assert rig.status("new").active_state == "inactive"


def test_a_running_unit_whose_file_comes_back_with_a_missing_requirement_runs_on() -> None:
    """It was said to wait for a dependency, and the next start met its process (an assertion, in every manager)."""
    rig = Rig(service("web", restart=NO_JITTER), start=True)
    rig.load(service("other"), start=True)
    rig.load(service("web", relations=needs("ghost")), start=True)
    assert rig.status("web").active_state == "activating"
    rig.spawned("web")
    assert rig.shown("web") == "active/running/success"
    assert rig.refusal(rig.ask("restart", "web")) == "NoSuchUnit"
    assert rig.launched().count("web") == 1

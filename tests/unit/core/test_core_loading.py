"""daemon-reload: what is new, changed, gone, bad."""

import pytest
from core_rig import NO_JITTER, Rig, commands, needs, notify, oneshot, service, target, unit_set

from supervisord_py.core import view
from supervisord_py.core.actions import KillTree
from supervisord_py.core.events import Now, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.model.states import KillMode, Restart, Role
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Dependency,
    KillPolicy,
    LoadedFrom,
    RestartPolicy,
    UnitSet,
)


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


def test_a_life_goes_on_by_the_live_keys_and_needs_a_restart_for_the_others() -> None:
    """The new stop command ends the life that the old start command began; status names what a restart is needed for,
    and no longer when it has happened.
    """
    rig = Rig(service("web", exec_stop=commands("old")), start=True)
    rig.spawned("web")
    rig.load(service("web", exec_start=commands("/new"), exec_stop=commands("new")))
    assert rig.status("web").needs_restart
    assert view.restart_keys(rig.manager, "web") == ("service.exec-start",)
    loaded = rig.record("unit.loaded", "web")
    assert loaded.fields["keys"] == ["service.exec-start", "service.exec-stop"]
    assert loaded.fields["needs_restart"] == ["service.exec-start"]
    rig.ask("restart", "web")
    assert rig.spawns[-1].command.words == ("new",)
    rig.exited("web", 0, role=Role.STOP, empty=False)
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.spawns[-1].command.words == ("/new",)
    assert not rig.status("web").needs_restart


def test_only_comments_changed_and_nothing_follows() -> None:
    """The file is another, the unit the same: recorded without keys, and no restart is asked for."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.load(service("web", relations={"source": LoadedFrom("web.toml", digest="2")}))
    assert "keys" not in rig.record("unit.loaded", "web").fields
    assert not rig.status("web").needs_restart


def test_a_unit_between_two_lives_needs_no_restart() -> None:
    """Its next life begins by the new text anyway."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.crash("web")
    rig.load(service("web", exec_start=commands("/new")))
    assert rig.shown("web").startswith("activating/auto-restart")
    assert not rig.status("web").needs_restart
    rig.later(1)
    assert rig.spawns[-1].command.words == ("/new",)


def test_the_restart_policy_of_a_running_unit_can_be_changed() -> None:
    """restart = "no" after a reload holds for the life that runs already, across a manager's death too."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.load(service("web", restart=RestartPolicy(restart=Restart.NO)))
    rig.manager = Manager.restore(rig.state, rig.units)
    rig.crash("web")
    assert rig.shown("web") == "failed/failed/exit-code"
    assert rig.launched() == ["web"]


def test_another_type_changes_nothing_in_the_life_that_runs() -> None:
    """A oneshot's policy does not judge the life of a simple service."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.load(oneshot("web"))
    assert "service.restart" in view.restart_keys(rig.manager, "web")
    rig.crash("web")
    assert rig.shown("web").startswith("activating/auto-restart")


@pytest.mark.parametrize(("timeout_s", "over_s"), [(5, 5), (30, 30), (1, 2)])
def test_a_stop_time_out_that_changes_is_counted_from_the_signal(timeout_s: int, over_s: int) -> None:
    """A unit that hangs in its stop is forced after the new time-out, at once when that is over already."""
    rig = Rig(service("web", timeout_stop_ns=10 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.later(2)
    rig.load(service("web", timeout_stop_ns=timeout_s * SECOND_NS))
    rig.later(max(over_s - 2 - 0.1, 0))
    assert rig.status("web").sub_state == ("stop-sigterm" if over_s > 2 else "stop-sigkill")
    rig.later(0.2)
    assert rig.status("web").sub_state == "stop-sigkill"


def test_a_stop_without_a_time_out_gets_one() -> None:
    """timeout-stop-sec = "infinity" was a mistake: the operator corrects it while the stop hangs, and back."""
    rig = Rig(service("web", timeout_stop_ns=None), start=True)
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.later(2)
    rig.load(service("web", timeout_stop_ns=10 * SECOND_NS))
    rig.later(7)
    rig.load(service("web", timeout_stop_ns=None))
    rig.later(3600)
    assert rig.status("web").sub_state == "stop-sigterm"


def test_a_time_out_that_the_process_extended_stays() -> None:
    """EXTEND_TIMEOUT_USEC was promised; a reload does not take it back."""
    rig = Rig(notify("web", timeout_start_ns=10 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.says("web", EXTEND_TIMEOUT_USEC=str(60 * 10**6))
    rig.load(notify("web", timeout_start_ns=5 * SECOND_NS))
    rig.later(59)
    assert rig.status("web").sub_state == "start"


def test_the_time_until_failures_are_forgotten_changes_at_once() -> None:
    """restart-reset-sec counts from when the unit came up."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    rig.later(100)
    rig.load(service("web", restart=RestartPolicy(jitter=0.0, reset_ns=101 * SECOND_NS)))
    assert rig.status("web").failures == 1
    rig.later(2)
    assert rig.status("web").failures == 0


def test_the_end_of_a_run_changes_at_once() -> None:
    """runtime-max-sec counts from when the unit came up, whatever reloads of its own lie between."""
    rig = Rig(service("web", exec_reload=commands("again"), runtime_max_ns=100 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.later(50)
    rig.ask("reload", "web")
    rig.exited("web", 0, role=Role.RELOAD, empty=False)
    rig.load(service("web", exec_reload=commands("again"), runtime_max_ns=60 * SECOND_NS))
    rig.later(9)
    assert rig.status("web").sub_state == "running"
    rig.later(2)
    assert rig.status("web").sub_state == "stop-sigterm"


def test_a_time_out_of_a_shutdown_stays() -> None:
    """What the shutdown allows is not lengthened by a reload that comes too late."""
    rig = Rig(service("web", timeout_stop_ns=10 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.shut_down(90)
    rig.load(service("web", timeout_stop_ns=80 * SECOND_NS))
    rig.later(11)
    assert rig.status("web").sub_state == "stop-sigkill"


def test_a_phase_has_its_beginning_on_another_boots_clock_too() -> None:
    """A state that is moved to another clock counts a changed time-out from the same moment."""
    rig = Rig(service("web", timeout_stop_ns=10 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.ask("stop", "web")
    shift_ns = 7000 * SECOND_NS
    moved = Manager.restore(rig.state, rig.units, shift_ns=shift_ns)
    now = Now(rig.mono_ns + shift_ns, rig.mono_ns, rig.mono_ns, 500)
    moved.handle(UnitsLoaded(unit_set(service("web", timeout_stop_ns=30 * SECOND_NS))), now)
    assert moved.deadline_ns() == rig.mono_ns + shift_ns + 30 * SECOND_NS


def test_a_unit_at_rest_is_in_no_phase() -> None:
    """Nothing of a life's clock stays in the state of a unit that is down."""
    rig = Rig(service("web"), start=True)
    rig.spawned("web")
    assert "phase_at_ns" in rig.state["unit/web"]
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert "phase_at_ns" not in rig.state["unit/web"]
    rig = Rig(service("web", relations=needs("ghost")), start=True)
    assert rig.shown("web") == "inactive/dependency/dependency"
    assert "phase_at_ns" not in rig.state["unit/web"]


@pytest.mark.parametrize("role", [Role.RELOAD, Role.STOP, Role.STOP_POST])
def test_a_command_list_that_is_being_run_is_finished_as_it_began(role: Role) -> None:
    """The second command is the old one, although the list changed while the first ran."""
    key = f"exec_{role.value.replace('-', '_')}"
    rig = Rig(service("web", **{key: commands("one", "two")}), start=True)
    rig.spawned("web")
    rig.ask("reload" if role is Role.RELOAD else "stop", "web")
    if role is Role.STOP_POST:
        rig.exited("web", signal=15)
    rig.load(service("web", **{key: commands("new")}, timeout_stop_ns=SECOND_NS))
    rig.exited("web", 0, role=role, empty=False)
    assert rig.spawns[-1].command.words == ("two",)
    if role is Role.RELOAD:
        rig.exited("web", 0, role=role, empty=False)
        rig.ask("reload", "web")
        assert rig.spawns[-1].command.words == ("new",), "the next reload runs the new list"


def test_a_stop_keeps_the_kill_mode_that_it_began_with() -> None:
    """With kill-mode process nobody would kill what is left, and the stop that waits for it would be stuck."""
    rig = Rig(service("web", timeout_stop_ns=10 * SECOND_NS), start=True)
    rig.spawned("web")
    stop = rig.ask("stop", "web")
    rig.load(service("web", timeout_stop_ns=10 * SECOND_NS, kill=KillPolicy(mode=KillMode.PROCESS)))
    rig.exited("web", signal=15, empty=False)
    rig.later(11)
    assert rig.did(KillTree) == [KillTree("web", 9)]
    rig.emptied("web")
    assert rig.outcome(stop) == {"web": "done"}


def test_what_a_command_before_the_start_had_left_was_not_waited_for_after_a_reload() -> None:
    """It is being killed when kill-mode becomes process, and web is restarted: the next life began beside it (rich
    world seed 50106).
    """
    pre = commands("/bin/pre")
    rig = Rig(service("web", exec_start_pre=pre))
    rig.ask("start", "web", wait=False)
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    rig.load(service("web", exec_start_pre=pre, kill=KillPolicy(mode=KillMode.PROCESS)))
    rig.ask("restart", "web", wait=False)
    assert len(rig.spawns) == 1
    rig.emptied("web")
    assert len(rig.spawns) == 2
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    assert rig.spawns[-1].role is Role.MAIN, "from the next life on it is as the file says"


def test_a_vanished_unit_that_runs_is_not_found_and_says_so() -> None:
    """Its load state tells that no file defines it, the journal that it runs on."""
    rig = Rig(service("web"), service("a"), start=True)
    rig.spawned("web")
    rig.load(service("a"))
    status = rig.status("web")
    assert (status.load_state, status.active_state) == ("not-found", "active")
    assert rig.record("unit.loaded", "web").fields["change"] == "vanished"


def test_supervisor_720_what_was_stopped_stays_stopped_when_its_file_is_mended() -> None:
    """A file that broke and is whole again is no new unit: neither a stopped one nor one that has done its work is
    started by a reload.
    """
    once = oneshot("once")
    rig = Rig(service("web"), once, start=True)
    rig.spawned("web")
    rig.spawned("once")
    rig.exited("once", 0)
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    bad = UnitSet(bad={name: BadUnit(name, f"{name}.toml", "no") for name in ("once", "web")})
    rig.load(bad=bad, start=True)
    rig.load(service("web"), once, start=True)
    assert sorted(rig.launched()) == ["once", "web"]


def test_a_bad_file_that_is_mended_before_anything_ran_is_a_new_unit() -> None:
    """The first start of a unit whose file was bad from the beginning comes with the reload."""
    rig = Rig()
    rig.load(bad=UnitSet(bad={"web": BadUnit("web", "web.toml", "no")}), start=True)
    rig.load(service("web"), start=True)
    assert rig.launched() == ["web"]


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


def test_a_service_that_left_processes_becomes_a_target() -> None:
    """The target is up when the last process of the service that it was ends: nothing happens to it (an assertion, in
    every manager; simulated seed 656).
    """
    rig = Rig(service("web", kill=KillPolicy(mode=KillMode.PROCESS)), start=True)
    rig.spawned("web")
    rig.exited("web", 0, empty=False)
    rig.load(target("web"))
    rig.ask("start", "web")
    rig.emptied("web")
    assert rig.shown("web") == "active/running/success"

"""The end of everything: ordered, bounded, forced."""

from typing import Any

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service, unit_set

from supervisord_py.core.actions import ExitSupervisor, KillTree
from supervisord_py.core.events import ShutdownForced, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.core.view import exit_code, is_over
from supervisord_py.model.states import ExitSupervisorOn, KillMode, Restart
from supervisord_py.model.unit import SECOND_NS, Dependency, KillPolicy, RestartPolicy, Unit


def exits(rig: Rig) -> int:
    return sum(isinstance(action, ExitSupervisor) for action in rig.actions)


def test_everything_stops_in_order_and_then_the_supervisor_ends() -> None:
    """web before db, then exactly one exit with code 0."""
    rig = Rig(service("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.shut_down()
    assert rig.shown("db") == "active/running/success"
    rig.exited("web", signal=15)
    rig.exited("db", signal=15)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(0)]
    rig.shut_down()
    assert exits(rig) == 1
    assert rig.record("daemon.stopping").fields["timeout_ms"] == 90_000


def test_a_manager_that_follows_one_killed_while_it_finished_knows_that_all_is_over() -> None:
    """The decided end is in the state, so that the successor of a manager that died before the keeper was told can end
    the supervisor; one that died before the decision decides it itself.
    """
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down()
    assert not is_over(Manager.restore(rig.state, rig.units))
    rig.exited("web", signal=15)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(0)]
    assert is_over(Manager.restore(rig.state, rig.units))


def test_with_nothing_running_the_supervisor_ends_at_once() -> None:
    """No unit, no wait."""
    rig = Rig(service("web"))
    rig.shut_down()
    assert rig.did(ExitSupervisor) == [ExitSupervisor(0)]


def test_new_starts_are_refused_and_queued_ones_cancelled() -> None:
    """ShuttingDown; whoever waited for a start is told that it was called off."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    start = rig.ask("start", "web")
    rig.shut_down()
    assert rig.outcome(start) == {"web": "canceled"}
    assert rig.refusal(rig.ask("start", "web")) == "ShuttingDown"
    assert "web" not in rig.launched()


def test_nothing_is_restarted_during_a_shutdown() -> None:
    """A crash and a pending back-off both end there."""
    rig = Rig(service("a"), service("b"))
    rig.ask("start", "a", "b")
    rig.spawned("a")
    rig.spawned("b")
    rig.crash("a")
    rig.shut_down()
    rig.crash("b")
    assert exits(rig) == 1
    assert sorted(rig.launched()) == ["a", "b"]


def test_stop_time_outs_are_scaled_into_the_time() -> None:
    """A chain of three that may take 90 s each is killed within a shutdown of 30 s, in order."""
    rig = Rig(service("a"), service("b", relations=needs("a")), service("c", relations=needs("b")))
    rig.ask("start", "c")
    for name in "abc":
        rig.spawned(name)
    begun_ns = rig.mono_ns
    rig.shut_down(30)
    for name in "cba":
        while KillTree(name, 9) not in rig.actions:
            rig.later(0.1)
        rig.exited(name, signal=9)
    assert exits(rig) == 1
    assert rig.mono_ns - begun_ns < 27 * SECOND_NS
    assert not any(record.fields.get("forced") for record in rig.records)


def test_a_stop_that_fits_keeps_its_time_out() -> None:
    """With room enough nothing is scaled."""
    rig = Rig(service("web", timeout_stop_ns=5 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(90)
    rig.later(4.9)
    assert KillTree("web", 9) not in rig.actions
    rig.later(0.2)
    assert KillTree("web", 9) in rig.actions


def test_a_running_stop_is_shortened() -> None:
    """A stop that began before the shutdown does not hold it up."""
    rig = Rig(service("web", timeout_stop_ns=3600 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.shut_down(10)
    rig.later(9)
    assert KillTree("web", 9) in rig.actions


def test_an_endless_time_out_ends_with_the_shutdown() -> None:
    """timeout-stop = infinity is cut to what is allowed."""
    rig = Rig(service("web", timeout_stop_ns=None))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(10)
    rig.later(9)
    assert KillTree("web", 9) in rig.actions


def test_what_does_not_die_does_not_keep_the_supervisor() -> None:
    """After all of the time the supervisor ends, whoever waited is told."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    stop = rig.ask("stop", "web")
    rig.shut_down(10)
    rig.later(10)
    assert exits(rig) == 1
    assert stop in rig.replies


def test_a_stop_asked_for_after_the_exit_was_decided_is_answered() -> None:
    """What does not die holds a stop up for ever, and nothing ends any more: it is refused, and makes no job."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(10)
    rig.later(10)
    assert exits(rig) == 1
    queued = rig.events("web").count("job.queued")
    assert rig.refusal(rig.ask("stop", "web")) == "ShuttingDown"
    assert rig.events("web").count("job.queued") == queued
    assert exits(rig) == 1


def test_the_order_of_force_kills_everything_at_once() -> None:
    """A second interrupt: no command, no grace, no order, and the leftovers of units at rest too."""
    rig = Rig(
        service("db", exec_stop=commands("stop"), exec_stop_post=commands("post")),
        service("web", relations=needs("db")),
        service("old", kill=KillPolicy(mode=KillMode.PROCESS)),
    )
    rig.ask("start", "web", "old")
    for name in ("db", "web", "old"):
        rig.spawned(name)
    rig.ask("stop", "old")
    rig.exited("old", signal=15, empty=False)
    rig.shut_down()
    rig.happen(ShutdownForced())
    assert [action.unit for action in rig.did(KillTree)] == ["db", "web", "old"]
    rig.exited("web", signal=9)
    rig.exited("db", signal=9)
    assert exits(rig) == 1
    assert [action.command.words[0] for action in rig.spawns] == ["/bin/old", "/bin/db", "/bin/web"]


def test_force_without_a_shutdown_is_one() -> None:
    """Two interrupts at once come as one order."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.happen(ShutdownForced())
    assert KillTree("web", 9) in rig.actions
    rig.exited("web", signal=9)
    assert exits(rig) == 1


def test_a_unit_that_waits_for_a_dependency_does_not_hold_it_up() -> None:
    """Waiting ends with the shutdown."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.crash("db")
    rig.shut_down()
    assert exits(rig) == 1
    assert rig.shown("web") == "inactive/dead/success"


def test_a_late_deadline_still_kills_before_it_gives_up() -> None:
    """A machine that slept through the whole time kills first, and gives the kill a moment."""
    from supervisord_py.core.events import DeadlineReached

    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(1)
    rig.mono_ns += 60 * SECOND_NS
    rig.happen(DeadlineReached())
    assert KillTree("web", 9) in rig.actions
    assert exits(rig) == 0
    rig.exited("web", signal=9)
    assert exits(rig) == 1


def test_an_order_that_contradicts_itself_does_not_keep_the_supervisor_from_ending() -> None:
    """Units whose order is a cycle are stopped all at once; a refusal would have nobody to be told to."""
    after = {name: {"after": (Dependency(other),)} for name, other in (("a", "b"), ("b", "a"))}
    rig = Rig(*(service(name, relations=relations) for name, relations in after.items()))
    for name in after:
        rig.ask("start", name)
        rig.spawned(name)
    rig.shut_down()
    for name in after:
        assert rig.status(name).active_state == "deactivating"
        rig.exited(name, signal=15)
    assert exits(rig) == 1


def test_a_bond_whose_order_contradicts_itself_is_kept() -> None:
    """What is bound to a unit that ends is stopped, whatever the order says."""
    relations = {
        "a": {"after": (Dependency("b"),)},
        "b": {"after": (Dependency("a"),), "binds_to": needs("db")["requires"]},
    }
    rig = Rig(service("db"), *(service(name, relations=each) for name, each in relations.items()))
    for name in relations:
        rig.ask("start", name, "db")
        if name == "a":
            rig.spawned("db")
        rig.spawned(name)
    rig.ask("stop", "a")
    rig.crash("db")
    assert rig.status("b").active_state == "deactivating"


def ending(name: str, on: ExitSupervisorOn, restart: Restart = Restart.NO, **keys: Any) -> Unit:
    policy = RestartPolicy(restart=restart, jitter=0.0, failures=2)
    return service(name, relations={"exit_supervisor_on": on}, restart=policy, **keys)


@pytest.mark.parametrize(
    ("on", "end", "code"),
    [
        (ExitSupervisorOn.FAILURE, {"code": 3}, 3),
        (ExitSupervisorOn.FAILURE, {"signal": 9}, 137),
        (ExitSupervisorOn.EXIT, {"code": 3}, 3),
        (ExitSupervisorOn.EXIT, {"code": 0}, 0),
        (ExitSupervisorOn.EXIT, {"signal": 15}, 143),
    ],
)
def test_the_end_of_a_unit_is_the_end_of_the_supervisor(on: ExitSupervisorOn, end: dict[str, int], code: int) -> None:
    """Everything else stops in order, and the supervisor's code is the unit's: 128 + n for a signal."""
    rig = Rig(service("db"), ending("web", on))
    rig.ask("start", "db", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.exited("web", **end)
    assert exits(rig) == 0, "db is stopped first"
    assert rig.record("daemon.stopping").fields["reason"].startswith("web has ")
    rig.exited("db", signal=15)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(code)]


def test_a_unit_that_is_restarted_does_not_end_the_supervisor_until_it_has_failed_for_good() -> None:
    """Each failure but the last is the restart policy's; the code is that of the last life."""
    rig = Rig(ending("web", ExitSupervisorOn.FAILURE, Restart.ON_FAILURE))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web", 3)
    assert "daemon.stopping" not in rig.events()
    rig.later(60)
    rig.spawned("web")
    rig.crash("web", 4)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(4)]


def test_a_good_end_is_no_failure() -> None:
    """With "failure" a unit may end well, and be stopped, and the supervisor goes on."""
    rig = Rig(ending("web", ExitSupervisorOn.FAILURE))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    assert "daemon.stopping" not in rig.events()


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_unit_that_somebody_stops_does_not_end_the_supervisor(verb: str) -> None:
    """An operator may work on the unit of a container, even if its end is not a good one."""
    rig = Rig(ending("web", ExitSupervisorOn.EXIT))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask(verb, "web")
    rig.exited("web", 1)
    assert "daemon.stopping" not in rig.events()


def test_a_program_that_never_ran_ends_the_supervisor_with_125() -> None:
    """What every caller of a container takes for "it did not start"."""
    rig = Rig(ending("web", ExitSupervisorOn.FAILURE))
    rig.ask("start", "web")
    rig.failed_to_spawn("web")
    assert rig.did(ExitSupervisor) == [ExitSupervisor(125)]


def test_a_failure_never_ends_the_supervisor_with_0() -> None:
    """A service that ends with 0 before it was ready has failed: protocol."""
    unit = notify("web", relations={"exit_supervisor_on": ExitSupervisorOn.FAILURE}, restart=RestartPolicy(Restart.NO))
    rig = Rig(unit)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    assert rig.shown("web") == "failed/failed/protocol"
    assert rig.did(ExitSupervisor) == [ExitSupervisor(1)]


@pytest.mark.parametrize(("step", "code"), [("fork", 71), ("exec", 203)])
def test_a_later_command_that_never_ran_ends_the_supervisor_with_the_code_of_its_record(step: str, code: int) -> None:
    """The unit has started, so it is not 125: the journal, ``status`` and the supervisor's end tell the same code."""
    unit = oneshot(
        "web", relations={"exit_supervisor_on": ExitSupervisorOn.FAILURE}, exec_start=commands("/bin/a", "/bin/b")
    )
    rig = Rig(unit)
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    rig.failed_to_spawn("web", step=step, code=code)
    assert rig.record("unit.exited").fields["code"] == code
    assert rig.did(ExitSupervisor) == [ExitSupervisor(code)]


def test_the_first_end_decides_the_code() -> None:
    """What ends later, because everything is stopped, changes nothing; nor does a later request to stop."""
    rig = Rig(ending("a", ExitSupervisorOn.FAILURE), ending("b", ExitSupervisorOn.FAILURE))
    rig.ask("start", "a", "b")
    rig.spawned("a")
    rig.spawned("b")
    rig.crash("a", 5)
    rig.shut_down()
    rig.crash("b", 6)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(5)]
    assert exit_code(Manager.restore(rig.state, rig.units)) == 5, "a manager that finishes it for another knows"


def test_a_shutdown_that_somebody_asked_for_ends_with_0() -> None:
    """A unit that ends while everything is stopped is no end by itself."""
    rig = Rig(ending("web", ExitSupervisorOn.EXIT))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down()
    rig.exited("web", 7)
    assert rig.did(ExitSupervisor) == [ExitSupervisor(0)]


def test_a_shutdown_by_a_unit_has_the_time_of_the_last_load() -> None:
    """shutdown-timeout-sec holds for it as for any other."""
    units = (service("db", timeout_stop_ns=None), ending("web", ExitSupervisorOn.FAILURE))
    rig = Rig()
    rig.happen(UnitsLoaded(unit_set(*units), shutdown_timeout_ns=10 * SECOND_NS))
    rig.ask("start", "db", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("web")
    assert rig.record("daemon.stopping").fields["timeout_ms"] == 10_000
    rig.later(9)
    assert KillTree("db", 9) in rig.actions

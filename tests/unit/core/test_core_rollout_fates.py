"""What becomes of each unit of a rollout, and what is said of it: in the less common ends too.

``Roll`` is a rig (so a manager that is restored before each event decides the same) with units that are up.
"""

from typing import Any

import pytest
from core_rig import Rig, needs, notify, oneshot, service, target, unit_set
from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import RevertUnits, SignalProcesses
from supervisord_py.core.events import UnitsLoaded
from supervisord_py.core.graph import Graph
from supervisord_py.core.rollout import in_order
from supervisord_py.model.states import Restart, Role
from supervisord_py.model.unit import SECOND_NS, Condition, Dependency, RestartPolicy, Unit, UnitSet
from tests.unit.core.core_rig import commands

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def of_release(unit: Unit, number: int) -> Unit:
    """The same unit with another command: only a restart brings it."""
    assert unit.service is not None
    return replace(unit, service=replace(unit.service, exec_start=commands(f"/bin/{unit.name}-{number}")))


class Roll(Rig):
    """Units that are up by release 1, and rollouts of them."""

    def __init__(self, *units: Unit) -> None:
        self.now = {unit.name: unit if unit.service is None else of_release(unit, 1) for unit in units}
        super().__init__(*self.now.values())
        self.ask("start", *self.now)
        while waiting := [
            n for n in self.now if (m := self.manager.ledger.state(n).main) is not None and m.pid is None
        ]:
            for name in waiting:
                self.up(name)

    def release(self, number: int, *names: str, gone: tuple[str, ...] = (), reverts: bool = False) -> None:
        """Load another release of these units (of all)."""
        for name in names or tuple(name for name in self.now if self.now[name].service is not None):
            self.now[name] = of_release(self.now[name], number)
        for name in gone:
            del self.now[name]
        self.happen(UnitsLoaded(unit_set(*self.now.values()), reverts=reverts))

    def apply(self, *names: str, n: int = 1, probation_s: int = 0, reverts: bool = True, **how: Any) -> int:
        arguments = {"max_unavailable": n, "probation_ns": probation_s * SECOND_NS, "reverts": reverts}
        return self.ask("apply", *names, arguments=arguments, **how)

    def rolling(self, *names: str, n: int = 1, probation_s: int = 0, **how: Any) -> int:
        arguments = {"max_unavailable": n, "probation_ns": probation_s * SECOND_NS}
        return self.ask("restart", *names, arguments=arguments, **how)

    def cycled(self, name: str) -> None:
        """What was told to stop ends, and the next life of it is up."""
        self.exited(name, signal=15, role=Role.MAIN)
        self.up(name)

    @property
    def steps(self) -> dict[str, str]:
        """How far each unit is, while a rollout goes on."""
        rollout = self.manager.ledger.rollout
        return {} if rollout is None else {name: unit.step.value for name, unit in rollout.units.items()}

    @property
    def fates(self) -> dict[str, str]:
        """What the last rollout said at its end."""
        assert self.manager.ledger.rollout is None
        fates: dict[str, str] = self.record("rollout.finished").fields["units"]
        return fates

    def told(self, request: int) -> dict[str, tuple[str, str]]:
        """Result and words of an answer, by unit."""
        return {each.unit: (each.result, each.message) for each in self.replies[request].outcomes}

    def signalled(self) -> list[str]:
        """The units that the last event has begun to stop."""
        return [action.unit for action in self.did(SignalProcesses)]


def three() -> Roll:
    roll = Roll(notify("a"), notify("b"), notify("c"))
    roll.release(2)
    return roll


# asking


def test_an_apply_without_arguments_is_one_transaction_that_does_not_go_back() -> None:
    """Nothing that was not asked for: no bound, no probation, no way back."""
    roll = three()
    roll.ask("apply")
    said = roll.record("rollout.started").fields
    assert (said["max_unavailable"], said["probation_ms"], said["reverts"]) == (0, 0, False)
    assert roll.signalled() == ["a", "b", "c"]


def test_the_record_says_the_options_as_they_were_asked_for() -> None:
    """Units in their order, the bound, the probation in milliseconds, whether it goes back."""
    roll = three()
    roll.apply(n=2, probation_s=7)
    said = roll.record("rollout.started").fields
    assert said == {
        "verb": "apply",
        "units": ["a", "b", "c"],
        "max_unavailable": 2,
        "probation_ms": 7000,
        "reverts": True,
    }


def test_the_plan_of_a_rolling_restart_names_what_has_no_life_and_what_has_no_file() -> None:
    """Neither has two texts that could differ."""
    roll = Roll(notify("a"), notify("b"))
    roll.ask("stop", "b")
    roll.exited("b", signal=15)
    roll.release(2, "b", gone=("a",))
    plan = roll.rolling("a", "b", plan=True)
    assert roll.told(plan) == {"a": ("queued", ""), "b": ("queued", "")}
    assert roll.steps == {}


def test_a_plan_says_nothing_of_another_rollout_that_is_under_way() -> None:
    """What would be restarted may be asked at any time."""
    roll = three()
    roll.apply()
    plan = roll.apply(plan=True)
    assert set(roll.told(plan)) == {"a", "b", "c"}


def test_a_rollout_is_refused_in_a_shutdown() -> None:
    """Nothing is restarted any more."""
    roll = three()
    roll.shut_down()
    assert roll.refusal(roll.apply()) == "ShuttingDown"
    assert roll.refusal(roll.rolling("a")) == "ShuttingDown"


def test_the_refusal_names_a_number_that_ends_the_rollout() -> None:
    """Whoever is refused is told how to end what is under way."""
    roll = three()
    roll.apply()
    refused = roll.replies[roll.apply()].refusal
    assert refused is not None
    number = int(refused.message.rsplit(" ", 1)[1])
    assert number == min(job.job for job in view.jobs(roll.manager) if job.type == "rollout")


def test_order_among_what_stands_before_is_natural() -> None:
    """What a unit comes after is restarted in the order of names, each once, however many ways lead to it."""
    units = {
        "a": service("a", relations={"after": tuple(map(Dependency, ("y", "x", "mid")))}),
        "mid": service("mid", relations={"after": tuple(map(Dependency, ("y", "x")))}),
        "x": service("x", relations={"after": (Dependency("base"),)}),
        "y": service("y", relations={"after": (Dependency("base"),)}),
        "base": service("base"),
    }
    assert in_order(Graph(units), ("y", "a", "x", "base")) == ["base", "x", "y", "a"]


# on the way forward


def test_one_that_is_left_out_does_not_hold_up_the_next_one() -> None:
    """A unit that is just being stopped takes up no room: the next one is restarted at once, whatever comes after."""
    roll = three()
    roll.ask("stop", "a")
    roll.rolling("a", "b")
    assert roll.steps == {"a": "left-out", "b": "restarting"}
    assert roll.signalled() == ["b"]


def test_a_new_life_begins_its_probation_anew() -> None:
    """Somebody restarts a unit in its probation: the next one waits until that life has been up for the whole."""
    roll = three()
    roll.apply(probation_s=10)
    roll.cycled("a")
    roll.later(5)
    roll.ask("restart", "a")
    roll.cycled("a")
    roll.later(9)
    assert roll.steps["a"] == "probation"
    assert roll.signalled() == []
    roll.later(1)
    assert roll.steps["a"] == "done"
    assert roll.steps["b"] == "restarting"


def test_a_probation_that_ends_while_its_unit_is_restarted_is_none() -> None:
    """The time is over while somebody restarts the unit: it counts from when that is up."""
    roll = three()
    roll.apply(probation_s=10)
    roll.cycled("a")
    roll.later(8)
    roll.ask("restart", "a")
    roll.later(5)
    assert roll.steps == {"a": "probation", "b": "waiting", "c": "waiting"}
    roll.cycled("a")
    roll.later(9)
    assert roll.steps["a"] == "probation"
    roll.later(1)
    assert roll.steps["a"] == "done"


def test_what_was_stopped_in_its_probation_stays_left_out() -> None:
    """Somebody starts it again before its time is over: the rollout has nothing to say of it any more."""
    roll = three()
    request = roll.apply(probation_s=10)
    roll.cycled("a")
    roll.ask("stop", "a")
    roll.exited("a", signal=15)
    assert roll.steps["a"] == "left-out"
    roll.ask("start", "a")
    roll.up("a")
    roll.cycled("b")
    roll.later(10)
    assert roll.steps == {"a": "left-out", "b": "done", "c": "restarting"}
    roll.cycled("c")
    roll.later(10)
    assert roll.fates == {"a": "left-out", "b": "done", "c": "done"}
    assert roll.told(request)["a"] == ("skipped", "a was stopped meanwhile")
    assert roll.told(request)["c"] == ("done", "")


def test_a_oneshot_that_ends_well_in_its_probation_has_passed() -> None:
    """It was up because it remains; restarted by somebody without that key, it has done its work."""
    roll = Roll(oneshot("job", remain_after_exit=True), notify("b"))
    roll.exited("job", 0)
    roll.release(2)
    roll.apply("job", probation_s=10)
    roll.spawned("job")
    roll.exited("job", 0)
    assert roll.steps == {"job": "probation"}
    own = roll.now["job"].service
    assert own is not None
    roll.now["job"] = replace(roll.now["job"], service=replace(own, remain_after_exit=False))
    roll.load(*roll.now.values())
    roll.ask("restart", "job")
    roll.spawned("job")
    roll.exited("job", 0)
    assert roll.fates == {"job": "done"}


def test_a_oneshot_that_has_done_its_work_is_done() -> None:
    """Its success is not that it stays up; the next unit begins."""
    roll = Roll(oneshot("job"), notify("z"))
    roll.exited("job", 0)
    request = roll.rolling("job", "z", probation_s=5)
    roll.spawned("job")
    roll.exited("job", 0)
    assert roll.steps == {"job": "done", "z": "restarting"}
    roll.cycled("z")
    roll.later(5)
    assert roll.outcome(request) == {"job": "done", "z": "done"}


def test_a_oneshot_that_fails_is_a_failure() -> None:
    """Its job has failed, and so has the rollout."""
    roll = Roll(oneshot("job"), notify("z"))
    roll.exited("job", 0)
    request = roll.rolling("job", "z")
    roll.spawned("job")
    roll.exited("job", 1)
    assert roll.fates == {"job": "failed", "z": "waiting"}
    assert roll.told(request)["z"] == ("canceled", "it was not restarted")


def test_what_ends_after_its_probation_is_a_failure_as_long_as_the_rollout_goes_on() -> None:
    """A unit that was good, and ends by itself while others are restarted, ends the way forward."""
    roll = three()
    request = roll.apply(reverts=False)
    roll.cycled("a")
    assert roll.steps["a"] == "done"
    roll.crash("a", 3)
    roll.cycled("b")
    assert roll.fates == {"a": "failed", "b": "done", "c": "waiting"}
    assert roll.told(request) == {
        "a": ("failed", "a did not stay up (exit-code): its main process exited with code 3"),
        "b": ("done", ""),
        "c": ("canceled", "it was not restarted"),
    }


def test_what_somebody_restarts_after_its_turn_is_no_failure_and_is_waited_for() -> None:
    """An order is no end by itself; while it is down it counts, and no other is taken down."""
    roll = Roll(notify("a"), notify("b"), notify("c", relations={"after": (Dependency("b"),)}))
    roll.release(2)
    roll.apply(n=1)
    roll.cycled("a")
    roll.ask("restart", "a")
    roll.cycled("b")
    assert roll.steps == {"a": "done", "b": "done", "c": "waiting"}
    roll.cycled("a")
    assert roll.steps["c"] == "restarting"


def test_a_target_that_goes_down_with_what_it_is_bound_to_is_a_failure() -> None:
    """It was restarted, and did not stay up."""
    db = service("db", restart=NEVER)
    roll = Roll(db, target("all", binds_to=(Dependency("db"),)), notify("z"))
    assert roll.shown("all") == "active/running/success"
    request = roll.rolling("all", "z", probation_s=5)
    roll.crash("db")
    assert roll.outcome(request) == {"all": "failed", "z": "canceled"}


def test_what_is_masked_meanwhile_is_no_failure() -> None:
    """Its end is what somebody wanted."""
    roll = three()
    roll.apply(probation_s=5)
    roll.cycled("a")
    del roll.now["a"]
    loaded = unit_set(*roll.now.values())
    roll.happen(UnitsLoaded(UnitSet(units=loaded.units, masked={"a": ""})))
    roll.crash("a")
    rollout = roll.manager.ledger.rollout
    assert rollout is not None and rollout.failed is None


def test_a_unit_that_was_stopped_before_its_turn_is_left_out() -> None:
    """The others have their turn, and it is told why that one had none."""
    roll = three()
    request = roll.apply()
    roll.ask("stop", "b")
    roll.cycled("a")
    assert roll.steps["b"] == "left-out"
    roll.exited("b", signal=15)
    roll.cycled("c")
    assert roll.fates == {"a": "done", "b": "left-out", "c": "done"}
    assert roll.told(request)["b"] == ("skipped", "b was stopped meanwhile")
    assert roll.record("rollout.finished").severity.value == "info"


def test_all_at_once_a_unit_that_was_stopped_before_is_left_out() -> None:
    """The same where there is no bound: its end of the old life is awaited by nobody."""
    roll = Roll(notify("a"), notify("b"))
    roll.ask("stop", "b")
    roll.release(2)
    request = roll.apply(n=0)
    assert roll.signalled() == ["a"]
    roll.exited("b", signal=15)
    roll.cycled("a")
    assert roll.told(request) == {"a": ("done", ""), "b": ("skipped", "b was stopped meanwhile")}


def test_a_unit_that_has_ended_for_good_before_its_turn_is_not_started_by_an_apply() -> None:
    """It does not run any more, so there is nothing to restart."""
    roll = Roll(notify("a"), notify("b", restart=NEVER))
    roll.release(2)
    request = roll.apply()
    roll.crash("b")
    roll.cycled("a")
    assert roll.told(request)["b"] == ("skipped", "b does not run any more")
    assert roll.shown("b").startswith("failed/failed")


def test_a_rolling_restart_starts_what_is_down() -> None:
    """Whoever names a unit wants it up: one that was stopped long ago, and one that has ended meanwhile."""
    roll = Roll(notify("a"), notify("b"), notify("c", restart=NEVER))
    roll.ask("stop", "b")
    roll.exited("b", signal=15)
    request = roll.rolling("a", "b", "c")
    roll.crash("c")
    roll.cycled("a")
    roll.up("b")
    roll.up("c")
    assert roll.outcome(request) == {"a": "done", "b": "done", "c": "done"}


def test_a_stop_counts_although_the_unit_was_stopped_when_the_rollout_began() -> None:
    """Somebody stops it once more while it waits for its turn: the later word wins (world seed 103)."""
    roll = Roll(notify("a"), notify("b"))
    roll.ask("stop", "b")
    roll.exited("b", signal=15)
    request = roll.rolling("a", "b")
    roll.ask("stop", "b")
    roll.cycled("a")
    assert roll.told(request)["b"] == ("skipped", "b was stopped meanwhile")
    assert roll.launched().count("b") == 1


def test_a_unit_whose_file_has_gone_before_its_turn_is_left_out() -> None:
    """It goes on by what it has; there is no newer text of it."""
    roll = three()
    request = roll.apply()
    roll.release(2, gone=("b",))
    roll.cycled("a")
    roll.cycled("c")
    assert roll.told(request)["b"] == ("skipped", "no file defines b any more")
    assert roll.shown("b").startswith("active/running")


def test_a_restart_that_is_called_off_leaves_its_unit_out() -> None:
    """Somebody cancels the job of one unit: that one is left out, and the rollout goes on."""
    roll = three()
    request = roll.apply()
    job = next(job for job in view.jobs(roll.manager) if job.type == "restart")
    roll.ask("cancel", arguments={"job": job.job})
    assert roll.steps == {"a": "left-out", "b": "restarting", "c": "waiting"}
    roll.cycled("b")
    roll.cycled("c")
    assert roll.told(request)["a"] == ("skipped", f"job {job.job} was cancelled")


def test_a_restart_that_a_condition_skips_is_no_failure() -> None:
    """It is left out with what did not hold."""
    roll = Roll(notify("a", relations={"conditions": (Condition("path-exists", "/x"),)}), notify("b"))
    roll.checked("a")
    roll.up("a")
    request = roll.rolling("a", "b")
    roll.exited("a", signal=15)
    roll.checked("a", 'condition-path-exists = "/x"')
    roll.cycled("b")
    assert roll.told(request)["a"] == ("skipped", 'a condition of a does not hold: condition-path-exists = "/x"')


@pytest.mark.parametrize("most", [0, 1])
def test_a_restart_that_is_refused_is_a_failure_with_its_words(most: int) -> None:
    """What cannot be installed is told; of a transaction of all it is all of them."""
    roll = three()
    roll.now["b"] = replace(roll.now["b"], **needs("ghost"))
    roll.load(*roll.now.values())
    request = roll.apply(n=most, reverts=False)
    if most:
        roll.cycled("a")
    result, words = roll.told(request)["b"]
    assert (result, "ghost" in words) == ("failed", True)
    assert roll.fates == ({"a": "done", "b": "failed", "c": "waiting"} if most else dict.fromkeys("abc", "failed"))


def test_one_that_cannot_go_back_does_not_keep_the_others_on_the_text_that_failed() -> None:
    """Without a bound all go back in one transaction: refused for one of them, each goes back for itself."""
    roll = three()
    request = roll.apply(n=0, reverts=True)
    roll.cycled("b")
    roll.cycled("c")
    roll.exited("a", signal=15)
    roll.spawned("a")
    roll.crash("a")
    assert roll.did(RevertUnits)[0].failed == "a"
    roll.now["b"] = replace(roll.now["b"], **needs("ghost"))
    roll.release(1, reverts=True)
    assert roll.signalled() == ["c"]
    roll.up("a")
    roll.cycled("c")
    assert roll.fates == {"a": "reverted", "b": "failed", "c": "reverted"}
    result, words = roll.told(request)["b"]
    assert (result, "ghost" in words) == ("failed", True)


def wanting(other: str) -> dict[str, Any]:
    return {"wants": (Dependency(other),)}


@pytest.mark.parametrize("how", ["apply", "restart"])
def test_a_rollout_does_not_start_what_its_units_want_and_somebody_has_stopped(how: str) -> None:
    """An operator is stronger: what is only wanted stays down, and what just ended comes up."""
    roll = Roll(
        notify("cache"), notify("mail"), notify("web", relations={"wants": tuple(map(Dependency, ("cache", "mail")))})
    )
    roll.ask("stop", "cache")
    roll.exited("cache", signal=15)
    roll.exited("mail", 0)
    roll.release(2, "web")
    if how == "apply":
        roll.apply()
    else:
        roll.rolling("web")
    roll.exited("web", signal=15)
    roll.up("mail")
    roll.up("web")
    assert roll.fates == {"web": "done"}
    assert [roll.status(name).active_state for name in ("cache", "mail")] == ["inactive", "active"]


def test_one_that_fails_before_its_turn_by_the_new_text_is_a_failure() -> None:
    """It was restarted with what it needs, and ends before it is ready."""
    roll = Roll(notify("db"), notify("web", relations=needs("db")), notify("z"))
    roll.release(2)
    roll.apply(probation_s=10)
    roll.exited("web", signal=15)
    roll.cycled("db")
    assert roll.steps == {"db": "probation", "web": "waiting", "z": "waiting"}
    roll.spawned("web")
    roll.crash("web")
    assert roll.record("rollout.failed").unit == "web"
    assert roll.did(RevertUnits)[0].units == ("db", "web", "z")


def test_one_that_fails_before_its_turn_in_a_rolling_restart_has_its_turn_all_the_same() -> None:
    """There is no newer text that would be to blame."""
    roll = Roll(notify("db"), notify("web", relations=needs("db")))
    roll.rolling("db", "web", probation_s=1)
    roll.exited("web", signal=15)
    roll.cycled("db")
    roll.spawned("web")
    roll.crash("web")
    assert "rollout.failed" not in roll.events()
    roll.later(1)
    assert roll.steps == {"db": "done", "web": "restarting"}


def test_one_that_fails_by_the_text_before_is_no_failure_although_that_is_loaded_again() -> None:
    """Its life is older than the rollout: nothing new has failed."""
    roll = three()
    roll.apply()
    roll.release(1, "b")
    roll.crash("b")
    assert "rollout.failed" not in roll.events()


def test_what_was_restarted_by_somebody_before_its_turn_is_watched_and_not_restarted_again() -> None:
    """It runs by the new text; that it stays up is looked at from then on."""
    roll = three()
    roll.apply(probation_s=10)
    roll.ask("restart", "c")
    roll.cycled("c")
    assert roll.steps == {"a": "restarting", "b": "waiting", "c": "probation"}
    roll.cycled("a")
    roll.later(10)
    roll.cycled("b")
    roll.later(10)
    assert roll.fates == dict.fromkeys("abc", "done")
    assert roll.launched().count("c") == 2


def test_what_is_started_before_its_turn_is_waited_for_and_not_restarted() -> None:
    """A unit that is on its way up by the new text when its turn comes only has to get there."""
    roll = Roll(*(notify(name) for name in "abcd"))
    roll.release(2)
    request = roll.apply(n=2)
    roll.ask("restart", "c")
    roll.exited("c", signal=15)
    roll.spawned("c")
    roll.cycled("a")
    assert roll.steps["c"] == "waiting"
    roll.cycled("b")
    assert roll.signalled() == ["d"]
    assert roll.steps == {"a": "done", "b": "done", "c": "restarting", "d": "restarting"}
    roll.says("c", READY="1")
    roll.cycled("d")
    assert roll.outcome(request) == dict.fromkeys("abcd", "done")
    assert roll.launched().count("c") == 2


def test_what_is_restarted_along_counts() -> None:
    """Two may be down: the one that is restarted, and the one that it takes with it."""
    roll = Roll(notify("db"), notify("web", relations=needs("db")), notify("x"), notify("y"))
    roll.release(2)
    roll.apply(n=2)
    assert roll.signalled() == ["web"]
    assert roll.steps == {"db": "restarting", "web": "waiting", "x": "waiting", "y": "waiting"}


def test_a_unit_waits_for_the_one_that_it_comes_after_through_one_that_stays() -> None:
    """Two may be down, and yet the second one comes after the first, over a unit that is not restarted."""
    roll = Roll(
        notify("a"), notify("mid", relations={"after": (Dependency("a"),)}),
        notify("z", relations={"after": (Dependency("mid"),)}),
    )  # fmt: skip
    roll.release(2, "a", "z")
    roll.apply(n=2, probation_s=5)
    assert roll.signalled() == ["a"]
    roll.cycled("a")
    assert roll.steps == {"a": "probation", "z": "waiting"}
    roll.later(5)
    assert roll.signalled() == ["z"]


# cancelled


def test_a_cancel_says_of_each_unit_how_far_it_got() -> None:
    """What was restarted is done, what is being restarted goes on, the rest was not touched."""
    roll = three()
    request = roll.apply()
    roll.cycled("a")
    cancel = roll.ask("cancel", arguments={"job": next(j.job for j in view.jobs(roll.manager) if j.type == "rollout")})
    assert roll.outcome(cancel) == {"b": "canceled"}
    assert roll.told(request) == {
        "a": ("done", ""),
        "b": ("canceled", "the rollout was cancelled; its restart goes on"),
        "c": ("canceled", "the rollout was cancelled"),
    }
    assert roll.fates == {"a": "done", "b": "restarting", "c": "waiting"}
    said = roll.record("rollout.finished")
    assert (said.fields["result"], said.fields["message"]) == ("canceled", "the rollout was cancelled")
    assert said.severity.value == "warning"


def test_the_plan_of_a_cancel_ends_nothing() -> None:
    """It says whose number that is."""
    roll = three()
    roll.apply()
    number = next(job.job for job in view.jobs(roll.manager) if job.type == "rollout")
    plan = roll.ask("cancel", arguments={"job": number}, plan=True)
    assert roll.outcome(plan) == {"a": "canceled"}
    assert roll.steps["a"] == "restarting"


# going back


def failing(roll: Roll, *names: str) -> None:
    """The new text of these units, which come up one after the other, makes the last of them fail."""
    *good, bad = names
    for name in good:
        roll.cycled(name)
    roll.exited(bad, signal=15)
    roll.spawned(bad)
    roll.crash(bad)
    assert roll.record("rollout.failed").unit == bad


def test_each_unit_is_told_that_it_runs_by_the_text_before() -> None:
    """The one that failed has the reason, what went back says so, what was never touched too."""
    roll = three()
    request = roll.apply()
    failing(roll, "a", "b")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "waiting", "b": "restarting", "c": "left-out"}
    roll.up("b")
    roll.cycled("a")
    assert roll.fates == {"a": "reverted", "b": "reverted", "c": "left-out"}
    told = roll.told(request)
    assert told["a"] == ("canceled", "a runs by the text before")
    assert told["b"][0] == "failed" and told["b"][1].startswith("b failed (exit-code)")
    assert told["c"] == ("canceled", "it was not restarted")
    said = roll.record("rollout.finished")
    assert said.fields["message"] == roll.record("rollout.failed").fields["message"]
    assert said.severity.value == "warning"


def test_a_unit_that_was_stopped_when_its_file_was_gone_is_not_started_by_going_back() -> None:
    """It was forgotten at rest, and that somebody had stopped it with it (seed 83)."""
    roll = three()
    roll.apply()
    roll.cycled("a")
    kept = roll.now["a"]
    roll.release(2, "c", gone=("a",))
    roll.ask("stop", "a")
    roll.exited("a", signal=15)
    assert "a" not in view.list_units(roll.manager)
    roll.exited("b", signal=15)
    roll.spawned("b")
    roll.crash("b")
    assert roll.did(RevertUnits)[0].failed == "b"
    roll.now["a"] = kept
    before = len(roll.spawns)
    roll.release(1, reverts=True)
    assert "a" not in [spawn.unit for spawn in roll.spawns[before:]]
    roll.up("b")
    assert roll.fates["a"] == "left-out"


def test_a_unit_that_was_stopped_in_its_probation_when_its_file_was_gone_ends_no_rollout() -> None:
    """It was forgotten at rest, so that it seemed to have ended by itself (rich world seed 438)."""
    roll = three()
    request = roll.apply(probation_s=10)
    roll.cycled("a")
    roll.release(2, "b", "c", gone=("a",))
    assert roll.steps["a"] == "probation"
    roll.ask("stop", "a")
    roll.exited("a", signal=15)
    assert "a" not in view.list_units(roll.manager)
    for name in ("b", "c"):
        roll.cycled(name)
        roll.later(10)
    assert roll.fates == {"a": "left-out", "b": "done", "c": "done"}
    assert roll.told(request)["a"] == ("skipped", "a was stopped meanwhile")


def test_a_oneshot_whose_file_goes_when_its_work_is_done_ends_no_rollout() -> None:
    """It was forgotten at rest, and with it that its work was done: it seemed not to have stayed up."""
    roll = Roll(oneshot("a", remain_after_exit=True), notify("b"))
    roll.exited("a", 0)
    roll.release(2)
    roll.now["a"] = replace(roll.now["a"], service=replace(roll.now["a"].service, remain_after_exit=False))
    roll.release(2)
    request = roll.apply()
    roll.spawned("a")
    roll.exited("a", 0)
    assert roll.steps == {"a": "done", "b": "restarting"}
    roll.release(2, "b", gone=("a",))
    assert "a" not in view.list_units(roll.manager)
    roll.cycled("b")
    assert roll.fates == {"a": "done", "b": "done"}
    assert roll.told(request)["a"] == ("done", "")


def test_what_does_not_come_up_by_the_text_before_is_told() -> None:
    """Going back has no way back of its own."""
    roll = three()
    request = roll.apply()
    failing(roll, "a", "b")
    roll.release(1, reverts=True)
    roll.up("b")
    roll.exited("a", signal=15)
    roll.spawned("a")
    roll.crash("a")
    assert roll.fates["a"] == "failed"
    result, words = roll.told(request)["a"]
    assert result == "failed"
    assert words.startswith("a could not be brought back to the text before: a failed (exit-code)")


def test_what_began_by_the_new_text_before_its_turn_goes_back_too() -> None:
    """It was restarted with what it needs and is starting when that fails: it must not stay on the refused text
    (world seed 147).
    """
    roll = Roll(notify("db"), notify("web", relations=needs("db")), notify("z"))
    roll.release(2)
    roll.apply(probation_s=10)
    roll.exited("web", signal=15)
    roll.cycled("db")
    roll.spawned("web")
    roll.crash("db")
    assert roll.record("rollout.failed").unit == "db"
    roll.release(1, reverts=True)
    assert roll.steps == {"db": "restarting", "web": "restarting", "z": "left-out"}
    roll.exited("web", signal=15)
    roll.up("db")
    roll.up("web")
    assert roll.fates == {"db": "reverted", "web": "reverted", "z": "left-out"}
    assert roll.spawn_of("web").command.words == ("/bin/web-1",)


def test_what_ends_by_the_text_before_while_the_rollout_goes_back_is_left_alone() -> None:
    """It never had its turn: whatever it does is its own."""
    roll = three()
    roll.apply()
    roll.crash("c")
    failing(roll, "a")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "restarting", "b": "left-out", "c": "left-out"}


def test_what_is_stopped_while_its_rollout_goes_back_stays_down() -> None:
    """A stop that is still under way when its turn comes is not turned into a restart."""
    roll = three()
    roll.apply()
    failing(roll, "a", "b")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "waiting", "b": "restarting", "c": "left-out"}
    roll.ask("stop", "a")
    assert roll.steps["a"] == "left-out"
    roll.exited("a", signal=15)
    roll.up("b")
    assert roll.fates == {"a": "left-out", "b": "reverted", "c": "left-out"}
    assert roll.launched().count("a") == 2


def test_what_was_stopped_before_the_older_texts_came_stays_down() -> None:
    """What an operator stopped, between the failure and the answer, is left out."""
    roll = three()
    roll.apply()
    failing(roll, "a", "b")
    roll.ask("stop", "a")
    roll.exited("a", signal=15)
    roll.release(1, reverts=True)
    assert roll.steps["a"] == "left-out"


def test_the_way_back_keeps_the_bound() -> None:
    """What is down is started at once, what is up waits until one of those is there."""
    roll = Roll(*(notify(name) for name in "abcd"))
    roll.release(2)
    roll.apply(n=2, probation_s=60)
    roll.cycled("a")
    roll.cycled("b")
    roll.later(60)
    roll.cycled("c")
    roll.exited("d", signal=15)
    roll.spawned("d")
    roll.crash("d")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "restarting", "b": "waiting", "c": "waiting", "d": "restarting"}
    roll.up("d")
    assert roll.steps == {"a": "restarting", "b": "restarting", "c": "waiting", "d": "done"}
    roll.cycled("b")
    assert roll.signalled() == ["c"]
    roll.cycled("c")
    roll.cycled("a")
    assert roll.fates == dict.fromkeys("abcd", "reverted")


def test_a_probation_of_the_way_forward_ended_on_the_way_back() -> None:
    """``a``, which waited for its turn to go back, was said to have gone back when its old probation was over, and ran
    on by the text that failed."""
    roll = Roll(service("a"), notify("b", restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0)))
    roll.release(2)
    roll.apply(n=1, probation_s=60)
    roll.cycled("a")
    roll.crash("b")
    roll.later(1)
    roll.spawned("b")
    roll.crash("b")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "waiting", "b": "restarting"}
    roll.spawned("b")
    roll.later(60)
    assert roll.steps == {"a": "waiting", "b": "restarting"}
    roll.says("b", READY="1")
    assert roll.signalled() == ["a"]


def test_what_failed_stayed_down_when_all_went_back_at_once() -> None:
    """Without a bound the unit whose end was the reason to go back was left out: it did not run any more."""
    roll = Roll(service("a", restart=NEVER), service("b"))
    roll.release(2)
    roll.apply(n=0, probation_s=5)
    roll.cycled("a")
    roll.cycled("b")
    roll.crash("a")
    roll.release(1, reverts=True)
    roll.up("a")
    roll.cycled("b")
    assert roll.fates == {"a": "reverted", "b": "reverted"}
    assert roll.shown("a") == "active/running/success"


def test_what_was_starting_was_called_off_before_what_comes_after_it() -> None:
    """On the way back the restarts of what is down were asked for one by one, and no order held between them."""
    again = RestartPolicy(delay_ns=SECOND_NS, jitter=0.0)
    roll = Roll(notify("a", restart=again), notify("b", relations={"after": (Dependency("a"),)}))
    roll.release(2)
    roll.apply(n=2)
    roll.cycled("a")
    roll.exited("b", signal=15)
    roll.spawned("b")
    roll.crash("a")
    roll.later(1)
    roll.spawned("a")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "restarting", "b": "restarting"}
    assert roll.signalled() == ["b"]
    roll.exited("b", signal=15)
    assert roll.signalled() == ["a"]


def test_what_begins_by_the_text_before_while_it_waits_is_not_called_off() -> None:
    """Somebody restarts ``a``, whose turn to go back has not come: its new life has the text before already, and was
    stopped at once.
    """
    again = RestartPolicy(delay_ns=SECOND_NS, jitter=0.0)
    roll = Roll(oneshot("a", remain_after_exit=True), notify("b", restart=again))
    roll.exited("a", 0)
    roll.release(2)
    roll.apply(n=1)
    roll.spawned("a")
    roll.exited("a", 0)
    roll.exited("b", signal=15)
    roll.spawned("b")
    roll.crash("b")
    roll.release(1, reverts=True)
    assert roll.steps == {"a": "waiting", "b": "restarting"}
    roll.ask("restart", "a")
    roll.spawned("a")
    assert roll.shown("a") == "activating/start/success"
    assert roll.steps == {"a": "restarting", "b": "restarting"}
    roll.exited("a", 0)
    roll.up("b")
    assert roll.fates == {"a": "reverted", "b": "reverted"}


def test_the_way_back_has_no_probation() -> None:
    """The older text was good before: what is up again by it is done."""
    roll = three()
    request = roll.apply(probation_s=60)
    failing(roll, "a")
    roll.release(1, reverts=True)
    roll.up("a")
    assert roll.outcome(request)["a"] == "failed"


def test_an_answer_that_comes_too_late_changes_no_rollout() -> None:
    """Older texts that nobody waits for any more: without a rollout, and in the middle of the next one."""
    roll = three()
    roll.release(1, reverts=True)
    assert roll.steps == {}
    roll.release(2)
    roll.apply()
    roll.release(1, "c", reverts=True)
    assert roll.steps == {"a": "restarting", "b": "waiting", "c": "waiting"}
    assert "rollout.reverted" not in roll.events()


def test_a_cancel_on_the_way_back_ends_it_there() -> None:
    """The one that failed keeps its reason; what was still to go back is not touched."""
    roll = three()
    request = roll.apply()
    failing(roll, "a", "b")
    roll.release(1, reverts=True)
    number = next(job.job for job in view.jobs(roll.manager) if job.type == "rollout")
    roll.ask("cancel", arguments={"job": number})
    assert roll.told(request)["a"] == ("canceled", "the rollout was cancelled")
    assert roll.told(request)["b"][0] == "failed"
    assert roll.fates == {"a": "waiting", "b": "restarting", "c": "left-out"}


def test_a_cancel_on_the_way_back_does_not_call_done_what_has_gone_back() -> None:
    """A unit that runs by the text before was not brought what was asked for (rich world seed 467)."""
    roll = three()
    request = roll.apply()
    failing(roll, "a", "b", "c")
    roll.release(1, reverts=True)
    roll.up("c")
    roll.cycled("a")
    assert roll.steps == {"a": "done", "b": "restarting", "c": "done"}
    number = next(job.job for job in view.jobs(roll.manager) if job.type == "rollout")
    roll.ask("cancel", arguments={"job": number})
    assert roll.told(request)["a"] == ("canceled", "a runs by the text before")
    assert roll.told(request)["b"] == ("canceled", "the rollout was cancelled; its restart goes on")
    assert roll.fates == {"a": "reverted", "b": "restarting", "c": "reverted"}


def test_the_jobs_of_the_way_back_say_why() -> None:
    """Whoever asks why a unit is restarted learns that its release was taken back."""
    roll = three()
    roll.apply(probation_s=5)
    roll.cycled("a")
    roll.crash("a")
    roll.release(1, reverts=True)
    order = roll.manager.ledger.state("a").order
    assert order is not None
    assert order.reason == "apply goes back: a did not stay up (exit-code): its main process exited with code 1"

"""Rollouts: how many are down at a time, what lets the next one begin, what ends the way forward, and the way back."""

from msgspec.structs import replace

from supervisord_py.core import view
from supervisord_py.core.actions import Reply, RevertUnits
from supervisord_py.core.graph import Graph
from supervisord_py.core.manager import Manager
from supervisord_py.core.rollout import in_order
from supervisord_py.model.unit import Unit
from supervisord_py.testing.playbook import (
    Playbook,
    Told,
    Wanted,
    command,
    exited,
    manager_dies,
    notify,
    playbook,
    ready,
    record,
    refusal,
    reply,
    shutdown,
    signal,
    spawn,
    spawned,
    stop,
    wait,
)
from tests.unit.core.core_rig import commands, needs, service
from tests.unit.core.core_rig import notify as notifying

WORKERS = ("w@1", "w@2", "w@3")


def newer(unit: Unit) -> Unit:
    """The same unit with another command: only a restart brings it."""
    assert unit.service is not None
    return replace(unit, service=replace(unit.service, exec_start=commands(f"/bin/{unit.name}-2")))


def load(*units: Unit, reverts: bool = False) -> Told:
    return Told("load", lambda scene: [scene.load(units, reverts=reverts)])


def roll(*units: str, verb: str = "apply", n: int = 1, probation_s: int = 0, reverts: bool = True) -> Told:
    return command(
        verb,
        *units,
        arguments={"max_unavailable": n, "probation_ns": probation_s * 1_000_000_000, "reverts": reverts},
    )


def up(*units: Unit) -> Playbook:
    """A conversation with units that are up by their old text."""
    story = playbook(units)
    story = story >> command("start", *(unit.name for unit in units))
    for unit in units:
        story = story << spawn(unit.name)
    for unit in units:
        story = story >> ready(unit.name)
    return story


def cycled(story: Playbook, name: str) -> Playbook:
    """The old process of a unit ends and a new one begins."""
    return story >> exited(name, "SIGTERM") << spawn(name)


OLD = tuple(notifying(name) for name in WORKERS)
NEW = tuple(newer(unit) for unit in OLD)


def test_one_at_a_time_and_each_waits_for_ready() -> None:
    """With one unavailable at most, the next unit is stopped when the one before says READY, and not before."""
    story = up(*OLD) >> load(*NEW)
    story = story >> roll() << record("rollout.started", units=list(WORKERS)) << signal("w@1")
    story = cycled(story, "w@1") >> spawned("w@1") >> notify("w@1", READY="1") << signal("w@2")
    story = cycled(story, "w@2") >> spawned("w@2") >> notify("w@2", READY="1") << signal("w@3")
    story = cycled(story, "w@3") >> spawned("w@3")
    assert story >> notify("w@3", READY="1") << record("rollout.finished", result="done") << reply("w@1", "done")


def test_two_at_a_time() -> None:
    """With two unavailable, two are stopped at once, and each that is ready lets another begin."""
    story = up(*OLD) >> load(*NEW) >> roll(n=2) << signal("w@1") << signal("w@2")
    story = cycled(story, "w@2") >> notify("w@2", READY="1") << signal("w@3")
    story = cycled(story, "w@1") >> notify("w@1", READY="1")
    story = cycled(story, "w@3")
    assert story >> notify("w@3", READY="1") << reply("w@3", "done")


def test_all_at_once_without_a_bound() -> None:
    """Not rolling, all are restarted in one transaction."""
    story = up(*OLD) >> load(*NEW) >> roll(n=0) << signal("w@1") << signal("w@2") << signal("w@3")
    for name in WORKERS:
        story = cycled(story, name) >> notify(name, READY="1")
    assert story >> roll(n=0) << reply_to_nothing()


def reply_to_nothing() -> Wanted:
    return Wanted("reply to nothing", Reply, lambda item: item.refusal is None and not item.outcomes)


def test_all_at_once_a_failure_is_told_when_all_are() -> None:
    """Without a probation nothing goes back, and what became of each is said."""
    story = up(*OLD) >> load(*NEW) >> roll(n=0, reverts=False) << signal("w@1") << signal("w@2") << signal("w@3")
    story = cycled(story, "w@1") >> exited("w@1", 3) << record("rollout.failed", "w@1", reverts=False)
    story = cycled(cycled(story, "w@2") >> notify("w@2", READY="1"), "w@3")
    assert story >> notify("w@3", READY="1") << reply("w@3", "done")
    assert story.scene.manager.ledger.rollout is None


def test_all_at_once_on_probation_all_go_back() -> None:
    """Every unit that was restarted is restarted again by its older text, at once too."""
    story = up(*OLD) >> load(*NEW) >> roll(n=0, probation_s=30) << signal("w@1") << signal("w@2") << signal("w@3")
    for name in WORKERS:
        story = cycled(story, name) >> notify(name, READY="1")
    story = story >> wait("29s") >> exited("w@3", 1) << revert("w@3")
    story = story >> load(*OLD, reverts=True) << signal("w@1") << signal("w@2") << spawn("w@3")
    story = cycled(cycled(story, "w@1"), "w@2") >> notify("w@1", READY="1") >> notify("w@2", READY="1")
    assert story >> notify("w@3", READY="1") << reply("w@3", "failed")


def test_only_what_changed_in_what_a_process_got_is_restarted() -> None:
    """A unit with another description, one that did not change and one that is down are left alone."""
    a, b, c, d = (service(name) for name in "abcd")
    story = playbook((a, b, c, d)) >> command("start", "a", "b", "c")
    story = story << spawn("a") << spawn("b") << spawn("c") >> spawned("a") >> spawned("b") >> spawned("c")
    story = story >> load(newer(a), replace(b, description="new words"), c, newer(d))
    assert story >> roll() << record("rollout.started", units=["a"]) << signal("a")


def test_the_next_one_waits_for_the_probation() -> None:
    """With a probation of ten seconds the second unit is stopped ten seconds after the first was ready."""
    story = up(*OLD) >> load(*NEW) >> roll(probation_s=10) << signal("w@1")
    story = cycled(story, "w@1") >> notify("w@1", READY="1") >> wait("9s") >> wait("1s") << signal("w@2")
    story = cycled(story, "w@2") >> notify("w@2", READY="1") >> wait("10s") << signal("w@3")
    story = cycled(story, "w@3") >> notify("w@3", READY="1")
    assert story >> wait("10s") << record("rollout.finished", result="done") << reply("w@3", "done")


def test_a_failure_in_the_probation_goes_back() -> None:
    """The first that does not stay up ends the way forward: older texts are asked for, and what ran by the new one is
    restarted by the old one; the others are never touched."""
    story = up(*OLD) >> load(*NEW) >> roll(probation_s=10) << signal("w@1")
    story = cycled(story, "w@1") >> notify("w@1", READY="1") >> wait("10s") << signal("w@2")
    story = cycled(story, "w@2") >> notify("w@2", READY="1") >> wait("3s")
    story = story >> exited("w@2", 7) << record("rollout.failed", "w@2", reverts=True) << revert("w@2")
    # w@2 is in its back-off, so it is not taken down by being started; w@1 waits for it.
    story = story >> load(*OLD, reverts=True) << record("rollout.reverted") << spawn("w@2")
    story = story >> notify("w@2", READY="1") << signal("w@1")
    story = cycled(story, "w@1")
    story = story >> notify("w@1", READY="1") << record("rollout.finished", result="failed")
    story = story << reply("w@2", "failed")
    assert story
    scene = story.scene
    assert all(scene.manager.ledger.texts[unit.name].service == unit.service for unit in OLD), (
        "everything runs by the old text"
    )


def revert(failed: str) -> Wanted:
    return Wanted(f"revert because of {failed}", RevertUnits, lambda action: action.failed == failed)


def test_a_start_that_fails_goes_back() -> None:
    """A new text whose process ends before READY is a failure too."""
    story = up(*OLD) >> load(*NEW) >> roll() << signal("w@1")
    story = cycled(story, "w@1") >> exited("w@1", 3) << revert("w@1")
    story = story >> load(*OLD, reverts=True) << spawn("w@1")
    assert story >> notify("w@1", READY="1") << reply("w@1", "failed")


def test_a_rolling_restart_stops_at_the_first_failure_and_does_not_go_back() -> None:
    """There is no text to go back to: the others keep running."""
    story = up(*OLD) >> roll(*WORKERS, verb="restart", reverts=False) << signal("w@1")
    story = cycled(story, "w@1") >> notify("w@1", READY="1") << signal("w@2")
    story = cycled(story, "w@2")
    story = story >> exited("w@2", 3) << record("rollout.failed", "w@2", reverts=False)
    assert story << record("rollout.finished", result="failed") << reply("w@3", "canceled")


def test_the_new_manager_goes_on() -> None:
    """A manager that dies in the middle is followed by one that knows who is next, and whom it asked for what."""
    story = up(*OLD) >> load(*NEW) >> roll(probation_s=10) << signal("w@1") >> manager_dies()
    story = cycled(story, "w@1") >> manager_dies() >> notify("w@1", READY="1") >> manager_dies()
    story = story >> wait("10s") << signal("w@2") >> manager_dies()
    story = cycled(story, "w@2") >> exited("w@2", 1) << revert("w@2") >> manager_dies()
    assert story
    restored = story.scene.manager
    assert [action for action in restored.pending_actions() if isinstance(action, RevertUnits)]
    after = story.scene.load(OLD, reverts=True)
    assert "rollout.reverted" in [record.event for record in after.effects.records]
    assert restored.pending_actions() == []


def test_a_second_one_is_refused_and_the_first_can_be_cancelled() -> None:
    """There is one rollout at a time; cancelling any of its numbers ends it where it is."""
    story = up(*OLD) >> load(*NEW) >> roll() << signal("w@1") >> roll() << refusal("Busy")
    assert story
    manager: Manager = story.scene.manager
    rows = [job for job in view.jobs(manager) if job.type == "rollout"]
    assert [(row.unit, row.state, row.waiting_for) for row in rows] == [
        ("w@1", "running", ()),
        ("w@2", "waiting", ("w@1",)),
        ("w@3", "waiting", ("w@1",)),
    ]
    done = story.scene.handle(story.scene.request("cancel", arguments={"job": rows[2].job}))
    (first, second) = done.effects.replies
    results = {outcome.unit: outcome.result for each in (first, second) for outcome in each.outcomes}
    assert results == {"w@1": "canceled", "w@2": "canceled", "w@3": "canceled"}
    assert [job for job in view.jobs(manager) if job.type == "rollout"] == []


def test_a_unit_that_somebody_stops_is_left_out() -> None:
    """What an operator stops in its probation is no failure, and is not started again."""
    story = up(*OLD) >> load(*NEW) >> roll(probation_s=60) << signal("w@1")
    story = cycled(story, "w@1") >> notify("w@1", READY="1") >> stop("w@1") << signal("w@1")
    story = story >> exited("w@1", "SIGTERM") << signal("w@2")
    assert story


def test_dependencies_go_first_and_are_not_restarted_twice() -> None:
    """A unit that was restarted with what it requires, by the new text, is not restarted again when its turn comes."""
    db, api = service("db"), service("api", relations=needs("db"))
    story = playbook((db, api)) >> command("start", "api") << spawn("db") >> spawned("db") << spawn("api")
    story = story >> spawned("api") >> load(newer(db), newer(api))
    story = story >> roll() << record("rollout.started", units=["db", "api"]) << signal("api")
    story = story >> exited("api", "SIGTERM") << signal("db") >> exited("db", "SIGTERM") << spawn("db")
    story = story >> spawned("db") << spawn("api")
    assert story >> spawned("api") << record("rollout.finished", result="done") << reply("api", "done")


def test_what_fails_with_the_unit_that_it_requires_is_a_failure_too() -> None:
    """A unit that is restarted along, before its turn, and does not come up by the new text makes all go back."""
    db, api = service("db"), service("api", relations=needs("db"))
    story = playbook((db, api)) >> command("start", "api") << spawn("db") >> spawned("db") << spawn("api")
    story = story >> spawned("api") >> load(newer(db), newer(api)) >> roll(probation_s=10) << signal("api")
    story = story >> exited("api", "SIGTERM") << signal("db") >> exited("db", "SIGTERM") << spawn("db")
    story = story >> spawned("db") << spawn("api") >> exited("api", 1) << record("rollout.failed", "api")
    assert story << revert("api")


def test_a_unit_that_keeps_failing_by_the_old_text_does_not_stop_the_new_one() -> None:
    """It is what the new text may mend: its own restarts are no failure of the rollout."""
    db, api = service("db"), service("api")
    story = playbook((db, api)) >> command("start", "api", "db") << spawn("api") << spawn("db")
    story = story >> spawned("db") >> spawned("api") >> load(newer(db), newer(api))
    story = story >> command("apply", arguments={"max_unavailable": 1, "probation_ns": 60_000_000_000})
    story = story << signal("api") >> exited("api", "SIGTERM") << spawn("api") >> spawned("api")
    assert story >> exited("db", 1) << record("unit.restart-scheduled", "db")
    assert story.scene.manager.ledger.rollout is not None
    assert story.scene.manager.ledger.rollout.failed is None


def test_the_shutdown_ends_it() -> None:
    """Nothing is restarted any more, and who waited is told."""
    story = up(*OLD) >> load(*NEW) >> roll() << signal("w@1")
    story = story >> shutdown() << signal("w@2") << signal("w@3")
    assert story << record("rollout.finished", result="canceled") << reply("w@2", "canceled")


def test_a_plan_says_the_order_and_does_nothing() -> None:
    """Who would be restarted, one after the other, and because of which key."""
    story = up(*OLD) >> load(*NEW)
    story = story >> command("apply", plan=True, arguments={"max_unavailable": 1})
    assert story << reply("w@1", "queued")
    assert story.scene.manager.ledger.rollout is None


def test_order_is_that_of_dependencies_through_units_that_stay() -> None:
    """What stands between two units orders them too; numbers are compared as numbers."""
    units = {
        "web": service("web", relations=needs("mid")),
        "mid": service("mid", relations=needs("zdb")),
        "zdb": service("zdb"),
        "w@2": service("w@2"),
        "w@10": service("w@10"),
    }
    assert in_order(Graph(units), ("web", "zdb", "w@10", "w@2")) == ["w@2", "w@10", "zdb", "web"]


def test_a_probation_is_shifted_with_the_clock() -> None:
    """A state that another boot's clock wrote: the end of the probation is as far away as it was."""
    story = up(*OLD) >> load(*NEW) >> roll(probation_s=10) << signal("w@1")
    assert cycled(story, "w@1") >> notify("w@1", READY="1")
    scene = story.scene
    at_ns = scene.manager.deadline_ns()
    assert at_ns is not None
    moved = Manager.restore(scene.manager.snapshot(), scene.units, shift_ns=5_000_000_000)
    assert moved.ledger.rollout is not None
    assert scene.manager.ledger.rollout is not None
    ends = [each.ledger.rollout.units["w@1"].good_at_ns for each in (scene.manager, moved)]
    assert ends[1] == ends[0] + 5_000_000_000
    assert moved.deadline_ns() == at_ns + 5_000_000_000

"""The twelve scenarios of systemd's own test of its job engine, and its test of merging and waiting.

Units a to i and a-conj, and the outcome of each start in its order, are those of systemd's src/test/test-engine.c
(v256); as there, what a scenario leaves queued is the beginning of the next (from 3 on: the queue is emptied before 2).
There nothing runs; here a job whose turn it is does, and the units are never ready. Where systemd's relations impose no
order, ours say ``ordered = false``. A cycle of what is needed is refused at load by the model: these units are given to
the core as they are. Second part: the story of test/units/TEST-03-JOBS.sh.
"""

from core_rig import Rig, notify, service

from supervisord_py.core import view
from supervisord_py.model.states import JobMode
from supervisord_py.model.unit import Dependency, Unit

FAIL = JobMode.FAIL


def loose(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(name, ordered=False) for name in names)


def after(*names: str) -> tuple[Dependency, ...]:
    return tuple(Dependency(name) for name in names)


ENGINE: list[Unit] = [
    notify("a", relations={"requires": loose("b"), "before": ("b",)}),
    notify("b", relations={"wants": loose("f")}),
    notify("c", relations={"requires": loose("a")}),
    notify("d", relations={"after": after("b"), "before": ("a",), "requires": loose("a")}),
    notify("e", relations={"after": after("b"), "before": ("a",), "wants": loose("a")}),
    notify("f"),
    notify("g", relations={"conflicts": ("e",)}),
    notify("h", relations={"wants": loose("g")}),
    notify("i", relations={"conflicts": ("a", "d"), "wants": loose("b"), "after": after("b")}),
    notify("a-conj", relations={"requires": loose("a"), "after": after("a"), "before": ("a",)}),
]


def jobs_of(rig: Rig) -> dict[str, str]:
    """Type by unit of all jobs there are."""
    return {job.unit: job.type for job in view.jobs(rig.manager)}


def refused(rig: Rig, verb: str, unit: str, mode: JobMode = JobMode.REPLACE) -> str:
    """Ask for something that cannot be; it changes nothing, and the error is returned."""
    before = jobs_of(rig)
    error = rig.refusal(rig.ask(verb, unit, mode=mode))
    assert jobs_of(rig) == before
    return error


def scenario_1() -> Rig:
    rig = Rig(*ENGINE)
    rig.ask("start", "c", wait=False)
    return rig


def scenario_3() -> Rig:
    rig = Rig(*ENGINE)
    rig.ask("start", "e", wait=False)
    return rig


def scenario_6() -> Rig:
    rig = scenario_3()
    rig.ask("start", "g", wait=False)
    return rig


START_C = {"a": "start", "b": "start", "c": "start", "f": "start"}


def test_1_start_pulls_in_what_is_required_and_wanted() -> None:
    """start c: a, b and f have a start job too."""
    assert jobs_of(scenario_1()) == START_C


def test_2_a_cycle_of_what_is_needed_cannot_be_broken() -> None:
    """start d: after b, before a, requires a, and a is before b: refused, with the path."""
    rig = Rig(*ENGINE)
    assert refused(rig, "start", "d") == "DependencyCycle"
    refusal = rig.replies[1].refusal
    assert refusal is not None
    assert set(refusal.parameters["path"]) == {"a", "b", "d"}


def test_3_a_cycle_is_broken_at_a_job_that_does_not_matter() -> None:
    """start e: the same cycle, but a is only wanted: it goes, with what only it pulled in, and e starts."""
    assert jobs_of(scenario_3()) == {"e": "start"}


def test_4_an_identical_transaction_merges_even_in_mode_fail() -> None:
    """start e once more: the same job."""
    rig = scenario_3()
    request = rig.ask("start", "e", mode=FAIL, wait=False)
    assert rig.replies[request].outcomes[0].job == 1
    assert jobs_of(rig) == {"e": "start"}


def test_5_a_conflict_with_a_queued_job_is_refused_in_mode_fail() -> None:
    """start g would stop e, which has a start job."""
    assert refused(scenario_3(), "start", "g", FAIL) == "TransactionConflict"


def test_6_and_replaces_it_in_mode_replace() -> None:
    """e's start is canceled for a stop, which g waits for."""
    rig = scenario_6()
    assert rig.record("job.finished", "e").fields["result"] == "canceled"
    assert jobs_of(rig) == {"e": "stop", "g": "start"}


def test_7_a_stop_of_a_queued_start_is_refused_in_mode_fail() -> None:
    """stop g contradicts its queued start."""
    assert refused(scenario_6(), "stop", "g", FAIL) == "TransactionConflict"


def test_8_a_restart_merges_with_it() -> None:
    """restart g in mode fail: one job that does both; its stop half is done at once, because g is down."""
    rig = scenario_6()
    number = next(job.job for job in view.jobs(rig.manager) if job.unit == "g")
    request = rig.ask("restart", "g", mode=FAIL, wait=False)
    assert [(each.job, each.job_type) for each in rig.replies[request].outcomes] == [(number, "restart")]
    assert jobs_of(rig) == {"e": "stop", "g": "start"}


def test_9_a_stop_replaces_it_in_mode_replace() -> None:
    """stop g: the queued start goes, and a unit that is down is stopped at once."""
    rig = scenario_6()
    request = rig.ask("stop", "g")
    assert rig.outcome(request) == {"g": "done"}
    assert jobs_of(rig) == {"e": "stop"}


def test_10_a_unit_that_is_only_wanted_is_left_out_in_mode_fail() -> None:
    """start h while e has its start: h wants g, g would stop e: h does without g, and starts."""
    rig = scenario_3()
    rig.ask("start", "h", mode=FAIL, wait=False)
    assert jobs_of(rig) == {"e": "start", "h": "start"}


def test_11_conflicts_of_what_is_asked_for_stop_others() -> None:
    """start i: a and d are stopped, b is started."""
    rig = Rig(*ENGINE)
    rig.ask("start", "a", "d", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.up("a")
    rig.up("d")
    rig.ask("start", "i", mode=FAIL, wait=False)
    found = jobs_of(rig)
    assert (found["a"], found["d"], found["b"], found["i"]) == ("stop", "stop", "start", "start")


def test_12_a_unit_before_and_after_what_it_needs_is_refused() -> None:
    """start a-conj: a cycle of two that are both needed."""
    assert refused(Rig(*ENGINE), "start", "a-conj") == "DependencyCycle"


# TEST-03-JOBS


def hello() -> Rig:
    """hello-after-sleep is started: its start waits for sleep, which takes its time (a oneshot until it is ready)."""
    rig = Rig(
        notify("sleep"),
        service("hello-after-sleep", relations={"after": after("sleep"), "requires": loose("sleep")}),
        service("hello"),
    )
    rig.ask("start", "hello-after-sleep", wait=False)
    return rig


def test_merging_start_jobs_waits_for_the_one_that_is_there() -> None:
    """A second start of a unit whose start waits is that job: both end when sleep is up."""
    rig = hello()
    second = rig.ask("start", "hello-after-sleep")
    assert jobs_of(rig) == {"sleep": "start", "hello-after-sleep": "start"}
    rig.up("sleep")
    rig.spawned("hello-after-sleep")
    assert rig.outcome(second) == {"hello-after-sleep": "done"}


def test_ignore_dependencies_does_not_wait_for_the_order_of_a_queued_job() -> None:
    """A unit with no relation to the queue starts at once, in either mode."""
    rig = hello()
    rig.ask("start", "hello", mode=JobMode.IGNORE_DEPENDENCIES, wait=False)
    assert rig.launched() == ["sleep", "hello"]


def test_restarting_what_is_queued_keeps_one_job() -> None:
    """A restart merges into the waiting start, and the unit is started once, not stopped first."""
    rig = hello()
    request = rig.ask("restart", "hello-after-sleep")
    assert jobs_of(rig) == {"sleep": "start", "hello-after-sleep": "start"}
    rig.up("sleep")
    rig.spawned("hello-after-sleep")
    assert rig.outcome(request) == {"hello-after-sleep": "done"}
    assert rig.launched() == ["sleep", "hello-after-sleep"]


def test_a_stop_of_the_queued_unit_ends_its_start_only() -> None:
    """sleep goes on; the waiting start is canceled."""
    rig = hello()
    first = rig.ask("start", "hello-after-sleep")
    rig.ask("stop", "hello-after-sleep")
    assert rig.outcome(first) == {"hello-after-sleep": "canceled"}
    assert jobs_of(rig) == {"sleep": "start"}


def test_waiting_for_a_unit_that_fails_ends_with_its_failure() -> None:
    """start of a oneshot-like unit that fails before it is ready: whoever waits is told."""
    rig = hello()
    waiting = rig.ask("start", "hello-after-sleep")
    rig.spawned("sleep")
    rig.crash("sleep")
    assert rig.outcome(waiting) == {"hello-after-sleep": "dependency"}

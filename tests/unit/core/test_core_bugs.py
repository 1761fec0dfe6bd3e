"""Bugs that the simulated world has found, by the number of its report; each was red once."""

import pytest
from core_rig import Rig, needs, notify, oneshot, service

from supervisord_py.core import view
from supervisord_py.core.actions import KillTree, SignalProcesses
from supervisord_py.core.consequences import RELATED_BURST
from supervisord_py.core.events import DeadlineReached, ExitStatus, NotifyReceived, ProcessExited
from supervisord_py.model.states import JobMode, KillMode, Restart, Role, Until
from supervisord_py.model.unit import SECOND_NS, Command, Condition, Dependency, KillPolicy, RestartPolicy

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def test_003_requests_are_answered_when_the_supervisor_gives_up() -> None:
    """A stop that is still waited for when the time of the shutdown is over gets its reply (seed 92)."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.shut_down(1)
    stop = rig.ask("stop", "web")
    rig.later(2)
    assert rig.outcome(stop) == {"web": "canceled"}
    assert view.jobs(rig.manager) == []


@pytest.mark.parametrize("when", ["at a stop", "at a crash"])
def test_004_mixed_does_not_kill_when_nothing_may_be_killed(when: str) -> None:
    """kill-mode mixed with send-sigkill = false asks the leftovers and is stuck at the time-out (seeds 96, 193)."""
    policy = KillPolicy(mode=KillMode.MIXED, send_sigkill=False)
    rig = Rig(service("web", kill=policy, timeout_stop_ns=2 * SECOND_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    if when == "at a stop":
        rig.ask("stop", "web")
    rig.exited("web", signal=15, empty=False)
    assert rig.did(KillTree) == []
    assert rig.did(SignalProcesses)[0].signal == 15
    rig.later(2.1)
    assert rig.status("web").sub_state == "stuck"


def test_005_a_daemon_that_ended_well_is_not_ready() -> None:
    """An automatic start of a dependent starts it again and waits for it; only a oneshot's success lasts (seed 199)."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.spawned("web")
    rig.exited("db", 0)
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["db", "web", "db"]


def test_005_a_oneshot_is_judged_by_the_text_of_its_life() -> None:
    """A reload that makes a oneshot of a daemon does not make its clean exit a success (seed 199)."""
    rig = Rig(service("setup"), service("web", relations=needs("setup")))
    rig.ask("start", "web")
    rig.spawned("setup")
    rig.spawned("web")
    rig.exited("setup", 0)
    rig.load(oneshot("setup"), service("web", relations=needs("setup")))
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["setup", "web", "setup"]


def hand_over(rig: Rig, name: str, pid: int) -> None:
    spawn_id = rig.spawn_of(name, Role.MAIN).spawn_id
    rig.happen(NotifyReceived(name, spawn_id, 101, {"MAINPID": str(pid)}, main_pid=pid))


def test_main_pid_is_shown_and_its_former_process_decides_nothing() -> None:
    """After MAINPID the old process may end; the new one's end is the unit's."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    spawn_id = rig.spawn_of("web").spawn_id
    hand_over(rig, "web", 555)
    assert rig.status("web").pid == 555
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(code=0), main=False, tree_empty=False))
    assert rig.record("unit.exited", "web").fields["handed_over"] is True
    assert rig.status("web").active_state == "active"
    rig.happen(ProcessExited(spawn_id, 555, ExitStatus(code=1)))
    assert rig.shown("web") == "activating/auto-restart/exit-code"


def test_006_the_former_main_process_may_end_last() -> None:
    """Its exit names the unit and its own life, and an empty tree is believed (seeds 309, 330, 482)."""
    rig = Rig(notify("web"))
    rig.ask("start", "web")
    rig.up("web")
    spawn_id, invocation = rig.spawn_of("web").spawn_id, rig.status("web").invocation
    hand_over(rig, "web", 555)
    rig.ask("stop", "web")
    rig.happen(ProcessExited(spawn_id, 555, ExitStatus(signal=15), tree_empty=False))
    assert rig.status("web").active_state == "deactivating"
    rig.happen(ProcessExited(spawn_id, 101, ExitStatus(signal=15), main=False, tree_empty=True))
    exited = [record for record in rig.records if record.event == "unit.exited"]
    assert [(record.unit, record.invocation) for record in exited] == [("web", invocation)] * 2
    assert rig.shown("web") == "inactive/dead/success"


def test_007_a_conflict_holds_when_the_turn_comes() -> None:
    """A start waits for a conflicting unit that is ending, also when its stop job was called off (seed 412)."""
    rig = Rig(service("web"), service("api", relations={"conflicts": ("web",)}))
    rig.ask("start", "web")
    rig.spawned("web")
    start = rig.ask("start", "api")
    rig.ask("reload", "web")
    assert rig.launched() == ["web"]
    rig.exited("web", signal=15)
    assert rig.launched() == ["web", "api"]
    rig.spawned("api")
    assert rig.outcome(start) == {"api": "done"}


def test_007_a_conflicting_unit_that_is_up_after_all_ends_the_start() -> None:
    """If the stop was called off before it began, the start ends with the reason; never are both up."""
    rig = Rig(
        service("web"), service("front", relations=needs("web")), service("api", relations={"conflicts": ("web",)})
    )
    rig.ask("start", "front")
    rig.spawned("web")
    rig.spawned("front")
    start = rig.ask("start", "api")
    job = next(job.job for job in view.jobs(rig.manager) if job.unit == "web")
    rig.ask("cancel", arguments={"job": job})
    assert rig.outcome(start) == {"api": "canceled"}
    assert "conflicts with web" in rig.replies[start].outcomes[0].message
    assert rig.launched() == ["web", "front"]


def test_conflicting_units_that_are_both_down_do_not_both_start() -> None:
    """Two starts of one transaction that conflict: one is dropped although neither is up yet (seed 34)."""
    rig = Rig(service("cache"), service("queue", relations={"conflicts": ("cache",)}), start=True)
    assert len(rig.launched()) == 1


def test_a_start_that_was_named_is_what_follows_a_life() -> None:
    """No back-off is announced for a unit whose start is waiting already (seed 17)."""
    rig = Rig(service("web", exec_stop_post=(), restart=RestartPolicy(delay_ns=50 * SECOND_NS, jitter=0.0)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 1, empty=False)
    start = rig.ask("start", "web")
    rig.emptied("web")
    assert "unit.restart-scheduled" not in rig.events("web")
    rig.spawned("web")
    assert rig.outcome(start) == {"web": "done"}


def test_what_only_merged_with_a_named_start_keeps_its_count() -> None:
    """A unit that is pulled in during its back-off does not lose its failures by the restart that follows (seed 35)."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "db")
    rig.up("db")
    rig.crash("db")
    rig.ask("start", "web")
    rig.later(1)
    rig.up("db")
    assert rig.status("db").failures == 1


def test_an_ordered_restart_is_not_hurried_by_one_that_ignores_the_order() -> None:
    """A restart with dependencies that merges into one without them keeps its order (seed 147)."""
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.up("db")
    rig.spawned("web")
    rig.ask("restart", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.exited("db", 0)
    rig.ask("restart", "web")
    rig.exited("web", signal=15)
    assert rig.launched() == ["db", "web", "db"]


def test_what_was_made_after_the_signal_is_signalled_too() -> None:
    """A grandchild that was born between SIGTERM and main's end is asked again when main is gone (seed 116)."""
    rig = Rig(service("web", timeout_stop_ns=None))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15, empty=False)
    assert rig.did(SignalProcesses)[0].signal == 15


def test_deadlines_of_one_moment_are_ordered() -> None:
    """Two back-offs that are over when a late manager looks: the dependency starts first (seed 175)."""

    def policy(seconds: int) -> RestartPolicy:
        return RestartPolicy(delay_ns=seconds * SECOND_NS, jitter=0.0)

    rig = Rig(
        notify("db", restart=RestartPolicy(delay_ns=2 * SECOND_NS, jitter=0.0)),
        service(
            "web", relations={"after": needs("db")["requires"]}, restart=RestartPolicy(delay_ns=SECOND_NS, jitter=0.0)
        ),
    )
    rig.ask("start", "db", "web")
    rig.up("db")
    rig.spawned("web")
    rig.crash("db")
    rig.crash("web")
    rig.mono_ns += 10 * SECOND_NS
    rig.happen(DeadlineReached())
    assert rig.launched() == ["db", "web", "db"]


def test_an_operators_stop_merges_into_the_one_of_the_bond() -> None:
    """A running stop that followed from a bond, and is then asked for, keeps the unit down."""
    rig = Rig(service("db"), service("web", relations={"binds_to": needs("db")["requires"]}))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    stop = rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.later(1)
    rig.spawned("db")
    assert rig.outcome(stop) == {"web": "done"}
    assert rig.launched() == ["db", "web", "db"]


def test_009_a_bond_that_is_mended_before_the_stop_is_over() -> None:
    """db is back before the stop of web, which is bound to it, has ended: web comes back at once (seed 203)."""
    rig = Rig(service("db"), service("web", relations={"binds_to": needs("db", ordered=False)["requires"]}))
    rig.ask("start", "web")
    rig.spawned("db")
    rig.spawned("web")
    rig.crash("db")
    rig.later(1)
    rig.spawned("db")
    assert rig.status("web").active_state == "deactivating"
    rig.exited("web", signal=15)
    assert rig.launched() == ["web", "db", "db", "web"]


def test_008_the_reason_of_a_stop_is_the_true_one() -> None:
    """unit.stopping says who asked, or from what it followed."""
    relations = {"requires": needs("db")["requires"]}
    rig = Rig(service("db"), service("web", relations=relations), service("x", relations={"conflicts": ("web",)}))

    def up() -> None:
        rig.ask("start", "web")
        for name in ("db", "web"):
            if rig.status(name).sub_state == "start":
                rig.spawned(name)

    def reason() -> str:
        return str(rig.record("unit.stopping", "web").fields["reason"])

    up()
    rig.ask("stop", "web")
    assert reason() == "a stop was asked for"
    rig.exited("web", signal=15)
    up()
    rig.ask("restart", "db")
    assert reason() == "db, which it needs, is restarted"
    rig.exited("web", signal=15)
    rig.exited("db", signal=15)
    rig.spawned("db")
    rig.spawned("web")
    rig.ask("start", "x")
    assert reason() == "x, which conflicts with it, is started"
    rig.exited("web", signal=15)
    rig.spawned("x")
    rig.ask("stop", "x")
    rig.exited("x", signal=15)
    up()
    rig.shut_down()
    assert reason() == "the supervisor is shutting down"


def test_008_why_tells_the_whole_truth() -> None:
    """A stuck unit that has ended after all, a unit at its limit, a cancelled start: each says what is so now."""
    rig = Rig(
        service("web", timeout_stop_ns=SECOND_NS),
        notify("slow", restart=NEVER),
        service("late", relations=needs("slow")),
    )
    rig.ask("start", "web")
    rig.spawned("web")
    rig.ask("stop", "web")
    rig.later(3)
    assert "does not die" in view.why(rig.manager, "web")[0].message
    rig.exited("web", signal=9)
    assert view.why(rig.manager, "web")[0].message == "it failed (timeout): it did not end within its stop time-out"
    rig.ask("start", "late")
    job = next(job.job for job in view.jobs(rig.manager) if job.unit == "late")
    rig.ask("cancel", arguments={"job": job})
    assert view.why(rig.manager, "late")[0].message == "its start was cancelled"
    rig.ask("start", "web")
    for _ in range(5):
        rig.spawned("web")
        rig.crash("web")
        rig.later(5)
    lines = view.why(rig.manager, "web")
    assert lines[0].message.startswith("it is quarantined: it has failed 5 times (exit-code)")
    assert [line.advice for line in lines] == ["supctl lives web", "supctl release web"]


def test_waiting_for_more_is_not_needing_more() -> None:
    """``requires`` until ready with ``after`` until exited waits for the exit, and needs the readiness only.

    Found by Hypothesis: the two were one edge, the unit was started because all that it required was there, failed for
    what it only waited for, and so on without end.
    """
    relations = {
        "requires": (Dependency("db", until=Until.STARTED),),
        "after": (Dependency("db", until=Until.EXITED),),
    }
    rig = Rig(oneshot("db", remain_after_exit=False), service("web", relations=relations))
    start = rig.ask("start", "web")
    rig.spawned("db")
    assert rig.launched() == ["db"]
    rig.exited("db", 0)
    rig.spawned("web")
    assert rig.outcome(start) == {"web": "done"}
    mixed = {"binds_to": (Dependency("db"),), "wants": (Dependency("db", until=Until.EXITED),)}
    rig = Rig(service("db"), service("web", relations=mixed))
    rig.ask("start", "web")
    rig.spawned("db")
    assert rig.launched() == ["db"]
    rig.exited("db", 0)
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.shown("web") == "queued/dependency/dependency"


def test_010_try_restart_of_what_others_pull_both_ways() -> None:
    """``try-restart`` of a unit at rest that two others of the request start and stop is refused, not a crash
    (seed 20157).
    """
    rig = Rig(
        service("web"),
        service("api", relations=needs("web", ordered=False)),
        service("batch", relations={"conflicts": ("web",)}),
    )
    rig.ask("start", "api")
    rig.spawned("web")
    rig.spawned("api")
    rig.exited("web", 0)
    rig.ask("start", "batch")
    rig.spawned("batch")
    request = rig.ask("try-restart", "web", "api", "batch")
    assert rig.refusal(request) == "TransactionConflict"
    assert [rig.status(name).active_state for name in ("web", "api", "batch")] == ["inactive", "active", "active"]


def test_011_units_that_start_each_other_when_they_fail_do_not_go_on_for_ever() -> None:
    """Two units that fail at once and name each other in on-failure: after a burst they are left alone, until some
    time has passed (seed 226: the job engine did not come to rest).
    """
    never = RestartPolicy(restart=Restart.NO, failures=0)
    rig = Rig(
        oneshot("db", relations={"on_failure": ("batch",)}, restart=never),
        oneshot("batch", relations={"on_failure": ("db",)}, restart=never),
    )
    request = rig.ask("start", "db")
    for count in range(1, 100):
        if len(rig.spawns) < count:
            break
        rig.failed_to_spawn(rig.spawns[-1].unit)
    assert rig.outcome(request) == {"db": "failed"}
    assert rig.shown("db") == rig.shown("batch") == "failed/failed/exit-code"
    assert len(rig.spawns) == 1 + 2 * RELATED_BURST
    assert "it was started 16 times within 10s because of other units" in rig.record("job.finished").fields["message"]
    rig.later(11)
    rig.ask("start", "db")
    rig.failed_to_spawn("db")
    assert rig.spawns[-1].unit == "batch"


def test_012_bound_to_the_start_of_a_unit_that_was_skipped() -> None:
    """A unit whose condition did not hold has not started for what has to find it started, or is bound to that
    (seed 145).
    """
    hold = (Condition("path-exists", "/x"),)
    for relation in ("requisite", "binds_to"):
        edges = (Dependency("db", until=Until.STARTED),)
        rig = Rig(service("db", relations={"conditions": hold}), service("web", relations={relation: edges}))
        rig.ask("start", "db")
        request = rig.ask("start", "web")
        rig.checked("db", condition='condition-path-exists = "/x"')
        assert rig.spawns == []
        assert rig.outcome(request)["web"] == "dependency"


def test_013_a_job_that_does_nothing_waits_for_nobody() -> None:
    """try-restart of a unit that is down, after a unit that takes its time: done at once (seed 9168: it waited, and
    was neither run nor timed out).
    """
    rig = Rig(notify("db"), service("web", relations=needs("db")))
    rig.ask("start", "db", wait=False)
    request = rig.ask("try-restart", "web")
    assert rig.outcome(request)["web"] in ("skipped", "done")


def test_014_a_hook_that_cannot_be_started_leaves_the_queued_start_alone() -> None:
    """web's start waits, in spite of what it lacks; db fails and names web: that is refused, the queued job is not
    touched (seed 9405: the unit was said to wait for a dependency while its job was queued).
    """
    rig = Rig(
        notify("log"),
        oneshot("db", relations={"on_failure": ("web",)}),
        service("web", relations={**needs("ghost"), "after": (Dependency("log"),)}),
    )
    rig.ask("start", "log", wait=False)
    request = rig.ask("start", "web", mode=JobMode.IGNORE_REQUIREMENTS)
    rig.ask("start", "db")
    rig.failed_to_spawn("db")
    assert rig.shown("web") == "queued/dependency/success"
    rig.up("log")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}


def test_015_isolate_leaves_nothing_without_what_it_requires() -> None:
    """An isolated unit wishes for api, which runs and cannot be had any more: the file of db, which it requires, is
    gone. Both are stopped (seed 1626: api stayed up while db was stopped).
    """
    db, api = service("db"), service("api", relations=needs("db"))
    page = service("page", relations={"wants": (Dependency("api"),)})
    rig = Rig(db, api, page)
    rig.ask("start", "api")
    rig.spawned("db")
    rig.spawned("api")
    rig.load(api, page)
    rig.ask("start", "page", mode=JobMode.ISOLATE)
    assert rig.shown("api") == "deactivating/stop-sigterm/success"
    rig.exited("api", signal=15)
    assert rig.shown("db") == "deactivating/stop-sigterm/success"


def test_016_a_main_process_that_has_failed_has_not_started() -> None:
    """db's main process dies while its exec-start-post runs; what is bound to its start, and comes only now, does not
    begin any more (seed 1472).
    """
    db = service("db", exec_start_post=(Command(("/opt/post",)),), restart=NEVER)
    bound = {"binds_to": (Dependency("db", until=Until.STARTED),), "after": (Dependency("log"),)}
    rig = Rig(notify("log"), db, service("web", relations=bound))
    rig.ask("start", "log", wait=False)
    request = rig.ask("start", "web")
    rig.spawned("db")
    rig.exited("db", signal=9, role=Role.MAIN, empty=False)
    rig.up("log")
    assert "web" not in rig.launched()
    rig.exited("db", 0, role=Role.START_POST)
    assert rig.outcome(request)["web"] == "dependency"


@pytest.mark.parametrize("crashes_in_start", [False, True])
def test_017_who_only_looks_for_a_unit_does_not_take_its_restart_away(crashes_in_start: bool) -> None:
    """web has to find db, which is in its back-off, and waits for db's next life. It was told that db had failed, and
    db was not restarted any more.
    """
    db = notify("db", restart=RestartPolicy(delay_ns=9 * SECOND_NS, jitter=0.0))
    rig = Rig(db, service("web", relations={"requisite": (Dependency("db"),)}))
    rig.ask("start", "db", wait=False)
    rig.spawned("db")
    if crashes_in_start:
        rig.ask("cancel", arguments={"job": 1})
        request = rig.ask("start", "web")
        rig.crash("db")
    else:
        rig.says("db", READY="1")
        rig.crash("db")
        request = rig.ask("start", "web")
    assert rig.status("db").sub_state == "auto-restart"
    rig.later(9)
    rig.spawned("db")
    assert request not in rig.replies
    rig.says("db", READY="1")
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}


def test_018_a_unit_that_somebody_restarts_is_not_told_to_have_failed() -> None:
    """While the life before a restart ends, why says that it was ordered; of what ends with what it is bound to, that
    it depends on that. Both were called failures.
    """
    db = service("db", restart=NEVER)
    rig = Rig(db, service("web", relations={"binds_to": (Dependency("db"),)}))
    rig.ask("start", "web", wait=False)
    rig.spawned("db")
    rig.spawned("web")
    rig.ask("restart", "web", wait=False)
    assert {line.kind for line in view.why(rig.manager, "web")} == {"operator"}
    rig.exited("web", signal=15)
    rig.spawned("web")
    rig.crash("db")
    assert {line.kind for line in view.why(rig.manager, "web")} == {"dependency"}

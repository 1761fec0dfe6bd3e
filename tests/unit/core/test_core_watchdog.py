"""watchdog-sec and progress-sec: what silence is held against a unit, and what is not."""

from core_rig import Rig, commands, notify, service

from supervisord_py.core.actions import LookAtProcesses, SignalProcesses
from supervisord_py.core.events import DeadlineReached, KeeperLost
from supervisord_py.model.states import Role
from supervisord_py.model.unit import SECOND_NS

MINUTE_NS = 60 * SECOND_NS


def watched(**keys: object) -> Rig:
    """A unit that is up and has to beat every minute."""
    keys.setdefault("watchdog_ns", MINUTE_NS)
    rig = Rig(notify("web", **keys))
    rig.ask("start", "web")
    rig.up("web")
    return rig


def looks(rig: Rig) -> int:
    return sum(isinstance(action, LookAtProcesses) for action in rig.actions)


def pass_silently(rig: Rig, seconds: float, *, stopped: bool = False) -> None:
    """Time passes, and whenever the manager asks, somebody looks."""
    for _ in range(round(seconds)):
        before = looks(rig)
        rig.later(1)
        if looks(rig) > before:
            rig.looked("web", stopped=stopped)


def test_b_po_3_a_unit_without_heartbeats_is_ended_and_restarted() -> None:
    rig = watched()
    assert dict(rig.spawns[0].environment)["WATCHDOG_USEC"] == "60000000"
    pass_silently(rig, 59)
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 2)
    assert rig.shown("web") == "deactivating/stop-watchdog/watchdog"
    signals = [each.signal for each in rig.actions if isinstance(each, SignalProcesses)]
    assert signals == [6], "SIGABRT, so that it leaves a trace"
    record = rig.record("unit.watchdog")
    assert record.fields["message"] == "it has given no sign of life for 1min (watchdog-sec)"
    rig.exited("web", signal=6, core=True)
    assert rig.shown("web") == "activating/auto-restart/watchdog"
    assert rig.status("web").failures == 1


def test_a_heartbeat_begins_the_time_anew() -> None:
    rig = watched()
    for _ in range(10):
        pass_silently(rig, 30)
        rig.says("web", WATCHDOG="1")
    assert looks(rig) == 0, "nobody looks at a unit that beats"
    assert rig.shown("web") == "active/running/success"


def test_b_af_2_the_watch_begins_when_the_start_is_done() -> None:
    """A long start has a time-out of its own (B-AF-2: the old counters restarted healthy agents for ever)."""
    rig = Rig(notify("web", watchdog_ns=SECOND_NS, timeout_start_ns=MINUTE_NS))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.later(50)
    assert rig.shown("web") == "activating/start/success"
    rig.says("web", READY="1")
    pass_silently(rig, 2)
    assert rig.status("web").result == "watchdog"


def test_a_stopped_process_is_not_blamed() -> None:
    """SIGSTOP for an hour: nothing happens, and it has its whole time when it runs again."""
    rig = watched()
    pass_silently(rig, 3600, stopped=True)
    assert rig.shown("web") == "active/running/success"
    told = [each for each in rig.records if each.event in ("unit.watchdog", "unit.excused")]
    assert [each.fields["message"] for each in told] == [
        "its processes are stopped: watchdog-sec waits until they run again"
    ]
    pass_silently(rig, 59)
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 30)
    assert rig.status("web").result == "watchdog"


def test_a_stop_that_is_over_before_the_end_is_seen() -> None:
    rig = watched()
    pass_silently(rig, 46, stopped=True)
    rig.later(13)
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 30)
    rig.says("web", WATCHDOG="1")
    pass_silently(rig, 40)
    assert rig.shown("web") == "active/running/success"


def test_our_own_stall_is_not_held_against_it() -> None:
    """The machine stood still for ten minutes and nobody saw it stopped: once more the same time."""
    rig = watched()
    rig.later(40)
    rig.mono_ns += 10 * MINUTE_NS
    rig.happen(DeadlineReached())
    assert looks(rig) == 0
    rig.says("web", WATCHDOG="1")
    pass_silently(rig, 50)
    assert rig.shown("web") == "active/running/success"


def test_a_machine_that_stands_still_between_question_and_answer_is_no_silence() -> None:
    """Everybody was held up, with the question about the processes on its way: once more the same time."""
    rig = watched()
    while not looks(rig):
        rig.later(1)
    rig.mono_ns += 10 * MINUTE_NS
    rig.looked("web")
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 50)
    rig.says("web", WATCHDOG="1")
    pass_silently(rig, 50)
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 20)
    assert rig.status("web").result == "watchdog"


def test_a_stall_excuses_only_once() -> None:
    rig = watched()
    rig.later(40)
    rig.mono_ns += 10 * MINUTE_NS
    rig.happen(DeadlineReached())
    pass_silently(rig, 61)
    rig.mono_ns += 10 * MINUTE_NS
    rig.happen(DeadlineReached())
    if looks(rig):
        rig.looked("web")
    pass_silently(rig, 120)
    assert rig.status("web").result == "watchdog"


def test_a_beat_while_somebody_looks_counts() -> None:
    rig = watched()
    rig.later(61)
    rig.says("web", WATCHDOG="1")
    rig.looked("web")
    assert rig.shown("web") == "active/running/success"


def test_the_process_may_ask_for_another_pause() -> None:
    rig = watched()
    rig.says("web", WATCHDOG_USEC="5000000")
    pass_silently(rig, 6)
    assert rig.status("web").result == "watchdog"
    rig.exited("web", signal=6)
    rig.later(1)
    rig.up("web")
    pass_silently(rig, 30)
    assert rig.shown("web") == "active/running/success", "what one life asked for is not the next one's"
    rig.says("web", WATCHDOG_USEC="0")
    pass_silently(rig, 200)
    assert rig.shown("web") == "active/running/success"


def test_b_po_16_a_unit_that_beats_and_does_nothing_is_stuck_too() -> None:
    """A heartbeat from a side thread proves nothing about the work (B-PO-16)."""
    rig = watched(progress_ns=2 * MINUTE_NS)
    rig.says("web", X_PROGRESS="1")
    for _ in range(5):
        pass_silently(rig, 25)
        rig.says("web", WATCHDOG="1")
    assert rig.shown("web") == "deactivating/stop-watchdog/progress"
    record = rig.record("unit.progress-stalled")
    assert record.fields["message"] == "it has done no work for 2min (progress-sec)"
    rig.exited("web", signal=6)
    assert rig.status("web").failures == 1


def test_only_work_done_is_health_where_work_is_expected() -> None:
    """Failures are forgotten ten minutes after the first sign of work, not after the start."""
    rig = Rig(service("web", progress_ns=3600 * SECOND_NS), start=True)
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    rig.later(1200)
    assert rig.status("web").failures == 1
    rig.says("web", X_PROGRESS="1")
    rig.later(601)
    assert rig.status("web").failures == 0


def test_nothing_is_watched_while_it_stops() -> None:
    rig = watched(exec_stop=commands("/bin/slow"), timeout_stop_ns=10 * MINUTE_NS)
    rig.ask("stop", "web")
    assert rig.spawns[-1].role is Role.STOP
    rig.later(300)
    assert looks(rig) == 0
    assert rig.status("web").result == "success"


def test_a_reload_is_watched_as_well() -> None:
    rig = watched(exec_reload=commands("/bin/reload"), timeout_start_ns=10 * MINUTE_NS)
    rig.ask("reload", "web")
    pass_silently(rig, 61)
    assert rig.status("web").result == "watchdog"


def test_a_process_that_has_ended_while_exec_start_post_runs_is_not_blamed_for_its_silence() -> None:
    """Its end is what the life fails by, and the command is waited for as without a watchdog."""
    rig = Rig(notify("web", watchdog_ns=MINUTE_NS, exec_start_post=commands("/bin/post")))
    rig.ask("start", "web")
    rig.up("web")
    rig.spawned("web")
    rig.exited("web", code=1, role=Role.MAIN)
    pass_silently(rig, 80)
    assert looks(rig) == 0
    assert rig.shown("web") == "activating/start-post/exit-code"
    assert rig.events("web").count("unit.watchdog") == 0


def test_what_was_said_while_no_keeper_listened_is_not_held_against_a_unit() -> None:
    """The keeper was killed: the heartbeats of that time went nowhere, and the watch begins anew."""
    rig = watched()
    pass_silently(rig, 58)
    rig.happen(KeeperLost({}))
    pass_silently(rig, 58)
    assert rig.shown("web") == "active/running/success"
    pass_silently(rig, 4)
    assert rig.status("web").result == "watchdog"

"""Stopping, killing, being stuck: the end of a life, whoever asks for it."""

import pytest
from core_rig import Rig, commands, notify, service

from supervisord_py.core.actions import KillTree, ReleaseUnit, SignalProcesses, Whom
from supervisord_py.model.states import KillMode, Restart, Role
from supervisord_py.model.unit import SECOND_NS, KillPolicy, RestartPolicy

ALWAYS = RestartPolicy(restart=Restart.ALWAYS, jitter=0.0, delay_ns=SECOND_NS)


def running(**keys: object) -> Rig:
    rig = Rig(service("web", timeout_stop_ns=2 * SECOND_NS, **keys))  # type: ignore[arg-type]
    rig.ask("start", "web")
    rig.spawned("web")
    return rig


def test_control_group_signals_everybody_and_waits_for_everybody() -> None:
    """SIGTERM then SIGCONT to the whole tree; the stop is done when the tree is empty, not when main is gone."""
    rig = running()
    request = rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    rig.exited("web", signal=15, empty=False)
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    assert request not in rig.replies
    rig.emptied("web")
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request) == {"web": "done"}
    assert KillTree("web", 9) not in rig.actions


def test_mixed_asks_main_and_kills_the_rest_as_soon_as_main_is_gone() -> None:
    """Only main is asked; what is left of the tree is killed then, without a time-out and without a failure."""
    rig = running(kill=KillPolicy(mode=KillMode.MIXED))
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses)[0].whom is Whom.MAIN
    rig.exited("web", signal=15, empty=False)
    assert rig.did(KillTree) == [KillTree("web", 9)]
    rig.emptied("web")
    assert rig.shown("web") == "inactive/dead/success"


def test_process_sweeps_nothing() -> None:
    """Main alone is asked, and what it leaves is left."""
    rig = running(kill=KillPolicy(mode=KillMode.PROCESS))
    request = rig.ask("stop", "web")
    assert rig.did(SignalProcesses)[0].whom is Whom.MAIN
    rig.exited("web", signal=15, empty=False)
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.outcome(request) == {"web": "done"}
    assert not [action for action in rig.actions if isinstance(action, KillTree)]


def test_process_mode_sends_the_final_signal_to_main_alone() -> None:
    """A main process that ignores the signal is killed by itself after the time-out."""
    rig = running(kill=KillPolicy(mode=KillMode.PROCESS))
    rig.ask("stop", "web")
    rig.later(2.1)
    spawn_id = rig.spawn_of("web").spawn_id
    assert SignalProcesses("web", 9, Whom.MAIN, spawn_id) in rig.actions
    assert not [action for action in rig.actions if isinstance(action, KillTree)]
    rig.exited("web", signal=9, empty=False)
    assert rig.shown("web") == "failed/failed/timeout"


def test_the_kill_comes_at_the_time_out_and_not_before() -> None:
    """Who ignores SIGTERM is killed after timeout-stop; the stop is done, and the unit has failed with timeout."""
    rig = running()
    request = rig.ask("stop", "web")
    rig.later(1.99)
    assert KillTree("web", 9) not in rig.actions
    rig.later(0.02)
    assert KillTree("web", 9) in rig.actions
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/timeout"
    assert rig.outcome(request) == {"web": "done"}


def test_final_signal_and_kill_signal_are_the_units() -> None:
    """kill-signal first, final-kill-signal after the time-out."""
    rig = running(kill=KillPolicy(signal=2, final_signal=3))
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses)[0].signal == 2
    rig.later(2.1)
    assert KillTree("web", 3) in rig.actions


def test_a_process_that_does_not_die_makes_the_unit_stuck() -> None:
    """After the final signal and its time-out: unit.stuck, the stop fails, and no second copy is ever started."""
    rig = running()
    stop = rig.ask("stop", "web")
    rig.later(5)
    assert rig.shown("web") == "deactivating/stuck/timeout"
    assert rig.outcome(stop) == {"web": "failed"}
    assert "unit.stuck" in rig.events("web")
    start = rig.ask("start", "web")
    assert rig.outcome(start) == {"web": "failed"}
    assert rig.launched() == ["web"]
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/timeout"
    rig.ask("start", "web")
    assert rig.launched() == ["web", "web"]


def test_a_stop_of_a_stuck_unit_tries_again() -> None:
    """The operator's stop kills once more and waits once more."""
    rig = running()
    rig.ask("stop", "web")
    rig.later(5)
    stop = rig.ask("stop", "web")
    assert rig.did(KillTree) == [KillTree("web", 9)]
    rig.exited("web", signal=9)
    assert rig.outcome(stop) == {"web": "done"}


def test_send_sigkill_false_is_respected() -> None:
    """Nothing is killed: the unit is stuck until its processes end."""
    rig = running(kill=KillPolicy(send_sigkill=False))
    rig.ask("stop", "web")
    rig.later(10)
    assert rig.shown("web") == "deactivating/stuck/timeout"
    assert not [action for action in rig.actions if isinstance(action, KillTree)]
    rig.exited("web", 0)
    assert rig.shown("web") == "failed/failed/timeout"


def test_a_crash_with_processes_left_ends_them_before_the_restart() -> None:
    """The next life begins only when the tree of the last is empty, stop-post included."""
    rig = running(exec_stop_post=commands("post"), restart=ALWAYS)
    rig.exited("web", 1, empty=False)
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 15, Whom.ALL, then_continue=True)]
    rig.emptied("web")
    assert rig.spawns[-1].role is Role.STOP_POST
    rig.exited("web", 0)
    assert rig.shown("web") == "activating/auto-restart/exit-code"
    rig.later(1)
    assert rig.launched() == ["web", "web"]


def test_what_stop_post_leaves_is_ended_too() -> None:
    """final-sigterm, final-sigkill, and only then the end."""
    rig = running(exec_stop_post=commands("post"))
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.exited("web", 0, empty=False)
    assert rig.shown("web") == "deactivating/final-sigterm/success"
    rig.later(2.1)
    assert rig.shown("web") == "deactivating/final-sigkill/timeout"
    rig.emptied("web")
    assert rig.shown("web") == "failed/failed/timeout"


def test_exec_stop_is_bounded() -> None:
    """An exec-stop that hangs is ended with the rest after timeout-stop, and that is the failure."""
    rig = running(exec_stop=commands("stop"))
    rig.ask("stop", "web")
    rig.spawned("web")
    rig.later(2.1)
    assert rig.shown("web") == "deactivating/stop-sigterm/timeout"
    rig.exited("web", signal=15, role=Role.STOP, empty=False)
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.shown("web") == "failed/failed/timeout"


def test_a_failing_exec_stop_is_a_failure_and_the_signal_follows() -> None:
    """The main process is ended all the same."""
    rig = running(exec_stop=commands("stop", "never"))
    rig.ask("stop", "web")
    rig.exited("web", 1, role=Role.STOP, empty=False)
    assert rig.did(SignalProcesses)[0].signal == 15
    rig.exited("web", signal=15, role=Role.MAIN)
    assert rig.shown("web") == "failed/failed/exit-code"


def test_a_stop_before_ready_needs_no_exec_stop() -> None:
    """What was not fully started gets the signal at once."""
    rig = Rig(notify("web", exec_stop=commands("stop"), exec_stop_post=commands("post")))
    start = rig.ask("start", "web")
    rig.spawned("web")
    stop = rig.ask("stop", "web")
    assert rig.outcome(start) == {"web": "canceled"}
    assert rig.did(SignalProcesses)[0].signal == 15
    rig.exited("web", signal=15)
    rig.exited("web", 0)
    assert [action.command.words[0] for action in rig.spawns] == ["/bin/web", "post"]
    assert rig.outcome(stop) == {"web": "done"}


def test_a_stop_before_the_program_runs_still_reaches_it() -> None:
    """A stop between spawn and exec signals the spawn id; nothing is started after it."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses)
    rig.spawned("web")
    assert rig.shown("web") == "deactivating/stop-sigterm/success"
    rig.exited("web", signal=15)
    assert rig.shown("web") == "inactive/dead/success"


def test_stop_wins_over_a_pending_restart() -> None:
    """A stop during the back-off ends it: nothing comes back."""
    rig = running(restart=ALWAYS)
    rig.crash("web")
    assert rig.shown("web") == "activating/auto-restart/exit-code"
    stop = rig.ask("stop", "web")
    assert rig.outcome(stop) == {"web": "done"}
    assert rig.did(ReleaseUnit) == [ReleaseUnit("web")]
    rig.later(60)
    assert rig.launched() == ["web"]
    assert rig.status("web").active_state == "inactive"


def test_a_stopped_service_is_not_restarted_whatever_its_policy() -> None:
    """restart = always does not bring back what somebody stopped."""
    rig = running(restart=ALWAYS)
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    rig.later(60)
    assert rig.launched() == ["web"]


def test_a_stop_while_it_is_ending_by_itself_forbids_the_restart() -> None:
    """The stop comes between crash and back-off, and wins."""
    rig = running(restart=ALWAYS, exec_stop_post=commands("post"))
    rig.crash("web")
    stop = rig.ask("stop", "web")
    rig.exited("web", 0)
    assert rig.outcome(stop) == {"web": "done"}
    rig.later(60)
    assert rig.launched() == ["web"]


def test_restart_is_one_job() -> None:
    """A restart stops, starts, and is done when the new life is up: one job, one result."""
    rig = running()
    request = rig.ask("restart", "web")
    rig.exited("web", signal=15)
    assert request not in rig.replies
    rig.spawned("web")
    assert rig.outcome(request) == {"web": "done"}
    assert [record.fields["type"] for record in rig.records if record.event == "job.finished"] == ["start", "start"]


def test_restart_of_a_stopped_unit_is_a_start() -> None:
    """And try-restart of one is nothing."""
    rig = Rig(service("web"))
    skipped = rig.ask("try-restart", "web")
    assert rig.outcome(skipped) == {"web": "skipped"}
    rig.ask("restart", "web")
    assert rig.launched() == ["web"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"exec_reload": commands("r")}, Role.RELOAD), ({}, None)],
    ids=["can reload", "cannot"],
)
def test_reload_or_restart_does_what_the_unit_can(keys: dict[str, object], expected: Role | None) -> None:
    """It reloads where there is an exec-reload, restarts where there is none, and starts what is down."""
    rig = running(**keys)
    rig.ask("reload-or-restart", "web")
    if expected is None:
        assert rig.shown("web") == "deactivating/stop-sigterm/success"
    else:
        assert rig.spawns[-1].role is expected
    down = Rig(service("web"))
    down.ask("reload-or-restart", "web")
    assert down.launched() == ["web"]


def test_a_start_while_stopping_waits_for_the_end() -> None:
    """The new life begins when the old one is over; the stop is called off in words, the processes are not."""
    rig = running()
    stop = rig.ask("stop", "web")
    start = rig.ask("start", "web")
    assert rig.outcome(stop) == {"web": "canceled"}
    assert rig.launched() == ["web"]
    rig.exited("web", signal=15)
    assert rig.launched() == ["web", "web"]
    rig.spawned("web")
    assert rig.outcome(start) == {"web": "done"}

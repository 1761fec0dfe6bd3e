"""What follows a life: exit statuses that decide, and the start limit, as a unit lives them."""

import pytest
from core_rig import Rig, commands, needs, notify, oneshot, service

from supervisord_py.core.actions import KillTree, SignalProcesses, Whom
from supervisord_py.core.events import KeeperLost, Origin
from supervisord_py.model.states import JobMode, KillMode, Restart, Role
from supervisord_py.model.unit import (
    SECOND_NS,
    ExitStatuses,
    KillPolicy,
    RestartPolicy,
    StartLimit,
)

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)


def limited(burst: int = 2, seconds: int = 10) -> RestartPolicy:
    limit = StartLimit(interval_ns=seconds * SECOND_NS, burst=burst)
    return RestartPolicy(restart=Restart.ALWAYS, jitter=0.0, steps=0, failures=0, limit=limit)


def test_the_start_limit_of_the_next_life_counts() -> None:
    """A reload made it another kind of service, and limited its starts: the life that ended knew no limit, and its
    restart was not counted (seed 659).
    """
    rig = Rig(service("web", restart=RestartPolicy(restart=Restart.ALWAYS, jitter=0.0, steps=0, failures=0)))
    rig.ask("start", "web")
    rig.up("web")
    rig.load(notify("web", restart=limited(1)))
    rig.crash("web")
    rig.later(1)
    assert rig.launched() == ["web", "web"]
    rig.up("web")
    rig.crash("web")
    rig.later(1)
    assert rig.shown("web") == "failed/failed/start-limit-hit"


def test_a_forced_status_restarts_a_unit_that_is_never_restarted() -> None:
    """restart = "no", and yet: exit 75 asks for another life."""
    rig = Rig(service("web", restart=RestartPolicy(Restart.NO, jitter=0.0, force=ExitStatuses(codes=(75,)))))
    rig.ask("start", "web")
    rig.up("web")
    rig.crash("web", 75)
    assert rig.shown("web") == "activating/auto-restart/exit-code"
    rig.later(1)
    rig.up("web")
    rig.crash("web", 1)
    assert rig.shown("web") == "failed/failed/exit-code"


def test_a_stop_is_not_undone_by_a_forced_status() -> None:
    """What was asked for wins over every policy."""
    rig = Rig(service("web", restart=RestartPolicy(Restart.ALWAYS, force=ExitStatuses(signals=(15,)))))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("stop", "web")
    rig.exited("web", signal=15)
    assert rig.shown("web") == "inactive/dead/success"


def test_a_status_of_an_older_life_decides_nothing() -> None:
    """A life whose exec-start-pre failed has no main process whose end could prevent its restart."""
    prevent = RestartPolicy(jitter=0.0, prevent=ExitStatuses(codes=(3,)))
    rig = Rig(service("web", restart=prevent, exec_start_pre=commands("pre")))
    rig.ask("start", "web")
    rig.exited("web", 0)
    rig.spawned("web")
    rig.crash("web", 3)
    assert rig.shown("web") == "failed/failed/exit-code"
    rig.ask("start", "web")
    rig.exited("web", 1)
    assert rig.shown("web") == "activating/auto-restart/exit-code"


def test_one_automatic_start_too_many_fails_the_unit() -> None:
    """The start by hand counts too: after the burst the unit has failed, and stays so when the interval has passed."""
    rig = Rig(service("web", restart=limited()))
    rig.ask("start", "web")
    for _ in range(2):
        rig.up("web")
        rig.exited("web", 0)
        rig.later(0.1)
    assert rig.shown("web") == "failed/failed/start-limit-hit"
    assert rig.launched() == ["web"] * 2
    assert rig.record("unit.failed", "web").fields["limit_hit"] is True
    assert rig.record("job.finished", "web").fields["result"] == "failed"
    rig.later(60)
    assert rig.launched() == ["web"] * 2
    assert "start it when it is mended" in (rig.status("web").why or "")


def test_slow_restarts_never_hit_the_limit() -> None:
    """Only what lies within the interval counts."""
    rig = Rig(service("web", restart=limited()))
    rig.ask("start", "web")
    for _ in range(6):
        rig.up("web")
        rig.later(5)
        rig.exited("web", 0)
        rig.later(0.1)
    assert rig.shown("web") == "activating/start/success"


@pytest.mark.parametrize("verb", ["start", "reset-failed"])
def test_people_flush_the_start_limit(verb: str) -> None:
    """A start by hand is never refused, and like reset-failed it begins the count anew."""
    rig = Rig(service("web", restart=limited()))
    rig.ask("start", "web")
    for _ in range(2):
        rig.up("web")
        rig.exited("web", 0)
        rig.later(0.1)
    assert rig.shown("web") == "failed/failed/start-limit-hit"
    rig.ask(verb, "web")
    if verb == "reset-failed":
        assert rig.shown("web") == "inactive/dead/success"
        rig.ask("start", "web")
    rig.up("web")
    rig.exited("web", 0)
    rig.later(0.1)
    assert rig.shown("web") == "activating/start/success"


def test_what_needs_a_unit_beyond_its_limit_waits_for_people() -> None:
    """An automatic restart of a dependent does not start it again, even when the interval has passed."""
    rig = Rig(service("db", restart=limited(burst=1)), service("web", relations=needs("db")))
    rig.ask("start", "db")
    rig.up("db")
    rig.exited("db", 0)
    rig.later(0.1)
    assert rig.shown("db") == "failed/failed/start-limit-hit"
    rig.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.up("web")
    rig.later(20)
    rig.crash("web")
    rig.later(5)
    assert rig.shown("db") == "failed/failed/start-limit-hit"
    assert rig.status("web").sub_state == "dependency"


# the signals of the end


def test_a_restart_has_its_own_signal() -> None:
    """restart-kill-signal in place of kill-signal, for the stop of a restart only, and without SIGHUP."""
    kill = KillPolicy(restart_signal=2, send_sighup=True)
    rig = Rig(service("web", kill=kill))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("restart", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 2, Whom.ALL, then_continue=True)]
    rig.exited("web", signal=2)
    rig.up("web")
    rig.ask("stop", "web")
    assert [action.signal for action in rig.did(SignalProcesses)] == [15, 1]


@pytest.mark.parametrize(
    "mode", [KillMode.CONTROL_GROUP, KillMode.MIXED, KillMode.PROCESS], ids=lambda mode: mode.value
)
def test_send_sighup_follows_the_kill_signal(mode: KillMode) -> None:
    """SIGTERM, SIGHUP, and only then SIGCONT, to whom the kill mode names."""
    rig = Rig(service("web", kill=KillPolicy(mode=mode, send_sighup=True)))
    rig.ask("start", "web")
    spawn_id = rig.spawned("web")
    rig.ask("stop", "web")
    whom = (Whom.ALL, None) if mode is KillMode.CONTROL_GROUP else (Whom.MAIN, spawn_id)
    assert rig.did(SignalProcesses) == [
        SignalProcesses("web", 15, *whom, then_continue=False),
        SignalProcesses("web", 1, *whom, then_continue=True),
    ]


def test_send_sighup_is_not_sent_after_itself() -> None:
    """kill-signal = "SIGHUP" says it already."""
    rig = Rig(service("web", kill=KillPolicy(signal=1, send_sighup=True)))
    rig.ask("start", "web")
    rig.up("web")
    rig.ask("stop", "web")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 1, Whom.ALL, then_continue=True)]


def test_a_watchdog_ends_a_unit_with_its_own_signals_and_time() -> None:
    """watchdog-signal, timeout-abort-sec, then final-kill-signal; no SIGHUP."""
    kill = KillPolicy(watchdog_signal=3, final_signal=10, send_sighup=True)
    rig = Rig(notify("web", restart=NEVER, kill=kill, timeout_abort_ns=3 * SECOND_NS))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", WATCHDOG="trigger")
    assert rig.did(SignalProcesses) == [SignalProcesses("web", 3, Whom.ALL, then_continue=True)]
    rig.later(2.9)
    assert rig.shown("web") == "deactivating/stop-watchdog/watchdog"
    rig.later(0.1)
    assert rig.did(KillTree) == [KillTree("web", 10)]


# a lost keeper


def test_what_ended_without_a_keeper_is_a_failure() -> None:
    """Nobody knows how it ended: the result is unknown, and the policy sees a failure."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    rig.up("web")
    rig.happen(KeeperLost({"unseen": [{"pid": 1, "unit": "web"}]}))
    assert rig.record("keeper.lost").fields == {"unseen": [{"pid": 1, "unit": "web"}]}
    assert rig.shown("web") == "active/running/success"
    rig.exited("web", None)
    assert rig.shown("web") == "activating/auto-restart/unknown"
    assert rig.status("web").failures == 1


def test_a_stop_tells_its_reason() -> None:
    """-m REASON and who gave it stand in unit.stopping, also of what is stopped because of that."""
    rig = Rig(oneshot("db", remain_after_exit=True), service("web", relations=needs("db")))
    rig.ask("start", "web")
    rig.exited("db", 0)
    rig.up("web")
    rig.ask("stop", "db", reason="disk swap", origin=Origin(uid=7, user="ann"))
    told = rig.record("unit.stopping", "web").fields["reason"]
    assert "disk swap" in told
    assert "ann" in told
    assert rig.spawn_of("web", Role.MAIN) is not None

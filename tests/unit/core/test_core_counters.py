"""Back-off, failure count, healthy reset, and who may start what has failed too often."""

from core_rig import Rig, needs, oneshot, service

from supervisord_py.model.states import JobMode, Restart
from supervisord_py.model.unit import SECOND_NS, RestartPolicy


def crash_loop(rig: Rig, name: str, times: int) -> None:
    for _ in range(times):
        rig.spawned(name)
        rig.crash(name)
        rig.later(5)


def test_the_threshold_ends_the_restarts() -> None:
    """The fifth counted failure leaves the unit failed, with the last failure as its result."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    crash_loop(rig, "web", 5)
    assert rig.shown("web") == "quarantined/failed/exit-code"
    assert rig.launched() == ["web"] * 5
    assert rig.status("web").failures == 5
    assert rig.record("unit.failed").fields["limit_hit"] is True
    rig.later(3600)
    assert rig.launched() == ["web"] * 5


def test_failures_zero_never_ends_them() -> None:
    """With ``failures = 0`` the twentieth crash is followed by another life."""
    rig = Rig(service("web", restart=RestartPolicy(failures=0, jitter=0.0, steps=0)))
    rig.ask("start", "web")
    crash_loop(rig, "web", 20)
    assert rig.launched() == ["web"] * 21


def test_clean_ends_do_not_count() -> None:
    """restart = always after a good end is no failure, however often."""
    rig = Rig(service("web", restart=RestartPolicy(restart=Restart.ALWAYS, jitter=0.0, steps=0)))
    rig.ask("start", "web")
    for _ in range(12):
        rig.spawned("web")
        rig.exited("web", 0)
        rig.later(1)
    assert rig.status("web").failures == 0
    assert rig.status("web").restarts == 12


def test_healthy_time_forgets_failures_and_back_off() -> None:
    """After restart-reset-sec of being up the count is nought and the next delay is the first again."""
    policy = RestartPolicy(
        delay_ns=SECOND_NS, max_delay_ns=64 * SECOND_NS, steps=3, reset_ns=600 * SECOND_NS, jitter=0.0
    )
    rig = Rig(service("web", restart=policy))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.later(1)
    rig.spawned("web")
    rig.crash("web")
    assert rig.record("unit.restart-scheduled").fields["delay_ms"] == 4000
    rig.later(4)
    rig.spawned("web")
    rig.later(599)
    assert rig.status("web").failures == 2
    rig.later(1)
    assert rig.status("web").failures == 0
    rig.crash("web")
    assert rig.record("unit.restart-scheduled").fields["delay_ms"] == 1000
    assert rig.status("web").failures == 1


def test_a_slow_crash_loop_counts_too() -> None:
    """A unit that is up for nine minutes each time never gets healthy, and its failures add up."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    for _ in range(5):
        rig.spawned("web")
        rig.later(540)
        rig.crash("web")
        rig.later(2)
    assert rig.shown("web") == "quarantined/failed/exit-code"


def test_a_manual_start_is_never_refused_and_begins_anew() -> None:
    """A unit that has failed too often starts when somebody says so, with a clean count."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    crash_loop(rig, "web", 5)
    start = rig.ask("start", "web")
    rig.spawned("web")
    assert rig.outcome(start) == {"web": "done"}
    assert (rig.status("web").failures, rig.status("web").restarts) == (0, 0)


def test_a_manual_start_does_not_wait_for_the_back_off() -> None:
    """At three in the morning ``start`` means now."""
    rig = Rig(service("web", restart=RestartPolicy(delay_ns=50 * SECOND_NS, jitter=0.0)))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.crash("web")
    rig.ask("start", "web")
    assert rig.launched() == ["web", "web"]
    rig.later(60)
    assert rig.launched() == ["web", "web"]


def test_a_start_because_of_another_unit_waits_for_the_back_off() -> None:
    """Only the unit that was named skips its delay."""
    rig = Rig(
        service("db", restart=RestartPolicy(delay_ns=50 * SECOND_NS, jitter=0.0)), service("web", relations=needs("db"))
    )
    rig.ask("start", "db")
    rig.spawned("db")
    rig.crash("db")
    rig.ask("start", "web")
    assert rig.shown("web") == "queued/dependency/success"
    rig.later(49)
    assert rig.launched() == ["db"]
    rig.later(1)
    assert rig.launched() == ["db", "db"]
    rig.spawned("db")
    assert rig.launched() == ["db", "db", "web"]


def test_an_automatic_start_respects_the_limit_of_others() -> None:
    """A crashing web does not restart a db that has failed too often: it waits for somebody to start db."""
    rig = Rig(service("db"), service("web", relations=needs("db", ordered=False)))
    rig.ask("start", "db")
    crash_loop(rig, "db", 5)
    rig.ask("start", "web", mode=JobMode.IGNORE_DEPENDENCIES)
    rig.spawned("web")
    assert rig.shown("db") == "quarantined/failed/exit-code"
    rig.crash("web")
    rig.later(5)
    assert rig.launched().count("db") == 5
    assert rig.shown("web") == "inactive/dependency/dependency"
    rig.ask("start", "db")
    rig.spawned("db")
    assert rig.launched()[-1] == "web"


def test_reset_failed_forgets_and_starts_nothing() -> None:
    """failed becomes inactive, the counters are nought, no process is made."""
    rig = Rig(service("web"))
    rig.ask("start", "web")
    crash_loop(rig, "web", 5)
    request = rig.ask("reset-failed")
    assert rig.outcome(request) == {"web": "done"}
    assert rig.shown("web") == "inactive/dead/success"
    assert rig.status("web").failures == 0
    assert rig.launched() == ["web"] * 5


def test_the_success_of_a_oneshot_is_health() -> None:
    """A oneshot that failed twice and then did its work starts from nought the next time."""
    rig = Rig(oneshot("setup", restart=RestartPolicy(jitter=0.0)))
    rig.ask("start", "setup")
    crash_loop(rig, "setup", 2)
    rig.spawned("setup")
    rig.exited("setup", 0)
    assert rig.status("setup").failures == 0


def test_a_failed_start_job_says_that_it_will_be_tried_again() -> None:
    """The job of the first start ends at the first failure; the unit goes on trying."""
    rig = Rig(service("web"))
    request = rig.ask("start", "web")
    rig.failed_to_spawn("web")
    assert rig.outcome(request) == {"web": "failed"}
    assert "will be restarted" in rig.replies[request].outcomes[0].message
    rig.later(1)
    rig.spawned("web")
    assert rig.status("web").active_state == "active"


def test_jitter_lengthens_the_delay_by_at_most_its_fraction() -> None:
    """Every delay lies between the plain one and that plus its fraction, and they differ."""
    rig = Rig(service("web", restart=RestartPolicy(failures=0, steps=0, delay_ns=SECOND_NS, jitter=0.5)))
    rig.ask("start", "web")
    crash_loop_delays = []
    for _ in range(10):
        rig.spawned("web")
        rig.crash("web")
        crash_loop_delays.append(rig.record("unit.restart-scheduled").fields["delay_ms"])
        rig.later(1.5)
    assert all(1000 <= delay <= 1500 for delay in crash_loop_delays)
    assert len(set(crash_loop_delays)) > 5

"""Planted incidents: a small population, one true cause, and units beside it that look guilty. ``why`` has to name the
cause: the unit, of what kind it is, who or which limit or until when, and what to type next.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from core_rig import Rig, needs, notify, oneshot, service

from supervisord_py.core import view
from supervisord_py.core.events import Origin
from supervisord_py.model.calendar import parse_calendar
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import OnDependencyFailure, ProbeKind, Restart
from supervisord_py.model.unit import (
    SECOND_NS,
    BadUnit,
    Condition,
    Dependency,
    ExitStatuses,
    KillPolicy,
    PoolPlace,
    Probe,
    Quarantine,
    RestartPolicy,
    StartLimit,
    Timer,
    Unit,
    UnitSet,
)

NEVER = RestartPolicy(restart=Restart.NO, jitter=0.0)
MINUTE_NS = 60 * SECOND_NS
BOB = Origin(uid=1001, user="bob")
OTTO = Origin(uid=1002, user="otto")


def policy(failures: int = 5, delay: int = 20, **keys: Any) -> RestartPolicy:
    return RestartPolicy(restart=Restart.ALWAYS, delay_ns=delay * SECOND_NS, jitter=0.0, failures=failures, **keys)


class Incident:
    """One night. ``rig`` has the units of the incident and the ones that only look guilty."""

    def __init__(self, *units: Unit, **loaded_with: Any) -> None:
        self.rig = Rig()
        self.rig.load(*units, *HERRINGS)
        distract(self.rig)
        self.rig.load(*units, *HERRINGS, **loaded_with)

    def up(self, *names: str) -> None:
        for name in names:
            self.rig.ask("start", name, wait=False)
            self.rig.up(name)

    def crash_loop(self, name: str, times: int, code: int = 1) -> None:
        for _ in range(times):
            self.rig.up(name)
            self.rig.crash(name, code)
            self.rig.later(60)

    def silence(self, seconds: int, *, stopped: bool = False) -> None:
        """Nothing is heard of web, and whoever is asked looks at its processes."""
        for _ in range(seconds):
            before = len(self.rig.actions)
            self.rig.later(1)
            if any(type(action).__name__ == "LookAtProcesses" for action in self.rig.actions[before:]):
                self.rig.looked("web", stopped=stopped)

    def answer(self, ok: bool, times: int, detail: str, check: str = "port") -> None:
        """The next so many questions of web's health check are answered."""
        for _ in range(times):
            before = len(self.rig.actions)
            while not any(type(action).__name__ == "RunProbe" for action in self.rig.actions[before:]):
                self.rig.later(0.5)
            before = len(self.rig.actions)
            self.rig.probed("web", check, ok, detail)
            if any(type(action).__name__ == "LookAtProcesses" for action in self.rig.actions[before:]):
                self.rig.looked("web")


HERRINGS = (
    service("flaky", restart=policy(0, 100_000)),
    service("broken", restart=policy(1)),
    service("retired"),
    service("frozen", restart=NEVER),
)
"""One is in its back-off, one quarantined, one was stopped, one has failed; nothing of the incident needs any."""


def distract(rig: Rig) -> None:
    rig.ask("start", "flaky", "broken", "retired", "frozen")
    for herring in HERRINGS:
        rig.spawned(herring.name)
    rig.crash("flaky", 7)
    rig.crash("broken", 8)
    rig.crash("frozen", 9)
    rig.ask("stop", "retired", origin=BOB, reason="not needed any more")
    rig.exited("retired", signal=15)


Plant = Callable[[], Incident]
INCIDENTS: dict[str, tuple[Plant, tuple[str, ...], str, tuple[str, ...], str | None]] = {}


def incident(*chain: str, kind: str, says: tuple[str, ...], advice: str | None = None) -> Callable[[Plant], Plant]:
    """Plant one: who is asked about comes first in ``chain``, whose fault it is last; only these may be mentioned."""

    def plant(made: Plant) -> Plant:
        assert made.__name__ not in INCIDENTS
        INCIDENTS[made.__name__] = (made, chain, kind, says, advice)
        return made

    return plant


# another unit


@incident("web", "db", kind="failed", says=('restart = "no"', "exited with code 3"), advice="supctl logs db")
def a_dependency_has_failed() -> Incident:
    night = Incident(notify("db", restart=NEVER), service("cache"), service("web", relations=needs("db", "cache")))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("cache")
    night.rig.spawned("db")
    night.rig.crash("db", 3)
    return night


@incident("edge", "web", "db", kind="starting", says=("has not said READY=1",), advice="supctl logs -f db")
def the_end_of_a_chain_does_not_get_ready() -> Incident:
    night = Incident(notify("db"), service("web", relations=needs("db")), service("edge", relations=needs("web")))
    night.rig.ask("start", "edge", wait=False)
    night.rig.spawned("db")
    return night


@incident("web", "log", kind="operator", says=("stopped by otto (uid 1002): rotation",), advice="supctl start log")
def what_it_has_to_find_was_stopped() -> Incident:
    requisite: Mapping[str, Any] = {"requisite": (Dependency("log"), Dependency("db"))}
    night = Incident(service("log"), service("db"), service("web", relations=requisite))
    night.up("log", "db", "web")
    night.rig.ask("stop", "log", origin=OTTO, reason="rotation", wait=False)
    night.rig.exited("web", signal=15)
    night.rig.exited("log", signal=15)
    night.rig.ask("start", "web", wait=False)
    return night


@incident("web", "db", kind="failed", says=("exited with code 2",), advice="supctl logs db")
def a_unit_that_does_not_wait_failed_with_what_it_needs() -> Incident:
    relations = {**needs("db"), "on_dependency_failure": OnDependencyFailure.FAIL}
    night = Incident(notify("db", restart=NEVER), service("web", relations=relations))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("db")
    night.rig.crash("db", 2)
    return night


@incident("web", "vpn", kind="failed", says=("killed by SIGSEGV",), advice="supctl logs vpn")
def what_it_is_bound_to_is_gone() -> Incident:
    bound: Mapping[str, Any] = {"binds_to": (Dependency("vpn"),)}
    night = Incident(service("vpn", restart=NEVER), service("web", relations=bound))
    night.up("vpn", "web")
    night.rig.exited("vpn", signal=11)
    night.rig.exited("web", signal=15)
    return night


@incident("web", "migrate", kind="failed", says=("exited with code 4",), advice="supctl logs migrate")
def a_migration_has_failed() -> Incident:
    night = Incident(oneshot("migrate"), service("db"), service("web", relations=needs("migrate", "db")))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("db")
    night.rig.spawned("migrate")
    night.rig.exited("migrate", 4)
    return night


@incident("web", "db", kind="backoff", says=("failure 1 of 5", "restarted at 2023-11-14 22:30:20 UTC"))
def a_dependency_is_in_its_back_off() -> Incident:
    night = Incident(notify("db", restart=policy()), service("web", relations=needs("db")))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("db")
    night.rig.crash("db")
    return night


@incident("web", "old", kind="operator", says=("web, which conflicts with it, is started",))
def what_conflicts_does_not_go_away() -> Incident:
    night = Incident(service("old"), service("db"), service("web", relations={"conflicts": ("old",), **needs("db")}))
    night.up("old", "db")
    night.rig.ask("start", "web", wait=False)
    return night


@incident("web", kind="operator", says=("because db, which it needs, is stopped (otto (uid 1002): disk)",))
def it_was_taken_along() -> Incident:
    night = Incident(service("db"), service("web", relations=needs("db")))
    night.up("db", "web")
    night.rig.ask("stop", "db", origin=OTTO, reason="disk", wait=False)
    night.rig.exited("web", signal=15)
    night.rig.exited("db", signal=15)
    return night


# limits


@incident("c", kind="pool", says=("number 1 of 1", "max-workers = 1", "held by a, b"), advice="supctl jobs")
def no_slot_is_left() -> Incident:
    units = (service("a"), service("b"), service("c"))
    night = Incident(*units, limits=PoolLimits(2))
    night.up("a", "b")
    night.rig.ask("start", "c", wait=False)
    night.rig.load(*units, *HERRINGS, limits=PoolLimits(1))
    return night


@incident("train", kind="pool", says=('pool "gpu" (max-workers = 1), held by render',), advice="supctl jobs")
def the_pool_is_full_and_another_has_room() -> Incident:
    def pooled(name: str, pool: str) -> Unit:
        return service(name, relations={"pool": PoolPlace(pool)})

    units = (pooled("render", "gpu"), pooled("train", "gpu"), pooled("mail", "net"))
    night = Incident(*units, limits=PoolLimits(9, {"gpu": 1, "net": 4}))
    night.up("render", "mail")
    night.rig.ask("start", "train", wait=False)
    return night


@incident("train", "render", kind="stuck", says=("a process does not die",), advice="supctl stop render")
def a_stuck_unit_holds_the_slot() -> Incident:
    units = tuple(
        service(name, relations={"pool": PoolPlace("gpu")}, timeout_stop_ns=SECOND_NS) for name in ("render", "train")
    )
    night = Incident(*units, limits=PoolLimits(0, {"gpu": 1}))
    night.up("render")
    night.rig.ask("stop", "render", origin=OTTO, wait=False)
    night.rig.later(5)
    night.rig.ask("start", "train", wait=False)
    return night


@incident("low", kind="pool", says=("number 2 of 2", "max-workers = 1", "held by a"))
def somebody_more_important_goes_first() -> Incident:
    units = (service("a"), service("low"), service("urgent", relations={"pool": PoolPlace("", 9)}))
    night = Incident(*units, limits=PoolLimits(1))
    night.up("a")
    night.rig.ask("start", "low", wait=False)
    night.rig.ask("start", "urgent", wait=False)
    return night


@incident("web", kind="limit", says=("start-limit-hit", "started 3 times within 10s"), advice="supctl logs web")
def it_was_started_too_often() -> Incident:
    limit = StartLimit(10 * SECOND_NS, 3)
    night = Incident(service("web", restart=policy(0, 1, steps=0, limit=limit)), service("db"))
    night.up("db")
    night.rig.ask("start", "web", wait=False)
    for _ in range(3):
        night.rig.up("web")
        night.rig.crash("web")
        night.rig.later(1)
    return night


@incident("web", kind="failed", says=("(timeout)", "it has run for its runtime-max-sec"), advice="supctl logs web")
def it_may_not_run_longer() -> Incident:
    night = Incident(service("web", restart=NEVER, runtime_max_ns=5 * SECOND_NS))
    night.up("web")
    night.rig.later(5)
    night.rig.exited("web", signal=15)
    return night


# failures of its own


@incident("web", kind="backoff", says=("failure 2 of 5", "restarted at 2023-11-14 22:30:40 UTC", "code 6"))
def it_waits_for_its_restart() -> Incident:
    night = Incident(service("web", restart=policy(steps=0)), service("db"))
    night.up("db")
    night.rig.ask("start", "web", wait=False)
    night.rig.up("web")
    night.rig.crash("web", 6)
    night.rig.later(20)
    night.rig.up("web")
    night.rig.crash("web", 6)
    return night


@incident("web", kind="backoff", says=("because boss upholds it", "exited with code 1"))
def it_is_upheld_too_often() -> Incident:
    upholds: Mapping[str, Any] = {"upholds": (Dependency("web"),)}
    night = Incident(service("web", restart=NEVER), service("boss", relations=upholds))
    night.up("boss")
    night.rig.up("web")
    night.rig.crash("web")
    return night


@incident(
    "web", kind="quarantine", says=("failed 5 times (exit-code)", "exited with code 1"), advice="supctl lives web"
)
def a_loop_is_quarantined() -> Incident:
    night = Incident(service("web", restart=policy()), service("db"))
    night.up("db")
    night.rig.ask("start", "web", wait=False)
    night.crash_loop("web", 5)
    return night


@incident("web", kind="quarantine", says=("failed once", "tried again at 2023-11-14 22:35:00 UTC"))
def a_quarantine_that_tries_again() -> Incident:
    again: Mapping[str, Any] = {"quarantine": Quarantine(retry_after_ns=5 * MINUTE_NS)}
    night = Incident(service("web", restart=policy(1), relations=again))
    night.rig.ask("start", "web", wait=False)
    night.rig.up("web")
    night.rig.crash("web")
    return night


@incident("app", "db", kind="quarantine", says=("failed once", "its stub runs in its place"), advice="supctl lives db")
def it_is_degraded_because_a_stub_stands_in() -> Incident:
    stub: Mapping[str, Any] = {"quarantine": Quarantine(stub=service("stub").service.exec_start[0])}  # type: ignore[union-attr]
    units = (service("db", restart=policy(1), relations=stub), service("cache"))
    night = Incident(*units, service("app", relations=needs("db", "cache")))
    night.rig.ask("start", "db", wait=False)
    night.rig.up("db")
    night.rig.crash("db")
    night.rig.spawned("db")
    night.up("cache")
    night.rig.ask("start", "app", wait=False)
    night.rig.up("app")
    return night


@incident("web", kind="failed", says=("(errors)", "reported 3 errors in a row, the last: disk full"))
def it_has_reported_errors() -> Incident:
    night = Incident(notify("web", restart=NEVER, error_threshold=3))
    night.up("web")
    for text in ("slow", "slow", "disk full"):
        night.rig.says("web", X_ERROR=text)
    night.rig.exited("web", signal=15)
    return night


@incident("web", kind="failed", says=("could not be executed: no such file",), advice="supctl logs web")
def its_program_is_missing() -> Incident:
    night = Incident(service("web", restart=NEVER), service("db"))
    night.up("db")
    night.rig.ask("start", "web", wait=False)
    night.rig.failed_to_spawn("web")
    return night


@incident("web", kind="failed", says=("restart-prevent-exit-status", "exited with code 78"))
def its_exit_status_prevents_a_restart() -> Incident:
    night = Incident(service("web", restart=policy(prevent=ExitStatuses(frozenset({78})))))
    night.up("web")
    night.rig.crash("web", 78)
    return night


@incident("web", kind="starting", says=("exec-start-pre command runs",), advice="supctl logs -f web")
def its_preparation_hangs() -> Incident:
    pre = service("prepare").service.exec_start  # type: ignore[union-attr]
    night = Incident(service("web", exec_start_pre=pre), service("db"))
    night.up("db")
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("web")
    return night


@incident("web", kind="bad-setting", says=("web.toml:3:1: unknown key",), advice="supervisord-py check web.toml")
def its_file_is_invalid() -> Incident:
    night = Incident(service("web"), service("db"))
    night.up("db")
    bad = UnitSet(bad={"web": BadUnit("web", "web.toml", "web.toml:3:1: unknown key")})
    night.rig.load(service("db"), *HERRINGS, bad=bad)
    return night


# checks and silence


def port(kind: ProbeKind) -> Mapping[str, Any]:
    return {"health": (Probe("port", kind, tcp="db.internal:5432", failure_threshold=2),)}


@incident("web", kind="probe", says=("readiness check port failed 3 times (tcp db.internal:5432): connection refused",))
def it_does_not_get_ready() -> Incident:
    night = Incident(service("web", relations=port(ProbeKind.READINESS)))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("web")
    night.answer(False, 3, "connection refused")
    return night


@incident("web", kind="probe", says=("readiness check port failed 2 times", "no answer within 1s"))
def it_runs_and_is_not_well() -> Incident:
    night = Incident(service("web", relations=port(ProbeKind.READINESS)))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("web")
    night.answer(True, 1, "connected")
    night.answer(False, 2, "no answer within 1s")
    return night


@incident("web", kind="probe", says=("the life before ended (health: its liveness check port failed 2 times in a row",))
def a_liveness_check_has_restarted_it() -> Incident:
    night = Incident(service("web", relations=port(ProbeKind.LIVENESS), restart=policy()))
    night.rig.ask("start", "web", wait=False)
    night.rig.spawned("web")
    night.answer(False, 2, "connection refused")
    night.rig.exited("web", signal=15)
    night.rig.later(20)
    night.rig.spawned("web")
    return night


@incident("web", kind="watchdog", says=("no sign of life for 1min (watchdog-sec)", "automatic restarts: 1"))
def a_watchdog_has_restarted_it() -> Incident:
    night = Incident(notify("web", watchdog_ns=MINUTE_NS, restart=policy()))
    night.up("web")
    night.silence(61)
    night.rig.exited("web", signal=6)
    night.rig.later(20)
    night.rig.up("web")
    return night


@incident("web", kind="watchdog", says=("has done no work for 1min (progress-sec)",), advice="supctl logs web")
def it_lives_and_does_nothing() -> Incident:
    night = Incident(notify("web", progress_ns=MINUTE_NS, restart=NEVER))
    night.up("web")
    night.silence(61)
    night.rig.exited("web", signal=6)
    return night


@incident(
    "web", kind="watchdog", says=("its processes are stopped", "watchdog-sec"), advice="supctl kill -s SIGCONT web"
)
def a_debugger_holds_it() -> Incident:
    night = Incident(notify("web", watchdog_ns=MINUTE_NS), service("db"))
    night.up("db", "web")
    night.silence(70, stopped=True)
    return night


# people


@incident("web", kind="operator", says=("stopped by otto (uid 1002): disk is full",), advice="supctl start web")
def somebody_has_stopped_it() -> Incident:
    night = Incident(service("web"), service("db", restart=NEVER))
    night.up("web", "db")
    night.rig.crash("db")
    night.rig.ask("stop", "web", origin=OTTO, reason="disk is full", wait=False)
    night.rig.exited("web", signal=15)
    return night


@incident("web", kind="operator", says=("stopped by unit planner",), advice="supctl start web")
def another_unit_has_stopped_it() -> Incident:
    night = Incident(service("web"), service("planner"))
    night.up("web", "planner")
    night.rig.ask("stop", "web", origin=Origin(uid=1002, pid=5, user="otto", unit="planner"), wait=False)
    night.rig.exited("web", signal=15)
    return night


@incident("web", kind="operator", says=("paused by otto (uid 1002): backup runs",), advice="supctl resume web")
def somebody_has_paused_it() -> Incident:
    from supervisord_py.core.events import UnitFrozen

    night = Incident(service("web"), service("backup"))
    night.up("web", "backup")
    night.rig.ask("pause", "web", origin=OTTO, reason="backup runs", wait=False)
    night.rig.happen(UnitFrozen("web", True))
    return night


@incident("web", kind="operator", says=("it has until 2023-11-14 22:30:30 UTC: then it is killed",))
def it_does_not_end_on_request() -> Incident:
    night = Incident(service("web", timeout_stop_ns=30 * SECOND_NS, kill=KillPolicy()), service("db"))
    night.up("web", "db")
    night.rig.ask("stop", "web", origin=OTTO, wait=False)
    return night


@incident("web", kind="disabled", says=("it is masked",), advice="supctl unmask web")
def somebody_has_masked_it() -> Incident:
    night = Incident(service("web"))
    units = {unit.name: unit for unit in (service("web"), *HERRINGS)}
    from supervisord_py.core.events import UnitsLoaded

    night.rig.happen(UnitsLoaded(UnitSet(units=units, masked=frozenset({"web"})), start_enabled=False))
    return night


# times and conditions


def daily(name: str = "report", **keys: Any) -> Unit:
    from zoneinfo import ZoneInfo

    timer = Timer(on_calendar=(parse_calendar("daily", ZoneInfo),), accuracy_ns=0)
    return oneshot(name, relations={"timer": timer, **keys})


@incident("report", kind="timer", says=("not due until 2023-11-15 00:00:00 UTC",), advice="supctl trigger report")
def it_is_not_time_yet() -> Incident:
    night = Incident(daily(), service("db"))
    night.up("db")
    night.rig.ask("start", "report", wait=False)
    return night


@incident("report", kind="timer", says=("its last run failed (exit-code)", "exited with code 5"))
def its_last_run_failed() -> Incident:
    night = Incident(daily(), service("db"))
    night.rig.ask("start", "report", wait=False)
    night.rig.ask("trigger", "report", wait=False)
    night.rig.spawned("report")
    night.rig.exited("report", 5)
    return night


@incident("once", kind="timer", says=("its timer has elapsed",), advice="supctl start once")
def its_time_is_over() -> Incident:
    night = Incident(oneshot("once", relations={"timer": Timer(on_active_ns=(SECOND_NS,), accuracy_ns=0)}))
    night.rig.ask("start", "once", wait=False)
    night.rig.later(2)
    night.rig.spawned("once")
    night.rig.exited("once", 0)
    return night


@incident("web", kind="condition", says=('condition-path-exists = "/srv/web"',), advice="supctl start web")
def a_condition_does_not_hold() -> Incident:
    conditions = {"conditions": (Condition("path-exists", "/srv/web"), Condition("path-exists", "/srv"))}
    night = Incident(service("web", relations=conditions))
    night.rig.ask("start", "web", wait=False)
    night.rig.checked("web", condition='condition-path-exists = "/srv/web"')
    return night


@incident("web", "db", kind="condition", says=('assert-path-exists = "/srv/db"',), advice="supctl start db")
def an_assertion_of_a_dependency_does_not_hold() -> Incident:
    asserts = {"asserts": (Condition("path-exists", "/srv/db"),)}
    night = Incident(service("db", relations=asserts), service("web", relations=needs("db")))
    night.rig.ask("start", "web", wait=False)
    night.rig.checked("db", assertion='assert-path-exists = "/srv/db"')
    return night


def test_there_are_incidents_enough() -> None:
    """At least thirty, of every kind that people ask about."""
    assert len(INCIDENTS) >= 30
    kinds = {kind for _, _, kind, _, _ in INCIDENTS.values()}
    wanted = "failed starting operator backoff pool stuck limit quarantine bad-setting probe watchdog timer condition"
    assert kinds >= set(wanted.split())


@pytest.mark.parametrize("name", sorted(INCIDENTS))
def test_the_true_cause_is_named(name: str) -> None:
    """The unit, the kind, the particulars and the next command; and nobody who only looks guilty."""
    made, chain, kind, says, advice = INCIDENTS[name]
    rig = made().rig
    lines = view.why(rig.manager, chain[0])
    told = "\n".join(f"{line.about}: {line.kind}: {line.message} ({line.advice})" for line in lines)
    assert tuple(dict.fromkeys(line.about for line in lines)) == chain, told
    causes = [line for line in lines if line.about == chain[-1] and line.kind == kind]
    for words in says:
        assert any(words in line.message for line in causes), told
    if advice is not None:
        assert causes[0].advice == advice, told
    sentence = rig.status(chain[0]).why
    assert sentence in (None, lines[0].message) or sentence in [line.message for line in lines]
    assert sentence is not None or lines[0].kind == "running", told

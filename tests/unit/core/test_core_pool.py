"""Pools: how many run at a time, whose turn it is, and the mode in which the supervisor ends when nothing is left."""

import pytest
from core_rig import NO_JITTER, Rig, needs, oneshot, service, target
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_py.core import view
from supervisord_py.core.actions import ExitSupervisor
from supervisord_py.core.manager import Manager
from supervisord_py.model.pools import PoolLimits
from supervisord_py.model.states import KillMode, OnDependencyFailure, Restart, SubState
from supervisord_py.model.unit import SECOND_NS, Dependency, KillPolicy, PoolPlace, RestartPolicy, Unit


def worker(name: str, pool: str = "", priority: int = 0, **keys: object) -> Unit:
    return service(name, relations={"pool": PoolPlace(pool, priority)}, **keys)


def running(rig: Rig) -> list[str]:
    """The units that have a process, by name."""
    return sorted(name for name in rig.units.units if rig.status(name).pid is not None)


def launched(rig: Rig) -> list[str]:
    """The units whose main program was asked for since the last call."""
    new = [spawn.unit for spawn in rig.spawns[rig.seen :]]
    rig.seen = len(rig.spawns)
    return new


def queued(rig: Rig) -> list[str]:
    """The units that wait for a slot, in the order of the queue."""
    waiting = [job for job in view.jobs(rig.manager) if job.limit is not None]
    return [job.unit for job in sorted(waiting, key=lambda job: (job.limit or "", job.position or 0))]


def test_no_more_run_than_max_workers_allows() -> None:
    rig = Rig()
    rig.load(*(worker(name) for name in "abc"), start=True, limits=PoolLimits(2))
    assert launched(rig) == ["a", "b"]
    assert rig.shown("c") == "queued/pool/success"
    why = view.why(rig.manager, "c")[0]
    assert why.kind == "pool"
    assert why.message == "it waits for a slot, number 1 of 1: max-workers = 2, held by a, b"
    rig.spawned("a")
    rig.ask("stop", "a")
    assert launched(rig) == [], "a unit that is stopping has its slot still"
    rig.exited("a", signal=15)
    assert launched(rig) == ["c"]


def test_b_po_18_the_highest_priority_goes_first_and_the_oldest_within_one() -> None:
    rig = Rig()
    rig.load(worker("a"), worker("b"), worker("low", priority=-1), worker("urgent", priority=5), limits=PoolLimits(1))
    rig.ask("start", "a")
    for name in ("low", "b", "urgent"):
        rig.ask("start", name, wait=False)
    assert queued(rig) == ["urgent", "b", "low"]
    order = []
    for _ in range(3):
        name = running(rig)[0] if running(rig) else rig.spawns[-1].unit
        rig.spawned(name)
        rig.ask("stop", name)
        rig.exited(name, signal=15)
        order += launched(rig)
    assert order[-3:] == ["urgent", "b", "low"]


def test_priority_holds_at_boot_too() -> None:
    """All are let in together when the supervisor starts: names do not decide before priorities do."""
    rig = Rig()
    rig.load(worker("a"), worker("b", priority=1), start=True, limits=PoolLimits(1))
    assert launched(rig) == ["b"]


def test_a_full_pool_lets_others_pass() -> None:
    rig = Rig()
    limits = PoolLimits(3, {"gpu": 1})
    rig.load(worker("g1", "gpu"), worker("g2", "gpu", 9), worker("web"), start=True, limits=limits)
    assert sorted(launched(rig)) == ["g2", "web"]
    assert view.why(rig.manager, "g1")[0].message == (
        'it waits for a slot, number 1 of 1: pool "gpu" (max-workers = 1), held by g2'
    )


def test_b_po_18_a_limit_that_is_raised_lets_the_next_in_and_one_that_is_lowered_ends_nobody() -> None:
    rig = Rig()
    units = [worker(name) for name in "abcd"]
    rig.load(*units, start=True, limits=PoolLimits(1))
    assert launched(rig) == ["a"]
    rig.load(*units, limits=PoolLimits(3))
    assert launched(rig) == ["b", "c"]
    for name in "abc":
        rig.spawned(name)
    rig.load(*units, limits=PoolLimits(1))
    assert running(rig) == ["a", "b", "c"]
    for name in "ab":
        rig.ask("stop", name)
        rig.exited(name, signal=15)
    assert launched(rig) == [], "one is allowed, and one runs"
    rig.load(*units)
    assert launched(rig) == ["d"], "without a limit nobody waits"


def test_a_change_of_pool_moves_the_slot_of_a_running_unit() -> None:
    rig = Rig()
    limits = PoolLimits(0, {"gpu": 1})
    rig.load(worker("a", "gpu"), worker("b", "gpu"), start=True, limits=limits)
    rig.spawned("a")
    launched(rig)
    rig.load(worker("a"), worker("b", "gpu"), limits=limits)
    assert launched(rig) == ["b"]


def test_targets_and_finished_oneshots_hold_no_slot() -> None:
    rig = Rig()
    setup = oneshot("setup", remain_after_exit=True)
    rig.load(setup, target("all"), worker("z"), start=True, limits=PoolLimits(1))
    assert launched(rig) == ["setup"]
    assert rig.status("all").active_state == "active"
    rig.spawned("setup")
    rig.exited("setup", 0)
    assert rig.shown("setup") == "active/exited/success"
    assert launched(rig) == ["z"]


def test_a_stuck_unit_keeps_its_slot_and_is_named() -> None:
    rig = Rig()
    stubborn = worker("a", timeout_stop_ns=SECOND_NS, kill=KillPolicy(mode=KillMode.PROCESS))
    rig.load(stubborn, worker("b"), start=True, limits=PoolLimits(1))
    rig.spawned("a")
    rig.ask("stop", "a", wait=False)
    rig.later(5)
    assert rig.status("a").sub_state == "stuck"
    launched(rig)
    assert rig.shown("b") == "queued/pool/success"
    assert "held by a (stuck)" in view.why(rig.manager, "b")[0].message
    rig.exited("a", signal=9)
    assert launched(rig) == ["b"]


def test_what_has_to_wait_for_a_new_job_first_stood_in_the_queue_all_the_same() -> None:
    """mail was second, and then setup, which it comes after, is started too (core world seed 655)."""
    mail = service("mail", relations={"after": (Dependency("setup"),)})
    rig = Rig()
    rig.load(service("web"), mail, service("setup"), limits=PoolLimits(1))
    rig.ask("start", "web", wait=False)
    rig.spawned("web")
    rig.ask("start", "mail", wait=False)
    assert view.why(rig.manager, "mail")[0].kind == "pool"
    rig.ask("start", "setup", wait=False)
    line = view.why(rig.manager, "mail")[0]
    assert (line.kind, line.unit) == ("dependency", "setup")
    assert "number 1 of 1" in (rig.status("setup").why or "")


def test_a_restart_keeps_its_slot_between_its_halves() -> None:
    rig = Rig()
    rig.load(worker("a"), worker("b", priority=9), limits=PoolLimits(1))
    rig.ask("start", "a")
    rig.spawned("a")
    rig.ask("start", "b", wait=False)
    launched(rig)
    rig.ask("restart", "a")
    rig.exited("a", signal=15)
    assert launched(rig) == ["a"]


def test_a_unit_in_its_back_off_gives_its_slot_to_the_next() -> None:
    always = RestartPolicy(restart=Restart.ALWAYS, delay_ns=SECOND_NS, jitter=0.0)
    rig = Rig()
    rig.load(worker("a", restart=always), worker("b"), start=True, limits=PoolLimits(1))
    rig.spawned("a")
    launched(rig)
    rig.crash("a")
    assert launched(rig) == ["b"]
    rig.later(2)
    assert rig.shown("a") == "queued/pool/exit-code"
    rig.spawned("b")
    rig.ask("stop", "b")
    rig.exited("b", signal=15)
    assert launched(rig) == ["a"]


def test_a_start_that_is_called_off_leaves_the_queue() -> None:
    rig = Rig()
    rig.load(*(worker(name) for name in "abc"), start=True, limits=PoolLimits(1))
    rig.ask("stop", "b")
    assert queued(rig) == ["c"]
    rig.spawned("a")
    rig.ask("stop", "a")
    rig.exited("a", signal=15)
    assert launched(rig)[-1] == "c"


def test_a_slot_is_free_again_when_the_program_does_not_start() -> None:
    once = RestartPolicy(restart=Restart.NO)
    rig = Rig()
    rig.load(worker("a", restart=once), worker("b"), start=True, limits=PoolLimits(1))
    rig.failed_to_spawn("a")
    assert launched(rig)[-1] == "b"


def test_what_waits_in_a_pool_survives_the_supervisors_manager() -> None:
    """The rig compares a restored manager after every event; here the index itself is compared."""
    rig = Rig()
    rig.load(*(worker(name) for name in "abc"), start=True, limits=PoolLimits(1))
    twin = Manager.restore(rig.state, rig.units)
    for field in ("holders", "used", "waiting", "places"):
        assert getattr(twin.ledger, field) == getattr(rig.manager.ledger, field)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_limit_is_never_passed_and_a_slot_never_idle(data: st.DataObject) -> None:
    """Whatever is asked for: no more than the limit run, and nobody waits who could run."""
    limits = PoolLimits(data.draw(st.integers(0, 3)), {"p": data.draw(st.integers(0, 2))})
    names = [f"u{n}" for n in range(5)]
    units = [
        service(
            name,
            relations={
                "pool": PoolPlace(data.draw(st.sampled_from(["", "p"])), data.draw(st.integers(0, 2))),
                **(needs(names[n - 1]) if n and data.draw(st.booleans()) else {}),
                "on_dependency_failure": OnDependencyFailure.FAIL,
            },
            restart=NO_JITTER,
        )
        for n, name in enumerate(names)
    ]
    rig = Rig()
    rig.load(*units, start=True, limits=limits)
    for _ in range(data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from(names))
        match data.draw(st.sampled_from(["start", "stop", "restart", "end", "crash", "later"])):
            case "end" | "crash" as how if any(each.unit == name for each in rig.spawns):
                spawn = rig.spawn_of(name)
                if rig.manager.ledger.unit_of_spawn.get(spawn.spawn_id) == name:
                    rig.spawned(name)
                    rig.exited(name, int(how == "crash"))
            case "later":
                rig.later(data.draw(st.sampled_from([0.2, 5])))
            case "start" | "stop" | "restart" as verb:
                rig.ask(verb, name, wait=False)
        ledger = rig.manager.ledger
        held = [name for name in names if ledger.state(name).sub in HOLDING]
        in_pool = [each for each in held if rig.units.units[each].pool.name == "p"]
        assert not limits.max_workers or len(held) <= limits.max_workers
        assert not limits.pools["p"] or len(in_pool) <= limits.pools["p"]
        for job in view.jobs(rig.manager):
            if job.limit is not None:
                full = len(held) == limits.max_workers or len(in_pool) == limits.pools["p"]
                assert full, f"{job.unit} waits for {job.limit}, and it has room"


HOLDING = frozenset(SubState) - {
    SubState.DEAD,
    SubState.FAILED,
    SubState.DEPENDENCY,
    SubState.EXITED,
    SubState.AUTO_RESTART,
    SubState.AUTO_RESTART_QUEUED,
}


# the mode until-empty


def ended_with(rig: Rig) -> int | None:
    """The code that the supervisor has ended with, None while it goes on."""
    return next((each.code for each in rig.actions if isinstance(each, ExitSupervisor)), None)


def test_until_empty_ends_when_the_last_has_ended() -> None:
    rig = Rig()
    rig.load(oneshot("a"), oneshot("b"), target("all"), start=True, until_empty=True)
    rig.up("a")
    rig.exited("a", 0)
    assert ended_with(rig) is None
    rig.up("b")
    rig.exited("b", 0)
    # The target is up, and has nothing that could end.
    assert ended_with(rig) == 0


@pytest.mark.parametrize(("code", "signal", "expected"), [(3, None, 3), (None, 9, 137)])
def test_until_empty_ends_with_the_code_of_the_first_failure(
    code: int | None, signal: int | None, expected: int
) -> None:
    rig = Rig()
    rig.load(oneshot("a"), oneshot("b"), oneshot("c"), start=True, until_empty=True)
    for name in "abc":
        rig.spawned(name)
    rig.exited("b", code, signal=signal)
    rig.later(1)
    rig.exited("a", 7)
    rig.exited("c", 0)
    assert ended_with(rig) == expected


def test_until_empty_waits_for_a_restart() -> None:
    policy = RestartPolicy(restart=Restart.ON_FAILURE, delay_ns=SECOND_NS, jitter=0.0)
    rig = Rig()
    rig.load(service("a", restart=policy), start=True, until_empty=True)
    rig.spawned("a")
    rig.crash("a")
    assert ended_with(rig) is None
    rig.later(2)
    rig.spawned("a")
    rig.exited("a", 0)
    assert ended_with(rig) == 0


def test_until_empty_with_what_never_started_ends_with_125() -> None:
    rig = Rig()
    rig.load(service("a", relations=needs("nobody")), start=True, until_empty=True)
    assert ended_with(rig) == 125


def test_b_po_1_a_shutdown_is_heard_in_the_mode_until_empty() -> None:
    """In a system before this one the shutdown set a flag that this mode never read (B-PO-1)."""
    rig = Rig()
    rig.load(service("a"), start=True, until_empty=True)
    rig.spawned("a")
    rig.shut_down(90)
    rig.exited("a", signal=15)
    assert ended_with(rig) == 0


def test_who_waits_for_another_unit_again_waits_for_no_slot() -> None:
    """It was shown in the queue still, and its going let nobody else in."""
    rig = Rig()
    rig.load(worker("db"), service("web", relations=needs("db")), worker("z"), limits=PoolLimits(2))
    for name in ("db", "z"):
        rig.ask("start", name)
        rig.spawned(name)
    rig.ask("start", "web", wait=False)
    assert queued(rig) == ["web"]
    rig.ask("restart", "db", wait=False)
    assert queued(rig) == []
    job = next(job for job in view.jobs(rig.manager) if job.unit == "web")
    assert (job.waiting_for, job.limit, job.position) == (("db",), None, None)

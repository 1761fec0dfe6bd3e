"""Defects of the older systems that restarts, limits, checks and pauses must not have: each test is named after its
number in their list. Others of the list stand beside what they are about (``test_b_po_``, ``test_b_af_``).
"""

from typing import Any

from core_rig import NO_JITTER, Rig, commands, needs, notify, service

from supervisord_py.core.actions import LookAtProcesses, RunProbe, SpawnProcess
from supervisord_py.model.states import ProbeKind, Restart, Role
from supervisord_py.model.unit import SECOND_NS, Probe, Quarantine, RestartPolicy

STUB = commands("/bin/stub")[0]


def policy(failures: int = 5, **keys: Any) -> RestartPolicy:
    return RestartPolicy(
        **{"restart": Restart.ALWAYS, "delay_ns": SECOND_NS, "jitter": 0.0, "failures": failures, **keys}
    )


def silent(rig: Rig, seconds: int) -> None:
    """Time passes; whenever the manager asks, somebody looks and finds nothing stopped."""
    for _ in range(seconds):
        before = len(rig.actions)
        rig.later(1)
        if any(isinstance(each, LookAtProcesses) for each in rig.actions[before:]):
            rig.looked("web")


def test_b_po_18_one_slow_start_delays_no_other() -> None:
    """What does not wait for the slow one starts beside it, in one event."""
    rig = Rig(notify("slow"), service("a"), service("b"), service("after", relations=needs("slow")), start=True)
    assert sorted(rig.launched()) == ["a", "b", "slow"]
    assert rig.status("after").sub_state == "dependency"


def test_b_af_2_a_restart_begins_every_measure_anew() -> None:
    """Old beats were held against the new life, so that a healthy agent with a slow first cycle never recovered."""
    rig = Rig(notify("web", watchdog_ns=10 * SECOND_NS, restart=policy(), error_threshold=3))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", X_ERROR="1")
    rig.says("web", X_ERROR="1")
    rig.later(6)
    rig.crash("web")
    rig.later(1)
    rig.up("web")
    silent(rig, 9)
    rig.says("web", X_ERROR="1")
    rig.says("web", WATCHDOG="1")
    silent(rig, 9)
    assert rig.shown("web") == "active/running/success"
    assert rig.status("web").restarts == 1


def test_b_af_4_a_quarantine_ends_the_process_and_one_stub_stands_in() -> None:
    """The old object ran and failed on, and each further failure put another stub on top."""
    unit = service("web", restart=policy(2), relations={"quarantine": Quarantine(stub=STUB)})
    rig = Rig(unit)
    rig.ask("start", "web")
    for _ in range(2):
        rig.spawned("web")
        rig.crash("web")
        rig.later(1)
    assert [spawn.role for spawn in rig.spawns] == [Role.MAIN, Role.MAIN, Role.STUB]
    rig.spawned("web")
    rig.later(1_000_000)
    assert rig.shown("web") == "quarantined/stub/exit-code"
    assert len(rig.spawns) == 3
    rig.ask("reset-failed", "web")
    rig.exited("web", signal=15, role=Role.STUB)
    assert rig.shown("web") == "inactive/dead/success"


def test_b_af_15_a_check_without_an_answer_holds_nobody_up() -> None:
    """An agent that blocked froze all others, and the end: here everything else goes on while one answer is out."""
    check = Probe("port", ProbeKind.READINESS, tcp="127.0.0.1:1")
    rig = Rig(service("web", relations={"health": (check,)}), service("other", restart=NO_JITTER))
    rig.ask("start", "web", wait=False)
    rig.spawned("web")
    rig.later(1)
    assert [each for each in rig.actions if isinstance(each, RunProbe)]
    request = rig.ask("start", "other")
    rig.spawned("other")
    assert rig.outcome(request) == {"other": "done"}
    rig.ask("stop", "web", wait=False)
    rig.exited("web", signal=15)
    assert rig.status("web").active_state == "inactive"
    assert [spawn.unit for spawn in rig.actions if isinstance(spawn, SpawnProcess)] == ["web", "other"]

"""Bounds on all processes of a unit: what the kernel has ended because of them, and what only we see."""

from typing import Any

import pytest
from core_rig import Rig, commands, service

from supervisord_py.core.actions import SignalProcesses
from supervisord_py.core.events import Breach, ExitStatus, LimitExceeded, ProcessExited, ProcessSpawned
from supervisord_py.model.states import OomPolicy, Restart, ServiceType, Severity
from supervisord_py.model.unit import Command, Quarantine, RestartPolicy

MIB = 1024 * 1024
FULL = Breach("memory-max", 64 * MIB, 64 * MIB, "cgroup v2")


def running(**keys: Any) -> Rig:
    rig = Rig(service("web", restart=RestartPolicy(restart=Restart.NO), **keys))
    rig.ask("start", "web")
    rig.up("web")
    return rig


def test_who_is_killed_because_memory_is_full_was_not_just_killed() -> None:
    """The result is oom-kill, and the record of the limit, with its numbers, comes before that of the end."""
    rig = running()
    spawn = rig.spawns[-1]
    rig.happen(ProcessExited(spawn.spawn_id, 1, ExitStatus(signal=9), breach=FULL))
    assert rig.shown("web") == "failed/failed/oom-kill"
    (limit,) = [record for record in rig.records if record.event == "unit.limit"]
    assert limit.severity is Severity.WARNING
    assert limit.fields == {"limit": "memory-max", "value": 64 * MIB, "most": 64 * MIB, "mechanism": "cgroup v2"}
    assert [record.event for record in rig.records][-3:] == ["unit.limit", "unit.exited", "unit.failed"]
    message = str(rig.record("unit.failed").fields["message"])
    assert message.endswith("by the kernel, for its memory was full (memory-max = 64M, it had 64M)")


def test_who_ends_otherwise_while_memory_is_full_ends_as_it_says() -> None:
    """The kernel has killed a child, and the main process took it as an error of its own."""
    rig = running()
    rig.happen(ProcessExited(rig.spawns[-1].spawn_id, 1, ExitStatus(code=3), breach=FULL))
    assert rig.shown("web") == "failed/failed/exit-code"


def test_a_life_that_takes_too_much_is_killed_at_once() -> None:
    """Only we see it, so we end it, without the time to stop; the limits of an older life concern nobody."""
    rig = running()
    invocation = rig.spawns[-1].invocation
    rig.happen(LimitExceeded("web", "another", FULL))
    assert rig.shown("web") == "active/running/success"
    rig.happen(LimitExceeded("web", invocation, Breach("memory-max", 70 * MIB, 64 * MIB, "sampling")))
    assert rig.shown("web") == "deactivating/stop-sigkill/memory-limit"
    # SIGTERM came just before, and status had it that the unit was asked to end.
    assert not [action for action in rig.actions if isinstance(action, SignalProcesses)]
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/memory-limit"
    assert rig.status("web").failures == 1


def test_what_had_ended_well_was_ended_for_what_it_took() -> None:
    """It is told; but nothing of it is there any more, and its work was done."""
    rig = Rig(service("web", type=ServiceType.ONESHOT, remain_after_exit=True))
    rig.ask("start", "web")
    rig.spawned("web")
    rig.exited("web", 0)
    assert rig.shown("web") == "active/exited/success"
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, Breach("memory-max", 70 * MIB, 64 * MIB, "sampling")))
    assert rig.shown("web") == "active/exited/success"
    assert rig.record("unit.limit").fields["value"] == 70 * MIB


def test_too_many_tasks_are_a_lack_of_resources() -> None:
    rig = running()
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, Breach("tasks-max", 21, 20, "sampling")))
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/resources"
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, Breach("tasks-max", 21, 20, "sampling")))
    assert rig.shown("web") == "failed/failed/resources"


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        (OomPolicy.CONTINUE, "active/running/success"),
        (OomPolicy.STOP, "deactivating/stop-sigterm/oom-kill"),
        (OomPolicy.KILL, "deactivating/stop-sigkill/oom-kill"),
    ],
)
def test_a_process_that_is_not_the_main_one_was_killed_because_memory_is_full(policy: OomPolicy, shown: str) -> None:
    """What follows is what oom-policy says; it is told in any case."""
    rig = running(oom_policy=policy)
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, FULL, by_kernel=True))
    assert rig.shown("web") == shown
    assert rig.record("unit.limit").fields["mechanism"] == "cgroup v2"
    if policy is not OomPolicy.CONTINUE:
        rig.exited("web", 0)
        assert rig.shown("web") == "failed/failed/oom-kill"
        assert "the kernel killed a process of it" in str(rig.record("unit.failed").fields["message"])


def test_a_clean_end_after_a_kill_for_memory_is_none() -> None:
    """Only who said that it may go on counts it as one."""
    for policy, shown in ((OomPolicy.STOP, "failed/failed/oom-kill"), (OomPolicy.CONTINUE, "inactive/dead/success")):
        rig = running(oom_policy=policy)
        rig.happen(ProcessExited(rig.spawns[-1].spawn_id, 1, ExitStatus(code=0), breach=FULL))
        assert rig.shown("web") == shown
        assert rig.record("unit.limit").fields["most"] == 64 * MIB


def test_memory_that_a_command_before_the_start_took_was_told_and_then_let_go_on() -> None:
    """The counting had ended with the breach, and the fault meant nothing before the start."""
    rig = Rig(service("web", exec_start_pre=(Command(("/bin/pre",)),), restart=RestartPolicy(restart=Restart.NO)))
    rig.ask("start", "web")
    assert rig.shown("web") == "activating/start-pre/success"
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, Breach("memory-max", 70 * MIB, 64 * MIB, "sampling")))
    assert rig.shown("web") == "deactivating/stop-sigkill/memory-limit"
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/memory-limit"


BIG = Breach("memory-max", 70 * MIB, 64 * MIB, "sampling")
POLICY = RestartPolicy(restart=Restart.NO)


def too_much(rig: Rig) -> None:
    rig.happen(LimitExceeded("web", rig.spawns[-1].invocation, BIG))


@pytest.mark.parametrize("key", ["exec_condition", "exec_start_pre"])
def test_a_command_before_the_start_that_takes_too_much_is_killed(key: str) -> None:
    """The bound is that of all processes of the unit, not of its main one alone."""
    rig = Rig(service("web", restart=POLICY, **{key: commands("/bin/hog")}))
    rig.ask("start", "web")
    rig.spawned("web")
    too_much(rig)
    assert rig.shown("web") == "deactivating/stop-sigkill/memory-limit"
    rig.exited("web", signal=9)
    assert rig.shown("web") == "failed/failed/memory-limit"


def test_no_stop_command_is_run_for_what_takes_too_much() -> None:
    """It would be killed with the rest: there is no time to stop."""
    rig = Rig(service("web", restart=POLICY, exec_stop=commands("/bin/stop")))
    rig.ask("start", "web")
    rig.up("web")
    too_much(rig)
    assert [spawn.role.value for spawn in rig.spawns] == ["main"]
    assert rig.shown("web") == "deactivating/stop-sigkill/memory-limit"


def test_what_takes_too_much_while_it_ends_is_killed_at_once() -> None:
    """In its watchdog's time to dump core, while its stop command runs, and in what runs after its end."""
    rig = Rig(service("web", restart=POLICY, exec_stop_post=commands("/bin/post")))
    rig.ask("start", "web")
    rig.up("web")
    rig.says("web", WATCHDOG="trigger")
    too_much(rig)
    assert rig.shown("web") == "deactivating/stop-sigkill/watchdog"
    rig.exited("web", signal=9)
    rig.spawned("web")
    too_much(rig)
    assert rig.shown("web") == "deactivating/final-sigkill/watchdog"


def test_a_stub_that_takes_too_much_is_killed() -> None:
    """It has the limits of its unit, which stays quarantined without it."""
    stub = {"quarantine": Quarantine(stub=Command(("/bin/stub",)))}
    rig = Rig(service("web", restart=RestartPolicy(failures=1), relations=stub))
    rig.ask("start", "web")
    rig.up("web")
    rig.crash("web")
    rig.spawned("web")
    assert rig.status("web").sub_state == "stub"
    too_much(rig)
    rig.exited("web", signal=9)
    assert rig.shown("web") == "quarantined/failed/exit-code"


def test_what_a_daemon_runs_without_is_shown() -> None:
    """The command that has left it behind was told to run without: so does what it left."""
    rig = Rig(service("web", type=ServiceType.FORKING))
    rig.ask("start", "web")
    spawn_id = rig.spawns[-1].spawn_id
    rig.happen(ProcessSpawned(spawn_id, 5, ("limits.memory-max: nothing here can enforce it",)))
    rig.exited("web", 0, empty=False)
    rig.followed("web")
    assert rig.status("web").degraded == ("limits.memory-max: nothing here can enforce it",)

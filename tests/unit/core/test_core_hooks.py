"""Hooks: what calls them, what they are told, and what they cannot delay."""

from core_rig import Rig, service

from supervisord_py.core.actions import ExitSupervisor, KillTree, SpawnProcess
from supervisord_py.core.events import ExitStatus, ProcessExited, ProcessSpawned, SpawnFailed
from supervisord_py.core.hooks import RUNNING_MAX, WAITING_MAX
from supervisord_py.model.hooks import Hook
from supervisord_py.model.states import Restart, Role
from supervisord_py.model.unit import SECOND_NS, Command, RestartPolicy, Unit

PAGE = Command(("/bin/page", "%n"))
ONCE = RestartPolicy(restart=Restart.ALWAYS, delay_ns=SECOND_NS, jitter=0.0, failures=1)


def rig_with(event: str, *units: Unit, timeout_ns: int = 10 * SECOND_NS) -> Rig:
    rig = Rig()
    rig.load(*units, hooks=(Hook(event, PAGE, timeout_ns),))
    return rig


def hooks(rig: Rig) -> list[SpawnProcess]:
    return [spawn for spawn in rig.spawns if spawn.role is Role.HOOK]


def end(rig: Rig, spawn: SpawnProcess, code: int | None = 0, signal: int | None = None) -> None:
    rig.happen(ProcessExited(spawn.spawn_id, 900, ExitStatus(code, signal)))


def test_an_event_calls_its_hook_beside_the_unit() -> None:
    rig = rig_with("unit.quarantined", service("web", restart=ONCE))
    rig.ask("start", "web")
    rig.spawned("web")
    assert hooks(rig) == []
    rig.crash("web")
    (hook,) = hooks(rig)
    assert hook.command is PAGE
    assert hook.unit == f"web!{hook.spawn_id}"
    told = dict(hook.environment)
    assert told["SUPERVISORD_PY_EVENT"] == "unit.quarantined"
    assert told["SUPERVISORD_PY_MESSAGE"] == "its main process exited with code 1"
    record = next(each for each in rig.records if each.event == "unit.quarantined")
    assert int(told["SUPERVISORD_PY_SEQ"]) == rig.records.index(record) + 1
    end(rig, hook)
    assert rig.manager.ledger.beside == {}
    assert [record.event for record in rig.records if record.event.startswith("hook.")] == []


def test_a_glob_matches_and_what_becomes_of_hooks_calls_none() -> None:
    """A hook on everything would call itself for ever."""
    rig = rig_with("*", service("web"))
    rig.ask("start", "web")
    for _ in range(50):
        running = [hook for hook in hooks(rig) if hook.spawn_id in rig.manager.ledger.beside]
        if not running:
            break
        end(rig, running[0], 1)
    assert rig.manager.ledger.beside == {}
    assert len(hooks(rig)) <= 10


def test_a_failure_is_journalled_and_leads_to_nothing_else() -> None:
    rig = rig_with("unit.started", service("web"))
    rig.ask("start", "web")
    rig.spawned("web")
    end(rig, hooks(rig)[0], 3)
    assert rig.record("hook.failed").fields["message"] == "the hook of unit.started failed: exited with code 3"
    assert rig.shown("web") == "active/running/success"


def test_a_hook_that_hangs_is_killed_as_a_tree() -> None:
    rig = rig_with("unit.started", service("web"), timeout_ns=5 * SECOND_NS)
    rig.ask("start", "web")
    rig.spawned("web")
    (hook,) = hooks(rig)
    rig.happen(ProcessSpawned(hook.spawn_id, 900))
    rig.later(5)
    assert rig.actions[-1] == KillTree(hook.unit)
    end(rig, hook, None, 9)
    assert "did not end within 5s" in rig.record("hook.failed").fields["message"]
    exits = [record for record in rig.records if record.event == "unit.exited"]
    assert [(record.fields["role"], record.fields["signal"]) for record in exits] == [("hook", "SIGKILL")]
    assert exits[0].fields["called_for"] == "unit.started"
    assert sum(record.event == "hook.failed" for record in rig.records) == 1


def test_many_calls_wait_their_turn_and_too_many_are_dropped() -> None:
    names = [f"u{n:03}" for n in range(RUNNING_MAX + WAITING_MAX + 5)]
    rig = rig_with("unit.starting", *(service(name) for name in names))
    for name in names:
        rig.ask("start", name, wait=False)
    assert len(hooks(rig)) == RUNNING_MAX
    assert [record.event for record in rig.records if record.event == "hook.dropped"] == ["hook.dropped"]
    end(rig, hooks(rig)[0])
    assert len(hooks(rig)) == RUNNING_MAX + 1
    assert hooks(rig)[-1].unit.startswith(f"u{RUNNING_MAX:03}!"), "the oldest call goes first"


def test_the_supervisor_waits_for_a_hook_of_its_end_but_not_for_ever() -> None:
    rig = rig_with("daemon.stopping", service("web"), timeout_ns=5 * SECOND_NS)
    rig.shut_down(90)
    (hook,) = hooks(rig)
    assert not any(isinstance(action, ExitSupervisor) for action in rig.actions)
    rig.later(5)
    end(rig, hook, None, 9)
    assert isinstance(rig.actions[-1], ExitSupervisor)


def test_a_killed_hook_that_never_ran_its_program_has_its_end_written() -> None:
    """Its time was over before it was made: nobody wrote how that ended."""
    rig = rig_with("unit.started", service("web"), timeout_ns=SECOND_NS)
    rig.ask("start", "web")
    rig.spawned("web")
    (hook,) = hooks(rig)
    rig.later(1)
    rig.happen(SpawnFailed(hook.spawn_id, "user", 217, 1))
    exits = [record for record in rig.records if record.event == "unit.exited"]
    assert [(record.fields["role"], record.fields["code"]) for record in exits] == [("hook", 217)]
    assert sum(record.event == "hook.failed" for record in rig.records) == 1

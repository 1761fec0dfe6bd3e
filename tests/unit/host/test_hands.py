"""The manager's hands: when a pid file goes, what a new manager takes over, and that nothing of the gone is kept."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from supervisord_py.core.actions import CheckConditions, FollowMain, SpawnProcess
from supervisord_py.core.events import (
    ConditionsChecked,
    Event,
    ExitStatus,
    MainFollowed,
    ProcessExited,
    ProcessSpawned,
    SpawnFailed,
)
from supervisord_py.host.accounts import Accounts
from supervisord_py.host.execution import SpawnRuntime
from supervisord_py.host.hands import CLEARED_AFTER, ManagerHands
from supervisord_py.host.output import OutputCollector
from supervisord_py.model.records import Record
from supervisord_py.model.states import Role, ServiceType
from supervisord_py.model.unit import Command, Condition, Service, Unit, UnitKind

DAEMON_PID = 2**22 - 1


class SilentOutput:
    """Units that print nothing."""

    def last_lines(self, *_: object) -> list[str]:
        return []

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.spent: Callable[[str], bool] | None = None

    def mark_life(self, unit: str, _: str) -> None:
        self.kept.add(unit)

    def forget(self, unit: str) -> None:
        self.kept.discard(unit)

    def clear(self, is_spent: Callable[[str], bool]) -> None:
        self.spent = is_spent

    def detach(self, unit: str) -> None:
        pass

    def drain(self, unit: str) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Rig:
    def __init__(self, unit: Unit) -> None:
        self.asked: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self.records: list[Record] = []
        self.output = SilentOutput()
        self.hands = ManagerHands(
            runtime=SpawnRuntime(control_socket="/run/x", accounts=Accounts()),
            output=cast(OutputCollector, self.output),
            unit_of=lambda name: unit if name == unit.name else None,
            ask=self.asked.append,
            submit=self.events.append,
            note=self.records.append,
            trees=self.trees,
            pid_of=lambda unit: None,
            invocation_of=lambda unit: None,
            is_restarted=lambda unit: False,
        )

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        return {}

    def spawn(self, spawn_id: int, role: Role, unit: str = "web") -> None:
        made = self.hands.spawn(SpawnProcess(spawn_id, unit, role, Command(("/bin/true",)), "f" * 32))
        assert isinstance(made, dict), made
        self.hands.process_spawned(ProcessSpawned(spawn_id, 1000 + spawn_id))

    def exit(self, spawn_id: int, *, empty: bool) -> None:
        self.hands.process_exited(ProcessExited(spawn_id, 1000 + spawn_id, ExitStatus(0), tree_empty=empty))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)


def drive(unit: Unit, test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        rig = Rig(unit)
        try:
            await test(rig)
        finally:
            await rig.hands.close()

    asyncio.run(main())


def forking(pid_file: Path, *post: Command) -> Unit:
    service = Service(ServiceType.FORKING, (Command(("/bin/d",)),), pid_file=str(pid_file), exec_stop_post=post)
    return Unit("web", UnitKind.SERVICE, service)


async def start(rig: Rig, pid_file: Path) -> None:
    """Let the unit's start command leave a daemon, and be told of it."""
    rig.spawn(1, Role.START)
    pid_file.write_text(f"{DAEMON_PID}\n")
    rig.exit(1, empty=False)
    rig.hands.follow(FollowMain("web", 2, str(pid_file)))
    await rig.until(lambda: rig.asked)
    assert (rig.asked[0]["pid"], rig.asked[0]["trusted"]) == (DAEMON_PID, True)
    assert rig.hands.main_followed(MainFollowed("web", 2, DAEMON_PID))


def test_a_pid_file_goes_with_the_last_process_of_a_life(tmp_path: Path) -> None:
    """Also before an automatic restart, where the unit is not let go of."""
    path = tmp_path / "a.pid"

    async def test(rig: Rig) -> None:
        await start(rig, path)
        rig.exit(2, empty=False)
        await rig.hands.settle()
        assert path.exists()
        rig.spawn(3, Role.STOP)
        rig.exit(3, empty=True)
        await rig.hands.settle()
        assert not path.exists()

    drive(forking(path), test)


def test_exec_stop_post_still_finds_the_pid_file(tmp_path: Path) -> None:
    """It goes after those commands, as in systemd."""
    path = tmp_path / "a.pid"

    async def test(rig: Rig) -> None:
        await start(rig, path)
        rig.exit(2, empty=True)
        await rig.hands.settle()
        assert path.exists()
        rig.spawn(3, Role.STOP_POST)
        rig.exit(3, empty=True)
        await rig.hands.settle()
        assert not path.exists()

    drive(forking(path, Command(("/bin/p",))), test)


def test_a_pid_file_of_somebody_else_stays(tmp_path: Path) -> None:
    """One that names another living process than the unit's is not ours to remove."""
    path = tmp_path / "a.pid"

    async def test(rig: Rig) -> None:
        await start(rig, path)
        path.write_text(f"{os.getpid()}\n")
        rig.exit(2, empty=True)
        rig.hands.release("web")
        await rig.hands.settle()
        assert path.exists()

    drive(forking(path), test)


def test_a_new_manager_knows_the_daemon_of_the_one_before(tmp_path: Path) -> None:
    """What the keeper has in its inventory is enough to remove the file that names it."""
    path = tmp_path / "a.pid"
    path.write_text(f"{os.getpid()}\n")

    async def test(rig: Rig) -> None:
        rig.hands.restore([(2, "web", "main", os.getpid())])
        rig.exit(2, empty=True)
        await rig.hands.settle()
        assert not path.exists()

    drive(forking(path), test)


def test_nothing_is_kept_of_spawns_that_are_over(tmp_path: Path) -> None:
    """A unit that fails for ever makes the manager no larger, whichever way its processes end."""

    async def test(rig: Rig) -> None:
        for spawn_id in range(1, 10, 2):
            rig.spawn(spawn_id, Role.MAIN)
            rig.exit(spawn_id, empty=True)
            rig.spawn(spawn_id + 1, Role.MAIN)
            rig.hands.spawn_failed(SpawnFailed(spawn_id + 1, "exec", 203, 2))
        assert not rig.hands._roles

    drive(forking(tmp_path / "a.pid"), test)


def test_conditions_are_answered_by_an_event(tmp_path: Path) -> None:
    """With the number they were asked with, and what does not hold."""

    async def test(rig: Rig) -> None:
        conditions = (Condition("path-exists", str(tmp_path)), Condition("path-exists", "/nope"))
        rig.hands.check(CheckConditions(5, "web", conditions, ()))
        await rig.until(lambda: rig.events)
        assert rig.events == [ConditionsChecked(5, "web", 'condition-path-exists = "/nope"', None)]

    drive(forking(tmp_path / "a.pid"), test)


def test_a_bug_in_what_is_let_go_of_kept_the_unit_for_ever(tmp_path: Path) -> None:
    """Whatever raises on the way, the keeper is told to release the unit, and the journal of each bug."""

    class Broken:
        def release(self, *_: object, **__: object) -> None:
            raise ValueError("broken")

        def settle(self) -> None:
            pass

    class BrokenOutput(SilentOutput):
        def drain(self, unit: str) -> "asyncio.Future[None]":
            raise OSError("no such pipe")

        def detach(self, unit: str) -> None:
            raise OSError("no such pipe")

    async def test(rig: Rig) -> None:
        broken: Any = Broken()
        rig.hands._runtime = msgspec.structs.replace(
            rig.hands._runtime, keeping=broken, private=broken, resources=broken
        )
        rig.hands._output = cast(OutputCollector, BrokenOutput())
        rig.hands.release("web")
        await rig.hands.settle()
        assert rig.asked == [{"do": "release", "unit": "web"}]
        assert len(rig.records) == 5

    drive(forking(tmp_path / "a.pid"), test)


def test_output_of_each_connection_was_kept_for_ever() -> None:
    """What is known of an instance for a connection goes with it, and of many the files of the oldest."""
    unit = Unit("web@1-127.0.0.1:4001", UnitKind.SERVICE, Service(ServiceType.SIMPLE, (Command(("/bin/true",)),)))

    async def test(rig: Rig) -> None:
        for spawn_id in range(1, CLEARED_AFTER + 1):
            rig.spawn(spawn_id, Role.MAIN, unit.name)
            rig.exit(spawn_id, empty=True)
            rig.hands.release(unit.name)
            await rig.until(lambda spawn_id=spawn_id: len(rig.asked) == spawn_id)
            assert not rig.output.kept
        is_spent = rig.output.spent
        assert is_spent is not None and is_spent("web@2-127.0.0.1:4002") and is_spent("web@a-3-::1:4003-2")
        assert not any(map(is_spent, (unit.name, "web", "web@2", "web@2-blue", "web@2-127.0.0.1")))

    drive(unit, test)

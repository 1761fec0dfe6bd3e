"""Standing still by SIGSTOP, with real processes and a keeper that is a list: rounds, what is gone, what is refused."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.core.actions import FreezeUnit, LookAtProcesses, ThawUnit
from supervisord_py.core.events import Event, ProcessesSeen, UnitFrozen
from supervisord_py.host import standstill
from supervisord_py.host.standstill import StandStill, read_state, stands_still


class Rig:
    """The tree of the unit ``web``; each look at it may find other processes."""

    def __init__(self, looks: Sequence[Sequence[int]], *, deaf: bool = False) -> None:
        self.looks = [list(pids) for pids in looks]
        self.events: list[Event] = []
        self.signals: list[int] = []
        self._deaf = deaf
        self.still = StandStill(
            groups=None,
            trees=self.trees,
            ask=self.ask,
            submit=self.events.append,
            pid_of=lambda unit: self.looks[-1][0],
        )

    async def trees(self, units: Sequence[str]) -> dict[str, list[int]]:
        if not units:
            return {}
        assert units == ["web"]
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return {"web": found} if found else {}

    def ask(self, request: dict[str, Any]) -> None:
        assert (request["do"], request["unit"], request["whom"]) == ("signal", "web", "all")
        self.signals.append(request["signal"])
        for pid in () if self._deaf else self.looks[0]:
            os.kill(pid, request["signal"])

    async def answer(self) -> Event:
        async with asyncio.timeout(20):
            while not self.events:
                await asyncio.sleep(0)
        return self.events.pop(0)


@pytest.fixture
def sleepers() -> Any:
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield [process.pid for process in processes]
    for process in processes:
        process.kill()
        process.wait()


def test_what_appears_while_a_tree_is_stopped_is_stopped_too(sleepers: list[int]) -> None:
    """Only two looks in a row that find nothing that moves are an answer; all of it goes on again."""

    async def main() -> None:
        rig = Rig([sleepers[:1], sleepers[:1], sleepers])
        rig.still.freeze(FreezeUnit("web"))
        assert await rig.answer() == UnitFrozen("web", frozen=True)
        assert all(map(stands_still, sleepers))
        assert rig.signals.count(signal.SIGSTOP) >= 2
        rig.still.look(LookAtProcesses(7, "web"))
        assert await rig.answer() == ProcessesSeen(7, "web", stopped=True)
        rig.still.thaw(ThawUnit("web"))
        assert await rig.answer() == UnitFrozen("web", frozen=False)
        assert not any(map(stands_still, sleepers))
        rig.still.look(LookAtProcesses(8, "web"))
        assert await rig.answer() == ProcessesSeen(8, "web", stopped=False)

    asyncio.run(main())


def test_a_unit_that_is_gone_does_not_stand_still() -> None:
    """An order always has an answer, also where there is nobody left."""

    async def main() -> None:
        rig = Rig([[]])
        rig.still.freeze(FreezeUnit("web"))
        assert await rig.answer() == UnitFrozen("web", frozen=False, detail="no process of it is left")
        rig.still.thaw(ThawUnit("web"))
        assert await rig.answer() == UnitFrozen("web", frozen=False)

    asyncio.run(main())


def test_what_cannot_be_stopped_lets_the_others_go_on(sleepers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that takes no signal of ours fails the order by its number, after the time for it."""
    monkeypatch.setattr(standstill, "FREEZE_S", 0.05)

    async def main() -> None:
        rig = Rig([sleepers[:1]], deaf=True)
        rig.still.freeze(FreezeUnit("web"))
        answer = await rig.answer()
        assert answer == UnitFrozen("web", frozen=False, detail=f"process {sleepers[0]} cannot be stopped")

    asyncio.run(main())


def test_a_later_order_takes_the_place_of_an_earlier_one(sleepers: list[int]) -> None:
    """Of two orders only the last is answered, and what holds then is that one."""

    async def main() -> None:
        rig = Rig([sleepers])
        rig.still.freeze(FreezeUnit("web"))
        rig.still.thaw(ThawUnit("web"))
        assert await rig.answer() == UnitFrozen("web", frozen=False)
        await rig.still.close()
        assert not rig.events
        assert not any(map(stands_still, sleepers))

    asyncio.run(main())


def test_the_parent_of_a_vfork_counts_as_stopped(tmp_path: Path) -> None:
    """It waits in the kernel for its child, which is stopped, with its own stop pending: it does nothing any more."""
    script = tmp_path / "v.py"
    script.write_text(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "if libc.vfork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    libc.pause()\n"
    )
    parent = subprocess.Popen(["python3", str(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert not stands_still(parent.pid)
        os.kill(child, signal.SIGSTOP)
        os.kill(parent.pid, signal.SIGSTOP)

        async def both() -> None:
            async with asyncio.timeout(20):
                while not (stands_still(child) and stands_still(parent.pid)):
                    await asyncio.sleep(0)

        asyncio.run(both())
        assert read_state(parent.pid) == "D"
    finally:
        os.kill(child, signal.SIGKILL)
        parent.kill()
        parent.communicate()

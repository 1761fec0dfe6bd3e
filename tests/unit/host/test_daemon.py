"""The manager between two commits: whatever the keeper has of it, the next one goes on from there."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from supervisord_py.core.events import ShutdownForced, UnitsLoaded
from supervisord_py.host.daemon import Daemon
from supervisord_py.host.keeper_client import Owner, Welcome
from supervisord_py.model.unit import UnitSet

UNITS = {
    "web": '[service]\nexec-start = ["sleep", "1000"]\n',
    "db": '[service]\nexec-start = ["sleep", "1000"]\n',
}


class Commit(msgspec.Struct):
    state: dict[str, str | None]
    lines: list[tuple[int, str]]
    requests: list[dict[str, Any]]
    deadline_ns: int | None

    @property
    def events(self) -> list[str]:
        return [msgspec.json.decode(line)["event"] for _, line in self.lines]


class FakeKeeper:
    """Keeps what a manager commits."""

    version, protocol, pid = "0", 1, 1

    def __init__(self) -> None:
        self.commits: list[Commit] = []
        self.on_commit: Callable[[Commit], None] = lambda commit: None

    def start(self, **_: Callable[..., None]) -> None: ...

    async def whose(self, pid: int) -> Owner:
        return Owner(None, False, False)

    async def trees(self, units: Sequence[str] | None = None) -> dict[str, list[int]]:
        return {}

    def commit(
        self,
        *,
        ack: int,
        state: Mapping[str, str | None],
        lines: Sequence[tuple[int, str]],
        journalled: int,
        requests: Sequence[dict[str, Any]],
        on_sent: Callable[[], None],
        deadline_ns: int | None,
    ) -> None:
        commit = Commit(dict(state), list(lines), list(requests), deadline_ns)
        self.commits.append(commit)
        on_sent()
        self.on_commit(commit)

    def state_after(self, commits: int) -> dict[str, str]:
        """What is in custody after so many commits."""
        state: dict[str, str | None] = {}
        for commit in self.commits[:commits]:
            state |= commit.state
        return {key: text for key, text in state.items() if text is not None}

    def lines_after(self, commits: int) -> list[tuple[int, str]]:
        return [line for commit in self.commits[:commits] for line in commit.lines]

    @property
    def asked(self) -> list[str]:
        return [request["do"] for commit in self.commits for request in commit.requests]


@asynccontextmanager
async def manager(
    folder: Path, *, state: Mapping[str, str] | None = None, lines: Sequence[tuple[int, str]] = ()
) -> AsyncIterator[tuple[Daemon, FakeKeeper]]:
    """Put a manager together over a keeper that remembers, and let it serve."""
    (folder / "units").mkdir(exist_ok=True)
    for name, text in UNITS.items():
        (folder / "units" / f"{name}.toml").write_text(text)
    for name in ("s", "l"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "control.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "control.sock"))
        listener.listen()
        welcome = Welcome(
            protocol=1, version="0", pid=1, instance=7, runtime_dir=str(folder),
            state=dict(state or {}), lines=list(lines), processes=[], orphans=[], strays=[], outputs=[],
            managers=1, stopping=None, listeners={"control": listener},
            config={
                "name": "test", "unit_paths": [str(folder / "units")], "is_settings_typed": False, "events": "warnings",
                "runtime_dir": str(folder), "state_dir": str(folder / "s"), "log_dir": str(folder / "l"),
                "settings_path": str(folder / "no.toml"), "socket": str(folder / "control.sock"), "socket_gid": None,
                "pass_environment": [], "colour": False,
            },
        )  # fmt: skip
        keeper = FakeKeeper()
        made = Daemon(keeper, welcome)  # type: ignore[arg-type]  # the fake does what of the client is used
        serving = asyncio.ensure_future(made.serve())
        try:
            yield made, keeper
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            await made.close()


async def until(condition: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


def drive(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def spawned(keeper: FakeKeeper) -> list[str]:
    return sorted(
        request["unit"] for commit in keeper.commits for request in commit.requests if request["do"] == "spawn"
    )


def with_unit(made: Daemon, name: str) -> UnitSet:
    """Return the units of a manager and one more."""
    units = made.loaded.unit_set.units
    return UnitSet(units={**units, name: msgspec.structs.replace(units["web"], name=name)})


def all_spawned(keeper: FakeKeeper) -> Callable[[], bool]:
    return lambda: len(spawned(keeper)) == len(UNITS)


def end_asked(keeper: FakeKeeper) -> Callable[[], bool]:
    return lambda: "exit" in keeper.asked


def test_first_manager_killed_before_its_first_decision_has_a_successor_that_starts_everything(tmp_path: Path) -> None:
    """After any prefix of the first manager's commits the next one either knows the units' jobs, or is first itself."""

    async def main() -> None:
        async with manager(tmp_path) as (_, keeper):
            await until(all_spawned(keeper), "the spawns")
        whole = next(number for number, commit in enumerate(keeper.commits) if commit.requests) + 1
        for commits in range(whole):
            state, lines = keeper.state_after(commits), keeper.lines_after(commits)
            async with manager(tmp_path, state=state, lines=lines) as (_, second):
                await until(all_spawned(second), f"the spawns after {commits} commits")
        async with manager(tmp_path, state=keeper.state_after(whole), lines=keeper.lines_after(whole)) as (_, third):
            await until(lambda: third.commits, "its first commit")
            assert "manager.restarted" in third.commits[0].events
            assert spawned(third) == []

    drive(main())


def test_keeper_knows_when_the_manager_wants_to_act_next(tmp_path: Path) -> None:
    """With a start that has a time limit under way, each commit says when that is over: a manager that sleeps through
    it is hung."""

    async def main() -> None:
        async with manager(tmp_path) as (made, keeper):
            await until(all_spawned(keeper), "the spawns")
            deadline_ns = keeper.commits[-1].deadline_ns
            assert deadline_ns is not None
            assert deadline_ns == made.manager.deadline_ns()
            assert deadline_ns > time.monotonic_ns()

    drive(main())


def test_manager_killed_while_finishing_the_shutdown_has_a_successor_that_ends_it(tmp_path: Path) -> None:
    """Once the end is decided each manager asks the keeper for it, and ``daemon.stopped`` is told once."""

    async def main() -> None:
        async with manager(tmp_path) as (made, keeper):
            await until(lambda: spawned(keeper), "the spawns")
            made._driver.submit(ShutdownForced())
            await until(end_asked(keeper), "the end")
        decided = next(n for n, commit in enumerate(keeper.commits) if "daemon.stopping" in commit.events) + 1
        told = next(n for n, commit in enumerate(keeper.commits) if "daemon.stopped" in commit.events) + 1
        asked = next(n for n, commit in enumerate(keeper.commits) if any(r["do"] == "exit" for r in commit.requests))
        assert decided <= told <= asked
        ended = 0
        for commits in range(decided, asked + 1):
            state, lines = keeper.state_after(commits), keeper.lines_after(commits)
            if '"exited":true' not in "".join(state.values()):
                continue
            ended += 1
            async with manager(tmp_path, state=state, lines=lines) as (_, second):
                await until(end_asked(second), f"the end after {commits} commits")
            events = [event for commit in second.commits for event in commit.events]
            assert events.count("daemon.stopped") == (commits < told)
        assert ended >= 2

    drive(main())


def test_release_and_start_in_one_turn_reach_the_keeper_in_this_order(tmp_path: Path) -> None:
    """A unit that is let go of and started in the same batch gets a new pipe: its release goes before its spawn."""

    async def main() -> None:
        async with manager(tmp_path) as (made, keeper):
            await until(all_spawned(keeper), "the spawns")
            for _ in range(3):
                await asyncio.sleep(0)
            before = len(keeper.commits)
            made._driver.ask({"do": "release", "unit": "late"})
            made._driver.submit(UnitsLoaded(with_unit(made, "late"), start_enabled=True))
            await until(lambda: "late" in spawned(keeper), "the spawn")
            asked = [(each["do"], each["unit"]) for commit in keeper.commits[before:] for each in commit.requests]
            assert asked == [("release", "late"), ("spawn", "late")]

    drive(main())

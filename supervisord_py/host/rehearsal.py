"""Whether a new manager, of the code as it is on disk now, can go on from the state of this one: tried in a process of
its own before anybody is replaced.

A manager that cannot be imported is found by the keeper, which starts the next one beside the old. What goes wrong only
when the state is restored would be found too late: the old one has ended by then, and each new one dies in its turn. So
the present manager gives a copy of its state to ``python -m supervisord_py.host.rehearsal``, which does with it what a
manager does up to its first commits, reload included, writes them down, and throws them away. Nothing outside is
touched: actions are carried out by nobody, the journal is a folder that goes with the rehearsal.
"""

import asyncio
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from supervisord_py.core import view
from supervisord_py.core.actions import (
    CheckConditions,
    FollowMain,
    FreezeUnit,
    LookAtConnections,
    LookAtProcesses,
    OpenSockets,
    RunProbe,
    SpawnProcess,
    ThawUnit,
)
from supervisord_py.core.events import MainFollowed, SpawnFailed, UnitsLoaded
from supervisord_py.core.manager import Manager
from supervisord_py.host.clock import Clock
from supervisord_py.host.driver import Driver
from supervisord_py.host.journal_file import Journal
from supervisord_py.host.last_good import LAST_GOOD_KEY, LastGood
from supervisord_py.host.snapshot_file import boot_id, next_manager
from supervisord_py.host.sources import SOURCES_KEY, Sources, told_of_settings
from supervisord_py.keeper.child import die_with_parent
from supervisord_py.model.records import Record

COMMAND = [sys.executable, "-P", "-m", "supervisord_py.host.rehearsal"]
TIMEOUT_S = 60.0
"""How long it may take: a thousand units on a busy machine take a few seconds."""

FIT = "fit"
_REASON_MAX = 500


def rehearse(state: Mapping[str, str]) -> str | None:
    """Return why a new manager cannot take over this state, None when it can. Blocks: not for the loop's thread.

    Args:
        state: What the keeper has of the present manager.
    """
    try:
        ran = subprocess.run(
            [*COMMAND, str(os.getpid())], input=msgspec.json.encode(state), capture_output=True, timeout=TIMEOUT_S,
            check=False, cwd="/",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the new manager is not fit: it has not restored the state within {TIMEOUT_S:g}s"
    except OSError as error:
        return f"the new manager cannot be tried: {(error.strerror or str(error)).lower()}"
    if ran.returncode == 0 and ran.stdout.decode(errors="replace").strip() == FIT:
        return None
    last = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2][:_REASON_MAX]
    return f"the new manager is not fit: {last or f'it ended with {ran.returncode}'}"


class _Custody:
    """Takes a commit as the keeper's client does, as far as that it can be written down."""

    def commit(self, *, on_sent: Callable[[], None], **said: Any) -> None:
        msgspec.json.encode(said)
        on_sent()


class _NoHands:
    """Carries out nothing: what is asked for has no answer."""

    def spawn(self, action: SpawnProcess) -> dict[str, Any]:
        return {"do": "spawn", "id": action.spawn_id}

    def process_spawned(self, event: Any) -> None: ...

    def spawn_failed(self, event: SpawnFailed) -> None: ...

    def process_exited(self, event: Any) -> Any:
        return event

    def batch_done(self) -> None: ...

    def main_pid_changed(self, event: Any) -> None: ...

    def follow(self, action: FollowMain) -> None: ...

    def stop_following(self, spawn_id: int) -> None: ...

    def main_followed(self, event: MainFollowed) -> bool:
        return True

    def check(self, action: CheckConditions) -> None: ...

    def open_sockets(self, action: OpenSockets) -> dict[str, Any]:
        return {}

    def look_at_connections(self, action: LookAtConnections) -> None: ...

    def freeze(self, action: FreezeUnit) -> None: ...

    def thaw(self, action: ThawUnit) -> None: ...

    def look(self, action: LookAtProcesses) -> None: ...

    def probe(self, action: RunProbe) -> None: ...

    def release(self, unit: str) -> None: ...


async def take_over(state: Mapping[str, str], folder: Path) -> None:
    """Do what a manager does that follows another, up to a commit after a reload of what was loaded.

    Args:
        state: The keeper's custody.
        folder: For a journal; it need not be usable.
    """
    loop = asyncio.get_running_loop()
    sources = Sources.unpack(state[SOURCES_KEY])
    settings, loaded = sources.build()
    last_good = LastGood(state.get(LAST_GOOD_KEY))
    manager = next_manager(state, loaded.unit_set)
    journal = Journal(folder, settings.journal, boot_id=boot_id(), loop=loop, group_id=None)
    journal.open([])
    batches = asyncio.Event()
    driver = Driver(
        manager, _Custody(), journal, _NoHands(),
        clock=Clock(), on_exit=lambda _: None, on_revert=lambda _: None, on_keep=lambda: None,
        on_batch=batches.set,
    )  # fmt: skip
    journal.attach(driver.note)
    driver.note([Record("manager.restarted")])
    driver.ask_again()
    keep = {SOURCES_KEY: sources.pack(), LAST_GOOD_KEY: last_good.pack()}
    driver.submit(UnitsLoaded(loaded.unit_set, start_enabled=False, **told_of_settings(settings)), keep=keep)
    await batches.wait()
    after = Manager.restore(manager.snapshot(), loaded.unit_set)
    for name in view.list_units(after):
        view.unit_status(after, name)
    view.jobs(after)
    await journal.close()


def _fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A batch failed: the manager would end with it."""
    print(f"{type(context.get('exception')).__name__}: {context.get('exception')}", file=sys.stderr, flush=True)
    os._exit(1)


async def _main() -> None:
    asyncio.get_running_loop().set_exception_handler(_fail)
    # All that a manager imports, whether it is tried here or not.
    importlib.import_module("supervisord_py.host.daemon")
    state = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, str])
    folder: str | None = None
    try:
        folder = tempfile.mkdtemp(prefix="supervisord-py-rehearsal-")
    except OSError:
        pass  # A full disk is no reason: the journal goes on without one, too.
    try:
        await take_over(state, Path(folder or "/proc/none"))
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Rehearse with the state on standard input; exits with 0, and says so, when all went well."""
    die_with_parent(9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the manager has ended")
    asyncio.run(_main())
    print(FIT, flush=True)


if __name__ == "__main__":
    main()

"""Hearing of a clock that is set, and the copy of the state that a power cut must not undo."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from supervisord_py.host.clock import ClockWatch, watch_clock
from supervisord_py.host.snapshot_file import SnapshotStore, read_snapshot


def test_the_kernels_timer_is_watched_and_closed() -> None:
    """One descriptor, nothing heard while nobody sets the clock, and nothing left when it is closed."""

    async def play() -> None:
        before = len(os.listdir("/proc/self/fd"))
        heard: list[bool] = []
        close = watch_clock(asyncio.get_running_loop(), lambda: heard.append(True))
        assert len(os.listdir("/proc/self/fd")) == before + 1
        await asyncio.sleep(0)
        assert heard == []
        close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(play())


def test_a_cancelled_timer_is_a_clock_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """ECANCELED is told, each time anew; a wake-up with nothing to read is not."""

    async def play() -> None:
        heard: list[bool] = []
        watch = ClockWatch(asyncio.get_running_loop(), lambda: heard.append(True))
        watch._ready()
        assert heard == []

        def cancelled(descriptor: int, count: int) -> bytes:
            raise OSError(errno.ECANCELED, "the clock was set")

        with monkeypatch.context() as patched:
            patched.setattr(os, "read", cancelled)
            watch._ready()
            watch._ready()
        assert heard == [True, True]
        watch.close()

    asyncio.run(play())


def test_copies_of_the_state_are_written_one_at_a_time(tmp_path: Path) -> None:
    """Whoever asks while another waits for its turn is content with that one; a later wish is a later copy."""
    states = iter(range(100))
    path = tmp_path / "snapshot.json"

    async def play() -> None:
        store = SnapshotStore(path, None, lambda: {"global": str(next(states))})
        await asyncio.gather(*(store.store() for _ in range(20)))
        found = read_snapshot(path)
        assert found is not None
        assert int(found.state["global"]) < 3, "twenty wishes, few copies"
        await store.store()
        later = read_snapshot(path)
        assert later is not None
        assert int(later.state["global"]) > int(found.state["global"])

    asyncio.run(play())

"""What people and the core see while the disk is full or broken, and afterwards: nothing is hidden, nothing has a
hole."""

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from supervisord_py.core.events import Now
from supervisord_py.host import journal_file
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.journal_file import GIVEN_UP_KEY, LOSS_KEY, Journal
from supervisord_py.host.journal_reader import verify_directory
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings
from tests.faults.journal_fake_disk import FakeDisk

SETTINGS = JournalSettings(reserve=0)
DEADLINE_S = 20


def now(journal: Journal) -> Now:
    return Now(time.monotonic_ns(), time.monotonic_ns(), time.time_ns(), journal.next_seq)


def note(journal: Journal, records: Sequence[Record]) -> None:
    journal.append(journal.encode(records, now(journal)))


def open_journal(
    directory: Path,
    disk: FakeDisk | None,
    settings: JournalSettings = SETTINGS,
    loss: str | None = None,
    given_up: str | None = None,
) -> Journal:
    journal = Journal(directory, settings, boot_id="boot", loop=asyncio.get_running_loop(), disk=disk)
    journal.open([], loss, given_up)
    journal.attach(lambda records: note(journal, records))
    return journal


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def broken(code: int) -> Callable[[str, str], None]:
    def fail(operation: str, _name: str) -> None:
        if operation in ("append", "create"):
            raise OSError(code, os.strerror(code))

    return fail


def messages(number: int, size: int = 10) -> list[Record]:
    return [Record("unit.message", unit="web", fields={"text": "x" * size}) for _ in range(number)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_records_wait_in_memory_and_are_shown(tmp_path: Path, code: int) -> None:
    """While the disk fails, numbers go on, replies are not durable, queries and followers see what waits, and people
    are told."""

    async def body() -> None:
        disk = FakeDisk()
        journal = open_journal(tmp_path, disk)
        disk.on_step = broken(code)
        following = journal.follow(RecordFilter(), 0)
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        note(journal, messages(3))
        assert not await journal.wait_durable(3)
        assert journal.next_seq == 4 and journal.journalled == 0
        assert journal.degraded is not None and os.strerror(code) in journal.degraded
        assert "3 records wait in memory, supervision goes on" in journal.degraded
        assert [record["seq"] for record in await journal.query(RecordFilter(), 2)] == [2, 3]
        assert (await waiting).record["seq"] == 1
        begun = time.monotonic()
        assert not await journal.wait_durable(3)
        assert time.monotonic() - begun < 1
        await following.aclose()
        disk.on_step = None
        await until(lambda: journal.journalled == 3 and journal.degraded is None)
        assert await journal.wait_durable(3)
        await journal.close()
        disk.dump(tmp_path / "found")
        assert verify_directory(tmp_path / "found", written=3).ok

    run(body)


def test_a_full_buffer_counts_what_it_loses_and_says_so_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the buffer no number is used up; when the disk is back one record tells how many were lost, when and
    why."""
    monkeypatch.setattr(journal_file, "BUFFER_BYTES_MAX", 2000)

    async def body() -> None:
        disk = FakeDisk()
        journal = open_journal(tmp_path, disk)
        disk.on_step = broken(errno.ENOSPC)
        while journal.next_seq:
            note(journal, messages(1))
        kept = journal._chain.next_seq - 1
        assert 5 < kept < 20
        await until(lambda: journal.degraded is not None and "No space" in journal.degraded)
        note(journal, messages(4))
        note(journal, messages(3))
        assert (journal.next_seq, journal.lost, await journal.wait_durable(kept)) == (0, 7, False)
        assert journal.degraded is not None and "7 records are lost so far" in journal.degraded
        loss = journal.take_changes()[LOSS_KEY]
        assert loss is not None and json.loads(loss)["lost"] == 7
        assert journal.take_changes() == {}
        disk.on_step = None
        await until(lambda: journal.journalled == kept + 1)
        assert journal.next_seq == kept + 2
        assert journal.take_changes() == {LOSS_KEY: None}
        note(journal, messages(1))
        assert await journal.wait_durable(kept + 2)
        await journal.close()
        disk.dump(tmp_path / "found")
        records = [json.loads(line) for line in (tmp_path / "found").glob("*").__next__().read_text().splitlines()[1:]]
        gap = records[kept]
        assert (gap["event"], gap["severity"], gap["lost"]) == ("journal.gap", "error", 7)
        assert "No space left" in gap["reason"] and gap["first_lost"] <= gap["last_lost"]
        assert verify_directory(tmp_path / "found", written=kept + 2).ok

    run(body)


def test_a_loss_survives_the_manager(tmp_path: Path) -> None:
    """A manager that died while records were lost cannot hide it: custody gives the count to the next one, which
    tells it first."""

    async def body() -> None:
        loss = json.dumps({"lost": 5, "reason": "full", "first": "a", "last": "b"})
        journal = open_journal(tmp_path, FakeDisk(), loss=loss)
        assert journal.take_changes() == {LOSS_KEY: None}
        note(journal, messages(1))
        first, second = await journal.query(RecordFilter(), None)
        assert (first["seq"], first["event"], first["lost"], second["seq"]) == (1, "journal.gap", 5, 2)
        await journal.close()

    run(body)


def test_a_file_that_was_given_up_is_not_continued_by_the_next_manager(tmp_path: Path) -> None:
    """A sync has failed and the file cannot be set aside: custody has its name until that is done, and the manager
    that finds it there writes its records again. Else a power failure could take what it calls durable."""

    def fail(operation: str, _name: str) -> None:
        if operation in ("sync", "rename"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def body() -> None:
        disk = FakeDisk()
        journal = open_journal(tmp_path, disk)
        note(journal, messages(3))
        await until(lambda: journal.journalled == 3)
        disk.on_step = fail
        assert not await journal.wait_durable(3)
        await until(lambda: journal.degraded is not None)
        name = journal.take_changes()[GIVEN_UP_KEY]
        assert name is not None and json.loads(name) == next(iter(disk.files))
        left, left.files, left.stable, left.poisoned = FakeDisk(), disk.files, disk.stable, disk.poisoned
        later = open_journal(tmp_path, left, given_up=name)
        assert later.next_seq == 4
        note(later, messages(1))
        assert await later.wait_durable(4)
        assert later.take_changes() == {GIVEN_UP_KEY: None}
        left.lose_power().dump(tmp_path / "found")
        assert verify_directory(tmp_path / "found", written=4).ok
        await later.close()
        await journal.close()

    run(body)


def test_commands_are_refused_on_a_full_disk_only_where_that_is_wished(tmp_path: Path) -> None:
    """when-full = refuse-commands holds from the moment the reserve is spent until there is room again."""

    async def body() -> None:
        for when_full in ("continue", "refuse-commands"):
            disk = FakeDisk()
            settings = JournalSettings(reserve=8192, when_full=when_full)
            journal = open_journal(tmp_path, disk, settings)
            note(journal, messages(1))
            assert await journal.wait_durable(1)
            await until(lambda disk=disk: disk.reserved == 8192)  # type: ignore[misc]
            assert not journal.refusing
            disk.capacity = 8192 + sum(len(data) for data in disk.files.values())
            note(journal, messages(2))
            assert await journal.wait_durable(3), "the reserve is there to be spent"
            assert journal.refusing == (when_full == "refuse-commands")
            assert journal.degraded is not None and "disk is full" in journal.degraded
            await journal.close()

    run(body)


def test_a_folder_that_cannot_be_read_does_not_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are counted as lost, nothing is numbered blindly, and when the folder is back the journal goes on after
    its last record."""
    monkeypatch.setattr(journal_file, "OPEN_AGAIN_FIRST_S", 0.01)

    async def body() -> None:
        disk = FakeDisk()
        first = open_journal(tmp_path, disk)
        note(first, messages(3))
        await first.close()

        def fail(_operation: str, _name: str) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk.on_step = fail
        journal = open_journal(tmp_path, disk)
        assert journal.next_seq == 0
        assert journal.degraded is not None and "cannot open the journal" in journal.degraded
        note(journal, messages(2))
        disk.on_step = None
        await until(lambda: journal.journalled == 4)
        assert journal.next_seq == 5
        await journal.close()
        text = bytes(next(iter(disk.files.values()))).decode().splitlines()[4]
        gap = json.loads(text)
        assert (gap["seq"], gap["event"], gap["lost"]) == (4, "journal.gap", 2)

    run(body)


def test_a_segment_that_cannot_be_read_is_set_aside_and_no_number_is_given_twice(tmp_path: Path) -> None:
    """A bad sector in the newest segment costs what cannot be read, and the numbers that can have been there."""

    async def body() -> None:
        disk = FakeDisk()
        first = open_journal(tmp_path, disk)
        note(first, messages(10))
        await first.close()

        def fail(operation: str, _name: str) -> None:
            if operation == "read":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        disk.on_step = fail
        journal = Journal(tmp_path, SETTINGS, boot_id="boot", loop=asyncio.get_running_loop(), disk=disk)
        recovery = journal.open([])
        assert recovery.set_aside is not None and recovery.problem is not None
        assert recovery.next_seq > 10
        note(journal, messages(1))
        assert await journal.wait_durable(recovery.next_seq)
        assert recovery.set_aside + ".damaged" in disk.files
        await journal.close()

    run(body)


def test_a_disk_that_hangs_holds_no_reply_and_no_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync hangs, appending returns at once, waiting ends in time with no promise, and people are told."""
    monkeypatch.setattr(journal_file, "SYNC_TIMEOUT_S", 0.05)

    async def body() -> None:
        disk, released = FakeDisk(), threading.Event()
        disk.on_step = lambda operation, _name: None if operation != "sync" else (released.wait(DEADLINE_S), None)[1]
        journal = open_journal(tmp_path, disk)
        note(journal, messages(1))
        assert not await journal.wait_durable(1)
        assert journal.degraded is not None and "to answer" in journal.degraded
        note(journal, messages(1))
        released.set()
        await until(lambda: journal.durable >= 1)
        assert await journal.wait_durable(2)
        assert journal.degraded is None
        await journal.close()

    run(body)


SCRIPT = """
import asyncio, json, pathlib, sys, time
from supervisord_py.core.events import Now
from supervisord_py.host.facade import RecordFilter
from supervisord_py.host.journal_file import Journal
from supervisord_py.model.records import Record
from supervisord_py.model.settings import JournalSettings

async def main():
    folder = pathlib.Path(sys.argv[1])
    journal = Journal(folder / "journal", JournalSettings(reserve=int(sys.argv[2]), max_bytes=1 << 28), boot_id="b",
                      loop=asyncio.get_running_loop())
    journal.open([])
    def note(records):
        journal.append(journal.encode(records, Now(time.monotonic_ns(), 0, time.time_ns(), journal.next_seq)))
    journal.attach(note)
    note([Record("daemon.started")])
    assert await journal.wait_durable(1)
    seen = []
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    for number in range(400):
        note([Record("unit.message", fields={"text": "y" * 2000})])
        if not await journal.wait_durable(journal.next_seq - 1):
            seen.append(journal.degraded)
            break
    lived_on_reserve = number
    filler.unlink()
    deadline = time.monotonic() + 15
    while journal.journalled < journal.next_seq - 1 and time.monotonic() < deadline:
        note([])
        await asyncio.sleep(0)
    durable = await journal.wait_durable(journal.next_seq - 1)
    verification = await journal.verify()
    last = journal.next_seq - 1
    await journal.close()
    print(json.dumps({"seen": seen, "lived": lived_on_reserve, "durable": durable, "ok": verification.ok,
                      "records": verification.records, "last": last, "problem": verification.problem}))
asyncio.run(main())
"""


def outcome_of(command: list[str]) -> dict[str, object]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def can_mount() -> bool:
    if os.geteuid() != 0:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.root
@pytest.mark.skipif(not can_mount(), reason="needs root and a mount namespace for a small tmpfs")
def test_a_really_full_disk_spends_the_reserve_then_waits_and_goes_on(tmp_path: Path) -> None:
    """On a tmpfs of 2 MB, filled to the last byte: the reserve is lived on, then records wait, and with room all of
    them are there."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    small = tmp_path / "small"
    small.mkdir()
    inner = f"mount -t tmpfs -o size=2m none {small} && exec {sys.executable} {script} {small} 262144"
    found = outcome_of(["unshare", "-m", "sh", "-c", inner])
    assert found["ok"] and found["durable"], found
    assert found["records"] == found["last"]
    assert int(str(found["lived"])) > 20, "the reserve was not lived on"
    assert "No space left" in str(found["seen"])


def test_a_real_limit_on_file_size_makes_smaller_segments(tmp_path: Path) -> None:
    """Under RLIMIT_FSIZE of 64 KiB, 400 records of 2 KB are all written, durable and whole."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "folder").mkdir()
    limited = (
        f"import resource, os; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, {resource.RLIM_INFINITY}));"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, {str(script)!r}, {str(tmp_path / 'folder')!r}, '0'])"
    )
    found = outcome_of([sys.executable, "-c", limited])
    assert found["ok"] and found["durable"], found
    assert found["last"] == found["records"]
    assert found["seen"] == []
    assert len(list((tmp_path / "folder" / "journal").glob("journal-*"))) > 10

"""Pid files: what is believed, what is waited for, and what is removed."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.core.actions import FollowMain
from supervisord_py.core.events import MainFollowed
from supervisord_py.host import pid_files
from supervisord_py.host.bounded import HangsError, call_bounded
from supervisord_py.host.pid_files import BadPidFileError, PidFiles, read_pid_file, remove_pid_file

NO_PID = 2**22 - 1
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")


class Rig:
    """Waits of one manager, and a keeper whose answers are the test's."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[MainFollowed] = []
        self.complaints: list[str] = []
        self.waits = PidFiles(
            ask=self.asked.append,
            answer=self.answers.append,
            complain=lambda unit, reason: self.complaints.append(f"{unit}: {reason}"),
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0)

    def follow(self, path: Path, *, wait: bool = True, since_ns: int | None = None) -> None:
        self.waits.follow(FollowMain("web", 7, str(path), wait), since_ns)

    async def next_ask(self, count: int = 1) -> dict[str, Any]:
        """The keeper's ``count``-th request."""
        await self.until(lambda: len(self.asked) >= count)
        return self.asked[count - 1]

    def refuse(self, reason: str = "it is another's") -> bool:
        return self.waits.is_for_core(MainFollowed("web", 7, refused=reason))


def drive(test: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        rig = Rig()
        try:
            await test(rig)
        finally:
            await rig.waits.close()

    asyncio.run(main())


@pytest.mark.parametrize(("text", "pid"), [("42\n", 42), (" 42 \nmore\n", 42), ("0042", 42), ("4194304", 4194304)])
def test_a_number_on_the_first_line_is_a_pid(text: str, pid: int, tmp_path: Path) -> None:
    """Blanks around it and what follows do not matter."""
    (tmp_path / "a.pid").write_text(text)
    found = read_pid_file(str(tmp_path / "a.pid"))
    assert (found.pid, found.is_safe) == (pid, True)


@pytest.mark.parametrize("text", ["", "\n42", "x", "-5", "1", "0", "4194305", "4 2", "9" * 5000, "٤٢"])
def test_anything_else_is_none(text: str, tmp_path: Path) -> None:
    """Not yet written, negative, nobody's number, or no number at all."""
    (tmp_path / "a.pid").write_text(text)
    with pytest.raises(BadPidFileError):
        read_pid_file(str(tmp_path / "a.pid"))


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    """A folder, a device, a FIFO that nobody writes: none of them keeps the reader waiting."""
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path), "/dev/zero", str(tmp_path / "fifo")):
        with pytest.raises(BadPidFileError, match="not a plain file"):
            read_pid_file(path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadPidFileError, match="symbolic links"):
        read_pid_file(str(tmp_path / "loop"))


@root
def test_who_could_have_written_it_decides_whether_it_is_safe(tmp_path: Path) -> None:
    """A file, a folder or a link of another user on the way to it: what it says is no reason to follow a stranger."""
    os.chmod(tmp_path, 0o755)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
        (folder / "a.pid").write_text("42")
    (tmp_path / "good-link").symlink_to(mine / "a.pid")
    (theirs / "link").symlink_to(mine)
    (tmp_path / "bad-link").symlink_to(mine / "a.pid")
    for path in (theirs, theirs / "link", tmp_path / "bad-link"):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert read_pid_file(str(mine / "a.pid")).is_safe
    assert read_pid_file(str(tmp_path / "good-link")).is_safe
    assert not read_pid_file(str(tmp_path / "bad-link")).is_safe
    assert not read_pid_file(str(theirs / "a.pid")).is_safe
    assert not read_pid_file(str(theirs / "link" / "a.pid")).is_safe
    os.chown(mine / "a.pid", 65534, 65534)
    assert not read_pid_file(str(mine / "a.pid")).is_safe


@root
def test_nothing_is_removed_through_another_s_link(tmp_path: Path) -> None:
    """A user who may put a link on the way cannot have root's files removed."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.pid").write_text(str(NO_PID))
    os.chmod(tmp_path, 0o777)
    (tmp_path / "link").symlink_to("root")
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    assert not remove_pid_file(str(tmp_path / "link" / "a.pid"), None)
    assert remove_pid_file(str(tmp_path / "root" / "a.pid"), None)


def test_a_file_is_removed_when_it_names_nobody(tmp_path: Path) -> None:
    """The one that died, whoever has its number now, or a number that nobody has; never somebody who lives."""
    path = tmp_path / "a.pid"
    living = os.getpid()
    for pid, dead, removed in ((NO_PID, None, True), (living, living, True), (living, NO_PID, False)):
        path.write_text(f"{pid}\n")
        assert remove_pid_file(str(path), dead) is removed
        assert path.exists() is not removed
    path.write_text("what is this\n")
    assert not remove_pid_file(str(path), None)


def test_without_a_file_the_keeper_guesses() -> None:
    """Its answer is the core's."""

    async def test(rig: Rig) -> None:
        rig.waits.follow(FollowMain("web", 7), None)
        assert rig.asked == [{"do": "follow", "unit": "web", "id": 7, "pid": None}]
        assert rig.refuse("2 processes could be the main process")

    drive(test)


def test_a_file_that_is_there_is_followed_at_once(tmp_path: Path) -> None:
    """The keeper is asked about the process, and believed."""
    (tmp_path / "a.pid").write_text("42\n")

    async def test(rig: Rig) -> None:
        rig.follow(tmp_path / "a.pid")
        rig.follow(tmp_path / "a.pid")
        assert await rig.next_ask() == {"do": "follow", "unit": "web", "id": 7, "pid": 42, "trusted": True}
        assert rig.waits.is_for_core(MainFollowed("web", 7, 42))
        await rig.until(lambda: not rig.waits._waits)
        assert len(rig.asked) == 1 and not rig.answers

    drive(test)


def test_a_file_from_before_the_start_is_no_reason_to_follow_a_stranger(tmp_path: Path) -> None:
    """What it names must belong to the unit then."""
    path = tmp_path / "a.pid"
    path.write_text("42\n")
    written = path.stat().st_mtime_ns

    async def test(rig: Rig) -> None:
        rig.follow(path, since_ns=written + 1)
        assert (await rig.next_ask())["trusted"] is False
        assert not rig.refuse()
        path.write_text("43\n")
        os.utime(path, ns=(written + 1, written + 1))
        asked = await rig.next_ask(2)
        while asked["pid"] != 43:
            # Between the two changes the file may be seen with the one and not the other.
            rig.refuse()
            asked = await rig.next_ask(len(rig.asked) + 1)

    drive(test)


@pytest.mark.parametrize("below", ["a.pid", "new/a.pid", "new/er/a.pid", "link/a.pid"])
@pytest.mark.parametrize("way", ["write", "rename"])
def test_a_file_that_is_not_there_is_waited_for(below: str, way: str, tmp_path: Path) -> None:
    """Whatever folders have to come first, and however it is written; an empty file says nothing yet."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / below

    async def test(rig: Rig) -> None:
        rig.follow(path)
        for _ in range(20):
            await asyncio.sleep(0)
        for folder in reversed(path.parents):
            folder.mkdir(exist_ok=True)
            for _ in range(5):
                await asyncio.sleep(0)
        path.touch()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not rig.asked and not rig.complaints
        if way == "write":
            path.write_text("42\n")
        else:
            (path.parent / "tmp").write_text("42\n")
            (path.parent / "tmp").rename(path)
        assert (await rig.next_ask())["pid"] == 42

    drive(test)


def test_a_refused_process_is_waited_past_and_told_once(tmp_path: Path) -> None:
    """The core hears of the one that is right; people hear why the others were not, each reason once."""
    path = tmp_path / "a.pid"
    path.write_text("42\n")

    async def test(rig: Rig) -> None:
        rig.follow(path)
        await rig.next_ask()
        assert not rig.refuse("process 42 is not alive")
        await rig.until(lambda: rig.complaints)
        for count, pid in ((2, 42), (3, 43)):
            (tmp_path / "tmp").write_text(f"{pid}\n")
            (tmp_path / "tmp").rename(path)
            assert (await rig.next_ask(count))["pid"] == pid
            if pid == 42:
                assert not rig.refuse("process 42 is not alive")
        assert rig.waits.is_for_core(MainFollowed("web", 7, 43))
        assert rig.complaints == [f"web: {path} names process 42: process 42 is not alive; waiting for another"]

    drive(test)


def test_one_look_is_answered_at_once(tmp_path: Path) -> None:
    """Without waiting, a file that is not there or names nobody is the end of it, by exactly one answer."""

    async def test(rig: Rig) -> None:
        path = tmp_path / "a.pid"
        rig.follow(path, wait=False)
        await rig.until(lambda: rig.answers)
        assert rig.answers == [MainFollowed("web", 7, refused=f"{path}: no such file or directory")]
        await rig.until(lambda: not rig.waits._waits)
        path.write_text("42\n")
        rig.follow(path, wait=False)
        await rig.next_ask()
        assert not rig.refuse("process 42 is not alive")
        await rig.until(lambda: len(rig.answers) == 2)
        assert rig.answers[1].refused == f"{path} names process 42: process 42 is not alive"
        assert not rig.complaints

    drive(test)


def test_a_wait_that_is_over_asks_nothing(tmp_path: Path) -> None:
    """StopFollowing ends it; an answer that comes all the same is for the core."""
    path = tmp_path / "a.pid"

    async def test(rig: Rig) -> None:
        rig.follow(path)
        for _ in range(20):
            await asyncio.sleep(0)
        rig.waits.stop(7)
        path.write_text("42\n")
        for _ in range(50):
            await asyncio.sleep(0)
        assert not rig.asked
        assert rig.waits.is_for_core(MainFollowed("web", 7, 42))

    drive(test)


def test_what_the_manager_before_asked_for_ends_the_wait(tmp_path: Path) -> None:
    """Its answer comes to the next manager, which waits for the same file: granted is granted."""

    async def test(rig: Rig) -> None:
        rig.follow(tmp_path / "a.pid")
        assert rig.waits.is_for_core(MainFollowed("web", 7, 42))
        assert not rig.waits._waits

    drive(test)


def test_where_nothing_can_be_watched_it_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No inotify left on the machine: slower, and right."""

    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pid_files, "Inotify", none_left)
    monkeypatch.setattr(pid_files, "BLIND_S", 0.001)
    path = tmp_path / "a.pid"

    async def test(rig: Rig) -> None:
        rig.follow(path)
        for _ in range(20):
            await asyncio.sleep(0)
        path.write_text("42\n")
        assert (await rig.next_ask())["pid"] == 42

    drive(test)


def test_calls_that_hang_are_given_up_and_their_number_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller goes on; while too many hang no further one is begun, and when they are back all is well."""
    monkeypatch.setattr("supervisord_py.host.bounded.HANGING_MAX", 2)
    # What other tests have left hanging is none of this one's.
    monkeypatch.setattr("supervisord_py.host.bounded._hanging", {})

    async def main() -> None:
        reading, writing = os.pipe()
        for _ in range(2):
            with pytest.raises(HangsError, match=r"no answer within 0\.01 s"):
                await call_bounded(lambda: os.read(reading, 1), 0.01)
        with pytest.raises(HangsError, match="2 earlier looks have not come back"):
            await call_bounded(lambda: 1, 20)
        os.write(writing, b"xx")
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await call_bounded(lambda: 1, 20) == 1
                    break
                except HangsError:
                    await asyncio.sleep(0)
        with pytest.raises(FileNotFoundError):
            await call_bounded(lambda: os.stat("/nowhere"), 20)
        os.close(reading)
        os.close(writing)

    asyncio.run(main())


@pytest.mark.parametrize(("text", "why"), [("garbage\n", "holds no process id"), (None, "is not a plain file")])
def test_a_pid_file_that_is_not_believed_never_said_why(tmp_path: Path, text: str | None, why: str) -> None:
    """What stands in the place of the pid file and names nobody is told, once, while it is waited for another."""
    path = tmp_path / "a.pid"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)

    async def test(rig: Rig) -> None:
        rig.follow(path)
        await rig.until(lambda: rig.complaints)
        assert rig.complaints == [f"web: {path} {why}; waiting for a pid file that names a process"]
        path.rename(tmp_path / "away")
        (tmp_path / "tmp").write_text("42\n")
        (tmp_path / "tmp").rename(path)
        assert (await rig.next_ask())["pid"] == 42

    drive(test)

"""Reading output back: last lines over rotated files and lives, and following without a gap."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from output_rig import Rig, rig, run

from supervisord_py.host import output_reading
from supervisord_py.host.output_folder import LogFolder, open_folder
from supervisord_py.host.output_lives import KEPT_MAX, Life, LifeMarks, format_life, parse_lives, read_lives
from supervisord_py.host.output_reading import BLOCK, LAG_MAX, OutputFollower
from supervisord_py.model.log import LogPolicy


def write(folder: Path, **texts: str) -> LogFolder:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text)
    return LogFolder(folder)


def last_lines(folder: LogFolder, unit: str, lines: int, **options: Any) -> list[str]:
    return [line.text for line in output_reading.last_lines(folder, unit, lines, **options)]


def test_last_lines_go_back_over_rotated_files(tmp_path: Path) -> None:
    """Lines are counted over all files, a line that a rotation cut is joined, the unfinished last one is shown."""
    folder = write(tmp_path, web_log_2="1\n2\n3", web_log_1="3\n4\n", web_log="5\n6")
    assert last_lines(folder, "web", 1) == ["6"]
    assert last_lines(folder, "web", 2) == ["5", "6"]
    assert last_lines(folder, "web", 4) == ["33", "4", "5", "6"]
    assert last_lines(folder, "web", 99) == ["1", "2", "33", "4", "5", "6"]
    assert last_lines(folder, "web", 0) == []
    assert last_lines(folder, "nobody", 3) == []


def test_last_lines_while_the_youngest_file_is_missing(tmp_path: Path) -> None:
    """Between a rotation and the next byte the rotated file is the last; a hole among the old ones is stepped over."""
    assert last_lines(write(tmp_path, web_log_1="a\nb\n", web_log_3="x\n"), "web", 3) == ["x", "a", "b"]


def test_last_lines_of_a_large_file_read_its_end_only(tmp_path: Path) -> None:
    """The tail of a file of many blocks comes out whole, also where lines cross blocks."""
    lines = [f"{number:07d} {'x' * (number % 300)}" for number in range(5000)]
    folder = write(tmp_path, web_log="\n".join(lines) + "\n")
    assert (tmp_path / "web.log").stat().st_size > 5 * BLOCK
    assert last_lines(folder, "web", 1000) == lines[-1000:]


def test_last_lines_of_what_is_not_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are replaced, other line separators than the newline separate nothing."""
    folder = write(tmp_path)
    (tmp_path / "web.log").write_bytes(b"\xff\xfe\x00\n\x85a\x0cb\rc\n")
    assert last_lines(folder, "web", 5) == ["\ufffd\ufffd\x00", "\ufffda\x0cb\rc"]


async def live(it: Rig, unit: str, invocation: str, words: bytes) -> None:
    """Let the unit live once and say something."""
    it.output.mark_life(unit, invocation)
    # Its process is asked for now, and is made by the keeper: a look at the pipe that had begun is over by then.
    await it.output.drain(unit)
    if words:
        it.sources[0].write(words)
    await it.output.drain(unit)


def test_previous_is_the_life_before_this_one(tmp_path: Path) -> None:
    """The words of each life are told apart, also when one said nothing and when a line was not ended."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.attach("web")
            await live(it, "web", "quiet", b"")
            await live(it, "web", "first", b"one\ntwo")
            assert it.output.last_lines("web", 9, previous=True) == []
            await live(it, "web", "second", b"three\n")
            assert it.output.last_lines("web", 9, previous=True) == ["one", "two"]
            await live(it, "web", "mute", b"")
            assert it.output.last_lines("web", 9, previous=True) == ["three"]
            await live(it, "web", "last", b"four\nfive\n")
            assert it.output.last_lines("web", 9, previous=True) == []
            assert it.output.last_lines("web", 9, invocation="first") == ["one", "two"]
            assert it.output.last_lines("web", 9, invocation="last") == ["four", "five"]
            assert it.output.last_lines("web", 9, invocation="unheard of") == []
            assert it.output.last_lines("web", 2) == ["four", "five"]

    run(test)


def test_lives_are_told_apart_over_rotations(tmp_path: Path) -> None:
    """A life that reaches over several files is read whole; of one whose beginning is gone, what is left."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.attach("web", LogPolicy(max_bytes=100, backups=2))
            await live(it, "web", "first", b"".join(b"first %d\n" % number for number in range(5)))
            await live(it, "web", "second", b"".join(b"second %d\n" % number for number in range(15)))
            await live(it, "web", "third", b"third\n")
            assert it.output.last_lines("web", 99, previous=True) == [f"second {number}" for number in range(15)]
            for number in range(20):
                it.sources[0].write(b"third %d\n" % number)
                await it.output.drain("web")
            previous = it.output.last_lines("web", 99, previous=True)
            assert previous == [f"second {number}" for number in range(15)][-len(previous) :]
            assert 0 < len(previous) < 15
            assert it.output.last_lines("web", 99, invocation="first") == []

    run(test)


def test_marks_outlive_the_collector(tmp_path: Path) -> None:
    """A manager that took over knows the lives before, and marking the running one again changes nothing."""

    async def test() -> None:
        for invocation, words in (("first", b"one\n"), ("second", b"two\n")):
            async with rig(tmp_path / "log") as it:
                it.attach("web")
                await live(it, "web", invocation, words)
        async with rig(tmp_path / "log") as it:
            it.attach("web")
            await live(it, "web", "second", b"three\n")
            assert it.output.last_lines("web", 9, previous=True) == ["one"]
            assert it.output.last_lines("web", 9, invocation="second") == ["two", "three"]

    run(test)


def test_life_marks_are_bounded_and_survive_torn_lines(tmp_path: Path) -> None:
    """Thousands of lives leave a short file; what a crash tore is passed over."""
    folder = write(tmp_path, web_log="x")
    marks = LifeMarks(folder, "web")
    for number in range(1000):
        marks.mark(f"life{number}", (7, number))
    lives = read_lives(folder, "web")
    assert len(lives) <= 2 * KEPT_MAX
    assert lives[-1] == Life("life999", 7, 999)
    with (tmp_path / "web.log.lives").open("a") as file:
        file.write("torn 7")
    assert read_lives(folder, "web") == lives
    assert parse_lives("".join(map(format_life, lives))) == lives


def test_the_number_of_a_removed_file_is_not_taken_for_another(tmp_path: Path) -> None:
    """When a file goes, its inode number in the marks goes too: the kernel may give it to the next file."""
    folder = write(tmp_path, web_log="x")
    marks = LifeMarks(folder, "web")
    marks.mark("old", (7, 5))
    marks.mark("young", (8, 0))
    marks.removed(7)
    assert read_lives(folder, "web") == [Life("old", 0, 0), Life("young", 8, 0)]


async def take(follower: OutputFollower, count: int) -> list[str]:
    return [(await anext(follower))[1] for _ in range(count)]


def test_following_begins_with_the_last_lines_and_has_no_gap(tmp_path: Path) -> None:
    """The last lines, the rest of the line that was being written, and all that follows, over rotations."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=200, backups=100))
            source.write(b"1\n2\n3\nha")
            await it.output.drain("web")
            follower = it.output.follow(["web"], last=2)
            source.write(b"lf\n")
            assert await take(follower, 3) == ["2", "3", "half"]
            for number in range(300):
                source.write(b"line %d\n" % number)
                if number % 25 == 0:
                    await it.output.drain("web")
            assert await take(follower, 300) == [f"line {number}" for number in range(300)]
            await follower.aclose()

    run(test)


def test_following_several_units_from_before_their_first_byte(tmp_path: Path) -> None:
    """Units without a file yet are followed from their first byte; the order within each is kept."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            follower = it.output.follow(["a", "b"], last=10)
            sources = {unit: it.attach(unit) for unit in "ab"}
            for number in range(50):
                for unit, source in sources.items():
                    source.write(b"%s %d\n" % (unit.encode(), number))
            got = [await anext(follower) for _ in range(100)]
            assert [text for unit, text in got if unit == "a"] == [f"a {number}" for number in range(50)]
            assert [text for unit, text in got if unit == "b"] == [f"b {number}" for number in range(50)]

    run(test)


def test_a_line_without_end_is_told_when_the_life_is_over(tmp_path: Path) -> None:
    """Last words without a newline reach the follower at the drain, once."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            follower = it.output.follow(["web"])
            source.write(b"a line\nSegmentation fault")
            await it.output.drain("web")
            assert await take(follower, 2) == ["a line", "Segmentation fault"]
            source.write(b"next life\n")
            assert await take(follower, 1) == ["next life"]

    run(test)


def test_a_foreign_truncation_does_not_stop_a_follower(tmp_path: Path) -> None:
    """After a copytruncate the follower goes on at the start of the file."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            follower = it.output.follow(["web"])
            source.write(b"before\nhalf")
            assert await take(follower, 1) == ["before"]
            os.truncate(it.log_dir / "web.log", 0)
            source.write(b"after\n")
            assert await take(follower, 1) == ["after"]

    run(test)


def test_a_slow_follower_is_moved_forward_and_told(tmp_path: Path) -> None:
    """Who is too far behind misses whole lines, learns how many bytes, and then gets every line to the end."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"0\n")
            await it.output.drain("web")
            follower = it.output.follow(["web"])
            data = b"".join(b"%09d %s\n" % (number, b"x" * 90) for number in range(LAG_MAX // 90))
            await asyncio.to_thread(source.write, data + b"end\n")
            await it.output.drain("web")
            told = (await anext(follower))[1]
            assert told == f"... {follower.dropped_bytes} bytes of output passed over: this reader is too slow"
            lines = []
            while not lines or lines[-1] != "end":
                lines += await take(follower, 1)
            assert (data + b"end\n").endswith(("\n".join(lines) + "\n").encode())
            assert follower.dropped_bytes + len("\n".join(lines)) + 1 == len(data) + 4

    run(test)


def test_a_closed_follower_ends_and_holds_nothing(tmp_path: Path) -> None:
    """Closing ends the iteration for whoever waits in it, and gives the descriptors back."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.attach("web").write(b"x\n")
            await it.output.drain("web")
            assert it.output.last_lines("web", 1) == ["x"]
            before = len(os.listdir("/proc/self/fd"))
            follower = it.output.follow(["web"])
            waiting = asyncio.ensure_future(anext(follower))
            await asyncio.sleep(0)
            await follower.aclose()
            with pytest.raises(StopAsyncIteration):
                await waiting
            assert len(os.listdir("/proc/self/fd")) == before

    run(test)


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:
        action()
    return str(caught.value)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the rule is for root")
def test_root_follows_no_link_that_others_may_have_made(tmp_path: Path) -> None:
    """A link in a folder that others may write is refused, one in a folder of root's is followed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "absolute").symlink_to(tmp_path / "real")
    (tmp_path / "relative").symlink_to("real/../real")
    for name in ("absolute", "relative"):
        fd = open_folder(tmp_path / name / "log", 0)
        assert os.path.samestat(os.fstat(fd), (tmp_path / "real" / "log").stat())
        os.close(fd)
    tmp_path.chmod(0o777)
    assert "a link in a folder that others may write" in refused(lambda: open_folder(tmp_path / "absolute" / "log", 0))
    os.close(open_folder(tmp_path / "new" / "log", 0))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o027 == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the rule is for root")
def test_root_appends_to_nobody_elses_file_in_an_open_folder(tmp_path: Path) -> None:
    """In a folder that others may write, a hard link and a file of somebody else are refused."""
    tmp_path.chmod(0o777)
    (tmp_path / "precious").write_text("")
    os.link(tmp_path / "precious", tmp_path / "web.log")
    (tmp_path / "foreign.log").write_text("")
    os.chown(tmp_path / "foreign.log", 65534, 65534)
    folder = LogFolder(tmp_path)
    for name in ("web.log", "foreign.log"):
        assert "not our own file" in refused(lambda name=name: folder.open_to_write(name))
    os.close(folder.open_to_write("ours.log"))
    folder.forget()


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    """Links that lead to each other end in an error, not in a search without end."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert refused(lambda: open_folder(tmp_path / "a" / "log", os.geteuid()))


def test_the_readers_group_gets_new_files(tmp_path: Path) -> None:
    """Files are made with the group that may read them."""
    gid = os.getgroups()[0] if os.getgroups() else os.getgid()
    folder = LogFolder(tmp_path, gid=gid)
    os.close(folder.open_to_write("web.log"))
    assert (tmp_path / "web.log").stat().st_gid == gid

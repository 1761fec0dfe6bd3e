"""Capturing: what goes into a pipe comes out in the file, whatever is done to file and folder meanwhile."""

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from output_rig import Source, rig, run

from supervisord_py.host import output_capture
from supervisord_py.host.output_file import splice
from supervisord_py.model.log import LogPolicy

PIPE_DEFAULT = 65536


def test_a_quiet_unit_has_no_file(tmp_path: Path) -> None:
    """A unit that was attached, started, drained and released without a byte leaves nothing behind."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.output.mark_life("web", "a" * 32)
            it.attach("web")
            await it.output.drain("web")
            await it.output.detach("web")
            assert it.files() == []
            assert it.output.last_lines("web", 5) == []

    run(test)


def test_output_comes_to_the_file_and_the_pipe_stays_blocking(tmp_path: Path) -> None:
    """Bytes arrive whole, the file is not for everybody, and the flags that the child shares are untouched."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            flags = fcntl.fcntl(source.keeper, fcntl.F_GETFL)
            source.write(b"one\ntwo\nthr")
            await it.output.drain("web")
            assert it.text() == "one\ntwo\nthr"
            source.write(b"ee\n")
            await it.output.drain("web")
            assert it.text() == "one\ntwo\nthree\n"
            assert stat.S_IMODE((it.log_dir / "web.log").stat().st_mode) & 0o137 == 0
            assert fcntl.fcntl(source.keeper, fcntl.F_GETFL) == flags
            assert not flags & os.O_NONBLOCK

    run(test)


def test_output_arrives_without_being_asked_for(tmp_path: Path) -> None:
    """The first byte wakes the collector, and so does each of many small ones that follow."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            follower = it.output.follow(["web"])
            for number in range(200):
                source.write(b"line %d\n" % number)
            for number in range(200):
                assert await anext(follower) == ("web", f"line {number}")
            source.write(b"after a pause\n")
            assert await anext(follower) == ("web", "after a pause")

    run(test)


def test_the_next_collector_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    """A new collector appends; what waited in the pipe meanwhile is not lost."""

    async def test() -> None:
        source = Source()
        for text in (b"first\n", b"second\n"):
            async with rig(tmp_path / "log") as it:
                it.output.attach("web", source.handed_over(), LogPolicy())
                source.write(text)
                await it.output.drain("web")
            source.write(b"between\n")
        async with rig(tmp_path / "log") as it:
            it.output.attach("web", source.handed_over(), LogPolicy())
            await it.output.drain("web")
            assert it.text() == "first\nbetween\nsecond\nbetween\n"
        source.close()

    run(test)


def test_a_new_pipe_of_the_unit_replaces_the_old_one(tmp_path: Path) -> None:
    """Attaching again empties the old pipe first."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            old = it.attach("web")
            old.write(b"old\n")
            new = it.attach("web")
            new.write(b"new\n")
            await it.output.drain("web")
            assert it.text() == "old\nnew\n"
            assert it.output.attached == {"web"}

    run(test)


def test_detach_takes_the_last_bytes(tmp_path: Path) -> None:
    """What is in the pipe when the unit is released is in the file afterwards."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"last words")
            await it.output.detach("web")
            assert it.text() == "last words"
            assert it.output.attached == frozenset()

    run(test)


def test_rotation_by_size_at_line_ends(tmp_path: Path) -> None:
    """No file grows above its size, none holds half a line, the oldest are dropped and nothing else is."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=1000, backups=3))
            lines = [f"line {number} {'x' * (number % 40)}\n" for number in range(300)]
            for start in range(0, 300, 10):
                source.write("".join(lines[start : start + 10]).encode())
                await it.output.drain("web")
            assert it.files() == ["web.log", "web.log.1", "web.log.2", "web.log.3"]
            parts = [it.text(name) for name in ("web.log.3", "web.log.2", "web.log.1", "web.log")]
            assert all(len(part) <= 1000 and part.endswith("\n") for part in parts)
            kept = "".join(parts)
            assert "".join(lines).endswith(kept)
            assert len(kept) > 3000

    run(test)


def test_rotation_in_one_big_flow(tmp_path: Path) -> None:
    """A flow that never pauses is rotated within it, and joins to exactly what was written."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=100_000, backups=20))
            data = b"".join(b"%09d %s\n" % (number, b"y" * (number % 70)) for number in range(20_000))
            await asyncio.to_thread(source.write, data)
            await it.output.drain("web")
            names = sorted(
                (name for name in it.files() if name != "web.log"), key=lambda name: -int(name.split(".")[2])
            )
            parts = [(it.log_dir / name).read_bytes() for name in [*names, "web.log"]]
            assert b"".join(parts) == data
            assert all(part.endswith(b"\n") and len(part) <= 100_000 for part in parts)
            assert len(parts) > 8

    run(test)


def test_a_line_longer_than_a_file_is_cut(tmp_path: Path) -> None:
    """Output without line ends is rotated too, and no byte of it is lost."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=1000, backups=5))
            source.write(b"z" * 3500)
            await it.output.drain("web")
            assert [len(it.text(name)) for name in it.files()] == [500, 1000, 1000, 1000]

    run(test)


def test_no_backups_keep_one_file(tmp_path: Path) -> None:
    """With ``backups = 0`` a full file is dropped and begun anew."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=100, backups=0))
            for number in range(30):
                source.write(b"line %d\n" % number)
                await it.output.drain("web")
            assert it.files() == ["web.log"]
            assert it.text().endswith("line 29\n")
            assert len(it.text()) <= 100

    run(test)


def test_fewer_backups_after_a_reload(tmp_path: Path) -> None:
    """The surplus of old files goes with the next rotation."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=20, backups=5))
            for number in range(10):
                source.write(b"line number %d....\n" % number)
                await it.output.drain("web")
            assert "web.log.5" in it.files()
            it.output.set_policy("web", LogPolicy(max_bytes=20, backups=2))
            source.write(b"line number x....\n" * 2)
            await it.output.drain("web")
            assert it.files() == ["web.log", "web.log.1", "web.log.2"]

    run(test)


@pytest.mark.parametrize(
    ("name", "text"),
    [("web.log", "one\ntwo\nhalf"), ("web.log", "one\ntwo\n"), ("web.log.1", "one\ntwo\n")],
    ids=["before the cut", "after the cut", "after the shift"],
)
def test_a_rotation_that_a_kill_cut_is_finished_or_undone(tmp_path: Path, name: str, text: str) -> None:
    """A carried line left beside the file is taken exactly once: undone before the cut, finished after it."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log.next").write_text("half")
    (log_dir / name).write_text(text)

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web", LogPolicy(max_bytes=1000, backups=3))
            source.write(b" a line\n")
            await it.output.drain("web")
            whole = "".join(it.text(name) for name in ("web.log.1", "web.log") if name in it.files())
            assert whole == "one\ntwo\nhalf a line\n"
            assert "web.log.next" not in it.files()

    run(test)


def test_a_shift_of_names_that_a_kill_cut_loses_nothing(tmp_path: Path) -> None:
    """With a hole among the old files, only those below it move up."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    for name, text in {"web.log": "d" * 10, "web.log.1": "c", "web.log.3": "a"}.items():
        (log_dir / name).write_text(text + "\n")

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web", LogPolicy(max_bytes=10, backups=3))
            source.write(b"e\n")
            await it.output.drain("web")
            assert {name: it.text(name)[0] for name in it.files()} == {
                "web.log": "e", "web.log.1": "d", "web.log.2": "c", "web.log.3": "a",
            }  # fmt: skip

    run(test)


def test_a_foreign_copytruncate_leaves_no_hole(tmp_path: Path) -> None:
    """After somebody emptied the file, output begins at its start again."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"before\n" * 100)
            await it.output.drain("web")
            os.truncate(it.log_dir / "web.log", 0)
            source.write(b"after\n")
            await it.output.drain("web")
            assert it.text() == "after\n"

    run(test)


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    """``rm web.log`` does not send output into a file without a name; nor does the removal of the folder."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"before\n")
            await it.output.drain("web")
            (it.log_dir / "web.log").unlink()
            source.write(b"after\n")
            await it.output.drain("web")
            assert it.text() == "after\n"
            (it.log_dir / "web.log").unlink()
            it.log_dir.rmdir()
            source.write(b"anew\n")
            await it.output.drain("web")
            assert it.text() == "anew\n"
            assert it.output.last_lines("web", 1) == ["anew"]

    run(test)


def test_reopen_after_a_foreign_rotation(tmp_path: Path) -> None:
    """SIGUSR1 after logrotate's rename: the next byte goes to the file that has the name."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"before\n")
            await it.output.drain("web")
            (it.log_dir / "web.log").rename(it.log_dir / "web.log-20260101")
            source.write(b"still the old one\n")
            await it.output.drain("web")
            await it.output.reopen()
            source.write(b"after\n")
            await it.output.drain("web")
            assert it.text() == "after\n"
            assert it.text("web.log-20260101") == "before\nstill the old one\n"

    run(test)


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    """A link in the place of a log file is refused and told, its target is untouched, other units are not disturbed."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious\n")
    (log_dir / "web.log").symlink_to(target)

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web")
            other = it.attach("other")
            source.write(b"evil\n")
            trouble = await it.until_trouble(lambda trouble: trouble.problem is not None)
            assert trouble.unit == "web"
            assert "output of web is not written" in it.output.problems()[0]
            other.write(b"fine\n")
            await it.output.drain("other")
            assert it.text("other.log") == "fine\n"
            assert target.read_text() == "precious\n"
            (log_dir / "web.log").unlink()
            await it.output.reopen()
            assert it.text() == "evil\n"
            assert it.output.problems() == []

    run(test)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_something_else_in_the_place_of_a_file_never_blocks(tmp_path: Path, kind: str) -> None:
    """A FIFO without a reader, or a folder, is refused at once."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    if kind == "fifo":
        os.mkfifo(log_dir / "web.log")
    else:
        (log_dir / "web.log").mkdir()

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web")
            source.write(b"x\n")
            await it.until_trouble(lambda trouble: trouble.problem is not None)
            assert it.output.last_lines("web", 3) == []

    run(test)


class FullDisk:
    """A disk that takes nothing for some files while ``full``: splice as the kernel does it, but for that."""

    def __init__(self, code: int = errno.ENOSPC) -> None:
        self.full = True
        self.code = code

    def __call__(self, source: int, destination: int, count: int, offset: int | None) -> int:
        if self.full and os.readlink(f"/proc/self/fd/{destination}").endswith("/web.log"):
            raise OSError(self.code, os.strerror(self.code))
        return splice(source, destination, count, offset)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_stops_neither_the_child_nor_the_others(tmp_path: Path, code: int) -> None:
    """Far more than a pipe holds is written while the disk refuses: the writer goes on, every byte is accounted for."""

    async def test() -> None:
        disk = FullDisk(code)
        async with rig(tmp_path / "log", splice=disk) as it:
            source = it.attach("web")
            other = it.attach("other")
            line = b"%06d some output\n"
            written = b"".join(line % number for number in range(40_000))
            async with asyncio.timeout(10):
                await asyncio.to_thread(source.write, written)
            assert len(written) > 4 * PIPE_DEFAULT
            other.write(b"fine\n")
            await it.output.drain("other")
            assert it.text("other.log") == "fine\n"
            await it.output.drain("web")
            assert os.strerror(code) in it.output.problems()[0]
            disk.full = False
            await it.output.reopen()
            recovered = await it.until_trouble(lambda trouble: trouble.problem is None)
            assert it.output.problems() == []
            told = [int(line.split()[1]) for line in it.text().splitlines() if line.startswith("supervisord-py: ")]
            reason = f"bytes of output lost here (output of web is not written: {os.strerror(code)})"
            assert all(line.endswith(reason) for line in it.text().splitlines()[: len(told)])
            assert sum(told) == recovered.dropped_bytes
            rest = "".join(it.text().splitlines(keepends=True)[len(told) :])
            assert written.endswith(rest.encode())
            assert len(rest) + recovered.dropped_bytes == len(written)

    run(test)


def test_a_quiet_unit_loses_nothing_to_a_full_disk(tmp_path: Path) -> None:
    """Less than half a pipe waits for the disk to come back, which is noticed without being asked."""

    async def test() -> None:
        disk = FullDisk()
        async with rig(tmp_path / "log", splice=disk) as it:
            source = it.attach("web")
            source.write(b"a few words\n")
            await it.until_trouble(lambda trouble: trouble.problem is not None)
            source.write(b"and some more\n")
            disk.full = False
            await it.until_trouble(lambda trouble: trouble.problem is None)
            await it.output.drain("web")
            assert it.text() == "a few words\nand some more\n"

    run(test)


def test_what_a_full_disk_refuses_at_release_is_counted(tmp_path: Path) -> None:
    """A unit that is released while its file refuses does not hold up anything; the loss is told."""

    async def test() -> None:
        async with rig(tmp_path / "log", splice=FullDisk()) as it:
            it.attach("web").write(b"0123456789")
            await it.output.detach("web")
            await it.until_trouble(lambda trouble: trouble.problem is None)
            assert it.troubles[-2].dropped_bytes == 10
            assert it.output.problems() == []

    run(test)


def test_a_filesystem_without_splice_is_copied_to(tmp_path: Path) -> None:
    """EINVAL from splice into the file falls back to reading and writing, with rotation and all."""

    def refuses(source: int, destination: int, count: int, offset: int | None) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def test() -> None:
        async with rig(tmp_path / "log", splice=refuses) as it:
            source = it.attach("web", LogPolicy(max_bytes=300_000, backups=3))
            data = b"".join(b"%09d\n" % number for number in range(60_000))
            await asyncio.to_thread(source.write, data)
            await it.output.drain("web")
            assert it.text("web.log.1") + it.text() == data.decode()

    run(test)


def test_only_a_pipe_that_was_full_is_enlarged(tmp_path: Path) -> None:
    """Pipe memory is scarce for ordinary users: quiet units keep the small pipe."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            quiet, busy = it.attach("quiet"), Source()
            it.sources.append(busy)
            busy.write(b"x" * PIPE_DEFAULT)
            it.output.attach("busy", busy.handed_over(), LogPolicy())
            quiet.write(b"a line\n")
            await it.output.drain("quiet")
            await it.output.drain("busy")
            assert fcntl.fcntl(quiet.keeper, fcntl.F_GETPIPE_SZ) == PIPE_DEFAULT
            assert fcntl.fcntl(busy.keeper, fcntl.F_GETPIPE_SZ) > PIPE_DEFAULT

    run(test)


def capacity(source: Source) -> int:
    return fcntl.fcntl(source.keeper, fcntl.F_GETPIPE_SZ)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def test_an_enlarged_pipe_is_given_back_when_its_unit_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own, and one that an earlier manager made as large as it can be; no byte is lost in it."""
    monkeypatch.setattr(output_capture, "GIVE_BACK_NS", 50_000_000)

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            busy, inherited = it.attach("busy"), Source()
            it.sources.append(inherited)
            fcntl.fcntl(inherited.keeper, fcntl.F_SETPIPE_SZ, 1024 * 1024)
            inherited.write(b"i" * 900_000)
            it.output.attach("inherited", inherited.handed_over(), LogPolicy())
            sizes = set()
            for _ in range(40):
                await asyncio.to_thread(busy.write, b"b" * PIPE_DEFAULT)
                sizes.add(capacity(busy))
            await until(lambda: capacity(busy) == capacity(inherited) == PIPE_DEFAULT)
            await it.output.drain("busy")
            assert it.text("busy.log") == "b" * 40 * PIPE_DEFAULT
            assert it.text("inherited.log") == "i" * 900_000
            assert max(sizes) > PIPE_DEFAULT

    run(test)


def test_enlarged_pipes_leave_half_of_the_allowance_to_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the share is used up a full pipe stays as it is, until another one was let go."""
    monkeypatch.setattr(output_capture, "EXTRA_MAX", output_capture.PIPE_BUSY - PIPE_DEFAULT)

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            first, second = Source(), Source()
            it.sources += [first, second]
            for name, source in (("first", first), ("second", second)):
                source.write(b"x" * PIPE_DEFAULT)
                it.output.attach(name, source.handed_over(), LogPolicy())
                await it.output.drain(name)
            assert (capacity(first), capacity(second)) == (output_capture.PIPE_BUSY, PIPE_DEFAULT)
            await it.output.detach("first")
            await it.output.detach("second")
            second.write(b"x" * PIPE_DEFAULT)
            it.output.attach("second", second.handed_over(), LogPolicy())
            await it.output.drain("second")
            assert capacity(second) == output_capture.PIPE_BUSY

    run(test)


def test_a_piece_smaller_than_the_pipe_holds_is_not_the_last(tmp_path: Path) -> None:
    """A splice that stops early leaves nothing behind: neither when output is drained, nor when nobody asks."""

    def stingy(source: int, destination: int, count: int, offset: int | None) -> int:
        return splice(source, destination, min(count, 1000), offset)

    async def test() -> None:
        async with rig(tmp_path / "log", splice=stingy) as it:
            source = it.attach("web")
            source.write(b"a" * 10_500)
            await it.output.drain("web")
            assert it.text() == "a" * 10_500
            source.write(b"b" * 10_500)
            await until(lambda: it.text() == "a" * 10_500 + "b" * 10_500)

    run(test)


def test_close_is_final_and_harmless(tmp_path: Path) -> None:
    """Closing drains, closing again does nothing, and what is asked afterwards is answered."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            source.write(b"end\n")
            await it.output.close()
            await it.output.close()
            assert it.text() == "end\n"
            await it.output.drain("web")

    run(test)


def test_a_descriptor_that_is_no_pipe_ends_nothing(tmp_path: Path) -> None:
    """Something else than a pipe is told as a trouble of that unit; the others are captured as before."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.output.attach("web", os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), LogPolicy())
            trouble = await it.until_trouble(lambda trouble: trouble.problem is not None)
            assert trouble.unit == "web"
            it.attach("other").write(b"fine\n")
            await it.output.drain("other")
            assert it.text("other.log") == "fine\n"

    run(test)

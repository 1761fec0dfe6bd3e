"""Older output files: compressed with no byte lost or doubled, readable at any place, removed when they are too old."""

import asyncio
import gzip
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from output_rig import Rig, rig, run

from supervisord_py.host import output_gzip
from supervisord_py.host.output_folder import LogFolder
from supervisord_py.host.output_gzip import BLOCK, CompressedFile, Origin, member
from supervisord_py.host.output_reading import OutputFollower, last_lines
from supervisord_py.model.log import LogPolicy

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
PACKED = LogPolicy(max_bytes=1000, backups=20, compress=True)


NOW_NS = time.time_ns()


def aged(path: Path, seconds: float) -> None:
    then = NOW_NS - int(seconds * SECOND)
    os.utime(path, ns=(then, then))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def older(it: Rig) -> list[str]:
    return [name for name in it.files() if name.startswith("web.log.") and name.removeprefix("web.log.")[0].isdigit()]


def is_packed(it: Rig) -> bool:
    """Whether every older file is compressed, and nothing is at work."""
    names = older(it)
    return bool(names) and all(name.endswith(".gz") for name in names) and "web.log.gz.new" not in it.files()


async def write(it: Rig, lines: range, policy: LogPolicy = PACKED) -> None:
    source = it.attach("web", policy)
    it.output.use_policies({"web": policy})
    for number in lines:
        source.write(b"line %04d %s\n" % (number, b"x" * 40))
        await it.output.drain("web")


def numbers(texts: list[str]) -> list[int]:
    return [int(text.split()[1]) for text in texts]


def test_a_compressed_file_is_read_at_any_place(tmp_path: Path) -> None:
    """It is what gunzip says it is, and what pread says of the plain one."""
    chance = random.Random(1)
    data = b"".join(b"%d %s\n" % (number, chance.randbytes(20).hex().encode()) for number in range(20_000))
    origin = Origin(5, len(data))
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    assert len(blocks) > 2
    path = tmp_path / "x.gz"
    path.write_bytes(b"".join(member(block, origin) for block in blocks))
    assert gzip.decompress(path.read_bytes()) == data
    fd = os.open(path, os.O_RDONLY)
    found = CompressedFile(fd)
    assert (found.size, found.origin) == (len(data), origin)
    for _ in range(200):
        offset, count = chance.randrange(len(data) + 10), chance.choice((1, 100, 70_000, BLOCK + 1, 3 * BLOCK))
        assert found.pread(count, offset) == data[offset : offset + count]
    os.close(fd)


@pytest.mark.parametrize("harm", ["foreign", "cut", "empty", "unfinished"])
def test_a_compressed_file_that_is_not_whole_or_not_ours_is_not_read(tmp_path: Path, harm: str) -> None:
    """Lines of other files are, and nothing fails."""
    whole = member(b"old\n" * 100, Origin(5, 400))
    bad = {
        "foreign": gzip.compress(b"theirs\n"), "cut": whole[:-20], "empty": b"",
        "unfinished": member(b"old\n" * 100, Origin(5, 4000)),
    }  # fmt: skip
    (tmp_path / "web.log.1.gz").write_bytes(bad[harm])
    (tmp_path / "web.log.2").write_text("older\n")
    (tmp_path / "web.log").write_text("now\n")
    assert [line.text for line in last_lines(LogFolder(tmp_path), "web", 5)] == ["older", "now"]


def test_older_files_are_compressed_and_read_back(tmp_path: Path) -> None:
    """Every one of them, with the time of its last write; readers see all lines in order, of each life too."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.output.mark_life("web", "a" * 32)
            await write(it, range(100))
            it.output.mark_life("web", "b" * 32)
            await write(it, range(100, 200))
            await until(lambda: is_packed(it))
            assert "web.log.1.gz" in it.files()
            assert numbers(it.output.last_lines("web", 1000)) == list(range(200))
            assert numbers(it.output.last_lines("web", 1000, previous=True)) == list(range(100))
            assert numbers(it.output.last_lines("web", 1000, invocation="b" * 32)) == list(range(100, 200))
            cursor = it.output.read_life("web", "b" * 32)
            assert cursor is not None
            lines: list[str] = []
            while (more := cursor.read()) is not None:
                lines += more
            cursor.close()
            assert numbers(lines) == list(range(100, 200))
            stamps = [(it.log_dir / f"web.log.{place}.gz").stat().st_mtime_ns for place in (3, 2, 1)]
            assert stamps == sorted(stamps)
            assert gzip.decompress((it.log_dir / "web.log.1.gz").read_bytes()).count(b"\n") > 15

    run(test)


def test_who_follows_while_files_are_compressed_gets_every_line_once(tmp_path: Path) -> None:
    """Also one who stands far behind in a file that is compressed meanwhile."""

    async def read(follower: OutputFollower, count: int) -> list[int]:
        return [int((await anext(follower))[1].split()[1]) for _ in range(count)]

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            follower = it.output.follow(["web"])
            await write(it, range(5))
            assert await read(follower, 5) == list(range(5))
            await write(it, range(5, 105))
            await until(lambda: is_packed(it))
            assert await read(follower, 100) == list(range(5, 105))
            await follower.aclose()

    run(test)


def test_compress_takes_up_what_was_plain_and_leaves_what_is_compressed(tmp_path: Path) -> None:
    """Switched on while it runs, all older files are compressed; switched off, they stay and are read, and shifted."""

    async def test() -> None:
        plain = LogPolicy(max_bytes=1000, backups=20)
        async with rig(tmp_path / "log") as it:
            await write(it, range(60), plain)
            assert not any(name.endswith(".gz") for name in older(it))
            it.output.use_policies({"web": PACKED})
            await until(lambda: is_packed(it))
            await write(it, range(60, 120), plain)
            assert {name.endswith(".gz") for name in older(it)} == {True, False}
            assert numbers(it.output.last_lines("web", 1000)) == list(range(120))

    run(test)


def test_no_more_older_files_than_backups(tmp_path: Path) -> None:
    """Compressed ones count."""

    async def test() -> None:
        few = LogPolicy(max_bytes=1000, backups=3, compress=True)
        async with rig(tmp_path / "log") as it:
            await write(it, range(150), few)
            await until(lambda: is_packed(it))
            assert older(it) == ["web.log.1.gz", "web.log.2.gz", "web.log.3.gz"]
            await write(it, range(150, 170), LogPolicy(max_bytes=1000, backups=2, compress=True))
            await until(lambda: is_packed(it))
            assert older(it) == ["web.log.1.gz", "web.log.2.gz"]

    run(test)


@pytest.mark.parametrize("twin", ["ours", "stale"])
def test_a_crash_in_the_middle_leaves_one_file_that_counts(tmp_path: Path, twin: str) -> None:
    """Plain and compressed side by side: the compressed one is kept if it holds the same, else the plain one; before
    that and after it readers see the lines once."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log").write_text("now\n")
    (log_dir / "web.log.1").write_text("older\n")
    inode = (log_dir / "web.log.1").stat().st_ino
    content = member(b"older\n", Origin(inode, 6)) if twin == "ours" else member(b"elder\n", Origin(inode + 1, 6))
    (log_dir / "web.log.1.gz").write_bytes(content)
    (log_dir / "web.log.gz.new").write_bytes(content[:20])
    packed = (log_dir / "web.log.1.gz").stat().st_ino
    for name in ("web.log.1", "web.log.1.gz"):
        aged(log_dir / name, 60)
    (log_dir / "web.log.lives").write_text(f"{'a' * 32} {inode} 0\n{'b' * 32} {inode} 3\n")

    async def test() -> None:
        async with rig(log_dir) as it:
            assert it.output.last_lines("web", 5) == ["older", "now"]
            it.output.use_policies({"web": LogPolicy(max_age_ns=HOUR)})
            await until(lambda: len(older(it)) == 1)
            await until(lambda: "web.log.gz.new" not in it.files())
            assert older(it) == ["web.log.1.gz" if twin == "ours" else "web.log.1"]
            assert it.output.last_lines("web", 5) == ["older", "now"]
            assert it.output.last_lines("web", 5, previous=True) == ["old"]
            lives = it.text("web.log.lives")
            assert str(packed if twin == "ours" else inode) in lives

    run(test)


def test_a_shift_keeps_one_of_two_first(tmp_path: Path) -> None:
    """A rotation that comes before anything else has looked does the same."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log").write_text("z" * 99 + "\n")
    (log_dir / "web.log.1").write_text("older\n")
    inode = (log_dir / "web.log.1").stat().st_ino
    (log_dir / "web.log.1.gz").write_bytes(member(b"older\n", Origin(inode, 6)))
    for name in ("web.log.1", "web.log.1.gz"):
        aged(log_dir / name, 60)

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web", LogPolicy(max_bytes=100, backups=5))
            source.write(b"new\n")
            await it.output.drain("web")
            assert it.files() == ["web.log", "web.log.1", "web.log.2.gz"]
            assert it.output.last_lines("web", 2) == ["z" * 99, "new"]
            assert it.output.last_lines("web", 9)[0] == "older"

    run(test)


def test_a_disk_that_has_no_room_for_the_compressed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain one stays, and it is told; the next rotation tries again."""
    real = os.write

    def refuse(fd: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".gz.new"):
            raise OSError(28, os.strerror(28))
        return real(fd, data)

    monkeypatch.setattr(output_gzip.os, "write", refuse)

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            await write(it, range(40))
            await until(lambda: any("older output of web" in problem for problem in it.output.problems()))
            await until(lambda: "web.log.gz.new" not in it.files())  # it may be tried for the next one
            assert numbers(it.output.last_lines("web", 1000)) == list(range(40))
            monkeypatch.setattr(output_gzip.os, "write", real)
            await write(it, range(40, 80))
            await until(lambda: is_packed(it) and not it.output.problems())
            assert numbers(it.output.last_lines("web", 1000)) == list(range(80))

    run(test)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_older_files_are_removed_when_they_are_too_old(tmp_path: Path, suffix: str) -> None:
    """At once those that are, later by itself those that become so, of a unit that writes nothing; never what is not an
    older file of a unit that wants it."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    for name in ("web.log", f"web.log.1{suffix}", f"web.log.2{suffix}", "web.log.lives", "other.log.1", "web.log.old"):
        (log_dir / name).write_bytes(member(b"x\n", Origin(1, 2)) if name.endswith(".gz") else b"x\n")
        aged(log_dir / name, 7200)

    async def test() -> None:
        then = time.time_ns() - HOUR + SECOND
        os.utime(log_dir / f"web.log.1{suffix}", ns=(then, then))
        async with rig(log_dir) as it:
            it.output.use_policies({"web": LogPolicy(max_age_ns=HOUR)})
            await until(lambda: f"web.log.2{suffix}" not in it.files())
            await until(lambda: f"web.log.1{suffix}" not in it.files())
            assert it.files() == ["other.log.1", "web.log", "web.log.lives", "web.log.old"]

    run(test)


def test_a_rotated_file_becomes_too_old_by_itself(tmp_path: Path) -> None:
    """Files that a rotation makes are waited for, too, and marks of lives in them are let go."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.output.mark_life("web", "a" * 32)
            await write(it, range(60), LogPolicy(max_bytes=1000, backups=20, max_age_ns=SECOND // 2))
            await until(lambda: not older(it))
            assert it.files() == ["web.log", "web.log.lives"]
            assert it.text("web.log.lives") == f"{'a' * 32} 0 0\n"

    run(test)


def test_closing_does_not_wait_for_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not finished is begun anew by the next collector, and the plain file is there until then."""
    begun = []
    closing = threading.Event()
    real = output_gzip.member

    def slow(data: bytes, origin: Origin) -> bytes:
        begun.append(origin)
        closing.wait(20)
        return real(data, origin)

    monkeypatch.setattr(output_gzip, "member", slow)
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log.1").write_bytes(b"line\n" * (200 * BLOCK // 5))

    async def test() -> None:
        async with rig(log_dir) as it:
            it.output.use_policies({"web": PACKED})
            await until(lambda: bool(begun))
            stop = it.output._old_files.stop
            monkeypatch.setattr(it.output._old_files, "stop", lambda: stop() or closing.set())
        assert len(begun) == 1
        assert (log_dir / "web.log.1").exists()
        monkeypatch.setattr(output_gzip, "member", real)
        async with rig(log_dir) as it:
            it.output.use_policies({"web": PACKED})
            await until(lambda: is_packed(it))
        assert [path.name for path in log_dir.iterdir()] == ["web.log.1.gz"]

    run(test)

"""Output line by line: in the formats of [log], within its rate, and whole whatever happens to manager and disk."""

import asyncio
import errno
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from output_rig import Rig, Source, rig, run

from supervisord_py.host import output_drops
from supervisord_py.host.output_drops import DroppedLines
from supervisord_py.host.output_file import splice
from supervisord_py.host.output_folder import LogFolder
from supervisord_py.host.output_lines import PIECE, admit
from supervisord_py.host.output_reading import Window
from supervisord_py.host.output_staging import HEAD, REST_MAX, Progress, Staging
from supervisord_py.model.log import LogFormat, LogPolicy, Rate
from supervisord_py.wire.log_lines import LogLine, json_lines, read_line, time_text, timestamped

SECOND = 1_000_000_000
TIME = "2026-11-22T04:07:38.123Z"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")

STAMPED = LogPolicy(format=LogFormat.TIMESTAMP)
JSON = LogPolicy(format=LogFormat.JSON)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def texts(it: Rig) -> list[str]:
    return it.output.last_lines("web", 1000)


# The formats themselves


def test_a_moment_has_milliseconds_and_is_utc() -> None:
    """RFC 3339 with three digits, cut and not rounded, so that no line is from the future."""
    assert time_text(0) == "1970-01-01T00:00:00.000Z"
    assert time_text(1_999_999_999) == "1970-01-01T00:00:01.999Z"


@pytest.mark.parametrize(
    ("lines", "continues", "written"),
    [
        (b"a\nb\n", False, b"T a\nT b\n"),
        (b"a\nb", False, b"T a\nT b"),
        (b"est\nb\n", True, b"est\nT b\n"),
        (b"\n\n", False, b"T \nT \n"),
        (b"\n", True, b"\n"),
        (b"\xff\x00\r\n", False, b"T \xff\x00\r\n"),
    ],
)
def test_times_stand_before_lines(lines: bytes, continues: bool, written: bytes) -> None:
    """Before each line that begins here, and nothing else is touched."""
    assert timestamped(lines, "T", continues=continues) == written


@pytest.mark.parametrize("text", ["", "plain", 'quoted "x" \\ \t', "umlaut ä", '{"time":"' + TIME + '"}', TIME + " x"])
@pytest.mark.parametrize("as_json", [True, False])
def test_what_is_written_is_read_back(text: str, as_json: bool) -> None:
    """Any text comes back as the program wrote it, with its time."""
    data = text.encode() + b"\n"
    if as_json:
        written = json_lines(data, TIME, "web", "output", "f" * 32)
    else:
        written = timestamped(data, TIME, continues=False)
    assert read_line(written.decode().removesuffix("\n"), "web", stamped=True) == LogLine(text, TIME)


def test_a_line_that_is_no_utf_8_keeps_its_bytes_in_json() -> None:
    """The text has replacements, the bytes are there in base64."""
    written = json.loads(json_lines(b"a\xffb\n", TIME, "web", "stderr", ""))
    assert (written["text"], written["bytes"]) == ("a\N{REPLACEMENT CHARACTER}b", "Yf9i")


@pytest.mark.parametrize(
    "line",
    [
        '{"time":"x","level":"info","msg":"a program of its own"}',
        '{"time":"2026-11-22T04:07:38.123Z","unit":"other","stream":"output","text":"not ours"}',
        '{"time":"2026-11-22T04:07:38.123Z","unit":"web","stream":"output","text":"x","more":1}',
        '{"time":"torn',
        TIME + " a time that the program wrote",
    ],
)
def test_what_programs_write_is_not_taken_for_ours(line: str) -> None:
    """Where no times are written by us, a line is shown as it is, however much it looks like ours."""
    assert read_line(line, "web", stamped=False) == LogLine(line)


# Which lines pass


@pytest.mark.parametrize(
    ("data", "begun", "grants", "kept", "dropped", "after"),
    [
        (b"a\nb\nc\n", 0, 3, b"a\nb\nc\n", 0, 0),
        (b"a\nb\nc\n", 0, 2, b"a\nb\n", 1, 0),
        (b"a\nb\nc\n", 0, 0, b"", 3, 0),
        (b"a\nb", 0, 2, b"a\nb", 0, 1),
        (b"a\nb", 0, 1, b"a\n", 1, 2),
        (b"est\nb\n", 1, 0, b"est\n", 1, 0),
        (b"est\nb\n", 2, 1, b"b\n", 0, 0),
        (b"est", 2, 1, b"", 0, 2),
        (b"est", 1, 0, b"est", 0, 1),
        (b"est\n", 2, 1, b"", 0, 0),
    ],
)
def test_lines_are_admitted_or_dropped_whole(
    data: bytes, begun: int, grants: int, kept: bytes, dropped: int, after: int
) -> None:
    """A line that is begun in one piece and goes on in another passes or is dropped as a whole, and counts once."""
    found = admit(data, begun, lambda lines: min(lines, grants))
    assert (found.kept, found.dropped, found.begun) == (kept, dropped, after)


# Captured


def test_lines_get_their_time(tmp_path: Path) -> None:
    """Each line has one, also one that came in two pieces; readers see what the program wrote."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", STAMPED)
            source.write(b"one\ntw")
            await until(lambda: "one" in (it.text() if "web.log" in it.files() else ""))
            source.write(b"o\nthree")
            await it.output.drain("web")
            lines = it.text().split("\n")
            assert [STAMP.sub("", line, count=1) for line in lines] == ["one", "two", "three"]
            assert all(STAMP.match(line) for line in lines)
            assert texts(it) == ["one", "two", "three"]
            found = it.output.log_lines("web", 2)
            assert [line.time for line in found] == [line[:24] for line in lines[1:]]

    run(test)


def test_json_lines(tmp_path: Path) -> None:
    """An object a line with unit, stream and life; a last line without its end is one too when its life is over."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            it.output.mark_life("web", "a" * 32)
            source = Source()
            it.sources.append(source)
            it.output.attach("web", source.handed_over(), JSON, "stderr")
            source.write(b'say "hi"\n\nlast')
            await it.output.drain("web")
            found = [json.loads(line) for line in it.text().splitlines()]
            assert [(each["text"], each["unit"], each["stream"]) for each in found] == [
                ('say "hi"', "web", "stderr"), ("", "web", "stderr"), ("last", "web", "stderr"),
            ]  # fmt: skip
            assert {each["invocation"] for each in found} == {"a" * 32}
            assert texts(it) == ['say "hi"', "", "last"]

    run(test)


@pytest.mark.parametrize("policy", [STAMPED, JSON], ids=["timestamp", "json"])
def test_a_long_line_is_one_line_for_readers(tmp_path: Path, policy: LogPolicy) -> None:
    """A line that is longer than a piece is written as it comes and read as one."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", policy)
            long = b"x" * (3 * PIECE + 17)
            await asyncio.to_thread(source.write, b"before\n" + long + b"\nafter\n")
            await it.output.drain("web")
            assert texts(it) == ["before", long.decode(), "after"]

    run(test)


@pytest.mark.parametrize("policy", [STAMPED, JSON], ids=["timestamp", "json"])
def test_rotation_between_lines(tmp_path: Path, policy: LogPolicy) -> None:
    """No file is larger than it may be, each has whole lines, and none is lost over it."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            made = LogPolicy(max_bytes=2000, backups=100, format=policy.format)
            source = it.attach("web", made)
            lines = [f"line {number} {'x' * (number % 40)}" for number in range(400)]
            await asyncio.to_thread(source.write, "".join(f"{line}\n" for line in lines).encode())
            await it.output.drain("web")
            assert texts(it) == lines
            logs = [name for name in it.files() if name.startswith("web.log") and name != "web.log.staged"]
            assert len(logs) > 10
            assert all(len(it.text(name)) <= 2000 and it.text(name).endswith("\n") for name in logs)

    run(test)


def test_the_format_changes_while_it_runs(tmp_path: Path) -> None:
    """From the next byte on, in every direction; a line that is begun stays whole where the formats let it."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web")
            for number, policy in enumerate((STAMPED, JSON, STAMPED, LogPolicy(), JSON, LogPolicy())):
                source.write(b"begun " + str(number).encode())
                await it.output.drain("web")
                it.output.set_policy("web", policy)
                source.write(b" and ended\n")
                await it.output.drain("web")
            written = it.text()
            assert "web.log.staged" not in it.files()
            assert written.count("begun") == written.count("and ended") == 6
            assert STAMP.sub("", written.splitlines()[-1]) == " and ended"
            assert written.startswith("begun 0 and ended\n")

    run(test)


def test_a_new_life_begins_a_line(tmp_path: Path) -> None:
    """The last words of a life without their end do not run into the first of the next, which has its own time."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", STAMPED)
            it.output.mark_life("web", "a" * 32)
            source.write(b"last words")
            await it.output.drain("web")
            it.output.mark_life("web", "b" * 32)
            source.write(b"first words\n")
            await it.output.drain("web")
            assert texts(it) == ["last words", "first words"]
            assert it.output.last_lines("web", 5, previous=True) == ["last words"]

    run(test)


def test_followers_and_times(tmp_path: Path) -> None:
    """Who follows gets what was written, as it comes; what was said in a window of time is found over rotated files."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", LogPolicy(max_bytes=3000, backups=50, format=LogFormat.TIMESTAMP))
            follower = it.output.follow(["web"])
            for number in range(300):
                source.write(b"line %d\n" % number)
                assert await anext(follower) == ("web", f"line {number}")
            await follower.aclose()
            every = it.output.log_lines("web", 1000)
            assert [line.text for line in every] == [f"line {number}" for number in range(300)]
            since, until_ = every[100].time, every[250].time
            assert since is not None and until_ is not None
            window = Window(since, until_)
            found = it.output.log_lines("web", 1000, window=window)
            assert found == [line for line in every if line.time is not None and since <= line.time <= until_]
            assert it.output.log_lines("web", 1000, window=Window("9999", None)) == []
            assert it.output.log_lines("web", 1000, window=Window(None, "1999")) == []

    run(test)


# Deaths and disks


@pytest.mark.parametrize("policy", [STAMPED, JSON], ids=["timestamp", "json"])
def test_lines_that_a_killed_manager_could_not_note_are_not_doubled(tmp_path: Path, policy: LogPolicy) -> None:
    """They are cut off and written once more, with what was staged behind them."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log").write_text("before\nhalf written, or whol")
    staging = Staging(LogFolder(log_dir), "web")
    staging.note(Progress(inode=(log_dir / "web.log").stat().st_ino, offset=len("before\n")))
    staging.close()
    with (log_dir / "web.log.staged").open("ab") as file:
        file.write(b"staged\nand more")

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web", policy)
            source.write(b" to come\n")
            await it.output.drain("web")
            assert texts(it) == ["before", "staged", "and more to come"]

    run(test)


def test_what_is_staged_is_written_when_lines_are_not_looked_at_any_more(tmp_path: Path) -> None:
    """The manager that comes next may have another policy."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    Staging(LogFolder(log_dir), "web").close()
    with (log_dir / "web.log.staged").open("ab") as file:
        file.write(b"staged\nand more")

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web")
            source.write(b" to come\n")
            await it.output.drain("web")
            assert it.text() == "staged\nand more to come\n"
            assert it.files() == ["web.log"]

    run(test)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"x" * 4000])
def test_a_damaged_staging_file_costs_what_is_in_it(tmp_path: Path, content: bytes) -> None:
    """It is begun anew."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    (log_dir / "web.log.staged").write_bytes(content)

    async def test() -> None:
        async with rig(log_dir) as it:
            source = it.attach("web", JSON)
            source.write(b"fine\n")
            await it.output.drain("web")
            assert texts(it) == ["fine"]

    run(test)


def test_the_staging_file_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dealt with is made room of, also where each piece ends within a line; a cut half done is finished."""
    monkeypatch.setattr("supervisord_py.host.output_staging.ROOM_MAX", 100_000)

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", STAMPED)
            sizes = set()
            for number in range(300):
                source.write(b"%d\n" % number + b"y" * 4000)
                await it.output.drain("web")
                sizes.add((it.log_dir / "web.log.staged").stat().st_size)
            assert max(sizes) < 200_000
            assert texts(it)[-2].endswith("299")

    run(test)
    log_dir = tmp_path / "cut"
    log_dir.mkdir()
    staging = Staging(LogFolder(log_dir), "web")
    staging.note(Progress(cut=HEAD + 4))
    staging.close()
    with (log_dir / "web.log.staged").open("ab") as file:
        file.write(b"restgone already")
    staging = Staging(LogFolder(log_dir), "web")
    assert staging.read(100) == b"rest"
    staging.close()


def test_what_was_taken_after_a_cut_that_was_finished_was_cut_off_too(tmp_path: Path) -> None:
    """Killed while room was made, and again before the next note: the head still told to cut."""
    staging = Staging(LogFolder(tmp_path), "web")
    staging.note(Progress(cut=HEAD))
    staging.close()

    def take(pipe: int, fd: int, count: int, offset: int) -> int:
        return os.pwrite(fd, b"new\n", offset)

    staging = Staging(LogFolder(tmp_path), "web")
    assert staging.fill(take, -1, 100) == 4
    staging.close()
    staging = Staging(LogFolder(tmp_path), "web")
    assert staging.read(100) == b"new\n"
    staging.close()


@pytest.mark.parametrize("policy", [STAMPED, JSON], ids=["timestamp", "json"])
def test_a_unit_at_rest_kept_megabytes_that_were_in_its_log_already(tmp_path: Path, policy: LogPolicy) -> None:
    """A thousand of them were gigabytes."""

    async def test() -> None:
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", policy)
            for _ in range(20):
                source.write(b"y" * 39_999 + b"\n")
                await it.output.drain("web")
            assert (it.log_dir / "web.log.staged").stat().st_size <= HEAD + REST_MAX
            source.write(b"one more\n")
            await it.output.drain("web")
            assert len(texts(it)) == 21
            assert texts(it)[-1].endswith("one more")

    run(test)


class FullDisk:
    """A disk that takes nothing for the log or its staging file while ``full``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        self._pwrite = os.pwrite
        monkeypatch.setattr("supervisord_py.host.output_file.os.pwrite", self.pwrite)

    def refuses(self, fd: int) -> bool:
        return self.full and os.readlink(f"/proc/self/fd/{fd}").endswith(("web.log", "web.log.staged"))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if self.refuses(fd) and offset >= HEAD:
            return self._pwrite(fd, data[: len(data) // 2], offset)  # as much as there is room
        return self._pwrite(fd, data, offset)


@pytest.mark.parametrize("policy", [STAMPED, JSON], ids=["timestamp", "json"])
def test_a_disk_that_takes_half_of_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: LogPolicy
) -> None:
    """What was written in part is taken back, nothing is doubled, the writer goes on; what is lost is told."""

    async def test() -> None:
        disk = FullDisk(monkeypatch)
        disk.full = False
        async with rig(tmp_path / "log") as it:
            source = it.attach("web", policy)
            source.write(b"".join(b"before %d\n" % number for number in range(20)))
            await it.output.drain("web")
            disk.full = True
            source.write(b"during\n" * 3)
            trouble = await it.until_trouble(lambda trouble: trouble.problem is not None)
            assert os.strerror(errno.ENOSPC) in str(trouble.problem)
            disk.full = False
            await it.output.reopen()
            await it.until_trouble(lambda trouble: trouble.problem is None)
            source.write(b"after\n")
            await it.output.drain("web")
            assert texts(it) == [f"before {number}" for number in range(20)] + ["during"] * 3 + ["after"]
            disk.full = True
            line = b"lost %06d\n"
            async with asyncio.timeout(20):
                await asyncio.to_thread(source.write, b"".join(line % number for number in range(40_000)))
            await it.output.drain("web")
            disk.full = False
            await it.output.reopen()
            recovered = await it.until_trouble(lambda trouble: trouble.problem is None)
            await it.output.drain("web")
            found = it.output.last_lines("web", 100_000)[24:]
            told = [text for text in found if "bytes of output lost here" in text]
            assert sum(int(text.split()[1]) for text in told) == recovered.dropped_bytes > 0
            kept = [text for text in found if re.fullmatch(r"lost \d{6}", text)]
            assert len(set(kept)) == len(kept) and kept == sorted(kept)

    run(test)


def test_lines_on_a_filesystem_without_splice(tmp_path: Path) -> None:
    """They are staged by copying."""

    def refuses(source: int, destination: int, count: int, offset: int | None) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    async def test() -> None:
        async with rig(tmp_path / "log", splice=refuses) as it:
            source = it.attach("web", STAMPED)
            lines = [f"{number:09d}" for number in range(20_000)]
            await asyncio.to_thread(source.write, "".join(f"{line}\n" for line in lines).encode())
            await it.output.drain("web")
            assert it.output.last_lines("web", 30_000) == lines

    run(test)


# The rate


def limited(test: Callable[[Rig, list[DroppedLines]], Awaitable[None]], log_dir: Path) -> None:
    told: list[DroppedLines] = []

    async def inner() -> None:
        async with rig(log_dir, on_dropped=told.append) as it:
            await test(it, told)

    run(inner)


@pytest.mark.parametrize("form", list(LogFormat))
def test_lines_above_the_rate_are_dropped_and_counted(tmp_path: Path, form: LogFormat) -> None:
    """The first ones pass, the others are counted for status and journal, and a line in the log says how many."""

    async def test(it: Rig, told: list[DroppedLines]) -> None:
        policy = LogPolicy(format=form, rate_limit=Rate(10, 3600 * SECOND))
        source = it.attach("web", policy)
        await asyncio.to_thread(source.write, b"".join(b"line %d\n" % number for number in range(50_000)))
        await it.output.drain("web")
        note = "supervisord-py: 49990 lines dropped here (rate-limit 10/h)"
        assert texts(it) == [*(f"line {number}" for number in range(10)), note]
        assert it.output.dropped_lines("web") == 49_990
        await until(lambda: bool(told))
        assert told[0].unit == "web" and told[0].rate == Rate(10, 3600 * SECOND)
        it.output.mark_life("web", "b" * 32)
        await it.output.drain("web")
        assert it.output.dropped_lines("web") == 0

    limited(test, tmp_path / "log")


def test_the_window_ends_by_itself(tmp_path: Path) -> None:
    """When nothing more comes, the log says what was dropped as soon as the window is over, and followers see it."""

    async def test(it: Rig, told: list[DroppedLines]) -> None:
        source = it.attach("web", LogPolicy(rate_limit=Rate(1, SECOND // 5)))
        follower = it.output.follow(["web"])
        source.write(b"one\ntwo\nthree\n")
        assert await anext(follower) == ("web", "one")
        assert await anext(follower) == ("web", "supervisord-py: 2 lines dropped here (rate-limit 1/200ms)")
        source.write(b"four\n")
        assert await anext(follower) == ("web", "four")
        await follower.aclose()

    limited(test, tmp_path / "log")


def test_the_journal_is_told_at_first_and_then_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are dropped, and however often."""
    monkeypatch.setattr(output_drops, "TOLD_EVERY_NS", SECOND // 2)

    async def test(it: Rig, told: list[DroppedLines]) -> None:
        source = it.attach("web", LogPolicy(rate_limit=Rate(1, 3600 * SECOND)))
        for _ in range(100):
            source.write(b"x\n")
            await it.output.drain("web")
        await until(lambda: sum(each.lines for each in told) == 99)
        assert len(told) < 20

    limited(test, tmp_path / "log")


def test_the_next_manager_knows_what_was_dropped(tmp_path: Path) -> None:
    """The count of a life survives a manager that is killed, and so does what the log has not been told."""
    log_dir = tmp_path / "log"
    log_dir.mkdir()
    staging = Staging(LogFolder(log_dir), "web")
    staging.note(Progress(dropped=7, untold=3))
    staging.close()

    async def test(it: Rig, told: list[DroppedLines]) -> None:
        it.attach("web", LogPolicy(rate_limit=Rate(100, SECOND)))
        await it.output.drain("web")
        assert it.output.dropped_lines("web") == 7
        assert texts(it) == ["supervisord-py: 3 lines dropped here (rate-limit 100/s)"]

    limited(test, log_dir)


def test_splice_is_what_raw_output_without_a_rate_uses(tmp_path: Path) -> None:
    """The fast way stays: nothing is staged for it."""
    targets = set()

    def watched(source: int, destination: int, count: int, offset: int | None) -> int:
        targets.add(os.path.basename(os.readlink(f"/proc/self/fd/{destination}")))
        return splice(source, destination, count, offset)

    async def test() -> None:
        async with rig(tmp_path / "log", splice=watched) as it:
            it.attach("web", LogPolicy(compress=True, max_age_ns=SECOND)).write(b"x\n")
            await it.output.drain("web")
            assert targets == {"web.log"}

    run(test)

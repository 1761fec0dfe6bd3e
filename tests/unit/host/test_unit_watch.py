"""inotify marks: whatever an editor, a deployment or an accident does to the files, the marks come true and no look is
made without a reason.
"""

import asyncio
import errno
import select
import shutil
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from supervisord_py.host import inotify, unit_watch
from supervisord_py.host.inotify import Inotify
from supervisord_py.host.places import default_places
from supervisord_py.host.sources import Sources
from supervisord_py.host.unit_files import load_settings, read_sources
from supervisord_py.host.unit_watch import SourceMarks, UnitWatch, compare_sources, folders_to_watch

SLEEP = '[service]\nexec-start = ["sleep", "1000"]\n'


async def turn() -> None:
    """Let the loop and the threads go on; nothing is decided by how long that takes."""
    await asyncio.get_running_loop().run_in_executor(None, select.select, [], [], [], 0.005)


class Watched:
    """A folder of units, what was loaded from it, and the watch over it."""

    def __init__(self, root: Path, units: Path | None = None) -> None:
        self.units = units or root / "units"
        self.settings = root / "supervisord.toml"
        self.places = default_places({}, 0, str(root))
        self.looks = 0
        self.after_reading: Callable[[], None] = lambda: None
        """Called in the thread of each look when it has read everything."""
        self.pauses: list[float] = []
        self.loaded = self.read()
        self.watch = UnitWatch(asyncio.get_running_loop(), [str(self.units), str(self.settings)], self._begin)

    def read(self) -> Sources:
        settings, problems = load_settings(self.settings)
        return Sources(settings, problems, read_sources([str(self.units)], self.places))

    def reload(self) -> None:
        since = self.watch.happened
        self.loaded = self.read()
        self.watch.loaded(since)

    def _begin(self) -> Callable[[], SourceMarks]:
        loaded = self.loaded
        _, result = loaded.build()
        self.pauses.append(self.watch._pause_s)

        def look() -> SourceMarks:
            self.looks += 1
            now = self.read()
            self.after_reading()
            return compare_sources(loaded, now, result.names)

        return look

    @property
    def marks(self) -> tuple[list[str], list[str], bool]:
        files = self.watch.marks.files
        return sorted(files.changed), list(files.appeared), self.watch.marks.settings_changed

    async def until(self, changed: str = "", appeared: str = "", settings: bool = False) -> None:
        """Return when the marks are these."""
        wanted = (changed.split(), appeared.split(), settings)
        try:
            async with asyncio.timeout(20):
                while self.marks != wanted:
                    await turn()
        except TimeoutError:
            raise AssertionError(f"never {wanted}, but {self.marks}") from None

    async def settled(self) -> None:
        """Return when no look is due or under way."""
        async with asyncio.timeout(20):
            while self.watch._pending is not None or self.watch._looking is not None:
                await turn()


def watched(
    root: Path, talk: Callable[[Watched], Awaitable[None]], *, units: Path | None = None, make: bool = True
) -> None:
    async def main() -> None:
        if make:
            (root / "units").mkdir()
            (root / "units" / "web.toml").write_text(SLEEP)
            (root / "units" / "db.toml").write_text(SLEEP)
        world = Watched(root, units)
        world.watch.start()
        try:
            await world.settled()
            await talk(world)
        finally:
            await world.watch.close()

    asyncio.run(main())


def test_a_changed_file_is_marked_until_it_is_as_it_was(tmp_path: Path) -> None:
    """By content: the same text again, by another file, takes the mark off."""

    async def talk(world: Watched) -> None:
        web = world.units / "web.toml"
        web.write_text(SLEEP + "# x\n")
        await world.until("web")
        other = world.units / "web.toml.tmp"
        other.write_text(SLEEP)
        other.rename(web)
        await world.until()

    watched(tmp_path, talk)


@pytest.mark.parametrize("dance", ["vim", "emacs", "sed", "truncate"])
def test_the_ways_in_which_editors_save(tmp_path: Path, dance: str) -> None:
    """Backup and new file, lock links and renames, a temporary that takes the place, writing in place: one mark, and
    the files that lie beside it for a moment are no units.
    """

    async def talk(world: Watched) -> None:
        web, text = world.units / "web.toml", SLEEP + "# x\n"
        match dance:
            case "vim":
                (world.units / "4913").touch()
                (world.units / "4913").unlink()
                web.rename(world.units / "web.toml~")
                web.write_text(text)
                (world.units / "web.toml~").unlink()
            case "emacs":
                (world.units / ".#web.toml").symlink_to("user@host.123")
                (world.units / "#web.toml#").write_text(text)
                web.rename(world.units / "web.toml~")
                web.write_text(text)
                (world.units / ".#web.toml").unlink()
                (world.units / "#web.toml#").unlink()
            case "sed":
                (world.units / "sedA1b2C3").write_text(text)
                (world.units / "sedA1b2C3").rename(web)
            case _:
                with web.open("w") as file:
                    file.write(text[:10])
                    file.flush()
                    await world.settled()
                    file.write(text[10:])
        await world.until("web")
        await world.settled()
        assert world.marks == (["web"], [], False)

    watched(tmp_path, talk)


def test_new_gone_masked_and_drop_ins(tmp_path: Path) -> None:
    """Each is noticed, also in a folder of drop-ins that was not there before; a reload takes the marks off."""

    async def talk(world: Watched) -> None:
        (world.units / "new.toml").write_text(SLEEP)
        await world.until(appeared="new")
        (world.units / "db.toml").unlink()
        await world.until("db", "new")
        drop_ins = world.units / "web.toml.d"
        drop_ins.mkdir()
        await world.settled()
        (drop_ins / "a.toml").write_text("[service]\n")
        await world.until("db web", "new")
        world.reload()
        assert world.marks == ([], [], False)
        (drop_ins / "a.toml").write_text("[service]\n# x\n")
        await world.until("web")
        shutil.rmtree(drop_ins)
        world.settings.write_text("[supervisor]\nshutdown-timeout-sec = 3\n")
        await world.until("web", settings=True)
        world.settings.unlink()
        await world.until("web")

    watched(tmp_path, talk)


def test_a_folder_that_is_removed_and_made_again(tmp_path: Path) -> None:
    """The units are marked as gone, and as nothing once the same files are back; the new folder is watched."""

    async def talk(world: Watched) -> None:
        shutil.rmtree(world.units)
        await world.until("db web")
        world.units.mkdir()
        for name in ("web", "db"):
            (world.units / f"{name}.toml").write_text(SLEEP)
        await world.until()
        await world.settled()
        (world.units / "web.toml").write_text("")
        await world.until("web")
        world.units.rename(tmp_path / "away")
        await world.until("db web")
        (tmp_path / "away" / "db.toml").unlink()
        await world.settled()
        (tmp_path / "away").rename(world.units)
        await world.until("db web")

    watched(tmp_path, talk)


def test_a_folder_that_comes_after_the_start(tmp_path: Path) -> None:
    """Nothing is there yet, not even the folder above: it is waited for step by step."""

    async def talk(world: Watched) -> None:
        (tmp_path / "deep").mkdir()
        await world.settled()
        world.units.mkdir()
        (world.units / "web.toml").write_text(SLEEP)
        await world.until(appeared="web")

    watched(tmp_path, talk, units=tmp_path / "deep" / "units", make=False)


def test_links_that_are_turned_elsewhere(tmp_path: Path) -> None:
    """A deployment that flips a link to the folder, a unit that is a link to a file, and a container's mounted folder
    that is exchanged as a whole.
    """
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "web.toml").write_text(SLEEP + f"# {release}\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "db.toml").write_text(SLEEP)
    (tmp_path / "1" / "db.toml").symlink_to(tmp_path / "linked" / "db.toml")
    (tmp_path / "2" / "db.toml").symlink_to(tmp_path / "linked" / "db.toml")
    (tmp_path / "2" / "..data").symlink_to("..1")
    (tmp_path / "2" / "..1").mkdir()
    (tmp_path / "2" / "..2").mkdir()
    (tmp_path / "2" / "..1" / "cfg.toml").write_text(SLEEP)
    (tmp_path / "2" / "..2" / "cfg.toml").write_text(SLEEP + "# 2\n")
    (tmp_path / "2" / "cfg.toml").symlink_to("..data/cfg.toml")
    current = tmp_path / "current"
    current.symlink_to("1")

    def flip(link: Path, target: str) -> None:
        (link.parent / "new-link").symlink_to(target)
        (link.parent / "new-link").rename(link)

    async def talk(world: Watched) -> None:
        flip(current, "2")
        await world.until("web", "cfg")
        (tmp_path / "linked" / "db.toml").write_text(SLEEP + "# 2\n")
        await world.until("db web", "cfg")
        world.reload()
        await world.settled()
        flip(tmp_path / "2" / "..data", "..2")
        await world.until("cfg")

    watched(tmp_path, talk, units=current, make=False)


def test_a_thousand_files_at_once_are_a_few_looks(tmp_path: Path) -> None:
    """Everything is marked in the end, and the looks do not follow the files one by one."""

    async def talk(world: Watched) -> None:
        names = [f"unit-{number:03}" for number in range(1000)]
        for name in names:
            (world.units / f"{name}.toml").write_text(SLEEP)
        await world.until(appeared=" ".join(names))
        await world.settled()
        assert world.looks < 20

    watched(tmp_path, talk)


def test_lost_events_are_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overflow says only that something was lost: one look finds it."""

    async def talk(world: Watched) -> None:
        read = Inotify.read
        overflow = inotify.Change(-1, inotify.OVERFLOW, "")
        monkeypatch.setattr(Inotify, "read", lambda self: [overflow] if read(self) else [])
        (world.units / "web.toml").write_text("")
        await world.until("web")

    watched(tmp_path, talk)


@pytest.mark.parametrize("call", ["add", "init"])
def test_no_room_for_watches_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The supervisor goes on without marks, says why, and notices again when there is room."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC if call == "add" else errno.EMFILE, "No space left on device")

    async def talk(world: Watched) -> None:
        assert world.watch.problem is not None
        assert "changes of unit files are not noticed: no space left on device" in world.watch.problem
        world.reload()
        assert world.marks == ([], [], False)

    with monkeypatch.context() as patch:
        patch.setattr(*((Inotify, "add", full) if call == "add" else (unit_watch, "Inotify", full)))
        watched(tmp_path, talk)

    async def again(world: Watched) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Inotify, "add", full)
            (world.units / "web.toml").write_text("")
            await world.until("web")
            assert world.watch.problem is not None
        (world.units / "web.toml").write_text(SLEEP)
        await world.until()
        assert world.watch.problem is None

    async def by_a_reload(world: Watched) -> None:
        patch.undo()
        world.reload()
        await world.settled()
        assert world.watch.problem is None

    shutil.rmtree(tmp_path / "units")
    if call == "add":
        watched(tmp_path, again)
        shutil.rmtree(tmp_path / "units")
        with monkeypatch.context() as patch:
            patch.setattr(Inotify, "add", full)
            watched(tmp_path, by_a_reload)


def test_what_happens_while_a_look_is_under_way_counts(tmp_path: Path) -> None:
    """A file that is written after a look has read it is marked by the next one; while that goes on, looks become
    rarer, and then prompt again.
    """

    async def talk(world: Watched) -> None:
        texts = ["# 1\n", "# 2\n", "# 3\n"]

        def write() -> None:
            if texts:
                happened = world.watch.happened
                (world.units / "web.toml").write_text(SLEEP + texts.pop())
                while world.watch.happened == happened:
                    select.select([], [], [], 0.005)

        world.pauses.clear()
        world.after_reading = write
        (world.units / "db.toml").touch()
        await world.until("web")
        await world.settled()
        assert world.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8])
        assert world.watch._pause_s == unit_watch.QUIET_S

    watched(tmp_path, talk)


def test_what_happens_while_files_are_loaded_counts(tmp_path: Path) -> None:
    """A file that is written after a reload has read it is marked, although a look at it was made before the reload
    was done.
    """

    async def talk(world: Watched) -> None:
        since, read = world.watch.happened, world.read()
        (world.units / "web.toml").write_text("")
        await world.until("web")
        await world.settled()
        (world.units / "db.toml").write_text("")
        await world.until("db web")
        await world.settled()
        world.loaded = read
        world.watch.marks = SourceMarks()
        world.watch.loaded(since)
        await world.until("db web")

    watched(tmp_path, talk)


def test_a_folder_that_comes_while_watches_are_set_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not there when the folders were listed, and no watch could tell that it came."""
    listed = unit_watch.folders_to_watch

    def late(paths: Iterable[str]) -> dict[str, unit_watch.Names]:
        found = listed(paths)
        (tmp_path / "units" / "web.toml.d").mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(unit_watch, "folders_to_watch", late)

    async def talk(world: Watched) -> None:
        (world.units / "web.toml.d" / "a.toml").write_text("[service]\n")
        await world.until("web")

    watched(tmp_path, talk)


def test_other_files_in_the_folder_wake_nobody(tmp_path: Path) -> None:
    """A log that is written beside the units asks for no look, and nor does the end of a watch of our own."""

    async def talk(world: Watched) -> None:
        matters, seen = world.watch._matters, {}

        def note(change: inotify.Change) -> bool:
            seen[change.name] = matters(change)
            return seen[change.name]

        world.watch._matters = note  # type: ignore[method-assign]
        (world.units / "app.log").write_text("x")
        (world.units / "app.log").unlink()
        (world.units / "web.toml").write_text("")
        await world.until("web")
        assert seen == {"app.log": False, "web.toml": True}
        assert not matters(inotify.Change(9999, inotify.IGNORED, ""))
        assert matters(inotify.Change(9999, inotify.CREATE, "new.toml"))

    watched(tmp_path, talk)


def test_folders_to_watch(tmp_path: Path) -> None:
    """A typed file is watched by its folder, a missing one by the nearest that is there, for that name alone."""
    (tmp_path / "web.toml").write_text(SLEEP)
    assert folders_to_watch([str(tmp_path / "web.toml")]) == {str(tmp_path): None}
    missing = tmp_path / "a" / "b"
    assert folders_to_watch([str(missing)]) == {str(tmp_path): frozenset({"a"})}
    assert unit_watch.QUIET_S < unit_watch.REST_MAX_S

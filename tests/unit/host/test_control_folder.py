"""The control folder: what enable, disable, mask and unmask write, and that a load reads just that."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from supervisord_py.host import control_folder
from supervisord_py.host.control_folder import (
    Change,
    RefusedChange,
    apply_changes,
    is_enabled,
    overruling,
    plan_changes,
    write_changes,
)
from supervisord_py.host.places import Places, default_places
from supervisord_py.host.unit_files import build, load, read_sources
from supervisord_py.model.unitset import UnitFile, UnitFileKind

SLEEP = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'
DISABLED = f"[unit]\nenabled = false\n{SLEEP}"


class Folders:
    """A unit folder and a state folder."""

    def __init__(self, base: Path, units: dict[str, str]) -> None:
        os.umask(0o022)
        self.units = base / "units"
        for name, text in units.items():
            path = self.units / f"{name}.toml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.places: Places = replace(
            default_places({}, os.getuid(), "/root"), state=base / "state", unit_path=(self.units,)
        )
        self.places.state.mkdir()

    def do(self, verb: str, *names: str) -> list[str]:
        """Carry out a verb on disk, and check that what was decided beforehand is what a load reads afterwards."""
        sources = read_sources(None, self.places)
        changes = plan_changes(verb, names, sources, self.places.control)
        write_changes(changes, self.places.control, None)
        after, read = apply_changes(sources, changes), read_sources(None, self.places)
        assert sorted(file.path for file in after.files) == sorted(file.path for file in read.files)
        assert build(after).unit_set == build(read).unit_set
        return [change.path for change in changes]

    def enabled(self) -> dict[str, bool]:
        return {name: unit.enabled for name, unit in load(None, self.places).unit_set.units.items()}

    def written(self) -> list[str]:
        control = self.places.control
        return sorted(str(path.relative_to(control)) for path in control.rglob("*") if not path.is_dir())


def test_disable_writes_one_drop_in_and_enable_takes_it_away(tmp_path: Path) -> None:
    """The file of the unit is never touched; what it says anyway needs no drop-in."""
    folders = Folders(tmp_path, {"web": SLEEP, "off": DISABLED})
    folders.do("disable", "web", "off")
    assert folders.written() == ["web.toml.d/50-enabled.toml"]
    assert folders.enabled() == {"off": False, "web": False}
    assert folders.do("disable", "web") == []
    folders.do("enable", "web", "off")
    assert folders.written() == ["off.toml.d/50-enabled.toml"]
    assert folders.enabled() == {"off": True, "web": True}
    assert not (folders.places.control / "web.toml.d").exists(), "no empty folder stays"


def test_a_template_stands_for_all_of_its_instances(tmp_path: Path) -> None:
    """Said of the template it holds for every instance; what was said of one before gives way, later words do not."""
    folders = Folders(tmp_path, {"w@": SLEEP + "[instances]\ncount = 2\n"})
    folders.do("disable", "w@2")
    assert folders.enabled() == {"w@1": True, "w@2": False}
    folders.do("disable", "w@")
    assert folders.written() == ["w@.toml.d/50-enabled.toml"]
    assert folders.enabled() == {"w@1": False, "w@2": False}
    folders.do("enable", "w@1")
    assert folders.enabled() == {"w@1": True, "w@2": False}
    assert not is_enabled("w@7", read_sources(None, folders.places)), "an instance that is not numbered, too"
    folders.do("enable", "w@")
    assert folders.written() == []


def test_a_later_drop_in_overrules_ours_and_is_named(tmp_path: Path) -> None:
    """A drop-in of the user's that is merged after ours wins, so the change is not what it seems."""
    folders = Folders(tmp_path, {"web": SLEEP, "web.toml.d/90-mine": "[unit]\nenabled = true\n"})
    sources = read_sources(None, folders.places)
    after = apply_changes(sources, plan_changes("disable", ["web"], sources, folders.places.control))
    assert overruling("web", after, folders.places.control) == f"{folders.units}/web.toml.d/90-mine.toml:2"
    assert overruling("web", sources, folders.places.control) is not None


def test_mask_links_to_nothing_and_unmask_removes_that_alone(tmp_path: Path) -> None:
    """A masked unit is neither good nor bad; an instance can be masked for itself; a foreign mask is not ours."""
    folders = Folders(tmp_path, {"web": SLEEP, "w@": SLEEP + "[instances]\ncount = 2\n", "foreign": ""})
    folders.do("mask", "web", "w@2")
    loaded = load(None, folders.places).unit_set
    assert (sorted(loaded.units), loaded.masked, dict(loaded.bad)) == (["w@1"], ("foreign", "w@2", "web"), {})
    assert os.readlink(folders.places.control / "web.toml") == "/dev/null"
    assert folders.do("mask", "web") == []
    folders.do("unmask", "web", "w@2", "w@1")
    assert sorted(load(None, folders.places).unit_set.units) == ["w@1", "w@2", "web"]
    with pytest.raises(RefusedChange, match=r"foreign\.toml, which is not ours"):
        folders.do("unmask", "foreign")


def test_a_file_in_the_control_folder_is_not_masked_over(tmp_path: Path) -> None:
    """Something else has written a unit there: it would be lost."""
    folders = Folders(tmp_path, {})
    folders.places.control.mkdir()
    (folders.places.control / "saved.toml").write_text(SLEEP)
    with pytest.raises(RefusedChange, match="move it away first"):
        folders.do("mask", "saved")
    assert (folders.places.control / "saved.toml").read_text() == SLEEP


def test_typed_paths_have_the_control_folder_before_them(tmp_path: Path) -> None:
    """``run PATH`` with the same state folder sees what was said; with another one it does not."""
    folders = Folders(tmp_path, {"web": SLEEP})
    folders.do("disable", "web")
    typed = [str(folders.units / "web.toml")]
    assert not load(typed, folders.places).unit_set.units["web"].enabled
    assert load(typed, replace(folders.places, state=tmp_path / "other")).unit_set.units["web"].enabled


def test_what_was_said_of_a_unit_that_is_gone_is_no_warning(tmp_path: Path) -> None:
    """It waits in silence, and counts again when the unit comes back."""
    folders = Folders(tmp_path, {"web": SLEEP})
    folders.do("disable", "web")
    (folders.units / "web.toml").unlink()
    assert load(None, folders.places).problems == ()
    (folders.units / "web.toml").write_text(SLEEP)
    assert folders.enabled() == {"web": False}


def test_a_crash_leaves_the_old_word_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is complete on disk before it gets its name: a manager that dies in between has changed nothing, and
    the next one is not disturbed by what is left."""
    folders = Folders(tmp_path, {"web": SLEEP})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            folders.do("disable", "web")
    assert folders.enabled() == {"web": True}
    folders.do("disable", "web")
    assert folders.written() == ["web.toml.d/50-enabled.toml"]
    assert folders.enabled() == {"web": False}


def test_the_folder_is_for_its_owner_and_the_control_group_only(tmp_path: Path) -> None:
    """As the state folder is."""
    folders = Folders(tmp_path, {"web": SLEEP})
    folders.do("disable", "web")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in folders.places.control.rglob("*")}
    assert modes == {"web.toml.d": "0o750", control_folder.DROP_IN: "0o640"}
    assert oct(folders.places.control.stat().st_mode & 0o777) == "0o750"


def test_a_full_disk_left_empty_files_and_folders_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that cannot be written leaves nothing, keeps what was there, and its error names the file."""
    folders = Folders(tmp_path, {"web": SLEEP, "db": SLEEP})
    folders.do("disable", "db")
    control = folders.places.control
    kept = sorted(control.rglob("*"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(control_folder.os, "fsync", full)
    for name in ("web", "db"):
        file = UnitFile(name, f"{control}/{name}.toml.d/50-enabled.toml", "#", UnitFileKind.DROP_IN, str(control), -1)
        with pytest.raises(OSError, match="No space left") as told:
            write_changes([Change(name, file.path, file)], control, None)
        assert told.value.filename == file.path
        assert sorted(control.rglob("*")) == kept
    monkeypatch.undo()
    assert folders.enabled() == {"web": True, "db": False}


def test_masking_many_units_waited_for_the_disk_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the changes are in is synced once, after the last of them."""
    names = [f"u{number}" for number in range(20)]
    folders = Folders(tmp_path, dict.fromkeys(names, SLEEP))
    synced: list[Path] = []
    monkeypatch.setattr(control_folder, "_sync", lambda folder: synced.append(folder))
    folders.do("mask", *names)
    assert synced == [folders.places.state, folders.places.control]

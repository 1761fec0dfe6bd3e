"""One contract for the real disk and the fake one, and what only a real file system can show."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisord_py.host.journal_disk import RESERVE_NAME, Disk, JournalBusyError, RealDisk
from tests.faults.journal_fake_disk import FakeDisk

NAME = "journal-00000000000000000001.ndjson"


@pytest.fixture(params=["real", "fake"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    made: Disk = RealDisk(tmp_path / "state" / "journal") if request.param == "real" else FakeDisk()
    made.open()
    return made


def content(disk: Disk, name: str = NAME) -> bytes:
    data, error = disk.read(name)
    assert error is None
    return data


def test_a_created_segment_holds_its_header_and_what_is_appended(disk: Disk) -> None:
    """Header and lines stand in the file in order, and the size is known without asking."""
    file = disk.create(NAME, b"header\n")
    assert file.append(b"one\ntwo\n") == (8, None)
    file.sync()
    assert content(disk) == b"header\none\ntwo\n"
    assert (file.name, file.size, file.is_intact()) == (NAME, 15, True)
    assert [(entry.name, entry.bytes) for entry in disk.entries()] == [(NAME, 15)]
    file.close()


def test_a_segment_is_never_overwritten(disk: Disk) -> None:
    """Creating a name that exists is an error and changes nothing."""
    disk.create(NAME, b"header\n").close()
    with pytest.raises(FileExistsError):
        disk.create(NAME, b"other\n")
    assert content(disk) == b"header\n"


def test_reopening_cuts_the_tail_and_goes_on(disk: Disk) -> None:
    """What stands behind the good end is cut, and new lines follow there."""
    file = disk.create(NAME, b"header\n")
    file.append(b"one\n")
    file.close()
    again = disk.reopen(NAME, 7)
    assert (again.size, again.is_intact()) == (7, True)
    again.append(b"two\n")
    assert content(disk) == b"header\ntwo\n"
    again.close()


def test_a_removed_file_is_not_intact(disk: Disk) -> None:
    """Writing into a file that is no longer in the folder would be writing to nowhere."""
    file = disk.create(NAME, b"header\n")
    disk.remove(NAME)
    assert not file.is_intact()
    assert disk.entries() == []
    file.close()


def test_removing_what_is_not_there_is_done(disk: Disk) -> None:
    """Removal can be repeated after a failure in between."""
    disk.remove(NAME)


def test_what_is_not_there_is_neither_read_nor_synced(disk: Disk) -> None:
    """A segment that is gone is an error of the system, and one that is there is synced by its name."""
    for operation in (disk.read, disk.sync):
        with pytest.raises(FileNotFoundError):
            operation(NAME)
    disk.create(NAME, b"header\n").close()
    disk.sync(NAME)
    assert content(disk) == b"header\n"


def test_renaming_keeps_the_content(disk: Disk) -> None:
    """A segment that is set aside keeps every byte."""
    disk.create(NAME, b"header\n").close()
    disk.rename(NAME, NAME + ".damaged")
    assert content(disk, NAME + ".damaged") == b"header\n"


def test_the_reserve_is_set_aside_once_and_released_once(disk: Disk) -> None:
    """Setting it aside twice takes its size once; after the release there is nothing to release."""
    assert disk.reserve(4096)
    assert disk.reserve(4096)
    assert disk.release_reserve()
    assert not disk.release_reserve()


def test_a_disk_without_room_for_both_gives_no_reserve(disk: Disk) -> None:
    """The reserve never takes the last free bytes from everybody else."""
    if isinstance(disk, FakeDisk):
        disk.capacity = 1 << 60
    assert not disk.reserve(1 << 60)


@pytest.fixture
def real(tmp_path: Path) -> RealDisk:
    made = RealDisk(tmp_path / "journal")
    made.open()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    """Folder 0750, segments 0640, reserve 0600, under any umask."""
    before = os.umask(mask)
    try:
        disk = RealDisk(tmp_path / "journal")
        disk.open()
        disk.create(NAME, b"header\n").close()
        disk.reserve(4096)
    finally:
        os.umask(before)
    assert mode(tmp_path / "journal") == 0o750
    assert mode(tmp_path / "journal" / NAME) == 0o640
    assert mode(tmp_path / "journal" / RESERVE_NAME) == 0o600
    disk.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another group")
def test_the_control_group_owns_folder_and_files(tmp_path: Path) -> None:
    """Folder and segments belong to the control group, also those that were made before the group was set."""
    first = RealDisk(tmp_path / "journal")
    first.open()
    first.create(NAME, b"header\n").close()
    first.close()
    disk = RealDisk(tmp_path / "journal", 4711)
    disk.open()
    disk.reopen(NAME, 7).close()
    assert (tmp_path / "journal").stat().st_gid == 4711
    assert (tmp_path / "journal" / NAME).stat().st_gid == 4711
    disk.close()


def test_a_second_writer_is_refused(tmp_path: Path, real: RealDisk) -> None:
    """Two managers never write one journal; the second is told what to do, and gets it when the first is gone."""
    second = RealDisk(tmp_path / "journal")
    with pytest.raises(JournalBusyError, match="another process writes it"):
        second.open()
    real.close()
    second.open()
    second.close()


def test_links_are_not_followed(tmp_path: Path, real: RealDisk) -> None:
    """A symbolic link in the folder is neither written through nor listed nor read."""
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "journal" / NAME).symlink_to(victim)
    actions: list[Callable[[], object]] = [
        lambda: real.create(NAME, b"header\n"),
        lambda: real.reopen(NAME, 0),
        lambda: real.read(NAME),
    ]
    for action in actions:
        with pytest.raises(OSError):
            action()
    assert real.entries() == []
    assert victim.read_text() == "precious\n"
    real.close()


def test_a_removed_folder_is_made_again(tmp_path: Path, real: RealDisk) -> None:
    """Somebody's rm -rf costs what was in the folder, not the journal's future."""
    (tmp_path / "journal").rmdir()
    file = real.create(NAME, b"header\n")
    file.sync()
    assert content(real) == b"header\n"
    file.close()
    real.close()


def test_bytes_added_by_others_are_noticed(tmp_path: Path, real: RealDisk) -> None:
    """A file that somebody else wrote to or emptied is not ours to go on with."""
    file = real.create(NAME, b"header\n")
    with (tmp_path / "journal" / NAME).open("ab") as other:
        other.write(b"x")
    assert not file.is_intact()
    os.truncate(tmp_path / "journal" / NAME, 0)
    assert not file.is_intact()
    file.close()
    real.close()


def test_an_unreadable_folder_is_an_error_not_an_empty_journal(tmp_path: Path) -> None:
    """A path that is no folder raises; numbering from 1 over an existing journal would be worse."""
    (tmp_path / "journal").write_text("")
    with pytest.raises(OSError) as caught:
        RealDisk(tmp_path / "journal").open()
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)

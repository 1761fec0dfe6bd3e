"""Unit files are found in their folders, read safely, and kept; nothing that others may write is believed."""

import grp
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from supervisord_py.host.places import Places, default_places
from supervisord_py.host.trusted_files import FILE_MAX, FileRefused, TrustedReader, trusted_uids
from supervisord_py.host.unit_files import (
    UnitSources,
    build,
    key_table,
    load,
    load_settings,
    read_sources,
    specifier_context,
)
from supervisord_py.model.settings import Settings

SLEEP = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'
OTHER = 12345
"""A uid that nobody has and nothing trusts."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")


@pytest.fixture(autouse=True)
def safe_umask() -> Iterator[None]:
    """Files as they are made by default, whatever the umask of the one who tests."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def places_of(*folders: Path) -> Places:
    return replace(default_places({}, os.getuid(), "/root"), unit_path=folders)


def write(path: Path, text: str = SLEEP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_folders_of_the_unit_path_shadow_each_other(tmp_path: Path) -> None:
    """The first folder wins; drop-ins of all count; a folder that is not there is no problem."""
    high, low = tmp_path / "etc", tmp_path / "usr"
    write(high / "web.toml")
    write(high / "db.toml", "")
    write(low / "web.toml", "broken")
    write(low / "db.toml")
    write(low / "web.toml.d" / "x.toml", "[limits]\nnice = 3\n")
    write(low / "defaults.toml", "[limits]\nnice = 4\n")
    write(low / "cache.toml")
    os.symlink("/dev/null", high / "cache.toml")
    result = load(None, places_of(tmp_path / "none", high, low))
    assert not result.problems, result.problems
    web = result.unit_set.units["web"].service
    assert web is not None and web.context.nice == 3
    assert result.unit_set.masked == ("cache", "db")


def test_what_is_no_unit_file_is_left_alone(tmp_path: Path) -> None:
    """Editors' leavings, hidden files, other suffixes and folders; a file whose name is no unit's is an error."""
    for name in (
        "web.toml~",
        ".web.toml",
        "#web.toml#",
        "README",
        "web.service",
        "sub/x.toml",
        "web.toml.d/.x.toml",
        "web.toml.d/x",
    ):
        write(tmp_path / name, "nonsense")
    write(tmp_path / "web.toml")
    write(tmp_path / "my unit.toml")
    result = load([str(tmp_path)], places_of())
    assert list(result.unit_set.units) == ["web"]
    assert [problem.file for problem in result.problems] == [str(tmp_path / "my unit.toml")]


def test_a_typed_file_comes_with_its_drop_ins_and_defaults(tmp_path: Path) -> None:
    """What a unit means does not depend on how it was named; its neighbours stay out."""
    write(tmp_path / "web@.toml", SLEEP + "[instances]\ncount = 1\n")
    write(tmp_path / "other.toml")
    write(tmp_path / "defaults.toml", "[limits]\nnice = 4\ncore = 0\n")
    write(tmp_path / "web@.toml.d" / "1.toml", "[limits]\nnice = 5\n")
    result = load([str(tmp_path / "web@.toml")], places_of())
    assert list(result.unit_set.units) == ["web@1"]
    service = result.unit_set.units["web@1"].service
    assert service is not None and service.context.nice == 5 and service.context.rlimits
    assert len(result.files("web@1")) == 3


def test_typed_paths_that_are_wrong(tmp_path: Path) -> None:
    """Missing, no unit file, and two that define one name: each is told, the good ones load."""
    write(tmp_path / "a" / "web.toml")
    write(tmp_path / "b" / "web.toml")
    write(tmp_path / "web.service")
    paths = [str(tmp_path / name) for name in ("none.toml", "web.service", "a", "b/web.toml")]
    result = load(paths, places_of())
    assert list(result.unit_set.units) == ["web"]
    assert [(problem.file, problem.message.split(":")[0], problem.severity) for problem in result.problems] == [
        (paths[3], "not used", "warning"),
        (paths[0], "no such file or folder", "error"),
        (paths[1], "not a unit file", "error"),
    ]


def test_what_cannot_be_read_is_a_bad_unit(tmp_path: Path) -> None:
    """A pipe, a dangling link, a giant, bytes that are no UTF-8: none blocks or ends the load."""
    os.mkfifo(tmp_path / "pipe.toml")
    os.symlink(tmp_path / "nowhere", tmp_path / "link.toml")
    os.symlink(tmp_path / "loop.toml", tmp_path / "loop.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "giant.toml").write_bytes(b"#" * (FILE_MAX + 1))
    (tmp_path / "latin.toml").write_bytes(b"[unit]\ndescription = '\xe9'\n")
    write(tmp_path / "web.toml")
    result = load([str(tmp_path)], places_of())
    assert list(result.unit_set.units) == ["web"]
    assert list(result.unit_set.bad) == ["folder", "giant", "latin", "link", "loop", "pipe"]
    assert "latin.toml:2:" in result.unit_set.bad["latin"].reason
    assert "not UTF-8: the byte 0xe9" in result.unit_set.bad["latin"].reason
    (problem,) = (each for each in result.problems if "not UTF-8" in each.message)
    assert (problem.line, problem.column) == (2, 16)
    assert "cannot read: no such file" in result.unit_set.bad["link"].reason


def test_a_byte_order_mark_was_an_invalid_statement(tmp_path: Path) -> None:
    """A file that was saved elsewhere is read as it is shown there."""
    (tmp_path / "web.toml").write_text(f"\ufeff{SLEEP}")
    result = load([str(tmp_path)], places_of())
    assert (list(result.problems), list(result.unit_set.units)) == ([], ["web"])


def test_paths_that_are_no_utf8_can_be_told(tmp_path: Path) -> None:
    """Names are bytes to the kernel: problems and sources stay text that JSON and terminals take."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/f\xe9")
    write(Path(folder) / "web.toml", "broken")
    write(Path(folder) / os.fsdecode(b"caf\xe9.toml"))
    sources = read_sources([folder, os.fsdecode(b"nowhere\xff")], places_of())
    result = build(msgspec.json.decode(msgspec.json.encode(sources), type=UnitSources))
    assert [problem.file.removeprefix(str(tmp_path)) for problem in result.problems] == [
        "/f\\xe9/caf\\xe9.toml",
        "/f\\xe9/web.toml",
        "nowhere\\xff",
    ]
    "".join(problem.text() for problem in result.problems).encode()


def test_sources_can_be_kept_and_built_again(tmp_path: Path) -> None:
    """A manager that follows another sees the units as they were, though the files have changed."""
    path = write(tmp_path / "web.toml", SLEEP + 'user = "%u"\n')
    sources = read_sources([str(tmp_path)], places_of())
    kept = msgspec.json.encode(sources)
    path.write_text("broken")
    again = build(msgspec.json.decode(kept, type=UnitSources))
    assert again.unit_set == build(sources).unit_set
    assert list(again.unit_set.units) == ["web"]


def test_settings_are_optional_unless_they_were_typed(tmp_path: Path) -> None:
    """No file means the defaults; a typed one has to be there; problems have their place."""
    path = tmp_path / "supervisord.toml"
    assert load_settings(path) == (Settings(), ())
    assert [problem.message for problem in load_settings(path, required=True)[1]] == ["no such file"]
    write(path, '[supervisor]\nname = "x"\n')
    settings, problems = load_settings(path)
    assert (settings.supervisor.name, settings.path, problems) == ("x", str(path), ())
    write(path, "[supervisor]\nname = 1\n")
    assert [problem.line for problem in load_settings(path)[1]] == [2]


def test_the_key_table_is_found() -> None:
    """In a checkout and in an installed package."""
    assert key_table().find("unit", "service") is not None


def test_the_context_is_of_this_machine() -> None:
    """Root has the system's folders, a user has its own; the boot id is systemd's form of it."""
    context = specifier_context({"XDG_RUNTIME_DIR": "/run/user/5", "XDG_STATE_HOME": "/st"})
    if os.geteuid() == 0:
        assert (context.runtime_dir, context.state_dir, context.logs_dir) == ("/run", "/var/lib", "/var/log")
    else:
        assert (context.runtime_dir, context.state_dir, context.logs_dir) == ("/run/user/5", "/st", "/st/log")
    assert len(context.boot_id) == 32 and int(context.boot_id, 16)
    assert (context.group, context.gid) == (grp.getgrgid(os.getegid()).gr_name, os.getegid())
    assert (context.kernel, os.access(context.shell, os.X_OK)) == (os.uname().release, True)
    own = specifier_context({}, Path("/r"))
    assert own.credentials_dir == "/r/credentials"


# Trust


@pytest.fixture
def reader() -> TrustedReader:
    """Trusts root alone, as for the unit path."""
    return TrustedReader(frozenset({0}))


@as_root
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, reader: TrustedReader) -> None:
    """The error names the path and the command to type; root's own group counts as root."""
    path = write(tmp_path / "web.toml")
    path.chmod(0o646)
    with pytest.raises(FileRefused) as caught:
        reader.read(str(path))
    assert caught.value.hint == f"chmod go-w {path}"
    assert f"the file {path} may be written by everybody (mode 0646)" in caught.value.message
    os.chown(path, 0, OTHER)
    path.chmod(0o664)
    with pytest.raises(FileRefused) as caught:
        reader.read(str(path))
    assert caught.value.hint == f"chmod g-w {path}"
    os.chown(path, 0, 0)
    assert reader.read(str(path)) == SLEEP


@as_root
def test_a_file_of_somebody_else_is_refused(tmp_path: Path, reader: TrustedReader) -> None:
    """Whatever its mode."""
    path = write(tmp_path / "web.toml")
    path.chmod(0o444)
    os.chown(path, OTHER, OTHER)
    with pytest.raises(FileRefused) as caught:
        reader.read(str(path))
    assert caught.value.hint == f"chown root {path}"


@as_root
@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o755, OTHER)])
def test_a_folder_on_the_way_that_others_may_write_is_refused(
    tmp_path: Path, reader: TrustedReader, mode: int, owner: int
) -> None:
    """However far up it is: they could put another folder in its place."""
    path = write(tmp_path / "open" / "units" / "web.toml")
    (tmp_path / "open").chmod(mode)
    os.chown(tmp_path / "open", owner, 0)
    with pytest.raises(FileRefused, match=f"the folder {tmp_path}/open "):
        reader.read(str(path))
    with pytest.raises(FileRefused):
        TrustedReader(frozenset({0})).list(str(path.parent))


@as_root
def test_a_sticky_folder_on_the_way_is_like_tmp(tmp_path: Path, reader: TrustedReader) -> None:
    """Names in it cannot be replaced by others: root's files there are believed, theirs and their links are not."""
    shared = tmp_path / "shared"
    path = write(shared / "web.toml")
    theirs = write(shared / "theirs.toml")
    os.chown(theirs, OTHER, OTHER)
    os.symlink(path, shared / "ours-link.toml")
    os.symlink(path, shared / "theirs-link.toml")
    os.chown(shared / "theirs-link.toml", OTHER, OTHER, follow_symlinks=False)
    shared.chmod(0o1777)
    assert reader.read(str(path)) == SLEEP
    assert reader.read(str(shared / "ours-link.toml")) == SLEEP
    with pytest.raises(FileRefused):
        reader.read(str(theirs))
    with pytest.raises(FileRefused, match="the link"):
        reader.read(str(shared / "theirs-link.toml"))


@as_root
def test_a_link_into_an_open_folder_is_refused(tmp_path: Path, reader: TrustedReader) -> None:
    """Links are followed by hand, so the folders that they lead through are checked too, one by one."""
    inner = write(tmp_path / "open" / "safe" / "web.toml")
    (tmp_path / "units").mkdir()
    os.symlink("../open/safe", tmp_path / "units" / "hop")
    os.symlink("hop/web.toml", tmp_path / "units" / "web.toml")
    assert TrustedReader(frozenset({0})).read(str(tmp_path / "units" / "web.toml")) == SLEEP
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(FileRefused, match=f"{tmp_path}/open "):
        reader.read(str(tmp_path / "units" / "web.toml"))
    assert inner.exists()


@as_root
def test_a_dot_dot_behind_a_link_is_of_the_target(tmp_path: Path, reader: TrustedReader) -> None:
    """``hop/../x`` leads beside where ``hop`` points, as for the kernel."""
    write(tmp_path / "a" / "web.toml", "right")
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "units").mkdir()
    os.symlink(tmp_path / "a" / "b", tmp_path / "units" / "hop")
    os.symlink("hop/../web.toml", tmp_path / "units" / "web.toml")
    assert reader.read(str(tmp_path / "units" / "web.toml")) == "right"


@as_root
def test_the_user_behind_sudo_is_trusted_with_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with the unit path."""
    path = write(tmp_path / "home" / "web.toml")
    for each in (path, path.parent):
        os.chown(each, OTHER, OTHER)
    assert load([str(path)], places_of()).has_errors
    monkeypatch.setenv("SUDO_UID", str(OTHER))
    assert list(load([str(path)], places_of()).unit_set.units) == ["web"]
    assert load([str(path.parent)], places_of()).unit_set.units
    assert not load(None, places_of(path.parent)).unit_set.units
    settings = write(tmp_path / "home" / "s.toml", "")
    os.chown(settings, OTHER, OTHER)
    assert load_settings(settings, required=True)[1] == ()
    assert load_settings(settings)[1] != ()


@as_root
def test_an_untrusted_unit_does_not_fall_through_to_the_folder_below(tmp_path: Path) -> None:
    """It is bad, though a good file of its name is there; an untrusted folder is left out as a whole."""
    high, low = tmp_path / "etc", tmp_path / "usr"
    write(high / "web.toml").chmod(0o666)
    write(high / "db.toml")
    write(low / "web.toml")
    result = load(None, places_of(high, low))
    assert list(result.unit_set.units) == ["db"]
    assert "refused" in result.unit_set.bad["web"].reason
    high.chmod(0o777)
    result = load(None, places_of(high, low))
    assert [problem.hint for problem in result.problems] == [f"chmod go-w {high}"]
    assert list(result.unit_set.units) == ["web"]


def test_who_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked when we are not root; root trusts itself, and with typed paths the user behind sudo."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert trusted_uids({"SUDO_UID": "5"}, typed=True) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    plain = trusted_uids({"SUDO_UID": "5"}, typed=False)
    typed = trusted_uids({"SUDO_UID": "5"}, typed=True)
    assert plain is not None and typed is not None
    assert 0 in plain and 5 not in plain and typed == plain | {5}
    assert trusted_uids({"SUDO_UID": "no"}, typed=True) == plain


def test_folders_that_cannot_be_read_now_keep_what_they_held(tmp_path: Path) -> None:
    """A folder of the unit path, and a folder of drop-ins, that were read before and are gone or refused: their files
    stay, with the drop-ins elsewhere that belong to them; each is one problem. A folder that never was is none."""
    places = replace(places_of(*(tmp_path / name for name in ("one", "two", "never"))), state=tmp_path / "state")
    write(tmp_path / "one" / "a.toml")
    write(tmp_path / "two" / "b.toml")
    write(tmp_path / "two" / "b.toml.d" / "x.toml", "[limits]\nnice = 5\n")
    write(places.control / "a.toml.d" / "50-enabled.toml", "[unit]\nenabled = false\n")
    before = read_sources(None, places)
    (tmp_path / "one").rename(tmp_path / "away")
    (tmp_path / "two" / "b.toml.d").rename(tmp_path / "drop-ins")
    (tmp_path / "two" / "b.toml.d").symlink_to(tmp_path / "drop-ins")
    # Root reads everything, but not what others may have written.
    (tmp_path / "drop-ins").chmod(0o777 if os.geteuid() == 0 else 0)
    after = read_sources(None, places, before=before)
    assert sorted(after.files, key=lambda file: file.path) == sorted(before.files, key=lambda file: file.path)
    assert set(after.kept) == {str(tmp_path / "one"), str(tmp_path / "two" / "b.toml.d")}
    assert sorted(problem.file for problem in after.problems) == sorted(after.kept)
    assert read_sources(None, places, before=after).kept == after.kept

"""What of a hot directory is loaded: signatures, versions, what runs, and what is no good."""

import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisord_py.host.hot_files import Choice, Look, Rules, choose, look_at
from supervisord_py.host.hot_memory import Highest, HotMemory, MemoryLostError, read_memory, write_memory
from supervisord_py.host.signing import Keyring, make_key, sign
from supervisord_py.host.unit_files import UnitSources, build, specifier_context
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind
from supervisord_py.testing.wheels import wheel_bytes
from supervisord_py.wire.minisign import Claims, SecretKey, format_claims, format_signature

KEY = make_key()
UNIT = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'
BAD = '[service]\nexec-start = ["/bin/sleep"]\nno-such-key = 1\n'
LATE_NS = 2**62
"""A time of day at which every file has settled."""


class Folder:
    """A hot directory without a supervisor: ``turn`` is what one would load."""

    def __init__(self, base: Path, *, require_signature: bool = True) -> None:
        self.hot = base / "hot"
        self.hot.mkdir()
        self.rules = Rules(require_signature, Keyring((KEY.public,), where="keys"), base / "sites")
        self.memory = HotMemory()
        self.in_use: tuple[UnitFile, ...] = ()
        self.others: tuple[UnitFile, ...] = ()

    def wheel(
        self,
        version: str,
        units: Mapping[str, str] | None = None,
        *,
        name: str = "demo",
        timestamp: int = 100,
        key: SecretKey | None = KEY,
        said: str = "",
    ) -> Path:
        units = {"demo": UNIT} if units is None else units
        path = self.hot / f"{name}-{version}-py3-none-any.whl"
        data = wheel_bytes(name, version, {"demo.py": f"version = {version!r}\n"}, units=units)
        return self.put(path, data, Claims(timestamp, said, name, version, tuple(units)), key)

    def unit(self, name: str, text: str = UNIT, *, timestamp: int = 100, claimed: str = "") -> Path:
        return self.put(self.hot / f"{name}.toml", text.encode(), Claims(timestamp, units=(claimed or name,)), KEY)

    def put(self, path: Path, data: bytes, claims: Claims, key: SecretKey | None) -> Path:
        path.write_bytes(data)
        if key is not None:
            text = format_signature(sign(data, key, format_claims(claims)), "made by a test")
            path.with_name(f"{path.name}.minisig").write_text(text)
        return path

    def remove(self, path: Path) -> None:
        path.unlink()
        path.with_name(f"{path.name}.minisig").unlink(missing_ok=True)

    def look(self) -> Look:
        return look_at(str(self.hot), self.rules, {}, LATE_NS)

    def build(self, hot: Sequence[UnitFile]) -> LoadResult:
        return build(UnitSources((*self.others, *hot), (), specifier_context(os.environ)))

    def turn(self, look: Look | None = None) -> Choice:
        choice, files, loaded = choose(look or self.look(), self.in_use, self.others, self.memory, self.build)
        self.in_use, self.memory = files, choice.memory
        assert {name for name, bad in loaded.unit_set.bad.items() if bad.rejected} == set(self.rejected())
        return choice

    def versions(self) -> dict[str, str]:
        """What is in use by unit."""
        return {file.name: file.hot.version for file in self.in_use if file.hot is not None and file.problem is None}

    def rejected(self) -> dict[str, str]:
        """What is listed as rejected, by unit."""
        return {file.name: file.problem.message for file in self.in_use if file.problem is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_highest_version_is_taken_and_lower_ones_are_just_there(folder: Folder) -> None:
    for version in ("1.9", "1.10", "1.10rc1", "1.2"):
        folder.wheel(version)
    folder.turn()
    assert folder.versions() == {"demo": "1.10"}
    assert folder.rejected() == {}
    assert folder.memory.highest == {"demo": Highest("1.10", 100)}
    assert (folder.rules.wheels / os.listdir(folder.rules.wheels)[0] / "demo.py").read_text() == "version = '1.10'\n"


def test_a_lower_version_than_the_highest_ever_is_refused(folder: Folder) -> None:
    high = folder.wheel("2.0")
    folder.turn()
    folder.remove(high)
    folder.turn()
    assert folder.versions() == {}
    folder.wheel("1.0")
    folder.turn()
    assert folder.versions() == {}
    (reason,) = folder.rejected().values()
    assert reason == "version 1.0 is lower than 2.0, the highest that was ever installed"
    folder.wheel("2.0", timestamp=99)
    folder.turn()
    assert folder.versions() == {}
    assert "its signature is older" in folder.rejected()["demo-2.0-py3-none-any.whl"]
    folder.wheel("2.0", timestamp=100)
    folder.turn()
    assert folder.versions() == {"demo": "2.0"}, "the same again is no lower one"


def test_an_old_unit_file_cannot_be_brought_back(folder: Folder) -> None:
    folder.unit("web", timestamp=200)
    folder.turn()
    assert folder.versions() == {"web": ""}
    before = folder.in_use
    folder.unit("web", UNIT + "# an older text\n", timestamp=100)
    folder.turn()
    assert [file.text for file in folder.in_use if file.problem is None] == [before[0].text]
    assert "sign it again" in folder.rejected()["web.toml"]
    folder.unit("web", UNIT + "# an older text\n", timestamp=201)
    folder.turn()
    assert folder.rejected() == {}


def test_a_signature_is_for_the_unit_that_it_names(folder: Folder) -> None:
    folder.unit("web", claimed="db")
    folder.turn()
    assert folder.rejected() == {"web": "the signature is for other units: db, and here are web"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "it was changed"),
        (lambda path: path.with_name(f"{path.name}.minisig").unlink(), "not signed"),
        (lambda path: path.with_name(f"{path.name}.minisig").write_text("nothing"), "not a signature of minisign"),
        (lambda path: path.with_name(f"{path.name}.minisig").write_bytes(b"\xff"), "not UTF-8"),
        (lambda path: path.unlink() or path.mkdir(), "not a plain file"),
        (lambda path: path.unlink() or path.symlink_to("/no/such/file"), "cannot read: no such file"),
        (lambda path: path.unlink() or os.mkfifo(path), "not a plain file"),
    ],
)  # fmt: skip
def test_what_is_no_good_is_rejected_and_what_runs_stays(folder: Folder, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    path = folder.wheel("1.0")
    folder.turn()
    used = [file for file in folder.in_use if file.problem is None]
    spoil(path)
    folder.turn()
    assert [file for file in folder.in_use if file.problem is None] == used
    (reason,) = folder.rejected().values()
    assert message in reason


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_of_what_was_dropped_can_be_another(data: st.DataObject) -> None:
    """Of the wheel or of its signature, but for the comment that nothing protects: it is refused."""
    with tempfile.TemporaryDirectory() as base:
        folder = Folder(Path(base))
        path = folder.wheel("1.0")
        changed = data.draw(st.sampled_from([path, path.with_name(f"{path.name}.minisig")]))
        content = bytearray(changed.read_bytes())
        begin = 0 if changed == path else content.index(b"\n") + 1
        # The last byte of a signature ends its last line, which may as well be missing.
        place = data.draw(st.integers(begin, len(content) - (1 if changed == path else 2)))
        content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
        changed.write_bytes(content)
        (candidate,) = folder.look().candidates
        assert candidate.problem
        assert not candidate.files


def test_a_version_with_a_bad_unit_leaves_the_one_before(folder: Folder) -> None:
    """And without one before, the next lower one that is good is taken."""
    folder.wheel("1.0")
    folder.turn()
    folder.wheel("1.1", {"demo": BAD})
    folder.turn()
    assert folder.versions() == {"demo": "1.0"}
    assert "no-such-key" in folder.rejected()["demo-1.1-py3-none-any.whl"]
    folder.in_use, folder.memory = (), HotMemory()
    folder.turn()
    assert folder.versions() == {"demo": "1.0"}
    assert folder.memory.highest == {"demo": Highest("1.0", 100)}, "what was not installed is not remembered"


def test_a_unit_that_somebody_else_defines_is_not_taken_over(folder: Folder) -> None:
    folder.others = (UnitFile("demo", "/units/demo.toml", UNIT, UnitFileKind.UNIT, "/units", 0),)
    folder.wheel("1.0")
    folder.wheel("1.0", {"own": UNIT}, name="first")
    folder.wheel("1.0", {"own": UNIT}, name="second")
    folder.turn()
    assert folder.versions() == {"own": "1.0"}
    assert folder.rejected()["demo-1.0-py3-none-any.whl"].startswith("/units/demo.toml defines demo too")
    assert "first-1.0" in folder.rejected()["second-1.0-py3-none-any.whl"]
    mask = UnitFile("own", "/control/own.toml", "", UnitFileKind.UNIT, "/control", -1)
    folder.others = (*folder.others, mask)
    folder.in_use = ()
    folder.turn()
    assert folder.versions() == {"own": "1.0"}, "a mask is nobody's definition"


@pytest.mark.parametrize("comes", ["a package", "a unit file", "a version"])
def test_whose_name_came_first_took_the_units_of_another_package(folder: Folder, comes: str) -> None:
    """By the alphabet, and what ran under the unit was replaced; also after a start of the supervisor."""
    folder.wheel("1.0", {"web": UNIT}, name="zebra")
    if comes == "a version":
        folder.wheel("1.0", {"own": UNIT}, name="ape")
    folder.turn()
    if comes == "a unit file":
        path = folder.unit("web")
    elif comes == "a version":
        path = folder.wheel("1.1", {"own": UNIT, "web": UNIT}, name="ape")
    else:
        path = folder.wheel("1.1", {"web": UNIT}, name="ape")
    for _ in range(2):
        folder.turn()
        used = {(file.name, file.hot.package, file.hot.version) for file in folder.in_use if not file.problem}
        assert used == {("web", "zebra", "1.0")} | ({("own", "ape", "1.0")} if comes == "a version" else set())
        (why,) = folder.rejected().values()
        assert why.endswith("zebra-1.0-py3-none-any.whl defines web too: rename one of them")
        folder.in_use = ()
    folder.remove(folder.hot / "zebra-1.0-py3-none-any.whl")
    folder.turn()
    assert {file.hot.source for file in folder.in_use if file.name == "web"} == {str(path)}


def test_what_did_not_stay_up_is_refused_until_it_is_signed_anew(folder: Folder) -> None:
    folder.wheel("1.0")
    folder.turn()
    folder.wheel("1.1")
    newer = next(each.hot.digest for each in folder.look().candidates if each.hot.version == "1.1")
    folder.memory = replace(folder.memory, refused={newer: "it did not stay up"})
    folder.turn()
    assert folder.versions() == {"demo": "1.0"}
    assert folder.rejected() == {"demo-1.1-py3-none-any.whl": "it did not stay up"}
    folder.wheel("1.1", timestamp=101)
    folder.turn()
    assert folder.versions() == {"demo": "1.1"}


def test_a_file_that_has_gone_takes_its_units_with_it(folder: Folder) -> None:
    wheel, unit = folder.wheel("1.0"), folder.unit("web")
    folder.turn()
    assert folder.versions() == {"demo": "1.0", "web": ""}
    folder.remove(wheel)
    folder.remove(unit)
    folder.turn()
    assert folder.in_use == ()


def test_a_file_is_given_time_for_its_signature(folder: Folder) -> None:
    path = folder.wheel("1.0", key=None)
    look = look_at(str(folder.hot), folder.rules, {}, path.stat().st_ctime_ns + 1000)
    assert look.unsettled == {str(path)}
    folder.turn(look)
    assert folder.rejected() == {}
    folder.turn()
    assert list(folder.rejected()) == ["demo-1.0-py3-none-any.whl"]


def test_what_has_not_changed_is_not_read_again(folder: Folder) -> None:
    folder.wheel("1.0")
    first = folder.look()
    known = {each.path: replace(each, signer="from before") for each in first.candidates}
    again = look_at(str(folder.hot), folder.rules, known, LATE_NS)
    assert [each.signer for each in again.candidates] == ["from before"]
    folder.wheel("1.0", timestamp=101)
    again = look_at(str(folder.hot), folder.rules, known, LATE_NS)
    assert [each.signer for each in again.candidates] != ["from before"]


def test_without_signatures_names_and_versions_count_all_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path, require_signature=False)
    folder.wheel("1.0", key=None)
    folder.turn()
    assert folder.versions() == {"demo": "1.0"}
    folder.wheel("1.0", {"demo": UNIT, "more": UNIT}, key=None)
    folder.turn()
    assert folder.versions() == {"demo": "1.0", "more": "1.0"}, "built again"
    folder.memory = replace(folder.memory, highest={"demo": Highest("1.1", 5)})
    folder.in_use = ()
    folder.turn()
    assert folder.versions() == {}


# the bytes that were verified are those that are installed


def test_what_is_exchanged_after_the_look_is_not_installed(folder: Folder) -> None:
    path = folder.wheel("1.0")
    look = folder.look()
    path.write_bytes(wheel_bytes("demo", "1.0", {"demo.py": "evil"}, units={"demo": UNIT}))
    folder.turn(look)
    (site,) = folder.rules.wheels.iterdir()
    assert (site / "demo.py").read_text() == "version = '1.0'\n"


def test_a_link_that_flips_between_good_and_evil_installs_nothing_evil(folder: Folder, tmp_path: Path) -> None:
    """As fast as it can be done, while the folder is looked at."""
    path = folder.wheel("1.0")
    good, evil = tmp_path / "good", tmp_path / "evil"
    path.rename(good)
    evil.write_bytes(wheel_bytes("demo", "1.0", {"demo.py": "evil"}, units={"demo": UNIT}))
    path.symlink_to(good)
    ends = threading.Event()

    def flip() -> None:
        while not ends.is_set():
            for target in (evil, good):
                (tmp_path / "next").symlink_to(target)
                (tmp_path / "next").replace(path)

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        kinds: set[bool] = set()
        for _ in range(100):
            folder.in_use, folder.memory = (), HotMemory()
            folder.turn()
            kinds.add(bool(folder.versions()))
            if folder.versions():
                (site,) = folder.rules.wheels.iterdir()
                assert (site / "demo.py").read_text() == "version = '1.0'\n"
    finally:
        ends.set()
        thread.join()
    assert True in kinds


# what is remembered


def test_the_memory_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "hot-directory.json"
    assert read_memory(path) == HotMemory()
    memory = HotMemory({"demo": Highest("1.0", 5), "unit:web": Highest()}, {"ab": "why"})
    write_memory(path, memory)
    assert read_memory(path) == memory
    assert os.listdir(tmp_path) == [path.name]
    path.write_text('{"highest": ')
    with pytest.raises(MemoryLostError, match="nobody knows which versions are old"):
        read_memory(path)
    with pytest.raises(MemoryLostError, match="cannot write"):
        write_memory(tmp_path / "none" / "file", memory)

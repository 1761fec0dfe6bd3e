"""Wheels of agents: what is refused, and that what is unpacked is what was read."""

import io
import sys
import zipfile
from pathlib import Path

import pytest

from supervisord_py.host.agent_wheels import WheelError, check_requirements, prepare_folder, read_wheel, unpack
from supervisord_py.testing.wheels import wheel_bytes

NAME = "demo-1.0-py3-none-any.whl"
AGENT = '[agent]\nclass = "demo:Demo"\n'
UNITS = {"demo": AGENT}


def rezipped(change) -> bytes:  # type: ignore[no-untyped-def]
    """A good wheel to which ``change`` did something while it was written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel_bytes("demo", "1.0", {"demo.py": ""}, units=UNITS))) as good:
        with zipfile.ZipFile(buffer, "w") as archive:
            for info in good.infolist():
                archive.writestr(info, good.read(info))
            change(archive)
    return buffer.getvalue()


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "cannot read the archive"),
        (wheel_bytes("demo", "1.0", {}, units={}), "has no unit files"),
        (wheel_bytes("other", "1.0", {}, units=UNITS), "its metadata is that of other 1.0"),
        (wheel_bytes("demo", "1.1", {}, units=UNITS), "its metadata is that of demo 1.1"),
        (wheel_bytes("demo", "1.0", {}, units={"not a name": ""}), "supervisord_py_units/not a name.toml in it"),
        (wheel_bytes("demo", "1.0", {}, units={"defaults": ""}), "a wheel has no defaults"),
        (rezipped(lambda archive: archive.writestr("../evil", "")), "would write outside"),
        (rezipped(lambda archive: archive.writestr("/evil", "")), "would write outside"),
        (rezipped(lambda archive: archive.writestr("a\\evil", "")), "would write outside"),
        (rezipped(lambda archive: archive.writestr("demo-1.0.data/purelib/../../x", "")), "would write outside"),
        (rezipped(lambda archive: archive.writestr("demo-1.0.data/purelib/demo.py", "")), "is in it twice"),
        (rezipped(lambda archive: archive.writestr("more-1.0.dist-info/METADATA", "")), "more than one METADATA"),
        (rezipped(link), "is a link"),
    ],
)
def test_what_is_no_good_wheel_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(WheelError, match=message):
        read_wheel(data, NAME)


@pytest.mark.parametrize("name", ["demo.whl", "demo-one-py3-none-any.whl", "-1.0-py3-none-any.whl"])
def test_the_name_of_the_file_is_one_of_a_wheel(name: str) -> None:
    with pytest.raises(WheelError, match="is not the name of a wheel"):
        read_wheel(wheel_bytes("demo", "1.0", {}, units=UNITS), name)


def test_every_truncated_wheel_is_refused() -> None:
    whole = wheel_bytes("demo", "1.0", {"demo.py": "x" * 100}, units=UNITS)
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(WheelError):
            read_wheel(whole[:length], NAME)


def test_a_wheel_is_unpacked_as_pip_would(tmp_path: Path) -> None:
    def more(archive: zipfile.ZipFile) -> None:
        archive.writestr("demo-1.0.data/platlib/fast.so", "fast")
        archive.writestr("demo-1.0.data/scripts/demo", "#!python")

    data = rezipped(more)
    wheel = read_wheel(data, NAME)
    assert (wheel.name, wheel.version, wheel.units) == ("demo", "1.0", UNITS)
    site = tmp_path / "sites" / "one"
    for _ in range(2):
        unpack(data, wheel, site)
        (site / "left behind").touch()
    (site / "left behind").unlink()
    found = sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file())
    dist_info = [f"demo-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")]
    assert found == [*dist_info, "demo.py", "fast.so", "supervisord_py_units/demo.toml"]
    assert {path.stat().st_mode & 0o777 for path in site.rglob("*") if path.is_file()} == {0o644}
    assert [path.name for path in site.parent.iterdir()] == ["one"]


def test_a_damaged_wheel_leaves_nothing_behind(tmp_path: Path) -> None:
    data = wheel_bytes("demo", "1.0", {"demo.py": "x" * 1000}, units=UNITS)
    wheel = read_wheel(data, NAME)
    place = data.index(b"demo.py") + len(b"demo.py") + 3
    with pytest.raises(WheelError, match="cannot unpack"):
        unpack(data[:place] + b"\0\0\0" + data[place + 3 :], wheel, tmp_path / "sites" / "one")
    assert list((tmp_path / "sites").iterdir()) == []


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites").chmod(0o777)
    with pytest.raises(WheelError, match="could be written by others"):
        prepare_folder(tmp_path / "sites")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(WheelError, match="is not a folder of the supervisor's own"):
        prepare_folder(tmp_path / "link")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ("Requires-Dist: no-such-thing>=1", "requires no-such-thing, which is not installed"),
        ("Requires-Dist: msgspec>=1000", "requires msgspec>=1000, and "),
        ("Requires-Python: >=4", "requires Python >=4"),
        ("Requires-Dist: not a requirement", "its metadata is wrong"),
    ],
)
def test_what_is_required_and_not_there_is_told(headers: str, message: str) -> None:
    data = wheel_bytes("demo", "1.0", {}, units=UNITS, headers=headers)
    with pytest.raises(WheelError, match=message):
        check_requirements(read_wheel(data, NAME))
    own = {"demo": AGENT + f'python = "{sys.executable}"\n'}
    check_requirements(read_wheel(wheel_bytes("demo", "1.0", {}, units=own, headers=headers), NAME))


def test_what_is_required_and_there_is_not_told() -> None:
    headers = 'Requires-Dist: msgspec>=0.1\nRequires-Dist: Supervisord_Py\nRequires-Dist: no-such; extra == "more"\n'
    check_requirements(read_wheel(wheel_bytes("demo", "1.0", {}, units=UNITS, headers=headers), NAME))
    with pytest.raises(WheelError, match="another Python or machine"):
        check_requirements(
            read_wheel(wheel_bytes("demo", "1.0", {}, units=UNITS), "demo-1.0-cp35-cp35m-manylinux_2_17_m68k.whl")
        )

"""Every file that others wrote: no crash, and what comes out passes ``check``; how much is carried over."""

import glob
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from supervisord_py.convert.draft import Fate
from tests.convert.bench import ConvertError, SourceFile, check_passes, converted, debian_sets, fixture, read_all

Tell = Callable[[str, object], None]
CARRIED_MIN = 0.9


def test_debian_units(record_property: Tell) -> None:
    """Of the uses that are not needless at least 90 % have their effect, or will when their key is built; both shares
    are told."""
    fixture("debian-units")
    fates: Counter[str] = Counter()
    units = 0
    for name, paths in debian_sets():
        try:
            conversion = converted("systemd", read_all(paths))
        except ConvertError as error:
            raise AssertionError(f"{name}: {error}") from None
        check_passes(conversion)
        units += len(conversion.drafts)
        fates.update("awaited" if use.awaited else use.fate.value for use in conversion.ledger.uses)
    total = fates.total()
    counted = total - fates[Fate.NEEDLESS.value]
    now, later = fates[Fate.CARRIED.value] / counted, (fates[Fate.CARRIED.value] + fates["awaited"]) / counted
    record_property(
        "summary",
        f"convert systemd, Debian: {units} units, {total} uses: {fates['carried']} carried over, {fates['awaited']} of "
        f"keys to come, {fates['lost']} lost, {fates['needless']} needless ({fates['needless'] / total:.1%}); with "
        f"effect {now:.1%} of those that are not needless, {later:.1%} with the keys to come",
    )
    assert later >= CARRIED_MIN and units > 240


def test_systemd_execute() -> None:
    """systemd's own execution units are converted one by one, and every assignment is accounted for."""
    folder = fixture("systemd-execute")
    paths = sorted(glob.glob(str(folder / "units" / "*.service")))
    assert len(paths) > 100
    for path in paths:
        conversion = converted("systemd", read_all([path]))
        check_passes(conversion)


def test_fuzz_corpora() -> None:
    """Files that broke parsers give a result or a clear error."""
    folder = fixture("systemd-vectors") / "fuzz"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert paths
    refused = 0
    for path in paths:
        for suffix in ("service", "socket", "timer", "target"):
            text = path.read_bytes().decode(errors="surrogateescape")
            files = [SourceFile(f"a.{suffix}", text), SourceFile("b.service", "[Service]\nExecStart=/bin/true\n")]
            try:
                check_passes(converted("systemd", files))
            except ConvertError as error:
                assert Path(str(error).partition(":")[0]).name == f"a.{suffix}"
                refused += 1
    assert refused < len(paths)

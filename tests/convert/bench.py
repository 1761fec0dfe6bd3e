"""What the tests of the converters share: conversions as the command makes them, and the files that others wrote."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.convert.draft import Conversion, ConvertError, SourceFile
from supervisord_py.convert.formats import Surroundings, convert
from supervisord_py.convert.reading import read_file, read_matching
from supervisord_py.convert.settle import settle
from supervisord_py.convert.toml_text import unit_text
from supervisord_py.convert.yaml_text import load_yaml
from supervisord_py.host.unit_files import AGENT_RUNNER, key_table
from supervisord_py.host.zones import zone_named
from supervisord_py.model.assemble import Machine
from supervisord_py.model.specifiers import SpecifierContext
from supervisord_py.model.unitset import LoadResult, UnitFile, UnitFileKind, build_unit_set

KEYS = key_table()
CONTEXT = SpecifierContext(
    "/root", "/run", "/var/lib", "/var/log", "root", 0, "vm", "b00f", shell="/bin/bash", kernel="6.18.44-fc-v657",
    architecture="x86-64", machine_id="b20d1ba4eae74850a953a16345877945",
)  # fmt: skip
"""The machine on which systemd was asked what it makes of texts."""

MACHINE = Machine(zone_named, AGENT_RUNNER)
FIXTURES = Path(os.environ.get("SUPERVISORD_PY_FIXTURES", Path(__file__).parents[2].parent / "shared" / "fixtures"))


def fixture(name: str) -> Path:
    """A folder of what others wrote; the test is skipped, and counted, where it is missing."""
    folder = FIXTURES / name
    if not folder.exists():
        pytest.skip(f"{folder} is missing: set SUPERVISORD_PY_FIXTURES")
    return folder


def around(read: Any = read_matching, known: Iterable[str] = ()) -> Surroundings:
    return Surroundings(KEYS, read, load_yaml, frozenset(known))


def converted(source: str, files: Sequence[SourceFile], surroundings: Surroundings | None = None) -> Conversion:
    """Convert, and take out what does not pass."""
    conversion = convert(source, files, surroundings or around())
    settle(conversion, KEYS, CONTEXT, MACHINE)
    return conversion


def loaded(conversion: Conversion, *besides: UnitFile) -> LoadResult:
    """The units that the texts of a conversion are."""
    files = [
        UnitFile(name, f"/u/{name}.toml", unit_text(draft, KEYS, "made"), UnitFileKind.UNIT, "/u", 0)
        for name, draft in conversion.drafts.items()
    ]
    return build_unit_set((*files, *besides), CONTEXT, key_table=KEYS, machine=MACHINE)


def text_of(source: str, text: str, name: str = "a", **more: str) -> str:
    """Convert one text, and return the units that come out, each after its name."""
    files = [SourceFile(name, text), *(SourceFile(key.replace("__", "."), value) for key, value in more.items())]
    conversion = converted(source, files)
    return "\n".join(f"# {each}\n{_bare(unit_text(draft, KEYS, ''))}" for each, draft in conversion.drafts.items())


def _bare(text: str) -> str:
    return text.partition("\n\n")[2]


def lost_of(conversion: Conversion) -> list[tuple[int, str, str]]:
    return [(use.place.line, use.place.key, use.reason) for use in conversion.not_carried]


def check_passes(conversion: Conversion) -> None:
    """No unit of a conversion has an error."""
    problems = [problem.text() for problem in loaded(conversion).problems if problem.severity == "error"]
    assert not problems, "\n".join(problems)


def debian_sets() -> list[tuple[str, list[str]]]:
    """The unit files of each Debian package, those of the system and those of users apart."""
    sets: list[tuple[str, list[str]]] = []
    for package in sorted(glob.glob(f"{FIXTURES}/debian-units/*/")):
        for scope in ("system", "user"):
            files = [path for path in sorted(glob.glob(f"{package}{scope}/**", recursive=True)) if os.path.isfile(path)]
            mains = {os.path.basename(path) for path in files}
            # A drop-in of another package's unit has nothing here that it could change.
            files = [path for path in files if not _folder(path).endswith(".d") or _folder(path)[:-2] in mains]
            if files:
                sets.append((f"{Path(package).name}/{scope}", files))
    return sets


def _folder(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def read_all(paths: Iterable[str]) -> list[SourceFile]:
    return [read_file(path) for path in paths]


__all__ = [
    "CONTEXT", "FIXTURES", "KEYS", "ConvertError", "around", "check_passes", "converted", "debian_sets", "fixture",
    "loaded", "lost_of", "read_all", "text_of",
]  # fmt: skip

"""Which units have other files than those that were loaded."""

import pytest

from supervisord_py.model.problems import Problem
from supervisord_py.model.unitset import FileMarks, UnitFile, UnitFileKind, mark_files


def unit(name: str, text: str = "x", priority: int = 1, problem: Problem | None = None) -> UnitFile:
    folder = f"/{priority}"
    return UnitFile(name, f"{folder}/{name}.toml", text, UnitFileKind.UNIT, folder, priority, problem)


def drop_in(name: str, base: str, text: str = "x", priority: int = 1) -> UnitFile:
    folder = f"/{priority}"
    return UnitFile(name, f"{folder}/{name}.toml.d/{base}", text, UnitFileKind.DROP_IN, folder, priority)


def defaults(text: str = "x", priority: int = 1) -> UnitFile:
    return UnitFile("", f"/{priority}/defaults.toml", text, UnitFileKind.DEFAULTS, f"/{priority}", priority)


LOADED = (unit("web"), unit("db", priority=2), unit("w@"), unit("w@x"), drop_in("web", "a.toml", priority=2))
UNITS = ("db", "w@1", "w@x", "web")
REFUSED = Problem("/1/web.toml", 0, 0, "", "cannot read: permission denied")


def without(*files: UnitFile) -> tuple[UnitFile, ...]:
    return tuple(file for file in LOADED if file not in files)


@pytest.mark.parametrize(
    ("now", "changed", "appeared"),
    [
        (LOADED, "", ""),
        (tuple(reversed(LOADED)), "", ""),
        ((*without(unit("web")), unit("web", "y")), "web", ""),
        (without(unit("web")), "web", ""),
        ((*without(unit("web")), unit("web", "", problem=REFUSED)), "web", ""),
        ((*without(unit("web")), unit("web", "")), "web", ""),
        ((*LOADED, unit("db")), "db", ""),
        ((*LOADED, unit("web", priority=2)), "", ""),
        ((*without(unit("w@")), unit("w@", "y")), "w@1", ""),
        ((*LOADED, drop_in("w@", "a.toml")), "w@1 w@x", ""),
        ((*LOADED, drop_in("web", "a.toml")), "web", ""),
        ((*LOADED, drop_in("web", "a.toml", priority=3)), "", ""),
        ((*LOADED, drop_in("web", "b.toml", priority=3)), "web", ""),
        (without(drop_in("web", "a.toml", priority=2)), "web", ""),
        ((*LOADED, defaults()), "w@1 w@x web", ""),
        ((*LOADED, unit("new"), unit("t@"), unit("mask", "")), "", "new t@"),
        ((*LOADED, drop_in("nobody", "a.toml")), "", ""),
    ],
)
def test_a_unit_is_marked_when_its_files_mean_another_content(
    now: tuple[UnitFile, ...], changed: str, appeared: str
) -> None:
    """Edits, files that come and go, masks, drop-ins and defaults; what is shadowed by another file marks nothing."""
    marks = mark_files(LOADED, now, UNITS)
    assert (sorted(marks.changed), list(marks.appeared)) == (changed.split(), appeared.split())


def test_the_same_content_again_marks_nothing() -> None:
    """A file that was touched, or changed and changed back, is what was loaded."""
    assert mark_files(LOADED, tuple(LOADED), UNITS) == FileMarks()

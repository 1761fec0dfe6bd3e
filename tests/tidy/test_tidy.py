"""The rules of the house that no linter knows: layers, sizes, bans, and tables that must agree with the code."""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "supervisord_py"
MODULES = sorted(PACKAGE.rglob("*.py"))
PURE = ("core", "wire", "store", "model", "convert")
EDGES = ("convert/command.py", "convert/reading.py")
"""Modules of these that face files and people."""

BANNED_IN_PURE = {
    "os", "io", "asyncio", "socket", "subprocess", "threading", "time", "random", "logging", "signal", "pathlib",
    "psutil", "zmq",
}  # fmt: skip
MODULE_LINES_MAX = 600
KEEPER_CODE_LINES_MAX = 3050


def imports(path: Path) -> set[str]:
    """Return the first parts of all module names that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_pure(path: Path) -> bool:
    return path.relative_to(PACKAGE).parts[0] in PURE and str(path.relative_to(PACKAGE)) not in EDGES


@pytest.mark.parametrize("path", [path for path in MODULES if is_pure(path)], ids=name)
def test_pure_layers_touch_nothing(path: Path) -> None:
    """Core, wire, store and model import nothing that reads a clock, a file or the network."""
    assert not imports(path) & BANNED_IN_PURE


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_stay_small(path: Path) -> None:
    """A module has one idea; above 600 lines it has two."""
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in nothing:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_keeper_stays_small() -> None:
    """The keeper can be read in an evening, because its death would hurt (docs/adr/0004 to 0008)."""
    assert sum(map(code_lines, (PACKAGE / "keeper").glob("*.py"))) <= KEEPER_CODE_LINES_MAX


def test_the_keeper_needs_the_standard_library_only() -> None:
    """The keeper survives the removal of everything that pip installed."""
    for path in (PACKAGE / "keeper").glob("*.py"):
        assert imports(path) <= set(sys.stdlib_module_names) | {"supervisord_py"}, path


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_say_what_they_are(path: Path) -> None:
    """Every module that holds code begins with a sentence."""
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), name(path)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_unfinished_marks_and_no_silent_excepts(path: Path) -> None:
    """No unfinished marks, no exception swallowed without a word about why."""
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*except( Exception| BaseException)?( as \w+)?:", line):
            assert "#" in line or "raise" in text.splitlines()[number], f"{name(path)}:{number}: {line.strip()}"


def test_no_grab_bags() -> None:
    """No module that people would have to be told about."""
    assert not [path for path in MODULES if path.stem in {"util", "utils", "common", "helpers", "misc"}]


def test_tests_do_not_sleep() -> None:
    """Tests wait for events, never for time."""
    sleep = re.compile(r"\btime\.sleep\(|asyncio\.sleep\((?!0\))")
    offenders = [
        f"{name(path)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if sleep.search(line) and path != Path(__file__)
    ]
    assert not offenders


def test_every_event_of_the_code_is_in_the_table() -> None:
    """A record's event is one of the contract's list, wherever it is made."""
    from supervisord_py.model.records import EVENTS

    made = re.compile(r'Record\(\s*(?:event=)?"([a-z.-]+)"')
    unknown = {event for path in MODULES for event in made.findall(path.read_text()) if event not in EVENTS}
    assert not unknown

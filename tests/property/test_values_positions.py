"""The position index finds exactly the paths that tomli finds, and the keys stand where it says."""

from typing import Any

import tomli
from hypothesis import event, given
from hypothesis import strategies as st

from supervisord_py.model.positions import Path, SourceText, index_positions

_bare = st.sampled_from("abcdefghijkl")
_quoted = st.sampled_from(
    ['""', '"a.b"', '"#"', '"]="', r'"\t"', r'"\u00e9"', r'"\""', "''", "'a.b'", "'\"'", "'\\'", "'#]'", "x_-9"]
)
_key_text = _bare | _quoted
_strings = st.sampled_from(
    [
        '""',
        '"a#b"',
        r'"x\"]\\"',
        "'lit\\'",
        '"""a\n[b]\n# c"""',
        '"""q"" \\""""""',
        "'''it's \\\n[x]\n'''",
        "''''two'''''",
        '"\\\\"',
        "'''a''b'''",
    ]
)
_scalars = st.sampled_from(["1", "-2.5e3", "true", "1979-05-27 07:32:00", "0x1F", "inf"]) | _strings
_blank = st.sampled_from(["", " ", "\n", " # ]},\n", "\t\r\n"])


@st.composite
def _values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.sampled_from(["scalar", "list", "table"])) if depth else "scalar"
    if kind == "scalar":
        return draw(_scalars)
    items = []
    names = draw(st.lists(_bare, max_size=3, unique=True))
    for name in names:
        value = draw(_values(depth - 1))
        head = "" if kind == "list" else f"{name}{draw(st.sampled_from(['', '.x', ' . y']))} = "
        items.append(draw(_blank) + head + value + draw(_blank))
    body = ",".join(items)
    return f"[{body}{',' if items and draw(st.booleans()) else ''}{draw(_blank)}]" if kind == "list" else f"{{{body}}}"


@st.composite
def _documents(draw: st.DrawFn) -> str:
    lines = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["pair", "pair", "table", "array", "blank"]))
        keys = draw(st.sampled_from([".", " . "])).join(draw(st.lists(_key_text, min_size=1, max_size=2)))
        if kind == "pair":
            lines.append(f"{draw(st.sampled_from(['', '  ']))}{keys} = {draw(_values())} # end")
        elif kind == "table":
            lines.append(f"[ {keys} ]# [no]")
        elif kind == "array":
            lines.append(f"[[{keys}]]")
        else:
            lines.append("  # a = 1")
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines)


def _paths(value: Any, path: Path = ()) -> set[Path]:
    found = {path} if path else set()
    if isinstance(value, dict):
        return found.union(*(_paths(item, (*path, key)) for key, item in value.items()))
    if isinstance(value, list):
        return found.union(*(_paths(item, (*path, index)) for index, item in enumerate(value)))
    return found


@given(_documents())
def test_index_has_the_paths_of_tomli(text: str) -> None:
    """Whatever TOML says, the index has a place for each of its paths and for no other."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError:
        event("refused by tomli")
        return
    event("compared")
    assert set(index_positions(text)) == _paths(document)


@given(_bare, _strings | _scalars, st.integers(0, 5))
def test_place_is_the_line_and_column_of_the_key(key: str, value: str, lines_before: int) -> None:
    """Line and column count from 1, over multi-line values too, and the line is the one the key stands on."""
    text = "# x\n" * lines_before + f"pad = {value}\n  {key}z = 1\n"
    source = SourceText("f.toml", text)
    spot = source.spot((f"{key}z",))
    assert spot is not None
    assert source.place(spot.key) == (lines_before + value.count("\n") + 2, 3, f"  {key}z = 1")
    assert source.line(("nowhere",)) is None

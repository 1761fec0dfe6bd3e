"""Whatever a unit file says, it is loaded or refused with a problem, and its neighbour is loaded."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "model"))
from unitset_rig import KEY_TABLE, SLEEP, load_texts

_keys = [f"{table.name}.{key}" for table in KEY_TABLE.of("unit") if table.form == "table" for key in table.keys]
_scalars: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        ["", "web", "@g", "w@", "w@1", "%i", "%", "1:2", "infinity", "-/bin/a $X", "a b", "/", "notify", "always", "5s"]
    ),
    st.text(max_size=5),
)
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["unit", "until", "ordered", "command", "argv0", "A", "user"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the character that JSON leaves alone.
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return repr(value)


def check(texts: dict[str, str]) -> None:
    result = load_texts({**texts, "neighbour": SLEEP})
    assert "neighbour" in result.unit_set.units
    for name, bad in result.unit_set.bad.items():
        assert name != "neighbour" and bad.reason
        assert any(problem.public() == bad.reason for problem in result.problems)
    for problem in result.problems:
        assert problem.message
        assert not any(ord(character) < 32 and character not in "\n\t" for character in problem.text())
        if problem.line:
            assert 1 <= problem.column <= len(problem.source) + 1
    for name in result.unit_set.units:
        msgspec.json.encode([result.settings(name), result.files(name)])
    msgspec.json.encode([result.unit_set, result.problems])


@given(st.dictionaries(st.sampled_from(_keys), _values, max_size=5), st.sampled_from(["web", "w@", "w@1"]))
def test_any_value_of_any_key(settings: dict[str, Any], name: str) -> None:
    """Every key of the table meets every kind of value."""
    check({name: "\n".join(f"{key} = {toml(value)}" for key, value in settings.items()) + "\n"})


@given(st.data())
def test_any_damage_to_a_good_file(data: st.DataObject) -> None:
    """Cut, doubled and overwritten anywhere."""
    text = '[unit]\nwants = ["db", { unit = "@g" }]\n[service]\nexec-start = """\n/bin/a \'x\' # "y"\n"""\n'
    text += 'environment.A = "1"\n[log]\n'
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(begin + 8, len(text))))
        patch = data.draw(
            st.sampled_from(
                ["", '"', "'", "[", "]]", "{", "\n", "=", "\\", "#", ".", "%", "\r", "é", "\x00", text[begin:end] * 2]
            )
        )
        text = text[:begin] + patch + text[end:]
    check({"web": text, "web.d/1": "[service]\numask = '077'\n"})


@pytest.mark.parametrize("depth", [10, 100, 350, 2000])
def test_any_depth(depth: int) -> None:
    """Lists and tables within each other, as deep as somebody likes."""
    for opening, closing in (("[", "]"), ("{ a = ", "}")):
        check({"web": SLEEP + f"environment = {opening * depth}1{closing * depth}\n"})

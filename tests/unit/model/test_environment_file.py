"""Files with variables, against what systemd's own parser made of them."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.model.environment_file import is_variable_name, parse_environment_file

FIXTURES = Path(os.environ.get("SUPERVISORD_PY_FIXTURES", Path(__file__).parents[4] / "shared" / "fixtures"))
VECTORS = FIXTURES / "systemd-vectors"
NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0'"))
needs_fixtures = pytest.mark.skipif(not VECTORS.exists(), reason="needs the fixtures: SUPERVISORD_PY_FIXTURES")


def variables(content: bytes) -> list[str]:
    return [f"{name}={value}" for name, value in dict(parse_environment_file(content)).items()]


def content_of(vector: dict[str, str]) -> bytes | None:
    if "content_b64" in vector:
        return base64.b64decode(vector["content_b64"])
    if "content" in vector:
        return vector["content"].encode()
    path = FIXTURES / vector["file"]
    return path.read_bytes() if path.exists() else None


@needs_fixtures
def test_every_vector_of_systemd() -> None:
    """The cases of its own tests, and 100 files, real ones of Debian among them, as its parser read them."""
    given_files = json.loads((VECTORS / "envfile.json").read_text())["files"]
    assert [variables(each["content"].encode()) for each in given_files] == [each["expected"] for each in given_files]
    wrong, seen = [], 0
    for vector in json.loads((VECTORS / "envfile-oracle.json").read_text())["vectors"]:
        if (content := content_of(vector)) is None:
            continue
        seen += 1
        try:
            found = variables(content)
        except ValueError:
            found = None
        if found != vector.get("expected"):
            wrong.append((vector, found))
    assert (wrong, seen >= 75) == ([], True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\n# B=2\\\nC=3", [("A", "1"), ("C", "3")]),
        ("A = a b  \nB='x'\"y\" z", [("A", "a b"), ("B", "xyz")]),
        ('A="a\\\nb\\n\\$c"\nB=a\\\nb\\ ', [("A", "ab\\n$c"), ("B", "ab ")]),
        ("A='two\nlines'\nB=it's", [("A", "two\nlines"), ("B", "it's")]),
        ("no value\n=x\nA=", [("A", "")]),
    ],
)
def test_the_grammar(text: str, expected: list[tuple[str, str]]) -> None:
    """Comments end at the line's end, whatever stands there; quotes join; white space counts inside of values only."""
    assert parse_environment_file(text.encode()) == expected


@pytest.mark.parametrize(("content", "line"), [(b"A=1\nB=\xff\n", 2), (b"A=1\n\nB=\0", 3)])
def test_what_is_no_text_is_refused_with_its_line(content: bytes, line: int) -> None:
    with pytest.raises(ValueError, match=f"line {line} "):
        parse_environment_file(content)


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_quoted_is_read_as_it_is(given_variables: dict[str, str]) -> None:
    """Whatever stands in single quotes."""
    text = "".join(f"{name}='{value}'\n" for name, value in given_variables.items())
    assert dict(parse_environment_file(text.encode())) == given_variables
    assert all(map(is_variable_name, given_variables))

"""What is typed at ``set`` becomes TOML that reads back as it was meant; which limits a living process needs."""

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisord_py.host.toml_values import parse_value, write_toml
from supervisord_py.host.tuning import CannotChangeError, limits_between, parse_settings
from supervisord_py.model.unit import ExecContext, Limit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("4096", 4096),
        ("-5", -5),
        ("0.5", 0.5),
        ("true", True),
        ("always", "always"),
        ("1min 30s", "1min 30s"),
        ("512:1024", "512:1024"),
        ("'0077'", "0077"),
        ("0077", "0077"),
        ('["a", "b"]', ["a", "b"]),
        ("inf", "inf"),
        ("2026-01-01", "2026-01-01"),
        ('1\nother = 2', "1\nother = 2"),
        ("{ a = 1 }", {"a": 1}),
        ("{}", "{}"),
        ("[2026-01-01]", "[2026-01-01]"),
        ("{ a = [nan] }", "{ a = [nan] }"),
    ],
)  # fmt: skip
def test_a_typed_value_is_toml_or_a_string(text: str, value: Any) -> None:
    """Numbers, booleans, lists and tables are what they look like, all else is a string, and nothing begins another
    key; a date in a list was an internal error.
    """
    assert parse_value(text) == value


@pytest.mark.parametrize(
    "text", ["limits.nofile", "=3", "nosuch=3", "enforce=3", "limits.=3", "a b.c=1", "instances.count=3"]
)
def test_what_is_no_assignment_is_refused(text: str) -> None:
    """Before anything is read or written, as wrong usage."""
    with pytest.raises(CannotChangeError) as refused:
        parse_settings("web", [text])
    assert refused.value.error == "InvalidRequest"


NAMES = st.text(min_size=1, max_size=8).filter(lambda text: not any("\ud800" <= each <= "\udfff" for each in text))
VALUES = st.one_of(NAMES, st.integers(-(2**60), 2**60), st.booleans(), st.lists(NAMES, max_size=3))
TABLES = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), max_size=3)


@given(TABLES)
def test_what_is_written_reads_back(tables: dict[str, Any]) -> None:
    """Whatever was set: keys and values of any characters."""
    assert tomllib.loads(write_toml(tables)) == tables


def test_limits_between_two_texts() -> None:
    """Only what differs is changed; what a process had before a limit was written is not known."""
    plain, set_ = ExecContext(), ExecContext(rlimits=(("nofile", Limit(7, 8)), ("core", Limit(0, 0))))
    assert limits_between(plain, set_) == {"nofile": Limit(7, 8), "core": Limit(0, 0)}
    assert limits_between(set_, plain) is None
    less = ExecContext(rlimits=(("core", Limit(0, 0)),))
    assert limits_between(set_, less) == {"nofile": Limit(1024, 524288)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nicee=3", "no table has a key 'nicee' (did you mean 'nice'?)"),
        ("MemoryMx=1G", "no table has a key 'MemoryMx' (did you mean 'MemoryMax'?)"),
        ("enforce=strict", "several tables have a key 'enforce': write limits.enforce or sandbox.enforce"),
        ("nice", "'nice' is no TABLE.KEY=VALUE, such as limits.nofile=4096"),
    ],
)
def test_a_misspelt_key_without_its_table_was_told_to_be_no_assignment(text: str, told: str) -> None:
    """It says what was probably meant, or between which tables is to be chosen."""
    with pytest.raises(CannotChangeError, match=re.escape(told)):
        parse_settings("web", [text])

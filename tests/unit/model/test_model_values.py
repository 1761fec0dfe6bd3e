"""Values agree with systemd's parsers (``tests/data/systemd``), but for the differences listed here."""

import json
from pathlib import Path
from typing import Any

import pytest

from supervisord_py.model.amounts import parse_percent
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import Limit
from supervisord_py.model.values import (
    LimitUnit,
    format_mode,
    format_signal,
    format_size,
    format_timespan,
    parse_boolean,
    parse_fraction,
    parse_integer,
    parse_limit,
    parse_mode,
    parse_signal,
    parse_size,
    parse_timeout,
    parse_timespan,
)

DATA = Path(__file__).parents[2] / "data" / "systemd"
VALUES = json.loads((DATA / "values.json").read_text())
TIMESPANS = json.loads((DATA / "timespan.json").read_text())
ORACLE = json.loads((DATA / "timespan-oracle.json").read_text())["vectors"]
INFINITY_US = 2**64 - 1

SIZES_THAT_DIFFER = {"1KB": 1024}
"""The contract takes "50MB"; systemd refuses the B."""

LIMIT_UNITS: dict[str, LimitUnit] = {
    "LimitNOFILE": "count",
    "LimitLOCKS": "count",
    "LimitSIGPENDING": "count",
    "LimitRTPRIO": "count",
    "LimitCPU": "seconds",
    "LimitRTTIME": "microseconds",
    "LimitAS": "bytes",
    "LimitCORE": "bytes",
    "LimitSTACK": "bytes",
    "LimitFSIZE": "bytes",
    "LimitMSGQUEUE": "bytes",
    "LimitDATA": "bytes",
}


def parsed_us(text: str) -> int | None:
    try:
        ns = parse_timespan(text)
    except BadValue:
        return None
    return INFINITY_US if ns is None else ns // 1000


@pytest.mark.parametrize("vector", [*TIMESPANS["parse_sec"], *ORACLE], ids=lambda vector: repr(vector["input"]))
def test_timespans_are_systemds(vector: dict[str, Any]) -> None:
    """Every text is read, or refused, as parse_sec() does."""
    assert parsed_us(vector["input"]) == vector.get("usec")


@pytest.mark.parametrize(
    "vector", [v for v in ORACLE if v.get("formatted_us")], ids=lambda vector: repr(vector["input"])
)
def test_timespans_are_written_as_systemd_does(vector: dict[str, Any]) -> None:
    """format_timespan() but for the zeros at the end of a fraction; what is written is read back."""
    number, dot, fraction = vector["formatted_us"].rpartition(".")
    digits = fraction.rstrip("smu")
    expected = f"{number}.{digits.rstrip('0')}{fraction[len(digits) :]}" if dot else vector["formatted_us"]
    ns = None if vector["usec"] == INFINITY_US else vector["usec"] * 1000
    assert format_timespan(ns) == expected
    assert parse_timespan(expected) == ns


def test_numbers_are_seconds() -> None:
    """A TOML number is a number of seconds, fractions too; nothing else is a time span."""
    assert parse_timespan(90) == 90_000_000_000
    assert parse_timespan(0.25) == 250_000_000
    assert parse_timespan(float("inf")) is None
    for wrong in (True, -1, -0.5, float("nan"), 1e30, [], {}):
        with pytest.raises(BadValue):
            parse_timespan(wrong)


def test_a_timeout_of_zero_is_infinity() -> None:
    """systemd's rule for TimeoutStartSec= and TimeoutStopSec=; a plain time span of 0 stays 0."""
    assert parse_timeout(0) is None
    assert parse_timeout("0") is None
    assert parse_timeout("infinity") is None
    assert parse_timeout("5s") == 5_000_000_000
    assert parse_timespan("0") == 0


@pytest.mark.parametrize("vector", VALUES["size_iec"], ids=lambda vector: repr(vector["input"]))
def test_sizes_are_systemds(vector: dict[str, Any]) -> None:
    """parse_size() with base 1024, but for a B after a suffix."""
    try:
        size: int | None = parse_size(vector["input"])
    except BadValue:
        size = None
    assert size == SIZES_THAT_DIFFER.get(vector["input"], vector["bytes"])


def test_sizes_of_the_contract() -> None:
    """The forms that the contract names; a lower-case suffix is refused with the ones there are."""
    assert [parse_size(text) for text in ("512M", "50MB", "50MiB", "1.5G", 4096)] == [
        512 << 20,
        50 << 20,
        50 << 20,
        3 << 29,
        4096,
    ]
    for wrong in ("512m", "", "B", 1.5, True, -1, 2**63):
        with pytest.raises(BadValue):
            parse_size(wrong)
    assert format_size(0) == "0"
    assert format_size(3 << 29) == "1536M"


@pytest.mark.parametrize("vector", VALUES["mode"], ids=lambda vector: repr(vector["input"]))
def test_modes_are_systemds(vector: dict[str, Any]) -> None:
    """parse_mode(); what is written is read back."""
    try:
        mode = oct(parse_mode(vector["input"]))
        assert parse_mode(format_mode(int(mode, 8))) == int(mode, 8)
    except BadValue:
        mode = None
    assert mode == vector["mode"]


def test_an_integer_is_no_mode() -> None:
    """755 would be read as decimal: the hint has the text to write."""
    with pytest.raises(BadValue) as caught:
        parse_mode(755)
    assert '"0755"' in caught.value.hint
    with pytest.raises(BadValue):
        parse_mode(True)


@pytest.mark.parametrize("vector", VALUES["signal"], ids=lambda vector: repr(vector["input"]))
def test_signals_are_systemds(vector: dict[str, Any]) -> None:
    """signal_from_string(); what is written is read back."""
    try:
        number: int | None = parse_signal(vector["input"])
        assert number is not None and parse_signal(format_signal(number)) == number
    except BadValue:
        number = None
    assert number == vector["number"]


def test_signal_numbers_and_near_names() -> None:
    """Numbers are signals too; a lower-case name gets the right one as hint."""
    assert parse_signal(9) == parse_signal("9") == 9
    assert format_signal(32) == "32"
    with pytest.raises(BadValue) as caught:
        parse_signal("sigterm")
    assert "SIGTERM" in caught.value.hint
    for wrong in (0, 65, True, 1.0, None):
        with pytest.raises(BadValue):
            parse_signal(wrong)


@pytest.mark.parametrize("vector", VALUES["boolean"], ids=lambda vector: repr(vector["input"]))
def test_boolean_words_are_refused_with_the_literal(vector: dict[str, Any]) -> None:
    """TOML has booleans: systemd's words for them are refused, and the hint is the literal that is meant."""
    with pytest.raises(BadValue) as caught:
        parse_boolean(vector["input"])
    if vector["value"] is not None:
        assert caught.value.hint.startswith(f"write {str(vector['value']).lower()},")


@pytest.mark.parametrize(
    "vector",
    [v for v in VALUES["rlimit"] if v["limit"] in LIMIT_UNITS],
    ids=lambda vector: f"{vector['limit']}={vector['input']}",
)
def test_limits_are_systemds(vector: dict[str, Any]) -> None:
    """rlimit_parse() for every limit but LimitNICE= (nice is a level here, not a limit)."""
    try:
        limit: Limit | None = parse_limit(vector["input"], LIMIT_UNITS[vector["limit"]])
    except BadValue:
        limit = None
    if vector["error"]:
        assert limit is None
    else:
        soft, hard = (None if vector[side] == "infinity" else vector[side] for side in ("soft", "hard"))
        assert limit == Limit(soft, hard)


def test_limit_numbers() -> None:
    """An integer is both limits; -1 and "unlimited" get infinity as hint; a soft limit above the hard one is
    refused."""
    assert parse_limit(1024, "count") == Limit(1024, 1024)
    assert parse_limit(5, "seconds") == Limit(5, 5)
    assert parse_limit("1500ms", "seconds") == Limit(2, 2)
    for wrong in (-1, "-1", "unlimited"):
        with pytest.raises(BadValue) as caught:
            parse_limit(wrong, "count")
        assert "infinity" in caught.value.hint
    for wrong in ("infinity:5", True, 1.5, [1]):
        with pytest.raises(BadValue):
            parse_limit(wrong, "count")


def test_integers_and_fractions_have_bounds() -> None:
    """Bounds are inclusive; a quoted number says so; true is no number."""
    assert parse_integer(19, -20, 19) == 19
    assert parse_fraction(1) == 1.0
    for wrong in (20, -21, True, 1.0, "5"):
        with pytest.raises(BadValue):
            parse_integer(wrong, -20, 19)
    with pytest.raises(BadValue) as caught:
        parse_integer("5")
    assert "without quotes" in caught.value.hint
    for wrong in (1.1, -0.1, "0.1", False, float("nan")):
        with pytest.raises(BadValue):
            parse_fraction(wrong)


@pytest.mark.parametrize("quota", ["0.09%", "0.01%", "0%"])
def test_a_quota_that_the_kernel_cannot_hold_was_raised_and_nobody_said_so(quota: str) -> None:
    """It takes no quota below a millisecond and no period above a second."""
    assert parse_percent("0.1%") == 10
    with pytest.raises(BadValue) as caught:
        parse_percent(quota)
    assert "0.1%" in caught.value.hint

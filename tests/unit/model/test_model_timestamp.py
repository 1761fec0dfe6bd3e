"""Timestamps are read as systemd does (``tests/data/systemd``)."""

import json
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from supervisord_py.model.problems import BadValue
from supervisord_py.model.timestamp import parse_timestamp

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "systemd" / "timestamp.json").read_text())
NOW = datetime(2025, 10, 26, 13, 30, 5, tzinfo=ZoneInfo("Europe/Berlin"))
"""The day on which the clock is set back in Berlin: it has 25 hours."""


def zones(name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return None


@pytest.mark.parametrize(
    "vector", [*VECTORS["parse"], *VECTORS["parse_v255_only"]], ids=lambda vector: repr(vector["input"])
)
def test_timestamps_are_systemds(vector: dict[str, Any]) -> None:
    """Every row of systemd's own test, RFC 3339 included."""
    assert parse_timestamp(vector["input"], NOW, zones) == vector["usec"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW),
        ("today", NOW.replace(hour=0, minute=0, second=0)),
        ("yesterday", NOW.replace(day=25, hour=0, minute=0, second=0)),
        ("tomorrow", NOW.replace(day=27, hour=0, minute=0, second=0)),
        ("00:01", NOW.replace(hour=0, minute=1, second=0)),
        ("00:00:01.5", NOW.replace(hour=0, minute=0, second=1, microsecond=500_000)),
        ("2025-07-01", datetime(2025, 7, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
        ("+5hours", NOW + timedelta(hours=5)),
        ("1d ago", datetime(2025, 10, 25, 12, 30, 5, tzinfo=UTC)),
        ("-1d", datetime(2025, 10, 25, 12, 30, 5, tzinfo=UTC)),
        ("2min left", NOW + timedelta(minutes=2)),
        ("@1700000000.25", datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
    ],
)
def test_what_is_left_open_is_read_in_the_zone_of_now(text: str, expected: datetime) -> None:
    """Words and times are of the local day; a day ago is 24 hours ago, whatever the clocks did."""
    assert parse_timestamp(text, NOW, zones) == (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )


@pytest.mark.parametrize(
    "text",
    ["", "foo", "@", "@x", "-infinity", "25:00", "12:60", "12:00:61", "2025-02-30", "Mon 2025-07-01",
     "2025-07-01 12:00 Foo", "2025-07-0112:00", "1969-01-01 UTC", "Mon", "12:00 2025-07-01", "2025-07-01T",
     "-100y", "99999-01-01"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    """With a message for people, whatever is wrong with it."""
    with pytest.raises(BadValue, match=r"\w"):
        parse_timestamp(text, NOW, zones)

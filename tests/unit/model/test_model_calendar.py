"""Calendar expressions are read, written and elapse as systemd's (``tests/data/systemd``); what differs is listed."""

import json
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from supervisord_py.model.calendar import BadCalendar, Calendar, Part, format_calendar, parse_calendar
from supervisord_py.model.elapse import can_elapse, is_match, next_elapse_ns

DATA = Path(__file__).parents[2] / "data" / "systemd"
VECTORS = json.loads((DATA / "calendar.json").read_text())
ORACLE = json.loads((DATA / "calendar-oracle.json").read_text())["vectors"]

ELAPSES_THAT_DIFFER = {
    # A step without an end from 18:00 on leads systemd to 27:00, that is 03:00 of the next day; when that is in another
    # year it looks for hours from there on, and misses 00:00.
    ("0/9:*", "America/New_York", 1735689600000000): 1735707600000000,
    # The same with the 37th of a month: it goes past 9 May 2026, a Saturday, and then gives up.
    ("Sat,Tue 2020/3-*-9/14", "America/New_York", 1743296399000000): 1778299200000000,
}
"""By expression, zone and base: what we say. Both are moments that the expression matches."""


def zones(name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return None


def normalized(text: str) -> str | None:
    try:
        return format_calendar(parse_calendar(text, zones))
    except BadCalendar:
        return None


def next_us(calendar: Calendar, after_us: int, zone: tzinfo | None) -> int | None:
    assert zone is not None
    elapse_ns = next_elapse_ns(calendar, after_us * 1000, zone)
    return None if elapse_ns is None else elapse_ns // 1000


@pytest.mark.parametrize("vector", VECTORS["normalize"], ids=lambda vector: repr(vector["input"]))
def test_normal_forms_are_systemds(vector: dict[str, Any]) -> None:
    """Every row of systemd's own test of calendar_spec_to_string(); a normal form is its own."""
    assert normalized(vector["input"]) == vector["normalized"]
    assert normalized(vector["normalized"]) == vector["normalized"]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda vector: repr(vector["input"]))
def test_what_systemd_refuses_is_refused(vector: dict[str, Any]) -> None:
    """Every row of systemd's own test of refusals; the place that is named is within the text."""
    with pytest.raises(BadCalendar) as caught:
        parse_calendar(vector["input"], zones)
    assert 0 <= caught.value.position <= len(vector["input"])
    assert caught.value.hint


@pytest.mark.parametrize("vector", VECTORS["next"], ids=lambda vector: f"{vector['input']} {vector['tz']}")
def test_elapses_are_systemds(vector: dict[str, Any]) -> None:
    """Every row of systemd's own test of calendar_spec_next_usec(); a local zone that is none is UTC to the C
    library."""
    calendar = parse_calendar(vector["input"], zones)
    zone = zones(calendar.zone or vector["tz"] or "UTC") or UTC
    assert next_us(calendar, vector["after_usec"], zone) == vector["next_usec"]


@pytest.mark.parametrize("vector", ORACLE, ids=lambda vector: repr(vector["input"]))
def test_every_answer_of_systemd(vector: dict[str, Any]) -> None:
    """What systemd 252 made of hundreds of expressions, in five zones, around the switches of their clocks."""
    assert normalized(vector["input"]) == vector["normalized"]
    for row in vector.get("next", ()):
        calendar = parse_calendar(vector["input"], zones)
        zone = zones(calendar.zone or row["tz"])
        after_us = row["after_usec"]
        for expected in row["next_usec"]:
            if (case := (vector["input"], row["tz"], after_us)) in ELAPSES_THAT_DIFFER:
                assert next_us(calendar, after_us, zone) == ELAPSES_THAT_DIFFER[case]
                wall = datetime.fromtimestamp(ELAPSES_THAT_DIFFER[case] / 1e6, zone).replace(tzinfo=None)
                assert is_match(calendar, wall)
            else:
                assert next_us(calendar, after_us, zone) == expected
            after_us = expected


def test_the_differences_are_rows() -> None:
    """No difference is listed that is not met."""
    met = {
        (vector["input"], row["tz"], after)
        for vector in ORACLE
        for row in vector.get("next", ())
        for after in (row["after_usec"], *row["next_usec"])
    }
    assert met >= set(ELAPSES_THAT_DIFFER)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("Mon Tue 12:00", 4, "number"),
        ("Mno 12:00", 0, "'Mon'"),
        ("dayly", 0, "'daily'"),
        ("*/5:00", 1, "0/5"),
        ("*/5 * * * *", 1, "cron"),
        ("30 4 * * 1", 0, "cron"),
        ("12", 2, "12:00"),
        ("2025-01-01T12:00", 10, "a blank"),
        ("12:00Z", 5, "12:00 UTC"),
        ("12:00+02:00", 5, "12:00 UTC"),
        ("6:00 pm", 5, "18:00"),
        ("Fri..Mon", 5, "Fri..Sun,Mon"),
        ("Fri..Tue", 5, "Fri..Sun,Mon..Tue"),
        ("22..4:00", 0, "22..23,0..4"),
        ("12:75", 3, "0 to 59"),
        ("*-*-31/2", 4, "31 alone"),
        ("*-02~31", 5, "1 to 28"),
        ("*~02-01", 4, "the last part"),
        ("0:0:0..0.9", 4, "0..0.9/0.1"),
        ("1.5:00", 1, "only seconds"),
        ("12:00 Europe/berlin", 6, "'Europe/Berlin'"),
        ("12:00 CEST", 6, "half of the year"),
        ("daily Nowhere", 6, "Europe/Berlin"),
        ("Mon 12:00 daily", 10, "does not stand at the end"),
        ("2300-01-01", 0, "1970 to 2199"),
        ("@1.5", 1, "whole seconds"),
        ("*:4,", 4, "the end"),
        ("12:00 13:00", 5, "nothing but a time zone"),
        ("UTC", 0, "neither"),
        (" UTC", 0, "only a time zone"),
        ("*:" + "0," * 2000 + "0", 0, "characters"),
    ],
)
def test_errors_say_where_and_what_was_meant(text: str, place: int, words: str) -> None:
    """The index of the first character that is wrong, and the text to write, in message or hint."""
    with pytest.raises(BadCalendar) as caught:
        parse_calendar(text, zones)
    assert caught.value.position == place
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_lists_of_days_from_the_end() -> None:
    """systemd refuses ``*~18,25,27``: its bound shrinks by three with every part of a list. Ours does not."""
    calendar = parse_calendar("*-02~1,27,28", zones)
    assert calendar == Calendar(
        month=(Part(2),),
        day=(Part(1), Part(27), Part(28)),
        hour=(Part(0),),
        minute=(Part(0),),
        second_us=(Part(0),),
        from_end=True,
    )
    found_us: int | None = 1735689600000000
    days = []
    for _ in range(3):
        assert found_us is not None
        found_us = next_us(calendar, found_us, UTC)
        assert found_us is not None
        days.append(datetime.fromtimestamp(found_us / 1e6, UTC).day)
    assert days == [1, 2, 28]


def test_what_never_elapses_is_known() -> None:
    """There is no 30 February; 29 February is a Monday every 28 years; a year that is over elapsed."""
    assert not can_elapse(parse_calendar("Mon *-2-30", zones))
    assert can_elapse(parse_calendar("Mon *-2-29", zones))
    past = parse_calendar("2020-01-01", zones)
    assert can_elapse(past)
    assert next_us(past, 1735689600000000, UTC) is None
    assert next_us(parse_calendar("daily", zones), 2**63, UTC) is None


def test_the_start_of_a_time_zones_life() -> None:
    """An instant before 1970 is asked for as one before the first microsecond of it."""
    assert next_us(parse_calendar("daily", zones), -5_000_000, UTC) == 0
    assert next_us(parse_calendar("daily", zones), 0, UTC) == 86400 * 1_000_000


def walls(text: str, zone: str, begin: datetime, count: int) -> list[str]:
    """The wall times of the next elapses, with their offsets."""
    calendar = parse_calendar(text, zones)
    after_us = int(begin.timestamp()) * 1_000_000
    found: list[str] = []
    for _ in range(count):
        elapse = next_us(calendar, after_us, zones(zone))
        assert elapse is not None
        after_us = elapse
        found.append(datetime.fromtimestamp(elapse / 1e6, ZoneInfo(zone)).strftime("%d %H:%M %z"))
    return found


def test_a_time_that_the_clock_jumps_over_is_skipped() -> None:
    """In the night of 30 March 2025 there is no 02:30 in Berlin; on 25 April no 00:00 in Cairo, and no daily either."""
    berlin = datetime(2025, 3, 29, 3, tzinfo=ZoneInfo("Europe/Berlin"))
    assert walls("02:30", "Europe/Berlin", berlin, 2) == ["31 02:30 +0200", "01 02:30 +0200"]
    night = berlin.replace(day=30, hour=1)
    assert walls("*:30", "Europe/Berlin", night, 2) == ["30 01:30 +0100", "30 03:30 +0200"]
    cairo = datetime(2025, 4, 23, 12, tzinfo=ZoneInfo("Africa/Cairo"))
    assert walls("daily", "Africa/Cairo", cairo, 2) == ["24 00:00 +0200", "26 00:00 +0300"]
    # systemd leaves out the rest of the day here, as it does nowhere else.
    dublin = datetime(2025, 3, 29, 15, tzinfo=ZoneInfo("Europe/Dublin"))
    assert walls("01,02:00", "Europe/Dublin", dublin, 2) == ["30 02:00 +0100", "31 01:00 +0100"]
    # Half an hour, and a day.
    howe = datetime(2025, 10, 5, 1, 30, tzinfo=ZoneInfo("Australia/Lord_Howe"))
    assert walls("*:0/15", "Australia/Lord_Howe", howe, 3) == ["05 01:45 +1030", "05 02:30 +1100", "05 02:45 +1100"]
    apia = datetime(2011, 12, 29, 12, tzinfo=ZoneInfo("Pacific/Apia"))
    assert walls("daily", "Pacific/Apia", apia, 1) == ["31 00:00 +1400"]


def test_a_gap_with_millions_of_moments_is_left_at_once() -> None:
    """Every microsecond matches: the end of the gap is found, not every moment in it tried."""
    berlin = datetime(2025, 3, 30, 0, 59, 59, tzinfo=UTC)
    calendar = parse_calendar("*:*:0..59.999999/0.000001", zones)
    after_us = int(berlin.timestamp()) * 1_000_000 + 999_999
    assert next_us(calendar, after_us, ZoneInfo("Europe/Berlin")) == after_us + 1


def test_a_time_that_comes_twice_is_the_first() -> None:
    """In the night of 26 October 2025 02:30 comes twice in Berlin: it elapses once, at the second for who asks
    between the two."""
    berlin = datetime(2025, 10, 26, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"))
    assert walls("*:30", "Europe/Berlin", berlin, 2) == ["26 02:30 +0200", "26 03:30 +0100"]
    assert walls("*:30", "Europe/Berlin", berlin.replace(fold=1), 2) == ["26 02:30 +0100", "26 03:30 +0100"]

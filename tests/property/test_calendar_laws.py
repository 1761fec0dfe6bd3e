"""Laws of calendar expressions and their elapses, and thousands of random ones beside what others make of them."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import oncalendar
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from supervisord_py.model.calendar import BadCalendar, Calendar, format_calendar, parse_calendar
from supervisord_py.model.elapse import is_match, next_elapse_ns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SWITCHES = {
    "UTC": ((2028, 2, 29), (2029, 12, 31, 23)),
    "Europe/Berlin": ((2025, 3, 30, 1), (2025, 10, 26, 1)),
    "America/New_York": ((2025, 3, 9, 7), (2025, 11, 2, 6)),
    "Australia/Lord_Howe": ((2025, 4, 5, 15), (2025, 10, 4, 15, 30)),
    "Africa/Cairo": ((2025, 4, 24, 22), (2025, 10, 30, 21)),
    "America/St_Johns": ((2025, 3, 9, 5, 30), (2025, 11, 2, 4, 30)),
    "Asia/Kolkata": ((2029, 12, 31, 18, 30),),
    "Pacific/Apia": ((2011, 12, 30, 10),),
}
"""When clocks are set, a day is skipped, or a year ends."""
ZONES = tuple(SWITCHES)


def zones(name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return None


@st.composite
def fields(draw: st.DrawFn, low: int, high: int, *, open_steps: bool, fractions: bool = False) -> str:
    """A field of a date or a time: ``*``, or values, ranges and steps."""
    if draw(st.booleans()):
        return "*"
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high))
        text = f"{first:02}" if draw(st.booleans()) else str(first)
        if fractions and draw(st.integers(0, 5)) == 0:
            text += draw(st.sampled_from((".5", ".25", ".000001", ".0000004")))
        kind = draw(st.sampled_from(("value", "value", "range", "steps", "open")))
        if kind in ("range", "steps") and first < high:
            text += f"..{draw(st.integers(first + 1, high))}"
            if kind == "steps":
                text += f"/{draw(st.integers(1, high - low))}"
        elif kind == "open" and open_steps and first < high:
            text += f"/{draw(st.integers(1, high - first))}"
        texts.append(text)
    return ",".join(texts)


@st.composite
def expressions(draw: st.DrawFn, *, open_steps: bool = True, fractions: bool = True, from_end: bool = True) -> str:
    """A calendar expression; nearly all of them are good ones."""
    words: list[str] = []
    if draw(st.integers(0, 2)) == 0:
        days = draw(st.lists(st.sampled_from(("Mon", "tue", "Wednesday", "THU", "Fri", "sat")), min_size=1, max_size=3))
        words.append(",".join(days) + draw(st.sampled_from(("", ",Sun", "..Sun"))))
    if draw(st.booleans()):
        year = draw(st.sampled_from(("", "", "*-", "2025-", "2025..2030-", "2024/4-", "28,2032-", "99-")))
        tilde = from_end and draw(st.integers(0, 5)) == 0
        day = draw(fields(1, 28 if tilde else 31, open_steps=open_steps and not tilde))
        words.append(f"{year}{draw(fields(1, 12, open_steps=open_steps))}{'~' if tilde else '-'}{day}")
    if draw(st.booleans()) or not words:
        words.append(f"{draw(fields(0, 23, open_steps=open_steps))}:{draw(fields(0, 59, open_steps=open_steps))}")
        if draw(st.booleans()):
            words[-1] += f":{draw(fields(0, 59, open_steps=open_steps, fractions=fractions))}"
    if draw(st.integers(0, 5)) == 0:
        words.append(draw(st.sampled_from(ZONES)))
    return " ".join(words)


def parsed(text: str) -> Calendar | None:
    try:
        return parse_calendar(text, zones)
    except BadCalendar:
        return None


@st.composite
def places(draw: st.DrawFn) -> tuple[str, int]:
    """A zone and an instant [us], more often than not near one of the zone's switches."""
    name = draw(st.sampled_from(ZONES))
    if draw(st.integers(0, 3)) == 0:
        return name, draw(st.integers(1_577_836_800_000_000, 2_051_222_400_000_000))
    switch = datetime(*draw(st.sampled_from(SWITCHES[name])), tzinfo=UTC)  # type: ignore[misc]
    away_us = draw(st.one_of(st.integers(-10_800, 10_800).map(lambda s: s * 1_000_000), st.integers(-(10**11), 10**10)))
    return name, (switch - EPOCH) // timedelta(microseconds=1) + away_us


def wall_of(usec: int, zone: tzinfo) -> datetime:
    return (EPOCH + timedelta(microseconds=usec)).astimezone(zone)


@settings(max_examples=200)
@given(text=expressions(), place=places(), step_us=st.one_of(st.integers(0, 10**10), st.integers(0, 10**13)))
def test_laws(text: str, place: tuple[str, int], step_us: int) -> None:
    """The normal form is its own; an elapse is after the instant and matches; nothing before it is one; later instants
    have later elapses, unless they are within a repeated hour."""
    zone_name, after_us = place
    calendar = parsed(text)
    if calendar is None:
        return
    assert parsed(format_calendar(calendar)) == calendar
    zone = zones(calendar.zone or zone_name)
    assert zone is not None
    elapse_ns = next_elapse_ns(calendar, after_us * 1000, zone)
    later_ns = next_elapse_ns(calendar, (after_us + step_us) * 1000, zone)
    if elapse_ns is None:
        assert later_ns is None
        return
    elapse_us = elapse_ns // 1000
    assert elapse_us > after_us
    assert is_match(calendar, wall_of(elapse_us, zone).replace(tzinfo=None, fold=0))
    # From just before it, it is the next: whatever is skipped, it is not skipped depending on where one starts.
    if not wall_of(elapse_us - 1, zone).fold:
        assert next_elapse_ns(calendar, elapse_ns - 1000, zone) == elapse_ns
    if later_ns is not None and not wall_of(after_us + step_us + 1, zone).fold:
        assert later_ns >= elapse_ns


@settings(max_examples=100)
@given(text=expressions(), place=places(), minutes=st.lists(st.integers(0, 5_000), max_size=50))
def test_nothing_between_matches(text: str, place: tuple[str, int], minutes: list[int]) -> None:
    """No moment between the instant and its elapse matches, but for a second round of a repeated hour."""
    zone_name, after_us = place
    calendar = parsed(text)
    if calendar is None:
        return
    zone = zones(calendar.zone or zone_name)
    assert zone is not None
    elapse_ns = next_elapse_ns(calendar, after_us * 1000, zone)
    for minute in minutes:
        between_us = (after_us // 60_000_000 + 1 + minute) * 60_000_000
        if elapse_ns is not None and between_us >= elapse_ns // 1000:
            continue
        wall = wall_of(between_us, zone)
        assert wall.fold or not is_match(calendar, wall.replace(tzinfo=None))


@settings(max_examples=300)
@given(text=st.text(alphabet=" ,-~:./*0159aMonTue@UTC+\n\0é٣", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever people type is an expression or refused with a place within it; never another error."""
    try:
        calendar = parse_calendar(text, zones)
    except BadCalendar as error:
        assert 0 <= error.position <= len(text)
        return
    assert parsed(format_calendar(calendar)) == calendar


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("SUPERVISORD_PY_ORACLE_EXAMPLES", "8")),
    # The same ones every day, others for who asks for more.
    derandomize="SUPERVISORD_PY_ORACLE_EXAMPLES" not in os.environ,
    # Each example is a process that is asked for dozens of expressions: to make it smaller would take minutes.
    phases=(Phase.generate,),
)
@given(
    texts=st.lists(expressions(open_steps=False, from_end=False), min_size=40, max_size=60, unique=True),
    place=places(),
)
def test_systemd_analyze_agrees(texts: list[str], place: tuple[str, int]) -> None:
    """Normal forms and three elapses each are those of the systemd that is installed. Hundreds of expressions, or
    thousands with SUPERVISORD_PY_ORACLE_EXAMPLES=500.

    Left out: steps without an end (across the end of a year systemd misses some, ``ELAPSES_THAT_DIFFER`` in
    test_model_calendar), lists of days from the end (it refuses good ones), and what it gives up with a warning.
    """
    zone_name, after_us = place
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: no random expressions are compared with it")
    answer = subprocess.run(
        [
            analyze,
            "calendar",
            "--iterations=3",
            f"--base-time=@{after_us // 10**6}.{after_us % 10**6:06}",
            "--",
            *texts,
        ],
        capture_output=True,
        text=True,
        env={"TZ": zone_name, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
        timeout=120,
    )
    if "Infinite loop" in answer.stderr:
        return
    expected = [text for text in texts if parsed(text) is not None]
    blocks = answer.stdout.split("\n\n")
    assert len(blocks) == max(len(expected), 1), answer.stderr
    for text, block in zip(expected, blocks, strict=False):
        calendar = parse_calendar(text, zones)
        zone = zones(calendar.zone or zone_name)
        assert zone is not None
        assert re.findall(r"Normalized form: (.*)", block) == [format_calendar(calendar)]
        found: list[str] = []
        after_ns: int | None = after_us * 1000
        while len(found) < 3 and after_ns is not None:
            after_ns = next_elapse_ns(calendar, after_ns, zone)
            if after_ns is not None:
                found.append(f"{EPOCH + timedelta(seconds=after_ns // 10**9):%a %Y-%m-%d %H:%M:%S UTC}")
        told = re.findall(r"(?:Next elapse|Iter\. #\d|\(in UTC\)): (.* UTC)$", block, re.MULTILINE)
        assert told == found, text


@settings(max_examples=100)
@given(text=expressions(fractions=False), place=places())
@example(text="*~1,1,1..2/2", place=("UTC", 1_704_067_200_000_000))
def test_oncalendar_agrees(text: str, place: tuple[str, int]) -> None:
    """Five elapses each are those of the oncalendar package, which needs no systemd: in UTC, because at the switch of
    a clock it has rules of its own.

    Days from the end of the month are asked for in normal form: of ``~1..2/2`` it takes the second to last day, as it
    steps from the end of the range that is earlier in the month. systemd takes ``~1``, the last, as we do; where the
    steps reach the end of the range, as they do in normal form, it is all one.
    """
    calendar = parsed(text)
    if calendar is None or calendar.zone not in ("", "UTC"):
        return
    _, after_us = place
    theirs = oncalendar.TzIterator(format_calendar(calendar) if calendar.from_end else text, wall_of(after_us, UTC))
    after_ns: int | None = after_us * 1000
    for _ in range(5):
        assert after_ns is not None
        after_ns = next_elapse_ns(calendar, after_ns, UTC)
        expected = next(theirs, None)
        assert (None if after_ns is None else wall_of(after_ns // 1000, UTC)) == expected
        if after_ns is None:
            return

"""``supervisord-py calendar`` and ``timespan``: output, JSON and exit codes; the time zone of this machine."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result

from supervisord_py.cli import main
from supervisord_py.host.zones import local_zone, zone_named

SUMMER = datetime(2025, 7, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_calendar_shows_normal_form_and_elapses() -> None:
    """In the layout of systemd-analyze; the first line only where the normal form is another text."""
    result = run("calendar", "02:30", "*-*-* 02:30:00 UTC", "--iterations", "2", "--base-time", "2025-03-29 12:00")
    assert result.exit_code == 0
    first, second = result.stdout.split("\n\n")
    lines = [line for line in first.splitlines() if "From now" not in line]
    assert lines == [
        "  Original form: 02:30",
        "Normalized form: *-*-* 02:30:00",
        "    Next elapse: Mon 2025-03-31 02:30:00 CEST",
        "       (in UTC): Mon 2025-03-31 00:30:00 UTC",
        "       Iter. #2: Tue 2025-04-01 02:30:00 CEST",
        "       (in UTC): Tue 2025-04-01 00:30:00 UTC",
    ]
    assert second.startswith("Normalized form: *-*-* 02:30:00 UTC\n    Next elapse: Sun 2025-03-30 04:30:00 CEST\n")
    assert first.count("From now: ") == 2
    assert " ago" in first


def test_calendar_as_json() -> None:
    """The document of the contract: microseconds and the time in the zone, an error in its place, exit 1."""
    result = run("calendar", "--json", "*:*:0/0.5", "foo", "*-02-30", "--base-time", "@1700000000.25", "--iterations=2")
    assert result.exit_code == 1
    good, bad, never = json.loads(result.stdout)
    assert good == {
        "input": "*:*:0/0.5",
        "normalized": "*-*-* *:*:00/0.500000",
        "next": [
            {"usec": 1700000000500000, "time": "2023-11-14T23:13:20.500000+01:00"},
            {"usec": 1700000001000000, "time": "2023-11-14T23:13:21+01:00"},
        ],
    }
    assert set(bad) == {"input", "error"}
    assert "'foo' is neither" in bad["error"]
    assert never == {"input": "*-02-30", "normalized": "*-02-30 00:00:00", "next": []}


def test_calendar_counts_from_now() -> None:
    """Without a base time the next elapse lies ahead, one by default."""
    (answer,) = json.loads(run("calendar", "--json", "minutely").stdout)
    (elapse,) = answer["next"]
    now = datetime.now(UTC)
    assert now - timedelta(minutes=1) < datetime.fromisoformat(elapse["time"]) <= now + timedelta(minutes=1)
    assert datetime.fromisoformat(elapse["time"]).timestamp() * 1e6 == elapse["usec"]
    assert "From now: " in run("calendar", "yearly").stdout
    assert run("calendar", "2020-01-01").stdout.endswith("Next elapse: never\n")


def test_calendar_in_another_zone() -> None:
    """--timezone is the zone of expressions without one, and the one in which times are read and shown."""
    arguments = ("calendar", "--json", "12:00", "12:00 Asia/Kolkata", "--base-time", "2025-07-01", "--timezone")
    local, kolkata = json.loads(run(*arguments, "America/New_York").stdout)
    assert local["next"][0]["time"] == "2025-07-01T12:00:00-04:00"
    assert kolkata["next"][0]["time"] == "2025-07-01T02:30:00-04:00"
    assert json.loads(run(*arguments, "utc").stdout)[0]["next"][0]["time"] == "2025-07-01T12:00:00+00:00"


def test_calendar_points_at_what_is_wrong() -> None:
    """The text, a caret and the hint on standard error; what is good is shown all the same, and exit 1."""
    result = run("calendar", "Fri..Mon 12:00", "daily")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "    Fri..Mon 12:00",
        "         ^",
        '    hint: write "Fri..Sun,Mon"',
    ]
    assert "Normalized form: *-*-* 00:00:00" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("calendar",),
        ("timespan",),
        ("calendar", "daily", "--iterations", "0"),
        ("calendar", "daily", "--base-time", "soon"),
        ("calendar", "daily", "--base-time", "1960-01-01"),
        ("calendar", "daily", "--timezone", "CEST"),
        ("calendar", "daily", "--timezone", "../../../etc/passwd"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Exit 2 with a word about it."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


def test_timespan() -> None:
    """Microseconds and the normal form; infinity is null in JSON; exit 1 when there was an error."""
    assert run("timespan", "90s", "infinity").stdout.split("\n\n") == [
        "Original: 90s\n      μs: 90000000\n   Human: 1min 30s",
        "Original: infinity\n      μs: infinity\n   Human: infinity\n",
    ]
    result = run("timespan", "--json", "1.5h", "x", "infinity", "5")
    assert result.exit_code == 1
    good, bad, never, bare = json.loads(result.stdout)
    assert (good, never, bare) == (
        {"input": "1.5h", "usec": 5400000000},
        {"input": "infinity", "usec": None},
        {"input": "5", "usec": 5000000},
    )
    assert set(bad) == {"input", "error"}
    result = run("timespan", "x", "5")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, "Original: 5")
    assert "'x' is not a time span" in result.stderr


def test_the_local_zone_is_that_of_the_c_library(tmp_path: Path) -> None:
    """$TZ as a name, a path or a rule of POSIX, else /etc/localtime; what is none of these is UTC."""
    hours = {
        "Europe/Berlin": 2,
        ":Europe/Berlin": 2,
        "/usr/share/zoneinfo/Asia/Tokyo": 9,
        "CET-1CEST,M3.5.0,M10.5.0/3": 2,
        "<+03>-3": 3,
        "": 0,
        "Nowhere": 0,
        "/etc/passwd": 0,
    }
    found = {name: SUMMER.astimezone(local_zone({"TZ": name})).utcoffset() for name in hours}
    assert found == {name: timedelta(hours=count) for name, count in hours.items()}
    link = tmp_path / "localtime"
    assert local_zone({}, link) == UTC
    link.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    assert local_zone({}, link) == ZoneInfo("Asia/Tokyo")
    link.unlink()
    link.write_bytes(Path("/usr/share/zoneinfo/Asia/Tokyo").read_bytes())
    assert SUMMER.astimezone(local_zone({}, link)).utcoffset() == timedelta(hours=9)
    link.write_bytes(b"not a zone")
    assert local_zone({}, link) == UTC


@pytest.mark.parametrize("name", ["", "Europe", "../../etc/passwd", "/etc/passwd", "a\0b", "Nowhere/Else", "zone.tab"])
def test_what_is_no_zone(name: str) -> None:
    """Folders, other files and paths out of the database are no zones."""
    assert zone_named(name) is None

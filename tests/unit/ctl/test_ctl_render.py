"""Terminal text: colours, tables, durations, sizes."""

import io

import pytest

from supervisord_py.ctl.render import (
    Cell,
    Style,
    choose_style,
    clean,
    cut,
    format_ago,
    format_bytes,
    format_cpu,
    format_duration,
    format_moment,
    table,
    tame,
    text_width,
)

PLAIN = Style()


class Terminal(io.StringIO):
    def __init__(self, encoding: str = "utf-8", *, is_terminal: bool = True) -> None:
        super().__init__()
        self._encoding = encoding
        self._is_terminal = is_terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("terminal", "environment", "color", "expected"),
    [
        (True, {}, "auto", True),
        (False, {}, "auto", False),
        (True, {"NO_COLOR": "1"}, "auto", False),
        (True, {"NO_COLOR": ""}, "auto", True),
        (True, {"TERM": "dumb"}, "auto", False),
        (False, {"NO_COLOR": "1"}, "always", True),
        (True, {}, "never", False),
    ],
)
def test_who_gets_colour(terminal: bool, environment: dict[str, str], color: str, expected: bool) -> None:
    """Terminals do unless NO_COLOR has a value; what was typed beats both."""
    style = choose_style(Terminal(is_terminal=terminal), environment, color, 80)
    assert style.colour is expected
    assert style.width == (80 if terminal else None)


def test_glyphs_fall_back_to_ascii() -> None:
    """A stream that cannot carry UTF-8 gets ASCII glyphs, and they take as many columns."""
    utf8, ascii_ = (choose_style(Terminal(encoding), {}, "auto", 80) for encoding in ("UTF-8", "ANSI_X3.4-1968"))
    assert (utf8.glyph("failed"), ascii_.glyph("failed")) == ("✗", "x")
    for name in ("active", "branch", "last", "pipe", "gap", "because"):
        assert ascii_.glyph(name).isascii()
        assert text_width(ascii_.glyph(name)) == text_width(utf8.glyph(name))


def test_a_table_drops_empty_columns_and_aligns() -> None:
    """A column nobody has a value for is left out; numbers stand to the right; nothing trails."""
    rows = [["web", "12", "", "up"], ["worker", "7", "", ""]]
    assert table(PLAIN, ("UNIT", "PID", "MEM", "WHY"), rows, right="PID MEM") == [
        "UNIT    PID  WHY",
        "web      12  up",
        "worker    7",
    ]
    assert table(PLAIN, ("A",), []) == []


def test_a_table_is_cut_in_its_last_columns_only() -> None:
    """On a narrow terminal the reason is cut, never the name; without a width nothing is."""
    rows = [["a-very-long-unit-name@1", "failed", "because " * 20]]
    narrow = table(Style(width=60), ("UNIT", "STATE", "WHY"), rows)
    assert all(text_width(line) <= 60 for line in narrow)
    assert narrow[1].startswith("a-very-long-unit-name@1  failed  because")
    assert narrow[1].endswith("…")
    assert table(PLAIN, ("UNIT", "STATE", "WHY"), rows)[1].count("because") == 20


def test_colour_does_not_move_columns() -> None:
    """Escape sequences take no column: the painted table is the plain one with colours put in."""
    import re

    rows = [[Cell("web", "bold"), Cell("failed", "red"), "x"], ["db", Cell("active", "green"), "y"]]
    painted = table(Style(colour=True), ("UNIT", "STATE", "N"), rows)
    plain = table(PLAIN, ("UNIT", "STATE", "N"), rows)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in painted] == plain
    assert "\x1b[31mfailed\x1b[0m" in painted[1]


def test_wide_and_combining_characters() -> None:
    """A wide character takes two columns and a combining mark none, in widths and in cuts."""
    assert text_width("日本") == 4
    assert text_width("é") == 1
    assert cut("日本語", 5, "…") == "日本…"
    assert cut("abc", 3, "…") == "abc"
    assert cut("abcd", 1, "...") == "."


def test_control_characters_are_shown() -> None:
    """Text of others is made harmless; only SGR colours may pass where they are asked for, and they are ended."""
    assert clean("a\x1b[2Jb\x07\n") == "a\\x1b[2Jb\\x07\\n"
    assert clean("tab\tstays") == "tab\tstays"
    assert tame("\x1b[31mred\x1b[2J") == "\x1b[31mred\\x1b[2J\x1b[0m"
    assert tame("\x1b[31mred", colours=False) == "\\x1b[31mred"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"), (0.04, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (42.9, "42s"), (60, "1min"), (187, "3min 7s"),
        (7500, "2h 5min"), (3600, "1h"), (86400 * 12 + 4 * 3600, "12d 4h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """Two largest parts, tenths below ten seconds."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, ""), (0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1024**2 - 1, "1.0M"), (5 * 1024**4, "5.0T")],
)
def test_sizes(count: int | None, text: str) -> None:
    """Powers of 1024, never a fourth digit."""
    assert format_bytes(count) == text


def test_processor_time_and_ages() -> None:
    """Milliseconds below a second; an age that cannot be read is empty, not a crash."""
    assert [format_cpu(ns) for ns in (None, 12_000_000, 3_400_000_000)] == ["", "12ms", "3.4s"]
    assert format_ago("1970-01-01T00:00:00Z", 61.0) == "1min 1s"
    assert (format_ago(None, 0), format_ago("soon", 0), format_moment("soon")) == ("", "", "soon")


def test_moments_are_local_with_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal time is shown in the reader's zone and says so."""
    import time

    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert format_moment("2026-11-20T12:00:00.5Z") == "2026-11-20 17:30:00 +05:30"
    finally:
        monkeypatch.undo()
        time.tzset()

"""Text for terminals: colour, glyphs, tables and the words for durations, sizes and moments.

A ``Style`` is decided once, from the stream, the environment and ``--color``; everything that prints asks it. On
anything that is not a terminal there is no colour and nothing is cut, so pipes get whole lines. Source of NO_COLOR:
https://no-color.org.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}

_UTF8_GLYPHS = {
    "active": "●",
    "reloading": "↻",
    "activating": "◐",
    "deactivating": "◑",
    "queued": "◌",
    "inactive": "○",
    "failed": "✗",
    "quarantined": "⊘",
    "branch": "├─ ",
    "last": "└─ ",
    "pipe": "│  ",
    "gap": "   ",
    "because": "└▸ ",
    "cut": "…",
}
_ASCII_GLYPHS = {
    "active": "*",
    "reloading": "r",
    "activating": "+",
    "deactivating": "-",
    "queued": ".",
    "inactive": "o",
    "failed": "x",
    "quarantined": "q",
    "branch": "|- ",
    "last": "`- ",
    "pipe": "|  ",
    "gap": "   ",
    "because": "`> ",
    "cut": "...",
}

STATE_COLOURS = {
    "active": "green", "reloading": "cyan", "activating": "yellow", "deactivating": "yellow", "queued": "cyan",
    "inactive": "dim", "failed": "red", "quarantined": "red",
}  # fmt: skip
"""The colour of each active state; what is not here is red, because it is not a state that should be seen."""


class Style:
    """How text may look on one stream: colour, UTF-8, and the width that tables are cut to (None: never cut)."""

    __slots__ = ("_glyphs", "colour", "width")

    def __init__(self, *, colour: bool = False, utf8: bool = True, width: int | None = None) -> None:
        self.colour = colour
        self.width = width
        self._glyphs = _UTF8_GLYPHS if utf8 else _ASCII_GLYPHS

    def paint(self, text: str, *names: str) -> str:
        """Return ``text`` in the named colours, unchanged where there is no colour or nothing to paint."""
        if not self.colour or not text or not names:
            return text
        return f"\x1b[{';'.join(_CODES[name] for name in names)}m{text}\x1b[0m"

    def glyph(self, name: str) -> str:
        return self._glyphs[name]

    def state(self, active_state: str, text: str) -> str:
        """Paint ``text`` in the colour of ``active_state``."""
        return self.paint(text, STATE_COLOURS.get(active_state, "red"))


def choose_style(stream: TextIO, environment: Mapping[str, str], color: str, terminal_width: int) -> Style:
    """Decide how ``stream`` may be written to.

    Args:
        stream: Where the text goes.
        environment: ``NO_COLOR`` and ``TERM=dumb`` turn colour off, ``COLUMNS`` is already in ``terminal_width``.
        color: ``auto``, ``always`` or ``never``; ``always`` beats ``NO_COLOR``, because it was typed.
        terminal_width: Columns of the terminal, used only when ``stream`` is one.
    """
    is_terminal = stream.isatty()
    match color:
        case "always":
            colour = True
        case "never":
            colour = False
        case _:
            colour = is_terminal and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    return Style(colour=colour, utf8=encoding == "utf8", width=terminal_width if is_terminal else None)


def text_width(text: str) -> int:
    """Return the columns that ``text`` takes: wide characters count two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def cut(text: str, width: int, mark: str) -> str:
    """Return ``text`` in at most ``width`` columns, ended by ``mark`` when something was cut off."""
    if text_width(text) <= width:
        return text
    kept = text
    while kept and text_width(kept) + text_width(mark) > width:
        kept = kept[:-1]
    return kept + mark if kept else mark[:width]


def clean(text: str) -> str:
    """Return ``text`` with control characters made visible: what units print must not drive the operator's terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode() for char in text
    )


class Cell:
    """A table cell: its text and the colours it is painted in after it was cut and padded."""

    __slots__ = ("colours", "text")

    def __init__(self, text: str, *colours: str) -> None:
        self.text = clean(text)
        self.colours = colours


def table(style: Style, headings: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, right: str = "") -> list[str]:
    """Lay out a table, one string a line, two spaces between columns.

    Columns that are empty in every row are left out (with their headings). When the style has a width, the widest of
    the last two columns is cut first: the name and the state of a unit are never what is lost.

    Args:
        style: Colours and width.
        headings: One a column, in capitals by custom.
        rows: Cells, as many a row as there are headings.
        right: Headings, separated by spaces, whose columns are aligned to the right.
    """
    grid = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    used = [column for column in range(len(headings)) if any(row[column].text for row in grid)] if grid else []
    if not used:
        return []
    to_right = right.split()
    widths = {
        column: max(text_width(headings[column]), *(text_width(row[column].text) for row in grid)) for column in used
    }
    if style.width is not None:
        excess = sum(widths.values()) + 2 * (len(used) - 1) - style.width
        for column in sorted(used[-2:], key=lambda column: -widths[column]):
            spare = min(excess, widths[column] - max(text_width(headings[column]), 12))
            if spare > 0:
                widths[column] -= spare
                excess -= spare

    def line(cells: Sequence[Cell]) -> str:
        parts = []
        for column in used:
            cell = cells[column]
            shown = cut(cell.text, widths[column], style.glyph("cut"))
            padding = " " * (widths[column] - text_width(shown))
            painted = style.paint(shown, *cell.colours)
            if headings[column] in to_right:
                painted = padding + painted
            elif column != used[-1]:
                painted += padding
            parts.append(painted)
        return "  ".join(parts).rstrip()

    return [line([Cell(heading, "bold") for heading in headings]), *(line(row) for row in grid)]


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest parts: ``0.4s``, ``42s``, ``3min 7s``, ``2h 5min``, ``12d 4h``."""
    if seconds < 0:
        seconds = 0.0
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{unit} {rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"


def format_bytes(count: int | None) -> str:
    """Return a size in powers of 1024 with one decimal: ``512B``, ``1.5K``, ``23.0M``; empty when unknown."""
    if count is None:
        return ""
    if count < 1024:
        return f"{count}B"
    size = float(count)
    for unit in "KMGT":
        size /= 1024
        if size < 1023.95 or unit == "T":
            return f"{size:.1f}{unit}"
    raise AssertionError("unreachable: T is the last unit")


def format_cpu(cpu_ns: int | None) -> str:
    """Return consumed processor time: ``12ms``, ``3.4s``, ``5min 2s``; empty when unknown."""
    if cpu_ns is None:
        return ""
    return f"{cpu_ns // 1_000_000}ms" if cpu_ns < 1_000_000_000 else format_duration(cpu_ns / 1e9)


def parse_timestamp(text: str) -> datetime:
    """Read an RFC 3339 time; one without a zone is UTC, as everything the supervisor writes.

    Raises:
        ValueError: ``text`` is no such time.
    """
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def format_ago(since: str | None, now_s: float) -> str:
    """Return how long ``since`` (RFC 3339) is ago at the wall time ``now_s``; empty when unknown."""
    if since is None:
        return ""
    try:
        return format_duration(now_s - parse_timestamp(since).timestamp())
    except ValueError:
        return ""


def format_moment(timestamp: str) -> str:
    """Return an RFC 3339 time as local time with its offset, to the second: ``2026-11-20 13:04:05 +01:00``."""
    try:
        local = parse_timestamp(timestamp).astimezone()
    except ValueError:
        return timestamp
    offset = local.strftime("%z")
    return f"{local:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"


def tame(text: str, *, colours: bool = True) -> str:
    """Return a line of output that cannot drive the terminal: control characters are shown, not obeyed.

    Args:
        text: One line.
        colours: Leave SGR sequences (``ESC [ ... m``) alone, and end what they began.
    """
    if text.isprintable():
        return text
    import re

    if not colours:
        return clean(text)
    parts = re.split(r"(\x1b\[[0-9;:]*m)", text)
    shown = "".join(part if index % 2 else clean(part) for index, part in enumerate(parts))
    return f"{shown}\x1b[0m" if len(parts) > 1 and not shown.endswith("\x1b[0m") else shown

"""Moments as people type them, for ``--since`` and ``--until``.

Source: systemd.time(7); a span alone is in the past here, because that is what is meant by it in these two options.
"""

import re
from datetime import UTC, datetime, timedelta

from supervisord_py.model.values import parse_timespan


def parse_moment(text: str, now: datetime) -> datetime:
    """Read a moment: RFC 3339, ``2026-11-20 13:00``, ``13:00``, ``@EPOCH``, ``now``, ``today``, ``yesterday``,
    ``tomorrow``, ``10m``, ``-10m`` and ``10 min ago`` (all three are in the past), ``+10m``.

    Args:
        text: What was typed.
        now: The present, with a time zone: what ``text`` leaves open is read in that zone.

    Raises:
        ValueError: It is none of these; the message says so.
    """
    word = text.strip()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match word.lower():
        case "now":
            return now
        case "today":
            return midnight
        case "yesterday":
            return midnight - timedelta(days=1)
        case "tomorrow":
            return midnight + timedelta(days=1)
    if word.startswith("@"):
        try:
            return datetime.fromtimestamp(float(word[1:]), UTC)
        except (ValueError, OverflowError, OSError):
            raise ValueError(f"not a moment: {text!r}: @ is followed by seconds since 1970") from None
    if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", word):
        hours, minutes, *seconds = (int(part) for part in word.split(":"))
        try:
            return midnight.replace(hour=hours, minute=minutes, second=seconds[0] if seconds else 0)
        except ValueError:
            raise ValueError(f"not a time of day: {text!r}") from None
    if re.match(r"\d{4}-\d", word):
        try:
            moment = datetime.fromisoformat(word)
        except ValueError:
            raise ValueError(f"not a moment: {text!r}: write 2026-11-20 13:00:00") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
    span = word[: -len("ago")] if word.lower().endswith("ago") else word
    ahead = span.startswith("+")
    try:
        away_ns = parse_timespan(span.strip().lstrip("+-"))
        if away_ns is None:
            raise ValueError("an infinite span is no moment")
        away = timedelta(microseconds=away_ns // 1000)
        return now + away if ahead else now - away
    except (ValueError, OverflowError):
        raise ValueError(f"not a moment: {text!r}: write 10m, '10 min ago', today, or 2026-11-20 13:00:00") from None


def format_rfc3339(moment: datetime) -> str:
    """Return a moment in UTC with microseconds, as journal records carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

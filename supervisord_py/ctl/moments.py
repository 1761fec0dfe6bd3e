"""Moments as people type them, for ``--since`` and ``--until``.

Source: systemd.time(7); a span alone is in the past here, because that is what is meant by it in these two options.
"""

from datetime import UTC, datetime, timedelta

from supervisord_py.model.timestamp import parse_timestamp
from supervisord_py.model.values import parse_timespan

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_moment(text: str, now: datetime) -> datetime:
    """Read a moment: what ``model.timestamp`` understands (but for time zones by their name), and ``10m``, which is in
    the past.

    Args:
        text: What was typed.
        now: The present, with a time zone: what ``text`` leaves open is read in that zone.

    Raises:
        ValueError: It is none of these; the message says so.
    """
    try:
        usec = parse_timestamp(f"{text} ago" if _is_bare_span(text) else text, now, lambda name: None)
    except ValueError:
        raise ValueError(f"not a moment: {text!r}: write 10m, '10 min ago', today, or 2026-11-20 13:00:00") from None
    return _EPOCH + timedelta(microseconds=usec)


def _is_bare_span(text: str) -> bool:
    try:
        return not text.lstrip().startswith("+") and parse_timespan(text) is not None
    except ValueError:
        return False


def format_rfc3339(moment: datetime) -> str:
    """Return a moment in UTC with microseconds, as journal records carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

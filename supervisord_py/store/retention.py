"""Which segments may go, and when a new one is due: whole segments, oldest first, so that what is kept is one chain.

Law: right after a rotation with ``expired`` applied, what is kept plus one full segment is within ``max_bytes``; so
the journal as a whole never exceeds it by more than one record. The newest segment is never dropped.
"""

from collections.abc import Sequence

from msgspec import Struct

from supervisord_py.store.segment import SegmentName

SEGMENTS = 8
"""The journal is at least so many segments: one eighth of the history is what rotation can lose at a time."""

SEGMENT_BYTES_MIN = 16 * 1024
SEGMENT_BYTES_MAX = 8 * 1024 * 1024
"""Small enough that checking the newest segment does not delay a start (about 0.1 s)."""

AGE_PARTS = 8


class SegmentInfo(Struct, frozen=True):
    """A segment on disk: its size and the time of its last change [ns since 1970]."""

    name: SegmentName
    bytes: int
    changed_wall_ns: int


def segment_bytes(max_bytes: int) -> int:
    """Return the size at which a segment is full."""
    return min(max(max_bytes // SEGMENTS, SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)


def is_rotation_due(
    bytes_now: int, adding: int, age_ns: int, *, records: int, max_bytes: int, max_age_ns: int | None
) -> bool:
    """Decide whether a segment with ``records`` in it is full or old enough before ``adding`` bytes go into it."""
    if records == 0:
        return False
    if bytes_now + adding > segment_bytes(max_bytes):
        return True
    return max_age_ns is not None and age_ns > max_age_ns // AGE_PARTS


def expired(
    segments: Sequence[SegmentInfo], *, max_bytes: int, max_age_ns: int | None, now_wall_ns: int
) -> tuple[str, ...]:
    """Return the names of the segments to drop.

    Args:
        segments: All segments in the order of reading; the last one is in use (or was last).
        max_bytes: What the whole journal may hold, the coming segment included.
        max_age_ns: Segments that were last written longer ago go as well; None: by size alone.
        now_wall_ns: The time of the decision [ns since 1970].
    """
    total = sum(segment.bytes for segment in segments) + segment_bytes(max_bytes)
    dropped: list[str] = []
    for segment in segments[:-1]:
        is_old = max_age_ns is not None and now_wall_ns - segment.changed_wall_ns > max_age_ns
        if total <= max_bytes and not is_old:
            break
        dropped.append(segment.name.name)
        total -= segment.bytes
    return tuple(dropped)

"""What becomes of a unit's output: ``[log]``."""

from enum import StrEnum

from msgspec import Struct


class Rate(Struct, frozen=True):
    """``count`` in every ``span_ns``."""

    count: int
    span_ns: int


class LogFormat(StrEnum):
    RAW = "raw"
    JSON = "json"
    TIMESTAMP = "timestamp"


class LogPolicy(Struct, frozen=True):
    """``[log]``: the unit's output file, and the older ones; ``max_bytes`` 0 never rotates."""

    max_bytes: int = 50 * 1024 * 1024
    backups: int = 10
    max_age_ns: int | None = None
    compress: bool = False
    format: LogFormat = LogFormat.RAW
    rate_limit: Rate | None = None

    @property
    def is_by_lines(self) -> bool:
        """Whether output must be looked at line by line; else it is moved as it is."""
        return self.format is not LogFormat.RAW or self.rate_limit is not None

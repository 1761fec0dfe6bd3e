"""Container mode: what is different where the keeper is the first process, or supervises one command for a caller."""

from collections.abc import Mapping
from typing import Any

from supervisord_py.model.settings import Settings

ENDLESS_NS = 100 * 365 * 86_400 * 1_000_000_000
"""What ``shutdown-timeout-sec = "infinity"`` means to the core: a century."""


def shutdown_timeout_ns(config: Mapping[str, Any], settings: Settings) -> int:
    """Return the time for a shutdown [ns]: what ``run`` was told, else what the settings say."""
    given: int | None = config.get("shutdown_timeout_ns")
    if given is not None:
        return given
    timeout_ns = settings.supervisor.shutdown_timeout_ns
    return ENDLESS_NS if timeout_ns is None else timeout_ns

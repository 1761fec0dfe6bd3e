"""``run --stop-with PID``: an ordered stop when that process ends; for a supervisor inside another program."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEY = "stop_with"


def identity_of(pid: int) -> dict[str, int] | None:
    """Return who ``pid`` is now: the number may be another's later. None: nobody."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return {"pid": pid, "start": int(fields[19])}


def watch(config: Mapping[str, Any], loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call ``stop`` when the process that the keeper's configuration names is gone, at once if it is."""
    wanted = config.get(KEY)
    if wanted is None:
        return
    try:
        descriptor = os.pidfd_open(wanted["pid"])
    except OSError:
        stop()
        return
    if identity_of(wanted["pid"]) != wanted:
        os.close(descriptor)
        stop()
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        stop()

    loop.add_reader(descriptor, ended)

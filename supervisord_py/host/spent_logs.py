"""Output files of units that are forgotten and whose names nobody chose: a few are kept, for whoever asks what it was.

There is one such unit for each ``supctl run``, and for each connection of a unit that accepts.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

LOGS_MAX = 100
"""So many units' files are kept."""


def clear_logs(folder: Path, is_spent: Callable[[str], bool]) -> None:
    """Remove the oldest output files of units that ``is_spent`` tells, until those of ``LOGS_MAX`` are left."""
    found: dict[str, tuple[float, list[str]]] = {}
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        name, _, _ = entry.name.rpartition(".log")
        if not is_spent(name):
            continue
        with contextlib.suppress(OSError):
            modified, paths = found.get(name, (0.0, []))
            found[name] = (max(modified, entry.stat(follow_symlinks=False).st_mtime), [*paths, entry.path])
    for _, paths in sorted(found.values())[: max(0, len(found) - LOGS_MAX)]:
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)

"""What an agent writes down for its next life, in a file of its state folder."""

import json
import os
from pathlib import Path
from typing import Any


def load(path: Path, default: dict[str, Any]) -> dict[str, Any]:
    """Return what was saved last; ``default`` in the first life."""
    return json.loads(path.read_text()) if path.exists() else default


def save(path: Path, notes: dict[str, Any]) -> None:
    """Replace the file at once: whoever is killed in the middle leaves the old one or the new one, never half of it."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(notes))
    os.replace(new, path)

"""``check --security``: what ``model.security`` says of units, for people and as JSON."""

from typing import Any

from supervisord_py.model.security import Assessment

SHOWN = 8
"""Aspects of a unit that people are shown."""


def security_lines(found: Assessment) -> list[str]:
    """Return what people read about a unit: its number and word, and what weighs most."""
    lines = [f"{found.unit}: {found.exposure} of 10, {found.word}"]
    for aspect in found.open[:SHOWN]:
        lines += [f"    {aspect.key}: {aspect.sentence}", f"        write {aspect.cure}"]
    left = len(found.open) - SHOWN
    return [*lines, f"    and {left} more: --json lists them"] if left > 0 else lines


def security_document(found: Assessment) -> dict[str, Any]:
    """Return the same as JSON, whole."""
    return {
        "unit": found.unit,
        "exposure": found.exposure,
        "level": found.word,
        "open": [
            {"key": each.key, "weight": each.weight, "message": each.sentence, "hint": each.cure} for each in found.open
        ],
    }

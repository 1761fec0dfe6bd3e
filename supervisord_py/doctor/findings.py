"""What ``doctor`` says: one line each, good, degraded or wrong, and what to do about it."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

from msgspec import Struct


class Level(Enum):
    OK = "ok"
    DEGRADED = "degraded"
    """Everything is done that can be, by a weaker means or for fewer cases."""
    WRONG = "wrong"
    """Something does not work, or a law is broken."""


class Finding(Struct, frozen=True):
    """One line: ``fact`` is what was seen (and what is lost by it), ``cure`` what to do; a good one needs none."""

    topic: str
    level: Level
    fact: str
    cure: str = ""


def ok(topic: str, fact: str) -> Finding:
    return Finding(topic, Level.OK, fact)


def degraded(topic: str, fact: str, cure: str) -> Finding:
    return Finding(topic, Level.DEGRADED, fact, cure)


def wrong(topic: str, fact: str, cure: str) -> Finding:
    return Finding(topic, Level.WRONG, fact, cure)


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the JSON document: ``ok`` is false when something is wrong, not when it is merely degraded."""
    return {
        "ok": not any(finding.level is Level.WRONG for finding in findings),
        "findings": [
            {"topic": each.topic, "level": each.level.value, "fact": each.fact, "cure": each.cure or None}
            for each in findings
        ],
    }


def text(findings: Sequence[Finding]) -> str:
    """Return the lines for people, a summary last; the cure stands below its line."""
    width = max((len(finding.topic) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level.value:8}  {finding.topic:{width}}  {printable(finding.fact)}")
        if finding.cure:
            lines.append(f"{'':8}  {'':{width}}  -> {printable(finding.cure)}")
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    lines.append(f"{counts[Level.OK]} good, {counts[Level.DEGRADED]} degraded, {counts[Level.WRONG]} wrong")
    return "\n".join(lines)


def printable(words: str) -> str:
    """Return text in which a command line of somebody else cannot move the cursor or begin a line."""
    return "".join(character if character.isprintable() else "?" for character in words)

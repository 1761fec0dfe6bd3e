"""What a booted systemd 252 did: one row for each thing it was seen doing, with a name that stays.

The rows come from ``tests/data/systemd/behaviour``. A row is *differing* when ``differences.toml`` says that we do
something else on purpose, and plain otherwise.
"""

import json
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "systemd" / "behaviour"
DIFFERENCES = HERE / "differences.toml"
SHARE_MAX = 0.05
"""So much of the rows that can be judged may differ on purpose."""

REFUSED: dict[str, Any] = {"refused": True}
"""What is seen of units that cannot be loaded."""


class Matrix(Enum):
    RESTART = "restart"
    DEPENDENCY = "dependency"
    STOP = "stop"
    TYPES = "types"
    CLI = "cli"
    TIMERS = "timers"
    PHASES = "phases"
    SETTINGS = "settings"
    SOCKETS = "sockets"


class Row(Struct, frozen=True):
    """One observation; ``data`` is what the file says of it."""

    id: str
    matrix: Matrix
    data: dict[str, Any]


class Difference(Struct, frozen=True, forbid_unknown_fields=True):
    """A row that we answer differently on purpose.

    ``ours`` holds the answers that differ, exactly as a test finds them; ``systemd`` and ``we`` say both in words.
    """

    row: str
    title: str
    """What rows of one kind have in common; ``docs/differences.md`` tells them together."""
    systemd: str
    we: str
    why: str
    ours: dict[str, Any]


class _Document(Struct, frozen=True, forbid_unknown_fields=True):
    difference: list[Difference]


def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((DATA / name).read_text(encoding="utf-8")))


def _restart() -> Iterator[Row]:
    for cause, seen in _read("restart-matrix.json")["matrix"].items():
        for policy, restarted in seen["restarted"].items():
            data = {
                "cause": cause,
                "policy": policy,
                "restarted": restarted,
                "state": seen["end_state_without_restart"],
                "result": seen["result_when_not_restarting"],
            }
            yield Row(f"restart/{cause}/{policy}", Matrix.RESTART, data)


def _dependency() -> Iterator[Row]:
    for data in _read("dependency-matrix.json")["rows"]:
        order = " and After" if data["after"] else ""
        yield Row(f"dependency/{data['relation']}{order}/{data['event']}", Matrix.DEPENDENCY, data)


def _stop() -> Iterator[Row]:
    for data in _read("stop-kill-matrix.json")["rows"]:
        settings = data["settings"].replace("\n", " ")
        who = f"main {data['main_ignores']}, children {data['children_ignore']}"
        yield Row(f"stop/{settings}/ignoring: {who}", Matrix.STOP, data)


def _named(matrix: Matrix, file: str, key: str) -> Iterator[Row]:
    for name, data in _read(file)[key].items():
        yield Row(f"{matrix.value}/{name}", matrix, data)


@cache
def all_rows() -> dict[str, Row]:
    """Return every row by its name."""
    rows = [
        *_restart(),
        *_dependency(),
        *_stop(),
        *_named(Matrix.TYPES, "types-limits-timers.json", "types"),
        *_named(Matrix.CLI, "types-limits-timers.json", "cli_exit_codes"),
        *_named(Matrix.TIMERS, "types-limits-timers.json", "timers"),
        *_named(Matrix.PHASES, "process-environment.json", "phases"),
        *_named(Matrix.SETTINGS, "process-environment.json", "settings"),
        *_named(Matrix.SOCKETS, "process-environment.json", "sockets"),
    ]
    by_id = {row.id: row for row in rows}
    assert len(by_id) == len(rows), "two rows have one name"
    return by_id


@cache
def differences() -> dict[str, Difference]:
    """Return ``differences.toml`` by the row's name."""
    listed = msgspec.toml.decode(DIFFERENCES.read_bytes(), type=_Document).difference
    by_row = {difference.row: difference for difference in listed}
    assert len(by_row) == len(listed), "a row is listed twice"
    return by_row


def judged(*matrices: Matrix) -> list[Row]:
    """Return the rows of these matrices that can be judged, in their order."""
    return [row for row in all_rows().values() if row.matrix in matrices]


def judge(row: Row, wanted: dict[str, Any], seen: dict[str, Any]) -> None:
    """Compare what a row wants with what was seen; a row that differs on purpose has to differ exactly as listed.

    Raises:
        AssertionError: It is not as it should be.
    """
    is_refused = REFUSED in (wanted, seen)
    wrong = {key: value for key, value in seen.items() if key not in wanted or wanted[key] != value}
    listed = differences().get(row.id)
    if listed is None:
        shown = {key: (wanted.get(key), value) for key, value in wrong.items()}
        assert not wrong, f"{row.id}: (systemd, ours) {shown}"
        assert is_refused or wanted.keys() == seen.keys(), "the two speak of different things"
        return
    assert wrong, f"{row.id} does not differ any more: take it out of {DIFFERENCES.name}"
    assert wrong == listed.ours, f"{row.id} differs in another way than {DIFFERENCES.name} says"

"""Every row of what systemd did is a test of the core, in the simulated world."""

import pytest

from tests.compat.rows import DATA, SHARE_MAX, Matrix, Row, all_rows, differences, judge, judged
from tests.compat.scenarios import Setting, play
from tests.compat.stage import Stage
from tests.compat.summary import summary
from tests.compat.translate import load

ROWS = judged(Matrix.RESTART, Matrix.DEPENDENCY, Matrix.STOP, Matrix.TYPES, Matrix.PHASES, Matrix.TIMERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_the_core_does_what_systemd_did(row: Row) -> None:
    """The units of the row come to the end that systemd brought them to, or to the one that is listed."""
    acted = play(row, Setting())
    loaded = load(acted.texts)
    judge(row, acted.wanted, acted.perform(Stage(loaded.unit_set), loaded))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_it_does_so_when_every_decision_is_a_managers_last(row: Row) -> None:
    """A manager that dies after each decision, and its heirs, come to the same end."""
    acted = play(row, Setting())
    loaded = load(acted.texts)
    judge(row, acted.wanted, acted.perform(Stage(loaded.unit_set, mortal=True), loaded))


def test_few_rows_differ_on_purpose() -> None:
    """At most one row in twenty of those that can be judged, and every one of them is a row."""
    judgeable = {row.id for row in judged(*Matrix)}
    assert differences().keys() <= judgeable
    assert len(differences()) <= SHARE_MAX * len(judgeable)


def test_no_row_is_left_out() -> None:
    """Every observation of the files is a row that is judged, and the files are all there."""
    assert sorted(path.name for path in DATA.glob("*.json")) == [
        "dependency-matrix.json",
        "process-environment.json",
        "restart-matrix.json",
        "stop-kill-matrix.json",
        "types-limits-timers.json",
    ]
    per_matrix = {matrix: sum(row.matrix is matrix for row in all_rows().values()) for matrix in Matrix}
    assert per_matrix == {
        Matrix.RESTART: 16 * 7,
        Matrix.DEPENDENCY: 126,
        Matrix.STOP: 30,
        Matrix.TYPES: 45,
        Matrix.CLI: 17,
        Matrix.TIMERS: 9,
        Matrix.PHASES: 9,
        Matrix.SETTINGS: 21,
        Matrix.SOCKETS: 5,
    }


def test_a_wrong_answer_is_noticed() -> None:
    """Neither a plain row nor one that differs on purpose is content with anything."""
    plain = all_rows()["restart/exit 1/no"]
    with pytest.raises(AssertionError, match="restart/exit 1/no"):
        judge(plain, {"restarted": False, "state": "failed/failed"}, {"restarted": True, "state": "failed/failed"})
    differing = all_rows()["types/simple, binary missing"]
    with pytest.raises(AssertionError, match="does not differ any more"):
        judge(differing, {"rc": "done"}, {"rc": "done"})
    with pytest.raises(AssertionError, match="differs in another way"):
        judge(differing, {"rc": "done", "active": "failed"}, {"rc": "failed", "active": "active"})


def test_the_summary_counts_rows_by_all_their_tests() -> None:
    """A row that fails anywhere has failed; one that differs is counted as that."""
    test = "tests/compat/test_rows.py::test_x"
    real = "tests/compat/test_processes.py::test_x"
    assert summary([("tests/unit/test_y.py::test_z", True)]) is None
    assert (
        summary(
            [
                (f"{test}[restart/exit 1/no]", True),
                (f"{test}[restart/exit 1/always]", True),
                (f"{real}[restart/exit 1/no]", False),
                (f"{test}[types/simple, bad format]", True),
                (f"{test}[settings/Personality=x86]", True),
            ]
        )
        == "systemd rows: 2 passed, 1 differing on purpose, 1 failing (1 acted by real processes)"
    )

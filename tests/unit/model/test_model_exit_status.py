"""Exit codes and signals by name, as systemd reads them."""

import json
from pathlib import Path

import pytest

from supervisord_py.model.exit_status import (
    EXIT_STATUS_NAMES,
    join_exit_statuses,
    parse_exit_status,
    parse_exit_statuses,
)
from supervisord_py.model.problems import BadValue
from supervisord_py.model.unit import ExitStatuses

VALUES = json.loads((Path(__file__).parents[2] / "data" / "systemd" / "values.json").read_text())


def test_names_are_systemd_s() -> None:
    """The table is what systemd 252 has, name by name."""
    assert {str(code): name for name, code in EXIT_STATUS_NAMES.items()} == VALUES["exit_status_names"]


@pytest.mark.parametrize("vector", VALUES["exit_status"], ids=lambda vector: vector["input"])
def test_one_is_read_as_systemd_reads_it(vector: dict[str, str | int | None]) -> None:
    """Numbers and names, and what is neither."""
    if vector["number"] is None:
        with pytest.raises(BadValue):
            parse_exit_status(vector["input"])
    else:
        assert parse_exit_status(vector["input"]) == vector["number"]


def test_a_set_holds_codes_and_signals() -> None:
    """A number is a code, a name first a code and then a signal; several may stand in one text."""
    parts = map(parse_exit_statuses, [3, "9 TEMPFAIL SIGKILL", "KILL", "RTMIN+1", 75])
    assert join_exit_statuses(parts) == ExitStatuses((3, 9, 75), (9, 35))


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("TEMPFAI", "'TEMPFAI' is neither an exit code nor a signal", "did you mean 'TEMPFAIL'?"),
        ("EX_TEMPFAIL", "'EX_TEMPFAIL' is neither an exit code nor a signal", "did you mean 'TEMPFAIL'?"),
        ("SIGKIL", "'SIGKIL' is neither an exit code nor a signal", "did you mean 'SIGKILL'?"),
        (256, "there is no exit code 256", "exit codes are 0 to 255"),
        (-1, "there is no exit code -1", "exit codes are 0 to 255"),
        (True, "true is not an exit code", "write a number or a name such as TEMPFAIL"),
        (" ", "an empty text is no exit status", "to take back what is below write []"),
    ],
)
def test_what_is_neither_gets_what_was_meant(value: object, message: str, hint: str) -> None:
    """Each with the next step."""
    with pytest.raises(BadValue) as refused:
        parse_exit_statuses(value)
    assert (refused.value.message, refused.value.hint) == (message, hint)

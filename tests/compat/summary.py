"""How the rows came out, in a line at the end of a test run."""

import re
from collections.abc import Iterable

from tests.compat.rows import all_rows, differences

_TEST = re.compile(r"tests/compat/(test_\w+)\.py::\w+\[(.+)\]$")


def summary(outcomes: Iterable[tuple[str, bool]]) -> str | None:
    """Count rows by what became of all their tests.

    Args:
        outcomes: Test ids as pytest has them, and whether each passed; those of other tests do not matter.

    Returns:
        ``systemd rows: 330 passed, 15 differing on purpose, 0 failing``, None when no row was tried.
    """
    passed: dict[str, bool] = {}
    real: set[str] = set()
    for test, is_good in outcomes:
        found = _TEST.search(test)
        if found is None or found[2] not in all_rows():
            continue
        row = found[2]
        passed[row] = passed.get(row, True) and is_good
        if found[1] == "test_processes":
            real.add(row)
    if not passed:
        return None
    good = [row for row, is_good in passed.items() if is_good]
    differing = sum(row in differences() for row in good)
    return (
        f"systemd rows: {len(good) - differing} passed, {differing} differing on purpose, "
        f"{len(passed) - len(good)} failing ({len(real)} acted by real processes)"
    )

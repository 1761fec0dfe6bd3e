"""The page on restarts and quarantine holds what the code decides."""

import importlib.util
from pathlib import Path

import pytest

from supervisord_py.core import restart
from supervisord_py.model.states import Restart, Result

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """``docs/restart-rules.md`` is up to date; and a rule that changes would be noticed."""
    spec = importlib.util.spec_from_file_location("make_rules", ROOT / "docs" / "make_rules.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    page = maker.PAGE.read_text(encoding="utf-8")
    assert maker.page() == page, "run python docs/make_rules.py"
    monkeypatch.setitem(restart.RESTARTED, Restart.ON_ABORT, frozenset(Result))
    assert maker.page() != page

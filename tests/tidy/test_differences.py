"""The page on what is not as in systemd holds the rows that the tests hold."""

import importlib.util
from pathlib import Path

import tomli

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_list() -> None:
    """``docs/differences.md`` is up to date; and a row that is missing on it would be noticed."""
    spec = importlib.util.spec_from_file_location("make_differences", ROOT / "docs" / "make_differences.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    page = maker.PAGE.read_text(encoding="utf-8")
    listed = tomli.loads(maker.SOURCE.read_text(encoding="utf-8"))["difference"]
    assert maker.page_with_rows(page, listed) == page, "run python docs/make_differences.py"
    assert maker.page_with_rows(page, listed[1:]) != page

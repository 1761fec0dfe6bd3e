"""Writes the rows of ``tests/compat/differences.toml`` into ``docs/differences.md``, between its two ``rows`` comments.

``python docs/make_differences.py`` writes, with ``--check`` it only says whether the page is out of date (exit 1). The
rest of the page is written by hand.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import tomli

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "differences.md"
SOURCE = DOCS.parent / "tests" / "compat" / "differences.toml"
BEGIN, END = "<!-- rows -->", "<!-- end rows -->"


def rows_text(differences: list[dict[str, Any]]) -> str:
    """Return the differences as Markdown: those of one title together, their reason once."""
    by_title: dict[str, list[dict[str, Any]]] = {}
    for difference in differences:
        by_title.setdefault(difference["title"], []).append(difference)
    parts: list[str] = []
    for title, group in by_title.items():
        parts.append(f"### {title}\n")
        told = list(dict.fromkeys((each["systemd"], each["we"]) for each in group))
        for systemd, we in told:
            parts.append(f"systemd {systemd}. Here: {we}.\n")
        parts += [f"*Why:* {why}\n" for why in dict.fromkeys(each["why"] for each in group)]
        count = len(group)
        names = "".join(f"- `{each['row']}`\n" for each in group)
        parts.append(f"{'Row' if count == 1 else f'{count} rows'}:\n\n{names}")
    return "\n".join(parts)


def page_with_rows(page: str, differences: list[dict[str, Any]]) -> str:
    """Return the page with its rows as they are now."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    assert pattern.search(page), f"{PAGE} has no place for the rows"
    return pattern.sub(lambda _: f"{BEGIN}\n\n{rows_text(differences)}\n{END}", page)


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when the page is out of date")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    wanted = page_with_rows(page, tomli.loads(SOURCE.read_text(encoding="utf-8"))["difference"])
    if page == wanted:
        return 0
    if options.check:
        print(f"{PAGE.name} is out of date: run python docs/make_differences.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write what is really seen into pages: ``python -m tests.docs.rewrite docs/tutorial.md``.

Only what differs is written, and lines of three dots are kept where they still fit; read the difference before it is
committed. The pages are tested by test_pages.py.
"""

import re
import sys

from tests.docs.pages import HOME, ROOT, blocks, conversation, is_shown
from tests.docs.stage import stage
from tests.docs.test_pages import given

PATIENCE_S = 6.0
"""How long what a page shows may take to come, where it was right already."""


def rewrite(page: str) -> None:
    """Play a page and replace what it shows wrongly."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    wrong: list[tuple[int, int, list[str]]] = []
    with stage(PATIENCE_S) as played:
        given(page, played)
        for block in blocks(page):
            if block.file is not None:
                played.write(block.file, block.text)
            if block.language != "console" or "elsewhere" in block.words:
                continue
            for typed in conversation(block):
                seen = played.play(typed)
                if not is_shown(typed.shown, seen, str(played.home)):
                    seen = re.sub(r"[\w.-]+ \(uid \d+\)", "you (uid 1000)", seen.replace(str(played.home), HOME))
                    seen = re.sub(r"\buid \d+:", "uid 1000:", seen)
                    first = typed.line + typed.command.count("\n")
                    wrong.append((first, first + len(typed.shown), seen.rstrip("\n").splitlines()))
    for first, last, seen_lines in reversed(wrong):
        lines[first:last] = seen_lines
    (ROOT / page).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rewrite(name)

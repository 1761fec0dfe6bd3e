"""The examples of a page: what is typed and what is shown, files, and how two texts that never repeat are compared.

A block of ``console`` is a conversation: lines with ``$`` are typed, the others are shown. A line of three dots stands
for lines that are left out. ``console elsewhere`` is for what only a whole machine can show (a service, or root, whose
lines begin with ``#``): only that there are such verbs and options is tested. A block that begins with
``# NAME.SUFFIX`` is a file of that name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = (
    "tutorial", "agents", "sockets", "from-supervisor", "converting", "applying", "containers", "running", "limits",
    "sandbox",
)  # fmt: skip
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES), "units/fleet/README.md")
HOME = "/home/you"
ELLIPSIS = "..."

_BLOCK = re.compile(r"^( *)```([a-z]+)((?: \w+)*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# +(\S+\.(?:toml|py|service|timer|conf)|Procfile)(?:\s.*)?")
_STATE = "active|inactive|activating|deactivating|reloading|queued|failed"
_VOLATILE = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d\d:\d\d)?"), "<time>"),
    (re.compile(r"\d\d:\d\d:\d\d(\.\d+)?"), "<time>"),
    (re.compile(r"\b[0-9a-f]{32,64}\b|\b[0-9a-f]{12}-\d+\b|\b[0-9A-F]{16}\b"), "<id>"),
    (re.compile(r"(instance[= ]+)[0-9a-f]{5}"), r"\1<id>"),
    (re.compile(r"[\w.-]+ \(uid \d+\)"), "<user>"),
    (re.compile(r"\buid \d+:"), "<user>:"),
    (re.compile(r"((?:\b(?:pid|Pid:|records?|job|to)|_ms)[= ]+)\d+"), r"\1<number>"),
    (re.compile(r"\d+( records)"), r"<number>\1"),
    (re.compile(rf"^([●○✗◌◐] .*?\b(?:{_STATE})(?: \([a-z-]+\))?) +\d+ "), r"\1 <number> "),
    (re.compile(r"\b\d+(\.\d+)?(us|ms|s|min|h)?( \d+(\.\d+)?(us|ms|s|min|h))*(?<=[a-z])\b"), "<span>"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), "<span>"),
    (re.compile(r"\b\d+(\.\d+)?[KMG]\b"), "<size>"),
    (re.compile(r"^\d+$|\b\d{4,}\b"), "<number>"),
    (re.compile(r" +"), " "),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; ``line`` is that of its first line, ``words`` what stands behind the language."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that this is, if it is one."""
        found = _FILE.match(self.text)
        return None if found is None else found[1]


@dataclass(frozen=True, slots=True)
class Typed:
    """A command and the lines that are shown below it."""

    command: str
    shown: tuple[str, ...]
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        margin, language, words, body = match.groups()
        inside = "".join(line.removeprefix(margin) for line in body.splitlines(keepends=True))
        found.append(Block(language, tuple(words.split()), inside, text.count("\n", 0, match.start(4)) + 1))
    return found


def conversation(block: Block) -> list[Typed]:
    """Take a block of console apart; a command goes on where its line ends in a backslash."""
    said: list[tuple[list[str], list[str], int]] = []
    # Root types nothing where we play; there such a line is a comment in a file that is shown.
    prompts = ("$ ", "# ") if "elsewhere" in block.words else ("$ ",)
    for number, line in enumerate(block.text.splitlines(), block.line):
        if said and not said[-1][1] and said[-1][0][-1].endswith("\\"):
            said[-1][0].append(line)
        elif line.startswith(prompts):
            said.append(([line[2:]], [], number))
        else:
            assert said, f"line {number} is shown before anything was typed"
            said[-1][1].append(line)
    for _, shown, _ in said:
        while shown and not shown[-1].strip():
            shown.pop()
    return [Typed("\n".join(command), tuple(shown), number) for command, shown, number in said]


def settled(line: str, home: str) -> str:
    """Return a line without what is another in every run: times, sizes, pids, ids, the user, columns' widths."""
    line = line.rstrip().replace(home, HOME)
    for pattern, stands_for in _VOLATILE:
        line = pattern.sub(stands_for, line)
    return line.rstrip()


def is_shown(shown: tuple[str, ...], seen: str, home: str) -> bool:
    """Whether the page may show this for what was seen; a line of three dots stands for any number of lines."""
    pieces = [".*" if line.strip() == ELLIPSIS else re.escape(f"{settled(line, HOME)}\n") for line in shown]
    lines = seen.rstrip("\n").splitlines()
    return re.fullmatch("".join(pieces), "".join(f"{settled(line, home)}\n" for line in lines), re.DOTALL) is not None

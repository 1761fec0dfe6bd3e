"""Reads the manual pages for the tests: as much of mdoc(7) as they use, and an error for what they do not."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAN = Path(__file__).parents[2] / "man"
PAGES = {path.name: path for path in sorted(MAN.iterdir())}

_CALLABLE = frozenset(
    ["Ar", "Cm", "Em", "Ev", "Fl", "Ic", "No", "Ns", "Op", "Pa", "Pq", "Ql", "Sq", "Sx", "Sy", "Ta", "Va", "Xr"]
)
_PUNCTUATION = frozenset(".,:;()[]?!")


def plain(word: str) -> str:
    """Return what a word of a page prints as."""
    return word.replace("\\-", "-").replace("\\(dq", '"').replace("\\e", "\\").replace("\\&", "").replace("\\(rB", "]")


def arguments(line: str) -> Iterator[tuple[str, str]]:
    """Yield each argument of a macro line with the macro it stands under; punctuation is left out."""
    words = _words(line)
    macro = words[0]
    for word in words[1:]:
        if word in _CALLABLE:
            macro = word
        elif word not in _PUNCTUATION:
            yield macro, plain(word)


def _words(line: str) -> list[str]:
    return [word[1:-1] if word[0] == '"' else word for word in re.findall(r'"[^"]*"|\S+', line.removeprefix("."))]


@dataclass
class Item:
    """An entry of a list: its tag line, the lines below it, and the lists inside it."""

    tag: str
    section: str
    subsection: str
    lines: list[str] = field(default_factory=list)
    items: list["Item"] = field(default_factory=list)

    def tagged(self, macro: str) -> list[str]:
        """The arguments that the tag has under one macro."""
        return [word for name, word in arguments(self.tag) if name == macro]

    def named(self, macro: str) -> set[str]:
        """The arguments that the text below the tag has under one macro."""
        return {
            word
            for line in self.lines
            if line.startswith(".") and not line.startswith('.\\"')
            for name, word in arguments(line)
            if name == macro
        }

    @property
    def text(self) -> str:
        """The text below the tag, macros taken off."""
        words: list[str] = []
        for line in self.lines:
            words += (
                [word for _, word in arguments(line)]
                if line.startswith(".")
                else [plain(word) for word in line.split()]
            )
        return " ".join(words)


@dataclass
class Page:
    """A page: its lists' outer items, its sections as lines, and its displayed examples by section."""

    name: str
    items: list[Item] = field(default_factory=list)
    sections: dict[str, list[str]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    references: set[tuple[str, str]] = field(default_factory=set)

    def of(self, section: str, subsection: str | None = None) -> list[Item]:
        return [
            item
            for item in self.items
            if item.section == section and (subsection is None or item.subsection == subsection)
        ]

    def macro_words(self, section: str, macro: str) -> set[str]:
        """All arguments of a macro in a section."""
        return {
            word
            for line in self.sections[section]
            if line.startswith(".") and not line.startswith('.\\"')
            for name, word in arguments(line)
            if name == macro
        }


def read_page(name: str) -> Page:
    """Read one page."""
    page = Page(name)
    section = subsection = ""
    open_lists: list[Item | None] = []
    display: list[str] | None = None
    for line in PAGES[name].read_text(encoding="utf-8").splitlines():
        if display is not None:
            if line == ".Ed":
                page.examples.append("\n".join(display) + "\n")
                display = None
            else:
                display.append(plain(line))
            continue
        macro = line[1:3] if line.startswith(".") and not line.startswith('.\\"') else ""
        page.sections.setdefault(section, []).append(line)
        match macro:
            case "Sh":
                section, subsection = line[4:], ""
                continue
            case "Ss":
                subsection = plain(line[4:])
                continue
            case "Bd":
                display = []
                continue
            case "Dl":
                page.examples.append(plain(line[4:]) + "\n")
                continue
            case "Bl":
                open_lists.append(None)
                continue
            case "El":
                open_lists.pop()
                continue
            case "It":
                item = Item(line, section, subsection)
                holder = next((outer for outer in reversed(open_lists[:-1]) if outer is not None), None)
                (page.items if holder is None else holder.items).append(item)
                open_lists[-1] = item
                continue
            case "Xr":
                page.references.add((line.split()[1], line.split()[2]))
        current = next((item for item in reversed(open_lists) if item is not None), None)
        if current is not None:
            current.lines.append(line)
    assert not open_lists and display is None, f"{name}: a list or display does not end"
    return page


def command_lines(page: Page) -> list[list[str]]:
    """The commands of ours among a page's examples, as words: lines that begin with ``$``, up to a pipe or comment."""
    found: list[list[str]] = []
    for example in page.examples:
        for line in example.splitlines():
            if line.startswith("$ ") and line.split()[1] in ("supctl", "supervisord-py"):
                command = re.split(r" [|&>]| {4,}", line[2:])[0]
                found.append(shlex.split(command))
    return found

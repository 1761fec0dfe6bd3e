"""Where each key and value of a TOML text stands: an index over the source, built only when somebody asks.

tomli gives values without positions, so this is a scanner of its own. It reads texts that tomli has accepted and finds
places, nothing else: what it does not decode it steps over. That the paths it finds are those of tomli's result is a
property test.

A path is the keys from the root, list indexes as integers: ``("service", "exec-start", 1)``.
Source: toml.io, TOML 1.0 and 1.1.
"""

import re

import tomli
from msgspec import Struct

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# The three quotes that end a multi-line string may follow one or two of its own.
_STRING = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"""(?:"{1,2})?'
    r"|'''(?:[^']|'(?!''))*'''(?:'{1,2})?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\r\n]*")


class Spot(Struct, frozen=True):
    """Offsets into the text: where the key begins (of a list's element: where it does) and where the value begins."""

    key: int
    value: int


class SourceText:
    """A file's text and, on demand, the places in it."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._spots: dict[Path, Spot] | None = None

    def spot(self, path: Path) -> Spot | None:
        """The place of ``path``, or of the nearest thing around it that has one; None for the root."""
        if self._spots is None:
            self._spots = index_positions(self.text)
        while path and path not in self._spots:
            path = path[:-1]
        return self._spots.get(path)

    def place(self, offset: int) -> tuple[int, int, str]:
        """Line and column (from 1) of an offset, and the line itself, fit for a terminal."""
        begin = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        line = self.text[begin : len(self.text) if end < 0 else end].rstrip("\r")
        shown = "".join(character if character.isprintable() or character == "\t" else "\ufffd" for character in line)
        return self.text.count("\n", 0, offset) + 1, offset - begin + 1, shown

    def line(self, path: Path) -> int | None:
        """The line on which the key of ``path`` stands."""
        spot = self.spot(path)
        return None if spot is None else self.place(spot.key)[0]


def index_positions(text: str) -> dict[Path, Spot]:
    """Find every key, table and list element.

    Args:
        text: TOML that tomli accepts; of anything else the result is not defined.
    """
    return _Scanner(text).scan()


_Keys = list[tuple[str, int]]
"""The parts of a dotted key with their offsets."""


class _Scanner:
    """One pass over the text. Inline nesting is a stack of its own, so that depth costs no recursion."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._spots: dict[Path, Spot] = {}
        self._elements: dict[Path, int] = {}
        """How many elements each array of tables has so far."""

    def scan(self) -> dict[Path, Spot]:
        table: Path = ()
        position = self._skip_blank(0)
        while position < len(self._text):
            if self._text.startswith("[[", position):
                table, position = self._array_header(position)
            elif self._text[position] == "[":
                keys, end = self._keys(position + 1)
                table = self._resolve(keys, position)
                position = end + 1
            else:
                path, position = self._key_of_pair(table, position)
                position = self._value(path, position)
            position = self._skip_blank(position)
        return self._spots

    def _array_header(self, position: int) -> tuple[Path, int]:
        keys, end = self._keys(position + 2)
        array = (*self._resolve(keys[:-1], position), keys[-1][0])
        self._spots.setdefault(array, Spot(keys[-1][1], position))
        index = self._elements.get(array, 0)
        self._elements[array] = index + 1
        table = (*array, index)
        self._spots[table] = Spot(keys[-1][1], position)
        return table, end + 2

    def _resolve(self, keys: _Keys, position: int) -> Path:
        """The path of a header: a name that is an array of tables means its last element."""
        path: Path = ()
        for key, offset in keys:
            path = (*path, key)
            self._spots.setdefault(path, Spot(offset, position))
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _key_of_pair(self, table: Path, position: int) -> tuple[Path, int]:
        """Note ``a.b =`` and return its path and where the value begins."""
        keys, position = self._keys(position)
        position = self._skip_blank(position + 1)
        path = table
        for key, offset in keys:
            path = (*path, key)
            self._spots.setdefault(path, Spot(offset, position))
        return path, position

    def _value(self, path: Path, position: int) -> int:
        """Step over a value, noting all that is within it; returns its end."""
        open_lists: list[tuple[Path, int | None]] = []
        """The lists and tables around: the path, and the next index (None: an inline table)."""
        while True:
            if self._text[position] == "[":
                open_lists.append((path, 0))
                position += 1
            elif self._text[position] == "{":
                open_lists.append((path, None))
                position += 1
            else:
                match = _STRING.match(self._text, position) or _SCALAR.match(self._text, position)
                assert match is not None
                position = match.end()
            while open_lists:
                position = self._skip_blank(position)
                character = self._text[position]
                if character in "]}":
                    open_lists.pop()
                    position += 1
                elif character == ",":
                    position += 1
                else:
                    holder, index = open_lists[-1]
                    if index is None:
                        path, position = self._key_of_pair(holder, position)
                    else:
                        path = (*holder, index)
                        open_lists[-1] = (holder, index + 1)
                        self._spots[path] = Spot(position, position)
                    break
            else:
                return position

    def _keys(self, position: int) -> tuple[_Keys, int]:
        """Read a dotted key; returns where the character after it stands (``=`` or ``]``)."""
        keys: _Keys = []
        while True:
            position = self._skip_space(position)
            match = _BARE_KEY.match(self._text, position)
            if match is not None:
                keys.append((match[0], position))
            else:
                match = _STRING.match(self._text, position)
                assert match is not None
                keys.append((str(tomli.loads(f"key = {match[0]}")["key"]), position))
            position = self._skip_space(match.end())
            if self._text[position] != ".":
                return keys, position
            position += 1

    def _skip_blank(self, position: int) -> int:
        match = _BLANK.match(self._text, position)
        assert match is not None
        return match.end()

    def _skip_space(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        assert match is not None
        return match.end()

"""JavaScript that only states values: objects, lists, strings, numbers; JSON is a part of it. Nothing is executed.

What comes before the object (``module.exports =``, ``export default``) is passed over; anything that would have to be
computed (``process.env.X``, a call, an operator) is an error with its line.
"""

import re
from typing import Any

from supervisord_py.convert.draft import ConvertError

_SKIPPED = re.compile(r"(?:\s|\ufeff|//[^\n]*|/\*.*?\*/|(?:'use strict'|\"use strict\");?)+", re.DOTALL)
_HEAD = re.compile(r"(?:module\.exports|exports\.default)\s*=|export\s+default\b|(?:const|let|var)\s+(\w+)\s*=")
_NAME = re.compile(r"[A-Za-z_$][\w$]*")
_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]+)\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(\r\n|[\s\S]))")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": "", "\r\n": ""}
_WORDS = {"true": True, "false": False, "null": None, "undefined": None}
_DEPTH = 50

Path = tuple[str | int, ...]


def parse_literals(text: str, path: str) -> tuple[Any, dict[Path, int]]:
    """Read the value that a file states.

    Returns:
        The value, and the lines of what is in it by their paths.

    Raises:
        ConvertError: It does not only state a value.
    """
    reader = _Reader(text, path)
    value = reader.document()
    return value, reader.lines


class _Reader:
    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._position = 0
        self._line_at = (0, 1)
        self._constants: dict[str, tuple[Any, int]] = {}
        self.lines: dict[Path, int] = {}

    def document(self) -> Any:
        while True:
            self._skip()
            head = _HEAD.match(self._text, self._position)
            if head is not None:
                self._position = head.end()
            value = self._value(())
            self._skip()
            if self._text.startswith(";", self._position):
                self._position += 1
                self._skip()
            if head is not None and head[1] is not None and self._position < len(self._text):
                # A constant, for what follows.
                self._constants[head[1]] = (value, 0)
                continue
            if self._position < len(self._text):
                raise self._wrong()
            return value

    def _skip(self) -> None:
        match = _SKIPPED.match(self._text, self._position)
        if match is not None:
            self._position = match.end()

    def _line(self) -> int:
        position, line = self._line_at
        line += self._text.count("\n", position, self._position)
        self._line_at = (self._position, line)
        return line

    def _wrong(self) -> ConvertError:
        found = self._text[self._position : self._position + 30].split("\n")[0].strip()
        shown = "".join(character if character.isprintable() else "?" for character in found)
        if not shown:
            return ConvertError(f"{self._path}:{self._line()}: the value does not end")
        return ConvertError(
            f"{self._path}:{self._line()}: {shown!r} is no plain value, and nothing is executed here: "
            "write the value itself, or convert what pm2 makes of it (pm2 prettylist)"
        )

    def _value(self, at: Path) -> Any:
        self._skip()
        if len(at) > _DEPTH:
            raise ConvertError(f"{self._path}:{self._line()}: nested too deeply")
        self.lines.setdefault(at, self._line())
        character = self._text[self._position : self._position + 1]
        if character == "{":
            return self._object(at)
        if character == "[":
            return self._list(at)
        if character and character in "'\"`":
            return self._joined_string()
        number = _NUMBER.match(self._text, self._position)
        if number is not None:
            self._position = number.end()
            digits = number[0].replace("_", "")
            try:
                return int(digits, 0) if re.fullmatch(r"[-+]?(?:0[xX].*|0|[1-9]\d*)", digits) else float(digits)
            except ValueError:
                raise self._wrong() from None
        word = _NAME.match(self._text, self._position)
        if word is not None and word[0] in _WORDS:
            self._position = word.end()
            return _WORDS[word[0]]
        if word is not None and word[0] in self._constants:
            self._position = word.end()
            return self._constants[word[0]][0]
        raise self._wrong()

    def _take(self, expected: str) -> bool:
        self._skip()
        if self._text.startswith(expected, self._position):
            self._position += len(expected)
            return True
        return False

    def _object(self, at: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._position += 1
        while not self._take("}"):
            self._skip()
            line = self._line()
            if self._text[self._position : self._position + 1] in tuple("'\""):
                key = self._string()
            else:
                name = _NAME.match(self._text, self._position) or _NUMBER.match(self._text, self._position)
                if name is None:
                    raise self._wrong()
                key, self._position = name[0], name.end()
            self.lines[(*at, key)] = line
            if self._take(":"):
                found[key] = self._value((*at, key))
            elif key in self._constants:
                found[key] = self._constants[key][0]
            else:
                raise self._wrong()
            if not self._take(","):
                if not self._take("}"):
                    raise self._wrong()
                break
        return found

    def _list(self, at: Path) -> list[Any]:
        found: list[Any] = []
        self._position += 1
        while not self._take("]"):
            found.append(self._value((*at, len(found))))
            if not self._take(","):
                if not self._take("]"):
                    raise self._wrong()
                break
        return found

    def _joined_string(self) -> str:
        text = self._string()
        while self._take("+"):
            self._skip()
            if self._text[self._position : self._position + 1] not in tuple("'\"`"):
                raise self._wrong()
            text += self._string()
        return text

    def _string(self) -> str:
        quote = self._text[self._position]
        begin = self._position
        parts: list[str] = []
        self._position += 1
        while True:
            character = self._text[self._position : self._position + 1]
            if not character or (character == "\n" and quote != "`"):
                self._position = begin
                raise self._wrong()
            if character == quote:
                self._position += 1
                return "".join(parts)
            if character == "\\":
                parts.append(self._escape())
            elif quote == "`" and self._text.startswith("${", self._position):
                raise self._wrong()
            else:
                parts.append(character)
                self._position += 1

    def _escape(self) -> str:
        match = _ESCAPE.match(self._text, self._position)
        if match is None:
            raise self._wrong()
        self._position = match.end()
        code = match[1] or match[2] or match[3]
        if code is None:
            return _SIMPLE.get(match[4], match[4])
        number = int(code[:8], 16)
        return chr(number) if number < 0xD800 or 0xDFFF < number <= 0x10FFFF else "\ufffd"

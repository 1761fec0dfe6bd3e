"""``environment-file``: systemd's grammar of files with variables.

A line is ``NAME=VALUE``; lines that begin with ``#`` or ``;`` are comments. White space around name and value does not
count. A value, or parts of it, may stand in single quotes (nothing is special in them) or in double quotes (a backslash
keeps its meaning but before ``"``, a backslash, a backtick, ``$`` and the end of a line); both may span lines. Outside
of quotes a backslash takes the special meaning from any character, and joins lines. Nothing is expanded.
Source: systemd v255 src/basic/env-file.c, parse_env_file_internal; systemd.exec(5), EnvironmentFile=.
"""

import re
from enum import Enum, auto

_WHITE = " \t\n\r"
_NEWLINE = "\n\r"
_COMMENT = "#;"
_NEEDS_ESCAPE = '"\\`$'
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class _At(Enum):
    BEFORE_NAME = auto()
    NAME = auto()
    BEFORE_VALUE = auto()
    VALUE = auto()
    ESCAPE = auto()
    SINGLE = auto()
    DOUBLE = auto()
    DOUBLE_ESCAPE = auto()
    COMMENT = auto()
    COMMENT_ESCAPE = auto()


def parse_environment_file(content: bytes) -> list[tuple[str, str]]:
    """Read the variables of a file in their order; one that is written again stands where it was written last.

    Raises:
        ValueError: The file is not UTF-8 or holds a NUL; the message says in which line.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"line {content.count(bytes([10]), 0, error.start) + 1} is not UTF-8") from None
    if "\0" in text:
        raise ValueError(f"line {text.count(chr(10), 0, text.index(chr(0))) + 1} holds a NUL character")
    return _Reader().read(text)


def is_variable_name(text: str) -> bool:
    """Say whether a variable can have this name; systemd leaves out what has another, and tells it."""
    return _NAME.fullmatch(text) is not None


class _Reader:
    """The state machine; ``kept`` is how much of a name or value stays when the white space at its end is dropped."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._name: list[str] = []
        self._value: list[str] = []
        self._kept = 0

    def read(self, text: str) -> list[tuple[str, str]]:
        at = _At.BEFORE_NAME
        for character in text:
            at = self._step(at, character)
        if at not in (_At.BEFORE_NAME, _At.NAME, _At.COMMENT, _At.COMMENT_ESCAPE):
            self._take(trim=at is _At.VALUE)
        return self.found

    def _take(self, *, trim: bool) -> None:
        value = "".join(self._value[: self._kept] if trim else self._value)
        self.found.append(("".join(self._name).rstrip(_WHITE), value))
        self._name, self._value, self._kept = [], [], 0

    def _step(self, at: _At, character: str) -> _At:
        match at:
            case _At.BEFORE_NAME:
                if character in _COMMENT:
                    return _At.COMMENT
                if character in _WHITE:
                    return at
                self._name = [character]
                return _At.NAME
            case _At.NAME:
                if character in _NEWLINE:
                    self._name = []
                    return _At.BEFORE_NAME
                if character == "=":
                    return _At.BEFORE_VALUE
                self._name.append(character)
                return at
            case _At.BEFORE_VALUE:
                return self._before_value(character)
            case _At.VALUE:
                if character in _NEWLINE:
                    self._take(trim=True)
                    return _At.BEFORE_NAME
                if character == "\\":
                    self._kept = len(self._value)
                    return _At.ESCAPE
                self._add(character, keep=character not in _WHITE)
                return at
            case _At.ESCAPE:
                if character not in _NEWLINE:
                    self._add(character)
                return _At.VALUE
            case _At.SINGLE:
                if character == "'":
                    return _At.BEFORE_VALUE
                self._add(character)
                return at
            case _At.DOUBLE:
                if character in '"\\':
                    return _At.BEFORE_VALUE if character == '"' else _At.DOUBLE_ESCAPE
                self._add(character)
                return at
            case _At.DOUBLE_ESCAPE:
                if character in _NEEDS_ESCAPE:
                    self._add(character)
                elif character != "\n":
                    self._add("\\")
                    self._add(character)
                return _At.DOUBLE
            case _At.COMMENT:
                if character == "\\":
                    return _At.COMMENT_ESCAPE
                return _At.BEFORE_NAME if character in _NEWLINE else at
            case _At.COMMENT_ESCAPE:
                return _At.BEFORE_NAME if character in _NEWLINE else _At.COMMENT

    def _before_value(self, character: str) -> _At:
        if character in _NEWLINE:
            self._take(trim=False)
            return _At.BEFORE_NAME
        quotes = {"'": _At.SINGLE, '"': _At.DOUBLE, "\\": _At.ESCAPE}
        if character in quotes:
            return quotes[character]
        if character in _WHITE:
            return _At.BEFORE_VALUE
        self._add(character)
        return _At.VALUE

    def _add(self, character: str, *, keep: bool = True) -> None:
        self._value.append(character)
        if keep:
            self._kept = len(self._value)

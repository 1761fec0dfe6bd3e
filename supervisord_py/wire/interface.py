"""The interface description language of Varlink: text in, types out, and values checked against them.

A service says what it offers in the same text that people read, so this parser is what stands between an unknown
caller and a method: a value that passed ``Method.check_input`` has every field that the text names and no other, of
the type it names.

Source: varlink.org, Interface-Definition; the grammar is complete, with systemd's ``any`` as another word for
``object``.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from supervisord_py.errors import SupervisordError
from supervisord_py.wire.varlink import INTERFACE_NAME, MEMBER_NAME

TYPE_DEPTH_MAX = 32
"""Nesting of types in a description."""

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1

SERVICE_TEXT = """\
# What every Varlink service offers.
interface org.varlink.service

# Who made this service, which version it is, and the interfaces it implements.
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

# The text of an interface.
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
"""


class InterfaceSyntaxError(SupervisordError):
    """A description that cannot be read; ``line`` and ``column`` count from 1."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(f"{line}:{column}: {message}")
        self.line = line
        self.column = column
        self.message = message


class InvalidParameterError(SupervisordError):
    """A value does not fit the description; ``parameter`` is its path, with dots."""

    def __init__(self, parameter: str, expected: str) -> None:
        super().__init__(f"{parameter}: expected {expected}")
        self.parameter = parameter
        self.expected = expected


class Basic(msgspec.Struct, frozen=True):
    """``bool int float string object``."""

    name: str


class Named(msgspec.Struct, frozen=True):
    """A type that the interface defines under this name."""

    name: str


class Array(msgspec.Struct, frozen=True):
    of: "Type"


class Dict(msgspec.Struct, frozen=True):
    """``[string]T``; ``[string]()`` is a set."""

    of: "Type"


class Maybe(msgspec.Struct, frozen=True):
    of: "Type"


class Record(msgspec.Struct, frozen=True):
    """A struct: its fields in the order of the text."""

    fields: tuple[tuple[str, "Type"], ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """An enum: its words in the order of the text."""

    words: tuple[str, ...]


Type = Basic | Named | Array | Dict | Maybe | Record | Choice


class Method(msgspec.Struct, frozen=True):
    name: str
    input: Record
    output: Record
    doc: str = ""


class Interface(msgspec.Struct, frozen=True):
    """One interface, read from ``text``; the comment above a member is its documentation."""

    name: str
    text: str
    doc: str
    types: Mapping[str, Type]
    methods: Mapping[str, Method]
    errors: Mapping[str, Record]

    def check_input(self, method: Method, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a call with every field of the method, a nullable one that is absent as None.

        Raises:
            InvalidParameterError: A field that the method does not have, one that is missing, or one of another type.
        """
        return self._check_record(method.input, parameters, "", allow_unknown=False)

    def check_output(
        self, method: Method, parameters: Mapping[str, Any], *, allow_unknown: bool = True
    ) -> dict[str, Any]:
        """As ``check_input`` for a reply; a client leaves fields alone that a newer server added."""
        return self._check_record(method.output, parameters, "", allow_unknown=allow_unknown)

    def check_error(self, name: str, parameters: Mapping[str, Any], *, allow_unknown: bool = True) -> dict[str, Any]:
        """As ``check_output`` for the parameters of the error ``name``, which has no interface in front."""
        return self._check_record(self.errors[name], parameters, "", allow_unknown=allow_unknown)

    def _check_record(
        self, record: Record, value: Mapping[str, Any], path: str, *, allow_unknown: bool
    ) -> dict[str, Any]:
        fields = dict(record.fields)
        if not allow_unknown:
            for name in value:
                if name not in fields:
                    raise InvalidParameterError(f"{path}{name[:64]}", "no such field")
        return {
            name: self._check(field, value.get(name), f"{path}{name}", allow_unknown) for name, field in record.fields
        }

    def _check(self, type_: Type, value: Any, path: str, allow_unknown: bool) -> Any:
        match type_:
            case Maybe(of=of):
                return None if value is None else self._check(of, value, path, allow_unknown)
            case Named(name=name):
                return self._check(self.types[name], value, path, allow_unknown)
            case Array(of=of):
                if not isinstance(value, (list, tuple)):
                    raise InvalidParameterError(path, "an array")
                return [self._check(of, item, f"{path}.{index}", allow_unknown) for index, item in enumerate(value)]
            case Dict(of=of):
                if not isinstance(value, Mapping):
                    raise InvalidParameterError(path, "an object")
                return {key: self._check(of, item, f"{path}.{key[:64]}", allow_unknown) for key, item in value.items()}
            case Record():
                if not isinstance(value, Mapping):
                    raise InvalidParameterError(path, "an object")
                return self._check_record(type_, value, f"{path}.", allow_unknown=allow_unknown)
            case Choice(words=words):
                if value not in words:
                    raise InvalidParameterError(path, "one of " + ", ".join(words))
                return value
            case Basic(name=name):
                if not _BASIC_CHECKS[name](value):
                    raise InvalidParameterError(path, _BASIC_WORDS[name])
                return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT_MIN <= value <= INT_MAX


_BASIC_CHECKS: dict[str, Callable[[object], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "float": lambda value: isinstance(value, float) or _is_int(value),
    "string": lambda value: isinstance(value, str),
    # Any JSON value: the reference calls it a foreign object, and clients in use put numbers and text there.
    "object": lambda value: value is not None,
}
_BASIC_WORDS = {
    "bool": "true or false",
    "int": "a whole number of 64 bits",
    "float": "a number",
    "string": "a string",
    "object": "any value but null",
}


def parse_interface(text: str) -> Interface:
    """Read a description.

    Raises:
        InterfaceSyntaxError: The first thing that is wrong with it, and where.
    """
    return _Parser(text).parse()


_TOKEN = re.compile(
    r"(?P<space>[ \t\r]+)|(?P<newline>\n)|(?P<comment>#[^\n]*)"
    r"|(?P<symbol>->|\[\]|\[string\]|[?():,])|(?P<word>[A-Za-z0-9_](?:[A-Za-z0-9_.]|-(?!>))*)"
)
_INTERFACE = re.compile(INTERFACE_NAME, re.ASCII)
_MEMBER = re.compile(MEMBER_NAME, re.ASCII)
_FIELD = re.compile(r"[A-Za-z](?:_?[A-Za-z0-9])*", re.ASCII)
_BASICS = {"bool": "bool", "int": "int", "float": "float", "string": "string", "object": "object", "any": "object"}


class _Token(msgspec.Struct, frozen=True):
    text: str
    line: int
    column: int
    doc: str = ""


class _Parser:
    """Recursive descent, bounded by ``TYPE_DEPTH_MAX``; one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._next = 0
        self._used: list[tuple[str, _Token]] = []

    def parse(self) -> Interface:
        start = self._expect("interface")
        name = self._word(_INTERFACE, "the interface's name, such as com.example.Name")
        types: dict[str, Type] = {}
        methods: dict[str, Method] = {}
        errors: dict[str, Record] = {}
        seen: set[str] = set()
        while (keyword := self._peek()).text:
            self._next += 1
            if keyword.text not in ("type", "method", "error"):
                raise _wrong(keyword, "type, method or error")
            at = self._peek()
            member = self._word(_MEMBER, "a name that begins with a capital letter")
            if member in seen:
                raise InterfaceSyntaxError(at.line, at.column, f"{member} is defined twice")
            seen.add(member)
            if keyword.text == "type":
                types[member] = self._struct_or_enum(0)
            elif keyword.text == "error":
                errors[member] = self._struct(0)
            else:
                given = self._struct(0)
                self._expect("->")
                methods[member] = Method(member, given, self._struct(0), keyword.doc)
        if not seen:
            raise _wrong(self._peek(), "type, method or error")
        for used, at in self._used:
            if used not in types:
                raise InterfaceSyntaxError(at.line, at.column, f"no type {used}: define it in this interface")
        _refuse_endless(types)
        return Interface(name, self._text, start.doc, types, methods, errors)

    def _type(self, depth: int) -> Type:
        token = self._peek()
        if depth > TYPE_DEPTH_MAX:
            raise InterfaceSyntaxError(token.line, token.column, f"types nest at most {TYPE_DEPTH_MAX} deep")
        match token.text:
            case "?":
                self._next += 1
                if self._peek().text == "?":
                    raise _wrong(self._peek(), "a type (?? is none)")
                return Maybe(self._type(depth + 1))
            case "[]":
                self._next += 1
                return Array(self._type(depth + 1))
            case "[string]":
                self._next += 1
                return Dict(self._type(depth + 1))
            case "(":
                return self._struct_or_enum(depth + 1)
            case basic if basic in _BASICS:
                self._next += 1
                return Basic(_BASICS[basic])
        name = self._word(_MEMBER, "a type")
        self._used.append((name, token))
        return Named(name)

    def _struct(self, depth: int) -> Record:
        at = self._peek()
        found = self._struct_or_enum(depth)
        if not isinstance(found, Record):
            raise InterfaceSyntaxError(at.line, at.column, "expected fields with types, (name: type, ...)")
        return found

    def _struct_or_enum(self, depth: int) -> Record | Choice:
        self._expect("(")
        if self._peek().text == ")":
            self._next += 1
            return Record()
        names: list[str] = []
        types: list[Type] = []
        while True:
            at = self._peek()
            name = self._word(_FIELD, "a field's name")
            if name in names:
                raise InterfaceSyntaxError(at.line, at.column, f"{name} is there twice")
            typed = self._peek().text == ":"
            if names and typed != bool(types):
                raise _wrong(self._peek(), "a type for every field, or for none")
            names.append(name)
            if typed:
                self._next += 1
                types.append(self._type(depth))
            separator = self._peek()
            self._next += 1
            if separator.text == ")":
                break
            if separator.text != ",":
                raise _wrong(separator, ", or )")
        return Record(tuple(zip(names, types, strict=True))) if types else Choice(tuple(names))

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _expect(self, text: str) -> _Token:
        token = self._peek()
        if token.text != text:
            raise _wrong(token, text)
        self._next += 1
        return token

    def _word(self, pattern: "re.Pattern[str]", expected: str) -> str:
        token = self._peek()
        if pattern.fullmatch(token.text) is None:
            raise _wrong(token, expected)
        self._next += 1
        return token.text


def _tokens(text: str) -> Iterator[_Token]:
    """Cut the text into tokens; the last one is empty. A comment directly above a token is its ``doc``."""
    line, line_start, position = 1, 0, 0
    comments: list[str] = []
    blank = True
    while position < len(text):
        match = _TOKEN.match(text, position)
        column = position - line_start + 1
        if match is None:
            raise InterfaceSyntaxError(line, column, f"unexpected {text[position]!r}")
        if match.lastgroup == "comment":
            if blank:
                comments.append(match.group()[1:].removeprefix(" ").rstrip())
        elif match.lastgroup == "newline":
            if blank and not text[line_start:position].strip():
                comments.clear()
            line, line_start, blank = line + 1, match.end(), True
        elif match.lastgroup != "space":
            yield _Token(match.group(), line, column, "\n".join(comments))
            comments.clear()
            blank = False
        position = match.end()
    yield _Token("", line, len(text) - line_start + 1)


def _wrong(token: _Token, expected: str) -> InterfaceSyntaxError:
    found = repr(token.text[:64]) if token.text else "the end"
    return InterfaceSyntaxError(token.line, token.column, f"expected {expected}, found {found}")


def _refuse_endless(types: Mapping[str, Type]) -> None:
    """Refuse a type that is its own field without a way out (null, an empty array): no finite value would fit it."""
    settled: set[str] = set()
    while True:
        more = {name for name, type_ in types.items() if name not in settled and _is_finite(type_, settled)}
        if not more:
            break
        settled |= more
    for name in types:
        if name not in settled:
            raise InterfaceSyntaxError(1, 1, f"type {name} holds itself: make one of its fields nullable")


def _is_finite(type_: Type, settled: set[str]) -> bool:
    match type_:
        case Named(name=name):
            return name in settled
        case Record(fields=fields):
            return all(_is_finite(field, settled) for _, field in fields)
        case _:
            return True

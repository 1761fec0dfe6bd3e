"""Values of systemd's directives as values of our keys: what a key's type (``docs/keys.toml``) is written like.

One function a type, assignment by assignment, as systemd itself reads them; an assignment that it would ignore is a
``BadValue``. Lists that several assignments add to are put together by the caller.

Source: systemd.syntax(7), systemd.unit(5) "Specifiers"; systemd src/core/load-fragment.c, src/basic/extract-word.c.
"""

import re

from msgspec import Struct

from supervisord_py.model.assemble_sandbox import ITEM_PARSERS, PATH_KEYS
from supervisord_py.model.command import extract_word, unescape
from supervisord_py.model.conditions import FALSE_WORDS, TRUE_WORDS
from supervisord_py.model.keys import KeySpec
from supervisord_py.model.problems import BadValue

_SPECIFIER = re.compile(r"%(.?)", re.DOTALL)
_OURS = frozenset("iIptSLhuUHbyYdgGslvam%")
_FOLDERS = {"C": "/var/cache", "E": "/etc", "T": "/tmp", "V": "/var/tmp"}
_USER_FOLDERS = {"C": "%h/.cache", "E": "%h/.config", "T": "/tmp", "V": "/var/tmp"}
_NOT_HAD = {
    "A": "the image's version", "B": "the build", "c": "the control group", "M": "the image's name", "o":
    "the operating system's id", "q": "the pretty host name", "r": "the control group", "R": "the control group", "w":
    "the version's id", "W": "the variant's id", "D": "the shared data folder",
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:[abfnrtv\\\"'s]|x(?!00)[0-9a-fA-F]{2}|u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|"
    r"(?!000)[0-3][0-7]{2}|(?<=[ \t]\\);(?=[ \t]|$))|\\[ \t]?"
)
_NO_ESCAPES = {"\\": r"\\", "\\ ": r"\\\x20", "\\\t": r"\\\x09"}
"""A backslash that begins no escape stays as it is, and a blank behind it is one of the word."""
_NUMBER = re.compile(r"[0-9]+", re.ASCII)


class UnitContext(Struct, frozen=True):
    """The unit whose values are read: systemd's name of it, taken apart, and whether ``%n`` of ours is the same.

    ``is_user``: it is a unit of a user's service manager.
    """

    prefix: str
    instance: str | None
    suffix: str
    is_renamed: bool = False
    is_user: bool = False


def translate_specifiers(text: str, unit: UnitContext, *, in_command: bool = False) -> str:
    """Write the specifiers of a text as ours.

    Raises:
        BadValue: One of them is not had here.
    """

    prefix = unit.prefix.replace("%", "%%")
    if in_command:
        # It is read as a word of the command afterwards.
        prefix = prefix.replace("\\", "\\\\")

    def one(match: re.Match[str]) -> str:
        letter = match[1]
        if letter == "":
            return "%%"
        if letter in "np" and unit.is_renamed:
            return prefix + ("" if letter == "p" else f"{_at(unit)}.{unit.suffix}")
        if letter in "iIf" and unit.is_renamed and unit.instance:
            # The instance is called otherwise here.
            kept = unit.instance.replace("%", "%%").replace("\\", "\\\\" if in_command else "\\")
            return kept if letter == "i" else ("/" if letter == "f" else "") + _unescaped(unit.instance)
        if letter == "n":
            return f"%n.{unit.suffix}"
        if letter == "N":
            return f"{prefix}{_at(unit)}" if unit.is_renamed else "%n"
        if letter in _OURS:
            return match[0]
        if letter in _FOLDERS:
            return (_USER_FOLDERS if unit.is_user else _FOLDERS)[letter]
        if letter == "P":
            return _unescaped(unit.prefix)
        if letter in "jJ":
            last = unit.prefix.rpartition("-")[2]
            return last if letter == "j" else _unescaped(last)
        if letter == "f":
            return "/%I" if unit.instance is not None else f"/{_unescaped(unit.prefix)}"
        if letter in _NOT_HAD:
            raise BadValue(f"%{letter} ({_NOT_HAD[letter]}) is no specifier here")
        if letter.isascii() and letter.isalnum():
            raise BadValue(f"%{letter} is no specifier, and systemd refuses it")
        return f"%%{letter}"

    return _SPECIFIER.sub(one, text)


def _at(unit: UnitContext) -> str:
    if unit.instance and unit.is_renamed:
        return f"@{unit.instance.replace('%', '%%')}"
    return "" if unit.instance is None else "@%i"


def _unescaped(text: str) -> str:
    plain = re.sub(r"\\x([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text.replace("-", "/"))
    return plain.replace("%", "%%")


def words_of(text: str, *, unescape: bool = False) -> list[str]:
    """Split a list as systemd does: blanks, quotes.

    Raises:
        BadValue: A quote is not closed.
    """
    words: list[str] = []
    position = 0
    while (found := extract_word(text, position, unescape=unescape)) is not None:
        words.append(found[0])
        position = found[1]
    return words


def boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in TRUE_WORDS:
        return True
    if lowered in FALSE_WORDS:
        return False
    raise BadValue(f"{text!r} is no boolean, and systemd ignores it")


def number_or_text(text: str) -> int | str:
    return int(text) if _NUMBER.fullmatch(text) and len(text) < 19 else text


def command(text: str, unit: UnitContext) -> str:
    """One ExecStart= and its kin: our string form has systemd's rules, so little is to be done.

    Escapes that mean nothing stay as they stand in systemd; the prefix ``!!`` does nothing on kernels of today.
    """
    if "\n" in text:
        raise BadValue("a line break in a command")
    escaped = _ESCAPE.sub(lambda match: _NO_ESCAPES.get(match[0], match[0]), text)
    translated = translate_specifiers(escaped, unit, in_command=True)
    prefixes = re.match(r"[-@:+!|]*", translated)
    taken = prefixes[0] if prefixes is not None else ""
    if "|" in taken:
        raise BadValue("the prefix | (the user's shell) is not had here")
    return taken.replace("!!", "") + translated[len(taken) :]


def with_privileges(text: str) -> str:
    """The same command outside of the unit's user and sandbox (what PermissionsStartOnly= does)."""
    return text if re.match(r"[-@:]*[+!]", text) else f"+{text}"


def environment(text: str, unit: UnitContext) -> dict[str, str]:
    """``Environment=``: words of ``NAME=VALUE``; those that are none are ignored, as in systemd."""
    found: dict[str, str] = {}
    for word in words_of(_ESCAPE.sub(lambda match: _NO_ESCAPES.get(match[0], match[0]), text), unescape=True):
        name, equals, value = translate_specifiers(word, unit).partition("=")
        if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            found[name] = value
    if not found:
        raise BadValue("no variable in it, and systemd ignores it")
    return found


_CLASSES = {"0": "none", "1": "realtime", "2": "best-effort", "3": "idle"}
_POLICIES = {"0": "other", "1": "fifo", "2": "rr", "3": "batch", "5": "idle"}
_LEVELS = {"ProtectSystem", "ProtectHome"}
_WHOLE = frozenset(
    {
        "EnvironmentFile", "LoadCredential", "ListenStream", "ListenDatagram",
        "ListenSequentialPacket", "ListenFIFO", "OnCalendar",
    }
)  # fmt: skip
"""Directives that are lists of one value an assignment."""
_INVERTED = frozenset({"SystemCallFilter", "CapabilityBoundingSet", "AmbientCapabilities", "RestrictAddressFamilies",
                       "RestrictNamespaces"})  # fmt: skip
"""Directives whose ``~`` holds for all words of an assignment."""

LIST_TYPES = frozenset({"strings", "accounts", "labels", "calendars", "timespans", "conditions", "exit-statuses"})


def is_list(spec: KeySpec, text: str) -> bool:
    """Whether a value is one of several that a key takes."""
    if spec.type == "switch-or-strings":
        return text.lower() not in TRUE_WORDS | FALSE_WORDS
    return spec.type in LIST_TYPES or (spec.type.endswith("s") and isinstance(spec.default, list))


def scalar(directive: str, spec: KeySpec, text: str, unit: UnitContext) -> object:
    """One value of a key that takes one."""
    if spec.expands:
        text = translate_specifiers(text, unit)
    match spec.type:
        case "boolean":
            return boolean(text)
        case "enum":
            if directive == "IOSchedulingClass":
                return _CLASSES.get(text, text)
            if directive == "CPUSchedulingPolicy":
                return _POLICIES.get(text, text)
            if text not in spec.values and text.lower() in TRUE_WORDS | FALSE_WORDS:
                return "yes" if boolean(text) else "no"
            return text
        case "mode":
            return text.zfill(4) if re.fullmatch(r"[0-7]{1,4}", text) else text
        case "integer":
            try:
                return int(text)
            except ValueError:
                raise BadValue(f"{text!r} is no whole number, and systemd ignores it") from None
        case "timespan" | "timeout" | "delay" | "period" | "size" | "size-or-percent" | "count-or-percent":
            return number_or_text(text)
        case "limit-count" | "limit-bytes" | "limit-seconds":
            return number_or_text(text)
        case "limit-hard-microseconds":
            return number_or_text(text.rpartition(":")[2])
        case "runtime-path":
            return _of_today(directive, text)
        case "switch-or-strings":
            return boolean(text)
        case _:
            if directive in _LEVELS and text.lower() in TRUE_WORDS | FALSE_WORDS:
                return "yes" if boolean(text) else "no"
            return text


def _simple_path(word: str) -> str:
    """A path without empty parts and single dots; marks before it and what follows a colon stay."""
    match = re.match(r"([-+]*)([^:]*)(.*)", word, re.DOTALL)
    assert match is not None, "internal error: an expression that matches everything does not"
    marks, path, rest = match.groups()
    simple = "/".join(part for part in path.split("/") if part not in ("", "."))
    return f"{marks}{'/' if path.startswith('/') else ''}{simple}{rest}"


def _of_today(directive: str, text: str) -> str:
    """A path below ``/var/run``, which is ``/run`` today: systemd writes it so, too."""
    is_path = directive == "PIDFile" or directive.startswith("Listen")
    return text.removeprefix("/var") if is_path and text.startswith("/var/run/") else text


def _credential(text: str, unit: UnitContext) -> str:
    """``NAME:VALUE``, whose value has C escapes and no specifiers. Source: systemd src/core/load-fragment.c,
    config_parse_set_credential."""
    name, colon, value = text.partition(":")
    given = unescape(value)
    if any("\ud800" <= each <= "\udfff" for each in given):
        raise BadValue("a value that is no text has no counterpart here")
    return f"{translate_specifiers(name, unit)}{colon}{given.replace('%', '%%')}"


def items(directive: str, spec: KeySpec, text: str, unit: UnitContext) -> list[object]:
    """The values that one assignment adds to a list."""
    if spec.type == "conditions":
        return [translate_specifiers(text, unit)]
    if spec.type == "timespans":
        return [number_or_text(text)]
    if directive == "SetCredential":
        return [_credential(text, unit)]
    if directive in _WHOLE:
        return [_of_today(directive, translate_specifiers(text, unit))]
    if directive in _INVERTED:
        # What one assignment says is one entry: a ~ at its beginning holds for all of it.
        return [" ".join(text.split()).replace("~ ", "~")]
    words = [translate_specifiers(word, unit) for word in words_of(text)]
    if directive.endswith(("Directory", "Directories", "Paths")):
        words = [_simple_path(word) for word in words]
    return [number_or_text(word) for word in words] if spec.type == "exit-statuses" else list(words)


def known_words(key: str, values: list[object]) -> tuple[list[object], list[str]]:
    """Leave out of a list of the sandbox the words that are not known here; returns what is left, and what was wrong.

    systemd passes over such words too, of RestrictNamespaces= over the whole line.

    Raises:
        BadValue: Nothing is left.
    """
    parse, is_one = ITEM_PARSERS.get(key), key in PATH_KEYS
    if parse is None:
        return values, []
    kept: list[object] = []
    unknown: list[str] = []
    for value in values:
        sign = "~" if str(value).startswith("~") else ""
        words: list[str] = []
        for word in [str(value)] if is_one else str(value).removeprefix("~").split():
            try:
                parse((sign + word,))
            except BadValue as bad:
                unknown.append(bad.all()[0].message)
            else:
                words.append(word)
        if words or value in ("", "~"):
            kept.append(value if is_one else sign + " ".join(words))
    if not kept and unknown:
        raise BadValue("; ".join(unknown))
    return kept, unknown

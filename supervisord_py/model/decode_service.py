"""The types of keys that say what a process is given: files with variables, folders, credentials, streams.

Each takes the text of one item, with its specifiers expanded, and raises ``BadValue``. Source: systemd.exec(5).
"""

import base64
import re

from supervisord_py.model.context import Credential, Folder
from supervisord_py.model.digits import parse_digits
from supervisord_py.model.environment_file import is_variable_name
from supervisord_py.model.problems import BadValue
from supervisord_py.model.values import shown

_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}", re.ASCII)
_CPU_MAX = 8191
INPUTS = ("null", "data", "socket", "file:PATH")
OUTPUTS = ("inherit", "null", "journal", "journald", "file:PATH", "append:PATH", "truncate:PATH")
_NO_TERMINAL = ("tty", "tty-force", "tty-fail", "journal+console", "kmsg+console", "kmsg")


def environment_file(text: str) -> str:
    """An absolute path or pattern, with ``-`` before it when a missing file does not matter."""
    if not text.removeprefix("-").startswith("/"):
        raise BadValue(f"{text!r} is a relative path", "write an absolute path, with - before it if it may be missing")
    return text


def variable_name(text: str) -> str:
    if not is_variable_name(text):
        raise BadValue(f"{text!r} is not a variable's name", "letters, digits and _, no digit first")
    return text


def unset_variable(text: str) -> str:
    """``NAME``, or ``NAME=VALUE``: then it is removed only with that value."""
    variable_name(text.partition("=")[0])
    return text


def folder(text: str) -> Folder:
    """A folder below one of the roots: ``NAME``, ``NAME/BELOW``, or with a link to it, ``NAME:LINK``; a colon of a
    name is written ``\\:``."""
    parts = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text, maxsplit=1)]
    name, link = parts[0], parts[1] if len(parts) > 1 else ""
    for part in parts:
        if not _is_below(part):
            hint = "write a relative path without . and .., such as web or web/cache"
            raise BadValue(f"{part!r} is not a folder below another", hint)
        if part.partition("/")[0] == "private":
            hint = "choose another name"
            raise BadValue("private/ is where folders of dynamic users lie", hint)
    return Folder(name, link or None)


def _is_below(path: str) -> bool:
    parts = path.split("/")
    return bool(path) and path.isprintable() and not any(part in ("", ".", "..") for part in parts)


def load_credential(text: str) -> Credential:
    """``NAME:PATH``, or ``NAME`` for one that the supervisor was given by that name."""
    name, colon, path = text.partition(":")
    _check_credential(name)
    if colon and not path:
        raise BadValue(f"{text!r} names no file", "write NAME:PATH")
    return Credential(name, path=path or name)


def set_credential(text: str) -> Credential:
    """``NAME:VALUE``."""
    name, colon, value = text.partition(":")
    if not colon:
        raise BadValue("a credential without a value", "write NAME:VALUE")
    _check_credential(name)
    return Credential(name, value=value)


def _check_credential(name: str) -> None:
    if _CREDENTIAL_NAME.fullmatch(name) is None or name in (".", ".."):
        raise BadValue(f"{name!r} is not the name of a credential", "letters, digits and _ . -, as of a file")


def cpus(text: str) -> tuple[int, ...]:
    """CPUs by number, with ranges, between spaces or commas: ``0-3,8``. Source: systemd src/shared/cpu-set-util.c."""
    found: set[int] = set()
    for word in text.replace(",", " ").split():
        begin, dash, end = word.partition("-")
        first, last = parse_digits(begin), parse_digits(end if dash else begin)
        if first is None or last is None:
            raise BadValue(f"{shown(word)} is not a CPU", "write numbers and ranges, such as 0-3,8")
        if last > _CPU_MAX:
            raise BadValue(f"there is no CPU {last}", f"the highest number is {_CPU_MAX}")
        if first > last:
            raise BadValue(f"{word!r} holds no CPU", f"write the lower number first, as in {last}-{first}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def absolute_paths(text: str) -> tuple[str, ...]:
    """``/FOLDER``, or several with colons between."""
    for path in text.split(":"):
        if not path.startswith("/"):
            raise BadValue(f"{path!r} is a relative path", "write absolute ones, such as /opt/bin:/usr/bin")
    return tuple(text.split(":"))


def input_data(text: str) -> str:
    """Base64, with blanks and line breaks wherever they are."""
    plain = "".join(text.split())
    try:
        base64.b64decode(plain, validate=True)
    except ValueError:
        raise BadValue("this is not base64", "write what base64(1) prints") from None
    return plain


def input_stream(text: str) -> str:
    return _stream(text, INPUTS, ("file",))


def output_stream(text: str) -> str:
    return _stream(text, OUTPUTS, ("file", "append", "truncate"))


def _stream(text: str, possible: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    kind, colon, path = text.partition(":")
    if colon and kind in kinds:
        if not path.startswith("/"):
            raise BadValue(f"{path!r} is a relative path", f"write {kind}: and an absolute path")
        return text
    if text in possible:
        return text
    hint = f"possible are {', '.join(possible)}"
    if text in _NO_TERMINAL:
        hint = "a supervisor has no terminal: write file: and the device, such as file:/dev/tty9"
    raise BadValue(f"{text!r} is not possible here", hint)

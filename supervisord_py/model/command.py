"""Commands in their three forms, and the expansion of variables just before exec.

An array of strings is the exact argv; a string is read by systemd's rules in full; a table holds either and says the
prefixes in words. Several commands are an array of arrays or tables, or a string with one command a line (a backslash
at the end of a line joins it with the next, a line that begins with ``#`` is skipped, ``;`` standing alone separates
commands too).

Differences from systemd: ``!!`` is refused.

Source: systemd.service(5), "Command lines"; systemd src/basic/extract-word.c, escape.c, env-util.c (replace_env_argv),
src/core/load-fragment.c (config_parse_exec).
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping

from supervisord_py.model.problems import BadValue, raise_all
from supervisord_py.model.unit import Command
from supervisord_py.model.values import shown

Expand = Callable[[str], str]
_BLANKS = " \t\n\r"
_PREFIXES = "-@:+!"
_SHORT_ESCAPES = {
    "a": b"\a", "b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v", "\\": b"\\", '"': b'"', "'":
    b"'", "s": b" ",
}  # fmt: skip
_LONG_ESCAPE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})")
# An even number of backslashes at the end of a line are escaped ones.
_CONTINUATION = re.compile(r"(?<!\\)((?:\\\\)*)\\\r?\n")
_TABLE_KEYS = ("command", "ignore-failure", "privileged", "argv0")


def parse_commands(value: object, expand: Expand) -> tuple[Command, ...]:
    """Read what ``exec-start`` and its kin hold: any number of commands.

    Args:
        value: The TOML value.
        expand: Replaces specifiers; raises ``BadValue``.

    Raises:
        BadValue: ``at`` leads to the command that is wrong.
    """
    if isinstance(value, str):
        return tuple(_parse_lines(value, expand))
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        commands: list[Command] = []
        complaints: list[BadValue] = []
        for index, item in enumerate(value):
            try:
                if isinstance(item, str):
                    raise BadValue(
                        "a string among commands that are arrays or tables",
                        'write it as an array, ["PROGRAM", "ARGUMENT"], or as { command = "..." }',
                    )
                commands.append(parse_command(item, expand))
            except BadValue as complaint:
                complaints.append(complaint.under(index))
        raise_all(complaints)
        return tuple(commands)
    if isinstance(value, list) and not value:
        return ()
    return (parse_command(value, expand),)


def parse_command(value: object, expand: Expand) -> Command:
    """Read exactly one command: an argv, a string, or a table of either.

    Raises:
        BadValue: Not a command, or more than one.
    """
    if isinstance(value, dict):
        return _parse_table(value, expand)
    if isinstance(value, list):
        return _parse_argv(value, expand)
    if not isinstance(value, str):
        raise BadValue(f"{shown(value)} is not a command", 'write ["PROGRAM", "ARGUMENT"] or "PROGRAM ARGUMENT"')
    commands = _parse_lines(value, expand)
    if len(commands) != 1:
        raise BadValue("the command is empty" if not commands else "one command is wanted here, not several")
    return commands[0]


def _parse_table(table: dict[str, object], expand: Expand) -> Command:
    for key in table:
        if key not in _TABLE_KEYS:
            raise BadValue(
                f"unknown key {key!r} in a command", f"the keys are {', '.join(_TABLE_KEYS)}", (key,), on_key=True
            )
    if "command" not in table:
        raise BadValue("a command table without the key 'command'", 'write { command = ["PROGRAM", "ARGUMENT"] }')
    if isinstance(table["command"], dict):
        raise BadValue("a table within a command table", 'write command = ["PROGRAM", "ARGUMENT"]', ("command",))
    try:
        command = parse_command(table["command"], expand)
    except BadValue as problem:
        raise problem.under("command") from None
    for key in ("ignore-failure", "privileged"):
        if not isinstance(table.get(key, False), bool):
            raise BadValue(f"{key} is not a boolean", "write true or false, without quotes", (key,))
    argv0 = table.get("argv0", command.argv0)
    if argv0 is not None and (not isinstance(argv0, str) or not argv0 or "\0" in argv0):
        raise BadValue("argv0 is not a string", "write the name the program is to see", ("argv0",))
    return Command(
        command.words,
        command.expand,
        command.ignore_failure or table.get("ignore-failure") is True,
        command.privileged or table.get("privileged") is True,
        expand(argv0) if "argv0" in table and argv0 is not None else argv0,
    )


def _parse_argv(argv: list[object], expand: Expand) -> Command:
    words: list[str] = []
    for index, word in enumerate(argv):
        if not isinstance(word, str):
            raise BadValue(
                f"{shown(word)} is not a string", "the words of a command are strings: write it in quotes", (index,)
            )
        if "\0" in word:
            raise BadValue("a word with a NUL character", "no program can be given one", (index,))
        words.append(word)
    if not words:
        raise BadValue("the command is empty", 'write ["PROGRAM", "ARGUMENT"]')
    prefixes, program = _take_prefixes(words[0])
    if any(blank in program for blank in _BLANKS):
        raise BadValue(
            f"the program's name {program!r} holds a space",
            "an array of strings is one command, word by word; a command line is a string, several commands are an "
            "array of arrays",
            (0,),
        )
    return _build(prefixes, program, [expand(word) for word in words[1:]], expand, split=False)


def _parse_lines(text: str, expand: Expand) -> list[Command]:
    if "\0" in text:
        raise BadValue("a command with a NUL character", "no program can be given one")
    commands: list[Command] = []
    for line in _CONTINUATION.sub(r"\1 ", text).split("\n"):
        if not line.lstrip(_BLANKS).startswith("#"):
            commands += _parse_line(line, expand)
    return commands


def _parse_line(line: str, expand: Expand) -> list[Command]:
    commands: list[Command] = []
    position = 0
    while True:
        first = extract_word(line, position)
        if first is None:
            return commands
        word, position = first
        if word == ";":
            continue
        prefixes, program = _take_prefixes(word)
        words: list[str] = []
        while position < len(line):
            position = _skip_blanks(line, position)
            end = position + 1
            if line.startswith(";", position) and (end == len(line) or line[end] in _BLANKS):
                position = end
                break
            # "\;" is a literal semicolon; "\\;" and "\";\"" are ordinary words.
            end = position + 2
            if line.startswith("\\;", position) and (end == len(line) or line[end] in _BLANKS):
                words.append(";")
                position = end
                continue
            extracted = extract_word(line, position)
            if extracted is None:
                break
            words.append(expand(extracted[0]))
            position = extracted[1]
        commands.append(_build(prefixes, program, words, expand, split=True))


def _take_prefixes(word: str) -> tuple[str, str]:
    """Split ``-@/bin/x`` into its prefixes and the program; each prefix counts once, ``+`` and ``!`` exclude each
    other."""
    taken = ""
    for character in word:
        if character not in _PREFIXES or character in taken or (character in "+!" and ("+" in taken or "!" in taken)):
            break
        taken += character
    if word[len(taken) :].startswith("!"):
        raise BadValue(f"the prefix {word[: len(taken) + 1]!r} is not supported", "write ! or + alone")
    return taken, word[len(taken) :]


def _build(prefixes: str, program: str, words: list[str], expand: Expand, *, split: bool) -> Command:
    path = expand(program)
    if not path:
        raise BadValue(
            "the command is empty", "no space may stand between a prefix and the program" if prefixes else ""
        )
    if not path.isprintable() or any(character in path for character in "\\\"'"):
        raise BadValue(f"the program's name {path!r} holds a quote, a backslash or a control character")
    if path.endswith("/"):
        raise BadValue(f"{path!r} is a folder", "write the path of a program")
    if not path.startswith("/") and ("/" in path or path in (".", "..")):
        raise BadValue(f"{path!r} is a relative path", "write an absolute path, or a name alone to be found in PATH")
    simple = _simplify(path)
    argv0: str | None = None if simple == path else path
    if "@" in prefixes:
        if not words or not words[0]:
            raise BadValue(
                "the prefix @ without a name", "the word after the program is the name that the program sees"
            )
        argv0 = words.pop(0)
    return Command(
        (simple, *words),
        expand=split and ":" not in prefixes,
        ignore_failure="-" in prefixes,
        privileged="+" in prefixes,
        argv0=argv0,
        keeps_user="!" in prefixes,
    )


def _simplify(path: str) -> str:
    """Drop empty and ``.`` parts of an absolute path; ``..`` stays (it may cross a link)."""
    if not path.startswith("/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def command_text(command: Command) -> str:
    """Write a command as a file has it: a line, or the array of an exact argv."""
    marks = ("-" if command.ignore_failure else "") + ("+" if command.privileged else "!" if command.keeps_user else "")
    words = list(command.words)
    if command.argv0 is not None:
        marks, words = marks + "@", [*words[:1], command.argv0, *words[1:]]
    if command.expand:
        return marks + shlex.join(words)
    return json.dumps([marks + "".join(words[:1]), *words[1:]], ensure_ascii=False)


def expand_words(command: Command, environment: Mapping[str, str]) -> list[str]:
    """The argv to execute, variables replaced.

    The program itself is ``command.words[0]``, never expanded; the first word of the result is what the program is told
    its name is (``argv0`` where that is set).

    Args:
        command: Its ``words`` are used as they are unless ``expand``.
        environment: The environment that the process will have.

    Returns:
        At least one word. A word ``$NAME`` becomes as many words as its value has (none when it is unset); ``${NAME}``
        is replaced within its word, by nothing when unset; ``$$`` is ``$``.

    Source: systemd src/basic/env-util.c, replace_env_argv.
    """
    name = command.argv0 if command.argv0 is not None else command.words[0]
    if not command.expand:
        return [name, *command.words[1:]]
    argv = [name]
    for word in command.words[1:]:
        if word.startswith("$") and word[1:2] not in ("$", "{"):
            argv += split_words(environment.get(word[1:], ""))
        else:
            argv.append(_replace_braced(word, environment))
    return argv


_VARIABLE = re.compile(r"\$(?:\{([^:}]*)\}|(\$))")


def _replace_braced(word: str, environment: Mapping[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        return "$" if match[2] else environment.get(match[1], "")

    return _VARIABLE.sub(replacement, word)


def split_words(text: str) -> list[str]:
    """Split the value of a variable into words, as far as it goes: quotes are taken off, one that is not closed ends
    with the text."""
    words: list[str] = []
    position = 0
    while (extracted := extract_word(text, position, unescape=False, relaxed=True)) is not None:
        words.append(extracted[0])
        position = extracted[1]
    return words


def extract_word(text: str, position: int, *, unescape: bool = True, relaxed: bool = False) -> tuple[str, int] | None:
    """Take the next word, quotes off.

    Args:
        text: What is read.
        position: Where to begin.
        unescape: Replace C escapes (an unknown one is an error); without it a backslash makes the next character an
            ordinary one.
        relaxed: An open quote or a backslash at the end is no error.

    Returns:
        The word and the position of what follows, or None when nothing but blanks is left.

    Raises:
        BadValue: An open quote, a backslash at the end, an unknown escape, or escapes that make no UTF-8.

    Source: systemd src/basic/extract-word.c with EXTRACT_UNQUOTE, and EXTRACT_CUNESCAPE for ``unescape``.
    """
    position = _skip_blanks(text, position)
    if position == len(text):
        return None
    word = bytearray()
    quote = ""
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\\":
            if position == len(text):
                if relaxed:
                    break
                raise BadValue("a backslash at the end of the command", "write \\\\ for a backslash")
            if unescape:
                escaped, position = _unescape(text, position)
                word += escaped
            else:
                word += text[position].encode()
                position += 1
        elif quote:
            if character == quote:
                quote = ""
            else:
                word += character.encode()
        elif character in "'\"":
            quote = character
        elif character in _BLANKS:
            position = _skip_blanks(text, position)
            break
        else:
            word += character.encode()
    if quote and not relaxed:
        raise BadValue(f"the quote {quote} is not closed", f"close it, or write \\{quote} for the character itself")
    try:
        return word.decode(), position
    except UnicodeDecodeError:
        raise BadValue(
            "the escapes of a word make no UTF-8", "write the character itself, or \\u with its code point"
        ) from None


def unescape(text: str) -> str:
    """Replace all C escapes of a text.

    Raises:
        BadValue: A backslash that begins none.
    """
    found, position = bytearray(), 0
    while position < len(text):
        if text[position] == "\\":
            if position + 1 == len(text):
                raise BadValue("a backslash at the end", "write \\\\ for a backslash")
            data, position = _unescape(text, position + 1)
            found += data
        else:
            found += text[position].encode(errors="surrogateescape")
            position += 1
    return found.decode(errors="surrogateescape")


def _unescape(text: str, position: int) -> tuple[bytes, int]:
    """The bytes of the escape whose backslash stands before ``position``, and where it ends."""
    short = _SHORT_ESCAPES.get(text[position])
    if short is not None:
        return short, position + 1
    match = _LONG_ESCAPE.match(text, position)
    if match is not None:
        hexadecimal, short_point, long_point, octal = match.groups()
        if hexadecimal or octal:
            code = int(hexadecimal, 16) if hexadecimal else int(octal, 8)
            if 0 < code <= 0xFF:
                return bytes([code]), match.end()
        else:
            code = int(short_point or long_point, 16)
            if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                return chr(code).encode(), match.end()
    raise BadValue(
        f"unknown escape {text[position - 1 : position + 1]!r}",
        "write \\\\ for a backslash (in TOML's double quotes \\\\\\\\, or use single quotes around the command)",
    )


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANKS:
        position += 1
    return position

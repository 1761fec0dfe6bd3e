"""Takes secrets out of what a peer that is not admin is shown of units: settings, the text of unit files, command
lines.

Environment values and credentials are secrets whatever their names, other values when their names or their
surroundings say so (``store.redact`` has the rules, the journal is written by them). In a file the value is replaced
where it stands, so line numbers stay true.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import tomli

from supervisord_py.model.positions import Path, index_positions
from supervisord_py.store.redact import REDACTED, is_secret_name, redact_text, redact_words

WITHHELD = "# this file is no valid TOML, so secrets in it cannot be told apart: its text is shown to admins only\n"

_ALWAYS = frozenset({"environment", "set-credential", "load-credential"})
_STRING = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"""(?:"{1,2})?'
    r"|'''(?:[^']|'(?!''))*'''(?:'{1,2})?"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\s]*")
_STRING_OR_COMMENT = re.compile(rf"(?P<string>{_STRING.pattern})|(?P<comment>#[^\n]*)")
_COMMENTED_OUT = re.compile(r"(?P<start>#+\s*)(?P<name>[A-Za-z_][\w.-]{0,127})(?P<equals>\s*=\s*)\S.*")


def redact_setting(key: str, value: Any) -> Any:
    """Return the value of a setting (a dotted key) without its secrets; containers keep their shape."""
    return _redact_value(tuple(key.split(".")), value)


def redact_change(key: str, text: str | None) -> str | None:
    """Return the value of a changed key (``model.changes``) without its secrets; commands are one a line there."""
    if text is None:
        return None
    if not key.startswith("service.exec-"):
        shown = redact_setting(key, text)
        return shown if isinstance(shown, str) else REDACTED
    return "\n".join(map(_redact_command, text.split("\n")))


def _redact_command(text: str) -> str:
    try:
        if text.startswith("["):
            return json.dumps(redact_words(json.loads(text)), ensure_ascii=False)
        return shlex.join(redact_words(shlex.split(text)))
    except ValueError:  # A word that holds a line break.
        return REDACTED


def redact_file(text: str) -> str:
    """Return the text of a unit file without the secrets in it; ``WITHHELD`` when it is no TOML."""
    try:
        tables = tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError):
        return WITHHELD
    spots = index_positions(text)
    literals: dict[int, tuple[int, str]] = {}
    for path, before, after in _changed((), tables, _redact_value((), tables)):
        spot = spots.get(path)
        match = spot and (_STRING if isinstance(before, str) else _SCALAR).match(text, spot.value)
        if not match:
            return WITHHELD  # What cannot be found cannot be cut out.
        literals[match.start()] = (match.end(), _literal(after, match[0].count("\n")))
    # What stands behind a secret on its line is as likely as not the one before it.
    secret_lines = {text.count("\n", 0, end) for end, _ in literals.values()}
    pieces: list[str] = []
    position = 0
    for begin, (end, literal) in sorted(literals.items()):
        pieces += [text[position:begin], literal]
        position = end
    shown = "".join(pieces) + text[position:]

    def redacted(match: "re.Match[str]") -> str:
        if match["comment"] is not None and shown.count("\n", 0, match.start()) in secret_lines:
            return f"# {REDACTED}"
        return _redact_comment(match)

    return _STRING_OR_COMMENT.sub(redacted, shown)


def _literal(text: str, line_breaks: int) -> str:
    """Return a TOML string of as many lines as the value that it stands for."""
    if not line_breaks:
        return json.dumps(text, ensure_ascii=False)
    return '"""' + json.dumps(text, ensure_ascii=False)[1:-1] + "\n" * line_breaks + '"""'


def _redact_comment(match: "re.Match[str]") -> str:
    comment = match["comment"]
    if comment is None:
        return match[0]
    assignment = _COMMENTED_OUT.fullmatch(comment)
    if assignment and (assignment["name"].isupper() or is_secret_name(assignment["name"], assigned=True)):
        return f"{assignment['start']}{assignment['name']}{assignment['equals']}{REDACTED}"
    return redact_text(comment)


def _redact_value(path: Path, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _redact_value((*path, name), entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        if not _is_secret(path) and value and all(isinstance(entry, str) for entry in value):
            return redact_words(value)
        return [_redact_value((*path, index), entry) for index, entry in enumerate(value)]
    if _is_secret(path) and value is not None and not isinstance(value, bool):
        return REDACTED
    return redact_text(value) if isinstance(value, str) else value


def _is_secret(path: Path) -> bool:
    names = [step for step in path if isinstance(step, str)]
    return not _ALWAYS.isdisjoint(names[1:2]) or any(is_secret_name(name) for name in names)


def _changed(path: Path, before: Any, after: Any) -> Sequence[tuple[Path, Any, Any]]:
    """Return (path, old, new) of every value that is not the same in both."""
    if isinstance(before, Mapping):
        pairs = [((*path, name), entry, after[name]) for name, entry in before.items()]
    elif isinstance(before, list):
        pairs = [((*path, index), entry, after[index]) for index, entry in enumerate(before)]
    else:
        return [] if before == after else [(path, before, after)]
    return [change for step, old, new in pairs for change in _changed(step, old, new)]

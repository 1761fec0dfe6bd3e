"""Takes secrets out of a record's fields before they are encoded: what is never written can never leak.

Three kinds of places hold secrets: a value whose name says so (``db_password``, at any depth), a word of a command line
(``--token=x``, ``--token x``, ``PGPASSWORD=x``), and text (``postgres://user:pass@host``, ``Bearer x``, a PEM key).
Environment values are secrets whatever their names. The rules lean to the safe side, with two exceptions that people
need at night: a bare ``key`` in a record (the key of a unit file) is no secret, nor is a number called ``tokens`` (a
count).

Every pattern here is linear in the text, because agents choose the text.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

REDACTED = "[redacted]"

DEPTH_MAX = 16
"""Deeper values are replaced as a whole: nothing of ours nests that far, and what does may not exhaust the stack."""

_TOO_DEEP = "[too deep]"
_NAME_MAX = 256
_ENVIRONMENTS = frozenset({"env", "environ", "environment"})
_STEMS = ("password", "passwd", "passphrase", "passcode", "secret", "credential", "privatekey", "apikey")
_WORDS = frozenset({"jwt", "cookie", "cookies", "authorization", "bearer"})
_COMPOUND_WORDS = frozenset({"key", "keys", "pass", "pwd", "auth"})
"""Secret as a later word of a name (``api_key``) or as the name of an option or variable, not as a plain field name."""
_ORDINARY = frozenset(
    {"pwd", "oldpwd", "monkey", "donkey", "turkey", "hotkey", "pubkey", "publickey", "hockey", "jockey"}
)

_SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_HINT = re.compile(r"pass|pwd|secret|token|credential|key|auth|bearer|cookie|jwt|://", re.IGNORECASE)
_OPTION = re.compile(r"--?([A-Za-z_][\w.-]{0,127})")
_ASSIGNMENT = re.compile(r"(--?)?([A-Za-z_][\w.-]{0,127})=")
_PAIR = re.compile(
    r"(?<![\w-])(?P<option>--?)?(?P<name>[A-Za-z_][\w.-]{0,127})(?P<sep>=|(?(option)\s{1,8}(?=[^\s-])|(?!)))"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s&;,]+)"
)
_JSON_PAIR = re.compile(r'"(?P<name>[^"\\]{1,128})"(?P<sep>\s{0,8}:\s{0,8})"(?:[^"\\]|\\.)*"')
_USER_INFO = re.compile(r"(://[^\s/:@]{0,128}):[^\s/@]{1,512}@")
_BEARER = re.compile(r"\b(Bearer\s{1,8})\S{4,}", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"\b((?:Proxy-)?Authorization:\s{0,8}\w{1,32}\s{1,8})\S+", re.IGNORECASE)
_COOKIE = re.compile(r"\b((?:Set-)?Cookie:\s{0,8})[^\r\n\"']+", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,64}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,64}PRIVATE KEY-----|\Z)", re.DOTALL)


def is_secret_name(name: str, *, assigned: bool = False) -> bool:
    """Say whether a value of this name is a secret.

    Args:
        name: A field's name, a variable or an option without its dashes; any spelling (``apiKey``, ``API_KEY``,
            ``api-key``).
        assigned: The name is a variable's or an option's, where a bare ``key`` or ``pass`` counts as well.
    """
    return _kind(name, assigned=assigned) is not None


def redact(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with every secret replaced by ``REDACTED``; names, shapes and all other values stay."""
    return {name: _redact_named(name, value, DEPTH_MAX) for name, value in fields.items()}


def redact_words(words: Sequence[str]) -> list[str]:
    """Return a command line without its secrets: ``--token=x``, ``--token x`` and ``NAME=x`` keep their names only."""
    redacted: list[str] = []
    value_follows = False
    for word in words:
        option = _OPTION.fullmatch(word)
        if value_follows and not word.startswith("--"):
            redacted.append(REDACTED)
            value_follows = False
            continue
        value_follows = option is not None and is_secret_name(option[1], assigned=True)
        assignment = _ASSIGNMENT.match(word)
        if assignment is not None and is_secret_name(assignment[2], assigned=True):
            redacted.append(assignment[0] + REDACTED)
        else:
            redacted.append(redact_text(word))
    return redacted


def redact_text(text: str) -> str:
    """Return a text without the secrets that can be told from their surroundings."""
    if _HINT.search(text) is None:
        return text
    text = _PEM.sub(REDACTED, text)
    text = _USER_INFO.sub(rf"\1:{REDACTED}@", text)
    text = _AUTHORIZATION.sub(rf"\1{REDACTED}", text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    text = _COOKIE.sub(rf"\1{REDACTED}", text)
    text = _JSON_PAIR.sub(_redact_json_pair, text)
    return _PAIR.sub(_redact_pair, text)


def _redact_pair(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"], assigned=True):
        return match[0]
    return f"{match['option'] or ''}{match['name']}{match['sep']}{REDACTED}"


def _redact_json_pair(match: re.Match[str]) -> str:
    if not is_secret_name(match["name"]):
        return match[0]
    return f'"{match["name"]}"{match["sep"]}"{REDACTED}"'


def _redact_named(name: str, value: Any, depth: int) -> Any:
    if not isinstance(name, str):
        return _redact_value(value, depth)
    if name.lower() in _ENVIRONMENTS:
        return _redact_environment(value)
    kind = _kind(name, assigned=False)
    if kind is None or value is None or isinstance(value, bool):
        return _redact_value(value, depth)
    if kind == "text" and isinstance(value, int | float):
        return value
    return REDACTED


def _redact_value(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        if depth == 0:
            return _TOO_DEEP
        return {name: _redact_named(name, entry, depth - 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        if depth == 0:
            return _TOO_DEEP
        if value and all(isinstance(entry, str) for entry in value):
            return redact_words(value)
        return [_redact_value(entry, depth - 1) for entry in value]
    return value


def _redact_environment(value: Any) -> Any:
    """Keep the names of variables, whatever form the environment has."""
    if isinstance(value, Mapping):
        return dict.fromkeys(value, REDACTED)
    if isinstance(value, list | tuple):
        return [_redact_variable(entry) for entry in value]
    return value if value is None else REDACTED


def _redact_variable(entry: Any) -> str:
    if isinstance(entry, str) and "=" in entry:
        return entry.partition("=")[0] + "=" + REDACTED
    if isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str):
        return entry[0] + "=" + REDACTED
    return REDACTED


def _kind(name: str, *, assigned: bool) -> str | None:
    """Classify a name: ``always`` a secret, a secret as ``text`` but a count as a number, or None."""
    return _classify(name[-_NAME_MAX:], assigned)


@lru_cache(maxsize=2048)
def _classify(name: str, assigned: bool) -> str | None:
    if name.lower() in _ORDINARY:
        return None
    words = [word.lower() for word in _SPLIT.findall(name)]
    joined = "".join(words)
    if any(stem in joined for stem in _STEMS) or not _WORDS.isdisjoint(words):
        return "always"
    if any(word.endswith(("token", "tokens")) for word in words):
        return "text"
    if "public" in words:
        return None
    later = words if assigned else words[1:]
    if not _COMPOUND_WORDS.isdisjoint(later):
        return "always"
    if any(word.endswith("key") and word != "key" and word not in _ORDINARY for word in words):
        return "always"
    return None

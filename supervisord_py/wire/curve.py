"""Keys of CURVE, the encryption of ZeroMQ: the text of a certificate to values and back.

The files are those of pyzmq and czmq (``zmq.auth``): ``NAME.key`` has the public key, ``NAME.key_secret`` both. A key
is 32 bytes in Z85, 40 characters.

Source: rfc.zeromq.org/spec/26 (CurveZMQ), rfc.zeromq.org/spec/32 (Z85); pyzmq, zmq/auth/certs.py.
"""

import re

from msgspec import Struct

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"

SERVER = "server"
"""The name of the supervisor's own key, in its folder and in that of a client."""

CLIENT = "client"
"""The name of the key that ``supctl`` shows."""

REMOTE_FOLDER = "remote"
"""The folder beside ``supervisord.toml`` where keys for remote access are made, and looked for."""

NAME_MAX = 64

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_DIGITS = {character: place for place, character in enumerate(_ALPHABET)}
_KEY_CHARACTERS = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", re.ASCII)
_LINE = re.compile(r"\s*(public-key|secret-key)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|(\S*))\s*")


class CurveError(Exception):
    """A text that is no certificate or key; the message says why."""


class Certificate(Struct, frozen=True):
    """The keys of one file, in Z85; ``secret`` None: the file has only the public one."""

    public: str
    secret: str | None = None


def is_key_name(name: str) -> bool:
    """Whether a key may be called so: its file is ``NAME.key``, and its messages are from ``key/NAME``."""
    return len(name) <= NAME_MAX and _NAME.fullmatch(name) is not None


def parse_certificate(text: str) -> Certificate:
    """Read the file of a key.

    Raises:
        CurveError: It is none.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        if (match := _LINE.fullmatch(line)) is not None:
            if match[1] in found:
                raise CurveError(f"{match[1]} stands in it twice")
            found[match[1]] = check_key(next(part for part in match.groups()[1:] if part is not None))
    if "public-key" not in found:
        raise CurveError("no CURVE certificate: it has no line public-key")
    return Certificate(found["public-key"], found.get("secret-key"))


def format_certificate(certificate: Certificate, name: str) -> str:
    """Return the file of a key."""
    if certificate.secret is None:
        head = f"CURVE public key of {name}: for the keys folder of a supervisor, or for its clients."
    else:
        head = f"CURVE SECRET key of {name}: whoever reads this file can act with it."
    lines = [f"#   {head}", "", "metadata", f'    name = "{name}"', "curve", f'    public-key = "{certificate.public}"']
    if certificate.secret is not None:
        lines.append(f'    secret-key = "{certificate.secret}"')
    return "\n".join(lines) + "\n"


def check_key(text: str) -> str:
    """Return a key, if it is one.

    Raises:
        CurveError: It is none.
    """
    if len(text) != _KEY_CHARACTERS or not all(character in _DIGITS for character in text):
        raise CurveError(f"a key is {_KEY_CHARACTERS} characters of Z85")
    for start in range(0, _KEY_CHARACTERS, 5):
        value = 0
        for character in text[start : start + 5]:
            value = value * 85 + _DIGITS[character]
        if value >> 32:
            raise CurveError("a key is 32 bytes in Z85, and this is more")
    return text

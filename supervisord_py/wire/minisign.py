"""minisign files: keys, detached signatures and what a trusted comment says; text <-> values.

Strict: what is read is what would be written, but for the untrusted comment and the end of lines; so no byte of a
signature can be changed without being noticed. The cryptography is in ``host.signing``.

Source: https://jedisct1.github.io/minisign/, "Signature format", "Public key format", "Secret key format".
"""

import binascii
import re
from base64 import b64decode, b64encode
from hashlib import blake2b

from msgspec import Struct

PREHASHED = b"ED"
LEGACY = b"Ed"
_SCRYPT = b"Sc"
_NO_KDF = b"\0\0"
_BLAKE2B = b"B2"
_UNTRUSTED = "untrusted comment: "
_TRUSTED = "trusted comment: "
_SECRET = 158
_SALT = 32
SEALED = 104
"""Bytes of a secret key as it lies in its file: key id, key and checksum, under the password."""

TEXT_MAX = 16 * 1024
COMMENT_MAX = 8000
"""minisign reads a trusted comment of 8192 bytes at most."""


class MinisignError(ValueError):
    """A file that is not what it should be; the message says what is wrong."""


class PublicKey(Struct, frozen=True):
    """``key_id`` is None for a bare key, which says nothing of its name."""

    key: bytes
    key_id: bytes | None = None

    @property
    def name(self) -> str:
        return "without an id" if self.key_id is None else key_name(self.key_id)


class SecretKey(Struct, frozen=True):
    """``key`` is the seed and the public key behind it, 64 bytes."""

    key_id: bytes
    key: bytes

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.key[32:], self.key_id)


class Derivation(Struct, frozen=True):
    """How a password becomes the stream that a secret key is sealed with (scrypt, in libsodium's terms)."""

    salt: bytes
    ops_limit: int
    memory_limit: int


class SealedKey(Struct, frozen=True):
    """A secret key as it lies in its file; without ``derivation`` it is not encrypted."""

    sealed: bytes
    derivation: Derivation | None = None


class Signature(Struct, frozen=True):
    """``signature`` is over the file, or over its BLAKE2b-512 hash; ``global_signature`` over that and the comment."""

    key_id: bytes
    signature: bytes
    trusted_comment: str
    global_signature: bytes
    prehashed: bool = True

    @property
    def covered(self) -> bytes:
        """What the global signature is over."""
        return self.signature + self.trusted_comment.encode()


def key_name(key_id: bytes) -> str:
    """Return a key's id as minisign prints it."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


# keys


def parse_public_key(text: str) -> PublicKey:
    """Read a public key: its file, or the one line of it that counts, or 32 bare bytes in base64.

    Raises:
        MinisignError: It is none of these.
    """
    lines = _lines(text)
    if len(lines) == 2 and lines[0].startswith(_UNTRUSTED):
        lines = lines[1:]
    if len(lines) != 1:
        raise MinisignError("not a public key of minisign: a comment and one line are in its file")
    data = _decode(lines[0], "the public key")
    if len(data) == 32:
        return PublicKey(data)
    if len(data) != 42 or data[:2] != LEGACY:
        raise MinisignError("not a public key of minisign: the line is not Ed25519 and 42 bytes long")
    return PublicKey(data[10:], data[2:10])


def format_public_key(key: PublicKey) -> str:
    """Return the file of a public key that has an id."""
    assert key.key_id is not None, "a bare key has no file"
    return f"{_UNTRUSTED}minisign public key {key.name}\n{_encode(LEGACY + key.key_id + key.key)}\n"


def parse_sealed_key(text: str) -> SealedKey:
    """Read the file of a secret key.

    Raises:
        MinisignError: It is none.
    """
    lines = _lines(text)
    if len(lines) != 2 or not lines[0].startswith(_UNTRUSTED):
        raise MinisignError("not a secret key of minisign: a comment and one line are in its file")
    data = _decode(lines[1], "the secret key")
    if len(data) != _SECRET or data[:2] != LEGACY or data[4:6] != _BLAKE2B or data[2:4] not in (_SCRYPT, _NO_KDF):
        raise MinisignError("not a secret key of minisign: the line is not Ed25519, scrypt, BLAKE2b and 158 bytes long")
    if data[2:4] == _NO_KDF:
        return SealedKey(data[54:])
    salt, limits = data[6:38], data[38:54]
    return SealedKey(
        data[54:], Derivation(salt, int.from_bytes(limits[:8], "little"), int.from_bytes(limits[8:], "little"))
    )


def format_sealed_key(key: SealedKey) -> str:
    """Return the file of a secret key."""
    own = key.derivation
    head = LEGACY + (_NO_KDF if own is None else _SCRYPT) + _BLAKE2B
    if own is None:
        head += bytes(_SALT + 16)
    else:
        head += own.salt + own.ops_limit.to_bytes(8, "little") + own.memory_limit.to_bytes(8, "little")
    kind = "secret key" if own is None else "encrypted secret key"
    return f"{_UNTRUSTED}minisign {kind}\n{_encode(head + key.sealed)}\n"


def encrypt(key: SecretKey, stream: bytes) -> bytes:
    """Return what stands in the file of an encrypted key; ``stream`` is what the password gives."""
    return _xor(key.key_id + key.key + _checksum(key), stream)


def decrypt(sealed: bytes, stream: bytes) -> SecretKey:
    """Undo ``encrypt``.

    Raises:
        MinisignError: The checksum is wrong: another password, or a damaged file.
    """
    data = _xor(sealed, stream)
    key = SecretKey(data[:8], data[8:72])
    if data[72:] != _checksum(key):
        raise MinisignError("the password is wrong, or the file of the secret key is damaged")
    return key


def lay_open(key: SecretKey) -> SealedKey:
    """Return the file of a key without a password: as minisign's, it has no checksum."""
    return SealedKey(key.key_id + key.key + bytes(32))


def laid_open(key: SealedKey) -> SecretKey:
    """Undo ``lay_open``; nothing says whether the file is damaged."""
    return SecretKey(key.sealed[:8], key.sealed[8:72])


def _checksum(key: SecretKey) -> bytes:
    return blake2b(LEGACY + key.key_id + key.key, digest_size=32).digest()


def _xor(data: bytes, stream: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, stream, strict=True))


# signatures


def parse_signature(text: str) -> Signature:
    """Read a signature file.

    Raises:
        MinisignError: It is none.
    """
    lines = _lines(text)
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise MinisignError("not a signature of minisign: comment, signature, trusted comment and one more signature")
    data, over_all = _decode(lines[1], "the signature"), _decode(lines[3], "the global signature")
    if len(data) != 74 or data[:2] not in (PREHASHED, LEGACY) or len(over_all) != 64:
        raise MinisignError("not a signature of minisign: it is not Ed25519, 74 and 64 bytes long")
    comment = lines[2].removeprefix(_TRUSTED)
    return Signature(data[2:10], data[10:], comment, over_all, prehashed=data[:2] == PREHASHED)


def format_signature(signature: Signature, comment: str) -> str:
    """Return the signature file; ``comment`` is the one that nothing protects."""
    head = (PREHASHED if signature.prehashed else LEGACY) + signature.key_id
    return (
        f"{_UNTRUSTED}{comment}\n{_encode(head + signature.signature)}\n"
        f"{_TRUSTED}{signature.trusted_comment}\n{_encode(signature.global_signature)}\n"
    )


def _lines(text: str) -> list[str]:
    if len(text) > TEXT_MAX:
        raise MinisignError(f"longer than {TEXT_MAX // 1024} KiB")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def _decode(line: str, what: str) -> bytes:
    try:
        data = b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise MinisignError(f"{what} is not base64") from None
    if _encode(data) != line:
        raise MinisignError(f"{what} is not base64 as it should be written")
    return data


def _encode(data: bytes) -> str:
    return b64encode(data).decode()


# what a trusted comment says

_TIMESTAMP_DIGITS = 18
_FIELD = re.compile(r"([a-z]+):(.*)", re.DOTALL)


class Claims(Struct, frozen=True):
    """What the signer says of the file: tab-separated ``field:value``, as minisign itself writes ``timestamp:``.

    ``timestamp`` is in seconds since 1970; ``name`` and ``version`` are a wheel's; ``units`` are those that it defines.
    """

    timestamp: int = 0
    file: str = ""
    name: str = ""
    version: str = ""
    units: tuple[str, ...] = ()
    comment: str = ""


def parse_claims(comment: str) -> Claims:
    """Read a trusted comment; fields of others are left alone.

    Raises:
        MinisignError: One of ours stands in it twice, or is not what it should be.
    """
    fields: dict[str, str] = {}
    for part in comment.split("\t"):
        match = _FIELD.fullmatch(part)
        if match is None:
            continue
        if match[1] in fields:
            raise MinisignError(f"the trusted comment says {match[1]} twice")
        fields[match[1]] = match[2]
    timestamp = fields.get("timestamp", "0")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= _TIMESTAMP_DIGITS):
        raise MinisignError("the timestamp in the trusted comment is not a number")
    return Claims(
        timestamp=int(timestamp),
        file=fields.get("file", ""),
        name=fields.get("name", ""),
        version=fields.get("version", ""),
        units=tuple(fields["units"].split(",")) if fields.get("units") else (),
        comment=fields.get("comment", ""),
    )


def format_claims(claims: Claims) -> str:
    """Return the trusted comment.

    Raises:
        MinisignError: A value cannot stand in it, or it is too long.
    """
    fields = {"timestamp": str(claims.timestamp), "file": claims.file, "name": claims.name, "version": claims.version}
    fields |= {"units": ",".join(claims.units), "comment": claims.comment}
    for name, value in fields.items():
        if not value.isprintable():
            raise MinisignError(f"the {name} has characters that a comment cannot have: {value!r}")
    text = "\t".join(f"{name}:{value}" for name, value in fields.items() if value)
    if len(text.encode()) > COMMENT_MAX:
        raise MinisignError(f"the trusted comment is longer than {COMMENT_MAX} bytes")
    return text

"""Ed25519 signatures over files: made, verified, and by whose keys.

The files are minisign's (``wire.minisign``), the cryptography is libsodium's, by PyNaCl, which is imported only where
something is signed or verified. Keys that may sign lie as ``*.pub`` in a folder that belongs to root or to the
supervisor and that nobody else may write, nor any folder above it; no key is built in.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence

from msgspec import Struct

from supervisord_py.host.trusted_files import FileRefused, TrustedReader, key_owners
from supervisord_py.wire.minisign import (
    SEALED,
    Derivation,
    MinisignError,
    PublicKey,
    SealedKey,
    SecretKey,
    Signature,
    decrypt,
    encrypt,
    key_name,
    laid_open,
    lay_open,
    parse_public_key,
)

KEY_VARIABLE = "AGENT_WHEEL_PUBKEY"
"""A key besides those of the folder: the line of a ``.pub`` file, or 32 bare bytes in base64."""

KEY_SUFFIX = ".pub"
SIGNATURE_SUFFIX = ".minisig"
OPS_LIMIT, MEMORY_LIMIT = 33_554_432, 1_073_741_824
"""What minisign asks of a password: a few seconds and a gibibyte."""

_OPS_MIN, _MEMORY_MIN = 32_768, 16_777_216
_MEMORY_MAX = 4 * MEMORY_LIMIT


class SignatureRefused(Exception):
    """A signature that does not hold: why."""


class Keyring(Struct, frozen=True):
    """The keys that may sign; ``problems`` say what was not taken, ``where`` how people find the folder."""

    keys: tuple[PublicKey, ...] = ()
    problems: tuple[str, ...] = ()
    where: str = ""


def read_keyring(folder: str, environment: Mapping[str, str]) -> Keyring:
    """Read the keys of a folder, and the one of the environment."""
    keys: list[PublicKey] = []
    problems: list[str] = []
    reader = TrustedReader(key_owners())
    try:
        names = [name for name in reader.list(folder) if name.endswith(KEY_SUFFIX) and not name.startswith(".")]
    except (OSError, FileRefused) as error:
        names = []
        if not (isinstance(error, FileNotFoundError) and KEY_VARIABLE in environment):
            problems.append(f"the keys in {folder} are not used: {_why(error)}")
    for name in names:
        path = os.path.join(folder, name)
        try:
            keys.append(parse_public_key(reader.read(path)))
        except (OSError, FileRefused, MinisignError) as error:
            problems.append(f"the key {path} is not used: {_why(error)}")
    if KEY_VARIABLE in environment:
        try:
            keys.append(parse_public_key(environment[KEY_VARIABLE].strip()))
        except MinisignError as error:
            problems.append(f"{KEY_VARIABLE} is not used: {error}")
    return Keyring(tuple(keys), tuple(problems), folder)


def _why(error: Exception) -> str:
    if isinstance(error, FileRefused):
        return f"{error.message}; {error.hint}" if error.hint else error.message
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)


def verify(data: bytes, signature: Signature, keyring: Keyring) -> PublicKey:
    """Return the key that has signed these bytes and the trusted comment.

    Raises:
        SignatureRefused: None of the keys has.
    """
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import BadSignatureError

    candidates = [key for key in keyring.keys if key.key_id in (None, signature.key_id)]
    if not candidates:
        known = ", ".join(key.name for key in keyring.keys) or "none"
        detail = f"; {keyring.problems[0]}" if keyring.problems else ""
        raise SignatureRefused(
            f"signed by the key {key_name(signature.key_id)}, which is not trusted (keys in {keyring.where}: {known}"
            f"{detail})"
        )
    message = hashlib.blake2b(data).digest() if signature.prehashed else data
    for key in candidates:
        try:
            crypto_sign_open(signature.signature + message, key.key)
        except BadSignatureError:
            continue
        try:
            crypto_sign_open(signature.global_signature + signature.covered, key.key)
        except BadSignatureError:
            raise SignatureRefused("the trusted comment is not the one that was signed") from None
        return key
    raise SignatureRefused(f"the signature by {key_name(signature.key_id)} is not one of this file: it was changed")


def sign(data: bytes, key: SecretKey, trusted_comment: str) -> Signature:
    """Sign these bytes, hashed first, and the comment."""
    from nacl.bindings import crypto_sign

    signature = crypto_sign(hashlib.blake2b(data).digest(), key.key)[:64]
    covered = Signature(key.key_id, signature, trusted_comment, b"").covered
    return Signature(key.key_id, signature, trusted_comment, crypto_sign(covered, key.key)[:64])


# keys


def make_key() -> SecretKey:
    """Make a new key with a random id."""
    from nacl.bindings import crypto_sign_keypair

    return SecretKey(os.urandom(8), crypto_sign_keypair()[1])


def seal_key(
    key: SecretKey, password: bytes | None, *, ops_limit: int = OPS_LIMIT, memory_limit: int = MEMORY_LIMIT
) -> SealedKey:
    """Return what is written into a secret key's file; with a password of which deriving takes so much.

    Where there is not so much memory less is asked for, as minisign does.

    Raises:
        MinisignError: There is no memory even for the least.
    """
    if password is None:
        return lay_open(key)
    while True:
        derivation = Derivation(os.urandom(32), ops_limit, memory_limit)
        try:
            return SealedKey(encrypt(key, _stream(password, derivation)), derivation)
        except MemoryError:
            ops_limit, memory_limit = ops_limit // 2, memory_limit // 2
            if ops_limit < _OPS_MIN or memory_limit < _MEMORY_MIN:
                raise MinisignError("there is not enough memory to encrypt a key") from None


def unseal_key(key: SealedKey, password: bytes | None) -> SecretKey:
    """Return the secret key of a file.

    Raises:
        MinisignError: The password is wrong, or missing, or there is no memory for it.
    """
    if key.derivation is None:
        from nacl.bindings import crypto_sign_seed_keypair

        opened = laid_open(key)
        if crypto_sign_seed_keypair(opened.key[:32])[0] != opened.public.key:
            raise MinisignError("the file of the secret key is damaged")
        return opened
    if password is None:
        raise MinisignError("the secret key is encrypted, and there is no password")
    try:
        return decrypt(key.sealed, _stream(password, key.derivation))
    except MemoryError:
        needed = key.derivation.memory_limit // (1024 * 1024)
        raise MinisignError(f"the password of this key takes {needed} MiB of memory, which there is not") from None


def _stream(password: bytes, derivation: Derivation) -> bytes:
    """Return what a password gives: libsodium's crypto_pwhash_scryptsalsa208sha256."""
    from nacl.bindings import crypto_pwhash_scryptsalsa208sha256_ll, nacl_bindings_pick_scrypt_params
    from nacl.exceptions import CryptoError

    if derivation.memory_limit > _MEMORY_MAX or derivation.ops_limit < 1 or derivation.memory_limit < 1:
        raise MinisignError("the secret key asks for an impossible amount of memory")
    picked: Sequence[int] = nacl_bindings_pick_scrypt_params(derivation.ops_limit, derivation.memory_limit)
    log_n, block, parallel = picked
    try:
        stream: bytes = crypto_pwhash_scryptsalsa208sha256_ll(
            password,
            derivation.salt,
            2**log_n,
            block,
            parallel,
            dklen=SEALED,
            maxmem=derivation.memory_limit + 65_536,
        )
    except (CryptoError, RuntimeError):
        raise MemoryError from None
    return stream

"""Certificates of CURVE: what is written is read, by us and by pyzmq, and nothing else is."""

from pathlib import Path

import pytest
import zmq
import zmq.auth

from supervisord_py.wire.curve import (
    Certificate,
    CurveError,
    check_key,
    format_certificate,
    is_key_name,
    parse_certificate,
)


@pytest.fixture
def pair() -> Certificate:
    public, secret = zmq.curve_keypair()
    return Certificate(public.decode(), secret.decode())


def test_what_is_written_is_read_by_us_and_by_pyzmq(pair: Certificate, tmp_path: Path) -> None:
    """Both files of a key, the public one without the secret."""
    secret_path, public_path = tmp_path / "alice.key_secret", tmp_path / "alice.key"
    secret_path.write_text(format_certificate(pair, "alice"))
    public_path.write_text(format_certificate(Certificate(pair.public), "alice"))
    assert parse_certificate(secret_path.read_text()) == pair
    assert parse_certificate(public_path.read_text()) == Certificate(pair.public)
    assert pair.secret is not None
    assert pair.secret not in public_path.read_text()
    keys = (pair.public.encode(), pair.secret.encode())
    assert zmq.auth.load_certificate(secret_path) == keys
    assert zmq.auth.load_certificate(public_path) == (keys[0], None)


def test_what_pyzmq_has_made_is_read(tmp_path: Path) -> None:
    """The files of ``zmq.auth.create_certificates``."""
    public_path, secret_path = zmq.auth.create_certificates(tmp_path, "bob", {"who": "somebody"})
    public, secret = zmq.auth.load_certificate(secret_path)
    assert secret is not None
    assert parse_certificate(Path(secret_path).read_text()) == Certificate(public.decode(), secret.decode())
    assert parse_certificate(Path(public_path).read_text()) == Certificate(public.decode())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text.replace("public-key", "public"),
        lambda text: text.replace('    public-key = "', '    public-key = "x'),
        lambda text: text[:-3],
        lambda text: text + text,
        lambda text: "# " + text.replace("\n", "\n# "),
    ],
    ids=["empty", "no key", "too long", "cut", "twice", "all comment"],
)
def test_what_is_no_certificate_is_refused(pair: Certificate, spoil) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CurveError):
        parse_certificate(spoil(format_certificate(Certificate(pair.public), "alice")))


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "#" * 40, "ä" * 40, " " + "a" * 39, "a" * 39 + "~"])
def test_what_is_no_key_is_refused(text: str) -> None:
    """Length, alphabet, and groups above 32 bits, which no 32 bytes make."""
    with pytest.raises(CurveError):
        check_key(text)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("alice", True), ("ops-1.example_org@x", True), ("0", True), ("a" * 64, True),
        ("", False), ("-a", False), (".a", False), ("a/b", False), ("a b", False), ("ä", False), ("a" * 65, False),
        ("a*", False), ("a\n", False),
    ],
)  # fmt: skip
def test_names_of_keys(name: str, is_one: bool) -> None:
    """A name is a file's, and no pattern."""
    assert is_key_name(name) is is_one

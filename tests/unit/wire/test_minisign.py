"""minisign files: what is read is what was written, and nothing else is read."""

from pathlib import Path

import pytest

from supervisord_py.wire import minisign
from supervisord_py.wire.minisign import Claims, MinisignError

DATA = Path(__file__).parents[2] / "data" / "minisign"


def text(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["plain.pub", "encrypted.pub"])
def test_a_public_key_of_minisign_is_written_as_it_was_read(name: str) -> None:
    key = minisign.parse_public_key(text(name))
    assert minisign.format_public_key(key) == text(name)
    assert key.name in text(name)
    assert minisign.parse_public_key(text(name).splitlines()[1]) == key, "the line alone"


@pytest.mark.parametrize("name", ["plain.key", "encrypted.key"])
def test_a_secret_key_of_minisign_is_written_as_it_was_read(name: str) -> None:
    key = minisign.parse_sealed_key(text(name))
    assert (key.derivation is None) == (name == "plain.key")
    assert minisign.format_sealed_key(key).splitlines()[1] == text(name).splitlines()[1]


@pytest.mark.parametrize(("name", "prehashed"), [("prehashed", True), ("legacy", False), ("encrypted", True)])
def test_a_signature_of_minisign_is_written_as_it_was_read(name: str, prehashed: bool) -> None:
    signature = minisign.parse_signature(text(f"{name}.minisig"))
    assert signature.prehashed is prehashed
    assert minisign.format_signature(signature, "signature from minisign secret key") == text(f"{name}.minisig")


def test_a_signature_is_read_with_the_line_ends_of_others() -> None:
    own = minisign.parse_signature(text("legacy.minisig"))
    assert minisign.parse_signature(text("legacy.minisig").replace("\n", "\r\n")) == own
    assert minisign.parse_signature(text("legacy.minisig").removesuffix("\n")) == own


def test_every_truncated_signature_is_refused() -> None:
    whole = text("prehashed.minisig").removesuffix("\n")
    for length in range(len(whole)):
        with pytest.raises(MinisignError):
            minisign.parse_signature(whole[:length])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda good: good + "one more\n", "not a signature"),
        (lambda good: good.replace("untrusted comment:", "comment:"), "not a signature"),
        (lambda good: good.replace("\nRU", "\nRV"), "not Ed25519"),
        (lambda good: good.replace("jewg=\n", "jewh=\n"), "not base64 as it should be written"),
        (lambda good: good.replace("jewg=\n", "jew !\n"), "the signature is not base64"),
        (lambda good: good + "x" * minisign.TEXT_MAX, "longer than 16 KiB"),
    ],
)  # fmt: skip
def test_what_is_no_signature_is_refused_with_its_reason(wrong, message: str) -> None:  # type: ignore[no-untyped-def]
    good = text("prehashed.minisig")
    assert wrong(good) != good
    with pytest.raises(MinisignError, match=message):
        minisign.parse_signature(wrong(good))


@pytest.mark.parametrize(
    "wrong", ["", "RWQ", "untrusted comment: a\nuntrusted comment: b\n", "A" * 56, "A" * 43 + "B" + "=" * 4]
)
def test_what_is_no_key_is_refused(wrong: str) -> None:
    with pytest.raises(MinisignError):
        minisign.parse_public_key(wrong)
    with pytest.raises(MinisignError):
        minisign.parse_sealed_key(wrong)


def test_a_bare_key_has_no_id() -> None:
    assert minisign.parse_public_key("A" * 43 + "=").key_id is None


def test_claims_are_read_as_they_were_written() -> None:
    claims = Claims(5, "a.whl", "a", "1.0", ("x", "y@1"), "a: remark, with all: signs")
    assert minisign.parse_claims(minisign.format_claims(claims)) == claims
    assert minisign.parse_claims("timestamp:7\tfile:b\thashed") == Claims(7, "b"), "minisign's own"


@pytest.mark.parametrize(
    "comment", ["name:a\tname:b", "timestamp:soon", "timestamp:-1", "timestamp:" + "9" * 5000, "timestamp:\u0665"]
)
def test_claims_that_could_be_read_in_two_ways_are_refused(comment: str) -> None:
    with pytest.raises(MinisignError):
        minisign.parse_claims(comment)


@pytest.mark.parametrize("comment", ["a\tname:other", "a\nb", "x" * 8001])
def test_a_comment_that_could_say_something_else_is_not_written(comment: str) -> None:
    with pytest.raises(MinisignError):
        minisign.format_claims(Claims(comment=comment))

"""Signatures: ours, minisign's, and what was changed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisord_py.cli import main
from supervisord_py.host import signing
from supervisord_py.host.signing import Keyring, SignatureRefused
from supervisord_py.testing.wheels import wheel_bytes
from supervisord_py.wire import minisign
from supervisord_py.wire.minisign import MinisignError

DATA = Path(__file__).parents[2] / "data" / "minisign"
MESSAGE = (DATA / "message.txt").read_bytes()
PLAIN = minisign.parse_public_key((DATA / "plain.pub").read_text())
ENCRYPTED = minisign.parse_public_key((DATA / "encrypted.pub").read_text())
CHEAP = {"ops_limit": 32_768, "memory_limit": 16_777_216}
MINISIGN = shutil.which("minisign")
needs_minisign = pytest.mark.skipif(MINISIGN is None, reason="minisign is not installed (apt-get install minisign)")


def signature(name: str) -> str:
    return (DATA / f"{name}.minisig").read_text()


@pytest.mark.parametrize(("name", "key"), [("prehashed", PLAIN), ("legacy", PLAIN), ("encrypted", ENCRYPTED)])
def test_a_signature_made_by_minisign_holds(name: str, key: minisign.PublicKey) -> None:
    assert signing.verify(MESSAGE, minisign.parse_signature(signature(name)), Keyring((ENCRYPTED, PLAIN))) == key
    bare = minisign.PublicKey(key.key)
    assert signing.verify(MESSAGE, minisign.parse_signature(signature(name)), Keyring((bare,))) == bare


@pytest.mark.parametrize("name", ["prehashed", "legacy"])
def test_a_signature_holds_for_no_other_bytes_comment_or_key(name: str) -> None:
    good = minisign.parse_signature(signature(name))
    with pytest.raises(SignatureRefused, match="it was changed"):
        signing.verify(MESSAGE + b"\n", good, Keyring((PLAIN,)))
    other = minisign.parse_signature(signature("legacy" if name == "prehashed" else "prehashed"))
    swapped = minisign.Signature(
        good.key_id, good.signature, other.trusted_comment, good.global_signature, good.prehashed
    )
    with pytest.raises(SignatureRefused, match="the trusted comment is not the one"):
        signing.verify(MESSAGE, swapped, Keyring((PLAIN,)))
    with pytest.raises(SignatureRefused, match=f"by the key {PLAIN.name}, which is not trusted"):
        signing.verify(MESSAGE, good, Keyring((ENCRYPTED,), where="/keys"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bit_of_a_signature_can_be_flipped(data: st.DataObject) -> None:
    """Whichever bit of what counts is another: it is refused, or was never read."""
    lines = signature(data.draw(st.sampled_from(["prehashed", "legacy"]))).encode().split(b"\n")
    number = data.draw(st.sampled_from([1, 2, 3]))
    place = data.draw(st.integers(0, len(lines[number]) - 1))
    changed = bytearray(lines[number])
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    lines[number] = bytes(changed)
    with pytest.raises((SignatureRefused, MinisignError, UnicodeDecodeError)):
        signing.verify(MESSAGE, minisign.parse_signature(b"\n".join(lines).decode()), Keyring((PLAIN,)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.data())
def test_no_byte_of_a_file_can_be_changed(content: bytes, data: st.DataObject) -> None:
    key = signing.make_key()
    good = signing.sign(content, key, "said")
    assert signing.verify(content, good, Keyring((key.public,))) == key.public
    changed = data.draw(st.binary(max_size=200).filter(lambda other: other != content))
    with pytest.raises(SignatureRefused):
        signing.verify(changed, good, Keyring((key.public,)))


def test_a_key_file_is_opened_with_its_password_alone() -> None:
    key = signing.make_key()
    sealed = minisign.parse_sealed_key(minisign.format_sealed_key(signing.seal_key(key, b"secret", **CHEAP)))
    assert signing.unseal_key(sealed, b"secret") == key
    for password in (b"wrong", None):
        with pytest.raises(MinisignError, match="password"):
            signing.unseal_key(sealed, password)


def test_the_key_of_minisign_signs_what_its_public_key_verifies() -> None:
    key = signing.unseal_key(minisign.parse_sealed_key((DATA / "plain.key").read_text()), None)
    assert signing.verify(MESSAGE, signing.sign(MESSAGE, key, "said"), Keyring((PLAIN,))) == PLAIN
    damaged = minisign.SealedKey(minisign.lay_open(key).sealed[:20] + bytes(84))
    with pytest.raises(MinisignError, match="damaged"):
        signing.unseal_key(damaged, None)


# keys that are trusted


def test_keys_are_read_from_a_folder_and_the_environment(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o755)
    shutil.copy(DATA / "plain.pub", keys)
    (keys / "bad.pub").write_text("nothing\n")
    (keys / "plain.key").write_text("not a public key, and not looked at\n")
    ring = signing.read_keyring(str(keys), {signing.KEY_VARIABLE: (DATA / "encrypted.pub").read_text().split("\n")[1]})
    assert ring.keys == (PLAIN, ENCRYPTED)
    (problem,) = ring.problems
    assert problem.startswith(f"the key {keys}/bad.pub is not used: ")
    none = signing.read_keyring(str(tmp_path / "none"), {})
    assert none.keys == ()
    assert "no such file" in none.problems[0]


def test_keys_that_others_may_write_are_not_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o755)
    shutil.copy(DATA / "plain.pub", keys)
    keys.chmod(0o777)
    ring = signing.read_keyring(str(keys), {})
    assert not ring.keys
    assert "may be written by everybody" in ring.problems[0]
    keys.chmod(0o755)
    (keys / "plain.pub").chmod(0o666)
    ring = signing.read_keyring(str(keys), {})
    assert not ring.keys
    assert "may be written by everybody" in ring.problems[0]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another user")
def test_keys_of_somebody_else_are_not_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o755)
    shutil.copy(DATA / "plain.pub", keys)
    os.chown(keys / "plain.pub", 12345, 12345)
    ring = signing.read_keyring(str(keys), {})
    assert not ring.keys
    assert "belongs to uid 12345" in ring.problems[0]


# the commands


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_keygen_and_sign_make_what_is_verified(tmp_path: Path) -> None:
    run("keygen", "-o", tmp_path, "--name", "mine")
    assert (tmp_path / "mine.key").stat().st_mode & 0o777 == 0o600
    wheel = tmp_path / "demo-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel_bytes("demo", "1.0", {}, units={"a": "", "b@": ""}))
    unit = tmp_path / "web.toml"
    unit.write_text("[target]\n")
    run("sign", wheel, unit, "--key", tmp_path / "mine.key", "--comment", "for the tests")
    ring = Keyring((minisign.parse_public_key((tmp_path / "mine.pub").read_text()),))
    said = []
    for path in (wheel, unit):
        made = minisign.parse_signature(path.with_name(f"{path.name}.minisig").read_text())
        signing.verify(path.read_bytes(), made, ring)
        said.append(minisign.parse_claims(made.trusted_comment))
    assert [(each.name, each.version, each.units) for each in said] == [
        ("demo", "1.0", ("a", "b@")),
        ("", "", ("web",)),
    ]
    assert all(each.comment == "for the tests" and each.timestamp > 1_700_000_000 for each in said)
    assert "is there already" in run("keygen", "-o", tmp_path, "--name", "mine", code=1)
    (tmp_path / "demo-2.0-py3-none-any.whl").write_bytes(wheel.read_bytes())
    assert "its metadata is that of demo 1.0" in run(
        "sign", tmp_path / "demo-2.0-py3-none-any.whl", "--key", tmp_path / "mine.key", code=1
    )


def test_sign_says_what_is_wrong_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "supervisord-py keygen makes one" in run("sign", tmp_path / "file", "--key", tmp_path / "no.key", code=1)
    encrypted = DATA / "encrypted.key"
    assert "is encrypted: --password-file" in run("sign", tmp_path / "file", "--key", encrypted, code=1)


@needs_minisign
def test_minisign_verifies_ours_and_reads_our_keys(tmp_path: Path) -> None:
    assert MINISIGN is not None
    run("keygen", "-o", tmp_path)
    (tmp_path / "file").write_bytes(MESSAGE)
    run("sign", tmp_path / "file", "--key", tmp_path / "signing.key")
    verify = [MINISIGN, "-V", "-p", str(tmp_path / "signing.pub"), "-m", str(tmp_path / "file")]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert "file:file" in verified.stdout
    sign = [
        MINISIGN,
        "-S",
        "-s",
        str(tmp_path / "signing.key"),
        "-m",
        str(tmp_path / "file"),
        "-x",
        str(tmp_path / "x"),
    ]
    subprocess.run(sign, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    ring = signing.read_keyring(str(tmp_path), {})
    signing.verify(MESSAGE, minisign.parse_signature((tmp_path / "x").read_text()), ring)


@needs_minisign
def test_minisign_opens_a_key_that_we_encrypted(tmp_path: Path) -> None:
    """With less work than ours take: what a password costs stands in the file."""
    assert MINISIGN is not None
    key = signing.make_key()
    (tmp_path / "k").write_text(minisign.format_sealed_key(signing.seal_key(key, b"secret", **CHEAP)))
    (tmp_path / "file").write_bytes(MESSAGE)
    sign = [MINISIGN, "-S", "-s", str(tmp_path / "k"), "-m", str(tmp_path / "file"), "-x", str(tmp_path / "x")]
    subprocess.run(sign, check=True, capture_output=True, input=b"secret\n")
    signing.verify(MESSAGE, minisign.parse_signature((tmp_path / "x").read_text()), Keyring((key.public,)))

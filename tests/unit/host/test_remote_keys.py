"""The folder of keys: who is let in by what lies there, what is refused, how changes are noticed; and ``keygen``."""

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
import zmq.auth
from click.testing import CliRunner

from supervisord_py.host.remote_keys import KeyFolder, KeysRefused, read_remote_keys
from supervisord_py.host.signing_commands import keygen_command
from supervisord_py.host.unit_files import load_settings
from supervisord_py.wire.curve import Certificate, format_certificate


def keygen(folder: Path, *names: str) -> None:
    for name in names:
        found = CliRunner().invoke(keygen_command, ["--curve", "-o", str(folder), "--name", name])
        assert found.exit_code == 0, found.output


def public(path: Path) -> str:
    return zmq.auth.load_certificate(path)[0].decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys = tmp_path / "keys"
    keygen(keys, "server", "alice", "bob")
    return keys


def test_keygen_makes_a_pair_that_nobody_else_reads(tmp_path: Path) -> None:
    """The secret one is its owner's alone, the names are what both ends look for, and nothing is replaced."""
    runner = CliRunner()
    assert runner.invoke(keygen_command, ["--curve", "-o", str(tmp_path / "x")]).exit_code == 0
    secret, other = tmp_path / "x" / "client.key_secret", tmp_path / "x" / "client.key"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    keys = zmq.auth.load_certificate(secret)
    assert keys[1] is not None
    assert zmq.curve_public(keys[1]) == keys[0] == zmq.auth.load_certificate(other)[0]
    assert "is there already" in runner.invoke(keygen_command, ["--curve", "-o", str(tmp_path / "x")]).output
    assert runner.invoke(keygen_command, ["--curve", "-o", str(tmp_path), "--name", "a/b"]).exit_code == 2
    assert runner.invoke(keygen_command, ["--curve", "--password-file", "x"]).exit_code == 2


def test_who_has_a_file_may_come_and_the_supervisors_own_key_lets_nobody_in(folder: Path) -> None:
    keys = read_remote_keys(str(folder))
    assert keys.own.public == public(folder / "server.key")
    assert keys.names == {public(folder / "alice.key"): "alice", public(folder / "bob.key"): "bob"}
    assert keys.problems == ()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda keys: (keys / "server.key_secret").chmod(0o640), "others may read the secret key"),
        (lambda keys: (keys / "server.key_secret").unlink(), "the supervisor's own key is missing"),
        (lambda keys: (keys / "server.key_secret").write_text("x"), "no CURVE certificate"),
        (lambda keys: (keys / "server.key_secret").write_text((keys / "server.key").read_text()), "has no secret key"),
        (lambda keys: keys.chmod(0o777), "may be written by everybody"),
    ],
    ids=["readable", "missing", "garbage", "public", "folder"],
)
def test_a_folder_that_cannot_be_used_is_refused(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    """With what is wrong, and by ``check`` where the settings name it: at start as well."""
    spoil(folder)
    with pytest.raises(KeysRefused, match=why):
        read_remote_keys(str(folder))
    settings = folder.parent / "s.toml"
    settings.write_text(f'[control.remote]\naddress = "127.0.0.1:7700"\nkeys = "{folder}"\n')
    _, (problem,) = load_settings(settings)
    assert (problem.line, problem.key, problem.severity) == (3, "control.remote.keys", "error")
    assert why in problem.message
    assert problem.hint or why == "no CURVE certificate"


def test_files_that_are_no_keys_let_nobody_in_and_are_told(folder: Path) -> None:
    """One bad file is no reason to refuse the others; one key has one name."""
    (folder / "carol.key").write_text("nonsense")
    (folder / "dora.key").write_text((folder / "alice.key").read_text())
    (folder / "eve e.key").write_text(format_certificate(Certificate(zmq.curve_keypair()[0].decode()), "eve"))
    (folder / "self.key").write_text((folder / "server.key").read_text())
    (folder / "frank.key").write_text((folder / "bob.key").read_text().replace("bob", "frank"))
    (folder / "frank.key").chmod(0o666)
    (folder / "notes.txt").write_text("not looked at")
    keys = read_remote_keys(str(folder))
    assert set(keys.names.values()) == {"alice", "bob"}
    assert len(keys.problems) == 5
    settings = folder.parent / "s.toml"
    settings.write_text(f'[bus.remote]\naddress = "127.0.0.1:7700"\nkeys = "{folder}"\n')
    assert {problem.severity for problem in load_settings(settings)[1]} == {"warning"}


def test_nobody_has_a_key_yet_is_a_warning(tmp_path: Path) -> None:
    """It listens, and nobody comes in."""
    keygen(tmp_path / "keys", "server")
    settings = tmp_path / "s.toml"
    settings.write_text(f'[bus.remote]\naddress = "127.0.0.1:7700"\nkeys = "{tmp_path / "keys"}"\n')
    _, (problem,) = load_settings(settings)
    assert (problem.severity, problem.message) == ("warning", "nobody has a key here yet")


@pytest.mark.parametrize("watched", [True, False], ids=["inotify", "looks"])
def test_changes_are_noticed(folder: Path, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that come, go, and become others; a folder that cannot be used, goes, and comes back."""
    if not watched:

        def none() -> None:
            raise OSError(24, "too many")

        monkeypatch.setattr("supervisord_py.host.inotify.Inotify", none)
        monkeypatch.setattr("supervisord_py.host.remote_keys.LOOK_AGAIN_S", 0.02)

    async def scenario() -> None:
        told = asyncio.Event()
        keys = KeyFolder(str(folder), told.set)

        async def names() -> list[str] | None:
            await asyncio.wait_for(told.wait(), 20)
            told.clear()
            return None if keys.known is None else sorted(keys.known.names.values())

        (folder / "bob.key").unlink()
        assert await names() == ["alice"]
        keygen(folder.parent / "more", "carol")
        os.rename(folder.parent / "more" / "carol.key", folder / "carol.key")
        assert await names() == ["alice", "carol"]
        (folder / "server.key_secret").chmod(0o644)
        assert await names() is None
        assert keys.problem is not None
        assert "others may read" in keys.problem
        (folder / "server.key_secret").chmod(0o600)
        assert await names() == ["alice", "carol"]
        os.rename(folder, folder.parent / "elsewhere")
        assert await names() is None
        os.rename(folder.parent / "elsewhere", folder)
        assert keys.keys is not None, "whoever asks sees it at once"
        keys.close()

    asyncio.run(scenario())

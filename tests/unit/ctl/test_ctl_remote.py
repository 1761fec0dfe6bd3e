"""``supctl --remote``: which keys are used, and what is wrong with those that are not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from supervisord_py.ctl.address import find_socket
from supervisord_py.ctl.client import Client
from supervisord_py.ctl.remote import keys_folder, read_client_keys
from supervisord_py.errors import UsageError
from supervisord_py.wire.curve import Certificate, format_certificate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    public, secret = (part.decode() for part in zmq.curve_keypair())
    (tmp_path / "client.key_secret").write_text(format_certificate(Certificate(public, secret), "client"))
    (tmp_path / "client.key_secret").chmod(0o600)
    server = zmq.curve_keypair()[0].decode()
    (tmp_path / "server.key").write_text(format_certificate(Certificate(server), "server"))
    return tmp_path


def test_both_keys_are_read(folder: Path) -> None:
    keys = read_client_keys(str(folder))
    assert keys.own.public in (folder / "client.key_secret").read_text()
    assert keys.server in (folder / "server.key").read_text()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda keys: (keys / "server.key").unlink(), "copy server.key from the keys folder of the supervisor"),
        (lambda keys: (keys / "client.key_secret").unlink(), "keygen --curve"),
        (lambda keys: (keys / "client.key_secret").chmod(0o604), "others may read it"),
        (lambda keys: (keys / "server.key").chmod(0o664), "others may write it"),
        (lambda keys: (keys / "server.key").write_text("x"), "no CURVE certificate"),
        (lambda keys: (keys / "client.key_secret").write_text((keys / "server.key").read_text()), "no secret key"),
    ],
    ids=["no server", "no client", "readable", "writable", "garbage", "public"],
)
def test_keys_that_cannot_be_used_are_wrong_usage(folder: Path, spoil: Callable[[Path], None], why: str) -> None:
    """Nothing is sent to a supervisor whose key is not known, and the next step is told."""
    spoil(folder)
    with pytest.raises(UsageError, match=why):
        Client("tcp://127.0.0.1:7700", keys=str(folder))


def test_what_is_no_address_is_wrong_usage(folder: Path) -> None:
    for text in ("tcp://", "tcp://host", "tcp://host:0", "tcp://*:7700"):
        with pytest.raises(UsageError, match="--remote"):
            Client(text, keys=str(folder))


def test_where_keys_are_looked_for() -> None:
    """The variable, else beside the user's settings."""
    assert keys_folder({"SUPERVISORD_PY_REMOTE_KEYS": "/x"}, 0) == "/x"
    assert keys_folder({}, 0) == "/etc/supervisord-py/remote"
    assert keys_folder({"HOME": "/home/a"}, 1000) == "/home/a/.config/supervisord-py/remote"
    assert keys_folder({"HOME": "/home/a", "XDG_CONFIG_HOME": "/c"}, 1000) == "/c/supervisord-py/remote"


def test_remote_is_another_supervisor_than_all_here() -> None:
    """An address needs no scheme; with what names one of this machine it is refused, and keys alone mean nothing."""
    found = find_socket({}, os.geteuid(), remote="host:7700", keys="/k")
    assert (found.path, found.keys) == ("tcp://host:7700", "/k")
    for options in ({"socket": "/s"}, {"user": True}, {"system": True}):
        with pytest.raises(UsageError, match="different supervisors"):
            find_socket({}, 0, remote="host:7700", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--keys goes with --remote"):
        find_socket({}, 0, keys="/k")

"""Files with variables and credentials, as they are read for a unit."""

import os
from pathlib import Path

import pytest

from supervisord_py.host.belongings import CannotProvideError, read_credentials, read_environment_files
from supervisord_py.model.context import Credential


def test_a_folder_that_was_to_be_read_left_a_descriptor_open_each_time(tmp_path: Path) -> None:
    """A unit that is tried again and again took the manager all it may have."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(CannotProvideError, match=f"{tmp_path}: is a directory"):
            read_environment_files((str(tmp_path),))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_credential_folder_with_a_folder_in_it_failed_the_start(tmp_path: Path) -> None:
    """As in systemd all below it is read, but what begins with a dot; a secret of Kubernetes is such a folder."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "token").write_text("t")
    (tmp_path / "token").symlink_to(".data/token")
    (tmp_path / "round").symlink_to(".")
    (tmp_path / "deep" / "er" / "key").write_text("k")
    found = read_credentials((Credential("db", path=str(tmp_path)),))
    assert found == {"db_token": b"t", "db_deep_er_key": b"k"}


def test_a_file_that_may_be_missing_failed_the_start_when_it_was_no_text(tmp_path: Path) -> None:
    """``-`` forgives all that is wrong with a file, as in systemd."""
    bad = tmp_path / "bad.env"
    bad.write_bytes(b"A=\xff\n")
    with pytest.raises(CannotProvideError, match="line 1 is not UTF-8"):
        read_environment_files((str(bad),))
    assert read_environment_files((f"-{bad}", f"-{tmp_path}")) == ({}, [])

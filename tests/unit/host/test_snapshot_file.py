"""The copy of the state on disk: what is read back, and what is refused by name."""

import json
from pathlib import Path

import pytest

from supervisord_py.core.snapshot import NewerFormatError
from supervisord_py.host.snapshot_file import VERSION, read_snapshot, write_snapshot


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A copy comes back whole; none at all and a damaged one are no copy."""
    path = tmp_path / "snapshot.json"
    assert read_snapshot(path) is None
    assert write_snapshot(path, {"global": "{}"}, None)
    snapshot = read_snapshot(path)
    assert snapshot is not None
    assert snapshot.state == {"global": "{}"}
    path.write_bytes(path.read_bytes()[:-3])
    assert read_snapshot(path) is None


def test_a_copy_of_a_newer_version_says_so(tmp_path: Path) -> None:
    """After a downgrade the copy is not mistaken for a damaged one: the error names both formats."""
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps({"version": VERSION + 1, "boot": "", "state": {}}), encoding="utf-8")
    with pytest.raises(NewerFormatError, match=f"format {VERSION + 1}, and this version knows {VERSION}"):
        read_snapshot(path)

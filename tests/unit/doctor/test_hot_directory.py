"""What ``doctor`` says of the hot directory."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from supervisord_py.doctor.findings import Finding
from supervisord_py.doctor.machine import machine_findings
from supervisord_py.host.places import default_places, moved
from supervisord_py.host.signing import make_key
from supervisord_py.model.settings import HotDirectorySettings, Settings
from supervisord_py.wire.minisign import format_public_key


def found(base: Path, own: HotDirectorySettings) -> list[Finding]:
    environment = {
        name: str(base) for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_DATA_HOME")
    }
    places = moved(default_places(environment, 1000, str(base)), settings=str(base / "supervisord.toml"))
    return [each for each in machine_findings(places, Settings(hot_directory=own)) if each.topic == "hot directory"]


def test_what_is_said_of_a_hot_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which it brings nothing, or more than it should, is told with its cure."""
    monkeypatch.delenv("AGENT_WHEEL_PUBKEY", raising=False)
    assert found(tmp_path, HotDirectorySettings()) == []
    own = HotDirectorySettings(path=str(tmp_path / "hot"))
    assert [(each.level.value, "is not there" in each.fact) for each in found(tmp_path, own)] == [("degraded", True)]
    (tmp_path / "hot").mkdir()
    (without,) = found(tmp_path, own)
    assert (without.level.value, "nothing can be loaded" in without.fact) == ("wrong", True)
    (tmp_path / "keys").mkdir(mode=0o755)
    key = make_key().public
    (tmp_path / "keys" / "mine.pub").write_text(format_public_key(key))
    (tmp_path / "keys" / "bad.pub").write_text("nothing\n")
    good, bad = found(tmp_path, own)
    assert (good.level.value, good.fact) == ("ok", f"{tmp_path}/hot, signed by {key.name}")
    assert (bad.level.value, "bad.pub is not used" in bad.fact) == ("degraded", True)
    (unsigned,) = found(tmp_path, replace(own, require_signature=False))
    assert unsigned.cure == "require-signature = true"
    (tmp_path / "supervisord-py" / "units").mkdir(parents=True)
    (both,) = found(tmp_path, replace(own, path=str(tmp_path / "supervisord-py" / "units")))
    assert "is in the unit path, too" in both.fact

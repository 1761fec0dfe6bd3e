"""``check`` and ``run`` look into the hot directory as the supervisor will, and leave nothing behind."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisord_py.cli import main
from supervisord_py.host.hot_memory import Highest, HotMemory, write_memory
from supervisord_py.host.signing import make_key, sign
from supervisord_py.testing.wheels import wheel_bytes
from supervisord_py.wire.minisign import Claims, SecretKey, format_claims, format_public_key, format_signature
from tests.integration.supervisor_rig import supervisor

KEY, STRANGER = make_key(), make_key()
ECHO = '[agent]\nclass = "echo_agents:Echo"\n'
SLEEP = '[service]\nexec-start = ["/bin/sleep", "infinity"]\n'


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("AGENT_WHEEL_PUBKEY", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    for folder in ("hot", "keys", "units", "state"):
        (tmp_path / folder).mkdir()
    (tmp_path / "keys" / "tests.pub").write_text(format_public_key(KEY.public))
    settings = f'[hot-directory]\npath = "{tmp_path}/hot"\nkeys = "{tmp_path}/keys"\n'
    (tmp_path / "supervisord.toml").write_text(settings)
    yield
    os.umask(before)


def check(tmp_path: Path, *more: str) -> Result:
    options = ["--config", str(tmp_path / "supervisord.toml"), "--state-dir", str(tmp_path / "state"), *more]
    return CliRunner().invoke(main, ["check", str(tmp_path / "units"), *options])


def wheel(tmp_path: Path, version: str, key: SecretKey | None, unit: str = ECHO, name: str = "echo_agents") -> Path:
    path = tmp_path / "hot" / f"{name}-{version}-py3-none-any.whl"
    path.write_bytes(wheel_bytes(name, version, {f"{name}.py": ""}, units={name: unit}))
    if key is not None:
        claims = Claims(name=name.replace("_", "-"), version=version, units=(name,), timestamp=1_700_000_000)
        signature = format_signature(sign(path.read_bytes(), key, format_claims(claims)), "made by a test")
        path.with_name(f"{path.name}.minisig").write_text(signature)
    return path


def test_what_is_good_counts_among_the_units(tmp_path: Path) -> None:
    (tmp_path / "units" / "web.toml").write_text(SLEEP + '[unit]\nrequires = ["echo_agents"]\n')
    wheel(tmp_path, "1.0", KEY)
    result = check(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "2 good units, 0 bad, 0 errors, 0 warnings\n"), result.stdout
    assert list((tmp_path / "state").iterdir()) == [], "it was looked at, and nothing is remembered or unpacked"


def test_a_bad_signature_is_told_for_what_it_is(tmp_path: Path) -> None:
    """Each file that would be rejected, with the reason that the supervisor would give."""
    wheel(tmp_path, "1.0", None, name="unsigned")
    wheel(tmp_path, "1.0", STRANGER, name="strange")
    path = wheel(tmp_path, "1.0", KEY, name="altered")
    path.write_bytes(path.read_bytes() + b"\0")
    wheel(tmp_path, "1.0", KEY, unit="[agent]\nclas = 'a:B'\n", name="wrong")
    write_memory(tmp_path / "state" / "hot-directory.json", HotMemory({"old": Highest("2.0", 1_700_000_000)}))
    wheel(tmp_path, "1.0", KEY, name="old")
    result = check(tmp_path, "--json")
    assert result.exit_code == 1
    told = {Path(each["file"]).name: each["message"] for each in json.loads(result.stdout)["problems"]}
    words = {
        "unsigned-1.0-py3-none-any.whl": "not signed: there is no unsigned-1.0-py3-none-any.whl.minisig beside it",
        "strange-1.0-py3-none-any.whl": "which is not trusted",
        "altered-1.0-py3-none-any.whl": "is not one of this file: it was changed",
        "old-1.0-py3-none-any.whl": "2.0",
        "wrong-1.0-py3-none-any.whl": "clas",
    }
    for name, word in words.items():
        assert word in told.get(name, ""), f"{name}: {told}"


def test_what_keeps_everything_in_it_from_being_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "hot").rmdir()
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "the hot directory" in result.stdout and "cannot be read" in result.stdout
    (tmp_path / "hot").mkdir()
    (tmp_path / "keys" / "bad.pub").write_text("no key\n")
    result = check(tmp_path)
    assert result.exit_code == 0
    assert "bad.pub is not used" in result.stdout


def test_run_says_what_check_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, on its own output, and supervises the rest."""
    monkeypatch.undo()

    def prepare(folder: Path) -> None:
        (folder / "hot").mkdir()
        (folder / "supervisord.toml").write_text(f'[hot-directory]\npath = "{folder}/hot"\nkeys = "{folder}/keys"\n')
        wheel(folder, "1.0", None)

    with supervisor({"web": SLEEP}, prepare=prepare) as running:
        running.wait_state("web", "active")
        assert "echo_agents-1.0-py3-none-any.whl" in running.output()
        assert "not signed: there is no" in running.output()

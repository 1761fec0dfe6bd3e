"""The service of the operating system: its text, the steps of install and uninstall below a root of their own."""

import os
import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from supervisord_py.cli import main
from supervisord_py.install.service import MARK, quote, quote_command, service_text
from supervisord_py.install.systemd import supctl_to_type, template

UNIT = "etc/systemd/system/supervisord-py.service"
LINK = "etc/systemd/system/multi-user.target.wants/supervisord-py.service"


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def directives(text: str) -> dict[str, str]:
    """What a unit file sets; none of ours sets anything twice."""
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    found = {name: value for name, _, value in (line.partition("=") for line in lines)}
    assert len(found) == len(lines)
    return found


def test_the_units_have_what_keeps_children_alive() -> None:
    """Both templates set what a keeper needs of systemd, and differ only in whose they are."""
    system, user = directives(template(is_user=False)), directives(template(is_user=True))
    wanted = {
        "Type": "notify", "NotifyAccess": "main", "KillMode": "process", "Restart": "always", "Delegate": "yes",
        "OOMPolicy": "continue", "TimeoutStopSec": "infinity", "TasksMax": "infinity", "StartLimitIntervalSec": "0",
    }  # fmt: skip
    assert wanted.items() <= system.items() and wanted.items() <= user.items()
    assert {name for name in system.keys() | user.keys() if system.get(name) != user.get(name)} == {
        "After", "ExecReload", "WantedBy",
    }  # fmt: skip


def test_commands_are_those_of_this_interpreter() -> None:
    """Programs become modules of the given interpreter; variables are set; an old systemd is not told what is new."""
    text = service_text(template(is_user=True), "/opt/a b/python", {"XDG_STATE_HOME": "/data/50%"}, systemd=252)
    set_to = directives(text)
    assert text.startswith(MARK)
    assert set_to["ExecStart"] == '"/opt/a b/python" -P -m supervisord_py run'
    assert (
        set_to["ExecReload"]
        == '"/opt/a b/python" -P -m supervisord_py.ctl.cli --user daemon-reload --reason "systemctl reload"'
    )
    assert set_to["Environment"] == "XDG_STATE_HOME=/data/50%%"
    assert "DelegateSubgroup" not in set_to
    assert "DelegateSubgroup" in directives(service_text(template(is_user=True), "/p", systemd=257))


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("plain", "plain"), ("a b", '"a b"'), ('say "x"', '"say \\"x\\""'), ("back\\slash", '"back\\\\slash"'),
     ("50%", "50%%"), ("", '""'), ("a;b", '"a;b"')],
)  # fmt: skip
def test_words_reach_systemd_as_they_are(word: str, quoted: str) -> None:
    """Blanks, quotes, backslashes and specifiers are written so that systemd takes them for themselves."""
    assert quote(word) == quoted


def test_a_dollar_in_the_program_is_no_variable() -> None:
    """systemd expands variables in arguments only."""
    assert quote_command(["/a$b", "c$d"]) == "/a$b c$$d"


def test_installed_below_a_root_once_and_removed(tmp_path: Path) -> None:
    """--dry-run makes nothing; install makes folders, unit and link; again nothing; uninstall takes all back."""
    root = ("--system", "--root", str(tmp_path))
    said = call("install", *root, "--dry-run").output
    assert f"would write {tmp_path}/{UNIT}" in said and f"{os.path.abspath(sys.executable)} -P -m" in said
    assert tree(tmp_path) == set()
    result = call("install", *root)
    assert result.exit_code == 0 and f"wrote {tmp_path}/{UNIT}" in result.output
    assert (tmp_path / LINK).readlink() == Path("/") / UNIT
    assert (tmp_path / "var/lib/supervisord-py").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "etc/supervisord-py/units").is_dir() and (tmp_path / "var/log/supervisord-py").is_dir()
    again = call("install", *root).output
    assert not [line for line in again.splitlines() if line.startswith(("made", "wrote", "linked"))]
    before = tree(tmp_path)
    assert "would remove" in call("uninstall", *root, "--dry-run").output
    assert tree(tmp_path) == before
    assert call("uninstall", *root).exit_code == 0
    assert not [path for path in tree(tmp_path) if "supervisord-py" in path]
    assert call("uninstall", *root).output == ""


def test_uninstall_keeps_what_people_wrote(tmp_path: Path) -> None:
    """Unit files, state and drop-ins of the service stay, and it says where, until --purge."""
    root = ("--system", "--root", str(tmp_path))
    call("install", *root)
    kept = [tmp_path / "etc/supervisord-py/units/web.toml", tmp_path / "var/lib/supervisord-py/snapshot.json",
            tmp_path / f"{UNIT}.d/more.conf"]  # fmt: skip
    for path in kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    said = call("uninstall", *root).output
    assert all(path.exists() for path in kept) and not (tmp_path / UNIT).exists()
    assert all(
        str(tmp_path / folder) in said for folder in ("etc/supervisord-py,", "var/lib/supervisord-py", f"{UNIT}.d")
    )
    assert call("uninstall", *root, "--purge").exit_code == 0
    assert not [path for path in tree(tmp_path) if "supervisord-py" in path]


def test_the_unit_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A unit file of this name that we did not write is neither replaced nor removed."""
    (tmp_path / UNIT).parent.mkdir(parents=True)
    (tmp_path / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    for verb in ("install", "uninstall"):
        result = call(verb, "--system", "--root", str(tmp_path))
        assert result.exit_code == 1 and "was not written by" in result.output
    assert (tmp_path / UNIT).read_text() == "[Service]\nExecStart=/bin/true\n" and not (tmp_path / LINK).exists()


def test_a_changed_unit_is_brought_up_to_date(tmp_path: Path) -> None:
    """An older text of ours is replaced."""
    call("install", "--system", "--root", str(tmp_path))
    text = (tmp_path / UNIT).read_text()
    (tmp_path / UNIT).write_text(text.replace("WatchdogSec=30s", "WatchdogSec=60s"))
    assert "wrote" in call("install", "--system", "--root", str(tmp_path)).output
    assert (tmp_path / UNIT).read_text() == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("install", "--init", "openrc"), "not supported yet"),
        (("install", "--system", "--user"), "give one of them"),
        (("install", "--system", "--now", "--root", "/nowhere"), "on this machine"),
    ],
)
def test_what_cannot_be_done_is_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    """OpenRC, two services at once, and starting in a root that does not run are refused before anything is done."""
    result = call(*arguments)
    assert result.exit_code == 2 and message in result.output


def test_a_users_service_knows_where_the_users_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG variables that are not the usual ones are written into the unit; the usual ones are not."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/alice/.config")
    monkeypatch.setenv("XDG_STATE_HOME", "/data/state")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    result = call("install", "--user", "--root", str(tmp_path))
    assert result.exit_code == 0, result.output
    unit = tmp_path / "home/alice/.config/systemd/user/supervisord-py.service"
    assert directives(unit.read_text())["Environment"] == "XDG_STATE_HOME=/data/state"
    assert (tmp_path / "data/state/supervisord-py").is_dir()
    assert (unit.parent / "default.target.wants" / unit.name).readlink() == Path("/") / unit.relative_to(tmp_path)


def test_purge_spares_a_supervisor_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a supervisor that is no service uses now is not removed under it."""
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "supervisord-py").mkdir()
    state = tmp_path / ".local/state/supervisord-py"
    state.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "supervisord-py" / "control.sock"))
        listener.listen()
        result = call("uninstall", "--user", "--purge")
    assert result.exit_code == 1 and "stop it first" in result.output and state.is_dir()


def test_what_is_told_to_type_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supctl that is in no folder of PATH is told with its path, until a link makes it one that the shell finds."""
    own, linked = tmp_path / "venv" / "supctl", tmp_path / "bin" / "supctl"
    for path in (own, linked):
        path.parent.mkdir()
    own.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(own.with_name("python3")))
    monkeypatch.setenv("PATH", str(linked.parent))
    assert supctl_to_type() == str(own)
    linked.touch(0o755)
    assert supctl_to_type() == str(own), "another supctl"
    linked.unlink()
    linked.symlink_to(own)
    assert supctl_to_type() == "supctl"
    own.unlink()
    assert supctl_to_type() == "supctl", "nothing better to say"

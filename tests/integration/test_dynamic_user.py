"""``dynamic-user``: a user id of a unit's own while it runs, and folders that outlive it out of all others' reach."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisord_py.host.dynamic_users import FIRST, LAST
from tests.integration.supervisor_rig import AS_USER, RunningSupervisor, supervisor, until

ROOTS = (Path("/var/lib"), Path("/run"))

pytestmark = pytest.mark.slow


@pytest.fixture
def name() -> Iterator[str]:
    """The name of folders that nobody has; root's roots cannot be moved, so what is made in them is removed."""
    name = f"supervisord-py-test-{os.getpid()}"
    had_private = [root / "private" for root in ROOTS if (root / "private").exists()]
    yield name
    if os.geteuid() != 0:
        return  # an ordinary user's roots are below the test's own folder
    for root in ROOTS:
        for path in (root / name, root / "private" / name):
            if path.is_symlink():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)
        if root / "private" not in had_private and (root / "private").exists():
            (root / "private").rmdir()


def unit(command: str, *lines: str) -> str:
    return "\n".join(["[service]", f'exec-start = ["/bin/sh", "-c", {json.dumps(command)}]', *lines, ""])


def uid_of(running: RunningSupervisor, unit: str) -> int:
    return Path(f"/proc/{running.wait_state(unit, 'active')['pid']}").stat().st_uid


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_unit_has_a_user_of_its_own_while_it_runs() -> None:
    """All its commands and checks have it, another unit has another one, and a manager's death leaves it as it is."""
    check = '[health.ok]\nkind = "liveness"\nexec = ["/bin/sh", "-c", "id -u >> /tmp/uids"]\ninterval = "50ms"\n'
    tell = "id -u >> /tmp/uids; id -G >> /tmp/uids; echo $USER >> /tmp/uids; touch /etc/x 2>/dev/null && echo wrote; "
    units = {
        "web": unit(f"{tell} exec sleep 1000", "dynamic-user = true", "supplementary-groups = [1]") + check,
        "other": unit("exec sleep 1000", "dynamic-user = true", "user = 'otto'"),
    }
    with supervisor(units) as running:
        uid, other = uid_of(running, "web"), uid_of(running, "other")
        assert FIRST <= uid <= LAST and FIRST <= other <= LAST and uid != other
        pid = running.status("web")["pid"]
        said = Path(f"/proc/{pid}/root/tmp/uids")
        lines = until(lambda: len(found := said.read_text().splitlines()) > 4 and found, "what it said")
        assert lines[:3] == [str(uid), f"{uid} 1", "web"]
        assert set(lines[3:]) == {str(uid)}
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert {"private-tmp: mount namespace", "protect-system: mount namespace"} <= set(
            running.status("web")["applied"]
        )
        running.kill_manager()
        running.wait_state("web", "active")
        assert running.supctl("restart", "web").returncode == 0
        assert uid_of(running, "web") == uid
        assert json.loads((running.folder / "r" / "dynamic-users.json").read_text()) == {"web": uid, "other": other}
        assert running.supctl("stop", "web").returncode == 0
        until(lambda: "web" not in (running.folder / "r" / "dynamic-users.json").read_text(), "the end of the user")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_folders_of_a_dynamic_user_are_its_own_and_move_when_it_becomes_one(name: str) -> None:
    """They lie below private/, with a link where they were; the unit can write, others cannot come there; and back."""
    command = "cd $STATE_DIRECTORY && echo more >> log && ls /var/lib/private > seen && touch $RUNTIME_DIRECTORY/x"
    lines = ["type = 'oneshot'", f"state-directory = '{name}'", f"runtime-directory = '{name}'"]
    lines += ["runtime-directory-preserve = 'yes'"]
    dynamic = "dynamic-user = true"
    state = Path("/var/lib")
    with supervisor({"job": unit(command.replace("private", ""), *lines)}) as running:
        running.wait_state("job", "inactive", "failed")
        for text, is_private in ((unit(command, *lines, dynamic), True), (unit(command, *lines), False)):
            assert (state / name / "log").exists() and (state / name).is_symlink() is not is_private
            (running.units / "job.toml").write_text(text.replace("private", "private" if is_private else ""))
            assert running.supctl("daemon-reload").returncode == 0
            assert running.supctl("start", "job").returncode == 0, running.status("job")
            assert (state / name).is_symlink() is is_private
            assert (state / "private" / name).exists() is is_private
            if is_private:
                assert os.readlink(state / name) == f"/var/lib/private/{name}"
                assert (state / "private").stat().st_mode & 0o777 == 0o700
                assert (state / name / "seen").read_text() == f"{name}\n"
                assert FIRST <= (state / name / "log").stat().st_uid <= LAST
                assert (Path("/run/private") / name / "x").exists()
        assert (state / name / "log").read_text() == "more\n" * 3
        assert (state / name / "log").stat().st_uid == 0


@pytest.mark.parametrize("uid", AS_USER)
def test_a_unit_may_write_its_own_folders_whatever_else_is_read_only(uid: int | None, name: str) -> None:
    """As in systemd, ``protect-system = "strict"`` leaves them writable; only they are."""
    command = "touch $STATE_DIRECTORY/x $RUNTIME_DIRECTORY/x && ! touch $(dirname $STATE_DIRECTORY)/x 2>/dev/null"
    text = unit(command, "type = 'oneshot'", f"state-directory = '{name}'", f"runtime-directory = '{name}'")
    with supervisor({"job": text + '[sandbox]\nprotect-system = "strict"\n'}, uid=uid) as running:
        status = running.wait_state("job", "inactive", "failed")
        assert status["exit"] == {"code": 0, "signal": None}, running.supctl("logs", "job").stdout


@pytest.mark.parametrize("uid", [each for each in AS_USER if each is not None or os.geteuid() != 0])
def test_an_ordinary_users_supervisor_cannot_make_users(uid: int | None) -> None:
    """The start fails with 216, as for systemd's user manager, and says why."""
    with supervisor({"job": unit("true", "dynamic-user = true", "restart = 'no'")}, uid=uid) as running:
        status = running.wait_state("job", "failed")
        assert status["exit"] == {"code": 216, "signal": None}
        assert "cannot make a user: run it as root" in status["why"]

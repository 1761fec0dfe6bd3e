"""User ids that units have while they run."""

import os
import pwd
from pathlib import Path

import pytest

from supervisord_py.host import dynamic_users
from supervisord_py.host.accounts import Accounts, Identity, NoAccount
from supervisord_py.host.dynamic_users import FIRST, LAST, DynamicUsers, NoFreeUser, dynamic_name


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A view of processes without any."""
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


def test_a_unit_has_one_id_until_it_is_released(tmp_path: Path, proc: Path) -> None:
    """The same for all its commands, whichever manager asks, and the same again when it is free."""
    users = DynamicUsers(tmp_path, str(proc))
    first = users.provide("web", "web")
    assert FIRST <= first <= LAST and users.provide("web", "web") == first
    assert users.provide("other", "web") != first
    heir = DynamicUsers(tmp_path, str(proc))
    assert (heir.provide("web", "web"), heir.of("web"), heir.of("none")) == (first, first, None)
    heir.release("web")
    heir.release("other")
    assert not list(tmp_path.glob("dynamic-users*"))
    assert heir.provide("web", "web") == first


def test_an_id_that_somebody_has_is_not_given_again(
    tmp_path: Path, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of a user or group of the machine, nor that of a process, and when all are taken none is."""
    monkeypatch.setattr(dynamic_users, "FIRST", os.geteuid())
    monkeypatch.setattr(dynamic_users, "LAST", os.geteuid())
    monkeypatch.setattr(dynamic_users, "_is_known", lambda uid: False)
    users = DynamicUsers(tmp_path, str(proc))
    assert users.provide("web", "web") == os.geteuid()
    users.release("web")
    (proc / "17").mkdir()
    with pytest.raises(NoFreeUser):
        users.provide("web", "web")
    monkeypatch.undo()
    assert dynamic_users._is_known(pwd.getpwnam("daemon").pw_uid) and not dynamic_users._is_known(LAST + 17)


def test_names() -> None:
    """The unit's where it can be a user's; a made one else; that of ``user`` in any case."""
    assert dynamic_name(None, "web") == "web" and dynamic_name("1", "web") == "1"
    made = dynamic_name(None, "worker@1")
    assert made.startswith("_du") and len(made) == 19 and made != dynamic_name(None, "worker@2")


def test_a_user_that_is_there_is_taken() -> None:
    """And only root makes others; a group of no entry is made with the user."""

    def provide(name: str) -> int:
        return 61200

    root = Accounts(Identity(0, 0, frozenset({0})))
    daemon = pwd.getpwnam("daemon")
    assert root.dynamic("daemon", None, (), provide).uid == daemon.pw_uid
    assert root.dynamic("web", None, ("1",), provide)[:4] == (61200, 61200, (1, 61200), "web")
    assert root.dynamic("web", "web", (), provide).gid == 61200
    assert root.dynamic("web", "daemon", (), provide).gid == daemon.pw_gid
    with pytest.raises(NoAccount, match="cannot make a user: run it as root"):
        Accounts(Identity(1, 1, frozenset({1}))).dynamic("web", None, (), provide)

"""The small arithmetic of making a process; everything else about it is tested on real ones."""

import os
import resource

import pytest

from supervisord_py.keeper.child import EXIT_CODES, Plan, SpawnError, lower, read_report

REQUEST = {"argv": ["tool"], "env": {}, "cwd": "/", "umask": 0o022}


def test_the_lower_of_two_limits() -> None:
    """-1 is infinity, not small."""
    assert [lower(-1, -1), lower(-1, 5), lower(5, -1), lower(3, 5)] == [-1, 5, 5, 3]
    assert resource.RLIM_INFINITY == -1


def test_a_report_is_read_back() -> None:
    """Step, errno and the rest; silence is success, and what was done without is told apart from what failed."""
    assert read_report(b"") == ([], None)
    degraded, failure = read_report(b"~namespace 1 /proc\0limits 1 nofile: not allowed to raise\0")
    assert degraded == ["namespace: /proc: operation not permitted"]
    assert isinstance(failure, SpawnError)
    assert (failure.step, failure.errno, failure.detail) == ("limits", 1, "nofile: not allowed to raise")
    assert failure.step in EXIT_CODES


@pytest.mark.parametrize(
    ("request_", "candidates"),
    [
        ({"argv": ["tool"], "env": {"PATH": "/a:/b"}}, [b"/a/tool", b"/b/tool"]),
        ({"argv": ["./tool"], "env": {"PATH": "/a:/b"}}, [b"./tool"]),
        ({"argv": ["name"], "executable": "/x/tool", "env": {"PATH": "/a"}}, [b"/x/tool"]),
        ({"argv": ["t\udcff"], "env": {"PATH": "/a"}}, [b"/a/t\xff"]),
    ],
)
def test_where_a_program_is_looked_for(request_: dict[str, object], candidates: list[bytes]) -> None:
    """A slash names the file; else each folder of the unit's own PATH; bytes that are no UTF-8 stay what they are."""
    assert Plan({**REQUEST, **request_}, -1, {}).candidates == candidates


def test_our_own_user_is_no_change_and_privileged_changes_nothing() -> None:
    """Naming the user that the keeper runs as needs no fork; ``privileged`` ignores the user."""
    own = {"uid": os.geteuid(), "gid": os.getegid(), "groups": sorted(os.getgroups())}
    assert not Plan({**REQUEST, **own}, -1, {}).needs_code()
    assert Plan({**REQUEST, "uid": os.geteuid() + 1}, -1, {}).needs_code()
    assert not Plan({**REQUEST, "uid": os.geteuid() + 1, "privileged": True}, -1, {}).needs_code()


def test_what_the_keeper_adds_wins() -> None:
    """A unit cannot name its own NOTIFY_SOCKET."""
    plan = Plan({**REQUEST, "env": {"NOTIFY_SOCKET": "/mine"}}, -1, {"NOTIFY_SOCKET": "/real"})
    assert plan.env == {b"NOTIFY_SOCKET": b"/real"}

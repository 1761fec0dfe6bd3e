"""What a child does between fork and exec as it is told in its request: ``keeper.ops``."""

import base64
import errno
import os
import struct

import pytest

from tests.integration.keeper_rig import keeper, keeper_of_nobody, python, spawn

PR_SET_NO_NEW_PRIVS = 38
CLONE_NEWUTS = 0x04000000
GETPPID = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
NO_NEW_PRIVILEGES = {
    "step": "no-new-privileges", "do": "call", "name": "prctl", "args": [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0],
}  # fmt: skip


def refuse(number: int) -> str:
    """A filter that lets a system call fail with EHOSTDOWN: load the number, compare, return."""
    refused = 0x00050000 | errno.EHOSTDOWN
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, refused), (0x06, 0, 0, 0x7FFF0000)]
    return base64.b64encode(b"".join(struct.pack("=HBBI", *line) for line in code)).decode()


def test_input_output_and_folders_are_made_by_the_child() -> None:
    """A file as input, one as error output, data in memory; they are its own 0, 1 and 2 and nothing else stays open."""
    with keeper() as rig:
        manager = rig.manager()
        folder, log = f"{rig.folder}/made", f"{rig.folder}/made/log"
        before = [
            {"step": "stderr", "do": "mkdir", "path": folder, "mode": 0o700},
            {"step": "stderr", "do": "mkdir", "path": folder, "mode": 0o700},
            {"step": "stdin", "do": "data", "bytes": base64.b64encode(b"hello\n").decode(), "as": "in"},
            {"step": "stdin", "do": "dup", "fd": "in", "to": 0},
            {
                "step": "stderr",
                "do": "open",
                "path": log,
                "flags": os.O_WRONLY | os.O_CREAT,
                "mode": 0o600,
                "as": "err",
            },
            {"step": "stderr", "do": "dup", "fd": "err", "to": 2},
        ]
        code = "import os; print(input(), os.listdir('/proc/self/fd')[:-1]); os.write(2, b'told')"
        manager.commit(python(1, "a", code, before=before))
        assert manager.line("a") == "hello ['0', '1', '2']"
        manager.fact("exited", id=1)
        with open(log) as file:
            assert file.read() == "told"


def test_a_seccomp_filter_holds_for_the_program_and_not_for_the_steps() -> None:
    """It is the last of all steps: ``no-new-privileges`` comes before it in whatever order they are given."""
    with keeper() as rig:
        manager = rig.manager()
        after = [{"step": "seccomp", "do": "seccomp", "filter": refuse(GETPPID)}, NO_NEW_PRIVILEGES]
        code = f"import ctypes as c; libc = c.CDLL(None, use_errno=True); print(libc.syscall({GETPPID}), c.get_errno())"
        manager.commit(python(1, "a", code, after=after))
        assert manager.line("a") == f"-1 {errno.EHOSTDOWN}"


def test_processor_and_scheduler() -> None:
    """Affinity and policy are those of the program."""
    cpu = min(os.sched_getaffinity(0))
    with keeper() as rig:
        manager = rig.manager()
        before = [
            {"step": "affinity", "do": "affinity", "cpus": [cpu]},
            {"step": "scheduler", "do": "scheduler", "policy": os.SCHED_BATCH, "priority": 0},
        ]
        code = "import os; print(os.sched_getaffinity(0), os.sched_getscheduler(0))"
        manager.commit(python(1, "a", code, before=before))
        assert manager.line("a") == f"{{{cpu}}} {os.SCHED_BATCH}"


def test_what_fails_fails_the_start_with_its_step_unless_it_may() -> None:
    """Of an ordinary user: no namespace without a user namespace. Best-effort, it runs, and what it lacks is told."""
    unshare = {"step": "namespace", "do": "call", "name": "unshare", "args": [CLONE_NEWUTS]}
    missing = {"step": "namespace", "do": "call", "name": "umount2", "args": ["/no/such", 0], "if_missing": True}
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        manager.commit(spawn(1, "a", "true", before=[unshare]))
        failed = manager.fact("spawn-failed", id=1)
        assert (failed["step"], failed["code"], failed["errno"]) == ("namespace", 226, errno.EPERM)
        more = [{**unshare, "may_fail": True}, missing]
        manager.commit(spawn(2, "a", "true", before=more, degraded=["memory-max: no cgroup"]))
        told = manager.fact("spawned", id=2)["degraded"]
        assert told == ["memory-max: no cgroup", "namespace: unshare: operation not permitted"]
        manager.commit(spawn(3, "a", "true", before=[{"step": "namespace", "do": "fly"}]))
        assert manager.fact("spawn-failed", id=3)["step"] == "request"
        manager.commit(spawn(4, "a", "true", before=[{**unshare, "step": "fly"}]))
        assert manager.fact("spawn-failed", id=4)["step"] == "request"


@pytest.mark.parametrize("maps", [None, "0 0 1\n"])
def test_a_user_namespace_is_mapped_from_outside(maps: str | None) -> None:
    """Who it is inside is what the map says; an ordinary user may map itself and nobody else."""
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        uid = os.geteuid() or 65534
        own = maps or f"0 {uid} 1\n"
        gid = f"0 {os.getegid() or 65534} 1\n"
        namespace = {"step": "namespace", "do": "user-namespace", "uids": own, "gids": gid, "deny_setgroups": True}
        manager.commit(spawn(1, "a", "id", "-u", before=[namespace]))
        if maps is None:
            assert manager.line("a") == "0"
        else:
            assert manager.fact("spawn-failed", id=1)["errno"] == errno.EPERM


def test_what_builds_upon_what_has_failed_is_not_done() -> None:
    """Without its namespace a mount would be everybody's: it is left out, and told once for each key."""
    with keeper_of_nobody() as rig:
        manager = rig.manager()
        place = f"{rig.folder}/n/made"
        own = {"step": "namespace", "may_fail": True}
        before = [
            {**own, "key": "private-mounts", "do": "call", "name": "unshare", "args": [CLONE_NEWUTS], "as": "own"},
            {**own, "key": "bind-paths", "do": "mkdir", "path": place, "mode": 0o755, "needs": "own"},
            {**own, "key": "bind-paths", "do": "mkdir", "path": place, "mode": 0o755, "needs": "own"},
            {**own, "do": "open", "path": "/no/such", "flags": os.O_PATH, "as": "away", "if_missing": True},
            {**own, "do": "mkdir", "path": place, "mode": 0o755, "needs": "away"},
        ]
        manager.commit(spawn(1, "a", "true", before=before))
        told = manager.fact("spawned", id=1)["degraded"]
        assert told == ["private-mounts: unshare: operation not permitted", "bind-paths: what it needs is missing"]
        assert not os.path.exists(place)


def test_a_failed_operation_names_its_key() -> None:
    """And what it was about, and why, all in words."""
    with keeper() as rig:
        manager = rig.manager()
        gone = {"step": "namespace", "key": "bind-paths", "do": "open", "path": "/no/such", "flags": 0, "as": "x"}
        manager.commit(spawn(1, "a", "true", before=[gone]))
        failed = manager.fact("spawn-failed", id=1)
        assert failed["detail"] == "bind-paths: /no/such: no such file or directory"


def test_namespaces_of_another_process_are_joined_if_it_is_still_that_one() -> None:
    """A pid alone may be somebody else's by then: another start time is refused."""
    with keeper() as rig:
        manager = rig.manager()
        with open("/proc/self/stat", "rb") as file:
            start = int(file.read().rpartition(b")")[2].split()[19])
        join = {"step": "namespace", "do": "join", "pid": os.getpid(), "start": start + 1, "flags": CLONE_NEWUTS}
        manager.commit(spawn(1, "a", "true", before=[join]))
        assert manager.fact("spawn-failed", id=1)["errno"] == errno.ESRCH
        if os.geteuid() == 0:
            manager.commit(spawn(2, "a", "true", before=[{**join, "start": start}]))
            manager.fact("spawned", id=2)

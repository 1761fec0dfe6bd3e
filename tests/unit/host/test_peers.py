"""Who is at the other end: the kernel's word, the keeper's word, and neither when the process is gone."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from supervisord_py.host import peers
from supervisord_py.host.facade import Peer
from supervisord_py.host.peers import Credentials, identify, read_credentials
from tests.integration.control_rig import Owner

CONNECT = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "


def ask(connection: socket.socket, owner: Owner, credentials: Credentials | None = None) -> Peer:
    async def whose(pid: int) -> Owner:
        return owner

    return asyncio.run(identify(connection, credentials or read_credentials(connection), whose))


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_this_process() -> None:
    """A peer that is no process of ours is its uid, with groups, name and command line."""
    ours, theirs = pair()
    with ours, theirs:
        peer = ask(ours, Owner())
    assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
    assert set(peer.groups) == set(os.getgroups())
    assert (peer.unit, peer.stray) == (None, False)
    assert "python" in peer.command or "pytest" in peer.command


@pytest.mark.parametrize(
    ("owner", "unit", "stray"),
    [
        (Owner(unit="web", descendant=True), "web", False),
        (Owner(stray=True, descendant=True), None, True),
        (Owner(descendant=True), None, True),
        (Owner(unit="web"), None, True),
        (Owner(unit="web", descendant=True, claimed=True), "web", False),
        (Owner(unit="web!17", descendant=True), "web", False),
        (Owner(unit="!17", descendant=True), None, True),
    ],
    ids=[
        "of a unit",
        "stray",
        "below the manager",
        "claims a unit",
        "orphan with a mark",
        "beside a unit",
        "a hook about no unit",
    ],
)
def test_whose_it_is(owner: Owner, unit: str | None, stray: bool) -> None:
    """Descent decides: a descendant is its unit's or a stray, and whoever only says that it is a unit's gets nothing
    by it."""
    ours, theirs = pair()
    with ours, theirs:
        peer = ask(ours, owner)
    assert (peer.unit, peer.stray, peer.claimed) == (unit, stray, owner.claimed)


@pytest.mark.parametrize("has_peerpidfd", [True, False], ids=["SO_PEERPIDFD", "older kernel"])
@pytest.mark.parametrize("owner", [Owner(), Owner(unit="web", descendant=True)], ids=["no unit", "a unit"])
def test_a_process_that_is_gone_may_only_ping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Owner, has_peerpidfd: bool
) -> None:
    """Whoever holds the connection of a process that has ended is not taken for it, nor for its uid."""
    if not has_peerpidfd:
        monkeypatch.setattr(peers, "SO_PEERPIDFD", 9999)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        # The connection is inherited by a process that lives on: the one that connected is gone.
        heir = textwrap.dedent("""
            import os
            r, w = os.pipe()
            if os.fork() == 0:
                os.close(w)
                os.read(0, 1)
                os._exit(0)
            os._exit(0)
        """)
        with subprocess.Popen([sys.executable, "-c", CONNECT + "\n" + heir, path], stdin=subprocess.PIPE) as child:
            connection, _ = listener.accept()
            with connection:
                credentials = read_credentials(connection)
                assert credentials.pid == child.pid
                child.wait()
                peer = ask(connection, owner, credentials)
                assert (peer.unit, peer.stray, peer.uid) == (None, True, os.getuid())
            assert child.stdin is not None
            child.stdin.close()


def test_a_process_that_ends_while_the_keeper_is_asked(tmp_path: Path) -> None:
    """An answer about a pid counts only if its process was there all the time."""
    path = str(tmp_path / "s")

    async def main() -> Peer:
        async def whose(pid: int) -> Owner:
            child.kill()
            child.wait()
            return Owner()

        return await identify(connection, read_credentials(connection), whose)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, "-c", CONNECT + "input()", path], stdin=subprocess.PIPE) as child:
            connection, _ = listener.accept()
            with connection:
                peer = asyncio.run(main())
    assert child.returncode == -signal.SIGKILL
    assert peer.stray


def test_a_pid_that_was_given_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without SO_PEERPIDFD a process younger than the connection is not the one that made it."""
    monkeypatch.setattr(peers, "SO_PEERPIDFD", 9999)
    ours, theirs = pair()
    with ours, theirs, subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as younger:
        credentials = read_credentials(ours)
        started_ns = peers.read_start_ns(younger.pid)
        assert started_ns is not None
        reused = Credentials(credentials.uid, credentials.gid, younger.pid, started_ns - 1_000_000_000)
        assert ask(ours, Owner(), reused).stray
        same = Credentials(credentials.uid, credentials.gid, younger.pid, started_ns + 1)
        assert not ask(ours, Owner(), same).stray
        assert younger.stdin is not None
        younger.stdin.close()


def test_a_peer_from_outside_our_pid_namespace() -> None:
    """A pid of 0 is nobody that could descend from the keeper: the keeper is not asked, the uid counts."""
    ours, theirs = pair()
    with ours, theirs:
        peer = ask(ours, Owner(unit="web", descendant=True), Credentials(os.getuid(), os.getgid(), 0, 0))
    assert (peer.uid, peer.unit, peer.stray) == (os.getuid(), None, False)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_another_user_with_many_groups() -> None:
    """The groups are those of the connection, also more than Python's getsockopt takes at once."""
    # An abstract address: another user may not enter the folder of the tests.
    address = f"\0supervisord-py-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        for groups in ([7001, 7002], list(range(7000, 7300))):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.setgroups(groups)
                    os.setgid(1)
                    os.setuid(1)
                    with socket.socket(socket.AF_UNIX) as theirs:
                        theirs.connect(address)
                        os.close(writer)
                        os.read(reader, 1)
                finally:
                    os._exit(0)
            connection, _ = listener.accept()
            with connection:
                peer = ask(connection, Owner())
            os.close(writer)
            os.close(reader)
            os.waitpid(child, 0)
            assert (peer.uid, peer.gid, peer.pid) == (1, 1, child)
            # Beyond 256 groups the group database is asked instead.
            assert set(peer.groups) == (set(groups) if len(groups) < 256 else set(os.getgrouplist(peer.user, 1)))


def test_what_is_not_there_is_not_known() -> None:
    """A uid without a name, a process that is gone: empty answers, no errors."""
    with subprocess.Popen(["/bin/true"]) as child:
        pass
    assert peers.user_name(4_000_000_000) == ""
    assert peers.read_command(child.pid) == ""
    assert peers.read_login_uid(child.pid) is None
    assert peers.read_start_ns(child.pid) is None

"""What a unit listens on, the connections that were accepted for it, and the descriptors that it left in our care.

All of it outlives the process that uses it, the manager and an exec of the keeper; what a killed keeper held is gone.

Laws: a listener that is held already as it is asked for stays open, with who waits in it; a readiness is told once for
each time that it was asked for (``await``), so nobody who does not take a connection makes us spin; what a unit leaves
here is bounded (``file-descriptor-store-max``), held once however often it comes, and let go when its other end is.

Source: systemd.socket(5), sd_notify(3) (FDSTORE=1); src/core/socket.c, src/shared/socket-label.c.
"""

import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from supervisord_py.keeper.child import Spawner, close_elsewhere
from supervisord_py.keeper.inventory import ME
from supervisord_py.keeper.loop import PIDFD, Loop, say

KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
ROOM_NS = 1_000_000_000
"""So long who connects as there is no descriptor left is left alone."""
NAME_MAX = 255
OF_AN_INSTANCE = 8
"""Descriptors that we need for a connection and for its process: output, notifications, the report of its start."""
_libc = ctypes.CDLL(None, use_errno=True)


class Listener(NamedTuple):
    spec: dict[str, Any]
    fd: int
    inode: int | None
    """Of its path; what stands there with another one is not ours to remove, nor is a FIFO that was there before."""


class Stored(NamedTuple):
    name: str
    fd: int
    polled: bool


class Sockets:
    """``put`` queues facts, ``helpers`` are the pids of children that are nobody's."""

    def __init__(self, loop: Loop, spawner: Spawner, put: Callable[..., bool], helpers: set[int]) -> None:
        self._loop, self._spawner, self._put, self._helpers = loop, spawner, put, helpers
        self._listeners: dict[str, list[Listener]] = {}
        self._connections: dict[str, dict[int, int]] = {}
        self._stored: dict[str, list[Stored]] = {}
        self._awaited: dict[str, None] = {}
        """Units whose next connection is to be told."""
        self._last = 0
        """The number of the newest connection."""
        self._spent: list[int] = []
        """What could not be closed yet, because no process could be made."""

    def pack(self) -> dict[str, Any]:
        return {
            "listeners": self._listeners, "stored": self._stored, "awaited": list(self._awaited), "last": self._last,
            "connections": [[name, *each] for name, held in self._connections.items() for each in held.items()],
        }  # fmt: skip

    def fds(self) -> list[int]:
        """Return every descriptor that is held."""
        held = [each.fd for listeners in self._listeners.values() for each in listeners]
        held += [each.fd for stored in self._stored.values() for each in stored]
        return held + [fd for connections in self._connections.values() for fd in connections.values()]

    def unpack(self, packed: dict[str, Any]) -> None:
        self._listeners = {name: [Listener(*each) for each in held] for name, held in packed["listeners"].items()}
        self._last = packed["last"]
        for name, number, fd in packed["connections"]:
            self._connections.setdefault(name, {})[number] = fd
        for name, held in packed["stored"].items():
            for each in held:
                self._keep(name, Stored(*each))
        for name in packed["awaited"]:
            self._await(name)

    def request(self, do: dict[str, Any]) -> None:
        name = do["unit"]
        match do["do"]:
            case "listen":
                failed = None
                try:
                    self._listen(name, do["sockets"])
                except OSError as error:
                    failed = error.strerror or str(error)
                except Exception as error:  # noqa: BLE001  a request unanswered is a unit that hangs
                    failed = f"{type(error).__name__}: {error}"
                self._put({"fact": "listening", "unit": name, "id": do["id"], "failed": failed}, name)
            case "await":
                self._await(name)
            case "close" if do.get("connection") is not None:
                self._let_go([fd for fd in (self._connections.get(name, {}).pop(do["connection"], None),) if fd])
            case "close":
                self.close(name)

    def handed(self, do: dict[str, Any]) -> tuple[list[int], dict[str, str]]:
        """Return what a process gets from descriptor 3 on, and the environment that says so."""
        given: dict[str, Any] = do.get("sockets") or {}
        if not given:
            return [], {}
        name, number = given["of"], given.get("connection")
        if number is not None:
            fd = self._connections.get(name, {}).get(number)
            if fd is None:
                raise OSError(errno.EBADF, "its connection is gone")  # with a keeper that was killed
            fds = [("connection", fd)]
        else:
            fds = [(each.spec["name"], each.fd) for each in self._listeners.get(name, ())]
        fds += [(each.name, each.fd) for each in self._stored.get(do["unit"], ())]
        names = ":".join(one for one, _ in fds)
        if given.get("standard"):  # it is told nothing: its own first steps put the connection in its place
            return [fd for _, fd in fds], {}
        return [fd for _, fd in fds], {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names} if fds else {}

    # Listeners

    def _listen(self, name: str, specs: list[dict[str, Any]]) -> None:
        """Hold exactly these listeners; raises OSError with what is wrong in words, and holds what it could open."""
        old, held = self._listeners.pop(name, []), self._listeners.setdefault(name, [])
        places = [_place(spec) for spec in specs]
        kept = {id(each): each for each in old if _place(each.spec) in places and _is_in_place(each)}
        self._quiet(old)
        for each in old:
            if id(each) not in kept:
                _close(each)
        is_awaited = self._awaited.pop(name, False) is None
        for spec in specs:
            same = next((each for each in kept.values() if _place(each.spec) == _place(spec)), None)
            try:
                held.append(self._open(spec) if same is None else _adapted(kept.pop(id(same)), spec))
            except OSError as error:
                for each in kept.values():
                    _close(each)
                raise OSError(error.errno, f"{spec['text']}: {(error.strerror or str(error)).lower()}") from error
        if is_awaited:
            self._await(name)

    def _open(self, spec: dict[str, Any]) -> Listener:
        path: str | None = spec.get("path")
        if path is not None:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        is_found = spec["fifo"] and path is not None and os.path.lexists(path)
        before = os.umask(0o777 & ~spec["mode"])
        try:
            fd = _open_fifo(path, spec["mode"]) if spec["fifo"] and path is not None else _bind(spec, path)
        finally:
            os.umask(before)
        try:
            self._spawner.check_room(fd)
            if path is None:
                return Listener(spec, fd, None)
            if spec["uid"] is not None or spec["gid"] is not None:
                owner = (-1 if number is None else number for number in (spec["uid"], spec["gid"]))
                os.chown(path, *owner, follow_symlinks=False)
            return Listener(spec, fd, None if is_found else os.lstat(path).st_ino)
        except OSError:
            os.close(fd)
            raise

    def _await(self, name: str) -> None:
        """Tell of the next connection, or of the one that is there."""
        if not self._listeners.get(name):
            return
        self._awaited[name] = None
        for each in self._listeners[name]:
            self._loop.watch(each.fd, PIDFD, lambda each=each: self._came(name, each))  # type: ignore[misc]

    def _quiet(self, listeners: list[Listener]) -> None:
        for each in listeners:
            self._loop.unwatch(each.fd)

    def _came(self, name: str, listener: Listener) -> None:
        fact: dict[str, Any] = {"fact": "connection", "unit": name, "socket": listener.spec["name"], "number": None}
        fact["peer"] = None
        if listener.spec["accept"]:
            if not self._has_room(name, listener.fd):
                return
            try:
                fd, fact["peer"] = _accept(listener.fd)
            except (BlockingIOError, ConnectionError):
                return  # gone again before its turn
            self._last = fact["number"] = self._last + 1
            self._connections.setdefault(name, {})[self._last] = fd
        del self._awaited[name]
        self._quiet(self._listeners[name])
        self._put(fact, name)

    def _has_room(self, name: str, fd: int) -> bool:
        """Say whether a connection can be accepted: without descriptors for it and for its process it stays in the
        queue, and is looked at again; one that is accepted and closed is lost."""
        try:
            fd = os.dup(fd)
            try:
                self._spawner.check_room(fd + OF_AN_INSTANCE)
            finally:
                os.close(fd)
        except OSError as error:
            say(f"connections to {name} wait: {error.strerror}")
            self._quiet(self._listeners[name])
            again = lambda: self._await(name) if name in self._awaited else None  # noqa: E731
            self._loop.set_timer(f"room for {name}", time.monotonic_ns() + ROOM_NS, again)
            return False
        return True

    def close(self, name: str) -> None:
        """Let go of all that is held for a unit."""
        self._awaited.pop(name, None)
        listeners = self._listeners.pop(name, [])
        self._quiet(listeners)
        for each in listeners:
            _close(each)
        stored = [each.fd for each in self._stored.pop(name, [])]
        for fd in stored:
            self._loop.unwatch(fd)
        self._let_go([*stored, *self._connections.pop(name, {}).values()])

    def close_all(self) -> None:
        for name in [*self._listeners]:
            self.close(name)

    # The store

    def store(self, unit: str, most: int, fds: list[int], fields: dict[str, str]) -> list[int]:
        """Keep what came with ``FDSTORE=1``; return what is not kept."""
        name = fields.get("FDNAME", "")
        if not (0 < len(name) <= NAME_MAX and name.isascii() and name.isprintable() and ":" not in name):
            name = "stored"
        left = []
        for fd in fds:
            held = self._stored.get(unit, [])
            if len(held) >= most or any(_is_same(each.fd, fd) for each in held):
                left.append(fd)
                continue
            try:
                self._spawner.check_room(fd)
            except OSError:
                left.append(fd)
                continue
            self._keep(unit, Stored(name, fd, fields.get("FDPOLL") != "0"))
        if len(left) < len(fds):
            self._tell_stored(unit)
        return left

    def remove(self, unit: str, name: str) -> None:
        """Do what ``FDSTOREREMOVE=1`` asks for."""
        self._drop(unit, [each for each in self._stored.get(unit, ()) if each.name == name])

    def _keep(self, unit: str, stored: Stored) -> None:
        self._stored.setdefault(unit, []).append(stored)
        if stored.polled:
            with contextlib.suppress(OSError):  # a file, which has no other end
                self._loop.watch(stored.fd, PIDFD, lambda: self._hung_up(unit, stored), hang_up=True)

    def _hung_up(self, unit: str, stored: Stored) -> None:
        poll = select.poll()
        poll.register(stored.fd, 0)
        if poll.poll(0):
            self._drop(unit, [stored])

    def _drop(self, unit: str, gone: list[Stored]) -> None:
        if not gone:
            return
        self._stored[unit] = [each for each in self._stored[unit] if each not in gone]
        for each in gone:
            self._loop.unwatch(each.fd)
        self._tell_stored(unit)
        self._let_go([each.fd for each in gone])

    def _tell_stored(self, unit: str) -> None:
        self._put({"fact": "stored", "unit": unit, "names": [each.name for each in self._stored[unit]]}, unit)

    def _let_go(self, fds: list[int]) -> None:
        """Close what others made: that may take as long as they like, so it is not done here."""
        self._spent += fds
        if self._spent:
            self._helpers.add(close_elsewhere(self._spent))
            self._spent = []


def _place(spec: dict[str, Any]) -> list[Any]:
    """What cannot be changed of an open listener."""
    return [spec[key] for key in ("family", "type", "address", "path", "fifo", "reuse_port", "uid", "gid")]


def _adapted(listener: Listener, spec: dict[str, Any]) -> Listener:
    """Go on with what is open, by what is said of it now: whoever waits in it waits on."""
    old, fd, inode = listener
    if spec == old:
        return listener
    try:
        if not spec["fifo"]:
            os.set_blocking(fd, not spec["accept"])
            if spec["type"] != socket.SOCK_DGRAM:
                with socket.socket(fileno=os.dup(fd)) as sock:
                    sock.listen(spec["backlog"])
        if inode is not None:
            os.chmod(spec["path"], spec["mode"])
    except OSError:
        _close(listener)
        raise
    return Listener(spec, fd, inode)


def _bind(spec: dict[str, Any], path: str | None) -> int:
    sock = socket.socket(spec["family"], spec["type"])
    try:
        if spec["family"] != socket.AF_UNIX and spec["type"] == socket.SOCK_STREAM:
            # Of datagrams it would let two have one address, and the later one take what comes.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if spec["reuse_port"]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        address: Any = spec["address"] if isinstance(spec["address"], str) else tuple(spec["address"])
        try:
            sock.bind(address)
        except OSError as error:
            if path is None or error.errno != errno.EADDRINUSE:
                raise
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise FileExistsError(errno.EEXIST, "what is there is no socket") from None
            if not _is_deserted(path, spec["type"]):
                raise
            os.unlink(path)
            sock.bind(address)
        if spec["type"] != socket.SOCK_DGRAM:
            sock.listen(spec["backlog"])
        if spec["accept"]:
            sock.setblocking(False)
        return sock.detach()
    finally:
        sock.close()


def _open_fifo(path: str, mode: int) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, mode)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, "what is there is no FIFO")
    os.set_blocking(fd, True)
    return fd


def _is_deserted(path: str, kind: int) -> bool:
    """Say whether a socket was left here by somebody who is gone."""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_in_place(listener: Listener) -> bool:
    try:
        return listener.inode is None or os.lstat(listener.spec["path"]).st_ino == listener.inode
    except OSError:
        return False


def _close(listener: Listener) -> None:
    if listener.inode is not None and _is_in_place(listener):
        with contextlib.suppress(OSError):
            os.unlink(listener.spec["path"])
    os.close(listener.fd)


def _accept(fd: int) -> tuple[int, dict[str, Any]]:
    """Return a connection and who is at its other end."""
    listener = socket.socket(fileno=fd)
    try:
        connection, address = listener.accept()
        # The program reads it as it is: without a flag that it has not set.
        connection.setblocking(True)
        if connection.family == socket.AF_UNIX:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            peer: dict[str, Any] = dict(zip(("pid", "uid"), struct.unpack("=iII", credentials), strict=False))
        else:
            peer = {"address": str(address[0]), "port": address[1]}  # a vsock's is a number
        return connection.detach(), peer
    finally:
        listener.detach()


def _is_same(one: int, other: int) -> bool:
    """Say whether two descriptors are of one open file."""
    return KCMP is not None and _libc.syscall(KCMP, ME, ME, 0, one, other) == 0

"""Who comes to the bus: the kernel's word for every connection, through the authentication protocol of ZeroMQ (ZAP).

Theory of operation
-------------------
libzmq accepts the connections, and asks here before it lets one in (RFC 27, the NULL mechanism, a domain). The request
names the pid of the peer, by SO_PEERCRED, and a pid is a number that may be another process's by now. So each
connection is looked at when it is accepted (libzmq's monitor tells its descriptor): a duplicate of it is what
``host.peers`` asks for the process that connected, and for the unit that it belongs to. When several wait under one
pid, all must be of a process that is still there: then they are of the same one.

Whoever is let in has a name, the User-Id that libzmq puts on each of its messages: ``UNIT/INVOCATION`` of a process of
a unit, ``/NUMBER`` of somebody who may read the journal. Nothing that a peer writes can change it.

libzmq reads these sockets in a thread of its own, and tells of what there is by descriptors that are edge-triggered:
``turn`` must be called whenever one of ``descriptors`` can be read, and takes everything.

libzmq ends the process when it has no descriptor for the next connection, so there are always some left: of all that
the process may have, those who wait get a quarter (two each), and those inside a half.

Laws: nobody is let in whose process could not be looked at; who waits for an answer is bounded, in all, for each uid
and for each process; a connection that is refused is closed.

Source: rfc.zeromq.org/spec/27; libzmq 4.3.5, stream_engine_base.cpp (get_peer_address), null_mechanism.cpp.
"""

import asyncio
import contextlib
import os
import resource
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import zmq
from msgspec import Struct

from supervisord_py.host.facade import Peer
from supervisord_py.host.peers import Credentials, read_credentials
from supervisord_py.wire.bus import KEY

ZAP_ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"supervisord-py"

WAITING_MAX = 2048
WAITING_A_UID_MAX = 512
WAITING_A_PROCESS_MAX = 128
"""Connections that have not been let in yet; those above are closed."""

CONNECTIONS_A_UNIT_MAX = 64
CONNECTIONS_OF_GUESTS_MAX = 256
GUESTS_MAX = 1024

Identify = Callable[[socket.socket, Credentials], Awaitable[Peer]]


def life_of(key: str, session: str, address: str) -> str:
    """Return what stands in the place of a life for what is sent with a key."""
    return f"{KEY}{key}/{session or address}"


class RefusedError(Exception):
    """The peer is not let in; the message says why."""


class Member(Struct, frozen=True):
    """Who it is: a process of ``unit`` in the life ``invocation``, or (both empty) a reader of the journal, or somebody
    with a key."""

    unit: str
    invocation: str
    peer: Peer | None = None
    session: str = ""
    """Of a key: the routing id that it has given itself, in hexadecimal digits."""

    @property
    def is_remote(self) -> bool:
        """Whether somebody is there with a key, over TCP."""
        return self.peer is not None and self.peer.remote is not None

    @property
    def subject(self) -> str:
        """Whom a bound or a count is for: a unit, a key, or one for all others."""
        if self.peer is not None and self.peer.remote is not None:
            return KEY + self.peer.remote.name
        return self.unit or "/"

    @property
    def life(self) -> str:
        """Within what an id is unique: a life of a unit; of a key a session, or else one connection."""
        remote = None if self.peer is None else self.peer.remote
        return self.invocation or (
            self.subject if remote is None else life_of(remote.name, self.session, remote.address)
        )


Judge = Callable[[Peer, int], Member]
"""Decides on a peer whose process was started at a time [boot clock, ns]. Raises: RefusedError."""


class _Caller:
    """A connection, with a duplicate of its descriptor, for as long as it lasts."""

    def __init__(self, fd: int, connection: socket.socket, credentials: Credentials) -> None:
        self.fd = fd
        self.connection = connection
        self.credentials = credentials
        self.is_inside = False

    def close(self, *, cut: bool = False) -> None:
        if cut:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


class Door:
    """Lets peers in.

    Args:
        context: The context of ``router``, which is not bound yet.
        router: Whose peers these are.
        identify: Says who a peer is (``host.peers``).
        is_there: Says whether the process of a connection has not ended.
        start_of: When a process was started [boot clock, ns], None where there is none.
        judge: Whether it may come in.
        on_left: Is told the descriptor of a connection that has ended.
        on_refused: Is told who was refused, and why.
        on_answered: Is called when something was sent: descriptors may have lost their edge by that.
    """

    def __init__(
        self,
        context: "zmq.Context[Any]",
        router: "zmq.Socket[Any]",
        *,
        identify: Identify,
        is_there: Callable[[socket.socket, Credentials], bool],
        start_of: Callable[[int], int | None],
        judge: Judge,
        on_left: Callable[[int], None],
        on_refused: Callable[[Peer, str], Awaitable[None]],
        on_answered: Callable[[], None],
    ) -> None:
        self._identify = identify
        self._is_there = is_there
        self._start_of = start_of
        self._judge = judge
        self._on_left = on_left
        self._on_refused = on_refused
        self._on_answered = on_answered
        self._router = router
        self._zap = context.socket(zmq.ROUTER)
        self._zap.linger = 0
        self._zap.bind(ZAP_ADDRESS)
        router.zap_domain = DOMAIN
        address = f"inproc://supervisord-py.monitor.{router.fileno()}"
        router.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.rcvhwm = 0  # a full one would hold up libzmq's thread
        self._monitor.connect(address)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._waiting_max = min(WAITING_MAX, descriptors // 8)
        self._waiting_a_process_max = min(WAITING_A_PROCESS_MAX, self._waiting_max // 2)
        self._inside_max = descriptors // 4
        self._callers: dict[int, _Caller] = {}
        self._waiting = 0
        self._by_uid: Counter[int] = Counter()
        self._by_pid: Counter[int] = Counter()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._inside: dict[int, str] = {}
        self._connections: Counter[str] = Counter()
        self._guests: OrderedDict[str, Member] = OrderedDict()
        self._guest_count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._zap.fileno(), self._monitor.fileno()

    @property
    def connections(self) -> int:
        """How many connections are let in."""
        return len(self._inside)

    def member(self, user: str, fd: int, address: bytes) -> Member | None:
        """Return who a User-Id is; None for a guest that came too many guests ago."""
        unit, _, name = user.rpartition("/")
        return Member(unit, name) if unit else self._guests.get(user)

    def turn(self) -> None:
        """Take all that libzmq tells and asks."""
        self._hear()
        while (asked := receive(self._zap)) is not None:
            task = asyncio.get_running_loop().create_task(self._answer(asked))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Let nobody in any more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._router.disable_monitor()
        self._monitor.close()
        self._zap.close()
        for caller in self._callers.values():
            caller.close()
        self._callers.clear()

    def _hear(self) -> None:
        while (told := receive(self._monitor)) is not None:
            event, value = struct.unpack("=HI", told[0][:6])
            if event == zmq.EVENT_ACCEPTED:
                self._arrived(value)
            else:
                self._left(value)

    def _arrived(self, fd: int) -> None:
        try:
            connection = socket.socket(fileno=os.dup(fd))
        except OSError:
            return  # It is gone already, and its handshake with it.
        try:
            caller = _Caller(fd, connection, read_credentials(connection))
        except OSError:
            connection.close()
            return
        self._forget(fd)
        uid, pid = caller.credentials.uid, caller.credentials.pid
        # One agent is not to take the places of all others of its user.
        is_full = self._by_uid[uid] >= WAITING_A_UID_MAX or self._by_pid[pid] >= self._waiting_a_process_max
        if is_full or self._waiting >= self._waiting_max:
            caller.close(cut=True)
            return
        self._callers[fd] = caller
        self._waiting += 1
        self._by_uid[uid] += 1
        self._by_pid[pid] += 1

    def _left(self, fd: int) -> None:
        if (caller := self._forget(fd)) is not None:
            caller.close()
        unit = self._inside.pop(fd, None)
        if unit is not None:
            self._connections[unit] -= 1
            if not self._connections[unit]:
                del self._connections[unit]
            self._on_left(fd)

    def _forget(self, fd: int) -> _Caller | None:
        caller = self._callers.pop(fd, None)
        if caller is not None:
            self._waits_no_more(caller)
        return caller

    def _waits_no_more(self, caller: _Caller) -> None:
        if caller.is_inside:
            return
        caller.is_inside = True
        self._waiting -= 1
        for counter, who in ((self._by_uid, caller.credentials.uid), (self._by_pid, caller.credentials.pid)):
            counter[who] -= 1
            if not counter[who]:
                del counter[who]

    async def _answer(self, asked: list[bytes]) -> None:
        if len(asked) < 8 or asked[2] != b"1.0":
            return  # libzmq never asks like that, and nobody else can
        status, text, user = b"400", b"refused", ""
        if asked[4] == DOMAIN and asked[7] == b"NULL":
            try:
                user = await self._admit(_pid_of(asked[5]))
                status, text = b"200", b"OK"
            except RefusedError as refused:
                text = str(refused).encode()[:200]
        self._zap.send_multipart([asked[0], b"", b"1.0", asked[3], status, text, user.encode(), b""])
        self._on_answered()

    async def _admit(self, pid: int) -> str:
        """Return the User-Id of a connection of process ``pid``. Raises: RefusedError."""
        # Its connection was told of before it asked, which may have been a moment after the last look.
        self._hear()
        # One at a time of a pid: whose request is whose, libzmq does not say.
        async with self._turns.setdefault(pid, asyncio.Lock()):
            while callers := self._of(pid):
                asking = min(callers, key=lambda caller: caller.is_inside)
                # Before the look at the process, which says in the end that it was there all the time.
                started_ns = self._start_of(pid) or 0
                peer = await self._identify(asking.connection, asking.credentials)
                if self._callers.get(asking.fd) is not asking:
                    continue  # it has left meanwhile; another one of that pid may be the one that asks
                if peer.gone or not all(self._is_there(each.connection, each.credentials) for each in self._of(pid)):
                    # One is of a process that is no more, and it may be the one that asks.
                    for caller in self._of(pid):
                        self._forget(caller.fd)
                        caller.close(cut=True)
                    break
                return await self._enter(asking, peer, started_ns)
            raise RefusedError("the process that connected is gone")

    def _of(self, pid: int) -> list[_Caller]:
        return [caller for caller in self._callers.values() if caller.credentials.pid == pid]

    async def _enter(self, caller: _Caller, peer: Peer, started_ns: int) -> str:
        try:
            member = self._judge(peer, started_ns)
            most = CONNECTIONS_A_UNIT_MAX if member.unit else CONNECTIONS_OF_GUESTS_MAX
            if self._connections[member.unit] >= most:
                raise RefusedError(f"{member.unit or 'readers of the journal'} have {most} connections to the bus")
            if len(self._inside) >= self._inside_max:
                raise RefusedError("there are too many connections to the bus")
        except RefusedError as refused:
            await self._on_refused(peer, str(refused))
            raise
        if not caller.is_inside:
            self._waits_no_more(caller)
            self._inside[caller.fd] = member.unit
            self._connections[member.unit] += 1
        if member.unit:
            return f"{member.unit}/{member.invocation}"
        self._guest_count += 1
        user = f"/{self._guest_count}"
        self._guests[user] = member
        if len(self._guests) > GUESTS_MAX:
            self._guests.popitem(last=False)
        return user


def receive(messages: "zmq.Socket[Any]") -> list[bytes] | None:
    """Return the next message; None when there is none."""
    try:
        return messages.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def _pid_of(address: bytes) -> int:
    """Read the pid off a peer's address, ``HOST:UID:GID:PID`` of a Unix socket; 0 is nobody's."""
    parts = address.rsplit(b":", 3)
    return int(parts[3]) if len(parts) == 4 and parts[3].isdigit() else 0

"""The custody protocol between keeper and manager: one SOCK_SEQPACKET socket pair, JSON bodies, descriptors beside.

Theory of operation
-------------------
The keeper makes and reaps processes and holds what must not be lost; the manager decides. The manager may die between
any two instructions. Everything it decides therefore reaches the keeper as ONE packet, the *commit*, which the keeper
applies whole or not at all:

    {"op": "commit", "ack": N, "state": {KEY: TEXT or null}, "lines": [[SEQ, TEXT]...], "journalled": SEQ,
     "do": [REQUEST...], "deadline": NS or null}

* ``ack``: all facts up to N are dealt with; the keeper forgets them.
* ``state``: the manager's memory, opaque text by key; null forgets a key. A new manager gets all of it in ``welcome``.
* ``lines``: journal lines decided but not yet written; the keeper keeps each until a later ``journalled`` covers its
  place. A new manager gets the unwritten ones in ``welcome`` and writes those that the file does not have yet.
* ``deadline`` (may be missing): when the manager wants to act by itself next, on CLOCK_MONOTONIC in ns; each commit
  replaces it. A manager that lets it pass by ``hung_timeout_s`` without another commit is hung.
* ``do``: requests, carried out in order after the state is applied (the keeper may interleave them with its other work;
  a request that was received is never lost by a manager's death).

So after a kill at any instant the next manager holds: the state after the last commit, the facts not covered by it, and
the lines that may be missing in the file; no decision is half done and none is done twice.

Requests (``do``)
    {"do": "spawn", "id": SPAWN_ID, "unit": NAME, "role": ROLE, "argv": [..], "executable": PATH or null,
     "env": {..}, "cwd": PATH, "cwd_may_miss": BOOL, "umask": INT, "uid": INT or null,
     "gid": INT or null, "groups": [INT] or null,
     "rlimits": {"nofile": [SOFT, HARD]}, "strict": ["nofile"], "loose": ["nofile"], "nice": INT or null,
     "cgroups": [DIR..], "home": DIR or null, "sigpipe": BOOL (true: default action), "notify": "none|main|exec|all",
     "privileged": BOOL, "pid_env": [NAME..], "inherit": BOOL, "discard": BOOL, "before": [OP..], "after": [OP..],
     "degraded": [TEXT..], "sockets": {..} or null, "store": INT}
        The keys from ``uid`` on and ``cwd_may_miss`` (then it is / instead, in a child that is forked) may be
        missing. ``executable`` null searches PATH of ``env``. Infinity is -1. Limits that are not in ``strict`` are
        clamped to what is allowed; of those in ``loose`` that is told. ``home`` is the keeper's own group in the
        hierarchy of ``cgroups``: with it the keeper may go there and back to make the process. ``privileged`` ignores
        uid, gid and groups. The keeper adds ``NOTIFY_SOCKET`` when ``notify`` is not ``none``, and the process's own
        pid under the names in ``pid_env`` (``WATCHDOG_PID``). With ``inherit`` standard input, output and error are
        the keeper's; else standard input is /dev/null, output and error are the unit's pipe (with ``discard``
        /dev/null). ``before`` and ``after`` are operations (``keeper/ops.py``) that the child does before it changes
        its user and after that; seccomp filters are last of all. ``degraded`` is told with the spawn: what the
        manager has left out.
        ``sockets`` ({"of": UNIT, "connection": N or null}) hands over from descriptor 3 on what that unit listens on,
        or this one connection; then what ``unit`` has stored; LISTEN_FDS, LISTEN_FDNAMES and LISTEN_PID say so,
        unless ``standard`` is set in it.
        ``store``: so many descriptors the unit may leave with us (FDSTORE=1).
        Ids grow; a known id is ignored, and so is one more than ``SPAWN_IDS_KEPT`` below the newest.
    {"do": "signal", "unit": NAME, "id": SPAWN_ID or null, "whom": "main|all", "signal": INT, "cont": BOOL}
    {"do": "follow", "unit": NAME, "id": SPAWN_ID, "pid": INT or null, "trusted": BOOL}
        Let process ``pid`` of the unit be its main process under a new id. Null: the only child of the keeper that
        belongs to the unit and is no command of it. ``trusted`` (may be missing) as a ``MAINPID`` of root: it may also
        be a process of no unit. Always answered by ``followed``; a known id is told again, or ignored if it has ended.
    {"do": "kill", "unit": NAME, "signal": INT}
        Every process of the unit, in rounds until none is left or until the unit's next spawn; SIGKILL each round,
        another signal once a process.
    {"do": "release", "unit": NAME}
        Close output pipe and notify socket, remove its cgroups; while a process is left nothing is done, and the
        output is sent again.
    {"do": "listen", "unit": NAME, "id": N, "sockets": [SPEC..]}
        Hold exactly these for the unit, in this order; what is held already as it is asked for stays as it is, what is
        not among them is closed. Answered by ``listening``. SPEC: ``name``, ``text`` (for people), ``family``,
        ``type``, ``address`` (of Python's socket), ``path`` or null, ``fifo``, ``mode``, ``uid``, ``gid``, ``backlog``,
        ``reuse_port``, ``accept``.
    {"do": "await", "unit": NAME}
        Tell of the next connection to (datagram for, byte in) any of them, once; with ``accept`` take it.
    {"do": "close", "unit": NAME, "connection": N or null}
        Let go of this one connection; without one of all that is held for the unit, its stored descriptors included.
    {"do": "restart-manager"}       pre-flight a new manager, then end this one (else ``preflight-failed`` is told); a
                                    runtime folder that somebody removed is made anew for it
    {"do": "reexec"}                replace the keeper itself in place, and the manager (``keeper/handover.py``); what
                                    became of it is told by ``{"reexec": ..}`` and ``reexecuted``
    {"do": "exit", "code": INT}     kill what is left, end the manager, exit

Facts, numbered from 1 without a hole, sent in order, kept until acknowledged
    {"facts": [[N, FACT]...]} with FACT one of
    {"fact": "spawned", "id", "pid", "tagged": BOOL, "degraded": [TEXT..]}
        Tagged false: the hard RLIMIT_RTTIME is too low for the tag. Degraded (may be missing): the operations that
        failed and were allowed to.
    {"fact": "spawn-failed", "id", "step", "code", "errno", "detail"}
    {"fact": "followed", "unit", "id", "pid": INT or null, "refused": TEXT or null}     exactly one of both
    {"fact": "exited", "id", "pid", "code": INT or null, "signal": INT or null, "core": BOOL, "main": BOOL,
     "tree_empty": BOOL, "runtime_ms": INT or null, "rusage": {..}}
        Code and signal null: a followed process that was never our child, whose status nobody tells us (``follow``).
        ``main`` false: the process that
        ``MAINPID`` replaced. ``tree_empty``: no process is left, and no exit of the unit is still to be told.
    {"fact": "tree-empty", "unit"}                      a later end than those that ``exited`` told made it empty
    {"fact": "notify", "unit", "id": SPAWN_ID or null, "pid", "fields": {..}, "main_pid": INT or null,
     "refused": TEXT or null}
    {"fact": "listening", "unit", "id": N, "failed": TEXT or null}
    {"fact": "connection", "unit", "socket": NAME, "number": N or null, "peer": {..} or null}
        With a number it was accepted; ``peer``: ``address`` and ``port``, or ``pid`` and ``uid``.
    {"fact": "stored", "unit", "names": [NAME..]}       what the unit has stored is now this
    {"fact": "reexecuted", "old": VERSION, "new": VERSION or null, "refused": TEXT or null}     exactly one of both
    {"fact": "stray", "pid", "command", "init": BOOL}, {"fact": "stray-exited", "pid", "code", "signal", "core"}
        ``init``: we are process 1, whose children all orphans become; such as have ended already are not told.
A unit's notify socket is drained before an exit of that unit is queued: READY is never overtaken by the exit of its
sender, and never comes before ``spawned``. ``WATCHDOG=1`` and ``STATUS=`` that are still unsent coalesce with the last
fact of the unit if that is the same of the same sender; everything else is kept, and a full queue
(``NOTIFY_QUEUE_MAX`` unacknowledged of one unit) stops the reading of that unit's socket, so that the sender blocks.

Other messages of the keeper
    {"welcome": {"protocol": 1, "version", "pid", "instance", "runtime_dir", "state": {..}, "lines": [[SEQ, TEXT]..],
     "processes": [{"id", "unit", "role", "pid", "pending": BOOL}..], "orphans": [{"pid", "unit"}..],
     "strays": [PID..], "outputs": [UNIT..], "managers": COUNT, "stopping": null or "stop" or "kill", "config": {..},
     "listeners": ["control", "bus"], "lost": {..} or null}}
        ``lost`` is what ``run`` found of a killed keeper, for a first manager. The listeners are beside it as
        descriptors. A spawn that is still to be made has pid 0. The outputs follow as ``outputs`` messages, the
        unacknowledged facts as ``facts``.
    {"outputs": [UNIT..]}           with as many descriptors: the unit's output pipe, also whenever one is made
    {"order": "stop" | "kill" | "reload" | "reopen" | "replace"}
        A signal came: TERM/INT/QUIT/RTMIN+3, second INT, HUP, USR1, USR2. (The last one's answer is
        ``restart-manager``, unless the manager finds the new code unfit.)
    {"preflight-failed": TEXT}
    {"reexec": TEXT or null}        why no new image of the keeper can take over; null: it can, a new manager is started
    {"answer": Q, "unit": NAME or null, "stray": BOOL, "descendant": BOOL, "claimed": BOOL}
        to {"op": "whose", "pid", "question": Q}; ``claimed``: only what it carries itself says that it is the unit's
    {"answer": Q, "trees": {UNIT: [PID..]}}         to {"op": "trees", "units": [..] or null, "question": Q}

Messages of the manager: ``{"op": "hello", "protocol": 1, "pid"}`` first (a pre-flight manager is welcomed only when
the old one has ended, and is ready to go then), ``commit``, ``whose``, ``trees``, and ``{"op": "heard"}`` after each
order. Questions are answered at once, not after the requests before them. A manager that leaves a fact unacknowledged,
an order unheard or its own deadline unused for ``hung_timeout_s`` is aborted, then killed; one that is stopped for so
long is killed; one that breaks the protocol is killed at once. To
end a manager, the keeper shuts its direction of the pair: the manager reads end of file and exits; what it had sent
before is still applied.

Configuration: ``keeper_argv`` takes a JSON object with ``runtime_dir``, ``manager_argv`` and, where they differ from
``CONFIG_DEFAULTS``, its keys; ``config`` in ``welcome`` is that object unchanged, so that every manager starts alike.
The manager finds its end of the pair under the descriptor number in ``$SUPERVISORD_PY_KEEPER_FD``.

A keeper that follows a killed one is started with ``--resume FD`` too: a state that ``run`` put together
(``host/adoption.py``) of the dead keeper's book, with its instance number, its lock, its custody (to which a fact
``{"fact": "lost", "lost": {..}}`` and the ends that nobody saw are added), and what lives. The processes are nobody's
children here: each is held by a pidfd, and they are looked for by tag (``Unit.is_adopted``).

Whose a process is: the keeper is the subreaper, so the tree of a unit is empty exactly when no direct child of the
keeper belongs to it. Every child is a spawn or an orphan; orphans are attributed once: by cgroup, then by the tag (soft
RLIMIT_RTTIME, ``TAG_BASE + (instance << TAG_INSTANCE_SHIFT) + spawn id``, inherited over fork, exec and a cleared
environment), then by ``INVOCATION_ID``; else they are strays.

Framing: a packet is one JSON object in UTF-8. A body above ``INLINE_MAX`` bytes travels in a sealed memfd as the FIRST
descriptor of the packet ``{"memfd": LENGTH}``. At most ``FDS_MAX`` descriptors a packet. Neither side ever blocks in
send: what does not fit waits in a queue for EPOLLOUT.
"""

import array
import fcntl
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any

PROTOCOL = 1
STATE_VERSION = 2
"""Of what one image of the keeper leaves to the next, and ``run`` to the first; the one before is read too."""
INLINE_MAX = 64 * 1024
FDS_MAX = 200
NOTIFY_QUEUE_MAX = 64
SPAWN_IDS_KEPT = 4096
TAG_BASE = 1 << 61
TAG_INSTANCE_SHIFT = 40
KEEPER_FD = "SUPERVISORD_PY_KEEPER_FD"
CONFIG_DEFAULTS: dict[str, Any] = {
    "manager_argv": [sys.executable, "-P", "-m", "supervisord_py.host.daemon"],
    "socket": None,  # runtime_dir/control.sock
    "socket_mode": 0o660,
    "socket_gid": None,
    "shutdown_timeout_s": 90,  # None: no limit
    "hung_timeout_s": 10,
    "start_timeout_s": 60,
    "forward": None,  # the unit whose main process gets the signals that are sent to the keeper, but for SIGTERM
    "remove": None,  # a folder that is removed at the end, with what is in it
    "spawner": "auto",  # or "fork": never vfork
}
_PACKET_MAX = INLINE_MAX + 1024
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def keeper_argv(config: dict[str, Any]) -> list[str]:
    """Return the command that is the keeper with ``config``: for ``os.execv`` (same pid) or for a child."""
    main = os.path.join(os.path.dirname(os.path.abspath(__file__)), "main.py")
    return [sys.executable, "-I", "-S", "-X", "utf8", main, "--config", json.dumps(config)]


class Channel:
    """One end of the pair: packets wait in a queue until they fit, and are read one by one; nothing blocks."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._queue: deque[tuple[bytes, list[int]]] = deque()

    @property
    def is_waiting(self) -> bool:
        return bool(self._queue)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Queue ``message`` with duplicates of ``fds``; call ``flush`` after it. Raises OSError and queues nothing."""
        body = json.dumps(message, separators=(",", ":")).encode("ascii")
        held: list[int] = []
        try:
            if len(body) > INLINE_MAX:
                held.append(os.memfd_create("supervisord-py", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
                with open(held[0], "wb", closefd=False) as file:
                    file.write(body)
                fcntl.fcntl(held[0], fcntl.F_ADD_SEALS, SEALS)
                body = b'{"memfd":%d}' % len(body)
            for fd in fds:
                held.append(os.dup(fd))
        except BaseException:  # whatever it is, nothing of it may stay open
            _close_all(held)
            raise
        self._queue.append((body, held))

    def flush(self) -> bool:
        """Send what fits; return whether the queue is empty now. Raises OSError when the other end is gone."""
        while self._queue:
            body, fds = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self.sock.sendmsg([body], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            self._queue.popleft()
            _close_all(fds)
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next packet and its descriptors, None when there is none now.

        Raises EOFError when the other end is gone, ValueError when the packet is not one of ours.
        """
        try:
            body, ancillary, flags, _ = self.sock.recvmsg(_PACKET_MAX, socket.CMSG_SPACE(1024), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # Told once when the other end died with packets unread; what it had sent is still behind it.
            return self.receive()
        fds = [fd for _, _, data in ancillary for fd in array.array("i", data[: len(data) & ~3])]
        try:
            if not body:
                raise EOFError
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("packet is cut")
            message = json.loads(body)
            if "memfd" in message:
                with open(fds.pop(0), "rb") as file:
                    file.seek(0)
                    message = json.load(file)
            if not isinstance(message, dict):
                raise ValueError("packet is not an object")
        except (EOFError, ValueError, TypeError, IndexError, RecursionError) as error:
            _close_all(fds)
            raise (error if isinstance(error, EOFError) else ValueError(f"bad packet: {error}")) from error
        return message, fds

    def close(self) -> None:
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self.sock.close()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

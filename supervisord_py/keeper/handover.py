"""The keeper replaces itself: a new image of the same process, with everything that the old one held.

Theory of operation
-------------------
1. *Check.* A forked copy does all of it but the taking over: it executes the new image with the state and every
   descriptor, which builds a whole keeper of them, says so, and exits. What would go wrong goes wrong there.
2. *Manager.* A manager of the new version is started in pre-flight, as for ``restart-manager``. When it has greeted and
   the old one has ended, whatever that had sent is applied, and nobody speaks with the keeper.
3. *Exec.* Signals are blocked, what they had said already becomes state, the state goes into a sealed memfd, the
   descriptors lose their close-on-exec flag, and the process executes itself. Children stay children; those that ended
   stay zombies until the new image reaps them; what is in pipes and sockets stays there; clients wait in the listener.
   An exec that fails leaves the old image, which takes the flags back and goes on.
4. *Resume.* The new image builds itself of the state, takes over signals, and welcomes the waiting manager.

The state is JSON with a version number; a keeper reads its own version and the one before. Epoll, wake-up pipe and the
spawner's descriptors are not handed over: they close at exec and are made anew.
"""

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from supervisord_py.keeper.child import die_with_parent, fork
from supervisord_py.keeper.loop import SPAWN, Loop
from supervisord_py.keeper.protocol import SEALS, STATE_VERSION, keeper_argv

CHECK_TIMEOUT_NS = 30 * 1_000_000_000
READY = "ready "


def read_state(fd: int) -> dict[str, Any]:
    """Take the state out of the memfd that the image before left. Raises ValueError when it is none of ours."""
    with open(fd, "rb") as file:
        file.seek(0)
        state = json.load(file)
    if state["version"] not in (STATE_VERSION, STATE_VERSION - 1):
        raise ValueError(f"a state of version {state['version']}; this keeper reads {STATE_VERSION}")
    return state  # type: ignore[no-any-return]


def replace(config: dict[str, Any], state: dict[str, Any], *options: str) -> None:
    """Become a new image that holds what ``state`` names; returns never. Raises OSError, and nothing has changed."""
    body = json.dumps({"version": STATE_VERSION, **state}, separators=(",", ":")).encode("ascii")
    memfd = os.memfd_create("supervisord-py-keeper", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held = [memfd, *state["fds"]]
    try:
        with open(memfd, "wb", closefd=False) as file:
            file.write(body)
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, SEALS)
        for fd in held:
            os.set_inheritable(fd, True)
        argv = [*keeper_argv(config), "--resume", str(memfd), *options]
        os.execv(argv[0], argv)
    finally:
        for fd in held:
            os.set_inheritable(fd, False)
        os.close(memfd)


class Handover:
    """The way to an exec: asked for, checked, due. ``pack`` gives the state, ``checked`` is told why not, or None."""

    def __init__(
        self, loop: Loop, config: dict[str, Any], helpers: set[int],
        pack: Callable[[], dict[str, Any]], checked: Callable[[str | None], None],
    ) -> None:  # fmt: skip
        self._loop, self._config, self._helpers, self._pack, self._checked = loop, config, helpers, pack, checked
        self._check: tuple[int, int] | None = None
        self._heard = b""
        self.is_wanted = False
        """The check has passed: the next manager whose turn comes waits for the exec."""

    def begin(self) -> None:
        """Check in a copy whether a new image can take over."""
        if self._check is not None or self.is_wanted:
            return
        try:
            state = self._pack()
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            try:
                pid = fork(partial(self._try, state, theirs))
            finally:
                os.close(theirs)
        except (OSError, ValueError, TypeError) as error:
            self._checked(f"cannot be checked: {error}")
            return
        self._helpers.add(pid)
        self._check, self._heard = (pid, ours), b""
        self._loop.watch(ours, SPAWN, self._hear)
        self._loop.set_timer("check", time.monotonic_ns() + CHECK_TIMEOUT_NS, self._give_up)

    def _try(self, state: dict[str, Any], out: int) -> None:
        """Runs in the copy."""
        die_with_parent(signal.SIGKILL)  # or it would hold our lock alone
        for standard in (1, 2):
            os.dup2(out, standard)
        try:
            replace(self._config, state, "--check")
        except OSError as error:
            os.write(2, str(error).encode("utf-8", "replace"))

    def _give_up(self) -> None:
        if self._check is not None and self._check[0] in self._helpers:
            os.kill(self._check[0], signal.SIGKILL)

    def _hear(self) -> None:
        assert self._check is not None
        _, fd = self._check
        self._heard += (said := os.read(fd, 65536))
        if said:
            self._heard = self._heard[-4096:]
            return
        self._loop.unwatch(fd)
        os.close(fd)
        self._loop.set_timer("check", None, self._give_up)
        self._check = None
        last = self._heard.decode("utf-8", "replace").strip().rpartition("\n")[2]
        self.is_wanted = last.startswith(READY)
        self._checked(None if self.is_wanted else f"the new keeper is not fit: {last[:500] or 'it said nothing'}")

    def exec(self, wake: int) -> str:
        """Become the new image; returns why that failed, with signals that came meanwhile to be looked at."""
        self.is_wanted = False
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        numbers = os.read(wake, 65536) if select.select([wake], [], [], 0)[0] else b""
        try:
            replace(self._config, {**self._pack(), "signals": list(numbers)})
        except (OSError, ValueError, TypeError) as error:
            return str(error)
        finally:
            for number in numbers:
                signal.raise_signal(number)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return ""


def end_check(version: str) -> None:
    """Say that the whole keeper was built, in the copy that was made to find out."""
    os.write(1, f"{READY}{version}\n".encode())
    sys.stderr.flush()
    os._exit(0)

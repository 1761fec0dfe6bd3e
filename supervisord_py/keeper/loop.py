"""The keeper's event loop: epoll, a priority a descriptor, a few named timers, and no tick."""

import contextlib
import os
import select
import time
import traceback
from collections import deque
from collections.abc import Callable

MANAGER, SPAWN, NOTIFY, SIGNAL, PIDFD = range(5)
"""Priorities in one wake-up: a notification is read before the exit of its sender, an acknowledgement before both."""
OF_UNITS = {SPAWN, NOTIFY, PIDFD}

FAULTS_MAX = 100
FAULTS_WITHIN_NS = 3600 * 1_000_000_000
"""Unexpected exceptions of the keeper's own that it outlives an hour. Those that one unit met are never counted: they
cost what was done for that unit and nobody else anything."""
PAUSE_NS = 100_000_000
"""A descriptor whose handler failed is left alone for so long: what it did not take would wake the loop at once."""


def say(text: str) -> None:
    """Write a line to standard error, unless that would block or fail: nobody's log may stop the keeper."""
    ready = select.poll()
    ready.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        if ready.poll(0):
            os.write(2, f"supervisord-py keeper: {text}\n".encode("utf-8", "replace")[:4096])


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._timers: dict[str, tuple[int, Callable[[], None]]] = {}
        self._faults = deque[int](maxlen=FAULTS_MAX + 1)
        self._told = deque[int](maxlen=FAULTS_MAX)
        self.is_broken = False
        self.lag_ns = 0
        """How much later than asked the last turn woke: the keeper itself was stopped, so nobody else is to blame."""

    def watch(
        self, fd: int, priority: int, callback: Callable[[], None], *, output: bool = False, hang_up: bool = False
    ) -> None:
        """Call ``callback`` when ``fd`` is readable, with ``output`` also when it is writable, with ``hang_up`` when
        its other end is gone and not before; again to change it."""
        self._timers.pop(f"again {fd}", None)
        events = (0 if hang_up else select.EPOLLIN) | (select.EPOLLOUT if output else 0)
        (self._epoll.modify if fd in self._watched else self._epoll.register)(fd, events)
        self._watched[fd] = (priority, callback)

    def unwatch(self, fd: int) -> None:
        self._timers.pop(f"again {fd}", None)
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already: then it is out of the epoll
                self._epoll.unregister(fd)

    def set_timer(self, name: str, at_ns: int | None, callback: Callable[[], None]) -> None:
        """Call ``callback`` once at ``at_ns`` on the monotonic clock; None cancels. A name has one timer."""
        self._timers.pop(name, None)
        if at_ns is not None:
            self._timers[name] = (at_ns, callback)

    def has_timer(self, name: str) -> bool:
        return name in self._timers

    def turn(self, busy: bool) -> None:
        """Wait, not at all when ``busy``, and call what is due."""
        next_ns = min((at_ns for at_ns, _ in self._timers.values()), default=None)
        # A day at most: epoll takes no more than 24 of them, and a turn with nothing due does nothing.
        timeout = -1.0 if next_ns is None else min(86_400.0, max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
        ready = [fd for fd, _ in self._epoll.poll(0 if busy else timeout)]
        now_ns = time.monotonic_ns()
        self.lag_ns = max(0, now_ns - next_ns) if next_ns is not None else 0
        known = [(fd, self._watched[fd]) for fd in ready if fd in self._watched]
        for fd, watched in sorted(known, key=lambda item: item[1][0]):
            if self._watched.get(fd) is watched:
                priority, callback = watched
                if not self.guard(callback, of_unit=priority in OF_UNITS) and self._watched.get(fd) is watched:
                    self._pause(fd, priority, callback)
        for name, timer in list(self._timers.items()):
            if timer[0] <= now_ns and self._timers.get(name) is timer:
                del self._timers[name]
                self.guard(timer[1])

    def _pause(self, fd: int, priority: int, callback: Callable[[], None]) -> None:
        self.unwatch(fd)
        at_ns = time.monotonic_ns() + PAUSE_NS
        self.set_timer(f"again {fd}", at_ns, lambda: self.watch(fd, priority, callback))

    def guard(self, callback: Callable[[], None], *, of_unit: bool = False) -> bool:
        """Call ``callback``; False when it met a bug, which is told. Only too many of the keeper's own end it."""
        try:
            callback()
        except Exception:  # noqa: BLE001  a keeper that dies of one unit's bug takes all the others with it
            now_ns = time.monotonic_ns()
            if not of_unit:
                self._faults.append(now_ns)
                self.is_broken = len(self._faults) > FAULTS_MAX and now_ns - self._faults[0] < FAULTS_WITHIN_NS
            if len(self._told) < FAULTS_MAX or now_ns - self._told[0] > FAULTS_WITHIN_NS:
                self._told.append(now_ns)
                say(f"internal error, please report it:\n{traceback.format_exc(limit=-8)}")
            return False
        return True

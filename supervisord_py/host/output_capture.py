"""The thread that moves output: from every unit's pipe into its file, with nothing waiting on anything else.

Theory of operation
-------------------
The thread owns an epoll of the pipes, the output files and a heap of timers; it has no tick. A disk that stalls stops
this thread and not the manager's event loop, so supervision goes on while writes hang; meanwhile the pipes take what
they can and then hold the writers back.

A pipe is in one of these states (``Wait``):

    ARMED     epoll watches it, once (EPOLLONESHOT): the first byte wakes the thread
    RESTING   nothing watches it; a timer looks at it again in ``REST_NS``: a child that writes line by line costs a
              wake-up per rest, not per line
    FAILING   its file refuses bytes (no space, read-only, no descriptors, ...). What comes stays in the pipe until
              that is half full, then the pipe is emptied and the loss counted: a process must neither block nor die
              because a disk is full. The file is tried again at growing intervals; when it takes bytes again the
              first thing in it is a line that says what was lost

A pipe is enlarged after it was found half full, never before, and given back when nothing came for a while: an ordinary
user may hold 64 MiB of pipe buffers in all, and with that used up every new pipe has two pages.
"""

import contextlib
import enum
import errno
import fcntl
import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from supervisord_py.host.output_file import LogFile, Scratch, pending_bytes

BURST = 1024 * 1024
"""Bytes moved for one pipe before the others get their turn."""
REST_NS = 5_000_000
PIPE_USUAL = 64 * 1024
"""What a pipe holds that the kernel had no reason to make smaller."""
PIPE_BUSY = 256 * 1024
"""What a busy unit's pipe is enlarged to: fewer looks, while what was written is still in a processor's cache."""
EXTRA_MAX = 32 * 1024 * 1024
"""What all pipes together may hold above the usual: half of what an ordinary user has."""
GIVE_BACK_NS = 10_000_000_000
"""A pipe through which nothing came for so long gets its usual size again."""
RETRY_FIRST_NS = 1_000_000_000
RETRY_LAST_NS = 5_000_000_000


class OutputTrouble(NamedTuple):
    """Capturing one unit's output fails, or works again (``problem`` None); ``dropped_bytes`` are lost in it so far."""

    unit: str
    problem: str | None
    dropped_bytes: int


class Wait(enum.Enum):
    ARMED = enum.auto()
    RESTING = enum.auto()
    FAILING = enum.auto()


class Stream:
    """One unit's pipe and file."""

    def __init__(self, unit: str, pipe: int, file: LogFile) -> None:
        self.unit = unit
        self.pipe = pipe
        self.file = file
        self.capacity = 0
        self.wait = Wait.ARMED
        self.due_ns = 0
        """When the timer looks at it; 0: no timer."""
        self.moved_ns = 0
        """When bytes last came."""
        self.retry_ns = RETRY_FIRST_NS
        self.try_again_ns = 0
        self.problem: str | None = None
        self.dropped_bytes = 0
        """Lost in this trouble so far."""
        self.untold_bytes = 0
        """Those of them that no line in the output tells of yet."""


class CaptureThread:
    """Runs until ``stop``; everything but ``submit``, ``start`` and ``join`` happens on the thread itself.

    ``on_bytes(unit, ended)`` and ``on_trouble`` are called there too, and must not block.
    """

    def __init__(
        self, *, on_bytes: Callable[[str, bool], None], on_trouble: Callable[[OutputTrouble], None], scratch: Scratch
    ) -> None:
        self._on_bytes = on_bytes
        self._on_trouble = on_trouble
        self._scratch = scratch
        self._streams: dict[str, Stream] = {}
        self._by_pipe: dict[int, Stream] = {}
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._timers: list[tuple[int, int, Stream]] = []
        self._timer_number = 0
        self._enlarged: set[Stream] = set()
        self._extra_bytes = 0
        """What these hold above the usual."""
        self._give_back_ns = 0
        """When they are looked at; 0: there are none."""
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._commands: deque[Callable[[], None]] = deque()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    # From any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Callable[[], None]) -> None:
        """Have ``command`` called on the thread, after those before it and before any byte that comes later moves."""
        self._commands.append(command)
        with contextlib.suppress(BlockingIOError):  # the counter is full: the thread is awake anyway
            os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        self.submit(self._end)

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # On the thread

    def attach(self, unit: str, pipe: int, file: LogFile) -> None:
        """Capture ``pipe`` from now on; a pipe that the unit had before is emptied and closed."""
        if unit in self._streams:
            self.detach(unit)
        capacity = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
        with contextlib.suppress(OSError):  # the first byte will tell
            file.resume()
        stream = self._streams[unit] = Stream(unit, pipe, file)
        self._by_pipe[pipe] = stream
        self._note_capacity(stream, capacity)  # a manager before us may have enlarged it
        self._epoll.register(pipe, select.EPOLLIN | select.EPOLLONESHOT)

    def drain(self, unit: str) -> None:
        """Move everything that was in the pipe at this moment; a line without its end is handed to followers."""
        stream = self._streams.get(unit)
        if stream is None:
            return
        self._empty(stream)
        self._finish(stream)
        self._on_bytes(unit, True)

    def detach(self, unit: str) -> None:
        """Drain, then close; what the file does not take now is lost and counted."""
        stream = self._streams.pop(unit, None)
        if stream is None:
            return
        self._empty(stream)
        self._finish(stream, closing=True)
        lost = stream.file.discard(stream.pipe)
        if lost:
            stream.dropped_bytes += lost
            self._on_trouble(OutputTrouble(unit, stream.problem or "closed", stream.dropped_bytes))
        if stream.problem is not None:
            self._on_trouble(OutputTrouble(unit, None, stream.dropped_bytes))
        stream.due_ns = 0
        self._note_capacity(stream, 0)
        del self._by_pipe[stream.pipe]
        self._epoll.unregister(stream.pipe)
        os.close(stream.pipe)
        stream.file.release()
        self._on_bytes(unit, True)

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> None:
        """Have ``callback`` called at a time of the monotonic clock."""
        self._timer_number += 1
        heapq.heappush(self._later, (due_ns, self._timer_number, callback))

    def retry(self) -> None:
        """Try every file that failed again, now."""
        for stream in list(self._streams.values()):
            if stream.wait is Wait.FAILING:
                stream.try_again_ns = 0
                self._look(stream, time.monotonic_ns())

    def _end(self) -> None:
        for unit in list(self._streams):
            self.detach(unit)
        self._ending = True

    def _run(self) -> None:
        try:
            while not self._ending:
                events = self._epoll.poll(self._timeout())
                self._run_commands()
                for fd, _ in events:
                    if fd == self._wake:
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(self._wake)
                        self._run_commands()
                    elif (stream := self._by_pipe.get(fd)) is not None:
                        self._look_safely(stream)
                self._run_timers()
        finally:
            self._epoll.close()
            self._scratch.close()

    def _run_commands(self) -> None:
        while self._commands:
            try:
                self._commands.popleft()()
            except Exception as error:  # noqa: BLE001 - one command that fails must not end the capture of all units
                self._on_trouble(OutputTrouble("", f"an internal error in capturing output: {error!r}", 0))

    def _timeout(self) -> float:
        while self._timers and self._timers[0][2].due_ns != self._timers[0][0]:
            heapq.heappop(self._timers)
        due = [heap[0][0] for heap in (self._timers, self._later) if heap]
        due += [self._give_back_ns] if self._give_back_ns else []
        if not due:
            return -1
        due_ns = min(due)
        # epoll counts in milliseconds: rounded up, so that it never wakes before the time and again right after.
        return max(0, -(-(due_ns - time.monotonic_ns()) // 1_000_000)) / 1000

    def _run_timers(self) -> None:
        now_ns = time.monotonic_ns()
        while self._timers and self._timers[0][0] <= now_ns:
            due_ns, _, stream = heapq.heappop(self._timers)
            if stream.due_ns == due_ns:
                stream.due_ns = 0
                self._look_safely(stream)
        while self._later and self._later[0][0] <= now_ns:
            self._commands.append(heapq.heappop(self._later)[2])
        self._run_commands()
        if 0 < self._give_back_ns <= now_ns:
            self._give_back(now_ns)

    def _set_timer(self, stream: Stream, due_ns: int) -> None:
        self._timer_number += 1
        stream.due_ns = due_ns
        heapq.heappush(self._timers, (due_ns, self._timer_number, stream))

    def _look_safely(self, stream: Stream) -> None:
        # A command may have come while another pipe was moved; it goes before bytes that may have come after it.
        self._run_commands()
        if self._streams.get(stream.unit) is not stream:
            return
        try:
            self._look(stream, time.monotonic_ns())
        except Exception as error:  # noqa: BLE001 - a mistake made with one unit's output must not silence all others
            self._fail(stream, OSError(errno.EIO, f"internal error: {error!r}"), time.monotonic_ns())

    def _look(self, stream: Stream, now_ns: int) -> None:
        """Move what is there, then decide when to look again."""
        if stream.wait is Wait.FAILING and now_ns < stream.try_again_ns:
            self._hold(stream)
            return
        try:
            moved, emptied = self._move(stream, BURST)
        except OSError as error:
            self._fail(stream, error, now_ns)
            return
        if moved:
            self._on_bytes(stream.unit, False)
        is_flow = now_ns - stream.moved_ns < 2 * REST_NS
        stream.moved_ns = now_ns if moved else stream.moved_ns
        if moved and emptied and is_flow and moved < stream.capacity // 2:
            stream.wait = Wait.RESTING
            self._set_timer(stream, now_ns + REST_NS)
        else:
            self._arm(stream)

    def _arm(self, stream: Stream) -> None:
        stream.wait = Wait.ARMED
        stream.due_ns = 0
        self._epoll.modify(stream.pipe, select.EPOLLIN | select.EPOLLONESHOT)

    def _move(self, stream: Stream, count: int) -> tuple[int, bool]:
        """Move up to ``count`` bytes; return how many, and whether the pipe seemed to be empty then.

        A piece that is smaller than what was asked for is taken for the last one: to be sure costs as much as moving
        a small piece, and epoll tells of what is left. A file that is copied to, or a disk that just became full, may
        have left something.

        Raises:
            OSError: the file does not take them.
        """
        if stream.untold_bytes:
            stream.file.note(f"supervisord-py: {stream.untold_bytes} bytes of output lost here ({stream.problem})")
            stream.untold_bytes = 0
        moved = 0
        while moved < count:
            piece = stream.file.take(stream.pipe, count - moved)
            if stream.problem is not None:
                self._recover(stream)
            is_last = piece < count - moved and not stream.file.is_rotation_due
            moved += piece
            if piece >= stream.capacity // 2 and stream.capacity < PIPE_BUSY:
                self._enlarge(stream)
            if piece == 0 or is_last:
                return moved, True
        return moved, False

    # Sizes of pipes

    def _enlarge(self, stream: Stream) -> None:
        for size in (PIPE_BUSY, PIPE_USUAL):
            if size <= stream.capacity:
                break
            if self._extra_bytes + size - max(stream.capacity, PIPE_USUAL) <= EXTRA_MAX and self._resize(stream, size):
                break

    def _give_back(self, now_ns: int) -> None:
        for stream in list(self._enlarged):
            if now_ns - stream.moved_ns >= GIVE_BACK_NS and stream.wait is not Wait.FAILING:
                self._resize(stream, PIPE_USUAL)
        self._give_back_ns = now_ns + GIVE_BACK_NS if self._enlarged else 0

    def _resize(self, stream: Stream, size: int) -> bool:
        try:
            capacity = fcntl.fcntl(stream.pipe, fcntl.F_SETPIPE_SZ, size)
        except OSError:  # the user's allowance is used up, or it holds too much to be made smaller: it stays as it is
            return False
        self._note_capacity(stream, capacity)
        return True

    def _note_capacity(self, stream: Stream, capacity: int) -> None:
        self._extra_bytes += max(capacity, PIPE_USUAL) - max(stream.capacity, PIPE_USUAL)
        stream.capacity = capacity
        if capacity <= PIPE_USUAL:
            self._enlarged.discard(stream)
            return
        self._enlarged.add(stream)
        if not self._give_back_ns:
            self._give_back_ns = time.monotonic_ns() + GIVE_BACK_NS

    def _empty(self, stream: Stream) -> None:
        try:
            left = pending_bytes(stream.pipe)
            while left > 0:
                moved, _ = self._move(stream, left)
                left -= moved
                if not moved:
                    break
        except OSError as error:
            self._fail(stream, error, time.monotonic_ns())

    def _finish(self, stream: Stream, *, closing: bool = False) -> None:
        """Have what waits for the end of its line written."""
        try:
            stream.file.finish(closing=closing)
        except OSError as error:
            self._fail(stream, error, time.monotonic_ns())

    # Files that refuse

    def _fail(self, stream: Stream, error: OSError, now_ns: int) -> None:
        problem = f"output of {stream.unit} is not written: {error.strerror or error}"
        if stream.wait is not Wait.FAILING:
            stream.wait = Wait.FAILING
            stream.retry_ns = RETRY_FIRST_NS
        else:
            stream.retry_ns = min(2 * stream.retry_ns, RETRY_LAST_NS)
        stream.try_again_ns = now_ns + stream.retry_ns
        if stream.problem != problem:
            stream.problem = problem
            self._on_trouble(OutputTrouble(stream.unit, problem, stream.dropped_bytes))
        # Closed, so that the next attempt takes the file that has the name then.
        stream.file.close()
        # Edge-triggered: every write of the child wakes, but bytes that lie there do not.
        self._epoll.modify(stream.pipe, select.EPOLLIN | select.EPOLLET)
        self._hold(stream)

    def _hold(self, stream: Stream) -> None:
        waiting = pending_bytes(stream.pipe)
        if waiting >= stream.capacity // 2:
            dropped = stream.file.discard(stream.pipe)
            stream.dropped_bytes += dropped
            stream.untold_bytes += dropped
            waiting = 0
        if (waiting or stream.untold_bytes or stream.file.is_holding) and not stream.due_ns:
            self._set_timer(stream, max(stream.try_again_ns, time.monotonic_ns() + REST_NS))

    def _recover(self, stream: Stream) -> None:
        """The file took what was offered."""
        stream.problem = None
        self._on_trouble(OutputTrouble(stream.unit, None, stream.dropped_bytes))
        stream.dropped_bytes = 0
        self._arm(stream)

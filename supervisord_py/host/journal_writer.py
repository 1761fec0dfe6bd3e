"""The journal's one thread: it owns the files, so no slow disk ever stops a decision.

The loop hands over lines and requests and is told what became of them; nothing else is shared. One pass takes all
that has come meanwhile: that is the group commit, one sync for everybody who waits. The thread sleeps without a
time-out unless something is left to do: a sync of what nobody waits for, a failing disk to try again, a reserve to
set aside again.
"""

import threading
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from supervisord_py.host.journal_log import Line, Rotation, SegmentLog
from supervisord_py.model.settings import JournalSettings

SYNC_AFTER_S = 5.0
"""What nobody waits for is durable after so long."""

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 30.0
RETRY_ON_APPEND_S = 1.0
"""A new line tries a failing disk again, but not more often than this."""

RESERVE_AGAIN_S = 30.0


class Status(Struct, frozen=True):
    """Where the files stand after a pass: ``rotations`` are those of this pass, ``given_up`` is the log's."""

    written: int
    durable: int
    failing: str | None
    is_full: bool
    rotations: tuple[Rotation, ...] = ()
    given_up: str | None = None


class JournalWriter:
    """The thread and its mailbox.

    Args:
        log: The files; the thread's alone from ``start`` on.
        report: Called in the thread after each pass that changed something; must hand over to the loop.
    """

    def __init__(self, log: SegmentLog, report: Callable[[Status], None]) -> None:
        self._log = log
        self._report = report
        self._condition = threading.Condition()
        self._lines: list[Line] = []
        self._is_sync_wanted = False
        self._is_rotation_wanted = False
        self._is_closing = False
        self._settings: JournalSettings | None = None
        self._last: Status | None = None
        self._sync_at: float | None = None
        self._retry_at: float | None = None
        self._retry_delay_s = RETRY_FIRST_S
        self._tried_at = 0.0
        self._reserve_at: float | None = time.monotonic()
        # A daemon thread: a disk that hangs for ever may not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def append(self, lines: Sequence[Line]) -> None:
        with self._condition:
            self._lines += lines
            self._condition.notify()

    def sync(self) -> None:
        """Ask for a sync of everything handed over so far."""
        with self._condition:
            self._is_sync_wanted = True
            self._condition.notify()

    def rotate(self) -> None:
        with self._condition:
            self._is_rotation_wanted = True
            self._condition.notify()

    def apply(self, settings: JournalSettings) -> None:
        """Take over other settings from the next pass on."""
        with self._condition:
            self._settings = settings
            self._condition.notify()

    def close(self, timeout_s: float) -> bool:
        """Write and sync what is left and end the thread; False when the disk did not let it end in time."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._has_work, self._timeout_s())
                lines, self._lines = self._lines, []
                is_sync_wanted, self._is_sync_wanted = self._is_sync_wanted, False
                is_rotation_wanted, self._is_rotation_wanted = self._is_rotation_wanted, False
                settings, self._settings = self._settings, None
                is_closing = self._is_closing
            if settings is not None:
                self._log.settings = settings
                self._reserve_at = time.monotonic()
            try:
                self._pass(lines, is_sync_wanted or is_closing, is_rotation_wanted, is_closing)
            except Exception as error:  # noqa: BLE001
                # A bug here must not end the journal in silence: the lines are still queued, people are told, and it
                # is tried again.
                self._log.failing = f"internal error in the journal's writer: {type(error).__name__}: {error}"
                self._plan_retry(time.monotonic())
            self._tell()
            if is_closing:
                self._log.close()
                return

    def _has_work(self) -> bool:
        return bool(
            self._lines
            or self._is_sync_wanted
            or self._is_rotation_wanted
            or self._is_closing
            or self._settings is not None
        )

    def _timeout_s(self) -> float | None:
        times = [at for at in (self._sync_at, self._retry_at, self._reserve_at) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _pass(self, lines: Sequence[Line], is_sync_wanted: bool, is_rotation_wanted: bool, is_closing: bool) -> None:
        log, now = self._log, time.monotonic()
        log.add(lines)
        if log.failing is not None and not is_closing and not self._is_retry_due(now, bool(lines)):
            return
        wall_ns = time.time_ns()
        self._tried_at = now
        if is_rotation_wanted:
            log.rotate(wall_ns)
        is_always = log.settings.sync == "always"
        is_late = self._sync_at is not None and now >= self._sync_at
        if is_sync_wanted or is_always or is_late or log.is_sync_due or log.failing is not None:
            log.sync(wall_ns)
        else:
            log.flush(wall_ns)
        if self._reserve_at is not None and now >= self._reserve_at:
            log.restore_reserve()
        self._reserve_at = now + RESERVE_AGAIN_S if log.on_reserve else None
        if log.failing is not None:
            self._plan_retry(now)
            return
        if self._retry_at is not None:
            self._reserve_at = now
        self._retry_at, self._retry_delay_s = None, RETRY_FIRST_S
        if not log.is_unsynced:
            self._sync_at = None
        elif self._sync_at is None or is_late:
            self._sync_at = now + SYNC_AFTER_S

    def _is_retry_due(self, now: float, has_lines: bool) -> bool:
        if self._retry_at is None or now >= self._retry_at:
            return True
        return has_lines and now - self._tried_at >= RETRY_ON_APPEND_S

    def _plan_retry(self, now: float) -> None:
        self._sync_at = None
        self._retry_at = now + self._retry_delay_s
        self._retry_delay_s = min(self._retry_delay_s * 2, RETRY_LAST_S)

    def _tell(self) -> None:
        log = self._log
        status = Status(log.written, log.durable, log.failing, log.is_full, tuple(log.rotations), log.given_up)
        log.rotations.clear()
        if status != self._last:
            self._last = status
            self._report(status)

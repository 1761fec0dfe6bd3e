"""Output of units: from the keeper's pipes into ``UNIT.log``, and back to whoever asks.

This is the face on the manager's event loop. Moving bytes is the work of one thread (``output_capture``), so that a
slow disk never holds up a decision; reading is done from the files (``output_reading``), so that readers and the
thread share nothing but what is on disk.

What ``splice`` moved is in the file, everything else is still in the pipe that the keeper holds: the manager may be
killed at any instant and no byte is lost or doubled. When the disk refuses, output is lost before a process is
stopped by it, and the loss is told: by ``on_trouble``, by ``problems``, and by a line in the output itself.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from weakref import WeakSet

from supervisord_py.host.output_capture import CaptureThread, OutputTrouble
from supervisord_py.host.output_drops import DroppedLines, Drops
from supervisord_py.host.output_file import BOTH, FileHooks, LogFile, Scratch
from supervisord_py.host.output_file import splice as real_splice
from supervisord_py.host.output_folder import LogFolder
from supervisord_py.host.output_lives import LifeMarks
from supervisord_py.host.output_old_files import OldFiles
from supervisord_py.host.output_reading import Cursor, OutputFollower, Window, cursor_of_life, last_lines
from supervisord_py.host.spent_logs import clear_logs
from supervisord_py.model.log import LogFormat, LogPolicy
from supervisord_py.wire.log_lines import LogLine

__all__ = ["OutputCollector", "OutputFollower", "OutputTrouble"]

CLOSE_TIMEOUT_S = 2.0
"""How long an orderly end waits for a stalled disk: what is left stays in the keeper's pipes."""

Splice = Callable[[int, int, int, int | None], int]


class OutputCollector:
    """Captures, rotates, reads and follows the output of all units.

    Args:
        loop: The manager's event loop; all methods are called on it and all callbacks come there.
        log_dir: The folder of the output files; made at the first byte.
        gid: The group that may read them, or None for our own.
        on_trouble: Told when the output of a unit cannot be written, and when it can again.
        on_dropped: Told of lines above a unit's rate limit: at the first, then once a minute with their number.
        splice: Moves bytes from a pipe into a file (tests give one that fails).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        log_dir: Path,
        *,
        gid: int | None = None,
        on_trouble: Callable[[OutputTrouble], object] | None = None,
        on_dropped: Callable[[DroppedLines], object] | None = None,
        splice: Splice = real_splice,
    ) -> None:
        self._loop = loop
        self._report = on_trouble
        self._report_dropped = on_dropped
        self._splice = splice
        # The thread and the readers on the loop have a folder each: a folder may be opened anew at any time.
        self._writing = LogFolder(log_dir, gid=gid)
        self._reading = LogFolder(log_dir, gid=gid)
        self._scratch = Scratch()
        self._files: dict[str, LogFile] = {}
        self._policies: dict[str, LogPolicy] = {}
        self._loaded: Mapping[str, LogPolicy] = {}
        self._attached: set[str] = set()
        self._troubles: dict[str, OutputTrouble] = {}
        self._followers: dict[str, WeakSet[OutputFollower]] = {}
        self._waking: set[str] = set()
        self._closed = False
        self.on_attached: Callable[[str], None] | None = None
        """Told of a unit before the first byte of its pipe is moved."""
        self._thread = CaptureThread(on_bytes=self._bytes_came, on_trouble=self._trouble_came, scratch=self._scratch)
        self._drops = Drops(
            self._thread.call_at,
            lambda told: self._call_on_loop(lambda: self._tell_dropped(told)),
        )
        self._old_files = OldFiles(
            self._writing,
            LogFolder(log_dir, gid=gid),
            lives_of=self._lives,
            call_at=self._thread.call_at,
            submit=self._thread.submit,
        )
        self._hooks = FileHooks(self._lines_dropped, self._old_files.rotated, self._thread.call_at)
        self._thread.start()

    # Capturing

    @property
    def attached(self) -> frozenset[str]:
        """The units whose pipes are captured now."""
        return frozenset(self._attached)

    def attach(self, unit: str, fd: int, policy: LogPolicy, stream: str = BOTH) -> None:
        """Capture the pipe ``fd`` (ours to close from now on) as the output of ``unit``; ``stream`` is what comes here.

        A pipe that was captured for the unit before is emptied first. The pipe's own flags are never changed.
        """
        self._attached.add(unit)
        self._policies[unit] = policy
        if self.on_attached is not None:
            self.on_attached(unit)

        def command() -> None:
            file = self._file(unit)
            file.use(policy)
            file.stream = stream
            try:
                self._thread.attach(unit, fd, file)
            except OSError as error:
                os.close(fd)
                self._trouble_came(OutputTrouble(unit, f"output of {unit} cannot be captured: {error.strerror}", 0))
            self._drops.taken_over(unit, file.dropped_lines)

        self._thread.submit(command)

    def set_policy(self, unit: str, policy: LogPolicy) -> None:
        """Let another policy hold from the next byte on (a reload changed ``[log]``)."""
        if self._policies.get(unit) == policy:
            return
        self._policies[unit] = policy

        def command() -> None:
            self._file(unit).use(policy)

        self._thread.submit(command)

    def use_policies(self, policies: Mapping[str, LogPolicy]) -> None:
        """Let these hold for the older files of units, running or not, and for reading output back."""
        self._loaded = policies
        self._thread.submit(lambda: self._old_files.use(policies))

    def dropped_lines(self, unit: str) -> int:
        """Return how many lines of the unit's present or last life were above its rate limit."""
        return self._drops.totals.get(unit, 0)

    def mark_life(self, unit: str, invocation: str) -> None:
        """A new life of ``unit`` begins: what is written from now on is its output.

        To be called before its first process is asked for, after the life before was drained.
        """

        def command() -> None:
            self._file(unit).mark_life(invocation)
            self._drops.totals.pop(unit, None)

        self._thread.submit(command)

    def drain(self, unit: str) -> "asyncio.Future[None]":
        """Move everything that is in the unit's pipe now; the future is done when it is in the file.

        The work is begun by the call; the future may be ignored. It is done too when the file refuses (see
        ``problems``).
        """
        return self._after(lambda: self._thread.drain(unit))

    def detach(self, unit: str) -> "asyncio.Future[None]":
        """Drain, and close the unit's pipe and file; what the file refuses now is lost and counted."""
        self._attached.discard(unit)
        self._policies.pop(unit, None)

        def command() -> None:
            self._thread.detach(unit)
            file = self._files.pop(unit, None)
            # A life that has not written yet is known in memory only: keep it for the next pipe of the unit.
            if file is not None and file.lives.has_pending:
                self._files[unit] = file

        return self._after(command)

    def forget(self, unit: str) -> "asyncio.Future[None]":
        """The unit is gone for good: ``detach``, and remember nothing of it. Its files stay."""
        done = self.detach(unit)
        self._thread.submit(lambda: self._drop(unit))
        return done

    def clear(self, is_spent: Callable[[str], bool]) -> None:
        """Remove the oldest files of units that are gone for good, beside the loop: see ``spent_logs``."""
        self._loop.run_in_executor(None, clear_logs, self._reading.path, is_spent)

    def reopen(self) -> "asyncio.Future[None]":
        """Close all files and the folder; the next byte opens what has the name then (a foreign rotation; SIGUSR1)."""
        self._reading.forget()

        def command() -> None:
            for file in self._files.values():
                file.close()
            self._writing.forget()
            self._thread.retry()

        return self._after(command)

    def problems(self) -> list[str]:
        """Return what is wrong now, a sentence each; empty when all is well."""
        lines = [
            f"{trouble.problem}; {trouble.dropped_bytes} bytes lost so far, make room in {self._writing.path}"
            for trouble in self._troubles.values()
        ]
        lines += [problem for file in list(self._files.values()) if (problem := file.rotation_problem) is not None]
        lines += list(self._old_files.problems.values())
        if not self._closed and not self._thread.is_alive():
            lines.append("the output thread has ended: no output is captured, run supctl daemon-restart")
        return lines

    async def close(self) -> None:
        """Drain and close everything; returns after ``CLOSE_TIMEOUT_S`` at most."""
        if self._closed:
            return
        self._closed = True
        for followers in list(self._followers.values()):
            for follower in list(followers):
                follower.close()
        self._old_files.stop()
        self._thread.stop()
        await self._loop.run_in_executor(None, self._thread.join, CLOSE_TIMEOUT_S)
        await self._loop.run_in_executor(None, self._old_files.join, CLOSE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._writing.forget()
        self._reading.forget()

    # Reading

    def last_lines(self, unit: str, lines: int, *, previous: bool = False, invocation: str | None = None) -> list[str]:
        """Return what a unit wrote last, over rotated files; in the life before (``previous``), or in one
        ``invocation``.

        Empty when there is nothing to read. What is still in the pipe is not in it: ``drain`` first where that matters.
        """
        return [line.text for line in self.log_lines(unit, lines, previous=previous, invocation=invocation)]

    def log_lines(
        self,
        unit: str,
        lines: int,
        *,
        previous: bool = False,
        invocation: str | None = None,
        window: Window | None = None,
    ) -> list[LogLine]:
        """Return the same with the times of lines, where the log has them; of a ``window`` of time if there is one."""

        def read() -> list[LogLine]:
            return last_lines(
                self._reading, unit, lines,
                previous=previous, invocation=invocation, window=window, stamped=self._is_stamped(unit),
            )  # fmt: skip

        try:
            return read()
        except OSError:
            # The folder may have been removed and made again since it was opened.
            self._reading.forget()
        with contextlib.suppress(OSError):  # no folder, no lines; ``problems`` tells what keeps it from being written
            return read()
        return []

    def has_times(self, unit: str) -> bool:
        """Whether the lines of a unit have times in its log, as it is written now."""
        policy = self._policies.get(unit) or self._loaded.get(unit)
        return policy is not None and policy.format is not LogFormat.RAW

    def read_life(self, unit: str, invocation: str) -> Cursor | None:
        """Return a cursor at the beginning of what a life of ``unit`` has written, None where there is nothing yet.

        The caller closes it.
        """
        stamped = partial(self._is_stamped, unit)
        try:
            return cursor_of_life(self._reading, unit, invocation, stamped)
        except OSError:
            self._reading.forget()
        with contextlib.suppress(OSError):  # as above
            return cursor_of_life(self._reading, unit, invocation, stamped)
        return None

    def follow(self, units: Sequence[str], *, last: int = 0) -> OutputFollower:
        """Return an iterator over (unit, line): the ``last`` lines of each, then without a gap new ones as they come.

        Close it (``aclose``) when nobody reads it any more.

        Raises:
            OSError: the folder cannot be read.
        """
        follower = OutputFollower(
            self._reading, units, last=last, on_close=self._forget_follower, is_stamped=self._is_stamped
        )
        for unit in follower.units:
            self._followers.setdefault(unit, WeakSet()).add(follower)
        return follower

    def _forget_follower(self, follower: OutputFollower) -> None:
        for unit in follower.units:
            followers = self._followers.get(unit)
            if followers is not None:
                followers.discard(follower)
                if not followers:
                    del self._followers[unit]

    # Between loop and thread

    def _file(self, unit: str) -> LogFile:
        """Return the unit's file; on the thread only."""
        file = self._files.get(unit)
        if file is None:
            policy = self._policies.get(unit, LogPolicy())
            file = self._files[unit] = LogFile(
                self._writing, unit, policy, self._scratch, splice=self._splice, hooks=self._hooks
            )
        return file

    def _drop(self, unit: str) -> None:
        self._files.pop(unit, None)
        self._drops.totals.pop(unit, None)

    def _lives(self, unit: str) -> LifeMarks:
        """Return the marks of a unit's lives, whether it runs or not; on the thread only."""
        file = self._files.get(unit)
        return LifeMarks(self._writing, unit) if file is None else file.lives

    def _lines_dropped(self, unit: str, lines: int) -> None:
        """On the thread: lines were above the limit; with 0 a line was written that says so."""
        if lines:
            policy = self._files[unit].policy if unit in self._files else LogPolicy()
            self._drops.note(unit, lines, policy.rate_limit)
        else:
            self._bytes_came(unit, False)

    def _tell_dropped(self, told: DroppedLines) -> None:
        if self._report_dropped is not None:
            self._report_dropped(told)

    def _is_stamped(self, unit: str) -> bool:
        policy = self._policies.get(unit) or self._loaded.get(unit)
        return policy is not None and policy.format is LogFormat.TIMESTAMP

    def _after(self, command: Callable[[], None]) -> "asyncio.Future[None]":
        """Have ``command`` done on the thread; the future is done after it."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._closed:
            future.set_result(None)
            return future

        def finish() -> None:
            if not future.done():
                future.set_result(None)

        def run() -> None:
            try:
                command()
            finally:
                self._call_on_loop(finish)

        self._thread.submit(run)
        return future

    def _call_on_loop(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(callback)

    def _bytes_came(self, unit: str, ended: bool) -> None:
        """On the thread: wake followers, at most one call under way for each unit."""
        if unit not in self._followers:
            return
        if ended:
            self._call_on_loop(lambda: self._wake(unit, True))
        elif unit not in self._waking:
            self._waking.add(unit)
            self._call_on_loop(lambda: self._wake(unit, False))

    def _wake(self, unit: str, ended: bool) -> None:
        # Taken back before anything is read: bytes that come from now on wake again.
        self._waking.discard(unit)
        for follower in list(self._followers.get(unit, ())):
            follower.wake(unit, ended=ended)

    def _trouble_came(self, trouble: OutputTrouble) -> None:
        self._call_on_loop(lambda: self._note_trouble(trouble))

    def _note_trouble(self, trouble: OutputTrouble) -> None:
        if trouble.problem is None:
            self._troubles.pop(trouble.unit, None)
        else:
            self._troubles[trouble.unit] = trouble
        if self._report is not None:
            self._report(trouble)
